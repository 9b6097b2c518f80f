package shard

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/quorate/quorate/internal/errs"
)

func signalled(w *Watch) bool {
	select {
	case <-w.C:
		return true
	default:
		return false
	}
}

func TestHub_WakesOnlyWhatItConcerns(t *testing.T) {
	h := NewHub()
	key := h.Watch(1, Span{Module: 2, From: []byte("b")})
	span := h.Watch(1, Span{Module: 2, From: []byte("b"), To: []byte("d")})
	f := func(id ID, mod ModuleID, k string, wantKey, wantSpan bool) {
		t.Helper()
		h.Wake(id, []Wake{{Module: mod, Key: []byte(k)}})
		if gotKey, gotSpan := signalled(key), signalled(span); gotKey != wantKey || gotSpan != wantSpan {
			t.Errorf("shard %d module %d key %q: key %v span %v, want %v %v", id, mod, k, gotKey, gotSpan, wantKey, wantSpan)
		}
	}
	f(1, 2, "a", false, false)
	f(1, 2, "b", true, true)
	f(1, 2, "bb", false, true)
	f(1, 2, "d", false, false)
	f(2, 2, "b", false, false)
	f(1, 3, "b", false, false)
	h.Wake(1, nil)
	if signalled(key) || signalled(span) {
		t.Errorf("woken by nothing")
	}
}

func TestHub_SignalsMerge(t *testing.T) {
	h := NewHub()
	w := h.Watch(1, Span{Module: 2, From: []byte("k")})
	for range 100 {
		h.Wake(1, []Wake{{2, []byte("k")}, {2, []byte("k")}})
	}
	if !signalled(w) || signalled(w) {
		t.Errorf("signals were lost or kept apart")
	}
}

func TestHub_WakeAll(t *testing.T) {
	h := NewHub()
	a := h.Watch(1, Span{Module: 2, From: []byte("k")})
	b := h.Watch(1, Span{Module: 3, From: []byte("a"), To: []byte("z")})
	c := h.Watch(2, Span{Module: 2, From: []byte("k")})
	h.WakeAll(1)
	if !signalled(a) || !signalled(b) || signalled(c) {
		t.Errorf("WakeAll woke the wrong watches")
	}
}

func TestHub_CloseForgetsTheWatch(t *testing.T) {
	h := NewHub()
	var ws []*Watch
	for range 3 {
		ws = append(ws, h.Watch(1, Span{Module: 2, From: []byte("k")}), h.Watch(1, Span{Module: 2, From: []byte("a"), To: []byte("z")}))
	}
	if n := h.Watches(); n != 6 {
		t.Errorf("%d watches, want 6", n)
	}
	for _, w := range ws {
		w.Close()
		w.Close()
	}
	if n := h.Watches(); n != 0 || len(h.keys) != 0 || len(h.spans) != 0 {
		t.Errorf("%d watches left, %d keys, %d spans", n, len(h.keys), len(h.spans))
	}
	h.Wake(1, []Wake{{2, []byte("k")}})
	for _, w := range ws {
		if signalled(w) {
			t.Errorf("a closed watch was woken")
		}
	}
}

func TestHub_ManyAtOnce(t *testing.T) {
	h := NewHub()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				w := h.Watch(1, Span{Module: 2, From: []byte("k")})
				h.Wake(1, []Wake{{2, []byte("k")}})
				<-w.C
				w.Close()
			}
		})
	}
	wg.Wait()
	if h.Watches() != 0 {
		t.Errorf("%d watches left", h.Watches())
	}
}

func TestFuture_WaitGivesUpWithAnUnknownOutcome(t *testing.T) {
	f := NewFuture()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := f.Wait(ctx); !errs.Is(r.Err, errs.OutcomeUnknown) || strings.Contains(r.Err.Error(), "context") || !strings.Contains(r.Err.Error(), "look before") {
		t.Errorf("got %v", r.Err)
	}
	f.Complete(Result{Revision: 3})
	if r := f.Wait(ctx); r.Err != nil || r.Revision != 3 {
		t.Errorf("an answer that is there is not returned: %+v", r)
	}
	select {
	case <-f.Done():
	default:
		t.Errorf("Done is open")
	}
	if r := Failed(errs.New(errs.Overloaded, "full")).Wait(t.Context()); !errs.Is(r.Err, errs.Overloaded) {
		t.Errorf("got %v", r.Err)
	}
}

func TestFuture_WaitIsWokenByTheAnswer(t *testing.T) {
	f := NewFuture()
	got := make(chan Result)
	go func() { got <- f.Wait(context.Background()) }()
	f.Complete(Result{Revision: 9})
	if r := <-got; r.Revision != 9 {
		t.Errorf("got %+v", r)
	}
}
