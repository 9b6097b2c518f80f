package storage

import (
	"sort"

	"github.com/quorate/quorate/internal/env"
)

// slot says where an entry lies. Recovery also has slots without an entry, and slots that may have been replaced by a
// record that is lost.
type slot struct {
	seg uint64
	off uint32 // 0: missing, since a segment starts with its header
	n   uint32 // length of the encoded entry; the highest bit says dubious
}

const slotDubious = 1 << 31

func (e slot) len() int      { return int(e.n &^ slotDubious) }
func (e slot) end() int64    { return int64(e.off) + int64(e.len()) }
func (e slot) missing() bool { return e.off == 0 }
func (e slot) dubious() bool { return e.n&slotDubious != 0 }

// termRun says that the entries from index on, up to the next run, have this term.
type termRun struct{ index, term uint64 }

// shardLog is what is kept in memory of one shard. An idle shard without entries costs this struct only.
type shardLog struct {
	replica uint64
	state   HardState
	cut     Position  // entries start behind it
	slots   []slot    // slots[i] is the entry with index cut.Index+1+i
	terms   []termRun // rising indexes; covers exactly the slots
	counter uint64    // of the last sub-record
	suspect bool      // kept in checkpoints until settled

	// The rest is used by recovery only.
	gap   bool // sub-records were lost since the last checkpoint
	epoch int  // number of losses before the shard's last sub-record
}

func (s *shardLog) last() uint64 { return s.cut.Index + uint64(len(s.slots)) }

// term returns the term at an index from cut to last.
func (s *shardLog) term(i uint64) uint64 {
	if i == s.cut.Index {
		return s.cut.Term
	}
	k := sort.Search(len(s.terms), func(k int) bool { return s.terms[k].index > i })
	return s.terms[k-1].term
}

func (s *shardLog) lastPosition() Position { return Position{s.last(), s.term(s.last())} }

// truncateTerms drops the runs at and after index i.
func (s *shardLog) truncateTerms(i uint64) {
	k := len(s.terms)
	for k > 0 && s.terms[k-1].index >= i {
		k--
	}
	s.terms = s.terms[:k]
}

func (s *shardLog) appendTerm(i, term uint64) {
	if k := len(s.terms); k == 0 || s.terms[k-1].term != term {
		s.terms = append(s.terms, termRun{i, term})
	}
}

// setTerm changes the term at one index. Recovery needs it where a rewrite fills in entries that are no longer found where
// they were first written; these come in rising order, so the list of runs stays short.
func (s *shardLog) setTerm(i, term uint64) {
	if s.term(i) == term {
		return
	}
	old := s.terms
	s.terms = make([]termRun, 0, len(old)+2)
	put := func(from, to, t uint64) {
		if from < to {
			s.appendTerm(from, t)
		}
	}
	for k, r := range old {
		end := s.last() + 1
		if k+1 < len(old) {
			end = old[k+1].index
		}
		if i < r.index || i >= end {
			put(r.index, end, r.term)
			continue
		}
		put(r.index, i, r.term)
		put(i, i+1, term)
		put(i+1, end, r.term)
	}
}

// current returns the segment being written.
func (l *Log) current() *segment { return l.segs[len(l.segs)-1] }

// segment returns the segment with a number, nil if there is none.
func (l *Log) segment(seq uint64) *segment {
	i := sort.Search(len(l.segs), func(i int) bool { return l.segs[i].seq >= seq })
	if i < len(l.segs) && l.segs[i].seq == seq {
		return l.segs[i]
	}
	return nil
}

// oldestLocked returns the position in segs of the first segment that holds a needed entry, or is the current one.
func (l *Log) oldestLocked() int {
	for i, g := range l.segs {
		if g.live > 0 {
			return i
		}
	}
	return len(l.segs) - 1
}

// countLocked adds or takes away slots in their segments' count of needed entries.
func (l *Log) countLocked(slots []slot, sign int) {
	var g *segment
	for _, e := range slots {
		if e.missing() {
			continue
		}
		if g == nil || g.seq != e.seg {
			if g = l.segment(e.seg); g == nil {
				continue
			}
		}
		g.live += sign
		g.liveBytes += int64(sign * e.len())
	}
}

// dropAllLocked forgets all entries; the log of the shard goes on after pos.
func (l *Log) dropAllLocked(s *shardLog, pos Position) {
	l.countLocked(s.slots, -1)
	s.slots, s.terms, s.cut = nil, nil, pos
}

// dropFromLocked forgets the entries at and after index i, which is above the cut.
func (l *Log) dropFromLocked(s *shardLog, i uint64) {
	if i > s.last() {
		return
	}
	k := i - s.cut.Index - 1
	l.countLocked(s.slots[k:], -1)
	s.slots = s.slots[:k]
	s.truncateTerms(i)
}

// cutLocked forgets the entries at and before pos.
func (l *Log) cutLocked(s *shardLog, pos Position) {
	if pos.Index <= s.cut.Index {
		return
	}
	if pos.Index >= s.last() {
		l.dropAllLocked(s, pos)
		return
	}
	k := int(pos.Index - s.cut.Index)
	l.countLocked(s.slots[:k], -1)
	if rest := s.slots[k:]; k > len(rest) {
		s.slots = append(make([]slot, 0, len(rest)), rest...) // let the cut part of the array go
	} else {
		s.slots = rest
	}
	r := sort.Search(len(s.terms), func(r int) bool { return s.terms[r].index > pos.Index+1 }) - 1
	s.terms = s.terms[:copy(s.terms, s.terms[r:])]
	s.terms[0].index = pos.Index + 1
	s.cut = pos
}

// applyLocked changes the index by one sub-record, on Append and in recovery alike. slots and terms belong to its entries.
func (l *Log) applyLocked(r *subRecord, slots []slot, terms []uint64) {
	s := l.shards[r.shard]
	if r.flags&subRemove != 0 {
		if s != nil {
			l.dropAllLocked(s, Position{})
			delete(l.shards, r.shard)
		}
		return
	}
	if s == nil {
		s = &shardLog{}
		l.shards[r.shard] = s
	}
	if r.flags&subForget != 0 {
		l.dropAllLocked(s, Position{})
		*s = shardLog{}
	}
	s.counter = r.counter
	if r.flags&subReplica != 0 {
		s.replica = r.replica
	}
	if r.flags&subReset != 0 {
		l.dropAllLocked(s, r.reset)
	}
	if r.flags&subEntries != 0 {
		l.putLocked(s, r.first, slots, terms)
	}
	if r.flags&subState != 0 {
		s.state = r.state
	}
	if r.flags&subCut != 0 {
		l.cutLocked(s, r.cut)
	}
}

// putLocked stores entries from index first on, which is at most one past the last, and drops what was there and behind.
func (l *Log) putLocked(s *shardLog, first uint64, slots []slot, terms []uint64) {
	var suffix []slot
	var suffixTerms []uint64
	if end := first + uint64(len(slots)); end <= s.last() && env.Mutant(env.MutantSuffixKept) {
		suffix = append(suffix, s.slots[end-s.cut.Index-1:]...)
		for i := end; i <= s.last(); i++ {
			suffixTerms = append(suffixTerms, s.term(i))
		}
	}
	l.dropFromLocked(s, first)
	for i := range slots {
		s.appendTerm(first+uint64(i), terms[i])
	}
	for i := range suffix {
		s.appendTerm(first+uint64(len(slots)+i), suffixTerms[i])
	}
	s.slots = append(append(s.slots, slots...), suffix...)
	l.countLocked(slots, 1)
	l.countLocked(suffix, 1)
}
