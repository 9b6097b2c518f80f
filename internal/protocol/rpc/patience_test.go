package rpc

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
)

// patient is a server whose calls answer with so many bytes, and say when they have ended.
type patient struct {
	s     *Server
	ended chan string
}

func newPatient(t *testing.T, bytes int) *patient {
	p := &patient{s: New(config()), ended: make(chan string, 10_000)}
	note := func(ctx context.Context) {
		path := ctx.Value(streamKey{}).(*stream).path
		context.AfterFunc(ctx, func() { p.ended <- path })
	}
	p.s.RegisterService(service(map[string]unary{
		"Large": func(ctx context.Context, _ *blob) (*blob, error) { note(ctx); return of(make([]byte, bytes)), nil },
		"Echo":  echo,
	}, map[string]grpc.StreamHandler{
		"Larges": func(_ any, ss grpc.ServerStream) error {
			note(ss.Context())
			for {
				if err := ss.RecvMsg(&blob{}); err != nil {
					return err
				}
				if err := ss.SendMsg(of(make([]byte, bytes))); err != nil {
					return err
				}
			}
		},
	}), nil)
	t.Cleanup(p.s.Close)
	return p
}

// open says whether no call has ended.
func (p *patient) open() bool { return len(p.ended) == 0 }

// seen is what a client has got: data by stream, and the rest by its description.
type seen struct {
	data map[uint32]int
	rest []string
}

// look takes in what has come until nothing more does.
func (w *wire) look(got *seen) {
	if got.data == nil {
		got.data = map[uint32]int{}
	}
	for synctest.Wait(); ; {
		select {
		case s, ok := <-w.in:
			var id uint32
			var data string
			switch n, _ := fmt.Sscanf(s, "DATA %d %q", &id, &data); {
			case !ok:
				got.rest = append(got.rest, "closed")
				return
			case n == 2:
				got.data[id] += len(data)
			case !strings.HasPrefix(s, "SETTINGS") && !strings.HasPrefix(s, "WINDOW") && !strings.HasPrefix(s, "HEADERS") || strings.Contains(s, "grpc-status"):
				got.rest = append(got.rest, s)
			}
		default:
			return
		}
	}
}

func (s *seen) last() string {
	if len(s.rest) == 0 {
		return "nothing"
	}
	return s.rest[len(s.rest)-1]
}

const tookTooLong = " grpc-status=14 grpc-message=the client took less than 65536 bytes of this answer in 1m0s END"

// A client that gives no window for an answer loses the call, and nothing else.
func TestPatience_StreamsWindow(t *testing.T) {
	for _, path := range []string{"/test.Test/Large", "/test.Test/Larges"} {
		synctest.Test(t, func(t *testing.T) {
			p := newPatient(t, 1<<20)
			w := newWire(t, p.s, nil, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
			got := &seen{}
			w.open(1, path, false)
			w.data(1, message(""), path == "/test.Test/Large")
			time.Sleep(59 * time.Second)
			if w.look(got); got.data[1] != 10 || len(got.rest) != 0 || !p.open() {
				t.Fatalf("got %v", got)
			}
			time.Sleep(2 * time.Second)
			if w.look(got); got.rest[0] != "HEADERS 1"+tookTooLong || p.open() {
				t.Fatalf("got %v", got)
			}
			w.open(3, "/test.Test/Echo", false)
			w.data(3, message("a"), true)
			if w.look(got); got.last() != "HEADERS 3"+okTail {
				t.Fatalf("got %v", got)
			}
		})
	}
}

// What counts is 64 KiB within a minute, not that there is any progress.
func TestPatience_Trickle(t *testing.T) {
	for step, ok := range map[int]bool{1: false, 5_000: false, 20_000: true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPatient(t, 300_000)
			w := newWire(t, p.s, nil, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			got := &seen{}
			w.open(1, "/test.Test/Large", false)
			w.data(1, message(""), true)
			for i := 0; i < 1000 && len(got.rest) == 0; i++ {
				time.Sleep(10 * time.Second)
				if p.open() {
					w.write(func() error { return w.fr.WriteWindowUpdate(1, uint32(step)) })
					w.write(func() error { return w.fr.WriteWindowUpdate(0, uint32(step)) })
				}
				w.look(got)
			}
			want := "HEADERS 1" + tookTooLong
			if ok {
				want = "HEADERS 1" + okTail
			}
			if got.last() != want {
				t.Errorf("%d bytes each ten seconds: got %v", step, got)
			}
		})
	}
}

// While others want room a large answer has its time in all, a small one as ever.
func TestPatience_TrickleWhileRoomIsScarce(t *testing.T) {
	for _, c := range []struct {
		bytes  int
		scarce bool
		want   string
	}{
		{2 << 20, false, okTail},
		{2 << 20, true, " grpc-status=14 grpc-message=the client has not taken this answer within 1m0s, and others want room; ask for less at a time END"},
		{500_000, true, okTail},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPatient(t, c.bytes)
			p.s.cfg.Scarce = func() bool { return c.scarce }
			w := newWire(t, p.s, nil, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			got := &seen{}
			w.open(1, "/test.Test/Large", false)
			w.data(1, message(""), true)
			began := time.Now()
			for i := 0; i < 1000 && len(got.rest) == 0; i++ {
				time.Sleep(10 * time.Second)
				if p.open() {
					w.write(func() error { return w.fr.WriteWindowUpdate(1, 20_000) })
					w.write(func() error { return w.fr.WriteWindowUpdate(0, 20_000) })
				}
				w.look(got)
			}
			if took := time.Since(began); got.last() != "HEADERS 1"+c.want || c.want != okTail && took > 2*time.Minute {
				t.Errorf("%d bytes, scarce %v: got %v after %v", c.bytes, c.scarce, got, took)
			}
		})
	}
}

// The window that all calls share is a matter of the connection.
func TestPatience_ConnectionsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t, 1<<20)
		w := newWire(t, p.s, nil, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
		got := &seen{}
		for id := uint32(1); id < 20; id += 2 {
			w.open(id, "/test.Test/Large", false)
			w.data(id, message(""), true)
		}
		time.Sleep(59 * time.Second)
		if w.look(got); len(got.rest) != 0 || !p.open() {
			t.Fatalf("got %v", got)
		}
		time.Sleep(3 * time.Second)
		if w.look(got); p.open() {
			// With its frames' heads the first window is a piece. If all calls were waiting before any of it was sent, it has bought them a minute.
			time.Sleep(time.Minute)
			w.look(got)
		}
		if len(got.rest) != 2 || got.rest[0] != "GOAWAY ENHANCE_YOUR_CALM the client takes no more data" || got.rest[1] != "closed" || len(p.ended) != 10 {
			t.Fatalf("got %v, %d calls ended", got, len(p.ended))
		}
	})
}

// Whoever waits for the turn of others has all the time in the world.
func TestPatience_SlowButSteadyConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const calls, size = 40, 100_000
		p := newPatient(t, size)
		w := newWire(t, p.s, nil, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
		got := &seen{}
		for id := uint32(1); id < 2*calls; id += 2 {
			w.open(id, "/test.Test/Large", false)
			w.data(id, message(""), true)
		}
		minutes := 0
		for ; minutes < 1000 && len(got.rest) < calls; minutes++ {
			time.Sleep(55 * time.Second)
			w.write(func() error { return w.fr.WriteWindowUpdate(0, pieceBytes) })
			w.look(got)
		}
		for _, s := range got.rest {
			if !strings.HasSuffix(s, okTail) {
				t.Errorf("got %s", s)
			}
		}
		if len(got.rest) != calls || minutes < calls {
			t.Errorf("%d of %d calls have ended after %d minutes", len(got.rest), calls, minutes)
		}
	})
}

// A client whose socket takes nothing loses the connection.
func TestPatience_Socket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t, 1<<20)
		hold := make(chan struct{})
		w := newWire(t, p.s, hold, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
		w.write(func() error { return w.fr.WriteWindowUpdate(0, 1<<30) })
		w.open(1, "/test.Test/Large", false)
		w.data(1, message(""), true)
		time.Sleep(59 * time.Second)
		if synctest.Wait(); !p.open() {
			t.Error("ended too early")
		}
		time.Sleep(20 * time.Second)
		if synctest.Wait(); p.open() {
			t.Error("the call has not ended")
		}
		select {
		case <-w.done:
		default:
			t.Error("the connection has not ended")
		}
		close(hold)
	})
}

// Nothing is asked of a client while there is nothing to send to it, however long that is, and whatever windows it has left.
func TestPatience_IdleStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 30_000
		p := newPatient(t, size)
		w := newWire(t, p.s, nil, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		got := &seen{}
		w.open(1, "/test.Test/Larges", false)
		for n := range 10 {
			time.Sleep(time.Hour)
			w.write(func() error { return w.fr.WritePing(true, [8]byte{}) })
			w.data(1, message(""), false)
			time.Sleep(40 * time.Second)
			w.write(func() error { return w.fr.WriteWindowUpdate(1, size+9) })
			w.write(func() error { return w.fr.WriteWindowUpdate(0, size+9) })
			if w.look(got); got.data[1] < (n+1)*size || !p.open() {
				t.Fatalf("after %d messages: got %v", n+1, got)
			}
		}
	})
}
