package storage

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// lose returns what a power cut leaves of a file system that keeps percent of what was not synced.
func lose(fs *vfs.MemFS, percent int, rng *rand.Rand) *vfs.MemFS {
	return fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
}

func openShop(t *testing.T, fs FS) *Dir {
	t.Helper()
	d, err := OpenDir(fs, "data", shop, smallLog(), StoreConfig{})
	must(t, err)
	return d
}

// damagedShop is a data directory whose state store cannot be used.
func damagedShop(t *testing.T) *vfs.MemFS {
	t.Helper()
	fs := MemFS()
	d := openShop(t, fs)
	b := d.Store.Batch()
	b.Set([]byte("k"), []byte("v"))
	must(t, errors.Join(b.Commit(), d.Store.Flush()))
	must(t, d.Log.Append([]Write{{Shard: 1, Replica: 1, Entries: entries(1, 3, 1, 10)}}))
	must(t, errors.Join(d.Log.Sync(), d.Close()))
	names, err := fs.List("data/state")
	must(t, err)
	for _, name := range names {
		if strings.HasPrefix(name, "MANIFEST") {
			putFile(t, fs, "data/state/"+name, []byte("damage in the first record"))
		}
	}
	must(t, syncDir(fs, "data/state"))
	return fs
}

// A state store that was given up is so until the log says what becomes of its replicas, whenever the power fails. From then on it is not given up
// again: in a cluster that has lost power, that would be one copy fewer.
func TestDir_GivenUpUntilItIsRepaired(t *testing.T) {
	for at := 0; ; at++ {
		mem := damagedShop(t)
		rng := rand.New(rand.NewPCG(uint64(at), 1))
		percent := []int{0, 50, 100}[at%3]
		n, repaired := 0, false
		var crashed *vfs.MemFS
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && !repaired {
				if n++; n > at && crashed == nil {
					crashed = lose(mem, percent, rng)
				}
			}
			return nil
		}))
		d := openShop(t, fs)
		if !d.StoreLost {
			t.Fatal("the damage was not found")
		}
		repaired = true
		must(t, d.Repaired())
		after := openShop(t, lose(mem, 0, rng))
		if after.StoreLost {
			t.Fatal("a store that was repaired is given up when the power fails")
		}
		must(t, errors.Join(after.Close(), d.Close()))
		if crashed == nil {
			if at < 10 {
				t.Errorf("only %d operations", at)
			}
			return
		}
		d = openShop(t, crashed)
		if !d.StoreLost {
			t.Fatalf("before operation %d: the damage is forgotten", at)
		}
		must(t, d.Close())
	}
}

// Damage that was found while the node ran is known when the power fails then.
func TestDir_MarkedIsMarkedForGood(t *testing.T) {
	fs := MemFS()
	d := openShop(t, fs)
	must(t, d.MarkDamaged())
	crashed := lose(fs, 0, nil)
	must(t, d.Close())
	if d = openShop(t, crashed); !d.StoreLost {
		t.Error("the mark is lost")
	}
	must(t, d.Close())
}

// What a log has found it has for good, also if the process before did not live to sync it.
func TestOpenLog_WhatItFoundIsThereForGood(t *testing.T) {
	fs := MemFS()
	l := mustOpen(t, fs, smallLog())
	must(t, l.Append([]Write{{Shard: 1, Replica: 1, Entries: entries(1, 3, 1, 10)}}))
	// The process is gone; the system writes what it has in its cache when it likes.
	l = mustOpen(t, fs, smallLog())
	if _, last := l.Bounds(1); last != 3 {
		t.Fatalf("it found entries up to %d", last)
	}
	l = mustOpen(t, lose(fs, 0, nil), smallLog())
	if _, last := l.Bounds(1); last != 3 {
		t.Errorf("after a power cut there are entries up to %d", last)
	}
	must(t, l.Close())
}
