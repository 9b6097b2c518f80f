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
	fs := MemFS()
	s, err := OpenStore(fs, "state", StoreConfig{Deterministic: true})
	if err != nil {
		t.Fatal(err)
	}
	old := strings.Repeat("v", 20)
	for i := range 200 {
		put(t, s, fmt.Sprintf("k%03d", i), old)
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
	clean := fs.CrashClone(vfs.CrashCloneCfg{})
	failed := 0
	for _, name := range tables(t, clean) {
		st, err := clean.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		for at := int64(0); at < st.Size(); at += 13 {
			fs := clean.CrashClone(vfs.CrashCloneCfg{})
			rot(t, fs, name, at)
			s, err := OpenStore(fs, "state", StoreConfig{Deterministic: true})
			if err != nil {
				failed++
				continue
			}
			for k, want := range map[string]string{"k010": old, "k060": "new", "k070": "", "k150": old} {
				v, ok, err := s.Get([]byte(k))
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
