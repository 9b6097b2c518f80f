package kafka

import (
	"cmp"
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
)

// Metadata (key 3)
//
// Behaviour: brokers are the nodes whose Kafka address is known. A partition's leader is that of its shard, its leader
// epoch the raft term; without a known leader it is LEADER_NOT_AVAILABLE. A named topic that does not exist is created
// with the defaults if the client allows it; before version 4 there is no flag, and that means yes. A name that no topic can
// have is INVALID_TOPIC_EXCEPTION either way.
//
// Versions: 0 to 13.
//
// Not supported: authorized operations, racks.

// broker is a node as clients see it.
type broker struct {
	id   int32
	host string
	port int32
}

// brokers returns the nodes whose address is known.
func (w *world) brokers() []broker {
	var list []broker
	if w.topo == nil {
		return nil
	}
	for _, n := range w.topo.Nodes {
		if host, port, ok := w.address(n.ID); ok {
			list = append(list, broker{int32(n.ID), host, port})
		}
	}
	return list
}

// controller returns the node that creates topics: the leader of the space's first shard, or this one, which passes
// requests on.
func (w *world) controller() int32 {
	if node, _ := w.leader(w.space.Shards[0]); node != 0 {
		return int32(node)
	}
	if _, _, ok := w.address(w.topo.Self); ok {
		return int32(w.topo.Self)
	}
	return -1
}

func (s *Server) metadata(ctx context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.MetadataRequest)
	resp := req.ResponseKind().(*kmsg.MetadataResponse)
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	w, err := s.world()
	if err != nil {
		resp.ErrorCode = codeOf(err, faceAdmin)
		return resp, nil
	}
	resp.ClusterID, resp.ControllerID = &w.topo.Cluster, w.controller()
	for _, b := range w.brokers() {
		x := kmsg.NewMetadataResponseBroker()
		x.NodeID, x.Host, x.Port = b.id, b.host, b.port
		resp.Brokers = append(resp.Brokers, x)
	}
	if req.Topics == nil || req.Version == 0 && len(req.Topics) == 0 {
		all, err := s.topics.All(ctx)
		if err != nil {
			// There is no place for an error of the whole request before version 13. Saying that there are no topics would
			// be wrong, so the connection is closed and the client tries again.
			if req.Version < 13 {
				return nil, err
			}
			resp.ErrorCode = codeOf(err, faceAdmin)
			return resp, nil
		}
		for i := range all {
			resp.Topics = append(resp.Topics, s.describe(&w, &all[i]))
		}
		return resp, nil
	}
	create := !s.cfg.NoAutoCreate && (req.Version < 4 || req.AllowAutoTopicCreation)
	type asked struct {
		id     [16]byte
		name   string
		noName bool
	}
	topics := once(req.Topics, func(t *kmsg.MetadataRequestTopic) asked {
		if t.TopicID != [16]byte{} {
			return asked{id: t.TopicID}
		}
		return asked{name: value(t.Topic), noName: t.Topic == nil}
	})
	for i := range topics {
		resp.Topics = append(resp.Topics, s.describeNamed(ctx, &w, &topics[i], create))
	}
	return resp, nil
}

// describeNamed answers for one topic of a request.
func (s *Server) describeNamed(ctx context.Context, w *world, t *kmsg.MetadataRequestTopic, create bool) kmsg.MetadataResponseTopic {
	var topic *eventlog.Topic
	var err error
	byID := t.TopicID != [16]byte{}
	switch {
	case byID:
		topic, err = s.topics.ByID(ctx, t.TopicID)
	case t.Topic == nil:
		err = errs.Coded(errs.Invalid, "INVALIDTOPIC", "topic without a name")
	case create:
		topic, err = s.topics.Ensure(ctx, *t.Topic)
	default:
		topic, err = s.topics.ByName(ctx, *t.Topic)
		if errs.Is(err, errs.NotFound) {
			// If nobody can make it, clients are told: they wait for a topic that is unknown (KafkaApis.getTopicMetadata).
			err = cmp.Or(eventlog.CheckTopicName(*t.Topic), err)
		}
	}
	if err == nil {
		return s.describe(w, topic)
	}
	x := kmsg.NewMetadataResponseTopic()
	x.Topic, x.TopicID, x.ErrorCode = t.Topic, t.TopicID, codeOf(err, faceAdmin)
	if x.Topic == nil && !byID {
		x.Topic = new(string)
	}
	switch {
	case byID && errs.Is(err, errs.NotFound):
		x.ErrorCode = codeUnknownTopicID
	case errs.Is(err, errs.Unavailable) || errs.Is(err, errs.OutcomeUnknown) || errs.Is(err, errs.Overloaded):
		// The code that every client takes as "ask again".
		x.ErrorCode = codeLeaderNotAvailable
	}
	return x
}

// describe makes the answer for a topic.
func (s *Server) describe(w *world, t *eventlog.Topic) kmsg.MetadataResponseTopic {
	x := kmsg.NewMetadataResponseTopic()
	x.Topic, x.TopicID, x.IsInternal = &t.Name, t.ID, s.isChanges(t)
	x.Partitions = make([]kmsg.MetadataResponseTopicPartition, t.Partitions)
	for i := range x.Partitions {
		p := &x.Partitions[i]
		*p = kmsg.NewMetadataResponseTopicPartition()
		on := w.space.PartitionShard(int32(i))
		node, epoch := w.leader(on)
		p.Partition, p.Leader, p.LeaderEpoch = int32(i), int32(node), epoch
		if node == 0 {
			p.ErrorCode, p.Leader = codeLeaderNotAvailable, -1
		}
		info, _ := w.topo.Shard(on)
		for _, n := range info.Replicas {
			p.Replicas = append(p.Replicas, int32(n))
			if member, ok := w.topo.Node(n); ok && member.Up {
				p.ISR = append(p.ISR, int32(n))
			} else {
				p.OfflineReplicas = append(p.OfflineReplicas, int32(n))
			}
		}
	}
	return x
}
