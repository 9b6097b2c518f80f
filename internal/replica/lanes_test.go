package replica

import (
	"bytes"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/shard"
)

// slowLinks has each pair of nodes share perSecond bytes. Control frames wait for each other only, if they have a lane.
func (r *rig) slowLinks(perSecond int, lanes bool) {
	type way struct {
		from, to shard.NodeID
		control  bool
	}
	free := map[way]time.Time{}
	r.takes = func(from shard.NodeID, f Outgoing) time.Time {
		w := way{from, f.To, f.Control && lanes}
		at := free[w]
		if at.Before(r.now) {
			at = r.now
		}
		free[w] = at.Add(time.Duration(len(f.Data)) * time.Second / time.Duration(perSecond))
		return free[w]
	}
}

// Entries that take longer over the network than a leader may be silent do not cost it its place, and arrive. Without lanes they do, which shows that
// the test could fail.
func TestLanes_LargeEntriesOverSlowLinks(t *testing.T) {
	for _, lanes := range []bool{true, false} {
		r := newRig(t, 3, nil)
		lead, _ := r.elect()
		term := lead.host.Shards()[0].Term
		r.slowLinks(1<<20, lanes)
		var all []*shard.Future
		for _, k := range []string{"a", "b"} {
			f := shard.NewFuture()
			all = append(all, f)
			lead.turn(Propose{Shard: 1, Future: f, Command: shard.Command{Module: 9, Data: append([]byte(k+"="), bytes.Repeat([]byte{'v'}, 4<<20)...)}})
		}
		kept := true
		for range 1200 {
			r.run(10 * time.Millisecond)
			for _, n := range r.nodes {
				kept = kept && n.host.Shards()[0].Term == term
			}
		}
		if !lanes {
			if kept {
				t.Error("without lanes the leader stays, too: the test shows nothing")
			}
			continue
		}
		if !kept || r.noted("peer is silent") {
			t.Errorf("the leader was given up while it sent: %v", r.notes)
		}
		for i, f := range all {
			if res, ok := lead.results[f]; !ok || res.Err != nil {
				t.Errorf("write %d: %v, answered %v", i, res.Err, ok)
			}
		}
	}
}

// A read that the leader has confirmed does not wait for what is being sent to the followers.
func TestLanes_ReadsDoNotWaitForEntries(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	r.run(10 * time.Millisecond)
	r.slowLinks(1<<20, true)
	f := shard.NewFuture()
	lead.turn(Propose{Shard: 1, Future: f, Command: shard.Command{Module: 9, Data: append([]byte("a="), bytes.Repeat([]byte{'v'}, 8<<20)...)}})
	read := shard.NewFuture()
	lead.turn(Read{Shard: 1, Future: read})
	began := r.now
	r.until("read", func() bool { return lead.reads[read] != nil })
	if took := r.now.Sub(began); took > time.Second {
		t.Errorf("the read took %v", took)
	}
	if _, done := lead.results[f]; done {
		t.Error("the write was done by then, so nothing was shown")
	}
}

// What is little goes in one frame, but for the turn with a tick; control goes first where it goes by itself.
func TestLanes_JoinedWhereItCostsNothing(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	h := lead.host
	p := h.peers[h.peerIDs[0]]
	frames := func(bulk, control int, ticked bool) []Outgoing {
		h.out.reset()
		h.ticked = ticked
		for range bulk {
			f := h.frameFor(p)
			w := beginMessage(*f, msgForward)
			w.b = append(w.b, make([]byte, 40<<10)...)
			*f = w.end()
		}
		for range control {
			f := h.controlFor(p)
			w := beginMessage(*f, msgRaft)
			w.b = append(w.b, make([]byte, 20)...)
			*f = w.end()
		}
		h.closeFrames(p)
		return h.out.Frames
	}
	count := func(f Outgoing) (bulk, control int) {
		_, body, err := readFrameHeader(f.Data)
		for len(body) > 0 && err == nil {
			var kind byte
			kind, _, body, err = nextMessage(body)
			if kind == msgForward {
				bulk++
			} else {
				control++
			}
		}
		if err != nil {
			t.Error(err)
		}
		return bulk, control
	}
	for _, c := range []struct {
		bulk, control int
		ticked        bool
		want          [][2]int
	}{
		{0, 0, false, nil},
		{1, 0, true, [][2]int{{1, 0}}},
		{0, 3, false, [][2]int{{0, 3}}},
		{1, 3, false, [][2]int{{1, 3}}},
		{1, 3, true, [][2]int{{0, 3}, {1, 0}}},
		{2, 3, false, [][2]int{{0, 3}, {2, 0}}},
		{30, 2, false, [][2]int{{0, 2}, {26, 0}, {4, 0}}},
	} {
		got := frames(c.bulk, c.control, c.ticked)
		if len(got) != len(c.want) {
			t.Errorf("%+v: %d frames", c, len(got))
			continue
		}
		for i, f := range got {
			b, n := count(f)
			if [2]int{b, n} != c.want[i] || f.Control != (b == 0) {
				t.Errorf("%+v: frame %d holds %d and %d, control %v", c, i, b, n, f.Control)
			}
		}
	}
}
