package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// The measurements in this file compare Quorate with itself: how much it matters how much it holds.

const (
	// probing is how long a latency is measured, and probers how many clients put meanwhile.
	probing = 20 * time.Second
	probers = 16
)

// sizes are of a value in the measurements: small for latencies, large to fill a disk.
const (
	smallValue = 128
	largeValue = 16 << 10
)

// latencies are what some requests took.
type latencies []time.Duration

func (l latencies) String() string {
	if len(l) == 0 {
		return "no request"
	}
	return fmt.Sprintf("p50 %.2f ms, p99 %.2f ms, max %.0f ms (%d puts)", ms(l.at(0.5)), ms(l.at(0.99)), ms(l.at(1)), len(l))
}

// at returns the latency that a share of the requests, 0 to 1, did not exceed. The requests are in order of latency.
func (l latencies) at(share float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	return l[min(int(share*float64(len(l))), len(l)-1)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// value is one that no compression makes smaller.
func value(r *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// each calls f from several goroutines with the numbers from 0 to n-1, until one fails.
func each(goroutines, n int, f func(r *rand.Rand, i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, goroutines)
	for g := range goroutines {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(g)))
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := f(r, i); err != nil {
					next.Store(int64(n))
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// probe puts small values under 10,000 keys until the context ends, which is no error, and returns how long each put took.
func probe(ctx context.Context, cl *clientv3.Client) (latencies, error) {
	var mu sync.Mutex
	var all latencies
	err := each(probers, 1<<62, func(r *rand.Rand, _ int) error {
		key := "probe/" + strconv.Itoa(r.IntN(10_000))
		began := time.Now()
		_, err := cl.Put(context.Background(), key, value(r, smallValue))
		took := time.Since(began)
		mu.Lock()
		all = append(all, took)
		mu.Unlock()
		if err == nil {
			err = ctx.Err()
		}
		return err
	})
	slices.Sort(all)
	if ctx.Err() != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)) {
		err = nil
	}
	return all, err
}

func probeFor(cl *clientv3.Client, d time.Duration) (latencies, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return probe(ctx, cl)
}

// alone runs a measurement of Quorate alone, with a client of its leader and a folder of its own.
func (b *bench) alone(quorate string, nodes int, f func(c *cluster, cl *clientv3.Client, dir string) error) error {
	dir, err := os.MkdirTemp("", "bench-etcd-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := startQuorate(dir, quorate, nodes, false)
	defer func() { c.stop() }()
	if err != nil {
		return err
	}
	if err := c.findLeader(); err != nil {
		return err
	}
	cl, err := c.client()
	if err != nil {
		return err
	}
	return errors.Join(f(c, cl, dir), cl.Close())
}

func (c *cluster) client() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{c.leader}, DialTimeout: 10 * time.Second, MaxCallSendMsgSize: 16 << 20})
}

// large fills a single node with so many gigabytes in values that do not compress, and says what that does to puts and to a restart.
func (b *bench) large(c *cluster, cl *clientv3.Client, dir string, gigabytes int) error {
	// The first keys and the first tables are made before anything is measured.
	if _, err := probeFor(cl, probing/2); err != nil {
		return err
	}
	empty, err := probeFor(cl, probing)
	if err != nil {
		return err
	}
	b.line("one node, nothing in it: %s", empty)
	n := gigabytes << 30 / largeValue
	var longest atomic.Int64
	written := c.written()
	began := time.Now()
	err = each(32, n, func(r *rand.Rand, i int) error {
		at := time.Now()
		_, err := cl.Put(context.Background(), fmt.Sprintf("large/%012d", r.Uint64N(1e12)), value(r, largeValue))
		longest.Store(max(longest.Load(), int64(time.Since(at))))
		if i%(n/20+1) == 0 {
			fmt.Fprintf(os.Stderr, "%3d %% after %.0f s\n", 100*i/n, time.Since(began).Seconds())
		}
		return err
	})
	if err != nil {
		return err
	}
	took := time.Since(began)
	b.line("%d values of 16 KiB (%d GiB) in %.0f s, %.0f MiB/s; the longest put took %.0f ms", n, gigabytes, took.Seconds(), float64(n*largeValue>>20)/took.Seconds(),
		ms(time.Duration(longest.Load())))
	after, err := probeFor(cl, probing)
	if err != nil {
		return err
	}
	b.line("right after that: %s; p99 %.2f times that of the empty store", after, ms(after.at(0.99))/ms(empty.at(0.99)))
	time.Sleep(time.Minute)
	if after, err = probeFor(cl, probing); err != nil {
		return err
	}
	b.line("a minute later: %s; p99 %.2f times", after, ms(after.at(0.99))/ms(empty.at(0.99)))
	written = c.written() - written
	size, err := diskUse(dir)
	if err != nil {
		return err
	}
	rss, anon := c.resident()
	b.line("written to disk %.1f GiB, %.1f times the values; on disk %.1f GiB; in memory %d MiB, %d MiB of them anonymous", float64(written)/(1<<30), float64(written)/float64(n*largeValue), float64(size)/(1<<30), rss>>20, anon>>20)
	// kill -9 under load, and how long until a put is acknowledged again.
	for range 3 {
		if _, err := probeFor(cl, 5*time.Second); err != nil {
			return err
		}
		c.stop()
		began = time.Now()
		if err := c.again(); err != nil {
			return err
		}
		for {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_, err = cl.Put(ctx, "probe/again", "")
			cancel()
			if err == nil {
				break
			}
			if time.Since(began) > 5*time.Minute {
				return fmt.Errorf("no put five minutes after the restart: %w", err)
			}
		}
		b.line("from the start after kill -9 to the first put: %.2f s", time.Since(began).Seconds())
	}
	return nil
}

// diskUse is the size of the files below a folder.
func diskUse(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return err
	})
	return size, err
}

// compaction makes so many versions of 10,000 keys, by transactions of 100 puts, and says what compacting them away does to puts.
func (b *bench) compaction(c *cluster, cl *clientv3.Client, versions int) error {
	const puts = 100
	began := time.Now()
	n := versions / puts
	err := each(16, n, func(r *rand.Rand, i int) error {
		ops := make([]clientv3.Op, puts)
		from := r.IntN(10_000)
		for j := range ops {
			ops[j] = clientv3.OpPut(fmt.Sprintf("version/%04d", (from+j)%10_000), value(r, 32))
		}
		_, err := cl.Txn(context.Background()).Then(ops...).Commit()
		if i%(n/20+1) == 0 {
			fmt.Fprintf(os.Stderr, "%3d %% after %.0f s\n", 100*i/n, time.Since(began).Seconds())
		}
		return err
	})
	if err != nil {
		return err
	}
	b.line("%d versions of 10,000 keys in %.0f s, three nodes", n*puts, time.Since(began).Seconds())
	before, err := probeFor(cl, probing)
	if err != nil {
		return err
	}
	b.line("before the compaction: %s", before)
	now, err := cl.Get(context.Background(), "probe/0")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var compacted error
	began = time.Now()
	var took time.Duration
	go func() {
		defer cancel()
		_, compacted = cl.Compact(context.Background(), now.Header.Revision, clientv3.WithCompactPhysical())
		took = time.Since(began)
	}()
	during, err := probe(ctx, cl)
	if err = errors.Join(err, compacted); err != nil {
		return err
	}
	b.line("during it (%.0f s): %s; p99 %.2f times that before", took.Seconds(), during, ms(during.at(0.99))/ms(before.at(0.99)))
	after, err := probeFor(cl, probing)
	if err != nil {
		return err
	}
	b.line("after it: %s", after)
	return nil
}

// leases grants so many leases of a minute with a key each, keeps all alive for two minutes, and then none.
func (b *bench) leases(c *cluster, cl *clientv3.Client, leases int) error {
	// A client has one stream for all of its leases, as a program has.
	const clients = 20
	cls := []*clientv3.Client{cl}
	for range clients - 1 {
		cl, err := c.client()
		if err != nil {
			return err
		}
		defer func() { _ = cl.Close() }()
		cls = append(cls, cl)
	}
	const ttl = 60
	// A program keeps a lease alive from the moment on that it has it: granting all of them takes longer than one lasts.
	alive, end := context.WithCancel(context.Background())
	defer end()
	var lost atomic.Int64
	began := time.Now()
	err := each(64, leases, func(_ *rand.Rand, i int) error {
		cl := cls[i%clients]
		l, err := cl.Grant(context.Background(), ttl)
		if err != nil {
			return err
		}
		answers, err := cl.KeepAlive(alive, l.ID)
		if err != nil {
			return err
		}
		go func() {
			for range answers {
			}
			if alive.Err() == nil {
				lost.Add(1)
			}
		}()
		_, err = cl.Put(context.Background(), "leased/"+strconv.Itoa(i), "", clientv3.WithLease(l.ID))
		return err
	})
	if err != nil {
		return err
	}
	b.line("%d leases of %d s with a key each granted in %.0f s, three nodes", leases, ttl, time.Since(began).Seconds())
	count := func() (int64, error) {
		resp, err := cl.Get(context.Background(), "leased/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return 0, err
		}
		return resp.Count, nil
	}
	cpu := c.cpu()
	const watched = 2 * time.Minute
	puts, err := probeFor(cl, probing)
	if err != nil {
		return err
	}
	b.line("puts meanwhile: %s", puts)
	time.Sleep(watched - probing)
	used := c.cpu() - cpu
	left, err := count()
	if err != nil {
		return err
	}
	rss, anon := c.resident()
	b.line("kept alive for two minutes: %d of %d keys there, %d lost; %.2f s of processor time a second, puts included; %d MiB in memory, %d MiB of them anonymous", left, leases, lost.Load(),
		used/watched.Seconds(), rss>>20, anon>>20)
	if left != int64(leases) {
		return fmt.Errorf("%d leases ended while they were kept alive", int64(leases)-left)
	}
	end()
	began = time.Now()
	for first := time.Duration(0); ; time.Sleep(100 * time.Millisecond) {
		n, err := count()
		if err != nil {
			return err
		}
		if n < int64(leases) && first == 0 {
			first = time.Since(began)
		}
		if n == 0 {
			b.line("not kept alive any more: the first key was gone after %.0f s, the last after %.0f s", first.Seconds(), time.Since(began).Seconds())
			return nil
		}
		if time.Since(began) > 5*time.Minute {
			return fmt.Errorf("%d keys are still there five minutes after the last keep-alive of their leases of %d s", n, ttl)
		}
	}
}
