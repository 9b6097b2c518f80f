package replica

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/shard"
)

// A node with an empty disk needs a snapshot of every shard at once. What leaders have under way to it is bounded all the same.
func TestSnapshot_OfManyShardsTakeTurns(t *testing.T) {
	const shards, rows = 120, 8
	r := newRig(t, 3, func(c *Config) {
		c.ChunkBytes, c.LogEntriesMax = 256, 5
		for i := 2; i <= shards; i++ {
			c.Shards = append(c.Shards, shard.ID(i))
		}
	})
	lead, _ := r.elect()
	for i := range shards {
		r.until("leader", func() bool { return lead.host.Shards()[i].Leader != 0 })
	}
	for i := range rows {
		for id := range shards {
			f := shard.NewFuture()
			lead.turn(Propose{Shard: shard.ID(id + 1), Command: shard.Command{Module: 9, Data: fmt.Appendf(nil, "key%d=%s", i, strings.Repeat("v", 100))}, Future: f})
		}
		r.settle()
	}
	r.run(2 * time.Second)
	lost := r.nodes[0]
	lost.stop()
	lost.newDisk()
	lost.start(false)
	r.takes = func(shard.NodeID, Outgoing) time.Time { return r.now.Add(20 * time.Millisecond) }
	most := 0
	r.sent = func(from shard.NodeID, _ Outgoing) {
		under := 0
		for _, rep := range r.nodes[from-1].host.order {
			for _, o := range rep.out {
				under += len(o.chunks)
			}
		}
		most = max(most, under)
	}
	took := r.until("rebuilt", func() bool {
		for i, s := range lost.host.Shards() {
			if want := r.nodes[1].host.Shards()[i]; s.Awaiting || s.Applied != want.Applied || !want.Voter(s.Replica) {
				return false
			}
		}
		return true
	})
	r.sent = nil
	t.Logf("at most %d chunks under way, %v", most, took)
	if most > sendingMax*chunksAhead || most < sendingMax {
		t.Errorf("a leader had %d chunks under way, want %d at most", most, sendingMax*chunksAhead)
	}
	for _, n := range r.nodes {
		if n.host.sending != 0 {
			t.Errorf("node %d believes that %d snapshots are under way", n.id, n.host.sending)
		}
	}
}
