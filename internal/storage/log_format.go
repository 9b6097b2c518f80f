package storage

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
)

// The byte format of the raft log; docs/formats/raftlog.md has it as tables. Everything here is free of I/O, and decoders
// take any bytes.

const (
	identityMagic = "QRLOGID1"
	segmentMagic  = "QRLOGSEG"
	formatVersion = 1

	identityBytes      = 64
	segmentHeaderBytes = 96
	recordHeaderBytes  = 32
	entryHeaderBytes   = 25
	checkpointBytes    = 48
	checkpointPerShard = 80

	// payloadBytesMax bounds a record, and so what a reader of damaged bytes may believe.
	payloadBytesMax = 64 << 20
	// segmentBytesMax keeps offsets within 32 bits, together with a record of the largest size.
	segmentBytesMax = 1 << 30
	// indexMax keeps sums of indexes from overflowing.
	indexMax = 1<<62 - 1
)

type recordKind uint8

const (
	kindCheckpoint recordKind = 1
	kindBatch      recordKind = 2
	kindRewrite    recordKind = 3
	kindSeal       recordKind = 4
	kindSettle     recordKind = 5
)

// Flags of a sub-record.
const (
	subReplica = 1 << iota
	subForget
	subReset
	subEntries
	subState
	subCut
	subRemove
)

const (
	checkpointAllSuspect = 1
	checkpointSuspect    = 1
)

var (
	errBadEntry  = errors.New("the entry is not what was written")
	errBadRecord = errors.New("the record cannot be decoded")
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func align8(n int64) int64 { return (n + 7) &^ 7 }

// seedOf returns the start value of the checksums in a segment. Bytes that the file held under another segment number, or
// in another log, do not pass with it.
func seedOf(id, seq uint64) uint32 {
	var b [16]byte
	le.PutUint64(b[:], id)
	le.PutUint64(b[8:], seq)
	return crc32.Checksum(b[:], castagnoli)
}

// identity is the content of the LOG file.
type identity struct {
	id, last, oldest, sealed uint64
}

func (n identity) encode() []byte {
	b := append(make([]byte, 0, identityBytes), identityMagic...)
	b = le.AppendUint32(b, formatVersion)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint64{n.id, n.last, n.oldest, n.sealed} {
		b = le.AppendUint64(b, v)
	}
	b = append(b, make([]byte, identityBytes-4-len(b))...)
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeIdentity returns errBadRecord for bytes that are not an identity, and kind Unsupported for a later version's.
func decodeIdentity(b []byte) (identity, error) {
	if len(b) != identityBytes || string(b[:8]) != identityMagic || !checksumGood(b, identityBytes-4) {
		return identity{}, errBadRecord
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return identity{}, errs.New(errs.Unsupported, "raft log has format version %d, this build reads %d", v, formatVersion)
	}
	n := identity{le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[32:]), le.Uint64(b[40:])}
	if n.oldest > n.last || n.last > indexMax || n.sealed > indexMax {
		return identity{}, errBadRecord
	}
	return n, nil
}

// checksumGood compares the checksum at b[at:] with that of the bytes before it.
func checksumGood(b []byte, at int) bool {
	return crc32.Checksum(b[:at], castagnoli) == le.Uint32(b[at:]) || env.Mutant(env.MutantBitFlipBelieved)
}

// segmentInfo is what the header and the checkpoint of a segment both say.
type segmentInfo struct {
	size     int64
	step     int64
	oldest   uint64
	first    uint64 // number of the checkpoint record
	prevEnd  int64
	prevNext uint64
}

func (h segmentInfo) encode(b []byte, id, seq uint64) []byte {
	start := len(b)
	b = append(b, segmentMagic...)
	b = le.AppendUint32(b, formatVersion)
	b = le.AppendUint32(b, uint32(h.step))
	for _, v := range []uint64{id, seq, uint64(h.size), h.oldest, h.first, uint64(h.prevEnd), h.prevNext} {
		b = le.AppendUint64(b, v)
	}
	b = append(b, make([]byte, start+segmentHeaderBytes-4-len(b))...)
	return le.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func decodeSegmentHeader(b []byte, id, seq uint64) (segmentInfo, error) {
	if len(b) < segmentHeaderBytes || string(b[:8]) != segmentMagic || !checksumGood(b, segmentHeaderBytes-4) {
		return segmentInfo{}, errBadRecord
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return segmentInfo{}, errs.New(errs.Unsupported, "raft log segment has format version %d, this build reads %d",
			v, formatVersion)
	}
	h := segmentInfo{
		step: int64(le.Uint32(b[12:])), size: int64(le.Uint64(b[32:])), oldest: le.Uint64(b[40:]), first: le.Uint64(b[48:]),
		prevEnd: int64(le.Uint64(b[56:])), prevNext: le.Uint64(b[64:]),
	}
	if le.Uint64(b[16:]) != id || le.Uint64(b[24:]) != seq || !h.plausible(seq) {
		return segmentInfo{}, errBadRecord
	}
	return h, nil
}

func (h segmentInfo) plausible(seq uint64) bool {
	return h.size > 0 && h.size <= 2*segmentBytesMax && h.step > 0 && h.step <= segmentBytesMax &&
		h.prevEnd >= 0 && h.prevEnd <= 2*segmentBytesMax && h.oldest <= seq &&
		h.first > 0 && h.first <= indexMax && h.prevNext <= h.first
}

// allocated returns the length that the file has on disk before a record that ends at end is written.
func (h segmentInfo) allocated(end int64) int64 {
	return min(h.size, (end+h.step-1)/h.step*h.step+h.step)
}

// headerID reads the id out of a segment header without knowing it, for a log that has lost its LOG file.
func headerID(b []byte) (uint64, bool) {
	if len(b) < segmentHeaderBytes || string(b[:8]) != segmentMagic || !checksumGood(b, segmentHeaderBytes-4) {
		return 0, false
	}
	return le.Uint64(b[16:]), true
}

// beginRecord appends a record header; endRecord fills in what depends on the payload.
func beginRecord(b []byte, k recordKind, number, synced uint64) []byte {
	b = le.AppendUint64(b, 0)
	b = le.AppendUint64(b, number)
	b = le.AppendUint64(b, synced)
	return le.AppendUint64(b, uint64(k))
}

func endRecord(b []byte, start int, seed uint32) []byte {
	le.PutUint32(b[start+4:], uint32(len(b)-start-recordHeaderBytes))
	for (len(b)-start)%8 != 0 {
		b = append(b, 0)
	}
	le.PutUint32(b[start:], crc32.Update(seed, castagnoli, b[start+4:]))
	return b
}

// record is a record found in a segment.
type record struct {
	off, end int // its place in the segment
	kind     recordKind
	number   uint64
	synced   uint64
	payload  []byte
}

// recordHeader decodes a record header and says whether it makes sense, not whether its checksum is right.
func recordHeader(b []byte, off int) (record, bool) {
	if off < 0 || len(b)-off < recordHeaderBytes {
		return record{}, false
	}
	h := b[off:]
	r := record{off: off, number: le.Uint64(h[8:]), synced: le.Uint64(h[16:]), kind: recordKind(h[24])}
	n := le.Uint32(h[4:])
	if r.kind < kindCheckpoint || r.kind > kindSettle || le.Uint64(h[24:])>>8 != 0 || n > payloadBytesMax ||
		r.number == 0 || r.number > indexMax || r.synced > r.number {
		return record{}, false
	}
	r.end = off + int(align8(recordHeaderBytes+int64(n)))
	if r.end > len(b) {
		return record{}, false
	}
	r.payload = h[recordHeaderBytes : recordHeaderBytes+n]
	return r, true
}

// recordAt decodes the record at off. It is good only if its checksum is, which is compared only if check is set.
func recordAt(b []byte, off int, seed uint32, check bool) (record, bool) {
	r, ok := recordHeader(b, off)
	if !ok {
		return record{}, false
	}
	if check && crc32.Update(seed, castagnoli, b[off+4:r.end]) != le.Uint32(b[off:]) && !env.Mutant(env.MutantBitFlipBelieved) {
		return record{}, false
	}
	return r, true
}

// subRecord is what a batch says of one shard, without its entries.
type subRecord struct {
	shard   ShardID
	flags   uint8
	counter uint64
	replica uint64
	reset   Position
	first   uint64 // index of the first entry
	count   uint32 // of entries
	state   HardState
	cut     Position
}

// subRecordBytes is the encoded size without entries.
func subRecordBytes(flags uint8) int {
	n := 13
	for _, f := range []struct {
		flag uint8
		size int
	}{{subReplica, 8}, {subReset, 16}, {subEntries, 12}, {subState, 24}, {subCut, 16}} {
		if flags&f.flag != 0 {
			n += f.size
		}
	}
	return n
}

// encodeHead appends the fields up to the entries, encodeTail those behind them.
func (r *subRecord) encodeHead(b []byte) []byte {
	b = le.AppendUint32(b, uint32(r.shard))
	b = append(b, r.flags)
	b = le.AppendUint64(b, r.counter)
	if r.flags&subReplica != 0 {
		b = le.AppendUint64(b, r.replica)
	}
	if r.flags&subReset != 0 {
		b = le.AppendUint64(b, r.reset.Index)
		b = le.AppendUint64(b, r.reset.Term)
	}
	if r.flags&subEntries != 0 {
		b = le.AppendUint64(b, r.first)
		b = le.AppendUint32(b, r.count)
	}
	return b
}

func (r *subRecord) encodeTail(b []byte) []byte {
	if r.flags&subState != 0 {
		b = le.AppendUint64(b, r.state.Term)
		b = le.AppendUint64(b, r.state.Vote)
		b = le.AppendUint64(b, r.state.Commit)
	}
	if r.flags&subCut != 0 {
		b = le.AppendUint64(b, r.cut.Index)
		b = le.AppendUint64(b, r.cut.Term)
	}
	return b
}

func encodeEntry(b []byte, e *Entry, seed uint32) []byte {
	start := len(b)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, uint32(len(e.Data)))
	b = le.AppendUint64(b, e.Index)
	b = le.AppendUint64(b, e.Term)
	b = append(b, e.Type)
	b = append(b, e.Data...)
	le.PutUint32(b[start:], crc32.Update(seed, castagnoli, b[start+4:]))
	return b
}

// decodeEntry decodes an entry that fills b. Data points into b. The checksum is compared if check is set.
func decodeEntry(b []byte, seed uint32, check bool) (Entry, error) {
	if len(b) < entryHeaderBytes || uint64(le.Uint32(b[4:])) != uint64(len(b)-entryHeaderBytes) {
		return Entry{}, errBadEntry
	}
	if check && crc32.Update(seed, castagnoli, b[4:]) != le.Uint32(b) &&
		!env.Mutant(env.MutantBitFlipBelieved) && !env.Mutant(env.MutantTornTailKept) {
		return Entry{}, errBadEntry
	}
	e := Entry{Index: le.Uint64(b[8:]), Term: le.Uint64(b[16:]), Type: b[24]}
	if len(b) > entryHeaderBytes {
		e.Data = b[entryHeaderBytes:]
	}
	return e, nil
}

// reader is a codec.Reader of payloads.
type reader struct{ codec.Reader }

// index reads a number that counts something; none comes near 2^62.
func (r *reader) index() uint64 {
	v := r.Uint64()
	if v > indexMax {
		r.Fail()
		return 0
	}
	return v
}

// decodeBatch calls f for each sub-record of a batch or rewrite, with the places of its entries; base is where the payload
// stands in the segment. The slices are valid until f returns. Sub-records before the first bad one are reported.
func decodeBatch(payload []byte, base int, seq uint64, f func(r *subRecord, slots []slot, terms []uint64)) error {
	r := reader{codec.Read(payload)}
	var slots []slot
	var terms []uint64
	for n := r.Uint32(); n > 0; n-- {
		s := subRecord{shard: ShardID(r.Uint32()), flags: r.Byte(), counter: r.index()}
		if s.flags&subReplica != 0 {
			s.replica = r.Uint64()
		}
		if s.flags&subReset != 0 {
			s.reset = Position{r.index(), r.Uint64()}
		}
		slots, terms = slots[:0], terms[:0]
		if s.flags&subEntries != 0 {
			s.first, s.count = r.index(), r.Uint32()
			for i := range uint64(s.count) {
				left := r.Len()
				h := r.Fixed(entryHeaderBytes)
				if h == nil {
					break
				}
				if le.Uint64(h[8:]) != s.first+i || s.first+i > indexMax {
					r.Fail()
				}
				terms = append(terms, le.Uint64(h[16:]))
				r.Fixed(int(le.Uint32(h[4:])))
				slots = append(slots, slot{seq, uint32(base + len(payload) - left), uint32(left - r.Len())})
			}
		}
		if s.flags&subState != 0 {
			s.state = HardState{r.Uint64(), r.Uint64(), r.Uint64()}
		}
		if s.flags&subCut != 0 {
			s.cut = Position{r.index(), r.Uint64()}
		}
		if r.Bad() || s.shard == 0 || s.counter == 0 || s.flags&subEntries != 0 && s.first == 0 {
			return errBadRecord
		}
		f(&s, slots, terms)
	}
	if !r.Done() {
		return errBadRecord
	}
	return nil
}

// checkpointShard is what a checkpoint says of one shard.
type checkpointShard struct {
	shard     ShardID
	suspect   bool
	replica   uint64
	state     HardState
	cut, last Position
	counter   uint64
}

// checkpoint is the decoded first record of a segment.
type checkpoint struct {
	info       segmentInfo
	allSuspect bool
	shards     []checkpointShard
}

func (c *checkpoint) encode(b []byte) []byte {
	for _, v := range []uint64{uint64(c.info.size), c.info.oldest, uint64(c.info.prevEnd), c.info.prevNext} {
		b = le.AppendUint64(b, v)
	}
	flags := uint32(0)
	if c.allSuspect {
		flags = checkpointAllSuspect
	}
	for _, v := range []uint32{uint32(c.info.step), flags, uint32(len(c.shards)), 0} {
		b = le.AppendUint32(b, v)
	}
	for i := range c.shards {
		s := &c.shards[i]
		flags := uint32(0)
		if s.suspect {
			flags = checkpointSuspect
		}
		b = le.AppendUint32(b, uint32(s.shard))
		b = le.AppendUint32(b, flags)
		for _, v := range [...]uint64{s.replica, s.state.Term, s.state.Vote, s.state.Commit,
			s.cut.Index, s.cut.Term, s.last.Index, s.last.Term, s.counter} {
			b = le.AppendUint64(b, v)
		}
	}
	return b
}

// decodeCheckpoint decodes the payload of a checkpoint with a record number.
func decodeCheckpoint(payload []byte, number, seq uint64) (*checkpoint, error) {
	r := reader{codec.Read(payload)}
	c := &checkpoint{info: segmentInfo{
		size: int64(r.index()), oldest: r.Uint64(), prevEnd: int64(r.index()), prevNext: r.Uint64(), step: int64(r.Uint32()), first: number,
	}}
	c.allSuspect = r.Uint32()&checkpointAllSuspect != 0
	n := int64(r.Uint32())
	r.Uint32()
	if r.Bad() || n*checkpointPerShard != int64(r.Len()) || !c.info.plausible(seq) {
		return nil, errBadRecord
	}
	c.shards = make([]checkpointShard, n)
	for i := range c.shards {
		s := &c.shards[i]
		s.shard = ShardID(r.Uint32())
		s.suspect = r.Uint32()&checkpointSuspect != 0
		s.replica = r.Uint64()
		s.state = HardState{r.Uint64(), r.Uint64(), r.Uint64()}
		s.cut = Position{r.index(), r.Uint64()}
		s.last = Position{r.index(), r.Uint64()}
		s.counter = r.index()
		if r.Bad() || s.shard == 0 || s.last.Index < s.cut.Index || i > 0 && c.shards[i-1].shard >= s.shard {
			return nil, errBadRecord
		}
	}
	return c, nil
}
