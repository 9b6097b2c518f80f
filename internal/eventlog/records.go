package eventlog

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strconv"

	"github.com/quorate/quorate/internal/errs"
)

// RecordsBuffer is the least that a reader of what a batch unpacks to must buffer. Fields that are looked at take no more.
const RecordsBuffer = 64

// fenceBytesMax is how much of a token is looked at: more than the longest decimal number has.
const fenceBytesMax = 32

// record is what is of interest of a record.
type record struct {
	timeDelta, offsetDelta int64
	// fences counts the headers FenceHeader. fence is a copy of the last one's value, or of how a long one begins.
	fences int
	fence  []byte
}

// recordReader reads the records of a batch field by field, and passes over keys, values and headers: of what a compressed batch unpacks to no more
// is in memory than the buffer of its reader. Lengths and counts are as strict as Java's consumer is: a number of 32 bits takes five bytes at most.
type recordReader struct {
	// in is what is there, read up to pos: all of it if src is nil, else what src has buffered.
	in  []byte
	pos int
	src *bufio.Reader
	// end is the pos at which the record being read ends, be it that so much is there or not.
	end int64
	// bad says that a field was not there, or cannot be. err is why src ended, unless it came to its end.
	bad bool
	err error
}

// readRecords returns a reader of the records behind a batch's header or, if body is not nil, of what they unpack to.
func readRecords(batch []byte, body *bufio.Reader) recordReader {
	if body != nil {
		return recordReader{src: body}
	}
	return recordReader{in: batch, pos: BatchHeaderSize}
}

// fill makes n bytes be there if so many are left, and any other number that is.
func (r *recordReader) fill(n int) {
	if r.src == nil || r.err != nil {
		return
	}
	// What is buffered can be discarded.
	_, _ = r.src.Discard(r.pos)
	r.end -= int64(r.pos)
	if _, err := r.src.Peek(n); err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	r.in, _ = r.src.Peek(r.src.Buffered())
	r.pos = 0
}

// more says whether anything is left.
func (r *recordReader) more() bool {
	if r.pos == len(r.in) {
		r.fill(1)
	}
	return r.pos < len(r.in)
}

// fail leaves nothing to be read.
func (r *recordReader) fail() {
	r.bad, r.in, r.pos, r.src = true, nil, 0, nil
}

// left returns how many bytes the record being read has left. A record that says it has fewer than it has makes it negative.
func (r *recordReader) left() int64 { return r.end - int64(r.pos) }

// int64 reads a signed number. Most have one byte.
func (r *recordReader) int64() int64 {
	if r.pos < len(r.in) {
		if c := r.in[r.pos]; c < 0x80 {
			r.pos++
			return int64(c>>1) ^ -int64(c&1)
		}
	}
	return r.long(binary.MaxVarintLen64)
}

// int32 reads a length, a count or an offset.
func (r *recordReader) int32() int64 {
	if r.pos < len(r.in) {
		if c := r.in[r.pos]; c < 0x80 {
			r.pos++
			return int64(c>>1) ^ -int64(c&1)
		}
	}
	return r.long(binary.MaxVarintLen32)
}

// long reads a number of at most so many bytes, which is one of 32 bits if they are five.
func (r *recordReader) long(bytesMax int) int64 {
	if len(r.in)-r.pos < binary.MaxVarintLen64 {
		r.fill(binary.MaxVarintLen64)
	}
	v, n := binary.Varint(r.in[r.pos:])
	if n <= 0 || n > bytesMax || bytesMax == binary.MaxVarintLen32 && int64(int32(v)) != v {
		r.fail()
		return 0
	}
	r.pos += n
	return v
}

// skip passes over bytes of the record.
func (r *recordReader) skip(n int64) {
	if n < 0 || n > r.left() {
		r.fail()
		return
	}
	for n > int64(len(r.in)-r.pos) {
		n -= int64(len(r.in) - r.pos)
		r.pos = len(r.in)
		if !r.more() {
			r.fail()
			return
		}
	}
	r.pos += int(n)
}

// peek returns the next bytes of the record, which are few, and leaves them where they are. If they are not there it returns nil.
func (r *recordReader) peek(n int64) []byte {
	if n < 0 || n > r.left() {
		return nil
	}
	if int64(len(r.in)-r.pos) < n {
		r.fill(int(n))
		if int64(len(r.in)-r.pos) < n {
			return nil
		}
	}
	return r.in[r.pos : r.pos+int(n)]
}

// field passes over a byte string that may be null.
func (r *recordReader) field() {
	if n := r.int32(); n != -1 {
		r.skip(n)
	}
}

// next reads a record, and says whether it is well formed. The memory of rec.fence is used again.
func (r *recordReader) next(rec *record) bool {
	n := r.int32()
	r.end = int64(r.pos) + n
	r.skip(1)
	rec.timeDelta = r.int64()
	rec.offsetDelta = r.int32()
	r.field()
	r.field()
	rec.fences = 0
	n = r.int32()
	if n < 0 || n > r.left() {
		r.fail()
	}
	for ; n > 0 && !r.bad; n-- {
		r.header(rec)
	}
	return !r.bad && r.left() == 0
}

// header passes over a header, unless it holds a token.
func (r *recordReader) header(rec *record) {
	n := r.int32()
	fence := n == int64(len(FenceHeader)) && string(r.peek(n)) == FenceHeader
	r.skip(n)
	if !fence {
		r.field()
		return
	}
	rec.fences++
	rec.fence = rec.fence[:0]
	if n = r.int32(); n != -1 {
		rec.fence = append(rec.fence, r.peek(min(n, fenceBytesMax))...)
		r.skip(n)
	}
}

// ended returns why there are fewer records than there should be, if it is not for what they are.
func (r *recordReader) ended() error {
	if r.err == nil {
		return nil
	}
	var e *errs.Error
	if errors.As(r.err, &e) {
		return e
	}
	// The checksum was right, so that it will be no better the next time: clients send a CORRUPT_MESSAGE again.
	return invalidRecord("the batch cannot be unpacked: %s; its checksum is right, so that the client compressed it wrongly", r.err.Error())
}

func invalidRecord(format string, args ...any) error {
	return errs.Coded(errs.Invalid, "INVALIDRECORD", format, args...)
}

// CheckRecords checks the records of a batch that CheckBatch accepted as Kafka does (LogValidator), in one pass: that they are as many as the header
// counts, well formed, numbered from 0 without a gap, and nothing is behind them. It makes the batch state its latest time stamp, as Kafka
// does: clients are known that state that of the last record, and look-ups by time and retention go by it. If the topic has a lock it
// returns the token that all records name.
//
// body is what the records unpack to, nil if they are not compressed. It buffers RecordsBuffer bytes at least. An *errs.Error that it ends with is returned as it is; any other but io.EOF
// means that the records cannot be unpacked.
func CheckRecords(b []byte, h BatchHeader, body *bufio.Reader, t *Topic) (BatchHeader, int64, error) {
	r, rec := readRecords(b, body), record{}
	latest, token := int64(math.MinInt64), int64(0)
	for n := int32(0); n < h.Records; n++ {
		if !r.more() {
			if err := r.ended(); err != nil {
				return h, 0, err
			}
			return h, 0, invalidRecord("the batch counts %d records and holds %d", h.Records, n)
		}
		if !r.next(&rec) {
			if err := r.ended(); err != nil {
				return h, 0, err
			}
			return h, 0, invalidRecord("record %d of the batch is malformed", n)
		}
		if rec.offsetDelta != int64(n) {
			return h, 0, invalidRecord("record %d of the batch has offset delta %d; records are numbered from 0", n, rec.offsetDelta)
		}
		if t.Fence != "" {
			var err error
			if token, err = recordToken(&rec, n, token, t); err != nil {
				return h, 0, err
			}
		}
		latest = max(latest, h.FirstTimestamp+rec.timeDelta)
	}
	if r.more() {
		return h, 0, invalidRecord("the batch holds more than the %d records it counts", h.Records)
	}
	if err := r.ended(); err != nil {
		return h, 0, err
	}
	h, err := h.stateLatest(b, latest)
	return h, token, err
}

// recordToken returns the fencing token of record n for a topic with a lock, which must be that of the records before.
func recordToken(rec *record, n int32, before int64, t *Topic) (int64, error) {
	bad := func(why string) (int64, error) {
		return 0, invalidRecord("record %d of the batch %s; topic %q takes records only under the lock %q: give each record the header %s with the token of the lock's holder, a decimal number", n, why, t.Name, t.Fence, FenceHeader)
	}
	switch {
	case rec.fences == 0:
		return bad("has no header " + FenceHeader)
	case rec.fences > 1:
		return bad("has several headers " + FenceHeader)
	}
	v := string(rec.fence)
	token, err := strconv.ParseInt(v, 10, 64)
	switch {
	case err != nil || token < 1 || v[0] == '+':
		return bad("has " + strconv.Quote(v) + " in the header " + FenceHeader)
	case n > 0 && token != before:
		return bad("has another token than those before")
	}
	return token, nil
}

// FindTime looks for the first record of a batch stamped at or after ms, and returns its offset delta and time stamp. body is as for CheckRecords.
// An error means that the batch could not be read so far.
func FindTime(b []byte, h BatchHeader, body *bufio.Reader, ms int64) (delta, at int64, ok bool, err error) {
	r, rec := readRecords(b, body), record{}
	for n := int32(0); n < h.Records && r.more(); n++ {
		if !r.next(&rec) {
			break
		}
		if at := h.FirstTimestamp + rec.timeDelta; at >= ms {
			return rec.offsetDelta, at, true, nil
		}
	}
	return 0, 0, false, r.ended()
}
