package kv

import (
	"errors"
	"testing"

	"github.com/quorate/quorate/internal/errs"
)

func TestHash_CoversAllThatIsSeen(t *testing.T) {
	x := newTester(t)
	empty := x.hash(0)
	if empty.Sum == 0 {
		t.Error("that of no keys is left out of an answer's JSON form")
	}
	sums := map[uint32]string{empty.Sum: "no key", 0: "no checksum"}
	step := func(what string, o Op) {
		t.Helper()
		rev := x.must(o).Revision
		h := x.hash(0)
		if h.Revision != rev || h.At != rev || h.Compacted != 0 {
			t.Errorf("%s: %+v at revision %d", what, h, rev)
		}
		if before, ok := sums[h.Sum]; ok {
			t.Errorf("%s has the checksum of %s", what, before)
		}
		sums[h.Sum] = what
	}
	step("a key", &Put{Key: []byte("a")})
	step("a value", &Put{Key: []byte("a"), Value: []byte("1")})
	step("the same value, later", &Put{Key: []byte("a"), Value: []byte("1")})
	step("another key", &Put{Key: []byte("b")})
	later := x.hash(4)
	if x.must(&Delete{Key: []byte("b")}); x.hash(0).Sum != later.Sum {
		t.Errorf("without the other key the checksum is %x, want %x", x.hash(0).Sum, later.Sum)
	}
	at3 := x.hash(3)
	if sums[at3.Sum] != "a value" || at3.At != 3 || at3.Revision != 6 {
		t.Errorf("as of revision 3: %+v, which is that of %q", at3, sums[at3.Sum])
	}
	y := newTester(t)
	y.put("a", "")
	y.put("a", "1")
	if h := y.hash(0); h.Sum != at3.Sum {
		t.Errorf("another key space with the same history has %x, want %x", h.Sum, at3.Sum)
	}
	if err := x.compact(4); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		rev  int64
		want error
	}{{3, ErrCompacted}, {7, ErrFutureRevision}} {
		if _, err := x.query(EncodeHash(c.rev)); !errors.Is(err, c.want) {
			t.Errorf("as of revision %d: %v, want %v", c.rev, err, c.want)
		}
	}
	if h := x.hash(4); h.At != 4 || h.Compacted != 4 {
		t.Errorf("as of the compacted revision: %+v", h)
	}
	if h := x.hash(-1); h.Sum != empty.Sum {
		t.Errorf("as of a negative revision: %x, want that of no keys, %x", h.Sum, empty.Sum)
	}
}

// What is done leaves no timer behind, which would fire for ever and keep the shard from resting.
func TestCompact_ComesToAnEnd(t *testing.T) {
	x := newTester(t)
	for range 2 * removeMin {
		x.put("a", "")
	}
	if err := x.compact(x.status().Revision); err != nil {
		t.Fatal(err)
	}
	if _, ok := x.Machine(1).NextTimer(); !ok {
		t.Fatal("nothing is left to do at once")
	}
	for range 10 {
		x.Advance(removePause)
	}
	at, ok := x.Machine(1).NextTimer()
	if s := x.status(); s.Removed != s.Compacted || ok {
		t.Errorf("%+v, and a timer at %v: %v", s, at, ok)
	}
	if _, err := x.submit(EncodeCompact(0)); !errs.Is(err, errs.Compacted) {
		t.Errorf("compaction to 0: %v", err)
	}
}
