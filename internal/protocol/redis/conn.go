package redis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/protocol/conns"
	"github.com/quorate/quorate/internal/shard"
)

// Reasons to wake a connection from its read.
const (
	wakeShutdown = 1
	wakePartial  = 2
	wakeKilled   = 4
	// wakeLeft: there is something to do for a read that was left to others.
	wakeLeft = 8
)

// conn is one client's connection. Its goroutine owns every field that is not said to be shared.
type conn struct {
	s    *Server
	nc   net.Conn
	id   int64
	addr string
	born time.Time

	p parser
	// held is what of the parser's buffer, the transaction and the watched keys counts for all connections together.
	held *conns.Holder
	out  []byte
	// large is what the connection holds of large answers, and largeOut what of that lasts until out is empty. Both belong to who owns out.
	large, largeOut int
	proto           int
	// failed says that the answer being made is an error, mute that it is not sent. start is where it begins in out, unless part of it was
	// written already.
	failed, mute bool
	start        int
	// closing ends the connection once what is in out was written.
	closing bool
	// replies says which answers are sent: see CLIENT REPLY.
	replies replyMode
	// cluster and readonly: see the package comment and READONLY.
	cluster, readonly bool

	topo  *shard.Topology
	space shard.Space

	// pending are writes handed in, whose answers are outstanding. reads are reads not yet handed in. At most one of the
	// two holds anything.
	pending       []pending
	pendingBytes  int
	pendingValues int
	reads         readBatch
	req           *request
	seed          uint64
	// seen remembers the revisions of this connection's writes, for stale reads that see them.
	seen []seenRevision

	multi, spareMulti *multi

	// added is the event of the command being run, addedArgs and addedHead its arguments as they go to the shard.
	added     datatypes.Event
	addedArgs [][]byte
	addedHead []byte

	// began is the tick from which on the request that arrives has its time, and ended what the parser had counted then.
	began int64
	ended uint64

	// lone counts the requests in a row that came alone and that a gatherer would serve.
	lone int
	// leaves says that the client sends lone reads, whose answers others write through sock, if there is one.
	leaves bool
	sock   syscall.RawConn
	// gathering is the gatherer's, while it serves the connection.
	gathering gathering

	// fence is what the connection writes under, once what the command being run does.
	fence connFence
	once  []datatypes.Fence

	watched []datatypes.Watched
	// watchedBytes is the length of the watched keys.
	watchedBytes int
	// watchShard holds the watched keys.
	watchShard shard.ID

	// The rest is shared with the janitor, CLIENT LIST and CLIENT KILL.
	wakeReason   atomic.Int32
	left         atomic.Pointer[loneRead]
	waitingSince atomic.Int64
	writingSince atomic.Int64
	partialSince atomic.Int64
	lastRead     atomic.Int64
	largeSince   atomic.Int64
	last         atomic.Pointer[command]
	queued       atomic.Int32
	// mu guards wait and the names.
	mu                    sync.Mutex
	wait                  context.Context
	cancelWait            context.CancelFunc
	name, libName, libVer string
	shownProto            int
}

type replyMode uint8

const (
	repliesOn replyMode = iota
	repliesOff
	// repliesSkip leaves out the answer to CLIENT REPLY SKIP itself, repliesSkipNext the one after it.
	repliesSkip
	repliesSkipNext
)

type pending struct {
	cmd    *command
	shard  shard.ID
	future *shard.Future
	mute   bool
	// value says that the answer may hold a value.
	value bool
	// early is the result, if it was counted before its turn.
	early *result
}

// result is one of which held bytes are counted.
type result struct {
	shard.Result
	held int
}

type readBatch struct {
	shard shard.ID
	body  []byte
	cmds  []readCommand
	query []byte
}

type readCommand struct {
	cmd  *command
	mute bool
}

type seenRevision struct {
	shard shard.ID
	rev   shard.Revision
}

// request is the context of what is handed in together. Its deadline travels with the commands; waiting for them is ended by
// the janitor, through the context below.
type request struct {
	context.Context
	deadline time.Time
}

// Deadline implements context.Context.
func (r *request) Deadline() (time.Time, bool) { return r.deadline, true }

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{s: s, nc: nc, sock: socket(nc), id: s.nextID.Add(1), addr: nc.RemoteAddr().String(), born: s.client.Now(), proto: 2, shownProto: 2}
	c.wait, c.cancelWait = context.WithCancel(s.ctx)
	c.held = s.cfg.Requests.Holder()
	c.p.holder = c.held
	c.seed = uint64(c.id)<<32 ^ uint64(c.born.UnixNano())
	c.lastRead.Store(s.tick.Load())
	return c
}

// wake makes the connection's read return at once.
func (c *conn) wake(reason int32) {
	c.wakeReason.Or(reason)
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	c.gathering.end()
}

// kill closes the connection, once a read that a gatherer has asked for it is answered, which has a time limit of its own.
func (c *conn) kill() {
	c.wake(wakeKilled)
	_ = c.nc.Close()
}

// giveUp ends the wait for an answer. It is called by the janitor.
func (c *conn) giveUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancelWait()
}

// context returns what the connection waits with, a new one after a wait was given up.
func (c *conn) context() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wait.Err() != nil && c.s.ctx.Err() == nil {
		c.wait, c.cancelWait = context.WithCancel(c.s.ctx)
	}
	return c.wait
}

func (c *conn) serve() {
	defer func() {
		_ = c.nc.Close()
		c.giveUp()
		c.held.Give(int(c.held.Held()))
		c.out = c.out[:0]
		c.emptied()
	}()
	for c.fill() && c.turn() {
		if !c.gathered() {
			break
		}
	}
	if c.closing {
		c.linger()
	}
}

// gathered lets a gatherer serve the connection while it can, and says whether the connection goes on.
func (c *conn) gathered() bool {
	for c.lone >= c.s.cfg.loneMin && c.gather() {
		if !c.turn() {
			return false
		}
	}
	return true
}

// turn does what the input asks for, and says whether the connection goes on.
func (c *conn) turn() bool {
	c.req = nil
	c.refresh()
	n := c.parse()
	c.forgetEvent()
	if r := c.reads.cmds; n == 1 && len(r) == 1 && r[0].gathers() && !c.p.partial() && !c.readonly {
		c.lone++
		c.leaves = c.leaves || c.lone >= c.s.cfg.leaveMin
		// A gatherer may be about to serve it.
		if c.leaves && c.lone < c.s.cfg.loneMin && c.leave() {
			return true
		}
	} else {
		c.lone, c.leaves = min(c.lone, 0), false
	}
	c.settle()
	return c.flush() && !c.closing
}

// fill reads more input, and says whether the connection goes on.
func (c *conn) fill() bool {
	more := c.input()
	// What came is behind a read that was left to others, and so is the end.
	return c.takeBack() && more
}

// input reads more, or else says that the connection is at its end.
func (c *conn) input() bool {
	if c.p.partial() {
		tick := c.s.tick.Load()
		if c.began == 0 || c.ended != c.p.ended {
			// Until now the server was busy with what came before.
			c.began, c.ended = tick, c.p.ended
		}
		c.lastRead.Store(tick)
		c.partialSince.Store(c.began)
		defer c.partialSince.Store(0)
	}
	for {
		switch why := c.wakeReason.Load(); {
		case why&(wakeShutdown|wakeKilled) != 0:
			return false
		case why&wakeLeft != 0:
			c.wakeReason.And(^int32(wakeLeft))
			if !c.takeBack() {
				return false
			}
		}
		n, err := c.nc.Read(c.p.room())
		if n > 0 {
			c.filled(n)
			return true
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			why := c.wakeReason.Load()
			if why&(wakeShutdown|wakeKilled) != 0 {
				return false
			}
			if why&wakePartial != 0 && c.overdue(c.s.tick.Load()) {
				c.s.log.Warn("closed a Redis connection whose request did not arrive in time", "addr", c.addr, "client_id", c.id)
				c.fail("ERR Protocol error: the request was begun but did not arrive in time")
				c.closing = c.flush()
				return false
			}
			// The input arrived just before the janitor's verdict.
			c.wakeReason.And(^int32(wakePartial))
			_ = c.nc.SetReadDeadline(time.Time{})
			continue
		}
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			c.s.log.Debug("read from a Redis connection failed", "addr", c.addr, "client_id", c.id, "error", err)
		}
		if err != nil {
			return false
		}
	}
}

// overdue says whether the request that has begun takes too long to arrive. It may be called from any goroutine.
func (c *conn) overdue(now int64) bool {
	began, last := c.partialSince.Load(), c.lastRead.Load()
	return began != 0 && (now-last > c.s.ticks(c.s.cfg.PartialTimeout) || now-began > c.s.ticks(10*c.s.cfg.PartialTimeout))
}

// linger lets the client have its last answers: what a socket that is closed with input unread has not sent yet is lost.
func (c *conn) linger() {
	w, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || w.CloseWrite() != nil || c.nc.SetReadDeadline(time.Now().Add(lingerTimeout)) != nil {
		return
	}
	if c.wakeReason.Load()&(wakeShutdown|wakeKilled) == 0 {
		_, _ = io.CopyN(io.Discard, c.nc, lingerBytesMax)
	}
}

// filled takes in n bytes of input.
func (c *conn) filled(n int) {
	c.p.filled(n)
	c.lastRead.Store(c.s.tick.Load())
	c.s.metric.readBytes.Add(float64(n))
}

// parse runs every complete request of the input, and returns their number.
func (c *conn) parse() (n int64) {
	for !c.closing {
		args, tooLong, err := c.p.next()
		if err != nil {
			c.settle()
			c.s.metric.protocolErrors.Inc()
			c.fail("ERR " + err.Error())
			c.closing = true
			break
		}
		if tooLong {
			c.answer(nil, c.muted(), func() {
				c.abortMulti()
				if c.p.crowded {
					c.error(c.s.crowded())
					return
				}
				c.fail(fmt.Sprintf("ERR the request is longer than the limit of %d bytes; send it in smaller parts", datatypes.CommandBytesMax))
			})
			continue
		}
		if args == nil {
			break
		}
		n++
		c.handle(args)
		if len(c.out) > outFlushBytes && !c.flush() {
			c.closing = true
		}
	}
	c.s.processed.Add(n)
	return n
}

// flush writes the answers out.
func (c *conn) flush() bool {
	if len(c.out) == 0 {
		c.emptied()
		return true
	}
	var err error
	// Each piece has its own time: a client that reads slowly is not one that does not read.
	for rest := c.out; len(rest) > 0 && err == nil; rest = rest[min(len(rest), outFlushBytes):] {
		if c.pendingValues > 0 {
			c.countEarly()
		}
		c.writingSince.Store(c.s.tick.Load())
		_, err = c.nc.Write(rest[:min(len(rest), outFlushBytes)])
	}
	c.writingSince.Store(0)
	c.written(len(c.out))
	return err == nil
}

// written takes the first n bytes off the answers.
func (c *conn) written(n int) {
	c.s.metric.writtenBytes.Add(float64(n))
	c.out = c.out[:copy(c.out, c.out[n:])]
	if len(c.out) == 0 {
		c.emptied()
	}
}

// muted says whether the answer to the next request is not sent.
func (c *conn) muted() bool {
	mute := c.replies != repliesOn
	if c.replies == repliesSkipNext {
		c.replies = repliesOn
	}
	return mute
}

// handle runs one request: it hands it in, or answers it.
func (c *conn) handle(args [][]byte) {
	cmd, mute := c.s.find(args[0]), c.muted()
	switch {
	case cmd == nil:
		c.answer(nil, mute, func() { c.unknown(args) })
		return
	case !cmd.ArityOK(len(args)) || cmd.subs != nil:
		if why := cmd.wrong(args); why != "" {
			c.answer(cmd, mute, func() { c.refuse(cmd, why) })
			return
		}
	}
	c.last.Store(cmd)
	switch {
	case c.multi != nil && cmd.Flags&immediate == 0:
		c.answer(cmd, mute, func() { c.queue(cmd, args) })
	case cmd.Name == "fence" && len(args) > 3:
		c.fenced(cmd, args, mute)
	case cmd.local != nil:
		c.answer(cmd, mute, func() { cmd.local(c, args) })
	case cmd.Flags&datatypes.EveryShard != 0:
		c.answer(cmd, mute, func() { c.everyShard(cmd, args) })
	default:
		c.data(cmd, args, mute)
	}
}

// answer runs f, which adds one answer, once all earlier answers are there.
func (c *conn) answer(cmd *command, mute bool, f func()) {
	c.settle()
	before := c.replies
	c.start, c.mute, c.failed = len(c.out), mute, false
	f()
	if before == repliesOff && c.replies == repliesOn {
		// RESET is answered, and so is CLIENT REPLY ON, behind SKIP too.
		c.mute = false
	}
	if cmd == nil {
		c.s.metric.unknown.count(true)
	} else {
		cmd.metric.count(c.failed)
	}
	if c.mute || c.replies == repliesOff || c.replies == repliesSkip {
		c.out = c.out[:c.start]
	}
	if c.replies == repliesSkip {
		c.replies = repliesSkipNext
	}
}

// spill makes room for more of a long answer that answer runs: it writes out what is there, or forgets it if it is not to be sent. It
// returns false if the client is gone.
func (c *conn) spill() bool {
	switch {
	case len(c.out) <= outFlushBytes:
	case c.mute:
		c.out = c.out[:c.start]
	case !c.flush():
		c.closing = true
		return false
	default:
		c.start = 0
	}
	return true
}

// refuse answers a request that is wrong in a way that makes a transaction fail.
func (c *conn) refuse(cmd *command, why string) {
	if cmd.Name == "exec" {
		// It ends the transaction, if there is one, as in Redis.
		c.endMulti()
		why = "EXECABORT Transaction discarded because of: " + strings.TrimPrefix(why, "ERR ")
	}
	c.abortMulti()
	c.fail(why)
}

// unknown answers a command that is not in the table.
func (c *conn) unknown(args [][]byte) {
	name := string(args[0])
	low := strings.ToLower(name)
	if low == "post" || low == "host:" {
		// A browser was made to talk to this port: see "cross-protocol scripting" in the Redis security notes.
		c.s.log.Warn("closed a connection that speaks HTTP to the Redis port; possibly a cross-protocol attack", "addr", c.addr)
		c.s.metric.protocolErrors.Inc()
		c.closing = true
		return
	}
	c.abortMulti()
	if why, ok := unsupportedCommands.why(low); ok {
		c.fail("ERR unsupported command '" + low + "': " + why)
		return
	}
	var b strings.Builder
	for _, a := range args[1:] {
		if b.Len() >= 128 {
			break
		}
		fmt.Fprintf(&b, "'%s' ", a[:min(len(a), 128-b.Len())])
	}
	c.fail(fmt.Sprintf("ERR unknown command '%s', with args beginning with: %s", name[:min(len(name), 128)], b.String()))
}

// crowded is the error for what the node has no room for.
func (s *Server) crowded() error {
	return errs.New(errs.Overloaded, "more than %d bytes of requests wait on this node; nothing was done; send smaller requests, or ask another node", s.cfg.Requests.Max())
}

// refresh takes the newest topology.
func (c *conn) refresh() {
	if t := c.s.client.Topology(); t != c.topo {
		c.topo = t
		// A space without shards counts as unknown.
		c.space, _ = t.Space(c.s.cfg.Space)
	}
}

// place fails as long as the space is not known.
func (c *conn) place() error {
	if len(c.space.Shards) == 0 {
		return errs.New(errs.Unavailable, "the space %q is not known on this node yet", c.s.cfg.Space)
	}
	return nil
}

// route finds the shard of a request by its keys. slot is -1 where it was not needed.
func (c *conn) route(cmd *command, args [][]byte) (at shard.ID, slot int, err error) {
	if err := c.place(); err != nil {
		return 0, -1, err
	}
	slot = -1
	if len(c.space.Shards) == 1 && !c.cluster {
		for i := range cmd.Keys(len(args)) {
			if len(args[i]) > datatypes.KeyBytesMax {
				return 0, -1, errKeyTooLong(len(args[i]))
			}
		}
		return c.space.Shards[0], -1, nil
	}
	for i := range cmd.Keys(len(args)) {
		if len(args[i]) > datatypes.KeyBytesMax {
			return 0, -1, errKeyTooLong(len(args[i]))
		}
		sl := datatypes.Slot(args[i])
		id := c.space.SlotShard(sl)
		if slot >= 0 && (id != at || c.cluster && int(sl) != slot) {
			return 0, -1, errCrossSlot("Keys in request don't hash to the same slot")
		}
		at, slot = id, int(sl)
	}
	return at, slot, c.moved(cmd, at, slot)
}

// moved returns the redirection of a cluster client to the leader of its key, nil if there is none to give.
func (c *conn) moved(cmd *command, at shard.ID, slot int) error {
	if !c.cluster || slot < 0 || !c.s.cfg.ClusterMode {
		return nil
	}
	info, ok := c.topo.Shard(at)
	if !ok || info.Leader == 0 || info.Leader == c.topo.Self {
		return nil
	}
	if c.readonly && cmd.Flags&datatypes.ReadOnly != 0 && holds(info, c.topo.Self) {
		return nil
	}
	n, ok := c.topo.Node(info.Leader)
	if !ok || n.Addr["redis"] == "" {
		return nil
	}
	return &errs.Error{Kind: errs.Unavailable, Code: "MOVED", Msg: fmt.Sprintf("%d %s", slot, n.Addr["redis"])}
}

func holds(info shard.ShardInfo, id shard.NodeID) bool {
	for _, r := range info.Replicas {
		if r == id {
			return true
		}
	}
	return false
}

func errCrossSlot(msg string) error {
	return &errs.Error{Kind: errs.Invalid, Code: "CROSSSLOT", Msg: msg}
}

func errKeyTooLong(n int) error {
	return errs.New(errs.TooLarge, "key of %d bytes is longer than the limit of %d", n, datatypes.KeyBytesMax)
}
