package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorate/quorate/internal/drill"
	"github.com/quorate/quorate/internal/errs"
)

// demoResult is what `demo --json` prints.
type demoResult struct {
	APIVersion string `json:"apiVersion"`
	Verdict    string `json:"verdict"`
	Nodes      int    `json:"nodes"`
	Kills      int    `json:"kills"`
	// ReadyMillis is the time from the start to three nodes that answer.
	ReadyMillis int64            `json:"ready_ms"`
	Shop        drill.ShopResult `json:"shop"`
	Findings    []string         `json:"findings"`
	// Unknown says why a demo in which nothing was found shows nothing either.
	Unknown string  `json:"unknown,omitempty"`
	Seconds float64 `json:"seconds"`
}

func newDemo() *cobra.Command {
	var (
		nodes  int
		length time.Duration
		keep   bool
		asJSON bool
		stay   bool
		seed   uint64
	)
	c := &cobra.Command{
		Use: "demo", Short: "Three nodes, a small shop, and the leader killed again and again", GroupID: "run", Args: cobra.NoArgs,
		Long: `Start three real node processes on loopback and run a small shop on them through stock clients (go-redis and franz-go):
each order is one MULTI with INCR, SET and EVENT.ADD; a Kafka consumer keeps a copy of the events. Meanwhile the leader is
killed with SIGKILL every few seconds. In the end state, events and the list of acknowledged orders are compared.

Exit codes: 0 safe, 8 violated, 5 unknown because nothing was done or broken, 130 interrupted.`,
		Example: "  quorate demo\n  quorate demo --for 1m --nodes 5\n  quorate demo --stay        then try redis-cli and kcat by hand",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if nodes != 1 && nodes != 3 && nodes != 5 {
				return errs.New(errs.Invalid, "--nodes is %d; use 1, 3 or 5", nodes)
			}
			if length <= 0 {
				return errs.New(errs.Invalid, "--for is %v; the load needs some time, such as 20s", length)
			}
			talk := cmd.OutOrStdout()
			if asJSON {
				talk = cmd.ErrOrStderr()
			}
			d := &demo{out: talk, tty: isTerminal(os.Stdout) && !asJSON, nodes: nodes, length: length, keep: keep, stay: stay, seed: seed}
			res, err := d.run(cmd.Context())
			switch {
			case err != nil && cmd.Context().Err() != nil:
				return exitError{code: exitInterrupted, msg: "interrupted: the demo has no verdict; its nodes are stopped"}
			case err != nil:
				return err
			}
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), res); err != nil {
					return err
				}
			}
			switch res.Verdict {
			case "safe":
				return nil
			case "unknown":
				return exitError{code: exitUnavailable}
			}
			return exitError{code: exitDrill}
		},
	}
	f := c.Flags()
	f.IntVar(&nodes, "nodes", 3, "number of nodes: 1, 3 or 5")
	f.DurationVar(&length, "for", 20*time.Second, "how long the load runs")
	f.BoolVar(&keep, "keep", false, "keep the directory with data and logs")
	f.BoolVar(&stay, "stay", false, "leave the nodes running afterwards until Ctrl-C")
	f.BoolVar(&asJSON, "json", false, "print the result as JSON on stdout, the rest on stderr")
	f.Uint64Var(&seed, "seed", 1, "seed of the load and of the kills")
	// It fails for flags that are not there.
	_ = c.RegisterFlagCompletionFunc("nodes", offerNumbers("1", "3", "5"))
	return c
}

type demo struct {
	out        io.Writer
	tty        bool
	nodes      int
	length     time.Duration
	keep, stay bool
	seed       uint64
	kills      int
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

func (d *demo) run(ctx context.Context) (demoResult, error) {
	res := demoResult{APIVersion: "quorate/v1", Nodes: d.nodes}
	dir, err := os.MkdirTemp("", "quorate-demo-")
	if err != nil {
		return res, errs.Wrap(errs.Invalid, err, "make a directory for the demo")
	}
	if d.keep {
		d.say("Data and logs: %s", dir)
	} else {
		defer os.RemoveAll(dir) //nolint:errcheck // best effort on a temporary directory
	}
	start := time.Now()
	cl, err := drill.StartCluster(ctx, drill.ClusterConfig{Nodes: d.nodes, Dir: dir})
	if err != nil {
		return res, err
	}
	defer cl.Close()
	res.ReadyMillis = time.Since(start).Milliseconds()
	d.banner(cl, res.ReadyMillis)
	shop := &drill.Shop{Workers: 8, Seed: d.seed, Pace: 2 * time.Millisecond}
	for _, p := range cl.Nodes {
		shop.Redis, shop.Kafka = append(shop.Redis, p.Addr.Redis), append(shop.Kafka, p.Addr.Kafka)
	}
	if err := shop.Start(ctx); err != nil {
		return res, err
	}
	defer shop.Close()
	if err := d.disturb(ctx, cl, shop); err != nil {
		return res, err
	}
	shop.StopLoad()
	d.say("Load stopped. Comparing state, events and acknowledged orders…")
	if err := cl.WaitReady(ctx, 20*time.Second); err != nil {
		return res, err
	}
	vctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	shop.WaitLoad()
	res.Kills = d.kills
	res.Shop, err = shop.Verify(vctx)
	if err != nil {
		return res, err
	}
	res.Findings, res.Seconds = res.Shop.Findings(), time.Since(start).Seconds()
	res.judge()
	d.verdict(res)
	if d.stay {
		d.say("The nodes stay up. Ctrl-C stops them.")
		<-ctx.Done()
	}
	return res, nil
}

// judge says what the findings mean.
func (r *demoResult) judge() {
	r.Verdict, r.Findings = "safe", append([]string{}, r.Findings...)
	switch {
	case len(r.Findings) > 0:
		r.Verdict = "violated"
	case r.Shop.Acked == 0:
		r.Verdict, r.Unknown = "unknown", "no order was acknowledged"
	case r.Nodes > 1 && r.Kills == 0:
		r.Verdict, r.Unknown = "unknown", "the leader was never killed"
	}
}

func (d *demo) banner(cl *drill.Cluster, ms int64) {
	d.say("quorate %s · demo · %d nodes, ready in %d ms", version, len(cl.Nodes), ms)
	d.say("  NODE  PID      REDIS                  KAFKA                  ETCD                   HTTP")
	for _, p := range cl.Nodes {
		d.say("  %-4d  %-7d  %-21s  %-21s  %-21s  %s", p.ID, p.PID(), p.Addr.Redis, p.Addr.Kafka, p.Addr.Etcd, p.Addr.HTTP)
	}
	_, port, _ := net.SplitHostPort(cl.Nodes[0].Addr.Redis)
	d.say("  try: redis-cli -p %s get sold:0", port)
	d.say("       kcat -b %s -C -t orders -e -q | tail", cl.Nodes[0].Addr.Kafka)
	d.say("       etcdctl --endpoints %s put hello world", cl.Nodes[0].Addr.Etcd)
	d.say("       quorate status --http %s", cl.Nodes[0].Addr.HTTP)
	d.say("")
}

// disturb kills the leader every few seconds while the load runs, and starts it again.
func (d *demo) disturb(ctx context.Context, cl *drill.Cluster, shop *drill.Shop) error {
	rng := rand.New(rand.NewPCG(d.seed, 99))
	end := time.Now().Add(d.length)
	nextKill := time.Now().Add(min(2*time.Second, d.length/4))
	nextLine := time.Now().Add(time.Second)
	var down *drill.Process
	var upAt time.Time
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for time.Now().Before(end) || down != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		now := time.Now()
		switch {
		case down != nil && now.After(upAt):
			if err := down.Start(); err != nil {
				return err
			}
			d.event("node %d started again", down.ID)
			down = nil
			nextKill = now.Add(time.Duration(1500+rng.IntN(2000)) * time.Millisecond)
		case down == nil && len(cl.Nodes) > 1 && now.After(nextKill) && now.Before(end.Add(-time.Second)):
			if p := cl.Leader(ctx, 1); p != nil {
				pid := p.PID()
				p.Kill()
				d.kills++
				d.event("kill -9 %d: node %d, the leader, is dead", pid, p.ID)
				down, upAt = p, now.Add(time.Duration(500+rng.IntN(1000))*time.Millisecond)
			}
		}
		if now.After(nextLine) {
			nextLine = now.Add(time.Second)
			if !d.tty {
				nextLine = now.Add(5 * time.Second)
			}
			d.progress(shop, max(0, time.Until(end)))
		}
	}
	return nil
}

func (d *demo) event(format string, args ...any) {
	if d.tty {
		clearLine(d.out)
	}
	d.say("  "+format, args...)
}

func (d *demo) progress(s *drill.Shop, left time.Duration) {
	line := fmt.Sprintf("  %d orders acknowledged, %d events seen, %d unknown, %d refused; %d s left",
		s.Acked.Load(), s.Seen.Load(), s.Unknown.Load(), s.Refused.Load(), int(left.Seconds()))
	if d.tty {
		showLine(d.out, line)
		return
	}
	d.say("%s", line)
}

func (d *demo) verdict(r demoResult) {
	if d.tty {
		fmt.Fprintln(d.out)
	}
	s := r.Shop
	d.say("")
	d.say("  %d orders acknowledged, %d with an unknown outcome, %d refused", s.Acked, s.Unknown, s.Refused)
	d.say("  %d orders in the state, %d events in the topic", s.Orders, s.Events)
	d.say("  leader killed %d times; longest time without a successful order: %d ms", r.Kills, s.LongestGapMillis)
	switch r.Verdict {
	case "unknown":
		d.say("")
		d.say("UNKNOWN: nothing was found, but %s. Let it run longer (--for).", r.Unknown)
		return
	case "safe":
		d.say("")
		d.say("SAFE: nothing lost, nothing doubled, no order without its event, no event without its order.")
		d.say("Next: quorate drill ls")
		return
	}
	d.say("")
	d.say("VIOLATED:\n  %s", strings.Join(r.Findings, "\n  "))
	d.say("Logs of the nodes: run again with --keep, then see %s", filepath.Join("DIR", "node*", "log"))
}
