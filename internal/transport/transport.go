// Package transport carries frames between the nodes of a cluster, over one TCP stream a node and direction.
//
// Frames may be lost: when a link is down or its queue is full they are dropped, as the raft above expects of a network.
// They are never damaged (each has a checksum) and come in order within one connection. Format: docs/formats/peer.md.
package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
)

// NodeID numbers a node within its cluster.
type NodeID = uint32

// Config describes a node's links.
type Config struct {
	// Cluster is the cluster's name and Shards its number of shards; nodes that have others are refused.
	Cluster string
	Shards  uint32
	// Self is this node; Peers the addresses of all others.
	Self  NodeID
	Peers map[NodeID]string
	// Hello is shown to each peer on connection; it holds what the peer should know of this node. At most 64 KiB.
	Hello []byte
	// QueueBytesMax bounds what waits for one peer, with what is being sent to it; default 64 MiB. Past it frames are dropped. A link
	// has up to 1 MiB of buffers besides.
	QueueBytesMax int
	// FrameBytesMax bounds a frame; default 64 MiB.
	FrameBytesMax int
	// OnFrame is called with each frame that arrives; it owns the slice, and must not block for long.
	OnFrame func(from NodeID, frame []byte)
	// OnLink is called when the link to a peer comes up or goes down. refused means that nothing listens there.
	OnLink func(to NodeID, up, refused bool)
	// OnHello is called with what a peer shows.
	OnHello func(from NodeID, hello []byte)
}

// Transport holds a node's links. Make it with New, give it a listener with Serve, and end it with Close.
type Transport struct {
	cfg   Config
	env   *env.Env
	log   *slog.Logger
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	links map[NodeID]*link

	mu    sync.Mutex
	ln    net.Listener
	conns map[net.Conn]struct{}
	// strangers are the incoming connections that have not shown yet who they are, oldest first.
	strangers []net.Conn
	// refusals holds why links are refused; it is small, since all who are no peers share one.
	refusals map[direction]*refusal
}

// link sends to one peer.
type link struct {
	t    *Transport
	to   NodeID
	addr string
	wake chan struct{}

	// bytes are those of the frames in queue, and of those that the pump has taken from it and not sent yet.
	mu      sync.Mutex
	queue   [][]byte
	bytes   int
	dropped uint64
	up      bool
	raw     syscall.RawConn

	// wmu is held by whoever writes to the connection. rest is the part of a frame, one of at most pieceBytes, that did not fit into
	// the socket; buf is reused.
	wmu  sync.Mutex
	rest []byte
	buf  []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	magic          = "QRTPEER1"
	helloBytesMax  = 64 << 10
	handshakeLimit = 5 * time.Second
	// strangersMax bounds the incoming connections that have not shown who they are. The oldest goes: a peer shows it at once.
	strangersMax = 64
	redialMin    = 20 * time.Millisecond
	redialMax    = 500 * time.Millisecond
	// pieceBytes is about how much is written to a connection at once. A peer that takes none of that for pieceLimit is given up: it
	// is the time without progress that counts, since a large frame over a slow link takes long.
	pieceBytes = 256 << 10
	pieceLimit = 10 * time.Second
	// ackLimit is how long a peer may confirm nothing, and what waits for it may still fit into the buffers of the system.
	ackLimit = 5 * time.Second
)

// New starts the links of a node. It does not fail: peers that cannot be reached are tried again.
func New(cfg Config, e *env.Env, log *slog.Logger) *Transport {
	if cfg.QueueBytesMax == 0 {
		cfg.QueueBytesMax = 64 << 20
	}
	if cfg.FrameBytesMax == 0 {
		cfg.FrameBytesMax = 64 << 20
	}
	ctx, stop := context.WithCancel(context.Background())
	t := &Transport{
		cfg: cfg, env: e, log: log, ctx: ctx, stop: stop, links: map[NodeID]*link{}, conns: map[net.Conn]struct{}{},
		refusals: map[direction]*refusal{},
	}
	for id, addr := range cfg.Peers {
		l := &link{t: t, to: id, addr: addr, wake: make(chan struct{}, 1)}
		t.links[id] = l
		t.wg.Add(1)
		go l.run()
	}
	return t
}

// Send queues a frame for a peer and returns at once. The slice must not be changed afterwards.
func (t *Transport) Send(to NodeID, frame []byte) {
	l := t.links[to]
	if l == nil {
		return
	}
	l.mu.Lock()
	if !l.up || l.bytes+len(frame) > t.cfg.QueueBytesMax {
		l.dropped++
		l.mu.Unlock()
		return
	}
	raw := l.raw
	direct := len(l.queue) == 0 && raw != nil && len(frame) <= pieceBytes && l.wmu.TryLock()
	if direct && len(l.rest) > 0 {
		l.wmu.Unlock()
		direct = false
	}
	if !direct {
		l.queue = append(l.queue, frame)
		l.bytes += len(frame)
		l.mu.Unlock()
		l.signal()
		return
	}
	l.mu.Unlock()
	sent := l.tryWrite(raw, frame)
	l.wmu.Unlock()
	if !sent {
		l.signal()
	}
}

func (l *link) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// tryWrite writes a frame at once if the socket has room for it; that saves waking another goroutine for each. What does
// not fit is left in rest, which must be empty, and false is returned. It needs wmu.
func (l *link) tryWrite(raw syscall.RawConn, frame []byte) bool {
	l.buf = appendFrame(l.buf[:0], frame)
	b := l.buf
	err := raw.Write(func(fd uintptr) bool {
		n, err := syscall.Write(int(fd), b)
		if n > 0 {
			b = b[n:]
		}
		// Any error shows again when the pump writes.
		_ = err
		return true
	})
	if err == nil && len(b) == 0 {
		return true
	}
	l.rest = append(l.rest[:0], b...)
	return false
}

func appendFrame(b, f []byte) []byte { return append(appendFrameHeader(b, f), f...) }

func appendFrameHeader(b, f []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f)))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(f, castagnoli))
}

// Dropped returns how many frames were not sent because a link was down or its queue full.
func (t *Transport) Dropped() uint64 {
	n := uint64(0)
	for _, l := range t.links {
		l.mu.Lock()
		n += l.dropped
		l.mu.Unlock()
	}
	return n
}

// Close ends all links and waits for them.
func (t *Transport) Close() {
	t.stop()
	t.mu.Lock()
	if t.ln != nil {
		_ = t.ln.Close()
	}
	for c := range t.conns {
		_ = c.Close()
	}
	t.mu.Unlock()
	t.wg.Wait()
}

// track registers a connection to be closed with the transport; it returns false if that is closed already.
func (t *Transport) track(c net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		_ = c.Close()
		return false
	}
	t.conns[c] = struct{}{}
	return true
}

func (t *Transport) untrack(c net.Conn) {
	t.mu.Lock()
	delete(t.conns, c)
	t.mu.Unlock()
	_ = c.Close()
}

// run keeps the link up until the transport closes.
func (l *link) run() {
	t := l.t
	defer t.wg.Done()
	wait := redialMin
	for t.ctx.Err() == nil {
		began := t.env.Now()
		err := l.connect()
		if t.ctx.Err() != nil {
			return
		}
		refused := errors.Is(err, syscall.ECONNREFUSED)
		t.cfg.OnLink(l.to, false, refused)
		if t.env.Now().Sub(began) > time.Second {
			wait = redialMin
		}
		t.log.Debug("peer link is down", "peer", l.to, "addr", l.addr, "error", err, "retry_in", wait)
		select {
		case <-t.ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, redialMax)
	}
}

// connect dials the peer and sends until the connection breaks.
func (l *link) connect() error {
	t := l.t
	ctx, cancel := context.WithTimeout(t.ctx, handshakeLimit)
	c, err := t.env.Dial(ctx, l.addr)
	cancel()
	if err != nil {
		l.unsafe(err)
		return err
	}
	ackedWithin(c, ackLimit)
	if !t.track(c) {
		return net.ErrClosed
	}
	defer t.untrack(c)
	if err := l.greet(c); err != nil {
		return err
	}
	gone := make(chan error, 1)
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		// The peer says nothing after the handshake; the read ends when it closes or dies.
		var b [1]byte
		_, err := c.Read(b[:])
		gone <- err
		_ = c.Close()
	}()
	l.set(true, c)
	t.cfg.OnLink(l.to, true, false)
	defer l.set(false, nil)
	return l.pump(c, gone)
}

// set notes that the link is up or down; nothing that waited for an earlier connection is sent on a new one.
func (l *link) set(up bool, c net.Conn) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up, l.queue, l.bytes, l.rest, l.raw = up, nil, 0, nil, nil
	if sc, ok := c.(syscall.Conn); ok && up {
		if raw, err := sc.SyscallConn(); err == nil {
			l.raw = raw
		}
	}
}

// pump writes queued frames, many in one system call.
func (l *link) pump(c net.Conn, gone <-chan error) error {
	for {
		select {
		case <-l.wake:
		case err := <-gone:
			return fmt.Errorf("peer closed the link: %w", err)
		case <-l.t.ctx.Done():
			return l.t.ctx.Err()
		}
		if err := l.drain(c); err != nil {
			return err
		}
	}
}

// drain writes everything that waits, in pieces.
func (l *link) drain(c net.Conn) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.buf = append(l.buf[:0], l.rest...)
	l.rest = nil
	taken := 0 // bytes of frames that are in buf to their end
	piece := func() error {
		if len(l.buf) > 0 {
			if err := c.SetWriteDeadline(time.Now().Add(pieceLimit)); err != nil {
				return err
			}
			if _, err := c.Write(l.buf); err != nil {
				return err
			}
			l.buf = l.buf[:0]
		}
		l.mu.Lock()
		l.bytes -= taken
		l.mu.Unlock()
		taken = 0
		return nil
	}
	for {
		l.mu.Lock()
		q := l.queue
		l.queue = nil
		l.mu.Unlock()
		for i, f := range q {
			l.buf = appendFrameHeader(l.buf, f)
			for left := f; len(left) > 0; {
				n := min(len(left), max(pieceBytes-len(l.buf), 0))
				l.buf = append(l.buf, left[:n]...)
				left = left[n:]
				if len(l.buf) < pieceBytes {
					continue
				}
				if err := piece(); err != nil {
					return err
				}
			}
			taken += len(f)
			q[i] = nil
		}
		if len(q) == 0 && len(l.buf) == 0 && taken == 0 {
			return nil
		}
		if err := piece(); err != nil {
			return err
		}
	}
}

// unsafe notes that a link is refused for a certificate.
func (l *link) unsafe(err error) {
	if untrusted(err) {
		l.t.refused(slog.LevelWarn, direction{peer: l.to}, "peer link cannot be secured", err.Error(), "peer", l.to, "addr", l.addr)
	}
}

// greet shows who calls, and reads whether the peer agrees.
func (l *link) greet(c net.Conn) error {
	t := l.t
	if err := c.SetDeadline(time.Now().Add(handshakeLimit)); err != nil {
		return err
	}
	b := binary.LittleEndian.AppendUint32([]byte(magic), t.cfg.Shards)
	b = binary.LittleEndian.AppendUint32(b, t.cfg.Self)
	b = binary.LittleEndian.AppendUint32(b, l.to)
	b = append(binary.LittleEndian.AppendUint16(b, uint16(len(t.cfg.Cluster))), t.cfg.Cluster...)
	b = append(binary.LittleEndian.AppendUint32(b, uint32(len(t.cfg.Hello))), t.cfg.Hello...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	if _, err := c.Write(b); err != nil {
		return err
	}
	var n [2]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		l.unsafe(err)
		return fmt.Errorf("peer did not answer the handshake: %w", err)
	}
	if size := binary.LittleEndian.Uint16(n[:]); size > 0 {
		why := make([]byte, size)
		if _, err := io.ReadFull(c, why); err != nil {
			return err
		}
		t.refused(slog.LevelWarn, direction{peer: l.to}, "peer refuses the link", string(why), "peer", l.to, "addr", l.addr)
		return errs.New(errs.Denied, "peer %d refuses the link: %s", l.to, why)
	}
	t.accepted(direction{peer: l.to})
	return c.SetDeadline(time.Time{})
}

// Serve accepts links until the transport closes; it owns the listener from then on.
func (t *Transport) Serve(ln net.Listener) {
	t.mu.Lock()
	t.ln = ln
	closed := t.ctx.Err() != nil
	t.mu.Unlock()
	if closed {
		_ = ln.Close()
		return
	}
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		for {
			c, err := ln.Accept()
			if err != nil {
				if t.ctx.Err() != nil {
					return
				}
				t.log.Warn("peer listener", "error", err)
				select {
				case <-t.ctx.Done():
					return
				case <-time.After(50 * time.Millisecond):
				}
				continue
			}
			if !t.track(c) {
				return
			}
			t.admit(c)
			t.wg.Add(1)
			go func() {
				defer t.wg.Done()
				defer t.untrack(c)
				defer t.known(c)
				if err := t.receive(c); err != nil && !errors.Is(err, io.EOF) && t.ctx.Err() == nil {
					t.log.Debug("peer link ends", "remote", c.RemoteAddr().String(), "error", err)
				}
			}()
		}
	}()
}

// plain returns what a connection runs on: with TLS another one.
func plain(c net.Conn) net.Conn {
	if s, ok := c.(interface{ NetConn() net.Conn }); ok {
		return s.NetConn()
	}
	return c
}

// admit makes room for a connection that has not shown yet who it is, and known ends that.
func (t *Transport) admit(c net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.strangers) >= strangersMax {
		// TLS would say good-bye first, which may take long.
		_ = plain(t.strangers[0]).Close()
		t.strangers = slices.Delete(t.strangers, 0, 1)
	}
	t.strangers = append(t.strangers, c)
}

func (t *Transport) known(c net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.strangers = slices.DeleteFunc(t.strangers, func(o net.Conn) bool { return o == c })
}

// receive reads one incoming link.
func (t *Transport) receive(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(handshakeLimit)); err != nil {
		return err
	}
	if s, ok := c.(interface{ HandshakeContext(context.Context) error }); ok {
		if err := s.HandshakeContext(t.ctx); err != nil {
			if !env.Gone(err) {
				t.refused(slog.LevelWarn, direction{0, true}, "rejected connection on peer endpoint", err.Error(), "remote", c.RemoteAddr().String())
			}
			return err
		}
	}
	r := bufio.NewReaderSize(c, 64<<10)
	from, hello, known, why := t.readHandshake(r)
	answer := append(binary.LittleEndian.AppendUint16(nil, uint16(len(why))), why...)
	if _, err := c.Write(answer); err != nil {
		return err
	}
	if why != "" {
		remote := c.RemoteAddr().String()
		if known {
			// One of the two configurations is wrong, and stays so until someone sees to it.
			t.refused(slog.LevelError, direction{from, true}, "refused a peer link", why, "peer", from, "remote", remote)
		} else {
			t.refused(slog.LevelWarn, direction{0, true}, "refused a peer link", why, "remote", remote)
		}
		return errs.New(errs.Denied, "%s", why)
	}
	t.accepted(direction{from, true})
	t.known(c)
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	t.cfg.OnHello(from, hello)
	for {
		f, err := readFrame(r, t.cfg.FrameBytesMax)
		if err != nil {
			return err
		}
		t.cfg.OnFrame(from, f)
	}
}

// readFrame reads one frame and checks it. Memory grows with what really arrives, not with what the length claims.
func readFrame(r io.Reader, limit int) ([]byte, error) {
	var h [8]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	n := int(binary.LittleEndian.Uint32(h[:]))
	if n > limit {
		return nil, errs.New(errs.TooLarge, "peer frame of %d bytes is over the limit of %d", n, limit)
	}
	const step = 1 << 20
	b := make([]byte, 0, min(n, step))
	for len(b) < n {
		have := len(b)
		more := min(n-have, max(step, have))
		if cap(b)-have < more {
			grown := make([]byte, have, have+more)
			copy(grown, b)
			b = grown
		}
		b = b[:have+more]
		if _, err := io.ReadFull(r, b[have:]); err != nil {
			return nil, err
		}
	}
	if crc32.Checksum(b, castagnoli) != binary.LittleEndian.Uint32(h[4:]) {
		return nil, errs.New(errs.Corrupt, "peer frame of %d bytes fails its checksum", n)
	}
	return b, nil
}

// readHandshake reads what a caller shows; why is empty if it is welcome. known means that all of it was read, and that the
// caller has the number of a peer.
func (t *Transport) readHandshake(r io.Reader) (from NodeID, hello []byte, known bool, why string) {
	sum := crc32.New(castagnoli)
	tr := io.TeeReader(r, sum)
	const unfinished = "unfinished handshake"
	var h [22]byte
	if _, err := io.ReadFull(tr, h[:]); err != nil {
		return 0, nil, false, unfinished
	}
	if string(h[:8]) != magic {
		return 0, nil, false, "not a Quorate peer, or one of another version; this is the peer port, clients use the ports of redis and kafka"
	}
	shards := binary.LittleEndian.Uint32(h[8:])
	from = binary.LittleEndian.Uint32(h[12:])
	to := binary.LittleEndian.Uint32(h[16:])
	name := make([]byte, binary.LittleEndian.Uint16(h[20:]))
	if _, err := io.ReadFull(tr, name); err != nil {
		return 0, nil, false, unfinished
	}
	var n [4]byte
	if _, err := io.ReadFull(tr, n[:]); err != nil {
		return 0, nil, false, unfinished
	}
	if binary.LittleEndian.Uint32(n[:]) > helloBytesMax {
		return 0, nil, false, "hello is too long"
	}
	hello = make([]byte, binary.LittleEndian.Uint32(n[:]))
	if _, err := io.ReadFull(tr, hello); err != nil {
		return 0, nil, false, unfinished
	}
	want := sum.Sum32()
	if _, err := io.ReadFull(r, n[:]); err != nil || binary.LittleEndian.Uint32(n[:]) != want {
		return 0, nil, false, "handshake fails its checksum"
	}
	_, known = t.cfg.Peers[from]
	switch {
	case string(name) != t.cfg.Cluster:
		why = fmt.Sprintf("this is cluster %.100q, not %.100q", t.cfg.Cluster, name)
	case to != t.cfg.Self:
		why = fmt.Sprintf("this is node %d, not %d; check the peers in the configuration", t.cfg.Self, to)
	case !known:
		why = fmt.Sprintf("node %d is not a member of this cluster", from)
	case shards != t.cfg.Shards:
		why = fmt.Sprintf("node %d has %d shards, and node %d has %d; shards must be the same on every node of a cluster, correct it in the configuration of the one that is wrong",
			t.cfg.Self, t.cfg.Shards, from, shards)
	}
	return from, hello, known, why
}
