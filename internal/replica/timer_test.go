package replica

import (
	"fmt"
	"testing"
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
