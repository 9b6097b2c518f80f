package sim

import (
	"encoding/binary"
	"hash/fnv"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// checker holds what is known from outside of the cluster, and compares after each step. The names in the messages are
// those of the Raft paper, figure 3.
type checker struct {
	w *world
	// leaders: shard and term to the node that led.
	leaders map[slot]shard.NodeID
	// entries: shard, index and term to the hash of the entry.
	entries map[entrySlot]uint64
	// applied: shard and index to term and digest.
	applied map[slot]appliedAt
	// top: the highest applied position of a shard anywhere.
	top map[shard.ID]storage.Position
	// floor: the highest revision of a shard that any client was told of.
	floor map[shard.ID]shard.Revision
	// seen: per node boot, the last revision, to see that it never goes back.
	ops   map[uint64]*opFate
	order []uint64
	reads []readSeen
	// led: what each boot of a node leads, to notice new leaders.
	led map[leadKey]uint64
}

type slot struct {
	shard shard.ID
	n     uint64
}

type entrySlot struct {
	slot
	term uint64
}

type appliedAt struct{ term, digest uint64 }

type leadKey struct {
	boot  uint64
	shard shard.ID
}

type opFate struct {
	shard shard.ID
	cmd   command
	acked bool
	// never says that the client was told that the operation was not and will not be applied.
	never bool
	rev   shard.Revision
	stamp int64
}

type readSeen struct {
	shard shard.ID
	key   byte
	rev   shard.Revision
	id    uint64
}

func newChecker(w *world) *checker {
	return &checker{
		w: w, leaders: map[slot]shard.NodeID{}, entries: map[entrySlot]uint64{}, applied: map[slot]appliedAt{},
		top: map[shard.ID]storage.Position{}, floor: map[shard.ID]shard.Revision{}, ops: map[uint64]*opFate{},
		led: map[leadKey]uint64{},
	}
}

// writes checks Log Matching: entries of equal index and term are equal everywhere.
func (c *checker) writes(n *node, ws []storage.Write) {
	for _, w := range ws {
		for _, e := range w.Entries {
			h := fnv.New64a()
			_, _ = h.Write([]byte{e.Type})
			_, _ = h.Write(e.Data)
			k := entrySlot{slot{w.Shard, e.Index}, e.Term}
			if old, ok := c.entries[k]; ok && old != h.Sum64() {
				c.w.fail("log matching: shard %d index %d term %d differs on node %d", w.Shard, e.Index, e.Term, n.id)
			}
			c.entries[k] = h.Sum64()
		}
	}
}

// state checks Election Safety, Leader Completeness, State Machine Safety and equal digests.
func (c *checker) state(n *node) {
	for _, s := range n.host.Shards() {
		if s.Awaiting {
			continue
		}
		if s.Leads {
			if old, ok := c.leaders[slot{s.ID, s.Term}]; ok && old != n.id {
				c.w.fail("election safety: nodes %d and %d both lead shard %d in term %d", old, n.id, s.ID, s.Term)
				return
			}
			c.leaders[slot{s.ID, s.Term}] = n.id
			if k := (leadKey{n.boot, s.ID}); c.led[k] != s.Term {
				c.led[k] = s.Term
				if top := c.top[s.ID]; top.Index > s.Last {
					c.w.fail("leader completeness: node %d leads shard %d in term %d with last index %d, but %d is applied somewhere", n.id, s.ID, s.Term, s.Last, top.Index)
					return
				}
			}
		}
		if s.Applied > s.Commit {
			c.w.fail("node %d shard %d: applied %d is past commit %d", n.id, s.ID, s.Applied, s.Commit)
			return
		}
		m := n.host.Machine(s.ID)
		at := m.Applied()
		if at.Index == 0 {
			continue
		}
		got := appliedAt{at.Term, m.Digest()}
		if want, ok := c.applied[slot{s.ID, at.Index}]; ok && want != got {
			c.w.fail("state machine safety: shard %d at index %d: node %d has %+v, another had %+v", s.ID, at.Index, n.id, got, want)
			return
		}
		c.applied[slot{s.ID, at.Index}] = got
		if top := c.top[s.ID]; at.Index > top.Index {
			c.top[s.ID] = at
		}
	}
}

func (c *checker) issued(op *operation) {
	if op.read {
		return
	}
	c.ops[op.cmd.id] = &opFate{shard: op.shard, cmd: op.cmd}
	c.order = append(c.order, op.cmd.id)
}

// acked notes a write that the client was told of.
func (c *checker) acked(op *operation, r shard.Result) {
	f := c.ops[op.cmd.id]
	f.acked, f.rev = true, r.Revision
	if r.Revision <= op.floor {
		c.w.fail("write %d got revision %d, but %d had been answered before it began", op.cmd.id, r.Revision, op.floor)
	}
	if op.cmd.op == opPut && (len(r.Data) != 8 || binary.LittleEndian.Uint64(r.Data) != 1) {
		c.w.fail("exactly once: write %d was applied before: %x", op.cmd.id, r.Data)
	}
	c.floor[op.shard] = max(c.floor[op.shard], r.Revision)
}

// refused notes a write that was certainly not applied.
func (c *checker) refused(op *operation, err error) {
	if op.read {
		return
	}
	f := c.ops[op.cmd.id]
	f.never = true
	if op.cmd.op == opFail && errs.Is(err, errs.Conflict) {
		return
	}
}

// read checks that a read is no older than what had been answered before it began.
func (c *checker) read(op *operation, rev shard.Revision, id uint64) {
	if rev < op.floor {
		c.w.fail("stale read: shard %d at revision %d on node %d, but %d had been answered before it began", op.shard, rev, op.node.id, op.floor)
	}
	c.floor[op.shard] = max(c.floor[op.shard], rev)
	c.reads = append(c.reads, readSeen{op.shard, op.cmd.key, rev, id})
}

// final compares the settled cluster with the history.
func (c *checker) final() {
	for i := range c.w.o.Shards {
		id := shard.ID(i + 1)
		for _, n := range c.w.nodes {
			c.finalShard(n, id)
			if c.w.err != nil {
				return
			}
		}
	}
}

func (c *checker) finalShard(n *node, id shard.ID) {
	w, m := c.w, n.host.Machine(id)
	changes := c.history(m, id)
	if w.err != nil {
		return
	}
	for _, opID := range c.order {
		f := c.ops[opID]
		if f.shard != id {
			continue
		}
		b, err := m.Query(shard.Command{Module: ledgerID, Data: command{op: opCount, id: opID}.encode()})
		if err != nil {
			w.fail("node %d: query: %v", n.id, err)
			return
		}
		applied, fired := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
		switch {
		case f.acked && applied == 0:
			w.fail("acknowledged write %d of shard %d is lost on node %d", opID, id, n.id)
		case applied > 1:
			w.fail("exactly once: operation %d was applied %d times on node %d", opID, applied, n.id)
		case f.never && applied > 0:
			w.fail("operation %d was refused, and applied all the same, on node %d", opID, n.id)
		case f.cmd.op == opFail && applied > 0:
			w.fail("operation %d returned an error, but its writes stayed on node %d", opID, n.id)
		case fired > applied:
			w.fail("timer of operation %d fired %d times (1000 means too early) on node %d", opID, fired, n.id)
		}
		if ch, ok := changes.byRev[f.rev]; f.acked && f.cmd.op == opPut && (!ok || ch != opID) {
			w.fail("the change log of node %d has %d at revision %d, want write %d", n.id, ch, f.rev, opID)
		}
		if w.err != nil {
			return
		}
		w.stats.Timers += int(fired)
	}
	for _, r := range c.reads {
		if r.shard != id {
			continue
		}
		if want := changes.at(r.key, r.rev); want != r.id {
			w.fail("a read of shard %d key %d at revision %d returned write %d, but %d was the last", id, r.key, r.rev, r.id, want)
			return
		}
	}
}

// changeHistory is the order of writes as a shard's change log tells it.
type changeHistory struct {
	byRev map[shard.Revision]uint64
	revs  map[byte][]shard.Revision
	ids   map[byte][]uint64
}

func (h *changeHistory) at(key byte, rev shard.Revision) uint64 {
	id := uint64(0)
	for i, r := range h.revs[key] {
		if r > rev {
			break
		}
		id = h.ids[key][i]
	}
	return id
}

func (c *checker) history(m *shard.Machine, id shard.ID) *changeHistory {
	h := &changeHistory{byRev: map[shard.Revision]uint64{}, revs: map[byte][]shard.Revision{}, ids: map[byte][]uint64{}}
	pos, last := uint64(0), shard.Revision(0)
	for {
		cs, err := m.Changes(pos, 4096)
		if err != nil {
			c.w.fail("shard %d: change log: %v", id, err)
			return h
		}
		if len(cs.Changes) == 0 {
			if pos != cs.End {
				c.w.fail("shard %d: change log ends at %d, its bound is %d", id, pos, cs.End)
			}
			return h
		}
		for _, ch := range cs.Changes {
			if ch.Revision <= last {
				c.w.fail("shard %d: change log goes back from revision %d to %d", id, last, ch.Revision)
			}
			last = ch.Revision
			op := binary.LittleEndian.Uint64(ch.Value)
			h.byRev[ch.Revision] = op
			h.revs[ch.Key[0]] = append(h.revs[ch.Key[0]], ch.Revision)
			h.ids[ch.Key[0]] = append(h.ids[ch.Key[0]], op)
		}
		pos += uint64(len(cs.Changes))
	}
}
