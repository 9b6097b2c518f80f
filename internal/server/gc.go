package server

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
)

const (
	// garbage is about how many bytes of garbage are let pile up between two collections. Go's own rule is as much as there is live data. That
	// collects a small heap again and again under load (a tenth of a node's processor time was that), and lets a node with full memtables
	// take twice its data.
	garbage = 64 << 20
	// With much live data collections that come too often would cost more than memory does, and with little there is nothing to gain.
	gcPercentMin, gcPercentMax = 50, 400
)

// gcPercent returns the garbage collector's target for so many bytes of live data, in percent of them.
func gcPercent(live uint64) int {
	return int(min(max(garbage*100/max(live, 1), gcPercentMin), gcPercentMax))
}

// paceGC sets the garbage collector's target after each collection, until stop is called. Whoever sets GOGC, Go's own variable for it, decides instead. It is
// for processes that do nothing but run a node.
func paceGC() (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	var stopped atomic.Bool
	before := debug.SetGCPercent(gcPercentMax)
	set := gcPercentMax
	// A sentinel that nobody holds is found by the next collection, and then another one takes its place. With a pointer in it, it is an object of its own.
	type sentinel struct{ _ *byte }
	var next func(struct{})
	next = func(struct{}) {
		if stopped.Load() {
			return
		}
		s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(s)
		// Setting it stops the world for a moment, so small changes are not worth it.
		if p := gcPercent(s[0].Value.Uint64()); p < set*9/10 || p > set*11/10 {
			debug.SetGCPercent(p)
			set = p
		}
		runtime.AddCleanup(&sentinel{}, next, struct{}{})
	}
	next(struct{}{})
	return func() {
		stopped.Store(true)
		debug.SetGCPercent(before)
	}
}
