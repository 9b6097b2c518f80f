package replica

import (
	"fmt"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/shard"
)

// send gives a node a raft message from another.
func (n *rigNode) send(from *rigNode, m *raftpb.Message) {
	n.r.Helper()
	h := from.host
	b := appendFrameHeader(nil, frameHeader{from: from.id, session: h.cfg.Session, logID: h.cfg.LogID, yourLog: n.host.cfg.LogID &^ awareBit})
	n.turn(Frame{From: from.id, Data: appendRaft(b, 1, m, 0)})
}

// What a flush has made durable of a replica says nothing of the one that takes its place: what that one has applied is not in it.
func TestFlushed_AfterTheReplicaWasGivenUp(t *testing.T) {
	var slow shard.NodeID
	r := newRig(t, 3, func(c *Config) {
		if c.Node == slow {
			c.LogEntriesMax = 20
		}
	})
	lead, other := r.elect()
	slow = other.id
	other.restart()
	for i := 0; other.flushes == 0; i++ {
		if i == 100 {
			t.Fatal("nothing is flushed")
		}
		lead.propose(fmt.Sprintf("k=%d", i), 0)
		// Until other has asked for a flush. That it is complete comes late.
		for other.flushes == 0 && (len(other.inbox) > 0 || len(lead.inbox) > 0 || !other.wake.After(r.now) || !lead.wake.After(r.now)) {
			lead.turn()
			other.turn()
		}
		r.now = r.now.Add(r.nodes[0].host.cfg.Tick / 10)
	}
	late := slices.IndexFunc(other.inbox, func(i Input) bool { _, ok := i.(Flushed); return ok })
	other.inbox = slices.Delete(other.inbox, late, late+1)
	st := other.host.Shards()[0]
	r.settle()
	// Its leader knows it to have more than it has.
	other.send(lead, &raftpb.Message{
		Type: raftpb.MsgHeartbeat.Enum(), From: new(lead.host.reps[1].rid), To: new(st.Replica), Term: new(st.Term), Commit: new(st.Last + 100),
	})
	if !other.host.Shards()[0].Awaiting {
		t.Fatal("the replica does not start over")
	}
	r.until("repair", func() bool {
		s := other.host.Shards()[0]
		return !s.Awaiting && s.Applied == lead.host.Shards()[0].Applied && lead.host.Shards()[0].Voter(s.Replica)
	})
	if s := other.host.Shards()[0]; s.First != 1 {
		t.Fatalf("it was given a snapshot: the log begins at %d", s.First)
	}
	other.turn(Flushed{})
	if s := other.host.Shards()[0]; s.First != 1 {
		t.Errorf("the log is cut at %d, and nothing of the new replica was flushed", s.First-1)
	}
}
