package storage

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
)

const (
	identityName  = "LOG"
	segmentSuffix = ".seg"
)

// category tells Pebble's file system statistics what the writes are for; they are not collected.
const category = vfs.WriteCategoryUnspecified

// segment is one file of the log.
type segment struct {
	seq  uint64
	seed uint32
	info segmentInfo
	size int64 // bytes it may use
	file File
	// end is where its records end; alloc is how long the file is. Of the current segment they move.
	end, alloc int64
	// live and liveBytes count the entries in it that are still needed. Guarded by Log.mu, as end.
	live      int
	liveBytes int64
	// holders counts the readers, and the log itself; the last one closes the file.
	holders atomic.Int32
}

// File is an open file of an FS.
type File = vfs.File

func (g *segment) hold() *segment {
	g.holders.Add(1)
	return g
}

func (g *segment) release() {
	if g.holders.Add(-1) == 0 {
		// The file was only read, or synced before: nothing depends on the answer.
		_ = g.file.Close()
	}
}

func segmentName(seq uint64) string { return fmt.Sprintf("%016x%s", seq, segmentSuffix) }

func parseSegmentName(name string) (uint64, bool) {
	hex, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(hex) != 16 {
		return 0, false
	}
	seq, err := strconv.ParseUint(hex, 16, 64)
	return seq, err == nil && seq > 0 && seq <= indexMax && segmentName(seq) == name
}

func (l *Log) path(name string) string { return l.fs.PathJoin(l.dir, name) }

// check validates ws and returns the payload size of the batch and the number of writes that change something.
func (l *Log) check(ws []Write) (size uint64, n int, err error) {
	size = 4
	clear(l.seen)
	for i := range ws {
		w := &ws[i]
		if w.Shard == 0 {
			return 0, 0, errs.New(errs.Invalid, "raft log: write %d names no shard", i)
		}
		if _, twice := l.seen[w.Shard]; twice {
			return 0, 0, errs.New(errs.Invalid, "raft log: shard %d occurs twice in one batch", w.Shard)
		}
		l.seen[w.Shard] = struct{}{}
		if err := l.checkWrite(w); err != nil {
			return 0, 0, err
		}
		if !l.changes(w) {
			continue
		}
		n++
		r := l.subRecordOf(w)
		size += uint64(subRecordBytes(r.flags))
		if r.flags&subEntries != 0 {
			for j := range w.Entries {
				size += uint64(entryHeaderBytes + len(w.Entries[j].Data))
			}
		}
	}
	return size, n, nil
}

// checkWrite refuses what would make a shard's log disjoint.
func (l *Log) checkWrite(w *Write) error {
	if w.Remove {
		return nil
	}
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "raft log: shard %d: %s", w.Shard, fmt.Sprintf(format, args...))
	}
	s := l.shards[w.Shard]
	if s == nil || w.Replica != 0 && w.Replica != s.replica {
		s = &shardLog{}
	}
	cut, last, prev := s.cut, s.last(), s.term
	if w.Reset != nil {
		if w.Reset.Index > indexMax {
			return bad("reset to index %d is out of range", w.Reset.Index)
		}
		cut, last, prev = *w.Reset, w.Reset.Index, func(uint64) uint64 { return w.Reset.Term }
	}
	if k := len(w.Entries); k > 0 {
		first := w.Entries[0].Index
		if first <= cut.Index || first > last+1 || first > indexMax-uint64(k) {
			return bad("entries from index %d do not join the log from %d to %d", first, cut.Index+1, last)
		}
		term := prev(first - 1)
		for i := range w.Entries {
			e := &w.Entries[i]
			if e.Index != first+uint64(i) || e.Term < term {
				return bad("entry %d of term %d does not follow index %d of term %d", e.Index, e.Term, first+uint64(i)-1, term)
			}
			term = e.Term
		}
		last = first + uint64(k) - 1
	}
	if w.Cut > last && w.Cut > cut.Index {
		return bad("cut at index %d is beyond the end at %d", w.Cut, last)
	}
	return nil
}

// changes says whether a valid write has any effect.
func (l *Log) changes(w *Write) bool {
	s := l.shards[w.Shard]
	if w.Remove {
		return s != nil
	}
	if w.Reset != nil || len(w.Entries) > 0 || w.State != (HardState{}) {
		return true
	}
	if s == nil {
		return w.Replica != 0
	}
	return w.Replica != 0 && w.Replica != s.replica || w.Cut > s.cut.Index
}

// subRecordOf returns what is to be written for a valid write that changes something.
func (l *Log) subRecordOf(w *Write) subRecord {
	s := l.shards[w.Shard]
	known := s != nil
	if !known {
		s = &shardLog{}
	}
	r := subRecord{shard: w.Shard, counter: s.counter + 1}
	if w.Remove {
		r.flags = subRemove
		return r
	}
	if w.Replica != 0 && w.Replica != s.replica {
		r.flags |= subReplica
		r.replica = w.Replica
		if known {
			r.flags |= subForget
			s = &shardLog{}
		}
	}
	cut := s.cut.Index
	if w.Reset != nil {
		r.flags |= subReset
		r.reset = *w.Reset
		cut = w.Reset.Index
	}
	if len(w.Entries) > 0 {
		r.flags |= subEntries
		r.first, r.count = w.Entries[0].Index, uint32(len(w.Entries))
	}
	if w.State != (HardState{}) {
		r.flags |= subState
		r.state = w.State
	}
	if w.Cut > cut {
		r.flags |= subCut
		r.cut.Index = w.Cut
		// Behind a reset there are only the write's own entries.
		if r.count > 0 && w.Cut >= r.first {
			r.cut.Term = w.Entries[w.Cut-r.first].Term
		} else {
			r.cut.Term = s.term(w.Cut)
		}
	}
	return r
}

// encodeWrite appends the sub-record of w, if it changes anything, and its entries' slots to l.slots.
func (l *Log) encodeWrite(buf []byte, w *Write, seg *segment) []byte {
	if !l.changes(w) {
		return buf
	}
	r := l.subRecordOf(w)
	buf = r.encodeHead(buf)
	if r.flags&subEntries != 0 {
		for i := range w.Entries {
			at := len(buf)
			buf = encodeEntry(buf, &w.Entries[i], seg.seed^uint32(w.Shard))
			l.slots = append(l.slots, slot{seg.seq, uint32(l.pos) + uint32(at), uint32(len(buf) - at)})
		}
	}
	return r.encodeTail(buf)
}

// write puts n records at the end of the current segment. Where the file must become longer for it, that is synced
// before, so that each record proves a length of its file: a file cut short is told from one that was never longer.
func (l *Log) write(seg *segment, buf []byte, n uint64) error {
	if want := seg.info.allocated(l.pos + int64(len(buf))); seg.alloc < want {
		if err := l.extend(seg, want); err != nil {
			return err
		}
		if err := seg.file.Sync(); err != nil {
			return errs.Wrap(errs.OutcomeUnknown, err, "sync raft log segment %d", seg.seq)
		}
	}
	if _, err := seg.file.WriteAt(buf, l.pos); err != nil {
		return errs.Wrap(errs.OutcomeUnknown, err, "write %d bytes to raft log segment %d", len(buf), seg.seq)
	}
	l.pos += int64(len(buf))
	l.next += n
	l.mu.Lock()
	seg.end = l.pos
	l.mu.Unlock()
	return nil
}

// extend writes zeros up to a length.
func (l *Log) extend(seg *segment, want int64) error {
	for seg.alloc < want {
		if l.zeros == nil {
			l.zeros = make([]byte, min(l.cfg.ZeroBytes, 256<<10))
		}
		z := l.zeros[:min(int64(len(l.zeros)), want-seg.alloc)]
		if _, err := seg.file.WriteAt(z, seg.alloc); err != nil {
			return errs.Wrap(errs.OutcomeUnknown, err, "extend raft log segment %d", seg.seq)
		}
		seg.alloc += int64(len(z))
	}
	return nil
}

// keepBuf keeps a buffer for the next record, unless it is so large that it would be a waste.
func (l *Log) keepBuf(buf []byte) {
	if cap(buf) <= 4<<20 {
		l.buf = buf
	} else {
		l.buf = nil
	}
}

// rotate syncs the current segment and goes on in a new one with room for a record of total bytes. Before it returns, the
// new segment, its directory entry and LOG are on disk.
func (l *Log) rotate(total int64) error {
	if err := l.Sync(); err != nil {
		return err
	}
	prev := l.current()
	return l.startSegment(prev.seq+1, l.pos, l.next, total)
}

// moved is an entry that is copied forward.
type moved struct {
	shard ShardID
	index uint64
	slot  slot
}

// startSegment makes segment seq the current one. prevEnd and prevNext say where the records of the one before it end.
func (l *Log) startSegment(seq uint64, prevEnd int64, prevNext uint64, total int64) error {
	seed := seedOf(l.id, seq)
	moves, entries := l.remainders()

	// oldest is the first segment that is needed once the moved entries are not.
	drop := make(map[uint64]int)
	for _, m := range moves {
		drop[m.slot.seg]++
	}
	oldest := seq
	for _, g := range l.segs {
		if g.live > drop[g.seq] {
			oldest = g.seq
			break
		}
	}

	c := l.checkpoint()
	payload := checkpointBytes + checkpointPerShard*int64(len(c.shards))
	if payload > payloadBytesMax {
		return errs.New(errs.TooLarge, "raft log: %d shards are too many for one checkpoint", len(c.shards))
	}
	used := segmentHeaderBytes + align8(recordHeaderBytes+payload)
	if len(moves) > 0 {
		n := int64(4)
		for _, m := range moves {
			n += int64(subRecordBytes(subEntries) + m.slot.len())
		}
		used += align8(recordHeaderBytes + n)
	}
	// However large the checkpoint is, half a segment is left for records, so that rotation stays rare.
	size := max(l.cfg.SegmentBytes, align8(used+recordHeaderBytes+max(total, l.cfg.SegmentBytes/2)))
	info := segmentInfo{size: size, step: l.cfg.ZeroBytes, oldest: oldest, first: l.next, prevEnd: prevEnd, prevNext: prevNext}
	c.info = info

	buf := info.encode(l.buf[:0], l.id, seq)
	start := len(buf)
	buf = endRecord(c.encode(beginRecord(buf, kindCheckpoint, l.next, l.next)), start, seed)
	next := l.next + 1
	if len(moves) > 0 {
		start = len(buf)
		buf = beginRecord(buf, kindRewrite, next, l.next)
		buf = le.AppendUint32(buf, uint32(len(moves)))
		for i := range moves {
			m := &moves[i]
			r := subRecord{shard: m.shard, flags: subEntries, counter: l.shards[m.shard].counter, first: m.index, count: 1}
			buf = r.encodeHead(buf)
			at := len(buf)
			buf = encodeEntry(buf, &entries[i], seed^uint32(m.shard))
			m.slot = slot{seq, uint32(at), uint32(len(buf) - at)}
		}
		buf = endRecord(buf, start, seed)
		next++
	}

	g, err := l.createSegment(seq, seed, info)
	if err != nil {
		return err
	}
	if _, err = g.file.WriteAt(buf, 0); err != nil {
		err = errs.Wrap(errs.OutcomeUnknown, err, "write head of raft log segment %d", seq)
	}
	g.alloc = max(g.alloc, int64(len(buf)))
	if err == nil {
		err = l.extend(g, info.allocated(int64(len(buf))))
	}
	if err == nil {
		err = errs.Wrap(errs.OutcomeUnknown, g.file.Sync(), "sync raft log segment %d", seq)
	}
	if err == nil {
		err = errs.Wrap(errs.OutcomeUnknown, syncDir(l.fs, l.dir), "sync raft log directory")
	}
	if err != nil {
		g.release()
		return err
	}
	g.end = int64(len(buf))

	l.mu.Lock()
	l.segs = append(l.segs, g)
	for _, m := range moves {
		s := l.shards[m.shard]
		k := m.index - s.cut.Index - 1
		l.countLocked(s.slots[k:k+1], -1)
		m.slot.n |= s.slots[k].n & slotDubious
		s.slots[k] = m.slot
		l.countLocked(s.slots[k:k+1], 1)
	}
	l.mu.Unlock()
	l.pos, l.next, l.synced = g.end, next, next
	// What the last segment held is proved by this one, so there is nothing to seal.
	l.batches, l.sealed = next, next
	l.keepBuf(buf)
	if err := l.writeIdentity(); err != nil {
		return err
	}
	return l.recycle(oldest)
}

// checkpoint collects what the log knows of all shards.
func (l *Log) checkpoint() *checkpoint {
	ids := l.shardsLocked()
	c := &checkpoint{allSuspect: l.allSuspect, shards: make([]checkpointShard, 0, len(ids))}
	for _, id := range ids {
		s := l.shards[id]
		c.shards = append(c.shards, checkpointShard{
			shard: id, suspect: s.suspect, replica: s.replica, state: s.state, cut: s.cut, last: s.lastPosition(), counter: s.counter,
		})
	}
	return c
}

// remainders picks and reads the live entries of the oldest segments, as long as whole segments fit into the budget. Only
// a log of more segments than are kept for recycling is worth the copying.
func (l *Log) remainders() ([]moved, []Entry) {
	budget := min(l.cfg.RewriteBytes, l.cfg.SegmentBytes/4)
	from := l.oldestLocked()
	pick := uint64(0) // up to and with this segment
	for i := from; i < len(l.segs)-1 && len(l.segs)-i > max(l.cfg.RecycleSegments, 1); i++ {
		// 64 bytes an entry is more than its sub-record takes.
		if budget -= l.segs[i].liveBytes + int64(l.segs[i].live)*64; budget < 0 {
			break
		}
		pick = l.segs[i].seq
	}
	if pick == 0 {
		return nil, nil
	}
	var moves []moved
	var entries []Entry
	for _, id := range l.shardsLocked() {
		s := l.shards[id]
		for k, e := range s.slots {
			if e.seg > pick {
				continue
			}
			if len(s.slots) > missingMax {
				// Who opens the log would know of so many entries that they are missing before it comes upon the copies, and keeps no slots for them.
				return nil, nil
			}
			index := s.cut.Index + 1 + uint64(k)
			es, err := readEntries(id, index, []slot{e}, []*segment{l.segment(e.seg)}, true)
			if err != nil {
				// The damage stays where it is, and whoever reads the entry gets the error. Nothing is copied this time.
				return nil, nil
			}
			moves = append(moves, moved{id, index, e})
			entries = append(entries, es[0])
		}
	}
	return moves, entries
}

// createSegment makes the file of a new segment, out of a spare one if there is any.
func (l *Log) createSegment(seq uint64, seed uint32, info segmentInfo) (*segment, error) {
	name := l.path(segmentName(seq))
	if len(l.spare) > 0 {
		old := l.path(segmentName(l.spare[0]))
		l.spare = l.spare[1:]
		if err := l.fs.Rename(old, name); err != nil {
			return nil, errs.Wrap(errs.OutcomeUnknown, err, "recycle raft log segment as %d", seq)
		}
	}
	f, err := l.fs.OpenReadWrite(name, category)
	if err != nil {
		return nil, errs.Wrap(errs.OutcomeUnknown, err, "create raft log segment %d", seq)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errs.Wrap(errs.OutcomeUnknown, errors.Join(err, f.Close()), "look at raft log segment %d", seq)
	}
	g := &segment{seq: seq, seed: seed, info: info, size: info.size, file: f, alloc: st.Size()}
	g.holders.Store(1)
	return g, nil
}

// recycle lets the segments below oldest go. LOG says already that they are not needed.
func (l *Log) recycle(oldest uint64) error {
	var gone []*segment
	l.mu.Lock()
	for len(l.segs) > 1 && l.segs[0].seq < oldest {
		gone = append(gone, l.segs[0])
		l.segs = append([]*segment(nil), l.segs[1:]...)
	}
	l.mu.Unlock()
	var err error
	for _, g := range gone {
		// A file that someone still reads must not be written again, and one of unusual size is not worth keeping.
		if len(l.spare) < l.cfg.RecycleSegments && g.holders.Load() == 1 && g.size == l.cfg.SegmentBytes && g.alloc <= g.size {
			l.spare = append(l.spare, g.seq)
		} else if e := l.fs.Remove(l.path(segmentName(g.seq))); e != nil && err == nil {
			err = errs.Wrap(errs.OutcomeUnknown, e, "remove raft log segment %d", g.seq)
		}
		g.release()
	}
	return err
}

// writeIdentity puts the present commit point into LOG.
func (l *Log) writeIdentity() error {
	n := identity{id: l.id, sealed: l.synced}
	if len(l.segs) > 0 {
		n.last, n.oldest = l.current().seq, l.current().info.oldest
	}
	tmp := l.path(identityName + ".tmp")
	f, err := l.fs.Create(tmp, category)
	if err == nil {
		_, err = f.Write(n.encode())
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		err = l.fs.Rename(tmp, l.path(identityName))
	}
	if err == nil {
		err = syncDir(l.fs, l.dir)
	}
	if err != nil {
		return l.fail(errs.Wrap(errs.OutcomeUnknown, err, "write %s", l.path(identityName)))
	}
	return nil
}

// readFile reads a whole file. Where bytes cannot be read, it leaves zeros and reports the stretch. An error of kind Unavailable
// says that the system does not let us read the file now, and nothing of what is in it: whoever takes that for damage destroys
// a log that is whole.
func readFile(fs FS, name string, buf []byte, unreadable func(off, n int64, err error)) ([]byte, error) {
	f, err := openFile(fs, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, notRefused(err, name)
	}
	size := st.Size()
	if size > 2*segmentBytesMax {
		return nil, fmt.Errorf("a file of %d bytes is not a segment", size)
	}
	if int64(cap(buf)) < size {
		buf = make([]byte, size)
	}
	buf = buf[:size]
	if n, err := f.ReadAt(buf, 0); int64(n) == size || err == nil {
		return buf, nil
	}
	const chunk = 4 << 10
	for off := int64(0); off < size; off += chunk {
		b := buf[off:min(off+chunk, size)]
		if n, err := f.ReadAt(b, off); n < len(b) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			if refused(err) {
				return nil, notRefused(err, name)
			}
			clear(b[n:])
			unreadable(off+int64(n), int64(len(b)-n), err)
		}
	}
	return buf, nil
}

// openFile opens a file to read it; errors are as those of readFile.
func openFile(fs FS, name string) (File, error) {
	f, err := fs.Open(name)
	return f, notRefused(err, name)
}

// notRefused returns err, as errs.Unavailable if it is the system that refuses.
func notRefused(err error, name string) error {
	if !refused(err) {
		return err
	}
	return errs.Wrap(errs.Unavailable, err, "%s cannot be read; nothing was changed. See to what the system says and start again", name)
}
