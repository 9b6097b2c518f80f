package storage

// RowCache remembers the newest values of recently used rows of a Store, so that a state machine that reads what it is about
// to overwrite need not search the store for it. It belongs to the goroutine that commits batches; others read the store.
//
// It keeps two generations: a row that is used moves to the young one, and when that is full the old one is dropped.
type RowCache struct {
	young, old map[string]cachedRow
	bytes      int
	// half is the bound of one generation.
	half int
}

type cachedRow struct {
	value []byte
	there bool
}

// cachedOverhead is about what a row costs besides its bytes.
const cachedOverhead = 96

// NewRowCache returns a cache that holds about bytesMax bytes.
func NewRowCache(bytesMax int) *RowCache {
	return &RowCache{young: map[string]cachedRow{}, old: map[string]cachedRow{}, half: bytesMax / 2}
}

// Get returns the value of a row; known is false if the cache cannot say. The value must not be changed.
func (c *RowCache) Get(key []byte) (value []byte, there, known bool) {
	if r, ok := c.young[string(key)]; ok {
		return r.value, r.there, true
	}
	r, ok := c.old[string(key)]
	if !ok {
		return nil, false, false
	}
	c.add(string(key), r)
	return r.value, r.there, true
}

// Put notes the value of a row, or that it is not there. The cache keeps the value; it must not be changed afterwards, and
// should not be a part of something much larger.
func (c *RowCache) Put(key []byte, value []byte, there bool) {
	if len(value) > c.half/64 {
		// Large rows would push out too many others.
		c.Drop(key)
		return
	}
	r := cachedRow{value: value, there: there}
	if was, ok := c.young[string(key)]; ok {
		c.young[string(key)] = r
		c.bytes += len(value) - len(was.value)
		c.turn()
		return
	}
	c.add(string(key), r)
}

// Drop forgets what is known of a row.
func (c *RowCache) Drop(key []byte) {
	if was, ok := c.young[string(key)]; ok {
		c.bytes -= len(key) + len(was.value) + cachedOverhead
		delete(c.young, string(key))
	}
	delete(c.old, string(key))
}

func (c *RowCache) add(key string, r cachedRow) {
	c.young[key] = r
	c.bytes += len(key) + len(r.value) + cachedOverhead
	c.turn()
}

func (c *RowCache) turn() {
	if c.bytes > c.half {
		c.old, c.young, c.bytes = c.young, map[string]cachedRow{}, 0
	}
}
