package transport

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// That the system keeps to it can be seen where a packet filter is at hand: after 40 s without the network a link is back within a second, and without the
// limit after 13.
func TestLink_IsGivenUpWhenNothingIsConfirmed(t *testing.T) {
	ln := listen(t)
	startSide(t, "c", 2, map[NodeID]string{1: "127.0.0.1:1"}, ln, 0)
	a := startSide(t, "c", 1, map[NodeID]string{2: ln.Addr().String()}, nil, 0)
	l := a.t.links[2]
	var raw syscall.RawConn
	eventually(t, "link", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		raw = l.raw
		return l.up
	})
	if got := confirmLimit(t, raw); got != ackLimit {
		t.Errorf("a link that gets no confirmation is given up after %v, want %v", got, ackLimit)
	}
}

// wrapped is a connection secured by TLS, as far as it goes.
type wrapped struct {
	net.Conn
	inner net.Conn
}

func (w wrapped) NetConn() net.Conn { return w.inner }

func TestAckedWithin_LooksBehindTLS(t *testing.T) {
	ln := listen(t)
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ackedWithin(wrapped{inner: c}, 3*time.Second)
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if got := confirmLimit(t, raw); got != 3*time.Second {
		t.Errorf("the limit is %v", got)
	}
}

// confirmLimit returns for how long a connection waits for confirmations, 0 if for as long as the system likes.
func confirmLimit(t *testing.T, raw syscall.RawConn) time.Duration {
	t.Helper()
	var ms int
	var err error
	if e := raw.Control(func(fd uintptr) { ms, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return time.Duration(ms) * time.Millisecond
}
