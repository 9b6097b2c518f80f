package drill

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func leasesDrill() Drill {
	return Drill{
		Name: "lease-stall",
		Text: "Clients make leases and let them end, or keep them alive, while the leader's process is stopped again and again, for shorter and for longer than " +
			"their TTL.",
		Promise: "A lease does not end before the TTL that its client was told has passed since the client last asked for it; it ends in bounded time after; one " +
			"that is kept alive lives on (promises 5, 8).",
		NotShown: "Clocks that jump or run at different rates. A lease may live longer than its TTL: a new leader gives each its whole TTL again, since clients may " +
			"have had nobody to ask.",
		Controls: []Control{{"impatient", "the checker counts on three times the TTL that was asked for"}},
		Length:   25 * time.Second, Short: 9 * time.Second, ControlLength: 5 * time.Second,
		run: runLeases,
	}
}

const (
	leaseClients = 24
	// keptClients are those that keep one lease alive all the time.
	keptClients = 8
	keptTTL     = 5
	// lateMax is how much later than its TTL, and the TTL that a new leader grants, a lease may end when nobody is stopped.
	lateMax = 3 * time.Second
)

// leaseLife is one lease as its client saw it, in time since the start of the drill.
type leaseLife struct {
	id   int64
	kept bool
	ttl  time.Duration
	// asked is when the last grant or renewal that was answered was sent, answered when its answer came; there is when its client last
	// began to look and found it alive, ended when it saw that the lease is over, 0 if it did not.
	asked, answered, there, ended time.Duration
}

// stall is a time in which some node was stopped, or had only just gone on, or in which a leader was elected.
type stall struct{ from, to time.Duration }

type leases struct {
	e     *etcds
	start time.Time
	ids   atomic.Int64

	ended, keptEnded, renewed atomic.Int64
	// mu guards lives and stalls.
	mu     sync.Mutex
	lives  []leaseLife
	stalls []stall
}

func runLeases(ctx context.Context, r *run) error {
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
	l := &leases{e: e, start: r.start}
	l.ids.Store(int64(r.Seed&0xffff) << 32)
	var pauses atomic.Int64
	r.says(func() string {
		return fmt.Sprintf("%d leases ended, %d renewals; %d pauses", l.ended.Load(), l.renewed.Load(), pauses.Load())
	})
	lctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	for i := range leaseClients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := r.rng(uint64(10 + i))
			for lctx.Err() == nil {
				ttl := int64(keptTTL)
				if i >= keptClients {
					ttl = 2 + rng.Int64N(2)
				}
				life, err := l.live(lctx, ttl, i < keptClients)
				if err != nil {
					continue
				}
				l.mu.Lock()
				l.lives = append(l.lives, life)
				l.mu.Unlock()
			}
		}()
	}
	// On a busy machine leaders are elected for no fault of the drill, and each gives all leases their TTL again.
	for _, p := range cl.Nodes {
		wg.Go(func() { l.watchTerms(lctx, p) })
	}
	rng := r.rng(1)
	for end := time.Now().Add(r.For); time.Now().Before(end); {
		if !pause(ctx, time.Duration(2500+rng.IntN(1500))*time.Millisecond) {
			break
		}
		p := cl.Leader(ctx, 1)
		if p == nil {
			continue
		}
		from := time.Since(r.start)
		p.Signal(syscall.SIGSTOP)
		pauses.Add(1)
		down := time.Duration(500+rng.IntN(2500)) * time.Millisecond
		r.event("node %d, the leader, is stopped for %v", p.ID, down)
		pause(ctx, down)
		p.Signal(syscall.SIGCONT)
		l.mu.Lock()
		l.stalls = append(l.stalls, stall{from, time.Since(r.start)})
		l.mu.Unlock()
	}
	stop()
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.count("leases", int64(len(l.lives)))
	r.count("leases that ended", l.ended.Load())
	r.count("leases that ended since no renewal got through for their TTL", l.keptEnded.Load())
	r.count("renewals", l.renewed.Load())
	r.count("pauses", pauses.Load())
	r.happened(l.renewed.Load(), "no renewal was answered")
	r.event("the load has ended; %d leases are checked", len(l.lives))
	stalls := mergeStalls(l.stalls)
	for i := range l.lives {
		life := l.lives[i]
		if r.Control == "impatient" {
			life.ttl *= 3
		}
		r.find(checkLease(&life, stalls)...)
	}
	if r.Control != "" {
		return nil
	}
	if l.ended.Load() == 0 || pauses.Load() == 0 {
		r.unknown("cluster", "%d leases ended in %d pauses", l.ended.Load(), pauses.Load())
	}
	return r.settled(ctx, cl)
}

// live makes a lease with a key, and sees how it ends: by itself, or, if it is kept alive, not before ctx does.
func (l *leases) live(ctx context.Context, ttl int64, kept bool) (leaseLife, error) {
	life := leaseLife{id: l.ids.Add(1), kept: kept, ttl: time.Duration(ttl) * time.Second}
	key := fmt.Appendf(nil, "lease/%d", life.id)
	actx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	n := l.e.any()
	asked := time.Since(l.start)
	granted, err := n.LeaseGrant(actx, &pb.LeaseGrantRequest{ID: life.id, TTL: ttl})
	if err != nil {
		return life, err
	}
	// What it was told counts, not what it asked for.
	life.ttl = time.Duration(granted.TTL) * time.Second
	life.asked, life.answered = asked, time.Since(l.start)
	if _, err := n.Put(actx, &pb.PutRequest{Key: key, Lease: life.id}); err != nil {
		return life, err
	}
	every := 60 * time.Millisecond
	if kept {
		every = life.ttl / 8
	}
	for pause(ctx, every) {
		n := l.e.any()
		if kept {
			asked := time.Since(l.start)
			actx, cancel := context.WithTimeout(ctx, time.Second)
			left, err := n.renew(actx, life.id)
			cancel()
			if err == nil && left > 0 {
				l.renewed.Add(1)
				life.ttl = time.Duration(left) * time.Second
				life.asked, life.answered = asked, time.Since(l.start)
			}
		}
		looked := time.Since(l.start)
		actx, cancel := context.WithTimeout(ctx, time.Second)
		r, err := n.Range(actx, &pb.RangeRequest{Key: key, KeysOnly: true})
		cancel()
		if err == nil && len(r.Kvs) == 0 {
			life.ended = time.Since(l.start)
			l.ended.Add(1)
			if kept {
				l.keptEnded.Add(1)
			}
			return life, nil
		}
		if err == nil {
			life.there = looked
		}
	}
	return life, nil
}

// mergeStalls makes one of stalls that overlap: that a leader was stopped and that nodes learnt of the next, one after the other, is one event.
func mergeStalls(all []stall) (merged []stall) {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b stall) int { return cmp.Compare(a.from, b.from) })
	for _, s := range all {
		if n := len(merged); n > 0 && s.from <= merged[n-1].to {
			merged[n-1].to = max(merged[n-1].to, s.to)
		} else {
			merged = append(merged, s)
		}
	}
	return merged
}

// watchTerms notes when a node learns of a new term, which is when a leader was elected, until ctx ends.
func (l *leases) watchTerms(ctx context.Context, p *Process) {
	var term uint64
	var known time.Duration
	for pause(ctx, 100*time.Millisecond) {
		asked := time.Since(l.start)
		st, err := p.Status(ctx)
		if err != nil || len(st.Shards) == 0 {
			continue
		}
		if now := st.Shards[0].Term; now != term {
			if term != 0 {
				l.mu.Lock()
				l.stalls = append(l.stalls, stall{known, time.Since(l.start)})
				l.mu.Unlock()
			}
			term = now
		}
		known = asked
	}
}

// checkLease judges one lease: whether it ended too early, and, unless somebody was stopped meanwhile, too late.
func checkLease(life *leaseLife, stalls []stall) (findings []string) {
	name := fmt.Sprintf("lease %d of %v, last granted or renewed by a request of %d ms", life.id, life.ttl, life.asked.Milliseconds())
	// The key was gone at the latest when its client saw that; it was renewed at the earliest when its client asked.
	if life.ended != 0 && life.ended < life.asked+life.ttl {
		findings = append(findings, fmt.Sprintf("%s: it was over at %d ms, before its time", name, life.ended.Milliseconds()))
	}
	// While a leader is stopped nobody ends a lease, and each new leader may give all of them their TTL again.
	due := life.answered + life.ttl + lateMax
	for _, s := range stalls {
		if s.from < due && s.to > life.asked {
			due = max(due, s.to) + life.ttl + lateMax
		}
	}
	// When it was last there counts, and not when its client saw that it is over, who may have come late.
	if !life.kept && life.there > due {
		findings = append(findings, fmt.Sprintf("%s: it was not over yet at %d ms, and should have been at %d ms", name, life.there.Milliseconds(), due.Milliseconds()))
	}
	return findings
}
