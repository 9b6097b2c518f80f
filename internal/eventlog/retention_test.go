package eventlog

import (
	"testing"
	"time"
)

// More batches without a time stamp than one look of retention goes through: what is behind them says when they go.
func TestRetention_ManyWithoutATimeGo(t *testing.T) {
	for _, dated := range []int{1, stretchBatches} {
		w := newWorld(t)
		w.must(EncodePlaceTopic(Topic{ID: topicA, Name: "r", Partitions: 1, RetentionMs: 60_000}))
		const undated = 2*retentionBatches + 100
		for range undated {
			w.append(0, batchOf(-1))
		}
		w.c.Advance(10 * time.Minute)
		if e := w.ends(1); e.Start != 0 {
			t.Fatalf("nothing has a time: start %d", e.Start)
		}
		for range dated {
			w.append(0, batchOf(w.c.Now().UnixMilli()))
		}
		w.c.Advance(50 * time.Second)
		if e := w.ends(1); e.Start != 0 {
			t.Fatalf("what follows is not old: start %d", e.Start)
		}
		w.c.Advance(30 * time.Second)
		if e := w.ends(1); e.Start != int64(undated+dated) {
			t.Errorf("what follows is old: start %d of %d", e.Start, e.End)
		}
	}
}
