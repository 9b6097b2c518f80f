package datatypes

import (
	"slices"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// copyFieldsMax bounds the hash that COPY and a step of work in one apply may go through.
const copyFieldsMax = 4096

// Behaviour: DEL and UNLINK are the same: the fields of a large hash are always removed in the background.
func cmdDel(c *call) error {
	n := int64(0)
	for _, k := range c.args {
		if h, ok := c.open(k); ok {
			c.remove(k, &h, "del")
			n++
		}
	}
	return c.int(n)
}

func cmdExists(c *call) error {
	n := int64(0)
	for _, k := range c.args {
		if _, ok := c.look(k); ok {
			n++
		}
	}
	return c.int(n)
}

func kindName(kind byte) string {
	if kind == kindHash {
		return "hash"
	}
	return "string"
}

func cmdType(c *call) error {
	name := "none"
	if h, ok := c.look(c.args[0]); ok {
		name = kindName(h.kind)
	}
	c.out = []byte("+" + name + "\r\n")
	return nil
}

// expireAt gives a key another expiry; 0 is none.
func (c *call) expireAt(key []byte, h *head, exp int64) {
	c.setTimer(key, h.exp, exp)
	h.exp = exp
	c.save(key, h)
	val := h.val
	if val == nil {
		// A nil value would say that the key is gone.
		val = []byte{}
	}
	if exp == 0 {
		c.tx.Emit("persist", key, key, val)
		return
	}
	c.tx.Emit("expire", key, key, val, expireHeader(exp))
}

// Behaviour: EXPIRE, PEXPIRE, EXPIREAT and PEXPIREAT key time [NX | XX | GT | LT]. A moment in the past deletes the key.
func (c *call) expireGeneric(unit, base int64) error {
	key := c.args[0]
	var nx, xx, gt, lt bool
	for _, a := range c.args[2:] {
		switch {
		case equalFold(a, "nx"):
			nx = true
		case equalFold(a, "xx"):
			xx = true
		case equalFold(a, "gt"):
			gt = true
		case equalFold(a, "lt"):
			lt = true
		default:
			return plain("Unsupported option " + string(a))
		}
	}
	if nx && (xx || gt || lt) {
		return plain("NX and XX, GT or LT options at the same time are not compatible")
	}
	if gt && lt {
		return plain("GT and LT options at the same time are not compatible")
	}
	when, ok := ParseInt(c.args[1])
	if !ok {
		return errNotInteger()
	}
	if unit == 1000 {
		if when > (1<<63-1)/1000 || when < (-1<<63)/1000 {
			return errExpire(c.spec.Name)
		}
		when *= 1000
	}
	if when > 1<<63-1-base {
		return errExpire(c.spec.Name)
	}
	when += base
	h, had := c.open(key)
	switch {
	case !had, nx && h.exp != 0, xx && h.exp == 0, gt && (h.exp == 0 || when <= h.exp), lt && h.exp != 0 && when >= h.exp:
		return c.int(0)
	case when <= c.now():
		c.remove(key, &h, "del")
	default:
		c.expireAt(key, &h, when)
	}
	return c.int(1)
}

func cmdExpire(c *call) error    { return c.expireGeneric(1000, c.now()) }
func cmdPExpire(c *call) error   { return c.expireGeneric(1, c.now()) }
func cmdExpireAt(c *call) error  { return c.expireGeneric(1000, 0) }
func cmdPExpireAt(c *call) error { return c.expireGeneric(1, 0) }

func cmdPersist(c *call) error {
	h, had := c.open(c.args[0])
	if !had || h.exp == 0 {
		return c.int(0)
	}
	c.expireAt(c.args[0], &h, 0)
	return c.int(1)
}

// ttl answers with the expiry: -2 if the key is missing, -1 if it has none, else what f makes of it.
func (c *call) ttl(f func(exp int64) int64) error {
	h, had := c.look(c.args[0])
	switch {
	case !had:
		return c.int(-2)
	case h.exp == 0:
		return c.int(-1)
	}
	return c.int(f(h.exp))
}

// left never goes below zero: the key has expired only when the shard's clock says so.
func (c *call) left(exp int64) int64 { return max(exp-max(c.now(), c.node), 0) }

func seconds(ms int64) int64 {
	if ms > 1<<63-1-500 {
		return ms / 1000
	}
	return (ms + 500) / 1000
}

func cmdTTL(c *call) error { return c.ttl(func(exp int64) int64 { return seconds(c.left(exp)) }) }

func cmdPTTL(c *call) error { return c.ttl(c.left) }

func cmdExpireTime(c *call) error { return c.ttl(seconds) }

func cmdPExpireTime(c *call) error { return c.ttl(func(exp int64) int64 { return exp }) }

// rename moves a head. The fields of a hash stay where they are.
func (c *call) rename(nx bool) (done bool, err error) {
	from, to := c.args[0], c.args[1]
	h, had := c.open(from)
	if !had {
		return false, plain("no such key")
	}
	if string(from) == string(to) {
		return !nx, nil
	}
	old, exists := c.open(to)
	if exists && nx {
		return false, nil
	}
	if exists {
		c.detach(to, &old)
	}
	moved := h
	// remove must not drop the fields that go on under the new name.
	h.kind = kindString
	c.remove(from, &h, "del")
	c.setTimer(to, 0, moved.exp)
	c.save(to, &moved)
	val := moved.val
	if val == nil {
		val = []byte{}
	}
	headers := []shard.Header{{Name: "from", Value: from}}
	if moved.exp != 0 {
		headers = append(headers, expireHeader(moved.exp))
	}
	c.tx.Emit("rename", to, to, val, headers...)
	return true, nil
}

// Behaviour: both keys must be in one shard.
func cmdRename(c *call) error {
	if _, err := c.rename(false); err != nil {
		return err
	}
	return c.ok()
}

func cmdRenameNX(c *call) error {
	done, err := c.rename(true)
	if err != nil {
		return err
	}
	return c.bool(done)
}

// Behaviour: COPY source destination [DB 0] [REPLACE], both in one shard.
// Not supported: another database; a hash of more than copyFieldsMax fields.
func cmdCopy(c *call) error {
	from, to, replace := c.args[0], c.args[1], false
	for i := 2; i < len(c.args); i++ {
		switch {
		case equalFold(c.args[i], "replace"):
			replace = true
		case equalFold(c.args[i], "db") && i+1 < len(c.args):
			i++
			n, err := ParseInt32(c.args[i])
			if err != nil {
				return err
			}
			if n != 0 {
				return plain("DB index is out of range")
			}
		default:
			return errSyntax()
		}
	}
	if string(from) == string(to) {
		return plain("source and destination objects are the same")
	}
	h, had := c.open(from)
	if !had {
		return c.int(0)
	}
	old, exists := c.open(to)
	if exists && !replace {
		return c.int(0)
	}
	if h.kind == kindString {
		c.store("copy", to, h.val, &old, exists, h.exp)
		return c.int(1)
	}
	if h.count > copyFieldsMax {
		return errs.New(errs.TooLarge, "COPY of a hash of %d fields; the limit is %d", h.count, copyFieldsMax)
	}
	if exists {
		c.remove(to, &old, "del")
	}
	var fs []fieldValue
	size := 0
	c.eachField(&h, nil, func(_ uint32, field, val []byte) bool {
		fs = append(fs, fieldValue{slices.Clone(field), slices.Clone(val)})
		size += len(field) + len(val)
		// So many changes are refused at the end, whether the rest is copied or not.
		return size <= shard.ChangesBytesMax+KeyBytesMax
	})
	dst := head{kind: kindHash, instance: c.newInstance(), exp: h.exp}
	for _, f := range fs {
		c.setField("hset", to, &dst, f.field, f.val)
	}
	c.setTimer(to, 0, dst.exp)
	c.save(to, &dst)
	return c.int(1)
}
