package shard

import (
	"bytes"
	"sync"
)

// Hub passes the wake-ups of applied entries to watches. One hub serves all shards of a node: etcd watches, Kafka long
// polls and blocking reads all wait here.
type Hub struct {
	mu sync.Mutex
	// keys holds the watches of single keys; spans those of ranges.
	keys  map[hubKey]map[*hubWatch]struct{}
	spans map[hubShard]map[*hubWatch]struct{}
}

type hubShard struct {
	shard  ID
	module ModuleID
}

type hubKey struct {
	hubShard
	key string
}

type hubWatch struct {
	span Span
	c    chan struct{}
}

// NewHub returns an empty hub.
func NewHub() *Hub {
	return &Hub{keys: map[hubKey]map[*hubWatch]struct{}{}, spans: map[hubShard]map[*hubWatch]struct{}{}}
}

// Watch registers a watch. See Client.Watch.
func (h *Hub) Watch(id ID, s Span) *Watch {
	w := &hubWatch{span: s, c: make(chan struct{}, 1)}
	at := hubShard{id, s.Module}
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.To == nil {
		k := hubKey{at, string(s.From)}
		if h.keys[k] == nil {
			h.keys[k] = map[*hubWatch]struct{}{}
		}
		h.keys[k][w] = struct{}{}
		return &Watch{C: w.c, Close: func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			delete(h.keys[k], w)
			if len(h.keys[k]) == 0 {
				delete(h.keys, k)
			}
		}}
	}
	if h.spans[at] == nil {
		h.spans[at] = map[*hubWatch]struct{}{}
	}
	h.spans[at][w] = struct{}{}
	return &Watch{C: w.c, Close: func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.spans[at], w)
		if len(h.spans[at]) == 0 {
			delete(h.spans, at)
		}
	}}
}

// Wake signals the watches of the given keys of a shard. It never blocks.
func (h *Hub) Wake(id ID, wakes []Wake) {
	if len(wakes) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.keys) == 0 && len(h.spans) == 0 {
		return
	}
	for _, wk := range wakes {
		at := hubShard{id, wk.Module}
		for w := range h.keys[hubKey{at, string(wk.Key)}] {
			w.signal()
		}
		for w := range h.spans[at] {
			if bytes.Compare(wk.Key, w.span.From) >= 0 && bytes.Compare(wk.Key, w.span.To) < 0 {
				w.signal()
			}
		}
	}
}

// WakeAll signals every watch of a shard: its state was replaced as a whole.
func (h *Hub) WakeAll(id ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, ws := range h.keys {
		if k.shard == id {
			for w := range ws {
				w.signal()
			}
		}
	}
	for k, ws := range h.spans {
		if k.shard == id {
			for w := range ws {
				w.signal()
			}
		}
	}
}

// Watches returns how many watches are open.
func (h *Hub) Watches() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, ws := range h.keys {
		n += len(ws)
	}
	for _, ws := range h.spans {
		n += len(ws)
	}
	return n
}

func (w *hubWatch) signal() {
	select {
	case w.c <- struct{}{}:
	default:
	}
}
