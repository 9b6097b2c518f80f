package redis

import (
	"context"
	"sync"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// loneRead is a read whose answer the connection's goroutine does not wait for. When a client sends one short read and waits, and hardly
// anybody else asks, to wake a goroutine for the answer costs as much as all that is done there. So the goroutine reads on, and whoever
// learns the answer writes it, if the client's socket has room.
//
// The connection's out belongs to whoever answers until its goroutine has taken the read back, which it does before all else.
type loneRead struct {
	c   *conn
	cmd readCommand
	// ctx ends when the janitor gives up the wait.
	ctx context.Context

	// mu guards what follows, and out until the read is taken back.
	mu    sync.Mutex
	state loneState
	// back is closed when reply and err are there. It is made when the goroutine wants them.
	back  chan struct{}
	reply []byte
	err   error
}

type loneState uint8

const (
	loneAsked loneState = iota
	// loneAnswered: what the client's socket had no room for is still in the connection's out.
	loneAnswered
	// loneWanted: the connection's goroutine waits, since there is more input, or its end.
	loneWanted
)

// leave asks the connection's only read without waiting for it. It returns false, and has done nothing, if that has to be waited for.
func (c *conn) leave() bool {
	s := c.s
	if c.sock == nil {
		return false
	}
	if s.asking.Add(1) > s.cfg.askingMax {
		s.asking.Add(-1)
		return false
	}
	r := &c.reads
	c.seed++
	r.query = appendBatch(s, r.query[:0], c.seed, 1, r.body)
	req := c.request()
	l := &loneRead{c: c, cmd: r.cmds[0], ctx: req.Context}
	at, query := r.shard, r.query
	r.reset()
	c.left.Store(l)
	c.waitingSince.Store(s.tick.Load())
	s.client.Ask(req, shard.Route{Shard: at}, shard.Linearizable, shard.Command{Module: shard.ModuleDatatypes, Data: query}, l.answer)
	return true
}

// answer is called by whoever has the answer.
func (l *loneRead) answer(reply []byte, err error) {
	c := l.c
	c.s.asking.Add(-1)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.state {
	case loneWanted:
		l.reply, l.err = reply, err
		close(l.back)
	case loneAsked:
		l.state = loneAnswered
		c.waitingSince.Store(0)
		c.addRead(l.cmd, reply, err)
		if !c.writeSome() {
			c.wake(wakeLeft)
		}
	}
}

// takeBack waits until a read that was left is answered, and says whether the connection goes on.
func (c *conn) takeBack() bool {
	l := c.left.Load()
	if l == nil {
		return true
	}
	c.req = nil
	if l.want() {
		reply, err := l.wait()
		c.waitingSince.Store(0)
		c.addRead(l.cmd, reply, err)
	}
	c.left.Store(nil)
	return c.flush()
}

// want says whether there is no answer yet, which the caller has to wait for then.
func (l *loneRead) want() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == loneAnswered {
		return false
	}
	l.state, l.back = loneWanted, make(chan struct{})
	return true
}

// wait returns the answer, or an error when the janitor has given up.
func (l *loneRead) wait() ([]byte, error) {
	select {
	case <-l.back:
		return l.reply, l.err
	case <-l.ctx.Done():
		// The query may still be on its way, with this buffer.
		l.c.reads.query = nil
		return nil, errs.New(errs.Unavailable, "the read was not confirmed within the time limit; try again, or read through another node")
	}
}
