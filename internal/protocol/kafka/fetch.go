package kafka

import (
	"context"
	"reflect"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
	"github.com/quorate/quorate/internal/shard"
)

// Fetch (key 1)
//
// Behaviour: stored batches go back unchanged; an offset inside a batch returns the whole batch, and the first batch is
// returned whole even if it is larger than allowed. Reads are linearizable, and only the leader of a partition's shard
// serves it. If there are fewer than min bytes, and no limit keeps any out, the request waits for an append, up to max wait. Both isolation levels see
// the same records. The topic __changes.<space> shows the shards' change logs.
//
// Versions: 4 to 17; topic ids from 13 on.
//
// Not supported: incremental sessions (KIP-227; the session id is always 0, which clients take for "none"), fetching from
// followers, tiered storage.

const (
	// fetchWaitMax bounds how long a fetch may wait.
	fetchWaitMax = 5 * time.Minute
	// fetchPause is how long a fetch rests before it looks again after a look that did not find enough.
	fetchPause = 5 * time.Millisecond
	// watchesMax is how many partitions a fetch watches one by one; with more it watches their shards.
	watchesMax = 256
)

// fetchPart is one partition of a request.
type fetchPart struct {
	ask  eventlog.Fetch
	on   shard.ID
	resp *kmsg.FetchResponseTopicPartition
}

// fetchWork is a fetch request under way.
type fetchWork struct {
	s     *Server
	req   *kmsg.FetchRequest
	resp  *kmsg.FetchResponse
	parts []*fetchPart
	// failed says that a partition has an error: the answer is sent at once then.
	failed, moved bool
	world         world
}

func (s *Server) fetch(ctx context.Context, c *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.FetchRequest)
	w := &fetchWork{s: s, req: req, resp: req.ResponseKind().(*kmsg.FetchResponse)}
	if req.SessionID != 0 {
		w.resp.ErrorCode = codeFetchSessionIDNotFound
		return w.resp, nil
	}
	var err error
	if w.world, err = s.world(); err != nil {
		w.resp.ErrorCode = codeOf(err, faceFetch)
		return w.resp, nil
	}
	w.prepare(ctx)
	if err := w.run(c); err != nil {
		return nil, err
	}
	if w.moved {
		for _, b := range w.world.brokers() {
			w.resp.Brokers = append(w.resp.Brokers, kmsg.FetchResponseBroker{NodeID: b.id, Host: b.host, Port: b.port})
		}
	}
	return w.resp, nil
}

// prepare finds the partitions and makes the frame of the answer.
func (w *fetchWork) prepare(ctx context.Context) {
	w.resp.Topics = make([]kmsg.FetchResponseTopic, len(w.req.Topics))
	for i := range w.req.Topics {
		t := &w.req.Topics[i]
		rt := &w.resp.Topics[i]
		*rt = kmsg.NewFetchResponseTopic()
		rt.Topic, rt.TopicID = t.Topic, t.TopicID
		rt.Partitions = make([]kmsg.FetchResponseTopicPartition, len(t.Partitions))
		var topic *eventlog.Topic
		var err error
		if w.req.Version >= 13 {
			topic, err = w.s.topics.ByID(ctx, t.TopicID)
		} else {
			topic, err = w.s.topics.ByName(ctx, t.Topic)
		}
		code := fetchCode(err, w.req.Version)
		for j := range t.Partitions {
			p, rp := &t.Partitions[j], &rt.Partitions[j]
			*rp = kmsg.NewFetchResponseTopicPartition()
			rp.Partition, rp.HighWatermark, rp.RecordBatches = p.Partition, -1, []byte{}
			rp.ErrorCode = code
			if code == codeNone && (p.Partition < 0 || p.Partition >= topic.Partitions) {
				rp.ErrorCode = codeUnknownTopicOrPartition
			}
			if rp.ErrorCode == codeNone {
				w.part(topic, p, rp)
			}
			w.failed = w.failed || rp.ErrorCode != codeNone
		}
	}
}

func (w *fetchWork) part(topic *eventlog.Topic, p *kmsg.FetchRequestTopicPartition, rp *kmsg.FetchResponseTopicPartition) {
	on := w.world.space.PartitionShard(p.Partition)
	rp.ErrorCode = w.world.checkEpoch(on, p.CurrentLeaderEpoch)
	if rp.ErrorCode == codeNotLeaderOrFollower || rp.ErrorCode == codeFencedLeaderEpoch {
		// Who knows of an earlier leader is told of this one, and need not ask for it (KIP-951).
		if node, epoch := w.world.leader(on); node != 0 {
			rp.CurrentLeader.LeaderID, rp.CurrentLeader.LeaderEpoch = int32(node), epoch
		}
		w.moved = true
	}
	if rp.ErrorCode != codeNone {
		return
	}
	w.parts = append(w.parts, &fetchPart{on: on, resp: rp, ask: eventlog.Fetch{
		Topic: topic.ID, Partition: p.Partition, Changes: w.s.isChanges(topic), Offset: p.FetchOffset, BytesMax: max(p.PartitionMaxBytes, 0),
	}})
}

// bytesMax returns how many bytes the answer may hold.
func (w *fetchWork) bytesMax() int32 {
	n, sum := max(min(w.req.MaxBytes, w.s.cfg.FetchBytesMax), 0), int64(0)
	for _, p := range w.parts {
		sum += int64(p.ask.BytesMax)
	}
	return int32(min(int64(n), sum))
}

// bytesMin returns how many bytes there must be for an answer before the wait is over: no more than it may hold, as in Kafka.
func (w *fetchWork) bytesMin(bytesMax int32) int {
	return int(min(w.req.MinBytes, max(bytesMax, 1)))
}

// wide says that there are so many partitions that a fetch watches their shards as a whole.
func (w *fetchWork) wide() bool { return len(w.parts) > watchesMax }

// run looks until there is enough to answer.
func (w *fetchWork) run(c *conn) error {
	if len(w.parts) == 0 {
		return nil
	}
	wait := min(max(time.Duration(w.req.MaxWaitMillis)*time.Millisecond, 0), fetchWaitMax)
	end := time.NewTimer(wait)
	defer end.Stop()
	var signals []reflect.SelectCase
	if !w.failed && wait > 0 && w.req.MinBytes > 0 {
		watches := w.watch()
		for _, x := range watches {
			defer x.Close()
			signals = append(signals, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(x.C)})
		}
	}
	signals = append(signals,
		reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(end.C)},
		reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(c.polls.Done())})
	bytesMax := w.bytesMax()
	bytesMin := w.bytesMin(bytesMax)
	for last := w.failed || len(signals) == 2; ; {
		ctx, cancel := context.WithTimeout(c.work, w.s.cfg.RequestTimeout)
		room, err := w.s.fetches.grant(ctx, int(bytesMax))
		if err != nil {
			cancel()
			w.fail(err)
			return nil
		}
		n, more := w.look(ctx, bytesMax)
		cancel()
		if last || w.failed || more || n >= bytesMin {
			// A client that is slow to take a short answer does not keep the room of a long one from others.
			room.keep(n)
			c.held = room
			return nil
		}
		room.keep(0)
		c.flushEarlier()
		chosen, _, _ := reflect.Select(signals)
		last = chosen >= len(signals)-2
		if !last && (n > 0 || w.wide()) {
			// Too little came, or what came may be for others: let more come before looking again.
			pause := time.NewTimer(fetchPause)
			select {
			case <-pause.C:
			case <-c.polls.Done():
				last = true
			}
			pause.Stop()
		}
	}
}

// watch registers for appends to the partitions.
func (w *fetchWork) watch() []*shard.Watch {
	var list []*shard.Watch
	many := w.wide()
	type seen struct {
		on      shard.ID
		changes bool
	}
	shards := map[seen]bool{}
	for _, p := range w.parts {
		k := seen{p.on, p.ask.Changes}
		if (many || p.ask.Changes) && shards[k] {
			continue
		}
		shards[k] = true
		span := eventlog.PartitionSpan(p.ask.Topic, p.ask.Partition)
		switch {
		case p.ask.Changes:
			span = eventlog.ChangesSpan()
		case many:
			span = eventlog.AllPartitionsSpan()
		}
		list = append(list, w.s.client.Watch(shard.Route{Shard: p.on}, span))
	}
	return list
}

// look reads all partitions once and returns how many bytes there were, and whether a limit kept more out.
func (w *fetchWork) look(ctx context.Context, bytesMax int32) (total int, more bool) {
	first := true
	for i := 0; i < len(w.parts); {
		// Partitions of one shard that follow each other are asked for together.
		on := w.parts[i].on
		var ask []eventlog.Fetch
		j := i
		for ; j < len(w.parts) && w.parts[j].on == on; j++ {
			ask = append(ask, w.parts[j].ask)
		}
		b, err := w.s.topics.query(ctx, on, eventlog.QueryFetch(bytesMax-int32(min(total, int(bytesMax))), first, ask))
		var got []eventlog.Fetched
		if err == nil {
			got, err = eventlog.DecodeFetched(b)
		}
		if err == nil && len(got) != len(ask) {
			err = errs.New(errs.Internal, "%d answers to %d fetches", len(got), len(ask))
		}
		for k := i; k < j; k++ {
			rp := w.parts[k].resp
			if err != nil {
				w.failPart(rp, err)
				continue
			}
			f := got[k-i]
			rp.HighWatermark, rp.LastStableOffset, rp.LogStartOffset = f.End, f.End, f.Start
			rp.RecordBatches = f.Batches
			if f.Err != nil {
				w.failPart(rp, f.Err)
				if errs.Is(f.Err, errs.Invalid) {
					rp.ErrorCode = codeOffsetOutOfRange
				}
			}
			total += len(f.Batches)
			first = first && len(f.Batches) == 0
			more = more || f.More
		}
		i = j
	}
	return total, more
}

func (w *fetchWork) failPart(rp *kmsg.FetchResponseTopicPartition, err error) {
	rp.ErrorCode, rp.RecordBatches = codeOf(err, faceFetch), []byte{}
	w.resp.ThrottleMillis = max(w.resp.ThrottleMillis, throttle(err))
	w.failed = true
}

func (w *fetchWork) fail(err error) {
	for _, p := range w.parts {
		w.failPart(p.resp, err)
	}
}
