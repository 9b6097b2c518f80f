// Command robustness runs the traffic and the checkers of etcd's robustness tests against clusters of quorate processes, which it kills and
// stops meanwhile if asked to. Every round is a new cluster.
//
//	robustness -quorate PATH [-traffic etcd|k8s] [-d 60s] [-round 30s] [-faults kill,stop]
//
// What was done it reads afterwards from the nodes' logs (quorate kv-log), so that answers and events are held against what the nodes had
// promised to keep, and not against each other.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/tests/v3/robustness/client"
	"go.etcd.io/etcd/tests/v3/robustness/identity"
	"go.etcd.io/etcd/tests/v3/robustness/model"
	"go.etcd.io/etcd/tests/v3/robustness/report"
	"go.etcd.io/etcd/tests/v3/robustness/traffic"
	"go.etcd.io/etcd/tests/v3/robustness/validate"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// options are what the flags say.
type options struct {
	quorate, dir, kind string
	faults             []string
	every              time.Duration
	spoil              bool
}

func main() {
	var o options
	flag.StringVar(&o.quorate, "quorate", "bin/quorate", "the program under test")
	flag.StringVar(&o.dir, "dir", "", "directory for data and logs, which are kept after a failure (default: a temporary one)")
	flag.StringVar(&o.kind, "traffic", "etcd", "etcd or k8s")
	faults := flag.String("faults", "", "faults of nodes, with commas between: kill, stop")
	flag.DurationVar(&o.every, "every", 5*time.Second, "time between faults")
	flag.BoolVar(&o.spoil, "spoil", false, "forget one write of the history: the run must fail then")
	total := flag.Duration("d", time.Minute, "how long to go on")
	round := flag.Duration("round", 30*time.Second, "how long the traffic of one cluster lasts; with many unanswered requests the checker may not get done with more")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "seed of the faults")
	flag.Parse()
	if *faults != "" {
		o.faults = strings.Split(*faults, ",")
	}
	if err := o.rounds(*total, *round, *seed); err != nil {
		fmt.Fprintln(os.Stderr, "FAILED:", err)
		os.Exit(1)
	}
}

// rounds runs clusters one after the other until the time is over.
func (o *options) rounds(total, round time.Duration, seed uint64) error {
	if o.dir == "" {
		dir, err := os.MkdirTemp("", "quorate-robustness-")
		if err != nil {
			return err
		}
		o.dir = dir
	}
	fmt.Printf("seed %d, data and logs in %s\n", seed, o.dir)
	until := time.Now().Add(total)
	for n := 1; n == 1 || time.Now().Before(until); n++ {
		dir := filepath.Join(o.dir, fmt.Sprintf("round%d", n))
		said, err := o.run(dir, round, rand.New(rand.NewPCG(seed, uint64(n))))
		fmt.Printf("round %d: %s\n", n, said)
		if err != nil {
			return fmt.Errorf("round %d: %w", n, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// run runs one cluster under traffic and checks what clients saw.
func (o *options) run(dir string, length time.Duration, rnd *rand.Rand) (said string, err error) {
	log, err := zap.Config{
		Level: zap.NewAtomicLevelAt(zap.ErrorLevel), Encoding: "json", EncoderConfig: zap.NewProductionEncoderConfig(),
		OutputPaths: []string{"stderr"}, ErrorOutputPaths: []string{"stderr"},
	}.Build()
	if err != nil {
		return "", err
	}
	c, err := newCluster(o.quorate, dir, 3)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, c.stop()) }()

	began := time.Now()
	reports, failed, err := o.traffic(c, log, length, rnd)
	if err != nil {
		return "", err
	}
	if err := c.settle(); err != nil {
		return "", err
	}
	if err := c.stop(); err != nil {
		return "", err
	}
	history, err := c.history()
	if err != nil {
		return "", err
	}
	if o.spoil {
		history = spoil(history)
	}
	stats := traffic.CalculateStats(reports, 0, time.Since(began))
	watches := traffic.CalculateWatchStats(reports, 0, time.Since(began))
	tf := kinds[o.kind]
	res := validate.ValidateAndReturnVisualize(log, validate.Config{ExpectRevisionUnique: tf.ExpectUniqueRevision()}, reports, history, 5*time.Minute)
	said = fmt.Sprintf("%d requests answered, %d not, %d events in %d watches, %d applied, %d faults; linearization %s, watch %s, serializable %s",
		stats.Successes, stats.Failures, watches.Events, watches.Requests, len(history), failed,
		res.Linearization.Status, res.Watch.Status, res.Serializable.Status)
	if err := res.Error(); err != nil {
		if verr := res.Linearization.Visualize(log, filepath.Join(dir, "history.html")); verr != nil {
			err = errors.Join(err, verr)
		}
		return said, err
	}
	if res.Watch.Status != validate.Success || res.Serializable.Status != validate.Success {
		return said, errors.New("not everything was checked")
	}
	return said, nil
}

var kinds = map[string]traffic.Traffic{"etcd": traffic.EtcdPutDeleteLease, "k8s": traffic.Kubernetes}

// profile is how much traffic there is. It must leave the machine time for the processes under test.
var profile = traffic.KeyValue{
	MinimalQPS: 50, MaximalQPS: 200, BurstableQPS: 200, MemberClientCount: 6, ClusterClientCount: 2, MaxNonUniqueRequestConcurrency: 3,
}

// traffic runs clients, and faults, and returns what clients saw.
func (o *options) traffic(c *cluster, log *zap.Logger, length time.Duration, rnd *rand.Rand) (reports []report.ClientReport, faults int, err error) {
	tf := kinds[o.kind]
	if tf == nil {
		return nil, 0, fmt.Errorf("no traffic %q", o.kind)
	}
	ctx := context.Background()
	hosts := c.clients()
	base, ids := time.Now(), identity.NewIDProvider()
	set, watching := client.NewSet(ids, base), client.NewSet(ids, base)
	defer set.Close()
	defer watching.Close()
	if err := traffic.CheckEmptyDatabaseAtStart(ctx, log, hosts, set); err != nil {
		return nil, 0, err
	}
	finish, newest := make(chan struct{}), make(chan int64, 1)
	// Whatever fails ends the whole round.
	finishOnce := sync.OnceFunc(func() { close(finish) })
	timer := time.AfterFunc(length, finishOnce)
	defer timer.Stop()
	g := errgroup.Group{}
	g.Go(func() error {
		defer close(newest)
		defer finishOnce()
		var wg sync.WaitGroup
		limit := rate.NewLimiter(rate.Limit(profile.MaximalQPS), profile.BurstableQPS)
		keys, storage := traffic.NewKeyStore(10, "key"), traffic.NewKubernetesStorage()
		err := errors.Join(
			traffic.SimulateKeyValueTraffic(ctx, &wg, &profile, hosts, set, tf, traffic.RunTrafficLoopParam{
				QPSLimiter: limit, IDs: ids, LeaseIDStorage: identity.NewLeaseIDStorage(),
				NonUniqueRequestConcurrencyLimiter: traffic.NewConcurrencyLimiter(profile.MaxNonUniqueRequestConcurrency),
				KeyStore:                           keys, Storage: storage, Finish: finish,
			}),
			traffic.SimulateWatchTraffic(ctx, &wg, &traffic.WatchDefault, hosts, set, tf, traffic.RunWatchLoopParam{
				Config: traffic.WatchDefault, QPSLimiter: limit, KeyStore: keys, Storage: storage, Finish: finish, Logger: log,
			}),
			traffic.SimulateCompactionTraffic(ctx, &wg, &traffic.CompactionDefault, hosts, set, tf, traffic.RunCompactLoopParam{
				Period: traffic.CompactionDefault.Period, Finish: finish,
			}),
		)
		if err != nil {
			finishOnce()
		}
		wg.Wait()
		if err != nil {
			return err
		}
		// The last request must be one that was answered: watches are held against what is known up to it.
		last, err := set.NewClient(hosts)
		if err != nil {
			return err
		}
		defer last.Close()
		if err := persist(ctx, last); err != nil {
			return err
		}
		newest <- report.OperationsMaxRevision(set.Reports())
		return nil
	})
	g.Go(func() error {
		return client.CollectClusterWatchEvents(ctx, client.CollectClusterWatchEventsParam{Lg: log, Endpoints: hosts, MaxRevisionChan: newest, ClientSet: watching})
	})
	g.Go(func() (err error) {
		faults, err = c.breakNodes(o.faults, o.every, rnd, finish)
		finishOnce()
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, faults, err
	}
	return slices.Concat(set.Reports(), watching.Reports()), faults, nil
}

// persist writes until a write is answered.
func persist(ctx context.Context, c *client.RecordingClient) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for n := 0; ; n++ {
		try, stop := context.WithTimeout(ctx, 5*time.Second)
		_, err := c.Put(try, "last", fmt.Sprint(n))
		stop()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// spoil takes away the write in the middle of a history that changes a key for sure.
func spoil(history []model.EtcdRequest) []model.EtcdRequest {
	for i := len(history) / 2; i < len(history); i++ {
		if t := history[i].Txn; t != nil && len(t.Conditions) == 0 && len(t.OperationsOnSuccess) > 0 && t.OperationsOnSuccess[0].Type == model.PutOperation {
			return slices.Delete(history, i, i+1)
		}
	}
	return history
}
