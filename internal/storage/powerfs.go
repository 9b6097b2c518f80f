package storage

import (
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// PowerFS returns a file system on top of fs that keeps written bytes in memory until they are synced. When the process is
// killed, what it had not synced is gone, as in a power cut; without it the kernel would keep those bytes. The power-loss
// drill runs its nodes on it. Names (creating, renaming, removing) take effect at once.
func PowerFS(fs FS) FS { return &powerFS{FS: fs, files: map[string]*powerData{}} }

type powerFS struct {
	vfs.FS
	mu    sync.Mutex
	files map[string]*powerData
}

// powerData is what of a file is not synced, shared by its open handles.
type powerData struct {
	mu     sync.Mutex
	writes []powerWrite
	// end is the size that the file has for those who read it here.
	end int64
}

type powerWrite struct {
	at   int64
	data []byte
}

type powerFile struct {
	vfs.File
	d   *powerData
	pos int64
}

func (p *powerFS) wrap(name string, f vfs.File, err error, fresh bool) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if st.IsDir() {
		return f, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.files[name]
	if d == nil || fresh {
		d = &powerData{end: st.Size()}
		p.files[name] = d
	}
	return &powerFile{File: f, d: d}, nil
}

func (p *powerFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := p.FS.Create(name, c)
	return p.wrap(name, f, err, true)
}

func (p *powerFS) Open(name string, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := p.FS.Open(name, o...)
	return p.wrap(name, f, err, false)
}

func (p *powerFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := p.FS.OpenReadWrite(name, c, o...)
	return p.wrap(name, f, err, false)
}

func (p *powerFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := p.FS.ReuseForWrite(from, to, c)
	p.mu.Lock()
	delete(p.files, from)
	delete(p.files, to)
	p.mu.Unlock()
	return p.wrap(to, f, err, true)
}

func (p *powerFS) Rename(from, to string) error {
	if err := p.FS.Rename(from, to); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.files[from]; d != nil {
		p.files[to] = d
		delete(p.files, from)
	} else {
		delete(p.files, to)
	}
	return nil
}

func (p *powerFS) Remove(name string) error {
	p.mu.Lock()
	delete(p.files, name)
	p.mu.Unlock()
	return p.FS.Remove(name)
}

func (f *powerFile) Write(b []byte) (int, error) {
	n, err := f.WriteAt(b, f.pos)
	f.pos += int64(n)
	return n, err
}

func (f *powerFile) WriteAt(b []byte, at int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.writes = append(f.d.writes, powerWrite{at, slices.Clone(b)})
	f.d.end = max(f.d.end, at+int64(len(b)))
	return len(b), nil
}

func (f *powerFile) Read(b []byte) (int, error) {
	n, err := f.ReadAt(b, f.pos)
	f.pos += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (f *powerFile) ReadAt(b []byte, at int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if len(f.d.writes) == 0 {
		return f.File.ReadAt(b, at)
	}
	if at >= f.d.end {
		return 0, io.EOF
	}
	want := b[:min(int64(len(b)), f.d.end-at)]
	n, err := f.File.ReadAt(want, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	clear(want[n:])
	for _, w := range f.d.writes {
		from, to := max(at, w.at), min(at+int64(len(want)), w.at+int64(len(w.data)))
		if from < to {
			copy(want[from-at:to-at], w.data[from-w.at:])
		}
	}
	if len(want) < len(b) {
		return len(want), io.EOF
	}
	return len(want), nil
}

func (f *powerFile) flush() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	for _, w := range f.d.writes {
		if _, err := f.File.WriteAt(w.data, w.at); err != nil {
			return err
		}
	}
	f.d.writes = nil
	return nil
}

func (f *powerFile) Sync() error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *powerFile) SyncData() error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.File.SyncData()
}

func (f *powerFile) SyncTo(int64) (bool, error) { return true, f.Sync() }

func (f *powerFile) Preallocate(int64, int64) error { return nil }

func (f *powerFile) Stat() (vfs.FileInfo, error) {
	st, err := f.File.Stat()
	if err != nil {
		return nil, err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return powerInfo{st, max(st.Size(), f.d.end)}, nil
}

type powerInfo struct {
	vfs.FileInfo
	size int64
}

func (i powerInfo) Size() int64 { return i.size }
