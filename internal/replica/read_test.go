package replica

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

func TestRead_SeesWhatWasAcknowledgedBefore(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	if res := lead.do("k=1"); res.Err != nil {
		t.Fatal(res.Err)
	}
	f, g := other.read(0), lead.read(0)
	r.until("reads", func() bool { return other.reads[f] != nil && lead.reads[g] != nil })
	if got := other.get("k"); got != "1" {
		t.Errorf("the follower's read saw %q", got)
	}
}

func TestRead_ManyShareOneRequest(t *testing.T) {
	r := newRig(t, 3, nil)
	_, other := r.elect()
	asked := uint64(0)
	var fs []*shard.Future
	for range 100 {
		fs = append(fs, other.read(0))
	}
	r.settle()
	asked = other.host.readCtx
	for _, f := range fs {
		if other.reads[f] == nil {
			t.Fatalf("a read is missing")
		}
	}
	if asked > 3 {
		t.Errorf("100 reads made %d requests", asked)
	}
}

func TestRead_LostRequestIsMadeAgain(t *testing.T) {
	r := newRig(t, 3, nil)
	_, other := r.elect()
	lost := 0
	r.drop = func(from, _ shard.NodeID, kind byte) bool {
		if from == other.id && kind == msgRaft && lost < 1 {
			lost++
			return true
		}
		return false
	}
	f := other.read(0)
	took := r.until("read", func() bool { return other.reads[f] != nil })
	if lost != 1 || took > (readRetryTicks+2)*100*time.Millisecond {
		t.Errorf("took %v after %d losses", took, lost)
	}
}

// Followers ask a new leader as soon as they hear of it, which is before an entry of its term is committed. Nodes that start together do so.
func TestRead_NewLeaderKeepsQuestionsUntilItKnows(t *testing.T) {
	r := newRig(t, 3, nil)
	reads := map[*rigNode]*shard.Future{}
	for _, n := range r.nodes {
		reads[n] = n.read(0)
	}
	r.until("leader", func() bool { return r.leader() != nil })
	for n, f := range reads {
		if took := r.until("read", func() bool { return n.reads[f] != nil }); took >= r.nodes[0].host.cfg.Tick {
			t.Errorf("the read of node %d was answered %v after the election", n.id, took)
		}
	}
}

func TestRead_IsolatedLeaderDoesNotAnswer(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.isolate(lead)
	f := lead.read(700 * time.Millisecond)
	r.until("other leader", func() bool { return other.host.Shards()[0].Leader != lead.id && other.host.Shards()[0].Leader != 0 })
	if res := other.do("k=2"); res.Err != nil {
		t.Fatal(res.Err)
	}
	g := lead.read(time.Second)
	r.run(2 * time.Second)
	for _, f := range []*shard.Future{f, g} {
		if lead.reads[f] != nil {
			t.Errorf("an isolated leader served a read")
		}
		if res := lead.results[f]; !errs.Is(res.Err, errs.Unavailable) {
			t.Errorf("got %+v", res)
		}
	}
}

func TestRead_StaleReadsWaitForTheirRevision(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.same("k", "1")
	r.isolate(other)
	any, later, never := shard.NewFuture(), shard.NewFuture(), shard.NewFuture()
	other.turn(
		Read{Shard: 1, Future: any, Stale: true, AtLeast: 1},
		Read{Shard: 1, Future: later, Stale: true, AtLeast: 2},
		Read{Shard: 1, Future: never, Stale: true, AtLeast: 99, Deadline: r.now.Add(time.Second)},
	)
	if other.reads[any] == nil {
		t.Errorf("a read of an old revision was not released at once")
	}
	lead.do("k=2")
	if other.reads[later] != nil {
		t.Errorf("a read was released before its revision")
	}
	r.heal()
	r.until("read", func() bool { return other.reads[later] != nil })
	if got := other.get("k"); got != "2" {
		t.Errorf("saw %q", got)
	}
	r.until("refusal", func() bool { return errs.Is(other.results[never].Err, errs.Unavailable) })
}

func TestRead_LeaseEndsBeforeAnotherCanLead(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.LeaseReads, c.NoHibernate = true, true })
	lead, other := r.elect()
	lead.do("k=1")
	first := lead.read(0)
	r.until("read", func() bool { return lead.reads[first] != nil })
	if lead.counts.LeaseReads != 0 {
		t.Errorf("the first read used a lease that was not there")
	}
	f := lead.read(0)
	if lead.reads[f] == nil || lead.counts.LeaseReads != 1 {
		t.Errorf("a read under the lease was not served at once")
	}
	r.isolate(lead)
	ends := lead.host.reps[1].reads.lease
	for r.now.Before(ends) {
		if f := lead.read(0); lead.reads[f] == nil {
			t.Errorf("the lease ended %v early", ends.Sub(r.now))
			break
		}
		if s := other.host.Shards()[0]; s.Term > lead.host.Shards()[0].Term {
			t.Fatalf("another leader within the lease")
		}
		r.run(20 * time.Millisecond)
	}
	r.run(time.Until(ends) * 0)
	if f := lead.read(0); lead.reads[f] != nil {
		t.Errorf("a read was served after the lease")
	}
}

// A node that was restarted may have promised a leader not to vote. Whoever asks it at once must be refused.
func TestRead_LeasePromiseOutlivesARestart(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.LeaseReads, c.NoHibernate = true, true })
	lead, other := r.elect()
	lead.do("k=1")
	third := r.third(lead, other)
	// other has not heard of the leader for long, and wants to lead.
	r.drop = func(from, to shard.NodeID, _ byte) bool {
		return from == lead.id && to == other.id || from == other.id && to == lead.id
	}
	r.run(3 * time.Second)
	f := lead.read(0)
	r.until("read", func() bool { return lead.reads[f] != nil })
	r.isolate(lead)
	third.restart()
	ends := lead.host.reps[1].reads.lease
	for r.now.Before(ends) {
		r.run(10 * time.Millisecond)
		if s := other.host.Shards()[0]; s.Leads || third.host.Shards()[0].Leads {
			t.Fatalf("another leader %v before the lease ends", ends.Sub(r.now))
		}
	}
	r.until("other leader", func() bool { return other.host.Shards()[0].Leads || third.host.Shards()[0].Leads })
}

// A leader whose own disk is slow commits with its followers what it has not yet written itself, and need not have at hand.
func TestRead_LeaderCommitsAheadOfItsOwnLog(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	lead.do("k=0")
	r.holdLog[lead.id] = true
	small := lead.propose("k=1", 0)
	r.settle()
	r.now = r.now.Add(2 * slowRound)
	large := lead.propose("l="+strings.Repeat("x", cacheBytesMax), 0)
	read := lead.read(0)
	r.settle()
	if lead.fatal != nil {
		t.Fatalf("the node stopped: %v", lead.fatal)
	}
	r.holdLog[lead.id] = false
	lead.written()
	r.until("answers", func() bool {
		_, a := lead.results[small]
		_, b := lead.results[large]
		_, c := lead.reads[read]
		return a && b && c
	})
}

func TestRead_RequestNobodyWaitsForIsGivenUp(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.NoHibernate = true })
	_, other := r.elect()
	r.drop = func(from, _ shard.NodeID, kind byte) bool { return from == other.id && kind == msgRaft }
	// Its client stops waiting before the request, which is lost, would be made again.
	f := other.read(readRetryTicks * 100 * time.Millisecond / 3)
	if !other.turn().Reading {
		t.Fatal("no request is under way")
	}
	r.until("refusal", func() bool { return errs.Is(other.results[f].Err, errs.Unavailable) })
	r.heal()
	r.run(2 * readRetryTicks * 100 * time.Millisecond)
	if other.turn().Reading {
		t.Error("a request whose answer nobody waits for counts as under way for ever: reads of all shards then bring no turn of their own")
	}
}

func TestRead_RebuildingReplicaKeepsNoReadsThatWereRefused(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.NoHibernate = true })
	lead, other := r.elect()
	lead.do("k=1")
	r.same("k", "1")
	rep := other.host.reps[1]
	rep.machine.SetRebuilding(true)
	for range 50 {
		f := other.read(200 * time.Millisecond)
		r.until("refusal", func() bool { return errs.Is(other.results[f].Err, errs.Unavailable) })
	}
	if got := len(rep.reads.confirmed); got > 1 || rep.reads.count != 0 {
		t.Errorf("after 50 refused reads the replica keeps %d requests and counts %d reads", got, rep.reads.count)
	}
}

// While a shard has no quorum, no answer to its request brings the turn that reads of other shards wait for.
func TestRead_OfAShardWithoutAQuorumHoldsNoOthersUp(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.Shards, c.NoHibernate = []shard.ID{1, 2}, true })
	lead, _ := r.elect()
	r.until("leader of the other shard", func() bool { return lead.host.Shards()[1].Leader != 0 })
	r.run(time.Second)
	// Answers take some time, and so much is waited for.
	lead.host.readTook = 3 * readPatience
	r.isolate(lead)
	lead.read(0)
	asked := r.now
	out := lead.turn()
	if !out.Reading {
		t.Error("the request is not under way")
	}
	for out.Reading && r.now.Sub(asked) < lead.host.cfg.Tick {
		// Nothing else happens on the node.
		r.now = out.Wake
		out = lead.turn()
	}
	if waited := r.now.Sub(asked); out.Reading || waited != 4*3*readPatience {
		t.Errorf("reads of other shards wait for %v for an answer that is late", waited)
	}
	// So it is when the request is made again, and no more when it was answered.
	r.run(readRetryTicks * lead.host.cfg.Tick)
	if out := lead.turn(); out.Reading || lead.host.late != 1 {
		t.Errorf("%d shards are late", lead.host.late)
	}
	r.heal()
	r.until("answer", func() bool { return len(lead.reads) == 1 })
	if lead.host.late != 0 || lead.host.asking != 0 {
		t.Errorf("%d late, %d under way", lead.host.late, lead.host.asking)
	}
}

// A read with a time limit waits for as long as that, be there no leader or no answer.
func TestRead_WaitsForAsLongAsItsClient(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.isolate(other)
	futures := []*shard.Future{other.read(20 * time.Second), other.read(0)}
	r.until("loss of the leader", func() bool { return other.host.reps[1].lead == 0 })
	futures = append(futures, other.read(20*time.Second), other.read(0))
	short := other.read(time.Second)
	r.run(2 * time.Second)
	if !errs.Is(other.results[short].Err, errs.Unavailable) {
		t.Errorf("past its time: %v", other.results[short].Err)
	}
	r.heal()
	for i, f := range futures {
		r.until("read", func() bool { return other.reads[f] != nil || other.answered(f) })
		if other.answered(f) {
			t.Errorf("read %d: %v", i, other.results[f].Err)
		}
	}
}

// A read runs when what was committed before it is applied, and no earlier.
func TestRead_WaitsForWhatItMustSee(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	lead.do("k=1")
	r.settle()
	rep := lead.host.reps[1]
	var futures []*shard.Future
	for i := range uint64(3) {
		f := shard.NewFuture()
		futures = append(futures, f)
		rep.reads.confirmed = append(rep.reads.confirmed, confirmedRead{rep.machine.Applied().Index + i, []Read{{Shard: 1, Future: f}}})
		rep.reads.count++
	}
	for i := range futures {
		if i > 0 {
			lead.do("k=2")
		} else {
			lead.host.markDirty(rep)
			lead.turn()
		}
		for k, f := range futures {
			if got := lead.reads[f] != nil; got != (k <= i) {
				t.Errorf("read %d is released after %d commands: %v", k, i, got)
			}
		}
	}
}

// An answer to another request than the one under way says nothing of the reads that wait now, which may have begun after it was given.
func TestRead_AnswersToOtherRequests(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.same("k", "1")
	r.isolate(other)
	f := other.read(0)
	rep := other.host.reps[1]
	q, session := &rep.reads, other.host.cfg.Session
	if q.ctx == 0 || len(q.asked) != 1 {
		t.Fatalf("request %d for %d reads", q.ctx, len(q.asked))
	}
	state := func(session, ctx uint64) raft.ReadState {
		b := binary.LittleEndian.AppendUint64(nil, session)
		return raft.ReadState{Index: rep.machine.Applied().Index, RequestCtx: binary.LittleEndian.AppendUint64(b, ctx)}
	}
	short := state(session, q.ctx)
	short.RequestCtx = short.RequestCtx[:15]
	for _, rs := range []raft.ReadState{{}, short, state(session, q.ctx-1), state(session, q.ctx+1), state(session, 0), state(session+1, q.ctx)} {
		rep.readConfirmed(rs)
		if other.turn(); other.reads[f] != nil || q.ctx == 0 {
			t.Fatalf("%x confirms request %d of session %d", rs.RequestCtx, q.ctx, session)
		}
	}
	rep.readConfirmed(state(session, q.ctx))
	rep.readConfirmed(state(session, q.ctx)) // none is under way
	other.host.markDirty(rep)
	if other.turn(); other.reads[f] == nil {
		t.Error("its own answer does not confirm it")
	}
}
