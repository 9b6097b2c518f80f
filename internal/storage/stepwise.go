package storage

import (
	"bytes"
	"context"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"

	"github.com/quorate/quorate/internal/errs"
)

// stepwise makes a Store do its background work in the foreground. Pebble flushes a memtable when it is full, merges
// tables and deletes files whenever its goroutines get to it; here each of that happens at a moment that only the calls
// decide, and is complete when the call returns.
type stepwise struct {
	// unflushed estimates what the memtable holds; flushes counts those since the last merge.
	unflushed, flushes int
}

const (
	// stepBytes stays well below the size of Pebble's first memtable (256 KiB), which would otherwise flush itself.
	stepBytes = 128 << 10
	// rowOverhead is a generous bound for what a row costs in a memtable besides its bytes.
	rowOverhead = 192
	// stepFlushes is after how many flushes the tables are merged.
	stepFlushes = 4
)

func (st *stepwise) adjust(o *pebble.Options) {
	o.DisableAutomaticCompactions = true
	// Statistics are gathered by a goroutine that reads the tables.
	o.DisableTableStats = true
	// The files are in memory.
	for i := range o.Levels {
		o.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
	}
	o.MaxOpenFiles = 64
	o.L0StopWritesThreshold = 1 << 20
}

// makeRoom flushes before a batch would fill the memtable.
func (st *stepwise) makeRoom(s *Store, b *pebble.Batch) error {
	n := b.Len() + rowOverhead*int(b.Count())
	if st.unflushed > 0 && st.unflushed+n > stepBytes {
		if err := s.Flush(); err != nil {
			return err
		}
	}
	st.unflushed += n
	return nil
}

// flushed merges the tables now and then, and waits until the files that are no longer needed are gone.
func (st *stepwise) flushed(s *Store) error {
	st.unflushed = 0
	s.Rest()
	if st.flushes++; st.flushes >= stepFlushes {
		st.flushes = 0
		err := s.db.Compact(context.Background(), []byte{0}, bytes.Repeat([]byte{0xff}, 16), false)
		if err != nil {
			return errs.Wrap(errs.Corrupt, err, "merge tables of the state store")
		}
	}
	s.Rest()
	return nil
}
