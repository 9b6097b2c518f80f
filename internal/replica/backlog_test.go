package replica

import (
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
)

// TestBacklog_NothingIsProposed: a leader whose store is behind refuses its own clients, and other nodes' batches wait until
// it has caught up. What is committed is applied all the same.
func TestBacklog_NothingIsProposed(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	if res := lead.do("k=before"); res.Err != nil {
		t.Fatal(res.Err)
	}
	share := 0.0
	lead.host.backlog = func() float64 { return share }
	for _, s := range []struct {
		share  float64
		behind bool
	}{{0.6, false}, {0.63, true}, {0.9, true}, {0.51, true}, {0.49, false}, {0.6, false}} {
		share = s.share
		if res := lead.do("k=1"); errs.Is(res.Err, errs.Overloaded) != s.behind {
			t.Errorf("with a backlog of %v: %v, want refused %v", s.share, res.Err, s.behind)
		}
	}
	share = 0.9
	was := lead.last()
	late, patient := other.propose("k=late", time.Second), other.propose("k=patient", 0)
	r.until("an end of the wait", func() bool { _, ok := other.results[late]; return ok })
	if err := other.results[late].Err; !errs.Is(err, errs.OutcomeUnknown) {
		t.Errorf("a forwarded command that nobody took: %v", err)
	}
	if lead.last() != was {
		t.Errorf("the leader proposed something")
	}
	share = 0
	r.until("answer", func() bool { _, ok := other.results[patient]; return ok })
	if err := other.results[patient].Err; err != nil {
		t.Error(err)
	}
	r.same("k", "patient")

	// A follower refuses its own clients, and applies what others propose.
	other.host.backlog = func() float64 { return 0.9 }
	if res := other.do("k=2"); !errs.Is(res.Err, errs.Overloaded) {
		t.Errorf("got %v", res.Err)
	}
	if res := lead.do("k=3"); res.Err != nil {
		t.Error(res.Err)
	}
	r.same("k", "3")
}
