package drill

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/quorate/quorate/internal/errs"
)

// ledger is a workload of single writes: each SET has a key and a value of its own, and the ledger remembers which were
// acknowledged. What was acknowledged must be there whatever happens.
type ledger struct {
	addrs   []string
	workers int
	seed    uint64
	// valueBytes is the length of a value.
	valueBytes int
	// bulk is how many of the first writes have values of bulkBytes, without a pause between them, so that there is soon
	// more data than a node keeps in memory.
	bulk, bulkBytes int
	pace            time.Duration

	acked, unknown, refused atomic.Int64

	// gate is held for reading during a write, and for writing while the load rests.
	gate sync.RWMutex
	wg   sync.WaitGroup
	next atomic.Int64

	// mu guards what follows. told says what became of each write.
	mu    sync.Mutex
	told  map[int64]outcome
	last  []int64 // the latest acknowledged writes, for damage that is aimed
	first chan time.Time
}

type outcome uint8

const (
	outcomeAcked outcome = iota + 1
	outcomeUnknown
	// outcomeRefused: the write had no effect, the client was told.
	outcomeRefused
)

const (
	// ledgerMax bounds the memory of a ledger; past it the workers rest.
	ledgerMax  = 3_000_000
	latestKept = 64
	// ledgerSpare is more than is written between two looks at the ledger.
	ledgerSpare = 100_000
)

func (l *ledger) run(ctx context.Context) {
	l.told = map[int64]outcome{}
	for w := range l.workers {
		l.wg.Add(1)
		go func() {
			defer l.wg.Done()
			l.work(ctx, w)
		}()
	}
}

func ledgerKey(n int64) string { return fmt.Sprintf("led:%d", n) }

// value is what write n stores: it can be told from any other, and each byte of it is known.
func (l *ledger) value(n int64) string {
	b, size := fmt.Appendf(nil, "v:%d:%x:", n, l.seed), l.valueBytes
	if n <= int64(l.bulk) {
		size = l.bulkBytes
	}
	for i := uint64(n)*2654435761 + l.seed; len(b) < size; i = i*6364136223846793005 + 1442695040888963407 {
		b = append(b, 'a'+byte(i>>58)%26)
	}
	return string(b)
}

func (l *ledger) work(ctx context.Context, w int) {
	rng := rand.New(rand.NewPCG(l.seed, 2000+uint64(w)))
	at := w % len(l.addrs)
	cl := dial(l.addrs[at])
	defer func() { _ = cl.Close() }()
	for ctx.Err() == nil && l.next.Load() < ledgerMax {
		l.gate.RLock()
		err := l.write(cl)
		l.gate.RUnlock()
		if err == nil {
			if l.pace > 0 && l.next.Load() > int64(l.bulk) {
				pause(ctx, l.pace)
			}
			continue
		}
		_ = cl.Close()
		at = (at + 1) % len(l.addrs)
		cl = dial(l.addrs[at])
		pause(ctx, time.Duration(5+rng.IntN(20))*time.Millisecond)
	}
}

// full says that the load is to end: what is left is for the time that nodes take to come back.
func (l *ledger) full() bool { return l.next.Load() >= ledgerMax-ledgerSpare }

func (l *ledger) write(cl *redis.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	n := l.next.Add(1)
	err := cl.Set(ctx, ledgerKey(n), l.value(n), 0).Err()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.acked.Add(1)
		l.told[n] = outcomeAcked
		if l.last = append(l.last, n); len(l.last) > 2*latestKept {
			l.last = slices.Clone(l.last[latestKept:])
		}
		if l.first != nil {
			l.first <- time.Now()
			l.first = nil
		}
	case Definite(err):
		l.refused.Add(1)
		l.told[n] = outcomeRefused
	default:
		l.unknown.Add(1)
		l.told[n] = outcomeUnknown
	}
	return err
}

// nextAck returns a channel that gets the time of the next acknowledged write.
func (l *ledger) nextAck() <-chan time.Time {
	c := make(chan time.Time, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.first = c
	return c
}

// latest returns the values of the last acknowledged writes, the newest first.
func (l *ledger) latest(n int) [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out [][]byte
	for i := len(l.last) - 1; i >= 0 && len(out) < n; i-- {
		out = append(out, []byte(l.value(l.last[i])))
	}
	return out
}

// rest waits for the writes under way and keeps the load from going on until the function that it returns is called.
func (l *ledger) rest() (resume func()) {
	l.gate.Lock()
	return sync.OnceFunc(l.gate.Unlock)
}

// ledgerResult is what checkLedger found.
type ledgerResult struct {
	// lost are acknowledged writes that are gone, altered such that have another value than was written, invented writes
	// that are there although they were refused.
	lost, altered, invented []string
	checked                 int
}

// findings names what is wrong, in words.
func (r ledgerResult) findings(where string) []string {
	var out []string
	add := func(what string, keys []string) {
		if len(keys) > 0 {
			out = append(out, fmt.Sprintf("%s: %d of %d %s: %s%s", where, len(keys), r.checked, what,
				fmt.Sprintf("%v", keys[:min(10, len(keys))]), map[bool]string{true: " …"}[len(keys) > 10]))
		}
	}
	add("writes that were acknowledged are lost", r.lost)
	add("writes that were acknowledged have another value than was written", r.altered)
	add("writes that were refused took effect", r.invented)
	return out
}

// checkLedger compares what clients were told with what is there; got has no entry for a key that is not.
func checkLedger(told map[int64]outcome, value func(int64) string, got map[int64]string) ledgerResult {
	r := ledgerResult{checked: len(told)}
	ns := make([]int64, 0, len(told))
	for n := range told {
		ns = append(ns, n)
	}
	slices.Sort(ns)
	for _, n := range ns {
		v, there := got[n]
		switch {
		case there && told[n] == outcomeRefused:
			r.invented = append(r.invented, ledgerKey(n))
		case there && v != value(n):
			r.altered = append(r.altered, ledgerKey(n))
		case !there && told[n] == outcomeAcked:
			r.lost = append(r.lost, ledgerKey(n))
		}
	}
	return r
}

// verify reads everything through one node, which must not fail for good, and compares. The load should rest.
func (l *ledger) verify(ctx context.Context, addr string) (ledgerResult, error) {
	cl := dial(addr)
	defer cl.Close() //nolint:errcheck // only read
	l.mu.Lock()
	told := make(map[int64]outcome, len(l.told))
	ns := make([]int64, 0, len(l.told))
	for n, o := range l.told {
		told[n] = o
		ns = append(ns, n)
	}
	l.mu.Unlock()
	slices.Sort(ns)
	got := map[int64]string{}
	for part := range slices.Chunk(ns, 250) {
		keys := make([]string, len(part))
		for i, n := range part {
			keys[i] = ledgerKey(n)
		}
		vals, err := mget(ctx, cl, keys)
		if err != nil {
			return ledgerResult{}, err
		}
		for i, v := range vals {
			if s, ok := v.(string); ok {
				got[part[i]] = s
			}
		}
	}
	return checkLedger(told, l.value, got), nil
}

// mget reads keys; a node may refuse for a while, but a wrong answer is taken as it is.
func mget(ctx context.Context, cl *redis.Client, keys []string) ([]any, error) {
	for {
		vals, err := cl.MGet(ctx, keys...).Result()
		if err == nil {
			return vals, nil
		}
		if !pause(ctx, 50*time.Millisecond) {
			return nil, errs.Wrap(errs.Unavailable, err, "read %d keys", len(keys))
		}
	}
}
