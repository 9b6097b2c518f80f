package test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A client that knows all nodes goes on when one after the other is stopped and started again: no call fails, its watch has no gap, and its lease
// lives.
func TestEtcd_StoppedNodesFailNoCall(t *testing.T) {
	c := start(t, 1)
	ctx := within(t)
	e := etcdClient(t, c.etcdAddrs()...)
	lease, err := e.Grant(ctx, 5)
	if err != nil {
		t.Fatal(err)
	}
	alive, err := e.KeepAlive(ctx, lease.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Put(ctx, "stop/lease", "", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	w := e.Watch(ctx, "stop/n/", clientv3.WithPrefix())
	var wg sync.WaitGroup
	var stop atomic.Bool
	var puts atomic.Int64
	for i := range 4 {
		wg.Go(func() {
			for n := 0; !stop.Load() && !t.Failed(); n++ {
				if _, err := e.Put(ctx, fmt.Sprintf("stop/n/%d", i), fmt.Sprint(n)); err != nil {
					t.Errorf("put: %v", err)
				}
				puts.Add(1)
				if _, err := e.Get(ctx, "stop/lease"); err != nil {
					t.Errorf("get: %v", err)
				}
			}
		})
	}
	var seen atomic.Int64
	wg.Go(func() {
		for r := range w {
			if err := r.Err(); err != nil {
				t.Errorf("watch: %v", err)
			}
			if seen.Add(int64(len(r.Events))); stop.Load() && seen.Load() >= puts.Load() {
				return
			}
		}
	})
	for range 2 {
		for _, n := range []*node{c.follower(t, 1), c.leader(t, 1)} {
			before := puts.Load()
			began := time.Now()
			if err := n.stop(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			t.Logf("node %d stopped in %v", n.id, time.Since(began))
			if err := n.start(); err != nil {
				t.Fatal(err)
			}
			if err := n.waitReady(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "puts go on", func() (bool, string) { return puts.Load() > before+10, "" })
		}
	}
	stop.Store(true)
	if _, err := e.Put(ctx, "stop/n/last", ""); err != nil {
		t.Fatal(err)
	}
	puts.Add(1)
	wg.Wait()
	for len(alive) > 0 {
		<-alive
	}
	if ttl, err := e.TimeToLive(ctx, lease.ID); err != nil || ttl.TTL <= 0 {
		t.Errorf("the lease: %v %v", ttl, err)
	}
}
