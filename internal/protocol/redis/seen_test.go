package redis

import (
	"fmt"
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// A client for clusters keeps a transaction to one slot, as in Redis, so that it goes on to work when there are more shards; others to one shard.
func TestMulti_OneSlotForClusterClients(t *testing.T) {
	r := newRig(t, shardtest.Options{Shards: 2}, Config{ClusterMode: true})
	sp, _ := r.c.Topology().Space("default")
	other, far := "", ""
	for i := 0; other == "" || far == ""; i++ {
		k := fmt.Sprint("k", i)
		switch slot := datatypes.Slot([]byte(k)); {
		case sp.SlotShard(slot) != sp.SlotShard(datatypes.Slot([]byte("foo"))):
			far = k
		case slot != datatypes.Slot([]byte("foo")):
			other = k
		}
	}
	plain, smart := r.dial(), r.dial()
	smart.do("cluster", "slots")
	for _, c := range []*client{plain, smart} {
		c.want("multi", "+OK")
		c.want("set foo 1", "+QUEUED")
		c.want("ping", "+QUEUED")
		c.want("set {foo}2 1", "+QUEUED")
		c.want("event.add topic{foo} v", "+QUEUED")
		if c == plain {
			c.want("set "+other+" 1", "+QUEUED")
			c.want("get foo", "+QUEUED")
			c.want("exec", `[+OK +PONG +OK [:0 :0] +OK "1"]`)
		} else {
			c.want("set "+other+" 1", "-CROSSSLOT...")
			c.want("exec", "-EXECABORT...")
		}
		c.want("multi", "+OK")
		c.want("set foo 1", "+QUEUED")
		c.want("set "+far+" 1", "-CROSSSLOT...")
		c.want("exec", "-EXECABORT...")
	}
}

func TestWatch_NumberOfKeysIsBounded(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c, other := r.dial(), r.dial()
	args := []string{"watch"}
	for i := range watchedMax {
		args = append(args, fmt.Sprint(i))
	}
	if got := c.do(args...); got != "+OK" {
		t.Errorf("%d keys: %s", watchedMax, got)
	}
	c.want("watch a", "-ERR too many watched keys; the limit is 4096")
	other.want("set 4095 x", "+OK")
	c.want("multi", "+OK")
	c.want("exec", "nil*")
	c.want("watch a", "+OK")
}

func TestClient_WhoIsConnectedAndHow(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c, other := r.dial(), r.dial()
	c.want("client id", ":1")
	other.want("client id", ":2")
	list := func(words ...string) {
		t.Helper()
		got := other.do("client", "list", "id", "1")
		for _, w := range words {
			if !strings.Contains(got, " "+w+" ") && !strings.Contains(got, " "+w+`\n`) {
				t.Errorf("no %s in %s", w, got)
			}
		}
	}
	list("flags=N", "multi=-1", "cmd=client", "resp=2", "addr="+c.nc.LocalAddr().String(), "laddr="+r.addr, "name=")
	c.want("multi", "+OK")
	c.want("set a 1", "+QUEUED")
	c.want("get a", "+QUEUED")
	list("flags=x", "multi=2")
	// In the middle of EXEC's answer it would leave out part of it.
	c.want("client reply off", "-ERR Command not allowed inside a transaction")
	c.want("exec", "-EXECABORT...")
	list("flags=N", "multi=-1", "cmd=exec")
	c.want(`client setinfo LIB-NAME "a b"`, "-ERR lib-name cannot contain spaces, newlines or special characters.")
	c.want("client setinfo lib-ver 1.2", "+OK")
	if got := c.do("hello", "3", "setname", "me"); !strings.Contains(got, `"proto" :3`) {
		t.Errorf("hello: %s", got)
	}
	list("resp=3", "name=me", "lib-ver=1.2", "lib-name=")
	c.want("client getname", `"me"`)
	c.want("reset", "+RESET")
	list("resp=2", "name=")
	c.want("client getname", "nil")
	other.want("client kill laddr 127.0.0.1:1", ":0")
	other.want("client kill laddr "+r.addr+" addr "+other.nc.LocalAddr().String(), ":0")
	other.want("client kill id 1 addr "+other.nc.LocalAddr().String()+" skipme no", ":0")
	third := r.dial()
	third.want("ping", "+PONG")
	other.want("client kill "+third.nc.LocalAddr().String(), "+OK")
	if !third.closed() {
		t.Error("killed by its address, and open")
	}
	eventually(t, "the end of who was killed", func() bool {
		return !strings.Contains(other.do("client", "list"), "addr="+third.nc.LocalAddr().String()+" ")
	})
	other.want("client kill laddr "+r.addr, ":1")
	if !c.closed() {
		t.Error("killed by the server's address, and open")
	}
	// In the old form, the client that asks is no exception.
	other.want("client kill "+other.nc.LocalAddr().String(), "+OK")
	if !other.closed() {
		t.Error("killed itself by its address, and open")
	}
}

func TestInfo_Sections(t *testing.T) {
	c := newRig(t, shardtest.Options{}, Config{}).dial()
	sections := func(args ...string) (s []string) {
		for _, line := range strings.Split(c.do(append([]string{"info"}, args...)...), `\r\n`) {
			if name, ok := strings.CutPrefix(strings.TrimPrefix(line, `"`), "# "); ok {
				s = append(s, strings.ToLower(name))
			}
		}
		return s
	}
	all := strings.Join(infoSections[:], " ")
	for ask, want := range map[string]string{
		"": all, "all": all, "EVERYTHING": all, "default": all, "nothing": "", "Memory": "memory", "cluster SERVER": "server cluster", "nothing default": all,
	} {
		if got := strings.Join(sections(strings.Fields(ask)...), " "); got != want {
			t.Errorf("INFO %s has the sections %q, want %q", ask, got, want)
		}
	}
}

func TestInfo_CountsWhomItTurnsAway(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{ConnectionsMax: 1})
	c := r.dial()
	c.want("ping", "+PONG")
	for range 3 {
		if got := r.dial().recv(); got != "-ERR max number of clients reached" {
			t.Errorf("one too many: %s", got)
		}
	}
	for section, want := range map[string][]string{
		"stats": {"rejected_connections:3", "total_connections_received:1"}, "clients": {"connected_clients:1", "maxclients:1"},
		"memory": {"maxmemory:0", "maxmemory_policy:noeviction"}, "server": {"uptime_in_seconds:0", "redis_mode:standalone"}, "persistence": {"loading:0", "rdb_changes_since_last_save:0"},
	} {
		got := c.do("info", section)
		for _, w := range want {
			if !strings.Contains(got, `\r\n`+w+`\r\n`) {
				t.Errorf("no %s in %s", w, got)
			}
		}
	}
}

func TestCluster_NodesThatHoldNothing(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{ClusterMode: true})
	r.c.SetTopology(func(t *shard.Topology) {
		t.Nodes = append(t.Nodes, shard.Node{ID: 2, Up: true, Addr: map[string]string{"redis": "10.0.0.2:6379"}}, shard.Node{ID: 3, Up: true}, shard.Node{ID: 4, Up: true, Addr: map[string]string{"redis": "nowhere"}})
	})
	c := r.dial()
	c.want("cluster links", "[]")
	c.want("cluster help", "[+CLUSTER...")
	got := c.do("cluster", "nodes")
	if want := nodeID("test", 2) + ` 10.0.0.2:6379@16379 master - 0 0 0 connected\n`; !strings.Contains(got, want) || strings.Count(got, `\n`) != 2 {
		t.Errorf("CLUSTER NODES: %s", got)
	}
	// Who leads, and cannot be reached, is left out, so that clients ask again.
	r.c.SetTopology(func(t *shard.Topology) {
		t.Shards = []shard.ShardInfo{{ID: 1, Leader: 3, Term: 5, Replicas: []shard.NodeID{1, 2, 3}}}
	})
	c.want("cluster slots", "[]")
	r.c.SetTopology(func(t *shard.Topology) {
		t.Shards = []shard.ShardInfo{{ID: 1, Leader: 2, Term: 5, Replicas: []shard.NodeID{1, 2, 3}}}
	})
	if got := c.do("cluster", "info"); !strings.Contains(got, `cluster_slots_ok:16384\r\n`) || !strings.Contains(got, `cluster_current_epoch:5\r\n`) || !strings.Contains(got, `cluster_known_nodes:4\r\n`) {
		t.Errorf("CLUSTER INFO: %s", got)
	}
}

// Who cannot be sent to a leader that can be reached is served here.
func TestCluster_NobodyToSendTo(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{ClusterMode: true})
	c := r.dial()
	if got := c.do("hello"); !strings.Contains(got, `"mode" "cluster"`) {
		t.Errorf("hello: %s", got)
	}
	if got := c.do("info", "server"); !strings.Contains(got, `redis_mode:cluster\r\n`) {
		t.Errorf("info: %s", got)
	}
	c.want("config get cluster-enabled", `["cluster-enabled" "yes"]`)
	c.do("cluster", "slots")
	for name, leader := range map[string]shard.Node{
		"none": {}, "one that is not known": {ID: 9}, "one without an address": {ID: 2, Up: true},
	} {
		r.c.SetTopology(func(t *shard.Topology) {
			t.Nodes = []shard.Node{{ID: 1, Up: true, Addr: map[string]string{"redis": "10.0.0.1:6379"}}, {ID: 2, Up: true}}
			t.Shards = []shard.ShardInfo{{ID: 1, Leader: leader.ID, Term: 2, Replicas: []shard.NodeID{1, 2}}}
		})
		if got := c.do("set", "a", "1"); got != "+OK" {
			t.Errorf("the leader is %s: %s", name, got)
		}
	}
	r.c.SetTopology(func(t *shard.Topology) {
		t.Nodes[1].Addr = map[string]string{"redis": "10.0.0.2:6379"}
		t.Shards[0].Leader = 2
	})
	c.want("set a 1", "-MOVED 15495 10.0.0.2:6379")
	c.want("readonly", "+OK")
	c.want("get a", `"1"`)
	c.want("set a 1", "-MOVED 15495 10.0.0.2:6379")
	// It does not hold the shard.
	r.c.SetTopology(func(t *shard.Topology) { t.Shards[0].Replicas = []shard.NodeID{2, 3} })
	c.want("get a", "-MOVED 15495 10.0.0.2:6379")
}

// WAIT tells what every write is sure to have, in the shard where that is least.
func TestWait_CountsTheSmallestMajority(t *testing.T) {
	r := newRig(t, shardtest.Options{Shards: 2}, Config{})
	c := r.dial()
	for _, n := range [][2]int{{3, 5}, {5, 3}} {
		r.c.SetTopology(func(t *shard.Topology) {
			shards := append([]shard.ShardInfo(nil), t.Shards...)
			for i := range shards {
				shards[i].Replicas = make([]shard.NodeID, n[i])
			}
			t.Shards = shards
		})
		c.want("wait 9 0", ":1")
	}
}

func TestEventAdd_LongKey(t *testing.T) {
	c := newRig(t, shardtest.Options{}, Config{}).dial()
	if got := c.do("event.add", "t", "v", "key", strings.Repeat("k", datatypes.KeyBytesMax)); got != "[:0 :0]" {
		t.Errorf("a key as long as may be: %s", got)
	}
	if got := c.do("event.add", "t", "v", "key", strings.Repeat("k", datatypes.KeyBytesMax+1)); !strings.HasPrefix(got, "-") {
		t.Errorf("a key that is too long: %s", got)
	}
	c.want("event.add t v partition 2147483648", "-ERR PARTITION must be...")
	c.want("event.add t v partition -1", "-ERR PARTITION must be...")
	c.want("event.add {a} v", "-ERR the topic has no name...")
	c.want("event.add missing v", "-ERR no topic...")
}

func TestSplitWords_AsRedisDoes(t *testing.T) {
	for line, want := range map[string]string{
		`"\x41\x6F\x6f\xfF\xAa"`: "Aoo\xff\xaa", `"\xg1"`: "xg1", `"\x1g"`: "x1g", `"\xG1"`: "xG1", "\"\\x`1\"": "x`1", `"\x@1"`: "x@1", `"\x1"`: "x1",
		`"\n\r\t\b\a\\\""`: "\n\r\t\b\a\\\"", `'it\'s\n'`: `it's\n`,
	} {
		if words, ok := splitWords([]byte(line)); !ok || len(words) != 1 || string(words[0]) != want {
			t.Errorf("%s: %q, %v, want %q", line, words, ok, want)
		}
	}
	for _, line := range []string{`"a`, `'a`, `"a"b`, `'a'b`, `"a\"`} {
		if words, ok := splitWords([]byte(line)); ok {
			t.Errorf("%s: %q", line, words)
		}
	}
}
