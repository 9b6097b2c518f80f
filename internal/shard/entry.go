package shard

import (
	"encoding/binary"
	"time"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
)

// The payload of a raft entry is a batch of commands of one session, or a request to fire due timers. Format:
// docs/formats/entry.md.
const (
	entryVersion    = 1
	entryKindBatch  = 1
	entryKindTimers = 2
	entryHeaderSize = 2 + 8 + 8 + 8 + 8
	stampOffset     = 2
)

// BatchHeader identifies a batch for exactly-once application.
type BatchHeader struct {
	// Session is the proposing node's session: a random number it took when it started. 0 is no session.
	Session uint64
	// Seq numbers the session's batches to one shard, from 1.
	Seq uint64
	// Low is the lowest Seq whose outcome the session still wants to know. Batches below it are never sent again, and are
	// refused if they turn up.
	Low uint64
	// Stamp is the leader's clock when it proposed the batch.
	Stamp time.Time
}

func appendHeader(b []byte, kind byte, h BatchHeader) []byte {
	b = append(b, entryVersion, kind)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.Stamp.UnixNano()))
	b = binary.LittleEndian.AppendUint64(b, h.Session)
	b = binary.LittleEndian.AppendUint64(b, h.Seq)
	return binary.LittleEndian.AppendUint64(b, h.Low)
}

// AppendBatchHeader starts a batch entry; commands follow with AppendCommand.
func AppendBatchHeader(b []byte, h BatchHeader) []byte { return appendHeader(b, entryKindBatch, h) }

// AppendCommand adds a command to a batch entry.
func AppendCommand(b []byte, c Command) []byte {
	return codec.AppendBytes(append(b, byte(c.Module)), c.Data)
}

// CommandSize returns an upper bound for what AppendCommand adds.
func CommandSize(c Command) int { return len(c.Data) + 1 + binary.MaxVarintLen32 }

// TimersEntry returns an entry that fires the timers which are due at stamp.
func TimersEntry(stamp time.Time) []byte {
	return appendHeader(nil, entryKindTimers, BatchHeader{Stamp: stamp})
}

// SetStamp writes the leader's clock and the session's low mark into an encoded entry, in place.
func SetStamp(entry []byte, stamp time.Time) {
	binary.LittleEndian.PutUint64(entry[stampOffset:], uint64(stamp.UnixNano()))
}

// SetLow replaces the low mark of an encoded entry, in place.
func SetLow(entry []byte, low uint64) {
	binary.LittleEndian.PutUint64(entry[stampOffset+24:], low)
}

// EntryHeader decodes the header of an entry, and says whether it is a batch.
func EntryHeader(entry []byte) (h BatchHeader, batch bool, err error) {
	h, kind, _, err := decodeEntry(entry)
	return h, kind == entryKindBatch, err
}

func decodeEntry(b []byte) (h BatchHeader, kind byte, rest []byte, err error) {
	if len(b) < entryHeaderSize {
		return h, 0, nil, errs.New(errs.Corrupt, "log entry of %d bytes is shorter than its header", len(b))
	}
	if b[0] != entryVersion {
		return h, 0, nil, errs.New(errs.Unsupported, "log entry of version %d; this build knows version %d", b[0], entryVersion)
	}
	kind = b[1]
	if kind != entryKindBatch && kind != entryKindTimers {
		return h, 0, nil, errs.New(errs.Corrupt, "log entry of unknown kind %d", kind)
	}
	h.Stamp = time.Unix(0, int64(binary.LittleEndian.Uint64(b[2:]))).UTC()
	h.Session = binary.LittleEndian.Uint64(b[10:])
	h.Seq = binary.LittleEndian.Uint64(b[18:])
	h.Low = binary.LittleEndian.Uint64(b[26:])
	return h, kind, b[entryHeaderSize:], nil
}

// nextCommand splits the first command off the body of a batch.
func nextCommand(b []byte) (c Command, rest []byte, err error) {
	if len(b) < 2 {
		return c, nil, errs.New(errs.Corrupt, "log entry ends inside a command")
	}
	d := codec.Read(b)
	c.Module, c.Data = ModuleID(d.Byte()), d.Bytes()
	if d.Bad() {
		return Command{}, nil, errs.New(errs.Corrupt, "log entry holds a command of a wrong length")
	}
	return c, d.Rest(), nil
}
