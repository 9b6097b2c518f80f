package sim

import (
	"errors"
	"slices"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/replica"
	"github.com/quorate/quorate/internal/shard"
)

// handOver is a hand-over of leadership that somebody asked a node for, until it is answered.
type handOver struct {
	shard shard.ID
	to    shard.NodeID
	// at is when it was asked for, taken when the node took it up, by its own clock.
	at, taken time.Time
	// before and after are what the node was before and after the turn in which it took it up, led the terms that it led in meanwhile, lowest first.
	before, after replica.ShardStatus
	led           []uint64
}

// moveLeader asks a node to hand a shard over to another one, as an operator does who may be wrong about who leads. Half of the time
// the node hears nothing more soon after, for longer than a lease: it must not believe that it leads still.
func (w *world) moveLeader() {
	i, to := w.rng.IntN(w.o.Nodes), shard.NodeID(1+w.rng.IntN(w.o.Nodes))
	n := w.nodes[i]
	if n.boot == 0 {
		return
	}
	asked := false
	for _, s := range n.host.Shards() {
		if s.Leads || w.rng.IntN(8) == 0 {
			w.stats.Moves++
			f := shard.NewFuture()
			n.moves[f] = &handOver{shard: s.ID, to: to, at: w.now}
			n.give(replica.MoveLeader{Shard: s.ID, To: to, Future: f})
			asked = true
		}
	}
	if !asked || w.rng.IntN(2) == 0 {
		return
	}
	w.after(time.Duration(w.rng.Int64N(int64(3*w.o.DelayMax))), func() {
		if !w.chaos {
			return
		}
		w.note("node %d hands over and hears nothing more", n.id)
		for b := range w.nodes {
			w.cut[[2]int{b, i}] = true
		}
		w.after(200*time.Millisecond*time.Duration(w.o.ElectionTicks), func() {
			for b := range w.nodes {
				delete(w.cut, [2]int{b, i})
			}
		})
	})
}

// takesUp notes the hand-overs that a turn is about to take up.
func (n *node) takesUp(in []replica.Input) {
	n.taken = n.taken[:0]
	for _, i := range in {
		if m, ok := i.(replica.MoveLeader); ok {
			h := n.moves[m.Future]
			h.taken, h.before = n.clock(), n.host.Shards()[h.shard-1]
			if h.before.Leads {
				h.led = append(h.led, h.before.Term)
			}
			n.taken = append(n.taken, h)
		}
	}
}

// leads notes that a node was elected in a turn, which may also be the one in which it heard of another leader.
func (c *checker) leads(n *node, id shard.ID, term uint64) {
	at := slot{id, term}
	if old, ok := c.leaders[at]; ok && old != n.id {
		c.w.fail("election safety: nodes %d and %d both lead shard %d in term %d", old, n.id, id, term)
		return
	}
	if boot, ok := c.led[at]; ok && boot != n.boot {
		c.w.fail("election safety: node %d leads shard %d in term %d once more, after it was restarted", n.id, id, term)
		return
	}
	if _, ok := c.leaders[at]; !ok {
		c.leaders[at], c.led[at], c.ended[at] = n.id, n.boot, c.w.now
	}
	for _, h := range n.taken {
		if h.shard == id {
			h.led = append(h.led, term)
		}
	}
}

// moved checks the answer to a hand-over, which a node gave in the turn that c.status shows the end of.
func (c *checker) moved(n *node, h *handOver, r shard.Result) {
	now := c.status[h.shard-1]
	atOnce := slices.Contains(n.taken, h)
	fail := func(why string) {
		c.w.fail("hand-over of shard %d from node %d to %d, asked for in terms %d: the answer is %v, but %s", h.shard, n.id, h.to, h.led, r.Err, why)
	}
	switch kind := errs.KindOf(r.Err); {
	case kind != errs.Unavailable && kind != errs.Invalid && len(h.led) == 0:
		fail("it did not lead")
	case r.Err == nil && h.to == n.id:
	case r.Err == nil:
		c.w.stats.Moved++
		if !c.ledSince(h, now.Term) {
			fail("the other one has not led since")
		}
	case errors.Is(r.Err, shard.ErrNotLeader):
		if h.before.Leads && h.after.Leads && h.before.Term == h.after.Term {
			fail("it led before and after")
		}
	case errors.Is(r.Err, shard.ErrNoVoter):
		if to := c.w.nodes[h.to-1]; to.boot != 0 {
			if id := to.host.Shards()[h.shard-1].Replica; h.before.Voter(id) && h.after.Voter(id) {
				fail("the other one votes")
			}
		}
	case errors.Is(r.Err, shard.ErrMoveTimeout):
		if took := n.clock().Sub(h.taken); took < 2*100*time.Millisecond*time.Duration(c.w.o.ElectionTicks) {
			fail("it took only " + took.String())
		}
	case kind == errs.Unavailable && atOnce:
	case kind == errs.Conflict && atOnce && n.moving(h.shard):
	case kind == errs.Conflict:
		// Later ones may have been asked for later.
		if !slices.ContainsFunc(h.led, func(term uint64) bool {
			next := c.leaders[slot{h.shard, term + 1}]
			return next != 0 && next != h.to
		}) {
			fail("no other one led the term that followed")
		}
	case kind == errs.OutcomeUnknown:
	default:
		fail("no such answer was to be expected")
	}
}

// ledSince says whether the node that was to take over has led since it was asked for, in a later term than the other's, and
// not in a later one than upTo.
func (c *checker) ledSince(h *handOver, upTo uint64) bool {
	for term := h.led[0] + 1; term <= upTo; term++ {
		at := slot{h.shard, term}
		if end, ended := c.ended[at]; c.leaders[at] == h.to && !(ended && end.Before(h.at)) {
			return true
		}
	}
	return false
}

// moving says whether a node has a hand-over of a shard under way that it took up before.
func (n *node) moving(id shard.ID) bool {
	for _, h := range n.moves {
		if h.shard == id && !h.taken.IsZero() {
			return true
		}
	}
	return false
}
