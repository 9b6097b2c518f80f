package drill

import (
	"context"
	"fmt"
	"time"
)

func outboxDrill() Drill {
	return Drill{
		Name:    "outbox",
		Text:    "A shop counts, stores and announces each order in one MULTI, while leaders are killed and clients die half-way.",
		Promise: "A state change and its event commit together, all or nothing, and once (promises 1, 3, 4, 8).",
		NotShown: "Requests that span several shards, consumer groups, and consumers that must remember their own position. " +
			"The kernel keeps what a killed process had written, so this is no power cut (see power-loss).",
		Controls: []Control{{"dual-write", "clients write the state first and the event second, without a common transaction, and sometimes die between the two"}},
		Length:   20 * time.Second, Short: 8 * time.Second, ControlLength: 3 * time.Second,
		run: runOutbox,
	}
}

func runOutbox(ctx context.Context, r *run) error {
	cl, err := r.cluster(ctx, false)
	if err != nil {
		return err
	}
	defer cl.Close()
	s := &Shop{
		Redis: cl.redis(), Kafka: cl.kafka(), Workers: 8, Seed: r.Seed, Pace: 2 * time.Millisecond,
		DualWrite: r.Control == "dual-write", Crashes: true,
	}
	if err := s.Start(ctx); err != nil {
		return err
	}
	defer s.Close()
	d := &disturber{cl: cl, r: r, rng: r.rng(1), faults: []fault{killLeader}, every: 1500 * time.Millisecond}
	r.says(s.progress(func() string { return fmt.Sprintf("%d kills", d.kills.Load()) }))
	if err := d.run(ctx, time.Now().Add(r.For)); err != nil {
		return err
	}
	s.StopLoad()
	s.WaitLoad()
	r.event("the load has ended; state, events and acknowledged orders are compared")
	r.count("kills", d.kills.Load())
	res, err := r.verifyShop(ctx, cl, s)
	r.countShop(s, res)
	r.happened(d.kills.Load(), "no leader was killed")
	r.happened(s.Acked.Load(), "no order was acknowledged")
	if err != nil || r.Control != "" {
		return err
	}
	return r.settled(ctx, cl)
}

// progress makes the status line of a shop.
func (s *Shop) progress(more func() string) func() string {
	return func() string {
		return fmt.Sprintf("%d orders acknowledged, %d unknown, %d refused, %d clients died, %d events seen; %s",
			s.Acked.Load(), s.Unknown.Load(), s.Refused.Load(), s.Crashed.Load(), s.Seen.Load(), more())
	}
}

// verifyShop compares state and events, and adds what it finds. The load must rest.
func (r *run) verifyShop(ctx context.Context, cl *Cluster, s *Shop) (ShopResult, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*settleLimit)
	defer cancel()
	if err := cl.WaitReady(ctx, settleLimit); err != nil {
		return ShopResult{}, err
	}
	node := int(r.Seed % uint64(len(cl.Nodes)))
	res, err := s.VerifyVia(ctx, node)
	if err == nil {
		r.find(res.Findings()...)
	}
	return res, err
}

func (r *run) countShop(s *Shop, res ShopResult) {
	r.count("orders acknowledged", s.Acked.Load())
	r.count("orders unknown", s.Unknown.Load())
	r.count("orders refused", s.Refused.Load())
	r.count("clients died", s.Crashed.Load())
	r.count("orders in the state", int64(res.Orders))
	r.count("events in the topic", int64(res.Events))
	r.count("longest gap between orders, ms", s.LongestGap().Milliseconds())
}
