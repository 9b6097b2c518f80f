package storage

import (
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// At these marks Pebble makes commits wait: memtables that are not yet written to tables, and layers of tables that are not
// yet merged into a sorted level.
const (
	memTablesStop = 8
	sublevelsStop = 64
)

// backlog follows how far writing to disk is behind what was committed. Pebble's figures are asked for by a goroutine of its
// own, since the answer waits for the disk now and then; what was committed since is added to them.
type backlog struct {
	// stop is the size of memtables at which commits wait, step after how much another look is due.
	stop, step int64
	// memTables is the size of the memtables at the last look, since what may have been added to them. Memtables count as a
	// whole, full or not.
	memTables, since atomic.Int64
	sublevels        atomic.Int64

	look      chan struct{}
	end, done chan struct{}
}

// newBacklog makes a backlog that learns of flushes and compactions from o's listener.
func newBacklog(o *pebble.Options) *backlog {
	b := &backlog{
		stop: int64(o.MemTableSize) * memTablesStop, step: int64(o.MemTableSize) / 4,
		look: make(chan struct{}, 1), end: make(chan struct{}), done: make(chan struct{}),
	}
	// Pebble holds its lock while it calls these.
	o.EventListener.FlushEnd = func(pebble.FlushInfo) { b.wake() }
	o.EventListener.CompactionEnd = func(pebble.CompactionInfo) { b.wake() }
	return b
}

func (b *backlog) wake() {
	select {
	case b.look <- struct{}{}:
	default:
	}
}

// grew notes that memtables may have become larger by n bytes. It belongs to the goroutine that commits.
func (b *backlog) grew(n int) {
	if b.since.Add(int64(n)) >= b.step {
		b.wake()
	}
}

func (b *backlog) run(db *pebble.DB) {
	defer close(b.done)
	b.wake()
	for {
		select {
		case <-b.look:
		case <-b.end:
			return
		}
		// What is committed from here on is counted twice, until the next look.
		before := b.since.Load()
		m := db.Metrics()
		b.memTables.Store(int64(m.MemTable.Size))
		b.sublevels.Store(int64(m.Levels[0].Sublevels))
		b.since.Add(-before)
	}
}

func (b *backlog) close() {
	close(b.end)
	<-b.done
}

// Backlog says how near the store is to making Commit wait for the disk: 0 is nothing to write, 1 is where commits wait. It
// costs next to nothing, and any goroutine may call it. A deterministic store has none.
func (s *Store) Backlog() float64 {
	b := s.backlog
	if b == nil {
		return 0
	}
	return max(float64(b.memTables.Load()+b.since.Load())/float64(b.stop), float64(b.sublevels.Load())/sublevelsStop)
}
