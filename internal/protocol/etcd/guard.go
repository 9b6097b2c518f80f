package etcd

import (
	"context"
	"errors"
	"time"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
)

// What a client asks of the key space goes in a guard, which names the client: package auth lets it pass or not, in one step with what
// it does. What the server needs for itself, such as the feed of watches, has no guard.

// onlyRoot makes a request one that only root may make.
var onlyRoot = auth.Use{Kind: auth.Whole}

// request is a request of kv's: an operation, or what was encoded otherwise.
type request struct {
	op  kv.Op
	raw []byte
	// more are uses beside those that kv tells of.
	more []auth.Use
}

// guarded puts the request into a guard.
func (r request) guarded(c auth.Caller) shard.Command {
	b := auth.AppendGuard(make([]byte, 0, 128), c, shard.ModuleKV, r.more...)
	if r.op != nil {
		b = kv.AppendOp(b, r.op)
	} else {
		b = append(b, r.raw...)
	}
	return shard.Command{Module: shard.ModuleAuth, Data: b}
}

// run runs a command for the client of a context. Nobody has heard of the request when it is refused.
func (s *Server) run(ctx context.Context, encode func(auth.Caller) shard.Command) shard.Result {
	at, _, err := s.where()
	if err != nil {
		return shard.Result{Err: err}
	}
	c, err := callerOf(ctx)
	if err != nil {
		return shard.Result{Err: err}
	}
	res := s.client.Submit(ctx, routeOf(at), encode(c)).Wait(ctx)
	again, err := s.unheard(ctx, &c, res.Err)
	if again {
		return s.client.Submit(ctx, routeOf(at), encode(c)).Wait(ctx)
	}
	res.Err = err
	return res
}

// look runs a query for the client of a context.
func (s *Server) look(ctx context.Context, at shard.Consistency, encode func(auth.Caller) shard.Command) ([]byte, error) {
	where, _, err := s.where()
	if err != nil {
		return nil, err
	}
	c, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	b, err := s.client.Query(ctx, routeOf(where), at, encode(c))
	again, err := s.unheard(ctx, &c, err)
	if again {
		return s.client.Query(ctx, routeOf(where), at, encode(c))
	}
	return b, err
}

// unheard says whether a request was refused with err because this node had not heard that authentication was enabled, and did not look who its
// client is. Then it has looked, and the request can be made again. Otherwise it returns what the client is told: why its token does not count, if
// it has one that does not, or err.
func (s *Server) unheard(ctx context.Context, c *auth.Caller, err error) (again bool, _ error) {
	if c.Kind != auth.Nobody || !errors.Is(err, auth.ErrUserEmpty) {
		return false, err
	}
	now, unknown := s.identify(ctx, true)
	if unknown != nil {
		return false, unknown
	}
	*c = now
	return now.Kind != auth.Nobody, err
}

// submit runs a command of kv's for the client of a context.
func (s *Server) submit(ctx context.Context, cmd []byte) ([]byte, error) {
	res := s.run(ctx, request{raw: cmd}.guarded)
	return res.Data, toGRPC(ctx, res.Err)
}

// query runs a query of kv's for the client of a context, which has the rights for more beside.
func (s *Server) query(ctx context.Context, q []byte, stale bool, more ...auth.Use) ([]byte, error) {
	b, err := s.look(ctx, shard.Consistency{Stale: stale}, request{raw: q, more: more}.guarded)
	return b, toGRPC(ctx, err)
}

// allow returns nil if the client of a context has rights, or else why not.
func (s *Server) allow(ctx context.Context, more ...auth.Use) error {
	_, err := s.look(ctx, shard.Linearizable, func(c auth.Caller) shard.Command {
		return shard.Command{Module: shard.ModuleAuth, Data: auth.AppendGuard(nil, c, shard.ModuleShard, more...)}
	})
	return toGRPC(ctx, err)
}

// statusFor returns how far the key space is, to a client that has the rights for more.
func (s *Server) statusFor(ctx context.Context, stale bool, more ...auth.Use) (kv.Status, error) {
	b, err := s.query(ctx, kv.EncodeStatus(), stale, more...)
	if err != nil {
		return kv.Status{}, err
	}
	now, err := kv.DecodeStatus(b)
	return now, toGRPC(ctx, err)
}

// lastWrites is how long what is done for those who were cut off may take when the server closes.
const lastWrites = time.Second

// behalf is the cluster with the rights of whom a context belongs to.
type behalf struct {
	shard.Client
	s *Server
}

// Submit implements shard.Client. It waits.
func (b behalf) Submit(ctx context.Context, r shard.Route, c shard.Command) *shard.Future {
	if c.Module != shard.ModuleKV {
		return b.Client.Submit(ctx, r, c)
	}
	// A candidate that the server has cut off gives up its key, and has little time for it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.s.ctx, func() { time.AfterFunc(lastWrites, cancel) })()
	f := shard.NewFuture()
	f.Complete(b.s.run(ctx, request{raw: c.Data}.guarded))
	return f
}

// Query implements shard.Client.
func (b behalf) Query(ctx context.Context, r shard.Route, at shard.Consistency, c shard.Command) ([]byte, error) {
	if c.Module != shard.ModuleKV {
		return b.Client.Query(ctx, r, at, c)
	}
	return b.s.look(ctx, at, request{raw: c.Data}.guarded)
}

// Ask implements shard.Client.
func (b behalf) Ask(ctx context.Context, r shard.Route, at shard.Consistency, c shard.Command, then func([]byte, error)) {
	if c.Module != shard.ModuleKV {
		b.Client.Ask(ctx, r, at, c, then)
		return
	}
	then(b.Query(ctx, r, at, c))
}

// Uses tells package auth what requests of the key space do; see auth.Config.
func Uses(c shard.Command, ask func(shard.Command) ([]byte, error), f func(auth.Use) error) error {
	if c.Module != shard.ModuleKV {
		return errs.New(errs.Unsupported, "requests of model %d are not known to etcd's authentication", c.Module)
	}
	return kv.Uses(c.Data, func(q []byte) ([]byte, error) {
		return ask(shard.Command{Module: shard.ModuleKV, Data: q})
	}, func(u kv.Use) error {
		switch u.Kind {
		case kv.UseRead:
			return f(auth.Use{Kind: auth.Read, Key: u.Key, End: u.End})
		case kv.UseWrite:
			return f(auth.Use{Kind: auth.Write, Key: u.Key, End: u.End})
		}
		return f(onlyRoot)
	})
}
