package eventlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// A stretch of the time index is closed after so many batches or bytes: a look-up by time reads one stretch.
const (
	stretchBatches = 64
	stretchBytes   = 1 << 20
)

// headersMax bounds the headers of an event.
const headersMax = 256

// partition is the state row of a partition. It is rewritten with every append, so its numbers have a fixed size.
type partition struct {
	// start <= every kept offset < next. All of next is committed: it is the high watermark.
	start, next int64
	// size is the bytes of the kept batches.
	size int64
	// epoch is the raft term of the last append, epochStart the first offset written in it.
	epoch      int32
	epochStart int64
	// maxTime is the latest time stamp ever appended, maxTimeLast the last offset of the batch that first had it.
	maxTime, maxTimeLast int64
	// The open stretch of the time index: its first offset, its batches and bytes so far, its latest time stamp.
	openFirst   int64
	openBatches int32
	openBytes   int32
	openMax     int64
	// producers counts the producer rows.
	producers int32
	// retentionMs and retentionBytes are copied from the topic; 0 keeps everything. armed says that a timer is set.
	retentionMs, retentionBytes int64
	armed                       bool
	// fenced says that the topic has a lock: every append needs its token.
	fenced bool
}

const partitionRowSize = 1 + 8*11 + 4*4 + 1

func (p *partition) encode() []byte {
	e := enc{b: append(make([]byte, 0, partitionRowSize), version)}
	for _, v := range [...]int64{
		p.start, p.next, p.size, p.epochStart, p.maxTime, p.maxTimeLast, p.openFirst, p.openMax, p.retentionMs,
		p.retentionBytes,
	} {
		e.u64(uint64(v))
	}
	for _, v := range [...]int32{p.epoch, p.openBatches, p.openBytes, p.producers} {
		e.u32(uint32(v))
	}
	flags := byte(0)
	if p.armed {
		flags |= partitionArmed
	}
	if p.fenced {
		flags |= partitionFenced
	}
	e.u8(flags)
	return e.b
}

// Flags of a partition's row.
const (
	partitionArmed = 1 << iota
	partitionFenced
)

// readPartition returns a partition's state; one that nothing was appended to is empty and starts at 0.
func readPartition(v shard.View, topic [16]byte, part int32) (p partition, ok bool) {
	b, ok := v.Get(partKey(rowPartition, topic, part))
	if !ok {
		return partition{maxTime: -1, openMax: -1}, false
	}
	d := row(b)
	for _, f := range [...]*int64{
		&p.start, &p.next, &p.size, &p.epochStart, &p.maxTime, &p.maxTimeLast, &p.openFirst, &p.openMax, &p.retentionMs,
		&p.retentionBytes,
	} {
		*f = int64(d.BigUint64())
	}
	for _, f := range [...]*int32{&p.epoch, &p.openBatches, &p.openBytes, &p.producers} {
		*f = int32(d.BigUint32())
	}
	flags := d.Byte()
	p.armed, p.fenced = flags&partitionArmed != 0, flags&partitionFenced != 0
	d.ok("partition")
	return p, true
}

// openPartition reads a partition for an append, making it if need be.
func openPartition(tx *shard.Tx, topic [16]byte, part int32) partition {
	if it, _ := tx.Deferred().(*put); it != nil && it.to.place == (place{topic, part}) {
		return it.after()
	}
	p, ok := readPartition(tx, topic, part)
	if !ok {
		if t, ok := readTopic(tx, topic); ok {
			p.retentionMs, p.retentionBytes, p.fenced = t.RetentionMs, t.RetentionBytes, t.Fence != ""
		}
		p.epoch = int32(tx.Term())
	}
	return p
}

// take gives a partition's next offsets to records that Finish stores, and returns the first of them. It is all that later
// commands of the entry see of them, and queries see neither before the entry is through.
func (p *partition) take(tx *shard.Tx, topic [16]byte, part int32, at put, records int32) (base int64) {
	if term := int32(tx.Term()); term > p.epoch {
		if p.epochStart < p.next {
			tx.Set(epochKey(topic, part, p.epoch), binary.BigEndian.AppendUint64([]byte{version}, uint64(p.epochStart)))
		}
		p.epoch, p.epochStart = term, p.next
	}
	at.base = p.next
	p.next += int64(records)
	at.last = p.next - 1
	it, _ := tx.Deferred().(*put)
	if it != nil && it.to.place != (place{topic, part}) {
		// The state is stored when the next append is to another partition, and at the end: most often once in an entry.
		before := it.after()
		before.save(tx, it.to.topic, it.to.part)
		it = nil
	}
	if it != nil && !it.to.state.differs(p) {
		at.to = it.to
	} else {
		at.to = &target{place: place{topic, part}, state: *p}
	}
	tx.Defer(at.to.keep(at))
	return at.base
}

// put is what is to be stored in a partition: a batch, or an event. The slices may be parts of the command.
type put struct {
	to         *target
	base, last int64
	// batch is a batch that is known to be good, with its latest time stamp; nil for an event.
	batch   []byte
	maxTime int64

	key     []byte
	keyNull bool
	value   []byte
	headers []Header
}

// after returns the partition's state with the put, but for what store changes.
func (it *put) after() partition {
	p := it.to.state
	p.next = it.last + 1
	return p
}

// place names a partition.
type place struct {
	topic [16]byte
	part  int32
}

// target is where puts go that follow each other. Nothing of it changes but where the next put is kept.
type target struct {
	place
	// state is that of the partition after any of the puts, but for the field next.
	state partition
	room  []put
}

// keep returns a place in memory for a put: one allocation serves many. A put that is undone leaves its place unused.
func (t *target) keep(it put) *put {
	if len(t.room) == cap(t.room) {
		t.room = make([]put, 0, min(1+7*cap(t.room), 128))
	}
	t.room = append(t.room, it)
	return &t.room[len(t.room)-1]
}

// differs says whether two states of a partition differ in more than the next offset.
func (p *partition) differs(q *partition) bool {
	a := *p
	a.next = q.next
	return a != *q
}

// eventBatchBytes is the size from which a batch of events is closed.
const eventBatchBytes = 64 << 10

// Finish implements shard.Finisher: it stores what the commands of an entry append, partition by partition.
func (Module) Finish(tx *shard.Tx, items []any) {
	at, i := map[place]int{}, -1
	var parts [][]*put
	for _, it := range items {
		p := it.(*put)
		// Most often the one before went to the same partition.
		if i < 0 || parts[i][0].to.place != p.to.place {
			var ok bool
			if i, ok = at[p.to.place]; !ok {
				i = len(parts)
				at[p.to.place] = i
				parts = append(parts, nil)
			}
		}
		parts[i] = append(parts[i], p)
	}
	for _, puts := range parts {
		storeAll(tx, puts)
	}
}

// storeAll stores what is appended to one partition. Events that follow each other become one batch, which costs little more
// than one of them alone.
func storeAll(tx *shard.Tx, puts []*put) {
	to, now := puts[0].to, tx.Now().UnixMilli()
	p := puts[len(puts)-1].after()
	for len(puts) > 0 {
		first, n := puts[0], 1
		if first.batch != nil {
			// The command belongs to the log, which may still be sending it: offsets are written into a copy.
			p.store(tx, to.topic, to.part, bytes.Clone(first.batch), first.base, first.last, first.maxTime)
		} else {
			w := newBatchBuilder(room(puts))
			for n = 0; n < len(puts) && puts[n].batch == nil && len(w.b) < eventBatchBytes; n++ {
				it := puts[n]
				w.add(now, it.key, it.keyNull, it.value, false, it.headers)
			}
			p.store(tx, to.topic, to.part, w.finish(0, 0), first.base, puts[n-1].last, now)
		}
		puts = puts[n:]
	}
	p.save(tx, to.topic, to.part)
}

// room is about what the next batch of events takes.
func room(puts []*put) (n int) {
	for _, it := range puts {
		if it.batch != nil || n >= eventBatchBytes {
			break
		}
		n += recordBytes(len(it.key), len(it.value), it.headers)
	}
	return n
}

// store stores a batch whose offsets were taken; they are written into it. A partition's batches come in order.
func (p *partition) store(tx *shard.Tx, topic [16]byte, part int32, b []byte, base, last, maxTime int64) {
	binary.BigEndian.PutUint64(b, uint64(base))
	binary.BigEndian.PutUint32(b[12:], uint32(p.epoch))
	tx.SetBulk(batchKey(topic, part, last), b)
	p.size += int64(len(b))
	if maxTime > p.maxTime {
		p.maxTime, p.maxTimeLast = maxTime, last
	}
	p.openMax = max(p.openMax, maxTime)
	p.openBatches++
	p.openBytes += int32(len(b))
	if p.openBatches >= stretchBatches || p.openBytes >= stretchBytes {
		v := binary.BigEndian.AppendUint64([]byte{version}, uint64(p.openFirst))
		tx.SetBulk(timeKey(topic, part, p.maxTime, last), binary.BigEndian.AppendUint64(v, sortable(p.openMax)))
		p.openFirst, p.openBatches, p.openBytes, p.openMax = last+1, 0, 0, -1
	}
	if !p.armed && (p.retentionMs > 0 || p.retentionBytes > 0) {
		p.armed = true
		tx.SetTimer(partKey(timerRetention, topic, part), tx.Now().Add(p.retentionPeriod()))
	}
}

// save stores the state and wakes who waits for records.
func (p *partition) save(tx *shard.Tx, topic [16]byte, part int32) {
	k := partKey(rowPartition, topic, part)
	tx.SetFresh(k, p.encode())
	tx.Wake(k)
}

// Append is one batch of a produce request.
type Append struct {
	Topic     [16]byte
	Partition int32
	// Batch is one record batch that CheckBatch and CheckRecords accepted.
	Batch []byte
	// Token is the fencing token of the batch's records, 0 if they have none; see CheckRecords and
	// TokenStale.
	Token int64
}

// Appended is the answer to one Append.
type Appended struct {
	// Err is nil or an *errs.Error.
	Err error
	// Base is the offset of the first record; of a repeated batch, the one it got the first time.
	Base int64
	// LogStart is the partition's first kept offset.
	LogStart int64
}

// EncodeAppend makes the command that appends batches to partitions of one shard. Each has its own result, and the
// command as a whole is one log entry. home says that the keys of locks are in that shard too.
func EncodeAppend(list []Append, home bool) []byte {
	size, op := 8, byte(opAppend)
	for i := range list {
		size += 42 + len(list[i].Batch)
		if list[i].Token != 0 {
			op = opAppendFenced
		}
	}
	e := newEnc(op, size)
	if op == opAppendFenced {
		e.bool(home)
	}
	e.uv(uint64(len(list)))
	for i := range list {
		e.id(list[i].Topic)
		e.uv(uint64(list[i].Partition))
		if op == opAppendFenced {
			e.uv(uint64(list[i].Token))
		}
		e.bytes(list[i].Batch)
	}
	return e.b
}

// DecodeAppended reads the answer to EncodeAppend: a result for each batch, in order. Of an append that succeeded it
// holds, in eight big-endian bytes each, the base offset and the log start.
func DecodeAppended(b []byte) ([]Appended, error) {
	d := dec{codec.Read(b)}
	var out []Appended
	for n := d.Count(3); n > 0 && !d.Bad(); n-- {
		var a Appended
		if a.Err = d.refusal(); a.Err == nil {
			a.Base, a.LogStart = int64(d.BigUint64()), int64(d.BigUint64())
		}
		out = append(out, a)
	}
	return out, d.done("answer: append")
}

// refusal encodes an error within an answer; nil is one byte.
func (e *enc) refusal(err error) {
	e.u8(byte(errs.KindOf(err)))
	if err == nil {
		return
	}
	code, msg := "", err.Error()
	var x *errs.Error
	if errors.As(err, &x) {
		code, msg = x.Code, x.Msg
	}
	e.str(code)
	e.str(msg)
}

func (d *dec) refusal() error {
	k := d.Byte()
	if k == 0 {
		return nil
	}
	return &errs.Error{Kind: errs.Kind(k), Code: d.str(), Msg: d.str()}
}

func (d *dec) partition() int32 {
	n := d.Uvarint()
	if n >= PartitionsPerTopicMax {
		d.Fail()
		return 0
	}
	return int32(n)
}

func decodeAppend(d dec, fenced bool) (list []Append, home bool, err error) {
	if fenced {
		home = d.Bool()
	}
	for n := d.Count(18); n > 0 && !d.Bad(); n-- {
		a := Append{Topic: d.id(), Partition: d.partition()}
		if fenced {
			a.Token = int64(d.Uvarint())
		}
		a.Batch = d.Bytes()
		list = append(list, a)
	}
	return list, home, d.done("append command")
}

func (m Module) applyAppend(tx *shard.Tx, d dec, fenced bool) ([]byte, error) {
	list, home, err := decodeAppend(d, fenced)
	if err != nil {
		return nil, err
	}
	out := &enc{}
	out.uv(uint64(len(list)))
	for i := range list {
		base, start, err := m.appendBatch(tx, &list[i], home)
		out.refusal(err)
		if err == nil {
			out.u64(uint64(base))
			out.u64(uint64(start))
		}
	}
	return out.b, nil
}

func (m Module) appendBatch(tx *shard.Tx, a *Append, home bool) (base, start int64, err error) {
	h, err := checkHeader(a.Batch)
	if err != nil {
		return 0, 0, err
	}
	p := openPartition(tx, a.Topic, a.Partition)
	var pr producer
	var known bool
	if h.ProducerID >= 0 {
		pr, known = readProducer(tx, a.Topic, a.Partition, h.ProducerID)
		base, again, err := pr.check(known, h)
		if err != nil {
			return 0, 0, err
		}
		if again {
			// What was appended is not refused afterwards, whoever holds the lock by now.
			return base, p.start, nil
		}
	}
	if p.fenced || a.Token != 0 {
		if err := m.passFence(tx, &p, a, home); err != nil {
			return 0, 0, err
		}
	}
	if h.ProducerID >= 0 {
		if !known {
			if p.producers >= producersMax {
				return 0, 0, errs.New(errs.Overloaded, "partition has %d idempotent producers, the most it may have; reuse producers, or try again in a day", p.producers)
			}
			p.producers++
			tx.SetTimer(producerKey(a.Topic, a.Partition, h.ProducerID), tx.Now().Add(producerIdle))
		}
	}
	base = p.take(tx, a.Topic, a.Partition, put{batch: a.Batch, maxTime: h.MaxTimestamp}, h.Records)
	if h.ProducerID >= 0 {
		pr.record(h, base, tx.Now())
		tx.SetFresh(producerKey(a.Topic, a.Partition, h.ProducerID), pr.encode())
	}
	return base, p.start, nil
}

// AppendEvent appends to b the command that appends one record, stamped with the shard's clock. Another module runs it through
// Tx.Call, so that a change of state and its event are one commit. The answer is the record's offset in eight big-endian
// bytes. locks are those whose tokens the transaction holds.
func AppendEvent(b []byte, topic [16]byte, partition int32, key []byte, keyNull bool, value []byte, headers []Header, locks [][]byte) []byte {
	e := enc{append(b, version, opEvent)}
	e.id(topic)
	e.uv(uint64(partition))
	e.bool(keyNull)
	if !keyNull {
		e.bytes(key)
	}
	e.bytes(value)
	e.uv(uint64(len(headers)))
	for _, h := range headers {
		e.str(h.Name)
		e.bool(h.Value == nil)
		if h.Value != nil {
			e.bytes(h.Value)
		}
	}
	if len(locks) > 0 {
		e.uv(uint64(len(locks)))
		for _, l := range locks {
			e.bytes(l)
		}
	}
	return e.b
}

func applyEvent(tx *shard.Tx, d dec) ([]byte, error) {
	size := d.Len()
	topic, part := d.id(), d.partition()
	var key []byte
	keyNull := d.Bool()
	if !keyNull {
		key = d.Bytes()
	}
	value := d.Bytes()
	var headers []Header
	n := d.Count(2)
	if n > headersMax {
		return nil, errs.New(errs.Invalid, "an event has %d headers; at most %d are allowed", n, headersMax)
	}
	for ; n > 0 && !d.Bad(); n-- {
		h := Header{Name: d.str()}
		if !d.Bool() {
			h.Value = d.Bytes()
		}
		headers = append(headers, h)
	}
	var locks []string
	if d.Len() > 0 {
		for n := d.Count(1); n > 0 && !d.Bad(); n-- {
			locks = append(locks, d.str())
		}
	}
	if err := d.done("event command"); err != nil {
		return nil, err
	}
	if size > MessageBytesMax {
		return nil, errs.New(errs.TooLarge, "an event of %d bytes; at most %d are allowed", size, MessageBytesMax)
	}
	p := openPartition(tx, topic, part)
	if p.fenced {
		if t, _ := readTopic(tx, topic); !slices.Contains(locks, t.Fence) {
			return nil, errs.New(errs.Fenced, "topic %q takes events only under the lock %q, and nothing was done: send FENCE with that lock and the token of its holder before EVENT.ADD, in the transaction or in front of the command", t.Name, t.Fence)
		}
	}
	base := p.take(tx, topic, part, put{key: key, keyNull: keyNull, value: value, headers: headers}, 1)
	return binary.BigEndian.AppendUint64(nil, uint64(base)), nil
}

// retentionPeriod is how often retention looks at a partition.
func (p *partition) retentionPeriod() time.Duration {
	const bytesOnly = 30 * time.Second
	if p.retentionMs == 0 {
		return bytesOnly
	}
	d := min(max(time.Duration(min(p.retentionMs, 1<<40))*time.Millisecond/10, time.Second), 5*time.Minute)
	if p.retentionBytes > 0 {
		return min(d, bytesOnly)
	}
	return d
}
