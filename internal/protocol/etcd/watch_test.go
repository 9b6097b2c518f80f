package etcd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// watching is a Watch call.
type watching struct {
	r *rig
	s grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse]
}

func (r *rig) watching(ctx context.Context) *watching {
	r.t.Helper()
	s, err := r.watch.Watch(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	return &watching{r, s}
}

func (w *watching) create(c *pb.WatchCreateRequest) {
	w.r.t.Helper()
	if err := w.s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: c}}); err != nil {
		w.r.t.Fatal(err)
	}
}

// cancel asks for the end of a watch, and progress how far all of the stream's are.
func (w *watching) cancel(id int64) {
	w.r.t.Helper()
	if err := w.s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}); err != nil {
		w.r.t.Fatal(err)
	}
}

func (w *watching) progress() {
	w.r.t.Helper()
	if err := w.s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}); err != nil {
		w.r.t.Fatal(err)
	}
}

func (w *watching) recv() *pb.WatchResponse {
	w.r.t.Helper()
	m, err := w.s.Recv()
	if err != nil {
		w.r.t.Fatalf("watch: %v", err)
	}
	return m
}

// line renders an answer.
func line(m *pb.WatchResponse) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d@%d", m.WatchId, m.Header.Revision)
	for _, e := range m.Events {
		fmt.Fprintf(&b, " %s %s=%s@%d", e.Type, e.Kv.Key, e.Kv.Value, e.Kv.ModRevision)
		if e.PrevKv != nil {
			fmt.Fprintf(&b, "<%s", e.PrevKv.Value)
		}
	}
	if m.Created {
		b.WriteString(" created")
	}
	if m.Canceled {
		b.WriteString(" canceled")
	}
	if m.CompactRevision != 0 {
		fmt.Fprintf(&b, " compacted %d", m.CompactRevision)
	}
	if m.CancelReason != "" {
		b.WriteString(" " + m.CancelReason)
	}
	return b.String()
}

func (w *watching) want(want string) {
	w.r.t.Helper()
	if got := line(w.recv()); got != want {
		w.r.t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestWatch_PastPresentFuture(t *testing.T) {
	r := newRig(t, Config{})
	r.put("a", "1")
	r.put("b", "2")
	w := r.watching(r.ctx())
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("c"), StartRevision: 2, PrevKv: true})
	w.want("0@3 created")
	w.want("0@3 PUT a=1@2 PUT b=2@3")
	r.put("a", "3")
	w.want("0@4 PUT a=3@4<1")
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 6, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}})
	w.want("1@4 created")
	r.put("x", "not for anyone")
	if _, err := r.kv.DeleteRange(r.ctx(), &pb.DeleteRangeRequest{Key: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{line(w.recv()): true, line(w.recv()): true}
	for _, want := range []string{"0@6 DELETE a=@6<3", "1@6 DELETE a=@6"} {
		if !got[want] {
			t.Errorf("no %q in %v", want, got)
		}
	}
	w.cancel(0)
	w.want("0@6 canceled")
	r.put("b", "nobody")
	w.create(&pb.WatchCreateRequest{Key: []byte("b"), WatchId: 1})
	w.want("-1@7 created canceled " + reasonDuplicate)
	w.create(&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("a")})
	w.want("-1@7 created canceled " + reasonEmpty)
	w.create(&pb.WatchCreateRequest{Key: []byte("b"), WatchId: 9})
	w.want("9@7 created")
	r.put("b", "9")
	w.want("9@8 PUT b=9@8")
}

func TestWatch_Compacted(t *testing.T) {
	r := newRig(t, Config{})
	for i := range 5 {
		r.put("a", fmt.Sprint(i))
	}
	if _, err := r.kv.Compact(r.ctx(), &pb.CompactionRequest{Revision: 4}); err != nil {
		t.Fatal(err)
	}
	w := r.watching(r.ctx())
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 3})
	w.want("0@6 created")
	w.want("0@6 canceled compacted 4")
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 4})
	w.want("1@6 created")
	w.want("1@6 PUT a=2@4 PUT a=3@5 PUT a=4@6")
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: -1})
	w.want("-1@6 created canceled " + rpctypes.ErrCompacted.Error())
}

func TestWatch_Progress(t *testing.T) {
	r := newRig(t, Config{ProgressInterval: 20 * time.Millisecond})
	w := r.watching(r.ctx())
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 1})
	w.want("0@1 created")
	r.put("a", "1")
	w.want("0@2 PUT a=1@2")
	r.put("b", "2")
	// What was asked for is told when all that was acknowledged before has arrived here, if it is asked for often enough.
	for {
		w.progress()
		if m := w.recv(); m.WatchId != noWatch || len(m.Events) > 0 {
			t.Fatalf("got %s", line(m))
		} else if m.Header.Revision == 3 {
			break
		}
	}
	w.create(&pb.WatchCreateRequest{Key: []byte("z"), ProgressNotify: true})
	w.want("1@3 created")
	w.want("1@3")
}

// A stream that does not read costs nobody anything: others go on, memory is bounded, and it misses nothing in the end.
func TestWatch_SlowStream(t *testing.T) {
	r := newRig(t, Config{StreamBytesMax: 10_000})
	slow, fast := r.watching(r.ctx()), r.watching(r.ctx())
	for _, w := range []*watching{slow, fast} {
		w.create(&pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l")})
		w.want("0@1 created")
	}
	value := strings.Repeat("v", 10_000)
	const n = 300
	for i := range n {
		rev := r.put(fmt.Sprint("k", i%7), value)
		if m := fast.recv(); len(m.Events) != 1 || m.Events[0].Kv.ModRevision != rev {
			t.Fatalf("fast: %.100s", line(m))
		}
	}
	r.s.feed.mu.Lock()
	for w := range r.s.feed.ranges {
		waits := 0
		for _, m := range w.st.queue {
			for _, e := range m.Events {
				waits += len(e.Kv.Value)
			}
		}
		if waits > 30_000 || w.st.bytes > 30_000 {
			t.Errorf("%d bytes wait for a stream, of which %d count", waits, w.st.bytes)
		}
	}
	r.s.feed.mu.Unlock()
	next := int64(2)
	for next < n+2 {
		for _, e := range slow.recv().Events {
			if e.Kv.ModRevision != next {
				t.Fatalf("revision %d, want %d", e.Kv.ModRevision, next)
			}
			next++
		}
	}
	rev := r.put("k", "live again")
	if m := slow.recv(); m.Events[0].Kv.ModRevision != rev {
		t.Errorf("got %s", line(m))
	}
}

func TestWatch_Fragments(t *testing.T) {
	r := newRig(t, Config{RequestBytesMax: 10_000})
	w := r.watching(r.ctx())
	w.create(&pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), Fragment: true, PrevKv: true, WatchId: 1})
	w.create(&pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), PrevKv: true, WatchId: 2})
	w.want("1@1 created")
	w.want("2@1 created")
	// The first revision fits into a message, and the second, with the versions before it, does not.
	for rev := 1; rev <= 2; rev++ {
		var ops []*pb.RequestOp
		for i := range 9 {
			ops = append(ops, put(fmt.Sprint("k", i), strings.Repeat("v", 1000)))
		}
		if _, err := r.kv.Txn(r.ctx(), &pb.TxnRequest{Success: ops}); err != nil {
			t.Fatal(err)
		}
		keys, parts := map[int64]string{}, 0
		for len(keys[1]) < 18 || len(keys[2]) < 18 {
			m := w.recv()
			if m.WatchId == 2 && len(m.Events) != 9 {
				t.Errorf("a revision was cut: %d events", len(m.Events))
			}
			for _, e := range m.Events {
				keys[m.WatchId] += string(e.Kv.Key)
			}
			if m.WatchId != 1 {
				continue
			}
			parts++
			if size := proto.Size(m); size >= 10_000 || m.Header.GetRevision() != int64(rev+1) || m.Fragment != (len(keys[1]) < 18) {
				t.Errorf("part %d of revision %v has %d bytes, and more follows: %v", parts, m.Header, size, m.Fragment)
			}
		}
		if keys[1] != "k0k1k2k3k4k5k6k7k8" || keys[2] != keys[1] || parts != 2*rev-1 {
			t.Errorf("revision %d in %d parts: %v", rev+1, parts, keys)
		}
	}
}

// Watches that come and go while keys change see each change once and in order.
func TestWatch_NoGapsWhileJoining(t *testing.T) {
	r := newRig(t, Config{})
	const n = 400
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range n {
			if _, err := r.kv.Put(t.Context(), &pb.PutRequest{Key: fmt.Append(nil, "k", i%5), Value: []byte("v")}); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for i := range 20 {
		ctx, cancel := context.WithCancel(r.ctx())
		w := r.watching(ctx)
		start := int64(0)
		if i%2 == 0 {
			start = 2
		}
		w.create(&pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: start, PrevKv: i%3 == 0})
		m := w.recv()
		if !m.Created {
			t.Fatalf("got %s", line(m))
		}
		next := m.Header.Revision + 1
		if start > 0 {
			next = start
		}
		for until := min(next+30, n+2); next < until; {
			for _, e := range w.recv().Events {
				if e.Kv.ModRevision != next {
					t.Fatalf("watch %d: revision %d, want %d", i, e.Kv.ModRevision, next)
				}
				if i%3 == 0 && e.Kv.Version > 1 && e.PrevKv == nil {
					t.Errorf("watch %d: no version before %v", i, e.Kv)
				}
				next++
			}
		}
		cancel()
	}
	<-done
}

// A watch that wants the versions before may join between the feed's reading and its handing out: then what was read lacks them.
func TestFeed_PreviousVersionsForOneThatJustCame(t *testing.T) {
	r := newRig(t, Config{})
	r.put("a", "1")
	r.put("a", "2")
	f := r.s.feed
	st := newWatchStream(r.s)
	w := &watcher{st: st, key: []byte("a"), prev: true, next: 1000}
	f.add(w, 3, "")
	// The feed's goroutine may not have begun.
	ctx := r.ctx()
	for joined := false; !joined; {
		if _, joined = f.join(w); ctx.Err() != nil {
			t.Fatal("did not join")
		}
	}
	ev := kv.Event{KV: kv.KeyValue{Key: []byte("a"), Mod: 1000, Version: 9}}
	f.mu.Lock()
	next := f.next
	f.mu.Unlock()
	f.handOut(&kv.Events{Next: 1001, Events: []kv.Event{ev}}, false)
	f.mu.Lock()
	if !w.lagging || w.next != 1000 || len(st.queue) != 1 {
		t.Errorf("lagging %v from %d, %d answers; it must read revision 1000 by itself", w.lagging, w.next, len(st.queue))
	}
	f.next = next
	f.mu.Unlock()
	f.drop(st)
	f.add(w, 3, "")
	if f.watchers != 0 {
		t.Errorf("%d watches after the end of the stream", f.watchers)
	}
}

// A client that goes on with another node, which has applied less, is not told that it is less far than it knows.
func TestWatch_ProgressIsNeverBehindTheClient(t *testing.T) {
	r := newRig(t, Config{ProgressInterval: time.Millisecond})
	w := r.watching(r.ctx())
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 5, ProgressNotify: true})
	w.want("0@1 created")
	w.progress()
	for rev := range int64(3) {
		if got := r.put("b", "v"); got != rev+2 {
			t.Fatalf("revision %d", got)
		}
	}
	for asked := false; !asked; {
		m := w.recv()
		if m.Header.Revision < 4 {
			t.Fatalf("told of revision %d after it knew 4: %s", m.Header.Revision, line(m))
		}
		asked = m.WatchId == noWatch
	}
}

// While nobody watches, the feed does not look at the key space. Whoever comes hears of what is new all the same, and of no revision before.
func TestFeed_SleepsWhileNobodyWatches(t *testing.T) {
	r := newRig(t, Config{})
	f := r.s.feed
	awaitSleep := func() {
		t.Helper()
		for ctx := r.ctx(); ; {
			f.mu.Lock()
			next := f.next
			f.mu.Unlock()
			if next == 0 && len(f.awake) == 0 {
				return
			}
			if ctx.Err() != nil {
				t.Fatal("the feed does not sleep")
			}
			runtime.Gosched()
		}
	}
	for range 20 {
		awaitSleep()
		rev := r.put("a", "while it sleeps")
		ctx, cancel := context.WithCancel(r.ctx())
		w := r.watching(ctx)
		w.progress()
		w.want(fmt.Sprintf("-1@%d", rev))
		awaitSleep()
		rev = r.put("a", "before the watch")
		w.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: rev})
		w.want(fmt.Sprintf("0@%d created", rev))
		if m := w.recv(); len(m.Events) != 1 || m.Events[0].Kv.ModRevision != rev {
			t.Fatalf("got %s", line(m))
		}
		rev = r.put("a", "with the watch")
		if m := w.recv(); len(m.Events) != 1 || m.Events[0].Kv.ModRevision != rev {
			t.Fatalf("got %s", line(m))
		}
		w.cancel(0)
		if m := w.recv(); !m.Canceled || m.Header.Revision != rev {
			t.Fatalf("got %s", line(m))
		}
		awaitSleep()
		w.create(&pb.WatchCreateRequest{Key: []byte("a")})
		w.want(fmt.Sprintf("1@%d created", rev))
		// At once, whether the feed is awake by now or not.
		w.cancel(1)
		if m := w.recv(); !m.Canceled || m.Header.Revision != rev {
			t.Fatalf("got %s", line(m))
		}
		cancel()
	}
}

func TestWatch_TooMany(t *testing.T) {
	r := newRig(t, Config{WatchersMax: 2})
	w := r.watching(r.ctx())
	for i := range 2 {
		w.create(&pb.WatchCreateRequest{Key: []byte("a")})
		w.want(fmt.Sprintf("%d@1 created", i))
	}
	w.create(&pb.WatchCreateRequest{Key: []byte("a")})
	w.want("-1@1 created canceled " + reasonTooMany)
	w.cancel(1)
	w.want("1@1 canceled")
	w.create(&pb.WatchCreateRequest{Key: []byte("a")})
	w.want("2@1 created")
}

// asker is the stream of a client that asks n times how far all is.
type asker struct {
	grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]
	n int
}

func (a *asker) Recv() (*pb.WatchRequest, error) {
	if a.n == 0 {
		return nil, io.EOF
	}
	a.n--
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}, nil
}

// What a client has asked is not taken while it does not read the answers; when it reads, it gets all of them.
func TestWatch_WhoDoesNotReadIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{client: shardtest.New(t, shardtest.Options{}, kv.Module{})}
		s.feed = newFeed(s)
		s.feed.next = 2
		st := newWatchStream(s)
		const n = 3*answersMax + 7
		done := make(chan error, 1)
		go func() { done <- st.receive(t.Context(), &asker{n: n}) }()
		got := 0
		for got < n {
			synctest.Wait()
			queue, _ := s.feed.take(st)
			if len(queue) == 0 || len(queue) > answersMax {
				t.Fatalf("%d answers wait after %d, at most %d may", len(queue), got, answersMax)
			}
			got += len(queue)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// largeEvents is a shard in which the events of a revision are too large to be read with the versions before it.
type largeEvents struct {
	shard.Client
	revision int64
}

func (l largeEvents) Query(ctx context.Context, r shard.Route, at shard.Consistency, q shard.Command) ([]byte, error) {
	for _, size := range []int{feedBytes, catchUpBytes} {
		if bytes.Equal(q.Data, kv.EncodeEvents(l.revision, size, true)) {
			return nil, kv.ErrAnswerTooLarge
		}
	}
	return l.Client.Query(ctx, r, at, q)
}

// To delete a lot takes a small request. Who watches that with the versions before it is told that they are too much, and nobody else is held up.
func TestWatch_MoreBeforeARevisionThanAnAnswerHolds(t *testing.T) {
	r := newRigOver(t, Config{}, func(c shard.Client) shard.Client { return largeEvents{c, 3} })
	with, without := r.watching(r.ctx()), r.watching(r.ctx())
	with.create(&pb.WatchCreateRequest{Key: []byte("a"), PrevKv: true})
	with.want("0@1 created")
	without.create(&pb.WatchCreateRequest{Key: []byte("a")})
	without.want("0@1 created")
	r.put("a", "1")
	with.want("0@2 PUT a=1@2")
	without.want("0@2 PUT a=1@2")
	if _, err := r.kv.DeleteRange(r.ctx(), &pb.DeleteRangeRequest{Key: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	without.want("0@3 DELETE a=@3")
	// Which revision this stream knows by then is a matter of chance.
	if m := with.recv(); !m.Canceled || m.WatchId != 0 || m.CancelReason != fmt.Sprintf(reasonTooLarge, 3) {
		t.Fatalf("got %v", m)
	}
	with.create(&pb.WatchCreateRequest{Key: []byte("b"), PrevKv: true})
	with.want("1@3 created")
	r.put("b", "1")
	with.want("1@4 PUT b=1@4")
	r.put("a", "2")
	without.want("0@5 PUT a=2@5")
}

// A small request may delete a lot, and whoever watches that with the versions before it is sent all of it: such answers have room together, and wait
// for it.
func TestWatch_LargeAnswersAreBoundedTogether(t *testing.T) {
	answers := kv.NewBudget(10 << 20)
	r := newRig(t, Config{Answers: answers})
	for i := range 6 {
		r.put(fmt.Sprintf("large/%d", i), strings.Repeat("x", 1<<20))
	}
	// Something else has taken what there is.
	if err := answers.Take(5 << 20); err != nil {
		t.Fatal(err)
	}
	const watches = 4
	ended := make(chan error, watches)
	for range watches {
		w, err := r.watch.Watch(r.ctx(), grpc.MaxCallRecvMsgSize(16<<20))
		if err != nil {
			t.Fatal(err)
		}
		err = w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("large/"), RangeEnd: []byte("large0"), PrevKv: true}}})
		if err == nil {
			_, err = w.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			m, err := w.Recv()
			if err == nil && len(m.Events) != 6 {
				err = fmt.Errorf("%d events", len(m.Events))
			}
			ended <- err
		}()
	}
	if _, err := r.kv.DeleteRange(r.ctx(), &pb.DeleteRangeRequest{Key: []byte("large/"), RangeEnd: []byte("large0")}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		t.Errorf("an answer was sent that there is no room for: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	answers.Give(5 << 20)
	for range watches {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	await(t, "all room is given back", func() bool { return answers.Used() == 0 })
}
