package test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// logBuffer collects what franz-go logs at warning level and above.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// kafkaClient returns a client that knows one node to begin with, and is quiet.
func kafkaClient(t *testing.T, n *node, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	log := &logBuffer{}
	opts = append([]kgo.Opt{
		kgo.SeedBrokers(n.kafka), kgo.AllowAutoTopicCreation(),
		kgo.WithLogger(kgo.BasicLogger(log, kgo.LogLevelWarn, nil)), kgo.MetadataMinAge(50 * time.Millisecond),
	}, opts...)
	c, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if said := log.String(); said != "" {
			t.Errorf("franz-go logged:\n%s", said)
		}
	})
	return c
}

// poll reads until a number of records is there.
func poll(t *testing.T, ctx context.Context, c *kgo.Client, n int) []*kgo.Record {
	t.Helper()
	var all []*kgo.Record
	for len(all) < n {
		f := c.PollFetches(ctx)
		for _, e := range f.Errors() {
			t.Fatalf("fetch %s/%d after %d of %d records: %v", e.Topic, e.Partition, len(all), n, e.Err)
		}
		all = append(all, f.Records()...)
	}
	return all
}

// readTopic reads a topic from its start.
func readTopic(t *testing.T, n *node, topic string, records int) []*kgo.Record {
	t.Helper()
	c := kafkaClient(t, n, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	return poll(t, within(t), c, records)
}

func TestFranz_ProduceAndConsume_ThroughFollower(t *testing.T) {
	for _, shards := range shardCounts {
		t.Run(fmt.Sprintf("%d shards", shards), func(t *testing.T) {
			c, ctx := shared(t, shards), within(t)
			n := c.follower(t, 1)
			topic := fmt.Sprintf("franz-%d", shards)
			adm := kadm.NewClient(kafkaClient(t, n))
			if _, err := adm.CreateTopic(ctx, 6, -1, nil, topic); err != nil {
				t.Fatal(err)
			}
			p := kafkaClient(t, n, kgo.RequiredAcks(kgo.AllISRAcks()))
			const records = 2000
			var mu sync.Mutex
			want := map[string]string{}
			for i := range records {
				key := fmt.Sprintf("key-%d", i)
				p.Produce(ctx, &kgo.Record{Topic: topic, Key: []byte(key), Value: fmt.Appendf(nil, "value %d", i), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte{byte(i)}}}},
					func(r *kgo.Record, err error) {
						mu.Lock()
						defer mu.Unlock()
						if err != nil {
							t.Errorf("produce: %v", err)
							return
						}
						want[key] = fmt.Sprintf("%d/%d %s %d", r.Partition, r.Offset, r.Value, r.Headers[0].Value[0])
					})
			}
			if err := p.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, r := range readTopic(t, n, topic, records) {
				got[string(r.Key)] = fmt.Sprintf("%d/%d %s %d", r.Partition, r.Offset, r.Value, r.Headers[0].Value[0])
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("read something else than was written (-want +got):\n%s", d)
			}
			ends, err := adm.ListEndOffsets(ctx, topic)
			if err != nil {
				t.Fatal(err)
			}
			total := int64(0)
			ends.Each(func(o kadm.ListedOffset) { total += o.Offset })
			if total != records {
				t.Errorf("end offsets add up to %d, want %d", total, records)
			}
		})
	}
}

func TestFranz_Compression(t *testing.T) {
	c, ctx := shared(t, 1), within(t)
	for _, z := range []struct {
		name  string
		codec kgo.CompressionCodec
	}{
		{"none", kgo.NoCompression()}, {"gzip", kgo.GzipCompression()}, {"gzip-9", kgo.GzipCompression().WithLevel(9)}, {"snappy", kgo.SnappyCompression()},
		{"lz4", kgo.Lz4Compression()}, {"lz4-9", kgo.Lz4Compression().WithLevel(9)}, {"zstd", kgo.ZstdCompression()}, {"zstd-4", kgo.ZstdCompression().WithLevel(4)},
	} {
		t.Run(z.name, func(t *testing.T) {
			topic := "franz-z-" + z.name
			p := kafkaClient(t, c.nodes[0], kgo.ProducerBatchCompression(z.codec), kgo.ProducerLinger(5*time.Millisecond), kgo.RecordPartitioner(kgo.ManualPartitioner()))
			// Empty ones, small ones in batches of many, and ones that nearly fill a batch each.
			var want []*kgo.Record
			for i := range 2000 {
				r := &kgo.Record{Topic: topic}
				switch {
				case i%500 == 0:
					r.Value = []byte(strings.Repeat("the same again and again ", 36_000))
				case i%2 == 0:
					r.Key, r.Value = fmt.Appendf(nil, "key-%d", i), fmt.Appendf(nil, "value %d of many that look alike", i)
					r.Headers = []kgo.RecordHeader{{Key: "h", Value: []byte{byte(i)}}, {Key: "", Value: nil}}
				}
				want = append(want, r)
			}
			if err := p.ProduceSync(ctx, want...).FirstErr(); err != nil {
				t.Fatal(err)
			}
			for i, r := range readTopic(t, c.nodes[1], topic, len(want)) {
				if w := want[i]; string(r.Key) != string(w.Key) || string(r.Value) != string(w.Value) || len(r.Headers) != len(w.Headers) {
					t.Fatalf("record %d: %d and %d bytes, want %d and %d", i, len(r.Key), len(r.Value), len(w.Key), len(w.Value))
				}
			}
		})
	}
}

func TestFranz_Group_CommitsAndGoesOn(t *testing.T) {
	c, ctx := shared(t, 3), within(t)
	const topic, group = "franz-commit", "commit-group"
	adm := kadm.NewClient(kafkaClient(t, c.nodes[0]))
	if _, err := adm.CreateTopic(ctx, 3, -1, nil, topic); err != nil {
		t.Fatal(err)
	}
	p := kafkaClient(t, c.nodes[0])
	produce := func(from, to int) {
		for i := from; i < to; i++ {
			if err := p.ProduceSync(ctx, &kgo.Record{Topic: topic, Key: fmt.Append(nil, i), Value: fmt.Append(nil, i)}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	read := func(n *node, want int) map[string]bool {
		m := kafkaClient(t, n, kgo.ConsumeTopics(topic), kgo.ConsumerGroup(group), kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		got := map[string]bool{}
		for _, r := range poll(t, ctx, m, want) {
			got[string(r.Value)] = true
		}
		if err := m.CommitUncommittedOffsets(ctx); err != nil {
			t.Fatalf("commit: %v", err)
		}
		m.LeaveGroup()
		return got
	}
	produce(0, 60)
	if got := read(c.nodes[1], 60); len(got) != 60 {
		t.Errorf("first consumer got %d values", len(got))
	}
	produce(60, 90)
	got := read(c.nodes[2], 30)
	for i := 60; i < 90; i++ {
		if !got[fmt.Sprint(i)] {
			t.Errorf("second consumer did not get %d", i)
		}
	}
	lags, err := adm.Lag(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	if n := lags[group].Lag.Total(); n != 0 {
		t.Errorf("lag is %d, want 0", n)
	}
}

func TestFranz_Group_SecondMemberTakesItsShare(t *testing.T) {
	c, ctx := shared(t, 1), within(t)
	const topic, group, parts = "franz-rebalance", "rebalance-group", 6
	adm := kadm.NewClient(kafkaClient(t, c.nodes[0]))
	if _, err := adm.CreateTopic(ctx, parts, -1, nil, topic); err != nil {
		t.Fatal(err)
	}
	p := kafkaClient(t, c.nodes[0], kgo.RecordPartitioner(kgo.ManualPartitioner()))
	type taken struct {
		member, partition int
		value             string
	}
	seen := make(chan taken, 1000)
	var wg sync.WaitGroup
	member := func(id int, n *node) (leave func()) {
		ctx, cancel := context.WithCancel(ctx)
		m := kafkaClient(t, n, kgo.ConsumeTopics(topic), kgo.ConsumerGroup(group), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.HeartbeatInterval(200*time.Millisecond))
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				for _, r := range m.PollFetches(ctx).Records() {
					seen <- taken{id, int(r.Partition), string(r.Value)}
				}
			}
		}()
		return func() { cancel(); m.LeaveGroup() }
	}
	// round writes one record to each partition, and returns who got them.
	round := func(n int) map[int]int {
		for part := range parts {
			if err := p.ProduceSync(ctx, &kgo.Record{Topic: topic, Partition: int32(part), Value: fmt.Append(nil, n)}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		by := map[int]int{}
		parts := map[int]bool{}
		for len(parts) < 6 {
			select {
			case s := <-seen:
				if s.value == fmt.Sprint(n) {
					parts[s.partition] = true
					by[s.member]++
				}
			case <-ctx.Done():
				t.Fatalf("round %d: only partitions %v were read", n, parts)
			}
		}
		return by
	}
	leave1 := member(1, c.nodes[0])
	if by := round(0); by[1] != parts {
		t.Errorf("the first member got %v", by)
	}
	leave2 := member(2, c.nodes[1])
	n := 1
	eventually(t, "both members have a share", func() (bool, string) {
		by := round(n)
		n++
		return by[1] == parts/2 && by[2] == parts/2, fmt.Sprint(by)
	})
	d, err := adm.DescribeGroups(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(d[group].Members); got != 2 {
		t.Errorf("the group has %d members, want 2", got)
	}
	leave1()
	eventually(t, "the second member has all", func() (bool, string) {
		by := round(n)
		n++
		return by[2] == parts, fmt.Sprint(by)
	})
	leave2()
	wg.Wait()
}

func TestFranz_ChangeLog_TellsEveryWrite(t *testing.T) {
	c, ctx := start(t, 3), within(t)
	r := single(t, c.nodes[0])
	want := map[string][]string{}
	for i := range 50 {
		k := fmt.Sprintf("key-%d", i%10)
		if err := r.Set(ctx, k, i, 0).Err(); err != nil {
			t.Fatal(err)
		}
		want[k] = append(want[k], fmt.Sprint(i))
	}
	for i := range 5 {
		k := fmt.Sprintf("key-%d", i)
		if err := r.Del(ctx, k).Err(); err != nil {
			t.Fatal(err)
		}
		want[k] = append(want[k], "gone")
	}
	got := map[string][]string{}
	for _, rec := range readTopic(t, c.nodes[1], "__changes.default", 55) {
		v := "gone"
		if rec.Value != nil {
			v = string(rec.Value)
		}
		got[string(rec.Key)] = append(got[string(rec.Key)], v)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the change log tells another story (-want +got):\n%s", d)
	}
}

func TestKcat_ProduceConsume(t *testing.T) {
	c := shared(t, 1)
	n := c.follower(t, 1)
	for _, z := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		topic := "kcat-" + z
		var lines []string
		for i := range 200 {
			lines = append(lines, fmt.Sprintf("k%d:value %d of many that look alike", i, i))
		}
		tool(t, strings.Join(lines, "\n")+"\n", "kcat", "-q", "-b", n.kafka, "-P", "-t", topic, "-K:", "-z", z, "-X", "enable.idempotence=true")
		out := tool(t, "", "kcat", "-q", "-b", n.kafka, "-C", "-t", topic, "-o", "beginning", "-e", "-K:")
		if got := len(strings.Split(strings.TrimSpace(out), "\n")); got != len(lines) {
			t.Errorf("%s: read %d lines, want %d", z, got, len(lines))
		}
		for _, l := range lines {
			if !strings.Contains(out, l+"\n") {
				t.Errorf("%s: %q is missing", z, l)
				break
			}
		}
	}
}

func TestKcat_List(t *testing.T) {
	c := shared(t, 3)
	tool(t, "x\n", "kcat", "-q", "-b", c.nodes[0].kafka, "-P", "-t", "kcat-list")
	for _, n := range c.nodes {
		out := tool(t, "", "kcat", "-b", n.kafka, "-L")
		if !strings.Contains(out, "3 brokers:") || !strings.Contains(out, `topic "kcat-list"`) {
			t.Errorf("node %d: %s", n.id, out)
		}
	}
}

func TestKcat_QueryByTime(t *testing.T) {
	c := shared(t, 1)
	n := c.nodes[0]
	const topic = "kcat-time"
	ctx := within(t)
	p := kafkaClient(t, n)
	base := time.Now().Add(-time.Hour).Truncate(time.Second)
	for i := range 10 {
		if err := p.ProduceSync(ctx, &kgo.Record{Topic: topic, Partition: 0, Value: fmt.Append(nil, i), Timestamp: base.Add(time.Duration(i) * time.Second)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	parts, err := kadm.NewClient(p).ListTopics(ctx, topic)
	if err != nil || len(parts[topic].Partitions) == 0 {
		t.Fatalf("list topics: %v", err)
	}
	// The first record at or after a time, found in the partition that holds it.
	for _, i := range []int{0, 4, 9} {
		at := base.Add(time.Duration(i) * time.Second).UnixMilli()
		found := false
		for part := range parts[topic].Partitions {
			out := tool(t, "", "kcat", "-q", "-b", n.kafka, "-C", "-t", topic, "-p", fmt.Sprint(part), "-o", fmt.Sprintf("s@%d", at), "-e", "-f", "%s\\n")
			found = found || strings.HasPrefix(out, fmt.Sprint(i))
			query := tool(t, "", "kcat", "-b", n.kafka, "-Q", "-t", fmt.Sprintf("%s:%d:%d", topic, part, at))
			if !strings.Contains(query, topic) {
				t.Errorf("query: %s", query)
			}
		}
		if !found {
			t.Errorf("the record of second %d was not found", i)
		}
	}
}

func TestKcat_Group(t *testing.T) {
	c := shared(t, 3)
	const topic = "kcat-group"
	var in strings.Builder
	for i := range 100 {
		fmt.Fprintf(&in, "%d\n", i)
	}
	tool(t, in.String(), "kcat", "-q", "-b", c.nodes[0].kafka, "-P", "-t", topic)
	read := func(n *node) int {
		out := tool(t, "", "kcat", "-q", "-b", n.kafka, "-e", "-X", "auto.offset.reset=earliest", "-G", "kcat-readers", topic)
		return len(strings.Fields(out))
	}
	if got := read(c.nodes[1]); got != 100 {
		t.Errorf("the group read %d records, want 100", got)
	}
	if got := read(c.nodes[2]); got != 0 {
		t.Errorf("the group read %d records again", got)
	}
}
