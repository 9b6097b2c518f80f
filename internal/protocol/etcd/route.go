package etcd

import (
	"context"
	"errors"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/shard"
)

// Which space a call is for is decided here, once, before anything else looks at it: by the connection (port, or name in TLS), by the path,
// and on the main port by the token, which a login as SPACE/USER has got. Whoever says two spaces is refused. What is behind sees only the
// Server of that space.

// spacesPrefix begins the paths that name a space, after their slash, and the tokens that do: no token of package auth has a slash in it.
const spacesPrefix = "spaces/"

// main says that the server has the main port, on which tokens and names of users choose a space.
func (s *Server) main() bool { return s.cfg.Space == shard.DefaultSpace }

// tokenPrefix stands before the space's tokens, so that none is taken for one of another space, whether that looks at tokens or not.
func (s *Server) tokenPrefix() string {
	if s.main() {
		return ""
	}
	return spacesPrefix + s.cfg.Space + "/"
}

// ofToken returns the space that a token names; the default one names none.
func ofToken(token string) (string, bool) {
	rest, ok := strings.CutPrefix(token, spacesPrefix)
	if !ok {
		return "", false
	}
	space, _, _ := strings.Cut(rest, "/")
	return space, true
}

// route returns the server that serves a call to this one, and the call's context there. It fails with rpctypes.ErrGRPCInvalidAuthToken,
// upon which clients log in anew, if the token is of a space that cannot be reached here.
func (s *Server) route(ctx context.Context) (*Server, context.Context, error) {
	if s.cfg.Users == nil {
		// To look for a token costs about a microsecond.
		return s, ctx, nil
	}
	token, _ := tokenOf(ctx)
	space, ok := ofToken(token)
	if !ok || strings.HasPrefix(token, s.tokenPrefix()) && !s.main() {
		return s, ctx, nil
	}
	to := s.cfg.Users[space]
	if to == nil || !s.main() {
		return s, ctx, rpctypes.ErrGRPCInvalidAuthToken
	}
	// The token is the way in: it must be good also where authentication is not enabled, and nobody else would look.
	c, err := to.identify(ctx, false)
	if err == nil && c.Kind != auth.ByToken {
		// This node may not have heard yet that it is enabled.
		c, err = to.identify(ctx, true)
	}
	if err != nil {
		return s, ctx, toGRPC(ctx, err)
	}
	if c.Kind != auth.ByToken {
		return s, ctx, rpctypes.ErrGRPCInvalidAuthToken
	}
	return to, context.WithValue(ctx, identityKey{}, &identity{caller: c}), nil
}

// ofUser splits the name of a user into the space that it names and the user there, if it names one that takes users.
func (s *Server) ofUser(name string) (to *Server, user string) {
	if space, user, ok := strings.Cut(name, "/"); ok && s.cfg.Users[space] != nil {
		return s.cfg.Users[space], user
	}
	return nil, name
}

// refuseName says why no user of any space may have a name, or returns nil: nobody could log in by it.
func (s *Server) refuseName(name string) error {
	to, _ := s.ofUser(name)
	if to == nil {
		return nil
	}
	return status.Errorf(codes.InvalidArgument, "quorate: user names that begin with %q are those of the users of space %q; choose another", to.cfg.Space+"/", to.cfg.Space)
}

// unaryHandler and login have the type of the field grpc.MethodDesc.Handler.
type unaryHandler = func(srv any, ctx context.Context, dec func(any) error, next grpc.UnaryServerInterceptor) (any, error)

// login serves Authenticate by the space that the user's name says. A token that comes along means nothing: it may be the one that ended.
func (s *Server) login(service string, call unaryHandler) unaryHandler {
	return func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		r := &pb.AuthenticateRequest{}
		if err := dec(r); err != nil {
			return nil, err
		}
		name, to := r.Name, s
		if named, user := s.ofUser(name); named != nil {
			if named != s && !s.main() {
				return nil, status.Errorf(codes.InvalidArgument, "quorate: the name of user %q says space %q, and the address is that of space %q; use the one or the other", name, named.cfg.Space, s.cfg.Space)
			}
			to, r.Name = named, user
		}
		resp, err := call(to.impls[service], ctx, func(v any) error {
			proto.Merge(v.(proto.Message), r) //nolint:forcetypeassert // gRPC's messages are
			return nil
		}, to.unary)
		if errors.Is(err, rpctypes.ErrGRPCAuthNotEnabled) && len(s.cfg.Users) > 0 && strings.Contains(name, "/") {
			// Clients take etcd's error as leave to go on without a token: in another space than they were told to.
			err = status.Errorf(codes.FailedPrecondition, "quorate: user %q cannot log in: space %q has not enabled authentication; check the name, or enable it there", name, to.cfg.Space)
		}
		return resp, err
	}
}

// registrar registers the services of a server.
type registrar struct{ s *Server }

// RegisterService implements grpc.ServiceRegistrar. The services of spaces that are found by path are registered beside those of the server.
func (r registrar) RegisterService(d *grpc.ServiceDesc, impl any) {
	r.s.impls[d.ServiceName] = impl
	r.s.grpc.RegisterService(r.s.routed(d, d.ServiceName), nil)
	for name, to := range r.s.cfg.Paths {
		r.s.grpc.RegisterService(to.routed(d, spacesPrefix+name+"/"+d.ServiceName), nil)
	}
}

// routed returns a service whose calls are routed from this server on, under a name.
func (s *Server) routed(d *grpc.ServiceDesc, name string) *grpc.ServiceDesc {
	out := &grpc.ServiceDesc{ServiceName: name, HandlerType: d.HandlerType, Metadata: d.Metadata}
	for _, m := range d.Methods {
		call, full := m.Handler, "/"+d.ServiceName+"/"+m.MethodName
		m.Handler = func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			to, ctx, err := s.route(ctx)
			if err != nil {
				s.m.answered(full, err, 0)
				return nil, err
			}
			return call(to.impls[d.ServiceName], ctx, dec, to.unary)
		}
		if full == pb.Auth_Authenticate_FullMethodName {
			m.Handler = s.login(d.ServiceName, call)
		}
		out.Methods = append(out.Methods, m)
	}
	for _, st := range d.Streams {
		call := st.Handler
		st.Handler = func(_ any, ss grpc.ServerStream) error {
			to, ctx, err := s.route(ss.Context())
			if err != nil {
				return err
			}
			if to != s {
				ss = &boundStream{ss, ctx}
			}
			return to.stream(to.impls[d.ServiceName], ss, call)
		}
		out.Streams = append(out.Streams, st)
	}
	return out
}
