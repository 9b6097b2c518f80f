package shard

import (
	"encoding/binary"
	"math"
	"slices"
	"time"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
)

// chunkBytes is the size from which a chunk of changes is closed, between two commands. Chunks end with entries too, so that
// they are the same on every replica.
const chunkBytes = 256 << 10

// ChangesBytesMax bounds the changes of one command, and with them a chunk, which is one row and the largest there is. A small command may make large
// changes: an APPEND of one byte has the whole new value in its own. What a timer does cannot be refused, so its changes may be more chunks than one.
const ChangesBytesMax = 32 << 20

// chunkBytesMax is more than the changes of a command take with their headers, behind those of commands before it.
const chunkBytesMax = ChangesBytesMax * 5 / 4

// changeBuffer collects the changes of the entry being applied.
type changeBuffer struct {
	buf   []byte
	count uint64
	// base is where those of the running command begin, and max how many bytes they may have; over says that they were too many, so that some are missing.
	base, max int
	over      bool
}

type changeMark struct {
	bytes int
	count uint64
}

func (c *changeBuffer) mark() changeMark { return changeMark{len(c.buf), c.count} }

func (c *changeBuffer) rollback(m changeMark) { c.buf, c.count = c.buf[:m.bytes], m.count }

// begin starts a command.
func (c *changeBuffer) begin() { c.base, c.max, c.over = len(c.buf), ChangesBytesMax, false }

// whole says that what runs now cannot be refused.
func (c *changeBuffer) whole() { c.max = math.MaxInt }

// err refuses a command whose changes are too many.
func (c *changeBuffer) err() error {
	if !c.over {
		return nil
	}
	return errs.New(errs.TooLarge, "the command changes too much at once, more than %d bytes counting each changed value in full; do it in parts", ChangesBytesMax)
}

func (c *changeBuffer) add(_ *state, ch Change) {
	if c.over = c.over || len(c.buf)-c.base+len(ch.Key)+len(ch.Value) > c.max; c.over {
		// The command will be refused: what it did until then must not cost more memory.
		return
	}
	b := binary.AppendUvarint(c.buf, uint64(ch.Revision))
	b = binary.AppendVarint(b, ch.At.UnixNano())
	b = codec.AppendBytes(b, ch.Op)
	b = codec.AppendBytes(b, ch.Key)
	if ch.Value == nil {
		b = append(b, 0)
	} else {
		b = codec.AppendBytes(append(b, 1), ch.Value)
	}
	b = binary.AppendUvarint(b, uint64(len(ch.Headers)))
	for _, h := range ch.Headers {
		b = codec.AppendBytes(codec.AppendBytes(b, h.Name), h.Value)
	}
	c.buf = b
	c.count++
}

// endChunk stores the collected changes, as one row if they are not more than a command may make.
func (m *Machine) endChunk() {
	if m.changes.count == 0 {
		return
	}
	split := len(m.changes.buf) > chunkBytesMax
	for buf, count := m.changes.buf, m.changes.count; count > 0; {
		size, n := len(buf), count
		if split {
			size, n = firstChanges(buf)
		}
		v := append(binary.AppendUvarint(m.room(size+binary.MaxVarintLen64), n), buf[:size]...)
		m.set(ModuleShard, changeKey(m.st.ChangeNext), v, bulk)
		m.st.ChangeNext += n
		m.st.ChangeBytes += uint64(len(v))
		buf, count = buf[size:], count-n
	}
	m.changes.rollback(changeMark{})
	if cap(m.changes.buf) > 4*chunkBytes {
		m.changes.buf = nil
	}
	m.trimChanges()
}

// firstChanges says how many of the encoded changes make a row, and how long they are.
func firstChanges(buf []byte) (size int, n uint64) {
	for size < len(buf) && size < ChangesBytesMax {
		_, rest, err := decodeChange(buf[size:])
		if err != nil {
			panic(err) // it was encoded a moment ago
		}
		size, n = len(buf)-len(rest), n+1
	}
	return size, n
}

func changeKey(pos uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 9), rowChange), pos)
}

// trimChanges drops the oldest chunks. It waits until an eighth too much is there, and then drops that at once. It runs when
// a chunk is added, and so at the same entry on every replica.
func (m *Machine) trimChanges() {
	limit := m.cfg.ChangeBytesMax
	if m.st.ChangeBytes <= limit+limit/8 {
		return
	}
	var drop [][]byte
	for k, v := range m.scan(ModuleShard, changeKey(m.st.ChangeFirst), []byte{rowChange + 1}) {
		n, _ := binary.Uvarint(v)
		if m.st.ChangeBytes <= limit {
			break
		}
		m.st.ChangeFirst += n
		m.st.ChangeBytes -= min(m.st.ChangeBytes, uint64(len(v)))
		drop = append(drop, slices.Clone(k))
	}
	for _, k := range drop {
		m.delete(ModuleShard, k, bulk)
	}
}

// decodeChange reads one change; the slices point into b.
func decodeChange(b []byte) (ch Change, rest []byte, err error) {
	d := codec.Read(b)
	ch.Revision = Revision(d.Uvarint())
	ch.At = time.Unix(0, d.Varint()).UTC()
	ch.Op = string(d.Bytes())
	ch.Key = d.Bytes()
	if d.Byte() == 1 {
		ch.Value = d.Bytes()
	}
	for n := d.Count(2); n > 0 && !d.Bad(); n-- {
		ch.Headers = append(ch.Headers, Header{Name: string(d.Bytes()), Value: d.Bytes()})
	}
	if d.Bad() {
		return ch, nil, errs.New(errs.Corrupt, "malformed record in the change log")
	}
	return ch, d.Rest(), nil
}
