package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/eventlog"
)

// LeaveGroup (key 13)
//
// Behaviour: takes members out at once. From version 3 on several may leave in one request, static members by their
// instance name alone (KIP-345).
//
// Versions: 0 to 5.
//
// Not supported: the reason is not kept.

func (s *Server) leaveGroup(ctx context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.LeaveGroupRequest)
	resp := req.ResponseKind().(*kmsg.LeaveGroupResponse)
	var list []eventlog.Leaver
	if req.Version < 3 {
		list = append(list, eventlog.Leaver{MemberID: req.MemberID})
	}
	for _, m := range req.Members {
		list = append(list, eventlog.Leaver{MemberID: m.MemberID, Instance: value(m.InstanceID)})
	}
	b, code, err := s.groupCommand(ctx, req.Group, eventlog.EncodeLeave(req.Group, list))
	resp.ErrorCode, resp.ThrottleMillis = code, throttle(err)
	if code != codeNone {
		return resp, nil
	}
	left, err := eventlog.DecodeLeft(b)
	if err != nil || len(left) != len(list) {
		resp.ErrorCode = codeUnknownServerError
		return resp, nil
	}
	if req.Version < 3 {
		resp.ErrorCode = codeOf(left[0], faceGroup)
		return resp, nil
	}
	for i, m := range req.Members {
		x := kmsg.NewLeaveGroupResponseMember()
		x.MemberID, x.InstanceID, x.ErrorCode = m.MemberID, m.InstanceID, codeOf(left[i], faceGroup)
		resp.Members = append(resp.Members, x)
	}
	return resp, nil
}
