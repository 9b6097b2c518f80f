package storage

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
)

// writtenFS counts what is written to files, by the ends of their names.
type writtenFS struct {
	FS
	tables, blobs atomic.Int64
}

type writtenFile struct {
	File
	n *atomic.Int64
}

func (w *writtenFS) Create(name string, c vfs.DiskWriteCategory) (File, error) {
	f, err := w.FS.Create(name, c)
	switch {
	case err != nil:
	case strings.HasSuffix(name, ".sst"):
		return &writtenFile{f, &w.tables}, nil
	case strings.HasSuffix(name, blobSuffix):
		return &writtenFile{f, &w.blobs}, nil
	}
	return f, err
}

func (f *writtenFile) Write(b []byte) (int, error) {
	f.n.Add(int64(len(b)))
	return f.File.Write(b)
}

// noise is a value that does not compress.
func noise(r *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// However often rows are merged, a large value is written once.
func TestBlob_LargeValuesAreWrittenOnce(t *testing.T) {
	fs := &writtenFS{FS: MemFS()}
	s := openTestStore(t, fs, StoreConfig{MemTableBytes: 1 << 20})
	r := rand.New(rand.NewPCG(1, 2))
	const n, size = 4000, 4 << 10
	want := map[string]string{}
	for i := range n {
		// Keys come in no order, so that each table has some of all.
		k, v := fmt.Sprintf("%08x", uint32(i)*2654435761), noise(r, size)
		want[k] = v
		put(t, s, k, v)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if blobs := fs.blobs.Load(); blobs < n*size || blobs > n*size*5/4 {
		t.Errorf("%d bytes of values were written as %d", n*size, blobs)
	}
	if tables := fs.tables.Load(); tables > n*size/4 {
		t.Errorf("%d bytes of tables for %d rows whose values are elsewhere", tables, n)
	}
	var err error
	got := 0
	for k, v := range s.Scan(nil, nil, &err) {
		if got++; want[string(k)] != string(v) {
			t.Fatalf("key %s has another value", k)
		}
	}
	if got != n || err != nil {
		t.Errorf("%d rows of %d, %v", got, n, err)
	}
	for k, w := range want {
		if v, ok, err := s.Get([]byte(k)); err != nil || !ok || string(v) != w {
			t.Fatalf("get %s: %d bytes, %v %v", k, len(v), ok, err)
		}
	}
	if err := s.Verify(); err != nil {
		t.Error(err)
	}
}

// heldFS is a disk on which blob files are not synced while the lock is held.
type heldFS struct {
	FS
	syncs   sync.RWMutex
	waiting chan struct{}
}

type heldFile struct {
	File
	fs *heldFS
}

func (h *heldFS) Create(name string, c vfs.DiskWriteCategory) (File, error) {
	f, err := h.FS.Create(name, c)
	if err != nil || !strings.HasSuffix(name, blobSuffix) {
		return f, err
	}
	return &heldFile{f, h}, nil
}

func (f *heldFile) SyncData() error {
	select {
	case f.fs.waiting <- struct{}{}:
	default:
	}
	f.fs.syncs.RLock()
	defer f.fs.syncs.RUnlock()
	return f.File.SyncData()
}

// leave makes a file that was begun and never synced.
func leave(t *testing.T, fs FS, name string) {
	t.Helper()
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = io.WriteString(f, "begun")
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A blob file that is still being written is not taken for a damaged one, and neither is one that was given up; one that ends early is.
func TestBlob_UnfinishedIsNotDamage(t *testing.T) {
	fs := &heldFS{FS: MemFS(), waiting: make(chan struct{}, 1)}
	s := openTestStore(t, fs, StoreConfig{})
	put(t, s, "a", strings.Repeat("a", 2*blobValueBytes))
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	<-fs.waiting
	fs.syncs.Lock()
	put(t, s, "b", strings.Repeat("b", 2*blobValueBytes))
	done, err := s.FlushStart()
	if err != nil {
		t.Fatal(err)
	}
	<-fs.waiting
	if names := stateFiles(t, fs, blobSuffix); len(names) != 2 {
		t.Fatalf("files: %v", names)
	}
	if err := s.Verify(); err != nil {
		t.Errorf("while a file is written: %v", err)
	}
	fs.syncs.Unlock()
	if err := s.await(done); err != nil {
		t.Fatal(err)
	}
	// As if it were given up by a merge that failed: closed, never synced.
	leave(t, s.fs, "state/999998.blob")
	if err := s.Verify(); err != nil {
		t.Errorf("a file that was given up: %v", err)
	}
	if err := s.fs.Remove("state/999998.blob"); err != nil {
		t.Fatal(err)
	}
	if len(s.fs.unfinished) != 0 {
		t.Errorf("unfinished: %v", s.fs.unfinished)
	}
	leave(t, fs.FS, "state/999999.blob")
	if err := s.Verify(); err == nil {
		t.Error("a file that ends early passed")
	}
}

// Damage that a merge comes upon, which writes values again, is an error of the store. Pebble would panic on it in a goroutine of its own.
func TestBlob_DamageMetByAMerge(t *testing.T) {
	for _, fromEnd := range []int64{1, blobFooterBytes + 1, 0} {
		fs := MemFS()
		s, err := OpenStore(fs, "state", StoreConfig{Deterministic: true})
		if err != nil {
			t.Fatal(err)
		}
		// Files that overlap, more than a table may refer to.
		fill := func(round int) error {
			for i := range 20 {
				put(t, s, fmt.Sprintf("key%02d%d", i, round), strings.Repeat("v", 100))
			}
			return s.Flush()
		}
		if err := fill(0); err != nil {
			t.Fatal(err)
		}
		fs = fs.CrashClone(vfs.CrashCloneCfg{})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		name := stateFiles(t, fs, blobSuffix)[0]
		at := int64(10)
		if fromEnd > 0 {
			st, err := fs.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			at = st.Size() - fromEnd
		}
		rot(t, fs, name, at)
		if s, err = OpenStore(fs, "state", StoreConfig{Deterministic: true}); err != nil {
			t.Fatal(err)
		}
		for round := 1; err == nil && round < 10*stepFlushes; round++ {
			err = fill(round)
		}
		if !errs.Is(err, errs.Corrupt) || !errs.Is(s.Err(), errs.Corrupt) {
			t.Errorf("byte %d: merged with %v, and the store says %v", at, err, s.Err())
		}
		_ = s.Close()
	}
}

// A blob file that has lost bytes, or is missing, is damage like any other, and found as early as that of a table.
func TestStore_ShortOrMissingBlobFileIsDamage(t *testing.T) {
	fs := MemFS()
	s := openTestStore(t, fs, StoreConfig{})
	put(t, s, "k", strings.Repeat("v", 2*blobValueBytes))
	must(t, s.Flush())
	clean := fs.CrashClone(vfs.CrashCloneCfg{})
	name := stateFiles(t, clean, blobSuffix)[0]
	whole, err := clean.UnsafeGetFileDataBuffer(name)
	must(t, err)
	for _, length := range []int{-1, 0, 20, blobFooterBytes - 1, blobFooterBytes, len(whole) - 1} { // -1: missing
		harm := func(fs *vfs.MemFS) {
			if length < 0 {
				must(t, fs.Remove(name))
			} else {
				putFile(t, fs, name, whole[:length])
			}
		}
		fs := clean.CrashClone(vfs.CrashCloneCfg{})
		harm(fs)
		if _, err := OpenStore(fs, "state", StoreConfig{}); !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), name) {
			t.Errorf("blob file of %d bytes: opened, %v", length, err)
		}
		// While the store is open, whoever reads the value comes upon it, or the check that reads everything.
		for _, read := range []func(s *Store) error{
			func(s *Store) error { _, _, err := s.Get([]byte("k")); return err },
			func(s *Store) error { return s.VerifyTables(func(int) error { return nil }) },
		} {
			fs := clean.CrashClone(vfs.CrashCloneCfg{})
			s := openTestStore(t, fs, StoreConfig{})
			harm(fs)
			if err := read(s); !errs.Is(err, errs.Corrupt) {
				t.Errorf("blob file of %d bytes: got %v", length, err)
			}
		}
	}
}
