package kafka

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/eventlog"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// changer writes to the change log, as the key-value data types do.
type changer struct{ eventlog.Module }

func (changer) ID() shard.ModuleID { return shard.ModuleDatatypes }
func (changer) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	tx.Emit("set", cmd, cmd, []byte("value"))
	return nil, nil
}

// bench is a server on a loopback listener over shards in memory.
type bench struct {
	t    *testing.T
	c    *shardtest.Client
	s    *Server
	reg  *prometheus.Registry
	addr string
}

func newBench(t *testing.T, shards int, cfg Config) *bench {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := shardtest.New(t, shardtest.Options{Shards: shards, RealTime: true, Addr: map[string]string{"kafka": ln.Addr().String()}}, eventlog.Module{EncodeFence: kv.EncodeFence}, changer{}, kv.Module{})
	if cfg.RebalanceDelay == 0 {
		cfg.RebalanceDelay = 20 * time.Millisecond
	}
	reg := prometheus.NewRegistry()
	s := New(cfg, c, slog.New(slog.DiscardHandler), reg)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return &bench{t, c, s, reg, ln.Addr().String()}
}

// wire is a client connection.
type wire struct {
	t    *testing.T
	nc   net.Conn
	f    *kmsg.RequestFormatter
	next int32
}

func (b *bench) dial() *wire {
	b.t.Helper()
	nc, err := net.Dial("tcp", b.addr)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
	return &wire{t: b.t, nc: nc, f: kmsg.NewRequestFormatter(kmsg.FormatterClientID("test"))}
}

func (w *wire) send(req kmsg.Request) int32 {
	w.t.Helper()
	w.next++
	if _, err := w.nc.Write(w.f.AppendRequest(nil, req, w.next)); err != nil {
		w.t.Fatalf("send: %v", err)
	}
	return w.next
}

// frame reads a response without its header.
func (w *wire) frame() (int32, []byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(w.nc, head[:]); err != nil {
		return 0, nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(head[:])-4)
	_, err := io.ReadFull(w.nc, b)
	return int32(binary.BigEndian.Uint32(head[4:])), b, err
}

func (w *wire) receive(req kmsg.Request, want int32) kmsg.Response {
	w.t.Helper()
	id, b, err := w.frame()
	if err != nil || id != want {
		w.t.Fatalf("%T: response %d, want %d: %v", req, id, want, err)
	}
	resp := req.ResponseKind()
	if resp.IsFlexible() && req.Key() != 18 {
		b = b[1:]
	}
	if err := resp.ReadFrom(b); err != nil {
		w.t.Fatalf("%T: %v", resp, err)
	}
	return resp
}

func ask[R kmsg.Response](w *wire, req kmsg.Request, version int16) R {
	w.t.Helper()
	req.SetVersion(version)
	return w.receive(req, w.send(req)).(R)
}

func p[T any](v T) *T { return &v }

// records makes an uncompressed batch; times are the records' stamps.
func records(codec int16, times ...int64) []byte {
	var body []byte
	for i, ms := range times {
		r := kmsg.Record{TimestampDelta64: ms - times[0], OffsetDelta: int32(i), Key: []byte("k"), Value: fmt.Appendf(nil, "v%d", i)}
		enc := r.AppendTo(nil)
		r.Length = int32(len(enc) - 1)
		body = r.AppendTo(body)
	}
	latest := times[0]
	for _, ms := range times {
		latest = max(latest, ms)
	}
	return seal(kmsg.RecordBatch{
		Magic: 2, Attributes: codec, LastOffsetDelta: int32(len(times) - 1), FirstTimestamp: times[0], MaxTimestamp: latest,
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: int32(len(times)), Records: compress(codec, body),
	})
}

func seal(b kmsg.RecordBatch) []byte {
	b.Length = int32(49 + len(b.Records))
	out := b.AppendTo(nil)
	binary.BigEndian.PutUint32(out[17:], crc32.Checksum(out[21:], crc32.MakeTable(crc32.Castagnoli)))
	return out
}

func (w *wire) createTopic(name string, partitions int32) {
	w.t.Helper()
	req := kmsg.NewPtrCreateTopicsRequest()
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = name, partitions, -1
	req.Topics = append(req.Topics, t)
	if r := ask[*kmsg.CreateTopicsResponse](w, req, 7); r.Topics[0].ErrorCode != 0 {
		w.t.Fatalf("create %s: %+v", name, r.Topics[0])
	}
}

func produceReq(topic string, part int32, acks int16, batch []byte) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = acks, 10_000
	t := kmsg.NewProduceRequestTopic()
	t.Topic = topic
	t.Partitions = []kmsg.ProduceRequestTopicPartition{{Partition: part, Records: batch}}
	req.Topics = append(req.Topics, t)
	req.SetVersion(9)
	return req
}

func (w *wire) produce(topic string, part int32, batch []byte) kmsg.ProduceResponseTopicPartition {
	w.t.Helper()
	return ask[*kmsg.ProduceResponse](w, produceReq(topic, part, -1, batch), 9).Topics[0].Partitions[0]
}

func fetchReq(topic string, part int32, offset int64, waitMs, minBytes int32) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes = waitMs, minBytes, 1<<20
	t := kmsg.NewFetchRequestTopic()
	t.Topic = topic
	x := kmsg.NewFetchRequestTopicPartition()
	x.Partition, x.FetchOffset, x.PartitionMaxBytes = part, offset, 1<<20
	t.Partitions = append(t.Partitions, x)
	req.Topics = append(req.Topics, t)
	req.SetVersion(12)
	return req
}

func (w *wire) fetch(topic string, part int32, offset int64) kmsg.FetchResponseTopicPartition {
	w.t.Helper()
	return ask[*kmsg.FetchResponse](w, fetchReq(topic, part, offset, 0, 1), 12).Topics[0].Partitions[0]
}

func TestAPIVersions_EveryVersion(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	for v := int16(0); v <= 4; v++ {
		r := ask[*kmsg.ApiVersionsResponse](w, kmsg.NewPtrApiVersionsRequest(), v)
		if r.ErrorCode != 0 || len(r.ApiKeys) != len(b.s.table) || r.ApiKeys[0].MinVersion != 0 || len(r.SupportedFeatures) != 0 {
			t.Errorf("version %d: %+v", v, r)
		}
	}
	req := kmsg.NewPtrApiVersionsRequest()
	req.SetVersion(5)
	id := w.send(req)
	got, body, err := w.frame()
	r := kmsg.NewPtrApiVersionsResponse()
	if err != nil || got != id || r.ReadFrom(body) != nil || r.ErrorCode != codeUnsupportedVersion || len(r.ApiKeys) != 1 {
		t.Errorf("unknown version: %+v, %v", r, err)
	}
}

func TestProduceAndFetch_EveryVersion(t *testing.T) {
	b := newBench(t, 2, Config{})
	w := b.dial()
	w.createTopic("orders", 3)
	next := int64(0)
	for v := int16(3); v <= 12; v++ {
		r := ask[*kmsg.ProduceResponse](w, produceReq("orders", 1, -1, records(0, 5, 6)), v)
		if p := r.Topics[0].Partitions[0]; p.ErrorCode != 0 || p.BaseOffset != next {
			t.Errorf("produce version %d: %+v", v, p)
		}
		next += 2
	}
	meta := ask[*kmsg.MetadataResponse](w, kmsg.NewPtrMetadataRequest(), 12)
	id := meta.Topics[0].TopicID
	for v := int16(4); v <= 17; v++ {
		req := fetchReq("orders", 1, 3, 100, 1)
		if v >= 13 {
			req.Topics[0].TopicID = id
		}
		r := ask[*kmsg.FetchResponse](w, req, v)
		p := r.Topics[0].Partitions[0]
		if p.ErrorCode != 0 || p.HighWatermark != next || len(p.RecordBatches) == 0 || binary.BigEndian.Uint64(p.RecordBatches) != 2 {
			t.Errorf("fetch version %d: code %d, end %d, %d bytes", v, p.ErrorCode, p.HighWatermark, len(p.RecordBatches))
		}
	}
	if p := w.fetch("orders", 1, 99); p.ErrorCode != codeOffsetOutOfRange {
		t.Errorf("beyond the end: %d", p.ErrorCode)
	}
	if p := w.fetch("orders", 7, 0); p.ErrorCode != codeUnknownTopicOrPartition {
		t.Errorf("no such partition: %d", p.ErrorCode)
	}
	if p := w.fetch("nope", 0, 0); p.ErrorCode != codeUnknownTopicOrPartition {
		t.Errorf("no such topic: %d", p.ErrorCode)
	}
	req := fetchReq("", 0, 0, 0, 1)
	req.Topics[0].TopicID = [16]byte{1}
	if r := ask[*kmsg.FetchResponse](w, req, 13); r.Topics[0].Partitions[0].ErrorCode != codeUnknownTopicID {
		t.Errorf("no such id: %+v", r)
	}
	req = fetchReq("orders", 1, 0, 0, 1)
	req.SessionID = 5
	if r := ask[*kmsg.FetchResponse](w, req, 12); r.ErrorCode != codeFetchSessionIDNotFound {
		t.Errorf("session: %+v", r)
	}
	req = fetchReq("orders", 1, 0, 0, 1)
	for _, c := range []struct {
		epoch int32
		want  int16
	}{{0, codeFencedLeaderEpoch}, {1, 0}, {2, codeUnknownLeaderEpoch}} {
		req.Topics[0].Partitions[0].CurrentLeaderEpoch = c.epoch
		if r := ask[*kmsg.FetchResponse](w, req, 12); r.Topics[0].Partitions[0].ErrorCode != c.want {
			t.Errorf("epoch %d: %+v", c.epoch, r.Topics[0].Partitions[0].ErrorCode)
		}
	}
}

func TestFetch_LongPollWakesOnAppend(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	req := fetchReq("t", 0, 0, 20_000, 1)
	id := w.send(req)
	other := b.dial()
	if p := other.produce("t", 0, records(0, 1)); p.ErrorCode != 0 {
		t.Fatalf("produce: %+v", p)
	}
	start := time.Now()
	r := w.receive(req, id).(*kmsg.FetchResponse)
	if p := r.Topics[0].Partitions[0]; len(p.RecordBatches) == 0 || time.Since(start) > 10*time.Second {
		t.Errorf("long poll: %d bytes after %v", len(p.RecordBatches), time.Since(start))
	}
	// More than one batch is needed to reach the minimum.
	req = fetchReq("t", 0, 1, 20_000, int32(2*len(records(0, 1))))
	id = w.send(req)
	other.produce("t", 0, records(0, 1))
	other.produce("t", 0, records(0, 1))
	r = w.receive(req, id).(*kmsg.FetchResponse)
	if got, want := len(r.Topics[0].Partitions[0].RecordBatches), 2*len(records(0, 1)); got != want {
		t.Errorf("minimum bytes: got %d, want %d", got, want)
	}
	// And without enough, the wait ends.
	req = fetchReq("t", 0, 3, 50, 1)
	if r := w.receive(req, w.send(req)).(*kmsg.FetchResponse); len(r.Topics[0].Partitions[0].RecordBatches) != 0 {
		t.Errorf("after the wait: %+v", r)
	}
}

func TestFetch_ManyPartitions(t *testing.T) {
	b := newBench(t, 3, Config{})
	w := b.dial()
	w.createTopic("wide", 1000)
	req := fetchReq("wide", 0, 0, 20_000, 1)
	for i := int32(1); i < 1000; i++ {
		x := kmsg.NewFetchRequestTopicPartition()
		x.Partition, x.PartitionMaxBytes = i, 1000
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, x)
	}
	id := w.send(req)
	b.dial().produce("wide", 500, records(0, 1))
	r := w.receive(req, id).(*kmsg.FetchResponse)
	if p := r.Topics[0].Partitions[500]; len(p.RecordBatches) == 0 {
		t.Errorf("partition 500: %+v", p)
	}
}

func TestProduce_PipelinedKeepsOrder(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	var reqs []*kmsg.ProduceRequest
	var ids []int32
	for range 100 {
		req := produceReq("t", 0, 1, records(0, 1))
		reqs, ids = append(reqs, req), append(ids, w.send(req))
	}
	for i, req := range reqs {
		r := w.receive(req, ids[i]).(*kmsg.ProduceResponse)
		if p := r.Topics[0].Partitions[0]; p.BaseOffset != int64(i) {
			t.Fatalf("request %d got offset %d", i, p.BaseOffset)
		}
	}
}

func TestProduce_AcksZeroHasNoAnswer(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	w.send(produceReq("t", 0, 0, records(0, 1)))
	if r := ask[*kmsg.ApiVersionsResponse](w, kmsg.NewPtrApiVersionsRequest(), 0); r.ErrorCode != 0 {
		t.Errorf("next request: %+v", r)
	}
	if p := w.fetch("t", 0, 0); p.HighWatermark != 1 {
		t.Errorf("end %d", p.HighWatermark)
	}
	w.send(produceReq("nope", 0, 0, records(0, 1)))
	if _, _, err := w.frame(); err == nil {
		t.Error("a refused batch with acks=0 did not close the connection")
	}
}

func TestProduce_Refusals(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	bad := records(0, 1)
	bad[len(bad)-1] ^= 1
	old := records(0, 1)
	old[16] = 1
	big := records(0, make([]int64, 200_000)...)
	for name, c := range map[string]struct {
		req  *kmsg.ProduceRequest
		want int16
	}{
		"crc":       {produceReq("t", 0, 1, bad), codeCorruptMessage},
		"magic":     {produceReq("t", 0, 1, old), codeUnsupportedForFormat},
		"null":      {produceReq("t", 0, 1, nil), codeInvalidRecord},
		"too large": {produceReq("t", 0, 1, big), codeMessageTooLarge},
		"topic":     {produceReq("nope", 0, 1, records(0, 1)), codeUnknownTopicOrPartition},
		"partition": {produceReq("t", 1, 1, records(0, 1)), codeUnknownTopicOrPartition},
		"negative":  {produceReq("t", -1, 1, records(0, 1)), codeUnknownTopicOrPartition},
		"changes":   {produceReq("__changes.default", 0, 1, records(0, 1)), codeTopicAuthorizationFailed},
		"acks":      {produceReq("t", 0, 2, records(0, 1)), codeInvalidRequiredAcks},
		"txn": {func() *kmsg.ProduceRequest {
			r := produceReq("t", 0, 1, records(0, 1))
			r.TransactionID = p("x")
			return r
		}(), codeTransactionalIDAuthFailed},
	} {
		r := ask[*kmsg.ProduceResponse](w, c.req, 9)
		if x := r.Topics[0].Partitions[0]; x.ErrorCode != c.want || x.ErrorMessage == nil || x.BaseOffset != -1 {
			t.Errorf("%s: %+v, want code %d", name, x, c.want)
		}
	}
}

func TestProduce_IdempotentRepeatGetsOldOffset(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	pid := ask[*kmsg.InitProducerIDResponse](w, kmsg.NewPtrInitProducerIDRequest(), 4)
	if pid.ErrorCode != 0 || pid.ProducerID < 0 || pid.ProducerEpoch != 0 {
		t.Fatalf("producer id: %+v", pid)
	}
	batch := func(seq int32) []byte {
		var b kmsg.RecordBatch
		if err := b.ReadFrom(records(0, 1, 2)); err != nil {
			t.Fatal(err)
		}
		b.ProducerID, b.ProducerEpoch, b.FirstSequence = pid.ProducerID, 0, seq
		return seal(b)
	}
	for _, c := range []struct {
		seq  int32
		base int64
		code int16
	}{{0, 0, 0}, {0, 0, 0}, {2, 2, 0}, {0, 0, 0}, {9, -1, codeOutOfOrderSequence}} {
		if x := w.produce("t", 0, batch(c.seq)); x.BaseOffset != c.base || x.ErrorCode != c.code {
			t.Errorf("sequence %d: %+v", c.seq, x)
		}
	}
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID = p("tx")
	for v := int16(0); v <= 5; v++ {
		if r := ask[*kmsg.InitProducerIDResponse](w, req, v); r.ErrorCode != codeTransactionalIDAuthFailed {
			t.Errorf("transactional id, version %d: %+v", v, r)
		}
	}
}

func TestListOffsets_EveryKindAndCodec(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	for codec := int16(0); codec <= 4; codec++ {
		name := fmt.Sprint("t", codec)
		w.createTopic(name, 1)
		w.produce(name, 0, records(codec, 100, 110, 120))
		w.produce(name, 0, records(codec, 200, 190, 210))
		for v := int16(1); v <= 10; v++ {
			for _, c := range []struct{ ms, offset, at int64 }{
				{-1, 6, -1}, {-2, 0, -1}, {-4, 0, -1}, {-3, 5, 210}, {-5, -1, -1}, {0, 0, 100}, {105, 1, 110}, {121, 3, 200}, {205, 5, 210}, {211, -1, -1},
			} {
				req := kmsg.NewPtrListOffsetsRequest()
				t1 := kmsg.NewListOffsetsRequestTopic()
				t1.Topic = name
				x := kmsg.NewListOffsetsRequestTopicPartition()
				x.Timestamp = c.ms
				t1.Partitions = append(t1.Partitions, x)
				req.Topics = append(req.Topics, t1)
				r := ask[*kmsg.ListOffsetsResponse](w, req, v).Topics[0].Partitions[0]
				if r.ErrorCode != 0 || r.Offset != c.offset || r.Timestamp != c.at {
					t.Errorf("codec %d version %d time %d: %+v", codec, v, c.ms, r)
				}
			}
		}
	}
}

func TestMetadata_EveryVersion(t *testing.T) {
	b := newBench(t, 2, Config{})
	w := b.dial()
	for v := int16(0); v <= 13; v++ {
		req := kmsg.NewPtrMetadataRequest()
		name := fmt.Sprint("auto", v)
		x := kmsg.NewMetadataRequestTopic()
		x.Topic = &name
		req.Topics = append(req.Topics, x)
		if v >= 4 {
			r := ask[*kmsg.MetadataResponse](w, req, v)
			if r.Topics[0].ErrorCode != codeUnknownTopicOrPartition {
				t.Errorf("version %d without leave: %+v", v, r.Topics[0])
			}
		}
		req.AllowAutoTopicCreation = true
		r := ask[*kmsg.MetadataResponse](w, req, v)
		if len(r.Brokers) != 1 || r.Topics[0].ErrorCode != 0 || len(r.Topics[0].Partitions) != 2 || r.Topics[0].Partitions[0].Leader != 1 {
			t.Errorf("version %d: %+v", v, r)
		}
		if v >= 2 && (r.ClusterID == nil || *r.ClusterID != "test") {
			t.Errorf("version %d: cluster %v", v, r.ClusterID)
		}
		if v >= 7 && r.Topics[0].Partitions[0].LeaderEpoch != 1 {
			t.Errorf("version %d: epoch %+v", v, r.Topics[0].Partitions[0])
		}
		req.Topics = nil
		if all := ask[*kmsg.MetadataResponse](w, req, v); len(all.Topics) != int(v)+2 {
			t.Errorf("version %d: %d topics in all", v, len(all.Topics))
		}
	}
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = true
	for _, name := range []string{"bad name", "..", "__quorate-x", string(make([]byte, 300))} {
		x := kmsg.NewMetadataRequestTopic()
		x.Topic = &name
		req.Topics = append(req.Topics, x)
	}
	for i, x := range ask[*kmsg.MetadataResponse](w, req, 9).Topics {
		if x.ErrorCode != codeInvalidTopic {
			t.Errorf("bad name %d: %+v", i, x)
		}
	}
	b.c.SetTopology(func(t *shard.Topology) {
		t.Shards = []shard.ShardInfo{{ID: 1, Leader: 0, Term: 2}, {ID: 2, Leader: 1, Term: 3}}
	})
	req.Topics = req.Topics[:1]
	*req.Topics[0].Topic = "auto1"
	r := ask[*kmsg.MetadataResponse](w, req, 9)
	if p := r.Topics[0].Partitions; p[0].ErrorCode != codeLeaderNotAvailable || p[0].Leader != -1 || p[1].Leader != 1 || p[1].LeaderEpoch != 3 {
		t.Errorf("without a leader: %+v", p)
	}
}

func TestCreateTopics_AnswersAndRefusals(t *testing.T) {
	b := newBench(t, 2, Config{Partitions: 4})
	w := b.dial()
	topic := func(f func(*kmsg.CreateTopicsRequestTopic)) kmsg.CreateTopicsRequestTopic {
		x := kmsg.NewCreateTopicsRequestTopic()
		x.Topic, x.NumPartitions, x.ReplicationFactor = "x", -1, -1
		f(&x)
		return x
	}
	set := func(name string, value *string) func(*kmsg.CreateTopicsRequestTopic) {
		return func(x *kmsg.CreateTopicsRequestTopic) {
			x.Configs = []kmsg.CreateTopicsRequestTopicConfig{{Name: name, Value: value}}
		}
	}
	for v := int16(2); v <= 7; v++ {
		req := kmsg.NewPtrCreateTopicsRequest()
		req.Topics = []kmsg.CreateTopicsRequestTopic{topic(func(x *kmsg.CreateTopicsRequestTopic) {
			x.Topic = fmt.Sprint("ok", v)
			set("retention.ms", p("60000"))(x)
		})}
		r := ask[*kmsg.CreateTopicsResponse](w, req, v).Topics[0]
		if r.ErrorCode != 0 || v >= 5 && (r.Configs == nil || r.NumPartitions != 4 || r.ReplicationFactor != 1) {
			t.Errorf("version %d: %+v", v, r)
		}
		if again := ask[*kmsg.CreateTopicsResponse](w, req, v).Topics[0]; again.ErrorCode != codeTopicAlreadyExists {
			t.Errorf("version %d again: %+v", v, again)
		}
	}
	for name, c := range map[string]struct {
		f    func(*kmsg.CreateTopicsRequestTopic)
		want int16
	}{
		"name":            {func(x *kmsg.CreateTopicsRequestTopic) { x.Topic = "a b" }, codeInvalidTopic},
		"reserved":        {func(x *kmsg.CreateTopicsRequestTopic) { x.Topic = "__changes.default" }, codeInvalidTopic},
		"partitions":      {func(x *kmsg.CreateTopicsRequestTopic) { x.NumPartitions = 0 }, codeInvalidPartitions},
		"many partitions": {func(x *kmsg.CreateTopicsRequestTopic) { x.NumPartitions = 1 << 30 }, codeInvalidPartitions},
		"factor":          {func(x *kmsg.CreateTopicsRequestTopic) { x.ReplicationFactor = 3 }, codeInvalidReplicationFactor},
		"assignment": {func(x *kmsg.CreateTopicsRequestTopic) {
			x.ReplicaAssignment = []kmsg.CreateTopicsRequestTopicReplicaAssignment{{}}
		}, codeInvalidReplicaAssignment},
		"unknown config":  {set("segment.bytes", p("1")), codeInvalidConfig},
		"null config":     {set("retention.ms", nil), codeInvalidConfig},
		"zero retention":  {set("retention.ms", p("0")), codeInvalidConfig},
		"text retention":  {set("retention.bytes", p("x")), codeInvalidConfig},
		"large batches":   {set("max.message.bytes", p("999999999")), codeInvalidConfig},
		"compaction":      {set("cleanup.policy", p("compact")), codeInvalidConfig},
		"known default":   {set("cleanup.policy", p("delete")), 0},
		"keep for ever":   {set("retention.ms", p("-1")), 0},
		"message bytes":   {set("max.message.bytes", p("1000")), 0},
		"bytes retention": {set("retention.bytes", p("1000")), 0},
		"lock":            {set("quorate.fence", p("locks/writer")), 0},
		"long lock":       {set("quorate.fence", p(strings.Repeat("l", 1025))), codeInvalidConfig},
		"null lock":       {set("quorate.fence", nil), codeInvalidConfig},
	} {
		req := kmsg.NewPtrCreateTopicsRequest()
		req.ValidateOnly = true
		req.Topics = []kmsg.CreateTopicsRequestTopic{topic(c.f)}
		r := ask[*kmsg.CreateTopicsResponse](w, req, 5).Topics[0]
		if r.ErrorCode != c.want || (c.want != 0) != (r.ErrorMessage != nil) {
			t.Errorf("%s: %+v, want %d", name, r, c.want)
		}
	}
	req := kmsg.NewPtrCreateTopicsRequest()
	req.Topics = []kmsg.CreateTopicsRequestTopic{topic(func(*kmsg.CreateTopicsRequestTopic) {}), topic(func(*kmsg.CreateTopicsRequestTopic) {})}
	for _, r := range ask[*kmsg.CreateTopicsResponse](w, req, 5).Topics {
		if r.ErrorCode != codeInvalidRequest {
			t.Errorf("named twice: %+v", r)
		}
	}
	req = kmsg.NewPtrCreateTopicsRequest()
	req.ValidateOnly = true
	req.Topics = []kmsg.CreateTopicsRequestTopic{topic(func(x *kmsg.CreateTopicsRequestTopic) { x.Topic = "ok7" })}
	if r := ask[*kmsg.CreateTopicsResponse](w, req, 5).Topics[0]; r.ErrorCode != codeTopicAlreadyExists {
		t.Errorf("validate of existing: %+v", r)
	}
}

func TestDescribe_ConfigsClusterEpochs(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	w.produce("t", 0, records(0, 1, 2))
	for v := int16(0); v <= 4; v++ {
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.IncludeDocumentation = true
		for _, x := range []struct {
			kind kmsg.ConfigResourceType
			name string
		}{{kmsg.ConfigResourceTypeTopic, "t"}, {kmsg.ConfigResourceTypeBroker, "1"}, {kmsg.ConfigResourceTypeTopic, "no"}, {kmsg.ConfigResourceTypeBroker, "9"}, {8, "x"}} {
			r := kmsg.NewDescribeConfigsRequestResource()
			r.ResourceType, r.ResourceName = x.kind, x.name
			req.Resources = append(req.Resources, r)
		}
		r := ask[*kmsg.DescribeConfigsResponse](w, req, v).Resources
		if len(r[0].Configs) != 7 || len(r[1].Configs) != 3 || r[2].ErrorCode != codeUnknownTopicOrPartition || r[3].ErrorCode != codeInvalidRequest || r[4].ErrorCode != codeInvalidRequest {
			t.Errorf("configs version %d: %+v", v, r)
		}
		if d := r[0].Configs[0].Documentation; v >= 3 && (d == nil || *d == "") {
			t.Errorf("configs version %d without the documentation that was asked for", v)
		}
		req.Resources = req.Resources[:1]
		req.Resources[0].ConfigNames = []string{"retention.ms"}
		if r := ask[*kmsg.DescribeConfigsResponse](w, req, v).Resources[0]; len(r.Configs) != 1 || *r.Configs[0].Value != "-1" {
			t.Errorf("one config: %+v", r)
		}
		ep := kmsg.NewPtrOffsetForLeaderEpochRequest()
		et := kmsg.NewOffsetForLeaderEpochRequestTopic()
		et.Topic = "t"
		part := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
		part.LeaderEpoch = 1
		missing := part
		missing.Partition = 5
		et.Partitions = append(et.Partitions, part, missing)
		ep.Topics = append(ep.Topics, et)
		e := ask[*kmsg.OffsetForLeaderEpochResponse](w, ep, v).Topics[0].Partitions
		if e[0].EndOffset != 2 || e[1].ErrorCode != codeUnknownTopicOrPartition {
			t.Errorf("epoch version %d: %+v", v, e)
		}
	}
	for v := int16(0); v <= 2; v++ {
		r := ask[*kmsg.DescribeClusterResponse](w, kmsg.NewPtrDescribeClusterRequest(), v)
		if r.ErrorCode != 0 || r.ClusterID != "test" || len(r.Brokers) != 1 || r.ControllerID != 1 {
			t.Errorf("cluster version %d: %+v", v, r)
		}
	}
	req := kmsg.NewPtrDescribeClusterRequest()
	req.EndpointType = 2
	if r := ask[*kmsg.DescribeClusterResponse](w, req, 1); r.ErrorCode != codeInvalidRequest {
		t.Errorf("controllers: %+v", r)
	}
}

func TestChangesTopic_ShowsChangeLog(t *testing.T) {
	b := newBench(t, 2, Config{})
	w := b.dial()
	req := fetchReq("__changes.default", 1, 0, 20_000, 1)
	id := w.send(req)
	f := b.c.Submit(t.Context(), shard.Route{Shard: 2}, shard.Command{Module: shard.ModuleDatatypes, Data: []byte("key")})
	if r := f.Wait(t.Context()); r.Err != nil {
		t.Fatal(r.Err)
	}
	r := w.receive(req, id).(*kmsg.FetchResponse)
	var batch kmsg.RecordBatch
	if err := batch.ReadFrom(r.Topics[0].Partitions[0].RecordBatches); err != nil || batch.NumRecords != 1 {
		t.Fatalf("batch %+v, %v", batch, err)
	}
	var rec kmsg.Record
	if err := rec.ReadFrom(batch.Records); err != nil || string(rec.Key) != "key" || string(rec.Value) != "value" || len(rec.Headers) != 2 {
		t.Errorf("record %+v, %v", rec, err)
	}
	for _, c := range []struct{ ms, offset int64 }{{-1, 1}, {-2, 0}, {-3, 0}, {0, 0}} {
		lo := kmsg.NewPtrListOffsetsRequest()
		lt := kmsg.NewListOffsetsRequestTopic()
		lt.Topic = "__changes.default"
		x := kmsg.NewListOffsetsRequestTopicPartition()
		x.Partition, x.Timestamp = 1, c.ms
		lt.Partitions = append(lt.Partitions, x)
		lo.Topics = append(lo.Topics, lt)
		if r := ask[*kmsg.ListOffsetsResponse](w, lo, 7).Topics[0].Partitions[0]; r.ErrorCode != 0 || r.Offset != c.offset {
			t.Errorf("offset at %d: %+v", c.ms, r)
		}
	}
}
