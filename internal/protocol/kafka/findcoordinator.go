package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
)

// FindCoordinator (key 10)
//
// Behaviour: a group's coordinator is the node that leads the group's shard. COORDINATOR_NOT_AVAILABLE while none is
// known.
//
// Versions: 0 to 6.
//
// Not supported: coordinators of transactions and of share groups; the answer says so.

func (s *Server) findCoordinator(_ context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.FindCoordinatorRequest)
	resp := req.ResponseKind().(*kmsg.FindCoordinatorResponse)
	keys := req.CoordinatorKeys
	if req.Version < 4 {
		keys = []string{req.CoordinatorKey}
	}
	for _, key := range keys {
		x := kmsg.NewFindCoordinatorResponseCoordinator()
		x.Key = key
		b, code, err := s.findGroup(key, req.CoordinatorType)
		x.NodeID, x.Host, x.Port, x.ErrorCode, x.ErrorMessage = b.id, b.host, b.port, code, text(err)
		resp.Coordinators = append(resp.Coordinators, x)
	}
	if req.Version < 4 {
		x := resp.Coordinators[0]
		resp.NodeID, resp.Host, resp.Port, resp.ErrorCode, resp.ErrorMessage = x.NodeID, x.Host, x.Port, x.ErrorCode, x.ErrorMessage
		resp.Coordinators = nil
	}
	return resp, nil
}

// findGroup returns the node that coordinates a group.
func (s *Server) findGroup(key string, kind int8) (broker, int16, error) {
	none := broker{id: -1, port: -1}
	switch {
	case kind == 1:
		return none, codeTransactionalIDAuthFailed, errs.New(errs.Unsupported, "transactions are not supported; produce without transactional.id")
	case kind != 0:
		return none, codeInvalidRequest, errs.New(errs.Unsupported, "coordinators of kind %d are not supported; only those of groups (0) are", kind)
	case len(key) > eventlog.GroupNameMax:
		return none, codeInvalidGroupID, errs.New(errs.Invalid, "a group name has at most %d characters; got %d", eventlog.GroupNameMax, len(key))
	}
	w, err := s.world()
	if err != nil {
		return none, codeCoordinatorNotAvailable, err
	}
	node, _ := w.leader(groupShard(w.space, key))
	host, port, ok := w.address(node)
	if !ok {
		return none, codeCoordinatorNotAvailable, errs.New(errs.Unavailable, "the group's shard has no known leader; ask again")
	}
	return broker{int32(node), host, port}, codeNone, nil
}
