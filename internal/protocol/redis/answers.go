package redis

import (
	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
)

// Large answers, those of more than datatypes.LargeBytes, are counted for all connections together until their clients have taken them.
//
//   - Those of reads count in Config.Answers, where datatypes.Module has counted them before while it made them: it refuses what would be too much.
//   - Those of writes, EXEC among them, are there when the write is done. They count in Config.WriteAnswers, so that none is lost because others are
//     slow to take what they have read. One for which there is no room is dropped, and its client is told.
//
// A client that takes nothing loses its connection after Config.WriteTimeout. While much is held, one that takes little does so, too: see slow.

// keep counts n bytes of what a read answered, which was let in when it was made, until they are given back.
func (c *conn) keep(n int) {
	c.s.cfg.Answers.Keep(int64(n))
	c.holds(n)
}

// keepOut counts an answer that a read adds to out until all that is there has been written.
func (c *conn) keepOut(n int) {
	if n > datatypes.LargeBytes {
		c.largeOut += n
		c.keep(n)
	}
}

// admit counts what a write answered, if it is large, and returns how much that is. It puts an error in its place if there is no room.
func (c *conn) admit(res *shard.Result) int {
	n := len(res.Data)
	switch {
	case n <= datatypes.LargeBytes:
		return 0
	case c.s.cfg.WriteAnswers.Take(int64(n)) != nil:
		res.Data, res.Err = nil, &errs.Error{Kind: errs.OutcomeUnknown, Code: "UNKNOWN", Msg: "the request was done, but the node has no room for its answer, since too many clients do not read theirs; look before you repeat it"}
		return 0
	}
	c.holds(n)
	return n
}

func (c *conn) holds(n int) {
	if c.large == 0 {
		c.largeSince.Store(c.s.tick.Load())
	}
	c.large += n
}

// give gives back what was counted in a budget.
func (c *conn) give(b *kv.Budget, n int) {
	if n == 0 {
		return
	}
	b.Give(int64(n))
	if c.large -= n; c.large == 0 {
		c.largeSince.Store(0)
	}
}

// emptied is called when all of out has been written, or nothing was there.
func (c *conn) emptied() {
	if cap(c.out) > 4*outFlushBytes {
		c.out = nil
	}
	c.give(c.s.cfg.Answers, c.largeOut)
	c.largeOut = 0
}

// scarce says whether so much of the room for large answers is taken that others may be refused theirs.
func (s *Server) scarce() bool { return s.cfg.Answers.Scarce() || s.cfg.WriteAnswers.Scarce() }

// slow says whether the client has a large answer for longer than is good for others, if there are any that want room. It may be called from any
// goroutine.
func (c *conn) slow(now int64) bool {
	since := c.largeSince.Load()
	return since != 0 && c.writingSince.Load() != 0 && now-since > c.s.ticks(c.s.cfg.WriteTimeout)
}
