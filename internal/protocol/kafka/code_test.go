package kafka

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// javaFetch are the codes that Java's consumer knows in a partition of a Fetch (FetchCollector.handleInitializeErrors). For any other
// one poll throws an IllegalStateException at the application.
var javaFetch = map[int16]bool{-1: true, 1: true, 2: true, 3: true, 6: true, 9: true, 29: true, 56: true, 74: true, 75: true, 78: true, 100: true, 103: true}

func TestFetch_CodesThatJavaKnows(t *testing.T) {
	for k := range kindCodes {
		for reason := range reasonCodes {
			err := errs.Coded(errs.Kind(k), reason, "x")
			if c := codeOf(err, faceFetch); !javaFetch[c] {
				t.Errorf("kind %v, reason %q: code %d", errs.Kind(k), reason, c)
			}
			for version := int16(4); version <= 17; version++ {
				if c := fetchCode(err, version); !javaFetch[c] {
					t.Errorf("kind %v, reason %q, version %d: code %d", errs.Kind(k), reason, version, c)
				}
			}
		}
	}
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	if x := w.fetch(strings.Repeat("x", 300), 0, 0); x.ErrorCode != codeUnknownTopicOrPartition {
		t.Errorf("a name that no topic can have: %d", x.ErrorCode)
	}
	// As many records are on their way as may be.
	release, err := b.s.fetches.take(t.Context(), b.s.cfg.FetchBytesAllMax)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	c := newConn(b.s, stub{})
	defer c.endWork()
	ctx, cancel := context.WithTimeout(c.work, 20*time.Millisecond)
	defer cancel()
	c.work = ctx
	resp, err := b.s.fetch(ctx, c, header{}, fetchReq("t", 0, 0, 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	r := resp.(*kmsg.FetchResponse)
	if x := r.Topics[0].Partitions[0]; x.ErrorCode != codeNotLeaderOrFollower || r.ThrottleMillis == 0 {
		t.Errorf("no room: code %d, throttle %d", x.ErrorCode, r.ThrottleMillis)
	}
}

// Java's consumers before 4.0 (ConsumerCoordinator.OffsetFetchResponseHandler) come again for COORDINATOR_LOAD_IN_PROGRESS and
// NOT_COORDINATOR. Java's producer without a transactional id comes again for what is retriable, but for COORDINATOR_NOT_AVAILABLE and
// NOT_COORDINATOR looks for the coordinator of the id that it has not.
func TestGroupCodes_ThatJavaKnows(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	check := func(when string, wantOffsets, wantProducer int16) {
		t.Helper()
		for v := int16(1); v <= 9; v++ {
			req := kmsg.NewPtrOffsetFetchRequest()
			req.Group = "g"
			x := kmsg.NewOffsetFetchRequestTopic()
			x.Topic, x.Partitions = "t", []int32{0}
			req.Topics = append(req.Topics, x)
			g := kmsg.NewOffsetFetchRequestGroup()
			g.Group = "g"
			g.Topics = append(g.Topics, kmsg.OffsetFetchRequestGroupTopic{Topic: "t", Partitions: []int32{0}})
			req.Groups = append(req.Groups, g)
			r := ask[*kmsg.OffsetFetchResponse](w, req, v)
			var got int16
			switch {
			case v >= 8:
				got = r.Groups[0].ErrorCode
			case v >= 2:
				got = r.ErrorCode
			default:
				got = r.Topics[0].Partitions[0].ErrorCode
			}
			if got != wantOffsets {
				t.Errorf("%s: offsets version %d: code %d, want %d", when, v, got, wantOffsets)
			}
		}
		if r := ask[*kmsg.InitProducerIDResponse](w, kmsg.NewPtrInitProducerIDRequest(), 4); r.ErrorCode != wantProducer {
			t.Errorf("%s: producer id: code %d, want %d", when, r.ErrorCode, wantProducer)
		}
	}
	check("all is well", 0, 0)
	b.c.Refuse(errs.New(errs.Overloaded, "full"))
	check("full", codeCoordinatorLoadInProgress, codeCoordinatorLoadInProgress)
	b.c.Refuse(errs.New(errs.Unavailable, "no majority confirmed the read"))
	check("no majority", codeNotCoordinator, codeCoordinatorLoadInProgress)
	b.c.SetTopology(func(t *shard.Topology) {
		t.Shards = []shard.ShardInfo{{ID: 1, Leader: 0, Term: 7, Replicas: []shard.NodeID{1}}}
	})
	check("no leader", codeNotCoordinator, codeCoordinatorLoadInProgress)
	b.c.SetTopology(func(t *shard.Topology) { t.Spaces = nil })
	check("no space", codeNotCoordinator, codeCoordinatorLoadInProgress)
}

// Java's consumer (AbstractCoordinator.SyncGroupResponseHandler) throws at the application for COORDINATOR_LOAD_IN_PROGRESS in the answer to a
// SyncGroup, and joins again for REBALANCE_IN_PROGRESS, which is what Kafka says in its place.
func TestSyncGroup_CodesThatJavaKnows(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	req := kmsg.NewPtrSyncGroupRequest()
	req.Group, req.MemberID, req.Generation = "g", "m", 1
	for _, c := range []struct {
		err  error
		want int16
	}{
		{errs.New(errs.Overloaded, "full"), codeRebalanceInProgress},
		{errs.New(errs.Unavailable, "no majority"), codeCoordinatorNotAvailable},
		{errs.New(errs.OutcomeUnknown, "lost"), codeCoordinatorNotAvailable},
	} {
		b.c.Refuse(c.err)
		for v := int16(0); v <= 5; v++ {
			if r := ask[*kmsg.SyncGroupResponse](w, req, v); r.ErrorCode != c.want {
				t.Errorf("%v: version %d: code %d, want %d", c.err, v, r.ErrorCode, c.want)
			}
		}
	}
}

// family is a context that counts the contexts made of it that are not ended.
type family struct {
	context.Context
	done     chan struct{}
	children chan int
}

func (f *family) Done() <-chan struct{} { return f.done }
func (f *family) AfterFunc(func()) (stop func() bool) {
	f.children <- 1
	return func() bool { f.children <- -1; return true }
}

func TestServer_RefusedConnectionsLeaveNothing(t *testing.T) {
	s := New(Config{}, nil, discard(), nil)
	f := &family{context.Background(), make(chan struct{}), make(chan int, 100)}
	s.stop()
	s.ctx = f
	s.conns.Close()
	for range 10 {
		s.admit(stub{})
	}
	close(f.children)
	made, left := 0, 0
	for n := range f.children {
		made += max(n, 0)
		left += n
	}
	if made != 10 || left != 0 {
		t.Errorf("of %d refused connections %d have a context that waits for the server's end", made, left)
	}
}

// stub is a connection that only closes.
type stub struct{ net.Conn }

func (stub) Close() error         { return nil }
func (stub) RemoteAddr() net.Addr { return &net.TCPAddr{} }
