package conns

import (
	"net/http"
	"sync"
)

// Handlers waits for the handlers of an http.Server, which that does not when it is closed: what they use must not end before them. The zero value
// is ready for use.
type Handlers struct {
	// wg counts those that run. It is added to under mu and only while closed is false.
	wg sync.WaitGroup
	// mu guards closed.
	mu     sync.Mutex
	closed bool
}

// Counted returns next as one of those that Wait waits for.
func (h *Handlers) Counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !h.enter() {
			http.Error(w, "this node is stopping; use another one", http.StatusServiceUnavailable)
			return
		}
		defer h.wg.Done()
		next.ServeHTTP(w, r)
	})
}

func (h *Handlers) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.wg.Add(1)
	return true
}

// Wait waits until all handlers have returned, and lets no more begin. Those that wait for their clients end when the http.Server is closed.
func (h *Handlers) Wait() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.wg.Wait()
}
