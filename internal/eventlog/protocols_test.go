package eventlog

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// joinWith is a Join with protocols named by letters, in the member's order.
func joinWith(id, newID, protocols string) Join {
	j := joinAs(id, newID, "")
	j.Protocols = nil
	for _, name := range strings.Split(protocols, "") {
		j.Protocols = append(j.Protocols, Protocol{name, []byte(name + " of " + id + newID)})
	}
	return j
}

// The protocol is one that all members know. Each votes for the first on its list that is, and of equals that one wins which the group knew first.
func TestGroup_ProtocolThatAllKnow(t *testing.T) {
	for _, c := range []struct{ members, want string }{
		{"ab", "a"}, {"ab ba", "a"}, {"ba ab", "b"}, {"ab ba ba", "b"}, {"ab ab ba", "a"}, {"ab cb", "b"}, {"acb cab bac cb", "c"}, {"xab yab zba", "a"},
	} {
		w := newWorld(t)
		for i, protocols := range strings.Fields(c.members) {
			w.must(EncodeJoin(joinWith("", fmt.Sprint("m", i), protocols)))
		}
		w.c.Advance(time.Second)
		g := w.info("g")
		if g.Protocol != c.want || g.State != GroupCompleting {
			t.Errorf("%s: protocol %q in state %v, want %q", c.members, g.Protocol, g.State, c.want)
		}
		for i, m := range g.Members {
			if want := fmt.Sprintf("%s of m%d", c.want, i); string(m.Metadata) != want {
				t.Errorf("%s: member %d has metadata %q, want %q", c.members, i, m.Metadata, want)
			}
		}
	}
}

func TestGroup_MembersWithNothingInCommon(t *testing.T) {
	w := newWorld(t)
	join := func(j Join, want string) {
		t.Helper()
		if _, err := w.do(EncodeJoin(j)); code(err) != want {
			t.Errorf("%q with %v: %v, want %q", j.MemberID+j.NewID, j.Protocols, err, want)
		}
	}
	other := joinWith("", "other", "b")
	other.ProtocolType = "connect"
	join(joinWith("", "m0", "ab"), "")
	join(joinWith("", "m1", "bc"), "")
	// What two of them know each does not help if there is none that all do.
	join(joinWith("", "m2", "ac"), CodeInconsistent)
	join(joinWith("", "m3", "x"), CodeInconsistent)
	join(other, CodeInconsistent)
	join(joinWith("m1", "", "c"), CodeInconsistent)
	join(joinWith("m1", "", "a"), "")
	// b is known by one of them only, by now.
	join(joinWith("", "m4", "b"), CodeInconsistent)
	join(joinWith("", "m4", "ba"), "")
	w.c.Advance(time.Second)
	if g := w.info("g"); g.Protocol != "a" || len(g.Members) != 3 {
		t.Errorf("protocol %q of %d members", g.Protocol, len(g.Members))
	}
	// Who is alone may change its mind, the protocol type too.
	w.must(EncodeLeave("g", []Leaver{{MemberID: "m0"}, {MemberID: "m4"}}))
	join(joinWith("m1", "", "z"), "")
	w.must(EncodeLeave("g", []Leaver{{MemberID: "m1"}}))
	join(other, "")
	for name, j := range map[string]Join{
		"no protocols": {}, "two of a name": joinWith("", "m5", "aba"),
	} {
		j.Group, j.NewID, j.ProtocolType, j.SessionMs, j.RebalanceMs = "h", "m5", "consumer", 1, 1
		if _, err := w.do(EncodeJoin(j)); code(err) != CodeInconsistent {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, f := range map[string]func(*Join){
		"session": func(j *Join) { j.SessionMs = int32(SessionMax/time.Millisecond) + 1 }, "rebalance": func(j *Join) { j.RebalanceMs = int32(SessionMax/time.Millisecond) + 1 },
	} {
		j := joinWith("", "m6", "a")
		j.Group = "h"
		if f(&j); code(func() error { _, err := w.do(EncodeJoin(j)); return err }()) != CodeInvalidSession {
			t.Errorf("a %s time-out that is too long was taken", name)
		}
	}
}

func TestSync_OfThePresentGenerationOnly(t *testing.T) {
	w := newWorld(t)
	w.must(EncodeJoin(joinAs("", "m", "")))
	w.c.Advance(time.Second)
	g := w.info("g").Generation
	sync := func(s Sync, want string) {
		t.Helper()
		s.Group, s.MemberID, s.Assignments = "g", "m", []Assignment{{"m", []byte("mine")}, {"who", nil}}
		if _, err := w.do(EncodeSync(s)); code(err) != want {
			t.Errorf("%+v: %v, want %q", s, err, want)
		}
	}
	state := func(generation int32, want string) {
		t.Helper()
		if st, err := w.syncState("g", "m", generation); code(err) != want {
			t.Errorf("state of generation %d: %+v %v, want %q", generation, st, err, want)
		}
	}
	sync(Sync{Generation: g - 1}, CodeIllegalGeneration)
	sync(Sync{Generation: g + 1}, CodeIllegalGeneration)
	sync(Sync{Generation: g, Protocol: "other"}, CodeInconsistent)
	sync(Sync{Generation: g, ProtocolType: "connect"}, CodeInconsistent)
	sync(Sync{Generation: g, ProtocolType: "consumer", Protocol: "other"}, CodeInconsistent)
	if st, err := w.syncState("g", "m", g); err != nil || !st.Waiting {
		t.Errorf("before the assignment: %+v %v", st, err)
	}
	sync(Sync{Generation: g, ProtocolType: "consumer", Protocol: "range"}, "")
	if st, err := w.syncState("g", "m", g); err != nil || st.Waiting || string(st.Assignment) != "mine" || st.Protocol != "range" || st.ProtocolType != "consumer" {
		t.Errorf("assigned: %+v %v", st, err)
	}
	state(g-1, CodeRebalancing)
	state(g+1, CodeRebalancing)
	// An assignment is nobody's any more while the next generation is made.
	w.must(EncodeJoin(joinAs("", "n", "")))
	state(g, CodeRebalancing)
	sync(Sync{Generation: g}, CodeRebalancing)
	w.must(EncodeJoin(joinAs("m", "", "")))
	state(g, CodeRebalancing)
	sync(Sync{Generation: g}, CodeIllegalGeneration)
	if st, err := w.syncState("g", "m", g+1); err != nil || !st.Waiting || len(st.Assignment) > 0 {
		t.Errorf("the next generation: %+v %v", st, err)
	}
}
