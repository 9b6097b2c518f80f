package eventlog

import (
	"math"
	"time"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

const (
	// producerIdle is how long an idempotent producer is remembered after its last batch, as in Kafka.
	producerIdle = 24 * time.Hour
	// producersMax bounds the producers of a partition.
	producersMax = 100_000
	// producerBatches is how many batches are remembered: as many as a client may have in flight.
	producerBatches = 5
)

// producer is an idempotent producer in one partition.
type producer struct {
	epoch   int16
	used    int64
	batches []sequence
}

// sequence is a batch that was appended: its first and last sequence number, and its base offset.
type sequence struct {
	first, last int32
	base        int64
}

func (p *producer) encode() []byte {
	e := &enc{b: []byte{version}}
	e.iv(int64(p.epoch))
	e.iv(p.used)
	e.uv(uint64(len(p.batches)))
	for _, s := range p.batches {
		e.iv(int64(s.first))
		e.iv(int64(s.last))
		e.iv(s.base)
	}
	return e.b
}

func readProducer(v shard.View, topic [16]byte, part int32, id int64) (p producer, ok bool) {
	b, ok := v.Get(producerKey(topic, part, id))
	if !ok {
		return p, false
	}
	d := row(b)
	p.epoch, p.used = int16(d.Varint()), d.Varint()
	for n := d.Count(3); n > 0; n-- {
		p.batches = append(p.batches, sequence{d.i32(), d.i32(), d.Varint()})
	}
	d.ok("producer")
	return p, true
}

// lastSequence returns the sequence number of a batch's last record; numbers wrap to 0 behind the largest int32.
func lastSequence(first, records int32) int32 {
	return int32((int64(first) + int64(records) - 1) % (math.MaxInt32 + 1))
}

// check decides about a batch (KIP-98, and KIP-360 for producers that are not remembered). again means that the batch was
// appended before, at base.
func (p *producer) check(known bool, h BatchHeader) (base int64, again bool, err error) {
	if !known {
		if h.BaseSequence != 0 {
			return 0, false, errs.Coded(errs.Conflict, "UNKNOWNPRODUCER", "producer %d is not known here and starts with sequence %d; it was idle for a day or earlier batches are missing: start again with a new producer id or epoch", h.ProducerID, h.BaseSequence)
		}
		return 0, false, nil
	}
	if h.ProducerEpoch < p.epoch {
		return 0, false, errs.New(errs.Fenced, "producer %d has epoch %d, but epoch %d was seen", h.ProducerID, h.ProducerEpoch, p.epoch)
	}
	last := lastSequence(h.BaseSequence, h.Records)
	if h.ProducerEpoch > p.epoch {
		if h.BaseSequence != 0 {
			return 0, false, errs.Coded(errs.Conflict, "OUTOFORDER", "producer %d starts epoch %d with sequence %d instead of 0", h.ProducerID, h.ProducerEpoch, h.BaseSequence)
		}
		return 0, false, nil
	}
	for _, s := range p.batches {
		if s.first == h.BaseSequence && s.last == last {
			return s.base, true, nil
		}
	}
	want := int32(0)
	if n := len(p.batches); n > 0 {
		want = lastSequence(p.batches[n-1].last, 2)
	}
	if h.BaseSequence != want {
		return 0, false, errs.Coded(errs.Conflict, "OUTOFORDER", "producer %d sent sequence %d; the next is %d", h.ProducerID, h.BaseSequence, want)
	}
	return 0, false, nil
}

// record remembers an appended batch.
func (p *producer) record(h BatchHeader, base int64, now time.Time) {
	if h.ProducerEpoch != p.epoch {
		p.epoch, p.batches = h.ProducerEpoch, nil
	}
	p.used = now.UnixNano()
	p.batches = append(p.batches, sequence{h.BaseSequence, lastSequence(h.BaseSequence, h.Records), base})
	if n := len(p.batches); n > producerBatches {
		p.batches = p.batches[n-producerBatches:]
	}
}

// fireProducer forgets a producer that was idle.
func fireProducer(tx *shard.Tx, key []byte) {
	topic, part, rest := splitPartKey(key)
	d := dec{codec.Read(rest)}
	pr, ok := readProducer(tx, topic, part, int64(d.BigUint64()))
	if !ok {
		return
	}
	if end := time.Unix(0, pr.used).Add(producerIdle); end.After(tx.Now()) {
		tx.SetTimer(key, end)
		return
	}
	tx.Delete(key)
	if p, ok := readPartition(tx, topic, part); ok {
		p.producers--
		tx.Set(partKey(rowPartition, topic, part), p.encode())
	}
}

// EncodeInitProducer makes the command that hands out a producer id, for the space's first shard: DecodeProducer.
func EncodeInitProducer() []byte { return newEnc(opInitProducer, 0).b }

// DecodeProducer reads the producer id from the answer to EncodeInitProducer. Its epoch is 0.
func DecodeProducer(b []byte) (int64, error) {
	d := dec{codec.Read(b)}
	id := int64(d.BigUint64())
	return id, d.done("answer: producer id")
}

func applyInitProducer(tx *shard.Tx, d dec) ([]byte, error) {
	if err := d.done("producer id command"); err != nil {
		return nil, err
	}
	next := uint64(1)
	if b, ok := tx.Get([]byte{rowNextPID}); ok {
		r := row(b)
		next = r.BigUint64()
		r.ok("producer id")
	}
	e := &enc{b: []byte{version}}
	e.u64(next + 1)
	tx.Set([]byte{rowNextPID}, e.b)
	out := &enc{}
	out.u64(next)
	return out.b, nil
}
