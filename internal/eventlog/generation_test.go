package eventlog

import (
	"encoding/binary"
	"math"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// aged is a Module in which a command that begins with 0xff gives the group g, and its member, a generation.
type aged struct{ Module }

func (a aged) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	if len(cmd) == 0 || cmd[0] != 0xff {
		return a.Module.Apply(tx, cmd)
	}
	g := readGroup(tx, "g")
	at := int32(binary.BigEndian.Uint32(cmd[1:]))
	for _, m := range g.all(tx) {
		m.joined, m.synced, m.assigned = at, at, at
		g.saveMember(tx, m)
	}
	g.generation = at
	g.save(tx)
	return nil, nil
}

// A group that has rebalanced for as often as can be counted begins anew: a generation is never negative, which means "none" to clients.
func TestGeneration_BeginsAnew(t *testing.T) {
	w := &world{t: t, c: shardtest.New(t, shardtest.Options{}, aged{})}
	w.enter("m")
	w.must(binary.BigEndian.AppendUint32([]byte{0xff}, math.MaxInt32))
	if g := w.info("g"); g.Generation != math.MaxInt32 || g.State != GroupStable {
		t.Fatalf("the group is %v in generation %d", g.State, g.Generation)
	}
	// A second member makes it rebalance.
	w.must(EncodeJoin(joinAs("", "n", "")))
	if st, err := w.joinState("g", "n"); err != nil || !st.Waiting {
		t.Fatalf("the second member: %+v, %v", st, err)
	}
	if again, err := DecodeHeartbeat(w.must(EncodeHeartbeat("g", "m", "", math.MaxInt32))); err != nil || !again {
		t.Errorf("the first member is not told to join again: %v", err)
	}
	w.must(EncodeJoin(joinAs("m", "", "")))
	for _, id := range []string{"m", "n"} {
		if st, err := w.joinState("g", id); err != nil || st.Waiting || st.Generation != 1 || st.Leader == "" {
			t.Fatalf("%s: %+v, %v; want generation 1", id, st, err)
		}
	}
	w.must(EncodeSync(Sync{Group: "g", MemberID: "n", Generation: 1}))
	w.must(EncodeSync(Sync{Group: "g", MemberID: "m", Generation: 1, Assignments: []Assignment{{"m", []byte("a")}, {"n", []byte("b")}}}))
	if st, err := w.syncState("g", "n", 1); err != nil || st.Waiting || string(st.Assignment) != "b" {
		t.Errorf("assigned: %+v, %v", st, err)
	}
	w.must(EncodeCommit(Commit{Group: "g", MemberID: "n", Generation: 1, Offsets: []CommittedOffset{{Topic: "t", Offset: 5}}}))
	if _, err := w.do(EncodeCommit(Commit{Group: "g", MemberID: "n", Generation: math.MaxInt32, Offsets: []CommittedOffset{{Topic: "t", Offset: 4}}})); err == nil {
		t.Error("a commit of the generation before is taken")
	}
	// A member that says nothing more goes, and the last one that leaves ends a generation too.
	w.c.Advance(11 * time.Second)
	w.must(binary.BigEndian.AppendUint32([]byte{0xff}, math.MaxInt32))
	if g := w.info("g"); len(g.Members) == 0 {
		w.enter("m")
		w.must(binary.BigEndian.AppendUint32([]byte{0xff}, math.MaxInt32))
	}
	for _, m := range w.info("g").Members {
		w.must(EncodeLeave("g", []Leaver{{MemberID: m.ID}}))
	}
	if g := w.info("g"); g.State != GroupEmpty || g.Generation != 1 {
		t.Errorf("the empty group is %v in generation %d, want 1", g.State, g.Generation)
	}
}
