package drill

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// registers is a workload that can be checked for linearizability: clients read, write, swap and count up keys through all
// nodes, and note when each request began and ended. Half of the acknowledged writes are followed at once by a read through
// another node, which is where a stale answer shows. One more client a node does nothing but read there: nodes answer those who
// keep to reading in ways of their own.
type registers struct {
	addrs   []string
	clients int
	seed    uint64
	start   time.Time

	acked, unknown, refused atomic.Int64
	// writes and reads are those of acked.
	writes, reads atomic.Int64

	// mu guards what follows.
	mu         sync.Mutex
	slots      []*keyHistory
	histories  []*keyHistory
	operations int
	lastWrite  time.Time
	longestGap time.Duration

	values atomic.Int64
	wg     sync.WaitGroup
}

const (
	registerSlots = 8
	// opsPerKeyMax and openPerKeyMax bound a history, since a checker's time grows steeply with both; then comes a new key.
	opsPerKeyMax  = 300
	openPerKeyMax = 8
	// operationsMax bounds the memory of all histories; past it the clients rest.
	operationsMax = 2_000_000
)

type opKind uint8

const (
	opRead opKind = iota
	// opWrite stores a value that no other operation stores.
	opWrite
	// opSwap does that too, and returns what was there before.
	opSwap
	// opIncr adds one to a counter and returns the sum.
	opIncr
)

func (k opKind) String() string { return [...]string{"GET", "SET", "SET..GET", "INCR"}[k] }

// operation is one request to a key and its answer; "" stands for no value.
type operation struct {
	client, node int
	kind         opKind
	arg, out     string
	// call and ret are nanoseconds since the start. An open operation has no answer: it may take effect at any time after
	// its call, or never.
	call, ret int64
	open      bool
}

// keyHistory is everything that was asked of one key, and answered.
type keyHistory struct {
	key     string
	counter bool
	ops     []operation
	begun   int
	opens   int
}

func (g *registers) run(ctx context.Context) {
	g.mu.Lock()
	g.lastWrite = time.Now()
	g.slots = make([]*keyHistory, registerSlots)
	for i := range g.slots {
		g.rotateLocked(i)
	}
	g.mu.Unlock()
	for c := range g.clients {
		g.wg.Go(func() { g.client(ctx, c, false) })
	}
	for node := range g.addrs {
		// The numbers between are for those whom a drill adds.
		g.wg.Go(func() { g.client(ctx, g.clients+len(g.addrs)+node, true) })
	}
}

// wait waits for the clients, whose context must have ended.
func (g *registers) wait() {
	g.wg.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.histories = append(g.histories, g.slots...)
	g.slots = nil
}

func (g *registers) rotateLocked(slot int) {
	if old := g.slots[slot]; old != nil {
		g.histories = append(g.histories, old)
	}
	counter := slot%3 == 2
	kind := "reg"
	if counter {
		kind = "cnt"
	}
	g.slots[slot] = &keyHistory{key: fmt.Sprintf("%s:%d:%d", kind, slot, len(g.histories)), counter: counter}
}

// pick chooses a key.
func (g *registers) pick(rng *rand.Rand) *keyHistory {
	g.mu.Lock()
	defer g.mu.Unlock()
	slot := rng.IntN(len(g.slots))
	if h := g.slots[slot]; h.begun >= opsPerKeyMax || h.opens >= openPerKeyMax {
		g.rotateLocked(slot)
	}
	g.slots[slot].begun++
	return g.slots[slot]
}

func (g *registers) full() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.operations >= operationsMax
}

// client is number c, which begins at node c modulo their number.
func (g *registers) client(ctx context.Context, c int, reads bool) {
	rng := rand.New(rand.NewPCG(g.seed, 1000+uint64(c)))
	cls := make([]*redis.Client, len(g.addrs))
	for i, a := range g.addrs {
		cls[i] = dialPatient(a, 2*time.Second)
	}
	defer func() {
		for _, cl := range cls {
			_ = cl.Close()
		}
	}()
	at := c % len(cls)
	for ctx.Err() == nil && !g.full() {
		h := g.pick(rng)
		op := operation{client: c, node: at, kind: opRead}
		switch n := rng.IntN(10); {
		case reads:
		case h.counter && n < 5:
			op.kind = opIncr
		case !h.counter && n < 4:
			op.kind, op.arg = opWrite, "v"+strconv.FormatInt(g.values.Add(1), 10)
		case !h.counter && n < 6:
			op.kind, op.arg = opSwap, "v"+strconv.FormatInt(g.values.Add(1), 10)
		}
		ok := g.do(cls[at], h, op)
		if ok && op.kind != opRead && rng.IntN(2) == 0 {
			// Through another node, at once.
			at = (at + 1 + rng.IntN(len(cls)-1)) % len(cls)
			ok = g.do(cls[at], h, operation{client: c, node: at, kind: opRead})
		}
		wait := time.Duration(rng.IntN(2000)) * time.Microsecond
		switch {
		case !ok && reads:
			// It comes back to its node.
			wait = time.Duration(10+rng.IntN(40)) * time.Millisecond
		case !ok:
			at = (at + 1 + rng.IntN(len(cls)-1)) % len(cls)
			wait = time.Duration(10+rng.IntN(40)) * time.Millisecond
		}
		pause(ctx, wait)
	}
}

// do runs one operation and notes it. The load's context is not passed on: what has begun is finished.
func (g *registers) do(cl *redis.Client, h *keyHistory, op operation) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	var err error
	op.call = int64(time.Since(g.start))
	switch op.kind {
	case opRead:
		op.out, err = cl.Get(ctx, h.key).Result()
	case opWrite:
		err = cl.Set(ctx, h.key, op.arg, 0).Err()
	case opSwap:
		op.out, err = cl.SetArgs(ctx, h.key, op.arg, redis.SetArgs{Get: true}).Result()
	case opIncr:
		var n int64
		n, err = cl.Incr(ctx, h.key).Result()
		op.out = strconv.FormatInt(n, 10)
	}
	op.ret = int64(time.Since(g.start))
	if errors.Is(err, redis.Nil) {
		err, op.out = nil, ""
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case err == nil:
		g.acked.Add(1)
		if op.kind == opRead {
			g.reads.Add(1)
		} else {
			g.writes.Add(1)
			now := time.Now()
			g.longestGap = max(g.longestGap, now.Sub(g.lastWrite))
			g.lastWrite = now
		}
	case Definite(err):
		// It had no effect. If one shows after all, it is a value that nobody wrote.
		g.refused.Add(1)
		return false
	default:
		g.unknown.Add(1)
		if op.kind == opRead {
			return false
		}
		op.open, op.out = true, ""
		h.opens++
	}
	h.ops = append(h.ops, op)
	g.operations++
	return err == nil
}

// gap returns the longest time between two successful writes; the end counts too.
func (g *registers) gap() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.longestGap
}

// endGap counts the time since the last successful write as a gap. It is called when the load is told to end.
func (g *registers) endGap() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.longestGap = max(g.longestGap, time.Since(g.lastWrite))
}
