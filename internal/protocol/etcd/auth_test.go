package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/protocol/rpc"
	"github.com/quorate/quorate/internal/shard"
)

// authRig is a rig with users root and ann, who has role r.
type authRig struct {
	*rig
	a pb.AuthClient
	// root and ann are contexts of their requests.
	root, ann context.Context
}

func newAuthRig(t *testing.T) *authRig {
	r := &authRig{rig: newRig(t, Config{BcryptCost: bcrypt.MinCost})}
	r.a = pb.NewAuthClient(r.conn)
	return r
}

func (r *authRig) must(_ any, err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *authRig) login(user, password string) context.Context {
	r.t.Helper()
	a, err := r.a.Authenticate(r.ctx(), &pb.AuthenticateRequest{Name: user, Password: password})
	if err != nil {
		r.t.Fatal(err)
	}
	return withToken(r.ctx(), a.Token)
}

func withToken(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token)
}

// enable makes the users, gives ann's role permissions on ranges like "rw a-c" or "r k", and enables authentication.
func (r *authRig) enable(perms ...string) {
	r.t.Helper()
	ctx := r.ctx()
	r.must(r.a.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "r"}))
	for _, user := range []string{"root", "ann"} {
		r.must(r.a.UserAdd(ctx, &pb.AuthUserAddRequest{Name: user, Password: user + "'s"}))
	}
	r.must(r.a.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "ann", Role: "r"}))
	r.must(r.a.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}))
	for _, p := range perms {
		r.grant(ctx, p)
	}
	r.must(r.a.AuthEnable(ctx, &pb.AuthEnableRequest{}))
	r.root, r.ann = r.login("root", "root's"), r.login("ann", "ann's")
}

func (r *authRig) grant(ctx context.Context, p string) {
	r.t.Helper()
	types := map[string]authpb.Permission_Type{"r": authpb.Permission_READ, "w": authpb.Permission_WRITE, "rw": authpb.Permission_READWRITE}
	typ, keys, _ := strings.Cut(p, " ")
	key, end, _ := strings.Cut(keys, "-")
	r.must(r.a.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{
		Name: "r", Perm: &authpb.Permission{PermType: types[typ], Key: []byte(key), RangeEnd: []byte(end)},
	}))
}

// same says whether an error is one of etcd's.
func same(got, want error) bool {
	g, w := status.Convert(got), status.Convert(want)
	return g.Code() == w.Code() && g.Message() == w.Message()
}

// who may call an RPC.
type who int

const (
	anybody who = iota
	// users need no rights beside being one.
	users
	// readers and writers need permission for the key "a".
	readers
	writers
	onlyTheRoot
)

// rpcRights says who may call what, by etcd's server, with a request that needs it.
var rpcRights = map[string]struct {
	who who
	req proto.Message
}{
	"KV/Range":       {readers, &pb.RangeRequest{Key: []byte("a")}},
	"KV/RangeStream": {readers, &pb.RangeRequest{Key: []byte("a")}},
	"KV/Put":         {writers, &pb.PutRequest{Key: []byte("a")}},
	"KV/DeleteRange": {writers, &pb.DeleteRangeRequest{Key: []byte("a")}},
	"KV/Txn":         {writers, &pb.TxnRequest{Failure: []*pb.RequestOp{put("a", "")}}},
	"KV/Compact":     {onlyTheRoot, &pb.CompactionRequest{Revision: 1}},

	"Lease/LeaseGrant":      {users, &pb.LeaseGrantRequest{TTL: 60}},
	"Lease/LeaseRevoke":     {users, &pb.LeaseRevokeRequest{ID: 7}},
	"Lease/LeaseTimeToLive": {users, &pb.LeaseTimeToLiveRequest{ID: 7, Keys: true}},
	"Lease/LeaseLeases":     {users, &pb.LeaseLeasesRequest{}},

	"Cluster/MemberList":    {users, &pb.MemberListRequest{}},
	"Cluster/MemberAdd":     {onlyTheRoot, &pb.MemberAddRequest{}},
	"Cluster/MemberRemove":  {onlyTheRoot, &pb.MemberRemoveRequest{}},
	"Cluster/MemberUpdate":  {onlyTheRoot, &pb.MemberUpdateRequest{}},
	"Cluster/MemberPromote": {onlyTheRoot, &pb.MemberPromoteRequest{}},

	"Maintenance/Status":     {users, &pb.StatusRequest{}},
	"Maintenance/Alarm":      {users, &pb.AlarmRequest{}},
	"Maintenance/Defragment": {onlyTheRoot, &pb.DefragmentRequest{}},
	"Maintenance/Hash":       {onlyTheRoot, &pb.HashRequest{}},
	"Maintenance/HashKV":     {onlyTheRoot, &pb.HashKVRequest{}},
	"Maintenance/Snapshot":   {onlyTheRoot, &pb.SnapshotRequest{}},
	"Maintenance/MoveLeader": {onlyTheRoot, &pb.MoveLeaderRequest{}},
	"Maintenance/Downgrade":  {onlyTheRoot, &pb.DowngradeRequest{}},

	"Auth/AuthStatus":           {anybody, &pb.AuthStatusRequest{}},
	"Auth/Authenticate":         {anybody, &pb.AuthenticateRequest{Name: "ann", Password: "ann's"}},
	"Auth/AuthEnable":           {onlyTheRoot, &pb.AuthEnableRequest{}},
	"Auth/UserAdd":              {onlyTheRoot, &pb.AuthUserAddRequest{Name: "x"}},
	"Auth/UserGet":              {onlyTheRoot, &pb.AuthUserGetRequest{Name: "root"}},
	"Auth/UserList":             {onlyTheRoot, &pb.AuthUserListRequest{}},
	"Auth/UserChangePassword":   {onlyTheRoot, &pb.AuthUserChangePasswordRequest{Name: "x", Password: "x"}},
	"Auth/RoleAdd":              {onlyTheRoot, &pb.AuthRoleAddRequest{Name: "x"}},
	"Auth/RoleGet":              {onlyTheRoot, &pb.AuthRoleGetRequest{Role: "x"}},
	"Auth/RoleList":             {onlyTheRoot, &pb.AuthRoleListRequest{}},
	"Auth/RoleGrantPermission":  {onlyTheRoot, &pb.AuthRoleGrantPermissionRequest{Name: "x", Perm: &authpb.Permission{Key: []byte("a")}}},
	"Auth/RoleRevokePermission": {onlyTheRoot, &pb.AuthRoleRevokePermissionRequest{Role: "x", Key: []byte("a")}},
	"Auth/UserGrantRole":        {onlyTheRoot, &pb.AuthUserGrantRoleRequest{User: "x", Role: "x"}},
	"Auth/UserRevokeRole":       {onlyTheRoot, &pb.AuthUserRevokeRoleRequest{Name: "x", Role: "x"}},
	"Auth/RoleDelete":           {onlyTheRoot, &pb.AuthRoleDeleteRequest{Role: "x"}},
	"Auth/UserDelete":           {onlyTheRoot, &pb.AuthUserDeleteRequest{Name: "x"}},
	"Auth/AuthDisable":          {onlyTheRoot, &pb.AuthDisableRequest{}},

	// They have tests of their own.
	"Watch/Watch": {}, "Lease/LeaseKeepAlive": {}, "Lock/Lock": {}, "Lock/Unlock": {},
	"Election/Campaign": {}, "Election/Proclaim": {}, "Election/Leader": {}, "Election/Observe": {}, "Election/Resign": {},
}

// call calls an RPC whatever its messages are, and reads its answer to the end.
func (r *authRig) call(ctx context.Context, rpc string, req proto.Message) error {
	st, err := r.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/etcdserverpb."+rpc)
	if err == nil {
		err = errors.Join(st.SendMsg(req), st.CloseSend())
	}
	for err == nil {
		err = st.RecvMsg(&pb.AuthEnableResponse{})
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Each RPC is for whom it is for in etcd, and none was forgotten.
func TestAuth_WhoMayCallWhat(t *testing.T) {
	for _, c := range calls {
		name := c.service + "/" + c.method
		rights, ok := rpcRights[name]
		if !ok {
			t.Errorf("who may call %s?", name)
		}
		if rights.req == nil {
			continue
		}
		t.Run(c.method, func(t *testing.T) {
			t.Parallel()
			r := newAuthRig(t)
			r.enable("rw b")
			refused := func(as string, ctx context.Context, want error) {
				t.Helper()
				err := r.call(ctx, name, rights.req)
				if denied := isAuth(err); denied != (want != nil) || denied && !same(err, want) {
					t.Errorf("%s: %v, want %v", as, err, want)
				}
			}
			nobody, ann := rpctypes.ErrGRPCUserEmpty, rpctypes.ErrGRPCPermissionDenied
			switch rights.who {
			case anybody:
				nobody, ann = nil, nil
			case users:
				ann = nil
			}
			refused("nobody", r.ctx(), nobody)
			bad := rpctypes.ErrGRPCInvalidAuthToken
			if c.method == "Authenticate" {
				bad = nil
			}
			refused("a bad token", withToken(r.ctx(), "x"), bad)
			refused("ann", r.ann, ann)
			switch rights.who {
			case readers:
				r.grant(r.root, "w a")
				refused("ann who may write", r.ann, ann)
				r.grant(r.root, "r a")
				refused("ann who may read", r.ann, nil)
			case writers:
				r.grant(r.root, "r a")
				refused("ann who may read", r.ann, ann)
				r.grant(r.root, "w a")
				refused("ann who may write", r.ann, nil)
			}
			refused("root", r.root, nil)
		})
	}
}

func TestAuth_ErrorsAreEtcds(t *testing.T) {
	r := newAuthRig(t)
	r.root = r.ctx()
	login := func(user, password string) error {
		_, err := r.a.Authenticate(r.root, &pb.AuthenticateRequest{Name: user, Password: password})
		return err
	}
	add := func(q *pb.AuthUserAddRequest) error { _, err := r.a.UserAdd(r.root, q); return err }
	perm := func(p *authpb.Permission) error {
		_, err := r.a.RoleGrantPermission(r.root, &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: p})
		return err
	}
	enable := func() error { _, err := r.a.AuthEnable(r.root, &pb.AuthEnableRequest{}); return err }
	none := func(_ any, err error) error { return err }
	hashed, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	costly := strings.Replace(string(hashed), "$04$", "$31$", 1)
	for i, c := range []struct {
		do   func() error
		want error
	}{
		{enable, rpctypes.ErrGRPCRootUserNotExist},
		{func() error { return login("root", "") }, rpctypes.ErrGRPCAuthNotEnabled},
		{func() error { return add(&pb.AuthUserAddRequest{}) }, rpctypes.ErrGRPCUserEmpty},
		{func() error { return add(&pb.AuthUserAddRequest{Name: "root", Password: "root's"}) }, nil},
		{func() error { return add(&pb.AuthUserAddRequest{Name: "root", Password: "root's"}) }, rpctypes.ErrGRPCUserAlreadyExist},
		{enable, rpctypes.ErrGRPCRootRoleNotExist},
		{func() error { return add(&pb.AuthUserAddRequest{Name: "long", Password: strings.Repeat("x", 73)}) }, errPasswordTooLong},
		{func() error {
			return add(&pb.AuthUserAddRequest{Name: "made", HashedPassword: base64.StdEncoding.EncodeToString(hashed)})
		}, nil},
		{func() error {
			return add(&pb.AuthUserAddRequest{Name: "cert", Options: &authpb.UserAddOptions{NoPassword: true}})
		}, nil},
		{func() error {
			return none(r.a.UserGrantRole(r.root, &pb.AuthUserGrantRoleRequest{User: "root", Role: "x"}))
		}, rpctypes.ErrGRPCRoleNotFound},
		{func() error {
			return none(r.a.UserGrantRole(r.root, &pb.AuthUserGrantRoleRequest{User: "x", Role: "x"}))
		}, rpctypes.ErrGRPCUserNotFound},
		{func() error {
			return none(r.a.UserGrantRole(r.root, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}))
		}, nil},
		{func() error { return none(r.a.UserGet(r.root, &pb.AuthUserGetRequest{Name: "x"})) }, rpctypes.ErrGRPCUserNotFound},
		{func() error {
			return none(r.a.UserDelete(r.root, &pb.AuthUserDeleteRequest{Name: "x"}))
		}, rpctypes.ErrGRPCUserNotFound},
		{func() error {
			return none(r.a.UserChangePassword(r.root, &pb.AuthUserChangePasswordRequest{Name: "x"}))
		}, rpctypes.ErrGRPCUserNotFound},
		{func() error {
			return none(r.a.UserRevokeRole(r.root, &pb.AuthUserRevokeRoleRequest{Name: "root", Role: "x"}))
		}, rpctypes.ErrGRPCRoleNotGranted},
		{func() error { return none(r.a.RoleAdd(r.root, &pb.AuthRoleAddRequest{})) }, rpctypes.ErrGRPCRoleEmpty},
		{func() error { return none(r.a.RoleAdd(r.root, &pb.AuthRoleAddRequest{Name: "r"})) }, nil},
		{func() error { return none(r.a.RoleAdd(r.root, &pb.AuthRoleAddRequest{Name: "r"})) }, rpctypes.ErrGRPCRoleAlreadyExist},
		{func() error { return none(r.a.RoleGet(r.root, &pb.AuthRoleGetRequest{Role: "x"})) }, rpctypes.ErrGRPCRoleNotFound},
		{func() error {
			return none(r.a.RoleDelete(r.root, &pb.AuthRoleDeleteRequest{Role: "x"}))
		}, rpctypes.ErrGRPCRoleNotFound},
		{func() error { return perm(nil) }, rpctypes.ErrGRPCPermissionNotGiven},
		{func() error { return perm(&authpb.Permission{}) }, rpctypes.ErrGRPCInvalidAuthMgmt},
		{func() error { return perm(&authpb.Permission{Key: []byte("b"), RangeEnd: []byte("a")}) }, rpctypes.ErrGRPCInvalidAuthMgmt},
		{func() error { return perm(&authpb.Permission{Key: []byte("b"), PermType: 9}) }, rpctypes.ErrGRPCInvalidAuthMgmt},
		{func() error {
			return none(r.a.RoleRevokePermission(r.root, &pb.AuthRoleRevokePermissionRequest{Role: "r", Key: []byte("a")}))
		}, rpctypes.ErrGRPCPermissionNotGranted},
		{enable, nil},
		{func() error { return login("x", "x") }, rpctypes.ErrGRPCAuthFailed},
		{func() error { return login("root", "x") }, rpctypes.ErrGRPCAuthFailed},
		{func() error { return login("cert", "") }, errNoPassword},
		{func() error { return login("made", "secret") }, nil},
		{func() error { r.root = r.login("root", "root's"); return nil }, nil},
		{func() error {
			return none(r.a.UserDelete(r.root, &pb.AuthUserDeleteRequest{Name: "root"}))
		}, rpctypes.ErrGRPCInvalidAuthMgmt},
		{func() error {
			return none(r.a.UserRevokeRole(r.root, &pb.AuthUserRevokeRoleRequest{Name: "root", Role: "root"}))
		}, rpctypes.ErrGRPCInvalidAuthMgmt},
		{func() error {
			return none(r.a.RoleDelete(r.root, &pb.AuthRoleDeleteRequest{Role: "root"}))
		}, rpctypes.ErrGRPCInvalidAuthMgmt},
	} {
		if err := c.do(); !same(err, c.want) {
			t.Errorf("%d: %v, want %v", i, err, c.want)
		}
	}
	for _, h := range []string{"?", base64.StdEncoding.EncodeToString([]byte("x")), base64.StdEncoding.EncodeToString([]byte(costly))} {
		if _, err := r.a.UserChangePassword(r.root, &pb.AuthUserChangePasswordRequest{Name: "made", HashedPassword: h}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("hashed password %q: %v", h, err)
		}
	}
	// Without a password there is none that fits.
	r.must(r.a.UserChangePassword(r.root, &pb.AuthUserChangePasswordRequest{Name: "made"}))
	if err := login("made", ""); !same(err, rpctypes.ErrGRPCAuthFailed) {
		t.Errorf("login without a password: %v", err)
	}
	st, err := r.a.AuthStatus(r.root, &pb.AuthStatusRequest{})
	if err != nil || !st.Enabled || st.AuthRevision != 7 || st.Header.Revision != 1 {
		t.Errorf("status: %v %v", st, err)
	}
	list, err := r.a.UserList(r.root, &pb.AuthUserListRequest{})
	if err != nil || fmt.Sprint(list.Users) != "[cert made root]" {
		t.Errorf("users: %v %v", list, err)
	}
	get, err := r.a.UserGet(r.root, &pb.AuthUserGetRequest{Name: "root"})
	if err != nil || fmt.Sprint(get.Roles) != "[root]" {
		t.Errorf("roles of root: %v %v", get, err)
	}
	if err := perm(&authpb.Permission{PermType: authpb.Permission_WRITE, Key: []byte("a"), RangeEnd: []byte{0}}); err != nil {
		t.Error(err)
	}
	role, err := r.a.RoleGet(r.root, &pb.AuthRoleGetRequest{Role: "r"})
	if err != nil || len(role.Perm) != 1 || role.Perm[0].PermType != authpb.Permission_WRITE || string(role.Perm[0].RangeEnd) != "\x00" {
		t.Errorf("role: %v %v", role, err)
	}
	roles, err := r.a.RoleList(r.root, &pb.AuthRoleListRequest{})
	if err != nil || fmt.Sprint(roles.Roles) != "[r]" {
		t.Errorf("roles: %v %v", roles, err)
	}
}

// All fields of all requests are looked at: what they read, write, compare with, and hang on a lease.
func TestAuth_EveryFieldOfARequest(t *testing.T) {
	r := newAuthRig(t)
	r.enable("rw a-c", "w x", "r y", "rw m")
	lease := func(id int64, ctx context.Context, keys ...string) {
		t.Helper()
		r.must(r.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: 600}))
		for _, k := range keys {
			r.must(r.kv.Put(ctx, &pb.PutRequest{Key: []byte(k), Lease: id}))
		}
	}
	lease(1, r.root, "z")
	lease(2, r.ann, "m")
	rng := func(key, end string) error {
		_, err := r.kv.Range(r.ann, &pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end)})
		return err
	}
	pt := func(q *pb.PutRequest) error { _, err := r.kv.Put(r.ann, q); return err }
	dl := func(q *pb.DeleteRangeRequest) error { _, err := r.kv.DeleteRange(r.ann, q); return err }
	tx := func(q *pb.TxnRequest) error { _, err := r.kv.Txn(r.ann, q); return err }
	read := func(key string) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}
	}
	k := func(s string) []byte { return []byte(s) }
	for i, c := range []struct {
		got error
		ok  bool
	}{
		{rng("a", "c"), true}, {rng("a", "d"), false}, {rng("\x00", "\x00"), false}, {rng("x", ""), false}, {rng("y", ""), true},
		{pt(&pb.PutRequest{Key: k("x")}), true}, {pt(&pb.PutRequest{Key: k("x"), PrevKv: true}), false}, {pt(&pb.PutRequest{Key: k("y")}), false},
		{pt(&pb.PutRequest{Key: k("a"), PrevKv: true}), true},
		{pt(&pb.PutRequest{Key: k("a"), Lease: 1}), false}, {pt(&pb.PutRequest{Key: k("a"), Lease: 2}), true},
		{dl(&pb.DeleteRangeRequest{Key: k("x")}), true}, {dl(&pb.DeleteRangeRequest{Key: k("x"), PrevKv: true}), false},
		{dl(&pb.DeleteRangeRequest{Key: k("a"), RangeEnd: k("d")}), false}, {dl(&pb.DeleteRangeRequest{Key: k("a"), RangeEnd: k("c"), PrevKv: true}), true},
		{tx(&pb.TxnRequest{Compare: []*pb.Compare{{Key: k("x")}}}), false}, {tx(&pb.TxnRequest{Compare: []*pb.Compare{{Key: k("y")}}}), true},
		{tx(&pb.TxnRequest{Compare: []*pb.Compare{{Key: k("a"), RangeEnd: k("d")}}}), false},
		{tx(&pb.TxnRequest{Success: []*pb.RequestOp{put("a", "")}, Failure: []*pb.RequestOp{put("y", "")}}), false},
		{tx(&pb.TxnRequest{Failure: []*pb.RequestOp{read("x")}}), false},
		{tx(&pb.TxnRequest{Success: []*pb.RequestOp{nested([]*pb.RequestOp{read("y")}, []*pb.RequestOp{put("y", "")})}}), false},
		{tx(&pb.TxnRequest{Success: []*pb.RequestOp{nested([]*pb.RequestOp{read("y")}, []*pb.RequestOp{del("x", "")})}}), true},
	} {
		if is := same(c.got, rpctypes.ErrGRPCPermissionDenied); is == c.ok || c.ok && c.got != nil {
			t.Errorf("%d: %v, want it %v", i, c.got, c.ok)
		}
	}
	for _, l := range []struct {
		id  int64
		err error
	}{{1, rpctypes.ErrGRPCPermissionDenied}, {2, nil}} {
		if _, err := r.lease.LeaseTimeToLive(r.ann, &pb.LeaseTimeToLiveRequest{ID: l.id, Keys: true}); !same(err, l.err) {
			t.Errorf("keys of lease %d: %v", l.id, err)
		}
		if _, err := r.lease.LeaseTimeToLive(r.ann, &pb.LeaseTimeToLiveRequest{ID: l.id}); err != nil {
			t.Errorf("time of lease %d: %v", l.id, err)
		}
		st, err := r.lease.LeaseKeepAlive(r.ann)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Send(&pb.LeaseKeepAliveRequest{ID: l.id}); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Recv(); !same(err, l.err) {
			t.Errorf("renewal of lease %d: %v", l.id, err)
		}
		if _, err := r.lease.LeaseRevoke(r.ann, &pb.LeaseRevokeRequest{ID: l.id}); !same(err, l.err) {
			t.Errorf("end of lease %d: %v", l.id, err)
		}
	}
	if _, err := r.lease.LeaseLeases(r.ann, &pb.LeaseLeasesRequest{}); !same(err, rpctypes.ErrGRPCPermissionDenied) {
		t.Errorf("leases: %v", err)
	}
	// A renewal of somebody who did not say who.
	st, err := r.lease.LeaseKeepAlive(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	_ = st.Send(&pb.LeaseKeepAliveRequest{ID: 1})
	if _, err := st.Recv(); !same(err, rpctypes.ErrGRPCUserEmpty) {
		t.Errorf("renewal by nobody: %v", err)
	}
}

func TestAuth_WatchesSayWhyNot(t *testing.T) {
	r := newAuthRig(t)
	r.enable("r a-c")
	create := func(ctx context.Context, key, end string) *pb.WatchResponse {
		t.Helper()
		st, err := r.watch.Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte(key), RangeEnd: []byte(end)}}}); err != nil {
			t.Fatal(err)
		}
		a, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, c := range []struct {
		ctx      context.Context
		key, end string
		why      error
	}{
		{r.root, "", "\x00", nil}, {r.ann, "a", "c", nil}, {r.ann, "b", "", nil},
		{r.ann, "a", "d", rpctypes.ErrGRPCPermissionDenied}, {r.ann, "", "\x00", rpctypes.ErrGRPCPermissionDenied},
		{r.ctx(), "a", "", rpctypes.ErrGRPCUserEmpty}, {withToken(r.ctx(), "x"), "a", "", rpctypes.ErrGRPCInvalidAuthToken},
	} {
		a := create(c.ctx, c.key, c.end)
		want := ""
		if c.why != nil {
			want = c.why.Error()
		}
		if a.CancelReason != want || a.Canceled != (c.why != nil) || !a.Created {
			t.Errorf("%q to %q: %v, want %q", c.key, c.end, a, want)
		}
	}
}

func TestAuth_LocksAndElectionsAreTheCallers(t *testing.T) {
	r := newAuthRig(t)
	r.enable("rw ann/-ann0")
	invoke := func(ctx context.Context, method string, set func(m message)) error {
		for _, rc := range recipes() {
			if rc.method == method {
				in := message{dynamicpb.NewMessage(rc.in)}
				set(in)
				return r.conn.Invoke(ctx, "/"+rc.service+"/"+rc.method, in.Message, dynamicpb.NewMessage(rc.out))
			}
		}
		t.Fatalf("no %s", method)
		return nil
	}
	for _, c := range []struct {
		ctx  context.Context
		name string
		want error
	}{
		{r.ann, "ann/lock", nil}, {r.ann, "other", rpctypes.ErrGRPCPermissionDenied}, {r.ctx(), "ann/free", rpctypes.ErrGRPCUserEmpty}, {r.root, "other", nil},
	} {
		name := func(m message) { m.set("name", []byte(c.name)) }
		if err := invoke(c.ctx, "Lock", name); !same(err, c.want) {
			t.Errorf("lock %s: %v, want %v", c.name, err, c.want)
		}
		if err := invoke(c.ctx, "Unlock", func(m message) { m.set("key", []byte(c.name+"/x")) }); !same(err, c.want) {
			t.Errorf("unlock %s: %v, want %v", c.name, err, c.want)
		}
		if err := invoke(c.ctx, "Campaign", func(m message) { m.set("name", []byte(c.name+"/e")) }); !same(err, c.want) {
			t.Errorf("campaign %s: %v, want %v", c.name, err, c.want)
		}
		if err := invoke(c.ctx, "Leader", func(m message) { m.set("name", []byte(c.name+"/e")) }); !same(err, c.want) {
			t.Errorf("leader %s: %v, want %v", c.name, err, c.want)
		}
	}
}

// A node that has not heard that authentication was enabled refuses whom it must, and lets in whom it may.
func TestAuth_NodeThatHasNotHeard(t *testing.T) {
	r := newAuthRig(t)
	r.enable("rw a")
	late := func() { r.s.rights.now.Store(&auth.State{Revision: 1}) }
	late()
	if _, err := r.kv.Put(r.ctx(), &pb.PutRequest{Key: []byte("a")}); !same(err, rpctypes.ErrGRPCUserEmpty) {
		t.Errorf("put by nobody: %v", err)
	}
	if _, err := r.kv.Range(r.ctx(), &pb.RangeRequest{Key: []byte("a"), Serializable: true}); !same(err, rpctypes.ErrGRPCUserEmpty) {
		t.Errorf("read by nobody: %v", err)
	}
	if _, err := r.kv.Put(r.ann, &pb.PutRequest{Key: []byte("a")}); err != nil {
		t.Errorf("put: %v", err)
	}
	late()
	if _, err := r.kv.Put(r.ann, &pb.PutRequest{Key: []byte("b")}); !same(err, rpctypes.ErrGRPCPermissionDenied) {
		t.Errorf("put elsewhere: %v", err)
	}
	late()
	if _, err := r.kv.Range(r.ann, &pb.RangeRequest{Key: []byte("a")}); err != nil {
		t.Errorf("read: %v", err)
	}
	// Whose token does not count is told that, as by any other node: a client then logs in again.
	late()
	if _, err := r.kv.Put(withToken(r.ctx(), "x"), &pb.PutRequest{Key: []byte("a")}); !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("put with a token of nobody's: %v", err)
	}
	late()
	if _, err := r.kv.Range(withToken(r.ctx(), "x"), &pb.RangeRequest{Key: []byte("a")}); !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("read with a token of nobody's: %v", err)
	}
	late()
	st, err := r.lease.LeaseKeepAlive(r.ann)
	if err == nil {
		err = st.Send(&pb.LeaseKeepAliveRequest{ID: 1})
	}
	if err == nil {
		_, err = st.Recv()
	}
	if err != nil {
		t.Errorf("renewal: %v", err)
	}
	late()
	if _, err := r.a.RoleAdd(r.root, &pb.AuthRoleAddRequest{Name: "x"}); err != nil {
		t.Errorf("role: %v", err)
	}
	// One that has not heard that it was disabled, or enabled anew, looks before it refuses.
	was := r.s.rights.now.Load()
	r.must(r.a.AuthDisable(r.root, &pb.AuthDisableRequest{}))
	r.s.rights.now.Store(was)
	if _, err := r.kv.Put(withToken(r.ctx(), "x"), &pb.PutRequest{Key: []byte("b")}); err != nil {
		t.Errorf("put after it was disabled: %v", err)
	}
	r.must(r.a.AuthEnable(r.ctx(), &pb.AuthEnableRequest{}))
	r.s.rights.now.Store(was)
	if _, err := r.kv.Put(r.ann, &pb.PutRequest{Key: []byte("a")}); !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("put with a token of before: %v", err)
	}
	r.s.rights.now.Store(was)
	if _, err := r.kv.Put(r.login("ann", "ann's"), &pb.PutRequest{Key: []byte("a")}); err != nil {
		t.Errorf("put with a new token: %v", err)
	}
}

func TestAuth_TokensEnd(t *testing.T) {
	r := newAuthRig(t)
	r.enable("rw a")
	pt := func(ctx context.Context) error { _, err := r.kv.Put(ctx, &pb.PutRequest{Key: []byte("a")}); return err }
	st := r.s.rights.now.Load()
	sign := func(expires time.Time) context.Context {
		return withToken(r.ctx(), auth.Token{User: "ann", Revision: st.Revision, Expires: expires}.Sign(st.Secret))
	}
	if err := pt(sign(time.Now().Add(time.Minute))); err != nil {
		t.Errorf("fresh: %v", err)
	}
	if err := pt(sign(time.Now().Add(-time.Minute))); !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("expired: %v", err)
	}
	// It lives on where it is used, and nowhere else.
	expires := func() time.Time {
		for {
			expires := time.Now().Truncate(time.Second).Add(2 * time.Second)
			switch err := pt(sign(expires)); {
			case err == nil:
				return expires
			case time.Now().Before(expires):
				t.Fatalf("first use: %v", err)
			}
			// It had expired before it was used, on a machine that is busy.
		}
	}()
	used := sign(expires)
	for time.Now().Before(expires.Add(50 * time.Millisecond)) {
		if err := pt(used); err != nil {
			t.Fatalf("in use: %v", err)
		}
	}
	other, err := grpc.NewClient(r.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close() //nolint:errcheck // the end of the test
	if _, err := pb.NewKVClient(other).Put(used, &pb.PutRequest{Key: []byte("a")}); !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("on another connection: %v", err)
	}
	r.must(r.a.RoleAdd(r.root, &pb.AuthRoleAddRequest{Name: "other"}))
	if err := pt(r.ann); err != nil {
		t.Errorf("after another change: %v", err)
	}
	r.must(r.a.UserChangePassword(r.root, &pb.AuthUserChangePasswordRequest{Name: "ann", Password: "new"}))
	if err := pt(r.ann); !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("after a new password: %v", err)
	}
	r.ann = r.login("ann", "new")
	if err := pt(r.ann); err != nil {
		t.Errorf("with the new password: %v", err)
	}
	r.must(r.a.UserDelete(r.root, &pb.AuthUserDeleteRequest{Name: "ann"}))
	if err := pt(r.ann); !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("after the user went: %v", err)
	}
}

// A token lives on where it is used, and a connection remembers no more of them than it may.
func TestConnected_KeepsTokensInUse(t *testing.T) {
	c := &connected{room: 2}
	now := time.Unix(1000, 0)
	const ttl = time.Minute
	f := func(token string, expires, at time.Duration, want bool) {
		t.Helper()
		if got := c.fresh(token, now.Add(expires), now.Add(at), ttl); got != want {
			t.Errorf("%s at %v: %v, want %v", token, at, got, want)
		}
		if len(c.used) > c.room {
			t.Errorf("%d tokens are remembered", len(c.used))
		}
	}
	f("a", ttl, 0, true)
	f("a", ttl, 50*time.Second, true)
	f("a", ttl, 100*time.Second, true)
	f("b", ttl, 100*time.Second, false)
	f("a", ttl, 160*time.Second, false)
	f("a", ttl, 161*time.Second, false)
	for i := range 3 {
		f(fmt.Sprint(i), time.Hour, 200*time.Second, true)
	}
	f("2", 201*time.Second, 202*time.Second, false)
	f("3", time.Hour, 300*time.Second, true)
	f("3", time.Hour, 2*time.Hour, false)
}

func TestAuth_OverTheGateway(t *testing.T) {
	r := newAuthRig(t)
	r.enable("rw a")
	ask := func(path, body string, header ...string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(r.ctx(), http.MethodPost, "http://"+r.addr+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close() //nolint:errcheck // read to the end
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	code, b := ask("/v3/auth/authenticate", `{"name":"ann","password":"ann's"}`)
	_, token, _ := strings.Cut(b, `"token":"`)
	token, _, _ = strings.Cut(token, `"`)
	if code != 200 || token == "" {
		t.Fatalf("login: %d %s", code, b)
	}
	for _, h := range [][]string{{"Authorization", token}, {"Authorization", "Bearer " + token}, {"Grpc-Metadata-Token", token}} {
		if code, b := ask("/v3/kv/put", `{"key":"YQ==","value":"YQ=="}`, h...); code != 200 {
			t.Errorf("%s: %d %s", h[0], code, b)
		}
		if code, b := ask("/v3/kv/put", `{"key":"Yg==","value":"YQ=="}`, h...); code != 403 || !strings.Contains(b, "etcdserver: permission denied") {
			t.Errorf("%s: %d %s", h[0], code, b)
		}
		if code, b := ask("/v3/lock/lock", `{"name":"Yg=="}`, h...); code != 403 {
			t.Errorf("lock, %s: %d %s", h[0], code, b)
		}
	}
	if code, b := ask("/v3/kv/range", `{"key":"YQ=="}`, "Authorization", "x"); code != 401 || !strings.Contains(b, "invalid auth token") {
		t.Errorf("bad token: %d %s", code, b)
	}
	if code, b := ask("/v3/kv/range", `{"key":"YQ=="}`); code != 400 || !strings.Contains(b, "user name is empty") {
		t.Errorf("no token: %d %s", code, b)
	}
	// Probes need no user.
	for _, path := range []string{"/health", "/readyz", "/version"} {
		req, err := http.NewRequestWithContext(r.ctx(), http.MethodGet, "http://"+r.addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
}

// certified is a connection whose client's certificate was verified.
type certified struct {
	net.Conn
	state tls.ConnectionState
}

func (c certified) ConnectionState() tls.ConnectionState { return c.state }

func TestAuth_CertificateNamesTheUser(t *testing.T) {
	r := newAuthRig(t)
	r.enable("rw a")
	as := func(name string, verified bool) context.Context {
		cert := &x509.Certificate{Subject: pkix.Name{CommonName: name}}
		st := tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		if verified {
			st.VerifiedChains = [][]*x509.Certificate{{cert}}
		}
		return r.s.identified(rpc.WithAttached(r.ctx(), attach(&conn{Conn: certified{state: st}})))
	}
	for _, c := range []struct {
		ctx  context.Context
		key  string
		want error
	}{
		{as("ann", true), "a", nil}, {as("ann", true), "b", rpctypes.ErrGRPCPermissionDenied}, {as("root", true), "b", nil},
		{as("nobody", true), "a", rpctypes.ErrGRPCPermissionDenied}, {as("ann", false), "a", rpctypes.ErrGRPCUserEmpty}, {as("", true), "a", rpctypes.ErrGRPCUserEmpty},
	} {
		if _, err := (kvServer{s: r.s}).Put(c.ctx, &pb.PutRequest{Key: []byte(c.key)}); !same(err, c.want) {
			t.Errorf("%s: %v, want %v", c.key, err, c.want)
		}
	}
}

// A flood of logins waits, a bounded number at a time, or is turned away.
func TestPasswords_FloodIsBounded(t *testing.T) {
	p := newPasswords(bcrypt.MinCost)
	for range cap(p.slots) {
		p.slots <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	for range waitingMax {
		go func() { done <- p.enter(ctx) }()
	}
	for p.waiting.Load() < waitingMax {
		select {
		case err := <-done:
			t.Fatalf("did not wait: %v", err)
		default:
		}
	}
	if _, err := p.hash(ctx, "x"); !same(err, rpctypes.ErrGRPCRequestTooManyRequests) {
		t.Errorf("one too many: %v", err)
	}
	cancel()
	for range waitingMax {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("waiter: %v", err)
		}
	}
	// Neither those that waited nor those that might not do so any more.
	if n := p.waiting.Load(); n != 0 {
		t.Errorf("%d still count", n)
	}
	<-p.slots
	if ok, err := p.matches(t.Context(), nil, "x"); ok || err != nil {
		t.Errorf("no hash: %v %v", ok, err)
	}
}

// Requests of other models are nobody's here.
func TestUses_OnlyOfKeys(t *testing.T) {
	f := func(auth.Use) error { return nil }
	if err := Uses(shard.Command{Module: shard.ModuleDatatypes}, nil, f); err == nil {
		t.Error("a Redis command is let through")
	}
	if err := Uses(shard.Command{Module: shard.ModuleKV, Data: kv.EncodeStatus()}, nil, f); err != nil {
		t.Error(err)
	}
}

// A snapshot has users and roles in it, and no secret.
func TestSnapshot_HasRights(t *testing.T) {
	r := newAuthRig(t)
	r.enable("rw a-c")
	st, err := pb.NewMaintenanceClient(r.conn).Snapshot(r.root, &pb.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var file []byte
	for {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		file = append(file, m.Blob...)
	}
	if bytes.Contains(file, r.s.rights.now.Load().Secret) {
		t.Error("the secret is in the snapshot")
	}
	name := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(name, file[:len(file)-sha256.Size], 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(name, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // it was only read
	err = db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(bucketAuth); b.Get([]byte("authEnabled"))[0] != 1 || len(b.Get([]byte("authRevision"))) != 8 {
			t.Error("neither enabled nor with a revision")
		}
		var u authpb.User
		if err := proto.Unmarshal(tx.Bucket(bucketUsers).Get([]byte("ann")), &u); err != nil || fmt.Sprint(u.Roles) != "[r]" ||
			bcrypt.CompareHashAndPassword(u.Password, []byte("ann's")) != nil {
			t.Errorf("user %v %v", &u, err)
		}
		var role authpb.Role
		if err := proto.Unmarshal(tx.Bucket(bucketRoles).Get([]byte("r")), &role); err != nil || len(role.KeyPermission) != 1 || string(role.KeyPermission[0].RangeEnd) != "c" {
			t.Errorf("role %v %v", &role, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
