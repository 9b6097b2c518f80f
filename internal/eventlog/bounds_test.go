package eventlog

import (
	"fmt"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// poked is the model with rows that a test writes, where it would take too many commands to have them written.
type poked struct {
	Module
	write *func(tx *shard.Tx)
}

func (p poked) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	if len(cmd) > 0 {
		return p.Module.Apply(tx, cmd)
	}
	(*p.write)(tx)
	return nil, nil
}

// newPoked returns a world, and what writes rows in it.
func newPoked(t *testing.T) (*world, func(write func(tx *shard.Tx))) {
	t.Helper()
	var write func(*shard.Tx)
	w := &world{t: t, c: shardtest.New(t, shardtest.Options{}, poked{write: &write})}
	return w, func(f func(*shard.Tx)) {
		write = f
		w.must(nil)
	}
}

// A partition has no more producers than it may; those that it knows go on, and one that has gone makes room.
func TestProducers_AreBounded(t *testing.T) {
	w, poke := newPoked(t)
	w.must(EncodePlaceTopic(Topic{ID: topicA, Name: "t", Partitions: 1}))
	w.append(0, from(1, 0, 0, 1))
	count := func(n int32) {
		poke(func(tx *shard.Tx) {
			p, _ := readPartition(tx, topicA, 0)
			p.producers = n
			tx.Set(partKey(rowPartition, topicA, 0), p.encode())
		})
	}
	count(producersMax - 1)
	if a := w.append(0, from(2, 0, 0, 1)); a.Err != nil {
		t.Errorf("the last that may: %v", a.Err)
	}
	if a := w.append(0, from(3, 0, 0, 1)); !errs.Is(a.Err, errs.Overloaded) {
		t.Errorf("one more: %v", a.Err)
	}
	if a := w.append(0, from(1, 0, 1, 1)); a.Err != nil {
		t.Errorf("one that is known: %v", a.Err)
	}
	if a := w.append(0, batchOf(1)); a.Err != nil {
		t.Errorf("without a producer: %v", a.Err)
	}
	w.c.Advance(producerIdle + time.Minute)
	if a := w.append(0, from(3, 0, 0, 1)); a.Err != nil {
		t.Errorf("when others have gone: %v", a.Err)
	}
}

// What the members of a group say about themselves is bounded together, and what one says anew takes the place of what it said.
func TestGroup_MetadataIsBounded(t *testing.T) {
	w := newWorld(t)
	join := func(id, newID string, n int) error {
		j := joinAs(id, newID, "")
		j.Protocols = []Protocol{{"range", make([]byte, n)}}
		_, err := w.do(EncodeJoin(j))
		return err
	}
	const each = MemberBytesMax - 100
	full := GroupBytesMax / each
	for i := range full {
		if err := join("", fmt.Sprint(i), each); err != nil {
			t.Fatal(err)
		}
	}
	left := GroupBytesMax - full*(each+len("range"))
	if err := join("", "c", left); code(err) != CodeGroupFull {
		t.Errorf("one more member: %v", err)
	}
	if err := join("", "c", left-len("range")); err != nil {
		t.Errorf("one that just fits: %v", err)
	}
	if err := join("0", "", each+1); code(err) != CodeGroupFull {
		t.Errorf("a member that says more: %v", err)
	}
	if err := join("0", "", each-1000); err != nil {
		t.Errorf("a member that says less: %v", err)
	}
	if err := join("", "d", 900); err != nil {
		t.Errorf("another one when there is room: %v", err)
	}
}

// One look of retention goes through so many stretches of the time index and no more: behind more of them without a time it sees none.
func TestRetention_StretchesOfOneLookAreBounded(t *testing.T) {
	for _, c := range []struct {
		stretches int
		want      int64
	}{{retentionStretches, 1}, {retentionStretches + 1, -1}} {
		w, poke := newPoked(t)
		w.must(EncodePlaceTopic(Topic{ID: topicA, Name: "r", Partitions: 1, RetentionMs: 60_000}))
		w.append(0, batchOf(-1))
		const undated = 1
		// Closed stretches without a time, and one with an old one behind them.
		poke(func(tx *shard.Tx) {
			put := func(last, latest int64) {
				e := enc{b: []byte{version}}
				e.u64(uint64(last))
				e.u64(sortable(latest))
				tx.Set(timeKey(topicA, 0, latest, last), e.b)
			}
			for i := range c.stretches - 1 {
				put(int64(undated+i), -1)
			}
			put(int64(undated+c.stretches), 1)
		})
		var latest int64
		poke(func(tx *shard.Tx) {
			p, _ := readPartition(tx, topicA, 0)
			latest = firstDated(tx, topicA, 0, &p, undated)
		})
		if latest != c.want {
			t.Errorf("behind %d stretches without a time stands %d, want %d", c.stretches-1, latest, c.want)
		}
	}
}

// A commit of offsets shows that the member lives, as a heartbeat does.
func TestCommit_RenewsTheSession(t *testing.T) {
	w := newWorld(t)
	w.enter("m")
	g := w.info("g").Generation
	for range 5 {
		w.c.Advance(8 * time.Second)
		if _, err := w.do(EncodeCommit(Commit{Group: "g", MemberID: "m", Generation: g, Offsets: []CommittedOffset{{Topic: "t", Offset: 7}}})); err != nil {
			t.Fatal(err)
		}
	}
	w.c.Advance(11 * time.Second)
	if n := len(w.info("g").Members); n != 0 {
		t.Errorf("%d members when the session is over", n)
	}
}
