package replica

import (
	"math"
	"slices"
	"time"

	"github.com/quorate/quorate/internal/shard"
)

// A batch costs a node about as much as thirty commands do: a sync on each disk, messages, wake-ups. So a leader has one batch
// of its own under way at a time, and what comes meanwhile makes the next. And when a large batch has been answered, those
// who were waiting for it will most likely be back in a moment: the next batch waits for most of them, for as
// long as the last one took at most. Few clients never wait, nor do those that come when the moment has passed.

const (
	// gatherMin is how large a batch must be for the next to wait for its clients.
	gatherMin = 8
	// gatherMax bounds the wait, which is also no longer than the last batch took.
	gatherMax = 2 * time.Millisecond
)

// Hold says that commands for a shard only wait at present, so that they need not bring a turn until so many have come. It
// holds until the next turn.
type Hold struct {
	Shard    shard.ID
	Commands int
}

// gathering is a replica's part of this.
type gathering struct {
	// want is how large the queue should be before the next batch is made, and until for how long that counts.
	want  int
	until time.Time
	// held says that the replica is in Host.holding.
	held bool
}

// answered notes that a batch of this leader's own is done.
func (r *replica) answered(b *batch) {
	if n := len(b.futures); n >= gatherMin && r.leads() {
		r.gather.want = len(r.queue) + n - n/8
		r.gather.until = r.host.now.Add(min(r.host.now.Sub(b.sentAt), gatherMax))
	}
	r.watchHold()
}

func (r *replica) gathers() bool {
	return len(r.queue) < r.gather.want && r.host.now.Before(r.gather.until)
}

// watchHold makes the host look at the end of each turn whether commands for the shard need to bring one.
func (r *replica) watchHold() {
	if !r.gather.held {
		r.gather.held = true
		r.host.holding = append(r.host.holding, r)
	}
}

// lookAtHeld makes what waited long enough go on.
func (h *Host) lookAtHeld() {
	for _, r := range h.holding {
		if len(r.queue) > 0 {
			h.markDirty(r)
		}
	}
}

// sayHolds tells for which shards commands bring nothing now, and sets the wake-up that ends their wait.
func (h *Host) sayHolds() {
	h.holding = slices.DeleteFunc(h.holding, func(r *replica) bool {
		n, until := math.MaxInt, r.cutAt.Add(slowLog)
		switch {
		case r.rn == nil || !r.leads() || !h.now.Before(until) && !r.gathers():
			r.gather.held = false
			return true
		case len(r.order) > 0 || r.unsynced > 0:
		case r.gathers():
			n, until = r.gather.want-len(r.queue), r.gather.until
		default:
			r.gather.held = false
			return true
		}
		h.out.Holds = append(h.out.Holds, Hold{r.id, n})
		if until.Before(h.out.Wake) {
			h.out.Wake = until
		}
		return false
	})
}
