package drill

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

func electionDrill() Drill {
	return Drill{
		Name: "herd-election",
		Text: "200 candidates stand for one election by etcd's algorithm, each waiting for the one before it; leaders resign at once, and leaders of the shard " +
			"are killed.",
		Promise: "An election has at most one leader at any revision, and a change of leader wakes one candidate, not the herd (promises 4, 5).",
		NotShown: "What a leader does outside of the cluster after it lost the election (see fencing). A candidate whose stream breaks with its node looks again " +
			"by itself, which counts as no wake-up.",
		Controls: []Control{{"unconditional-put", "candidates win by putting the leader's key, whoever has it"}},
		Length:   20 * time.Second, Short: 7 * time.Second, ControlLength: 2 * time.Second,
		run: runElection,
	}
}

const (
	candidates = 200
	herdName   = "herd"
	// herdTTL is by how many seconds a candidate's lease outlives the load, so that nobody has to renew.
	herdTTL = 600
	// wakesMax is how many candidates a change of leader may wake on average.
	wakesMax = 1.2
)

// reign is the time in which a candidate took itself for the leader, in revisions of the key space: since is the one at which it saw that
// nobody was before it, until the last at which it knew so.
type reign struct {
	who          int
	since, until int64
}

type election struct {
	e     *etcds
	seed  uint64
	began time.Time
	// ttl is that of candidates' leases.
	ttl time.Duration

	wakes, changes, restarts atomic.Int64
	// mu guards reigns and lost, which are keys of leaders that were gone before these resigned.
	mu     sync.Mutex
	reigns []reign
	lost   []string
}

func runElection(ctx context.Context, r *run) error {
	cl, err := r.cluster(ctx, false)
	if err != nil {
		return err
	}
	defer cl.Close()
	e, err := cl.dialEtcd()
	if err != nil {
		return err
	}
	defer e.close()
	l := &election{e: e, seed: r.Seed, began: time.Now(), ttl: r.For + herdTTL*time.Second}
	d := &disturber{cl: cl, r: r, rng: r.rng(1), faults: []fault{killLeader}, every: 2500 * time.Millisecond}
	r.says(func() string {
		return fmt.Sprintf("%d changes of leader, %d wake-ups; %d kills", l.changes.Load(), l.wakes.Load(), d.kills.Load())
	})
	lctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	for who := range candidates {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if r.Control == "unconditional-put" {
				l.usurp(lctx, who)
			} else {
				l.stand(lctx, who)
			}
		}()
	}
	err = d.run(ctx, time.Now().Add(r.For))
	stop()
	wg.Wait()
	r.count("candidates", candidates)
	r.count("changes of leader", l.changes.Load())
	r.count("wake-ups", l.wakes.Load())
	r.count("streams that broke", l.restarts.Load())
	r.count("kills", d.kills.Load())
	r.event("the load has ended; %d reigns are compared", len(l.reigns))
	r.find(checkReigns(l.reigns)...)
	r.find(l.lost...)
	if err != nil || r.Control != "" {
		return err
	}
	if n := l.changes.Load(); n < 20 {
		r.unknown("cluster", "the election had %d leaders only", n)
	} else if per := float64(l.wakes.Load()) / float64(n); per > wakesMax {
		r.find(fmt.Sprintf("a change of leader woke %.1f candidates; it should be one", per))
	}
	r.happened(d.kills.Load(), "no leader of the shard was killed")
	waited, err := l.herd(ctx)
	if err != nil {
		return err
	}
	r.count("wake-ups if each candidate watched the leader", waited)
	return r.settled(ctx, cl)
}

// stand stands for the election again and again, as etcd's package concurrency does.
func (l *election) stand(ctx context.Context, who int) {
	c, err := l.e.contend(ctx, herdName, int64(l.seed&0xffff)<<16|int64(who+1), int64(l.ttl.Seconds()))
	for err == nil && ctx.Err() == nil {
		if err = l.await(ctx, c, who); err != nil {
			return
		}
		if err = l.lead(ctx, c, who); err != nil {
			return
		}
		err = l.e.enter(ctx, &c)
	}
}

// await waits until nobody is before a candidate, and notes that it leads.
func (l *election) await(ctx context.Context, c contender, who int) error {
	for {
		before, rev, err := l.e.before(ctx, c)
		if err != nil {
			return err
		}
		if before == "" {
			l.changes.Add(1)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.reigns = append(l.reigns, reign{who: who, since: rev, until: rev})
			return nil
		}
		gone, err := l.gone(ctx, before, rev+1)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case err != nil:
			l.restarts.Add(1)
			pause(ctx, 20*time.Millisecond)
		case gone:
			l.wakes.Add(1)
		}
	}
}

// gone waits for the deletion of a key.
func (l *election) gone(ctx context.Context, key string, from int64) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := l.e.any().follow(ctx, &pb.WatchCreateRequest{
		Key: []byte(key), StartRevision: from, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT},
	})
	for err == nil {
		var r *pb.WatchResponse
		if r, err = w.Recv(); err == nil && len(r.Events) > 0 {
			return true, nil
		}
	}
	return false, err
}

// lead does something as the leader, and resigns.
func (l *election) lead(ctx context.Context, c contender, who int) error {
	held := []*pb.Compare{created(c.key, c.token)}
	for _, op := range []*pb.RequestOp{putOp(&pb.PutRequest{Key: []byte("herd-leader"), Value: fmt.Append(nil, who)}), deleteOp(c.key)} {
		err := l.e.try(ctx, func(ctx context.Context, n *etcdNode) error {
			r, err := n.Txn(ctx, &pb.TxnRequest{Compare: held, Success: []*pb.RequestOp{op}})
			if err == nil && !r.Succeeded && op.GetRequestPut() != nil && time.Since(l.began) < l.ttl {
				// Nobody but itself deletes the key, whose lease goes on. An earlier try to resign may have done it, one to put cannot.
				l.mu.Lock()
				defer l.mu.Unlock()
				l.lost = append(l.lost, fmt.Sprintf("the key %s of candidate %d, which led under revision %d, is lost", c.key, who, c.token))
				return nil
			}
			if err == nil && r.Succeeded {
				// The revision of the resignation is the first at which it does not lead.
				at := r.Header.Revision
				if op.GetRequestDeleteRange() != nil {
					at--
				}
				l.mu.Lock()
				defer l.mu.Unlock()
				for i := len(l.reigns) - 1; i >= 0; i-- {
					if l.reigns[i].who == who {
						l.reigns[i].until = at
						break
					}
				}
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// usurp is what the control's candidates do.
func (l *election) usurp(ctx context.Context, who int) {
	for ctx.Err() == nil {
		var since, until int64
		err := l.e.try(ctx, func(ctx context.Context, n *etcdNode) error {
			r, err := n.Put(ctx, &pb.PutRequest{Key: []byte("herd-leader"), Value: fmt.Append(nil, who)})
			if err == nil {
				since = r.Header.Revision
			}
			return err
		})
		if err == nil {
			err = l.e.try(ctx, func(ctx context.Context, n *etcdNode) error {
				r, err := n.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "herd-work/%d", who)})
				if err == nil {
					until = r.Header.Revision
				}
				return err
			})
		}
		if err != nil {
			return
		}
		l.changes.Add(1)
		l.mu.Lock()
		l.reigns = append(l.reigns, reign{who, since, until})
		l.mu.Unlock()
	}
}

// herd counts who would have been woken if each candidate watched the leader: all that waited at each change.
func (l *election) herd(ctx context.Context) (woken int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	var last int64
	err = l.e.try(ctx, func(ctx context.Context, n *etcdNode) error {
		r, err := n.Put(ctx, &pb.PutRequest{Key: []byte(herdName + "/~")})
		if err == nil {
			last = r.Header.Revision
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	// A long history takes several tries, each of which goes on where the one before ended.
	waiting := map[string]bool{}
	from := int64(1)
	err = l.e.try(ctx, func(ctx context.Context, n *etcdNode) error {
		w, err := n.follow(ctx, &pb.WatchCreateRequest{Key: []byte(herdName + "/"), RangeEnd: prefixEnd(herdName + "/"), StartRevision: from})
		for err == nil {
			var r *pb.WatchResponse
			if r, err = w.Recv(); err != nil {
				return err
			}
			for _, ev := range r.Events {
				if ev.Kv.ModRevision >= last {
					return nil
				}
				from = ev.Kv.ModRevision + 1
				if ev.Type == mvccpb.DELETE {
					delete(waiting, string(ev.Kv.Key))
					woken += int64(len(waiting))
				} else {
					waiting[string(ev.Kv.Key)] = true
				}
			}
		}
		return err
	})
	return woken, err
}

// checkReigns looks for two leaders at one revision.
func checkReigns(all []reign) (findings []string) {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b reign) int { return cmp.Or(cmp.Compare(a.since, b.since), cmp.Compare(a.until, b.until)) })
	for i := 1; i < len(all); i++ {
		a, b := all[i-1], all[i]
		if b.since <= a.until {
			findings = append(findings, fmt.Sprintf("candidate %d led from revision %d to %d, and candidate %d from %d to %d", a.who, a.since, a.until, b.who, b.since, b.until))
		}
		// The one that leads longest is who the next is compared with.
		if a.until > b.until {
			all[i] = a
		}
	}
	return findings
}
