package storage

import (
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/quorate/quorate/internal/errs"
)

// countedFS counts the files that are open.
type countedFS struct {
	FS
	open atomic.Int64
}

type countedFile struct {
	File
	fs     *countedFS
	closed atomic.Bool
}

func (o *countedFS) count(f File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	o.open.Add(1)
	return &countedFile{File: f, fs: o}, nil
}

func (o *countedFS) Create(name string, c vfs.DiskWriteCategory) (File, error) {
	return o.count(o.FS.Create(name, c))
}

func (o *countedFS) Open(name string, opts ...vfs.OpenOption) (File, error) {
	return o.count(o.FS.Open(name, opts...))
}

func (o *countedFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (File, error) {
	return o.count(o.FS.OpenReadWrite(name, c, opts...))
}

func (o *countedFS) OpenDir(name string) (File, error) { return o.count(o.FS.OpenDir(name)) }

func (f *countedFile) Close() error {
	if !f.closed.Swap(true) {
		f.fs.open.Add(-1)
	}
	return f.File.Close()
}

// Whatever fails, and wherever, a log that is closed or was not opened has no file open: a node that tries again and again would run out of them.
func TestLog_LeavesNoFileOpen(t *testing.T) {
	for _, read := range []bool{false, true} {
		failed := 0
		for at := range 400 {
			mem := MemFS()
			rotated(t, mem, 3, oneEach)
			n := 0
			fs := &countedFS{FS: errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if (op.Kind.ReadOrWrite() == errorfs.OpIsRead) != read || op.Kind == errorfs.OpFileClose {
					return nil
				}
				if n++; n == at+1 {
					return errorfs.ErrInjected
				}
				return nil
			}))}
			l, _, err := OpenLog(fs, logDir, smallLog())
			if err != nil {
				failed++
			} else {
				for i := uint64(1); err == nil && i < 80; i++ {
					err = l.Append([]Write{{Shard: 7, Replica: 1, Entries: entries(i, 1, 1, 900), Cut: i - 1}})
					if _, last := l.Bounds(7); err == nil && last > 0 {
						_, err = l.Entries(7, last, last+1, 1<<20)
					}
				}
				if cerr := l.Close(); err != nil && cerr == nil && !read {
					t.Errorf("step %d: failed with %v, and closed as if nothing had been", at, err)
				}
			}
			if open := fs.open.Load(); open != 0 {
				t.Fatalf("reading %v, step %d: %d files are open; %v", read, at, open, err)
			}
			if n <= at {
				must(t, err)
				break
			}
		}
		if failed == 0 && !read {
			t.Error("nothing kept the log from being opened")
		}
	}
	// Nor has the only copy of one that is damaged.
	mem := MemFS()
	rotated(t, mem, 3, oneEach)
	must(t, mem.Remove(mem.PathJoin(logDir, segmentName(2))))
	fs, cfg := &countedFS{FS: mem}, smallLog()
	cfg.OnlyCopy = true
	if _, _, err := OpenLog(fs, logDir, cfg); err == nil || fs.open.Load() != 0 {
		t.Errorf("%d files are open; %v", fs.open.Load(), err)
	}
}

// Each step by which something is written may fail. The call that took it says so, and so does every later one: what the system has of the file is not known.
func TestLog_FailureOfAnyStepIsFinal(t *testing.T) {
	const steps = 400
	seen := map[errorfs.OpKind]int{}
	for at := range steps {
		mem := MemFS()
		rotated(t, mem, 3, oneEach)
		n, armed := 0, false
		var kind errorfs.OpKind
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if !armed || op.Kind.ReadOrWrite() == errorfs.OpIsRead || op.Kind == errorfs.OpFileClose {
				return nil
			}
			if n++; n == at+1 {
				kind = op.Kind
				return errorfs.ErrInjected
			}
			return nil
		}))
		l := mustOpen(t, fs, smallLog())
		armed = true
		for i := uint64(1); i < 80 && n <= at; i++ {
			before := n
			err := l.Append([]Write{{Shard: 7, Replica: 1, Entries: entries(i, 1, 1, 900), Cut: i - 1}})
			if err == nil && i%3 == 0 {
				err = l.Sync()
			}
			if err == nil && i%3 == 0 {
				err = l.Seal()
			}
			if failed := before <= at && n > at; failed != (err != nil) {
				t.Fatalf("step %d, %v: failed is %v, and the call returns %v", at, kind, failed, err)
			}
		}
		if n <= at {
			break
		}
		seen[kind]++
		for what, err := range map[string]error{
			"Append": l.Append([]Write{{Shard: 8, Replica: 1}}), "Sync": l.Sync(), "Seal": l.Seal(), "Settle": l.Settle(0), "Close": l.Close(),
		} {
			if err == nil {
				t.Errorf("step %d, %v: %s works again", at, kind, what)
			}
		}
	}
	for _, kind := range []errorfs.OpKind{errorfs.OpFileWriteAt, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpRename, errorfs.OpRemove} {
		if seen[kind] == 0 {
			t.Errorf("no step of kind %v has failed: %v", kind, seen)
		}
	}
}

// Terms do not fall within what one write holds, nor behind what it is put behind.
func TestLog_FallingTermsAreRefused(t *testing.T) {
	l := mustOpen(t, MemFS(), smallLog())
	two := func(first, a, b uint64) []Entry { return []Entry{{Index: first, Term: a}, {Index: first + 1, Term: b}} }
	for _, w := range []Write{
		{Shard: 1, Replica: 1, Entries: two(1, 5, 4)},
		{Shard: 1, Replica: 1, Entries: append(two(1, 4, 6), Entry{Index: 3, Term: 5})},
		{Shard: 1, Replica: 1, Reset: &Position{9, 5}, Entries: two(10, 4, 5)},
	} {
		wantKind(t, l.Append([]Write{w}), errs.Invalid)
	}
	must(t, l.Append([]Write{{Shard: 1, Replica: 1, Reset: &Position{9, 5}, Entries: two(10, 5, 6)}}))
	must(t, l.Close())
}
