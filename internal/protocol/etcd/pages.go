package etcd

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"io"

	"go.etcd.io/bbolt"

	"github.com/quorate/quorate/internal/errs"
)

// bbolt believes what it reads: a page that is below itself makes it run for ever, and one that is not there ends the process. So all pages of a file
// that comes from elsewhere are looked at first. Numbers are in the byte order of the machine:
//
//	page     id(8) flags(2) count(2) overflow(4), elements, keys and values; overflow says how many pages more it takes
//	meta     magic(4) version(4) page size(4) flags(4) root(8) sequence(8) freelist(8) end of pages(8) transaction(8) checksum(8)
//	branch   element: position from here(4) key size(4) page(8)
//	leaf     element: flags(4) position from here(4) key size(4) value size(4); flag 1 says that the value is a bucket
//	bucket   root(8) sequence(8), and its only page behind that if root is 0
const (
	pageHeadBytes    = 16
	pageElementBytes = 16
	pageBranch       = 1
	pageLeaf         = 2
	bucketHeadBytes  = 16
	metaBytes        = 64
	metaSumAt        = 56
	metaMagic        = 0xED0CDAED
	metaVersion      = 2
	// pageBytesMin and pageBytesMax bound the size of a page; bbolt looks for no others.
	pageBytesMin = 1 << 10
	pageBytesMax = 16 << 20
	// pageDepthMax bounds how many pages are above one. Each of those has two below it or more, so that no file has room for so many.
	pageDepthMax = 64
)

func errPages(format string, args ...any) error {
	return errs.New(errs.Corrupt, "the snapshot is damaged ("+format+"); take another one", args...)
}

// pageCheck goes through all pages of a bbolt file that a reader can come to.
type pageCheck struct {
	f io.ReaderAt
	// size is that of a page, end the number of pages.
	size, end uint64
	// seen has a bit for each page.
	seen []byte
}

// checkPages refuses a file, of a number of bytes, in which bbolt could lose its way.
func checkPages(f io.ReaderAt, bytesAll int64) error {
	size, err := pageSize(f, bytesAll)
	switch {
	case err != nil:
		return err
	case size < pageBytesMin || size > pageBytesMax || size&(size-1) != 0:
		return errPages("pages of %d bytes", size)
	case bytesAll/int64(size) < 2:
		return errPages("%d bytes, which are less than two pages of %d", bytesAll, size)
	}
	// Of the two metas the one of the later transaction counts, if it is whole.
	var meta []byte
	for i := range uint64(2) {
		b, err := readPages(f, i*size+pageHeadBytes, metaBytes)
		if err != nil {
			return err
		}
		if isMeta(b) && (meta == nil || binary.NativeEndian.Uint64(b[48:]) > binary.NativeEndian.Uint64(meta[48:])) {
			meta = b
		}
	}
	if meta == nil {
		return errPages("neither of its first pages of %d bytes is whole", size)
	}
	root, end := binary.NativeEndian.Uint64(meta[16:]), binary.NativeEndian.Uint64(meta[40:])
	if has := uint64(bytesAll) / size; end > has {
		return errPages("%d of %d pages are there: its end is missing", has, end)
	}
	c := pageCheck{f: f, size: size, end: end, seen: make([]byte, end/8+1)}
	return c.tree(root, 0, true, nil, nil)
}

// pageSize finds the first meta that is whole, where bbolt looks for it.
func pageSize(f io.ReaderAt, bytesAll int64) (uint64, error) {
	for at := uint64(0); at <= pageBytesMax && at+pageHeadBytes+metaBytes <= uint64(bytesAll); at = max(2*at, pageBytesMin) {
		b, err := readPages(f, at+pageHeadBytes, metaBytes)
		if err != nil {
			return 0, err
		}
		if isMeta(b) {
			return uint64(binary.NativeEndian.Uint32(b[8:])), nil
		}
	}
	return 0, errs.New(errs.Invalid, "the file cannot be read as a snapshot of etcd, or its first pages are damaged; take one with `etcdctl snapshot save`")
}

// isMeta says whether bytes are a meta, and whole.
func isMeta(b []byte) bool {
	h := fnv.New64a()
	_, _ = h.Write(b[:metaSumAt])
	return binary.NativeEndian.Uint32(b) == metaMagic && binary.NativeEndian.Uint32(b[4:]) == metaVersion && binary.NativeEndian.Uint64(b[metaSumAt:]) == h.Sum64()
}

func readPages(f io.ReaderAt, at, n uint64) ([]byte, error) {
	b := make([]byte, n)
	_, err := f.ReadAt(b, int64(at))
	return b, errs.Wrap(errs.Invalid, err, "read the snapshot")
}

// take reads a page with what belongs to it. Each page is in one place.
func (c *pageCheck) take(id uint64) (page, error) {
	if id < 2 || id >= c.end {
		return page{}, errPages("page %d of %d", id, c.end)
	}
	head, err := readPages(c.f, id*c.size, pageHeadBytes)
	if err != nil {
		return page{}, err
	}
	more := uint64(binary.NativeEndian.Uint32(head[12:]))
	if got := binary.NativeEndian.Uint64(head); got != id || more >= c.end-id {
		return page{}, errPages("page %d says that it is page %d, with %d more", id, got, more)
	}
	for i := id; i <= id+more; i++ {
		if c.seen[i/8]&(1<<(i%8)) != 0 {
			return page{}, errPages("page %d is in two places", i)
		}
		c.seen[i/8] |= 1 << (i % 8)
	}
	p := page{id: id, f: c.f, from: id * c.size, bytes: (1 + more) * c.size}
	// Large values are not read: how large they are may be the damage.
	count := uint64(binary.NativeEndian.Uint16(head[10:]))
	p.b, err = readPages(c.f, p.from, min(max(c.size, pageHeadBytes+count*pageElementBytes), p.bytes))
	return p, err
}

// tree goes through a page and all below it. Its keys are low or more, and less than end unless that is nil. top says that they are the names of etcd's buckets, which have
// no buckets in them.
func (c *pageCheck) tree(id uint64, depth int, top bool, low, end []byte) error {
	if depth > pageDepthMax {
		return errPages("page %d is below %d others", id, depth)
	}
	p, err := c.take(id)
	if err != nil {
		return err
	}
	if p.flags() == pageLeaf {
		return c.leaf(p, top, low, end)
	}
	if p.flags() != pageBranch || p.count() == 0 {
		return errPages("page %d has kind %d and %d elements", id, p.flags(), p.count())
	}
	if err := p.ordered(low, end); err != nil {
		return err
	}
	for i := range p.count() {
		next := end
		if i+1 < p.count() {
			if next, err = p.key(i + 1); err != nil {
				return err
			}
		}
		key, err := p.key(i)
		if err == nil {
			err = c.tree(binary.NativeEndian.Uint64(p.element(i)[8:]), depth+1, top, key, next)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// leaf goes through a leaf and the buckets that are in it.
func (c *pageCheck) leaf(p page, top bool, low, end []byte) error {
	if err := p.ordered(low, end); err != nil {
		return err
	}
	for i := range p.count() {
		isBucket := binary.NativeEndian.Uint32(p.element(i))&1 != 0
		if isBucket != top {
			return errPages("element %d of page %d is where there is none, a bucket: %v", i, p.id, isBucket)
		}
		if !top {
			continue
		}
		value, err := p.bucket(i)
		if err != nil {
			return err
		}
		if root := binary.NativeEndian.Uint64(value); root != 0 {
			err = c.tree(root, 0, false, nil, nil)
		} else if in := (page{id: p.id, bytes: uint64(len(value) - bucketHeadBytes), b: value[bucketHeadBytes:]}); len(in.b) < pageHeadBytes || in.flags() != pageLeaf {
			err = errPages("bucket %d in page %d has no page", i, p.id)
		} else {
			err = c.leaf(in, false, nil, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// page is a page, or one within a bucket's value.
type page struct {
	id uint64
	// b is its beginning, with all elements but not all keys and values. What is not in b is in f: the page's bytes begin at from.
	b           []byte
	f           io.ReaderAt
	from, bytes uint64
}

func (p *page) flags() uint16 { return binary.NativeEndian.Uint16(p.b[8:]) }
func (p *page) count() int    { return int(binary.NativeEndian.Uint16(p.b[10:])) }

// element returns an element, of which ordered has said that it is there.
func (p *page) element(i int) []byte {
	return p.b[pageHeadBytes+i*pageElementBytes:][:pageElementBytes]
}

// sizes returns where an element's key is, and how long key and value are. Of a branch there is no value.
func (p *page) sizes(i int) (at, key, value uint64) {
	e, number := p.element(i), func(b []byte) uint64 { return uint64(binary.NativeEndian.Uint32(b)) }
	at = uint64(pageHeadBytes + i*pageElementBytes)
	if p.flags() == pageBranch {
		return at + number(e), number(e[4:]), 0
	}
	return at + number(e[4:]), number(e[8:]), number(e[12:])
}

// read returns a part of the page.
func (p *page) read(at, n uint64) ([]byte, error) {
	if at+n <= uint64(len(p.b)) {
		return p.b[at:][:n:n], nil
	}
	return readPages(p.f, p.from+at, n)
}

func (p *page) key(i int) ([]byte, error) {
	at, n, _ := p.sizes(i)
	return p.read(at, n)
}

// bucket returns a value that is a bucket's.
func (p *page) bucket(i int) ([]byte, error) {
	at, key, n := p.sizes(i)
	if n < bucketHeadBytes || n > pageBytesMax {
		return nil, errPages("bucket %d in page %d has %d bytes", i, p.id, n)
	}
	return p.read(at+key, n)
}

// ordered refuses a page whose elements are not all there, or out of order, or not between low and end.
func (p *page) ordered(low, end []byte) error {
	if pageHeadBytes+p.count()*pageElementBytes > len(p.b) {
		return errPages("page %d has %d elements, for which there is no room", p.id, p.count())
	}
	before := low
	for i := range p.count() {
		at, n, value := p.sizes(i)
		if n > bbolt.MaxKeySize || at+n+value > p.bytes {
			return errPages("element %d of page %d is not all there", i, p.id)
		}
		key, err := p.key(i)
		if err != nil {
			return err
		}
		if c := bytes.Compare(before, key); c > 0 || c == 0 && i > 0 || end != nil && bytes.Compare(key, end) >= 0 {
			return errPages("keys of page %d are out of order", p.id)
		}
		before = key
	}
	return nil
}
