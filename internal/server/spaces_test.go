package server

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
)

func TestSpaces_HaveKeysOfTheirOwn(t *testing.T) {
	ca := newAuthority(t, "ca")
	cert, key := ca.sign("server", "server")
	cfg := Config{
		Data: t.TempDir(), Listen: Listen{Etcd: "127.0.0.1:0", Redis: "127.0.0.1:0"}, TLS: Ports{Etcd: TLS{Cert: cert, Key: key}}, Shards: 2,
		Spaces: map[string]SpaceConfig{"billing": {Etcd: "127.0.0.1:0", TLSNames: []string{"billing.test"}}, "depot": {TLSNames: []string{"depot.test"}}},
	}
	s, err := Start(cfg, "test", env.Real(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	// call posts to a port, asking for a name in TLS.
	call := func(addr, name, path, body string) string {
		t.Helper()
		tr := &http.Transport{TLSClientConfig: &tls.Config{ServerName: name, InsecureSkipVerify: true}}
		defer tr.CloseIdleConnections()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %s %v", path, resp.Status, b, err)
		}
		return string(b)
	}
	k := base64.StdEncoding.EncodeToString([]byte("k"))
	get := func(addr, name string) (string, string) {
		t.Helper()
		var a struct {
			Header struct {
				ClusterID string `json:"cluster_id"`
			}
			Kvs []struct{ Value []byte }
		}
		if err := json.Unmarshal([]byte(call(addr, name, "/v3/kv/range", fmt.Sprintf(`{"key":%q}`, k))), &a); err != nil {
			t.Fatal(err)
		}
		if len(a.Kvs) == 0 {
			return "", a.Header.ClusterID
		}
		return string(a.Kvs[0].Value), a.Header.ClusterID
	}
	main, own := s.Addr().Etcd, s.spaceAddr["billing"]
	clusters := map[string]bool{}
	doors := []struct{ addr, name, space string }{
		{main, "", "default"}, {main, "elsewhere.test", "default"}, {main, "billing.test", "billing"}, {own, "", "billing"}, {main, "depot.test", "depot"},
	}
	for _, d := range doors {
		v := base64.StdEncoding.EncodeToString([]byte(d.space))
		call(d.addr, d.name, "/v3/kv/put", fmt.Sprintf(`{"key":%q,"value":%q}`, k, v))
	}
	for _, d := range doors {
		v, id := get(d.addr, d.name)
		if v != d.space {
			t.Errorf("%s by %q: got %q, want %q", d.addr, d.name, v, d.space)
		}
		clusters[id] = true
	}
	if len(clusters) != 3 {
		t.Errorf("cluster ids %v", clusters)
	}
	members := call(main, "billing.test", "/v3/cluster/member/list", "{}")
	if !strings.Contains(members, own) {
		t.Errorf("members of the space %s, want its own address %s", members, own)
	}
	if members = call(main, "depot.test", "/v3/cluster/member/list", "{}"); !strings.Contains(members, main) {
		t.Errorf("members of the space without a port %s, want %s", members, main)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// The shard of a space follows from all of them.
	for _, other := range []map[string]SpaceConfig{nil, {"billing": cfg.Spaces["billing"]}, {"accounts": cfg.Spaces["billing"], "depot": cfg.Spaces["depot"]}} {
		c := cfg
		c.Spaces = other
		if _, err := Start(c, "test", env.Real(), slog.New(slog.DiscardHandler)); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "with spaces billing, depot") {
			t.Errorf("other spaces: %v", err)
		}
	}
}

func TestSpaces_Refused(t *testing.T) {
	for want, c := range map[string]Config{
		"not \"default\"":      {Spaces: map[string]SpaceConfig{"default": {Etcd: "127.0.0.1:0"}}},
		"lower-case letters":   {Spaces: map[string]SpaceConfig{"A b": {Etcd: "127.0.0.1:0"}}},
		"nobody can reach it":  {Spaces: map[string]SpaceConfig{"a": {}}},
		"set both":             {Spaces: map[string]SpaceConfig{"a": {TLSNames: []string{"x"}}}},
		"spaces.a.etcd is":     {Spaces: map[string]SpaceConfig{"a": {Etcd: "10.0.0.1:1"}}},
		"is that of space a":   {Listen: Listen{Etcd: "127.0.0.1:0"}, TLS: Ports{Etcd: TLS{Auto: true}}, Spaces: map[string]SpaceConfig{"a": {TLSNames: []string{"x"}}, "b": {TLSNames: []string{"x"}}}},
		"set spaces.a.adverti": {Insecure: true, Spaces: map[string]SpaceConfig{"a": {Etcd: "0.0.0.0:1"}}},
	} {
		if err := c.fill(); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
