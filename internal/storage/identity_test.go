package storage

import (
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestLog_AppendAllTakesSeveralWritesOfAShard(t *testing.T) {
	fs := MemFS()
	l, _, err := OpenLog(fs, "log", LogConfig{ID: 77})
	if err != nil {
		t.Fatal(err)
	}
	entry := func(i, term uint64) []Entry { return []Entry{{Index: i, Term: term, Data: []byte("x")}} }
	err = l.AppendAll([]Write{
		{Shard: 1, Replica: 5, Entries: entry(1, 1)}, {Shard: 2, Replica: 6, Entries: entry(1, 1)},
		{Shard: 1, Entries: entry(2, 1)}, {Shard: 1, Entries: entry(2, 2), State: HardState{Term: 2}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendAll(nil); err != nil {
		t.Error(err)
	}
	if err := l.AppendAll([]Write{{Shard: 1, Entries: entry(9, 2)}, {Shard: 1, Entries: entry(3, 2)}}); err == nil {
		t.Errorf("a gap was taken")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, rec, err := OpenLog(fs, "log", LogConfig{ID: 78})
	if err != nil || len(rec.Damaged) > 0 {
		t.Fatalf("reopen: %v %+v", err, rec)
	}
	defer l.Close() //nolint:errcheck // a log in memory
	if l.ID() != 77 {
		t.Errorf("the log is now named %d", l.ID())
	}
	term, err := l.Term(1, 2)
	if _, last := l.Bounds(1); last != 2 || term != 2 || err != nil || l.State(1).Term != 2 || l.Replica(2) != 6 {
		t.Errorf("last %d, term %d, state %+v, %v", last, term, l.State(1), err)
	}
}

// TestLog_AppendAllTakesAnySize: together the writes are longer than a record may be.
func TestLog_AppendAllTakesAnySize(t *testing.T) {
	const shards = 5
	l, _, err := OpenLog(MemFS(), "log", LogConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a log in memory
	data := make([]byte, payloadBytesMax/(shards-1))
	var ws []Write
	for id := range ShardID(shards) {
		ws = append(ws, Write{Shard: id + 1, Entries: []Entry{{Index: 1, Term: 1, Data: data}}})
	}
	if err := l.AppendAll(ws); err != nil {
		t.Fatal(err)
	}
	for id := range ShardID(shards) {
		if _, last := l.Bounds(id + 1); last != 1 {
			t.Errorf("shard %d ends at %d", id+1, last)
		}
	}
}

// TestLog_AppendAllTakesAnySizeOfOneShard: one write of a shard is longer than a record may be. After a crash within it, what
// is there is a beginning of it that fits together.
func TestLog_AppendAllTakesAnySizeOfOneShard(t *testing.T) {
	fs := MemFS()
	open := func(fs FS) *Log {
		t.Helper()
		l, rec, err := OpenLog(fs, "log", LogConfig{})
		if err != nil || len(rec.Damaged) > 0 {
			t.Fatalf("open: %v %+v", err, rec)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	l := open(fs)
	data := make([]byte, payloadBytesMax/10)
	entries := func(from, to, term uint64) (es []Entry) {
		for i := from; i <= to; i++ {
			es = append(es, Entry{Index: i, Term: term, Data: data})
		}
		return es
	}
	was := HardState{Term: 1, Vote: 3, Commit: 8}
	if err := l.AppendAll([]Write{{Shard: 7, Replica: 3, Reset: &Position{Index: 5, Term: 1}, Entries: entries(6, 9, 1), State: was}}); err != nil {
		t.Fatal(err)
	}
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	// As it was after the first writes of the log.
	var crashes []*vfs.MemFS
	l.fs = &eachWrite{FS: fs, after: func() {
		if len(crashes) == 2 {
			return
		}
		crashes = append(crashes, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))}))
	}}
	l.current().file = l.fs.(*eachWrite).wrap(l.current().file)
	state := HardState{Term: 2, Vote: 4, Commit: 17}
	if err := l.AppendAll([]Write{{Shard: 1, State: state}, {Shard: 7, Entries: entries(9, 19, 2), State: state, Cut: 16}, {Shard: 1, Remove: true}}); err != nil {
		t.Fatal(err)
	}
	check := func(l *Log, least uint64) uint64 {
		t.Helper()
		first, last := l.Bounds(7)
		st := l.State(7)
		term, err := l.Term(7, last)
		if err != nil || last < least || st.Commit > last || st.Commit < 8 || term > st.Term || st.Commit+1 < first || l.Replica(7) != 3 {
			t.Errorf("entries %d to %d of term %d, state %+v, %v", first, last, term, st, err)
		}
		if _, err := l.Entries(7, first, last+1, 1<<40); err != nil {
			t.Error(err)
		}
		return last
	}
	if check(l, 19); l.State(7) != state {
		t.Errorf("state %+v, want %+v", l.State(7), state)
	}
	if first, _ := l.Bounds(7); first != 17 {
		t.Errorf("entries from %d on, want 17", first)
	}
	seen := map[uint64]bool{}
	for _, fs := range crashes {
		seen[check(open(fs), 9)] = true
	}
	if len(seen) < 2 || seen[19] {
		t.Errorf("crashes left ends %v; the write was not split", seen)
	}
}

// TestLog_AppendAllTakesFewBatches: what is appended together is written together, as far as that goes.
func TestLog_AppendAllTakesFewBatches(t *testing.T) {
	one := func(id ShardID, i uint64, size int) Write { return Write{Shard: id, Entries: entries(i, 1, 1, size)} }
	for _, c := range []struct {
		name string
		want int
		ws   []Write
	}{
		{"several shards", 1, []Write{one(1, 1, 9), one(2, 1, 9), one(3, 1, 9)}},
		{"shards in turn", 2, []Write{one(1, 1, 9), one(2, 1, 9), one(1, 2, 9), one(2, 2, 9)}},
		{"many entries", 1, []Write{{Shard: 1, Entries: entries(1, 100, 1, 9)}, one(2, 1, 9)}},
		{"an entry over the bound", 2, []Write{{Shard: 1, Entries: append(entries(1, 1, 1, appendAllBytes+1), entries(2, 3, 1, 9)...)}}},
	} {
		l, _, err := OpenLog(MemFS(), logDir, LogConfig{SegmentBytes: 64 << 20})
		must(t, err)
		before := l.next
		must(t, l.AppendAll(c.ws))
		if got := int(l.next - before); got != c.want {
			t.Errorf("%s: %d records, want %d", c.name, got, c.want)
		}
		m := model{}
		m.apply(c.ws)
		must(t, m.differs(l))
		must(t, l.Close())
	}
}

// eachWrite calls after once something was written to a file.
type eachWrite struct {
	FS
	after func()
}

type eachWriteFile struct {
	File
	fs *eachWrite
}

func (e *eachWrite) wrap(f File) File { return &eachWriteFile{f, e} }

func (e *eachWrite) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (File, error) {
	f, err := e.FS.OpenReadWrite(name, c, o...)
	return e.wrap(f), err
}

func (f *eachWriteFile) WriteAt(b []byte, at int64) (int, error) {
	n, err := f.File.WriteAt(b, at)
	if len(b) > 1<<20 {
		f.fs.after()
	}
	return n, err
}
