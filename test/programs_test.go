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
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Programs that run on etcd, run on Quorate with what docs/howto/in-place-of-etcd.md says to set. make foreign-programs installs them and runs these.

// setting returns what the page says to set in a program, in its one block of a language, for a cluster instead of the addresses that are there.
func setting(t *testing.T, language string, c *cluster) string {
	t.Helper()
	said := program(t, "../docs/howto/in-place-of-etcd.md", language)
	for i, a := range c.etcdAddrs() {
		like := fmt.Sprintf("10.0.0.%d:2379", i+1)
		if !strings.Contains(said, like) {
			t.Fatalf("no %s in\n%s", like, said)
		}
		said = strings.ReplaceAll(said, like, a)
	}
	return said
}

// patroni is one Patroni and its PostgreSQL.
type patroni struct {
	t                        *testing.T
	name, dir, rest, pg, bin string
	cmd                      *exec.Cmd
	ended                    chan struct{}
}

// asPostgres is how processes of PostgreSQL run: it refuses to be root.
func asPostgres(t *testing.T) *syscall.SysProcAttr {
	t.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatalf("%v; make foreign-programs installs PostgreSQL", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}

// newPatroni writes the configuration of a Patroni.
func newPatroni(t *testing.T, dir, name, dcs string) *patroni {
	t.Helper()
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(bins) == 0 {
		t.Fatalf("no PostgreSQL (%v); make foreign-programs installs it", err)
	}
	ports, err := freePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	p := &patroni{t: t, name: name, dir: dir, rest: ports[0], pg: ports[1], bin: bins[len(bins)-1]}
	// The shortest times that Patroni allows, so that a failover does not take a minute.
	config := fmt.Sprintf(`scope: batman
name: %[1]s
restapi: {listen: %[2]q, connect_address: %[2]q}
%[3]s
bootstrap:
  dcs: {ttl: 20, loop_wait: 2, retry_timeout: 6, postgresql: {use_pg_rewind: true}}
  initdb: [{encoding: UTF8}, data-checksums]
  pg_hba: ["host all all 127.0.0.1/32 md5", "host replication all 127.0.0.1/32 md5"]
postgresql:
  listen: %[4]q
  connect_address: %[4]q
  data_dir: %[5]s/%[1]s
  bin_dir: %[6]s
  pgpass: %[5]s/%[1]s.pgpass
  parameters: {unix_socket_directories: %[5]s}
  authentication: {superuser: {username: postgres, password: secret}, replication: {username: follower, password: secret}}
`, name, p.rest, dcs, p.pg, dir, p.bin)
	if err := os.WriteFile(p.config(), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd == nil {
			return
		}
		// In order first, which stops PostgreSQL, too.
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.ended:
		case <-time.After(30 * time.Second):
			p.kill()
		}
		if t.Failed() {
			b, _ := os.ReadFile(p.config() + ".log")
			t.Logf("log of %s:\n%s", p.name, b[max(0, len(b)-6000):])
		}
	})
	return p
}

func (p *patroni) config() string { return filepath.Join(p.dir, p.name+".yml") }

func (p *patroni) start() {
	p.t.Helper()
	log, err := os.OpenFile(p.config()+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("patroni", p.config())
	cmd.Dir, cmd.SysProcAttr, cmd.Stdout, cmd.Stderr = p.dir, asPostgres(p.t), log, log
	if err := cmd.Start(); err != nil {
		p.t.Fatalf("%v; make foreign-programs installs Patroni", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	p.cmd, p.ended = cmd, ended
}

// kill ends Patroni and its PostgreSQL at once, by their numbers.
func (p *patroni) kill() {
	p.t.Helper()
	_ = p.cmd.Process.Kill()
	<-p.ended
	p.cmd = nil
	b, err := os.ReadFile(filepath.Join(p.dir, p.name, "postmaster.pid"))
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			p.t.Error(err)
		}
		return
	}
	first, _, _ := bytes.Cut(b, []byte("\n"))
	pid, err := strconv.Atoi(string(first))
	if err != nil || pid < 2 {
		p.t.Errorf("postmaster.pid of %s begins with %q", p.name, first)
		return
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		p.t.Errorf("kill PostgreSQL of %s: %v", p.name, err)
	}
}

// state is what a Patroni says of itself.
type state struct {
	State, Role string
	Timeline    int
	// LastSeen is when it has heard from the cluster that holds its state, in seconds.
	LastSeen int64 `json:"dcs_last_seen"`
	// Replication is of those that follow this one.
	Replication []struct{ State string }
}

func (p *patroni) state() (state, error) {
	var s state
	resp, err := http.Get("http://" + p.rest + "/patroni")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// is waits until a Patroni has a role, and PostgreSQL runs.
func (p *patroni) is(role string) {
	p.t.Helper()
	p.within(3*time.Minute, p.name+" is "+role, func() (bool, string) {
		s, err := p.state()
		got := strings.Replace(s.Role, "master", "primary", 1) // as Patroni 3 says
		return err == nil && got == role && s.State == "running", fmt.Sprintf("%+v %v", s, err)
	})
}

// within is eventually, for what takes PostgreSQL longer.
func (p *patroni) within(limit time.Duration, what string, ok func() (bool, string)) {
	p.t.Helper()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; <-tick.C {
		done, said := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: still not so after %v: %s", what, limit, said)
		}
	}
}

// sql runs a statement.
func (p *patroni) sql(statement string) (string, error) {
	host, port, err := net.SplitHostPort(p.pg)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(p.t.Context(), filepath.Join(p.bin, "psql"), "-h", host, "-p", port, "-U", "postgres", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-Atqc", statement)
	cmd.Env = append(os.Environ(), "PGPASSWORD=secret", "PGCONNECT_TIMEOUT=10")
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// writes adds a row at the primary, which may have got its role a moment ago, and waits until the rows so far are at all of some nodes.
func (p *patroni) writes(row int, others ...*patroni) {
	p.t.Helper()
	p.within(time.Minute, fmt.Sprintf("%s takes row %d", p.name, row), func() (bool, string) {
		out, err := p.sql(fmt.Sprintf("create table if not exists rows (n int primary key); insert into rows values (%d) on conflict do nothing", row))
		return err == nil, fmt.Sprint(out, " ", err)
	})
	want := ""
	for i := 1; i <= row; i++ {
		want = strings.TrimPrefix(fmt.Sprint(want, ",", i), ",")
	}
	for _, n := range append(others, p) {
		n.within(2*time.Minute, fmt.Sprintf("%s has rows %s", n.name, want), func() (bool, string) {
			out, err := n.sql("select string_agg(n::text, ',' order by n) from rows")
			return err == nil && out == want, fmt.Sprint(out, " ", err)
		})
	}
}

func TestProgram_Patroni(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secure), func(t *testing.T) { runPatroni(t, secure) })
	}
}

func runPatroni(t *testing.T, secure bool) {
	dir, err := os.MkdirTemp("", "quorate-patroni-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	own := []string{dir}
	certs, conf := certificates(t)
	var c *cluster
	var dcs string
	if secure {
		c = startSecured(t, certs)
		// What a test's own directory has nobody else can read.
		for _, name := range []string{"ca.pem", "leaf.pem", "leaf-key.pem"} {
			b, err := os.ReadFile(filepath.Join(certs, name))
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, name)
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			own = append(own, file)
		}
		dcs = strings.Replace(setting(t, "yaml", c), "etcd3: {", fmt.Sprintf("etcd3: {protocol: https, cacert: %[1]s/ca.pem, cert: %[1]s/leaf.pem, key: %[1]s/leaf-key.pem, ", dir), 1)
	} else {
		c, conf = start(t, 1), nil
		dcs = setting(t, "yaml", c)
	}
	if as := asPostgres(t); as != nil {
		for _, file := range own {
			if err := os.Chown(file, int(as.Credential.Uid), int(as.Credential.Gid)); err != nil {
				t.Fatal(err)
			}
		}
	}
	e := securedClient(t, c, conf)
	// leads compares who has the leader's key with who is the primary, by its own word.
	leads := func(p *patroni) {
		t.Helper()
		p.is("primary")
		// The first primary takes the key once its database is made.
		eventually(t, "the leader's key is that of "+p.name, func() (bool, string) {
			r, err := e.Get(within(t), "/service/batman/leader")
			return err == nil && len(r.Kvs) == 1 && string(r.Kvs[0].Value) == p.name && r.Kvs[0].Lease != 0, fmt.Sprint(r, " ", err)
		})
	}
	a, b := newPatroni(t, dir, "pg0", dcs), newPatroni(t, dir, "pg1", dcs)
	a.start()
	leads(a)
	b.start()
	b.is("replica")
	a.writes(1, b)
	t.Log("bootstrapped, with a replica")

	out, err := exec.CommandContext(t.Context(), "patronictl", "-c", a.config(), "switchover", "batman", "--master", "pg0", "--candidate", "pg1", "--force").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("Successfully switched over")) {
		t.Fatalf("switchover: %v\n%s", err, out)
	}
	leads(b)
	a.is("replica")
	b.writes(2, a)
	t.Log("switched over")

	// A node of Quorate is killed, the leader. Patroni goes on for longer than its lease lasts, so it has renewed it at the others.
	before, err := b.state()
	if err != nil {
		t.Fatal(err)
	}
	dead := c.leader(t, 1)
	if err := dead.stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	killed := time.Now().Unix()
	for _, p := range []*patroni{a, b} {
		p.within(2*time.Minute, p.name+" has its state still", func() (bool, string) {
			s, err := p.state()
			return err == nil && s.LastSeen > killed+20, fmt.Sprintf("%+v %v", s, err)
		})
	}
	leads(b)
	if after, err := b.state(); err != nil || after.Timeline != before.Timeline {
		t.Errorf("the primary is on timeline %d (%v) after a node of Quorate was killed, was on %d", after.Timeline, err, before.Timeline)
	}
	b.writes(3, a)
	t.Log("went on without a node of Quorate")

	b.kill()
	leads(a)
	a.writes(4)
	t.Log("failed over, with two nodes of Quorate")

	if err := errors.Join(dead.start(), dead.waitReady()); err != nil {
		t.Fatal(err)
	}
	b.start()
	b.is("replica")
	a.writes(5, b)
	t.Log("the old primary follows the new one")
	c.sameState(t)
}

// startSecured starts a cluster whose etcd ports have the certificates of a directory and want such of clients.
func startSecured(t *testing.T, dir string) *cluster {
	t.Helper()
	return start(t, 1, fmt.Sprintf("etcd_progress_interval: 5s\ntls: {etcd: {cert: %q, key: %q, client_ca: %q}}\n",
		filepath.Join(dir, "leaf.pem"), filepath.Join(dir, "leaf-key.pem"), filepath.Join(dir, "ca.pem")))
}

// securedClient is etcd's client of a cluster, with TLS if conf is not nil.
func securedClient(t *testing.T, c *cluster, conf *tls.Config) *clientv3.Client {
	t.Helper()
	e, err := clientv3.New(clientv3.Config{Endpoints: c.etcdAddrs(), TLS: conf, DialTimeout: 20 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// TestProgram_CoreDNS runs CoreDNS with the plugin etcd: names are there, change and go as their keys do, also when a node is killed.
func TestProgram_CoreDNS(t *testing.T) {
	program, err := filepath.Abs("../bin/foreign/bin/coredns")
	if err != nil {
		t.Fatal(err)
	}
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secure), func(t *testing.T) { runCoreDNS(t, program, secure) })
	}
}

func runCoreDNS(t *testing.T, program string, secure bool) {
	dir, conf := certificates(t)
	var c *cluster
	if secure {
		c = startSecured(t, dir)
	} else {
		c, conf = start(t, 1), nil
	}
	ports, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(ports[0])
	if err != nil {
		t.Fatal(err)
	}
	corefile := filepath.Join(dir, "Corefile")
	text := strings.Replace(setting(t, "text", c), "example.org {", "example.org:"+port+" {\n  bind 127.0.0.1\n  errors", 1)
	if secure {
		text = strings.ReplaceAll(text, "http://", "https://")
		text = strings.Replace(text, "endpoint ", fmt.Sprintf("tls %[1]s/leaf.pem %[1]s/leaf-key.pem %[1]s/ca.pem\n    endpoint ", dir), 1)
	}
	if err := os.WriteFile(corefile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-conf", corefile)
	var log logBuffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; make foreign-programs builds CoreDNS", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s\n%s", text, log.String())
		}
	})
	// Over TCP, so that a question is not lost while CoreDNS starts.
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", ports[0])
	}}
	answers := func(name, want string) {
		t.Helper()
		eventually(t, name+" is "+want, func() (bool, string) {
			got, err := r.LookupHost(t.Context(), name)
			said := strings.Join(got, " ")
			var none *net.DNSError
			if errors.As(err, &none) && none.IsNotFound {
				said = "none"
			} else if err != nil {
				return false, err.Error()
			}
			return said == want, said
		})
	}
	e := securedClient(t, c, conf)
	put := func(key, value string) {
		t.Helper()
		if _, err := e.Put(within(t), key, value); err != nil {
			t.Fatal(err)
		}
	}
	answers("www.example.org.", "none")
	put("/skydns/org/example/www", `{"host":"192.0.2.1","ttl":1}`)
	answers("www.example.org.", "192.0.2.1")
	put("/skydns/org/example/www", `{"host":"192.0.2.2","ttl":1}`)
	answers("www.example.org.", "192.0.2.2")
	put("/skydns/org/example/mail/a", `{"host":"192.0.2.3","port":25,"priority":10,"ttl":1}`)
	put("/skydns/org/example/mail/b", `{"host":"192.0.2.4","port":25,"priority":20,"ttl":1}`)
	_, srv, err := r.LookupSRV(within(t), "", "", "mail.example.org.")
	if err != nil || len(srv) != 2 || srv[0].Target != "a.mail.example.org." || srv[0].Port != 25 || srv[1].Priority != 20 {
		t.Errorf("SRV: %v %v", srv, err)
	}
	// The node that leads is killed: CoreDNS asks the others.
	if err := c.leader(t, 1).stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	put("/skydns/org/example/www", `{"host":"192.0.2.5","ttl":1}`)
	answers("www.example.org.", "192.0.2.5")
	if _, err := e.Delete(within(t), "/skydns/org/example/www"); err != nil {
		t.Fatal(err)
	}
	answers("www.example.org.", "none")
}
