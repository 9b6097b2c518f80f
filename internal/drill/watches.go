package drill

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/quorate/quorate/internal/errs"
)

func watchesDrill() Drill {
	return Drill{
		Name: "watch-compaction",
		Text: "Watchers begin at random revisions and follow all keys, over broken streams too, while the history is compacted behind and before them and " +
			"leaders are killed.",
		Promise: "A watch gets each event once and in order, from any revision that is kept; one that asks for a compacted revision is told so, and only then (promise 4).",
		NotShown: "Watchers so slow that the compaction overtakes them within a stream; they are in the tests of the etcd server. Watches with filters, of " +
			"single keys, and of previous values.",
		Controls: []Control{
			{"drop-event", "one event in a hundred is thrown away before the watchers note it"},
			{"silent-stream", "one stream in twenty shows its watcher nothing, and does not break"},
		},
		Length: 20 * time.Second, Short: 7 * time.Second, ControlLength: 2 * time.Second,
		run: runWatches,
	}
}

const (
	watchers     = 12
	watchWriters = 6
	// sessionEvents is after how many events a watcher begins anew somewhere else.
	sessionEvents = 600
	// sessionsKept bounds the memory of all sessions, and revisionsMax that of what was written: past it the writers rest.
	sessionsKept = 1000
	revisionsMax = 250_000
)

// seen is one event, as a watcher noted it.
type seen struct {
	rev   int64
	value string
}

// watchSession is what one watcher saw from a revision on, over all the streams that it took.
type watchSession struct {
	from   int64
	events []seen
	// streams counts them. told is the compacted revision that ended it, 0 if none did; asked is what it had asked for then.
	streams     int
	told, asked int64
	// ended says that it saw lastValue. silent says that it was on a stream that showed nothing more and did not break.
	ended, silent bool
}

// lastValue is written when the load has ended, so that each watch that goes on has something to see.
const lastValue = "the end"

type watching struct {
	e *etcds
	// drop and silence are what the controls do.
	drop, silence bool
	// ending is set when no watch is begun any more, waited when every watch had the time to see the end.
	ending, waited atomic.Bool

	// newest and compacted are what is known of the key space; they lag.
	newest, compacted atomic.Int64
	// letGo is the highest revision of which a compaction was asked, answered or not.
	letGo       atomic.Int64
	noted, told atomic.Int64
	streams     atomic.Int64

	// mu guards what follows. acked says which value a revision has; twice are revisions of which two writers were told.
	mu    sync.Mutex
	acked map[int64]string
	twice []string
	// sessions are those that are not judged yet. Of the others there is what was found, and how many did not come to their end.
	sessions           []watchSession
	judged, withoutEnd int
	findings           []string
}

func runWatches(ctx context.Context, r *run) error {
	cl, err := r.cluster(ctx, false)
	if err != nil {
		return err
	}
	defer cl.Close()
	w := &watching{drop: r.Control == "drop-event", silence: r.Control == "silent-stream", acked: map[int64]string{}}
	if w.e, err = cl.dialEtcd(); err != nil {
		return err
	}
	defer w.e.close()
	d := &disturber{cl: cl, r: r, rng: r.rng(1), faults: []fault{killLeader}, every: 2500 * time.Millisecond, full: w.full}
	r.says(func() string {
		return fmt.Sprintf("revision %d, compacted to %d; %d events noted over %d streams, %d watches told of a compaction; %d kills",
			w.newest.Load(), w.compacted.Load(), w.noted.Load(), w.streams.Load(), w.told.Load(), d.kills.Load())
	})
	lctx, stop := context.WithCancel(ctx)
	defer stop()
	wctx, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	var load, watches sync.WaitGroup
	start := func(wg *sync.WaitGroup, n int, f func(rng *rand.Rand, i int)) {
		for i := range n {
			wg.Go(func() { f(r.rng(uint64(100+wgID(n, i))), i) })
		}
	}
	w.newest.Store(1)
	start(&load, watchWriters, func(rng *rand.Rand, i int) { w.write(lctx, rng, i) })
	start(&watches, watchers, func(rng *rand.Rand, _ int) { w.watch(wctx, rng) })
	start(&load, 1, func(rng *rand.Rand, _ int) { w.compact(lctx, rng) })
	err = d.run(ctx, time.Now().Add(r.For))
	stop()
	load.Wait()
	if err == nil {
		err = w.end(ctx, r.Control != "", &watches)
	}
	stopWatching()
	watches.Wait()
	r.count("writes acknowledged", int64(len(w.acked)))
	r.count("events noted", w.noted.Load())
	w.judge(0)
	r.count("watches", int64(w.judged))
	r.count("streams", w.streams.Load())
	r.count("watches told of a compaction", w.told.Load())
	r.count("compacted revision", w.compacted.Load())
	r.count("kills", d.kills.Load())
	r.event("the load has ended; %d watches were checked", w.judged)
	r.find(w.twice...)
	r.find(w.findings...)
	if err != nil || r.Control != "" {
		return err
	}
	if n := w.withoutEnd; n > 0 {
		r.unknown("cluster", "%d watches did not come to the last write, and their streams broke", n)
	}
	if w.told.Load() == 0 || w.noted.Load() < 1000 {
		r.unknown("cluster", "only %d events, and %d watches told of a compaction", w.noted.Load(), w.told.Load())
	}
	r.happened(d.kills.Load(), "no leader was killed")
	return r.settled(ctx, cl)
}

// end writes once more, and waits until every watch has seen that, for as long as it may take. In a run with a control that is not long.
func (w *watching) end(ctx context.Context, control bool, watches *sync.WaitGroup) error {
	w.ending.Store(true)
	pctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	err := w.e.try(pctx, func(ctx context.Context, n *etcdNode) error {
		r, err := n.Put(ctx, &pb.PutRequest{Key: []byte("w/0"), Value: []byte(lastValue)})
		if err == nil {
			w.ack(r.Header.Revision, lastValue)
		}
		return err
	})
	if err != nil {
		return err
	}
	all := make(chan struct{})
	go func() {
		watches.Wait()
		close(all)
	}()
	limit := settleLimit
	if control {
		limit = silentAfter
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-all:
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	w.waited.Store(true)
	return nil
}

// judge checks the watches that have ended but for the last ones: writers of what these saw may not have their answers yet.
func (w *watching) judge(last int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := max(0, len(w.sessions)-last)
	for i := range w.sessions[:n] {
		s := &w.sessions[i]
		// There was nothing to see if the end was not written, and no time for it if it was not waited for.
		s.silent = s.silent && w.waited.Load()
		if f := checkWatch(s, w.acked, w.letGo.Load()); len(w.findings) < findingsMax {
			w.findings = append(w.findings, f...)
		}
		// It had not enough and did not come to the end, for another reason than silence.
		if s.told == 0 && !s.ended && !s.silent && len(s.events) < sessionEvents {
			w.withoutEnd++
		}
	}
	w.judged += n
	w.sessions = slices.Clone(w.sessions[n:])
}

// silentAfter is how long a stream must have been open that is called silent: it takes some time to read history.
const silentAfter = 5 * time.Second

// wgID tells the goroutines of groups of different sizes apart.
func wgID(group, i int) int { return group*100 + i }

func (w *watching) full() bool { return w.newest.Load() >= revisionsMax }

// write puts one value after the other. Everything that changes the key space is such a put: its revisions have no holes.
func (w *watching) write(ctx context.Context, rng *rand.Rand, i int) {
	for n := 0; ctx.Err() == nil && !w.full(); n++ {
		v := fmt.Sprintf("%d/%d", i, n)
		actx, cancel := context.WithTimeout(ctx, attempt)
		r, err := w.e.any().Put(actx, &pb.PutRequest{Key: fmt.Appendf(nil, "w/%d", rng.IntN(50)), Value: []byte(v)})
		cancel()
		if err != nil {
			pause(ctx, 20*time.Millisecond)
			continue
		}
		w.ack(r.Header.Revision, v)
		raise(&w.newest, r.Header.Revision)
		pause(ctx, time.Duration(rng.IntN(2000))*time.Microsecond)
	}
}

// ack notes what a writer was told. A write that is lost after it was acknowledged shows when another gets its revision.
func (w *watching) ack(rev int64, value string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if was, ok := w.acked[rev]; ok {
		w.twice = append(w.twice, fmt.Sprintf("revision %d was acknowledged to two writers, of %q and of %q", rev, was, value))
	}
	w.acked[rev] = value
}

func raise(v *atomic.Int64, to int64) {
	for {
		old := v.Load()
		if old >= to || v.CompareAndSwap(old, to) {
			return
		}
	}
}

// compact lets go of history, now and then nearly all of it.
func (w *watching) compact(ctx context.Context, rng *rand.Rand) {
	for pause(ctx, time.Duration(100+rng.IntN(300))*time.Millisecond) {
		from, to := w.compacted.Load(), w.newest.Load()
		if to-from < 10 {
			continue
		}
		rev := from + 1 + rng.Int64N(to-from)
		raise(&w.letGo, rev)
		err := w.e.try(ctx, func(ctx context.Context, n *etcdNode) error {
			_, err := n.Compact(ctx, &pb.CompactionRequest{Revision: rev})
			return err
		})
		// An earlier try may have done it, whose answer was lost.
		if err == nil || rpctypes.ErrorDesc(err) == rpctypes.ErrorDesc(rpctypes.ErrGRPCCompacted) {
			raise(&w.compacted, rev)
		}
	}
}

// watch begins at random revisions until the load ends, and sees the last watch to its end.
func (w *watching) watch(ctx context.Context, rng *rand.Rand) {
	for ctx.Err() == nil && !w.ending.Load() {
		// From a little before what is compacted to a little before now.
		low := max(w.compacted.Load()-20, 1)
		s := watchSession{from: low + rng.Int64N(max(w.newest.Load()-low, 1))}
		for ctx.Err() == nil && s.told == 0 && !s.ended && len(s.events) < sessionEvents {
			if err := w.stream(ctx, rng, &s); err != nil {
				pause(ctx, 20*time.Millisecond)
			}
		}
		w.mu.Lock()
		w.sessions = append(w.sessions, s)
		full := len(w.sessions) >= 2*sessionsKept
		w.mu.Unlock()
		if full {
			w.judge(sessionsKept)
		}
	}
}

// stream takes one stream, from where the session is, until it breaks or the session has enough.
func (w *watching) stream(ctx context.Context, rng *rand.Rand, s *watchSession) error {
	// A stream is left in its middle too.
	enough := len(s.events) + 1 + rng.IntN(sessionEvents/2)
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.asked = s.from
	if n := len(s.events); n > 0 {
		s.asked = s.events[n-1].rev + 1
	}
	st, err := w.e.any().follow(sctx, &pb.WatchCreateRequest{Key: []byte("w/"), RangeEnd: prefixEnd("w/"), StartRevision: s.asked})
	if err != nil {
		return err
	}
	s.streams++
	w.streams.Add(1)
	silence := w.silence && rng.IntN(20) == 0
	var open time.Time
	for len(s.events) < enough && !s.ended {
		r, err := st.Recv()
		if err != nil {
			// It did not break by itself, and its watcher has waited for the end in vain.
			s.silent = ctx.Err() != nil && !open.IsZero() && time.Since(open) >= silentAfter
			return err
		}
		if r.Created {
			open = time.Now()
		}
		if silence && !r.Canceled {
			continue
		}
		if r.Canceled {
			if s.told = r.CompactRevision; s.told == 0 {
				return errs.New(errs.Unavailable, "the watch was cancelled: %s", r.CancelReason)
			}
			w.told.Add(1)
			return nil
		}
		for _, ev := range r.Events {
			if w.drop && rng.IntN(100) == 0 {
				continue
			}
			s.ended = s.ended || string(ev.Kv.Value) == lastValue
			s.events = append(s.events, seen{ev.Kv.ModRevision, string(ev.Kv.Value)})
			w.noted.Add(1)
		}
	}
	return nil
}

// checkWatch judges what one watcher saw: each revision from the one that it asked for, once and in order, with the value that the writer was
// told; or that what it asked for is compacted, if it is. Of no revision above letGo a compaction was asked.
func checkWatch(s *watchSession, acked map[int64]string, letGo int64) (findings []string) {
	find := func(format string, args ...any) {
		if len(findings) < 3 {
			findings = append(findings, fmt.Sprintf("a watch from revision %d, over %d streams: ", s.from, s.streams)+fmt.Sprintf(format, args...))
		}
	}
	next := max(s.from, firstRevision)
	for _, ev := range s.events {
		switch {
		case ev.rev > next:
			find("after revision %d came %d; %d events are missing", next-1, ev.rev, ev.rev-next)
		case ev.rev < next:
			find("after revision %d came %d again", next-1, ev.rev)
		}
		next = ev.rev + 1
		if v, ok := acked[ev.rev]; ok && v != ev.value {
			find("revision %d has the value %q, and its writer was told that of %q", ev.rev, ev.value, v)
		}
	}
	if s.silent && !s.ended {
		find("after revision %d its stream showed nothing more, and did not break, although there was more", next-1)
	}
	if s.told != 0 && s.asked >= s.told {
		find("it was told that revision %d is compacted, when it asked for %d", s.told, s.asked)
	}
	if s.told > letGo {
		find("it was told that revision %d is compacted, and nobody had let go of more than %d", s.told, letGo)
	}
	return slices.Clip(findings)
}

// firstRevision is that of the first write.
const firstRevision = 2
