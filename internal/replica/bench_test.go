package replica

import (
	"fmt"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/shard"
)

// BenchmarkRound is the work of three nodes for one round of 48 commands, in one shard or spread over many; what a log entry costs
// beyond its commands is the difference.
func BenchmarkRound(b *testing.B) {
	const commands = 48
	for _, shards := range []int{1, 16} {
		b.Run(fmt.Sprintf("shards=%d", shards), func(b *testing.B) {
			r := newRig(b, 3, func(c *Config) {
				c.Shards = nil
				for id := range shards {
					c.Shards = append(c.Shards, shard.ID(id+1))
				}
			})
			lead := map[shard.ID]*rigNode{}
			r.until("leader of each shard", func() bool {
				for _, n := range r.nodes {
					for _, s := range n.host.Shards() {
						if s.Leads {
							lead[s.ID] = n
						}
					}
				}
				return len(lead) == shards
			})
			r.run(time.Second)
			r.noLog = true
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				for j := range commands {
					id := shard.ID(j%shards + 1)
					cmd := shard.Command{Module: 9, Data: fmt.Appendf(nil, "key%d=%032d", (i*commands+j)%1000, i)}
					n := lead[id]
					n.inbox = append(n.inbox, Propose{Shard: id, Command: cmd, Future: shard.NewFuture(), Deadline: r.now.Add(time.Minute)})
				}
				r.run(time.Millisecond)
				for _, n := range r.nodes {
					clear(n.results)
				}
			}
		})
	}
}
