package eventlog

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

var topicA = [16]byte{0xa}

// world is one shard with the event log in it, and short ways to use it.
type world struct {
	t *testing.T
	c *shardtest.Client
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{t: t, c: shardtest.New(t, shardtest.Options{}, Module{})}
}

func (w *world) do(cmd []byte) ([]byte, error) {
	r := w.c.Submit(context.Background(), shard.Route{Shard: 1}, shard.Command{Module: shard.ModuleEventlog, Data: cmd}).Wait(context.Background())
	return r.Data, r.Err
}

func (w *world) must(cmd []byte) []byte {
	w.t.Helper()
	b, err := w.do(cmd)
	if err != nil {
		w.t.Fatalf("command %d: %v", cmd[1], err)
	}
	return b
}

func (w *world) ask(q []byte) ([]byte, error) {
	return w.c.Query(context.Background(), shard.Route{Shard: 1}, shard.Linearizable, shard.Command{Module: shard.ModuleEventlog, Data: q})
}

func (w *world) append(part int32, batch []byte) Appended {
	w.t.Helper()
	list, err := DecodeAppended(w.must(EncodeAppend([]Append{{Topic: topicA, Partition: part, Batch: batch}}, false)))
	if err != nil || len(list) != 1 {
		w.t.Fatalf("append: %v, %d answers", err, len(list))
	}
	return list[0]
}

func (w *world) fetch(offset int64, bytesMax int32, first bool) Fetched {
	w.t.Helper()
	b, err := w.ask(QueryFetch(bytesMax, first, []Fetch{{Topic: topicA, Offset: offset, BytesMax: bytesMax}}))
	if err != nil {
		w.t.Fatalf("fetch: %v", err)
	}
	list, err := DecodeFetched(b)
	if err != nil || len(list) != 1 {
		w.t.Fatalf("fetch: %v, %d answers", err, len(list))
	}
	return list[0]
}

func (w *world) ends(epoch int32) EndsAnswer {
	w.t.Helper()
	b, err := w.ask(QueryEnds([]Ends{{Topic: topicA, Epoch: epoch}}))
	if err != nil {
		w.t.Fatalf("ends: %v", err)
	}
	list, err := DecodeEnds(b)
	if err != nil || len(list) != 1 {
		w.t.Fatalf("ends: %v, %d answers", err, len(list))
	}
	return list[0]
}

// batchOf makes a batch as a client would send it, with records stamped at the given times.
func batchOf(times ...int64) []byte {
	w := newBatchBuilder(64)
	for i, ms := range times {
		w.add(ms, []byte("k"), false, fmt.Appendf(nil, "v%d", i), false, []Header{{Name: "h", Value: []byte("x")}})
	}
	return w.finish(0, -1)
}

// from makes a batch of an idempotent producer.
func from(producer int64, epoch int16, seq int32, records int) []byte {
	b := batchOf(make([]int64, records)...)
	binary.BigEndian.PutUint64(b[43:], uint64(producer))
	binary.BigEndian.PutUint16(b[51:], uint16(epoch))
	binary.BigEndian.PutUint32(b[53:], uint32(seq))
	return resum(b)
}

func code(err error) string {
	if e, ok := err.(*errs.Error); ok {
		if e.Code != "" {
			return e.Code
		}
		return e.Kind.String()
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func TestCreateTopic_Rules(t *testing.T) {
	w := newWorld(t)
	ok := Topic{ID: topicA, Name: "orders", Partitions: 3, RetentionMs: 5, MessageBytesMax: 100}
	got, err := DecodeTopic(w.must(EncodeCreateTopic(ok)))
	if err != nil || got.Name != "orders" || got.Created != 1_700_000_000_000 {
		t.Errorf("created %+v, %v", got, err)
	}
	long := make([]byte, 250)
	for i := range long {
		long[i] = 'a'
	}
	for _, c := range []struct {
		change func(*Topic)
		want   string
	}{
		{func(t *Topic) {}, "exists"},
		{func(t *Topic) { t.Name = "other" }, "exists"},
		{func(t *Topic) { t.Name = "" }, "INVALIDTOPIC"},
		{func(t *Topic) { t.Name = "." }, "INVALIDTOPIC"},
		{func(t *Topic) { t.Name = ".." }, "INVALIDTOPIC"},
		{func(t *Topic) { t.Name = "__changes.x" }, "INVALIDTOPIC"},
		{func(t *Topic) { t.Name = "a b" }, "INVALIDTOPIC"},
		{func(t *Topic) { t.Name = "a{b}" }, "INVALIDTOPIC"},
		{func(t *Topic) { t.Name = "é" }, "INVALIDTOPIC"},
		{func(t *Topic) { t.Name = string(long) }, "INVALIDTOPIC"},
		{func(t *Topic) { t.Name = "b"; t.ID = [16]byte{} }, "invalid"},
		{func(t *Topic) { t.Name = "b"; t.Partitions = 0 }, "INVALIDPARTITIONS"},
		{func(t *Topic) { t.Name = "b"; t.RetentionMs = -1 }, "INVALIDCONFIG"},
		{func(t *Topic) { t.Name = "b"; t.MessageBytesMax = MessageBytesMax + 1 }, "INVALIDCONFIG"},
	} {
		x := ok
		c.change(&x)
		if _, err := w.do(EncodeCreateTopic(x)); code(err) != c.want {
			t.Errorf("create %+v: got %v, want %s", x, err, c.want)
		}
	}
	b, err := w.ask(QueryTopics())
	list, err2 := DecodeTopics(b)
	if err != nil || err2 != nil || len(list) != 1 || list[0] != got {
		t.Errorf("topics: %+v, %v, %v", list, err, err2)
	}
	b, err = w.ask(QueryTopicByName("orders"))
	if one, err2 := DecodeTopic(b); err != nil || err2 != nil || one != got {
		t.Errorf("by name: %+v, %v, %v", one, err, err2)
	}
	b, err = w.ask(QueryTopicByID(topicA))
	if one, err2 := DecodeTopic(b); err != nil || err2 != nil || one != got {
		t.Errorf("by id: %+v, %v, %v", one, err, err2)
	}
	if _, err := w.ask(QueryTopicByName("nope")); !errs.Is(err, errs.NotFound) {
		t.Errorf("missing name: %v", err)
	}
	if _, err := w.ask(QueryTopicByID([16]byte{9})); !errs.Is(err, errs.NotFound) {
		t.Errorf("missing id: %v", err)
	}
}

func TestCreateTopic_PartitionsOfSpaceBounded(t *testing.T) {
	w := newWorld(t)
	n := PartitionsMax / PartitionsPerTopicMax
	for i := range n {
		w.must(EncodeCreateTopic(Topic{ID: [16]byte{1, byte(i)}, Name: fmt.Sprint("t", i), Partitions: PartitionsPerTopicMax}))
	}
	if _, err := w.do(EncodeCreateTopic(Topic{ID: [16]byte{2}, Name: "x", Partitions: 1})); code(err) != "INVALIDPARTITIONS" {
		t.Errorf("one partition too many: %v", err)
	}
}

func TestAppendAndFetch_OffsetsAndBounds(t *testing.T) {
	w := newWorld(t)
	b := batchOf(10, 20, 30)
	if a := w.append(0, b); a.Err != nil || a.Base != 0 {
		t.Fatalf("first append: %+v", a)
	}
	if a := w.append(0, b); a.Err != nil || a.Base != 3 {
		t.Fatalf("second append: %+v", a)
	}
	if h, _ := ReadBatchHeader(b); h.BaseOffset != 0 {
		t.Errorf("the command was changed: %+v", h)
	}
	for _, c := range []struct {
		offset  int64
		max     int32
		first   bool
		batches int
		err     string
	}{
		{0, 1 << 20, true, 2, ""}, {1, 1 << 20, true, 2, ""}, {2, 1 << 20, true, 2, ""}, {3, 1 << 20, true, 1, ""},
		{5, 1 << 20, true, 1, ""}, {6, 1 << 20, true, 0, ""}, {7, 1 << 20, true, 0, "invalid"}, {-1, 1 << 20, true, 0, "compacted"},
		{0, 1, true, 1, ""}, {0, 1, false, 0, ""}, {0, 0, true, 1, ""}, {0, 0, false, 0, ""}, {0, int32(len(b)), false, 1, ""},
		{0, -5, false, 0, ""},
	} {
		f := w.fetch(c.offset, c.max, c.first)
		if len(f.Batches) != c.batches*len(b) || code(f.Err) != c.err || f.Start != 0 || f.End != 6 {
			t.Errorf("fetch %d max %d: %d bytes, %v, %d..%d, want %d batches", c.offset, c.max, len(f.Batches), f.Err, f.Start, f.End, c.batches)
		}
	}
	f := w.fetch(4, 1000, true)
	h, ok := ReadBatchHeader(f.Batches)
	if !ok || h.BaseOffset != 3 || h.LeaderEpoch != 1 {
		t.Errorf("batch of offset 4: %+v", h)
	}
	if _, _, err := checkAll(t, f.Batches, Topic{}); err != nil {
		t.Errorf("fetched batch: %v", err)
	}
	if f := w.fetch(0, 10, true); len(f.Batches) != len(b) {
		t.Errorf("first batch was not returned whole")
	}
}

func TestAppend_EachPartitionHasItsResult(t *testing.T) {
	w := newWorld(t)
	bad := batchOf(1)
	bad[16] = 1
	list, err := DecodeAppended(w.must(EncodeAppend([]Append{
		{topicA, 0, batchOf(1), 0}, {topicA, 1, bad, 0}, {topicA, 0, batchOf(1, 2), 0},
	}, false)))
	if err != nil || len(list) != 3 {
		t.Fatalf("answers: %+v, %v", list, err)
	}
	if list[0].Err != nil || list[0].Base != 0 || !errs.Is(list[1].Err, errs.Unsupported) || list[2].Err != nil || list[2].Base != 1 {
		t.Errorf("answers: %+v", list)
	}
}

func TestCheckBatch_WhatIsRefused(t *testing.T) {
	put32 := func(at int, v int32) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint32(b[at:], uint32(v)); return b }
	}
	put16 := func(at int, v int16) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint16(b[at:], uint16(v)); return b }
	}
	put64 := func(at int, v int64) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint64(b[at:], uint64(v)); return b }
	}
	for name, c := range map[string]struct {
		f    func([]byte) []byte
		want string
	}{
		"good":                 {func(b []byte) []byte { return b }, ""},
		"empty":                {func([]byte) []byte { return nil }, "INVALIDRECORD"},
		"header only cut":      {func(b []byte) []byte { return b[:60] }, "INVALIDRECORD"},
		"cut":                  {func(b []byte) []byte { return b[:len(b)-1] }, "INVALIDRECORD"},
		"trailing":             {func(b []byte) []byte { return append(b, 0) }, "INVALIDRECORD"},
		"two batches":          {func(b []byte) []byte { return append(b, b...) }, "INVALIDRECORD"},
		"negative length":      {put32(8, -1), "INVALIDRECORD"},
		"huge length":          {put32(8, math.MaxInt32), "INVALIDRECORD"},
		"magic 0":              {func(b []byte) []byte { b[16] = 0; return b }, "OLDFORMAT"},
		"magic 1":              {func(b []byte) []byte { b[16] = 1; return b }, "OLDFORMAT"},
		"magic 3":              {func(b []byte) []byte { b[16] = 3; return b }, "OLDFORMAT"},
		"crc":                  {func(b []byte) []byte { b[17] ^= 1; return b }, "CORRUPTBATCH"},
		"content":              {func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, "CORRUPTBATCH"},
		"no records":           {put32(57, 0), "INVALIDRECORD"},
		"negative records":     {put32(57, -1), "INVALIDRECORD"},
		"many records":         {put32(57, math.MaxInt32), "INVALIDRECORD"},
		"delta":                {put32(23, 5), "INVALIDRECORD"},
		"control":              {put16(21, AttrControl), "INVALIDRECORD"},
		"transactional":        {put16(21, AttrTransactional), "TRANSACTION"},
		"codec 5":              {put16(21, 5), "COMPRESSION"},
		"append time":          {put16(21, AttrLogAppendTime), "INVALIDTIMESTAMP"},
		"producer no epoch":    {put64(43, 5), "INVALIDRECORD"},
		"time min":             {put64(35, math.MinInt64), "INVALIDTIMESTAMP"},
		"first time min":       {put64(27, math.MinInt64), "INVALIDTIMESTAMP"},
		"max time lies":        {func(b []byte) []byte { return resum(put64(35, 99)(b)) }, ""},
		"more counted":         {func(b []byte) []byte { return resum(put32(57, 3)(put32(23, 2)(b))) }, "INVALIDRECORD"},
		"less counted":         {func(b []byte) []byte { return resum(put32(57, 1)(put32(23, 0)(b))) }, "INVALIDRECORD"},
		"record length":        {func(b []byte) []byte { b[61] = 0x7f; return resum(b) }, "INVALIDRECORD"},
		"record length varint": {func(b []byte) []byte { copy(b[61:], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"); return resum(b) }, "INVALIDRECORD"},
		"record delta":         {func(b []byte) []byte { b[64] = 8; return resum(b) }, "INVALIDRECORD"},
		"record key length":    {func(b []byte) []byte { b[65] = 0x7e; return resum(b) }, "INVALIDRECORD"},
	} {
		_, _, err := checkAll(t, c.f(batchOf(1, 2)), Topic{})
		if code(err) != c.want {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestIdempotence_Rules(t *testing.T) {
	w := newWorld(t)
	step := func(b []byte, base int64, want string) {
		t.Helper()
		a := w.append(0, b)
		if code(a.Err) != want || a.Err == nil && a.Base != base {
			t.Errorf("got %+v, want base %d %q", a, base, want)
		}
	}
	step(from(7, 0, 3, 1), 0, "UNKNOWNPRODUCER")
	step(from(7, 0, 0, 2), 0, "")
	step(from(7, 0, 0, 2), 0, "")
	step(from(7, 0, 3, 1), 0, "OUTOFORDER")
	step(from(7, 0, 2, 1), 2, "")
	for i := range int32(5) {
		step(from(7, 0, 3+i, 1), int64(3+i), "")
	}
	step(from(7, 0, 3, 1), 3, "")
	step(from(7, 0, 2, 1), 0, "OUTOFORDER")
	step(from(7, 1, 9, 1), 0, "OUTOFORDER")
	step(from(7, 1, 0, 1), 8, "")
	step(from(7, 0, 8, 1), 0, "fenced")
	step(from(8, 0, 0, 1), 9, "")
	if e := w.ends(1); e.End != 10 {
		t.Errorf("end: %+v", e)
	}
	w.c.Advance(23 * time.Hour)
	step(from(8, 0, 1, 1), 10, "")
	w.c.Advance(2 * time.Hour)
	step(from(7, 1, 1, 1), 0, "UNKNOWNPRODUCER")
	step(from(8, 0, 2, 1), 11, "")
	w.c.Advance(48 * time.Hour)
	step(from(8, 0, 3, 1), 0, "UNKNOWNPRODUCER")
}

func TestIdempotence_SequenceWraps(t *testing.T) {
	if got := lastSequence(math.MaxInt32, 2); got != 0 {
		t.Errorf("got %d", got)
	}
	p := producer{batches: []sequence{{math.MaxInt32 - 1, math.MaxInt32, 5}}}
	if _, again, err := p.check(true, BatchHeader{BaseSequence: 0, Records: 1}); again || err != nil {
		t.Errorf("wrapped sequence: %v %v", again, err)
	}
}

func TestInitProducer_IDsAreUnique(t *testing.T) {
	w := newWorld(t)
	seen := map[int64]bool{}
	for range 10 {
		id, err := DecodeProducer(w.must(EncodeInitProducer()))
		if err != nil || seen[id] || id <= 0 {
			t.Fatalf("id %d, %v", id, err)
		}
		seen[id] = true
	}
}

func TestEvent_IsOneBatchWithClockTime(t *testing.T) {
	w := newWorld(t)
	for i := range 3 {
		b := w.must(AppendEvent(nil, topicA, 0, []byte("k"), false, []byte("v"), []Header{{Name: "a", Value: nil}, {Name: "b", Value: []byte("c")}}, nil))
		if len(b) != 8 || binary.BigEndian.Uint64(b) != uint64(i) {
			t.Fatalf("answer %x", b)
		}
	}
	f := w.fetch(1, 1<<20, true)
	h, _, err := checkAll(t, f.Batches[:len(f.Batches)/2], Topic{})
	if err != nil || h.BaseOffset != 1 || h.MaxTimestamp != w.c.Now().UnixMilli() || h.ProducerID != -1 {
		t.Errorf("batch %+v, %v", h, err)
	}
	w.must(AppendEvent(nil, topicA, 0, nil, true, nil, nil, nil))
	many := make([]Header, headersMax+1)
	if _, err := w.do(AppendEvent(nil, topicA, 0, nil, true, nil, many, nil)); !errs.Is(err, errs.Invalid) {
		t.Errorf("too many headers: %v", err)
	}
}

// mixer is a module whose commands are lists of appends, of which some are undone.
type mixer struct{ Module }

func (mixer) ID() shard.ModuleID { return shard.ModuleDatatypes }

// Apply reads the seed of a list and leaves, in the answer, what must be found afterwards: partition and value of each record.
func (mixer) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	r := rand.New(rand.NewPCG(uint64(cmd[0]), 1))
	var kept []byte
	call := func(data []byte) {
		if _, err := tx.Call(shard.Command{Module: shard.ModuleEventlog, Data: data}); err != nil {
			panic(err)
		}
	}
	for range 60 {
		part, before := int32(r.IntN(3)), kept
		_, _ = tx.Try(func() ([]byte, error) {
			for range 1 + r.IntN(3) {
				// Lengths around those where a record's own length takes one, two and three bytes.
				v := make([]byte, []int{0, 50, 51, 52, 53, 54, 55, 56, 57, 58, 300, 8180, 8190, 20000}[r.IntN(14)])
				for i := range v {
					v[i] = byte(r.Uint32())
				}
				if r.IntN(4) == 0 {
					w := newBatchBuilder(0)
					w.add(5, nil, true, v, false, nil)
					call(EncodeAppend([]Append{{Topic: topicA, Partition: part, Batch: w.finish(0, -1)}}, false))
				} else {
					call(AppendEvent(tx.Room(r.IntN(30000)), topicA, part, nil, true, v, nil, nil))
				}
				kept = append(append(kept, byte(part)), fmt.Sprintf("%x ", sha256.Sum256(v))...)
			}
			if r.IntN(3) == 0 {
				kept = before
				return nil, errs.New(errs.Invalid, "undone")
			}
			return nil, nil
		})
	}
	return kept, nil
}

func TestAppend_ManyInOneEntry(t *testing.T) {
	for seed := range byte(20) {
		w := &world{t: t, c: shardtest.New(t, shardtest.Options{}, Module{}, mixer{})}
		var want [3]string
		for round := range byte(3) {
			r := w.c.Submit(t.Context(), shard.Route{Shard: 1}, shard.Command{Module: shard.ModuleDatatypes, Data: []byte{3*seed + round}}).Wait(t.Context())
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			for _, line := range strings.SplitAfter(string(r.Data), " ") {
				if line != "" {
					want[line[0]] += line[1:]
				}
			}
		}
		for part := range want {
			got, next := "", int64(0)
			b, err := w.ask(QueryFetch(1<<30, true, []Fetch{{Topic: topicA, Partition: int32(part), BytesMax: 1 << 30}}))
			if err != nil {
				t.Fatal(err)
			}
			list, err := DecodeFetched(b)
			if err != nil {
				t.Fatal(err)
			}
			for rest := list[0].Batches; len(rest) > 0; {
				n := 12 + binary.BigEndian.Uint32(rest[8:])
				h, _, err := checkAll(t, rest[:n], Topic{})
				if err != nil || h.BaseOffset != next || n > 2*eventBatchBytes {
					t.Fatalf("seed %d, partition %d: batch of %d bytes at %d, want %d: %v", seed, part, n, h.BaseOffset, next, err)
				}
				next += int64(h.Records)
				for body := rest[BatchHeaderSize:n]; len(body) > 0; {
					size, w := binary.Varint(body)
					d := dec{codec.Read(body[w:])}
					d.Byte()
					d.Varint()
					d.Varint()
					d.Fixed(int(max(d.Varint(), 0)))
					got += fmt.Sprintf("%x ", sha256.Sum256(d.Fixed(int(max(d.Varint(), 0)))))
					body = body[w+int(size):]
				}
				rest = rest[n:]
			}
			if got != want[part] || list[0].End != next {
				t.Errorf("seed %d, partition %d: %d records to %d are not those that were appended", seed, part, next, list[0].End)
			}
		}
	}
}

// peeker is the event log, but answers queries with how many producers a partition counts.
type peeker struct{ Module }

func (peeker) Query(v shard.View, _ []byte) ([]byte, error) {
	p, _ := readPartition(v, topicA, 0)
	return binary.BigEndian.AppendUint32(nil, uint32(p.producers)), nil
}

// both is a module whose command runs an event, a batch of a new producer, and an event.
type both struct{ Module }

func (both) ID() shard.ModuleID { return shard.ModuleDatatypes }
func (both) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	event := AppendEvent(nil, topicA, 0, nil, true, []byte("v"), nil, nil)
	for _, data := range [][]byte{event, EncodeAppend([]Append{{Topic: topicA, Batch: from(int64(cmd[0]), 0, 0, 1)}}, false), event} {
		if _, err := tx.Call(shard.Command{Module: shard.ModuleEventlog, Data: data}); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func TestAppend_ProducersOfOneEntryAreCounted(t *testing.T) {
	w := &world{t: t, c: shardtest.New(t, shardtest.Options{}, peeker{}, both{})}
	for n := range byte(3) {
		if r := w.c.Submit(t.Context(), shard.Route{Shard: 1}, shard.Command{Module: shard.ModuleDatatypes, Data: []byte{n}}).Wait(t.Context()); r.Err != nil {
			t.Fatal(r.Err)
		}
		b, err := w.ask(nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := binary.BigEndian.Uint32(b); got != uint32(n)+1 {
			t.Errorf("the partition counts %d producers, want %d", got, n+1)
		}
	}
}

// What an append to many partitions allocates for each must not grow with their number: once it was a list of all others.
func TestAppend_ManyPartitionsCostWhatTheyAre(t *testing.T) {
	bytesFor := func(n int) uint64 {
		w := newWorld(t)
		var list []Append
		for i := range n {
			list = append(list, Append{Topic: topicA, Partition: int32(i), Batch: batchOf(5)})
		}
		cmd := EncodeAppend(list, false)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		w.must(cmd)
		runtime.ReadMemStats(&after)
		return (after.TotalAlloc - before.TotalAlloc) / uint64(n)
	}
	if few, many := bytesFor(500), bytesFor(8000); many > 3*few {
		t.Errorf("%d bytes for each of 8000 partitions, %d for each of 500", many, few)
	}
}

func TestAppend_WakesWatchers(t *testing.T) {
	w := newWorld(t)
	one := w.c.Watch(shard.Route{Shard: 1}, PartitionSpan(topicA, 0))
	other := w.c.Watch(shard.Route{Shard: 1}, PartitionSpan(topicA, 1))
	all := w.c.Watch(shard.Route{Shard: 1}, AllPartitionsSpan())
	defer one.Close()
	defer other.Close()
	defer all.Close()
	w.append(0, batchOf(1))
	if len(one.C) != 1 || len(other.C) != 0 || len(all.C) != 1 {
		t.Errorf("signals: %d %d %d", len(one.C), len(other.C), len(all.C))
	}
	if s := GroupSpan("g"); s.To != nil {
		t.Errorf("group span %+v", s)
	}
	if s := ChangesSpan(); s.Module != shard.ModuleDatatypes {
		t.Errorf("changes span %+v", s)
	}
}

func TestQueryTime_AgainstModel(t *testing.T) {
	// Retention may cut a stretch of the time index, the open one too, and take the batch with the latest time.
	for _, keep := range []int{0, 250, 10} {
		queryTimes(t, keep)
	}
}

// queryTimes looks for all times before and after retention has left so many batches, 0 for all.
func queryTimes(t *testing.T, keep int) {
	t.Helper()
	w := newWorld(t)
	if keep > 0 {
		w.must(EncodePlaceTopic(Topic{ID: topicA, Name: "t", Partitions: 1, RetentionBytes: int64(keep * len(batchOf(1, 1)))}))
	}
	type b struct{ base, max int64 }
	var model []b
	seed := uint64(42)
	next := func(n int64) int64 {
		seed = seed*6364136223846793005 + 1442695040888963407
		return int64(seed>>33) % n
	}
	at := int64(1000)
	for i := range 400 {
		at += next(20) - 5
		latest := at
		if i == 100 {
			latest = 1_000_000
		}
		base := w.append(0, batchOf(latest, latest-3)).Base
		model = append(model, b{base, latest})
	}
	check := func() {
		t.Helper()
		start := w.ends(1).Start
		for ms := int64(900); ms < at+100; ms += 7 {
			want := int64(-1)
			for _, x := range model {
				if x.base >= start && x.max >= ms {
					want = x.base
					break
				}
			}
			got := int64(-1)
			v, err := w.ask(QueryTime(topicA, 0, ms))
			if h, ok := ReadBatchHeader(v); ok {
				got = h.BaseOffset
			}
			if err != nil || got != want {
				t.Fatalf("time %d: got %d, want %d (%v)", ms, got, want, err)
			}
		}
		latest, want := int64(-1), int64(0)
		for _, x := range model {
			if x.base >= start && x.max > latest {
				latest, want = x.max, x.base
			}
		}
		v, _ := w.ask(QueryTime(topicA, 0, LatestTime))
		if h, _ := ReadBatchHeader(v); h.BaseOffset != want {
			t.Errorf("latest: got %d, want %d", h.BaseOffset, want)
		}
	}
	check()
	w.c.Advance(time.Hour)
	if start, want := w.ends(1).Start, model[min(400-keep, 399)].base; keep > 0 && start != want {
		t.Fatalf("the log starts at %d, want %d", start, want)
	}
	check()
	if d, at, ok, err := FindTime(batchOf(5, 9), BatchHeader{Records: 2, FirstTimestamp: 5}, nil, 6); !ok || d != 1 || at != 9 || err != nil {
		t.Errorf("find time: %d %d %v %v", d, at, ok, err)
	}
	if v, err := w.ask(QueryTime(topicA, 9, 0)); v != nil || err != nil {
		t.Errorf("empty partition: %x, %v", v, err)
	}
}

func TestRetention_TimeAndBytes(t *testing.T) {
	w := newWorld(t)
	size := int64(len(batchOf(1)))
	topic := Topic{ID: topicA, Name: "r", Partitions: 1, RetentionMs: 60_000, RetentionBytes: 3 * size}
	w.must(EncodePlaceTopic(topic))
	w.must(EncodePlaceTopic(topic))
	now := func() int64 { return w.c.Now().UnixMilli() }
	for range 5 {
		w.append(0, batchOf(now()))
	}
	w.c.Advance(10 * time.Second)
	if e := w.ends(1); e.Start != 2 || e.End != 5 {
		t.Errorf("after bytes retention: %+v", e)
	}
	if f := w.fetch(1, 100, true); !errs.Is(f.Err, errs.Compacted) {
		t.Errorf("fetch of deleted offset: %v", f.Err)
	}
	w.c.Advance(time.Minute)
	w.c.Advance(10 * time.Second)
	if e := w.ends(1); e.Start != 5 || e.End != 5 {
		t.Errorf("after time retention: %+v", e)
	}
	if a := w.append(0, batchOf(now())); a.Base != 5 || a.LogStart != 5 {
		t.Errorf("append to emptied partition: %+v", a)
	}
	w.c.Advance(3 * time.Minute)
	if e := w.ends(1); e.Start != 6 {
		t.Errorf("timer was not set again: %+v", e)
	}
}

func TestRetention_BoundedWorkKeepsIndexRight(t *testing.T) {
	w := newWorld(t)
	w.must(EncodePlaceTopic(Topic{ID: topicA, Name: "r", Partitions: 1, RetentionMs: 1000}))
	t0 := w.c.Now().UnixMilli()
	for i := range int64(1500) {
		w.append(0, batchOf(t0+i%7))
	}
	w.append(0, batchOf(t0+3_600_000))
	for i := range int64(100) {
		w.append(0, batchOf(t0+i))
	}
	w.c.Advance(5 * time.Second)
	if e := w.ends(1); e.Start != 1500 {
		t.Fatalf("start %d", e.Start)
	}
	v, _ := w.ask(QueryTime(topicA, 0, t0+50))
	if h, _ := ReadBatchHeader(v); h.BaseOffset != 1500 {
		t.Errorf("by time: %d", h.BaseOffset)
	}
	v, _ = w.ask(QueryTime(topicA, 0, LatestTime))
	if h, _ := ReadBatchHeader(v); h.BaseOffset != 1500 {
		t.Errorf("latest: %d", h.BaseOffset)
	}
}

// changer is a module that writes to the change log.
type changer struct{ Module }

func (changer) ID() shard.ModuleID { return shard.ModuleDatatypes }
func (changer) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	if string(cmd) == "event" {
		return tx.Call(shard.Command{Module: shard.ModuleEventlog, Data: AppendEvent(nil, topicA, 0, nil, true, []byte("v"), nil, nil)})
	}
	var v []byte
	if string(cmd) != "del" {
		v = cmd
	}
	tx.Emit("set", []byte("k"), []byte("k"), v, shard.Header{Name: "field", Value: []byte("f")})
	return nil, nil
}

func TestChanges_AsRecords(t *testing.T) {
	c := shardtest.New(t, shardtest.Options{}, Module{}, changer{})
	w := &world{t: t, c: c}
	times := []int64{}
	for _, v := range []string{"a", "bb", "del", "dddd"} {
		c.Advance(time.Second)
		times = append(times, c.Now().UnixMilli())
		if r := c.Submit(context.Background(), shard.Route{Shard: 1}, shard.Command{Module: shard.ModuleDatatypes, Data: []byte(v)}).Wait(context.Background()); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	get := func(offset int64, bytesMax int32, first bool) Fetched {
		b, err := w.ask(QueryFetch(bytesMax, first, []Fetch{{Changes: true, Offset: offset, BytesMax: bytesMax}}))
		if err != nil {
			t.Fatal(err)
		}
		l, err := DecodeFetched(b)
		if err != nil {
			t.Fatal(err)
		}
		return l[0]
	}
	f := get(1, 1<<20, true)
	h, _, err := checkAll(t, f.Batches, Topic{})
	if err != nil || h.BaseOffset != 1 || h.Records != 3 || f.End != 4 || h.MaxTimestamp != times[3] {
		t.Errorf("batch %+v, %v, %+v", h, err, f)
	}
	if f := get(0, 1, true); f.Err != nil {
		t.Error(f.Err)
	} else if h, _, err := checkAll(t, f.Batches, Topic{}); err != nil || h.Records != 1 {
		t.Errorf("small: %+v %v", h, err)
	}
	if f := get(0, 0, false); len(f.Batches) != 0 {
		t.Errorf("no bytes: %+v", f)
	}
	if f := get(4, 100, true); f.Err != nil || len(f.Batches) != 0 {
		t.Errorf("at the end: %+v", f)
	}
	if f := get(5, 100, true); !errs.Is(f.Err, errs.Invalid) {
		t.Errorf("beyond: %+v", f)
	}
	if f := get(-1, 100, true); !errs.Is(f.Err, errs.Invalid) {
		t.Errorf("negative: %+v", f)
	}
	for _, q := range []struct{ ms, offset int64 }{{0, 0}, {times[1], 1}, {times[1] + 1, 2}, {times[3], 3}, {times[3] + 1, -1}, {LatestTime, 3}} {
		b, err := w.ask(QueryChangeTime(q.ms))
		off, _, err2 := DecodeChangeTime(b)
		if err != nil || err2 != nil || off != q.offset {
			t.Errorf("time %d: got %d, want %d (%v %v)", q.ms, off, q.offset, err, err2)
		}
	}
	b, err := w.ask(QueryEnds([]Ends{{Changes: true}}))
	if l, err2 := DecodeEnds(b); err != nil || err2 != nil || l[0].End != 4 {
		t.Errorf("ends: %+v %v %v", l, err, err2)
	}
	if r := c.Submit(context.Background(), shard.Route{Shard: 1}, shard.Command{Module: shard.ModuleDatatypes, Data: []byte("event")}).Wait(context.Background()); r.Err != nil || len(r.Data) != 8 {
		t.Errorf("event by call: %+v", r)
	}
	if got := ChangesTopic("default", 3); got.Name != "__changes.default" || got.Partitions != 3 || got.ID == ([16]byte{}) {
		t.Errorf("changes topic %+v", got)
	}
}

func TestEncodings_Golden(t *testing.T) {
	topic := Topic{ID: topicA, Name: "t", Partitions: 2, RetentionMs: 3, RetentionBytes: 4, MessageBytesMax: 5, Created: 6}
	join := Join{Group: "g", MemberID: "m", NewID: "n", Instance: "i", ClientID: "c", ClientHost: "h", ProtocolType: "p", Protocols: []Protocol{{"r", []byte{1}}}, SessionMs: 1, RebalanceMs: 2, DelayMs: 3, RequireID: true}
	var got string
	for _, b := range [][]byte{
		EncodeCreateTopic(topic), EncodePlaceTopic(topic), EncodeAppend([]Append{{topicA, 1, []byte{9}, 0}}, false),
		AppendEvent(nil, topicA, 1, []byte("k"), false, []byte("v"), []Header{{"h", nil}}, nil), EncodeInitProducer(), EncodeJoin(join),
		EncodeSync(Sync{Group: "g", MemberID: "m", Instance: "i", Generation: 1, ProtocolType: "p", Protocol: "r", Assignments: []Assignment{{"m", []byte{1}}}}),
		EncodeHeartbeat("g", "m", "i", 1), EncodeLeave("g", []Leaver{{"m", "i"}}),
		EncodeCommit(Commit{Group: "g", MemberID: "m", Instance: "i", Generation: 1, Offsets: []CommittedOffset{{"t", 1, 2, 3, "x"}}}),
		EncodeCreateTopic(Topic{ID: topicA, Name: "t", Partitions: 2, Fence: "lock"}), EncodeAppend([]Append{{topicA, 1, []byte{9}, 300}}, true),
	} {
		got += hex.EncodeToString(b) + "\n"
	}
	const path = "testdata/commands.golden"
	if os.Getenv("REWRITE") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || string(want) != got {
		t.Errorf("command encodings changed (%v); they are in the log and must not:\n%s", err, got)
	}
}

func TestApply_UnknownAndMalformed(t *testing.T) {
	w := newWorld(t)
	for _, c := range [][]byte{nil, {1}, {2, 1}, {1, 0}, {1, 99}} {
		if _, err := w.do(c); err == nil {
			t.Errorf("command %x was accepted", c)
		}
		if _, err := w.ask(c); err == nil {
			t.Errorf("query %x was accepted", c)
		}
	}
	for op := byte(1); op <= opAppendFenced; op++ {
		if op == opInitProducer {
			continue
		}
		if _, err := w.do([]byte{1, op}); !errs.Is(err, errs.Invalid) {
			t.Errorf("empty command %d: %v", op, err)
		}
	}
	if err := (Module{}).Fire(nil, nil); err == nil {
		t.Error("timer without key")
	}
	if err := (Module{}).Fire(nil, []byte{'?'}); err == nil {
		t.Error("timer of unknown kind")
	}
}
