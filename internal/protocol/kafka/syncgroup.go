package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
)

// SyncGroup (key 14)
//
// Behaviour: the leader's assignments are stored with the group; everyone else waits for them. An assignment is never
// given out empty because the leader was late: when the generation is over the answer is REBALANCE_IN_PROGRESS.
//
// Versions: 0 to 5.
//
// Not supported: nothing.

func (s *Server) syncGroup(_ context.Context, c *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.SyncGroupRequest)
	resp := req.ResponseKind().(*kmsg.SyncGroupResponse)
	resp.MemberAssignment = []byte{}
	on, code := s.coordinator(req.Group)
	if code != codeNone {
		resp.ErrorCode = code
		return resp, nil
	}
	y := eventlog.Sync{
		Group: req.Group, MemberID: req.MemberID, Instance: value(req.InstanceID), Generation: req.Generation,
		ProtocolType: value(req.ProtocolType), Protocol: value(req.Protocol),
	}
	for _, a := range req.GroupAssignment {
		y.Assignments = append(y.Assignments, eventlog.Assignment{MemberID: a.MemberID, Data: a.MemberAssignment})
	}
	ctx, cancel := context.WithTimeout(c.work, s.cfg.RequestTimeout)
	defer cancel()
	err := s.topics.submit(ctx, on, eventlog.EncodeSync(y)).Err
	var st eventlog.SyncState
	if err == nil {
		// The group's own deadline ends the wait: it removes a leader that does not assign.
		err = s.waitGroup(c, req.Group, on, s.cfg.SessionMax+s.cfg.RequestTimeout, func(ctx context.Context) (bool, error) {
			b, err := s.topics.query(ctx, on, eventlog.QuerySync(y.Group, y.MemberID, y.Instance, y.Generation))
			if err == nil {
				st, err = eventlog.DecodeSyncState(b)
			}
			return !st.Waiting, err
		})
	}
	if err != nil {
		resp.ErrorCode, resp.ThrottleMillis = s.groupCode(req.Group, err), throttle(err)
		if resp.ErrorCode == codeCoordinatorLoadInProgress {
			// Java's consumers throw at the application for that one, and join again for this. Kafka too avoids it here.
			resp.ErrorCode = codeRebalanceInProgress
		}
		return resp, nil
	}
	resp.ProtocolType, resp.Protocol = &st.ProtocolType, &st.Protocol
	if st.Assignment != nil {
		resp.MemberAssignment = st.Assignment
	}
	return resp, nil
}

// groupCommand runs a command of a group that needs no waiting.
func (s *Server) groupCommand(ctx context.Context, group string, cmd []byte) ([]byte, int16, error) {
	on, code := s.coordinator(group)
	if code != codeNone {
		return nil, code, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	r := s.topics.submit(ctx, on, cmd)
	if r.Err != nil {
		return nil, s.groupCode(group, r.Err), r.Err
	}
	return r.Data, codeNone, nil
}

// groupQuery runs a query of a group.
func (s *Server) groupQuery(ctx context.Context, group string, q []byte) ([]byte, int16, error) {
	on, code := s.coordinator(group)
	if code != codeNone {
		return nil, code, errs.New(errs.Unavailable, "this node does not coordinate the group")
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	b, err := s.topics.query(ctx, on, q)
	if err != nil {
		return nil, s.groupCode(group, err), err
	}
	return b, codeNone, nil
}
