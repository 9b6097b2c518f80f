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
		Spaces: map[string]SpaceConfig{"billing": {Etcd: "127.0.0.1:0", TLSNames: []string{"billing.test"}}, "depot": {TLSNames: []string{"depot.test"}, Path: true}},
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
	// tryCall posts to a port, asking for a name in TLS.
	tryCall := func(addr, name, path, body string) (string, error) {
		tr := &http.Transport{TLSClientConfig: &tls.Config{ServerName: name, InsecureSkipVerify: true}}
		defer tr.CloseIdleConnections()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+path, strings.NewReader(body))
		if err != nil {
			return "", err
		}
		resp, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s %s", path, resp.Status, b)
		}
		return string(b), err
	}
	call := func(addr, name, path, body string) string {
		t.Helper()
		said, err := tryCall(addr, name, path, body)
		if err != nil {
			t.Fatal(err)
		}
		return said
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
		{main, "", "default"}, {main, "elsewhere.test", "default"}, {main, "billing.test", "billing"}, {own, "", "billing"}, {own, "billing.test", "billing"},
		{main, "depot.test", "depot"}, {main, "Depot.Test", "depot"}, {main + "/spaces/depot", "", "depot"}, {main + "/spaces/depot", "depot.test", "depot"},
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
	if members = call(main, "depot.test", "/v3/cluster/member/list", "{}"); !strings.Contains(members, main+"/spaces/depot") {
		t.Errorf("members of the space without a port %s, want %s, with its path", members, main)
	}
	// A port and a name that are of two spaces; a name and a path.
	if _, err := tryCall(own, "depot.test", "/v3/kv/range", "{}"); err == nil {
		t.Error("the port of one space answered to the name of another")
	}
	for _, name := range []string{"billing.test", "depot.test"} {
		if _, err := tryCall(main, name, "/spaces/billing/v3/kv/range", "{}"); err == nil || !strings.Contains(err.Error(), "404") {
			t.Errorf("a space that has no path, by one: %v", err)
		}
	}
	if _, err := tryCall(main, "billing.test", "/spaces/depot/v3/kv/range", "{}"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a path below the name of another space: %v", err)
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
		"set that":             {Spaces: map[string]SpaceConfig{"a": {Users: true}}},
		"users and path are":   {Spaces: map[string]SpaceConfig{"a": {Etcd: "127.0.0.1:0", Path: true}}},
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

// By a user of its own a space is reached on the main port, with a token that is good after a restart.
func TestSpaces_ByUser(t *testing.T) {
	cfg := Config{
		Data: t.TempDir(), Listen: Listen{Etcd: "127.0.0.1:0"}, EtcdAuth: EtcdAuth{BcryptCost: 4},
		Spaces: map[string]SpaceConfig{"billing": {Users: true, Path: true}, "depot": {Path: true}},
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var s *Server
	start := func() {
		t.Helper()
		var err error
		if s, err = Start(cfg, "test", env.Real(), slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		if err := s.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	call := func(path, token, body string) (int, string) { return postJSON(t, s, path, token, body) }
	login := func(user string) (int, string) {
		code, said := call("/v3/auth/authenticate", "", fmt.Sprintf(`{"name":%q,"password":"top"}`, user))
		var a struct{ Token string }
		if err := json.Unmarshal([]byte(said), &a); err != nil {
			t.Fatal(err)
		}
		return code, a.Token
	}
	start()
	for _, step := range []string{`user/add {"name":"root","password":"top"}`, `user/grant {"user":"root","role":"root"}`, `enable {}`} {
		path, body, _ := strings.Cut(step, " ")
		if code, said := call("/spaces/billing/v3/auth/"+path, "", body); code != http.StatusOK {
			t.Fatalf("%s: %d %s", path, code, said)
		}
	}
	code, token := login("billing/root")
	if code != http.StatusOK {
		t.Fatalf("login: %d", code)
	}
	if code, _ := login("depot/root"); code != http.StatusBadRequest {
		t.Errorf("login to a space that takes no users: %d", code)
	}
	if code, said := call("/v3/kv/put", token, `{"key":"aw==","value":"dg=="}`); code != http.StatusOK {
		t.Errorf("put: %d %s", code, said)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	start()
	if code, said := call("/v3/kv/range", token, `{"key":"aw=="}`); code != http.StatusOK || !strings.Contains(said, "dg==") {
		t.Errorf("range after a restart: %d %s", code, said)
	}
	if code, said := call("/v3/kv/range", "", `{"key":"aw=="}`); code != http.StatusOK || strings.Contains(said, "dg==") {
		t.Errorf("range in the default space: %d %s", code, said)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// What takes no users any more is not mistaken for the default space.
	billing := cfg.Spaces["billing"]
	billing.Users = false
	cfg.Spaces["billing"] = billing
	start()
	if code, said := call("/v3/kv/range", token, `{"key":"aw=="}`); code != http.StatusUnauthorized {
		t.Errorf("with a token of a space that takes no users any more: %d %s", code, said)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// postJSON sends a request to a node's etcd port, with a token unless that is empty. It returns the answer, whatever its code.
func postJSON(t *testing.T, s *Server, path, token, body string) (code int, answer string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.Addr().Etcd+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", token)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
