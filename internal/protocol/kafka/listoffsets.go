package kafka

import (
	"bufio"
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
	"github.com/quorate/quorate/internal/shard"
)

// ListOffsets (key 2)
//
// Behaviour: the next offset (-1), the first (-2 and, as nothing is tiered, -4), the record with the latest time stamp
// (-3), and by time the first record stamped at or after it: exact to the record, also inside compressed batches. Which
// batches have such a record their headers say: Produce sets that right.
//
// Versions: 1 to 10.
//
// Not supported: tiered storage (-5 answers -1, "nothing there").

const (
	listLatest        = -1
	listEarliest      = -2
	listMaxTimestamp  = -3
	listEarliestLocal = -4
	listLatestTiered  = -5
)

func (s *Server) listOffsets(ctx context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.ListOffsetsRequest)
	resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	w, werr := s.world()
	for i := range req.Topics {
		t := &req.Topics[i]
		rt := kmsg.NewListOffsetsResponseTopic()
		rt.Topic = t.Topic
		var topic *eventlog.Topic
		err := werr
		if err == nil {
			topic, err = s.topics.ByName(ctx, t.Topic)
		}
		for j := range t.Partitions {
			p := &t.Partitions[j]
			rp := kmsg.NewListOffsetsResponseTopicPartition()
			rp.Partition = p.Partition
			switch {
			case err != nil:
				rp.ErrorCode = codeOf(err, faceData)
			case p.Partition < 0 || p.Partition >= topic.Partitions:
				rp.ErrorCode = codeUnknownTopicOrPartition
			default:
				on := w.space.PartitionShard(p.Partition)
				if rp.ErrorCode = w.checkEpoch(on, p.CurrentLeaderEpoch); rp.ErrorCode == codeNone {
					if err := s.listOffset(ctx, &w, topic, on, p.Timestamp, &rp); err != nil {
						rp.ErrorCode, rp.Offset, rp.Timestamp = codeOf(err, faceData), -1, -1
						resp.ThrottleMillis = max(resp.ThrottleMillis, throttle(err))
					}
				}
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp, nil
}

// listOffset finds one offset.
func (s *Server) listOffset(ctx context.Context, w *world, t *eventlog.Topic, on shard.ID, ms int64, rp *kmsg.ListOffsetsResponseTopicPartition) error {
	_, epoch := w.leader(on)
	changes := s.isChanges(t)
	switch {
	case ms == listLatest || ms == listEarliest || ms == listEarliestLocal:
		b, err := s.topics.query(ctx, on, eventlog.QueryEnds([]eventlog.Ends{{Topic: t.ID, Partition: rp.Partition, Changes: changes}}))
		if err != nil {
			return err
		}
		ends, err := eventlog.DecodeEnds(b)
		if err != nil {
			return err
		}
		rp.Offset = ends[0].Start
		if ms == listLatest {
			rp.Offset = ends[0].End
			if !changes {
				rp.LeaderEpoch = epoch
			}
		}
		return nil
	case ms == listLatestTiered:
		return nil
	case ms < listLatestTiered:
		// Later versions of Kafka have more of them (ReplicaManager.isListOffsetsTimestampUnsupported).
		return errs.New(errs.Unsupported, "time stamp %d has no meaning", ms)
	case changes:
		b, err := s.topics.query(ctx, on, eventlog.QueryChangeTime(ms))
		if err == nil {
			rp.Offset, rp.Timestamp, err = eventlog.DecodeChangeTime(b)
		}
		return err
	}
	b, err := s.topics.query(ctx, on, eventlog.QueryTime(t.ID, rp.Partition, ms))
	if err != nil || len(b) == 0 {
		return err
	}
	h, ok := eventlog.ReadBatchHeader(b)
	if !ok {
		return errs.New(errs.Corrupt, "stored batch of %d bytes", len(b))
	}
	if ms == listMaxTimestamp {
		ms = h.MaxTimestamp
	}
	rp.LeaderEpoch = h.LeaderEpoch
	rp.Offset, rp.Timestamp = h.BaseOffset, h.FirstTimestamp
	var body *bufio.Reader
	if which := h.Attributes & eventlog.AttrCodec; which != 0 {
		x, err := s.unpack.open(ctx, which, b[eventlog.BatchHeaderSize:], 0)
		if err != nil {
			return err
		}
		defer x.close()
		body = x.out
	}
	delta, at, ok, err := eventlog.FindTime(b, h, body, ms)
	switch {
	case errs.Is(err, errs.Overloaded):
		return err
	case err != nil:
		// It was stored by a version that did not look into it. The batch is the best there is, and starts early enough.
		s.log.Debug("cannot look into a compressed batch", "error", err.Error())
	case ok:
		rp.Offset, rp.Timestamp = h.BaseOffset+delta, at
	}
	return nil
}
