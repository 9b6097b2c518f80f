package replica

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/shard"
)

// carried counts the bytes that are sent to a node.
func (r *rig) carried(to shard.NodeID) *int {
	n := new(int)
	r.sent = func(_ shard.NodeID, f Outgoing) {
		if f.To == to {
			*n += len(f.Data)
		}
	}
	return n
}

// A follower that has to catch up over a slow link is not sent the same again and again while it is under way.
func TestRepeats_EntriesOverASlowLink(t *testing.T) {
	const entries, size, perSecond = 8, 1 << 20, 512 << 10
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	r.isolate(other)
	r.run(3 * time.Second)
	for i := range entries {
		if res := lead.do(fmt.Sprintf("k%d=%s", i, bytes.Repeat([]byte{'v'}, size))); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	lead.do("last=1")
	carried := r.carried(other.id)
	r.slowLinks(perSecond, true)
	r.heal()
	took := r.until("value", func() bool { return other.get("last") == "1" })
	if at := 2 * entries * size * time.Second / perSecond; took > at {
		t.Errorf("it took %v, which should take half of %v", took, at)
	}
	if *carried > 2*entries*size {
		t.Errorf("%d bytes were sent for %d", *carried, entries*size)
	}
}

// The same for a state.
func TestRepeats_SnapshotOverASlowLink(t *testing.T) {
	// Each row is there twice, as itself and as a change.
	const rows, size, perSecond = 64, 2 * 64 << 10, 64 << 10
	r := newRig(t, 3, func(c *Config) { c.LogEntriesMax = 5 })
	lead, other := r.elect()
	r.isolate(other)
	for i := range rows {
		lead.do(fmt.Sprintf("k%d=%s", i, bytes.Repeat([]byte{'v'}, size/2)))
	}
	r.run(3 * time.Second)
	lead.do("last=1")
	r.run(time.Second)
	if s := lead.host.Shards()[0]; s.First <= other.host.Shards()[0].Last {
		t.Fatalf("the log is not cut: %+v", s)
	}
	carried := r.carried(other.id)
	r.slowLinks(perSecond, true)
	r.heal()
	began := r.now
	for other.get("last") != "1" && r.now.Sub(began) < 10*time.Minute {
		r.run(100 * time.Millisecond)
	}
	if took, at := r.now.Sub(began), 3*rows*size*time.Second/perSecond/2; took > at {
		t.Errorf("it took %v, which should take two thirds of %v", took, at)
	}
	if *carried > 3*rows*size/2 {
		t.Errorf("%d bytes were sent for %d", *carried, rows*size)
	}
	if r.noted("snapshot transfer makes no progress") || !r.noted("installed a snapshot") {
		t.Errorf("notes: %v", r.notes)
	}
}

// What a link has lost is sent again at once when there is another.
func TestRepeats_LinkAnew(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.isolate(other)
	lead.do("large=" + string(bytes.Repeat([]byte{'v'}, 12<<20)))
	// It is sent, lost, and known to be lost; then sent and lost again, of which nobody knows.
	lost := 0
	r.drop = func(_, _ shard.NodeID, _ byte) bool { return false }
	r.sent = func(_ shard.NodeID, f Outgoing) {
		if f.To == other.id && len(f.Data) > 8<<20 {
			lost++
		}
	}
	r.takes = func(_ shard.NodeID, f Outgoing) time.Time {
		if f.To == other.id && len(f.Data) > 8<<20 && lost < 3 {
			return r.now.Add(time.Hour)
		}
		return r.now
	}
	r.until("sending", func() bool { return lost > 0 })
	lost = 3
	lead.turn(Link{Node: other.id, Up: true})
	if took := r.until("value", func() bool { return other.get("large") != "" }); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestRepeats_WaitLongerEachTime(t *testing.T) {
	now := time.Unix(1, 0)
	p := repeats{at: now}
	var at []time.Duration
	for d := time.Duration(0); d < 40*time.Second; d += 100 * time.Millisecond {
		if p.due(now.Add(d), 100*time.Millisecond, 2<<20) {
			at = append(at, d)
		}
	}
	if got, want := fmt.Sprint(at), "[500ms 1.5s 3.5s 7.5s 11.5s 15.5s 19.5s 23.5s 27.5s 31.5s 35.5s 39.5s]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A command that another node forwards over a slow link is not sent again while the first copy is under way.
func TestRepeats_ForwardOverASlowLink(t *testing.T) {
	const size, perSecond = 6 << 20, 4 << 20
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	carried := r.carried(lead.id)
	r.slowLinks(perSecond, true)
	f := other.propose("k="+string(bytes.Repeat([]byte{'v'}, size)), 0)
	r.until("answer", func() bool { _, ok := other.results[f]; return ok })
	if *carried > 3*size/2 {
		t.Errorf("%d bytes were sent for %d", *carried, size)
	}
}
