package server

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/env"
)

func TestDescriptors_ClientsLeaveSomeForTheNode(t *testing.T) {
	for _, c := range []struct {
		d                          descriptors
		clients, tables, operators int
	}{{0, 32 << 10, 1000, 256}, {64, 8, 74, 4}, {256, 32, 74, 16}, {1024, 544, 256, 64}, {4096, 2680, 1000, 256}, {32 << 10, 31352, 1000, 256}} {
		if clients, tables, operators := c.d.clients(), c.d.tables(), c.d.operators(); clients != c.clients || tables != c.tables || operators != c.operators {
			t.Errorf("of %d: %d for clients, %d for tables, %d for operators, want %+v", c.d, clients, tables, operators, c)
		}
	}
}

// Clients who hold more connections than there are descriptors are refused, and those who are connected go on.
func TestDescriptors_TooManyClientsAreRefused(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	few := limit
	few.Cur = 256
	// Nothing is run in parallel to tests of this package, and what is open already is less.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	var log lockedLog
	s, err := Start(Config{
		Cluster: "c", Node: 1, Data: t.TempDir(), Listen: Listen{Redis: "127.0.0.1:0", Kafka: "127.0.0.1:0", Etcd: "127.0.0.1:0", HTTP: "127.0.0.1:0"},
	}, "test", env.Real(), slog.New(slog.NewTextHandler(&log, nil)))
	// The clients are in this process, too.
	if err := errors.Join(err, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)); err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // what it would say is no matter of this test
	clients := descriptors(few.Cur).clients()
	ask := func(nc net.Conn) (string, error) {
		if _, err := io.WriteString(nc, "PING\r\n"); err != nil {
			return "", err
		}
		b := make([]byte, 128)
		n, err := nc.Read(b)
		return string(b[:n]), err
	}
	dial := func(addr string) net.Conn {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		if err := nc.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		return nc
	}
	first := dial(s.Addr().Redis)
	for i := range clients {
		nc := first
		if i > 0 {
			nc = dial(s.Addr().Redis)
		}
		if got, err := ask(nc); err != nil || got != "+PONG\r\n" {
			t.Fatalf("connection %d of %d: %q, %v", i+1, clients, got, err)
		}
	}
	if got, err := io.ReadAll(dial(s.Addr().Redis)); !strings.Contains(string(got), "max number of clients reached") {
		t.Errorf("one more: %q, %v", got, err)
	}
	for _, addr := range []string{s.Addr().Kafka, s.Addr().Etcd} {
		if got, err := io.ReadAll(dial(addr)); len(got) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("one more at %s: %q, %v", addr, got, err)
		}
	}
	if got, err := ask(first); err != nil || got != "+PONG\r\n" {
		t.Errorf("the first one afterwards: %q, %v", got, err)
	}
	if got := log.String(); !strings.Contains(got, "this process may have few files open") {
		t.Errorf("the log does not say that descriptors are few:\n%s", got)
	}
}
