// Package bench makes load on a Redis port and measures it, in a closed loop (each client waits for its answer) or an open
// one (requests come at a rate, and latency counts from when a request was due: no coordinated omission).
//
// Latencies of all clients go into one histogram, so that percentiles are those of all requests.
package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/bits"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quorate/quorate/internal/errs"
)

// Config describes a load.
type Config struct {
	// Addrs are the Redis addresses; clients are spread over them. Cluster makes each client go to a leader instead, and ask
	// for keys that it leads, as cluster clients do; it takes the leaders of the moment it starts.
	Addrs   []string
	Cluster bool
	// Op is one of Ops.
	Op string
	// Clients is the number of connections; Pipeline how many requests each keeps under way.
	Clients, Pipeline int
	// Keys is the number of different keys, ValueBytes the size of a value.
	Keys, ValueBytes int
	// For is how long to measure, after Warm.
	For, Warm time.Duration
	// Rate, when not 0, makes the loop open: that many requests a second in all.
	Rate float64
	Seed uint64
	// Progress, when not nil, is called every second.
	Progress func(done int64, elapsed time.Duration)

	// patience is how long answers are waited for when the time is up; default 5 s.
	patience time.Duration
}

var ops = []string{"set", "get", "incr", "set-event", "event"}

// rateMax is more than a client can send.
const rateMax = 10_000_000

// Ops returns the kinds of request that a load can have.
func Ops() []string { return append([]string(nil), ops...) }

// Result is what a load measured.
type Result struct {
	Op        string  `json:"op"`
	Clients   int     `json:"clients"`
	Pipeline  int     `json:"pipeline"`
	Seconds   float64 `json:"seconds"`
	Requests  int64   `json:"requests"`
	Errors    int64   `json:"errors"`
	PerSecond float64 `json:"per_second"`
	// Latencies in microseconds.
	P50        int64  `json:"p50_us"`
	P90        int64  `json:"p90_us"`
	P99        int64  `json:"p99_us"`
	P999       int64  `json:"p999_us"`
	Max        int64  `json:"max_us"`
	FirstError string `json:"first_error,omitempty"`
	// Missing is how many of the requests found no value: reads of keys that are not there cost less than others.
	Missing int64 `json:"missing,omitempty"`
}

// Histogram counts durations in buckets that are at most 1/64 wide of their value. The zero value is empty. Add may be
// called from any goroutine.
type Histogram struct {
	counts [64 * 64]atomic.Int64
	max    atomic.Int64
}

func bucketOf(us int64) int {
	if us < 64 {
		return int(max(us, 0))
	}
	e := bits.Len64(uint64(us)) - 7
	return (e+1)*64 + int(us>>e) - 64
}

func bucketTop(b int) int64 {
	if b < 64 {
		return int64(b)
	}
	e := b/64 - 1
	return (int64(b%64+64)+1)<<e - 1
}

// Add counts one duration.
func (h *Histogram) Add(d time.Duration) {
	us := d.Microseconds()
	h.counts[min(bucketOf(us), len(h.counts)-1)].Add(1)
	for {
		m := h.max.Load()
		if us <= m || h.max.CompareAndSwap(m, us) {
			return
		}
	}
}

// Quantile returns the duration, in microseconds, below which a share q of all counted ones is.
func (h *Histogram) Quantile(q float64) int64 {
	total := int64(0)
	for i := range h.counts {
		total += h.counts[i].Load()
	}
	want, sum := int64(q*float64(total)+0.5), int64(0)
	for i := range h.counts {
		if sum += h.counts[i].Load(); sum >= want && sum > 0 {
			return min(bucketTop(i), h.max.Load())
		}
	}
	return h.max.Load()
}

type run struct {
	cfg      Config
	hist     Histogram
	requests atomic.Int64
	errors   atomic.Int64
	missing  atomic.Int64
	first    atomic.Pointer[string]
	from, to time.Time
	start    time.Time
	value    []byte
	// mu guards conns, the connections of the clients, and over, which says that what is under way has until then.
	mu    sync.Mutex
	conns []net.Conn
	over  time.Time
	// routes says, for each client, where it goes; nil if that does not matter.
	routes []*routed
}

// check refuses a load that is none.
func (c *Config) check() error {
	for _, n := range []struct {
		what string
		n    int
		min  int
	}{{"addresses", len(c.Addrs), 1}, {"clients", c.Clients, 1}, {"pipeline", c.Pipeline, 1}, {"keys", c.Keys, 1}, {"value", c.ValueBytes, 0}} {
		if n.n < n.min {
			return errs.New(errs.Invalid, "%s is %d; it must be at least %d", n.what, n.n, n.min)
		}
	}
	switch {
	case c.For <= 0:
		return errs.New(errs.Invalid, "the load lasts %v; it needs some time, such as 5s", c.For)
	case c.Warm < 0:
		return errs.New(errs.Invalid, "the time before measuring is %v; it must not be negative", c.Warm)
	}
	return nil
}

// Run makes the load and measures it. If ctx ends before its time, the result is that of the time until then.
func Run(ctx context.Context, cfg Config) (Result, error) {
	if err := cfg.check(); err != nil {
		return Result{}, err
	}
	// The first bound keeps the time between two requests of a client within what can be counted.
	if cfg.Rate != 0 && !(float64(cfg.Clients)/cfg.Rate <= 3600 && cfg.Rate <= rateMax) || cfg.Rate < 0 {
		return Result{}, errs.New(errs.Invalid, "the rate is %v requests a second; it must be at most %v, and one an hour for each client at least, or 0 for a closed loop", cfg.Rate, float64(rateMax))
	}
	if cfg.patience == 0 {
		cfg.patience = 5 * time.Second
	}
	known := false
	for _, o := range ops {
		known = known || o == cfg.Op
	}
	if !known {
		return Result{}, errs.New(errs.Invalid, "unknown operation %q; use one of %v", cfg.Op, ops)
	}
	r := &run{cfg: cfg, value: make([]byte, cfg.ValueBytes), conns: make([]net.Conn, cfg.Clients)}
	defer r.close()
	if cfg.Cluster {
		if err := r.route(ctx); err != nil {
			return Result{}, err
		}
	}
	for i := range cfg.Clients {
		addr := r.addr(i, 0)
		if _, err := r.dial(ctx, i, addr); err != nil {
			return Result{}, errs.Wrap(errs.Unavailable, err, "client %d of %d cannot connect to %s; is a node there, and may so many connections be open?", i+1, cfg.Clients, addr)
		}
	}
	r.start = time.Now()
	rng := rand.New(rand.NewPCG(cfg.Seed, 1))
	for i := range r.value {
		r.value[i] = byte('a' + rng.IntN(26))
	}
	r.from = r.start.Add(cfg.Warm)
	r.to = r.from.Add(cfg.For)
	interrupted := ctx
	ctx, cancel := context.WithDeadline(ctx, r.to)
	defer cancel()
	stop := context.AfterFunc(ctx, r.end)
	defer stop()
	var clients, shows sync.WaitGroup
	for i := range cfg.Clients {
		clients.Go(func() { r.client(ctx, interrupted, i) })
	}
	if cfg.Progress != nil {
		shows.Go(func() {
			t := time.NewTicker(time.Second)
			defer t.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-t.C:
					cfg.Progress(r.requests.Load(), time.Since(r.start))
				}
			}
		})
	}
	clients.Wait()
	// If no client has anything to do any more, or it was interrupted, the time is over before it was to be.
	measured := min(max(time.Since(r.from), 0), cfg.For)
	cancel()
	shows.Wait()
	res := Result{
		Op: cfg.Op, Clients: cfg.Clients, Pipeline: cfg.Pipeline, Seconds: measured.Seconds(), Requests: r.requests.Load(),
		Errors: r.errors.Load(), P50: r.hist.Quantile(0.5), P90: r.hist.Quantile(0.9), P99: r.hist.Quantile(0.99),
		P999: r.hist.Quantile(0.999), Max: r.hist.max.Load(), Missing: r.missing.Load(),
	}
	if measured > 0 {
		res.PerSecond = float64(res.Requests) / res.Seconds
	}
	if e := r.first.Load(); e != nil {
		res.FirstError = *e
	}
	return res, nil
}

func (r *run) fail(msg string) {
	r.errors.Add(1)
	r.first.CompareAndSwap(nil, &msg)
}

// addr returns where a client goes, on its first try and on later ones.
func (r *run) addr(client, try int) string {
	if r.routes != nil {
		return r.routes[client].addr
	}
	return r.cfg.Addrs[(client+try)%len(r.cfg.Addrs)]
}

// dialTimeout is for one try to connect, and redial how long a client rests between two.
const (
	dialTimeout = 5 * time.Second
	redial      = 50 * time.Millisecond
)

// dial connects a client.
func (r *run) dial(ctx context.Context, client int, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over.IsZero() {
		_ = c.SetDeadline(r.over)
	}
	if was := r.conns[client]; was != nil {
		_ = was.Close()
	}
	r.conns[client] = c
	return c, nil
}

// end gives what is under way some time: a server that does not read holds up who writes to it.
func (r *run) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = time.Now().Add(r.cfg.patience)
	for _, c := range r.conns {
		_ = c.SetDeadline(r.over)
	}
}

func (r *run) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		if c != nil {
			_ = c.Close()
		}
	}
}

// pace is what a client has to keep to.
type pace struct {
	rng *rand.Rand
	// interval is the time between two requests, 0 in a closed loop, and next when the next one is due.
	interval time.Duration
	next     time.Time
	// answered says that there was an answer: a server is there.
	answered bool
}

// client is one of the clients. When its connection breaks it makes a new one, as others do: what was under way has failed, and what was due
// meanwhile waits.
func (r *run) client(ctx, interrupted context.Context, n int) {
	p := &pace{rng: rand.New(rand.NewPCG(r.cfg.Seed, uint64(n)+2)), next: r.start}
	if r.cfg.Rate > 0 {
		p.interval = time.Duration(float64(time.Second) * float64(r.cfg.Clients) / r.cfg.Rate)
		p.next = p.next.Add(time.Duration(p.rng.Int64N(int64(p.interval))))
	}
	r.mu.Lock()
	c := r.conns[n]
	r.mu.Unlock()
	for try := 1; c != nil; {
		open, err := r.talk(ctx, n, p, c)
		switch {
		case interrupted.Err() != nil:
			return
		case err == nil:
		case ctx.Err() != nil:
			for range open {
				r.fail(fmt.Sprintf("no answer %v after the end", r.cfg.patience))
			}
		case !p.answered || !time.Now().Before(r.from):
			for range open {
				r.fail(err.Error())
			}
		}
		if err != nil && (!p.answered || errs.Is(err, errs.Invalid)) {
			// Nobody is there who could serve it.
			return
		}
		for c = nil; c == nil && ctx.Err() == nil; try++ {
			pause, cancel := context.WithTimeout(ctx, redial)
			<-pause.Done()
			cancel()
			c, _ = r.dial(ctx, n, r.addr(n, try))
		}
	}
	// What was due and could not be sent, since an answer did not come, has waited until the end at least.
	for ; p.interval > 0 && p.next.Before(r.to) && !time.Now().Before(r.to); p.next = p.next.Add(p.interval) {
		if !p.next.Before(r.from) {
			r.hist.Add(r.to.Sub(p.next))
		}
	}
}

// talk keeps one connection busy. With an error it returns how many requests have no answer.
func (r *run) talk(ctx context.Context, n int, p *pace, c net.Conn) (open int, err error) {
	rd := bufio.NewReaderSize(c, 64<<10)
	var buf []byte
	due := make([]time.Time, 0, r.cfg.Pipeline)
	for ctx.Err() == nil {
		buf, due = buf[:0], due[:0]
		for len(due) < r.cfg.Pipeline {
			at := time.Now()
			if p.interval > 0 {
				if p.next.After(at) {
					if len(due) > 0 {
						break
					}
					t := time.NewTimer(p.next.Sub(at))
					select {
					case <-t.C:
					case <-ctx.Done():
						t.Stop()
						return 0, nil
					}
				}
				at, p.next = p.next, p.next.Add(p.interval)
			}
			buf = r.request(buf, n, p.rng)
			due = append(due, at)
		}
		if _, err := c.Write(buf); err != nil {
			return len(due), err
		}
		for i, at := range due {
			failed, missing := "", false
			for range r.replies() {
				e, null, err := readReply(rd)
				if err != nil {
					return len(due) - i, err
				}
				if e != "" {
					failed = e
				}
				missing = null
			}
			p.answered = true
			now := time.Now()
			if now.Before(r.from) {
				continue
			}
			if failed != "" {
				r.fail(failed)
				continue
			}
			// An answer that came too late is none of this time, but that its client had to wait for it is.
			r.hist.Add(now.Sub(at))
			if !now.After(r.to) {
				r.requests.Add(1)
				if missing {
					r.missing.Add(1)
				}
			}
		}
	}
	return 0, nil
}

// replies returns how many replies a request has.
func (r *run) replies() int {
	if r.cfg.Op == "set-event" {
		return 4
	}
	return 1
}

// key returns the key with a number.
func (r *run) key(n int) string {
	if r.cfg.Op == "incr" {
		return "nkey:" + strconv.Itoa(n)
	}
	return "key:" + strconv.Itoa(n)
}

func (r *run) request(b []byte, client int, rng *rand.Rand) []byte {
	var key string
	if r.routes != nil {
		keys := r.routes[client].keys
		key = keys[rng.IntN(len(keys))]
	} else {
		key = r.key(rng.IntN(r.cfg.Keys))
	}
	switch r.cfg.Op {
	case "get":
		return appendCommand(b, "GET", key)
	case "incr":
		return appendCommand(b, "INCR", key)
	case "event":
		return appendCommand(b, "EVENT.ADD", "bench", string(r.value))
	case "set-event":
		b = appendCommand(b, "MULTI")
		b = appendSet(b, key, r.value)
		b = appendCommand(b, "EVENT.ADD", "bench", string(r.value), "KEY", key)
		return appendCommand(b, "EXEC")
	}
	return appendSet(b, key, r.value)
}

func appendSet(b []byte, key string, value []byte) []byte {
	b = append(b, "*3\r\n$3\r\nSET\r\n$"...)
	b = strconv.AppendInt(b, int64(len(key)), 10)
	b = append(append(append(b, "\r\n"...), key...), "\r\n$"...)
	b = strconv.AppendInt(b, int64(len(value)), 10)
	return append(append(append(b, "\r\n"...), value...), "\r\n"...)
}

func appendCommand(b []byte, args ...string) []byte {
	b = strconv.AppendInt(append(b, '*'), int64(len(args)), 10)
	for _, a := range args {
		b = strconv.AppendInt(append(b, "\r\n$"...), int64(len(a)), 10)
		b = append(append(b, "\r\n"...), a...)
	}
	return append(b, "\r\n"...)
}

// readReply reads one RESP2 reply. It returns the text of an error reply, and whether it is null.
func readReply(r *bufio.Reader) (failed string, null bool, err error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return "", false, err
	}
	if len(line) < 3 {
		return "", false, errs.New(errs.Invalid, "malformed reply")
	}
	body := line[1 : len(line)-2]
	switch line[0] {
	case '+', ':':
		return "", false, nil
	case '-':
		return string(body), false, nil
	case '$', '*':
		n, err := strconv.Atoi(string(body))
		if err != nil {
			return "", false, errs.Wrap(errs.Invalid, err, "malformed length in a reply")
		}
		if line[0] == '$' {
			if n >= 0 {
				_, err = io.CopyN(io.Discard, r, int64(n)+2)
			}
			return "", n < 0, err
		}
		for range max(n, 0) {
			e, _, err := readReply(r)
			if err != nil {
				return "", false, err
			}
			if e != "" {
				failed = e
			}
		}
		return failed, n < 0, nil
	}
	return "", false, errs.New(errs.Invalid, "unknown reply type %q", line[0])
}
