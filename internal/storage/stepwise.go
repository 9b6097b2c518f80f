package storage

import (
	"bytes"
	"context"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
)

// stepwise makes a Store do its background work in the foreground. Otherwise memTables are written, tables merged and files
// deleted whenever goroutines get to it; here each of that happens at a moment that only the calls decide, and is complete
// when the call returns.
type stepwise struct {
	// flushes counts those since the last merge.
	flushes int
}

const (
	// stepBytes is the size of a memTable at which it is written: small, so that tables are made often.
	stepBytes = 128 << 10
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
	// The simulation's values are small, and which blob files are old is a matter of time.
	o.Experimental.ValueSeparationPolicy = func() pebble.ValueSeparationPolicy {
		p := separateValues()
		p.MinimumSize, p.MaxBlobReferenceDepth, p.TargetGarbageRatio = 64, 4, 1
		return p
	}
	o.MaxOpenFiles = 64
	o.L0StopWritesThreshold = 1 << 20
}

// committed flushes when the memTable has become large.
func (st *stepwise) committed(s *Store) error {
	if s.active.bytes+memRowOverhead*s.active.rows < stepBytes {
		return nil
	}
	return st.flush(s)
}

// flush writes the memTable, merges the tables now and then, and waits until the files that are no longer needed are gone.
func (st *stepwise) flush(s *Store) error {
	s.Rest()
	if err := s.write(s.active); err != nil {
		return err
	}
	s.mu.Lock()
	s.active = &memTable{}
	err := s.belowLocked()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.Rest()
	if st.flushes++; st.flushes >= stepFlushes {
		st.flushes = 0
		err := s.db.Compact(context.Background(), []byte{0}, bytes.Repeat([]byte{0xff}, 16), false)
		if err != nil {
			return diskError(err, "merge tables of the state store")
		}
	}
	s.Rest()
	return nil
}
