package server

import (
	"math"
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// A node that takes more memory than its container is allowed, or than the machine has, is killed. So the garbage collector is told of the limit, and what clients
// can make a node hold is bounded by parts of it. With 16 GiB and more these bounds are what they would be without a limit.

// memory is how many bytes the process may take, 0 if that is unknown.
type memory int64

// ownMemory returns the least of the limit of the process's control groups, the machine's memory, and GOMEMLIMIT.
func ownMemory() memory {
	var least memory
	take := func(n uint64, err error) {
		if err == nil && n > 0 && n < math.MaxInt64 && (least == 0 || memory(n) < least) {
			least = memory(n)
		}
	}
	take(memlimit.FromCgroup())
	take(memlimit.FromSystem())
	if os.Getenv("GOMEMLIMIT") != "" {
		take(uint64(debug.SetMemoryLimit(-1)), nil)
	}
	return least
}

// share returns one of so many parts of the memory, but no more than most, and no less than least.
func (m memory) share(parts, least, most int64) int64 {
	if m == 0 {
		return most
	}
	return max(min(int64(m)/parts, most), least)
}

// queries returns how many queries may have a large value in memory at a time, 0 if any number may.
func (m memory) queries() int {
	if m == 0 || m > 4<<30 {
		return 0
	}
	return int(m.share(128<<20, 4, 64))
}

// reserve is what limitGC leaves of a small memory, be it more than a tenth. The collector is late by what is allocated while it works, and that is not less where
// there is less memory: copies of values of 8 MB, in all that they go through.
const reserve = 128 << 20

// gcLimit is how much memory the garbage collector is told of: nine tenths, or what reserve leaves, but three quarters at least. The rest is for what the Go runtime
// does not know of, and for what it is late with.
func (m memory) gcLimit() int64 {
	return int64(m) - max(int64(m)/10, min(reserve, int64(m)/4))
}

// limitGC makes the garbage collector work harder when so much of the memory is used, until stop is called. Whoever sets GOMEMLIMIT, Go's own variable for it, decides
// instead. It is for processes that do nothing but run a node.
func (m memory) limitGC() (stop func()) {
	if m == 0 || os.Getenv("GOMEMLIMIT") != "" {
		return func() {}
	}
	before := debug.SetMemoryLimit(m.gcLimit())
	return func() { debug.SetMemoryLimit(before) }
}
