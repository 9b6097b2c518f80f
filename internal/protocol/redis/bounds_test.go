package redis

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"weak"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// held is a client whose commands wait until they are let go, in any order.
type held struct {
	*shardtest.Client
	mu      sync.Mutex
	waiting []*shard.Future
	futures []weak.Pointer[shard.Future]
}

func (h *held) Submit(context.Context, shard.Route, shard.Command) *shard.Future {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := shard.NewFuture()
	h.waiting = append(h.waiting, f)
	h.futures = append(h.futures, weak.Make(f))
	return f
}

// state returns the number of commands that were handed in, and of those that wait.
func (h *held) state() (all, waiting int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.futures), len(h.waiting)
}

// answer lets the first command that waits go.
func (h *held) answer(data string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting[0].Complete(shard.Result{Data: []byte(data)})
	h.waiting = append([]*shard.Future(nil), h.waiting[1:]...)
}

func heldRig(t *testing.T) (*held, *rig) {
	t.Helper()
	h := &held{Client: shardtest.New(t, shardtest.Options{}, datatypes.New(datatypes.Config{}))}
	return h, serveOn(t, h.Client, h, Config{})
}

func TestAnswersInFlight_FewThatMayHoldValues(t *testing.T) {
	// What fits into one read.
	const all = 64
	for _, tc := range []struct {
		line string
		most int
	}{
		{"getex k", valuesInFlightMax}, {"getset k v", valuesInFlightMax}, {"getdel k", valuesInFlightMax}, {"set k v px 10 GET", valuesInFlightMax},
		{"set k get", all}, {"set k get nx", all}, {"append k get", all},
	} {
		h, r := heldRig(t)
		c := r.dial()
		c.send(strings.Repeat(string(encode(strings.Fields(tc.line)...)), all))
		conn := func() *conn { return r.s.conns.Open()[0] }
		eventually(t, tc.line+": as many as may be are in flight, and the first is waited for", func() bool {
			n, _ := h.state()
			return n >= tc.most && r.s.conns.Len() == 1 && conn().waitingSince.Load() != 0
		})
		if n, _ := h.state(); n != tc.most {
			t.Errorf("%s: %d are in flight, want %d", tc.line, n, tc.most)
		}
		for range all {
			eventually(t, "a command waits", func() bool { _, n := h.state(); return n > 0 })
			h.answer("$1\r\nv\r\n")
		}
		for i := range all {
			if got := c.recv(); got != `"v"` {
				t.Fatalf("%s: answer %d is %s", tc.line, i, got)
			}
		}
	}
}

func TestAnswersInFlight_GoneOnceAnswered(t *testing.T) {
	h, r := heldRig(t)
	c := r.dial()
	c.send(strings.Repeat(string(encode("getex", "k")), 2))
	eventually(t, "two are in flight", func() bool { n, _ := h.state(); return n == 2 })
	long := strings.Repeat("v", 2*outFlushBytes)
	h.answer(fmt.Sprintf("$%d\r\n%s\r\n", len(long), long))
	if got := c.recv(); len(got) != len(long)+2 {
		t.Fatalf("%d bytes", len(got))
	}
	eventually(t, "the first answer is not held while the second is waited for", func() bool {
		runtime.GC()
		return h.futures[0].Value() == nil
	})
	h.answer("$-1\r\n")
	if got := c.recv(); got != "nil" {
		t.Errorf("got %s", got)
	}
}

// writes is a connection that notes how long the writes of its server are, and calls each before one, if it is set.
type writes struct {
	net.Conn
	each func()
	mu   sync.Mutex
	all  []int
}

func (w *writes) Write(b []byte) (int, error) {
	if w.each != nil {
		w.each()
	}
	w.mu.Lock()
	w.all = append(w.all, len(b))
	w.mu.Unlock()
	return w.Conn.Write(b)
}

func (w *writes) longest() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Max(w.all)
}

// dialNoting connects without a network, so that what the server writes at once is seen.
func (r *rig) dialNoting(each func()) (*client, *writes) {
	nc, peer := net.Pipe()
	w := &writes{Conn: nc, each: each}
	r.s.ServeConn(w)
	r.t.Cleanup(func() { _ = peer.Close() })
	return &client{r.t, peer, bufio.NewReader(peer)}, w
}

func TestExec_LongAnswersOfTheServerAreWrittenAsTheyAreMade(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c, w := r.dialNoting(nil)
	const n = 300
	one := c.do("command")
	c.want("set k v", "+OK")
	c.want("multi", "+OK")
	go c.send(strings.Repeat(string(encode("command")), n) + string(encode("get", "k")))
	for range n + 1 {
		if got := c.recv(); got != "+QUEUED" {
			t.Fatal(got)
		}
	}
	if got := c.do("exec"); got != "["+strings.Repeat(one+" ", n)+`"v"]` {
		t.Errorf("an answer of %d bytes, want %d of %d", len(got), n, len(one))
	}
	if got := w.longest(); got > 2*outFlushBytes {
		t.Errorf("%d bytes were written at once", got)
	}
	// What is not sent takes no room either.
	nc, peer := net.Pipe()
	defer func() { _ = nc.Close(); _ = peer.Close() }()
	mute := newConn(r.s, nc)
	mute.refresh()
	do := func(words ...string) {
		var args [][]byte
		for _, a := range words {
			args = append(args, []byte(a))
		}
		mute.handle(args)
	}
	do("echo", "before")
	do("client", "reply", "off")
	do("multi")
	for range n {
		do("command")
	}
	do("exec")
	do("client", "reply", "on")
	if got := string(mute.out); got != "$6\r\nbefore\r\n+OK\r\n" || cap(mute.out) > 4*outFlushBytes {
		t.Errorf("%q is to be written, with room for %d bytes", got, cap(mute.out))
	}
	c.want("multi", "+OK")
	c.want("client reply off", "-ERR Command not allowed inside a transaction")
	c.want("exec", "-EXECABORT...")
}

func TestCommandInfo_FewNames(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c := r.dial()
	for _, sub := range []string{"info", "docs"} {
		names := strings.Repeat(" get", commandNamesMax)
		if got := c.do(strings.Fields("command " + sub + names)...); strings.Count(got, `"get"`) != commandNamesMax {
			t.Errorf("COMMAND %s of as many names as may be: %.80s", sub, got)
		}
		c.want("command "+sub+names+" get", "-ERR COMMAND "+strings.ToUpper(sub)+" of 1025 names; at most 1024 may be asked for at once")
	}
}

func TestLongAnswer_EachPieceHasItsOwnTime(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{PartialTimeout: 80 * time.Millisecond})
	var since []int64
	c, w := r.dialNoting(func() {
		// The janitor's clock goes on while the client takes its time.
		began := r.s.all()[0].writingSince.Load()
		since = append(since, began)
		eventually(t, "a tick", func() bool { return r.s.tick.Load() > began })
	})
	v := strings.Repeat("v", 40*outFlushBytes)
	if got := c.do("echo", v); got != `"`+v+`"` {
		t.Errorf("got %d bytes", len(got))
	}
	if got := w.longest(); got > outFlushBytes {
		t.Errorf("%d bytes were written at once", got)
	}
	if !slices.IsSorted(since) || len(slices.Compact(since)) < 40 {
		t.Errorf("the pieces began at %v", since)
	}
}

// script is a connection whose reads are a test's, and which takes all that is written.
type script struct {
	net.Conn
	read func(b []byte) (int, error)
}

func (s *script) Read(b []byte) (int, error)      { return s.read(b) }
func (s *script) Write(b []byte) (int, error)     { return len(b), nil }
func (s *script) SetReadDeadline(time.Time) error { return nil }

// slow is a client for whose writes the clock goes on.
type slow struct {
	*shardtest.Client
	during func()
}

func (s *slow) Submit(ctx context.Context, r shard.Route, c shard.Command) *shard.Future {
	s.during()
	return s.Client.Submit(ctx, r, c)
}

// partialRig has a connection that the test itself serves, and that the janitor does not know.
func partialRig(t *testing.T) (*Server, *slow, *script, *conn) {
	t.Helper()
	sl := &slow{Client: shardtest.New(t, shardtest.Options{}, datatypes.New(datatypes.Config{})), during: func() {}}
	s := New(Config{}, sl, nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	t.Cleanup(s.Close)
	nc, peer := net.Pipe()
	t.Cleanup(func() { _ = nc.Close(); _ = peer.Close() })
	sc := &script{Conn: nc}
	return s, sl, sc, newConn(s, sc)
}

// Ticks of the default configuration are seconds.
const someTime = 20

func TestPartialRequest_HasItsTimeSinceTheOneBefore(t *testing.T) {
	s, _, sc, c := partialRig(t)
	one := string(encode("set", "k", "0123456789"))
	next := one[:10]
	sc.read = func(b []byte) (int, error) {
		s.tick.Add(someTime)
		if c.overdue(s.tick.Load()) {
			t.Fatal("a busy pipeline counts as a request that does not arrive")
		}
		n := copy(b, next)
		next = one[10:] + one[:10]
		return n, nil
	}
	for i := range 100 {
		if !c.fill() || !c.turn() {
			t.Fatalf("ended after %d reads", i)
		}
	}
}

func TestPartialRequest_TheServersTimeDoesNotCount(t *testing.T) {
	s, sl, sc, c := partialRig(t)
	one := string(encode("set", "k", "0123456789"))
	next := one[:10]
	judge := func() {
		// So would the janitor.
		if c.overdue(s.tick.Load()) {
			t.Fatal("the time of the server counts")
		}
	}
	sl.during = func() {
		s.tick.Add(1000)
		judge()
	}
	sc.read = func(b []byte) (int, error) {
		judge()
		n := copy(b, next)
		next = one[10:] + one + one[:10]
		return n, nil
	}
	for i := range 5 {
		// The verdict may have been that it takes too long, just before the input arrived.
		c.wakeReason.Store(wakePartial)
		if !c.fill() || !c.turn() {
			t.Fatalf("ended after %d reads", i)
		}
	}
	late := false
	sc.read = func(b []byte) (int, error) {
		if late = !late; late {
			return 0, os.ErrDeadlineExceeded
		}
		return copy(b, next), nil
	}
	if !c.fill() || c.wakeReason.Load() != 0 {
		t.Error("closed for a verdict that came too late")
	}
}

func TestPartialRequest_TricklesForABoundedTime(t *testing.T) {
	s, _, sc, c := partialRig(t)
	one := "*2\r\n$4\r\nECHO\r\n$1000\r\n" + strings.Repeat("x", 1000)
	reads, over := 0, false
	sc.read = func(b []byte) (int, error) {
		s.tick.Add(someTime)
		over = c.overdue(s.tick.Load())
		reads++
		return copy(b, one[reads-1:reads]), nil
	}
	for !over && reads < 100 {
		if !c.fill() || !c.turn() {
			t.Fatalf("ended after %d reads", reads)
		}
	}
	// Ten times thirty seconds.
	if reads < 14 || reads > 17 {
		t.Errorf("over after %d reads, one in %d seconds", reads, someTime)
	}
	sc.read = func(b []byte) (int, error) {
		for range 2 {
			if c.overdue(s.tick.Load()) {
				return 0, os.ErrDeadlineExceeded
			}
			s.tick.Add(40)
		}
		return 0, os.ErrDeadlineExceeded
	}
	c.wakeReason.Store(wakePartial)
	if c.fill() || !c.closing {
		t.Error("a request that does not go on is waited for")
	}
}

func TestLastAnswers_ArriveAlthoughMoreWasSent(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c := r.dial()
	v := strings.Repeat("v", 1<<20)
	c.want("set k "+v, "+OK")
	// What the server does not read would make the system throw away the answers that are not sent yet.
	c.send(string(encode("get", "k")) + "*bad\r\n" + strings.Repeat("x", 100<<10))
	eventually(t, "the server closes", func() bool { return r.s.conns.Len() == 0 })
	for _, want := range []string{`"` + v + `"`, "-ERR Protocol error: invalid multibulk length"} {
		if got, err := c.try(); got != want {
			t.Fatalf("got %.80s, %v", got, err)
		}
	}
	if !c.closed() {
		t.Error("open")
	}
}

func TestTooLong_ClientReplyHolds(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c := r.dial()
	long := string(encode("set", "a", strings.Repeat("x", datatypes.CommandBytesMax+1<<20)))
	ping := func(s string) string { return string(encode("ping", s)) }
	c.send(string(encode("client", "reply", "skip")) + long + ping("1"))
	c.send(long + ping("2"))
	c.send(string(encode("client", "reply", "off")) + long + string(encode("client", "reply", "on")) + ping("3"))
	const tooLong = "-ERR the request is longer than the limit of 8388608 bytes; send it in smaller parts"
	for _, want := range []string{`"1"`, tooLong, `"2"`, "+OK", `"3"`} {
		if got := c.recv(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestClientReply_OnIsAnsweredBehindSkip(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c := r.dial()
	c.send(string(encode("client", "reply", "skip")) + string(encode("client", "reply", "on")) + string(encode("ping")))
	for _, want := range []string{"+OK", "+PONG"} {
		if got := c.recv(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestWatch_BytesOfKeysAreBounded(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c := r.dial()
	keys := func(from, to int) []string {
		line := []string{"watch"}
		for i := from; i < to; i++ {
			line = append(line, fmt.Sprintf("%0*d", datatypes.KeyBytesMax, i))
		}
		return line
	}
	const most = datatypes.CommandBytesMax / datatypes.KeyBytesMax
	for range 2 {
		if got := c.do(keys(0, most-1)...); got != "+OK" {
			t.Fatal(got)
		}
		// A key that is watched twice is there once.
		if got := c.do(keys(0, most/2)...); got != "+OK" {
			t.Fatal(got)
		}
		if got := c.do(keys(most-1, most)...); got != "+OK" {
			t.Fatal(got)
		}
		c.want("watch k", "-ERR the watched keys are longer than the limit of 8388608 bytes")
		c.want("unwatch", "+OK")
	}
	c.want("watch k", "+OK")
	c.want("multi", "+OK")
	c.want("get k", "+QUEUED")
	c.want("exec", "[nil]")
}
