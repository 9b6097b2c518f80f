// Package transport carries frames between the nodes of a cluster, over two TCP streams a node and direction: one, and another for control frames
// that would have to wait on the first.
//
// Frames may be lost: when a link is down or its queue is full they are dropped, as the raft above expects of a network.
// They are never damaged (each has a checksum), and come in order but for those of the second stream. Format: docs/formats/peer.md.
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
	"time"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/telemetry"
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
	// Hello is shown to each peer on connection; it holds what the peer should know of this node. At most HelloBytesMax.
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
	// Refuse, unless it is nil, says from what a peer shows why it is refused, with what to do; empty is welcome.
	Refuse func(from NodeID, hello []byte) (why string)
	// OnHello is called with what a peer shows that is welcome.
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

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// HelloBytesMax bounds Config.Hello, in bytes.
const HelloBytesMax = 64 << 10

const (
	magic          = "QRTPEER1"
	handshakeLimit = 5 * time.Second
	// strangersMax bounds the incoming connections that have not shown who they are. The oldest goes: a peer shows it at once.
	strangersMax = 64
	redialMin    = 20 * time.Millisecond
	redialMax    = 500 * time.Millisecond
	// pieceBytes is about how much is written to a connection at once. A peer that takes none of that for pieceLimit is given up: it
	// is the time without progress that counts, since a large frame over a slow link takes long.
	pieceBytes = 256 << 10
	pieceLimit = 10 * time.Second
	// sideFrom is how much must wait on a link for control frames to take the second, and sideBytesMax what may wait there.
	sideFrom     = 64 << 10
	sideBytesMax = 4 << 20
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
		l := newLink(t, id, addr)
		t.links[id] = l
		t.wg.Add(2)
		go l.run()
		go l.side.run()
	}
	return t
}

// Send queues a frame for a peer and returns at once. The slice must not be changed afterwards. Control frames, which are short, do not wait behind
// others: if the link has something to send already, they take the peer's second one.
func (t *Transport) Send(to NodeID, frame []byte, control bool) {
	l := t.links[to]
	if l == nil || l.send(frame, control) {
		return
	}
	l.side.send(frame, false)
}

// Dropped returns how many frames were not sent because a link was down or its queue full.
func (t *Transport) Dropped() uint64 {
	n := uint64(0)
	for _, l := range t.links {
		for _, l := range [...]*link{l, l.side} {
			l.mu.Lock()
			n += l.dropped
			l.mu.Unlock()
		}
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
		var failed telemetry.Seldom
		for {
			c, err := ln.Accept()
			if err != nil {
				if t.ctx.Err() != nil {
					return
				}
				if unsaid, say := failed.Say(t.env.Now(), sayEvery); say {
					t.log.Warn("peer listener", "error", err, "not_logged", unsaid)
				}
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
	if binary.LittleEndian.Uint32(n[:]) > HelloBytesMax {
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
	case t.cfg.Refuse != nil:
		why = t.cfg.Refuse(from, hello)
	}
	return from, hello, known, why
}
