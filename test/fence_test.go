package test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// twoHolders takes a lock with etcd's own mutex, loses it, and lets another take it: the tokens of the stale and of the present holder.
func twoHolders(t *testing.T, c *cluster, lock string, between func(token int64)) (stale, now int64) {
	t.Helper()
	ctx := within(t)
	hold := func() (int64, *concurrency.Session, *concurrency.Mutex) {
		t.Helper()
		s, err := concurrency.NewSession(etcdClient(t, c.etcdAddrs()...), concurrency.WithTTL(30))
		if err != nil {
			t.Fatal(err)
		}
		m := concurrency.NewMutex(s, lock)
		if err := m.Lock(ctx); err != nil {
			t.Fatal(err)
		}
		return m.Header().Revision, s, m
	}
	stale, s, m := hold()
	between(stale)
	// The session ends behind the holder's back.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	now, s2, m2 := hold()
	t.Cleanup(func() { _ = s2.Close() })
	// In etcd itself the same is a transaction.
	e := etcdClient(t, c.etcdAddrs()...)
	for _, h := range []struct {
		m    *concurrency.Mutex
		want bool
	}{{m, false}, {m2, true}} {
		r, err := e.Txn(ctx).If(h.m.IsOwner()).Then(clientv3.OpPut(lock+"-data", "x")).Commit()
		if err != nil || r.Succeeded != h.want {
			t.Errorf("etcd: %v %v, want %v", r, err, h.want)
		}
	}
	return stale, now
}

func TestFence_GoRedisSingleAndCluster(t *testing.T) {
	for _, shards := range shardCounts {
		t.Run(fmt.Sprintf("%d shards", shards), func(t *testing.T) {
			noRedisLog(t)
			c, ctx := shared(t, shards), within(t)
			one, many := single(t, c.nodes[0]), clusterClient(t, c)
			lock := "fence"
			// do sends a fenced command, with the hint of where its key is and without.
			do := func(r redis.UniversalClient, hint bool, args ...any) error {
				cmd := redis.NewCmd(ctx, args...)
				if hint {
					cmd.SetFirstKeyPos(4)
				}
				_ = r.Process(ctx, cmd)
				return cmd.Err()
			}
			key := func(i int) string { return fmt.Sprintf("fenced:%d", i) }
			stale, now := twoHolders(t, c, lock, func(token int64) {
				for i := range 20 {
					for _, r := range []redis.UniversalClient{one, many} {
						if err := do(r, i%2 == 0, "FENCE", lock, token, "SET", key(i), "first"); err != nil {
							t.Fatalf("holder: %v", err)
						}
					}
				}
			})
			fenced := func(what string, err error) {
				t.Helper()
				if err == nil || !strings.HasPrefix(err.Error(), "FENCED ") || !strings.Contains(err.Error(), "acquire the lock again") {
					t.Errorf("%s: %v", what, err)
				}
			}
			for i := range 20 {
				for _, r := range []redis.UniversalClient{one, many} {
					if err := do(r, i%2 == 0, "FENCE", lock, now, "SET", key(i), "second"); err != nil {
						t.Fatalf("next holder: %v", err)
					}
					fenced("stale SET", do(r, i%2 == 0, "FENCE", lock, stale, "SET", key(i), "late"))
					if got, err := r.Get(ctx, key(i)).Result(); err != nil || got != "second" {
						t.Errorf("%s is %q %v", key(i), got, err)
					}
				}
			}
			for name, r := range map[string]redis.UniversalClient{"single": one, "cluster": many} {
				run := func(token int64) error {
					_, err := r.TxPipelined(ctx, func(p redis.Pipeliner) error {
						if name == "single" {
							p.Do(ctx, "FENCE", lock, token)
							p.Incr(ctx, name+"{x}")
						} else {
							// In front of a command it has a key, by which the client finds the node.
							p.Do(ctx, "FENCE", lock, token, "INCR", name+"{x}")
						}
						p.Do(ctx, "EVENT.ADD", "fenced-"+name+"{x}", "v")
						return nil
					})
					return err
				}
				if err := run(now); err != nil {
					t.Errorf("%s: transaction: %v", name, err)
				}
				fenced(name+": stale transaction", run(stale))
				if n, err := r.Get(ctx, name+"{x}").Int(); err != nil || n != 1 {
					t.Errorf("%s: %d after one good transaction (%v)", name, n, err)
				}
			}
			// A connection's own fence, set whenever the pool makes a connection.
			pool := redis.NewClient(&redis.Options{Addr: c.nodes[1].redis, OnConnect: func(ctx context.Context, cn *redis.Conn) error {
				return cn.Do(ctx, "FENCE", lock, stale).Err()
			}})
			defer func() { _ = pool.Close() }()
			fenced("pool", pool.Set(ctx, "pooled", "late", 0).Err())
			if err := pool.Get(ctx, "pooled").Err(); !errors.Is(err, redis.Nil) {
				t.Errorf("read of a fenced pool: %v", err)
			}
			// redis-cli finds its way by MOVED.
			for i := range 5 {
				host, port, _ := net.SplitHostPort(c.nodes[i%3].redis)
				if out := tool(t, "", "redis-cli", "-c", "-h", host, "-p", port, "FENCE", lock, fmt.Sprint(now), "APPEND", key(i), "+"); !strings.HasPrefix(out, "7") {
					t.Errorf("redis-cli: %q", out)
				}
				if out, _ := tryTool(t, "", "redis-cli", "-c", "-h", host, "-p", port, "FENCE", lock, fmt.Sprint(stale), "APPEND", key(i), "-"); !strings.HasPrefix(out, "FENCED") {
					t.Errorf("redis-cli: %q", out)
				}
			}
		})
	}
}

func TestFence_FranzGo(t *testing.T) {
	for _, shards := range shardCounts {
		t.Run(fmt.Sprintf("%d shards", shards), func(t *testing.T) {
			c, ctx := shared(t, shards), within(t)
			lock, topic := "kafka-lock", fmt.Sprintf("under-lock-%d", shards)
			adm := kadm.NewClient(kafkaClient(t, c.nodes[0]))
			if _, err := adm.CreateTopic(ctx, 3, -1, map[string]*string{"quorate.fence": &lock}, topic); err != nil {
				t.Fatal(err)
			}
			described, err := adm.DescribeTopicConfigs(ctx, topic)
			shown := ""
			for _, d := range described {
				for _, cfg := range d.Configs {
					if cfg.Key == "quorate.fence" {
						shown = cfg.MaybeValue()
					}
				}
			}
			if err != nil || shown != lock {
				t.Errorf("DescribeConfigs shows %q (%v)", shown, err)
			}
			// One idempotent producer goes on through refusals: what it sends later is in order and once.
			p := kafkaClient(t, c.nodes[0], kgo.RecordPartitioner(kgo.ManualPartitioner()))
			send := func(part int32, token int64, value string) error {
				r := &kgo.Record{Topic: topic, Partition: part, Value: []byte(value)}
				if token != 0 {
					r.Headers = []kgo.RecordHeader{{Key: "quorate-fence", Value: fmt.Append(nil, token)}}
				}
				return p.ProduceSync(ctx, r).FirstErr()
			}
			stale, now := twoHolders(t, c, lock, func(token int64) {
				for part := range int32(3) {
					if err := send(part, token, "first"); err != nil {
						t.Fatal(err)
					}
				}
			})
			for part := range int32(3) {
				for round := range 2 {
					if err := send(part, now, fmt.Sprint("second ", round)); err != nil {
						t.Errorf("next holder: %v", err)
					}
					began := time.Now()
					if err := send(part, stale, "late"); !errors.Is(err, kerr.PolicyViolation) {
						t.Errorf("stale: %v", err)
					}
					if err := send(part, 0, "bare"); !errors.Is(err, kerr.InvalidRecord) {
						t.Errorf("without a token: %v", err)
					}
					if d := time.Since(began); d > 10*time.Second {
						t.Errorf("two refusals took %v: they were tried again", d)
					}
				}
			}
			// EVENT.ADD is no way around it: without the fence of the topic's lock nothing of its transaction is done.
			r := single(t, c.nodes[1])
			exec := func(token int64) error {
				_, err := r.TxPipelined(ctx, func(p redis.Pipeliner) error {
					if token != 0 {
						p.Do(ctx, "FENCE", lock, token)
					}
					p.Incr(ctx, topic+"{a}")
					p.Do(ctx, "EVENT.ADD", topic+"{a}", "event")
					return nil
				})
				return err
			}
			for name, err := range map[string]error{
				"alone": r.Do(ctx, "EVENT.ADD", topic, "bare").Err(), "in a transaction": exec(0), "under a stale token": exec(stale),
				"under another lock": r.Do(ctx, "FENCE", "nobodys", 7, "EVENT.ADD", topic, "v").Err(),
			} {
				if err == nil || !strings.HasPrefix(err.Error(), "FENCED ") {
					t.Errorf("EVENT.ADD %s: %v", name, err)
				}
			}
			if err := exec(now); err != nil {
				t.Errorf("EVENT.ADD under the lock: %v", err)
			}
			if n, err := r.Get(ctx, topic+"{a}").Int(); err != nil || n != 1 {
				t.Errorf("the transactions counted %d (%v), want the one that was fenced", n, err)
			}
			got := map[int32]string{}
			events := ""
			for _, r := range readTopic(t, c.nodes[1], topic, 10) {
				if string(r.Value) == "event" {
					events += "event;"
					continue
				}
				got[r.Partition] += string(r.Value) + ";"
			}
			if events != "event;" {
				t.Errorf("events %s", events)
			}
			for part := range int32(3) {
				if got[part] != "first;second 0;second 1;" {
					t.Errorf("partition %d: %s", part, got[part])
				}
			}
		})
	}
}

// TestHowto_FencingWorks runs the shell blocks of docs/howto/fencing.md in one shell.
func TestHowto_FencingWorks(t *testing.T) {
	at := dev(t, binary, "dev")
	adm := kadm.NewClient(kafkaClient(t, &node{kafka: at["Kafka"]}))
	lock := "jobs"
	if _, err := adm.CreateTopic(within(t), 1, -1, map[string]*string{"quorate.fence": &lock}, "audit"); err != nil {
		t.Fatal(err)
	}
	out := runBlocks(t, at, "../docs/howto/fencing.md")
	for _, want := range []string{
		"worker 1 has the lock jobs under token ", "QUEUED", "FENCED token", "acquire the lock again", "by worker 1", "under the token", "POLICY_VIOLATION", "FAILURE",
	} {
		if !strings.Contains(strings.ReplaceAll(out, "Broker: Policy violation", "POLICY_VIOLATION"), want) {
			t.Errorf("the output holds no %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "FENCED") && strings.Count(out, "too late") > 0 && strings.Contains(out, "\ntoo late\n") {
		t.Errorf("a late write was done:\n%s", out)
	}
}

// runBlocks runs the shell blocks of a page in one shell, against a node instead of the usual ports, and returns what they print.
func runBlocks(t *testing.T, at map[string]string, page string) string {
	t.Helper()
	var ports []string
	for from, to := range map[string]string{"6379": at["Redis"], "9092": at["Kafka"], "2379": at["etcd"]} {
		_, port, err := net.SplitHostPort(to)
		if err != nil {
			t.Fatalf("the banner of quorate dev gives the address %q", to)
		}
		ports = append(ports, from, port)
	}
	var all strings.Builder
	for _, b := range shellBlocks(t, page) {
		all.WriteString(b.text)
	}
	cmd := exec.CommandContext(within(t), "bash", "-euo", "pipefail", "-c", strings.NewReplacer(ports...).Replace(all.String()))
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	// What the shell has started and not ended must not keep the test.
	cmd.WaitDelay = 5 * time.Second
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	return string(b)
}

// TestHowto_InPlaceOfEtcd runs the shell blocks of docs/howto/in-place-of-etcd.md.
func TestHowto_InPlaceOfEtcd(t *testing.T) {
	out := runBlocks(t, dev(t, binary, "dev"), "../docs/howto/in-place-of-etcd.md")
	for _, want := range []string{`"leader":`, `"value":"bWU="`, "election/jobs/", "\nme", "revoked"} {
		if !strings.Contains(out, want) {
			t.Errorf("the output holds no %q:\n%s", want, out)
		}
	}
}
