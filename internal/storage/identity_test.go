package storage

import "testing"

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
