package kafka

import (
	"encoding/binary"
	"hash/crc32"
	"log/slog"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/coord"
	"github.com/quorate/quorate/internal/eventlog"
)

// fencedRecords is a batch whose records carry tokens.
func fencedRecords(codec int16, tokens ...string) []byte {
	var body []byte
	for i, tok := range tokens {
		r := kmsg.NewRecord()
		r.OffsetDelta, r.Value = int32(i), []byte("v")
		if tok != "" {
			r.Headers = []kmsg.Header{{Key: eventlog.FenceHeader, Value: []byte(tok)}}
		}
		r.Length = int32(len(r.AppendTo(nil)) - 1)
		body = r.AppendTo(body)
	}
	b := kmsg.NewRecordBatch()
	b.Magic, b.Attributes, b.NumRecords, b.LastOffsetDelta = 2, codec, int32(len(tokens)), int32(len(tokens)-1)
	b.ProducerID, b.ProducerEpoch, b.FirstSequence = -1, -1, -1
	b.Records = compress(codec, body)
	return seal(b)
}

func TestFence_ProduceUnderALock(t *testing.T) {
	b := newBench(t, 2, Config{})
	b.s.unpack.sizeMax = 4 << 20
	w := b.dial()
	req := kmsg.NewPtrCreateTopicsRequest()
	x := kmsg.NewCreateTopicsRequestTopic()
	x.Topic, x.NumPartitions, x.ReplicationFactor = "jobs", 2, -1
	x.Configs = []kmsg.CreateTopicsRequestTopicConfig{{Name: "quorate.fence", Value: p("locks/writer")}}
	req.Topics = append(req.Topics, x)
	r := ask[*kmsg.CreateTopicsResponse](w, req, 7).Topics[0]
	shown := false
	for _, c := range r.Configs {
		shown = shown || c.Name == "quorate.fence" && *c.Value == "locks/writer"
	}
	if r.ErrorCode != 0 || !shown {
		t.Fatalf("create: %+v", r)
	}
	c := coord.New(b.c, coord.Home(b.c, "default"))
	acquire := func() (coord.Claim, string) {
		cl, err := c.Lock(t.Context(), []byte("locks/writer"), 0)
		if err != nil {
			t.Fatal(err)
		}
		return cl, strconv.FormatInt(cl.Token, 10)
	}
	first, token := acquire()
	// Partition 0 is on the lock's own shard, partition 1 on another.
	for part := range int32(2) {
		for codec := range int16(5) {
			if r := w.produce("jobs", part, fencedRecords(codec, token, token)); r.ErrorCode != 0 || r.BaseOffset != 2*int64(codec) {
				t.Errorf("partition %d codec %d: %+v", part, codec, r)
			}
		}
		for name, batch := range map[string][]byte{
			"no header": records(0, 1), "one without": fencedRecords(0, token, ""), "two tokens": fencedRecords(0, token, "9"), "no number": fencedRecords(1, "x"),
			"without, compressed": records(3, 1, 2),
		} {
			if r := w.produce("jobs", part, batch); r.ErrorCode != codeInvalidRecord || r.ErrorMessage == nil || !strings.Contains(*r.ErrorMessage, "quorate-fence") {
				t.Errorf("%s: %+v", name, r)
			}
		}
		// What cannot be unpacked, and what unpacks to more than is looked at.
		for want, body := range map[int16][]byte{codeInvalidRecord: []byte("no zstd"), codeMessageTooLarge: compress(4, oneRecord(4<<20))} {
			b := kmsg.RecordBatch{Magic: 2, Attributes: 4, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: 1, Records: body}
			if r := w.produce("jobs", part, seal(b)); r.ErrorCode != want {
				t.Errorf("%d bytes of zstd: %+v, want code %d", len(body), r, want)
			}
		}
		// A number that nobody ever had spoils nothing.
		if r := w.produce("jobs", part, fencedRecords(0, "999999999")); r.ErrorCode != codePolicyViolation {
			t.Errorf("a token from nowhere: %+v", r)
		}
	}
	idempotent := func() []byte {
		b := fencedRecords(0, token)
		binary.BigEndian.PutUint64(b[43:], 77)
		binary.BigEndian.PutUint16(b[51:], 0)
		binary.BigEndian.PutUint32(b[53:], 0)
		binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
		return b
	}
	for part := range int32(2) {
		if r := w.produce("jobs", part, idempotent()); r.ErrorCode != 0 || r.BaseOffset != 10 {
			t.Errorf("partition %d, idempotent: %+v", part, r)
		}
	}
	if _, err := c.Unlock(t.Context(), first.Key); err != nil {
		t.Fatal(err)
	}
	_, next := acquire()
	// The answers to those were lost: sent again, through this node and one that has not heard of the token, they get the offsets that they have.
	other := New(Config{}, b.c, slog.New(slog.DiscardHandler), nil)
	defer func() { _ = other.Close() }()
	for part := range int32(2) {
		resp, err := other.produce(t.Context(), nil, header{}, produceReq("jobs", part, -1, idempotent()))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range []kmsg.ProduceResponseTopicPartition{w.produce("jobs", part, idempotent()), resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0]} {
			if r.ErrorCode != 0 || r.BaseOffset != 10 {
				t.Errorf("partition %d, again: %+v", part, r)
			}
		}
		// What is new under that token is refused there as here.
		late := idempotent()
		binary.BigEndian.PutUint32(late[53:], 1)
		binary.BigEndian.PutUint32(late[17:], crc32.Checksum(late[21:], crc32.MakeTable(crc32.Castagnoli)))
		if resp, err = other.produce(t.Context(), nil, header{}, produceReq("jobs", part, -1, late)); err != nil {
			t.Fatal(err)
		}
		if r := resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0]; r.ErrorCode != codePolicyViolation || r.ErrorMessage == nil {
			t.Errorf("partition %d, late: %+v", part, r)
		}
	}
	for part := range int32(2) {
		if r := w.produce("jobs", part, fencedRecords(0, next)); r.ErrorCode != 0 || r.BaseOffset != 11 {
			t.Errorf("partition %d, next holder: %+v", part, r)
		}
		r := w.produce("jobs", part, fencedRecords(4, token))
		if r.ErrorCode != codePolicyViolation || r.BaseOffset != -1 || r.ErrorMessage == nil || !strings.Contains(*r.ErrorMessage, "acquire the lock again") {
			t.Errorf("partition %d, stale: %+v", part, r)
		}
		if r := w.produce("jobs", part, fencedRecords(0, next)); r.ErrorCode != 0 || r.BaseOffset != 12 {
			t.Errorf("partition %d, after a refusal: %+v", part, r)
		}
	}
	all, err := b.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	n := 0.0
	for _, m := range all {
		if m.GetName() == "quorate_kafka_fenced_total" {
			n = m.GetMetric()[0].GetCounter().GetValue()
		}
	}
	if n != 4 {
		t.Errorf("%v stale batches counted, want 4", n)
	}
	// Other topics know nothing of it.
	w.createTopic("free", 1)
	if r := w.produce("free", 0, fencedRecords(0, "1")); r.ErrorCode != 0 {
		t.Errorf("a topic without a lock: %+v", r)
	}
}
