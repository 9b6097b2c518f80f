package kafka

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/eventlog"
)

func joinReq(group, member string) *kmsg.JoinGroupRequest {
	req := kmsg.NewPtrJoinGroupRequest()
	req.Group, req.MemberID, req.ProtocolType = group, member, "consumer"
	req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 10_000, 10_000
	req.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range", Metadata: []byte("meta")}}
	return req
}

func syncReq(group, member string, generation int32, to ...string) *kmsg.SyncGroupRequest {
	req := kmsg.NewPtrSyncGroupRequest()
	req.Group, req.MemberID, req.Generation = group, member, generation
	req.ProtocolType, req.Protocol = p("consumer"), p("range")
	for _, m := range to {
		req.GroupAssignment = append(req.GroupAssignment, kmsg.SyncGroupRequestGroupAssignment{MemberID: m, MemberAssignment: []byte("for " + m)})
	}
	return req
}

func heartbeatReq(group, member string, generation int32) *kmsg.HeartbeatRequest {
	req := kmsg.NewPtrHeartbeatRequest()
	req.Group, req.MemberID, req.Generation = group, member, generation
	return req
}

// enter joins a group alone, through the round trip for a member id if the version has it, and syncs.
func (w *wire) enter(group string, joinVersion, syncVersion int16) (member string, generation int32) {
	w.t.Helper()
	req := joinReq(group, "")
	r := ask[*kmsg.JoinGroupResponse](w, req, joinVersion)
	if joinVersion >= 4 {
		if r.ErrorCode != codeMemberIDRequired || r.MemberID == "" {
			w.t.Fatalf("join version %d without an id: %+v", joinVersion, r)
		}
		req.MemberID = r.MemberID
		r = ask[*kmsg.JoinGroupResponse](w, req, joinVersion)
	}
	if r.ErrorCode != 0 || r.LeaderID != r.MemberID || len(r.Members) != 1 || r.Generation != 1 || r.Protocol == nil || *r.Protocol != "range" {
		w.t.Fatalf("join version %d: %+v", joinVersion, r)
	}
	s := ask[*kmsg.SyncGroupResponse](w, syncReq(group, r.MemberID, r.Generation, r.MemberID), syncVersion)
	if s.ErrorCode != 0 || string(s.MemberAssignment) != "for "+r.MemberID {
		w.t.Fatalf("sync version %d: %+v", syncVersion, s)
	}
	return r.MemberID, r.Generation
}

func TestGroup_LifeInEveryVersion(t *testing.T) {
	b := newBench(t, 2, Config{})
	w := b.dial()
	w.createTopic("t", 2)
	for v := int16(0); v <= 9; v++ {
		g := fmt.Sprint("g", v)
		member, gen := w.enter(g, v, min(v, 5))
		if r := ask[*kmsg.HeartbeatResponse](w, heartbeatReq(g, member, gen), min(v, 4)); r.ErrorCode != 0 {
			t.Errorf("heartbeat: %+v", r)
		}
		if r := ask[*kmsg.HeartbeatResponse](w, heartbeatReq(g, member, gen-1), min(v, 4)); r.ErrorCode != codeIllegalGeneration {
			t.Errorf("stale heartbeat: %+v", r)
		}
		if r := ask[*kmsg.HeartbeatResponse](w, heartbeatReq(g, "x", gen), min(v, 4)); r.ErrorCode != codeUnknownMemberID {
			t.Errorf("foreign heartbeat: %+v", r)
		}
		commit := func(member string, gen int32, want int16) {
			t.Helper()
			req := kmsg.NewPtrOffsetCommitRequest()
			req.Group, req.MemberID, req.Generation = g, member, gen
			x := kmsg.NewOffsetCommitRequestTopic()
			x.Topic = "t"
			y := kmsg.NewOffsetCommitRequestTopicPartition()
			y.Partition, y.Offset, y.Metadata = 1, 7, p("note")
			x.Partitions = append(x.Partitions, y)
			req.Topics = append(req.Topics, x)
			r := ask[*kmsg.OffsetCommitResponse](w, req, max(2, v))
			if got := r.Topics[0].Partitions[0].ErrorCode; got != want {
				t.Errorf("commit by %s in %d: %d, want %d", member, gen, got, want)
			}
		}
		commit(member, gen, 0)
		commit(member, gen-1, codeIllegalGeneration)
		commit(member, gen+1, codeIllegalGeneration)
		commit("x", gen, codeUnknownMemberID)
		commit("", -1, codeUnknownMemberID)
		fv := max(1, v)
		of := kmsg.NewPtrOffsetFetchRequest()
		of.Group = g
		of.Topics = []kmsg.OffsetFetchRequestTopic{{Topic: "t", Partitions: []int32{0, 1}}}
		of.Groups = []kmsg.OffsetFetchRequestGroup{{Group: g, Topics: []kmsg.OffsetFetchRequestGroupTopic{{Topic: "t", Partitions: []int32{0, 1}}}}}
		r := ask[*kmsg.OffsetFetchResponse](w, of, fv)
		if fv >= 8 {
			ps := r.Groups[0].Topics[0].Partitions
			if ps[0].Offset != -1 || ps[1].Offset != 7 || *ps[1].Metadata != "note" || ps[0].ErrorCode != 0 {
				t.Errorf("offsets version %d: %+v", fv, r)
			}
		} else if ps := r.Topics[0].Partitions; ps[0].Offset != -1 || ps[1].Offset != 7 || *ps[1].Metadata != "note" {
			t.Errorf("offsets version %d: %+v", fv, r)
		}
		if fv >= 2 {
			of.Topics, of.Groups[0].Topics = nil, nil
			if r := ask[*kmsg.OffsetFetchResponse](w, of, fv); fv < 8 && len(r.Topics) != 1 || fv >= 8 && len(r.Groups[0].Topics) != 1 {
				t.Errorf("all offsets version %d: %+v", fv, r)
			}
		}
		dg := kmsg.NewPtrDescribeGroupsRequest()
		dg.Groups = []string{g, "none"}
		d := ask[*kmsg.DescribeGroupsResponse](w, dg, min(v, 6))
		if d.Groups[0].State != "Stable" || len(d.Groups[0].Members) != 1 || d.Groups[0].Members[0].ClientID != "test" || d.Groups[1].State != "Dead" {
			t.Errorf("describe version %d: %+v", v, d)
		}
		lg := ask[*kmsg.ListGroupsResponse](w, kmsg.NewPtrListGroupsRequest(), min(v, 5))
		if len(lg.Groups) != int(v)+1 {
			t.Errorf("list version %d: %+v", v, lg)
		}
		lv := kmsg.NewPtrLeaveGroupRequest()
		lv.Group, lv.MemberID = g, member
		lv.Members = []kmsg.LeaveGroupRequestMember{{MemberID: member}}
		l := ask[*kmsg.LeaveGroupResponse](w, lv, min(v, 5))
		if l.ErrorCode != 0 || v >= 3 && l.Members[0].ErrorCode != 0 {
			t.Errorf("leave version %d: %+v", v, l)
		}
		commit("", -1, 0)
		commit(member, gen, codeUnknownMemberID)
	}
}

func TestGroup_TwoMembersRebalance(t *testing.T) {
	b := newBench(t, 1, Config{})
	w1, w2 := b.dial(), b.dial()
	m1, gen := w1.enter("g", 5, 3)
	req2 := joinReq("g", "")
	m2 := ask[*kmsg.JoinGroupResponse](w2, req2, 5).MemberID
	req2.MemberID = m2
	id2 := w2.send(req2)
	deadline := time.Now().Add(10 * time.Second)
	for {
		r := ask[*kmsg.HeartbeatResponse](w1, heartbeatReq("g", m1, gen), 3)
		if r.ErrorCode == codeRebalanceInProgress {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the first member never heard of the rebalance")
		}
	}
	r1 := ask[*kmsg.JoinGroupResponse](w1, joinReq("g", m1), 5)
	r2 := w2.receive(req2, id2).(*kmsg.JoinGroupResponse)
	if r1.ErrorCode != 0 || r2.ErrorCode != 0 || r1.Generation != gen+1 || r2.Generation != gen+1 || r1.LeaderID != m1 || len(r1.Members) != 2 || len(r2.Members) != 0 {
		t.Fatalf("rejoin: %+v, %+v", r1, r2)
	}
	// The follower asks first and waits for the leader.
	s2 := syncReq("g", m2, r2.Generation)
	s2.SetVersion(3)
	sid := w2.send(s2)
	a1 := ask[*kmsg.SyncGroupResponse](w1, syncReq("g", m1, r1.Generation, m1, m2), 3)
	a2 := w2.receive(s2, sid).(*kmsg.SyncGroupResponse)
	if string(a1.MemberAssignment) != "for "+m1 || string(a2.MemberAssignment) != "for "+m2 {
		t.Errorf("assignments %+v, %+v", a1, a2)
	}
	// A connection that dies while its member waits does not hurt the group.
	req2.MemberID = m2
	req2.Protocols[0].Metadata = []byte("other")
	w2.send(req2)
	_ = w2.nc.Close()
}

func TestGroup_StaticMemberKeepsItsPlace(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	req := joinReq("g", "")
	req.InstanceID = p("static-1")
	r := ask[*kmsg.JoinGroupResponse](w, req, 9)
	if r.ErrorCode != 0 || r.MemberID == "" {
		t.Fatalf("join: %+v", r)
	}
	s := ask[*kmsg.SyncGroupResponse](w, syncReq("g", r.MemberID, r.Generation, r.MemberID), 5)
	again := ask[*kmsg.JoinGroupResponse](w, req, 9)
	if again.ErrorCode != 0 || again.Generation != r.Generation || again.MemberID == r.MemberID || !again.SkipAssignment {
		t.Errorf("restart: %+v", again)
	}
	s2 := ask[*kmsg.SyncGroupResponse](w, syncReq("g", again.MemberID, again.Generation), 5)
	if string(s2.MemberAssignment) != string(s.MemberAssignment) {
		t.Errorf("assignment after restart: %q, want %q", s2.MemberAssignment, s.MemberAssignment)
	}
	old := heartbeatReq("g", r.MemberID, r.Generation)
	old.InstanceID = p("static-1")
	if h := ask[*kmsg.HeartbeatResponse](w, old, 4); h.ErrorCode != codeFencedInstanceID {
		t.Errorf("old process: %+v", h)
	}
	if older := ask[*kmsg.JoinGroupResponse](w, req, 6); older.LeaderID != "" || len(older.Members) != 0 {
		t.Errorf("restart with an old version: %+v", older)
	}
	lv := kmsg.NewPtrLeaveGroupRequest()
	lv.Group = "g"
	lv.Members = []kmsg.LeaveGroupRequestMember{{InstanceID: p("static-1")}, {InstanceID: p("none")}}
	if l := ask[*kmsg.LeaveGroupResponse](w, lv, 5); l.Members[0].ErrorCode != 0 || l.Members[1].ErrorCode != codeUnknownMemberID {
		t.Errorf("leave: %+v", l)
	}
}

func TestGroup_JoinRefusals(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.enter("g", 3, 2)
	for name, c := range map[string]struct {
		f    func(*kmsg.JoinGroupRequest)
		want int16
	}{
		"session short": {func(r *kmsg.JoinGroupRequest) { r.SessionTimeoutMillis = 1 }, codeInvalidSessionTimeout},
		"session long":  {func(r *kmsg.JoinGroupRequest) { r.SessionTimeoutMillis = 1 << 30 }, codeInvalidSessionTimeout},
		"no group":      {func(r *kmsg.JoinGroupRequest) { r.Group = "" }, codeInvalidGroupID},
		"long group":    {func(r *kmsg.JoinGroupRequest) { r.Group = string(make([]byte, 600)) }, codeInvalidGroupID},
		"unknown":       {func(r *kmsg.JoinGroupRequest) { r.MemberID = "x" }, codeUnknownMemberID},
		"no such group": {func(r *kmsg.JoinGroupRequest) { r.Group, r.MemberID = "new", "x" }, codeUnknownMemberID},
		"static":        {func(r *kmsg.JoinGroupRequest) { r.MemberID, r.InstanceID = "x", p("i") }, codeUnknownMemberID},
		"no protocols":  {func(r *kmsg.JoinGroupRequest) { r.Protocols = nil }, codeInconsistentGroupProtocol},
		"protocol":      {func(r *kmsg.JoinGroupRequest) { r.Protocols[0].Name = "other" }, codeInconsistentGroupProtocol},
		"type":          {func(r *kmsg.JoinGroupRequest) { r.ProtocolType = "connect" }, codeInconsistentGroupProtocol},
		"twice":         {func(r *kmsg.JoinGroupRequest) { r.Protocols = append(r.Protocols, r.Protocols[0]) }, codeInconsistentGroupProtocol},
		"metadata":      {func(r *kmsg.JoinGroupRequest) { r.Protocols[0].Metadata = make([]byte, 1<<20) }, codeGroupMaxSizeReached},
	} {
		req := joinReq("g", "")
		c.f(req)
		if r := ask[*kmsg.JoinGroupResponse](w, req, 6); r.ErrorCode != c.want {
			t.Errorf("%s: %+v, want %d", name, r, c.want)
		}
	}
	if r := ask[*kmsg.SyncGroupResponse](w, syncReq("none", "m", 1), 3); r.ErrorCode != codeUnknownMemberID {
		t.Errorf("sync: %+v", r)
	}
}

func TestGroup_SessionEndsWithoutHeartbeat(t *testing.T) {
	b := newBench(t, 1, Config{SessionMin: time.Millisecond})
	w := b.dial()
	req := joinReq("g", "")
	req.SessionTimeoutMillis = 50
	r := ask[*kmsg.JoinGroupResponse](w, req, 3)
	dg := kmsg.NewPtrDescribeGroupsRequest()
	dg.Groups = []string{"g"}
	deadline := time.Now().Add(20 * time.Second)
	for ask[*kmsg.DescribeGroupsResponse](w, dg, 5).Groups[0].State != "Empty" {
		if time.Now().After(deadline) {
			t.Fatal("the session never ended")
		}
	}
	if h := ask[*kmsg.HeartbeatResponse](w, heartbeatReq("g", r.MemberID, r.Generation), 4); h.ErrorCode != codeUnknownMemberID {
		t.Errorf("heartbeat after the end: %+v", h)
	}
}

func TestGroup_ManyJoinAtOnce(t *testing.T) {
	b := newBench(t, 1, Config{RebalanceDelay: 300 * time.Millisecond})
	const n = 12
	var wg sync.WaitGroup
	got := make([]*kmsg.JoinGroupResponse, n)
	for i := range n {
		w := b.dial()
		wg.Go(func() { got[i] = ask[*kmsg.JoinGroupResponse](w, joinReq("g", ""), 3) })
	}
	wg.Wait()
	leaders := 0
	for _, r := range got {
		if r.ErrorCode != 0 || r.Generation != got[0].Generation || r.LeaderID != got[0].LeaderID {
			t.Errorf("join: %+v", r)
		}
		if len(r.Members) > 0 {
			leaders++
		}
	}
	if leaders != 1 {
		t.Errorf("%d leaders", leaders)
	}
}

func TestFindCoordinator_EveryVersion(t *testing.T) {
	b := newBench(t, 3, Config{})
	w := b.dial()
	for v := int16(0); v <= 6; v++ {
		for _, c := range []struct {
			key  string
			kind int8
			want int16
		}{{"g", 0, 0}, {"", 0, 0}, {"x", 1, codeTransactionalIDAuthFailed}, {"x", 2, codeInvalidRequest}} {
			if v == 0 && c.kind != 0 {
				continue
			}
			req := kmsg.NewPtrFindCoordinatorRequest()
			req.CoordinatorKey, req.CoordinatorKeys, req.CoordinatorType = c.key, []string{c.key}, c.kind
			r := ask[*kmsg.FindCoordinatorResponse](w, req, v)
			code, node := r.ErrorCode, r.NodeID
			if v >= 4 {
				code, node = r.Coordinators[0].ErrorCode, r.Coordinators[0].NodeID
			}
			if code != c.want || c.want == 0 && node != 1 {
				t.Errorf("version %d key %q kind %d: %+v", v, c.key, c.kind, r)
			}
		}
	}
}

// See TestStatic_WhoWaitsLearnsThatItWasReplaced of package eventlog.
func TestJoinGroup_StaticMemberThatWaitsIsFenced(t *testing.T) {
	b := newBench(t, 1, Config{RebalanceDelay: 20 * time.Second})
	old, young, other := b.dial(), b.dial(), b.dial()
	join := joinReq("g", "")
	join.InstanceID = p("i")
	join.SetVersion(5)
	id := old.send(join)
	describe := kmsg.NewPtrDescribeGroupsRequest()
	describe.Groups = []string{"g"}
	for len(ask[*kmsg.DescribeGroupsResponse](other, describe, 5).Groups[0].Members) == 0 {
		runtime.Gosched()
	}
	young.send(join)
	if r := old.receive(join, id).(*kmsg.JoinGroupResponse); r.ErrorCode != codeFencedInstanceID {
		t.Errorf("the older process is told %d, want %d", r.ErrorCode, codeFencedInstanceID)
	}
}

// Kafka has no bound for the time that a member takes to join again (max.poll.interval.ms), and many set it to the largest number.
func TestJoinGroup_AnyTimeToJoinAgain(t *testing.T) {
	b := newBench(t, 1, Config{})
	for i, ms := range []int32{math.MaxInt32, int32(eventlog.SessionMax/time.Millisecond) + 1, 1, 0, -1} {
		req := joinReq(fmt.Sprint("g", i), "")
		req.RebalanceTimeoutMillis = ms
		if r := ask[*kmsg.JoinGroupResponse](b.dial(), req, 3); r.ErrorCode != 0 || r.Generation != 1 {
			t.Errorf("%d ms: %+v", ms, r)
		}
	}
}

// A member's id begins with its client's, cut to what is kept of that, which must stay text: clients send it back as they have read it.
func TestJoinGroup_MemberIDsAreText(t *testing.T) {
	w := newBench(t, 1, Config{}).dial()
	for client, want := range map[string]string{"": "member-", "app": "app-", strings.Repeat("x", 200): strings.Repeat("x", 128) + "-", strings.Repeat("x", 127) + "üü": strings.Repeat("x", 127) + "-"} {
		w.f = kmsg.NewRequestFormatter(kmsg.FormatterClientID(client))
		if r := ask[*kmsg.JoinGroupResponse](w, joinReq("names", ""), 4); !strings.HasPrefix(r.MemberID, want) || !utf8.ValidString(r.MemberID) {
			t.Errorf("client id %q: member id %q", client, r.MemberID)
		}
	}
}
