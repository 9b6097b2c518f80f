package redis

import (
	"context"
	"errors"
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/shard"
)

// A gatherer serves many connections whose clients send one short read and wait for its answer. Apart, each such read costs two switches of
// goroutines, a call of the system in vain, and a query. Together, what has arrived on all connections meanwhile is read in one go, asked as
// one query for each shard, and answered.
//
// A connection gets there after it has sent Config.loneMin such reads in a row, if Config.gatherMin are open. Its goroutine sleeps from then on, and gets it back with
// whatever the gatherer does not serve: another command, several requests at once, half of one, the end of the input, an answer for which the
// client's socket has no room, or a reason to wake. So gatherers need no part of what else a connection does.
type gatherer struct {
	s    *Server
	epfd int
	file *os.File

	// What follows is the polling goroutine's.
	events [128]syscall.EpollEvent
	ready  []readiness
	asked  []*gathered

	// mu guards what follows, and what the kernel polls.
	mu     sync.Mutex
	closed bool
	conns  map[int32]*conn
	shards map[shard.ID]*gathered
}

// gathered are the requests for one shard.
type gathered struct {
	at shard.ID
	// next are those that wait, spare is room for more. Both are guarded by mu, and so is running, which says whether a goroutine asks them.
	next, spare batch
	running     bool
	query       []byte
	seed        uint64
}

type readiness struct {
	c      *conn
	events uint32
}

type batch struct {
	body  []byte
	reads []gatheredRead
}

type gatheredRead struct {
	c   *conn
	cmd *command
}

// gathering is a connection's state with its gatherer.
type gathering struct {
	state atomic.Int32
	// The rest is set before the connection is gathered first, and stays.
	g    *gatherer
	fd   int
	back chan struct{}
}

const (
	// gatherNot: the connection's goroutine serves it.
	gatherNot = iota
	// gatherWaiting: it is polled.
	gatherWaiting
	// gatherBusy: whoever made it so serves its request, and makes it waiting again or gives it back.
	gatherBusy
	// gatherMore is busy, and input has come behind the request.
	gatherMore
	// gatherWanted is busy, to be given back.
	gatherWanted
)

// gatherers are a server's: made when they are needed, as many as goroutines run at once. The zero value is ready.
type gatherers struct {
	mu   sync.Mutex
	list []*gatherer
}

// get returns the gatherer of a connection.
func (gs *gatherers) get(s *Server, id int64) (*gatherer, error) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if gs.list == nil {
		gs.list = make([]*gatherer, runtime.GOMAXPROCS(0))
	}
	i := id % int64(len(gs.list))
	if gs.list[i] == nil {
		g, err := newGatherer(s)
		if err != nil {
			return nil, err
		}
		gs.list[i] = g
	}
	return gs.list[i], nil
}

// close ends the gatherers. No connection may be open.
func (gs *gatherers) close() {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for _, g := range gs.list {
		if g != nil {
			g.end()
			_ = g.file.Close()
		}
	}
}

func newGatherer(s *Server) (*gatherer, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	// The runtime polls the poll set like any file, so that no thread waits in it.
	if err := syscall.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl", err), syscall.Close(fd))
	}
	g := &gatherer{s: s, epfd: fd, file: os.NewFile(uintptr(fd), "epoll"), conns: map[int32]*conn{}, shards: map[shard.ID]*gathered{}}
	raw, err := g.file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, g.file.Close())
	}
	s.wg.Go(func() {
		var failed error
		err := raw.Read(func(uintptr) bool {
			failed = g.poll()
			return failed != nil
		})
		if g.end() {
			s.log.Error("polling of Redis connections failed; each is served by itself from now on", "error", errors.Join(failed, err))
		}
	})
	return g, nil
}

// gather lets a gatherer serve the connection until it gives it back. It returns false if none can.
func (c *conn) gather() bool {
	c.lone = 0
	if c.s.conns.Len() < c.s.cfg.gatherMin {
		return false
	}
	served := false
	if c.sock != nil {
		_ = c.sock.Control(func(fd uintptr) { served = c.gathering.serve(c, int(fd)) })
	}
	if !served {
		// With TLS, or without descriptors, it will not be another time either.
		c.lone = math.MinInt
	}
	return served
}

// serve polls a connection until it is given back. It is called by the connection's goroutine, and returns false if that has to go on alone.
func (gt *gathering) serve(c *conn, fd int) bool {
	if gt.g == nil {
		g, err := c.s.gatherers.get(c.s, c.id)
		if err != nil {
			c.s.log.Warn("cannot poll Redis connections; each is served by itself", "error", err)
			return false
		}
		gt.g, gt.fd, gt.back = g, fd, make(chan struct{}, 1)
	}
	if !gt.g.take(c) {
		return false
	}
	if c.wakeReason.Load() != 0 {
		// Who woke it may have come before it could be woken.
		gt.end()
	}
	<-gt.back
	return true
}

func (g *gatherer) take(c *conn) bool {
	gt := &c.gathering
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	if err := gt.poll(syscall.EPOLL_CTL_ADD); err != nil {
		return false
	}
	g.conns[int32(gt.fd)] = c
	gt.state.Store(gatherWaiting)
	return true
}

// poll asks for an event when there is input or its end: at once if there is, and whenever more has come.
func (gt *gathering) poll(op int) error {
	e := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLRDHUP | epollET, Fd: int32(gt.fd)}
	return syscall.EpollCtl(gt.g.epfd, op, gt.fd, &e)
}

// epollET is syscall.EPOLLET as the kernel has it.
const epollET = 1 << 31

// end gives the connection back, at once or once its request is answered. It may be called from any goroutine.
func (gt *gathering) end() {
	for {
		switch was := gt.state.Load(); was {
		case gatherWaiting:
			if gt.state.CompareAndSwap(gatherWaiting, gatherBusy) {
				gt.g.giveBack(gt)
				return
			}
		case gatherBusy, gatherMore:
			if gt.state.CompareAndSwap(was, gatherWanted) {
				return
			}
		default:
			return
		}
	}
}

// giveBack gives a connection to its goroutine. The caller made it busy.
func (g *gatherer) giveBack(gt *gathering) {
	g.mu.Lock()
	// It can fail only if the descriptor is not polled, which is what is wanted.
	_ = syscall.EpollCtl(g.epfd, syscall.EPOLL_CTL_DEL, gt.fd, nil)
	delete(g.conns, int32(gt.fd))
	gt.state.Store(gatherNot)
	g.mu.Unlock()
	gt.back <- struct{}{}
}

// served makes a busy connection wait for more, or gives it back if that was wanted.
func (g *gatherer) served(gt *gathering) {
	switch {
	case gt.state.CompareAndSwap(gatherBusy, gatherWaiting):
	case gt.state.CompareAndSwap(gatherMore, gatherWaiting):
		// The event of that input is gone. If this fails the connection was given back meanwhile.
		_ = gt.poll(syscall.EPOLL_CTL_MOD)
	default:
		g.giveBack(gt)
	}
}

// end gives all connections back, and takes in no more. It says whether it was the first to.
func (g *gatherer) end() bool {
	g.mu.Lock()
	first := !g.closed
	g.closed = true
	var open []*conn
	for _, c := range g.conns {
		open = append(open, c)
	}
	g.mu.Unlock()
	for _, c := range open {
		c.gathering.end()
	}
	return first
}

// poll serves what has arrived until nothing is left.
func (g *gatherer) poll() error {
	for {
		n, err := syscall.EpollWait(g.epfd, g.events[:], 0)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return os.NewSyscallError("epoll_wait", err)
		case n == 0:
			return nil
		default:
			g.round(g.events[:n])
		}
	}
}

func (g *gatherer) round(events []syscall.EpollEvent) {
	g.ready = g.ready[:0]
	g.mu.Lock()
	for i := range events {
		// What was given back meanwhile is not there, or is another by now, which then has no input: see read.
		if c := g.conns[events[i].Fd]; c != nil {
			g.ready = append(g.ready, readiness{c, events[i].Events})
		}
	}
	g.mu.Unlock()
	n := int64(0)
	for _, r := range g.ready {
		if g.read(r.c, r.events) {
			n++
		}
	}
	g.s.processed.Add(n)
	for _, b := range g.asked {
		g.s.wg.Go(func() { g.run(b) })
	}
	g.asked = g.asked[:0]
}

// read reads from a connection, and says whether that was a request that the gatherer serves.
func (g *gatherer) read(c *conn, events uint32) bool {
	gt := &c.gathering
	if events&(syscall.EPOLLRDHUP|syscall.EPOLLHUP|syscall.EPOLLERR) != 0 {
		gt.end()
		return false
	}
	for !gt.state.CompareAndSwap(gatherWaiting, gatherBusy) {
		// The client may have its answer before the connection is made waiting.
		if gt.state.CompareAndSwap(gatherBusy, gatherMore) || gt.state.Load() != gatherWaiting && gt.state.Load() != gatherBusy {
			return false
		}
	}
	room := c.p.room()
	n, err := syscall.Read(gt.fd, room)
	for errors.Is(err, syscall.EINTR) {
		n, err = syscall.Read(gt.fd, room)
	}
	switch {
	case errors.Is(err, syscall.EAGAIN):
		g.served(gt)
		return false
	case err == nil && n > 0:
		c.filled(n)
		c.refresh()
		// A read that left no room may have left input, of which there will be no event.
		if n < len(room) && g.add(c) {
			return true
		}
	}
	g.giveBack(gt)
	return false
}

// add takes a connection's request in. It returns false, and leaves the input as it is, unless it is one that the gatherer serves.
func (g *gatherer) add(c *conn) bool {
	if c.p.buf[c.p.r] != '*' {
		return false
	}
	start := c.p.r
	args, _, err := c.p.next()
	if err != nil || args == nil {
		// An error is found again, and half of a request is gone on with.
		return false
	}
	cmd := c.s.find(args[0])
	if c.p.r-start <= bufferBytesMin && !c.p.partial() && cmd != nil && cmd.gathers() && cmd.ArityOK(len(args)) {
		if at, _, err := c.route(cmd, args); err == nil {
			c.last.Store(cmd)
			g.enqueue(at, cmd, args[1:], c)
			return true
		}
	}
	c.p.unread(start)
	return false
}

func (g *gatherer) enqueue(at shard.ID, cmd *command, args [][]byte, c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	b := g.shards[at]
	if b == nil {
		b = &gathered{at: at, seed: uint64(c.id)<<32 ^ uint64(at)}
		g.shards[at] = b
	}
	b.next.body = datatypes.AppendSub(b.next.body, cmd.Op, args)
	b.next.reads = append(b.next.reads, gatheredRead{c, cmd})
	if !b.running {
		b.running = true
		g.asked = append(g.asked, b)
	}
}

// run asks and answers what waits for a shard, until nothing does.
func (g *gatherer) run(b *gathered) {
	for {
		g.mu.Lock()
		now := b.next
		if b.running = len(now.reads) > 0; !b.running {
			g.mu.Unlock()
			return
		}
		b.next = b.spare
		g.mu.Unlock()
		g.answer(b, now)
		if cap(now.body) > outFlushBytes {
			now.body, b.query = nil, nil
		}
		clear(now.reads)
		g.mu.Lock()
		b.spare = batch{now.body[:0], now.reads[:0]}
		g.mu.Unlock()
	}
}

// answer asks the requests of a batch together, and answers each.
func (g *gatherer) answer(b *gathered, now batch) {
	s := g.s
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.RequestTimeout)
	defer cancel()
	b.query = readAll(b.query, len(now.reads), now.body, func(buf []byte, n int, body []byte) ([]byte, []byte, error) {
		b.seed++
		q := appendBatch(s, buf, b.seed, n, body)
		answers, err := s.client.Query(ctx, shard.Route{Shard: b.at}, shard.Linearizable, shard.Command{Module: shard.ModuleDatatypes, Data: q})
		return q, answers, err
	}, func(i int, reply []byte, _ int, err error) {
		r := now.reads[i]
		r.c.addRead(readCommand{cmd: r.cmd}, reply, err)
		if r.c.writeNow(r.c.gathering.fd) {
			g.served(&r.c.gathering)
		} else {
			// Its goroutine waits for room, or finds the connection broken.
			g.giveBack(&r.c.gathering)
		}
	})
}
