package redis

import (
	"context"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// data hands in a command that runs in one shard.
func (c *conn) data(cmd *command, args [][]byte, mute bool) {
	var at shard.ID
	var err error
	if cmd.Group == "event" {
		args, at, err = c.event(args)
	} else {
		at, _, err = c.route(cmd, args)
	}
	if err != nil {
		c.answer(cmd, mute, func() { c.error(err) })
		return
	}
	if cmd.Flags&datatypes.Write == 0 {
		c.read(cmd, at, args[1:], mute)
		return
	}
	c.write(cmd, at, args[1:], mute)
}

func (c *conn) write(cmd *command, at shard.ID, args [][]byte, mute bool) {
	c.settleReads()
	data, err := c.underFences(at, c.once, datatypes.EncodeCommand(cmd.Op, args))
	if err != nil {
		c.answer(cmd, mute, func() { c.error(err) })
		return
	}
	c.submit(pending{cmd: cmd, shard: at, mute: mute, value: cmd.answersValue(args)}, data)
}

// submit hands in a command of the log, within the connection's bounds.
func (c *conn) submit(p pending, data []byte) {
	if len(c.pending) >= inFlightMax || c.pendingBytes > 0 && c.pendingBytes+len(data) > inFlightBytes ||
		p.value && c.pendingValues >= valuesInFlightMax {
		c.settle()
	}
	if p.value {
		c.pendingValues++
	}
	p.future = c.s.client.Submit(c.request(), shard.Route{Shard: p.shard}, shard.Command{Module: shard.ModuleDatatypes, Data: data})
	c.pending = append(c.pending, p)
	c.pendingBytes += len(data)
}

func (c *conn) request() *request {
	if c.req == nil {
		c.req = &request{c.context(), c.s.client.Now().Add(c.s.cfg.RequestTimeout)}
	}
	return c.req
}

func (c *conn) read(cmd *command, at shard.ID, args [][]byte, mute bool) {
	c.settleWrites()
	if n := len(c.reads.cmds); n > 0 && (c.reads.shard != at || n >= inFlightMax || len(c.reads.body) > inFlightBytes/4) {
		c.settleReads()
	}
	c.reads.shard = at
	c.reads.body = datatypes.AppendSub(c.reads.body, cmd.Op, args)
	c.reads.cmds = append(c.reads.cmds, readCommand{cmd, mute})
}

// settle awaits all outstanding answers.
func (c *conn) settle() {
	c.settleWrites()
	c.settleReads()
}

// settleWrites awaits the answers to the commands handed in, in their order.
func (c *conn) settleWrites() {
	if len(c.pending) == 0 {
		return
	}
	ctx := c.req.Context
	for i := range c.pending {
		p := &c.pending[i]
		r := c.result(ctx, p)
		c.addResult(p, r.Result)
		// They hold the answer, which the client may take its time to read.
		p.future, p.early, r.Result = nil, nil, shard.Result{}
		if len(c.out) > outFlushBytes && !c.flush() {
			// The client is gone. The remaining answers interest nobody, but order within the connection does not matter
			// any more either: it ends.
			c.closing = true
		}
		c.give(c.s.cfg.WriteAnswers, r.held)
	}
	clear(c.pending)
	if cap(c.pending) > 64 && len(c.pending) < 16 {
		c.pending = nil
	}
	c.pending, c.pendingBytes, c.pendingValues = c.pending[:0], 0, 0
	// The next wait gets its own time.
	c.req = nil
}

// result waits for the answer to a command handed in, and counts it.
func (c *conn) result(ctx context.Context, p *pending) result {
	if p.early != nil {
		return *p.early
	}
	r := result{Result: c.await(ctx, p.future)}
	r.held = c.admit(&r.Result)
	return r
}

// countEarly counts what has been answered behind the one that is being written, so that it does not wait uncounted for the client to take that.
func (c *conn) countEarly() {
	for i := range c.pending {
		p := &c.pending[i]
		if !p.value || p.future == nil {
			continue
		}
		select {
		case <-p.future.Done():
			r := c.result(c.s.ctx, p)
			p.early, p.future = &r, nil
		default:
		}
	}
}

// await waits for one answer; the janitor ends the wait when it takes too long.
func (c *conn) await(ctx context.Context, f *shard.Future) shard.Result {
	select {
	case <-f.Done():
		return f.Wait(c.s.ctx)
	default:
	}
	c.waitingSince.Store(c.s.tick.Load())
	defer c.waitingSince.Store(0)
	select {
	case <-f.Done():
		return f.Wait(c.s.ctx)
	case <-ctx.Done():
		return shard.Result{Err: errs.New(errs.OutcomeUnknown, "no answer within the time limit; the request may have been or may still be applied: look before you repeat it")}
	}
}

// addResult adds the answer to a command of the log.
func (c *conn) addResult(p *pending, res shard.Result) {
	start := len(c.out)
	c.failed = false
	if res.Revision != 0 {
		c.saw(p.shard, res.Revision)
	}
	switch {
	case res.Err != nil:
		c.error(res.Err)
	default:
		c.out = appendReply(c.out, res.Data, c.proto, p.cmd.flat)
	}
	p.cmd.metric.count(c.failed)
	if p.mute {
		c.out = c.out[:start]
	}
}

func (c *conn) saw(at shard.ID, rev shard.Revision) {
	for i := range c.seen {
		if c.seen[i].shard == at {
			c.seen[i].rev = max(c.seen[i].rev, rev)
			return
		}
	}
	if len(c.seen) < 64 {
		c.seen = append(c.seen, seenRevision{at, rev})
	}
}

// consistency says how fresh reads must be: linearizable, or after READONLY whatever this node has that is not older than
// the connection's own writes.
func (c *conn) consistency(at shard.ID) shard.Consistency {
	if !c.readonly {
		return shard.Linearizable
	}
	info, ok := c.topo.Shard(at)
	if !ok || !holds(info, c.topo.Self) {
		return shard.Linearizable
	}
	for _, s := range c.seen {
		if s.shard == at {
			return shard.Consistency{Stale: true, AtLeast: s.rev}
		}
	}
	if len(c.seen) == 64 {
		return shard.Linearizable
	}
	return shard.Consistency{Stale: true}
}

// ask runs a query and waits for it.
func (c *conn) ask(at shard.ID, q []byte) ([]byte, error) {
	req := c.request()
	c.s.asking.Add(1)
	defer c.s.asking.Add(-1)
	c.waitingSince.Store(c.s.tick.Load())
	out, err := c.s.client.Query(req, shard.Route{Shard: at}, c.consistency(at), shard.Command{Module: shard.ModuleDatatypes, Data: q})
	c.waitingSince.Store(0)
	c.req = nil
	return out, err
}

// query runs one read of the table and waits for it.
func (c *conn) query(at shard.ID, op datatypes.Op, args [][]byte) ([]byte, error) {
	c.seed++
	out, err := c.ask(at, datatypes.AppendQuery(nil, op, c.s.client.Now().UnixMilli(), c.seed, args))
	c.keepOut(len(out))
	return out, err
}

// settleReads runs the collected reads.
func (c *conn) settleReads() {
	r := &c.reads
	if len(r.cmds) == 0 {
		return
	}
	batch := 0
	r.query = readAll(r.query, len(r.cmds), r.body, func(buf []byte, n int, body []byte) ([]byte, []byte, error) {
		c.seed++
		q := appendBatch(c.s, buf, c.seed, n, body)
		answers, err := c.ask(r.shard, q)
		if n > 1 && len(answers) > datatypes.LargeBytes {
			// They wait here while the client takes the first of them.
			batch = len(answers)
			c.keep(batch)
		}
		return q, answers, err
	}, func(i int, reply []byte, rest int, err error) {
		if rest == 0 {
			c.give(c.s.cfg.Answers, batch)
			batch = 0
		}
		c.addRead(r.cmds[i], reply, err)
		if len(c.out) > outFlushBytes && !c.flush() {
			c.closing = true
		}
	})
	c.give(c.s.cfg.Answers, batch)
	r.reset()
}

// reset makes room for more reads.
func (r *readBatch) reset() {
	if cap(r.body) > outFlushBytes {
		r.body, r.query = nil, nil
	}
	if cap(r.cmds) > 64 && len(r.cmds) < 16 {
		r.cmds = nil
	}
	r.body, r.cmds = r.body[:0], r.cmds[:0]
}

// appendBatch appends the query of n reads that were made with datatypes.AppendSub.
func appendBatch(s *Server, buf []byte, seed uint64, n int, body []byte) []byte {
	return datatypes.AppendBatch(buf, s.client.Now().UnixMilli(), seed, n, body)
}

// readAll runs n reads, made with datatypes.AppendSub, as one query unless their answers are long, and gives each its answer in their order.
// ask makes the query in buf, runs it and returns both. rest is how much more of an answer's query is held. What readAll returns is for the next call's buf.
func readAll(
	buf []byte, n int, body []byte, ask func(buf []byte, n int, body []byte) (query, answers []byte, err error), each func(i int, reply []byte, rest int, err error),
) []byte {
	for done := 0; done < n; {
		first := done
		query, answers, err := ask(buf[:0], n-first, body)
		buf = query
		for err == nil && done < n && (len(answers) > 0 || done == first) {
			one := answers
			if n-first == 1 {
				answers = nil
			} else if one, answers, err = datatypes.NextAnswer(answers); err != nil {
				break
			}
			if body, err = datatypes.SkipSub(body); err != nil {
				break
			}
			if done++; len(answers) == 0 {
				// What is left of them would hold the last once more, for as long as its client takes to read it.
				each(done-1, one, 0, nil)
				break
			}
			each(done-1, one, len(answers), nil)
		}
		if err != nil {
			for ; done < n; done++ {
				each(done, nil, 0, err)
			}
			// A query that was given up may still be on its way, with this buffer.
			return nil
		}
	}
	return buf
}

// gathers says whether a gatherer serves the command when it comes alone.
func (r readCommand) gathers() bool { return !r.mute && r.cmd.gathers() }

func (c *conn) addRead(rc readCommand, reply []byte, err error) {
	failed := err != nil || len(reply) > 0 && reply[0] == '-'
	rc.cmd.metric.count(failed)
	if rc.mute {
		return
	}
	if err != nil {
		c.error(err)
		return
	}
	c.keepOut(len(reply))
	c.out = appendReply(c.out, reply, c.proto, rc.cmd.flat)
}
