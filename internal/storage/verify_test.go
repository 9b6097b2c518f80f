package storage

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
)

// noList is a disk that lists nothing while no says so.
type noList struct {
	FS
	no bool
}

func (f *noList) List(dir string) ([]string, error) {
	if f.no {
		return nil, syscall.EMFILE
	}
	return f.FS.List(dir)
}

// verified makes a store of two tables and two blob files.
func verified(t *testing.T, fs FS) *Store {
	t.Helper()
	s := openTestStore(t, fs, StoreConfig{Deterministic: true})
	for i := range 2 {
		for j := range 300 {
			put(t, s, fmt.Sprintf("key%d%03d", i, j), strings.Repeat("v", j%90+1))
		}
		must(t, s.Flush())
	}
	return s
}

// Whoever is told to stop says so, and not that something is damaged: a node gives up what is.
func TestStore_VerifyThatIsEnded(t *testing.T) {
	fs := &noList{FS: MemFS()}
	s := verified(t, fs)
	stop := errors.New("stop")
	steps := 0
	for ended := true; ended; steps++ {
		n := 0
		ended = false
		err := s.VerifyTables(func(int) error {
			if ended {
				t.Error("it goes on")
			}
			if n++; n > steps {
				ended = true
				return stop
			}
			return nil
		})
		if ended && err != stop || !ended && err != nil || s.Err() != nil {
			t.Fatalf("step %d: got %v, and the store says %v", steps, err, s.Err())
		}
	}
	if steps < 10 {
		t.Errorf("only %d steps", steps)
	}
	fs.no = true
	wantKind(t, s.VerifyTables(func(int) error { return nil }), errs.Unavailable)
}

// What is merged into other files meanwhile is not missing, whether it goes before it is opened or while it is read.
func TestStore_VerifyBesideMerges(t *testing.T) {
	for at := range 20 {
		mem := MemFS()
		s := verified(t, mem)
		old := append(stateFiles(t, mem, ".sst"), stateFiles(t, mem, blobSuffix)...)
		n := 0
		err := s.VerifyTables(func(int) error {
			if n++; n != at+1 {
				return nil
			}
			// What its blocks are taken for is of no account either, once it is gone.
			for range stepFlushes {
				put(t, s, "key0000", "w", "key1000", strings.Repeat("w", 90))
				must(t, s.Flush())
			}
			return nil
		})
		if err != nil || s.Err() != nil {
			t.Fatalf("step %d: got %v, and the store says %v", at, err, s.Err())
		}
		if n <= at {
			return
		}
		left := append(stateFiles(t, mem, ".sst"), stateFiles(t, mem, blobSuffix)...)
		if strings.Contains(strings.Join(left, " "), old[0]) {
			t.Fatalf("step %d: nothing was merged: %v, then %v", at, old, left)
		}
	}
}

// Damage to a file that is gone when it is found is nobody's business any more; to one that is there it is damage, also if it is all of it.
func TestStore_VerifyOfFilesCutShort(t *testing.T) {
	for _, gone := range []bool{false, true} {
		for i := range 4 {
			for _, left := range []int{0, 3, 100} {
				mem := MemFS()
				s := verified(t, mem)
				name := append(stateFiles(t, mem, ".sst"), stateFiles(t, mem, blobSuffix)...)[i]
				if strings.HasSuffix(name, blobSuffix) && !gone {
					continue // the length of those is looked at before
				}
				b, err := mem.UnsafeGetFileDataBuffer(name)
				must(t, err)
				f, err := mem.Create(name, vfs.WriteCategoryUnspecified)
				must(t, err)
				_, err = f.Write(b[:left])
				must(t, errors.Join(err, f.Close()))
				check := s.verifyTable
				if strings.HasSuffix(name, blobSuffix) {
					check = s.verifyBlob
				}
				err = s.verifyFile(name, func(int) error { return nil }, func(f *pacedFile) error {
					if gone {
						must(t, mem.Remove(name))
					}
					return check(f)
				})
				if gone && err != nil || !gone && !errs.Is(err, errs.Corrupt) {
					t.Errorf("%s of %d bytes, gone is %v: got %v", name, left, gone, err)
				}
			}
		}
	}
}

// The log is checked up to where it ended, while entries are cut and added.
func TestLog_VerifyOfALogThatMovesOn(t *testing.T) {
	l := mustOpen(t, MemFS(), LogConfig{ID: 7})
	next := uint64(1)
	more := func(cut uint64) error {
		next++
		return l.Append([]Write{{Shard: 1, Replica: 1, Entries: entries(next-1, 1, 1, 100<<10), Cut: cut}})
	}
	for range 20 {
		must(t, more(0))
	}
	read, steps := 0, 0
	must(t, l.Verify(func(n int) error {
		if read, steps = read+n, steps+1; steps > 50 {
			return errors.New("it does not end")
		}
		// The first step was the entries 1 and 2.
		return more(10)
	}))
	if want := (2 + 10) * (100<<10 + entryHeaderBytes); read != want {
		t.Errorf("read %d bytes, want %d", read, want)
	}
	// Or taken back.
	read, steps = 0, 0
	must(t, l.Verify(func(n int) error {
		if read, steps = read+n, steps+1; steps > 1 {
			return nil
		}
		return l.Append([]Write{{Shard: 1, Entries: entries(16, 1, 2, 8)}})
	}))
	if want := 5*(100<<10+entryHeaderBytes) + 8 + entryHeaderBytes; read != want {
		t.Errorf("read %d bytes, want %d", read, want)
	}
	must(t, l.Close())
}
