package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log" //nolint:depguard // these lines are Go's own, in the form that Go gives them
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/quorate/quorate/internal/protocol/conns"
)

const (
	frameHead = 9
	// frameMax is the longest frame that is read, the default of HTTP/2.
	frameMax = 16 << 10
	// The buffer of a connection that says little is small.
	readMin, readMax = 4 << 10, 32 << 10
	// streamWindow is how much of a stream may come before its handler takes it, and connWindow of all together before any credit is given again;
	// that is done each time a quarter was used.
	streamWindow, connWindow = 256 << 10, 4 << 20
	// defaultWindow is what HTTP/2 begins with.
	defaultWindow = 65_535
	// heldMax bounds what of a connection's messages was read and is not taken by a handler, and the headers of its calls.
	heldMax = 512 << 20
	// headersMax bounds the encoded header fields of a call, and listMax the decoded ones by the measure of RFC 9113, section 6.5.2.
	headersMax, listMax = 256 << 10, 128 << 10
	// pingAlone is how often a client may ping that has no call open, and pingStrikes how often it may do so too early.
	pingAlone   = 2 * time.Hour
	pingStrikes = 2
	// reopenMax is how often a client may change the initial window while calls are open, and once more each second: one that measures its line does so
	// a few times in all.
	reopenMax = 100
)

// conn is a connection. One goroutine reads it, another writes; handlers add what is to be written.
type conn struct {
	s        *Server
	nc       net.Conn
	attached any
	ctx      context.Context
	cancel   context.CancelFunc

	// What follows up to mu belongs to the goroutine that reads.

	buf      []byte
	from, to int
	dec      *hpack.Decoder
	// block is what is known of the header block that is being read.
	block headerBlock
	// used is how much of the connection's window was used since credit was given.
	used     int
	pinged   time.Time
	strikes  int
	greeting bool
	// reopened is how often the initial window was changed of late, at the last at reopenedAt.
	reopened   int
	reopenedAt time.Time

	// born is when it came, and heard how long after that something was read last, in nanoseconds: the wall clock may be set back meanwhile.
	born  time.Time
	heard atomic.Int64
	// held is what was read of messages that no handler has taken, and of the headers of calls that have not ended.
	held *conns.Holder
	// running counts the handlers.
	running atomic.Int64
	// said is set when an answer was sent, which allows for a ping.
	said atomic.Bool
	// last is the highest stream that the client has opened. The goroutine that reads sets it.
	last atomic.Uint32
	// cut says that the calls which are open end because the server does.
	cut atomic.Bool
	// awaited counts the streams of which a request has begun and not ended.
	awaited atomic.Int64
	// helpers are the goroutine that writes, and the one that sweeps. The goroutine that reads waits for them.
	helpers sync.WaitGroup

	mu sync.Mutex
	// sweeping says that the goroutine that sweeps runs. Guarded by mu.
	sweeping bool
	sender
	leaving
	streams map[uint32]*stream
}

// headerBlock is a HEADERS frame with its CONTINUATION frames.
type headerBlock struct {
	open bool
	id   uint32
	end  bool
	size int
	list int
	// st is the new stream, nil if the block is of one that there is already, or was.
	st *stream
	// method, contentType and timeout are header fields.
	method, contentType, timeout string
}

// connError ends a connection, for a reason that the client is told.
type connError struct {
	code http2.ErrCode
	why  string
}

func (e connError) Error() string { return fmt.Sprintf("%v: %s", e.code, e.why) }

func protocolError(why string) error { return connError{http2.ErrCodeProtocol, why} }

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{s: s, nc: nc, streams: map[uint32]*stream{}, buf: make([]byte, readMin), born: time.Now()}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if s.cfg.Attach != nil {
		c.attached = s.cfg.Attach(nc)
	}
	c.held = s.cfg.Requests.Holder()
	c.dec = hpack.NewDecoder(4096, c.field)
	c.dec.SetMaxStringLength(listMax)
	c.initSender()
	return c
}

// run serves the connection until it ends.
func (c *conn) run() {
	c.helpers.Go(c.write)
	c.heard.Store(int64(c.age()))
	keep := newKeeper(c)
	err := c.read()
	keep.stop()
	c.mu.Lock()
	var ce connError
	if errors.As(err, &ce) {
		c.hangUp(ce.code, ce.why)
	}
	c.finish()
	left := c.streams
	c.streams = nil
	c.mu.Unlock()
	c.cancel()
	for _, st := range left {
		st.drop()
	}
	c.helpers.Wait()
	c.linger()
	_ = c.nc.Close()
}

// read reads frames until the connection ends.
func (c *conn) read() error {
	if err := c.nc.SetReadDeadline(time.Now().Add(c.s.cfg.HelloTimeout)); err != nil {
		return err
	}
	hello, err := c.next(len(http2.ClientPreface))
	if err != nil {
		return err
	}
	if string(hello) != http2.ClientPreface {
		return protocolError("the connection does not begin as one of HTTP/2")
	}
	c.mu.Lock()
	c.greet()
	c.mu.Unlock()
	c.greeting = true
	for {
		h, err := c.next(frameHead)
		if err != nil {
			return err
		}
		size := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
		kind, flags := http2.FrameType(h[3]), http2.Flags(h[4])
		id := binary.BigEndian.Uint32(h[5:]) & math.MaxInt32
		if size > frameMax {
			return connError{http2.ErrCodeFrameSize, fmt.Sprintf("a frame has %d bytes, more than %d", size, frameMax)}
		}
		payload, err := c.next(size)
		if err != nil {
			return err
		}
		if err := c.frame(kind, flags, id, payload); err != nil {
			return err
		}
	}
}

// next returns the next n bytes, which are good until it is called again.
func (c *conn) next(n int) ([]byte, error) {
	if c.to-c.from < n {
		if len(c.buf)-c.from < n {
			buf := c.buf
			if len(buf) < n {
				buf = make([]byte, readMax)
			}
			c.to = copy(buf, c.buf[c.from:c.to])
			c.from, c.buf = 0, buf
		}
		for c.to-c.from < n {
			if c.awaited.Load() > 0 {
				c.sweep()
			}
			m, err := c.nc.Read(c.buf[c.to:])
			c.to += m
			if m > 0 {
				c.heard.Store(int64(c.age()))
			}
			if err != nil && c.to-c.from < n {
				return nil, err
			}
		}
	}
	b := c.buf[c.from : c.from+n]
	if c.from += n; c.from == c.to {
		c.from, c.to = 0, 0
	}
	return b, nil
}

// frame handles a frame.
func (c *conn) frame(kind http2.FrameType, flags http2.Flags, id uint32, b []byte) error {
	if c.greeting {
		if kind != http2.FrameSettings || flags.Has(http2.FlagSettingsAck) {
			return protocolError("the first frame is not that of the settings")
		}
		c.greeting = false
		if err := c.nc.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
	}
	if c.block.open && (kind != http2.FrameContinuation || id != c.block.id) {
		return protocolError("another frame comes between those of a header")
	}
	switch kind {
	case http2.FrameData:
		return c.data(flags, id, b)
	case http2.FrameHeaders:
		return c.headers(flags, id, b)
	case http2.FrameContinuation:
		if !c.block.open {
			return protocolError("a header is continued that has not begun")
		}
		return c.fragment(b, flags.Has(http2.FlagContinuationEndHeaders))
	case http2.FrameRSTStream:
		return c.reset(id, b)
	case http2.FrameSettings:
		return c.set(flags, id, b)
	case http2.FramePing:
		return c.ping(flags, id, b)
	case http2.FrameWindowUpdate:
		return c.windowUpdate(id, b)
	case http2.FrameGoAway:
		// The client opens no more streams and closes the connection when it is done.
		return nil
	case http2.FramePushPromise:
		return protocolError("a client cannot push")
	default:
		// PRIORITY, and kinds of other specifications.
		return nil
	}
}

// unpad takes the padding off a frame.
func unpad(flags http2.Flags, b []byte) ([]byte, error) {
	if !flags.Has(http2.FlagDataPadded) {
		return b, nil
	}
	if len(b) == 0 || int(b[0]) >= len(b) {
		return nil, protocolError("a frame is shorter than its padding")
	}
	return b[1 : len(b)-int(b[0])], nil
}

func (c *conn) stream(id uint32) *stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams[id]
}

func (c *conn) data(flags http2.Flags, id uint32, b []byte) error {
	if id == 0 || id > c.last.Load() {
		return protocolError("data of a stream that is not open")
	}
	size := len(b)
	b, err := unpad(flags, b)
	if err != nil {
		return err
	}
	if c.used += size; c.used > connWindow {
		return connError{http2.ErrCodeFlowControl, "more data than the window allows"}
	}
	if c.used >= connWindow/4 {
		c.mu.Lock()
		c.credit(0, c.used)
		c.mu.Unlock()
		c.used = 0
	}
	st := c.stream(id)
	if st == nil {
		return nil
	}
	return st.data(b, size, flags.Has(http2.FlagDataEndStream))
}

func (c *conn) headers(flags http2.Flags, id uint32, b []byte) error {
	if id%2 == 0 {
		return protocolError("a client's streams have odd numbers")
	}
	b, err := unpad(flags, b)
	if err != nil {
		return err
	}
	if flags.Has(http2.FlagHeadersPriority) {
		if len(b) < 5 {
			return connError{http2.ErrCodeFrameSize, "a header is shorter than its priority"}
		}
		b = b[5:]
	}
	c.block = headerBlock{open: true, id: id, end: flags.Has(http2.FlagHeadersEndStream)}
	if id > c.last.Load() {
		c.last.Store(id)
		c.block.st = &stream{c: c, id: id, window: streamWindow}
	}
	return c.fragment(b, flags.Has(http2.FlagHeadersEndHeaders))
}

// fragment decodes a part of a header block.
func (c *conn) fragment(b []byte, end bool) error {
	if c.block.size += len(b); c.block.size > headersMax {
		return connError{http2.ErrCodeEnhanceYourCalm, fmt.Sprintf("a header has more than %d bytes", headersMax)}
	}
	if _, err := c.dec.Write(b); err != nil {
		return connError{http2.ErrCodeCompression, err.Error()}
	}
	if !end {
		return nil
	}
	if err := c.dec.Close(); err != nil {
		return connError{http2.ErrCodeCompression, err.Error()}
	}
	c.block.open = false
	if c.block.st == nil {
		// Trailers, which gRPC's clients have none of, or of a stream that has ended.
		st := c.stream(c.block.id)
		if st == nil {
			return nil
		}
		if !c.block.end {
			return protocolError("a second header that is not the end")
		}
		return st.data(nil, 0, true)
	}
	return c.open()
}

// sayFields says that all header fields are logged. It is Go's setting for that (GODEBUG=http2debug=2), and so are the lines: etcd's tests read them.
var sayFields = strings.Contains(os.Getenv("GODEBUG"), "http2debug=2")

// field takes in a header field.
func (c *conn) field(f hpack.HeaderField) {
	if sayFields {
		log.Printf("http2: decoded hpack field %+v", f)
	}
	b := &c.block
	b.list += len(f.Name) + len(f.Value) + 32
	if b.st == nil || b.list > listMax {
		return
	}
	switch f.Name {
	case ":method":
		b.method = f.Value
	case ":path":
		b.st.path = f.Value
	case "content-type":
		b.contentType = f.Value
	case "grpc-timeout":
		b.timeout = f.Value
	case "grpc-encoding":
		b.st.encoding = f.Value
	case ":scheme", "te", "user-agent", "grpc-accept-encoding":
	default:
		b.st.header = append(b.st.header, f)
	}
}

// open begins the stream whose header was read.
func (c *conn) open() error {
	b := &c.block
	st := b.st
	b.st = nil
	timeout, err := parseTimeout(b.timeout)
	st.method = c.s.methods[st.path]
	c.mu.Lock()
	refused := true
	switch {
	case c.final, c.finished, len(c.streams) >= int(c.s.cfg.StreamsMax) || c.running.Load() >= int64(c.s.cfg.StreamsMax):
		c.rst(st.id, http2.ErrCodeRefusedStream)
	case b.list > listMax:
		c.plain(st.id, "431", b.end)
	case b.method != "POST":
		c.plain(st.id, "405", b.end)
	case !isGRPC(b.contentType):
		c.plain(st.id, "415", b.end)
	default:
		refused = false
	}
	if refused {
		c.mu.Unlock()
		return c.drain()
	}
	st.send = int64(c.initial)
	c.streams[st.id] = st
	c.mu.Unlock()
	// Only this goroutine and the handler, which it starts below, use the context.
	if timeout > 0 {
		st.parent, st.cancel = context.WithTimeout(c.ctx, timeout)
	} else {
		st.parent, st.cancel = context.WithCancel(c.ctx)
	}
	if st.refusal = err; err == nil {
		st.refusal = st.unserved()
	}
	if err := c.hold(b.list + callCost); err == nil {
		st.cost = b.list + callCost
	} else {
		st.refusal, st.path, st.encoding, st.header = err, "", "", nil
	}
	if st.refusal == nil && st.method.stream != nil {
		st.arrived = make(chan struct{}, 1)
	}
	if st.refusal != nil || st.arrived != nil {
		st.begun.Store(true)
		c.begin(st)
	}
	if b.end {
		return st.data(nil, 0, true)
	}
	if !st.begun.Load() {
		st.in.Lock()
		st.awaitLocked(true)
		st.in.Unlock()
		if c.cut.Load() {
			st.stop()
		}
	}
	return nil
}

// begin starts a stream's handler. The caller has set begun.
func (c *conn) begin(st *stream) {
	c.running.Add(1)
	c.s.start(st)
}

func (c *conn) reset(id uint32, b []byte) error {
	if len(b) != 4 {
		return connError{http2.ErrCodeFrameSize, "a reset has not four bytes"}
	}
	if id == 0 || id > c.last.Load() {
		return protocolError("a stream is reset that is not open")
	}
	if st := c.stream(id); st != nil {
		st.forget()
	}
	return nil
}

func (c *conn) set(flags http2.Flags, id uint32, b []byte) error {
	switch {
	case id != 0:
		return protocolError("settings of a stream")
	case flags.Has(http2.FlagSettingsAck) && len(b) > 0, len(b)%6 != 0:
		return connError{http2.ErrCodeFrameSize, "settings of a wrong length"}
	case flags.Has(http2.FlagSettingsAck):
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	initial := c.initial
	for ; len(b) > 0; b = b[6:] {
		v := binary.BigEndian.Uint32(b[2:])
		switch http2.SettingID(binary.BigEndian.Uint16(b)) {
		case http2.SettingHeaderTableSize:
			c.tableSize(v)
		case http2.SettingInitialWindowSize:
			if v > math.MaxInt32 {
				return connError{http2.ErrCodeFlowControl, "an initial window of more than 2^31-1"}
			}
			initial = v
		case http2.SettingMaxFrameSize:
			if v < frameMax || v >= 1<<24 {
				return protocolError("a frame size that there is not")
			}
		case http2.SettingEnablePush:
			if v > 1 {
				return protocolError("push is neither on nor off")
			}
		default:
			// Streams are not opened from here; the rest are hints, or of other specifications.
		}
	}
	if err := c.reopen(initial); err != nil {
		return err
	}
	c.ackSettings()
	return c.drainLocked()
}

// reopen changes the window with which streams begin, and so that of all that are open. conn.mu is held.
func (c *conn) reopen(initial uint32) error {
	if initial == c.initial {
		return nil
	}
	if len(c.streams) > 0 {
		// A change costs a few bytes to ask for, and a look at each of perhaps 100,000 calls.
		if now := time.Now(); now.Sub(c.reopenedAt) >= time.Second {
			c.reopened -= min(c.reopened, int(now.Sub(c.reopenedAt)/time.Second))
			c.reopenedAt = now
		}
		if c.reopened++; c.reopened > reopenMax {
			return connError{http2.ErrCodeEnhanceYourCalm, "the initial window is changed too often"}
		}
	}
	more := int64(initial) - int64(c.initial)
	c.initial = initial
	for _, st := range c.streams {
		if st.send += more; st.send > math.MaxInt32 {
			return connError{http2.ErrCodeFlowControl, "a window of more than 2^31-1"}
		}
		st.wake()
	}
	return nil
}

func (c *conn) ping(flags http2.Flags, id uint32, b []byte) error {
	switch {
	case id != 0:
		return protocolError("a ping of a stream")
	case len(b) != 8:
		return connError{http2.ErrCodeFrameSize, "a ping has not eight bytes"}
	case flags.Has(http2.FlagPingAck):
		c.heardPong([8]byte(b))
		return nil
	}
	now, last := time.Now(), c.pinged
	c.pinged = now
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pong(b)
	if c.said.Swap(false) {
		c.strikes = 0
		return c.drainLocked()
	}
	least := c.s.cfg.PingMin
	if len(c.streams) == 0 {
		least = max(least, pingAlone)
	}
	if now.Sub(last) < least {
		c.strikes++
	}
	if c.strikes > pingStrikes {
		// The text is the one that gRPC's clients know.
		return connError{http2.ErrCodeEnhanceYourCalm, "too_many_pings"}
	}
	return c.drainLocked()
}

func (c *conn) windowUpdate(id uint32, b []byte) error {
	if len(b) != 4 {
		return connError{http2.ErrCodeFrameSize, "a window's update has not four bytes"}
	}
	more := int64(binary.BigEndian.Uint32(b) & math.MaxInt32)
	if id > c.last.Load() {
		return protocolError("the window of a stream that is not open")
	}
	if id == 0 {
		if more == 0 {
			return protocolError("a window's update of nothing")
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.window += more; c.window > math.MaxInt32 {
			return connError{http2.ErrCodeFlowControl, "a window of more than 2^31-1"}
		}
		c.pass()
		return nil
	}
	c.mu.Lock()
	st := c.streams[id]
	if st == nil {
		c.mu.Unlock()
		return nil
	}
	st.send += more
	excess := st.send > math.MaxInt32
	st.wake()
	c.mu.Unlock()
	switch {
	case more == 0:
		return st.abandon(http2.ErrCodeProtocol)
	case excess:
		return st.abandon(http2.ErrCodeFlowControl)
	}
	return nil
}

// drain waits while too much is to be written, before more is read that asks for more.
func (c *conn) drain() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.drainLocked()
}

// age is for how long the connection has been there.
func (c *conn) age() time.Duration { return time.Since(c.born) }

// keeper pings a client that is silent, and closes its connection if it stays so.
type keeper struct {
	mu    sync.Mutex
	timer *time.Timer
	ended bool
}

func newKeeper(c *conn) *keeper {
	k := &keeper{}
	// pinged is the connection's age when the client was pinged last.
	pinged := time.Duration(-1)
	var check func()
	again := func(d time.Duration) {
		k.mu.Lock()
		defer k.mu.Unlock()
		if !k.ended {
			k.timer = time.AfterFunc(d, check)
		}
	}
	check = func() {
		heard, now := time.Duration(c.heard.Load()), c.age()
		silent := now - heard
		switch every := c.s.cfg.PingEvery; {
		case pinged > heard:
			_ = c.nc.Close()
		case silent < every:
			again(every - silent)
		default:
			pinged = now
			c.mu.Lock()
			c.sendPing(stillThere)
			c.mu.Unlock()
			again(c.s.cfg.PingTimeout)
		}
	}
	again(c.s.cfg.PingEvery)
	return k
}

func (k *keeper) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
	k.timer.Stop()
}

var timeoutUnits = map[byte]time.Duration{
	'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
}

// parseTimeout reads the field grpc-timeout; "" is none.
func parseTimeout(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	unit := timeoutUnits[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 64)
	if err != nil || len(s) > 9 || unit == 0 {
		return 0, malformedTimeout(s)
	}
	if n > uint64(math.MaxInt64/unit) {
		return math.MaxInt64, nil
	}
	// A call that may take no time at all is over when it begins.
	return max(time.Duration(n)*unit, 1), nil
}
