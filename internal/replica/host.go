// Package replica holds Host, the synchronous core of a node: every shard replica of the node, as raft groups over one
// log and one store.
//
// Host.Turn takes inputs and returns outputs. It has no goroutine, lock, clock, socket or file of its own making, so that
// a seed replays it; it does read and write the store, and reads the log, both given to it. The engine runs it on a real
// machine, the simulation on many virtual ones.
//
// Only this package imports the raft library.
package replica

import (
	"container/heap"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// Config describes a node's part in a cluster. The zero value of each optional field means its default.
type Config struct {
	// Node is this node; Nodes are all members, which hold a replica of every shard.
	Node  shard.NodeID
	Nodes []shard.NodeID
	// Shards are the shards of the cluster.
	Shards []shard.ID
	// Session is a random number that no earlier start of any node had.
	Session uint64
	// LogID names this node's raft log; it changes when the disk is replaced.
	LogID uint64
	// Tick is the unit of raft's timers; default 100 ms. A leader sends heartbeats every tick.
	Tick time.Duration
	// ElectionTicks is after how many silent ticks a follower may call an election; default 10. The time-out is drawn from
	// [ElectionTicks, 2*ElectionTicks).
	ElectionTicks int
	// BatchBytesMax bounds one entry; default 1 MiB. A larger single command gets an entry of its own.
	BatchBytesMax int
	// CommandBytesMax bounds one command; default 16 MiB.
	CommandBytesMax int
	// QueueBytesMax bounds the commands of one shard that wait to be proposed; default 32 MiB. Past it they are refused.
	QueueBytesMax int
	// QueueLenMax bounds their number; default 65,536.
	QueueLenMax int
	// InflightBytesMax bounds what of one shard is proposed by this node and not yet applied; default 16 MiB.
	InflightBytesMax int
	// AnswerBytesMax bounds what a turn's answers to this node's commands hold; default 512 MiB. Commands whose answer has no room are done all the
	// same, and answered with errs.OutcomeUnknown.
	AnswerBytesMax int
	// LogBytesMax is the size of the log at which the store is flushed and the log cut; default 128 MiB.
	LogBytesMax int64
	// LogEntriesMax, when not 0, does the same when a shard's log has that many entries. Tests set it.
	LogEntriesMax uint64
	// ChunkBytes is the size of snapshot chunks; default 256 KiB.
	ChunkBytes int
	// LeaseReads lets a leader answer linearizable reads without asking a quorum, for as long as no other leader can exist,
	// provided that clocks of any two nodes run at rates that differ by less than LeaseDrift. Default off.
	LeaseReads bool
	// LeaseDrift is the bound on the difference of clock rates that LeaseReads trusts, as a fraction; default 0.1.
	LeaseDrift float64
	// Hibernate lets idle shards go quiet; default on. NoHibernate switches it off.
	NoHibernate bool
	// CacheBytes bounds the rows that the machines keep at hand, all shards together; default 32 MiB, negative none.
	CacheBytes int
	// Machine is passed on to every shard's machine.
	Machine shard.MachineConfig
}

func (c *Config) fill() error {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	if c.Tick == 0 {
		c.Tick = 100 * time.Millisecond
	}
	def(&c.ElectionTicks, 10)
	def(&c.BatchBytesMax, 1<<20)
	def(&c.CommandBytesMax, 16<<20)
	def(&c.QueueBytesMax, 32<<20)
	def(&c.QueueLenMax, 1<<16)
	def(&c.InflightBytesMax, 16<<20)
	def(&c.AnswerBytesMax, 512<<20)
	def(&c.ChunkBytes, 256<<10)
	def(&c.CacheBytes, 32<<20)
	if c.CacheBytes > 0 {
		c.Machine.Cache = storage.NewRowCache(c.CacheBytes)
	}
	if c.LogBytesMax == 0 {
		c.LogBytesMax = 128 << 20
	}
	if c.LeaseDrift == 0 {
		c.LeaseDrift = 0.1
	}
	switch {
	case !slices.Contains(c.Nodes, c.Node):
		return errs.New(errs.Invalid, "node %d is not among the members %v", c.Node, c.Nodes)
	case c.Session == 0:
		return errs.New(errs.Invalid, "no session")
	case len(c.Shards) == 0:
		return errs.New(errs.Invalid, "no shards")
	}
	return nil
}

// An Input is something that happened to a node: Frame, Propose, Read, MoveLeader, LogDone, Flushed or Link.
type Input interface{ input() }

// Frame is what another node's Output.Frames held for this one. The host keeps the slice.
type Frame struct {
	From shard.NodeID
	Data []byte
	// At is when it arrived here: what it asks for in a limited time is too late if it had to wait here for longer. Zero is
	// now.
	At time.Time
}

// Propose hands in a command. Future is completed by the caller with the Answer of that future.
type Propose struct {
	Shard   shard.ID
	Command shard.Command
	Future  *shard.Future
	// Deadline, when not zero, is when the client stops waiting.
	Deadline time.Time
}

// Read asks when a linearizable read may run: Output.Reads names the future then.
type Read struct {
	Shard    shard.ID
	Future   *shard.Future
	Deadline time.Time
	// AtLeast, with Stale, waits for a revision only.
	Stale   bool
	AtLeast shard.Revision
}

// MoveLeader asks this node to hand the leadership of a shard over to another member. Future's answer has no data.
type MoveLeader struct {
	Shard  shard.ID
	To     shard.NodeID
	Future *shard.Future
	// Deadline, when not zero, is when the client stops waiting.
	Deadline time.Time
}

// LogDone says that the writes of an earlier Output, and of all before it, are durable.
type LogDone struct{ Seq uint64 }

// Flushed says that the flush which an earlier Output asked for is complete.
type Flushed struct{}

// Link says that the connection to a node came up, or went down. Refused means that nothing listens there any more.
type Link struct {
	Node    shard.NodeID
	Up      bool
	Refused bool
}

func (Frame) input()      {}
func (Propose) input()    {}
func (Read) input()       {}
func (MoveLeader) input() {}
func (LogDone) input()    {}
func (Flushed) input()    {}
func (Link) input()       {}

// Outgoing is a frame for another node. It may be lost, doubled and reordered. One with Control should not wait behind others: it is short, and
// what it says is that nodes are there, what they have, and what they vote.
type Outgoing struct {
	To      shard.NodeID
	Data    []byte
	Control bool
}

// Answer completes a future of a Propose, or fails one of a Read.
type Answer struct {
	Future *shard.Future
	Result shard.Result
}

// ReadyRead says that a read may run now: Machine has applied everything it must see.
type ReadyRead struct {
	Future  *shard.Future
	Machine *shard.Machine
}

// ShardWakes are the changed keys of a shard; All means that everything may have changed.
type ShardWakes struct {
	Shard shard.ID
	Wakes []shard.Wake
	All   bool
}

// Note is something an operator may want to know.
type Note struct {
	Warn  bool
	Msg   string
	Shard shard.ID
	Attrs []any
}

// Output is what a turn wants done. The slices are valid until the next Turn, the frames for ever.
type Output struct {
	Frames []Outgoing
	// Writes go to the log in one Append, followed by Sync; then LogDone{Seq} is due. Empty means no write.
	Writes []storage.Write
	Seq    uint64
	// Answers and Reads are final.
	Answers []Answer
	Reads   []ReadyRead
	Wakes   []ShardWakes
	Notes   []Note
	// Hold lists the shards for which more commands would change nothing now. All others need a turn for each.
	Hold Hold
	// Reading says that read-index requests are under way, none of them late, whose answers will bring the next turn.
	Reading bool
	// Counts says how often some things happened in this turn.
	Counts Counts
	// Flush asks for a flush of the store; Flushed is due when it is complete.
	Flush bool
	// Changed says that Shards would now return something else.
	Changed bool
	// Wake is when the next turn is due even without input. It may be at once.
	Wake time.Time
	// Fatal says that the node must stop and why. Corrupt means that its data are damaged and must be fetched anew.
	Fatal error
}

// Counts are what metrics want to know of a turn.
type Counts struct {
	// Commands were applied, including fired timers; Duplicates are batches that were not, since they had been before.
	Commands, Duplicates int
	// LeaseReads were allowed without asking a quorum.
	LeaseReads int
	// Asleep are shards that went quiet; Woken are those that came back from it.
	Asleep, Woken int
}

// Host runs all replicas of a node. See the package comment.
type Host struct {
	cfg   Config
	log   *storage.Log
	store *storage.Store

	reps  map[shard.ID]*replica
	order []*replica
	// dirty are the replicas that may have something ready.
	dirty []*replica
	// working is dirty's other buffer.
	working []*replica
	applying
	// awake are the replicas that tick, and some that fell asleep since the last tick.
	awake []*replica

	now      time.Time
	nextTick time.Time
	// ticked says that this turn has a tick.
	ticked bool
	// votesFrom is when this node may take part in elections, if leases are in use: before it was started it may have
	// promised a leader not to.
	votesFrom time.Time
	nextPing  time.Time
	peers     map[shard.NodeID]*peer
	peerIDs   []shard.NodeID

	// logSeq numbers the writes handed out, logDone those known to be durable.
	logSeq, logDone uint64
	waits           []appendWait
	held            []heldMessage
	// asked are the peers in the order in which they are asked to confirm a leader; first is scratch space.
	asked, first []shard.NodeID
	rounds
	// later are replicas with commands to forward that wait for the moment.
	later    []*replica
	flushing bool
	// flushFrom is when the next flush may be asked for.
	flushFrom time.Time
	timers    timerHeap
	readCtx   uint64
	awaits    uint64
	// unsaved says that states were replaced in this turn, by none or by a snapshot, and are not durable.
	unsaved bool
	// sending counts the snapshots under way to others, and those about to be; transfers those that were begun.
	sending   int
	transfers uint64
	// asking counts the read-index requests under way, late the shards that have one which is late. asks are those that were made, oldest first,
	// without those found to be late; readTook is how long they take.
	asking, late int
	asks         []askedRead
	readTook     time.Duration
	// turned is false until the first turn, which also hands out what Open wrote.
	turned bool
	// backlog is that of the store; behind says that it is so large that nothing more is proposed.
	backlog func() float64
	behind  bool
	out     Output
	err     error
}

type peer struct {
	id shard.NodeID
	// bulk and control are what this turn has for the peer.
	bulk, control lane
	// size is that of recent frames, about.
	size    int
	session uint64
	logID   uint64
	heard   time.Time
	// sent is when the last control frame was.
	sent      time.Time
	alive     bool
	greeted   bool
	refusedAt time.Time
	// hurryUntil is until when commits are not held back from the peer; see held.go.
	hurryUntil time.Time
	// strangeSession is the start of the peer that was last seen with another log.
	strangeSession uint64
}

// appendWait is raft's storage response that is due when a write is durable.
type appendWait struct {
	seq       uint64
	r         *replica
	responses []*raftpb.Message
	entries   bool
}

// Replica ids hold the node and how many replicas of the shard it had before: an id is never used twice.
const (
	incarnationBits = 16
	incarnationMax  = 1<<incarnationBits - 1
	// awaitingBit marks, in the log, a replica that lost its data and waits for a new id. The other bits are the last id
	// it had, or all set if that is not known.
	awaitingBit   = 1 << 63
	lastIDUnknown = awaitingBit - 1
)

func replicaID(n shard.NodeID, incarnation uint64) uint64 {
	return uint64(n)<<incarnationBits | incarnation
}

// nextReplicaID returns the id of a node's next replica, given the highest it had before, or 0. It returns false if there are
// no more: the next number is the first of another node.
func nextReplicaID(n shard.NodeID, highest uint64) (uint64, bool) {
	switch {
	case highest == 0:
		// A replica that asks has had the first.
		return replicaID(n, 2), true
	case highest&incarnationMax == incarnationMax:
		return 0, false
	}
	return highest + 1, true
}

func replicaNode(id uint64) shard.NodeID { return shard.NodeID(id >> incarnationBits) }

// Open loads the replicas of a node. rec is what opening the log found; storeLost says that the store was damaged and has
// been emptied. The first turn writes what Open found out.
func Open(cfg Config, log *storage.Log, rec *storage.Recovery, storeLost bool, store *storage.Store, modules *[256]shard.Module, now time.Time) (*Host, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	h := &Host{
		cfg: cfg, log: log, store: store, backlog: store.Backlog, reps: map[shard.ID]*replica{},
		now: now, nextTick: now.Add(cfg.Tick), nextPing: now, peers: map[shard.NodeID]*peer{},
	}
	if cfg.LeaseReads {
		h.votesFrom = now.Add(cfg.Tick * time.Duration(cfg.ElectionTicks))
	}
	for _, n := range cfg.Nodes {
		if n != cfg.Node {
			h.peers[n] = &peer{id: n, heard: now}
			h.peerIDs = append(h.peerIDs, n)
		}
	}
	slices.Sort(h.peerIDs)
	h.asked = slices.Clone(h.peerIDs)
	if h.startedOver() {
		h.cfg.LogID |= awareBit
	}
	if err := h.loadPeerLogs(); err != nil {
		return nil, err
	}
	damaged := rec.AllSuspect || storeLost
	if (damaged || len(rec.Suspect) > 0) && len(h.peers) == 0 {
		return nil, errs.New(errs.Corrupt, "the data of this node are damaged (%s) and it has no peers to repair them from; restore a backup", describe(rec, storeLost))
	}
	for _, id := range cfg.Shards {
		m, err := shard.OpenMachine(store, id, modules, cfg.Machine)
		if err != nil {
			return nil, err
		}
		suspect := (damaged || slices.Contains(rec.Suspect, id)) && !env.Mutant(env.MutantAmnesia)
		r := &replica{host: h, id: id, machine: m, proposals: proposals{inflight: map[uint64]*batch{}, nextSeq: 1}}
		r.view.r = r
		h.reps[id] = r
		h.order = append(h.order, r)
		if err := r.open(suspect); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(h.order, func(a, b *replica) int { return int(a.id) - int(b.id) })
	if damaged || len(rec.Suspect) > 0 {
		h.note(true, 0, "damaged data found; the replicas concerned are rebuilt from their peers",
			"damage", describe(rec, storeLost), "all_shards", damaged, "shards", len(rec.Suspect))
	}
	return h, nil
}

func describe(rec *storage.Recovery, storeLost bool) string {
	switch {
	case len(rec.Damaged) > 0:
		d := rec.Damaged[0]
		return fmt.Sprintf("%s at offset %d: %s", d.File, d.Offset, d.Reason)
	case storeLost:
		return "state store"
	}
	return "none"
}

// Turn moves the node on: it takes in what happened and returns what to do about it.
func (h *Host) Turn(now time.Time, in []Input) Output {
	if now.After(h.now) {
		h.now = now
	}
	if h.turned {
		h.out.reset()
	}
	h.turned = true
	b := h.backlog()
	h.behind = b >= behindFrom || h.behind && b >= behindTo
	for _, i := range in {
		switch i := i.(type) {
		case Frame:
			h.receive(i)
		case Propose:
			h.propose(i)
		case Read:
			h.read(i)
		case MoveLeader:
			h.moveLeader(i)
		case LogDone:
			h.durable(i.Seq)
		case Flushed:
			h.flushed()
		case Link:
			h.link(i)
		}
	}
	h.ticked = !h.now.Before(h.nextTick)
	if h.ticked {
		h.tick()
	}
	h.fireTimers()
	h.forwardLater()
	h.ran, h.answerBytes = 0, 0
	for {
		h.openRound()
		for _, r := range h.dirty {
			r.cut()
		}
		if h.work() {
			continue
		}
		if h.deferApply() || !h.apply() {
			break
		}
	}
	h.flushIfDue()
	h.finish()
	return h.out
}

func (o *Output) reset() {
	*o = Output{
		Hold: Hold{Shards: o.Hold.Shards[:0]}, Frames: o.Frames[:0], Writes: nil, Answers: o.Answers[:0], Reads: o.Reads[:0], Wakes: o.Wakes[:0], Notes: o.Notes[:0],
	}
}

// work handles what raft has ready in the dirty replicas, and reports whether anything was.
func (h *Host) work() bool {
	did := false
	h.dirty, h.working = h.working[:0], h.dirty
	for _, r := range h.working {
		r.dirty = false
		if h.err == nil {
			did = r.ready() || did
		}
	}
	return did && h.err == nil
}

// saveStates makes states durable that were replaced in this turn, all at once: before the log says what it says because of them.
func (h *Host) saveStates() {
	if !h.unsaved || env.Mutant(env.MutantInstallNotSaved) {
		return
	}
	h.unsaved = false
	if err := h.store.Flush(); err != nil {
		h.fatal(err)
		h.out.Writes = nil
	}
}

// finish closes the frames and sets the next wake-up.
func (h *Host) finish() {
	h.saveStates()
	if !h.now.Before(h.nextPing) {
		h.nextPing = h.now.Add(h.cfg.Tick)
		for _, id := range h.peerIDs {
			if p := h.peers[id]; h.now.Sub(p.sent) >= h.cfg.Tick {
				h.controlFor(p)
			}
		}
	}
	h.sendHeld()
	for _, id := range h.peerIDs {
		h.closeFrames(h.peers[id])
	}
	if len(h.out.Writes) > 0 {
		h.logSeq++
		h.out.Seq = h.logSeq
		for i := len(h.waits) - 1; i >= 0 && h.waits[i].seq == 0; i-- {
			h.waits[i].seq = h.logSeq
		}
	}
	h.out.Wake = h.nextPing
	if len(h.peers) == 0 {
		h.out.Wake = h.now.Add(time.Hour)
	}
	h.out.Reading = h.readsComing()
	if len(h.committed) > 0 {
		h.wakeBy(h.now)
	}
	if len(h.awake) > 0 {
		h.wakeBy(h.nextTick)
	}
	if len(h.timers) > 0 {
		h.wakeBy(h.timers[0].due)
	}
	for _, c := range h.held {
		h.wakeBy(c.by)
	}
	for _, r := range h.later {
		h.wakeBy(r.forwardAt())
	}
	h.sayHold()
	h.fatal(h.store.Err())
	h.out.Fatal = h.err
}

// wakeBy makes the next turn be due no later than at.
func (h *Host) wakeBy(at time.Time) {
	if at.Before(h.out.Wake) {
		h.out.Wake = at
	}
}

// fatal makes the node stop.
func (h *Host) fatal(err error) {
	if h.err == nil && err != nil {
		h.err = err
	}
}

func (h *Host) note(warn bool, id shard.ID, msg string, attrs ...any) {
	h.out.Notes = append(h.out.Notes, Note{Warn: warn, Msg: msg, Shard: id, Attrs: attrs})
}

func (h *Host) answer(f *shard.Future, r shard.Result) {
	if f != nil {
		h.out.Answers = append(h.out.Answers, Answer{Future: f, Result: r})
	}
}

func (h *Host) markDirty(r *replica) {
	if !r.dirty {
		r.dirty = true
		h.dirty = append(h.dirty, r)
	}
}

// tick advances raft's timers and everything that is looked at only now and then.
func (h *Host) tick() {
	// After a pause only one tick is made up for: a node that slept must first hear what it missed.
	h.nextTick = h.now.Add(h.cfg.Tick)
	h.checkPeers()
	asleep := 0
	for _, r := range h.awake {
		if r.awake {
			r.tick()
		}
		if !r.awake {
			asleep++
		}
	}
	if asleep > 0 {
		h.awake = slices.DeleteFunc(h.awake, func(r *replica) bool {
			if !r.awake {
				r.listed = false
			}
			return !r.awake
		})
	}
}

// durable hands raft the responses of writes that are on disk.
func (h *Host) durable(seq uint64) {
	if seq <= h.logDone {
		return
	}
	h.logDone = seq
	n := 0
	for n < len(h.waits) && h.waits[n].seq <= seq {
		w := &h.waits[n]
		w.r.appended(w)
		n++
	}
	h.waits = slices.Delete(h.waits, 0, n)
}

// propose queues a command.
func (h *Host) propose(p Propose) {
	r := h.reps[p.Shard]
	switch {
	case r == nil:
		h.answer(p.Future, shard.Result{Err: errs.New(errs.NotFound, "no shard %d on this node", p.Shard)})
	case len(p.Command.Data) > h.cfg.CommandBytesMax:
		h.answer(p.Future, shard.Result{Err: errs.New(errs.TooLarge, "command of %d bytes is over the limit of %d", len(p.Command.Data), h.cfg.CommandBytesMax)})
	default:
		r.enqueue(p)
	}
}

func (h *Host) read(rd Read) {
	r := h.reps[rd.Shard]
	if r == nil {
		h.answer(rd.Future, shard.Result{Err: errs.New(errs.NotFound, "no shard %d on this node", rd.Shard)})
		return
	}
	r.enqueueRead(rd)
}

// Machine returns a shard's state machine, nil if the node has no such shard.
func (h *Host) Machine(id shard.ID) *shard.Machine {
	if r := h.reps[id]; r != nil {
		return r.machine
	}
	return nil
}

// ShardStatus is what a node knows of a shard.
type ShardStatus struct {
	ID      shard.ID
	Leader  shard.NodeID
	Term    uint64
	Applied uint64
	Commit  uint64
	// Last is the last log index; First the first that is kept.
	First, Last uint64
	Revision    shard.Revision
	Digest      uint64
	// Awake is false for a shard that hibernates.
	Awake bool
	// Awaiting says that the replica lost its data and is being rebuilt.
	Awaiting bool
	// Snapshotting says that a snapshot is being sent or received.
	Snapshotting bool
	// Leads says that this node leads the shard.
	Leads   bool
	Replica uint64
	// Members are the nodes that hold the shard; the slice must not be changed.
	Members []shard.NodeID
	// Voters are the replica ids that vote; the slice must not be changed.
	Voters []uint64
	// Queued is the number of commands that wait to be proposed.
	Queued int
}

// Voter reports whether a replica id votes, in a configuration that is not about to change.
func (s ShardStatus) Voter(id uint64) bool { return slices.Contains(s.Voters, id) }

// Shards returns the status of all shards, by id.
func (h *Host) Shards() []ShardStatus { return h.AppendShards(make([]ShardStatus, 0, len(h.order))) }

// AppendShards appends what Shards returns.
func (h *Host) AppendShards(out []ShardStatus) []ShardStatus {
	for _, r := range h.order {
		out = append(out, r.status())
	}
	return out
}

// Alive reports whether a node was heard of within the election time-out.
func (h *Host) Alive(n shard.NodeID) bool {
	p := h.peers[n]
	return n == h.cfg.Node || p != nil && p.alive
}

// timerHeap orders the replicas that lead by their next due timer. Items go stale when a replica's timer moves; they are
// checked when they surface.
type timerHeap []timerItem

type timerItem struct {
	due time.Time
	r   *replica
}

func (t timerHeap) Len() int { return len(t) }
func (t timerHeap) Less(i, j int) bool {
	if !t[i].due.Equal(t[j].due) {
		return t[i].due.Before(t[j].due)
	}
	return t[i].r.id < t[j].r.id
}
func (t timerHeap) Swap(i, j int) { t[i], t[j] = t[j], t[i] }

// Push implements heap.Interface.
func (t *timerHeap) Push(x any) { *t = append(*t, x.(timerItem)) }

// Pop implements heap.Interface.
func (t *timerHeap) Pop() any {
	old := *t
	x := old[len(old)-1]
	*t = old[:len(old)-1]
	return x
}

// armTimer notes when a leader's shard next has a timer due.
func (h *Host) armTimer(r *replica) {
	due, ok := r.machine.NextTimer()
	if !ok || !r.leads() {
		r.timerAt = time.Time{}
		return
	}
	// The shard's clock may run ahead of this node's; what counts is when the stamp will reach the due time.
	at := h.now.Add(due.Sub(r.stamp()))
	for _, notBefore := range [...]time.Time{h.now, r.timerPendingUntil} {
		if at.Before(notBefore) {
			at = notBefore
		}
	}
	if r.timerAt.IsZero() || at.Before(r.timerAt) || r.timerAt.Before(h.now) {
		r.timerAt = at
		heap.Push(&h.timers, timerItem{due: at, r: r})
		if len(h.timers) > 2*len(h.order)+timersSlack {
			h.dropStaleTimers()
		}
	}
}

// timersSlack is how many items that are stale, beside one for each replica, do not matter.
const timersSlack = 64

// dropStaleTimers leaves one item for each replica that has a timer. Stale ones surface when they are due, which may be in years,
// and a timer that is set and taken back makes one each time.
func (h *Host) dropStaleTimers() {
	clear(h.timers)
	h.timers = h.timers[:0]
	for _, r := range h.order {
		if !r.timerAt.IsZero() {
			h.timers = append(h.timers, timerItem{due: r.timerAt, r: r})
		}
	}
	heap.Init(&h.timers)
}

func (h *Host) fireTimers() {
	for len(h.timers) > 0 && !h.timers[0].due.After(h.now) {
		it := heap.Pop(&h.timers).(timerItem)
		if !it.due.Equal(it.r.timerAt) {
			continue
		}
		it.r.timerAt = time.Time{}
		it.r.proposeTimers()
	}
}

// flushIfDue asks for a flush of the store when the log has grown.
func (h *Host) flushIfDue() {
	if h.flushing || h.err != nil || h.now.Before(h.flushFrom) {
		return
	}
	due := h.log.Bytes() > h.cfg.LogBytesMax
	if !due && h.cfg.LogEntriesMax > 0 {
		for _, r := range h.order {
			if r.rn != nil && r.machine.Applied().Index > r.view.before.Index+h.cfg.LogEntriesMax {
				due = true
				break
			}
		}
	}
	if !due {
		return
	}
	if !h.flushHelps() {
		h.flushFrom = h.now.Add(h.cfg.Tick)
		return
	}
	h.flushing, h.out.Flush = true, true
	for _, r := range h.order {
		r.flushMark = r.machine.Applied().Index
	}
	if env.Mutant(env.MutantLogCutEarly) {
		h.flushed()
	}
}

// flushHelps says whether the log could be cut if all that is applied were durable. While a follower lags it may not be: each flush would be another
// small table, for nothing.
func (h *Host) flushHelps() bool {
	for _, r := range h.order {
		if r.rn != nil && h.cutTo(r, r.machine.Applied().Index) > r.view.before.Index {
			return true
		}
	}
	return false
}

// cutTo returns how far the log of a replica may be cut that has made durable what is up to an index.
func (h *Host) cutTo(r *replica, durable uint64) uint64 {
	// A follower that lags a little is better served from the log than by a snapshot, as long as the log is not much
	// over its bound.
	if h.log.Bytes() < 2*h.cfg.LogBytesMax {
		return min(durable, r.slowestMatch())
	}
	return durable
}

// flushed cuts the log behind what the store has made durable.
func (h *Host) flushed() {
	// A follower that catches up lets the log be cut by a little again and again.
	h.flushing, h.flushFrom = false, h.now.Add(h.cfg.Tick)
	for _, r := range h.order {
		if r.rn == nil {
			continue
		}
		if to := h.cutTo(r, r.flushMark); r.view.cut(to) {
			h.out.Writes = append(h.out.Writes, storage.Write{Shard: r.id, Cut: to})
		}
	}
}
