package etcd

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// threeSpaces is a cluster with the spaces default, billing and depot.
type threeSpaces struct{ *shardtest.Client }

// Topology implements shard.Client.
func (c threeSpaces) Topology() *shard.Topology {
	t := *c.Client.Topology()
	t.Spaces = []shard.Space{{Name: "default", Shards: []shard.ID{1}}, {Name: "billing", Shards: []shard.ID{2}}, {Name: "depot", Shards: []shard.ID{3}}}
	return &t
}

// spacesRig has a server with a port for each of them. Billing takes users, depot does not; both are found by path.
type spacesRig struct {
	t    *testing.T
	s    map[string]*Server
	addr map[string]string
	conn map[string]*grpc.ClientConn
	reg  map[string]*prometheus.Registry
}

func newSpacesRig(t *testing.T, cfg Config) *spacesRig {
	t.Helper()
	c := threeSpaces{shardtest.New(t, shardtest.Options{Shards: 3, RealTime: true, Addr: map[string]string{"etcd": "main:1", "etcd/billing": "own:2"}},
		kv.Module{}, auth.New(auth.Config{Uses: Uses}))}
	r := &spacesRig{t: t, s: map[string]*Server{}, addr: map[string]string{}, conn: map[string]*grpc.ClientConn{}, reg: map[string]*prometheus.Registry{}}
	users, paths := map[string]*Server{}, map[string]*Server{}
	for _, space := range []string{"billing", "depot", "default"} {
		cfg := cfg
		cfg.Space, cfg.Users, cfg.BcryptCost = space, users, bcrypt.MinCost
		if cfg.Path = space != "default"; !cfg.Path {
			cfg.Paths = paths
		}
		r.reg[space] = prometheus.NewRegistry()
		s := New(cfg, c, slog.New(slog.DiscardHandler), r.reg[space])
		r.s[space], paths[space] = s, s
	}
	delete(paths, "default")
	users["billing"] = r.s["billing"]
	for space, s := range r.s {
		var lc net.ListenConfig
		ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln) }()
		r.addr[space] = ln.Addr().String()
		if r.conn[space], err = grpc.NewClient(r.addr[space], grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = r.conn[space].Close()
			s.Close()
			if err := <-served; err != nil {
				t.Errorf("serve %s: %v", space, err)
			}
		})
	}
	return r
}

func (r *spacesRig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	r.t.Cleanup(cancel)
	return ctx
}

// enable makes user root of a space, whose password is the space's name, and enables authentication.
func (r *spacesRig) enable(space string) {
	r.t.Helper()
	a := pb.NewAuthClient(r.conn[space])
	for _, do := range []func() error{
		func() error {
			_, err := a.UserAdd(r.ctx(), &pb.AuthUserAddRequest{Name: "root", Password: space})
			return err
		},
		func() error {
			_, err := a.UserGrantRole(r.ctx(), &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"})
			return err
		},
		func() error { _, err := a.AuthEnable(r.ctx(), &pb.AuthEnableRequest{}); return err },
	} {
		if err := do(); err != nil {
			r.t.Fatal(err)
		}
	}
}

// login logs in through a space's port.
func (r *spacesRig) login(door, user, password string) (string, error) {
	a, err := pb.NewAuthClient(r.conn[door]).Authenticate(r.ctx(), &pb.AuthenticateRequest{Name: user, Password: password})
	return a.GetToken(), err
}

// put writes a key through a space's port, with a token unless that is empty, and returns the space that it came to.
func (r *spacesRig) put(door, token string) (string, error) {
	r.t.Helper()
	ctx := r.ctx()
	if token != "" {
		ctx = withToken(ctx, token)
	}
	p, err := pb.NewKVClient(r.conn[door]).Put(ctx, &pb.PutRequest{Key: []byte("k")})
	if err != nil {
		return "", err
	}
	return r.space(p.Header), nil
}

// space says which one answered.
func (r *spacesRig) space(h *pb.ResponseHeader) string {
	for space, s := range r.s {
		if s.header(0).ClusterId == h.GetClusterId() {
			return space
		}
	}
	return "none"
}

// requests counts what a space has answered, by method.
func (r *spacesRig) requests(space string) map[string]float64 {
	r.t.Helper()
	fams, err := r.reg[space].Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range fams {
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if f.GetName() == "quorate_etcd_requests_total" && l.GetName() == "method" {
					out[l.GetValue()] += m.GetCounter().GetValue()
				}
			}
		}
	}
	return out
}

// Whatever a service's method does, it does it in the space of the token, or of the path.
func TestRoute_EveryMethod(t *testing.T) {
	r := newSpacesRig(t, Config{})
	r.enable("billing")
	token, err := r.login("default", "billing/root", "billing")
	if err != nil {
		t.Fatal(err)
	}
	for name, info := range r.s["default"].grpc.GetServiceInfo() {
		to, path, _ := "billing", "", ""
		if rest, ok := strings.CutPrefix(name, spacesPrefix); ok {
			to, path, _ = strings.Cut(rest, "/")
		}
		for _, m := range info.Methods {
			switch {
			case m.IsClientStream || m.IsServerStream:
				continue
			case m.Name == "Authenticate" || m.Name == "AuthDisable" || m.Name == "Lock" || m.Name == "Campaign":
				// They are asked for elsewhere: the first by a name, the others wait.
				continue
			}
			ctx := r.ctx()
			if to == "billing" {
				ctx = withToken(ctx, token)
			}
			before := map[string]map[string]float64{}
			for space := range r.s {
				before[space] = r.requests(space)
			}
			_ = r.conn["default"].Invoke(ctx, "/"+name+"/"+m.Name, &emptypb.Empty{}, &emptypb.Empty{})
			for space := range r.s {
				want := 0.0
				if space == to {
					want = 1
				}
				if got := r.requests(space)[m.Name] - before[space][m.Name]; got != want {
					t.Errorf("/%s/%s (%s): %v requests in %s, want %v", name, m.Name, path, got, space, want)
				}
			}
		}
	}
}

// Streams, locks and elections follow the token too.
func TestRoute_StreamsAndRecipes(t *testing.T) {
	r := newSpacesRig(t, Config{})
	r.enable("billing")
	token, err := r.login("default", "billing/root", "billing")
	if err != nil {
		t.Fatal(err)
	}
	ctx, conn := withToken(r.ctx(), token), r.conn["default"]
	w, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}}); err != nil {
		t.Fatal(err)
	}
	if m, err := w.Recv(); err != nil || !m.Created || r.space(m.Header) != "billing" {
		t.Fatalf("watch: %v %v", m, err)
	}
	if _, err := r.put("default", ""); err != nil {
		t.Fatal(err)
	}
	if space, err := r.put("default", token); err != nil || space != "billing" {
		t.Errorf("put in %s: %v", space, err)
	}
	// The first event is that of the space's own put.
	if m, err := w.Recv(); err != nil || len(m.Events) != 1 || m.Header.Revision != 2 || r.space(m.Header) != "billing" {
		t.Errorf("watch: %v %v", m, err)
	}
	g, err := pb.NewLeaseClient(conn).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 7, TTL: 60})
	if err != nil || r.space(g.Header) != "billing" {
		t.Fatalf("lease: %v %v", g, err)
	}
	ka, err := pb.NewLeaseClient(conn).LeaseKeepAlive(ctx)
	if err == nil {
		err = ka.Send(&pb.LeaseKeepAliveRequest{ID: 7})
	}
	if err != nil {
		t.Fatal(err)
	}
	if m, err := ka.Recv(); err != nil || m.TTL != 60 || r.space(m.Header) != "billing" {
		t.Errorf("renewal: %v %v", m, err)
	}
	for _, rc := range recipes() {
		if rc.method != "Lock" && rc.method != "Campaign" {
			continue
		}
		in, out := message{dynamicpb.NewMessage(rc.in)}, message{dynamicpb.NewMessage(rc.out)}
		in.set("name", []byte(rc.method))
		in.set("lease", int64(7))
		if err := conn.Invoke(ctx, "/"+rc.service+"/"+rc.method, in.Message, out.Message); err != nil {
			t.Fatal(err)
		}
		b, _ := proto.Marshal(out.Get(out.field("header")).Message().Interface())
		h := &pb.ResponseHeader{}
		if err := proto.Unmarshal(b, h); err != nil || r.space(h) != "billing" {
			t.Errorf("%s: %v %v", rc.method, h, err)
		}
	}
	sn, err := pb.NewMaintenanceClient(conn).Snapshot(ctx, &pb.SnapshotRequest{})
	if err == nil {
		_, err = sn.Recv()
	}
	if err != nil {
		t.Errorf("snapshot: %v", err)
	}
}

// What a name of a user means does not depend on which users there are.
func TestRoute_NamesOfUsers(t *testing.T) {
	r := newSpacesRig(t, Config{})
	// Such users are from before billing took users.
	for space, name := range map[string]string{"default": "billing/root", "depot": "depot/root"} {
		hash, err := bcrypt.GenerateFromPassword([]byte("old"), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		at, _, _ := r.s[space].where()
		for _, cmd := range [][]byte{
			auth.EncodeUserAdd(auth.Caller{}, auth.NewUser{Name: name, Hash: hash}), auth.EncodeUserGrant(auth.Caller{}, name, auth.Root),
		} {
			if err := r.s[space].client.Submit(r.ctx(), routeOf(at), shard.Command{Module: shard.ModuleAuth, Data: cmd}).Wait(r.ctx()).Err; err != nil {
				t.Fatal(err)
			}
		}
	}
	for space := range r.s {
		r.enable(space)
	}
	for _, c := range []struct {
		door, user, password, space string
		err                         error
	}{
		{"default", "root", "default", "default", nil},
		{"default", "billing/root", "billing", "billing", nil},
		{"default", "billing/root", "default", "", rpctypes.ErrGRPCAuthFailed},
		{"default", "billing/root", "old", "", rpctypes.ErrGRPCAuthFailed},
		{"default", "billing/", "billing", "", rpctypes.ErrGRPCAuthFailed},
		{"default", "billing/billing/root", "billing", "", rpctypes.ErrGRPCAuthFailed},
		{"default", "/ann", "default", "", rpctypes.ErrGRPCAuthFailed},
		{"default", "Billing/root", "billing", "", rpctypes.ErrGRPCAuthFailed},
		{"default", "default/root", "default", "", rpctypes.ErrGRPCAuthFailed},
		// Depot takes no users there, so that this is a name like any other.
		{"default", "depot/root", "depot", "", rpctypes.ErrGRPCAuthFailed},
		{"depot", "depot/root", "old", "depot", nil},
		{"depot", "depot/root", "depot", "", rpctypes.ErrGRPCAuthFailed},
		// The space's own port: it agrees, or it does not.
		{"billing", "root", "billing", "billing", nil},
		{"billing", "billing/root", "billing", "billing", nil},
	} {
		token, err := r.login(c.door, c.user, c.password)
		if c.err != nil {
			if !same(err, c.err) {
				t.Errorf("%s at %s: %v, want %v", c.user, c.door, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s at %s: %v", c.user, c.door, err)
			continue
		}
		if space, err := r.put(c.door, token); err != nil || space != c.space {
			t.Errorf("%s at %s wrote into %s: %v", c.user, c.door, space, err)
		}
	}
	if _, err := r.login("depot", "billing/root", "billing"); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `the address is that of space "depot"`) {
		t.Errorf("billing's root at depot: %v", err)
	}
	// Nobody comes to have such a name.
	for space := range r.s {
		token, err := r.login(space, "root", space)
		if err != nil {
			t.Fatal(err)
		}
		_, err = pb.NewAuthClient(r.conn[space]).UserAdd(withToken(r.ctx(), token), &pb.AuthUserAddRequest{Name: "billing/ann", Password: "x"})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `users of space "billing"`) {
			t.Errorf("add a user in %s: %v", space, err)
		}
	}
}

// A token is good for its space alone, there by each way that is open, and nowhere ignored.
func TestRoute_Tokens(t *testing.T) {
	r := newSpacesRig(t, Config{})
	r.enable("billing")
	r.enable("depot")
	byMain, err := r.login("default", "billing/root", "billing")
	if err != nil {
		t.Fatal(err)
	}
	byPort, err := r.login("billing", "root", "billing")
	if err != nil {
		t.Fatal(err)
	}
	depot, err := r.login("depot", "root", "depot")
	if err != nil {
		t.Fatal(err)
	}
	_, bare, _ := strings.Cut(strings.TrimPrefix(byMain, spacesPrefix), "/")
	const good, bad = true, false
	for _, c := range []struct {
		door, token string
		ok          bool
	}{
		{"default", byMain, good}, {"default", byPort, good}, {"billing", byMain, good}, {"billing", byPort, good}, {"billing", bare, good},
		{"depot", byMain, bad}, {"depot", byPort, bad}, {"depot", bare, bad},
		// The default space has not enabled authentication: it must not take them for nothing.
		{"default", depot, bad}, {"billing", depot, bad}, {"depot", depot, good},
		{"default", spacesPrefix + "depot/" + bare, bad}, {"depot", spacesPrefix + "depot/" + bare, bad},
		{"default", spacesPrefix + "default/" + bare, bad}, {"default", spacesPrefix + "elsewhere/" + bare, bad}, {"default", spacesPrefix, bad},
		{"default", spacesPrefix + "billing", bad}, {"default", spacesPrefix + "billing/", bad}, {"default", spacesPrefix + "billing/rubbish", bad},
		{"default", byMain + "A", bad}, {"default", spacesPrefix + "billing/" + byMain, bad}, {"default", "Bearer " + byMain, good},
	} {
		space, err := r.put(c.door, c.token)
		want := "billing"
		if c.token == depot {
			want = "depot"
		}
		if c.ok && (err != nil || space != want) || !c.ok && !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
			t.Errorf("%s at %s: %s %v", c.token, c.door, space, err)
		}
	}
	if space, err := r.put("default", ""); err != nil || space != "default" {
		t.Errorf("without a token: %s %v", space, err)
	}
	w, err := pb.NewWatchClient(r.conn["default"]).Watch(withToken(r.ctx(), depot))
	if err == nil {
		_, err = w.Recv()
	}
	if !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("watch: %v", err)
	}
	// A node that has not heard that authentication is enabled looks before it refuses.
	r.s["billing"].rights.now.Store(&auth.State{Revision: 1})
	if space, err := r.put("default", byMain); err != nil || space != "billing" {
		t.Errorf("on a node that has not heard: %s %v", space, err)
	}
	// A login may bring the token that has ended.
	if _, err := pb.NewAuthClient(r.conn["default"]).Authenticate(withToken(r.ctx(), spacesPrefix+"billing/old"), &pb.AuthenticateRequest{Name: "billing/root", Password: "billing"}); err != nil {
		t.Errorf("login with an old token: %v", err)
	}
}

func TestRoute_TokensEnd(t *testing.T) {
	r := newSpacesRig(t, Config{AuthTokenTTL: time.Nanosecond})
	r.enable("billing")
	token, err := r.login("default", "billing/root", "billing")
	if err != nil {
		t.Fatal(err)
	}
	if space, err := r.put("default", token); !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("a token that has expired: %s %v", space, err)
	}
}

// The user's way into a space is closed as long as the space does not know its users; and clients are not told to go on without.
func TestRoute_SpaceWithoutAuthentication(t *testing.T) {
	r := newSpacesRig(t, Config{})
	for _, name := range []string{"billing/root", "biling/root"} {
		if _, err := r.login("default", name, "billing"); status.Code(err) != codes.FailedPrecondition || same(err, rpctypes.ErrGRPCAuthNotEnabled) ||
			!strings.Contains(err.Error(), "has not enabled authentication") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A name without a space is as in etcd.
	if _, err := r.login("default", "root", "x"); !same(err, rpctypes.ErrGRPCAuthNotEnabled) {
		t.Errorf("root: %v", err)
	}
	forged := spacesPrefix + "billing/" + auth.Token{User: "root", Revision: 1 << 40, Expires: time.Now().Add(time.Hour)}.Sign(make([]byte, auth.SecretBytes))
	if _, err := r.put("default", forged); !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("a forged token: %v", err)
	}
	r.enable("billing")
	token, err := r.login("default", "billing/root", "billing")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.put("default", token); err != nil {
		t.Fatal(err)
	}
	if _, err := pb.NewAuthClient(r.conn["default"]).AuthDisable(withToken(r.ctx(), token), &pb.AuthDisableRequest{}); err != nil {
		t.Fatal(err)
	}
	if st, err := r.s["billing"].rights.load(r.ctx(), false); err != nil || st.Enabled {
		t.Fatalf("%v %v", st, err)
	}
	for _, token := range []string{forged, token} {
		if space, err := r.put("default", token); !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
			t.Errorf("disabled again: %s %v", space, err)
		}
	}
}

// get fetches a page, or posts to it, and returns its status and text.
func (r *spacesRig) page(door, method, path, body, token string) (int, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.ctx(), method, "http://"+r.addr[door]+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", token)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	if to := resp.Header.Get("Location"); to != "" {
		return resp.StatusCode, to
	}
	return resp.StatusCode, string(b)
}

func TestRoute_Paths(t *testing.T) {
	r := newSpacesRig(t, Config{Metrics: prometheus.NewRegistry()})
	r.enable("billing")
	cluster := func(space string) string {
		return fmt.Sprintf(`"cluster_id":"%d"`, r.s[space].header(0).ClusterId)
	}
	token, err := r.login("default", "billing/root", "billing")
	if err != nil {
		t.Fatal(err)
	}
	const put = `{"key":"aw==","value":"dg=="}`
	for _, c := range []struct {
		door, method, path, body, token string
		code                            int
		want                            string
	}{
		{"default", "POST", "/v3/kv/put", put, "", 200, cluster("default")},
		{"default", "POST", "/spaces/depot/v3/kv/put", put, "", 200, cluster("depot")},
		{"default", "POST", "/spaces/depot/v3/kv/range", `{"key":"aw=="}`, "", 200, `"value":"dg=="`},
		{"default", "POST", "/spaces/depot/v3/lock/lock", `{"name":"aw=="}`, "", 200, cluster("depot")},
		{"default", "GET", "/spaces/depot/version", "", "", 200, `"etcdserver"`},
		{"default", "GET", "/spaces/depot/health", "", "", 200, `"true"`},
		{"default", "GET", "/spaces/depot/readyz", "", "", 200, "ok"},
		{"default", "GET", "/spaces/depot/livez/serializable_read", "", "", 200, "ok"},
		{"default", "GET", "/spaces/depot/metrics", "", "", 200, "etcd_server"},
		{"depot", "GET", "/spaces/depot/version", "", "", 200, `"etcdserver"`},
		{"depot", "POST", "/spaces/depot/v3/kv/put", put, "", 200, cluster("depot")},
		// Members are below the path too, so that who follows them stays in the space; a port of its own is as good.
		{"default", "POST", "/spaces/depot/v3/cluster/member/list", "{}", "", 200, "http://main:1/spaces/depot"},
		{"default", "POST", "/spaces/billing/v3/cluster/member/list", "{}", token, 200, "http://own:2"},
		// Rights are those of the space.
		{"default", "POST", "/spaces/billing/v3/kv/put", put, "", 400, "user name is empty"},
		{"default", "POST", "/spaces/billing/v3/kv/put", put, token, 200, cluster("billing")},
		{"default", "POST", "/v3/kv/put", put, token, 200, cluster("billing")},
		{"default", "POST", "/spaces/billing/v3/auth/authenticate", `{"name":"billing/root","password":"billing"}`, "", 200, `"token":"spaces/billing/`},
		{"default", "POST", "/spaces/billing/v3/auth/authenticate", `{"name":"root","password":"billing"}`, "", 200, `"token":"spaces/billing/`},
		// What contradicts itself.
		{"default", "POST", "/spaces/depot/v3/kv/put", put, token, 401, "invalid auth token"},
		{"default", "POST", "/spaces/depot/v3/auth/authenticate", `{"name":"billing/root","password":"billing"}`, "", 400, "says space"},
		{"depot", "GET", "/spaces/billing/version", "", "", 404, "no such page"},
		{"default", "GET", "/spaces/elsewhere/version", "", "", 404, "no such page"},
		{"default", "GET", "/spaces/default/version", "", "", 404, "no such page"},
		{"default", "GET", "/spaces/", "", "", 404, "no such page"},
		{"default", "GET", "/spaces/depot/spaces/depot/version", "", "", 404, "no such page"},
		{"default", "GET", "/spaces/depot/nothing", "", "", 404, "no such page"},
		// A path that is cleaned stays below the space.
		{"default", "GET", "/spaces/depot//version", "", "", 0, "/spaces/depot/version"},
		{"default", "GET", "/spaces/depot/v3", "", "", 0, "/spaces/depot/v3/"},
	} {
		code, said := r.page(c.door, c.method, c.path, c.body, c.token)
		if c.code != 0 && code != c.code || !strings.Contains(said, c.want) {
			t.Errorf("%s %s %s: %d %s, want %d %s", c.door, c.method, c.path, code, said, c.code, c.want)
		}
		if code == 404 && (strings.Contains(said, "billing") || strings.Contains(said, "depot")) {
			t.Errorf("%s tells of spaces: %s", c.path, said)
		}
	}
	// gRPC's paths are those that a proxy before it may make of the usual ones.
	p := &pb.PutResponse{}
	if err := r.conn["default"].Invoke(r.ctx(), "/spaces/depot/etcdserverpb.KV/Put", &pb.PutRequest{Key: []byte("k")}, p); err != nil || r.space(p.Header) != "depot" {
		t.Errorf("by a path: %v %v", p, err)
	}
	err = r.conn["default"].Invoke(withToken(r.ctx(), token), "/spaces/depot/etcdserverpb.KV/Put", &pb.PutRequest{Key: []byte("k")}, p)
	if !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("by a path, with the token of another: %v", err)
	}
	if err := r.conn["default"].Invoke(r.ctx(), "/spaces/elsewhere/etcdserverpb.KV/Put", &pb.PutRequest{Key: []byte("k")}, p); status.Code(err) != codes.Unimplemented {
		t.Errorf("by an unknown path: %v", err)
	}
}
