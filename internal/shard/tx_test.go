package shard

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/errs"
)

// scanAll renders what a scan yields.
func scanAll(v View, from, to string) string {
	var out []string
	var end []byte
	if to != "" {
		end = []byte(to)
	}
	for k, val := range v.Scan([]byte(from), end) {
		out = append(out, string(k)+"="+string(val))
	}
	return strings.Join(out, " ")
}

func TestTx_ReadsItsOwnWrites(t *testing.T) {
	b := newBench(t, MachineConfig{})
	b.run(func(tx *Tx) ([]byte, error) {
		for _, k := range []string{"a", "c", "e", "g"} {
			tx.Set([]byte(k), []byte("stored"))
		}
		return nil, nil
	})
	b.run(func(tx *Tx) ([]byte, error) {
		tx.Set([]byte("b"), []byte("new"))
		tx.Set([]byte("c"), []byte("over"))
		tx.Delete([]byte("e"))
		tx.Set([]byte("h"), []byte("new"))
		tx.Set([]byte("0"), []byte("new"))
		f := func(from, to, want string) {
			t.Helper()
			if got := scanAll(tx, from, to); got != want {
				t.Errorf("scan %q to %q: got %q, want %q", from, to, got, want)
			}
		}
		f("", "", "0=new a=stored b=new c=over g=stored h=new")
		f("b", "g", "b=new c=over")
		f("d", "f", "")
		f("x", "", "")
		if v, ok := tx.Get([]byte("e")); ok {
			t.Errorf("deleted key holds %q", v)
		}
		if v, ok := tx.Get([]byte("c")); !ok || string(v) != "over" {
			t.Errorf("got %q %v", v, ok)
		}
		// A scan sees rows that came after the last one.
		tx.Set([]byte("bb"), []byte("newer"))
		f("b", "c", "b=new bb=newer")
		return nil, nil
	})
	b.want("e", "")
	b.want("bb", "newer")
}

func TestTx_ScanStopsEarly(t *testing.T) {
	b := newBench(t, MachineConfig{})
	b.run(func(tx *Tx) ([]byte, error) {
		tx.Set([]byte("a"), nil)
		tx.Set([]byte("c"), nil)
		return nil, nil
	})
	b.run(func(tx *Tx) ([]byte, error) {
		tx.Set([]byte("b"), nil)
		tx.Set([]byte("c"), []byte("x"))
		tx.Set([]byte("d"), nil)
		for _, stop := range []string{"a", "b", "c", "d"} {
			last := ""
			for k := range tx.Scan(nil, nil) {
				if last = string(k); last == stop {
					break
				}
			}
			if last != stop {
				t.Errorf("stopped at %q, want %q", last, stop)
			}
		}
		return nil, nil
	})
}

func TestTx_ErrorDiscardsEverything(t *testing.T) {
	b := newBench(t, MachineConfig{})
	b.run(set("k", "old"))
	digest := b.m.Digest()
	r := b.run(func(tx *Tx) ([]byte, error) {
		tx.Set([]byte("k"), []byte("new"))
		tx.Set([]byte("fresh"), []byte("new"))
		_ = scanAll(tx, "", "")
		tx.Delete([]byte("k"))
		tx.SetTimer([]byte("t"), b.now)
		tx.Emit("set", []byte("k"), []byte("k"), []byte("new"))
		return nil, errs.New(errs.Conflict, "no")
	})
	if !errs.Is(r.Err, errs.Conflict) || r.Revision != 1 {
		t.Errorf("got %+v", r)
	}
	b.want("k", "old")
	b.want("fresh", "")
	if b.m.Digest() != digest {
		t.Errorf("digest changed")
	}
	if cs, err := b.m.Changes(0, 100); err != nil || len(cs.Changes) != 0 {
		t.Errorf("changes: %+v %v", cs, err)
	}
	if got := b.do("run")[0]; !errs.Is(got.Err, errs.Conflict) {
		t.Errorf("again: got %+v", got)
	}
}

// collector stores what was put off, as one row.
type collector struct{ script }

func (c *collector) Finish(tx *Tx, items []any) { tx.Set([]byte("items"), fmt.Append(nil, items...)) }

// What a command has put off to the end of the entry is undone with it, and is a write otherwise.
func TestTx_DeferIsUndoneWithItsCommand(t *testing.T) {
	c := &collector{script{id: 8}}
	b := newBench(t, MachineConfig{}, c)
	put := func(item string, err error) func(*Tx) ([]byte, error) {
		return func(tx *Tx) ([]byte, error) { tx.Defer(item); return nil, err }
	}
	refused := errs.New(errs.Conflict, "no")
	c.apply = map[string]func(*Tx) ([]byte, error){"a": put("a", nil), "no": put("no", refused), "b": put("b", nil)}
	call := func(name string) func(*Tx) ([]byte, error) {
		return func(tx *Tx) ([]byte, error) { return tx.Call(Command{Module: 8, Data: []byte(name)}) }
	}
	b.mod.apply["a"], b.mod.apply["no"], b.mod.apply["b"] = call("a"), call("no"), call("b")
	// A part that is undone leaves the rest.
	b.mod.apply["part"] = func(tx *Tx) ([]byte, error) { _, _ = call("no")(tx); return call("b")(tx) }
	rs := b.do("a", "no", "part", "no")
	if rs[0].Revision != 1 || rs[1].Revision != 1 || rs[2].Revision != 2 || !errs.Is(rs[1].Err, errs.Conflict) {
		t.Errorf("answers: %+v", rs)
	}
	got, err := b.m.Query(Command{Module: 8, Data: []byte("items")})
	if err != nil || string(got) != "a b" && string(got) != "ab" {
		t.Errorf("stored are %q, %v", got, err)
	}
}

func TestTx_TryUndoesOnlyItsPart(t *testing.T) {
	b := newBench(t, MachineConfig{})
	r := b.run(func(tx *Tx) ([]byte, error) {
		tx.Set([]byte("a"), []byte("1"))
		_, err := tx.Try(func() ([]byte, error) {
			tx.Set([]byte("a"), []byte("2"))
			tx.Set([]byte("b"), []byte("2"))
			tx.Emit("set", []byte("b"), []byte("b"), []byte("2"))
			out, err := tx.Try(func() ([]byte, error) {
				tx.Set([]byte("c"), []byte("3"))
				return []byte("inner"), nil
			})
			if string(out) != "inner" || err != nil {
				t.Errorf("inner: %q %v", out, err)
			}
			return nil, errs.New(errs.Invalid, "outer fails")
		})
		if !errs.Is(err, errs.Invalid) {
			t.Errorf("got %v", err)
		}
		tx.Emit("set", []byte("a"), []byte("a"), []byte("1"))
		return nil, nil
	})
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	b.want("a", "1")
	b.want("b", "")
	b.want("c", "")
	cs, err := b.m.Changes(0, 100)
	if err != nil || len(cs.Changes) != 1 || string(cs.Changes[0].Key) != "a" {
		t.Errorf("changes: %+v %v", cs, err)
	}
}

func TestTx_CallRunsInTheSameTransaction(t *testing.T) {
	other := &script{id: 10, apply: map[string]func(*Tx) ([]byte, error){}}
	b := newBench(t, MachineConfig{}, other)
	other.apply["ok"] = func(tx *Tx) ([]byte, error) {
		if _, ok := tx.Get([]byte("a")); ok {
			t.Errorf("a module sees another's keys")
		}
		tx.Set([]byte("o"), []byte("1"))
		tx.Wake([]byte("o"))
		return []byte("called"), nil
	}
	other.apply["bad"] = func(tx *Tx) ([]byte, error) {
		tx.Set([]byte("p"), []byte("1"))
		return nil, errs.New(errs.NotFound, "gone")
	}
	r := b.run(func(tx *Tx) ([]byte, error) {
		tx.Set([]byte("a"), []byte("1"))
		out, err := tx.Call(Command{Module: 10, Data: []byte("ok")})
		if string(out) != "called" || err != nil {
			t.Errorf("call: %q %v", out, err)
		}
		if _, err := tx.Call(Command{Module: 10, Data: []byte("bad")}); !errs.Is(err, errs.NotFound) {
			t.Errorf("bad call: %v", err)
		}
		if _, err := tx.Call(Command{Module: 99}); !errs.Is(err, errs.Unsupported) {
			t.Errorf("call of nobody: %v", err)
		}
		tx.Set([]byte("b"), []byte("2"))
		return nil, nil
	})
	if r.Err != nil || r.Revision != 1 {
		t.Fatalf("got %+v", r)
	}
	b.want("a", "1")
	b.want("b", "2")
	for key, want := range map[string]string{"o": "1", "p": "", "b": ""} {
		v, err := b.m.Query(Command{Module: 10, Data: []byte(key)})
		if err != nil || string(v) != want {
			t.Errorf("other module's %q holds %q (%v), want %q", key, v, err, want)
		}
	}
}

func TestAsk_AnswersFromTheSameView(t *testing.T) {
	other := &script{id: 10, apply: map[string]func(*Tx) ([]byte, error){"set": set("k", "theirs")}}
	b := newBench(t, MachineConfig{}, other)
	look := func(v View) {
		t.Helper()
		if got, err := v.Ask(Command{Module: 10, Data: []byte("k")}); err != nil || string(got) != "theirs" {
			t.Errorf("asked: %q %v", got, err)
		}
		if got, _ := v.Get([]byte("k")); string(got) != "ours" {
			t.Errorf("afterwards: %q", got)
		}
		if _, err := v.Ask(Command{Module: 99}); !errs.Is(err, errs.Unsupported) {
			t.Errorf("asked nobody: %v", err)
		}
	}
	b.mod.query = func(v View, _ []byte) ([]byte, error) {
		look(v)
		return nil, nil
	}
	b.run(func(tx *Tx) ([]byte, error) {
		tx.Set([]byte("k"), []byte("ours"))
		if _, err := tx.Call(Command{Module: 10, Data: []byte("set")}); err != nil {
			t.Errorf("call: %v", err)
		}
		look(tx)
		return nil, nil
	})
	if _, err := b.m.Query(Command{Module: b.mod.id}); err != nil {
		t.Error(err)
	}
}

func TestTx_SaysWhereItIs(t *testing.T) {
	b := newBench(t, MachineConfig{})
	b.run(func(tx *Tx) ([]byte, error) {
		if tx.Level() != Level || tx.Revision() != 1 || !tx.Now().Equal(b.now) {
			t.Errorf("level %d revision %d now %v", tx.Level(), tx.Revision(), tx.Now())
		}
		tx.Emit("set", []byte("k"), []byte("k"), nil)
		if cs, err := tx.Changes(0, 10); err != nil || cs.End != 0 {
			t.Errorf("changes of the running batch: %+v %v", cs, err)
		}
		return nil, nil
	})
	b.run(func(tx *Tx) ([]byte, error) {
		cs, err := tx.Changes(0, 10)
		if err != nil || len(cs.Changes) != 1 || cs.End != 1 {
			t.Errorf("changes before the batch: %+v %v", cs, err)
		}
		return nil, nil
	})
}

func TestTx_RoomIsNobodyElsesInTheEntry(t *testing.T) {
	b := newBench(t, MachineConfig{})
	sizes := []int{0, 1, 100, 511, 513, 3000, scratchBytesMax, 2, scratchBytesMax + 1, 40, 9}
	given := map[string][]byte{}
	take := func(name string) func(tx *Tx) ([]byte, error) {
		return func(tx *Tx) ([]byte, error) {
			for i, n := range sizes {
				v := tx.Room(n)
				if len(v) != 0 || cap(v) != n {
					t.Errorf("room for %d has length %d and capacity %d", n, len(v), cap(v))
				}
				given[fmt.Sprint(name, i)] = append(v, bytes.Repeat([]byte{name[0] + byte(i)}, n)...)
				// The machine takes room for rows of its own.
				tx.Emit("set", nil, []byte("k"), []byte(name))
			}
			return nil, nil
		}
	}
	for _, name := range []string{"A", "P", "a"} {
		b.mod.apply[name] = take(name)
	}
	b.mod.apply["look"] = func(*Tx) ([]byte, error) {
		for _, name := range []string{"A", "P", "a"} {
			for i, n := range sizes {
				if v := given[fmt.Sprint(name, i)]; !bytes.Equal(v, bytes.Repeat([]byte{name[0] + byte(i)}, n)) {
					t.Errorf("room %d of command %s is not what was written to it", i, name)
				}
			}
		}
		return nil, nil
	}
	for range 3 {
		b.do("A", "P", "a", "look")
		if got := cap(b.m.scratch); got == 0 || got > scratchBytesMax {
			t.Errorf("the machine keeps %d bytes", got)
		}
	}
}

func TestTx_RollbackInABatch_KeepsEarlierCommands(t *testing.T) {
	b := newBench(t, MachineConfig{})
	b.mod.apply["one"], b.mod.apply["three"] = set("k", "1"), set("l", "3")
	b.mod.apply["two"] = func(tx *Tx) ([]byte, error) {
		tx.Set([]byte("k"), []byte("2"))
		tx.Set([]byte("m"), []byte("2"))
		_ = scanAll(tx, "", "")
		return nil, errs.New(errs.Conflict, "no")
	}
	b.mod.apply["look"] = func(tx *Tx) ([]byte, error) { return []byte(scanAll(tx, "", "")), nil }
	rs := b.do("one", "two", "three", "look")
	if got := string(rs[3].Data); got != "k=1 l=3" {
		t.Errorf("got %q", got)
	}
}

func TestOverlay_ShrinksAfterALargeBatch(t *testing.T) {
	b := newBench(t, MachineConfig{})
	b.run(func(tx *Tx) ([]byte, error) {
		for i := range 5000 {
			tx.Set([]byte{byte(i >> 8), byte(i)}, []byte("x"))
		}
		return nil, nil
	})
	if got := cap(b.m.ov.rows); got > 4096 {
		t.Errorf("overlay keeps room for %d rows", got)
	}
	if keys := b.m.ov.between([]byte{0}, []byte{255}); !slices.Equal(keys, nil) {
		t.Errorf("overlay still holds %d keys", len(keys))
	}
}
