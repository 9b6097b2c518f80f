package kv

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strconv"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
)

// First bytes of rows and timers; see the package comment.
const (
	rowSpace    = 'm'
	rowHead     = 'k'
	rowOld      = 'o'
	rowEvent    = 'r'
	rowLease    = 'l'
	rowAttached = 'a'
	rowLoad     = 'i'
	rowFence    = 'f'

	rowFenceOrder = 't'
	rowFences     = 'T'

	timerLease   = 'l'
	timerCompact = 'c'
)

// space is what the key space knows of itself.
type space struct {
	// rev is the newest revision; compact is the oldest that can be read, 0 if none was compacted.
	rev, compact int64
	// removed says how far the history is removed: all before compact, once that is done.
	removed int64
	// term is the raft term of the last write, since when, in Unix ms of the shard's clock, it is known to be.
	term, since int64
}

const spaceSize = 1 + 5*8

func (s *space) encode() []byte {
	b := append(make([]byte, 0, spaceSize), encodingVersion)
	for _, v := range [...]int64{s.rev, s.compact, s.removed, s.term, s.since} {
		b = binary.LittleEndian.AppendUint64(b, uint64(v))
	}
	return b
}

func (s *space) decode(b []byte) bool {
	if len(b) != spaceSize || b[0] != encodingVersion {
		return false
	}
	for i, v := range [...]*int64{&s.rev, &s.compact, &s.removed, &s.term, &s.since} {
		*v = int64(binary.LittleEndian.Uint64(b[1+8*i:]))
	}
	return true
}

func appendHeadKey(b, key []byte) []byte { return append(append(b, rowHead), key...) }

// encodeVersion encodes a version of a key; first is its revision in a head row, and the revision that replaced it in an
// older one.
func encodeVersion(first int64, kv *KeyValue) []byte {
	b := make([]byte, 0, 4*binary.MaxVarintLen64+len(kv.Value))
	b = appendInt(appendInt(appendInt(appendInt(b, first), kv.Create), kv.Version), kv.Lease)
	return append(b, kv.Value...)
}

// decodeVersion is its opposite. The value is a part of b.
func decodeVersion(b []byte, kv *KeyValue) (first int64, ok bool) {
	d := decoder{codec.Read(b)}
	first = d.int()
	kv.Create, kv.Version, kv.Lease = d.int(), d.int(), d.int()
	kv.Value = d.Rest()
	return first, !d.Bad()
}

// appendEscaped adds a key in a form that sorts as the key does and shows its own end.
func appendEscaped(b, key []byte) []byte {
	for {
		i := bytes.IndexByte(key, 0)
		if i < 0 {
			return append(append(b, key...), 0, 1)
		}
		b = append(append(b, key[:i]...), 0, 0xff)
		key = key[i+1:]
	}
}

// unescape splits an escaped key off.
func unescape(b []byte) (key, rest []byte, ok bool) {
	for {
		i := bytes.IndexByte(b, 0)
		if i < 0 || i+1 == len(b) {
			return nil, nil, false
		}
		key = append(key, b[:i]...)
		end := b[i+1]
		b = b[i+2:]
		switch end {
		case 1:
			return key, b, true
		case 0xff:
			key = append(key, 0)
		default:
			return nil, nil, false
		}
	}
}

func oldKey(key []byte, mod int64) []byte {
	b := append(make([]byte, 0, 1+len(key)+4+8), rowOld)
	return binary.BigEndian.AppendUint64(appendEscaped(b, key), ^uint64(mod))
}

// decodeOldKey returns the key and revision of an older version's row.
func decodeOldKey(row []byte) (key []byte, mod int64, ok bool) {
	key, rest, ok := unescape(row[1:])
	if !ok || len(rest) != 8 {
		return nil, 0, false
	}
	return key, int64(^binary.BigEndian.Uint64(rest)), true
}

// eventKind is what happened to a key.
type eventKind byte

const (
	eventPut eventKind = iota
	eventDelete
)

func eventKey(rev int64, n uint32) []byte {
	b := binary.BigEndian.AppendUint64(append(make([]byte, 0, 13), rowEvent), uint64(rev))
	return binary.BigEndian.AppendUint32(b, n)
}

func eventRev(row []byte) (int64, bool) {
	if len(row) != 13 {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64(row[1:])), true
}

func encodeEvent(kind eventKind, prev int64, key []byte) []byte {
	b := append(make([]byte, 0, 1+binary.MaxVarintLen64+len(key)), byte(kind))
	return append(appendInt(b, prev), key...)
}

func decodeEvent(b []byte) (kind eventKind, prev int64, key []byte, ok bool) {
	d := decoder{codec.Read(b)}
	kind = eventKind(d.Byte())
	prev = d.int()
	return kind, prev, d.Rest(), !d.Bad() && kind <= eventDelete
}

// lease is a lease's row.
type lease struct {
	// ttl is in force, granted was asked for, both in seconds; end is in Unix ms of the shard's clock. term is the raft term in
	// which it was last renewed.
	ttl, granted, end, term int64
}

func leaseKey(id int64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 9), rowLease), uint64(id))
}

func attachedKey(id int64, key []byte) []byte {
	b := binary.BigEndian.AppendUint64(append(make([]byte, 0, 9+len(key)), rowAttached), uint64(id))
	return append(b, key...)
}

func (l *lease) encode() []byte {
	b := make([]byte, 0, 4*binary.MaxVarintLen64)
	return appendInt(appendInt(appendInt(appendInt(b, l.ttl), l.granted), l.end), l.term)
}

func (l *lease) decode(b []byte) bool {
	d := decoder{codec.Read(b)}
	l.ttl, l.granted, l.end, l.term = d.int(), d.int(), d.int(), d.int()
	return d.Done()
}

func fenceKey(lock []byte) []byte { return append([]byte{rowFence}, lock...) }

func fenceOrderKey(token int64, lock []byte) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{rowFenceOrder}, uint64(token)), lock...)
}

func (f *fences) encode() []byte { return appendInt(appendInt(nil, f.count), f.floor) }

func (f *fences) decode(b []byte) bool {
	d := decoder{codec.Read(b)}
	f.count, f.floor = d.int(), d.int()
	return d.end() == nil
}

func decimal(v int64) string { return strconv.FormatInt(v, 10) }

// after returns the lowest key behind all that begin with prefix, nil if there is none.
func after(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			b := slices.Clone(prefix[:i+1])
			b[i]++
			return b
		}
	}
	return nil
}

// keyRange is what Key and End of a request name.
type keyRange struct {
	from []byte
	// to is where it ends; all says that it does not.
	to       []byte
	one, all bool
}

func rangeOf(key, end []byte) keyRange {
	switch {
	case len(end) == 0:
		return keyRange{from: key, one: true}
	case len(end) == 1 && end[0] == 0:
		return keyRange{from: key, all: true}
	}
	return keyRange{from: key, to: end}
}

// heads returns the bounds of the rows of newest versions.
func (r keyRange) heads() (from, to []byte) {
	from = appendHeadKey(nil, r.from)
	if r.all {
		return from, []byte{rowHead + 1}
	}
	return from, appendHeadKey(nil, r.to)
}

// olds returns the bounds of the rows of older versions.
func (r keyRange) olds() (from, to []byte) {
	from = appendEscaped([]byte{rowOld}, r.from)
	switch {
	case r.one:
		return from, after(from)
	case r.all:
		return from, []byte{rowOld + 1}
	}
	return from, appendEscaped([]byte{rowOld}, r.to)
}

// Contains says whether a key is among those that Key and End of a request name.
func Contains(key, end, k []byte) bool {
	r := rangeOf(key, end)
	if r.one {
		return bytes.Equal(k, key)
	}
	return bytes.Compare(k, key) >= 0 && (r.all || bytes.Compare(k, end) < 0)
}

// Empty says whether Key and End of a request name no key at all.
func Empty(key, end []byte) bool { return rangeOf(key, end).empty() }

func (r keyRange) empty() bool { return !r.one && !r.all && bytes.Compare(r.from, r.to) >= 0 }

func errDamaged(what string) error {
	return errs.New(errs.Corrupt, "a %s of the key space has no known format", what)
}
