package eventlog

import (
	"encoding/binary"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// Commit stores how far a group has read (OffsetCommit).
type Commit struct {
	Group string
	// MemberID and Generation are those of a member; a consumer outside of group management sets the second to -1, and may
	// commit only while the group has no members.
	MemberID, Instance string
	Generation         int32
	Offsets            []CommittedOffset
}

// CommittedOffset is a group's position in a partition.
type CommittedOffset struct {
	Topic     string
	Partition int32
	// Offset is the next to read; -1 in an answer means that none is stored.
	Offset int64
	// LeaderEpoch is that of the last record read, -1 if the client did not say.
	LeaderEpoch int32
	Metadata    string
}

// EncodeCommit makes the command of a Commit. It has no answer, and stores all or nothing.
func EncodeCommit(c Commit) []byte {
	e := newEnc(opCommit, 64+48*len(c.Offsets))
	e.str(c.Group)
	e.str(c.MemberID)
	e.str(c.Instance)
	e.iv(int64(c.Generation))
	e.uv(uint64(len(c.Offsets)))
	for i := range c.Offsets {
		o := &c.Offsets[i]
		e.str(o.Topic)
		e.uv(uint64(o.Partition))
		e.iv(o.Offset)
		e.iv(int64(o.LeaderEpoch))
		e.str(o.Metadata)
	}
	return e.b
}

func applyCommit(tx *shard.Tx, d dec) ([]byte, error) {
	c := Commit{Group: d.str(), MemberID: d.str(), Instance: d.str(), Generation: d.i32()}
	for n := d.Count(5); n > 0 && !d.Bad(); n-- {
		c.Offsets = append(c.Offsets, CommittedOffset{
			Topic: d.str(), Partition: d.partition(), Offset: d.Varint(), LeaderEpoch: d.i32(), Metadata: d.str(),
		})
	}
	if err := d.done("offset commit command"); err != nil {
		return nil, err
	}
	for i := range c.Offsets {
		o := &c.Offsets[i]
		switch {
		case o.Topic == "" || len(o.Topic) > TopicNameMax:
			return nil, errs.Coded(errs.Invalid, "INVALIDTOPIC", "a topic name has 1 to %d characters; got %d", TopicNameMax, len(o.Topic))
		case o.Offset < -1:
			return nil, errs.New(errs.Invalid, "committed offset %d is negative", o.Offset)
		case len(o.Metadata) > OffsetMetadataMax:
			return nil, errs.Coded(errs.TooLarge, CodeMetadataTooLarge, "the metadata of a committed offset has %d bytes; at most %d are allowed", len(o.Metadata), OffsetMetadataMax)
		}
	}
	g, err := c.check(tx)
	if err != nil {
		return nil, err
	}
	for i := range c.Offsets {
		o := &c.Offsets[i]
		key := offsetKey(c.Group, o.Topic, o.Partition)
		if _, ok := tx.Get(key); !ok {
			if g.offsets++; g.offsets > GroupOffsetsMax {
				return nil, errs.New(errs.Overloaded, "the group has offsets for %d partitions, the most it may have", GroupOffsetsMax)
			}
		}
		e := &enc{b: []byte{version}}
		e.iv(o.Offset)
		e.iv(int64(o.LeaderEpoch))
		e.str(o.Metadata)
		e.iv(tx.Now().UnixMilli())
		tx.Set(key, e.b)
	}
	g.save(tx)
	return nil, nil
}

// check returns the group if the commit is allowed.
func (c *Commit) check(tx *shard.Tx) (*group, error) {
	g := readGroup(tx, c.Group)
	switch {
	case c.Generation < 0 && (g == nil || g.members == 0):
		// Whatever it says about itself, as in Kafka (ClassicGroup.validateOffsetCommit).
		g, err := openGroup(tx, c.Group)
		if err != nil {
			return nil, err
		}
		g.idle(tx)
		return g, nil
	case g == nil:
		return nil, errs.Coded(errs.Fenced, CodeIllegalGeneration, "no group %q; join again", clip(c.Group))
	case c.Generation < 0 && c.MemberID == "" && c.Instance == "":
		return nil, errs.Coded(errs.Fenced, CodeUnknownMember, "the group has members; only they may commit offsets")
	}
	m, err := current(tx, g, c.MemberID, c.Instance, c.Generation)
	if err != nil {
		return nil, err
	}
	if g.state == GroupCompleting {
		return nil, rebalancing()
	}
	if !g.waits(m) {
		g.alive(tx, m)
	}
	return g, nil
}

func readOffset(b []byte, o *CommittedOffset) {
	d := row(b)
	o.Offset, o.LeaderEpoch, o.Metadata = d.Varint(), d.i32(), d.str()
	d.ok("offset")
}

// QueryCommits asks for a group's offsets: DecodeCommits. all asks for every partition, and list is not looked at;
// otherwise partitions without an offset are answered with -1.
func QueryCommits(group string, all bool, list []CommittedOffset) []byte {
	e := newEnc(queryCommits, 64+16*len(list))
	e.str(group)
	e.bool(all)
	e.uv(uint64(len(list)))
	for i := range list {
		e.str(list[i].Topic)
		e.uv(uint64(list[i].Partition))
	}
	return e.b
}

// DecodeCommits reads the answer of QueryCommits.
func DecodeCommits(b []byte) ([]CommittedOffset, error) {
	d := dec{codec.Read(b)}
	var out []CommittedOffset
	for n := d.Count(5); n > 0 && !d.Bad(); n-- {
		out = append(out, CommittedOffset{
			Topic: d.str(), Partition: d.partition(), Offset: d.Varint(), LeaderEpoch: d.i32(), Metadata: d.str(),
		})
	}
	return out, d.done("answer: offsets")
}

func answerCommits(v shard.View, d dec) ([]byte, error) {
	name, all := d.str(), d.Bool()
	var list []CommittedOffset
	for n := d.Count(2); n > 0 && !d.Bad(); n-- {
		list = append(list, CommittedOffset{Topic: d.str(), Partition: d.partition(), Offset: -1, LeaderEpoch: -1})
	}
	if err := d.done("offsets query"); err != nil {
		return nil, err
	}
	if all {
		list = nil
		prefix := groupKey(rowOffset, name)
		for k, b := range v.Scan(prefix, after(prefix)) {
			_, rest := splitGroupKey(k)
			if len(rest) < 6 {
				panic("eventlog: malformed offset key")
			}
			o := CommittedOffset{
				Topic: rest[2 : len(rest)-4], Partition: int32(binary.BigEndian.Uint32([]byte(rest[len(rest)-4:]))),
			}
			readOffset(b, &o)
			list = append(list, o)
		}
	}
	out := &enc{}
	out.uv(uint64(len(list)))
	for i := range list {
		o := &list[i]
		if !all {
			if b, ok := v.Get(offsetKey(name, o.Topic, o.Partition)); ok {
				readOffset(b, o)
			}
		}
		out.str(o.Topic)
		out.uv(uint64(o.Partition))
		out.iv(o.Offset)
		out.iv(int64(o.LeaderEpoch))
		out.str(o.Metadata)
	}
	return out.b, nil
}
