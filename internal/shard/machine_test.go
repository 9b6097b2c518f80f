package shard

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/storage"
)

// script is a module of which a test writes the behaviour as functions, named by the command.
type script struct {
	id    ModuleID
	apply map[string]func(tx *Tx) ([]byte, error)
	query func(v View, q []byte) ([]byte, error)
	fire  func(tx *Tx, key []byte) error
}

func (s *script) ID() ModuleID { return s.id }

func (s *script) Apply(tx *Tx, cmd []byte) ([]byte, error) {
	if f := s.apply[string(cmd)]; f != nil {
		return f(tx)
	}
	return nil, errs.New(errs.Invalid, "no script %q", cmd)
}

func (s *script) Query(v View, q []byte) ([]byte, error) {
	if s.query != nil {
		return s.query(v, q)
	}
	val, _ := v.Get(q)
	return val, nil
}

func (s *script) Fire(tx *Tx, key []byte) error {
	if s.fire != nil {
		return s.fire(tx, key)
	}
	return nil
}

// set is a step that stores one pair.
func set(k, v string) func(*Tx) ([]byte, error) {
	return func(tx *Tx) ([]byte, error) {
		tx.Set([]byte(k), []byte(v))
		return []byte("ok"), nil
	}
}

// bench is a machine with everything a test wants to do to it.
type bench struct {
	*testing.T
	store *storage.Store
	m     *Machine
	mod   *script
	now   time.Time
	seq   uint64
	cfg   MachineConfig
	table *[256]Module
}

func newStore(t *testing.T) *storage.Store {
	t.Helper()
	st, err := storage.OpenStore(storage.MemFS(), "state", storage.StoreConfig{Deterministic: true})
	if err != nil {
		t.Fatalf("open store: %v", err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return st
}

func newBench(t *testing.T, cfg MachineConfig, more ...Module) *bench {
	t.Helper()
	b := &bench{
		T: t, store: newStore(t), mod: &script{id: 9, apply: map[string]func(*Tx) ([]byte, error){}},
		now: time.Unix(1000, 0).UTC(), cfg: cfg,
	}
	b.table = Modules(append([]Module{b.mod}, more...)...)
	b.open()
	return b
}

func (b *bench) open() {
	b.Helper()
	m, err := OpenMachine(b.store, 7, b.table, b.cfg)
	if err != nil {
		b.Fatalf("open machine: %v", err)
	}
	b.m = m
}

// entry applies one entry and commits.
func (b *bench) entry(e []byte) Applied {
	b.Helper()
	out := Applied{Own: 1}
	if err := b.m.Apply(b.m.Applied().Index+1, 1, e, &out); err != nil {
		b.Fatalf("apply: %v", err)
	}
	if err := b.m.Commit(&out); err != nil {
		b.Fatalf("commit: %v", err)
	}
	return out
}

func (b *bench) batch(h BatchHeader, cmds ...string) []byte {
	e := AppendBatchHeader(nil, h)
	for _, c := range cmds {
		e = AppendCommand(e, Command{Module: b.mod.id, Data: []byte(c)})
	}
	return e
}

// do runs named scripts as one batch, and returns their results.
func (b *bench) do(cmds ...string) []Result {
	b.Helper()
	b.seq++
	out := b.entry(b.batch(BatchHeader{Session: 1, Seq: b.seq, Low: b.seq, Stamp: b.now}, cmds...))
	var rs []Result
	for i, a := range out.Answers {
		if a.Pos != i || a.Seq != b.seq {
			b.Fatalf("answer %d is %+v", i, a)
		}
		rs = append(rs, a.Result)
	}
	return rs
}

// run runs a function as one command.
func (b *bench) run(f func(tx *Tx) ([]byte, error)) Result {
	b.Helper()
	b.mod.apply["run"] = f
	return b.do("run")[0]
}

func (b *bench) get(key string) string {
	b.Helper()
	v, err := b.m.Query(Command{Module: b.mod.id, Data: []byte(key)})
	if err != nil {
		b.Fatalf("query %q: %v", key, err)
	}
	return string(v)
}

func (b *bench) want(key, want string) {
	b.Helper()
	if got := b.get(key); got != want {
		b.Errorf("key %q holds %q, want %q", key, got, want)
	}
}

func TestMachine_AppliesCommandsInOrder(t *testing.T) {
	b := newBench(t, MachineConfig{})
	b.mod.apply["a"], b.mod.apply["b"] = set("k", "1"), set("k", "2")
	rs := b.do("a", "b", "nothing")
	if string(rs[0].Data) != "ok" || rs[0].Revision != 1 || rs[1].Revision != 2 {
		t.Errorf("got %+v", rs)
	}
	if !errs.Is(rs[2].Err, errs.Invalid) || rs[2].Revision != 2 {
		t.Errorf("failed command: got %+v", rs[2])
	}
	b.want("k", "2")
	if got := b.m.Applied(); got != (storage.Position{Index: 1, Term: 1}) {
		t.Errorf("applied %+v", got)
	}
	if b.m.Revision() != 2 || b.m.ID() != 7 || !b.m.Stamp().Equal(b.now) {
		t.Errorf("revision %d, id %d, stamp %v", b.m.Revision(), b.m.ID(), b.m.Stamp())
	}
}

func TestMachine_ReadOnlyCommandKeepsRevision(t *testing.T) {
	b := newBench(t, MachineConfig{})
	b.mod.apply["a"] = set("k", "1")
	b.mod.apply["look"] = func(tx *Tx) ([]byte, error) {
		v, _ := tx.Get([]byte("k"))
		return v, nil
	}
	rs := b.do("a", "look")
	if string(rs[1].Data) != "1" || rs[1].Revision != 1 || b.m.Revision() != 1 {
		t.Errorf("got %+v", rs)
	}
}

func TestMachine_UnknownModule(t *testing.T) {
	b := newBench(t, MachineConfig{})
	e := AppendCommand(AppendBatchHeader(nil, BatchHeader{Session: 1, Seq: 1, Low: 1, Stamp: b.now}), Command{Module: 77})
	out := b.entry(e)
	if !errs.Is(out.Answers[0].Result.Err, errs.Unsupported) {
		t.Errorf("got %+v", out.Answers)
	}
	if _, err := b.m.Query(Command{Module: 77}); !errs.Is(err, errs.Unsupported) {
		t.Errorf("query: got %v", err)
	}
}

func TestMachine_ReopensAtTheSameState(t *testing.T) {
	b := newBench(t, MachineConfig{})
	b.m.SetConf([]byte("first"))
	b.mod.apply["a"] = func(tx *Tx) ([]byte, error) {
		tx.Set([]byte("k"), []byte("v"))
		tx.SetTimer([]byte("t"), b.now.Add(time.Hour))
		tx.Emit("set", []byte("k"), []byte("k"), []byte("v"))
		return nil, nil
	}
	b.do("a")
	var out Applied
	b.m.ApplyConf(2, 3, []byte("second"))
	if err := b.m.Commit(&out); err != nil {
		t.Fatal(err)
	}
	was := b.m
	b.open()
	if b.m.Applied() != was.Applied() || b.m.Digest() != was.Digest() || b.m.Revision() != was.Revision() ||
		string(b.m.Conf()) != "second" || !b.m.Stamp().Equal(was.Stamp()) {
		t.Errorf("reopened as %+v, was %+v", b.m.st, was.st)
	}
	due, ok := b.m.NextTimer()
	if !ok || !due.Equal(b.now.Add(time.Hour)) {
		t.Errorf("next timer %v %v", due, ok)
	}
	if !b.m.SessionApplied(1, 1) || b.m.sessions[1].low != 2 {
		t.Errorf("session is forgotten: low %d", b.m.sessions[1].low)
	}
}

func TestMachine_StampNeverGoesBack(t *testing.T) {
	b := newBench(t, MachineConfig{})
	var seen []time.Time
	b.mod.apply["now"] = func(tx *Tx) ([]byte, error) {
		seen = append(seen, tx.Now())
		return nil, nil
	}
	b.do("now")
	late := b.now
	b.now = b.now.Add(-time.Minute)
	b.do("now")
	if !seen[1].Equal(late) {
		t.Errorf("clock went from %v to %v", seen[0], seen[1])
	}
}

func TestMachine_EmptyEntryMovesIndexOnly(t *testing.T) {
	b := newBench(t, MachineConfig{})
	d := b.m.Digest()
	b.entry(nil)
	if b.m.Applied().Index != 1 || b.m.Digest() != d || b.m.Revision() != 0 {
		t.Errorf("got %+v", b.m.st)
	}
}

func TestMachine_RefusesEntriesItDoesNotUnderstand(t *testing.T) {
	b := newBench(t, MachineConfig{})
	good := b.batch(BatchHeader{Session: 1, Seq: 1, Low: 1, Stamp: b.now}, "x")
	f := func(name string, e []byte, want errs.Kind) {
		t.Helper()
		m, err := OpenMachine(newStore(t), 7, b.table, MachineConfig{})
		if err != nil {
			t.Fatal(err)
		}
		var out Applied
		if err := m.Apply(1, 1, e, &out); !errs.Is(err, want) {
			t.Errorf("%s: got %v, want kind %v", name, err, want)
		}
	}
	f("short", good[:10], errs.Corrupt)
	f("later version", append([]byte{2}, good[1:]...), errs.Unsupported)
	f("unknown kind", append([]byte{1, 9}, good[2:]...), errs.Corrupt)
	f("half a command", good[:len(good)-1], errs.Corrupt)
	f("command without length", append(slices.Clone(good), 9), errs.Corrupt)
}

func TestMachine_OutOfOrderPanics(t *testing.T) {
	b := newBench(t, MachineConfig{})
	f := func(name string, do func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s: no panic", name)
			}
		}()
		do()
	}
	f("gap", func() { _ = b.m.Apply(2, 1, nil, &Applied{}) })
	f("conf gap", func() { b.m.ApplyConf(5, 1, nil) })
	f("module twice", func() { Modules(&script{id: 3}, &script{id: 3}) })
	f("module of the shard", func() { Modules(&script{id: ModuleShard}) })
}

func TestMachine_DamagedStateRow(t *testing.T) {
	st := newStore(t)
	b := st.Batch()
	b.Set(append(placeOf(7, 1), byte(ModuleShard), rowState), []byte("junk"))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenMachine(st, 7, Modules(), MachineConfig{}); !errs.Is(err, errs.Corrupt) {
		t.Errorf("got %v", err)
	}
}

func TestMachine_DamagedSessionRow(t *testing.T) {
	st := newStore(t)
	b := st.Batch()
	b.Set(append(placeOf(7, 1), append([]byte{byte(ModuleShard)}, sessionKey(4)...)...), []byte("short"))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenMachine(st, 7, Modules(), MachineConfig{}); !errs.Is(err, errs.Corrupt) {
		t.Errorf("got %v", err)
	}
}

func TestMachine_DigestSeesEveryWrite(t *testing.T) {
	digest := func(cmds ...func(*Tx) ([]byte, error)) uint64 {
		b := newBench(t, MachineConfig{})
		for _, c := range cmds {
			b.run(c)
		}
		return b.m.Digest()
	}
	del := func(tx *Tx) ([]byte, error) {
		tx.Delete([]byte("k"))
		return nil, nil
	}
	all := []uint64{digest(), digest(set("k", "1")), digest(set("k", "2")), digest(set("l", "1")), digest(set("k", "1"), set("k", "2")), digest(set("k", "1"), del), digest(set("k", "")), digest(del)}
	for i, a := range all {
		for j, b := range all[:i] {
			if a == b {
				t.Errorf("digests %d and %d are equal", i, j)
			}
		}
	}
	if digest(set("k", "1")) != digest(set("k", "1")) {
		t.Errorf("equal writes, different digests")
	}
}

func TestMachine_ShardsDoNotSeeEachOther(t *testing.T) {
	b := newBench(t, MachineConfig{})
	other, err := OpenMachine(b.store, 8, b.table, MachineConfig{})
	if err != nil {
		t.Fatal(err)
	}
	b.run(set("k", "7"))
	if v, _ := other.Query(Command{Module: 9, Data: []byte("k")}); v != nil {
		t.Errorf("shard 8 sees %q", v)
	}
}

func TestMachine_WakesAreHandedOutOnce(t *testing.T) {
	b := newBench(t, MachineConfig{})
	b.mod.apply["w"] = func(tx *Tx) ([]byte, error) {
		tx.Wake([]byte("x"))
		tx.Emit("set", []byte("y"), []byte("y"), nil)
		return nil, nil
	}
	b.mod.apply["bad"] = func(tx *Tx) ([]byte, error) {
		tx.Wake([]byte("z"))
		return nil, errs.New(errs.Conflict, "no")
	}
	b.seq++
	out := b.entry(b.batch(BatchHeader{Session: 1, Seq: b.seq, Low: 1, Stamp: b.now}, "w", "bad"))
	var got []string
	for _, w := range out.Wakes {
		got = append(got, fmt.Sprintf("%d%s", w.Module, w.Key))
	}
	if s := strings.Join(got, " "); s != "9x 9y" {
		t.Errorf("woke %q", s)
	}
	if out := b.entry(nil); len(out.Wakes) != 0 {
		t.Errorf("woke again: %v", out.Wakes)
	}
}

func TestMachine_QueryIsConsistentWhileApplying(t *testing.T) {
	b := newBench(t, MachineConfig{})
	b.mod.query = func(v View, _ []byte) ([]byte, error) {
		x, _ := v.Get([]byte("x"))
		y, _ := v.Get([]byte("y"))
		if !bytes.Equal(x, y) {
			return nil, fmt.Errorf("x is %q, y is %q", x, y)
		}
		if len(x) == 8 && binary.BigEndian.Uint64(x) != uint64(v.Revision()) {
			return nil, fmt.Errorf("x is %x at revision %d", x, v.Revision())
		}
		return nil, nil
	}
	done, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(failed)
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := b.m.Query(Command{Module: 9}); err != nil {
				failed <- err
				return
			}
		}
	}()
	for range 200 {
		b.run(func(tx *Tx) ([]byte, error) {
			v := binary.BigEndian.AppendUint64(nil, uint64(tx.Revision()))
			tx.Set([]byte("x"), v)
			tx.Set([]byte("y"), v)
			return nil, nil
		})
	}
	close(done)
	if err := <-failed; err != nil {
		t.Error(err)
	}
}

func TestMachine_DiskFailureIsSticky(t *testing.T) {
	st, err := storage.OpenStore(storage.MemFS(), "state", storage.StoreConfig{Deterministic: true})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close() //nolint:errcheck // a store in memory
	m, err := OpenMachine(st, 7, Modules(), MachineConfig{})
	if err != nil {
		t.Fatal(err)
	}
	m.fail(errs.New(errs.Corrupt, "first"))
	m.fail(errs.New(errs.Corrupt, "second"))
	var out Applied
	if err := m.Commit(&out); err == nil || err.Error() != "first" {
		t.Errorf("got %v", err)
	}
}

// A row that cannot be read is not one that is not there.
func TestQuery_FailsWithTheDisk(t *testing.T) {
	bad := false
	disk := errorfs.Wrap(storage.MemFS(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if bad && op.Kind.ReadOrWrite() == errorfs.OpIsRead {
			return syscall.EIO
		}
		return nil
	}))
	store, err := storage.OpenStore(disk, "state", storage.StoreConfig{Deterministic: true})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close() //nolint:errcheck // a store in memory
	b := newBench(t, MachineConfig{})
	b.store = store
	b.open()
	b.run(set("k", "1"))
	if err := store.Flush(); err != nil {
		t.Fatal(err)
	}
	b.mod.query = func(v View, _ []byte) ([]byte, error) {
		val, ok := v.Get([]byte("k"))
		return fmt.Append(nil, string(val), ok), nil
	}
	scan := func(v View, _ []byte) ([]byte, error) { return []byte(scanAll(v, "", "")), nil }
	bad = true
	for _, query := range []func(View, []byte) ([]byte, error){b.mod.query, scan} {
		b.mod.query = query
		if got, err := b.m.Query(Command{Module: 9}); err == nil {
			t.Errorf("answered %q", got)
		}
	}
	bad = false
}
