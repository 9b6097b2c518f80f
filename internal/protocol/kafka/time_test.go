package kafka

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
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

// A batch of some bytes may unpack to 64 MiB: those that are looked into at a time are counted.
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
	release, err := b.s.unpacked.take(t.Context(), 2*decompressedMax)
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
		t.Errorf("a third batch was unpacked while two were: %+v", x)
	}
	if x := w.listAt("plain", 1500); x.ErrorCode != 0 || x.Offset != 1 {
		t.Errorf("nothing is to be unpacked: %+v", x)
	}
	release()
	if x := w.listAt("t", 1500); x.ErrorCode != 0 || x.Offset != 1 || x.Timestamp != 2000 {
		t.Errorf("with room: %+v", x)
	}
}
