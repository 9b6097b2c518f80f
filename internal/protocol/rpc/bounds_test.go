package rpc

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
)

// What is not said, or not sent, to a client that keeps to the protocol: more data than it takes, frames of streams that it has given up, and the end
// before it has heard that there will be one.

// Small answers share the connection's window, as large ones do, although they are sent together with the end of their calls.
func TestWire_SmallAnswersStayWithinTheConnectionsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, wireServer(t, nil), nil, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
		const answers, size = 8, 10_000
		request := "\x00\x00\x00\x27\x13" + "\x0a\x90\x4e" + strings.Repeat("x", size)
		// took counts the bytes of data that came, and ended the calls that have ended, until nothing more comes.
		took, ended := 0, 0
		look := func() {
			synctest.Wait()
			for len(w.in) > 0 {
				s := <-w.in
				var id int
				var b string
				if n, _ := fmt.Sscanf(s, "DATA %d %q", &id, &b); n == 2 {
					took += len(b)
				}
				if strings.HasSuffix(s, okTail) {
					ended++
				}
			}
		}
		for i := range uint32(answers) {
			w.open(2*i+1, "/test.Test/Echo", false)
			w.data(2*i+1, request, true)
			synctest.Wait()
		}
		look()
		whole := defaultWindow / (size + prefixSize + 3)
		if ended != whole || took > defaultWindow {
			t.Errorf("%d bytes of %d answers, want %d answers and no more than %d bytes", took, ended, whole, defaultWindow)
		}
		w.write(func() error { return w.fr.WriteWindowUpdate(0, 1<<20) })
		if look(); ended != answers {
			t.Errorf("%d answers when there is room, want %d", ended, answers)
		}
	})
}

// A call that the client has given up is not heard of any more, whatever its handler still sends.
func TestWire_NothingIsSentOfAResetStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, sent := make(chan struct{}), make(chan error, 2)
		s := New(config())
		s.RegisterService(service(map[string]unary{"Echo": echo}, map[string]grpc.StreamHandler{
			"Late": func(_ any, ss grpc.ServerStream) error {
				<-release
				sent <- ss.SendMsg(of([]byte("a")))
				return nil
			},
		}), nil)
		t.Cleanup(s.Close)
		w := newWire(t, s, nil)
		w.open(1, "/test.Test/Late", true)
		synctest.Wait()
		w.write(func() error { return w.fr.WriteRSTStream(1, http2.ErrCodeCancel) })
		synctest.Wait()
		close(release)
		if err := <-sent; err == nil {
			t.Error("the handler was not told that nobody hears it")
		}
		synctest.Wait()
		w.open(3, "/test.Test/Echo", false)
		w.data(3, message("b"), true)
		if got := w.next(); got != "HEADERS 3"+okHead {
			t.Errorf("got %s", got)
		}
	})
}

// Calls whose requests are not complete count among those that are open: they take memory.
func TestWire_UnfinishedCallsAreBounded(t *testing.T) {
	w := newWire(t, wireServer(t, func(c *Config) { c.StreamsMax = 3 }), nil)
	for id := uint32(1); id <= 7; id += 2 {
		w.open(id, "/test.Test/Echo", false)
	}
	if got := w.next(); got != "RST 7 REFUSED_STREAM" {
		t.Errorf("got %s", got)
	}
	w.data(3, message("a"), true)
	if got := w.next(); got != "HEADERS 3"+okHead {
		t.Errorf("got %s", got)
	}
}

// A client that has been told of the end has heard of it when it answers the ping behind that, and not when it answers another one.
func TestClose_AnotherPongSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := wireServer(t, nil)
		w := newWire(t, s, nil)
		w.open(1, "/test.Test/Wait", false)
		w.data(1, message(""), true)
		synctest.Wait()
		s.Leave()
		for _, want := range []string{"GOAWAY NO_ERROR 2147483647 ", "PING ack=false"} {
			if got := w.next(); got != want {
				t.Fatalf("got %s, want %s", got, want)
			}
		}
		w.write(func() error { return w.fr.WritePing(true, stillThere) })
		w.open(3, "/test.Test/Echo", false)
		w.data(3, message("a"), true)
		if got := w.next(); got != "HEADERS 3"+okHead {
			t.Errorf("a call that was sent before the client heard of the end: %s", got)
		}
		w.write(func() error { return w.fr.WriteRSTStream(1, http2.ErrCodeCancel) })
	})
}

// Who is answered by an HTTP status before it has said all is told to say no more, and one that has said all is not.
func TestWire_PlainAnswersStopTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, wireServer(t, nil), nil)
		for _, c := range []struct {
			id   uint32
			end  bool
			want []string
		}{
			{1, false, []string{"HEADERS 1 :status=415 END", "RST 1 NO_ERROR"}},
			{3, true, []string{"HEADERS 3 :status=415 END"}},
		} {
			w.write(func() error {
				return w.fr.WriteHeaders(http2.HeadersFrameParam{
					StreamID: c.id, BlockFragment: w.fields(":method", "POST", ":scheme", "http", ":path", "/test.Test/Echo", "content-type", "text/plain"), EndHeaders: true, EndStream: c.end,
				})
			})
			synctest.Wait()
			var got []string
			for len(w.in) > 0 {
				if s := <-w.in; strings.HasPrefix(s, "HEADERS") || strings.HasPrefix(s, "RST") {
					got = append(got, s)
				}
			}
			if strings.Join(got, ", ") != strings.Join(c.want, ", ") {
				t.Errorf("got %q, want %q", got, c.want)
			}
		}
	})
}
