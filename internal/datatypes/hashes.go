package datatypes

import (
	"slices"
	"strconv"

	"github.com/quorate/quorate/internal/shard"
)

// openHash returns a hash for writing, as a new one if the key is missing.
func (c *call) openHash(key []byte) (head, error) {
	h, had, err := c.openKind(key, kindHash)
	if err != nil {
		return h, err
	}
	if !had {
		h = head{kind: kindHash, instance: c.newInstance()}
	}
	return h, nil
}

func (c *call) field(h *head, field []byte) ([]byte, bool) {
	if h.count == 0 {
		return nil, false
	}
	c.key = appendFieldKey(c.key[:0], h.instance, field)
	return c.v.Get(c.key)
}

// setField stores a field and counts it in h, which the caller saves.
func (c *call) setField(op string, key []byte, h *head, field, val []byte) (fresh bool) {
	_, had := c.field(h, field)
	c.key = appendFieldKey(c.key[:0], h.instance, field)
	c.tx.Set(c.key, val)
	if !had {
		h.count++
	}
	c.tx.Emit(op, key, key, val, shard.Header{Name: "field", Value: field})
	return !had
}

func (c *call) hset() (fresh int64, err error) {
	if len(c.args)%2 != 1 {
		return 0, errArity(c.spec.Name)
	}
	key := c.args[0]
	for i := 1; i < len(c.args); i += 2 {
		if len(c.args[i]) > KeyBytesMax {
			return 0, errKeyTooLong(len(c.args[i]))
		}
	}
	h, err := c.openHash(key)
	if err != nil {
		return 0, err
	}
	for i := 1; i < len(c.args); i += 2 {
		if c.setField("hset", key, &h, c.args[i], c.args[i+1]) {
			fresh++
		}
	}
	c.save(key, &h)
	return fresh, nil
}

func cmdHSet(c *call) error {
	fresh, err := c.hset()
	if err != nil {
		return err
	}
	return c.int(fresh)
}

func cmdHMSet(c *call) error {
	if _, err := c.hset(); err != nil {
		return err
	}
	return c.ok()
}

func cmdHSetNX(c *call) error {
	if h, had, err := c.openKind(c.args[0], kindHash); err != nil {
		return err
	} else if had {
		if _, ok := c.field(&h, c.args[1]); ok {
			return c.int(0)
		}
	}
	return cmdHSet(c)
}

func cmdHGet(c *call) error {
	h, _, err := c.lookKind(c.args[0], kindHash)
	if err != nil {
		return err
	}
	v, ok := c.field(&h, c.args[1])
	if !ok {
		return c.null()
	}
	return c.bulk(v)
}

func cmdHMGet(c *call) error {
	h, _, err := c.lookKind(c.args[0], kindHash)
	if err != nil {
		return err
	}
	out := AppendArray(nil, len(c.args)-1)
	for _, f := range c.args[1:] {
		v, ok := c.field(&h, f)
		if !ok {
			out = append(out, replyNull...)
			continue
		}
		if err := c.grow(len(out) + len(v)); err != nil {
			return err
		}
		if out = AppendBulk(out, v); len(out) > AnswerBytesMax {
			return errAnswerTooLarge()
		}
	}
	c.out = out
	return nil
}

// eachField calls f with the fields of a hash in the order of their rows, until it returns false.
func (c *call) eachField(h *head, from []byte, f func(hash uint32, field, val []byte) bool) {
	lo, to := fieldRange(h.instance)
	if from != nil {
		lo = from
	}
	if h.count == 0 {
		return
	}
	for k, v := range c.v.Scan(lo, to) {
		hash := uint32(k[9])<<24 | uint32(k[10])<<16 | uint32(k[11])<<8 | uint32(k[12])
		if !f(hash, k[fieldKeySize:], v) {
			return
		}
	}
}

// all answers with the fields, the values or both of a hash.
func (c *call) all(kind byte, fields, vals bool) error {
	h, _, err := c.lookKind(c.args[0], kindHash)
	if err != nil {
		return err
	}
	out := appendLen(nil, kind, int64(h.count))
	c.eachField(&h, nil, func(_ uint32, field, val []byte) bool {
		if fields {
			out = AppendBulk(out, field)
		}
		if vals {
			out = AppendBulk(out, val)
		}
		err = c.grow(len(out))
		return err == nil && len(out) <= AnswerBytesMax
	})
	c.out = out
	return err
}

// Behaviour: a map in RESP3, a flat array in RESP2. The order of fields is fixed, but not that of insertion.
func cmdHGetAll(c *call) error { return c.all('%', true, true) }
func cmdHKeys(c *call) error   { return c.all('*', true, false) }
func cmdHVals(c *call) error   { return c.all('*', false, true) }

func cmdHDel(c *call) error {
	key := c.args[0]
	h, had, err := c.openKind(key, kindHash)
	if err != nil {
		return err
	}
	n := int64(0)
	for _, f := range c.args[1:] {
		if !had {
			break
		}
		if _, ok := c.field(&h, f); !ok {
			continue
		}
		c.key = appendFieldKey(c.key[:0], h.instance, f)
		c.tx.Delete(c.key)
		c.tx.Emit("hdel", key, key, nil, shard.Header{Name: "field", Value: f})
		h.count--
		n++
	}
	switch {
	case n > 0 && h.count == 0:
		c.remove(key, &h, "del")
	case n > 0:
		c.save(key, &h)
	}
	return c.int(n)
}

func cmdHLen(c *call) error {
	h, _, err := c.lookKind(c.args[0], kindHash)
	if err != nil {
		return err
	}
	return c.int(int64(h.count))
}

func cmdHExists(c *call) error {
	h, _, err := c.lookKind(c.args[0], kindHash)
	if err != nil {
		return err
	}
	_, ok := c.field(&h, c.args[1])
	return c.bool(ok)
}

func cmdHStrLen(c *call) error {
	h, _, err := c.lookKind(c.args[0], kindHash)
	if err != nil {
		return err
	}
	v, _ := c.field(&h, c.args[1])
	return c.int(int64(len(v)))
}

func cmdHIncrBy(c *call) error {
	key, field := c.args[0], c.args[1]
	delta, ok := ParseInt(c.args[2])
	if !ok {
		return errNotInteger()
	}
	h, _, err := c.openKind(key, kindHash)
	if err != nil {
		return err
	}
	n := int64(0)
	if v, ok := c.field(&h, field); ok {
		if n, ok = ParseInt(v); !ok {
			return plain("hash value is not an integer")
		}
	}
	sum, ok := addInt(n, delta)
	if !ok {
		return plain("increment or decrement would overflow")
	}
	if err := c.setOne("hincrby", strconv.AppendInt(nil, sum, 10)); err != nil {
		return err
	}
	return c.int(sum)
}

func cmdHIncrByFloat(c *call) error {
	// Redis looks at the increment before it looks at the key.
	if _, inf, ok := parseFloat(c.args[2]); !ok {
		return errNotFloat()
	} else if inf {
		return plain("value is NaN or Infinity")
	}
	h, _, err := c.openKind(c.args[0], kindHash)
	if err != nil {
		return err
	}
	cur, ok := c.field(&h, c.args[1])
	if !ok {
		cur = []byte("0")
	}
	val, err := floatSum(cur, c.args[2], plain("hash value is not a float"))
	if err != nil {
		return err
	}
	if err := c.setOne("hincrbyfloat", val); err != nil {
		return err
	}
	return c.bulk(val)
}

// setOne stores a value in the field that the first two arguments name.
func (c *call) setOne(op string, val []byte) error {
	key, field := c.args[0], c.args[1]
	if len(field) > KeyBytesMax {
		return errKeyTooLong(len(field))
	}
	h, err := c.openHash(key)
	if err != nil {
		return err
	}
	c.setField(op, key, &h, field, val)
	c.save(key, &h)
	return nil
}

// Behaviour: HRANDFIELD key [count [WITHVALUES]]. Up to randomExact fields are drawn evenly; from a larger hash the
// draw starts at a random place, and fields that follow a wide gap of hash values come up more often.
func cmdHRandField(c *call) error {
	if len(c.args) == 1 {
		h, had, err := c.lookKind(c.args[0], kindHash)
		if err != nil {
			return err
		}
		if !had {
			return c.null()
		}
		fs, err := c.randomFields(&h, 1)
		if err != nil {
			return err
		}
		return c.bulk(fs[0].field)
	}
	n, ok := ParseInt(c.args[1])
	if !ok {
		return errNotInteger()
	}
	if n == -1<<63 {
		return plain("value is out of range, value must between -9223372036854775807 and 9223372036854775807")
	}
	with := len(c.args) > 2
	if len(c.args) > 3 || with && !equalFold(c.args[2], "withvalues") {
		return errSyntax()
	}
	if with && (n < -(1<<63-1)/2 || n > (1<<63-1)/2) {
		return plain("value is out of range")
	}
	h, had, err := c.lookKind(c.args[0], kindHash)
	if err != nil {
		return err
	}
	if !had || n == 0 {
		c.out = AppendArray(nil, 0)
		return nil
	}
	if n > 0 {
		fs, err := c.randomFields(&h, n)
		if err != nil {
			return err
		}
		c.out, err = c.appendFields(fs, with)
		return err
	}
	return c.randomRepeated(&h, -n, with)
}

type fieldValue struct{ field, val []byte }

const (
	randomExact   = 1024
	randomRepeats = 1 << 20
)

// randomFields returns n different fields, or all.
func (c *call) randomFields(h *head, n int64) (fs []fieldValue, err error) {
	n = min(n, int64(h.count))
	size := 0
	collect := func(stop int64) func(uint32, []byte, []byte) bool {
		return func(_ uint32, field, val []byte) bool {
			fs = append(fs, fieldValue{slices.Clone(field), slices.Clone(val)})
			size += len(field) + len(val)
			err = c.grow(size)
			return err == nil && int64(len(fs)) < stop && size <= AnswerBytesMax
		}
	}
	if h.count <= randomExact {
		c.eachField(h, nil, collect(randomExact))
		for i := len(fs) - 1; i > 0; i-- {
			j := int(c.random() % uint64(i+1))
			fs[i], fs[j] = fs[j], fs[i]
		}
		return fs[:min(n, int64(len(fs)))], err
	}
	start, _ := fieldRange(h.instance)
	r := uint32(c.random())
	start = append(start, byte(r>>24), byte(r>>16), byte(r>>8), byte(r))
	c.eachField(h, start, collect(n))
	if err == nil && int64(len(fs)) < n {
		c.eachField(h, nil, collect(n))
	}
	return fs, err
}

func (c *call) appendFields(fs []fieldValue, with bool) ([]byte, error) {
	out := AppendArray(nil, len(fs))
	for _, f := range fs {
		if with {
			out = AppendArray(out, 2)
		}
		out = AppendBulk(out, f.field)
		if with {
			out = AppendBulk(out, f.val)
		}
		if len(out) > AnswerBytesMax {
			return nil, errAnswerTooLarge()
		}
		if err := c.grow(len(out)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// randomRepeated answers with n fields, of which some may be equal.
func (c *call) randomRepeated(h *head, n int64, with bool) error {
	if n > randomRepeats {
		return errAnswerTooLarge()
	}
	pool, err := c.randomFields(h, randomExact)
	if err != nil {
		return err
	}
	fs := make([]fieldValue, n)
	for i := range fs {
		fs[i] = pool[c.random()%uint64(len(pool))]
	}
	c.out, err = c.appendFields(fs, with)
	return err
}
