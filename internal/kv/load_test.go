package kv

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
)

// loads are a key space in three parts: a has two versions behind it, b was written in the last revision and c deleted in it.
func loads() []*Load {
	id := [16]byte{7}
	return []*Load{
		{ID: id, KVs: []KeyValue{{Key: []byte("a"), Value: []byte("1"), Create: 3, Mod: 40, Version: 3, Lease: 9}}},
		{ID: id, KVs: []KeyValue{{Key: []byte("b"), Value: []byte("2"), Create: 50, Mod: 50, Version: 1}}, Leases: []LeaseTTL{{9, 60}}},
		{ID: id, Revision: 50, Events: []LoadEvent{{Key: []byte("b")}, {Deleted: true, Key: []byte("c")}}},
	}
}

func (x *tester) load(l *Load) error {
	_, err := x.submit(EncodeLoad(l))
	return err
}

func TestLoad_GoesOnFromItsRevision(t *testing.T) {
	x := newTester(t)
	parts := loads()
	// Parts may be repeated and overtake each other.
	for _, i := range []int{1, 0, 1, 0} {
		if err := x.load(parts[i]); err != nil {
			t.Fatal(err)
		}
	}
	other := *parts[0]
	other.ID[0] = 8
	if err := x.load(&other); !errors.Is(err, ErrOtherLoad) {
		t.Errorf("another load: %v", err)
	}
	// A lease does not end before the last part is there.
	x.Advance(time.Hour)
	if err := x.load(parts[2]); err != nil {
		t.Fatal(err)
	}
	if err := x.load(parts[2]); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("again: %v", err)
	}
	if s := x.status(); s != (Status{Revision: 50, Compacted: 50, Removed: 50}) {
		t.Errorf("status %+v", s)
	}
	a := x.must(&Range{Key: []byte("a"), End: []byte{0}, Revision: 50})
	if got, want := fmt.Sprintf("%+v", a.KVs), fmt.Sprintf("%+v", []KeyValue{parts[0].KVs[0], parts[1].KVs[0]}); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := x.do(&Range{Key: []byte("a"), Revision: 49}); !errors.Is(err, ErrCompacted) {
		t.Errorf("before: %v", err)
	}
	if got := x.put("a", "next"); got != 51 {
		t.Errorf("next revision %d", got)
	}
	e, err := x.events(50, 1<<20, true)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"50 put b", "50 delete c", "51 put a was 1"}
	var got []string
	for _, ev := range e.Events {
		s := fmt.Sprintf("%d put %s", ev.KV.Mod, ev.KV.Key)
		if ev.Deleted {
			s = fmt.Sprintf("%d delete %s", ev.KV.Mod, ev.KV.Key)
		}
		if ev.Prev != nil {
			s += " was " + string(ev.Prev.Value)
		}
		got = append(got, s)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("events %q, want %q", got, want)
	}
	if _, err := x.events(49, 1<<20, false); !errors.Is(err, ErrCompacted) {
		t.Errorf("events before: %v", err)
	}
	if l := x.ttl(x.query(EncodeTimeToLive(9, x.Now().UnixMilli(), true))); l.Granted != 60 || len(l.Keys) != 0 {
		// The put of "a" has taken it off its lease.
		t.Errorf("lease %+v", l)
	}
	if err := x.compact(51); err != nil {
		t.Error(err)
	}
}

func TestLoad_LeasesEndAfterIt(t *testing.T) {
	x := newTester(t)
	for _, l := range loads() {
		if err := x.load(l); err != nil {
			t.Fatal(err)
		}
	}
	x.Advance(61 * time.Second)
	if a := x.must(&Range{Key: []byte("a"), End: []byte{0}}); a.Count != 1 || a.Revision != 51 {
		t.Errorf("%+v", a)
	}
}

// A lease whose time passes while parts are still to come has it again from then on, also if that is before the last of them.
func TestLoad_LeasesThatWaited(t *testing.T) {
	x := newTester(t)
	parts := loads()
	for _, l := range parts[:2] {
		if err := x.load(l); err != nil {
			t.Fatal(err)
		}
	}
	x.Advance(90 * time.Second)
	if err := x.load(parts[2]); err != nil {
		t.Fatal(err)
	}
	if n := x.must(&Range{Key: []byte("a")}).Count; n != 1 {
		t.Errorf("%d keys of a lease that had to wait", n)
	}
	x.Advance(61 * time.Second)
	if n := x.must(&Range{Key: []byte("a")}).Count; n != 0 {
		t.Errorf("%d keys of a lease that nobody renewed", n)
	}
}

func TestLoad_Refused(t *testing.T) {
	x := newTester(t)
	bad := func(l Load) {
		t.Helper()
		if err := x.load(&l); !errs.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", l, err)
		}
	}
	key := func(create, mod, version int64) Load {
		return Load{KVs: []KeyValue{{Key: []byte("k"), Create: create, Mod: mod, Version: version}}}
	}
	bad(key(0, 1, 1))
	bad(key(2, 1, 1))
	bad(key(1, 1, 0))
	bad(Load{KVs: []KeyValue{{Create: 1, Mod: 1, Version: 1}}})
	bad(Load{Leases: []LeaseTTL{{0, 1}}})
	bad(Load{Leases: []LeaseTTL{{1, 0}}})
	bad(Load{Leases: []LeaseTTL{{1, LeaseTTLMax + 1}}})
	bad(Load{Events: []LoadEvent{{Key: []byte("k")}}})
	bad(Load{Revision: -1})
	bad(Load{KVs: []KeyValue{{Key: []byte("k"), Create: 8, Mod: 8, Version: 1}}, Revision: 9, Events: []LoadEvent{{Key: []byte("k")}}})
	bad(Load{Revision: 9, Events: []LoadEvent{{Key: []byte("never written")}}})
	if s := x.status(); s.Revision != 1 {
		t.Errorf("status %+v", s)
	}
	if err := x.load(&Load{Revision: 1}); err != nil {
		t.Errorf("an empty one: %v", err)
	}
	x.put("k", "v")
	if err := x.load(loads()[0]); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("into what was written to: %v", err)
	}
	x = newTester(t)
	if err := x.compact(1); err != nil {
		t.Fatal(err)
	}
	if err := x.load(loads()[0]); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("into what was compacted: %v", err)
	}
}
