package replica

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// replica is one shard on this node: a raft member and a state machine.
type replica struct {
	host    *Host
	id      shard.ID
	rid     uint64
	machine *shard.Machine
	view    logView
	// rn is nil while the replica awaits a new id.
	rn *raft.RawNode

	conf confCache

	// unborn says that the replica has promised nothing yet, as far as it knows, and may not before all peers had a chance to know
	// better; see Host.introduced.
	unborn bool

	dirty bool
	// applies are raft's requests to apply that are yet to be done, oldest first.
	applies []*raftpb.Message
	// awake says that raft's timers run; listed that the replica is in Host.awake.
	awake, listed bool
	idleTicks     int
	// lonelyTicks counts the ticks without a word of a leader.
	lonelyTicks int

	lead uint64
	term uint64
	// unsynced counts the writes with entries of this shard that are not yet durable.
	unsynced int
	// state is raft's hard state, saved what of it was handed to the log.
	state, saved storage.HardState
	// confChanged says that a configuration was applied since the commit index was last looked after.
	confChanged bool
	// sure is set when this leader was found to know of everything committed before its term.
	sure bool
	// stampBase and stampAt anchor the shard's clock while this node leads.
	stampBase, stampAt time.Time
	timerAt            time.Time
	timerPendingUntil  time.Time

	proposals
	known
	reads readQueue
	snapshots

	// campaignAt, when set, is when to call an election early.
	campaignAt time.Time
	// move is the hand-over under way, nil if none is.
	move      *move
	flushMark uint64
	// digests are the digests at the last few multiples of digestEvery.
	digests     map[uint64]uint64
	digestsSent uint64
	// replaceAsked is when the replica last asked for a new id. refuseUpTo is the last id that it had and lost.
	// request numbers its wait for a new id.
	replaceAsked time.Time
	refuseUpTo   uint64
	request      uint64
	// promotedAt is when this leader last proposed to make a learner a voter.
	promotedAt time.Time
	// jointSince is when this leader found the configuration to be joint, or last tried to end that.
	jointSince time.Time
	// given, on a leader, are the new ids it gave out.
	given map[shard.NodeID]assigned
}

// digestEvery is the distance between the applied indexes at which replicas compare digests.
const digestEvery = 1024

// maxEntrySize bounds what raft puts into one append message or one apply, besides the first entry.
const (
	appendBytesMax = 2 << 20
	applyBytesMax  = 4 << 20
)

// inflightToPeer bounds the entries of one shard that are under way to one follower. All shards share the transport's queue, which drops what it has no room
// for; a follower that has to catch up would be sent most of it again.
func (c *Config) inflightToPeer() uint64 {
	return uint64(min(16<<20, max(appendBytesMax, 32<<20/max(1, len(c.Shards)))))
}

// open starts the replica, or sets it to wait for a new id if its data cannot be trusted.
func (r *replica) open(suspect bool) error {
	h := r.host
	stored := h.log.Replica(r.id)
	first, last := h.log.Bounds(r.id)
	applied := r.machine.Applied()
	if stored != 0 && stored&awaitingBit == 0 && !suspect && applied.Index+1 < first {
		// The log was cut further than the state store remembers: some of it is gone although nothing looked damaged.
		if len(h.peers) == 0 {
			return r.cannotRebuild("the state store has entries up to %d only, and the log begins at %d", applied.Index, first)
		}
		h.note(true, r.id, "state store is behind the cut of the log; the replica is rebuilt", "applied", applied.Index, "first", first)
		suspect = true
	}
	reset := false
	if stored != 0 && stored&awaitingBit == 0 && !suspect && !r.logHas(applied) {
		installed, err := r.machine.Installed()
		if err != nil {
			return err
		}
		// A snapshot is durable in the state store before the log begins behind it. A crash came between the two: the log
		// has all that the replica ever promised.
		if reset = installed == applied; !reset {
			if len(h.peers) == 0 {
				return r.cannotRebuild("the log ends at %d, before entry %d, which the state store has, or has another in its place", last, applied.Index)
			}
			h.note(true, r.id, "log is behind the state store; the replica is rebuilt", "applied", applied.Index, "last", last)
			suspect = true
		}
	}
	if suspect || stored&awaitingBit != 0 {
		if len(h.peers) == 0 {
			return r.cannotRebuild("an earlier start found its data damaged and gave them up")
		}
		return r.await(stored, suspect)
	}
	defer r.noteRebuilding()
	r.rid = stored
	if stored == 0 {
		r.rid = replicaID(h.cfg.Node, 1)
		h.out.Writes = append(h.out.Writes, storage.Write{Shard: r.id, Replica: r.rid})
	}
	if r.machine.Conf() == nil {
		r.machine.SetConf(encodeConf(r.initialConf()))
	}
	if first > 0 {
		t, err := h.log.Term(r.id, first-1)
		if err != nil && first > 1 {
			return err
		}
		r.view.before = storage.Position{Index: first - 1, Term: t}
	}
	if reset {
		h.note(false, r.id, "the log is made to follow a snapshot that was just installed", "index", applied.Index, "last", last)
		h.out.Writes = append(h.out.Writes, storage.Write{Shard: r.id, Reset: &applied})
		r.view.before = applied
	}
	r.view.last, r.view.state = r.view.before, h.log.State(r.id)
	if last >= first && last > 0 && !reset {
		t, err := h.log.Term(r.id, last)
		if err != nil {
			return err
		}
		r.view.last = storage.Position{Index: last, Term: t}
	}
	return r.start()
}

// cannotRebuild returns why a replica without peers is not opened: it has the only copy of what is left, and nothing of that is given up.
func (r *replica) cannotRebuild(why string, args ...any) error {
	return errs.New(errs.Corrupt, "shard %d: %s; this node has no peers to fetch it from, and nothing was changed. Put back the files that are missing, or "+
		"restore a copy of the data directory", r.id, fmt.Sprintf(why, args...))
}

// logHas says whether the log has what is applied last, or begins behind it.
func (r *replica) logHas(applied storage.Position) bool {
	t, err := r.host.log.Term(r.id, applied.Index)
	return err == nil && t == applied.Term
}

// initialConf is the configuration a cluster starts with: every member's first replica votes.
func (r *replica) initialConf() *raftpb.ConfState {
	cs := &raftpb.ConfState{}
	for _, n := range r.host.cfg.Nodes {
		cs.Voters = append(cs.Voters, replicaID(n, 1))
	}
	slices.Sort(cs.Voters)
	return cs
}

func encodeConf(cs *raftpb.ConfState) []byte {
	var b []byte
	for _, set := range [][]uint64{cs.Voters, cs.Learners, cs.VotersOutgoing, cs.LearnersNext} {
		b = binary.AppendUvarint(b, uint64(len(set)))
		for _, id := range set {
			b = binary.AppendUvarint(b, id)
		}
	}
	if cs.GetAutoLeave() {
		return append(b, 1)
	}
	return append(b, 0)
}

func decodeConf(b []byte) *raftpb.ConfState {
	r := codec.Read(b)
	cs := &raftpb.ConfState{}
	for _, set := range []*[]uint64{&cs.Voters, &cs.Learners, &cs.VotersOutgoing, &cs.LearnersNext} {
		for n := r.Uvarint(); n > 0 && !r.Bad(); n-- {
			*set = append(*set, r.Uvarint())
		}
	}
	if r.Byte() == 1 {
		cs.AutoLeave = new(true)
	}
	return cs
}

// confCache is the machine's raft configuration, decoded: it is looked at all the time and changes hardly ever.
type confCache struct {
	of    []byte
	state *raftpb.ConfState
	// members and voters are as in ShardStatus.
	members []shard.NodeID
	voters  []uint64
}

// confNow returns the present configuration. What it holds must not be changed: it is handed out.
func (r *replica) confNow() *confCache {
	b := r.machine.Conf()
	if r.conf.state != nil && bytes.Equal(b, r.conf.of) {
		return &r.conf
	}
	c := confCache{of: slices.Clone(b), state: decodeConf(b)}
	for _, id := range slices.Concat(c.state.Voters, c.state.Learners) {
		c.members = append(c.members, replicaNode(id))
	}
	slices.Sort(c.members)
	c.members = slices.Compact(c.members)
	if len(c.state.VotersOutgoing) == 0 {
		c.voters = c.state.Voters
	}
	r.conf = c
	return &r.conf
}

// start makes the raft member from log and state.
func (r *replica) start() error {
	h := r.host
	rn, err := raft.NewRawNode(&raft.Config{
		ID: r.rid, ElectionTick: h.cfg.ElectionTicks, HeartbeatTick: 1, Storage: &r.view,
		Applied: r.machine.Applied().Index, AsyncStorageWrites: true, MaxSizePerMsg: appendBytesMax,
		MaxCommittedSizePerReady: applyBytesMax, MaxInflightMsgs: 64, MaxInflightBytes: h.cfg.inflightToPeer(),
		MaxUncommittedEntriesSize: 0, CheckQuorum: true, PreVote: true, ReadOnlyOption: raft.ReadOnlySafe,
		DisableProposalForwarding: true, Logger: quiet{},
	})
	if err != nil {
		return errs.Wrap(errs.Internal, err, "start raft for shard %d", r.id)
	}
	r.rn = rn
	st := rn.BasicStatus()
	r.term = st.GetTerm()
	r.state = storage.HardState{Term: st.GetTerm(), Vote: st.GetVote(), Commit: st.GetCommit()}
	r.saved = r.view.state
	r.digests = map[uint64]uint64{}
	r.unborn = r.rid == replicaID(h.cfg.Node, 1) && r.state.Term == 0 && r.view.last.Index == 0 && !h.introduced()
	r.wake()
	if len(h.cfg.Nodes) == 1 {
		_ = rn.Campaign()
	}
	h.markDirty(r)
	return nil
}

// quiet drops raft's log lines: what an operator should know is noted by the host. A broken invariant panics.
type quiet struct{}

func (quiet) Debug(...any)            {}
func (quiet) Debugf(string, ...any)   {}
func (quiet) Error(...any)            {}
func (quiet) Errorf(string, ...any)   {}
func (quiet) Info(...any)             {}
func (quiet) Infof(string, ...any)    {}
func (quiet) Warning(...any)          {}
func (quiet) Warningf(string, ...any) {}
func (quiet) Fatal(v ...any)          { panic(v) }
func (quiet) Fatalf(f string, v ...any) {
	panic(errs.New(errs.Internal, "raft: "+f, v...))
}
func (quiet) Panic(v ...any) { panic(v) }
func (quiet) Panicf(f string, v ...any) {
	panic(errs.New(errs.Internal, "raft: "+f, v...))
}

func (r *replica) leads() bool { return r.rn != nil && r.lead == r.rid }

// stamp returns the shard's clock: the node's own, unless an earlier leader's was ahead of it; then that one goes on at
// this node's rate.
func (r *replica) stamp() time.Time {
	s := r.host.now
	if b := r.stampBase.Add(r.host.now.Sub(r.stampAt)); b.After(s) {
		s = b
	}
	if m := r.machine.Stamp(); m.After(s) {
		s = m
		r.stampBase, r.stampAt = m, r.host.now
	}
	return s
}

// step gives raft a message.
func (r *replica) step(m *raftpb.Message) {
	// The error says only that the message came at the wrong time, which messages do.
	_ = r.rn.Step(m)
	r.host.markDirty(r)
}

// ready handles everything raft has ready, and reports whether there was anything.
func (r *replica) ready() bool {
	if r.rn == nil {
		return false
	}
	// There is not more at once: what raft did not hand out it does when it hears of what it did, and then r is dirty.
	did := r.rn.HasReady()
	if did {
		rd := r.rn.Ready()
		if rd.SoftState != nil || rd.HardState != nil {
			r.observe()
		}
		for _, rs := range rd.ReadStates {
			r.readConfirmed(rs)
		}
		// raft would ask for votes before its own is on disk, and that is not needed if the others' are enough. A leader that has forgotten its term in a
		// crash may be elected in it once more, and make other entries under the numbers of those that somebody has of it. So they are asked later.
		var asks []*raftpb.Message
		for _, m := range rd.Messages {
			switch {
			case m.GetTo() == raft.LocalAppendThread:
				// It has the term of those votes.
				m.Responses = append(asks, m.Responses...)
				asks = nil
				r.handleAppend(m)
			case m.GetTo() == raft.LocalApplyThread:
				r.applyLater(m)
			case m.GetType() == raftpb.MsgVote:
				asks = append(asks, m)
			default:
				r.send(m)
			}
		}
	}
	// A snapshot that raft had no use for is forgotten.
	r.arrived = nil
	r.serveReads()
	return did
}

// observe notices changes of leader and term.
func (r *replica) observe() {
	st := r.rn.BasicStatus()
	lead, term := st.Lead, st.GetTerm()
	if lead == r.lead && term == r.term {
		return
	}
	was := r.leads()
	r.lead, r.term, r.sure = lead, term, false
	r.host.out.Changed = true
	r.idleTicks = 0
	r.wake()
	if r.leads() && !was {
		r.stampBase, r.stampAt = time.Time{}, r.host.now
		r.timerPendingUntil = time.Time{}
		r.unsynced = 0
		r.reads.lease = time.Time{}
		r.host.note(false, r.id, "leads the shard", "term", term)
	}
	if was && !r.leads() {
		r.reads.lease = time.Time{}
		r.dropSnapshotsOut()
	}
	r.moved()
	if lead != raft.None {
		r.campaignAt = time.Time{}
		r.resend(true)
		r.reads.retry(r)
	}
	r.host.armTimer(r)
}

// handleAppend turns raft's storage request into a write of this turn.
func (r *replica) handleAppend(m *raftpb.Message) {
	h := r.host
	w := storage.Write{Shard: r.id}
	if s := m.GetSnapshot(); s != nil {
		if !r.installSnapshot(s) {
			return
		}
		w.Reset = &storage.Position{Index: s.GetMetadata().GetIndex(), Term: s.GetMetadata().GetTerm()}
		r.view.reset(*w.Reset)
	}
	if n := len(m.Entries); n > 0 {
		w.Entries = make([]storage.Entry, n)
		for i, e := range m.Entries {
			w.Entries[i] = storage.Entry{Index: e.GetIndex(), Term: e.GetTerm(), Type: uint8(e.GetType()), Data: e.Data}
		}
		r.view.append(m.Entries)
	}
	if m.GetTerm() != 0 || m.GetVote() != 0 || m.GetCommit() != 0 {
		r.state = storage.HardState{Term: m.GetTerm(), Vote: m.GetVote(), Commit: m.GetCommit()}
	}
	// A commit index that is lost in a crash is learned again, so it does not cost a sync: it goes along with the next write.
	if some := w.Reset != nil || w.Entries != nil; r.state != r.saved && (some || r.state.Term != r.saved.Term || r.state.Vote != r.saved.Vote) {
		w.State, r.saved = r.state, r.state
		if env.Mutant(env.MutantHardStateNotSaved) {
			w.State = storage.HardState{}
		}
	}
	if w.Reset != nil || w.Entries != nil || w.State != (storage.HardState{}) {
		h.out.Writes = append(h.out.Writes, w)
	}
	wait := appendWait{r: r, responses: m.Responses, entries: len(w.Entries) > 0}
	if wait.entries {
		r.unsynced++
	}
	switch {
	case len(h.out.Writes) > 0:
	case h.logIdle():
		r.appended(&wait)
		return
	default:
		wait.seq = h.logSeq
	}
	if env.Mutant(env.MutantAckBeforeSync) {
		r.appended(&wait)
		return
	}
	if len(wait.responses) > 0 || wait.entries {
		h.waits = append(h.waits, wait)
	}
}

// appended delivers raft's responses to a write that is durable.
func (r *replica) appended(w *appendWait) {
	if w.entries && r.unsynced > 0 {
		r.unsynced--
	}
	r.host.markDirty(r)
	if r.rn == nil {
		return
	}
	for _, m := range w.responses {
		if m.GetTo() == r.rid {
			_ = r.rn.Step(m)
		} else {
			r.send(m)
		}
	}
}

// saveCommit writes the commit index by itself. A configuration takes effect when it is applied. Nodes that crash and do not
// know that it was committed go back to the one before, in which a replica may vote that is gone for good: if it takes that
// one to commit anything, they never learn it again.
func (r *replica) saveCommit() {
	if r.state.Commit > r.saved.Commit {
		r.host.out.Writes = append(r.host.out.Writes, storage.Write{Shard: r.id, State: r.state})
		r.saved = r.state
	}
}

func (r *replica) applyEntry(e *raftpb.Entry, out *shard.Applied) error {
	switch e.GetType() {
	case raftpb.EntryNormal:
		if len(e.Data) > 1 && e.Data[1] == 2 {
			r.timerPendingUntil = time.Time{}
		}
		if err := r.machine.Apply(e.GetIndex(), e.GetTerm(), e.Data, out); err != nil {
			return err
		}
	case raftpb.EntryConfChange, raftpb.EntryConfChangeV2:
		var cc raftpb.ConfChangeV2
		if err := proto.Unmarshal(e.Data, &cc); err != nil {
			return errs.Wrap(errs.Corrupt, err, "shard %d: configuration entry %d", r.id, e.GetIndex())
		}
		cs := r.rn.ApplyConfChange(&cc)
		r.machine.ApplyConf(e.GetIndex(), e.GetTerm(), encodeConf(cs))
		r.confChanged = true
		r.host.out.Changed = true
		r.host.note(false, r.id, "configuration changed", "voters", len(cs.Voters), "learners", len(cs.Learners), "index", e.GetIndex())
	}
	if e.GetIndex()%digestEvery == 0 {
		r.digests[e.GetIndex()] = r.machine.Digest()
		delete(r.digests, e.GetIndex()-4*digestEvery)
	}
	return nil
}

// send puts a raft message into the frame for its node.
func (r *replica) send(m *raftpb.Message) {
	p := r.host.peers[replicaNode(m.GetTo())]
	if p == nil {
		return
	}
	if m.GetType() == raftpb.MsgSnap {
		r.startSnapshot(p, m)
		return
	}
	if m.GetType() == raftpb.MsgHeartbeat {
		r.nameTerm(m)
	}
	if r.host.holdBack(r, p, m) || r.saysNothing(m) || r.tooSoon(m) {
		return
	}
	r.host.put(p, r, m)
}

// put puts a raft message into a frame.
func (h *Host) put(p *peer, r *replica, m *raftpb.Message) {
	f := (*[]byte)(nil)
	if m.GetType() == raftpb.MsgApp {
		f = h.frameFor(p)
	} else {
		f = h.controlFor(p)
	}
	*f = appendRaft(*f, r.id, m, r.knownFlag(m))
}

// wake lets raft's timers run.
func (r *replica) wake() {
	if r.awake {
		// Heartbeats come and go all the time; what they carry is noticed where it takes effect.
		return
	}
	r.idleTicks = 0
	r.awake = true
	r.host.out.Counts.Woken++
	if !r.listed {
		r.listed = true
		if len(r.host.awake) == 0 {
			// The node's ticks stood still; the next one is a full tick away.
			r.host.nextTick = r.host.now.Add(r.host.cfg.Tick)
		}
		r.host.awake = append(r.host.awake, r)
	}
}

// tick advances raft's timers by one.
func (r *replica) tick() {
	h := r.host
	if r.rn == nil || r.unborn {
		r.expire()
		r.reads.tick(r)
		if r.rn == nil {
			r.askReplacement()
		} else if r == h.order[0] {
			h.noteMissing()
		}
		return
	}
	if !r.campaignAt.IsZero() && !h.now.Before(r.campaignAt) {
		r.campaignAt = time.Time{}
		if r.lead == raft.None || !h.Alive(replicaNode(r.lead)) {
			_ = r.rn.Campaign()
		}
	}
	if r.maybeSleep() {
		// No heartbeat goes out with the message that sends the others to sleep, or their answers would end it.
		return
	}
	r.rn.Tick()
	h.markDirty(r)
	r.observe()
	r.callOut()
	r.expire()
	r.resend(false)
	r.reads.tick(r)
	r.moved()
	r.tickSnapshots()
	r.tickLeader()
}

// callOut wakes the other replicas when this one has heard of no leader for an election time-out. One that votes calls an
// election, which does the same; one that does not know yet that it votes would wait for ever for a shard that sleeps, and raft
// lets it believe all the while in the leader that it had.
func (r *replica) callOut() {
	if r.lonelyTicks++; r.lonelyTicks%r.host.cfg.ElectionTicks != 0 {
		return
	}
	cs := r.confNow().state
	if slices.Contains(cs.Voters, r.rid) {
		return
	}
	for _, id := range cs.Voters {
		// An answer to a heartbeat that nobody sent: it wakes, and confirms read-index request 0, which is none.
		r.send(&raftpb.Message{
			Type: raftpb.MsgHeartbeatResp.Enum(), To: new(id), From: new(r.rid), Term: new(r.term), Context: make([]byte, readAckBytes),
		})
	}
}

// slowestMatch returns the lowest log index that a live follower is known to have, MaxUint64 if this node does not lead.
func (r *replica) slowestMatch() uint64 {
	low := uint64(math.MaxUint64)
	if !r.leads() {
		return low
	}
	st := r.rn.Status()
	for id, pr := range st.Progress {
		// When raft looks whether there is a quorum it calls all inactive until they are heard of again.
		p := r.host.peers[replicaNode(id)]
		if id != r.rid && (pr.RecentActive || p != nil && p.alive) {
			low = min(low, pr.Match)
		}
	}
	return low
}

func (r *replica) status() ShardStatus {
	s := ShardStatus{
		ID: r.id, Applied: r.machine.Applied().Index, First: r.view.before.Index + 1, Last: r.view.last.Index,
		Revision: r.machine.Revision(), Digest: r.machine.Digest(), Awake: r.awake, Awaiting: r.rn == nil, Replica: r.rid,
		Queued: len(r.queue), Snapshotting: r.snapshotting(),
	}
	if r.rn != nil {
		s.Leader, s.Term, s.Leads = replicaNode(r.lead), r.term, r.leads()
		s.Commit = r.rn.BasicStatus().GetCommit()
	}
	conf := r.confNow()
	s.Members, s.Voters = conf.members, conf.voters
	return s
}
