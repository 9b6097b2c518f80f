package drill

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/quorate/quorate/internal/errs"
)

func powerLossDrill() Drill {
	return Drill{
		Name:    "power-loss",
		Text:    "All nodes lose power at the same moment under load, and with it every byte that was not synced; then they start again.",
		Promise: "An acknowledged write is on stable storage of a majority (promise 1).",
		NotShown: "Disks that acknowledge a sync and lie, and file systems that lose names: creating and renaming files takes effect at once here, " +
			"and whole writes are lost or kept, never torn within one.",
		Controls: []Control{{"no-fsync", "the nodes acknowledge without syncing"}},
		Length:   25 * time.Second, Short: 8 * time.Second, ControlLength: 6 * time.Second,
		cycles: true, run: runPowerLoss,
	}
}

func runPowerLoss(ctx context.Context, r *run) error {
	var sandbox []string
	if r.Control == "no-fsync" {
		sandbox = append(sandbox, "no_fsync: true")
	}
	cl, err := r.cluster(ctx, true, sandbox...)
	if err != nil {
		return err
	}
	defer cl.Close()
	l := &ledger{addrs: cl.redis(), workers: 8, seed: r.Seed, valueBytes: 200, pace: time.Millisecond}
	lctx, stop := context.WithCancel(ctx)
	defer l.wg.Wait()
	defer r.endControl(cl)
	defer stop()
	l.run(lctx)
	rng := r.rng(1)
	var cycles atomic.Int64
	var longest time.Duration
	r.says(func() string {
		return fmt.Sprintf("%d power cuts; %d writes acknowledged, %d unknown, %d refused", cycles.Load(), l.acked.Load(), l.unknown.Load(), l.refused.Load())
	})
	defer func() {
		r.count("power cuts", cycles.Load())
		r.count("writes acknowledged", l.acked.Load())
		r.count("writes unknown", l.unknown.Load())
		r.count("writes refused", l.refused.Load())
		r.count("longest time from start to first write, ms", longest.Milliseconds())
	}()
	for end := time.Now().Add(r.For); cycles.Load() == 0 || time.Now().Before(end) && (r.Cycles == 0 || int(cycles.Load()) < r.Cycles); {
		if l.full() {
			r.endsEarly()
			break
		}
		if !pause(ctx, time.Duration(400+rng.IntN(1200))*time.Millisecond) {
			return ctx.Err()
		}
		before := l.acked.Load()
		killAll(cl)
		r.event("kill -9 of all nodes after %d acknowledged writes", before)
		ack := l.nextAck()
		restarted := time.Now()
		if err := startAll(cl); err != nil {
			return err
		}
		select {
		case at := <-ack:
			longest = max(longest, at.Sub(restarted))
			r.event("first write %d ms after the start", at.Sub(restarted).Milliseconds())
		case <-time.After(settleLimit):
			return errs.New(errs.Unavailable, "no write succeeded within %v after all nodes were started again; node 1 says:\n%s", settleLimit, cl.Nodes[0].LogTail(3))
		case <-ctx.Done():
			return ctx.Err()
		}
		cycles.Add(1)
		if err := r.verifyLedger(ctx, cl, l, int(cycles.Load())%len(cl.Nodes)); err != nil {
			return err
		}
		if r.found() {
			return nil
		}
	}
	if r.Control != "" {
		return nil
	}
	resume := l.rest()
	stop()
	resume()
	l.wg.Wait()
	for i := range cl.Nodes {
		if err := r.verifyLedger(ctx, cl, l, i); err != nil {
			return err
		}
	}
	return r.settled(ctx, cl)
}

// verifyLedger lets the load rest, reads everything through a node and adds what it finds.
func (r *run) verifyLedger(ctx context.Context, cl *Cluster, l *ledger, node int) error {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	p := cl.Nodes[node]
	if err := p.WaitReady(ctx); err != nil {
		return err
	}
	resume := l.rest()
	defer resume()
	res, err := l.verify(ctx, p.Addr.Redis)
	if err != nil {
		return err
	}
	r.event("%d writes read through node %d", res.checked, p.ID)
	r.find(res.findings(fmt.Sprintf("read through node %d", p.ID))...)
	return nil
}
