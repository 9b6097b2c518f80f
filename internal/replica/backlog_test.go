package replica

import (
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// TestBacklog_NothingIsProposed: a leader whose store is behind refuses its own clients, and other nodes' batches wait until
// it has caught up. What is committed is applied all the same.
func TestBacklog_NothingIsProposed(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	if res := lead.do("k=before"); res.Err != nil {
		t.Fatal(res.Err)
	}
	share := 0.0
	lead.host.backlog = func() float64 { return share }
	for _, s := range []struct {
		share  float64
		behind bool
	}{{0.6, false}, {0.63, true}, {0.9, true}, {0.51, true}, {0.49, false}, {0.6, false}} {
		share = s.share
		if res := lead.do("k=1"); errs.Is(res.Err, errs.Overloaded) != s.behind {
			t.Errorf("with a backlog of %v: %v, want refused %v", s.share, res.Err, s.behind)
		}
	}
	share = 0.9
	was := lead.last()
	late, patient := other.propose("k=late", time.Second), other.propose("k=patient", 0)
	r.until("an end of the wait", func() bool { _, ok := other.results[late]; return ok })
	if err := other.results[late].Err; !errs.Is(err, errs.OutcomeUnknown) {
		t.Errorf("a forwarded command that nobody took: %v", err)
	}
	if lead.last() != was {
		t.Errorf("the leader proposed something")
	}
	share = 0
	r.until("answer", func() bool { _, ok := other.results[patient]; return ok })
	if err := other.results[patient].Err; err != nil {
		t.Error(err)
	}
	r.same("k", "patient")

	// A follower refuses its own clients, and applies what others propose.
	other.host.backlog = func() float64 { return 0.9 }
	if res := other.do("k=2"); !errs.Is(res.Err, errs.Overloaded) {
		t.Errorf("got %v", res.Err)
	}
	if res := lead.do("k=3"); res.Err != nil {
		t.Error(res.Err)
	}
	r.same("k", "3")
}

// A node whose store is behind takes no more of a snapshot, however long that is, and its turns do not wait for the disk.
func TestBacklog_SnapshotsWait(t *testing.T) {
	for _, begun := range []bool{false, true} {
		r, lead, other := behind(t, 100)
		rep := other.host.reps[1]
		full, over := !begun, false
		other.host.backlog = func() float64 {
			if full = full || rep.in != nil && rep.in.next > 10; full && !over {
				return 0.9
			}
			return 0
		}
		r.heal()
		r.until("a snapshot", func() bool { return full && lead.host.Shards()[0].Snapshotting })
		next := func() uint64 {
			if rep.in == nil {
				return 0
			}
			return rep.in.next
		}
		was := next()
		chunks := 0
		r.drop = func(_, _ shard.NodeID, kind byte) bool {
			if kind == msgChunk {
				chunks++
			}
			return false
		}
		r.run(3 * snapshotGiveUp)
		if limit := int(3*snapshotGiveUp/(snapshotRepeatTicks*lead.host.cfg.Tick)) + chunksAhead; chunks == 0 || chunks > limit {
			t.Errorf("begun %v: %d chunks were sent meanwhile, want at most %d", begun, chunks, limit)
		}
		if got := next(); got != was || begun != (was > 0) {
			t.Errorf("begun %v: %d chunks were stored, and %d in the end", begun, was, got)
		}
		if !lead.host.Shards()[0].Snapshotting || r.noted("snapshot transfer makes no progress") {
			t.Errorf("begun %v: the transfer was given up", begun)
		}
		over = true
		if took := r.until("value", func() bool { return other.get("last") == "1" }); took > 5*time.Second {
			t.Errorf("begun %v: it took %v when there was room again", begun, took)
		}
	}
}
