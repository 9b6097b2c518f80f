package etcd

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/protocol/rpc"
	"github.com/quorate/quorate/internal/shard"
)

// rights is what this node knows of authentication. It follows the shard, and may be late: that a request is refused which must be does not
// depend on it.
type rights struct {
	s *Server

	// mu orders those who replace now, which is nil until something is known.
	mu  sync.Mutex
	now atomic.Pointer[auth.State]
}

// run follows the shard until the server ends.
func (r *rights) run() {
	ctx := r.s.ctx
	var w *shard.Watch
	defer func() {
		if w != nil {
			w.Close()
		}
	}()
	for ctx.Err() == nil {
		var wait <-chan time.Time
		at, _, err := r.s.where()
		if err == nil {
			if w == nil {
				w = r.s.client.Watch(routeOf(at), auth.Span())
			}
			_, err = r.load(ctx, true)
		}
		var changed <-chan struct{}
		if w != nil {
			changed = w.C
		}
		if err != nil {
			// The replica is being rebuilt, or not yet there.
			wait = time.After(feedRetry)
		}
		select {
		case <-changed:
		case <-wait:
		case <-ctx.Done():
		}
	}
}

// load asks the shard.
func (r *rights) load(ctx context.Context, stale bool) (*auth.State, error) {
	at, _, err := r.s.where()
	if err != nil {
		return nil, err
	}
	b, err := r.s.client.Query(ctx, routeOf(at), shard.Consistency{Stale: stale}, shard.Command{Module: shard.ModuleAuth, Data: auth.EncodeState()})
	if err != nil {
		return nil, err
	}
	st, err := auth.DecodeState(b)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// Answers may overtake each other. That it is disabled raises the revision, that it is enabled does not.
	if was := r.now.Load(); was == nil || st.Revision > was.Revision || st.Revision == was.Revision && st.Enabled {
		r.now.Store(&st)
	}
	return r.now.Load(), nil
}

// identity is who the client of a request is, or why that cannot be said.
type identity struct {
	caller auth.Caller
	err    error
}

type identityKey struct{}

// identified adds to a request's context who its client is, unless nobody needs to know.
func (s *Server) identified(ctx context.Context) context.Context {
	if ctx.Value(identityKey{}) != nil {
		return ctx
	}
	if st := s.rights.now.Load(); st != nil && !st.Enabled {
		return ctx
	}
	id := &identity{}
	id.caller, id.err = s.identify(ctx, false)
	return context.WithValue(ctx, identityKey{}, id)
}

// callerOf returns who the client of a context is: nobody, if authentication was not enabled, as far as the node knew.
func callerOf(ctx context.Context) (auth.Caller, error) {
	if id, ok := ctx.Value(identityKey{}).(*identity); ok {
		return id.caller, id.err
	}
	return auth.Caller{}, nil
}

// identify finds out who a client is, by its token, or else by its certificate. fresh asks the cluster what counts now, which is done anyway
// before a token is refused.
func (s *Server) identify(ctx context.Context, fresh bool) (auth.Caller, error) {
	p := peerOf(ctx)
	token, ok := tokenOf(ctx)
	if !ok && p.name == "" {
		return auth.Caller{}, nil
	}
	st := s.rights.now.Load()
	if fresh || st == nil {
		var err error
		if st, err = s.rights.load(ctx, !fresh); err != nil {
			return auth.Caller{}, err
		}
	}
	if !st.Enabled {
		return auth.Caller{}, nil
	}
	if !ok {
		return auth.Caller{Kind: auth.ByCertificate, User: p.name}, nil
	}
	t, err := s.claimed(p, strings.TrimPrefix(token, s.tokenPrefix()), st.Secret)
	if err != nil {
		if !fresh {
			return s.identify(ctx, true)
		}
		return auth.Caller{}, err
	}
	return auth.Caller{Kind: auth.ByToken, User: t.User, Revision: t.Revision}, nil
}

// tokenOf returns the token of a request: gRPC clients send it by a name of its own, those of the gateway as Authorization.
func tokenOf(ctx context.Context) (string, bool) {
	for _, name := range [...]string{rpctypes.TokenFieldNameGRPC, rpctypes.TokenFieldNameSwagger} {
		if v, ok := rpc.Header(ctx, name); ok {
			return strings.TrimPrefix(v, "Bearer "), true
		}
	}
	return "", false
}

// connected is what is known of a connection. It is attached to the context of each request.
type connected struct {
	// name is the common name in the client's certificate, if there is one and the transport has verified it.
	name string
	// room bounds used.
	room int

	mu sync.Mutex
	// used says when tokens were last used on this connection. Guarded by mu.
	used map[string]time.Time
}

// Tokens that a connection keeps in use. The gateway is one connection for all its clients.
const (
	tokensMax        = 16
	tokensMaxGateway = 4096
)

// fresh says whether a token still counts: until it expires, and after that as long as the connection uses it. etcd's tokens are like that, on
// every connection, and there are clients which log in once.
func (c *connected) fresh(token string, expires, now time.Time, ttl time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	last, ok := c.used[token]
	if !now.Before(expires) && (!ok || now.Sub(last) >= ttl) {
		delete(c.used, token)
		return false
	}
	if !ok && len(c.used) >= c.room {
		for t, last := range c.used {
			if now.Sub(last) >= ttl {
				delete(c.used, t)
			}
		}
		if len(c.used) >= c.room {
			return true
		}
	}
	if c.used == nil {
		c.used = map[string]time.Time{}
	}
	c.used[token] = now
	return true
}

// nowhere stands for the connection of a request that came over none.
var nowhere = &connected{}

func peerOf(ctx context.Context) *connected {
	if c, ok := rpc.Attached(ctx).(*connected); ok {
		return c
	}
	return nowhere
}

// attach notes what is known of a connection. Encryption is a matter of the listener.
func attach(nc net.Conn) any {
	if from, ok := nc.(*conn); ok {
		return &connected{name: commonName(from.Conn), room: tokensMax}
	}
	return &connected{room: tokensMaxGateway}
}

// commonName returns the name in the certificate of a connection's client, empty if there is none that was verified.
func commonName(nc net.Conn) string {
	t, ok := nc.(secured)
	if !ok {
		return ""
	}
	for _, chain := range t.ConnectionState().VerifiedChains {
		if len(chain) > 0 {
			return chain[0].Subject.CommonName
		}
	}
	return ""
}

// boundStream is a stream whose client is known.
type boundStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *boundStream) Context() context.Context { return s.ctx }
