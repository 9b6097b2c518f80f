package sim

import (
	"flag"
	"testing"
	"time"
)

var (
	seeds = flag.Int("seeds", 20, "how many seeds to run")
	first = flag.Uint64("first", 1, "the first seed")
)

func runSeed(t *testing.T, seed uint64) Report {
	t.Helper()
	r := Run(FromSeed(seed))
	if r.Err != nil {
		for _, l := range r.Log[max(0, len(r.Log)-60):] {
			t.Log(l)
		}
		t.Errorf("seed %d: %v\noptions: %v", seed, r.Err, r.Options)
	}
	return r
}

// TestSeeds runs many different clusters.
func TestSeeds(t *testing.T) {
	var virtual time.Duration
	var sum Stats
	start := time.Now()
	for i := range *seeds {
		r := runSeed(t, *first+uint64(i))
		virtual += r.Virtual
		sum.Add(r.Stats)
		if t.Failed() {
			break
		}
	}
	t.Logf("%d seeds, %v virtual in %v: %+v", *seeds, virtual, time.Since(start).Round(time.Second), sum)
}

// TestRun_IsDeterministic runs seeds twice and compares everything that happened.
func TestRun_IsDeterministic(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		a, b := Run(FromSeed(seed)), Run(FromSeed(seed))
		if a.Trace != b.Trace {
			for i := range min(len(a.Log), len(b.Log)) {
				if a.Log[i] != b.Log[i] {
					t.Logf("first difference:\n%s\n%s", a.Log[i], b.Log[i])
					break
				}
			}
			t.Errorf("seed %d: traces %x and %x differ", seed, a.Trace, b.Trace)
		}
	}
}
