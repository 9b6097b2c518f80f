package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorate/quorate/internal/bench"
	"github.com/quorate/quorate/internal/errs"
)

func newBench() *cobra.Command {
	cfg := bench.Config{}
	var addrs string
	var asJSON bool
	c := &cobra.Command{
		Use: "bench", Short: "Make load on a Redis port and measure it", GroupID: "prove", Args: cobra.NoArgs,
		Long: `Make load on the Redis port of a cluster and measure it. Without --rate the loop is closed: each client waits for its
answer. With --rate it is open: latency counts from when a request was due, so that a stall is seen in full. A client whose connection breaks
makes a new one; what was under way counts as errors. Reads of keys that are not there count as requests, and it is told how many there were.

Exit codes: 0 measured, 5 no request succeeded, 130 interrupted; the errors of others are counted.`,
		Example: "  quorate bench --op set --clients 64\n  quorate bench --op get --rate 5000 --for 30s --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Addrs = strings.Split(addrs, ",")
			for _, a := range cfg.Addrs {
				if err := checkAddr("--redis", a); err != nil {
					return err
				}
			}
			if isTerminal(os.Stderr) {
				cfg.Progress = func(n int64, d time.Duration) {
					showLine(os.Stderr, fmt.Sprintf("%d requests, %d s", n, int(d.Seconds())))
				}
			}
			r, err := bench.Run(cmd.Context(), cfg)
			if cfg.Progress != nil {
				clearLine(os.Stderr)
			}
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), struct {
					APIVersion string `json:"apiVersion"`
					bench.Result
				}{apiVersion, r})
			} else {
				err = printBench(cmd.OutOrStdout(), r)
			}
			switch {
			case err != nil:
				return err
			case cmd.Context().Err() != nil:
				return exitError{code: exitInterrupted, msg: "interrupted: the figures are those of the time until then"}
			case r.Requests == 0:
				return errs.New(errs.Unavailable, "no request succeeded within %v: %s", cfg.For, cmp.Or(r.FirstError, "no answer"))
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&addrs, "redis", "127.0.0.1:6379", "Redis addresses, separated by commas")
	f.BoolVar(&cfg.Cluster, "cluster", false, "send each request to the leader of its key, as cluster clients do")
	f.StringVar(&cfg.Op, "op", "set", "one of "+strings.Join(bench.Ops(), ", "))
	f.IntVar(&cfg.Clients, "clients", 64, "connections")
	f.IntVar(&cfg.Pipeline, "pipeline", 1, "requests under way on each connection")
	f.IntVar(&cfg.Keys, "keys", 10_000, "different keys")
	f.IntVar(&cfg.ValueBytes, "value", 128, "bytes of a value")
	f.DurationVar(&cfg.For, "for", 5*time.Second, "how long to measure")
	f.DurationVar(&cfg.Warm, "warm", time.Second, "how long to run before measuring")
	f.Float64Var(&cfg.Rate, "rate", 0, "requests per second in all; 0 means a closed loop")
	f.Uint64Var(&cfg.Seed, "seed", 1, "seed")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printBench(w io.Writer, r bench.Result) error {
	missing := ""
	if r.Missing > 0 {
		missing = fmt.Sprintf("%d of %d requests found no value; run --op set first, with as many --keys\n", r.Missing, r.Requests)
	}
	_, err := fmt.Fprintf(w, "%s, %d clients, pipeline %d: %.0f/s, p50 %d µs, p90 %d µs, p99 %d µs, p99.9 %d µs, max %d µs, %d errors %s\n%s",
		r.Op, r.Clients, r.Pipeline, r.PerSecond, r.P50, r.P90, r.P99, r.P999, r.Max, r.Errors, r.FirstError, missing)
	return err
}
