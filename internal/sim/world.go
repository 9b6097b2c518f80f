// Package sim runs a whole cluster on one goroutine: many hosts, with simulated time, network and disks, all drawn from a
// seed. It drives the same replica.Host and the same storage as a real node. After each step it checks what must always
// hold (check.go), and at the end that nothing that was acknowledged is lost and that everything was applied once.
//
// A seed replays byte for byte. Runs must not overlap within a process: raft draws its election jitter from
// crypto/rand.Reader, which Run replaces.
package sim

import (
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/replica"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// Report says what a run found.
type Report struct {
	Options Options
	// Err is nil if everything held.
	Err error
	// Trace is a hash of everything that happened, in order.
	Trace uint64
	// Virtual is how much time passed in the simulation.
	Virtual time.Duration
	Stats   Stats
	// Log is the last part of what happened, for people.
	Log []string
}

// world is one simulated cluster.
type world struct {
	o     Options
	rng   *rand.Rand
	now   time.Time
	start time.Time
	queue eventQueue
	order uint64
	nodes []*node
	// cut[a][b] drops what a sends to b. free says when a lane of a slow network has sent what was given to it.
	cut     map[[2]int]bool
	free    map[lane]time.Time
	chaos   bool
	clients []*client
	check   *checker
	stats   Stats
	trace   uint64
	log     []string
	err     error
	nextID  uint64
	boots   uint64
	// broken counts the nodes whose data were damaged and that are not whole again.
	broken map[int]bool
	// recants says that votes are being taken back while node away, counted from 0, is cut off; see recant.
	recants bool
	away    int
}

type node struct {
	w     *world
	id    shard.NodeID
	disk  *disk
	log   *storage.Log
	store *storage.Store
	host  *replica.Host
	// boot is 0 while the node is down.
	boot     uint64
	inbox    []replica.Input
	turnDue  bool
	pausedTo time.Time
	// perSecond is how many bytes the node can send to each other one, 0 for any number.
	perSecond int
	wakeAt    time.Time
	// busy says that a sync is under way; writes wait in pending.
	busy    bool
	pending []storage.Write
	pendSeq uint64
	stallTo time.Time
	// atSync, if there is one, is called when a sync begins, with how long it takes.
	atSync func(time.Duration)
	offset time.Duration
	rate   float64
	logID  uint64
	lost   bool
	// harmed says that its data were damaged at some time.
	harmed bool
	// unsettled says that the log is in doubt as a whole until the first writes are durable.
	unsettled bool
	futures   map[*shard.Future]*operation
	// moves are the hand-overs that the node was asked for, taken those that the present turn takes up.
	moves map[*shard.Future]*handOver
	taken []*handOver
	// unverified says that the store may hold damage that nothing has come upon yet.
	unverified bool
	hub        *shard.Hub
	followers  []*follower
	// had is the highest revision of each shard that the node's state was seen at when it died; floor is what it had when
	// it lost that state. A read that it answers must not be older.
	had, floor map[shard.ID]shard.Revision
}

type event struct {
	// at counts nanoseconds since the start; events of one moment come in the order they were made in.
	at    time.Duration
	order uint64
	do    func()
}

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.order < o.order }

// eventQueue is a heap: what container/heap does, without an allocation for each event.
type eventQueue []event

func (q *eventQueue) push(e event) {
	h := append(*q, e)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !e.before(&h[up]) {
			break
		}
		h[i] = h[up]
		i = up
	}
	h[i] = e
	*q = h
}

func (q *eventQueue) pop() event {
	h := *q
	first, e := h[0], h[len(h)-1]
	h[len(h)-1] = event{}
	h = h[:len(h)-1]
	*q = h
	if len(h) == 0 {
		return first
	}
	i := 0
	for {
		down := 2*i + 1
		if down >= len(h) {
			break
		}
		if r := down + 1; r < len(h) && h[r].before(&h[down]) {
			down = r
		}
		if !h[down].before(&e) {
			break
		}
		h[i] = h[down]
		i = down
	}
	h[i] = e
	return first
}

type seededReader struct{ r *rand.Rand }

func (s seededReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(s.r.Uint32())
	}
	return len(p), nil
}

// Run simulates one cluster.
func Run(o Options) Report {
	was := crand.Reader
	crand.Reader = io.Reader(seededReader{rand.New(rand.NewPCG(o.Seed, 0xc0de))})
	defer func() { crand.Reader = was }()
	w := newWorld(o)
	w.run()
	for _, n := range w.nodes {
		n.close()
	}
	return Report{Options: o, Err: w.err, Trace: w.trace, Virtual: w.now.Sub(w.start), Stats: w.stats, Log: w.log}
}

func newWorld(o Options) *world {
	start := time.UnixMilli(1_700_000_000_000).UTC()
	w := &world{
		o: o, rng: rand.New(rand.NewPCG(o.Seed, 0x5eed)), now: start, start: start, cut: map[[2]int]bool{}, free: map[lane]time.Time{}, chaos: true,
		trace: 14695981039346656037, broken: map[int]bool{},
	}
	w.check = newChecker(w)
	return w
}

func (w *world) run() {
	defer func() {
		if p := recover(); p != nil {
			w.fail("panic: %v\n%s", p, stack())
		}
	}()
	for i := range w.o.Nodes {
		n := &node{
			w: w, id: shard.NodeID(i + 1), disk: newDisk(), rate: 1 + w.o.Drift*(2*w.rng.Float64()-1),
			offset: time.Duration((2*w.rng.Float64() - 1) * float64(w.o.Skew)), logID: uint64(i+1) * 1000,
			had: map[shard.ID]shard.Revision{}, floor: map[shard.ID]shard.Revision{},
		}
		w.nodes = append(w.nodes, n)
		w.after(time.Duration(w.rng.IntN(50))*time.Millisecond, n.boots)
	}
	for i := range w.o.Clients {
		c := &client{w: w, id: i, tokens: map[shard.ID]shard.Revision{}}
		w.clients = append(w.clients, c)
		w.after(time.Second, c.next)
	}
	w.scheduleFaults()
	end := w.start.Add(w.o.Chaos)
	w.runUntil(end, nil)
	if w.err != nil {
		return
	}
	w.heal()
	w.runUntil(end.Add(w.o.Settle), w.settled)
	if w.err == nil && !w.settled() {
		w.fail("the healed cluster is not whole after %v: %s", w.o.Settle, w.describe())
	}
	if w.err == nil {
		w.check.final()
	}
}

// runUntil handles events up to a moment, or until done says so.
func (w *world) runUntil(end time.Time, done func() bool) {
	for w.err == nil && len(w.queue) > 0 && w.queue[0].at <= end.Sub(w.start) {
		e := w.queue.pop()
		if at := w.start.Add(e.at); at.After(w.now) {
			w.now = at
		}
		e.do()
		if done != nil && w.stats.Steps%64 == 0 && done() {
			return
		}
	}
	if w.err == nil && w.now.Before(end) && done == nil {
		w.now = end
	}
}

func (w *world) after(d time.Duration, f func()) {
	w.order++
	w.queue.push(event{at: w.now.Sub(w.start) + d, order: w.order, do: f})
}

func (w *world) note(format string, args ...any) {
	s := fmt.Sprintf("%9.4f ", w.now.Sub(w.start).Seconds()) + fmt.Sprintf(format, args...)
	w.mix([]byte(s))
	if len(w.log) > 4000 {
		w.log = append(w.log[:0], w.log[2000:]...)
	}
	w.log = append(w.log, s)
}

func (w *world) mix(b []byte) {
	w.trace = w.trace*1099511628211 ^ xxhash.Sum64(b)
}

func (w *world) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
		// A stack holds addresses, which are not the seed's doing.
		what, _, _ := strings.Cut(w.err.Error(), "\n")
		w.note("FAILED: %s", what)
	}
}

// clock returns the node's own time.
func (n *node) clock() time.Time {
	return n.w.start.Add(n.offset + time.Duration(float64(n.w.now.Sub(n.w.start))*n.rate))
}

func (n *node) members() []shard.NodeID {
	var all []shard.NodeID
	for i := range n.w.o.Nodes {
		all = append(all, shard.NodeID(i+1))
	}
	return all
}

// boots starts the node from its disk.
func (n *node) boots() {
	w := n.w
	if n.boot != 0 || w.err != nil {
		return
	}
	lg, rec, err := storage.OpenLog(logFS{n.disk.log, n.disk}, "log", storage.LogConfig{SegmentBytes: w.o.SegmentBytes, ZeroBytes: 4 << 10, ID: n.logID})
	if err != nil {
		w.fail("node %d: open log: %v", n.id, err)
		return
	}
	if rec.TornBytes > 0 {
		w.stats.TornTails++
	}
	if rec.Votes > 0 {
		w.stats.VotesKept++
	}
	if len(rec.Damaged) > 0 {
		w.stats.LogsDamaged++
		// Damage stays in segments that are not cut yet, without anyone being in doubt any more.
		if !n.harmed || !w.broken[int(n.id)] && (rec.AllSuspect || len(rec.Suspect) > 0) {
			w.fail("node %d: log damaged although nobody did: %+v", n.id, rec)
			return
		}
		w.note("node %d: log damaged: %v, suspect %v all %v", n.id, rec.Damaged, rec.Suspect, rec.AllSuspect)
	}
	cfg := storage.StoreConfig{CacheBytes: 8 << 20, Deterministic: true}
	// Damage is found at the start or later: the real node reads the whole store now and then.
	verify := w.rng.IntN(4) == 0
	st, err := openStore(n.disk.state, cfg, verify)
	lost := n.lost
	n.lost, n.unverified = false, w.broken[int(n.id)] && !verify
	if err != nil {
		w.stats.StoresDamaged++
		if !w.broken[int(n.id)] {
			w.fail("node %d: state store damaged although nobody did: %v", n.id, err)
			return
		}
		w.note("node %d: state store damaged: %v", n.id, errs.KindOf(err))
		lost = true
	}
	if lost {
		n.unverified = false
		if st != nil {
			_ = st.Close()
		}
		if err := storage.RemoveStore(n.disk.state, "state"); err != nil {
			w.fail("node %d: %v", n.id, err)
			return
		}
		if st, err = storage.OpenStore(n.disk.state, "state", cfg); err != nil {
			w.fail("node %d: open emptied store: %v", n.id, err)
			return
		}
	}
	w.boots++
	n.boot = w.boots
	n.log, n.store = lg, st
	n.inbox, n.pending, n.busy, n.turnDue = nil, nil, false, false
	n.wakeAt, n.stallTo, n.pausedTo = time.Time{}, time.Time{}, time.Time{}
	n.futures, n.moves = map[*shard.Future]*operation{}, map[*shard.Future]*handOver{}
	var ids []shard.ID
	for i := range w.o.Shards {
		ids = append(ids, shard.ID(i+1))
	}
	n.host, err = replica.Open(replica.Config{
		Node: n.id, Nodes: n.members(), Shards: ids, Session: n.boot*16 + 1, LogID: lg.ID(), LogEntriesMax: w.o.CutEntries,
		ChunkBytes: w.o.ChunkBytes, LeaseReads: w.o.LeaseReads, LeaseDrift: 0.1, NoHibernate: w.o.NoHibernate,
		QueueLenMax: w.o.QueueLenMax, BatchBytesMax: w.o.BatchBytesMax, ElectionTicks: w.o.ElectionTicks, CacheBytes: w.o.CacheBytes,
		Machine: shard.MachineConfig{ChangeBytesMax: w.o.ChangeBytesMax},
	}, lg, rec, lost, st, shard.Modules(ledger{}), n.clock())
	if errs.Is(err, errs.Corrupt) && n.unverified {
		w.stats.StoresDamaged++
		w.note("node %d: state store damaged: %v", n.id, err)
		_, _, n.boot, n.lost = lg.Close(), st.Close(), 0, true
		w.after(time.Second, n.boots)
		return
	}
	if err != nil {
		w.fail("node %d: open: %v", n.id, err)
		return
	}
	if w.check.logs(n); w.err != nil {
		return
	}
	n.unsettled = rec.AllSuspect
	for _, s := range n.host.Shards() {
		n.host.Machine(s.ID).SetSkew(n.clock)
		if s.Awaiting {
			n.floor[s.ID] = n.had[s.ID]
		}
	}
	w.note("node %d starts (boot %d)", n.id, n.boot)
	n.follow()
	if boot := n.boot; n.unverified {
		w.after(time.Duration(w.rng.IntN(8000))*time.Millisecond, func() { n.scrub(boot) })
	}
	n.due()
}

// scrub reads the whole store, as a node does now and then.
func (n *node) scrub(boot uint64) {
	if n.boot != boot || !n.unverified {
		return
	}
	n.unverified = false
	if err := n.store.Verify(); err != nil {
		n.giveUp("scrub", err)
	}
}

// giveUp ends a node that came upon damage in its state store; it comes back without it.
func (n *node) giveUp(what string, err error) {
	n.w.stats.StoresDamaged++
	n.lost = true
	n.die(what + ": " + err.Error())
	n.w.after(time.Second, n.boots)
}

// flush makes the state store durable, and reports whether it did. It merges tables now and then, and may find that one is
// damaged.
func (n *node) flush() bool {
	err := n.store.Flush()
	switch {
	case err == nil:
		return true
	case errs.Is(err, errs.Corrupt) && n.w.broken[int(n.id)]:
		n.giveUp("flush", err)
	default:
		n.w.fail("node %d: flush: %v", n.id, err)
	}
	return false
}

func openStore(fs storage.FS, cfg storage.StoreConfig, verify bool) (st *storage.Store, err error) {
	if st, err = storage.OpenStore(fs, "state", cfg); err != nil || !verify {
		return st, err
	}
	if err = st.Verify(); err != nil {
		_ = st.Close()
		return nil, err
	}
	return st, nil
}

// close releases what the node holds in memory.
func (n *node) close() {
	if n.boot == 0 {
		return
	}
	n.boot = 0
	if n.host != nil {
		n.host.Close()
	}
	_ = n.log.Close()
	_ = n.store.Close()
	n.host, n.log, n.store, n.hub, n.followers = nil, nil, nil, nil, nil
}

// die ends the node as a power cut does: what was not synced is gone, and what its clients wait for is unknown.
func (n *node) die(why string) { n.dieOf(why, false) }

// dieOf is die, or with kept the end of the process alone: what it has written is still there.
func (n *node) dieOf(why string, kept bool) {
	if n.boot == 0 {
		return
	}
	n.w.note("node %d dies: %s", n.id, why)
	for _, s := range n.host.Shards() {
		n.had[s.ID] = max(n.had[s.ID], s.Revision)
		if s.Snapshotting {
			n.w.stats.SnapshotsCut++
		}
	}
	n.w.check.died(n)
	n.store.Rest()
	var left *disk
	if kept {
		left = n.disk.kill()
	} else {
		left = n.disk.crash(n.w.rng)
	}
	n.close()
	n.disk = left
	ops := n.futures
	n.futures, n.moves, n.taken = nil, nil, nil
	for _, c := range n.w.clients {
		if c.op != nil && c.op.node == n && ops[c.op.future] == c.op {
			c.finish(shard.Result{Err: errs.New(errs.OutcomeUnknown, "connection lost")})
		}
	}
}

// due schedules a turn now.
func (n *node) due() {
	if n.turnDue || n.boot == 0 {
		return
	}
	n.turnDue = true
	boot := n.boot
	d := time.Duration(n.w.rng.IntN(100)) * time.Microsecond
	if n.pausedTo.After(n.w.now) {
		d += n.pausedTo.Sub(n.w.now)
	}
	n.w.after(d, func() {
		if n.boot == boot {
			n.turn()
		}
	})
}

func (n *node) give(in replica.Input) {
	if n.boot == 0 {
		return
	}
	n.inbox = append(n.inbox, in)
	n.due()
}

// turn runs the host once and does what it asks.
func (n *node) turn() {
	w := n.w
	n.turnDue = false
	if n.pausedTo.After(w.now) {
		n.due()
		return
	}
	w.stats.Steps++
	in := n.inbox
	n.inbox = nil
	n.takesUp(in)
	out := n.host.Turn(n.clock(), in)
	for _, t := range out.Notes {
		w.note("node %d shard %d: %s %v", n.id, t.Shard, t.Msg, t.Attrs)
		switch t.Msg {
		case "the log lacks what the replica has confirmed; it is rebuilt":
			if !w.broken[int(n.id)] {
				w.fail("node %d has forgotten what it confirmed, although nobody damaged it", n.id)
				return
			}
			w.stats.Forgotten++
			n.floor[t.Shard] = n.had[t.Shard]
		case "state store is behind the cut of the log; the replica is rebuilt", "log is behind the state store; the replica is rebuilt":
			if !w.broken[int(n.id)] {
				w.fail("node %d gives up its replica of shard %d, although nobody damaged it: %s %v", n.id, t.Shard, t.Msg, t.Attrs)
				return
			}
		case "malformed frame from a peer", "malformed message from a peer":
			w.fail("node %d was sent what nodes do not send: %v", n.id, t.Attrs)
			return
		case "installed a snapshot":
			w.stats.SnapshotsInstalled++
		case "sending a snapshot":
			w.stats.SnapshotsSent++
		case "a rebuilt replica votes again":
			w.stats.Promotions++
		case "replacing a replica that lost its data":
			w.stats.Replacements++
		case "leads the shard":
			w.stats.Elections++
			w.check.leads(n, t.Shard, t.Attrs[1].(uint64))
		}
	}
	w.stats.Duplicates += out.Counts.Duplicates
	w.stats.LeaseReads += out.Counts.LeaseReads
	w.stats.Asleep += out.Counts.Asleep
	w.stats.Woken += out.Counts.Woken
	if out.Fatal != nil {
		n.lost = n.lost || errs.Is(out.Fatal, errs.Corrupt)
		if n.lost && !w.broken[int(n.id)] {
			w.fail("node %d stops although nobody damaged it: %v", n.id, out.Fatal)
			return
		}
		n.die(out.Fatal.Error())
		w.after(time.Second, n.boots)
		return
	}
	w.check.turn(n, out.Writes)
	if w.err != nil {
		return
	}
	for _, h := range n.taken {
		h.after = w.check.status[h.shard-1]
	}
	for _, f := range out.Frames {
		w.send(n, f)
	}
	if len(out.Writes) > 0 {
		n.pending = append(n.pending, out.Writes...)
		n.pendSeq = out.Seq
	}
	if out.Flush {
		boot := n.boot
		w.after(time.Duration(w.rng.Int64N(int64(w.o.FlushMax))), func() {
			if n.boot != boot {
				return
			}
			if n.flush() {
				n.give(replica.Flushed{})
			}
		})
	}
	n.writeLog()
	if n.boot == 0 {
		return
	}
	for _, a := range out.Answers {
		if op := n.futures[a.Future]; op != nil {
			delete(n.futures, a.Future)
			op.client.answer(op, a.Result)
		}
		if h := n.moves[a.Future]; h != nil {
			delete(n.moves, a.Future)
			w.check.moved(n, h, a.Result)
		}
	}
	for _, r := range out.Reads {
		if op := n.futures[r.Future]; op != nil {
			delete(n.futures, r.Future)
			boot := n.boot
			w.after(time.Duration(w.rng.IntN(2000))*time.Microsecond, func() { op.client.runRead(op, n, boot, r.Machine) })
		}
	}
	for _, k := range out.Wakes {
		n.signal(k.Shard, k.Wakes, k.All)
	}
	n.wakeUp(out.Wake)
}

// wakeUp schedules a turn for a moment of the node's clock.
func (n *node) wakeUp(at time.Time) {
	if !n.wakeAt.IsZero() && !at.Before(n.wakeAt) && n.wakeAt.After(n.clock()) {
		return
	}
	n.wakeAt = at
	d := max(0, time.Duration(float64(at.Sub(n.clock()))/n.rate)+time.Microsecond)
	boot := n.boot
	n.w.after(d, func() {
		if n.boot == boot && n.wakeAt.Equal(at) {
			n.wakeAt = time.Time{}
			n.due()
		}
	})
}

// writeLog appends what waits and starts a sync, unless one is under way: as the engine does.
func (n *node) writeLog() {
	w := n.w
	if n.busy || len(n.pending) == 0 {
		return
	}
	ws, seq := n.pending, n.pendSeq
	n.pending = nil
	if err := n.log.AppendAll(ws); err != nil {
		// Changing to a new segment syncs, and that may fail too.
		n.die("append failed: " + err.Error())
		w.after(time.Second, n.boots)
		return
	}
	for _, x := range ws {
		if len(x.Entries) > 0 {
			w.check.log(n, x.Shard, x.Entries[0].Index)
		}
	}
	n.busy = true
	d := time.Duration(50+w.rng.IntN(1000)) * time.Microsecond
	if n.stallTo.After(w.now) {
		d += n.stallTo.Sub(w.now)
	}
	if n.atSync != nil {
		n.atSync(d)
	}
	boot := n.boot
	w.after(d, func() {
		if n.boot != boot {
			return
		}
		if err := n.log.Sync(); err != nil {
			n.die("sync failed: " + err.Error())
			w.after(time.Second, n.boots)
			return
		}
		if n.unsettled {
			n.unsettled = false
			if err := errors.Join(n.log.Settle(0), n.log.Sync()); err != nil {
				n.die("settle failed: " + err.Error())
				w.after(time.Second, n.boots)
				return
			}
		}
		if w.rng.IntN(2) == 0 {
			if err := n.log.Seal(); err != nil {
				n.die("seal failed: " + err.Error())
				w.after(time.Second, n.boots)
				return
			}
		}
		n.busy = false
		w.voted(n, ws)
		n.give(replica.LogDone{Seq: seq})
		n.writeLog()
	})
}

// send puts a frame on the simulated network.
func (w *world) send(from *node, f replica.Outgoing) {
	to := int(f.To) - 1
	w.mix(f.Data)
	if w.cut[[2]int{int(from.id) - 1, to}] {
		return
	}
	w.stats.Frames++
	wait, room := w.queued(from, f)
	if !room {
		return
	}
	copies := 1
	if w.chaos {
		if w.rng.Float64() < w.o.Loss {
			copies = 0
		}
		if w.rng.Float64() < w.o.Double {
			copies++
		}
	}
	for range copies {
		d := 20*time.Microsecond + time.Duration(w.rng.Int64N(int64(w.o.DelayMax)))
		if w.chaos && w.rng.IntN(500) == 0 {
			d *= 50
		}
		in := replica.Frame{From: from.id, Data: f.Data}
		w.after(wait+d, func() {
			in.At = w.nodes[to].clock()
			w.nodes[to].give(in)
		})
	}
}
