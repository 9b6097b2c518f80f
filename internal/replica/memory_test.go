package replica

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/shard"
)

// heapInUse returns how much memory is in use.
func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A node holds thousands of shards of which most are idle: what each takes in advance counts.
func TestHost_IdleShardsTakeLittleMemory(t *testing.T) {
	const shards, limit = 500, 6 << 10
	measure := func(n int) uint64 {
		before := heapInUse()
		r := newRig(t, 3, func(c *Config) {
			for i := 2; i <= n; i++ {
				c.Shards = append(c.Shards, shard.ID(i))
			}
		})
		r.until("sleep", func() bool {
			for _, n := range r.nodes {
				for _, s := range n.host.Shards() {
					if s.Leader == 0 || s.Awake {
						return false
					}
				}
			}
			return true
		})
		r.run(time.Second)
		r.notes = nil
		after := heapInUse()
		runtime.KeepAlive(r)
		return (after - before) / uint64(len(r.nodes))
	}
	measure(1)
	one, many := measure(1), measure(shards)
	each := (many - one) / (shards - 1)
	t.Logf("%d bytes a shard", each)
	if each > limit {
		t.Errorf("an idle shard takes %d bytes, want %d at most", each, limit)
	}
}

// Small entries that come in frames with pieces of another shard's snapshot do not keep those in memory.
func TestHost_EntriesKeepNoFramesInMemory(t *testing.T) {
	const frames, rest, limit = 200, 256 << 10, 8 << 20
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	var caught [][]byte
	r.sent = func(from shard.NodeID, f Outgoing) {
		if from == lead.id && f.To == other.id {
			caught = append(caught, f.Data)
		}
	}
	r.drop = func(from, to shard.NodeID, _ byte) bool { return from == lead.id && to == other.id }
	before := heapInUse()
	for i := range frames {
		lead.propose(fmt.Sprintf("k=%d", i), 0)
		for _, data := range caught {
			w := beginMessage(slices.Clip(data), msgDigest)
			w.b = append(w.b, make([]byte, rest)...) // of a shard that there is not
			other.turn(Frame{From: lead.id, Data: w.end(), At: r.now})
		}
		caught = nil
		r.settle()
	}
	r.heal()
	r.same("k", fmt.Sprint(frames-1))
	if got := int64(heapInUse()) - int64(before); got > limit {
		t.Errorf("%d frames of %d bytes left %d bytes in memory, want %d at most", frames, rest, got, limit)
	}
	runtime.KeepAlive(r)
}
