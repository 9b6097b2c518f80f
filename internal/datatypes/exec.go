package datatypes

import (
	"encoding/binary"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// exec runs a transaction: nothing if a watched key has changed, else every command, of which a failing one leaves the
// others done.
func (m *Module) exec(c *call, d decoder) ([]byte, error) {
	changed := false
	for n := d.Count(9); n > 0 && !d.Bad(); n-- {
		key, want := d.Bytes(), d.Uint64()
		changed = changed || !d.Bad() && c.version(key) != want
	}
	if d.Bad() {
		return nil, errMalformed()
	}
	if changed {
		return replyNull, nil
	}
	count := d.Uvarint()
	if count > uint64(d.Len()) {
		return nil, errMalformed()
	}
	// Most answers are short.
	out := AppendArray(make([]byte, 0, 16+24*min(count, 64)), int(count))
	for ; count > 0; count-- {
		op := Op(d.Byte())
		c.args = d.args(c.args[:0])
		if d.Bad() {
			return nil, errMalformed()
		}
		c.out = nil
		answer, err := c.tx.Try(func() ([]byte, error) {
			if op == opSet && len(c.args) == 2 {
				return c.setPlain(c.args[0], c.args[1])
			}
			return c.run(op)
		})
		if over := c.tx.Err(); over != nil {
			return nil, over
		}
		if err != nil {
			// Damage is no answer among others: nothing of the transaction may stay. An event that lacks its fence is none
			// either: its state would be there without it.
			if c.damaged || errs.Is(err, errs.Fenced) {
				return nil, err
			}
			out = AppendError(out, err)
		}
		if out = append(out, answer...); len(out) > AnswerBytesMax {
			return nil, errAnswerTooLarge()
		}
	}
	if d.Len() > 0 {
		return nil, errMalformed()
	}
	return out, nil
}

// versions answers WATCH.
func (c *call) versions(d decoder) ([]byte, error) {
	c.args = d.args(c.args)
	if !d.Done() {
		return nil, errMalformed()
	}
	out := make([]byte, 0, 8*len(c.args))
	for _, k := range c.args {
		if len(k) > KeyBytesMax {
			return nil, errKeyTooLong(len(k))
		}
		out = binary.LittleEndian.AppendUint64(out, c.version(k))
	}
	if c.damaged {
		return nil, errDamaged()
	}
	return out, nil
}

// Behaviour: EVENT.ADD topic value [KEY key] [PARTITION n] [HEADER name value ...]. The protocol server has resolved topic
// and partition; the arguments here are those of Event.Args. The answer is [partition, offset].
func cmdEventAdd(c *call) error {
	if c.m.cfg.AppendEvent == nil {
		return errs.New(errs.Unsupported, "this node has no event log")
	}
	a := c.args
	if len(a[0]) != 16 || len(a[1]) != 4 || len(a[2]) < 1 || len(a)%2 != 0 {
		return errMalformed()
	}
	e := &c.event
	*e = Event{
		Topic: [16]byte(a[0]), Partition: int32(binary.LittleEndian.Uint32(a[1])), Key: a[2][1:], KeyNull: a[2][0] == 0, Value: a[3],
	}
	size := 64 + len(e.Key) + len(e.Value)
	for h := a[4:]; len(h) > 0; h = h[2:] {
		e.Headers = append(e.Headers, EventHeader{Name: string(h[0]), Value: h[1]})
		size += 16 + len(h[0]) + len(h[1])
	}
	data := c.m.cfg.AppendEvent(c.tx.Room(size), e, c.locks)
	answer, err := c.tx.Call(shard.Command{Module: shard.ModuleEventlog, Data: data})
	if err != nil {
		return err
	}
	if len(answer) != 8 {
		return errs.New(errs.Internal, "the event log answered an append with %d bytes", len(answer))
	}
	c.out = AppendInt(AppendInt(AppendArray(make([]byte, 0, 32), 2), int64(e.Partition)), int64(binary.BigEndian.Uint64(answer)))
	return nil
}
