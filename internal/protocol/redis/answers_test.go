package redis

import (
	"bufio"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shardtest"
)

// pipe connects a client without a socket: the server writes nothing that the client does not read.
func (r *rig) pipe() *client {
	r.t.Helper()
	nc, peer := net.Pipe()
	r.s.ServeConn(peer)
	r.t.Cleanup(func() { _ = nc.Close() })
	return &client{r.t, nc, bufio.NewReader(nc)}
}

const busyAnswers = "-BUSY overloaded, try again later: too many large answers are under way on this node; ask again, for less, or in parts"

// What clients have asked and do not read takes a bounded part of a node's memory together, and others go on with small answers.
func TestAnswers_NotReadAreBoundedTogether(t *testing.T) {
	const value = 1_000_000
	answers := kv.NewBudget(3_500_000)
	r := newRig(t, shardtest.Options{}, Config{Answers: answers})
	c := r.dial()
	c.want("set k "+strings.Repeat("x", value), "+OK")
	c.want("set small v", "+OK")
	var slow []*client
	for i := range 3 {
		s := r.pipe()
		s.send(string(encode("get", "k")))
		slow = append(slow, s)
		eventually(t, "an answer counts until it is read", func() bool { return answers.Used() > int64(i+1)*value })
	}
	c.want("get k", busyAnswers)
	c.want("mget k small", busyAnswers)
	c.want("get small", `"v"`)
	c.want("strlen k", fmt.Sprint(":", value))
	// In a pipeline each read is decided by itself.
	c.send(strings.Repeat(string(encode("get", "small")), 3) + string(encode("get", "k")) + string(encode("get", "small")))
	for i := range 5 {
		want := `"v"`
		if i == 3 {
			want = busyAnswers
		}
		if got := c.recv(); got != want {
			t.Errorf("answer %d: %.200s, want %s", i, got, want)
		}
	}
	if got := slow[0].recv(); len(got) != value+2 {
		t.Errorf("a slow client's answer: %.200s", got)
	}
	eventually(t, "what was read does not count", func() bool { return answers.Used() < 3*value })
	if got := c.do("get", "k"); len(got) != value+2 {
		t.Errorf("with room again: %.200s", got)
	}
	_ = slow[1].nc.Close()
	slow[2].recv()
	slow[2].want("get small", `"v"`)
	eventually(t, "nothing is held", func() bool { return answers.Used() == 0 })
}

// Short reads of a pipeline whose answers are much together are answered, however little room there is.
func TestAnswers_PipelineOfShortReadsNeedsNoRoom(t *testing.T) {
	answers := kv.NewBudget(1)
	r := newRig(t, shardtest.Options{}, Config{Answers: answers})
	c := r.dial()
	c.want("set k "+strings.Repeat("x", 5000), "+OK")
	go func() { _, _ = c.nc.Write([]byte(strings.Repeat(string(encode("get", "k")), 200))) }()
	for range 200 {
		if got := c.recv(); len(got) != 5002 {
			t.Fatalf("got %.200s", got)
		}
	}
	eventually(t, "nothing is held", func() bool { return answers.Used() == 0 })
}

// The answers of a pipeline that wait behind the one that is being read count as well.
func TestAnswers_BehindTheFirstCount(t *testing.T) {
	const value = 300_000
	answers := kv.NewBudget(1 << 30)
	r := newRig(t, shardtest.Options{}, Config{Answers: answers})
	c := r.pipe()
	c.want("set k "+strings.Repeat("x", value), "+OK")
	c.send(strings.Repeat(string(encode("get", "k")), 5))
	eventually(t, "all of them count", func() bool { return answers.Used() > 5*value })
	for range 5 {
		if got := c.recv(); len(got) != value+2 {
			t.Fatalf("got %.200s", got)
		}
	}
	eventually(t, "nothing is held", func() bool { return answers.Used() == 0 })
}

// The last answer of a query is in memory once while its client takes its time to read it.
func TestAnswers_AreThereOnce(t *testing.T) {
	const value = 8_000_000
	answers := kv.NewBudget(1 << 30)
	r := newRig(t, shardtest.Options{}, Config{Answers: answers})
	c := r.pipe()
	c.want("set k "+strings.Repeat("x", value), "+OK")
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	heap()
	before := heap()
	c.send(strings.Repeat(string(encode("get", "k")), 2))
	eventually(t, "the first is waited for", func() bool { return r.s.conns.Open()[0].writingSince.Load() != 0 })
	eventually(t, "it is held once", func() bool { return heap()-before < value*3/2 })
	for range 2 {
		c.recv()
	}
}

// Every command that can answer much counts what it collects, and gives it back.
func TestAnswers_EveryLargeOneCounts(t *testing.T) {
	full, answers := kv.NewBudget(200_000), kv.NewBudget(64<<20)
	for _, b := range []*kv.Budget{full, answers} {
		r := newRig(t, shardtest.Options{}, Config{Answers: b, ClusterMode: true})
		c := r.dial()
		large := strings.Repeat("x", 150_000)
		c.want("mset {a}1 "+large+" {a}2 "+large+" {a}3 "+large, "+OK")
		for i := range 5 {
			c.want(fmt.Sprintf("hset h %s%d %s", large[:60_000], i, large), ":1")
		}
		c.want("hset long f "+large+large, ":1")
		c.want("set long2 "+large+large, "+OK")
		for i := range 6 {
			c.want("set {a}"+strings.Repeat("k", 60_000)+fmt.Sprint(i)+" v", "+OK")
		}
		for _, line := range []string{
			"get long2", "mget {a}1 {a}2 {a}3", "getrange long2 0 -1", "substr long2 0 -1", "hget long f", "hmget long f f", "hgetall h", "hkeys h", "hvals h",
			"hrandfield h 5", "hrandfield h 5 withvalues", "hrandfield h -5", "hrandfield h", "hscan h 0 count 100", "scan 0 count 100", "keys *", "cluster getkeysinslot 15495 100",
		} {
			got := c.do(strings.Fields(line)...)
			if b == full && got != busyAnswers {
				t.Errorf("%s without room: %.200s", line, got)
			}
			if b != full && strings.HasPrefix(got, "-") {
				t.Errorf("%s: %.200s", line, got)
			}
		}
		eventually(t, "nothing is held", func() bool { return b.Used() == 0 })
	}
}

// The answer to a write is there when the write is done. If there is no room the client is told both.
func TestAnswers_OfWritesAreBoundedTogether(t *testing.T) {
	const value = 1_000_000
	answers, writes := kv.NewBudget(1), kv.NewBudget(2_500_000)
	r := newRig(t, shardtest.Options{}, Config{Answers: answers, WriteAnswers: writes})
	c := r.dial()
	large := strings.Repeat("x", value)
	c.want("set k "+large, "+OK")
	c.want("set n 1", "+OK")
	var slow []*client
	for i := range 2 {
		s := r.pipe()
		s.want("multi", "+OK")
		s.want("get k", "+QUEUED")
		s.send(string(encode("exec")))
		slow = append(slow, s)
		eventually(t, "an answer counts until it is read", func() bool { return writes.Used() > int64(i+1)*value })
	}
	const lost = "-UNKNOWN the request was done, but the node has no room for its answer, since too many clients do not read theirs; look before you repeat it"
	c.want("multi", "+OK")
	c.want("incr n", "+QUEUED")
	c.want("get k", "+QUEUED")
	c.want("exec", lost)
	c.want("get n", `"2"`)
	c.want("multi", "+OK")
	c.want("incr n", "+QUEUED")
	c.want("get n", "+QUEUED")
	c.want("exec", `[:3 "3"]`)
	c.want("getset k y", lost)
	c.want("getset k z", `"y"`)
	for _, s := range slow {
		if got := s.recv(); len(got) != value+4 {
			t.Errorf("a slow client's answer: %.200s", got)
		}
	}
	eventually(t, "nothing is held", func() bool { return writes.Used() == 0 })
}

// Results that wait while a client reads the first of them count as well.
func TestAnswers_OfAPipelineOfWritesCount(t *testing.T) {
	const value = 300_000
	writes := kv.NewBudget(4*value + 1000)
	r := newRig(t, shardtest.Options{}, Config{WriteAnswers: writes})
	c := r.pipe()
	c.want("set k "+strings.Repeat("x", value), "+OK")
	c.send(strings.Repeat(string(encode("getex", "k", "persist")), 5) + string(encode("ping")))
	eventually(t, "those for which there is room count", func() bool { return writes.Used() > 4*value })
	for i := range 5 {
		if got := c.recv(); i < 4 && len(got) != value+2 || i == 4 && !strings.HasPrefix(got, "-UNKNOWN the request was done") {
			t.Errorf("answer %d: %.200s", i, got)
		}
	}
	if got := c.recv(); got != "+PONG" {
		t.Errorf("behind them: %s", got)
	}
	eventually(t, "nothing is held", func() bool { return writes.Used() == 0 })
}

// A client that reads slowly may take its time, but not with what others need.
func TestAnswers_SlowClientsHoldThemForABoundedTime(t *testing.T) {
	const value = 800_000
	answers := kv.NewBudget(1_000_000)
	r := newRig(t, shardtest.Options{}, Config{Answers: answers, WriteTimeout: 800 * time.Millisecond})
	c := r.dial()
	c.want("set k "+strings.Repeat("x", value), "+OK")
	c.want("set k2 "+strings.Repeat("x", value/2), "+OK")
	// trickle reads a piece in each of the janitor's rounds, which is progress enough, and says how many bytes came.
	trickle := func(s *client) (n int) {
		buf := make([]byte, 32<<10)
		for {
			tick := r.s.tick.Load()
			_ = s.nc.SetReadDeadline(time.Now().Add(20 * time.Second))
			got, err := s.nc.Read(buf)
			n += got
			if err != nil || buf[max(got, 1)-1] == '\n' {
				return n
			}
			eventually(t, "time goes by", func() bool { return r.s.tick.Load() > tick })
		}
	}
	one := r.pipe()
	one.send(string(encode("get", "k2")))
	if n := trickle(one); n < value/2 {
		t.Errorf("with room for others %d bytes came", n)
	}
	one.send(string(encode("get", "k")))
	eventually(t, "an answer counts", func() bool { return answers.Used() > value })
	c.want("get k2", busyAnswers)
	if n := trickle(one); n >= value {
		t.Errorf("all of %d bytes came while others had no room", n)
	}
	eventually(t, "others have room", func() bool { return answers.Used() == 0 })
}

// An answer that is not sent takes no room once it is made.
func TestAnswers_NotSentLeaveNothing(t *testing.T) {
	answers := kv.NewBudget(64 << 20)
	r := newRig(t, shardtest.Options{}, Config{Answers: answers})
	for i := range 6 {
		r.dial().want("set "+strings.Repeat("k", 60_000)+fmt.Sprint(i)+" v", "+OK")
	}
	nc, peer := net.Pipe()
	defer func() { _ = nc.Close(); _ = peer.Close() }()
	c := newConn(r.s, nc)
	c.refresh()
	c.handle([][]byte{[]byte("client"), []byte("reply"), []byte("off")})
	c.handle([][]byte{[]byte("keys"), []byte("*")})
	if held := answers.Used(); held < 360_000 || !c.flush() {
		t.Errorf("%d bytes count", held)
	}
	if held := answers.Used(); held != 0 || cap(c.out) > 4*outFlushBytes {
		t.Errorf("%d bytes count, with room for %d", held, cap(c.out))
	}
}
