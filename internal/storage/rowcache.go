package storage

// RowCache remembers the newest values of recently used rows of a Store, so that a state machine that reads what it is about
// to overwrite need not search the store for it. It belongs to the goroutine that commits batches; others read the store.
//
// It keeps two generations: a row that is used moves to the young one, and when that is full Turn drops the old one.
type RowCache struct {
	young, old map[string]*CachedRow
	bytes      int
	// half is the bound of one generation.
	half int
	// gone are ranges that were deleted, up to the time now: what a row from before that is in one of them was known for is true no more. It is
	// forgotten when somebody asks for it.
	gone spans
	now  uint64
}

// goneMax bounds the ranges that a RowCache remembers.
const goneMax = 16

// CachedRow is what a RowCache knows of a row.
type CachedRow struct {
	// Key is the row's key in the store.
	Key string
	// Value is the row's value, which must not be changed. There is false if the store has no such row. They mean nothing
	// unless Known is set.
	Value        []byte
	There, Known bool
	// Slot is the user's: it says where there is a newer value that is not committed yet. It must be 0 when Turn is called.
	Slot int
	// at is when it was known that no range which was deleted matters to it.
	at uint64
}

// cachedOverhead is about what a row costs besides its bytes.
const cachedOverhead = 160

// NewRowCache returns a cache that holds about bytesMax bytes.
func NewRowCache(bytesMax int) *RowCache {
	return &RowCache{young: map[string]*CachedRow{}, old: map[string]*CachedRow{}, half: bytesMax / 2}
}

// Find returns what there is of a row, or nil.
func (c *RowCache) Find(key []byte) *CachedRow {
	r, ok := c.young[string(key)]
	if !ok {
		if r, ok = c.old[string(key)]; !ok {
			return nil
		}
		delete(c.old, r.Key)
		c.add(r)
	}
	if r.at < c.now {
		if c.gone.covering(key) != nil {
			c.Forget(r)
		}
		r.at = c.now
	}
	return r
}

// Row is Find, and makes a row of which nothing is known if there is none.
func (c *RowCache) Row(key []byte) *CachedRow {
	if r := c.Find(key); r != nil {
		return r
	}
	r := &CachedRow{Key: string(key), at: c.now}
	c.add(r)
	return r
}

func (c *RowCache) add(r *CachedRow) {
	c.young[r.Key] = r
	c.bytes += len(r.Key) + len(r.Value) + cachedOverhead
}

// Keep notes the value of a row that was found since the last Turn, or that it is not there. The cache keeps the value; it
// must not be changed afterwards, and should not be a part of something much larger.
func (c *RowCache) Keep(r *CachedRow, value []byte, there bool) {
	c.Forget(r)
	r.at = c.now
	// Large rows would push out too many others, and until the next Turn nothing is dropped.
	if len(value) > c.half/64 || c.bytes+len(value) > 2*c.half {
		return
	}
	r.Value, r.There, r.Known = value, there, true
	c.bytes += len(value)
}

// Forget drops what is known of a row that was found since the last Turn.
func (c *RowCache) Forget(r *CachedRow) {
	c.bytes -= len(r.Value)
	r.Value, r.There, r.Known = nil, false, false
}

// ForgetRange is Forget for all rows with from <= key < to.
func (c *RowCache) ForgetRange(from, to []byte) {
	c.now++
	if c.gone = c.gone.with(from, to); len(c.gone) <= goneMax {
		return
	}
	for k, r := range c.young {
		if r.at < c.now && c.gone.covering([]byte(k)) != nil {
			c.Forget(r)
		}
	}
	for k, r := range c.old {
		if r.at < c.now && c.gone.covering([]byte(k)) != nil {
			delete(c.old, k)
		}
	}
	c.gone = nil
}

// Turn drops the rows that were not used for longest, if there are too many. Rows found before must be looked up again.
func (c *RowCache) Turn() {
	if c.bytes > c.half {
		c.old, c.young, c.bytes = c.young, map[string]*CachedRow{}, 0
	}
}
