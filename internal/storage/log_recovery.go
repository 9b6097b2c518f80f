package storage

import (
	crand "crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"sort"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
)

// missingMax bounds the slots that recovery makes for entries of a shard that it has not found (yet). The checkpoint of the
// oldest segment may speak of millions, all cut since; so many are kept as a hole, which copies do not fill. So nothing is
// copied forward of a shard that has more entries than this.
const missingMax = 1 << 16

// recovery rebuilds a Log from its directory. The rules are in docs/formats/raftlog.md, "Recovery".
type recovery struct {
	l   *Log
	out *Recovery

	ident   identity
	identOK bool
	next    uint64 // number that the next record should have; 0: not known
	max     uint64 // highest number seen
	epoch   int    // counts losses of records that cannot be put down to a shard
	buf     []byte

	// holes has the cut of shards that miss more entries than there should be slots for. The entries behind the cut and
	// up to shardLog.cut are missing.
	holes map[ShardID]Position

	// unneeded are segments that the log does without. They stay until it is certain that it goes on from what was found.
	unneeded []uint64
}

// OpenLog opens the log in dir, making it if there is none, and says what it found. Damage of the log's bytes is no error: what
// is left is opened, and Recovery tells what may be lost. Only where it is the only copy, and a shard may have lost something, it
// is one, errs.Corrupt. errs.Unavailable means that the system does not let the files be read, which says nothing of what is
// in them. Both leave everything as it is. Any other error means that the directory or its files cannot be written, or hold
// a format of a later version.
func OpenLog(fs FS, dir string, cfg LogConfig) (*Log, *Recovery, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, nil, err
	}
	l := &Log{fs: fs, dir: dir, cfg: cfg, next: 1, shards: make(map[ShardID]*shardLog), seen: make(map[ShardID]struct{})}
	r := &recovery{l: l, out: &Recovery{}, holes: make(map[ShardID]Position)}
	if err := r.run(); err != nil {
		for _, g := range l.segs {
			g.release()
		}
		return nil, nil, err
	}
	return l, r.out, nil
}

func (r *recovery) run() error {
	l := r.l
	if err := l.fs.MkdirAll(l.dir, 0o755); err != nil {
		return errs.Wrap(errs.OutcomeUnknown, err, "make raft log directory %s", l.dir)
	}
	names, err := l.fs.List(l.dir)
	if err != nil {
		return errs.Wrap(errs.OutcomeUnknown, err, "list raft log directory %s", l.dir)
	}
	var seqs []uint64
	for _, name := range names {
		if seq, ok := parseSegmentName(name); ok {
			seqs = append(seqs, seq)
		}
	}
	sort.Slice(seqs, func(i, j int) bool { return seqs[i] < seqs[j] })
	fresh, err := r.identity(seqs)
	if err != nil {
		return err
	}
	if fresh {
		if err := r.syncParents(); err != nil {
			return err
		}
		if err := l.writeIdentity(); err != nil {
			return err
		}
		return l.startSegment(1, 0, 0, 0)
	}
	last, err := r.segments(seqs)
	if err != nil {
		return err
	}
	return r.finish(last)
}

// syncParents sees to it that the directory itself is not lost once it holds something. The directories above its parent
// need not be readable for us; if they are not, someone else has made them.
func (r *recovery) syncParents() error {
	fs, dir := r.l.fs, r.l.fs.PathDir(r.l.dir)
	if err := syncDir(fs, dir); err != nil {
		return errs.Wrap(errs.OutcomeUnknown, err, "sync parent of raft log directory")
	}
	for up := fs.PathDir(dir); up != dir; dir, up = up, fs.PathDir(up) {
		_ = syncDir(fs, up)
	}
	return nil
}

func (r *recovery) damage(file string, off, n int64, reason string) {
	r.out.Damaged = append(r.out.Damaged, Damage{File: file, Offset: off, Length: n, Reason: reason})
}

// lost notes that records are lost of which the shards are not known.
func (r *recovery) lost() {
	r.epoch++
	r.l.allSuspect = true
}

// identity reads LOG and finds the log's id. fresh means that there is no log yet.
func (r *recovery) identity(seqs []uint64) (fresh bool, err error) {
	l := r.l
	b, err := readFile(l.fs, l.path(identityName), nil, func(int64, int64, error) {})
	if err == nil {
		r.ident, err = decodeIdentity(b)
	}
	switch {
	case err == nil:
		r.identOK = true
		l.id = r.ident.id
		if r.ident.last == 0 && len(seqs) == 0 {
			return true, nil
		}
		return false, nil
	case errs.Is(err, errs.Unsupported), errs.Is(err, errs.Unavailable):
		return false, err
	case errors.Is(err, fs.ErrNotExist) && len(seqs) == 0:
		l.id = r.l.cfg.ID
		for l.id == 0 {
			var b [8]byte
			_, _ = crand.Read(b[:]) // never fails since Go 1.24
			l.id = le.Uint64(b[:])
		}
		return true, nil
	}
	r.damage(identityName, 0, identityBytes, "identity file is missing or damaged: "+err.Error())
	for _, seq := range seqs {
		b, err := r.read(seq)
		if errs.Is(err, errs.Unavailable) {
			return false, err
		}
		if err == nil {
			if id, ok := headerID(b); ok {
				l.id = id
				return false, nil
			}
		}
	}
	// No file says which log this was: nothing in it can be checked. A new id keeps all of it out.
	l.id = l.cfg.ID + 1
	for l.cfg.ID == 0 && l.id <= 1 {
		var b [8]byte
		_, _ = crand.Read(b[:])
		l.id = le.Uint64(b[:])
	}
	return false, nil
}

// read reads a segment file without caring where it fails.
func (r *recovery) read(seq uint64) ([]byte, error) {
	b, err := readFile(r.l.fs, r.l.path(segmentName(seq)), r.buf, func(int64, int64, error) {})
	if err == nil {
		r.buf = b
	}
	return b, err
}

// probe finds out what header and checkpoint of a segment say. headerBad reports damage of the header, even if the
// checkpoint has the same.
func (r *recovery) probe(seq uint64) (info segmentInfo, ok, headerBad bool, err error) {
	b, err := r.read(seq)
	if errs.Is(err, errs.Unavailable) {
		return segmentInfo{}, false, false, err
	}
	if err != nil {
		return segmentInfo{}, false, true, nil
	}
	info, err = decodeSegmentHeader(b, r.l.id, seq)
	if err == nil {
		return info, true, false, nil
	}
	if errs.Is(err, errs.Unsupported) {
		return info, false, false, err
	}
	if rec, ok := recordAt(b, segmentHeaderBytes, seedOf(r.l.id, seq), !r.l.cfg.NoVerify); ok && rec.kind == kindCheckpoint {
		if c, err := decodeCheckpoint(rec.payload, rec.number, seq); err == nil {
			return c.info, true, true, nil
		}
	}
	return segmentInfo{}, false, true, nil
}

// segments reads all segments in order and returns the number of the last.
func (r *recovery) segments(seqs []uint64) (last uint64, err error) {
	last = r.ident.last
	if !r.identOK && len(seqs) > 0 {
		last = seqs[len(seqs)-1]
	}
	present := make(map[uint64]bool)
	for _, seq := range seqs {
		present[seq] = true
		if seq <= last {
			continue
		}
		acked, err := r.acknowledged(seq)
		if err != nil {
			return 0, err
		}
		if acked {
			r.damage(identityName, 0, identityBytes, "identity file is older than the segments")
			last = seq
			// Those in between were finished too, whatever is in them.
			r.unneeded = nil
			continue
		}
		r.unneeded = append(r.unneeded, seq) // it was being made
	}
	oldest := r.ident.oldest
	infos := make(map[uint64]segmentInfo)
	for i := len(seqs) - 1; i >= 0; i-- {
		seq := seqs[i]
		if seq > last || seq < oldest {
			continue
		}
		info, ok, headerBad, err := r.probe(seq)
		if err != nil {
			return 0, err
		}
		if headerBad {
			r.damage(segmentName(seq), 0, segmentHeaderBytes, "segment header is damaged")
		}
		if ok {
			infos[seq] = info
			if !r.identOK {
				oldest = max(oldest, info.oldest)
			}
		}
	}
	if oldest == 0 && len(seqs) > 0 {
		oldest = seqs[0]
	}
	for _, seq := range seqs {
		if seq < oldest {
			r.unneeded = append(r.unneeded, seq) // it was cut
		}
	}
	if last == 0 || !r.identOK && len(seqs) == 0 {
		// LOG is damaged and there is no segment, or the node stopped while it made the first one.
		if !r.identOK {
			r.lost()
		}
		return last, nil
	}
	return last, r.walk(oldest, last, present, infos)
}

// walk replays the segments from oldest to last. Missing ones are few, unless LOG is from another world.
func (r *recovery) walk(oldest, last uint64, present map[uint64]bool, infos map[uint64]segmentInfo) error {
	for seq := oldest; seq <= last; seq++ {
		if !present[seq] {
			from := seq
			for seq < last && !present[seq+1] {
				if seq++; seq-from > 1<<16 {
					seq = last // a number this far off is no segment's
				}
			}
			reason := "segment is missing"
			if seq > from {
				reason = "segments are missing, up to " + segmentName(seq)
			}
			r.damage(segmentName(from), 0, 0, reason)
			r.lost()
			r.next = 0
			continue
		}
		var nextInfo *segmentInfo
		if info, ok := infos[seq+1]; ok && seq < last {
			nextInfo = &info
		}
		info, ok := infos[seq]
		if err := r.segment(seq, info, ok, nextInfo, seq == last); err != nil {
			return err
		}
	}
	return nil
}

// acknowledged says whether a segment that LOG does not know of holds more than what a rotation writes.
func (r *recovery) acknowledged(seq uint64) (bool, error) {
	b, err := r.read(seq)
	if errs.Is(err, errs.Unavailable) {
		return false, err
	}
	if err != nil {
		return false, nil
	}
	if _, err := decodeSegmentHeader(b, r.l.id, seq); err != nil {
		return false, nil
	}
	for _, rec := range scanSegment(b, segmentHeaderBytes, len(b), seedOf(r.l.id, seq), 0, true) {
		if rec.kind != kindCheckpoint && rec.kind != kindRewrite {
			return true, nil
		}
	}
	return false, nil
}

// scanSegment finds all valid records of b[from:to] with rising numbers not below next. Where none stands it looks for one
// further on.
func scanSegment(b []byte, from, to int, seed uint32, next uint64, check bool) []record {
	s := sums{b: b[:to]}
	return s.scan(from, seed, next, check)
}

// segment replays one segment. next is what the segment behind it says of its end.
func (r *recovery) segment(seq uint64, info segmentInfo, known bool, next *segmentInfo, isLast bool) error {
	l := r.l
	name := segmentName(seq)
	var holes []stretch
	b, err := readFile(l.fs, l.path(name), r.buf, func(off, n int64, err error) {
		holes = append(holes, stretch{off, off + n})
		if k := len(r.out.Damaged); k > 0 && r.out.Damaged[k-1].File == name && r.out.Damaged[k-1].Offset+r.out.Damaged[k-1].Length == off {
			r.out.Damaged[k-1].Length += n
			return
		}
		r.damage(name, off, n, "cannot be read: "+err.Error())
	})
	if err == nil {
		r.buf = b
	}
	var file File
	if err == nil {
		file, err = openFile(l.fs, l.path(name))
	}
	if errs.Is(err, errs.Unavailable) {
		return err
	}
	if err != nil {
		r.damage(name, 0, 0, "segment cannot be opened: "+err.Error())
		r.lost()
		r.next = 0
		return nil
	}
	g := &segment{seq: seq, seed: seedOf(l.id, seq), info: info, size: int64(len(b)), file: file, alloc: int64(len(b))}
	g.holders.Store(1)
	l.segs = append(l.segs, g)

	limit := len(b)
	if next != nil {
		limit = min(limit, int(next.prevEnd))
	}
	whole := r.next != 0 || seq == 1 && known // everything before this segment was found
	if known {
		// Numbers between the end of the segment before and first belong to a torn tail that was cut.
		if r.next != 0 && r.next != info.prevNext {
			whole = false
		}
		r.next = info.first
	}
	recs := scanSegment(b, segmentHeaderBytes, limit, g.seed, r.next, !r.l.cfg.NoVerify)
	proven := r.ident.sealed
	for _, rec := range recs {
		proven = max(proven, rec.synced)
	}
	if !isLast {
		// The next segment was made only when this one was synced.
		proven = indexMax
	}

	off := int64(segmentHeaderBytes)
	taken := 0
	for i := range recs {
		rec := &recs[i]
		if r.next == 0 {
			// Nothing says what should be here. If this is not the checkpoint, it is lost with whatever else was before.
			if rec.kind != kindCheckpoint {
				r.damage(name, off, int64(rec.off)-off, "checkpoint is damaged")
				r.lost()
			}
			r.next = rec.number
		}
		if rec.number != r.next || int64(rec.off) != off {
			if r.next >= proven && !overlaps(holes, off, int64(rec.off)) {
				break
			}
			r.damage(name, off, int64(rec.off)-off, "records are damaged")
			// A lost checkpoint is no loss, if everything it repeats was found.
			if !(known && r.next == info.first && rec.number == info.first+1 && whole) {
				r.lost()
			}
		}
		r.max = max(r.max, rec.number)
		r.next, off = rec.number+1, int64(rec.end)
		r.replay(g, rec)
		taken++
	}
	e := ending{
		off: off, cut: recs[taken:], next: next, isLast: isLast, proven: proven,
		unreadable: overlaps(holes, off, int64(limit)),
	}
	for i := range recs {
		r.max = max(r.max, recs[i].number)
		e.seenEnd = int64(recs[i].end)
	}
	g.end = off
	r.tail(g, b, e)
	return nil
}

// stretch is a part of a segment file.
type stretch struct{ off, end int64 }

func overlaps(holes []stretch, off, end int64) bool {
	for _, h := range holes {
		if h.off < end && off < h.end {
			return true
		}
	}
	return false
}

// ending is what is known of the bytes behind the last record that was taken from a segment.
type ending struct {
	off        int64        // end of that record
	next       *segmentInfo // what the segment behind says of this one's end
	isLast     bool
	unreadable bool
	proven     uint64   // records with lower numbers were synced
	seenEnd    int64    // end of the last valid record, taken or not
	cut        []record // valid records that were not taken
}

// tail judges what is behind the last record that was taken.
func (r *recovery) tail(g *segment, b []byte, e ending) {
	name := segmentName(g.seq)
	size := int64(len(b))
	want := int64(0)
	if g.info.step > 0 {
		// Even an unfinished record was written only when the file was long enough for it.
		want = g.info.allocated(max(e.off, e.seenEnd, e.off+r.unfinished(b, e.off)))
	}
	switch {
	case !e.isLast && e.next == nil:
		// The next segment is missing or has lost header and checkpoint; that is reported there.
		r.lost()
	case !e.isLast:
		if r.next != e.next.prevNext || e.off != e.next.prevEnd {
			r.damage(name, e.off, max(e.next.prevEnd-e.off, 0), "records are damaged or missing at the end of the segment")
			r.lost()
		}
	case r.next < e.proven || r.next == 0:
		r.damage(name, e.off, size-e.off, "synced records are damaged or missing at the end of the log")
		r.lost()
	case e.unreadable:
		r.lost() // the stretch is listed already
	case size < want:
		r.damage(name, size, want-size, "file is shorter than it was")
		r.lost()
	default:
		r.torn(g, b, e)
	}
}

// unfinished returns the length of the record of which the header stands at off, if it is that of the next record.
func (r *recovery) unfinished(b []byte, off int64) int64 {
	if int64(len(b)) < off+recordHeaderBytes || le.Uint64(b[off+8:]) != r.next || le.Uint32(b[off+4:]) > payloadBytesMax {
		return 0
	}
	return align8(recordHeaderBytes + int64(le.Uint32(b[off+4:])))
}

// torn measures an unfinished write at the end of the log. Only what is recognizable as one counts: in a recycled file,
// other bytes behind the end are remains of its earlier life.
func (r *recovery) torn(g *segment, b []byte, e ending) {
	r.keepVotes(e.cut, g.seq)
	r.out.TornBytes = max(e.seenEnd-e.off, min(r.unfinished(b, e.off), int64(len(b))-e.off), 0)
	if env.Mutant(env.MutantTornTailKept) {
		if rec, ok := recordHeader(b, int(e.off)); ok && rec.number == r.next {
			r.replay(g, &rec)
			r.max = max(r.max, rec.number)
			r.next, g.end = rec.number+1, int64(rec.end)
		}
	}
}

// replay applies one valid record.
func (r *recovery) replay(g *segment, rec *record) {
	l := r.l
	var err error
	switch rec.kind {
	case kindCheckpoint:
		var c *checkpoint
		if c, err = decodeCheckpoint(rec.payload, rec.number, g.seq); err == nil {
			r.checkpoint(c)
		}
	case kindBatch:
		err = decodeBatch(rec.payload, rec.off+recordHeaderBytes, g.seq, r.batch)
	case kindRewrite:
		err = decodeBatch(rec.payload, rec.off+recordHeaderBytes, g.seq, r.rewrite)
	case kindSettle:
		p := codec.Read(rec.payload)
		l.settleLocked(ShardID(p.Uint32()))
		if p.Uint32(); p.Bad() {
			err = errBadRecord
		}
	}
	if err != nil {
		r.damage(segmentName(g.seq), int64(rec.off), int64(rec.end-rec.off), err.Error())
		r.lost()
	}
}

// doubt marks all entries of a shard as possibly replaced by a lost record.
func doubt(s *shardLog) {
	for i := range s.slots {
		s.slots[i].n |= slotDubious
	}
}

func (r *recovery) batch(sub *subRecord, slots []slot, terms []uint64) {
	l := r.l
	s := l.shards[sub.shard]
	counter := uint64(0)
	if s != nil {
		counter = s.counter
	}
	gap := sub.counter != counter+1 && sub.flags&(subForget|subRemove) == 0
	// A shard is made with a replica id and counter 1, so if that is what is here, only its remove can be lost.
	if gap && sub.counter == 1 && sub.flags&subReplica != 0 {
		l.applyLocked(&subRecord{shard: sub.shard, flags: subRemove}, nil, nil)
		delete(r.holes, sub.shard)
		s, gap = nil, false
	}
	if gap {
		if s == nil {
			s = &shardLog{}
			l.shards[sub.shard] = s
		}
		s.gap = true
		doubt(s)
	}
	if sub.flags&(subForget|subReset|subRemove) != 0 {
		delete(r.holes, sub.shard)
	}
	if sub.flags&subEntries != 0 && sub.flags&subRemove == 0 {
		if from, hole := r.holes[sub.shard]; hole && sub.first > from.Index && sub.first <= s.cut.Index {
			l.dropAllLocked(s, Position{sub.first - 1, 0}) // entries take the place of missing ones
			r.narrow(sub.shard, s, from)
		}
		// Only after a loss can the entries not join.
		at := s
		if at == nil || sub.flags&subForget != 0 {
			at = &shardLog{}
		}
		cut, last := at.cut.Index, at.last()
		if sub.flags&subReset != 0 {
			cut, last = sub.reset.Index, sub.reset.Index
		}
		if sub.first <= cut || sub.first > last+1 {
			if s == nil || sub.flags&(subForget|subReset) != 0 {
				// No writer makes such a record.
				l.applyLocked(&subRecord{shard: sub.shard, counter: sub.counter}, nil, nil)
				l.shards[sub.shard].suspect = true
				return
			}
			s.gap = true
			if sub.first <= cut {
				l.dropAllLocked(s, Position{sub.first - 1, 0})
			}
			r.fill(sub.shard, s, sub.first-1)
		}
	}
	l.applyLocked(sub, slots, terms)
	if sub.flags&subCut != 0 {
		r.narrow(sub.shard, s, sub.cut)
	}
	if s := l.shards[sub.shard]; s != nil {
		s.epoch = r.epoch
	}
}

// fill makes slots for missing entries up to index last, or a hole.
func (r *recovery) fill(id ShardID, s *shardLog, last uint64) {
	if last <= s.last() {
		return
	}
	if last-s.last() > missingMax {
		if _, hole := r.holes[id]; !hole {
			r.holes[id] = s.cut
		}
		r.l.dropAllLocked(s, Position{last, 0})
		return
	}
	s.appendTerm(s.last()+1, 0)
	s.slots = append(s.slots, make([]slot, last-s.last())...)
}

// narrow moves the start of a hole to a new cut. A hole that has become small enough turns into slots.
func (r *recovery) narrow(id ShardID, s *shardLog, cut Position) {
	if _, hole := r.holes[id]; !hole {
		return
	}
	switch {
	case cut.Index >= s.cut.Index:
		delete(r.holes, id)
		if cut.Index == s.cut.Index {
			s.cut = cut
		}
	case s.cut.Index-cut.Index > missingMax:
		r.holes[id] = cut
	default:
		delete(r.holes, id)
		n := s.cut.Index - cut.Index
		s.slots = append(make([]slot, n, n+uint64(len(s.slots))), s.slots...)
		old := s.terms
		s.terms = []termRun{{cut.Index + 1, 0}}
		for _, t := range old {
			s.appendTerm(t.index, t.term)
		}
		s.cut = cut
	}
}

// rewrite applies a sub-record of entries that were copied forward.
func (r *recovery) rewrite(sub *subRecord, slots []slot, terms []uint64) {
	s := r.l.shards[sub.shard]
	if s == nil {
		return // its checkpoint is lost, which is known by now
	}
	if s.counter != sub.counter {
		s.gap, s.counter = true, sub.counter
		doubt(s)
	}
	for i := range slots {
		index := sub.first + uint64(i)
		if index <= s.cut.Index || index > s.last() {
			continue
		}
		k := index - s.cut.Index - 1
		r.l.countLocked(s.slots[k:k+1], -1)
		s.slots[k] = slots[i]
		r.l.countLocked(s.slots[k:k+1], 1)
		s.setTerm(index, terms[i])
	}
}

// checkpoint takes over what a checkpoint states, and finds out which of its entries are missing.
func (r *recovery) checkpoint(c *checkpoint) {
	l := r.l
	listed := make(map[ShardID]bool, len(c.shards))
	for i := range c.shards {
		x := &c.shards[i]
		listed[x.shard] = true
		s := l.shards[x.shard]
		if s == nil {
			s = &shardLog{cut: x.cut}
			l.shards[x.shard] = s
		} else if s.counter != x.counter {
			doubt(s)
		}
		s.replica, s.state, s.counter, s.suspect = x.replica, x.state, x.counter, x.suspect
		s.gap, s.epoch = false, r.epoch
		r.narrow(x.shard, s, x.cut)
		if _, hole := r.holes[x.shard]; !hole || x.last.Index < s.cut.Index {
			delete(r.holes, x.shard)
			if x.cut.Index < s.cut.Index {
				l.dropAllLocked(s, x.cut) // a reset that is lost
			}
			l.cutLocked(s, x.cut)
			s.cut = x.cut
		}
		l.dropFromLocked(s, x.last.Index+1)
		if s.last() == x.last.Index && s.term(s.last()) != x.last.Term && len(s.slots) > 0 && !s.slots[len(s.slots)-1].missing() {
			doubt(s)
		}
		r.fill(x.shard, s, x.last.Index)
	}
	for _, id := range l.shardsLocked() {
		if !listed[id] {
			delete(r.holes, id)
			l.applyLocked(&subRecord{shard: id, flags: subRemove}, nil, nil) // its remove is lost
		}
	}
	l.allSuspect = c.allSuspect
}

// finish decides which shards are suspect and starts a new segment.
func (r *recovery) finish(last uint64) error {
	l := r.l
	for _, id := range l.shardsLocked() {
		s := l.shards[id]
		_, hole := r.holes[id]
		s.suspect = s.suspect || s.gap || s.epoch < r.epoch || hole
		for k, e := range s.slots {
			if e.missing() {
				s.suspect = true
				l.dropFromLocked(s, s.cut.Index+1+uint64(k))
				break
			}
			s.suspect = s.suspect || e.dubious()
		}
		s.gap, s.epoch = false, 0
		if s.suspect {
			r.out.Suspect = append(r.out.Suspect, id)
		}
	}
	r.out.AllSuspect = l.allSuspect
	r.buf = nil
	if l.cfg.OnlyCopy && (l.allSuspect || len(r.out.Suspect) > 0) {
		return r.refuse()
	}
	for _, seq := range r.unneeded {
		if err := l.fs.Remove(l.path(segmentName(seq))); err != nil {
			return errs.Wrap(errs.OutcomeUnknown, err, "remove raft log segment %d, which is not needed", seq)
		}
	}

	prevEnd := int64(0)
	if len(l.segs) > 0 && l.current().seq == last {
		// What was found may still be in the system's cache only, if not the machine but the process died.
		g := l.current()
		prevEnd = g.end
		f, err := l.fs.OpenReadWrite(l.path(segmentName(g.seq)), category)
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			return errs.Wrap(errs.OutcomeUnknown, err, "sync raft log segment %d", g.seq)
		}
	}
	prevNext := max(r.next, 1)
	// Numbers of records that were cut are not given again.
	l.next = max(r.max+1, prevNext, r.ident.sealed)
	l.synced = l.next
	return l.startSegment(last+1, prevEnd, prevNext, 0)
}

// refuse says why the only copy of a log is not opened. Nothing was written yet: a disk that failed to read may do it the next
// time, and somebody may still get something from the files.
func (r *recovery) refuse() error {
	why := "an earlier start found records lost"
	if len(r.out.Damaged) > 0 {
		d := r.out.Damaged[0]
		why = fmt.Sprintf("%s at offset %d: %s", d.File, d.Offset, d.Reason)
	}
	return errs.New(errs.Corrupt, "the raft log in %s is damaged (%s), and this node has no peers to fetch it from; nothing was changed. "+
		"If the disk could not be read for a moment, start again; if not, restore a copy of the data directory", r.l.dir, why)
}
