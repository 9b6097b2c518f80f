package storage

import (
	"fmt"
	"strings"
	"sync"
	"testing"
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
