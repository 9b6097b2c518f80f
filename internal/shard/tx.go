package shard

import (
	"bytes"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/storage"
)

// Tx is what a command may do to its shard. It is valid during one call of Module.Apply or Module.Fire. It reads its own
// writes. None of its methods returns an error: a disk failure is sticky, and the replica stops before anything is
// answered.
type Tx struct {
	m      *Machine
	module ModuleID
	begun  mark
}

var _ View = (*Tx)(nil)

// Get implements View.
func (tx *Tx) Get(key []byte) ([]byte, bool) { return tx.m.get(tx.module, key) }

func (m *Machine) get(id ModuleID, key []byte) ([]byte, bool) {
	i, e := m.row(id, key, true)
	if i >= 0 {
		r := &m.ov.rows[i]
		return r.value, !r.deleted
	}
	if e != nil && e.Known {
		return e.Value, e.There
	}
	if m.ov.covered(m.keyBuf[placeSize:]) {
		return nil, false
	}
	v, ok, err := m.store.Get(m.keyBuf)
	m.fail(err)
	if e != nil && err == nil {
		m.cfg.Cache.Keep(e, v, ok)
	}
	return v, ok
}

// row puts a row's whole key into keyBuf, and returns its place in the overlay, -1 if it is not there, and what the cache
// knows of it, nil if that is nothing. make makes the cache take it up.
func (m *Machine) row(id ModuleID, key []byte, make bool) (int, *storage.CachedRow) {
	m.keyBuf = append(append(m.keyBuf[:placeSize], byte(id)), key...)
	var e *storage.CachedRow
	if c := m.cfg.Cache; c != nil {
		if make {
			e = c.Row(m.keyBuf)
		} else {
			e = c.Find(m.keyBuf)
		}
		if e != nil && e.Slot > 0 {
			return e.Slot - 1, e
		}
	}
	if len(m.ov.index) > 0 {
		if i, ok := m.ov.index[string(m.keyBuf)]; ok {
			return i, e
		}
	}
	return -1, e
}

// remember keeps a committed row at hand, if commands are likely to read it again.
func (m *Machine) remember(r *row) {
	c, e := m.cfg.Cache, r.cached
	if c == nil {
		return
	}
	if e == nil {
		if e = c.Find(m.keyBuf); e == nil {
			return
		}
	}
	switch r.from {
	case bulk:
		c.Forget(e)
	case shared:
		c.Keep(e, bytes.Clone(r.value), !r.deleted)
	default:
		c.Keep(e, r.value, !r.deleted)
	}
}

func (m *Machine) fail(err error) {
	if err != nil && m.err == nil {
		m.err = err
	}
}

// Set stores a value. Tx keeps the value; it must not be changed afterwards. A part of the command may be passed.
func (tx *Tx) Set(key, value []byte) { tx.m.set(tx.module, key, value, shared) }

// SetFresh is Set for a value that was made for this call, and is not a part of anything larger: it saves a copy.
func (tx *Tx) SetFresh(key, value []byte) { tx.m.set(tx.module, key, value, fresh) }

// SetBulk is Set for a row that commands will hardly read again: it is not kept at hand for them.
func (tx *Tx) SetBulk(key, value []byte) { tx.m.set(tx.module, key, value, bulk) }

// origin says what may be done with the value of a row beside storing it.
type origin uint8

const (
	// shared values may be a part of an entry; whoever keeps them must copy them.
	shared origin = iota
	fresh
	bulk
)

func (m *Machine) set(id ModuleID, key, value []byte, from origin) {
	if value == nil {
		value = []byte{}
	}
	m.put(id, key, value, false, from)
}

func (m *Machine) put(id ModuleID, key, value []byte, deleted bool, from origin) {
	i, e := m.row(id, key, from != bulk)
	if i >= 0 {
		r := &m.ov.rows[i]
		m.ov.journal = append(m.ov.journal, undo{at: i, was: *r})
		r.value, r.deleted, r.from = value, deleted, from
		return
	}
	m.ov.add(m.keyBuf, e, value, deleted, from)
}

// Delete removes a key. Deleting a key that is not there counts as a write all the same: ask first.
func (tx *Tx) Delete(key []byte) { tx.m.delete(tx.module, key, fresh) }

// DeleteBulk is Delete for a row that commands will hardly ask for again.
func (tx *Tx) DeleteBulk(key []byte) { tx.m.delete(tx.module, key, bulk) }

func (m *Machine) delete(id ModuleID, key []byte, from origin) {
	m.put(id, key, []byte{}, true, from)
}

// DeleteRange removes all keys with from <= key < to, without a note for each of them in the store: it is for many rows that lie together.
func (tx *Tx) DeleteRange(from, to []byte) {
	lo, hi := bounds(tx.module, from, to)
	if bytes.Compare(lo, hi) >= 0 {
		return
	}
	m := tx.m
	for _, i := range m.ov.between(lo, hi) {
		if r := &m.ov.rows[i]; !r.deleted {
			m.ov.journal = append(m.ov.journal, undo{at: i, was: *r, implied: true})
			r.value, r.deleted, r.from = []byte{}, true, bulk
		}
	}
	if m.cfg.Cache != nil {
		p := *m.place.Load()
		m.cfg.Cache.ForgetRange(slices.Concat(p, lo), slices.Concat(p, hi))
	}
	m.ov.journal = append(m.ov.journal, undo{at: ^len(m.ov.gone)})
	m.ov.gone = append(m.ov.gone, goneRange{lo, hi})
}

// Scan implements View.
func (tx *Tx) Scan(from, to []byte) iter.Seq2[[]byte, []byte] { return tx.m.scan(tx.module, from, to) }

// scan merges the stored rows with those not yet committed.
func (m *Machine) scan(id ModuleID, from, to []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		lo, hi := bounds(id, from, to)
		pending := m.ov.between(lo, hi)
		p := *m.place.Load()
		next := 0
		var err error
		for k, v := range m.store.Scan(slices.Concat(p, lo), slices.Concat(p, hi), &err) {
			k = k[placeSize:]
			if m.ov.covered(k) {
				continue
			}
			for next < len(pending) && m.ov.key(pending[next]) < string(k) {
				if !m.yieldRow(pending[next], yield) {
					return
				}
				next++
			}
			if next < len(pending) && m.ov.key(pending[next]) == string(k) {
				if !m.yieldRow(pending[next], yield) {
					return
				}
				next++
				continue
			}
			if !yield(k[1:], v) {
				return
			}
		}
		m.fail(err)
		for ; next < len(pending); next++ {
			if !m.yieldRow(pending[next], yield) {
				return
			}
		}
	}
}

func (m *Machine) yieldRow(i int, yield func([]byte, []byte) bool) bool {
	r := &m.ov.rows[i]
	return r.deleted || yield([]byte(r.key[placeSize+1:]), r.value)
}

// bounds turns a module's range into a range of rows.
func bounds(id ModuleID, from, to []byte) (lo, hi []byte) {
	lo = append([]byte{byte(id)}, from...)
	if to == nil {
		return lo, []byte{byte(id) + 1}
	}
	return lo, append([]byte{byte(id)}, to...)
}

// Now implements View: the leader's clock when it proposed the entry.
func (tx *Tx) Now() time.Time {
	if env.Mutant(env.MutantClockInApply) && tx.m.skew != nil {
		return tx.m.skew()
	}
	return time.Unix(0, tx.m.st.Stamp).UTC()
}

// Revision implements View: the revision that the command's writes get, if it writes anything.
func (tx *Tx) Revision() Revision { return tx.m.st.Revision + 1 }

// Level returns the shard's feature level; a module chooses between old and new behaviour by it.
func (tx *Tx) Level() uint32 { return tx.m.st.Level }

// Term returns the raft term of the entry being applied. It never goes back, and is the same on every replica: the
// event log records it as the leader epoch of what it appends.
func (tx *Tx) Term() uint64 { return tx.m.st.Term }

// SetTimer asks for Module.Fire(key) at a moment; it replaces an earlier timer of that key. The zero time cancels it.
// The last moment that a timer can have is in April 2262; later ones are set to it.
func (tx *Tx) SetTimer(key []byte, at time.Time) { tx.m.setTimer(tx.module, key, at) }

// Emit stores a change in the shard's change log and wakes the watchers of key. A nil value says that the key is gone.
// key is the key as the client named it; watched is what Watch spans name, usually the same.
func (tx *Tx) Emit(op string, watched, key, value []byte, headers ...Header) {
	tx.m.changes.add(&tx.m.st, Change{
		Revision: tx.Revision(), At: time.Unix(0, tx.m.st.Stamp), Op: op, Key: key, Value: value, Headers: headers,
	})
	tx.Wake(watched)
}

// Wake wakes the watchers of a key without storing a change.
func (tx *Tx) Wake(watched []byte) {
	m := tx.m
	if cap(m.wakeKeys)-len(m.wakeKeys) < len(watched) {
		m.wakeKeys = make([]byte, 0, max(4096, len(watched)))
	}
	if m.wakes == nil {
		m.wakes = make([]Wake, 0, m.wakesBefore+1)
	}
	n := len(m.wakeKeys)
	m.wakeKeys = append(m.wakeKeys, watched...)
	m.wakes = append(m.wakes, Wake{Module: tx.module, Key: m.wakeKeys[n:len(m.wakeKeys):len(m.wakeKeys)]})
}

// Room returns an empty slice with room for n bytes, for what need not outlive the entry, such as a command for another module: it must
// be neither stored nor answered.
func (tx *Tx) Room(n int) []byte { return tx.m.room(n) }

// room returns memory that is used again after the next Commit. The machine's own rows in it must be bulk, which no cache keeps.
func (m *Machine) room(n int) []byte {
	at := len(m.scratch)
	if cap(m.scratch)-at < n {
		m.scratch, at = make([]byte, 0, max(n, min(512+2*cap(m.scratch), scratchBytesMax))), 0
	}
	m.scratch = m.scratch[:at+n]
	return m.scratch[at : at : at+n]
}

// Defer keeps an item for Finisher.Finish at the end of the entry, unless the command is undone. The calling module must be
// a Finisher. Until then the item is not in the state: what later commands of the entry must see of it has to be stored.
func (tx *Tx) Defer(item any) {
	tx.m.deferred = append(tx.m.deferred, deferred{tx.module, item})
}

// Deferred returns the item that the calling module put off last, in this entry, nil if there is none.
func (tx *Tx) Deferred() any {
	for i := len(tx.m.deferred) - 1; i >= 0; i-- {
		if d := &tx.m.deferred[i]; d.module == tx.module {
			return d.item
		}
	}
	return nil
}

// deferred is work that a module has put off to the end of the entry.
type deferred struct {
	module ModuleID
	item   any
}

// finishEntry does what the entry's commands have put off.
func (m *Machine) finishEntry() {
	for len(m.deferred) > 0 {
		// One module after the other, by their first item.
		id := m.deferred[0].module
		items, rest := m.items[:0], m.deferred[:0]
		for _, d := range m.deferred {
			if d.module == id {
				items = append(items, d.item)
			} else {
				rest = append(rest, d)
			}
		}
		clear(m.deferred[len(rest):])
		m.deferred = rest
		tx := m.begin(id)
		m.changes.whole()
		m.modules[id].(Finisher).Finish(tx, items)
		m.finish(tx, nil)
		clear(items)
		m.items = items
	}
}

// Changes implements View. Changes of the running batch are not in it.
func (tx *Tx) Changes(from uint64, bytesMax int) (ChangeSet, error) {
	v := view{r: tx.m.store, m: tx.m, place: *tx.m.place.Load(), module: tx.module}
	cs, err := v.Changes(from, bytesMax)
	tx.m.fail(v.err)
	return cs, err
}

// Call runs another module's command in the same transaction. If it fails, its writes are undone and the caller's stay.
func (tx *Tx) Call(c Command) ([]byte, error) {
	mod, err := tx.m.module(c.Module)
	if err != nil {
		return nil, err
	}
	was := tx.module
	tx.module = c.Module
	defer func() { tx.module = was }()
	return tx.Try(func() ([]byte, error) { return mod.Apply(tx, c.Data) })
}

// Ask implements View: the query sees what the transaction has written until then.
func (tx *Tx) Ask(q Command) ([]byte, error) {
	mod, err := tx.m.module(q.Module)
	if err != nil {
		return nil, err
	}
	was := tx.module
	tx.module = q.Module
	defer func() { tx.module = was }()
	return mod.Query(tx, q.Data)
}

// Try runs f and undoes its writes, changes and wake-ups if it fails.
func (tx *Tx) Try(f func() ([]byte, error)) ([]byte, error) {
	m := tx.m
	at := m.mark()
	out, err := f()
	if err != nil {
		m.rollback(at)
	}
	return out, err
}

// Err says why the command will be refused whatever else it does, if so: it has changed more than ChangesBytesMax. A module that runs many commands in one
// asks it between them, since what each of them replaces is kept until the end.
func (tx *Tx) Err() error { return tx.m.changes.err() }

// mark is a point in what the entry being applied has done so far.
type mark struct {
	rows    int
	changes changeMark
	wakes   int
	items   int
}

func (m *Machine) mark() mark {
	return mark{len(m.ov.journal), m.changes.mark(), len(m.wakes), len(m.deferred)}
}

// rollback undoes everything since a mark.
func (m *Machine) rollback(to mark) {
	m.ov.rollback(to.rows)
	m.changes.rollback(to.changes)
	m.wakes, m.deferred = m.wakes[:to.wakes], m.deferred[:to.items]
}

// wrote says whether the state was changed since a mark.
func (m *Machine) wrote(since mark) bool {
	return len(m.ov.journal) > since.rows || m.changes.mark() != since.changes || len(m.deferred) > since.items
}

// overlay holds the rows written since the last Commit, in the order of their first write. A row that the cache knows says
// where it is in CachedRow.Slot; index finds the others.
type overlay struct {
	index map[string]int
	rows  []row
	// gone are the ranges that were deleted since, without the shard's place. They hide what is stored: rows come after them.
	gone []goneRange
	// journal lists what the running transaction overwrote, for rollback and for the digest.
	journal []undo
	// sorted holds the places of rows[:len(sorted)] in the order of their keys; between extends it.
	sorted []int
}

type row struct {
	// key is the whole key, as in the store.
	key     string
	cached  *storage.CachedRow
	value   []byte
	deleted bool
	from    origin
}

type goneRange struct{ lo, hi []byte }

type undo struct {
	// at is a place in rows; ^at is one in gone if it is negative.
	at  int
	was row
	// fresh says that the row did not exist before.
	fresh bool
	// implied says that the row is in a range that was deleted. Which rows are here depends on when the last commit was.
	implied bool
}

func (o *overlay) reset() {
	for i := range o.rows {
		if e := o.rows[i].cached; e != nil {
			e.Slot = 0
		}
	}
	if o.index == nil || len(o.rows) > 4096 {
		o.index = make(map[string]int)
		o.rows = nil
	} else {
		clear(o.index)
		clear(o.rows)
	}
	o.rows = o.rows[:0]
	clear(o.gone)
	o.gone = o.gone[:0]
	clear(o.journal)
	o.journal = o.journal[:0]
	o.sorted = o.sorted[:0]
}

// key returns a row's key without the shard's place.
func (o *overlay) key(i int) string { return o.rows[i].key[placeSize:] }

// add takes in a row that is not there yet.
func (o *overlay) add(key []byte, e *storage.CachedRow, value []byte, deleted bool, from origin) {
	r := row{cached: e, value: value, deleted: deleted, from: from}
	if e != nil {
		r.key, e.Slot = e.Key, len(o.rows)+1
	} else {
		r.key = string(key)
		o.index[r.key] = len(o.rows)
	}
	o.journal = append(o.journal, undo{at: len(o.rows), fresh: true})
	o.rows = append(o.rows, r)
}

// rollback undoes the journal down to a length. Fresh rows were appended last, so they are cut off in turn.
func (o *overlay) rollback(to int) {
	for i := len(o.journal) - 1; i >= to; i-- {
		u := o.journal[i]
		if u.at < 0 {
			o.gone = o.gone[:^u.at]
			continue
		}
		if !u.fresh {
			o.rows[u.at] = u.was
			continue
		}
		if len(o.sorted) > u.at {
			o.sorted = o.sorted[:0]
		}
		if r := &o.rows[u.at]; r.cached != nil {
			r.cached.Slot = 0
		} else {
			delete(o.index, r.key)
		}
		o.rows = o.rows[:u.at]
	}
	o.journal = o.journal[:to]
}

// digest chains the transaction's writes, in order, into d.
func (o *overlay) digest(d uint64) uint64 {
	for i := range o.journal {
		at := o.journal[i].at
		if at < 0 {
			g := o.gone[^at]
			d = ^((d^xxhash.Sum64(g.lo))*0x9e3779b97f4a7c15 + xxhash.Sum64(g.hi))
			continue
		}
		if o.journal[i].implied {
			continue
		}
		r := &o.rows[at]
		d = (d^xxhash.Sum64String(o.key(at)))*0x9e3779b97f4a7c15 + xxhash.Sum64(r.value)
		d ^= d >> 29
		if r.deleted {
			d = ^d
		}
	}
	return d
}

// covered says whether a key, without the shard's place, is in a range that was deleted.
func (o *overlay) covered(key []byte) bool {
	for i := range o.gone {
		if bytes.Compare(key, o.gone[i].lo) >= 0 && bytes.Compare(key, o.gone[i].hi) < 0 {
			return true
		}
	}
	return false
}

// between returns the places of uncommitted rows in a range, in the order of their keys.
func (o *overlay) between(lo, hi []byte) []int {
	if n := len(o.sorted); n < len(o.rows) {
		for i := n; i < len(o.rows); i++ {
			o.sorted = append(o.sorted, i)
		}
		slices.SortFunc(o.sorted, func(a, b int) int { return strings.Compare(o.key(a), o.key(b)) })
	}
	find := func(k []byte) int {
		i, _ := slices.BinarySearchFunc(o.sorted, string(k), func(at int, k string) int { return strings.Compare(o.key(at), k) })
		return i
	}
	return slices.Clone(o.sorted[find(lo):find(hi)])
}
