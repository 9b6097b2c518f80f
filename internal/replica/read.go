package replica

import (
	"encoding/binary"
	"slices"
	"time"

	"go.etcd.io/raft/v3"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// readQueue makes linearizable reads by read-index (Raft dissertation, section 6.4): one request to the leader is under
// way per shard at any time, with a context of its own, and all reads that come meanwhile share the next one.
type readQueue struct {
	waiting []Read
	// asked are the reads of the request under way; ctx is its context, 0 if none is.
	asked   []Read
	ctx     uint64
	askedAt time.Time
	again   repeats
	// late says that no request was confirmed for longer than they take, and that one is under way.
	late bool
	// confirmed wait until index is applied.
	confirmed []confirmedRead
	// byRevision wait for a revision to be applied.
	byRevision []Read
	// lease is until when a confirmed leader may answer by itself; see Config.LeaseReads.
	lease time.Time
	// noLease is a term in which this node, its leader, has no lease any more: it told another node to take over.
	noLease uint64
	count   int
}

type confirmedRead struct {
	index uint64
	reads []Read
}

// TooLate returns the error for a read that could not run within its time. Reading again is always safe.
func (rd Read) TooLate() error {
	if rd.Stale {
		return errs.New(errs.Unavailable, "this node did not reach revision %d of shard %d within the time limit; try again, or read through another node", rd.AtLeast, rd.Shard)
	}
	return errs.New(errs.Unavailable, "no majority of shard %d confirmed the read within the time limit; try again, or read through another node", rd.Shard)
}

// readRetryTicks is after how many ticks an unanswered read-index request is repeated. The wait doubles each time. The repetition has the same context, so that
// an answer which was only late, because the leader is far away, is an answer all the same.
const readRetryTicks = 3

func (r *replica) enqueueRead(rd Read) {
	h, q := r.host, &r.reads
	if rd.Stale {
		if err := r.machine.Readable(); err != nil {
			h.answer(rd.Future, shard.Result{Err: err})
			return
		}
		if r.machine.Revision() >= rd.AtLeast {
			h.out.Reads = append(h.out.Reads, ReadyRead{rd.Future, r.machine})
			return
		}
	}
	if q.count >= h.cfg.QueueLenMax {
		h.answer(rd.Future, shard.Result{Err: errs.New(errs.Overloaded, "shard %d has %d reads waiting; try again later", r.id, q.count)})
		return
	}
	q.count++
	r.idleTicks = 0
	if rd.Stale {
		q.byRevision = append(q.byRevision, rd)
		r.wake()
		return
	}
	if env.Mutant(env.MutantStaleReadIndex) && r.rn != nil {
		q.confirmed = append(q.confirmed, confirmedRead{0, []Read{rd}})
		h.markDirty(r)
		return
	}
	if h.cfg.LeaseReads && r.leads() && h.now.Before(q.lease) {
		// No other leader can have been elected, so what is committed here is everything that is committed.
		h.out.Counts.LeaseReads++
		q.confirmed = append(q.confirmed, confirmedRead{r.rn.BasicStatus().GetCommit(), []Read{rd}})
		h.markDirty(r)
		return
	}
	q.waiting = append(q.waiting, rd)
	h.markDirty(r)
	r.wake()
	q.ask(r)
}

// ask makes a read-index request for everything that waits, unless one is under way.
func (q *readQueue) ask(r *replica) {
	if q.ctx != 0 || len(q.waiting) == 0 || r.rn == nil || r.lead == raft.None || r.leads() && !r.knowsCommit() {
		return
	}
	r.host.readCtx++
	q.ctx, q.askedAt, q.again = r.host.readCtx, r.host.now, repeats{at: r.host.now}
	r.host.asking++
	r.host.asks = append(r.host.asks, askedRead{r, q.ctx})
	q.asked, q.waiting = q.waiting, nil
	q.request(r)
}

// request sends the request under way to the leader.
func (q *readQueue) request(r *replica) {
	b := binary.LittleEndian.AppendUint64(nil, r.host.cfg.Session)
	r.rn.ReadIndex(binary.LittleEndian.AppendUint64(b, q.ctx))
	r.host.markDirty(r)
}

// knowsCommit says whether a leader knows of everything that was committed before its term: it does when an entry of its
// own is (Raft paper, section 8). raft sees to that itself, except in a group of one voter.
func (r *replica) knowsCommit() bool {
	if !r.sure {
		t, err := r.view.Term(r.rn.BasicStatus().GetCommit())
		r.sure = err == nil && t == r.term
	}
	return r.sure || env.Mutant(env.MutantReadBeforeTerm)
}

// retry gives up the request under way, which nobody waits for, or which a leader got that is gone.
func (q *readQueue) retry(r *replica) {
	if q.ctx != 0 {
		q.waiting = append(q.asked, q.waiting...)
		q.asked, q.ctx = nil, 0
		r.host.asking--
	}
	if q.ask(r); q.ctx == 0 {
		q.setLate(r, false)
	}
}

// askedRead is a read-index request that was made, and may be answered by now.
type askedRead struct {
	r   *replica
	ctx uint64
}

// readPatience is how long an answer to a read-index request may take, at least, before it is late: reads of other shards wait for it, because it
// brings the turn for them as well.
const readPatience = 5 * time.Millisecond

// readsComing says whether requests are under way and none of them is late.
func (h *Host) readsComing() bool {
	patience := min(max(readPatience, 4*h.readTook), h.cfg.Tick)
	n := 0
	for _, a := range h.asks {
		if q := &a.r.reads; q.ctx == a.ctx {
			if due := q.askedAt.Add(patience); h.now.Before(due) {
				h.wakeBy(due)
				break
			}
			q.setLate(a.r, true)
		}
		n++
	}
	h.asks = slices.Delete(h.asks, 0, n)
	return h.asking > 0 && h.late == 0
}

func (q *readQueue) setLate(r *replica, late bool) {
	switch {
	case late && !q.late:
		r.host.late++
	case !late && q.late:
		r.host.late--
	}
	q.late = late
}

// readConfirmed is called when a quorum has confirmed the leader after a request was made.
func (r *replica) readConfirmed(rs raft.ReadState) {
	q := &r.reads
	if len(rs.RequestCtx) != 16 || binary.LittleEndian.Uint64(rs.RequestCtx) != r.host.cfg.Session ||
		binary.LittleEndian.Uint64(rs.RequestCtx[8:]) != q.ctx || q.ctx == 0 {
		return
	}
	if r.host.cfg.LeaseReads && r.leads() && q.noLease != r.term {
		// A quorum heard from this leader after askedAt, and none of them will vote for another before its election
		// time-out has passed by its own clock.
		span := time.Duration(float64(r.host.cfg.Tick) * float64(r.host.cfg.ElectionTicks-1) * (1 - r.host.cfg.LeaseDrift))
		q.lease = q.askedAt.Add(span)
	}
	q.confirmed = append(q.confirmed, confirmedRead{rs.Index, q.asked})
	q.asked, q.ctx = nil, 0
	r.host.asking--
	r.host.readTook += (r.host.now.Sub(q.askedAt) - r.host.readTook) / 8
	q.setLate(r, false)
	q.ask(r)
}

// serveReads releases the reads whose index is applied. A replica that is being rebuilt keeps them, since the machine
// would refuse them.
func (r *replica) serveReads() {
	h, q := r.host, &r.reads
	if len(q.confirmed)+len(q.byRevision) == 0 || r.machine.Readable() != nil {
		return
	}
	if len(q.confirmed) > 0 {
		applied := r.machine.Applied().Index
		q.confirmed = slices.DeleteFunc(q.confirmed, func(c confirmedRead) bool {
			if c.index > applied {
				return false
			}
			for _, rd := range c.reads {
				h.out.Reads = append(h.out.Reads, ReadyRead{rd.Future, r.machine})
			}
			q.count -= len(c.reads)
			return true
		})
	}
	if len(q.byRevision) > 0 {
		rev := r.machine.Revision()
		q.byRevision = slices.DeleteFunc(q.byRevision, func(rd Read) bool {
			if rev < rd.AtLeast {
				return false
			}
			h.out.Reads = append(h.out.Reads, ReadyRead{rd.Future, r.machine})
			q.count--
			return true
		})
	}
}

// tick drops reads past their deadline, and repeats a request that got no answer.
func (q *readQueue) tick(r *replica) {
	h := r.host
	if q.count == 0 && q.ctx == 0 {
		return
	}
	late := func(rd Read) bool {
		if rd.Deadline.IsZero() || !h.now.After(rd.Deadline) {
			return false
		}
		err := r.machine.Readable()
		if err == nil {
			err = rd.TooLate()
		}
		h.answer(rd.Future, shard.Result{Err: err})
		q.count--
		return true
	}
	q.waiting = slices.DeleteFunc(q.waiting, late)
	q.asked = slices.DeleteFunc(q.asked, late)
	q.byRevision = slices.DeleteFunc(q.byRevision, late)
	// A replica that is being rebuilt releases none, so what nobody waits for would pile up.
	for i := range q.confirmed {
		q.confirmed[i].reads = slices.DeleteFunc(q.confirmed[i].reads, late)
	}
	q.confirmed = slices.DeleteFunc(q.confirmed, func(c confirmedRead) bool { return len(c.reads) == 0 })
	// A request that nobody waits for any more must not count as under way: its answer may be lost.
	switch {
	case q.ctx == 0:
		q.ask(r)
	case len(q.asked) == 0:
		q.retry(r)
	case r.lead != raft.None && q.again.due(h.now, readRetryTicks*h.cfg.Tick, 0):
		q.request(r)
	}
}
