package storage

import (
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
)

// exhausted is the disk of a process that has run out of descriptors while on is set.
type exhausted struct {
	FS
	on *atomic.Bool
}

func (f exhausted) Open(name string, o ...vfs.OpenOption) (File, error) {
	if f.on.Load() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EMFILE}
	}
	return f.FS.Open(name, o...)
}

// What reads the tables of a process that has run out of descriptors finds no damage.
func TestStore_OutOfDescriptorsIsNotDamage(t *testing.T) {
	for _, size := range []int{10, 4 * blobValueBytes} {
		on := &atomic.Bool{}
		s := openTestStore(t, exhausted{MemFS(), on}, StoreConfig{})
		put(t, s, "k", strings.Repeat("v", size))
		must(t, s.Flush())
		on.Store(true)
		_, _, get := s.Get([]byte("k"))
		var scan error
		for range s.Scan([]byte("a"), []byte("z"), &scan) {
			continue
		}
		b := s.Batch()
		b.DeleteRange([]byte("a"), []byte("z"))
		for what, err := range map[string]error{
			"get": get, "scan": scan, "delete": b.Commit(), "verify": s.Verify(), "verify tables": s.VerifyTables(func(int) error { return nil }),
		} {
			if !errs.Is(err, errs.Unavailable) {
				t.Errorf("size %d, %s: %v, of kind %v", size, what, err, errs.KindOf(err))
			}
		}
		if err := s.Err(); err != nil {
			t.Errorf("size %d: %v", size, err)
		}
		on.Store(false)
		if got := rows(t, s, "", ""); got != "k="+strings.Repeat("v", size) {
			t.Errorf("size %d: afterwards there are %d bytes", size, len(got))
		}
	}
}
