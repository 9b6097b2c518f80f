package replica

import (
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/shard"
)

// What is not confirmed is sent again, since it may be lost. Over a slow network it most likely is not: it is under way, behind what was sent before, and
// a repetition would make the way longer for all that follows. So repetitions wait for as long as a slow link needs, and twice as long each time.
// A link that is made anew, or a node that is started again, has lost what was under way, and is sent it at once.

const (
	// slowLink is the number of bytes a second that a link is trusted to carry before something is sent again.
	slowLink = 4 << 20
	// repeatDoublings is how often the wait for the next repetition doubles.
	repeatDoublings = 3
)

// repeats says when something was sent last, and how often again.
type repeats struct {
	at    time.Time
	tries int
}

// due says whether it is time to send n bytes again, and counts that as done.
func (p *repeats) due(now time.Time, least time.Duration, n int) bool {
	wait := max(least, onTheWay(n))
	if now.Sub(p.at) < wait<<min(p.tries, repeatDoublings) {
		return false
	}
	p.at = now
	p.tries++
	return true
}

// onTheWay is how long n bytes take over a slow link.
func onTheWay(n int) time.Duration { return time.Duration(n) * time.Second / slowLink }

// sentAppend is the last append with entries that was sent to a follower.
type sentAppend struct {
	repeats
	term, after uint64
}

// tooSoon says that an append is the one that was sent last, or begins where that did, and need not be sent yet. raft sends the first append to a follower of which it does not know
// what it has with each answer to a heartbeat, until that one is answered.
func (r *replica) tooSoon(m *raftpb.Message) bool {
	if m.GetType() != raftpb.MsgApp || len(m.Entries) == 0 {
		return false
	}
	s := &r.follower(m.GetTo()).sent
	if s.after != m.GetIndex() || s.term != m.GetTerm() {
		*s = sentAppend{repeats: repeats{at: r.host.now}, term: m.GetTerm(), after: m.GetIndex()}
		return false
	}
	n := 0
	for _, e := range m.Entries {
		n += len(e.Data)
	}
	return !s.due(r.host.now, r.host.cfg.Tick, n)
}

// linkAnew forgets what was under way to a node.
func (h *Host) linkAnew(n shard.NodeID) {
	for _, r := range h.order {
		for i := range r.followers {
			if f := &r.followers[i]; replicaNode(f.id) == n {
				f.sent = sentAppend{}
			}
		}
		for _, o := range r.outTo(n) {
			o.again = repeats{}
			o.lost()
		}
	}
}
