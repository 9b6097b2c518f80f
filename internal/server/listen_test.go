package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/protocol/etcd"
	"github.com/quorate/quorate/internal/shard"
)

// socketDir returns a folder whose paths are short enough for sockets, at most 108 bytes.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "q") //nolint:usetesting // paths of sockets are at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// get asks an address for a page, with TLS or without.
func get(t *testing.T, addr string, secure bool, path string) (code int, body string, err error) {
	t.Helper()
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return env.Real().Dial(ctx, addr)
		},
	}
	defer tr.CloseIdleConnections()
	scheme := "http"
	if secure {
		scheme = "https"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://node"+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// speaksGRPC says whether an address begins HTTP/2.
func speaksGRPC(t *testing.T, addr string, secure bool) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := env.Real().Dial(ctx, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if secure {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return askGRPC(c) == nil
}

func TestListenMore_EachAddressServesWhatItIsFor(t *testing.T) {
	ca, dir := newAuthority(t, "ca"), socketDir(t)
	cert, key := ca.sign("server", "server")
	var log lockedLog
	s := startTLS(t, Config{
		TLS: Ports{Etcd: TLS{Cert: cert, Key: key}},
		ListenMore: []ListenMore{
			{Port: "etcd", Address: "127.0.0.1:0", TLS: SecuredIfAsked},
			{Port: "etcd", Address: env.SocketPrefix + filepath.Join(dir, "all")},
			{Port: "etcd", Address: "127.0.0.1:0", Serve: etcd.OnlyGRPC},
			{Port: "etcd", Address: env.SocketPrefix + filepath.Join(dir, "http"), Serve: etcd.OnlyHTTP, TLS: SecuredNever},
			{Port: "etcd", Address: "127.0.0.1:0", Serve: etcd.OnlyMetrics, TLS: SecuredNever},
		},
		Advertise: Listen{Etcd: "https://a:1,b:2"}, Insecure: true,
	}, slog.New(slog.NewTextHandler(&log, nil)))
	doors := s.doors[shard.DefaultSpace]
	for i, c := range []struct {
		secure                       bool
		grpc, version, metrics, json bool
	}{
		{true, true, true, true, true},
		{true, true, true, true, true},
		{true, true, false, false, false},
		{false, false, true, true, true},
		{false, false, true, true, false},
	} {
		at := doors[i].addr
		if got := speaksGRPC(t, at, c.secure); got != c.grpc {
			t.Errorf("%s: gRPC %v, want %v", at, got, c.grpc)
		}
		for path, want := range map[string]bool{"/version": c.version, "/metrics": c.metrics, "/debug/vars": c.metrics, "/v3/kv/range": c.json} {
			code, body, err := get(t, at, c.secure, path)
			// The gateway refuses a GET, but knows the path.
			served := code == http.StatusOK || code == http.StatusNotImplemented || code == http.StatusMethodNotAllowed
			if err != nil || served != want {
				t.Errorf("%s%s: %d %v, want it %v", at, path, code, err, want)
			}
			if i == 2 && (code != http.StatusMisdirectedRequest || !strings.Contains(body, "gRPC only")) {
				t.Errorf("%s%s says %d %q", at, path, code, body)
			}
		}
		if _, _, err := get(t, at, !c.secure, "/version"); (err == nil) != (i == 0) {
			t.Errorf("%s: the other way round: %v", at, err)
		}
	}
	if n := strings.Count(log.String(), "other machines can reach it"); n != 0 {
		t.Errorf("%d warnings of loopback", n)
	}
}

func TestStart_WarnsOfOpenPorts(t *testing.T) {
	var log lockedLog
	startTLS(t, Config{
		Listen: Listen{Etcd: "0.0.0.0:0", HTTP: "127.0.0.1:0"}, Advertise: Listen{Etcd: "127.0.0.1:1"}, Insecure: true,
	}, slog.New(slog.NewTextHandler(&log, nil)))
	if n := strings.Count(log.String(), "other machines can reach it"); n != 1 || !strings.Contains(log.String(), "port=etcd address=0.0.0.0:0") {
		t.Errorf("%d warnings: %s", n, log.String())
	}
}

// Nodes whose peer ports are sockets, of which one is reached by its second address.
func TestListenMore_PeersOnSockets(t *testing.T) {
	ca, dir := newAuthority(t, "ca"), socketDir(t)
	at := func(name string) string { return env.SocketPrefix + filepath.Join(dir, name) }
	peers := map[uint32]string{1: at("127.0.0.1:1"), 2: at("127.0.0.1:2"), 3: at("127.0.0.1:3")}
	var nodes []*Server
	for i := range uint32(3) {
		serverCert, serverKey := ca.sign(fmt.Sprint("server", i), "node")
		dialCert, dialKey := ca.sign(fmt.Sprint("dial", i), "caller")
		cfg := Config{
			Node: i + 1, Data: t.TempDir(), Peers: peers, Listen: Listen{Etcd: at(fmt.Sprint("etcd", i))},
			TLS: Ports{Peer: TLS{Cert: serverCert, Key: serverKey, ClientCA: ca.file, DialCert: dialCert, DialKey: dialKey, ClientNames: []string{"caller"}}},
		}
		if i == 0 {
			cfg.Listen.Peer = "127.0.0.1:0"
			cfg.ListenMore = []ListenMore{{Port: "peer", Address: peers[1]}}
		}
		s, err := Start(cfg, "test", env.Real(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, s := range nodes {
		if err := s.WaitReady(ctx); err != nil {
			t.Error(err)
		}
	}
	for _, s := range nodes {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("files are left: %v %v", left, err)
	}
}
