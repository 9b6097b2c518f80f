package storage

import (
	"hash/crc32"
	"testing"
)

// resummed returns bytes with the checksum at an offset made right, after they were changed.
func resummed(b []byte, at int, change func(b []byte)) []byte {
	change(b)
	le.PutUint32(b[at:], crc32.Checksum(b[:at], castagnoli))
	return b
}

// A checksum that is right does not make sense of what has none: nobody writes it, and to believe it would be to read or to number past what is there.

func TestFormat_Identity(t *testing.T) {
	f := func(name string, want bool, n identity, change func(b []byte)) {
		t.Helper()
		if got, err := decodeIdentity(resummed(n.encode(), identityBytes-4, change)); (err == nil) != want || want && got != n {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	same := func([]byte) {}
	f("none", true, identity{}, same)
	f("the highest", true, identity{7, indexMax, indexMax, indexMax}, same)
	f("oldest behind last", false, identity{7, 3, 4, 1}, same)
	f("last out of range", false, identity{7, indexMax + 1, 1, 1}, same)
	f("sealed out of range", false, identity{7, 3, 1, indexMax + 1}, same)
	f("magic", false, identity{7, 3, 1, 1}, func(b []byte) { b[3]++ })
	f("version", false, identity{7, 3, 1, 1}, func(b []byte) { b[8]++ })
	if _, err := decodeIdentity(append(identity{7, 3, 1, 1}.encode(), 0)); err == nil {
		t.Error("a longer one is taken")
	}
	b := identity{7, 3, 1, 1}.encode()
	for at := range b {
		b[at] ^= 4
		if _, err := decodeIdentity(b); err == nil {
			t.Errorf("byte %d is changed, and it is taken", at)
		}
		b[at] ^= 4
	}
}

func TestFormat_SegmentInfo(t *testing.T) {
	const seq = 9
	good := segmentInfo{size: 1 << 20, step: 4096, oldest: 3, first: 50, prevEnd: 4000, prevNext: 50}
	f := func(name string, want bool, change func(h *segmentInfo)) {
		t.Helper()
		h := good
		change(&h)
		b := h.encode(nil, 7, seq)
		if got, err := decodeSegmentHeader(b, 7, seq); (err == nil) != want || want && got != h {
			t.Errorf("%s: the header is %+v, %v", name, got, err)
		}
		c := checkpoint{info: h}
		if got, err := decodeCheckpoint(c.encode(nil), h.first, seq); (err == nil) != want || want && got.info != h {
			t.Errorf("%s: the checkpoint is %+v, %v", name, got, err)
		}
	}
	f("as it is", true, func(*segmentInfo) {})
	f("the highest", true, func(h *segmentInfo) {
		*h = segmentInfo{2 * segmentBytesMax, segmentBytesMax, seq, indexMax, 2 * segmentBytesMax, indexMax}
	})
	f("the lowest", true, func(h *segmentInfo) { *h = segmentInfo{size: 1, step: 1, first: 1} })
	f("no size", false, func(h *segmentInfo) { h.size = 0 })
	f("size below zero", false, func(h *segmentInfo) { h.size = -1 })
	f("size out of range", false, func(h *segmentInfo) { h.size = 2*segmentBytesMax + 1 })
	f("no step", false, func(h *segmentInfo) { h.step = 0 })
	f("step out of range", false, func(h *segmentInfo) { h.step = segmentBytesMax + 1 })
	f("end below zero", false, func(h *segmentInfo) { h.prevEnd = -1 })
	f("end out of range", false, func(h *segmentInfo) { h.prevEnd = 2*segmentBytesMax + 1 })
	f("needs a later segment", false, func(h *segmentInfo) { h.oldest = seq + 1 })
	f("no number", false, func(h *segmentInfo) { h.first, h.prevNext = 0, 0 })
	f("number out of range", false, func(h *segmentInfo) { h.first = indexMax + 1 })
	f("numbers fall", false, func(h *segmentInfo) { h.prevNext = h.first + 1 })

	b := good.encode(nil, 7, seq)
	if _, err := decodeSegmentHeader(b, 8, seq); err == nil {
		t.Error("the header of another log is taken")
	}
	if _, err := decodeSegmentHeader(b, 7, seq+1); err == nil {
		t.Error("the header of another segment is taken")
	}
	if id, ok := headerID(b); !ok || id != 7 {
		t.Errorf("the header is that of %d, %v", id, ok)
	}
	other := resummed(append([]byte(nil), b...), segmentHeaderBytes-4, func(b []byte) { b[0]++ })
	for name, b := range map[string][]byte{"nothing": nil, "short": b[:segmentHeaderBytes-1], "another magic": other} {
		if _, err := decodeSegmentHeader(b, 7, seq); err == nil {
			t.Errorf("%s: taken for a header", name)
		}
		if _, ok := headerID(b); ok {
			t.Errorf("%s: has an id", name)
		}
	}
}

func TestFormat_CheckpointShards(t *testing.T) {
	info := segmentInfo{size: 1 << 20, step: 4096, oldest: 3, first: 50, prevEnd: 4000, prevNext: 50}
	f := func(name string, want bool, shards ...checkpointShard) {
		t.Helper()
		c := checkpoint{info: info, shards: shards}
		b := c.encode(nil)
		if got, err := decodeCheckpoint(b, 50, 9); (err == nil) != want || want && len(got.shards) != len(shards) {
			t.Errorf("%s: got %v", name, err)
		}
		for _, b := range [][]byte{b[:len(b)-1], append(b, 0)} {
			if _, err := decodeCheckpoint(b, 50, 9); err == nil {
				t.Errorf("%s: %d bytes are taken", name, len(b))
			}
		}
	}
	at := func(i uint64) Position { return Position{i, 1} }
	f("none", true)
	f("the highest", true, checkpointShard{shard: 1, cut: at(indexMax), last: at(indexMax), counter: indexMax}, checkpointShard{shard: 1<<32 - 1})
	f("no shard", false, checkpointShard{})
	f("twice", false, checkpointShard{shard: 4}, checkpointShard{shard: 4})
	f("falling", false, checkpointShard{shard: 4}, checkpointShard{shard: 3})
	f("ends before it begins", false, checkpointShard{shard: 4, cut: at(5), last: at(4)})
	f("cut out of range", false, checkpointShard{shard: 4, cut: at(indexMax + 1), last: at(indexMax + 1)})
	f("last out of range", false, checkpointShard{shard: 4, last: at(indexMax + 1)})
	f("counter out of range", false, checkpointShard{shard: 4, counter: indexMax + 1})
	if _, err := decodeCheckpoint(nil, 50, 9); err == nil {
		t.Error("nothing is a checkpoint")
	}
}

func TestFormat_RecordHeader(t *testing.T) {
	big := make([]byte, recordHeaderBytes+payloadBytesMax+16)
	f := func(name string, want bool, kind recordKind, number, synced uint64, length uint32, change func(b []byte)) {
		t.Helper()
		copy(big, beginRecord(nil, kind, number, synced))
		le.PutUint32(big[4:], length)
		change(big)
		if r, ok := recordHeader(big, 0); ok != want || want && (uint32(len(r.payload)) != length || r.end > len(big)) {
			t.Errorf("%s: got %v", name, ok)
		}
	}
	same := func([]byte) {}
	f("a seal", true, kindSeal, 1, 1, 0, same)
	f("the highest", true, kindSettle, indexMax, indexMax, payloadBytesMax, same)
	f("no kind", false, 0, 5, 1, 8, same)
	f("a later kind", false, kindSettle+1, 5, 1, 8, same)
	f("bytes behind the kind", false, kindBatch, 5, 1, 8, func(b []byte) { b[31] = 1 })
	f("too long", false, kindBatch, 5, 1, payloadBytesMax+1, same)
	f("no number", false, kindBatch, 0, 0, 8, same)
	f("number out of range", false, kindBatch, indexMax+1, 1, 8, same)
	f("synced before it was written", false, kindBatch, 5, 6, 8, same)
	copy(big, beginRecord(nil, kindSeal, 5, 1))
	le.PutUint32(big[4:], 1)
	for name, c := range map[string]struct{ off, end int }{"before the file": {-8, 64}, "half a header": {0, 31}, "half a record": {0, 39}, "behind the end": {64, 40}} {
		if _, ok := recordHeader(big[:c.end], c.off); ok {
			t.Errorf("%s: there is a record", name)
		}
	}
	if _, ok := recordHeader(big[:40], 0); !ok {
		t.Error("a record that ends with the file is not found")
	}
}

func TestFormat_Batch(t *testing.T) {
	encode := func(count uint32, subs ...subRecord) []byte {
		b := le.AppendUint32(nil, count)
		for i := range subs {
			b = subs[i].encodeHead(b)
			if subs[i].flags&subEntries != 0 {
				b = encodeEntry(b, &Entry{Index: subs[i].first, Term: 3, Data: []byte("abc")}, 0)
			}
			b = subs[i].encodeTail(b)
		}
		return b
	}
	f := func(name string, want bool, b []byte) {
		t.Helper()
		err := decodeBatch(b, 100, 9, func(r *subRecord, slots []slot, terms []uint64) {
			if len(slots) != int(r.count) || len(terms) != int(r.count) || r.shard == 0 || r.counter == 0 || r.flags&subEntries != 0 && r.first == 0 {
				t.Errorf("%s: %+v has %d slots and %d terms", name, *r, len(slots), len(terms))
			}
		})
		if (err == nil) != want {
			t.Errorf("%s: got %v", name, err)
		}
	}
	one := func(change func(s *subRecord)) []byte {
		s := subRecord{shard: 4, counter: 2, flags: subReplica | subReset | subEntries | subState | subCut, first: 8, count: 1, reset: Position{7, 1}}
		change(&s)
		return encode(1, s)
	}
	good := one(func(*subRecord) {})
	f("as it is", true, good)
	f("none", true, encode(0))
	f("the highest", true, one(func(s *subRecord) {
		s.counter, s.reset.Index, s.first, s.cut.Index = indexMax, indexMax, indexMax, indexMax
	}))
	f("no shard", false, one(func(s *subRecord) { s.shard = 0 }))
	f("no counter", false, one(func(s *subRecord) { s.counter = 0 }))
	f("counter out of range", false, one(func(s *subRecord) { s.counter = indexMax + 1 }))
	f("reset out of range", false, one(func(s *subRecord) { s.reset.Index = indexMax + 1 }))
	f("cut out of range", false, one(func(s *subRecord) { s.cut.Index = indexMax + 1 }))
	f("no first index", false, one(func(s *subRecord) { s.first = 0 }))
	f("index out of range", false, one(func(s *subRecord) { s.first = indexMax + 1 }))
	f("more entries than there are", false, one(func(s *subRecord) { s.count = 1<<32 - 1 }))
	f("another sub-record", false, encode(2, subRecord{shard: 4, counter: 2}))
	last := subRecord{shard: 4, counter: 2, flags: subEntries, first: indexMax, count: 2}
	b := last.encodeHead(le.AppendUint32(nil, 1))
	b = encodeEntry(b, &Entry{Index: indexMax}, 0)
	f("an entry behind the last index", false, encodeEntry(b, &Entry{Index: indexMax + 1}, 0))
	f("more behind", false, append(append([]byte(nil), good...), 0))
	for n := range good {
		f("cut short", false, good[:n])
	}
	// Where the first entry's index stands.
	b = append([]byte(nil), good...)
	b[4+subRecordBytes(subReplica|subReset|subEntries)+8]++
	f("another index than it should have", false, b)

	e := encodeEntry(nil, &Entry{Index: 8, Term: 3, Data: []byte("abc")}, 5)
	if got, err := decodeEntry(e, 5, true); err != nil || string(got.Data) != "abc" || got.Index != 8 || got.Term != 3 {
		t.Errorf("got %+v, %v", got, err)
	}
	for n := range e {
		if _, err := decodeEntry(e[:n], 5, false); err == nil {
			t.Errorf("an entry of %d bytes of %d is taken", n, len(e))
		}
	}
	if _, err := decodeEntry(append(e, 0), 5, false); err == nil {
		t.Error("an entry with something behind it is taken")
	}
}
