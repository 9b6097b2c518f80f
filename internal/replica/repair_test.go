package replica

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

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
	_ = other.store.Close()
	st, err := storage.OpenStore(storage.MemFS(), "state", storage.StoreConfig{Deterministic: true})
	if err != nil {
		t.Fatal(err)
	}
	other.store = st
	other.start(false)
	r.settle()
	if !r.noted("state store is behind the cut of the log") {
		t.Errorf("notes: %v", r.notes)
	}
	r.rebuilt(other, old, "k", "29")
}

func TestRepair_LogBehindTheStoreIsNoticed(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	for i := range 5 {
		lead.do(fmt.Sprintf("k=%d", i))
	}
	r.same("k", "4")
	old := other.host.Shards()[0].Replica
	other.stop()
	lg, _, err := storage.OpenLog(other.logFS, "log", storage.LogConfig{})
	if err != nil {
		t.Fatal(err)
	}
	first, _ := lg.Bounds(1)
	term, err := lg.Term(1, first)
	if err != nil {
		t.Fatal(err)
	}
	if err := lg.AppendAll([]storage.Write{{Shard: 1, Entries: []storage.Entry{{Index: first, Term: term}}}}); err != nil {
		t.Fatal(err)
	}
	if err := lg.Close(); err != nil {
		t.Fatal(err)
	}
	other.start(false)
	r.settle()
	if !r.noted("log is behind the state store") {
		t.Errorf("notes: %v", r.notes)
	}
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
