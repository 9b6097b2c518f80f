package storage

import (
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
)

// slowRead calls while before it reads something of a segment that is open to be read and written.
type slowRead struct {
	FS
	while func()
}

type slowReadFile struct {
	File
	fs *slowRead
}

func (s *slowRead) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (File, error) {
	f, err := s.FS.OpenReadWrite(name, c, o...)
	return slowReadFile{f, s}, err
}

func (f slowReadFile) ReadAt(b []byte, at int64) (int, error) {
	if do := f.fs.while; do != nil {
		f.fs.while = nil
		do()
	}
	return f.File.ReadAt(b, at)
}

// appendEach appends n entries of shard 1 that a segment has room for few of, each by itself, and returns the index behind them.
func appendEach(t *testing.T, l *Log, next uint64, n int) uint64 {
	t.Helper()
	for range n {
		must(t, l.Append([]Write{{Shard: 1, Replica: 1, Entries: entries(next, 1, 1, 900)}}))
		next++
	}
	return next
}

// A segment that is read while its entries are cut is not written again before the reader is done.
func TestLog_WhatIsReadIsNotWrittenAgain(t *testing.T) {
	fs := &slowRead{FS: MemFS()}
	l := mustOpen(t, fs, smallLog())
	next := uint64(1)
	more := func(n int) { next = appendEach(t, l, next, n) }
	more(40)
	before := l.current().seq
	fs.while = func() {
		must(t, l.Append([]Write{{Shard: 1, Cut: next - 1}}))
		more(90)
	}
	es, err := l.Entries(1, 1, 41, 1<<20)
	if err != nil || len(es) != 40 || es[3].Data[0] != 4 || es[39].Data[0] != 40 {
		t.Errorf("%d entries were read, %v", len(es), err)
	}
	if l.segs[0].seq < before || l.current().seq < before+4 {
		t.Fatalf("nothing went: the segments are %d to %d, and it was %d", l.segs[0].seq, l.current().seq, before)
	}
	must(t, l.Close())
}

// However many segments are let go at once, no more are kept than the configuration says.
func TestLog_FewCutSegmentsAreKept(t *testing.T) {
	for _, keep := range []int{-1, 1, 3} {
		fs, cfg := MemFS(), smallLog()
		cfg.RecycleSegments = keep
		l := mustOpen(t, fs, cfg)
		next := uint64(1)
		more := func(n int) { next = appendEach(t, l, next, n) }
		more(200)
		if n := len(segmentFiles(t, fs)); n < 12 {
			t.Fatalf("there are only %d segments", n)
		}
		must(t, l.Append([]Write{{Shard: 1, Cut: next - 1}}))
		// Up to the next rotation, which lets them go.
		for at := l.current().seq; l.current().seq == at; {
			more(1)
		}
		if got, want := len(segmentFiles(t, fs)), len(l.segs)+max(keep, 0); got != want || len(l.segs) > 2 {
			t.Errorf("%d are kept: there are %d files and %d segments", keep, got, len(l.segs))
		}
		must(t, l.Close())
		must(t, mustOpen(t, fs, cfg).Close())
	}
}

// Entries of a cold shard that cannot be read stay where they are, and with them their segment: a copy would look as good as new.
func TestLog_DamageIsNotCopiedForward(t *testing.T) {
	fs := MemFS()
	l := mustOpen(t, fs, smallLog())
	must(t, l.Append([]Write{
		{Shard: 5, Replica: 1, Entries: entries(1, 3, 1, 50)},
		{Shard: 6, Replica: 1, Entries: entries(1, 3, 1, 50)},
	}))
	first := l.current().seq
	sl := l.shards[6].slots[1]
	rot(t, fs, l.path(segmentName(sl.seg)), int64(sl.off)+entryHeaderBytes+9)
	next := uint64(1)
	more := func() {
		for at := l.current().seq + 8; l.current().seq < at; next++ {
			must(t, l.Append([]Write{{Shard: 1, Replica: 1, Entries: entries(next, 1, 1, 900), Cut: next - 1}}))
		}
	}
	more()
	if l.segs[0].seq != first {
		t.Errorf("segment %d is gone, with what was damaged in it", first)
	}
	if es, err := l.Entries(5, 1, 4, 1<<20); err != nil || len(es) != 3 {
		t.Errorf("%d entries, %v", len(es), err)
	}
	_, err := l.Entries(6, 1, 4, 1<<20)
	wantKind(t, err, errs.Corrupt)
	// It is copied once what was damaged is not needed any more.
	must(t, l.Append([]Write{{Shard: 6, Cut: 2}}))
	more()
	if l.segs[0].seq <= first {
		t.Errorf("segment %d is kept for nothing", first)
	}
	for id, lo := range map[ShardID]uint64{5: 1, 6: 3} {
		if es, err := l.Entries(id, lo, 4, 1<<20); err != nil || es[len(es)-1].Data[0] != 3 {
			t.Errorf("shard %d: %v, %v", id, es, err)
		}
	}
	must(t, miscounted(l))
	must(t, l.Close())
	must(t, mustOpen(t, fs, smallLog()).Close())
}

// One rotation copies few entries forward, and only those of segments that go by it.
func TestLog_FewEntriesAreCopiedForward(t *testing.T) {
	fs, m := MemFS(), model{}
	l := mustOpen(t, fs, smallLog())
	do := func(ws ...Write) {
		must(t, l.Append(ws))
		m.apply(ws)
	}
	do(Write{Shard: 5, Replica: 1, Entries: entries(1, 3, 1, 50)}, Write{Shard: 9, Replica: 1, Entries: entries(1, 2, 1, 900)})
	copied, was := 0, l.current().seq
	for next := uint64(1); l.current().seq < 30; next++ {
		from := map[ShardID]shardLog{}
		for id, s := range l.shards {
			from[id] = shardLog{cut: s.cut, slots: slices.Clone(s.slots)}
		}
		do(Write{Shard: 1, Replica: 1, Entries: entries(next, 1, 1, 900), Cut: next - min(next, 60)})
		g := l.current()
		if g.seq == was {
			continue
		}
		was = g.seq
		for _, rec := range scanSegment(fileOf(t, fs, segmentName(g.seq)), segmentHeaderBytes, int(g.end), g.seed, 1, true) {
			if rec.kind == kindRewrite {
				copied++
				if n := int64(len(rec.payload)); n > smallLog().SegmentBytes/4 {
					t.Errorf("segment %d begins with copies of %d bytes", g.seq, n)
				}
				must(t, decodeBatch(rec.payload, rec.off, g.seq, func(r *subRecord, _ []slot, _ []uint64) {
					if s := from[r.shard]; s.slots[r.first-s.cut.Index-1].seg >= l.segs[0].seq {
						t.Errorf("segment %d has a copy of entry %d of shard %d, the segment of which stays", g.seq, r.first, r.shard)
					}
				}))
			}
		}
		must(t, m.differs(l))
	}
	if copied == 0 {
		t.Error("nothing was copied")
	}
	must(t, l.Close())
}

// Where a segment begins with the state of many shards it is larger, so that the next one is not begun soon.
func TestLog_ManyShards(t *testing.T) {
	fs, m := MemFS(), model{}
	l := mustOpen(t, fs, smallLog())
	do := func(ws ...Write) {
		must(t, l.Append(ws))
		m.apply(ws)
		must(t, m.differs(l))
	}
	var all []Write
	for id := range ShardID(500) {
		all = append(all, Write{Shard: id + 1, Replica: 1, State: HardState{Term: 1, Vote: 1}})
	}
	do(all...)
	first := l.current().seq
	for i := range uint64(100) {
		do(Write{Shard: 7, Entries: entries(i+1, 1, 1, 500)})
	}
	// 100 records of nearly 600 bytes, of which at least 8 KiB go to each segment.
	if n := l.current().seq - first; n < 3 || n > 8 {
		t.Errorf("%d more segments were begun", n)
	}
	must(t, l.Close())
	l = mustOpen(t, fs, smallLog())
	must(t, m.differs(l))
	must(t, l.Close())
}

// The entries of two segments are read from two files, also where the offsets of the second follow those of the first.
func TestLog_EntriesOfTwoSegments(t *testing.T) {
	for _, size := range []int{0, 47} {
		l := mustOpen(t, MemFS(), smallLog())
		must(t, l.Append([]Write{{Shard: 1, Replica: 1, Entries: entries(1, 1, 1, size)}}))
		must(t, l.Append([]Write{{Shard: 1, Entries: entries(2, 1, 1, 20<<10)}}))
		a, b := l.shards[1].slots[0], l.shards[1].slots[1]
		if a.seg == b.seg || size > 0 && a.end() != int64(b.off) {
			t.Fatalf("the entries are at %+v and %+v", a, b)
		}
		es, err := l.Entries(1, 1, 3, 1<<20)
		if err != nil || len(es) != 2 || len(es[0].Data) != size || len(es[1].Data) != 20<<10 {
			t.Errorf("got %d entries, %v", len(es), err)
		}
		must(t, l.Close())
	}
}
