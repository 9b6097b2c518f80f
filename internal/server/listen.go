package server

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/protocol/etcd"
)

// door is an address at which a space's etcd clients come in.
type door struct {
	net.Listener
	addr  string
	scope etcd.Scope
	// plain says that there is no TLS, or need not be.
	plain bool
}

// addrOf returns the address of a listener as the configuration would have it.
func addrOf(ln net.Listener) string {
	if ln.Addr().Network() == "unix" {
		return env.SocketPrefix + ln.Addr().String()
	}
	return ln.Addr().String()
}

// together makes one listener of several.
type together struct {
	all  []net.Listener
	got  chan accepted
	done chan struct{}
	once sync.Once
	wg   sync.WaitGroup
}

type accepted struct {
	nc  net.Conn
	err error
}

// join returns a listener that accepts from all; Close closes them.
func join(all []net.Listener) net.Listener {
	if len(all) == 1 {
		return all[0]
	}
	t := &together{all: all, got: make(chan accepted), done: make(chan struct{})}
	for _, ln := range all {
		t.wg.Go(func() { t.accept(ln) })
	}
	return t
}

func (t *together) accept(ln net.Listener) {
	for {
		nc, err := ln.Accept()
		select {
		// Whoever accepts waits after an error.
		case t.got <- accepted{nc, err}:
		case <-t.done:
			if nc != nil {
				_ = nc.Close()
			}
			return
		}
	}
}

// Accept implements net.Listener.
func (t *together) Accept() (net.Conn, error) {
	select {
	case a := <-t.got:
		return a.nc, a.err
	case <-t.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It waits for the goroutines.
func (t *together) Close() error {
	var err error
	t.once.Do(func() {
		close(t.done)
		for _, ln := range t.all {
			err = errors.Join(err, ln.Close())
		}
		t.wg.Wait()
	})
	return err
}

// Addr implements net.Listener.
func (t *together) Addr() net.Addr { return t.all[0].Addr() }

// wrapping is a listener whose connections are wrapped.
type wrapping struct {
	net.Listener
	wrap func(net.Conn) net.Conn
}

// Accept implements net.Listener.
func (l *wrapping) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.wrap(nc), nil
}

// tlsListener takes connections with TLS, and eitherListener also those without.
func tlsListener(ln net.Listener, cfg *tls.Config) net.Listener {
	return &wrapping{ln, func(nc net.Conn) net.Conn { return tlsConn{tls.Server(nc, cfg)} }}
}

func eitherListener(ln net.Listener, cfg *tls.Config) net.Listener {
	return &wrapping{ln, func(nc net.Conn) net.Conn { return &either{Conn: nc, tls: cfg} }}
}

// tlsConn is a connection with TLS whose Close does not wait.
type tlsConn struct{ *tls.Conn }

// goodbye is how long a connection that is closed may take to say so to a client that reads nothing. Package tls has 5 s for that, and a node that
// stops may have many of them, one after the other.
const goodbye = 10 * time.Millisecond

// Close implements net.Conn.
func (c tlsConn) Close() error {
	late := time.AfterFunc(goodbye, func() { _ = c.NetConn().Close() })
	defer late.Stop()
	return c.Conn.Close()
}

// either is a connection whose client's first byte says whether it has TLS. The server must read before it writes.
type either struct {
	// Conn is the connection below. Deadlines and addresses are its own.
	net.Conn
	tls *tls.Config

	mu sync.Mutex
	// on is what is read from and written to, nil before the first byte. Guarded by mu.
	on net.Conn
}

// recordHandshake is the first byte of every TLS connection (RFC 8446, section 5.1), and of no HTTP request.
const recordHandshake = 22

// decide waits for the first byte.
func (e *either) decide() (net.Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.on != nil {
		return e.on, nil
	}
	var b [1]byte
	if _, err := e.Conn.Read(b[:]); err != nil {
		return nil, err
	}
	again := &unread{Conn: e.Conn, b: b[:]}
	e.on = again
	if b[0] == recordHandshake {
		e.on = tlsConn{tls.Server(again, e.tls)}
	}
	return e.on, nil
}

// Read implements net.Conn.
func (e *either) Read(b []byte) (int, error) {
	on, err := e.decide()
	if err != nil {
		return 0, err
	}
	return on.Read(b)
}

// Write implements net.Conn.
func (e *either) Write(b []byte) (int, error) {
	on, err := e.decide()
	if err != nil {
		return 0, err
	}
	return on.Write(b)
}

// Close implements net.Conn. It does not wait for a first byte.
func (e *either) Close() error {
	if e.mu.TryLock() {
		on := e.on
		e.mu.Unlock()
		if on != nil {
			return on.Close()
		}
	}
	return e.Conn.Close()
}

// ConnectionState returns what TLS knows of the client: nothing, if it has none.
func (e *either) ConnectionState() tls.ConnectionState {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t, ok := e.on.(tlsConn); ok {
		return t.ConnectionState()
	}
	return tls.ConnectionState{}
}

// unread is a connection of which some bytes have been read.
type unread struct {
	net.Conn
	b []byte
}

// Read implements net.Conn.
func (u *unread) Read(b []byte) (int, error) {
	if len(u.b) > 0 {
		n := copy(b, u.b)
		u.b = u.b[n:]
		return n, nil
	}
	return u.Conn.Read(b)
}

// fewListener bounds how many connections of an http.Server are open. When one more comes, that which has asked nothing for the longest time makes way:
// it is idle, or has said nothing yet, or not all of its request. If there is none, the new one is closed.
type fewListener struct {
	net.Listener
	max int

	mu sync.Mutex
	// open are the connections that are open, and since when each asks nothing; the zero time says that it does ask. Guarded by mu.
	open map[*oneOfFew]time.Time
}

func newFewListener(ln net.Listener, most int) *fewListener {
	return &fewListener{Listener: ln, max: most, open: map[*oneOfFew]time.Time{}}
}

// Accept implements net.Listener.
func (l *fewListener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := (&oneOfFew{Conn: nc, of: l}); l.enter(c) {
			return c, nil
		}
		_ = nc.Close()
	}
}

// enter counts a connection if there is room for it, or if another makes way.
func (l *fewListener) enter(c *oneOfFew) bool {
	l.mu.Lock()
	var out *oneOfFew
	if len(l.open) >= l.max {
		for c, since := range l.open {
			if !since.IsZero() && (out == nil || since.Before(l.open[out])) {
				out = c
			}
		}
		if out == nil {
			l.mu.Unlock()
			return false
		}
		delete(l.open, out)
	}
	l.open[c] = time.Now()
	l.mu.Unlock()
	if out != nil {
		_ = out.Close()
	}
	return true
}

// state is for http.Server.ConnState. A request counts as one when its header is complete, and one with a body when that is.
func (l *fewListener) state(nc net.Conn, st http.ConnState) {
	if c, ok := nc.(*oneOfFew); ok && (st == http.StateActive || st == http.StateIdle) {
		c.asks(st == http.StateActive)
	}
}

// oneOfFew is a connection that counts until it is closed.
type oneOfFew struct {
	net.Conn
	of *fewListener
}

// asks notes whether the client asks something from now on.
func (c *oneOfFew) asks(yes bool) {
	since := time.Time{}
	if !yes {
		since = time.Now()
	}
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	if _, open := c.of.open[c]; open {
		c.of.open[c] = since
	}
}

// Close implements net.Conn.
func (c *oneOfFew) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
