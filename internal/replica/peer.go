package replica

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// receive takes in a frame of another node.
func (h *Host) receive(f Frame) {
	p := h.peers[f.From]
	hd, body, err := readFrameHeader(f.Data)
	if p == nil || err != nil || hd.from != f.From {
		if err != nil {
			h.note(true, 0, "malformed frame from a peer", "peer", f.From, "error", err)
		}
		return
	}
	if hd.yourLog != 0 && hd.yourLog != h.cfg.LogID&^awareBit {
		h.strange(p)
	}
	if !h.knows(p, hd) {
		return
	}
	p.heard = h.now
	if p.session != hd.session {
		restarted := p.session != 0
		p.session = hd.session
		if restarted {
			// What it promised to be doing it does no more: shards that sleep under its leadership must look again. And those
			// that sleep under this node's must tell it who leads and what is committed, which it may have lost.
			h.wakeShardsOf(p.id)
			h.wakeShardsOf(h.cfg.Node)
			h.linkAnew(p.id)
		}
	}
	if !p.alive {
		p.alive = true
		h.out.Changed = true
	}
	if !p.greeted {
		p.greeted = true
		h.bear()
		h.greet()
	}
	for len(body) > 0 {
		kind, msg, rest, err := nextMessage(body)
		if err != nil {
			h.note(true, 0, "malformed frame from a peer", "peer", f.From, "error", err)
			return
		}
		body = rest
		if err := h.handle(p, f, kind, msg); err != nil {
			h.note(true, 0, "malformed message from a peer", "peer", f.From, "error", err)
			return
		}
	}
}

// pinnedBytes and pinnedTimes bound how much of a frame entries may keep in memory beside themselves.
const (
	pinnedBytes = 4 << 10
	pinnedTimes = 4
)

func (h *Host) handle(p *peer, f Frame, kind byte, body []byte) error {
	if kind == msgRaft {
		id, m, flags, err := readRaft(body)
		if err != nil {
			return err
		}
		if len(m.Entries) > 0 && len(f.Data) > pinnedBytes+pinnedTimes*len(body) {
			// Entries are kept for a while, and the frame they came in with them. The rest of it may be a snapshot's rows, a thousand times as much.
			for _, e := range m.Entries {
				e.Data = bytes.Clone(e.Data)
			}
		}
		if err := travels(m); err != nil {
			return err
		}
		if r := h.reps[id]; r != nil && replicaNode(m.GetFrom()) == p.id {
			r.receiveRaft(m, flags)
		}
		return nil
	}
	rd := codec.Read(body)
	r := h.reps[shard.ID(rd.Uvarint())]
	if r == nil {
		return nil
	}
	switch kind {
	case msgForward:
		r.receiveForward(p, &rd, f.At)
	case msgQuiesce:
		r.receiveQuiesce(p, &rd)
	case msgChunk:
		r.receiveChunk(p, &rd)
	case msgChunkOK:
		r.receiveChunkOK(p, &rd)
	case msgReplace:
		r.receiveReplace(p, &rd)
	case msgAssign:
		r.receiveAssign(&rd)
	case msgDigest:
		r.receiveDigest(p, &rd)
	}
	if rd.Bad() {
		return errs.New(errs.Corrupt, "malformed message of kind %d", kind)
	}
	return nil
}

// readAckBytes is the length of the context by which heartbeats confirm read-index requests; raft reads so much of it.
const readAckBytes = 8

// travels checks that a raft message is one that nodes send each other, and has the form that raft relies on. Snapshots
// travel as chunks, proposals as batches, and raft's local messages not at all.
func travels(m *raftpb.Message) error {
	switch m.GetType() {
	case raftpb.MsgApp:
		for i, e := range m.Entries {
			if e.GetIndex() != m.GetIndex()+uint64(i)+1 || e.GetTerm() > m.GetTerm() || i > 0 && e.GetTerm() < m.Entries[i-1].GetTerm() {
				return errs.New(errs.Corrupt, "raft message with entry %d of term %d at position %d after index %d", e.GetIndex(), e.GetTerm(), i, m.GetIndex())
			}
		}
	case raftpb.MsgReadIndex, raftpb.MsgReadIndexResp:
		if len(m.Entries) != 1 {
			return errs.New(errs.Corrupt, "%v with %d contexts", m.GetType(), len(m.Entries))
		}
	case raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp:
		if n := len(m.Context); n != 0 && n != readAckBytes {
			return errs.New(errs.Corrupt, "%v with a context of %d bytes", m.GetType(), n)
		}
	case raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp,
		raftpb.MsgPreVote, raftpb.MsgPreVoteResp, raftpb.MsgTimeoutNow:
	default:
		return errs.New(errs.Corrupt, "%v does not travel between nodes", m.GetType())
	}
	return nil
}

// receiveRaft steps a raft message that is meant for this replica.
func (r *replica) receiveRaft(m *raftpb.Message, flags byte) {
	if r.rn == nil || r.unborn {
		return
	}
	if to := m.GetTo(); to != r.rid {
		if replicaNode(to) == r.host.cfg.Node && to > r.rid {
			r.superseded(to)
		}
		return
	}
	if t := m.GetType(); (t == raftpb.MsgVote || t == raftpb.MsgPreVote) && r.host.now.Before(r.host.votesFrom) &&
		!env.Mutant(env.MutantLeaseForgotten) {
		// A leader may still count on what this node promised before it was started.
		return
	}
	if m.GetFrom() == r.lead {
		r.lonelyTicks = 0
	}
	if !r.chatter(m) {
		r.wake()
	}
	if m.GetType() == raftpb.MsgReadIndex && r.leads() && len(r.confNow().voters) == 1 && !r.knowsCommit() {
		// raft would answer at once. With more voters it keeps the question until it knows. The other node asks again.
		return
	}
	if p := r.host.peers[replicaNode(m.GetFrom())]; m.GetType() == raftpb.MsgReadIndex && p != nil {
		p.hurryUntil = r.host.now.Add(hurryFor)
	}
	if r.forgot(m) {
		r.startOver(m.GetCommit())
		return
	}
	if r.deniesAcked(m) {
		return
	}
	r.doubt(m)
	r.noteKnown(m, flags)
	r.step(m)
}

// chatter says that a message shows nothing but that both sides are there, so that a shard may sleep through it.
func (r *replica) chatter(m *raftpb.Message) bool {
	switch m.GetType() {
	case raftpb.MsgHeartbeat:
		return m.GetTerm() == r.term && m.GetFrom() == r.lead && m.GetCommit() <= r.machine.Applied().Index && len(m.Context) == 0
	case raftpb.MsgHeartbeatResp:
		return m.GetTerm() == r.term && len(m.Context) == 0
	}
	return false
}

// checkPeers notices nodes that fell silent.
func (h *Host) checkPeers() {
	limit := h.cfg.Tick * time.Duration(h.cfg.ElectionTicks)
	for _, id := range h.peerIDs {
		p := h.peers[id]
		if p.alive && h.now.Sub(p.heard) > limit {
			p.alive = false
			h.out.Changed = true
			h.note(true, 0, "peer is silent", "peer", id, "for", h.now.Sub(p.heard))
			h.wakeShardsOf(id)
		}
	}
}

// wakeShardsOf wakes the shards that a node leads.
func (h *Host) wakeShardsOf(n shard.NodeID) {
	for _, r := range h.order {
		if r.rn != nil && replicaNode(r.lead) == n {
			r.wake()
		}
	}
}

// link takes in what the transport knows. A refused connection means that the process is gone: waiting out the election
// time-out would serve nobody.
func (h *Host) link(l Link) {
	p := h.peers[l.Node]
	if p == nil {
		return
	}
	if l.Up {
		h.linkAnew(p.id)
		h.controlFor(p)
		return
	}
	if !l.Refused || h.cfg.LeaseReads {
		// With lease reads a leader may still answer for as long as the followers promised to wait.
		return
	}
	if !p.refusedAt.IsZero() && h.now.Sub(p.refusedAt) < time.Second {
		return
	}
	p.refusedAt = h.now
	if p.alive {
		p.alive = false
		h.out.Changed = true
	}
	for _, r := range h.order {
		if r.rn == nil || replicaNode(r.lead) != l.Node {
			continue
		}
		r.wake()
		// raft refuses to vote while it believes in a leader; the ticks make it doubt.
		for range h.cfg.ElectionTicks {
			r.rn.Tick()
		}
		h.markDirty(r)
		r.campaignSoon()
	}
}

// greet is called when a node was heard of for the first time since this one started. If no shard leader turns up at once,
// the first nodes in line call elections rather than wait for the time-out.
func (h *Host) greet() {
	for _, r := range h.order {
		if r.rn != nil && r.lead == raft.None {
			r.campaignSoon()
		}
	}
}

// campaignSoon sets an early election, a little later for each node, so that one of them wins. Shards start with different
// nodes, so that leaders spread.
func (r *replica) campaignSoon() {
	if r.host.now.Before(r.host.votesFrom) && !env.Mutant(env.MutantLeaseForgotten) {
		return
	}
	n := len(r.host.cfg.Nodes)
	rank := (slices.Index(r.host.cfg.Nodes, r.host.cfg.Node) - int(r.id) + 1 + n*int(r.id)) % n
	at := r.host.now.Add(time.Duration(1+2*rank) * r.host.cfg.Tick / 2)
	if r.campaignAt.IsZero() || at.Before(r.campaignAt) {
		r.campaignAt = at
	}
}

// tickLeader does what a leader does now and then: digests to compare, and replicas to replace or promote.
func (r *replica) tickLeader() {
	if !r.leads() {
		return
	}
	at := r.machine.Applied().Index / digestEvery * digestEvery
	if d, ok := r.digests[at]; ok && at > r.digestsSent {
		r.digestsSent = at
		for _, id := range r.host.peerIDs {
			f := r.host.frameFor(r.host.peers[id])
			w := beginMessage(*f, msgDigest)
			w.b = binary.AppendUvarint(w.b, uint64(r.id))
			w.b = binary.AppendUvarint(w.b, at)
			w.b = binary.LittleEndian.AppendUint64(w.b, d)
			*f = w.end()
		}
	}
	r.leaveJoint()
	r.promoteLearners()
}

// receiveDigest stops the node if its state is not the leader's.
func (r *replica) receiveDigest(p *peer, rd *codec.Reader) {
	at, want := rd.Uvarint(), rd.Uint64()
	if rd.Bad() {
		return
	}
	if got, ok := r.digests[at]; ok && got != want {
		r.host.fatal(errs.New(errs.Corrupt, "shard %d: state at index %d differs from that of node %d (digest %x, want %x)", r.id, at, p.id, got, want))
	}
}

// maybeSleep lets a shard with nothing to do go quiet. Only a leader that knows all its followers to have everything may
// begin; they then watch the leader's node instead of the shard.
func (r *replica) maybeSleep() bool {
	h := r.host
	if h.cfg.NoHibernate {
		return false
	}
	r.idleTicks++
	if !r.leads() || r.idleTicks < 2*h.cfg.ElectionTicks || !r.quietEnough() {
		return false
	}
	st := r.rn.Status()
	last := r.view.last.Index
	for id, pr := range st.Progress {
		if pr.IsLearner || id != r.rid && (pr.Match != last || !h.Alive(replicaNode(id))) {
			return false
		}
	}
	for _, id := range h.peerIDs {
		f := h.frameFor(h.peers[id])
		w := beginMessage(*f, msgQuiesce)
		w.b = binary.AppendUvarint(w.b, uint64(r.id))
		w.b = binary.AppendUvarint(w.b, r.rid)
		w.b = binary.AppendUvarint(w.b, r.term)
		w.b = binary.AppendUvarint(w.b, last)
		*f = w.end()
	}
	r.sleep()
	return true
}

// quietEnough says that nothing is under way here.
func (r *replica) quietEnough() bool {
	st := r.rn.BasicStatus()
	last := r.view.last.Index
	return len(r.queue) == 0 && len(r.order) == 0 && r.reads.count == 0 && r.unsynced == 0 && r.campaignAt.IsZero() && r.move == nil &&
		st.GetCommit() == last && r.machine.Applied().Index == last && !r.snapshotting() && !r.rn.HasReady()
}

func (r *replica) receiveQuiesce(p *peer, rd *codec.Reader) {
	from, term, last := rd.Uvarint(), rd.Uvarint(), rd.Uvarint()
	if rd.Bad() || r.rn == nil || from != r.lead || replicaNode(from) != p.id || term != r.term || r.view.last.Index != last {
		return
	}
	if !r.quietEnough() {
		return
	}
	r.sleep()
}

// sleep stops raft's timers until something concerns the shard again.
func (r *replica) sleep() {
	if r.awake {
		r.awake = false
		r.host.out.Counts.Asleep++
	}
	r.view.shrink(0)
}
