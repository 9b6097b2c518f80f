package replica

import (
	"fmt"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/shard"
)

// newFarRig makes a cluster at rest in which each way between two nodes takes so long.
func newFarRig(t *testing.T, way time.Duration) (r *rig, lead, other *rigNode) {
	t.Helper()
	r = newRig(t, 3, nil)
	lead, other = r.elect()
	lead.do("k=1")
	r.takes = func(shard.NodeID, Outgoing) time.Time { return r.now.Add(way) }
	r.run(5 * time.Second)
	if other.host.Shards()[0].Leader != lead.id {
		t.Fatal("another leader")
	}
	return r, lead, other
}

// An answer that takes longer than the time after which a lost request is repeated is an answer all the same: where the leader is far away there are no
// others.
func TestFar_ReadsAreAnswered(t *testing.T) {
	const way = 200 * time.Millisecond
	r, lead, other := newFarRig(t, way)
	for _, c := range []struct {
		n    *rigNode
		ways time.Duration
	}{{lead, 2}, {other, 4}} {
		before := c.n.host.readCtx
		f := c.n.read(0)
		took := r.until("read", func() bool { return c.n.reads[f] != nil })
		if most := c.ways*way + 50*time.Millisecond; took > most {
			t.Errorf("node %d answered a read after %v, want %v", c.n.id, took, most)
		}
		if n := c.n.host.readCtx - before; n != 1 {
			t.Errorf("node %d made %d requests", c.n.id, n)
		}
	}
}

// What is forwarded to a leader that is far away does not wait for what was forwarded before.
func TestFar_ForwardsDoNotWaitForEachOther(t *testing.T) {
	const way = 50 * time.Millisecond
	r, _, other := newFarRig(t, way)
	batches := 0
	r.drop = func(from, _ shard.NodeID, kind byte) bool {
		if from == other.id && kind == msgForward {
			batches++
		}
		return false
	}
	// One after the other, as from clients that know nothing of each other.
	var fs []*shard.Future
	for i := range 100 {
		fs = append(fs, other.propose(fmt.Sprintf("k%d=1", i), 0))
		r.run(100 * time.Microsecond)
	}
	took := r.until("answers", func() bool {
		for _, f := range fs {
			if _, ok := other.results[f]; !ok {
				return false
			}
		}
		return true
	})
	// To the leader, to a follower and back, and the news of it.
	if most := 4*way + forwardEvery + 15*time.Millisecond; took > most {
		t.Errorf("the last was answered after %v, want %v", took, most)
	}
	if batches > forwardsMax+3 {
		t.Errorf("%d batches for what comes within %v", batches, 10*time.Millisecond)
	}
}
