package replica

import (
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/shard"
)

// asleep says whether no node's shard is awake.
func (r *rig) asleep() bool {
	for _, n := range r.nodes {
		if n.host != nil && n.host.Shards()[0].Awake {
			return false
		}
	}
	return true
}

func TestHibernation_IdleShardSendsNothing(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.until("sleep", r.asleep)
	sent := 0
	r.drop = func(_, _ shard.NodeID, kind byte) bool {
		if kind != 0 {
			sent++
		}
		return false
	}
	term := lead.host.Shards()[0].Term
	r.run(time.Minute)
	if sent != 0 || !r.asleep() {
		t.Errorf("%d messages while asleep", sent)
	}
	if res := other.do("k=2"); res.Err != nil {
		t.Errorf("got %+v", res)
	}
	if got := lead.host.Shards()[0].Term; got != term || lead.counts.Asleep == 0 || other.counts.Woken < 2 {
		t.Errorf("term went from %d to %d; %+v", term, got, lead.counts)
	}
	r.until("sleep", r.asleep)
	f := other.read(0)
	if took := r.until("read", func() bool { return other.reads[f] != nil }); took > 200*time.Millisecond {
		t.Errorf("a read of a sleeping shard took %v", took)
	}
}

func TestHibernation_EndsWhenTheLeadersNodeFallsSilent(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	lead.do("k=1")
	r.until("sleep", r.asleep)
	lead.stop()
	took := r.until("leader", func() bool { return r.leader() != nil })
	if took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestHibernation_EndsWhenTheLeadersNodeRestarts(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.until("sleep", r.asleep)
	lead.restart()
	r.until("leader", func() bool { return r.leader() != nil })
	if res := other.do("k=2"); res.Err != nil {
		t.Errorf("got %+v", res)
	}
	r.same("k", "2")
}

// A follower that restarts may have lost the last commit. It is told before it would call an election.
func TestHibernation_EndsWhenAFollowersNodeRestarts(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.until("sleep", r.asleep)
	term := lead.host.Shards()[0].Term
	other.restart()
	took := r.until("leader is known", func() bool { return other.host.Shards()[0].Leader == lead.id })
	if took > 500*time.Millisecond {
		t.Errorf("took %v", took)
	}
	r.same("k", "1")
	r.until("sleep", r.asleep)
	if got := lead.host.Shards()[0].Term; got != term {
		t.Errorf("term went from %d to %d", term, got)
	}
}

func TestHibernation_TimersWakeTheShard(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	lead.do("@t=30s")
	r.until("sleep", r.asleep)
	r.run(31 * time.Second)
	r.same("t", "fired")
}

func TestHibernation_NotWhileAFollowerLags(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	r.isolate(other)
	lead.do("k=1")
	r.run(10 * time.Second)
	if !lead.host.Shards()[0].Awake {
		t.Errorf("the shard sleeps although a follower lags")
	}
	r.heal()
	r.until("sleep", r.asleep)
	r.same("k", "1")
}

func TestHibernation_CanBeSwitchedOff(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.NoHibernate = true })
	r.elect()
	r.run(10 * time.Second)
	if r.asleep() {
		t.Errorf("the shard sleeps")
	}
}

// A shard goes to sleep only when nothing is under way in it.
func TestHibernation_NotWhileAnythingIsUnderWay(t *testing.T) {
	r := newRig(t, 1, nil)
	n := r.nodes[0]
	r.until("leader", func() bool { return n.host.Shards()[0].Leads })
	n.do("k=1")
	r.settle()
	rep := n.host.reps[1]
	for name, set := range map[string]func() (undo func()){
		"a command that waits":  func() func() { rep.queue = make([]waiting, 1); return func() { rep.queue = nil } },
		"a batch":               func() func() { rep.order = []uint64{1}; return func() { rep.order = nil } },
		"a read":                func() func() { rep.reads.count++; return func() { rep.reads.count-- } },
		"a write":               func() func() { rep.unsynced++; return func() { rep.unsynced-- } },
		"an election to come":   func() func() { rep.campaignAt = r.now; return func() { rep.campaignAt = time.Time{} } },
		"a hand-over":           func() func() { rep.move = &move{}; return func() { rep.move = nil } },
		"a snapshot that comes": func() func() { rep.in = &snapshotIn{}; return func() { rep.in = nil } },
		"a snapshot that goes": func() func() {
			rep.out = map[uint64]*snapshotOut{2: {}}
			return func() { rep.out = nil }
		},
		"an entry": func() func() { rep.view.last.Index++; return func() { rep.view.last.Index-- } },
	} {
		if !rep.quietEnough() {
			t.Fatalf("before %s", name)
		}
		undo := set()
		if rep.quietEnough() {
			t.Errorf("it is quiet enough with %s", name)
		}
		undo()
	}
	// What is committed is still to be applied, and raft knows nothing else.
	if err := rep.rn.Propose(shard.TimersEntry(r.now)); err != nil {
		t.Fatal(err)
	}
	if rep.quietEnough() {
		t.Error("it is quiet enough with something that raft has ready")
	}
	for rep.ready() {
		rep.host.durable(rep.host.logSeq)
		for _, w := range rep.host.waits {
			rep.appended(&w)
		}
		rep.host.waits = nil
	}
	rep.unsynced = 0
	if rep.rn.HasReady() || rep.rn.BasicStatus().GetCommit() != rep.view.last.Index || rep.machine.Applied().Index == rep.view.last.Index {
		t.Fatalf("the entry is committed up to %d of %d, and applied up to %d", rep.rn.BasicStatus().GetCommit(), rep.view.last.Index, rep.machine.Applied().Index)
	}
	if rep.quietEnough() {
		t.Error("it is quiet enough with an entry that is not applied")
	}
	// It is not on disk.
	n.host.out.Writes = nil
}

// A leader lets nobody sleep while a follower that is there lacks entries, or one that has them all is away.
func TestHibernation_NotWithoutAllFollowers(t *testing.T) {
	for name, keeps := range map[string]func(kind byte) bool{
		"there, and lacks an entry": func(kind byte) bool { return kind == msgRaft },
		"away":                      func(byte) bool { return true },
	} {
		r := newRig(t, 3, nil)
		lead, other := r.elect()
		lead.do("k=1")
		r.same("k", "1")
		r.drop = func(from, to shard.NodeID, kind byte) bool {
			return (from == other.id || to == other.id) && keeps(kind)
		}
		if away := keeps(0); !away {
			lead.do("k=2")
		}
		r.run(10 * time.Second)
		if s := lead.host.Shards()[0]; !s.Awake || !s.Leads || lead.host.Alive(other.id) == keeps(0) {
			t.Errorf("the follower is %s, and the leader %+v", name, s)
		}
	}
}

// A follower goes to sleep if its leader says so, in its term, and has what it has.
func TestHibernation_FollowersCheckWhatTheyAreTold(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.NoHibernate = true })
	lead, other := r.elect()
	lead.do("k=1")
	r.same("k", "1")
	r.run(time.Second)
	rep, p := other.host.reps[1], other.host.peers[lead.id]
	told := func(from, term, last uint64) bool {
		rd := codec.Read(appendUvarints(nil, from, term, last))
		rep.receiveQuiesce(p, &rd)
		slept := !rep.awake
		rep.wake()
		return slept
	}
	from, term, last := rep.lead, rep.term, rep.view.last.Index
	for name, slept := range map[string]bool{
		"by another":                    told(replicaID(lead.id, 9), term, last),
		"of an earlier term":            told(from, term-1, last),
		"with less":                     told(from, term, last-1),
		"with more":                     told(from, term, last+1),
		"while something is under way":  func() bool { rep.unsynced++; defer func() { rep.unsynced-- }(); return told(from, term, last) }(),
		"in the name of another's node": func() bool { p = other.host.peers[r.third(lead, other).id]; return told(from, term, last) }(),
	} {
		if slept {
			t.Errorf("it sleeps when it is told to %s", name)
		}
	}
	p = other.host.peers[lead.id]
	if !told(from, term, last) {
		t.Error("it does not sleep when its leader says so")
	}
}

// What shows only that both sides are there wakes nobody, and anything else does.
func TestHibernation_WhatWakes(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.same("k", "1")
	third := r.third(lead, other)
	r.until("sleep", r.asleep)
	wakes := func(n, from *rigNode, typ raftpb.MessageType, change func(*raftpb.Message)) bool {
		rep := n.host.reps[1]
		m := &raftpb.Message{
			Type: typ.Enum(), From: new(replicaID(from.id, 1)), To: new(rep.rid), Term: new(rep.term), Commit: new(rep.machine.Applied().Index),
			LogTerm: new(rep.term), Index: new(rep.view.last.Index),
		}
		change(m)
		if typ == raftpb.MsgHeartbeatResp {
			m.Commit, m.LogTerm, m.Index = nil, nil, nil
		}
		woke := !rep.chatter(m)
		rep.receiveRaft(m, 0)
		if rep.awake != woke {
			t.Errorf("node %d is awake: %v, after %v", n.id, rep.awake, m)
		}
		rep.sleep()
		return woke
	}
	nothing := func(*raftpb.Message) {}
	if wakes(other, lead, raftpb.MsgHeartbeat, nothing) || wakes(lead, other, raftpb.MsgHeartbeatResp, nothing) {
		t.Error("a heartbeat wakes, or the answer to one")
	}
	asks := func(m *raftpb.Message) { m.Context = make([]byte, readAckBytes) }
	later := func(m *raftpb.Message) { m.Term = new(m.GetTerm() - 1) }
	for name, woke := range map[string]bool{
		"entries":                              wakes(other, lead, raftpb.MsgApp, nothing),
		"a heartbeat that asks":                wakes(other, lead, raftpb.MsgHeartbeat, asks),
		"a heartbeat of another term":          wakes(other, lead, raftpb.MsgHeartbeat, later),
		"a heartbeat of another node":          wakes(other, third, raftpb.MsgHeartbeat, nothing),
		"an answer that confirms":              wakes(lead, other, raftpb.MsgHeartbeatResp, asks),
		"an answer of another term":            wakes(lead, other, raftpb.MsgHeartbeatResp, later),
		"a question for a vote of old":         wakes(other, third, raftpb.MsgPreVote, later),
		"a heartbeat with a commit to be made": wakes(other, lead, raftpb.MsgHeartbeat, func(m *raftpb.Message) { m.Commit = new(m.GetCommit() + 1) }),
	} {
		if !woke {
			t.Errorf("%s does not wake", name)
		}
	}
}

// A node that was started again has forgotten what it led, and what it was told: the shards that it leads look at once, and those that it follows are told.
func TestHibernation_EndsWithTheSessionOfANode(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.until("sleep", r.asleep)
	for _, c := range [][2]*rigNode{{other, lead}, {lead, other}, {other, r.third(lead, other)}} {
		n, from := c[0], c[1]
		n.host.receive(Frame{From: from.id, Data: appendFrameHeader(nil, func() frameHeader { h := from.headerTo(n); h.session++; return h }())})
		rep := n.host.reps[1]
		if want := n == lead || from == lead; rep.awake != want {
			t.Errorf("node %d is awake: %v, want %v, when node %d starts again", n.id, rep.awake, want, from.id)
		}
		rep.sleep()
	}
}

// With leases a leader whose process is said to be gone is left its time: it may have answered reads for as long as that.
func TestLink_RefusedIsNoProofForLeases(t *testing.T) {
	for _, leases := range []bool{true, false} {
		r := newRig(t, 3, func(c *Config) { c.LeaseReads = leases })
		lead, other := r.elect()
		lead.do("k=1")
		r.run(2 * time.Second)
		other.host.link(Link{Node: lead.id, Refused: true})
		if rep := other.host.reps[1]; rep.campaignAt.IsZero() != leases || other.host.Alive(lead.id) != leases {
			t.Errorf("with leases %v the election is at %v", leases, rep.campaignAt)
		}
	}
}
