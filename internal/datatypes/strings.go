package datatypes

import (
	"encoding/binary"
	"strconv"

	"github.com/quorate/quorate/internal/shard"
)

// setPlain is SET without options, the most frequent command of all: one row read, one written, one change.
func (c *call) setPlain(key, val []byte) ([]byte, error) {
	if len(key) > KeyBytesMax {
		return nil, errKeyTooLong(len(key))
	}
	if len(val) > ValueBytesMax {
		return nil, errStringTooLong()
	}
	c.key = appendHeadKey(c.key[:0], key)
	if old, ok := c.tx.Get(c.key); ok && (len(old) == 0 || old[0] != kindString) {
		var h head
		if !h.decode(old) {
			c.damaged = true
			return nil, errDamaged()
		}
		c.detach(key, &h)
		c.key = appendHeadKey(c.key[:0], key)
	}
	row := binary.LittleEndian.AppendUint64(append(make([]byte, 0, 9+len(val)), kindString), uint64(c.tx.Revision()))
	c.tx.SetFresh(c.key, append(row, val...))
	c.tx.Emit("set", key, key, val)
	return replyOK, nil
}

// store makes key the string val. old is what the key was, if had; exp is the new expiry, 0 for none.
func (c *call) store(op string, key, val []byte, old *head, had bool, exp int64) {
	if had {
		if old.kind == kindHash {
			c.dropInstance(old)
		}
	} else {
		old = &head{}
	}
	c.setTimer(key, old.exp, exp)
	c.save(key, &head{kind: kindString, exp: exp, val: val})
	if exp != 0 {
		c.tx.Emit(op, key, key, val, expireHeader(exp))
		return
	}
	c.tx.Emit(op, key, key, val)
}

func expireHeader(exp int64) shard.Header {
	return shard.Header{Name: "expire_at_ms", Value: strconv.AppendInt(nil, exp, 10)}
}

// setOptions are the options of SET and GETEX.
type setOptions struct {
	nx, xx, get, keepTTL, persist bool
	// arg is the expiry as the client gave it, in units of unit milliseconds; at says that it is a moment, not a length.
	arg        []byte
	unit       int64
	hasExp, at bool
}

// parseSet reads the options after the value. getex says which of the two commands they belong to.
func (c *call) parseSet(opts [][]byte, getex bool) (o setOptions, err error) {
	for i := 0; i < len(opts); i++ {
		a := opts[i]
		unit, at, isExp := expiryOption(a)
		switch {
		case !getex && equalFold(a, "nx") && !o.xx:
			o.nx = true
		case !getex && equalFold(a, "xx") && !o.nx:
			o.xx = true
		case !getex && equalFold(a, "get"):
			o.get = true
		case !getex && equalFold(a, "keepttl") && !o.persist && !o.hasExp:
			o.keepTTL = true
		case getex && equalFold(a, "persist") && !o.hasExp && !o.keepTTL:
			o.persist = true
		case isExp && i+1 < len(opts) && !o.keepTTL && !o.persist && (!o.hasExp || o.unit == unit && o.at == at):
			// The same option may come again; the last one counts.
			i++
			o.hasExp, o.unit, o.at, o.arg = true, unit, at, opts[i]
		default:
			return o, errSyntax()
		}
	}
	return o, nil
}

// expiryOption reads the name of an option with an expiry.
func expiryOption(name []byte) (unit int64, at, ok bool) {
	switch {
	case equalFold(name, "ex"):
		return 1000, false, true
	case equalFold(name, "px"):
		return 1, false, true
	case equalFold(name, "exat"):
		return 1000, true, true
	case equalFold(name, "pxat"):
		return 1, true, true
	}
	return 0, false, false
}

// moment returns the expiry asked for, 0 if none.
func (c *call) moment(o *setOptions) (int64, error) {
	if !o.hasExp {
		return 0, nil
	}
	return c.expiry(o.arg, o.unit, o.at)
}

// expiry turns the argument of SET EX and its like into a moment.
func (c *call) expiry(arg []byte, unit int64, at bool) (int64, error) {
	n, ok := ParseInt(arg)
	if !ok {
		return 0, errNotInteger()
	}
	if n <= 0 || unit == 1000 && n > (1<<63-1)/1000 {
		return 0, errExpire(c.spec.Name)
	}
	n *= unit
	if !at {
		if n > 1<<63-1-c.now() {
			return 0, errExpire(c.spec.Name)
		}
		n += c.now()
	}
	return n, nil
}

// Behaviour: SET key value [NX | XX] [GET] [EX s | PX ms | EXAT s | PXAT ms | KEEPTTL].
// Versions: as in Redis 7.0: NX and GET may be combined.
func cmdSet(c *call) error {
	key, val := c.args[0], c.args[1]
	o, err := c.parseSet(c.args[2:], false)
	if err != nil {
		return err
	}
	exp, err := c.moment(&o)
	if err != nil {
		return err
	}
	if len(val) > ValueBytesMax {
		return errStringTooLong()
	}
	old, had := c.open(key)
	if o.get && had && old.kind != kindString {
		return errWrongType()
	}
	c.out = replyOK
	if o.get {
		c.out = replyNull
		if had {
			c.out = bulk(old.val)
		}
	}
	if o.nx && had || o.xx && !had {
		if !o.get {
			c.out = replyNull
		}
		return nil
	}
	if o.keepTTL {
		exp = old.exp
	}
	c.storeOrExpire(key, val, &old, had, exp)
	return nil
}

// storeOrExpire is store for an expiry that may lie in the past: then the key is gone.
func (c *call) storeOrExpire(key, val []byte, old *head, had bool, exp int64) {
	if exp != 0 && exp <= c.now() {
		if had {
			c.remove(key, old, "del")
		}
		return
	}
	c.store("set", key, val, old, had, exp)
}

func cmdGet(c *call) error {
	h, ok, err := c.lookKind(c.args[0], kindString)
	if err != nil {
		return err
	}
	if !ok {
		return c.null()
	}
	return c.bulk(h.val)
}

func cmdGetSet(c *call) error {
	key, val := c.args[0], c.args[1]
	h, ok, err := c.openKind(key, kindString)
	if err != nil {
		return err
	}
	c.store("set", key, val, &h, ok, 0)
	if !ok {
		return c.null()
	}
	return c.bulk(h.val)
}

func cmdGetDel(c *call) error {
	key := c.args[0]
	h, ok, err := c.openKind(key, kindString)
	if err != nil {
		return err
	}
	if !ok {
		return c.null()
	}
	c.remove(key, &h, "del")
	return c.bulk(h.val)
}

// Behaviour: GETEX key [EX s | PX ms | EXAT s | PXAT ms | PERSIST].
func cmdGetEx(c *call) error {
	key := c.args[0]
	o, err := c.parseSet(c.args[1:], true)
	if err != nil {
		return err
	}
	h, ok, err := c.openKind(key, kindString)
	if err != nil {
		return err
	}
	if !ok {
		return c.null()
	}
	// Redis looks at the expiry only of a key that exists.
	exp, err := c.moment(&o)
	if err != nil {
		return err
	}
	switch {
	case o.hasExp && exp <= c.now():
		c.remove(key, &h, "del")
	case o.hasExp:
		c.expireAt(key, &h, exp)
	case o.persist && h.exp != 0:
		c.expireAt(key, &h, 0)
	}
	return c.bulk(h.val)
}

func cmdSetNX(c *call) error {
	h, had := c.open(c.args[0])
	if had {
		return c.int(0)
	}
	c.store("set", c.args[0], c.args[1], &h, false, 0)
	return c.int(1)
}

func (c *call) setExpiring(unit int64) error {
	exp, err := c.expiry(c.args[1], unit, false)
	if err != nil {
		return err
	}
	h, had := c.open(c.args[0])
	c.store("set", c.args[0], c.args[2], &h, had, exp)
	return c.ok()
}

func cmdSetEx(c *call) error  { return c.setExpiring(1000) }
func cmdPSetEx(c *call) error { return c.setExpiring(1) }

func cmdMSet(c *call) error {
	if len(c.args)%2 != 0 {
		return errArity(c.spec.Name)
	}
	for i := 0; i < len(c.args); i += 2 {
		if _, err := c.setPlain(c.args[i], c.args[i+1]); err != nil {
			return err
		}
	}
	return c.ok()
}

func cmdMSetNX(c *call) error {
	if len(c.args)%2 != 0 {
		return errArity(c.spec.Name)
	}
	for i := 0; i < len(c.args); i += 2 {
		if _, had := c.open(c.args[i]); had {
			return c.int(0)
		}
	}
	if err := cmdMSet(c); err != nil {
		return err
	}
	return c.int(1)
}

func cmdMGet(c *call) error {
	out := AppendArray(nil, len(c.args))
	for _, k := range c.args {
		h, ok := c.look(k)
		if !ok || h.kind != kindString {
			out = append(out, replyNull...)
			continue
		}
		if err := c.grow(len(out) + len(h.val)); err != nil {
			return err
		}
		if out = AppendBulk(out, h.val); len(out) > AnswerBytesMax {
			return errAnswerTooLarge()
		}
	}
	c.out = out
	return nil
}

func cmdAppend(c *call) error {
	key := c.args[0]
	h, had, err := c.openKind(key, kindString)
	if err != nil {
		return err
	}
	if len(h.val)+len(c.args[1]) > ValueBytesMax {
		return errStringTooLong()
	}
	val := make([]byte, 0, len(h.val)+len(c.args[1]))
	val = append(append(val, h.val...), c.args[1]...)
	c.store("append", key, val, &h, had, h.exp)
	return c.int(int64(len(val)))
}

func cmdStrLen(c *call) error {
	h, _, err := c.lookKind(c.args[0], kindString)
	if err != nil {
		return err
	}
	return c.int(int64(len(h.val)))
}

func cmdGetRange(c *call) error {
	start, ok := ParseInt(c.args[1])
	if !ok {
		return errNotInteger()
	}
	end, ok := ParseInt(c.args[2])
	if !ok {
		return errNotInteger()
	}
	h, _, err := c.lookKind(c.args[0], kindString)
	if err != nil {
		return err
	}
	n := int64(len(h.val))
	if start < 0 && end < 0 && start > end {
		return c.bulk(nil)
	}
	if start < 0 {
		start = max(start+n, 0)
	}
	if end < 0 {
		end = max(end+n, 0)
	}
	end = min(end, n-1)
	if start > end || n == 0 {
		return c.bulk(nil)
	}
	return c.bulk(h.val[start : end+1])
}

func cmdSetRange(c *call) error {
	key, part := c.args[0], c.args[2]
	off, ok := ParseInt(c.args[1])
	if !ok {
		return errNotInteger()
	}
	if off < 0 {
		return plain("offset is out of range")
	}
	h, had, err := c.openKind(key, kindString)
	if err != nil {
		return err
	}
	if len(part) == 0 {
		return c.int(int64(len(h.val)))
	}
	if off > ValueBytesMax || off+int64(len(part)) > ValueBytesMax {
		return errStringTooLong()
	}
	val := make([]byte, max(len(h.val), int(off)+len(part)))
	copy(val, h.val)
	copy(val[off:], part)
	c.store("setrange", key, val, &h, had, h.exp)
	return c.int(int64(len(val)))
}

// incr adds to a string that is an integer.
func (c *call) incr(delta int64) error {
	key := c.args[0]
	h, had, err := c.openKind(key, kindString)
	if err != nil {
		return err
	}
	n := int64(0)
	if had {
		var ok bool
		if n, ok = ParseInt(h.val); !ok {
			return errNotInteger()
		}
	}
	sum, ok := addInt(n, delta)
	if !ok {
		return plain("increment or decrement would overflow")
	}
	c.store(c.spec.Name, key, strconv.AppendInt(nil, sum, 10), &h, had, h.exp)
	return c.int(sum)
}

func addInt(a, b int64) (int64, bool) {
	sum := a + b
	return sum, (sum > a) == (b > 0)
}

func cmdIncr(c *call) error { return c.incr(1) }
func cmdDecr(c *call) error { return c.incr(-1) }

func cmdIncrBy(c *call) error {
	n, ok := ParseInt(c.args[1])
	if !ok {
		return errNotInteger()
	}
	return c.incr(n)
}

func cmdDecrBy(c *call) error {
	n, ok := ParseInt(c.args[1])
	if !ok {
		return errNotInteger()
	}
	if n == -1<<63 {
		return plain("decrement would overflow")
	}
	return c.incr(-n)
}

// Behaviour: INCRBYFLOAT computes with the precision of Redis on amd64, and prints the same digits.
// Not supported: hexadecimal numbers, which Redis' C library happens to read.
func cmdIncrByFloat(c *call) error {
	key := c.args[0]
	h, had, err := c.openKind(key, kindString)
	if err != nil {
		return err
	}
	cur := []byte("0")
	if had {
		cur = h.val
	}
	val, err := floatSum(cur, c.args[1], errNotFloat())
	if err != nil {
		return err
	}
	c.store("incrbyfloat", key, val, &h, had, h.exp)
	return c.bulk(val)
}

// floatSum adds two numbers; notFloat is the error if the first is none.
func floatSum(cur, delta []byte, notFloat error) ([]byte, error) {
	a, infA, ok := parseFloat(cur)
	if !ok {
		return nil, notFloat
	}
	b, infB, ok := parseFloat(delta)
	if !ok {
		return nil, errNotFloat()
	}
	if infA || infB {
		return nil, plain("increment would produce NaN or Infinity")
	}
	val, ok := addFloat(a, b)
	if !ok {
		return nil, plain("increment would produce NaN or Infinity")
	}
	return val, nil
}
