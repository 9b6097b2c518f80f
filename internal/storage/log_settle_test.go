package storage

import (
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/quorate/quorate/internal/errs"
)

// suspected opens a log of which nobody knows what other shards it had.
func suspected(t *testing.T, mem *vfs.MemFS, fs FS) *Log {
	t.Helper()
	must(t, mustOpen(t, mem, smallLog()).Close())
	must(t, mem.Remove(mem.PathJoin(logDir, segmentName(1))))
	l, rec, err := OpenLog(fs, logDir, smallLog())
	must(t, err)
	if len(rec.Suspect) > 0 || !rec.AllSuspect {
		t.Fatalf("got %+v", *rec)
	}
	return l
}

// A suspicion that is settled does not come back, however full the segment was and however many come after it.
func TestLog_SettledStaysSettled(t *testing.T) {
	for room := int64(recordHeaderBytes); room < 4*recordHeaderBytes; room += 8 {
		mem := MemFS()
		l := suspected(t, mem, mem)
		must(t, l.Append([]Write{{Shard: 1, Replica: 1}}))
		last := uint64(0)
		more := func(size int64) {
			last++
			must(t, l.Append([]Write{{Shard: 1, Entries: entries(last, 1, 0, int(size))}}))
		}
		const head = recordHeaderBytes + 4 + 13 + 12 + entryHeaderBytes
		more(l.current().size - l.pos - room - head - 7)
		at := l.current().seq
		if left := l.current().size - l.pos; left < room || left >= room+8 {
			t.Fatalf("there is room for %d bytes, want %d", left, room)
		}
		must(t, l.Settle(3)) // which nobody has heard of
		must(t, l.Settle(0))
		if l.pos+recordHeaderBytes > l.current().size {
			t.Errorf("room for %d bytes: the segment of %d ends at %d, and has no room for a seal", room, l.current().size, l.pos)
		}
		before := l.pos
		must(t, l.Settle(0))
		if l.pos != before {
			t.Error("it is settled a second time")
		}
		for l.current().seq < at+2 {
			more(900)
		}
		must(t, l.Close())
		must(t, mustOpen(t, mem, smallLog()).Close())
	}
}

// Nor is it settled if the disk does not say so.
func TestLog_SettleThatFails(t *testing.T) {
	mem, on := MemFS(), false
	l := suspected(t, mem, errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if on && op.Kind == errorfs.OpFileWriteAt {
			return errorfs.ErrInjected
		}
		return nil
	})))
	on = true
	err := l.Settle(0)
	wantKind(t, err, errs.OutcomeUnknown)
	on = false
	if again := l.Append([]Write{{Shard: 1, Replica: 1}}); again != err || !l.allSuspect {
		t.Errorf("the log goes on: %v", again)
	}
	_ = l.Close()
	l, rec, err := OpenLog(mem, logDir, smallLog())
	must(t, err)
	if !rec.AllSuspect {
		t.Errorf("got %+v", rec)
	}
	must(t, l.Close())
}

// What the disk cannot read is damaged; what the system does not let us read may not be.
func TestLog_EntriesThatCannotBeRead(t *testing.T) {
	var why error
	reads := 0
	fs := errorfs.Wrap(MemFS(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileReadAt {
			reads++
			return why
		}
		return nil
	}))
	l := mustOpen(t, fs, smallLog())
	must(t, l.Append([]Write{{Shard: 1, Replica: 1, Entries: entries(1, 3, 1, 40)}}))
	for err, want := range map[error]errs.Kind{syscall.EIO: errs.Corrupt, syscall.ENOMEM: errs.Unavailable} {
		why = err
		_, got := l.Entries(1, 1, 4, 1<<20)
		wantKind(t, got, want)
		wantKind(t, l.Verify(func(int) error { return nil }), want)
	}
	// It is not final: the next attempt may work.
	why, reads = nil, 0
	must(t, l.Verify(func(int) error { return nil }))
	if reads != 1 {
		t.Errorf("%d reads for entries that lie one behind the other", reads)
	}
	must(t, l.Append([]Write{{Shard: 1, Entries: entries(4, 1, 1, 40)}}))
	must(t, l.Close())
}

// Sizes that would not be read again are refused, and those at the edges are not.
func TestOpenLog_Sizes(t *testing.T) {
	for _, c := range []LogConfig{
		{SegmentBytes: 4<<10 - 1}, {SegmentBytes: -1}, {SegmentBytes: segmentBytesMax + 1}, {ZeroBytes: -1}, {ZeroBytes: segmentBytesMax + 1},
	} {
		_, _, err := OpenLog(MemFS(), logDir, c)
		wantKind(t, err, errs.Invalid)
	}
	for _, c := range []LogConfig{{SegmentBytes: 4 << 10}, {SegmentBytes: 4<<10 + 3, ZeroBytes: 1}, {SegmentBytes: segmentBytesMax}} {
		fs, m := MemFS(), model{}
		l := mustOpen(t, fs, c)
		for i := range uint64(40) {
			ws := []Write{{Shard: 1, Replica: 1, Entries: entries(i+1, 1, 1, 900)}}
			must(t, l.Append(ws))
			m.apply(ws)
		}
		must(t, l.Close())
		l = mustOpen(t, fs, c)
		must(t, m.differs(l))
		must(t, l.Close())
	}
}
