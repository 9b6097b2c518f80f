package etcd

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/quorate/quorate/internal/kv"
)

// history reads parts of the past for watches that are behind. Many of them are at about the same place, since what made one late made others:
// the last few parts are kept, and one reading serves all who want any of it.
type history struct {
	s *Server

	mu sync.Mutex
	// parts are in the order of their last use, the newest last. They are few.
	parts []*part
}

// partsMax and partsBytesMax bound the parts that are kept. They have about catchUpBytes each, but one of a single revision may have a thousand
// times that: the last one is kept however large it is, since those who want it come together.
const partsMax, partsBytesMax = 8, 16 << 20

// part is a stretch of history. All but ready is set before that is closed.
type part struct {
	from  int64
	prev  bool
	ready chan struct{}
	err   error
	bytes int
	kv.Events
	// made are the events as clients get them, as far as anybody wanted them.
	made []atomic.Pointer[mvccpb.Event]
}

// read returns a part that has the events from a revision on, perhaps with some before. It fails with kv.ErrCompacted.
func (h *history) read(ctx context.Context, from int64, prev bool) (*part, error) {
	now, err := h.s.status(ctx, true)
	if err != nil {
		return nil, err
	}
	if from < now.Compacted {
		// What is kept here may be from before.
		return nil, kv.ErrCompacted
	}
	h.mu.Lock()
	p, found := h.findLocked(from, prev)
	if !found {
		p = &part{from: from, prev: prev, ready: make(chan struct{})}
		h.parts = append(h.parts[max(0, len(h.parts)-partsMax+1):], p)
	}
	h.mu.Unlock()
	if !found {
		h.load(ctx, p)
	}
	select {
	case <-p.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if p.err != nil && found {
		// It may be the end of the one who loaded it.
		p = &part{from: from, prev: prev, ready: make(chan struct{})}
		h.load(ctx, p)
	}
	return p, p.err
}

// findLocked returns a part that begins at a revision, or has it.
func (h *history) findLocked(from int64, prev bool) (*part, bool) {
	for i, p := range h.parts {
		has := p.from == from
		select {
		case <-p.ready:
			has = p.from <= from && from < p.Next
		default:
		}
		if has && p.prev == prev {
			h.parts = append(slices.Delete(h.parts, i, i+1), p)
			return p, true
		}
	}
	return nil, false
}

// load reads a part, and takes it out again if there is nothing in it.
func (h *history) load(ctx context.Context, p *part) {
	defer close(p.ready)
	b, err := h.s.ask(ctx, kv.EncodeEvents(p.from, catchUpBytes, p.prev), true)
	if err == nil {
		p.Events, err = kv.DecodeEvents(b)
	}
	p.made = make([]atomic.Pointer[mvccpb.Event], len(p.Events.Events))
	p.err = err
	h.mu.Lock()
	defer h.mu.Unlock()
	// Under the lock, since bytes may be asked for before the part is ready.
	if p.bytes = len(b); err == nil && len(p.made) > 0 {
		all := 0
		for _, q := range h.parts {
			all += q.bytes
		}
		for len(h.parts) > 1 && all > partsBytesMax {
			all -= h.parts[0].bytes
			h.parts = slices.Delete(h.parts, 0, 1)
		}
		return
	}
	h.parts = slices.DeleteFunc(h.parts, func(q *part) bool { return q == p })
}

// event returns an event as clients get it. It must not be changed.
func (p *part) event(i int) *mvccpb.Event {
	if e := p.made[i].Load(); e != nil {
		return e
	}
	// Who comes at the same time makes the same.
	e := toEvent(&p.Events.Events[i], p.prev)
	p.made[i].Store(e)
	return e
}

// drop forgets everything.
func (h *history) drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.parts = nil
}
