package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
)

// pong answers the ping by which a server asks whether a client has heard that it closes.
func (w *wire) pong() { w.write(func() error { return w.fr.WritePing(true, leavePing) }) }

func TestClose_TellsTheClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		cfg := config()
		cfg.CloseTimeout = 2 * time.Second
		s := New(cfg)
		s.RegisterService(service(map[string]unary{"Slow": func(_ context.Context, in *blob) (*blob, error) { <-release; return in, nil }}, nil), nil)
		w := newWire(t, s, nil)
		w.open(1, "/test.Test/Slow", false)
		w.data(1, message("a"), true)
		synctest.Wait()
		closed := make(chan struct{})
		go func() { s.Close(); close(closed) }()
		expect := func(wants ...string) {
			t.Helper()
			for _, want := range wants {
				if got := w.next(); got != want {
					t.Fatalf("got %s, want %s", got, want)
				}
			}
		}
		// The first says that the server closes, and not yet which call was the last.
		expect("GOAWAY NO_ERROR 2147483647 ", "PING ack=false")
		w.open(3, "/test.Test/Slow", false)
		w.data(3, message("b"), true)
		w.pong()
		expect("GOAWAY NO_ERROR 3 ")
		// This one was sent against what the client has heard.
		w.open(5, "/test.Test/Slow", false)
		expect("RST 5 REFUSED_STREAM")
		time.Sleep(time.Second)
		close(release)
		got := []string{}
		for range 6 {
			got = append(got, w.next())
		}
		for _, id := range []int{1, 3} {
			if !strings.Contains(strings.Join(got, "\n"), fmt.Sprintf("HEADERS %d", id)+okTail) {
				t.Errorf("call %d: got %q", id, got)
			}
		}
		expect("closed")
		<-closed
	})
}

// Calls that take too long are cancelled, and told why.
func TestClose_CutsOffWhatTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.CloseTimeout = 2 * time.Second
		s := New(cfg)
		s.RegisterService(service(map[string]unary{
			"Wait": func(ctx context.Context, _ *blob) (*blob, error) { <-ctx.Done(); return nil, ctx.Err() },
			"Own": func(ctx context.Context, _ *blob) (*blob, error) {
				<-ctx.Done()
				return nil, status.Error(codes.Aborted, "own")
			},
		}, map[string]grpc.StreamHandler{"Echoes": echoes}), nil)
		w := newWire(t, s, nil)
		for i, path := range []string{"/test.Test/Wait", "/test.Test/Own", "/test.Test/Echoes"} {
			w.open(uint32(2*i+1), path, false)
			w.data(uint32(2*i+1), message("a"), i < 2)
		}
		// Of these calls there is less than their requests, so that no handler has begun.
		w.open(7, "/test.Test/Wait", false)
		w.open(9, "/test.Test/Wait", false)
		w.data(9, message("abc")[:6], false)
		synctest.Wait()
		began := time.Now()
		s.Close()
		if took := time.Since(began); took != cfg.CloseTimeout {
			t.Errorf("it took %v", took)
		}
		var got []string
		for s := range w.in {
			got = append(got, s)
		}
		all := strings.Join(got, "\n")
		for _, want := range []string{
			"HEADERS 1" + okHead + " grpc-status=14 grpc-message=the server has stopped END", "HEADERS 3" + okHead + " grpc-status=10 grpc-message=own END",
			"HEADERS 5 grpc-status=14 grpc-message=the server has stopped END",
			"HEADERS 7" + okHead + " grpc-status=14 grpc-message=the server has stopped END", "HEADERS 9" + okHead + " grpc-status=14 grpc-message=the server has stopped END",
			"GOAWAY NO_ERROR 9 ",
		} {
			if !strings.Contains(all, want) {
				t.Errorf("no %q in\n%s", want, all)
			}
		}
	})
}

// Clients that have nothing open, or have not begun, hold nothing up.
func TestClose_AtOnceIfNothingIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.CloseTimeout = time.Minute
		s := New(cfg)
		s.RegisterService(service(map[string]unary{"Echo": echo}, nil), nil)
		w := newWire(t, s, nil)
		near, far := net.Pipe()
		go s.Serve(far)
		go func() { _, _ = io.Copy(io.Discard, near) }()
		synctest.Wait()
		began := time.Now()
		go func() {
			for got := range w.in {
				if strings.HasPrefix(got, "PING") {
					w.pong()
				}
			}
		}()
		s.Close()
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %v", took)
		}
	})
}

// A client of its own that has two servers makes calls without end while one of them closes and comes back: none fails.
func TestClose_NoCallFails(t *testing.T) {
	var late atomic.Int64
	d := service(map[string]unary{"Echo": func(ctx context.Context, in *blob) (*blob, error) {
		if late.Add(1)%10 == 0 {
			time.Sleep(time.Millisecond)
		}
		return in, nil
	}}, nil)
	type node struct {
		s    *Server
		ln   net.Listener
		addr string
	}
	up := func(addr string) node {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		cfg := config()
		cfg.CloseTimeout = 10 * time.Second
		s := New(cfg)
		s.RegisterService(d, nil)
		go acceptAll(s, ln)
		return node{s, ln, ln.Addr().String()}
	}
	nodes := [2]node{up("127.0.0.1:0"), up("127.0.0.1:0")}
	names := manual.NewBuilderWithScheme("nodes")
	names.InitialState(resolver.State{Addresses: []resolver.Address{{Addr: nodes[0].addr}, {Addr: nodes[1].addr}}})
	c, err := grpc.NewClient("nodes:///x", grpc.WithResolvers(names), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: time.Millisecond, MaxDelay: time.Millisecond}, MinConnectTimeout: time.Minute}),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin":{}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // nothing is open
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := call(context.Background(), c, "Echo", []byte("x")); err != nil {
					t.Errorf("a call failed: %v", err)
					return
				}
			}
		})
	}
	for i := range 10 {
		n := &nodes[i%2]
		time.Sleep(10 * time.Millisecond)
		_ = n.ln.Close()
		n.s.Close()
		*n = up(n.addr)
		// Until the client has both again.
		for end := time.Now().Add(time.Minute); c.GetState() != connectivity.Ready || !n.s.hasConns(); time.Sleep(time.Millisecond) {
			c.Connect()
			names.UpdateState(resolver.State{Addresses: []resolver.Address{{Addr: nodes[0].addr}, {Addr: nodes[1].addr}}})
			if time.Now().After(end) {
				t.Fatal("no connection after a minute")
			}
		}
	}
	close(stop)
	wg.Wait()
	for _, n := range nodes {
		_ = n.ln.Close()
		n.s.Close()
	}
}

func (s *Server) hasConns() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns) > 0
}

// What a client was told last arrives although it has sent more than was read.
func TestHangUp_LastWordsArrive(t *testing.T) {
	for range 20 {
		_, addr := start(t, config(), service(map[string]unary{"Echo": echo}, nil))
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		fr := http2.NewFramer(nc, nc)
		fr.AllowIllegalWrites = true
		_, _ = io.WriteString(nc, http2.ClientPreface)
		_ = fr.WriteSettings()
		_ = fr.WriteWindowUpdate(0, 0)
		for range 1000 {
			if fr.WriteRawFrame(0x77, 0, 0, make([]byte, 1000)) != nil {
				break
			}
		}
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatalf("the connection ended without a word: %v", err)
			}
			if g, ok := f.(*http2.GoAwayFrame); ok {
				if g.ErrCode != http2.ErrCodeProtocol {
					t.Errorf("got %v", g)
				}
				break
			}
		}
		if _, err := fr.ReadFrame(); !errors.Is(err, io.EOF) {
			t.Errorf("the connection ended with %v", err)
		}
		_ = nc.Close()
	}
}
