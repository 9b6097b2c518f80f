package replica

import (
	"testing"

	"github.com/quorate/quorate/internal/storage"
)

// Entries go to the disk before older ones are applied, which the turn after does at once.
func TestApply_WaitsForWhatIsToBeWritten(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("a=1")
	// The news that the first is committed comes along with the second.
	lead.propose("b=2", 0)
	before := other.counts.Commands
	r.holdSync[other.id] = true
	out := other.turn()
	if len(out.Writes) != 1 || len(out.Writes[0].Entries) != 1 {
		t.Fatalf("the follower writes %+v, want one entry", out.Writes)
	}
	if got := other.counts.Commands - before; got != 0 {
		t.Errorf("%d commands were applied before the entry went to the disk", got)
	}
	if out.Wake.After(r.now) {
		t.Errorf("the next turn is due %v later, want at once", out.Wake.Sub(r.now))
	}
	other.turn()
	if got := other.counts.Commands - before; got != 1 {
		t.Errorf("%d commands were applied in the next turn, want 1", got)
	}
	if v := other.get("a"); v != "1" {
		t.Errorf("the follower has a=%q", v)
	}
}

// A leader's answers do not wait for a turn of their own.
func TestApply_AnswersInTheTurnThatCommits(t *testing.T) {
	r := newRig(t, 1, nil)
	lead := r.nodes[0]
	r.until("leader", func() bool { return lead.host.Shards()[0].Leads })
	r.holdSync[lead.id] = true
	f := lead.propose("a=1", 0)
	r.settle()
	lead.sync()
	lead.turn()
	if _, ok := lead.results[f]; !ok {
		t.Error("the command was not answered when it was durable")
	}
}

// Turns that always have something to write do not keep what is committed from being applied for ever.
func TestApply_IsPutOffAFewTimesOnly(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("a=1")
	lead.propose("b=2", 0)
	other.turn()
	h := other.host
	h.out.Writes = []storage.Write{{Shard: 1}}
	for i := 1; i < deferMax; i++ {
		if !h.deferApply() {
			t.Fatalf("put off %d times, want %d", i, deferMax)
		}
	}
	if h.deferApply() {
		t.Errorf("put off more than %d times", deferMax)
	}
	h.out.Writes = nil
	r.settle()
	if v := other.get("a"); v != "1" {
		t.Errorf("the follower has a=%q", v)
	}
}
