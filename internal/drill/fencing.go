package drill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/quorate/quorate/internal/errs"
)

func fencingDrill() Drill {
	return Drill{
		Name: "fencing",
		Text: "Holders of locks stall for longer than their leases, others acquire the locks and write, and the first ones wake up and write too, " +
			"through Redis, in a MULTI with an event, through Kafka and through etcd, while leaders are killed.",
		Promise: "A stale fencing token is refused on every write path: nothing is written under one after the next holder's first write (promise 5).",
		NotShown: "A stale holder that writes to another shard than the lock's before the next holder does, which only that shard could refuse. The holders are " +
			"clients that stop to renew their leases, not processes that are stopped: to the cluster that is the same.",
		Controls: []Control{{"unchecked", "the writers leave the token out"}},
		Length:   20 * time.Second, Short: 7 * time.Second, ControlLength: 4 * time.Second,
		run: runFencing,
	}
}

const (
	fencedGroups = 6
	// fencedShards makes half of what is written lie elsewhere than the locks do.
	fencedShards = 2
	// fencedTTL is that of a holder's lease in seconds, the shortest there is.
	fencedTTL = 2
)

// fencing is the workload: some locks, each of which goes from holder to holder.
type fencing struct {
	r         *run
	e         *etcds
	redis     []*redis.Client
	kafka     *kgo.Client
	unchecked bool

	pauses, done, refused, early atomic.Int64
	turn                         atomic.Uint32

	// mu guards acked: what each resource was told to hold, in tokens.
	mu    sync.Mutex
	acked map[string][]int64
}

// paths are the ways to write. A resource is a path's name and the group's number.
var paths = []string{"redis", "multi", "kafka", "etcd"}

func resource(path string, group int) string { return fmt.Sprintf("%s-%d", path, group) }

// tagged is where a resource is in Redis. Its tag decides the shard.
func tagged(resource string, group int) string { return fmt.Sprintf("%s{%d}", resource, group) }

func fencedLock(group int) string { return fmt.Sprintf("locks/%d", group) }

func runFencing(ctx context.Context, r *run) error {
	cl, err := r.clusterOf(ctx, ClusterConfig{Shards: fencedShards})
	if err != nil {
		return err
	}
	defer cl.Close()
	f := &fencing{r: r, unchecked: r.Control == "unchecked", acked: map[string][]int64{}}
	if err := f.open(ctx, cl); err != nil {
		return err
	}
	defer f.close()
	d := &disturber{cl: cl, r: r, rng: r.rng(1), faults: []fault{killLeader}, every: 4 * time.Second}
	r.says(func() string {
		return fmt.Sprintf("%d pauses, %d writes done, %d refused; %d kills", f.pauses.Load(), f.done.Load(), f.refused.Load(), d.kills.Load())
	})
	lctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	failed := make(chan error, fencedGroups)
	for g := range fencedGroups {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := f.group(lctx, g); err != nil && lctx.Err() == nil {
				failed <- err
			}
		}()
	}
	err = d.run(ctx, time.Now().Add(r.For))
	stop()
	wg.Wait()
	close(failed)
	r.count("pauses", f.pauses.Load())
	r.count("writes done", f.done.Load())
	r.count("stale writes refused", f.refused.Load())
	r.count("holders that lost their lease while they renewed it", f.early.Load())
	r.count("kills", d.kills.Load())
	if err = errors.Join(err, <-failed); err != nil {
		return err
	}
	r.event("the load has ended; what was written is compared with who held the locks")
	if err := f.verify(ctx, cl); err != nil || r.Control != "" {
		return err
	}
	if f.refused.Load() == 0 {
		r.unknown("cluster", "no stale holder came to write")
	}
	r.happened(d.kills.Load(), "no leader was killed")
	return r.settled(ctx, cl)
}

// open connects the clients and makes the topics.
func (f *fencing) open(ctx context.Context, cl *Cluster) (err error) {
	if f.e, err = cl.dialEtcd(); err != nil {
		return err
	}
	for _, a := range cl.redis() {
		f.redis = append(f.redis, dialPatient(a, 3*time.Second))
	}
	f.kafka, err = kgo.NewClient(
		kgo.SeedBrokers(cl.kafka()...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(50*time.Millisecond), kgo.MetadataMaxAge(2*time.Second),
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }), kgo.ProduceRequestTimeout(2*time.Second), kgo.ProducerLinger(0),
	)
	if err != nil {
		return errs.Wrap(errs.Internal, err, "make a Kafka client")
	}
	for g := range fencedGroups {
		fence := fencedLock(g)
		if f.unchecked {
			fence = ""
		}
		if err := errors.Join(createTopic(ctx, f.kafka, resource("kafka", g), fence), createTopic(ctx, f.kafka, resource("multi", g), fence)); err != nil {
			return err
		}
	}
	return nil
}

func (f *fencing) close() {
	f.e.close()
	f.kafka.Close()
	for _, c := range f.redis {
		_ = c.Close()
	}
}

// createTopic makes a topic with a partition on each shard, which takes records under a lock only, if one is named.
func createTopic(ctx context.Context, cl *kgo.Client, name, fence string) error {
	req := kmsg.NewPtrCreateTopicsRequest()
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = name, fencedShards, -1
	if fence != "" {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = "quorate.fence", kmsg.StringPtr(fence)
		t.Configs = append(t.Configs, c)
	}
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, cl)
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
	}
	return errs.Wrap(errs.Unavailable, err, "create topic %s", name)
}

// group hands a lock from holder to holder until ctx ends.
func (f *fencing) group(ctx context.Context, g int) error {
	var old *contender
	for n := int64(1); ctx.Err() == nil; n++ {
		h, err := f.e.contend(ctx, fencedLock(g), n<<16|int64(g+1)<<8|int64(f.r.Seed&0xff), fencedTTL)
		if err != nil {
			return err
		}
		lost, stop := f.keep(ctx, h)
		err = f.reign(ctx, g, h, old, lost)
		// From here on the holder is as good as stopped: nobody renews its lease.
		stop()
		if err != nil {
			return err
		}
		old = &h
		f.pauses.Add(1)
	}
	return nil
}

// reign waits until a contender holds the lock, writes as its holder, and lets the one before write, who does not know.
func (f *fencing) reign(ctx context.Context, g int, h contender, old *contender, lost *atomic.Bool) error {
	for {
		before, _, err := f.e.before(ctx, h)
		if err != nil {
			return err
		}
		if before == "" {
			break
		}
		if !pause(ctx, 100*time.Millisecond) {
			return ctx.Err()
		}
	}
	for _, p := range paths {
		done, err := f.insist(ctx, p, g, h)
		if err != nil {
			return err
		}
		if !done {
			if !lost.Load() {
				f.refusedHolder(ctx, resource(p, g), h)
			}
			f.early.Add(1)
			return nil
		}
	}
	if old == nil {
		return nil
	}
	for _, p := range paths {
		done, err := f.insist(ctx, p, g, *old)
		if err != nil {
			return err
		}
		if !done {
			f.refused.Add(1)
		}
	}
	return nil
}

// refusedHolder looks whether a holder whose write was refused has its lease, and with it the lock, still. Without an answer, since the load has ended,
// nobody knows.
func (f *fencing) refusedHolder(ctx context.Context, resource string, h contender) {
	if ttl, err := f.e.renew(ctx, h.lease); err == nil && ttl > 0 {
		f.r.find(fmt.Sprintf("%s: the holder of the lock was refused under token %d, and its lease goes on", resource, h.token))
	}
}

// keep renews a lease until stop is called.
func (f *fencing) keep(ctx context.Context, h contender) (lost *atomic.Bool, stop func()) {
	lost = &atomic.Bool{}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for pause(ctx, 400*time.Millisecond) {
			if ttl, err := f.e.renew(ctx, h.lease); err == nil && ttl == 0 {
				lost.Store(true)
				return
			}
		}
	}()
	return lost, func() {
		cancel()
		<-ended
	}
}

// insist writes until it is known whether that was done. A write whose answer is lost is sent again: it may be there twice, which is no
// less in order than once.
func (f *fencing) insist(ctx context.Context, path string, g int, h contender) (done bool, err error) {
	for {
		actx, cancel := context.WithTimeout(ctx, 10*time.Second)
		done, err = f.write(actx, path, g, h)
		cancel()
		if err == nil {
			break
		}
		if !pause(ctx, 50*time.Millisecond) {
			return false, ctx.Err()
		}
	}
	if done {
		f.done.Add(1)
		f.mu.Lock()
		defer f.mu.Unlock()
		k := resource(path, g)
		f.acked[k] = append(f.acked[k], h.token)
	}
	return done, nil
}

// write adds a holder's token to a resource. It reports false if that was refused.
func (f *fencing) write(ctx context.Context, path string, g int, h contender) (done bool, err error) {
	key, token := resource(path, g), strconv.FormatInt(h.token, 10)
	cl := f.redis[int(f.turn.Add(1))%len(f.redis)]
	fence := []any{"FENCE", fencedLock(g), token}
	add := []any{"APPEND", tagged(key, g), token + ";"}
	switch path {
	case "redis":
		if !f.unchecked {
			add = append(fence, add...)
		}
		err = cl.Do(ctx, add...).Err()
	case "multi":
		_, err = cl.TxPipelined(ctx, func(p redis.Pipeliner) error {
			if !f.unchecked {
				p.Do(ctx, fence...)
			}
			p.Do(ctx, add...)
			p.Do(ctx, "EVENT.ADD", tagged(key, g), token)
			return nil
		})
	case "kafka":
		rec := &kgo.Record{Topic: key, Partition: int32(g % fencedShards), Value: []byte(token)}
		if !f.unchecked {
			rec.Headers = []kgo.RecordHeader{{Key: "quorate-fence", Value: []byte(token)}}
		}
		if err = f.kafka.ProduceSync(ctx, rec).FirstErr(); errors.Is(err, kerr.PolicyViolation) {
			return false, nil
		}
	case "etcd":
		var cond []*pb.Compare
		if !f.unchecked {
			cond = append(cond, created(h.key, h.token))
		}
		r, err := f.e.any().Txn(ctx, &pb.TxnRequest{Compare: cond, Success: []*pb.RequestOp{putOp(&pb.PutRequest{Key: []byte(key), Value: []byte(token)})}})
		return err == nil && r.Succeeded, err
	}
	if stale(err) {
		return false, nil
	}
	return err == nil, err
}

// verify reads what every resource has been told, in order, and looks for what came too late.
func (f *fencing) verify(ctx context.Context, cl *Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	if err := cl.WaitReady(ctx, settleLimit); err != nil {
		return err
	}
	for g := range fencedGroups {
		for _, p := range paths {
			key := resource(p, g)
			lists := map[string][]string{}
			var err error
			if p == "redis" || p == "multi" {
				var v string
				if v, err = get(ctx, f.redis[0], tagged(key, g)); err == nil {
					lists["key "+key] = strings.FieldsFunc(v, func(c rune) bool { return c == ';' })
				}
			}
			if err == nil && (p == "kafka" || p == "multi") {
				lists["topic "+key], err = readTopic(ctx, cl.kafka(), key)
			}
			if err == nil && p == "etcd" {
				var last int64
				err = f.e.try(ctx, func(ctx context.Context, n *etcdNode) error {
					r, err := n.Range(ctx, &pb.RangeRequest{Key: []byte(key)})
					if err == nil && len(r.Kvs) > 0 {
						last = r.Kvs[0].ModRevision
					}
					return err
				})
				if err == nil && last > 0 {
					lists["etcd key "+key], err = f.e.history(ctx, key, last)
				}
			}
			if err != nil {
				return errs.Wrap(errs.Unavailable, err, "read %s", key)
			}
			for what, got := range lists {
				f.r.find(checkTokens(what, got, f.acked[key])...)
			}
			if p == "multi" {
				f.r.find(checkTogether(key, lists["key "+key], lists["topic "+key])...)
			}
		}
	}
	return nil
}

// get reads a key; a node may refuse for a while.
func get(ctx context.Context, cl *redis.Client, key string) (string, error) {
	vals, err := mget(ctx, cl, []string{key})
	if err != nil {
		return "", err
	}
	s, _ := vals[0].(string)
	return s, nil
}

// readTopic returns the values of a topic that uses one of its partitions.
func readTopic(ctx context.Context, brokers []string, topic string) (values []string, err error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(500*time.Millisecond), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	ends, err := listEnd(ctx, cl, topic)
	if err != nil {
		return nil, err
	}
	all := int64(0)
	for _, n := range ends {
		all += n
	}
	for int64(len(values)) < all {
		cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return values, nil
}

// checkTogether judges what transactions wrote, each a change of a key and an event.
func checkTogether(resource string, changes, events []string) (findings []string) {
	if !slices.Equal(changes, events) {
		findings = append(findings, fmt.Sprintf("%s: the %d changes of the state are not the %d events, though each transaction has one of both", resource, len(changes), len(events)))
	}
	return findings
}

// checkTokens judges one resource: got are the tokens under which it was written, in order, acked those whose writes were acknowledged.
// Tokens rise from holder to holder, so one that is lower than an earlier one is a write of a stale holder.
func checkTokens(what string, got []string, acked []int64) (findings []string) {
	var tokens []int64
	highest := int64(0)
	for i, v := range got {
		t, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			findings = append(findings, fmt.Sprintf("%s: entry %d is %q, which nobody wrote", what, i, v))
			continue
		}
		if t < highest {
			findings = append(findings, fmt.Sprintf("%s: entry %d was written under the stale token %d, after one under token %d", what, i, t, highest))
		}
		highest = max(highest, t)
		tokens = append(tokens, t)
	}
	for _, t := range acked {
		if !slices.Contains(tokens, t) {
			findings = append(findings, fmt.Sprintf("%s: the write under token %d was acknowledged and is lost", what, t))
		}
	}
	return findings
}
