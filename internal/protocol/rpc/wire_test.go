package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// wire is a client that speaks in frames, over a pipe.
type wire struct {
	t    testing.TB
	nc   net.Conn
	fr   *http2.Framer
	enc  *hpack.Encoder
	head bytes.Buffer
	dec  *hpack.Decoder
	done chan struct{}
	// in are the frames that came. It is closed at the end of the connection.
	in chan string
}

// newWire connects to a server, with settings. It reads all the time, unless hold is closed later only.
func newWire(t testing.TB, s *Server, hold <-chan struct{}, settings ...http2.Setting) *wire {
	near, far := net.Pipe()
	w := &wire{t: t, nc: near, fr: http2.NewFramer(near, near), dec: hpack.NewDecoder(4096, nil), done: make(chan struct{}), in: make(chan string, 100_000)}
	w.fr.AllowIllegalWrites = true
	w.enc = hpack.NewEncoder(&w.head)
	go func() {
		defer close(w.done)
		s.Serve(far)
	}()
	go w.read(hold)
	t.Cleanup(func() { _ = near.Close(); <-w.done })
	w.write(func() error { _, err := io.WriteString(near, http2.ClientPreface); return err })
	w.write(func() error { return w.fr.WriteSettings(settings...) })
	return w
}

func (w *wire) write(f func() error) { _ = f() }

// read describes each frame: its kind, stream, and what is in it.
func (w *wire) read(hold <-chan struct{}) {
	defer close(w.in)
	if hold != nil {
		<-hold
	}
	for {
		f, err := w.fr.ReadFrame()
		if err != nil {
			return
		}
		id := f.Header().StreamID
		switch f := f.(type) {
		case *http2.HeadersFrame:
			fields, err := w.dec.DecodeFull(f.HeaderBlockFragment())
			s := fmt.Sprintf("HEADERS %d", id)
			for _, h := range fields {
				s += fmt.Sprintf(" %s=%s", h.Name, h.Value)
			}
			if err != nil {
				s += " " + err.Error()
			}
			if f.StreamEnded() {
				s += " END"
			}
			w.in <- s
		case *http2.DataFrame:
			w.in <- fmt.Sprintf("DATA %d %q", id, f.Data())
		case *http2.RSTStreamFrame:
			w.in <- fmt.Sprintf("RST %d %v", id, f.ErrCode)
		case *http2.GoAwayFrame:
			last := ""
			if f.ErrCode == http2.ErrCodeNo {
				last = fmt.Sprint(f.LastStreamID, " ")
			}
			w.in <- fmt.Sprintf("GOAWAY %v %s%s", f.ErrCode, last, f.DebugData())
		case *http2.PingFrame:
			w.in <- fmt.Sprintf("PING ack=%v", f.IsAck())
		case *http2.WindowUpdateFrame:
			w.in <- fmt.Sprintf("WINDOW %d %d", id, f.Increment)
		case *http2.SettingsFrame:
			w.in <- fmt.Sprintf("SETTINGS ack=%v", f.IsAck())
		default:
			w.in <- fmt.Sprint(f)
		}
	}
}

// next returns the next frame that says anything, "closed" at the end: none of the settings or windows, and no reset that just follows an answer which
// came before the request's end.
func (w *wire) next() string {
	for {
		select {
		case s, ok := <-w.in:
			if !ok {
				return "closed"
			}
			if !strings.HasPrefix(s, "SETTINGS") && !strings.HasPrefix(s, "WINDOW") && !strings.HasSuffix(s, " NO_ERROR") {
				return s
			}
		case <-time.After(time.Minute):
			return "nothing"
		}
	}
}

// credit waits until a stream may send more, and returns how much.
func (w *wire) credit(id uint32) (n int) {
	w.t.Helper()
	for {
		select {
		case s := <-w.in:
			if got, _ := fmt.Sscanf(s, fmt.Sprintf("WINDOW %d %%d", id), &n); got == 1 {
				return n
			}
		case <-time.After(10 * time.Second):
			w.t.Fatalf("stream %d may send nothing more", id)
		}
	}
}

func (w *wire) fields(pairs ...string) []byte {
	w.head.Reset()
	for i := 0; i < len(pairs); i += 2 {
		_ = w.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(w.head.Bytes())
}

func (w *wire) request(id uint32, path string, more ...string) []byte {
	return w.fields(append([]string{":method", "POST", ":scheme", "http", ":path", path, ":authority", "x", "content-type", "application/grpc", "te", "trailers"}, more...)...)
}

func (w *wire) open(id uint32, path string, end bool, more ...string) {
	w.write(func() error {
		return w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: w.request(id, path, more...), EndHeaders: true, EndStream: end})
	})
}

func (w *wire) data(id uint32, b string, end bool) {
	w.write(func() error { return w.fr.WriteData(id, end, []byte(b)) })
}

// message is how the message of a value goes over the wire.
func message(value string) string {
	return string([]byte{0, 0, 0, 0, byte(len(value) + 2), 10, byte(len(value))}) + value
}

func wireServer(t testing.TB, change func(*Config)) *Server {
	cfg := config()
	if change != nil {
		change(&cfg)
	}
	s := New(cfg)
	s.RegisterService(service(map[string]unary{
		"Echo": echo,
		"Wait": func(ctx context.Context, _ *blob) (*blob, error) { <-ctx.Done(); return nil, ctx.Err() },
	}, map[string]grpc.StreamHandler{"Echoes": echoes}), nil)
	t.Cleanup(s.Close)
	return s
}

const (
	okHead = " :status=200 content-type=application/grpc"
	okTail = " grpc-status=0 END"
)

func TestWire_AnswersHaveFixedHeaders(t *testing.T) {
	w := newWire(t, wireServer(t, nil), nil)
	// The second time both are in the table.
	for _, id := range []uint32{1, 3, 5} {
		w.open(id, "/test.Test/Echo", false)
		w.data(id, message("a")[:3], false)
		w.data(id, message("a")[3:], true)
		for _, want := range []string{
			fmt.Sprintf("HEADERS %d", id) + okHead, fmt.Sprintf("DATA %d %q", id, message("a")), fmt.Sprintf("HEADERS %d", id) + okTail,
		} {
			if got := w.next(); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
	}
}

func TestWire_SmallHeaderTables(t *testing.T) {
	for _, size := range []uint32{0, 100, 200, 10_000} {
		w := newWire(t, wireServer(t, nil), nil, http2.Setting{ID: http2.SettingHeaderTableSize, Val: size})
		w.dec.SetAllowedMaxDynamicTableSize(size)
		for _, id := range []uint32{1, 3, 5} {
			path, tail := "/test.Test/Echo", okTail
			if id == 3 {
				// An error in between.
				path, tail = "/test.Test/No", " grpc-status=12 grpc-message=unknown method No for service test.Test END"
			}
			w.open(id, path, false)
			w.data(id, message("a"), true)
			head := w.next()
			if id != 3 {
				if got := w.next(); !strings.HasPrefix(got, "DATA") {
					t.Errorf("got %s", got)
				}
				tail = fmt.Sprintf("HEADERS %d", id) + tail
				if got := w.next(); got != tail {
					t.Errorf("table of %d: got %s, want %s", size, got, tail)
				}
				tail = ""
			}
			if want := fmt.Sprintf("HEADERS %d", id) + okHead + tail; head != want {
				t.Errorf("table of %d: got %s, want %s", size, head, want)
			}
		}
	}
}

// What a client gets that does not keep to HTTP/2 or gRPC: the connection's end, the stream's, or an answer.
func TestWire_BrokenClients(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for name, c := range map[string]struct {
		do   func(w *wire)
		want string
	}{
		"frame too long": {func(w *wire) {
			w.write(func() error { return w.fr.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, frameMax+1)) })
		}, "GOAWAY FRAME_SIZE_ERROR"},
		"data of no stream":        {func(w *wire) { w.data(0, "x", false) }, "GOAWAY PROTOCOL_ERROR"},
		"data of a stream to come": {func(w *wire) { w.data(7, "x", false) }, "GOAWAY PROTOCOL_ERROR"},
		"data behind the end":      {func(w *wire) { w.open(1, "/test.Test/Wait", false); w.data(1, message(""), true); w.data(1, "x", true) }, "RST 1 STREAM_CLOSED"},
		"an even stream":           {func(w *wire) { w.open(2, "/test.Test/Echo", false) }, "GOAWAY PROTOCOL_ERROR"},
		"a second header":          {func(w *wire) { w.open(1, "/test.Test/Echo", false); w.open(1, "/test.Test/Echo", false) }, "GOAWAY PROTOCOL_ERROR"},
		"header of garbage": {func(w *wire) {
			w.write(func() error {
				return w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
			})
		}, "GOAWAY COMPRESSION_ERROR"},
		"header without its end": {func(w *wire) {
			w.write(func() error {
				return w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.request(1, "/x")})
			})
			w.data(1, "x", false)
		}, "GOAWAY PROTOCOL_ERROR"},
		"continuation of another header": {func(w *wire) {
			w.write(func() error {
				return w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.request(1, "/x")})
			})
			w.write(func() error { return w.fr.WriteContinuation(3, true, nil) })
		}, "GOAWAY PROTOCOL_ERROR"},
		"header that is cut off": {func(w *wire) {
			b := w.request(1, "/test.Test/Echo", "x", "yyyyyyyy")
			w.write(func() error {
				return w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:len(b)-1], EndHeaders: true})
			})
		}, "GOAWAY COMPRESSION_ERROR"},
		"padded header without its padding": {func(w *wire) {
			w.write(func() error { return w.fr.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPadded, 1, []byte{9, 1}) })
		}, "GOAWAY PROTOCOL_ERROR"},
		"continuation of nothing": {func(w *wire) { w.write(func() error { return w.fr.WriteContinuation(1, true, nil) }) }, "GOAWAY PROTOCOL_ERROR"},
		"header of many fields":   {func(w *wire) { w.many(1, 200, long) }, "HEADERS 1 :status=431"},
		"header without end":      {func(w *wire) { w.many(1, 400, long) }, "GOAWAY ENHANCE_YOUR_CALM"},
		"padding longer than a frame": {func(w *wire) {
			w.open(1, "/test.Test/Echo", false)
			w.write(func() error { return w.fr.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 1}) })
		}, "GOAWAY PROTOCOL_ERROR"},
		"priority longer than a frame": {func(w *wire) {
			w.write(func() error { return w.fr.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPriority, 1, []byte{1}) })
		}, "GOAWAY FRAME_SIZE_ERROR"},
		"a push": {func(w *wire) {
			w.write(func() error { return w.fr.WriteRawFrame(http2.FramePushPromise, 0, 1, make([]byte, 8)) })
		}, "GOAWAY PROTOCOL_ERROR"},
		"ping of a stream": {func(w *wire) {
			w.write(func() error { return w.fr.WriteRawFrame(http2.FramePing, 0, 1, make([]byte, 8)) })
		}, "GOAWAY PROTOCOL_ERROR"},
		"short ping": {func(w *wire) {
			w.write(func() error { return w.fr.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7)) })
		}, "GOAWAY FRAME_SIZE_ERROR"},
		"short settings": {func(w *wire) {
			w.write(func() error { return w.fr.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 7)) })
		}, "GOAWAY FRAME_SIZE_ERROR"},
		"settings of a stream": {func(w *wire) { w.write(func() error { return w.fr.WriteRawFrame(http2.FrameSettings, 0, 1, nil) }) }, "GOAWAY PROTOCOL_ERROR"},
		"acknowledged settings": {func(w *wire) {
			w.write(func() error {
				return w.fr.WriteRawFrame(http2.FrameSettings, http2.FlagSettingsAck, 0, make([]byte, 6))
			})
		}, "GOAWAY FRAME_SIZE_ERROR"},
		"a window too large": {func(w *wire) {
			w.write(func() error {
				return w.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
			})
		}, "GOAWAY FLOW_CONTROL_ERROR"},
		"a frame size too small": {func(w *wire) {
			w.write(func() error { return w.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 100}) })
		}, "GOAWAY PROTOCOL_ERROR"},
		"a frame size too large": {func(w *wire) {
			w.write(func() error { return w.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 24}) })
		}, "GOAWAY PROTOCOL_ERROR"},
		"push neither on nor off": {func(w *wire) {
			w.write(func() error { return w.fr.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2}) })
		}, "GOAWAY PROTOCOL_ERROR"},
		"a window's update of nothing": {func(w *wire) { w.write(func() error { return w.fr.WriteWindowUpdate(0, 0) }) }, "GOAWAY PROTOCOL_ERROR"},
		"a window that overflows":      {func(w *wire) { w.write(func() error { return w.fr.WriteWindowUpdate(0, 1<<31-1) }) }, "GOAWAY FLOW_CONTROL_ERROR"},
		"a stream's that overflows": {func(w *wire) {
			w.open(1, "/test.Test/Echo", false)
			w.write(func() error { return w.fr.WriteWindowUpdate(1, 1<<31-1) })
		}, "RST 1 FLOW_CONTROL_ERROR"},
		"a stream's of nothing": {func(w *wire) {
			w.open(1, "/test.Test/Echo", false)
			w.write(func() error { return w.fr.WriteWindowUpdate(1, 0) })
		}, "RST 1 PROTOCOL_ERROR"},
		"an initial that overflows": {func(w *wire) {
			w.open(1, "/test.Test/Echo", false)
			w.write(func() error { return w.fr.WriteWindowUpdate(1, 1<<31-1-defaultWindow) })
			w.write(func() error {
				return w.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: defaultWindow + 1})
			})
		}, "GOAWAY FLOW_CONTROL_ERROR"},
		"window of a stream to come": {func(w *wire) { w.write(func() error { return w.fr.WriteWindowUpdate(9, 1) }) }, "GOAWAY PROTOCOL_ERROR"},
		"short window":               {func(w *wire) { w.write(func() error { return w.fr.WriteRawFrame(http2.FrameWindowUpdate, 0, 0, nil) }) }, "GOAWAY FRAME_SIZE_ERROR"},
		"reset of a stream to come":  {func(w *wire) { w.write(func() error { return w.fr.WriteRSTStream(9, 0) }) }, "GOAWAY PROTOCOL_ERROR"},
		"short reset":                {func(w *wire) { w.write(func() error { return w.fr.WriteRawFrame(http2.FrameRSTStream, 0, 1, nil) }) }, "GOAWAY FRAME_SIZE_ERROR"},
		"more than the stream's window": {func(w *wire) {
			w.open(1, "/test.Test/Echo", false)
			for range streamWindow/frameMax + 1 {
				w.data(1, "\x00\x00\x00\x3f\xfb"+strings.Repeat("x", frameMax-prefixSize), false)
			}
		}, "RST 1 FLOW_CONTROL_ERROR"},
		"a GET": {func(w *wire) {
			w.write(func() error {
				return w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.fields(":method", "GET", ":path", "/", ":scheme", "http"), EndHeaders: true, EndStream: true})
			})
		}, "HEADERS 1 :status=405"},
		"another content": {func(w *wire) {
			w.write(func() error {
				return w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.fields(":method", "POST", ":path", "/", "content-type", "application/grpcx"), EndHeaders: true, EndStream: true})
			})
		}, "HEADERS 1 :status=415"},
		"no request":         {func(w *wire) { w.open(1, "/test.Test/Echo", true) }, "HEADERS 1" + okHead + " grpc-status=13 grpc-message=a call of /test.Test/Echo has 0 requests"},
		"two requests":       {func(w *wire) { w.open(1, "/test.Test/Echo", false); w.data(1, message("a")+message("b"), true) }, "HEADERS 1" + okHead + " grpc-status=13 grpc-message=a call of /test.Test/Echo has 2 requests"},
		"half a request":     {func(w *wire) { w.open(1, "/test.Test/Echo", false); w.data(1, message("abc")[:7], true) }, "HEADERS 1" + okHead + " grpc-status=13 grpc-message=unexpected EOF"},
		"half a prefix":      {func(w *wire) { w.open(1, "/test.Test/Echoes", false); w.data(1, "\x00\x00", true) }, "HEADERS 1" + okHead + " grpc-status=13 grpc-message=unexpected EOF"},
		"compressed":         {func(w *wire) { w.open(1, "/test.Test/Echo", false); w.data(1, "\x01\x00\x00\x00\x00", true) }, "HEADERS 1" + okHead + " grpc-status=13 grpc-message=grpc: compressed flag set"},
		"no format":          {func(w *wire) { w.open(1, "/test.Test/Echo", false); w.data(1, "\x02\x00\x00\x00\x00", true) }, "HEADERS 1" + okHead + " grpc-status=13 grpc-message=grpc: received unexpected payload format 2"},
		"too large":          {func(w *wire) { w.open(1, "/test.Test/Echo", false); w.data(1, "\x00\x7f\x00\x00\x00", false) }, "HEADERS 1" + okHead + " grpc-status=8 grpc-message=grpc: received message larger than max (2130706432 vs. 4194304)"},
		"a timeout of words": {func(w *wire) { w.open(1, "/test.Test/Echo", false, "grpc-timeout", "soon") }, "HEADERS 1" + okHead + " grpc-status=13 grpc-message=malformed grpc-timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			s := wireServer(t, nil)
			w := newWire(t, s, nil)
			c.do(w)
			got := w.next()
			if !strings.HasPrefix(got, c.want) {
				t.Fatalf("got %s, want %s", got, c.want)
			}
			if strings.HasPrefix(got, "GOAWAY") {
				if got := w.next(); got != "closed" {
					t.Errorf("got %s, want the connection's end", got)
				}
				return
			}
			// The connection goes on.
			w.open(101, "/test.Test/Echo", false)
			w.data(101, message("a"), true)
			for {
				switch got := w.next(); got {
				case "HEADERS 101" + okTail:
					return
				case "closed", "nothing":
					t.Fatalf("the connection does not go on: %s", got)
				}
			}
		})
	}
}

// many sends a header of n fields, in many frames.
func (w *wire) many(id uint32, n int, value string) {
	b := w.request(id, "/test.Test/Echo")
	for i := range n {
		b = appendField(b, fmt.Sprint("x-", i), value)
	}
	first := true
	for len(b) > 0 {
		part := b[:min(len(b), frameMax)]
		b = b[len(part):]
		w.write(func() error {
			if first {
				return w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: part, EndHeaders: len(b) == 0})
			}
			return w.fr.WriteContinuation(id, len(b) == 0, part)
		})
		first = false
	}
}

func TestWire_WrongBeginnings(t *testing.T) {
	for name, c := range map[string]struct {
		say  func(nc net.Conn) error
		want string
	}{
		"another preface": {func(nc net.Conn) error { _, err := io.WriteString(nc, strings.Repeat("PRI ", 6)); return err }, "GOAWAY PROTOCOL_ERROR"},
		"no settings": {func(nc net.Conn) error {
			_, err := io.WriteString(nc, http2.ClientPreface)
			return errors.Join(err, http2.NewFramer(nc, nc).WritePing(false, [8]byte{}))
		}, "GOAWAY PROTOCOL_ERROR"},
		"silence": {func(net.Conn) error { return nil }, "closed"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := wireServer(t, nil)
				near, far := net.Pipe()
				go s.Serve(far)
				w := &wire{t: t, nc: near, fr: http2.NewFramer(near, near), dec: hpack.NewDecoder(4096, nil), in: make(chan string, 100)}
				go w.read(nil)
				if err := c.say(near); err != nil {
					t.Fatal(err)
				}
				if got := w.next(); !strings.HasPrefix(got, c.want) {
					t.Errorf("got %s, want %s", got, c.want)
				}
				_ = near.Close()
				s.Close()
			})
		})
	}
}

func TestWire_StreamsAreBounded(t *testing.T) {
	w := newWire(t, wireServer(t, func(c *Config) { c.StreamsMax = 3 }), nil)
	for id := uint32(1); id <= 7; id += 2 {
		w.open(id, "/test.Test/Wait", false)
		w.data(id, message(""), true)
	}
	if got := w.next(); got != "RST 7 REFUSED_STREAM" {
		t.Errorf("got %s", got)
	}
	w.write(func() error { return w.fr.WriteRSTStream(3, http2.ErrCodeCancel) })
	// When the handler has ended there is room for another.
	for id := uint32(9); ; id += 2 {
		w.open(id, "/test.Test/Echo", false)
		w.data(id, message("a"), true)
		got := w.next()
		if got == fmt.Sprintf("HEADERS %d", id)+okHead {
			break
		}
		if got != fmt.Sprintf("RST %d REFUSED_STREAM", id) {
			t.Fatalf("got %s", got)
		}
	}
}

// A client that asks and does not read what it is answered is not read any more itself; when it reads, it gets everything.
func TestWire_WhoDoesNotReadIsNotRead(t *testing.T) {
	s := wireServer(t, func(c *Config) { c.StreamsMax = 1 << 20 })
	hold := make(chan struct{})
	w := newWire(t, s, hold, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	w.write(func() error { return w.fr.WriteWindowUpdate(0, 1<<30) })
	const n = 100_000
	sent := make(chan int)
	go func() {
		for range n {
			if w.fr.WritePing(false, [8]byte{}) != nil {
				break
			}
		}
		close(sent)
	}()
	select {
	case <-sent:
		t.Error("all pings were read, though no answer was")
	case <-time.After(300 * time.Millisecond):
	}
	s.mu.Lock()
	for c := range s.conns {
		c.mu.Lock()
		if len(c.out) > outMost+1000 {
			t.Errorf("%d bytes wait to be written, more than %d", len(c.out), outMost)
		}
		c.mu.Unlock()
	}
	s.mu.Unlock()
	close(hold)
	if got := w.next(); got != "PING ack=true" {
		t.Errorf("got %s", got)
	}
}

// The end of a call has no data, and does not wait for a window that the answer of another has filled.
func TestWire_EndsPassAFullWindow(t *testing.T) {
	hold := make(chan struct{})
	s := wireServer(t, nil)
	w := newWire(t, s, hold, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	w.write(func() error { return w.fr.WriteWindowUpdate(0, outMax+100_000-defaultWindow) })
	value := strings.Repeat("x", 1<<20)
	w.open(1, "/test.Test/Echo", false)
	b, _ := proto.Marshal(of([]byte(value)))
	b = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
	for len(b) > 0 {
		n := min(len(b), frameMax)
		w.data(1, string(b[:n]), n == len(b))
		b = b[n:]
	}
	// As much of the answer as may wait does.
	blocked := func(n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			for end := time.Now().Add(time.Minute); ; runtime.Gosched() {
				c.mu.Lock()
				waiting := 0
				for _, st := range c.streams {
					if st.waiting {
						waiting++
					}
				}
				c.mu.Unlock()
				if waiting == n {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%d calls wait to send, want %d", waiting, n)
				}
			}
		}
	}
	blocked(1)
	w.open(3, "/test.Test/None", true)
	blocked(2)
	close(hold)
	for got := ""; !strings.HasPrefix(got, "HEADERS 3"); {
		if got = w.next(); got == "closed" || got == "nothing" {
			t.Fatalf("the end of the other call: %s", got)
		}
	}
}

// What waits for handlers is bounded for all streams of a connection together.
func TestWire_HeldIsBounded(t *testing.T) {
	s := wireServer(t, nil)
	s.held = 112_000
	w := newWire(t, s, nil)
	body := string([]byte{0, 0, 0, 0x40, 0}) + strings.Repeat("x", 1<<14-prefixSize)
	id := uint32(1)
	for ; ; id += 2 {
		w.open(id, "/test.Test/Echo", false)
		w.data(id, body, false)
		if id < 13 {
			continue
		}
		got := w.next()
		if want := fmt.Sprintf("HEADERS %d", id) + okHead + " grpc-status=8 grpc-message=more than 112000 bytes of this connection's requests wait"; !strings.HasPrefix(got, want) {
			t.Fatalf("got %s, want %s", got, want)
		}
		break
	}
	// Those that are given up make room.
	for i := uint32(1); i < id; i += 2 {
		w.write(func() error { return w.fr.WriteRSTStream(i, http2.ErrCodeCancel) })
	}
	w.open(id+2, "/test.Test/Echo", false)
	w.data(id+2, message("a"), true)
	for got := ""; got != fmt.Sprintf("HEADERS %d", id+2)+okTail; {
		if got = w.next(); got == "closed" || got == "nothing" {
			t.Fatal(got)
		}
	}
}

// Headers of calls that are open, and messages without a byte, count in that.
func TestWire_HeldCountsHeadersAndEmptyMessages(t *testing.T) {
	s := wireServer(t, nil)
	s.held = 100_000
	refused := " grpc-status=8 grpc-message=more than 100000 bytes of this connection's requests wait"
	w := newWire(t, s, nil)
	for id := uint32(1); id <= 13; id += 2 {
		w.open(id, "/test.Test/Echo", false, "x-long", strings.Repeat("x", 15_000))
	}
	if got := w.next(); !strings.HasPrefix(got, "HEADERS 13"+okHead+refused) {
		t.Fatalf("headers: got %s", got)
	}
	for id := uint32(1); id <= 11; id += 2 {
		w.write(func() error { return w.fr.WriteRSTStream(id, http2.ErrCodeCancel) })
	}
	w.open(15, "/test.Test/Echo", false)
	w.data(15, string(make([]byte, 3200*prefixSize)), false)
	if got := w.next(); !strings.HasPrefix(got, "HEADERS 15"+okHead+refused) {
		t.Fatalf("messages: got %s", got)
	}
	w.open(17, "/test.Test/Echo", false)
	w.data(17, message("a"), true)
	if got := w.next(); got != "HEADERS 17"+okHead {
		t.Fatalf("got %s", got)
	}
	// All that is over makes room, a moment after it has been answered.
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		for end := time.Now().Add(time.Minute); c.held.Held() != 0; runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatalf("%d bytes are held for nothing", c.held.Held())
			}
		}
	}
}

func TestWire_PaddingAndPriority(t *testing.T) {
	w := newWire(t, wireServer(t, nil), nil)
	w.write(func() error {
		return w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.request(1, "/test.Test/Echo"), EndHeaders: true, PadLength: 7, Priority: http2.PriorityParam{Weight: 3}})
	})
	w.write(func() error { return w.fr.WritePriority(1, http2.PriorityParam{Weight: 5}) })
	w.write(func() error { return w.fr.WriteRawFrame(0x77, 3, 5, []byte("of another specification")) })
	w.write(func() error { return w.fr.WriteDataPadded(1, false, []byte(message("ab"))[:4], make([]byte, 200)) })
	w.write(func() error { return w.fr.WriteDataPadded(1, false, []byte(message("ab"))[4:], make([]byte, 200)) })
	// Trailers end a request too.
	w.write(func() error {
		return w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.fields("x", "y"), EndHeaders: true, EndStream: true})
	})
	for _, want := range []string{"HEADERS 1" + okHead, fmt.Sprintf("DATA 1 %q", message("ab")), "HEADERS 1" + okTail} {
		if got := w.next(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestPing_TooManyEndTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := wireServer(t, nil)
		w := newWire(t, s, nil)
		ping := func(want string) {
			t.Helper()
			w.write(func() error { return w.fr.WritePing(false, [8]byte{}) })
			if got := w.next(); got != want {
				t.Fatalf("got %s, want %s", got, want)
			}
		}
		const ack = "PING ack=true"
		w.open(1, "/test.Test/Wait", false)
		w.data(1, message(""), true)
		for range 20 {
			// As often as it may with a call open.
			ping(ack)
			time.Sleep(5 * time.Second)
		}
		// An answer allows for one at once.
		id := uint32(3)
		for range 10 {
			w.open(id, "/test.Test/Echo", false)
			w.data(id, message(""), true)
			for range 3 {
				w.next()
			}
			ping(ack)
			id += 2
		}
		ping(ack)
		ping(ack)
		ping(ack)
		w.write(func() error { return w.fr.WritePing(false, [8]byte{}) })
		if got := w.next(); got == ack {
			got = w.next()
			if got != "GOAWAY ENHANCE_YOUR_CALM too_many_pings" {
				t.Errorf("got %s", got)
			}
		} else if got != "GOAWAY ENHANCE_YOUR_CALM too_many_pings" {
			t.Errorf("got %s", got)
		}
		_ = w.nc.Close()
		s.Close()
	})
}

// Without a call a client need not ask whether its connection is there, however seldom that is.
func TestPing_WithoutACallTooOftenIsSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, wireServer(t, nil), nil)
		for n := range pingStrikes + 2 {
			// The first is no matter of how long ago the last was.
			if n > 0 {
				time.Sleep(pingAlone - time.Second)
			}
			w.write(func() error { return w.fr.WritePing(false, [8]byte{}) })
			if got := w.next(); got != "PING ack=true" {
				t.Fatalf("ping %d: %s", n, got)
			}
		}
		if got := w.next(); got != "GOAWAY ENHANCE_YOUR_CALM too_many_pings" {
			t.Errorf("at the end: %s", got)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, wireServer(t, func(cfg *Config) { cfg.PingEvery = 100 * pingAlone }), nil)
		for range 10 {
			time.Sleep(pingAlone)
			w.write(func() error { return w.fr.WritePing(false, [8]byte{}) })
			if got := w.next(); got != "PING ack=true" {
				t.Fatalf("as often as it may: %s", got)
			}
		}
	})
}

func TestWire_SettingsAtTheirBounds(t *testing.T) {
	for _, set := range []http2.Setting{
		{ID: http2.SettingEnablePush, Val: 0}, {ID: http2.SettingEnablePush, Val: 1}, {ID: http2.SettingMaxFrameSize, Val: frameMax}, {ID: http2.SettingMaxFrameSize, Val: 1<<24 - 1},
		{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}, {ID: http2.SettingMaxHeaderListSize, Val: 0}, {ID: 0x77, Val: 5},
	} {
		w := newWire(t, wireServer(t, nil), nil, set)
		w.open(1, "/test.Test/Echo", false, "grpc-encoding", "identity")
		w.data(1, message("a"), true)
		for _, want := range []string{"HEADERS 1" + okHead, fmt.Sprintf("DATA 1 %q", message("a")), "HEADERS 1" + okTail} {
			if got := w.next(); got != want {
				t.Errorf("%v: got %s, want %s", set, got, want)
			}
		}
	}
}

func TestPing_SilentClientIsAskedAndThenDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := wireServer(t, nil)
		w := newWire(t, s, nil)
		synctest.Wait()
		began := time.Now()
		expect := func(want string, after time.Duration) {
			t.Helper()
			for got := range w.in {
				if strings.HasPrefix(got, "SETTINGS") || strings.HasPrefix(got, "WINDOW") {
					continue
				}
				if got != want || time.Since(began).Round(time.Second) != after {
					t.Fatalf("got %s after %v, want %s after %v", got, time.Since(began), want, after)
				}
				return
			}
			if want != "closed" || time.Since(began).Round(time.Second) != after {
				t.Fatalf("closed after %v, want %s after %v", time.Since(began), want, after)
			}
		}
		expect("PING ack=false", 2*time.Hour)
		time.Sleep(5 * time.Second)
		w.write(func() error { return w.fr.WritePing(true, [8]byte{}) })
		expect("PING ack=false", 4*time.Hour+5*time.Second)
		expect("closed", 4*time.Hour+25*time.Second)
		s.Close()
	})
}

// FuzzConn sends anything behind the client's preface: the connection ends when the client does, and nothing panics.
func FuzzConn(f *testing.F) {
	for _, kinds := range [][]byte{{0, 0, 0, 4, 0, 0, 0, 0, 0}, {0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}} {
		f.Add(kinds)
	}
	var seed bytes.Buffer
	w := &wire{fr: http2.NewFramer(&seed, nil)}
	w.enc = hpack.NewEncoder(&w.head)
	w.write(func() error { return w.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10}) })
	for i, path := range []string{"/test.Test/Echo", "/test.Test/Echoes", "/x"} {
		id := uint32(2*i + 1)
		w.open(id, path, false)
		w.data(id, message("abc"), true)
		w.write(func() error { return w.fr.WriteWindowUpdate(id, 1000) })
		f.Add(bytes.Clone(seed.Bytes()))
	}
	w.write(func() error { return w.fr.WriteRSTStream(3, http2.ErrCodeCancel) })
	w.write(func() error { return w.fr.WriteDataPadded(5, false, []byte{0, 0, 0, 0, 9}, make([]byte, 5)) })
	f.Add(bytes.Clone(seed.Bytes()))
	f.Fuzz(func(t *testing.T, b []byte) {
		cfg := config()
		cfg.StreamsMax = 50
		s := New(cfg)
		s.RegisterService(service(map[string]unary{"Echo": echo}, map[string]grpc.StreamHandler{"Echoes": echoes}), nil)
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); s.Serve(far) }()
		go func() { _, _ = io.Copy(io.Discard, near) }()
		_, _ = near.Write(append([]byte(http2.ClientPreface), b...))
		_ = near.Close()
		<-done
		s.Close()
	})
}

// A client that keeps to the bounds is never refused: the end of a call makes room for the next before it is told of it.
func TestWire_EndsMakeRoomBeforeTheyAreTold(t *testing.T) {
	s := wireServer(t, func(c *Config) { c.StreamsMax = 1 })
	s.held = 3_000
	w := newWire(t, s, nil)
	id := uint32(1)
	for range 1000 {
		w.open(id, "/test.Test/Echo", false, "x-long", strings.Repeat("x", 1500))
		w.data(id, message("a"), true)
		for _, want := range []string{fmt.Sprintf("HEADERS %d", id) + okHead, fmt.Sprintf("DATA %d %q", id, message("a")), fmt.Sprintf("HEADERS %d", id) + okTail} {
			if got := w.next(); got != want {
				t.Fatalf("got %s, want %s", got, want)
			}
		}
		id += 2
		// The same where the answer is that there is no such call.
		w.open(id, "/test.Test/None", true, "x-long", strings.Repeat("x", 1500))
		if got, want := w.next(), fmt.Sprintf("HEADERS %d", id)+okHead+" grpc-status=12"; !strings.HasPrefix(got, want) {
			t.Fatalf("got %s, want %s", got, want)
		}
		id += 2
	}
}

// Padding takes of the window (RFC 9113, section 6.1), and is no part of a message: a client that pads can send messages of any size all the same.
func TestWire_PaddedMessagesOfAnySize(t *testing.T) {
	for _, size := range []int{streamWindow - 1000, 1 << 20} {
		w := newWire(t, wireServer(t, nil), nil)
		w.open(1, "/test.Test/Echo", false)
		b, _ := proto.Marshal(of(bytes.Repeat([]byte("x"), size)))
		b = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
		window := streamWindow
		for len(b) > 0 {
			for window == 0 {
				window += w.credit(1)
			}
			// The last byte of a window has no room for the padding's length.
			if window == 1 {
				w.data(1, string(b[:1]), len(b) == 1)
				b, window = b[1:], 0
				continue
			}
			pad := min(255, window-2)
			n := min(len(b), 1000, window-1-pad)
			w.write(func() error { return w.fr.WriteDataPadded(1, n == len(b), b[:n], make([]byte, pad)) })
			b = b[n:]
			window -= 1 + n + pad
		}
		if got, want := w.next(), "HEADERS 1"+okHead; got != want {
			t.Errorf("a message of %d bytes: got %s, want %s", size, got, want)
		}
	}
}

// Of the sizes that a client gives its table between two headers, the smallest is what it must be told (RFC 7541, section 4.2).
func TestTable_TheSmallestSizeIsSaid(t *testing.T) {
	for _, c := range []struct {
		sizes []uint32
		want  []byte
	}{
		{[]uint32{200, 3000}, appendInt(nil, 0x20, 5, 200)},
		{[]uint32{3000, 200}, appendInt(nil, 0x20, 5, 200)},
		{[]uint32{0, 3000}, appendInt(nil, 0x20, 5, 0)},
		{[]uint32{200, 8192}, appendInt(nil, 0x20, 5, 200)},
		{[]uint32{8192}, nil},
	} {
		x := &conn{}
		x.initSender()
		for _, n := range c.sizes {
			x.tableSize(n)
		}
		if got := x.fields.begin(nil); !bytes.Equal(got, c.want) {
			t.Errorf("after %d: got %x, want %x", c.sizes, got, c.want)
		}
		if got := x.fields.begin(nil); len(got) > 0 {
			t.Errorf("after %d: said again: %x", c.sizes, got)
		}
	}
}
