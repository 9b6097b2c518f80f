package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/eventlog"
)

// Heartbeat (key 12)
//
// Behaviour: starts the member's session anew, as a command: the session outlives the coordinator. REBALANCE_IN_PROGRESS
// tells the member to join again.
//
// Versions: 0 to 4.
//
// Not supported: nothing.

func (s *Server) heartbeat(ctx context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.HeartbeatRequest)
	resp := req.ResponseKind().(*kmsg.HeartbeatResponse)
	b, code, err := s.groupCommand(ctx, req.Group, eventlog.EncodeHeartbeat(req.Group, req.MemberID, value(req.InstanceID), req.Generation))
	resp.ErrorCode, resp.ThrottleMillis = code, throttle(err)
	if code == codeNone {
		again, err := eventlog.DecodeHeartbeat(b)
		resp.ErrorCode = codeOf(err, faceGroup)
		if again {
			resp.ErrorCode = codeRebalanceInProgress
		}
	}
	return resp, nil
}
