package storage

import (
	"bytes"
	"errors"
	"iter"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// Reader reads a Store or a Snapshot of one.
type Reader interface {
	// Get returns a copy of the value of key, and whether there is one.
	Get(key []byte) ([]byte, bool, error)
	// Scan yields the pairs with from <= key < to in order. Key and value are valid only until the next step. A disk
	// error ends the sequence and is reported by *errp.
	Scan(from, to []byte, errp *error) iter.Seq2[[]byte, []byte]
}

// layers are what a read looks through: memTables, the newest first, then Pebble.
type layers struct {
	mem   []memView
	below pebble.Reader
}

// layers returns what the goroutine that commits reads. They are good until it commits again.
func (s *Store) layers() layers {
	s.mu.Lock()
	filled := s.filled
	s.mu.Unlock()
	l := layers{mem: make([]memView, 0, 1+len(filled)), below: s.db}
	return l.with(s.active.own(), filled)
}

func (l layers) with(active memView, filled []*filledTable) layers {
	if active.root != nil || len(active.gone) > 0 {
		l.mem = append(l.mem, active)
	}
	for i := len(filled) - 1; i >= 0; i-- {
		l.mem = append(l.mem, filled[i].t.own())
	}
	return l
}

func (l layers) get(key []byte) ([]byte, bool, error) {
	for _, m := range l.mem {
		if r := m.find(key); r != nil {
			return bytes.Clone(rowValue(m.chunks, r)), !r.deleted(), nil
		}
		if m.gone.covering(key) != nil {
			return nil, false, nil
		}
	}
	v, c, err := l.below.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, diskError(err, "read state store")
	}
	v = append(make([]byte, 0, len(v)), v...)
	// A value in a blob file that could not be read is empty here, and Close says so.
	if err := c.Close(); err != nil {
		return nil, false, diskError(err, "read state store")
	}
	return v, true, nil
}

func (l layers) scan(from, to []byte, errp *error) iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		it, err := l.below.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
		if err != nil {
			*errp = diskError(err, "scan state store")
			return
		}
		mem := make([]*memIter, 0, len(l.mem))
		for _, m := range l.mem {
			mem = append(mem, m.iter(from))
		}
		l.merge(mem, to, it, yield)
		if err := errors.Join(it.Error(), it.Close()); err != nil {
			*errp = diskError(err, "scan state store")
		}
	}
}

// hidden returns where the deleted range ends that a key of layer n is in, nil if it is in none of a newer layer.
func (l layers) hidden(n int, key []byte) []byte {
	for _, m := range l.mem[:n] {
		if s := m.gone.covering(key); s != nil {
			return s.to
		}
	}
	return nil
}

// merge yields the rows of all layers in order; of rows with the same key it takes the first layer's. It ends where a table
// cannot be read: what comes behind must not look as if nothing were missing.
func (l layers) merge(mem []*memIter, to []byte, it *pebble.Iterator, yield func([]byte, []byte) bool) {
	more := it.First()
	// below and above move on from rows that are hidden, in Pebble and in the memTables.
	below, above := func() {}, func(int) {}
	if slices.ContainsFunc(l.mem, func(m memView) bool { return len(m.gone) > 0 }) {
		below = func() {
			for more {
				end := l.hidden(len(l.mem), it.Key())
				if end == nil {
					return
				}
				more = it.SeekGE(end)
			}
		}
		above = func(i int) {
			for mem[i].row != nil {
				end := l.hidden(i, mem[i].key())
				if end == nil {
					return
				}
				mem[i].seek(end)
			}
		}
		below()
		for i := range mem {
			above(i)
		}
	}
	for more || it.Error() == nil {
		// The lowest key, and the newest layer that has it.
		var key []byte
		at := -1
		for i, m := range mem {
			if m.row != nil && (at < 0 || bytes.Compare(m.key(), key) < 0) {
				key, at = m.key(), i
			}
		}
		if at >= 0 && to != nil && bytes.Compare(key, to) >= 0 {
			at = -1
		}
		switch {
		case at < 0 && !more:
			return
		case at < 0 || more && bytes.Compare(it.Key(), key) < 0:
			// A value in a blob file is read only now.
			v, err := it.ValueAndErr()
			if err != nil || !yield(it.Key(), v) {
				return
			}
			more = it.Next()
			below()
			continue
		}
		if m := mem[at]; !m.row.deleted() && !yield(key, m.value()) {
			return
		}
		if more && bytes.Equal(it.Key(), key) {
			more = it.Next()
			below()
		}
		for i, m := range mem {
			if m.row != nil && bytes.Equal(m.key(), key) {
				m.next()
				above(i)
			}
		}
	}
}

// Get implements Reader.
func (s *Store) Get(key []byte) ([]byte, bool, error) { return s.layers().get(key) }

// Scan implements Reader.
func (s *Store) Scan(from, to []byte, errp *error) iter.Seq2[[]byte, []byte] {
	return s.layers().scan(from, to, errp)
}

// Snapshot is a consistent view of a Store at one moment. It must be closed, once.
type Snapshot struct {
	layers
	store *Store
	base  *pebbleView
	// users counts those who have not closed it; guarded by Store.mu.
	users int

	// often guards kept, what GetOften has found.
	often sync.Mutex
	kept  []keptRow
}

type keptRow struct {
	key   string
	value []byte
	there bool
}

// keptMax bounds the rows that a Snapshot keeps at hand, which are looked through one by one, and keptBytesMax the value of each.
const keptMax, keptBytesMax = 16, 1 << 10

// pebbleView is a snapshot of Pebble's that several Snapshots share. users is guarded by Store.mu.
type pebbleView struct {
	s     *pebble.Snapshot
	users int
}

// Snapshot returns a view that holds every batch whose Commit has returned, and none that has not begun. Between two batches
// all callers share one.
func (s *Store) Snapshot() *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.view == nil {
		if s.below == nil {
			s.below = &pebbleView{s: s.db.NewSnapshot(), users: 1}
		}
		s.below.users++
		v := &Snapshot{layers: layers{below: s.below.s}, store: s, base: s.below, users: 1}
		v.layers = v.with(s.active.view(), s.filled)
		s.view = v
	}
	s.view.users++
	return s.view
}

// viewLocked makes the next Snapshot a new one: what was committed must be in it.
func (s *Store) viewLocked() error {
	v := s.view
	s.view = nil
	if v == nil {
		return nil
	}
	return v.closeLocked()
}

// belowLocked does the same for Pebble's part of it: an old one that is kept would keep what is overwritten from being
// removed.
func (s *Store) belowLocked() error {
	err := s.viewLocked()
	b := s.below
	s.below = nil
	if b == nil {
		return err
	}
	return errors.Join(err, b.closeLocked())
}

func (b *pebbleView) closeLocked() error {
	if b.users--; b.users > 0 {
		return nil
	}
	return b.s.Close()
}

// Get implements Reader.
func (s *Snapshot) Get(key []byte) ([]byte, bool, error) { return s.get(key) }

// GetOften is Get for a small row that nearly every reader of the view asks for, of which there are few: it is looked for once. The value must
// not be changed.
func (s *Snapshot) GetOften(key []byte) ([]byte, bool, error) {
	s.often.Lock()
	for i := range s.kept {
		if r := &s.kept[i]; r.key == string(key) {
			s.often.Unlock()
			return r.value, r.there, nil
		}
	}
	s.often.Unlock()
	v, ok, err := s.get(key)
	if err == nil && len(v) <= keptBytesMax {
		s.often.Lock()
		// Somebody else may have found it meanwhile; to have it twice does no harm.
		if len(s.kept) < keptMax {
			s.kept = append(s.kept, keptRow{string(key), v, ok})
		}
		s.often.Unlock()
	}
	return v, ok, err
}

// Scan implements Reader.
func (s *Snapshot) Scan(from, to []byte, errp *error) iter.Seq2[[]byte, []byte] {
	return s.scan(from, to, errp)
}

// Close releases the view.
func (s *Snapshot) Close() error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	return s.closeLocked()
}

func (s *Snapshot) closeLocked() error {
	if s.users--; s.users > 0 {
		return nil
	}
	return s.base.closeLocked()
}
