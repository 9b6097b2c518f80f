package eventlog

import (
	"encoding/binary"
	"slices"

	"github.com/quorate/quorate/internal/shard"
)

// Bounds of one look of retention: more is left to another timer that is due at once.
const (
	retentionBatches = 512
	retentionBytes   = 8 << 20
	// retentionStretches bounds the rows of the time index that are looked at.
	retentionStretches = 10_000
)

// fireRetention deletes whole batches from the front of a partition. A batch goes when its latest record is older than
// the topic's retention or when the rest is still as large as the topic wants to keep. A batch without time stamps goes
// with the next one that has them.
func fireRetention(tx *shard.Tx, key []byte) {
	topic, part, _ := splitPartKey(key)
	p, ok := readPartition(tx, topic, part)
	if !ok {
		return
	}
	cutoff := int64(-1)
	if p.retentionMs > 0 {
		cutoff = tx.Now().UnixMilli() - p.retentionMs
	}
	type seen struct {
		key  []byte
		next int64
		size int64
	}
	var front []seen
	drop, left, read := 0, p.size, int64(0)
	more := false
	for k, b := range tx.Scan(partKey(rowBatch, topic, part), partEnd(rowBatch, topic, part)) {
		if len(front) == retentionBatches || read >= retentionBytes {
			more = true
			break
		}
		h, ok := ReadBatchHeader(b)
		if !ok {
			panic("eventlog: malformed batch row")
		}
		size := int64(len(b))
		tooMuch := p.retentionBytes > 0 && left-size >= p.retentionBytes
		tooOld := cutoff >= 0 && h.MaxTimestamp >= 0 && h.MaxTimestamp < cutoff
		undated := cutoff >= 0 && h.MaxTimestamp < 0
		if !tooMuch && !tooOld && !undated {
			break
		}
		front = append(front, seen{slices.Clone(k), h.BaseOffset + int64(h.Records), size})
		left -= size
		read += size
		if tooMuch || tooOld {
			drop = len(front)
		}
	}
	if more && drop == 0 {
		// None of them has a time stamp, and what is behind them was not looked at.
		if latest := firstDated(tx, topic, part, &p, front[len(front)-1].next); latest >= 0 && latest < cutoff {
			drop = len(front)
		}
	}
	for _, s := range front[:drop] {
		tx.Delete(s.key)
		p.start, p.size = s.next, p.size-s.size
	}
	if drop > 0 {
		dropIndex(tx, topic, part, &p)
	}
	p.armed = p.start < p.next
	if p.armed {
		at := tx.Now()
		if !more || drop == 0 {
			at = at.Add(p.retentionPeriod())
		}
		tx.SetTimer(key, at)
	}
	tx.Set(partKey(rowPartition, topic, part), p.encode())
}

// firstDated returns the latest time stamp of the first stretch of the time index, from an offset on, that has one; -1 if it is not known.
func firstDated(tx *shard.Tx, topic [16]byte, part int32, p *partition, from int64) int64 {
	n := 0
	for k, v := range tx.Scan(partKey(rowTime, topic, part), partEnd(rowTime, topic, part)) {
		if n++; n > retentionStretches {
			return -1
		}
		if r := readTimeRow(k, v); r.last >= from && r.latest >= 0 {
			return r.latest
		}
	}
	return p.openMax
}

// dropIndex removes what points before the log start only: time index rows, and ended epochs.
func dropIndex(tx *shard.Tx, topic [16]byte, part int32, p *partition) {
	var gone [][]byte
	for k := range tx.Scan(partKey(rowTime, topic, part), partEnd(rowTime, topic, part)) {
		_, _, rest := splitPartKey(k)
		if len(rest) != 16 || int64(binary.BigEndian.Uint64(rest[8:])) >= p.start {
			break
		}
		gone = append(gone, slices.Clone(k))
	}
	var before []byte
	for k, v := range tx.Scan(partKey(rowEpoch, topic, part), partEnd(rowEpoch, topic, part)) {
		if d := row(v); int64(d.BigUint64()) > p.start {
			break
		}
		// The epoch before this one ended at or before the log start.
		if before != nil {
			gone = append(gone, before)
		}
		before = slices.Clone(k)
	}
	for _, k := range gone {
		tx.Delete(k)
	}
}
