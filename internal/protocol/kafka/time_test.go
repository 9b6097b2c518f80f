package kafka

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"math"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/coord"
	"github.com/quorate/quorate/internal/eventlog"
)

// listReq asks for the first record stamped at or after a time.
func listReq(topic string, ms int64) *kmsg.ListOffsetsRequest {
	req := kmsg.NewPtrListOffsetsRequest()
	x := kmsg.NewListOffsetsRequestTopic()
	y := kmsg.NewListOffsetsRequestTopicPartition()
	x.Topic, y.Timestamp = topic, ms
	x.Partitions = append(x.Partitions, y)
	req.Topics = append(req.Topics, x)
	req.SetVersion(5)
	return req
}

func (w *wire) listAt(topic string, ms int64) kmsg.ListOffsetsResponseTopicPartition {
	w.t.Helper()
	return ask[*kmsg.ListOffsetsResponse](w, listReq(topic, ms), 5).Topics[0].Partitions[0]
}

// The memory of codecs at work is counted.
func TestListOffsets_UnpacksWithinTheBudget(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	w.createTopic("plain", 1)
	for topic, codec := range map[string]int16{"t": 4, "plain": 0} {
		if x := w.produce(topic, 0, records(codec, 1000, 2000)); x.ErrorCode != 0 {
			t.Fatalf("%+v", x)
		}
	}
	// Others look into as many batches as they may.
	release, err := b.s.unpack.room.take(t.Context(), unpackRoomMax)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	resp, err := b.s.listOffsets(ctx, nil, header{}, listReq("t", 1500))
	if err != nil {
		t.Fatal(err)
	}
	if x := resp.(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0]; x.ErrorCode != codeRequestTimedOut || x.Offset != -1 {
		t.Errorf("a batch was unpacked without room: %+v", x)
	}
	if x := w.listAt("plain", 1500); x.ErrorCode != 0 || x.Offset != 1 {
		t.Errorf("nothing is to be unpacked: %+v", x)
	}
	release()
	if x := w.listAt("t", 1500); x.ErrorCode != 0 || x.Offset != 1 || x.Timestamp != 2000 {
		t.Errorf("with room: %+v", x)
	}
}

// Look-ups by time and retention go by what the header states, so it is set right: see TestCheckRecords_StatesTheLatestTime of package eventlog.
func TestProduce_StatesTheLatestTime(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	stating := func(batch []byte, ms int64) []byte {
		binary.BigEndian.PutUint64(batch[35:], uint64(ms))
		binary.BigEndian.PutUint32(batch[17:], crc32.Checksum(batch[21:], crc32.MakeTable(crc32.Castagnoli)))
		return batch
	}
	if x := w.produce("t", 0, stating(records(0, 2000, 1000), 1000)); x.ErrorCode != 0 {
		t.Fatalf("produce: %+v", x)
	}
	if x := w.listAt("t", 1500); x.ErrorCode != 0 || x.Offset != 0 || x.Timestamp != 2000 {
		t.Errorf("the first record at or after 1500: %+v", x)
	}
	batch := w.fetch("t", 0, 0).RecordBatches
	if _, err := eventlog.CheckBatch(batch); err != nil || !bytes.Equal(batch[17:], records(0, 2000, 1000)[17:]) {
		t.Errorf("stored: %x, %v", batch, err)
	}
	for codec := int16(1); codec <= 4; codec++ {
		name := strconv.Itoa(int(codec))
		w.createTopic(name, 1)
		// What cannot be, what can, and what is right.
		for i, ms := range []int64{1000, 2000, -1, 0, 4000, 3000} {
			if x := w.produce(name, 0, stating(records(codec, 2000, 3000, 1000), ms)); x.ErrorCode != 0 || x.BaseOffset != 3*int64(i) {
				t.Fatalf("produce: %+v", x)
			}
			if h, ok := eventlog.ReadBatchHeader(w.fetch(name, 0, 3*int64(i)).RecordBatches); !ok || h.MaxTimestamp != 3000 {
				t.Errorf("codec %d, stated %d: stored: %+v", codec, ms, h)
			}
		}
		if x := w.listAt(name, 2500); x.ErrorCode != 0 || x.Offset != 1 || x.Timestamp != 3000 {
			t.Errorf("codec %d: the first record at or after 2500: %+v", codec, x)
		}
		for _, ms := range []int64{0, time.Now().UnixMilli()} {
			if x := w.produce(name, 0, stating(records(codec, 0, time.Now().UnixMicro()), ms)); x.ErrorCode != codeInvalidTimestamp {
				t.Errorf("codec %d: microseconds, stating %d: %+v", codec, ms, x)
			}
		}
	}
	// The server unpacks what is produced under a lock.
	req := kmsg.NewPtrCreateTopicsRequest()
	x := kmsg.NewCreateTopicsRequestTopic()
	x.Topic, x.NumPartitions, x.ReplicationFactor = "jobs", 1, -1
	x.Configs = []kmsg.CreateTopicsRequestTopicConfig{{Name: "quorate.fence", Value: p("lock")}}
	req.Topics = append(req.Topics, x)
	ask[*kmsg.CreateTopicsResponse](w, req, 7)
	claim, err := coord.New(b.c, coord.Home(b.c, "default")).Lock(t.Context(), []byte("lock"), 0)
	if err != nil {
		t.Fatal(err)
	}
	token := strconv.FormatInt(claim.Token, 10)
	if x := w.produce("jobs", 0, stating(fencedRecords(4, token, token), 1000)); x.ErrorCode != 0 {
		t.Fatalf("produce: %+v", x)
	}
	if h, ok := eventlog.ReadBatchHeader(w.fetch("jobs", 0, 0).RecordBatches); !ok || h.MaxTimestamp != 0 {
		t.Errorf("under a lock, compressed: %+v", h)
	}
}

// One record stamped in microseconds would end retention: it is never old enough to go, and what is behind it stays too.
func TestProduce_TimeFarAheadIsRefused(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	now := time.Now()
	for _, c := range []struct {
		name string
		ms   int64
		want int16
	}{
		{"now", now.UnixMilli(), 0},
		{"almost an hour ahead", now.Add(timeAheadMax - time.Minute).UnixMilli(), 0},
		{"more than an hour ahead", now.Add(timeAheadMax + time.Hour).UnixMilli(), codeInvalidTimestamp},
		{"microseconds", now.UnixMicro(), codeInvalidTimestamp},
		{"the last there is", math.MaxInt64, codeInvalidTimestamp},
	} {
		for codec := int16(0); codec <= 4; codec++ {
			if x := w.produce("t", 0, records(codec, c.ms)); x.ErrorCode != c.want || (c.want != 0) != (x.ErrorMessage != nil) {
				t.Errorf("%s, codec %d: %+v, want code %d", c.name, codec, x, c.want)
			}
		}
	}
}
