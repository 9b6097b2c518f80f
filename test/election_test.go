package test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const electionPage = "../docs/howto/leader-election.md"

// program returns the one block of a page in a language.
func program(t *testing.T, page, language string) string {
	t.Helper()
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllSubmatch(b, -1)
	if len(found) != 1 {
		t.Fatalf("%s has %d blocks of %s, want 1", page, len(found), language)
	}
	return string(found[0][1])
}

// candidates are the programs of the page: each makes one ready in a directory and returns its command line.
var candidates = []struct {
	language string
	prepare  func(t *testing.T, dir string) []string
}{
	{"go", func(t *testing.T, dir string) []string {
		src, bin := save(t, dir, "elect.go", "go"), filepath.Join(dir, "elect")
		// The files stand for a package of this module, whose dependencies they use.
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, src).CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
		if out, err := exec.CommandContext(t.Context(), "gofmt", "-l", src).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("not formatted: %s %v", out, err)
		}
		return []string{bin}
	}},
	{"js", func(t *testing.T, dir string) []string {
		modules, err := filepath.Abs("../bin/foreign/npm/node_modules")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(modules, "etcd3")); err != nil {
			unavailable(t, "etcd3 from npm is not there; make foreign-clients installs it, and runs this too")
		}
		if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
			t.Fatal(err)
		}
		return []string{has(t, "node"), save(t, dir, "elect.mjs", "js")}
	}},
	{"python", func(t *testing.T, dir string) []string {
		const python = "/usr/bin/python3" // Debian's packages are for Debian's Python, which need not be the first in PATH.
		if err := exec.CommandContext(t.Context(), python, "-c", "import etcd3").Run(); err != nil {
			unavailable(t, "python3-etcd3 is not there; scripts/deps.sh installs it")
		}
		return []string{python, save(t, dir, "elect.py", "python")}
	}},
	{"perl", func(t *testing.T, dir string) []string {
		return []string{has(t, "perl"), "-w", save(t, dir, "elect.pl", "perl")}
	}},
	{"bash", func(t *testing.T, dir string) []string {
		has(t, "etcdctl")
		return []string{"bash", save(t, dir, "elect.sh", "bash")}
	}},
}

func save(t *testing.T, dir, name, language string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte(program(t, electionPage, language)), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// unavailable skips a test, unless nothing may be missing.
func unavailable(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("QUORATE_TEST_ALL") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func has(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		unavailable(t, name+" is not installed; scripts/deps.sh and make foreign-clients install what tests need")
	}
	return path
}

// candidate is one that runs, and what it has printed.
type candidate struct {
	name string
	cmd  *exec.Cmd
	// ended is closed once it has ended and all of its output is in lines.
	ended chan struct{}

	mu    sync.Mutex
	lines []string
}

// election is one of several at the same cluster.
type election struct {
	t    *testing.T
	c    *cluster
	e    *clientv3.Client
	name string
}

// stand starts a candidate and waits until its key is there, so that candidates stand in the order of their start.
func (l *election) stand(name string, command []string) *candidate {
	l.t.Helper()
	before := len(l.keys())
	k := &candidate{name: name, ended: make(chan struct{})}
	k.cmd = exec.Command(command[0], append(append([]string{}, command[1:]...), l.name, name, strings.Join(l.c.etcdAddrs(), ","))...)
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	k.cmd.Stderr = k.cmd.Stdout
	if err := k.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go func() {
		defer close(k.ended)
		for s := bufio.NewScanner(out); s.Scan(); {
			k.mu.Lock()
			k.lines = append(k.lines, s.Text())
			k.mu.Unlock()
		}
	}()
	l.t.Cleanup(func() {
		// One that is stopped is ended as well by this signal, and one that has ended is left alone.
		_ = k.cmd.Process.Kill()
		_ = k.cmd.Wait()
		if l.t.Failed() {
			l.t.Logf("%s said:\n%s", k.name, k.said())
		}
	})
	eventually(l.t, name+" stands", func() (bool, string) {
		keys := l.keys()
		return len(keys) == before+1 && keys[before] == name, fmt.Sprint(keys, " ", k.said())
	})
	return k
}

// keys returns the names of the candidates, oldest first.
func (l *election) keys() []string {
	l.t.Helper()
	r, err := l.e.Get(l.t.Context(), "election/"+l.name+"/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
	if err != nil {
		l.t.Fatal(err)
	}
	var names []string
	for _, kv := range r.Kvs {
		names = append(names, string(kv.Value))
	}
	return names
}

// depose deletes the leader's key.
func (l *election) depose() {
	l.t.Helper()
	r, err := l.e.Get(within(l.t), "election/"+l.name+"/", clientv3.WithFirstCreate()...)
	if err != nil || len(r.Kvs) != 1 {
		l.t.Fatalf("no leader: %v %v", r, err)
	}
	if _, err := l.e.Delete(within(l.t), string(r.Kvs[0].Key)); err != nil {
		l.t.Fatal(err)
	}
}

func (k *candidate) said() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return strings.Join(k.lines, "\n")
}

// leads waits until a candidate says that it leads and has written twice since. The others must not have said anything.
func (l *election) leads(k *candidate, silent ...*candidate) {
	l.t.Helper()
	eventually(l.t, k.name+" leads", func() (bool, string) {
		said := k.said()
		return strings.HasPrefix(said, k.name+" leads under token "), said + " / " + fmt.Sprint(l.keys())
	})
	from := len(l.reports())
	eventually(l.t, k.name+" works", func() (bool, string) {
		all := l.reports()
		return len(all) >= from+2 && strings.HasPrefix(all[len(all)-1], k.name+" "), fmt.Sprint(all)
	})
	for _, s := range silent {
		if said := s.said(); said != "" {
			l.t.Errorf("while %s leads, %s says %q", k.name, s.name, said)
		}
	}
}

// reports returns all that was written under tokens, from the history of the key.
func (l *election) reports() []string {
	l.t.Helper()
	ctx, cancel := context.WithCancel(within(l.t))
	defer cancel()
	now, err := l.e.Get(ctx, "report/"+l.name)
	if err != nil {
		l.t.Fatal(err)
	}
	if now.Count == 0 {
		return nil
	}
	var all []string
	for r := range l.e.Watch(ctx, "report/"+l.name, clientv3.WithRev(now.Kvs[0].CreateRevision)) {
		if r.Err() != nil {
			l.t.Fatal(r.Err())
		}
		for _, ev := range r.Events {
			all = append(all, string(ev.Kv.Value))
			if ev.Kv.ModRevision >= now.Kvs[0].ModRevision {
				return all
			}
		}
	}
	l.t.Fatalf("the watch of report/%s ended: %v", l.name, ctx.Err())
	return nil
}

// signal sends a signal to one process, by its number.
func (k *candidate) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := k.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// ends waits until a candidate has ended and returns its exit code.
func (k *candidate) ends(t *testing.T, last string) int {
	t.Helper()
	select {
	case <-k.ended:
	case <-time.After(time.Minute):
		t.Fatalf("%s does not end; it said %q", k.name, k.said())
	}
	_ = k.cmd.Wait()
	if said := k.said(); !strings.Contains(said, "\n"+k.name+" "+last) {
		t.Errorf("%s ended, and said %q, want %q", k.name, said, last)
	}
	return k.cmd.ProcessState.ExitCode()
}

// check compares all that was written with who led, in that order, each under a token of its own that is higher than the one before.
func (l *election) check(leaders ...string) {
	l.t.Helper()
	var order []string
	last, by := int64(0), ""
	for _, r := range l.reports() {
		var name string
		var token int64
		if n, err := fmt.Sscanf(r, "%s %d", &name, &token); n != 2 {
			l.t.Fatalf("the report is %q: %v", r, err)
		}
		switch {
		case token == last && name != by, token < last:
			l.t.Errorf("%s wrote under %d after %s under %d", name, token, by, last)
		case token > last:
			order = append(order, name)
		}
		last, by = token, name
	}
	if got, want := strings.Join(order, " "), strings.Join(leaders, " "); got != want {
		l.t.Errorf("leaders were %s, want %s", got, want)
	}
}

// TestHowto_LeaderElection runs the programs of docs/howto/leader-election.md: two candidates of each against one another, and one of each all
// together.
func TestHowto_LeaderElection(t *testing.T) {
	c := shared(t, 1)
	at := func(t *testing.T, name string) *election {
		// The cluster is that of other runs of the test, too.
		return &election{t: t, c: c, e: etcdClient(t, c.etcdAddrs()...), name: fmt.Sprintf("%s-%d", name, time.Now().UnixNano())}
	}
	for _, p := range candidates {
		t.Run(p.language, func(t *testing.T) {
			t.Parallel()
			command := p.prepare(t, t.TempDir())
			l := at(t, p.language)
			ann := l.stand("ann", command)
			bob := l.stand("bob", command)
			l.leads(ann, bob)
			// One that stalls for longer than its lease is followed by the other, and can do no harm when it goes on.
			ann.signal(t, syscall.SIGSTOP)
			l.leads(bob)
			cid := l.stand("cid", command)
			ann.signal(t, syscall.SIGCONT)
			if code := ann.ends(t, "does not lead any more"); code != 1 {
				t.Errorf("ann ended with %d", code)
			}
			l.leads(bob, cid)
			// One that is killed.
			bob.signal(t, syscall.SIGKILL)
			l.leads(cid)
			// One whose key is taken away, while it has its lease, is stopped by its token alone.
			dan := l.stand("dan", command)
			l.depose()
			if code := cid.ends(t, "does not lead any more: token"); code != 1 {
				t.Errorf("cid ended with %d", code)
			}
			// One that gives up leaves no key behind: nobody waits for its lease.
			l.leads(dan)
			dan.signal(t, syscall.SIGTERM)
			if code := dan.ends(t, "gave up"); code != 0 {
				t.Errorf("dan ended with %d", code)
			}
			if keys := l.keys(); len(keys) != 0 {
				t.Errorf("keys of %v are left", keys)
			}
			l.check("ann", "bob", "cid", "dan")
		})
	}
	t.Run("together", func(t *testing.T) {
		t.Parallel()
		l := at(t, "together")
		var all []*candidate
		var names []string
		for _, p := range candidates {
			// One that is not there is missing here, and skipped above.
			var command []string
			t.Run("with "+p.language, func(st *testing.T) { command = p.prepare(st, t.TempDir()) })
			if command != nil {
				all = append(all, l.stand(p.language, command))
				names = append(names, p.language)
			}
		}
		for i, k := range all {
			l.leads(k, all[i+1:]...)
			if i == 0 {
				k.signal(t, syscall.SIGKILL)
				continue
			}
			k.signal(t, syscall.SIGTERM)
			if code := k.ends(t, "gave up"); code != 0 {
				t.Errorf("%s ended with %d", k.name, code)
			}
		}
		l.check(names...)
	})
}

// TestHowto_LeaderElectionCommands runs the shell blocks of the page.
func TestHowto_LeaderElectionCommands(t *testing.T) {
	at := dev(t, binary, "dev")
	e := etcdClient(t, at["etcd"])
	for _, k := range []string{"election/jobs/1", "report/jobs"} {
		if _, err := e.Put(within(t), k, "me 7"); err != nil {
			t.Fatal(err)
		}
	}
	if out := runBlocks(t, at, electionPage); !strings.Contains(out, "election/jobs/1\nme 7\nreport/jobs\nme 7\n") {
		t.Errorf("the output is\n%s", out)
	}
}
