package storage

import (
	"errors"
	"fmt"
	"iter"
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
	// MemTableBytes is the size at which a memtable is flushed to a table; default 64 MiB. A restart re-applies at most
	// about this much log.
	MemTableBytes uint64
	// MemTableRows is the number of rows at which it is flushed all the same; default 100,000. With more of them an insert
	// misses the processor's caches at almost every step, which costs more than the flushes do.
	MemTableRows int
	// OnlyCopy says that no peer has what is in the store, so that it must not be given up.
	OnlyCopy bool
	// Deterministic does all work of flushes and compactions while the caller waits, so that what a crash leaves behind
	// depends on the calls only. The simulation sets it.
	Deterministic bool
	// Logf receives Pebble's own log lines, already formatted; nil drops them.
	Logf func(format string, args ...any)
}

// Store is an ordered map of bytes on disk without a write-ahead log. Batches are atomic. All methods may be called from
// any goroutine, except that batches are committed by one goroutine at a time.
//
// A read or write error of the disk is sticky: Err returns it, and the owner must stop the node.
type Store struct {
	fs    FS
	dir   string
	opts  *pebble.Options
	db    *pebble.DB
	cache *pebble.Cache
	// damage is the first corruption that background work came upon.
	damage atomic.Pointer[error]
	// rows counts what went into the memtable; it belongs to the goroutine that commits.
	rows, rowsMax int
	// view is the snapshot of what is committed now, if somebody wanted one; it counts itself among its users.
	viewMu sync.Mutex
	view   *Snapshot
	// step is nil unless the store is deterministic.
	step *stepwise
	// backlog is nil if it is.
	backlog *backlog
}

// Reader reads a Store or a Snapshot of one.
type Reader interface {
	// Get returns a copy of the value of key, and whether there is one.
	Get(key []byte) ([]byte, bool, error)
	// Scan yields the pairs with from <= key < to in order. Key and value are valid only until the next step. A disk
	// error ends the sequence and is reported by *errp.
	Scan(from, to []byte, errp *error) iter.Seq2[[]byte, []byte]
}

type pebbleLogger struct {
	logf func(string, ...any)
}

func (l pebbleLogger) Infof(f string, a ...any) {
	if l.logf != nil {
		l.logf(f, a...)
	}
}

func (l pebbleLogger) Errorf(f string, a ...any) { l.Infof(f, a...) }

// Fatalf is called by Pebble when it cannot go on. The node stops: a panic ends the process with the reason.
func (l pebbleLogger) Fatalf(f string, a ...any) { panic("pebble: " + fmt.Sprintf(f, a...)) }

// OpenStore opens the store in dir, making it if there is none.
func OpenStore(at FS, dir string, cfg StoreConfig) (*Store, error) {
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = 32 << 20
	}
	if cfg.MemTableBytes == 0 {
		cfg.MemTableBytes = 64 << 20
	}
	if cfg.MemTableRows == 0 {
		cfg.MemTableRows = 100_000
	}
	cache := pebble.NewCache(cfg.CacheBytes)
	opts := &pebble.Options{
		FS: at, Cache: cache, DisableWAL: true, Logger: pebbleLogger{cfg.Logf},
		FormatMajorVersion:          pebble.FormatNewest,
		MemTableSize:                cfg.MemTableBytes,
		MemTableStopWritesThreshold: memTablesStop,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       sublevelsStop,
		LBaseMaxBytes:               64 << 20,
		MaxOpenFiles:                1000,
		DisableAutomaticCompactions: cfg.Deterministic,
	}
	opts.CompactionConcurrencyRange = func() (int, int) { return 1, 2 }
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	// Tables of level 0 are merged into others soon; to compress them would be work for nothing.
	opts.Levels[0].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
	opts.Levels[1].Compression = func() *sstable.CompressionProfile { return sstable.SnappyCompression }
	s := &Store{fs: at, dir: dir, opts: opts, cache: cache, rowsMax: cfg.MemTableRows}
	opts.EventListener = &pebble.EventListener{DataCorruption: func(i pebble.DataCorruptionInfo) {
		err := errs.Wrap(errs.Corrupt, i.Details, "state store file %s", i.Path)
		s.damage.CompareAndSwap(nil, &err)
	}}
	if cfg.Deterministic {
		s.step = &stepwise{}
		s.step.adjust(opts)
	} else {
		s.backlog = newBacklog(opts)
	}
	var err error
	if s.db, err = pebble.Open(dir, opts); err != nil {
		cache.Unref()
		return nil, errs.Wrap(errs.Corrupt, err, "open state store %s", dir)
	}
	s.Rest()
	if s.backlog != nil {
		go s.backlog.run(s.db)
	}
	if err := s.checkOrder(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
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
		return errs.Wrap(errs.Corrupt, errors.Join(err, b.Close()), "check state store %s", s.dir)
	}
	next := b.SeqNum()
	levels, err := s.db.SSTables()
	if err = errors.Join(err, b.Close()); err != nil {
		return errs.Wrap(errs.Corrupt, err, "list the tables of the state store")
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

// Err returns the first damage that was found in the store's files by whatever read them. The node must stop then.
func (s *Store) Err() error {
	if e := s.damage.Load(); e != nil {
		return *e
	}
	return nil
}

// Close closes the store without flushing it: what was not flushed is in the raft log.
func (s *Store) Close() error {
	if s.backlog != nil {
		s.backlog.close()
	}
	err := errors.Join(s.dropView(), s.db.Close())
	s.cache.Unref()
	return err
}

func get(r pebble.Reader, key []byte) ([]byte, bool, error) {
	v, c, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, errs.Wrap(errs.Corrupt, err, "read state store")
	}
	v = append(make([]byte, 0, len(v)), v...)
	return v, true, c.Close()
}

func scan(r pebble.Reader, from, to []byte, errp *error) iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		it, err := r.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
		if err != nil {
			*errp = errs.Wrap(errs.Corrupt, err, "scan state store")
			return
		}
		for ok := it.First(); ok; ok = it.Next() {
			if !yield(it.Key(), it.Value()) {
				break
			}
		}
		if err := errors.Join(it.Error(), it.Close()); err != nil {
			*errp = errs.Wrap(errs.Corrupt, err, "scan state store")
		}
	}
}

// Get implements Reader.
func (s *Store) Get(key []byte) ([]byte, bool, error) { return get(s.db, key) }

// Scan implements Reader.
func (s *Store) Scan(from, to []byte, errp *error) iter.Seq2[[]byte, []byte] {
	return scan(s.db, from, to, errp)
}

// Snapshot is a consistent view of a Store at one moment. It must be closed, once.
type Snapshot struct {
	s     *pebble.Snapshot
	store *Store
	// users counts those who have not closed it; guarded by Store.viewMu.
	users int
}

// Snapshot returns a view that holds every batch whose Commit has returned, and none that has not begun. Between two batches
// all callers share one: to open and close one costs more than most reads.
func (s *Store) Snapshot() *Snapshot {
	s.viewMu.Lock()
	defer s.viewMu.Unlock()
	if s.view == nil {
		s.view = &Snapshot{s: s.db.NewSnapshot(), store: s, users: 1}
	}
	s.view.users++
	return s.view
}

// dropView makes the next Snapshot a new one: what was committed must be in it, and an old view that is kept would keep what
// is overwritten from being removed.
func (s *Store) dropView() error {
	s.viewMu.Lock()
	v := s.view
	s.view = nil
	s.viewMu.Unlock()
	if v == nil {
		return nil
	}
	return v.Close()
}

// Get implements Reader.
func (s *Snapshot) Get(key []byte) ([]byte, bool, error) { return get(s.s, key) }

// Scan implements Reader.
func (s *Snapshot) Scan(from, to []byte, errp *error) iter.Seq2[[]byte, []byte] {
	return scan(s.s, from, to, errp)
}

// Close releases the view.
func (s *Snapshot) Close() error {
	s.store.viewMu.Lock()
	s.users--
	last := s.users == 0
	s.store.viewMu.Unlock()
	if last {
		return s.s.Close()
	}
	return nil
}

// Batch collects writes that become visible together.
type Batch struct {
	b *pebble.Batch
	s *Store
}

// Batch returns an empty batch.
func (s *Store) Batch() *Batch { return &Batch{s.db.NewBatch(), s} }

// Set stores a pair. Both slices are copied.
func (b *Batch) Set(key, value []byte) error { return b.b.Set(key, value, nil) }

// Delete removes a key.
func (b *Batch) Delete(key []byte) error { return b.b.Delete(key, nil) }

// DeleteRange removes all keys with from <= key < to.
func (b *Batch) DeleteRange(from, to []byte) error { return b.b.DeleteRange(from, to, nil) }

// Size returns the bytes collected so far.
func (b *Batch) Size() int { return b.b.Len() }

// Commit makes the batch visible and releases it. It is durable only after a later Flush, or by the raft log.
func (b *Batch) Commit() error {
	if b.s.step != nil {
		if err := b.s.step.makeRoom(b.s, b.b); err != nil {
			return err
		}
	}
	s, n, size := b.s, int(b.b.Count()), b.b.Len()
	if err := errors.Join(b.b.Commit(pebble.NoSync), b.b.Close(), s.dropView()); err != nil {
		return err
	}
	if s.step != nil {
		return nil
	}
	s.backlog.grew(size)
	if s.rows += n; s.rows < s.rowsMax {
		return nil
	}
	s.rows = 0
	s.backlog.grew(int(s.opts.MemTableSize))
	_, err := s.db.AsyncFlush()
	return err
}

// Discard releases a batch without committing it.
func (b *Batch) Discard() error { return b.b.Close() }

// Flush makes everything committed so far durable and waits for it.
func (s *Store) Flush() error {
	s.Rest()
	if err := s.db.Flush(); err != nil {
		return errs.Wrap(errs.Corrupt, err, "flush state store")
	}
	if s.step != nil {
		return s.step.flushed(s)
	}
	return nil
}

// Rest waits until a deterministic store has nothing left to do: files that nobody reads any more are deleted by a goroutine
// of Pebble's. The simulation calls it before it looks at the disk.
func (s *Store) Rest() {
	if s.step != nil {
		s.db.TestOnlyWaitForCleaning()
	}
}

// FlushStart starts a flush of everything committed so far and returns a channel that is closed when it is durable.
func (s *Store) FlushStart() (<-chan struct{}, error) {
	if s.step != nil {
		done := make(chan struct{})
		close(done)
		return done, s.Flush()
	}
	done, err := s.db.AsyncFlush()
	return done, errs.Wrap(errs.Corrupt, err, "flush state store")
}

// StoreStats is a small set of figures about a Store.
type StoreStats struct {
	// DiskBytes is the size of all live files.
	DiskBytes uint64
	// MemTableBytes is what waits in memory for a flush.
	MemTableBytes uint64
	// L0Files is the number of tables that are not yet merged into a sorted level.
	L0Files int64
	// CompactionDebtBytes estimates what compaction still has to rewrite.
	CompactionDebtBytes uint64
}

// Stats returns the store's figures.
func (s *Store) Stats() StoreStats {
	m := s.db.Metrics()
	return StoreStats{
		DiskBytes: m.DiskSpaceUsage(), MemTableBytes: m.MemTable.Size,
		L0Files: m.Levels[0].TablesCount, CompactionDebtBytes: m.Compact.EstimatedDebt,
	}
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
