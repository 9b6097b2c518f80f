package storage

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestStore_DamagedTablesAreErrors flips a bit here and there in tables that have rows and deleted ranges: whatever is damaged, reads fail or give
// what was written, and the store can be closed.
func TestStore_DamagedTablesAreErrors(t *testing.T) {
	whole := vfs.NewMem()
	s, err := OpenStore(whole, "state", StoreConfig{Deterministic: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		put(t, s, fmt.Sprintf("k%03d", i), strings.Repeat("v", 20))
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	b := s.Batch()
	b.DeleteRange([]byte("k050"), []byte("k100"))
	b.Set([]byte("k060"), []byte("new"))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := whole.List("state")
	if err != nil {
		t.Fatal(err)
	}
	failed := 0
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") {
			continue
		}
		st, err := whole.Stat("state/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for at := int64(0); at < st.Size(); at += 13 {
			fs := vfs.NewMem()
			if _, err := vfs.Clone(whole, fs, "state", "state"); err != nil {
				t.Fatal(err)
			}
			rot(t, fs, "state/"+name, at)
			s, err := OpenStore(fs, "state", StoreConfig{Deterministic: true})
			if err != nil {
				failed++
				continue
			}
			for _, k := range []string{"k010", "k060", "k070", "k150"} {
				v, ok, err := s.Get([]byte(k))
				want := map[string]string{"k060": "new", "k070": ""}[k]
				if k == "k010" || k == "k150" {
					want = strings.Repeat("v", 20)
				}
				if err != nil {
					failed++
				} else if string(v) != want || ok != (want != "") {
					t.Errorf("%s at %d: %s is %q, %v", name, at, k, v, ok)
				}
			}
			_ = s.Close()
		}
	}
	if failed == 0 {
		t.Error("no damage was found at all")
	}
}
