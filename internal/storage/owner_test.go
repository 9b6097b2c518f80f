package storage

import (
	"bytes"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/quorate/quorate/internal/errs"
)

var shop = Owner{Cluster: "shop", Node: 2, Shards: 4}

// openFor opens a data directory, and closes it again if that worked.
func openFor(fs FS, dir string, o Owner) error {
	d, err := OpenDir(fs, dir, o, LogConfig{}, StoreConfig{})
	if err != nil {
		return err
	}
	return d.Close()
}

func TestOpenDir_RefusesAnotherOwner(t *testing.T) {
	fs := MemFS()
	must(t, openFor(fs, "data", shop))
	must(t, openFor(fs, "data", shop))
	f := func(o Owner, want ...string) {
		t.Helper()
		err := openFor(fs, "data", o)
		if !errs.Is(err, errs.Invalid) {
			t.Fatalf("%v: got %v, want Invalid", o, err)
		}
		for _, w := range append(want, "data directory data", shop.String(), o.String()) {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%v: %v does not say %q", o, err, w)
			}
		}
	}
	f(Owner{Cluster: "shop", Node: 2, Shards: 1}, "set shards back to 4")
	f(Owner{Cluster: "shop", Node: 3, Shards: 4}, "a directory of its own")
	f(Owner{Cluster: "depot", Node: 2, Shards: 4}, "a directory of its own")
	// The name has the spaces in it.
	f(Owner{Cluster: "shop with spaces depot", Node: 2, Shards: 4}, "correct cluster, node and spaces")
	must(t, openFor(fs, "data", shop))
}

func TestOpenDir_OwnerIsThereBeforeAnythingElse(t *testing.T) {
	fs := MemFS()
	must(t, fs.MkdirAll("data", 0o755))
	must(t, syncDir(fs, ""))
	d := &Dir{fs: fs, path: "data"}
	must(t, d.claim(shop))
	// Nothing was made but OWNER, and a crash now loses nothing of it.
	after := fs.CrashClone(vfs.CrashCloneCfg{})
	names, err := after.List("data")
	must(t, err)
	if !slices.Equal(names, []string{ownerName}) {
		t.Errorf("the directory holds %v", names)
	}
	if err := openFor(after, "data", Owner{Cluster: "shop", Node: 2, Shards: 8}); !errs.Is(err, errs.Invalid) {
		t.Errorf("another owner after the crash: %v", err)
	}
	must(t, openFor(after, "data", shop))
}

func TestOpenDir_WithoutOwnerIsClaimed(t *testing.T) {
	fs := MemFS()
	must(t, openFor(fs, "data", shop))
	must(t, fs.Remove("data/OWNER"))
	must(t, openFor(fs, "data", Owner{Cluster: "shop", Node: 2, Shards: 5}))
	if err := openFor(fs, "data", shop); !errs.Is(err, errs.Invalid) {
		t.Errorf("got %v, want Invalid", err)
	}
}

func TestOpenDir_RefusesADirectoryOfOthers(t *testing.T) {
	f := func(refused string, names ...string) {
		t.Helper()
		dir := t.TempDir()
		for _, n := range names {
			must(t, os.Mkdir(filepath.Join(dir, n), 0o755))
		}
		err := openFor(OSFS(), dir, shop)
		if refused == "" {
			if err != nil {
				t.Errorf("with %q: %v", names, err)
			}
			return
		}
		if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "such as "+refused+";") || !strings.Contains(err.Error(), dir) {
			t.Errorf("with %q: got %v, want Invalid with the name of %s", names, err, refused)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != len(names) {
			t.Errorf("with %q: something was made: %v %v", names, left, err)
		}
	}
	f("member", "member")
	f("etc", "tmp", "etc", "log")
	f("notes", "lost+found", "notes")
	f("")
	f("", "lost+found", ".snapshot")
	// A start that a crash cut short, and a snapshot that it left; a directory of which OWNER was removed.
	f("", "OWNER.tmp", "quorate-snapshot-1")
	f("", "log", "state")
	// Whatever is put there later is not looked at.
	dir := t.TempDir()
	must(t, openFor(OSFS(), dir, shop))
	must(t, os.WriteFile(filepath.Join(dir, "notes"), nil, 0o644))
	must(t, openFor(OSFS(), dir, shop))
}

// TestOpenDir_OwnerOnPowerFS runs where unsynced bytes are lost: what was not synced is not in the file below.
func TestOpenDir_OwnerOnPowerFS(t *testing.T) {
	dir := t.TempDir()
	must(t, openFor(PowerFS(OSFS()), dir, shop))
	b, err := os.ReadFile(filepath.Join(dir, ownerName))
	must(t, err)
	if !bytes.Equal(b, shop.encode()) {
		t.Errorf("the file holds %q, want %q", b, shop.encode())
	}
	must(t, openFor(PowerFS(OSFS()), dir, shop))
}

func TestOpenDir_DamagedOwner(t *testing.T) {
	dir := t.TempDir()
	must(t, openFor(OSFS(), dir, shop))
	name := filepath.Join(dir, ownerName)
	good := shop.encode()
	f := func(b []byte, kind errs.Kind, want string) {
		t.Helper()
		must(t, os.WriteFile(name, b, 0o644))
		err := openFor(OSFS(), dir, shop)
		if !errs.Is(err, kind) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: got %v, want %v with %q", b, err, kind, want)
		}
		if damaged := kind == errs.Corrupt; errors.Is(err, ErrOwnerDamaged) != damaged {
			t.Errorf("%q: ErrOwnerDamaged in the chain is %v", b, !damaged)
		}
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 4
		f(b, errs.Corrupt, "cluster, node, shards and spaces in the configuration are what they were, remove the file and start again")
	}
	for n := range good {
		f(good[:n], errs.Corrupt, "remove the file and start again")
	}
	f(append(bytes.Clone(good), 0), errs.Corrupt, "remove the file")
	later := bytes.Clone(good[:len(good)-4])
	later[8] = 2
	f(le.AppendUint32(later, crc32.Checksum(later, castagnoli)), errs.Unsupported, "later one")
	other := append([]byte("QROTHER1"), good[8:len(good)-4]...)
	f(le.AppendUint32(other, crcOf(other)), errs.Corrupt, "remove the file")
	longer := append(bytes.Clone(good[:len(good)-4]), 's')
	f(le.AppendUint32(longer, crcOf(longer)), errs.Corrupt, "remove the file")
	must(t, os.Remove(name))
	must(t, openFor(OSFS(), dir, shop))
}

// A directory that does not let us read whose it is stays what it is.
func TestOpenDir_OwnerThatCannotBeRead(t *testing.T) {
	for _, name := range []string{ownerName, membersName} {
		fs := MemFS()
		must(t, openFor(fs, "data", shop.of("1, 2")))
		for _, e := range []error{syscall.EMFILE, syscall.EACCES, syscall.EIO} {
			err := openFor(forbidden{fs, name, e}, "data", shop.of("1, 2"))
			if !errs.Is(err, errs.Invalid) || !errors.Is(err, e) || errors.Is(err, ErrOwnerDamaged) || !strings.Contains(err.Error(), "data/"+name) {
				t.Errorf("%s: %v: got %v", name, e, err)
			}
		}
		must(t, openFor(fs, "data", shop.of("1, 2")))
	}
}

// Whichever step fails by which a directory becomes somebody's, that is said, and then it is either theirs or still nobody's.
func TestOpenDir_ClaimFails(t *testing.T) {
	full := errors.New("no more of that")
	for at := range 100 {
		mem, n := MemFS(), 0
		must(t, mem.MkdirAll("data", 0o755))
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			small := strings.HasPrefix(mem.PathBase(op.Path), ownerName) || strings.HasPrefix(mem.PathBase(op.Path), membersName)
			if !small && op.Kind != errorfs.OpFileSync || op.Kind.ReadOrWrite() == errorfs.OpIsRead {
				return nil
			}
			if n++; n == at+1 {
				return full
			}
			return nil
		}))
		d := &Dir{fs: fs, path: "data"}
		err := d.claim(shop)
		if err == nil {
			err = d.claimMembers("1, 2")
		}
		if n <= at {
			must(t, err)
			if at < 8 {
				t.Errorf("only %d steps", at)
			}
			break
		}
		if !errs.Is(err, errs.Invalid) || !errors.Is(err, full) {
			t.Fatalf("step %d of %d: got %v", at, n, err)
		}
		for _, fs := range []*vfs.MemFS{mem, mem.CrashClone(vfs.CrashCloneCfg{})} {
			must(t, openFor(fs, "data", shop.of("1, 2")))
		}
	}
}

func TestOpenDir_OwnerWithALongName(t *testing.T) {
	fs := MemFS()
	long := Owner{Cluster: strings.Repeat("s", 1<<16-1), Node: 2, Shards: 4}
	must(t, openFor(fs, "data", long))
	must(t, openFor(fs, "data", long))
	long.Cluster += "s"
	if err := openFor(fs, "other", long); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "65536 bytes") {
		t.Errorf("got %v", err)
	}
	if names, err := fs.List("other"); slices.Contains(names, ownerName) {
		t.Errorf("there are %v, %v", names, err)
	}
}

func FuzzOwner(f *testing.F) {
	f.Add(shop.encode())
	f.Add([]byte(ownerMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := decodeOwner(b); err == nil && !bytes.Equal(o.encode(), b) {
			t.Errorf("%q became %v", b, o)
		}
	})
}
