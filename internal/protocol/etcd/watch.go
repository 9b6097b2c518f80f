package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/kv"
)

// watchServer serves Watch.
type watchServer struct {
	pb.UnimplementedWatchServer
	s *Server
}

// What etcd says of watches that it does not make.
const (
	reasonDuplicate = "mvcc: duplicate watch ID provided on the WatchStream"
	reasonEmpty     = "mvcc: watcher range is empty"
	reasonTooLarge  = "quorate: a revision from %d on, with the versions before it, is more than one answer holds; watch it without prev_kv"
	reasonTooMany   = "quorate: too many watches are open on this node; close some, or use another node"
)

// noWatch is the id of an answer that is not about one watch.
const noWatch = -1

// answersMax is how many answers may wait for one watch stream before nothing more is taken that its client asks.
const answersMax = 1024

// catchUpBytes is how much of history a watch reads at a time.
const catchUpBytes = 256 << 10

// watcher is one watch. Its fields do not change, except for those that feed.mu guards.
type watcher struct {
	st       *watchStream
	id       int64
	key, end []byte
	noPut    bool
	noDelete bool
	prev     bool
	progress bool
	fragment bool

	// next is the first revision that it has not been given. lagging says that it reads history, and is not with the feed.
	// quiet says that nothing came since it was last told how far it is. gone says that it was cancelled. Guarded by feed.mu.
	next    int64
	lagging bool
	quiet   bool
	gone    bool
	// batch collects its events of one reading of the feed.
	batch []*mvccpb.Event
}

// watchStream is one Watch call: its watches, and what is to be sent. All but the first three fields are guarded by feed.mu.
type watchStream struct {
	s    *Server
	wake chan struct{}
	// taken is sent to when what waited was taken to be sent.
	taken chan struct{}

	watchers map[int64]*watcher
	lagging  map[*watcher]struct{}
	queue    []*pb.WatchResponse
	// bytes counts the events in queue.
	bytes  int
	nextID int64
	// dropped says that the stream has ended.
	dropped bool
	// asked says that the client wants to know how far all is, once nothing lags.
	asked bool
}

func newWatchStream(s *Server) *watchStream {
	return &watchStream{
		s: s, wake: make(chan struct{}, 1), taken: make(chan struct{}, 1), watchers: map[int64]*watcher{}, lagging: map[*watcher]struct{}{},
	}
}

// Watch implements pb.WatchServer. This goroutine sends: what the feed put into the queue, and what lagging watches read from
// history.
func (w watchServer) Watch(stream grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	st := newWatchStream(w.s)
	defer w.s.feed.drop(st)
	ended := make(chan error, 1)
	go func() {
		// A client that has no more to ask still hears of events: the gateway's has said all when its request has been read.
		if err := st.receive(ctx, stream); err != nil {
			ended <- err
		}
	}()
	err := st.send(ctx, stream, ended)
	if errors.Is(err, context.Canceled) {
		err = rpctypes.ErrGRPCWatchCanceled
	}
	return err
}

// receive takes in what the client wants.
func (st *watchStream) receive(ctx context.Context, stream grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		// Nearly each request has an answer: a client that asks and does not read must not fill the memory with them.
		for st.s.feed.full(st) {
			select {
			case <-st.taken:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		switch r := r.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			if r.CreateRequest != nil {
				if err := st.create(ctx, r.CreateRequest); err != nil {
					return err
				}
			}
		case *pb.WatchRequest_CancelRequest:
			if r.CancelRequest != nil {
				st.s.feed.cancel(st, r.CancelRequest.WatchId)
			}
		case *pb.WatchRequest_ProgressRequest:
			st.s.feed.tell(st)
		}
	}
}

// create begins a watch.
func (st *watchStream) create(ctx context.Context, r *pb.WatchCreateRequest) error {
	w := &watcher{
		st: st, id: r.WatchId, key: r.Key, end: r.RangeEnd, next: r.StartRevision,
		prev: r.PrevKv, progress: r.ProgressNotify, fragment: r.Fragment,
	}
	if len(w.key) == 0 {
		w.key = []byte{0}
	}
	for _, f := range r.Filters {
		w.noPut = w.noPut || f == pb.WatchCreateRequest_NOPUT
		w.noDelete = w.noDelete || f == pb.WatchCreateRequest_NODELETE
	}
	reason := ""
	now, err := st.s.statusFor(ctx, true, auth.Use{Kind: auth.Read, Key: w.key, End: w.end})
	if isAuth(err) {
		reason = err.Error()
		now, err = st.s.status(ctx, true)
	}
	if err != nil {
		return toGRPC(ctx, err)
	}
	switch {
	case reason != "":
	case r.StartRevision < 0:
		reason = rpctypes.ErrCompacted.Error()
	case kv.Empty(w.key, w.end):
		reason = reasonEmpty
	case r.StartRevision == 0:
		w.next = now.Revision + 1
	}
	st.s.feed.add(w, now.Revision, reason)
	return nil
}

// wants says whether an event is for the watcher.
func (w *watcher) wants(e *kv.Event) bool {
	if e.Deleted && w.noDelete || !e.Deleted && w.noPut || e.KV.Mod < w.next {
		return false
	}
	return kv.Contains(w.key, w.end, e.KV.Key)
}

// send sends until the stream ends.
func (st *watchStream) send(ctx context.Context, stream grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse], ended <-chan error) error {
	tick := time.NewTicker(st.s.cfg.ProgressInterval)
	defer tick.Stop()
	for {
		queue, late := st.s.feed.take(st)
		for _, r := range queue {
			if err := st.sendOne(ctx, stream, r); err != nil {
				return err
			}
		}
		if late != nil {
			// Nobody lets it catch up any more when the server has ended.
			if st.s.ctx.Err() != nil {
				return rpctypes.ErrGRPCStopped
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			r, err := late.read(ctx)
			if r != nil {
				err = st.sendOne(ctx, stream, r)
			}
			if err != nil {
				return err
			}
			continue
		}
		if len(queue) > 0 {
			continue
		}
		select {
		case <-st.wake:
		case <-tick.C:
			st.s.feed.tellQuiet(st)
		case err := <-ended:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-st.s.ctx.Done():
			return rpctypes.ErrGRPCStopped
		}
	}
}

// sendOne sends an answer, in parts if its watch can take them.
func (st *watchStream) sendOne(ctx context.Context, stream grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse], r *pb.WatchResponse) error {
	if !r.Fragment {
		give, err := st.s.room(ctx, r)
		if err != nil {
			return err
		}
		defer give()
		return stream.Send(r)
	}
	// Fragment is the mark of an answer that may be cut, until here.
	r.Fragment = false
	if len(r.Events) < 2 || proto.Size(r) < st.s.cfg.RequestBytesMax {
		return stream.Send(r)
	}
	for events := r.Events; len(events) > 0; {
		n, size := 0, 0
		for n < len(events) {
			if size += proto.Size(events[n]) + 8; n > 0 && size >= st.s.cfg.RequestBytesMax {
				break
			}
			n++
		}
		part := &pb.WatchResponse{Header: r.Header, WatchId: r.WatchId, Events: events[:n], Fragment: n < len(events)}
		if err := stream.Send(part); err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}

// roomRetry is how often it is looked for room for an answer of roomBytes or more.
const (
	roomRetry = 20 * time.Millisecond
	roomBytes = 4 << 20
)

// room waits until there is room for the events of an answer among all large answers, if it is one that only a single revision with the versions
// before it can be: each stream makes the bytes that it sends by itself, up to kv.AnswerBytesMax. What watches have otherwise waits for nobody. give
// must be called when the answer is sent.
func (s *Server) room(ctx context.Context, r *pb.WatchResponse) (give func(), err error) {
	n := int64(0)
	for _, e := range r.Events {
		n += int64(len(e.Kv.Key) + len(e.Kv.Value))
		if e.PrevKv != nil {
			n += int64(len(e.PrevKv.Key) + len(e.PrevKv.Value))
		}
	}
	if n < roomBytes {
		return func() {}, nil
	}
	retry := time.NewTicker(roomRetry)
	defer retry.Stop()
	for s.cfg.Answers.Take(n) != nil {
		select {
		case <-retry.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-s.ctx.Done():
			return nil, rpctypes.ErrGRPCStopped
		}
	}
	return func() { s.cfg.Answers.Give(n) }, nil
}

// read reads a part of history for a lagging watch, and lets it join the feed when it has caught up. It returns what to send.
func (w *watcher) read(ctx context.Context) (*pb.WatchResponse, error) {
	f := w.st.s.feed
	from, ok := f.join(w)
	if ok {
		return nil, nil
	}
	p, err := f.history.read(ctx, from, w.prev)
	if errors.Is(err, kv.ErrCompacted) {
		now, err := w.st.s.status(ctx, true)
		if err != nil {
			return nil, toGRPC(ctx, err)
		}
		if !f.remove(w) {
			return nil, nil
		}
		return &pb.WatchResponse{
			Header: w.st.s.header(now.Revision), WatchId: w.id, Canceled: true, CompactRevision: max(now.Compacted, 1),
		}, nil
	}
	if errors.Is(err, kv.ErrAnswerTooLarge) {
		return f.refuse(w, fmt.Sprintf(reasonTooLarge, from)), nil
	}
	if err != nil {
		return nil, toGRPC(ctx, err)
	}
	var events []*mvccpb.Event
	for i := range p.Events.Events {
		if w.wants(&p.Events.Events[i]) {
			events = append(events, p.event(i))
		}
	}
	if !f.advance(w, p.Next, len(events) > 0) || len(events) == 0 {
		return nil, nil
	}
	w.st.s.m.events.Add(float64(len(events)))
	return &pb.WatchResponse{Header: w.st.s.header(p.Next - 1), WatchId: w.id, Events: events, Fragment: w.fragment}, nil
}

func toEvent(e *kv.Event, prev bool) *mvccpb.Event {
	out := &mvccpb.Event{Kv: fromKV(&e.KV)}
	if e.Deleted {
		out.Type = mvccpb.Event_DELETE
	}
	if prev && e.Prev != nil {
		out.PrevKv = fromKV(e.Prev)
	}
	return out
}
