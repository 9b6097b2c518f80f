package sim

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Options says what one run of the simulation looks like. FromSeed draws all of it from a seed, so that each run has another
// mix of sizes and faults ("swarm testing", Groce et al., 2012).
type Options struct {
	Seed   uint64
	Nodes  int
	Shards int
	// Chaos is how long faults go on; Settle how long the healed cluster then has to become whole again.
	Chaos, Settle time.Duration
	Clients       int
	// Faults are rates per virtual second and node.
	Crash, PowerCut, Pause, Partition, Squeeze, DiskStall, SyncError, BitFlip, Wipe, Forget float64
	// Kill is which part of the crashes ends the process and not the machine.
	Kill float64
	// AtSyncs makes crashes and power cuts wait for a sync, to come while it is under way or soon after.
	AtSyncs bool
	// Recant is how often a vote is lost by damage and asked for again.
	Recant float64
	// Slow is how often a node's network becomes slow for a while.
	Slow float64
	// Move is how often somebody asks a leader to hand over.
	Move float64
	// RestartMax is how long a crashed node stays away.
	RestartMax time.Duration
	// Network.
	Loss, Double float64
	DelayMax     time.Duration
	// Skew is how far clocks are apart; Drift how much their rates differ.
	Skew  time.Duration
	Drift float64
	// CutEntries makes logs short, so that followers need snapshots.
	CutEntries  uint64
	LeaseReads  bool
	NoHibernate bool
	ThinkMax    time.Duration
	PadMax      int
	// Flush is the rate of flushes of the state store at odd moments.
	Flush float64
	// ChangeBytesMax bounds the change log, QueueLenMax the queue, BatchBytesMax an entry; 0 means the default.
	ChangeBytesMax uint64
	QueueLenMax    int
	BatchBytesMax  int
	ElectionTicks  int
	ChunkBytes     int
	// CacheBytes bounds the row cache; 0 means the default, -1 none.
	CacheBytes int
	// LocalReads runs stale reads that ask for no revision on what the node has, without asking the host, as the engine does.
	LocalReads bool
	// SegmentBytes is how large the files of the raft log are.
	SegmentBytes int64
	// FlushMax is how long a flush may take.
	FlushMax time.Duration
}

// FromSeed draws the options of a seed.
func FromSeed(seed uint64) Options {
	r := rand.New(rand.NewPCG(seed, 0x51a))
	maybe := func(p, v float64) float64 {
		if r.Float64() < p {
			return v * (0.3 + r.Float64())
		}
		return 0
	}
	o := Options{
		Seed: seed, Nodes: []int{3, 3, 3, 5, 1}[r.IntN(5)], Shards: []int{1, 1, 2, 4}[r.IntN(4)],
		Chaos: time.Duration(50+r.IntN(40)) * time.Second, Settle: 60 * time.Second, Clients: 2 + r.IntN(6),
		Crash: maybe(0.8, 0.05), Pause: maybe(0.5, 0.03), Partition: maybe(0.6, 0.08), DiskStall: maybe(0.5, 0.03),
		SyncError: maybe(0.3, 0.02), BitFlip: maybe(0.4, 0.03), Wipe: maybe(0.25, 0.015),
		Loss: maybe(0.5, 0.05), Double: maybe(0.5, 0.05), DelayMax: time.Duration(1+r.IntN(30)) * time.Millisecond,
		Skew: time.Duration(maybe(0.5, float64(3*time.Second))), Drift: maybe(0.4, 0.03),
		LeaseReads: r.IntN(4) == 0, NoHibernate: r.IntN(3) == 0,
		ThinkMax: time.Duration(10+r.IntN(300)) * time.Millisecond, PadMax: []int{0, 0, 200, 5000}[r.IntN(4)],
	}
	if r.IntN(2) == 0 {
		o.CutEntries = uint64(5 + r.IntN(200))
	}
	o.Flush = maybe(0.3, 0.5)
	o.ChangeBytesMax = []uint64{0, 0, 4 << 10}[r.IntN(3)]
	o.QueueLenMax = []int{0, 0, 0, 1}[r.IntN(4)]
	o.BatchBytesMax = []int{0, 0, 300}[r.IntN(3)]
	o.ElectionTicks = []int{10, 10, 5, 20}[r.IntN(4)]
	o.ChunkBytes = []int{200, 512, 4096, 64 << 10}[r.IntN(4)]
	o.FlushMax = []time.Duration{20 * time.Millisecond, 500 * time.Millisecond}[r.IntN(2)]
	o.PowerCut, o.RestartMax = o.Crash/3, 4*time.Second
	if r.IntN(5) == 0 {
		// Few requests, so that shards go to sleep between them.
		o.ThinkMax = time.Duration(3+r.IntN(15)) * time.Second
	}
	o.Squeeze = maybe(0.3, 0.05)
	o.CacheBytes = []int{0, -1, 1000}[r.IntN(3)]
	o.LocalReads = r.IntN(3) > 0
	o.SegmentBytes = 64 << 10
	if o.Nodes == 1 {
		// A single node has nobody to repair it, and nobody to lose contact with.
		o.BitFlip, o.Wipe, o.Partition, o.Squeeze = 0, 0, 0, 0
	}
	// What came later is drawn from another source, so that the rest of a seed stays what it was.
	if later := rand.New(rand.NewPCG(seed, 0x30fe)); later.IntN(2) == 0 {
		o.Move = 0.3 * later.Float64()
		if later.IntN(4) == 0 {
			// So often that hand-overs cross each other.
			o.Move *= 10
		}
	}
	if later := rand.New(rand.NewPCG(seed, 0xf06e)); later.IntN(4) == 0 && o.Nodes > 1 {
		o.Forget = 0.1 * later.Float64()
	}
	if later := rand.New(rand.NewPCG(seed, 0x7e0c)); later.IntN(4) == 0 && o.Nodes > 1 {
		o.Recant = 0.1 * later.Float64()
	}
	if later := rand.New(rand.NewPCG(seed, 0x510e)); later.IntN(4) == 0 && o.Nodes > 1 {
		o.Slow = 0.1 * later.Float64()
	}
	if later := rand.New(rand.NewPCG(seed, 0x5c4e)); later.IntN(2) == 0 {
		o.AtSyncs, o.Kill, o.SegmentBytes = true, 0.6*later.Float64(), []int64{16 << 10, 64 << 10}[later.IntN(2)]
	}
	return o
}

// String prints the options in one line.
func (o Options) String() string {
	type plain Options
	return fmt.Sprintf("%+v", plain(o))
}
