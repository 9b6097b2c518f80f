package test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"go.uber.org/zap"
)

func (c *cluster) etcdAddrs() []string {
	var all []string
	for _, n := range c.nodes {
		all = append(all, n.etcd)
	}
	return all
}

func etcdClient(t *testing.T, addrs ...string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: addrs, DialTimeout: 20 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestEtcd_EachNodeServesAll(t *testing.T) {
	c := shared(t, 1)
	ctx := within(t)
	for i, n := range c.nodes {
		e := etcdClient(t, n.etcd)
		key := fmt.Sprintf("each/%d", i)
		put, err := e.Put(ctx, key, "1", clientv3.WithPrevKV())
		if err != nil || put.PrevKv != nil {
			t.Fatalf("node %d: put: %v %v", n.id, put, err)
		}
		// A linearizable read on any node sees what was acknowledged on another.
		for _, o := range c.nodes {
			get, err := etcdClient(t, o.etcd).Get(ctx, key)
			if err != nil || get.Count != 1 || get.Kvs[0].ModRevision != put.Header.Revision || get.Header.Revision < put.Header.Revision {
				t.Errorf("node %d after a put on %d: %v %v", o.id, n.id, get, err)
			}
		}
		tx, err := e.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", put.Header.Revision)).
			Then(clientv3.OpPut(key, "2"), clientv3.OpGet(key)).Else(clientv3.OpGet(key)).Commit()
		if err != nil || !tx.Succeeded || string(tx.Responses[1].GetResponseRange().Kvs[0].Value) != "2" {
			t.Errorf("node %d: txn: %v %v", n.id, tx, err)
		}
		del, err := e.Delete(ctx, key, clientv3.WithPrevKV())
		if err != nil || del.Deleted != 1 || string(del.PrevKvs[0].Value) != "2" {
			t.Errorf("node %d: delete: %v %v", n.id, del, err)
		}
		st, err := e.Status(ctx, n.etcd)
		if err != nil || st.Leader == 0 || st.RaftTerm == 0 || st.RaftAppliedIndex == 0 {
			t.Errorf("node %d: status: %v %v", n.id, st, err)
		}
	}
	e := etcdClient(t, c.etcdAddrs()...)
	ms, err := e.MemberList(ctx)
	if err != nil || len(ms.Members) != 3 {
		t.Fatalf("members: %v %v", ms, err)
	}
	// All replicas have the same checksum at the same revision.
	get, err := e.Get(ctx, "x")
	if err != nil {
		t.Fatal(err)
	}
	sums := map[uint32]bool{}
	for _, n := range c.nodes {
		eventually(t, "the node has the revision", func() (bool, string) {
			h, err := e.HashKV(ctx, n.etcd, get.Header.Revision)
			if err != nil {
				return false, err.Error()
			}
			sums[h.Hash] = true
			return true, ""
		})
	}
	if len(sums) != 1 {
		t.Errorf("checksums differ: %v", sums)
	}
}

func TestEtcd_WatchThroughAFollower(t *testing.T) {
	c := shared(t, 1)
	ctx := within(t)
	e := etcdClient(t, c.etcdAddrs()...)
	first, err := e.Put(ctx, "watched/0", "0")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		w := etcdClient(t, n.etcd).Watch(ctx, "watched/", clientv3.WithPrefix(), clientv3.WithRev(first.Header.Revision), clientv3.WithPrevKV())
		next := first.Header.Revision
		for range 10 {
			if _, err := e.Put(ctx, "watched/0", "1"); err != nil {
				t.Fatal(err)
			}
		}
		for next < first.Header.Revision+10 {
			r, ok := <-w
			if !ok || r.Err() != nil {
				t.Fatalf("node %d: watch ended: %v", n.id, r.Err())
			}
			for _, ev := range r.Events {
				if ev.Kv.ModRevision != next || ev.IsModify() != (ev.PrevKv != nil) {
					t.Fatalf("node %d: %v, want revision %d", n.id, ev, next)
				}
				next++
			}
		}
	}
}

func TestEtcd_LeasesEndOnTime(t *testing.T) {
	c := shared(t, 1)
	ctx := within(t)
	e := etcdClient(t, c.etcdAddrs()...)
	short, err := e.Grant(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	long, err := e.Grant(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	alive, err := e.KeepAlive(ctx, long.ID)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range alive {
		}
	}()
	// A watch begins where its node is, which may be behind what was acknowledged, unless it says where.
	var rev int64
	for id, key := range map[clientv3.LeaseID]string{short.ID: "lease/short", long.ID: "lease/long"} {
		p, err := e.Put(ctx, key, "v", clientv3.WithLease(id))
		if err != nil {
			t.Fatal(err)
		}
		rev = p.Header.Revision
	}
	began := time.Now()
	w := e.Watch(ctx, "lease/", clientv3.WithPrefix(), clientv3.WithRev(rev+1))
	for r := range w {
		if len(r.Events) == 0 {
			continue
		}
		if ev := r.Events[0]; ev.Type != mvccpb.Event_DELETE || string(ev.Kv.Key) != "lease/short" || time.Since(began) > 30*time.Second {
			t.Errorf("after %v: %v", time.Since(began), ev)
		}
		break
	}
	if g, err := e.Get(ctx, "lease/long"); err != nil || g.Count != 1 {
		t.Errorf("a lease that is kept alive: %v %v", g, err)
	}
	if ttl, err := e.TimeToLive(ctx, long.ID, clientv3.WithAttachedKeys()); err != nil || len(ttl.Keys) != 1 || ttl.GrantedTTL != 2 {
		t.Errorf("time to live: %v %v", ttl, err)
	}
	if _, err := e.Revoke(ctx, long.ID); err != nil {
		t.Error(err)
	}
	if g, err := e.Get(ctx, "lease/long"); err != nil || g.Count != 0 {
		t.Errorf("after revoking: %v %v", g, err)
	}
}

// The recipes of etcd's own concurrency package.
func TestEtcd_Concurrency(t *testing.T) {
	c := shared(t, 1)
	ctx := within(t)
	var inside atomic.Int32
	done := make(chan error, 3)
	for _, n := range c.nodes {
		e := etcdClient(t, n.etcd)
		go func() {
			s, err := concurrency.NewSession(e, concurrency.WithTTL(10))
			if err != nil {
				done <- err
				return
			}
			defer s.Close()
			m := concurrency.NewMutex(s, "mutex/")
			for range 5 {
				if err := m.Lock(ctx); err != nil {
					done <- err
					return
				}
				if inside.Add(1) != 1 {
					done <- errors.New("two hold the mutex")
				}
				inside.Add(-1)
				if err := m.Unlock(ctx); err != nil {
					done <- err
					return
				}
			}
			// And a counter in software transactional memory.
			for range 5 {
				_, err := concurrency.NewSTM(e, func(s concurrency.STM) error {
					n := 0
					_, _ = fmt.Sscan(s.Get("stm"), &n)
					s.Put("stm", fmt.Sprint(n+1))
					return nil
				})
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range c.nodes {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	e := etcdClient(t, c.etcdAddrs()...)
	if g, err := e.Get(ctx, "stm"); err != nil || string(g.Kvs[0].Value) != "15" {
		t.Errorf("counter: %v %v", g, err)
	}
	s, err := concurrency.NewSession(e)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	el := concurrency.NewElection(s, "election/")
	if err := el.Campaign(ctx, "me"); err != nil {
		t.Fatal(err)
	}
	if l, err := el.Leader(ctx); err != nil || string(l.Kvs[0].Value) != "me" {
		t.Errorf("leader: %v %v", l, err)
	}
}

// etcd's Lock and Election services, by the stubs of its server.
func TestEtcd_LockAndElectionServices(t *testing.T) {
	c := shared(t, 1)
	ctx := within(t)
	e := etcdClient(t, c.etcdAddrs()...)
	l := v3lockpb.NewLockClient(e.ActiveConnection())
	lease, err := e.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("svc"), Lease: int64(lease.ID)})
	if err != nil || string(a.Key) != fmt.Sprintf("svc/%x", lease.ID) || a.Header.Revision == 0 {
		t.Fatalf("lock: %v %v", a, err)
	}
	got := make(chan error, 1)
	go func() {
		b, err := l.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("svc")})
		if err == nil && b.Header.Revision <= a.Header.Revision {
			err = fmt.Errorf("second lock %v", b)
		}
		got <- err
	}()
	if _, err := l.Unlock(ctx, &v3lockpb.UnlockRequest{Key: a.Key}); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	el := v3electionpb.NewElectionClient(e.ActiveConnection())
	if _, err := el.Leader(ctx, &v3electionpb.LeaderRequest{Name: []byte("vote")}); err == nil || !strings.Contains(err.Error(), "election: no leader") {
		t.Errorf("nobody: %v", err)
	}
	o, err := el.Observe(ctx, &v3electionpb.LeaderRequest{Name: []byte("vote")})
	if err != nil {
		t.Fatal(err)
	}
	w, err := el.Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("vote"), Lease: int64(lease.ID), Value: []byte("me")})
	if err != nil || w.Leader.Rev != w.Header.Revision {
		t.Fatalf("campaign: %v %v", w, err)
	}
	if r, err := o.Recv(); err != nil || string(r.Kv.Value) != "me" || r.Kv.CreateRevision != w.Leader.Rev {
		t.Errorf("observed: %v %v", r, err)
	}
	if _, err := el.Proclaim(ctx, &v3electionpb.ProclaimRequest{Leader: w.Leader, Value: []byte("still me")}); err != nil {
		t.Error(err)
	}
	if r, err := el.Leader(ctx, &v3electionpb.LeaderRequest{Name: []byte("vote")}); err != nil || string(r.Kv.Value) != "still me" {
		t.Errorf("leader: %v %v", r, err)
	}
	if _, err := el.Resign(ctx, &v3electionpb.ResignRequest{Leader: w.Leader}); err != nil {
		t.Error(err)
	}
	if _, err := el.Proclaim(ctx, &v3electionpb.ProclaimRequest{Leader: w.Leader}); err == nil || !strings.Contains(err.Error(), "election: not leader") {
		t.Errorf("after resigning: %v", err)
	}
	if _, err := el.Proclaim(ctx, &v3electionpb.ProclaimRequest{}); err == nil || !strings.Contains(err.Error(), "must be provided") {
		t.Errorf("no leader key: %v", err)
	}
}

func TestEtcd_CompactedReadersAreTold(t *testing.T) {
	c := shared(t, 1)
	ctx := within(t)
	// Another node may not have applied the compaction yet, and serve a watch from before it.
	e := etcdClient(t, c.nodes[1].etcd)
	var rev int64
	for i := range 5 {
		p, err := e.Put(ctx, "compact", fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		rev = p.Header.Revision
	}
	if _, err := e.Compact(ctx, rev-1, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Get(ctx, "compact", clientv3.WithRev(rev-2)); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("read: %v", err)
	}
	if r := <-e.Watch(ctx, "compact", clientv3.WithRev(rev-2)); r.CompactRevision != rev-1 {
		t.Errorf("watch: %+v", r)
	}
	if g, err := e.Get(ctx, "compact", clientv3.WithRev(rev-1)); err != nil || string(g.Kvs[0].Value) != "3" {
		t.Errorf("read at: %v %v", g, err)
	}
}

// The leader is killed again and again. A watch sees each acknowledged write once, in order, and no revision twice.
func TestEtcd_WatchHasNoGapsOverLeaderKills(t *testing.T) {
	c := start(t, 1)
	ctx := within(t)
	e := etcdClient(t, c.etcdAddrs()...)
	load, stop := context.WithCancel(ctx)
	acked := map[int64]string{}
	var progress atomic.Int64
	writes := make(chan struct{})
	go func() {
		defer close(writes)
		for i := 0; load.Err() == nil; i++ {
			try, cancel := context.WithTimeout(ctx, 10*time.Second)
			p, err := e.Put(try, "gap", fmt.Sprint(i))
			cancel()
			if err == nil {
				acked[p.Header.Revision] = fmt.Sprint(i)
				progress.Add(1)
			}
		}
	}()
	seen := map[int64]string{}
	var last atomic.Int64
	watched := make(chan error, 1)
	watch, endWatch := context.WithCancel(ctx)
	defer endWatch()
	go func() {
		for r := range e.Watch(clientv3.WithRequireLeader(watch), "gap", clientv3.WithRev(1)) {
			if err := r.Err(); err != nil {
				watched <- err
				return
			}
			for _, ev := range r.Events {
				if ev.Kv.ModRevision <= last.Load() {
					watched <- fmt.Errorf("revision %d after %d", ev.Kv.ModRevision, last.Load())
					return
				}
				last.Store(ev.Kv.ModRevision)
				seen[ev.Kv.ModRevision] = string(ev.Kv.Value)
			}
		}
		watched <- nil
	}()
	goesOn := func() {
		from := progress.Load()
		eventually(t, "writes go on", func() (bool, string) { return progress.Load() > from+100, fmt.Sprint(progress.Load() - from) })
	}
	goesOn()
	for range 3 {
		l := c.leader(t, 1)
		if err := l.stop(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		goesOn()
		if err := l.start(); err != nil {
			t.Fatal(err)
		}
		if err := l.waitReady(); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	<-writes
	var end int64
	for rev := range acked {
		end = max(end, rev)
	}
	eventually(t, "the watch has all", func() (bool, string) {
		select {
		case err := <-watched:
			t.Fatalf("watch ended: %v", err)
		default:
		}
		return last.Load() >= end, fmt.Sprintf("at %d of %d", last.Load(), end)
	})
	endWatch()
	if err := <-watched; err != nil {
		t.Fatal(err)
	}
	for rev, v := range acked {
		if seen[rev] != v {
			t.Errorf("revision %d: the watch saw %q, acknowledged was %q", rev, seen[rev], v)
		}
	}
	t.Logf("%d writes acknowledged, %d seen", len(acked), len(seen))
}

// Leadership is handed over on request, and no write fails meanwhile.
func TestEtcd_MoveLeader(t *testing.T) {
	c := start(t, 1)
	ctx := within(t)
	all := etcdClient(t, c.etcdAddrs()...)
	load, stop := context.WithCancel(ctx)
	var progress atomic.Int64
	failed := make(chan error, 1)
	go func() {
		for i := 0; load.Err() == nil; i++ {
			if _, err := all.Put(ctx, "move", fmt.Sprint(i)); err != nil {
				failed <- err
				return
			}
			progress.Add(1)
		}
		failed <- nil
	}()
	for range 3 {
		from := progress.Load()
		eventually(t, "writes go on", func() (bool, string) { return progress.Load() > from+50, fmt.Sprint(progress.Load() - from) })
		l := c.leader(t, 1)
		one := etcdClient(t, l.etcd)
		st, err := one.Status(ctx, l.etcd)
		if err != nil || st.Leader != st.Header.MemberId {
			t.Fatalf("status: %v %v", st, err)
		}
		members, err := one.MemberList(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var to uint64
		for _, m := range members.Members {
			if m.ID != st.Leader {
				to = m.ID
			}
		}
		if _, err := one.MoveLeader(ctx, to); err != nil {
			t.Fatalf("move: %v", err)
		}
		if st, err = one.Status(ctx, l.etcd); err != nil || st.Leader != to {
			t.Errorf("after the move: %v %v, want leader %x", st, err, to)
		}
		if _, err := one.MoveLeader(ctx, to); !errors.Is(err, rpctypes.ErrNotLeader) {
			t.Errorf("asked of a follower: %v", err)
		}
	}
	stop()
	if err := <-failed; err != nil {
		t.Errorf("a write failed: %v", err)
	}
}

// One can go back: a snapshot is restored by etcd's own tool, and etcd itself goes on from there.
func TestEtcd_SnapshotGoesBackToEtcd(t *testing.T) {
	c := shared(t, 1)
	ctx := within(t)
	e := etcdClient(t, c.etcdAddrs()...)
	lease, err := e.Grant(ctx, 3600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Put(ctx, "back/1", "one", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Put(ctx, "back/2", "two"); err != nil {
		t.Fatal(err)
	}
	del, err := e.Delete(ctx, "back/2")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, data := dir+"/snap.db", dir+"/etcd"
	tool(t, "", "etcdctl", "--endpoints", c.nodes[1].etcd, "snapshot", "save", file)
	if out := tool(t, "", "go", "tool", "etcdutl", "snapshot", "status", file, "-w", "json"); !strings.Contains(out, fmt.Sprintf(`"revision":%d`, del.Header.Revision)) {
		t.Errorf("status %s, want revision %d", out, del.Header.Revision)
	}
	tool(t, "", "go", "tool", "etcdutl", "snapshot", "restore", file, "--data-dir", data)
	r := etcdClient(t, realEtcd(t, data))
	get, err := r.Get(ctx, "back/", clientv3.WithPrefix())
	if err != nil || get.Count != 1 || string(get.Kvs[0].Value) != "one" || get.Kvs[0].Lease != int64(lease.ID) || get.Header.Revision != del.Header.Revision {
		t.Errorf("in etcd: %v %v", get, err)
	}
	if ttl, err := r.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys()); err != nil || ttl.GrantedTTL != 3600 || len(ttl.Keys) != 1 {
		t.Errorf("lease in etcd: %v %v", ttl, err)
	}
	if p, err := r.Put(ctx, "back/3", "goes on"); err != nil || p.Header.Revision != del.Header.Revision+1 {
		t.Errorf("put in etcd: %v %v", p, err)
	}
}

// Debian's etcdctl is of 2022; the other is of the release whose API is served.
// realEtcd runs etcd itself on a data directory, and returns its client address.
func realEtcd(t *testing.T, dir string) string {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel = dir, "fatal"
	ports, err := freePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	for i, to := range []*[]url.URL{&cfg.ListenClientUrls, &cfg.ListenPeerUrls} {
		*to = []url.URL{{Scheme: "http", Host: ports[i]}}
	}
	cfg.AdvertiseClientUrls, cfg.AdvertisePeerUrls = cfg.ListenClientUrls, cfg.ListenPeerUrls
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	real, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(real.Close)
	return ports[0]
}

// One can come: a snapshot of etcd is loaded with its revisions and leases, and watchers go on from where they were.
func TestEtcd_SnapshotOfEtcdIsImported(t *testing.T) {
	ctx := within(t)
	dir := t.TempDir()
	old := realEtcd(t, dir+"/etcd")
	o := etcdClient(t, old)
	lease, err := o.Grant(ctx, 3600)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		opts := []clientv3.OpOption{}
		if i%3 == 0 {
			opts = append(opts, clientv3.WithLease(lease.ID))
		}
		if _, err := o.Put(ctx, fmt.Sprintf("come/%d", i%200), strings.Repeat(fmt.Sprint(i), 1000), opts...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.Compact(ctx, 100); err != nil {
		t.Fatal(err)
	}
	last, err := o.Txn(ctx).Then(clientv3.OpPut("come/new", "1"), clientv3.OpDelete("come/7"), clientv3.OpPut("come/8", "8")).Commit()
	if err != nil {
		t.Fatal(err)
	}
	file := dir + "/old.db"
	tool(t, "", "etcdctl", "--endpoints", old, "snapshot", "save", file)

	c := start(t, 1)
	out := tool(t, "", binary, "import", "etcd-snapshot", file, "--http", c.nodes[2].http)
	if want := "loaded 200 keys and 1 leases in"; !strings.Contains(out, want) || !strings.Contains(out, fmt.Sprintf("revision %d", last.Header.Revision)) {
		t.Errorf("import says %q", out)
	}
	if out, err := tryTool(t, "", binary, "import", "etcd-snapshot", file, "--http", c.nodes[0].http); err == nil || !strings.Contains(out, "has been written to") {
		t.Errorf("a second import: %v %s", err, out)
	}
	e := etcdClient(t, c.etcdAddrs()...)
	was, err1 := o.Get(ctx, "", clientv3.WithPrefix())
	is, err2 := e.Get(ctx, "", clientv3.WithPrefix())
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(was.Kvs) != fmt.Sprint(is.Kvs) || was.Header.Revision != is.Header.Revision || len(is.Kvs) != 200 {
		t.Errorf("%d keys at revision %d became %d at %d", len(was.Kvs), was.Header.Revision, len(is.Kvs), is.Header.Revision)
	}
	t1, err1 := o.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
	t2, err2 := e.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
	if err := errors.Join(err1, err2); err != nil || t2.GrantedTTL != 3600 || len(t1.Keys) != len(t2.Keys) {
		t.Errorf("lease %+v became %+v: %v", t1, t2, err)
	}
	if _, err := e.Get(ctx, "come/8", clientv3.WithRev(last.Header.Revision-1)); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("history: %v", err)
	}
	var changes []string
	for _, cl := range []*clientv3.Client{o, e} {
		watch, stop := context.WithCancel(ctx)
		defer stop()
		ch := cl.Watch(watch, "come/", clientv3.WithPrefix(), clientv3.WithRev(last.Header.Revision))
		if _, err := cl.Put(ctx, "come/after", "x"); err != nil {
			t.Fatal(err)
		}
		seen := ""
		for r := range ch {
			if err := r.Err(); err != nil {
				t.Fatal(err)
			}
			for _, ev := range r.Events {
				seen += fmt.Sprintf("%s %s=%s@%d ", ev.Type, ev.Kv.Key, ev.Kv.Value, ev.Kv.ModRevision)
			}
			if strings.Contains(seen, "come/after") {
				break
			}
		}
		changes = append(changes, seen)
	}
	if changes[0] != changes[1] || strings.Count(changes[0], "@") != 4 {
		t.Errorf("a watch from the snapshot's revision saw\n%s in etcd, and\n%s here", changes[0], changes[1])
	}
}

func TestEtcdctl(t *testing.T) {
	c := shared(t, 1)
	for name, ctl := range map[string][]string{"Debian": {"etcdctl"}, "newest": {"go", "tool", "etcdctl"}} {
		t.Run(name, func(t *testing.T) {
			run := func(stdin string, args ...string) string {
				t.Helper()
				all := append(append([]string{}, ctl[1:]...), "--endpoints", strings.Join(c.etcdAddrs(), ","))
				return tool(t, stdin, ctl[0], append(all, args...)...)
			}
			key := "ctl/" + name
			for _, s := range []struct {
				stdin string
				args  []string
				want  string
			}{
				{"", []string{"put", key, "world"}, "OK\n"},
				{"", []string{"get", key}, key + "\nworld\n"},
				{"", []string{"get", key, "--print-value-only"}, "world\n"},
				{"", []string{"get", "ctl/", "--prefix", "--keys-only", "--limit=0"}, key},
				{fmt.Sprintf("value(%q) = \"world\"\n\nput %s there\nget %s\n\nput %s no\n\n", key, key, key, key), []string{"txn"}, "SUCCESS"},
				{"", []string{"endpoint", "health"}, "is healthy"},
				{"", []string{"endpoint", "status", "-w", "table"}, "3.7.3"},
				{"", []string{"endpoint", "hashkv"}, c.nodes[0].etcd},
				{"", []string{"member", "list"}, "node1"},
				{"", []string{"lease", "grant", "60"}, "granted with TTL(60s)"},
				{"", []string{"alarm", "list"}, ""},
				{"", []string{"lock", "ctl/lock", "echo", "locked"}, "locked\n"},
				{"", []string{"del", key}, "1\n"},
			} {
				if got := run(s.stdin, s.args...); !strings.Contains(got, s.want) {
					t.Errorf("%v: %s\nwant %s", s.args, got, s.want)
				}
			}
		})
	}
}

// What checkers of histories read from stopped nodes is what was done, in order, on every node alike.
func TestEtcd_LogSaysWhatWasDone(t *testing.T) {
	c := start(t, 1)
	ctx := within(t)
	e := etcdClient(t, c.etcdAddrs()...)
	if _, err := e.Put(ctx, "a", "1"); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Txn(ctx).If(clientv3.Compare(clientv3.Version("a"), "=", 1)).Then(clientv3.OpDelete("a")).Commit(); err != nil {
		t.Fatal(err)
	}
	// Only what is in these two, and before them, need be known to be committed when the nodes stop.
	for range 2 {
		if _, err := e.Put(ctx, "end", ""); err != nil {
			t.Fatal(err)
		}
	}
	c.sameState(t)
	longest := ""
	for _, n := range c.nodes {
		if err := n.stop(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		said := tool(t, "", binary, "kv-log", filepath.Join(c.dir, fmt.Sprintf("data%d", n.id)))
		if len(said) > len(longest) {
			longest, said = said, longest
		}
		if !strings.HasPrefix(longest, said) {
			t.Errorf("node %d did\n%s, others\n%s", n.id, said, longest)
		}
	}
	var steps []string
	for line := range strings.Lines(longest) {
		for _, what := range []string{`{"Put":{"Key":"YQ=="`, `{"Txn":{"If":[{"Key":"YQ=="`, `{"Put":{"Key":"ZW5k"`} {
			if strings.HasPrefix(line, what) {
				steps = append(steps, what)
			}
		}
	}
	if len(steps) < 3 || steps[0] != `{"Put":{"Key":"YQ=="` || steps[1] != `{"Txn":{"If":[{"Key":"YQ=="` || !strings.Contains(longest, `"Delete":{"Key":"YQ=="`) {
		t.Errorf("the log says\n%s", longest)
	}
}
