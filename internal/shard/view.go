package shard

import (
	"encoding/binary"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/storage"
)

// view implements View on a snapshot of the store.
type view struct {
	r      storage.Reader
	m      *Machine
	place  []byte
	module ModuleID
	st     *state
	err    error
}

// Query runs a module's query on a consistent view of what is committed. It may be called from any goroutine. It fails
// with errs.Unavailable while the replica is being rebuilt.
func (m *Machine) Query(c Command) ([]byte, error) {
	mod, err := m.module(c.Module)
	if err != nil {
		return nil, err
	}
	snap, place, err := m.consistent()
	// There is one also with an error. To close it cannot fail in a way that matters.
	defer func() { _ = snap.Close() }()
	if err != nil {
		return nil, err
	}
	v := &view{r: snap, m: m, place: place, module: c.Module}
	out, err := mod.Query(v, c.Data)
	if v.err != nil {
		return nil, v.err
	}
	return out, err
}

// consistent takes a snapshot of the store together with the place of the shard's rows in it. Its error is Readable's; who
// may look at any state ignores it. If the state is good when that is asked, so is the snapshot: it can only become bad by
// a wipe, which shows in installs.
func (m *Machine) consistent() (snap *storage.Snapshot, place []byte, err error) {
	for {
		before := m.installs.Load()
		err = m.Readable()
		snap, place = m.store.Snapshot(), *m.place.Load()
		if before%2 == 0 && m.installs.Load() == before {
			return snap, place, err
		}
		// An install was under way; it is a moment's work, and there is nothing to wait on but itself.
		_ = snap.Close()
	}
}

func (v *view) fail(err error) {
	if err != nil && v.err == nil {
		v.err = err
	}
}

func (v *view) Get(key []byte) ([]byte, bool) { return v.get(v.module, key) }

func (v *view) get(id ModuleID, key []byte) ([]byte, bool) {
	k := make([]byte, 0, placeSize+1+len(key))
	k = append(append(append(k, v.place...), byte(id)), key...)
	get := v.r.Get
	if s, ok := v.r.(*storage.Snapshot); ok && len(key) == 1 {
		// A module has few such rows, and nearly every query reads them.
		get = s.GetOften
	}
	val, ok, err := get(k)
	v.fail(err)
	return val, ok
}

func (v *view) Scan(from, to []byte) iter.Seq2[[]byte, []byte] { return v.scan(v.module, from, to) }

func (v *view) scan(id ModuleID, from, to []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		lo, hi := bounds(id, from, to)
		var err error
		for k, val := range v.r.Scan(slices.Concat(v.place, lo), slices.Concat(v.place, hi), &err) {
			if !yield(k[placeSize+1:], val) {
				return
			}
		}
		v.fail(err)
	}
}

func (v *view) Ask(q Command) ([]byte, error) {
	mod, err := v.m.module(q.Module)
	if err != nil {
		return nil, err
	}
	was := v.module
	v.module = q.Module
	defer func() { v.module = was }()
	return mod.Query(v, q.Data)
}

func (v *view) state() *state {
	if v.st == nil {
		v.st = &state{}
		if b, ok := v.get(ModuleShard, []byte{rowState}); ok {
			v.fail(v.st.decode(b))
		}
	}
	return v.st
}

func (v *view) Now() time.Time { return time.Unix(0, v.state().Stamp).UTC() }

func (v *view) Revision() Revision { return v.state().Revision }

func (v *view) Changes(from uint64, bytesMax int) (ChangeSet, error) {
	st := v.state()
	cs := ChangeSet{First: st.ChangeFirst, End: st.ChangeNext, From: from}
	if from < cs.First {
		return cs, errs.New(errs.Compacted, "changes before position %d are no longer kept; %d was asked for", cs.First, from)
	}
	if from >= cs.End {
		return cs, nil
	}
	// The chunk that holds from starts at or before it. Chunks hold at least one change and end with entries, so the
	// start is found by walking back from the next chunk's key.
	start := v.chunkStart(from, st)
	for k, row := range v.scan(ModuleShard, changeKey(start), []byte{rowChange + 1}) {
		pos := binary.BigEndian.Uint64(k[1:])
		_, w := binary.Uvarint(row)
		if w <= 0 {
			return cs, errs.New(errs.Corrupt, "malformed chunk in the change log")
		}
		body := slices.Clone(row[w:])
		for len(body) > 0 {
			ch, rest, err := decodeChange(body)
			if err != nil {
				return cs, err
			}
			if pos >= from {
				cs.Changes = append(cs.Changes, ch)
				bytesMax -= len(body) - len(rest)
			}
			pos++
			body = rest
			if bytesMax <= 0 && len(cs.Changes) > 0 {
				return cs, nil
			}
		}
	}
	return cs, nil
}

// chunkStart finds the key of the chunk that holds a position: the last key at or before it. The store scans forward
// only, so it looks in windows that double.
func (v *view) chunkStart(pos uint64, st *state) uint64 {
	// Who follows the log goes on where a chunk ended.
	if _, ok := v.get(ModuleShard, changeKey(pos)); ok {
		return pos
	}
	for width := uint64(64); ; width *= 4 {
		lo := st.ChangeFirst
		if pos-lo > width {
			lo = pos - width
		}
		found, ok := uint64(0), false
		for k := range v.scan(ModuleShard, changeKey(lo), changeKey(pos+1)) {
			found, ok = binary.BigEndian.Uint64(k[1:]), true
		}
		if ok || lo == st.ChangeFirst || v.err != nil {
			if !ok {
				return st.ChangeFirst
			}
			return found
		}
	}
}

// SnapshotReader reads a shard's whole state at one applied index, in chunks. It may be used from any goroutine, one at a
// time, while the machine goes on.
type SnapshotReader struct {
	snap  *storage.Snapshot
	place []byte
	next  []byte
	pos   storage.Position
	conf  []byte
}

// Snapshot opens a reader of what is committed now.
func (m *Machine) Snapshot() (*SnapshotReader, error) {
	snap, place, _ := m.consistent()
	v := &view{r: snap, m: m, place: place}
	st := v.state()
	if v.err != nil {
		return nil, errors.Join(v.err, snap.Close())
	}
	return &SnapshotReader{
		snap: snap, place: place, next: slices.Clone(place), pos: storage.Position{Index: st.Index, Term: st.Term},
		conf: st.Conf,
	}, nil
}

// Position returns the applied position that the snapshot holds.
func (r *SnapshotReader) Position() storage.Position { return r.pos }

// Conf returns the raft configuration at that position.
func (r *SnapshotReader) Conf() []byte { return r.conf }

// Next returns the next rows, about bytesMax of them, at least one. It returns nil at the end.
func (r *SnapshotReader) Next(bytesMax int) ([]byte, error) {
	var out []byte
	var err error
	end := slices.Clone(r.place)
	binary.BigEndian.PutUint32(end[5:], binary.BigEndian.Uint32(end[5:])+1)
	for k, v := range r.snap.Scan(r.next, end, &err) {
		if len(out) > 0 && len(out)+len(k)+len(v) > bytesMax {
			r.next = slices.Clone(k)
			return out, nil
		}
		out = codec.AppendBytes(codec.AppendBytes(out, k[placeSize:]), v)
	}
	r.next = end
	return out, err
}

// Close releases the reader.
func (r *SnapshotReader) Close() error { return r.snap.Close() }

// Changes reads the shard's change log as of what is committed. See View.Changes.
func (m *Machine) Changes(from uint64, bytesMax int) (ChangeSet, error) {
	snap, place, _ := m.consistent()
	defer snap.Close() //nolint:errcheck // closing a read view cannot fail in a way that matters
	v := &view{r: snap, m: m, place: place}
	cs, err := v.Changes(from, bytesMax)
	if v.err != nil {
		return cs, v.err
	}
	return cs, err
}
