package storage

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
)

// openTestStore opens a store that is closed with the test.
func openTestStore(t *testing.T, fs FS, cfg StoreConfig) *Store {
	t.Helper()
	s, err := OpenStore(fs, "state", cfg)
	if err != nil {
		t.Fatalf("open store: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// storeOnDisk makes a store in dir whose rows are in tables, and closes it.
func storeOnDisk(t *testing.T, fs FS, dir string, pairs ...string) {
	t.Helper()
	s, err := OpenStore(fs, dir, StoreConfig{})
	must(t, err)
	put(t, s, pairs...)
	must(t, s.Flush())
	must(t, s.Close())
}

// put commits pairs as one batch; a value of "-" deletes.
func put(t *testing.T, s *Store, pairs ...string) {
	t.Helper()
	b := s.Batch()
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "-" {
			b.Delete([]byte(pairs[i]))
		} else {
			b.Set([]byte(pairs[i]), []byte(pairs[i+1]))
		}
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
}

// rows renders what a reader holds in a range.
func rows(t *testing.T, r Reader, from, to string) string {
	t.Helper()
	var out []string
	var err error
	// Pebble's checks under the race detector do not take an empty bound for none.
	var start, end []byte
	if from != "" {
		start = []byte(from)
	}
	if to != "" {
		end = []byte(to)
	}
	for k, v := range r.Scan(start, end, &err) {
		out = append(out, string(k)+"="+string(v))
	}
	if err != nil {
		t.Fatalf("scan: %v", err)
	}
	return strings.Join(out, " ")
}

func TestStore_BatchIsAtomicAndOrdered(t *testing.T) {
	s := openTestStore(t, MemFS(), StoreConfig{})
	put(t, s, "b", "2", "a", "1", "d", "4", "c", "3", "b", "22", "d", "-")
	if got := rows(t, s, "", ""); got != "a=1 b=22 c=3" {
		t.Errorf("got %q", got)
	}
	if got := rows(t, s, "b", "c"); got != "b=22" {
		t.Errorf("range: got %q", got)
	}
	if v, ok, err := s.Get([]byte("c")); err != nil || !ok || string(v) != "3" {
		t.Errorf("get: %q %v %v", v, ok, err)
	}
	if v, ok, err := s.Get([]byte("d")); err != nil || ok {
		t.Errorf("get of a deleted key: %q %v %v", v, ok, err)
	}
	b := s.Batch()
	b.Set([]byte("x"), nil)
	b.Discard()
	b = s.Batch()
	b.DeleteRange([]byte("a"), []byte("c"))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := rows(t, s, "", ""); got != "c=3" {
		t.Errorf("got %q", got)
	}
}

func TestStore_ScanStopsWhenAsked(t *testing.T) {
	s := openTestStore(t, MemFS(), StoreConfig{})
	put(t, s, "a", "1", "b", "2")
	var err error
	n := 0
	for range s.Scan(nil, nil, &err) {
		n++
		break
	}
	if n != 1 || err != nil {
		t.Errorf("%d steps, %v", n, err)
	}
}

func TestStore_ValuesAreTheCallers(t *testing.T) {
	s := openTestStore(t, MemFS(), StoreConfig{})
	put(t, s, "k", "value")
	v, _, err := s.Get([]byte("k"))
	if err != nil {
		t.Fatal(err)
	}
	v[0] = 'X'
	if again, _, _ := s.Get([]byte("k")); string(again) != "value" {
		t.Errorf("a caller changed the store to %q", again)
	}
}

func TestStore_SnapshotDoesNotMove(t *testing.T) {
	s := openTestStore(t, MemFS(), StoreConfig{})
	put(t, s, "a", "1", "b", "1")
	snap := s.Snapshot()
	put(t, s, "a", "2", "b", "-", "c", "2")
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := rows(t, snap, "", ""); got != "a=1 b=1" {
		t.Errorf("got %q", got)
	}
	if v, ok, err := snap.Get([]byte("b")); err != nil || !ok || string(v) != "1" {
		t.Errorf("get: %q %v %v", v, ok, err)
	}
	if err := snap.Close(); err != nil {
		t.Error(err)
	}
}

func TestStore_ComesBackAsOfItsLastFlush(t *testing.T) {
	for _, det := range []bool{false, true} {
		fs := MemFS()
		s, err := OpenStore(fs, "state", StoreConfig{Deterministic: det})
		if err != nil {
			t.Fatal(err)
		}
		put(t, s, "a", "flushed")
		if det {
			err = s.Flush()
		} else {
			var done <-chan struct{}
			if done, err = s.FlushStart(); err == nil {
				<-done
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		put(t, s, "a", "lost", "b", "lost")
		after := fs.CrashClone(vfs.CrashCloneCfg{})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if got := rows(t, openTestStore(t, after, StoreConfig{Deterministic: det}), "", ""); got != "a=flushed" {
			t.Errorf("deterministic %v: got %q", det, got)
		}
	}
}

// TestStore_StepwiseDependsOnCallsOnly shows that equal calls leave equal files, however much is written.
func TestStore_StepwiseDependsOnCallsOnly(t *testing.T) {
	run := func() string {
		fs := MemFS()
		s := openTestStore(t, fs, StoreConfig{Deterministic: true})
		rng := rand.New(rand.NewPCG(1, 2))
		for range 400 {
			b := s.Batch()
			for range 1 + rng.IntN(20) {
				b.Set(fmt.Appendf(nil, "%05d", rng.IntN(3000)), bytes.Repeat([]byte{byte(rng.Uint32())}, rng.IntN(400)))
			}
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
			if rng.IntN(50) == 0 {
				done, err := s.FlushStart()
				if err != nil {
					t.Fatal(err)
				}
				<-done
			}
		}
		after := fs.CrashClone(vfs.CrashCloneCfg{})
		names, err := after.List("state")
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		var out strings.Builder
		for _, n := range names {
			st, err := after.Stat("state/" + n)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&out, n, st.Size())
		}
		return out.String()
	}
	a := run()
	for range 3 {
		if b := run(); a != b {
			t.Fatalf("files differ:\n%s\n%s", a, b)
		}
	}
	if n := strings.Count(a, ".sst"); n == 0 || n > 3*stepFlushes {
		t.Errorf("%d tables:\n%s", n, a)
	}
}

func TestStore_ReadersBesideAWriter(t *testing.T) {
	s := openTestStore(t, MemFS(), StoreConfig{MemTableBytes: 1 << 10})
	put(t, s, "a", "0", "b", "0")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			snap := s.Snapshot()
			a, _, err1 := snap.Get([]byte("a"))
			b, _, err2 := snap.Get([]byte("b"))
			_ = snap.Close()
			if err1 != nil || err2 != nil || !bytes.Equal(a, b) {
				t.Errorf("a is %q (%v), b is %q (%v)", a, err1, b, err2)
				return
			}
		}
	})
	for i := range 500 {
		put(t, s, "a", fmt.Sprint(i), "b", fmt.Sprint(i))
	}
	close(stop)
	wg.Wait()
}

func TestStore_Stats(t *testing.T) {
	s := openTestStore(t, MemFS(), StoreConfig{Logf: func(string, ...any) {}})
	put(t, s, "a", strings.Repeat("x", 1000))
	if st := s.Stats(); st.L0Files != 0 {
		t.Errorf("got %+v", st)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.L0Files != 1 || st.DiskBytes == 0 {
		t.Errorf("got %+v", st)
	}
}

// tables lists the tables of a store.
func tables(t *testing.T, fs FS) []string {
	t.Helper()
	return stateFiles(t, fs, ".sst")
}

// stateFiles lists the files of a store with a suffix.
func stateFiles(t *testing.T, fs FS, suffix string) []string {
	t.Helper()
	names, err := fs.List("state")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, n := range names {
		if strings.HasSuffix(n, suffix) {
			out = append(out, "state/"+n)
		}
	}
	slices.Sort(out)
	return out
}

// rot flips one bit of a file.
func rot(t *testing.T, fs FS, name string, at int64) {
	t.Helper()
	f, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestStore_VerifyFindsDamageAnywhere flips each tenth byte of a table, and of a blob file, in turn: either the store does not open, or Verify
// finds it, or the byte means nothing, and then all rows are right.
func TestStore_VerifyFindsDamageAnywhere(t *testing.T) {
	fs := MemFS()
	s, err := OpenStore(fs, "state", StoreConfig{Deterministic: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		put(t, s, fmt.Sprintf("key%03d", i), strings.Repeat("v", i%90+1))
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	want := rows(t, s, "", "")
	if err := s.Verify(); err != nil {
		t.Fatalf("undamaged: %v", err)
	}
	clean := fs.CrashClone(vfs.CrashCloneCfg{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{tables(t, clean)[0], stateFiles(t, clean, blobSuffix)[0]} {
		verifyFindsDamage(t, clean, name, want)
	}
}

func verifyFindsDamage(t *testing.T, clean *vfs.MemFS, name, want string) {
	t.Helper()
	st, err := clean.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for at := int64(0); at < st.Size(); at += 10 {
		fs := clean.CrashClone(vfs.CrashCloneCfg{})
		rot(t, fs, name, at)
		s, err := OpenStore(fs, "state", StoreConfig{Deterministic: true})
		if err != nil {
			found++
			continue
		}
		if err := s.Verify(); err != nil {
			found++
			if !errs.Is(err, errs.Corrupt) {
				t.Errorf("%s, byte %d: got %v", name, at, err)
			}
			var scanErr error
			for k, v := range s.Scan(nil, nil, &scanErr) {
				if i, _ := strconv.Atoi(string(k[3:])); string(v) != strings.Repeat("v", i%90+1) {
					t.Errorf("%s, byte %d: %s holds %q", name, at, k, v)
				}
			}
			if scanErr != nil && (!errs.Is(scanErr, errs.Corrupt) || s.Err() == nil) {
				t.Errorf("%s, byte %d: a scan ends with %v, and the store says %v", name, at, scanErr, s.Err())
			}
		} else if got := rows(t, s, "", ""); got != want {
			t.Errorf("%s, byte %d: damage passed Verify and changed the rows", name, at)
		} else if v, ok, err := s.Get([]byte("key079")); err != nil || !ok || string(v) != strings.Repeat("v", 80) {
			t.Errorf("%s, byte %d: damage passed Verify, and a key holds %q %v %v", name, at, v, ok, err)
		}
		_ = s.Close()
	}
	if int64(found) < st.Size()/10*9/10 {
		t.Errorf("%s: damage was found at %d of %d places", name, found, st.Size()/10)
	}
}

// TestStore_DamagedManifestHidesNoLaterWrites flips each byte of a manifest in turn. Pebble takes the damage for the end of
// the manifest, and may open an older store. What is written to that one must be there, or it must not open.
func TestStore_DamagedManifestHidesNoLaterWrites(t *testing.T) {
	fs := MemFS()
	// The second start begins a manifest with the list of the tables.
	for i := range 2 {
		s, err := OpenStore(fs, "state", StoreConfig{Deterministic: true})
		if err != nil {
			t.Fatal(err)
		}
		for j := range 3 {
			put(t, s, "a", fmt.Sprint("old", i, j), fmt.Sprintf("b%d%d", i, j), "old")
			b := s.Batch()
			b.DeleteRange([]byte("n"), []byte("o"))
			if err := errors.Join(b.Commit(), s.Flush()); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	names, err := fs.List("state")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	name := ""
	for _, n := range names {
		if strings.HasPrefix(n, "MANIFEST") {
			name = "state/" + n
		}
	}
	st, err := fs.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	opened := 0
	for at := range st.Size() {
		fs := fs.CrashClone(vfs.CrashCloneCfg{})
		rot(t, fs, name, at)
		s, err := OpenStore(fs, "state", StoreConfig{Deterministic: true})
		if err != nil {
			if !errs.Is(err, errs.Corrupt) {
				t.Errorf("byte %d: got %v", at, err)
			}
			continue
		}
		opened++
		put(t, s, "a", "new", "n1", "new")
		for i := range 2 * stepFlushes {
			if got := rows(t, s, "a", "b") + " " + rows(t, s, "n", "o"); got != "a=new n1=new" {
				t.Errorf("byte %d, after %d flushes: got %q", at, i, got)
				break
			}
			put(t, s, "z", fmt.Sprint(i))
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		_ = s.Close()
	}
	if opened == 0 || int64(opened) == st.Size() {
		t.Errorf("%d of %d damaged manifests opened; some should, and some should not", opened, st.Size())
	}
}

// TestStore_ScanEndsAtDamage: rows behind damage are not yielded, whether they are in a table or in memory (seed 211277), nor is one whose value in a
// blob file is damaged.
func TestStore_ScanEndsAtDamage(t *testing.T) {
	scanEndsAtDamage(t, ".sst", 50)
	scanEndsAtDamage(t, blobSuffix, 100)
}

func scanEndsAtDamage(t *testing.T, suffix string, size int) {
	t.Helper()
	fs := MemFS()
	s, err := OpenStore(fs, "state", StoreConfig{Deterministic: true})
	if err != nil {
		t.Fatal(err)
	}
	const n = 400
	for i := range n {
		put(t, s, fmt.Sprintf("key%03d", i), strings.Repeat("v", size))
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	clean := fs.CrashClone(vfs.CrashCloneCfg{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	name := stateFiles(t, clean, suffix)[0]
	ended := map[int]bool{}
	for at := int64(10); at < 20_000; at += 1000 {
		fs := clean.CrashClone(vfs.CrashCloneCfg{})
		rot(t, fs, name, at)
		s, err := OpenStore(fs, "state", StoreConfig{Deterministic: true})
		if err != nil {
			continue
		}
		put(t, s, "key050", "new", "key250", "new", "key350x", "new", "zoo", "new")
		snap := s.Snapshot()
		for _, r := range []Reader{s, snap} {
			var scanErr error
			seen := 0
			for k, v := range r.Scan(nil, nil, &scanErr) {
				if string(v) != "new" && string(v) != strings.Repeat("v", size) {
					t.Errorf("byte %d: %s holds %q", at, k, v)
				}
				if want := fmt.Sprintf("key%03d", seen); string(k) != want && string(k) != "key350x" && string(k) != "zoo" {
					t.Errorf("byte %d: %s comes where %s should", at, k, want)
					break
				} else if string(k) == want {
					seen++
				} else if seen < 351 {
					t.Errorf("byte %d: %s comes after %d rows", at, k, seen)
					break
				}
			}
			if !errs.Is(scanErr, errs.Corrupt) || seen == n {
				t.Errorf("byte %d: %d rows, then %v", at, seen, scanErr)
			}
			ended[seen] = true
		}
		if err := snap.Close(); err != nil {
			t.Error(err)
		}
		_ = s.Close()
	}
	if len(ended) < 3 {
		t.Errorf("damage was met after %v rows only", ended)
	}
}

func TestStore_DamageIsStickyOnceRead(t *testing.T) {
	damageIsSticky(t, ".sst", 10)
	damageIsSticky(t, blobSuffix, 100)
}

func damageIsSticky(t *testing.T, suffix string, size int) {
	t.Helper()
	fs := MemFS()
	s, err := OpenStore(fs, "state", StoreConfig{Deterministic: true})
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "k", strings.Repeat("v", size))
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	fs = fs.CrashClone(vfs.CrashCloneCfg{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rot(t, fs, stateFiles(t, fs, suffix)[0], 10)
	s = openTestStore(t, fs, StoreConfig{Deterministic: true})
	if s.Err() != nil {
		t.Errorf("damaged before anything was read: %v", s.Err())
	}
	if _, _, err := s.Get([]byte("k")); !errs.Is(err, errs.Corrupt) {
		t.Errorf("get: %v", err)
	}
	var scanErr error
	for range s.Scan(nil, nil, &scanErr) {
		t.Errorf("a damaged block of a %s file has rows", suffix)
	}
	if !errs.Is(scanErr, errs.Corrupt) {
		t.Errorf("scan: %v", scanErr)
	}
	if !errs.Is(s.Err(), errs.Corrupt) {
		t.Errorf("the store forgot the damage: %v", s.Err())
	}
}

func TestStore_RemoveMakesRoomForANewOne(t *testing.T) {
	fs := MemFS()
	s, err := OpenStore(fs, "state", StoreConfig{Deterministic: true})
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "k", "v")
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// A damaged manifest keeps the store from opening at all.
	names, err := fs.List("state")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if strings.HasPrefix(n, "MANIFEST") {
			rot(t, fs, "state/"+n, 20)
		}
	}
	if _, err := OpenStore(fs, "state", StoreConfig{}); !errs.Is(err, errs.Corrupt) {
		t.Errorf("a damaged manifest: got %v", err)
	}
	if err := RemoveStore(fs, "state"); err != nil {
		t.Fatal(err)
	}
	if got := rows(t, openTestStore(t, fs, StoreConfig{}), "", ""); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestOSFS_HoldsAStore(t *testing.T) {
	dir := t.TempDir()
	for i := range 2 {
		s, err := OpenStore(OSFS(), dir+"/state", StoreConfig{})
		if err != nil {
			t.Fatal(err)
		}
		if got := rows(t, s, "", ""); i == 1 && got != "k=v" {
			t.Errorf("got %q", got)
		}
		put(t, s, "k", "v")
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := s.Verify(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveStore(OSFS(), dir+"/state"); err != nil {
		t.Fatal(err)
	}
}

// A snapshot holds all that was committed before it and nothing that came later, however many share it.
func TestStore_SnapshotsAreSharedBetweenBatchesOnly(t *testing.T) {
	s, err := OpenStore(MemFS(), "db", StoreConfig{})
	if err != nil {
		t.Fatal(err)
	}
	set := func(n int) {
		t.Helper()
		b := s.Batch()
		b.Set([]byte("k"), []byte(strconv.Itoa(n)))
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	var committed atomic.Int64
	set(0)
	a, b := s.Snapshot(), s.Snapshot()
	if a != b {
		t.Errorf("two snapshots without a batch between them are two")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	set(1)
	c := s.Snapshot()
	for _, v := range []struct {
		s    *Snapshot
		want string
	}{{b, "0"}, {c, "1"}} {
		if got, _, err := v.s.Get([]byte("k")); err != nil || string(got) != v.want {
			t.Errorf("got %q, %v; want %s", got, err, v.want)
		}
		if err := v.s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	committed.Store(1)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				want := committed.Load()
				v := s.Snapshot()
				got, _, err := v.Get([]byte("k"))
				n, err2 := strconv.ParseInt(string(got), 10, 64)
				if err := errors.Join(err, err2, v.Close()); err != nil || n < want {
					t.Errorf("got %q, %v; %d was committed before", got, err, want)
					return
				}
			}
		})
	}
	for n := 2; n < 2000; n++ {
		set(n)
		committed.Store(int64(n))
	}
	close(stop)
	wg.Wait()
	// Pebble says so if a snapshot is still open.
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestStore_EqualsAMapThroughAllLayers writes, removes, flushes and reads at random, in memtables so small that rows are in
// several of them and in tables, and compares all with a map. Snapshots are compared with what the map was then.
func TestStore_EqualsAMapThroughAllLayers(t *testing.T) {
	for _, det := range []bool{false, true} {
		t.Run(fmt.Sprint("deterministic=", det), func(t *testing.T) {
			s := openTestStore(t, MemFS(), StoreConfig{MemTableBytes: 2 << 10, MemTableRows: 40, Deterministic: det})
			rng := rand.New(rand.NewPCG(3, 4))
			key := func() string { return fmt.Sprintf("k%03d", rng.IntN(200)) }
			render := func(m map[string]string, from, to string) string {
				var out []string
				for _, k := range slices.Sorted(maps.Keys(m)) {
					if k >= from && (to == "" || k < to) {
						out = append(out, k+"="+m[k])
					}
				}
				return strings.Join(out, " ")
			}
			model := map[string]string{}
			type moment struct {
				s    *Snapshot
				want map[string]string
			}
			var open []moment
			check := func(m moment) {
				t.Helper()
				from, to := key(), ""
				if rng.IntN(2) == 0 {
					to = key()
				}
				if got, want := rows(t, m.s, from, to), render(m.want, from, to); got != want {
					t.Fatalf("from %q to %q:\n got %s\nwant %s", from, to, got, want)
				}
				k := key()
				v, ok, err := m.s.Get([]byte(k))
				if want, there := m.want[k]; err != nil || ok != there || string(v) != want {
					t.Fatalf("get %q: %q %v %v, want %q %v", k, v, ok, err, want, there)
				}
			}
			for i := range 3000 {
				b := s.Batch()
				for range 1 + rng.IntN(6) {
					k := key()
					switch rng.IntN(30) {
					case 0, 1, 2, 3, 4, 5:
						b.Delete([]byte(k))
						delete(model, k)
					case 6:
						to := key()
						if to < k {
							k, to = to, k
						}
						b.DeleteRange([]byte(k), []byte(to))
						maps.DeleteFunc(model, func(x, _ string) bool { return x >= k && x < to })
					default:
						v := fmt.Sprint(i)
						b.Set([]byte(k), []byte(v))
						model[k] = v
					}
				}
				if err := b.Commit(); err != nil {
					t.Fatal(err)
				}
				switch rng.IntN(12) {
				case 0:
					if err := s.Flush(); err != nil {
						t.Fatal(err)
					}
				case 1:
					if _, err := s.FlushStart(); err != nil {
						t.Fatal(err)
					}
				case 2, 3:
					open = append(open, moment{s.Snapshot(), maps.Clone(model)})
				case 4:
					if len(open) > 3 {
						check(open[0])
						if err := open[0].s.Close(); err != nil {
							t.Fatal(err)
						}
						open = open[1:]
					}
				}
				k := key()
				v, ok, err := s.Get([]byte(k))
				if want, there := model[k]; err != nil || ok != there || string(v) != want {
					t.Fatalf("get %q: %q %v %v, want %q %v", k, v, ok, err, want, there)
				}
				if i%10 == 0 {
					from := key()
					if got, want := rows(t, s, from, ""), render(model, from, ""); got != want {
						t.Fatalf("after %d from %q:\n got %s\nwant %s", i, from, got, want)
					}
				}
			}
			for _, m := range open {
				check(m)
				if err := m.s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestStore_CrashLeavesABatchOrNothing takes crash images while rows are flushed: each holds exactly the batches up to one.
func TestStore_CrashLeavesABatchOrNothing(t *testing.T) {
	fs := MemFS()
	s, err := OpenStore(fs, "state", StoreConfig{MemTableBytes: 16 << 10})
	if err != nil {
		t.Fatal(err)
	}
	const keys = 50
	pad := strings.Repeat("x", 100)
	value := func(n int) string { return fmt.Sprintf("%06d%s", n, pad) }
	var crashed []*vfs.MemFS
	for n := 1; n <= 4000; n++ {
		// A key and a count, the one first and the other last in the order of rows.
		put(t, s, fmt.Sprintf("a%02d", n%keys), value(n), "z", value(n))
		if n%100 == 0 {
			crashed = append(crashed, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: n % 101, RNG: rand.New(rand.NewPCG(uint64(n), 1))}))
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for i, c := range crashed {
		s, err := OpenStore(c, "state", StoreConfig{})
		if err != nil {
			t.Fatalf("image %d: %v", i, err)
		}
		z, there, err := s.Get([]byte("z"))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		if there {
			if n, err = strconv.Atoi(string(z[:6])); err != nil {
				t.Fatal(err)
			}
		}
		var want []string
		for k := range keys {
			// The last write of this key up to n.
			if last := n - (n-k+keys)%keys; last > 0 {
				want = append(want, fmt.Sprintf("a%02d=%s", k, value(last)))
			}
		}
		if got := rows(t, s, "a", "b"); got != strings.Join(want, " ") {
			t.Errorf("image %d, count %d:\n got %s\nwant %s", i, n, got, strings.Join(want, " "))
		}
		seen[n] = true
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) < 5 {
		t.Errorf("the images are of %d moments only", len(seen))
	}
}

// noTables is a file system that cannot make tables. It says so when that was tried.
type noTables struct {
	FS
	tried chan struct{}
}

func (f noTables) Create(name string, c vfs.DiskWriteCategory) (File, error) {
	if strings.HasSuffix(name, ".sst") {
		select {
		case f.tried <- struct{}{}:
		default:
		}
		return nil, errors.New("no room")
	}
	return f.FS.Create(name, c)
}

// A store whose disk takes no tables can still be closed, and who waits for a flush learns of it.
func TestStore_ClosesWhileAFlushCannotEnd(t *testing.T) {
	tried := make(chan struct{}, 1)
	s, err := OpenStore(noTables{MemFS(), tried}, "state", StoreConfig{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "a", "1")
	done, err := s.FlushStart()
	if err != nil {
		t.Fatal(err)
	}
	<-tried
	waited := make(chan error)
	go func() { waited <- s.await(done) }()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-waited; err == nil {
		t.Error("a flush that failed was reported as done")
	}
	select {
	case <-done:
		t.Error("a flush that failed was announced as done")
	default:
	}
}
