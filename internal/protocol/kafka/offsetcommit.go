package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
)

// OffsetCommit (key 8)
//
// Behaviour: stores the offsets of a request together, with their metadata. A commit of an older generation, or by a
// member that the group does not know, is refused. A consumer outside of group management (generation -1, no member id)
// may commit while the group has no members, and so may one whose group has no name: that was the default of Java's consumers before 2.2, and nobody
// can join it. Offsets go with their group, seven days after it was last used.
//
// Versions: 2 to 9.
//
// Not supported: a retention of its own for a request (versions 2 to 4 may send one; it is not looked at); topic ids.

func (s *Server) offsetCommit(ctx context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.OffsetCommitRequest)
	resp := req.ResponseKind().(*kmsg.OffsetCommitResponse)
	com := eventlog.Commit{Group: req.Group, MemberID: req.MemberID, Instance: value(req.InstanceID), Generation: req.Generation}
	type place struct{ topic, part int }
	var stored []place
	for i := range req.Topics {
		t := &req.Topics[i]
		rt := kmsg.NewOffsetCommitResponseTopic()
		rt.Topic = t.Topic
		topic, err := s.topics.ByName(ctx, t.Topic)
		for j := range t.Partitions {
			p := &t.Partitions[j]
			rp := kmsg.NewOffsetCommitResponseTopicPartition()
			rp.Partition = p.Partition
			switch {
			case errs.Is(err, errs.Unavailable) || errs.Is(err, errs.OutcomeUnknown):
				rp.ErrorCode = codeCoordinatorNotAvailable
			case err != nil:
				rp.ErrorCode = codeOf(err, faceData)
			case p.Partition < 0 || p.Partition >= topic.Partitions:
				rp.ErrorCode = codeUnknownTopicOrPartition
			case len(value(p.Metadata)) > eventlog.OffsetMetadataMax:
				rp.ErrorCode = codeOffsetMetadataTooLarge
			case p.Offset < -1:
				rp.ErrorCode = codeInvalidRequest
			default:
				stored = append(stored, place{i, j})
				com.Offsets = append(com.Offsets, eventlog.CommittedOffset{
					Topic: t.Topic, Partition: p.Partition, Offset: p.Offset, LeaderEpoch: p.LeaderEpoch, Metadata: value(p.Metadata),
				})
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	if len(stored) == 0 {
		// There is nothing to make a group for, as in Kafka (KafkaApis.handleOffsetCommitRequest).
		return resp, nil
	}
	_, code, err := s.groupCommand(ctx, req.Group, eventlog.EncodeCommit(com))
	if errs.Is(err, errs.OutcomeUnknown) {
		// Clients retry this one too, and it says what is the case.
		code = codeRequestTimedOut
	}
	resp.ThrottleMillis = throttle(err)
	for _, at := range stored {
		resp.Topics[at.topic].Partitions[at.part].ErrorCode = code
	}
	return resp, nil
}
