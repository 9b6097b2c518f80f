package eventlog

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// stating makes a batch state another latest time stamp than it has, with a right checksum.
func stating(b []byte, ms int64) []byte {
	binary.BigEndian.PutUint64(b[35:], uint64(ms))
	return resum(b)
}

// kafka-go states the time stamp of the last record as the batch's latest, and kafkajs leaves out those of records without one of their
// own. Kafka sets the field right, and takes the batch.
func TestCheckRecords_StatesTheLatestTime(t *testing.T) {
	want := batchOf(1000, 3000, 2000)
	for _, ms := range []int64{-1, 0, 1000, 2000, 3000, 4000} {
		b := stating(bytes.Clone(want), ms)
		if h, _, err := checkAll(t, b, Topic{}); err != nil || h.MaxTimestamp != 3000 || !bytes.Equal(b, want) {
			t.Errorf("stated %d: %+v, %v", ms, h, err)
		} else if got, _ := ReadBatchHeader(b); got != h {
			t.Errorf("stated %d: the batch has %+v, the answer %+v", ms, got, h)
		}
	}
	b := batchOf(-5, -9)
	binary.BigEndian.PutUint64(b[27:], 0)
	if _, _, err := checkAll(t, stating(b, 0), Topic{}); err != nil {
		t.Errorf("a record before 1970: %v", err)
	}
	b = batchOf(0, -9)
	binary.BigEndian.PutUint64(b[27:], 1<<63-1)
	if _, _, err := checkAll(t, stating(b, 0), Topic{}); err != nil {
		t.Errorf("the last time there is: %v", err)
	}
	b = batchOf(0)
	// The delta of the only record: -2.
	b[63] = 3
	if _, _, err := checkAll(t, stating(b, 0), Topic{}); code(err) != "INVALIDTIMESTAMP" {
		t.Errorf("only records before 1970: %v", err)
	}
}
