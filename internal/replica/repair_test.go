package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// rebuilt waits until a node has a new replica that votes and has everything.
func (r *rig) rebuilt(n *rigNode, old uint64, key, want string) {
	r.Helper()
	r.until("rebuilt replica", func() bool {
		s := n.host.Shards()[0]
		return s.Replica != old && s.Voter(s.Replica) && !s.Voter(old) && n.get(key) == want
	})
	if id := n.host.Shards()[0].Replica; replicaNode(id) != n.id {
		r.Errorf("replica %d belongs to node %d", id, replicaNode(id))
	}
}

func TestRepair_DamagedLogGetsANewReplica(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	for i := range 20 {
		lead.do(fmt.Sprintf("k=%d", i))
	}
	old := other.host.Shards()[0].Replica
	for _, what := range []func(*storage.Recovery){
		func(rec *storage.Recovery) { rec.Suspect = []shard.ID{1} },
		func(rec *storage.Recovery) { rec.AllSuspect = true },
	} {
		other.stop()
		if err := other.open(what, false); err != nil {
			t.Fatal(err)
		}
		if s := other.host.Shards()[0]; !s.Awaiting || s.Applied != 0 {
			t.Errorf("the damaged replica is %+v", s)
		}
		r.rebuilt(other, old, "k", "19")
		old = other.host.Shards()[0].Replica
	}
	if res := other.do("k=20"); res.Err != nil {
		t.Errorf("got %+v", res)
	}
	r.same("k", "20")
}

func TestRepair_WaitingOutlivesARestart(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	old := other.host.Shards()[0].Replica
	other.stop()
	r.isolate(other)
	if err := other.open(nil, true); err != nil {
		t.Fatal(err)
	}
	r.run(3 * time.Second)
	f := other.propose("k=2", time.Second)
	r.run(2 * time.Second)
	if _, ok := other.results[f]; !ok {
		t.Errorf("a replica without data keeps a client waiting past its deadline")
	}
	other.restart()
	if s := other.host.Shards()[0]; !s.Awaiting {
		t.Errorf("after a restart the replica is %+v", s)
	}
	r.heal()
	r.rebuilt(other, old, "k", "1")
}

func TestRepair_NewDiskIsNoticedByThePeers(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	for i := range 5 {
		lead.do(fmt.Sprintf("k=%d", i))
	}
	old := other.host.Shards()[0].Replica
	other.stop()
	other.newDisk()
	other.start(false)
	r.rebuilt(other, old, "k", "4")
	if !r.noted("a peer remembers this node with another disk") || !r.noted("peer came back with another disk") {
		t.Errorf("nobody noted it: %v", r.notes)
	}
	// It stays trusted after a restart, also by nodes that were restarted.
	for _, n := range r.nodes {
		n.restart()
	}
	r.same("k", "4")
	if res := other.do("k=5"); res.Err != nil {
		t.Errorf("got %+v", res)
	}
}

// A replica that takes the place of another in a node that goes on knows nothing of what that one had said.
func TestRepair_NewReplicaOfARunningNodeIsHeard(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	r.run(time.Second)
	if res := lead.do("k=1"); res.Err != nil {
		t.Fatal(res.Err)
	}
	old := other.host.reps[1]
	// As if that one had had all entries that are to come.
	old.told = storage.Position{Index: old.view.last.Index + 100, Term: old.term}
	was := old.rid
	other.host.strange(other.host.peers[lead.id])
	r.rebuilt(other, was, "k", "1")
}

// Nodes without a past elect nobody before all have met: one of them may have had one, on another disk, of which only the node
// that is away knows (seed 505517).
func TestRepair_NodesWithoutAPastWaitForAll(t *testing.T) {
	r := newRig(t, 3, nil)
	led := func() bool {
		for _, n := range r.nodes {
			if n.host != nil && n.host.Shards()[0].Leads {
				return true
			}
		}
		return false
	}
	late := r.nodes[2]
	late.stop()
	if r.run(10 * time.Second); led() {
		t.Fatal("two of three new nodes began without the third")
	}
	if !r.noted("a new cluster begins when all its nodes have met") {
		t.Errorf("nobody says for whom they wait: %v", r.notes)
	}
	late.start(false)
	lead, _ := r.elect()
	lead.do("k=1")
	r.run(time.Second)
	lead.stop()
	for _, n := range r.nodes {
		if n != lead {
			n.stop()
			n.newDisk()
			n.start(false)
		}
	}
	if r.run(10 * time.Second); led() {
		t.Error("two nodes with new disks elected one of them")
	}
	// Once all have met, a majority is enough for ever.
	r = newRig(t, 3, nil)
	lead, _ = r.elect()
	lead.do("k=1")
	r.run(time.Second)
	for _, n := range r.nodes {
		n.stop()
	}
	for _, n := range r.nodes {
		if n != lead {
			n.start(false)
		}
	}
	if r.run(10 * time.Second); !led() {
		t.Error("two of three that have met before do not begin without the third")
	}
}

// A replica that was replaced may have been the second of two that vote. Those that know so must still know it after a crash,
// or they wait for ever for the vote of one that is gone (seed 110586).
func TestRepair_TheNewConfigurationOutlivesACrash(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, first := r.elect()
	second := r.nodes[6-int(lead.id)-int(first.id)-1]
	lead.do("k=1")
	old := first.host.Shards()[0].Replica
	first.stop()
	first.newDisk()
	first.start(false)
	r.rebuilt(first, old, "k", "1")
	// Nothing else is written, and then all lose power: what was not flushed of the state is gone, and one disk for good.
	old = second.host.Shards()[0].Replica
	for _, n := range r.nodes {
		n.stop()
	}
	for _, n := range []*rigNode{lead, first} {
		n.dropState()
		n.start(false)
	}
	if err := second.open(func(rec *storage.Recovery) { rec.AllSuspect = true }, false); err != nil {
		t.Fatal(err)
	}
	r.rebuilt(second, old, "k", "1")
}

func TestRepair_StoreBehindTheCutIsNoticed(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.LogEntriesMax = 5 })
	lead, other := r.elect()
	for i := range 30 {
		lead.do(fmt.Sprintf("k=%d", i))
	}
	r.run(time.Second)
	old := other.host.Shards()[0].Replica
	other.stop()
	// The store is gone, and nobody says so.
	other.dropState()
	other.start(false)
	r.settle()
	if !r.noted("state store is behind the cut of the log") {
		t.Errorf("notes: %v", r.notes)
	}
	r.rebuilt(other, old, "k", "29")
}

// stoppedFollower returns a cluster in which k has been set to 0 up to 4, and a follower that was stopped then, with the id of its replica.
func stoppedFollower(t *testing.T) (r *rig, other *rigNode, old uint64) {
	t.Helper()
	r = newRig(t, 3, nil)
	lead, other := r.elect()
	for i := range 5 {
		lead.do(fmt.Sprintf("k=%d", i))
	}
	r.same("k", "4")
	old = other.host.Shards()[0].Replica
	other.stop()
	return r, other, old
}

func TestRepair_LogBehindTheStoreIsNoticed(t *testing.T) {
	r, other, old := stoppedFollower(t)
	other.appendToLog(func(lg *storage.Log) storage.Write {
		first, _ := lg.Bounds(1)
		return storage.Write{Shard: 1, Entries: []storage.Entry{{Index: first, Term: termOf(t, lg, first)}}}
	})
	other.start(false)
	r.settle()
	if !r.noted("log is behind the state store") {
		t.Errorf("notes: %v", r.notes)
	}
	r.rebuilt(other, old, "k", "4")
}

// appendToLog writes to the log of a stopped node what a function says, which is shown it.
func (n *rigNode) appendToLog(what func(*storage.Log) storage.Write) {
	n.r.Helper()
	lg, _, err := storage.OpenLog(n.logFS, "log", storage.LogConfig{})
	if err != nil {
		n.r.Fatal(err)
	}
	if err := errors.Join(lg.AppendAll([]storage.Write{what(lg)}), lg.Close()); err != nil {
		n.r.Fatal(err)
	}
}

func termOf(t *testing.T, lg *storage.Log, index uint64) uint64 {
	t.Helper()
	term, err := lg.Term(1, index)
	if err != nil {
		t.Fatal(err)
	}
	return term
}

// loseEnd takes the last entry from the log of a stopped node.
func (n *rigNode) loseEnd() {
	n.r.Helper()
	n.appendToLog(func(lg *storage.Log) storage.Write {
		_, last := lg.Bounds(1)
		before, err := lg.Entries(1, last-1, last, 1<<20)
		if err != nil {
			n.r.Fatal(err)
		}
		// Written again, an entry replaces those behind it.
		return storage.Write{Shard: 1, Entries: before}
	})
}

// A damaged record at the very end looks like one that was being written. The leader knows that it was confirmed.
func TestRepair_LogWithoutItsEndIsNoticed(t *testing.T) {
	r, other, old := stoppedFollower(t)
	other.loseEnd()
	other.dropState()
	other.start(false)
	r.until("notice", func() bool { return r.noted(forgotten) })
	r.rebuilt(other, old, "k", "4")
}

// While the entry that is lost is not committed, nobody can tell the follower. Leader and follower must not tell each other all the time what it
// lacks.
func TestRepair_LogWithoutWhatIsNotCommittedComesToRest(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.same("k", "1")
	old := other.host.Shards()[0].Replica
	third := r.nodes[6-int(lead.id)-int(other.id)-1]
	r.holdSync[lead.id] = true
	r.isolate(third)
	lead.propose("k=2", 0)
	r.run(200 * time.Millisecond)
	other.stop()
	other.loseEnd()
	for _, cmd := range []string{"k=3", "k=4"} {
		lead.propose(cmd, 0)
		r.run(100 * time.Millisecond)
	}
	other.start(false)
	frames := 0
	r.sent = func(shard.NodeID, Outgoing) { frames++ }
	lead.propose("k=5", 0)
	if r.run(time.Second); frames > 200 {
		t.Errorf("%d frames in a second", frames)
	}
	delete(r.holdSync, lead.id)
	lead.sync()
	r.until("notice", func() bool { return r.noted(forgotten) })
	r.heal()
	r.rebuilt(other, old, "k", "5")
}

// oldEnd returns a stopped follower whose log has lost its last record, in which entries of a term had replaced two of the term before. These
// are there again. old is its replica's id, and lead leads.
func oldEnd(t *testing.T, cfg func(*Config)) (r *rig, lead, other *rigNode, old uint64) {
	t.Helper()
	r = newRig(t, 3, cfg)
	first, other := r.elect()
	first.do("k=1")
	lead = r.nodes[0]
	for _, n := range r.nodes {
		if n != first && n != other {
			lead = n
		}
	}
	if f := first.move(lead.id, 0); !first.answered(f) || first.results[f].Err != nil {
		t.Fatalf("hand-over: %+v", first.results[f])
	}
	if res := lead.do("k=2"); res.Err != nil {
		t.Fatal(res.Err)
	}
	r.same("k", "2")
	old = other.host.Shards()[0].Replica
	other.stop()
	other.appendToLog(func(lg *storage.Log) storage.Write {
		_, last := lg.Bounds(1)
		term := termOf(t, lg, last)
		return storage.Write{
			Shard: 1, Entries: []storage.Entry{{Index: last - 1, Term: term - 1}, {Index: last, Term: term - 1}},
			State: storage.HardState{Term: term, Vote: lg.State(1).Vote, Commit: last - 2},
		}
	})
	other.dropState()
	return r, lead, other, old
}

func TestRepair_LogWithAnOldEndIsNoticed(t *testing.T) {
	r, _, other, old := oldEnd(t, nil)
	other.start(false)
	r.until("notice", func() bool { return r.noted(forgotten) })
	r.rebuilt(other, old, "k", "2")
}

// A leader that has cut its log there cannot say which entry was committed. It sends a snapshot; until then nothing is believed.
func TestRepair_OldEndBehindTheCutIsNotApplied(t *testing.T) {
	r, lead, other, _ := oldEnd(t, func(c *Config) { c.LogEntriesMax = 5 })
	_, last := other.log.Bounds(1)
	for range 20 {
		lead.do("k=3")
	}
	// The log is kept for a follower until that has been silent for a while; the term of the last entry that was cut is still known.
	r.run(3 * time.Second)
	if first := lead.host.Shards()[0].First; first <= last+1 {
		t.Fatalf("the leader's log begins at %d", first)
	}
	r.drop = func(_, _ shard.NodeID, kind byte) bool { return kind == msgChunk }
	other.start(false)
	r.run(time.Second)
	if got := other.host.Shards()[0].Applied; got != last-2 {
		t.Errorf("applied up to %d, want %d", got, last-2)
	}
	r.heal()
	r.same("k", "3")
}

// A leader that hands over takes no entries, not even the one that would end a change of the configuration.
func TestRepair_GoesOnAfterAHandOverThatFailed(t *testing.T) {
	r, other, old := stoppedFollower(t)
	lead := r.leader()
	third := r.third(lead, other)
	r.holdSync[third.id] = true
	if err := other.open(nil, true); err != nil {
		t.Fatal(err)
	}
	r.until("change of the configuration", func() bool { return r.noted("replacing a replica that lost its data") && len(third.writes) == 0 })
	// The third one confirms the change when the hand-over to it has begun, of which it does not hear.
	r.drop = func(_, to shard.NodeID, _ byte) bool { return to == third.id }
	f := lead.move(third.id, 0)
	delete(r.holdSync, third.id)
	third.sync()
	r.until("joint configuration", func() bool { return len(lead.host.reps[1].confNow().state.VotersOutgoing) > 0 })
	if !lead.host.reps[1].leads() || lead.answered(f) {
		t.Fatalf("the hand-over is over: %+v", lead.results[f])
	}
	r.heal()
	r.rebuilt(other, old, "k", "4")
}

func TestRepair_StaysTrueWhenMessagesAreLost(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	old := other.host.Shards()[0].Replica
	rng := rand.New(rand.NewPCG(1, 2))
	r.drop = func(_, _ shard.NodeID, kind byte) bool {
		return (kind == msgReplace || kind == msgAssign || kind == msgChunk || kind == msgChunkOK) && rng.IntN(3) > 0
	}
	other.stop()
	if err := other.open(nil, true); err != nil {
		t.Fatal(err)
	}
	r.rebuilt(other, old, "k", "1")
	if len(lead.host.Shards()[0].Voters) != 3 {
		t.Errorf("voters: %v", lead.host.Shards()[0].Voters)
	}
}

func TestConf_RoundTrip(t *testing.T) {
	r := newRig(t, 3, nil)
	cs := r.nodes[0].host.reps[1].initialConf()
	cs.Learners, cs.VotersOutgoing, cs.LearnersNext, cs.AutoLeave = []uint64{7}, []uint64{1, 2}, []uint64{9}, new(true)
	got := decodeConf(encodeConf(cs))
	if fmt.Sprint(got) != fmt.Sprint(cs) {
		t.Errorf("got %v, want %v", got, cs)
	}
	for i := range encodeConf(cs) {
		_ = decodeConf(encodeConf(cs)[:i])
	}
}

// TestRepair_NothingIsReadMeanwhile looks at a node that lost its data after each step until it is whole again: it may
// show what it had or nothing at all, but no earlier state.
func TestRepair_NothingIsReadMeanwhile(t *testing.T) {
	for name, lose := range map[string]func(*rigNode) error{
		"damaged log":   func(n *rigNode) error { return n.open(func(rec *storage.Recovery) { rec.AllSuspect = true }, false) },
		"damaged state": func(n *rigNode) error { return n.open(nil, true) },
		"new disk":      func(n *rigNode) error { n.newDisk(); return n.open(nil, false) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 3, nil)
			lead, other := r.elect()
			for i := range 200 {
				lead.do(fmt.Sprintf("k=%d", i))
			}
			r.same("k", "199")
			old := other.host.Shards()[0].Replica
			other.stop()
			r.isolate(other)
			if err := lose(other); err != nil {
				t.Fatal(err)
			}
			stale := func(n *rigNode, at shard.Revision) *shard.Future {
				f := shard.NewFuture()
				n.turn(Read{Shard: 1, Future: f, Stale: true, AtLeast: at, Deadline: r.now.Add(time.Second)})
				return f
			}
			for _, at := range []shard.Revision{0, 1} {
				if f := stale(other, at); !errs.Is(other.results[f].Err, errs.Unavailable) || other.reads[f] != nil {
					t.Errorf("a stale read at %d: got %+v", at, other.results[f])
				}
			}
			if _, err := other.host.Machine(1).Query(shard.Command{Module: 9, Data: []byte("k")}); !errs.Is(err, errs.Unavailable) {
				t.Errorf("a query beside the host: got %v", err)
			}
			f := other.read(time.Second)
			r.run(2 * time.Second)
			if res, ok := other.results[f]; !ok || !errs.Is(res.Err, errs.Unavailable) {
				t.Errorf("a linearizable read is kept waiting past its deadline: %+v", res)
			}
			r.heal()
			g := other.read(0)
			r.until("rebuilt replica", func() bool {
				if got := other.get("k"); got != "" && got != "199" {
					t.Errorf("a replica that is being rebuilt shows %q", got)
				}
				s := other.host.Shards()[0]
				return s.Voter(s.Replica) && s.Replica != old && other.reads[g] != nil
			})
			if f := stale(other, 1); other.reads[f] == nil || other.get("k") != "199" {
				t.Errorf("the rebuilt replica answers %+v, and has %q", other.results[f], other.get("k"))
			}
		})
	}
}

// The new id may come before the log has written that the old one is gone: nothing of the old one counts for it.
func TestRepair_NewIDWhileTheLogIsSlow(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	for i := range 5 {
		lead.do(fmt.Sprintf("k=%d", i))
	}
	r.same("k", "4")
	old := other.host.Shards()[0].Replica
	other.stop()
	r.holdLog[other.id] = true
	if err := other.open(func(rec *storage.Recovery) { rec.Suspect = []shard.ID{1} }, false); err != nil {
		t.Fatal(err)
	}
	r.until("new id", func() bool { return !other.host.Shards()[0].Awaiting })
	r.run(time.Second)
	r.holdLog[other.id] = false
	other.written()
	r.rebuilt(other, old, "k", "4")
	for range 2 {
		s := other.host.Shards()[0]
		if st := other.log.State(1); st.Term != s.Term {
			t.Errorf("term %d is not in the log, which has %+v", s.Term, st)
		}
		other.restart()
		r.same("k", "4")
	}
}

// TestRepair_TheLastIDIsNotFollowedByAnotherNodes: past its last replica id a node would be given one of the next node.
func TestRepair_TheLastIDIsNotFollowedByAnotherNodes(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	other := r.nodes[0]
	if other == lead {
		other = r.nodes[1]
	}
	if res := lead.do("k=1"); res.Err != nil {
		t.Fatal(res.Err)
	}
	old := other.host.Shards()[0].Replica
	other.stop()
	// As if it had been replaced very often: the leader's group knows the last but one id, as a learner.
	last := replicaID(other.id, incarnationMax)
	cc := &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{
		{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: new(old)},
		{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: new(last - 1)},
	}}
	if err := lead.host.reps[1].rn.ProposeConfChange(cc); err != nil {
		t.Fatal(err)
	}
	lead.host.markDirty(lead.host.reps[1])
	lead.turn()
	r.run(time.Second)
	other.newDisk()
	other.start(true)
	r.until("replica under the last id", func() bool { return other.host.Shards()[0].Replica == last })
	r.rebuilt(other, old, "k", "1")
	if r.noted("used up") {
		t.Errorf("the last id was refused")
	}
	other.stop()
	if err := other.open(nil, true); err != nil {
		t.Fatal(err)
	}
	r.run(10 * time.Second)
	if s := other.host.Shards()[0]; !s.Awaiting {
		t.Errorf("the node is %+v", s)
	}
	by := map[string]int{}
	for _, n := range r.notes {
		if strings.Contains(n, "used up") {
			by[n[:1]]++
		}
	}
	if want := map[string]int{fmt.Sprint(other.id): 1, fmt.Sprint(lead.id): 1}; !maps.Equal(by, want) {
		t.Errorf("noted %v times by node, want %v: %v", by, want, r.notes)
	}
	for _, n := range r.nodes {
		if res := n.host.Shards()[0]; n != other && slices.ContainsFunc(res.Voters, func(id uint64) bool { return id&incarnationMax == 0 }) {
			t.Errorf("node %d has voters %v", n.id, res.Voters)
		}
	}
	if res := lead.do("k=2"); res.Err != nil {
		t.Error(res.Err)
	}
}

// A node without peers is not opened where others would be rebuilt, and what it has stays: with what is missing put back, all is there.
func TestOpen_TheOnlyCopyIsNotGivenUp(t *testing.T) {
	for name, spoil := range map[string]func(n *rigNode) (mend func()){
		"the state store is missing": func(n *rigNode) func() {
			was := n.store
			n.store = nil
			n.dropState()
			return func() {
				_ = n.store.Close()
				n.store = was
			}
		},
		"the end of the log is missing": func(n *rigNode) func() {
			var all []storage.Entry
			n.appendToLog(func(lg *storage.Log) storage.Write {
				first, last := lg.Bounds(1)
				var err error
				if all, err = lg.Entries(1, first, last+1, 1<<20); err != nil {
					t.Fatal(err)
				}
				return storage.Write{Shard: 1, Entries: all[:1]}
			})
			return func() {
				n.appendToLog(func(*storage.Log) storage.Write { return storage.Write{Shard: 1, Entries: all} })
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1, func(c *Config) { c.LogEntriesMax = 5 })
			n := r.nodes[0]
			r.until("leader", func() bool { return n.host.Shards()[0].Leads })
			for i := range 30 {
				n.do(fmt.Sprintf("k=%d", i))
				r.run(time.Second)
			}
			n.do("k=last")
			id := n.host.Shards()[0].Replica
			n.stop()
			mend := spoil(n)
			for range 2 {
				if err := n.open(nil, false); !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), "nothing was changed") {
					t.Fatalf("got %v", err)
				}
				if err := n.log.Close(); err != nil {
					t.Fatal(err)
				}
			}
			mend()
			n.start(false)
			r.same("k", "last")
			if got := n.host.Shards()[0].Replica; got != id {
				t.Errorf("the replica has id %d, and had %d", got, id)
			}
		})
	}
}

// A node that started over with another disk says so to each peer until that one knows, also when it was started again meanwhile. A peer that believed it to
// have the old disk would have it start over once more.
func TestRepair_WhoStartedOverSaysSoAfterARestart(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.same("k", "1")
	third := r.third(lead, other)
	votes := func() bool {
		s := other.host.Shards()[0]
		return !s.Awaiting && s.Leader != 0 && lead.host.Shards()[0].Voter(s.Replica)
	}
	other.stop()
	other.newDisk()
	r.drop = func(from, to shard.NodeID, _ byte) bool {
		return from == third.id && to == other.id || from == other.id && to == third.id
	}
	other.start(false)
	r.until("repair", votes)
	was := other.host.Shards()[0].Replica
	other.restart()
	r.heal()
	r.until("acquaintance", func() bool { return third.host.peers[other.id].logID == other.log.ID()&^awareBit && votes() })
	r.run(3 * time.Second)
	if got := other.host.Shards()[0].Replica; got != was || !votes() {
		t.Errorf("replica %d became %d", was, got)
	}
}

// A replica that loses what it has more than once while its node runs gets another id each time: under the last one it has made promises. And that it is told of
// an id once more, since messages come twice, does not make it begin anew under one that it has.
func TestRepair_EachLossHasAnIDOfItsOwn(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.same("k", "1")
	votes := func() bool {
		s := other.host.Shards()[0]
		return !s.Awaiting && lead.host.Shards()[0].Voter(s.Replica) && s.Applied == lead.host.Shards()[0].Applied
	}
	rep := other.host.reps[1]
	for range 3 {
		was := rep.rid
		other.send(lead, &raftpb.Message{
			Type: raftpb.MsgHeartbeat.Enum(), From: new(lead.host.reps[1].rid), To: new(was), Term: new(rep.term), Commit: new(rep.view.last.Index + 100),
		})
		if rep.rn != nil {
			t.Fatal("it does not start over")
		}
		r.until("repair", votes)
		if rep.rid <= was {
			t.Fatalf("replica %d was given up and is %d now", was, rep.rid)
		}
		lead.do("k=2")
		r.same("k", "2")
		id, last, rn := rep.rid, rep.view.last, rep.rn
		h := lead.host
		w := beginMessage(appendFrameHeader(nil, frameHeader{from: lead.id, session: h.cfg.Session, logID: h.cfg.LogID, yourLog: other.host.cfg.LogID &^ awareBit}), msgAssign)
		w.b = binary.LittleEndian.AppendUint64(binary.AppendUvarint(binary.AppendUvarint(w.b, 1), id), rep.request)
		other.turn(Frame{From: lead.id, Data: w.end()})
		if rep.rid != id || rep.view.last != last || rep.rn != rn {
			t.Fatalf("told of its id again, replica %d with entries up to %+v is %d with %+v", id, last, rep.rid, rep.view.last)
		}
	}
}
