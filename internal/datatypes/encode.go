package datatypes

import (
	"encoding/binary"
	"math/bits"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
)

// Commands and queries are encoded as
//
//	command  version(1) op(1) args
//	query    version(1) op(1) node clock in Unix ms(8) seed(8) args
//	exec     version(1) opExec(1) n {key token(8)}* n {op(1) args}*
//	batch    version(1) opBatch(1) node clock(8) seed(8) n {op(1) args}*
//	fenced   version(1) opFenced(1) n {home(1) token lock}* command or exec, without its version
//	args     n {length bytes}*
//
// where n, token and length are uvarints and fixed numbers little-endian. args leaves the command's name out.
const encodingVersion = 1

// Op numbers a command in the log. See the table; numbers are never reused.
type Op uint8

// The ops that are not commands of a client.
const (
	opExec      Op = 1
	opFlushStep Op = 2
	opBatch     Op = 4
	opVersions  Op = 5
	opSlotCount Op = 6
	opSlotKeys  Op = 7
	opKeyCount  Op = 8
	opFenced    Op = 9
	// opFirst is the lowest number of a command of the table.
	opFirst Op = 16
)

func uvarintLen(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

// ArgsSize returns how many bytes the arguments take in a command.
func ArgsSize(args [][]byte) int {
	n := uvarintLen(uint64(len(args)))
	for _, a := range args {
		n += uvarintLen(uint64(len(a))) + len(a)
	}
	return n
}

// AppendArgs adds an argument list.
func AppendArgs(b []byte, args [][]byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(args)))
	for _, a := range args {
		b = codec.AppendBytes(b, a)
	}
	return b
}

// EncodeCommand returns a command for Apply, in one allocation.
func EncodeCommand(op Op, args [][]byte) []byte {
	return AppendArgs(append(make([]byte, 0, 2+ArgsSize(args)), encodingVersion, byte(op)), args)
}

// AppendSub adds a command to the body of an exec or a batch.
func AppendSub(b []byte, op Op, args [][]byte) []byte { return AppendArgs(append(b, byte(op)), args) }

// Watched is a key that a transaction depends on, and its version when it was watched.
type Watched struct {
	Key     []byte
	Version uint64
}

// EncodeExec returns the command of a transaction: it runs the n commands in body, made with AppendSub, unless a watched
// key has changed. The answer is an array, or null.
func EncodeExec(watched []Watched, n int, body []byte) []byte {
	size := 2 + 2*binary.MaxVarintLen32 + len(body)
	for _, w := range watched {
		size += binary.MaxVarintLen32 + len(w.Key) + 8
	}
	b := binary.AppendUvarint(append(make([]byte, 0, size), encodingVersion, byte(opExec)), uint64(len(watched)))
	for _, w := range watched {
		b = binary.LittleEndian.AppendUint64(codec.AppendBytes(b, w.Key), w.Version)
	}
	return append(binary.AppendUvarint(b, uint64(n)), body...)
}

// Fence is a lock's token under which a command writes.
type Fence struct {
	Lock  []byte
	Token int64
	// Home says that the lock's keys are in the shard of the command.
	Home bool
}

// FencesMax bounds the fences of one command.
const FencesMax = 16

// EncodeFenced puts fences in front of a command or transaction: it is done if all of them hold, and else fails with errs.Fenced.
func EncodeFenced(fences []Fence, cmd []byte) []byte {
	if len(fences) == 0 {
		return cmd
	}
	b := binary.AppendUvarint([]byte{encodingVersion, byte(opFenced)}, uint64(len(fences)))
	for _, f := range fences {
		home := byte(0)
		if f.Home {
			home = 1
		}
		b = codec.AppendBytes(binary.AppendUvarint(append(b, home), uint64(f.Token)), f.Lock)
	}
	return append(b, cmd[1:]...)
}

func appendQueryHead(b []byte, op Op, nodeMs int64, seed uint64) []byte {
	b = append(b, encodingVersion, byte(op))
	b = binary.LittleEndian.AppendUint64(b, uint64(nodeMs))
	return binary.LittleEndian.AppendUint64(b, seed)
}

// AppendQuery adds a query. nodeMs is the asking node's clock in Unix milliseconds: TTL counts from it, so that it goes
// down while the shard's own clock stands still.
func AppendQuery(b []byte, op Op, nodeMs int64, seed uint64, args [][]byte) []byte {
	return AppendArgs(appendQueryHead(b, op, nodeMs, seed), args)
}

// AppendBatch adds a query that runs the n reads in body, made with AppendSub, on one view. The answer to several reads
// is split by NextAnswer; it may end early, after at least one, when it gets long. A single read is sent and answered as
// by AppendQuery.
func AppendBatch(b []byte, nodeMs int64, seed uint64, n int, body []byte) []byte {
	if n == 1 {
		return append(appendQueryHead(b, Op(body[0]), nodeMs, seed), body[1:]...)
	}
	b = binary.AppendUvarint(appendQueryHead(b, opBatch, nodeMs, seed), uint64(n))
	return append(b, body...)
}

// SkipSub returns what follows the first command of a body made with AppendSub.
func SkipSub(body []byte) ([]byte, error) {
	d := decoder{codec.Read(body)}
	d.Byte()
	for n := d.Count(1); n > 0 && !d.Bad(); n-- {
		d.Bytes()
	}
	if d.Bad() {
		return nil, errMalformed()
	}
	return d.Rest(), nil
}

// NextAnswer splits the first answer off a batch's.
func NextAnswer(b []byte) (answer, rest []byte, err error) {
	d := decoder{codec.Read(b)}
	answer = d.Bytes()
	if d.Bad() {
		return nil, nil, errs.New(errs.Corrupt, "the answer to a batch of reads is malformed")
	}
	return answer, d.Rest(), nil
}

// EncodeVersions returns the query for the versions of keys.
func EncodeVersions(nodeMs int64, keys [][]byte) []byte {
	return AppendArgs(appendQueryHead(nil, opVersions, nodeMs, 0), keys)
}

// DecodeVersions returns the versions, in the order of the keys.
func DecodeVersions(b []byte, n int) ([]uint64, error) {
	if len(b) != 8*n {
		return nil, errs.New(errs.Corrupt, "%d bytes for the versions of %d keys", len(b), n)
	}
	vs := make([]uint64, n)
	for i := range vs {
		vs[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return vs, nil
}

// EncodeSlotCount returns the query for the number of keys of a slot.
func EncodeSlotCount(slot uint16) []byte {
	return binary.LittleEndian.AppendUint16(appendQueryHead(nil, opSlotCount, 0, 0), slot)
}

// EncodeSlotKeys returns the query for up to count keys of a slot.
func EncodeSlotKeys(slot uint16, count uint32) []byte {
	b := binary.LittleEndian.AppendUint16(appendQueryHead(nil, opSlotKeys, 0, 0), slot)
	return binary.LittleEndian.AppendUint32(b, count)
}

// EncodeKeyCount returns the query for the number of keys and of those that expire.
func EncodeKeyCount() []byte { return appendQueryHead(nil, opKeyCount, 0, 0) }

// DecodeKeyCount reads its answer.
func DecodeKeyCount(b []byte) (keys, expires uint64, err error) {
	return decodePair(b, "a count of keys")
}

func decodePair(b []byte, what string) (x, y uint64, err error) {
	if len(b) != 16 {
		return 0, 0, errs.New(errs.Corrupt, "the answer to %s has %d bytes", what, len(b))
	}
	return binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), nil
}

func encodePair(x, y uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, x), y)
}

// Event is what EVENT.ADD appends, with its topic resolved.
type Event struct {
	Topic     [16]byte
	Partition int32
	Key       []byte
	// KeyNull says that the event has no key.
	KeyNull bool
	Value   []byte
	Headers []EventHeader
}

// AppendArgs appends the argument list of the command event.add. The arguments are parts of the event, and of head, which is written over
// with what has to be made for them.
func (e *Event) AppendArgs(args [][]byte, head []byte) [][]byte {
	b := binary.LittleEndian.AppendUint32(head[:0], uint32(e.Partition))
	b = append(b, 0)
	if !e.KeyNull {
		b[4] = 1
		b = append(b, e.Key...)
	}
	args = append(args, e.Topic[:], b[:4:4], b[4:], e.Value)
	for _, h := range e.Headers {
		args = append(args, []byte(h.Name), h.Value)
	}
	return args
}

// EncodeFlushStep returns the command that removes up to FlushKeysMax keys from a cursor on, if they were there at the
// first step. The first step has bound and cursor 0; DecodeFlushStep says how to go on.
func EncodeFlushStep(bound, cursor uint64) []byte {
	b := binary.LittleEndian.AppendUint64([]byte{encodingVersion, byte(opFlushStep)}, bound)
	return binary.LittleEndian.AppendUint64(b, cursor)
}

// DecodeFlushStep reads the answer to a step; cursor 0 says that it was the last.
func DecodeFlushStep(b []byte) (bound, cursor uint64, err error) {
	return decodePair(b, "a step of FLUSHALL")
}

// decoder is a codec.Reader of commands and queries.
type decoder struct{ codec.Reader }

// args appends an argument list to list. Its slices point into the encoding.
func (d *decoder) args(list [][]byte) [][]byte {
	for n := d.Count(1); n > 0 && !d.Bad(); n-- {
		list = append(list, d.Bytes())
	}
	return list
}

func errMalformed() error { return errs.New(errs.Corrupt, "malformed datatypes request") }
