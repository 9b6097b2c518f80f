package server

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/protocol/etcd"
)

func TestPprof_IsForThisMachine(t *testing.T) {
	for _, c := range []struct {
		from, to string
		remote   bool
		want     int
	}{
		{"127.0.0.1:5", "127.0.0.1", false, http.StatusOK},
		{"[::1]:5", "::1", false, http.StatusOK},
		{"@", "", false, http.StatusOK},
		{"10.0.0.1:5", "10.0.0.1", false, http.StatusOK},
		{"10.0.0.2:5", "10.0.0.1", false, http.StatusForbidden},
		{"[fe80::1%eth0]:5", "fe80::2", false, http.StatusForbidden},
		{"10.0.0.2:5", "10.0.0.1", true, http.StatusOK},
	} {
		s := &Server{cfg: Config{RemotePprof: c.remote}}
		for _, page := range []string{"/debug/pprof/", "/debug/pprof/symbol"} {
			r := httptest.NewRequestWithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.ParseIP(c.to)}), http.MethodGet, page, nil)
			r.RemoteAddr = c.from
			w := httptest.NewRecorder()
			s.mux(prometheus.NewRegistry()).ServeHTTP(w, r)
			if w.Code != c.want || c.want == http.StatusForbidden && !strings.Contains(w.Body.String(), "remote_pprof") {
				t.Errorf("%s from %s at %s, remote %v: %d %s, want %d", page, c.from, c.to, c.remote, w.Code, w.Body, c.want)
			}
		}
	}
}

func TestHTTPPort_ConnectionsAreBounded(t *testing.T) {
	s, err := Start(Config{Listen: Listen{HTTP: "127.0.0.1:0"}}, "test", env.Real(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // a test's
	if s.http.IdleTimeout <= 0 || s.http.ReadHeaderTimeout <= 0 {
		t.Errorf("a connection may say nothing for ever: idle %v, header %v", s.http.IdleTimeout, s.http.ReadHeaderTimeout)
	}
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", s.Addr().HTTP)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	// Each is answered once, so that all are known to be open.
	ask := func(c net.Conn) error {
		if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err
		}
		b := make([]byte, 512)
		_, err := c.Read(b)
		return err
	}
	for range s.files.operators() {
		if err := ask(dial()); err != nil {
			t.Fatal(err)
		}
	}
	// A monitor finds room, however many are idle, and those that asked last keep theirs. Which of two was idle first the server may see otherwise than
	// their clients: it has answered before it takes note.
	if err := ask(dial()); err != nil {
		t.Errorf("with %d idle connections: %v", s.files.operators(), err)
	}
	var closed []int
	for i, c := range open {
		switch err := ask(c); {
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
			closed = append(closed, i)
		case err != nil:
			t.Fatalf("connection %d of %d: %v", i, len(open), err)
		}
	}
	if len(closed) != 1 || closed[0] >= len(open)/2 {
		t.Errorf("connections %v of %d were closed, want the one that was idle longest", closed, len(open))
	}
}

// A connection whose request is under way makes way for nobody; one that has sent no whole header, or no whole body, or is idle, does.
func TestHTTPPort_WhoAsksKeepsItsPlace(t *testing.T) {
	entered, reads, release := make(chan struct{}), make(chan struct{}, 10), make(chan struct{})
	p := newHTTPPort(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			reads <- struct{}{}
			if _, err := io.ReadAll(r.Body); err != nil {
				return
			}
		}
		entered <- struct{}{}
		<-release
	}), slog.New(slog.DiscardHandler))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- p.serve(ln, 2) }()
	dial := func(say string) *bufio.Reader {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, say); err != nil {
			t.Fatal(err)
		}
		return bufio.NewReader(c)
	}
	closed := func(c *bufio.Reader) {
		t.Helper()
		if _, err := c.ReadByte(); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v, want that it was closed", err)
		}
	}
	enters := func() {
		t.Helper()
		select {
		case <-entered:
		case <-time.After(time.Minute):
			t.Fatal("the request did not get in")
		}
	}
	const request, whole = "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
	one := dial(whole)
	<-reads
	enters()
	silent := dial("GET / HTTP/1.1\r\nHost:")
	// That it has begun to send its body is no request yet.
	half := dial(whole[:len(whole)-1])
	<-reads
	closed(silent)
	two := dial(request)
	enters()
	closed(half)
	closed(dial(request))
	close(release)
	for _, c := range []*bufio.Reader{one, two} {
		if line, err := c.ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Errorf("%q, %v", line, err)
		}
	}
	p.close(time.Minute)
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

// askOnce serves a port and sends it one request. The channel tells how serving ended.
func askOnce(t *testing.T, p *httpPort) (c net.Conn, served <-chan error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.serve(ln, 2) }()
	c, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	return c, ended
}

// What a handler looks at is closed behind the port: it must have returned, though its client is gone and its time is over.
func TestHTTPPort_CloseWaitsForHandlers(t *testing.T) {
	entered := make(chan struct{})
	var returned atomic.Bool
	p := newHTTPPort(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		// It has something to do yet.
		time.Sleep(100 * time.Millisecond)
		returned.Store(true)
	}), slog.New(slog.DiscardHandler))
	_, served := askOnce(t, p)
	<-entered
	p.close(time.Millisecond)
	if !returned.Load() {
		t.Error("the port is closed, and a handler runs")
	}
	<-served
}

// A handler that panics is an error of the node's, in the log's form.
func TestHTTPPort_PanicsAreLogged(t *testing.T) {
	var log strings.Builder
	p := newHTTPPort(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("broken") }), slog.New(slog.NewTextHandler(&log, nil)).With("node", 1))
	c, served := askOnce(t, p)
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
		t.Errorf("answered with %q, %v", b, err)
	}
	p.close(time.Minute)
	<-served
	if text := log.String(); !strings.Contains(text, "level=ERROR") || !strings.Contains(text, "node=1") || !strings.Contains(text, "broken") {
		t.Errorf("the log has %q", text)
	}
}

func TestConfig_StringHasEveryField(t *testing.T) {
	text := Config{}.String()
	for f := range reflect.TypeFor[Config]().Fields() {
		if key := f.Tag.Get("yaml"); key != noKey && !strings.Contains(text, key+"=") {
			t.Errorf("the log of the start lacks %s: %s", key, text)
		}
	}
}

func TestConfig_Members(t *testing.T) {
	c := Config{MemberNames: map[uint32]string{1: "a", 2: "b"}, Peers: map[uint32]string{1: "127.0.0.1:1", 2: "unix:/p"}}
	if m := c.members(); m[1] != (etcd.Member{Name: "a", PeerURL: "http://127.0.0.1:1"}) || m[2] != (etcd.Member{Name: "b", PeerURL: "unix:///p"}) {
		t.Errorf("got %v", m)
	}
	c.TLS.Peer.Auto = true
	if m := c.members(); m[1].PeerURL != "https://127.0.0.1:1" {
		t.Errorf("with TLS: %v", m)
	}
}

// Of two whose requests are not there whole, that which sent something goes on.
func TestHTTPPort_WhoSendsMakesWayLast(t *testing.T) {
	l := newFewListener(nil, 2)
	enter := func() (*oneOfFew, net.Conn) {
		ours, theirs := net.Pipe()
		c := &oneOfFew{Conn: ours, of: l}
		if !l.enter(c) {
			t.Fatal("no room")
		}
		return c, theirs
	}
	open := func(c *oneOfFew) bool { l.mu.Lock(); defer l.mu.Unlock(); _, ok := l.open[c]; return ok }
	first, client := enter()
	second, _ := enter()
	go client.Write([]byte("a")) //nolint:errcheck // whoever reads it says so
	if _, err := (arriving{first, first}).Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if enter(); !open(first) || open(second) {
		t.Errorf("open: %v, %v; want the first", open(first), open(second))
	}
}
