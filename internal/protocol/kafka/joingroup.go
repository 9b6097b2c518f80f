package kafka

import (
	"context"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
	"github.com/quorate/quorate/internal/shard"
)

// JoinGroup (key 11)
//
// Behaviour: the join is a command of the group's shard; then the request waits until the rebalance is complete. Static
// members (KIP-345) keep their place over a restart. A dynamic member without an id is sent back with one from version 4
// on (KIP-394). An empty group waits a moment for more members. As the group is replicated, members stay in it when its
// coordinator changes.
//
// Versions: 0 to 9. In version 0 the rebalance time-out is the session time-out.
//
// Not supported: the consumer group protocol of KIP-848, which has APIs of its own.

// groupLook is how often a waiting group request makes sure that this node still coordinates the group.
const groupLook = time.Second

// waitGroup looks whenever the group changes until look says it is done.
func (s *Server) waitGroup(c *conn, group string, on shard.ID, limit time.Duration, look func(ctx context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(c.polls, limit)
	defer cancel()
	watch := s.client.Watch(shard.Route{Shard: on}, eventlog.GroupSpan(group))
	defer watch.Close()
	again := time.NewTicker(groupLook)
	defer again.Stop()
	for {
		if done, err := look(ctx); done || err != nil {
			return err
		}
		c.flushEarlier()
		for waiting := true; waiting; {
			select {
			case <-watch.C:
				waiting = false
			case <-again.C:
				if _, code := s.coordinator(group); code != codeNone {
					return errs.New(errs.Unavailable, "the group's coordinator has moved; find it again")
				}
			case <-ctx.Done():
				return errs.New(errs.OutcomeUnknown, "the group was not complete within the time limit; the client joins again")
			}
		}
	}
}

// groupCode returns the code for an error of a group request, whose node may have stopped being the coordinator.
func (s *Server) groupCode(group string, err error) int16 {
	if errs.Is(err, errs.Unavailable) {
		if _, code := s.coordinator(group); code != codeNone {
			return code
		}
	}
	return codeOf(err, faceGroup)
}

// clientIDKept is how many bytes of a client's id its member keeps.
const clientIDKept = 128

// prefix returns the beginning of a text, of at most so many bytes. It does not cut a character: clients send a member's id back as they have read it,
// and Java's replace what is no character.
func prefix(s string, bytesMax int) string {
	if len(s) <= bytesMax {
		return s
	}
	for bytesMax > 0 && !utf8.RuneStart(s[bytesMax]) {
		bytesMax--
	}
	return s[:bytesMax]
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func (s *Server) joinGroup(_ context.Context, c *conn, h header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.JoinGroupRequest)
	resp := req.ResponseKind().(*kmsg.JoinGroupResponse)
	resp.Generation, resp.MemberID = -1, req.MemberID
	resp.ProtocolType = &req.ProtocolType
	if req.Version < 7 {
		resp.Protocol = new(string)
	}
	if err := s.join(c, h, req, resp); err != nil {
		resp.ErrorCode, resp.ThrottleMillis = s.groupCode(req.Group, err), throttle(err)
	}
	return resp, nil
}

func (s *Server) join(c *conn, h header, req *kmsg.JoinGroupRequest, resp *kmsg.JoinGroupResponse) error {
	on, code := s.coordinator(req.Group)
	if code != codeNone {
		resp.ErrorCode = code
		return nil
	}
	session := time.Duration(req.SessionTimeoutMillis) * time.Millisecond
	if session < s.cfg.SessionMin || session > s.cfg.SessionMax {
		return errs.Coded(errs.Invalid, eventlog.CodeInvalidSession, "session time-out of %v; %v to %v are allowed", session, s.cfg.SessionMin, s.cfg.SessionMax)
	}
	j := eventlog.Join{
		Group: req.Group, MemberID: req.MemberID, Instance: value(req.InstanceID), ClientID: h.clientID, ClientHost: "/" + c.host,
		ProtocolType: req.ProtocolType, SessionMs: req.SessionTimeoutMillis, RebalanceMs: req.RebalanceTimeoutMillis,
		DelayMs: int32(s.cfg.RebalanceDelay / time.Millisecond), RequireID: req.Version >= 4,
	}
	if req.Version == 0 || j.RebalanceMs <= 0 {
		j.RebalanceMs = j.SessionMs
	}
	// Kafka takes any, and max.poll.interval.ms is often the largest number there is.
	j.RebalanceMs = min(j.RebalanceMs, int32(eventlog.SessionMax/time.Millisecond))
	j.ClientID = prefix(j.ClientID, clientIDKept)
	if j.MemberID == "" {
		name := j.ClientID
		if name == "" {
			name = "member"
		}
		j.NewID = fmt.Sprintf("%s-%016x%016x", name, s.cfg.Rand(), s.cfg.Rand())
	}
	for _, p := range req.Protocols {
		j.Protocols = append(j.Protocols, eventlog.Protocol{Name: p.Name, Metadata: p.Metadata})
	}
	ctx, cancel := context.WithTimeout(c.work, s.cfg.RequestTimeout)
	defer cancel()
	r := s.topics.submit(ctx, on, eventlog.EncodeJoin(j))
	if r.Err != nil {
		return r.Err
	}
	id, comeBack, err := eventlog.DecodeJoined(r.Data)
	if err != nil {
		return err
	}
	resp.MemberID = id
	if comeBack {
		resp.ErrorCode = codeMemberIDRequired
		return nil
	}
	var st eventlog.JoinState
	limit := time.Duration(j.RebalanceMs)*time.Millisecond + s.cfg.RequestTimeout
	err = s.waitGroup(c, req.Group, on, limit, func(ctx context.Context) (bool, error) {
		b, err := s.topics.query(ctx, on, eventlog.QueryJoin(j.Group, id, j.Instance))
		if err == nil {
			st, err = eventlog.DecodeJoinState(b)
		}
		return !st.Waiting, err
	})
	if err != nil {
		return err
	}
	fillJoin(req, resp, id, &st)
	return nil
}

// fillJoin makes the answer of a complete join.
func fillJoin(req *kmsg.JoinGroupRequest, resp *kmsg.JoinGroupResponse, id string, st *eventlog.JoinState) {
	resp.Generation, resp.ProtocolType, resp.Protocol, resp.LeaderID = st.Generation, &st.ProtocolType, &st.Protocol, st.Leader
	if st.Leader != id {
		return
	}
	if st.Assigned {
		// A leader that was replaced by a new process of the same static member (KIP-814): nothing is to be assigned. A
		// client that cannot be told so must not think that it leads.
		if req.Version < 9 {
			resp.LeaderID = ""
			return
		}
		resp.SkipAssignment = true
	}
	for i := range st.Members {
		m := &st.Members[i]
		x := kmsg.NewJoinGroupResponseMember()
		x.MemberID, x.ProtocolMetadata = m.ID, m.Metadata
		if m.Instance != "" {
			x.InstanceID = &m.Instance
		}
		resp.Members = append(resp.Members, x)
	}
}
