package replica

import (
	"encoding/binary"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// raft expects of a network that any message may be late or lost, so that holding or dropping one is always allowed. Two kinds
// are held back here.
//
// A leader tells its followers of each commit in a message without entries. Under load the next entries say the same a moment
// later, so such news is held for holdFor, or until anything else goes to that node, and dropped when newer news is sent.
// Without it a write costs half as many messages. A node that hands this one commands or asks it for reads waits for commits,
// so it gets them at once.
//
// And a leader asks all its followers to confirm it for a linearizable read, although those that make a majority with it will do.
// The others are asked when the first have not all answered within holdFor.

// holdFor is how long a message is held back.
const holdFor = 2 * time.Millisecond

// hurryFor is for how long after a peer forwarded something its commits are not held.
const hurryFor = 100 * time.Millisecond

// heldMessage is one message that is held back: news of a commit, or the question of a read.
type heldMessage struct {
	p  *peer
	r  *replica
	m  *raftpb.Message
	by time.Time
}

func (c *heldMessage) asks() bool { return c.m.GetType() == raftpb.MsgHeartbeat }

// holdBack keeps a message that may wait, instead of an older one of its kind to the same replica. It returns false if the
// message must go now.
func (h *Host) holdBack(r *replica, p *peer, m *raftpb.Message) bool {
	hold := false
	switch {
	case m.GetType() == raftpb.MsgApp:
		hold = len(m.Entries) == 0 && !h.now.Before(p.hurryUntil)
	case m.GetType() == raftpb.MsgHeartbeat && len(m.Context) > 0:
		hold = !slices.Contains(r.askedFirst(), p.id)
	default:
		return false
	}
	i := slices.IndexFunc(h.held, func(c heldMessage) bool {
		return c.r == r && c.m.GetTo() == m.GetTo() && c.m.GetType() == m.GetType()
	})
	switch {
	case i >= 0 && hold:
		h.held[i].m = m
	case i >= 0:
		h.held = slices.Delete(h.held, i, i+1)
	case hold:
		h.held = append(h.held, heldMessage{p, r, m, h.now.Add(holdFor)})
	}
	return hold
}

// sendHeld puts what was held long enough into frames, and news that would not be alone.
func (h *Host) sendHeld() {
	if len(h.held) == 0 {
		return
	}
	var late []shard.NodeID
	h.held = slices.DeleteFunc(h.held, func(c heldMessage) bool {
		if !c.r.leads() || c.r.term != c.m.GetTerm() {
			return true
		}
		due := !h.now.Before(c.by)
		switch {
		case c.asks() && c.r.confirmed(c.m.Context):
			return true
		case c.asks() && !due:
			return false
		case c.asks():
			for _, id := range c.r.askedFirst() {
				if !c.r.confirmedBy(id, c.m.Context) && !slices.Contains(late, id) {
					late = append(late, id)
				}
			}
		case !due && c.p.frame == nil && !h.now.Before(c.p.hurryUntil):
			return false
		}
		f := h.frameFor(c.p)
		*f = appendRaft(*f, c.r.id, c.m, c.r.knownFlag(c.m))
		return true
	})
	// Next time the others are asked first.
	for _, id := range late {
		i := slices.Index(h.asked, id)
		h.asked = append(slices.Delete(h.asked, i, i+1), id)
	}
}

// askedFirst returns the peers that are asked at once to confirm this leader: as many as make a majority with it, in the order in
// which the host prefers them, those that are silent last. All are, while the configuration changes.
func (r *replica) askedFirst() []shard.NodeID {
	h, voters := r.host, r.confNow().voters
	if len(voters) < 3 || !slices.Contains(voters, r.rid) {
		return h.peerIDs
	}
	votes := func(id shard.NodeID) bool {
		return slices.ContainsFunc(voters, func(v uint64) bool { return replicaNode(v) == id })
	}
	first, need := h.first[:0], len(voters)/2
	for _, alive := range [...]bool{true, false} {
		for _, id := range h.asked {
			if len(first) < need && h.peers[id].alive == alive && votes(id) {
				first = append(first, id)
			}
		}
	}
	h.first = first
	return first
}

// confirmed says whether as many peers as are needed have answered the question with that context, or a later one.
func (r *replica) confirmed(ctx []byte) bool {
	n := 0
	for _, v := range r.confNow().voters {
		if v != r.rid && r.confirmedBy(replicaNode(v), ctx) {
			n++
		}
	}
	return n > 0 && n >= len(r.confNow().voters)/2
}

func (r *replica) confirmedBy(id shard.NodeID, ctx []byte) bool {
	i := slices.IndexFunc(r.answered, func(a answeredRead) bool { return a.id == id })
	return i >= 0 && r.answered[i].term == r.term && r.answered[i].ctx >= binary.LittleEndian.Uint64(ctx)
}

// known is what of the log leader and follower know each other to have. A follower answers news of a commit with how far its log
// goes, as it does entries, and with many shards that would be a third of all messages. If it has said so in this term before,
// and the leader has heard it, the answer is left out: raft would make nothing of it.
type known struct {
	// acked is, at a leader, up to where the followers have the log, by its own term.
	acked []ackedLog
	// told is up to where this follower's leader has said to know that it has the log, and in which term.
	told storage.Position
	// answered is, at a leader, the last question of a read that each follower has answered, which are numbered in a term.
	answered []answeredRead
}

type answeredRead struct {
	id        shard.NodeID
	term, ctx uint64
}

type ackedLog struct {
	id uint64
	storage.Position
}

// noteKnown learns from a message that came.
func (r *replica) noteKnown(m *raftpb.Message, flags byte) {
	at := storage.Position{Index: m.GetIndex(), Term: m.GetTerm()}
	switch {
	case m.GetType() == raftpb.MsgApp && flags&flagKnown != 0:
		r.told = at
	case m.GetType() == raftpb.MsgAppResp && !m.GetReject():
		i := slices.IndexFunc(r.acked, func(a ackedLog) bool { return a.id == m.GetFrom() })
		if i < 0 {
			r.acked = append(r.acked, ackedLog{id: m.GetFrom()})
			i = len(r.acked) - 1
		}
		if was := r.acked[i].Position; was.Term < at.Term || was.Term == at.Term && was.Index < at.Index {
			r.acked[i].Position = at
		}
	case m.GetType() == raftpb.MsgHeartbeatResp && len(m.Context) > 0:
		a := answeredRead{replicaNode(m.GetFrom()), m.GetTerm(), binary.LittleEndian.Uint64(m.Context)}
		i := slices.IndexFunc(r.answered, func(b answeredRead) bool { return b.id == a.id })
		switch {
		case i < 0:
			r.answered = append(r.answered, a)
		case r.answered[i].term < a.term || r.answered[i].term == a.term && r.answered[i].ctx < a.ctx:
			r.answered[i] = a
		}
	}
}

// knownFlag returns flagKnown for an append that the receiver need not answer.
func (r *replica) knownFlag(m *raftpb.Message) byte {
	if m.GetType() != raftpb.MsgApp || len(m.Entries) > 0 {
		return 0
	}
	for _, a := range r.acked {
		if a.id == m.GetTo() && a.Term == m.GetTerm() && a.Index >= m.GetIndex() {
			return flagKnown
		}
	}
	return 0
}

// saysNothing says that a message only tells a leader what it has said to know.
func (r *replica) saysNothing(m *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgAppResp && !m.GetReject() && m.GetTerm() == r.told.Term && m.GetIndex() <= r.told.Index
}
