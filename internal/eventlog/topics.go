package eventlog

import (
	"crypto/sha256"
	"strings"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// Bounds of topics.
const (
	// FenceMax is the longest name of a topic's lock.
	FenceMax = 1024
	// TopicNameMax is the longest topic name, as in Kafka.
	TopicNameMax = 249
	// PartitionsPerTopicMax bounds one topic.
	PartitionsPerTopicMax = 10_000
	// PartitionsMax bounds all topics of a space together.
	PartitionsMax = 100_000
	// TopicsMax bounds the topics of a space.
	TopicsMax = 20_000
	// MessageBytesMax is the largest record batch a topic may be configured to take.
	MessageBytesMax = 16 << 20
	// MessageBytesDefault is the largest record batch of a topic that says nothing, as in Kafka (message.max.bytes).
	MessageBytesDefault = 1<<20 + 12
)

// ChangesPrefix starts the name of the read-only topic that shows a space's change log.
const ChangesPrefix = "__changes."

// Reserved says that clients may neither make a topic of that name nor write to it. Those are the change logs, the topics in which Kafka keeps what it has of its own
// (Topic.INTERNAL_TOPICS, KIP-500, KIP-405), so that programs that look there are told, and all that begin with __quorate.
func Reserved(name string) bool {
	switch name {
	case "__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata", "__remote_log_metadata":
		return true
	}
	return strings.HasPrefix(name, ChangesPrefix) || strings.HasPrefix(name, "__quorate")
}

// Topic is what is known of a topic.
type Topic struct {
	// ID is chosen at random by whoever creates the topic. It never changes.
	ID   [16]byte
	Name string
	// Partitions is the number of partitions, from 1.
	Partitions int32
	// RetentionMs is how long records are kept, by their time stamps; 0 is for ever.
	RetentionMs int64
	// RetentionBytes is how much of each partition is kept; 0 is everything.
	RetentionBytes int64
	// MessageBytesMax is the largest record batch; 0 means MessageBytesDefault.
	MessageBytesMax int32
	// Fence is the lock under whose fencing token everything is appended; empty for none.
	Fence string
	// Created is the shard's clock at creation, in Unix milliseconds; the state machine sets it.
	Created int64
}

// ChangesTopic returns the topic that shows the change log of a space with so many shards: partition i is the log of the
// space's i-th shard. It is not stored anywhere.
func ChangesTopic(space string, shards int) Topic {
	sum := sha256.Sum256([]byte("quorate change log of space " + space))
	return Topic{ID: [16]byte(sum[:16]), Name: ChangesPrefix + space, Partitions: int32(shards)}
}

// CheckTopicName checks a name that a client wants to create.
func CheckTopicName(name string) error {
	bad := func(why string) error {
		return errs.Coded(errs.Invalid, "INVALIDTOPIC", "topic name %q %s", clip(name), why)
	}
	switch {
	case name == "":
		return errs.Coded(errs.Invalid, "INVALIDTOPIC", "topic name is empty")
	case len(name) > TopicNameMax:
		return bad("is longer than 249 characters")
	case name == "." || name == "..":
		return bad("is not allowed")
	case Reserved(name):
		return bad("belongs to the system")
	}
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return bad("may hold only letters, digits, '.', '_' and '-'")
		}
	}
	return nil
}

// clip keeps messages short whatever was sent.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// CheckTopic checks a topic that a client wants to create.
func CheckTopic(t Topic) error {
	if err := CheckTopicName(t.Name); err != nil {
		return err
	}
	switch {
	case t.ID == [16]byte{}:
		return errs.New(errs.Invalid, "topic id is zero")
	case t.Partitions < 1 || t.Partitions > PartitionsPerTopicMax:
		return errs.Coded(errs.Invalid, "INVALIDPARTITIONS", "topic has %d partitions; 1 to %d are allowed", t.Partitions, PartitionsPerTopicMax)
	case t.RetentionMs < 0 || t.RetentionBytes < 0:
		return errs.Coded(errs.Invalid, "INVALIDCONFIG", "retention must not be negative; 0 keeps everything")
	case t.MessageBytesMax < 0 || t.MessageBytesMax > MessageBytesMax:
		return errs.Coded(errs.Invalid, "INVALIDCONFIG", "max.message.bytes is %d; at most %d is allowed", t.MessageBytesMax, MessageBytesMax)
	case len(t.Fence) > FenceMax:
		return errs.Coded(errs.Invalid, "INVALIDCONFIG", "the name of the lock has %d bytes; at most %d are allowed", len(t.Fence), FenceMax)
	}
	return nil
}

func (e *enc) topic(t Topic) {
	e.id(t.ID)
	e.str(t.Name)
	e.uv(uint64(t.Partitions))
	e.iv(t.RetentionMs)
	e.iv(t.RetentionBytes)
	e.iv(int64(t.MessageBytesMax))
	e.iv(t.Created)
}

// lastTopic encodes a topic behind which nothing follows. Topics without a lock are as they were before there were any.
func (e *enc) lastTopic(t Topic) {
	e.topic(t)
	if t.Fence != "" {
		e.str(t.Fence)
	}
}

func (d *dec) topic() Topic {
	t := Topic{ID: d.id(), Name: d.str()}
	n := d.Uvarint()
	if n > PartitionsPerTopicMax {
		d.Fail()
	}
	t.Partitions = int32(n)
	t.RetentionMs, t.RetentionBytes = d.Varint(), d.Varint()
	t.MessageBytesMax = d.i32()
	t.Created = d.Varint()
	return t
}

func (d *dec) lastTopic() Topic {
	t := d.topic()
	if d.Len() > 0 {
		t.Fence = d.str()
	}
	return t
}

// EncodeCreateTopic makes the command that creates a topic, for the space's first shard. It fails with errs.Exists if
// the name is taken. The answer is the stored topic: DecodeTopic.
func EncodeCreateTopic(t Topic) []byte {
	e := newEnc(opCreateTopic, 64+len(t.Name)+len(t.Fence))
	e.lastTopic(t)
	return e.b
}

// EncodePlaceTopic makes the command that copies a topic to a shard that holds some of its partitions. It is needed once
// a shard, before the first append, if the topic has a retention or a fence; doing it again does no harm.
func EncodePlaceTopic(t Topic) []byte {
	e := newEnc(opPlaceTopic, 64+len(t.Name)+len(t.Fence))
	e.lastTopic(t)
	return e.b
}

func topicRow(t Topic) []byte {
	e := &enc{b: []byte{version}}
	e.lastTopic(t)
	return e.b
}

func readTopic(v shard.View, id [16]byte) (t Topic, ok bool) {
	b, ok := v.Get(topicKey(id))
	if !ok {
		return t, false
	}
	d := row(b)
	t = d.lastTopic()
	d.ok("topic")
	return t, true
}

func applyCreateTopic(tx *shard.Tx, d dec) ([]byte, error) {
	t := d.lastTopic()
	if err := d.done("create topic command"); err != nil {
		return nil, err
	}
	if err := CheckTopic(t); err != nil {
		return nil, err
	}
	if _, ok := tx.Get(nameKey(t.Name)); ok {
		return nil, errs.New(errs.Exists, "topic %q exists", t.Name)
	}
	if _, ok := tx.Get(topicKey(t.ID)); ok {
		return nil, errs.New(errs.Exists, "topic id %x is taken", t.ID)
	}
	var topics, partitions uint64
	if b, ok := tx.Get([]byte{rowTopics}); ok {
		c := row(b)
		topics, partitions = c.Uvarint(), c.Uvarint()
		c.ok("topic counter")
	}
	if topics >= TopicsMax {
		return nil, errs.New(errs.Overloaded, "the space has %d topics, the most it may have", topics)
	}
	if partitions+uint64(t.Partitions) > PartitionsMax {
		return nil, errs.Coded(errs.Invalid, "INVALIDPARTITIONS", "the space has %d partitions and may have %d; %d more do not fit", partitions, PartitionsMax, t.Partitions)
	}
	t.Created = tx.Now().UnixMilli()
	stored := topicRow(t)
	tx.Set(nameKey(t.Name), t.ID[:])
	tx.Set(topicKey(t.ID), stored)
	c := &enc{b: []byte{version}}
	c.uv(topics + 1)
	c.uv(partitions + uint64(t.Partitions))
	tx.Set([]byte{rowTopics}, c.b)
	return stored[1:], nil
}

func applyPlaceTopic(tx *shard.Tx, d dec) ([]byte, error) {
	t := d.lastTopic()
	if err := d.done("place topic command"); err != nil {
		return nil, err
	}
	if err := CheckTopic(t); err != nil {
		return nil, err
	}
	if _, ok := tx.Get(topicKey(t.ID)); !ok {
		tx.Set(topicKey(t.ID), topicRow(t))
	}
	return nil, nil
}

// QueryTopics asks the space's first shard for all topics, by name: DecodeTopics.
func QueryTopics() []byte { return newEnc(queryTopics, 0).b }

// QueryTopicByName asks the space's first shard for a topic: DecodeTopic. It fails with errs.NotFound.
func QueryTopicByName(name string) []byte {
	e := newEnc(queryByName, len(name)+2)
	e.str(name)
	return e.b
}

// QueryTopicByID asks a shard for a topic that was created or placed there: DecodeTopic. It fails with errs.NotFound.
func QueryTopicByID(id [16]byte) []byte {
	e := newEnc(queryByID, 16)
	e.id(id)
	return e.b
}

// DecodeTopic reads the answer of QueryTopicByName and of QueryTopicByID, and that of creating a topic.
func DecodeTopic(b []byte) (Topic, error) {
	d := dec{codec.Read(b)}
	t := d.lastTopic()
	return t, d.done("answer: topic")
}

// DecodeTopics reads the answer of QueryTopics.
func DecodeTopics(b []byte) ([]Topic, error) {
	d := dec{codec.Read(b)}
	var out []Topic
	for n := d.Count(21); n > 0 && !d.Bad(); n-- {
		out = append(out, d.topic())
	}
	// The locks follow, if any topic has one.
	for i := 0; d.Len() > 0 && i < len(out); i++ {
		out[i].Fence = d.str()
	}
	return out, d.done("answer: topics")
}

func answerTopics(v shard.View, d dec) ([]byte, error) {
	if err := d.done("topics query"); err != nil {
		return nil, err
	}
	n, body, locks, some := 0, &enc{}, &enc{}, false
	for _, id := range v.Scan([]byte{rowName}, []byte{rowName + 1}) {
		// Only topics created here have a name row: placed copies are not listed.
		if len(id) != 16 {
			continue
		}
		if t, ok := readTopic(v, [16]byte(id)); ok {
			body.topic(t)
			locks.str(t.Fence)
			some = some || t.Fence != ""
			n++
		}
	}
	out := &enc{b: make([]byte, 0, len(body.b)+4)}
	out.uv(uint64(n))
	out.b = append(out.b, body.b...)
	if some {
		out.b = append(out.b, locks.b...)
	}
	return out.b, nil
}

func answerTopicByName(v shard.View, d dec) ([]byte, error) {
	name := d.str()
	if err := d.done("topic query"); err != nil {
		return nil, err
	}
	id, ok := v.Get(nameKey(name))
	if !ok || len(id) != 16 {
		return nil, errs.New(errs.NotFound, "no topic %q", clip(name))
	}
	return answerTopic(v, [16]byte(id))
}

func answerTopicByID(v shard.View, d dec) ([]byte, error) {
	id := d.id()
	if err := d.done("topic query"); err != nil {
		return nil, err
	}
	return answerTopic(v, id)
}

func answerTopic(v shard.View, id [16]byte) ([]byte, error) {
	t, ok := readTopic(v, id)
	if !ok {
		return nil, errs.New(errs.NotFound, "no topic with id %x", id)
	}
	return topicRow(t)[1:], nil
}
