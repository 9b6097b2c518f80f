package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
)

// OffsetForLeaderEpoch (key 23)
//
// Behaviour: where a leader epoch ended. What was acknowledged is never taken back, so no client ever finds that its
// position is beyond that; they ask all the same.
//
// Versions: 0 to 4.
//
// Not supported: nothing.

func (s *Server) offsetForLeaderEpoch(ctx context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.OffsetForLeaderEpochRequest)
	resp := req.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	w, werr := s.world()
	for i := range req.Topics {
		t := &req.Topics[i]
		rt := kmsg.NewOffsetForLeaderEpochResponseTopic()
		rt.Topic = t.Topic
		var topic *eventlog.Topic
		err := werr
		if err == nil {
			topic, err = s.topics.ByName(ctx, t.Topic)
		}
		for j := range t.Partitions {
			p := &t.Partitions[j]
			rp := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
			rp.Partition = p.Partition
			switch {
			case err != nil:
				rp.ErrorCode = codeOf(err, faceData)
			case p.Partition < 0 || p.Partition >= topic.Partitions:
				rp.ErrorCode = codeUnknownTopicOrPartition
			default:
				on := w.space.PartitionShard(p.Partition)
				if rp.ErrorCode = w.checkEpoch(on, p.CurrentLeaderEpoch); rp.ErrorCode != codeNone {
					break
				}
				b, err := s.topics.query(ctx, on, eventlog.QueryEnds([]eventlog.Ends{{
					Topic: topic.ID, Partition: p.Partition, Changes: s.isChanges(topic), Epoch: p.LeaderEpoch,
				}}))
				var ends []eventlog.EndsAnswer
				if err == nil {
					ends, err = eventlog.DecodeEnds(b)
				}
				if err == nil && len(ends) != 1 {
					err = errs.New(errs.Internal, "%d answers to one question", len(ends))
				}
				if rp.ErrorCode = codeOf(err, faceData); err == nil {
					rp.LeaderEpoch, rp.EndOffset = ends[0].Epoch, ends[0].EpochEnd
				}
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp, nil
}
