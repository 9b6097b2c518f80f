package coord

import (
	"context"
	"sync"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
)

// Session is a lease that a goroutine keeps alive. What hangs on the lease ends with the session, at the latest a TTL after its process
// has. Its methods may be called from any goroutine.
type Session struct {
	c     *Client
	lease int64
	ttl   time.Duration

	stop  context.CancelFunc
	over  chan struct{}
	ended sync.WaitGroup
}

// NewSession makes a lease with a TTL in seconds and keeps it alive until Close, or until it is over. The session owns a goroutine: it must
// be closed.
func (c *Client) NewSession(ctx context.Context, ttl int64) (*Session, error) {
	asked := c.shard.Now()
	lease, granted, err := c.grant(ctx, ttl)
	if err != nil {
		return nil, err
	}
	s := &Session{c: c, lease: lease, ttl: time.Duration(granted) * time.Second, over: make(chan struct{})}
	alive, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.ended.Add(1)
	go func() {
		defer s.ended.Done()
		defer close(s.over)
		s.keep(alive, asked)
	}()
	return s, nil
}

// Lease returns the session's lease, for Lock, Campaign, and whatever else hangs on it.
func (s *Session) Lease() int64 { return s.lease }

// Over is closed when the lease can no longer be counted on: it has ended, or could not be renewed for its TTL, or the session was closed.
// Whoever holds something by it must stop to act as the holder.
func (s *Session) Over() <-chan struct{} { return s.over }

// keep renews the lease three times in each TTL. since is when the request was sent whose answer is the last to say that the lease is
// whole: the lease may end a TTL later, whatever is under way.
func (s *Session) keep(ctx context.Context, since time.Time) {
	for {
		end := since.Add(s.ttl)
		pause, cancel := context.WithTimeout(ctx, min(s.ttl/3, end.Sub(s.c.shard.Now())))
		<-pause.Done()
		cancel()
		asked := s.c.shard.Now()
		if ctx.Err() != nil || !asked.Before(end) {
			return
		}
		rctx, cancel := context.WithTimeout(ctx, end.Sub(asked))
		left, err := s.c.renew(rctx, s.lease)
		cancel()
		switch {
		case err == nil && left == 0:
			return
		case err == nil:
			since = asked
		}
	}
}

// Close ends the session and its lease, and what hangs on it, and waits for its goroutine. It is no error if the lease is over already.
func (s *Session) Close(ctx context.Context) error {
	s.stop()
	s.ended.Wait()
	err := s.c.Revoke(ctx, s.lease)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

// renew gives a lease its TTL again and returns that, 0 if the lease is over.
func (c *Client) renew(ctx context.Context, lease int64) (int64, error) {
	b, err := c.submit(ctx, kv.EncodeKeepAlive(lease))
	if err != nil {
		return 0, err
	}
	t, err := kv.DecodeTTL(b)
	return t.TTL, err
}

// Revoke ends a lease and deletes what hangs on it. It fails with kv.ErrLeaseNotFound if it is over.
func (c *Client) Revoke(ctx context.Context, lease int64) error {
	_, err := c.submit(ctx, kv.EncodeRevoke(lease))
	return err
}

// submit runs a command of the key space.
func (c *Client) submit(ctx context.Context, data []byte) ([]byte, error) {
	r, err := c.route()
	if err != nil {
		return nil, err
	}
	res := c.shard.Submit(ctx, r, shard.Command{Module: shard.ModuleKV, Data: data}).Wait(ctx)
	return res.Data, res.Err
}
