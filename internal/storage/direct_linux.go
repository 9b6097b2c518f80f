package storage

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// direct makes fs write the segments of the raft log past the system's page cache (O_DIRECT, open(2)). What is written there is
// synced at once and hardly ever read, so that a page for it, and its way to the disk by way of the cache, only cost time.
func direct(fs FS) FS { return directFS{fs} }

type directFS struct{ vfs.FS }

// OpenReadWrite implements vfs.FS.
func (d directFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.FS.OpenReadWrite(name, c, o...)
	if err != nil || !strings.HasSuffix(name, segmentSuffix) {
		return f, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if raw, err := os.OpenFile(name, os.O_RDWR|syscall.O_DIRECT, 0); err == nil {
		return &directFile{File: f, raw: raw, size: st.Size(), block: make([]byte, 0, directBlock), blockAt: -1}, nil
	}
	// Not every file system can do it. It only saves time.
	return f, nil
}

const (
	// directBlock is the unit of such reads and writes, and the alignment of their memory: no disk asks for more.
	directBlock = 4 << 10
	// directMax is how much is written in this way at once: more would need as much memory.
	directMax = 1 << 20
)

// directFile is a file of which whole blocks are written. One goroutine at a time may write; any may read meanwhile.
type directFile struct {
	vfs.File
	raw  *os.File
	size int64
	// block is what the last write left in its last block, which begins at blockAt. -1 means that it is not known.
	block   []byte
	blockAt int64
	buf     []byte
	// plain is set when the file system took the flag and then refused to write.
	plain bool
}

// WriteAt implements vfs.File, except that zeros take the place of what stood behind b in its last block. In a log, nothing does.
func (f *directFile) WriteAt(b []byte, at int64) (int, error) {
	from, end := floorBlock(at), at+int64(len(b))
	to := floorBlock(end + directBlock - 1)
	if f.plain || len(b) == 0 || to-from > directMax || to > max(f.size, end) {
		return f.writePlain(b, at)
	}
	head := int(at - from)
	if head > 0 && (f.blockAt != from || len(f.block) < head) {
		f.blockAt, f.block = -1, f.block[:head]
		if _, err := f.ReadAt(f.block, from); err != nil {
			return 0, err
		}
	}
	if len(f.buf) < int(to-from) {
		f.buf = aligned(max(int(to-from), 64<<10))
	}
	buf := f.buf[:to-from]
	copy(buf, f.block[:head])
	clear(buf[head+copy(buf[head:], b):])
	n, err := f.raw.WriteAt(buf, from)
	switch {
	case errors.Is(err, syscall.EINVAL):
		f.plain = true
		return f.writePlain(b, at)
	case err != nil:
		f.blockAt = -1
		return min(max(0, n-head), len(b)), err
	}
	f.blockAt = to - directBlock
	f.block = append(f.block[:0], buf[f.blockAt-from:head+len(b)]...)
	f.size = max(f.size, to)
	return len(b), nil
}

func (f *directFile) writePlain(b []byte, at int64) (int, error) {
	f.blockAt = -1
	n, err := f.File.WriteAt(b, at)
	f.size = max(f.size, at+int64(n))
	return n, err
}

// ReadAt implements vfs.File. It does not bring pages back into the cache, which the next write would have to throw out.
func (f *directFile) ReadAt(b []byte, at int64) (int, error) {
	from := floorBlock(at)
	buf := aligned(int(floorBlock(at+int64(len(b))+directBlock-1) - from))
	n, err := f.raw.ReadAt(buf, from)
	if errors.Is(err, syscall.EINVAL) {
		return f.File.ReadAt(b, at)
	}
	got := copy(b, buf[min(n, int(at-from)):n])
	if got == len(b) {
		return got, nil
	}
	if err == nil {
		err = io.EOF
	}
	return got, err
}

// Close implements vfs.File.
func (f *directFile) Close() error { return errors.Join(f.raw.Close(), f.File.Close()) }

func floorBlock(at int64) int64 { return at &^ (directBlock - 1) }

// aligned returns n bytes of memory that begin at a multiple of directBlock.
func aligned(n int) []byte {
	b := make([]byte, n+directBlock)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (directBlock - 1)
	return b[skip : skip+n : skip+n]
}
