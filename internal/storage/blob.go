package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable/blob"
	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/sstable/colblk"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
)

// Large values are written once, to files of their own beside the tables, and stay there while tables are merged: else a value is written again each
// time that its row moves a level down. ADR 19 has the figures.
const (
	// blobValueBytes is the size from which a value is large. It counts the chunks of change logs, too, which hold the changes of an entry.
	blobValueBytes = 256
	// blobDepth bounds the blob files that a stretch of keys has its values in. Where merging would make it more, the values are written again, in the
	// order of their keys. A scan has a block of each file, 4 KiB or one larger value, in use at once.
	blobDepth = 256
	// blobGarbage is the share of values no longer in use at which blob files older than blobAge are written again without them.
	blobGarbage = 0.3
	blobAge     = 5 * time.Minute
)

func separateValues() pebble.ValueSeparationPolicy {
	return pebble.ValueSeparationPolicy{
		Enabled: true, MinimumSize: blobValueBytes, MaxBlobReferenceDepth: blobDepth, TargetGarbageRatio: blobGarbage, RewriteMinimumAge: blobAge,
	}
}

// blobSuffix is how names of blob files end.
const blobSuffix = ".blob"

// blobFS is what Pebble sees of the disk. It does two things for blob files that Pebble does not: it knows which of them are complete, and it checks what
// is read of them. Pebble checks that too, but panics on some of the damage that it finds (its issue 5127, in 2.1.7), and on a file that is missing.
type blobFS struct {
	FS
	// damaged is told of damage, and returns it.
	damaged    func(error) error
	mu         sync.Mutex
	unfinished map[string]bool
}

func newBlobFS(at FS) *blobFS {
	return &blobFS{FS: at, unfinished: map[string]bool{}}
}

// Create implements vfs.FS.
func (b *blobFS) Create(name string, c vfs.DiskWriteCategory) (File, error) {
	if !strings.HasSuffix(name, blobSuffix) {
		return b.FS.Create(name, c)
	}
	b.mu.Lock()
	b.unfinished[path.Base(name)] = true
	b.mu.Unlock()
	f, err := b.FS.Create(name, c)
	if err != nil {
		return nil, err
	}
	return &blobFile{File: f, fs: b, base: path.Base(name)}, nil
}

// Open implements vfs.FS.
func (b *blobFS) Open(name string, opts ...vfs.OpenOption) (File, error) {
	f, err := b.FS.Open(name, opts...)
	if !strings.HasSuffix(name, blobSuffix) {
		return f, err
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, b.damaged(missingBlob(name))
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if st.Size() < blobFooterBytes {
		err := b.damaged(errs.New(errs.Corrupt, "state store file %s has %d bytes, and even its footer has %d", name, st.Size(), blobFooterBytes))
		return nil, errors.Join(err, f.Close())
	}
	return &checkedBlob{f, b, name, st.Size()}, nil
}

// Remove implements vfs.FS.
func (b *blobFS) Remove(name string) error {
	err := b.FS.Remove(name)
	if err == nil && strings.HasSuffix(name, blobSuffix) {
		b.finish(path.Base(name))
	}
	return err
}

func (b *blobFS) finish(base string) {
	b.mu.Lock()
	delete(b.unfinished, base)
	b.mu.Unlock()
}

// finished returns the names of complete blob files in a folder. Some may be gone when they are opened.
func (b *blobFS) finished(dir string) ([]string, error) {
	names, err := b.List(dir)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, n := range names {
		if strings.HasSuffix(n, blobSuffix) && !b.unfinished[n] {
			out = append(out, b.PathJoin(dir, n))
		}
	}
	return out, nil
}

// blobFile is a blob file that is being written. One goroutine does that.
type blobFile struct {
	File
	fs    *blobFS
	base  string
	dirty bool
}

// Write implements vfs.File.
func (f *blobFile) Write(b []byte) (int, error) {
	f.dirty = true
	return f.File.Write(b)
}

// Sync implements vfs.File.
func (f *blobFile) Sync() error { return f.synced(f.File.Sync()) }

// SyncData implements vfs.File.
func (f *blobFile) SyncData() error { return f.synced(f.File.SyncData()) }

func (f *blobFile) synced(err error) error {
	f.dirty = f.dirty && err != nil
	return err
}

// Close implements vfs.File. What is complete was synced as a whole before; what is given up was not.
func (f *blobFile) Close() error {
	err := f.File.Close()
	if err == nil && !f.dirty {
		f.fs.finish(f.base)
	}
	return err
}

// checkedBlob is a blob file that is being read: blocks, each in one piece with its trailer, and the footer.
type checkedBlob struct {
	File
	fs   *blobFS
	name string
	size int64
}

const (
	// blobFooterBytes is the size of a blob file's footer, the first four bytes of which are the checksum of the rest.
	blobFooterBytes = 38
	// checksumMask is added to a checksum that is kept beside its data, after a rotation.
	checksumMask = 0xa282ead8
)

// ReadAt implements io.ReaderAt. Damage is an error of the disk to Pebble, which hands it on.
func (f *checkedBlob) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	if err != nil || n < len(p) {
		return n, err
	}
	switch {
	case off == f.size-blobFooterBytes:
		sum := crc32.Checksum(p[4:], castagnoli)
		if binary.LittleEndian.Uint32(p) != (sum>>15|sum<<17)+checksumMask {
			err = errors.New("the checksum of its footer is wrong")
		}
	case len(p) < block.TrailerLen:
		err = fmt.Errorf("%d bytes at %d are no block", len(p), off)
	default:
		// Pebble reads each block in one piece.
		h := block.Handle{Offset: uint64(off), Length: uint64(len(p)) - block.TrailerLen}
		err = block.ValidateChecksum(block.ChecksumTypeCRC32c, p, h)
	}
	if err != nil {
		// Not what Pebble knows as damage.
		return 0, f.fs.damaged(errs.New(errs.Corrupt, "state store file %s: %v", f.name, err))
	}
	return n, nil
}

// blobLooks bounds how often checkBlobs begins again. Merges come nowhere near that fast; if they did, the next check would be the one to find something.
const blobLooks = 100

func missingBlob(name string) error {
	return errs.New(errs.Corrupt, "state store file %s is missing", name)
}

// checkBlobs makes sure that every blob file that is in use is there, in full length. Pebble does so for tables when it opens a store, and learns of a
// blob file when somebody asks for a value in it, which may be long after the other copies of the value are gone.
func (s *Store) checkBlobs() error {
	for range blobLooks {
		v := s.db.DebugCurrentVersion()
		// An iterator keeps what is current, and the files of that, as they are.
		it, err := s.db.NewIter(nil)
		if err != nil {
			return diskError(err, "look at the blob files of the state store")
		}
		if s.db.DebugCurrentVersion() != v {
			// Something was merged just now. The iterator may keep what came after v.
			if err := it.Close(); err != nil {
				return diskError(err, "look at the blob files of the state store")
			}
			continue
		}
		for b := range v.BlobFiles.All() {
			name := s.fs.PathJoin(s.dir, b.Physical.FileNum.String()+blobSuffix)
			st, statErr := s.fs.Stat(name)
			switch {
			case errors.Is(statErr, fs.ErrNotExist):
				err = missingBlob(name)
			case statErr != nil:
				err = diskError(statErr, "look at state store file %s", name)
			case uint64(st.Size()) != b.Physical.Size:
				err = errs.New(errs.Corrupt, "state store file %s has %d bytes, not %d", name, st.Size(), b.Physical.Size)
			}
			if err != nil {
				break
			}
		}
		return errors.Join(err, it.Close())
	}
	return nil
}

// verifyBlob checks all blocks of a blob file, which it closes.
func (s *Store) verifyBlob(f *pacedFile) error {
	readable, err := newReadable(f)
	if err != nil {
		return err
	}
	r, err := blob.NewFileReader(context.Background(), readable, blob.FileReaderOptions{ReaderOptions: s.opts.MakeReaderOptions().ReaderOptions})
	if err != nil {
		return errors.Join(err, readable.Close())
	}
	blocks, err := blobBlocks(r)
	for _, h := range blocks {
		var b block.BufferHandle
		if b, err = r.ReadValueBlock(context.Background(), block.NoReadEnv, nil, h); err != nil {
			break
		}
		b.Release()
	}
	return errors.Join(err, r.Close())
}

// blobIndexHeader is the size of what comes before the columns of a blob file's index, which are two: blocks of a file that this one was made from,
// and where its own blocks begin, with the end of the last one behind them.
const blobIndexHeader = 4

// blobBlocks reads where the blocks of a blob file are.
func blobBlocks(r *blob.FileReader) ([]block.Handle, error) {
	b, err := r.ReadIndexBlock(context.Background(), block.NoReadEnv, nil)
	if err != nil {
		return nil, err
	}
	defer b.Release()
	index := colblk.DecodeBlock(b.BlockData(), blobIndexHeader)
	at := colblk.DecodeColumn(&index, 1, index.Rows()+1, colblk.DataTypeUint, colblk.DecodeUnsafeUints)
	out := make([]block.Handle, index.Rows())
	for i := range out {
		from, to := at.At(i), at.At(i+1)
		if to < from+block.TrailerLen {
			return nil, errs.New(errs.Corrupt, "block %d of a blob file ends before it begins", i)
		}
		out[i] = block.Handle{Offset: from, Length: to - from - block.TrailerLen}
	}
	return out, nil
}
