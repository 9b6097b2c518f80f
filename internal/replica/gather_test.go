package replica

import (
	"fmt"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/shard"
)

// syncAll syncs all logs, and lets everything go on that waits for it.
func (r *rig) syncAll() {
	for _, n := range r.nodes {
		n.sync()
	}
	r.settle()
}

// made returns how many batches the node has made for shard 1.
func (n *rigNode) made() uint64 { return n.host.reps[1].nextSeq - 1 }

// answers returns how many of some futures are answered.
func (n *rigNode) answers(fs []*shard.Future) (done int) {
	for _, f := range fs {
		if _, ok := n.results[f]; ok {
			done++
		}
	}
	return done
}

// round has so many commands answered in one round, which takes a millisecond.
func round(t *testing.T, r *rig, lead *rigNode, clients int) {
	t.Helper()
	for _, n := range r.nodes {
		r.holdSync[n.id] = true
		defer delete(r.holdSync, n.id)
	}
	lead.propose("first=1", 0)
	r.settle()
	before := lead.made()
	var fs []*shard.Future
	for i := range clients {
		fs = append(fs, lead.propose(fmt.Sprintf("k%d=1", i), 0))
	}
	r.settle()
	if lead.made() != before {
		t.Fatalf("a batch was made while another is under way")
	}
	r.syncAll()
	if got := lead.made(); got != before+1 {
		t.Fatalf("%d batches were made of what waited", got-before)
	}
	r.run(time.Millisecond)
	r.syncAll()
	if got := lead.answers(fs); got != clients {
		t.Fatalf("%d of %d commands were answered", got, clients)
	}
}

// When many clients were answered, the next round waits for most of them, but not for long.
func TestRounds_ClientsOfALargeOneAreGathered(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	r.run(time.Second)
	round(t, r, lead, 16)
	before := lead.made()
	for i := range 13 {
		out := lead.turn(Propose{Shard: 1, Command: shard.Command{Module: 9, Data: []byte("a=1")}, Future: shard.NewFuture()})
		if lead.made() != before {
			t.Fatalf("a batch was made when %d of 16 clients were back", i+1)
		}
		if got := out.Hold.Commands; got != 13-i || len(out.Hold.Shards) != 1 {
			t.Errorf("after %d commands %d more are held for %v, want %d for shard 1", i+1, got, out.Hold.Shards, 13-i)
		}
	}
	lead.propose("a=2", 0)
	if lead.made() != before+1 {
		t.Errorf("no batch was made when 14 of 16 clients were back")
	}
	r.settle()

	round(t, r, lead, 16)
	before = lead.made()
	f := lead.propose("b=1", 0)
	r.settle()
	if lead.made() != before {
		t.Fatalf("a batch was made when 1 of 16 clients was back")
	}
	r.run(gatherMax)
	if _, ok := lead.results[f]; !ok {
		t.Errorf("a lone client still waits after %v", gatherMax)
	}
}

// Few clients wait for nobody.
func TestRounds_FewClientsDoNotWait(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	r.run(time.Second)
	round(t, r, lead, gatherMin-1)
	now := r.now
	f := lead.propose("a=1", 0)
	r.settle()
	if _, ok := lead.results[f]; !ok || r.now != now {
		t.Errorf("a command after a small round was not answered at once")
	}
}

// A small round is waited for while that is worth it.
func TestRounds_SmallOnesAreGatheredIfClientsComeBackSoon(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	r.run(time.Second)
	// lone says how long a command waits that comes alone after a small round.
	lone := func() time.Duration {
		round(t, r, lead, gatherMin)
		now, f := r.now, lead.propose("a=1", 0)
		return r.until("answer", func() bool {
			if _, ok := lead.results[f]; !ok && r.now.Equal(now) {
				r.run(time.Millisecond)
			}
			_, ok := lead.results[f]
			return ok
		})
	}
	for range 5 {
		round(t, r, lead, gatherMin)
		before := lead.made()
		for i := range gatherMin {
			if lead.made() != before {
				t.Fatalf("a batch was made when %d of %d clients were back", i, gatherMin)
			}
			lead.propose("a=1", 0)
		}
		if lead.made() != before+1 {
			t.Fatalf("no batch was made when all clients were back")
		}
		// That round took no time, in which nobody can be back.
		r.run(time.Second)
		lead.host.misses, lead.host.skip = 0, 0
	}
	for miss := 1; miss <= missesMax+2; miss++ {
		if took := lone(); took != time.Millisecond {
			t.Fatalf("before miss %d a lone client waited for %v, want as long as the round before took", miss, took)
		}
		for i := range 1 << min(miss, missesMax) {
			if took := lone(); took != 0 {
				t.Fatalf("after miss %d the client of small round %d waited for %v", miss, i+1, took)
			}
		}
	}
}

// What could not be written yet is not made a batch of yet.
func TestRounds_GatherWhileTheLogIsBusy(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	r.run(time.Second)
	for _, comes := range []bool{true, false} {
		round(t, r, lead, 16)
		before := lead.made()
		// As if the log were writing for another leader.
		lead.host.logSeq++
		for range 16 {
			lead.propose("a=1", 0)
		}
		if lead.made() != before {
			t.Fatalf("a batch was made while the log writes")
		}
		if comes {
			lead.turn(LogDone{lead.host.logSeq})
		} else {
			r.run(gatherMax)
		}
		if lead.made() != before+1 {
			t.Errorf("no batch was made when the log was idle, %v, or the wait over", comes)
		}
		lead.turn(LogDone{lead.host.logSeq})
		r.run(time.Second)
	}
}

// Clients are not called late for what the log kept them waiting.
func TestRounds_ABusyLogIsNoFaultOfTheClients(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	r.run(time.Second)
	for _, c := range []struct{ clients, misses int }{{gatherMin, 0}, {1, 1}} {
		lead.host.misses, lead.host.skip = 0, 0
		round(t, r, lead, gatherMin)
		before := lead.made()
		lead.host.logSeq++
		for range c.clients {
			lead.propose("a=1", 0)
		}
		r.run(900 * time.Microsecond)
		lead.turn(LogDone{lead.host.logSeq})
		if c.clients < gatherMin {
			r.run(time.Millisecond)
		}
		if got := lead.made(); got != before+1 || lead.host.misses != c.misses {
			t.Errorf("%d of %d clients came at once: %d batches, %d misses, want 1 and %d", c.clients, gatherMin, got-before, lead.host.misses, c.misses)
		}
		r.run(time.Second)
	}
}

// A shard whose batch does not get through holds up the others once, for slowRound, and never again.
func TestRounds_OneStuckShardHoldsUpNobody(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.Shards = []shard.ID{1, 2} })
	lead, _ := r.elect()
	stuck := lead.host.reps[2]
	for range 50 {
		for _, n := range r.nodes {
			if n != lead && n.host.reps[2].leads() {
				r.isolate(n)
			}
		}
		r.run(3 * time.Second)
		r.heal()
		r.run(time.Second)
		if stuck.leads() && lead.host.reps[1].leads() {
			break
		}
	}
	if !stuck.leads() {
		t.Fatal("no node leads both shards")
	}
	r.run(100 * time.Millisecond)
	// As if its part of the log were never written.
	r.bent = true
	stuck.unsynced++
	stuck.joinWith()
	began := r.now
	f := lead.propose("a=1", 0)
	r.until("answer", func() bool { _, ok := lead.results[f]; return ok })
	if took := r.now.Sub(began); took > 2*slowRound {
		t.Errorf("the first command took %v", took)
	}
	for i := range 5 {
		now := r.now
		f := lead.propose(fmt.Sprintf("b=%d", i), 0)
		r.settle()
		if _, ok := lead.results[f]; !ok || r.now != now {
			t.Fatalf("command %d waited for the stuck shard", i)
		}
	}
}
