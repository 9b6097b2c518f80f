package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
)

// side is one end of a pair of nodes.
type side struct {
	t     *Transport
	mu    sync.Mutex
	got   [][]byte
	hello map[NodeID]string
	up    map[NodeID]bool
	ref   int
	log   bytes.Buffer
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func startSide(t *testing.T, cluster string, self NodeID, peers map[NodeID]string, ln net.Listener, queue int) *side {
	t.Helper()
	return startSideOf(t, cluster, 1, self, peers, ln, queue)
}

func startSideOf(t *testing.T, cluster string, shards uint32, self NodeID, peers map[NodeID]string, ln net.Listener, queue int) *side {
	t.Helper()
	s := &side{hello: map[NodeID]string{}, up: map[NodeID]bool{}}
	s.t = New(Config{
		Cluster: cluster, Shards: shards, Self: self, Peers: peers, Hello: fmt.Appendf(nil, "hello of %d", self), QueueBytesMax: queue,
		OnFrame: func(_ NodeID, f []byte) { s.mu.Lock(); s.got = append(s.got, f); s.mu.Unlock() },
		OnLink: func(to NodeID, up, refused bool) {
			s.mu.Lock()
			s.up[to] = up
			if refused {
				s.ref++
			}
			s.mu.Unlock()
		},
		OnHello: func(from NodeID, h []byte) { s.mu.Lock(); s.hello[from] = string(h); s.mu.Unlock() },
	}, env.Real(), slog.New(slog.NewTextHandler(&lockedWriter{s: s}, nil)))
	if ln != nil {
		s.t.Serve(ln)
	}
	t.Cleanup(s.t.Close)
	return s
}

type lockedWriter struct{ s *side }

func (w *lockedWriter) Write(b []byte) (int, error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	return w.s.log.Write(b)
}

// eventually waits for a condition, generously.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("%s did not happen", what)
}

func (s *side) locked(f func() bool) func() bool {
	return func() bool { s.mu.Lock(); defer s.mu.Unlock(); return f() }
}

func TestTransport_FramesComeInOrder(t *testing.T) {
	la, lb := listen(t), listen(t)
	a := startSide(t, "c", 1, map[NodeID]string{2: lb.Addr().String()}, la, 0)
	b := startSide(t, "c", 2, map[NodeID]string{1: la.Addr().String()}, lb, 0)
	eventually(t, "link", a.locked(func() bool { return a.up[2] }))
	const n = 2000
	for i := range n {
		// Some frames are larger than a socket's buffer.
		a.t.Send(2, append(binary.LittleEndian.AppendUint32(nil, uint32(i)), make([]byte, i%7*i%300_000)...), false)
	}
	eventually(t, "all frames", b.locked(func() bool { return len(b.got) == n }))
	for i, f := range b.got {
		if got := binary.LittleEndian.Uint32(f); got != uint32(i) {
			t.Fatalf("frame %d holds %d", i, got)
		}
	}
	eventually(t, "hello", b.locked(func() bool { return b.hello[1] == "hello of 1" }))
	if a.t.Dropped() != 0 {
		t.Errorf("%d frames were dropped", a.t.Dropped())
	}
}

func TestTransport_RefusedAndBack(t *testing.T) {
	la, lb := listen(t), listen(t)
	addr := lb.Addr().String()
	if err := lb.Close(); err != nil {
		t.Fatal(err)
	}
	a := startSide(t, "c", 1, map[NodeID]string{2: addr}, la, 0)
	eventually(t, "refusal", a.locked(func() bool { return a.ref > 0 }))
	a.t.Send(2, []byte("nobody hears this"), false)
	if a.t.Dropped() != 1 {
		t.Errorf("%d frames dropped, want 1", a.t.Dropped())
	}
	lb2, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("the port was taken meanwhile: %v", err)
	}
	b := startSide(t, "c", 2, map[NodeID]string{1: la.Addr().String()}, lb2, 0)
	eventually(t, "link", a.locked(func() bool { return a.up[2] }))
	a.t.Send(2, []byte("hello"), false)
	eventually(t, "frame", b.locked(func() bool { return len(b.got) == 1 }))
}

func TestTransport_RefusesStrangers(t *testing.T) {
	lb := listen(t)
	b := startSide(t, "c", 2, map[NodeID]string{1: "127.0.0.1:1"}, lb, 0)
	f := func(name, cluster string, self, to NodeID, want string) {
		t.Run(name, func(t *testing.T) {
			a := startSide(t, cluster, self, map[NodeID]string{to: lb.Addr().String()}, nil, 0)
			eventually(t, "refusal", a.locked(func() bool { return strings.Contains(a.log.String(), want) }))
		})
	}
	f("other cluster", "d", 1, 2, "this is cluster")
	f("wrong node", "c", 1, 3, "this is node 2, not 3")
	f("not a member", "c", 9, 2, "node 9 is not a member")
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.hello) != 0 {
		t.Errorf("a stranger was heard: %v", b.hello)
	}
}

// Connections that say nothing take no more descriptors than they may, and keep no peer out.
func TestTransport_SilentStrangersMakeRoom(t *testing.T) {
	ln := listen(t)
	a := startSide(t, "c", 1, map[NodeID]string{2: "127.0.0.1:1"}, ln, 0)
	var held []net.Conn
	defer func() {
		for _, c := range held {
			_ = c.Close()
		}
	}()
	for range 3 * strangersMax {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	open := func() (conns, strangers int) {
		a.t.mu.Lock()
		defer a.t.mu.Unlock()
		return len(a.t.conns), len(a.t.strangers)
	}
	// The last one that was made is there, so all others were.
	last := held[len(held)-1].LocalAddr().String()
	eventually(t, "room", func() bool {
		a.t.mu.Lock()
		there := slices.ContainsFunc(a.t.strangers, func(c net.Conn) bool { return c.RemoteAddr().String() == last })
		a.t.mu.Unlock()
		conns, _ := open()
		return there && conns <= strangersMax
	})
	b := startSide(t, "c", 2, map[NodeID]string{1: ln.Addr().String()}, nil, 0)
	eventually(t, "link", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.up[1]
	})
	// A peer is no stranger: newer ones do not take its place.
	for range 2 * strangersMax {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	b.t.Send(1, []byte("still here"), false)
	eventually(t, "frame", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.got) == 1
	})
	if _, n := open(); n > strangersMax {
		t.Errorf("%d strangers", n)
	}
}

// TestTransport_OtherNumberOfShards: two nodes of a cluster that do not agree on where keys are must not talk. Both say so,
// once, however often they try.
func TestTransport_OtherNumberOfShards(t *testing.T) {
	la, lb := listen(t), listen(t)
	a := startSideOf(t, "c", 2, 1, map[NodeID]string{2: lb.Addr().String()}, la, 0)
	b := startSideOf(t, "c", 4, 2, map[NodeID]string{1: la.Addr().String()}, lb, 0)
	tries := func(s *side) func() bool {
		return func() bool {
			s.t.mu.Lock()
			defer s.t.mu.Unlock()
			for _, incoming := range []bool{true, false} {
				if r := s.t.refusals[direction{3 - s.t.cfg.Self, incoming}]; r == nil || r.log.Unsaid() < 2 {
					return false
				}
			}
			return true
		}
	}
	for _, s := range []*side{a, b} {
		eventually(t, "several refusals in both directions", tries(s))
		if why := s.t.Refused(3 - s.t.cfg.Self); !strings.Contains(why, "shards must be the same on every node") {
			t.Errorf("node %d: state is %q", s.t.cfg.Self, why)
		}
		s.locked(func() bool {
			if text := s.log.String(); strings.Count(text, "level=ERROR") != 1 || strings.Count(text, "level=WARN") != 1 ||
				!strings.Contains(text, "has 2 shards") || !strings.Contains(text, "has 4") {
				t.Errorf("node %d logged\n%s", s.t.cfg.Self, text)
			}
			if len(s.hello) != 0 || len(s.up) != 1 || s.up[3-s.t.cfg.Self] {
				t.Errorf("node %d: hello %v, up %v", s.t.cfg.Self, s.hello, s.up)
			}
			return true
		})()
	}
}

func TestTransport_NamesThatStandForNothing(t *testing.T) {
	s, e := &side{}, env.Real()
	var tries atomic.Int32
	e.Dial = func(context.Context, string) (net.Conn, error) {
		tries.Add(1)
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "nowhere.example", IsNotFound: true}}
	}
	nothing := func(NodeID, []byte) {}
	s.t = New(Config{
		Cluster: "c", Shards: 1, Self: 1, Peers: map[NodeID]string{2: "nowhere.example:1"}, OnFrame: nothing, OnHello: nothing, OnLink: func(NodeID, bool, bool) {},
	}, e, slog.New(slog.NewTextHandler(&lockedWriter{s: s}, nil)))
	eventually(t, "several tries", func() bool { return tries.Load() > 2 })
	s.t.Close()
	if text := s.log.String(); strings.Count(text, "peer's name cannot be resolved") != 1 || !strings.Contains(text, "level=WARN") || !strings.Contains(text, "lookup nowhere.example: no such host") {
		t.Errorf("logged %q", text)
	}
}

// TestTransport_RefusalEnds: the state goes when the peer comes back as it should be.
func TestTransport_RefusalEnds(t *testing.T) {
	la, lb := listen(t), listen(t)
	a := startSideOf(t, "c", 2, 1, map[NodeID]string{2: lb.Addr().String()}, la, 0)
	b := startSideOf(t, "c", 4, 2, map[NodeID]string{1: la.Addr().String()}, lb, 0)
	eventually(t, "refusal", func() bool { return a.t.Refused(2) != "" })
	b.t.Close()
	lb, err := net.Listen("tcp", lb.Addr().String())
	if err != nil {
		t.Skipf("the port was taken meanwhile: %v", err)
	}
	startSideOf(t, "c", 2, 2, map[NodeID]string{1: la.Addr().String()}, lb, 0)
	eventually(t, "end of the refusal", func() bool { return a.t.Refused(2) == "" })
}

// TestTransport_BadBytes throws junk at the peer port: the connection ends, nothing arrives, and the port goes on serving.
func TestTransport_BadBytes(t *testing.T) {
	lb := listen(t)
	b := startSide(t, "c", 2, map[NodeID]string{1: "127.0.0.1:1"}, lb, 0)
	good := func() []byte {
		h := append([]byte(magic), 1, 0, 0, 0)
		h = binary.LittleEndian.AppendUint32(h, 1)
		h = binary.LittleEndian.AppendUint32(h, 2)
		h = append(binary.LittleEndian.AppendUint16(h, 1), 'c')
		h = binary.LittleEndian.AppendUint32(h, 0)
		return binary.LittleEndian.AppendUint32(h, crc32.Checksum(h, castagnoli))
	}
	for _, c := range []struct {
		name string
		send []byte
	}{
		{"http", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")},
		{"redis", []byte("*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n")},
		{"tls", []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaaaaaaaaaaaaa")},
		{"bad sum", append(good()[:len(good())-4], 1, 2, 3, 4)},
		{"huge frame", append(good(), 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0)},
		{"bad frame sum", append(good(), 4, 0, 0, 0, 9, 9, 9, 9, 'a', 'b', 'c', 'd')},
		{"huge hello", func() []byte {
			h := good()[:25]
			return append(h[:21+2], 0xff, 0xff, 0xff, 0x7f)
		}()},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", lb.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write(c.send); err != nil {
				t.Fatal(err)
			}
			if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("connection stays open: %v", err)
			}
		})
	}
	if b.mu.Lock(); len(b.got) != 0 {
		t.Errorf("junk arrived as %d frames", len(b.got))
	}
	b.mu.Unlock()
	a := startSide(t, "c", 1, map[NodeID]string{2: lb.Addr().String()}, nil, 0)
	eventually(t, "link after the junk", a.locked(func() bool { return a.up[2] }))
}

func FuzzReadFrame(f *testing.F) {
	frame := func(b []byte) []byte {
		h := binary.LittleEndian.AppendUint32(nil, uint32(len(b)))
		return append(binary.LittleEndian.AppendUint32(h, crc32.Checksum(b, castagnoli)), b...)
	}
	f.Add(frame([]byte("abc")))
	f.Add(frame(nil))
	f.Add([]byte{0xff, 0xff, 0xff, 0x03, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readFrame(bytes.NewReader(b), 1<<20)
		if err == nil && !bytes.HasPrefix(b, frame(got)) {
			t.Errorf("%d bytes came out of %d that are not the same", len(got), len(b))
		}
		if errs.Is(err, errs.Internal) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("unexpected error %v", err)
		}
	})
}

func FuzzHandshake(f *testing.F) {
	f.Add([]byte(magic + "\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x01\x00c\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		tr := &Transport{cfg: Config{Cluster: "c", Self: 2, Peers: map[NodeID]string{1: ""}}}
		if _, _, _, why := tr.readHandshake(bytes.NewReader(b)); why == "" && !bytes.HasPrefix(b, []byte(magic)) {
			t.Errorf("welcomed without the magic")
		}
	})
}

// slowConn is a connection over a link on which no more than perDeadline bytes get through before a deadline.
type slowConn struct {
	net.Conn
	got         bytes.Buffer
	left        int
	perDeadline int
	onWrite     func()
}

func (c *slowConn) SetWriteDeadline(time.Time) error { c.left = c.perDeadline; return nil }

func (c *slowConn) Write(b []byte) (int, error) {
	if c.onWrite != nil {
		c.onWrite()
	}
	n := min(len(b), c.left)
	c.left -= n
	c.got.Write(b[:n])
	if n < len(b) {
		return n, os.ErrDeadlineExceeded
	}
	return n, nil
}

// idleLink is a link without a goroutine, as if its connection were up and somebody held it for writing.
func idleLink(queueBytesMax int) *link {
	t := &Transport{cfg: Config{QueueBytesMax: queueBytesMax}, links: map[NodeID]*link{}}
	l := newLink(t, 2, "")
	l.up, t.links[2] = true, l
	return l
}

// A frame that a slow link needs longer for than a peer may be silent arrives all the same, as long as bytes move.
func TestTransport_LargeFramesOverASlowLink(t *testing.T) {
	l := idleLink(64 << 20)
	c := &slowConn{perDeadline: 2 * pieceBytes}
	l.rest = []byte("the rest of a frame")
	var want [][]byte
	for _, n := range []int{5 << 20, 0, 1, pieceBytes - 8, pieceBytes - 7, pieceBytes - 20, 1000, 3 * pieceBytes, pieceBytes} {
		f := bytes.Repeat([]byte{byte(n)}, n)
		want = append(want, f)
		l.t.Send(2, f, false)
	}
	if err := l.drain(c); err != nil {
		t.Fatal(err)
	}
	if rest := string(c.got.Next(len("the rest of a frame"))); rest != "the rest of a frame" {
		t.Fatalf("began with %q", rest)
	}
	for i, w := range want {
		if f, err := readFrame(&c.got, 64<<20); err != nil || !bytes.Equal(f, w) {
			t.Fatalf("frame %d of %d bytes: got %d, %v", i, len(w), len(f), err)
		}
	}
	if c.got.Len() > 0 || l.bytes != 0 || l.t.Dropped() != 0 {
		t.Errorf("%d bytes more were sent, %d count as waiting, %d frames dropped", c.got.Len(), l.bytes, l.t.Dropped())
	}
	// A peer that takes less is given up.
	l.t.Send(2, make([]byte, 1<<20), false)
	if err := l.drain(&slowConn{perDeadline: pieceBytes / 2}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// What is being sent counts among what waits, so that the bound is one of memory, and what was sent makes room at once.
func TestTransport_QueueBoundHoldsWhileSending(t *testing.T) {
	const frame = 1 << 20
	l := idleLink(4 * frame)
	send := func(n int) {
		for range n {
			l.t.Send(2, make([]byte, frame), false)
		}
	}
	send(5)
	if l.t.Dropped() != 1 {
		t.Fatalf("%d of 5 frames were dropped where 4 have room", l.t.Dropped())
	}
	writes, most := 0, 0
	c := &slowConn{perDeadline: 2 * pieceBytes}
	c.onWrite = func() {
		if writes++; writes == 1 {
			send(1) // nothing was sent yet
			if l.t.Dropped() != 2 {
				t.Errorf("a frame found room among %d bytes that are being sent", l.bytes)
			}
		}
		if writes > 2*frame/pieceBytes && writes < 4*frame/pieceBytes {
			send(1)
		}
		most = max(most, l.bytes)
	}
	if err := l.drain(c); err != nil {
		t.Fatal(err)
	}
	sent := c.got.Len() / (frame + 8)
	if most > 4*frame || sent < 5 || l.bytes != 0 {
		t.Errorf("up to %d bytes waited, %d frames were sent, %d bytes are left", most, sent, l.bytes)
	}
}
