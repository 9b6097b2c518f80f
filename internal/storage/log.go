package storage

import (
	"sort"
	"sync"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
)

// Entry is one entry of a shard's raft log, as the log stores it. The log gives Type and Data no meaning.
type Entry struct {
	// Index is the entry's position, from 1, without gaps within a shard.
	Index uint64
	// Term is the raft term in which it was proposed; it never falls from one index to the next.
	Term uint64
	// Type is raft's entry type.
	Type uint8
	// Data is the payload. The log keeps no reference to it after Append returns.
	Data []byte
}

// HardState is what raft must remember across a crash besides its entries (Raft paper, figure 2, "persistent state").
type HardState struct {
	Term, Vote, Commit uint64
}

// Position is a point in a shard's log.
type Position struct {
	Index, Term uint64
}

// Write is what one shard wants on disk in one turn. The fields take effect in the order they stand here. One Append
// holds at most one Write of a shard.
type Write struct {
	Shard ShardID
	// Replica, when not zero, is the replica id that this node now has in the shard. Changing it forgets everything the
	// log knows of the shard, as Remove does.
	Replica uint64
	// Reset, when not nil, forgets all entries; the log goes on after this position. Used when a snapshot is installed.
	Reset *Position
	// Entries are contiguous. The first may be at most one past the last stored entry; stored entries at and after it are
	// replaced.
	Entries []Entry
	// State replaces the hard state, when it is not zero.
	State HardState
	// Cut, when not zero, says that entries at and before it are no longer needed. The term at Cut stays known. A cut that
	// is lost in a crash does no harm and need not be synced by itself.
	Cut uint64
	// Remove forgets the shard altogether.
	Remove bool
}

// LogConfig sets the sizes of a Log. The zero value means the defaults.
type LogConfig struct {
	// SegmentBytes is the size of a segment file; default 16 MiB. A record larger than that gets a segment of its own size.
	SegmentBytes int64
	// RecycleSegments is how many cut segments are kept to be written again; default 8, negative means none. It is also
	// the number of live segments from which on small remainders of cold shards are copied forward.
	RecycleSegments int
	// ZeroBytes is the step by which a new segment is extended with zeros ahead of its records, so that a sync need not
	// write the file's size each time; default 1 MiB. It is rounded up to a multiple of 4 KiB.
	ZeroBytes int64
	// RewriteBytes bounds what one rotation copies forward; default 1 MiB, negative means nothing.
	RewriteBytes int64
	// NoVerify skips the checksums of records: a control of the bit-flip drill, refused outside sandboxes.
	NoVerify bool
	// OnlyCopy says that no peer has what is in the log. OpenLog then fails with errs.Corrupt, and leaves everything as it
	// is, where it would otherwise report shards as suspect and go on without what is lost.
	OnlyCopy bool
	// ID is the identity of a log that is made; 0 takes a random one. An existing log keeps its own. Tests and the
	// simulation set it, so that equal calls give equal bytes.
	ID uint64
}

func (c LogConfig) withDefaults() (LogConfig, error) {
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.SegmentBytes, 16<<20)
	def(&c.ZeroBytes, 1<<20)
	def(&c.RewriteBytes, 1<<20)
	if c.RecycleSegments == 0 {
		c.RecycleSegments = 8
	}
	if c.SegmentBytes < 4<<10 || c.SegmentBytes > segmentBytesMax || c.ZeroBytes < 0 || c.ZeroBytes > segmentBytesMax {
		return c, errs.New(errs.Invalid, "raft log: segments of %d bytes extended by %d bytes: out of range",
			c.SegmentBytes, c.ZeroBytes)
	}
	c.SegmentBytes = align8(c.SegmentBytes)
	c.ZeroBytes = (c.ZeroBytes + 4095) &^ 4095
	return c, nil
}

// Recovery says what OpenLog found.
type Recovery struct {
	// TornBytes is the length of an unfinished write at the end, which was cut. It was never acknowledged.
	TornBytes int64
	// Votes is how many terms, votes and replica ids were taken out of what was cut.
	Votes int
	// Damaged lists damage that is not a torn tail. Empty means that the log is whole.
	Damaged []Damage
	// Suspect lists the shards of which a record is lost or may be lost: their hard state and entries may lag what this
	// node has promised, so their replicas must not vote, answer or count towards a quorum. Shards that are provably whole
	// are not listed. A shard may be suspect without being in Log.Shards, if all its records are lost: then AllSuspect is set.
	//
	// A suspicion outlives restarts, also when the damaged bytes are long gone, until the shard gets another replica id,
	// is removed, or Log.Settle is called.
	Suspect []ShardID
	// AllSuspect says that shards unknown to the log may have lost records too (for instance a whole segment is missing).
	// It says nothing of the shards in Log.Shards. It lasts until Log.Settle(0).
	AllSuspect bool
}

// Damage is one stretch of bytes that is not what was written.
type Damage struct {
	File   string
	Offset int64
	Length int64
	Reason string
}

// Log is the raft log of a node: the entries and hard states of all its shards in one sequence of segment files.
// Format: docs/formats/raftlog.md.
//
// One goroutine at a time may call the writing methods (Append, Sync, Seal, Settle, Close); any goroutine may read
// meanwhile. What was appended is visible to reads at once, and durable once Sync returned.
//
// A failed write or sync is final: the kernel may have dropped the dirty pages and call the next sync a success, so the
// only safe answer is to stop and recover (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).
type Log struct {
	fs  FS
	dir string
	cfg LogConfig
	id  uint64

	// These belong to the writing goroutine.
	pos     int64  // where the next record goes in the current segment
	next    uint64 // number of the next record
	batches uint64 // one more than the number of the last batch or settle record
	synced  uint64 // records with lower numbers are durable
	sealed  uint64 // the last seal was written when batches had this value
	buf     []byte
	zeros   []byte
	slots   []slot
	terms   []uint64
	seen    map[ShardID]struct{}
	spare   []uint64 // numbers of cut segments whose files wait to be written again
	err     error    // sticky; set by the first failure and by Close

	// mu guards the index below. Only the writing goroutine changes it, so that one reads without the lock. It is never
	// held across I/O.
	mu         sync.RWMutex
	shards     map[ShardID]*shardLog
	segs       []*segment // rising numbers; the last is written to
	allSuspect bool
	closed     bool
}

// Append writes what ws asks for, in one system call, and makes it visible to reads. It is durable after Sync. Errors of
// kind Invalid and TooLarge change nothing; any other is final. The log keeps no reference to ws. Terms, votes and
// replica ids that change are written twice; see log_votes.go.
func (l *Log) Append(ws []Write) error {
	if l.err != nil {
		return l.err
	}
	size, n, err := l.check(ws)
	if err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	if size > payloadBytesMax {
		return errs.New(errs.TooLarge, "raft log: a batch of %d bytes is over the limit of %d", size, payloadBytesMax)
	}
	again := l.votes(ws)
	total := align8(recordHeaderBytes+int64(size)) + votesBytesMax(again)
	// Room for a seal is kept, so that a full segment can be sealed too.
	if l.pos+total+recordHeaderBytes > l.current().size {
		if err := l.rotate(total); err != nil {
			return l.fail(err)
		}
	}
	seg := l.current()
	buf := beginRecord(l.buf[:0], kindBatch, l.next, l.synced)
	buf = le.AppendUint32(buf, uint32(n))
	l.slots = l.slots[:0]
	for i := range ws {
		buf = l.encodeWrite(buf, &ws[i], seg)
	}
	buf = endRecord(buf, 0, seg.seed)
	buf, more := l.appendVotes(buf, l.next+1, again, seg.seed)
	if err := l.write(seg, buf, 1+more); err != nil {
		return l.fail(err)
	}
	l.keepBuf(buf)
	l.batches = l.next

	l.mu.Lock()
	defer l.mu.Unlock()
	slots := l.slots
	for i := range ws {
		w := &ws[i]
		if !l.changes(w) {
			continue
		}
		r := l.subRecordOf(w)
		l.terms = l.terms[:0]
		if r.flags&subEntries != 0 {
			for j := range w.Entries {
				l.terms = append(l.terms, w.Entries[j].Term)
			}
		}
		k := len(l.terms)
		l.applyLocked(&r, slots[:k], l.terms)
		slots = slots[k:]
	}
	for i := range again {
		l.applyLocked(&again[i], nil, nil)
	}
	return nil
}

// Sync makes everything appended so far durable.
func (l *Log) Sync() error {
	if l.err != nil {
		return l.err
	}
	if l.synced == l.next {
		return nil
	}
	next := l.next
	if err := l.current().file.SyncData(); err != nil {
		if env.Mutant(env.MutantSyncErrorIgnored) {
			return nil
		}
		return l.fail(errs.Wrap(errs.OutcomeUnknown, err, "sync raft log segment %d", l.current().seq))
	}
	l.synced = next
	return nil
}

// Seal writes a small record that says that everything before it was synced. Without it, damage to the last synced record
// cannot be told from a write that was cut off by a crash. Seal itself need not be synced: it does its work once it reaches
// the disk. It does nothing if nothing was appended since the last seal, or if not everything appended is synced.
func (l *Log) Seal() error {
	if l.err != nil {
		return l.err
	}
	seg := l.current()
	if l.sealed == l.batches || l.synced < l.batches || l.pos+recordHeaderBytes > seg.size {
		return nil
	}
	buf := endRecord(beginRecord(l.buf[:0], kindSeal, l.next, l.synced), 0, seg.seed)
	if err := l.write(seg, buf, 1); err != nil {
		return l.fail(err)
	}
	l.keepBuf(buf)
	l.sealed = l.batches
	return nil
}

// Settle says that the owner has dealt with the suspicion on a shard, or, with shard 0, with Recovery.AllSuspect. Until
// that is synced, every OpenLog reports the suspicion again. A shard that gets a new replica id or is removed is settled
// by that. Entries that were dubious stay so across restarts until they are cut, reset or replaced.
func (l *Log) Settle(s ShardID) error {
	if l.err != nil {
		return l.err
	}
	if sl := l.shards[s]; (s == 0 && !l.allSuspect) || (s != 0 && (sl == nil || !sl.suspect)) {
		return nil
	}
	if l.pos+2*recordHeaderBytes+8 > l.current().size {
		if err := l.rotate(recordHeaderBytes + 8); err != nil {
			return l.fail(err)
		}
	}
	seg := l.current()
	buf := beginRecord(l.buf[:0], kindSettle, l.next, l.synced)
	buf = le.AppendUint32(buf, uint32(s))
	buf = endRecord(le.AppendUint32(buf, 0), 0, seg.seed)
	if err := l.write(seg, buf, 1); err != nil {
		return l.fail(err)
	}
	l.keepBuf(buf)
	l.batches = l.next
	l.mu.Lock()
	l.settleLocked(s)
	l.mu.Unlock()
	return nil
}

func (l *Log) settleLocked(s ShardID) {
	if s == 0 {
		l.allSuspect = false
	} else if sl := l.shards[s]; sl != nil {
		sl.suspect = false
	}
}

// Shards lists the shards that the log knows, in rising order.
func (l *Log) Shards() []ShardID {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.shardsLocked()
}

func (l *Log) shardsLocked() []ShardID {
	ids := make([]ShardID, 0, len(l.shards))
	for s := range l.shards {
		ids = append(ids, s)
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	return ids
}

// Replica returns the replica id last written for the shard, 0 if none.
func (l *Log) Replica(s ShardID) uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if sl := l.shards[s]; sl != nil {
		return sl.replica
	}
	return 0
}

// State returns the hard state last written for the shard.
func (l *Log) State(s ShardID) HardState {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if sl := l.shards[s]; sl != nil {
		return sl.state
	}
	return HardState{}
}

// Bounds returns the lowest readable and the highest index of the shard. If there are no entries, first is last+1.
func (l *Log) Bounds(s ShardID) (first, last uint64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if sl := l.shards[s]; sl != nil {
		return sl.cut.Index + 1, sl.last()
	}
	return 1, 0
}

// Term returns the term at index i, for first-1 <= i <= last. Errors: Compacted below, NotFound above.
func (l *Log) Term(s ShardID, i uint64) (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var none shardLog
	sl := l.shards[s]
	if sl == nil {
		sl = &none
	}
	switch {
	case i < sl.cut.Index:
		return 0, errs.New(errs.Compacted, "raft log: shard %d is cut at %d, index %d is gone", s, sl.cut.Index, i)
	case i > sl.last():
		return 0, errs.New(errs.NotFound, "raft log: shard %d ends at %d, before index %d", s, sl.last(), i)
	}
	return sl.term(i), nil
}

// Entries returns the entries lo <= index < hi, as many as fit into maxBytes of data, but at least one if lo < hi. The data
// is the caller's. Errors: Compacted if lo is cut, NotFound if hi is beyond the end, Corrupt if the bytes on disk are
// damaged or cannot be read.
func (l *Log) Entries(s ShardID, lo, hi uint64, maxBytes uint64) ([]Entry, error) {
	if lo > hi {
		return nil, errs.New(errs.Invalid, "raft log: entries %d to %d: not a range", lo, hi)
	}
	l.mu.RLock()
	if l.closed {
		l.mu.RUnlock()
		return nil, errClosed()
	}
	var none shardLog
	sl := l.shards[s]
	if sl == nil {
		sl = &none
	}
	if first, last := sl.cut.Index+1, sl.last(); lo < first || hi > last+1 {
		l.mu.RUnlock()
		if lo < first {
			return nil, errs.New(errs.Compacted, "raft log: shard %d is cut at %d, index %d is gone", s, first-1, lo)
		}
		return nil, errs.New(errs.NotFound, "raft log: shard %d ends at %d, before index %d", s, last, hi-1)
	}
	want := sl.slots[lo-sl.cut.Index-1 : hi-sl.cut.Index-1]
	n, sum := 0, uint64(0)
	for ; n < len(want); n++ {
		if sum += uint64(want[n].len() - entryHeaderBytes); n > 0 && sum > maxBytes {
			break
		}
	}
	slots := append([]slot(nil), want[:n]...)
	// Segments are held while they are read, so that none is closed or written again meanwhile.
	var held []*segment
	for i := range slots {
		if len(held) == 0 || held[len(held)-1].seq != slots[i].seg {
			held = append(held, l.segment(slots[i].seg).hold())
		}
	}
	l.mu.RUnlock()
	defer func() {
		for _, g := range held {
			g.release()
		}
	}()
	return readEntries(s, lo, slots, held, !l.cfg.NoVerify)
}

// readEntries reads runs of entries that lie one behind the other by one call each. held has one segment for each change
// of segment in slots.
func readEntries(s ShardID, index uint64, slots []slot, held []*segment, check bool) ([]Entry, error) {
	es := make([]Entry, 0, len(slots))
	for h := 0; len(slots) > 0; {
		seg := held[h]
		n, end := 1, slots[0].end()
		for n < len(slots) && slots[n].seg == seg.seq && int64(slots[n].off) == end {
			end = slots[n].end()
			n++
		}
		buf := make([]byte, end-int64(slots[0].off))
		if k, err := seg.file.ReadAt(buf, int64(slots[0].off)); k < len(buf) {
			return nil, diskError(err, "read raft log segment %d at %d", seg.seq, slots[0].off)
		}
		for i := range n {
			k := slots[i].len()
			e, err := decodeEntry(buf[:k:k], seg.seed^uint32(s), check)
			if err != nil || e.Index != index {
				return nil, errs.Wrap(errs.Corrupt, errBadEntry, "raft log segment %d at %d: shard %d, index %d",
					seg.seq, slots[i].off, s, index)
			}
			es = append(es, e)
			buf = buf[k:]
			index++
		}
		if n < len(slots) && slots[n].seg != seg.seq {
			h++
		}
		slots = slots[n:]
	}
	return es, nil
}

// Bytes returns the size of the log from the oldest segment that holds a needed entry up to its end.
func (l *Log) Bytes() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var n int64
	for i := l.oldestLocked(); i < len(l.segs); i++ {
		n += l.segs[i].end
	}
	return n
}

// Close syncs what was appended, marks the log as closed in order, so that a lost tail is noticed later, and closes the
// files. A log that has failed is only closed; its error is returned. Reads after Close fail.
func (l *Log) Close() error {
	if l.isClosed() {
		return nil
	}
	err := l.err
	if err == nil {
		if err = l.Sync(); err == nil {
			err = l.writeIdentity()
		}
	}
	l.mu.Lock()
	l.closed = true
	segs := l.segs
	l.mu.Unlock()
	for _, g := range segs {
		g.release()
	}
	if l.err == nil {
		l.err = errClosed()
	}
	return err
}

func (l *Log) isClosed() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.closed
}

func errClosed() error { return errs.New(errs.Unavailable, "raft log is closed") }

// fail makes err the answer to every later call.
func (l *Log) fail(err error) error {
	l.err = err
	return err
}
