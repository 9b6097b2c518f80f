package server

import (
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/env"
)

// What is begun on one port and on another counts together.
func TestRequests_OfAllPortsCount(t *testing.T) {
	s, err := Start(Config{Listen: Listen{Redis: "127.0.0.1:0", Etcd: "127.0.0.1:0", HTTP: "127.0.0.1:0"}}, "test", env.Real(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // not what is tested
	used := int64(0)
	for addr, begin := range map[string]string{
		s.Addr().Redis: "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1000000\r\n",
		s.Addr().Etcd:  "POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{\"key\": \"",
		s.Addr().HTTP:  "POST /etcd/load HTTP/1.1\r\nHost: x\r\nContent-Type: " + LoadType + "\r\nContent-Length: 1000000\r\n\r\n",
	} {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close() //nolint:errcheck // only written to
		if _, err := io.WriteString(nc, begin+strings.Repeat("a", 500_000)); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); s.requests.Used() < used+300_000; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d bytes count, of which the request %q is none", s.requests.Used(), begin[:4])
			}
		}
		used = s.requests.Used()
	}
}
