package storage

import (
	"context"
	"errors"
	"io/fs"

	"github.com/cockroachdb/pebble/v2/objstorage"
	"github.com/cockroachdb/pebble/v2/sstable"

	"github.com/quorate/quorate/internal/errs"
)

// Verify reads every file of rows from the disk, past the cache, and checks each block's checksum, then the order of all keys. It
// returns the first damage found. It may run beside everything else.
func (s *Store) Verify() error {
	if err := s.VerifyTables(func(int) error { return nil }); err != nil {
		return err
	}
	return diskError(s.db.CheckLevels(nil), "check state store")
}

// VerifyTables reads every table and blob file from the disk, past the cache, and checks each block's checksum. It returns the first
// damage found, as errs.Corrupt. It may run beside everything else; pace is called with the number of bytes just read, and
// may wait. An error of pace ends the check and is returned as it is.
func (s *Store) VerifyTables(pace func(n int) error) error {
	levels, err := s.db.SSTables()
	if err != nil {
		return diskError(err, "list the tables of the state store")
	}
	for _, tables := range levels {
		for _, t := range tables {
			if err := s.verifyFile(s.fs.PathJoin(s.dir, t.BackingSSTNum.String()+".sst"), pace, s.verifyTable); err != nil {
				return err
			}
		}
	}
	if err := s.checkBlobs(); err != nil {
		return err
	}
	blobs, err := s.fs.finished(s.dir)
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "list the blob files of the state store")
	}
	for _, name := range blobs {
		if err := s.verifyFile(name, pace, s.verifyBlob); err != nil {
			return err
		}
	}
	return nil
}

// verifyFile checks a file that may be gone; check closes it.
func (s *Store) verifyFile(name string, pace func(n int) error, check func(*pacedFile) error) error {
	// Past blobFS, which would keep damage from being told apart from a file that cannot be opened.
	file, err := s.fs.FS.Open(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// It was merged into others meanwhile.
		return nil
	case err != nil:
		// This says nothing of the bytes: the process may be out of descriptors.
		return errs.Wrap(errs.Unavailable, err, "open state store file %s to check it", name)
	}
	f := &pacedFile{File: file, pace: pace}
	err = check(f)
	switch {
	case f.ended != nil:
		return f.ended
	case err == nil:
		return nil
	}
	if _, gone := s.fs.Stat(name); errors.Is(gone, fs.ErrNotExist) {
		// Whoever merged it meanwhile read it too, and would have noticed what matters.
		return nil
	}
	return diskError(err, "check state store file %s", name)
}

// verifyTable checks all blocks of a table, also those that a scan passes by, such as its filter.
func (s *Store) verifyTable(f *pacedFile) error {
	readable, err := newReadable(f)
	if err != nil {
		return err
	}
	// The reader closes the file, also when it cannot be made.
	r, err := sstable.NewReader(context.Background(), readable, s.opts.MakeReaderOptions())
	if err != nil {
		return err
	}
	return errors.Join(r.ValidateBlockChecksums(), r.Close())
}

// newReadable takes a file over, and closes it on failure.
func newReadable(f *pacedFile) (objstorage.Readable, error) {
	r, err := sstable.NewSimpleReadable(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

// pacedFile waits after each read. It remembers why it was told to stop, since Pebble would take that for damage.
type pacedFile struct {
	File
	pace  func(n int) error
	ended error
}

// ReadAt implements io.ReaderAt.
func (f *pacedFile) ReadAt(p []byte, off int64) (int, error) {
	if f.ended != nil {
		return 0, f.ended
	}
	n, err := f.File.ReadAt(p, off)
	if f.ended = f.pace(n); f.ended != nil {
		return 0, f.ended
	}
	return n, err
}

// verifyBytes is about how much of the log Verify reads at once.
const verifyBytes = 256 << 10

// Verify reads every entry that is there when it is called, and not cut before its turn comes, and checks its checksum. It
// returns the first damage found, as errs.Corrupt. It may run beside everything else; pace is as in Store.VerifyTables.
// What is not an entry is checked by the next start only.
func (l *Log) Verify(pace func(n int) error) error {
	for _, s := range l.Shards() {
		next, end := l.Bounds(s)
		for {
			first, last := l.Bounds(s)
			next = max(next, first)
			if last = min(last, end); next > last {
				break
			}
			es, err := l.Entries(s, next, last+1, verifyBytes)
			switch errs.KindOf(err) {
			case errs.Compacted, errs.NotFound:
				// The log was cut, or its end replaced, since its bounds were looked at.
				continue
			}
			if err != nil {
				return err
			}
			n := 0
			for i := range es {
				n += entryHeaderBytes + len(es[i].Data)
			}
			next += uint64(len(es))
			if err := pace(n); err != nil {
				return err
			}
		}
	}
	return nil
}
