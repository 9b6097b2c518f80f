package storage

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// A range that is deleted stays so, also if nothing else was written before its memtable went to disk.
func TestStore_DeletedRangeAlone(t *testing.T) {
	for _, stepwise := range []bool{false, true} {
		fs, cfg := MemFS(), StoreConfig{Deterministic: stepwise}
		s, err := OpenStore(fs, "state", cfg)
		must(t, err)
		put(t, s, "a", "1", "b", "2", "c", "3", "d", "4")
		must(t, s.Flush())
		b := s.Batch()
		b.DeleteRange([]byte("b"), []byte("d"))
		must(t, b.Commit())
		want := rows(t, s, "", "")
		must(t, s.Flush())
		if got := rows(t, s, "", ""); got != want {
			t.Errorf("after a flush there are %q, want %q", got, want)
		}
		if _, ok, err := s.Get([]byte("b")); ok || err != nil {
			t.Errorf("b is there: %v", err)
		}
		must(t, s.Close())
		s = openTestStore(t, fs, cfg)
		if got := rows(t, s, "", ""); got != want {
			t.Errorf("after a start there are %q, want %q", got, want)
		}
	}
}

// Batches that are there at a time have nothing to do with each other, whatever was committed or discarded before.
func TestBatch_EachIsItsOwn(t *testing.T) {
	s := openTestStore(t, MemFS(), StoreConfig{})
	put(t, s, "a", "1")
	empty := s.Batch()
	empty.DeleteRange([]byte("x"), []byte("y"))
	must(t, empty.Commit())
	given := s.Batch()
	given.Set([]byte("z"), []byte("never"))
	given.Discard()
	one, two := s.Batch(), s.Batch()
	if len(one.data) != 0 || len(two.data) != 0 {
		t.Errorf("new batches have %d and %d bytes", len(one.data), len(two.data))
	}
	one.Set([]byte("b"), []byte("2"))
	two.Set([]byte("c"), []byte("3"))
	two.Delete([]byte("a"))
	must(t, two.Commit())
	if _, ok, err := s.Get([]byte("b")); ok || err != nil {
		t.Errorf("what is not committed is there: %v", err)
	}
	must(t, one.Commit())
	for key, want := range map[string]string{"a": "", "b": "2", "c": "3", "z": ""} {
		if v, ok, err := s.Get([]byte(key)); string(v) != want || ok != (want != "") || err != nil {
			t.Errorf("%s is %q, %v, %v", key, v, ok, err)
		}
	}
}

// TestStore_SeedsFlushAtDifferentTimes gives the same rows to two stores.
func TestStore_SeedsFlushAtDifferentTimes(t *testing.T) {
	const bound = 64 << 10
	fills := func(seed uint64) []int {
		s := openTestStore(t, MemFS(), StoreConfig{MemTableBytes: bound, Seed: seed})
		var sizes []int
		for last, i := 0, 0; len(sizes) < 20; i++ {
			b := s.Batch()
			b.Set(fmt.Appendf(nil, "k%08d", i), make([]byte, 100))
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
			if s.active.bytes < last {
				sizes = append(sizes, last)
			}
			last = s.active.bytes
		}
		return sizes
	}
	const row = 200
	never, one, two := fills(0), fills(1), fills(2)
	if slices.Min(never) < bound-row {
		t.Errorf("without a seed, memtables of %d bytes, bound %d", never, bound)
	}
	if slices.Equal(one, two) {
		t.Errorf("both seeds flush memtables of %d bytes", one)
	}
	for _, sizes := range [][]int{one, two} {
		if least, most := slices.Min(sizes), slices.Max(sizes); least < bound*2/3-row || most > bound || most-least < bound/6 {
			t.Errorf("memtables of %d bytes, bound %d", sizes, bound)
		}
	}
}

// heldTables is a file system that makes no tables before it is free to.
type heldTables struct {
	FS
	free chan struct{}
}

func (f heldTables) Create(name string, c vfs.DiskWriteCategory) (File, error) {
	if strings.HasSuffix(name, ".sst") {
		<-f.free
	}
	return f.FS.Create(name, c)
}

// TestStore_BacklogFollowsTheMemtables: what is committed counts, full memtables count whole, and what is written counts no more.
func TestStore_BacklogFollowsTheMemtables(t *testing.T) {
	const one = 1. / memTablesStop
	held := heldTables{MemFS(), make(chan struct{})}
	s := openTestStore(t, held, StoreConfig{MemTableBytes: 1000})
	want := func(what string, from, to float64) {
		t.Helper()
		if got := s.Backlog(); got < from || got > to {
			t.Errorf("%s: %v, want %v to %v", what, got, from, to)
		}
	}
	put(t, s, "a", strings.Repeat("x", 499))
	want("half a memtable", one/2, one/2)
	put(t, s, "b", strings.Repeat("x", 499))
	want("a memtable that became full", one, one)
	put(t, s, "c", strings.Repeat("x", 499))
	want("one and a half", one*3/2, one*3/2)
	done, err := s.FlushStart()
	must(t, err)
	want("two on their way", 2*one, 2*one)
	close(held.free)
	must(t, s.await(done))
	want("nothing but tables", 0, one/2)
}

// TestBacklog_Tables: what is not merged counts beside the memtables, from the start on and after each flush and merge.
func TestBacklog_Tables(t *testing.T) {
	o := &pebble.Options{EventListener: &pebble.EventListener{}}
	b := newBacklog(o)
	for range 2 {
		for _, event := range []func(){
			func() { o.EventListener.FlushEnd(pebble.FlushInfo{}) }, func() { o.EventListener.CompactionEnd(pebble.CompactionInfo{}) },
		} {
			if event(); len(b.look) != 1 {
				t.Error("nobody looks after a flush or a merge")
			}
			<-b.look
		}
	}
	b.filled.Store(memTablesStop / 4)
	b.sublevels.Store(sublevelsStop / 2)
	if got := (&Store{backlog: b}).Backlog(); got != 0.5 {
		t.Errorf("tables are half of what makes commits wait, memtables a quarter: got %v", got)
	}
	fs := MemFS()
	storeOnDisk(t, fs, "state", "a", "1")
	s := openTestStore(t, fs, StoreConfig{})
	for s.backlog.sublevels.Load() != 1 {
		runtime.Gosched()
	}
}

// TestStore_ManyRowsFillAMemtable, however small they are.
func TestStore_ManyRowsFillAMemtable(t *testing.T) {
	few := openTestStore(t, MemFS(), StoreConfig{})
	if put(t, few, "a", "1"); few.active.rows != 1 {
		t.Error("one row is a full memtable if nothing is said of its size")
	}
	s := openTestStore(t, MemFS(), StoreConfig{MemTableRows: 10})
	for i := range 35 {
		put(t, s, fmt.Sprint(i), "v")
		if s.active.rows >= 10 {
			t.Fatalf("a memtable of %d rows", s.active.rows)
		}
	}
}

// TestStore_WhoWaitsForRoomIsTold: a commit that waits since too many memtables are on their way ends when the store has failed, and when it is closed.
func TestStore_WhoWaitsForRoomIsTold(t *testing.T) {
	for _, closed := range []bool{false, true} {
		s, err := OpenStore(noTables{MemFS(), nil}, "state", StoreConfig{MemTableBytes: 10})
		must(t, err)
		s.background.first = 0
		if closed {
			s.background.first = attemptPause << attemptsMax // it does not fail before
		}
		ended := make(chan error)
		go func() {
			var err error
			for i := 0; i < 2*memTablesStop && err == nil; i++ {
				b := s.Batch()
				b.Set([]byte("key"), []byte("more than ten bytes"))
				err = b.Commit()
			}
			ended <- err
		}()
		s.mu.Lock()
		for len(s.filled) < memTablesStop-1 && s.failed == nil {
			s.changed.Wait()
		}
		s.mu.Unlock()
		if closed {
			must(t, s.Close())
			<-ended
			continue
		}
		if err := <-ended; err == nil {
			t.Error("a store that has failed takes batches")
		}
		if _, err := s.FlushStart(); err == nil {
			t.Error("a store that has failed starts a flush")
		}
		must(t, s.Close())
	}
}

// TestBatch_LargeOnesAreNotKept: one large batch does not cost its memory for ever.
func TestBatch_LargeOnesAreNotKept(t *testing.T) {
	s := openTestStore(t, MemFS(), StoreConfig{})
	put(t, s, "a", "1")
	if s.spare == nil {
		t.Error("a small batch is not used again")
	}
	put(t, s, "a", strings.Repeat("x", batchSpareMax+1))
	if s.spare != nil {
		t.Errorf("a batch of %d bytes is kept", cap(s.spare.data))
	}
}
