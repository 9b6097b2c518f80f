package redis

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// gathered counts the connections that gatherers have.
func (s *Server) gathered() int {
	n := 0
	for _, c := range s.conns.Open() {
		if c.gathering.state.Load() != gatherNot {
			n++
		}
	}
	return n
}

// gather makes a gatherer serve the connection, which must be the only one.
func (c *client) gather(r *rig) {
	c.t.Helper()
	for range r.s.cfg.loneMin {
		c.want("get nothing", "nil")
	}
	eventually(c.t, "the connection is gathered", func() bool { return r.s.gathered() == 1 })
}

func TestGather_AnswersWhatEachAskedFor(t *testing.T) {
	for _, shards := range []int{1, 3} {
		t.Run(fmt.Sprint(shards), func(t *testing.T) {
			r := newRig(t, shardtest.Options{Shards: shards}, Config{loneMin: 3})
			const clients, rounds = 40, 60
			r.readersAndWriters(clients, rounds)
			eventually(t, "the readers are gathered", func() bool { return r.s.gathered() == clients })
			r.s.Close()
			if n := r.s.gathered(); n != 0 {
				t.Errorf("%d connections are gathered after Close", n)
			}
		})
	}
}

func TestGather_OnlyThoseWhoKeepToReading(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{loneMin: 3})
	c := r.dial()
	for _, line := range []string{"set k v", "get k", "get k", "set k v", "get k", "get k", "ping", "get k", "mget k k", "hscan h 0", "get k", "get k"} {
		c.want(line, "...")
		if n := r.s.gathered(); n != 0 {
			t.Fatalf("gathered after %s", line)
		}
	}
	c.gather(r)
}

func TestGather_OnlyWhereThereAreMany(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{gatherMin: 3, PartialTimeout: 40 * time.Millisecond})
	c, other := r.dial(), r.dial()
	for range 10 {
		c.want("get nothing", "nil")
		other.want("get nothing", "nil")
	}
	if n := r.s.gathered(); n != 0 {
		t.Fatalf("%d of two connections are gathered", n)
	}
	third := r.dial()
	third.want("ping", "+PONG")
	c.gather(r)
	_ = third.nc.Close()
	eventually(t, "the connection is given back", func() bool { return r.s.gathered() == 0 })
	c.want("get nothing", "nil")
}

func TestGather_GivesBackWhatItDoesNotServe(t *testing.T) {
	get := string(encode("get", "k"))
	long := strings.Repeat("x", 5000)
	// As long as the buffer that it is read into.
	full := string(encode("get", strings.Repeat("x", 4000)))
	full = string(encode("get", strings.Repeat("x", 4000+bufferBytesMin-len(full))))
	for _, tc := range []struct {
		name, send string
		want       []string
		ends       bool
	}{
		{"a write", string(encode("set", "k", "w")), []string{"+OK"}, false},
		{"two reads", get + get, []string{`"v"`, `"v"`}, false},
		{"a read and a half", get + get[:9], []string{`"v"`}, false},
		{"an empty request before a read", "*0\r\n" + get, []string{`"v"`}, false},
		{"an empty request", "*0\r\n", nil, false},
		{"an empty line", "\r\n", nil, false},
		{"an inline request", "GET k\r\n", []string{`"v"`}, false},
		{"an inline request with a bad quote", "GET \"k\r\n", []string{"-ERR Protocol error: unbalanced quotes in request"}, true},
		{"an unknown command", string(encode("nosuch", "k")), []string{"-ERR unknown command 'nosuch', with args beginning with: 'k' "}, false},
		{"no argument", string(encode("get")), []string{"-ERR wrong number of arguments for 'get' command"}, false},
		{"a long request", string(encode("mget", long, "k")), []string{`[nil "v"]`}, false},
		{"a request as long as the buffer, and another", full + get, []string{"nil", `"v"`}, false},
		{"a long read of another kind", string(encode("keys", "k")), []string{`["k"]`}, false},
		{"a connection command", string(encode("ping")), []string{"+PONG"}, false},
		{"a bad length", "*x\r\n", []string{"-ERR Protocol error: invalid multibulk length"}, true},
		{"a bad argument", "*1\r\n:3\r\n", []string{"-ERR Protocol error: expected '$', got ':'"}, true},
		{"a read and a bad argument", get + "*1\r\n:3\r\n", []string{`"v"`, "-ERR Protocol error: expected '$', got ':'"}, true},
		{"the end", string(encode("quit")), []string{"+OK"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, shardtest.Options{}, Config{})
			c := r.dial()
			c.want("set k v", "+OK")
			c.gather(r)
			c.send(tc.send)
			for _, want := range tc.want {
				if got := c.recv(); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			}
			switch {
			case tc.ends:
				if !c.closed() {
					t.Error("the connection is open")
				}
				return
			case strings.HasSuffix(tc.send, get[:9]):
				c.send(get[9:])
				if got := c.recv(); got != `"v"` {
					t.Errorf("the other half got %s", got)
				}
			}
			c.gather(r)
		})
	}
}

func TestGather_EndOfInput(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	for _, last := range []string{"", string(encode("get", "nothing")), string(encode("get", "nothing"))[:7]} {
		c := r.dial()
		c.gather(r)
		c.send(last)
		_ = c.nc.(*net.TCPConn).CloseWrite()
		got, err := io.ReadAll(c.r)
		if want := map[bool]string{true: "$-1\r\n"}[len(last) > 7]; err != nil || string(got) != want {
			t.Errorf("after %q: got %q, %v", last, got, err)
		}
		eventually(t, "the connection is forgotten", func() bool { return r.s.conns.Len() == 0 })
	}
}

func TestGather_KilledAndTimedOut(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{PartialTimeout: 40 * time.Millisecond})
	c := r.dial()
	c.gather(r)
	c.send("*2\r\n$3\r\nG")
	if got := c.recv(); !strings.HasPrefix(got, "-ERR Protocol error: the request was begun") || !c.closed() {
		t.Errorf("half a request: got %s", got)
	}
	eventually(t, "the connection is forgotten", func() bool { return r.s.conns.Len() == 0 })
	c = r.dial()
	c.gather(r)
	killer := r.dial()
	killer.want("client kill type normal skipme yes", ":1")
	if !c.closed() {
		t.Error("a killed connection is open")
	}
	killer.gather(r)
}

func TestGather_WokenBeforeItWaits(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	client := r.dial()
	client.want("ping", "+PONG")
	c := newConn(r.s, client.nc)
	c.wakeReason.Store(wakeShutdown)
	if !c.gather() {
		t.Error("not gathered")
	}
	if n := c.gathering.state.Load(); n != gatherNot {
		t.Errorf("given back in state %d", n)
	}
}

func TestGather_UnreadAnswers(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	// More than fits into the buffers of a connection.
	big := strings.Repeat("v", 7<<20)
	c := r.dial()
	if got := c.do("set", "k", big); got != "+OK" {
		t.Fatal(got)
	}
	c.gather(r)
	c.send(string(encode("get", "k")))
	eventually(t, "the rest of the answer waits for the client", func() bool {
		all := r.s.conns.Open()
		return len(all) == 1 && all[0].writingSince.Load() != 0
	})
	other := r.dial()
	other.want("get nothing", "nil")
	other.want("get nothing", "nil")
	if got := c.recv(); got != strconv.Quote(big) {
		t.Errorf("got %d bytes", len(got))
	}
	c.want("get nothing", "nil")
}

// gate holds queries back while it is shut.
type gate struct {
	*shardtest.Client
	mu      sync.RWMutex
	waiting atomic.Int32
	fail    atomic.Pointer[errs.Error]
}

func (g *gate) Query(ctx context.Context, r shard.Route, at shard.Consistency, q shard.Command) ([]byte, error) {
	g.waiting.Add(1)
	defer g.waiting.Add(-1)
	g.mu.RLock()
	defer g.mu.RUnlock()
	if err := g.fail.Load(); err != nil {
		return nil, err
	}
	return g.Client.Query(ctx, r, at, q)
}

func gatedRig(t *testing.T) (*rig, *gate) {
	inner := shardtest.New(t, shardtest.Options{}, datatypes.New(datatypes.Config{}))
	g := &gate{Client: inner}
	return serveOn(t, inner, g, Config{}), g
}

func TestGather_MoreInputBehindARead(t *testing.T) {
	r, g := gatedRig(t)
	c := r.dial()
	c.want("set k v", "+OK")
	c.gather(r)
	for _, behind := range []string{string(encode("get", "k")), string(encode("set", "k", "v")), "*2\r\n", ""} {
		g.mu.Lock()
		c.send(string(encode("get", "k")))
		eventually(t, "the read is under way", func() bool { return g.waiting.Load() == 1 })
		c.send(behind)
		if behind != "" {
			eventually(t, "it is known that there is more", func() bool { return r.s.conns.Open()[0].gathering.state.Load() == gatherMore })
		}
		g.mu.Unlock()
		if got := c.recv(); got != `"v"` {
			t.Errorf("got %s", got)
		}
		switch {
		case behind == "*2\r\n":
			c.send(string(encode("get", "k"))[len(behind):])
			c.recv()
		case behind != "":
			c.recv()
		}
		c.gather(r)
	}
}

func TestGather_ErrorsAreEachOnes(t *testing.T) {
	r, g := gatedRig(t)
	var cs []*client
	for range 5 {
		c := r.dial()
		c.want("get nothing", "nil")
		cs = append(cs, c)
	}
	eventually(t, "all are gathered", func() bool { return r.s.gathered() == len(cs) })
	g.fail.Store(errs.New(errs.Unavailable, "no leader"))
	for _, c := range cs {
		c.send(string(encode("get", "k")))
	}
	for _, c := range cs {
		if got := c.recv(); got != "-CLUSTERDOWN not available, nothing was done: no leader" {
			t.Errorf("got %s", got)
		}
	}
	g.fail.Store(nil)
	for _, c := range cs {
		c.want("get k", "nil")
	}
}

func TestGather_StuckReadsEnd(t *testing.T) {
	inner := shardtest.New(t, shardtest.Options{}, datatypes.New(datatypes.Config{}))
	st := &stuck{Client: inner}
	r := serveOn(t, inner, st, Config{RequestTimeout: 50 * time.Millisecond, CloseTimeout: 30 * time.Millisecond})
	c := r.dial()
	c.gather(r)
	st.on.Store(true)
	c.want("get k", "-CLUSTERDOWN...")
	st.on.Store(false)
	c.gather(r)

	r = serveOn(t, inner, st, Config{RequestTimeout: time.Hour, CloseTimeout: 30 * time.Millisecond})
	c = r.dial()
	c.gather(r)
	st.on.Store(true)
	c.send(string(encode("get", "k")))
	eventually(t, "the read is under way", func() bool { return r.s.conns.Open()[0].gathering.state.Load() == gatherBusy })
	r.s.Close()
	if !c.closed() {
		t.Error("the connection is open")
	}
}

// FuzzGather sends the same to a server that gathers from the second lone read on and to one that never does. The answers must be the same. A
// byte of the program chooses a request, and whether to wait for all answers before the next.
func FuzzGather(f *testing.F) {
	var rigs []*rig
	for _, lone := range []int{1, 1 << 30} {
		rigs = append(rigs, newRig(f, shardtest.Options{}, Config{loneMin: lone}))
	}
	get := string(encode("get", "k"))
	requests := []struct {
		send    string
		answers int
	}{
		{get, 1},
		{string(encode("get", "none")), 1},
		{string(encode("set", "k", "v")), 1},
		{string(encode("strlen", "k")), 1},
		{string(encode("mget", "k", "none")), 1},
		{string(encode("incr", "n")), 1},
		{string(encode("get", "n")), 1},
		{string(encode("hget", "k", "f")), 1},
		{string(encode("get")), 1},
		{string(encode("nosuch")), 1},
		{get[:len(get)/2] + "|" + get[len(get)/2:], 1},
		{"*0\r\n", 0},
		{"\r\n", 0},
		{"GET k\r\n", 1},
		{string(encode("multi")), 1},
		{string(encode("exec")), 1},
		{string(encode("readonly")), 1},
		{string(encode("client", "reply", "skip")), 0},
		{"*x\r\n", 1},
	}
	const wait = 0x80
	f.Add([]byte{2 | wait, wait, wait, wait, 1 | wait, 0, 0 | wait, 0 | wait, 2, wait})
	f.Add([]byte{wait, wait, 3 | wait, 4 | wait, 10 | wait, wait, wait, 11, wait, wait, 12 | wait, 13 | wait, wait, wait, 18 | wait})
	f.Add([]byte{5 | wait, 6 | wait, 6 | wait, 5, 6 | wait, 14 | wait, wait, wait, 15 | wait, wait, 16 | wait, wait, wait, 17, wait, 0})
	f.Add([]byte{7 | wait, 7 | wait, 8 | wait, 7 | wait, 9 | wait, 7 | wait, wait, wait, wait, 10, 10 | wait})
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 100 {
			return
		}
		var got [2]strings.Builder
		for i, r := range rigs {
			c := dial(t, r.addr)
			c.want("flushall", "+OK")
			c.want("get none", "nil")
			answers, open := 0, true
			take := func() {
				for ; answers > 0 && open; answers-- {
					s, err := c.try()
					if open = err == nil; open {
						fmt.Fprintln(&got[i], s)
					}
				}
			}
			skip := false
			for _, b := range program {
				rq := requests[int(b&^wait)%len(requests)]
				for _, part := range strings.SplitAfter(rq.send, "|") {
					// The connection may be closed by now.
					_, _ = io.WriteString(c.nc, strings.TrimSuffix(part, "|"))
				}
				switch {
				case strings.Contains(rq.send, "skip"):
					skip = true
				case rq.answers > 0 && skip:
					skip = false
				default:
					answers += rq.answers
				}
				if b&wait != 0 {
					take()
				}
			}
			take()
			_ = c.nc.(*net.TCPConn).CloseWrite()
			rest, _ := io.ReadAll(c.r)
			fmt.Fprintf(&got[i], "then %q\n", rest)
			_ = c.nc.Close()
		}
		if a, b := got[0].String(), got[1].String(); a != b {
			t.Errorf("program %v: gathered\n%s\napart\n%s", program, a, b)
		}
	})
}
