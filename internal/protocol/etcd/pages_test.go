package etcd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/quorate/quorate/internal/errs"
)

// pageBytes is the size of the pages of boltFile, small, so that trees are deep.
const pageBytes = 1024

// boltFile returns a file as of a stopped member of etcd: keys from revision 2 on, one of which takes several pages, and other buckets, of which some are
// inline.
func boltFile(t testing.TB, keys int) []byte {
	t.Helper()
	name := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(name, 0o600, &bbolt.Options{NoSync: true, PageSize: pageBytes})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{bucketLease, bucketMeta, bucketAuth, bucketUsers, bucketRoles} {
			if _, err := tx.CreateBucket(b); err != nil {
				return err
			}
		}
		if err := tx.Bucket(bucketMeta).Put([]byte("scheduledCompactRev"), revision(2, 0)); err != nil {
			return err
		}
		b, err := tx.CreateBucket(bucketKey)
		if err != nil {
			return err
		}
		for i := range keys {
			rev := int64(i + 2)
			m := &mvccpb.KeyValue{Key: fmt.Appendf(nil, "key-%06d", i), CreateRevision: rev, ModRevision: rev, Version: 1, Value: []byte(strings.Repeat("v", 40))}
			if i == 3 {
				m.Value = make([]byte, 5*pageBytes)
			}
			v, err := proto.Marshal(m)
			if err == nil {
				err = b.Put(revision(rev, 0), v)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// resum makes the checksums of a file's metas right, so that a change in them is believed.
func resum(b []byte) {
	for i := range 2 {
		if at := i*pageBytes + pageHeadBytes; len(b) >= at+metaBytes {
			h := fnv.New64a()
			_, _ = h.Write(b[at:][:metaSumAt])
			binary.NativeEndian.PutUint64(b[at+metaSumAt:], h.Sum64())
		}
	}
}

// pagesOf returns the places of the pages of a kind with at least so many elements.
func pagesOf(b []byte, kind uint16, least int) (at []int) {
	for i := 2 * pageBytes; i < len(b); i += pageBytes {
		p := page{b: b[i:]}
		if binary.NativeEndian.Uint64(p.b) == uint64(i/pageBytes) && p.flags() == kind && p.count() >= least {
			at = append(at, i)
		}
	}
	return at
}

func readBytes(t testing.TB, b []byte) (Snapshot, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return ReadSnapshot(name, func(*Part) error { return nil })
}

// A file that is not damaged is read, with pages of several kinds and sizes.
func TestCheckPages_GoodFiles(t *testing.T) {
	for _, n := range []int{0, 1, 5, 3000} {
		found, err := readBytes(t, boltFile(t, n))
		if err != nil || found.Keys != n {
			t.Errorf("%d keys: %+v %v", n, found, err)
		}
	}
	b := boltFile(t, 3000)
	if len(pagesOf(b, pageBranch, 2)) < 3 {
		t.Error("the tree is not deep")
	}
	// Where one meta is damaged the other one counts. This is of the state before the only transaction.
	clear(b[:pageBytes])
	if _, err := readBytes(t, b); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "no bucket") {
		t.Errorf("with the other meta: %v", err)
	}
}

// What would send bbolt in circles, or out of the file, is refused by a clear error.
func TestCheckPages_Damage(t *testing.T) {
	good := boltFile(t, 3000)
	order := binary.NativeEndian
	meta := func(f func(m []byte)) func([]byte) []byte {
		return func(b []byte) []byte {
			f(b[pageHeadBytes:])
			f(b[pageBytes+pageHeadBytes:])
			return b
		}
	}
	branch, leaf := pagesOf(good, pageBranch, 2), pagesOf(good, pageLeaf, 3)
	type change = func(b []byte) []byte
	for _, c := range []struct {
		name, want string
		do         change
	}{
		{"a page below itself", "in two places", func(b []byte) []byte {
			for _, at := range branch {
				order.PutUint64(b[at+pageHeadBytes+8:], uint64(at/pageBytes))
			}
			return b
		}},
		{"two branches below each other", "page ", func(b []byte) []byte {
			for i, at := range branch {
				order.PutUint64(b[at+pageHeadBytes+8:], uint64(branch[(i+1)%len(branch)]/pageBytes))
			}
			return b
		}},
		{"a child behind the end", "page 1125899906842624 of", func(b []byte) []byte {
			for _, at := range branch {
				order.PutUint64(b[at+pageHeadBytes+8:], 1<<50)
			}
			return b
		}},
		{"more elements than a page has room for", "no room", func(b []byte) []byte { order.PutUint16(b[leaf[1]+10:], 0xffff); return b }},
		{"no child", "0 elements", func(b []byte) []byte {
			for _, at := range branch {
				order.PutUint16(b[at+10:], 0)
			}
			return b
		}},
		{"a value behind the end", "not all there", func(b []byte) []byte { order.PutUint32(b[leaf[1]+pageHeadBytes+12:], 0xffffffff); return b }},
		{"a key behind the end", "not all there", func(b []byte) []byte { order.PutUint32(b[leaf[1]+pageHeadBytes+8:], 0xffffffff); return b }},
		{"a place behind the end", "not all there", func(b []byte) []byte { order.PutUint32(b[leaf[1]+pageHeadBytes+4:], 0xfffffff0); return b }},
		{"a page of many", "more", func(b []byte) []byte { order.PutUint32(b[leaf[1]+12:], 0xffffffff); return b }},
		{"another page's number", "says that it is", func(b []byte) []byte { order.PutUint64(b[leaf[1]:], 7); return b }},
		{"a page of no kind", "kind 77", func(b []byte) []byte { order.PutUint16(b[leaf[1]+8:], 77); return b }},
		{"a bucket among keys", "a bucket: true", func(b []byte) []byte { order.PutUint32(b[leaf[1]+pageHeadBytes:], 1); return b }},
		{"keys that fall", "out of order", func(b []byte) []byte {
			a, z := b[leaf[1]+pageHeadBytes:], b[leaf[1]+pageHeadBytes+pageElementBytes:]
			pos := order.Uint32(a[4:])
			order.PutUint32(a[4:], order.Uint32(z[4:])+pageElementBytes)
			order.PutUint32(z[4:], pos-pageElementBytes)
			return b
		}},
		{"pages of no bytes", "pages of 0 bytes", meta(func(m []byte) { order.PutUint32(m[8:], 0) })},
		{"pages of 4 GiB", "pages of 4294967295 bytes", meta(func(m []byte) { order.PutUint32(m[8:], 0xffffffff) })},
		{"pages of 16 MiB", "less than two pages", meta(func(m []byte) { order.PutUint32(m[8:], pageBytesMax) })},
		{"a root behind the end", "page 9999999 of", meta(func(m []byte) { order.PutUint64(m[16:], 9999999) })},
		{"a meta for a root", "page 1 of", meta(func(m []byte) { order.PutUint64(m[16:], 1) })},
		{"too many pages", "its end is missing", meta(func(m []byte) { order.PutUint64(m[40:], 1<<60) })},
		{"half of it", "its end is missing", func(b []byte) []byte { return b[:len(b)/2/pageBytes*pageBytes] }},
		{"one page", "less than two pages", func(b []byte) []byte { return b[:pageBytes] }},
		{"nothing", "cannot be read", func([]byte) []byte { return nil }},
		{"no metas", "cannot be read", func(b []byte) []byte { clear(b[:2*pageBytes]); return b }},
	} {
		b := c.do(append([]byte(nil), good...))
		if c.name != "no metas" {
			resum(b)
		}
		found, err := readBytes(t, b)
		if k := errs.KindOf(err); err == nil || k != errs.Corrupt && k != errs.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v %v, want %q", c.name, found, err, c.want)
		}
	}
}

// endless is a file with nothing behind its bytes, however far one reads. It notes how much was read at once.
type endless struct {
	b    []byte
	most int
}

func (e *endless) ReadAt(b []byte, at int64) (int, error) {
	e.most = max(e.most, len(b))
	clear(b)
	if at < int64(len(e.b)) {
		copy(b, e.b[at:])
	}
	return len(b), nil
}

// A page that says it is as long as the rest of a large file is not read into memory.
func TestCheckPages_LongPagesTakeNoMemory(t *testing.T) {
	b := boltFile(t, 3000)
	for i := range 2 {
		binary.NativeEndian.PutUint64(b[i*pageBytes+pageHeadBytes+40:], 1<<30)
	}
	resum(b)
	// The root is the first that is read.
	root := binary.NativeEndian.Uint64(b[pageHeadBytes+16:])
	binary.NativeEndian.PutUint32(b[root*pageBytes+12:], 1<<29)
	f := &endless{b: b}
	if err := checkPages(f, pageBytes<<30); err != nil || f.most > 2<<20 {
		t.Errorf("%v; %d bytes at once", err, f.most)
	}
}

// However a file is damaged, reading it ends, with an error that says so or with what it holds.
func FuzzReadSnapshot(f *testing.F) {
	good := boltFile(f, 300)
	f.Add([]byte{})
	f.Add([]byte{0, 16, 0, 255})
	f.Fuzz(func(t *testing.T, changes []byte) {
		b := append([]byte(nil), good...)
		// Each change is a place and a byte.
		for ; len(changes) >= 4; changes = changes[4:] {
			at := int(changes[0])<<16 | int(changes[1])<<8 | int(changes[2])
			b[at%len(b)] = changes[3]
		}
		if len(changes) > 0 {
			b = b[:len(b)*int(changes[0])/256]
		}
		resum(b)
		if found, err := readBytes(t, b); errs.KindOf(err) == errs.Internal && err != nil || found.Keys > 301 {
			t.Errorf("%+v %v", found, err)
		}
	})
}
