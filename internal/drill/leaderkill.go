package drill

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

func leaderKillDrill() Drill {
	return Drill{
		Name:    "leader-kill",
		Text:    "The leader or another node is killed with kill -9, or stopped for a while, again and again; every answer must fit one order.",
		Promise: "Reads are linearizable by default; an acknowledged write is not lost; an unknown outcome is reported as unknown (promises 1, 2, 8).",
		NotShown: "Networks that lose, delay or partition messages, clocks that jump, and damaged disks. The kernel keeps what a killed process " +
			"had written, so this is no power cut (see power-loss).",
		Controls: []Control{{"stale-reads", "every node answers reads from whatever it has, without asking the leader"}},
		Length:   20 * time.Second, Short: 10 * time.Second, ControlLength: 4 * time.Second,
		run: runLeaderKill,
	}
}

// gapMax is how long writes may fail in a row when a leader dies.
const gapMax = 3 * time.Second

func runLeaderKill(ctx context.Context, r *run) error {
	var sandbox []string
	if r.Control == "stale-reads" {
		sandbox = append(sandbox, "stale_reads: true")
	}
	cl, err := r.cluster(ctx, len(sandbox) > 0, sandbox...)
	if err != nil {
		return err
	}
	defer cl.Close()
	g := &registers{addrs: cl.redis(), clients: 3 * len(cl.Nodes), seed: r.Seed, start: r.start}
	d := &disturber{cl: cl, r: r, rng: r.rng(1), faults: []fault{killLeader, killLeader, killRandom, pauseLeader}, every: 1500 * time.Millisecond, full: g.full}
	lctx, stop := context.WithCancel(ctx)
	defer stop()
	g.run(lctx)
	r.says(func() string {
		return fmt.Sprintf("%d operations answered, %d unknown, %d refused; %d kills, %d pauses; longest gap between writes %d ms",
			g.acked.Load(), g.unknown.Load(), g.refused.Load(), d.kills.Load(), d.pauses.Load(), g.gap().Milliseconds())
	})
	err = d.run(ctx, time.Now().Add(r.For))
	g.endGap()
	stop()
	g.wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.countOperations(g)
	r.count("kills", d.kills.Load())
	r.count("pauses", d.pauses.Load())
	r.count("longest gap between writes, ms", g.gap().Milliseconds())
	r.judge(g)
	r.happened(d.kills.Load()+d.pauses.Load(), "no node was killed or stopped")
	if r.Control == "" && g.gap() > gapMax {
		r.warn("no write succeeded for %d ms; up to %d ms is expected when a leader dies", g.gap().Milliseconds(), gapMax.Milliseconds())
	}
	if err != nil || r.Control != "" {
		return err
	}
	return r.settled(ctx, cl)
}

// countOperations reports what the clients of registers were told.
func (r *run) countOperations(g *registers) {
	r.count("operations answered", g.acked.Load())
	r.count("operations unknown", g.unknown.Load())
	r.count("operations refused", g.refused.Load())
}

// judge checks the histories of registers, whose load must have ended.
func (r *run) judge(g *registers) {
	// Reads of what nobody could write fit any order, and so do writes that nobody reads.
	r.happened(g.writes.Load(), "no write was acknowledged")
	r.happened(g.reads.Load(), "no read was answered")
	r.count("histories checked", int64(len(g.histories)))
	r.event("the load has ended; %d histories are checked", len(g.histories))
	lin := checkHistories(g.histories, 10*time.Second, 60*time.Second)
	r.find(lin.findings...)
	for _, k := range lin.undecided {
		r.unknown("checker", "the history of key %s could not be judged in time", k)
	}
	if lin.bad != nil {
		if err := lin.bad.draw(filepath.Join(r.Dir, "history.html")); err != nil {
			r.warn("the picture of the history could not be written: %v", err)
		}
	}
}

// redis lists the Redis addresses of all nodes.
func (c *Cluster) redis() []string {
	var out []string
	for _, p := range c.Nodes {
		out = append(out, p.Addr.Redis)
	}
	return out
}

// kafka lists the Kafka addresses of all nodes.
func (c *Cluster) kafka() []string {
	var out []string
	for _, p := range c.Nodes {
		out = append(out, p.Addr.Kafka)
	}
	return out
}
