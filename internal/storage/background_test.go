package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
)

// badDisk fails to write that many times what tables hold, merges counting those of merges only; tables counts those that were begun.
type badDisk struct {
	FS
	writes, merges, tables atomic.Int64
	noDirs                 atomic.Bool
	err                    error
}

type badFile struct {
	File
	d     *badDisk
	merge bool
}

func (d *badDisk) Create(name string, c vfs.DiskWriteCategory) (File, error) {
	f, err := d.FS.Create(name, c)
	if err != nil || !strings.HasSuffix(name, ".sst") {
		return f, err
	}
	d.tables.Add(1)
	return badFile{f, d, c != flushCategory}, nil
}

func (f badFile) Write(b []byte) (int, error) {
	if f.d.writes.Add(-1) >= 0 || f.merge && f.d.merges.Add(-1) >= 0 {
		return 0, f.d.err
	}
	return f.File.Write(b)
}

const always = 1 << 40

func (d *badDisk) OpenDir(name string) (File, error) {
	f, err := d.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return badDir{f, d}, nil
}

// badDir is a directory on such a disk, whose syncs fail while noDirs says so.
type badDir struct {
	File
	d *badDisk
}

func (f badDir) Sync() error {
	if f.d.noDirs.Load() {
		return f.d.err
	}
	return f.File.Sync()
}

func openOnBadDisk(t *testing.T, err error) (*Store, *badDisk) {
	t.Helper()
	d := &badDisk{FS: MemFS(), err: err}
	s := openTestStore(t, d, StoreConfig{})
	s.background.first = time.Microsecond
	return s, d
}

// A disk that takes no tables is tried a few times, and then the store has failed: with an error that has nothing wiped.
func TestStore_DiskThatTakesNoTables(t *testing.T) {
	for _, e := range []error{syscall.EIO, syscall.ENOSPC} {
		s, d := openOnBadDisk(t, e)
		put(t, s, "a", "1")
		must(t, s.Flush())
		put(t, s, "b", "2")
		before := d.tables.Load()
		d.writes.Store(always)
		if err := s.Flush(); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "See to its room") {
			t.Errorf("%v: flush: %v", e, err)
		}
		if err := s.Err(); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), e.Error()) {
			t.Errorf("%v: the store says %v", e, err)
		}
		if n := d.tables.Load() - before; n != attemptsMax {
			t.Errorf("%v: %d attempts, want %d", e, n, attemptsMax)
		}
		b := s.Batch()
		b.Set([]byte("c"), []byte("3"))
		if err := b.Commit(); !errs.Is(err, errs.Unavailable) {
			t.Errorf("%v: commit: %v", e, err)
		}
		if got := rows(t, s, "", ""); got != "a=1 b=2" {
			t.Errorf("%v: the store holds %q", e, got)
		}
	}
}

// So it is with a disk that takes tables, and not that they are there.
func TestStore_DiskThatTakesNoNames(t *testing.T) {
	s, d := openOnBadDisk(t, syscall.EIO)
	put(t, s, "a", "1")
	must(t, s.Flush())
	put(t, s, "b", "2")
	before := d.tables.Load()
	d.noDirs.Store(true)
	if err := s.Flush(); !errs.Is(err, errs.Unavailable) || !errs.Is(s.Err(), errs.Unavailable) {
		t.Errorf("flush: %v; the store says %v", err, s.Err())
	}
	if n := d.tables.Load() - before; n != attemptsMax {
		t.Errorf("%d attempts, want %d", n, attemptsMax)
	}
	if got := rows(t, s, "", ""); got != "a=1 b=2" {
		t.Errorf("the store holds %q", got)
	}
}

// A disk that recovers is forgiven.
func TestStore_DiskThatTakesTablesAgain(t *testing.T) {
	s, d := openOnBadDisk(t, syscall.ENOSPC)
	for range 3 {
		put(t, s, "a", "1")
		d.writes.Store(attemptsMax - 1)
		must(t, s.Flush())
	}
	if err := s.Err(); err != nil {
		t.Error(err)
	}
	for range attemptsMax { // there is nothing to write, which is no failure
		must(t, s.Flush())
	}
	if err := s.Err(); err != nil {
		t.Error(err)
	}
}

// Merges that fail for good end the node as well.
func TestStore_DiskThatTakesNoMergedTables(t *testing.T) {
	s, d := openOnBadDisk(t, syscall.ENOSPC)
	// Pebble may begin as soon as there is something to merge.
	d.merges.Store(always)
	for _, v := range []string{"1", "2"} {
		put(t, s, "a", v)
		must(t, s.Flush())
	}
	// Pebble merges, and tries again by itself, until the context ends.
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-s.background.broken
		cancel()
	}()
	if err := s.db.Compact(ctx, []byte{0}, bytes.Repeat([]byte{0xff}, 16), false); err == nil {
		t.Fatal("merged")
	}
	if err := s.Err(); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "See to its room") {
		t.Errorf("the store says %v", err)
	}
}

// Only what the disk cannot read is damage.
func TestBackground_WhatIsDamage(t *testing.T) {
	for _, c := range []struct {
		err  error
		want errs.Kind
	}{
		{fmt.Errorf("merge: %w", wroteWith(syscall.EIO)), errs.Unavailable},
		{fmt.Errorf("merge: %w", syscall.EIO), errs.Corrupt},
		{fmt.Errorf("merge: %w", syscall.EMFILE), errs.Unavailable},
		{errors.New("anything"), errs.Unavailable},
	} {
		s := openTestStore(t, MemFS(), StoreConfig{})
		for range attemptsMax {
			if err := s.Err(); err != nil {
				t.Fatalf("%v: early: %v", c.err, err)
			}
			s.background.ended(&s.background.merges, pebble.ErrCancelledCompaction)
			s.background.ended(&s.background.merges, c.err)
		}
		if err := s.Err(); !errs.Is(err, c.want) || !errors.Is(err, c.err) {
			t.Errorf("%v: the store says %v, of kind %v", c.err, err, errs.KindOf(err))
		}
	}
}

// badList is a disk that takes no manifest while no says so.
type badList struct {
	FS
	no atomic.Bool
}

type badListFile struct {
	File
	d *badList
}

func (d *badList) Create(name string, c vfs.DiskWriteCategory) (File, error) {
	f, err := d.FS.Create(name, c)
	if err == nil && strings.Contains(name, "MANIFEST") {
		f = badListFile{f, d}
	}
	return f, err
}

func (f badListFile) Write(b []byte) (int, error) {
	if f.d.no.Load() {
		return 0, syscall.ENOSPC
	}
	return f.File.Write(b)
}

// Pebble does not go on without its manifest. Then the node is told why, and ends.
func TestStore_DiskThatTakesNoManifest(t *testing.T) {
	d := &badList{FS: MemFS()}
	why := make(chan error)
	s, err := OpenStore(d, "state", StoreConfig{Fatal: func(err error) {
		why <- err
		select {} // as the process ends
	}})
	must(t, err)
	b := s.Batch()
	b.Set([]byte("k"), []byte("v"))
	must(t, b.Commit())
	d.no.Store(true)
	go s.Flush() //nolint:errcheck // it does not return
	if err := <-why; !errs.Is(err, errs.Unavailable) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
}
