package test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestLeaderKilled_NothingAcknowledgedIsLost kills the leader with SIGKILL while go-redis counts and franz-go produces, and
// then looks for everything that was acknowledged.
func TestLeaderKilled_NothingAcknowledgedIsLost(t *testing.T) {
	for _, shards := range shardCounts {
		t.Run(fmt.Sprintf("%d shards", shards), func(t *testing.T) { killLeader(t, shards) })
	}
}

func killLeader(t *testing.T, shards int) {
	c := start(t, shards)
	redis.SetLogger(&quietLog{})
	const counters, topic = 8, "load"
	var acked, unknown [counters]atomic.Int64
	var produced sync.Map
	var producedN, progress atomic.Int64
	load, stop := context.WithCancel(within(t))
	var wg sync.WaitGroup

	for i := range counters {
		wg.Add(1)
		go func() {
			defer wg.Done()
			// MaxRedirects is also how often the client tries again when a connection breaks, which would count twice.
			r := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.redisAddrs(), MaxRetries: -1, MaxRedirects: -1})
			defer r.Close()
			for load.Err() == nil {
				// A request that was sent and not answered may have been applied. An answer that says that nothing was
				// done means just that.
				err := r.Incr(context.WithoutCancel(load), fmt.Sprintf("counter-%d", i)).Err()
				switch {
				case err == nil:
					acked[i].Add(1)
					progress.Add(1)
				case strings.HasPrefix(err.Error(), "CLUSTERDOWN"), strings.HasPrefix(err.Error(), "BUSY"),
					strings.HasPrefix(err.Error(), "MOVED"), strings.Contains(err.Error(), "connection refused"):
				default:
					unknown[i].Add(1)
				}
			}
		}()
	}
	p, err := kgo.NewClient(kgo.SeedBrokers(c.kafkaAddrs()...), kgo.AllowAutoTopicCreation(), kgo.MetadataMinAge(50*time.Millisecond), kgo.ProducerLinger(time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		defer p.Close()
		for n := 0; load.Err() == nil; n++ {
			value := fmt.Sprintf("record-%d", n)
			if err := p.ProduceSync(context.WithoutCancel(load), &kgo.Record{Topic: topic, Value: []byte(value)}).FirstErr(); err != nil {
				t.Errorf("an idempotent producer must ride over a change of leader: %v", err)
				return
			}
			produced.Store(value, true)
			producedN.Add(1)
			progress.Add(1)
		}
	}()
	goesOn := func(what string) {
		t.Helper()
		from, fromP := progress.Load(), producedN.Load()
		eventually(t, what, func() (bool, string) {
			return progress.Load() > from+500 && producedN.Load() > fromP+20, fmt.Sprintf("%d steps, %d records", progress.Load()-from, producedN.Load()-fromP)
		})
	}
	goesOn("load runs")
	for range 3 {
		leader := c.leader(t, 1)
		if err := leader.stop(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		goesOn("load goes on without the leader")
		if err := leader.start(); err != nil {
			t.Fatal(err)
		}
		if err := leader.waitReady(); err != nil {
			t.Fatal(err)
		}
		goesOn("load goes on with the node back")
	}
	stop()
	wg.Wait()

	ctx := within(t)
	r := single(t, c.nodes[0])
	var ok, maybe int64
	for i := range counters {
		got, err := r.Get(ctx, fmt.Sprintf("counter-%d", i)).Int64()
		if err != nil {
			t.Fatal(err)
		}
		lo, hi := acked[i].Load(), acked[i].Load()+unknown[i].Load()
		if got < lo || got > hi {
			t.Errorf("counter %d is %d; want %d to %d", i, got, lo, hi)
		}
		ok, maybe = ok+lo, maybe+unknown[i].Load()
	}
	seen := map[string]int{}
	for _, rec := range readTopic(t, c.nodes[1], topic, int(producedN.Load())) {
		seen[string(rec.Value)]++
	}
	produced.Range(func(k, _ any) bool {
		if n := seen[k.(string)]; n != 1 {
			t.Errorf("%s was acknowledged and is there %d times", k, n)
		}
		return true
	})
	c.sameState(t)
	t.Logf("%d increments acknowledged, %d unknown; %d records", ok, maybe, producedN.Load())
}

func TestAllKilled_EverythingAcknowledgedComesBack(t *testing.T) {
	c, ctx := start(t, 3), within(t)
	r := single(t, c.nodes[0])
	for i := range 200 {
		if err := r.Set(ctx, fmt.Sprintf("k%d", i), i, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.nodes {
		if err := n.stop(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.nodes {
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.nodes {
		if err := n.waitReady(); err != nil {
			t.Fatal(err)
		}
	}
	r = single(t, c.nodes[2])
	for i := range 200 {
		if got, err := r.Get(ctx, fmt.Sprintf("k%d", i)).Int(); err != nil || got != i {
			t.Fatalf("k%d = %d, %v", i, got, err)
		}
	}
}
