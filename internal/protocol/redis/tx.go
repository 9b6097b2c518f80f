package redis

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// Transactions.
//
// Behaviour: MULTI queues; EXEC runs everything as one command of one shard, and answers with null if a watched key has
// changed. A command that fails leaves the others done. One that cannot be queued makes EXEC fail with EXECABORT.
// Versions: as in Redis 7.0.
// Not supported: keys of several shards; commands without a key (KEYS, SCAN, FLUSHALL, ...) in a space of several shards.

// multi is a transaction being queued.
type multi struct {
	cmds []queuedCommand
	// body holds the commands that run in the shard; count is their number.
	body  []byte
	count int
	// at is the shard and slot the slot of the keys so far, if placed.
	at     shard.ID
	slot   int
	placed bool
	dirty  bool
	bytes  int
	// held is what of that counts in conn.held.
	held int
	// fences guard the transaction; writes says that the connection's does too.
	fences []datatypes.Fence
	writes bool
}

// queuedCommand is a command that runs in the shard, or one with args that the server runs itself.
type queuedCommand struct {
	cmd  *command
	args [][]byte
}

// watchedMax bounds the keys that a connection watches, which together may be as long as a command.
const watchedMax = 4096

func cmdMulti(c *conn, _ [][]byte) {
	if c.multi != nil {
		c.fail("ERR MULTI calls can not be nested")
		return
	}
	m := c.spareMulti
	if c.spareMulti = nil; m == nil {
		m = &multi{}
	}
	clear(m.cmds)
	*m = multi{slot: -1, cmds: m.cmds[:0], body: m.body[:0]}
	c.multi = m
	c.ok()
}

func cmdDiscard(c *conn, _ [][]byte) {
	if c.multi == nil {
		c.fail("ERR DISCARD without MULTI")
		return
	}
	c.endMulti()
	c.ok()
}

func (c *conn) endMulti() {
	// The next transaction uses its memory again, once this one is answered.
	if m := c.multi; m != nil && cap(m.body) <= outFlushBytes && cap(m.cmds) <= 64 {
		c.spareMulti = m
	}
	if c.multi != nil {
		c.held.Give(c.multi.held)
	}
	c.multi = nil
	c.queued.Store(0)
	c.unwatch()
}

// abortMulti remembers that a command could not be queued.
func (c *conn) abortMulti() {
	if c.multi != nil {
		c.multi.dirty = true
	}
}

// queue adds a command to the transaction, or answers why it cannot.
func (c *conn) queue(cmd *command, args [][]byte) {
	if err := c.enqueue(cmd, args); err != nil {
		c.abortMulti()
		c.error(err)
		return
	}
	c.queued.Store(int32(len(c.multi.cmds)))
	c.raw("+QUEUED\r\n")
}

func (c *conn) enqueue(cmd *command, args [][]byte) error {
	m := c.multi
	if cmd.Name == "fence" {
		return c.enqueueFence(args)
	}
	if cmd.Name == "client" && equalFold(args[1], "reply") {
		// In the middle of EXEC's answer, CLIENT REPLY would leave out part of it.
		return &errs.Error{Kind: errs.Invalid, Code: "ERR", Msg: "Command not allowed inside a transaction"}
	}
	size := 16 + datatypes.ArgsSize(args)
	m.bytes += size
	if m.bytes > datatypes.CommandBytesMax {
		return errs.New(errs.TooLarge, "the transaction is longer than the limit of %d bytes", datatypes.CommandBytesMax)
	}
	if !c.held.Hold(size) {
		return c.s.crowded()
	}
	m.held += size
	if cmd.local != nil {
		own := make([][]byte, len(args))
		for i, a := range args {
			own[i] = slices.Clone(a)
		}
		m.cmds = append(m.cmds, queuedCommand{cmd, own})
		return nil
	}
	at, slot, err := shard.ID(0), -1, error(nil)
	switch {
	case cmd.Group == "event":
		args, at, err = c.event(args)
	case cmd.Flags&datatypes.EveryShard != 0:
		if err = c.place(); err == nil && len(c.space.Shards) > 1 {
			err = errs.New(errs.Unsupported, "%s inside MULTI in a space of several shards", cmd.Name)
		} else if err == nil {
			at = c.space.Shards[0]
		}
	default:
		at, slot, err = c.route(cmd, args)
	}
	if err != nil {
		return err
	}
	if m.placed && (m.at != at || c.cluster && slot >= 0 && m.slot >= 0 && m.slot != slot) {
		return errCrossSlot("the commands of a transaction must be on one shard; give their keys, and the topic of an event, a common {tag}")
	}
	m.at, m.placed = at, true
	if slot >= 0 {
		m.slot = slot
	}
	m.body = datatypes.AppendSub(m.body, cmd.Op, args[1:])
	m.count++
	m.writes = m.writes || cmd.Flags&datatypes.Write != 0
	m.cmds = append(m.cmds, queuedCommand{cmd: cmd})
	return nil
}

func cmdExec(c *conn, _ [][]byte) {
	m := c.multi
	if m == nil {
		c.fail("ERR EXEC without MULTI")
		return
	}
	watched, watchShard := c.watched, c.watchShard
	c.endMulti()
	switch {
	case m.dirty:
		c.fail("EXECABORT Transaction discarded because of previous errors.")
		return
	case len(watched) > 0 && m.placed && watchShard != m.at:
		c.error(errCrossSlot("the watched keys are on another shard than the transaction"))
		return
	case len(watched) == 0 && m.count == 0 && len(m.fences) == 0:
		c.execResult(m, []byte("*0\r\n"))
		return
	case !m.placed && len(watched) > 0:
		m.at = watchShard
	case !m.placed:
		// Nothing but fences, which the first shard knows best.
		if err := c.place(); err != nil {
			c.error(err)
			return
		}
		m.at = c.space.Shards[0]
	}
	data := datatypes.EncodeExec(watched, m.count, m.body)
	if len(data) > datatypes.CommandBytesMax {
		c.error(errs.New(errs.TooLarge, "the transaction is longer than the limit of %d bytes", datatypes.CommandBytesMax))
		return
	}
	if m.writes || len(m.fences) > 0 {
		var err error
		if data, err = c.underFences(m.at, m.fences, data); err != nil {
			c.error(err)
			return
		}
	}
	f := c.s.client.Submit(c.request(), shard.Route{Shard: m.at}, shard.Command{Module: shard.ModuleDatatypes, Data: data})
	res := c.await(c.req.Context, f)
	c.req = nil
	if res.Err == nil {
		c.saw(m.at, res.Revision)
	}
	held := c.admit(&res)
	defer c.give(c.s.cfg.WriteAnswers, held)
	if res.Err != nil {
		c.error(res.Err)
		return
	}
	c.execResult(m, res.Data)
	// The last of it counts, too, until it is written.
	c.spill()
}

// execResult answers EXEC: the shard's answers, and between them those of the commands that the server runs itself.
func (c *conn) execResult(m *multi, data []byte) {
	kind, n, rest := splitHead(data)
	if kind == '_' {
		c.nullArray()
		return
	}
	if kind != '*' || n != m.count {
		c.error(errs.New(errs.Corrupt, "the answer to EXEC is malformed"))
		return
	}
	c.array(len(m.cmds))
	for _, q := range m.cmds {
		if !c.spill() {
			return
		}
		if q.cmd.local != nil {
			q.cmd.local(c, q.args)
			continue
		}
		next := skipValue(rest)
		c.out = appendReply(c.out, rest[:len(rest)-len(next)], c.proto, q.cmd.flat)
		rest = next
	}
	c.failed = false
}

func cmdWatch(c *conn, args [][]byte) {
	if c.multi != nil {
		c.fail("ERR WATCH inside MULTI is not allowed")
		return
	}
	keys := args[1:]
	if len(c.watched)+len(keys) > watchedMax {
		c.fail("ERR too many watched keys; the limit is " + strconv.Itoa(watchedMax))
		return
	}
	bytes := c.watchedBytes
	for _, k := range keys {
		if !c.watches(k) {
			bytes += len(k)
		}
	}
	if bytes > datatypes.CommandBytesMax {
		c.fail(fmt.Sprintf("ERR the watched keys are longer than the limit of %d bytes", datatypes.CommandBytesMax))
		return
	}
	at, _, err := c.route(c.s.commands["watch"], args)
	if err == nil && len(c.watched) > 0 && at != c.watchShard {
		err = errCrossSlot("all watched keys must be on one shard; give them a common {tag}")
	}
	more, before := bytes-c.watchedBytes, c.watchedBytes
	if err == nil && !c.held.Hold(more) {
		err = c.s.crowded()
	}
	if err != nil {
		c.error(err)
		return
	}
	// Keys that are named twice count once.
	defer func() { c.held.Give(more - (c.watchedBytes - before)) }()
	// A stale version would make EXEC fail, or worse, pass: versions are always linearizable.
	readonly := c.readonly
	c.readonly = false
	out, err := c.ask(at, datatypes.EncodeVersions(c.s.client.Now().UnixMilli(), keys))
	c.readonly = readonly
	if err != nil {
		c.error(err)
		return
	}
	versions, err := datatypes.DecodeVersions(out, len(keys))
	if err != nil {
		c.error(err)
		return
	}
	c.watchShard = at
	for i, k := range keys {
		// The first version counts: a key that is watched twice has been watched since the first time.
		if !c.watches(k) {
			c.watched = append(c.watched, datatypes.Watched{Key: slices.Clone(k), Version: versions[i]})
			c.watchedBytes += len(k)
		}
	}
	c.ok()
}

func cmdUnwatch(c *conn, _ [][]byte) {
	c.unwatch()
	c.ok()
}

func (c *conn) unwatch() {
	c.held.Give(c.watchedBytes)
	c.watched, c.watchedBytes = nil, 0
}

// watches says whether a key is watched.
func (c *conn) watches(key []byte) bool {
	return slices.ContainsFunc(c.watched, func(w datatypes.Watched) bool { return string(w.Key) == string(key) })
}
