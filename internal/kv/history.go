package kv

import (
	"encoding/binary"
	"hash/crc32"
	"time"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/shard"
)

// EncodeCompact returns the command that lets go of what only reads before a revision need. The answer is DecodeRevision's.
// It fails with ErrCompacted if that is done, and with ErrFutureRevision.
func EncodeCompact(rev int64) []byte { return appendInt(head(reqCompact), rev) }

// DecodeRevision reads the answer to a command that has no other than the key space's revision.
func DecodeRevision(b []byte) (int64, error) {
	d := decoder{codec.Read(b)}
	rev := d.int()
	return rev, d.end()
}

func (c *call) compact(d *decoder) []byte {
	rev := d.int()
	c.failIf(d.end())
	switch {
	case c.err != nil:
	case rev <= c.st.compact:
		c.fail(ErrCompacted)
	case rev > c.st.rev:
		c.fail(ErrFutureRevision)
	default:
		c.st.compact = rev
		c.save()
		c.tx.SetTimer([]byte{timerCompact}, c.tx.Now())
	}
	return appendInt(nil, c.st.rev)
}

// failIf is fail for what may be no error.
func (c *call) failIf(err error) {
	if err != nil {
		c.fail(err)
	}
}

const (
	// removeMin and removeMax bound how many events one step of a compaction lets go of, save that it leaves no revision half done. Whatever else is
	// applied waits for a step, up to some milliseconds of processor time.
	removeMin, removeMax = 100, 1000
	// removeSteps is in how many steps a large compaction is done, a quarter of an hour's: deleting a version costs the disk about as much as writing one
	// did, so a compaction that hurries is felt by all others. One that cannot keep up with what is written gets faster as it falls behind.
	removeSteps = 90_000
	// removeEvents is how many revisions' events go at once, as one range: to delete each by itself would cost as much as the versions do. It is a power
	// of two.
	removeEvents = 1 << 14
	// removePause is the time between two steps: other requests come between.
	removePause = 10 * time.Millisecond
)

// removeHistory does one step of a compaction.
func (c *call) removeHistory() {
	type done struct {
		rev  int64
		prev []byte
	}
	var steps []done
	from := c.st.removed
	c.st.removed = c.st.compact
	for row, b := range c.v.Scan(eventKey(from, 0), eventKey(c.st.compact+1, 0)) {
		rev, ok := eventRev(row)
		_, prev, key, good := decodeEvent(b)
		if !ok || !good {
			c.damaged("event")
			return
		}
		s := done{rev: rev}
		if prev > 0 {
			s.prev = oldKey(key, prev)
		}
		steps = append(steps, s)
		// A revision's events go together, so that where to go on is a revision.
		if n := len(steps) - 1; n > 0 && steps[n-1].rev != rev && stepEnds(n, from, rev, c.st.compact) {
			steps = steps[:n]
			c.st.removed = rev
			break
		}
	}
	for _, s := range steps {
		if s.prev != nil {
			c.tx.DeleteBulk(s.prev)
		}
	}
	if before := from &^ (removeEvents - 1); c.st.removed == c.st.compact || c.st.removed&^(removeEvents-1) > before {
		// Nobody reads those before the compacted revision, so that it does not matter when they go.
		c.tx.DeleteRange(eventKey(before, 0), eventKey(c.st.removed, 0))
	}
	c.save()
	c.tx.Wake(removed)
	if c.st.removed < c.st.compact {
		c.tx.SetTimer([]byte{timerCompact}, c.tx.Now().Add(removePause))
	}
}

// stepEnds reports whether a step that has n events of revisions from to rev-1, of a compaction that goes to compact, is long enough.
func stepEnds(n int, from, rev, compact int64) bool {
	// So many there are, if the others are like these.
	all := int64(n) * (compact - from) / (rev - from)
	return n >= removeMax || n >= removeMin && int64(n) >= all/removeSteps
}

// Status is what is known of the key space.
type Status struct {
	// Revision is the newest; Compacted is the oldest that can be read, 0 if none was compacted.
	Revision, Compacted int64
	// Removed says how far history is removed: a compaction is complete when it equals Compacted.
	Removed int64
}

// EncodeStatus returns the query for DecodeStatus's answer.
func EncodeStatus() []byte { return head(reqStatus) }

// DecodeStatus reads the answer.
func DecodeStatus(b []byte) (Status, error) {
	d := decoder{codec.Read(b)}
	s := Status{Revision: d.int(), Compacted: d.int(), Removed: d.int()}
	return s, d.end()
}

func (c *call) status(d *decoder) []byte {
	c.failIf(d.end())
	return appendInt(appendInt(appendInt(nil, c.st.rev), c.st.compact), c.st.removed)
}

// Event is one change of a key.
type Event struct {
	// KV is the new version; of a deletion it has the key and the revision only.
	KV      KeyValue
	Deleted bool
	// Prev is the version before, if it was asked for and is still kept.
	Prev *KeyValue
}

// Events is a stretch of history: all events with a revision from that asked for to before Next.
type Events struct {
	// Revision is the newest of the key space, Compacted as in Status.
	Revision, Compacted int64
	Next                int64
	Events              []Event
}

// EncodeEvents returns the query for the history from a revision on, as many revisions as take about bytesMax, at least one if
// there is any; none is cut. It fails with ErrCompacted.
func EncodeEvents(from int64, bytesMax int, withPrev bool) []byte {
	return codec.AppendBool(appendInt(appendInt(head(reqEvents), from), int64(bytesMax)), withPrev)
}

// DecodeEvents reads the answer. Its slices are parts of b.
func DecodeEvents(b []byte) (Events, error) {
	d := decoder{codec.Read(b)}
	e := Events{Revision: d.int(), Compacted: d.int(), Next: d.int()}
	if n := d.Count(8); n > 0 {
		e.Events = make([]Event, n)
	}
	for i := range e.Events {
		ev := &e.Events[i]
		flags := d.Byte()
		ev.Deleted = flags&1 != 0
		d.kv(&ev.KV)
		if flags&2 != 0 {
			ev.Prev = &KeyValue{}
			d.kv(ev.Prev)
		}
	}
	return e, d.end()
}

func (c *call) eventsFrom(d *decoder) []byte {
	from, bytesMax, withPrev := d.int(), d.int(), d.Bool()
	c.failIf(d.end())
	if from < c.st.compact {
		c.fail(ErrCompacted)
	}
	if c.err != nil {
		return nil
	}
	next := max(from, c.st.rev+1)
	var body []byte
	n, last := 0, int64(0)
	for row, b := range c.v.Scan(eventKey(from, 0), []byte{rowEvent + 1}) {
		rev, ok := eventRev(row)
		kind, prev, key, good := decodeEvent(b)
		if !ok || !good {
			c.damaged("event")
			return nil
		}
		if rev != last && int64(len(body)) >= bytesMax && n > 0 {
			next = rev
			break
		}
		last = rev
		body = c.appendEvent(body, kind, key, rev, prev, withPrev)
		if n++; len(body) > AnswerBytesMax {
			c.fail(ErrAnswerTooLarge)
		}
		if c.err != nil {
			return nil
		}
	}
	out := appendInt(appendInt(appendInt(make([]byte, 0, len(body)+32), c.st.rev), c.st.compact), next)
	return append(binary.AppendUvarint(out, uint64(n)), body...)
}

func (c *call) appendEvent(b []byte, kind eventKind, key []byte, rev, prev int64, withPrev bool) []byte {
	kv := KeyValue{Key: key, Mod: rev}
	flags := byte(0)
	if kind == eventDelete {
		flags = 1
	} else if !c.version(&kv) {
		c.damaged("event")
		return b
	}
	was := KeyValue{Key: key, Mod: prev}
	if withPrev && prev > 0 && c.version(&was) {
		flags |= 2
	}
	b = appendKV(append(b, flags), &kv)
	if flags&2 != 0 {
		b = appendKV(b, &was)
	}
	return b
}

// version fills in the version of a key of a revision, wherever it is. It reports false if it is no longer kept.
func (c *call) version(kv *KeyValue) bool {
	if now, ok := c.head(kv.Key); ok && now.Mod == kv.Mod {
		*kv = now
		return true
	}
	b, ok := c.v.Get(oldKey(kv.Key, kv.Mod))
	if !ok {
		return false
	}
	_, ok = decodeVersion(b, kv)
	return ok
}

// EncodeHash returns the query for a checksum over the keys as of a revision, 0 for the newest. It is equal on all replicas that have
// applied the revision, and the same before and after a compaction at it. As of a negative revision there are no keys, whatever was compacted, as
// in etcd.
func EncodeHash(rev int64) []byte { return appendInt(head(reqHash), rev) }

// Hash is a checksum and what it covers.
type Hash struct {
	Sum uint32
	// Revision is the key space's, At the one that Sum is of. Compacted is the oldest that can be asked for, 0 if none was compacted.
	Revision, At, Compacted int64
}

// DecodeHash reads the answer.
func DecodeHash(b []byte) (Hash, error) {
	d := decoder{codec.Read(b)}
	h := Hash{Sum: uint32(d.Uvarint()), Revision: d.int(), At: d.int(), Compacted: d.int()}
	return h, d.end()
}

func (c *call) hash(d *decoder) []byte {
	rev := d.int()
	c.failIf(d.end())
	switch {
	case rev == 0:
		rev = c.st.rev
	case rev > c.st.rev:
		c.fail(ErrFutureRevision)
	case rev > 0 && rev < c.st.compact:
		c.fail(ErrCompacted)
	}
	if c.err != nil {
		return nil
	}
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	// That of no keys is not 0, which would be no checksum in the JSON form of an answer.
	_, _ = h.Write([]byte{rowHead})
	if rev > 0 {
		var buf []byte
		for kv := range c.at(keyRange{all: true}, rev) {
			buf = appendKV(buf[:0], kv)
			_, _ = h.Write(buf)
		}
	}
	b := binary.AppendUvarint(nil, uint64(h.Sum32()))
	return appendInt(appendInt(appendInt(b, c.st.rev), rev), c.st.compact)
}

// removed is what the steps of a compaction wake.
var removed = []byte{1}

// gone is the beginning of what the deletion of a key wakes.
const gone = 2

// GoneSpan is what to watch to hear of a key's deletion.
func GoneSpan(key []byte) shard.Span {
	return shard.Span{Module: shard.ModuleKV, From: append([]byte{gone}, key...)}
}

// RemovedSpan is what to watch to hear of the progress of compactions.
func RemovedSpan() shard.Span { return shard.Span{Module: shard.ModuleKV, From: removed} }

// changed is what every change of the key space wakes: those who follow it read the events from where they are.
var changed = []byte{}

// Span is what to watch to hear of every change of the key space.
func Span() shard.Span { return shard.Span{Module: shard.ModuleKV, From: changed} }
