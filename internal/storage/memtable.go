package storage

import (
	"bytes"
	"encoding/binary"
)

// memTable holds rows that are committed and not yet in a table on disk, in the order of their keys. It is a B+ tree whose
// nodes are copied before they change if a view may look at them, so that a view costs nothing but its root. One goroutine
// writes; views may be read by any.
//
// Pebble's own memtable keeps every version of a row, each in a place of its own. Here a row that is written again replaces
// the one before, and the tree stays as small as the set of rows that are in use. ADR 12 has the figures.
type memTable struct {
	root *memNode
	// epoch is that of the nodes which no view has seen.
	epoch uint64
	rows  int
	// bytes counts what is in chunks, also of rows that were replaced since.
	bytes int
	// chunks are never written where a view may look: used is where the last one is free.
	chunks [][]byte
	used   int
	// gone are ranges that were deleted. They hide what older tables have; a row of this one in such a range was written after it was deleted.
	gone spans
}

// memView is the content of a memTable at one moment.
type memView struct {
	root   *memNode
	chunks [][]byte
	gone   spans
}

// memRow says where a row is: its key at an offset of a chunk, its value behind it.
type memRow struct {
	chunk, off  uint32
	klen        uint32
	vlenDeleted uint32
}

// memFanout is the number of rows of a leaf, and of children of an inner node.
const memFanout = 64

// memNode is a leaf, or an inner node if it has kids. The rows of an inner node are the lowest keys of its kids.
type memNode struct {
	kids  []*memNode
	epoch uint64
	n     int
	// All keys of the node begin with the same prefix bytes, the first of which are in head too. The sixteen bytes after
	// them are in high and low, as numbers, zeros where the key is shorter. A search costs what it has to fetch from memory,
	// and needs hardly anything else: eight bytes tell users' keys apart; those of a change log and of several shards, which
	// differ before and after bytes that they have in common, take sixteen.
	prefix int
	head   [memHead]byte
	high   [memFanout]uint64
	low    [memFanout]uint64
	rows   [memFanout]memRow
}

const (
	memHead = 24
	// memMark is the number of bytes in high and low.
	memMark = 16
)

const (
	// The first chunk is small, so that a node that is not used needs little memory; the largest have 1 MiB.
	memChunkMin       = 4 << 10
	memChunkDoublings = 8
	// memRowOverhead is about what a row costs besides its bytes.
	memRowOverhead = 48
)

func (r memRow) deleted() bool { return r.vlenDeleted&1 != 0 }

func rowKey(chunks [][]byte, r *memRow) []byte {
	return chunks[r.chunk][r.off : r.off+r.klen : r.off+r.klen]
}

func rowValue(chunks [][]byte, r *memRow) []byte {
	from := r.off + r.klen
	to := from + r.vlenDeleted>>1
	return chunks[r.chunk][from:to:to]
}

// store copies a row to the last chunk.
func (t *memTable) store(key, value []byte, deleted bool) memRow {
	n := len(key) + len(value)
	last := len(t.chunks) - 1
	if last < 0 || len(t.chunks[last])-t.used < n {
		t.chunks = append(t.chunks, make([]byte, max(n, memChunkMin<<min(len(t.chunks), memChunkDoublings))))
		t.used = 0
		last++
	}
	r := memRow{chunk: uint32(last), off: uint32(t.used), klen: uint32(len(key)), vlenDeleted: uint32(len(value)) << 1}
	if deleted {
		r.vlenDeleted |= 1
	}
	free := t.chunks[last][t.used:]
	copy(free[copy(free, key):], value)
	t.used += n
	t.bytes += n
	return r
}

// put writes a row, or notes that it is deleted.
func (t *memTable) put(key, value []byte, deleted bool) {
	r := t.store(key, value, deleted)
	if t.root == nil {
		t.root = &memNode{epoch: t.epoch}
	}
	t.root = t.mutable(t.root)
	if t.root.n == memFanout {
		low := t.root
		t.root = &memNode{epoch: t.epoch, kids: make([]*memNode, 0, memFanout)}
		t.root.place(t.chunks, 0, low.rows[0], low)
		t.split(t.root, 0, key)
	}
	n := t.root
	for n.kids != nil {
		i, found := n.search(t.chunks, key)
		switch {
		case found:
		case i > 0:
			i--
		default:
			n.lower(t.chunks, r)
		}
		n.kids[i] = t.mutable(n.kids[i])
		if n.kids[i].n == memFanout {
			t.split(n, i, key)
			if i+1 < n.n && bytes.Compare(key, rowKey(t.chunks, &n.rows[i+1])) >= 0 {
				i++
			}
		}
		n = n.kids[i]
	}
	i, found := n.search(t.chunks, key)
	if found {
		n.rows[i] = r
		return
	}
	t.rows++
	n.place(t.chunks, i, r, nil)
}

// deleteRange notes that all rows with from <= key < to are deleted.
func (t *memTable) deleteRange(from, to []byte) {
	var here [][]byte
	for it := t.own().iter(from); it.row != nil && bytes.Compare(it.key(), to) < 0; it.next() {
		if !it.row.deleted() {
			here = append(here, it.key())
		}
	}
	for _, key := range here {
		t.put(key, nil, true)
	}
	t.gone = t.gone.with(from, to)
	t.bytes += len(from) + len(to)
}

// mutable returns the node, or its copy if a view may look at it.
func (t *memTable) mutable(n *memNode) *memNode {
	if n.epoch == t.epoch {
		return n
	}
	c := *n
	c.epoch = t.epoch
	if n.kids != nil {
		c.kids = append(make([]*memNode, 0, memFanout), n.kids...)
	}
	return &c
}

// split makes two nodes of the full i-th kid of a node. If key is about to go behind everything in it, nothing but room is
// made: rows that come in the order of their keys fill their nodes.
func (t *memTable) split(n *memNode, i int, key []byte) {
	low := n.kids[i]
	at := memFanout / 2
	if i == n.n-1 && bytes.Compare(key, rowKey(t.chunks, &low.rows[memFanout-1])) > 0 {
		at = memFanout - 1
	}
	high := &memNode{epoch: t.epoch}
	high.n = copy(high.rows[:], low.rows[at:])
	if low.kids != nil {
		high.kids = append(make([]*memNode, 0, memFanout), low.kids[at:]...)
		clear(low.kids[at:])
		low.kids = low.kids[:at]
	}
	low.n = at
	low.remark(t.chunks)
	high.remark(t.chunks)
	n.place(t.chunks, i+1, high.rows[0], high)
}

// place puts a row, with a kid if the node is an inner one, at position i.
func (n *memNode) place(chunks [][]byte, i int, r memRow, kid *memNode) {
	copy(n.rows[i+1:n.n+1], n.rows[i:n.n])
	n.rows[i] = r
	if kid != nil {
		n.kids = append(n.kids, nil)
		copy(n.kids[i+1:], n.kids[i:])
		n.kids[i] = kid
	}
	n.n++
	copy(n.high[i+1:n.n], n.high[i:n.n-1])
	copy(n.low[i+1:n.n], n.low[i:n.n-1])
	n.mark(chunks, i)
}

// lower makes a row, which comes before all others, the lowest of an inner node.
func (n *memNode) lower(chunks [][]byte, r memRow) {
	n.rows[0] = r
	n.mark(chunks, 0)
}

// mark notes the mark of a row that is new at position i.
func (n *memNode) mark(chunks [][]byte, i int) {
	key := rowKey(chunks, &n.rows[i])
	other := &n.rows[0]
	if i == 0 {
		other = &n.rows[n.n-1]
	}
	if n.n <= 2 || commonPrefix(rowKey(chunks, other), key) < n.prefix {
		n.remark(chunks)
		return
	}
	n.high[i], n.low[i] = markOf(key[n.prefix:])
}

// remark finds the prefix and all marks anew.
func (n *memNode) remark(chunks [][]byte) {
	first := rowKey(chunks, &n.rows[0])
	// With a single key a prefix as long as the key would be too long for any other.
	n.prefix = 0
	if n.n > 1 {
		n.prefix = commonPrefix(first, rowKey(chunks, &n.rows[n.n-1]))
		copy(n.head[:], first[:n.prefix])
	}
	for i := range n.n {
		n.high[i], n.low[i] = markOf(rowKey(chunks, &n.rows[i])[n.prefix:])
	}
}

func markOf(rest []byte) (high, low uint64) {
	if len(rest) < memMark {
		var b [memMark]byte
		copy(b[:], rest)
		rest = b[:]
	}
	return binary.BigEndian.Uint64(rest), binary.BigEndian.Uint64(rest[8:])
}

func commonPrefix(a, b []byte) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// search returns the position of the first row whose key is not below key, and whether it is that key.
func (n *memNode) search(chunks [][]byte, key []byte) (int, bool) {
	if n.n == 0 {
		return 0, false
	}
	if p := n.prefix; p > 0 {
		head := n.head[:min(p, memHead)]
		if p > memHead {
			head = rowKey(chunks, &n.rows[0])[:p]
		}
		// A key that ends within the prefix compares as lower.
		switch c := bytes.Compare(key[:min(p, len(key))], head); {
		case c < 0:
			return 0, false
		case c > 0:
			return n.n, false
		}
	}
	high, low := markOf(key[n.prefix:])
	at, end := 0, n.n
	for at < end {
		m := int(uint(at+end) >> 1)
		if h := n.high[m]; h < high || h == high && n.low[m] < low {
			at = m + 1
		} else {
			end = m
		}
	}
	// Few keys have the same mark, mostly one.
	for ; at < n.n && n.high[at] == high && n.low[at] == low; at++ {
		r := &n.rows[at]
		if int(r.klen) == len(key) && len(key)-n.prefix <= memMark {
			return at, true
		}
		if c := bytes.Compare(rowKey(chunks, r), key); c >= 0 {
			return at, c == 0
		}
	}
	return at, false
}

// child returns the kid that a key belongs to.
func (n *memNode) child(chunks [][]byte, key []byte) int {
	i, found := n.search(chunks, key)
	if found || i == 0 {
		return i
	}
	return i - 1
}

// view returns what the table holds now; it does not change with the table. The caller sees to it that nobody writes
// meanwhile.
func (t *memTable) view() memView {
	t.epoch++
	return t.own()
}

// own is view for the goroutine that writes, good until it writes again.
func (t *memTable) own() memView { return memView{t.root, t.chunks, t.gone} }

// find returns a row, or nil. The value is valid as long as the view.
func (v memView) find(key []byte) *memRow {
	n := v.root
	if n == nil {
		return nil
	}
	for n.kids != nil {
		n = n.kids[n.child(v.chunks, key)]
	}
	if i, found := n.search(v.chunks, key); found {
		return &n.rows[i]
	}
	return nil
}

// memIter goes through the rows of a view in the order of their keys, deleted ones included.
type memIter struct {
	v memView
	// path are the nodes from the root to a leaf, with the position in each; it is empty at the end.
	path []memStep
	row  *memRow
}

type memStep struct {
	n *memNode
	i int
}

// iter returns an iterator at the first row whose key is not below from.
func (v memView) iter(from []byte) *memIter {
	it := &memIter{v: v, path: make([]memStep, 0, 6)}
	n := v.root
	if n == nil {
		return it
	}
	for n.kids != nil {
		i := n.child(v.chunks, from)
		it.path = append(it.path, memStep{n, i})
		n = n.kids[i]
	}
	i, _ := n.search(v.chunks, from)
	it.path = append(it.path, memStep{n, i})
	it.settle()
	return it
}

// seek moves to the first row whose key is not below from.
func (it *memIter) seek(from []byte) { *it = *it.v.iter(from) }

// next moves on by one row.
func (it *memIter) next() {
	it.path[len(it.path)-1].i++
	it.settle()
}

// settle goes to the next leaf if this one is at its end, and sets row.
func (it *memIter) settle() {
	at := len(it.path) - 1
	for at >= 0 && it.path[at].i >= it.path[at].n.n {
		if at--; at >= 0 {
			it.path[at].i++
		}
	}
	it.row = nil
	if at < 0 {
		it.path = it.path[:0]
		return
	}
	for it.path = it.path[:at+1]; it.path[at].n.kids != nil; at++ {
		it.path = append(it.path, memStep{n: it.path[at].n.kids[it.path[at].i]})
	}
	it.row = &it.path[at].n.rows[it.path[at].i]
}

func (it *memIter) key() []byte   { return rowKey(it.v.chunks, it.row) }
func (it *memIter) value() []byte { return rowValue(it.v.chunks, it.row) }
