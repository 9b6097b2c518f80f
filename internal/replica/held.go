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
// The others are asked when the first have not all answered within holdFor. But the question is also the heartbeat without which a
// follower calls an election, so that one goes to everybody: a tick after the last at most, and until the next tick.

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
	case m.GetType() == raftpb.MsgHeartbeat:
		f := r.follower(m.GetTo())
		hold = len(m.Context) > 0 && h.now.Sub(f.beat) < h.cfg.Tick && !slices.Contains(r.askedFirst(), p.id)
		if !hold {
			f.beat = h.now
		}
	default:
		return false
	}
	i := slices.IndexFunc(h.held, func(c heldMessage) bool {
		return c.r == r && c.m.GetTo() == m.GetTo() && c.m.GetType() == m.GetType()
	})
	switch {
	case i >= 0 && hold:
		// The question of the next read can come in the turn that answers the one before, and has a time of its own then.
		c := &h.held[i]
		if c.asks() && r.confirmed(c.m.Context) {
			c.by = h.now.Add(holdFor)
		}
		c.m = m
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
			c.r.follower(c.m.GetTo()).beat = h.now
			for _, id := range c.r.askedFirst() {
				if !c.r.confirmedBy(id, c.m.Context) && !slices.Contains(late, id) {
					late = append(late, id)
				}
			}
		case !due && !c.p.framed() && !h.now.Before(c.p.hurryUntil):
			return false
		}
		h.put(c.p, c.r, c.m)
		return true
	})
	// Next time the others are asked first.
	for _, id := range late {
		i := slices.Index(h.asked, id)
		h.asked = append(slices.Delete(h.asked, i, i+1), id)
	}
}

// askedFirst returns the peers that are asked at once to confirm this leader: as many as make a majority with it, in the order in
// which the host prefers them, those that are silent last. All are, while the configuration changes. The slice is valid until the
// next call, and the caller must not change it.
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
	return slices.ContainsFunc(r.followers, func(f follower) bool {
		return replicaNode(f.id) == id && f.read.Term == r.term && f.read.Index >= binary.LittleEndian.Uint64(ctx)
	})
}

// known is what leader and follower know of each other. A follower answers news of a commit with how far its log goes, as it does
// entries, and with many shards two answers in five would be such. If it has said so in this term before, and the leader has
// heard it, the answer is left out: raft would make nothing of it.
type known struct {
	followers []follower
	// told is up to where this follower's leader has said to know that it has the log, and in which term.
	told storage.Position
}

// follower is what a leader knows of a follower.
type follower struct {
	id uint64
	// acked is up to where it has the log, read the number of the last question of a read that it has answered, each with the
	// term that counts for.
	acked, read storage.Position
	// beat is when the last heartbeat was sent, sent the last entries.
	beat time.Time
	sent sentAppend
}

// follower returns what is known of a replica. The pointer is valid until the next call.
func (r *replica) follower(id uint64) *follower {
	i := slices.IndexFunc(r.followers, func(f follower) bool { return f.id == id })
	if i < 0 {
		// Ids of replicas that are gone would pile up.
		r.followers = slices.DeleteFunc(r.followers, func(f follower) bool { return !r.isMember(f.id) })
		r.followers = append(r.followers, follower{id: id})
		i = len(r.followers) - 1
	}
	return &r.followers[i]
}

// noteKnown learns from a message that came.
func (r *replica) noteKnown(m *raftpb.Message, flags byte) {
	at := storage.Position{Index: m.GetIndex(), Term: m.GetTerm()}
	later := func(p *storage.Position) {
		if p.Term < at.Term || p.Term == at.Term && p.Index < at.Index {
			*p = at
		}
	}
	switch {
	case m.GetType() == raftpb.MsgApp && flags&flagKnown != 0:
		r.told = at
	case m.GetType() == raftpb.MsgAppResp && !m.GetReject():
		later(&r.follower(m.GetFrom()).acked)
	case m.GetType() == raftpb.MsgAppResp:
		// Something was lost before what is rejected here.
		r.follower(m.GetFrom()).sent = sentAppend{}
	case m.GetType() == raftpb.MsgHeartbeatResp && len(m.Context) > 0:
		at.Index = binary.LittleEndian.Uint64(m.Context)
		later(&r.follower(m.GetFrom()).read)
	}
}

// knownFlag returns flagKnown for an append that the receiver need not answer.
func (r *replica) knownFlag(m *raftpb.Message) byte {
	if m.GetType() != raftpb.MsgApp || len(m.Entries) > 0 {
		return 0
	}
	if acked := r.follower(m.GetTo()).acked; acked.Term != m.GetTerm() || acked.Index < m.GetIndex() {
		return 0
	}
	return flagKnown
}

// saysNothing says that a message only tells the leader what it has said to know. To another node, which may believe that it leads,
// such an answer says that it does not.
func (r *replica) saysNothing(m *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgAppResp && !m.GetReject() && m.GetTo() == r.lead && m.GetTerm() == r.told.Term && m.GetIndex() <= r.told.Index
}
