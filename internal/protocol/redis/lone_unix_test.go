//go:build unix

package redis

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// asked is a client that keeps reads that nobody waits for until they are let go.
type asked struct {
	*shardtest.Client
	mu   sync.Mutex
	held []func()
	// hold says that they are kept; else each is answered by another goroutine at once.
	hold  bool
	count int
	wg    sync.WaitGroup
}

func (a *asked) Ask(ctx context.Context, r shard.Route, at shard.Consistency, q shard.Command, then func([]byte, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.count++
	answer := func() { then(a.Query(ctx, r, at, q)) }
	if a.hold {
		a.held = append(a.held, answer)
		return
	}
	a.wg.Go(answer)
}

func (a *asked) set(hold bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hold = hold
}

// release answers the read that has been held for the longest, and waits for one if there is none.
func (a *asked) release(t *testing.T) {
	t.Helper()
	a.await(t)
	a.mu.Lock()
	f := a.held[0]
	a.held = a.held[1:]
	a.mu.Unlock()
	f()
}

// await waits until a read is held.
func (a *asked) await(t *testing.T) {
	t.Helper()
	eventually(t, "a read is under way", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.held) > 0
	})
}

func (a *asked) asks() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.count
}

// leavingRig serves connections that leave their first read already to others.
func leavingRig(t *testing.T, cfg Config) (*rig, *asked) {
	t.Helper()
	a := &asked{Client: shardtest.New(t, shardtest.Options{}, datatypes.New(datatypes.Config{}))}
	if cfg.leaveMin == 0 {
		cfg.leaveMin = 1
	}
	cfg.loneMin, cfg.gatherMin = 1000, 1000
	r := serveOn(t, a.Client, a, cfg)
	t.Cleanup(a.wg.Wait)
	return r, a
}

// waits says whether the only connection's goroutine waits for the answer to a read that it had left.
func (r *rig) waits() bool {
	l := r.s.conns.Open()[0].left.Load()
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state == loneWanted
}

// leave makes the client's read one that is held.
func (c *client) leave(a *asked) {
	c.t.Helper()
	a.set(true)
	c.send(string(encode("get", "k")))
}

func TestLone_AnswersWhatEachAskedFor(t *testing.T) {
	r, a := leavingRig(t, Config{askingMax: 5})
	const clients, rounds = 10, 100
	r.readersAndWriters(clients, rounds)
	if n := a.asks(); n < clients*rounds {
		t.Errorf("%d reads were left to others", n)
	}
	if n := r.s.asking.Load(); n != 0 {
		t.Errorf("%d reads count as under way", n)
	}
}

func TestLone_OnlyThoseWhoKeepToReading(t *testing.T) {
	r, a := leavingRig(t, Config{leaveMin: 3})
	c := r.dial()
	for _, line := range []string{"set k v", "get k", "get k", "set k v", "get k", "get k", "ping", "get k", "mget k k", "hscan h 0", "get k", "get k"} {
		c.want(line, "...")
		if n := a.asks(); n != 0 {
			t.Fatalf("left after %s", line)
		}
	}
	c.want("get k", `"v"`)
	c.want("strlen k", ":1")
	if n := a.asks(); n != 2 {
		t.Errorf("%d of two reads were left to others", n)
	}
	c.want("readonly", "+OK")
	c.want("get k", `"v"`)
	if n := a.asks(); n != 2 {
		t.Error("a read that need not be linearizable was left to others")
	}
}

func TestLone_OnlyWhenFewAsk(t *testing.T) {
	r, a := leavingRig(t, Config{})
	c1, c2, c3 := r.dial(), r.dial(), r.dial()
	c1.want("set k v", "+OK")
	c1.leave(a)
	c2.leave(a)
	eventually(t, "two reads are under way", func() bool { return a.asks() == 2 })
	c3.want("get k", `"v"`)
	if n := a.asks(); n != 2 {
		t.Errorf("%d reads were left to others while two were under way", n)
	}
	a.release(t)
	a.release(t)
	if a, b := c1.recv(), c2.recv(); a != `"v"` || b != `"v"` {
		t.Errorf("got %s and %s", a, b)
	}
}

func TestLone_MoreInputBehindARead(t *testing.T) {
	r, a := leavingRig(t, Config{})
	c := r.dial()
	c.want("set k v", "+OK")
	get := string(encode("get", "k"))
	for _, tc := range []struct{ behind, rest, want string }{
		{get, "", `"v"`}, {string(encode("set", "k", "v")), "", "+OK"}, {get[:9], get[9:], `"v"`}, {string(encode("ping")), "", "+PONG"},
	} {
		c.leave(a)
		a.await(t)
		c.send(tc.behind)
		a.set(false)
		eventually(t, "the connection waits for the answer", r.waits)
		a.release(t)
		c.send(tc.rest)
		if got := c.recv() + " " + c.recv(); got != `"v" `+tc.want {
			t.Errorf("%q behind a read: got %s", tc.behind, got)
		}
	}
}

func TestLone_TimeLimit(t *testing.T) {
	r, a := leavingRig(t, Config{RequestTimeout: 50 * time.Millisecond})
	c := r.dial()
	c.want("set k v", "+OK")
	get := string(encode("get", "k"))
	for _, behind := range []string{"", get, get[:9]} {
		c.leave(a)
		a.await(t)
		a.set(false)
		c.send(behind)
		if got := c.recv(); !strings.HasPrefix(got, "-CLUSTERDOWN not available, nothing was done: the read was not confirmed within the time limit") {
			t.Errorf("got %s", got)
		}
		if behind == get[:9] {
			c.send(get[9:])
		}
		if behind != "" {
			if got := c.recv(); got != `"v"` {
				t.Errorf("behind it: got %s", got)
			}
		}
		// Nobody wants this answer any more.
		a.release(t)
		c.want("get k", `"v"`)
	}
	if n := r.s.asking.Load(); n != 0 {
		t.Errorf("%d reads count as under way", n)
	}
}

func TestLone_AnswerOfAClientThatSendsNoMore(t *testing.T) {
	r, a := leavingRig(t, Config{})
	c := r.dial()
	c.want("set k v", "+OK")
	c.leave(a)
	a.await(t)
	if err := c.nc.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the input is seen", r.waits)
	a.release(t)
	if got := c.recv(); got != `"v"` || !c.closed() {
		t.Errorf("got %s", got)
	}
}

func TestLone_AnswerThatFindsNoRoom(t *testing.T) {
	r, a := leavingRig(t, Config{})
	c := r.dial()
	if err := c.nc.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 7<<20)
	c.want("set k "+big, "+OK")
	for range 3 {
		c.send(string(encode("get", "k")))
		eventually(t, "the connection's goroutine writes", func() bool { return r.s.conns.Open()[0].writingSince.Load() != 0 })
		if got := c.recv(); got != strconv.Quote(big) {
			t.Fatalf("got %d bytes", len(got))
		}
	}
	c.want("strlen k", ":"+strconv.Itoa(len(big)))
	if n := a.asks(); n != 4 {
		t.Errorf("%d of four reads were left to others", n)
	}
}

func TestLone_Close(t *testing.T) {
	for _, answered := range []bool{true, false} {
		t.Run(fmt.Sprint("answered ", answered), func(t *testing.T) {
			closeTimeout := time.Minute
			if !answered {
				closeTimeout = 20 * time.Millisecond
			}
			r, a := leavingRig(t, Config{CloseTimeout: closeTimeout})
			c := r.dial()
			c.want("set k v", "+OK")
			c.leave(a)
			a.await(t)
			var wg sync.WaitGroup
			wg.Go(r.s.Close)
			want := "-CLUSTERDOWN"
			if answered {
				want = `"v"`
				a.release(t)
			}
			got, err := c.try()
			if answered && (err != nil || got != want) || !answered && err == nil && !strings.HasPrefix(got, want) {
				t.Errorf("got %s, %v; want %s", got, err, want)
			}
			if !c.closed() {
				t.Error("the connection is open")
			}
			wg.Wait()
			if !answered {
				a.release(t)
			}
		})
	}
}

// Whoever answers must not write to another connection that has the descriptor by now.
func TestLone_ClientsThatLeave(t *testing.T) {
	r, a := leavingRig(t, Config{RequestTimeout: 30 * time.Millisecond, askingMax: 1 << 30})
	w := r.dial()
	w.want("set k wrong", "+OK")
	w.want("set other right", "+OK")
	a.set(true)
	for range 20 {
		gone := r.dial()
		gone.send(string(encode("get", "k")))
		a.await(t)
		if err := gone.nc.(*net.TCPConn).SetLinger(0); err != nil {
			t.Fatal(err)
		}
		_ = gone.nc.Close()
		eventually(t, "the connection is gone", func() bool { return r.s.conns.Len() == 1 })
		c := r.dial()
		c.want("ping", "+PONG")
		a.release(t)
		c.want("set other right", "+OK")
		_ = c.nc.Close()
		eventually(t, "the connection is gone", func() bool { return r.s.conns.Len() == 1 })
	}
}

func TestLone_NotOverPipes(t *testing.T) {
	r, a := leavingRig(t, Config{})
	r.dial().want("ping", "+PONG")
	mine, theirs := net.Pipe()
	r.s.ServeConn(theirs)
	for range 3 {
		if _, err := mine.Write(encode("exists", "k")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4)
		if _, err := io.ReadFull(mine, b); err != nil || string(b) != ":0\r\n" {
			t.Errorf("got %q, %v", b, err)
		}
	}
	if n := a.asks(); n != 0 {
		t.Errorf("%d answers were left to others, who cannot write them", n)
	}
	_ = mine.Close()
}
