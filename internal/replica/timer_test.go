package replica

import (
	"fmt"
	"testing"
	"time"
)

func TestTimers_OneThatMovesTakesBoundedMemory(t *testing.T) {
	r := newRig(t, 1, nil)
	r.until("leader", func() bool { return r.leader() != nil })
	n := r.leader()
	const moves = 500
	for i := range moves {
		if res := n.do(fmt.Sprintf("@k=%ds", 36000-i)); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	if got := len(n.host.timers); got > timersSlack+3 {
		t.Errorf("after %d moves of the only timer of one shard, %d are waited for", moves, got)
	}
	// The last one counts still.
	n.do("@k=1s")
	r.until("timer", func() bool { return n.get("k") == "fired" })
}

// Timers that fall due one soon after the other do not wait for each other.
func TestTimers_OneSoonAfterTheOther(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	began := r.now
	lead.do("@d=100ms")
	lead.do("@e=200ms")
	r.until("last timer", func() bool { return lead.get("e") == "fired" })
	if took := r.now.Sub(began); took > 250*time.Millisecond {
		t.Errorf("a timer of 200 ms fired after %v", took)
	}
}
