package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/eventlog"
)

// OffsetFetch (key 9)
//
// Behaviour: a partition without an offset, and a group that nobody knows, is answered with -1 and no error, as Kafka
// does. Without a list of topics all stored offsets are answered. There are no transactions, so every offset is stable.
//
// Versions: 1 to 9; from version 8 on for several groups.
//
// Not supported: member epochs (KIP-848) are not looked at; topic ids.

func (s *Server) offsetFetch(ctx context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.OffsetFetchRequest)
	resp := req.ResponseKind().(*kmsg.OffsetFetchResponse)
	groups := req.Groups
	if req.Version < 8 {
		g := kmsg.NewOffsetFetchRequestGroup()
		g.Group = req.Group
		for _, t := range req.Topics {
			g.Topics = append(g.Topics, kmsg.OffsetFetchRequestGroupTopic{Topic: t.Topic, Partitions: t.Partitions})
		}
		if req.Topics != nil && g.Topics == nil {
			g.Topics = []kmsg.OffsetFetchRequestGroupTopic{}
		}
		groups = []kmsg.OffsetFetchRequestGroup{g}
	}
	groups = mergeGroups(groups)
	size := 0
	for i := range groups {
		g, n := s.fetchGroup(ctx, &groups[i])
		if size += n; size > s.cfg.answerBytesMax {
			return nil, s.tooLarge(size)
		}
		resp.Groups = append(resp.Groups, g)
	}
	if req.Version < 8 {
		g := resp.Groups[0]
		resp.Groups, resp.ErrorCode = nil, g.ErrorCode
		for _, t := range g.Topics {
			x := kmsg.NewOffsetFetchResponseTopic()
			x.Topic = t.Topic
			for _, p := range t.Partitions {
				x.Partitions = append(x.Partitions, kmsg.OffsetFetchResponseTopicPartition{
					Partition: p.Partition, Offset: p.Offset, LeaderEpoch: p.LeaderEpoch, Metadata: p.Metadata, ErrorCode: p.ErrorCode,
				})
			}
			resp.Topics = append(resp.Topics, x)
		}
	}
	return resp, nil
}

// mergeGroups makes one of the questions about the same group, topic and partition.
func mergeGroups(list []kmsg.OffsetFetchRequestGroup) []kmsg.OffsetFetchRequestGroup {
	list = merge(list, func(g *kmsg.OffsetFetchRequestGroup) string { return g.Group }, func(to, more *kmsg.OffsetFetchRequestGroup) {
		to.Topics = joined(to.Topics, more.Topics)
	})
	for i := range list {
		list[i].Topics = mergeTopics(list[i].Topics)
	}
	return list
}

func mergeTopics(list []kmsg.OffsetFetchRequestGroupTopic) []kmsg.OffsetFetchRequestGroupTopic {
	list = merge(list, func(t *kmsg.OffsetFetchRequestGroupTopic) string { return t.Topic }, func(to, more *kmsg.OffsetFetchRequestGroupTopic) {
		to.Partitions = append(to.Partitions, more.Partitions...)
	})
	for i := range list {
		list[i].Partitions = once(list[i].Partitions, func(p *int32) int32 { return *p })
	}
	return list
}

// fetchGroup answers for one group, and says how many bytes there are about it.
func (s *Server) fetchGroup(ctx context.Context, g *kmsg.OffsetFetchRequestGroup) (kmsg.OffsetFetchResponseGroup, int) {
	out := kmsg.NewOffsetFetchResponseGroup()
	out.Group = g.Group
	all := g.Topics == nil
	var list []eventlog.CommittedOffset
	for _, t := range g.Topics {
		for _, p := range t.Partitions {
			if p >= 0 && p < eventlog.PartitionsPerTopicMax && len(t.Topic) <= eventlog.TopicNameMax {
				list = append(list, eventlog.CommittedOffset{Topic: t.Topic, Partition: p})
			}
		}
	}
	b, code, err := s.groupQuery(ctx, g.Group, eventlog.QueryCommits(g.Group, all, list))
	var got []eventlog.CommittedOffset
	if err == nil {
		got, err = eventlog.DecodeCommits(b)
		code = codeOf(err, faceGroup)
	}
	if code == codeCoordinatorNotAvailable {
		// Java's consumers before 4.0 throw at the application for that one, and look for the coordinator again for this.
		code = codeNotCoordinator
	}
	out.ErrorCode = code
	type place struct {
		topic string
		part  int32
	}
	found := make(map[place]*eventlog.CommittedOffset, len(got))
	for i := range got {
		found[place{got[i].Topic, got[i].Partition}] = &got[i]
	}
	if all {
		// Offsets come in the order of their topics' names.
		for i := range got {
			if n := len(g.Topics); n == 0 || g.Topics[n-1].Topic != got[i].Topic {
				g.Topics = append(g.Topics, kmsg.OffsetFetchRequestGroupTopic{Topic: got[i].Topic})
			}
			t := &g.Topics[len(g.Topics)-1]
			t.Partitions = append(t.Partitions, got[i].Partition)
		}
	}
	for _, t := range g.Topics {
		x := kmsg.NewOffsetFetchResponseGroupTopic()
		x.Topic = t.Topic
		for _, p := range t.Partitions {
			y := kmsg.NewOffsetFetchResponseGroupTopicPartition()
			y.Partition, y.Offset, y.LeaderEpoch, y.Metadata, y.ErrorCode = p, -1, -1, new(string), code
			if o := found[place{t.Topic, p}]; o != nil {
				y.Offset, y.LeaderEpoch, y.Metadata = o.Offset, o.LeaderEpoch, &o.Metadata
			}
			x.Partitions = append(x.Partitions, y)
		}
		out.Topics = append(out.Topics, x)
	}
	return out, len(b)
}
