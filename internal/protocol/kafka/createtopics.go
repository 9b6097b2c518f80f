package kafka

import (
	"context"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
)

// CreateTopics (key 19)
//
// Behaviour: a topic is one command on the space's first shard. The number of partitions may be left out (-1); the
// replication factor is that of the shards, so it is -1 or exactly that. Settings that are not served are refused by name.
// From version 5 on the answer holds what the topic has, settings included, never null (Java's admin client fails on
// null).
//
// Versions: 2 to 7.
//
// Not supported: replica assignments; compaction and every setting that DescribeConfigs does not list.

func (s *Server) createTopics(ctx context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.CreateTopicsRequest)
	resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
	limit := s.cfg.RequestTimeout
	if t := time.Duration(req.TimeoutMillis) * time.Millisecond; t > 0 && t < limit {
		limit = t
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	times := map[string]int{}
	for i := range req.Topics {
		times[req.Topics[i].Topic]++
	}
	for i := range req.Topics {
		t := &req.Topics[i]
		x := kmsg.NewCreateTopicsResponseTopic()
		x.Topic, x.Configs = t.Topic, []kmsg.CreateTopicsResponseTopicConfig{}
		var topic *eventlog.Topic
		factor, err := int16(0), error(nil)
		if times[t.Topic] > 1 {
			err = errs.New(errs.Invalid, "topic %q is named twice in one request", t.Topic)
		} else {
			topic, factor, err = s.createTopic(ctx, t, req.ValidateOnly)
		}
		if err != nil {
			x.ErrorCode, x.ErrorMessage = codeOf(err, faceAdmin), text(err)
			resp.ThrottleMillis = max(resp.ThrottleMillis, throttle(err))
		} else {
			x.NumPartitions, x.ReplicationFactor = topic.Partitions, factor
			if !req.ValidateOnly {
				x.TopicID = topic.ID
			}
			for _, c := range topicConfigs(topic) {
				y := kmsg.NewCreateTopicsResponseTopicConfig()
				y.Name, y.Value, y.ReadOnly, y.Source = c.name, &c.value, c.fixed, int8(c.source())
				x.Configs = append(x.Configs, y)
			}
		}
		resp.Topics = append(resp.Topics, x)
	}
	return resp, nil
}

// createTopic creates one topic, or only checks it.
func (s *Server) createTopic(ctx context.Context, t *kmsg.CreateTopicsRequestTopic, checkOnly bool) (*eventlog.Topic, int16, error) {
	w, err := s.world()
	if err != nil {
		return nil, 0, err
	}
	if err := eventlog.CheckTopicName(t.Topic); err != nil {
		return nil, 0, err
	}
	// Whoever makes sure that a topic is there goes on upon TOPIC_ALREADY_EXISTS, whatever else it asked for. It comes before all that
	// is said of the rest, as in Kafka (ReplicationControlManager.createTopics).
	switch _, err := s.topics.ByName(ctx, t.Topic); {
	case err == nil:
		return nil, 0, errs.New(errs.Exists, "topic %q exists", t.Topic)
	case !errs.Is(err, errs.NotFound):
		return nil, 0, err
	}
	info, _ := w.topo.Shard(w.space.Shards[0])
	factor := int16(len(info.Replicas))
	switch {
	case len(t.ReplicaAssignment) > 0:
		return nil, 0, errs.Coded(errs.Unsupported, "REPLICAASSIGNMENT", "replicas are placed with their shards and cannot be assigned; leave the assignment out")
	case t.ReplicationFactor != -1 && (t.ReplicationFactor < 1 || t.ReplicationFactor > factor):
		return nil, 0, errs.Coded(errs.Invalid, "REPLICATIONFACTOR", "every shard has %d replicas; leave the replication factor out (-1) instead of %d", factor, t.ReplicationFactor)
	case t.NumPartitions != -1 && t.NumPartitions < 1:
		return nil, 0, errs.Coded(errs.Invalid, "INVALIDPARTITIONS", "topic has %d partitions; 1 to %d are allowed, or -1 for the default", t.NumPartitions, eventlog.PartitionsPerTopicMax)
	}
	x := eventlog.Topic{Name: t.Topic, Partitions: max(t.NumPartitions, 0)}
	for _, c := range t.Configs {
		if err := setConfig(&x, c.Name, c.Value); err != nil {
			return nil, 0, err
		}
	}
	if !checkOnly {
		made, err := s.topics.Create(ctx, x)
		return made, factor, err
	}
	s.topics.complete(&x, w.space)
	return &x, factor, eventlog.CheckTopic(x)
}

// topicConfig is a setting of a topic.
type topicConfig struct {
	name, value, about string
	// kind is the type as DescribeConfigs numbers it.
	kind kmsg.ConfigType
	// set says that the topic differs from the default; fixed that it cannot.
	set, fixed bool
}

func (c *topicConfig) source() kmsg.ConfigSource {
	if c.set {
		return kmsg.ConfigSourceDynamicTopicConfig
	}
	return kmsg.ConfigSourceDefaultConfig
}

// topicConfigs lists every setting that a topic has.
func topicConfigs(t *eventlog.Topic) []topicConfig {
	forEver := func(v int64) string {
		if v == 0 {
			return "-1"
		}
		return strconv.FormatInt(v, 10)
	}
	bytesMax := t.MessageBytesMax
	if bytesMax == 0 {
		bytesMax = eventlog.MessageBytesDefault
	}
	return []topicConfig{
		{"cleanup.policy", "delete", "Old records are deleted by retention; compaction is not supported.", kmsg.ConfigTypeList, false, true},
		{"compression.type", "producer", "Batches are stored as they were produced.", kmsg.ConfigTypeString, false, true},
		{"max.message.bytes", strconv.Itoa(int(bytesMax)), "The largest record batch.", kmsg.ConfigTypeInt, t.MessageBytesMax != 0, false},
		{"message.timestamp.type", "CreateTime", "Time stamps are the producer's.", kmsg.ConfigTypeString, false, true},
		{"quorate.fence", t.Fence, "The lock under whose fencing token records are appended, in their header quorate-fence; empty for none.", kmsg.ConfigTypeString, t.Fence != "", false},
		{"retention.bytes", forEver(t.RetentionBytes), "How much of each partition is kept; -1 keeps everything.", kmsg.ConfigTypeLong, t.RetentionBytes != 0, false},
		{"retention.ms", forEver(t.RetentionMs), "How long records are kept; -1 keeps them for ever.", kmsg.ConfigTypeLong, t.RetentionMs != 0, false},
	}
}

// setConfig applies a setting from a request.
func setConfig(t *eventlog.Topic, name string, value *string) error {
	bad := func(format string, args ...any) error {
		return errs.Coded(errs.Invalid, "INVALIDCONFIG", format, args...)
	}
	if value == nil {
		return bad("setting %q has no value", name)
	}
	long := func(least, most int64) (int64, error) {
		n, err := strconv.ParseInt(*value, 10, 64)
		switch {
		case err == nil && n == -1 && least <= 0:
			return 0, nil
		case err != nil || n < 1 || n > most:
			return 0, bad("setting %s is %q; a number from 1 to %d is needed", name, *value, most)
		}
		return n, nil
	}
	switch name {
	case "retention.ms", "retention.bytes":
		n, err := long(-1, math.MaxInt64)
		if err != nil {
			return bad("setting %s is %q; a number from 1 is needed, or -1 to keep everything", name, *value)
		}
		if name == "retention.ms" {
			t.RetentionMs = n
		} else {
			t.RetentionBytes = n
		}
		return nil
	case "max.message.bytes":
		n, err := long(1, eventlog.MessageBytesMax)
		t.MessageBytesMax = int32(n)
		return err
	case "quorate.fence":
		t.Fence = *value
		return nil
	}
	for _, c := range topicConfigs(t) {
		if c.name == name {
			if strings.EqualFold(*value, c.value) {
				return nil
			}
			return bad("setting %s is %q; only %q is supported", name, *value, c.value)
		}
	}
	return bad("setting %q is not supported; supported are max.message.bytes, quorate.fence, retention.bytes and retention.ms", name)
}
