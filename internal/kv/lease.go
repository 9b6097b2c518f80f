package kv

import (
	"bytes"
	"encoding/binary"
	"math"
	"time"

	"github.com/quorate/quorate/internal/codec"
)

// EncodeGrant returns the command that makes a lease with a TTL in seconds. The answer is DecodeTTL's. id must not be 0: whoever
// asks draws one. It fails with ErrLeaseExists and ErrLeaseTTLTooLarge.
func EncodeGrant(id, ttl int64) []byte { return appendInt(appendInt(head(reqGrant), id), ttl) }

// EncodeRevoke returns the command that ends a lease and deletes the keys that hang on it, in one revision. The answer is
// DecodeRevision's. It fails with ErrLeaseNotFound.
func EncodeRevoke(id int64) []byte { return appendInt(head(reqRevoke), id) }

// EncodeKeepAlive returns the command that gives a lease its whole TTL again. The answer is DecodeTTL's; it says 0 if there is
// no such lease.
func EncodeKeepAlive(id int64) []byte { return appendInt(head(reqKeepAlive), id) }

// TTL is what a lease has.
type TTL struct {
	// Revision is the key space's.
	Revision int64
	// TTL is how long the lease has yet to live, in seconds; after a grant or a renewal the whole. Granted is what was asked
	// for, raised to LeaseTTLMin. If there is no such lease, TTL is 0 after a renewal and -1 for a query.
	TTL, Granted int64
	// Keys are those that hang on it, if asked for.
	Keys [][]byte
}

// DecodeTTL reads an answer.
func DecodeTTL(b []byte) (TTL, error) {
	d := decoder{codec.Read(b)}
	t := TTL{Revision: d.int(), TTL: d.int(), Granted: d.int()}
	for n := d.Count(1); n > 0 && !d.Bad(); n-- {
		t.Keys = append(t.Keys, d.Bytes())
	}
	return t, d.end()
}

func (c *call) answerTTL(ttl, granted int64, keys [][]byte) []byte {
	b := appendInt(appendInt(appendInt(nil, c.st.rev), ttl), granted)
	b = binary.AppendUvarint(b, uint64(len(keys)))
	for _, k := range keys {
		b = codec.AppendBytes(b, k)
	}
	return b
}

func (c *call) lease(id int64) (l lease, ok bool) {
	b, ok := c.v.Get(leaseKey(id))
	if ok && !l.decode(b) {
		c.damaged("lease")
	}
	return l, ok
}

func (c *call) grant(d *decoder) []byte {
	id, ttl := d.int(), d.int()
	c.failIf(d.end())
	switch {
	case c.err != nil:
		return nil
	case id == 0:
		c.fail(errMalformed())
		return nil
	case ttl > LeaseTTLMax:
		c.fail(ErrLeaseTTLTooLarge)
		return nil
	}
	if _, ok := c.lease(id); ok {
		c.fail(ErrLeaseExists)
		return nil
	}
	l := lease{ttl: max(ttl, LeaseTTLMin), granted: max(ttl, LeaseTTLMin)}
	c.renew(id, &l)
	return c.answerTTL(l.ttl, l.granted, nil)
}

// renew gives a lease its whole TTL from now.
func (c *call) renew(id int64, l *lease) {
	l.end, l.term = c.tx.Now().UnixMilli()+l.ttl*1000, int64(c.tx.Term())
	c.keep(id, l)
}

func (c *call) keep(id int64, l *lease) {
	key := leaseKey(id)
	c.tx.SetFresh(key, l.encode())
	c.tx.SetTimer(key, time.UnixMilli(l.end))
}

func (c *call) keepAlive(d *decoder) []byte {
	id := d.int()
	if c.failIf(d.end()); c.err != nil {
		return nil
	}
	l, ok := c.lease(id)
	if !ok || c.err != nil {
		return c.answerTTL(0, 0, nil)
	}
	c.renew(id, &l)
	return c.answerTTL(l.ttl, l.granted, nil)
}

func (c *call) revoke(d *decoder) []byte {
	id := d.int()
	if c.failIf(d.end()); c.err != nil {
		return nil
	}
	if _, ok := c.lease(id); !ok {
		c.fail(ErrLeaseNotFound)
		return nil
	}
	c.endLease(id)
	c.tx.SetTimer(leaseKey(id), time.Time{})
	return appendInt(nil, c.next())
}

// endLease removes a lease and its keys, however many: one whose time is over would live on otherwise.
func (c *call) endLease(id int64) {
	for _, key := range c.attached(id, math.MaxInt) {
		if kv, ok := c.head(key); ok && c.err == nil {
			c.remove(&kv)
		}
	}
	c.tx.Delete(leaseKey(id))
}

// attached returns the keys that hang on a lease, or fails with ErrAnswerTooLarge if they are longer than that together.
func (c *call) attached(id int64, bytesMax int) (keys [][]byte) {
	from, size := attachedKey(id, nil), 0
	for row := range c.v.Scan(from, after(from)) {
		if size += len(row) + 40; size > bytesMax {
			c.fail(ErrAnswerTooLarge)
			return nil
		}
		keys = append(keys, bytes.Clone(row[len(from):]))
	}
	return keys
}

// fireLease ends a lease whose time is over. One that was last renewed under an earlier leader has its whole TTL from when the
// present one was first seen: its clients may have had nobody to ask.
func (c *call) fireLease(key []byte) {
	if len(key) != 9 {
		return
	}
	id := int64(binary.BigEndian.Uint64(key[1:]))
	l, ok := c.lease(id)
	if !ok || c.err != nil {
		return
	}
	if c.loading() {
		c.renew(id, &l)
		return
	}
	if term := int64(c.tx.Term()); l.term != term {
		if c.noteTerm() {
			c.save()
		}
		if end := c.st.since + l.ttl*1000; end > c.tx.Now().UnixMilli() {
			l.end, l.term = end, term
			c.keep(id, &l)
			return
		}
	}
	c.endLease(id)
}

// EncodeTimeToLive returns the query for what a lease has yet to live, with the keys that hang on it if withKeys. nodeMs is the
// asking node's clock in Unix ms: a TTL goes down while the shard's own clock stands still. The answer is DecodeTTL's.
func EncodeTimeToLive(id, nodeMs int64, withKeys bool) []byte {
	return codec.AppendBool(appendInt(appendInt(head(reqTimeToLive), id), nodeMs), withKeys)
}

func (c *call) timeToLive(d *decoder) []byte {
	id, nodeMs, withKeys := d.int(), d.int(), d.Bool()
	if c.failIf(d.end()); c.err != nil {
		return nil
	}
	l, ok := c.lease(id)
	if !ok || c.err != nil {
		return c.answerTTL(-1, 0, nil)
	}
	left := (l.end - max(nodeMs, c.v.Now().UnixMilli())) / 1000
	var keys [][]byte
	if withKeys {
		keys = c.attached(id, AnswerBytesMax)
	}
	return c.answerTTL(max(left, 0), l.granted, keys)
}

// EncodeLeases returns the query for all leases, in the order of their ids. The answer is DecodeLeases's.
func EncodeLeases() []byte { return head(reqLeases) }

// LeaseTTL is a lease and the TTL that it was granted, in seconds.
type LeaseTTL struct{ ID, TTL int64 }

// DecodeLeases reads the answer: the key space's revision, and the leases.
func DecodeLeases(b []byte) (rev int64, leases []LeaseTTL, err error) {
	d := decoder{codec.Read(b)}
	rev = d.int()
	for n := d.Count(2); n > 0 && !d.Bad(); n-- {
		leases = append(leases, LeaseTTL{d.int(), d.int()})
	}
	return rev, leases, d.end()
}

func (c *call) leases(d *decoder) []byte {
	c.failIf(d.end())
	var all []byte
	n := uint64(0)
	for row, b := range c.v.Scan([]byte{rowLease}, []byte{rowLease + 1}) {
		var l lease
		if len(row) != 9 || !l.decode(b) {
			c.damaged("lease")
			return nil
		}
		all = appendInt(appendInt(all, int64(binary.BigEndian.Uint64(row[1:]))), l.granted)
		n++
	}
	return append(binary.AppendUvarint(appendInt(nil, c.st.rev), n), all...)
}
