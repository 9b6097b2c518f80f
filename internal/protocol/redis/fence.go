package redis

import (
	"slices"
	"strconv"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
)

// FENCE lock token | FENCE lock token command [argument ...] | FENCE OFF
//
// Behaviour: what is written under a lock's token is done only if no later holder of the lock is known to the shard that is written to; on
// the lock's own shard, the first of the space, only while the token's holder still holds the lock. Otherwise the answer begins with FENCED
// and nothing was done. With a command it is for this one. Alone it is for every later write of the connection, until FENCE OFF or RESET, and
// in MULTI for the transaction. Reads are not fenced. A FENCE that cannot be understood makes the connection refuse to write until the
// next good one or FENCE OFF: who meant to be fenced must not write without.
// Versions: a command of Quorate.
// Not supported: a command that does not write behind the token.

// connFence is what a connection writes under.
type connFence struct {
	set   bool
	lock  []byte
	token int64
	// broken says why the last FENCE could not be understood; nothing is written then.
	broken string
}

// parseFence reads the lock and the token behind FENCE.
func parseFence(args [][]byte) (lock []byte, token int64, err error) {
	v := args[2][:min(len(args[2]), 32)]
	token, err = strconv.ParseInt(string(v), 10, 64)
	if err != nil || token < 1 {
		return nil, 0, errs.New(errs.Invalid, "fencing token '%s' is no number from 1; it is the creation revision of the holder's key", v)
	}
	return args[1], token, kv.CheckFence(args[1], token)
}

// cmdFence sets or ends the fence of the connection.
func cmdFence(c *conn, args [][]byte) {
	if len(args) == 2 {
		if !equalFold(args[1], "off") {
			c.fail("ERR wrong number of arguments for 'fence' command: FENCE lock token [command ...], or FENCE OFF")
			c.fence = connFence{set: true, broken: "the last FENCE had no token"}
			return
		}
		c.fence = connFence{}
		c.ok()
		return
	}
	lock, token, err := parseFence(args)
	if err != nil {
		c.error(err)
		c.fence = connFence{set: true, broken: err.Error()}
		return
	}
	c.fence = connFence{set: true, lock: slices.Clone(lock), token: token}
	c.ok()
}

// fenced runs a command that has a fence of its own.
func (c *conn) fenced(cmd *command, args [][]byte, mute bool) {
	lock, token, err := parseFence(args)
	inner, err := c.guarded(args, err)
	if err != nil {
		c.answer(cmd, mute, func() { c.error(err) })
		return
	}
	c.last.Store(inner)
	c.once = append(c.once[:0], datatypes.Fence{Lock: lock, Token: token})
	if inner.Flags&datatypes.EveryShard != 0 {
		c.answer(inner, mute, func() { c.everyShard(inner, args[3:]) })
	} else {
		c.data(inner, args[3:], mute)
	}
	c.once = c.once[:0]
}

// guarded finds the command behind a fence.
func (c *conn) guarded(args [][]byte, err error) (*command, error) {
	if err != nil {
		return nil, err
	}
	inner := c.s.find(args[3])
	name := args[3][:min(len(args[3]), 64)]
	switch {
	case inner == nil:
		return nil, errs.New(errs.Invalid, "unknown command '%s' behind FENCE", name)
	case inner.local != nil || inner.Flags&datatypes.Write == 0:
		return nil, errs.New(errs.Invalid, "'%s' behind FENCE does not write, and only writes are fenced; send it without FENCE", name)
	case !inner.ArityOK(len(args) - 3):
		return nil, &errs.Error{Kind: errs.Invalid, Code: "ERR", Msg: "wrong number of arguments for '" + inner.Name + "' command"}
	}
	return inner, nil
}

// underFences puts the fences in front of a write for a shard: those given, and the connection's.
func (c *conn) underFences(at shard.ID, own []datatypes.Fence, data []byte) ([]byte, error) {
	if !c.fence.set && len(own) == 0 {
		return data, nil
	}
	fences := slices.Clone(own)
	if c.fence.broken != "" {
		return nil, errs.New(errs.Fenced, "this connection does not write: %s; send FENCE again, or FENCE OFF", c.fence.broken)
	}
	if c.fence.set {
		fences = append(fences, datatypes.Fence{Lock: c.fence.lock, Token: c.fence.token})
	}
	for i := range fences {
		f := &fences[i]
		if f.Home = at == c.space.Shards[0]; f.Home {
			continue
		}
		c.waitingSince.Store(c.s.tick.Load())
		err := c.s.tokens.Check(c.request(), f.Lock, f.Token)
		c.waitingSince.Store(0)
		if err != nil {
			return nil, err
		}
	}
	return datatypes.EncodeFenced(fences, data), nil
}

// queuedFence stands for a FENCE in a transaction.
var queuedFence = &command{local: func(c *conn, _ [][]byte) { c.ok() }}

// enqueueFence makes the transaction depend on a token, and queues the command behind it, if there is one.
func (c *conn) enqueueFence(args [][]byte) error {
	if len(args) == 2 {
		return errs.New(errs.Invalid, "FENCE inside a transaction is FENCE lock token [command ...]; a transaction that has begun keeps its fence")
	}
	lock, token, err := parseFence(args)
	if err != nil {
		return err
	}
	m := c.multi
	if len(m.fences) == datatypes.FencesMax-1 {
		return errs.New(errs.TooLarge, "the transaction has %d fences, the most it may have", len(m.fences))
	}
	var inner *command
	if len(args) > 3 {
		if inner, err = c.guarded(args, nil); err != nil {
			return err
		}
	}
	m.fences = append(m.fences, datatypes.Fence{Lock: slices.Clone(lock), Token: token})
	if inner != nil {
		return c.enqueue(inner, args[3:])
	}
	m.cmds = append(m.cmds, queuedCommand{cmd: queuedFence})
	return nil
}
