package eventlog

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"slices"

	"github.com/quorate/quorate/internal/errs"
)

// BatchHeaderSize is the size of the fixed part of a record batch of format 2.
const BatchHeaderSize = 61

// RecordsPerBatchMax bounds the records of one batch; a record takes at least seven bytes.
const RecordsPerBatchMax = 1 << 20

// Attribute bits of a batch (KIP-98).
const (
	// AttrCodec masks the compression codec: 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd.
	AttrCodec = 0x07
	// AttrLogAppendTime says that the broker set the time stamps.
	AttrLogAppendTime = 0x08
	// AttrTransactional marks a batch of a transaction.
	AttrTransactional = 0x10
	// AttrControl marks a batch that only the broker may write.
	AttrControl = 0x20
)

// castagnoli is a constant: the polynomial of the batch checksum.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// BatchHeader is the fixed part of a record batch of format 2, the only one Quorate stores.
type BatchHeader struct {
	BaseOffset      int64
	Length          int32
	LeaderEpoch     int32
	Magic           int8
	CRC             uint32
	Attributes      int16
	LastOffsetDelta int32
	FirstTimestamp  int64
	MaxTimestamp    int64
	ProducerID      int64
	ProducerEpoch   int16
	BaseSequence    int32
	Records         int32
}

// ReadBatchHeader decodes the header of a batch without judging it.
func ReadBatchHeader(b []byte) (h BatchHeader, ok bool) {
	if len(b) < BatchHeaderSize {
		return h, false
	}
	be := binary.BigEndian
	return BatchHeader{
		BaseOffset: int64(be.Uint64(b)), Length: int32(be.Uint32(b[8:])), LeaderEpoch: int32(be.Uint32(b[12:])),
		Magic: int8(b[16]), CRC: be.Uint32(b[17:]), Attributes: int16(be.Uint16(b[21:])),
		LastOffsetDelta: int32(be.Uint32(b[23:])), FirstTimestamp: int64(be.Uint64(b[27:])),
		MaxTimestamp: int64(be.Uint64(b[35:])), ProducerID: int64(be.Uint64(b[43:])),
		ProducerEpoch: int16(be.Uint16(b[51:])), BaseSequence: int32(be.Uint32(b[53:])), Records: int32(be.Uint32(b[57:])),
	}, true
}

// checkHeader is what the state machine checks of every batch, whoever sent it.
func checkHeader(b []byte) (BatchHeader, error) {
	h, ok := ReadBatchHeader(b)
	switch {
	case !ok:
		return h, errs.Coded(errs.Invalid, "INVALIDRECORD", "a record batch has at least %d bytes; got %d", BatchHeaderSize, len(b))
	case h.Magic != 2:
		return h, errs.Coded(errs.Unsupported, "OLDFORMAT", "record batch of format %d; only format 2 is supported: use a client for Kafka 0.11 or later", h.Magic)
	case int64(h.Length) != int64(len(b)-12):
		return h, errs.Coded(errs.Invalid, "INVALIDRECORD", "a record batch states a length of %d, but %d bytes follow; send one batch a partition", h.Length, len(b)-12)
	case h.Records <= 0 || h.Records > RecordsPerBatchMax || h.LastOffsetDelta != h.Records-1:
		return h, errs.Coded(errs.Invalid, "INVALIDRECORD", "a record batch counts %d records and ends at offset delta %d", h.Records, h.LastOffsetDelta)
	case h.Attributes&AttrControl != 0:
		return h, errs.Coded(errs.Invalid, "INVALIDRECORD", "a control batch cannot be produced by a client")
	case h.Attributes&AttrTransactional != 0:
		return h, errs.Coded(errs.Unsupported, "TRANSACTION", "transactional record batches are not supported; produce without transactional.id")
	case h.Attributes&AttrCodec > 4:
		return h, errs.Coded(errs.Unsupported, "COMPRESSION", "unknown compression codec %d", h.Attributes&AttrCodec)
	case h.Attributes&AttrLogAppendTime != 0:
		return h, errs.Coded(errs.Invalid, "INVALIDTIMESTAMP", "only a broker may mark a batch as stamped with the append time")
	case h.ProducerID >= 0 && (h.ProducerEpoch < 0 || h.BaseSequence < 0):
		return h, errs.Coded(errs.Invalid, "INVALIDRECORD", "an idempotent batch has producer epoch %d and sequence %d; both must be 0 or more", h.ProducerEpoch, h.BaseSequence)
	case h.MaxTimestamp < -1 || h.FirstTimestamp < -1:
		return h, errs.Coded(errs.Invalid, "INVALIDTIMESTAMP", "a record batch has the time stamps %d and %d; they must not be negative", h.FirstTimestamp, h.MaxTimestamp)
	}
	return h, nil
}

// CheckBatch checks the header of a batch that a client sent, and its checksum. What it holds is checked by CheckRecords. Only a wrong checksum is Corrupt, as in
// Kafka: it may have come about on the way, and clients send the batch again.
func CheckBatch(b []byte) (BatchHeader, error) {
	h, err := checkHeader(b)
	if err != nil {
		return h, err
	}
	if got := crc32.Checksum(b[21:], castagnoli); got != h.CRC {
		return h, errs.Coded(errs.Corrupt, "CORRUPTBATCH", "record batch checksum is %08x, but its content sums to %08x", h.CRC, got)
	}
	return h, nil
}

// stateLatest writes the latest time stamp of a batch's records into its header unless it is there, with the checksum that follows.
func (h BatchHeader) stateLatest(b []byte, latest int64) (BatchHeader, error) {
	if latest < -1 {
		return h, errs.Coded(errs.Invalid, "INVALIDTIMESTAMP", "the latest time stamp of a record batch is %d; it must not be negative", latest)
	}
	if latest != h.MaxTimestamp {
		binary.BigEndian.PutUint64(b[35:], uint64(latest))
		h.MaxTimestamp, h.CRC = latest, crc32.Checksum(b[21:], castagnoli)
		binary.BigEndian.PutUint32(b[17:], h.CRC)
	}
	return h, nil
}

// Header is a header of a record.
type Header struct {
	Name  string
	Value []byte
}

// batchBuilder makes an uncompressed batch without a producer.
type batchBuilder struct {
	b     []byte
	first int64
	max   int64
	n     int32
}

// newBatchBuilder makes room for records of so many bytes; there may be more.
func newBatchBuilder(size int) *batchBuilder {
	return &batchBuilder{b: make([]byte, BatchHeaderSize, BatchHeaderSize+size)}
}

func appendField(b, v []byte, null bool) []byte {
	if null {
		return binary.AppendVarint(b, -1)
	}
	return append(binary.AppendVarint(b, int64(len(v))), v...)
}

// recordBytes is what a record takes at most, if its time stamp and its number are not far from the first's.
func recordBytes(key, value int, headers []Header) int {
	const field = 3
	n := 5 + 4*field + key + value
	for i := range headers {
		n += 2*field + len(headers[i].Name) + len(headers[i].Value)
	}
	return n
}

// add appends a record stamped with a time in Unix milliseconds.
func (w *batchBuilder) add(ms int64, key []byte, keyNull bool, value []byte, valueNull bool, headers []Header) {
	if w.n == 0 {
		w.first, w.max = ms, ms
	}
	w.max = max(w.max, ms)
	// The record's length comes first. Its bytes are made where they stay, behind room for a length of most records.
	const head = 2
	at := len(w.b)
	r := append(w.b, make([]byte, head+1)...)
	r = binary.AppendVarint(r, ms-w.first)
	r = binary.AppendVarint(r, int64(w.n))
	r = appendField(r, key, keyNull)
	r = appendField(r, value, valueNull)
	r = binary.AppendVarint(r, int64(len(headers)))
	for _, h := range headers {
		r = append(binary.AppendVarint(r, int64(len(h.Name))), h.Name...)
		r = appendField(r, h.Value, h.Value == nil)
	}
	var size [binary.MaxVarintLen64]byte
	n := binary.PutVarint(size[:], int64(len(r)-at-head))
	w.b = slices.Replace(r, at, at+head, size[:n]...)
	w.n++
}

// finish fills in the header and returns the batch.
func (w *batchBuilder) finish(base int64, epoch int32) []byte {
	be := binary.BigEndian
	b := w.b
	be.PutUint64(b, uint64(base))
	be.PutUint32(b[8:], uint32(len(b)-12))
	be.PutUint32(b[12:], uint32(epoch))
	b[16] = 2
	be.PutUint16(b[21:], 0)
	be.PutUint32(b[23:], uint32(w.n-1))
	be.PutUint64(b[27:], uint64(w.first))
	be.PutUint64(b[35:], uint64(w.max))
	be.PutUint64(b[43:], math.MaxUint64)
	be.PutUint16(b[51:], math.MaxUint16)
	be.PutUint32(b[53:], math.MaxUint32)
	be.PutUint32(b[57:], uint32(w.n))
	be.PutUint32(b[17:], crc32.Checksum(b[21:], castagnoli))
	return b
}
