// Package rpc serves gRPC (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md) over HTTP/2 (RFC 9113, RFC 7541) on connections
// that it is given. Services are registered as with grpc.Server, from the same generated code.
//
// It is there because of what a request costs: with 256 clients half of the processor time of a leader went to grpc.Server (ADR 20). Here
// the goroutine that reads a connection takes requests apart as they come, a handler is started when its request is complete, and all answers
// that are ready are written at once.
//
// Memory is bounded: messages by Config.MessageBytesMax, streams by StreamsMax, what is read and not yet taken, with the headers of open calls, by heldMax for
// each connection and by Config.Requests for all, and what waits to be written by outMax and the clients' own windows. Whoever is slow waits, or is refused, alone.
package rpc

import (
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/quorate/quorate/internal/protocol/conns"
)

// Config describes a server. All fields but Requests, Scarce, LargeBytes and Attach must be set.
type Config struct {
	// MessageBytesMax bounds a message of a client's, in bytes. Longer ones are refused with codes.ResourceExhausted.
	MessageBytesMax int
	// StreamsMax bounds the open calls of a connection; more are refused, and clients wait.
	StreamsMax uint32
	// HelloTimeout is how long a client may take to begin.
	HelloTimeout time.Duration
	// PingMin is how often a client may ping while it has a call open; without, once in two hours. Who does so more often is cut off.
	PingMin time.Duration
	// PingEvery is after how long without a word a client is pinged, and PingTimeout how long it may take to answer.
	PingEvery, PingTimeout time.Duration
	// SendTimeout is how long a client may take to make room for 64 KiB of a message, or for what is left of it. A call for which it makes none
	// is ended with codes.Unavailable, and a connection that takes nothing is closed.
	SendTimeout time.Duration
	// Scarce, unless it is nil, says whether there is little room for other large messages, those of LargeBytes or more. Then one has SendTimeout in all
	// to wait for its client.
	Scarce     func() bool
	LargeBytes int
	// RequestTimeout is how long a message of a client's may take to arrive. The call is ended with codes.Unavailable.
	RequestTimeout time.Duration
	// CloseTimeout is how long calls have to end when the server closes; those that have not are cancelled, and end with Stopped if they fail
	// for that.
	CloseTimeout time.Duration
	Stopped      error
	// Workers is how many goroutines wait for calls: a new one for each would grow its stack anew. More calls at a time get more.
	Workers int
	// Requests bounds what all connections hold of requests and of calls that are open, those of other servers that have the same among them. Nil
	// bounds nothing.
	Requests *conns.Budget
	// Attach returns what Attached returns for all calls of a connection.
	Attach func(net.Conn) any
}

// Server serves gRPC. Make it with New, register services, and give it connections.
type Server struct {
	cfg      Config
	methods  map[string]*method
	services map[string]grpc.ServiceInfo
	work     chan *stream
	// held is heldMax, save in tests.
	held int64
	// connected counts calls of Serve, handling the workers and handlers.
	connected, handling sync.WaitGroup
	finish              sync.Once

	// mu guards what follows.
	mu     sync.Mutex
	closed bool
	conns  map[*conn]struct{}
}

// method is a method of a service: unary, or a stream.
type method struct {
	impl   any
	unary  func(srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error)
	stream grpc.StreamHandler
}

// New returns a server without services.
func New(cfg Config) *Server {
	s := &Server{
		cfg: cfg, held: heldMax, methods: map[string]*method{}, services: map[string]grpc.ServiceInfo{}, work: make(chan *stream), conns: map[*conn]struct{}{},
	}
	for range cfg.Workers {
		s.handling.Go(func() {
			for st := range s.work {
				st.handle()
			}
		})
	}
	return s
}

// RegisterService implements grpc.ServiceRegistrar. It must not be called after the first Serve.
func (s *Server) RegisterService(d *grpc.ServiceDesc, impl any) {
	info := grpc.ServiceInfo{Metadata: d.Metadata}
	for _, m := range d.Methods {
		s.methods["/"+d.ServiceName+"/"+m.MethodName] = &method{impl: impl, unary: m.Handler}
		info.Methods = append(info.Methods, grpc.MethodInfo{Name: m.MethodName})
	}
	for _, m := range d.Streams {
		s.methods["/"+d.ServiceName+"/"+m.StreamName] = &method{impl: impl, stream: m.Handler}
		info.Methods = append(info.Methods, grpc.MethodInfo{Name: m.StreamName, IsClientStream: m.ClientStreams, IsServerStream: m.ServerStreams})
	}
	s.services[d.ServiceName] = info
}

// GetServiceInfo returns what is registered, by the services' names, as that of grpc.Server does.
func (s *Server) GetServiceInfo() map[string]grpc.ServiceInfo { return maps.Clone(s.services) }

// Serve serves a connection until it ends or the server is closed, and closes it.
func (s *Server) Serve(nc net.Conn) { s.serve(nc, false) }

// ServeInside is Serve for a connection of this process's own. Its client is not told when the server closes, and has to close it.
func (s *Server) ServeInside(nc net.Conn) { s.serve(nc, true) }

func (s *Server) serve(nc net.Conn, inside bool) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		_ = nc.Close()
		return
	}
	c := newConn(s, nc)
	if inside {
		// What its client sends was counted where that came from.
		c.inside, c.held = true, (*conns.Budget)(nil).Holder()
	}
	s.conns[c] = struct{}{}
	s.connected.Add(1)
	s.mu.Unlock()
	defer s.connected.Done()
	c.run()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// Leave tells all clients to open no more calls, and takes no more connections. Calls that are open go on.
func (s *Server) Leave() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.each((*conn).leave)
}

// each calls f for each connection.
func (s *Server) each(f func(*conn)) {
	s.mu.Lock()
	conns := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, c := range conns {
		f(c)
	}
}

// Close is Leave, waits for the calls that are open, cancels those that take longer than Config.CloseTimeout, ends all connections and waits for
// all handlers.
func (s *Server) Close() {
	s.Leave()
	ended := make(chan struct{})
	go func() {
		s.connected.Wait()
		close(ended)
	}()
	for _, step := range []struct {
		after time.Duration
		then  func(*conn)
	}{{s.cfg.CloseTimeout, (*conn).stop}, {lastWords, func(c *conn) { _ = c.nc.Close() }}} {
		late := time.NewTimer(step.after)
		select {
		case <-ended:
		case <-late.C:
			s.each(step.then)
		}
		late.Stop()
	}
	<-ended
	s.finish.Do(func() { close(s.work) })
	s.handling.Wait()
}

// start runs a call's handler.
func (s *Server) start(st *stream) {
	select {
	case s.work <- st:
	default:
		s.handling.Go(st.handle)
	}
}

// Header returns the first value of a header field of the call that a context belongs to, by its name in lower case.
func Header(ctx context.Context, name string) (string, bool) {
	if st, ok := ctx.Value(streamKey{}).(*stream); ok {
		for _, f := range st.header {
			if f.Name == name {
				return f.Value, true
			}
		}
	}
	return "", false
}

type attachedKey struct{}

// WithAttached returns a context as of a call of a connection that has something attached, for those who call a handler themselves.
func WithAttached(ctx context.Context, attached any) context.Context {
	return context.WithValue(ctx, attachedKey{}, attached)
}

// Attached returns what Config.Attach has returned for the connection of the call that a context belongs to, nil if it belongs to none.
func Attached(ctx context.Context) any {
	if st, ok := ctx.Value(streamKey{}).(*stream); ok {
		return st.c.attached
	}
	return ctx.Value(attachedKey{})
}
