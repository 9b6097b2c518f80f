package kafka

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
	"github.com/quorate/quorate/internal/shard"
)

// three makes a cluster of three nodes for the second of two shards. Node 3 is away.
func (b *bench) three() {
	b.c.SetTopology(func(t *shard.Topology) {
		t.Nodes = append(t.Nodes, shard.Node{ID: 2, Up: true, Addr: map[string]string{"kafka": "127.0.0.2:9092"}}, shard.Node{ID: 3, Addr: map[string]string{"kafka": "127.0.0.3:9093"}})
		t.Shards = []shard.ShardInfo{
			{ID: 1, Leader: 1, Term: 7, Replicas: []shard.NodeID{1, 2, 3}}, {ID: 2, Leader: 2, Term: 9, Replicas: []shard.NodeID{1, 2, 3}},
		}
	})
}

func TestMetadata_WhoHoldsWhat(t *testing.T) {
	b := newBench(t, 2, Config{})
	w := b.dial()
	w.createTopic("t", 2)
	b.three()
	req := kmsg.NewPtrMetadataRequest()
	r := ask[*kmsg.MetadataResponse](w, req, 12)
	if r.ControllerID != 1 || len(r.Brokers) != 3 || r.Brokers[1].NodeID != 2 || r.Brokers[1].Host != "127.0.0.2" || r.Brokers[2].Port != 9093 {
		t.Errorf("brokers: %+v", r)
	}
	if r.Topics[0].IsInternal || !r.Topics[1].IsInternal || *r.Topics[1].Topic != "__changes.default" || r.Topics[0].TopicID == [16]byte{} {
		t.Errorf("topics: %+v", r.Topics)
	}
	for i, p := range r.Topics[0].Partitions {
		if p.Partition != int32(i) || p.Leader != int32(i+1) || p.LeaderEpoch != []int32{7, 9}[i] ||
			!slices.Equal(p.Replicas, []int32{1, 2, 3}) || !slices.Equal(p.ISR, []int32{1, 2}) || !slices.Equal(p.OfflineReplicas, []int32{3}) {
			t.Errorf("partition %d: %+v", i, p)
		}
	}
	// Of a leader that has no address nobody can make use, and then this node passes on what is for the controller.
	b.c.SetTopology(func(t *shard.Topology) { t.Nodes[1].Addr, t.Shards[0].Leader = nil, 2 })
	r = ask[*kmsg.MetadataResponse](w, req, 12)
	if p := r.Topics[0].Partitions[0]; p.Leader != -1 || p.ErrorCode != codeLeaderNotAvailable || r.ControllerID != 1 || len(r.Brokers) != 2 {
		t.Errorf("a leader without an address: %+v, controller %d, %d brokers", p, r.ControllerID, len(r.Brokers))
	}
	b.c.SetTopology(func(t *shard.Topology) { t.Nodes[0].Addr = nil })
	if r := ask[*kmsg.MetadataResponse](w, req, 12); r.ControllerID != -1 {
		t.Errorf("no address at all: controller %d", r.ControllerID)
	}
}

func TestMetadata_WhatIsAskedFor(t *testing.T) {
	b := newBench(t, 1, Config{NoAutoCreate: true})
	w := b.dial()
	w.createTopic("t", 1)
	named := func(name *string, id byte) *kmsg.MetadataRequest {
		req := kmsg.NewPtrMetadataRequest()
		req.AllowAutoTopicCreation = true
		x := kmsg.NewMetadataRequestTopic()
		x.Topic, x.TopicID[0] = name, id
		req.Topics = []kmsg.MetadataRequestTopic{x}
		return req
	}
	for _, v := range []int16{0, 3, 4, 12} {
		if r := ask[*kmsg.MetadataResponse](w, named(p("new"), 0), v).Topics[0]; r.ErrorCode != codeUnknownTopicOrPartition {
			t.Errorf("version %d: created though the configuration forbids it: %+v", v, r)
		}
	}
	if r := ask[*kmsg.MetadataResponse](w, named(nil, 1), 12).Topics[0]; r.ErrorCode != codeUnknownTopicID || r.TopicID[0] != 1 || r.Topic != nil {
		t.Errorf("an unknown id: %+v", r)
	}
	if r := ask[*kmsg.MetadataResponse](w, named(nil, 0), 12).Topics[0]; r.ErrorCode != codeInvalidTopic {
		t.Errorf("neither name nor id: %+v", r)
	}
	// In version 0 no names are all topics; later that is null.
	none := kmsg.NewPtrMetadataRequest()
	none.Topics = []kmsg.MetadataRequestTopic{}
	for v, want := range map[int16]int{0: 2, 1: 0, 9: 0} {
		if r := ask[*kmsg.MetadataResponse](w, none, v); len(r.Topics) != want {
			t.Errorf("version %d: no names are %d topics, want %d", v, len(r.Topics), want)
		}
	}
	for _, err := range []error{errs.New(errs.Overloaded, "full"), errs.New(errs.Unavailable, "away"), errs.New(errs.OutcomeUnknown, "late")} {
		b.c.Refuse(err)
		if r := ask[*kmsg.MetadataResponse](w, named(p("other"), 0), 9).Topics[0]; r.ErrorCode != codeLeaderNotAvailable {
			t.Errorf("%v: %+v", err, r)
		}
		// All topics cannot be told of. Before version 13 there is no word for that, and an answer without topics would be wrong.
		all := kmsg.NewPtrMetadataRequest()
		if r := ask[*kmsg.MetadataResponse](w, all, 13); r.ErrorCode == 0 || len(r.Topics) > 0 {
			t.Errorf("%v: all topics: %+v", err, r)
		}
		x := b.dial()
		all.SetVersion(12)
		if x.send(all); !x.closed() {
			t.Errorf("%v: all topics in version 12 were answered", err)
		}
	}
}

func TestListGroups_Filters(t *testing.T) {
	b := newBench(t, 2, Config{})
	w := b.dial()
	// The hash of a group's name says which shard it is on.
	for _, g := range []string{"a", "b", "c", "d"} {
		w.enter(g, 5, 3)
	}
	lv := kmsg.NewPtrLeaveGroupRequest()
	member, _ := w.enter("left", 5, 3)
	lv.Group, lv.Members = "left", []kmsg.LeaveGroupRequestMember{{MemberID: member}}
	ask[*kmsg.LeaveGroupResponse](w, lv, 5)
	list := func(states, types []string) (names []string) {
		req := kmsg.NewPtrListGroupsRequest()
		req.StatesFilter, req.TypesFilter = states, types
		for _, g := range ask[*kmsg.ListGroupsResponse](w, req, 5).Groups {
			if g.GroupType != "classic" || g.ProtocolType != "consumer" || g.GroupState != map[bool]string{true: "Empty", false: "Stable"}[g.Group == "left"] {
				t.Errorf("group %+v", g)
			}
			names = append(names, g.Group)
		}
		slices.Sort(names)
		return names
	}
	stable := []string{"a", "b", "c", "d"}
	for _, c := range []struct {
		states, types, want []string
	}{
		{nil, nil, append(slices.Clone(stable), "left")}, {[]string{"stable"}, nil, stable}, {[]string{"Dead", "EMPTY"}, []string{"Classic"}, []string{"left"}},
		{nil, []string{"consumer"}, nil}, {[]string{"Dead"}, nil, nil},
	} {
		if got := list(c.states, c.types); !slices.Equal(got, c.want) {
			t.Errorf("states %v, types %v: %v, want %v", c.states, c.types, got, c.want)
		}
	}
	b.three()
	var here []string
	for _, g := range append(stable, "left") {
		if groupShard(shard.Space{Shards: []shard.ID{1, 2}}, g) == 1 {
			here = append(here, g)
		}
	}
	if got := list(nil, nil); !slices.Equal(got, here) || len(here) == 5 {
		t.Errorf("groups of shards that another node leads are listed: %v, want %v", got, here)
	}
}

// Where a group's state lies must never change, nor where another node looks for it.
func TestGroupShard_NeverChanges(t *testing.T) {
	sp := shard.Space{Shards: []shard.ID{1, 2, 3, 4, 5, 6, 7}}
	for group, want := range map[string]shard.ID{"": 3, "a": 6, "b": 7, "orders": 4, "payments-v2": 3, "grün": 1} {
		if got := groupShard(sp, group); got != want {
			t.Errorf("group %q: shard %d, want %d", group, got, want)
		}
	}
}

func TestGroup_WhatMembersSayOfThemselves(t *testing.T) {
	b := newBench(t, 1, Config{SessionMin: 2 * time.Second, SessionMax: 20 * time.Second})
	w := b.dial()
	for ms, want := range map[int32]int16{1999: codeInvalidSessionTimeout, 2000: 0, 20_000: 0, 20_001: codeInvalidSessionTimeout} {
		req := joinReq(fmt.Sprint("s", ms), "")
		req.SessionTimeoutMillis = ms
		if r := ask[*kmsg.JoinGroupResponse](w, req, 3); r.ErrorCode != want {
			t.Errorf("a session of %d ms: %d, want %d", ms, r.ErrorCode, want)
		}
	}
	req := joinReq("g", "")
	req.InstanceID = p("i-1")
	r := ask[*kmsg.JoinGroupResponse](w, req, 5)
	if len(r.Members) != 1 || r.Members[0].InstanceID == nil || *r.Members[0].InstanceID != "i-1" || string(r.Members[0].ProtocolMetadata) != "meta" {
		t.Fatalf("the leader sees %+v", r.Members)
	}
	ask[*kmsg.SyncGroupResponse](w, syncReq("g", r.MemberID, r.Generation, r.MemberID), 5)
	w.enter("dynamic", 5, 3)
	dg := kmsg.NewPtrDescribeGroupsRequest()
	dg.Groups = []string{"g", "dynamic", "none", ""}
	for v := int16(0); v <= 6; v++ {
		d := ask[*kmsg.DescribeGroupsResponse](w, dg, v).Groups
		for i, g := range d {
			if g.Group != dg.Groups[i] {
				t.Errorf("version %d: group %q in place of %q", v, g.Group, dg.Groups[i])
			}
		}
		m, dynamic := d[0].Members[0], d[1].Members[0]
		if m.MemberID != r.MemberID || string(m.ProtocolMetadata) != "meta" || string(m.MemberAssignment) != "for "+r.MemberID || m.ClientHost != "/127.0.0.1" ||
			v >= 4 && (m.InstanceID == nil || *m.InstanceID != "i-1") || dynamic.InstanceID != nil {
			t.Errorf("version %d: members %+v, %+v", v, m, dynamic)
		}
		if none := d[2]; none.State != "Dead" || (none.ErrorCode == codeGroupIDNotFound) != (v >= 6) || (none.ErrorCode != 0) != (v >= 6) {
			t.Errorf("version %d: no group: %+v", v, none)
		}
		if none := d[3]; none.State != "Dead" || (none.ErrorCode == codeGroupIDNotFound) != (v >= 6) || (none.ErrorCode != 0) != (v >= 6) {
			t.Errorf("version %d: no name: %+v", v, none)
		}
	}
	b.c.SetTopology(func(t *shard.Topology) {
		t.Nodes = append(t.Nodes, shard.Node{ID: 2, Up: true, Addr: map[string]string{"kafka": "127.0.0.2:9092"}})
		t.Shards[0].Leader = 2
	})
	lv := kmsg.NewPtrLeaveGroupRequest()
	lv.Group, lv.Members = "g", []kmsg.LeaveGroupRequestMember{{MemberID: r.MemberID}}
	if l := ask[*kmsg.LeaveGroupResponse](w, lv, 5); l.ErrorCode != codeNotCoordinator {
		t.Errorf("leave at another node: %+v", l)
	}
	fc := kmsg.NewPtrFindCoordinatorRequest()
	fc.CoordinatorKeys = []string{"g", strings.Repeat("g", eventlog.GroupNameMax), strings.Repeat("g", eventlog.GroupNameMax+1)}
	c := ask[*kmsg.FindCoordinatorResponse](w, fc, 4).Coordinators
	if c[0].NodeID != 2 || c[0].Host != "127.0.0.2" || c[0].Port != 9092 || c[1].ErrorCode != 0 || c[2].ErrorCode != codeInvalidGroupID || c[2].NodeID != -1 || c[2].ErrorMessage == nil {
		t.Errorf("coordinators: %+v", c)
	}
	b.c.SetTopology(func(t *shard.Topology) { t.Shards[0].Leader = 0 })
	if c := ask[*kmsg.FindCoordinatorResponse](w, fc, 4).Coordinators; c[0].ErrorCode != codeCoordinatorNotAvailable || c[0].NodeID != -1 || c[0].ErrorMessage == nil {
		t.Errorf("no leader: %+v", c[0])
	}
}

func TestOffsets_WhatIsStored(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 2)
	w.createTopic("u", 1)
	commit := func(topic string, part int32, offset int64, note string) (int16, int32) {
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group = "g"
		x := kmsg.NewOffsetCommitRequestTopic()
		x.Topic = topic
		y := kmsg.NewOffsetCommitRequestTopicPartition()
		y.Partition, y.Offset, y.LeaderEpoch, y.Metadata = part, offset, 3, &note
		x.Partitions = append(x.Partitions, y)
		req.Topics = append(req.Topics, x)
		r := ask[*kmsg.OffsetCommitResponse](w, req, 8)
		if r.Topics[0].Topic != topic || r.Topics[0].Partitions[0].Partition != part {
			t.Errorf("answer %+v of %s/%d", r, topic, part)
		}
		return r.Topics[0].Partitions[0].ErrorCode, r.ThrottleMillis
	}
	for _, c := range []struct {
		topic  string
		part   int32
		offset int64
		note   string
		want   int16
	}{
		{"t", 0, 5, strings.Repeat("x", eventlog.OffsetMetadataMax), 0}, {"t", 0, 6, strings.Repeat("x", eventlog.OffsetMetadataMax+1), codeOffsetMetadataTooLarge},
		{"t", 1, -1, "", 0}, {"t", 1, -2, "", codeInvalidRequest}, {"t", 2, 1, "", codeUnknownTopicOrPartition}, {"t", -1, 1, "", codeUnknownTopicOrPartition},
		{"no", 0, 1, "", codeUnknownTopicOrPartition}, {"u", 0, 9, "", 0},
	} {
		if code, _ := commit(c.topic, c.part, c.offset, c.note); code != c.want {
			t.Errorf("%s/%d at %d, %d bytes of metadata: %d, want %d", c.topic, c.part, c.offset, len(c.note), code, c.want)
		}
	}
	for _, v := range []int16{2, 7, 8} {
		fetch := func(topics bool) *kmsg.OffsetFetchResponse {
			req := kmsg.NewPtrOffsetFetchRequest()
			req.Group = "g"
			g := kmsg.NewOffsetFetchRequestGroup()
			g.Group = "g"
			if topics {
				req.Topics, g.Topics = []kmsg.OffsetFetchRequestTopic{}, []kmsg.OffsetFetchRequestGroupTopic{}
			}
			req.Groups = append(req.Groups, g)
			return ask[*kmsg.OffsetFetchResponse](w, req, v)
		}
		got := func(r *kmsg.OffsetFetchResponse) (s []string) {
			if v < 8 {
				for _, x := range r.Topics {
					for _, p := range x.Partitions {
						s = append(s, fmt.Sprint(x.Topic, p.Partition, " ", p.Offset))
					}
				}
				return s
			}
			if r.Groups[0].Group != "g" {
				t.Errorf("group %q", r.Groups[0].Group)
			}
			for _, x := range r.Groups[0].Topics {
				for _, p := range x.Partitions {
					s = append(s, fmt.Sprint(x.Topic, p.Partition, " ", p.Offset))
				}
			}
			return s
		}
		if s, want := got(fetch(false)), []string{"t0 5", "t1 -1", "u0 9"}; !slices.Equal(s, want) {
			t.Errorf("version %d: all offsets are %q, want %q", v, s, want)
		}
		// An empty list is no topics, null is all.
		if s := got(fetch(true)); len(s) != 0 {
			t.Errorf("version %d: offsets of no topics are %q", v, s)
		}
	}
	b.c.Refuse(errs.New(errs.OutcomeUnknown, "late"))
	if code, _ := commit("t", 0, 1, ""); code != codeRequestTimedOut {
		t.Errorf("a commit of which nobody knows: %d", code)
	}
	b.c.Refuse(errs.New(errs.Overloaded, "full"))
	if code, throttle := commit("t", 0, 1, ""); code != codeCoordinatorLoadInProgress || throttle == 0 {
		t.Errorf("a commit that is refused: %d, throttle %d", code, throttle)
	}
	if code, _ := commit("new", 0, 1, ""); code != codeRequestTimedOut {
		t.Errorf("a commit whose topic cannot be looked for: %d", code)
	}
	b.c.Refuse(errs.New(errs.Unavailable, "away"))
	if code, _ := commit("new", 0, 1, ""); code != codeCoordinatorNotAvailable {
		t.Errorf("a commit whose topic cannot be found: %d", code)
	}
}

func TestListOffsets_Refusals(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 2)
	w.produce("t", 1, records(0, 100, 110))
	ends := func(topic string, part int32, ms int64, epoch int32) kmsg.ListOffsetsResponseTopicPartition {
		req := listReq(topic, ms)
		req.Topics[0].Partitions[0].Partition, req.Topics[0].Partitions[0].CurrentLeaderEpoch = part, epoch
		r := ask[*kmsg.ListOffsetsResponse](w, req, 7).Topics[0]
		if r.Topic != topic || r.Partitions[0].Partition != part {
			t.Errorf("answer %+v of %s/%d", r, topic, part)
		}
		return r.Partitions[0]
	}
	epochs := func(topic string, part, current int32) kmsg.OffsetForLeaderEpochResponseTopicPartition {
		req := kmsg.NewPtrOffsetForLeaderEpochRequest()
		x := kmsg.NewOffsetForLeaderEpochRequestTopic()
		x.Topic = topic
		y := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
		y.Partition, y.CurrentLeaderEpoch, y.LeaderEpoch = part, current, 1
		x.Partitions = append(x.Partitions, y)
		req.Topics = append(req.Topics, x)
		return ask[*kmsg.OffsetForLeaderEpochResponse](w, req, 3).Topics[0].Partitions[0]
	}
	for _, c := range []struct {
		topic       string
		part, epoch int32
		want        int16
	}{
		{"t", 1, -1, 0}, {"t", 1, 1, 0}, {"t", 1, 0, codeFencedLeaderEpoch}, {"t", 1, 2, codeUnknownLeaderEpoch},
		{"t", 2, -1, codeUnknownTopicOrPartition}, {"t", -1, -1, codeUnknownTopicOrPartition}, {"no", 0, -1, codeUnknownTopicOrPartition},
	} {
		end := int64(-1)
		if c.want == 0 {
			end = 2
		}
		if r := ends(c.topic, c.part, -1, c.epoch); r.ErrorCode != c.want || r.Offset != end || c.want == 0 && r.LeaderEpoch != 1 {
			t.Errorf("%s/%d, epoch %d: %+v, want %d", c.topic, c.part, c.epoch, r, c.want)
		}
		if r := epochs(c.topic, c.part, c.epoch); r.Partition != c.part || r.ErrorCode != c.want || r.EndOffset != end {
			t.Errorf("end of an epoch, %s/%d, epoch %d: %+v, want %d", c.topic, c.part, c.epoch, r, c.want)
		}
	}
	if r := ends("t", 1, 105, -1); r.Offset != 1 || r.LeaderEpoch != 1 {
		t.Errorf("by time: %+v", r)
	}
	for _, ms := range []int64{-6, math.MinInt64} {
		if r := ends("t", 1, ms, -1); r.ErrorCode != codeUnsupportedVersion || r.Offset != -1 || r.Timestamp != -1 {
			t.Errorf("time %d, which has no meaning: %+v", ms, r)
		}
	}
	b.c.Refuse(errs.New(errs.Overloaded, "full"))
	for _, ms := range []int64{-1, -2, 0} {
		if r := ends("t", 1, ms, -1); r.ErrorCode != codeRequestTimedOut || r.Offset != -1 || r.Timestamp != -1 {
			t.Errorf("overload, time %d: %+v", ms, r)
		}
	}
	if r := epochs("t", 1, -1); r.ErrorCode != codeRequestTimedOut || r.EndOffset != -1 {
		t.Errorf("overload, end of an epoch: %+v", r)
	}
	if r := ends("new", 0, -1, -1); r.ErrorCode != codeRequestTimedOut {
		t.Errorf("overload, a topic that was not looked for yet: %+v", r)
	}
}

func TestTopics_WhatTheyWereCreatedWith(t *testing.T) {
	for _, partitions := range []int32{0, 5} {
		b := newBench(t, 2, Config{Partitions: partitions})
		w := b.dial()
		req := kmsg.NewPtrCreateTopicsRequest()
		x := kmsg.NewCreateTopicsRequestTopic()
		x.Topic, x.NumPartitions, x.ReplicationFactor = "t", -1, 1
		want := map[string]string{"retention.ms": "60000", "retention.bytes": "1000000", "max.message.bytes": "2000", "quorate.fence": "lock", "cleanup.policy": "delete"}
		for name, value := range want {
			x.Configs = append(x.Configs, kmsg.CreateTopicsRequestTopicConfig{Name: name, Value: &value})
		}
		req.Topics = append(req.Topics, x)
		req.ValidateOnly = true
		if r := ask[*kmsg.CreateTopicsResponse](w, req, 7).Topics[0]; r.ErrorCode != 0 || r.TopicID != [16]byte{} {
			t.Errorf("only checked: %+v", r)
		}
		req.ValidateOnly = false
		made := ask[*kmsg.CreateTopicsResponse](w, req, 7).Topics[0]
		if made.ErrorCode != 0 || made.TopicID == [16]byte{} || made.NumPartitions != max(partitions, 2) {
			t.Fatalf("created: %+v", made)
		}
		dc := kmsg.NewPtrDescribeConfigsRequest()
		dc.Resources = []kmsg.DescribeConfigsRequestResource{{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: "t"}, {ResourceType: kmsg.ConfigResourceTypeBroker}}
		got := ask[*kmsg.DescribeConfigsResponse](w, dc, 4).Resources
		if got[0].ResourceName != "t" || got[0].ResourceType != kmsg.ConfigResourceTypeTopic || got[1].ResourceType != kmsg.ConfigResourceTypeBroker || got[1].ErrorCode != 0 {
			t.Errorf("resources: %+v", got)
		}
		for _, c := range got[0].Configs {
			value, set := want[c.Name]
			set = set && c.Name != "cleanup.policy"
			fixed := c.Name == "cleanup.policy" || c.Name == "compression.type" || c.Name == "message.timestamp.type"
			source := kmsg.ConfigSourceDefaultConfig
			if set {
				source = kmsg.ConfigSourceDynamicTopicConfig
			}
			if set && *c.Value != value || c.ReadOnly != fixed || c.Source != source || c.Documentation != nil {
				t.Errorf("setting %s: %+v", c.Name, c)
			}
			if c.Name == "retention.ms" && c.ConfigType != kmsg.ConfigTypeLong {
				t.Errorf("type of %s: %v", c.Name, c.ConfigType)
			}
		}
		for _, c := range got[1].Configs {
			if !c.ReadOnly || c.Name == "num.partitions" && *c.Value != fmt.Sprint(max(partitions, 2)) || c.Name == "auto.create.topics.enable" && *c.Value != "true" {
				t.Errorf("broker's setting %s: %q, %+v", c.Name, *c.Value, c)
			}
		}
		for _, c := range made.Configs {
			if value, ok := want[c.Name]; ok && *c.Value != value {
				t.Errorf("setting %s in the answer: %q, want %q", c.Name, *c.Value, value)
			}
		}
		if c := topicConfigs(&eventlog.Topic{}); c[2].name != "max.message.bytes" || c[2].value != fmt.Sprint(eventlog.MessageBytesDefault) {
			t.Errorf("default: %+v", c[2])
		}
	}
}

func TestFetch_FieldsOfTheAnswer(t *testing.T) {
	b := newBench(t, 2, Config{})
	w := b.dial()
	w.createTopic("t", 2)
	id := ask[*kmsg.MetadataResponse](w, kmsg.NewPtrMetadataRequest(), 12).Topics[0].TopicID
	w.produce("t", 0, records(0, 1, 2))
	b.three()
	for v := int16(4); v <= 17; v++ {
		req := fetchReq("t", 0, 0, 0, 1)
		req.Topics[0].TopicID = id
		other, gone := req.Topics[0].Partitions[0], req.Topics[0].Partitions[0]
		other.Partition, gone.Partition = 1, 2
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, other, gone)
		r := ask[*kmsg.FetchResponse](w, req, v)
		if v < 13 && r.Topics[0].Topic != "t" || v >= 13 && r.Topics[0].TopicID != id {
			t.Errorf("version %d: topic %+v", v, r.Topics[0])
		}
		ps := r.Topics[0].Partitions
		for i, want := range []int16{0, codeNotLeaderOrFollower, codeUnknownTopicOrPartition} {
			if ps[i].Partition != int32(i) || ps[i].ErrorCode != want || (ps[i].HighWatermark == -1) != (want != 0) || (len(ps[i].RecordBatches) > 0) != (want == 0) {
				t.Errorf("version %d, partition %d: %+v", v, i, ps[i])
			}
		}
		if v >= 12 && (ps[1].CurrentLeader.LeaderID != 2 || ps[1].CurrentLeader.LeaderEpoch != 9 || ps[0].CurrentLeader.LeaderID != -1) {
			t.Errorf("version %d: leaders %+v, %+v", v, ps[0].CurrentLeader, ps[1].CurrentLeader)
		}
		if v >= 16 && (len(r.Brokers) != 3 || r.Brokers[1].NodeID != 2 || r.Brokers[1].Host != "127.0.0.2" || r.Brokers[1].Port != 9092) {
			t.Errorf("version %d: brokers %+v", v, r.Brokers)
		}
		if v >= 12 {
			req.Topics[0].Partitions[0].CurrentLeaderEpoch = 6
			r := ask[*kmsg.FetchResponse](w, req, v)
			x := r.Topics[0].Partitions[0]
			if x.ErrorCode != codeFencedLeaderEpoch || x.CurrentLeader.LeaderID != 1 || x.CurrentLeader.LeaderEpoch != 7 || v >= 16 && len(r.Brokers) != 3 {
				t.Errorf("version %d, an earlier leader's epoch: %+v", v, x)
			}
		}
		req.SessionID, req.SessionEpoch = 5, 1
		if r := ask[*kmsg.FetchResponse](w, req, max(v, 7)); r.ErrorCode != codeFetchSessionIDNotFound {
			t.Errorf("version %d, a session that there is not: %+v", v, r)
		}
	}
}

func TestProduce_AcksThatAreNone(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	for acks, want := range map[int16]int16{-2: codeInvalidRequiredAcks, -1: 0, 1: 0, 2: codeInvalidRequiredAcks} {
		r := ask[*kmsg.ProduceResponse](w, produceReq("t", 0, acks, records(0, 1)), 9).Topics[0].Partitions[0]
		if r.ErrorCode != want || (r.BaseOffset == -1) != (want != 0) {
			t.Errorf("acks %d: %+v", acks, r)
		}
	}
}

// A connection that has ended makes room for another.
func TestServer_EndedConnectionsGiveTheirPlaces(t *testing.T) {
	b := newBench(t, 1, Config{ConnectionsMax: 2})
	gauge := func() float64 { return b.series()["quorate_kafka_connections"] }
	for range 6 {
		w := b.dial()
		ask[*kmsg.ApiVersionsResponse](w, kmsg.NewPtrApiVersionsRequest(), 3)
		if n := gauge(); n < 1 || n > 2 {
			t.Errorf("%v connections, want 1 or 2", n)
		}
		_ = w.nc.Close()
		for end := time.Now().Add(time.Minute); gauge() != 0; runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatal("the connection is still counted after a minute")
			}
		}
	}
}

func TestForeign_IsRecognised(t *testing.T) {
	for head, want := range map[string]string{
		"GET ": "HTTP", "POST": "HTTP", "PUT ": "HTTP", "HEAD": "HTTP", "DELE": "HTTP", "OPTI": "HTTP", "PRI ": "HTTP",
		"\x16\x03\x01\x02": "TLS", "\x16\x04\x00\x00": "", "*1\r\n": "Redis", "*2\r\n": "Redis", "PING": "Redis", "\x00\x00\x00\x20": "",
	} {
		if got := foreign([4]byte([]byte(head))); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q: %q, want %q", head, got, want)
		}
	}
}

// Programs that make sure that their topics are there go on upon TOPIC_ALREADY_EXISTS. In Kafka (ReplicationControlManager.createTopics) that comes
// before all that is wrong with what else they ask for.
func TestCreateTopics_ThatItExistsComesFirst(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	compact := kmsg.NewCreateTopicsRequestTopicConfig()
	compact.Name, compact.Value = "cleanup.policy", p("compact")
	for name, f := range map[string]func(*kmsg.CreateTopicsRequestTopic){
		"a setting":            func(x *kmsg.CreateTopicsRequestTopic) { x.Configs = append(x.Configs, compact) },
		"a replication factor": func(x *kmsg.CreateTopicsRequestTopic) { x.ReplicationFactor = 3 },
		"partitions":           func(x *kmsg.CreateTopicsRequestTopic) { x.NumPartitions = 1 << 30 },
		"an assignment": func(x *kmsg.CreateTopicsRequestTopic) {
			x.ReplicaAssignment = append(x.ReplicaAssignment, kmsg.NewCreateTopicsRequestTopicReplicaAssignment())
		},
	} {
		for _, only := range []bool{false, true} {
			req := kmsg.NewPtrCreateTopicsRequest()
			req.ValidateOnly = only
			x := kmsg.NewCreateTopicsRequestTopic()
			x.Topic, x.NumPartitions, x.ReplicationFactor = "t", -1, -1
			f(&x)
			req.Topics = append(req.Topics, x)
			if r := ask[*kmsg.CreateTopicsResponse](w, req, 7).Topics[0]; r.ErrorCode != codeTopicAlreadyExists {
				t.Errorf("%s that cannot be, only checked %v: %+v", name, only, r)
			}
		}
	}
}

// Java's producer waits for a minute for a topic that is unknown, and its consumer for ever; of a name that no topic can have they tell the
// application at once.
func TestMetadata_NamesThatNoTopicCanHave(t *testing.T) {
	for _, none := range []bool{false, true} {
		b := newBench(t, 1, Config{NoAutoCreate: none})
		w := b.dial()
		for v := int16(4); v <= 13; v++ {
			for _, create := range []bool{false, true} {
				req := kmsg.NewPtrMetadataRequest()
				req.AllowAutoTopicCreation = create
				names := []string{"a b", "", ".", strings.Repeat("x", 300), "__consumer_offsets"}
				for _, name := range names {
					x := kmsg.NewMetadataRequestTopic()
					x.Topic = p(name)
					req.Topics = append(req.Topics, x)
				}
				r := ask[*kmsg.MetadataResponse](w, req, v)
				for i, name := range names {
					if x := r.Topics[i]; x.ErrorCode != codeInvalidTopic || *x.Topic != name {
						t.Errorf("version %d, creating %v, %v: %q: %+v", v, create, !none, name, x)
					}
				}
				x := kmsg.NewMetadataRequestTopic()
				x.Topic = p("__changes.default")
				req.Topics = []kmsg.MetadataRequestTopic{x}
				if r := ask[*kmsg.MetadataResponse](w, req, v); r.Topics[0].ErrorCode != 0 {
					t.Errorf("version %d: the change log: %+v", v, r.Topics[0])
				}
			}
		}
	}
}

// Java's consumers before 2.2 that assign partitions to themselves, and have no group.id, look for the coordinator of the group without a name, and
// for its offsets, before they read anything. Kafka serves it, but has no members join it (GroupCoordinatorService).
func TestGroup_WithoutAName(t *testing.T) {
	b := newBench(t, 3, Config{})
	w := b.dial()
	w.createTopic("t", 2)
	for v := int16(0); v <= 6; v++ {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.CoordinatorKeys = []string{""}
		if r := ask[*kmsg.FindCoordinatorResponse](w, req, v); r.ErrorCode != 0 || v >= 4 && r.Coordinators[0].ErrorCode != 0 {
			t.Errorf("version %d: coordinator: %+v", v, r)
		}
	}
	fetched := func(v int16) int64 {
		req := kmsg.NewPtrOffsetFetchRequest()
		req.Topics = append(req.Topics, kmsg.OffsetFetchRequestTopic{Topic: "t", Partitions: []int32{1}})
		g := kmsg.NewOffsetFetchRequestGroup()
		g.Topics = append(g.Topics, kmsg.OffsetFetchRequestGroupTopic{Topic: "t", Partitions: []int32{1}})
		req.Groups = append(req.Groups, g)
		r := ask[*kmsg.OffsetFetchResponse](w, req, v)
		if v < 8 {
			r.Groups = []kmsg.OffsetFetchResponseGroup{{ErrorCode: r.ErrorCode, Topics: []kmsg.OffsetFetchResponseGroupTopic{{Partitions: []kmsg.OffsetFetchResponseGroupTopicPartition{{
				Offset: r.Topics[0].Partitions[0].Offset, ErrorCode: r.Topics[0].Partitions[0].ErrorCode,
			}}}}}}
		}
		x := r.Groups[0].Topics[0].Partitions[0]
		if r.Groups[0].ErrorCode != 0 || x.ErrorCode != 0 {
			t.Errorf("version %d: offsets: %+v", v, r.Groups[0])
		}
		return x.Offset
	}
	want := int64(-1)
	for v := int16(2); v <= 9; v++ {
		if got := fetched(v); got != want {
			t.Errorf("version %d: offset %d, want %d", v, got, want)
		}
		want = int64(v)
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Generation = -1
		x := kmsg.NewOffsetCommitRequestTopic()
		x.Topic, x.Partitions = "t", []kmsg.OffsetCommitRequestTopicPartition{{Partition: 1, Offset: want, LeaderEpoch: -1}}
		req.Topics = append(req.Topics, x)
		if r := ask[*kmsg.OffsetCommitResponse](w, req, v); r.Topics[0].Partitions[0].ErrorCode != 0 {
			t.Errorf("version %d: commit: %+v", v, r)
		}
		if got := fetched(v); got != want {
			t.Errorf("version %d: offset %d, want %d", v, got, want)
		}
		if r := ask[*kmsg.JoinGroupResponse](w, joinReq("", ""), v); r.ErrorCode != codeInvalidGroupID {
			t.Errorf("version %d: join: %+v", v, r)
		}
	}
	dg := kmsg.NewPtrDescribeGroupsRequest()
	dg.Groups = []string{""}
	if r := ask[*kmsg.DescribeGroupsResponse](w, dg, 6).Groups[0]; r.ErrorCode != 0 || r.State != "Empty" {
		t.Errorf("described: %+v", r)
	}
	if r := ask[*kmsg.ListGroupsResponse](w, kmsg.NewPtrListGroupsRequest(), 5).Groups; len(r) != 1 || r[0].Group != "" || r[0].GroupState != "Empty" {
		t.Errorf("listed: %+v", r)
	}
}

func TestOffsetCommit_OfNothingMakesNoGroup(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	for name, c := range map[string]struct {
		topics []kmsg.OffsetCommitRequestTopic
		want   int16
	}{
		"no topics":             {},
		"a topic that is not":   {[]kmsg.OffsetCommitRequestTopic{{Topic: "none", Partitions: []kmsg.OffsetCommitRequestTopicPartition{{}}}}, codeUnknownTopicOrPartition},
		"a partition too many":  {[]kmsg.OffsetCommitRequestTopic{{Topic: "t", Partitions: []kmsg.OffsetCommitRequestTopicPartition{{Partition: 1}}}}, codeUnknownTopicOrPartition},
		"a topic of nothing":    {[]kmsg.OffsetCommitRequestTopic{{Topic: "t"}}, 0},
		"metadata that is long": {[]kmsg.OffsetCommitRequestTopic{{Topic: "t", Partitions: []kmsg.OffsetCommitRequestTopicPartition{{Metadata: p(strings.Repeat("x", 5000))}}}}, codeOffsetMetadataTooLarge},
	} {
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group, req.Generation, req.Topics = "g", -1, c.topics
		r := ask[*kmsg.OffsetCommitResponse](w, req, 8)
		if len(r.Topics) != len(c.topics) {
			t.Fatalf("%s: %+v", name, r)
		}
		for _, x := range r.Topics {
			for _, x := range x.Partitions {
				if x.ErrorCode != c.want {
					t.Errorf("%s: code %d, want %d", name, x.ErrorCode, c.want)
				}
			}
		}
		if g := ask[*kmsg.ListGroupsResponse](w, kmsg.NewPtrListGroupsRequest(), 4).Groups; len(g) != 0 {
			t.Errorf("%s: groups %+v", name, g)
		}
	}
}
