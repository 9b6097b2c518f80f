package kv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// tester asks one shard in memory.
type tester struct {
	t *testing.T
	*shardtest.Client
}

func newTester(t *testing.T) *tester {
	return &tester{t, shardtest.New(t, shardtest.Options{}, Module{})}
}

func (x *tester) submit(cmd []byte) ([]byte, error) {
	r := x.Submit(context.Background(), shard.Route{Shard: 1}, shard.Command{Module: shard.ModuleKV, Data: cmd}).Wait(context.Background())
	return r.Data, r.Err
}

func (x *tester) query(q []byte) ([]byte, error) {
	return x.Query(context.Background(), shard.Route{Shard: 1}, shard.Linearizable, shard.Command{Module: shard.ModuleKV, Data: q})
}

// do runs an operation as a query if it can be one.
func (x *tester) do(o Op) (Answer, error) {
	ask := x.submit
	if ReadOnly(o) {
		ask = x.query
	}
	b, err := ask(EncodeOp(o))
	if err != nil {
		return Answer{}, err
	}
	a, err := DecodeAnswer(b)
	if err != nil {
		x.t.Fatalf("answer to %+v: %v", o, err)
	}
	return a, nil
}

func (x *tester) must(o Op) Answer {
	x.t.Helper()
	a, err := x.do(o)
	if err != nil {
		x.t.Fatalf("%T %+v: %v", o, o, err)
	}
	return a
}

func (x *tester) put(key, value string) int64 {
	x.t.Helper()
	return x.must(&Put{Key: []byte(key), Value: []byte(value)}).Revision
}

func (x *tester) status() Status {
	x.t.Helper()
	b, err := x.query(EncodeStatus())
	if err != nil {
		x.t.Fatalf("status: %v", err)
	}
	s, err := DecodeStatus(b)
	if err != nil {
		x.t.Fatalf("status: %v", err)
	}
	return s
}

func (x *tester) compact(rev int64) error {
	_, err := x.submit(EncodeCompact(rev))
	return err
}

func (x *tester) events(from int64, bytesMax int, prev bool) (Events, error) {
	b, err := x.query(EncodeEvents(from, bytesMax, prev))
	if err != nil {
		return Events{}, err
	}
	e, err := DecodeEvents(b)
	if err != nil {
		x.t.Fatalf("events: %v", err)
	}
	return e, nil
}

// show renders versions as key=value@mod/create/version.
func show(kvs []KeyValue) string {
	var b strings.Builder
	for _, kv := range kvs {
		fmt.Fprintf(&b, "%s=%s@%d/%d/%d ", kv.Key, kv.Value, kv.Mod, kv.Create, kv.Version)
	}
	return strings.TrimSpace(b.String())
}

func TestPut_VersionsAndRevisions(t *testing.T) {
	x := newTester(t)
	if s := x.status(); s.Revision != 1 {
		t.Errorf("an empty key space has revision %d, want 1", s.Revision)
	}
	if rev := x.put("a", "1"); rev != 2 {
		t.Errorf("first write has revision %d, want 2", rev)
	}
	x.put("a", "2")
	a := x.must(&Put{Key: []byte("a"), Value: []byte("3"), WantPrev: true})
	if got := show(a.KVs); got != "a=2@3/2/2" || a.Revision != 4 {
		t.Errorf("previous %s at %d", got, a.Revision)
	}
	if a := x.must(&Delete{Key: []byte("nothing")}); a.Revision != 4 || a.Count != 0 {
		t.Errorf("deleting nothing: revision %d, %d deleted", a.Revision, a.Count)
	}
	if a := x.must(&Delete{Key: []byte("a"), WantPrev: true}); a.Revision != 5 || a.Count != 1 || show(a.KVs) != "a=3@4/2/3" {
		t.Errorf("delete: %+v", a)
	}
	x.put("a", "again")
	if got := show(x.must(&Range{Key: []byte("a")}).KVs); got != "a=again@6/6/1" {
		t.Errorf("after a deletion: %s", got)
	}
}

func TestRange_Options(t *testing.T) {
	x := newTester(t)
	for _, kv := range []string{"b 2", "a 3", "c 1", "a 4", "d 0", "b 9"} {
		k, v, _ := strings.Cut(kv, " ")
		x.put(k, v)
	}
	x.must(&Delete{Key: []byte("d")})
	all := func(o Range) *Range {
		o.Key, o.End = []byte{0}, []byte{0}
		return &o
	}
	for _, c := range []struct {
		name  string
		o     *Range
		want  string
		more  bool
		count int64
	}{
		{"all", all(Range{}), "a=4@5/3/2 b=9@7/2/2 c=1@4/4/1", false, 3},
		{"one", &Range{Key: []byte("b")}, "b=9@7/2/2", false, 1},
		{"missing", &Range{Key: []byte("d")}, "", false, 0},
		{"half open", &Range{Key: []byte("a"), End: []byte("c")}, "a=4@5/3/2 b=9@7/2/2", false, 2},
		{"from a key on", &Range{Key: []byte("b"), End: []byte{0}}, "b=9@7/2/2 c=1@4/4/1", false, 2},
		{"upside down", &Range{Key: []byte("c"), End: []byte("a")}, "", false, 0},
		{"limit", all(Range{Limit: 2}), "a=4@5/3/2 b=9@7/2/2", true, 3},
		{"limit that is met", all(Range{Limit: 3}), "a=4@5/3/2 b=9@7/2/2 c=1@4/4/1", false, 3},
		{"count only", all(Range{CountOnly: true, Limit: 1}), "", false, 3},
		{"keys only", all(Range{KeysOnly: true}), "a=@5/3/2 b=@7/2/2 c=@4/4/1", false, 3},
		{"descending", all(Range{Order: Descending}), "c=1@4/4/1 b=9@7/2/2 a=4@5/3/2", false, 3},
		{"by value", all(Range{Target: ByValue}), "c=1@4/4/1 a=4@5/3/2 b=9@7/2/2", false, 3},
		{"by value, keys only", all(Range{Target: ByValue, KeysOnly: true}), "c=@4/4/1 a=@5/3/2 b=@7/2/2", false, 3},
		{"by value in no order, the first two of which one", all(Range{Target: ByValue, Limit: 1}), "a=4@5/3/2", true, 3},
		{"by value in no order, two", all(Range{Target: ByValue, Limit: 2}), "c=1@4/4/1 a=4@5/3/2", true, 3},
		{"by value, limit", all(Range{Target: ByValue, Order: Ascending, Limit: 1}), "c=1@4/4/1", true, 3},
		{"by value in no order, filters", all(Range{Target: ByValue, MinMod: 1, Limit: 1}), "c=1@4/4/1", true, 3},
		{"by mod, down, limit", all(Range{Target: ByMod, Order: Descending, Limit: 1}), "b=9@7/2/2", true, 3},
		{"by create", all(Range{Target: ByCreate, Order: Ascending}), "b=9@7/2/2 a=4@5/3/2 c=1@4/4/1", false, 3},
		{"by version", all(Range{Target: ByVersion}), "c=1@4/4/1 a=4@5/3/2 b=9@7/2/2", false, 3},
		{"mod filters", all(Range{MinMod: 5, MaxMod: 6}), "a=4@5/3/2", false, 3},
		{"create filters", all(Range{MinCreate: 3, MaxCreate: 3, Limit: 5}), "a=4@5/3/2", false, 3},
		{"filter and limit", all(Range{MinCreate: 1, Limit: 1}), "a=4@5/3/2", true, 3},
		{"at 4", all(Range{Revision: 4}), "a=3@3/3/1 b=2@2/2/1 c=1@4/4/1", false, 3},
		{"at 7", all(Range{Revision: 7}), "a=4@5/3/2 b=9@7/2/2 c=1@4/4/1 d=0@6/6/1", false, 4},
		{"at 1", all(Range{Revision: 1}), "", false, 0},
		{"one at 6", &Range{Key: []byte("b"), Revision: 6}, "b=2@2/2/1", false, 1},
		{"deleted one at 6", &Range{Key: []byte("d"), Revision: 6}, "d=0@6/6/1", false, 1},
		{"limit at 7", all(Range{Revision: 7, Limit: 1}), "a=4@5/3/2", true, 4},
		{"mod filters, both ends", all(Range{MinMod: 4, MaxMod: 5}), "a=4@5/3/2 c=1@4/4/1", false, 3},
		{"down, limit that is met", all(Range{Order: Descending, Limit: 3}), "c=1@4/4/1 b=9@7/2/2 a=4@5/3/2", false, 3},
	} {
		a := x.must(c.o)
		if got := show(a.KVs); got != c.want || a.More != c.more || a.Count != c.count || a.Revision != 8 {
			t.Errorf("%s: got %s more %v count %d revision %d, want %s %v %d 8", c.name, got, a.More, a.Count, a.Revision, c.want, c.more, c.count)
		}
	}
	if _, err := x.do(all(Range{Revision: 9})); !errors.Is(err, ErrFutureRevision) {
		t.Errorf("future: %v", err)
	}
}

func TestPut_KeepsValueOrLease(t *testing.T) {
	x := newTester(t)
	if _, err := x.submit(EncodeGrant(5, 60)); err != nil {
		t.Fatal(err)
	}
	key := []byte("a")
	x.must(&Put{Key: key, Value: []byte("1"), Lease: 5})
	x.must(&Put{Key: key, Value: []byte("2"), KeepLease: true})
	if kv := x.must(&Range{Key: key}).KVs[0]; kv.Lease != 5 || string(kv.Value) != "2" {
		t.Errorf("got %+v", kv)
	}
	x.must(&Put{Key: key, KeepValue: true})
	if kv := x.must(&Range{Key: key}).KVs[0]; kv.Lease != 0 || string(kv.Value) != "2" || kv.Version != 3 {
		t.Errorf("got %+v", kv)
	}
	// It is another key that comes after the deletion of one.
	other := []byte("b")
	x.must(&Put{Key: other, Lease: 5})
	x.must(&Delete{Key: other})
	x.must(&Put{Key: other})
	last := []byte("c")
	x.must(&Put{Key: last, Lease: 5})
	rev, err := DecodeRevision(must(t)(x.submit(EncodeRevoke(5))))
	if a := x.must(&Range{Key: key, End: []byte{0}}); err != nil || rev != 9 || show(a.KVs) != "a=2@4/2/3 b=@7/7/1" || a.Revision != rev {
		t.Errorf("after the end of the lease, at %d: %s at %d, %v", rev, show(a.KVs), a.Revision, err)
	}
	if l := x.ttl(x.query(EncodeTimeToLive(5, 0, false))); l.TTL != -1 {
		t.Errorf("a lease that was revoked: %+v", l)
	}
}

// must returns answers that are no errors.
func must(t *testing.T) func(b []byte, err error) []byte {
	return func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

func (x *tester) ttl(b []byte, err error) TTL {
	x.t.Helper()
	if err != nil {
		x.t.Fatalf("lease: %v", err)
	}
	l, err := DecodeTTL(b)
	if err != nil {
		x.t.Fatalf("lease: %v", err)
	}
	return l
}

func TestLease_Life(t *testing.T) {
	x := newTester(t)
	if l := x.ttl(x.submit(EncodeGrant(1, 1))); l.TTL != LeaseTTLMin || l.Granted != LeaseTTLMin {
		t.Errorf("short TTL: %+v", l)
	}
	x.ttl(x.submit(EncodeGrant(2, 100)))
	if _, err := x.submit(EncodeGrant(2, 10)); !errors.Is(err, ErrLeaseExists) {
		t.Errorf("grant 2 again: %v", err)
	}
	if _, err := x.submit(EncodeGrant(3, LeaseTTLMax+1)); !errors.Is(err, ErrLeaseTTLTooLarge) {
		t.Errorf("endless: %v", err)
	}
	if l := x.ttl(x.submit(EncodeGrant(4, LeaseTTLMax))); l.TTL != LeaseTTLMax {
		t.Errorf("the longest: %+v", l)
	}
	if _, err := x.submit(EncodeRevoke(4)); err != nil {
		t.Error(err)
	}
	x.must(&Put{Key: []byte("k1"), Lease: 2})
	x.must(&Put{Key: []byte("k2"), Lease: 2})
	x.Advance(60 * time.Second)
	l := x.ttl(x.query(EncodeTimeToLive(2, x.Now().UnixMilli(), true)))
	if l.TTL != 40 || l.Granted != 100 || string(bytes.Join(l.Keys, []byte(" "))) != "k1 k2" {
		t.Errorf("after a minute: %+v", l)
	}
	if l := x.ttl(x.submit(EncodeKeepAlive(2))); l.TTL != 100 {
		t.Errorf("renewed: %+v", l)
	}
	if l := x.ttl(x.submit(EncodeKeepAlive(9))); l.TTL != 0 {
		t.Errorf("renewal of no lease: %+v", l)
	}
	x.Advance(60 * time.Second)
	if x.must(&Range{Key: []byte("k1")}).Count != 1 {
		t.Error("gone too early")
	}
	rev := x.status().Revision
	x.Advance(41 * time.Second)
	if a := x.must(&Range{Key: []byte("k"), End: []byte("l")}); a.Count != 0 || a.Revision != rev+1 {
		t.Errorf("%d keys left, revision %d, want 0 and %d", a.Count, a.Revision, rev+1)
	}
	if l := x.ttl(x.query(EncodeTimeToLive(2, 0, false))); l.TTL != -1 {
		t.Errorf("gone lease: %+v", l)
	}
	if _, err := x.submit(EncodeRevoke(2)); !errors.Is(err, ErrLeaseNotFound) {
		t.Errorf("revoke: %v", err)
	}
	b, err := x.query(EncodeLeases())
	if _, ids, err2 := DecodeLeases(b); err != nil || err2 != nil || len(ids) != 0 {
		t.Errorf("leases %v %v %v", ids, err, err2)
	}
}

// A new leader gives leases their whole TTL: their clients may have had nobody to ask for a while.
func TestLease_NewLeaderGivesTime(t *testing.T) {
	x := newTester(t)
	m := x.Machine(1)
	at, index, term := x.Now(), uint64(0), uint64(1)
	apply := func(e []byte) {
		out := shard.Applied{}
		index++
		if err := errors.Join(m.Apply(index, term, e, &out), m.Commit(&out)); err != nil {
			t.Fatal(err)
		}
	}
	command := func(cmd []byte) {
		e := shard.AppendBatchHeader(nil, shard.BatchHeader{Session: 1, Seq: index + 1, Low: index + 1, Stamp: at})
		apply(shard.AppendCommand(e, shard.Command{Module: shard.ModuleKV, Data: cmd}))
	}
	fire := func() { apply(shard.TimersEntry(at)) }
	left := func() int64 { return x.ttl(x.query(EncodeTimeToLive(1, at.UnixMilli(), false))).TTL }
	command(EncodeGrant(1, 10))
	at, term = at.Add(8*time.Second), 2
	command(EncodeOp(&Put{Key: []byte("a")}))
	at = at.Add(3 * time.Second)
	fire()
	if got := left(); got != 7 {
		t.Errorf("%d s left, want 7: ten since the leader was first seen", got)
	}
	at = at.Add(8 * time.Second)
	fire()
	if got := left(); got != -1 {
		t.Errorf("%d s left of a lease that nobody renewed", got)
	}
	command(EncodeGrant(1, 10))
	// This leader is first seen by the lease's own end.
	at, term = at.Add(time.Hour), 3
	fire()
	if got := left(); got != 10 {
		t.Errorf("%d s left, want 10", got)
	}
}

func TestEvents_WholeRevisionsWithPrevious(t *testing.T) {
	x := newTester(t)
	x.put("a", "1")
	x.must(&Txn{Then: []Op{&Put{Key: []byte("a"), Value: []byte("2")}, &Put{Key: []byte("b"), Value: bytes.Repeat([]byte("x"), 500)}}})
	x.must(&Delete{Key: []byte("a"), End: []byte{0}})
	x.put("a", "3")
	e, err := x.events(3, 1, true)
	if err != nil || len(e.Events) != 2 || e.Next != 4 || e.Revision != 5 {
		t.Fatalf("first part: %+v %v", e, err)
	}
	if p := e.Events[0].Prev; p == nil || show([]KeyValue{*p}) != "a=1@2/2/1" || e.Events[1].Prev != nil {
		t.Errorf("previous: %+v", e.Events)
	}
	e, err = x.events(e.Next, 1<<20, true)
	if err != nil || len(e.Events) != 3 || e.Next != 6 {
		t.Fatalf("rest: %+v %v", e, err)
	}
	if d := e.Events[0]; !d.Deleted || d.KV.Mod != 4 || string(d.KV.Key) != "a" || show([]KeyValue{*d.Prev}) != "a=2@3/2/2" {
		t.Errorf("deletion: %+v", d)
	}
	if e, err := x.events(6, 1<<20, false); err != nil || len(e.Events) != 0 || e.Next != 6 {
		t.Errorf("at the end: %+v %v", e, err)
	}
	if e, err := x.events(99, 1<<20, false); err != nil || len(e.Events) != 0 || e.Next != 99 {
		t.Errorf("future: %+v %v", e, err)
	}
}

func TestCompact_ReadersAndEvents(t *testing.T) {
	x := newTester(t)
	x.put("a", "1")
	x.put("a", "2")
	x.must(&Delete{Key: []byte("a")})
	x.put("a", "3")
	if err := x.compact(6); !errors.Is(err, ErrFutureRevision) {
		t.Errorf("future: %v", err)
	}
	if err := x.compact(4); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		if _, err := x.do(&Range{Key: []byte("a"), Revision: 3}); !errors.Is(err, ErrCompacted) {
			t.Errorf("read before: %v", err)
		}
		if a := x.must(&Range{Key: []byte("a"), Revision: 4}); a.Count != 0 {
			t.Errorf("read at: %s", show(a.KVs))
		}
		if _, err := x.events(3, 1<<20, false); !errors.Is(err, ErrCompacted) {
			t.Errorf("events before: %v", err)
		}
		e, err := x.events(4, 1<<20, true)
		if err != nil || len(e.Events) != 2 || !e.Events[0].Deleted || e.Compacted != 4 {
			t.Errorf("events at: %+v %v", e, err)
		}
	}
	check()
	x.Advance(time.Second)
	check()
	if e, err := x.events(4, 1<<20, true); err != nil || e.Events[0].Prev != nil {
		t.Errorf("a version from before: %+v %v", e, err)
	}
	if err := x.compact(4); !errors.Is(err, ErrCompacted) {
		t.Errorf("again: %v", err)
	}
	if s := x.status(); s != (Status{Revision: 5, Compacted: 4, Removed: 4}) {
		t.Errorf("status %+v", s)
	}
}

// A compaction of any size ends, step by step, and leaves as many rows as there are things to see.
func TestCompact_RemovesAllInSteps(t *testing.T) {
	x := newTester(t)
	for i := range 3 * removeMax {
		x.put(fmt.Sprint(i%10), fmt.Sprint(i))
	}
	var ops []Op
	for i := range 2 * removeMax {
		ops = append(ops, &Put{Key: fmt.Append(nil, "t", i)})
	}
	x.must(&Txn{Then: ops})
	rev := x.put("last", "")
	before := x.hash(rev)
	x.put("0", "later")
	if err := x.compact(rev); err != nil {
		t.Fatal(err)
	}
	// What is visible does not change with what is removed.
	hash := x.hash(rev)
	if hash.Sum != before.Sum {
		t.Errorf("checksum %x before the compaction, %x after it", before.Sum, hash.Sum)
	}
	steps := 0
	for ; x.status().Removed < rev; steps++ {
		x.Advance(removePause)
		if got := x.hash(rev); got != hash || steps > 100 {
			t.Fatalf("after %d steps: %+v, checksum %+v, want %+v", steps, x.status(), got, hash)
		}
	}
	if steps < 4 {
		t.Errorf("%d steps only", steps)
	}
	rows := map[byte]int{}
	for k := range dumpRows(t, x.Machine(1)) {
		rows[k[0]]++
	}
	if want := map[byte]int{rowSpace: 1, rowHead: 10 + 2*removeMax + 1, rowOld: 1, rowEvent: 2}; !maps.Equal(rows, want) {
		t.Errorf("rows left: %v, want %v", rows, want)
	}
	if got := x.hash(rev); got != hash {
		t.Errorf("in the end the checksum is %+v, want %+v", got, hash)
	}
}

func TestCompact_StepsGrowWithWhatIsLeft(t *testing.T) {
	// size is how many events a step has in which each revision has so many.
	size := func(events int, compact int64) int {
		for rev := int64(1); ; rev++ {
			if n := int(rev) * events; stepEnds(n, 0, rev, compact) {
				return n
			}
		}
	}
	for _, c := range []struct {
		events  int
		compact int64
		want    int
	}{
		{1, 1_000, removeMin},
		{1, 9_000_000, 100},
		{1, 45_000_000, 500},
		{1, 10_000_000_000, removeMax},
		{100, 90_000, 100},
		{100, 450_000, 500},
		{3 * removeMax, 2, 3 * removeMax},
	} {
		if got := size(c.events, c.compact); got != c.want {
			t.Errorf("%d events a revision, compaction to %d: steps of %d, want %d", c.events, c.compact, got, c.want)
		}
	}
}

func (x *tester) hash(rev int64) Hash {
	x.t.Helper()
	b, err := x.query(EncodeHash(rev))
	if err != nil {
		x.t.Fatalf("hash: %v", err)
	}
	h, err := DecodeHash(b)
	if err != nil {
		x.t.Fatalf("hash: %v", err)
	}
	return h
}

// dumpRows returns the module's rows.
func dumpRows(t *testing.T, m *shard.Machine) map[string]string {
	t.Helper()
	rows := map[string]string{}
	r, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // a read view
	for {
		b, err := r.Next(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		if b == nil {
			return rows
		}
		d := codec.Read(b)
		for d.Len() > 0 {
			k, v := d.Bytes(), d.Bytes()
			if k[0] == byte(shard.ModuleKV) {
				rows[string(k[1:])] = string(v)
			}
		}
	}
}

// past is a model of the key space: for each revision what was there, and what happened.
type past struct {
	at     []map[string]KeyValue
	events [][]Event
}

func (p *past) rev() int64 { return int64(len(p.at) - 1) }

func (p *past) read(o *Range, rev int64) (kvs []KeyValue) {
	r := rangeOf(o.Key, o.End)
	for k, kv := range p.at[rev] {
		if r.one && k == string(o.Key) || !r.one && k >= string(o.Key) && (r.all || k < string(o.End)) {
			kvs = append(kvs, kv)
		}
	}
	slices.SortFunc(kvs, func(a, b KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	return kvs
}

func (p *past) commit(next map[string]KeyValue, events []Event) {
	p.at, p.events = append(p.at, next), append(p.events, events)
}

func clone(m map[string]KeyValue) map[string]KeyValue {
	c := map[string]KeyValue{}
	for k, v := range m {
		c[k] = v
	}
	return c
}

// modelKeys begin with each other, and hold the bytes that rows escape.
var modelKeys = []string{"", "a", "a\x00", "a\x00\x01", "a\x00\xff", "a\x01", "b", "\x00", "\x00\x00", "\xff", "\xff\xff", "ab"}

// TestModel compares long random histories with a model that keeps everything.
func TestModel(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 1))
		x := newTester(t)
		p := &past{at: []map[string]KeyValue{{}, {}}, events: make([][]Event, 2)}
		compacted := int64(0)
		key := func() []byte { return []byte(modelKeys[rng.IntN(len(modelKeys))]) }
		ranged := func() (k, end []byte) {
			switch k = key(); rng.IntN(4) {
			case 0:
				return k, []byte{0}
			case 1:
				return k, key()
			}
			return k, nil
		}
		for i := range 600 {
			switch rng.IntN(10) {
			case 0, 1, 2, 3:
				// A hot key has many versions.
				k := []byte("a")
				if rng.IntN(2) == 0 {
					k = key()
				}
				v := fmt.Append(nil, "v", i)
				a := x.must(&Put{Key: k, Value: v, WantPrev: true})
				next, rev := clone(p.at[p.rev()]), p.rev()+1
				kv := KeyValue{Key: k, Value: v, Create: rev, Mod: rev, Version: 1}
				ev := Event{}
				if was, ok := next[string(k)]; ok {
					kv.Create, kv.Version = was.Create, was.Version+1
					ev.Prev = &was
					if show(a.KVs) != show([]KeyValue{was}) {
						t.Fatalf("seed %d: previous %s, want %s", seed, show(a.KVs), show([]KeyValue{was}))
					}
				}
				next[string(k)], ev.KV = kv, kv
				p.commit(next, []Event{ev})
			case 4, 5:
				k, end := ranged()
				a := x.must(&Delete{Key: k, End: end})
				gone := p.read(&Range{Key: k, End: end}, p.rev())
				if a.Count != int64(len(gone)) {
					t.Fatalf("seed %d: %d deleted, want %d", seed, a.Count, len(gone))
				}
				if len(gone) == 0 {
					break
				}
				next := clone(p.at[p.rev()])
				var evs []Event
				for _, kv := range gone {
					delete(next, string(kv.Key))
					evs = append(evs, Event{KV: KeyValue{Key: kv.Key, Mod: p.rev() + 1}, Deleted: true, Prev: &kv})
				}
				p.commit(next, evs)
			case 6:
				if rng.IntN(8) == 0 && compacted < p.rev() {
					compacted += 1 + rng.Int64N(p.rev()-compacted)
					if err := x.compact(compacted); err != nil {
						t.Fatalf("seed %d: compact %d: %v", seed, compacted, err)
					}
				}
				x.Advance(time.Duration(rng.IntN(3)) * removePause)
			case 7:
				from := max(compacted, 1) + rng.Int64N(p.rev()-max(compacted, 1)+1)
				e, err := x.events(from, 1<<20, true)
				if err != nil {
					t.Fatalf("seed %d: events from %d: %v", seed, from, err)
				}
				var want []Event
				for rev := from; rev <= p.rev(); rev++ {
					for _, ev := range p.events[rev] {
						if ev.Prev != nil && rev <= compacted {
							// Whether it is still there depends on how far the removal is.
							ev.Prev = nil
						}
						want = append(want, ev)
					}
				}
				for i := range e.Events {
					if e.Events[i].KV.Mod <= compacted {
						e.Events[i].Prev = nil
					}
				}
				if got, want := fmt.Sprint(renderEvents(e.Events)), fmt.Sprint(renderEvents(want)); got != want {
					t.Fatalf("seed %d: events from %d:\n got %s\nwant %s", seed, from, got, want)
				}
			default:
				k, end := ranged()
				rev := max(compacted, 1) + rng.Int64N(p.rev()-max(compacted, 1)+1)
				o := &Range{Key: k, End: end, Revision: rev, Limit: int64(rng.IntN(4))}
				a := x.must(o)
				want := p.read(o, rev)
				if a.Count != int64(len(want)) || a.More != (o.Limit > 0 && int64(len(want)) > o.Limit) {
					t.Fatalf("seed %d: %+v: count %d more %v, want %d", seed, o, a.Count, a.More, len(want))
				}
				if o.Limit > 0 && int64(len(want)) > o.Limit {
					want = want[:o.Limit]
				}
				if got, want := show(a.KVs), show(want); got != want {
					t.Fatalf("seed %d: %q to %q at %d:\n got %s\nwant %s", seed, k, end, rev, got, want)
				}
			}
			if got := x.status().Revision; got != p.rev() {
				t.Fatalf("seed %d: revision %d, want %d", seed, got, p.rev())
			}
		}
	}
}

func renderEvents(evs []Event) (out []string) {
	for _, e := range evs {
		s := show([]KeyValue{e.KV})
		if e.Deleted {
			s = "delete " + s
		}
		if e.Prev != nil {
			s += " was " + show([]KeyValue{*e.Prev})
		}
		out = append(out, s)
	}
	return out
}

func TestModule_Conformance(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var steps []shardtest.Step
	add := func(after time.Duration, cmd []byte) { steps = append(steps, shardtest.Step{After: after, Cmd: cmd}) }
	for _, l := range loads() {
		add(time.Second, EncodeLoad(l))
	}
	for id := range int64(5) {
		add(0, EncodeGrant(id+1, 5+id*3))
	}
	for i := range 400 {
		k := []byte(modelKeys[rng.IntN(len(modelKeys))])
		switch rng.IntN(8) {
		case 0:
			add(time.Second, EncodeOp(&Delete{Key: k, End: []byte{0}}))
		case 1:
			add(0, EncodeOp(&Txn{
				If:   []Compare{{Key: k, Target: Version, Relation: Greater}},
				Then: []Op{&Delete{Key: k}}, Else: []Op{&Put{Key: k, Value: []byte("new")}, &Range{Key: k}},
			}))
		case 2:
			add(300*time.Millisecond, EncodeKeepAlive(1+rng.Int64N(6)))
		case 3:
			add(0, EncodeCompact(int64(i/3)))
		case 4:
			add(0, EncodeRevoke(1+rng.Int64N(20)))
		default:
			add(time.Millisecond, EncodeOp(&Put{Key: k, Value: fmt.Append(nil, i), Lease: rng.Int64N(4), WantPrev: true}))
		}
	}
	shardtest.Conformance(t, []shard.Module{Module{}}, shard.ModuleKV, steps)
}

func TestEncode_RoundTrip(t *testing.T) {
	ops := []Op{
		&Range{Key: []byte("a"), End: []byte{0}, Limit: 5, Revision: 7, Target: ByMod, Order: Descending, KeysOnly: true, MinMod: 1, MaxMod: 2, MinCreate: 3, MaxCreate: 4},
		&Range{Key: []byte{}, End: []byte{}, CountOnly: true},
		&Put{Key: []byte("k"), Value: []byte("v"), Lease: -3, WantPrev: true, KeepLease: true},
		&Delete{Key: []byte("k"), End: []byte("l"), WantPrev: true},
	}
	ops = append(ops, &Txn{
		If: []Compare{
			{Key: []byte("k"), End: []byte{}, Target: Value, Relation: Less, Value: []byte("v")},
			{Key: []byte("k"), End: []byte("z"), Target: Lease, Relation: NotEqual, Number: 9},
		},
		Then: slices.Clone(ops), Else: []Op{&Txn{}},
	})
	for _, o := range ops {
		d, r, err := begin(EncodeOp(o))
		if err != nil || r != reqOp {
			t.Fatalf("begin: %v %v", r, err)
		}
		got := d.op(0)
		if err := d.end(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
		if !reflect.DeepEqual(o, got) {
			t.Errorf("got %+v, want %+v", got, o)
		}
	}
	// Nesting has an end.
	deep := Op(&Txn{})
	for range DepthMax {
		deep = &Txn{Then: []Op{deep}}
	}
	if _, err := (Module{}).Query(emptyView{}, EncodeOp(deep)); errs.KindOf(err) != errs.Corrupt {
		t.Errorf("nested too deep: %v", err)
	}
}

// What is on disk and in logs must stay readable.
func TestEncodings_Golden(t *testing.T) {
	v := KeyValue{Key: []byte("k"), Value: []byte("v"), Create: 2, Mod: 300, Version: 3, Lease: 4}
	s := space{rev: 5, compact: 4, removed: 3, term: 2, since: 1}
	l := lease{ttl: 60, granted: 60, end: 1_700_000_000_000, term: 7}
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"space", s.encode(), "01" + "0500000000000000" + "0400000000000000" + "0300000000000000" + "0200000000000000" + "0100000000000000"},
		{"newest key", appendHeadKey(nil, []byte("a\x00b")), "6b" + "610062"},
		{"older key", oldKey([]byte("a\x00b"), 300), "6f" + "6100ff62" + "0001" + "fffffffffffffed3"},
		{"version", encodeVersion(v.Mod, &v), "ac02" + "02" + "03" + "04" + "76"},
		{"event key", eventKey(300, 2), "72" + "000000000000012c" + "00000002"},
		{"event", encodeEvent(eventDelete, 299, []byte("k")), "01" + "ab02" + "6b"},
		{"lease key", leaseKey(-2), "6c" + "fffffffffffffffe"},
		{"lease", l.encode(), "3c" + "3c" + "80d095ffbc31" + "07"},
		{"attached", attachedKey(4, []byte("k")), "61" + "0000000000000004" + "6b"},
		{"range", EncodeOp(&Range{Key: []byte("a"), End: []byte{0}, Limit: 1, KeysOnly: true, MinMod: 2, Target: ByMod, Order: Descending}), "0101" + "01050302" + "0161" + "0100" + "01" + "00" + "02000000"},
		{"put", EncodeOp(&Put{Key: []byte("a"), Value: []byte("b"), Lease: 3, WantPrev: true}), "0101" + "0201" + "0161" + "0162" + "03"},
		{"delete", EncodeOp(&Delete{Key: []byte("a")}), "0101" + "0300" + "0161" + "00"},
		{"txn", EncodeOp(&Txn{If: []Compare{{Key: []byte("a"), Target: Value, Value: []byte("b")}}, Then: []Op{&Delete{}}}), "0101" + "0401" + "0300" + "0161" + "00" + "0162" + "01" + "03000000" + "00"},
		{"compact", EncodeCompact(9), "010209"}, {"grant", EncodeGrant(1, 2), "01030102"}, {"revoke", EncodeRevoke(1), "010401"}, {"renewal", EncodeKeepAlive(1), "010501"},
		{"load", EncodeLoad(loads()[1]), "0120" + "07000000000000000000000000000000" + "01" + "32320100" + "0162" + "0132" + "01" + "093c" + "00" + "00"},
	} {
		if got := fmt.Sprintf("%x", c.got); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// emptyView is a key space without rows.
type emptyView struct{ shard.View }

func (emptyView) Get([]byte) ([]byte, bool) { return nil, false }

// FuzzRequest runs what may come from anywhere, as a command and as a query, on a key space with some history. Nothing panics.
func FuzzRequest(f *testing.F) {
	for _, b := range [][]byte{
		EncodeOp(&Put{Key: []byte("a")}), EncodeOp(&Txn{If: []Compare{{Key: []byte("a")}}, Then: []Op{&Delete{Key: []byte("a"), End: []byte{0}}}}),
		EncodeOp(&Range{Key: []byte("a"), End: []byte{0}, Revision: 2}), EncodeCompact(2), EncodeGrant(1, 2), EncodeRevoke(1), EncodeKeepAlive(1),
		EncodeStatus(), EncodeEvents(2, 10, true), EncodeTimeToLive(1, 0, true), EncodeLeases(), EncodeHash(0), EncodeLoad(loads()[0]), EncodeLoad(loads()[2]),
		EncodeFence([]byte("a"), 2, true), EncodeFence([]byte("a"), 2, false),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := newTester(t).submit(b); errs.KindOf(err) == errs.Internal {
			t.Errorf("%x, on an empty key space: %v", b, err)
		}
		x := newTester(t)
		x.put("a", "1")
		x.put("a", "2")
		_, _ = x.query(b)
		_ = Uses(b, x.query, func(Use) error { return nil })
		if _, err := x.submit(b); errs.KindOf(err) == errs.Internal {
			t.Errorf("%x: %v", b, err)
		}
		_, _ = x.query(b)
		_ = x.hash(0)
	})
}

// FuzzAnswer reads answers that nobody gave.
func FuzzAnswer(f *testing.F) {
	a := Answer{Op: OpTxn, Answers: []Answer{{Op: OpRange, KVs: []KeyValue{{Key: []byte("a")}}}, {Op: OpPut}, {Op: OpDelete}}}
	f.Add(appendAnswer(nil, &a))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = DecodeAnswer(b)
		_, _ = DecodeEvents(b)
		_, _ = DecodeTTL(b)
		_, _, _ = DecodeLeases(b)
		_, _ = DecodeHash(b)
		_, _ = DecodeStatus(b)
		_, _ = DecodeRevision(b)
	})
}
