package replica

import (
	"slices"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// traffic counts the raft messages that nodes send from now on.
type traffic struct {
	// asked counts heartbeats that confirm reads, by receiver; news appends without entries, acks answers to appends, votes
	// requests for votes.
	asked      map[shard.NodeID]int
	news, acks int
	votes      int
}

func (r *rig) watch() *traffic {
	c := &traffic{asked: map[shard.NodeID]int{}}
	r.sent = func(_ shard.NodeID, f Outgoing) {
		_, body, err := readFrameHeader(f.Data)
		for len(body) > 0 && err == nil {
			var kind byte
			var msg []byte
			if kind, msg, body, err = nextMessage(body); kind != msgRaft {
				continue
			}
			_, m, _, bad := readRaft(msg)
			switch {
			case bad != nil:
				r.Fatal(bad)
			case m.GetType() == raftpb.MsgHeartbeat && len(m.Context) > 0:
				c.asked[f.To]++
			case m.GetType() == raftpb.MsgApp && len(m.Entries) == 0:
				c.news++
			case m.GetType() == raftpb.MsgAppResp:
				c.acks++
			case m.GetType() == raftpb.MsgPreVote || m.GetType() == raftpb.MsgVote:
				c.votes++
			}
		}
		if err != nil {
			r.Fatal(err)
		}
	}
	return c
}

// lose drops everything that goes to some nodes.
func (r *rig) lose(to ...shard.NodeID) {
	r.drop = func(_, id shard.NodeID, _ byte) bool { return slices.Contains(to, id) }
}

func TestHeld_ReadAsksNoMoreThanAMajority(t *testing.T) {
	for nodes, want := range map[int]int{2: 1, 3: 1, 4: 2, 5: 2} {
		r := newRig(t, nodes, nil)
		lead, _ := r.elect()
		r.run(time.Second)
		c := r.watch()
		for range 10 {
			f, now := lead.read(0), r.now
			r.settle()
			if lead.reads[f] == nil || r.now != now {
				t.Fatalf("%d nodes: a read was not answered at once", nodes)
			}
		}
		r.run(3 * holdFor)
		if len(c.asked) != want {
			t.Errorf("%d nodes: ten reads asked %v, want %d of them", nodes, c.asked, want)
		}
		for id, n := range c.asked {
			if n != 10 {
				t.Errorf("%d nodes: ten reads asked node %d %d times", nodes, id, n)
			}
		}
		if n := len(lead.host.held); n != 0 {
			t.Errorf("%d nodes: %d messages are held at the end", nodes, n)
		}
	}
}

// A node that does not answer costs one read holdFor, and the next ones nothing.
func TestHeld_ReadAsksOthersInTime(t *testing.T) {
	for nodes, lost := range map[int]int{3: 1, 5: 2} {
		r := newRig(t, nodes, nil)
		lead, _ := r.elect()
		r.run(time.Second)
		first := slices.Clone(lead.host.reps[1].askedFirst())
		if len(first) != lost {
			t.Fatalf("%d nodes: %v are asked first", nodes, first)
		}
		r.lose(first...)
		f := lead.read(0)
		r.settle()
		if lead.reads[f] != nil {
			t.Fatalf("%d nodes: a read was served without a majority", nodes)
		}
		r.run(holdFor)
		if lead.reads[f] == nil {
			t.Fatalf("%d nodes: a read waits for %v, which are lost", nodes, first)
		}
		for range 3 {
			f, now := lead.read(0), r.now
			r.settle()
			if lead.reads[f] == nil || r.now != now {
				t.Errorf("%d nodes: a later read waited again", nodes)
			}
		}
		r.heal()
		r.run(2 * time.Second)
		f = lead.read(0)
		r.settle()
		if lead.reads[f] == nil {
			t.Errorf("%d nodes: a read waits although nothing is lost any more", nodes)
		}
	}
}

// Reads that come while one waits must not put off the moment at which the rest are asked for it.
func TestHeld_LaterReadsDoNotPutOffEarlierOnes(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	r.run(time.Second)
	first := lead.host.reps[1].askedFirst()[0]
	r.lose(first)
	f := lead.read(0)
	r.settle()
	r.run(holdFor / 2)
	for _, n := range r.nodes {
		if n != lead && n.id != first {
			n.read(0)
		}
	}
	r.run(holdFor / 2)
	if lead.reads[f] == nil {
		t.Errorf("a read still waits after %v", holdFor)
	}
}

// Reads of which each is asked for while the one before is under way have a moment each at which the rest are asked.
func TestHeld_SteadyReadsAskNobodyElse(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	r.run(time.Second)
	before := slices.Clone(lead.host.asked)
	c := r.watch()
	fs := []*shard.Future{lead.read(0)}
	for range 100 {
		fs = append(fs, lead.read(0))
		r.now = r.now.Add(holdFor / 5)
		for _, n := range r.nodes {
			if n != lead {
				n.turn()
			}
		}
		lead.turn()
	}
	for i, f := range fs[:len(fs)-1] {
		if lead.reads[f] == nil {
			t.Fatalf("read %d was not answered", i)
		}
	}
	if !slices.Equal(before, lead.host.asked) {
		t.Errorf("the peers are asked in the order %v, before it was %v, though all answered in time", lead.host.asked, before)
	}
	// Besides there is a heartbeat each tick.
	if first, other := before[0], before[1]; c.asked[first] < 100 || c.asked[other] > 3 {
		t.Errorf("%d reads asked %v, want %d alone", len(fs), c.asked, first)
	}
}

// A node that believes that it leads in an older term must be told at once that it does not.
func TestHeld_StaleLeaderHearsOfTheNewTerm(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.NoHibernate = true })
	old, _ := r.elect()
	r.run(time.Second)
	// It stands still while another is elected, whose followers hear of commits.
	paused := old.host
	old.host = nil
	r.until("new leader", func() bool { return r.leader() != nil })
	lead := r.leader()
	for range 3 {
		if res := lead.do("k=1"); res.Err != nil {
			t.Fatal(res.Err)
		}
		r.run(3 * holdFor)
	}
	r.isolate(lead)
	old.host = paused
	if !old.host.reps[1].leads() {
		t.Fatal("the old leader knows already")
	}
	old.read(0)
	r.run(10 * holdFor)
	if old.host.reps[1].leads() {
		t.Errorf("node %d believes that it leads in term %d, though it has asked one of %s", old.id, old.host.reps[1].term, r.status())
	}
}

// A node that is silent is asked last.
func TestHeld_SilentNodesAreAskedLast(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.NoHibernate = true })
	lead, _ := r.elect()
	r.run(time.Second)
	first := lead.host.reps[1].askedFirst()[0]
	r.isolate(r.nodes[first-1])
	r.until("silence", func() bool { return r.noted("peer is silent") })
	if got := lead.host.reps[1].askedFirst(); len(got) != 1 || got[0] == first {
		t.Errorf("%v are asked first, of which %d is silent", got, first)
	}
}

// An answer is left out if its receiver leads and has said in the same term to know at least as much.
func TestHeld_WhatSaysNothing(t *testing.T) {
	const self, lead, stranger = 1, 2, 3
	for _, c := range []struct {
		what          string
		to, term      uint64
		index         uint64
		reject, quiet bool
		kind          raftpb.MessageType
	}{
		{"as much as was said", lead, 5, 7, false, true, raftpb.MsgAppResp},
		{"less", lead, 5, 6, false, true, raftpb.MsgAppResp},
		{"more", lead, 5, 8, false, false, raftpb.MsgAppResp},
		{"a later term", lead, 6, 7, false, false, raftpb.MsgAppResp},
		{"an older term", lead, 4, 7, false, false, raftpb.MsgAppResp},
		{"to another node", stranger, 5, 0, false, false, raftpb.MsgAppResp},
		{"a refusal", lead, 5, 7, true, false, raftpb.MsgAppResp},
		{"of a heartbeat", lead, 5, 7, false, false, raftpb.MsgHeartbeatResp},
	} {
		r := &replica{lead: lead, known: known{told: storage.Position{Index: 7, Term: 5}}}
		m := &raftpb.Message{Type: c.kind.Enum(), To: new(c.to), From: new(uint64(self)), Term: new(c.term), Index: new(c.index), Reject: new(c.reject)}
		if got := r.saysNothing(m); got != c.quiet {
			t.Errorf("%s: left out %v, want %v", c.what, got, c.quiet)
		}
	}
}

// A leader says to know what it has heard in its term, and of nothing else.
func TestHeld_WhatALeaderKnows(t *testing.T) {
	const self, peer = 1, 2
	r := &replica{rid: self}
	r.followers = []follower{{id: peer}}
	news := func(term, index uint64, entries ...*raftpb.Entry) byte {
		return r.knownFlag(&raftpb.Message{Type: raftpb.MsgApp.Enum(), To: new(uint64(peer)), Term: &term, Index: &index, Entries: entries})
	}
	hears := func(term, index uint64, reject bool) {
		r.noteKnown(&raftpb.Message{Type: raftpb.MsgAppResp.Enum(), From: new(uint64(peer)), Term: &term, Index: &index, Reject: &reject}, 0)
	}
	check := func(what string, want, got byte) {
		t.Helper()
		if got != want {
			t.Errorf("%s: flags %d, want %d", what, got, want)
		}
	}
	check("nothing was heard", 0, news(5, 3))
	hears(5, 9, true)
	check("it was refused", 0, news(5, 3))
	hears(5, 7, false)
	check("it was heard", flagKnown, news(5, 7))
	check("more than was heard", 0, news(5, 8))
	check("with entries", 0, news(5, 7, &raftpb.Entry{}))
	check("in a later term", 0, news(6, 7))
	hears(4, 100, false)
	check("an answer of an older term came late", 0, news(4, 100))
	check("an answer of an older term came late", flagKnown, news(5, 7))
	hears(5, 6, false)
	check("an older answer came late", flagKnown, news(5, 7))
	hears(6, 2, false)
	check("the follower's log was cut in a later term", 0, news(6, 7))
}

// A read that is under way whenever a tick comes must not keep the heartbeat from those that it does not ask.
func TestHeld_ReadsDoNotReplaceHeartbeats(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	r.run(time.Second)
	term := lead.host.reps[1].term
	c := r.watch()
	for range 40 {
		r.now = lead.host.nextTick
		f := lead.read(0)
		r.settle()
		if lead.reads[f] == nil {
			t.Fatal("a read was not answered")
		}
		r.run(holdFor)
	}
	if len(c.asked) != 2 {
		t.Errorf("only %v were sent heartbeats", c.asked)
	}
	for _, n := range r.nodes {
		s := n.host.Shards()[0]
		if s.Leader != lead.id || s.Term != term {
			t.Errorf("node %d believes that %d leads in term %d, want %d in %d", n.id, s.Leader, s.Term, lead.id, term)
		}
	}
	if c.votes > 0 {
		t.Errorf("%d votes were asked for", c.votes)
	}
}

func TestHeld_NewsOfACommitIsNotAnswered(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	r.run(time.Second)
	c := r.watch()
	if res := lead.do("k=1"); res.Err != nil {
		t.Fatal(res.Err)
	}
	r.run(3 * holdFor)
	if c.news != 2 || c.acks != 2 {
		t.Errorf("one write took %d messages with news and %d answers, want 2 and 2: those to its entry", c.news, c.acks)
	}
	for _, n := range r.nodes {
		if got := n.get("k"); got != "1" {
			t.Errorf("node %d has %q", n.id, got)
		}
	}
}

// If the leader has not heard that a follower has an entry, the news that it is committed is answered.
func TestHeld_NewsIsAnsweredIfTheAnswerBeforeIsLost(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	r.run(time.Second)
	last := lead.host.reps[1].view.last.Index
	lost := 0
	r.drop = func(from, to shard.NodeID, kind byte) bool {
		if from == other.id && to == lead.id && kind == msgRaft && lost == 0 {
			lost++
			return true
		}
		return false
	}
	if res := lead.do("k=1"); res.Err != nil {
		t.Fatal(res.Err)
	}
	r.run(3 * holdFor)
	if lost != 1 {
		t.Fatalf("%d answers were lost", lost)
	}
	for id, p := range lead.host.reps[1].rn.Status().Progress {
		if p.Match != last+1 {
			t.Errorf("the leader believes that replica %d of node %d has its log up to %d, not %d", id, replicaNode(id), p.Match, last+1)
		}
	}
}
