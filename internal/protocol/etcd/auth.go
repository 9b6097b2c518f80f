package etcd

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/shard"
)

// authServer serves users, roles and logins. The rules are those of package auth; here passwords become hashes, and logins tokens.
type authServer struct {
	pb.UnimplementedAuthServer
	s *Server
}

// What etcd says where it has no error of its own.
var (
	errNoPassword      = status.Error(codes.Unknown, "auth: authentication failed, password was given for no password user")
	errPasswordTooLong = status.Error(codes.Unknown, bcrypt.ErrPasswordTooLong.Error())
)

// change runs a command, as the client of the context.
func (a authServer) change(ctx context.Context, encode func(auth.Caller) []byte) (*pb.ResponseHeader, error) {
	res := a.s.run(ctx, func(c auth.Caller) shard.Command {
		return shard.Command{Module: shard.ModuleAuth, Data: encode(c)}
	})
	if res.Err != nil {
		return nil, toGRPC(ctx, res.Err)
	}
	h, err := a.header(ctx)
	if err != nil {
		// It is done all the same. The key space's revision, which it does not change, cannot be told.
		h = a.s.header(0)
	}
	return h, nil
}

// ask runs a query, as the client of the context.
func (a authServer) ask(ctx context.Context, encode func(auth.Caller) []byte) ([]byte, error) {
	b, err := a.s.look(ctx, shard.Linearizable, func(c auth.Caller) shard.Command {
		return shard.Command{Module: shard.ModuleAuth, Data: encode(c)}
	})
	return b, toGRPC(ctx, err)
}

// names runs a query for names.
func (a authServer) names(ctx context.Context, encode func(auth.Caller) []byte) ([]string, *pb.ResponseHeader, error) {
	b, err := a.ask(ctx, encode)
	if err != nil {
		return nil, nil, err
	}
	all, err := auth.DecodeNames(b)
	if err != nil {
		return nil, nil, toGRPC(ctx, err)
	}
	h, err := a.header(ctx)
	return all, h, err
}

func (a authServer) header(ctx context.Context) (*pb.ResponseHeader, error) {
	now, err := a.s.status(ctx, true)
	if err != nil {
		return nil, toGRPC(ctx, err)
	}
	return a.s.header(now.Revision), nil
}

// newSecret draws a secret that tokens are signed with.
func newSecret() []byte {
	b := make([]byte, auth.SecretBytes)
	_, _ = rand.Read(b)
	return b
}

// AuthEnable implements pb.AuthServer.
func (a authServer) AuthEnable(ctx context.Context, _ *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	secret := newSecret()
	h, err := a.change(ctx, func(c auth.Caller) []byte { return auth.EncodeEnable(c, secret) })
	return &pb.AuthEnableResponse{Header: h}, err
}

// AuthDisable implements pb.AuthServer.
func (a authServer) AuthDisable(ctx context.Context, _ *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	h, err := a.change(ctx, auth.EncodeDisable)
	return &pb.AuthDisableResponse{Header: h}, err
}

// AuthStatus implements pb.AuthServer. Anybody may ask.
func (a authServer) AuthStatus(ctx context.Context, _ *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	if _, err := callerOf(ctx); err != nil {
		return nil, toGRPC(ctx, err)
	}
	st, err := a.s.rights.load(ctx, false)
	if err != nil {
		return nil, toGRPC(ctx, err)
	}
	h, err := a.header(ctx)
	return &pb.AuthStatusResponse{Header: h, Enabled: st.Enabled, AuthRevision: st.Revision}, err
}

// Authenticate implements pb.AuthServer.
func (a authServer) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	st, err := a.s.rights.load(ctx, false)
	switch {
	case err != nil:
		return nil, toGRPC(ctx, err)
	case !st.Enabled:
		return nil, rpctypes.ErrGRPCAuthNotEnabled
	}
	b, err := a.s.askAuth(ctx, auth.EncodeLogin(r.Name))
	// Whom there is not has no hash, which no password fits.
	l := auth.Login{State: *st}
	if err == nil {
		l, err = auth.DecodeLogin(b)
	}
	switch {
	case err != nil && !errors.Is(err, auth.ErrUserNotFound):
		return nil, toGRPC(ctx, err)
	case !l.Enabled:
		return nil, rpctypes.ErrGRPCAuthNotEnabled
	case l.NoPassword:
		return nil, errNoPassword
	}
	if ok, err := a.s.passwords.matches(ctx, l.Hash, r.Password); err != nil || !ok {
		if err == nil {
			a.s.log.Info("a password was wrong")
			err = rpctypes.ErrGRPCAuthFailed
		}
		return nil, toGRPC(ctx, err)
	}
	// If the password is changed meanwhile, that is at a later revision than the token's.
	t := auth.Token{User: r.Name, Revision: l.Revision, Expires: a.s.client.Now().Add(a.s.cfg.AuthTokenTTL)}
	token, err := a.s.token(t, l.Secret)
	if err != nil {
		return nil, toGRPC(ctx, err)
	}
	h, err := a.header(ctx)
	return &pb.AuthenticateResponse{Header: h, Token: a.s.tokenPrefix() + token}, err
}

// askAuth runs a query of auth's for the server itself.
func (s *Server) askAuth(ctx context.Context, q []byte) ([]byte, error) {
	at, _, err := s.where()
	if err != nil {
		return nil, err
	}
	return s.client.Query(ctx, routeOf(at), shard.Linearizable, shard.Command{Module: shard.ModuleAuth, Data: q})
}

// hash returns the hash of a password, or the one that the client has made in its place.
func (a authServer) hash(ctx context.Context, password, hashed string) ([]byte, error) {
	if password == "" && hashed != "" {
		b, err := base64.StdEncoding.DecodeString(hashed)
		if err == nil {
			err = given(b)
		}
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "quorate: the hashed password is not that of bcrypt with a cost of at most %d, in base64: %v", costGivenMax, err)
		}
		return b, nil
	}
	// Who may not change a password must not cost what hashing it does.
	if err := a.s.allow(ctx, onlyRoot); err != nil {
		return nil, err
	}
	b, err := a.s.passwords.hash(ctx, password)
	if errors.Is(err, bcrypt.ErrPasswordTooLong) {
		return nil, errPasswordTooLong
	}
	return b, toGRPC(ctx, err)
}

// UserAdd implements pb.AuthServer.
func (a authServer) UserAdd(ctx context.Context, r *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	if err := a.s.refuseName(r.Name); err != nil {
		return nil, err
	}
	u := auth.NewUser{Name: r.Name, NoPassword: r.Options.GetNoPassword()}
	if !u.NoPassword {
		var err error
		if u.Hash, err = a.hash(ctx, r.Password, r.HashedPassword); err != nil {
			return nil, err
		}
	}
	h, err := a.change(ctx, func(c auth.Caller) []byte { return auth.EncodeUserAdd(c, u) })
	return &pb.AuthUserAddResponse{Header: h}, err
}

// UserGet implements pb.AuthServer.
func (a authServer) UserGet(ctx context.Context, r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	roles, h, err := a.names(ctx, func(c auth.Caller) []byte { return auth.EncodeUser(c, r.Name) })
	return &pb.AuthUserGetResponse{Header: h, Roles: roles}, err
}

// UserList implements pb.AuthServer.
func (a authServer) UserList(ctx context.Context, _ *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	all, h, err := a.names(ctx, auth.EncodeUsers)
	return &pb.AuthUserListResponse{Header: h, Users: all}, err
}

// UserDelete implements pb.AuthServer.
func (a authServer) UserDelete(ctx context.Context, r *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	h, err := a.change(ctx, func(c auth.Caller) []byte { return auth.EncodeUserDelete(c, r.Name) })
	return &pb.AuthUserDeleteResponse{Header: h}, err
}

// UserChangePassword implements pb.AuthServer.
func (a authServer) UserChangePassword(ctx context.Context, r *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	var hash []byte
	// Without a password there is none that fits, as in etcd.
	if r.Password != "" || r.HashedPassword != "" {
		var err error
		if hash, err = a.hash(ctx, r.Password, r.HashedPassword); err != nil {
			return nil, err
		}
	}
	h, err := a.change(ctx, func(c auth.Caller) []byte { return auth.EncodeUserPassword(c, r.Name, hash) })
	return &pb.AuthUserChangePasswordResponse{Header: h}, err
}

// UserGrantRole implements pb.AuthServer.
func (a authServer) UserGrantRole(ctx context.Context, r *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	h, err := a.change(ctx, func(c auth.Caller) []byte { return auth.EncodeUserGrant(c, r.User, r.Role) })
	return &pb.AuthUserGrantRoleResponse{Header: h}, err
}

// UserRevokeRole implements pb.AuthServer.
func (a authServer) UserRevokeRole(ctx context.Context, r *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	h, err := a.change(ctx, func(c auth.Caller) []byte { return auth.EncodeUserRevoke(c, r.Name, r.Role) })
	return &pb.AuthUserRevokeRoleResponse{Header: h}, err
}

// RoleAdd implements pb.AuthServer.
func (a authServer) RoleAdd(ctx context.Context, r *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	h, err := a.change(ctx, func(c auth.Caller) []byte { return auth.EncodeRoleAdd(c, r.Name) })
	return &pb.AuthRoleAddResponse{Header: h}, err
}

// RoleGet implements pb.AuthServer.
func (a authServer) RoleGet(ctx context.Context, r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	b, err := a.ask(ctx, func(c auth.Caller) []byte { return auth.EncodeRole(c, r.Role) })
	if err != nil {
		return nil, err
	}
	ps, err := auth.DecodePermissions(b)
	if err != nil {
		return nil, toGRPC(ctx, err)
	}
	h, err := a.header(ctx)
	return &pb.AuthRoleGetResponse{Header: h, Perm: fromPermissions(ps)}, err
}

func fromPermissions(ps []auth.Permission) []*authpb.Permission {
	var out []*authpb.Permission
	for _, p := range ps {
		out = append(out, &authpb.Permission{PermType: authpb.Permission_Type(p.Type), Key: p.Key, RangeEnd: p.End})
	}
	return out
}

// RoleList implements pb.AuthServer.
func (a authServer) RoleList(ctx context.Context, _ *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	all, h, err := a.names(ctx, auth.EncodeRoles)
	return &pb.AuthRoleListResponse{Header: h, Roles: all}, err
}

// RoleDelete implements pb.AuthServer.
func (a authServer) RoleDelete(ctx context.Context, r *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	h, err := a.change(ctx, func(c auth.Caller) []byte { return auth.EncodeRoleDelete(c, r.Role) })
	return &pb.AuthRoleDeleteResponse{Header: h}, err
}

// RoleGrantPermission implements pb.AuthServer.
func (a authServer) RoleGrantPermission(ctx context.Context, r *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	switch {
	case r.Perm == nil:
		return nil, rpctypes.ErrGRPCPermissionNotGiven
	case r.Perm.PermType < 0 || r.Perm.PermType > authpb.Permission_READWRITE:
		return nil, rpctypes.ErrGRPCInvalidAuthMgmt
	}
	p := auth.Permission{Type: auth.Type(r.Perm.PermType), Key: r.Perm.Key, End: r.Perm.RangeEnd}
	h, err := a.change(ctx, func(c auth.Caller) []byte { return auth.EncodeRoleGrant(c, r.Name, p) })
	return &pb.AuthRoleGrantPermissionResponse{Header: h}, err
}

// RoleRevokePermission implements pb.AuthServer.
func (a authServer) RoleRevokePermission(ctx context.Context, r *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	h, err := a.change(ctx, func(c auth.Caller) []byte { return auth.EncodeRoleRevoke(c, r.Role, r.Key, r.RangeEnd) })
	return &pb.AuthRoleRevokePermissionResponse{Header: h}, err
}
