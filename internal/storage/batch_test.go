package storage

import (
	"fmt"
	"slices"
	"testing"
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
