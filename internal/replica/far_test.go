package replica

import (
	"fmt"
	"strings"
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

// lostFar makes a cluster with nodes far from each other, one of which gets a snapshot of some hundreds of chunks once the network is healed. A chunk
// keeps the network busy for so long. under tells how many are under way.
func lostFar(t *testing.T, way time.Duration, each *time.Duration) (r *rig, lead, other *rigNode, under func() int) {
	t.Helper()
	r, lead, other = behindBy(t, 400, 500, func(c *Config) { c.ChunkBytes = 512 })
	busy := r.now
	r.takes = func(from shard.NodeID, f Outgoing) time.Time {
		if from == lead.id && f.To == other.id && len(f.Data) > 512 {
			if busy.Before(r.now) {
				busy = r.now
			}
			busy = busy.Add(time.Duration(len(f.Data)/512) * *each)
			return busy.Add(way)
		}
		return r.now.Add(way)
	}
	return r, lead, other, func() int {
		for _, o := range lead.host.order[0].out {
			return o.under
		}
		return 0
	}
}

// Over a network that is long and wide more chunks are under way; over a narrow one they would only wait for each other, and entries for them.
func TestFar_SnapshotTakesTheRoomThereIs(t *testing.T) {
	for _, c := range []struct {
		way, each, then time.Duration
		least, most     int
	}{
		{100 * time.Millisecond, time.Millisecond, time.Millisecond, chunksAheadMax, chunksAheadMax},
		{time.Millisecond, 20 * time.Millisecond, 20 * time.Millisecond, chunksAhead, chunksAhead + 2},
		// It becomes narrow meanwhile.
		{100 * time.Millisecond, time.Millisecond, 10 * time.Millisecond, chunksAhead, chunksAheadMax - 4},
	} {
		each := c.each
		r, _, other, under := lostFar(t, c.way, &each)
		r.heal()
		have := func(n uint64) func() bool {
			return func() bool { in := other.host.order[0].in; return in != nil && in.next > n }
		}
		// With 4 chunks at a time the 800 took 40 s where the way is long.
		if took := r.until("half of it", have(400)); c.each < c.way && took > 6*time.Second {
			t.Errorf("way %v, chunks of %v: half of it took %v", c.way, c.each, took)
		}
		if each != c.then {
			each = c.then
			r.until("more", have(500))
		}
		most := 0
		r.sent = func(shard.NodeID, Outgoing) { most = max(most, under()) }
		r.until("value", func() bool { return other.get("last") == "1" })
		if most < c.least || most > c.most {
			t.Errorf("way %v, chunks of %v, then of %v: %d chunks under way, want %d to %d", c.way, c.each, c.then, most, c.least, c.most)
		}
	}
}

// What was under way on a link that broke is sent again at once, not after a wait for each.
func TestFar_SnapshotGoesOnOverANewLink(t *testing.T) {
	way, each := 100*time.Millisecond, time.Millisecond
	r, lead, other, under := lostFar(t, way, &each)
	r.heal()
	r.until("full window", func() bool { return under() == chunksAheadMax })
	into := other.host.order[0].in
	r.flying = nil
	lead.turn(Link{Node: other.id, Up: false})
	lead.turn(Link{Node: other.id, Up: true})
	next := into.next
	took := r.until("rest", func() bool { return into.next >= next+chunksAheadMax })
	if limit := 20 * way; took > limit {
		t.Errorf("what was lost with the link was there after %v, want %v", took, limit)
	}
	r.until("value", func() bool { return other.get("last") == "1" })
	if n := strings.Count(strings.Join(r.notes, "\n"), "receiving a snapshot"); n != 1 {
		t.Errorf("%d transfers: %v", n, r.notes)
	}
}
