package replica

import (
	"slices"
	"time"

	"go.etcd.io/raft/v3"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// move is a hand-over of leadership (Raft dissertation, section 3.10): the leader takes no proposals, brings the other up to date,
// and tells it to call an election at once. Who has voted within a lease votes all the same, so that the leader has none from then on.
type move struct {
	to     uint64
	future *shard.Future
	// term is the one that this node leads in.
	term uint64
	// by is when it counts as failed. The message that makes the other call its election may still be under way then.
	by time.Time
}

// moveTimeouts is how many election time-outs a hand-over may take; raft takes proposals again after one.
const moveTimeouts = 2

func (h *Host) moveLeader(m MoveLeader) {
	r := h.reps[m.Shard]
	if r == nil {
		h.answer(m.Future, shard.Result{Err: errs.New(errs.NotFound, "no shard %d on this node", m.Shard)})
		return
	}
	to, err := r.mayMove(m.To)
	if err != nil || to == r.rid {
		h.answer(m.Future, shard.Result{Err: err})
		return
	}
	by := h.now.Add(moveTimeouts * time.Duration(h.cfg.ElectionTicks) * h.cfg.Tick)
	if !m.Deadline.IsZero() && m.Deadline.Before(by) {
		by = m.Deadline
	}
	r.move = &move{to: to, future: m.Future, term: r.term, by: by}
	if !env.Mutant(env.MutantLeaseKeptOnMove) {
		// It has none for the rest of the term: the message may be late.
		r.reads.lease, r.reads.noLease = time.Time{}, r.term
	}
	r.wake()
	r.rn.TransferLeader(to)
	h.note(false, r.id, "hands the leadership over", "to", m.To)
	h.markDirty(r)
}

// mayMove returns the replica on a node if this one may hand over to it.
func (r *replica) mayMove(to shard.NodeID) (uint64, error) {
	if r.rn != nil {
		// A message of this turn may have told raft of another leader, to whom it would pass the request on.
		r.observe()
	}
	if !r.leads() {
		return 0, errs.Wrap(errs.Unavailable, shard.ErrNotLeader, "shard %d is led by node %d; ask that one to hand over", r.id, replicaNode(r.lead))
	}
	voters := r.confNow().voters
	i := slices.IndexFunc(voters, func(id uint64) bool { return replicaNode(id) == to })
	switch {
	case len(voters) == 0:
		return 0, errs.New(errs.Unavailable, "the members of shard %d are changing; try again in a moment", r.id)
	case i < 0:
		return 0, errs.Wrap(errs.Invalid, shard.ErrNoVoter, "node %d does not vote in shard %d", to, r.id)
	case voters[i] == r.rid:
	case !r.host.Alive(to):
		return 0, errs.New(errs.Unavailable, "node %d was not heard of lately; hand over to another one", to)
	case r.move != nil:
		return 0, errs.New(errs.Conflict, "shard %d is being handed over to node %d already", r.id, replicaNode(r.move.to))
	}
	return voters[i], nil
}

// moved answers the hand-over under way when it is decided.
func (r *replica) moved() {
	m := r.move
	if m == nil {
		return
	}
	switch {
	case r.lead == m.to, env.Mutant(env.MutantMoveMisjudged) && r.lead != r.rid && r.lead != raft.None:
		r.host.answer(m.future, shard.Result{})
	case r.lead != r.rid && r.lead != raft.None && r.term > m.term+1:
		// There may have been a leader of a term between that this node did not hear of.
		r.host.answer(m.future, shard.Result{Err: errs.New(errs.OutcomeUnknown, "node %d leads shard %d now; whether node %d did in between is not known", replicaNode(r.lead), r.id, replicaNode(m.to))})
	case r.lead != r.rid && r.lead != raft.None:
		r.host.answer(m.future, shard.Result{Err: errs.New(errs.Conflict, "node %d was elected leader of shard %d instead", replicaNode(r.lead), r.id)})
	case r.host.now.After(m.by):
		r.host.answer(m.future, shard.Result{Err: errs.Wrap(errs.OutcomeUnknown, shard.ErrMoveTimeout, "node %d did not take over shard %d in time; look who leads before you try again", replicaNode(m.to), r.id)})
	default:
		return
	}
	r.move = nil
}
