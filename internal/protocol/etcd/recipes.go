package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/quorate/quorate/internal/coord"
	"github.com/quorate/quorate/internal/kv"
)

// The Lock and Election services. Their messages are in etcd's server module only, which is a whole server: here they are described, a few
// fields each, and made by reflection.

// field describes a field of a message, by number from 1.
type field struct {
	name string
	// kind is "bytes", "int64" or the full name of a message.
	kind string
}

const (
	headerType   = "etcdserverpb.ResponseHeader"
	keyValueType = "mvccpb.KeyValue"
	leaderType   = "v3electionpb.LeaderKey"
)

// recipeFile makes the descriptor of a file with messages.
func recipeFile(name string, messages map[string][]field) protoreflect.FileDescriptor {
	f := &descriptorpb.FileDescriptorProto{
		Name: proto.String("quorate/" + name + ".proto"), Package: proto.String(name), Syntax: proto.String("proto3"),
		Dependency: []string{
			(&pb.ResponseHeader{}).ProtoReflect().Descriptor().ParentFile().Path(), (&mvccpb.KeyValue{}).ProtoReflect().Descriptor().ParentFile().Path(),
		},
	}
	for m, fields := range messages {
		d := &descriptorpb.DescriptorProto{Name: proto.String(m)}
		for i, fd := range fields {
			p := &descriptorpb.FieldDescriptorProto{
				Name: proto.String(fd.name), Number: proto.Int32(int32(i + 1)), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
			}
			switch fd.kind {
			case "bytes":
				p.Type = descriptorpb.FieldDescriptorProto_TYPE_BYTES.Enum()
			case "int64":
				p.Type = descriptorpb.FieldDescriptorProto_TYPE_INT64.Enum()
			default:
				p.Type, p.TypeName = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum(), proto.String("."+fd.kind)
			}
			d.Field = append(d.Field, p)
		}
		f.MessageType = append(f.MessageType, d)
	}
	out, err := protodesc.NewFile(f, protoregistry.GlobalFiles)
	if err != nil {
		panic(err) // The description is constant.
	}
	return out
}

// recipe is one RPC: its messages, and what it does.
type recipe struct {
	service, method string
	// path is where the gateway has it.
	path    string
	in, out protoreflect.MessageDescriptor
	// unary answers with one message; stream, if there is one, with several.
	unary  func(ctx context.Context, s *Server, in message) (message, error)
	stream func(ctx context.Context, s *Server, in message, send func(message) error) error
}

// message is a dynamic message with short ways to its fields.
type message struct{ *dynamicpb.Message }

func (m message) field(name string) protoreflect.FieldDescriptor {
	return m.Descriptor().Fields().ByName(protoreflect.Name(name))
}

func (m message) bytes(name string) []byte { return m.Get(m.field(name)).Bytes() }
func (m message) int(name string) int64    { return m.Get(m.field(name)).Int() }
func (m message) has(name string) bool     { return m.Has(m.field(name)) }

func (m message) set(name string, v any) {
	switch v := v.(type) {
	case []byte:
		m.Set(m.field(name), protoreflect.ValueOfBytes(v))
	case int64:
		m.Set(m.field(name), protoreflect.ValueOfInt64(v))
	case proto.Message:
		// The field is of a dynamic type, whatever its message is.
		to := m.Mutable(m.field(name)).Message()
		b, err := proto.Marshal(v)
		if err == nil {
			err = proto.Unmarshal(b, to.Interface())
		}
		if err != nil {
			panic(err) // What was marshalled a moment ago.
		}
	}
}

func (r *recipe) answer(s *Server, rev int64) message {
	m := message{dynamicpb.NewMessage(r.out)}
	m.set("header", s.header(rev))
	return m
}

// errNoLeaderKey is etcd's.
var errNoLeaderKey = status.Error(codes.InvalidArgument, `"leader" field must be provided`)

// recipes are made once, and only where they are served: the descriptors take a moment.
var recipes = sync.OnceValue(makeRecipes)

func makeRecipes() []*recipe {
	lock := recipeFile("v3lockpb", map[string][]field{
		"LockRequest": {{"name", "bytes"}, {"lease", "int64"}}, "LockResponse": {{"header", headerType}, {"key", "bytes"}},
		"UnlockRequest": {{"key", "bytes"}}, "UnlockResponse": {{"header", headerType}},
	})
	election := recipeFile("v3electionpb", map[string][]field{
		"LeaderKey":       {{"name", "bytes"}, {"key", "bytes"}, {"rev", "int64"}, {"lease", "int64"}},
		"CampaignRequest": {{"name", "bytes"}, {"lease", "int64"}, {"value", "bytes"}}, "CampaignResponse": {{"header", headerType}, {"leader", leaderType}},
		"ProclaimRequest": {{"leader", leaderType}, {"value", "bytes"}}, "ProclaimResponse": {{"header", headerType}},
		"LeaderRequest": {{"name", "bytes"}}, "LeaderResponse": {{"header", headerType}, {"kv", keyValueType}},
		"ResignRequest": {{"leader", leaderType}}, "ResignResponse": {{"header", headerType}},
	})
	var all []*recipe
	add := func(f protoreflect.FileDescriptor, service, method, path, in, out string) *recipe {
		m := f.Messages()
		r := &recipe{
			service: service, method: method, path: path,
			in: m.ByName(protoreflect.Name(in)), out: m.ByName(protoreflect.Name(out)),
		}
		all = append(all, r)
		return r
	}
	r := add(lock, "v3lockpb.Lock", "Lock", "/v3/lock/lock", "LockRequest", "LockResponse")
	r.unary = r.lock
	r = add(lock, "v3lockpb.Lock", "Unlock", "/v3/lock/unlock", "UnlockRequest", "UnlockResponse")
	r.unary = r.unlock
	r = add(election, "v3electionpb.Election", "Campaign", "/v3/election/campaign", "CampaignRequest", "CampaignResponse")
	r.unary = r.campaign
	r = add(election, "v3electionpb.Election", "Proclaim", "/v3/election/proclaim", "ProclaimRequest", "ProclaimResponse")
	r.unary = r.proclaim
	r = add(election, "v3electionpb.Election", "Leader", "/v3/election/leader", "LeaderRequest", "LeaderResponse")
	r.unary = r.leader
	r = add(election, "v3electionpb.Election", "Observe", "/v3/election/observe", "LeaderRequest", "LeaderResponse")
	r.stream = r.observe
	r = add(election, "v3electionpb.Election", "Resign", "/v3/election/resign", "ResignRequest", "ResignResponse")
	r.unary = r.resign
	return all
}

// untilStopped returns a context for what may wait for ever, which ends when the server does as well.
func (s *Server) untilStopped(ctx context.Context) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(s.ctx, cancel)
	return ctx, func() {
		unhook()
		cancel()
	}
}

// orStopped turns an error of a call that had such a context into what its client, whose own context ctx is, expects.
func (s *Server) orStopped(ctx context.Context, err error) error {
	if errors.Is(err, context.Canceled) && ctx.Err() == nil && s.ctx.Err() != nil {
		return rpctypes.ErrGRPCStopped
	}
	return toGRPC(ctx, err)
}

func (r *recipe) lock(ctx context.Context, s *Server, in message) (message, error) {
	waits, done := s.untilStopped(ctx)
	defer done()
	cl, err := s.coord.Lock(waits, in.bytes("name"), in.int("lease"))
	if err != nil {
		return message{}, s.orStopped(ctx, err)
	}
	m := r.answer(s, cl.Revision)
	m.set("key", cl.Key)
	return m, nil
}

func (r *recipe) unlock(ctx context.Context, s *Server, in message) (message, error) {
	if len(in.bytes("key")) == 0 {
		return message{}, rpctypes.ErrGRPCEmptyKey
	}
	rev, err := s.coord.Unlock(ctx, in.bytes("key"))
	return r.answer(s, rev), err
}

func (r *recipe) campaign(ctx context.Context, s *Server, in message) (message, error) {
	waits, done := s.untilStopped(ctx)
	defer done()
	// A candidate that has led with a value before, and has none now, takes it back.
	value := append([]byte{}, in.bytes("value")...)
	cl, err := s.coord.Campaign(waits, in.bytes("name"), in.int("lease"), value)
	if err != nil {
		return message{}, s.orStopped(ctx, err)
	}
	m := r.answer(s, cl.Revision)
	l := message{dynamicpb.NewMessage(m.field("leader").Message())}
	l.set("name", cl.Name)
	l.set("key", cl.Key)
	l.set("rev", cl.Token)
	l.set("lease", cl.Lease)
	m.set("leader", l.Message)
	return m, nil
}

// claim reads a LeaderKey.
func claim(in message) (coord.Claim, error) {
	if !in.has("leader") {
		return coord.Claim{}, errNoLeaderKey
	}
	d, ok := in.Get(in.field("leader")).Message().Interface().(*dynamicpb.Message)
	if !ok {
		return coord.Claim{}, errNoLeaderKey
	}
	l := message{d}
	if len(l.bytes("key")) == 0 {
		return coord.Claim{}, rpctypes.ErrGRPCEmptyKey
	}
	return coord.Claim{Name: l.bytes("name"), Key: l.bytes("key"), Token: l.int("rev"), Lease: l.int("lease")}, nil
}

func (r *recipe) proclaim(ctx context.Context, s *Server, in message) (message, error) {
	cl, err := claim(in)
	if err == nil {
		if cl, err = s.coord.Proclaim(ctx, cl, in.bytes("value")); errors.Is(err, coord.ErrNotLeader) {
			s.m.fenced.Inc()
		}
	}
	return r.answer(s, cl.Revision), err
}

func (r *recipe) resign(ctx context.Context, s *Server, in message) (message, error) {
	cl, err := claim(in)
	var rev int64
	if err == nil {
		rev, err = s.coord.Resign(ctx, cl)
	}
	return r.answer(s, rev), err
}

func (r *recipe) leader(ctx context.Context, s *Server, in message) (message, error) {
	l, rev, err := s.coord.Leader(ctx, in.bytes("name"))
	m := r.answer(s, rev)
	m.set("kv", fromKV(&l))
	return m, err
}

func (r *recipe) observe(ctx context.Context, s *Server, in message, send func(message) error) error {
	return s.coord.Observe(ctx, in.bytes("name"), func(l kv.KeyValue, rev int64) error {
		m := r.answer(s, rev)
		m.set("kv", fromKV(&l))
		return send(m)
	})
}

// registerRecipes registers the services with the server.
func (s *Server) registerRecipes(to grpc.ServiceRegistrar) {
	services := map[string]*grpc.ServiceDesc{}
	for _, r := range recipes() {
		d := services[r.service]
		if d == nil {
			d = &grpc.ServiceDesc{ServiceName: r.service, HandlerType: (*any)(nil)}
			services[r.service] = d
		}
		if r.stream != nil {
			d.Streams = append(d.Streams, grpc.StreamDesc{StreamName: r.method, ServerStreams: true, Handler: func(srv any, st grpc.ServerStream) error {
				s := srv.(*Server) //nolint:forcetypeassert // what is registered below
				in := message{dynamicpb.NewMessage(r.in)}
				if err := st.RecvMsg(in.Message); err != nil {
					return err
				}
				ctx, done := s.untilStopped(st.Context())
				defer done()
				return s.orStopped(st.Context(), r.stream(ctx, s, in, func(m message) error { return st.SendMsg(m.Message) }))
			}})
			continue
		}
		d.Methods = append(d.Methods, grpc.MethodDesc{MethodName: r.method, Handler: func(srv any, ctx context.Context, dec func(any) error, next grpc.UnaryServerInterceptor) (any, error) {
			s := srv.(*Server) //nolint:forcetypeassert // what is registered below
			in := message{dynamicpb.NewMessage(r.in)}
			if err := dec(in.Message); err != nil {
				return nil, err
			}
			call := func(ctx context.Context, _ any) (any, error) {
				m, err := r.unary(ctx, s, in)
				if err != nil {
					return nil, toGRPC(ctx, err)
				}
				return m.Message, nil
			}
			return next(ctx, in.Message, &grpc.UnaryServerInfo{FullMethod: "/" + r.service + "/" + r.method}, call)
		}})
	}
	for _, d := range services {
		to.RegisterService(d, s)
	}
}

// handleRecipes adds the services to the gateway.
func (s *Server) handleRecipes(m *runtime.ServeMux, c *grpc.ClientConn) error {
	toJSON := protojson.MarshalOptions{UseProtoNames: true}
	for _, r := range recipes() {
		err := m.HandlePath(http.MethodPost, r.path, func(w http.ResponseWriter, req *http.Request, _ map[string]string) {
			full := "/" + r.service + "/" + r.method
			// The token is in a header.
			ctx, err := runtime.AnnotateContext(req.Context(), m, req, full)
			fail := func(err error) {
				_, out := runtime.MarshalerForRequest(m, req)
				runtime.HTTPError(ctx, m, out, w, req, err)
			}
			in := dynamicpb.NewMessage(r.in)
			var b []byte
			if err == nil {
				b, err = io.ReadAll(req.Body)
			}
			if err == nil {
				err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, in)
			}
			if err != nil {
				fail(status.Error(codes.InvalidArgument, err.Error()))
				return
			}
			if r.stream == nil {
				out := dynamicpb.NewMessage(r.out)
				if err = c.Invoke(ctx, full, in, out); err == nil {
					b, err = toJSON.Marshal(out)
				}
				if err != nil {
					fail(err)
					return
				}
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write(b)
				return
			}
			st, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, full)
			if err == nil {
				err = errors.Join(st.SendMsg(in), st.CloseSend())
			}
			if err != nil {
				fail(err)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			for {
				out := dynamicpb.NewMessage(r.out)
				if err = st.RecvMsg(out); err == nil {
					b, err = toJSON.Marshal(out)
				}
				line := map[string]json.RawMessage{"result": b}
				if err != nil {
					why, _ := json.Marshal(map[string]any{"code": status.Code(err), "message": status.Convert(err).Message()})
					line = map[string]json.RawMessage{"error": why}
				}
				if werr := json.NewEncoder(w).Encode(line); err != nil || werr != nil {
					return
				}
				_ = http.NewResponseController(w).Flush()
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}
