package eventlog

import "testing"

// A consumer outside of group management says so by its generation. Clients send their member id and name along, if they have them: librdkafka
// the name of a static member that assigns partitions to itself.
func TestCommit_WithoutAGenerationWhileTheGroupIsEmpty(t *testing.T) {
	w := newWorld(t)
	commit := func(member, instance string) error {
		_, err := w.do(EncodeCommit(Commit{
			Group: "g", MemberID: member, Instance: instance, Generation: -1, Offsets: []CommittedOffset{{Topic: "t", Offset: 7, LeaderEpoch: -1}},
		}))
		return err
	}
	who := [][2]string{{"", ""}, {"", "i"}, {"m", ""}, {"m", "i"}}
	for _, x := range who {
		w := newWorld(t)
		_, err := w.do(EncodeCommit(Commit{Group: "g", MemberID: x[0], Instance: x[1], Generation: -1, Offsets: []CommittedOffset{{Topic: "t", Offset: 7}}}))
		if err != nil {
			t.Errorf("%q, a group that is not there: %v", x, err)
		}
	}
	w.enter("n")
	for _, x := range who {
		want := CodeUnknownMember
		if err := commit(x[0], x[1]); code(err) != want {
			t.Errorf("%q, a group with members: %v, want %s", x, err, want)
		}
	}
	w.must(EncodeLeave("g", []Leaver{{MemberID: "n"}}))
	for _, x := range who {
		if err := commit(x[0], x[1]); err != nil {
			t.Errorf("%q, an empty group: %v", x, err)
		}
	}
}

// The group without a name has offsets, and they are no other group's.
func TestCommit_OfTheGroupWithoutAName(t *testing.T) {
	w := newWorld(t)
	for i, group := range []string{"", "\x00", "g", ""} {
		w.must(EncodeCommit(Commit{Group: group, Generation: -1, Offsets: []CommittedOffset{{Topic: "t", Offset: int64(i)}}}))
	}
	for group, want := range map[string]int64{"": 3, "\x00": 1, "g": 2} {
		b, err := w.ask(QueryCommits(group, true, nil))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeCommits(b); err != nil || len(got) != 1 || got[0].Offset != want {
			t.Errorf("group %q: %+v, %v, want offset %d", group, got, err, want)
		}
	}
	j := joinAs("", "n", "")
	j.Group = ""
	if _, err := w.do(EncodeJoin(j)); code(err) != CodeInvalidGroup {
		t.Errorf("a member: %v", err)
	}
}
