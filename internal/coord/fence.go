package coord

import (
	"context"
	"sync"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
)

// Home returns the route to the key space of a space, which New wants: its first shard.
func Home(c shard.Client, space string) func() (shard.Route, error) {
	return func() (shard.Route, error) {
		sp, ok := c.Topology().Space(space)
		if !ok || len(sp.Shards) == 0 {
			return shard.Route{}, errs.New(errs.Unavailable, "the space %q is not known on this node yet", space)
		}
		return shard.Route{Shard: sp.Shards[0]}, nil
	}
}

// Holds fails with errs.Fenced unless a token is that of a lock's present holder.
func (c *Client) Holds(ctx context.Context, lock []byte, token int64) error {
	r, err := c.route()
	if err != nil {
		return err
	}
	_, err = c.shard.Query(ctx, r, shard.Linearizable, shard.Command{Module: shard.ModuleKV, Data: kv.EncodeFence(lock, token, true)})
	return err
}

// tokensMax bounds the locks that Tokens remembers; past it, it starts anew, which costs questions only.
const tokensMax = 16_384

// Tokens is asked before a write under a token goes to another shard than the lock's own, which would take any number for true and refuse
// all lower ones ever after. It asks the lock's shard about each token that is newer than what it knows. Its methods may be called from
// any goroutine.
type Tokens struct {
	client *Client

	// mu guards newest, the highest token of each lock that was the holder's.
	mu     sync.Mutex
	newest map[string]int64
}

// NewTokens returns one that knows nothing yet.
func NewTokens(c *Client) *Tokens { return &Tokens{client: c, newest: map[string]int64{}} }

// Check fails with errs.Fenced if a token is lower than one that is known to have been that of a lock's holder, or is not known and not that of
// the present one. Whether it still is, the shard decides that is written to.
func (t *Tokens) Check(ctx context.Context, lock []byte, token int64) error {
	t.mu.Lock()
	newest := t.newest[string(lock)]
	t.mu.Unlock()
	switch {
	case newest == token:
		return nil
	case newest > token:
		return errs.New(errs.Fenced, "token %d does not hold the lock %q: token %d has held it since; nothing was done; acquire the lock again, and write under the token that you get", token, lock, newest)
	}
	if err := t.client.Holds(ctx, lock, token); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.newest) >= tokensMax {
		clear(t.newest)
	}
	t.newest[string(lock)] = max(t.newest[string(lock)], token)
	return nil
}
