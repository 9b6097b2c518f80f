package etcd

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/coord"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
)

// named are errors that clients tell from others of their kind.
var named = []struct{ err, to error }{
	{kv.ErrCompacted, rpctypes.ErrGRPCCompacted},
	{kv.ErrFutureRevision, rpctypes.ErrGRPCFutureRev},
	{kv.ErrKeyNotFound, rpctypes.ErrGRPCKeyNotFound},
	{kv.ErrDuplicateKey, rpctypes.ErrGRPCDuplicateKey},
	{kv.ErrLeaseNotFound, rpctypes.ErrGRPCLeaseNotFound},
	{kv.ErrLeaseExists, rpctypes.ErrGRPCLeaseExist},
	{kv.ErrLeaseTTLTooLarge, rpctypes.ErrGRPCLeaseTTLTooLarge},
	{shard.ErrNotLeader, rpctypes.ErrGRPCNotLeader},
	{shard.ErrNoVoter, rpctypes.ErrGRPCBadLeaderTransferee},
	{shard.ErrMoveTimeout, status.Error(codes.Unknown, "etcdserver: request timed out, leader transfer took too long")},
	{auth.ErrRootUserMissing, rpctypes.ErrGRPCRootUserNotExist},
	{auth.ErrRootRoleMissing, rpctypes.ErrGRPCRootRoleNotExist},
	{auth.ErrUserExists, rpctypes.ErrGRPCUserAlreadyExist},
	{auth.ErrUserEmpty, rpctypes.ErrGRPCUserEmpty},
	{auth.ErrUserNotFound, rpctypes.ErrGRPCUserNotFound},
	{auth.ErrRoleExists, rpctypes.ErrGRPCRoleAlreadyExist},
	{auth.ErrRoleEmpty, rpctypes.ErrGRPCRoleEmpty},
	{auth.ErrRoleNotFound, rpctypes.ErrGRPCRoleNotFound},
	{auth.ErrRoleNotGranted, rpctypes.ErrGRPCRoleNotGranted},
	{auth.ErrNotGranted, rpctypes.ErrGRPCPermissionNotGranted},
	{auth.ErrPermissionDenied, rpctypes.ErrGRPCPermissionDenied},
	{auth.ErrInvalidToken, rpctypes.ErrGRPCInvalidAuthToken},
	{auth.ErrInvalidChange, rpctypes.ErrGRPCInvalidAuthMgmt},
	{coord.ErrNotLeader, status.Error(codes.Unknown, "election: not leader")},
	{coord.ErrNoLeader, status.Error(codes.Unknown, "election: no leader")},
	{coord.ErrLeaseOver, status.Error(codes.Unknown, "mutex: session is expired")},
}

// kinds says what the other errors are to an etcd client. An unknown outcome is etcd's time-out, which clients do not repeat by
// themselves; nothing says "not done" that may have been done.
var kinds = map[errs.Kind]error{
	errs.TooLarge:       rpctypes.ErrGRPCRequestTooLarge,
	errs.Overloaded:     rpctypes.ErrGRPCRequestTooManyRequests,
	errs.Unavailable:    rpctypes.ErrGRPCNoLeader,
	errs.OutcomeUnknown: rpctypes.ErrGRPCTimeout,
	errs.Corrupt:        rpctypes.ErrGRPCCorrupt,
}

// isAuth says whether an error, as toGRPC makes it, refuses a client for who it is.
func isAuth(err error) bool {
	for _, e := range [...]error{rpctypes.ErrGRPCUserEmpty, rpctypes.ErrGRPCPermissionDenied, rpctypes.ErrGRPCInvalidAuthToken} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// toGRPC turns an error into what an etcd client expects.
func toGRPC(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	for _, n := range named {
		if errors.Is(err, n.err) {
			return n.to
		}
	}
	if to := kinds[errs.KindOf(err)]; to != nil {
		return to
	}
	return status.Error(codes.Unknown, "etcdserver: "+err.Error())
}
