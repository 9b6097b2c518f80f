package replica

import (
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// headerTo is the header of frames that a node sends another.
func (n *rigNode) headerTo(to *rigNode) frameHeader {
	return frameHeader{from: n.id, session: n.host.cfg.Session, logID: n.host.cfg.LogID, yourLog: n.host.peers[to.id].logID}
}

// A replica takes raft messages from members under the names it knows, for its own id, and when it has heard of all nodes. Each that is refused here
// would change its term.
func TestReceive_OnlyWhatIsMeantForTheReplica(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	r.run(time.Second)
	third := r.third(lead, other)
	r.isolate(other)
	rep := other.host.reps[1]
	for _, c := range []struct {
		name   string
		taken  bool
		change func(f *Frame, hd *frameHeader, m *raftpb.Message)
	}{
		{"as it should be", true, func(*Frame, *frameHeader, *raftpb.Message) {}},
		{"a frame that names another node than its link", false, func(_ *Frame, hd *frameHeader, _ *raftpb.Message) { hd.from = third.id }},
		{"a message that names another node than its frame", false, func(_ *Frame, _ *frameHeader, m *raftpb.Message) { m.From = new(replicaID(third.id, 1)) }},
		{"for an earlier replica of the node", false, func(_ *Frame, _ *frameHeader, m *raftpb.Message) { m.To = new(rep.rid - 1) }},
		{"for another node's", false, func(_ *Frame, _ *frameHeader, m *raftpb.Message) { m.To = new(replicaID(third.id, 5)) }},
		{"under the name of another log", false, func(_ *Frame, hd *frameHeader, _ *raftpb.Message) { hd.logID ^= 1 }},
		{"from one that knows that it has another log", true, func(_ *Frame, hd *frameHeader, _ *raftpb.Message) { hd.logID = hd.logID ^ 1 | awareBit }},
		{"under the name of the log that it had", false, func(*Frame, *frameHeader, *raftpb.Message) {}},
	} {
		term := rep.term
		f, hd := Frame{From: lead.id}, lead.headerTo(other)
		m := &raftpb.Message{Type: raftpb.MsgAppResp.Enum(), From: new(replicaID(lead.id, 1)), To: new(rep.rid), Term: new(term + 10)}
		c.change(&f, &hd, m)
		f.Data = appendRaft(appendFrameHeader(nil, hd), 1, m, 0)
		other.turn(f)
		if taken := rep.term != term; taken != c.taken || rep.rn == nil {
			t.Errorf("%s: taken: %v", c.name, taken)
		}
	}
}

// A node without a past that has not heard of all others votes for nobody and learns no term: it may have forgotten some.
func TestReceive_NothingBeforeAllHaveMet(t *testing.T) {
	r := newRig(t, 3, nil)
	n, from := r.nodes[0], r.nodes[1]
	r.nodes[2].stop()
	r.run(time.Second)
	m := &raftpb.Message{
		Type: raftpb.MsgVote.Enum(), From: new(replicaID(from.id, 1)), To: new(n.host.reps[1].rid), Term: new(uint64(5)), Index: new(uint64(7)), LogTerm: new(uint64(4)),
	}
	n.turn(Frame{From: from.id, Data: appendRaft(appendFrameHeader(nil, from.headerTo(n)), 1, m, 0)})
	r.settle()
	if st := n.log.State(1); st != (storage.HardState{}) || n.host.reps[1].term != 0 {
		t.Errorf("it has said %+v, and has term %d", st, n.host.reps[1].term)
	}
}

// The names that a node knows its peers' logs by are on disk before it takes anything from them: after a crash it must still see that one has changed.
func TestKnows_NamesOutliveACrash(t *testing.T) {
	r := newRig(t, 3, nil)
	n, from := r.nodes[0], r.nodes[1]
	n.stop()
	_ = n.store.Close()
	fs := vfs.NewCrashableMem()
	var err error
	if n.store, err = storage.OpenStore(fs, "state", storage.StoreConfig{}); err != nil {
		t.Fatal(err)
	}
	n.start(false)
	r.nodes[2].stop()
	r.run(time.Second)
	after, err := storage.OpenStore(fs.CrashClone(vfs.CrashCloneCfg{}), "state", storage.StoreConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = after.Close() }()
	if _, ok, err := after.Get(peerLogKey(from.id)); !ok || err != nil {
		t.Errorf("after a crash the name is there: %v, %v", ok, err)
	}
}

// A replica that hears of messages for a later id of its node has been replaced without knowing it, and takes that id.
func TestRepair_AnOlderIDIsGivenUp(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.same("k", "1")
	old := other.host.Shards()[0].Replica
	cc := &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{
		{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: new(old)},
		{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: new(old + 1)},
	}}
	rep := lead.host.reps[1]
	if err := rep.rn.ProposeConfChange(cc); err != nil {
		t.Fatal(err)
	}
	lead.host.markDirty(rep)
	lead.turn()
	r.rebuilt(other, old, "k", "1")
	if got := other.host.Shards()[0].Replica; got != old+1 {
		t.Errorf("the replica has id %d, want %d: no other was needed", got, old+1)
	}
}

// Of the answers to its questions a replica without an id takes the one to its last, and an id of its own node.
func TestRepair_OnlyTheAnswerToTheLastQuestionIsTaken(t *testing.T) {
	r, other, old := stoppedFollower(t)
	r.isolate(other)
	if err := other.open(nil, true); err != nil {
		t.Fatal(err)
	}
	r.run(time.Second)
	rep := other.host.reps[1]
	assign := func(id, request uint64) {
		rd := codec.Read(appendUint64(appendUvarints(nil, id), request))
		rep.receiveAssign(&rd)
	}
	assign(old+5, rep.request-1)
	assign(replicaID(r.leader2(other).id, 7), rep.request)
	if rep.rn != nil || rep.rid != 0 {
		t.Fatalf("it took id %d", rep.rid)
	}
	r.heal()
	r.rebuilt(other, old, "k", "4")
}

// leader2 returns the node that leads, whatever the isolated one believes.
func (r *rig) leader2(isolated *rigNode) *rigNode {
	r.Helper()
	for _, n := range r.nodes {
		if n != isolated && n.host.Shards()[0].Leads {
			return n
		}
	}
	r.Fatal("nobody leads")
	return nil
}

// While one replica is being replaced, another one's question waits: raft would make an empty entry of the change, and the node would be told an id that
// nobody made.
func TestRepair_OneReplacementAfterTheOther(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	third := r.third(lead, other)
	rep := lead.host.reps[1]
	cc := &raftpb.ConfChangeV2{
		Transition: raftpb.ConfChangeTransitionJointExplicit.Enum(),
		Changes: []*raftpb.ConfChangeSingle{
			{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: new(replicaID(other.id, 1))},
			{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: new(replicaID(other.id, 2))},
		},
	}
	if err := rep.rn.ProposeConfChange(cc); err != nil {
		t.Fatal(err)
	}
	lead.host.markDirty(rep)
	lead.turn()
	r.until("joint configuration", func() bool { return len(rep.confNow().state.VotersOutgoing) > 0 })
	rd := codec.Read(appendUint64(appendUvarints(nil, replicaID(third.id, 1)), 77))
	rep.receiveReplace(lead.host.peers[third.id], &rd)
	if a := rep.given[third.id]; a != (assigned{}) {
		t.Errorf("given %+v", a)
	}
}

// learner returns a cluster with a node whose replica was replaced, and does not vote before promotedAt of the leader is set back, unless something else
// keeps it from that. Messages to it of which lost says so are lost.
func learner(t *testing.T, lost func(kind byte) bool) (r *rig, lead, other *rigNode, old uint64) {
	t.Helper()
	r = newRig(t, 3, func(c *Config) { c.LogEntriesMax = 5 })
	lead, other = r.elect()
	for range 20 {
		lead.do("k=4")
	}
	r.same("k", "4")
	old = other.host.Shards()[0].Replica
	other.stop()
	r.run(2 * time.Second)
	if err := other.open(nil, true); err != nil {
		t.Fatal(err)
	}
	rep := lead.host.reps[1]
	rep.promotedAt = r.now.Add(time.Hour)
	r.drop = func(_, to shard.NodeID, kind byte) bool { return to == other.id && lost(kind) }
	r.until("learner", func() bool {
		cs := rep.confNow().state
		return len(cs.Learners) > 0 && len(cs.VotersOutgoing) == 0 && other.host.reps[1].rn != nil
	})
	return r, lead, other, old
}

func (n *rigNode) hasAllOf(lead *rigNode) bool {
	return n.host.Shards()[0].Applied == lead.host.Shards()[0].Applied
}

func (n *rigNode) votes() bool {
	s := n.r.leader2(n).host.Shards()[0]
	return slices.ContainsFunc(s.Voters, func(id uint64) bool { return replicaNode(id) == n.id })
}

// A learner votes when it is there and has nearly everything: before that, the majority that it is counted in would wait for it.
func TestRepair_WhoLearnsVotesWhenItHasCaughtUp(t *testing.T) {
	t.Run("without the snapshot", func(t *testing.T) {
		r, lead, other, old := learner(t, func(kind byte) bool { return kind == msgChunk })
		rep := lead.host.reps[1]
		r.until("active learner", func() bool {
			pr := rep.rn.Status().Progress[other.host.reps[1].rid]
			return pr.RecentActive && pr.Match+64 >= rep.view.last.Index
		})
		rep.promotedAt = time.Time{}
		if r.run(5 * time.Second); other.votes() {
			t.Error("a replica without any state votes")
		}
		r.heal()
		r.rebuilt(other, old, "k", "4")
	})
	t.Run("behind", func(t *testing.T) {
		r, lead, other, old := learner(t, func(byte) bool { return false })
		r.until("all entries", func() bool { return other.hasAllOf(lead) })
		// Entries are lost, and heartbeats are not.
		r.drop = func(_, to shard.NodeID, kind byte) bool { return to == other.id && kind == msgRaft }
		for range 100 {
			lead.do("k=5")
		}
		lead.host.reps[1].promotedAt = time.Time{}
		pr := lead.host.reps[1].rn.Status().Progress[other.host.reps[1].rid]
		if pr.Match+64 >= lead.host.reps[1].view.last.Index || !pr.RecentActive {
			t.Fatalf("the learner is %v", pr)
		}
		if r.run(200 * time.Millisecond); other.votes() {
			t.Error("a replica votes that lacks a hundred entries")
		}
		r.heal()
		r.rebuilt(other, old, "k", "5")
	})
	t.Run("silent", func(t *testing.T) {
		r, lead, other, old := learner(t, func(byte) bool { return false })
		r.until("all entries", func() bool { return other.hasAllOf(lead) })
		r.isolate(other)
		r.until("silence", func() bool { return !lead.host.reps[1].rn.Status().Progress[other.host.reps[1].rid].RecentActive })
		lead.host.reps[1].promotedAt = time.Time{}
		if r.run(5 * time.Second); other.votes() {
			t.Error("a replica votes that nobody hears of")
		}
		r.heal()
		r.rebuilt(other, old, "k", "4")
	})
	t.Run("while the configuration changes", func(t *testing.T) {
		r, lead, other, old := learner(t, func(byte) bool { return false })
		r.until("all entries", func() bool { return other.hasAllOf(lead) })
		rep := lead.host.reps[1]
		rep.promotedAt = time.Time{}
		joint := decodeConf(encodeConf(rep.confNow().state))
		joint.VotersOutgoing = joint.Voters
		rep.conf.state = joint
		if rep.promoteLearners(); !rep.promotedAt.IsZero() {
			t.Error("a change was proposed that raft makes an empty entry of")
		}
		rep.conf = confCache{}
		r.rebuilt(other, old, "k", "4")
	})
}

// A replica that has the entry by which it votes, and has not heard that this is committed, wakes the others: it cannot call an election, and nobody
// else has anything to say.
func TestRepair_WhoDoesNotKnowThatItVotesIsTold(t *testing.T) {
	r, lead, other, old := learner(t, func(byte) bool { return false })
	r.until("all entries", func() bool { return other.hasAllOf(lead) })
	rep, before := other.host.reps[1], lead.last()
	lead.host.reps[1].promotedAt = time.Time{}
	r.drop = func(_, to shard.NodeID, _ byte) bool { return to == other.id && rep.view.last.Index > before }
	r.until("sleep of the others", func() bool { return !lead.host.Shards()[0].Awake && other.votes() })
	if s := other.host.Shards()[0]; s.Voter(s.Replica) {
		t.Fatal("it knows")
	}
	r.heal()
	r.rebuilt(other, old, "k", "4")
}
