package server

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

const (
	// garbage is about how many bytes of garbage are let pile up between two collections. Go's own rule is as much as there is live data. That
	// collects a small heap again and again under load (a tenth of a node's processor time was that), and lets a node with full memtables
	// take twice its data.
	garbage = 64 << 20
	// With much live data collections that come too often would cost more than memory does, and with little there is nothing to gain.
	gcPercentMin, gcPercentMax = 50, 400
	// A node that has allocated no more than young since it was started may be one that will have nothing to do: a start with many shards is garbage in the
	// main, and would stay for as long as nobody writes. Go's own rule is good enough for it.
	young, gcPercentYoung = 128 << 20, 100

	// restEvery is how often to look whether the node is at rest: then it has allocated restBytes at most since it was looked at last.
	restEvery = 10 * time.Second
	restBytes = 1 << 20
	// restWorth is how much must have been allocated since the last time for a collection at rest to be worth it.
	restWorth = 8 << 20
)

// gcPercent returns the garbage collector's target for so many bytes of live data, in percent of them, when so many have been allocated.
func gcPercent(live, allocated uint64) int {
	most := gcPercentMax
	if allocated < young {
		most = gcPercentYoung
	}
	return int(min(max(garbage*100/max(live, 1), gcPercentMin), uint64(most)))
}

// paceGC sets the garbage collector's target after each collection, and collects when the node is at rest, until stop is called. Whoever sets GOGC, Go's own variable for it, decides instead. It is
// for processes that do nothing but run a node.
func paceGC() (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	var stopped atomic.Bool
	before := debug.SetGCPercent(gcPercentYoung)
	set := gcPercentYoung
	// A sentinel that nobody holds is found by the next collection, and then another one takes its place. With a pointer in it, it is an object of its own.
	type sentinel struct{ _ *byte }
	var next func(struct{})
	next = func(struct{}) {
		if stopped.Load() {
			return
		}
		s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
		metrics.Read(s)
		// Setting it stops the world for a moment, so small changes are not worth it.
		if p := gcPercent(s[0].Value.Uint64(), s[1].Value.Uint64()); p < set*9/10 || p > set*11/10 {
			debug.SetGCPercent(p)
			set = p
		}
		runtime.AddCleanup(&sentinel{}, next, struct{}{})
	}
	next(struct{}{})
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(restEvery)
		defer t.Stop()
		collectAtRest(t.C, done)
	}()
	return func() {
		close(done)
		<-ended
		stopped.Store(true)
		debug.SetGCPercent(before)
	}
}

// collectAtRest gives garbage back to the operating system when the node has nothing to do. Nothing would be collected then for two minutes, and a start or the
// end of a load leaves up to 64 MiB; what Go does give back, it does slowly.
func collectAtRest(tick <-chan time.Time, done <-chan struct{}) {
	var r rest
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	for {
		select {
		case <-tick:
		case <-done:
			return
		}
		if metrics.Read(s); r.worth(s[0].Value.Uint64()) {
			debug.FreeOSMemory()
		}
	}
}

// rest is what collectAtRest remembers: what had been allocated when it last looked, and when it last collected.
type rest struct{ looked, collected uint64 }

// worth is told how many bytes the process has allocated so far, and says whether to collect now.
func (r *rest) worth(allocated uint64) bool {
	still := r.looked > 0 && allocated-r.looked <= restBytes
	r.looked = allocated
	if !still || allocated-r.collected < restWorth {
		return false
	}
	r.collected = allocated
	return true
}
