package storage

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
)

// StoreConfig sets the sizes of a Store. The zero value means the defaults.
type StoreConfig struct {
	// CacheBytes bounds the block cache; default 32 MiB.
	CacheBytes int64
	// MemTableBytes is how much may be written to a memtable before it is flushed to a table; default 32 MiB. A restart
	// re-applies at most about this much log.
	MemTableBytes int
	// MemTableRows is the number of different rows at which it is flushed all the same; default 200,000.
	MemTableRows int
	// Seed makes nodes that hold the same write it to disk at different times: each memtable is flushed at a share of what is said above that is drawn
	// between two thirds and all. 0 draws nothing.
	Seed uint64
	// OpenFilesMax is how many files may be open to be read; default 1000. Fewer than some 74 have no effect.
	OpenFilesMax int
	// OnlyCopy says that no peer has what is in the store, so that it must not be given up.
	OnlyCopy bool
	// Deterministic does all work of flushes and compactions while the caller waits, so that what a crash leaves behind
	// depends on the calls only; memtables are small then, whatever is said above. The simulation sets it.
	Deterministic bool
	// Logf receives Pebble's own log lines, already formatted; nil drops them.
	Logf func(format string, args ...any)
	// Fatal is told why Pebble cannot go on, such as a disk that takes no manifest. It must not return, since Pebble holds locks: the process ends as in a
	// crash. nil panics.
	Fatal func(error)
}

// Store is an ordered map of bytes on disk without a write-ahead log. Batches are atomic. New rows are in memTables, which
// one goroutine at a time commits batches to; when one is full it becomes a table of Pebble's, and Pebble has no rows but
// those. Batch, Get, Scan, Flush and FlushStart are for the goroutine that commits; all else may be called from any.
//
// Damage that somebody comes upon is sticky, and so is that the disk refuses what is written to it time and again: Err returns it, and the
// owner must stop the node. Any other error of a read is told to whoever reads.
type Store struct {
	cfg   StoreConfig
	fs    *blobFS
	dir   string
	opts  *pebble.Options
	db    *pebble.DB
	cache *pebble.Cache
	// background watches what Pebble does by itself.
	background *background
	// damage is the first corruption that Pebble or blobs came upon.
	damage atomic.Pointer[error]
	// spare is a batch that may be used again, and share what part of its bounds the active memTable is given, drawn from draw unless that is nil. All
	// belong to the goroutine that commits.
	spare *Batch
	share float64
	draw  *rand.Rand

	// mu guards what follows; changed says that filled, failed or closed did. active is written by the goroutine that commits,
	// under mu.
	mu      sync.Mutex
	changed *sync.Cond
	active  *memTable
	// filled are the tables that are on their way to Pebble, oldest first. A slice of it is never written again.
	filled []*filledTable
	failed error
	closed bool
	// view is the snapshot of what is committed now, if somebody wanted one; below is Pebble's part of it, which changes only
	// when a table was written. Each counts the store among its users.
	view  *Snapshot
	below *pebbleView

	end  chan struct{}
	done sync.WaitGroup
	// step is nil unless the store is deterministic.
	step *stepwise
	// backlog is nil if it is.
	backlog *backlog
}

type pebbleLogger struct {
	logf  func(string, ...any)
	fatal func(error)
}

func (l pebbleLogger) Infof(f string, a ...any) {
	if l.logf != nil {
		l.logf(f, a...)
	}
}

func (l pebbleLogger) Errorf(f string, a ...any) { l.Infof(f, a...) }

// Fatalf is called by Pebble when it cannot go on, since the disk refuses something or since Pebble has a bug. Of a bug one wants to see where.
func (l pebbleLogger) Fatalf(f string, a ...any) {
	for _, v := range a {
		if err, ok := v.(error); ok && l.fatal != nil && refused(err) {
			l.fatal(errs.Wrap(errs.Unavailable, err, "write the state store's list of tables"))
		}
	}
	panic("pebble: " + fmt.Sprintf(f, a...))
}

// OpenStore opens the store in dir, making it if there is none.
func OpenStore(at FS, dir string, cfg StoreConfig) (*Store, error) {
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = 32 << 20
	}
	if cfg.MemTableBytes == 0 {
		cfg.MemTableBytes = 32 << 20
	}
	if cfg.MemTableRows == 0 {
		cfg.MemTableRows = 200_000
	}
	if cfg.OpenFilesMax == 0 {
		cfg.OpenFilesMax = 1000
	}
	s := &Store{cfg: cfg, dir: dir, active: &memTable{}, end: make(chan struct{})}
	if cfg.Seed != 0 {
		s.draw = rand.New(rand.NewPCG(cfg.Seed, 0))
	}
	s.drawShare()
	s.changed = sync.NewCond(&s.mu)
	s.background = newBackground(dir, s.end, s.damaged)
	blobs := newBlobFS(politeFS{watchedFS{at, s.background}})
	blobs.damaged = s.damaged
	cache := pebble.NewCache(cfg.CacheBytes)
	opts := &pebble.Options{
		FS: blobs, Cache: cache, DisableWAL: true, Logger: pebbleLogger{cfg.Logf, cfg.Fatal},
		FormatMajorVersion:          pebble.FormatNewest,
		MemTableSize:                pebbleMemTable,
		MemTableStopWritesThreshold: memTablesStop,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       sublevelsStop,
		LBaseMaxBytes:               64 << 20,
		MaxOpenFiles:                cfg.OpenFilesMax,
		DisableAutomaticCompactions: cfg.Deterministic,
	}
	opts.Experimental.ValueSeparationPolicy = separateValues
	opts.CompactionConcurrencyRange = func() (int, int) { return 1, 2 }
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	// Tables of level 0 are merged into others soon; to compress them would be work for nothing.
	opts.Levels[0].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
	opts.Levels[1].Compression = func() *sstable.CompressionProfile { return sstable.SnappyCompression }
	s.fs, s.opts, s.cache = blobs, opts, cache
	opts.EventListener = &pebble.EventListener{DataCorruption: func(i pebble.DataCorruptionInfo) {
		_ = s.damaged(diskError(i.Details, "state store file %s", i.Path))
	}}
	if cfg.Deterministic {
		s.step = &stepwise{}
		s.step.adjust(opts)
	} else {
		s.backlog = newBacklog(opts)
	}
	s.background.listen(opts.EventListener)
	var err error
	if s.db, err = pebble.Open(dir, opts); err != nil {
		cache.Unref()
		return nil, diskError(err, "open state store %s", dir)
	}
	s.Rest()
	if s.step == nil {
		go s.backlog.run(s.db)
		s.done.Go(s.flusher)
	}
	if err := s.checkOrder(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.checkBlobs(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// drawShare sets how full the active memTable may become. Replicas are given the same rows in the same order: with equal bounds all of them would flush,
// and merge tables, in the same moment, and no majority would be left that answers quickly.
func (s *Store) drawShare() {
	if s.share = 1; s.draw != nil {
		s.share -= s.draw.Float64() / 3
	}
}

// checkOrder makes sure that what is written now counts as newer than what the tables hold. Pebble orders writes by a
// number that it keeps in its manifest, and takes damage there for the end of the manifest. The first record, which lists
// the tables, does not have the number: if it is the only one left, numbers start from the beginning, and a deletion in an
// old table would hide rows that are yet to be written. That cannot come of a crash, since two records are made durable
// before a manifest is used.
func (s *Store) checkOrder() error {
	// A batch of nothing but a note for the log is given the next number, and leaves no trace.
	b := s.db.NewBatch()
	if err := errors.Join(b.LogData([]byte{0}, nil), b.Commit(pebble.NoSync)); err != nil {
		return diskError(errors.Join(err, b.Close()), "check state store %s", s.dir)
	}
	next := b.SeqNum()
	levels, err := s.db.SSTables()
	if err = errors.Join(err, b.Close()); err != nil {
		return diskError(err, "list the tables of the state store")
	}
	for _, tables := range levels {
		for _, t := range tables {
			if t.LargestSeqNum >= next {
				return errs.New(errs.Corrupt, "state store %s: table %s holds write %d, but the manifest knows of writes up to %d only",
					s.dir, t.BackingSSTNum, t.LargestSeqNum, next-1)
			}
		}
	}
	return nil
}

// damaged remembers a corruption, and returns it.
func (s *Store) damaged(err error) error {
	s.damage.CompareAndSwap(nil, &err)
	return err
}

// Err returns the first damage that was found in the store's files by whatever read them, or, of another kind than errs.Corrupt, why
// nothing can be written to them. The node must stop then.
func (s *Store) Err() error {
	if e := s.damage.Load(); e != nil {
		return *e
	}
	return s.background.err()
}

// Close closes the store without flushing it: what was not flushed is in the raft log.
func (s *Store) Close() error {
	if s.backlog != nil {
		s.backlog.close()
	}
	s.mu.Lock()
	s.closed = true
	s.changed.Broadcast()
	s.mu.Unlock()
	close(s.end)
	s.done.Wait()
	s.mu.Lock()
	err := s.belowLocked()
	s.mu.Unlock()
	err = errors.Join(err, s.db.Close())
	s.cache.Unref()
	return err
}

// StoreStats is a small set of figures about a Store.
type StoreStats struct {
	// DiskBytes is the size of all live files.
	DiskBytes uint64
	// L0Files is the number of tables that are not yet merged into a sorted level.
	L0Files int64
}

// Stats returns the store's figures.
func (s *Store) Stats() StoreStats {
	m := s.db.Metrics()
	return StoreStats{DiskBytes: m.DiskSpaceUsage(), L0Files: m.Levels[0].TablesCount}
}

// RemoveStore deletes a store's directory; the node does it when the store is damaged, before it fetches everything from
// its peers.
func RemoveStore(at FS, dir string) error {
	if err := at.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove damaged state store %s: %w", dir, err)
	}
	return syncDir(at, path.Dir(dir))
}

func syncDir(at FS, dir string) error {
	d, err := at.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("open directory %s: %w", dir, err)
	}
	return errors.Join(d.Sync(), d.Close())
}

var _ vfs.FS = FS(nil)
