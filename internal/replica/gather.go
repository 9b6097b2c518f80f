package replica

import (
	"math"
	"slices"
	"time"

	"github.com/quorate/quorate/internal/shard"
)

// A batch costs the nodes about as much as thirty commands do: a sync on each disk, messages, wake-ups, rows of its own. Most
// of that is shared by all shards that have one at the same moment. So a node makes the batches of all shards that it leads
// in rounds: one is under way at a time, and what comes meanwhile makes the next. And when a round of some size has been answered,
// those who were waiting for it will most likely be back in a moment: the next waits for most of them, for twice as long as the
// last one took at most, and for the log to have nothing else to do, since it would write the round no sooner. One or two clients
// never wait, nor do those that come when the moment has passed.
//
// Clients that do not wait for their answers come when they come. A large round is worth a wait all the same, a small one is not:
// after one whose clients were not back soon, some are not waited for, twice as many each time.
//
// A batch that takes longer than slowRound no longer holds up the others: a log may be slow, or one shard have no quorum.

const (
	// gatherMin is how large a round must be for the next to wait for its clients, gatherLarge from when on it always does.
	gatherMin   = 3
	gatherLarge = 8
	// gatherMax bounds the wait.
	gatherMax = 2 * time.Millisecond
	// missesMax bounds how often the number of small rounds that are not waited for doubles.
	missesMax = 6
	// slowRound is how long a node waits for a batch before it makes the next all the same: the followers' logs may well be
	// faster than its own.
	slowRound = 5 * time.Millisecond
	// takingFor is for how long after its last batch a replica counts as taking part: its next commands will come in the middle
	// of a round, and need no turn to be put in line.
	takingFor = 100 * time.Millisecond
)

// Hold says that commands for some shards only wait at present, so that they need not bring a turn until so many have come.
// It holds until the next turn.
type Hold struct {
	Shards   []shard.ID
	Commands int
}

// rounds is the host's part of this.
type rounds struct {
	// taking are the replicas that have a batch in the round or commands for the next, or had a batch lately.
	taking []*replica
	// under counts the replicas whose batch the round waits for; began is when the last of them was made.
	under int
	began time.Time
	// answered counts the commands of the round that were.
	answered int
	// want is how many commands should wait before the next round begins, and until for how long that counts.
	want  int
	until time.Time
	// small says that a small round is waited for; it is worth that if its clients are back by soon. misses counts those in a row
	// that were not, skip the small rounds that are not waited for because of it.
	small        bool
	soon         time.Time
	misses, skip int
	// busy says that the log had something else to do while a small round was waited for: nobody knows then when the clients came.
	busy bool
	// open says that batches may be made now.
	open bool
}

// join makes the replica take part in rounds.
func (r *replica) join() {
	if !r.taking {
		r.taking = true
		r.host.taking = append(r.host.taking, r)
	}
}

// joinWith notes that the replica has made a batch.
func (r *replica) joinWith() {
	h := r.host
	r.join()
	if !r.under {
		r.under = true
		h.under++
	}
	r.cutAt, h.began, h.until = h.now, h.now, time.Time{}
}

// batchOpen says whether the last batch that the replica made is still to be waited for.
func (r *replica) batchOpen() bool {
	return (len(r.order) > 0 || r.unsynced > 0) && r.host.now.Sub(r.cutAt) < slowRound
}

// openRound ends the round if it is over, and begins the next if it is time. Then those that wait for it have their turn.
func (h *Host) openRound() {
	before, waiting := h.under, 0
	for _, r := range h.taking {
		if r.under && !(r.leads() && r.batchOpen()) {
			r.under = false
			h.under--
		}
		if r.leads() {
			waiting += len(r.queue)
		}
	}
	h.open = false
	if h.under > 0 {
		return
	}
	if before > 0 {
		h.gather(waiting)
	}
	h.busy = h.busy || !h.logIdle()
	if h.now.Before(h.until) && (waiting < h.want || !h.logIdle()) {
		return
	}
	h.gathered(waiting)
	h.open = true
	for _, r := range h.taking {
		if len(r.queue) > 0 {
			h.markDirty(r)
		}
	}
}

// logIdle says that everything handed to the log is durable.
func (h *Host) logIdle() bool { return h.logDone == h.logSeq }

// gather is called when a round is over, and sets what the next waits for.
func (h *Host) gather(waiting int) {
	n, took := h.answered, h.now.Sub(h.began)
	h.answered, h.small, h.busy, h.want = 0, false, false, waiting+n-n/8
	switch {
	case n >= gatherLarge:
		h.until = h.now.Add(min(2*took, gatherMax))
	case n < gatherMin:
	case h.skip > 0:
		h.skip--
	default:
		h.small, h.soon = true, h.now.Add(took*3/4)
		h.until = h.now.Add(min(took, gatherMax))
	}
}

// gathered is called when the wait is over, and judges whether it was worth it.
func (h *Host) gathered(waiting int) {
	if !h.small {
		return
	}
	h.small = false
	switch {
	case waiting >= h.want && !h.now.After(h.soon):
		h.misses = 0
	case waiting < h.want || !h.busy:
		h.misses = min(h.misses+1, missesMax)
		h.skip = 1 << h.misses
	}
}

// sayHold tells for which shards commands bring nothing now, and sets the wake-up that ends their wait.
func (h *Host) sayHold() {
	waiting, gathering := 0, h.now.Before(h.until)
	h.taking = slices.DeleteFunc(h.taking, func(r *replica) bool {
		if !r.leads() || !r.under && len(r.queue) == 0 && h.now.Sub(r.cutAt) > takingFor {
			r.taking = false
			return true
		}
		waiting += len(r.queue)
		if end := r.cutAt.Add(slowRound); h.now.Before(end) {
			h.wakeBy(end)
		}
		return false
	})
	if gathering {
		h.wakeBy(h.until)
	}
	switch {
	case h.under > 0 || gathering && !h.logIdle():
		h.out.Hold.Commands = math.MaxInt
	case gathering && waiting < h.want:
		h.out.Hold.Commands = h.want - waiting
	default:
		return
	}
	for _, r := range h.taking {
		h.out.Hold.Shards = append(h.out.Hold.Shards, r.id)
	}
}
