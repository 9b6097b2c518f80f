package datatypes

import (
	"encoding/binary"
	"slices"
	"strconv"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// scanMax bounds the rows that one SCAN or HSCAN looks at: COUNT is a hint.
const scanMax = 10_000

// eachHead calls f with the keys that exist, in the order of their cursors from one on, until it returns false.
func (c *call) eachHead(cursor uint64, f func(cursor uint64, key []byte, h *head) bool) {
	var h head
	for k, v := range c.v.Scan(cursorKey(cursor), []byte{rowHead + 1}) {
		if !h.decode(v) {
			c.damaged = true
			return
		}
		if c.expired(&h) {
			continue
		}
		if !f(headCursor(k), k[headKeySize:], &h) {
			return
		}
	}
}

// scanOptions are the options of SCAN and HSCAN.
type scanOptions struct {
	cursor  uint64
	pattern []byte
	count   int
	kind    []byte
}

func (c *call) parseScan(cursor []byte, opts [][]byte, typed bool) (o scanOptions, err error) {
	o.count = 10
	if o.cursor, err = strconv.ParseUint(string(cursor), 10, 64); err != nil {
		return o, plain("invalid cursor")
	}
	for ; len(opts) > 0; opts = opts[2:] {
		if len(opts) < 2 {
			return o, errSyntax()
		}
		switch {
		case equalFold(opts[0], "count"):
			n, ok := ParseInt(opts[1])
			if !ok {
				return o, errNotInteger()
			}
			if n < 1 {
				return o, errSyntax()
			}
			o.count = int(min(n, scanMax))
		case equalFold(opts[0], "match"):
			if err := checkPattern(opts[1]); err != nil {
				return o, err
			}
			o.pattern = opts[1]
		case typed && equalFold(opts[0], "type"):
			o.kind = opts[1]
		default:
			return o, errSyntax()
		}
	}
	return o, nil
}

func checkPattern(p []byte) error {
	if len(p) > globBytesMax {
		return errs.New(errs.TooLarge, "pattern of %d bytes is longer than the limit of %d", len(p), globBytesMax)
	}
	return nil
}

func matches(pattern, s []byte) bool { return pattern == nil || Match(pattern, s) }

// Behaviour: SCAN cursor [MATCH pattern] [COUNT n] [TYPE type]. The cursor is a place in the order of slot and hash: it
// is good on every node, at any time, and every key that exists during the whole scan is returned exactly once.
func cmdScan(c *call) error {
	o, err := c.parseScan(c.args[0], c.args[1:], true)
	if err != nil {
		return err
	}
	var found [][]byte
	seen, last, next, size := 0, uint64(0), uint64(0), 0
	if o.cursor < cursorMax {
		c.eachHead(o.cursor, func(cursor uint64, key []byte, h *head) bool {
			// Keys with the same cursor go together, so that the next call starts behind all of them.
			if (seen >= o.count || size > BatchAnswerBytes) && cursor != last {
				next = cursor
				return false
			}
			seen, last = seen+1, cursor
			if matches(o.pattern, key) && (o.kind == nil || equalFold(o.kind, kindName(h.kind))) {
				found = append(found, slices.Clone(key))
				size += len(key)
			}
			err = c.grow(size)
			return err == nil && size <= AnswerBytesMax
		})
	}
	c.scanReply(next, found)
	return err
}

func (c *call) scanReply(next uint64, found [][]byte) {
	out := AppendBulk(AppendArray(nil, 2), strconv.AppendUint(nil, next, 10))
	out = AppendArray(out, len(found))
	for _, f := range found {
		out = AppendBulk(out, f)
	}
	c.out = out
}

// Behaviour: HSCAN key cursor [MATCH pattern] [COUNT n].
func cmdHScan(c *call) error {
	o, err := c.parseScan(c.args[1], nil, false)
	if err != nil {
		return err
	}
	h, had, err := c.lookKind(c.args[0], kindHash)
	if err != nil {
		return err
	}
	if !had {
		// Redis does not look at the options of a missing key.
		c.scanReply(0, nil)
		return nil
	}
	if o, err = c.parseScan(c.args[1], c.args[2:], false); err != nil {
		return err
	}
	var found [][]byte
	seen, last, next, size := 0, uint32(0), uint64(0), 0
	if o.cursor <= 1<<32-1 {
		from, _ := fieldRange(h.instance)
		from = binary.BigEndian.AppendUint32(from, uint32(o.cursor))
		c.eachField(&h, from, func(hash uint32, field, val []byte) bool {
			if (seen >= o.count || size > BatchAnswerBytes) && hash != last {
				next = uint64(hash)
				return false
			}
			seen, last = seen+1, hash
			if matches(o.pattern, field) {
				found = append(found, slices.Clone(field), slices.Clone(val))
				size += len(field) + len(val)
			}
			err = c.grow(size)
			return err == nil && size <= AnswerBytesMax
		})
	}
	c.scanReply(next, found)
	return err
}

// Behaviour: KEYS looks at every key of the shard. It holds up nobody else, but the answer is bounded.
func cmdKeys(c *call) error {
	err := checkPattern(c.args[0])
	if err != nil {
		return err
	}
	var body []byte
	n := 0
	c.eachHead(0, func(_ uint64, key []byte, _ *head) bool {
		if Match(c.args[0], key) {
			body = AppendBulk(body, key)
			n++
		}
		err = c.grow(len(body))
		return err == nil && len(body) <= AnswerBytesMax
	})
	if err != nil {
		return err
	}
	if len(body) > AnswerBytesMax {
		return errAnswerTooLarge()
	}
	c.out = append(AppendArray(make([]byte, 0, len(body)+24), n), body...)
	return nil
}

// Behaviour: a random place in the order of slots, and the first key from there on.
func cmdRandomKey(c *call) error {
	c.out = replyNull
	take := func(_ uint64, key []byte, _ *head) bool {
		c.out = bulk(key)
		return false
	}
	c.eachHead(c.random()%cursorMax, take)
	if len(c.out) == len(replyNull) {
		c.eachHead(0, take)
	}
	return nil
}

// Behaviour: DBSIZE counts the keys of the shard by walking over them; a counter would cost every write of a new key.
func cmdDBSize(c *call) error {
	n := int64(0)
	c.eachHead(0, func(uint64, []byte, *head) bool { n++; return true })
	return c.int(n)
}

// keyCount answers INFO keyspace.
func (c *call) keyCount(d decoder) ([]byte, error) {
	if !d.Done() {
		return nil, errMalformed()
	}
	var keys, expires uint64
	c.eachHead(0, func(_ uint64, _ []byte, h *head) bool {
		keys++
		if h.exp != 0 {
			expires++
		}
		return true
	})
	if c.damaged {
		return nil, errDamaged()
	}
	return encodePair(keys, expires), nil
}

// slotQuery answers CLUSTER COUNTKEYSINSLOT and GETKEYSINSLOT.
func (c *call) slotQuery(op Op, d decoder) (_ []byte, err error) {
	slot := uint64(d.Uint16())
	limit := uint32(1<<32 - 1)
	if op == opSlotKeys {
		limit = min(d.Uint32(), scanMax)
	}
	if !d.Done() || slot >= shard.SlotCount {
		return nil, errMalformed()
	}
	var body []byte
	n := 0
	c.eachHead(slot<<32, func(cursor uint64, key []byte, _ *head) bool {
		if cursor>>32 != slot || uint32(n) >= limit {
			return false
		}
		n++
		if op == opSlotKeys {
			body = AppendBulk(body, key)
		}
		err = c.grow(len(body))
		return err == nil && len(body) <= AnswerBytesMax
	})
	if c.damaged {
		return nil, errDamaged()
	}
	if err != nil {
		return nil, err
	}
	if op == opSlotCount {
		return intReply(int64(n)), nil
	}
	return append(AppendArray(nil, n), body...), nil
}

// flush removes the keys from a cursor on whose last change is no later than bound, at most FlushKeysMax of them, and
// returns where to go on, 0 at the end.
func (c *call) flush(cursor, bound uint64) (next uint64) {
	type entry struct {
		key []byte
		h   head
	}
	var found []entry
	last, seen := uint64(0), 0
	var h head
	for k, v := range c.v.Scan(cursorKey(cursor), []byte{rowHead + 1}) {
		if seen >= FlushKeysMax && headCursor(k) != last {
			next = headCursor(k)
			break
		}
		last = headCursor(k)
		seen++
		if !h.decode(v) {
			c.damaged = true
			break
		}
		if h.rev <= bound {
			h.val = nil
			found = append(found, entry{slices.Clone(k[headKeySize:]), h})
		}
	}
	for _, e := range found {
		c.remove(e.key, &e.h, "del")
	}
	return next
}

// flushStep is one step of a FLUSHALL. Keys that are written between two steps stay.
func (c *call) flushStep(d decoder) ([]byte, error) {
	bound, cursor := d.Uint64(), d.Uint64()
	if !d.Done() || cursor >= cursorMax {
		return nil, errMalformed()
	}
	if bound == 0 {
		bound = uint64(c.tx.Revision())
	}
	next := c.flush(cursor, bound)
	if c.damaged {
		return nil, errDamaged()
	}
	return encodePair(bound, next), nil
}

// Behaviour: FLUSHALL and FLUSHDB [ASYNC | SYNC] within a transaction, for up to FlushKeysMax keys. Outside of one the
// protocol server removes any number in steps.
func cmdFlush(c *call) error {
	if len(c.args) > 1 || len(c.args) == 1 && !equalFold(c.args[0], "async") && !equalFold(c.args[0], "sync") {
		return errSyntax()
	}
	if c.flush(0, 1<<64-1) != 0 {
		return errs.New(errs.TooLarge, "more than %d keys to remove in one transaction; send %s outside of MULTI", FlushKeysMax, c.spec.Name)
	}
	return c.ok()
}
