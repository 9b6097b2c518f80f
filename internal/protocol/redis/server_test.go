package redis

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

var rewrite = flag.Bool("rewrite", false, "rewrite generated documents")

func TestCompatDocument_IsUpToDate(t *testing.T) {
	const path = "../../../docs/compat/redis.md"
	want := CompatDocument()
	if *rewrite {
		if err := os.MkdirAll("../../../docs/compat", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s is not what the tables say (%v); run the test with -rewrite", path, err)
	}
}

func TestPipeline_AnswersInOrder(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c := r.dial()
	var in bytes.Buffer
	var want []string
	for i := range 3000 {
		k := fmt.Sprintf("k%d", i%7)
		switch i % 5 {
		case 0, 3:
			in.Write(encode("set", k, fmt.Sprint(i)))
			want = append(want, "+OK")
		case 1, 2:
			in.Write(encode("getrange", fmt.Sprintf("k%d", (i-i%5)%7), "0", "-1"))
			want = append(want, fmt.Sprintf("%q", fmt.Sprint(i-i%5)))
		case 4:
			in.Write(encode("ping", fmt.Sprint(i)))
			want = append(want, fmt.Sprintf("%q", fmt.Sprint(i)))
		}
	}
	go func() { _, _ = io.Copy(c.nc, &in) }()
	for i, w := range want {
		if got := c.recv(); got != w {
			t.Fatalf("answer %d: got %s, want %s", i, got, w)
		}
	}
}

func TestShapes_RESP2AndRESP3(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	two, three := r.dial(), r.dial()
	three.want("hello 3", `{"server" "redis" "version" "7.0.15" "proto" :3 "id" :2 "mode" "standalone" "role" "master" "modules" []}`)
	two.want("hello 2 setname me", `["server" "redis" "version" "7.0.15" "proto" :2 "id" :1 "mode" "standalone" "role" "master" "modules" []]`)
	two.want("client getname", `"me"`)
	two.want("hset h f v", ":1")
	for _, tc := range []struct{ line, two, three string }{
		{"get nope", "nil", "nil"},
		{"hgetall h", `["f" "v"]`, `{"f" "v"}`},
		{"hgetall nope", `[]`, `{}`},
		{"mget h nope", `[nil nil]`, `[nil nil]`},
		{"hrandfield h 1 withvalues", `["f" "v"]`, `[["f" "v"]]`},
		{"hrandfield h -2 withvalues", `["f" "v" "f" "v"]`, `[["f" "v"] ["f" "v"]]`},
		{"hrandfield h", `"f"`, `"f"`},
		{"scan 0", `["0" ["h"]]`, `["0" ["h"]]`},
		{"config get save", `["save" ""]`, `{"save" ""}`},
		{"command info get", `[["get" :2 [+readonly +fast] :1 :1 :1 [+@read +@string +@fast] [] [["flags" [+RO +access] "begin_search" ["type" "index" "spec" ["index" :1]] "find_keys" ["type" "range" "spec" ["lastkey" :0 "keystep" :1 "limit" :0]]]] []]]`,
			`[["get" :2 <+readonly +fast> :1 :1 :1 <+@read +@string +@fast> <> <{"flags" <+RO +access> "begin_search" {"type" "index" "spec" {"index" :1}} "find_keys" {"type" "range" "spec" {"lastkey" :0 "keystep" :1 "limit" :0}}}> <>]]`},
		{"command info nope", `[nil]`, `[nil]`},
	} {
		two.want(tc.line, tc.two)
		three.want(tc.line, tc.three)
	}
	for _, c := range []*client{two, three} {
		c.want("watch h", "+OK")
		c.want("hset h f v", ":0")
		c.want("multi", "+OK")
		c.want("get h", "+QUEUED")
		want := "nil*"
		if c == three {
			want = "nil"
		}
		c.want("exec", want)
		c.want("multi", "+OK")
		c.want("hgetall h", "+QUEUED")
		c.want("hrandfield h 1 withvalues", "+QUEUED")
		want = `[["f" "v"] ["f" "v"]]`
		if c == three {
			want = `[{"f" "v"} [["f" "v"]]]`
		}
		c.want("exec", want)
	}
}

func TestMulti_AsInRedis(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c, other := r.dial(), r.dial()
	c.want("exec", "-ERR EXEC without MULTI")
	c.want("discard", "-ERR DISCARD without MULTI")
	c.want("multi", "+OK")
	c.want("multi", "-ERR MULTI calls can not be nested")
	c.want("watch a", "-ERR WATCH inside MULTI is not allowed")
	c.want("set a 1", "+QUEUED")
	c.want("ping", "+QUEUED")
	c.want("incr a", "+QUEUED")
	c.want("hget a x", "+QUEUED")
	c.want("select 0", "+QUEUED")
	c.want("dbsize", "+QUEUED")
	c.want("exec", "[+OK +PONG :2 -WRONGTYPE Operation against a key holding the wrong kind of value +OK :1]")
	c.want("multi", "+OK")
	c.want("nosuch", "-ERR unknown command 'nosuch', with args beginning with: ")
	c.want("set a 5", "+QUEUED")
	c.want("exec", "-EXECABORT Transaction discarded because of previous errors.")
	c.want("multi", "+OK")
	c.want("get", "-ERR wrong number of arguments for 'get' command")
	c.want("exec", "-EXECABORT...")
	c.want("multi", "+OK")
	c.want("hello 2 setname me", "+QUEUED")
	c.want("hello nope", "+QUEUED")
	c.want("exec", `[["server" "redis" "version" "7.0.15" "proto" :2 "id" :1 "mode" "standalone" "role" "master" "modules" []] -ERR Protocol version is not an integer or out of range]`)
	c.want("get a", `"2"`)
	c.want("multi", "+OK")
	c.want("set a 9", "+QUEUED")
	c.want("discard", "+OK")
	c.want("get a", `"2"`)
	c.want("multi", "+OK")
	c.want("exec", "[]")
	c.want("multi", "+OK")
	c.want("ping", "+QUEUED")
	c.want("exec", "[+PONG]")
	c.want("watch a b", "+OK")
	other.want("set b 1", "+OK")
	c.want("multi", "+OK")
	c.want("set a 9", "+QUEUED")
	c.want("exec", "nil*")
	c.want("watch a", "+OK")
	other.want("set a 3", "+OK")
	c.want("unwatch", "+OK")
	c.want("multi", "+OK")
	c.want("get a", "+QUEUED")
	c.want("exec", `["3"]`)
	c.want("watch a", "+OK")
	c.want("multi", "+OK")
	c.want("flushall", "+QUEUED")
	c.want("exec", "[+OK]")
	c.want("watch a", "+OK")
	other.want("set a 3", "+OK")
	c.want("reset", "+RESET")
	c.want("multi", "+OK")
	c.want("exec", "[]")
	c.want("watch a", "+OK")
	other.want("set a 4", "+OK")
	c.want("multi", "+OK")
	c.want("exec", "nil*")
	c.send(string(encode("multi")) + string(encode("set", "p", "1")) + string(encode("incr", "p")) + string(encode("exec")) + string(encode("get", "p")))
	for _, want := range []string{"+OK", "+QUEUED", "+QUEUED", "[+OK :2]", `"2"`} {
		if got := c.recv(); got != want {
			t.Errorf("pipelined transaction: got %s, want %s", got, want)
		}
	}
}

func TestEventAdd_StateAndEventTogether(t *testing.T) {
	r := newRig(t, shardtest.Options{Shards: 4}, Config{ClusterMode: true})
	c := r.dial()
	c.want("event.add orders hello", "[:0 :0]")
	c.want("event.add orders hello KEY k PARTITION 2 HEADER a 1 b 2 c 3", "[:2 :1]")
	c.want("multi", "+OK")
	c.want("set order:{42} paid", "+QUEUED")
	c.want("event.add orders{42} paid key {42}", "+QUEUED")
	c.want("exec", "[+OK [:0 :0]]")
	c.want("multi", "+OK")
	c.want("set order:{42} lost", "+QUEUED")
	c.want("event.add orders{42} fail", "+QUEUED")
	c.want("exec", "[+OK -ERR told to fail]")
	c.want("multi", "+OK")
	c.want("set order:{7} x", "+QUEUED")
	c.want("event.add orders{42} x", "-CROSSSLOT the commands of a transaction must be on one shard...")
	c.want("exec", "-EXECABORT...")
	for line, want := range map[string]string{
		"event.add orders v PARTITION":    "-ERR syntax error",
		"event.add orders v PARTITION -1": "-ERR PARTITION must be a number...",
		"event.add orders v HEADER a":     "-ERR syntax error",
		"event.add orders v nonsense x":   "-ERR syntax error",
		"event.add {1} v":                 "-ERR the topic has no name",
		"event.add missing v":             `-ERR no topic "missing"`,
		"event.add orders":                "-ERR wrong number of arguments for 'event.add' command",
		"event.add orders v KEY":          "-ERR syntax error",
	} {
		c.want(line, want)
	}
	got, err := r.c.Query(context.Background(), shard.Route{Shard: 1}, shard.Linearizable, shard.Command{Module: shard.ModuleEventlog, Data: []byte("e1")})
	if want := `1 2 "k" false a=1 b=2 c=3 hello`; err != nil || string(got) != want {
		t.Errorf("stored event %q %v, want %q", got, err, want)
	}
}

func TestShards_CrossSlotAndFanOut(t *testing.T) {
	r := newRig(t, shardtest.Options{Shards: 4}, Config{ClusterMode: true})
	c := r.dial()
	c.want("mset {a}1 x {a}2 y", "+OK")
	// Slots 12182 and 5061 are in shards 3 and 2.
	c.want("mget foo bar", "-CROSSSLOT Keys in request don't hash to the same slot")
	c.want("watch foo bar", "-CROSSSLOT...")
	c.want("rename foo bar", "-CROSSSLOT...")
	c.want("watch foo", "+OK")
	c.want("watch bar", "-CROSSSLOT...")
	c.want("multi", "+OK")
	c.want("set bar 1", "+QUEUED")
	c.want("exec", "-CROSSSLOT the watched keys...")
	c.want("multi", "+OK")
	c.want("keys *", "-ERR keys inside MULTI in a space of several shards")
	c.want("discard", "+OK")
	for i := range 100 {
		c.want(fmt.Sprintf("set k%d v", i), "+OK")
	}
	c.want("dbsize", ":102")
	if got := c.do("keys", "*"); len(strings.Fields(got)) != 102 {
		t.Errorf("keys: %s", got)
	}
	if got := c.do("randomkey"); got == "nil" {
		t.Error("no random key")
	}
	seen, cursor := map[string]bool{}, "0"
	for calls := 0; ; calls++ {
		f := strings.Fields(strings.NewReplacer("[", " ", "]", " ", `"`, "").Replace(c.do("scan", cursor, "count", "9")))
		for _, k := range f[1:] {
			if seen[k] {
				t.Errorf("%s came twice", k)
			}
			seen[k] = true
		}
		if cursor = f[0]; cursor == "0" {
			break
		}
		if calls > 100 {
			t.Fatal("the scan does not end")
		}
	}
	if len(seen) != 102 {
		t.Errorf("scan saw %d keys of 102", len(seen))
	}
	c.want("info keyspace", `"# Keyspace\r\ndb0:keys=102,expires=0,avg_ttl=0\r\n"`)
	c.want("flushall bad", "-ERR syntax error")
	c.want("flushall async", "+OK")
	c.want("dbsize", ":0")
	c.want("randomkey", "nil")
}

func threeNodes(c *shardtest.Client, addr string) {
	c.SetTopology(func(t *shard.Topology) {
		t.Nodes = []shard.Node{
			{ID: 1, Up: true, Addr: map[string]string{"redis": addr}}, {ID: 2, Up: true, Addr: map[string]string{"redis": "10.0.0.2:6379"}},
			{ID: 3, Addr: map[string]string{"redis": "10.0.0.3:6379"}},
		}
		shards := append([]shard.ShardInfo(nil), t.Shards...)
		for i := range shards {
			shards[i].Replicas = []shard.NodeID{1, 2, 3}
			shards[i].Leader = shard.NodeID(i%2 + 1)
		}
		t.Shards = shards
	})
}

func TestCluster_MovedOnlyForThoseWhoAsked(t *testing.T) {
	r := newRig(t, shardtest.Options{Shards: 4}, Config{ClusterMode: true})
	threeNodes(r.c, "127.0.0.1:7000")
	plain, smart := r.dial(), r.dial()
	plain.want("set bar 1", "+OK")
	if got := smart.do("cluster", "slots"); !strings.HasPrefix(got, `[[:0 :4095 ["127.0.0.1" :7000 `) || !strings.Contains(got, `"10.0.0.2" :6379`) {
		t.Errorf("cluster slots: %s", got)
	}
	smart.want("get bar", "-MOVED 5061 10.0.0.2:6379")
	smart.want("set foo 1", "+OK")
	smart.want("mget foo {foo}2 f", "-CROSSSLOT...")
	smart.want("mget foo {foo}2", `["1" nil]`)
	smart.want("multi", "+OK")
	smart.want("set bar 1", "-MOVED 5061 10.0.0.2:6379")
	smart.want("exec", "-EXECABORT...")
	smart.want("event.add orders{bar} v", "-MOVED 5061 10.0.0.2:6379")
	smart.want("dbsize", ":1")
	plain.want("dbsize", ":2")
	smart.want("readonly", "+OK")
	smart.want("get bar", `"1"`)
	smart.want("set bar 2", "-MOVED...")
	smart.want("readwrite", "+OK")
	smart.want("get bar", "-MOVED...")
	smart.want("asking", "+OK")
	plain.want("get bar", `"1"`)
	me, peer := nodeID("test", 1), nodeID("test", 2)
	plain.want("cluster myid", `"`+me+`"`)
	plain.want("cluster keyslot foo", ":12182")
	plain.want("cluster countkeysinslot 12182", ":1")
	plain.want("cluster getkeysinslot 12182 10", `["foo"]`)
	plain.want("cluster getkeysinslot 12182 0", `[]`)
	plain.want("cluster countkeysinslot 16384", "-ERR Invalid slot")
	plain.want("cluster meet x y", "-ERR unsupported command 'cluster|meet'...")
	plain.want("cluster nope", "-ERR unknown subcommand 'nope'. Try CLUSTER HELP.")
	plain.want("cluster keyslot", "-ERR wrong number of arguments for 'cluster|keyslot' command")
	want := fmt.Sprintf("%s 127.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-4095 8192-12287\n"+
		"%s 10.0.0.2:6379@16379 master - 0 0 1 connected 4096-8191 12288-16383\n"+
		"%s 10.0.0.3:6379@16379 slave,fail %s 0 0 1 disconnected\n", me, peer, nodeID("test", 3), me)
	plain.want("cluster nodes", fmt.Sprintf("%q", want))
	if got := plain.do("cluster", "info"); !strings.Contains(got, "cluster_state:ok") || !strings.Contains(got, "cluster_size:2") {
		t.Errorf("cluster info: %s", got)
	}
	if got := plain.do("cluster", "shards"); !strings.Contains(got, `"health" "fail"`) || !strings.HasPrefix(got, `[["slots" [:0 :4095 :8192 :12287] "nodes"`) {
		t.Errorf("cluster shards: %s", got)
	}
	plain.want("wait 5 0", ":1")
	r.c.SetTopology(func(t *shard.Topology) {
		t.Shards = append([]shard.ShardInfo(nil), t.Shards...)
		t.Shards[1].Leader = 0
	})
	if got := plain.do("cluster", "info"); !strings.Contains(got, "cluster_state:fail") {
		t.Errorf("cluster info without a leader: %s", got)
	}
	off := newRig(t, shardtest.Options{}, Config{}).dial()
	off.want("cluster info", "-ERR This instance has cluster support disabled")
}

func TestSpace_UnknownIsSaid(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{Space: "nowhere"})
	c := r.dial()
	for _, line := range []string{"get a", "set a 1", "dbsize", "keys *", "watch a", "wait 1 0", "scan 0", "flushall", "event.add t v"} {
		c.want(line, `-CLUSTERDOWN not available, nothing was done: the space "nowhere"...`)
	}
	c.want("ping", "+PONG")
}

func TestErrors_ReachTheClientAsWhatTheyAre(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c := r.dial()
	for _, tc := range []struct {
		err  error
		want string
	}{
		{errs.New(errs.Overloaded, "the queue of shard 1 is full"), "-BUSY overloaded, try again later: the queue of shard 1 is full"},
		{errs.New(errs.Unavailable, "no leader"), "-CLUSTERDOWN not available, nothing was done: no leader"},
		{errs.New(errs.OutcomeUnknown, "lost the leader"), "-UNKNOWN outcome unknown: lost the leader"},
		{errs.New(errs.Denied, "no"), "-NOPERM no"},
		{errs.New(errs.Unauthenticated, "who"), "-NOAUTH who"},
		{errs.New(errs.Corrupt, "bits"), "-ERR damaged data: bits"},
		{errs.New(errs.Internal, "a\r\n+OK\r\nb"), "-ERR internal error: a  +OK  b"},
		{fmt.Errorf("plain"), "-ERR internal error: plain"},
	} {
		r.c.Refuse(tc.err)
		for _, line := range []string{"set a 1", "get a", "dbsize", "watch a", "flushall", "info keyspace"} {
			c.want(line, tc.want)
		}
		c.send(string(encode("get", "a")) + string(encode("get", "b")))
		for range 2 {
			if got := c.recv(); got != tc.want {
				t.Errorf("pipelined read: got %s, want %s", got, tc.want)
			}
		}
		c.want("multi", "+OK")
		c.want("set a 1", "+QUEUED")
		c.want("exec", tc.want)
	}
	r.c.Refuse(nil)
	c.want("get a", "nil")
}

// stuck is a client whose commands are never answered.
type stuck struct {
	*shardtest.Client
	on atomic.Bool
}

func (s *stuck) Submit(ctx context.Context, r shard.Route, c shard.Command) *shard.Future {
	if s.on.Load() {
		return shard.NewFuture()
	}
	return s.Client.Submit(ctx, r, c)
}

func (s *stuck) Query(ctx context.Context, r shard.Route, at shard.Consistency, q shard.Command) ([]byte, error) {
	if s.on.Load() {
		<-ctx.Done()
		return nil, errs.Wrap(errs.Unavailable, ctx.Err(), "no read index")
	}
	return s.Client.Query(ctx, r, at, q)
}

func TestTimeout_UnknownForWritesAndConnectionGoesOn(t *testing.T) {
	mod := datatypes.New(datatypes.Config{})
	inner := shardtest.New(t, shardtest.Options{}, mod)
	st := &stuck{Client: inner}
	r := serveOn(t, inner, st, Config{RequestTimeout: 50 * time.Millisecond})
	c := r.dial()
	c.want("set a 1", "+OK")
	st.on.Store(true)
	c.want("set a 2", "-UNKNOWN outcome unknown: ...")
	c.want("get a", "-CLUSTERDOWN...")
	c.send(string(encode("set", "a", "3")) + string(encode("incr", "a")))
	for range 2 {
		if got := c.recv(); !strings.HasPrefix(got, "-UNKNOWN") {
			t.Errorf("got %s", got)
		}
	}
	c.want("multi", "+OK")
	c.want("set a 2", "+QUEUED")
	c.want("exec", "-UNKNOWN...")
	c.want("flushall", "-UNKNOWN...")
	st.on.Store(false)
	c.want("get a", `"1"`)
}

func TestClose_EndsStuckRequests(t *testing.T) {
	mod := datatypes.New(datatypes.Config{})
	inner := shardtest.New(t, shardtest.Options{}, mod)
	st := &stuck{Client: inner}
	st.on.Store(true)
	r := serveOn(t, inner, st, Config{CloseTimeout: 30 * time.Millisecond})
	c := r.dial()
	c.send(string(encode("set", "a", "1")))
	eventually(t, "the request is under way", func() bool {
		all := r.s.all()
		return len(all) == 1 && all[0].waitingSince.Load() != 0
	})
	r.s.Close()
	if !c.closed() {
		t.Error("the connection is open")
	}
	r.s.Close()
	nc, peer := net.Pipe()
	go r.s.ServeConn(nc)
	got, _ := io.ReadAll(peer)
	if !strings.Contains(string(got), "shutting down") {
		t.Errorf("a connection after Close got %q", got)
	}
}

func TestSlowClient_PartialRequestIsEnded(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{PartialTimeout: 40 * time.Millisecond})
	idle, slow := r.dial(), r.dial()
	slow.send("*2\r\n$3\r\nGET\r\n$5\r\nab")
	if got := slow.recv(); !strings.HasPrefix(got, "-ERR Protocol error: the request was begun") {
		t.Errorf("got %s", got)
	}
	if !slow.closed() {
		t.Error("the connection is open")
	}
	idle.want("ping", "+PONG")
	// One byte at a time, for ever, is ended too.
	dribble := r.dial()
	stop := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for time.Now().Before(stop) {
		<-tick.C
		if _, err := dribble.nc.Write([]byte("x")); err != nil {
			break
		}
	}
	if !dribble.closed() {
		t.Error("the dribbling connection is open")
	}
}

func TestUnreadAnswers_BoundMemoryAndAreEnded(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{WriteTimeout: 300 * time.Millisecond})
	setup := r.dial()
	setup.want("set k "+strings.Repeat("v", 1000), "+OK")
	c := r.dial()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	one := bytes.Repeat(encode("get", "k"), 1000)
	sent := 0
	_ = c.nc.SetWriteDeadline(time.Now().Add(20 * time.Second))
	for sent < 1_000_000 {
		if _, err := c.nc.Write(one); err != nil {
			break
		}
		sent += 1000
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if sent >= 1_000_000 {
		t.Error("the server read a million requests whose answers nobody took")
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("%d bytes of heap for unread answers", grown)
	}
	eventually(t, "the connection is closed", func() bool { return r.s.conns.Len() == 1 })
	setup.want("ping", "+PONG")
}

func TestConnections_Bounded(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{ConnectionsMax: 2})
	a, b := r.dial(), r.dial()
	a.want("ping", "+PONG")
	b.want("ping", "+PONG")
	if got := r.dial().recv(); got != "-ERR max number of clients reached" {
		t.Errorf("third connection: %s", got)
	}
}

// With TLS, a refusal waits for the client's part of the handshake. Nobody else must wait for a client that does not do it.
func TestRefusal_WaitsForNobodyForLong(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{ConnectionsMax: 1})
	r.dial().want("ping", "+PONG")
	nc, peer := net.Pipe()
	defer func() { _ = peer.Close() }()
	refused := make(chan struct{})
	go func() {
		r.s.ServeConn(nc)
		close(refused)
	}()
	select {
	case <-refused:
	case <-time.After(30 * time.Second):
		t.Error("the server waits for a client that does not read its refusal")
	}
}

func TestClientCommands(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c, other := r.dial(), r.dial()
	c.want("client id", ":1")
	other.want("client id", ":2")
	c.want("client setname worker", "+OK")
	c.want(`client setname "a b"`, "-ERR Client names cannot contain...")
	c.want(`client setname "a\nb"`, "-ERR Client names cannot contain...")
	c.want("client getname", `"worker"`)
	c.want("client setinfo lib-name go", "+OK")
	c.want("client setinfo lib-ver 9", "+OK")
	c.want("client setinfo nope 9", "-ERR Unrecognized option 'nope'")
	if got := other.do("client", "list"); !strings.Contains(got, "name=worker") || !strings.Contains(got, "lib-name=go lib-ver=9") || strings.Count(got, "id=") != 2 {
		t.Errorf("client list: %s", got)
	}
	if got := c.do("client", "info"); !strings.Contains(got, "id=1 ") || !strings.Contains(got, "cmd=client") {
		t.Errorf("client info: %s", got)
	}
	for line, want := range map[string]string{
		"client list type pubsub": `""`, "client list type x": "-ERR Unknown client type 'x'", "client list id x": "-ERR Invalid client ID",
		"client list nope": "-ERR syntax error", "client tracking on": "-ERR unsupported command 'client|tracking'...",
		"client pause 100": "-ERR unsupported command 'client|pause'...", "client nope": "-ERR unknown subcommand 'nope'. Try CLIENT HELP.",
		"client no-evict on": "+OK", "client no-touch off": "+OK", "client no-evict maybe": "-ERR syntax error", "client getredir": ":-1",
		"client kill nope:1": "-ERR No such client", "client kill id 0": "-ERR client-id should be greater than 0", "client kill id 1": ":0",
		"client kill a b c": "-ERR syntax error", "client kill type x": "-ERR Unknown client type 'x'", "client kill skipme maybe": "-ERR syntax error",
		"client reply maybe": "-ERR syntax error", "client id 5": "-ERR wrong number of arguments for 'client|id' command",
		"client help": "[+CLIENT...", "client kill type pubsub addr x user default laddr z": ":0",
	} {
		c.want(line, want)
	}
	c.want("client kill id 2", ":1")
	if !other.closed() {
		t.Error("killed connection is open")
	}
	c.send(string(encode("client", "reply", "skip")) + string(encode("set", "a", "1")) + string(encode("get", "a")))
	if got := c.recv(); got != `"1"` {
		t.Errorf("after REPLY SKIP: %s", got)
	}
	c.send(string(encode("client", "reply", "off")) + string(encode("set", "a", "2")) + string(encode("get", "a")) + string(encode("nosuch")) + string(encode("client", "reply", "on")))
	if got := c.recv(); got != "+OK" {
		t.Errorf("after REPLY OFF and ON: %s", got)
	}
	c.want("get a", `"2"`)
	c.want("client kill id 1 skipme no", ":1")
	if !c.closed() {
		t.Error("the connection that killed itself is open")
	}
}

func TestServerCommands(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{Version: "1.2.3"})
	c := r.dial()
	n := fmt.Sprintf(":%d", len(datatypes.Commands())+len(connectionCommands()))
	for _, tc := range []struct{ line, want string }{
		{"ping hi", `"hi"`}, {"ping a b", "-ERR wrong number of arguments for 'ping' command"}, {"echo x", `"x"`}, {"select 0", "+OK"},
		{"select 1", "-ERR DB index is out of range: there is database 0 only; tell tenants apart by a prefix of their keys"}, {"select x", "-ERR value is not an integer or out of range"},
		{"auth x", "-ERR AUTH <password> called without any password configured..."}, {"auth a b", "-WRONGPASS..."}, {"auth a b c", "-ERR syntax error"},
		{"hello 4", "-NOPROTO unsupported protocol version"}, {"hello x", "-ERR Protocol version is not an integer or out of range"},
		{"hello 2 auth a b", "-ERR AUTH..."}, {"hello 2 nope", "-ERR Syntax error in HELLO option 'nope'"}, {`hello 2 setname "a b"`, "-ERR Client names..."},
		{"command count", n}, {"command getkeys mset a 1 b 2", `["a" "b"]`}, {"command getkeys ping a", "-ERR The command has no key arguments"},
		{"command getkeys nope a", "-ERR Invalid command specified"}, {"command getkeys set a", "-ERR Invalid number of arguments specified for command"},
		{"command getkeys event.add t v", `["t"]`}, {"command getkeys", "-ERR wrong number of arguments for 'command|getkeys' command"},
		{"command list filterby pattern hs*", `["hset" "hsetnx" "hstrlen" "hscan"]`}, {"command list filterby aclcat transaction", `["multi" "exec" "discard" "watch" "unwatch"]`},
		{"command list filterby module x", "[]"}, {"command list bad", "-ERR syntax error"}, {"command nope", "-ERR unknown subcommand 'nope'. Try COMMAND HELP."},
		{"command docs get", `["get" ["summary" "Returns the string value of a key." "since" "1.0.0" "group" "string"]]`}, {"command help", "[..."},
		{"command info event.add", `[["event.add" :-3 [+write +denyoom] :1 :1 :1 ...`},
		{"config get maxmemory*", `["maxmemory" "0" "maxmemory-policy" "noeviction"]`}, {"config get nope", "[]"}, {"config get", "-ERR wrong number of arguments for 'config|get' command"},
		{"config set a b", "-ERR unsupported command 'config|set'..."}, {"config nope", "-ERR unknown subcommand..."}, {"config help", "[..."},
		{"wait 1 0", ":0"}, {"wait x 0", "-ERR value is not an integer..."}, {"wait 1 x", "-ERR timeout is not an integer..."}, {"wait 1 -1", "-ERR timeout is negative"},
		{"lolwut", `"Quorate 1.2.3, speaking as Redis ver. 7.0.15\n"`}, {"time", `["1700000000" "0"]`}, {"watch", "-ERR wrong number of arguments for 'watch' command"},
		{"subscribe x", "-ERR unsupported command 'subscribe': pub/sub is not served..."}, {"LPUSH a b", "-ERR unsupported command 'lpush'..."},
		{"eval x 0", "-ERR unsupported command 'eval'..."}, {"DEBUG SLEEP 100", "-ERR unsupported command 'debug'..."}, {"zadd a 1 b", "-ERR unsupported command 'zadd'..."},
		{"foo a b", "-ERR unknown command 'foo', with args beginning with: 'a' 'b' "},
		{`foo "a\r\n+OK"`, "-ERR unknown command 'foo', with args beginning with: 'a  +OK' "},
	} {
		c.want(tc.line, tc.want)
	}
	info := c.do("info")
	for _, want := range []string{"redis_version:7.0.15", "quorate_version:1.2.3", "cluster_enabled:0", "role:master", "connected_clients:1", "quorate_durability:majority-fsync"} {
		if !strings.Contains(info, want) {
			t.Errorf("INFO has no %s: %s", want, info)
		}
	}
	if all := c.do("command"); strings.Count(all, "@slow")+strings.Count(all, "@fast") != len(r.s.list) {
		t.Errorf("COMMAND: %s", all)
	}
	if docs := c.do("command", "docs"); strings.Count(docs, `"summary"`) != len(r.s.list) {
		t.Errorf("COMMAND DOCS: %s", docs)
	}
	c.send("PING\r\n\r\necho \"a b\"\r\n")
	for _, want := range []string{"+PONG", `"a b"`} {
		if got := c.recv(); got != want {
			t.Errorf("inline: got %s, want %s", got, want)
		}
	}
	c.want("quit", "+OK")
	if !c.closed() {
		t.Error("open after QUIT")
	}
}

func TestTooLong_RefusedWithoutKeepingIt(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c := r.dial()
	big := strings.Repeat("x", datatypes.CommandBytesMax+100_000)
	c.want("multi", "+OK")
	if got := c.do("set", "a", big); !strings.HasPrefix(got, "-ERR the request is longer than the limit of 8388608 bytes") {
		t.Errorf("got %s", got)
	}
	c.want("exec", "-EXECABORT...")
	if got := c.do("set", "a", big[:datatypes.CommandBytesMax-100]); got != "+OK" {
		t.Errorf("just below the limit: %s", got)
	}
	if got := c.do("append", "a", big[:200]); got != "-ERR string exceeds maximum allowed size (proto-max-bulk-len)" {
		t.Errorf("append: %s", got)
	}
	if got := c.do("strlen", "a"); got != fmt.Sprintf(":%d", datatypes.CommandBytesMax-100) {
		t.Errorf("strlen: %s", got)
	}
	long := strings.Repeat("k", datatypes.KeyBytesMax+1)
	for _, args := range [][]string{{"get", long}, {"set", long, "v"}, {"mget", "a", long}, {"del", long}, {"watch", long}} {
		if got := c.do(args...); !strings.HasPrefix(got, "-ERR key of 65537 bytes is longer than the limit of 65536") {
			t.Errorf("%s of a long key: %.80s", args[0], got)
		}
	}
	// Twenty long reads in one pipeline do not fit into one batch.
	var in bytes.Buffer
	for range 20 {
		in.Write(encode("get", "a"))
	}
	go func() { _, _ = io.Copy(c.nc, &in) }()
	for range 20 {
		if got := c.recv(); len(got) != datatypes.CommandBytesMax-100+2 {
			t.Fatalf("a long answer of %d bytes", len(got))
		}
	}
}

func TestBadInput_ClearErrorAndClosed(t *testing.T) {
	var warned safeBuffer
	mod := datatypes.New(datatypes.Config{})
	data := shardtest.New(t, shardtest.Options{}, mod)
	s := New(Config{}, data, nil, slog.New(slog.NewTextHandler(&warned, nil)), prometheus.NewRegistry())
	t.Cleanup(s.Close)
	bulk, multi := "-ERR Protocol error: invalid bulk length", "-ERR Protocol error: invalid multibulk length"
	cases := map[string]string{
		"*1\r\n:4\r\n": "-ERR Protocol error: expected '$', got ':'", "*1\r\nPING\r\n": "-ERR Protocol error: expected '$', got 'P'",
		"*1\r\n\r\n": "-ERR Protocol error: expected '$', got ' '", "*1\r\n*1\r\n": "-ERR Protocol error: expected '$', got '*'",
		"*3\r\n$3\r\nSET\r\n$1\r\nx\r\nfooz\r\n": "-ERR Protocol error: expected '$', got 'f'",
		"set \"a\r\n":                            "-ERR Protocol error: unbalanced quotes in request", "set 'a\r\n": "-ERR Protocol error: unbalanced quotes in request",
		"set \"a\"b\r\n":                                 "-ERR Protocol error: unbalanced quotes in request",
		"*1\r\n$4\r\nPINGxx":                             "-ERR Protocol error: expected CRLF after bulk data",
		strings.Repeat("x", lineBytesMax+10):             "-ERR Protocol error: too big inline request",
		strings.Repeat("x", lineBytesMax+10) + "\r\n":    "-ERR Protocol error: too big inline request",
		"*" + strings.Repeat("1", lineBytesMax+10):       "-ERR Protocol error: too big mbulk count string",
		"*1\r\n$" + strings.Repeat("1", lineBytesMax+10): "-ERR Protocol error: too big bulk count string",
	}
	for _, n := range []string{"a", "-5x", "2147483648", "2147483647", "1048577", "99999999999999999999", "+1", " 1", "1 ", "01", "1.0", "0x1", "", "-", "--1", "1e3", "\x00", "\xff", "-0", "१"} {
		cases["*"+n+"\r\n"] = multi
	}
	for _, n := range []string{"a", "-1", "-2", "536870913", "2147483648", "99999999999999999999", "+1", " 1", "1 ", "01", "1.0", "0x1", "", "-", "--1", "1e3", "\x00", "\xff", "-0", "१", "4294967296", "-2147483648", "1,0", "NaN"} {
		cases["*1\r\n$"+n+"\r\n"] = bulk
		cases["*2\r\n$3\r\nGET\r\n$"+n+"\r\n"] = bulk
	}
	for in, want := range cases {
		nc, peer := net.Pipe()
		s.ServeConn(nc)
		c := &client{t: t, nc: peer, r: bufio.NewReader(peer)}
		go func() { _, _ = io.WriteString(peer, string(encode("ping"))+in) }()
		if got := c.recv(); got != "+PONG" {
			t.Errorf("%.40q: the request before got %s", in, got)
		}
		if got := c.recv(); got != want {
			t.Errorf("%.40q: got %s, want %s", in, got, want)
		}
		if !c.closed() {
			t.Errorf("%.40q: the connection is open", in)
		}
		_ = peer.Close()
	}
	if len(cases) < 75 {
		t.Errorf("%d cases only", len(cases))
	}
	for _, in := range []string{"POST / HTTP/1.1\r\nHost: x\r\n\r\nset a 1\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\nset a 1\r\n", "Host: x\r\nset a 1\r\n", "post x\r\nset a 1\r\n"} {
		nc, peer := net.Pipe()
		s.ServeConn(nc)
		go func() { _, _ = io.WriteString(peer, in) }()
		got, _ := io.ReadAll(peer)
		if strings.Contains(string(got), "+OK") {
			t.Errorf("%q ran a command: %q", in, got)
		}
		_ = peer.Close()
	}
	if n := strings.Count(warned.String(), "cross-protocol"); n != 4 {
		t.Errorf("%d warnings of an attack, want 4", n)
	}
	// Bytes that are no requests at all.
	for _, in := range []string{"\x16\x03\x01\x02\x00\x01\x00", "\x00\x00\x00\x10", strings.Repeat("\x00", 100), "\n\n\n\n", "*-99\r\n*0\r\n", "$3\r\nfoo\r\n", "%1\r\n", "~1\r\n", "_\r\n", "PRI * HTTP/2.0\r\n\r\n"} {
		nc, peer := net.Pipe()
		s.ServeConn(nc)
		go func() { _, _ = io.WriteString(peer, in+"\r\nping\r\nquit\r\n") }()
		got, _ := io.ReadAll(peer)
		if !strings.HasSuffix(string(got), "+PONG\r\n+OK\r\n") {
			t.Errorf("%q then ping: got %q", in, got)
		}
		_ = peer.Close()
	}
}

// safeBuffer is a buffer that several goroutines log to.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestBadArguments_AreNamed(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c := r.dial()
	c.want("set s x", "+OK")
	c.want("hset h f v", ":1")
	const syntax, integer = "-ERR syntax error", "-ERR value is not an integer or out of range"
	for line, want := range map[string]string{
		"set a 1 ex": syntax, "set a 1 nx xx": syntax, "set a 1 ex 1 px 1": syntax, "set a 1 keepttl ex 1": syntax,
		"set a 1 ex 0": "-ERR invalid expire time in 'set' command", "set a 1 ex x": integer, "set a 1 foo": syntax,
		"setex a 0 1": "-ERR invalid expire time in 'setex' command", "psetex a -1 1": "-ERR invalid expire time in 'psetex' command",
		"getex s ex 1 persist": syntax, "getex s px 0": "-ERR invalid expire time in 'getex' command", "mset a": "-ERR wrong number of arguments for 'mset' command",
		"mset a 1 b": "-ERR wrong number of arguments for 'mset' command", "msetnx a 1 b": "-ERR wrong number of arguments for 'msetnx' command",
		"incr s": integer, "incrby s x": integer, "decrby s -9223372036854775808": "-ERR decrement would overflow",
		"incrbyfloat s 1": "-ERR value is not a valid float", "setrange s -1 x": "-ERR offset is out of range", "setrange s 4294967296 x": "-ERR string exceeds maximum allowed size (proto-max-bulk-len)",
		"getrange s a 1": integer, "get h": "-WRONGTYPE...", "hget s f": "-WRONGTYPE...", "hset h f": "-ERR wrong number of arguments for 'hset' command",
		"hset h f v g": "-ERR wrong number of arguments for 'hset' command", "hincrby h f 1": "-ERR hash value is not an integer", "hincrbyfloat h f 1": "-ERR hash value is not a float",
		"hincrby h g x": integer, "hrandfield h x": integer, "hrandfield h -9223372036854775808": "-ERR value is out of range...", "hrandfield h 1 x": syntax,
		"hrandfield h -1000000000000": "-ERR the answer is longer than the limit...", "hrandfield h -9223372036854775807 withvalues": "-ERR value is out of range",
		"expire s x": integer, "expire s 1 foo": "-ERR Unsupported option foo", "expire s 1 nx xx": "-ERR NX and XX, GT or LT...", "expire s 1 gt lt": "-ERR GT and LT...",
		"expire s 9223372036854775807": "-ERR invalid expire time in 'expire' command", "rename nope x": "-ERR no such key", "renamenx nope x": "-ERR no such key",
		"copy s s": "-ERR source and destination objects are the same", "copy s d db 1": "-ERR DB index is out of range", "copy s d db x": integer, "copy s d foo": syntax,
		"scan x": "-ERR invalid cursor", "scan 0 count 0": syntax, "scan 0 count x": integer, "scan 0 foo": syntax, "scan 0 match": syntax, "hscan h x": "-ERR invalid cursor",
		"hscan h 0 type x": syntax, "scan 18446744073709551615": `["0" []]`, "scan 99999999999999999999": "-ERR invalid cursor", "hscan h 18446744073709551615": `["0" []]`,
		"keys " + strings.Repeat("*a", 3000): "-ERR pattern of 6000 bytes is longer...", "keys " + strings.Repeat("*a", 2000): "[]",
		"flushall now": syntax, "flushdb a b": syntax, "randomkey x": "-ERR wrong number of arguments for 'randomkey' command",
	} {
		c.want(line, want)
	}
}

func TestReadOnly_SeesOwnWrites(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{ClusterMode: true})
	c := r.dial()
	c.want("readonly", "+OK")
	for i := range 20 {
		c.want(fmt.Sprintf("set a %d", i), "+OK")
		c.want("get a", fmt.Sprintf("%q", fmt.Sprint(i)))
	}
}

func TestMetrics_CountAnswers(t *testing.T) {
	mod := datatypes.New(datatypes.Config{})
	data := shardtest.New(t, shardtest.Options{}, mod)
	reg := prometheus.NewRegistry()
	s := New(Config{}, data, nil, slog.New(slog.NewTextHandler(io.Discard, nil)), reg)
	t.Cleanup(s.Close)
	nc, peer := net.Pipe()
	s.ServeConn(nc)
	c := &client{t: t, nc: peer, r: bufio.NewReader(peer)}
	c.want("set a x", "+OK")
	c.want("incr a", "-ERR...")
	c.want("event.add t v", "-ERR this node serves no event log")
	c.want("ping", "+PONG")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
		for _, m := range f.GetMetric() {
			got[f.GetName()+labels(m)] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for k, want := range map[string]float64{
		"quorate_redis_commands_total set ok": 1, "quorate_redis_commands_total incr error": 1, "quorate_redis_commands_total incr ok": 0,
		"quorate_redis_connections": 1, "quorate_redis_commands_total ping ok": 1, "quorate_redis_commands_total event.add error": 1,
	} {
		if got[k] != want {
			t.Errorf("%s = %v, want %v", k, got[k], want)
		}
	}
	if want := "quorate_redis_commands_total quorate_redis_connections quorate_redis_fenced_total quorate_redis_protocol_errors_total quorate_redis_read_bytes_total quorate_redis_written_bytes_total"; strings.Join(names, " ") != want {
		t.Errorf("metrics %v", names)
	}
}

func labels(m *dto.Metric) string {
	s := ""
	for _, l := range m.GetLabel() {
		s += " " + l.GetValue()
	}
	return s
}

func TestForeignTools(t *testing.T) {
	cli, err := exec.LookPath("redis-cli")
	if err != nil {
		t.Skip("no redis-cli on PATH")
	}
	r := newRig(t, shardtest.Options{Shards: 3, RealTime: true}, Config{ClusterMode: true})
	_, port, _ := net.SplitHostPort(r.addr)
	for _, tc := range []struct{ args, want string }{
		{"set foo bar", "OK"}, {"-c get foo", "bar"}, {"-3 hset h f v", "1"}, {"-3 hgetall h", "f"}, {"--scan", "foo"},
		{"--cluster check 127.0.0.1:" + port, "All 16384 slots covered"}, {"--bigkeys", "Sampled 2 keys"}, {"info server", "redis_version"},
	} {
		out, err := exec.Command(cli, append([]string{"-p", port}, strings.Fields(tc.args)...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), tc.want) {
			t.Errorf("redis-cli %s: %v\n%s", tc.args, err, out)
		}
	}
	bench, err := exec.LookPath("redis-benchmark")
	if err != nil {
		return
	}
	out, err := exec.Command(bench, "-p", port, "-c", "64", "-n", "2000", "-P", "4", "-q", "-t", "set,get,incr,hset").CombinedOutput()
	if err != nil || strings.Contains(string(out), "rror") {
		t.Errorf("redis-benchmark: %v\n%s", err, out)
	}
}

func BenchmarkSet(b *testing.B) {
	r := newRig(b, shardtest.Options{}, Config{})
	c := r.dial()
	one := encode("set", "key:1", strings.Repeat("v", 64))
	in := bytes.Repeat(one, 64)
	buf := make([]byte, 5*64)
	b.ReportAllocs()
	for i := 0; i < b.N; i += 64 {
		if _, err := c.nc.Write(in); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c.r, buf); err != nil {
			b.Fatal(err)
		}
	}
}
