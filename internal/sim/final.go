package sim

import (
	"encoding/binary"
	"math"
	"sort"

	"github.com/quorate/quorate/internal/shard"
)

// final compares the settled cluster with what clients were told.
func (c *checker) final() {
	for i := range c.w.o.Shards {
		id := shard.ID(i + 1)
		cs, err := c.w.nodes[0].host.Machine(id).Changes(math.MaxUint64, 1)
		if err != nil {
			c.w.fail("shard %d: end of the change log: %v", id, err)
			return
		}
		h := c.changes(id, cs.End)
		for _, n := range c.w.nodes {
			c.finalShard(n, id, h)
			if c.w.err != nil {
				return
			}
		}
		for _, r := range c.reads {
			if r.shard != id {
				continue
			}
			if want, sure := h.at(r.key, r.rev); sure && want != r.id {
				c.w.fail("a read of shard %d key %d at revision %d returned write %d, but %d was the last", id, r.key, r.rev, r.id, want)
				return
			}
		}
	}
}

// finalShard looks at one node's state of a shard.
func (c *checker) finalShard(n *node, id shard.ID, h *changeHistory) {
	w := c.w
	b, err := n.host.Machine(id).Query(shard.Command{Module: ledgerID, Data: command{op: opAll}.encode()})
	if err != nil {
		w.fail("node %d: query: %v", n.id, err)
		return
	}
	counts := map[countOf]uint64{}
	for ; len(b) >= 17; b = b[17:] {
		counts[countOf{b[0], binary.LittleEndian.Uint64(b[1:])}] = binary.LittleEndian.Uint64(b[9:])
	}
	for _, opID := range c.order {
		f := c.ops[opID]
		if f.shard != id {
			continue
		}
		applied, fired := counts[countOf{'o', opID}], counts[countOf{'t', opID}]
		switch {
		case f.acked && applied == 0:
			w.fail("acknowledged write %d of shard %d is lost on node %d", opID, id, n.id)
		case applied > 1:
			w.fail("exactly once: operation %d was applied %d times on node %d", opID, applied, n.id)
		case f.never && applied > 0:
			w.fail("operation %d was refused, and applied all the same, on node %d", opID, n.id)
		case f.cmd.op == opFail && applied > 0:
			w.fail("operation %d returned an error, but its writes stayed on node %d", opID, n.id)
		case f.cmd.op == opTimer && fired != applied:
			w.fail("timer of operation %d, applied %d times, fired %d times (1000 means too early) on node %d", opID, applied, fired, n.id)
		}
		if ch, ok := h.byRev[f.rev]; f.acked && f.cmd.op == opPut && ch != opID && (ok || h.complete(f.rev-1, f.rev)) {
			w.fail("the change log of shard %d has %d at revision %d, want write %d", id, ch, f.rev, opID)
		}
		if w.err != nil {
			return
		}
		delete(counts, countOf{'o', opID})
		delete(counts, countOf{'t', opID})
		w.stats.Timers += int(fired)
	}
	if len(counts) > 0 {
		w.fail("node %d shard %d counts operations that nobody issued: %v", n.id, id, counts)
		return
	}
	for _, f := range n.followers {
		cs, err := n.host.Machine(f.id).Changes(f.pos, 1)
		if err != nil || cs.End != f.pos {
			w.fail("a follower of shard %d on node %d was left at %d of %d: %v", f.id, n.id, f.pos, cs.End, err)
			return
		}
	}
}

type countOf struct {
	kind byte
	id   uint64
}

// changeHistory is the order of writes as a shard's change log told it.
type changeHistory struct {
	// holes are what was trimmed before anyone read it.
	holes []hole
	byRev map[shard.Revision]uint64
	revs  map[byte][]shard.Revision
	ids   map[byte][]uint64
}

// hole stands for changes with revisions between those of the changes around it.
type hole struct{ after, before shard.Revision }

// complete says that no change with after < revision <= upTo is missing.
func (h *changeHistory) complete(after, upTo shard.Revision) bool {
	for _, x := range h.holes {
		if after+1 < x.before && upTo > x.after {
			return false
		}
	}
	return true
}

// at returns the last write of a key at a revision. It is not sure of one that a missing change may have overwritten.
func (h *changeHistory) at(key byte, rev shard.Revision) (id uint64, sure bool) {
	revs := h.revs[key]
	i := sort.Search(len(revs), func(i int) bool { return revs[i] > rev })
	if i == 0 {
		return 0, h.complete(0, rev)
	}
	return h.ids[key][i-1], h.complete(revs[i-1], rev)
}

// changes collects what was seen of a shard's change log, which ends at end.
func (c *checker) changes(id shard.ID, end uint64) *changeHistory {
	h := &changeHistory{byRev: map[shard.Revision]uint64{}, revs: map[byte][]shard.Revision{}, ids: map[byte][]uint64{}}
	missed, last := false, shard.Revision(0)
	for _, ch := range c.history[id] {
		if ch.rev == 0 {
			missed = true
			continue
		}
		if missed {
			missed = false
			h.holes = append(h.holes, hole{last, ch.rev})
		}
		last = ch.rev
		h.byRev[ch.rev] = ch.op
		h.revs[ch.key] = append(h.revs[ch.key], ch.rev)
		h.ids[ch.key] = append(h.ids[ch.key], ch.op)
	}
	if missed || uint64(len(c.history[id])) < end {
		h.holes = append(h.holes, hole{last, math.MaxUint64})
	}
	return h
}
