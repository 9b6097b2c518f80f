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
