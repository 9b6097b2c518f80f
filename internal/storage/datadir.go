package storage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
)

// Dir is an open data directory: it is locked against other processes while it is open.
type Dir struct {
	fs   FS
	path string
	lock io.Closer

	Log      *Log
	Store    *Store
	Recovery *Recovery
	// StoreLost says that the state store was damaged and has been emptied.
	StoreLost bool

	// mu guards damaged: that the mark is there for damage that was found after OpenDir, and must stay.
	mu      sync.Mutex
	damaged bool
}

// damageMark is the file that says that the state store must not be used again.
const damageMark = "STATE-DAMAGED"

// OpenDir opens a node's data directory, making it if there is none. A damaged state store is emptied, since everything in
// it can be had from the peers; where it is the only copy, OpenDir fails with errs.Corrupt and leaves it, and so it does with
// a raft log that has lost records. If the system does not let one of them be opened, which says nothing of what is in it,
// OpenDir fails with errs.Unavailable. If another process has the directory, it fails with errs.Exists; if it was made for
// another owner, or has files that are none of Quorate's, with errs.Invalid.
func OpenDir(at FS, path string, owner Owner, lc LogConfig, sc StoreConfig) (_ *Dir, err error) {
	if err := at.MkdirAll(path, 0o755); err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "make data directory %s", path)
	}
	// Before anything is made in it.
	if err := refuseForeign(at, path); err != nil {
		return nil, err
	}
	d := &Dir{fs: at, path: path}
	if d.lock, err = at.Lock(at.PathJoin(path, "LOCK")); err != nil {
		return nil, errs.Wrap(errs.Exists, err, "data directory %s cannot be locked; another process may be using it", path)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	// Before anything else is made or believed.
	if err := d.claim(owner); err != nil {
		return nil, err
	}
	if err := d.claimMembers(owner.Members); err != nil {
		return nil, err
	}
	state := at.PathJoin(path, "state")
	marked, err := d.marked()
	if err != nil {
		return nil, err
	}
	if !marked {
		if err := d.checkState(sc.OnlyCopy); err != nil {
			return nil, err
		}
		d.Store, err = OpenStore(at, state, sc)
	}
	if err != nil && refused(err) {
		return nil, errs.Wrap(errs.Unavailable, err, "the state store in %s cannot be opened; nothing was changed. See to what the system says and start again", path)
	}
	if (marked || err != nil) && sc.OnlyCopy {
		if err == nil {
			err = errs.New(errs.Corrupt, "an earlier start found it damaged")
		}
		return nil, errs.Wrap(errs.Corrupt, err, "the state store in %s cannot be used, and this node has no peers to fetch it from; nothing was changed. Restore a copy of the data directory", path)
	}
	if marked || err != nil {
		d.StoreLost = true
		if err := d.mark(); err != nil {
			return nil, err
		}
		if err := RemoveStore(at, state); err != nil {
			return nil, err
		}
		if d.Store, err = OpenStore(at, state, sc); err != nil {
			return nil, err
		}
	}
	if err := d.checkLog(sc.OnlyCopy); err != nil {
		return nil, err
	}
	lc.OnlyCopy = lc.OnlyCopy || sc.OnlyCopy
	if d.Log, d.Recovery, err = OpenLog(at, at.PathJoin(path, "log"), lc); err != nil {
		return nil, err
	}
	return d, nil
}

// there says whether any of the names in a folder of the data directory is that of a file of its kind.
func (d *Dir) there(folder string, is func(name string) bool) (bool, error) {
	names, err := d.fs.List(d.fs.PathJoin(d.path, folder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, errs.Wrap(errs.Unavailable, err, "list %s in %s; nothing was changed", folder, d.path)
	}
	return slices.ContainsFunc(names, is), nil
}

func (d *Dir) hasLog() (bool, error) {
	return d.there("log", func(name string) bool {
		_, segment := parseSegmentName(name)
		return segment || name == identityName
	})
}

// A part of a data directory that is not there at all, though it must have been, is on a disk that is not mounted, or somebody has taken it away. A node
// that went on without would give up what it has, and so would all of them if the same was done to all.

// checkState refuses a raft log without a state store. The only copy of a log is left to its owner, who may be able to apply all of it again.
func (d *Dir) checkState(onlyCopy bool) error {
	log, err := d.hasLog()
	if err != nil || !log || onlyCopy {
		return err
	}
	state, err := d.there("state", func(name string) bool {
		return strings.HasPrefix(name, "MANIFEST-") || strings.HasPrefix(name, "marker.") || strings.HasSuffix(name, ".sst")
	})
	if err != nil || state {
		return err
	}
	return d.missing("a raft log and no state store", onlyCopy)
}

// checkLog refuses a state store without a raft log: with a new one the node would have forgotten its votes.
func (d *Dir) checkLog(onlyCopy bool) error {
	log, err := d.hasLog()
	if err != nil || log {
		return err
	}
	empty := true
	for range d.Store.Scan(nil, nil, &err) {
		empty = false
		break
	}
	if err != nil || empty {
		return err
	}
	return d.missing("a state store and no raft log", onlyCopy)
}

func (d *Dir) missing(what string, onlyCopy bool) error {
	todo := "give this node an empty data directory, and its peers rebuild it; one node at a time"
	if onlyCopy {
		todo = "restore a copy of the data directory"
	}
	return errs.New(errs.Invalid, "data directory %s has %s; nothing was changed. If that is on a disk of its own, mount it; if it is lost, %s", d.path, what, todo)
}

// refused says whether an error tells of the system that a file is on, and not of what is in it. A disk that fails to write may be able to read.
func refused(err error) bool {
	return errors.As(err, new(*writeError)) || slices.ContainsFunc([]error{
		fs.ErrPermission, syscall.EROFS, syscall.EMFILE, syscall.ENFILE, syscall.ENOSPC, syscall.EDQUOT, syscall.ENOMEM,
	}, func(e error) bool { return errors.Is(err, e) })
}

// diskError gives what the disk answered its kind: Corrupt, which has the data given up where peers have them too, unless the
// system would not let us at them.
func diskError(err error, format string, args ...any) error {
	kind := errs.Corrupt
	if refused(err) {
		kind = errs.Unavailable
	}
	return errs.Wrap(kind, err, format, args...)
}

// MarkDamaged makes the next OpenDir empty the state store.
func (d *Dir) MarkDamaged() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.damaged = true
	return d.mark()
}

// marked says whether an earlier start, or the node while it ran, found the state store damaged. A mark that cannot be looked for may be
// there.
func (d *Dir) marked() (bool, error) {
	name := d.fs.PathJoin(d.path, damageMark)
	switch _, err := d.fs.Stat(name); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, errs.Wrap(errs.Unavailable, err, "whether there is a file %s, which would say that the state store is damaged, is not known; nothing was changed. "+
			"See to what the system says and start again", name)
	}
}

func (d *Dir) mark() error {
	f, err := d.fs.Create(d.fs.PathJoin(d.path, damageMark), vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("mark %s as damaged: %w", d.path, err)
	}
	return errors.Join(f.Sync(), f.Close(), syncDir(d.fs, d.path))
}

// Repaired removes the mark that OpenDir found or made: everything that the damage concerns is noted in the log, durably. It
// leaves one that MarkDamaged made since.
func (d *Dir) Repaired() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.StoreLost || d.damaged {
		return nil
	}
	if err := d.fs.Remove(d.fs.PathJoin(d.path, damageMark)); err != nil {
		return fmt.Errorf("remove damage mark of %s: %w", d.path, err)
	}
	return syncDir(d.fs, d.path)
}

// Close closes log and store and gives up the lock.
func (d *Dir) Close() error {
	var all []error
	if d.Log != nil {
		all = append(all, d.Log.Close())
	}
	if d.Store != nil {
		all = append(all, d.Store.Close())
	}
	if d.lock != nil {
		all = append(all, d.lock.Close())
	}
	return errors.Join(all...)
}
