package kafka

import (
	"context"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/eventlog"
)

// ListGroups (key 16)
//
// Behaviour: the groups that this node coordinates; a client asks every node. Filters by state and type.
//
// Versions: 0 to 5.
//
// Not supported: nothing.

func (s *Server) listGroups(ctx context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.ListGroupsRequest)
	resp := req.ResponseKind().(*kmsg.ListGroupsResponse)
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	w, err := s.world()
	if err != nil {
		resp.ErrorCode = codeCoordinatorNotAvailable
		return resp, nil
	}
	wanted := func(list []string, v string) bool {
		return len(list) == 0 || slices.ContainsFunc(list, func(x string) bool { return strings.EqualFold(x, v) })
	}
	size := 0
	for _, id := range w.space.Shards {
		if !w.leads(id) {
			continue
		}
		b, err := s.topics.query(ctx, id, eventlog.QueryGroups())
		if size += len(b); size > s.cfg.answerBytesMax {
			return nil, s.tooLarge(size)
		}
		var list []eventlog.GroupInfo
		if err == nil {
			list, err = eventlog.DecodeGroups(b)
		}
		if err != nil {
			resp.ErrorCode, resp.ThrottleMillis = codeOf(err, faceGroup), throttle(err)
			resp.Groups = nil
			return resp, nil
		}
		for _, g := range list {
			if !wanted(req.StatesFilter, g.State.String()) || !wanted(req.TypesFilter, "classic") {
				continue
			}
			x := kmsg.NewListGroupsResponseGroup()
			x.Group, x.ProtocolType, x.GroupState, x.GroupType = g.Name, g.ProtocolType, g.State.String(), "classic"
			resp.Groups = append(resp.Groups, x)
		}
	}
	return resp, nil
}
