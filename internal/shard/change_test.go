package shard

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
)

// emit stores one change a command.
func emit(b *bench, key, value string) {
	b.Helper()
	r := b.run(func(tx *Tx) ([]byte, error) {
		var v []byte
		if value != "" {
			v = []byte(value)
		}
		tx.Emit("set", []byte(key), []byte(key), v, Header{Name: "h", Value: []byte(key)})
		return nil, nil
	})
	if r.Err != nil {
		b.Fatal(r.Err)
	}
}

func TestChange_ComesBackAsItWasStored(t *testing.T) {
	b := newBench(t, MachineConfig{})
	emit(b, "k", "v")
	emit(b, "gone", "")
	cs, err := b.m.Changes(0, 1<<20)
	if err != nil || len(cs.Changes) != 2 || cs.First != 0 || cs.End != 2 || cs.From != 0 {
		t.Fatalf("got %+v %v", cs, err)
	}
	c := cs.Changes[0]
	if c.Op != "set" || string(c.Key) != "k" || string(c.Value) != "v" || !c.At.Equal(b.now) || len(c.Headers) != 1 ||
		c.Headers[0].Name != "h" || string(c.Headers[0].Value) != "k" {
		t.Errorf("got %+v", c)
	}
	if cs.Changes[1].Value != nil {
		t.Errorf("a change without a value has %q", cs.Changes[1].Value)
	}
}

// A command that only emits writes no rows of its module, and must still get a revision of its own.
func TestChange_EmitAloneIsAWrite(t *testing.T) {
	b := newBench(t, MachineConfig{})
	emit(b, "a", "1")
	emit(b, "b", "1")
	cs, err := b.m.Changes(0, 1<<20)
	if err != nil || cs.Changes[0].Revision >= cs.Changes[1].Revision || b.m.Revision() != 2 {
		t.Errorf("revisions %d and %d, the shard's is %d (%v)", cs.Changes[0].Revision, cs.Changes[1].Revision, b.m.Revision(), err)
	}
}

func TestChange_ReadsFromTheMiddleOfAChunk(t *testing.T) {
	b := newBench(t, MachineConfig{})
	n := 0
	for _, size := range []int{1, 7, 300, 2, 90} {
		var cmds []string
		for range size {
			name, key := fmt.Sprint("c", n), fmt.Sprint(n)
			b.mod.apply[name] = func(tx *Tx) ([]byte, error) {
				tx.Set([]byte(key), nil)
				tx.Emit("set", []byte(key), []byte(key), bytes.Repeat([]byte("v"), 20))
				return nil, nil
			}
			cmds = append(cmds, name)
			n++
		}
		b.do(cmds...)
	}
	for from := range n + 2 {
		for _, limit := range []int{1, 100, 1 << 20} {
			cs, err := b.m.Changes(uint64(from), limit)
			if err != nil {
				t.Fatal(err)
			}
			if from >= n {
				if len(cs.Changes) != 0 || cs.End != uint64(n) {
					t.Fatalf("from %d: got %d changes, end %d", from, len(cs.Changes), cs.End)
				}
				continue
			}
			if len(cs.Changes) == 0 || limit == 1 && len(cs.Changes) != 1 || limit == 1<<20 && len(cs.Changes) != n-from {
				t.Fatalf("from %d with %d bytes: got %d changes", from, limit, len(cs.Changes))
			}
			for i, c := range cs.Changes {
				if string(c.Key) != fmt.Sprint(from+i) {
					t.Fatalf("from %d: change %d has key %s", from, i, c.Key)
				}
			}
		}
	}
}

func TestChange_OldestAreTrimmed(t *testing.T) {
	b := newBench(t, MachineConfig{ChangeBytesMax: 1000})
	for i := range 200 {
		emit(b, fmt.Sprint(i), "some value")
	}
	cs, err := b.m.Changes(199, 1<<20)
	if err != nil || cs.First == 0 || cs.End != 200 {
		t.Fatalf("got %+v %v", cs, err)
	}
	if b.m.st.ChangeBytes > 1000+1000/8 {
		t.Errorf("the change log has %d bytes", b.m.st.ChangeBytes)
	}
	if _, err := b.m.Changes(cs.First-1, 10); !errs.Is(err, errs.Compacted) {
		t.Errorf("before the first: got %v", err)
	}
	all, err := b.m.Changes(cs.First, 1<<20)
	if err != nil || uint64(len(all.Changes)) != cs.End-cs.First || string(all.Changes[0].Key) != fmt.Sprint(cs.First) {
		t.Errorf("from the first: %d changes from %s, %v", len(all.Changes), all.Changes[0].Key, err)
	}
	var size uint64
	for _, v := range b.m.scan(ModuleShard, []byte{rowChange}, []byte{rowChange + 1}) {
		size += uint64(len(v))
	}
	if size != b.m.st.ChangeBytes {
		t.Errorf("the change log has %d bytes, its count says %d", size, b.m.st.ChangeBytes)
	}
}

// Replicas apply the same entries in groups of their own; what they keep of the change log must not depend on that.
func TestChange_TrimmedAtTheSameEntryEverywhere(t *testing.T) {
	one, many := newBench(t, MachineConfig{ChangeBytesMax: 1000}), newBench(t, MachineConfig{ChangeBytesMax: 1000})
	for _, b := range []*bench{one, many} {
		b.mod.apply["emit"] = func(tx *Tx) ([]byte, error) {
			tx.Emit("set", []byte("k"), []byte("k"), []byte("some value"))
			return nil, nil
		}
	}
	out := Applied{}
	for i := range uint64(200) {
		e := one.batch(BatchHeader{Session: 1, Seq: i + 1, Low: i + 1, Stamp: one.now}, "emit", "emit")
		one.entry(e)
		if err := many.m.Apply(i+1, 1, e, &out); err != nil {
			t.Fatal(err)
		}
		if i%7 == 6 {
			if err := many.m.Commit(&out); err != nil {
				t.Fatal(err)
			}
		}
		if one.m.st.ChangeFirst != many.m.st.ChangeFirst || one.m.st.ChangeBytes != many.m.st.ChangeBytes {
			t.Fatalf("entry %d: one begins at %d with %d bytes, the other at %d with %d",
				i+1, one.m.st.ChangeFirst, one.m.st.ChangeBytes, many.m.st.ChangeFirst, many.m.st.ChangeBytes)
		}
	}
	if one.m.st.ChangeFirst == 0 {
		t.Error("nothing was trimmed")
	}
}

// A position far behind the last chunk is found by looking back in windows that grow.
func TestChange_LongChunkIsFoundFromItsEnd(t *testing.T) {
	b := newBench(t, MachineConfig{})
	emit(b, "first", "x")
	b.run(func(tx *Tx) ([]byte, error) {
		for i := range 5000 {
			tx.Emit("set", []byte("k"), fmt.Append(nil, i), []byte("v"))
		}
		return nil, nil
	})
	cs, err := b.m.Changes(5000, 1<<20)
	if err != nil || len(cs.Changes) != 1 || string(cs.Changes[0].Key) != "4999" {
		t.Errorf("got %+v %v", cs, err)
	}
}

func TestChange_DamagedRowsAreRefused(t *testing.T) {
	f := func(name string, row []byte) {
		t.Helper()
		b := newBench(t, MachineConfig{})
		emit(b, "k", "v")
		w := b.store.Batch()
		w.Set(append(placeOf(7, 1), append([]byte{byte(ModuleShard)}, changeKey(0)...)...), row)
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		if cs, err := b.m.Changes(0, 100); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%s: got %+v %v", name, cs, err)
		}
	}
	f("empty", nil)
	f("no body", []byte{1, 5})
	f("cut short", []byte{1, 5, 0, 3, 's', 'e'})
	f("length over the end", []byte{1, 5, 0, 200, 1, 's'})
	f("bad stamp", []byte{1, 5, 0x80})
}

func FuzzChange(f *testing.F) {
	var c changeBuffer
	c.begin()
	c.add(nil, Change{Revision: 3, At: time.Unix(5, 0), Op: "set", Key: []byte("k"), Value: []byte("v"), Headers: []Header{{"a", []byte("b")}}})
	f.Add(c.buf)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		ch, rest, err := decodeChange(b)
		if err != nil {
			return
		}
		var again changeBuffer
		again.whole()
		again.add(nil, ch)
		ch2, rest2, err := decodeChange(again.buf)
		if err != nil || len(rest2) != 0 || len(rest) > len(b) || string(ch2.Key) != string(ch.Key) || len(ch2.Headers) != len(ch.Headers) {
			t.Errorf("%x: %+v, again %+v %v", b, ch, ch2, err)
		}
	})
}

// TestChange_SmallCommandsWithLargeChanges: a batch of small commands may make changes far larger than itself. No row of the
// change log may become so large that it does not fit into a message, and what is dropped anyway costs no memory meanwhile.
func TestChange_SmallCommandsWithLargeChanges(t *testing.T) {
	b := newBench(t, MachineConfig{ChangeBytesMax: 4 << 20})
	value := bytes.Repeat([]byte("v"), 1<<20)
	most := 0
	b.mod.apply["big"] = func(tx *Tx) ([]byte, error) {
		tx.Emit("append", []byte("k"), []byte("k"), value)
		held := 0
		for _, r := range b.m.ov.rows {
			held += len(r.value)
		}
		most = max(most, held)
		return nil, nil
	}
	cmds := make([]string, 40)
	for i := range cmds {
		cmds[i] = "big"
	}
	for i, res := range b.do(cmds...) {
		if res.Err != nil || res.Revision != Revision(i+1) {
			t.Fatalf("command %d: %+v", i, res)
		}
	}
	for k, v := range b.m.scan(ModuleShard, []byte{rowChange}, []byte{rowChange + 1}) {
		if len(v) > chunkBytes+len(value)+100 {
			t.Errorf("row %x has %d bytes", k, len(v))
		}
	}
	if most > 8<<20 {
		t.Errorf("%d bytes of changes were held at once", most)
	}
	cs, err := b.m.Changes(36, 64<<20)
	if err != nil || cs.End != 40 || len(cs.Changes) == 0 || cs.Changes[0].Revision != 37 {
		t.Errorf("changes from 36: first %d, end %d, %d of them, %v", cs.First, cs.End, len(cs.Changes), err)
	}
}

func TestChange_TooMuchInOneCommandIsRefused(t *testing.T) {
	b := newBench(t, MachineConfig{})
	value := bytes.Repeat([]byte("v"), 1<<20)
	emits := func(n int) func(tx *Tx) ([]byte, error) {
		return func(tx *Tx) ([]byte, error) {
			tx.Set([]byte("n"), fmt.Append(nil, n))
			for range n {
				tx.Emit("append", []byte("k"), []byte("k"), value)
			}
			if len(b.m.changes.buf) > ChangesBytesMax+1<<10 {
				t.Errorf("%d bytes of changes are held", len(b.m.changes.buf))
			}
			return nil, nil
		}
	}
	b.mod.apply["31"], b.mod.apply["1000"], b.mod.apply["2"] = emits(31), emits(1000), emits(2)
	res := b.do("31", "1000", "2")
	if res[0].Err != nil || !errs.Is(res[1].Err, errs.TooLarge) || res[2].Err != nil {
		t.Fatalf("got %v, %v, %v; want TooLarge for the second", res[0].Err, res[1].Err, res[2].Err)
	}
	b.want("n", "2")
	if cs, err := b.m.Changes(33, 1<<20); err != nil || cs.End != 33 || b.m.Revision() != 2 {
		t.Errorf("end %d, revision %d, %v", cs.End, b.m.Revision(), err)
	}
}

// What a timer does is not asked for by anybody who could be refused: its changes are all told, in rows that a message can carry.
func TestChange_OfATimerAreAllTold(t *testing.T) {
	const n = 6
	b := newBench(t, MachineConfig{ChangeBytesMax: 1 << 30})
	value := bytes.Repeat([]byte("v"), 9<<20)
	b.mod.fire = func(tx *Tx, key []byte) error {
		for i := range n {
			tx.Emit("set", key, fmt.Append(nil, i), value)
		}
		return nil
	}
	b.at("t", 1)
	b.pass(2)
	b.mod.apply["after"] = func(tx *Tx) ([]byte, error) { tx.Emit("set", nil, []byte("after"), nil); return nil, nil }
	b.do("after")
	told := 0
	for at := uint64(0); ; {
		cs, err := b.m.Changes(at, 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(cs.Changes) == 0 {
			break
		}
		for _, ch := range cs.Changes {
			if want := fmt.Sprint(told); told < n && (string(ch.Key) != want || len(ch.Value) != len(value)) || told == n && string(ch.Key) != "after" {
				t.Fatalf("change %d is of key %q, with %d bytes", told, ch.Key, len(ch.Value))
			}
			told++
		}
		at += uint64(len(cs.Changes))
	}
	if told != n+1 {
		t.Errorf("%d changes are told, want %d", told, n+1)
	}
	for _, v := range b.m.scan(ModuleShard, changeKey(0), []byte{rowChange + 1}) {
		if len(v) > ChangesBytesMax+len(value)+1<<10 {
			t.Errorf("a row of %d bytes", len(v))
		}
	}
}
