package replica

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// rig is a cluster whose messages, syncs and clock a test moves by hand. The network is perfect and the disks are quick
// unless a test says otherwise; package sim is where things go wrong by chance.
type rig struct {
	testing.TB
	now   time.Time
	nodes []*rigNode
	// drop decides what the network loses.
	drop func(from, to shard.NodeID, kind byte) bool
	// asynchronous says that syncs stay open until sync is called.
	holdSync map[shard.NodeID]bool
	// holdLog says that writes wait until written is called, as they do while the writer syncs those before them.
	holdLog map[shard.NodeID]bool
	// noLog says that nothing is written.
	noLog bool
	cfg   func(*Config)
	// sent is called with each frame that is sent.
	sent func(from shard.NodeID, f Outgoing)
	// takes, if there is one, says when a frame that is sent now arrives; flying are those under way.
	takes  func(from shard.NodeID, f Outgoing) time.Time
	flying []flight
	notes  []string
	boots  uint64
	// woken is called with what watchers are told.
	woken func(n shard.NodeID, w ShardWakes)
	// bent says that the test has changed a host's figures.
	bent bool
}

type flight struct {
	at   time.Time
	from shard.NodeID
	f    Outgoing
}

type rigNode struct {
	r       *rig
	id      shard.NodeID
	logFS   storage.FS
	store   *storage.Store
	log     *storage.Log
	host    *Host
	inbox   []Input
	wake    time.Time
	seq     uint64
	writes  []storage.Write
	fatal   error
	counts  Counts
	results map[*shard.Future]shard.Result
	reads   map[*shard.Future]*shard.Machine
	// flushes counts the flushes that were asked for.
	flushes int
	// wakesAll counts how often watchers were told that all of a shard may have changed.
	wakesAll int
}

// pairs is a module that stores "key=value", fails on "!", sets a timer on "@key=delay", and answers "?key=n" with n bytes.
type pairs struct{}

func (pairs) ID() shard.ModuleID { return 9 }

func (pairs) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	k, v, _ := strings.Cut(string(cmd), "=")
	switch {
	case k == "!":
		return nil, errs.New(errs.Conflict, "asked to fail")
	case k[0] == '@':
		d, err := time.ParseDuration(v)
		if err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "delay")
		}
		tx.SetTimer([]byte(k[1:]), tx.Now().Add(d))
		return nil, nil
	case k[0] == '?':
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "length")
		}
		tx.Set([]byte(k[1:]), []byte(v))
		return make([]byte, n), nil
	}
	tx.Set([]byte(k), []byte(v))
	tx.Emit("set", []byte(k), []byte(k), []byte(v))
	return []byte("was set"), nil
}

func (pairs) Query(v shard.View, q []byte) ([]byte, error) {
	val, _ := v.Get(q)
	return val, nil
}

func (pairs) Fire(tx *shard.Tx, key []byte) error {
	tx.Set(key, []byte("fired"))
	return nil
}

func newRig(t testing.TB, nodes int, cfg func(*Config)) *rig {
	t.Helper()
	r := &rig{
		TB: t, now: time.Unix(1_000_000, 0).UTC(), cfg: cfg, holdSync: map[shard.NodeID]bool{}, holdLog: map[shard.NodeID]bool{},
		drop: func(_, _ shard.NodeID, _ byte) bool { return false },
	}
	for i := range nodes {
		n := &rigNode{r: r, id: shard.NodeID(i + 1), logFS: storage.MemFS()}
		r.nodes = append(r.nodes, n)
		n.newDisk()
	}
	for _, n := range r.nodes {
		n.start(false)
	}
	t.Cleanup(func() {
		for _, n := range r.nodes {
			n.stop()
			_ = n.store.Close()
		}
	})
	return r
}

// newDisk gives a node an empty disk.
func (n *rigNode) newDisk() {
	n.r.Helper()
	n.logFS = storage.MemFS()
	n.dropState()
}

// dropState takes what is in a stopped node's state store, as a crash does with what was not flushed.
func (n *rigNode) dropState() {
	n.r.Helper()
	if n.store != nil {
		_ = n.store.Close()
	}
	var err error
	if n.store, err = storage.OpenStore(storage.MemFS(), "state", storage.StoreConfig{Deterministic: true}); err != nil {
		n.r.Fatal(err)
	}
}

// open starts a node with what is on its disk.
func (n *rigNode) open(change func(*storage.Recovery), storeLost bool) error {
	n.r.Helper()
	lg, rec, err := storage.OpenLog(n.logFS, "log", storage.LogConfig{SegmentBytes: 64 << 10, ZeroBytes: 4 << 10})
	if err != nil {
		n.r.Fatal(err)
	}
	if change != nil {
		change(rec)
	}
	n.r.boots++
	cfg := Config{
		Node: n.id, Shards: []shard.ID{1}, Session: n.r.boots * 100, LogID: lg.ID() &^ awareBit, ChunkBytes: 100,
	}
	for i := range n.r.nodes {
		cfg.Nodes = append(cfg.Nodes, shard.NodeID(i+1))
	}
	if n.r.cfg != nil {
		n.r.cfg(&cfg)
	}
	n.log, n.inbox, n.seq, n.writes, n.fatal, n.counts = lg, nil, 0, nil, nil, Counts{}
	n.results, n.reads = map[*shard.Future]shard.Result{}, map[*shard.Future]*shard.Machine{}
	n.wake = n.r.now
	n.host, err = Open(cfg, lg, rec, storeLost, n.store, shard.Modules(pairs{}), n.r.now)
	return err
}

func (n *rigNode) start(storeLost bool) {
	n.r.Helper()
	if err := n.open(nil, storeLost); err != nil {
		n.r.Fatalf("node %d: %v", n.id, err)
	}
}

// stop ends a node in order; what it wrote stays.
func (n *rigNode) stop() {
	if n.host != nil {
		n.host.Close()
		_ = n.log.Close()
		n.host = nil
	}
}

// restart stops and starts a node.
func (n *rigNode) restart() {
	n.r.Helper()
	n.stop()
	n.start(false)
}

// turn runs a node's host once, and does what it asks.
func (n *rigNode) turn(in ...Input) Output {
	n.r.Helper()
	r := n.r
	in = append(n.inbox, in...)
	n.inbox = nil
	before := n.host.roles()
	out := n.host.Turn(r.now, in)
	n.wake = out.Wake
	if after := n.host.roles(); after != before && !out.Changed && out.Fatal == nil {
		r.Fatalf("node %d does not say that its shards were\n%s\nand are\n%s", n.id, before, after)
	}
	if err := n.host.wrong(); err != nil && out.Fatal == nil && !r.bent {
		r.Fatalf("node %d: %v", n.id, err)
	}
	for _, t := range out.Notes {
		r.notes = append(r.notes, fmt.Sprintf("%d: %s", n.id, t.Msg))
	}
	for _, a := range out.Answers {
		if _, twice := n.results[a.Future]; twice {
			r.Errorf("node %d answered a future twice: %+v", n.id, a.Result)
		}
		n.results[a.Future] = a.Result
	}
	for _, rd := range out.Reads {
		if _, twice := n.reads[rd.Future]; twice {
			r.Errorf("node %d released a read twice", n.id)
		}
		n.reads[rd.Future] = rd.Machine
	}
	for _, w := range out.Wakes {
		if r.woken != nil {
			r.woken(n.id, w)
		}
		if w.All {
			n.wakesAll++
		}
	}
	n.counts.Duplicates += out.Counts.Duplicates
	n.counts.Asleep += out.Counts.Asleep
	n.counts.Woken += out.Counts.Woken
	n.counts.LeaseReads += out.Counts.LeaseReads
	n.counts.Commands += out.Counts.Commands
	if out.Fatal != nil {
		n.fatal = out.Fatal
		n.stop()
		return out
	}
	for _, f := range out.Frames {
		if r.sent != nil {
			r.sent(n.id, f)
		}
		if r.takes == nil {
			r.deliver(n.id, f)
		} else {
			r.flying = append(r.flying, flight{r.takes(n.id, f), n.id, f})
		}
	}
	if len(out.Writes) > 0 {
		n.writes, n.seq = append(n.writes, out.Writes...), out.Seq
		if !r.holdLog[n.id] {
			n.written()
		}
	}
	if out.Flush {
		n.flushes++
		if err := n.store.Flush(); err != nil {
			r.Fatal(err)
		}
		n.inbox = append(n.inbox, Flushed{})
	}
	return out
}

// written appends what waits to be written.
func (n *rigNode) written() {
	n.r.Helper()
	if n.r.noLog {
		n.writes = nil
		n.inbox = append(n.inbox, LogDone{n.seq})
		return
	}
	if err := n.log.AppendAll(n.writes); err != nil {
		n.r.Fatalf("node %d: append: %v", n.id, err)
	}
	n.writes = nil
	if !n.r.holdSync[n.id] {
		n.sync()
	}
}

func (n *rigNode) sync() {
	n.r.Helper()
	if err := n.log.Sync(); err != nil {
		n.r.Fatal(err)
	}
	n.inbox = append(n.inbox, LogDone{n.seq})
}

// deliver passes a frame on without the messages that the network loses.
func (r *rig) deliver(from shard.NodeID, f Outgoing) {
	r.Helper()
	to := r.nodes[f.To-1]
	_, body, err := readFrameHeader(f.Data)
	if err != nil {
		r.Fatal(err)
	}
	data := append([]byte(nil), f.Data[:len(f.Data)-len(body)]...)
	if r.drop(from, f.To, 0) {
		return
	}
	for len(body) > 0 {
		kind, _, rest, err := nextMessage(body)
		if err != nil {
			r.Fatal(err)
		}
		if !r.drop(from, f.To, kind) {
			data = append(data, body[:len(body)-len(rest)]...)
		}
		body = rest
	}
	if to.host != nil {
		to.inbox = append(to.inbox, Frame{From: from, Data: data, At: r.now})
	}
}

// settle runs turns until nobody has anything to do now.
func (r *rig) settle() {
	r.Helper()
	for range 10000 {
		did := r.land()
		for _, n := range r.nodes {
			if n.host != nil && (len(n.inbox) > 0 || !n.wake.After(r.now)) {
				n.turn()
				did = true
			}
		}
		if !did {
			return
		}
	}
	r.Fatal("the cluster does not come to rest")
}

// land delivers the frames whose time has come.
func (r *rig) land() bool {
	r.Helper()
	did := false
	r.flying = slices.DeleteFunc(r.flying, func(x flight) bool {
		if x.at.After(r.now) {
			return false
		}
		r.deliver(x.from, x.f)
		did = true
		return true
	})
	return did
}

// run lets time pass.
func (r *rig) run(d time.Duration) {
	r.Helper()
	end := r.now.Add(d)
	for {
		r.settle()
		next := end
		for _, n := range r.nodes {
			if n.host != nil && n.wake.Before(next) {
				next = n.wake
			}
		}
		for _, x := range r.flying {
			if x.at.Before(next) {
				next = x.at
			}
		}
		if !next.Before(end) {
			r.now = end
			r.settle()
			return
		}
		r.now = next
	}
}

// until lets time pass until something holds.
func (r *rig) until(what string, ok func() bool) time.Duration {
	r.Helper()
	start := r.now
	for r.now.Sub(start) < time.Minute {
		r.settle()
		if ok() {
			return r.now.Sub(start)
		}
		r.run(10 * time.Millisecond)
	}
	r.Fatalf("after a minute there is no %s: %v\n%s", what, r.status(), strings.Join(r.notes, "\n"))
	return 0
}

func (r *rig) status() string {
	var b strings.Builder
	for _, n := range r.nodes {
		if n.host != nil {
			fmt.Fprintf(&b, "node %d: %+v\n", n.id, n.host.Shards()[0])
		} else {
			fmt.Fprintf(&b, "node %d is down: %v\n", n.id, n.fatal)
		}
	}
	return b.String()
}

// leader returns the node that leads, and that all live nodes know of; nil if there is none.
func (r *rig) leader() *rigNode {
	var lead *rigNode
	for _, n := range r.nodes {
		if n.host != nil && n.host.Shards()[0].Leads {
			lead = n
		}
	}
	for _, n := range r.nodes {
		if lead == nil || n.host != nil && n.host.Shards()[0].Leader != lead.id {
			return nil
		}
	}
	return lead
}

// elect waits for a leader, and returns it and another node.
func (r *rig) elect() (lead, other *rigNode) {
	r.Helper()
	r.until("leader", func() bool { return r.leader() != nil })
	lead = r.leader()
	for _, n := range r.nodes {
		if n != lead && n.host != nil {
			other = n
		}
	}
	return lead, other
}

// third returns a node that is neither of two.
func (r *rig) third(a, b *rigNode) *rigNode {
	return r.nodes[slices.IndexFunc(r.nodes, func(n *rigNode) bool { return n != a && n != b })]
}

// isolate drops everything to and from a node.
func (r *rig) isolate(n *rigNode) {
	r.drop = func(from, to shard.NodeID, _ byte) bool { return from == n.id || to == n.id }
}

func (r *rig) heal() { r.drop = func(_, _ shard.NodeID, _ byte) bool { return false } }

// noted says whether any node noted something.
func (r *rig) noted(msg string) bool {
	for _, n := range r.notes {
		if strings.Contains(n, msg) {
			return true
		}
	}
	return false
}

// propose hands in a command with a time to live, 0 for none.
func (n *rigNode) propose(cmd string, ttl time.Duration) *shard.Future {
	n.r.Helper()
	f := shard.NewFuture()
	p := Propose{Shard: 1, Command: shard.Command{Module: 9, Data: []byte(cmd)}, Future: f}
	if ttl > 0 {
		p.Deadline = n.r.now.Add(ttl)
	}
	n.turn(p)
	return f
}

// do proposes a command and waits for its answer.
func (n *rigNode) do(cmd string) shard.Result {
	n.r.Helper()
	f := n.propose(cmd, 0)
	n.r.until("answer to "+cmd, func() bool { _, ok := n.results[f]; return ok })
	return n.results[f]
}

// read hands in a linearizable read.
func (n *rigNode) read(ttl time.Duration) *shard.Future {
	n.r.Helper()
	f := shard.NewFuture()
	rd := Read{Shard: 1, Future: f}
	if ttl > 0 {
		rd.Deadline = n.r.now.Add(ttl)
	}
	n.turn(rd)
	return f
}

// get reads a key in any state that the node has.
func (n *rigNode) get(key string) string {
	n.r.Helper()
	v, err := n.host.Machine(1).Query(shard.Command{Module: 9, Data: []byte(key)})
	if errs.Is(err, errs.Unavailable) && n.host.Machine(1).Readable() != nil {
		return ""
	}
	if err != nil {
		n.r.Fatalf("query: %v", err)
	}
	return string(v)
}

// same waits until all nodes have a value.
func (r *rig) same(key, want string) {
	r.Helper()
	r.until("value "+want+" of "+key+" everywhere", func() bool {
		for _, n := range r.nodes {
			if n.host == nil || n.get(key) != want {
				return false
			}
		}
		return true
	})
}
