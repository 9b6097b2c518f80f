package rpc

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// outMax is how much may wait to be written before handlers wait; the goroutine that reads waits at outMost, and the client then.
	outMax, outMost = 512 << 10, 1 << 20
	// outSpare bounds the buffers that are kept.
	outSpare = 64 << 10
	// lastWords is how long a connection that ends may take to write what is left, and then its client to end it as well.
	lastWords = time.Second
	// textMax and detailsMax bound what is sent of a status, as it is encoded: many clients take 8 KiB of header fields together.
	textMax, detailsMax = 4 << 10, 2 << 10
)

// errEnded is what is told who would send on a stream or connection that has ended.
var errEnded = status.Error(codes.Canceled, "the stream has ended")

// sender is what a connection has to write. It is guarded by conn.mu.
type sender struct {
	out, spare []byte
	// finished says that no more is added.
	finished bool
	// more tells the goroutine that writes, and less the one that reads.
	more, less sync.Cond
	// moved counts the bytes that were written, or are being; until is when the client must have taken them.
	moved int64
	until time.Time
	// window is how much data the client takes of all streams together, and initial of one in the beginning.
	window  int64
	initial uint32
	// blocked wait for the connection to take more, one after the other; before them ending, which have no data and need no window.
	blocked, ending []*stream
	// left is how many of those at most do not wait any more: they gave up, or had their turn otherwise.
	left    int
	scratch []byte
	fields  table
}

// sending is the sending side of a stream. It is guarded by conn.mu.
type sending struct {
	// send is how much data the client takes.
	send int64
	// headed says that the header was sent, over that nothing more may be.
	headed, over bool
	// ready is sent to when a stream that waits may be able to send; waiting says that it is in conn.blocked or conn.ending.
	ready    chan struct{}
	waiting  bool
	leading  metadata.MD
	trailing metadata.MD
}

func (c *conn) initSender() {
	c.more.L, c.less.L = &c.mu, &c.mu
	c.window, c.initial = defaultWindow, defaultWindow
	c.fields.limit = -1
}

// frameHeader begins a frame.
func (c *conn) frameHeader(size int, kind http2.FrameType, flags http2.Flags, id uint32) {
	if len(c.out) == 0 {
		c.more.Signal()
	}
	c.out = append(c.out, byte(size>>16), byte(size>>8), byte(size), byte(kind), byte(flags), byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

// settings sends what the client should know of this side.
func (c *conn) settings() {
	set := func(id http2.SettingID, v uint32) {
		c.out = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(c.out, uint16(id)), v)
	}
	c.frameHeader(3*6, http2.FrameSettings, 0, 0)
	set(http2.SettingMaxConcurrentStreams, c.s.cfg.StreamsMax)
	set(http2.SettingInitialWindowSize, streamWindow)
	set(http2.SettingMaxHeaderListSize, listMax)
	c.credit(0, connWindow-defaultWindow)
}

func (c *conn) ackSettings() { c.frameHeader(0, http2.FrameSettings, http2.FlagSettingsAck, 0) }

func (c *conn) sendPing(data [8]byte) {
	c.frameHeader(8, http2.FramePing, 0, 0)
	c.out = append(c.out, data[:]...)
}

func (c *conn) pong(b []byte) {
	c.frameHeader(8, http2.FramePing, http2.FlagPingAck, 0)
	c.out = append(c.out, b...)
}

// credit lets the client send more.
func (c *conn) credit(id uint32, n int) {
	c.frameHeader(4, http2.FrameWindowUpdate, 0, id)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(n))
}

func (c *conn) rst(id uint32, code http2.ErrCode) {
	c.frameHeader(4, http2.FrameRSTStream, 0, id)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(code))
}

func (c *conn) goAway(last uint32, code http2.ErrCode, why string) {
	c.frameHeader(8+len(why), http2.FrameGoAway, 0, 0)
	c.out = binary.BigEndian.AppendUint32(c.out, last)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(code))
	c.out = append(c.out, why...)
}

// plain answers a request that is none of gRPC's by an HTTP status.
func (c *conn) plain(id uint32, code string, ended bool) {
	c.scratch = appendField(c.fields.begin(c.scratch[:0]), ":status", code)
	c.headerFrames(id, true)
	if !ended {
		c.rst(id, http2.ErrCodeNo)
	}
}

// write writes what is to be written until the connection ends.
func (c *conn) write() {
	for {
		c.mu.Lock()
		for len(c.out) == 0 && !c.finished {
			c.more.Wait()
		}
		c.mu.Unlock()
		// Handlers that are about to answer do so first: one call for many answers costs much less than one for each.
		runtime.Gosched()
		c.mu.Lock()
		b := c.out
		c.out, c.spare = c.spare[:0], nil
		c.pass()
		c.less.Signal()
		c.mu.Unlock()
		if len(b) == 0 {
			c.hush()
			return
		}
		err := c.transmit(b)
		if err != nil {
			_ = c.nc.Close()
		}
		c.mu.Lock()
		if cap(b) <= outSpare {
			c.spare = b[:0]
		}
		if err != nil {
			c.finished = true
			c.out = nil
			c.less.Signal()
			c.mu.Unlock()
			// Those who wait to send find out.
			c.cancel()
			return
		}
		c.mu.Unlock()
	}
}

// drainLocked waits, on the goroutine that reads, while too much is to be written.
func (c *conn) drainLocked() error {
	for len(c.out) > outMost && !c.finished {
		c.less.Wait()
	}
	if c.finished {
		return errEnded
	}
	return nil
}

// full says whether the connection takes no more data.
func (c *conn) full() bool { return c.window <= 0 || len(c.out) >= outMax }

// pass lets the next stream send that waits for the connection. It does the same when it has sent.
func (c *conn) pass() {
	for len(c.ending) > 0 && len(c.out) < outMax {
		if next(&c.ending) {
			return
		}
	}
	for len(c.blocked) > 0 && !c.full() {
		if next(&c.blocked) {
			return
		}
	}
}

// next takes the first stream off a queue and wakes it. It reports false if that does not wait any more.
func next(queue *[]*stream) bool {
	q := *queue
	st := q[0]
	q[0] = nil
	if *queue = q[1:]; !st.waiting {
		return false
	}
	st.waiting = false
	st.wake()
	return true
}

// leftMax is how many streams that wait no more may be in the queues, unless more do.
const leftMax = 100

// forsake notes that a stream does not wait any more though it had no turn. When there are many such, they are taken out: a client whose window stays
// shut may begin calls and give them up without end.
func (c *conn) forsake() {
	if c.left++; c.left <= leftMax || c.left <= (len(c.blocked)+len(c.ending))/2 {
		return
	}
	c.left = 0
	for _, q := range []*[]*stream{&c.blocked, &c.ending} {
		seen := make(map[*stream]struct{}, len(*q))
		*q = slices.DeleteFunc(*q, func(st *stream) bool {
			_, again := seen[st]
			seen[st] = struct{}{}
			return again || !st.waiting
		})
	}
}

// wake tells a stream that waits to look again. conn.mu is held.
func (st *stream) wake() {
	if st.ready != nil {
		select {
		case st.ready <- struct{}{}:
		default:
		}
	}
}

// wait waits until the stream may be able to send: data, of a message that has waited as p says, or else anything. conn.mu is held, and given up
// meanwhile. It fails if the stream or the connection ends, or the client lets the message wait for too long.
func (st *stream) wait(data bool, p *patience) error {
	c := st.c
	defer func() {
		if st.waiting {
			st.waiting = false
			c.forsake()
		}
	}()
	// An answer is sent also when its time is over: that is what it says then.
	end := st.Done()
	if !data {
		end = c.ctx.Done()
	}
	for {
		switch {
		case st.over || c.finished:
			return errEnded
		case len(c.out) < outMax && (!data || c.window > 0 && st.send > 0):
			return nil
		}
		if st.ready == nil {
			st.ready = make(chan struct{}, 1)
		}
		switch {
		case st.waiting:
		case !data:
			st.waiting = true
			c.ending = append(c.ending, st)
		case st.send > 0:
			st.waiting = true
			c.blocked = append(c.blocked, st)
		}
		// A change of the stream's own window wakes it, so that what it waits for is the same all the time.
		own, began := st.send <= 0, time.Now()
		limit, late := (*time.Timer)(nil), (<-chan time.Time)(nil)
		if data {
			limit = time.NewTimer(p.rest(st))
			late = limit.C
		}
		over := false
		c.mu.Unlock()
		select {
		case <-st.ready:
		case <-late:
		case <-end:
			over = true
		}
		c.mu.Lock()
		if data {
			limit.Stop()
			if err := p.waited(st, own, time.Since(began)); err != nil && !over {
				return err
			}
		}
		if over {
			return errEnded
		}
	}
}

// buffers are for messages on their way out.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// encode makes the bytes of a message, with the prefix, in a buffer that goes back to buffers.
func encode(m any) (*[]byte, error) {
	from, ok := m.(proto.Message)
	if !ok {
		return nil, status.Errorf(codes.Internal, "a %T is no message", m)
	}
	size := proto.Size(from)
	buf := buffers.Get().(*[]byte) //nolint:forcetypeassert // nothing else is in it
	b := append((*buf)[:0], 0, byte(size>>24), byte(size>>16), byte(size>>8), byte(size))
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, from)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "grpc: error while marshaling: %v", err)
	}
	*buf = b
	return buf, nil
}

func giveBack(buf *[]byte) {
	if cap(*buf) <= outSpare {
		buffers.Put(buf)
	}
}

// SendMsg implements grpc.ServerStream.
func (st *stream) SendMsg(m any) error {
	buf, err := encode(m)
	if err != nil {
		return err
	}
	defer giveBack(buf)
	return st.put(*buf)
}

// answer sends the answer of a unary call, together with the end of the stream if there is room for it.
func (st *stream) answer(m any) error {
	buf, err := encode(m)
	if err != nil {
		return err
	}
	defer giveBack(buf)
	b := *buf
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := int64(len(b)); st.over || n > frameMax || n > st.send || n > c.window || len(c.out) >= outMax || len(c.blocked) > 0 || c.finished {
		return st.putLocked(b)
	}
	st.head()
	st.frame(b)
	st.endLocked(nil)
	return nil
}

// put sends the header, unless it was sent, and data.
func (st *stream) put(b []byte) error {
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	return st.putLocked(b)
}

func (st *stream) putLocked(b []byte) error {
	c := st.c
	// The turn of the next comes when this one has sent, or does not send after all.
	defer c.pass()
	p := c.newPatience(len(b))
	for first := true; first || len(b) > 0; first = false {
		if err := st.wait(len(b) > 0, &p); err != nil {
			return err
		}
		st.head()
		n := int(min(int64(len(b)), frameMax, st.send, c.window))
		if n > 0 {
			st.frame(b[:n])
			p.sent(n)
			b = b[n:]
		}
	}
	return nil
}

// head sends the header, unless it was sent.
func (st *stream) head() {
	if st.headed {
		return
	}
	st.headed = true
	c := st.c
	c.scratch = appendMetadata(c.fields.response(c.fields.begin(c.scratch[:0])), st.leading)
	c.headerFrames(st.id, false)
}

// frame sends a frame of data, for which there is room.
func (st *stream) frame(b []byte) {
	c := st.c
	c.frameHeader(len(b), http2.FrameData, 0, st.id)
	c.out = append(c.out, b...)
	st.send -= int64(len(b))
	c.window -= int64(len(b))
	c.said.Store(true)
}

// end sends how a call has ended, unless that is done.
func (st *stream) end(err error) {
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.over {
		return
	}
	defer c.pass()
	if st.wait(false, nil) == nil {
		st.endLocked(err)
	}
}

func (st *stream) endLocked(err error) {
	c := st.c
	st.leave()
	b := c.fields.begin(c.scratch[:0])
	if !st.headed {
		b = appendMetadata(c.fields.response(b), st.leading)
		st.headed = true
	}
	c.scratch = appendMetadata(c.fields.status(b, err), st.trailing)
	c.headerFrames(st.id, true)
	if !st.ended.Load() {
		c.rst(st.id, http2.ErrCodeNo)
	}
	c.said.Store(true)
	st.over = true
	delete(c.streams, st.id)
	c.depart()
}

// headerFrames sends the header block that was made.
func (c *conn) headerFrames(id uint32, end bool) {
	kind, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	for b := c.scratch; ; {
		n := min(len(b), frameMax)
		if n == len(b) {
			flags |= http2.FlagHeadersEndHeaders
		}
		c.frameHeader(n, kind, flags, id)
		c.out = append(c.out, b[:n]...)
		if b = b[n:]; len(b) == 0 {
			return
		}
		kind, flags = http2.FrameContinuation, 0
	}
}

// table makes header blocks (RFC 7541). In the dynamic table it keeps the two fields that every call has.
type table struct {
	// added counts the entries; kind and ok are the numbers, from 1, of those of the content type and of the status 0, 0 if they are not there.
	added, kind, ok int
	// off says that the client has no room for the table; limit is one that it has to be told, -1 for none.
	off   bool
	limit int64
}

// Bounds of the table, which has two entries of together 104 bytes.
const (
	tableDefault = 4096
	tableLeast   = 128
	// dynamicFirst is the index of the entry that was added last.
	dynamicFirst = 62
)

// tableSize notes how large a table the client has room for.
func (c *conn) tableSize(v uint32) {
	t := &c.fields
	if v >= tableDefault {
		return
	}
	if v < tableLeast {
		*t = table{off: true, limit: 0}
	} else if !t.off && (t.limit < 0 || int64(v) < t.limit) {
		// Where the client has changed its mind since the last header, it has dropped what the smaller table had no room for.
		t.limit = int64(v)
	}
}

// begin begins a block.
func (t *table) begin(b []byte) []byte {
	if t.limit >= 0 {
		b = appendInt(b, 0x20, 5, int(t.limit))
		t.limit = -1
	}
	return b
}

// response adds what every answer begins with: status 200 and the content type.
func (t *table) response(b []byte) []byte {
	const status200, contentType = 0x88, 31
	b = append(b, status200)
	switch {
	case t.kind > 0:
		return append(b, 0x80|byte(dynamicFirst+t.added-t.kind))
	case t.off:
		return appendString(appendInt(b, 0, 4, contentType), "application/grpc")
	}
	t.added++
	t.kind = t.added
	return appendString(appendInt(b, 0x40, 6, contentType), "application/grpc")
}

// status adds what every answer ends with.
func (t *table) status(b []byte, err error) []byte {
	if err == nil {
		switch {
		case t.ok > 0:
			return append(b, 0x80|byte(dynamicFirst+t.added-t.ok))
		case t.off:
			return appendField(b, "grpc-status", "0")
		}
		t.added++
		t.ok = t.added
		return appendString(appendString(append(b, 0x40), "grpc-status"), "0")
	}
	st := statusOf(err)
	b = appendField(b, "grpc-status", strconv.Itoa(int(st.Code())))
	if text := percent(st.Message()); text != "" {
		b = appendField(b, "grpc-message", text)
	}
	if p := st.Proto(); len(p.GetDetails()) > 0 {
		if d, err := proto.Marshal(p); err == nil && base64.RawStdEncoding.EncodedLen(len(d)) <= detailsMax {
			b = appendField(b, "grpc-status-details-bin", base64.RawStdEncoding.EncodeToString(d))
		}
	}
	return b
}

// statusOf returns the status that stands for a handler's error.
func statusOf(err error) *status.Status {
	st, ok := status.FromError(err)
	if !ok {
		st = status.FromContextError(err)
	}
	if st.Code() == codes.OK {
		return status.New(codes.Unknown, fmt.Sprintf("an error whose status is OK: %v", err))
	}
	return st
}

// percent encodes the text of a status: what is not printable ASCII, and the sign itself. It leaves out what is behind the last character that
// ends within textMax. What is not UTF-8 becomes U+FFFD, as gRPC's own server has it.
func percent(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r >= ' ' && r <= '~' && r != '%' {
			if b.Len() == textMax {
				break
			}
			b.WriteByte(byte(r))
			continue
		}
		char := utf8.AppendRune(nil, r)
		if b.Len()+3*len(char) > textMax {
			break
		}
		for _, c := range char {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// appendField adds a field that is not kept in the table.
func appendField(b []byte, name, value string) []byte {
	return appendString(appendString(append(b, 0), name), value)
}

func appendMetadata(b []byte, md metadata.MD) []byte {
	for name, values := range md {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, ":") || strings.HasPrefix(name, "grpc-") {
			continue
		}
		for _, v := range values {
			if strings.HasSuffix(name, "-bin") {
				v = base64.RawStdEncoding.EncodeToString([]byte(v))
			}
			b = appendField(b, name, v)
		}
	}
	return b
}

// appendInt adds an integer behind the bits of first that are above its n low ones (RFC 7541, section 5.1).
func appendInt(b []byte, first byte, n, v int) []byte {
	most := 1<<n - 1
	if v < most {
		return append(b, first|byte(v))
	}
	return binary.AppendUvarint(append(b, first|byte(most)), uint64(v-most))
}

func appendString(b []byte, s string) []byte { return append(appendInt(b, 0, 7, len(s)), s...) }
