package storage

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
)

func TestDir_DamageFoundMeanwhileStaysMarked(t *testing.T) {
	fs := MemFS()
	open := func() *Dir {
		d, err := OpenDir(fs, "data", shop, LogConfig{}, StoreConfig{})
		must(t, err)
		return d
	}
	d := open()
	must(t, d.MarkDamaged())
	must(t, d.Close())
	// It has been emptied, and is found to be damaged again before the log has noted the first time.
	d = open()
	if !d.StoreLost {
		t.Fatalf("a marked store was opened")
	}
	must(t, d.MarkDamaged())
	must(t, d.Repaired())
	must(t, d.Close())
	d = open()
	if !d.StoreLost {
		t.Errorf("the second damage is forgotten")
	}
	must(t, d.Repaired())
	must(t, d.Close())
	if d = open(); d.StoreLost {
		t.Errorf("a repaired store was emptied")
	}
	must(t, d.Close())
}

// Where there is no other copy, a state store that cannot be used is left as it is, for whoever can still get something from it.
func TestOpenDir_OnlyCopyIsNotEmptied(t *testing.T) {
	fs := MemFS()
	owner := Owner{Cluster: "t", Node: 1, Shards: 1}
	d, err := OpenDir(fs, "data", owner, LogConfig{}, StoreConfig{OnlyCopy: true})
	if err != nil {
		t.Fatal(err)
	}
	b := d.Store.Batch()
	b.Set([]byte("k"), []byte("v"))
	if err := errors.Join(b.Commit(), d.Store.Flush(), d.Close()); err != nil {
		t.Fatal(err)
	}
	list := func() []string {
		t.Helper()
		names, err := fs.List("data/state")
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		return names
	}
	for _, name := range list() {
		if !strings.HasPrefix(name, "MANIFEST") {
			continue
		}
		f, err := fs.OpenReadWrite("data/state/"+name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("damage in the first record"), 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	before := list()
	for range 2 {
		if _, err := OpenDir(fs, "data", owner, LogConfig{}, StoreConfig{OnlyCopy: true}); !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), "Restore a copy") {
			t.Fatalf("got %v", err)
		}
		if after := list(); !slices.Equal(after, before) {
			t.Errorf("the state store held %v, now %v", before, after)
		}
	}
	d, err = OpenDir(fs, "data", owner, LogConfig{}, StoreConfig{})
	if err != nil || !d.StoreLost {
		t.Fatalf("with peers: %+v, %v", d, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// forbidden is a file system that lets nobody open what names begin with.
type forbidden struct {
	FS
	prefix string
	err    error
}

func (f forbidden) Open(name string, o ...vfs.OpenOption) (File, error) {
	if strings.HasPrefix(f.PathBase(name), f.prefix) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: f.err}
	}
	return f.FS.Open(name, o...)
}

// A state store that the system does not let us open is not damaged: what is in it stays.
func TestOpenDir_WhatCannotBeOpenedIsNotDamaged(t *testing.T) {
	mem := MemFS()
	owner := Owner{Cluster: "shop", Node: 1, Shards: 1}
	d, err := OpenDir(mem, "data", owner, LogConfig{}, StoreConfig{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, d.Store, "k", "v")
	if err := errors.Join(d.Store.Flush(), d.Close()); err != nil {
		t.Fatal(err)
	}
	for _, e := range []error{syscall.EACCES, syscall.EMFILE, syscall.ENOSPC} {
		_, err := OpenDir(forbidden{mem, "MANIFEST", e}, "data", owner, LogConfig{}, StoreConfig{})
		if !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "nothing was changed") {
			t.Errorf("%v: got %v", e, err)
		}
	}
	// A bad sector is damage.
	if d, err = OpenDir(forbidden{mem.CrashClone(vfs.CrashCloneCfg{}), "MANIFEST", syscall.EIO}, "data", owner, LogConfig{}, StoreConfig{}); err == nil {
		if !d.StoreLost {
			t.Error("a store that cannot be read is believed")
		}
		_ = d.Close()
	}
	if d, err = OpenDir(mem, "data", owner, LogConfig{}, StoreConfig{}); err != nil {
		t.Fatal(err)
	}
	if got := rows(t, d.Store, "", ""); got != "k=v" || d.StoreLost {
		t.Errorf("got %q, lost %v", got, d.StoreLost)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}
