package sim

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// disk is the simulated disk of one node: one file system for the raft log and one for the state store, so that what the
// store does in the background cannot change what a crash leaves of the log.
type disk struct {
	log, state *vfs.MemFS
	// failSync makes the next sync of a log file fail, and that file's later syncs do nothing: what Linux does after it has
	// dropped the dirty pages.
	failSync bool
}

func newDisk() *disk {
	return &disk{log: vfs.NewCrashableMem(), state: vfs.NewCrashableMem()}
}

// sectorBytes is the unit in which unsynced bytes reach the disk or do not.
const sectorBytes = 512

// crash returns the disk as a power cut would leave it: of the log's unsynced bytes a random part, of the store's none.
// MemFS' own way to keep a part goes through maps in Go's random order, so that is done here.
func (d *disk) crash(rng *rand.Rand) *disk {
	none := vfs.CrashCloneCfg{}
	c := &disk{log: d.log.CrashClone(none), state: d.state.CrashClone(none)}
	if rng.IntN(2) == 0 {
		return c
	}
	pct := 1 + rng.IntN(100)
	synced := c.log
	all := d.log.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
	// Changes of the directory reach the disk all together, as those of a journalling file system do.
	if rng.IntN(100) < pct {
		c.log = all
	}
	for _, name := range files(c.log, "log") {
		if strings.HasSuffix(name, ".seg") {
			mix(c.log, name, contents(synced, name), contents(all, name), pct, rng)
		}
	}
	return c
}

// kill returns the disk as the end of the process leaves it: everything that was written is there, and what was not synced is not synced yet.
func (d *disk) kill() *disk {
	none := vfs.CrashCloneCfg{}
	all := vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))}
	c := &disk{log: d.log.CrashClone(none), state: d.state.CrashClone(all)}
	from := d.log.CrashClone(all)
	there := files(from, "log")
	for _, name := range files(c.log, "log") {
		if !slices.Contains(there, name) {
			if err := c.log.Remove(name); err != nil {
				panic(err)
			}
		}
	}
	for _, name := range there {
		was, b := contents(c.log, name), contents(from, name)
		if bytes.Equal(was, b) {
			continue
		}
		f, err := c.log.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
		if err == nil {
			_, err = f.WriteAt(b, 0)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			panic(err)
		}
	}
	return c
}

// mix writes a file anew from the sectors of two versions of it.
func mix(fs vfs.FS, name string, synced, all []byte, pct int, rng *rand.Rand) {
	if synced == nil || all == nil || bytes.Equal(synced, all) {
		return
	}
	out := append([]byte(nil), synced...)
	for at := 0; at < len(all); at += sectorBytes {
		end := min(at+sectorBytes, len(all))
		if at < len(synced) && bytes.Equal(all[at:end], synced[at:min(end, len(synced))]) || rng.IntN(100) >= pct {
			continue
		}
		if len(out) < end {
			// Sectors between that did not make it are read as zeros.
			out = append(out, make([]byte, end-len(out))...)
		}
		copy(out[at:end], all[at:end])
	}
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		panic(err)
	}
	_, err = f.Write(out)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		panic(err)
	}
	dir, err := fs.OpenDir("log")
	if err != nil {
		panic(err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		panic(err)
	}
}

// contents returns the bytes of a file, nil if there is none.
func contents(fs vfs.FS, name string) []byte {
	f, err := fs.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close() //nolint:errcheck // a file in memory
	st, err := f.Stat()
	if err != nil {
		return nil
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil && len(b) > 0 {
		return nil
	}
	return b
}

// files lists the non-empty files below dir, in order.
func files(fs vfs.FS, dir string) []string {
	names, err := fs.List(dir)
	if err != nil {
		return nil
	}
	slices.Sort(names)
	var out []string
	for _, n := range names {
		p := fs.PathJoin(dir, n)
		if st, err := fs.Stat(p); err == nil && !st.IsDir() && st.Size() > 0 && n != "LOCK" {
			out = append(out, p)
		}
	}
	return out
}

// sealBytes is the used part of the seal that bitFlip puts at the end of a log, so that its last batch is known as synced.
const sealBytes = 25

// flip changes bits of one file, and returns its name.
func flip(fs vfs.FS, dir string, rng *rand.Rand) string {
	all := files(fs, dir)
	if len(all) == 0 {
		return ""
	}
	name := all[rng.IntN(len(all))]
	f, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // a file in memory
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	// Files are zeroed ahead; damage is aimed at the part in use.
	used := usedBytes(f, st.Size())
	if used == 0 {
		return ""
	}
	for range 1 + rng.IntN(4) {
		at := rng.Int64N(used)
		if strings.HasSuffix(name, ".seg") && at >= used-sealBytes {
			// Without the seal, damage to the last batch is an unfinished write, as far as anybody can tell: see bitFlip.
			continue
		}
		var b [1]byte
		if _, err := f.ReadAt(b[:], at); err != nil && !errors.Is(err, io.EOF) {
			return ""
		}
		b[0] ^= 1 << rng.IntN(8)
		if _, err := f.WriteAt(b[:], at); err != nil {
			return ""
		}
	}
	if f.Sync() != nil {
		return ""
	}
	return name
}

// forgetEnd damages the record before the seal at the end of a log, and takes the seal away. With far it damages the end of the block before, where
// votes are that are said again in the last one. It returns the name of the file.
func forgetEnd(fs vfs.FS, dir string, far bool) string {
	name := ""
	for _, f := range files(fs, dir) {
		if strings.HasSuffix(f, ".seg") && contents(fs, f) != nil {
			name = f
		}
	}
	b := contents(fs, name)
	trim := func() int { return len(bytes.TrimRight(b, "\x00")) }
	clear(b[max(0, trim()-sealBytes):])
	const block, record = 4 << 10, 32
	if end := (trim() - 1) / block * block; far && end > 0 {
		end = len(bytes.TrimRight(b[:end], "\x00"))
		for i := max(0, end-2*record); i < end; i++ {
			b[i] ^= 1
		}
	} else {
		b[trim()-1] ^= 1
	}
	f, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.WriteAt(b, 0)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		panic(err)
	}
	return name
}

func usedBytes(f vfs.File, size int64) int64 {
	buf := make([]byte, size)
	n, err := f.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0
	}
	for n > 0 && buf[n-1] == 0 {
		n--
	}
	return int64(n)
}

// logFS is the log's file system with the disk's sync failures.
type logFS struct {
	vfs.FS
	d *disk
}

type logFile struct {
	vfs.File
	d    *disk
	dead bool
}

var errSync = errors.New("input/output error (injected)")

func (f *logFile) sync(inner func() error) error {
	if f.dead {
		return nil
	}
	if f.d.failSync {
		f.d.failSync, f.dead = false, true
		return errSync
	}
	return inner()
}

func (f *logFile) Sync() error     { return f.sync(f.File.Sync) }
func (f *logFile) SyncData() error { return f.sync(f.File.SyncData) }

func (l logFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := l.FS.Create(name, c)
	if err != nil {
		return nil, err
	}
	return &logFile{File: f, d: l.d}, nil
}

func (l logFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := l.FS.OpenReadWrite(name, c, o...)
	if err != nil {
		return nil, err
	}
	return &logFile{File: f, d: l.d}, nil
}

func (l logFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := l.FS.ReuseForWrite(from, to, c)
	if err != nil {
		return nil, err
	}
	return &logFile{File: f, d: l.d}, nil
}
