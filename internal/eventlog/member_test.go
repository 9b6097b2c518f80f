package eventlog

import (
	"fmt"
	"testing"
	"time"
)

// Who is not known joins as nobody, be the group there or not; a static member's name is one process's.
func TestJoin_OfThoseWhoAreNotKnown(t *testing.T) {
	w := newWorld(t)
	join := func(j Join, want string) {
		t.Helper()
		if _, err := w.do(EncodeJoin(j)); code(err) != want {
			t.Errorf("member %q, new %q, instance %q: %v, want %q", j.MemberID, j.NewID, j.Instance, err, want)
		}
	}
	join(joinAs("ghost", "", ""), CodeUnknownMember)
	if b, err := w.ask(QueryGroups()); err != nil || b[0] != 0 {
		t.Errorf("a group of a member that is not known: %x %v", b, err)
	}
	join(joinAs("", "a", "i"), "")
	join(joinAs("ghost", "", ""), CodeUnknownMember)
	join(joinAs("ghost", "", "other"), CodeUnknownMember)
	join(joinAs("ghost", "", "i"), CodeFencedInstance)
	join(joinAs("", "b", "i"), "")
	join(joinAs("a", "", "i"), CodeFencedInstance)
	join(joinAs("a", "", ""), CodeUnknownMember)
	join(joinAs("b", "", "i"), "")
	join(joinAs("", "b", ""), "exists")
	w.c.Advance(time.Second)
	if g := w.info("g"); len(g.Members) != 1 || g.Members[0].ID != "b" || g.Members[0].Instance != "i" {
		t.Errorf("members %+v", g.Members)
	}
}

// A group is not disturbed by a member that asks again for the answer that it missed, and is by one that says something new.
func TestJoin_AgainInAStableGroup(t *testing.T) {
	for _, c := range []struct {
		who, metadata string
		want          GroupState
	}{{"n", "m", GroupStable}, {"n", "new", GroupPreparing}, {"m", "m", GroupPreparing}} {
		w := newWorld(t)
		w.must(EncodeJoin(joinAs("", "m", "")))
		w.must(EncodeJoin(joinAs("", "n", "")))
		w.c.Advance(time.Second)
		generation := w.info("g").Generation
		for id, list := range map[string][]Assignment{"n": nil, "m": {{"m", []byte("1")}, {"n", []byte("2")}}} {
			if list == nil {
				if st, err := w.joinState("g", id); err != nil || st.Leader != "m" || len(st.Members) != 0 {
					t.Errorf("%s: %+v %v, want m to lead and nobody else to be told of the members", id, st, err)
				}
			}
			w.must(EncodeSync(Sync{Group: "g", MemberID: id, Generation: generation, Assignments: list}))
		}
		g := w.info("g")
		if g.State != GroupStable || len(g.Members) != 2 || string(g.Members[0].Assignment) != "1" || string(g.Members[1].Assignment) != "2" {
			t.Errorf("assigned: %+v", g)
		}
		j := joinAs(c.who, "", "")
		j.Protocols[0].Metadata, j.ClientID = []byte(c.metadata), "new name"
		w.must(EncodeJoin(j))
		g = w.info("g")
		if g.State != c.want || g.Generation != generation {
			t.Errorf("%s joins again with %q: state %v, generation %d, want %v and %d", c.who, c.metadata, g.State, g.Generation, c.want, generation)
		}
		for _, m := range g.Members {
			if m.ID == c.who && m.ClientID != "new name" || c.want == GroupPreparing && len(m.Assignment) > 0 {
				t.Errorf("%s joins again with %q: %+v", c.who, c.metadata, m)
			}
		}
	}
}

// Each member that comes gives an empty group another moment, but no longer than the first one allowed.
func TestJoin_FirstMembersDoNotWaitForEver(t *testing.T) {
	w := newWorld(t)
	for i := range 30 {
		if i > 0 {
			if g := w.info("g"); g.State != GroupPreparing {
				t.Fatalf("after %d members: %v", i, g.State)
			}
		}
		j := joinAs("", fmt.Sprint("m", i), "")
		j.RebalanceMs, j.SessionMs = 3000, 60_000
		w.must(EncodeJoin(j))
		w.c.Advance(100 * time.Millisecond)
	}
	if g := w.info("g"); g.State != GroupCompleting || len(g.Members) != 30 {
		t.Errorf("after three seconds: %v with %d members", g.State, len(g.Members))
	}
}
