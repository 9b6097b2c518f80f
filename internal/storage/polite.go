package storage

import (
	"runtime"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// politeFS lets other goroutines go first each time that tables being written or merged have read or written something. A goroutine that computes is
// otherwise interrupted after ten milliseconds only, and on a machine of two processors the merging of tables takes both: a put waits for several
// goroutines, one after the other.
type politeFS struct{ FS }

// Create implements vfs.FS.
func (p politeFS) Create(name string, c vfs.DiskWriteCategory) (File, error) {
	f, err := p.FS.Create(name, c)
	if err != nil {
		return nil, err
	}
	return politeFile{f}, nil
}

// Open implements vfs.FS. Whoever merges tables reads them from the beginning to the end.
func (p politeFS) Open(name string, opts ...vfs.OpenOption) (File, error) {
	f, err := p.FS.Open(name, opts...)
	if err != nil || !slices.Contains(opts, vfs.SequentialReadsOption) {
		return f, err
	}
	return politeFile{f}, nil
}

type politeFile struct{ File }

// Write implements vfs.File.
func (f politeFile) Write(b []byte) (int, error) {
	defer runtime.Gosched()
	return f.File.Write(b)
}

// ReadAt implements vfs.File.
func (f politeFile) ReadAt(b []byte, off int64) (int, error) {
	defer runtime.Gosched()
	return f.File.ReadAt(b, off)
}
