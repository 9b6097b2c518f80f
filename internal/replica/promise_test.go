package replica

import (
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// A node that stops says of each request what is so: what was sent may be applied, what was not never is.
func TestAbandon_SaysWhatIsKnown(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=0")
	r.same("k", "0")
	r.isolate(lead)
	want := map[*shard.Future]errs.Kind{
		lead.propose("k=1", 0):      errs.OutcomeUnknown,
		lead.move(other.id, 0):      errs.OutcomeUnknown,
		lead.propose("k=2", 0):      errs.Unavailable,
		lead.read(0):                errs.Unavailable,
		lead.read(0):                errs.Unavailable,
		lead.staleRead(1000, 0):     errs.Unavailable,
		lead.confirmedRead(1 << 20): errs.Unavailable,
	}
	if rep := lead.host.reps[1]; len(rep.order) != 1 || len(rep.queue) != 1 {
		t.Fatalf("%d batches are under way, and %d commands wait", len(rep.order), len(rep.queue))
	}
	for _, a := range lead.host.Abandon() {
		kind, open := want[a.Future]
		if !open || !errs.Is(a.Result.Err, kind) {
			t.Errorf("answer %v, want kind %v", a.Result.Err, kind)
		}
		delete(want, a.Future)
	}
	if len(want) > 0 {
		t.Errorf("%d requests have no answer", len(want))
	}
}

func (n *rigNode) staleRead(at shard.Revision, ttl time.Duration) *shard.Future {
	n.r.Helper()
	f := shard.NewFuture()
	rd := Read{Shard: 1, Future: f, Stale: true, AtLeast: at}
	if ttl > 0 {
		rd.Deadline = n.r.now.Add(ttl)
	}
	n.turn(rd)
	return f
}

// confirmedRead makes a read that waits for an index.
func (n *rigNode) confirmedRead(at uint64) *shard.Future {
	f, q := shard.NewFuture(), &n.host.reps[1].reads
	q.confirmed = append(q.confirmed, confirmedRead{at, []Read{{Shard: 1, Future: f}}})
	q.count++
	return f
}

// Of two writes that are under way the first does not make the second durable.
func TestHost_AnswersNoneOfALaterWrite(t *testing.T) {
	r := newRig(t, 1, nil)
	n := r.nodes[0]
	r.settle()
	r.holdSync[1] = true
	f := n.propose("k=1", 0)
	r.settle()
	first := n.seq
	r.run(2 * slowRound)
	g := n.propose("k=2", 0)
	r.settle()
	if n.seq == first || n.answered(f) {
		t.Fatalf("writes %d and %d, the first is answered: %v", first, n.seq, n.answered(f))
	}
	n.turn(LogDone{first})
	r.settle()
	if !n.answered(f) || n.answered(g) {
		t.Errorf("when the first of two writes is durable, the first is answered: %v, the second: %v", n.answered(f), n.answered(g))
	}
	n.sync()
	r.settle()
	if !n.answered(g) {
		t.Error("the second is not answered")
	}
}

// A clock that is set back does not take the node back.
func TestHost_TimeDoesNotGoBack(t *testing.T) {
	r := newRig(t, 1, nil)
	n := r.nodes[0]
	r.settle()
	was := n.host.now
	r.now = was.Add(-time.Hour)
	n.turn()
	if !n.host.now.Equal(was) {
		t.Errorf("from %v to %v", was, n.host.now)
	}
	r.now = was
}

// A term and a vote are on disk for themselves, without entries that come along.
func TestVotes_AreOnDiskByThemselves(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	r.run(time.Second)
	r.isolate(other)
	rep := other.host.reps[1]
	term, from := rep.term+5, lead.host.reps[1].rid
	hear := func(m *raftpb.Message) storage.HardState {
		m.From, m.To, m.Term = new(from), new(rep.rid), new(term)
		rep.receiveRaft(m, 0)
		other.turn()
		return other.log.State(1)
	}
	// The first takes away the vote of the term before, the second changes nothing but the term.
	for range 2 {
		if st := hear(&raftpb.Message{Type: raftpb.MsgAppResp.Enum()}); st.Term != term || st.Vote != 0 {
			t.Errorf("after a message of term %d: %+v", term, st)
		}
		term++
	}
	term--
	m := &raftpb.Message{Type: raftpb.MsgVote.Enum(), LogTerm: new(term - 1), Index: new(rep.view.last.Index + 10)}
	if st := hear(m); st.Term != term || st.Vote != from {
		t.Errorf("after a vote for %d: %+v", from, st)
	}
}

// The shard's clock is that of the leader when it proposes, whoever made the batch, and when.
func TestHost_StampsAreOfTheProposal(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=0")
	f := other.propose("k=1", 0)
	// The leader is busy for a while.
	r.now = r.now.Add(40 * time.Millisecond)
	at := r.now
	lead.turn()
	r.until("answer", func() bool { return other.answered(f) })
	if got := other.host.Machine(1).Stamp(); !got.Equal(at) {
		t.Errorf("a forwarded command has the time %v, want that of its proposal, %v", got, at)
	}
	// A batch that gets nowhere until its node leads.
	r.drop = func(_, _ shard.NodeID, kind byte) bool { return kind == msgForward }
	f = other.propose("k=2", 0)
	r.run(200 * time.Millisecond)
	at = r.now
	lead.move(other.id, 0)
	r.until("answer", func() bool { return other.answered(f) })
	if got := other.host.Machine(1).Stamp(); r.leader() != other || got.Before(at) {
		t.Errorf("a command that was sent again has the time %v, want one from %v on", got, at)
	}
}

// raft takes nothing while the leader hands over. If it is left with its office, what came meanwhile is proposed then.
func TestMoveLeader_CommandsOfOneThatFailedAreProposed(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=0")
	r.run(time.Second)
	r.lose(other.id)
	move := lead.move(other.id, 0)
	f := lead.propose("k=1", 0)
	r.until("end of the hand-over", func() bool { return lead.answered(move) })
	r.until("answer", func() bool { return lead.answered(f) })
	if res := lead.results[f]; res.Err != nil {
		t.Error(res.Err)
	}
}

// What was applied, but of which the result is lost, is unknown and never failed; nobody waits for it without end.
func TestHost_ResultsThatAreLostAreUnknown(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=0")
	for name, lost := range map[string]func(*replica, uint64){
		"an entry that had been applied": func(rep *replica, seq uint64) {
			rep.answerApplied(&shard.Applied{Answers: []shard.Answer{{Session: rep.host.cfg.Session, Seq: seq, Pos: -1}}})
		},
		"a snapshot": func(rep *replica, _ uint64) { rep.settleAfterSnapshot() },
	} {
		f := other.propose("k=1", 0)
		rep := other.host.reps[1]
		seq := rep.order[len(rep.order)-1]
		r.until("answer", func() bool { return other.answered(f) })
		// The same batch again, as if its answer had not been seen.
		g := shard.NewFuture()
		b := &batch{seq: seq, futures: []waitingAnswer{{future: g}}, open: 1}
		rep.inflight[seq], rep.order = b, append(rep.order, seq)
		other.host.out.reset()
		lost(rep, seq)
		if a := other.host.out.Answers; len(a) != 1 || a[0].Future != g || !errs.Is(a[0].Result.Err, errs.OutcomeUnknown) {
			t.Errorf("%s: answers %+v", name, a)
		}
		if len(rep.order) != 0 {
			t.Errorf("%s: %d batches are under way", name, len(rep.order))
		}
		other.host.out.reset()
	}
}

// A replica that gives itself up confirms nothing of what it had taken in before, nor applies it.
func TestRepair_NothingIsConfirmedForTheOldID(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=0")
	r.same("k", "0")
	r.holdSync[other.id] = true
	if res := lead.do("k=1"); res.Err != nil {
		t.Fatal(res.Err)
	}
	rep := other.host.reps[1]
	old := rep.rid
	if !slices.ContainsFunc(other.host.waits, func(w appendWait) bool { return w.r == rep }) {
		t.Fatal("no entry waits for its sync")
	}
	r.sent = func(from shard.NodeID, f Outgoing) {
		_, body, err := readFrameHeader(f.Data)
		for from == other.id && err == nil && len(body) > 0 {
			var kind byte
			var msg []byte
			if kind, msg, body, err = nextMessage(body); kind != msgRaft {
				continue
			}
			if _, m, _, err := readRaft(msg); err != nil || m.GetFrom() == old {
				t.Errorf("the old replica says %v, %v", m, err)
			}
		}
	}
	rep.applies = []*raftpb.Message{{}}
	rep.startOver(rep.view.last.Index)
	if len(rep.applies) > 0 {
		t.Error("what was committed for the old id is to be applied")
	}
	r.until("new id", func() bool { return rep.rn != nil && rep.rid != old })
	r.holdSync[other.id] = false
	other.sync()
	r.rebuilt(other, old, "k", "1")
	// Nor does it wait for the writes of the old one.
	r.until("sleep", r.asleep)
}

// A replica that is restored, and does not vote yet, is not read: it may lack what the one before it has answered.
func TestRepair_NothingIsReadUntilItVotes(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.same("k", "1")
	old := other.host.Shards()[0].Replica
	// Nobody is made a voter for a while.
	lead.host.reps[1].promotedAt = r.now.Add(time.Hour)
	other.stop()
	if err := other.open(nil, true); err != nil {
		t.Fatal(err)
	}
	r.until("all entries", func() bool {
		return !other.host.Shards()[0].Awaiting && other.host.Shards()[0].Applied == lead.host.Shards()[0].Applied
	})
	if f := other.staleRead(1, time.Second); other.reads[f] != nil || !errs.Is(other.results[f].Err, errs.Unavailable) {
		t.Errorf("a stale read: %+v", other.results[f])
	}
	if err := other.host.Machine(1).Readable(); err == nil {
		t.Error("it may be read")
	}
	lead.host.reps[1].promotedAt = time.Time{}
	r.rebuilt(other, old, "k", "1")
}

// A lease counts from when the confirmation was asked for, and is over before the first of those who confirmed may call an
// election, also if its clock is faster by LeaseDrift and its first tick comes at once.
func TestRead_LeaseIsShorterThanAnyElection(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.LeaseReads, c.NoHibernate = true, true })
	lead, _ := r.elect()
	lead.do("k=1")
	r.run(time.Second)
	r.takes = func(shard.NodeID, Outgoing) time.Time { return r.now.Add(100 * time.Millisecond) }
	lead.host.reps[1].reads.lease = time.Time{}
	f, asked := lead.read(0), r.now
	r.until("read", func() bool { return lead.reads[f] != nil })
	cfg := lead.host.cfg
	soonest := time.Duration(float64(cfg.Tick) * float64(cfg.ElectionTicks-1) * (1 - cfg.LeaseDrift))
	if got := lead.host.reps[1].reads.lease.Sub(asked); got <= 0 || got > soonest {
		t.Errorf("the lease lasts %v, and an election may come after %v", got, soonest)
	}
}

// What cannot be made durable in the state store is not said in the log.
func TestRepair_NothingIsWrittenOfStatesThatAreNotSaved(t *testing.T) {
	if testing.Short() {
		t.Skip("the store tries for five seconds")
	}
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.same("k", "1")
	other.stop()
	_ = other.store.Close()
	full := false
	fs := errorfs.Wrap(storage.MemFS(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return errorfs.ErrInjected
		}
		return nil
	}))
	var err error
	if other.store, err = storage.OpenStore(fs, "state", storage.StoreConfig{}); err != nil {
		t.Fatal(err)
	}
	if err := other.open(nil, true); err != nil {
		t.Fatal(err)
	}
	full = true
	out := other.turn()
	if out.Fatal == nil || len(out.Writes) > 0 {
		t.Errorf("fatal: %v, writes %+v", out.Fatal, out.Writes)
	}
	full = false
}
