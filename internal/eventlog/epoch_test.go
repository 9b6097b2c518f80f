package eventlog

import (
	"testing"
	"time"

	"github.com/quorate/quorate/internal/shard"
)

// appendIn appends a batch in a raft term.
func (w *world) appendIn(term uint64, batch []byte) {
	w.t.Helper()
	e := shard.AppendBatchHeader(nil, shard.BatchHeader{Stamp: w.c.Now()})
	e = shard.AppendCommand(e, shard.Command{Module: shard.ModuleEventlog, Data: EncodeAppend([]Append{{topicA, 0, batch, 0}}, false)})
	w.applyIn(term, e)
}

// applyIn applies an entry in a raft term.
func (w *world) applyIn(term uint64, entry []byte) {
	w.t.Helper()
	m := w.c.Machine(1)
	out := shard.Applied{Own: 1}
	if err := m.Apply(m.Applied().Index+1, term, entry, &out); err != nil {
		w.t.Fatal(err)
	}
	if err := m.Commit(&out); err != nil {
		w.t.Fatal(err)
	}
}

func TestEpochs_EndOffsets(t *testing.T) {
	w := newWorld(t)
	// A consumer of an empty partition has the epoch of the moment from ListOffsets. Nothing was truncated.
	for _, c := range []struct {
		ask, epoch int32
		end        int64
	}{{-1, -1, -1}, {0, 0, 0}, {4, 4, 0}} {
		if e := w.ends(c.ask); e.Epoch != c.epoch || e.EpochEnd != c.end || e.LastEpoch != -1 {
			t.Errorf("empty partition, epoch %d: got %+v, want %d %d", c.ask, e, c.epoch, c.end)
		}
	}
	w.appendIn(2, batchOf(1, 2))
	// The same consumer asks again when the first record is there, of a later epoch and the only one.
	if e := w.ends(1); e.Epoch != 1 || e.EpochEnd != 0 {
		t.Errorf("epoch 1 before the only one: %+v", e)
	}
	w.appendIn(2, batchOf(1, 2))
	w.appendIn(5, batchOf(1, 2))
	w.appendIn(9, batchOf(1, 2))
	for _, c := range []struct {
		ask, epoch int32
		end        int64
	}{{-1, -1, -1}, {0, 0, 0}, {1, 1, 0}, {2, 2, 4}, {3, 2, 4}, {5, 5, 6}, {8, 5, 6}, {9, 9, 8}, {99, 9, 8}} {
		if e := w.ends(c.ask); e.Epoch != c.epoch || e.EpochEnd != c.end || e.LastEpoch != 9 {
			t.Errorf("epoch %d: got %+v, want %d %d", c.ask, e, c.epoch, c.end)
		}
	}
}

// A group read all records of epoch 3 and was away. Retention then takes what it has read, and nothing that it still wants.
func TestEpochs_ThatRetentionTook(t *testing.T) {
	w := newWorld(t)
	w.must(EncodeCreateTopic(Topic{ID: topicA, Name: "t", Partitions: 1, RetentionMs: 3_600_000}))
	now := w.c.Now().UnixMilli()
	w.appendIn(3, batchOf(now-3_000_000, now-3_000_000))
	w.appendIn(9, batchOf(now-3_000_000))
	w.appendIn(9, batchOf(now))
	w.appendIn(12, batchOf(now))
	w.c.Advance(20 * time.Minute)
	for _, c := range []struct {
		ask, epoch int32
		end        int64
	}{{3, 3, 3}, {9, 9, 4}, {10, 9, 4}, {12, 12, 5}} {
		if e := w.ends(c.ask); e.Start != 3 || e.End != 5 || e.Epoch != c.epoch || e.EpochEnd != c.end {
			t.Errorf("epoch %d: got %+v, want %d %d", c.ask, e, c.epoch, c.end)
		}
	}
}
