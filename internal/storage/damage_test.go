package storage

import (
	"errors"
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

// The first damage is the one that is told of.
func TestStore_FirstDamageStays(t *testing.T) {
	s := openTestStore(t, MemFS(), StoreConfig{})
	first := errors.New("first")
	if err := s.damaged(first); !errors.Is(err, first) {
		t.Errorf("got %v", err)
	}
	_ = s.damaged(errors.New("second"))
	if err := s.Err(); !errors.Is(err, first) {
		t.Errorf("got %v, want the first", err)
	}
}

// A store that was removed does not come back with a crash.
func TestRemoveStore_IsDurable(t *testing.T) {
	fs := MemFS()
	storeOnDisk(t, fs, "data/state", "k", "v")
	must(t, syncDir(fs, "data"))
	if names, err := fs.CrashClone(vfs.CrashCloneCfg{}).List("data/state"); err != nil || len(names) == 0 {
		t.Fatalf("the store would not be there after a crash: %v", err)
	}
	must(t, RemoveStore(fs, "data/state"))
	if names, err := fs.CrashClone(vfs.CrashCloneCfg{}).List("data/state"); err == nil {
		t.Errorf("after a crash %q are there again", names)
	}
}

// Whoever closes a store leaves no goroutine that looks at it.
func TestStore_CloseEndsTheBacklog(t *testing.T) {
	s, err := OpenStore(MemFS(), "state", StoreConfig{})
	must(t, err)
	must(t, s.Close())
	select {
	case <-s.backlog.done:
	default:
		t.Error("the store is closed, and its figures are still asked for")
	}
}
