package sim

import (
	"flag"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

var (
	seeds = flag.Int("seeds", 0, "how many seeds to run; 0 means 200, or fewer with -short or the race detector")
	first = flag.Uint64("first", 1, "the first seed")
	tail  = flag.Int("tail", 60, "how many of a failed run's last events to print")
)

// The default run is long enough for each odd path to be taken.
const (
	defaultSeeds   = 200
	shortSeeds     = 20
	raceSeeds      = 3
	defaultVirtual = 4 * time.Hour
)

// TestMain trades memory for time: a run makes much garbage and keeps little.
func TestMain(m *testing.M) {
	flag.Parse()
	debug.SetGCPercent(400)
	os.Exit(m.Run())
}

// runSeed reports what a failed run did last, and how to run it again.
func runSeed(t *testing.T, o Options) Report {
	t.Helper()
	r := Run(o)
	if r.Err != nil {
		last := strings.Join(r.Log[max(0, len(r.Log)-*tail):], "\n")
		t.Errorf("%s\nseed %d: %v\noptions: %v\nagain: go test ./internal/sim -run TestSeeds -v -seeds 1 -first %d", last, o.Seed, r.Err, r.Options, o.Seed)
	}
	return r
}

// progressEvery is how often a long run says how far it is.
const progressEvery = time.Minute

// TestSeeds runs many different clusters, one after the other, since raft draws from the process's one source of chance. In a run of the default length or longer, everything that Stats counts must have
// happened at least once.
func TestSeeds(t *testing.T) {
	n := *seeds
	switch {
	case n > 0:
	case raceEnabled:
		n = raceSeeds
	case testing.Short():
		n = shortSeeds
	default:
		n = defaultSeeds
	}
	var virtual time.Duration
	var sum Stats
	start := time.Now()
	said := start
	for i := range n {
		r := runSeed(t, FromSeed(*first+uint64(i)))
		virtual += r.Virtual
		sum.Add(r.Stats)
		if t.Failed() {
			return
		}
		if time.Since(said) > progressEvery {
			said = time.Now()
			t.Logf("%d of %d seeds", i+1, n)
		}
	}
	t.Logf("%d seeds from %d, %v virtual in %v: %v", n, *first, virtual.Round(time.Second), time.Since(start).Round(time.Second), sum)
	if n < defaultSeeds {
		return
	}
	if missing := sum.Missing(); len(missing) > 0 {
		t.Errorf("these never happened: %v", missing)
	}
	if virtual < defaultVirtual*time.Duration(n)/defaultSeeds {
		t.Errorf("%d seeds are only %v of virtual time, want %v", n, virtual, defaultVirtual*time.Duration(n)/defaultSeeds)
	}
}

// TestRun_IsDeterministic runs seeds twice and compares everything that happened.
func TestRun_IsDeterministic(t *testing.T) {
	n := 20
	switch {
	case *seeds > 0:
		n = *seeds
	case raceEnabled:
		n = 1
	case testing.Short():
		n = 3
	}
	for i := range n {
		seed := *first + uint64(i)
		a, b := Run(FromSeed(seed)), Run(FromSeed(seed))
		if a.Trace == b.Trace && a.Stats == b.Stats {
			continue
		}
		for i := range min(len(a.Log), len(b.Log)) {
			if a.Log[i] != b.Log[i] {
				t.Logf("first difference:\n%s\n%s", a.Log[i], b.Log[i])
				break
			}
		}
		t.Errorf("seed %d: traces %x and %x differ", seed, a.Trace, b.Trace)
	}
}
