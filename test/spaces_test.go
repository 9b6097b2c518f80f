package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

// Stock clients reach a space by its users and by its path, on every node's main port.
func TestSpaces_ByUserAndPath(t *testing.T) {
	c := start(t, 1, "spaces: {billing: {users: true, path: true}}\n")
	ctx := within(t)
	post := func(node int, path, token, body string) string {
		t.Helper()
		args := []string{"-s", "-S", "-d", body, "http://" + c.nodes[node].etcd + path}
		if token != "" {
			args = append(args, "-H", "Authorization: "+token)
		}
		return tool(t, "", "curl", args...)
	}
	// Nobody can log in before there are users, and the client does not go on in another space.
	_, err := clientv3.New(clientv3.Config{Endpoints: c.etcdAddrs(), Username: "billing/alice", Password: "pass", DialTimeout: 20 * time.Second, Logger: zap.NewNop()})
	if err == nil || !strings.Contains(err.Error(), "has not enabled authentication") {
		t.Errorf("login before there are users: %v", err)
	}
	for _, s := range []string{
		`user/add {"name":"root","password":"top"}`, `user/grant {"user":"root","role":"root"}`, `user/add {"name":"alice","password":"pass"}`, `role/add {"name":"app"}`,
		fmt.Sprintf(`role/grant {"name":"app","perm":{"permType":"READWRITE","key":%q,"range_end":%q}}`, b64("app/"), b64("app0")),
		`user/grant {"user":"alice","role":"app"}`, `enable {}`,
	} {
		path, body, _ := strings.Cut(s, " ")
		if said := post(0, "/spaces/billing/v3/auth/"+path, "", body); !strings.Contains(said, `"header"`) {
			t.Fatalf("%s: %s", path, said)
		}
	}
	nobody := etcdClient(t, c.etcdAddrs()...)
	if _, err := nobody.Put(ctx, "app/x", "of all"); err != nil {
		t.Fatal(err)
	}
	for i, n := range c.nodes {
		alice := loginClient(t, "billing/alice", "pass", n.etcd)
		events := alice.Watch(ctx, "app/x")
		if _, err := alice.Put(ctx, "app/x", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		if get, err := alice.Get(ctx, "app/x"); err != nil || string(get.Kvs[0].Value) != fmt.Sprint(i) {
			t.Errorf("node %d: get %v %v", n.id, get, err)
		}
		if r := <-events; r.Err() != nil || len(r.Events) != 1 || string(r.Events[0].Kv.Value) != fmt.Sprint(i) {
			t.Errorf("node %d: watch %v %v", n.id, r, r.Err())
		}
		if _, err := alice.Put(ctx, "other", "1"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
			t.Errorf("node %d: put elsewhere: %v", n.id, err)
		}
		// A session has a lease, which it renews, and the mutex a key.
		s, err := concurrency.NewSession(alice, concurrency.WithTTL(20))
		if err != nil {
			t.Fatal(err)
		}
		m := concurrency.NewMutex(s, "app/lock")
		if err := errors.Join(m.Lock(ctx), m.Unlock(ctx), s.Close()); err != nil {
			t.Errorf("node %d: lock: %v", n.id, err)
		}
		for name, ctl := range map[string][]string{"Debian": {"etcdctl"}, "newest": {"go", "tool", "etcdctl"}} {
			out := tool(t, "", ctl[0], append(append([]string{}, ctl[1:]...), "--endpoints", n.etcd, "--user", "billing/alice:pass", "get", "app/x", "--print-value-only")...)
			if strings.TrimSpace(out) != fmt.Sprint(i) {
				t.Errorf("node %d: %s got %q", n.id, name, out)
			}
		}
		if get, err := nobody.Get(ctx, "app/x"); err != nil || string(get.Kvs[0].Value) != "of all" {
			t.Errorf("default: %v %v", get, err)
		}
		if _, err := clientv3.New(clientv3.Config{Endpoints: []string{n.etcd}, Username: "billing/alice", Password: "no", DialTimeout: 20 * time.Second, Logger: zap.NewNop()}); !errors.Is(err, rpctypes.ErrAuthFailed) {
			t.Errorf("node %d: wrong password: %v", n.id, err)
		}
	}
	// The gateway, with a login on one node and the token on the others, by the path and without.
	var a struct{ Token string }
	if err := json.Unmarshal([]byte(post(0, "/v3/auth/authenticate", "", `{"name":"billing/alice","password":"pass"}`)), &a); err != nil {
		t.Fatal(err)
	}
	get := fmt.Sprintf(`{"key":%q}`, b64("app/x"))
	for i := range c.nodes {
		for _, path := range []string{"/v3/kv/range", "/spaces/billing/v3/kv/range"} {
			if said := post(i, path, a.Token, get); !strings.Contains(said, fmt.Sprintf(`"value":%q`, b64("2"))) {
				t.Errorf("node %d %s: %s", i+1, path, said)
			}
		}
		if said := post(i, "/spaces/billing/v3/kv/range", "", get); !strings.Contains(said, "user name is empty") {
			t.Errorf("by nobody: %s", said)
		}
		if said := tool(t, "", "curl", "-s", "-S", "http://"+c.nodes[i].etcd+"/spaces/billing/health"); !strings.Contains(said, `"health":"true"`) {
			t.Errorf("health: %s", said)
		}
		if code := tool(t, "", "curl", "-s", "-S", "-o", "/dev/null", "-w", "%{http_code}", "http://"+c.nodes[i].etcd+"/spaces/elsewhere/health"); code != "404" {
			t.Errorf("an unknown space: %s", code)
		}
	}
	c.sameState(t)
}
