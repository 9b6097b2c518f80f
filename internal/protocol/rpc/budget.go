package rpc

import (
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Budget bounds the bytes that the connections of a node hold together of requests: of messages that are not complete or that no handler has taken,
// and of calls that are open. What a connection holds up to heldFree does not count, so that small requests go on while others have used it up. Its
// methods may be called from any goroutine. A nil one bounds nothing.
type Budget struct {
	max  int64
	used atomic.Int64
}

// heldFree is what each connection, or each request of HTTP, has of its own.
const heldFree = 64 << 10

// NewBudget returns a budget of so many bytes.
func NewBudget(bytesMax int64) *Budget { return &Budget{max: bytesMax} }

// Used returns how much is held.
func (b *Budget) Used() int64 { return b.used.Load() }

// change notes that a holder has so much, and had so much before. It reports false if that is more than there is, and it has to be taken back.
func (b *Budget) change(before, now int64) bool {
	if b == nil {
		return true
	}
	more := max(0, now-heldFree) - max(0, before-heldFree)
	if more == 0 {
		return true
	}
	return b.used.Add(more) <= b.max || more < 0
}

func (b *Budget) refusal() error {
	return status.Errorf(codes.ResourceExhausted, "more than %d bytes of requests wait on this node; try again later, use smaller requests, or another node", b.max)
}

// Holder is one that holds bytes of a budget. Its methods may be called from any goroutine.
type Holder struct {
	budget *Budget
	held   atomic.Int64
}

// Holder returns one that holds nothing yet.
func (b *Budget) Holder() *Holder { return &Holder{budget: b} }

// Hold counts n bytes more. It fails with codes.ResourceExhausted, and counts nothing, if there is no room for them.
func (h *Holder) Hold(n int) error {
	now := h.held.Add(int64(n))
	if h.budget.change(now-int64(n), now) {
		return nil
	}
	h.Give(n)
	return h.budget.refusal()
}

// Give counts n bytes less.
func (h *Holder) Give(n int) {
	now := h.held.Add(-int64(n))
	h.budget.change(now+int64(n), now)
}

// hold counts what of a connection's requests waits for a handler. It fails if that is too much, of the connection or of all.
func (c *conn) hold(n int) error {
	if err := c.held.Hold(n); err != nil {
		return err
	}
	if most := c.s.held; c.held.held.Load() > most {
		c.held.Give(n)
		return status.Errorf(codes.ResourceExhausted, "more than %d bytes of this connection's requests wait; use fewer at a time, or more connections", most)
	}
	return nil
}
