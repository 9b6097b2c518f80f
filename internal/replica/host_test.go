package replica

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

func TestConfig_RefusesWhatCannotWork(t *testing.T) {
	f := func(want string, change func(*Config)) {
		t.Helper()
		c := Config{Node: 1, Nodes: []shard.NodeID{1}, Shards: []shard.ID{1}, Session: 1}
		change(&c)
		if err := c.fill(); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	f("not among the members", func(c *Config) { c.Node = 2 })
	f("no session", func(c *Config) { c.Session = 0 })
	f("no shards", func(c *Config) { c.Shards = nil })
}

func TestHost_CommandsAreAnsweredOnTheNodeThatTookThem(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	for i, n := range []*rigNode{lead, other, lead, other} {
		res := n.do(fmt.Sprintf("k=%d", i))
		if res.Err != nil || string(res.Data) != "was set" || res.Revision != shard.Revision(i+1) {
			t.Errorf("command %d: %+v", i, res)
		}
	}
	if res := other.do("!"); !errs.Is(res.Err, errs.Conflict) {
		t.Errorf("got %+v", res)
	}
	r.same("k", "3")
}

func TestHost_SingleNodeNeedsNobody(t *testing.T) {
	r := newRig(t, 1, nil)
	n := r.nodes[0]
	r.settle()
	if res := n.do("k=1"); res.Err != nil {
		t.Fatal(res.Err)
	}
	f := n.read(0)
	r.settle()
	if n.reads[f] == nil {
		t.Errorf("a read was not released")
	}
	n.restart()
	// The read waits until everything acknowledged is applied again.
	f = n.read(0)
	r.until("read", func() bool { return n.reads[f] != nil })
	if got := n.get("k"); got != "1" {
		t.Errorf("after a restart k is %q", got)
	}
}

func TestHost_UnknownShard(t *testing.T) {
	r := newRig(t, 1, nil)
	n := r.nodes[0]
	a, b := shard.NewFuture(), shard.NewFuture()
	n.turn(Propose{Shard: 9, Future: a}, Read{Shard: 9, Future: b})
	if !errs.Is(n.results[a].Err, errs.NotFound) || !errs.Is(n.results[b].Err, errs.NotFound) {
		t.Errorf("got %v and %v", n.results[a].Err, n.results[b].Err)
	}
	if n.host.Machine(9) != nil {
		t.Errorf("there is a machine of shard 9")
	}
}

func TestHost_OverloadIsRefusedEarly(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.QueueLenMax, c.CommandBytesMax, c.QueueBytesMax = 3, 100, 150 })
	n := r.nodes[0]
	// There is no leader yet: commands wait.
	var fs []*shard.Future
	for range 4 {
		fs = append(fs, n.propose("k=1", 0))
	}
	if _, ok := n.results[fs[2]]; ok {
		t.Errorf("the third command was answered: %+v", n.results[fs[2]])
	}
	if res := n.results[fs[3]]; !errs.Is(res.Err, errs.Overloaded) {
		t.Errorf("the fourth command: %+v", res)
	}
	if res := n.results[n.propose("k="+strings.Repeat("x", 100), 0)]; !errs.Is(res.Err, errs.TooLarge) {
		t.Errorf("a large command: %+v", res)
	}
	m := r.nodes[1]
	m.propose("k="+strings.Repeat("x", 90), 0)
	if res := m.results[m.propose("k="+strings.Repeat("x", 90), 0)]; !errs.Is(res.Err, errs.Overloaded) {
		t.Errorf("bytes over the bound: %+v", res)
	}
	var reads []*shard.Future
	for range 4 {
		reads = append(reads, n.read(0))
	}
	if res := n.results[reads[3]]; !errs.Is(res.Err, errs.Overloaded) {
		t.Errorf("the fourth read: %+v", res)
	}
	if s := n.host.Shards()[0]; s.Queued != 3 {
		t.Errorf("%d commands are queued", s.Queued)
	}
	r.until("answers", func() bool { return len(n.results) == 6 && len(n.reads) == 3 })
	if res := n.do("k=2"); res.Err != nil {
		t.Errorf("after the overload: %v", res.Err)
	}
}

func TestHost_DeadlinePassedBeforeTheProposal(t *testing.T) {
	r := newRig(t, 3, nil)
	r.drop = func(_, _ shard.NodeID, _ byte) bool { return true }
	n := r.nodes[0]
	w, rd := n.propose("k=1", 300*time.Millisecond), n.read(300*time.Millisecond)
	r.run(time.Second)
	if res := n.results[w]; !errs.Is(res.Err, errs.Unavailable) {
		t.Errorf("write: got %+v", res)
	}
	if res := n.results[rd]; !errs.Is(res.Err, errs.Unavailable) {
		t.Errorf("read: got %+v", res)
	}
	r.heal()
	lead, _ := r.elect()
	lead.do("other=1")
	r.same("other", "1")
	if got := lead.get("k"); got != "" {
		t.Errorf("the command was applied after it was refused: %q", got)
	}
}

// A command whose deadline passes in the queue is dropped when the batch is made, also if no tick came between.
func TestHost_DeadlinePassedInTheQueue(t *testing.T) {
	r := newRig(t, 1, nil)
	n := r.nodes[0]
	f := shard.NewFuture()
	late := Propose{Shard: 1, Command: shard.Command{Module: 9, Data: []byte("k=1")}, Future: f, Deadline: r.now.Add(-time.Second)}
	n.turn(late)
	r.settle()
	if res := n.results[f]; !errs.Is(res.Err, errs.Unavailable) {
		t.Errorf("got %+v", res)
	}
}

func TestHost_DeadlinePassedAfterTheProposal(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	r.drop = func(from, to shard.NodeID, kind byte) bool {
		return kind == msgForward || from == lead.id && kind == msgRaft
	}
	a, b := lead.propose("a=1", 400*time.Millisecond), other.propose("b=1", 400*time.Millisecond)
	r.run(600 * time.Millisecond)
	for name, res := range map[string]shard.Result{"leader": lead.results[a], "follower": other.results[b]} {
		if !errs.Is(res.Err, errs.OutcomeUnknown) {
			t.Errorf("%s: got %+v", name, res)
		}
	}
	r.heal()
	r.elect()
	r.until("end of the batches", func() bool { return len(lead.host.order[0].order)+len(other.host.order[0].order) == 0 })
}

func TestHost_LostForwardIsSentAgainAndAppliedOnce(t *testing.T) {
	r := newRig(t, 3, nil)
	_, other := r.elect()
	lost := 0
	r.drop = func(_, _ shard.NodeID, kind byte) bool {
		if kind == msgForward && lost < 2 {
			lost++
			return true
		}
		return false
	}
	if res := other.do("k=1"); res.Err != nil || lost != 2 {
		t.Errorf("got %+v after %d losses", res, lost)
	}
	// Now the answer is what comes late: the batch arrives twice.
	r.drop = func(_, to shard.NodeID, kind byte) bool { return to == other.id && kind == msgRaft }
	f := other.propose("k=2", 0)
	r.run(700 * time.Millisecond)
	r.heal()
	r.until("answer", func() bool { _, ok := other.results[f]; return ok })
	if other.results[f].Err != nil {
		t.Errorf("got %+v", other.results[f])
	}
	r.until("rest", func() bool { return other.host.Shards()[0].Revision == 2 && other.counts.Duplicates > 0 })
}

func TestHost_NewLeaderTakesOverOpenBatches(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	r.isolate(lead)
	f, g := lead.propose("k=lead", 0), other.propose("k=other", 0)
	r.until("new leader", func() bool { return !lead.host.Shards()[0].Leads })
	r.until("answer", func() bool { _, ok := other.results[g]; return ok })
	if res, ok := lead.results[f]; ok {
		t.Errorf("an isolated leader answered %+v", res)
	}
	r.heal()
	r.until("answer", func() bool { _, ok := lead.results[f]; return ok })
	if lead.results[f].Err != nil || other.results[g].Err != nil {
		t.Errorf("got %+v and %+v", lead.results[f], other.results[g])
	}
	r.same("k", "lead")
}

func TestHost_BatchesAreSplitAtTheirBound(t *testing.T) {
	r := newRig(t, 1, func(c *Config) { c.BatchBytesMax = 200 })
	n := r.nodes[0]
	r.settle()
	before := n.host.Shards()[0].Last
	var in []Input
	for i := range 20 {
		in = append(in, Propose{Shard: 1, Command: shard.Command{Module: 9, Data: fmt.Appendf(nil, "k%d=%s", i, strings.Repeat("x", 50))}, Future: shard.NewFuture()})
	}
	n.turn(in...)
	r.settle()
	if len(n.results) != 20 {
		t.Errorf("%d answers", len(n.results))
	}
	if got := n.host.Shards()[0].Last - before; got < 10 {
		t.Errorf("20 commands of 60 bytes took %d entries", got)
	}
}

func TestHost_AnswersOnlyWhatIsSynced(t *testing.T) {
	r := newRig(t, 1, nil)
	n := r.nodes[0]
	r.settle()
	r.holdSync[1] = true
	f := n.propose("k=1", 0)
	r.run(time.Second)
	if res, ok := n.results[f]; ok {
		t.Errorf("answered %+v before the sync", res)
	}
	n.sync()
	r.settle()
	if res, ok := n.results[f]; !ok || res.Err != nil {
		t.Errorf("after the sync: %+v", res)
	}
	// A stale confirmation does nothing.
	n.turn(LogDone{1})
}

func TestHost_FailoverIsFastWhenTheProcessIsGone(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	other.do("k=1")
	lead.stop()
	for _, n := range r.nodes {
		if n.host != nil {
			n.inbox = append(n.inbox, Link{Node: lead.id, Refused: true}, Link{Node: lead.id, Refused: true}, Link{Node: 99, Refused: true})
		}
	}
	if took := r.until("leader", func() bool { return r.leader() != nil }); took > 500*time.Millisecond {
		t.Errorf("took %v", took)
	}
	if res := other.do("k=2"); res.Err != nil {
		t.Errorf("got %+v", res)
	}
}

func TestHost_FailoverWithoutAHintTakesTheTimeout(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	lead.stop()
	for _, n := range r.nodes {
		if n.host != nil {
			// A connection that merely broke says nothing about the process.
			n.inbox = append(n.inbox, Link{Node: lead.id}, Link{Node: lead.id, Up: true})
		}
	}
	took := r.until("leader", func() bool { return r.leader() != nil })
	if took < 800*time.Millisecond || took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestHost_RestartGoesOnFromTheDisk(t *testing.T) {
	r := newRig(t, 3, nil)
	_, other := r.elect()
	for i := range 10 {
		if res := other.do(fmt.Sprintf("k=%d", i)); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	for _, n := range r.nodes {
		n.restart()
	}
	r.same("k", "9")
	if res := other.do("k=10"); res.Err != nil || res.Revision != 11 {
		t.Errorf("got %+v", res)
	}
}

func TestHost_LogIsCutBehindTheFlush(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.LogEntriesMax = 10 })
	lead, _ := r.elect()
	for i := range 60 {
		lead.do(fmt.Sprintf("k=%d", i))
	}
	r.run(time.Second)
	for _, n := range r.nodes {
		s := n.host.Shards()[0]
		first, last := n.log.Bounds(1)
		if s.First < 30 || first != s.First || last != s.Last {
			t.Errorf("node %d keeps %d to %d, its log %d to %d", n.id, s.First, s.Last, first, last)
		}
	}
}

// While a follower that is alive lags, the log is kept for it, and a flush would gain nothing.
func TestHost_NoFlushWhileAFollowerKeepsTheLog(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.LogEntriesMax = 10 })
	lead, other := r.elect()
	r.run(time.Second)
	r.holdSync[other.id] = true
	for i := range 60 {
		lead.do(fmt.Sprintf("k=%d", i))
	}
	s := lead.host.Shards()[0]
	if s.Applied < s.First+10 {
		t.Fatalf("the log begins at %d with %d applied: nothing keeps it", s.First, s.Applied)
	}
	before := lead.flushes
	r.run(5 * time.Second)
	if n := lead.flushes - before; n > 0 || r.leader() != lead {
		t.Errorf("%d flushes in 5 s that gained nothing; leader %v", n, r.leader().id)
	}
	r.holdSync[other.id] = false
	other.sync()
	r.run(time.Second)
	if s := lead.host.Shards()[0]; s.First+10 < s.Applied {
		t.Errorf("the log begins at %d with %d applied, and nobody lags", s.First, s.Applied)
	}
}

func TestHost_TimersFireOnTheLeadersClock(t *testing.T) {
	r := newRig(t, 3, nil)
	_, other := r.elect()
	other.do("@t=5s")
	r.run(4900 * time.Millisecond)
	if got := other.get("t"); got != "" {
		t.Errorf("fired early: %q", got)
	}
	r.run(300 * time.Millisecond)
	r.same("t", "fired")
	// A timer outlives the leader that knew of it.
	other.do("@u=3s")
	lead := r.leader()
	lead.stop()
	r.run(8 * time.Second)
	if got := other.get("u"); got != "fired" {
		t.Errorf("u is %q", got)
	}
}

func TestHost_DifferentDigestStopsTheNode(t *testing.T) {
	r := newRig(t, 3, nil)
	_, other := r.elect()
	rep := other.host.reps[1]
	rep.digests[digestEvery] = 5
	frame := func(at, digest uint64) Frame {
		p := other.host.peers[other.host.peerIDs[0]]
		f := appendFrameHeader(nil, frameHeader{from: p.id, session: p.session, logID: p.logID})
		w := beginMessage(f, msgDigest)
		w.b = append(w.b, 1)
		w.b = appendUvarints(w.b, at)
		w.b = appendUint64(w.b, digest)
		return Frame{From: p.id, Data: w.end()}
	}
	other.turn(frame(digestEvery, 5), frame(2*digestEvery, 6))
	if other.fatal != nil {
		t.Fatalf("equal digests: %v", other.fatal)
	}
	other.turn(frame(digestEvery, 7))
	if !errs.Is(other.fatal, errs.Corrupt) {
		t.Errorf("different digests: %v", other.fatal)
	}
}

func TestHost_DigestsAreComparedNowAndThen(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	sent := 0
	r.drop = func(_, _ shard.NodeID, kind byte) bool {
		if kind == msgDigest {
			sent++
		}
		return false
	}
	for i := range digestEvery + 10 {
		lead.propose(fmt.Sprintf("k=%d", i), 0)
		r.settle()
	}
	r.run(time.Second)
	if sent != 2 {
		t.Errorf("%d digests were sent, want 2", sent)
	}
	for _, n := range r.nodes {
		if n.fatal != nil {
			t.Errorf("node %d: %v", n.id, n.fatal)
		}
	}
}

func TestHost_StoreDamageStopsTheNode(t *testing.T) {
	r := newRig(t, 1, nil)
	n := r.nodes[0]
	r.settle()
	n.host.fatal(errs.New(errs.Corrupt, "block 7"))
	n.host.fatal(errs.New(errs.Internal, "later"))
	n.turn()
	if !errs.Is(n.fatal, errs.Corrupt) {
		t.Errorf("got %v", n.fatal)
	}
}

func TestOpen_DamageWithoutPeersIsAnError(t *testing.T) {
	r := newRig(t, 1, nil)
	n := r.nodes[0]
	r.settle()
	n.stop()
	err := n.open(func(rec *storage.Recovery) {
		rec.AllSuspect = true
		rec.Damaged = []storage.Damage{{File: "x.seg", Offset: 7, Reason: "flipped"}}
	}, false)
	if !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), "restore a backup") || !strings.Contains(err.Error(), "x.seg at offset 7: flipped") {
		t.Errorf("got %v", err)
	}
	if err := n.log.Close(); err != nil {
		t.Error(err)
	}
	if err := n.open(nil, true); !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), "state store") {
		t.Errorf("got %v", err)
	}
}

func TestStatus_SaysWhoIsWho(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	other.do("k=1")
	r.run(time.Second)
	s := other.host.Shards()[0]
	if s.Leader != lead.id || s.Leads || s.Term == 0 || !slices.Equal(s.Members, []shard.NodeID{1, 2, 3}) || !s.Voter(s.Replica) || s.Voter(5) {
		t.Errorf("got %+v", s)
	}
	if !other.host.Alive(lead.id) || !other.host.Alive(other.id) || other.host.Alive(77) {
		t.Errorf("liveness is wrong")
	}
	lead.stop()
	r.run(3 * time.Second)
	if other.host.Alive(lead.id) {
		t.Errorf("a silent node is alive")
	}
}
