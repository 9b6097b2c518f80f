// Package engine makes shard.Client true on a cluster: it runs a replica.Host, one goroutine at a time, writes its log
// meanwhile, and moves frames between it and the transport.
//
// All decisions are the host's. The engine only waits, writes, sends and answers, so that what the simulation has tested
// is what runs.
package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/replica"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
	"github.com/quorate/quorate/internal/transport"
)

// Config describes a node.
type Config struct {
	// Cluster is the cluster's name, the same on every node.
	Cluster string
	// Identity is what nodes must agree on to speak to each other; default Cluster.
	Identity string
	// Node is this node's number, Peers the peer addresses of all other members.
	Node  shard.NodeID
	Peers map[shard.NodeID]string
	// Spaces lists the spaces with their shards, the same on every node; the first is "default".
	Spaces []shard.Space
	// Addr is what this node advertises to clients, by protocol.
	Addr map[string]string
	// Timeout bounds a request that has no deadline of its own; default 10 s.
	Timeout time.Duration
	// Replica holds the tunables of the host; the fields that follow from the rest of Config are set by the engine.
	Replica replica.Config
	// Scrub says how stored data that nobody reads are checked.
	Scrub ScrubConfig
	// DropUnsynced makes Sync do nothing: the control of the power-loss drill, refused outside sandboxes.
	DropUnsynced bool
	// StaleReads answers linearizable reads from whatever this node has: a control of drills, refused outside sandboxes.
	StaleReads bool
}

// Engine runs the shards of one node. It implements shard.Client.
type Engine struct {
	cfg Config
	env *env.Env
	log *slog.Logger
	dir *storage.Dir

	host      *replica.Host
	hub       *shard.Hub
	transport *transport.Transport
	machines  map[shard.ID]*shard.Machine
	topo      atomic.Pointer[shard.Topology]
	metrics   *metrics
	scrubbed  scrubStats

	// turns is held by whoever runs a turn: a worker, or the goroutine that brings a frame, a read or the end of a log write, if
	// no worker is at it. That saves waking another goroutine, which costs more than most turns.
	turns sync.Mutex
	// timer brings the turn that is due without input. It calls a function, since one with a channel is put into the runtime's
	// heap, and taken out, each time a worker waits; that wakes whatever thread waits for the network. fired says that it did.
	timer *time.Timer
	fired atomic.Bool
	// armed is when the timer fires. It is moved to an earlier time only: a turn too many is cheaper than to set it in each.
	armed time.Time
	// failed is set when the disk failed, ended when there are no more turns. spare is the inbox's other buffer.
	failed error
	ended  bool
	spare  []replica.Input
	// calls are what turns have completed for those who do not wait, and that runs when turns is free; see call. apart is how many of them
	// are still to run in goroutines of their own.
	calls []completed
	apart atomic.Int64

	// mu guards what follows; wake has room for one signal. Commands for the shards in hold only wait, so they bring no turn. The
	// same goes for reads while a read-index request is under way.
	mu      sync.Mutex
	inbox   []replica.Input
	control []func()
	closed  bool
	reading bool
	hold    replica.Hold
	wake    chan struct{}

	// writes are what waits to be written, up to number wseq; wwake has room for one signal.
	wmu    sync.Mutex
	writes []storage.Write
	wseq   uint64
	wwake  chan struct{}
	// quiet says that idle has fired: nothing was written for a while.
	quiet bool
	// writing is held by whoever writes to the log; after a failure for good. repaired says that repair has run.
	writing  sync.Mutex
	idle     *time.Timer
	repaired bool

	// peers is what other nodes advertise.
	pmu   sync.Mutex
	peers map[shard.NodeID]map[string]string

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
	done chan struct{}
	err  error
}

var _ shard.Client = (*Engine)(nil)

// hello is what nodes show each other.
type hello struct {
	Addr map[string]string `json:"addr"`
	// Members are all nodes of the cluster, as the node is told; earlier releases do not show them.
	Members []shard.NodeID `json:"members,omitempty"`
}

// Start opens the node's replicas and starts to run them; peers are accepted on ln, which the engine owns from then on. A
// nil ln is for single nodes. dir stays the caller's to close, after Close.
func Start(cfg Config, dir *storage.Dir, modules []shard.Module, ln net.Listener, e *env.Env, log *slog.Logger, reg prometheus.Registerer) (*Engine, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Identity == "" {
		cfg.Identity = cfg.Cluster
	}
	cfg.Scrub.fill()
	rc := cfg.Replica
	rc.Node, rc.Nodes, rc.Shards = cfg.Node, []shard.NodeID{cfg.Node}, nil
	for id := range cfg.Peers {
		rc.Nodes = append(rc.Nodes, id)
	}
	slices.Sort(rc.Nodes)
	shown, err := json.Marshal(hello{Addr: cfg.Addr, Members: rc.Nodes})
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "encode hello")
	}
	if n := len(shown); n > transport.HelloBytesMax && len(cfg.Peers) > 0 {
		return nil, errs.New(errs.Invalid, "the addresses that this node tells its peers have %d bytes together, and at most %d are allowed; give fewer spaces ports of their own, or shorter addresses",
			n, transport.HelloBytesMax)
	}
	for _, s := range cfg.Spaces {
		rc.Shards = append(rc.Shards, s.Shards...)
	}
	slices.Sort(rc.Shards)
	// The top bit is kept free: requests count up from the session.
	rc.Session, rc.LogID = e.Rand()>>1|1, dir.Log.ID()&^(1<<63)
	host, err := replica.Open(rc, dir.Log, dir.Recovery, dir.StoreLost, dir.Store, shard.Modules(modules...), e.Now())
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	g := &Engine{
		cfg: cfg, env: e, log: log, dir: dir, host: host, hub: shard.NewHub(), machines: map[shard.ID]*shard.Machine{},
		wake: make(chan struct{}, 1), wwake: make(chan struct{}, 1), peers: map[shard.NodeID]map[string]string{},
		ctx: ctx, stop: stop, done: make(chan struct{}), armed: e.Now(),
	}
	g.timer = time.AfterFunc(0, func() {
		g.fired.Store(true)
		g.signal()
	})
	g.idle = time.AfterFunc(time.Hour, func() {
		g.wmu.Lock()
		g.quiet = true
		g.wmu.Unlock()
		g.signalWriter()
	})
	for _, id := range rc.Shards {
		g.machines[id] = host.Machine(id)
	}
	g.metrics = newMetrics(g, reg)
	g.publish()
	tp := map[transport.NodeID]string{}
	for id, addr := range cfg.Peers {
		tp[transport.NodeID(id)] = addr
	}
	g.transport = transport.New(transport.Config{
		Cluster: cfg.Identity, Shards: uint32(len(rc.Shards)), Self: transport.NodeID(cfg.Node), Peers: tp, Hello: shown,
		FrameBytesMax: replica.FrameBytesMax,
		OnFrame: func(from transport.NodeID, f []byte) {
			g.give(replica.Frame{From: shard.NodeID(from), Data: f, At: e.Now()})
		},
		OnLink: func(to transport.NodeID, up, refused bool) {
			g.give(replica.Link{Node: shard.NodeID(to), Up: up, Refused: refused})
		},
		Refuse: func(from transport.NodeID, b []byte) string {
			var h hello
			if err := json.Unmarshal(b, &h); err != nil || h.Members == nil || slices.Equal(h.Members, rc.Nodes) {
				return ""
			}
			return fmt.Sprintf("node %d has the members %v, and node %d has %v; peers must name the same nodes on every node of a cluster, correct them in the configuration of the one that is wrong",
				cfg.Node, rc.Nodes, from, h.Members)
		},
		OnHello: g.heard,
	}, e, log)
	g.wg.Add(workers + 1)
	for range workers {
		go g.work()
	}
	go g.scrub()
	if ln != nil {
		g.transport.Serve(ln)
	}
	return g, nil
}

// Close stops the node's work and waits for it. What was acknowledged is on disk; futures still open get OutcomeUnknown.
func (g *Engine) Close() error {
	g.stop()
	if g.transport != nil {
		g.transport.Close()
	}
	g.wg.Wait()
	g.host.Close()
	if errors.Is(g.err, context.Canceled) {
		return nil
	}
	return g.err
}

// Done is closed when the engine has stopped, by Close or by itself; Err then says why.
func (g *Engine) Done() <-chan struct{} { return g.done }

// Err returns why the engine stopped: nil before it has and after Close. errs.Corrupt means that the node's data are
// damaged: it must be opened again to be rebuilt.
func (g *Engine) Err() error {
	select {
	case <-g.done:
		if errors.Is(g.err, context.Canceled) {
			return nil
		}
		return g.err
	default:
		return nil
	}
}

// give hands the host an input. It may run the turn that takes it in.
func (g *Engine) give(in replica.Input) {
	quiet, inline, writes := false, false, true
	g.mu.Lock()
	closed := g.closed
	if !closed {
		g.inbox = append(g.inbox, in)
		switch in := in.(type) {
		case replica.Propose:
			quiet = g.heldLocked(in.Shard)
		case replica.Read:
			quiet = g.reading
			inline, writes = true, false
		case replica.LogDone:
			inline = true
		case replica.Frame:
			inline, writes = true, false
		}
	}
	g.mu.Unlock()
	switch {
	case closed:
		g.refuse(in)
	case quiet:
	case inline && g.turns.TryLock():
		// Who brings a frame goes on to read the next, and who brings a read waits for its answer.
		g.turn(writes)
		calls := g.takeCalls()
		g.turns.Unlock()
		g.call(calls, !writes)
	default:
		// If the turns are taken, this is a worker's.
		g.signal()
	}
}

// heldLocked says whether one more command for a shard can do without a turn.
func (g *Engine) heldLocked(id shard.ID) bool {
	if !slices.Contains(g.hold.Shards, id) {
		return false
	}
	g.hold.Commands--
	return g.hold.Commands > 0
}

// holdMax bounds what is looked through for each command; shards past it get a turn for each.
const holdMax = 256

// setHold takes over what the last turn said, also for what came meanwhile.
func (g *Engine) setHold(out *replica.Output) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reading = out.Reading
	shards := out.Hold.Shards
	g.hold.Shards = append(g.hold.Shards[:0], shards[:min(len(shards), holdMax)]...)
	g.hold.Commands = out.Hold.Commands
	due := false
	for _, in := range g.inbox {
		switch in := in.(type) {
		case replica.Propose:
			due = !g.heldLocked(in.Shard) || due
		case replica.Read:
			due = !g.reading || due
		}
	}
	if due {
		g.signal()
	}
}

// refuse answers a request that came after the end.
func (g *Engine) refuse(in replica.Input) {
	switch in := in.(type) {
	case replica.Propose:
		in.Future.Complete(shard.Result{Err: g.stopped()})
	case replica.Read:
		in.Future.Complete(shard.Result{Err: g.stopped()})
	case replica.MoveLeader:
		in.Future.Complete(shard.Result{Err: g.stopped()})
	}
}

func (g *Engine) signal() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

func (g *Engine) signalWriter() {
	select {
	case g.wwake <- struct{}{}:
	default:
	}
}

// inLoop runs f between two turns and waits for it. It returns false if the engine has stopped.
func (g *Engine) inLoop(f func()) bool {
	ran := make(chan struct{})
	g.mu.Lock()
	g.control = append(g.control, func() { f(); close(ran) })
	g.mu.Unlock()
	g.signal()
	select {
	case <-ran:
		return true
	case <-g.done:
		return false
	}
}

// workers is how many goroutines work: one may wait for the disk while another runs turns.
const workers = 2

// work runs the turns that no other goroutine has run, and writes what they want written. Whoever made a turn goes on to
// write, since waking another goroutine for it would cost about as much as the turn.
func (g *Engine) work() {
	defer g.wg.Done()
	for {
		select {
		case <-g.wake:
			g.turns.Lock()
			if g.fired.Swap(false) {
				g.armed = time.Time{}
			}
			g.turn(true)
			calls := g.takeCalls()
			g.turns.Unlock()
			g.call(calls, false)
		case <-g.wwake:
		case <-g.ctx.Done():
			g.turns.Lock()
			defer g.turns.Unlock()
			g.timer.Stop()
			g.idle.Stop()
			if !g.ended {
				g.end(g.ctx.Err())
			}
			select {
			case <-g.done:
			default:
				close(g.done)
			}
			return
		}
		g.write()
	}
}

// turn runs turns until none is due at once, or the engine is told to stop. writes says that the caller writes afterwards what they want written. The
// caller holds turns.
func (g *Engine) turn(writes bool) {
	for !g.ended && g.ctx.Err() == nil {
		again := g.turnOnce()
		wanted := g.wants()
		if wanted && !writes {
			g.signalWriter()
		}
		switch {
		case !again:
			return
		case wanted && !writes:
			// The worker that was woken begins to write at once, on this processor, and what is left to do here goes on beside it.
			g.turns.Unlock()
			runtime.Gosched()
			g.turns.Lock()
		case wanted:
			// The other worker runs the next turn while this one writes.
			g.signal()
			return
		}
	}
}

// turnOnce takes in what waits, and does what comes of it. It reports whether another turn is due at once.
func (g *Engine) turnOnce() bool {
	g.mu.Lock()
	in := g.inbox
	g.inbox = g.spare[:0]
	control := g.control
	g.control = nil
	g.mu.Unlock()
	for _, f := range control {
		f()
	}
	if g.failed != nil {
		for _, i := range in {
			g.refuse(i)
		}
		g.end(g.failed)
		return false
	}
	now := g.env.Now()
	out := g.host.Turn(now, in)
	g.metrics.turn(now, g.env.Now(), len(in))
	if !g.handle(&out) {
		return false
	}
	clear(in)
	if g.spare = in; cap(in) > 1<<16 {
		g.spare = nil
	}
	if !out.Wake.After(now) {
		return true
	}
	if g.armed.IsZero() || out.Wake.Before(g.armed) {
		g.armed = out.Wake
		g.timer.Reset(max(0, out.Wake.Sub(g.env.Now())))
	}
	return false
}

// handle does what a turn asks. It returns false if the engine has to stop.
func (g *Engine) handle(out *replica.Output) bool {
	for _, f := range out.Frames {
		g.transport.Send(transport.NodeID(f.To), f.Data, f.Control)
	}
	if len(out.Writes) > 0 {
		g.wmu.Lock()
		g.writes = append(g.writes, out.Writes...)
		g.wseq = out.Seq
		g.wmu.Unlock()
	}
	g.setHold(out)
	for i := range out.Answers {
		g.complete(out.Answers[i].Future, out.Answers[i].Result)
	}
	for i := range out.Reads {
		g.complete(out.Reads[i].Future, shard.Result{})
	}
	for i := range out.Wakes {
		w := &out.Wakes[i]
		if w.All {
			g.hub.WakeAll(w.Shard)
		} else {
			g.hub.Wake(w.Shard, w.Wakes)
		}
	}
	for _, n := range out.Notes {
		level := slog.LevelInfo
		if n.Warn {
			level = slog.LevelWarn
		}
		attrs := n.Attrs
		if n.Shard != 0 {
			attrs = append([]any{"shard", n.Shard}, attrs...)
		}
		g.log.Log(g.ctx, level, n.Msg, attrs...)
	}
	if out.Changed {
		g.publish()
	}
	if out.Flush {
		g.flush()
	}
	if out.Fatal != nil {
		g.end(out.Fatal)
		return false
	}
	return true
}

// end stops the node because of err. What was proposed has an unknown outcome; what was not is refused. The caller holds
// turns.
func (g *Engine) end(err error) {
	// The mark makes the next start empty the state store. A node without peers has no other copy: there the rows that can
	// still be read are worth keeping.
	if errs.Is(err, errs.Corrupt) && len(g.cfg.Peers) > 0 {
		if err := g.dir.MarkDamaged(); err != nil {
			g.log.Error("cannot mark the data as damaged", "error", err)
		}
	}
	g.err, g.ended = err, true
	g.stop()
	for _, a := range g.host.Abandon() {
		a.Future.Complete(a.Result)
	}
	g.mu.Lock()
	g.closed = true
	in := g.inbox
	g.inbox = nil
	g.mu.Unlock()
	for _, i := range in {
		g.refuse(i)
	}
}

// flush makes the store durable beside the turns.
func (g *Engine) flush() {
	done, err := g.dir.Store.FlushStart()
	if err != nil {
		g.fail(err)
		return
	}
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		select {
		case <-done:
			g.give(replica.Flushed{})
		case <-g.ctx.Done():
		}
	}()
}

// fail stops the engine from outside of a turn.
func (g *Engine) fail(err error) {
	g.mu.Lock()
	g.control = append(g.control, func() {
		if g.failed == nil {
			g.failed = err
		}
	})
	g.mu.Unlock()
	g.signal()
}

// sealAfter is how long the log must be idle before it is sealed.
const sealAfter = 5 * time.Millisecond

// write appends and syncs what turns want written, unless another goroutine is at it: everything that came meanwhile, with one
// sync.
func (g *Engine) write() {
	for g.wants() && g.writing.TryLock() {
		for g.wants() && g.ctx.Err() == nil {
			if err := g.writeOnce(); err != nil {
				// Nobody may write any more: the lock is kept.
				g.fail(err)
				return
			}
		}
		g.writing.Unlock()
		if g.ctx.Err() != nil {
			return
		}
	}
}

// wants says whether anything waits to be written.
func (g *Engine) wants() bool {
	g.wmu.Lock()
	defer g.wmu.Unlock()
	return len(g.writes) > 0 || g.quiet
}

// writeOnce writes what waits. If nothing does, the log has been quiet, and is sealed.
func (g *Engine) writeOnce() error {
	g.wmu.Lock()
	ws, seq, quiet := g.writes, g.wseq, g.quiet
	g.writes, g.quiet = nil, false
	g.wmu.Unlock()
	if len(ws) == 0 {
		if !quiet {
			return nil
		}
		return g.dir.Log.Seal()
	}
	began := time.Now()
	if err := g.dir.Log.AppendAll(ws); err != nil {
		return err
	}
	if !g.cfg.DropUnsynced {
		if err := g.dir.Log.Sync(); err != nil {
			return err
		}
	}
	g.metrics.synced(time.Since(began))
	if !g.repaired {
		g.repaired = true
		if err := g.repair(); err != nil {
			return err
		}
	}
	g.give(replica.LogDone{Seq: seq})
	g.idle.Reset(sealAfter)
	return nil
}

// repair withdraws what was said of damage as a whole, when the first writes are durable: they say of each shard that its
// replica waits for a new id. Before that a node that stops would come back without either.
func (g *Engine) repair() error {
	if g.dir.Recovery.AllSuspect {
		if err := g.dir.Log.Settle(0); err != nil {
			return err
		}
		if err := g.dir.Log.Sync(); err != nil {
			return err
		}
	}
	return g.dir.Repaired()
}

// heard takes in what a peer advertises.
func (g *Engine) heard(from transport.NodeID, b []byte) {
	var h hello
	if err := json.Unmarshal(b, &h); err != nil {
		g.log.Warn("peer shows an unreadable hello", "peer", from, "error", err)
		return
	}
	g.pmu.Lock()
	g.peers[shard.NodeID(from)] = h.Addr
	g.pmu.Unlock()
	g.inLoop(g.publish)
}

// publish makes a new topology. It runs between turns, or before the first.
func (g *Engine) publish() {
	t := &shard.Topology{Cluster: g.cfg.Cluster, Self: g.cfg.Node, Spaces: g.cfg.Spaces}
	g.pmu.Lock()
	t.Nodes = append(t.Nodes, shard.Node{ID: g.cfg.Node, Up: true, Addr: g.cfg.Addr})
	for id := range g.cfg.Peers {
		t.Nodes = append(t.Nodes, shard.Node{ID: id, Up: g.host.Alive(id), Addr: g.peers[id]})
	}
	g.pmu.Unlock()
	slices.SortFunc(t.Nodes, func(a, b shard.Node) int { return int(a.ID) - int(b.ID) })
	for _, s := range g.host.Shards() {
		t.Shards = append(t.Shards, shard.ShardInfo{ID: s.ID, Leader: s.Leader, Term: s.Term, Replicas: s.Members})
	}
	g.topo.Store(t)
}

// Status describes the node, for /status and `quorate status`.
type Status struct {
	Cluster string        `json:"cluster"`
	Node    shard.NodeID  `json:"node"`
	Nodes   []NodeStatus  `json:"nodes"`
	Shards  []ShardStatus `json:"shards"`
	LogID   string        `json:"log_id"`
	// LogBytes is the size of the raft log that is still needed; StoreBytes that of the state store's files.
	LogBytes   int64  `json:"log_bytes"`
	StoreBytes uint64 `json:"store_bytes"`
}

// NodeStatus describes a member as the answering node sees it.
type NodeStatus struct {
	ID   shard.NodeID      `json:"id"`
	Up   bool              `json:"up"`
	Addr map[string]string `json:"addr,omitempty"`
	// Refused says why the link with the node is refused, by either side; empty if it is not.
	Refused string `json:"refused,omitempty"`
}

// ShardStatus describes a shard as the answering node sees it.
type ShardStatus struct {
	ID       shard.ID       `json:"id"`
	Leader   shard.NodeID   `json:"leader"`
	Term     uint64         `json:"term"`
	Applied  uint64         `json:"applied"`
	Commit   uint64         `json:"commit"`
	First    uint64         `json:"first"`
	Last     uint64         `json:"last"`
	Revision shard.Revision `json:"revision"`
	Digest   string         `json:"digest"`
	Awake    bool           `json:"awake"`
	// Rebuilding says that this node's replica lost its data and is being rebuilt from its peers.
	Rebuilding bool   `json:"rebuilding"`
	Replica    uint64 `json:"replica"`
	Queued     int    `json:"queued"`
}

// Status returns what the node knows of itself.
func (g *Engine) Status() (Status, error) {
	s := Status{
		Cluster: g.cfg.Cluster, Node: g.cfg.Node, LogID: fmt.Sprintf("%016x", g.dir.Log.ID()), LogBytes: g.dir.Log.Bytes(),
		StoreBytes: g.dir.Store.Stats().DiskBytes,
	}
	for _, n := range g.Topology().Nodes {
		s.Nodes = append(s.Nodes, NodeStatus{ID: n.ID, Up: n.Up, Addr: n.Addr, Refused: g.transport.Refused(transport.NodeID(n.ID))})
	}
	if !g.inLoop(func() {
		for _, h := range g.host.Shards() {
			s.Shards = append(s.Shards, ShardStatus{
				ID: h.ID, Leader: h.Leader, Term: h.Term, Applied: h.Applied, Commit: h.Commit, First: h.First, Last: h.Last,
				Revision: h.Revision, Digest: fmt.Sprintf("%016x", h.Digest), Awake: h.Awake, Rebuilding: h.Awaiting || !h.Voter(h.Replica),
				Replica: h.Replica, Queued: h.Queued,
			})
		}
	}) {
		return s, g.stopped()
	}
	return s, nil
}
