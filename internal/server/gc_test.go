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
		if got := gcPercent(c.live); got != c.want {
			t.Errorf("gcPercent(%d) = %d, want %d", c.live, got, c.want)
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
	hold = make([]byte, 256<<20)
	await(func(p int) bool { return p == gcPercentMin })
	hold = nil
	await(func(p int) bool { return p > 100 })
	stop()
	if got := now(); got != before {
		t.Errorf("%d %% afterwards, %d before", got, before)
	}
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
