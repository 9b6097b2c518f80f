package test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// quietLog fails the test that go-redis logs something in.
type quietLog struct {
	mu sync.Mutex
	t  *testing.T
}

func (q *quietLog) Printf(_ context.Context, format string, v ...any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.t != nil {
		q.t.Errorf("go-redis logged: "+format, v...)
	}
}

// noRedisLog makes every line that go-redis logs during the test an error. The logger is the library's global, so tests
// that use it must not run in parallel.
func noRedisLog(t *testing.T) {
	q := &quietLog{t: t}
	redis.SetLogger(q)
	t.Cleanup(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.t = nil
	})
}

func single(t *testing.T, n *node) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: n.redis})
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func clusterClient(t *testing.T, c *cluster) *redis.ClusterClient {
	cc := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.redisAddrs()})
	t.Cleanup(func() {
		if err := cc.Close(); err != nil {
			t.Error(err)
		}
	})
	return cc
}

var shardCounts = []int{1, 3}

func TestGoRedis_SingleClientOnEachNode(t *testing.T) {
	for _, shards := range shardCounts {
		t.Run(fmt.Sprintf("%d shards", shards), func(t *testing.T) {
			noRedisLog(t)
			c, ctx := shared(t, shards), within(t)
			for _, n := range c.nodes {
				r := single(t, n)
				// Keys of every shard, so that each node also serves what others lead.
				for i := range 30 {
					k := fmt.Sprintf("single:%d:%d", n.id, i)
					if err := r.Set(ctx, k, i, 0).Err(); err != nil {
						t.Fatalf("node %d: SET %s: %v", n.id, k, err)
					}
					// Another node sees it at once: reads are linearizable.
					other := single(t, c.nodes[n.id%3])
					if got, err := other.Get(ctx, k).Int(); err != nil || got != i {
						t.Fatalf("node %d: GET %s = %d, %v; want %d", n.id%3+1, k, got, err, i)
					}
				}
				testTypes(t, ctx, r, fmt.Sprintf("types:%d", n.id))
			}
		})
	}
}

// testTypes goes through every data type with the client's own decoding.
func testTypes(t *testing.T, ctx context.Context, r redis.Cmdable, k string) {
	t.Helper()
	check := func(what string, err error) {
		t.Helper()
		if err != nil && !errors.Is(err, redis.Nil) {
			t.Fatalf("%s: %v", what, err)
		}
	}
	s := k + ":s"
	check("SETEX", r.Set(ctx, s, "v", time.Hour).Err())
	if d, err := r.TTL(ctx, s).Result(); err != nil || d <= 0 || d > time.Hour {
		t.Fatalf("TTL = %v, %v", d, err)
	}
	if n, err := r.IncrBy(ctx, k+":n", 41).Result(); err != nil || n != 41 {
		t.Fatalf("INCRBY = %d, %v", n, err)
	}
	if f, err := r.IncrByFloat(ctx, k+":n", 0.5).Result(); err != nil || f != 41.5 {
		t.Fatalf("INCRBYFLOAT = %v, %v", f, err)
	}
	check("HSET", r.HSet(ctx, k+":h", "a", 1, "b", "two").Err())
	if m, err := r.HGetAll(ctx, k+":h").Result(); err != nil || len(m) != 2 || m["b"] != "two" {
		t.Fatalf("HGETALL = %v, %v", m, err)
	}
	if err := r.Get(ctx, k+":nothing").Err(); !errors.Is(err, redis.Nil) {
		t.Fatalf("GET of nothing = %v, want redis.Nil", err)
	}
	if err := r.HGet(ctx, s, "f").Err(); err == nil || !strings.HasPrefix(err.Error(), "WRONGTYPE") {
		t.Fatalf("HGET of a string = %v, want WRONGTYPE", err)
	}
	if n, err := r.Del(ctx, s).Result(); err != nil || n != 1 {
		t.Fatalf("DEL = %d, %v", n, err)
	}
}

func TestGoRedis_Pipeline(t *testing.T) {
	noRedisLog(t)
	c, ctx := shared(t, 3), within(t)
	for _, n := range c.nodes {
		r := single(t, n)
		cmds, err := r.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i := range 500 {
				p.Set(ctx, fmt.Sprintf("pipe:%d", i), i, 0)
				p.Get(ctx, fmt.Sprintf("pipe:%d", i))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 500 {
			if got := cmds[2*i+1].(*redis.StringCmd).Val(); got != fmt.Sprint(i) {
				t.Fatalf("reply %d is %q", i, got)
			}
		}
	}
}

func TestGoRedis_WatchedKeyChanged_AbortsTransaction(t *testing.T) {
	noRedisLog(t)
	c, ctx := shared(t, 1), within(t)
	a, b := single(t, c.nodes[0]), single(t, c.nodes[1])
	if err := a.Set(ctx, "watched", "1", 0).Err(); err != nil {
		t.Fatal(err)
	}
	err := a.Watch(ctx, func(tx *redis.Tx) error {
		if err := b.Set(ctx, "watched", "2", 0).Err(); err != nil {
			return err
		}
		_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error {
			p.Set(ctx, "watched", "3", 0)
			return nil
		})
		return err
	}, "watched")
	if !errors.Is(err, redis.TxFailedErr) {
		t.Errorf("got %v, want TxFailedErr", err)
	}
	if v := b.Get(ctx, "watched").Val(); v != "2" {
		t.Errorf("got %q, want 2", v)
	}
}

func TestGoRedisCluster_KeysOfEveryShard(t *testing.T) {
	for _, shards := range shardCounts {
		t.Run(fmt.Sprintf("%d shards", shards), func(t *testing.T) {
			noRedisLog(t)
			c, ctx := shared(t, shards), within(t)
			cc := clusterClient(t, c)
			slots, err := cc.ClusterSlots(ctx).Result()
			if err != nil {
				t.Fatal(err)
			}
			covered := 0
			for _, s := range slots {
				covered += s.End - s.Start + 1
				if len(s.Nodes) == 0 {
					t.Errorf("slots %d-%d have no node", s.Start, s.End)
				}
			}
			if covered != 16384 {
				t.Errorf("the slot map covers %d slots", covered)
			}
			for i := range 200 {
				k := fmt.Sprintf("cluster:%d", i)
				if err := cc.Set(ctx, k, i, 0).Err(); err != nil {
					t.Fatalf("SET %s: %v", k, err)
				}
				if got, err := cc.Get(ctx, k).Int(); err != nil || got != i {
					t.Fatalf("GET %s = %d, %v", k, got, err)
				}
			}
			_, err = cc.Pipelined(ctx, func(p redis.Pipeliner) error {
				for i := range 200 {
					p.Incr(ctx, fmt.Sprintf("cluster:n:%d", i))
				}
				return nil
			})
			if err != nil {
				t.Fatalf("pipeline over slots: %v", err)
			}
			testTypes(t, ctx, cc, "{cluster}")
		})
	}
}

func TestGoRedisCluster_TransactionWithEvent(t *testing.T) {
	for _, shards := range shardCounts {
		t.Run(fmt.Sprintf("%d shards", shards), func(t *testing.T) {
			noRedisLog(t)
			c, ctx := shared(t, shards), within(t)
			cc := clusterClient(t, c)
			topic := fmt.Sprintf("orders-%d", shards)
			want := map[string]string{}
			for i := range 30 {
				tag := fmt.Sprintf("{order-%d}", i)
				cmds, err := cc.TxPipelined(ctx, func(p redis.Pipeliner) error {
					p.HSet(ctx, tag, "state", "paid")
					p.Incr(ctx, tag+":count")
					p.Do(ctx, "EVENT.ADD", topic+tag, fmt.Sprintf("paid %d", i), "KEY", tag)
					return nil
				})
				if err != nil {
					t.Fatalf("transaction %d: %v", i, err)
				}
				at, err := cmds[2].(*redis.Cmd).Int64Slice()
				if err != nil || len(at) != 2 {
					t.Fatalf("EVENT.ADD answered %v, %v; want [partition, offset]", cmds[2], err)
				}
				want[tag] = fmt.Sprintf("paid %d", i)
			}
			got := map[string]string{}
			for _, r := range readTopic(t, c.follower(t, 1), topic, len(want)) {
				got[string(r.Key)] = string(r.Value)
			}
			for k, v := range want {
				if got[k] != v {
					t.Errorf("event of %s is %q, want %q", k, got[k], v)
				}
			}
			// An aborted transaction leaves neither state nor event.
			_, err := cc.TxPipelined(ctx, func(p redis.Pipeliner) error {
				p.Set(ctx, "{order-0}:x", "1", 0)
				p.Do(ctx, "EVENT.ADD", topic+"{order-0}", "value", "KEY")
				return nil
			})
			if err == nil {
				t.Error("a transaction with a malformed event was accepted")
			}
			if n := cc.Exists(ctx, "{order-0}:x").Val(); n != 0 {
				t.Error("the aborted transaction left a key")
			}
		})
	}
}

func TestGoRedisCluster_KeysOfSeveralSlots_AreRefused(t *testing.T) {
	noRedisLog(t)
	c, ctx := shared(t, 3), within(t)
	r := single(t, c.nodes[0])
	err := r.MSet(ctx, "a", 1, "b", 2, "c", 3, "d", 4, "e", 5, "f", 6).Err()
	if err == nil || !strings.HasPrefix(err.Error(), "CROSSSLOT") {
		t.Errorf("got %v, want CROSSSLOT", err)
	}
}

func TestRedisCLI_SingleAndCluster(t *testing.T) {
	for _, shards := range shardCounts {
		t.Run(fmt.Sprintf("%d shards", shards), func(t *testing.T) {
			c := shared(t, shards)
			for _, n := range c.nodes {
				host, port, _ := strings.Cut(n.redis, ":")
				for i := range 10 {
					k := fmt.Sprintf("cli:%d:%d", n.id, i)
					if out := tool(t, "", "redis-cli", "-h", host, "-p", port, "set", k, "v"); out != "OK\n" {
						t.Errorf("set: %q", out)
					}
					if out := tool(t, "", "redis-cli", "-c", "-h", host, "-p", port, "get", k); out != "v\n" {
						t.Errorf("get -c: %q", out)
					}
				}
				out := tool(t, "MULTI\nSET {t}a 1\nINCR {t}a\nEVENT.ADD cli{t} hello KEY k\nEXEC\n", "redis-cli", "-c", "-h", host, "-p", port)
				if !strings.Contains(out, "OK") || !strings.Contains(out, "\n2\n") {
					t.Errorf("transaction: %q", out)
				}
				if out := tool(t, "", "redis-cli", "-3", "-h", host, "-p", port, "hello", "3"); !strings.Contains(out, "proto") {
					t.Errorf("hello 3: %q", out)
				}
				if out := tool(t, "", "redis-cli", "-h", host, "-p", port, "info", "replication"); !strings.Contains(out, "role:") {
					t.Errorf("info: %q", out)
				}
			}
			if out := tool(t, "", "redis-cli", "--cluster", "check", c.nodes[0].redis); !strings.Contains(out, "All 16384 slots covered") {
				t.Errorf("cluster check: %s", out)
			}
		})
	}
}
