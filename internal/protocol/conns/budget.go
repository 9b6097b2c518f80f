package conns

import (
	"io"
	"math"
	"sync"
	"sync/atomic"

	"github.com/quorate/quorate/internal/errs"
)

// Budget bounds the bytes that the connections of a node hold together of requests that are not complete, or wait. What one holds up to heldFree does
// not count, so that small requests go on while others have used it up. Its methods may be called from any goroutine. A nil one bounds nothing.
type Budget struct {
	max  int64
	used atomic.Int64
}

// heldFree is what each holder has of its own.
const heldFree = 64 << 10

// NewBudget returns a budget of so many bytes.
func NewBudget(bytesMax int64) *Budget { return &Budget{max: bytesMax} }

// Max returns the bound.
func (b *Budget) Max() int64 {
	if b == nil {
		return math.MaxInt64
	}
	return b.max
}

// Used returns how much of it is used.
func (b *Budget) Used() int64 { return b.used.Load() }

// change notes that a holder has so much, and had so much before. It reports false if that is more than there is, and it has to be taken back.
func (b *Budget) change(before, now int64) bool {
	if b == nil {
		return true
	}
	more := max(0, now-heldFree) - max(0, before-heldFree)
	return more == 0 || b.used.Add(more) <= b.max || more < 0
}

// Holder is a connection that holds bytes of a budget, or another that does. Its methods may be called from any goroutine.
type Holder struct {
	budget *Budget
	held   atomic.Int64
}

// Holder returns one that holds nothing yet.
func (b *Budget) Holder() *Holder { return &Holder{budget: b} }

// Held returns how much is held.
func (h *Holder) Held() int64 { return h.held.Load() }

// Hold counts n bytes more. It reports false, and counts nothing, if there is no room for them.
func (h *Holder) Hold(n int) bool {
	now := h.held.Add(int64(n))
	if h.budget.change(now-int64(n), now) {
		return true
	}
	h.Give(n)
	return false
}

// Give counts n bytes less.
func (h *Holder) Give(n int) {
	now := h.held.Add(-int64(n))
	h.budget.change(now+int64(n), now)
}

// Body is the body of an HTTP request, which is in memory whole when it has been read. Whoever reads it may go on after Give.
type Body struct {
	io.ReadCloser
	holder *Holder
	// mu guards what follows: what has been counted, and whether nobody wants it any more.
	mu    sync.Mutex
	n     int
	given bool
}

// Body returns one whose bytes count until Give.
func (b *Budget) Body(r io.ReadCloser) *Body { return &Body{ReadCloser: r, holder: b.Holder()} }

// Read implements io.Reader. It fails when there is no room for what it has read.
func (b *Body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.given:
		return 0, io.ErrClosedPipe
	case !b.holder.Hold(n):
		return 0, errs.New(errs.Overloaded, "more than %d bytes of requests wait on this node; try again later, use smaller requests, or another node", b.holder.budget.Max())
	}
	b.n += n
	return n, err
}

// Give gives back what was counted.
func (b *Body) Give() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holder.Give(b.n)
	b.n, b.given = 0, true
}
