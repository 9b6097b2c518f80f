//go:build programs

package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// apiServer is a kube-apiserver on a cluster.
type apiServer struct {
	t     *testing.T
	c     *cluster
	dir   string
	addr  string
	http  *http.Client
	cmd   *exec.Cmd
	ended chan struct{}
}

const apiToken = "not-a-secret"

// start starts the process with the flags that kubeadm makes of what the page says, and waits until it is ready.
func (s *apiServer) start() {
	s.t.Helper()
	program, err := filepath.Abs("../bin/foreign/bin/kube-apiserver")
	if err != nil {
		s.t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(s.dir, name) }
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(file("tokens.csv"), []byte(apiToken+",admin,1,system:masters\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	log, err := os.OpenFile(file("kube-apiserver.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(program,
		"--etcd-servers", "https://"+strings.Join(s.c.etcdAddrs(), ",https://"),
		"--etcd-cafile", file("ca.pem"), "--etcd-certfile", file("leaf.pem"), "--etcd-keyfile", file("leaf-key.pem"),
		"--bind-address", host, "--secure-port", port, "--advertise-address", "192.0.2.1", "--service-cluster-ip-range", "10.96.0.0/16",
		"--tls-cert-file", file("leaf.pem"), "--tls-private-key-file", file("leaf-key.pem"), "--cert-dir", s.dir,
		"--authorization-mode", "RBAC", "--token-auth-file", file("tokens.csv"),
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", file("leaf-key.pem"), "--service-account-signing-key-file", file("leaf-key.pem"))
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("%v; make foreign-programs builds it", err)
	}
	cmd, ended := s.cmd, make(chan struct{})
	s.ended = ended
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	// It makes its own roles, namespaces and priorities first: some hundred keys.
	deadline := time.Now().Add(4 * time.Minute)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		code, said, err := s.try(http.MethodGet, "/readyz", nil)
		if err == nil && code == http.StatusOK {
			return
		}
		select {
		case <-ended:
			s.t.Fatal("kube-apiserver ended before it was ready")
		case <-tick.C:
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("kube-apiserver is not ready: %d %s %v", code, said, err)
		}
	}
}

// kill ends the process.
func (s *apiServer) kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
}

func (s *apiServer) open(ctx context.Context, method, path string, body any) (*http.Response, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+s.addr+path, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+apiToken)
	req.Header.Set("Content-Type", "application/json")
	return s.http.Do(req)
}

// try makes a request.
func (s *apiServer) try(method, path string, body any) (int, string, error) {
	resp, err := s.open(within(s.t), method, path, body)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	return resp.StatusCode, b.String(), err
}

// want makes a request that must be answered with a code, and returns the object.
func (s *apiServer) want(code int, method, path string, body any) object {
	s.t.Helper()
	got, said, err := s.try(method, path, body)
	if err != nil || got != code {
		s.t.Fatalf("%s %s: %d %v, want %d\n%s", method, path, got, err, code, said)
	}
	var v object
	if err := json.Unmarshal([]byte(said), &v); err != nil {
		s.t.Fatalf("%s %s: %v in %s", method, path, err, said)
	}
	return v
}

// TestProgram_Kubernetes runs kube-apiserver on a cluster with TLS: objects, watches, events with a lease, lists in pages, and deaths of either side.
func TestProgram_Kubernetes(t *testing.T) {
	dir, conf := certificates(t)
	c := startSecured(t, dir)
	ports, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: conf.RootCAs, MinVersion: tls.VersionTLS12}}
	s := &apiServer{t: t, c: c, dir: dir, addr: ports[0], http: &http.Client{Transport: web}}
	t.Cleanup(func() {
		if s.cmd != nil && s.ended != nil {
			s.kill()
		}
		web.CloseIdleConnections()
		if b, _ := os.ReadFile(filepath.Join(dir, "kube-apiserver.log")); t.Failed() {
			t.Logf("log of kube-apiserver:\n%s", b[max(0, len(b)-6000):])
		}
	})
	s.start()

	const maps = "/api/v1/namespaces/shop/configmaps"
	configMap := func(name, value, rev string) object {
		meta := object{"name": name}
		if rev != "" {
			meta["resourceVersion"] = rev
		}
		return object{"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": object{"k": value}}
	}
	rev := func(o object) string { return fmt.Sprint(dig(o, "metadata", "resourceVersion")) }
	s.want(201, http.MethodPost, "/api/v1/namespaces", object{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": "shop"}})
	list := s.want(200, http.MethodGet, maps, nil)

	// A watch from the list on, by which all that follows must come.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	resp, err := s.open(ctx, http.MethodGet, maps+"?watch=1&resourceVersion="+rev(list), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("watch: %v %v", resp, err)
	}
	defer resp.Body.Close()
	events := json.NewDecoder(resp.Body)
	next := func(want string) {
		t.Helper()
		var ev object
		if err := events.Decode(&ev); err != nil {
			t.Fatalf("watch: %v, want %s", err, want)
		}
		if got := fmt.Sprint(ev["type"], " ", dig(ev, "object", "metadata", "name"), " ", dig(ev, "object", "data", "k")); got != want {
			t.Fatalf("watch: %s, want %s", got, want)
		}
	}

	first := s.want(201, http.MethodPost, maps, configMap("a", "1", ""))
	s.want(409, http.MethodPost, maps, configMap("a", "2", ""))
	s.want(200, http.MethodPut, maps+"/a", configMap("a", "2", rev(first)))
	s.want(409, http.MethodPut, maps+"/a", configMap("a", "3", rev(first)))
	s.want(201, http.MethodPost, maps, configMap("b", "1", ""))
	s.want(201, http.MethodPost, maps, configMap("c", "1", ""))
	s.want(200, http.MethodDelete, maps+"/b", nil)
	for _, want := range []string{"ADDED a 1", "MODIFIED a 2", "ADDED b 1", "ADDED c 1", "DELETED b 1"} {
		next(want)
	}
	page := s.want(200, http.MethodGet, maps+"?limit=1", nil)
	more := fmt.Sprint(dig(page, "metadata", "continue"))
	if dig(page, "items", 0, "metadata", "name") != "a" || more == "" {
		t.Errorf("first page: %v", page)
	}
	if page = s.want(200, http.MethodGet, maps+"?limit=1&continue="+more, nil); dig(page, "items", 0, "metadata", "name") != "c" {
		t.Errorf("second page: %v", page)
	}

	// An event's key has a lease.
	s.want(201, http.MethodPost, "/api/v1/namespaces/shop/events", object{
		"apiVersion": "v1", "kind": "Event", "metadata": object{"name": "e"}, "involvedObject": object{"namespace": "shop", "name": "a", "kind": "ConfigMap"},
	})
	e := securedClient(t, c, conf.Clone())
	if r, err := e.Get(within(t), "/registry/events/shop/e"); err != nil || len(r.Kvs) != 1 || r.Kvs[0].Lease == 0 {
		t.Errorf("the event's key: %v %v", r, err)
	}

	// The node that leads is killed: the same watch goes on.
	dead := c.leader(t, 1)
	if err := dead.stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a write without one node", func() (bool, string) {
		// One whose answer was lost has been done.
		code, said, err := s.try(http.MethodPost, maps, configMap("d", "1", ""))
		return err == nil && (code == 201 || code == 409), fmt.Sprint(code, " ", said, " ", err)
	})
	next("ADDED d 1")
	if err := errors.Join(dead.start(), dead.waitReady()); err != nil {
		t.Fatal(err)
	}

	// Another server finds all of it.
	s.kill()
	s.start()
	var names []string
	items, _ := s.want(200, http.MethodGet, maps, nil)["items"].([]any)
	for _, o := range items {
		names = append(names, fmt.Sprint(dig(o, "metadata", "name"), "=", dig(o, "data", "k")))
	}
	if got := strings.Join(names, " "); got != "a=2 c=1 d=1" {
		t.Errorf("after a restart there are %s", got)
	}
	c.sameState(t)
}
