package kafka

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestMurmur2_KafkasValues(t *testing.T) {
	// From Kafka's UtilsTest.
	for in, want := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	} {
		if got := int32(murmur2([]byte(in))); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", in, got, want)
		}
	}
}

func TestResolve_ChoosesPartitions(t *testing.T) {
	c := shardtest.New(t, shardtest.Options{Shards: 3}, eventlog.Module{})
	ts := NewTopics(c, "default", 0)
	ctx := t.Context()
	sp, _ := c.Topology().Space("default")
	for slot := 0; slot < shard.SlotCount; slot += 1000 {
		for _, null := range []bool{true, false} {
			_, part, on, err := ts.Resolve(ctx, "orders", slot, []byte(fmt.Sprint("k", slot)), null, -1)
			if err != nil || on != sp.SlotShard(uint16(slot)) || on != sp.PartitionShard(part) {
				t.Errorf("slot %d: partition %d on %d, %v", slot, part, on, err)
			}
		}
	}
	if _, err := ts.Create(ctx, eventlog.Topic{Name: "wide", Partitions: 8}); err != nil {
		t.Fatal(err)
	}
	used := map[int32]bool{}
	for i := range 100 {
		_, part, on, err := ts.Resolve(ctx, "wide", 16383, []byte(fmt.Sprint(i)), false, -1)
		if err != nil || on != 3 || part%3 != 2 {
			t.Errorf("partition %d on %d, %v", part, on, err)
		}
		used[part] = true
	}
	if len(used) != 2 {
		t.Errorf("partitions used: %v", used)
	}
	for i := range 8 {
		if _, part, _, err := ts.Resolve(ctx, "wide", -1, nil, true, -1); err != nil || int(part) != i {
			t.Errorf("round robin %d: %d, %v", i, part, err)
		}
	}
	if _, part, on, err := ts.Resolve(ctx, "wide", -1, []byte("x"), false, 5); err != nil || part != 5 || on != 3 {
		t.Errorf("explicit: %d on %d, %v", part, on, err)
	}
	if _, part, _, err := ts.Resolve(ctx, "wide", -1, []byte("foobar"), false, -1); err != nil || part != int32(uint32(0xffffffff-790332482+1)&0x7fffffff%8) {
		t.Errorf("by key: %d, %v", part, err)
	}
	if _, err := ts.Create(ctx, eventlog.Topic{Name: "narrow", Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		topic    string
		slot     int
		explicit int32
		kind     errs.Kind
	}{
		{"narrow", 16383, -1, errs.Invalid}, {"wide", -1, 8, errs.Invalid}, {"wide", 16383, 0, errs.Invalid},
		{"__changes.default", -1, -1, errs.Denied}, {"bad name", -1, -1, errs.Invalid}, {"wide", 20000, -1, errs.Invalid},
	} {
		if _, _, _, err := ts.Resolve(ctx, x.topic, x.slot, nil, true, x.explicit); !errs.Is(err, x.kind) {
			t.Errorf("%+v: %v", x, err)
		}
	}
	if _, err := NewTopics(c, "nowhere", 0).ByName(ctx, "x"); !errs.Is(err, errs.Unavailable) {
		t.Errorf("unknown space: %v", err)
	}
}

// Names that begin with two underscores are for everybody, except a few: Debezium's heartbeats go to __debezium-heartbeat.x, and MirrorMaker has some.
func TestTopics_NamesOfTheSystem(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	ts := NewTopics(b.c, "default", 0)
	for _, name := range []string{"__debezium-heartbeat.x", "__x", "__changes", "__consumer_offsets2"} {
		w.createTopic(name, 1)
		if x := w.produce(name, 0, records(0, 1)); x.ErrorCode != 0 {
			t.Errorf("produce to %s: %+v", name, x)
		}
		if _, _, _, err := ts.Resolve(t.Context(), name, -1, nil, true, -1); err != nil {
			t.Errorf("event for %s: %v", name, err)
		}
	}
	for _, name := range []string{
		"__changes.default", "__changes.x", "__quorate", "__quorate_x", "__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata", "__remote_log_metadata",
	} {
		if _, err := ts.Create(t.Context(), eventlog.Topic{Name: name, Partitions: 1}); err == nil {
			t.Errorf("%s was made", name)
		}
		if x := w.produce(name, 0, records(0, 1)); x.ErrorCode == 0 {
			t.Errorf("produce to %s: %+v", name, x)
		}
		if _, _, _, err := ts.Resolve(t.Context(), name, -1, nil, true, -1); !errs.Is(err, errs.Denied) {
			t.Errorf("event for %s: %v", name, err)
		}
	}
}

func TestTopics_RetentionIsPlacedBeforeUse(t *testing.T) {
	c := shardtest.New(t, shardtest.Options{Shards: 2}, eventlog.Module{})
	ts := NewTopics(c, "default", 0)
	x, err := ts.Create(t.Context(), eventlog.Topic{Name: "r", Partitions: 2, RetentionMs: 1000})
	if err != nil {
		t.Fatal(err)
	}
	id, part, on, err := NewTopics(c, "default", 0).Resolve(t.Context(), "r", -1, nil, true, 1)
	if err != nil || id != x.ID || part != 1 || on != 2 {
		t.Fatalf("resolve: %d on %d, %v", part, on, err)
	}
	if r := ts.submit(t.Context(), on, eventlog.AppendEvent(nil, id, part, nil, true, []byte("v"), nil, nil)); r.Err != nil {
		t.Fatal(r.Err)
	}
	c.Advance(5 * time.Second)
	b, err := ts.query(t.Context(), on, eventlog.QueryEnds([]eventlog.Ends{{Topic: id, Partition: part}}))
	if ends, err2 := eventlog.DecodeEnds(b); err != nil || err2 != nil || ends[0].Start != 1 {
		t.Errorf("retention on the second shard: %+v, %v, %v", ends, err, err2)
	}
}

// deaf is a client whose shard 2 takes no commands.
type deaf struct {
	*shardtest.Client
	err error
}

func (c *deaf) Submit(ctx context.Context, r shard.Route, cmd shard.Command) *shard.Future {
	if r.Shard == 2 && c.err != nil {
		return shard.Failed(c.err)
	}
	return c.Client.Submit(ctx, r, cmd)
}

func TestTopics_CreatedButNotPlacedIsUnknown(t *testing.T) {
	c := &deaf{Client: shardtest.New(t, shardtest.Options{Shards: 2}, eventlog.Module{})}
	ts := NewTopics(c, "default", 0)
	x := eventlog.Topic{Name: "r", Partitions: 2, RetentionMs: 1000}
	for _, kind := range []errs.Kind{errs.Overloaded, errs.Unavailable, errs.OutcomeUnknown} {
		c.err = errs.New(kind, "shard 2 is away")
		x.Name += "r"
		if _, err := ts.Create(t.Context(), x); !errs.Is(err, errs.OutcomeUnknown) {
			t.Errorf("%v: the topic was created, and the answer is %v", kind, err)
		}
	}
	c.err = nil
	if made, err := ts.ByName(t.Context(), x.Name); err != nil || made.RetentionMs != 1000 {
		t.Errorf("afterwards: %+v, %v", made, err)
	}
	if _, err := ts.Create(t.Context(), x); !errs.Is(err, errs.Exists) {
		t.Errorf("created again: %v", err)
	}
}

var rewrite = flag.Bool("rewrite", false, "write generated files instead of comparing them")

func TestCompatDoc_IsUpToDate(t *testing.T) {
	s := New(Config{}, nil, discard(), nil)
	var b strings.Builder
	b.WriteString("# Kafka: what is served\n\nThis page is generated from the table in `internal/protocol/kafka/api.go`; run the package's tests with `-rewrite`.\n\n")
	b.WriteString("| key | API | versions | behaviour | not supported |\n|---|---|---|---|---|\n")
	for i := range s.table {
		a := &s.table[i]
		versions := fmt.Sprintf("%d to %d", a.min, a.max)
		if a.shown != a.min {
			versions += fmt.Sprintf(" (announced from %d)", a.shown)
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s | %s |\n", a.key, a.name, versions, a.about, a.not)
	}
	b.WriteString("\nA connection's requests are answered in the order in which they came, as in Kafka, so that whatever is sent behind a produce request, or a fetch\n" +
		"that waits, is answered after that. Unlike Kafka, which reads the next request when the one before is answered, the server takes in up to 32, and starts to\n" +
		"append what follows without a gap. A client has 30 s to take each MiB of an answer; Kafka waits for 10 minutes (`connections.max.idle.ms`). One that is\n" +
		"cut off for that, since it processes records for longer and reads nothing meanwhile, connects again and asks again from where it was.\n")
	b.WriteString("\nEvery other API is refused: with UNSUPPORTED_VERSION where its answer has room for an error, else by closing the connection.\n")
	const path = "../../../docs/compat/kafka.md"
	if *rewrite {
		if err := os.MkdirAll("../../../docs/compat", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != b.String() {
		t.Errorf("%s is out of date (%v): run the test with -rewrite", path, err)
	}
}
