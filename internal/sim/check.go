package sim

import (
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/replica"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// checker holds what is known from outside of the cluster, and compares after each step. The names in the messages are
// those of the Raft paper, figure 3.
type checker struct {
	w *world
	// leaders: shard and term to the node that led.
	leaders map[slot]shard.NodeID
	// led: shard and term to the start of the node in which it led.
	led map[slot]uint64
	// ended: shard and term to when its leader was seen to lead no more.
	ended map[slot]time.Time
	// entries: shard, index and term to the hash of the entry.
	entries map[entrySlot]uint64
	// before: shard, index and term to the term of the entry before it.
	before map[entrySlot]uint64
	// applied: shard and index to term and digest.
	applied map[slot]appliedAt
	// top: the highest applied position of a shard anywhere.
	top map[shard.ID]storage.Position
	// floor: the highest revision of a shard that any client was told of.
	floor map[shard.ID]shard.Revision
	// history: what each shard's change log was seen to hold, by position.
	history map[shard.ID][]seenChange
	ops     map[uint64]*opFate
	order   []uint64
	reads   []readSeen
	// seen: what each boot of a node last was.
	seen map[bootKey]bootState
	// status is scratch space of turn.
	status []replica.ShardStatus
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

type bootKey struct {
	boot  uint64
	shard shard.ID
}

// bootState is what must not go back while a process lives.
type bootState struct {
	// led is the term that the node leads in, 0 if it does not; last is the end of its log then.
	led, last             uint64
	term, commit, applied uint64
	rev                   shard.Revision
	replica               uint64
}

type opFate struct {
	shard shard.ID
	cmd   command
	acked bool
	// never says that the client was told that the operation was not and will not be applied.
	never bool
	rev   shard.Revision
}

type readSeen struct {
	shard shard.ID
	key   byte
	rev   shard.Revision
	id    uint64
}

func newChecker(w *world) *checker {
	return &checker{
		w: w, leaders: map[slot]shard.NodeID{}, led: map[slot]uint64{}, ended: map[slot]time.Time{}, entries: map[entrySlot]uint64{}, before: map[entrySlot]uint64{},
		applied: map[slot]appliedAt{},
		top:     map[shard.ID]storage.Position{}, floor: map[shard.ID]shard.Revision{}, ops: map[uint64]*opFate{},
		seen: map[bootKey]bootState{}, history: map[shard.ID][]seenChange{},
	}
}

// turn checks what a turn did, right after it.
func (c *checker) turn(n *node, ws []storage.Write) {
	c.status = n.host.AppendShards(c.status[:0])
	status := c.status
	c.writes(n, ws, status)
	for i := range status {
		if c.w.err == nil && !status[i].Awaiting {
			c.shardState(n, &status[i])
		}
	}
}

// writes checks Log Matching, that entries of equal index and term are equal everywhere, and Leader Append-Only, that a
// leader never overwrites an entry of its own log.
func (c *checker) writes(n *node, ws []storage.Write, status []replica.ShardStatus) {
	for _, w := range ws {
		if len(w.Entries) == 0 && w.Reset == nil {
			continue
		}
		k := bootKey{n.boot, w.Shard}
		if was, now := c.seen[k], status[w.Shard-1]; was.led != 0 && now.Leads && now.Term == was.led {
			if w.Reset != nil || w.Entries[0].Index != was.last+1 {
				c.w.fail("leader append-only: node %d leads shard %d in term %d with last index %d, and writes at %+v", n.id, w.Shard, was.led, was.last, w)
				return
			}
			was.last = w.Entries[len(w.Entries)-1].Index
			c.seen[k] = was
		}
		for _, e := range w.Entries {
			h := xxhash.Sum64(e.Data) + uint64(e.Type)
			k := entrySlot{slot{w.Shard, e.Index}, e.Term}
			if old, ok := c.entries[k]; ok && old != h {
				c.w.fail("log matching: shard %d index %d term %d differs on node %d", w.Shard, e.Index, e.Term, n.id)
				return
			}
			c.entries[k] = h
		}
	}
}

// logs checks all of a node's logs, when it starts.
func (c *checker) logs(n *node) {
	for _, s := range n.host.Shards() {
		if !s.Awaiting {
			first, _ := n.log.Bounds(s.ID)
			c.log(n, s.ID, first)
		}
	}
}

// log checks the other half of Log Matching, that equal entries stand behind equal entries, from an index on.
func (c *checker) log(n *node, id shard.ID, from uint64) {
	first, last := n.log.Bounds(id)
	from = max(from, first)
	if from > last {
		return
	}
	before, err := n.log.Term(id, from-1)
	if err != nil {
		c.w.fail("node %d shard %d: term of entry %d: %v", n.id, id, from-1, err)
		return
	}
	for i := from; i <= last; i++ {
		t, err := n.log.Term(id, i)
		if err != nil {
			c.w.fail("node %d shard %d: term of entry %d: %v", n.id, id, i, err)
			return
		}
		k := entrySlot{slot{id, i}, t}
		if was, ok := c.before[k]; ok && was != before {
			c.w.fail("log matching: shard %d index %d term %d stands behind term %d on node %d, and behind term %d elsewhere", id, i, t, before, n.id, was)
			return
		}
		c.before[k] = before
		before = t
	}
}

// shardState checks Election Safety, Leader Completeness, State Machine Safety, equal digests, and that nothing goes back.
func (c *checker) shardState(n *node, s *replica.ShardStatus) {
	k := bootKey{n.boot, s.ID}
	was, now := c.seen[k], bootState{term: s.Term, commit: s.Commit, applied: s.Applied, rev: s.Revision, replica: s.Replica}
	if was.replica == s.Replica && (now.term < was.term || now.commit < was.commit || now.applied < was.applied || now.rev < was.rev) {
		c.w.fail("node %d shard %d goes back: %+v after %+v", n.id, s.ID, now, was)
		return
	}
	if s.Leads {
		now.led, now.last = s.Term, s.Last
		if old, ok := c.leaders[slot{s.ID, s.Term}]; ok && old != n.id {
			c.w.fail("election safety: nodes %d and %d both lead shard %d in term %d", old, n.id, s.ID, s.Term)
			return
		}
		c.leaders[slot{s.ID, s.Term}] = n.id
		delete(c.ended, slot{s.ID, s.Term})
		// A node may learn late that it won a term, when a later one has begun and committed entries that it need not have.
		if top := c.top[s.ID]; was.led != s.Term && top.Index > s.Last && top.Term < s.Term {
			c.w.fail("leader completeness: node %d leads shard %d in term %d with last index %d, but %d is applied somewhere", n.id, s.ID, s.Term, s.Last, top.Index)
			return
		}
	}
	if was.led != 0 && was.led != now.led {
		c.ended[slot{s.ID, was.led}] = c.w.now
	}
	c.seen[k] = now
	if s.Applied > s.Commit {
		c.w.fail("node %d shard %d: applied %d is past commit %d", n.id, s.ID, s.Applied, s.Commit)
		return
	}
	m := n.host.Machine(s.ID)
	at := m.Applied()
	if at.Index == 0 || was.applied == s.Applied && was.replica == s.Replica {
		return
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

// died notes that a node leads no more.
func (c *checker) died(n *node) {
	for i := range c.w.o.Shards {
		id := shard.ID(i + 1)
		if was := c.seen[bootKey{n.boot, id}]; was.led != 0 {
			c.ended[slot{id, was.led}] = c.w.now
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
	c.told(op, r.Revision)
}

// told notes that a client was told of a revision.
func (c *checker) told(op *operation, rev shard.Revision) {
	c.floor[op.shard] = max(c.floor[op.shard], rev)
	op.client.tokens[op.shard] = max(op.client.tokens[op.shard], rev)
}

// refused notes a write that was certainly not applied.
func (c *checker) refused(op *operation, err error) {
	if op.read {
		return
	}
	switch k := errs.KindOf(err); {
	case k == errs.Overloaded:
		c.w.stats.Overloaded++
	case k != errs.Unavailable && !(k == errs.Conflict && op.cmd.op == opFail):
		c.w.fail("write %d failed with %v", op.cmd.id, err)
	}
	c.ops[op.cmd.id].never = true
}

// read checks that a read is no older than what had been answered before it began, or than its token.
func (c *checker) read(op *operation, rev shard.Revision, id uint64) {
	switch {
	case op.stale && rev < op.node.floor[op.shard]:
		c.w.fail("rebuilding read: shard %d at revision %d on node %d, which lost its state at %d", op.shard, rev, op.node.id, op.node.floor[op.shard])
	case op.stale && rev < op.token:
		c.w.fail("token read: shard %d at revision %d on node %d, but %d was asked for", op.shard, rev, op.node.id, op.token)
	case !op.stale && rev < op.floor:
		c.w.fail("stale read: shard %d at revision %d on node %d, but %d had been answered before it began", op.shard, rev, op.node.id, op.floor)
	}
	c.told(op, rev)
	c.reads = append(c.reads, readSeen{op.shard, op.cmd.key, rev, id})
}
