package datatypes

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/quorate/quorate/internal/shard"
)

// First bytes of rows and timers; see the package comment.
const (
	rowHead     = 'k'
	rowField    = 'h'
	rowGone     = 'd'
	rowInstance = 'i'

	timerExpire  = 'x'
	timerGarbage = 'g'
)

const (
	kindString = 's'
	kindHash   = 'h'
	kindTTL    = 0x80

	headKeySize  = 1 + 2 + 4
	fieldKeySize = 1 + 8 + 4
	// garbagePerFire bounds how many fields of a dropped hash go at once; smaller hashes go with their head.
	garbagePerFire = 512
	garbageInline  = 64
	// timerMax is the last moment a timer can have; what expires later, after the year 2262, never does.
	timerMax = int64(1<<63-1)/1_000_000 - 1
)

// head is a decoded head row.
type head struct {
	kind byte
	// rev is the revision of the key's last change.
	rev uint64
	// exp is when the key expires, in Unix milliseconds; 0 is never.
	exp int64
	// val is a string's value, instance and count a hash's fields.
	val             []byte
	instance, count uint64
}

func appendHeadKey(b, key []byte) []byte {
	b = binary.BigEndian.AppendUint16(append(b, rowHead), Slot(key))
	b = binary.BigEndian.AppendUint32(b, uint32(xxhash.Sum64(key)>>32))
	return append(b, key...)
}

// headCursor returns the number that orders head rows: slot and hash.
func headCursor(rowKey []byte) uint64 {
	return uint64(binary.BigEndian.Uint16(rowKey[1:]))<<32 | uint64(binary.BigEndian.Uint32(rowKey[3:]))
}

// cursorMax is the first number that is no cursor.
const cursorMax = uint64(shard.SlotCount) << 32

func cursorKey(cursor uint64) []byte {
	b := binary.BigEndian.AppendUint16([]byte{rowHead}, uint16(cursor>>32))
	return binary.BigEndian.AppendUint32(b, uint32(cursor))
}

func appendFieldKey(b []byte, instance uint64, field []byte) []byte {
	b = binary.BigEndian.AppendUint64(append(b, rowField), instance)
	b = binary.BigEndian.AppendUint32(b, uint32(xxhash.Sum64(field)>>32))
	return append(b, field...)
}

// fieldRange returns the bounds of an instance's rows.
func fieldRange(instance uint64) (from, to []byte) {
	return binary.BigEndian.AppendUint64([]byte{rowField}, instance),
		binary.BigEndian.AppendUint64([]byte{rowField}, instance+1)
}

func goneKey(key []byte) []byte {
	return binary.BigEndian.AppendUint16([]byte{rowGone}, uint16(xxhash.Sum64(key)&0x3fff))
}

func (h *head) decode(b []byte) bool {
	if len(b) < 9 {
		return false
	}
	*h = head{kind: b[0] &^ kindTTL, rev: binary.LittleEndian.Uint64(b[1:])}
	body := b[9:]
	if b[0]&kindTTL != 0 {
		if len(body) < 8 {
			return false
		}
		h.exp = int64(binary.LittleEndian.Uint64(body))
		body = body[8:]
	}
	switch h.kind {
	case kindString:
		h.val = body
		return true
	case kindHash:
		if len(body) != 16 {
			return false
		}
		h.instance, h.count = binary.LittleEndian.Uint64(body), binary.LittleEndian.Uint64(body[8:])
		return true
	}
	return false
}

func (h *head) encode() []byte {
	n := 9 + 8 + 16 + len(h.val)
	kind := h.kind
	if h.exp != 0 {
		kind |= kindTTL
	}
	b := binary.LittleEndian.AppendUint64(append(make([]byte, 0, n), kind), h.rev)
	if h.exp != 0 {
		b = binary.LittleEndian.AppendUint64(b, uint64(h.exp))
	}
	if h.kind == kindHash {
		b = binary.LittleEndian.AppendUint64(b, h.instance)
		return binary.LittleEndian.AppendUint64(b, h.count)
	}
	return append(b, h.val...)
}

func (c *call) expired(h *head) bool { return h.exp != 0 && h.exp <= c.now() }

// load returns a key's head, whether or not it has expired.
func (c *call) load(key []byte) (h head, ok bool) {
	c.key = appendHeadKey(c.key[:0], key)
	row, ok := c.v.Get(c.key)
	if !ok {
		return head{}, false
	}
	if !h.decode(row) {
		c.damaged = true
		return head{}, false
	}
	return h, true
}

// look returns the head of a key that exists, for a read.
func (c *call) look(key []byte) (head, bool) {
	h, ok := c.load(key)
	if !ok || c.expired(&h) {
		return head{}, false
	}
	return h, true
}

// open returns the head of a key that exists, for a write: a key that has expired is removed first.
func (c *call) open(key []byte) (head, bool) {
	h, ok := c.load(key)
	if ok && c.expired(&h) {
		c.remove(key, &h, "expired")
		return head{}, false
	}
	return h, ok
}

// openKind is open for commands that want a kind of value.
func (c *call) openKind(key []byte, kind byte) (head, bool, error) {
	h, ok := c.open(key)
	if ok && h.kind != kind {
		return h, true, errWrongType()
	}
	return h, ok, nil
}

func (c *call) lookKind(key []byte, kind byte) (head, bool, error) {
	h, ok := c.look(key)
	if ok && h.kind != kind {
		return h, true, errWrongType()
	}
	return h, ok, nil
}

// save stores a key's head as of this revision.
func (c *call) save(key []byte, h *head) {
	h.rev = uint64(c.tx.Revision())
	c.key = appendHeadKey(c.key[:0], key)
	c.tx.SetFresh(c.key, h.encode())
}

// setTimer keeps the timer of a key in step with its head. was is the expiry the key had.
func (c *call) setTimer(key []byte, was, exp int64) {
	was, exp = timerMoment(was), timerMoment(exp)
	if was == exp {
		return
	}
	name := append([]byte{timerExpire}, key...)
	if exp == 0 {
		c.tx.SetTimer(name, time.Time{})
		return
	}
	c.tx.SetTimer(name, time.UnixMilli(exp))
}

func timerMoment(exp int64) int64 {
	if exp > timerMax {
		return 0
	}
	return exp
}

// remove deletes a key, and says so in the change log as op.
func (c *call) remove(key []byte, h *head, op string) {
	c.detach(key, h)
	c.key = appendHeadKey(c.key[:0], key)
	c.tx.Delete(c.key)
	c.tx.SetFresh(goneKey(key), binary.LittleEndian.AppendUint64(nil, uint64(c.tx.Revision())))
	c.tx.Emit(op, key, key, nil)
}

// detach gives up what hangs on a head: timer and fields.
func (c *call) detach(key []byte, h *head) {
	c.setTimer(key, h.exp, 0)
	if h.kind == kindHash {
		c.dropInstance(h)
	}
}

func (c *call) dropInstance(h *head) {
	if h.count > garbageInline {
		c.tx.SetTimer(binary.BigEndian.AppendUint64([]byte{timerGarbage}, h.instance), c.tx.Now())
		return
	}
	c.deleteFields(h.instance, garbageInline)
}

// deleteFields removes up to n fields of an instance, and returns how many there were.
func (c *call) deleteFields(instance uint64, n int) int {
	from, to := fieldRange(instance)
	var keys [][]byte
	for k := range c.tx.Scan(from, to) {
		keys = append(keys, slices.Clone(k))
		if len(keys) == n {
			break
		}
	}
	for _, k := range keys {
		c.tx.Delete(k)
	}
	return len(keys)
}

func (c *call) fireGarbage(name []byte) {
	if len(name) != 9 {
		return
	}
	if c.deleteFields(binary.BigEndian.Uint64(name[1:]), garbagePerFire) == garbagePerFire {
		c.tx.SetTimer(slices.Clone(name), c.tx.Now())
	}
}

func (c *call) fireExpire(key []byte) {
	if h, ok := c.load(key); ok && c.expired(&h) {
		c.remove(key, &h, "expired")
	}
}

// newInstance numbers the fields of a new hash.
func (c *call) newInstance() uint64 {
	n := uint64(1)
	if b, ok := c.tx.Get([]byte{rowInstance}); ok {
		n = binary.LittleEndian.Uint64(b) + 1
	}
	c.tx.SetFresh([]byte{rowInstance}, binary.LittleEndian.AppendUint64(nil, n))
	return n
}

// version returns what EXEC compares: see the package comment. The lowest bit says that the key exists.
func (c *call) version(key []byte) uint64 {
	// A key that has expired, and that nobody has removed yet, was there since its last change.
	h, ok := c.load(key)
	if ok && !c.expired(&h) {
		return h.rev<<1 | 1
	}
	gone := h.rev
	if b, ok := c.v.Get(goneKey(key)); ok && len(b) == 8 {
		gone = max(gone, binary.LittleEndian.Uint64(b))
	}
	return gone << 1
}
