package drill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/quorate/quorate/internal/errs"
)

// Shop is the workload of the demo and of several drills: workers place orders, each of which counts an item as sold,
// stores the order and emits an event, through go-redis; a consumer keeps a copy of the events, through franz-go. Verify
// compares what the workers were told, the state and the events.
type Shop struct {
	// Redis and Kafka are the addresses of all nodes.
	Redis, Kafka []string
	Workers      int
	Seed         uint64
	// DualWrite is the control of the outbox drill: state and event are written one after the other, as programs do that
	// have no common transaction, and a worker sometimes dies in between.
	DualWrite bool
	// Pace is the pause between two orders of a worker; default none.
	Pace time.Duration
	// Crashes makes workers die now and then in the middle of an order: they send a part of it, cut at any byte, or all of
	// it, and hang up without waiting for the answer.
	Crashes bool

	// Acked, Unknown and Refused count orders by what the worker was told; Seen counts events that the consumer got, and
	// Crashed orders during which the worker died.
	Acked, Unknown, Refused, Seen, Crashed atomic.Int64

	mu      sync.Mutex
	acked   map[string]int
	unknown map[string]int
	events  map[string]int
	bad     []string
	// longestGap is the longest time between two successful orders.
	lastOK     time.Time
	longestGap time.Duration

	// gate is held for reading during an order, and for writing while the load rests.
	gate     sync.RWMutex
	wg       sync.WaitGroup
	workers  sync.WaitGroup
	stopLoad context.CancelFunc
	stopAll  context.CancelFunc
	next     atomic.Int64
	consumer *kgo.Client
}

const (
	shopItems = 10
	shopTopic = "orders"
)

// Start begins to place orders.
func (s *Shop) Start(ctx context.Context) error {
	s.acked, s.unknown, s.events = map[string]int{}, map[string]int{}, map[string]int{}
	redis.SetLogger(silent{})
	var err error
	s.consumer, err = kgo.NewClient(
		kgo.SeedBrokers(s.Kafka...), kgo.ConsumeTopics(shopTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.AllowAutoTopicCreation(), kgo.FetchMaxWait(500*time.Millisecond), kgo.MetadataMinAge(50*time.Millisecond),
		kgo.MetadataMaxAge(2*time.Second), kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }),
	)
	if err != nil {
		return errs.Wrap(errs.Invalid, err, "make Kafka consumer")
	}
	all, stopAll := context.WithCancel(ctx)
	load, stopLoad := context.WithCancel(all)
	s.stopAll, s.stopLoad = stopAll, stopLoad
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		s.consume(all)
	}()
	s.lastOK = time.Now()
	for w := range s.Workers {
		s.workers.Add(1)
		go func() {
			defer s.workers.Done()
			s.work(load, w)
		}()
	}
	return nil
}

// silent drops go-redis' own log: connections break on purpose here.
type silent struct{}

// Printf implements the logger of go-redis.
func (silent) Printf(context.Context, string, ...any) {}

// StopLoad ends the placing of orders.
func (s *Shop) StopLoad() { s.stopLoad() }

// Rest waits for the orders under way, which takes some seconds at most, and keeps workers from placing more until the
// function that it returns is called.
func (s *Shop) Rest() (resume func()) {
	s.gate.Lock()
	return sync.OnceFunc(func() {
		s.mu.Lock()
		s.lastOK = time.Now() // to rest is no gap
		s.mu.Unlock()
		s.gate.Unlock()
	})
}

// WaitLoad waits until the orders that were under way when StopLoad was called are answered, at most some seconds.
func (s *Shop) WaitLoad() { s.workers.Wait() }

// Close ends everything.
func (s *Shop) Close() {
	s.stopAll()
	s.workers.Wait()
	s.wg.Wait()
	s.consumer.Close()
}

// dial makes a client for one node, that never repeats a request by itself: what became of one must be known.
func dial(addr string) *redis.Client { return dialPatient(addr, 5*time.Second) }

// dialPatient is dial with a limit on how long an answer may take.
func dialPatient(addr string, read time.Duration) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: addr, MaxRetries: -1, DialTimeout: time.Second, ReadTimeout: read, WriteTimeout: 2 * time.Second,
		PoolSize: 2, DisableIdentity: true, DialerRetries: 1,
	})
}

func (s *Shop) work(ctx context.Context, w int) {
	rng := rand.New(rand.NewPCG(s.Seed, uint64(w)))
	at := w % len(s.Redis)
	cl := dial(s.Redis[at])
	defer func() { _ = cl.Close() }()
	for ctx.Err() == nil {
		id := fmt.Sprintf("%d-%d", w, s.next.Add(1))
		item := rng.IntN(shopItems)
		s.gate.RLock()
		var err error
		if s.Crashes && !s.DualWrite && rng.IntN(50) == 0 {
			err = s.crash(s.Redis[at], id, item, rng)
		} else {
			err = s.order(ctx, cl, id, item, rng)
		}
		s.record(id, item, err)
		s.gate.RUnlock()
		if err != nil {
			// Another node, a moment later.
			_ = cl.Close()
			at = (at + 1) % len(s.Redis)
			cl = dial(s.Redis[at])
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(10+rng.IntN(40)) * time.Millisecond):
			}
		} else if s.Pace > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(s.Pace):
			}
		}
	}
}

// errDied stands for a worker that died between its two writes.
var errDied = errors.New("the worker died")

// order places one order. The context of the load is not passed to the client: an order that has begun is finished.
func (s *Shop) order(_ context.Context, cl *redis.Client, id string, item int, rng *rand.Rand) error {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	value := fmt.Sprintf("%s item %d", id, item)
	p := cl.TxPipeline()
	p.Incr(ctx, "sold:"+strconv.Itoa(item))
	p.Set(ctx, "order:"+id, value, 0)
	if !s.DualWrite {
		p.Do(ctx, "EVENT.ADD", shopTopic, value, "KEY", id)
		_, err := p.Exec(ctx)
		return err
	}
	if _, err := p.Exec(ctx); err != nil {
		return err
	}
	if rng.IntN(50) == 0 {
		return errDied
	}
	return cl.Do(ctx, "EVENT.ADD", shopTopic, value, "KEY", id).Err()
}

// errNeverSent stands for a worker that died before the whole order was sent: it must have no effect.
var errNeverSent = errors.New("the worker died before the order was complete")

// crash sends an order over a connection of its own and hangs up: after any number of its bytes, or after all of them.
func (s *Shop) crash(addr, id string, item int, rng *rand.Rand) error {
	s.Crashed.Add(1)
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(context.Background(), "tcp", addr)
	if err != nil {
		return errNeverSent
	}
	defer c.Close() //nolint:errcheck // that is the point
	value := fmt.Sprintf("%s item %d", id, item)
	b := encodeRequests([]string{"MULTI"}, []string{"INCR", "sold:" + strconv.Itoa(item)}, []string{"SET", "order:" + id, value},
		[]string{"EVENT.ADD", shopTopic, value, "KEY", id}, []string{"EXEC"})
	sent := len(b)
	if rng.IntN(2) == 0 {
		sent = rng.IntN(len(b))
	}
	_ = c.SetWriteDeadline(time.Now().Add(2 * time.Second))
	if n, err := c.Write(b[:sent]); err != nil {
		sent = n
	}
	if sent < len(b) {
		return errNeverSent
	}
	return errDied
}

// encodeRequests writes commands as Redis clients do.
func encodeRequests(cmds ...[]string) []byte {
	var b []byte
	for _, args := range cmds {
		b = fmt.Appendf(b, "*%d\r\n", len(args))
		for _, a := range args {
			b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(a), a)
		}
	}
	return b
}

// Definite reports whether an error of a Redis client says that the request was certainly not applied: the server refused it
// in so many words, or the connection could not even be made.
func Definite(err error) bool {
	var re redis.Error
	if errors.As(err, &re) {
		m := re.Error()
		return strings.HasPrefix(m, "CLUSTERDOWN") || strings.HasPrefix(m, "TRYAGAIN") || strings.HasPrefix(m, "BUSY") ||
			strings.HasPrefix(m, "LOADING") || strings.HasPrefix(m, "EXECABORT") || strings.HasPrefix(m, "MOVED")
	}
	return strings.Contains(err.Error(), "dial tcp")
}

func (s *Shop) record(id string, item int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.Acked.Add(1)
		s.acked[id] = item
		now := time.Now()
		s.longestGap = max(s.longestGap, now.Sub(s.lastOK))
		s.lastOK = now
	case errors.Is(err, errNeverSent):
	case Definite(err):
		s.Refused.Add(1)
	default:
		s.Unknown.Add(1)
		s.unknown[id] = item
	}
}

// LongestGap returns the longest time between two successful orders so far.
func (s *Shop) LongestGap() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.longestGap
}

func (s *Shop) consume(ctx context.Context) {
	for ctx.Err() == nil {
		fs := s.consumer.PollFetches(ctx)
		fs.EachRecord(func(r *kgo.Record) {
			s.mu.Lock()
			s.events[string(r.Key)]++
			if want := string(r.Key) + " item "; !strings.HasPrefix(string(r.Value), want) {
				s.bad = append(s.bad, fmt.Sprintf("event at offset %d has key %q and value %q", r.Offset, r.Key, r.Value))
			}
			s.mu.Unlock()
			s.Seen.Add(1)
		})
	}
}

// ShopResult is what Verify found.
type ShopResult struct {
	Acked   int `json:"acked"`
	Unknown int `json:"unknown"`
	Refused int `json:"refused"`
	Orders  int `json:"orders"`
	Events  int `json:"events"`
	// Lost are acknowledged orders that are not in the state.
	Lost []string `json:"lost"`
	// NoEvent are orders without their event, NoOrder events without their order, Doubled events that occur twice.
	NoEvent []string `json:"no_event"`
	NoOrder []string `json:"no_order"`
	Doubled []string `json:"doubled"`
	// Invented are orders that nobody placed, or that were refused.
	Invented []string `json:"invented"`
	// Altered are orders whose value is not what was stored.
	Altered []string `json:"altered"`
	// Counters are items whose count of sales is not the number of their orders.
	Counters []string `json:"counters"`
	Bad      []string `json:"bad"`
	// LongestGapMillis is the longest time between two successful orders.
	LongestGapMillis int64 `json:"longest_gap_ms"`
}

// MarshalJSON implements json.Marshaler. Lists of which there is nothing to say are empty, and not null.
func (r ShopResult) MarshalJSON() ([]byte, error) {
	type plain ShopResult
	for _, list := range []*[]string{&r.Lost, &r.NoEvent, &r.NoOrder, &r.Doubled, &r.Invented, &r.Altered, &r.Counters, &r.Bad} {
		if *list == nil {
			*list = []string{}
		}
	}
	return json.Marshal(plain(r))
}

// OK says that nothing is wrong.
func (r ShopResult) OK() bool { return len(r.Findings()) == 0 }

// Findings names what is wrong, in words.
func (r ShopResult) Findings() []string {
	var out []string
	add := func(what string, ids []string) {
		if len(ids) > 0 {
			out = append(out, fmt.Sprintf("%d %s: %s", len(ids), what, strings.Join(ids[:min(5, len(ids))], ", ")))
		}
	}
	add("acknowledged orders lost", r.Lost)
	add("orders without their event", r.NoEvent)
	add("events without their order", r.NoOrder)
	add("events doubled", r.Doubled)
	add("orders that were refused or never placed", r.Invented)
	add("orders altered", r.Altered)
	add("counters wrong", r.Counters)
	add("records malformed", r.Bad)
	return out
}

// Verify waits until the consumer has caught up, and compares state, events and what the workers were told, reading
// through the first node. The load must rest or have ended, and the cluster must be up.
func (s *Shop) Verify(ctx context.Context) (ShopResult, error) { return s.VerifyVia(ctx, 0) }

// VerifyVia is Verify through a node, counted from 0.
func (s *Shop) VerifyVia(ctx context.Context, node int) (ShopResult, error) {
	r, err := s.verifyOnce(ctx, node)
	if err != nil || r.OK() || s.DualWrite {
		return r, err
	}
	// State and events are read by many requests, and an order with an unknown outcome may take effect between two of
	// them. What is really wrong is still wrong a second time, when the last such order has run out of time.
	if !pause(ctx, requestLimit) {
		return r, ctx.Err()
	}
	return s.verifyOnce(ctx, node)
}

// requestLimit is the time after which a node gives up what it was asked.
const requestLimit = 11 * time.Second

func (s *Shop) verifyOnce(ctx context.Context, node int) (ShopResult, error) {
	cl := dial(s.Redis[node%len(s.Redis)])
	defer cl.Close() //nolint:errcheck // only read
	st := shopState{sold: map[int]int{}}
	var err error
	if st.orders, err = readOrders(ctx, cl); err != nil {
		return ShopResult{}, err
	}
	for item := range shopItems {
		n, err := cl.Get(ctx, "sold:"+strconv.Itoa(item)).Int()
		if err != nil && !errors.Is(err, redis.Nil) {
			return ShopResult{}, errs.Wrap(errs.Unavailable, err, "read the counters")
		}
		st.sold[item] = n
	}
	end, err := s.endOffsets(ctx)
	if err != nil {
		return ShopResult{}, err
	}
	for s.Seen.Load() < end {
		select {
		case <-ctx.Done():
			return ShopResult{}, errs.New(errs.Unavailable, "the consumer has %d of %d events", s.Seen.Load(), end)
		case <-time.After(10 * time.Millisecond):
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.acked, st.unknown, st.events = s.acked, s.unknown, s.events
	r := checkShop(st)
	r.Bad = slices.Clone(s.bad)
	r.Refused, r.LongestGapMillis = int(s.Refused.Load()), s.longestGap.Milliseconds()
	return r, nil
}

// readOrders reads all orders of the state.
func readOrders(ctx context.Context, cl *redis.Client) (map[string]string, error) {
	orders := map[string]string{}
	var cursor uint64
	for {
		keys, next, err := cl.Scan(ctx, cursor, "order:*", 1000).Result()
		if err != nil {
			return nil, errs.Wrap(errs.Unavailable, err, "read the orders")
		}
		if len(keys) > 0 {
			vals, err := cl.MGet(ctx, keys...).Result()
			if err != nil {
				return nil, errs.Wrap(errs.Unavailable, err, "read the orders")
			}
			for i, k := range keys {
				if v, ok := vals[i].(string); ok {
					orders[strings.TrimPrefix(k, "order:")] = v
				}
			}
		}
		if cursor = next; cursor == 0 {
			return orders, nil
		}
	}
}

// shopState is everything that checkShop compares.
type shopState struct {
	// acked and unknown are what the workers were told, by order.
	acked, unknown map[string]int
	// orders and sold are the state; events counts the events of each order.
	orders map[string]string
	sold   map[int]int
	events map[string]int
}

// checkShop compares what the workers were told with the state and the events.
func checkShop(st shopState) ShopResult {
	r := ShopResult{Acked: len(st.acked), Unknown: len(st.unknown), Orders: len(st.orders), Events: len(st.events)}
	sold := map[int]int{}
	for id, v := range st.orders {
		item, known := st.acked[id]
		_, unknown := st.unknown[id]
		if unknown {
			item = st.unknown[id]
		}
		switch {
		case !known && !unknown:
			r.Invented = append(r.Invented, id)
			_, _ = fmt.Sscanf(v[strings.LastIndex(v, " ")+1:], "%d", &item)
		case v != fmt.Sprintf("%s item %d", id, item):
			r.Altered = append(r.Altered, fmt.Sprintf("%s is %q", id, v))
		}
		sold[item]++
		if st.events[id] == 0 {
			r.NoEvent = append(r.NoEvent, id)
		}
	}
	for item := range shopItems {
		if st.sold[item] != sold[item] {
			r.Counters = append(r.Counters, fmt.Sprintf("item %d sold %d times in %d orders", item, st.sold[item], sold[item]))
		}
	}
	for id := range st.acked {
		if _, ok := st.orders[id]; !ok {
			r.Lost = append(r.Lost, id)
		}
	}
	for id, n := range st.events {
		if _, ok := st.orders[id]; !ok {
			r.NoOrder = append(r.NoOrder, id)
		}
		if n > 1 {
			r.Doubled = append(r.Doubled, fmt.Sprintf("%s (%d times)", id, n))
		}
	}
	for _, l := range [][]string{r.Lost, r.NoEvent, r.NoOrder, r.Doubled, r.Invented, r.Altered} {
		slices.Sort(l)
	}
	return r
}

// endOffsets returns how many events the topic holds.
func (s *Shop) endOffsets(ctx context.Context) (int64, error) {
	ends, err := listEnd(ctx, s.consumer, shopTopic)
	if err != nil {
		return 0, errs.Wrap(errs.Unavailable, err, "read the end of topic %s", shopTopic)
	}
	sum := int64(0)
	for _, e := range ends {
		sum += e
	}
	return sum, nil
}
