package replica

import (
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// A replica whose data were damaged has forgotten promises: votes it gave, entries it confirmed. It must not take part
// under its old id. It asks the leader for a new one; the leader replaces the old id by the new as a learner, in one joint
// configuration change, sends it a snapshot, and makes it a voter when it has caught up. See docs/adr/0004.

// askAgain is how often a replica without an id asks.
const askAgain = time.Second

const outOfIDs = "a replica that lost its data cannot be replaced: its node has used up its replica ids of the shard; " +
	"copy the data into a new cluster, and find out what keeps damaging the node's"

// await forgets what the replica has and waits for a new id. The mark is in the log, so that a restart goes on waiting.
// stored is the replica id that the log has, which may be a mark itself, or 0.
func (r *replica) await(stored uint64, damaged bool) error {
	h := r.host
	last := stored &^ awaitingBit
	if stored == 0 || damaged && stored&awaitingBit != 0 {
		last = lastIDUnknown
	}
	r.rid, r.refuseUpTo = 0, last
	if last != lastIDUnknown && last&incarnationMax == incarnationMax {
		h.note(true, r.id, outOfIDs, "node", h.cfg.Node, "replica", last)
	}
	r.noteRebuilding()
	h.awaits++
	r.request = h.cfg.Session + h.awaits
	h.out.Writes = append(h.out.Writes, storage.Write{Shard: r.id, Replica: awaitingBit | last})
	if err := r.machine.Wipe(); err != nil {
		return err
	}
	h.unsaved = true
	r.view = logView{r: r}
	// A flush that is under way is of what the replica had.
	r.flushMark = 0
	r.wake()
	return nil
}

// noteRebuilding tells the machine whether its state may be shown. After damage it is empty, then a snapshot or the start of
// the log, older than what this node has answered before. It has caught up when the group made it a voter again, which the
// state itself says. A state without any entry may be that of a node whose disk was replaced, and that was not yet told.
func (r *replica) noteRebuilding() {
	yes := r.rid == 0 || r.machine.Applied().Index == 0 || !slices.Contains(r.confNow().state.Voters, r.rid)
	if yes != (r.machine.Readable() != nil) {
		r.machine.SetRebuilding(yes && !env.Mutant(env.MutantRebuildingRead))
	}
}

// askReplacement asks all peers; the one that leads acts.
func (r *replica) askReplacement() {
	h := r.host
	if r.rn != nil || h.now.Sub(r.replaceAsked) < askAgain {
		return
	}
	r.replaceAsked = h.now
	for _, id := range h.peerIDs {
		f := h.frameFor(h.peers[id])
		w := beginMessage(*f, msgReplace)
		w.b = binary.AppendUvarint(w.b, uint64(r.id))
		w.b = binary.AppendUvarint(w.b, r.refuseUpTo)
		w.b = binary.LittleEndian.AppendUint64(w.b, r.request)
		*f = w.end()
	}
}

// assigned remembers which new id a leader gave for which request.
type assigned struct {
	request, id uint64
}

// give remembers what was last given to a node; id 0 is nothing.
func (r *replica) give(n shard.NodeID, a assigned) {
	if r.given == nil {
		r.given = map[shard.NodeID]assigned{}
	}
	r.given[n] = a
}

// receiveReplace replaces the replica of a node that lost its data.
func (r *replica) receiveReplace(p *peer, rd *codec.Reader) {
	used, request := rd.Uvarint(), rd.Uint64()
	r.wake()
	if rd.Bad() || !r.leads() {
		return
	}
	st := r.rn.Status()
	if len(st.Config.Voters[1]) > 0 {
		return
	}
	var old []uint64
	highest := uint64(0)
	for _, id := range slices.Sorted(maps.Keys(st.Progress)) {
		if replicaNode(id) != p.id {
			continue
		}
		pr := st.Progress[id]
		old = append(old, id)
		highest = id
		// An id that was made for this request, or that the node knows it never had, is given again.
		if given := r.given[p.id]; given.request == request && given.id == id || pr.IsLearner && id > used {
			r.assign(p, id, request)
			return
		}
	}
	next, ok := nextReplicaID(p.id, highest)
	if !ok {
		if r.given[p.id].request != request {
			r.give(p.id, assigned{request: request})
			r.host.note(true, r.id, outOfIDs, "node", p.id, "replica", highest)
		}
		return
	}
	cc := &raftpb.ConfChangeV2{}
	for _, id := range old {
		cc.Changes = append(cc.Changes, &raftpb.ConfChangeSingle{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: new(id)})
	}
	cc.Changes = append(cc.Changes, &raftpb.ConfChangeSingle{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: new(next)})
	if err := r.rn.ProposeConfChange(cc); err == nil {
		r.give(p.id, assigned{request, next})
		r.host.note(true, r.id, "replacing a replica that lost its data", "node", p.id, "replica", next)
	}
	r.host.markDirty(r)
}

// assign tells a node its new replica id.
func (r *replica) assign(p *peer, id, request uint64) {
	f := r.host.frameFor(p)
	w := beginMessage(*f, msgAssign)
	w.b = binary.AppendUvarint(w.b, uint64(r.id))
	w.b = binary.AppendUvarint(w.b, id)
	w.b = binary.LittleEndian.AppendUint64(w.b, request)
	*f = w.end()
}

// receiveAssign takes the id that the leader gave a replica which lost its own.
func (r *replica) receiveAssign(rd *codec.Reader) {
	h := r.host
	id, request := rd.Uvarint(), rd.Uint64()
	if rd.Bad() || r.rn != nil || replicaNode(id) != h.cfg.Node || request != r.request {
		return
	}
	h.note(true, r.id, "rebuilding the replica under a new id", "replica", id)
	r.rid = id
	r.machine.SetConf(encodeConf(r.initialConf()))
	r.view = logView{r: r}
	h.out.Writes = append(h.out.Writes, storage.Write{Shard: r.id, Replica: id})
	if err := r.start(); err != nil {
		h.fatal(err)
	}
	h.out.Changed = true
}

// superseded is called when the group has given this node a newer id than it took: two leaders, one of which did not know
// yet that it was deposed, answered the same request. The older id is out of the group, so nothing that was promised under
// it counts any more.
func (r *replica) superseded(by uint64) {
	r.host.note(true, r.id, "the replica's id is out of date; it asks for the new one", "replica", r.rid, "new", by)
	old := r.rid
	r.stop()
	r.host.fatal(r.await(old, false))
	r.host.out.Changed = true
}

// forgot says whether a message shows that the log has lost entries which this replica has confirmed. A log whose last record is damaged looks like one
// whose last record was being written in a crash, and is cut there (docs/formats/raftlog.md); the leader knows better as long as it leads: in its
// heartbeat it names as committed what it knows the replica to have. Where the log ends before that, raft would panic, and again after each start. Where it
// has another entry there, one that the lost ones had replaced, raft would believe that to be committed.
func (r *replica) forgot(m *raftpb.Message) bool {
	if m.GetType() != raftpb.MsgHeartbeat || m.GetTerm() < r.term {
		return false
	}
	if m.GetCommit() > r.view.last.Index {
		return true
	}
	if m.GetLogTerm() == 0 {
		return false
	}
	// What is cut was applied, and so committed.
	t, err := r.view.Term(m.GetCommit())
	return err == nil && t != m.GetLogTerm()
}

// doubt takes from a heartbeat what it says of commits if nobody can tell whether this log has the entry that is meant. It will be said again, or with
// entries or a snapshot.
func (r *replica) doubt(m *raftpb.Message) {
	if m.GetType() != raftpb.MsgHeartbeat || m.GetLogTerm() != 0 || m.GetCommit() == 0 {
		return
	}
	if own := r.rn.BasicStatus().GetCommit(); m.GetCommit() > own {
		m.Commit = new(own)
	}
}

// deniesAcked says that a follower rejects what comes behind an entry that it has said to have. Either the message is late, or the follower's log has
// lost its end, of which it hears when that entry is committed. raft would send the same again at once, and hear the same, as fast as the network
// goes; the next answer to a heartbeat makes it send, too.
func (r *replica) deniesAcked(m *raftpb.Message) bool {
	if m.GetType() != raftpb.MsgAppResp || !m.GetReject() || !r.leads() || m.GetTerm() != r.term {
		return false
	}
	acked := r.follower(m.GetFrom()).acked
	return acked.Term == m.GetTerm() && m.GetIndex() <= acked.Index
}

// nameTerm adds the term of the entry that a heartbeat says is committed; see forgot. Raft leaves the field empty.
func (r *replica) nameTerm(m *raftpb.Message) {
	t, err := r.view.known(m.GetCommit())
	switch {
	case err != nil:
	case t == m.GetTerm():
		m.LogTerm = m.Term
	default:
		m.LogTerm = new(t)
	}
}

const forgotten = "the log lacks what the replica has confirmed; it is rebuilt"

// startOver gives the replica up that has forgotten something.
func (r *replica) startOver(confirmed uint64) {
	r.host.note(true, r.id, forgotten, "replica", r.rid, "last", r.view.last.Index, "confirmed", confirmed)
	old := r.rid
	r.stop()
	r.host.fatal(r.await(old, true))
	r.host.out.Changed = true
}

// leaveJoint ends a joint configuration. raft does so when it applies the entry that began it, or any later one; but a leader that hands over takes no
// entry, and if it is left with its office and nobody writes, there is no later one.
func (r *replica) leaveJoint() {
	switch now := r.host.now; {
	case len(r.confNow().state.VotersOutgoing) == 0:
		r.jointSince = time.Time{}
	case r.jointSince.IsZero():
		r.jointSince = now
	case now.Sub(r.jointSince) >= askAgain:
		// Not at once again: what comes while another change is under way becomes an empty entry.
		r.jointSince = now
		_ = r.rn.ProposeConfChange(&raftpb.ConfChangeV2{})
		r.host.markDirty(r)
	}
}

// promoteLearners makes a learner that has caught up a voter.
func (r *replica) promoteLearners() {
	cs := r.confNow().state
	if len(cs.Learners) == 0 || len(cs.VotersOutgoing) > 0 || r.host.now.Sub(r.promotedAt) < askAgain {
		return
	}
	st := r.rn.Status()
	for _, id := range cs.Learners {
		pr, ok := st.Progress[id]
		if !ok || !pr.RecentActive || pr.State != tracker.StateReplicate || pr.Match+64 < r.view.last.Index {
			continue
		}
		cc := &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{
			{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(id)},
		}}
		// raft makes an empty entry of a change that comes while another is under way, so it is not repeated at once.
		r.promotedAt = r.host.now
		if r.rn.ProposeConfChange(cc) == nil {
			r.host.note(false, r.id, "a rebuilt replica votes again", "node", replicaNode(id), "replica", id)
		}
		r.host.markDirty(r)
		return
	}
}

// Peers are remembered by the name of their log. A node that comes back under the same number with another log has lost
// everything it promised, and does not know it. Each frame says which log its sender knows the receiver by, so the node
// learns of it from the first frame that it gets, and nobody believes it until it shows, by awareBit, that it has.

func peerLogKey(n shard.NodeID) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x01, 'n'}, uint32(n))
}

func (h *Host) loadPeerLogs() error {
	for _, id := range h.peerIDs {
		v, ok, err := h.store.Get(peerLogKey(id))
		if err != nil {
			return err
		}
		if ok && len(v) == 8 {
			h.peers[id].logID = binary.LittleEndian.Uint64(v)
		}
	}
	return nil
}

// knows checks a peer's log name. On first contact it is stored; frames under another name are dropped until the peer says
// that it knows.
func (h *Host) knows(p *peer, hd frameHeader) bool {
	if p.logID == hd.logID&^awareBit || env.Mutant(env.MutantAmnesia) {
		return true
	}
	if p.logID == 0 || hd.logID&awareBit != 0 {
		p.logID = hd.logID &^ awareBit
		b := h.store.Batch()
		b.Set(peerLogKey(p.id), binary.LittleEndian.AppendUint64(nil, p.logID))
		if err := b.Commit(); err != nil {
			h.fatal(err)
			return false
		}
		// This is rare, and must not be forgotten.
		h.fatal(h.store.Flush())
		return h.err == nil
	}
	if p.strangeSession != hd.session {
		p.strangeSession = hd.session
		h.note(true, 0, "peer came back with another disk; it must rebuild", "peer", p.id)
	}
	h.controlFor(p)
	return false
}

// introduced says whether every peer was heard of since this node started: if it had promised anything under another log, whoever
// it promised that to would have said so. Before that a node without a past may be one whose disk was replaced; with another that
// is new indeed it would be a majority which knows nothing of what was acknowledged. So a new cluster needs all its nodes once.
func (h *Host) introduced() bool {
	for _, p := range h.peers {
		if !p.greeted && !env.Mutant(env.MutantAmnesia) {
			return false
		}
	}
	return true
}

// noteMissing says, once, for whom a new cluster waits.
func (h *Host) noteMissing() {
	r := h.order[0]
	if r.lonelyTicks++; r.lonelyTicks != 2*h.cfg.ElectionTicks {
		return
	}
	var missing []shard.NodeID
	for _, id := range h.peerIDs {
		if !h.peers[id].greeted {
			missing = append(missing, id)
		}
	}
	h.note(true, 0, "a new cluster begins when all its nodes have met; start those that are missing, and see whether their links are refused", "missing", missing)
}

// bear lets replicas without a past take part, if that is what they are.
func (h *Host) bear() {
	if !h.introduced() {
		return
	}
	for _, r := range h.order {
		r.unborn = false
	}
}

// awareBit marks the log id of a node that knows it started over: none of its replicas has its first id.
const awareBit = 1 << 63

func (h *Host) startedOver() bool {
	for _, id := range h.cfg.Shards {
		if stored := h.log.Replica(id); stored == 0 || stored == replicaID(h.cfg.Node, 1) {
			return false
		}
	}
	return true
}

// strange is called when a peer knows this node by another log: every replica here starts over.
func (h *Host) strange(p *peer) {
	if h.cfg.LogID&awareBit != 0 {
		return
	}
	h.note(true, 0, "a peer remembers this node with another disk; all replicas are rebuilt", "peer", p.id)
	h.cfg.LogID |= awareBit
	for _, r := range h.order {
		if r.rn != nil {
			r.stop()
			if err := r.await(0, true); err != nil {
				h.fatal(err)
				return
			}
		}
	}
	h.out.Changed = true
}

// stop ends the raft member.
func (r *replica) stop() {
	r.rn, r.applies = nil, nil
	r.reads.retry(r)
	r.lead, r.term, r.known = raft.None, 0, known{}
	r.dropSnapshotsOut()
	r.dropSnapshotIn()
	r.unsynced = 0
	r.host.waits = slices.DeleteFunc(r.host.waits, func(w appendWait) bool { return w.r == r })
}
