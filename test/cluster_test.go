package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// cluster is a number of quorate processes on loopback ports.
type cluster struct {
	dir    string
	shards int
	nodes  []*node
	// under, if there is one, is a command that runs what follows it, in place of which nodes are started.
	under []string
}

// node is one quorate process, and where it listens.
type node struct {
	c      *cluster
	id     int
	peer   string
	redis  string
	kafka  string
	etcd   string
	http   string
	config string
	ready  string

	// mu guards the process that runs now; gone is closed when it has ended, with err set.
	mu   sync.Mutex
	cmd  *exec.Cmd
	gone chan struct{}
	err  error
}

// freePorts finds ports that nobody listens on. Another process may take one before the node does; the node says so then.
func freePorts(n int) ([]string, error) {
	var all []string
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		all = append(all, ln.Addr().String())
	}
	return all, nil
}

// newCluster starts processes; more is what each node's configuration has besides.
func newCluster(nodes, shards int, more ...string) (*cluster, error) {
	dir, err := os.MkdirTemp("", "quorate-cluster-")
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: dir, shards: shards}
	ports, err := freePorts(5 * nodes)
	if err != nil {
		return c, err
	}
	var peers []string
	for i := range nodes {
		p := ports[5*i:]
		n := &node{
			c: c, id: i + 1, peer: p[0], redis: p[1], kafka: p[2], http: p[3], etcd: p[4],
			config: filepath.Join(dir, fmt.Sprintf("node%d.yaml", i+1)), ready: filepath.Join(dir, fmt.Sprintf("ready%d", i+1)),
		}
		c.nodes = append(c.nodes, n)
		peers = append(peers, fmt.Sprintf("%d: %q", n.id, n.peer))
	}
	for _, n := range c.nodes {
		text := fmt.Sprintf("cluster: test\nnode: %d\ndata: %q\nshards: %d\nlisten: {peer: %q, redis: %q, kafka: %q, http: %q, etcd: %q}\npeers: {%s}\n",
			n.id, filepath.Join(dir, fmt.Sprintf("data%d", n.id)), shards, n.peer, n.redis, n.kafka, n.http, n.etcd, strings.Join(peers, ", ")) + strings.Join(more, "\n")
		if err := os.WriteFile(n.config, []byte(text), 0o600); err != nil {
			return c, err
		}
	}
	for _, n := range c.nodes {
		if err := n.start(); err != nil {
			return c, err
		}
	}
	for _, n := range c.nodes {
		if err := n.waitReady(); err != nil {
			return c, err
		}
	}
	return c, nil
}

// start starts the node's process.
func (n *node) start() error {
	if err := os.Remove(n.ready); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	log, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append(slices.Clone(n.c.under), binary, "server", "--config", n.config, "--ready-file", n.ready)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr, cmd.Stdout = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	gone := make(chan struct{})
	n.mu.Lock()
	n.cmd, n.gone, n.err = cmd, gone, nil
	n.mu.Unlock()
	go func() {
		err := cmd.Wait()
		n.mu.Lock()
		n.err = err
		n.mu.Unlock()
		close(gone)
	}()
	return nil
}

func (n *node) logFile() string { return filepath.Join(n.c.dir, fmt.Sprintf("node%d.log", n.id)) }

func (n *node) waitReady() error {
	n.mu.Lock()
	gone := n.gone
	n.mu.Unlock()
	limit := time.NewTimer(60 * time.Second)
	defer limit.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(n.ready); err == nil {
			return nil
		}
		select {
		case <-gone:
			return fmt.Errorf("node %d ended before it was ready: %v\n%s", n.id, n.err, n.tail())
		case <-limit.C:
			return fmt.Errorf("node %d is not ready after a minute\n%s", n.id, n.tail())
		case <-tick.C:
		}
	}
}

// stop sends a signal and waits for the process to end.
func (n *node) stop(sig syscall.Signal) error {
	n.mu.Lock()
	cmd, gone := n.cmd, n.gone
	n.mu.Unlock()
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-gone:
	case <-time.After(30 * time.Second):
		_ = cmd.Process.Kill()
		<-gone
		return fmt.Errorf("node %d did not end within 30 s of %v", n.id, sig)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cmd = nil
	if sig == syscall.SIGKILL {
		return nil
	}
	return n.err
}

// tail returns the end of the node's log.
func (n *node) tail() string {
	b, _ := os.ReadFile(n.logFile())
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// complaints returns the lines of the nodes' logs that say that something is wrong. After faults, warnings are in order.
func (c *cluster) complaints(warnings bool) string {
	var all []string
	for _, n := range c.nodes {
		b, _ := os.ReadFile(n.logFile())
		for line := range strings.Lines(string(b)) {
			var l struct{ Level string }
			known := json.Unmarshal([]byte(line), &l) == nil
			if !known || l.Level == "ERROR" || warnings && l.Level == "WARN" {
				all = append(all, fmt.Sprintf("node %d: %s", n.id, line))
			}
		}
	}
	return strings.Join(all, "")
}

// close ends all processes in an orderly way, which must succeed, and removes their data.
func (c *cluster) close() error {
	var all []error
	for _, n := range c.nodes {
		if err := n.stop(syscall.SIGTERM); err != nil {
			all = append(all, fmt.Errorf("stop node %d: %w\n%s", n.id, err, n.tail()))
		}
	}
	return errors.Join(append(all, os.RemoveAll(c.dir))...)
}

// start starts a cluster of three nodes for one test.
func start(t *testing.T, shards int, more ...string) *cluster {
	t.Helper()
	c, err := newCluster(3, shards, more...)
	t.Cleanup(func() {
		if t.Failed() {
			c.report(t)
		}
		if said := c.complaints(false); said != "" {
			t.Errorf("the nodes complained:\n%s", said)
		}
		if err := c.close(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cluster) report(t *testing.T) {
	for _, n := range c.nodes {
		t.Logf("log of node %d:\n%s", n.id, n.tail())
	}
}

// sharedClusters are the clusters that tests without faults have in common, by number of shards. They are stopped by TestMain.
var sharedClusters = struct {
	sync.Mutex
	by map[int]*cluster
}{by: map[int]*cluster{}}

// shared returns a cluster of three nodes in which nothing breaks.
func shared(t *testing.T, shards int) *cluster {
	t.Helper()
	sharedClusters.Lock()
	defer sharedClusters.Unlock()
	c := sharedClusters.by[shards]
	if c == nil {
		var err error
		c, err = newCluster(3, shards)
		sharedClusters.by[shards] = c
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			c.report(t)
		}
	})
	return c
}

func stopShared() {
	for _, c := range sharedClusters.by {
		if said := c.complaints(false); said != "" {
			fmt.Fprintf(os.Stderr, "the nodes complained:\n%s", said)
		}
		if err := c.close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// status is what the tests need of a node's /status.
type status struct {
	Shards []struct {
		ID, Leader int
		Revision   int
		Applied    int
		Digest     string
		Rebuilding bool
	}
}

func (n *node) status(ctx context.Context) (status, error) {
	var s status
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.http+"/status", nil)
	if err != nil {
		return s, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		return s, fmt.Errorf("%s: %s", resp.Status, b)
	}
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// leader returns the node that leads a shard, as the first node that answers sees it.
func (c *cluster) leader(t *testing.T, shard int) *node {
	t.Helper()
	var found *node
	eventually(t, fmt.Sprintf("shard %d has a leader", shard), func() (bool, string) {
		said := ""
		for _, n := range c.nodes {
			s, err := n.status(t.Context())
			if err != nil {
				said += err.Error() + "; "
				continue
			}
			if l := s.Shards[shard-1].Leader; l != 0 {
				found = c.nodes[l-1]
				return true, ""
			}
		}
		return false, said
	})
	return found
}

// follower returns a node that does not lead a shard.
func (c *cluster) follower(t *testing.T, shard int) *node {
	t.Helper()
	return c.nodes[c.leader(t, shard).id%len(c.nodes)]
}

// sameState waits until all nodes have applied the same and hold the same.
func (c *cluster) sameState(t *testing.T) {
	t.Helper()
	eventually(t, "all nodes hold the same", func() (bool, string) {
		var first, said string
		for i, n := range c.nodes {
			s, err := n.status(t.Context())
			if err != nil {
				return false, err.Error()
			}
			text := ""
			for _, sh := range s.Shards {
				text += fmt.Sprintf("shard %d: applied %d, revision %d, digest %s, rebuilding %v; ", sh.ID, sh.Applied, sh.Revision, sh.Digest, sh.Rebuilding)
			}
			if i == 0 {
				first = text
			}
			if text != first || strings.Contains(text, "rebuilding true") {
				return false, first + " / " + text
			}
			said = text
		}
		return true, said
	})
}

func (c *cluster) kafkaAddrs() []string {
	var all []string
	for _, n := range c.nodes {
		all = append(all, n.kafka)
	}
	return all
}

func (c *cluster) redisAddrs() []string {
	var all []string
	for _, n := range c.nodes {
		all = append(all, n.redis)
	}
	return all
}

func tryTool(t *testing.T, stdin string, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed; scripts/deps.sh installs it", name)
	}
	cmd := exec.CommandContext(within(t), name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}
