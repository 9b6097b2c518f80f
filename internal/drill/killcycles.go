package drill

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

func killCyclesDrill() Drill {
	return Drill{
		Name:     "kill-cycles",
		Text:     "A long run: a random node is killed with kill -9 again and again under load, and every fifth time all nodes at once.",
		Promise:  "An acknowledged write is not lost, a retried request is applied once, and state and events stay equal (promises 1, 3, 4, 8).",
		NotShown: "As for outbox. It is long so that rare timings occur; it has no control, since outbox and power-loss have theirs.",
		Length:   10 * time.Minute, Short: 10 * time.Second, Hidden: true,
		cycles: true, run: runKillCycles,
	}
}

// verifyEvery is after how many cycles the whole state is compared.
const verifyEvery = 20

func runKillCycles(ctx context.Context, r *run) error {
	cl, err := r.cluster(ctx, false)
	if err != nil {
		return err
	}
	defer cl.Close()
	s := &Shop{Redis: cl.redis(), Kafka: cl.kafka(), Workers: 6, Seed: r.Seed, Pace: 5 * time.Millisecond, Crashes: true}
	if err := s.Start(ctx); err != nil {
		return err
	}
	defer s.Close()
	rng := r.rng(1)
	cycle := 0
	var single, all atomic.Int64
	r.says(s.progress(func() string { return fmt.Sprintf("%d kills of one node, %d of all", single.Load(), all.Load()) }))
	var res ShopResult
	check := func() error {
		resume := s.Rest()
		defer resume()
		res, err = r.verifyShop(ctx, cl, s)
		if err == nil {
			r.event("%d orders and %d events compared", res.Orders, res.Events)
		}
		return err
	}
	defer func() {
		r.count("kills of one node", single.Load())
		r.count("kills of all nodes", all.Load())
		r.countShop(s, res)
	}()
	for end := time.Now().Add(r.For); r.Cycles > 0 && cycle < r.Cycles+r.Cycles/4 || r.Cycles == 0 && time.Now().Before(end); {
		if !pause(ctx, time.Duration(200+rng.IntN(500))*time.Millisecond) {
			return ctx.Err()
		}
		if cycle++; cycle%5 == 0 {
			killAll(cl)
			all.Add(1)
			r.event("kill -9 of all nodes")
		} else {
			p := cl.Nodes[rng.IntN(len(cl.Nodes))]
			p.Kill()
			single.Add(1)
			r.event("kill -9 node %d", p.ID)
		}
		if !pause(ctx, time.Duration(rng.IntN(300))*time.Millisecond) {
			return ctx.Err()
		}
		if err := startAll(cl); err != nil {
			return err
		}
		if err := cl.WaitReady(ctx, settleLimit); err != nil {
			return err
		}
		if cycle%verifyEvery == 0 {
			if err := check(); err != nil {
				return err
			}
			if r.found() {
				return nil
			}
		}
	}
	s.StopLoad()
	s.WaitLoad()
	if err := check(); err != nil {
		return err
	}
	r.happened(single.Load()+all.Load(), "no node was killed")
	r.happened(s.Acked.Load(), "no order was acknowledged")
	return r.settled(ctx, cl)
}
