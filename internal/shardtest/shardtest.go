// Package shardtest holds what tests of data models and protocol servers need instead of a cluster: Client, a
// shard.Client in memory that applies at once, and Conformance, which every module must pass.
package shardtest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// Client is a shard.Client on machines in memory: no raft, no replication, the same state machine. The clock stands still
// unless a test moves it, or asks for RealTime.
type Client struct {
	mu       sync.Mutex
	now      time.Time
	real     bool
	machines map[shard.ID]*shard.Machine
	hub      *shard.Hub
	topo     *shard.Topology
	refuse   error
}

var _ shard.Client = (*Client)(nil)

// Options says what a Client looks like.
type Options struct {
	// Shards is the number of shards of space "default"; 0 means 1.
	Shards int
	// RealTime lets the clock run and fires timers from a goroutine that ends with the test.
	RealTime bool
	// Addr is what the single node advertises.
	Addr map[string]string
}

// New returns a client for the modules. It is closed with the test.
func New(t testing.TB, o Options, modules ...shard.Module) *Client {
	t.Helper()
	store, err := storage.OpenStore(storage.MemFS(), "state", storage.StoreConfig{})
	if err != nil {
		t.Fatalf("open store: %v", err)
	}
	c := &Client{
		now: time.UnixMilli(1_700_000_000_000), real: o.RealTime,
		machines: map[shard.ID]*shard.Machine{}, hub: shard.NewHub(),
	}
	c.topo = &shard.Topology{
		Cluster: "test", Self: 1, Nodes: []shard.Node{{ID: 1, Up: true, Addr: o.Addr}},
		Spaces: []shard.Space{{Name: shard.DefaultSpace}},
	}
	table := shard.Modules(modules...)
	for i := range max(o.Shards, 1) {
		id := shard.ID(i + 1)
		m, err := shard.OpenMachine(store, id, table, shard.MachineConfig{})
		if err != nil {
			t.Fatalf("open shard %d: %v", id, err)
		}
		c.machines[id] = m
		c.topo.Spaces[0].Shards = append(c.topo.Spaces[0].Shards, id)
		c.topo.Shards = append(c.topo.Shards, shard.ShardInfo{ID: id, Leader: 1, Term: 1, Replicas: []shard.NodeID{1}})
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for c.real {
			select {
			case <-stop:
				return
			case <-tick.C:
				c.fire()
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		c.mu.Lock()
		defer c.mu.Unlock()
		if err := store.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return c
}

// Now implements shard.Client.
func (c *Client) Now() time.Time {
	if c.real {
		return time.Now()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock and fires what became due.
func (c *Client) Advance(d time.Duration) {
	c.mu.Lock()
	c.now = c.now.Add(d)
	c.mu.Unlock()
	c.fire()
}

// Refuse makes every later Submit and Query fail with err; nil ends that.
func (c *Client) Refuse(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = err
}

// SetTopology lets a test change what Topology returns.
func (c *Client) SetTopology(f func(t *shard.Topology)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := *c.topo
	f(&t)
	c.topo = &t
}

func (c *Client) fire() {
	now := c.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.machines {
		for {
			due, ok := m.NextTimer()
			if !ok || due.After(now) {
				break
			}
			c.applyLocked(m, shard.TimersEntry(now))
		}
	}
}

func (c *Client) applyLocked(m *shard.Machine, entry []byte) shard.Applied {
	out := shard.Applied{Own: 1}
	if err := m.Apply(m.Applied().Index+1, 1, entry, &out); err != nil {
		panic(err)
	}
	if err := m.Commit(&out); err != nil {
		panic(err)
	}
	c.hub.Wake(m.ID(), out.Wakes)
	return out
}

// Submit implements shard.Client.
func (c *Client) Submit(ctx context.Context, r shard.Route, cmd shard.Command) *shard.Future {
	now := c.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.machines[r.Shard]
	switch {
	case c.refuse != nil:
		return shard.Failed(c.refuse)
	case m == nil:
		return shard.Failed(errs.New(errs.NotFound, "no shard %d", r.Shard))
	case ctx.Err() != nil:
		return shard.Failed(errs.New(errs.Unavailable, "not proposed"))
	}
	seq := m.Applied().Index + 1
	entry := shard.AppendBatchHeader(nil, shard.BatchHeader{Session: 1, Seq: seq, Low: seq, Stamp: now})
	out := c.applyLocked(m, shard.AppendCommand(entry, cmd))
	f := shard.NewFuture()
	f.Complete(out.Answers[0].Result)
	return f
}

// Query implements shard.Client.
func (c *Client) Query(_ context.Context, r shard.Route, _ shard.Consistency, q shard.Command) ([]byte, error) {
	c.mu.Lock()
	m, refuse := c.machines[r.Shard], c.refuse
	c.mu.Unlock()
	if refuse != nil {
		return nil, refuse
	}
	if m == nil {
		return nil, errs.New(errs.NotFound, "no shard %d", r.Shard)
	}
	return m.Query(q)
}

// Ask implements shard.Client. It calls before it returns, which is the harder case.
func (c *Client) Ask(ctx context.Context, r shard.Route, at shard.Consistency, q shard.Command, then func([]byte, error)) {
	then(c.Query(ctx, r, at, q))
}

// Watch implements shard.Client.
func (c *Client) Watch(r shard.Route, s shard.Span) *shard.Watch { return c.hub.Watch(r.Shard, s) }

// Topology implements shard.Client.
func (c *Client) Topology() *shard.Topology {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.topo
}

// Machine returns a shard's state machine, to look at.
func (c *Client) Machine(id shard.ID) *shard.Machine { return c.machines[id] }

// Step is one input of Conformance.
type Step struct {
	// After is how far the shard's clock moves before the command.
	After time.Duration
	Cmd   []byte
}

// Conformance checks what the engine expects of every module: the same log gives the same state and the same answers
// however it is cut into commits, and a snapshot gives the same state as the log it stands for.
func Conformance(t *testing.T, mods []shard.Module, id shard.ModuleID, steps []Step) {
	t.Helper()
	type run struct {
		m       *shard.Machine
		answers []shard.Answer
	}
	open := func() *shard.Machine {
		store, err := storage.OpenStore(storage.MemFS(), "state", storage.StoreConfig{})
		if err != nil {
			t.Fatalf("open store: %v", err)
		}
		t.Cleanup(func() { _ = store.Close() })
		m, err := shard.OpenMachine(store, 1, shard.Modules(mods...), shard.MachineConfig{})
		if err != nil {
			t.Fatalf("open machine: %v", err)
		}
		return m
	}
	play := func(commitEvery int, restartAt int) run {
		r := run{m: open()}
		now := time.UnixMilli(1_700_000_000_000)
		out := shard.Applied{Own: 1}
		pending := 0
		commit := func() {
			if err := r.m.Commit(&out); err != nil {
				t.Fatalf("commit: %v", err)
			}
			pending = 0
		}
		apply := func(e []byte) {
			if err := r.m.Apply(r.m.Applied().Index+1, 1, e, &out); err != nil {
				t.Fatalf("apply: %v", err)
			}
			if pending++; pending >= commitEvery {
				commit()
			}
		}
		for i, s := range steps {
			if i == restartAt {
				commit()
				r.m = transfer(t, r.m, open())
			}
			now = now.Add(s.After)
			for {
				due, ok := r.m.NextTimer()
				if !ok || due.After(now) {
					break
				}
				apply(shard.TimersEntry(now))
			}
			seq := uint64(i + 1)
			e := shard.AppendBatchHeader(nil, shard.BatchHeader{Session: 1, Seq: seq, Low: seq, Stamp: now})
			apply(shard.AppendCommand(e, shard.Command{Module: id, Data: s.Cmd}))
		}
		commit()
		r.answers = out.Answers
		return r
	}
	want := play(1, -1)
	for _, v := range []struct {
		name              string
		every, transferAt int
	}{{"same again", 1, -1}, {"one commit", 1 << 30, -1}, {"commits of 7", 7, -1}, {"snapshot half way", 3, len(steps) / 2}} {
		got := play(v.every, v.transferAt)
		if got.m.Digest() != want.m.Digest() || got.m.Revision() != want.m.Revision() {
			t.Errorf("%s: digest %x revision %d, want %x %d", v.name, got.m.Digest(), got.m.Revision(), want.m.Digest(), want.m.Revision())
		}
		if g, w := dump(t, got.m), dump(t, want.m); g != w {
			t.Errorf("%s: the stored rows differ", v.name)
		}
		for i := range want.answers {
			g, w := got.answers[i].Result, want.answers[i].Result
			if string(g.Data) != string(w.Data) || g.Revision != w.Revision || errText(g.Err) != errText(w.Err) {
				t.Errorf("%s: step %d: got %q %v, want %q %v", v.name, i, g.Data, g.Err, w.Data, w.Err)
			}
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return errs.KindOf(err).String() + err.Error()
}

// transfer moves a state to another machine by a snapshot.
func transfer(t *testing.T, from, to *shard.Machine) *shard.Machine {
	t.Helper()
	r, err := from.Snapshot()
	if err != nil {
		t.Fatalf("snapshot: %v", err)
	}
	in, err := to.Install()
	if err != nil {
		t.Fatalf("install: %v", err)
	}
	for {
		chunk, err := r.Next(256)
		if err != nil {
			t.Fatalf("next chunk: %v", err)
		}
		if chunk == nil {
			break
		}
		if err := in.Add(chunk); err != nil {
			t.Fatalf("add chunk: %v", err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatalf("close snapshot: %v", err)
	}
	if err := in.Finish(); err != nil {
		t.Fatalf("finish install: %v", err)
	}
	return to
}

// dump returns all rows of a machine.
func dump(t *testing.T, m *shard.Machine) string {
	t.Helper()
	r, err := m.Snapshot()
	if err != nil {
		t.Fatalf("snapshot: %v", err)
	}
	defer r.Close() //nolint:errcheck // a read view
	var all []byte
	for {
		chunk, err := r.Next(1 << 20)
		if err != nil {
			t.Fatalf("next chunk: %v", err)
		}
		if chunk == nil {
			return string(all)
		}
		all = append(all, chunk...)
	}
}
