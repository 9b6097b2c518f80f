package storage

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
)

// exhausted is the disk of a process that has run out of descriptors while on is set.
type exhausted struct {
	FS
	on *atomic.Bool
}

func (f exhausted) Open(name string, o ...vfs.OpenOption) (File, error) {
	if f.on.Load() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EMFILE}
	}
	return f.FS.Open(name, o...)
}

// readOnly is a disk that fails to make, or to rename, files of the state store that are named like that.
type readOnly struct {
	FS
	part string
}

var errWrite = &fs.PathError{Op: "write", Path: "data/state", Err: syscall.EIO}

func (f readOnly) fails(name string) bool {
	return strings.Contains(name, "data/state") && strings.Contains(name, f.part)
}

func (f readOnly) Create(name string, c vfs.DiskWriteCategory) (File, error) {
	if f.fails(name) {
		return nil, errWrite
	}
	return f.FS.Create(name, c)
}

func (f readOnly) Rename(from, to string) error {
	if f.fails(to) {
		return errWrite
	}
	return f.FS.Rename(from, to)
}

func (f readOnly) MkdirAll(dir string, perm os.FileMode) error {
	if f.fails(dir) {
		return errWrite
	}
	return f.FS.MkdirAll(dir, perm)
}

// A disk that fails to write when a state store is opened says nothing of what is in it.
func TestOpenDir_WhatCannotBeWrittenIsNotDamaged(t *testing.T) {
	mem := MemFS()
	owner := Owner{Cluster: "shop", Node: 1, Shards: 1}
	d, err := OpenDir(mem, "data", owner, LogConfig{}, StoreConfig{})
	must(t, err)
	put(t, d.Store, "k", "v")
	must(t, errors.Join(d.Store.Flush(), d.Close()))
	for _, part := range []string{"state", ".dbtmp", "OPTIONS", ".log"} {
		d, err := OpenDir(readOnly{mem.CrashClone(vfs.CrashCloneCfg{}), part}, "data", owner, LogConfig{}, StoreConfig{})
		if !errs.Is(err, errs.Unavailable) {
			t.Errorf("%s: got %v", part, err)
		}
		if err == nil {
			t.Errorf("%s: lost %v", part, d.StoreLost)
			must(t, d.Close())
		}
	}
	d, err = OpenDir(mem, "data", owner, LogConfig{}, StoreConfig{})
	must(t, err)
	if got := rows(t, d.Store, "", ""); got != "k=v" || d.StoreLost {
		t.Errorf("got %q, lost %v", got, d.StoreLost)
	}
	must(t, d.Close())
}

// What reads the tables of a process that has run out of descriptors finds no damage.
func TestStore_OutOfDescriptorsIsNotDamage(t *testing.T) {
	for _, size := range []int{10, 4 * blobValueBytes} {
		on := &atomic.Bool{}
		s := openTestStore(t, exhausted{MemFS(), on}, StoreConfig{})
		put(t, s, "k", strings.Repeat("v", size))
		must(t, s.Flush())
		on.Store(true)
		_, _, get := s.Get([]byte("k"))
		var scan error
		for range s.Scan([]byte("a"), []byte("z"), &scan) {
			continue
		}
		b := s.Batch()
		b.DeleteRange([]byte("a"), []byte("z"))
		for what, err := range map[string]error{
			"get": get, "scan": scan, "delete": b.Commit(), "verify": s.Verify(), "verify tables": s.VerifyTables(func(int) error { return nil }),
		} {
			if !errs.Is(err, errs.Unavailable) {
				t.Errorf("size %d, %s: %v, of kind %v", size, what, err, errs.KindOf(err))
			}
		}
		if err := s.Err(); err != nil {
			t.Errorf("size %d: %v", size, err)
		}
		on.Store(false)
		if got := rows(t, s, "", ""); got != "k="+strings.Repeat("v", size) {
			t.Errorf("size %d: afterwards there are %d bytes", size, len(got))
		}
	}
}
