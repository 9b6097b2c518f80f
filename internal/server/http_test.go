package server

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
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
	for range httpConnectionsMax {
		if err := ask(dial()); err != nil {
			t.Fatal(err)
		}
	}
	if err := ask(dial()); err == nil {
		t.Errorf("more than %d connections are open", httpConnectionsMax)
	}
	if err := open[0].Close(); err != nil {
		t.Fatal(err)
	}
	// The server notices in its own time.
	for end := time.Now().Add(time.Minute); ask(dial()) != nil; {
		if time.Now().After(end) {
			t.Fatal("the place of a connection that was closed is not given again")
		}
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
