package server

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestGCPercent(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{{0, 400}, {1 << 20, 400}, {16 << 20, 400}, {32 << 20, 200}, {64 << 20, 100}, {128 << 20, 50}, {1 << 40, 50}} {
		if got := gcPercent(c.live, young); got != c.want {
			t.Errorf("gcPercent(%d) = %d, want %d", c.live, got, c.want)
		}
		// What a start leaves is collected as Go does by itself.
		if got, want := gcPercent(c.live, young-1), min(c.want, 100); got != want {
			t.Errorf("gcPercent(%d) = %d in a young process, want %d", c.live, got, want)
		}
	}
}

// hold keeps data alive, so that collections find them.
var hold []byte

func TestPaceGC_FollowsWhatLives(t *testing.T) {
	t.Setenv("GOGC", "")
	now := func() int {
		p := debug.SetGCPercent(-1)
		debug.SetGCPercent(p)
		return p
	}
	before := now()
	stop := paceGC()
	await := func(ok func(percent int) bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(now()); runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatalf("the target stays at %d %%", now())
			}
			runtime.GC()
		}
	}
	// More than a start allocates.
	hold = make([]byte, 256<<20)
	await(func(p int) bool { return p == gcPercentMin })
	hold = nil
	await(func(p int) bool { return p > 100 })
	stop()
	if got := now(); got != before {
		t.Errorf("%d %% afterwards, %d before", got, before)
	}
}

func TestRest_CollectsOnceWhenTheNodeGoesQuiet(t *testing.T) {
	var r rest
	for i, c := range []struct {
		allocated uint64
		want      bool
	}{
		{30 << 20, false},            // just started: nobody knows yet
		{90 << 20, false},            // under load
		{91 << 20, true},             // at rest since the last look
		{91 << 20, false},            // still, but there is nothing new
		{92 << 20, false},            // a little goes on all the time
		{93 << 20, false},            //
		{98<<20 + 1<<19, false},      // more than that
		{99 << 20, true},             // and enough to be worth it
		{107<<20 + restBytes, false}, // load again
		{107<<20 + restBytes + 1, true},
	} {
		if got := r.worth(c.allocated); got != c.want {
			t.Errorf("look %d, %d bytes: %v, want %v", i, c.allocated, got, c.want)
		}
	}
}

func TestCollectAtRest_GivesMemoryBack(t *testing.T) {
	tick, done, ended := make(chan time.Time), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		collectAtRest(tick, done)
	}()
	before := debug.SetGCPercent(-1)
	defer debug.SetGCPercent(before)
	hold = make([]byte, 64<<20)
	hold = nil
	var at runtime.MemStats
	runtime.ReadMemStats(&at)
	for end, now := time.Now().Add(time.Minute), at; now.HeapReleased < at.HeapReleased+48<<20; runtime.ReadMemStats(&now) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes are given back, %d were before", now.HeapReleased, at.HeapReleased)
		}
		tick <- time.Time{}
	}
	close(done)
	<-ended
}

func TestPaceGC_LeavesWhatTheUserSet(t *testing.T) {
	t.Setenv("GOGC", "77")
	before := debug.SetGCPercent(77)
	defer debug.SetGCPercent(before)
	paceGC()()
	if got := debug.SetGCPercent(77); got != 77 {
		t.Errorf("set to %d", got)
	}
}
