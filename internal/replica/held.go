package replica

import (
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// A leader tells its followers of each commit in a message without entries, and each of them answers it. Under load the next
// entries say the same a moment later, so such news is held back for commitHold, or until anything else goes to that node,
// and dropped when newer news is sent. Without it a write costs half as many messages. A node that hands this one commands
// or asks it for reads waits for commits, so it gets them at once.
//
// raft expects of a network that any message may be late or lost, so that holding or dropping one is always allowed.

// commitHold is how long a follower may lag behind a commit for this reason.
const commitHold = 2 * time.Millisecond

// hurryFor is for how long after a peer forwarded something its commits are not held.
const hurryFor = 100 * time.Millisecond

// heldCommit is one message that is held back.
type heldCommit struct {
	p  *peer
	r  *replica
	m  *raftpb.Message
	by time.Time
}

// holdBack keeps a message that only tells of a commit, instead of an older one to the same replica. It returns false if the
// message must go now.
func (h *Host) holdBack(r *replica, p *peer, m *raftpb.Message) bool {
	if m.GetType() != raftpb.MsgApp {
		return false
	}
	i := slices.IndexFunc(h.held, func(c heldCommit) bool { return c.r == r && c.m.GetTo() == m.GetTo() })
	if len(m.Entries) > 0 || h.now.Before(p.hurryUntil) {
		if i >= 0 {
			h.held = slices.Delete(h.held, i, i+1)
		}
		return false
	}
	if i >= 0 {
		h.held[i].m = m
		return true
	}
	h.held = append(h.held, heldCommit{p, r, m, h.now.Add(commitHold)})
	return true
}

// sendHeld puts what was held long enough into frames, and what would be alone no longer.
func (h *Host) sendHeld() {
	if len(h.held) == 0 {
		return
	}
	h.held = slices.DeleteFunc(h.held, func(c heldCommit) bool {
		if !c.r.leads() || c.r.term != c.m.GetTerm() {
			return true
		}
		if c.p.frame == nil && h.now.Before(c.by) && !h.now.Before(c.p.hurryUntil) {
			return false
		}
		f := h.frameFor(c.p)
		*f = appendRaft(*f, c.r.id, c.m)
		return true
	})
}
