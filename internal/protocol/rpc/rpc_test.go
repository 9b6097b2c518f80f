package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log" //nolint:depguard // these lines are Go's own, in the form that Go gives them
	"math"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

type (
	blob  = wrapperspb.BytesValue
	unary = func(ctx context.Context, in *blob) (*blob, error)
)

func of(b []byte) *blob { return &blob{Value: b} }

// service is one whose calls are given.
func service(calls map[string]unary, streams map[string]grpc.StreamHandler) *grpc.ServiceDesc {
	d := &grpc.ServiceDesc{ServiceName: "test.Test", HandlerType: (*any)(nil)}
	for name, call := range calls {
		d.Methods = append(d.Methods, grpc.MethodDesc{MethodName: name, Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := &blob{}
			if err := dec(in); err != nil {
				return nil, err
			}
			out, err := call(ctx, in)
			if err != nil {
				return nil, err
			}
			return out, nil
		}})
	}
	for name, h := range streams {
		d.Streams = append(d.Streams, grpc.StreamDesc{StreamName: name, Handler: h, ServerStreams: true, ClientStreams: true})
	}
	return d
}

var errStopped = status.Error(codes.Unavailable, "the server has stopped")

func config() Config {
	return Config{
		MessageBytesMax: 4 << 20, StreamsMax: 1000, HelloTimeout: 5 * time.Second, PingMin: 5 * time.Second, PingEvery: 2 * time.Hour,
		PingTimeout: 20 * time.Second, RequestTimeout: time.Minute, SendTimeout: time.Minute, LargeBytes: 1 << 20, CloseTimeout: 50 * time.Millisecond, Stopped: errStopped, Workers: 4, Attach: func(nc net.Conn) any { return "from " + nc.LocalAddr().Network() },
	}
}

// rig is a server on loopback and a client of gRPC's own.
type rig struct {
	t    *testing.T
	s    *Server
	conn *grpc.ClientConn
}

func listen(t testing.TB) net.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func dial(t testing.TB, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
	c, err := grpc.NewClient("passthrough:///"+addr, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// acceptAll serves what comes until the listener is closed.
func acceptAll(s *Server, ln net.Listener) {
	for {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		go s.Serve(nc)
	}
}

func start(t testing.TB, cfg Config, d *grpc.ServiceDesc) (*Server, string) {
	s := New(cfg)
	s.RegisterService(d, nil)
	ln := listen(t)
	go acceptAll(s, ln)
	t.Cleanup(func() { _ = ln.Close(); s.Close() })
	return s, ln.Addr().String()
}

func newRig(t *testing.T, cfg Config, d *grpc.ServiceDesc, opts ...grpc.DialOption) *rig {
	s, addr := start(t, cfg, d)
	return &rig{t, s, dial(t, addr, opts...)}
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	r.t.Cleanup(cancel)
	return ctx
}

func call(ctx context.Context, c *grpc.ClientConn, name string, in []byte, opts ...grpc.CallOption) ([]byte, error) {
	out := &blob{}
	err := c.Invoke(ctx, "/test.Test/"+name, of(in), out, opts...)
	return out.Value, err
}

func (r *rig) stream(ctx context.Context, name string) grpc.ClientStream {
	st, err := r.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Test/"+name)
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

func echo(_ context.Context, in *blob) (*blob, error) { return in, nil }

// echoes answers each message by the same.
func echoes(_ any, ss grpc.ServerStream) error {
	for {
		m := &blob{}
		if err := ss.RecvMsg(m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := ss.SendMsg(m); err != nil {
			return err
		}
	}
}

func TestUnary_MessagesOfAnySize(t *testing.T) {
	r := newRig(t, config(), service(map[string]unary{"Echo": echo}, nil))
	var wg sync.WaitGroup
	for _, size := range []int{0, 1, 100, frameMax - prefixSize - 4, frameMax - prefixSize - 3, frameMax, defaultWindow, streamWindow, streamWindow + 1, 1 << 20, 4<<20 - 100} {
		in := bytes.Repeat([]byte{byte(size)}, size)
		for range 3 {
			wg.Go(func() {
				for range 3 {
					out, err := call(r.ctx(), r.conn, "Echo", in)
					if err != nil || !bytes.Equal(in, out) {
						t.Errorf("%d bytes: got %d, %v", size, len(out), err)
					}
				}
			})
		}
	}
	wg.Wait()
}

func TestUnary_ManyAtOnce(t *testing.T) {
	r := newRig(t, config(), service(map[string]unary{"Echo": echo}, nil))
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			for j := range 50 {
				in := fmt.Appendf(nil, "%d/%d", i, j)
				if out, err := call(r.ctx(), r.conn, "Echo", in); err != nil || !bytes.Equal(in, out) {
					t.Errorf("got %q, %v, want %q", out, err, in)
				}
			}
		})
	}
	wg.Wait()
}

// raw is a codec whose requests are bytes.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)   { return v.([]byte), nil }
func (raw) Unmarshal(b []byte, v any) error { return proto.Unmarshal(b, v.(proto.Message)) }
func (raw) Name() string                    { return "proto" }

// Whatever goes wrong, clients are told the same as by gRPC's own server.
func TestErrors_AsOfTheOtherServer(t *testing.T) {
	detailed, err := status.New(codes.FailedPrecondition, "see the details").WithDetails(durationpb.New(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	fails := map[string]error{
		"NotUTF8": status.Error(codes.Aborted, "a\xffb\xc3"),
		"Plain":   errors.New("no status"), "Text": status.Error(codes.NotFound, "50 % of \u00e4, \n and \x7f"), "Empty": status.Error(codes.Aborted, ""),
		"Canceled": context.Canceled, "Late": context.DeadlineExceeded, "Wrapped": fmt.Errorf("because: %w", status.Error(codes.DataLoss, "lost")), "Details": detailed.Err(),
	}
	calls := map[string]unary{"Echo": echo}
	streams := map[string]grpc.StreamHandler{"Echoes": echoes}
	for name, err := range fails {
		calls[name] = func(context.Context, *blob) (*blob, error) { return nil, err }
		streams[name+"Stream"] = func(_ any, ss grpc.ServerStream) error {
			if strings.HasPrefix(name, "E") {
				_ = ss.SendMsg(of([]byte("first")))
			}
			return err
		}
	}
	d := service(calls, streams)
	r := newRig(t, config(), d)
	theirs := grpc.NewServer(grpc.MaxRecvMsgSize(config().MessageBytesMax))
	theirs.RegisterService(d, nil)
	ln := listen(t)
	go func() { _ = theirs.Serve(ln) }()
	t.Cleanup(theirs.Stop)
	other := &rig{t, nil, dial(t, ln.Addr().String())}

	paths := []string{"/test.Test/None", "/test.None/Echo", "/test.Test", "nothing", "/", "/test.Test/", "test.Test/Echo", "//", ""}
	for name := range fails {
		paths = append(paths, "/test.Test/"+name)
	}
	same := func(what string, f func(r *rig) error) {
		mine, want := status.Convert(f(r)), status.Convert(f(other))
		if !proto.Equal(mine.Proto(), want.Proto()) || want.Code() == codes.OK {
			t.Errorf("%s: got %v, want %v", what, mine, want)
		}
	}
	for _, path := range paths {
		same(path, func(r *rig) error { return r.conn.Invoke(r.ctx(), path, of([]byte("x")), &blob{}) })
	}
	for name := range fails {
		same(name+"Stream", func(r *rig) error {
			st := r.stream(r.ctx(), name+"Stream")
			for {
				if err := st.RecvMsg(&blob{}); err != nil {
					return err
				}
			}
		})
	}
	large := make([]byte, config().MessageBytesMax)
	same("a request that is too large", func(r *rig) error {
		_, err := call(r.ctx(), r.conn, "Echo", large)
		return err
	})
	same("a message that is too large", func(r *rig) error {
		st := r.stream(r.ctx(), "Echoes")
		_ = st.SendMsg(of(large))
		return st.RecvMsg(&blob{})
	})
	same("a request that cannot be read", func(r *rig) error {
		return r.conn.Invoke(r.ctx(), "/test.Test/Echo", []byte("\x0a\x05abc"), &blob{}, grpc.ForceCodec(raw{}))
	})
}

func TestUnary_CompressionIsRefusedByName(t *testing.T) {
	r := newRig(t, config(), service(map[string]unary{"Echo": echo}, nil))
	_, err := call(r.ctx(), r.conn, "Echo", []byte("x"), grpc.UseCompressor(gzip.Name))
	if want := `grpc: Decompressor is not installed for grpc-encoding "gzip"`; status.Code(err) != codes.Unimplemented || status.Convert(err).Message() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestContext_HeaderDeadlineAndConnection(t *testing.T) {
	type seen struct {
		token, none string
		ok          bool
		left        time.Duration
		attached    any
	}
	got := make(chan seen, 1)
	r := newRig(t, config(), service(map[string]unary{"Look": func(ctx context.Context, in *blob) (*blob, error) {
		// A context that was made of it must do too.
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var s seen
		s.token, s.ok = Header(ctx, "token")
		s.none, _ = Header(ctx, "none")
		end, _ := ctx.Deadline()
		s.left, s.attached = time.Until(end), Attached(ctx)
		got <- s
		return in, nil
	}}, nil))
	long := strings.Repeat("t", 5000)
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	for range 3 {
		if _, err := call(metadata.AppendToOutgoingContext(ctx, "token", long), r.conn, "Look", nil); err != nil {
			t.Fatal(err)
		}
		if s := <-got; s.token != long || !s.ok || s.none != "" || s.left < 50*time.Minute || s.left > time.Hour || s.attached != "from tcp" {
			t.Errorf("got %+v", s)
		}
	}
	if Attached(WithAttached(ctx, 7)) != 7 || Attached(ctx) != nil {
		t.Error("WithAttached does not attach")
	}
}

// Who sets GODEBUG=http2debug=2 sees all fields, as with Go's own servers.
func TestHeader_IsLoggedOnRequest(t *testing.T) {
	var out bytes.Buffer
	log.SetOutput(&out)
	sayFields = true
	defer func() { log.SetOutput(os.Stderr); sayFields = false }()
	s, addr := start(t, config(), service(map[string]unary{"Echo": echo}, nil))
	if _, err := call(t.Context(), dial(t, addr, grpc.WithAuthority("some.where")), "Echo", nil); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if want := `http2: decoded hpack field header field ":authority" = "some.where"` + "\n"; !strings.Contains(out.String(), want) {
		t.Errorf("got %s, want %s in it", out.String(), want)
	}
}

func TestContext_EndsWithTheCall(t *testing.T) {
	ended := make(chan error, 1)
	began := make(chan struct{}, 1)
	wait := func(ctx context.Context) error {
		began <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	r := newRig(t, config(), service(
		map[string]unary{"Wait": func(ctx context.Context, _ *blob) (*blob, error) { return nil, wait(ctx) }},
		map[string]grpc.StreamHandler{"Waits": func(_ any, ss grpc.ServerStream) error { return wait(ss.Context()) }},
	))
	for _, c := range []struct {
		how  string
		end  func(cancel context.CancelFunc)
		want error
	}{
		{"canceled", func(cancel context.CancelFunc) { cancel() }, context.Canceled},
		{"late", func(context.CancelFunc) {}, context.DeadlineExceeded},
	} {
		for _, name := range []string{"Wait", "Waits"} {
			ctx, cancel := context.WithCancel(context.Background())
			if c.want == context.DeadlineExceeded {
				ctx, cancel = context.WithTimeout(ctx, 200*time.Millisecond)
			}
			done := make(chan error, 1)
			go func() {
				if name == "Wait" {
					_, err := call(ctx, r.conn, name, nil)
					done <- err
				} else {
					done <- r.stream(ctx, name).RecvMsg(&blob{})
				}
			}()
			<-began
			c.end(cancel)
			if err := <-done; status.Code(err) != status.FromContextError(c.want).Code() {
				t.Errorf("%s, %s: the client got %v", name, c.how, err)
			}
			// The client's reset may come before the deadline passes here.
			if err := <-ended; err != c.want && err != context.Canceled {
				t.Errorf("%s, %s: the handler got %v", name, c.how, err)
			}
			cancel()
		}
	}
	// The end of the connection, and that of the server.
	for _, end := range []func(){func() { _ = r.conn.Close() }, r.s.Close} {
		r := r
		c := r.conn
		if c.GetState().String() == "SHUTDOWN" {
			break
		}
		go func() { _, _ = call(r.ctx(), c, "Wait", nil) }()
		<-began
		end()
		if err := <-ended; err != context.Canceled {
			t.Errorf("got %v", err)
		}
	}
}

func TestStream_BothWays(t *testing.T) {
	r := newRig(t, config(), service(nil, map[string]grpc.StreamHandler{"Echoes": echoes}))
	st := r.stream(r.ctx(), "Echoes")
	const n = 2000
	go func() {
		for i := range n {
			if err := st.SendMsg(of(bytes.Repeat([]byte{byte(i)}, i))); err != nil {
				t.Error(err)
				return
			}
		}
		_ = st.CloseSend()
	}()
	for i := range n {
		m := &blob{}
		if err := st.RecvMsg(m); err != nil || len(m.Value) != i || i > 0 && m.Value[0] != byte(i) {
			t.Fatalf("message %d: %d bytes, %v", i, len(m.Value), err)
		}
	}
	if err := st.RecvMsg(&blob{}); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestStream_HeaderAndTrailer(t *testing.T) {
	r := newRig(t, config(), service(nil, map[string]grpc.StreamHandler{"Meta": func(_ any, ss grpc.ServerStream) error {
		err := errors.Join(ss.SetHeader(metadata.Pairs("a", "1", "raw-bin", "\x00\xff")), ss.SendHeader(metadata.Pairs("b", "2")))
		ss.SetTrailer(metadata.Pairs("c", "3"))
		if ss.SetHeader(metadata.Pairs("d", "4")) == nil {
			return errors.New("a header was set after it was sent")
		}
		return err
	}}))
	st := r.stream(r.ctx(), "Meta")
	head, err := st.Header()
	if err != nil || fmt.Sprint(head["a"], head["b"], head["raw-bin"]) != "[1] [2] [\x00\xff]" {
		t.Errorf("header %q, %v", head, err)
	}
	if err := st.RecvMsg(&blob{}); err != io.EOF || fmt.Sprint(st.Trailer()["c"]) != "[3]" {
		t.Errorf("got %v, trailer %v", err, st.Trailer())
	}
}

// A client that does not read holds up the handler that answers it, and no other call of the same connection.
func TestStream_SlowReaderWaitsAlone(t *testing.T) {
	sent := make(chan int, 100_000)
	r := newRig(t, config(), service(map[string]unary{"Echo": echo}, map[string]grpc.StreamHandler{"Source": func(_ any, ss grpc.ServerStream) error {
		for i := range 3000 {
			if err := ss.SendMsg(of(make([]byte, 1000))); err != nil {
				return err
			}
			sent <- i
		}
		return nil
	}}))
	st := r.stream(r.ctx(), "Source")
	for range 100 {
		if _, err := call(r.ctx(), r.conn, "Echo", make([]byte, 10_000)); err != nil {
			t.Fatal(err)
		}
	}
	// gRPC's client has a window of 64 KiB.
	if n := len(sent); n > 200 {
		t.Errorf("%d messages were sent to a client that reads none", n)
	}
	for range 3000 {
		if err := st.RecvMsg(&blob{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.RecvMsg(&blob{}); err != io.EOF {
		t.Error(err)
	}
}

// Many streams that wait for the same connection all get their turn.
func TestStream_ManySharersOfAWindow(t *testing.T) {
	r := newRig(t, config(), service(nil, map[string]grpc.StreamHandler{"Source": func(_ any, ss grpc.ServerStream) error {
		for range 50 {
			if err := ss.SendMsg(of(make([]byte, 9000))); err != nil {
				return err
			}
		}
		return nil
	}}), grpc.WithInitialWindowSize(defaultWindow), grpc.WithInitialConnWindowSize(defaultWindow))
	var wg sync.WaitGroup
	for i := range 50 {
		ctx, cancel := context.WithCancel(r.ctx())
		st := r.stream(ctx, "Source")
		wg.Go(func() {
			defer cancel()
			for n := 0; ; n++ {
				if i%5 == 0 && n == 3 {
					// It leaves while it waits.
					return
				}
				if err := st.RecvMsg(&blob{}); err == io.EOF && n == 50 {
					return
				} else if err != nil {
					t.Errorf("message %d: %v", n, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A handler that does not take what the client sends bounds what the client can send.
func TestStream_SlowHandlerHoldsTheClient(t *testing.T) {
	go1 := make(chan struct{})
	r := newRig(t, config(), service(map[string]unary{"Echo": echo}, map[string]grpc.StreamHandler{"Sink": func(_ any, ss grpc.ServerStream) error {
		<-go1
		return echoes(nil, ss)
	}}))
	st := r.stream(r.ctx(), "Sink")
	const n, size = 300, 10_000
	done := make(chan error, 1)
	go func() {
		for range n {
			if err := st.SendMsg(of(make([]byte, size))); err != nil {
				done <- err
				return
			}
		}
		done <- st.CloseSend()
	}()
	for range 50 {
		if _, err := call(r.ctx(), r.conn, "Echo", make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
	}
	r.s.mu.Lock()
	for c := range r.s.conns {
		if held, most := c.held.Held(), int64(streamWindow+size+2*callCost); held > most {
			t.Errorf("%d bytes are held, more than %d", held, most)
		}
	}
	r.s.mu.Unlock()
	close(go1)
	for range n {
		if err := st.RecvMsg(&blob{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := st.RecvMsg(&blob{}); err != io.EOF {
		t.Error(err)
	}
	for c := range r.s.conns {
		if held := c.held.Held(); held != 0 {
			t.Errorf("%d bytes are held in the end", held)
		}
	}
}

func TestClose_WaitsForHandlers(t *testing.T) {
	began, left := make(chan struct{}), false
	r := newRig(t, config(), service(map[string]unary{"Wait": func(ctx context.Context, _ *blob) (*blob, error) {
		close(began)
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond)
		left = true
		return nil, ctx.Err()
	}}, nil))
	go func() { _, _ = call(r.ctx(), r.conn, "Wait", nil) }()
	<-began
	r.s.Close()
	if !left {
		t.Error("Close did not wait for the handler")
	}
	near, far := net.Pipe()
	r.s.Serve(far)
	if _, err := near.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a connection of a closed server: %v", err)
	}
}

func TestParseTimeout(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"": 0, "1H": time.Hour, "2M": 2 * time.Minute, "3S": 3 * time.Second, "40m": 40 * time.Millisecond, "5u": 5 * time.Microsecond,
		"99999999n": 99999999, "0S": 1, "99999999H": math.MaxInt64,
	} {
		if got, err := parseTimeout(s); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"S", "1", "1x", "-1S", "123456789S", "1.5S", " 1S"} {
		if got, err := parseTimeout(s); err == nil {
			t.Errorf("%q: got %v, want an error", s, got)
		}
	}
}

// BenchmarkUnary compares this server with gRPC's own; both serve the same client.
func BenchmarkUnary(b *testing.B) {
	d := service(map[string]unary{"Echo": echo}, nil)
	theirs := grpc.NewServer(grpc.NumStreamWorkers(256))
	theirs.RegisterService(d, nil)
	ln := listen(b)
	go func() { _ = theirs.Serve(ln) }()
	b.Cleanup(theirs.Stop)
	cfg := config()
	cfg.Workers = 256
	_, addr := start(b, cfg, d)
	for name, addr := range map[string]string{"rpc": addr, "grpc": ln.Addr().String()} {
		b.Run(name, func(b *testing.B) {
			c := dial(b, addr)
			in := make([]byte, 100)
			b.SetParallelism(16)
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if _, err := call(context.Background(), c, "Echo", in); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
