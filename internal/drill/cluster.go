// Package drill injects faults into clusters of real node processes, and checks what they promise.
//
// A drill is one entry of Drills: a workload through stock client libraries, faults, and a checker that compares what the
// clients were told with what the cluster holds. Each drill but the long one has at least one control, a protection switched off on purpose,
// with which it must find the fault: that shows that the checker can.
package drill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/quorate/quorate/internal/engine"
	"github.com/quorate/quorate/internal/errs"
)

// ClusterConfig describes a cluster of node processes on loopback.
type ClusterConfig struct {
	// Nodes is 1, 3 or 5; default 3. Shards defaults to 1.
	Nodes, Shards int
	// Dir holds configurations, data and logs. It must exist.
	Dir string
	// Binary is the quorate program; default this one.
	Binary string
	// Sandbox adds lines to the sandbox section of the configuration, such as "no_fsync: true". Sandboxed says that there
	// is such a section.
	Sandboxed bool
	Sandbox   []string
	// Extra adds top-level lines to the configuration.
	Extra []string
}

// Cluster is a cluster of node processes. Its methods may be called from any goroutine.
type Cluster struct {
	cfg   ClusterConfig
	Nodes []*Process
	// atClose is called, unless it is nil, before the nodes are ended.
	atClose func()
}

// Process is one node.
type Process struct {
	ID   int
	Dir  string
	Addr Addresses

	c   *Cluster
	mu  sync.Mutex
	cmd *exec.Cmd
	// exited is closed when the process has ended and was waited for.
	exited chan struct{}
}

// Addresses are where a node listens.
type Addresses struct {
	Peer  string `json:"peer"`
	Redis string `json:"redis"`
	Kafka string `json:"kafka"`
	Etcd  string `json:"etcd"`
	HTTP  string `json:"http"`
}

// portsPerNode is the number of Addresses.
const portsPerNode = 5

// StartCluster starts all nodes and waits until each is ready.
func StartCluster(ctx context.Context, cfg ClusterConfig) (*Cluster, error) {
	if cfg.Nodes == 0 {
		cfg.Nodes = 3
	}
	if cfg.Shards == 0 {
		cfg.Shards = 1
	}
	if cfg.Binary == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, errs.Wrap(errs.Internal, err, "find this program")
		}
		cfg.Binary = self
	}
	ports, err := freePorts(portsPerNode * cfg.Nodes)
	if err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg}
	for i := range cfg.Nodes {
		at := func(n int) string { return fmt.Sprintf("127.0.0.1:%d", ports[portsPerNode*i+n]) }
		c.Nodes = append(c.Nodes, &Process{
			ID: i + 1, Dir: filepath.Join(cfg.Dir, fmt.Sprintf("node%d", i+1)), c: c,
			Addr: Addresses{Peer: at(0), Redis: at(1), Kafka: at(2), Etcd: at(3), HTTP: at(4)},
		})
	}
	for _, p := range c.Nodes {
		if err := p.configure(); err != nil {
			return nil, err
		}
	}
	for _, p := range c.Nodes {
		if err := p.Start(); err != nil {
			c.Close()
			return nil, err
		}
	}
	if err := c.WaitReady(ctx, 30*time.Second); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// name returns the cluster's name. Ports of a node that was killed may be another cluster's soon: its nodes must not take each other for their own.
func (c *Cluster) name() string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(c.cfg.Dir))
	return fmt.Sprintf("local-%016x", h.Sum64())
}

func (p *Process) configure() error {
	if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return errs.Wrap(errs.Invalid, err, "make node directory")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "cluster: %s\nnode: %d\ndata: %q\nshards: %d\n", p.c.name(), p.ID, filepath.Join(p.Dir, "data"), p.c.cfg.Shards)
	fmt.Fprintf(&b, "listen: {peer: %q, redis: %q, kafka: %q, etcd: %q, http: %q}\npeers:\n", p.Addr.Peer, p.Addr.Redis, p.Addr.Kafka, p.Addr.Etcd, p.Addr.HTTP)
	for _, o := range p.c.Nodes {
		fmt.Fprintf(&b, "  %d: %q\n", o.ID, o.Addr.Peer)
	}
	for _, l := range p.c.cfg.Extra {
		fmt.Fprintln(&b, l)
	}
	if p.c.cfg.Sandboxed {
		fmt.Fprintln(&b, "sandbox:\n  enabled: true")
		for _, l := range p.c.cfg.Sandbox {
			fmt.Fprintln(&b, "  "+l)
		}
	}
	return errs.Wrap(errs.Invalid, os.WriteFile(filepath.Join(p.Dir, "config.yaml"), []byte(b.String()), 0o644), "write configuration")
}

// Start starts the node's process; it does not wait for it to be ready.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return nil
	}
	log, err := os.OpenFile(filepath.Join(p.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return errs.Wrap(errs.Invalid, err, "open node log")
	}
	defer log.Close() //nolint:errcheck // the process has its own descriptor
	cmd := exec.Command(p.c.cfg.Binary, "server", "--config", filepath.Join(p.Dir, "config.yaml"), "--log-format", "json")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		return errs.Wrap(errs.Unavailable, err, "start node %d", p.ID)
	}
	p.cmd, p.exited = cmd, make(chan struct{})
	go func(done chan struct{}) {
		_ = cmd.Wait()
		close(done)
	}(p.exited)
	return nil
}

// Signal sends the process a signal, for example syscall.SIGSTOP.
func (p *Process) Signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(s)
	}
}

// Kill ends the process with SIGKILL and waits for it.
func (p *Process) Kill() { p.end(syscall.SIGKILL, 0) }

// stopLimit is more than a node takes to stop, on a slow machine too.
const stopLimit = 30 * time.Second

// Stop ends the process in good order. One that takes too long writes what it waits for to its log, and is ended.
func (p *Process) Stop() { p.end(syscall.SIGTERM, stopLimit) }

func (p *Process) end(s syscall.Signal, patience time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(s)
	if patience > 0 {
		t := time.NewTimer(patience)
		defer t.Stop()
		select {
		case <-p.exited:
		case <-t.C:
			// The runtime writes the stacks of all goroutines, and ends the process.
			_ = p.cmd.Process.Signal(syscall.SIGQUIT)
			t.Reset(2 * time.Second)
			select {
			case <-p.exited:
			case <-t.C:
				_ = p.cmd.Process.Kill()
			}
		}
	}
	<-p.exited
	p.cmd = nil
}

// Up reports whether the process runs. It is false for one that ended by itself.
func (p *Process) Up() bool {
	begun, over := p.state()
	return begun && !over
}

// Fell reports whether the process ended though nobody had ended it.
func (p *Process) Fell() bool {
	_, over := p.state()
	return over
}

// state says whether the process was begun, and not ended since by the drill; and whether it is over all the same.
func (p *Process) state() (begun, over bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return false, false
	}
	select {
	case <-p.exited:
		return true, true
	default:
		return true, false
	}
}

// PID returns the process id, 0 if it does not run.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// LogTail returns the last lines of the node's log.
func (p *Process) LogTail(lines int) string {
	b, err := os.ReadFile(filepath.Join(p.Dir, "log"))
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Close ends all nodes.
func (c *Cluster) Close() {
	if c.atClose != nil {
		c.atClose()
	}
	var wg sync.WaitGroup
	for _, p := range c.Nodes {
		wg.Add(1)
		go func() {
			defer wg.Done()
			p.Signal(syscall.SIGCONT)
			p.Stop()
		}()
	}
	wg.Wait()
}

// WaitReady waits until every running node answers through each of its ports.
func (c *Cluster) WaitReady(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, p := range c.Nodes {
		if err := p.WaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// WaitReady waits until the node answers through each of its ports.
func (p *Process) WaitReady(ctx context.Context) error {
	var last error
	for {
		b, err := p.get(ctx, "/readyz")
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = fmt.Errorf("%w %s", err, strings.TrimSpace(string(b)))
		}
		if !p.Up() {
			return errs.New(errs.Unavailable, "node %d ended; the end of its log:\n%s", p.ID, p.LogTail(5))
		}
		select {
		case <-ctx.Done():
			// The log itself is gone when somebody reads this, unless the directory is kept.
			return errs.New(errs.Unavailable, "node %d is not ready (%v); the end of its log:\n%s", p.ID, last, p.LogTail(5))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (p *Process) get(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Addr.HTTP+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return b, err
}

// Status asks the node for its status.
func (p *Process) Status(ctx context.Context) (engine.Status, error) {
	var st engine.Status
	b, err := p.get(ctx, "/status")
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal(b, &st)
}

// Leader returns the node that leads a shard, as the first node that knows of one says; nil if none does.
func (c *Cluster) Leader(ctx context.Context, shardID uint32) *Process {
	for _, p := range c.Nodes {
		if !p.Up() {
			continue
		}
		st, err := p.Status(ctx)
		if err != nil {
			continue
		}
		for _, s := range st.Shards {
			if uint32(s.ID) == shardID && s.Leader > 0 && int(s.Leader) <= len(c.Nodes) && c.Nodes[s.Leader-1].Up() {
				return c.Nodes[s.Leader-1]
			}
		}
	}
	return nil
}

// WaitWhole waits until every node runs, no replica is being rebuilt, and all replicas of each shard have applied the same
// and agree on its digest. It fails with errs.Corrupt at once if replicas at an equal index do not agree: no time heals that.
func (c *Cluster) WaitWhole(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var why string
	for {
		now := c.whole(ctx)
		if now == "" {
			return nil
		}
		// When time is up, what was missing says more than that a node could not be asked any more.
		if ctx.Err() == nil || why == "" {
			why = now
		}
		if strings.HasPrefix(why, "digests differ") {
			return errs.New(errs.Corrupt, "%s", why)
		}
		select {
		case <-ctx.Done():
			return errs.New(errs.Unavailable, "the cluster is not whole after %v: %s", limit, why)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// whole says what is missing, nothing if nothing is. It fails with words that begin with "digests differ" if replicas at an
// equal index do not agree.
func (c *Cluster) whole(ctx context.Context) string {
	type at struct {
		applied uint64
		digest  string
	}
	first := map[uint32]at{}
	for _, p := range c.Nodes {
		st, err := p.Status(ctx)
		if err != nil {
			return fmt.Sprintf("node %d: %v", p.ID, err)
		}
		have := map[uint32]bool{}
		for _, s := range st.Shards {
			have[uint32(s.ID)] = true
		}
		if len(have) != c.cfg.Shards || len(st.Shards) != c.cfg.Shards {
			return fmt.Sprintf("node %d tells of %d shards, %d of them different ones; there are %d", p.ID, len(st.Shards), len(have), c.cfg.Shards)
		}
		for _, s := range st.Shards {
			if s.Rebuilding || s.Leader == 0 {
				return fmt.Sprintf("node %d shard %d: rebuilding %v, leader %d", p.ID, s.ID, s.Rebuilding, s.Leader)
			}
			id := uint32(s.ID)
			f, ok := first[id]
			if !ok {
				first[id] = at{s.Applied, s.Digest}
				continue
			}
			if f.applied != s.Applied {
				return fmt.Sprintf("shard %d is at %d on node %d and at %d on another", id, s.Applied, p.ID, f.applied)
			}
			if f.digest != s.Digest {
				return fmt.Sprintf("digests differ: shard %d at index %d is %s on node %d and %s on another", id, s.Applied, s.Digest, p.ID, f.digest)
			}
		}
	}
	return ""
}
