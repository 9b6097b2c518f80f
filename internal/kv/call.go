package kv

import (
	"bytes"
	"iter"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// call is one running command or query.
type call struct {
	// tx is nil in a query; v is tx or the query's view.
	tx *shard.Tx
	v  shard.View
	st space
	// events counts those of this command: they have the next revision.
	events uint32
	// size is about what the answer takes so far, and taken what of that counts in budget, which is a query's.
	size, taken int
	budget      *Budget
	key         []byte
	err         error
}

func newCall(tx *shard.Tx, v shard.View) *call {
	c := &call{tx: tx, v: v, st: space{rev: 1}}
	if b, ok := v.Get([]byte{rowSpace}); ok && !c.st.decode(b) {
		c.damaged("row")
	}
	return c
}

// fail keeps the first error; it is the answer, and undoes what was written.
func (c *call) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

// damaged says that a row has no known format. Storage checksums should have caught that; it must not pass for a missing
// key, so that the whole command fails.
func (c *call) damaged(what string) { c.fail(errDamaged(what)) }

// finish ends a command: it stores the key space's row if the command changed anything in it.
func (c *call) finish() error {
	if c.err != nil || c.tx == nil {
		return c.err
	}
	if c.events > 0 {
		c.noteTerm()
		c.st.rev++
		c.save()
	}
	return nil
}

func (c *call) save() { c.tx.SetFresh([]byte{rowSpace}, c.st.encode()) }

// noteTerm notes when a leader was first seen: leases of an earlier one's time get their whole TTL from then. It says whether that is
// now.
func (c *call) noteTerm() bool {
	term := int64(c.tx.Term())
	if c.st.term == term {
		return false
	}
	c.st.term, c.st.since = term, c.tx.Now().UnixMilli()
	return true
}

// next returns the revision that reads of this command see: what it has written itself counts.
func (c *call) next() int64 {
	if c.events > 0 {
		return c.st.rev + 1
	}
	return c.st.rev
}

// grow counts an answer's bytes.
func (c *call) grow(kv *KeyValue) {
	if c.size += len(kv.Key) + len(kv.Value) + 40; c.size > AnswerBytesMax {
		c.fail(ErrAnswerTooLarge)
	}
	if more := c.size - c.taken; c.tx == nil && more > LargeBytes && c.err == nil {
		if err := c.budget.Take(int64(more)); err != nil {
			c.fail(err)
			return
		}
		c.taken += more
	}
}

// head returns the newest version of a key. The value may be a part of a row.
func (c *call) head(key []byte) (kv KeyValue, ok bool) {
	c.key = appendHeadKey(c.key[:0], key)
	b, ok := c.v.Get(c.key)
	if !ok {
		return kv, false
	}
	kv.Key = key
	if kv.Mod, ok = decodeVersion(b, &kv); !ok {
		c.damaged("version")
	}
	return kv, ok
}

// old returns the version of a key that was the newest at a revision, among those that were replaced.
func (c *call) old(key []byte, at int64) (kv KeyValue, ok bool) {
	from := oldKey(key, at)
	for row, b := range c.v.Scan(from, after(from[:len(from)-8])) {
		var until int64
		kv.Key = key
		_, mod, good := decodeOldKey(row)
		if until, ok = decodeVersion(b, &kv); !ok || !good {
			c.damaged("version")
			return kv, false
		}
		kv.Mod, kv.Value = mod, append([]byte(nil), kv.Value...)
		return kv, at < until
	}
	return kv, false
}

// heads yields the newest versions in a range. Key and value are valid until the next step.
func (c *call) heads(r keyRange) iter.Seq[*KeyValue] {
	return func(yield func(*KeyValue) bool) {
		var kv KeyValue
		if r.one {
			var ok bool
			if kv, ok = c.head(r.from); ok {
				yield(&kv)
			}
			return
		}
		if r.empty() {
			return
		}
		from, to := r.heads()
		for k, b := range c.v.Scan(from, to) {
			var ok bool
			kv.Key = k[1:]
			if kv.Mod, ok = decodeVersion(b, &kv); !ok {
				c.damaged("version")
				return
			}
			if !yield(&kv) {
				return
			}
		}
	}
}

// oldStepsMax is how many versions of one key a scan goes through before it looks for the next key instead.
const oldStepsMax = 8

// olds yields, of each key in a range that has one, the version that was the newest at a revision and is not now.
func (c *call) olds(r keyRange, at int64) iter.Seq[*KeyValue] {
	return func(yield func(*KeyValue) bool) {
		if r.empty() {
			return
		}
		var kv KeyValue
		from, to := r.olds()
		for from != nil {
			from = c.oldsFrom(from, to, at, &kv, yield)
		}
	}
}

// oldsFrom does a part of olds and returns where to go on, nil at the end.
func (c *call) oldsFrom(from, to []byte, at int64, kv *KeyValue, yield func(*KeyValue) bool) []byte {
	var last []byte
	steps, seen, first := 0, false, true
	for row, b := range c.v.Scan(from, to) {
		key, mod, ok := decodeOldKey(row)
		if !ok {
			c.damaged("version")
			return nil
		}
		if first || !bytes.Equal(key, last) {
			last, steps, seen, first = key, 0, false, false
		}
		if steps++; steps > oldStepsMax {
			// Many versions of a key: past the one that counts, or before it, they are skipped.
			if seen {
				return after(appendEscaped([]byte{rowOld}, last))
			}
			if mod > at {
				return oldKey(last, at)
			}
		}
		if seen || mod > at {
			continue
		}
		seen = true
		until, ok := decodeVersion(b, kv)
		if !ok {
			c.damaged("version")
			return nil
		}
		kv.Key, kv.Mod = last, mod
		if at < until && !yield(kv) {
			return nil
		}
	}
	return nil
}

// at yields the versions in a range that were the newest at a revision, in the order of keys.
func (c *call) at(r keyRange, rev int64) iter.Seq[*KeyValue] {
	if rev >= c.next() {
		return c.heads(r)
	}
	return func(yield func(*KeyValue) bool) {
		if r.one {
			kv, ok := c.head(r.from)
			if !ok || kv.Mod > rev {
				kv, ok = c.old(r.from, rev)
			}
			if ok {
				yield(&kv)
			}
			return
		}
		next, stop := iter.Pull(c.olds(r, rev))
		defer stop()
		old, more := next()
		for kv := range c.heads(r) {
			for ; more && string(old.Key) < string(kv.Key); old, more = next() {
				if !yield(old) {
					return
				}
			}
			// A key has one newest version at a time.
			if kv.Mod <= rev && !yield(kv) {
				return
			}
		}
		for ; more; old, more = next() {
			if !yield(old) {
				return
			}
		}
	}
}

// Apply implements shard.Module.
func (Module) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	c := newCall(tx, tx)
	d, r, err := begin(cmd)
	if err != nil {
		return nil, err
	}
	var out []byte
	switch r {
	case reqOp:
		out = c.operation(&d)
	case reqCompact:
		out = c.compact(&d)
	case reqGrant:
		out = c.grant(&d)
	case reqRevoke:
		out = c.revoke(&d)
	case reqKeepAlive:
		out = c.keepAlive(&d)
	case reqLoad:
		out = c.load(&d)
	case reqFence:
		out = c.fence(&d)
	default:
		return nil, errs.New(errs.Unsupported, "kv command %d; this build does not know it", r)
	}
	return out, c.finish()
}

// Query implements shard.Module.
func (m Module) Query(v shard.View, q []byte) ([]byte, error) {
	c := newCall(nil, v)
	d, r, err := begin(q)
	if err != nil {
		return nil, err
	}
	var out []byte
	switch r {
	case reqOp:
		// What watches read of history is bounded by who asks, and must not fail for the sake of others.
		c.budget = m.Answers
		defer func() { c.budget.Give(int64(c.taken)) }()
		out = c.operation(&d)
	case reqStatus:
		out = c.status(&d)
	case reqEvents:
		out = c.eventsFrom(&d)
	case reqTimeToLive:
		out = c.timeToLive(&d)
	case reqLeases:
		out = c.leases(&d)
	case reqHash:
		out = c.hash(&d)
	case reqFence:
		out = c.fence(&d)
	default:
		return nil, errs.New(errs.Unsupported, "kv query %d; this build does not know it", r)
	}
	return out, c.err
}

func begin(b []byte) (decoder, request, error) {
	d := decoder{codec.Read(b)}
	if v := d.Byte(); v != encodingVersion {
		return d, 0, errs.New(errs.Unsupported, "kv request of version %d; this build knows version %d", v, encodingVersion)
	}
	return d, request(d.Byte()), nil
}

// Fire implements shard.Module.
func (Module) Fire(tx *shard.Tx, key []byte) error {
	if len(key) == 0 {
		return errs.New(errs.Corrupt, "timer without a name")
	}
	c := newCall(tx, tx)
	switch key[0] {
	case timerLease:
		c.fireLease(key)
	case timerCompact:
		c.removeHistory()
	}
	return c.finish()
}
