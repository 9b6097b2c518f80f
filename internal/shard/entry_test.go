package shard

import (
	"bytes"
	"testing"
	"time"
)

func TestEntry_RoundTrip(t *testing.T) {
	h := BatchHeader{Session: 7, Seq: 8, Low: 5, Stamp: time.Unix(3, 4).UTC()}
	cmds := []Command{{1, []byte("one")}, {2, nil}, {255, bytes.Repeat([]byte("x"), 300)}}
	e, size := AppendBatchHeader(nil, h), entryHeaderSize
	for _, c := range cmds {
		e = AppendCommand(e, c)
		size += CommandSize(c)
	}
	if len(e) > size {
		t.Errorf("entry of %d bytes, but the bound is %d", len(e), size)
	}
	SetStamp(e, time.Unix(9, 9))
	SetLow(e, 6)
	h.Stamp, h.Low = time.Unix(9, 9).UTC(), 6
	got, batch, err := EntryHeader(e)
	if err != nil || !batch || got != h {
		t.Fatalf("got %+v %v %v, want %+v", got, batch, err, h)
	}
	_, _, body, err := decodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range cmds {
		var c Command
		if c, body, err = nextCommand(body); err != nil || c.Module != want.Module || !bytes.Equal(c.Data, want.Data) {
			t.Fatalf("got %+v %v, want %+v", c, err, want)
		}
	}
	if len(body) != 0 {
		t.Errorf("%d bytes left", len(body))
	}
	if _, batch, err := EntryHeader(TimersEntry(time.Unix(1, 0))); err != nil || batch {
		t.Errorf("timers entry: batch %v, %v", batch, err)
	}
}

// FuzzEntry applies arbitrary entries: whatever is in them, the machine either takes or refuses them.
func FuzzEntry(f *testing.F) {
	e := AppendBatchHeader(nil, BatchHeader{Session: 1, Seq: 1, Low: 1, Stamp: time.Unix(1, 0)})
	f.Add(AppendCommand(e, Command{9, []byte("set")}))
	f.Add(TimersEntry(time.Unix(5, 0)))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, e []byte) {
		m := &Machine{modules: Modules(), sessions: map[uint64]*session{}, store: newStore(t)}
		p := placeOf(1, 1)
		m.place.Store(&p)
		m.keyBuf = append(m.keyBuf, p...)
		m.ov.reset()
		var out Applied
		if err := m.Apply(1, 1, e, &out); err == nil {
			if err := m.Commit(&out); err != nil {
				t.Errorf("commit: %v", err)
			}
		}
		var words int
		for _, s := range m.sessions {
			words += len(s.bits)
		}
		if words > sessionWindow/64 {
			t.Errorf("a session of %d words", words)
		}
	})
}

func FuzzState(f *testing.F) {
	f.Add((&state{Index: 1, Conf: []byte("c")}).encode(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s state
		if s.decode(b) != nil {
			return
		}
		// The level has 32 bits of the row's 64.
		if got := s.encode(nil); len(got) != len(b) {
			t.Errorf("%x became %x", b, got)
		}
	})
}
