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
		ChunkBytes: 512, FlushMax: 100 * time.Millisecond, SegmentBytes: 64 << 10,
	}
}

// asDrawn returns the options of a seed without the faults that were added since the seed failed.
func asDrawn(seed uint64) Options {
	o := FromSeed(seed)
	o.Move, o.Forget, o.Recant = 0, 0, 0
	o.AtSyncs, o.Kill, o.SegmentBytes = false, 0, 64<<10
	return o
}

// regressions are seeds that once failed. Each was seen to fail without the change that is named.
var regressions = []struct {
	what string
	seed uint64
	with func(*Options)
}{
	{
		"a leader that votes alone answers reads only after an entry of its term", 5,
		func(o *Options) { o.Nodes, o.Crash, o.ThinkMax = 1, 0.3, 3*time.Millisecond },
	},
	{
		"a restarted node keeps the promise not to vote that a lease counts on", 1,
		func(o *Options) {
			o.Squeeze, o.LeaseReads, o.NoHibernate = 0.2, true, true
			o.ElectionTicks, o.Clients, o.ThinkMax = 20, 8, 20*time.Millisecond
		},
	},
	{
		"a replica that took its id from a deposed leader asks for the newer one", 2,
		func(o *Options) { o.Nodes, o.Wipe, o.Pause, o.Loss = 5, 0.03, 0.15, 0.05 },
	},
	{
		"chunks of a snapshot that overtake each other are kept", 2,
		func(o *Options) {
			o.Crash, o.Loss, o.CutEntries, o.ChunkBytes = 0.08, 0.05, 20, 100
			o.Clients, o.ThinkMax, o.Chaos = 8, 5*time.Millisecond, time.Minute
		},
	},
	{
		"the checker is not sure of a read when changes that nobody saw may have come before it", 10378,
		func(o *Options) { *o = asDrawn(10378); o.LocalReads = false },
	},
	{
		"a state store whose manifest is damaged is not written to as if its tables were older", 10715,
		func(o *Options) { *o = asDrawn(10715); o.LocalReads = false },
	},
	{
		"a learner that lost the commit of its promotion in a crash finds a leader that sleeps", 50046,
		func(o *Options) { *o = asDrawn(50046) },
	},
	{
		"a node whose disk was replaced, and one that was never there, elect nobody while the third is away", 505517,
		func(o *Options) { *o = asDrawn(505517) },
	},
	{
		"nodes that know of a new voter know of it after a crash", 110586,
		func(o *Options) { *o = asDrawn(110586) },
	},
	{
		"rows in memory are not read on behind damage in a table", 211277,
		func(o *Options) { *o = asDrawn(211277) },
	},
	{
		"a crash between a snapshot and the log behind it does not cost a replica its vote", 211858,
		func(o *Options) { *o = asDrawn(211858) },
	},
	{
		"a table that is found damaged while tables are merged is no surprise to the checker", 311956,
		func(o *Options) { *o = asDrawn(311956) },
	},
	{
		"a timer that falls due while the leadership is handed over to a node that just died is fired", 6191,
		func(o *Options) { *o = asDrawn(6191); o.Move = FromSeed(6191).Move },
	},
	{
		"a leader that hears only of a later one does not say who led in between", 5,
		func(o *Options) {
			*o = asDrawn(5)
			o.Nodes, o.Shards = 3, 1
			o.Move, o.Loss, o.Crash, o.Pause, o.Partition, o.ElectionTicks = 3, 0.05, 0.1, 0.1, 0.2, 5
		},
	},
	{
		"a leader that was deposed in the same turn hands nothing over", 6,
		func(o *Options) {
			*o = asDrawn(6)
			o.Move, o.Loss, o.Crash, o.Pause, o.Partition, o.ElectionTicks = 3, 0.05, 0.1, 0.1, 0.2, 5
			o.Nodes, o.Shards, o.DelayMax = 3, 1, 60*time.Millisecond
		},
	},
	{
		"a joint configuration is left after a hand-over that failed, although nobody writes", 102,
		func(o *Options) { *o = asDrawn(102); o.Move = 2.015207293549704 },
	},
	{
		"a log that has lost its end, and has an earlier one again, is noticed", 170,
		func(o *Options) {
			*o = asDrawn(170)
			o.Nodes, o.Forget, o.Move, o.Crash, o.Pause, o.Partition, o.PowerCut, o.Wipe = 3, 1, 0.5, 0.1, 0.1, 0.2, 0.03, 0.05
			o.CutEntries, o.ChunkBytes, o.FlushMax = 50, 200, 100*time.Millisecond
		},
	},
	{
		"a leader that lost the term it was elected in does not lead it again", 82001379,
		func(o *Options) {
			*o = asDrawn(82001379)
			o.Seed, o.Nodes, o.Chaos, o.Crash, o.PowerCut, o.Partition = 1379, 3, 40*time.Second, 0.08485621321272988, 0.023274613334432172, 0.1153142011617556
			o.Loss, o.Double, o.BitFlip, o.Wipe = 0.02609930863039277, 0.08310340212654029, 0.002892722392469438, 0.052630415297150616
			o.Forget, o.Move, o.RestartMax, o.CutEntries, o.ChunkBytes = 0.2764409171330965, 0.8204502290227204, 125*time.Millisecond, 7, 182
		},
	},
}

func TestRegressions_StayFixed(t *testing.T) {
	if raceEnabled {
		t.Skip("these are about what a seed does, not about goroutines")
	}
	for _, c := range regressions {
		o := quietOptions(c.seed)
		c.with(&o)
		if r := runSeed(t, o); r.Err != nil {
			t.Errorf("once more: %s", c.what)
		}
	}
}
