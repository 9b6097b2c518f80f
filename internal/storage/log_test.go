package storage

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/quorate/quorate/internal/errs"
)

const logDir = "/node/raftlog"

// smallLog makes rotation, recycling and copying forward frequent.
func smallLog() LogConfig {
	return LogConfig{SegmentBytes: 16 << 10, ZeroBytes: 4 << 10, RecycleSegments: 2, ID: 7}
}

func mustOpen(t testing.TB, fs FS, cfg LogConfig) *Log {
	t.Helper()
	l, rec, err := OpenLog(fs, logDir, cfg)
	if err != nil {
		t.Fatalf("OpenLog: %v", err)
	}
	if len(rec.Damaged) > 0 || len(rec.Suspect) > 0 || rec.AllSuspect {
		t.Fatalf("a whole log opens with %+v", rec)
	}
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t testing.TB, err error, want errs.Kind) {
	t.Helper()
	if got := errs.KindOf(err); got != want {
		t.Fatalf("got kind %v (%v), want %v", got, err, want)
	}
}

// entries makes n entries from an index on.
func entries(first uint64, n int, term uint64, size int) []Entry {
	es := make([]Entry, n)
	for i := range es {
		es[i] = Entry{Index: first + uint64(i), Term: term, Type: uint8(i), Data: bytes.Repeat([]byte{byte(first) + byte(i)}, size)}
	}
	return es
}

// modelShard and model say in maps and slices what a Log is to hold.
type modelShard struct {
	replica uint64
	state   HardState
	cut     Position
	entries []Entry
}

type model map[ShardID]modelShard

func (m model) clone() model {
	c := make(model, len(m))
	for id, s := range m {
		s.entries = slices.Clone(s.entries)
		c[id] = s
	}
	return c
}

func (s *modelShard) last() uint64 { return s.cut.Index + uint64(len(s.entries)) }

func (s *modelShard) term(i uint64) uint64 {
	if i == s.cut.Index {
		return s.cut.Term
	}
	return s.entries[i-s.cut.Index-1].Term
}

func (m model) apply(ws []Write) {
	for _, w := range ws {
		s, known := m[w.Shard]
		if w.Remove {
			delete(m, w.Shard)
			continue
		}
		if !known && w.Replica == 0 && w.Reset == nil && len(w.Entries) == 0 && w.State == (HardState{}) {
			continue
		}
		if w.Replica != 0 && w.Replica != s.replica {
			s = modelShard{replica: w.Replica}
		}
		if w.Reset != nil {
			s.cut, s.entries = *w.Reset, nil
		}
		if len(w.Entries) > 0 {
			s.entries = append(slices.Clone(s.entries[:w.Entries[0].Index-s.cut.Index-1]), w.Entries...)
		}
		if w.State != (HardState{}) {
			s.state = w.State
		}
		if w.Cut > s.cut.Index {
			cut := Position{w.Cut, s.term(w.Cut)}
			s.entries = slices.Clone(s.entries[w.Cut-s.cut.Index:])
			s.cut = cut
		}
		m[w.Shard] = s
	}
}

// differs compares one shard of a log with the model through the public methods.
func (s *modelShard) differs(l *Log, id ShardID) error {
	if got := l.Replica(id); got != s.replica {
		return fmt.Errorf("shard %d: replica %d, want %d", id, got, s.replica)
	}
	if got := l.State(id); got != s.state {
		return fmt.Errorf("shard %d: state %+v, want %+v", id, got, s.state)
	}
	first, last := l.Bounds(id)
	if first != s.cut.Index+1 || last != s.last() {
		return fmt.Errorf("shard %d: bounds %d to %d, want %d to %d", id, first, last, s.cut.Index+1, s.last())
	}
	for i := first - 1; i <= last; i++ {
		if got, err := l.Term(id, i); err != nil || got != s.term(i) {
			return fmt.Errorf("shard %d: term at %d is %d (%v), want %d", id, i, got, err, s.term(i))
		}
	}
	got, err := l.Entries(id, first, last+1, 1<<40)
	if err != nil || len(got) != len(s.entries) {
		return fmt.Errorf("shard %d: %d entries (%v), want %d", id, len(got), err, len(s.entries))
	}
	for i := range got {
		g, w := got[i], s.entries[i]
		if g.Index != w.Index || g.Term != w.Term || g.Type != w.Type || !bytes.Equal(g.Data, w.Data) {
			return fmt.Errorf("shard %d: entry %d is %v, want %v", id, w.Index, g, w)
		}
	}
	return nil
}

func (m model) differs(l *Log) error {
	ids := l.Shards()
	if len(ids) != len(m) {
		return fmt.Errorf("shards %v, want %d", ids, len(m))
	}
	for id, s := range m {
		if err := s.differs(l, id); err != nil {
			return err
		}
	}
	return miscounted(l)
}

// miscounted says in which segment the needed entries are not those that are counted: it would stay for ever, or go too early. The size of the log, by
// which it is cut, is where its segments end.
func miscounted(l *Log) error {
	type count struct {
		n     int
		bytes int64
	}
	counts := map[uint64]count{}
	for _, s := range l.shards {
		for _, e := range s.slots {
			c := counts[e.seg]
			counts[e.seg] = count{c.n + 1, c.bytes + int64(e.len())}
		}
	}
	if g := l.current(); g.end != l.pos || g.alloc < g.info.allocated(g.end) {
		return fmt.Errorf("segment %d ends at %d of %d, the next record goes to %d", g.seq, g.end, g.alloc, l.pos)
	}
	for _, g := range l.segs {
		if g.end > g.size {
			return fmt.Errorf("segment %d of %d bytes ends at %d", g.seq, g.size, g.end)
		}
		if got := (count{g.live, g.liveBytes}); got != counts[g.seq] {
			return fmt.Errorf("segment %d: %+v entries are counted, there are %+v", g.seq, got, counts[g.seq])
		}
	}
	return nil
}

// randomWrites makes a valid batch. Entries that replace others have a higher term, as in raft.
func (m model) randomWrites(rng *rand.Rand, shards int) []Write {
	var ws []Write
	for _, k := range rng.Perm(shards)[:1+rng.IntN(min(shards, 4))] {
		id := ShardID(k + 1)
		s := m[id]
		w := Write{Shard: id}
		if s.replica == 0 {
			w.Replica = 1 + rng.Uint64N(5)
		} else if rng.IntN(60) == 0 {
			w.Replica = s.replica + 1
		}
		if w.Replica != 0 {
			s = modelShard{}
		}
		if rng.IntN(40) == 0 {
			w.Reset = &Position{s.last() + rng.Uint64N(20), s.term(s.last()) + 1}
			s = modelShard{cut: *w.Reset}
		}
		// Shard 1 is cold: it writes and cuts rarely.
		if id != 1 || rng.IntN(20) == 0 {
			first, term := s.last()+1, s.term(s.last())+rng.Uint64N(2)
			if len(s.entries) > 0 && rng.IntN(8) == 0 {
				first, term = s.cut.Index+1+rng.Uint64N(uint64(len(s.entries))), term+1
			}
			for i := range rng.IntN(6) {
				e := Entry{Index: first + uint64(i), Term: term, Type: uint8(rng.IntN(3))}
				n := rng.IntN(400)
				if rng.IntN(30) == 0 {
					n = rng.IntN(9000) // over several blocks, so that a crash can tear it
				}
				if n > 20 {
					e.Data = make([]byte, n)
					for j := range e.Data {
						e.Data[j] = byte(rng.Uint32())
					}
				}
				w.Entries = append(w.Entries, e)
			}
			if len(s.entries) > 0 && rng.IntN(3) == 0 && len(w.Entries) == 0 {
				w.Cut = s.cut.Index + rng.Uint64N(uint64(len(s.entries))+1)
			}
		}
		if rng.IntN(2) == 0 {
			// Terms do not fall, and there is one vote in each.
			w.State = HardState{max(s.state.Term, 1), s.state.Vote, rng.Uint64N(100)}
			if n := rng.Uint64N(3); n > 0 {
				w.State.Term, w.State.Vote = w.State.Term+n, 0
			}
			if w.State.Vote == 0 {
				w.State.Vote = rng.Uint64N(4)
			}
		}
		if rng.IntN(80) == 0 {
			w = Write{Shard: id, Remove: true}
		}
		ws = append(ws, w)
	}
	return ws
}

func TestLog_StartsEmpty(t *testing.T) {
	fs := MemFS()
	l := mustOpen(t, fs, LogConfig{})
	if got := l.Shards(); len(got) != 0 {
		t.Errorf("shards %v, want none", got)
	}
	first, last := l.Bounds(3)
	if first != 1 || last != 0 {
		t.Errorf("bounds %d, %d, want 1, 0", first, last)
	}
	if term, err := l.Term(3, 0); term != 0 || err != nil {
		t.Errorf("term at 0 is %d, %v", term, err)
	}
	_, err := l.Term(3, 1)
	wantKind(t, err, errs.NotFound)
	if es, err := l.Entries(3, 1, 1, 1); len(es) != 0 || err != nil {
		t.Errorf("got %v, %v", es, err)
	}
	if l.Replica(3) != 0 || l.State(3) != (HardState{}) {
		t.Errorf("an unknown shard has a state")
	}
	must(t, l.Append(nil))
	must(t, l.Append([]Write{{Shard: 1}, {Shard: 2, Remove: true}}))
	if got := l.Shards(); len(got) != 0 {
		t.Errorf("an empty write makes shards %v", got)
	}
	must(t, l.Seal())
	must(t, l.Sync())
	must(t, l.Close())
	must(t, l.Close())
	wantKind(t, l.Append(nil), errs.Unavailable)
	wantKind(t, l.Sync(), errs.Unavailable)
	wantKind(t, l.Seal(), errs.Unavailable)
	wantKind(t, l.Settle(1), errs.Unavailable)
	_, err = l.Entries(3, 1, 1, 1)
	wantKind(t, err, errs.Unavailable)
	must(t, mustOpen(t, fs, LogConfig{}).Close())
}

func TestLog_KeepsWritesAcrossReopen(t *testing.T) {
	fs := MemFS()
	l := mustOpen(t, fs, smallLog())
	m := model{}
	do := func(ws ...Write) {
		t.Helper()
		must(t, l.Append(ws))
		m.apply(ws)
		if err := m.differs(l); err != nil {
			t.Fatal(err)
		}
		must(t, l.Sync())
		must(t, l.Close())
		l = mustOpen(t, fs, smallLog())
		if err := m.differs(l); err != nil {
			t.Fatalf("after reopen: %v", err)
		}
	}
	do(Write{Shard: 9, Replica: 4, Entries: entries(1, 10, 1, 20), State: HardState{1, 2, 3}},
		Write{Shard: 2, Replica: 1, Reset: &Position{100, 7}, Entries: entries(101, 3, 8, 0)})
	if got, want := l.Shards(), []ShardID{2, 9}; !slices.Equal(got, want) {
		t.Errorf("shards %v, want %v", got, want)
	}
	do(Write{Shard: 9, Entries: entries(6, 2, 2, 5)})                                  // overwrites and shortens
	do(Write{Shard: 9, Entries: entries(8, 5, 2, 5), Cut: 9}, Write{Shard: 2, Cut: 3}) // cut within the new entries
	do(Write{Shard: 9, Cut: 12})                                                       // up to the end
	do(Write{Shard: 9, Entries: entries(13, 5, 2, 5)})
	do(Write{Shard: 9, Reset: &Position{4, 1}})
	do(Write{Shard: 9, Replica: 4}) // the same id changes nothing
	do(Write{Shard: 9, Replica: 5, State: HardState{Term: 1}})
	do(Write{Shard: 9, Remove: true}, Write{Shard: 5, State: HardState{Vote: 1}})
	do(Write{Shard: 9, Replica: 5})
}

func TestLog_RefusesInvalidWrites(t *testing.T) {
	l := mustOpen(t, MemFS(), smallLog())
	defer l.Close()
	m := model{}
	ok := []Write{{Shard: 1, Replica: 1, Reset: &Position{10, 3}, Entries: entries(11, 5, 4, 8)}}
	must(t, l.Append(ok))
	m.apply(ok)
	f := func(name string, kind errs.Kind, ws ...Write) {
		t.Helper()
		if got := errs.KindOf(l.Append(ws)); got != kind {
			t.Errorf("%s: got %v, want %v", name, got, kind)
		}
		if err := m.differs(l); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	f("no shard", errs.Invalid, Write{Replica: 1})
	f("twice", errs.Invalid, Write{Shard: 1, State: HardState{Term: 9}}, Write{Shard: 1, Cut: 11})
	f("gap", errs.Invalid, Write{Shard: 1, Entries: entries(17, 1, 4, 1)})
	f("at the cut", errs.Invalid, Write{Shard: 1, Entries: entries(10, 1, 4, 1)})
	f("term falls", errs.Invalid, Write{Shard: 1, Entries: entries(16, 1, 3, 1)})
	f("not contiguous", errs.Invalid, Write{Shard: 1, Entries: append(entries(16, 1, 4, 1), entries(18, 1, 4, 1)...)})
	f("cut beyond the end", errs.Invalid, Write{Shard: 1, Cut: 16})
	f("reset out of range", errs.Invalid, Write{Shard: 1, Reset: &Position{1 << 63, 1}})
	f("gap after reset", errs.Invalid, Write{Shard: 1, Reset: &Position{20, 4}, Entries: entries(22, 1, 4, 1)})
	f("gap after replica change", errs.Invalid, Write{Shard: 1, Replica: 2, Entries: entries(16, 1, 4, 1)})
	f("one bad of two", errs.Invalid, Write{Shard: 2, Replica: 1}, Write{Shard: 1, Cut: 16})
	f("too large", errs.TooLarge, Write{Shard: 1, Entries: []Entry{{Index: 16, Term: 4, Data: make([]byte, 64<<20)}}})
	_, _, err := OpenLog(MemFS(), logDir, LogConfig{SegmentBytes: 5})
	wantKind(t, err, errs.Invalid)
}

func TestLog_ReadLimits(t *testing.T) {
	l := mustOpen(t, MemFS(), smallLog())
	defer l.Close()
	must(t, l.Append([]Write{{Shard: 1, Replica: 1, Reset: &Position{10, 3}, Entries: entries(11, 10, 4, 100)}}))
	f := func(lo, hi, maxBytes uint64, want int, kind errs.Kind) {
		t.Helper()
		es, err := l.Entries(1, lo, hi, maxBytes)
		if len(es) != want || errs.KindOf(err) != kind {
			t.Errorf("Entries(%d, %d, %d): %d, %v, want %d, %v", lo, hi, maxBytes, len(es), err, want, kind)
		}
	}
	f(11, 21, 1<<30, 10, 0)
	f(11, 21, 0, 1, 0)
	f(11, 21, 299, 2, 0)
	f(11, 21, 300, 3, 0)
	f(15, 15, 300, 0, 0)
	f(21, 21, 300, 0, 0)
	f(10, 12, 300, 0, errs.Compacted)
	f(12, 22, 300, 0, errs.NotFound)
	f(12, 11, 300, 0, errs.Invalid)
	_, err := l.Term(1, 9)
	wantKind(t, err, errs.Compacted)
	_, err = l.Term(1, 21)
	wantKind(t, err, errs.NotFound)
	if term, err := l.Term(1, 10); term != 3 || err != nil {
		t.Errorf("term at the cut: %d, %v", term, err)
	}
}

func TestLog_LargeRecordGetsItsOwnSegment(t *testing.T) {
	fs := MemFS()
	l := mustOpen(t, fs, smallLog())
	ws := []Write{{Shard: 1, Replica: 1, Entries: entries(1, 1, 1, 100<<10)}}
	m := model{}
	for range 3 {
		must(t, l.Append(ws))
		m.apply(ws)
		ws = []Write{{Shard: 1, Entries: entries(m[1].entries[0].Index+uint64(len(m[1].entries)), 1, 1, 100<<10)}}
	}
	must(t, l.Close())
	l = mustOpen(t, fs, smallLog())
	defer l.Close()
	if err := m.differs(l); err != nil {
		t.Fatal(err)
	}
}

// TestLog_Model runs random operations against the model, with reopening in between.
func TestLog_Model(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 1))
		fs, m := FS(vfs.NewMem()), model{}
		l := mustOpen(t, fs, smallLog())
		for i := range 1500 {
			ws := m.randomWrites(rng, 1+int(seed)*3)
			must(t, l.Append(ws))
			m.apply(ws)
			if rng.IntN(2) == 0 {
				must(t, l.Sync())
			}
			if rng.IntN(3) == 0 {
				must(t, l.Seal())
			}
			if rng.IntN(100) == 0 {
				if rng.IntN(2) == 0 {
					must(t, l.Close())
				} // else the process died, and the system kept everything
				l = mustOpen(t, fs, smallLog())
			}
			if i%50 == 0 || i > 1495 {
				if err := m.differs(l); err != nil {
					t.Fatalf("seed %d, step %d: %v", seed, i, err)
				}
			}
		}
		must(t, l.Close())
	}
}

func segmentFiles(t testing.TB, fs FS) []string {
	t.Helper()
	names, err := fs.List(logDir)
	must(t, err)
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, segmentSuffix) })
	slices.Sort(names)
	return names
}

func TestLog_CutRecyclesSegments(t *testing.T) {
	fs := MemFS()
	l := mustOpen(t, fs, smallLog())
	m := model{}
	var most int
	next := uint64(1)
	for i := range 400 {
		w := Write{Shard: 1, Replica: 1, Entries: entries(next, 4, 1, 200)}
		next += 4
		if i%10 == 9 {
			w.Cut = next - 3
		}
		must(t, l.Append([]Write{w}))
		m.apply([]Write{w})
		must(t, l.Sync())
		most = max(most, len(segmentFiles(t, fs)))
	}
	// Two live ones, the rest waits to be written again.
	if most > 6 {
		t.Errorf("%d segment files at a time, want at most 6", most)
	}
	if got := l.Bytes(); got > 3*16<<10 {
		t.Errorf("%d bytes are live, want at most 3 segments", got)
	}
	must(t, l.Close())
	l = mustOpen(t, fs, smallLog())
	defer l.Close()
	if err := m.differs(l); err != nil {
		t.Fatal(err)
	}
}

// TestLog_ColdShardsAreCopiedForward: a few old entries do not hold back segments for ever.
func TestLog_ColdShardsAreCopiedForward(t *testing.T) {
	fs := MemFS()
	l := mustOpen(t, fs, smallLog())
	m := model{}
	do := func(ws ...Write) {
		t.Helper()
		must(t, l.Append(ws))
		m.apply(ws)
		must(t, l.Sync())
	}
	do(Write{Shard: 5, Replica: 1, Entries: entries(1, 3, 1, 50), State: HardState{1, 1, 1}})
	do(Write{Shard: 6, Replica: 1, State: HardState{1, 1, 1}})
	for next := uint64(1); next < 1000; next += 4 {
		do(Write{Shard: 1, Replica: 1, Entries: entries(next, 4, 1, 200), Cut: next})
	}
	if got := len(segmentFiles(t, fs)); got > 7 {
		t.Errorf("%d segment files, want at most 7", got)
	}
	if err := m.differs(l); err != nil {
		t.Fatal(err)
	}
	must(t, l.Close())
	l = mustOpen(t, fs, smallLog())
	defer l.Close()
	if err := m.differs(l); err != nil {
		t.Fatal(err)
	}
}

func TestLog_CutsLetOldSegmentsGo(t *testing.T) {
	cfg := smallLog()
	cfg.RewriteBytes = -1
	l := mustOpen(t, MemFS(), cfg)
	defer l.Close()
	must(t, l.Append([]Write{{Shard: 5, Replica: 1, Entries: entries(1, 3, 1, 50)}, {Shard: 3, Replica: 1, Entries: entries(1, 3, 1, 50)}}))
	for next := uint64(1); next < 200; next += 4 {
		must(t, l.Append([]Write{{Shard: 1, Replica: 1, Entries: entries(next, 4, 1, 200), Cut: next}}))
	}
	before := l.Bytes()
	must(t, l.Append([]Write{{Shard: 5, Cut: 3}, {Shard: 3, Remove: true}}))
	if after := l.Bytes(); after >= before || after > 2*cfg.SegmentBytes {
		t.Errorf("live bytes went from %d to %d", before, after)
	}
}

// TestLog_EqualCallsGiveEqualBytes is what the simulator's determinism rests on.
func TestLog_EqualCallsGiveEqualBytes(t *testing.T) {
	run := func() string {
		rng := rand.New(rand.NewPCG(3, 3))
		fs, m := MemFS(), model{}
		for range 3 {
			l := mustOpen(t, fs, smallLog())
			for range 200 {
				ws := m.randomWrites(rng, 20)
				must(t, l.Append(ws))
				m.apply(ws)
				must(t, l.Sync())
			}
			must(t, l.Close())
		}
		var all strings.Builder
		for _, name := range append(segmentFiles(t, fs), identityName) {
			b, err := fs.UnsafeGetFileDataBuffer(fs.PathJoin(logDir, name))
			must(t, err)
			fmt.Fprintf(&all, "%s %x\n", name, b)
		}
		return all.String()
	}
	if run() != run() {
		t.Error("two equal runs leave different bytes")
	}
}

// TestLog_OneWritePerAppend counts system calls.
func TestLog_OneWritePerAppend(t *testing.T) {
	var writes, syncs int
	fs := errorfs.Wrap(MemFS(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		switch op.Kind {
		case errorfs.OpFileWriteAt, errorfs.OpFileWrite:
			writes++
		case errorfs.OpFileSync, errorfs.OpFileSyncData:
			syncs++
		}
		return nil
	}))
	l := mustOpen(t, fs, LogConfig{})
	defer l.Close()
	var ws []Write
	for s := range 100 {
		ws = append(ws, Write{Shard: ShardID(s + 1), Replica: 1, Entries: entries(1, 10, 1, 100)})
	}
	writes, syncs = 0, 0
	must(t, l.Append(ws))
	must(t, l.Sync())
	must(t, l.Sync())
	if writes != 1 || syncs != 1 {
		t.Errorf("%d writes and %d syncs, want one each", writes, syncs)
	}
	must(t, l.Seal())
	must(t, l.Seal())
	if writes != 2 {
		t.Errorf("%d writes after the seal, want 2", writes)
	}
	must(t, l.Append([]Write{{Shard: 1, State: HardState{Term: 3}}}))
	must(t, l.Seal()) // not synced: no seal
	if writes != 3 {
		t.Errorf("%d writes, want 3", writes)
	}
}

// TestLog_FailureIsFinal: after each possible failure of the disk all writing calls fail alike, and the next open is fine.
func TestLog_FailureIsFinal(t *testing.T) {
	fault := errors.New("disk fault")
	tried := 0
	for at := range 150 {
		mem := MemFS()
		var n int
		armed := false
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if !armed || op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
				return nil
			}
			if n++; n == at+1 {
				return fault
			}
			return nil
		}))
		rng := rand.New(rand.NewPCG(4, 4))
		m := model{}
		l := mustOpen(t, fs, smallLog())
		armed = true
		var err error
		after := m.clone()
		for i := 0; i < 60 && err == nil; i++ {
			ws := m.randomWrites(rng, 5)
			after = m.clone()
			after.apply(ws)
			if err = l.Append(ws); err == nil {
				err = l.Sync()
			}
			if err == nil {
				m = after
				err = l.Seal()
			}
		}
		if err == nil {
			_ = l.Close() // the fault may come now
			continue
		}
		tried++
		if !errors.Is(err, fault) {
			t.Fatalf("fault %d: got %v", at, err)
		}
		for _, again := range []error{l.Append([]Write{{Shard: 1, Replica: 9}}), l.Sync(), l.Seal(), l.Settle(0), l.Close()} {
			if again != err {
				t.Fatalf("fault %d: a later call returns %v, want %v", at, again, err)
			}
		}
		l = mustOpen(t, mem, smallLog())
		if e1, e2 := m.differs(l), after.differs(l); e1 != nil && e2 != nil {
			t.Fatalf("fault %d: neither before (%v) nor after (%v)", at, e1, e2)
		}
		must(t, l.Close())
	}
	if tried < 60 {
		t.Errorf("only %d faults were hit", tried)
	}
}

// TestOpenLog_FailureIsAnError: what fails while opening leaves the log as it was.
func TestOpenLog_FailureIsAnError(t *testing.T) {
	fault := errors.New("disk fault")
	failed := 0
	for at := range 60 {
		mem, m := MemFS(), model{}
		if at%2 == 0 {
			l := mustOpen(t, mem, smallLog())
			rng := rand.New(rand.NewPCG(4, 4))
			for range 50 {
				ws := m.randomWrites(rng, 5)
				must(t, l.Append(ws))
				m.apply(ws)
			}
			must(t, l.Close())
		}
		n := 0
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
				if n++; n == at/2+1 {
					return fault
				}
			}
			return nil
		}))
		l, _, err := OpenLog(fs, logDir, smallLog())
		if err == nil {
			_ = l.Close() // the fault may come now
		} else {
			failed++
		}
		l = mustOpen(t, mem, smallLog())
		if err := m.differs(l); err != nil {
			t.Fatalf("fault %d: %v", at, err)
		}
		must(t, l.Close())
	}
	if failed < 15 {
		t.Errorf("only %d opens failed", failed)
	}
}

// TestLog_ReadsWhileWriting runs under the race detector.
func TestLog_ReadsWhileWriting(t *testing.T) {
	l := mustOpen(t, MemFS(), smallLog())
	must(t, l.Append([]Write{{Shard: 1, Replica: 1, Entries: entries(1, 1, 1, 100)}}))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				first, last := l.Bounds(1)
				es, err := l.Entries(1, first, last+1, 4000)
				if err != nil && !errs.Is(err, errs.Compacted) {
					t.Errorf("read: %v", err)
					return
				}
				for _, e := range es {
					if len(e.Data) != 100 || e.Data[0] != byte(e.Index) {
						t.Errorf("entry %d reads %v", e.Index, e.Data)
						return
					}
				}
				l.Shards()
				l.Bytes()
				l.State(1)
				l.Replica(1)
				_, _ = l.Term(1, last)
			}
		})
	}
	for next := uint64(2); next < 1500; next += 2 {
		w := Write{Shard: 1, Entries: []Entry{}}
		for i := range uint64(2) {
			w.Entries = append(w.Entries, Entry{Index: next + i, Term: 1, Data: bytes.Repeat([]byte{byte(next + i)}, 100)})
		}
		if next > 40 {
			w.Cut = next - 40
		}
		must(t, l.Append([]Write{w}))
		must(t, l.Sync())
	}
	close(done)
	wg.Wait()
	must(t, l.Close())
}

func BenchmarkLog_AppendSync(b *testing.B) {
	for _, shards := range []int{1, 64} {
		b.Run(fmt.Sprintf("shards=%d", shards), func(b *testing.B) {
			l, _, err := OpenLog(OSFS(), b.TempDir(), LogConfig{})
			must(b, err)
			defer l.Close()
			ws := make([]Write, shards)
			data := make([]byte, 128)
			b.ReportAllocs()
			b.SetBytes(int64(128 * shards))
			index := uint64(0)
			for b.Loop() {
				index++
				for s := range ws {
					if index == 1 {
						ws[s] = Write{Shard: ShardID(s + 1), Replica: 1, Entries: []Entry{{Data: data, Term: 1}}}
					}
					ws[s].Entries[0].Index = index
					ws[s].Cut = index - min(index, 100)
				}
				must(b, l.Append(ws))
				must(b, l.Sync())
				must(b, l.Seal())
			}
		})
	}
}

// TestLog_VerifyReadsWhatIsNotCut: damage in what is cut is nobody's business any more.
func TestLog_VerifyReadsWhatIsNotCut(t *testing.T) {
	fs := MemFS()
	l, _, err := OpenLog(fs, "log", LogConfig{SegmentBytes: 64 << 10, ZeroBytes: 4 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a log in memory
	for i := range uint64(64) {
		for id := range ShardID(2) {
			if err := l.Append([]Write{{Shard: id + 1, Entries: []Entry{{Index: i + 1, Term: 1, Data: make([]byte, 10<<10)}}}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	read := 0
	count := func(n int) error { read += n; return nil }
	if err := l.Verify(count); err != nil || read != 128*(10<<10+entryHeaderBytes) {
		t.Errorf("read %d bytes, %v", read, err)
	}
	stop := errors.New("stop")
	if err := l.Verify(func(int) error { return stop }); err != stop {
		t.Errorf("got %v, want what pace said", err)
	}
	sl := l.shards[1].slots[20]
	rot(t, fs, l.path(segmentName(sl.seg)), int64(sl.off)+5000)
	if err := l.Verify(count); !errs.Is(err, errs.Corrupt) {
		t.Errorf("got %v", err)
	}
	if err := l.Append([]Write{{Shard: 1, Cut: 40}}); err != nil {
		t.Fatal(err)
	}
	read = 0
	if err := l.Verify(count); err != nil || read != 88*(10<<10+entryHeaderBytes) {
		t.Errorf("after the cut: read %d bytes, %v", read, err)
	}
	// The log moves on while it is checked.
	busy := func(int) error {
		return l.AppendAll([]Write{{Shard: 1, Entries: []Entry{{Index: 50, Term: 2}}}, {Shard: 1, Cut: 45}, {Shard: 2, Cut: 64}})
	}
	if err := l.Verify(busy); err != nil {
		t.Errorf("while the log moves on: %v", err)
	}
}
