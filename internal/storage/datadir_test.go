package storage

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

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

// forbiddenLog is forbidden for the files of the raft log alone. skip files are opened before.
type forbiddenLog struct {
	FS
	prefix string
	err    error
	skip   *int
}

func (f forbiddenLog) Open(name string, o ...vfs.OpenOption) (File, error) {
	if f.PathBase(f.PathDir(name)) != "log" || !strings.HasPrefix(f.PathBase(name), f.prefix) {
		return f.FS.Open(name, o...)
	}
	if *f.skip--; *f.skip >= 0 {
		return f.FS.Open(name, o...)
	}
	return forbidden{f.FS, f.prefix, f.err}.Open(name, o...)
}

// dirWithLog returns a closed data directory whose log has three entries of shard 1 and a segment that was not finished.
func dirWithLog(t *testing.T, sc StoreConfig) *vfs.MemFS {
	t.Helper()
	mem := MemFS()
	d, err := OpenDir(mem, "data", shop, LogConfig{}, sc)
	must(t, err)
	must(t, d.Log.Append([]Write{{Shard: 1, Replica: 65537, Entries: entries(1, 3, 1, 40), State: HardState{Term: 1, Commit: 3}}}))
	must(t, d.Close())
	putFile(t, mem, "data/log/"+segmentName(2), []byte("begun"))
	return mem
}

// logFiles returns names and contents of the files of a raft log.
func logFiles(t *testing.T, mem *vfs.MemFS) map[string]string {
	t.Helper()
	names, err := mem.List("data/log")
	must(t, err)
	files := map[string]string{}
	for _, n := range names {
		b, err := readFile(mem, mem.PathJoin("data/log", n), nil, func(int64, int64, error) {})
		must(t, err)
		files[n] = string(b)
	}
	return files
}

// A raft log that the system does not let us open is not damaged: what is in it stays.
func TestOpenDir_LogThatCannotBeOpenedIsNotDamaged(t *testing.T) {
	for _, only := range []bool{false, true} {
		sc := StoreConfig{OnlyCopy: only}
		mem := dirWithLog(t, sc)
		before := logFiles(t, mem)
		for _, e := range []error{syscall.EACCES, syscall.EMFILE} {
			// A segment is opened several times, for this and for that.
			for _, prefix := range []string{"LOG", "0"} {
				for skip := range 8 {
					k := skip
					d, err := OpenDir(forbiddenLog{mem, prefix, e, &k}, "data", shop, LogConfig{}, sc)
					if err == nil {
						if k >= 0 && skip > 0 {
							must(t, d.Close())
							mem = dirWithLog(t, sc)
							before = logFiles(t, mem)
							break // it was opened less often than that
						}
						t.Fatalf("only copy %v, %v on %q after %d: opened, with %+v", only, e, prefix, skip, *d.Recovery)
					}
					if !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "nothing was changed") {
						t.Errorf("only copy %v, %v on %q after %d: %v", only, e, prefix, skip, err)
					}
					if after := logFiles(t, mem); !maps.Equal(after, before) {
						t.Fatalf("only copy %v, %v on %q after %d: files changed", only, e, prefix, skip)
					}
				}
			}
		}
		d, err := OpenDir(mem, "data", shop, LogConfig{}, sc)
		must(t, err)
		if _, last := d.Log.Bounds(1); last != 3 || len(d.Recovery.Damaged) > 0 || d.Recovery.AllSuspect {
			t.Errorf("only copy %v: the log ends at %d, %+v", only, last, *d.Recovery)
		}
		must(t, d.Close())
	}
}

// Where there is no other copy, a raft log that may have lost something is left as it is: the disk may read it the next time.
func TestOpenDir_OnlyCopyOfALogIsLeft(t *testing.T) {
	sc := StoreConfig{OnlyCopy: true}
	mem := dirWithLog(t, sc)
	before := logFiles(t, mem)
	for _, name := range []string{segmentName(1), ""} { // "": all of them
		bad := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileReadAt && mem.PathBase(mem.PathDir(op.Path)) == "log" && strings.HasSuffix(op.Path, name) {
				return syscall.EIO
			}
			return nil
		}))
		if _, err := OpenDir(bad, "data", shop, LogConfig{}, sc); !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), "nothing was changed") {
			t.Fatalf("got %v", err)
		}
		if after := logFiles(t, mem); !maps.Equal(after, before) {
			t.Fatalf("files changed")
		}
	}
	d, err := OpenDir(mem, "data", shop, LogConfig{}, sc)
	must(t, err)
	if _, last := d.Log.Bounds(1); last != 3 || len(d.Recovery.Damaged) > 0 || d.Recovery.AllSuspect {
		t.Errorf("a read error that has passed: the log ends at %d, %+v", last, *d.Recovery)
	}
	must(t, d.Close())

	// Damage by which nothing is lost hinders nobody: checkpoint and header say the same.
	head := []byte(logFiles(t, mem)[segmentName(2)])
	head[40] ^= 1
	putFile(t, mem, "data/log/"+segmentName(2), head)
	d, err = OpenDir(mem, "data", shop, LogConfig{}, sc)
	must(t, err)
	if _, last := d.Log.Bounds(1); last != 3 || len(d.Recovery.Damaged) == 0 {
		t.Errorf("a damaged header: the log ends at %d, %+v", last, *d.Recovery)
	}
	must(t, d.Close())

	// What an earlier start found lost is not believed either.
	for _, seq := range []uint64{1, 2} {
		putFile(t, mem, "data/log/"+segmentName(seq), nil)
	}
	d, err = OpenDir(mem, "data", shop, LogConfig{}, StoreConfig{})
	must(t, err)
	must(t, d.Close())
	if _, err := OpenDir(mem, "data", shop, LogConfig{}, sc); !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), "an earlier start") {
		t.Errorf("got %v", err)
	}
}

// noStat is a file system that does not say whether there is a mark of damage.
type noStat struct{ FS }

func (n noStat) Stat(name string) (vfs.FileInfo, error) {
	if strings.HasSuffix(name, damageMark) {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: syscall.EIO}
	}
	return n.FS.Stat(name)
}

// A mark of damage that cannot be looked for may be there: the state store is neither believed nor emptied.
func TestOpenDir_MarkThatCannotBeLookedFor(t *testing.T) {
	mem := MemFS()
	d, err := OpenDir(mem, "data", shop, LogConfig{}, StoreConfig{})
	must(t, err)
	put(t, d.Store, "k", "v")
	must(t, d.Store.Flush())
	must(t, d.Close())
	if _, err := OpenDir(noStat{mem}, "data", shop, LogConfig{}, StoreConfig{}); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("got %v", err)
	}
	d, err = OpenDir(mem, "data", shop, LogConfig{}, StoreConfig{})
	must(t, err)
	if got := rows(t, d.Store, "", ""); got != "k=v" || d.StoreLost {
		t.Errorf("got %q, lost %v", got, d.StoreLost)
	}
	must(t, d.Close())
}

// A log or a state store that is not there, though it must have been, is on a disk that is not mounted, or was taken away.
func TestOpenDir_HalfADirectoryIsRefused(t *testing.T) {
	for _, c := range []struct {
		part, says string
		only       bool
	}{
		{"log", "a state store and no raft log", false},
		{"log", "a state store and no raft log", true},
		{"state", "a raft log and no state store", false},
	} {
		fs := MemFS()
		part := "data/" + c.part
		open := func() (*Dir, error) { return OpenDir(fs, "data", shop, LogConfig{}, StoreConfig{OnlyCopy: c.only}) }
		d, err := open()
		must(t, err)
		must(t, d.Close())
		if c.part == "log" { // nothing was stored yet
			must(t, fs.RemoveAll(part))
		}
		d, err = open()
		must(t, err)
		b := d.Store.Batch()
		b.Set([]byte("k"), []byte("v"))
		must(t, errors.Join(b.Commit(), d.Store.Flush(), d.Close()))

		must(t, fs.Rename(part, "data/elsewhere"))
		for _, there := range []bool{false, true} { // whether the folder to mount it at is
			if there {
				must(t, fs.MkdirAll(part, 0o755))
			}
			_, err := open()
			if wantKind(t, err, errs.Invalid); !strings.Contains(err.Error(), c.says+"; nothing was changed") {
				t.Errorf("without %s: got %v", c.part, err)
			}
			if names, _ := fs.List(part); len(names) > 0 {
				t.Errorf("without %s it was made: %v", c.part, names)
			}
		}
		must(t, fs.RemoveAll(part))
		must(t, fs.Rename("data/elsewhere", part))
		d, err = open()
		must(t, err)
		if _, ok, err := d.Store.Get([]byte("k")); !ok || err != nil || d.StoreLost {
			t.Errorf("with its %s again: %v, %v, lost %v", c.part, ok, err, d.StoreLost)
		}
		must(t, d.Close())
	}
}

// What is left of a part of a directory is that part: it is not taken for one that is missing.
func TestOpenDir_PartsAreKnownByAnyOfTheirFiles(t *testing.T) {
	mem := MemFS()
	d, err := OpenDir(mem, "data", shop, LogConfig{}, StoreConfig{})
	must(t, err)
	put(t, d.Store, "k", "v")
	must(t, errors.Join(d.Store.Flush(), d.Close()))
	kinds := map[string]func(name string) bool{
		"log/LOG":        func(n string) bool { return n == identityName },
		"log/segments":   func(n string) bool { return strings.HasSuffix(n, segmentSuffix) },
		"state/manifest": func(n string) bool { return strings.HasPrefix(n, "MANIFEST-") },
		"state/markers":  func(n string) bool { return strings.HasPrefix(n, "marker.") },
		"state/tables":   func(n string) bool { return strings.HasSuffix(n, ".sst") },
	}
	for kind, keep := range kinds {
		folder, _, _ := strings.Cut(kind, "/")
		fs := mem.CrashClone(vfs.CrashCloneCfg{})
		names, err := fs.List("data/" + folder)
		must(t, err)
		left := 0
		for _, n := range names {
			if keep(n) {
				left++
			} else {
				must(t, fs.Remove("data/"+folder+"/"+n))
			}
		}
		if left == 0 || left == len(names) {
			t.Fatalf("%s: %d of %v", kind, left, names)
		}
		d := &Dir{fs: fs, path: "data"}
		if err := d.checkState(false); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if folder == "log" {
			must(t, fs.RemoveAll("data/state"))
			if err := d.checkState(false); !errs.Is(err, errs.Invalid) {
				t.Errorf("%s, and no state: %v", kind, err)
			}
			// Its owner may be able to apply all of it again.
			must(t, d.checkState(true))
		}
		if has, err := d.hasLog(); !has || err != nil {
			t.Errorf("%s: there is a log: %v, %v", kind, has, err)
		}
	}
}

// Who has peers is told to fetch what is missing from them, and who has none is not.
func TestOpenDir_AdviceOnWhatIsMissing(t *testing.T) {
	for _, only := range []bool{false, true} {
		fs := MemFS()
		sc := StoreConfig{OnlyCopy: only}
		d, err := OpenDir(fs, "data", shop, LogConfig{}, sc)
		must(t, err)
		put(t, d.Store, "k", "v")
		must(t, errors.Join(d.Store.Flush(), d.Close()))
		must(t, fs.RemoveAll("data/log"))
		_, err = OpenDir(fs, "data", shop, LogConfig{}, sc)
		if err == nil || strings.Contains(err.Error(), "its peers rebuild it") == only || strings.Contains(err.Error(), "restore a copy") != only {
			t.Errorf("only copy %v: %v", only, err)
		}
	}
}

// A mark that the only copy is damaged has it left as it is.
func TestOpenDir_OnlyCopyThatIsMarked(t *testing.T) {
	fs := MemFS()
	d, err := OpenDir(fs, "data", shop, LogConfig{}, StoreConfig{})
	must(t, err)
	put(t, d.Store, "k", "v")
	must(t, errors.Join(d.Store.Flush(), d.MarkDamaged(), d.Close()))
	files := func() []string {
		names, err := fs.List("data/state")
		must(t, err)
		slices.Sort(names)
		return names
	}
	before := files()
	for range 2 {
		_, err := OpenDir(fs, "data", shop, LogConfig{}, StoreConfig{OnlyCopy: true})
		if !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), "an earlier start found it damaged") {
			t.Fatalf("got %v", err)
		}
		if after := files(); !slices.Equal(after, before) {
			t.Fatalf("the state store held %v, now %v", before, after)
		}
	}
}

// A directory that is closed takes nothing more, and says that it was closed in order.
func TestDir_Close(t *testing.T) {
	fs := MemFS()
	d, err := OpenDir(fs, "data", shop, LogConfig{}, StoreConfig{})
	must(t, err)
	must(t, d.Log.Append([]Write{{Shard: 1, Replica: 1}}))
	next := d.Log.next
	must(t, d.Close())
	wantKind(t, d.Log.Append([]Write{{Shard: 1, Replica: 2}}), errs.Unavailable)
	b, err := readFile(fs, "data/log/"+identityName, nil, func(int64, int64, error) {})
	must(t, err)
	if n, err := decodeIdentity(b); err != nil || n.sealed != next {
		t.Errorf("LOG says %+v, %v; the next record would be %d", n, err, next)
	}
	must(t, openFor(fs, "data", shop))
}
