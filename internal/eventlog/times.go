package eventlog

import (
	"encoding/binary"

	"github.com/quorate/quorate/internal/shard"
)

// LatestTime asks QueryTime for the batch that holds the latest time stamp.
const LatestTime = -3

// QueryTime asks a shard for the first batch of a partition that holds a record stamped at or after a time in Unix
// milliseconds. The answer is that whole batch, or nothing. In the batch the record has yet to be found, which may mean to
// decompress it: that is no work for the state machine.
func QueryTime(topic [16]byte, partition int32, ms int64) []byte {
	e := newEnc(queryTime, 32)
	e.id(topic)
	e.uv(uint64(partition))
	e.iv(ms)
	return e.b
}

// timeRow is a closed stretch of the time index: batches first..last, of which the latest time stamp is latest.
type timeRow struct{ first, last, latest int64 }

func readTimeRow(k, v []byte) timeRow {
	_, _, rest := splitPartKey(k)
	if len(rest) != 16 {
		panic("eventlog: malformed time index key")
	}
	d := row(v)
	r := timeRow{last: int64(binary.BigEndian.Uint64(rest[8:])), first: int64(d.BigUint64()), latest: int64(d.BigUint64() ^ 1<<63)}
	d.ok("time index")
	return r
}

func answerTime(v shard.View, d dec) ([]byte, error) {
	topic, part, ms := d.id(), d.partition(), d.Varint()
	if err := d.done("time query"); err != nil {
		return nil, err
	}
	p, ok := readPartition(v, topic, part)
	if !ok || p.start == p.next {
		return nil, nil
	}
	if ms == LatestTime {
		ms = latestTime(v, topic, part, &p)
	}
	// Index rows are ordered by the running maximum at their end, so the stretch looked for is not before the first one
	// that reaches ms. It may be behind it if retention took the batch that raised the maximum.
	for k, b := range v.Scan(timeKey(topic, part, ms, 0), partEnd(rowTime, topic, part)) {
		if r := readTimeRow(k, b); r.latest >= ms && r.last >= p.start {
			if b := scanTime(v, topic, part, max(r.first, p.start), r.last, ms); b != nil {
				return b, nil
			}
		}
	}
	return scanTime(v, topic, part, max(p.openFirst, p.start), p.next-1, ms), nil
}

// scanTime looks through the batches that hold offsets from..to.
func scanTime(v shard.View, topic [16]byte, part int32, from, to, ms int64) []byte {
	for _, b := range v.Scan(batchKey(topic, part, from), batchKey(topic, part, to+1)) {
		if h, ok := ReadBatchHeader(b); ok && h.MaxTimestamp >= ms {
			return append([]byte(nil), b...)
		}
	}
	return nil
}

// latestTime returns the latest time stamp among the kept batches.
func latestTime(v shard.View, topic [16]byte, part int32, p *partition) int64 {
	if p.maxTimeLast >= p.start {
		return p.maxTime
	}
	latest := p.openMax
	if p.openFirst < p.start {
		latest = maxOf(v, topic, part, p.start, p.next-1)
	}
	for k, b := range v.Scan(partKey(rowTime, topic, part), partEnd(rowTime, topic, part)) {
		r := readTimeRow(k, b)
		switch {
		case r.last < p.start:
		case r.first < p.start:
			latest = max(latest, maxOf(v, topic, part, p.start, r.last))
		default:
			latest = max(latest, r.latest)
		}
	}
	return latest
}

func maxOf(v shard.View, topic [16]byte, part int32, from, to int64) int64 {
	latest := int64(-1)
	for _, b := range v.Scan(batchKey(topic, part, from), batchKey(topic, part, to+1)) {
		if h, ok := ReadBatchHeader(b); ok {
			latest = max(latest, h.MaxTimestamp)
		}
	}
	return latest
}
