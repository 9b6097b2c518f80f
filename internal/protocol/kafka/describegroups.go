package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
)

// DescribeGroups (key 15)
//
// Behaviour: state, protocol and members with their metadata and assignments. A group that does not exist is "Dead";
// from version 6 on it is GROUP_ID_NOT_FOUND (KIP-1043).
//
// Versions: 0 to 6.
//
// Not supported: authorized operations.

func (s *Server) describeGroups(ctx context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.DescribeGroupsRequest)
	resp := req.ResponseKind().(*kmsg.DescribeGroupsResponse)
	size := 0
	for _, name := range once(req.Groups, func(name *string) string { return *name }) {
		x := kmsg.NewDescribeGroupsResponseGroup()
		x.Group = name
		b, code, err := s.groupQuery(ctx, name, eventlog.QueryGroup(name))
		if size += len(b); size > s.cfg.answerBytesMax {
			return nil, s.tooLarge(size)
		}
		var g eventlog.GroupInfo
		if err == nil {
			g, err = eventlog.DecodeGroup(b)
			code = codeOf(err, faceGroup)
		}
		switch {
		case errs.Is(err, errs.NotFound):
			x.State = "Dead"
			if req.Version >= 6 {
				x.ErrorCode, x.ErrorMessage = codeGroupIDNotFound, text(err)
			}
		case err != nil:
			x.ErrorCode, x.ErrorMessage = code, text(err)
		default:
			x.State, x.ProtocolType, x.Protocol = g.State.String(), g.ProtocolType, g.Protocol
			for i := range g.Members {
				m := &g.Members[i]
				y := kmsg.NewDescribeGroupsResponseGroupMember()
				y.MemberID, y.ClientID, y.ClientHost = m.ID, m.ClientID, m.ClientHost
				y.ProtocolMetadata, y.MemberAssignment = m.Metadata, m.Assignment
				if m.Instance != "" {
					y.InstanceID = &m.Instance
				}
				x.Members = append(x.Members, y)
			}
		}
		resp.Groups = append(resp.Groups, x)
	}
	return resp, nil
}
