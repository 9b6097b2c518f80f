package storage

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// votesLog has room for all that a test writes in one segment.
var votesLog = LogConfig{SegmentBytes: 64 << 10, ZeroBytes: 4 << 10, ID: 7}

// lastWriteOf opens a log, has f write to it, and returns the file that it wrote to with where that begins and ends.
func lastWriteOf(t *testing.T, fs *vfs.MemFS, before, f func(l *Log)) (name string, from, to int64) {
	t.Helper()
	l := mustOpen(t, fs, votesLog)
	before(l)
	name, from = segmentName(l.current().seq), l.pos
	f(l)
	if got := segmentName(l.current().seq); got != name {
		t.Fatalf("the write began in %s and ended in %s", name, got)
	}
	must(t, l.Sync())
	// The node is killed: nothing seals what was written.
	return name, from, l.pos
}

// promise is what a shard must not forget.
type promise struct{ replica, term, vote uint64 }

// Of the last write of a log nothing can be proven, but a vote that was in it is not given again for it, and a replica that gave itself up does not
// come back, whichever block of it is damaged.
func TestVotes_OutliveADamagedBlock(t *testing.T) {
	entry := func(i, term uint64, n int) []Entry { return entries(i, 1, term, n) }
	const mark = 1<<63 | 11
	for what, c := range map[string]struct {
		ws   []Write
		want map[ShardID]promise
	}{
		"a vote":            {[]Write{{Shard: 1, State: HardState{8, 3, 2}}}, map[ShardID]promise{1: {11, 8, 3}}},
		"a vote in a term":  {[]Write{{Shard: 2, State: HardState{5, 9, 0}}}, map[ShardID]promise{2: {21, 5, 9}}},
		"a term":            {[]Write{{Shard: 1, State: HardState{8, 0, 2}}}, map[ShardID]promise{1: {11, 8, 0}}},
		"a first vote":      {[]Write{{Shard: 7, Replica: 4, State: HardState{1, 2, 0}}}, map[ShardID]promise{7: {4, 1, 2}}},
		"another replica's": {[]Write{{Shard: 1, Replica: 12, State: HardState{6, 3, 0}}}, map[ShardID]promise{1: {12, 6, 3}}},
		"a replica's end":   {[]Write{{Shard: 1, Replica: mark}, {Shard: 2, Cut: 0}}, map[ShardID]promise{1: {mark, 0, 0}, 2: {21, 5, 0}}},
		"an end and a new one": {
			[]Write{{Shard: 1, Replica: mark}, {Shard: 1, Replica: 12}, {Shard: 1, State: HardState{9, 1, 0}}},
			map[ShardID]promise{1: {12, 9, 1}},
		},
		"votes with entries": {
			[]Write{{Shard: 1, Entries: entry(3, 7, 9000), State: HardState{7, 1, 1}}, {Shard: 2, Entries: entry(1, 6, 100), State: HardState{6, 2, 0}}},
			map[ShardID]promise{1: {11, 7, 1}, 2: {21, 6, 2}},
		},
		"votes and then entries": {
			[]Write{
				{Shard: 1, State: HardState{7, 1, 1}}, {Shard: 2, Entries: entry(1, 5, 100)},
				{Shard: 2, State: HardState{9, 9, 0}}, {Shard: 1, Entries: entry(3, 7, 6000)}, {Shard: 2, Entries: entry(2, 9, 3000)},
			},
			map[ShardID]promise{1: {11, 7, 1}, 2: {21, 9, 9}},
		},
	} {
		t.Run(what, func(t *testing.T) {
			for fill := range 11 {
				fs := MemFS()
				name, from, to := lastWriteOf(t, fs, func(l *Log) {
					must(t, l.Append([]Write{
						{Shard: 1, Replica: 11, Entries: entries(1, 2, 4, 10), State: HardState{4, 2, 1}},
						{Shard: 2, Replica: 21, State: HardState{5, 0, 0}},
						{Shard: 3, Replica: 31, Entries: entry(1, 1, fill*(votesApart/10))},
					}))
					must(t, l.Sync())
				}, func(l *Log) { must(t, l.AppendAll(c.ws)) })
				for at := from; at < to; at = at&^(votesApart-1) + votesApart {
					c1 := copyFS(t, fs)
					b := fileOf(t, c1, name)
					for i := at; i < min(at&^(votesApart-1)+votesApart, to); i++ {
						b[i] ^= 0x55
					}
					setFile(t, c1, name, b)
					// The vote stays when the log was opened once more.
					for range 2 {
						l, rec, err := OpenLog(c1, logDir, votesLog)
						must(t, err)
						for id, want := range c.want {
							got := promise{l.Replica(id), l.State(id).Term, l.State(id).Vote}
							if got != want && !slices.Contains(rec.Suspect, id) {
								t.Fatalf("filled by %d, damage at %d of %d to %d: shard %d has %+v, want %+v; %+v", fill, at, from, to, id, got, want, rec)
							}
							if _, last := l.Bounds(id); l.State(id).Commit > last {
								t.Fatalf("filled by %d, damage at %d: shard %d has commit index %d, but ends at %d", fill, at, id, l.State(id).Commit, last)
							}
						}
						must(t, l.Close())
					}
				}
			}
		})
	}
}

// What was not synced when the node stopped comes back in any mix of blocks. A vote that is taken out of it is one that was meant to be given, and
// everything else of the shards is as it was.
func TestVotes_OfATornWrite(t *testing.T) {
	kept := 0
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 12))
		fs := MemFS()
		l := mustOpen(t, fs, votesLog)
		old := []Write{
			{Shard: 1, Replica: 11, Entries: entries(1, 3, 4, rng.IntN(3000)), State: HardState{4, 2, 1}},
			{Shard: 2, Replica: 21, State: HardState{5, 0, 0}},
		}
		must(t, l.Append(old))
		must(t, l.Sync())
		m := model{}
		m.apply(old)
		next := []Write{{Shard: 1, Entries: entries(4, 1, 8, rng.IntN(6000)), State: HardState{8, 1, 3}}, {Shard: 2, State: HardState{6, 3, 0}}}
		must(t, l.Append(next))
		l, rec, err := OpenLog(fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng}), logDir, votesLog)
		must(t, err)
		if len(rec.Damaged) > 0 || len(rec.Suspect) > 0 || rec.AllSuspect {
			t.Fatalf("seed %d: a crash is taken for damage: %+v", seed, rec)
		}
		after := m.clone()
		after.apply(next)
		votes := m.clone()
		for id, s := range votes {
			s.state.Term, s.state.Vote = after[id].state.Term, after[id].state.Vote
			votes[id] = s
		}
		var diffs []error
		for _, m := range []model{m, after, votes} {
			diffs = append(diffs, m.differs(l))
		}
		if !slices.Contains(diffs, nil) {
			t.Fatalf("seed %d: %v", seed, diffs)
		}
		if rec.Votes > 0 {
			kept++
			if diffs[2] != nil {
				t.Fatalf("seed %d: %d votes kept, but %v", seed, rec.Votes, diffs[2])
			}
		}
		must(t, l.Close())
	}
	if kept < 20 {
		t.Errorf("votes were kept only %d times", kept)
	}
}

// Most batches change no vote, and cost nothing more.
func TestVotes_AreSaidAgainWhenTheyChange(t *testing.T) {
	l := mustOpen(t, MemFS(), votesLog)
	for i, c := range []struct {
		w    Write
		more bool
	}{
		{Write{Shard: 1, Replica: 3}, true},
		{Write{Shard: 1, Replica: 3}, false},
		{Write{Shard: 1, State: HardState{1, 0, 0}}, true},
		{Write{Shard: 1, State: HardState{1, 2, 0}}, true},
		{Write{Shard: 1, State: HardState{1, 2, 0}, Entries: entries(1, 1, 1, 10)}, false},
		{Write{Shard: 1, State: HardState{1, 2, 1}}, false},
		{Write{Shard: 1, Cut: 1}, false},
		{Write{Shard: 1, Replica: 3, State: HardState{1, 2, 1}}, false},
		{Write{Shard: 1, Replica: 4, State: HardState{1, 2, 0}}, true},
		{Write{Shard: 1, Replica: 5}, true},
		{Write{Shard: 1, Remove: true, State: HardState{9, 2, 0}}, false},
	} {
		at := l.pos
		must(t, l.Append([]Write{c.w}))
		if more := l.pos/votesApart > at/votesApart; more != c.more {
			t.Errorf("write %d, %+v: from %d to %d, want more: %v", i, c.w, at, l.pos, c.more)
		}
		if l.pos%8 != 0 {
			t.Errorf("write %d ends at %d", i, l.pos)
		}
	}
	if got := fmt.Sprint(l.Shards()); got != "[]" {
		t.Errorf("shards %s", got)
	}
}

// What is cut takes no term or vote back: those that it has are believed where they are later than what is known, or the only ones.
func TestVotes_OlderOnesAreNotTakenOver(t *testing.T) {
	l := mustOpen(t, MemFS(), votesLog)
	must(t, l.Append([]Write{{Shard: 1, Replica: 11, State: HardState{Term: 5, Vote: 2}}, {Shard: 2, Replica: 21, State: HardState{Term: 5}}}))
	r := &recovery{l: l, out: &Recovery{}}
	for _, c := range []struct {
		shard      ShardID
		replica    uint64
		says, want HardState
	}{
		{1, 11, HardState{Term: 4, Vote: 3}, HardState{Term: 5, Vote: 2}},
		{1, 11, HardState{Term: 5, Vote: 3}, HardState{Term: 5, Vote: 2}},
		{1, 11, HardState{Term: 5}, HardState{Term: 5, Vote: 2}},
		{2, 21, HardState{Term: 5}, HardState{Term: 5}},
		{2, 21, HardState{Term: 5, Vote: 3}, HardState{Term: 5, Vote: 3}},
		{2, 21, HardState{Term: 6}, HardState{Term: 6}},
	} {
		r.keepVote(&subRecord{shard: c.shard, flags: subReplica | subState, replica: c.replica, state: c.says}, nil, nil)
		if got := l.State(c.shard); got != c.want {
			t.Errorf("shard %d: %+v leads to %+v, want %+v", c.shard, c.says, got, c.want)
		}
	}
	if r.out.Votes != 2 {
		t.Errorf("%d votes were taken over, want 2", r.out.Votes)
	}
	must(t, l.Close())
}
