package eventlog

import (
	"testing"
	"time"

	"github.com/quorate/quorate/internal/shard"
)

// Two processes have the same name by mistake. The older one waits, to join or for its assignment, when the younger takes its place. It
// is told so, which ends it: as an unknown member it would join anew, and take the place back.
func TestStatic_WhoWaitsLearnsThatItWasReplaced(t *testing.T) {
	w := newWorld(t)
	fenced := func(q []byte) {
		t.Helper()
		if _, err := w.ask(q); code(err) != CodeFencedInstance {
			t.Errorf("query %d of the older: got %v, want %s", q[1], err, CodeFencedInstance)
		}
	}
	w.must(EncodeJoin(joinAs("", "a", "i")))
	w.must(EncodeJoin(joinAs("", "b", "i")))
	fenced(QueryJoin("g", "a", "i"))
	if _, err := w.ask(QueryJoin("g", "a", "")); code(err) != CodeUnknownMember {
		t.Errorf("without its name: %v", err)
	}
	w.c.Advance(time.Second)
	if g := w.info("g"); g.State != GroupCompleting {
		t.Fatalf("the group is %v", g.State)
	}
	w.must(EncodeJoin(joinAs("", "c", "i")))
	fenced(QueryJoin("g", "b", "i"))
	fenced(QuerySync("g", "b", "i", 1))
	if b, err := w.ask(QueryJoin("g", "c", "i")); err != nil {
		t.Errorf("the younger: %v", err)
	} else if st, err := DecodeJoinState(b); err != nil || st.Waiting || st.Generation != 2 {
		t.Errorf("the younger: %+v, %v", st, err)
	}
	if _, err := w.ask(QuerySync("g", "c", "i", 2)); err != nil {
		t.Errorf("the younger: %v", err)
	}
}

// The leader assigns to those whom it was told of: a process that takes a member's place after that would get nothing, and nobody would have
// what was meant for its place. Kafka rebalances then (GroupCoordinator.updateStaticMemberAndRebalance).
func TestStatic_ReplacedBeforeTheAssignmentGetsOne(t *testing.T) {
	w := newWorld(t)
	w.must(EncodeJoin(joinAs("", "a", "")))
	w.must(EncodeJoin(joinAs("", "b", "i")))
	w.c.Advance(time.Second)
	first := w.info("g")
	if first.State != GroupCompleting || len(first.Members) != 2 {
		t.Fatalf("the group is %v with %d members", first.State, len(first.Members))
	}
	w.must(EncodeJoin(joinAs("", "c", "i")))
	assign := func(generation int32) error {
		_, err := w.do(EncodeSync(Sync{Group: "g", MemberID: "a", Generation: generation, Assignments: []Assignment{{"a", []byte("0")}, {"b", []byte("1")}, {"c", []byte("2")}}[:2+generation-first.Generation]}))
		return err
	}
	if err := assign(first.Generation); code(err) != CodeRebalancing {
		t.Errorf("the leader assigns to those who were there: %v", err)
	}
	w.must(EncodeJoin(joinAs("a", "", "")))
	g := w.info("g")
	if g.State != GroupCompleting || g.Generation != first.Generation+1 {
		t.Fatalf("the group is %v, generation %d", g.State, g.Generation)
	}
	if err := assign(g.Generation); err != nil {
		t.Fatal(err)
	}
	w.must(EncodeSync(Sync{Group: "g", MemberID: "c", Instance: "i", Generation: g.Generation}))
	if st, err := w.syncState("g", "c", g.Generation); err != nil || string(st.Assignment) != "2" {
		t.Errorf("the younger is assigned %q, %v", st.Assignment, err)
	}
}

// enter makes a group of one member, which has its assignment.
func (w *world) enter(id string) {
	w.t.Helper()
	w.must(EncodeJoin(joinAs("", id, "")))
	w.c.Advance(time.Second)
	w.must(EncodeSync(Sync{Group: "g", MemberID: id, Generation: w.info("g").Generation, Assignments: []Assignment{{id, []byte("a")}}}))
	if g := w.info("g"); g.State != GroupStable || len(g.Members) != 1 {
		w.t.Fatalf("the group is %v with %d members", g.State, len(g.Members))
	}
}

// There was no leader for longer than a session, so that no heartbeat could arrive. The first that the next leader does is to fire what
// is due.
func TestSession_OutlivesATimeWithoutALeader(t *testing.T) {
	w := newWorld(t)
	w.enter("m")
	const session = 10 * time.Second
	now := w.c.Now()
	members := func(when string, want int) {
		t.Helper()
		if n := len(w.info("g").Members); n != want {
			t.Errorf("%s: %d members, want %d", when, n, want)
		}
	}
	fire := func(term uint64, after time.Duration) {
		now = now.Add(after)
		w.applyIn(term, shard.TimersEntry(now))
	}
	fire(2, time.Minute)
	members("at the next leader's first look", 1)
	fire(2, session-time.Second)
	members("before a session under the next leader is over", 1)
	fire(2, 2*time.Second)
	members("after it", 0)
}

// A session that is renewed under the present leader ends in its time.
func TestSession_EndsAfterTheLastHeartbeat(t *testing.T) {
	w := newWorld(t)
	w.enter("m")
	e := shard.AppendBatchHeader(nil, shard.BatchHeader{Stamp: w.c.Now()})
	w.applyIn(5, shard.AppendCommand(e, shard.Command{Module: shard.ModuleEventlog, Data: EncodeHeartbeat("g", "m", "", 1)}))
	w.applyIn(5, shard.TimersEntry(w.c.Now().Add(9*time.Second)))
	if n := len(w.info("g").Members); n != 1 {
		t.Errorf("before its end: %d members", n)
	}
	w.applyIn(5, shard.TimersEntry(w.c.Now().Add(11*time.Second)))
	if n := len(w.info("g").Members); n != 0 {
		t.Errorf("after its end: %d members", n)
	}
}

// Rows were written before sessions and rebalances knew their term.
func TestRows_WithoutATerm(t *testing.T) {
	m := &member{id: "m", sessionMs: 10, joined: 1, protocols: []Protocol{{"range", []byte("x")}}, assigned: 1, assignment: []byte("a")}
	b := m.encode()
	old := decodeMember(b[:len(b)-1])
	if m.term = 7; old.term != 0 || old.id != "m" || string(old.assignment) != "a" || decodeMember(m.encode()).term != 7 {
		t.Errorf("got %+v", old)
	}
	g := &group{name: "g", state: GroupPreparing, members: 1, used: 5}
	b = g.encode()
	before := decodeGroup("g", b[:len(b)-1])
	if g.term = 7; before.term != 0 || before.used != 5 || decodeGroup("g", g.encode()).term != 7 {
		t.Errorf("got %+v", before)
	}
}

// The members of a group have so long to join again, or to ask for their assignments, that a time without a leader may be longer.
func TestRebalance_OutlivesATimeWithoutALeader(t *testing.T) {
	const rebalance = 30 * time.Second
	for _, state := range []GroupState{GroupPreparing, GroupCompleting} {
		w := newWorld(t)
		w.enter("m")
		w.must(EncodeJoin(joinAs("", "n", "")))
		want := 2
		if state == GroupCompleting {
			w.must(EncodeJoin(joinAs("m", "", "")))
		}
		g := w.info("g")
		if g.State != state || len(g.Members) != want {
			t.Fatalf("the group is %v with %d members, want %v", g.State, len(g.Members), state)
		}
		now := w.c.Now()
		fire := func(term uint64, after time.Duration) {
			now = now.Add(after)
			w.applyIn(term, shard.TimersEntry(now))
		}
		members := func(when string, want int) {
			t.Helper()
			if g := w.info("g"); len(g.Members) != want {
				t.Errorf("%v, %s: %v with %d members, want %d", state, when, g.State, len(g.Members), want)
			}
		}
		// Sessions are renewed under each leader; what ends is the rebalance.
		beat := func(term uint64) {
			e := shard.AppendBatchHeader(nil, shard.BatchHeader{Stamp: now})
			for _, id := range []string{"m", "n"} {
				e = shard.AppendCommand(e, shard.Command{Module: shard.ModuleEventlog, Data: EncodeHeartbeat("g", id, "", g.Generation)})
			}
			w.applyIn(term, e)
		}
		fire(2, 2*rebalance)
		members("at the next leader's first look", want)
		beat(2)
		for range 4 {
			fire(2, rebalance/5)
			beat(2)
			members("before a rebalance under the next leader is over", want)
		}
		fire(2, rebalance/5+time.Second)
		fire(2, rebalance/5)
		if g := w.info("g"); len(g.Members) == want && g.State == state {
			t.Errorf("%v: goes on for ever", state)
		}
	}
}
