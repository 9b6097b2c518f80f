package sim

import (
	"testing"
	"time"
)

// quietOptions are a short run of three nodes and one shard without faults, to which a test adds those that it wants.
func quietOptions(seed uint64) Options {
	return Options{
		Seed: seed, Nodes: 3, Shards: 1, Chaos: 25 * time.Second, Settle: 40 * time.Second, Clients: 4 + int(seed%4),
		DelayMax: time.Duration(1+seed%30) * time.Millisecond, Skew: 500 * time.Millisecond, Drift: 0.01,
		RestartMax: 4 * time.Second, ThinkMax: time.Duration(10+seed*37%150) * time.Millisecond, ElectionTicks: 10,
		ChunkBytes: 512, FlushMax: 100 * time.Millisecond,
	}
}

// regressions are seeds that once failed. Each was seen to fail without the change that is named.
var regressions = []struct {
	what string
	seed uint64
	with func(*Options)
}{}

func TestRegressions_StayFixed(t *testing.T) {
	for _, c := range regressions {
		o := quietOptions(c.seed)
		c.with(&o)
		if r := runSeed(t, o); r.Err != nil {
			t.Errorf("once more: %s", c.what)
		}
	}
}
