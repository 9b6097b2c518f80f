package etcd

import (
	"context"
	"errors"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
)

// feed reads the changes of the key space once and hands them to all watches that are up to date. It never waits for one: a
// watch whose stream has no room reads on by itself, from history, and comes back when it has caught up. While nobody watches it
// sleeps: every look at the key space makes the next write copy what was looked at.
type feed struct {
	s *Server
	// history is for the watches that lag.
	history *history
	// awake says that somebody came to read for, or that the last one left.
	awake chan struct{}

	mu sync.Mutex
	// next is the first revision that was not handed out; 0 while that is not known. Guarded by mu, as all below.
	next int64
	// told is the newest revision that any client heard of here.
	told int64
	// keys are the watches of one key, ranges all others.
	keys   map[string]map[*watcher]struct{}
	ranges map[*watcher]struct{}
	// prevs counts those that want previous versions; watchers counts all, also those that lag.
	prevs, watchers int
	// asking are the streams that asked how far all is while that was not known, or less than they know.
	asking map[*watchStream]struct{}
}

// feedBytes is how much of the changes is read at a time.
const feedBytes = 1 << 20

// feedRetry is how long the feed waits when this node cannot be read.
const feedRetry = 100 * time.Millisecond

func newFeed(s *Server) *feed {
	return &feed{
		s: s, history: &history{s: s}, awake: make(chan struct{}, 1), keys: map[string]map[*watcher]struct{}{}, ranges: map[*watcher]struct{}{}, asking: map[*watchStream]struct{}{},
	}
}

// run follows the key space, while somebody watches, until the server ends.
func (f *feed) run() {
	ctx := f.s.ctx
	var w *shard.Watch
	defer func() {
		if w != nil {
			w.Close()
		}
	}()
	for ctx.Err() == nil {
		if f.sleeps() {
			select {
			case <-f.awake:
			case <-ctx.Done():
			}
			continue
		}
		err := error(errs.New(errs.Unavailable, "no key space yet"))
		if at, _, werr := f.s.where(); werr == nil {
			if w == nil {
				w = f.s.client.Watch(routeOf(at), kv.Span())
			}
			err = f.step(ctx)
		}
		if err != nil {
			// The replica is being rebuilt, or not yet there.
			select {
			case <-time.After(feedRetry):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case <-w.C:
		case <-f.awake:
		case <-ctx.Done():
		}
	}
}

// sleeps says whether there is nobody to read for. What is new is not known from then on.
func (f *feed) sleeps() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.watchers > 0 || len(f.asking) > 0 {
		return false
	}
	f.told = f.revLocked()
	f.next = 0
	f.history.drop()
	return true
}

// revLocked is the newest revision that is known here; none that clients are told is before one that they were told.
func (f *feed) revLocked() int64 { return max(f.told, f.next-1) }

func (f *feed) wakeLocked() {
	select {
	case f.awake <- struct{}{}:
	default:
	}
}

// step hands out everything that there is.
func (f *feed) step(ctx context.Context) error {
	for {
		f.mu.Lock()
		next, idle, prev := f.next, len(f.keys)+len(f.ranges) == 0, f.prevs > 0
		f.mu.Unlock()
		if next == 0 || idle {
			now, err := f.s.status(ctx, true)
			if err != nil {
				return err
			}
			f.mu.Lock()
			// A watch that came meanwhile must miss nothing.
			still := f.next == 0 || len(f.keys)+len(f.ranges) == 0
			if still {
				f.next = now.Revision + 1
				if len(f.asking) > 0 {
					f.wakeLocked()
				}
				f.answerAskingLocked()
			}
			f.mu.Unlock()
			if still {
				return nil
			}
			continue
		}
		b, err := f.s.ask(ctx, kv.EncodeEvents(next, feedBytes, prev), true)
		if prev && errors.Is(err, kv.ErrAnswerTooLarge) {
			// A small request may delete a lot. Those who want what there was before read by themselves; nobody else waits for them.
			prev = false
			b, err = f.s.ask(ctx, kv.EncodeEvents(next, feedBytes, prev), true)
		}
		if errors.Is(err, kv.ErrCompacted) {
			// This node got a snapshot that begins later. The watches find out what they missed from history.
			now, err := f.s.status(ctx, true)
			if err != nil {
				return err
			}
			f.scatter(now.Revision + 1)
			continue
		}
		if err != nil {
			return err
		}
		e, err := kv.DecodeEvents(b)
		if err != nil {
			return err
		}
		if len(e.Events) == 0 {
			return nil
		}
		f.handOut(&e, prev)
	}
}

// scatter makes all watches read history.
func (f *feed) scatter(next int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*watcher
	for _, ws := range f.keys {
		for w := range ws {
			all = append(all, w)
		}
	}
	for w := range f.ranges {
		all = append(all, w)
	}
	for _, w := range all {
		w.next = max(w.next, f.next)
		f.lagLocked(w)
	}
	f.next = next
}

// handOut gives events to those who want them.
func (f *feed) handOut(e *kv.Events, prev bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var touched, again []*watcher
	for i := range e.Events {
		ev := &e.Events[i]
		// Most watches do not want the version before, and share one event.
		var plain, whole *mvccpb.Event
		give := func(w *watcher) {
			if !w.wants(ev) {
				return
			}
			if w.prev && !prev {
				// It came after the events were read, without what it wants of them.
				w.next = ev.KV.Mod
				again = append(again, w)
				return
			}
			p := &plain
			if w.prev {
				p = &whole
			}
			if *p == nil {
				*p = toEvent(ev, w.prev)
			}
			if len(w.batch) == 0 {
				touched = append(touched, w)
			}
			w.batch = append(w.batch, *p)
		}
		for w := range f.keys[string(ev.KV.Key)] {
			give(w)
		}
		for w := range f.ranges {
			give(w)
		}
		for _, w := range again {
			f.lagLocked(w)
		}
		again = again[:0]
	}
	var h *pb.ResponseHeader
	for _, w := range touched {
		if h == nil {
			h = f.s.header(e.Next - 1)
		}
		f.offerLocked(w, h)
	}
	f.next = e.Next
	f.answerAskingLocked()
}

// offerLocked puts a watch's batch into its stream's queue, or makes it lag if there is no room.
func (f *feed) offerLocked(w *watcher, h *pb.ResponseHeader) {
	events := w.batch
	w.batch = nil
	size := 0
	for _, e := range events {
		size += 64 + len(e.Kv.Key) + len(e.Kv.Value)
		if e.PrevKv != nil {
			size += len(e.PrevKv.Value)
		}
	}
	st := w.st
	if st.bytes > 0 && st.bytes+size > f.s.cfg.StreamBytesMax {
		w.next = max(w.next, events[0].Kv.ModRevision)
		f.lagLocked(w)
		return
	}
	st.bytes += size
	w.quiet = false
	f.s.m.events.Add(float64(len(events)))
	st.pushLocked(&pb.WatchResponse{Header: h, WatchId: w.id, Events: events, Fragment: w.fragment})
}

func (st *watchStream) pushLocked(r *pb.WatchResponse) {
	st.queue = append(st.queue, r)
	st.signal()
}

func (st *watchStream) signal() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// lagLocked takes a watch from the feed and lets it read history.
func (f *feed) lagLocked(w *watcher) {
	f.leaveLocked(w)
	f.readLocked(w)
}

// readLocked lets a watch that is nowhere read history.
func (f *feed) readLocked(w *watcher) {
	w.lagging = true
	w.st.lagging[w] = struct{}{}
	f.s.m.lagging.Inc()
	w.st.signal()
}

// leaveLocked takes a watch from wherever it is.
func (f *feed) leaveLocked(w *watcher) {
	if w.lagging {
		w.lagging = false
		delete(w.st.lagging, w)
		f.s.m.lagging.Dec()
		return
	}
	if len(w.end) > 0 {
		delete(f.ranges, w)
	} else if ws := f.keys[string(w.key)]; ws != nil {
		delete(ws, w)
		if len(ws) == 0 {
			delete(f.keys, string(w.key))
		}
	}
	if w.prev {
		f.prevs--
	}
}

// add begins a watch and says so, at a revision; or says why not.
func (f *feed) add(w *watcher, rev int64, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := w.st
	if st.dropped {
		return
	}
	if reason == "" && f.watchers >= f.s.cfg.WatchersMax {
		reason = reasonTooMany
	}
	if reason == "" {
		if w.id == 0 {
			for st.watchers[st.nextID] != nil {
				st.nextID++
			}
			w.id = st.nextID
			st.nextID++
		} else if st.watchers[w.id] != nil {
			reason = reasonDuplicate
		}
	}
	r := &pb.WatchResponse{Header: f.s.header(rev), WatchId: w.id, Created: true}
	if reason != "" {
		r.WatchId, r.Canceled, r.CancelReason = noWatch, true, reason
	} else {
		st.watchers[w.id] = w
		f.told = max(f.told, rev)
		f.watchers++
		f.wakeLocked()
		f.s.m.watchers.Inc()
		w.quiet = true
		f.readLocked(w)
	}
	st.pushLocked(r)
}

// cancel ends a watch because its client wants it.
func (f *feed) cancel(st *watchStream, id int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := st.watchers[id]
	if w == nil {
		return
	}
	f.removeLocked(w)
	st.pushLocked(&pb.WatchResponse{Header: f.s.header(f.revLocked()), WatchId: id, Canceled: true})
	f.answerLocked(st)
}

func (f *feed) removeLocked(w *watcher) {
	f.leaveLocked(w)
	delete(w.st.watchers, w.id)
	w.gone = true
	f.watchers--
	if f.watchers == 0 {
		f.wakeLocked()
	}
	f.s.m.watchers.Dec()
}

// remove ends a watch whose history is gone. It reports false if its client did that meanwhile.
func (f *feed) remove(w *watcher) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.endLocked(w)
}

// refuse ends a watch and returns what its client is told, nil if the client has ended it meanwhile.
func (f *feed) refuse(w *watcher, reason string) *pb.WatchResponse {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.endLocked(w) {
		return nil
	}
	return &pb.WatchResponse{Header: f.s.header(f.revLocked()), WatchId: w.id, Canceled: true, CancelReason: reason}
}

func (f *feed) endLocked(w *watcher) bool {
	if w.gone {
		return false
	}
	f.removeLocked(w)
	f.answerLocked(w.st)
	return true
}

// drop ends a stream.
func (f *feed) drop(st *watchStream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range st.watchers {
		f.removeLocked(w)
	}
	st.queue, st.dropped = nil, true
	delete(f.asking, st)
}

// full says whether as much waits for a stream as may.
func (f *feed) full(st *watchStream) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(st.queue) >= answersMax
}

// take returns what a stream has to send, and one of its watches that lag.
func (f *feed) take(st *watchStream) (queue []*pb.WatchResponse, late *watcher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	queue, st.queue, st.bytes = st.queue, nil, 0
	select {
	case st.taken <- struct{}{}:
	default:
	}
	for w := range st.lagging {
		return queue, w
	}
	return queue, nil
}

// join lets a watch that has caught up be with the feed. If it has not, it says from where to read on.
func (f *feed) join(w *watcher) (from int64, done bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !w.lagging || f.next == 0 || w.next < f.next {
		return w.next, !w.lagging
	}
	f.leaveLocked(w)
	if len(w.end) > 0 {
		f.ranges[w] = struct{}{}
	} else {
		k := string(w.key)
		if f.keys[k] == nil {
			f.keys[k] = map[*watcher]struct{}{}
		}
		f.keys[k][w] = struct{}{}
	}
	if w.prev {
		f.prevs++
	}
	f.answerLocked(w.st)
	return 0, true
}

// advance notes how far a lagging watch has read. It reports false if the watch is gone meanwhile.
func (f *feed) advance(w *watcher, next int64, some bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.next = max(w.next, next)
	if some {
		w.quiet = false
		f.told = max(f.told, next-1)
	}
	return !w.gone
}

// tell answers how far all watches of a stream are, now or when none lags.
func (f *feed) tell(st *watchStream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if st.dropped {
		return
	}
	st.asked = true
	if f.answerLocked(st); f.next == 0 {
		f.wakeLocked()
	}
}

// answerLocked tells a stream that asked how far all its watches are, if they are equally far. It comes behind their events. A watch may be
// ahead of this node: it began on another one, which has applied more. It is not told less than it knows.
func (f *feed) answerLocked(st *watchStream) {
	if !st.asked {
		return
	}
	delete(f.asking, st)
	if len(st.lagging) > 0 {
		// The last of them to join is followed by the answer.
		return
	}
	ahead := f.next == 0
	for _, w := range st.watchers {
		ahead = ahead || w.next > f.next
	}
	if ahead {
		f.asking[st] = struct{}{}
		return
	}
	st.asked = false
	st.pushLocked(&pb.WatchResponse{Header: f.s.header(f.next - 1), WatchId: noWatch})
}

func (f *feed) answerAskingLocked() {
	for st := range f.asking {
		f.answerLocked(st)
	}
}

// tellQuiet tells the watches that want it, and had nothing for a while, how far they are.
func (f *feed) tellQuiet(st *watchStream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range st.watchers {
		if w.progress && w.quiet && !w.lagging && w.next <= f.next {
			st.pushLocked(&pb.WatchResponse{Header: f.s.header(f.next - 1), WatchId: w.id})
		}
		w.quiet = true
	}
}
