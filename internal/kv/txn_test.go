package kv

import (
	"errors"
	"fmt"
	"testing"
)

func TestTxn_BranchesAndSnapshot(t *testing.T) {
	x := newTester(t)
	x.put("a", "1")
	key := []byte("a")
	then := func(c ...Compare) Answer {
		return x.must(&Txn{If: c, Then: []Op{&Range{Key: key}}})
	}
	for _, c := range []struct {
		name string
		c    Compare
		want bool
	}{
		{"value", Compare{Key: key, Target: Value, Value: []byte("1")}, true},
		{"value differs", Compare{Key: key, Target: Value, Relation: NotEqual, Value: []byte("1")}, false},
		{"version", Compare{Key: key, Target: Version, Number: 1}, true},
		{"create less", Compare{Key: key, Target: CreateRevision, Relation: Less, Number: 2}, false},
		{"mod greater", Compare{Key: key, Target: ModRevision, Relation: Greater, Number: 1}, true},
		{"lease", Compare{Key: key, Target: Lease}, true},
		{"missing: no version", Compare{Key: []byte("x"), Target: Version}, true},
		{"missing: value never equals", Compare{Key: []byte("x"), Target: Value}, false},
		{"missing: nor differs", Compare{Key: []byte("x"), Target: Value, Relation: NotEqual, Value: []byte("1")}, false},
		{"range", Compare{Key: key, End: []byte{0}, Target: Version, Relation: Greater}, true},
		{"empty range", Compare{Key: []byte("b"), End: []byte("c"), Target: Version}, true},
		{"missing: no version greater", Compare{Key: []byte("x"), Target: Version, Relation: Greater}, false},
		{"missing: no creation", Compare{Key: []byte("x"), Target: CreateRevision, Relation: NotEqual}, false},
	} {
		if got := then(c.c).Succeeded; got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	// Reads inside see the writes before them; conditions inside were decided before.
	inner := &Txn{
		If:   []Compare{{Key: []byte("n"), Target: Version}},
		Then: []Op{&Put{Key: []byte("in"), Value: []byte("then")}}, Else: []Op{&Put{Key: []byte("in"), Value: []byte("else")}},
	}
	a := x.must(&Txn{Then: []Op{
		&Put{Key: []byte("n"), Value: []byte("v")}, inner, &Range{Key: []byte("a"), End: []byte{0}},
		&Delete{Key: key, WantPrev: true}, &Range{Key: key}, &Range{Key: key, Revision: 2},
	}})
	if got := show(a.Answers[2].KVs); got != "a=1@2/2/1 in=then@3/3/1 n=v@3/3/1" || a.Answers[2].Revision != 3 {
		t.Errorf("inside: %s at %d", got, a.Answers[2].Revision)
	}
	if a.Revision != 3 || a.Answers[3].Count != 1 || a.Answers[4].Count != 0 || show(a.Answers[5].KVs) != "a=1@2/2/1" || !a.Answers[1].Succeeded {
		t.Errorf("got %+v", a)
	}
	e, err := x.events(3, 1<<20, false)
	if err != nil || len(e.Events) != 3 || !e.Events[2].Deleted {
		t.Errorf("events %+v %v", e, err)
	}
}

// Each target is compared by each relation with a number below, at and above what the key has.
func TestTxn_EveryComparison(t *testing.T) {
	x := newTester(t)
	if _, err := x.submit(EncodeGrant(6, 60)); err != nil {
		t.Fatal(err)
	}
	key := []byte("k")
	x.put("other", "")
	x.put("k", "1")
	x.put("k", "2")
	x.put("other", "")
	x.must(&Put{Key: key, Value: []byte("5"), Lease: 6})
	for target, has := range map[CompareTarget]int64{Version: 3, CreateRevision: 3, ModRevision: 6, Lease: 6, Value: 5} {
		for _, with := range []int64{has - 1, has, has + 1} {
			for r, want := range map[Relation]bool{Equal: has == with, Greater: has > with, Less: has < with, NotEqual: has != with} {
				c := Compare{Key: key, Target: target, Relation: r, Number: with}
				if target == Value {
					c.Number, c.Value = 0, fmt.Append(nil, with)
				}
				if got := x.must(&Txn{If: []Compare{c}}).Succeeded; got != want {
					t.Errorf("%+v holds: %v, want %v", c, got, want)
				}
			}
		}
	}
}

// All conditions must hold, and each for all keys of its range, wherever the one stands that does not.
func TestTxn_AllConditionsForAllKeys(t *testing.T) {
	x := newTester(t)
	for _, key := range []string{"a", "b", "c"} {
		x.put(key, key)
	}
	is := func(key string, r Relation) Compare {
		return Compare{Key: []byte(key), Target: Value, Relation: r, Value: []byte(key)}
	}
	yes, no := is("b", Equal), is("b", NotEqual)
	all := func(value string) Compare {
		return Compare{Key: []byte("a"), End: []byte{0}, Target: Value, Relation: NotEqual, Value: []byte(value)}
	}
	for _, c := range []struct {
		conds []Compare
		want  bool
	}{
		{nil, true}, {[]Compare{yes, yes}, true}, {[]Compare{no, yes}, false}, {[]Compare{yes, no}, false},
		{[]Compare{all("d")}, true}, {[]Compare{all("a")}, false}, {[]Compare{all("b")}, false}, {[]Compare{all("c")}, false},
	} {
		// The way that an outer transaction does not take decides nothing for the one that it does.
		for name, o := range map[string]*Txn{
			"alone": {If: c.conds},
			"then":  {If: []Compare{yes}, Then: []Op{&Txn{If: c.conds}}, Else: []Op{&Txn{}}},
			"else":  {If: []Compare{no}, Then: []Op{&Txn{}}, Else: []Op{&Txn{If: c.conds}}},
		} {
			a := x.must(o)
			if name != "alone" {
				a = a.Answers[0]
			}
			if a.Succeeded != c.want {
				t.Errorf("%+v, %s: %v, want %v", c.conds, name, a.Succeeded, c.want)
			}
		}
	}
	// A branch that is empty takes no decision of another's.
	a := x.must(&Txn{If: []Compare{no}, Else: []Op{&Txn{If: []Compare{no}}, &Txn{If: []Compare{yes}}}})
	if a.Succeeded || a.Answers[0].Succeeded || !a.Answers[1].Succeeded {
		t.Errorf("got %+v", a)
	}
}

func TestTxn_RefusedLeavesNothing(t *testing.T) {
	x := newTester(t)
	x.put("a", "1")
	before := x.Machine(1).Digest()
	a, b := []byte("a"), []byte("b")
	for _, c := range []struct {
		o    Op
		want error
	}{
		{&Txn{Then: []Op{&Put{Key: b}, &Put{Key: b}}}, ErrDuplicateKey},
		{&Txn{Then: []Op{&Put{Key: a}, &Delete{Key: a}}}, ErrDuplicateKey},
		{&Txn{Then: []Op{&Put{Key: b}, &Put{Key: a, Lease: 7}}}, ErrLeaseNotFound},
		{&Put{Key: a, Lease: 7}, ErrLeaseNotFound},
		{&Put{Key: b, KeepValue: true}, ErrKeyNotFound},
		{&Txn{Then: []Op{&Delete{Key: a}, &Put{Key: a, KeepLease: true}}}, ErrKeyNotFound},
		{&Txn{Then: []Op{&Delete{Key: a}, &Put{Key: a, KeepValue: true}}}, ErrKeyNotFound},
		{&Txn{Then: []Op{&Put{Key: b}, &Range{Key: a, Revision: 3}}}, ErrFutureRevision},
		{&Txn{Then: []Op{&Put{Key: b}, &Range{Key: a, Revision: -2}}}, ErrCompacted},
		{&Txn{Then: []Op{&Txn{Then: []Op{&Range{Key: a, Revision: -2}}}}}, ErrCompacted},
	} {
		if _, err := x.do(c.o); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.o, err, c.want)
		}
	}
	if x.Machine(1).Digest() != before || x.status().Revision != 2 {
		t.Error("a refused request left something")
	}
	// A condition keeps what would be refused from being looked at.
	x.must(&Txn{If: []Compare{{Key: a, Target: Version}}, Then: []Op{&Put{Key: a, Lease: 7}}})
	// As in etcd, -1 is the first revision until there is a compaction; and outside of a transaction any negative one is the newest.
	last := &Txn{Then: []Op{&Range{Key: a, Revision: -1}}}
	x.must(last)
	if err := x.compact(2); err != nil {
		t.Fatal(err)
	}
	if _, err := x.do(last); !errors.Is(err, ErrCompacted) {
		t.Errorf("revision -1 in a transaction after a compaction: %v, want %v", err, ErrCompacted)
	}
	x.must(&Range{Key: a, Revision: -2})
}
