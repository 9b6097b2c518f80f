package replica

import (
	"testing"
	"time"
)

// A leader's clock may be ahead of those of the leaders after it. The shard's clock goes on from there at their rate: it neither goes back nor jumps.
func TestStamp_GoesOnFromTheLastLeaders(t *testing.T) {
	const ahead = 10 * time.Second
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	if res := lead.do("k=0"); res.Err != nil {
		t.Fatal(res.Err)
	}
	rep := lead.host.reps[1]
	if got := rep.stamp(); !got.Equal(r.now) {
		t.Fatalf("the clock of a first leader says %v at %v", got, r.now)
	}
	rep.stampBase, rep.stampAt = r.now.Add(ahead), r.now
	lead.do("k=1")
	if got := rep.machine.Stamp(); !got.Equal(r.now.Add(ahead)) {
		t.Fatalf("the entry has %v at %v", got, r.now)
	}
	for n, to := lead, other; ; n, to = to, n {
		f := n.move(to.id, 0)
		r.until("hand-over", func() bool { return n.answered(f) && to.host.reps[1].leads() })
		rep, was := to.host.reps[1], to.host.reps[1].machine.Stamp()
		first := rep.stamp()
		if first.Before(was) || first.After(r.now.Add(ahead)) {
			t.Errorf("at %v the clock says %v, the last entry %v", r.now, first, was)
		}
		if to.do("@t=2s").Err != nil || to.get("t") == "fired" {
			t.Fatal("no timer was set")
		}
		began := r.now
		r.run(time.Second)
		to.host.now = r.now
		if got := rep.stamp().Sub(first); got < time.Second || got > time.Second+50*time.Millisecond {
			t.Errorf("after a second the clock is %v later", got)
		}
		r.until("timer", func() bool { return to.get("t") == "fired" })
		if took := r.now.Sub(began); took < 2*time.Second-50*time.Millisecond || took > 2*time.Second+100*time.Millisecond {
			t.Errorf("a timer of 2 s fired after %v", took)
		}
		if to.do("t=x").Err != nil {
			t.Fatal("not reset")
		}
		if to == lead {
			break
		}
	}
	r.run(2 * ahead)
	lead.host.now = r.now
	if got := rep.stamp().Sub(r.now); got < ahead-50*time.Millisecond || got > ahead {
		t.Errorf("later the clock is %v ahead, not %v", got, ahead)
	}
}
