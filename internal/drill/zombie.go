package drill

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func zombieDrill() Drill {
	return Drill{
		Name: "leader-zombie",
		Text: "With lease reads on, the leader's process is stopped for several election time-outs while others write through a new leader; then it goes on, " +
			"with requests that have been waiting for it all the time.",
		Promise: "A leader that was asleep answers no stale read and brings no late write through twice (promises 2, 5, 8).",
		NotShown: "Clocks that run at different rates, which is what lease reads trust; a process that is stopped between looking at its lease and sending the " +
			"answer can only send what was true when it looked.",
		Controls: []Control{{"stale-reads", "every node answers reads from whatever it has, without asking the leader"}},
		Length:   20 * time.Second, Short: 9 * time.Second, ControlLength: 5 * time.Second,
		run: runZombie,
	}
}

const (
	// zombieSleep is the least that a leader sleeps: several election time-outs.
	zombieSleep = 2500 * time.Millisecond
	// zombieReads is how many reads and increments wait for it when it wakes up.
	zombieReads = 12
)

func runZombie(ctx context.Context, r *run) error {
	var sandbox []string
	if r.Control == "stale-reads" {
		sandbox = append(sandbox, "stale_reads: true")
	}
	cl, err := r.clusterOf(ctx, ClusterConfig{Sandboxed: len(sandbox) > 0, Sandbox: sandbox, Extra: []string{"lease_reads: true"}})
	if err != nil {
		return err
	}
	defer cl.Close()
	g := &registers{addrs: cl.redis(), clients: 3 * len(cl.Nodes), seed: r.Seed, start: r.start}
	var pauses, replaced, woken atomic.Int64
	r.says(func() string {
		return fmt.Sprintf("%d operations answered, %d unknown, %d refused; %d pauses; %d answers of leaders that woke up",
			g.acked.Load(), g.unknown.Load(), g.refused.Load(), pauses.Load(), woken.Load())
	})
	lctx, stop := context.WithCancel(ctx)
	defer stop()
	g.run(lctx)
	rng := r.rng(1)
	var waiting sync.WaitGroup
	for end := time.Now().Add(r.For); ; {
		if g.full() {
			r.endsEarly()
			break
		}
		if !pause(ctx, time.Duration(400+rng.IntN(400))*time.Millisecond) || time.Now().Add(zombieSleep).After(end) {
			break
		}
		p := cl.Leader(ctx, 1)
		if p == nil {
			continue
		}
		p.Signal(syscall.SIGSTOP)
		pauses.Add(1)
		r.event("node %d, the leader, is stopped", p.ID)
		goesOn := pause(ctx, zombieSleep+time.Duration(rng.IntN(800))*time.Millisecond)
		if goesOn && cl.hasOtherLeader(ctx, p) {
			replaced.Add(1)
		}
		// The kernel keeps these for the process, which finds them before it finds the time.
		for range zombieReads {
			waiting.Add(1)
			go func() {
				defer waiting.Done()
				if g.knock(p.ID-1, p.Addr.Redis) {
					woken.Add(1)
				}
			}()
		}
		pause(ctx, 50*time.Millisecond)
		p.Signal(syscall.SIGCONT)
		if !goesOn {
			break
		}
		r.event("node %d goes on", p.ID)
	}
	g.endGap()
	stop()
	waiting.Wait()
	g.wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.countOperations(g)
	r.count("pauses", pauses.Load())
	r.count("leaders that another replaced while they slept", replaced.Load())
	r.count("answers of leaders that woke up", woken.Load())
	r.judge(g)
	if r.Control != "" {
		return nil
	}
	if pauses.Load() == 0 {
		r.unknown("cluster", "no leader was stopped")
	} else {
		r.happened(replaced.Load(), "nobody led in place of a leader that slept")
		r.happened(woken.Load(), "no leader that woke up answered")
	}
	return r.settled(ctx, cl)
}

// hasOtherLeader says whether a node knows that another leads the first shard than p, which is stopped.
func (c *Cluster) hasOtherLeader(ctx context.Context, p *Process) bool {
	for _, q := range c.Nodes {
		if q == p {
			continue
		}
		st, err := q.Status(ctx)
		if err == nil && len(st.Shards) > 0 && st.Shards[0].Leader != 0 && int(st.Shards[0].Leader) != p.ID {
			return true
		}
	}
	return false
}

// knock sends one read, or one increment, to a node that is stopped, and reports whether it was answered.
func (g *registers) knock(node int, addr string) bool {
	cl := dialPatient(addr, 8*time.Second)
	defer func() { _ = cl.Close() }()
	h := g.any()
	if h == nil {
		return false
	}
	op := operation{client: g.clients + node, node: node, kind: opRead}
	if h.counter && g.values.Add(1)%3 == 0 {
		op.kind = opIncr
	}
	return g.do(cl, h, op)
}

// any chooses a key that takes another operation, nil if there is none.
func (g *registers) any() *keyHistory {
	g.mu.Lock()
	defer g.mu.Unlock()
	for range g.slots {
		h := g.slots[int(g.values.Add(1))%len(g.slots)]
		if h.begun < opsPerKeyMax && h.opens < openPerKeyMax {
			h.begun++
			return h
		}
	}
	return nil
}
