package rpc

import (
	"context"
	"io"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// prefixSize is what is before each message: a byte that says whether it is compressed, and its length.
	prefixSize = 5
	// messageCost is what a message counts in conn.held beside its bytes: one may have none. callCost is what a call does beside its header: about what it
	// takes before its handler is started.
	messageCost, callCost = 32, 1 << 10
)

// parent is what a call's context is made of, under a name of its own: ServerStream has a method Context.
type parent = context.Context

// stream is a call. It is the context of its handler, and its grpc.ServerStream.
type stream struct {
	parent
	cancel context.CancelFunc
	c      *conn
	id     uint32
	// What follows comes of the header, and does not change afterwards. refusal says why the call is not served.
	path, encoding string
	header         []hpack.HeaderField
	method         *method
	refusal        error
	// cost is what the header counts in conn.held.
	cost int
	// begun says that the handler was started, or that none will be. Whoever sets it does that.
	begun atomic.Bool
	// left says that the call does not count any more. It belongs to the handler.
	left bool

	// ended says that the client sends no more. The goroutine that reads sets it.
	ended atomic.Bool

	// in guards what follows.
	in sync.Mutex
	// window is how much the client may send, granted what of that it is still to be told, and taken what it may send again.
	window, granted, taken int
	prefix                 [prefixSize]byte
	prefixed               int
	// part is the beginning of a message of need bytes.
	part []byte
	need int
	// messages wait for the handler.
	messages [][]byte
	// failed says why what comes cannot be taken.
	failed error
	// gone says that nobody takes anything any more.
	gone bool
	// awaited says that a request has begun and not ended, and sweeps how often sweep has seen that.
	awaited bool
	sweeps  int
	// arrived is sent to when something of the above has changed.
	arrived chan struct{}

	sending
}

var _ grpc.ServerStream = (*stream)(nil)

type streamKey struct{}

// Value implements context.Context.
func (st *stream) Value(key any) any {
	if _, ok := key.(streamKey); ok {
		return st
	}
	return st.parent.Value(key)
}

// Context implements grpc.ServerStream.
func (st *stream) Context() context.Context { return st }

func isGRPC(contentType string) bool {
	rest, ok := strings.CutPrefix(contentType, "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

func malformedTimeout(s string) error {
	return status.Errorf(codes.Internal, "malformed grpc-timeout: %q", s)
}

// unserved says why a call cannot be served, in the words of gRPC's own server: some clients know them.
func (st *stream) unserved() error {
	if st.method != nil {
		if st.encoding != "" && st.encoding != encoding.Identity {
			return status.Errorf(codes.Unimplemented, "grpc: Decompressor is not installed for grpc-encoding %q", st.encoding)
		}
		return nil
	}
	at := strings.LastIndexByte(st.path, '/')
	if at < 1 || st.path[0] != '/' {
		return status.Errorf(codes.Unimplemented, "malformed method name: %q", st.path)
	}
	service := st.path[1:at]
	if _, ok := st.c.s.services[service]; !ok {
		return status.Errorf(codes.Unimplemented, "unknown service %v", service)
	}
	return status.Errorf(codes.Unimplemented, "unknown method %v for service %v", st.path[at+1:], service)
}

// data takes in the bytes of a frame, which took size bytes of the windows, and starts the handler of a unary call when its request is complete.
func (st *stream) data(b []byte, size int, end bool) error {
	if st.ended.Load() {
		return st.abandon(http2.ErrCodeStreamClosed)
	}
	st.in.Lock()
	st.window -= size
	// Padding is taken at once, and may be sent again: the window may be just what a message lacks.
	if st.window >= 0 && !end {
		st.granted = size - len(b)
		st.window += st.granted
	}
	if st.window >= 0 && !st.gone && st.failed == nil && st.refusal == nil {
		st.failed = st.take(b)
		if end && st.failed == nil && (st.prefixed > 0 || st.part != nil) {
			st.failed = status.Error(codes.Internal, io.ErrUnexpectedEOF.Error())
		}
	}
	part := st.prefixed > 0 || st.part != nil
	st.awaitLocked(!end && !st.gone && st.failed == nil && (st.arrived != nil && part || st.arrived == nil && !st.begun.Load()))
	excess, failed, granted := st.window < 0, st.failed, st.granted
	st.granted = 0
	if end {
		st.ended.Store(true)
	}
	st.in.Unlock()
	switch {
	case excess:
		return st.abandon(http2.ErrCodeFlowControl)
	case st.arrived != nil:
		select {
		case st.arrived <- struct{}{}:
		default:
		}
	case (end || failed != nil) && st.begun.CompareAndSwap(false, true):
		st.refusal = failed
		st.c.begin(st)
	}
	if granted > 0 {
		st.c.mu.Lock()
		defer st.c.mu.Unlock()
		st.c.credit(st.id, granted)
		return st.c.drainLocked()
	}
	return nil
}

// abandon ends a stream whose client does not keep to the protocol.
func (st *stream) abandon(code http2.ErrCode) error {
	st.c.mu.Lock()
	st.c.rst(st.id, code)
	st.c.mu.Unlock()
	st.forget()
	return st.c.drain()
}

// take takes messages out of data.
func (st *stream) take(b []byte) error {
	for len(b) > 0 {
		if st.part == nil {
			n := copy(st.prefix[st.prefixed:], b)
			st.prefixed += n
			if b = b[n:]; st.prefixed < prefixSize {
				return nil
			}
			if err := st.expect(len(b)); err != nil {
				return err
			}
		}
		n := min(len(b), st.need-len(st.part))
		if err := st.c.hold(n); err != nil {
			return err
		}
		st.part = append(st.part, b[:n]...)
		b = b[n:]
		st.complete()
	}
	return nil
}

// hold counts what of a connection's requests waits for a handler. It fails if that is too much, of the connection or of all.
func (c *conn) hold(n int) error {
	if !c.held.Hold(n) {
		return status.Errorf(codes.ResourceExhausted, "more than %d bytes of requests wait on this node; try again later, use smaller requests, or another node", c.s.cfg.Requests.Max())
	}
	if most := c.s.held; c.held.Held() > most {
		c.held.Give(n)
		return status.Errorf(codes.ResourceExhausted, "more than %d bytes of this connection's requests wait; use fewer at a time, or more connections", most)
	}
	return nil
}

// expect begins a message whose prefix is there, and of whose bytes there are some at hand.
func (st *stream) expect(have int) error {
	// The length has four bytes.
	st.need = int(uint32(st.prefix[1])<<24 | uint32(st.prefix[2])<<16 | uint32(st.prefix[3])<<8 | uint32(st.prefix[4]))
	st.prefixed = 0
	most := st.c.s.cfg.MessageBytesMax
	if st.need > most {
		return status.Errorf(codes.ResourceExhausted, "grpc: received message larger than max (%d vs. %d)", st.need, most)
	}
	if st.prefix[0] > 1 {
		return status.Errorf(codes.Internal, "grpc: received unexpected payload format %d", st.prefix[0])
	}
	if st.prefix[0] == 1 {
		return status.Error(codes.Internal, "grpc: compressed flag set with identity or empty encoding")
	}
	if err := st.c.hold(messageCost); err != nil {
		return err
	}
	st.part = make([]byte, 0, min(st.need, have))
	if more := st.need - have - st.window; more > 0 {
		// The handler takes nothing before the message is complete.
		st.window += more
		st.granted += more
	}
	st.complete()
	return nil
}

// complete hands a message over, if it is complete.
func (st *stream) complete() {
	if st.part != nil && len(st.part) == st.need {
		st.messages = append(st.messages, st.part)
		st.part = nil
		// What follows in a stream of messages has its own time.
		if st.arrived != nil {
			st.sweeps = 0
		}
	}
}

// RecvMsg implements grpc.ServerStream.
func (st *stream) RecvMsg(m any) error {
	for {
		st.in.Lock()
		b, ok := []byte(nil), len(st.messages) > 0
		credit := 0
		if ok {
			b = st.messages[0]
			st.messages[0] = nil
			st.messages = st.messages[1:]
			st.c.held.Give(len(b) + messageCost)
			st.taken += len(b) + prefixSize
			if st.taken >= streamWindow/4 && !st.ended.Load() {
				// What the window was widened by for a long message is not given again.
				credit = min(st.taken, streamWindow-st.window)
				st.taken = 0
				st.window += max(credit, 0)
			}
		}
		failed, ended := st.failed, st.ended.Load()
		st.in.Unlock()
		switch {
		case ok:
			if credit > 0 {
				st.c.mu.Lock()
				st.c.credit(st.id, credit)
				st.c.mu.Unlock()
			}
			return st.decode(b, m)
		case failed != nil:
			return failed
		case ended:
			return io.EOF
		}
		select {
		case <-st.arrived:
		case <-st.Done():
			return status.FromContextError(st.Err()).Err()
		}
	}
}

// request decodes the request of a unary call.
func (st *stream) request(m any) error {
	st.in.Lock()
	messages := st.messages
	st.messages = nil
	st.in.Unlock()
	for _, b := range messages {
		st.c.held.Give(len(b) + messageCost)
	}
	if len(messages) != 1 {
		return status.Errorf(codes.Internal, "a call of %s has %d requests, must have one", st.path, len(messages))
	}
	return st.decode(messages[0], m)
}

// decode reads a message.
func (st *stream) decode(b []byte, m any) error {
	to, ok := m.(proto.Message)
	if !ok {
		return status.Errorf(codes.Internal, "a request of %s cannot be read into a %T", st.path, m)
	}
	if err := proto.Unmarshal(b, to); err != nil {
		return status.Errorf(codes.Internal, "grpc: failed to unmarshal the received message: %v", err)
	}
	return nil
}

// SetHeader implements grpc.ServerStream.
func (st *stream) SetHeader(md metadata.MD) error {
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if st.headed {
		return status.Error(codes.Internal, "the header was sent already")
	}
	st.leading = metadata.Join(st.leading, md)
	return nil
}

// SendHeader implements grpc.ServerStream.
func (st *stream) SendHeader(md metadata.MD) error {
	if err := st.SetHeader(md); err != nil {
		return err
	}
	return st.put(nil)
}

// SetTrailer implements grpc.ServerStream.
func (st *stream) SetTrailer(md metadata.MD) {
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	st.trailing = metadata.Join(st.trailing, md)
}

// forget ends a stream that nobody wants any more. It is for the goroutine that reads.
func (st *stream) forget() {
	st.c.mu.Lock()
	st.over = true
	delete(st.c.streams, st.id)
	st.c.depart()
	st.c.mu.Unlock()
	st.cancel()
	st.drop()
}

// drop lets go of a call that no handler will see. It is for the goroutine that reads.
func (st *stream) drop() {
	if st.begun.CompareAndSwap(false, true) {
		st.release()
		st.c.held.Give(st.cost)
	}
}

// leave gives back what a call counts, once. It comes before the client is told of the end, so that one that keeps to the bounds is never refused.
func (st *stream) leave() {
	if !st.left {
		st.left = true
		st.c.held.Give(st.cost)
		st.c.running.Add(-1)
	}
}

// release lets go of what nobody has taken.
func (st *stream) release() {
	st.in.Lock()
	defer st.in.Unlock()
	held := len(st.part)
	if st.part != nil {
		held += messageCost
	}
	for _, b := range st.messages {
		held += len(b) + messageCost
	}
	st.c.held.Give(held)
	st.part, st.messages, st.gone = nil, nil, true
	st.awaitLocked(false)
}

// handle runs the handler and sends what it answers.
func (st *stream) handle() {
	defer st.leave()
	err := st.refusal
	switch {
	case err != nil:
	case st.method.stream != nil:
		err = st.method.stream(st.method.impl, st)
	default:
		var m any
		if m, err = st.method.unary(st.method.impl, st, st.request, nil); err == nil {
			err = st.answer(m)
		}
	}
	st.release()
	if st.c.cut.Load() && statusOf(err).Code() == codes.Canceled {
		// It was not the client that has cancelled it.
		err = st.c.s.cfg.Stopped
	}
	st.end(err)
	st.cancel()
}
