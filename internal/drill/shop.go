package drill

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

	// Acked, Unknown and Refused count orders by what the worker was told; Seen counts events that the consumer got.
	Acked, Unknown, Refused, Seen atomic.Int64

	mu      sync.Mutex
	acked   map[string]int
	unknown map[string]int
	events  map[string]int
	bad     []string
	// longestGap is the longest time between two successful orders.
	lastOK     time.Time
	longestGap time.Duration

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
func dial(addr string) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: addr, MaxRetries: -1, DialTimeout: time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 2 * time.Second,
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
		err := s.order(ctx, cl, id, item, rng)
		s.record(id, item, err)
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
	// Counters are items whose count of sales is not the number of their orders.
	Counters []string `json:"counters"`
	Bad      []string `json:"bad"`
	// LongestGapMillis is the longest time between two successful orders.
	LongestGapMillis int64 `json:"longest_gap_ms"`
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
	add("counters wrong", r.Counters)
	add("records malformed", r.Bad)
	return out
}

// Verify waits until the consumer has caught up, and compares state, events and what the workers were told. The load must
// have ended, and the cluster must be up.
func (s *Shop) Verify(ctx context.Context) (ShopResult, error) {
	var r ShopResult
	cl := dial(s.Redis[0])
	defer cl.Close() //nolint:errcheck // only read
	orders := map[string]string{}
	var cursor uint64
	for {
		keys, next, err := cl.Scan(ctx, cursor, "order:*", 1000).Result()
		if err != nil {
			return r, errs.Wrap(errs.Unavailable, err, "read the orders")
		}
		if len(keys) > 0 {
			vals, err := cl.MGet(ctx, keys...).Result()
			if err != nil {
				return r, errs.Wrap(errs.Unavailable, err, "read the orders")
			}
			for i, k := range keys {
				if v, ok := vals[i].(string); ok {
					orders[strings.TrimPrefix(k, "order:")] = v
				}
			}
		}
		if cursor = next; cursor == 0 {
			break
		}
	}
	end, err := s.endOffsets(ctx)
	if err != nil {
		return r, err
	}
	for s.Seen.Load() < end {
		select {
		case <-ctx.Done():
			return r, errs.New(errs.Unavailable, "the consumer has %d of %d events", s.Seen.Load(), end)
		case <-time.After(10 * time.Millisecond):
		}
	}
	sold := map[int]int{}
	for _, v := range orders {
		var item int
		if _, err := fmt.Sscanf(v[strings.LastIndex(v, " ")+1:], "%d", &item); err == nil {
			sold[item]++
		}
	}
	for item := range shopItems {
		n, err := cl.Get(ctx, "sold:"+strconv.Itoa(item)).Int()
		if err != nil && !errors.Is(err, redis.Nil) {
			return r, errs.Wrap(errs.Unavailable, err, "read the counters")
		}
		if n != sold[item] {
			r.Counters = append(r.Counters, fmt.Sprintf("item %d sold %d times in %d orders", item, n, sold[item]))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.acked {
		if _, ok := orders[id]; !ok {
			r.Lost = append(r.Lost, id)
		}
	}
	for id := range orders {
		_, acked := s.acked[id]
		_, unknown := s.unknown[id]
		if !acked && !unknown {
			r.Invented = append(r.Invented, id)
		}
		if s.events[id] == 0 {
			r.NoEvent = append(r.NoEvent, id)
		}
	}
	for id, n := range s.events {
		if _, ok := orders[id]; !ok {
			r.NoOrder = append(r.NoOrder, id)
		}
		if n > 1 {
			r.Doubled = append(r.Doubled, fmt.Sprintf("%s (%d times)", id, n))
		}
	}
	for _, l := range [][]string{r.Lost, r.NoEvent, r.NoOrder, r.Doubled, r.Invented} {
		slices.Sort(l)
	}
	r.Bad = s.bad
	r.Acked, r.Unknown, r.Refused = len(s.acked), len(s.unknown), int(s.Refused.Load())
	r.Orders, r.Events, r.LongestGapMillis = len(orders), len(s.events), s.longestGap.Milliseconds()
	return r, nil
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
