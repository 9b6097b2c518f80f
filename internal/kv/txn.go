package kv

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/quorate/quorate/internal/errs"
)

// operation runs an operation as it is encoded.
func (c *call) operation(d *decoder) []byte {
	o := d.op(0)
	switch err := d.end(); {
	case err != nil:
		c.fail(err)
	case c.tx == nil && !ReadOnly(o):
		c.fail(errs.New(errs.Invalid, "a kv query that writes"))
	default:
		a := c.do(o)
		return appendAnswer(make([]byte, 0, c.size+64), &a)
	}
	return nil
}

// do runs an operation. What c.err says undoes it.
func (c *call) do(o Op) Answer {
	// Everything that can be refused is, before anything is done: all of it depends on what was there before.
	path := c.decide(o, nil)
	left := path
	if c.check(o, false, &left); c.err != nil {
		return Answer{}
	}
	return c.run(o, &path)
}

// branch returns what a transaction does, and takes its decision off the path.
func (t *Txn) branch(path *[]bool) (ops []Op, ok bool) {
	ok, *path = (*path)[0], (*path)[1:]
	if ok {
		return t.Then, true
	}
	return t.Else, false
}

// decide appends which way each transaction in o goes, in the order in which they are met.
func (c *call) decide(o Op, path []bool) []bool {
	t, ok := o.(*Txn)
	if !ok {
		return path
	}
	holds := true
	for i := range t.If {
		if holds = c.holds(&t.If[i]); !holds {
			break
		}
	}
	path = append(path, holds)
	ops := t.Then
	if !holds {
		ops = t.Else
	}
	for _, o := range ops {
		path = c.decide(o, path)
	}
	return path
}

// holds decides a condition: that all keys of its range fulfil it, or zeros do if there is none.
func (c *call) holds(cond *Compare) bool {
	some, all := false, true
	for kv := range c.heads(rangeOf(cond.Key, cond.End)) {
		some = true
		if all = cond.holds(kv); !all {
			break
		}
	}
	if !some {
		// No value equals that of a missing key, nor differs from it.
		return cond.Target != Value && cond.holds(&KeyValue{})
	}
	return all
}

func (cond *Compare) holds(kv *KeyValue) bool {
	var r int
	switch cond.Target {
	case Version:
		r = cmp.Compare(kv.Version, cond.Number)
	case CreateRevision:
		r = cmp.Compare(kv.Create, cond.Number)
	case ModRevision:
		r = cmp.Compare(kv.Mod, cond.Number)
	case Value:
		r = bytes.Compare(kv.Value, cond.Value)
	case Lease:
		r = cmp.Compare(kv.Lease, cond.Number)
	}
	switch cond.Relation {
	case Equal:
		return r == 0
	case Greater:
		return r > 0
	case Less:
		return r < 0
	}
	return r != 0
}

// check refuses what cannot be done. inTxn says that o is a part of a transaction.
func (c *call) check(o Op, inTxn bool, path *[]bool) {
	switch o := o.(type) {
	case *Range:
		switch {
		case o.Revision > c.st.rev:
			c.fail(ErrFutureRevision)
		case o.Revision > 0 && o.Revision < c.st.compact:
			c.fail(ErrCompacted)
		case inTxn && o.Revision < 0 && (o.Revision < -1 || c.st.compact > 0):
			// Alone it reads what is now. In a transaction etcd takes it for a revision, before its first one, which is -1 until a compaction.
			c.fail(ErrCompacted)
		}
	case *Put:
		if o.Lease != 0 && !o.KeepLease {
			if _, ok := c.v.Get(leaseKey(o.Lease)); !ok {
				c.fail(ErrLeaseNotFound)
			}
		}
		if o.KeepValue || o.KeepLease {
			if _, ok := c.head(o.Key); !ok {
				c.fail(ErrKeyNotFound)
			}
		}
	case *Txn:
		ops, _ := o.branch(path)
		for _, o := range ops {
			c.check(o, true, path)
		}
	}
}

func (c *call) run(o Op, path *[]bool) Answer {
	if c.err != nil {
		return Answer{}
	}
	switch o := o.(type) {
	case *Range:
		return c.read(o)
	case *Put:
		return c.put(o)
	case *Delete:
		return c.delete(o)
	case *Txn:
		a := Answer{Op: OpTxn}
		ops, ok := o.branch(path)
		a.Succeeded = ok
		if len(ops) > 0 {
			a.Answers = make([]Answer, 0, len(ops))
		}
		for _, o := range ops {
			a.Answers = append(a.Answers, c.run(o, path))
		}
		a.Revision = c.next()
		return a
	}
	return Answer{}
}

// read runs a Range.
func (c *call) read(o *Range) Answer {
	a := Answer{Op: OpRange, Revision: c.next()}
	rev := o.Revision
	if rev <= 0 {
		rev = c.next()
	}
	order := o.Order
	if order == Unsorted && o.Target != ByKey {
		order = Ascending
	}
	sorted := order != Unsorted && (o.Target != ByKey || order == Descending)
	filtered := o.filtered()
	// Keys come in order: what is past the limit only counts, unless it may yet come first, or the others go. Where no order is asked for,
	// etcd sorts the first keys, as many as the limit and one more.
	limit := o.Limit
	switch {
	case limit <= 0 || filtered || sorted && o.Order != Unsorted:
		limit = maxRevision
	case sorted && limit < maxRevision:
		limit++
	}
	for kv := range c.at(rangeOf(o.Key, o.End), rev) {
		a.Count++
		if o.CountOnly || int64(len(a.KVs)) >= limit || filtered && !o.passes(kv) {
			continue
		}
		keep := *kv
		keep.Key = bytes.Clone(kv.Key)
		if keep.Value = nil; !o.KeysOnly || o.Target == ByValue {
			keep.Value = bytes.Clone(kv.Value)
		}
		if c.grow(&keep); c.err != nil {
			return a
		}
		a.KVs = append(a.KVs, keep)
	}
	if sorted {
		Sort(a.KVs, o.Target, order)
	}
	switch {
	case o.CountOnly || o.Limit <= 0:
	case sorted || filtered:
		if int64(len(a.KVs)) > o.Limit {
			a.KVs, a.More = a.KVs[:o.Limit], true
		}
	default:
		a.More = a.Count > o.Limit
	}
	if o.KeysOnly {
		for i := range a.KVs {
			a.KVs[i].Value = nil
		}
	}
	return a
}

func (o *Range) passes(kv *KeyValue) bool {
	return (o.MinMod == 0 || kv.Mod >= o.MinMod) && (o.MaxMod == 0 || kv.Mod <= o.MaxMod) &&
		(o.MinCreate == 0 || kv.Create >= o.MinCreate) && (o.MaxCreate == 0 || kv.Create <= o.MaxCreate)
}

// Sort sorts versions of keys as an answer is; those that are equal stay in their order.
func Sort(kvs []KeyValue, by SortTarget, order SortOrder) {
	slices.SortStableFunc(kvs, func(x, y KeyValue) int {
		if order == Descending {
			x, y = y, x
		}
		switch by {
		case ByVersion:
			return cmp.Compare(x.Version, y.Version)
		case ByCreate:
			return cmp.Compare(x.Create, y.Create)
		case ByMod:
			return cmp.Compare(x.Mod, y.Mod)
		case ByValue:
			return bytes.Compare(x.Value, y.Value)
		}
		return bytes.Compare(x.Key, y.Key)
	})
}

// put runs a Put.
func (c *call) put(o *Put) Answer {
	a := Answer{Op: OpPut, Revision: c.st.rev + 1}
	prev, had := c.head(o.Key)
	if c.err != nil {
		return a
	}
	kv := KeyValue{Key: o.Key, Value: o.Value, Lease: o.Lease, Mod: c.st.rev + 1, Create: c.st.rev + 1, Version: 1}
	switch {
	case !had && (o.KeepValue || o.KeepLease):
		c.fail(ErrKeyNotFound)
		return a
	case had && prev.Mod == kv.Mod:
		c.fail(ErrDuplicateKey)
		return a
	}
	if had {
		kv.Create, kv.Version = prev.Create, prev.Version+1
		if o.KeepValue {
			kv.Value = prev.Value
		}
		if o.KeepLease {
			kv.Lease = prev.Lease
		}
		if o.WantPrev {
			c.grow(&prev)
			a.KVs = []KeyValue{prev}
		}
	}
	c.event(eventPut, o.Key, &prev)
	c.attach(o.Key, prev.Lease, kv.Lease)
	c.tx.SetFresh(appendHeadKey(make([]byte, 0, 1+len(o.Key)), o.Key), encodeVersion(kv.Mod, &kv))
	c.tx.Emit("put", changed, o.Key, notNil(kv.Value))
	return a
}

func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// delete runs a Delete.
func (c *call) delete(o *Delete) Answer {
	a := Answer{Op: OpDelete}
	var keys [][]byte
	for kv := range c.heads(rangeOf(o.Key, o.End)) {
		keys = append(keys, bytes.Clone(kv.Key))
		c.grow(&KeyValue{Key: kv.Key})
	}
	for _, key := range keys {
		kv, ok := c.head(key)
		if !ok || c.err != nil {
			break
		}
		if kv.Mod == c.st.rev+1 {
			c.fail(ErrDuplicateKey)
			break
		}
		if o.WantPrev {
			c.grow(&kv)
			a.KVs = append(a.KVs, kv)
		}
		c.remove(&kv)
		a.Count++
	}
	a.Revision = c.next()
	return a
}

// remove deletes a key whose newest version is kv.
func (c *call) remove(kv *KeyValue) {
	c.event(eventDelete, kv.Key, kv)
	c.attach(kv.Key, kv.Lease, 0)
	c.tx.Delete(appendHeadKey(make([]byte, 0, 1+len(kv.Key)), kv.Key))
	c.tx.Emit("delete", changed, kv.Key, nil)
	c.key = append(append(c.key[:0], gone), kv.Key...)
	c.tx.Wake(c.key)
}

// event notes that a key changes, and moves the version that it had, if any, to where older ones are.
func (c *call) event(kind eventKind, key []byte, prev *KeyValue) {
	rev := c.st.rev + 1
	if prev.Mod > 0 {
		c.tx.SetBulk(oldKey(key, prev.Mod), encodeVersion(rev, prev))
	}
	c.tx.SetBulk(eventKey(rev, c.events), encodeEvent(kind, prev.Mod, key))
	c.events++
}

// attach moves a key from one lease to another; 0 is none.
func (c *call) attach(key []byte, from, to int64) {
	if from == to {
		return
	}
	if from != 0 {
		c.tx.Delete(attachedKey(from, key))
	}
	if to != 0 {
		c.tx.SetBulk(attachedKey(to, key), nil)
	}
}
