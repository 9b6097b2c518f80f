package storage

import (
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// sublevelsStop is the number of layers of tables, not yet merged into a sorted level, at which Pebble makes the flusher wait.
const sublevelsStop = 64

// backlogUnit is how a full memTable counts.
const backlogUnit = 1000

// backlog follows how far writing to disk is behind what was committed. Pebble's figures are asked for by a goroutine of its
// own, since the answer waits for the disk now and then.
type backlog struct {
	// active says how full the active memTable is; filled counts the others.
	active, filled atomic.Int64
	sublevels      atomic.Int64

	look      chan struct{}
	end, done chan struct{}
}

// newBacklog makes a backlog that learns of flushes and compactions from o's listener.
func newBacklog(o *pebble.Options) *backlog {
	b := &backlog{look: make(chan struct{}, 1), end: make(chan struct{}), done: make(chan struct{})}
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

func (b *backlog) run(db *pebble.DB) {
	defer close(b.done)
	b.wake()
	for {
		select {
		case <-b.look:
		case <-b.end:
			return
		}
		b.sublevels.Store(int64(db.Metrics().Levels[0].Sublevels))
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
	mem := float64(b.filled.Load()) + float64(b.active.Load())/backlogUnit
	return max(mem/memTablesStop, float64(b.sublevels.Load())/sublevelsStop)
}
