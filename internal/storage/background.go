package storage

import (
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
)

// background watches the flushes and merges that Pebble does by itself. It does again what failed, at once and for ever: a disk that is full
// or broken costs a processor and goes unnoticed until writes wait. Here each attempt after a failure waits longer than the one before, and
// after attemptsMax of them the store has failed.
type background struct {
	dir string
	// first is how long the first attempt after a failure waits.
	first time.Duration
	// flushes and merges count failures in a row. A flush that works says nothing of merges, which need more room.
	flushes, merges atomic.Int32
	// broken is closed when failed is set.
	failed atomic.Pointer[error]
	broken chan struct{}
	// end is closed when the store is closed.
	end <-chan struct{}
	// damaged is told of tables that the disk cannot read.
	damaged func(error) error
}

const (
	// attemptsMax is how many failures in a row are more than a bad moment; with the waits between them they take five seconds.
	attemptsMax  = 10
	attemptPause = 10 * time.Millisecond
)

// flushCategory is what Pebble calls writes of flushes.
const flushCategory = vfs.DiskWriteCategory("pebble-memtable-flush")

func newBackground(dir string, end <-chan struct{}, damaged func(error) error) *background {
	return &background{dir: dir, first: attemptPause, broken: make(chan struct{}), end: end, damaged: damaged}
}

// listen makes b learn how flushes and merges end.
func (b *background) listen(l *pebble.EventListener) {
	flushed, merged := l.FlushEnd, l.CompactionEnd
	// Pebble holds its lock while it calls these.
	l.FlushEnd = func(i pebble.FlushInfo) {
		// A flush that found nothing to write has an error too, that no caller can tell by itself.
		if i.Err == nil || errors.As(i.Err, new(*writeError)) {
			b.ended(&b.flushes, i.Err)
		}
		if flushed != nil {
			flushed(i)
		}
	}
	l.CompactionEnd = func(i pebble.CompactionInfo) {
		b.ended(&b.merges, i.Err)
		if merged != nil {
			merged(i)
		}
	}
	l.BlobFileRewriteEnd = func(i pebble.BlobFileRewriteInfo) { b.ended(&b.merges, i.Err) }
}

// ended counts how an attempt ended.
func (b *background) ended(failures *atomic.Int32, err error) {
	switch {
	case err == nil:
		failures.Store(0)
		return
	case errors.Is(err, pebble.ErrCancelledCompaction):
		return
	}
	if failures.Add(1) < attemptsMax {
		return
	}
	switch {
	case errors.As(err, new(*writeError)):
		err = errs.Wrap(errs.Unavailable, err, "the disk of the state store in %s does not take what is written to it, %d times in a row; nothing is lost. "+
			"See to its room and its health, and start the node again", b.dir, attemptsMax)
	case errors.Is(err, syscall.EIO):
		// A table cannot be read, as if a request had come upon it.
		err = b.damaged(errs.Wrap(errs.Corrupt, err, "merge tables of the state store"))
	default:
		err = errs.Wrap(errs.Unavailable, err, "the tables of the state store in %s cannot be merged, %d times in a row; nothing is lost. "+
			"See to what the system says, and start the node again", b.dir, attemptsMax)
	}
	if b.failed.CompareAndSwap(nil, &err) {
		close(b.broken)
	}
}

// err returns why the store has failed, nil if it has not.
func (b *background) err() error {
	if e := b.failed.Load(); e != nil {
		return *e
	}
	return nil
}

// wait is called before a file is made. It ends early if the store is closed, and only then if the store has failed: nobody would learn what comes of more attempts.
func (b *background) wait(failures *atomic.Int32) {
	n := failures.Load()
	switch {
	case n == 0:
		return
	case n >= attemptsMax:
		<-b.end
		return
	}
	t := time.NewTimer(b.first << (n - 1)) //nolint:forbidigo // a goroutine of Pebble waits for a real disk; what is stored does not depend on it
	defer t.Stop()
	select {
	case <-t.C:
	case <-b.end:
	}
}

// writeError is an error of writing, which says nothing of what is stored.
type writeError struct{ error }

// Unwrap returns what the disk said.
func (e *writeError) Unwrap() error { return e.error }

func wroteWith(err error) error {
	if err == nil {
		return nil
	}
	return &writeError{err}
}

// watchedFS is a disk of which background is told what comes of writing.
type watchedFS struct {
	FS
	b *background
}

// Create implements vfs.FS.
func (w watchedFS) Create(name string, c vfs.DiskWriteCategory) (File, error) {
	if strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, blobSuffix) {
		if c == flushCategory {
			w.b.wait(&w.b.flushes)
		} else {
			w.b.wait(&w.b.merges)
		}
	}
	f, err := w.FS.Create(name, c)
	if err != nil {
		return nil, wroteWith(err)
	}
	return watchedFile{f}, nil
}

// OpenDir implements vfs.FS. A table is there when its directory says so.
func (w watchedFS) OpenDir(name string) (File, error) {
	f, err := w.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return watchedFile{f}, nil
}

// MkdirAll implements vfs.FS.
func (w watchedFS) MkdirAll(dir string, perm os.FileMode) error {
	return wroteWith(w.FS.MkdirAll(dir, perm))
}

// Rename implements vfs.FS.
func (w watchedFS) Rename(from, to string) error { return wroteWith(w.FS.Rename(from, to)) }

type watchedFile struct{ File }

// Write implements vfs.File.
func (f watchedFile) Write(b []byte) (int, error) {
	n, err := f.File.Write(b)
	return n, wroteWith(err)
}

// Preallocate implements vfs.File.
func (f watchedFile) Preallocate(off, n int64) error { return wroteWith(f.File.Preallocate(off, n)) }

// Sync implements vfs.File.
func (f watchedFile) Sync() error { return wroteWith(f.File.Sync()) }

// SyncData implements vfs.File.
func (f watchedFile) SyncData() error { return wroteWith(f.File.SyncData()) }

// SyncTo implements vfs.File.
func (f watchedFile) SyncTo(n int64) (bool, error) {
	full, err := f.File.SyncTo(n)
	return full, wroteWith(err)
}

// Close implements vfs.File.
func (f watchedFile) Close() error { return wroteWith(f.File.Close()) }
