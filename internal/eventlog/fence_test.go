package eventlog

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// fakeKV stands for the key space: the token in its one row is the holder's.
type fakeKV struct{}

func (fakeKV) ID() shard.ModuleID { return shard.ModuleKV }

func (fakeKV) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	if holder, ok := strings.CutPrefix(string(cmd), "holder "); ok {
		tx.Set([]byte("h"), []byte(holder))
		return nil, nil
	}
	if h, _ := tx.Get([]byte("h")); "fence "+string(h) != string(cmd) {
		return nil, errs.New(errs.Fenced, "%s holds it, not %s", h, cmd)
	}
	return nil, nil
}

func (fakeKV) Query(shard.View, []byte) ([]byte, error) { return nil, nil }
func (fakeKV) Fire(*shard.Tx, []byte) error             { return nil }

func fencedModule() Module {
	return Module{EncodeFence: func(lock []byte, token int64, home bool) []byte {
		return fmt.Appendf(nil, "fence %s %d %v", lock, token, home)
	}}
}

// fencedBatch is a batch whose records have the header with these values.
func fencedBatch(producer int64, seq int32, tokens ...string) []byte {
	w := newBatchBuilder(64)
	for _, t := range tokens {
		w.add(5, nil, true, []byte("v"), false, []Header{{Name: "other", Value: nil}, {Name: FenceHeader, Value: []byte(t)}})
	}
	b := w.finish(0, -1)
	if producer >= 0 {
		binary.BigEndian.PutUint64(b[43:], uint64(producer))
		binary.BigEndian.PutUint16(b[51:], 0)
		binary.BigEndian.PutUint32(b[53:], uint32(seq))
	}
	return resum(b)
}

func fencedWorld(t *testing.T) (w *world, holder func(string)) {
	w = &world{t: t, c: shardtest.New(t, shardtest.Options{}, fencedModule(), fakeKV{})}
	w.must(EncodeCreateTopic(Topic{ID: topicA, Name: "t", Partitions: 2, Fence: "lock"}))
	return w, func(h string) {
		t.Helper()
		r := w.c.Submit(t.Context(), shard.Route{Shard: 1}, shard.Command{Module: shard.ModuleKV, Data: []byte("holder " + h)}).Wait(t.Context())
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
}

func (w *world) appendUnder(token int64, home bool, batch []byte) Appended {
	w.t.Helper()
	list, err := DecodeAppended(w.must(EncodeAppend([]Append{{topicA, 0, batch, token}}, home)))
	if err != nil || len(list) != 1 {
		w.t.Fatalf("append: %v, %d answers", err, len(list))
	}
	return list[0]
}

func TestFence_AppendsUnderTheTokenOnly(t *testing.T) {
	w, holder := fencedWorld(t)
	holder("lock 7 true")
	if a := w.appendUnder(7, true, fencedBatch(9, 0, "7", "7")); a.Err != nil || a.Base != 0 {
		t.Fatalf("holder: %+v", a)
	}
	for _, c := range []struct {
		token int64
		home  bool
		want  string
	}{{6, true, CodeStale}, {8, true, CodeStale}, {7, false, CodeStale}, {0, true, "INVALIDRECORD"}} {
		if a := w.appendUnder(c.token, c.home, fencedBatch(-1, 0, "7")); code(a.Err) != c.want {
			t.Errorf("token %d home %v: %+v, want %s", c.token, c.home, a, c.want)
		}
	}
	if e := w.ends(0); e.End != 2 {
		t.Errorf("%d records after refusals, want 2", e.End)
	}
	// The next holder. A batch of the old one that is sent again had been appended, and gets its offset; a new one of its is refused, and
	// leaves the producer's sequence as it was.
	holder("lock 9 true")
	if a := w.appendUnder(7, true, fencedBatch(9, 0, "7", "7")); a.Err != nil || a.Base != 0 {
		t.Errorf("repeated by the old holder: %+v", a)
	}
	if a := w.appendUnder(TokenStale, false, fencedBatch(9, 0, "7", "7")); a.Err != nil || a.Base != 0 {
		t.Errorf("repeated through a node that knows of the next holder: %+v", a)
	}
	for _, token := range []int64{7, TokenStale} {
		if a := w.appendUnder(token, true, fencedBatch(9, 2, "7")); code(a.Err) != CodeStale {
			t.Errorf("late: %+v", a)
		}
	}
	if a := w.appendUnder(9, true, fencedBatch(9, 2, "9")); a.Err != nil || a.Base != 2 {
		t.Errorf("the same producer under the new token: %+v", a)
	}
}

func TestFence_TopicsWithoutALock(t *testing.T) {
	w, holder := fencedWorld(t)
	holder("lock 7 true")
	w.must(EncodeCreateTopic(Topic{ID: [16]byte{0xb}, Name: "free", Partitions: 1}))
	list, err := DecodeAppended(w.must(EncodeAppend([]Append{{[16]byte{0xb}, 0, batchOf(1), 0}, {[16]byte{0xb}, 0, batchOf(1), 7}, {topicA, 0, batchOf(1), 7}}, true)))
	if err != nil || list[0].Err != nil || !errs.Is(list[1].Err, errs.Unavailable) || list[2].Err != nil {
		t.Errorf("%+v %v", list, err)
	}
	// Without the other model nothing passes.
	w = newWorld(t)
	w.must(EncodeCreateTopic(Topic{ID: topicA, Name: "t", Partitions: 2, Fence: "lock"}))
	if a := w.appendUnder(7, true, batchOf(1)); !errs.Is(a.Err, errs.Unsupported) {
		t.Errorf("%+v", a)
	}
}

func TestFence_EventsNeedTheLockOfTheirTopic(t *testing.T) {
	w, _ := fencedWorld(t)
	event := func(locks ...string) error {
		var bs [][]byte
		for _, l := range locks {
			bs = append(bs, []byte(l))
		}
		_, err := w.do(AppendEvent(nil, topicA, 0, nil, true, []byte("v"), nil, bs))
		return err
	}
	for _, c := range []struct {
		locks []string
		ok    bool
	}{{nil, false}, {[]string{"other"}, false}, {[]string{""}, false}, {[]string{"other", "lock"}, true}} {
		if err := event(c.locks...); c.ok != (err == nil) || err != nil && !errs.Is(err, errs.Fenced) {
			t.Errorf("under %q: %v", c.locks, err)
		}
	}
}

func TestTopics_TellTheirLocks(t *testing.T) {
	w, _ := fencedWorld(t)
	w.must(EncodeCreateTopic(Topic{ID: [16]byte{0xb}, Name: "free", Partitions: 1}))
	w.must(EncodePlaceTopic(Topic{ID: [16]byte{0xc}, Name: "placed", Partitions: 1, Fence: "l"}))
	b, err := w.ask(QueryTopics())
	if err != nil {
		t.Fatal(err)
	}
	list, err := DecodeTopics(b)
	if err != nil || len(list) != 2 || list[0].Fence != "" || list[1].Fence != "lock" {
		t.Errorf("%+v %v", list, err)
	}
	if b, err = w.ask(QueryTopicByID([16]byte{0xc})); err != nil {
		t.Fatal(err)
	}
	if p, err := DecodeTopic(b); err != nil || p.Fence != "l" {
		t.Errorf("%+v %v", p, err)
	}
	if _, err := w.do(EncodeCreateTopic(Topic{ID: [16]byte{0xd}, Name: "long", Partitions: 1, Fence: strings.Repeat("l", FenceMax+1)})); code(err) != "INVALIDCONFIG" {
		t.Errorf("a long name: %v", err)
	}
}

func TestCheckRecords_Tokens(t *testing.T) {
	twice := newBatchBuilder(64)
	twice.add(1, nil, true, nil, true, []Header{{FenceHeader, []byte("7")}, {FenceHeader, []byte("7")}})
	second := newBatchBuilder(64)
	second.add(1, nil, true, nil, true, []Header{{FenceHeader, []byte("7")}})
	second.add(1, nil, true, nil, true, []Header{{"quorate-fencE", []byte("7")}})
	null := newBatchBuilder(64)
	null.add(1, nil, true, nil, true, []Header{{FenceHeader, nil}})
	for _, c := range []struct {
		name  string
		batch []byte
		want  string
		token int64
	}{
		{"good", fencedBatch(-1, 0, "7", "7", "7"), "", 7},
		{"the largest", fencedBatch(-1, 0, "9223372036854775807"), "", 1<<63 - 1},
		{"too large", fencedBatch(-1, 0, "9223372036854775808"), "in the header", 0},
		{"none", batchOf(1), "has no header", 0},
		{"none in the second", second.finish(0, -1), "record 1 of the batch has no header", 0},
		{"unequal", fencedBatch(-1, 0, "7", "8"), "record 1 of the batch has another token", 0},
		{"twice", twice.finish(0, -1), "several headers", 0},
		{"null", null.finish(0, -1), `has "" in the header`, 0},
		{"empty", fencedBatch(-1, 0, ""), `has "" in the header`, 0},
		{"no number", fencedBatch(-1, 0, "x7"), `has "x7" in the header`, 0},
		{"a sign", fencedBatch(-1, 0, "+7"), `has "+7" in the header`, 0},
		{"zero", fencedBatch(-1, 0, "0"), `has "0" in the header`, 0},
		{"endless", fencedBatch(-1, 0, strings.Repeat("7", 5000)), "in the header", 0},
		{"more than is counted", slices.Concat(fencedBatch(-1, 0, "7"), batchOf(1)[BatchHeaderSize:]), "more than the 1 records", 0},
	} {
		if c.name == "more than is counted" {
			binary.BigEndian.PutUint32(c.batch[8:], uint32(len(c.batch)-12))
			resum(c.batch)
		}
		_, token, err := checkAll(t, c.batch, Topic{Name: "t", Fence: "lock"})
		if token != c.token || c.want == "" && err != nil || c.want != "" && (err == nil || code(err) != "INVALIDRECORD" || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %d %v, want %q", c.name, token, err, c.want)
		}
	}
}
