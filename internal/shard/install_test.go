package shard

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/storage"
)

// fill gives a machine rows of each kind.
func fill(b *bench, n int) {
	for i := range n {
		b.run(func(tx *Tx) ([]byte, error) {
			tx.Set(fmt.Append(nil, "key", i), fmt.Append(nil, "value", i))
			tx.SetTimer(fmt.Append(nil, "t", i), b.now.Add(time.Hour))
			tx.Emit("set", []byte("k"), []byte("k"), fmt.Append(nil, i))
			return nil, nil
		})
	}
}

// send moves a whole state, in chunks of a size.
func send(t *testing.T, from, to *Machine, size int) {
	t.Helper()
	if err := receive(t, from, to, size).Finish(); err != nil {
		t.Fatal(err)
	}
}

// receive is send but for its end.
func receive(t *testing.T, from, to *Machine, size int) *Installer {
	t.Helper()
	r, err := from.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	in, err := to.Install()
	if err != nil {
		t.Fatal(err)
	}
	for {
		c, err := r.Next(size)
		if err != nil {
			t.Fatal(err)
		}
		if c == nil {
			break
		}
		if err := in.Add(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return in
}

func TestInstall_GivesTheSameState(t *testing.T) {
	for _, size := range []int{1, 100, 1 << 20} {
		a, b := newBench(t, MachineConfig{}), newBench(t, MachineConfig{})
		a.m.SetConf([]byte("conf"))
		fill(a, 30)
		fill(b, 3)
		b.run(set("leftover", "x"))
		// Later than any in what is received.
		b.run(func(tx *Tx) ([]byte, error) { tx.SetTimer([]byte("t0"), a.now.Add(10*time.Hour)); return nil, nil })
		b.pass(8 * 3600)
		send(t, a.m, b.m, size)
		if b.m.Applied() != a.m.Applied() || b.m.Digest() != a.m.Digest() || b.m.Revision() != a.m.Revision() || string(b.m.Conf()) != "conf" {
			t.Errorf("chunks of %d: got %+v, want %+v", size, b.m.st, a.m.st)
		}
		b.want("key29", "value29")
		b.want("leftover", "")
		if !b.m.SessionApplied(1, 30) {
			t.Errorf("the session table did not come along")
		}
		if due, ok := b.m.NextTimer(); !ok || !due.Equal(a.now.Add(time.Hour)) {
			t.Errorf("next timer %v %v", due, ok)
		}
		if cs, err := b.m.Changes(29, 100); err != nil || len(cs.Changes) != 1 {
			t.Errorf("changes: %+v %v", cs, err)
		}
		// It goes on from there, also after a restart.
		b.open()
		b.seq = a.seq
		b.run(set("after", "y"))
		b.want("after", "y")
		b.want("key0", "value0")
	}
}

func TestInstall_CutShortLeavesTheOldState(t *testing.T) {
	a, b := newBench(t, MachineConfig{}), newBench(t, MachineConfig{})
	fill(a, 5)
	b.run(set("mine", "1"))
	r, err := a.m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // a read view
	in, err := b.m.Install()
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.Next(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Add(c); err != nil {
		t.Fatal(err)
	}
	b.want("mine", "1")
	b.want("key0", "")
	b.open()
	b.want("mine", "1")
	b.want("key0", "")
	// What was left of the first attempt is not in the way of a second.
	send(t, a.m, b.m, 50)
	b.want("mine", "")
	b.want("key4", "value4")
}

// What came of a transfer that was given up is no part of the next one's state, and no state that is over stays on the disk.
func TestInstall_LeavesNothingElse(t *testing.T) {
	a, b := newBench(t, MachineConfig{}), newBench(t, MachineConfig{})
	fill(b, 3)
	fill(a, 5)
	a.run(set("gone", "1"))
	receive(t, a.m, b.m, 200)
	a.run(func(tx *Tx) ([]byte, error) { tx.Delete([]byte("gone")); return nil, nil })
	send(t, a.m, b.m, 200)
	b.want("key4", "value4")
	b.want("gone", "")
	rows := func(b *bench) int {
		t.Helper()
		n := 0
		var err error
		for range b.store.Scan(placeOf(b.m.id, 0), placeOf(b.m.id+1, 0), &err) {
			n++
		}
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if got, want := rows(b), rows(a); got != want {
		t.Errorf("the store holds %d rows of the shard, want %d", got, want)
	}
	// A crash in the middle of a transfer.
	receive(t, a.m, b.m, 200)
	b.open()
	if got, want := rows(b), rows(a); got != want {
		t.Errorf("after a crash the store holds %d rows of the shard, want %d", got, want)
	}
}

func TestInstall_MalformedChunks(t *testing.T) {
	b := newBench(t, MachineConfig{})
	in, err := b.m.Install()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]byte{{5}, {1, 'k'}, {1, 'k', 3, 'v'}, {0xff, 0xff, 0xff}} {
		if err := in.Add(c); !errs.Is(err, errs.Corrupt) {
			t.Errorf("chunk %x: got %v", c, err)
		}
	}
}

func TestInstall_InTheMiddleOfAnApplyPanics(t *testing.T) {
	b := newBench(t, MachineConfig{})
	in, err := b.m.Install()
	if err != nil {
		t.Fatal(err)
	}
	b.mod.apply["x"] = set("k", "v")
	if err := b.m.Apply(1, 1, b.batch(BatchHeader{Session: 1, Seq: 1, Low: 1, Stamp: b.now}, "x"), &Applied{}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Errorf("no panic")
		}
	}()
	_ = in.Finish()
}

func TestSnapshot_StaysAsItWas(t *testing.T) {
	a, b := newBench(t, MachineConfig{}), newBench(t, MachineConfig{})
	fill(a, 5)
	r, err := a.m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	at := a.m.Applied()
	fill(a, 20)
	if r.Position() != at {
		t.Errorf("snapshot at %+v, want %+v", r.Position(), at)
	}
	in, err := b.m.Install()
	if err != nil {
		t.Fatal(err)
	}
	for {
		c, err := r.Next(64)
		if err != nil {
			t.Fatal(err)
		}
		if c == nil {
			break
		}
		if err := in.Add(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := in.Finish(); err != nil {
		t.Fatal(err)
	}
	if b.m.Applied() != at {
		t.Errorf("installed %+v, want %+v", b.m.Applied(), at)
	}
	b.want("key4", "value4")
	b.want("key5", "")
}

func TestWipe_ForgetsEverything(t *testing.T) {
	a, b := newBench(t, MachineConfig{}), newBench(t, MachineConfig{})
	fill(a, 5)
	send(t, a.m, b.m, 200)
	b.m.SetConf([]byte("conf"))
	if err := b.m.Wipe(); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		if b.m.Applied().Index != 0 || b.m.Revision() != 0 || b.m.Conf() != nil || b.m.SessionApplied(1, 1) {
			t.Errorf("got %+v", b.m.st)
		}
		if _, ok := b.m.NextTimer(); ok {
			t.Errorf("a timer is left")
		}
		if at, err := b.m.Installed(); err != nil || at != (storage.Position{}) {
			t.Errorf("a snapshot at %+v is still said to be installed, %v", at, err)
		}
		b.want("key0", "")
	}
	check()
	b.open()
	check()
}

func TestQuery_DuringInstallsSeesOneState(t *testing.T) {
	a, b := newBench(t, MachineConfig{}), newBench(t, MachineConfig{})
	fill(a, 10)
	b.run(set("key9", "old"))
	done, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(failed)
		for {
			select {
			case <-done:
				return
			default:
			}
			v, err := b.m.Query(Command{Module: 9, Data: []byte("key9")})
			if err != nil || string(v) != "old" && string(v) != "value9" {
				failed <- fmt.Errorf("got %q %w", v, err)
				return
			}
		}
	}()
	for range 20 {
		send(t, a.m, b.m, 200)
	}
	close(done)
	if err := <-failed; err != nil {
		t.Error(err)
	}
}

func TestQuery_RefusedWhileRebuilding(t *testing.T) {
	a := newBench(t, MachineConfig{})
	fill(a, 3)
	q := Command{Module: 9, Data: []byte("key1")}
	a.m.SetRebuilding(true)
	if _, err := a.m.Query(q); !errs.Is(err, errs.Unavailable) {
		t.Errorf("got %v", err)
	}
	a.m.SetRebuilding(false)
	if got, err := a.m.Query(q); err != nil || string(got) != "value1" {
		t.Errorf("got %q, %v", got, err)
	}
}

// hungDisk is a disk on which, once it is armed, no table is synced before it goes on.
type hungDisk struct {
	storage.FS
	armed       atomic.Bool
	waits, goOn chan struct{}
}

type hungFile struct {
	vfs.File
	on *hungDisk
}

func (d *hungDisk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.Create(name, c)
	if err != nil || !d.armed.Load() || !strings.HasSuffix(name, ".sst") {
		return f, err
	}
	return hungFile{f, d}, nil
}

func (f hungFile) wait() {
	select {
	case f.on.waits <- struct{}{}:
	default:
	}
	<-f.on.goOn
}

func (f hungFile) Sync() error     { f.wait(); return f.File.Sync() }
func (f hungFile) SyncData() error { f.wait(); return f.File.SyncData() }

func TestQuery_DoesNotWaitForTheDiskOfAnInstall(t *testing.T) {
	a, b := newBench(t, MachineConfig{}), newBench(t, MachineConfig{})
	fill(a, 3)
	disk := &hungDisk{FS: storage.MemFS(), waits: make(chan struct{}, 1), goOn: make(chan struct{})}
	store, err := storage.OpenStore(disk, "state", storage.StoreConfig{})
	if err != nil {
		t.Fatal(err)
	}
	b.store = store
	b.open()
	in := receive(t, a.m, b.m, 200)
	disk.armed.Store(true)
	finished := make(chan error, 1)
	go func() { finished <- errors.Join(in.Finish(), store.Flush()) }()
	<-disk.waits
	q := Command{Module: 9, Data: []byte("key1")}
	if got, err := b.m.Query(q); err != nil || string(got) != "value1" {
		t.Errorf("got %q, %v", got, err)
	}
	b.m.SetRebuilding(true)
	if _, err := b.m.Query(q); !errs.Is(err, errs.Unavailable) {
		t.Errorf("while rebuilding: %v", err)
	}
	close(disk.goOn)
	if err := errors.Join(<-finished, store.Close()); err != nil {
		t.Error(err)
	}
}
