package replica

import (
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/storage"
)

// logView is raft's view of one shard in the node's log: what is on disk or on its way there, with the newest entries in
// memory. raft itself keeps what is not yet durable.
type logView struct {
	r *replica
	// cache holds entries cacheFrom, cacheFrom+1, …; it is cut from the front when it grows over its bound.
	cache      []*raftpb.Entry
	cacheFrom  uint64
	cacheBytes int
	// last is the last entry handed to the log.
	last storage.Position
	// first is the lowest index that may be read; before is the position just before it.
	before storage.Position
	// state is the hard state to start with: the log's, none for a new replica id. The log itself may not have got to
	// writing yet that the old id is gone.
	state storage.HardState
}

var _ raft.Storage = (*logView)(nil)

// cacheBytesMax bounds the entries a shard keeps in memory for its followers.
const cacheBytesMax = 4 << 20

// InitialState implements raft.Storage.
func (v *logView) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	st, applied := v.state, v.r.machine.Applied()
	// What is applied was committed, even if the hard state that says so was not written yet.
	hs := &raftpb.HardState{Term: new(st.Term), Vote: new(st.Vote), Commit: new(max(st.Commit, applied.Index))}
	return hs, decodeConf(v.r.machine.Conf()), nil
}

// Entries implements raft.Storage.
func (v *logView) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	if lo <= v.before.Index {
		return nil, raft.ErrCompacted
	}
	if hi > v.last.Index+1 {
		return nil, raft.ErrUnavailable
	}
	if len(v.cache) > 0 && lo >= v.cacheFrom {
		from := v.cache[lo-v.cacheFrom : hi-v.cacheFrom]
		var size uint64
		for i, e := range from {
			if size += uint64(len(e.Data)) + 24; size > maxSize && i > 0 {
				return append([]*raftpb.Entry(nil), from[:i]...), nil
			}
		}
		return append([]*raftpb.Entry(nil), from...), nil
	}
	stored, err := v.r.host.log.Entries(v.r.id, lo, hi, maxSize)
	if err != nil {
		// The log is damaged where it was whole when it was opened. raft would only retry; the node must stop.
		v.r.host.fatal(err)
		return nil, raft.ErrUnavailable
	}
	out := make([]*raftpb.Entry, len(stored))
	for i := range stored {
		e := &stored[i]
		out[i] = &raftpb.Entry{
			Index: &e.Index, Term: &e.Term, Type: raftpb.EntryType(e.Type).Enum(), Data: e.Data,
		}
	}
	return out, nil
}

// Term implements raft.Storage.
func (v *logView) Term(i uint64) (uint64, error) {
	switch {
	case i < v.before.Index:
		return 0, raft.ErrCompacted
	case i == v.before.Index:
		return v.before.Term, nil
	case i > v.last.Index:
		return 0, raft.ErrUnavailable
	case i == v.last.Index:
		return v.last.Term, nil
	case len(v.cache) > 0 && i >= v.cacheFrom:
		return v.cache[i-v.cacheFrom].GetTerm(), nil
	}
	t, err := v.r.host.log.Term(v.r.id, i)
	if err != nil {
		switch errs.KindOf(err) {
		case errs.Compacted:
			return 0, raft.ErrCompacted
		case errs.NotFound:
			// It is on its way to the log, and large ones behind it have pushed it out of the cache. raft has it still, and does
			// not ask.
			return 0, raft.ErrUnavailable
		}
		v.r.host.fatal(err)
		return 0, raft.ErrUnavailable
	}
	return t, nil
}

// known is Term for an entry of which raft may know more: while writes are under way, the log may hold one that is replaced.
func (v *logView) known(i uint64) (uint64, error) {
	if i > v.before.Index && i < v.last.Index && (len(v.cache) == 0 || i < v.cacheFrom) && !v.r.host.logIdle() {
		return 0, raft.ErrUnavailable
	}
	return v.Term(i)
}

// LastIndex implements raft.Storage.
func (v *logView) LastIndex() (uint64, error) { return v.last.Index, nil }

// FirstIndex implements raft.Storage.
func (v *logView) FirstIndex() (uint64, error) { return v.before.Index + 1, nil }

// Snapshot implements raft.Storage: raft asks when a follower needs entries that are cut. The rows themselves travel
// beside raft; see snapshot.go.
func (v *logView) Snapshot() (*raftpb.Snapshot, error) { return v.r.makeSnapshot() }

// append takes over entries that are on their way to the log.
func (v *logView) append(ents []*raftpb.Entry) {
	if len(ents) == 0 {
		return
	}
	first := ents[0].GetIndex()
	if len(v.cache) == 0 || first < v.cacheFrom || first > v.cacheFrom+uint64(len(v.cache)) {
		v.cache, v.cacheFrom, v.cacheBytes = v.cache[:0], first, 0
	}
	for _, e := range v.cache[first-v.cacheFrom:] {
		v.cacheBytes -= len(e.Data) + 64
	}
	var suffix []*raftpb.Entry
	if keep := int(first-v.cacheFrom) + len(ents); env.Mutant(env.MutantSuffixKept) && keep < len(v.cache) {
		suffix = slices.Clone(v.cache[keep:])
	}
	v.cache = append(append(v.cache[:first-v.cacheFrom], ents...), suffix...)
	for _, e := range ents {
		v.cacheBytes += len(e.Data) + 64
	}
	last := ents[len(ents)-1]
	if env.Mutant(env.MutantSuffixKept) && v.last.Index > last.GetIndex() {
		return
	}
	v.last = storage.Position{Index: last.GetIndex(), Term: last.GetTerm()}
	v.shrink(cacheBytesMax)
}

// shrink drops the oldest cached entries down to a size.
func (v *logView) shrink(to int) {
	n := 0
	for n < len(v.cache) && v.cacheBytes > to {
		v.cacheBytes -= len(v.cache[n].Data) + 64
		n++
	}
	if n == 0 {
		return
	}
	v.cacheFrom += uint64(n)
	if n == len(v.cache) {
		v.cache = nil
		return
	}
	// The backing array is moved only now and then, so that dropping is cheap.
	clear(v.cache[:n])
	v.cache = v.cache[n:]
}

// reset starts the log anew after a position.
func (v *logView) reset(at storage.Position) {
	v.cache, v.cacheBytes = nil, 0
	v.last, v.before = at, at
}

// cut forgets the entries at and before an index. It returns false if there is nothing to cut.
func (v *logView) cut(index uint64) bool {
	if index <= v.before.Index {
		return false
	}
	t, err := v.Term(index)
	if err != nil {
		return false
	}
	v.before = storage.Position{Index: index, Term: t}
	if len(v.cache) > 0 && index >= v.cacheFrom {
		n := min(index-v.cacheFrom+1, uint64(len(v.cache)))
		for _, e := range v.cache[:n] {
			v.cacheBytes -= len(e.Data) + 64
		}
		v.cache = append([]*raftpb.Entry(nil), v.cache[n:]...)
		v.cacheFrom += n
	}
	return true
}
