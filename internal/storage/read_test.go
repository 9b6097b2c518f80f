package storage

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/quorate/quorate/internal/errs"
)

func TestSnapshot_GetOftenIsGet(t *testing.T) {
	s := openTestStore(t, MemFS(), StoreConfig{})
	large := strings.Repeat("x", keptBytesMax+1)
	check := func(want map[string]string) {
		t.Helper()
		snap := s.Snapshot()
		defer func() { _ = snap.Close() }()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for k, v := range want {
					for range 2 {
						got, ok, err := snap.GetOften([]byte(k))
						if err != nil || string(got) != v || ok != (v != "") {
							t.Errorf("%s: got %q, %v, %v, want %q", k, got, ok, err, v)
						}
					}
				}
			})
		}
		wg.Wait()
		if n := len(snap.kept); n > keptMax {
			t.Errorf("%d rows are kept, more than %d", n, keptMax)
		}
		for _, r := range snap.kept {
			if len(r.value) > keptBytesMax {
				t.Errorf("%s is kept, with %d bytes", r.key, len(r.value))
			}
		}
	}
	put(t, s, "a", "1", "b", large)
	check(map[string]string{"a": "1", "b": large, "c": ""})
	// What was kept is of the view before.
	put(t, s, "a", "2", "c", "3")
	check(map[string]string{"a": "2", "b": large, "c": "3"})
	many := map[string]string{}
	for i := range 2 * keptMax {
		k := fmt.Sprint("k", i)
		put(t, s, k, k)
		many[k] = k
	}
	check(many)
}

// A row that cannot be read is not one that is not there, also when it is asked for again.
func TestSnapshot_GetOftenKeepsNoErrors(t *testing.T) {
	fs := MemFS()
	storeOnDisk(t, fs, "state", "k", "v")
	rot(t, fs, tables(t, fs)[0], 10)
	snap := openTestStore(t, fs, StoreConfig{}).Snapshot()
	for range 2 {
		if v, ok, err := snap.GetOften([]byte("k")); !errs.Is(err, errs.Corrupt) {
			t.Errorf("got %q, %v, %v", v, ok, err)
		}
	}
	must(t, snap.Close())
}

// A store closes cleanly after it was read last, and after it was flushed behind that: it has no view open that nobody uses.
func TestStore_ClosesItsOwnViews(t *testing.T) {
	for _, det := range []bool{false, true} {
		for _, flush := range []bool{false, true} {
			s, err := OpenStore(MemFS(), "state", StoreConfig{Deterministic: det})
			must(t, err)
			put(t, s, "k", "v")
			must(t, s.Snapshot().Close())
			if flush {
				must(t, s.Flush())
				if s.below != nil || s.view != nil {
					t.Errorf("deterministic %v: what was flushed is kept from being removed", det)
				}
			}
			must(t, s.Close())
		}
	}
}
