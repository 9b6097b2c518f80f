package test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// loginClient is a client that logs in.
func loginClient(t *testing.T, user, password string, addrs ...string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: addrs, Username: user, Password: password, DialTimeout: 20 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatalf("%s: %v", user, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// enableAuth adds root, and ann who may read and write what begins with app/, and enables authentication.
func enableAuth(t *testing.T, e *clientv3.Client) {
	t.Helper()
	ctx := within(t)
	for what, do := range []func() error{
		func() error { _, err := e.UserAdd(ctx, "root", "top"); return err },
		func() error { _, err := e.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := e.UserAdd(ctx, "ann", "pass"); return err },
		func() error { _, err := e.RoleAdd(ctx, "app"); return err },
		func() error {
			_, err := e.RoleGrantPermission(ctx, "app", "app/", clientv3.GetPrefixRangeEnd("app/"), clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := e.UserGrantRole(ctx, "ann", "app"); return err },
		func() error { _, err := e.AuthEnable(ctx); return err },
	} {
		if err := do(); err != nil {
			t.Fatalf("step %d: %v", what, err)
		}
	}
}

// What is enabled through one node is so for all at once, outlives leaders, and a login on one node is good on each.
func TestEtcdAuth_EnabledIsForAll(t *testing.T) {
	c := start(t, 1)
	ctx := within(t)
	enableAuth(t, etcdClient(t, c.follower(t, 1).etcd))
	// The first request after that, on any node.
	for _, n := range c.nodes {
		e := etcdClient(t, n.etcd)
		if _, err := e.Put(ctx, "app/x", "1"); !errors.Is(err, rpctypes.ErrUserEmpty) {
			t.Errorf("node %d: put by nobody: %v", n.id, err)
		}
		if _, err := e.Get(ctx, "app/x"); !errors.Is(err, rpctypes.ErrUserEmpty) {
			t.Errorf("node %d: get by nobody: %v", n.id, err)
		}
		eventually(t, "the node itself knows", func() (bool, string) {
			_, err := e.Get(ctx, "app/x", clientv3.WithSerializable())
			return errors.Is(err, rpctypes.ErrUserEmpty), fmt.Sprint(err)
		})
		ann := loginClient(t, "ann", "pass", n.etcd)
		if _, err := ann.Put(ctx, "app/x", "1"); err != nil {
			t.Errorf("node %d: put: %v", n.id, err)
		}
		if _, err := ann.Put(ctx, "other", "1"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
			t.Errorf("node %d: put elsewhere: %v", n.id, err)
		}
		if _, err := clientv3.New(clientv3.Config{Endpoints: []string{n.etcd}, Username: "ann", Password: "wrong", DialTimeout: 20 * time.Second, Logger: zap.NewNop()}); !errors.Is(err, rpctypes.ErrAuthFailed) {
			t.Errorf("node %d: wrong password: %v", n.id, err)
		}
	}
	// One token, through each node.
	login, err := etcdClient(t, c.nodes[0].etcd).Authenticate(ctx, "ann", "pass")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		e, err := clientv3.New(clientv3.Config{Endpoints: []string{n.etcd}, Token: login.Token, DialTimeout: 20 * time.Second, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Put(ctx, "app/token", "1"); err != nil {
			t.Errorf("node %d: with a token of another: %v", n.id, err)
		}
		_ = e.Close()
	}
	root, ann := loginClient(t, "root", "top", c.etcdAddrs()...), loginClient(t, "ann", "pass", c.etcdAddrs()...)
	watch := ann.Watch(ctx, "app/", clientv3.WithPrefix())
	for range 2 {
		l := c.leader(t, 1)
		if err := l.stop(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "writes go on", func() (bool, string) {
			try, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			_, err := ann.Put(try, "app/after", "1")
			return err == nil, fmt.Sprint(err)
		})
		if _, err := ann.Put(ctx, "other", "1"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
			t.Errorf("put elsewhere after node %d was killed: %v", l.id, err)
		}
		if err := l.start(); err != nil {
			t.Fatal(err)
		}
		if err := l.waitReady(); err != nil {
			t.Fatal(err)
		}
		if _, err := etcdClient(t, l.etcd).Get(ctx, "app/x"); !errors.Is(err, rpctypes.ErrUserEmpty) {
			t.Errorf("node %d came back: get by nobody: %v", l.id, err)
		}
	}
	if r := <-watch; r.Err() != nil || len(r.Events) == 0 {
		t.Errorf("watch: %v %v", r, r.Err())
	}
	// What is taken is gone with the answer, for requests through every node.
	if _, err := root.RoleRevokePermission(ctx, "app", "app/", clientv3.GetPrefixRangeEnd("app/")); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		e := loginClient(t, "ann", "pass", n.etcd)
		if _, err := e.Put(ctx, "app/x", "1"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
			t.Errorf("node %d: put with a right that was taken: %v", n.id, err)
		}
		if _, err := e.Get(ctx, "app/x"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
			t.Errorf("node %d: get with a right that was taken: %v", n.id, err)
		}
	}
	if _, err := root.AuthDisable(ctx); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		if _, err := etcdClient(t, n.etcd).Put(ctx, "other", "1"); err != nil {
			t.Errorf("node %d: disabled: %v", n.id, err)
		}
	}
	c.sameState(t)
}

// What etcdctl does with users and roles, that of 2022 and that of the release whose API is served.
func TestEtcdctl_Auth(t *testing.T) {
	for name, ctl := range map[string][]string{"Debian": {"etcdctl"}, "newest": {"go", "tool", "etcdctl"}} {
		t.Run(name, func(t *testing.T) {
			c := start(t, 1)
			for i, s := range []struct {
				user, args, want string
			}{
				{"", "user add root:top", "User root created"},
				{"", "auth enable", "Authentication Enabled"},
				{"", "get x", "user name is empty"},
				{"root:bad", "get x", "authentication failed, invalid user ID or password"},
				{"root:top", "put x 1", "OK"},
				{"root:top", "role add r", "Role r created"},
				{"root:top", "role grant-permission r readwrite app/ --prefix", "Role r updated"},
				{"root:top", "role grant-permission r read x", "Role r updated"},
				{"root:top", "role get r", "[app/, app0) (prefix app/)"},
				{"root:top", "user add ann:pass", "User ann created"},
				{"root:top", "user grant-role ann r", "Role r is granted to user ann"},
				{"root:top", "user get ann --detail", "app/"},
				{"root:top", "user list", "ann\nroot\n"},
				{"root:top", "role list", "r\nroot\n"},
				{"ann:pass", "put app/y 2", "OK"},
				{"ann:pass", "get x", "x\n1\n"},
				{"ann:pass", "put x 2", "permission denied"},
				{"ann:pass", "get --prefix --keys-only app/", "app/y"},
				{"ann:pass", "user list", "permission denied"},
				{"ann:pass", "lock app/lock echo locked", "locked\n"},
				{"ann:pass", "endpoint status", "3.7.3"},
				{"ann:pass", "compaction 2", "permission denied"},
				{"root:top", "endpoint health", "is healthy"},
				{"root:top", "role revoke-permission r x", "Permission of key x is revoked from role r"},
				{"ann:pass", "get x", "permission denied"},
				{"root:top", "user revoke-role ann r", "Role r is revoked from user ann"},
				{"root:top", "role delete r", "Role r deleted"},
				{"root:top", "user delete ann", "User ann deleted"},
				{"root:top", "user delete root", "invalid auth management"},
				{"root:top", "auth disable", "Authentication Disabled"},
				{"", "get x", "x\n1\n"},
			} {
				args := append(append([]string{}, ctl[1:]...), "--endpoints", c.nodes[i%3].etcd)
				if s.args == "endpoint status" || s.args == "endpoint health" {
					args = append(args, "--command-timeout=20s")
				}
				if s.user != "" {
					args = append(args, "--user", s.user)
				}
				out, _ := tryTool(t, "", ctl[0], append(args, strings.Fields(s.args)...)...)
				if !strings.Contains(out, s.want) {
					t.Errorf("%s: %s\nwant %s", s.args, out, s.want)
				}
			}
		})
	}
}

// Users and roles go back to etcd with the keys, so that it is not open what was closed.
func TestEtcdAuth_GoesBackToEtcd(t *testing.T) {
	c := start(t, 1)
	ctx := within(t)
	enableAuth(t, etcdClient(t, c.etcdAddrs()...))
	if _, err := loginClient(t, "ann", "pass", c.etcdAddrs()...).Put(ctx, "app/x", "1"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, data := dir+"/snap.db", dir+"/etcd"
	tool(t, "", "etcdctl", "--endpoints", c.nodes[1].etcd, "--user", "root:top", "snapshot", "save", file)
	tool(t, "", "go", "tool", "etcdutl", "snapshot", "restore", file, "--data-dir", data)
	back := realEtcd(t, data)
	if _, err := etcdClient(t, back).Get(ctx, "app/x"); !errors.Is(err, rpctypes.ErrUserEmpty) {
		t.Errorf("get by nobody: %v", err)
	}
	ann := loginClient(t, "ann", "pass", back)
	if get, err := ann.Get(ctx, "app/x"); err != nil || get.Count != 1 {
		t.Errorf("get: %v %v", get, err)
	}
	if _, err := ann.Put(ctx, "other", "1"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("put elsewhere: %v", err)
	}
}

// They come from etcd the same way: who logged in there logs in here, with the same rights, and can go back.
func TestEtcdAuth_ComesFromEtcdAndGoesBack(t *testing.T) {
	ctx := within(t)
	dir := t.TempDir()
	old := realEtcd(t, dir+"/old")
	enableAuth(t, etcdClient(t, old))
	o := loginClient(t, "root", "top", old)
	if _, err := o.UserAddWithOptions(ctx, "cert", "", &clientv3.UserAddOptions{NoPassword: true}); err != nil {
		t.Fatal(err)
	}
	// etcd keeps both for the same keys.
	for _, typ := range []clientv3.PermissionType{clientv3.PermissionType(clientv3.PermRead), clientv3.PermissionType(clientv3.PermWrite)} {
		for _, end := range []string{"b", "c"} {
			if _, err := o.RoleGrantPermission(ctx, "app", "a", end, typ); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := o.Put(ctx, "app/x", "1"); err != nil {
		t.Fatal(err)
	}
	file := dir + "/old.db"
	tool(t, "", "etcdctl", "--endpoints", old, "--user", "root:top", "snapshot", "save", file)
	c := start(t, 1, "spaces: {billing: {users: true}}\n")
	// The space has no other way in than by its users, who come with the import.
	for space, user := range map[string]string{"default": "", "billing": "billing/"} {
		out := tool(t, "", binary, "import", "etcd-snapshot", file, "--http", c.nodes[1].http, "--space", space)
		if !strings.Contains(out, "loaded 1 keys") || !strings.Contains(out, "with them 3 users") || !strings.Contains(out, "authentication is enabled") {
			t.Errorf("import says %q", out)
		}
		for _, n := range c.nodes {
			ann := loginClient(t, user+"ann", "pass", n.etcd)
			if get, err := ann.Get(ctx, "app/x"); err != nil || get.Count != 1 {
				t.Errorf("node %d: get %v %v", n.id, get, err)
			}
			for key, want := range map[string]error{"app/y": nil, "ab": nil, "d": rpctypes.ErrPermissionDenied} {
				if _, err := ann.Put(ctx, key, "1"); !errors.Is(err, want) {
					t.Errorf("node %d: put %s: %v, want %v", n.id, key, err, want)
				}
			}
			if user == "" {
				if _, err := etcdClient(t, n.etcd).Get(ctx, "app/x"); !errors.Is(err, rpctypes.ErrUserEmpty) {
					t.Errorf("node %d: get by nobody: %v", n.id, err)
				}
			}
		}
		root := loginClient(t, user+"root", "top", c.etcdAddrs()...)
		was, err1 := o.AuthStatus(ctx)
		is, err2 := root.AuthStatus(ctx)
		if err := errors.Join(err1, err2); err != nil || !is.Enabled || is.AuthRevision != was.AuthRevision {
			t.Errorf("%s: status %v became %v: %v", space, was, is, err)
		}
		users, err1 := root.UserList(ctx)
		roles, err2 := root.RoleGet(ctx, "app")
		if err := errors.Join(err1, err2); err != nil || fmt.Sprint(users.Users) != "[ann cert root]" || len(roles.Perm) != 3 {
			t.Errorf("%s: users %v, permissions %v: %v", space, users, roles, err)
		}
	}
	saved, data := dir+"/back.db", dir+"/back"
	tool(t, "", "etcdctl", "--endpoints", c.nodes[2].etcd, "--user", "billing/root:top", "snapshot", "save", saved)
	tool(t, "", "go", "tool", "etcdutl", "snapshot", "restore", saved, "--data-dir", data)
	back := realEtcd(t, data)
	if _, err := etcdClient(t, back).Get(ctx, "app/x"); !errors.Is(err, rpctypes.ErrUserEmpty) {
		t.Errorf("back in etcd, by nobody: %v", err)
	}
	ann := loginClient(t, "ann", "pass", back)
	if get, err := ann.Get(ctx, "app/y"); err != nil || get.Count != 1 {
		t.Errorf("back in etcd: %v %v", get, err)
	}
	if _, err := ann.Put(ctx, "d", "1"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("back in etcd, put elsewhere: %v", err)
	}
	if users, err := loginClient(t, "root", "top", back).UserList(ctx); err != nil || len(users.Users) != 3 {
		t.Errorf("back in etcd: %v %v", users, err)
	}
	c.sameState(t)
}
