package replica

import (
	"errors"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// move asks a node to hand over, and leaves it to the caller to move time on.
func (n *rigNode) move(to shard.NodeID, ttl time.Duration) *shard.Future {
	f := shard.NewFuture()
	m := MoveLeader{Shard: 1, To: to, Future: f}
	if ttl > 0 {
		m.Deadline = n.r.now.Add(ttl)
	}
	n.turn(m)
	n.r.settle()
	return f
}

func (n *rigNode) answered(f *shard.Future) bool { _, ok := n.results[f]; return ok }

func TestMoveLeader_WhileCommandsCome(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=0")
	before := lead.propose("k=1", 0)
	f := lead.move(other.id, 0)
	during := lead.propose("k=2", 0)
	took := r.until("hand-over", func() bool { return lead.answered(f) })
	if res := lead.results[f]; res.Err != nil || took > 500*time.Millisecond {
		t.Fatalf("after %v: %v", took, res.Err)
	}
	if got := r.leader(); got != other {
		t.Fatalf("leader is %v", got)
	}
	r.until("answers", func() bool { return lead.answered(before) && lead.answered(during) })
	for _, f := range []*shard.Future{before, during} {
		if res := lead.results[f]; res.Err != nil {
			t.Errorf("a command during the hand-over: %v", res.Err)
		}
	}
	r.same("k", "2")
}

// A leader that hands over takes no entries. If it is left with its office, what fell due meanwhile must be done.
func TestMoveLeader_TimersThatFallDueMeanwhile(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	if res := lead.do("@t=100ms"); res.Err != nil {
		t.Fatal(res.Err)
	}
	r.run(50 * time.Millisecond)
	r.lose(other.id)
	f := lead.move(other.id, 0)
	r.run(200 * time.Millisecond)
	if got := lead.get("t"); got != "" || lead.answered(f) {
		t.Fatalf("the timer has %q, and the hand-over is over: %v", got, lead.results[f])
	}
	r.until("end of the hand-over", func() bool { return lead.answered(f) })
	if res := lead.results[f]; res.Err == nil || !lead.host.reps[1].leads() {
		t.Fatalf("it was handed over: %v", res)
	}
	r.heal()
	if took := r.until("timer", func() bool { return lead.get("t") == "fired" }); took > time.Second {
		t.Errorf("the timer fired %v later", took)
	}
}

func TestMoveLeader_WakesAShardThatSleeps(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.until("sleep", r.asleep)
	f := lead.move(other.id, 0)
	r.until("hand-over", func() bool { return lead.answered(f) })
	if res := lead.results[f]; res.Err != nil || r.leader() != other {
		t.Errorf("%v, leader %v", res.Err, r.leader())
	}
}

func TestMoveLeader_Refused(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	third := r.third(lead, other)
	if f := lead.move(lead.id, 0); lead.results[f].Err != nil || !lead.answered(f) {
		t.Errorf("to itself: %v", lead.results[f].Err)
	}
	if f := other.move(third.id, 0); !errors.Is(other.results[f].Err, shard.ErrNotLeader) {
		t.Errorf("from a follower: %v", other.results[f].Err)
	}
	if f := lead.move(9, 0); !errors.Is(lead.results[f].Err, shard.ErrNoVoter) {
		t.Errorf("to nobody: %v", lead.results[f].Err)
	}
	r.isolate(other)
	f := lead.move(other.id, 0)
	if again := lead.move(third.id, 0); !errs.Is(lead.results[again].Err, errs.Conflict) {
		t.Errorf("twice: %v", lead.results[again].Err)
	}
	began := r.now
	r.until("time-out", func() bool { return lead.answered(f) })
	if err := lead.results[f].Err; !errors.Is(err, shard.ErrMoveTimeout) || !errs.Is(err, errs.OutcomeUnknown) {
		t.Errorf("to one that cannot be reached: %v", err)
	}
	if took := r.now.Sub(began); took > 5*time.Second {
		t.Errorf("given up after %v", took)
	}
	if f := lead.move(other.id, 0); !errs.Is(lead.results[f].Err, errs.Unavailable) {
		t.Errorf("to one that is silent: %v", lead.results[f].Err)
	}
	if res := lead.do("k=1"); res.Err != nil {
		t.Errorf("afterwards: %v", res.Err)
	}
}

// What this turn brought before the request counts, although raft was not asked yet what it made of it.
func TestMoveLeader_OfALeaderThatWasJustDeposed(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.NoHibernate = true })
	lead, other := r.elect()
	r.isolate(lead)
	var last []byte
	r.sent = func(from shard.NodeID, f Outgoing) {
		if n := r.nodes[from-1]; n != lead && f.To == lead.id && n.host.reps[1].leads() {
			last = f.Data
			other = n
		}
	}
	// The old leader sleeps meanwhile.
	lead.wake = r.now.Add(time.Hour)
	r.until("frame of another leader", func() bool { return last != nil })
	if !lead.host.reps[1].leads() {
		t.Fatal("the old leader knows")
	}
	f := shard.NewFuture()
	lead.turn(Frame{From: other.id, Data: last}, MoveLeader{Shard: 1, To: other.id, Future: f})
	if err := lead.results[f].Err; !errors.Is(err, shard.ErrNotLeader) {
		t.Errorf("the answer is %v", err)
	}
	r.heal()
	r.run(time.Second)
	if r.noted("malformed") {
		t.Errorf("notes: %v", r.notes)
	}
}

// A leader that hears of a later one only does not know who led in between.
func TestMoveLeader_UnknownIfATermWasMissed(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	r.drop = func(_, to shard.NodeID, _ byte) bool { return to == lead.id }
	f := lead.move(other.id, 0)
	r.until("other leader", func() bool { return other.host.reps[1].leads() && other.host.reps[1].knowsCommit() })
	third := r.third(lead, other)
	if back := other.move(third.id, 0); !other.answered(back) || other.results[back].Err != nil {
		t.Fatalf("second hand-over: %v", other.results[back].Err)
	}
	r.drop = func(from, to shard.NodeID, _ byte) bool { return from == other.id && to == lead.id }
	r.until("answer", func() bool { return lead.answered(f) })
	if err := lead.results[f].Err; !errs.Is(err, errs.OutcomeUnknown) || errors.Is(err, shard.ErrMoveTimeout) {
		t.Errorf("the other one led in between, and the answer is %v", err)
	}
}

// The message that makes the other one call its election may be late: whoever sent it must not trust a lease again.
func TestMoveLeader_EndsTheLeaseForTheTerm(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.LeaseReads, c.NoHibernate = true, true })
	lead, other := r.elect()
	lead.do("k=1")
	read := func() {
		t.Helper()
		f := lead.read(0)
		r.until("read", func() bool { return lead.reads[f] != nil })
	}
	read()
	read()
	had := lead.counts.LeaseReads
	if had == 0 {
		t.Fatal("no read under a lease")
	}
	r.drop = func(_, to shard.NodeID, _ byte) bool { return to == other.id }
	f := lead.move(other.id, 0)
	r.until("time-out", func() bool { return lead.answered(f) })
	for range 5 {
		read()
	}
	if got := lead.counts.LeaseReads; got != had {
		t.Errorf("%d reads under a lease after the hand-over began", got-had)
	}
	r.heal()
	lead.do("k=2")
	f = lead.move(other.id, 0)
	r.until("hand-over", func() bool { return lead.answered(f) })
	lead, _ = other, lead
	read()
	read()
	if lead.counts.LeaseReads == 0 {
		t.Error("the new leader has no lease")
	}
}

// A node that crashes before it has its term on disk may be elected in that term once more, and make other entries under the numbers of those
// that somebody has of it. So it must not have been elected before.
func TestVotes_AreAskedForWhenTheTermIsOnDisk(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	r.holdLog[other.id] = true
	f := lead.move(other.id, 0)
	r.run(200 * time.Millisecond)
	if s := other.host.Shards()[0]; s.Leads || s.Term == other.log.State(1).Term {
		t.Errorf("with term %d on disk: %+v", other.log.State(1).Term, s)
	}
	r.holdLog[other.id] = false
	other.written()
	r.until("answer", func() bool { return lead.answered(f) })
	if res := lead.results[f]; res.Err != nil || r.leader() != other {
		t.Errorf("the hand-over ended with %+v", res)
	}
}

func TestMoveLeader_NoSuchShard(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	f := shard.NewFuture()
	lead.turn(MoveLeader{Shard: 2, To: other.id, Future: f})
	if !lead.answered(f) || !errs.Is(lead.results[f].Err, errs.NotFound) {
		t.Errorf("got %v", lead.results[f].Err)
	}
}

// A client that waits for less than a hand-over may take is answered when it stops waiting.
func TestMoveLeader_AnsweredInItsTime(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	for _, ttl := range []time.Duration{300 * time.Millisecond, time.Minute} {
		r.lose(other.id)
		began := r.now
		f := lead.move(other.id, ttl)
		r.until("answer", func() bool { return lead.answered(f) })
		most := moveTimeouts * time.Duration(lead.host.cfg.ElectionTicks) * lead.host.cfg.Tick
		if took, want := r.now.Sub(began), min(ttl, most); took < want || took > want+2*lead.host.cfg.Tick {
			t.Errorf("with %v to wait, the answer came after %v", ttl, took)
		}
		if err := lead.results[f].Err; !errors.Is(err, shard.ErrMoveTimeout) {
			t.Errorf("got %v", err)
		}
		r.heal()
		r.run(3 * time.Second)
		if !lead.host.reps[1].leads() {
			t.Fatal("it was handed over")
		}
	}
}

// If the next term has another leader than the one that should take over, that is what is said: nobody else can have led in between.
func TestMoveLeader_AnotherIsElected(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	third := r.third(lead, other)
	for _, skip := range []uint64{1, 2} {
		rep := lead.host.reps[1]
		f := shard.NewFuture()
		rep.move = &move{to: other.host.reps[1].rid, future: f, term: rep.term - skip, by: r.now.Add(time.Minute)}
		rep.lead, lead.host.out.Answers = third.host.reps[1].rid, nil
		rep.moved()
		if rep.move != nil || len(lead.host.out.Answers) != 1 {
			t.Fatalf("it is not decided: %+v", rep.move)
		}
		want := errs.Conflict
		if skip > 1 {
			want = errs.OutcomeUnknown
		}
		if err := lead.host.out.Answers[0].Result.Err; !errs.Is(err, want) {
			t.Errorf("%d terms later: got %v, want %v", skip, err, want)
		}
		lead.host.out.Answers = nil
		// Nobody leads yet, or this node still does.
		for _, id := range []uint64{0, rep.rid} {
			rep.move = &move{to: other.host.reps[1].rid, future: f, term: rep.term - skip, by: r.now.Add(time.Minute)}
			if rep.lead = id; id == 0 || skip == 1 {
				rep.moved()
				if rep.move == nil {
					t.Errorf("it is decided while %d leads: %+v", id, lead.host.out.Answers)
				}
			}
			rep.move = nil
		}
	}
}
