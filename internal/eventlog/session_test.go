package eventlog

import (
	"testing"
	"time"
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
	} else if st, err := DecodeJoinState(b); err != nil || st.Waiting || st.Generation != 1 {
		t.Errorf("the younger: %+v, %v", st, err)
	}
	if _, err := w.ask(QuerySync("g", "c", "i", 1)); err != nil {
		t.Errorf("the younger: %v", err)
	}
}
