package server

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/protocol/etcd"
	"github.com/quorate/quorate/internal/shard"
)

// answering is a port that answers to whatever it is told, and hangs up.
func answering(t *testing.T, with string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { _ = ln.Close(); <-ended })
	go func() {
		defer close(ended)
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = nc.Read(make([]byte, 1000))
			_, _ = nc.Write([]byte(with))
			_ = nc.Close()
		}
	}()
	return ln.Addr().String()
}

// A node is ready only when each of its ports has answered as its protocol wants it.
func TestProbe_EachPortMustAnswer(t *testing.T) {
	s, err := Start(Config{Listen: Listen{HTTP: "127.0.0.1:0"}}, "test", env.Real(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // a test's
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	door := func(scope etcd.Scope, plain bool) func(addr string) Server {
		return func(addr string) Server {
			return Server{doors: map[string][]door{shard.DefaultSpace: {{addr: addr, scope: scope, plain: plain}}}}
		}
	}
	for _, c := range []struct {
		port string
		at   func(addr string) Server
		good string
		bad  []string
	}{
		{"redis", func(addr string) Server { return Server{addr: Listen{Redis: addr}} }, ":0\r\n", []string{"-ERR no\r\n", "+OK\r\n", ":0", ""}},
		{"kafka", func(addr string) Server { return Server{addr: Listen{Kafka: addr}} }, "\x00\x00\x00\x0a\x00\x00\x00\x07", []string{"\x00\x00\x00\x0a\x00\x00\x00\x08", "\x00\x00\x00\x0a\x00\x00\x00", ""}},
		{"etcd", door(etcd.All, false), "HTTP/1.0 200 OK\r\n", []string{"HTTP/1.0 503 Service Unavailable\r\n", "HTTP/1.0 200 OK", ""}},
		{"etcd", door(etcd.OnlyGRPC, false), "\x00\x00\x00\x04\x00\x00\x00\x00\x00", []string{"\x00\x00\x00\x05\x00\x00\x00\x00\x00", "\x00\x00\x00\x04\x00\x00\x00\x00", "HTTP/1.1 400 Bad Request\r\n"}},
		{"etcd without TLS", door(etcd.OnlyMetrics, true), "HTTP/1.0 200 OK\r\n", []string{"HTTP/1.0 404 Not Found\r\n"}},
	} {
		for i, say := range append([]string{c.good}, c.bad...) {
			as := c.at(answering(t, say))
			as.engine = s.engine
			err := as.Probe(ctx)
			if good := i == 0; good != (err == nil) || !good && !strings.Contains(err.Error(), "probe "+c.port+":") {
				t.Errorf("%s, whose answer is %q: %v", c.port, say, err)
			}
		}
	}
	gone := Server{engine: s.engine, addr: Listen{Redis: unused(t)}}
	if err := gone.Probe(ctx); err == nil || !strings.Contains(err.Error(), "probe redis:") {
		t.Errorf("nobody listens: %v", err)
	}
}
