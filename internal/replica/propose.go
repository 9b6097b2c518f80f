package replica

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

	"go.etcd.io/raft/v3"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// proposals is the part of a replica that turns commands into batches, sends each batch to whoever leads, again if it must
// be, and answers when it sees the batch applied here. A batch keeps its number however often it is sent, so that it is
// applied once.
type proposals struct {
	queue      []waiting
	queueBytes int

	nextSeq uint64
	// inflight are the batches whose outcome is open; order lists their numbers, oldest first.
	inflight      map[uint64]*batch
	order         []uint64
	inflightBytes int

	// taking says that the replica is in Host.taking, under that its batch of the round is not answered. See gather.go.
	taking, under bool
	// cutAt is when the last batch was made.
	cutAt time.Time
	// later says that the replica is in Host.later.
	later bool
}

// waiting is a command that is in no batch yet.
type waiting struct {
	cmd      shard.Command
	future   *shard.Future
	deadline time.Time
}

// batch is a number of commands that become one log entry.
type batch struct {
	seq     uint64
	data    []byte
	futures []waitingAnswer
	open    int
	// sent says when, and in which term, it was last sent; shared that raft may keep data.
	sentAt   time.Time
	sentTerm uint64
	sentLead uint64
	// tries counts how often it was sent to that leader.
	tries  int
	shared bool
	// deadline is when the last of those who wait stops; zero if one of them never does.
	deadline time.Time
}

type waitingAnswer struct {
	future   *shard.Future
	deadline time.Time
}

// resendTicks is after how many ticks a forwarded batch is sent again. The wait doubles each time, up to resendDoublings
// times, so that a slow leader does not get ever more of the same. A large one is given the time to go to the leader, and to come back from there as an entry.
const (
	resendTicks     = 5
	resendDoublings = 4
)

// forwardsMax is how many batches a node that does not lead keeps under way to the leader. Few, so that they grow under
// load. To a leader that is far away one more goes each time that forwardEvery has passed: what waits would otherwise wait for a whole way there and back more.
const (
	forwardsMax  = 4
	forwardEvery = 5 * time.Millisecond
)

// Near a backlog of 1 the store would make the whole turn wait, and with it heartbeats and all other shards. From behindFrom
// on nothing is proposed until it is below behindTo. What is left covers what is committed, or waits, already.
const (
	behindFrom = 5.0 / 8
	behindTo   = 4.0 / 8
)

// inflightBatchesMax bounds the open batches of a shard, well below the window of the session table.
const inflightBatchesMax = 4096

func (r *replica) enqueue(p Propose) {
	h := r.host
	if len(r.queue) >= h.cfg.QueueLenMax || r.queueBytes+len(p.Command.Data) > h.cfg.QueueBytesMax {
		h.answer(p.Future, shard.Result{Err: errs.New(errs.Overloaded, "shard %d has %d commands (%d bytes) waiting; try again later", r.id, len(r.queue), r.queueBytes)})
		return
	}
	if h.behind {
		h.answer(p.Future, shard.Result{Err: errs.New(errs.Overloaded, "this node's disk is behind with what was written; try again later, or look at the disk if that goes on")})
		return
	}
	r.queue = append(r.queue, waiting{cmd: p.Command, future: p.Future, deadline: p.Deadline})
	r.queueBytes += len(p.Command.Data)
	r.idleTicks = 0
	r.wake()
	h.markDirty(r)
	if r.leads() {
		r.join()
	}
}

// mayCut says whether another batch may be made now. See gather.go for what a leader waits for.
func (r *replica) mayCut() bool {
	if r.rn == nil || len(r.queue) == 0 || r.lead == raft.None ||
		r.inflightBytes > r.host.cfg.InflightBytesMax || len(r.order) >= inflightBatchesMax {
		return false
	}
	if r.leads() {
		return r.host.open && !r.batchOpen()
	}
	if len(r.order) < forwardsMax || !r.host.now.Before(r.forwardAt()) {
		return true
	}
	if !r.later {
		r.later = true
		r.host.later = append(r.host.later, r)
	}
	return false
}

// forwardLater gives those their turn that have waited for forwardEvery with commands to forward.
func (h *Host) forwardLater() {
	h.later = slices.DeleteFunc(h.later, func(r *replica) bool {
		if h.now.Before(r.forwardAt()) {
			return false
		}
		r.later = false
		h.markDirty(r)
		return true
	})
}

// forwardAt is when a node that does not lead may forward another batch, however many are under way.
func (r *replica) forwardAt() time.Time { return r.cutAt.Add(forwardEvery) }

// cut makes batches of what waits.
func (r *replica) cut() {
	h := r.host
	for r.mayCut() {
		b := &batch{seq: r.nextSeq}
		size, n := 64, 0
		for n < len(r.queue) {
			w := &r.queue[n]
			if s := shard.CommandSize(w.cmd); n > 0 && size+s > h.cfg.BatchBytesMax {
				break
			} else {
				size += s
			}
			n++
		}
		b.data = make([]byte, 0, size)
		b.data = shard.AppendBatchHeader(b.data, shard.BatchHeader{Session: h.cfg.Session, Seq: b.seq, Low: r.low(), Stamp: h.now})
		b.futures = make([]waitingAnswer, 0, n)
		endless := false
		for i := range r.queue[:n] {
			w := &r.queue[i]
			r.queueBytes -= len(w.cmd.Data)
			if !w.deadline.IsZero() && h.now.After(w.deadline) {
				h.answer(w.future, tooLate())
				continue
			}
			b.data = shard.AppendCommand(b.data, w.cmd)
			b.futures = append(b.futures, waitingAnswer{w.future, w.deadline})
			endless = endless || w.deadline.IsZero()
			if w.deadline.After(b.deadline) {
				b.deadline = w.deadline
			}
		}
		if endless {
			b.deadline = time.Time{}
		}
		r.queue = slices.Delete(r.queue, 0, n)
		if len(r.queue) == 0 && cap(r.queue) > 4096 {
			r.queue = nil
		}
		if len(b.futures) == 0 {
			continue
		}
		b.open = len(b.futures)
		r.nextSeq++
		r.inflight[b.seq] = b
		r.order = append(r.order, b.seq)
		r.inflightBytes += len(b.data)
		r.dispatch(b)
		if env.Mutant(env.MutantAckBeforeCommit) {
			for i := range b.futures {
				h.answer(b.futures[i].future, shard.Result{Data: []byte("+OK\r\n"), Revision: r.machine.Revision() + 1})
				b.futures[i].future = nil
			}
		}
		if r.leads() {
			r.joinWith()
			return
		}
		r.cutAt = h.now
	}
}

// TooLate returns the error for a command that could not be proposed within its time.
func (Propose) TooLate() error {
	return errs.New(errs.Unavailable, "the time limit passed before the command could be proposed; it was not applied, try again")
}

func tooLate() shard.Result { return shard.Result{Err: Propose{}.TooLate()} }

// low returns the lowest batch number that may still be sent.
func (r *replica) low() uint64 {
	if len(r.order) == 0 {
		return r.nextSeq
	}
	return r.order[0]
}

// dispatch sends a batch to the leader, which may be this replica.
func (r *replica) dispatch(b *batch) {
	h := r.host
	if b.shared {
		b.data = bytes.Clone(b.data)
	}
	shard.SetLow(b.data, r.low())
	if b.sentTerm != r.term || b.sentLead != r.lead {
		b.tries = 0
	}
	b.tries++
	b.sentAt, b.sentTerm, b.sentLead = h.now, r.term, r.lead
	if r.leads() {
		shard.SetStamp(b.data, r.stamp())
		b.shared = true
		if err := r.rn.Propose(b.data); err != nil {
			b.sentTerm = 0
		}
		h.markDirty(r)
		return
	}
	p := h.peers[replicaNode(r.lead)]
	if p == nil {
		return
	}
	f := h.frameFor(p)
	w := beginMessage(*f, msgForward)
	w.b = binary.AppendUvarint(w.b, uint64(r.id))
	// The deadline travels as what is left of it: clocks of different nodes are not compared.
	left := uint64(0)
	if !b.deadline.IsZero() {
		left = uint64(max(1, b.deadline.Sub(h.now).Milliseconds()))
	}
	w.b = binary.AppendUvarint(w.b, left)
	w.b = codec.AppendBytes(w.b, b.data)
	*f = w.end()
}

// resend sends open batches again: those of an older term when the leader is known, and forwarded ones that may be lost.
func (r *replica) resend(newLeader bool) {
	if r.rn == nil || r.lead == raft.None {
		return
	}
	h := r.host
	for _, seq := range r.order {
		b := r.inflight[seq]
		switch {
		case !b.deadline.IsZero() && h.now.After(b.deadline):
			// Nobody waits any more; the next tick answers.
			continue
		case b.sentTerm != r.term || b.sentLead != r.lead:
		case newLeader || r.leads():
			// Proposed to this leader in this term: it is in its log or in its frame.
			continue
		case h.now.Sub(b.sentAt) < max(h.cfg.Tick*resendTicks, onTheWay(3*len(b.data)))<<min(b.tries-1, resendDoublings):
			continue
		}
		r.dispatch(b)
	}
}

// receiveForward proposes a batch of another node, unless it has waited here until nobody waits for it any more. Its node
// answers that the outcome is unknown, and does not send it again.
func (r *replica) receiveForward(p *peer, rd *codec.Reader, arrived time.Time) {
	h := r.host
	left := rd.Uvarint()
	if waited := h.now.Sub(arrived); left > 0 && !arrived.IsZero() && waited > 0 && uint64(waited.Milliseconds()) > left {
		return
	}
	data := bytes.Clone(rd.Bytes())
	if rd.Bad() {
		return
	}
	if _, batch, err := shard.EntryHeader(data); err != nil || !batch {
		return
	}
	r.wake()
	if r.rn == nil || !r.leads() {
		return
	}
	shard.SetStamp(data, r.stamp())
	p.hurryUntil = h.now.Add(hurryFor)
	// A dropped proposal is sent again by its node, and this one as well.
	if h.behind {
		return
	}
	_ = r.rn.Propose(data)
	h.markDirty(r)
}

// answerApplied completes the futures of this node's batches that were applied.
func (r *replica) answerApplied(out *shard.Applied) {
	for i := range out.Answers {
		a := &out.Answers[i]
		b := r.inflight[a.Seq]
		if b == nil {
			continue
		}
		if a.Pos < 0 {
			// Applied before, and the results were lost with a snapshot.
			r.settle(b, unknown("it was applied, but its result was lost"))
			continue
		}
		if a.Pos < len(b.futures) {
			r.complete(b, a.Pos, a.Result)
		}
	}
	r.dropSettled()
}

func unknown(why string) shard.Result {
	return shard.Result{Err: errs.New(errs.OutcomeUnknown, "outcome unknown: %s", why)}
}

func (r *replica) complete(b *batch, pos int, res shard.Result) {
	w := &b.futures[pos]
	if b.open == 0 {
		return
	}
	if w.future != nil {
		r.host.answer(w.future, res)
		w.future = nil
	}
	if b.open--; b.open == 0 {
		r.forget(b)
		if r.leads() {
			r.host.answered += len(b.futures)
		}
	}
}

// settle answers all open futures of a batch and forgets it.
func (r *replica) settle(b *batch, res shard.Result) {
	for i := range b.futures {
		if f := b.futures[i].future; f != nil {
			r.host.answer(f, res)
			b.futures[i].future = nil
		}
	}
	b.open = 0
	r.forget(b)
}

func (r *replica) forget(b *batch) {
	if r.inflight[b.seq] == b {
		delete(r.inflight, b.seq)
		r.inflightBytes -= len(b.data)
	}
}

func (r *replica) dropSettled() {
	r.order = slices.DeleteFunc(r.order, func(seq uint64) bool { return r.inflight[seq] == nil })
}

// expire answers what has waited past its deadline: refused if it was never sent, unknown if it was.
func (r *replica) expire() {
	h := r.host
	if len(r.queue) > 0 {
		r.queue = slices.DeleteFunc(r.queue, func(w waiting) bool {
			if w.deadline.IsZero() || !h.now.After(w.deadline) {
				return false
			}
			r.queueBytes -= len(w.cmd.Data)
			h.answer(w.future, tooLate())
			return true
		})
	}
	if len(r.order) == 0 {
		return
	}
	for _, seq := range r.order {
		b := r.inflight[seq]
		expired := true
		for i := range b.futures {
			w := &b.futures[i]
			if w.deadline.IsZero() || !h.now.After(w.deadline) {
				expired = expired && w.future == nil && !w.deadline.IsZero()
				continue
			}
			if w.future != nil {
				res := unknown("no answer within the time limit; the command may have been or may still be applied: look before you repeat it")
				if env.Mutant(env.MutantUnknownIsFailed) {
					res = tooLate()
				}
				h.answer(w.future, res)
				w.future = nil
			}
		}
		if expired {
			// Nobody waits any more. It is not sent again; copies under way may still be applied.
			b.open = 0
			r.forget(b)
		}
	}
	r.dropSettled()
}

// settleAfterSnapshot answers for batches that the snapshot's state already holds.
func (r *replica) settleAfterSnapshot() {
	for _, seq := range r.order {
		if r.machine.SessionApplied(r.host.cfg.Session, seq) {
			r.settle(r.inflight[seq], unknown("it was applied, but its result was lost with a snapshot"))
		}
	}
	r.dropSettled()
}

// proposeTimers asks the shard to fire what is due.
func (r *replica) proposeTimers() {
	if !r.leads() {
		return
	}
	h := r.host
	due, ok := r.machine.NextTimer()
	stamp := r.stamp()
	if !ok || due.After(stamp) {
		h.armTimer(r)
		return
	}
	r.wake()
	// If the entry is lost with a change of leader, the next leader proposes its own; if it is merely slow, another one a
	// second later does no harm. A leader that hands over takes none, but may be left with its office.
	wait := time.Second
	if err := r.rn.Propose(shard.TimersEntry(stamp)); err != nil {
		wait = h.cfg.Tick
	}
	r.timerPendingUntil = h.now.Add(wait)
	h.armTimer(r)
	h.markDirty(r)
}

// Abandon answers everything that is still open, when the node stops: refused if it was never sent, unknown if it was. The
// host must not be used afterwards, except for Close.
func (h *Host) Abandon() []Answer {
	h.out.reset()
	gone := shard.Result{Err: errs.New(errs.Unavailable, "this node is stopping; the request was not proposed, use another node")}
	for _, r := range h.order {
		for _, w := range r.queue {
			h.answer(w.future, gone)
		}
		for _, seq := range r.order {
			if b := r.inflight[seq]; b != nil {
				r.settle(b, unknown("this node is stopping"))
			}
		}
		if r.move != nil {
			h.answer(r.move.future, unknown("this node is stopping"))
			r.move = nil
		}
		q := &r.reads
		for _, rd := range slices.Concat(q.waiting, q.asked, q.byRevision) {
			h.answer(rd.Future, gone)
		}
		for _, c := range q.confirmed {
			for _, rd := range c.reads {
				h.answer(rd.Future, gone)
			}
		}
	}
	return h.out.Answers
}
