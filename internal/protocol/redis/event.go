package redis

import (
	"slices"
	"strconv"
	"strings"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// EVENT.ADD topic value [KEY key] [PARTITION n] [HEADER name value ...]
//
// Behaviour: appends a record to a Kafka topic and answers [partition, offset]. In MULTI the record and the other commands
// are one commit. In topic{tag}, topic is the name and the tag's slot decides the shard, so that the event can be with
// the keys that carry the tag. HEADER comes last: all that follows it are names and values of headers, whatever they are called.
// A word HEADER among them is such a name.
// Versions: a command of Quorate.
// Not supported: topics outside the connection's space.

// headersMax bounds the headers of an event.
const headersMax = 1024

// event turns the client's arguments into those of the shard's command, the name kept in front, and finds its shard.
func (c *conn) event(args [][]byte) (inner [][]byte, at shard.ID, err error) {
	if c.s.topics == nil {
		return nil, 0, errs.New(errs.Unsupported, "this node serves no event log")
	}
	if err := c.place(); err != nil {
		return nil, 0, err
	}
	e := &c.added
	var partition int32
	if *e, partition, err = parseEvent(args); err != nil {
		return nil, 0, err
	}
	name, slot := args[1], -1
	if tag, ok := datatypes.Tag(name); ok {
		slot = int(datatypes.Slot(name))
		before, after, _ := strings.Cut(string(name), "{"+string(tag)+"}")
		name = []byte(before + after)
		// A tagged topic is routed as a key is, and so it is redirected as a key is.
		if err := c.moved(c.s.commands["event.add"], c.space.SlotShard(uint16(slot)), slot); err != nil {
			return nil, 0, err
		}
	}
	if len(name) == 0 {
		return nil, 0, errs.New(errs.Invalid, "the topic has no name")
	}
	c.waitingSince.Store(c.s.tick.Load())
	e.Topic, e.Partition, at, err = c.s.topics.Resolve(c.request(), string(name), slot, e.Key, e.KeyNull, partition)
	c.waitingSince.Store(0)
	if err != nil {
		return nil, 0, err
	}
	c.addedHead = slices.Grow(c.addedHead, 5+len(e.Key))
	c.addedArgs = e.AppendArgs(append(c.addedArgs[:0], args[0]), c.addedHead)
	return c.addedArgs, at, nil
}

// forgetEvent lets go of what the last event refers to, which would keep an old input buffer.
func (c *conn) forgetEvent() {
	if c.added.Value == nil {
		return
	}
	c.added = datatypes.Event{}
	if clear(c.addedArgs); cap(c.addedArgs) > 64 || cap(c.addedHead) > 4096 {
		c.addedArgs, c.addedHead = nil, nil
	}
}

func parseEvent(args [][]byte) (e datatypes.Event, partition int32, err error) {
	e, partition = datatypes.Event{KeyNull: true, Value: args[2]}, -1
	for rest := args[3:]; len(rest) > 0; {
		word := func(s string) bool { return len(rest[0]) <= 16 && strings.EqualFold(string(rest[0]), s) }
		switch {
		case word("key") && len(rest) > 1:
			e.Key, e.KeyNull = rest[1], false
			rest = rest[2:]
		case word("partition") && len(rest) > 1:
			n, err := strconv.ParseInt(string(rest[1]), 10, 32)
			if err != nil || n < 0 {
				return e, 0, errs.New(errs.Invalid, "PARTITION must be a number from 0 to 2147483647")
			}
			partition, rest = int32(n), rest[2:]
		case word("header") && len(rest) > 2 && len(rest)%2 == 1:
			rest = rest[1:]
			if len(rest)/2 > headersMax {
				return e, 0, errs.New(errs.TooLarge, "more than %d headers", headersMax)
			}
			for ; len(rest) > 0; rest = rest[2:] {
				e.Headers = append(e.Headers, datatypes.EventHeader{Name: string(rest[0]), Value: slices.Clone(rest[1])})
			}
		default:
			return e, 0, errSyntax()
		}
	}
	if len(e.Key) > datatypes.KeyBytesMax {
		return e, 0, errKeyTooLong(len(e.Key))
	}
	return e, partition, nil
}

func errSyntax() error { return &errs.Error{Kind: errs.Invalid, Code: "ERR", Msg: "syntax error"} }
