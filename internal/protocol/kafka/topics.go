package kafka

import (
	"context"
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
	"github.com/quorate/quorate/internal/shard"
)

// Topics finds topics by name or id and remembers them: topics are never deleted and never change. It is what other
// protocols use to append events.
type Topics struct {
	client     shard.Client
	space      string
	partitions int32
	rand       func() uint64
	spread     atomic.Uint32

	mu sync.RWMutex
	// byName and byID hold the same topics. They are bounded by the topics of the space. Guarded by mu.
	byName map[string]*eventlog.Topic
	byID   map[[16]byte]*eventlog.Topic
}

// NewTopics returns an empty cache of a space's topics. partitions is how many a created topic gets; 0 means as many as
// the space has shards.
func NewTopics(client shard.Client, space string, partitions int32) *Topics {
	return &Topics{
		client: client, space: space, partitions: partitions, rand: env.Real().Rand,
		byName: map[string]*eventlog.Topic{}, byID: map[[16]byte]*eventlog.Topic{},
	}
}

// home returns the space as it is now.
func (t *Topics) home() (shard.Space, error) {
	sp, ok := t.client.Topology().Space(t.space)
	if !ok || len(sp.Shards) == 0 {
		return sp, errs.New(errs.Unavailable, "space %q is not known to this node yet", t.space)
	}
	return sp, nil
}

func (t *Topics) query(ctx context.Context, id shard.ID, q []byte) ([]byte, error) {
	return t.client.Query(ctx, shard.Route{Shard: id}, shard.Linearizable, shard.Command{Module: shard.ModuleEventlog, Data: q})
}

func (t *Topics) submit(ctx context.Context, id shard.ID, cmd []byte) shard.Result {
	return t.client.Submit(ctx, shard.Route{Shard: id}, shard.Command{Module: shard.ModuleEventlog, Data: cmd}).Wait(ctx)
}

// ByName finds a topic; errs.NotFound says that there is none.
func (t *Topics) ByName(ctx context.Context, name string) (*eventlog.Topic, error) {
	t.mu.RLock()
	x := t.byName[name]
	t.mu.RUnlock()
	if x != nil {
		return x, nil
	}
	sp, err := t.home()
	if err != nil {
		return nil, err
	}
	if name == eventlog.ChangesPrefix+t.space {
		x := eventlog.ChangesTopic(t.space, len(sp.Shards))
		return &x, nil
	}
	if len(name) > eventlog.TopicNameMax {
		return nil, eventlog.CheckTopicName(name)
	}
	b, err := t.query(ctx, sp.Shards[0], eventlog.QueryTopicByName(name))
	return t.keep(ctx, sp, b, err)
}

// ByID finds a topic by its id.
func (t *Topics) ByID(ctx context.Context, id [16]byte) (*eventlog.Topic, error) {
	t.mu.RLock()
	x := t.byID[id]
	t.mu.RUnlock()
	if x != nil {
		return x, nil
	}
	sp, err := t.home()
	if err != nil {
		return nil, err
	}
	if x := eventlog.ChangesTopic(t.space, len(sp.Shards)); x.ID == id {
		return &x, nil
	}
	b, err := t.query(ctx, sp.Shards[0], eventlog.QueryTopicByID(id))
	return t.keep(ctx, sp, b, err)
}

// All returns all topics of the space by name, and the changes topic last.
func (t *Topics) All(ctx context.Context) ([]eventlog.Topic, error) {
	sp, err := t.home()
	if err != nil {
		return nil, err
	}
	b, err := t.query(ctx, sp.Shards[0], eventlog.QueryTopics())
	if err != nil {
		return nil, err
	}
	list, err := eventlog.DecodeTopics(b)
	return append(list, eventlog.ChangesTopic(t.space, len(sp.Shards))), err
}

// Create makes a topic, and answers what was stored. Partitions of 0 means the default.
func (t *Topics) Create(ctx context.Context, x eventlog.Topic) (*eventlog.Topic, error) {
	sp, err := t.home()
	if err != nil {
		return nil, err
	}
	t.complete(&x, sp)
	if err := eventlog.CheckTopic(x); err != nil {
		return nil, err
	}
	r := t.submit(ctx, sp.Shards[0], eventlog.EncodeCreateTopic(x))
	if r.Err != nil {
		return nil, r.Err
	}
	made, err := t.keep(ctx, sp, r.Data, nil)
	if err != nil {
		// Whatever it was, the topic is there: nobody must be told that nothing was done.
		return nil, errs.Wrap(errs.OutcomeUnknown, err, "topic %q was created, but not all shards know of it yet; they will before it is used", x.Name)
	}
	return made, nil
}

// complete fills in what the caller left open.
func (t *Topics) complete(x *eventlog.Topic, sp shard.Space) {
	if x.Partitions == 0 {
		x.Partitions = t.partitions
	}
	if x.Partitions == 0 {
		x.Partitions = int32(len(sp.Shards))
	}
	binary.BigEndian.PutUint64(x.ID[:], t.rand())
	binary.BigEndian.PutUint64(x.ID[8:], t.rand()|1)
}

// Ensure finds a topic or makes it with the defaults.
func (t *Topics) Ensure(ctx context.Context, name string) (*eventlog.Topic, error) {
	x, err := t.ByName(ctx, name)
	if !errs.Is(err, errs.NotFound) {
		return x, err
	}
	x, err = t.Create(ctx, eventlog.Topic{Name: name})
	if errs.Is(err, errs.Exists) {
		return t.ByName(ctx, name)
	}
	return x, err
}

// keep remembers an answer. A topic with a retention or a lock must be known on every shard that holds partitions of it before
// anything is appended, whoever created it and however far they came: each node sees to that once.
func (t *Topics) keep(ctx context.Context, sp shard.Space, b []byte, err error) (*eventlog.Topic, error) {
	if err != nil {
		return nil, err
	}
	x, err := eventlog.DecodeTopic(b)
	if err != nil {
		return nil, err
	}
	if x.RetentionMs > 0 || x.RetentionBytes > 0 || x.Fence != "" {
		for i, id := range sp.Shards {
			if i == 0 || i >= int(x.Partitions) {
				continue
			}
			if r := t.submit(ctx, id, eventlog.EncodePlaceTopic(x)); r.Err != nil {
				return nil, r.Err
			}
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byName[x.Name], t.byID[x.ID] = &x, &x
	return &x, nil
}

// Resolve chooses the partition of a record for another protocol, making the topic if there is none. An explicit
// partition of 0 or more is taken as it is. A slot of 0 or more demands a partition on that slot's shard, so that the
// record can be appended in the same commit as a change there; among those the key decides by Kafka's hash. Records
// without a key go by the slot, or round-robin if there is none.
func (t *Topics) Resolve(ctx context.Context, topic string, slot int, key []byte, keyNull bool, explicit int32) (id [16]byte, partition int32, on shard.ID, err error) {
	if eventlog.Reserved(topic) {
		return id, 0, 0, errs.New(errs.Denied, "topic %q cannot be written to: it belongs to the system", topic)
	}
	sp, err := t.home()
	if err != nil {
		return id, 0, 0, err
	}
	if slot >= shard.SlotCount {
		return id, 0, 0, errs.New(errs.Invalid, "slot %d; the last is %d", slot, shard.SlotCount-1)
	}
	x, err := t.Ensure(ctx, topic)
	if err != nil {
		return id, 0, 0, err
	}
	if explicit >= 0 {
		if explicit >= x.Partitions {
			return id, 0, 0, errs.New(errs.Invalid, "topic %q has partitions 0 to %d, not %d", topic, x.Partitions-1, explicit)
		}
		on = sp.PartitionShard(explicit)
		if slot >= 0 && on != sp.SlotShard(uint16(slot)) {
			return id, 0, 0, errs.New(errs.Invalid, "partition %d of topic %q lives on another shard than the key; leave the partition out, or choose one that leaves the remainder %d when divided by %d", explicit, topic, shardIndex(sp, slot), len(sp.Shards))
		}
		return x.ID, explicit, on, nil
	}
	if slot < 0 {
		n := t.spread.Add(1) - 1
		if !keyNull {
			n = murmur2(key) & 0x7fffffff
		}
		partition = int32(n % uint32(x.Partitions))
		return x.ID, partition, sp.PartitionShard(partition), nil
	}
	first, step := int32(shardIndex(sp, slot)), int32(len(sp.Shards))
	if first >= x.Partitions {
		return id, 0, 0, errs.New(errs.Invalid, "topic %q has %d partitions and none on the shard of slot %d, so that a record cannot be committed together with that key; create the topic with %d partitions or more", topic, x.Partitions, slot, step)
	}
	n := uint32(slot)
	if !keyNull {
		n = murmur2(key) & 0x7fffffff
	}
	partition = first + step*int32(n%uint32((x.Partitions-first+step-1)/step))
	return x.ID, partition, sp.PartitionShard(partition), nil
}

// shardIndex returns the place of a slot's shard in its space.
func shardIndex(sp shard.Space, slot int) int { return slot * len(sp.Shards) / shard.SlotCount }

// murmur2 is the hash by which Kafka's Java client spreads keys over partitions.
func murmur2(b []byte) uint32 {
	const m = 0x5bd1e995
	h := uint32(0x9747b28c) ^ uint32(len(b))
	for ; len(b) >= 4; b = b[4:] {
		k := binary.LittleEndian.Uint32(b) * m
		k = (k ^ k>>24) * m
		h = h*m ^ k
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h = (h ^ uint32(b[0])) * m
	}
	h = (h ^ h>>13) * m
	return h ^ h>>15
}

// groupShard returns the shard of a consumer group, by the FNV-1a hash of its name. It must never change.
func groupShard(sp shard.Space, group string) shard.ID {
	h := uint32(2166136261)
	for i := range len(group) {
		h = (h ^ uint32(group[i])) * 16777619
	}
	return sp.Shards[h%uint32(len(sp.Shards))]
}
