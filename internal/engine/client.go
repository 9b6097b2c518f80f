package engine

import (
	"context"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/replica"
	"github.com/quorate/quorate/internal/shard"
)

// Topology implements shard.Client.
func (g *Engine) Topology() *shard.Topology { return g.topo.Load() }

// Now implements shard.Client.
func (g *Engine) Now() time.Time { return g.env.Now() }

// Watch implements shard.Client.
func (g *Engine) Watch(r shard.Route, s shard.Span) *shard.Watch { return g.hub.Watch(r.Shard, s) }

func (g *Engine) deadline(ctx context.Context) time.Time {
	if d, ok := ctx.Deadline(); ok {
		return g.env.Now().Add(time.Until(d))
	}
	return g.env.Now().Add(g.cfg.Timeout)
}

func (g *Engine) stopped() error {
	return errs.New(errs.Unavailable, "this node is stopping; use another one")
}

// Submit implements shard.Client.
func (g *Engine) Submit(ctx context.Context, r shard.Route, c shard.Command) *shard.Future {
	if ctx.Err() != nil {
		return shard.Failed(replica.Propose{}.TooLate())
	}
	if g.ctx.Err() != nil {
		return shard.Failed(g.stopped())
	}
	f := shard.NewFuture()
	g.give(replica.Propose{Shard: r.Shard, Command: c, Future: f, Deadline: g.deadline(ctx)})
	return f
}

// MoveLeader makes this node, which must lead a shard, hand it over to another member, and waits until that one leads. It fails with
// shard.ErrNotLeader, shard.ErrNoVoter or shard.ErrMoveTimeout, after which the other may yet take over.
func (g *Engine) MoveLeader(ctx context.Context, id shard.ID, to shard.NodeID) error {
	f := shard.NewFuture()
	g.give(replica.MoveLeader{Shard: id, To: to, Future: f, Deadline: g.deadline(ctx)})
	return f.Wait(ctx).Err
}

// machine returns the shard that a read is for, and whether it may run at once.
func (g *Engine) machine(r shard.Route, at shard.Consistency) (m *shard.Machine, atOnce bool, err error) {
	m = g.machines[r.Shard]
	switch {
	case m == nil:
		return nil, false, errs.New(errs.NotFound, "no shard %d", r.Shard)
	case g.ctx.Err() != nil:
		return nil, false, g.stopped()
	}
	return m, at.Stale && at.AtLeast == 0 || g.cfg.StaleReads, nil
}

func (g *Engine) readAt(ctx context.Context, r shard.Route, at shard.Consistency, f *shard.Future) replica.Read {
	return replica.Read{Shard: r.Shard, Future: f, Deadline: g.deadline(ctx), Stale: at.Stale, AtLeast: at.AtLeast}
}

// Ask implements shard.Client.
func (g *Engine) Ask(ctx context.Context, r shard.Route, at shard.Consistency, q shard.Command, then func([]byte, error)) {
	m, atOnce, err := g.machine(r, at)
	switch {
	case err != nil:
		then(nil, err)
	case atOnce:
		then(m.Query(q))
	default:
		g.give(g.readAt(ctx, r, at, shard.NewCallback(func(res shard.Result) {
			if res.Err != nil {
				then(nil, res.Err)
				return
			}
			then(m.Query(q))
		})))
	}
}

// Query implements shard.Client.
func (g *Engine) Query(ctx context.Context, r shard.Route, at shard.Consistency, q shard.Command) ([]byte, error) {
	m, atOnce, err := g.machine(r, at)
	if err != nil {
		return nil, err
	}
	if !atOnce {
		f := shard.NewFuture()
		rd := g.readAt(ctx, r, at, f)
		g.give(rd)
		select {
		case <-f.Done():
			if res := f.Wait(ctx); res.Err != nil {
				return nil, res.Err
			}
		case <-ctx.Done():
			// Which of the two notices first is chance; the client gets the same answer. How the caller measures its time
			// (context.Canceled) is nothing that a client could act on.
			return nil, rd.TooLate()
		case <-g.done:
			return nil, g.stopped()
		}
	}
	return m.Query(q)
}

// completed is a future that calls a function, and what it is to be completed with.
type completed struct {
	future *shard.Future
	result shard.Result
}

// complete gives an answer out. The caller holds turns.
func (g *Engine) complete(f *shard.Future, res shard.Result) {
	if f.Calls() {
		g.calls = append(g.calls, completed{f, res})
		return
	}
	f.Complete(res)
}

// takeCalls returns what is to be called once turns is free. The caller holds it.
func (g *Engine) takeCalls() []completed {
	calls := g.calls
	g.calls = nil
	return calls
}

// A call that took longer than callSlow, because of the disk or of a large value, makes the next callsApart run in goroutines of their own,
// so that a peer's frames do not wait for such.
const (
	callSlow   = 500 * time.Microsecond
	callsApart = 256
)

// call completes what a turn has left. inline says that the caller has time for one: to wake another goroutine for it costs more than
// most take.
func (g *Engine) call(calls []completed, inline bool) {
	if inline && len(calls) == 1 && g.apart.Load() <= 0 {
		began := time.Now()
		calls[0].future.Complete(calls[0].result)
		if time.Since(began) > callSlow {
			g.apart.Store(callsApart)
		}
		return
	}
	if g.apart.Load() > 0 {
		g.apart.Add(-int64(len(calls)))
	}
	for _, c := range calls {
		g.wg.Go(func() { c.future.Complete(c.result) })
	}
}
