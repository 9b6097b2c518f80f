package drill

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// fault is a way to disturb one node.
type fault int

const (
	killLeader fault = iota
	killRandom
	pauseLeader
)

// disturber breaks one node at a time, and mends it before it breaks the next.
type disturber struct {
	cl  *Cluster
	r   *run
	rng *rand.Rand
	// faults are drawn from with equal chance; every is the time between two, give or take a third.
	faults []fault
	every  time.Duration
	// full says that the load has come to the bound of what is remembered, so that it rests. It may be nil.
	full func() bool

	kills, pauses atomic.Int64
}

// run disturbs until end, or until there is no load any more to disturb. When it returns every node runs again, though perhaps it is not ready yet.
func (d *disturber) run(ctx context.Context, end time.Time) error {
	for {
		if d.full != nil && d.full() {
			d.r.endsEarly()
			return nil
		}
		wait := d.every*2/3 + time.Duration(d.rng.Int64N(int64(d.every)*2/3))
		if time.Now().Add(wait).After(end) {
			pause(ctx, time.Until(end))
			return ctx.Err()
		}
		if !pause(ctx, wait) {
			return ctx.Err()
		}
		if err := d.once(ctx); err != nil {
			return err
		}
	}
}

// once breaks a node and mends it.
func (d *disturber) once(ctx context.Context) error {
	f := d.faults[d.rng.IntN(len(d.faults))]
	var p *Process
	what := "the leader"
	switch f {
	case killRandom:
		p, what = d.cl.Nodes[d.rng.IntN(len(d.cl.Nodes))], "a random node"
	default:
		if p = d.cl.Leader(ctx, 1); p == nil {
			return nil // an election is under way; the next turn will do
		}
	}
	down := time.Duration(300+d.rng.IntN(900)) * time.Millisecond
	if f == pauseLeader {
		down += time.Second
		p.Signal(syscall.SIGSTOP)
		d.pauses.Add(1)
		d.r.event("node %d, %s, is stopped for %v", p.ID, what, down)
		pause(ctx, down)
		p.Signal(syscall.SIGCONT)
		d.r.event("node %d goes on", p.ID)
		return ctx.Err()
	}
	p.Kill()
	d.kills.Add(1)
	d.r.event("kill -9 node %d, %s", p.ID, what)
	pause(ctx, down)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := p.Start(); err != nil {
		return err
	}
	d.r.event("node %d started again", p.ID)
	// The next fault waits until this node is back, so that there is always a majority.
	wctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	return p.WaitReady(wctx)
}

// killAll kills all nodes at the same moment.
func killAll(cl *Cluster) {
	// First the signals, one right after the other, and only then the waiting.
	for _, p := range cl.Nodes {
		p.Signal(syscall.SIGKILL)
	}
	var wg sync.WaitGroup
	for _, p := range cl.Nodes {
		wg.Add(1)
		go func() {
			defer wg.Done()
			p.Kill()
		}()
	}
	wg.Wait()
}

func startAll(cl *Cluster) error {
	for _, p := range cl.Nodes {
		if err := p.Start(); err != nil {
			return err
		}
	}
	return nil
}

// checkUp finds nodes that ended by themselves.
func checkUp(r *run, cl *Cluster) {
	for _, p := range cl.Nodes {
		if !p.Up() {
			r.ended(cl, p)
		}
	}
}

// ended notes that a node ended by itself.
func (r *run) ended(cl *Cluster, p *Process) {
	tail := p.LogTail(3)
	if !slices.ContainsFunc(cl.Nodes, toldOfFullDisk) {
		r.find(fmt.Sprintf("node %d ended by itself; the end of its log:\n%s", p.ID, tail))
		return
	}
	r.unknown("cluster", "node %d ended since the disk is full; the end of its log:\n%s", p.ID, tail)
}

// toldOfFullDisk says whether a node's log tells that its disk is full. It is every node's disk, and one may not have been able to write even that.
func toldOfFullDisk(p *Process) bool {
	lines, _ := errorLines(logPath(p)) // what cannot be read is said elsewhere
	return diskFull(p.LogTail(3)) || slices.ContainsFunc(lines, diskFull)
}
