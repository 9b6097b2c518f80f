package replica

import (
	"runtime"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/shard"
)

// A node holds thousands of shards of which most are idle: what each takes in advance counts.
func TestHost_IdleShardsTakeLittleMemory(t *testing.T) {
	const shards, limit = 500, 6 << 10
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	measure := func(n int) uint64 {
		before := heap()
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
		after := heap()
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
