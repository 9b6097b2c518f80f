package storage

import (
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

// A segment that is read while its entries are cut is not written again before the reader is done.
func TestLog_WhatIsReadIsNotWrittenAgain(t *testing.T) {
	fs := &slowRead{FS: MemFS()}
	l := mustOpen(t, fs, smallLog())
	next := uint64(1)
	more := func(n int) {
		for range n {
			must(t, l.Append([]Write{{Shard: 1, Replica: 1, Entries: entries(next, 1, 1, 900)}}))
			next++
		}
	}
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
		more := func(n int) {
			for range n {
				must(t, l.Append([]Write{{Shard: 1, Replica: 1, Entries: entries(next, 1, 1, 900)}}))
				next++
			}
		}
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
