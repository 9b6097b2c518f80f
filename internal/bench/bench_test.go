package bench

import (
	"bufio"
	"context"
	"math"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
)

// serve answers each SET that comes with what answer returns, and hangs up at "".
func serve(t *testing.T, answer func() string) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close() //nolint:errcheck // a test's
				rd := bufio.NewReader(c)
				for {
					// A SET has seven lines.
					for range 7 {
						if _, err := rd.ReadSlice('\n'); err != nil {
							return
						}
					}
					a := answer()
					if _, err := c.Write([]byte(a)); err != nil || a == "" {
						return
					}
				}
			}()
		}
	}()
	return ln.Addr().String()
}

func load(addr string, d time.Duration) Config {
	return Config{Addrs: []string{addr}, Op: "set", Clients: 2, Pipeline: 1, Keys: 1, For: d}
}

func TestRun_InterruptedIsMeasuredUntilThen(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var n atomic.Int64
	addr := serve(t, func() string {
		if n.Add(1) == 1000 {
			cancel()
		}
		return "+OK\r\n"
	})
	began := time.Now()
	r, err := Run(ctx, load(addr, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began).Seconds(); r.Seconds > took || r.Requests < 900 || r.PerSecond < 900/took {
		t.Errorf("got %d requests in %v s, %v/s; it ran for %v s", r.Requests, r.Seconds, r.PerSecond, took)
	}
}

func TestRun_StallAtTheEndIsSeen(t *testing.T) {
	const stall = 600 * time.Millisecond
	r, err := Run(t.Context(), load(serve(t, func() string {
		time.Sleep(stall)
		return "+OK\r\n"
	}), stall/2))
	if err != nil {
		t.Fatal(err)
	}
	if r.Requests != 0 || r.Max < stall.Microseconds() {
		t.Errorf("got %d requests, the longest took %d µs; want none in time, and %v", r.Requests, r.Max, stall)
	}
}

func TestRun_WhatWasDueInAStallAtTheEndCounts(t *testing.T) {
	const stall = 600 * time.Millisecond
	var n atomic.Int64
	cfg := load(serve(t, func() string {
		if n.Add(1) > 20 {
			time.Sleep(stall)
		}
		return "+OK\r\n"
	}), stall/2)
	cfg.Clients, cfg.Rate = 1, 1000
	r, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	// 20 are answered quickly; 280 more were due and could not be sent.
	if r.Requests > 20 || r.P50 < 50_000 {
		t.Errorf("%d requests were answered in time, and half of all within %d µs", r.Requests, r.P50)
	}
}

func TestRun_EndsAndCountsWhatIsNotAnswered(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// Nobody accepts: what is sent is neither read nor answered.
	defer ln.Close() //nolint:errcheck // a test's
	cfg := load(ln.Addr().String(), 2*time.Second)
	cfg.Pipeline, cfg.ValueBytes, cfg.patience = 64, 1<<20, 100*time.Millisecond
	done := make(chan struct{})
	go func() {
		defer close(done)
		r, err := Run(t.Context(), cfg)
		if err != nil || r.Requests != 0 || r.Errors != int64(cfg.Clients*cfg.Pipeline) {
			t.Errorf("got %+v, %v; want an error for each request", r, err)
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("a load on a server that does not read does not end")
	}
}

func TestRun_RateThatCannotBeIsRefused(t *testing.T) {
	addr := serve(t, func() string { return "+OK\r\n" })
	for _, rate := range []float64{-1, 1e12, 1e-12, math.NaN(), math.Inf(1)} {
		cfg := load(addr, time.Millisecond)
		cfg.Rate = rate
		if _, err := Run(t.Context(), cfg); !errs.Is(err, errs.Invalid) {
			t.Errorf("rate %v: got %v, want that it is invalid", rate, err)
		}
	}
}

func TestHistogram_QuantilesAreClose(t *testing.T) {
	var h Histogram
	for i := 1; i <= 100_000; i++ {
		h.Add(time.Duration(i) * time.Microsecond)
	}
	for _, q := range []float64{0.01, 0.5, 0.9, 0.99, 0.999} {
		got, want := float64(h.Quantile(q)), q*100_000
		if got < want*0.98 || got > want*1.02+1 {
			t.Errorf("quantile %v is %v, want about %v", q, got, want)
		}
	}
	if got := h.Quantile(1); got != 100_000 {
		t.Errorf("maximum is %d, want 100000", got)
	}
}

func TestBucket_BoundsHold(t *testing.T) {
	for _, us := range []int64{0, 1, 63, 64, 65, 127, 128, 1000, 1 << 20, 1<<40 + 12345} {
		if b := bucketOf(us); bucketTop(b) < us || b > 0 && bucketTop(b-1) >= us {
			t.Errorf("%d falls into bucket %d, which ends at %d", us, b, bucketTop(b))
		}
	}
}

// A node that dies in the middle takes its connections along. Clients go on as soon as they can, and what was due meanwhile has waited.
func TestRun_ClientsComeBack(t *testing.T) {
	for _, rate := range []float64{0, 1000} {
		var down atomic.Bool
		addr := serve(t, func() string {
			if down.Load() {
				return ""
			}
			return "+OK\r\n"
		})
		stall := time.AfterFunc(200*time.Millisecond, func() {
			down.Store(true)
			time.AfterFunc(600*time.Millisecond, func() { down.Store(false) })
		})
		defer stall.Stop()
		cfg := load(addr, 1500*time.Millisecond)
		cfg.Rate = rate
		r, err := Run(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if r.Errors == 0 || r.Errors > 100 {
			t.Errorf("rate %v: %d errors, want some for each client", rate, r.Errors)
		}
		// In the open loop everything is made up for.
		if rate > 0 && (r.Requests < 1200 || r.Max < 400_000) {
			t.Errorf("rate %v: %d requests, the longest took %d µs; want most of 1500, and half a second", rate, r.Requests, r.Max)
		}
		if rate == 0 && r.Requests < 1000 {
			t.Errorf("%d requests, want those of before and after", r.Requests)
		}
	}
}

// A server that is gone for good, or was none, ends the load, and what was measured is that of the time until then.
func TestRun_EndsWhenNobodyIsThere(t *testing.T) {
	for _, progress := range []func(int64, time.Duration){nil, func(int64, time.Duration) {}} {
		cfg := load(serve(t, func() string { return "" }), time.Hour)
		cfg.Progress = progress
		done := make(chan struct{})
		go func() {
			defer close(done)
			r, err := Run(t.Context(), cfg)
			if err != nil || r.Requests != 0 || r.Errors != int64(cfg.Clients) || r.Seconds > 60 || r.FirstError == "" {
				t.Errorf("got %+v, %v; want an error for each client, in little time", r, err)
			}
		}()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatal("a load on what is no server does not end")
		}
	}
}

// A read of a key that is not there is answered, and is no read of a value.
func TestRun_MissingValuesAreTold(t *testing.T) {
	var n atomic.Int64
	addr := serve(t, func() string {
		if n.Add(1)%2 == 0 {
			return "$-1\r\n"
		}
		return "$1\r\nx\r\n"
	})
	r, err := Run(t.Context(), load(addr, 100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	if r.Errors != 0 || r.Missing < r.Requests/2-2 || r.Missing > r.Requests/2+2 {
		t.Errorf("%d of %d requests found nothing, %d errors", r.Missing, r.Requests, r.Errors)
	}
}
