package eventlog

import (
	"encoding/binary"
	"math"
	"sort"
	"strconv"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// Fetch asks for the records of one partition from an offset on.
type Fetch struct {
	Topic     [16]byte
	Partition int32
	// Changes reads the shard's change log instead: the partition of the changes topic that shows it.
	Changes  bool
	Offset   int64
	BytesMax int32
}

// Fetched is the answer to one Fetch.
type Fetched struct {
	// Err is nil, errs.Compacted below the log start, or errs.Invalid beyond the end.
	Err error
	// Start and End bound the log: Start <= offset < End. End is the high watermark.
	Start, End int64
	// Batches are whole record batches; the first may begin before the offset asked for.
	Batches []byte
	// More says that there are further batches, which a limit kept out.
	More bool
}

// QueryFetch asks a shard for records: DecodeFetched. No more than bytesMax are returned in all, but if firstWhole is set
// and there are any, the first batch is returned whatever its size.
func QueryFetch(bytesMax int32, firstWhole bool, list []Fetch) []byte {
	e := newEnc(queryFetch, 16+32*len(list))
	e.iv(int64(bytesMax))
	e.bool(firstWhole)
	e.uv(uint64(len(list)))
	for i := range list {
		f := &list[i]
		e.id(f.Topic)
		e.uv(uint64(f.Partition))
		e.bool(f.Changes)
		e.iv(f.Offset)
		e.iv(int64(f.BytesMax))
	}
	return e.b
}

// DecodeFetched reads the answer of QueryFetch, in order.
func DecodeFetched(b []byte) ([]Fetched, error) {
	d := dec{codec.Read(b)}
	var out []Fetched
	for n := d.Count(5); n > 0 && !d.Bad(); n-- {
		f := Fetched{Err: d.refusal(), Start: d.Varint(), End: d.Varint()}
		f.Batches, f.More = d.Bytes(), d.Bool()
		out = append(out, f)
	}
	return out, d.done("answer: fetch")
}

func answerFetch(v shard.View, d dec) ([]byte, error) {
	left, firstWhole := d.Varint(), d.Bool()
	out := &enc{}
	n := d.Count(20)
	out.uv(uint64(n))
	for ; n > 0 && !d.Bad(); n-- {
		f := Fetch{Topic: d.id(), Partition: d.partition(), Changes: d.Bool(), Offset: d.Varint(), BytesMax: d.i32()}
		if d.Bad() {
			break
		}
		r := fetchOne(v, &f, min(int64(f.BytesMax), left), firstWhole)
		left -= int64(len(r.Batches))
		firstWhole = firstWhole && len(r.Batches) == 0
		out.refusal(r.Err)
		out.iv(r.Start)
		out.iv(r.End)
		out.bytes(r.Batches)
		out.bool(r.More)
	}
	return out.b, d.done("fetch query")
}

func fetchOne(v shard.View, f *Fetch, bytesMax int64, firstWhole bool) (r Fetched) {
	if f.Changes {
		return fetchChanges(v, f.Offset, bytesMax, firstWhole)
	}
	p, _ := readPartition(v, f.Topic, f.Partition)
	r.Start, r.End = p.start, p.next
	if r.Err = outside(f.Offset, r.Start, r.End); r.Err != nil || f.Offset == r.End {
		return r
	}
	if bytesMax <= 0 && !firstWhole {
		r.More = true
		return r
	}
	for _, b := range v.Scan(batchKey(f.Topic, f.Partition, f.Offset), partEnd(rowBatch, f.Topic, f.Partition)) {
		if int64(len(r.Batches)+len(b)) > bytesMax && (len(r.Batches) > 0 || !firstWhole) {
			r.More = true
			break
		}
		r.Batches = append(r.Batches, b...)
	}
	return r
}

func outside(offset, start, end int64) error {
	switch {
	case offset < start:
		return errs.New(errs.Compacted, "offset %d is before the log start %d", offset, start)
	case offset > end:
		return errs.New(errs.Invalid, "offset %d is beyond the end %d", offset, end)
	}
	return nil
}

// changesPerBatch bounds the records of a batch made from the change log.
const changesPerBatch = 4096

// fetchChanges makes a batch of stored changes. The leader epoch is left out (-1): positions of the change log are never
// given out twice, so there is nothing for a client to check.
func fetchChanges(v shard.View, from, bytesMax int64, firstWhole bool) (r Fetched) {
	if from < 0 {
		r.Err = errs.New(errs.Invalid, "offset %d is negative", from)
		return r
	}
	look := bytesMax
	if look <= 0 {
		look = 1
	}
	cs, err := v.Changes(uint64(from), int(look))
	r.Start, r.End = int64(cs.First), int64(cs.End)
	if err != nil {
		r.Err = err
		return r
	}
	if r.Err = outside(from, r.Start, r.End); r.Err != nil || len(cs.Changes) == 0 {
		return r
	}
	if bytesMax <= 0 && !firstWhole {
		r.More = true
		return r
	}
	w := newBatchBuilder(4 << 10)
	for i, c := range cs.Changes {
		if i == changesPerBatch {
			break
		}
		mark, recs := len(w.b), w.n
		headers := make([]Header, 0, 2+len(c.Headers))
		headers = append(headers,
			Header{Name: "op", Value: []byte(c.Op)},
			Header{Name: "revision", Value: strconv.AppendUint(nil, uint64(c.Revision), 10)})
		for _, h := range c.Headers {
			headers = append(headers, Header{Name: h.Name, Value: h.Value})
		}
		w.add(c.At.UnixMilli(), c.Key, c.Key == nil, c.Value, c.Value == nil, headers)
		if int64(len(w.b)) > bytesMax && (recs > 0 || !firstWhole) {
			w.b, w.n = w.b[:mark], recs
			break
		}
	}
	r.More = from+int64(w.n) < r.End
	if w.n > 0 {
		r.Batches = w.finish(from, -1)
	}
	return r
}

// Ends asks about the bounds of one partition.
type Ends struct {
	Topic     [16]byte
	Partition int32
	Changes   bool
	// Epoch asks where a leader epoch ended, for OffsetForLeaderEpoch.
	Epoch int32
}

// EndsAnswer is the answer to one Ends.
type EndsAnswer struct {
	// Start and End bound the log.
	Start, End int64
	// LastEpoch is the leader epoch of the last record, -1 if there is none.
	LastEpoch int32
	// Epoch is the largest leader epoch with records that is not above the one asked for, and EpochEnd the offset behind
	// its last record. Below all that are known, Epoch is the one asked for and EpochEnd where the first of them began, as in
	// Kafka (LeaderEpochFileCache.endOffsetFor): clients take -1 for a log that was truncated, and reset their offset. Both are
	// -1 only if a negative epoch was asked for.
	Epoch    int32
	EpochEnd int64
}

// QueryEnds asks a shard for the bounds of partitions: DecodeEnds.
func QueryEnds(list []Ends) []byte {
	e := newEnc(queryOffsets, 8+24*len(list))
	e.uv(uint64(len(list)))
	for i := range list {
		e.id(list[i].Topic)
		e.uv(uint64(list[i].Partition))
		e.bool(list[i].Changes)
		e.iv(int64(list[i].Epoch))
	}
	return e.b
}

// DecodeEnds reads the answer of QueryEnds, in order.
func DecodeEnds(b []byte) ([]EndsAnswer, error) {
	d := dec{codec.Read(b)}
	var out []EndsAnswer
	for n := d.Count(5); n > 0 && !d.Bad(); n-- {
		out = append(out, EndsAnswer{Start: d.Varint(), End: d.Varint(), LastEpoch: d.i32(), Epoch: d.i32(), EpochEnd: d.Varint()})
	}
	return out, d.done("answer: offsets")
}

func answerOffsets(v shard.View, d dec) ([]byte, error) {
	out := &enc{}
	n := d.Count(19)
	out.uv(uint64(n))
	for ; n > 0 && !d.Bad(); n-- {
		q := Ends{Topic: d.id(), Partition: d.partition(), Changes: d.Bool(), Epoch: d.i32()}
		a := EndsAnswer{LastEpoch: -1, Epoch: -1, EpochEnd: -1}
		if q.Changes {
			// Behind the end there is nothing to read, but the bounds.
			cs, err := v.Changes(math.MaxUint64, 1)
			if err != nil {
				return nil, err
			}
			a.Start, a.End = int64(cs.First), int64(cs.End)
			a.Epoch, a.EpochEnd = q.Epoch, a.End
		} else if p, ok := readPartition(v, q.Topic, q.Partition); ok {
			a.Start, a.End, a.LastEpoch = p.start, p.next, p.epoch
			a.Epoch, a.EpochEnd = epochEnd(v, &q, &p)
		} else if q.Epoch >= 0 {
			a.Epoch, a.EpochEnd = q.Epoch, 0
		}
		out.iv(a.Start)
		out.iv(a.End)
		out.iv(int64(a.LastEpoch))
		out.iv(int64(a.Epoch))
		out.iv(a.EpochEnd)
	}
	return out.b, d.done("offsets query")
}

// epochEnd finds the largest epoch not above q.Epoch and where it ended.
func epochEnd(v shard.View, q *Ends, p *partition) (epoch int32, end int64) {
	switch {
	case q.Epoch < 0:
		return -1, -1
	case q.Epoch >= p.epoch:
		return p.epoch, p.next
	}
	// The first epoch above q.Epoch begins where the one looked for ended. The rows are those of earlier epochs.
	epoch, end = q.Epoch, p.epochStart
	for k, b := range v.Scan(partKey(rowEpoch, q.Topic, q.Partition), partEnd(rowEpoch, q.Topic, q.Partition)) {
		_, _, rest := splitPartKey(k)
		d := row(b)
		e, start := int32(binary.BigEndian.Uint32(rest)), int64(d.BigUint64())
		d.ok("epoch")
		if e > q.Epoch {
			end = start
			break
		}
		epoch = e
	}
	// Records of an epoch that retention took end where the log begins, at the latest.
	return epoch, max(end, p.start)
}

// QueryChangeTime asks a shard for the first change at or after a time in Unix milliseconds, or for the last change if
// ms is LatestTime: DecodeChangeTime.
func QueryChangeTime(ms int64) []byte {
	e := newEnc(queryChangeTime, 10)
	e.iv(ms)
	return e.b
}

// DecodeChangeTime reads the answer of QueryChangeTime; both are -1 if there is no such change.
func DecodeChangeTime(b []byte) (offset, ms int64, err error) {
	d := dec{codec.Read(b)}
	offset, ms = d.Varint(), d.Varint()
	return offset, ms, d.done("answer: change time")
}

func answerChangeTime(v shard.View, d dec) ([]byte, error) {
	ms := d.Varint()
	if err := d.done("change time query"); err != nil {
		return nil, err
	}
	cs, err := v.Changes(math.MaxUint64, 1)
	if err != nil {
		return nil, err
	}
	at := func(pos uint64) (int64, error) {
		c, err := v.Changes(pos, 1)
		if err != nil || len(c.Changes) == 0 {
			return -1, err
		}
		return c.Changes[0].At.UnixMilli(), nil
	}
	// The shard's clock never goes back, so the change log is sorted by it.
	n := int(cs.End - cs.First)
	i := sort.Search(n, func(i int) bool {
		t, e := at(cs.First + uint64(i))
		if e != nil {
			err = e
		}
		return t >= ms && ms != LatestTime || ms == LatestTime && i == n-1
	})
	if err != nil {
		return nil, err
	}
	out := &enc{}
	if i == n {
		out.iv(-1)
		out.iv(-1)
		return out.b, nil
	}
	t, err := at(cs.First + uint64(i))
	out.iv(int64(cs.First) + int64(i))
	out.iv(t)
	return out.b, err
}
