package transport

import (
	"bufio"
	"bytes"
	"net"
	"testing"
	"time"
)

// welcome takes the next link that a side calls, and welcomes it.
func welcome(t *testing.T, ln net.Listener, as *Transport) (net.Conn, *bufio.Reader) {
	t.Helper()
	if err := ln.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	r := bufio.NewReader(c)
	if _, _, _, why := as.readHandshake(r); why != "" {
		t.Fatal(why)
	}
	if _, err := c.Write([]byte{0, 0}); err != nil {
		t.Fatal(err)
	}
	return c, r
}

// startCaller starts node 1, which calls a node 2 that the test is.
func startCaller(t *testing.T) (a *side, ln net.Listener, peer *Transport) {
	t.Helper()
	ln = listen(t)
	peer = &Transport{cfg: Config{Cluster: "c", Shards: 1, Self: 2, Peers: map[NodeID]string{1: ""}}}
	return startSide(t, "c", 1, map[NodeID]string{2: ln.Addr().String()}, nil, 0), ln, peer
}

// bothUp waits for both of its links.
func (s *side) bothUp(t *testing.T) *link {
	t.Helper()
	l := s.t.links[2]
	eventually(t, "links", func() bool { return l.isUp() && l.side.isUp() })
	return l
}

// Control frames go with the others while nothing waits, and past them when something does: when the peer takes no more, and when the system does not.
func TestTransport_ControlPassesWhatWaits(t *testing.T) {
	a, ln, peer := startCaller(t)
	_, first := welcome(t, ln, peer)
	_, second := welcome(t, ln, peer)
	l := a.bothUp(t)
	arrives := func(r *bufio.Reader, want []byte) {
		t.Helper()
		if f, err := readFrame(r, 64<<20); err != nil || !bytes.Equal(f, want) {
			t.Fatalf("got %d bytes, %v, want %d", len(f), err, len(want))
		}
	}
	a.t.Send(2, []byte("control"), true)
	arrives(first, []byte("control"))
	// A frame that is written at once, until the socket is full.
	piece, sent := make([]byte, pieceBytes), 0
	eventually(t, "a full socket", func() bool {
		a.t.Send(2, piece, false)
		sent++
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.stuck
	})
	a.t.Send(2, []byte("past a rest"), true)
	arrives(second, []byte("past a rest"))
	large := make([]byte, 8<<20)
	a.t.Send(2, large, false)
	a.t.Send(2, []byte("past a large one"), true)
	arrives(second, []byte("past a large one"))
	for range sent {
		arrives(first, piece)
	}
	arrives(first, large)
	eventually(t, "the end", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.bytes == 0 && !l.stuck })
	a.t.Send(2, []byte("with the others"), true)
	arrives(first, []byte("with the others"))
	if n := a.t.Dropped(); n != 0 {
		t.Errorf("%d frames were dropped", n)
	}
}

// Without a second link control frames wait like others, and it comes back when it was lost.
func TestTransport_SecondLinkComesBack(t *testing.T) {
	a, ln, peer := startCaller(t)
	_, first := welcome(t, ln, peer)
	second, _ := welcome(t, ln, peer)
	l := a.bothUp(t)
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the loss", func() bool { return !l.side.isUp() })
	large := make([]byte, 16<<20)
	a.t.Send(2, large, false)
	a.t.Send(2, []byte("behind"), true)
	for _, want := range [][]byte{large, []byte("behind")} {
		if f, err := readFrame(first, 64<<20); err != nil || !bytes.Equal(f, want) {
			t.Fatalf("got %d bytes, %v", len(f), err)
		}
	}
	// It calls again until it is answered in time.
	eventually(t, "the second link", func() bool {
		if !l.side.isUp() {
			welcome(t, ln, peer)
		}
		return l.side.isUp()
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.up[2] {
		t.Error("the loss of the second link was taken for that of the first")
	}
}
