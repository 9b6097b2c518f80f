package redis

import (
	"fmt"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"

	"github.com/quorate/quorate/internal/coord"
	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// holders hands a lock from one holder to the next.
type holders struct {
	t *testing.T
	c *coord.Client
	// last is the claim of the present holder.
	last coord.Claim
}

func (r *rig) holders(t *testing.T) *holders {
	return &holders{t: t, c: coord.New(r.c, coord.Home(r.c, "default"))}
}

// next returns the token of a new holder of the lock named l.
func (h *holders) next() string {
	h.t.Helper()
	if h.last.Key != nil {
		if _, err := h.c.Unlock(h.t.Context(), h.last.Key); err != nil {
			h.t.Fatal(err)
		}
	}
	var err error
	if h.last, err = h.c.Lock(h.t.Context(), []byte("l"), 0); err != nil {
		h.t.Fatal(err)
	}
	return fmt.Sprint(h.last.Token)
}

const staleWant = "-FENCED token..."

func TestFence_OneCommand(t *testing.T) {
	for _, shards := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d shards", shards), func(t *testing.T) {
			r := newRig(t, shardtest.Options{Shards: shards}, Config{ClusterMode: true})
			c, h := r.dial(), r.holders(t)
			old := h.next()
			// Keys of every shard.
			for i := range 9 {
				c.want(fmt.Sprintf("fence l %s set k%d old", old, i), "+OK")
			}
			c.want("fence l 999999 set k0 x", staleWant)
			c.want("fence other 5 set k0 x", staleWant)
			now := h.next()
			for i := range 9 {
				k := fmt.Sprint("k", i)
				c.want("fence l "+now+" append "+k+" +new", ":7")
				c.want("fence l "+old+" set "+k+" late", staleWant)
				c.want("FENCE l "+old+" del "+k, staleWant)
				c.want("get "+k, `"old+new"`)
			}
			c.want("fence l "+old+" flushall", staleWant)
			c.want("get k1", `"old+new"`)
			c.want("fence l "+old+" event.add t v", staleWant)
			c.want("fence l "+now+" event.add t v", "[:0 :0]")
			// The connection itself is free.
			c.want("set k0 free", "+OK")
			c.want("fence l "+now+" flushall", "+OK")
			c.want("dbsize", ":0")
		})
	}
}

func TestFence_EveryWriteCommandHonoursIt(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c, h := r.dial(), r.holders(t)
	old := h.next()
	h.next()
	c.want("fence l "+old, "+OK")
	n := 0
	for _, s := range datatypes.Commands() {
		if s.Flags&datatypes.Write == 0 {
			continue
		}
		n++
		words := []string{s.Name}
		for len(words) < max(s.Arity, -s.Arity) {
			words = append(words, "1")
		}
		c.want(strings.Join(words, " "), staleWant)
		c.want("fence l "+old+" "+strings.Join(words, " "), staleWant)
	}
	if n < 30 {
		t.Errorf("%d commands only", n)
	}
	c.want("dbsize", ":0")
	if rev := r.c.Machine(1).Revision(); rev > 6 {
		t.Errorf("the refused writes left revision %d", rev)
	}
	var m dto.Metric
	if err := r.s.metric.fenced.Write(&m); err != nil || m.GetCounter().GetValue() != float64(2*n) {
		t.Errorf("%v refused writes counted, want %d (%v)", m.GetCounter().GetValue(), 2*n, err)
	}
}

func TestFence_Connection(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c, h := r.dial(), r.holders(t)
	old := h.next()
	c.want("fence l "+old, "+OK")
	c.want("set a 1", "+OK")
	now := h.next()
	c.want("set a 2", staleWant)
	c.want("get a", `"1"`)
	c.want("mset a 3 b 3", staleWant)
	c.want("fence l "+now, "+OK")
	c.want("incr a", ":2")
	// Both the connection's and the command's must hold.
	c.want("fence l "+old+" incr a", staleWant)
	h.next()
	c.want("fence l "+now+" incr a", staleWant)
	c.want("fence off", "+OK")
	c.want("incr a", ":3")
	c.want("fence l "+old, "+OK")
	c.want("reset", "+RESET")
	c.want("incr a", ":4")
	// Another connection is another matter.
	c.want("fence l "+old, "+OK")
	d := r.dial()
	d.want("incr a", ":5")
	c.want("incr a", staleWant)
}

// Who meant to be fenced and made a mistake does not write without.
func TestFence_MistakesRefuseLaterWrites(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c := r.dial()
	token := r.holders(t).next()
	for _, bad := range []string{"fence l x", "fence l 0", "fence l -1", "fence l 99999999999999999999", "fence on", `fence "" 5`, "fence " + strings.Repeat("l", 1025) + " 5"} {
		c.want("fence off", "+OK")
		c.want(bad, "-ERR ...")
		c.want("set a 1", "-FENCED this connection does not write...")
		c.want("get a", "nil")
	}
	c.want("fence l "+token, "+OK")
	c.want("set a 1", "+OK")
	// A command with a bad fence of its own is only refused itself.
	for line, want := range map[string]string{
		"fence l x set a 2":                 "-ERR fencing token 'x' is no number from 1; it is the creation revision of the holder's key",
		"fence l " + token + " get a":       "-ERR 'get' behind FENCE does not write, and only writes are fenced; send it without FENCE",
		"fence l " + token + " nope a":      "-ERR unknown command 'nope' behind FENCE",
		"fence l " + token + " set a":       "-ERR wrong number of arguments for 'set' command",
		"fence l " + token + " multi":       "-ERR 'multi' behind FENCE does not write...",
		"fence l 1 fence l 1 set a 2":       "-ERR 'fence' behind FENCE does not write...",
		"fence l":                           "-ERR wrong number of arguments for 'fence' command...",
		"fence":                             "-ERR wrong number of arguments for 'fence' command",
		"fence l " + token + " event.add t": "-ERR wrong number of arguments for 'event.add' command",
	} {
		if line == "fence l" {
			continue
		}
		c.want(line, want)
	}
	c.want("get a", `"1"`)
	c.want("set a 2", "+OK")
}

func TestFence_Transaction(t *testing.T) {
	for _, shards := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d shards", shards), func(t *testing.T) {
			r := newRig(t, shardtest.Options{Shards: shards}, Config{ClusterMode: true})
			c, h := r.dial(), r.holders(t)
			old := h.next()
			exec := func(want string, lines ...string) {
				t.Helper()
				c.want("multi", "+OK")
				for _, l := range lines {
					c.want(l, "+QUEUED")
				}
				c.want("exec", want)
			}
			for _, tag := range []string{"{a}", "{b}", "{c}"} {
				exec("[+OK :1 [:0...", "fence l "+old, "incr n"+tag, "event.add t"+tag+" v")
			}
			now := h.next()
			for _, tag := range []string{"{a}", "{b}", "{c}"} {
				exec("[:2 +OK]", "fence l "+now+" incr n"+tag, "set k"+tag+" 1")
				exec(staleWant, "incr n"+tag, "fence l "+old, "event.add t"+tag+" v")
				exec(staleWant, "incr n"+tag, "fence l "+old+" set k"+tag+" 2")
				exec(staleWant, "fence l "+now, "fence l "+old, "get n"+tag)
				c.want("get n"+tag, `"2"`)
			}
			exec("[+OK]", "fence l "+now)
			exec(staleWant, "fence l "+old)
			// The connection's fence guards transactions that write.
			c.want("fence l "+old, "+OK")
			exec(staleWant, "get n{a}", "incr n{a}")
			exec("[\"2\" +PONG]", "get n{a}", "ping")
			c.want("fence off", "+OK")
			// What cannot be a fence aborts the transaction.
			c.want("multi", "+OK")
			c.want("fence off", "-ERR FENCE inside a transaction...")
			c.want("incr n{a}", "+QUEUED")
			c.want("exec", "-EXECABORT ...")
			c.want("multi", "+OK")
			for range datatypes.FencesMax - 1 {
				c.want("fence l "+now, "+QUEUED")
			}
			c.want("fence l "+now, "-ERR the transaction has 15 fences, the most it may have")
			c.want("discard", "+OK")
			c.want("watch n{a}", "+OK")
			exec(staleWant, "fence l "+old)
			c.want("watch n{a}", "+OK")
			r.dial().want("set n{a} 7", "+OK")
			exec("nil*", "fence l "+now, "incr n{a}")
		})
	}
}

func TestFence_Pipelined(t *testing.T) {
	r := newRig(t, shardtest.Options{Shards: 3}, Config{})
	c, h := r.dial(), r.holders(t)
	old := h.next()
	now := h.next()
	var in strings.Builder
	for i := range 50 {
		in.Write(encode("fence", "l", []string{now, old}[i%2], "incr", fmt.Sprint("k", i/2)))
		in.Write(encode("get", fmt.Sprint("k", i/2)))
	}
	in.Write(encode("fence", "l", "x"))
	in.Write(encode("set", "k", "unfenced"))
	c.send(in.String())
	for i := range 50 {
		got, want := c.recv(), ":1"
		if i%2 == 1 {
			want = "-FENCED"
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("%d: %s, want %s", i, got, want)
		}
		if got := c.recv(); got != `"1"` {
			t.Errorf("%d: %s", i, got)
		}
	}
	if a, b := c.recv(), c.recv(); !strings.HasPrefix(a, "-ERR fencing token") || !strings.HasPrefix(b, "-FENCED this connection") {
		t.Errorf("%s, then %s", a, b)
	}
}

func TestFence_Routing(t *testing.T) {
	r := newRig(t, shardtest.Options{Shards: 2, Addr: map[string]string{"redis": "127.0.0.1:7001"}}, Config{ClusterMode: true})
	token := r.holders(t).next()
	r.c.SetTopology(func(t *shard.Topology) {
		t.Nodes = append(t.Nodes, shard.Node{ID: 2, Up: true, Addr: map[string]string{"redis": "127.0.0.1:7002"}})
		t.Shards = []shard.ShardInfo{{ID: 1, Leader: 1, Term: 1}, {ID: 2, Leader: 2, Term: 1}}
	})
	c := r.dial()
	c.want("cluster slots", "[...")
	c.want("fence l "+token+" set foo 1", "-MOVED 12182 127.0.0.1:7002")
	c.want("fence l "+token+" set bar 1", "+OK")
	c.want("fence l "+token+" mset bar 1 foo 2", "-CROSSSLOT...")
	c.want("fence l "+token+" event.add t{foo} v", "-MOVED 12182 127.0.0.1:7002")
	c.want("command getkeys fence l 5 mset a 1 b 2", `["a" "b"]`)
	c.want("command getkeys fence l 5", "-ERR The command has no key arguments")
	c.want("command getkeys fence l 5 nope", "-ERR Invalid command specified")
	if got := c.do("command", "info", "fence"); !strings.Contains(got, "movablekeys") || !strings.Contains(got, ":4 :4 :1") {
		t.Errorf("COMMAND INFO: %s", got)
	}
	if got := c.do("command", "docs", "fence"); !strings.Contains(got, "summary") {
		t.Errorf("COMMAND DOCS: %s", got)
	}
}

// The lock's own shard decides what another one is to believe; if it cannot be asked, nothing is written.
func TestFence_NobodyToAskAboutANewToken(t *testing.T) {
	r := newRig(t, shardtest.Options{Shards: 3}, Config{})
	c := r.dial()
	token := r.holders(t).next()
	r.c.Refuse(errs.New(errs.Unavailable, "told to refuse"))
	for i := range 6 {
		c.want(fmt.Sprintf("fence l %s set k%d v", token, i), "-CLUSTERDOWN ...")
	}
	r.c.Refuse(nil)
	c.want("dbsize", ":0")
}
