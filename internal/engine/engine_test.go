package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/replica"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
	"github.com/quorate/quorate/internal/transport"
)

// register is a data model of one register.
type register struct{}

const registerID shard.ModuleID = 210

func (register) ID() shard.ModuleID { return registerID }

func (register) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	if string(cmd) == "fail" {
		return nil, errs.New(errs.Conflict, "asked to fail")
	}
	tx.Set([]byte("r"), cmd)
	tx.Wake([]byte("r"))
	return []byte("ok"), nil
}

func (register) Query(v shard.View, _ []byte) ([]byte, error) {
	b, _ := v.Get([]byte("r"))
	return b, nil
}

func (register) Fire(*shard.Tx, []byte) error { return nil }

type testNode struct {
	*Engine
	dir *storage.Dir
}

// startNodes starts a cluster of engines in this process, on disks in memory and loopback links.
func startNodes(t *testing.T, n int, change ...func(*Config)) []*testNode {
	t.Helper()
	return startNodesOn(t, n, register{}, func(int) storage.FS { return storage.VolatileFS() }, change...)
}

// startNodesOn is startNodes with a model and disks of the caller's.
func startNodesOn(t *testing.T, n int, model shard.Module, disk func(i int) storage.FS, change ...func(*Config)) []*testNode {
	t.Helper()
	var lns []net.Listener
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		lns = append(lns, ln)
	}
	var all []*testNode
	for i := range n {
		peers := map[shard.NodeID]string{}
		for j := range n {
			if j != i {
				peers[shard.NodeID(j+1)] = lns[j].Addr().String()
			}
		}
		cfg := Config{
			Cluster: "t", Node: shard.NodeID(i + 1), Peers: peers, Addr: map[string]string{"redis": fmt.Sprintf("r%d", i+1)},
			Spaces: []shard.Space{{Name: "default", Shards: []shard.ID{1, 2}}},
		}
		for _, f := range change {
			f(&cfg)
		}
		all = append(all, startNodeOn(t, cfg, lns[i], model, disk(i)))
	}
	return all
}

// startNode starts one node with nothing on its disk, and ends it with the test.
func startNode(t *testing.T, cfg Config, ln net.Listener) *testNode {
	t.Helper()
	return startNodeOn(t, cfg, ln, register{}, storage.VolatileFS())
}

func startNodeOn(t *testing.T, cfg Config, ln net.Listener, model shard.Module, disk storage.FS) *testNode {
	t.Helper()
	dir, err := storage.OpenDir(disk, "data", storage.Owner{Cluster: "t", Node: uint32(cfg.Node), Shards: 2}, storage.LogConfig{}, storage.StoreConfig{MemTableBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	e, err := Start(cfg, dir, []shard.Module{model}, ln, env.Real(), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	node := &testNode{e, dir}
	t.Cleanup(func() {
		stopped := node.Err()
		if err := node.Close(); err != nil && (stopped == nil || !errors.Is(err, stopped)) {
			t.Errorf("close node %d: %v", cfg.Node, err)
		}
		if err := dir.Close(); err != nil {
			t.Errorf("close the directory of node %d: %v", cfg.Node, err)
		}
	})
	return node
}

func command(s string) shard.Command { return shard.Command{Module: registerID, Data: []byte(s)} }

// write submits until the cluster takes it; at the start there is no leader yet.
func write(t *testing.T, n *testNode, id shard.ID, s string) shard.Revision {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		r := n.Submit(ctx, shard.Route{Shard: id}, command(s)).Wait(ctx)
		if r.Err == nil {
			return r.Revision
		}
		if ctx.Err() != nil {
			t.Fatalf("write: %v", r.Err)
		}
	}
}

// startAlone returns one node of three whose peers have ended. Shard 1 holds "before".
func startAlone(t *testing.T) *testNode {
	t.Helper()
	nodes := startNodes(t, 3)
	write(t, nodes[0], 1, "before")
	for _, n := range nodes[1:] {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return nodes[0]
}

func TestEngine_WritesAreReadThroughAnyNode(t *testing.T) {
	nodes := startNodes(t, 3)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for i := range 30 {
		id := shard.ID(1 + i%2)
		rev := write(t, nodes[i%3], id, fmt.Sprint("v", i))
		for _, n := range nodes {
			b, err := n.Query(ctx, shard.Route{Shard: id}, shard.Linearizable, command(""))
			if err != nil || string(b) != fmt.Sprint("v", i) {
				t.Fatalf("node %d reads %q, %v; want v%d", n.cfg.Node, b, err, i)
			}
			if _, err := n.Query(ctx, shard.Route{Shard: id}, shard.Consistency{Stale: true, AtLeast: rev}, command("")); err != nil {
				t.Fatalf("read with a token: %v", err)
			}
			for _, at := range []shard.Consistency{shard.Linearizable, {Stale: true, AtLeast: rev}} {
				if a := wait(t, n.ask(ctx, t, id, at)); a.err != nil || string(a.data) != fmt.Sprint("v", i) {
					t.Fatalf("node %d is asked and says %q, %v; want v%d", n.cfg.Node, a.data, a.err, i)
				}
			}
			if a := wait(t, n.ask(ctx, t, id, shard.Consistency{Stale: true})); a.err != nil {
				t.Fatal(a.err)
			}
		}
	}
	top := nodes[0].Topology()
	if len(top.Nodes) != 3 || len(top.Shards) != 2 || top.Shards[0].Leader == 0 {
		t.Errorf("topology is %+v", top)
	}
	for _, n := range top.Nodes {
		if want := fmt.Sprintf("r%d", n.ID); n.Addr["redis"] != want {
			t.Errorf("node %d advertises %v, want %s", n.ID, n.Addr, want)
		}
	}
	st, err := nodes[0].Status()
	if err != nil || len(st.Shards) != 2 || st.Shards[0].Rebuilding {
		t.Errorf("status is %+v, %v", st, err)
	}
}

func TestStatus_SaysWhyALinkIsRefused(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"shards must be the same": func(cfg *Config) {
			cfg.Spaces = []shard.Space{{Name: "default", Shards: []shard.ID{1, 2, 3}}}
		},
		// Nodes that count other members may find another majority.
		"peers must name the same nodes": func(cfg *Config) {
			cfg.Peers = maps.Clone(cfg.Peers)
			cfg.Peers[4], cfg.Peers[5] = "127.0.0.1:1", "127.0.0.1:1"
		},
	} {
		nodes := startNodes(t, 3)
		write(t, nodes[0], 1, "all have met")
		if err := nodes[2].Close(); err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp", nodes[0].cfg.Peers[3])
		if err != nil {
			t.Fatal(err)
		}
		cfg := nodes[2].cfg
		change(&cfg)
		nodes[2] = startNode(t, cfg, ln)
		write(t, nodes[0], 1, "the two that agree go on")
		for i, other := range []int{3, 3, 1} {
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
				st, err := nodes[i].Status()
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(st.Nodes[other-1].Refused, want) {
					if st.Nodes[i].Refused != "" || i < 2 && st.Nodes[1-i].Refused != "" {
						t.Errorf("node %d: %+v", i+1, st.Nodes)
					}
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%s: node %d shows %+v", want, i+1, st.Nodes)
				}
			}
		}
	}
}

// Peers would refuse each link.
func TestStart_RefusesMoreThanPeersListenTo(t *testing.T) {
	cfg := Config{Cluster: "t", Node: 1, Addr: map[string]string{"redis": strings.Repeat("x", transport.HelloBytesMax)}, Peers: map[shard.NodeID]string{2: "b:1", 3: "c:1"}}
	if _, err := Start(cfg, nil, nil, nil, env.Real(), slog.New(slog.DiscardHandler), prometheus.NewRegistry()); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "fewer spaces") {
		t.Errorf("got %v", err)
	}
}

func TestEngine_ErrorsAreTyped(t *testing.T) {
	nodes := startNodes(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	write(t, nodes[0], 1, "x")
	f := func(name string, err error, want errs.Kind) {
		t.Helper()
		if !errs.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
	f("module error", nodes[0].Submit(ctx, shard.Route{Shard: 1}, command("fail")).Wait(ctx).Err, errs.Conflict)
	f("no shard", nodes[0].Submit(ctx, shard.Route{Shard: 9}, command("x")).Wait(ctx).Err, errs.NotFound)
	_, err := nodes[0].Query(ctx, shard.Route{Shard: 9}, shard.Linearizable, command(""))
	f("no shard to read", err, errs.NotFound)
	f("no shard to ask", wait(t, nodes[0].ask(ctx, t, 9, shard.Linearizable)).err, errs.NotFound)
	f("too large", nodes[0].Submit(ctx, shard.Route{Shard: 1}, shard.Command{Module: registerID, Data: make([]byte, 17<<20)}).Wait(ctx).Err, errs.TooLarge)
	f("no module", nodes[0].Submit(ctx, shard.Route{Shard: 1}, shard.Command{Module: 99}).Wait(ctx).Err, errs.Unsupported)
	gone, stop := context.WithCancel(ctx)
	stop()
	f("cancelled before", nodes[0].Submit(gone, shard.Route{Shard: 1}, command("x")).Wait(ctx).Err, errs.Unavailable)
	if got, err := nodes[0].Query(ctx, shard.Route{Shard: 1}, shard.Linearizable, command("")); err != nil || string(got) != "x" {
		t.Errorf("register holds %q, %v; want x", got, err)
	}
}

// TestEngine_TimeLimitsAreExplained: what ends a wait is the caller's business; its client must learn what happened and what
// to do, in the same words whoever notices first.
func TestEngine_TimeLimitsAreExplained(t *testing.T) {
	node := startAlone(t)
	ended := func(d time.Duration, cancelled bool) context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		if !cancelled {
			t.Cleanup(cancel)
			return ctx
		}
		plain, stop := context.WithCancel(context.Background())
		go func() { <-ctx.Done(); cancel(); stop() }()
		return plain
	}
	for _, cancelled := range []bool{false, true} {
		f := func(name string, err error, kind errs.Kind, want string) {
			t.Helper()
			if !errs.Is(err, kind) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "context") {
				t.Errorf("%s, cancelled %v: got %v, want %v with %q", name, cancelled, err, kind, want)
			}
		}
		_, err := node.Query(ended(50*time.Millisecond, cancelled), shard.Route{Shard: 1}, shard.Linearizable, command(""))
		f("read", err, errs.Unavailable, "try again, or read through another node")
		_, err = node.Query(ended(50*time.Millisecond, cancelled), shard.Route{Shard: 1}, shard.Consistency{Stale: true, AtLeast: 1000}, command(""))
		f("read with a token", err, errs.Unavailable, "did not reach revision 1000 of shard 1 within the time limit; try again")
		ctx := ended(50*time.Millisecond, cancelled)
		<-ctx.Done()
		f("write", node.Submit(ctx, shard.Route{Shard: 1}, command("x")).Wait(context.Background()).Err, errs.Unavailable, "not applied, try again")
		f("wait", shard.NewFuture().Wait(ctx).Err, errs.OutcomeUnknown, "look before you repeat it")
	}
}

func TestEngine_WithoutQuorumNothingIsAcknowledged(t *testing.T) {
	node := startAlone(t)
	ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
	defer cancel()
	r := node.Submit(ctx, shard.Route{Shard: 1}, command("after")).Wait(context.Background())
	if !errs.Is(r.Err, errs.OutcomeUnknown) && !errs.Is(r.Err, errs.Unavailable) {
		t.Errorf("write without a quorum: %+v", r)
	}
	if _, err := node.Query(ctx, shard.Route{Shard: 1}, shard.Linearizable, command("")); !errs.Is(err, errs.Unavailable) {
		t.Errorf("linearizable read without a quorum: %v", err)
	}
	if b, err := node.Query(context.Background(), shard.Route{Shard: 1}, shard.Consistency{Stale: true}, command("")); err != nil || string(b) != "before" {
		t.Errorf("stale read: %q, %v; want before", b, err)
	}
}

func TestEngine_RebuildingReplicaAnswersNoReads(t *testing.T) {
	n := startNodes(t, 3)[0]
	write(t, n, 1, "a")
	for _, at := range []shard.Consistency{{Stale: true}, {Stale: true, AtLeast: 1}} {
		if got, err := n.Query(context.Background(), shard.Route{Shard: 1}, at, command("")); err != nil || string(got) != "a" {
			t.Fatalf("%+v: got %q, %v", at, got, err)
		}
		n.machines[1].SetRebuilding(true)
		if got, err := n.Query(context.Background(), shard.Route{Shard: 1}, at, command("")); !errs.Is(err, errs.Unavailable) {
			t.Errorf("%+v: got %q, %v", at, got, err)
		}
		n.machines[1].SetRebuilding(false)
	}
}

func TestEngine_WatchWakes(t *testing.T) {
	nodes := startNodes(t, 3)
	write(t, nodes[0], 1, "a")
	w := nodes[2].Watch(shard.Route{Shard: 1}, shard.Span{Module: registerID, From: []byte("r")})
	defer w.Close()
	write(t, nodes[1], 1, "b")
	select {
	case <-w.C:
	case <-time.After(20 * time.Second):
		t.Error("the watch on another node was not woken")
	}
}

func TestEngine_CloseAnswersWhatIsOpen(t *testing.T) {
	nodes := startNodes(t, 3)
	write(t, nodes[0], 1, "x")
	// With the others gone nothing can commit; what is open when the node closes must be answered all the same.
	for _, n := range nodes[1:] {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var open []*shard.Future
	for range 100 {
		open = append(open, nodes[0].Submit(context.Background(), shard.Route{Shard: 1}, command("y")))
	}
	if err := nodes[0].Close(); err != nil {
		t.Fatal(err)
	}
	for i, f := range open {
		select {
		case <-f.Done():
		case <-time.After(20 * time.Second):
			t.Fatalf("future %d is still open", i)
		}
		if k := errs.KindOf(f.Wait(context.Background()).Err); k != errs.OutcomeUnknown && k != errs.Unavailable {
			t.Errorf("future %d ended with %v", i, k)
		}
	}
	if r := nodes[0].Submit(context.Background(), shard.Route{Shard: 1}, command("z")).Wait(context.Background()); !errs.Is(r.Err, errs.Unavailable) {
		t.Errorf("submit after close: %v", r.Err)
	}
}

// A read that comes while a turn takes in the answer of the request under way must bring a turn: no other answer will.
func TestEngine_ReadThatComesWithTheAnswerBringsATurn(t *testing.T) {
	g := &Engine{wake: make(chan struct{}, 1), reading: true}
	g.give(replica.Read{Shard: 1, Future: shard.NewFuture()})
	if len(g.wake) != 0 {
		t.Fatalf("a read woke the loop while a request is under way")
	}
	if !g.handle(&replica.Output{}) {
		t.Fatalf("the engine wants to stop")
	}
	if len(g.wake) != 1 || len(g.inbox) != 1 {
		t.Errorf("the read waits for a turn that nobody runs")
	}
}
