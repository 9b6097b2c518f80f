package drill

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorate/quorate/internal/engine"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// Histories of reads alone, or of writes alone, fit any order.
func TestJudge_OperationsOfOneKindShowNothing(t *testing.T) {
	for _, c := range []struct {
		writes, reads int64
		unknown       int
	}{{0, 0, 2}, {0, 9, 1}, {9, 0, 1}, {9, 9, 0}} {
		r, g := &run{}, &registers{}
		g.acked.Store(c.writes + c.reads)
		g.writes.Store(c.writes)
		g.reads.Store(c.reads)
		if r.judge(g); len(r.report.Unknown) != c.unknown {
			t.Errorf("%d writes, %d reads: unknown %v, want %d", c.writes, c.reads, r.report.Unknown, c.unknown)
		}
	}
}

// keeper answers renewals with a TTL, or never.
type keeper struct {
	pb.LeaseClient
	ttl int64
}

type keeping struct {
	pb.Lease_LeaseKeepAliveClient
	ctx context.Context
	ttl int64
}

func (k keeper) LeaseKeepAlive(ctx context.Context, _ ...grpc.CallOption) (pb.Lease_LeaseKeepAliveClient, error) {
	return keeping{ctx: ctx, ttl: k.ttl}, nil
}

func (keeping) Send(*pb.LeaseKeepAliveRequest) error { return nil }

func (k keeping) Recv() (*pb.LeaseKeepAliveResponse, error) {
	if k.ttl < 0 {
		<-k.ctx.Done()
		return nil, k.ctx.Err()
	}
	return &pb.LeaseKeepAliveResponse{TTL: k.ttl}, nil
}

func TestFencing_RefusedHolderIsAFindingIfItsLeaseGoesOn(t *testing.T) {
	for _, c := range []struct {
		name  string
		ttl   int64
		ended bool
		want  int
	}{{"the lease goes on", 2, false, 1}, {"the lease is over", 0, false, 0}, {"the load ended before the answer", -1, true, 0}} {
		f := &fencing{r: &run{}, e: &etcds{nodes: []*etcdNode{{LeaseClient: keeper{ttl: c.ttl}}}}}
		ctx, cancel := context.WithCancel(t.Context())
		if c.ended {
			cancel()
		}
		f.refusedHolder(ctx, "etcd-1", contender{token: 7})
		cancel()
		if got := f.r.report.Findings; len(got) != c.want {
			t.Errorf("%s: %q, want %d findings", c.name, got, c.want)
		}
	}
}

func TestCheckTogether_ByHand(t *testing.T) {
	for _, c := range []struct {
		changes, events string
		want            int
	}{{"", "", 0}, {"3 3 7", "3 3 7", 0}, {"3 7", "3", 1}, {"3", "3 7", 1}, {"3 7", "3 9", 1}} {
		if got := checkTogether("multi-1", strings.Fields(c.changes), strings.Fields(c.events)); len(got) != c.want {
			t.Errorf("%q and %q: %q, want %d findings", c.changes, c.events, got, c.want)
		}
	}
}

// An election that the drill did not ask for gives leases their TTL again.
func TestLeases_ElectionsAreNoted(t *testing.T) {
	var term atomic.Uint64
	term.Store(4)
	var asked atomic.Int64
	p := says(t, 1, func() engine.Status {
		asked.Add(1)
		return engine.Status{Shards: []engine.ShardStatus{{ID: 1, Leader: 1, Term: term.Load()}}}
	})
	l := &leases{start: time.Now()}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.watchTerms(ctx, p)
	}()
	until := func(what string, ok func() bool) {
		for !ok() {
			if !pause(ctx, time.Millisecond) {
				t.Fatal(what)
			}
		}
	}
	stalls := func() []stall {
		l.mu.Lock()
		defer l.mu.Unlock()
		return slices.Clone(l.stalls)
	}
	until("the node is not asked", func() bool { return asked.Load() > 2 })
	before := time.Since(l.start)
	if got := stalls(); len(got) != 0 {
		t.Errorf("stalls %v without an election", got)
	}
	term.Store(5)
	until("the election is not noted", func() bool { return len(stalls()) > 0 })
	cancel()
	<-done
	if got := stalls(); len(got) != 1 || got[0].from > before || got[0].to < before {
		t.Errorf("stalls %v, want one around %v", got, before)
	}
}

func TestMergeStalls_OneEventIsOneStall(t *testing.T) {
	all := []stall{{10, 14}, {1, 3}, {2, 2}, {9, 12}, {14, 15}, {20, 21}}
	if got, want := mergeStalls(all), []stall{{1, 3}, {9, 15}, {20, 21}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Watches that ended are judged while others go on, so that a long run does not keep what all of them saw.
func TestWatching_MemoryOfLongRuns(t *testing.T) {
	w := &watching{acked: map[int64]string{2: "a"}}
	w.sessions = []watchSession{
		{from: 2, ended: true, events: []seen{{2, "x"}}},
		{from: 2, ended: true, events: []seen{{2, "a"}}},
		{from: 2},
	}
	w.judge(1)
	if len(w.sessions) != 1 || w.judged != 2 || len(w.findings) != 1 || w.withoutEnd != 0 {
		t.Errorf("%d kept, %d judged, found %q, %d without end", len(w.sessions), w.judged, w.findings, w.withoutEnd)
	}
	w.judge(0)
	if len(w.sessions) != 0 || w.judged != 3 || len(w.findings) != 1 || w.withoutEnd != 1 {
		t.Errorf("%d kept, %d judged, found %q, %d without end", len(w.sessions), w.judged, w.findings, w.withoutEnd)
	}
}

func TestHasOtherLeader_WhoSleepsIsNotAsked(t *testing.T) {
	for _, c := range []struct {
		leader shard.NodeID
		want   bool
	}{{0, false}, {1, false}, {3, true}} {
		cl := &Cluster{}
		for id := 1; id <= 3; id++ {
			cl.Nodes = append(cl.Nodes, says(t, id, func() engine.Status {
				if id == 1 {
					t.Error("the node that sleeps was asked")
				}
				return engine.Status{Shards: []engine.ShardStatus{{ID: 1, Leader: c.leader}}}
			}))
		}
		if got := cl.hasOtherLeader(t.Context(), cl.Nodes[0]); got != c.want {
			t.Errorf("leader %d: %v, want %v", c.leader, got, c.want)
		}
	}
}

// deaf is a node that answers nothing.
type deaf struct{ pb.KVClient }

func (deaf) Put(context.Context, *pb.PutRequest, ...grpc.CallOption) (*pb.PutResponse, error) {
	return nil, status.Error(codes.Unavailable, "no leader")
}

// A cluster that does not come back ends a drill, with what was found until then.
func TestWatching_ClusterThatDoesNotComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		w := &watching{e: &etcds{nodes: []*etcdNode{{KVClient: deaf{}}}}, acked: map[int64]string{}}
		if err := w.end(ctx, false, &sync.WaitGroup{}); !errs.Is(err, errs.Unavailable) || ctx.Err() != nil {
			t.Errorf("got %v, want an end in time", err)
		}
		w.sessions = []watchSession{{from: 2, silent: true}, {from: 2, ended: true, events: []seen{{3, "x"}}}}
		if w.judge(0); len(w.findings) != 1 || !strings.Contains(w.findings[0], "events are missing") {
			t.Errorf("found %q, want the gap, and no silence where nothing was written", w.findings)
		}
	})
}

func TestElection_ClusterThatDoesNotComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		l := &election{e: &etcds{nodes: []*etcdNode{{KVClient: deaf{}}}}}
		if _, err := l.herd(ctx); !errs.Is(err, errs.Unavailable) || ctx.Err() != nil {
			t.Errorf("got %v, want an end in time", err)
		}
	})
}

// slow is a node that shows two events of its history, or what is left of it, and then breaks the stream.
type slow struct {
	pb.KVClient
	pb.WatchClient
	history []*mvccpb.Event
}

type slowStream struct {
	pb.Watch_WatchClient
	n    *slow
	from int64
	done bool
}

func (s *slow) Put(context.Context, *pb.PutRequest, ...grpc.CallOption) (*pb.PutResponse, error) {
	return &pb.PutResponse{Header: &pb.ResponseHeader{Revision: s.history[len(s.history)-1].Kv.ModRevision}}, nil
}

func (s *slow) Watch(context.Context, ...grpc.CallOption) (pb.Watch_WatchClient, error) {
	return &slowStream{n: s}, nil
}

func (s *slowStream) Send(r *pb.WatchRequest) error {
	s.from = r.GetCreateRequest().StartRevision
	return nil
}

func (s *slowStream) Recv() (*pb.WatchResponse, error) {
	if s.done {
		return nil, status.Error(codes.DeadlineExceeded, "time is up")
	}
	s.done = true
	var shown []*mvccpb.Event
	for _, e := range s.n.history {
		if e.Kv.ModRevision >= s.from && len(shown) < 2 {
			shown = append(shown, e)
		}
	}
	return &pb.WatchResponse{Events: shown}, nil
}

// The history of a long run does not fit into one try.
func TestElection_LongHistoryIsReadInParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := func(rev int64, typ mvccpb.Event_EventType, key string) *mvccpb.Event {
			return &mvccpb.Event{Type: typ, Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: rev}}
		}
		s := &slow{history: []*mvccpb.Event{
			at(2, mvccpb.PUT, "herd/1"), at(3, mvccpb.PUT, "herd/2"), at(4, mvccpb.PUT, "herd/3"), at(6, mvccpb.DELETE, "herd/1"), at(8, mvccpb.DELETE, "herd/2"),
			at(9, mvccpb.PUT, "herd/~"),
		}}
		l := &election{e: &etcds{nodes: []*etcdNode{{KVClient: s, WatchClient: s}}}}
		if n, err := l.herd(t.Context()); err != nil || n != 3 {
			t.Errorf("%d woken, %v; want 2 and then 1", n, err)
		}
	})
}

// Past the bound of what a drill remembers the load rests. Then nodes are not broken any more, and are not waited for to take writes.
func TestFull_LoadAtItsBoundEndsTheRun(t *testing.T) {
	l, w, g := &ledger{}, &watching{}, &registers{}
	if l.full() || w.full() || g.full() {
		t.Error("full from the start")
	}
	l.next.Store(ledgerMax - ledgerSpare)
	w.newest.Store(revisionsMax)
	g.operations = operationsMax
	for name, full := range map[string]func() bool{"ledger": l.full, "watches": w.full, "registers": g.full} {
		synctest.Test(t, func(t *testing.T) {
			d := &disturber{r: &run{}, rng: (&run{}).rng(1), every: time.Second, full: full}
			began := time.Now()
			if err := d.run(t.Context(), began.Add(time.Hour)); err != nil || time.Since(began) > 0 || len(d.r.report.Events) != 1 {
				t.Errorf("%s: %v after %v, %v", name, err, time.Since(began), d.r.report.Events)
			}
		})
	}
}

func TestWasRebuilt_NotWhatIsNotKnown(t *testing.T) {
	for _, c := range []struct {
		before, after uint64
		want          bool
	}{{1, 1, false}, {1, 2, true}, {0, 2, false}, {1, 0, false}} {
		if got := wasRebuilt(c.before, c.after); got != c.want {
			t.Errorf("from %d to %d: %v, want %v", c.before, c.after, got, c.want)
		}
	}
}
