package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/telemetry"
)

// link sends to one peer, over one connection.
type link struct {
	t    *Transport
	to   NodeID
	addr string
	wake chan struct{}
	// side is the peer's second link, for control frames while much waits on this one; main is the first link of a second. The second is made when
	// the first is, of which ups tells it.
	side, main *link
	ups        chan struct{}
	// unnamed bounds how often it is logged that addr stands for no address.
	unnamed telemetry.Seldom

	// bytes are those of the frames in queue, and of those that the pump has taken from it and not sent yet; at most bytesMax. stuck says that there is a
	// rest.
	mu       sync.Mutex
	queue    [][]byte
	bytes    int
	bytesMax int
	dropped  uint64
	up       bool
	stuck    bool
	raw      syscall.RawConn

	// wmu is held by whoever writes to the connection. rest is the part of a frame, one of at most pieceBytes, that did not fit into
	// the socket; buf is reused.
	wmu  sync.Mutex
	rest []byte
	buf  []byte
}

// newLink makes the links to a peer, which begin with run.
func newLink(t *Transport, to NodeID, addr string) *link {
	l := &link{t: t, to: to, addr: addr, wake: make(chan struct{}, 1), bytesMax: t.cfg.QueueBytesMax, ups: make(chan struct{}, 1)}
	l.side = &link{t: t, to: to, addr: addr, wake: make(chan struct{}, 1), bytesMax: min(l.bytesMax, sideBytesMax), main: l}
	return l
}

// send queues a frame, or writes it at once if nothing waits. It returns false, and has done nothing, for a control frame that would have to wait,
// if there is a second link.
func (l *link) send(frame []byte, control bool) bool {
	l.mu.Lock()
	if control && (l.stuck || l.bytes > sideFrom) && l.side.isUp() {
		l.mu.Unlock()
		return false
	}
	if !l.up || l.bytes+len(frame) > l.bytesMax {
		l.dropped++
		l.mu.Unlock()
		return true
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
		return true
	}
	l.mu.Unlock()
	sent := l.tryWrite(raw, frame)
	if !sent {
		l.mu.Lock()
		l.stuck = true
		l.mu.Unlock()
	}
	l.wmu.Unlock()
	if !sent {
		l.signal()
	}
	return true
}

func (l *link) isUp() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
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

// run keeps the link up until the transport closes.
func (l *link) run() {
	t := l.t
	defer t.wg.Done()
	wait := redialMin
	for t.ctx.Err() == nil {
		if l.main != nil && !l.main.awaitUp() {
			return
		}
		began := t.env.Now()
		err := l.connect()
		if t.ctx.Err() != nil {
			return
		}
		if l.main == nil {
			t.cfg.OnLink(l.to, false, errors.Is(err, syscall.ECONNREFUSED))
		}
		if t.env.Now().Sub(began) > time.Second {
			wait = redialMin
		}
		t.log.Debug("peer link is down", "peer", l.to, "second", l.main != nil, "addr", l.addr, "error", err, "retry_in", wait)
		select {
		case <-t.ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, redialMax)
	}
}

// awaitUp waits until the link is up. It returns false if the transport closes.
func (l *link) awaitUp() bool {
	for !l.isUp() {
		select {
		case <-l.ups:
		case <-l.t.ctx.Done():
			return false
		}
	}
	return true
}

// connect dials the peer and sends until the connection breaks.
func (l *link) connect() error {
	t := l.t
	ctx, cancel := context.WithTimeout(t.ctx, handshakeLimit)
	c, err := t.env.Dial(ctx, l.addr)
	cancel()
	if err != nil {
		l.unsafe(err)
		l.nameless(err)
		return err
	}
	ackedWithin(c, ackLimit)
	unsentAtMost(c, pieceBytes)
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
	if l.main == nil {
		select {
		case l.ups <- struct{}{}:
		default:
		}
		t.cfg.OnLink(l.to, true, false)
	}
	defer l.set(false, nil)
	return l.pump(c, gone)
}

// set notes that the link is up or down; nothing that waited for an earlier connection is sent on a new one.
func (l *link) set(up bool, c net.Conn) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up, l.queue, l.bytes, l.rest, l.raw, l.stuck = up, nil, 0, nil, nil, false
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
		l.stuck = false
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

// nameless logs that a peer's name stands for no address: to wait for the peer is no use then, but nothing else would say so.
func (l *link) nameless(err error) {
	t := l.t
	if why := (*net.DNSError)(nil); !errors.As(err, &why) || l.main != nil || t.ctx.Err() != nil {
		return
	}
	if unsaid, say := l.unnamed.Say(t.env.Now(), sayEvery); say {
		t.log.Warn("peer's name cannot be resolved", "peer", l.to, "addr", l.addr, "error", err, "not_logged", unsaid)
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
