package storage

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/quorate/quorate/internal/errs"
)

// TestLog_Crash stops the node before an arbitrary file system operation, keeps a random part of what was not synced, and
// checks that the log comes back as after some batch not before the last synced one.
func TestLog_Crash(t *testing.T) {
	crashes, torn, lost, kept := 0, 0, 0, 0
	// Rotations, which sync everything, are rare enough.
	cfg := smallLog()
	cfg.SegmentBytes = 128 << 10
	for seed := range uint64(80) {
		rng := rand.New(rand.NewPCG(seed, 2))
		mem, m := MemFS(), model{}
		for range 15 {
			var clone *vfs.MemFS
			at, n := 1+rng.IntN(120), 0
			if rng.IntN(4) == 0 {
				at = 1 + rng.IntN(12) // while opening
			}
			percent := []int{0, 20, 50, 90, 100}[rng.IntN(5)]
			fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
					return nil // it changes nothing
				}
				if n++; n == at {
					clone = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
				}
				return nil
			}))
			may := []model{m.clone()} // what the log may hold after a crash
			l, _, err := OpenLog(fs, logDir, cfg)
			must(t, err)
			for clone == nil {
				ws := m.randomWrites(rng, 8)
				if rng.IntN(3) == 0 {
					// Large enough to be torn.
					big := m[99]
					ws = append(ws, Write{Shard: 99, Replica: 1, Entries: entries(big.last()+1, 1, 1, 6000), Cut: big.last()})
				}
				m.apply(ws)
				may = append(may, m.clone())
				must(t, l.Append(ws))
				if clone == nil && rng.IntN(3) > 0 {
					must(t, l.Sync())
					if clone == nil {
						may = []model{m.clone()}
					}
				}
				if clone == nil && rng.IntN(2) == 0 {
					must(t, l.Seal())
				}
			}
			crashes++
			mem = clone
			l, rec, err := OpenLog(mem, logDir, cfg)
			must(t, err)
			if len(rec.Damaged) > 0 || len(rec.Suspect) > 0 || rec.AllSuspect {
				t.Fatalf("seed %d: a crash is taken for damage: %+v", seed, rec)
			}
			if rec.TornBytes > 0 {
				torn++
			}
			if rec.Votes > 0 {
				kept++
			}
			i := slices.IndexFunc(may, func(m model) bool { return m.differs(l) == nil })
			for k := 0; i < 0 && k < len(may); k++ {
				if c, ok := may[k].withVotes(l, may[k+1:]); ok && rec.Votes > 0 {
					i, may[k] = k, c
				}
			}
			if i < 0 {
				t.Fatalf("seed %d: lost synced writes or made some up: %v; %+v", seed, may[0].differs(l), rec)
			}
			if m = may[i]; i < len(may)-1 {
				lost++
			}
			if rng.IntN(2) == 0 {
				must(t, l.Close())
			}
		}
	}
	t.Logf("%d crashes, %d lost something, %d left a recognizable torn tail, %d votes", crashes, lost, torn, kept)
	if lost < 50 || torn < 10 || kept < 5 {
		t.Errorf("of %d crashes, only %d lost something, %d left a torn tail, %d votes", crashes, lost, torn, kept)
	}
}

// withVotes returns a model that is as a log, and as m but for what its shards have of the promises of later models. It returns false if there is none.
func (m model) withVotes(l *Log, later []model) (model, bool) {
	c := m.clone()
	ids := l.Shards()
	for id := range m {
		if !slices.Contains(ids, id) {
			return nil, false
		}
	}
	for _, id := range ids {
		s, known := c[id]
		if known && s.differs(l, id) == nil {
			continue
		}
		i := slices.IndexFunc(later, func(m model) bool {
			x, ok := m[id]
			if !ok || known && s.replica == x.replica && x.state.Term < s.state.Term {
				return false
			}
			y := modelShard{replica: x.replica}
			if known && s.replica == x.replica {
				y = s
			}
			y.state.Term, y.state.Vote = x.state.Term, x.state.Vote
			if y.differs(l, id) != nil {
				return false
			}
			c[id] = y
			return true
		})
		if i < 0 {
			return nil, false
		}
	}
	return c, true
}

// copyFS copies the log's directory into a file system of its own.
func copyFS(t testing.TB, from *vfs.MemFS) *vfs.MemFS {
	t.Helper()
	to := MemFS()
	must(t, to.MkdirAll(logDir, 0o755))
	names, err := from.List(logDir)
	must(t, err)
	slices.Sort(names)
	for _, name := range names {
		b, err := from.UnsafeGetFileDataBuffer(from.PathJoin(logDir, name))
		must(t, err)
		setFile(t, to, name, b)
	}
	return to
}

func setFile(t testing.TB, fs *vfs.MemFS, name string, b []byte) {
	t.Helper()
	putFile(t, fs, fs.PathJoin(logDir, name), b)
}

func putFile(t testing.TB, fs *vfs.MemFS, name string, b []byte) {
	t.Helper()
	f, err := fs.Create(name, category)
	must(t, err)
	_, err = f.Write(slices.Clone(b))
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
}

func fileOf(t testing.TB, fs *vfs.MemFS, name string) []byte {
	t.Helper()
	b, err := fs.UnsafeGetFileDataBuffer(fs.PathJoin(logDir, name))
	must(t, err)
	return slices.Clone(b)
}

// checkDamaged opens a damaged log and compares what it does not call suspect with the models, of which one must fit.
func checkDamaged(fs FS, first bool, may ...model) (*Recovery, error) {
	l, rec, err := OpenLog(fs, logDir, smallLog())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	fits := func(m model) error {
		for id, s := range m {
			if slices.Contains(rec.Suspect, id) || !slices.Contains(l.Shards(), id) && rec.AllSuspect {
				continue
			}
			if err := s.differs(l, id); err != nil {
				return fmt.Errorf("shard not suspect, but %w", err)
			}
		}
		for _, id := range l.Shards() {
			if _, known := m[id]; !known && !slices.Contains(rec.Suspect, id) {
				return fmt.Errorf("shard %d is made up", id)
			}
		}
		return nil
	}
	for _, m := range may {
		if err = fits(m); err == nil {
			break
		}
	}
	for _, id := range rec.Suspect {
		// A suspect shard lags, but reads without trouble or with an error.
		from, last := l.Bounds(id)
		for i := from - 1; i <= last; i++ {
			if _, err := l.Term(id, i); err != nil {
				return rec, err
			}
		}
		_, _ = l.Entries(id, from, last+1, 1<<40)
	}
	if first && (len(rec.Suspect) > 0 || rec.AllSuspect) && len(rec.Damaged) == 0 {
		return rec, fmt.Errorf("suspects without damage")
	}
	return rec, err
}

// TestOpenLog_Damage harms a log in one place in each of many trials: what is lost must be told.
func TestOpenLog_Damage(t *testing.T) {
	kinds := []struct {
		name string
		do   func(rng *rand.Rand, b []byte, at int) []byte
	}{
		{"flip", func(rng *rand.Rand, b []byte, at int) []byte { b[at] ^= 1 << rng.IntN(8); return b }},
		{"zero", func(rng *rand.Rand, b []byte, at int) []byte { clear(b[at:min(at+1+rng.IntN(600), len(b))]); return b }},
		{"zero to the end", func(rng *rand.Rand, b []byte, at int) []byte { clear(b[at:]); return b }},
		{"garbage", func(rng *rand.Rand, b []byte, at int) []byte {
			for i := at; i < min(at+1+rng.IntN(5000), len(b)); i++ {
				b[i] = byte(rng.Uint32())
			}
			return b
		}},
		{"truncate", func(rng *rand.Rand, b []byte, at int) []byte { return b[:at] }},
		{"repeat", func(rng *rand.Rand, b []byte, at int) []byte {
			at &^= 7
			copy(b[at:], slices.Clone(b[rng.IntN(at+1)&^7:at]))
			return b
		}},
		{"remove", func(rng *rand.Rand, b []byte, at int) []byte { return nil }},
	}
	found := make(map[string]int)
	whole := 0
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 3))
		fs, m := MemFS(), model{}
		l := mustOpen(t, fs, smallLog())
		var before model
		for range 60 + rng.IntN(200) {
			if rng.IntN(60) == 0 {
				must(t, l.Close())
				l = mustOpen(t, fs, smallLog())
			}
			ws := m.randomWrites(rng, 6)
			before = m.clone()
			m.apply(ws)
			must(t, l.Append(ws))
			must(t, l.Sync())
			if rng.IntN(2) == 0 {
				must(t, l.Seal())
			}
		}
		may := []model{m}
		if seed%2 == 0 {
			must(t, l.Close())
		} else {
			// Of a log that was not closed, the last batch cannot be told from a torn one unless it was sealed.
			may = append(may, before)
		}
		files := append(segmentFiles(t, fs), identityName)
		for trial := range 200 {
			c := copyFS(t, fs)
			kind := kinds[rng.IntN(len(kinds))]
			name := files[rng.IntN(len(files))]
			if rng.IntN(3) == 0 {
				name = files[max(len(files)-2, 0)] // the last segment
			}
			b := fileOf(t, c, name)
			at := rng.IntN(len(b))
			switch rng.IntN(4) {
			case 0:
				at = rng.IntN(min(len(b), segmentHeaderBytes))
			case 1:
				at = rng.IntN(min(len(b), 1200)) // checkpoint
			}
			if name == identityName && kind.name == "repeat" {
				continue
			}
			intact := slices.Clone(b)
			if b = kind.do(rng, b, at); len(b) == len(intact) && len(may) > 1 && name == files[len(files)-2] {
				// Nothing can tell several lost batches at the end from batches that were never written.
				if end := lastRecord(t, fs, name, 0).off; at < end {
					copy(b[end:], intact[end:])
				}
			}
			if b == nil {
				must(t, c.Remove(c.PathJoin(logDir, name)))
			} else {
				setFile(t, c, name, b)
			}
			what := fmt.Sprintf("seed %d, trial %d: %s of %s at %d", seed, trial, kind.name, name, at)
			rec, err := checkDamaged(c, true, may...)
			if err != nil {
				t.Fatalf("%s: %v\n%+v", what, err, rec)
			}
			if len(rec.Damaged) > 0 {
				found[kind.name]++
				if len(rec.Suspect) == 0 && !rec.AllSuspect {
					whole++
				}
			}
			// The suspicion outlives a restart.
			again, err := checkDamaged(c, false, may...)
			if err != nil {
				t.Fatalf("%s, opened again: %v\n%+v\n%+v", what, err, rec, again)
			}
			for _, id := range rec.Suspect {
				if !slices.Contains(again.Suspect, id) {
					t.Fatalf("%s: shard %d is no longer suspect after a restart: %+v, %+v", what, id, rec, again)
				}
			}
			if rec.AllSuspect != again.AllSuspect {
				t.Fatalf("%s: AllSuspect is %v after a restart, before %v", what, again.AllSuspect, rec.AllSuspect)
			}
		}
	}
	t.Logf("damage found: %v; %d times all shards were whole nevertheless", found, whole)
	for _, k := range kinds {
		if found[k.name] < 20 {
			t.Errorf("damage by %q was found only %d times", k.name, found[k.name])
		}
	}
}

// lastRecord finds the last record of a kind in a segment; with kind 0, the last that is not a seal.
func lastRecord(t testing.TB, fs *vfs.MemFS, name string, kind recordKind) record {
	t.Helper()
	seq, _ := parseSegmentName(name)
	recs := scanSegment(fileOf(t, fs, name), segmentHeaderBytes, len(fileOf(t, fs, name)), seedOf(7, seq), 0, true)
	for i := len(recs) - 1; i >= 0; i-- {
		if recs[i].kind == kind || kind == 0 && recs[i].kind != kindSeal {
			return recs[i]
		}
	}
	t.Fatalf("no record of kind %d in %s", kind, name)
	return record{}
}

// oneSegment makes a log with three batches of shards 1, 2 and 1, not closed.
func oneSegment(t testing.TB, seal bool) *vfs.MemFS {
	t.Helper()
	fs := MemFS()
	l := mustOpen(t, fs, smallLog())
	for i, s := range []ShardID{1, 2, 1} {
		must(t, l.Append([]Write{{Shard: s, Replica: 1, Entries: entries(uint64(1+i/2), 1, 1, 40)}}))
		must(t, l.Sync())
	}
	if seal {
		must(t, l.Seal())
		must(t, l.Sync())
	}
	return fs
}

func harm(t testing.TB, fs *vfs.MemFS, name string, off int) {
	t.Helper()
	b := fileOf(t, fs, name)
	b[off] ^= 0x40
	setFile(t, fs, name, b)
}

func TestOpenLog_TornTailIsCut(t *testing.T) {
	fs := oneSegment(t, false)
	name := segmentFiles(t, fs)[0]
	last := lastRecord(t, fs, name, kindBatch)
	harm(t, fs, name, last.off+60)
	l, rec, err := OpenLog(fs, logDir, smallLog())
	must(t, err)
	if len(rec.Damaged) != 0 || len(rec.Suspect) != 0 || rec.TornBytes != int64(last.end-last.off) {
		t.Errorf("got %+v, want %d torn bytes", rec, last.end-last.off)
	}
	if _, end := l.Bounds(1); end != 1 {
		t.Errorf("shard 1 ends at %d, want 1", end)
	}
	must(t, l.Append([]Write{{Shard: 1, Entries: entries(2, 1, 5, 9)}}))
	must(t, l.Close())
	l = mustOpen(t, fs, smallLog()) // the torn bytes are still there and not taken for damage
	defer l.Close()
	if term, err := l.Term(1, 2); term != 5 || err != nil {
		t.Errorf("term at 2 is %d, %v", term, err)
	}
}

func TestOpenLog_SealMakesItDamage(t *testing.T) {
	fs := oneSegment(t, true)
	name := segmentFiles(t, fs)[0]
	harm(t, fs, name, lastRecord(t, fs, name, kindBatch).off+60)
	l, rec, err := OpenLog(fs, logDir, smallLog())
	must(t, err)
	if len(rec.Damaged) != 1 || !slices.Equal(rec.Suspect, []ShardID{1, 2}) || !rec.AllSuspect || rec.TornBytes != 0 {
		t.Errorf("got %+v", rec)
	}
	// One shard is settled by a new replica id, one by word.
	must(t, l.Append([]Write{{Shard: 1, Replica: 2}}))
	must(t, l.Settle(2))
	must(t, l.Settle(2))
	must(t, l.Close())
	l, rec, err = OpenLog(fs, logDir, smallLog())
	must(t, err)
	if len(rec.Suspect) != 0 || !rec.AllSuspect {
		t.Errorf("after settling: %+v", rec)
	}
	must(t, l.Settle(0))
	must(t, l.Close())
	l, rec, err = OpenLog(fs, logDir, smallLog())
	must(t, err)
	defer l.Close()
	if len(rec.Suspect) != 0 || rec.AllSuspect {
		t.Errorf("after settling all: %+v", rec)
	}
}

func TestOpenLog_LaterBatchClearsAShard(t *testing.T) {
	fs := oneSegment(t, false)
	name := segmentFiles(t, fs)[0]
	b := fileOf(t, fs, name)
	recs := scanSegment(b, segmentHeaderBytes, len(b), seedOf(7, 1), 0, true)
	harm(t, fs, name, recs[2].off+60) // shard 2's only record; shard 1 writes after it
	l, rec, err := OpenLog(fs, logDir, smallLog())
	must(t, err)
	defer l.Close()
	if len(rec.Damaged) != 1 || len(rec.Suspect) != 0 || !rec.AllSuspect {
		t.Errorf("got %+v, want shard 1 whole and unknown shards in doubt", rec)
	}
	if d := rec.Damaged[0]; d.File != name || d.Offset != int64(recs[2].off) || d.Length != int64(recs[2].end-recs[2].off) {
		t.Errorf("damage is said to be at %+v, is at %d to %d", d, recs[2].off, recs[2].end)
	}
	if _, last := l.Bounds(1); last != 2 {
		t.Errorf("shard 1 ends at %d, want 2", last)
	}
}

func TestOpenLog_MissingFiles(t *testing.T) {
	f := func(what string, all bool, do func(fs *vfs.MemFS)) {
		t.Helper()
		fs := oneSegment(t, false)
		do(fs)
		l, rec, err := OpenLog(fs, logDir, smallLog())
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer l.Close()
		if len(rec.Damaged) == 0 || rec.AllSuspect != all {
			t.Errorf("%s: got %+v", what, rec)
		}
		must(t, l.Append([]Write{{Shard: 9, Replica: 1, State: HardState{Term: 1}}}))
		must(t, l.Sync())
	}
	segment := func(fs *vfs.MemFS) string { return fs.PathJoin(logDir, segmentFiles(t, fs)[0]) }
	identityPath := func(fs *vfs.MemFS) string { return fs.PathJoin(logDir, identityName) }
	f("no segment", true, func(fs *vfs.MemFS) { must(t, fs.Remove(segment(fs))) })
	f("no LOG", false, func(fs *vfs.MemFS) { must(t, fs.Remove(identityPath(fs))) })
	f("damaged LOG, no segment", true, func(fs *vfs.MemFS) {
		must(t, fs.Remove(segment(fs)))
		harm(t, fs, identityName, 20)
	})
	f("no LOG and no header", true, func(fs *vfs.MemFS) {
		must(t, fs.Remove(identityPath(fs)))
		harm(t, fs, segmentFiles(t, fs)[0], 20)
	})
	f("LOG of an older time", false, func(fs *vfs.MemFS) {
		setFile(t, fs, identityName, identity{id: 7}.encode())
	})
	f("LOG from the future", true, func(fs *vfs.MemFS) {
		setFile(t, fs, identityName, identity{7, 1 << 40, 1, 1 << 40}.encode())
	})
}

// TestOpenLog_ReadErrorIsDamage: a disk that cannot read is not taken for an empty tail.
func TestOpenLog_ReadErrorIsDamage(t *testing.T) {
	fs := oneSegment(t, false)
	bad := errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileReadAt && fs.PathBase(op.Path) == segmentName(1) {
			return errorfs.ErrInjected
		}
		return nil
	}))
	_, rec, err := OpenLog(bad, logDir, smallLog())
	must(t, err)
	if len(rec.Damaged) == 0 || !rec.AllSuspect {
		t.Errorf("got %+v", rec)
	}
	fs = oneSegment(t, false)
	bad = errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpOpen && fs.PathBase(op.Path) == segmentName(1) {
			return errorfs.ErrInjected
		}
		return nil
	}))
	_, rec, err = OpenLog(bad, logDir, smallLog())
	must(t, err)
	if len(rec.Damaged) == 0 || !rec.AllSuspect {
		t.Errorf("got %+v", rec)
	}
}

func TestOpenLog_LaterFormatIsRefused(t *testing.T) {
	later := func(b []byte, at int) []byte {
		b[8] = 2
		le.PutUint32(b[at:], crcOf(b[:at]))
		return b
	}
	fs := oneSegment(t, false)
	name := segmentFiles(t, fs)[0]
	setFile(t, fs, name, later(fileOf(t, fs, name), segmentHeaderBytes-4))
	_, _, err := OpenLog(fs, logDir, smallLog())
	wantKind(t, err, errs.Unsupported)
	fs = oneSegment(t, false)
	setFile(t, fs, identityName, later(fileOf(t, fs, identityName), identityBytes-4))
	_, _, err = OpenLog(fs, logDir, smallLog())
	wantKind(t, err, errs.Unsupported)
}

// TestLog_ReadBackChecks: damage that comes while the log is open is found by the read.
func TestLog_ReadBackChecks(t *testing.T) {
	fs := MemFS()
	l := mustOpen(t, fs, smallLog())
	defer l.Close()
	must(t, l.Append([]Write{{Shard: 1, Replica: 1}}))
	must(t, l.Append([]Write{{Shard: 1, Entries: entries(1, 3, 1, 40)}}))
	name := segmentFiles(t, fs)[0]
	b, err := fs.UnsafeGetFileDataBuffer(fs.PathJoin(logDir, name))
	must(t, err)
	b[lastRecord(t, fs, name, kindBatch).end-60] ^= 1 // in entry 2 or 3
	if _, err := l.Entries(1, 1, 2, 1<<20); err != nil {
		t.Errorf("entry 1 is whole, but: %v", err)
	}
	_, err = l.Entries(1, 1, 4, 1<<20)
	wantKind(t, err, errs.Corrupt)
}

// TestOpenLog_ManyEntriesCutSince: the oldest checkpoint speaks of entries that are cut, overwritten or moved by now.
func TestOpenLog_ManyEntriesCutSince(t *testing.T) {
	for name, then := range map[string]func(last uint64) []Write{
		"cut at the end": func(last uint64) []Write { return []Write{{Shard: 1, Cut: last}} },
		"cut but a few":  func(last uint64) []Write { return []Write{{Shard: 1, Cut: last - 3}} },
		"cut and append": func(last uint64) []Write {
			return []Write{{Shard: 1, Cut: last + 2, Entries: entries(last+1, 9, 1, 1)}}
		},
		"replace and cut":  func(last uint64) []Write { return []Write{{Shard: 1, Cut: 5002, Entries: entries(5000, 9, 2, 1)}} },
		"replace all":      func(last uint64) []Write { return []Write{{Shard: 1, Entries: entries(1, 9, 2, 1)}} },
		"reset":            func(last uint64) []Write { return []Write{{Shard: 1, Reset: &Position{9, 9}}} },
		"change the owner": func(last uint64) []Write { return []Write{{Shard: 1, Replica: 3}} },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := LogConfig{SegmentBytes: 64 << 10, ZeroBytes: 16 << 10, RecycleSegments: 1, ID: 7}
			fs, m := FS(vfs.NewMem()), model{}
			l := mustOpen(t, fs, cfg)
			do := func(ws ...Write) {
				t.Helper()
				must(t, l.Append(ws))
				m.apply(ws)
			}
			last := uint64(0)
			for ; last < missingMax+5000; last += 1000 {
				must(t, l.Append([]Write{{Shard: 1, Replica: 1, Entries: entries(last+1, 1000, 1, 0)}}))
			}
			m.apply([]Write{{Shard: 1, Replica: 1, Entries: entries(1, int(last), 1, 0)}})
			all, err := l.Entries(1, 1, last+1, 1<<30)
			must(t, err)
			s := m[1]
			s.entries = all
			m[1] = s
			do(then(last)...)
			for i := range 30 { // let old segments go
				do(Write{Shard: 2, Replica: 1, Entries: entries(uint64(i+1), 1, 1, 8000), Cut: uint64(i)})
				if i < 4 || i%10 == 0 {
					must(t, l.Close())
					l = mustOpen(t, fs, cfg)
				}
			}
			must(t, l.Close())
			l = mustOpen(t, fs, cfg)
			defer l.Close()
			if err := m.differs(l); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Copies of a cold shard's entries take the place of those in segments that are gone, also if there are more than recovery makes slots for.
func TestOpenLog_ManyEntriesCopiedForward(t *testing.T) {
	// Each segment holds as many small entries of a shard as may be copied forward; the rest of it is cut at once.
	const each, some = 10_000, 500
	cfg := LogConfig{SegmentBytes: 4 << 20, ZeroBytes: 64 << 10, ID: 7}
	fs := FS(vfs.NewMem())
	l := mustOpen(t, fs, cfg)
	last, other := uint64(0), uint64(0)
	fill := func(more ...Write) {
		t.Helper()
		other++
		must(t, l.Append(append(more, Write{
			Shard: 2, Replica: 1, Entries: entries(other, 1, 1, int(cfg.SegmentBytes)*some/each), Cut: other,
		})))
	}
	for ; last < missingMax+2*each; last += some {
		fill(Write{Shard: 1, Replica: 1, Entries: entries(last+1, some, 1, 8)})
	}
	for range 20 * each / some {
		fill()
	}
	must(t, l.Close())
	l = mustOpen(t, fs, cfg)
	defer l.Close()
	if first, got := l.Bounds(1); first != 1 || got != last {
		t.Fatalf("of entries 1 to %d there are %d to %d", last, first, got)
	}
	for next := uint64(1); next <= last; {
		es, err := l.Entries(1, next, last+1, 1<<20)
		must(t, err)
		next += uint64(len(es))
	}
}
