package sim

import (
	"encoding/binary"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/replica"
	"github.com/quorate/quorate/internal/shard"
)

// client issues one operation after the other to nodes of its choice, and remembers what it was told.
type client struct {
	w  *world
	id int
	op *operation
	// proved says that a write was acknowledged after the healing.
	proved bool
	// tokens are the highest revisions that it was told of.
	tokens map[shard.ID]shard.Revision
}

type operation struct {
	client *client
	node   *node
	shard  shard.ID
	cmd    command
	read   bool
	future *shard.Future
	// floor is the highest revision of the shard that anyone had been told of when the operation began.
	floor shard.Revision
	// after says that it began after the healing.
	after bool
	// stale asks for a read that may be old, but not older than token.
	stale bool
	token shard.Revision
}

// next issues an operation.
func (c *client) next() {
	w := c.w
	if c.op != nil || w.err != nil || !w.chaos && c.proved {
		return
	}
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	if n.boot == 0 {
		c.later()
		return
	}
	id := shard.ID(1 + w.rng.IntN(w.o.Shards))
	op := &operation{client: c, node: n, shard: id, future: shard.NewFuture(), floor: w.check.floor[id], after: !w.chaos}
	w.nextID++
	op.cmd = command{op: opPut, key: byte(w.rng.IntN(3)), id: w.nextID, arg: uint64(w.rng.IntN(64))}
	if w.o.PadMax > 0 {
		op.cmd.pad = w.rng.IntN(w.o.PadMax)
	}
	switch r := w.rng.IntN(20); {
	case r < 7 && !op.after:
		op.read = true
		op.cmd.op = opGet
	case r == 7 && !op.after:
		op.read, op.stale = true, true
		op.cmd.op = opGet
		if w.rng.IntN(4) > 0 {
			op.token = c.tokens[id]
		}
	case r == 8 && !op.after:
		op.cmd.op = opFail
	case r == 9 && !op.after:
		op.cmd.op = opTimer
		op.cmd.arg = uint64(w.rng.Int64N(int64(3 * time.Second)))
	}
	c.op = op
	n.futures[op.future] = op
	deadline := n.clock().Add(time.Duration(500+w.rng.IntN(4000)) * time.Millisecond)
	w.check.issued(op)
	if w.o.LocalReads && op.stale && op.token == 0 {
		delete(n.futures, op.future)
		boot, m := n.boot, n.host.Machine(id)
		w.after(time.Duration(w.rng.IntN(2000))*time.Microsecond, func() { c.runRead(op, n, boot, m) })
		return
	}
	if op.read {
		n.give(replica.Read{Shard: id, Future: op.future, Deadline: deadline, Stale: op.stale, AtLeast: op.token})
	} else {
		n.give(replica.Propose{Shard: id, Command: shard.Command{Module: ledgerID, Data: op.cmd.encode()}, Future: op.future, Deadline: deadline})
	}
}

func (c *client) later() {
	c.w.after(time.Duration(1+c.w.rng.Int64N(int64(c.w.o.ThinkMax))), c.next)
}

// answer takes the result of a write, or the failure of a read.
func (c *client) answer(op *operation, r shard.Result) {
	if c.op != op {
		return
	}
	// The answer takes a moment to travel.
	c.finish(r)
}

func (c *client) finish(r shard.Result) {
	op := c.op
	c.op = nil
	w := c.w
	switch errs.KindOf(r.Err) {
	case 0:
		if !op.read {
			w.stats.Acked++
			w.check.acked(op, r)
			if op.after {
				c.proved = true
			}
		}
	case errs.OutcomeUnknown:
		w.stats.Unknown++
	default:
		w.stats.Failed++
		w.check.refused(op, r.Err)
	}
	c.later()
}

// runRead executes a released read.
func (c *client) runRead(op *operation, n *node, boot uint64, m *shard.Machine) {
	if c.op != op {
		return
	}
	if n.boot != boot {
		c.finish(shard.Result{Err: errs.New(errs.OutcomeUnknown, "connection lost")})
		return
	}
	b, err := m.Query(shard.Command{Module: ledgerID, Data: op.cmd.encode()})
	if errs.Is(err, errs.Corrupt) && c.w.broken[int(n.id)] {
		n.due()
		c.finish(shard.Result{Err: err})
		return
	}
	if errs.Is(err, errs.Unavailable) && m.Readable() != nil {
		c.w.stats.Rebuilding++
		c.finish(shard.Result{Err: err})
		return
	}
	if err != nil {
		c.w.fail("node %d: query: %v", n.id, err)
		return
	}
	c.w.stats.Reads++
	if op.token > 0 {
		c.w.stats.TokenReads++
	}
	c.w.check.read(op, shard.Revision(binary.LittleEndian.Uint64(b)), binary.LittleEndian.Uint64(b[8:]))
	c.finish(shard.Result{})
}
