package kv

import (
	"sync/atomic"

	"github.com/quorate/quorate/internal/errs"
)

// Budget bounds the bytes of large answers that a node has in memory at a time: each may have AnswerBytesMax, and there may be any number of
// clients. Its methods may be called from any goroutine; nil bounds nothing.
type Budget struct {
	max  int64
	used atomic.Int64
}

// ErrBusyReading refuses what would be one answer too many. Nothing was done.
var ErrBusyReading = errs.New(errs.Overloaded, "too many large answers are under way on this node; ask again, for less, or in parts")

// NewBudget returns a budget of so many bytes.
func NewBudget(bytesMax int64) *Budget { return &Budget{max: bytesMax} }

// Take takes bytes, which must be given back. It fails with ErrBusyReading, and takes none, if there are not so many.
func (b *Budget) Take(n int64) error {
	if b == nil || b.used.Add(n) <= b.max {
		return nil
	}
	b.used.Add(-n)
	return ErrBusyReading
}

// Keep takes bytes of an answer that has been let in, whether there are so many or not. They must be given back.
func (b *Budget) Keep(n int64) {
	if b != nil {
		b.used.Add(n)
	}
}

// Give gives bytes back.
func (b *Budget) Give(n int64) {
	if b != nil {
		b.used.Add(-n)
	}
}

// Scarce says whether less than a quarter is left.
func (b *Budget) Scarce() bool { return b != nil && b.used.Load() > b.max/4*3 }

// Used returns how many bytes are taken.
func (b *Budget) Used() int64 {
	if b == nil {
		return 0
	}
	return b.used.Load()
}

// LargeBytes is from where on an answer counts.
const LargeBytes = 1 << 20
