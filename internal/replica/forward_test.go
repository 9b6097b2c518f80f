package replica

import (
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// last returns the last index of a node's log.
func (n *rigNode) last() uint64 { return n.host.Shards()[0].Last }

// TestForward_DroppedPastItsTime: what a leader comes to when nobody waits for it any more is not proposed.
func TestForward_DroppedPastItsTime(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	if res := lead.do("k=before"); res.Err != nil {
		t.Fatal(res.Err)
	}
	f := func(ttl, busy time.Duration, proposed bool) {
		t.Helper()
		r.settle()
		was := lead.last()
		fut := other.propose("k=late", ttl)
		// The leader is busy with something else for a while.
		r.now = r.now.Add(busy)
		lead.turn()
		if got := lead.last() > was; got != proposed {
			t.Errorf("with %v left and after %v: proposed %v, want %v", ttl, busy, got, proposed)
		}
		r.until("answer", func() bool { _, ok := other.results[fut]; return ok })
		if err := other.results[fut].Err; !proposed && !errs.Is(err, errs.OutcomeUnknown) || proposed && err != nil {
			t.Errorf("with %v left and after %v: answer %v", ttl, busy, err)
		}
	}
	f(50*time.Millisecond, 40*time.Millisecond, true)
	f(50*time.Millisecond, 51*time.Millisecond, false)
	f(0, time.Second/2, true)
	// What comes later in the same session is not held up by the batch that never came.
	if res := other.do("k=after"); res.Err != nil {
		t.Fatal(res.Err)
	}
	r.same("k", "after")
}

// TestForward_OneWithoutLimitKeepsItsBatch: a batch may hold commands with and without a time limit.
func TestForward_OneWithoutLimitKeepsItsBatch(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	r.settle()
	was := lead.last()
	cmd := shard.Command{Module: 9, Data: []byte("k=1")}
	a, b := shard.NewFuture(), shard.NewFuture()
	other.turn(Propose{Shard: 1, Command: cmd, Future: a}, Propose{Shard: 1, Command: cmd, Future: b, Deadline: r.now.Add(50 * time.Millisecond)})
	r.now = r.now.Add(time.Second / 2)
	lead.turn()
	if lead.last() == was {
		t.Error("the batch was dropped although one of its commands has all the time")
	}
	r.until("answer", func() bool { _, ok := other.results[a]; return ok })
	if err := other.results[a].Err; err != nil {
		t.Errorf("the command without a limit: %v", err)
	}
}

// TestForward_NotSentAgainPastItsTime: a new leader gets only what somebody waits for.
func TestForward_NotSentAgainPastItsTime(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	r.settle()
	was := lead.last()
	r.drop = func(_, _ shard.NodeID, kind byte) bool { return kind == msgForward }
	fut := other.propose("k=late", 50*time.Millisecond)
	r.settle()
	r.heal()
	// No tick has answered for it yet when the node is told to send again.
	r.now = r.now.Add(51 * time.Millisecond)
	rep := other.host.reps[1]
	other.host.now = r.now
	rep.inflight[rep.order[0]].sentTerm = 0
	rep.resend(true)
	r.until("answer", func() bool { _, ok := other.results[fut]; return ok })
	if err := other.results[fut].Err; !errs.Is(err, errs.OutcomeUnknown) || lead.last() != was {
		t.Errorf("answer %v; the leader's log went from %d to %d", err, was, lead.last())
	}
}
