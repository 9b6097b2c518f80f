package storage

import (
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"github.com/quorate/quorate/internal/errs"
)

// Batch collects writes that become visible together.
type Batch struct {
	s   *Store
	ops []batchOp
	// data holds the keys and values of ops, one after the other.
	data   []byte
	ranges int
}

type batchOp struct {
	kind opKind
	// a and b are the lengths of key and value, or of the bounds of a range.
	a, b int
}

type opKind uint8

const (
	opSet opKind = iota
	opDelete
	opDeleteRange
)

// batchSpareMax bounds the memory of a batch that is kept to be used again.
const batchSpareMax = 4 << 20

// pebbleMemTable is the size of Pebble's memtables. A memTable that has more than half of it takes no way through one.
const pebbleMemTable = 1 << 20

// pebbleRowOverhead is about what a row costs in a batch of Pebble's besides its bytes.
const pebbleRowOverhead = 16

// Batch returns an empty batch.
func (s *Store) Batch() *Batch {
	if b := s.spare; b != nil {
		s.spare = nil
		return b
	}
	return &Batch{s: s}
}

func (b *Batch) add(kind opKind, x, y []byte) {
	b.ops = append(b.ops, batchOp{kind, len(x), len(y)})
	b.data = append(append(b.data, x...), y...)
}

// Set stores a pair. Both slices are copied.
func (b *Batch) Set(key, value []byte) { b.add(opSet, key, value) }

// Delete removes a key.
func (b *Batch) Delete(key []byte) { b.add(opDelete, key, nil) }

// DeleteRange removes all keys with from <= key < to that were there before, in the batch or the store.
func (b *Batch) DeleteRange(from, to []byte) {
	b.add(opDeleteRange, from, to)
	b.ranges++
}

// each goes through the operations.
func (b *Batch) each(f func(kind opKind, x, y []byte) error) error {
	at := 0
	for _, o := range b.ops {
		x, y := b.data[at:at+o.a], b.data[at+o.a:at+o.a+o.b]
		at += o.a + o.b
		if err := f(o.kind, x, y); err != nil {
			return err
		}
	}
	return nil
}

// Commit makes the batch visible and releases it. It is durable only after a later Flush, or by the raft log. If too many
// memTables wait for the disk, it waits until there are fewer.
func (b *Batch) Commit() error {
	s := b.s
	if empty, err := b.empty(); empty || err != nil {
		b.Discard()
		return err
	}
	s.mu.Lock()
	err := errors.Join(s.failed, s.viewLocked())
	if err == nil {
		err = b.each(func(kind opKind, key, value []byte) error {
			if kind == opDeleteRange {
				s.active.deleteRange(key, value)
			} else {
				s.active.put(key, value, kind == opDelete)
			}
			return nil
		})
	}
	s.mu.Unlock()
	if b.Discard(); err != nil {
		return err
	}
	if s.step != nil {
		return s.step.committed(s)
	}
	fill := max(float64(s.active.bytes)/float64(s.cfg.MemTableBytes), float64(s.active.rows)/float64(s.cfg.MemTableRows)) / s.share
	if fill >= 1 {
		_, err := s.fill()
		return err
	}
	s.backlog.active.Store(int64(fill * backlogUnit))
	return nil
}

// Discard releases a batch without committing it.
func (b *Batch) Discard() {
	b.ops, b.data, b.ranges = b.ops[:0], b.data[:0], 0
	if cap(b.data) <= batchSpareMax {
		b.s.spare = b
	}
}

// empty reports whether the batch does nothing but remove ranges in which there is nothing.
func (b *Batch) empty() (bool, error) {
	if b.ranges == 0 || b.ranges < len(b.ops) {
		return false, nil
	}
	empty := true
	err := b.each(func(_ opKind, from, to []byte) error {
		var err error
		for range b.s.Scan(from, to, &err) {
			empty = false
			break
		}
		return err
	})
	return empty, err
}

// filledTable is a memTable that takes no more rows.
type filledTable struct {
	t *memTable
	// done is closed when its rows are durable.
	done chan struct{}
}

// memTablesStop is the number of memTables at which commits wait.
const memTablesStop = 8

// fill hands the active memTable to the flusher. It waits if too many are on their way.
func (s *Store) fill() (*filledTable, error) {
	f := &filledTable{t: s.active, done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.filled) >= memTablesStop-1 && s.failed == nil && !s.closed {
		s.changed.Wait()
	}
	if s.failed != nil {
		return nil, s.failed
	}
	// A view that is open keeps the memTable; the next one has it among the filled.
	s.filled = append(s.filled, f)
	s.active = &memTable{}
	s.drawShare()
	s.changed.Broadcast()
	s.backlog.active.Store(0)
	s.backlog.filled.Store(int64(len(s.filled)))
	return f, s.viewLocked()
}

// flusher writes filled memTables to disk, one after the other.
func (s *Store) flusher() {
	for {
		s.mu.Lock()
		for len(s.filled) == 0 && !s.closed {
			s.changed.Wait()
		}
		if s.closed {
			s.mu.Unlock()
			return
		}
		f := s.filled[0]
		s.mu.Unlock()
		err := s.write(f.t)
		s.mu.Lock()
		if err == nil {
			// A new slice: the old one would keep the rows in memory.
			s.filled = append([]*filledTable(nil), s.filled[1:]...)
			err = s.belowLocked()
		}
		if s.failed = errors.Join(s.failed, err); s.failed == nil {
			close(f.done)
		}
		s.backlog.filled.Store(int64(len(s.filled)))
		s.changed.Broadcast()
		failed := s.failed != nil
		s.mu.Unlock()
		if failed {
			return
		}
	}
}

// errClosedEarly is what waits for a flush is told if the store is closed before.
var errClosedEarly = errs.New(errs.Unavailable, "the state store was closed while it was flushed")

// write makes a table of a memTable's rows, and waits until all that Pebble has is durable.
func (s *Store) write(t *memTable) error {
	if t.rows > 0 || len(t.gone) > 0 {
		size := 0
		for _, r := range t.gone {
			size += len(r.from) + len(r.to) + pebbleRowOverhead
		}
		for it := t.own().iter(nil); it.row != nil; it.next() {
			size += len(it.key()) + len(it.value()) + pebbleRowOverhead
		}
		// One batch, so that a crash leaves all of it or nothing.
		p := s.db.NewBatchWithSize(size)
		var err error
		// The rows come after the ranges that they may be in.
		for _, r := range t.gone {
			err = errors.Join(err, p.DeleteRange(r.from, r.to, nil))
		}
		for it := t.own().iter(nil); it.row != nil && err == nil; it.next() {
			switch {
			case !it.row.deleted():
				err = p.Set(it.key(), it.value(), nil)
			case t.gone.covering(it.key()) == nil:
				err = p.Delete(it.key(), nil)
			}
		}
		if err == nil {
			err = p.Commit(pebble.NoSync)
		}
		if err = errors.Join(err, p.Close()); err != nil {
			return diskError(err, "write rows to the state store")
		}
	}
	done, err := s.db.AsyncFlush()
	if err != nil {
		return diskError(err, "flush state store")
	}
	select {
	case <-done:
		return nil
	case <-s.background.broken:
		return s.background.err()
	case <-s.end:
		return errClosedEarly
	}
}

// FlushStart starts a flush of everything committed so far and returns a channel that is closed when it is durable.
func (s *Store) FlushStart() (<-chan struct{}, error) {
	if s.step != nil {
		done := make(chan struct{})
		close(done)
		return done, s.Flush()
	}
	f, err := s.fill()
	if err != nil {
		return nil, err
	}
	return f.done, nil
}

// Flush makes everything committed so far durable and waits for it.
func (s *Store) Flush() error {
	if s.step != nil {
		return s.step.flush(s)
	}
	done, err := s.FlushStart()
	if err != nil {
		return err
	}
	return s.await(done)
}

// Rest waits until a deterministic store has nothing left to do: files that nobody reads any more are deleted by a goroutine
// of Pebble's. The simulation calls it before it looks at the disk.
func (s *Store) Rest() {
	if s.step != nil {
		s.db.TestOnlyWaitForCleaning()
	}
}

// await waits for a flush, or for what keeps it from ending.
func (s *Store) await(done <-chan struct{}) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		select {
		case <-done:
			return nil
		default:
		}
		if s.failed != nil {
			return s.failed
		}
		if s.closed {
			return errClosedEarly
		}
		s.changed.Wait()
	}
}
