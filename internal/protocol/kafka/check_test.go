package kafka

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/eventlog"
)

// oneRecord is a record with a value of so many zeros.
func oneRecord(valueBytes int) []byte {
	r := kmsg.Record{Value: make([]byte, valueBytes)}
	// What its length, which is 0 by now, takes is not of it.
	r.Length = int32(len(r.AppendTo(nil)) - 1)
	return r.AppendTo(nil)
}

// batchOf is a batch of so many records, whatever its body is.
func batchOf(codec int16, records int, body []byte) []byte {
	return seal(kmsg.RecordBatch{
		Magic: 2, Attributes: codec, LastOffsetDelta: int32(records - 1), ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1,
		NumRecords: int32(records), Records: body,
	})
}

// The checksum of a batch says that it came as it was sent. What is wrong inside must not be stored: it would stop each consumer of the partition. It is refused
// with INVALID_RECORD, after which clients do not send it again, as they do for minutes after CORRUPT_MESSAGE.
func TestProduce_LooksIntoBatches(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	good := records(0, 1, 2, 3)[eventlog.BatchHeaderSize:]
	change := func(at int, v byte) []byte {
		c := bytes.Clone(good)
		c[at] = v
		return c
	}
	next := int64(0)
	for codec := int16(0); codec <= 4; codec++ {
		for _, c := range []struct {
			name    string
			records int
			body    []byte
		}{
			{"fewer records than it counts", 4, good},
			{"more records than it counts", 2, good},
			{"no records", 1, nil},
			{"garbage", 3, []byte("this is not a list of records")},
			{"zeros", 3, make([]byte, 1000)},
			{"a record too long for the batch", 3, change(0, 0x7e)},
			{"a record of negative length", 3, change(0, 1)},
			{"a record longer than its fields", 3, change(0, good[0]+2)},
			{"a record shorter than its fields", 3, change(0, good[0]-2)},
			{"an offset that is not the first", 3, change(3, 2)},
			{"a key below null", 3, change(4, 3)},
			{"a key beyond the record", 3, change(4, 0x7e)},
			{"a value beyond the record", 3, change(6, 0x7e)},
			{"headers below 0", 3, change(9, 1)},
			{"headers that are not there", 3, change(9, 2)},
			{"cut off", 3, good[:len(good)-1]},
			{"bytes behind the last record", 3, append(bytes.Clone(good), 0)},
		} {
			x := w.produce("t", 0, batchOf(codec, c.records, compress(codec, c.body)))
			if x.ErrorCode != codeInvalidRecord || x.BaseOffset != -1 || x.ErrorMessage == nil {
				t.Errorf("codec %d, %s: %+v", codec, c.name, x)
			}
		}
		if codec > 0 {
			packed := compress(codec, good)
			for name, body := range map[string][]byte{
				"not compressed": good, "nothing": nil, "cut": packed[:len(packed)-1], "half": packed[:len(packed)/2],
				"garbage behind": append(bytes.Clone(packed), 1, 2, 3), "of another codec": compress(codec%4+1, good),
				"garbage": []byte("this is not compressed by any codec at all"),
			} {
				x := w.produce("t", 0, batchOf(codec, 3, body))
				if x.ErrorCode != codeInvalidRecord || x.ErrorMessage == nil {
					t.Errorf("codec %d, %s: %+v", codec, name, x)
				}
			}
		}
		if x := w.produce("t", 0, batchOf(codec, 3, compress(codec, good))); x.ErrorCode != 0 || x.BaseOffset != next {
			t.Errorf("codec %d: what is right: %+v, want offset %d", codec, x, next)
		}
		next += 3
	}
	if x := w.produce("t", 0, batchOf(2, 3, xerialFramed(good, 7))); x.ErrorCode != 0 || x.BaseOffset != next {
		t.Errorf("framed snappy: %+v", x)
	}
}

func TestProduce_OneWrongBatchOfARequest(t *testing.T) {
	b := newBench(t, 2, Config{})
	b.s.unpack.sizeMax = 1 << 20
	w := b.dial()
	w.createTopic("t", 4)
	w.createTopic("u", 1)
	req := produceReq("t", 0, -1, records(1, 1, 2))
	req.Topics[0].Partitions = []kmsg.ProduceRequestTopicPartition{
		{Partition: 0, Records: records(1, 1, 2)},
		{Partition: 1, Records: batchOf(4, 3, []byte("garbage"))},
		{Partition: 2, Records: batchOf(3, 2, compress(3, oneRecord(1<<20)))},
		{Partition: 3, Records: records(4, 1, 2)},
	}
	u := kmsg.NewProduceRequestTopic()
	u.Topic, u.Partitions = "u", []kmsg.ProduceRequestTopicPartition{{Partition: 0, Records: records(2, 1)}}
	req.Topics = append(req.Topics, u)
	r := ask[*kmsg.ProduceResponse](w, req, 9)
	for i, want := range []int16{0, codeInvalidRecord, codeMessageTooLarge, 0} {
		x := r.Topics[0].Partitions[i]
		if f := w.fetch("t", int32(i), 0); x.ErrorCode != want || (want == 0) != (f.HighWatermark == 2) || (want != 0) != (x.ErrorMessage != nil) {
			t.Errorf("partition %d: %+v, up to %d", i, x, f.HighWatermark)
		}
	}
	if x := r.Topics[1].Partitions[0]; x.ErrorCode != 0 {
		t.Errorf("the other topic: %+v", x)
	}
}

// A bomb costs what a batch may unpack to at most, and what a request may.
func TestProduce_Bombs(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	b.s.unpack.sizeMax, b.s.unpack.requestMax = 4<<20, 6<<20
	for codec := int16(1); codec <= 4; codec++ {
		for _, c := range []struct {
			bytes int
			want  int16
		}{{4<<20 - 100, 0}, {4<<20 + 1, codeMessageTooLarge}} {
			x := w.produce("t", 0, batchOf(codec, 1, compress(codec, oneRecord(c.bytes))))
			if x.ErrorCode != c.want || c.want != 0 && (x.ErrorMessage == nil || !strings.Contains(*x.ErrorMessage, "the batch unpacks to more than 4194304 bytes")) {
				t.Errorf("codec %d, %d bytes: %+v, want code %d", codec, c.bytes, x, c.want)
			}
		}
	}
	// Those of one request come to too much together, be they for one partition or for several.
	batch := batchOf(4, 1, compress(4, oneRecord(2<<20)))
	h, err := eventlog.CheckBatch(batch)
	if err != nil {
		t.Fatal(err)
	}
	work := &produceWork{ctx: t.Context()}
	for i := range 4 {
		_, _, err := work.records(b.s, &eventlog.Topic{}, h, batch)
		if i < 2 && err != nil || i >= 2 && (codeOf(err, faceData) != codeMessageTooLarge || !strings.Contains(err.Error(), "the batches of the request")) {
			t.Errorf("batch %d of the request: %v", i, err)
		}
	}
	if !bytes.Equal(batch, batchOf(4, 1, compress(4, oneRecord(2<<20)))) || crc32.Checksum(batch[21:], crc32.MakeTable(crc32.Castagnoli)) != h.CRC {
		t.Error(fmt.Sprint("a right batch was changed: ", h))
	}
}
