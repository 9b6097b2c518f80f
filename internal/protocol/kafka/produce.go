package kafka

import (
	"context"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
	"github.com/quorate/quorate/internal/shard"
)

// Produce (key 0)
//
// Behaviour: each batch is checked (format, counts, checksum, and each record, also of compressed ones) and handed to
// its partition's shard as it is, but for a latest time stamp that is not that of the records, which is set right. One that is refused is so by itself,
// and with a code after which no client sends it again. The batches of one request for one shard are one log entry. Acks 1 and all mean the
// same: a majority has the batch on disk. Acks 0 gets no answer, and an error closes the connection, as in Kafka. An
// unknown outcome is REQUEST_TIMED_OUT: an idempotent producer may repeat the batch and gets the offset it had.
//
// Versions: 3 to 12; announced from 0, because librdkafka takes a higher minimum for a broker without compression
// (KAFKA-18659). Older versions, whose records have another format, are refused.
//
// A topic with the setting quorate.fence=LOCK takes records only under the fencing token of that lock's holder: each has it in the
// header quorate-fence. The server looks into the batch for it, and the shard compares. A stale one is POLICY_VIOLATION: Java, librdkafka
// and franz-go fail the batch with it, do not try again, and go on with the next, which is right once the lock is acquired again.
// PRODUCER_FENCED would end Java's producer for good, and INVALID_PRODUCER_EPOCH makes franz-go send the batch again.
//
// Not supported: transactions; topic ids (version 13).

// timeAheadMax is how far ahead of the node's clock a record may be stamped, as in Kafka (message.timestamp.after.max.ms). A batch goes when its
// latest record is old enough: one stamped far ahead, in microseconds for milliseconds, say, would end retention for all behind it.
const timeAheadMax = time.Hour

// appendBytesMax is how many bytes of batches go into one command.
const appendBytesMax = 4 << 20

// produceWork is a produce request under way.
type produceWork struct {
	req     *kmsg.ProduceRequest
	resp    *kmsg.ProduceResponse
	flights []flight
	cancel  context.CancelFunc
	ctx     context.Context
	// moved is set when a partition was refused because another node leads it.
	moved bool
	world world
	// unpacked is how many bytes the compressed batches of the request have unpacked to.
	unpacked int64
}

// flight is one command, and the answers it is to fill in.
type flight struct {
	future *shard.Future
	parts  []*kmsg.ProduceResponseTopicPartition
}

// load collects the batches for one shard.
type load struct {
	on    shard.ID
	size  int
	list  []eventlog.Append
	parts []*kmsg.ProduceResponseTopicPartition
}

func (s *Server) produce(ctx context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	return s.endProduce(ctx, s.beginProduce(ctx, r.(*kmsg.ProduceRequest)))
}

// beginProduce checks a request and hands its batches to their shards without waiting for them.
func (s *Server) beginProduce(ctx context.Context, req *kmsg.ProduceRequest) *produceWork {
	w := &produceWork{req: req, resp: req.ResponseKind().(*kmsg.ProduceResponse)}
	limit := s.cfg.RequestTimeout
	if t := time.Duration(req.TimeoutMillis) * time.Millisecond; t > 0 && t < limit {
		limit = t
	}
	w.ctx, w.cancel = context.WithTimeout(ctx, limit)
	var refuse error
	switch {
	case req.TransactionID != nil:
		refuse = errs.Coded(errs.Unsupported, "TRANSACTION", "transactions are not supported; produce without transactional.id")
	case req.Acks < -1 || req.Acks > 1:
		refuse = errs.Coded(errs.Invalid, "INVALIDACKS", "acks is %d; 0, 1 and -1 (all) are allowed", req.Acks)
	default:
		w.world, refuse = s.world()
	}
	var loads []*load
	w.resp.Topics = make([]kmsg.ProduceResponseTopic, len(req.Topics))
	for i := range req.Topics {
		t := &req.Topics[i]
		rt := &w.resp.Topics[i]
		*rt = kmsg.NewProduceResponseTopic()
		rt.Topic = t.Topic
		rt.Partitions = make([]kmsg.ProduceResponseTopicPartition, len(t.Partitions))
		var topic *eventlog.Topic
		err := refuse
		if err == nil {
			topic, err = s.producible(w.ctx, t.Topic)
		}
		for j := range t.Partitions {
			p, rp := &t.Partitions[j], &rt.Partitions[j]
			*rp = kmsg.NewProduceResponseTopicPartition()
			rp.Partition, rp.BaseOffset = p.Partition, -1
			err, token := err, int64(0)
			if err == nil {
				token, err = w.check(s, topic, p, rp)
			}
			switch {
			case err != nil:
				w.refuse(s, rp, err)
			case rp.ErrorCode == 0:
				loads = w.load(s, loads, eventlog.Append{Topic: topic.ID, Partition: p.Partition, Batch: p.Records, Token: token}, rp)
			}
		}
	}
	for _, l := range loads {
		w.send(s, l)
	}
	return w
}

// producible finds a topic that clients may write to.
func (s *Server) producible(ctx context.Context, name string) (*eventlog.Topic, error) {
	if strings.HasPrefix(name, eventlog.ChangesPrefix) {
		return nil, errs.New(errs.Denied, "topic %q shows the change log and cannot be written to", name)
	}
	return s.topics.ByName(ctx, name)
}

// check refuses a batch that must not reach the shard, and returns the fencing token of its records, if the topic wants one. It sets the code
// itself if another node leads the partition.
func (w *produceWork) check(s *Server, t *eventlog.Topic, p *kmsg.ProduceRequestTopicPartition, rp *kmsg.ProduceResponseTopicPartition) (int64, error) {
	if p.Partition < 0 || p.Partition >= t.Partitions {
		return 0, errs.New(errs.NotFound, "topic %q has partitions 0 to %d, not %d", t.Name, t.Partitions-1, p.Partition)
	}
	bytesMax := int(t.MessageBytesMax)
	if bytesMax == 0 {
		bytesMax = eventlog.MessageBytesDefault
	}
	if len(p.Records) > bytesMax {
		return 0, errs.New(errs.TooLarge, "a record batch of %d bytes; max.message.bytes of topic %q is %d", len(p.Records), t.Name, bytesMax)
	}
	on := w.world.space.PartitionShard(p.Partition)
	if info, _ := w.world.topo.Shard(on); info.Leader != 0 && info.Leader != w.world.topo.Self {
		node, epoch := w.world.leader(on)
		rp.ErrorCode = codeNotLeaderOrFollower
		if node != 0 {
			rp.CurrentLeader.LeaderID, rp.CurrentLeader.LeaderEpoch = int32(node), epoch
		}
		w.moved = true
		return 0, nil
	}
	h, err := eventlog.CheckBatch(p.Records)
	if err != nil {
		return 0, err
	}
	h, token, err := w.records(s, t, h, p.Records)
	if err != nil {
		return 0, err
	}
	if ahead := time.Until(time.UnixMilli(h.MaxTimestamp)); ahead > timeAheadMax {
		return 0, errs.Coded(errs.Invalid, "INVALIDTIMESTAMP", "a record is stamped %v ahead of this node's clock; at most %v are allowed: time stamps are in milliseconds", ahead.Round(time.Second), timeAheadMax)
	}
	if t.Fence == "" || on == w.world.space.Shards[0] {
		return token, nil
	}
	err = eventlog.Stale(s.tokens.Check(w.ctx, []byte(t.Fence), token))
	if errs.Is(err, errs.Fenced) && h.ProducerID >= 0 {
		// It may have been appended when the token was good, and the answer lost.
		return eventlog.TokenStale, nil
	}
	return token, err
}

// records checks the records of a batch, which may be compressed, and returns their fencing token and the batch's header as it is then.
func (w *produceWork) records(s *Server, t *eventlog.Topic, h eventlog.BatchHeader, batch []byte) (eventlog.BatchHeader, int64, error) {
	which := h.Attributes & eventlog.AttrCodec
	if which == 0 {
		return eventlog.CheckRecords(batch, h, nil, t)
	}
	x, err := s.unpack.open(w.ctx, which, batch[eventlog.BatchHeaderSize:], w.unpacked)
	if err != nil {
		return h, 0, err
	}
	defer func() { w.unpacked += x.close() }()
	return eventlog.CheckRecords(batch, h, x.out, t)
}

func (w *produceWork) refuse(s *Server, rp *kmsg.ProduceResponseTopicPartition, err error) {
	rp.BaseOffset = -1
	rp.ErrorCode, rp.ErrorMessage = codeOf(err, faceData), text(err)
	if rp.ErrorCode == codePolicyViolation {
		s.m.fenced.Inc()
	}
	w.resp.ThrottleMillis = max(w.resp.ThrottleMillis, throttle(err))
}

// load puts a batch with the others for its shard.
func (w *produceWork) load(s *Server, loads []*load, a eventlog.Append, rp *kmsg.ProduceResponseTopicPartition) []*load {
	on := w.world.space.PartitionShard(a.Partition)
	var l *load
	for _, x := range loads {
		if x.on == on {
			l = x
		}
	}
	if l == nil {
		l = &load{on: on}
		loads = append(loads, l)
	}
	if l.size > 0 && l.size+len(a.Batch) > appendBytesMax {
		w.send(s, l)
		*l = load{on: on}
	}
	l.size += len(a.Batch)
	l.list = append(l.list, a)
	l.parts = append(l.parts, rp)
	return loads
}

func (w *produceWork) send(s *Server, l *load) {
	data := eventlog.EncodeAppend(l.list, l.on == w.world.space.Shards[0])
	f := s.client.Submit(w.ctx, shard.Route{Shard: l.on}, shard.Command{Module: shard.ModuleEventlog, Data: data})
	w.flights = append(w.flights, flight{f, l.parts})
}

// endProduce waits for the shards and makes the answer.
func (s *Server) endProduce(_ context.Context, w *produceWork) (kmsg.Response, error) {
	defer w.cancel()
	for _, f := range w.flights {
		r := f.future.Wait(w.ctx)
		var list []eventlog.Appended
		err := r.Err
		if err == nil {
			list, err = eventlog.DecodeAppended(r.Data)
		}
		if err == nil && len(list) != len(f.parts) {
			err = errs.New(errs.Internal, "%d answers to %d appends", len(list), len(f.parts))
		}
		for i, rp := range f.parts {
			switch {
			case err != nil:
				w.refuse(s, rp, err)
			case list[i].Err != nil:
				w.refuse(s, rp, list[i].Err)
				rp.LogStartOffset = list[i].LogStart
			default:
				rp.BaseOffset, rp.LogStartOffset = list[i].Base, list[i].LogStart
			}
		}
	}
	if w.moved {
		for _, b := range w.world.brokers() {
			w.resp.Brokers = append(w.resp.Brokers, kmsg.ProduceResponseBroker{NodeID: b.id, Host: b.host, Port: b.port})
		}
	}
	if w.req.Acks != 0 {
		return w.resp, nil
	}
	for i := range w.resp.Topics {
		for _, p := range w.resp.Topics[i].Partitions {
			if p.ErrorCode != 0 {
				return nil, errs.New(errs.Conflict, "a batch produced with acks=0 was refused with code %d; closing is the only way to say so", p.ErrorCode)
			}
		}
	}
	return nil, nil
}
