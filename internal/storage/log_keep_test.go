package storage

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
)

// keptLog copies nothing forward, so that each segment stays.
func keptLog() LogConfig {
	cfg := smallLog()
	cfg.RewriteBytes = -1
	return cfg
}

// rotated makes a log that is killed after each of n starts, each of which begins a segment, and returns what it holds.
func rotated(t *testing.T, fs FS, n int, do func(start int) []Write) model {
	t.Helper()
	m := model{}
	for i := range n {
		l := mustOpen(t, fs, keptLog())
		ws := do(i + 1)
		must(t, l.Append(ws))
		m.apply(ws)
		must(t, l.Sync())
	}
	return m
}

// oneEach gives each start an entry of shard 1 and one of a shard of its own.
func oneEach(start int) []Write {
	return []Write{
		{Shard: 1, Replica: 1, Entries: entries(uint64(start), 1, 1, 40)},
		{Shard: ShardID(10 + start), Replica: 2, Entries: entries(1, 1, 1, 40), State: HardState{Term: 1, Commit: 1}},
	}
}

// reopened opens a log, wants so many kinds of damage and no shard in doubt, and compares it with what it should hold, then and after it was written to and closed.
// Damage of a segment that stays is found again.
func reopened(t *testing.T, fs FS, damage int, m model) *Recovery {
	t.Helper()
	l, rec, err := OpenLog(fs, logDir, smallLog())
	must(t, err)
	if len(rec.Damaged) != damage || len(rec.Suspect) > 0 || rec.AllSuspect {
		t.Fatalf("want %d kinds of damage and no doubt, got %+v", damage, *rec)
	}
	must(t, m.differs(l))
	m = m.clone()
	ws := []Write{{Shard: 99, Replica: 1, Entries: entries(1, 1, 1, 40)}}
	must(t, l.Append(ws))
	m.apply(ws)
	must(t, l.Close())
	l, again, err := OpenLog(fs, logDir, smallLog())
	must(t, err)
	if len(again.Damaged) > damage || len(again.Suspect) > 0 || again.AllSuspect {
		t.Fatalf("opened again: %+v", *again)
	}
	must(t, m.differs(l))
	must(t, l.Close())
	return rec
}

// The segments behind the last one that LOG knows of are those of the log if one of them has a batch, and so are those in between that have none.
func TestOpenLog_LogOfAnOlderTimeKeepsEachSegment(t *testing.T) {
	for last, damage := range []int{3, 2, 1} { // each segment that it does not know of and that has a batch
		fs := MemFS()
		m := rotated(t, fs, 4, func(start int) []Write {
			switch start {
			case 3:
				return nil // a node that was started and stopped
			case 4:
				start--
			}
			return oneEach(start)
		})
		setFile(t, fs, identityName, identity{id: 7, last: uint64(last), oldest: uint64(min(last, 1))}.encode())
		reopened(t, fs, damage, m)
	}
}

// A segment that was being made when the node stopped leaves nothing, not even under the number that it had.
func TestOpenLog_SegmentsInTheMakingGo(t *testing.T) {
	fs := MemFS()
	m := rotated(t, fs, 2, oneEach)
	before := fileOf(t, fs, identityName)
	l := mustOpen(t, fs, smallLog())
	must(t, l.Close())
	b := fileOf(t, fs, segmentName(3))
	// Behind the checkpoint there are copies of entries, which are not those of the log.
	rec := lastRecord(t, fs, segmentName(3), kindCheckpoint)
	sub := subRecord{shard: 1, flags: subEntries, counter: 2, first: 2, count: 1}
	buf := le.AppendUint32(beginRecord(nil, kindRewrite, rec.number+1, rec.number), 1)
	buf = encodeEntry(sub.encodeHead(buf), &Entry{Index: 2, Term: 1, Data: []byte("another one")}, seedOf(7, 3)^1)
	copy(b[rec.end:], endRecord(buf, 0, seedOf(7, 3)))
	setFile(t, fs, segmentName(3), b)
	setFile(t, fs, segmentName(8), []byte("begun"))
	setFile(t, fs, identityName, before)
	reopened(t, fs, 0, m)
	if files := segmentFiles(t, fs); slices.Contains(files, segmentName(8)) {
		t.Errorf("there are %v", files)
	}
	// Nor does the first one.
	fs = MemFS()
	must(t, mustOpen(t, fs, smallLog()).Close())
	setFile(t, fs, identityName, identity{id: 7}.encode())
	reopened(t, fs, 0, model{})
}

// What waits to be written again when the node is killed would never be: the next start removes it. Without LOG, too, nothing in it counts.
func TestOpenLog_CutSegmentsGo(t *testing.T) {
	for _, without := range []bool{false, true} {
		fs, m := MemFS(), model{}
		l := mustOpen(t, fs, smallLog())
		var first []byte
		for next := uint64(1); (len(l.spare) == 0 || l.spare[0] < 3) && next < 1000; next += 4 {
			ws := []Write{{Shard: 1, Replica: 1, Entries: entries(next, 4, 1, 900), Cut: next}, {Shard: ShardID(2 + next%7), Replica: 1, Entries: entries(1, 1, next, 9)}}
			if l.current().seq == 1 {
				first = fileOf(t, fs, segmentName(1))
			}
			must(t, l.Append(ws))
			m.apply(ws)
		}
		must(t, l.Sync())
		// It waits as well, and those between have been used.
		setFile(t, fs, segmentName(1), first)
		spare := append(slices.Clone(l.spare), 1)
		if len(spare) == 1 || spare[0] < 3 {
			t.Fatal("no segment waits to be written again")
		}
		damage := 0
		if without {
			must(t, fs.Remove(fs.PathJoin(logDir, identityName)))
			damage = 1
		}
		reopened(t, fs, damage, m)
		for _, seq := range spare {
			if files := segmentFiles(t, fs); slices.Contains(files, segmentName(seq)) {
				t.Errorf("without LOG %v: segment %d is still there: %v", without, seq, files)
			}
		}
	}
}

// Without LOG nobody knows whether the last segment was finished. If it was, there may be entries in it that are nowhere else.
func TestOpenLog_WithoutLogKeepsTheLastSegment(t *testing.T) {
	fs, m := MemFS(), model{}
	l := mustOpen(t, fs, smallLog())
	do := func(ws ...Write) {
		must(t, l.Append(ws))
		m.apply(ws)
	}
	do(Write{Shard: 5, Replica: 1, Entries: entries(1, 3, 1, 50)})
	// The fourth segment takes over the entries of the first.
	for next := uint64(1); l.current().seq < 3 && next < 1000; next++ {
		do(Write{Shard: 1, Replica: 1, Entries: entries(next, 1, 1, 900), Cut: next})
	}
	must(t, l.rotate(0))
	if got := l.segs[0].seq; got != 4 {
		t.Fatalf("the log begins with segment %d", got)
	}
	for _, name := range segmentFiles(t, fs) {
		if name != segmentName(4) {
			must(t, fs.Remove(fs.PathJoin(logDir, name)))
		}
	}
	must(t, fs.Remove(fs.PathJoin(logDir, identityName)))
	reopened(t, fs, 1, m)
}

// Header and checkpoint of a segment say the same, so either of them may be damaged.
func TestOpenLog_WhatIsSaidTwiceIsNotLost(t *testing.T) {
	for n := 1; n <= 3; n++ {
		for seq := uint64(1); seq <= uint64(n); seq++ {
			for what, at := range map[string]int{"header": 40, "checkpoint": segmentHeaderBytes + recordHeaderBytes + 8} {
				fs := MemFS()
				m := rotated(t, fs, n, oneEach)
				harm(t, fs, segmentName(seq), at)
				rec := reopened(t, fs, 1, m)
				if d := rec.Damaged[0]; d.File != segmentName(seq) || d.Offset > int64(at) || d.Offset+d.Length <= int64(at) {
					t.Errorf("%s of segment %d of %d: damage is said to be at %+v", what, seq, n, d)
				}
			}
		}
	}
	// Nor does it matter that LOG is gone if the first header is, too.
	fs := MemFS()
	m := rotated(t, fs, 3, oneEach)
	harm(t, fs, segmentName(1), 40)
	must(t, fs.Remove(fs.PathJoin(logDir, identityName)))
	reopened(t, fs, 2, m)
}

// Where the records of a segment end is known if the next one's header is damaged: what was cut does not come back.
func TestOpenLog_DamagedHeaderBehindATornTail(t *testing.T) {
	fs, m := MemFS(), model{}
	l := mustOpen(t, fs, keptLog())
	do := func(w Write) {
		t.Helper()
		must(t, l.Append([]Write{w}))
		m.apply([]Write{w})
	}
	do(Write{Shard: 1, Replica: 1, Entries: entries(1, 1, 1, 40)})
	must(t, l.Sync())
	must(t, l.Append([]Write{{Shard: 1, Entries: entries(2, 1, 1, 40)}}))
	must(t, l.Append([]Write{{Shard: 1, Entries: entries(3, 1, 1, 40)}}))
	cut := l.next
	name := segmentName(1)
	b := fileOf(t, fs, name)
	recs := scanSegment(b, segmentHeaderBytes, len(b), seedOf(7, 1), 0, true)
	harm(t, fs, name, recs[len(recs)-2].off+60)
	l = mustOpen(t, fs, keptLog())
	if l.next <= cut {
		t.Errorf("a record gets number %d again", l.next)
	}
	do(Write{Shard: 1, Entries: entries(2, 1, 2, 40)})
	must(t, l.Sync())
	harm(t, fs, segmentName(2), 40)
	reopened(t, fs, 1, m)
}

// A checkpoint that is damaged is a loss where nothing says what was before it.
func TestOpenLog_DamagedCheckpointBehindALoss(t *testing.T) {
	fs := MemFS()
	rotated(t, fs, 3, oneEach)
	must(t, fs.Remove(fs.PathJoin(logDir, segmentName(2))))
	harm(t, fs, segmentName(3), segmentHeaderBytes+recordHeaderBytes+8)
	l, rec, err := OpenLog(fs, logDir, smallLog())
	must(t, err)
	if len(rec.Damaged) != 2 || !rec.AllSuspect || !slices.Contains(rec.Suspect, 11) {
		t.Errorf("got %+v", *rec)
	}
	must(t, l.Close())
}

// Damage in a segment that is not the last says nothing of the records behind it.
func TestOpenLog_DamageIsNotTheEndOfASegment(t *testing.T) {
	fs := MemFS()
	l := mustOpen(t, fs, keptLog())
	var recs []int64
	for id := range ShardID(3) {
		recs = append(recs, l.pos)
		must(t, l.Append([]Write{{Shard: 1 + id, Replica: 1, Entries: entries(1, 1, 1, 40)}}))
	}
	must(t, l.Close())
	must(t, mustOpen(t, fs, keptLog()).Close())
	harm(t, fs, segmentName(1), int(recs[1])+60)
	l, rec, err := OpenLog(fs, logDir, keptLog())
	must(t, err)
	if len(rec.Damaged) != 1 || !slices.Equal(rec.Suspect, []ShardID{2}) || rec.AllSuspect {
		t.Errorf("got %+v", *rec)
	}
	must(t, l.Close())
}

// Segments behind missing ones are read: what they state is known.
func TestOpenLog_MissingSegmentsInTheMiddle(t *testing.T) {
	for gone, reason := range map[int]string{1: "segment is missing", 2: "segments are missing, up to " + segmentName(3)} {
		fs := MemFS()
		m := rotated(t, fs, 5, oneEach)
		for i := range gone {
			must(t, fs.Remove(fs.PathJoin(logDir, segmentName(uint64(2+i)))))
		}
		l, rec, err := OpenLog(fs, logDir, smallLog())
		must(t, err)
		if len(rec.Damaged) != 1 || rec.Damaged[0].File != segmentName(2) || rec.Damaged[0].Reason != reason {
			t.Errorf("%d segments: got %+v, want %q", gone, *rec, reason)
		}
		want := []ShardID{1}
		for i := range gone {
			want = append(want, ShardID(12+i)) // its entry was there
		}
		if !slices.Equal(rec.Suspect, want) || rec.AllSuspect {
			t.Errorf("%d segments: shards %v are in doubt, want %v; all: %v", gone, rec.Suspect, want, rec.AllSuspect)
		}
		for _, id := range []ShardID{11, 14, 15} {
			s := m[id]
			must(t, s.differs(l, id))
		}
		must(t, l.Close())
	}
}

// A log that is made has a name that no other has, and so has one that does not find out which it was.
func TestOpenLog_Names(t *testing.T) {
	names := map[uint64]string{0: "no name"}
	note := func(what string, id uint64) {
		if old := names[id]; old != "" {
			t.Errorf("%s has name %d, as has %s", what, id, old)
		}
		names[id] = what
	}
	for _, id := range []uint64{7, 0} {
		cfg := smallLog()
		cfg.ID = id
		fs := MemFS()
		l := mustOpen(t, fs, cfg)
		must(t, l.Append([]Write{{Shard: 1, Replica: 1, Entries: entries(1, 3, 1, 50)}}))
		must(t, l.Close())
		note(fmt.Sprintf("a log made with id %d", id), l.ID())
		harm(t, fs, segmentName(1), 40)
		must(t, fs.Remove(fs.PathJoin(logDir, identityName)))
		l, rec, err := OpenLog(fs, logDir, cfg)
		must(t, err)
		if !rec.AllSuspect || len(l.Shards()) > 0 {
			t.Errorf("shards %v of a log that is not known, %+v", l.Shards(), *rec)
		}
		must(t, l.Close())
		note(fmt.Sprintf("a log that was lost, with id %d", id), l.ID())
		l, rec, err = OpenLog(fs, logDir, cfg)
		must(t, err)
		if len(rec.Damaged) > 0 || !rec.AllSuspect {
			t.Errorf("opened again: %+v", *rec)
		}
		must(t, l.Close())
	}
}

// badFS fails to open or to read a file now and then.
type badFS struct {
	FS
	name string
	// opens is how often it may be opened before that is refused, once.
	opens int
	// bad is what of it cannot be read.
	bad stretch
}

type badSectors struct {
	File
	bad stretch
}

func (b *badFS) Open(name string, o ...vfs.OpenOption) (File, error) {
	if !strings.HasPrefix(b.PathBase(name), b.name) {
		return b.FS.Open(name, o...)
	}
	if b.opens--; b.opens == -1 {
		return nil, syscall.EMFILE
	}
	f, err := b.FS.Open(name, o...)
	if err != nil {
		return nil, err
	}
	return badSectors{f, b.bad}, nil
}

func (f badSectors) ReadAt(p []byte, off int64) (int, error) {
	if off < f.bad.end && f.bad.off < off+int64(len(p)) {
		n, _ := f.File.ReadAt(p[:max(0, f.bad.off-off)], off)
		return n, syscall.EIO
	}
	return f.File.ReadAt(p, off)
}

// A moment in which the system has no descriptors for a file says nothing of what is in it, whatever it was to be opened for.
func TestOpenLog_RefusedOnce(t *testing.T) {
	for what, do := range map[string]func(fs *vfs.MemFS){
		"whole": func(*vfs.MemFS) {},
		"no LOG": func(fs *vfs.MemFS) {
			must(t, fs.Remove(fs.PathJoin(logDir, identityName)))
		},
		"an older LOG": func(fs *vfs.MemFS) { setFile(t, fs, identityName, identity{id: 7, last: 2, oldest: 1}.encode()) },
	} {
		fs := MemFS()
		m := rotated(t, fs, 3, oneEach)
		do(fs)
		for k := range 100 {
			c := copyFS(t, fs)
			bad := &badFS{FS: c, opens: k}
			l, _, err := OpenLog(bad, logDir, smallLog())
			if bad.opens >= 0 {
				must(t, err)
				must(t, m.differs(l))
				must(t, l.Close())
				if k < 8 {
					t.Errorf("%s: files were opened %d times only", what, k)
				}
				break
			}
			if !errs.Is(err, errs.Unavailable) {
				t.Fatalf("%s: refused to open a file after %d others: %v", what, k, err)
			}
			if got, want := fmt.Sprint(segmentFiles(t, c)), fmt.Sprint(segmentFiles(t, fs)); got != want {
				t.Fatalf("%s: after %d others: there are %s, were %s", what, k, got, want)
			}
		}
	}
}

// What a disk cannot read is not the end of a log.
func TestOpenLog_UnreadableSectors(t *testing.T) {
	const sector = 4 << 10
	cfg := votesLog
	fs := MemFS()
	l := mustOpen(t, fs, cfg)
	name := segmentName(l.current().seq)
	var at []int64
	for i := range 4 {
		at = append(at, l.pos)
		must(t, l.Append([]Write{{Shard: ShardID(1 + i), Entries: entries(1, 1, 1, 2*sector), Replica: 1}}))
	}
	end := l.pos
	must(t, l.Sync()) // all of them at once, so that none proves the one before
	for i, from := range at {
		for _, bad := range []stretch{{from + sector, from + sector + 1}, {from, from + 2*sector}, {from, end}} {
			l, rec, err := OpenLog(&badFS{FS: copyFS(t, fs), name: name, opens: 99, bad: bad}, logDir, cfg)
			must(t, err)
			want := Damage{File: name, Offset: bad.off, Length: (bad.end+sector-1)&^(sector-1) - bad.off}
			d := slices.DeleteFunc(slices.Clone(rec.Damaged), func(d Damage) bool { return !strings.HasPrefix(d.Reason, "cannot be read") })
			if len(d) != 1 || d[0].File != want.File || d[0].Offset != want.Offset || d[0].Length != want.Length {
				t.Errorf("record %d, %+v: got %+v, want %+v", i, bad, d, want)
			}
			if !rec.AllSuspect {
				t.Errorf("record %d, %+v: the log is believed: %+v", i, bad, *rec)
			}
			must(t, l.Close())
		}
	}
	// Nothing says that there was no record behind the last one that can be read.
	next := (end + sector - 1) &^ (sector - 1)
	l, rec, err := OpenLog(&badFS{FS: copyFS(t, fs), name: name, opens: 99, bad: stretch{next, next + sector}}, logDir, cfg)
	must(t, err)
	if len(rec.Damaged) != 1 || !rec.AllSuspect {
		t.Errorf("got %+v", *rec)
	}
	must(t, l.Close())
}

// The oldest checkpoint may speak of more entries than there should be slots for. What comes behind it says which of them are still missed.
func TestRecovery_Holes(t *testing.T) {
	const many = missingMax + 1000
	type shard struct {
		cut         Position
		slots, last uint64
		missing     int
		hole        bool
	}
	one := func(sub subRecord) func(r *recovery) {
		return func(r *recovery) {
			sub.shard, sub.counter = 1, r.l.shards[1].counter+1
			var slots []slot
			var terms []uint64
			for i := range sub.count {
				slots, terms = append(slots, slot{1, 200 + i, 30}), append(terms, 9)
			}
			r.batch(&sub, slots, terms)
		}
	}
	checkpointed := func(cut, last uint64) func(r *recovery) {
		return func(r *recovery) {
			c := checkpointShard{shard: 1, replica: 1, counter: r.l.shards[1].counter, cut: Position{cut, 3}, last: Position{last, 4}}
			r.checkpoint(&checkpoint{shards: []checkpointShard{c}})
		}
	}
	for what, c := range map[string]struct {
		do   []func(r *recovery)
		want shard
	}{
		"nothing":          {nil, shard{Position{many, 0}, 0, many, 0, true}},
		"a small cut":      {[]func(*recovery){one(subRecord{flags: subCut, cut: Position{10, 3}})}, shard{Position{many, 0}, 0, many, 0, true}},
		"a cut at the end": {[]func(*recovery){one(subRecord{flags: subCut, cut: Position{many, 4}})}, shard{Position{many, 4}, 0, many, 0, false}},
		"all but a few":    {[]func(*recovery){one(subRecord{flags: subCut, cut: Position{many - 7, 3}})}, shard{Position{many - 7, 3}, 7, many, 7, false}},
		"just enough":      {[]func(*recovery){one(subRecord{flags: subCut, cut: Position{1000, 3}})}, shard{Position{1000, 3}, missingMax, many, missingMax, false}},
		"just too little":  {[]func(*recovery){one(subRecord{flags: subCut, cut: Position{999, 3}})}, shard{Position{many, 0}, 0, many, 0, true}},
		"in two steps": {
			[]func(*recovery){one(subRecord{flags: subCut, cut: Position{10, 3}}), one(subRecord{flags: subCut, cut: Position{many - 7, 3}})},
			shard{Position{many - 7, 3}, 7, many, 7, false},
		},
		"entries behind": {[]func(*recovery){one(subRecord{flags: subEntries, first: many + 1, count: 2})}, shard{Position{many, 0}, 2, many + 2, 0, true}},
		"entries behind, and a cut before": {
			[]func(*recovery){one(subRecord{flags: subEntries, first: many + 1, count: 2}), one(subRecord{flags: subCut, cut: Position{many - 7, 3}})},
			shard{Position{many - 7, 3}, 9, many + 2, 7, false},
		},
		"entries and a cut behind": {
			[]func(*recovery){one(subRecord{flags: subEntries | subCut, first: many + 1, count: 2, cut: Position{many + 1, 9}})},
			shard{Position{many + 1, 9}, 1, many + 2, 0, false},
		},
		"entries in their place": {[]func(*recovery){one(subRecord{flags: subEntries, first: 5000, count: 2})}, shard{Position{0, 3}, 5001, 5001, 4999, false}},
		"entries from the first": {[]func(*recovery){one(subRecord{flags: subEntries, first: 1, count: 2})}, shard{Position{0, 3}, 2, 2, 0, false}},
		"entries in the place of the last": {
			[]func(*recovery){one(subRecord{flags: subEntries, first: many, count: 2})}, shard{Position{many - 1, 0}, 2, many + 1, 0, true},
		},
		"a reset": {
			[]func(*recovery){one(subRecord{flags: subReset, reset: Position{40, 2}}), one(subRecord{flags: subEntries, first: 41, count: 1})},
			shard{Position{40, 2}, 1, 41, 0, false},
		},
		"a forget": {
			[]func(*recovery){one(subRecord{flags: subForget | subReplica, replica: 2}), one(subRecord{flags: subEntries, first: 1, count: 1})},
			shard{Position{0, 0}, 1, 1, 0, false},
		},
		"copies": {[]func(*recovery){func(r *recovery) {
			r.rewrite(&subRecord{shard: 1, counter: 5, first: 9}, []slot{{1, 200, 30}}, []uint64{9})
		}}, shard{Position{many, 0}, 0, many, 0, true}},
		"the same checkpoint":          {[]func(*recovery){checkpointed(0, many)}, shard{Position{many, 0}, 0, many, 0, true}},
		"a checkpoint with a cut":      {[]func(*recovery){checkpointed(many-7, many)}, shard{Position{many - 7, 3}, 7, many, 7, false}},
		"a checkpoint with all cut":    {[]func(*recovery){checkpointed(many, many)}, shard{Position{many, 3}, 0, many, 0, false}},
		"a checkpoint behind":          {[]func(*recovery){checkpointed(many+50, many+60)}, shard{Position{many + 50, 3}, 10, many + 60, 10, false}},
		"a checkpoint that ends early": {[]func(*recovery){checkpointed(0, 50)}, shard{Position{0, 3}, 50, 50, 50, false}},
		"a checkpoint with more":       {[]func(*recovery){checkpointed(0, many+5)}, shard{Position{many, 0}, 5, many + 5, 5, true}},
		"a checkpoint with many more":  {[]func(*recovery){checkpointed(0, 3*many)}, shard{Position{3 * many, 0}, 0, 3 * many, 0, true}},
	} {
		l := mustOpen(t, MemFS(), smallLog())
		r := &recovery{l: l, out: &Recovery{}, next: 9, holes: map[ShardID]Position{}}
		r.checkpoint(&checkpoint{shards: []checkpointShard{{shard: 1, replica: 1, counter: 5, cut: Position{0, 3}, last: Position{many, 4}}}})
		for _, do := range c.do {
			do(r)
		}
		s := l.shards[1]
		got := shard{cut: s.cut, slots: uint64(len(s.slots)), last: s.last()}
		for _, e := range s.slots {
			if e.missing() {
				got.missing++
			}
		}
		_, got.hole = r.holes[1]
		if got != c.want {
			t.Errorf("%s: got %+v, want %+v", what, got, c.want)
		}
		if len(s.slots) > 0 && (s.terms[0].index != s.cut.Index+1 || s.terms[len(s.terms)-1].index > s.last()) {
			t.Errorf("%s: terms %v of entries %d to %d", what, s.terms, s.cut.Index+1, s.last())
		}
		// What is missed is in doubt.
		must(t, r.finish(l.current().seq))
		if s.suspect != (c.want.missing > 0 || c.want.hole) {
			t.Errorf("%s: in doubt: %v", what, s.suspect)
		}
		must(t, l.Close())
	}
}

// A checkpoint states everything but the entries. Those that were found may be others than it means.
func TestRecovery_CheckpointAfterALoss(t *testing.T) {
	for what, c := range map[string]struct {
		does        checkpointShard
		first, last uint64
		doubt       bool
	}{
		"the same":              {checkpointShard{counter: 4, last: Position{9, 2}}, 1, 9, false},
		"more was said of it":   {checkpointShard{counter: 5, last: Position{9, 2}}, 1, 9, true},
		"it was cut":            {checkpointShard{counter: 5, cut: Position{9, 2}, last: Position{9, 2}}, 10, 9, false},
		"it ends earlier":       {checkpointShard{counter: 4, last: Position{7, 2}}, 1, 7, false},
		"it ends later":         {checkpointShard{counter: 4, last: Position{11, 2}}, 1, 9, true},
		"another last entry":    {checkpointShard{counter: 4, last: Position{9, 3}}, 1, 9, true},
		"another one behind":    {checkpointShard{counter: 4, last: Position{11, 3}}, 1, 9, true},
		"it was reset":          {checkpointShard{counter: 5, cut: Position{20, 3}, last: Position{20, 3}}, 21, 20, false},
		"it was suspect":        {checkpointShard{counter: 4, last: Position{9, 2}, suspect: true}, 1, 9, true},
		"it was removed":        {checkpointShard{shard: 2}, 1, 0, false},
		"an entry it says less": {checkpointShard{counter: 4, last: Position{8, 7}}, 1, 8, true},
	} {
		fs := MemFS()
		l := mustOpen(t, fs, smallLog())
		must(t, l.Append([]Write{{Shard: 1, Replica: 1, Entries: entries(1, 9, 2, 20)}}))
		r := &recovery{l: l, out: &Recovery{}, next: 9, holes: map[ShardID]Position{}}
		l.shards[1].counter = 4
		if c.does.shard == 0 {
			c.does.shard, c.does.replica = 1, 1
		}
		r.checkpoint(&checkpoint{shards: []checkpointShard{c.does}})
		must(t, r.finish(l.current().seq))
		if first, last := l.Bounds(1); first != c.first || last != c.last {
			t.Errorf("%s: entries %d to %d, want %d to %d", what, first, last, c.first, c.last)
		}
		if got := slices.Contains(r.out.Suspect, 1); got != c.doubt {
			t.Errorf("%s: in doubt: %v", what, got)
		}
		must(t, l.Close())
	}
}
