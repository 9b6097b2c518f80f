package conns

import (
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/quorate/quorate/internal/errs"
)

func TestBudget_WhatEachHasOfItsOwnDoesNotCount(t *testing.T) {
	b := NewBudget(100)
	h1, h2 := b.Holder(), b.Holder()
	if !h1.Hold(heldFree+100) || b.Used() != 100 || h2.Hold(heldFree+1) || h2.Held() != 0 || !h2.Hold(heldFree) || h2.Hold(1) {
		t.Errorf("%d and %d are held, %d used", h1.Held(), h2.Held(), b.Used())
	}
	h1.Give(1)
	if !h2.Hold(1) || h1.Hold(1) || b.Used() != 100 {
		t.Errorf("%d and %d are held, %d used", h1.Held(), h2.Held(), b.Used())
	}
}

// However holders change at a time, what they hold in the end is what is counted.
func TestBudget_CountsRight(t *testing.T) {
	b := NewBudget(10 * heldFree)
	var wg sync.WaitGroup
	for seed := range uint64(4) {
		h := b.Holder()
		for part := range uint64(2) {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, part))
				mine := 0
				for range 10_000 {
					if n := rnd.IntN(4 * heldFree); rnd.IntN(2) == 0 {
						if h.Hold(n) {
							mine += n
						}
					} else {
						n = min(n, mine)
						h.Give(n)
						mine -= n
					}
				}
				h.Give(mine)
			})
		}
	}
	wg.Wait()
	if used := b.Used(); used != 0 {
		t.Errorf("%d bytes are used in the end", used)
	}
	var none *Budget
	if !none.Holder().Hold(math.MaxInt32) {
		t.Error("no budget bounds something")
	}
}

// Who reads a body may do so when nobody wants it any more. Nothing of that counts.
func TestBody_CountsUntilGiven(t *testing.T) {
	b := NewBudget(100)
	r := b.Body(io.NopCloser(strings.NewReader(strings.Repeat("x", 2*heldFree))))
	if n, err := io.ReadFull(r, make([]byte, heldFree+100)); err != nil || b.Used() != 100 {
		t.Fatalf("%d bytes, %v, %d used", n, err, b.Used())
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errs.Is(err, errs.Overloaded) || b.Used() != 100 {
		t.Errorf("more than there is: %d bytes, %v, %d used", n, err, b.Used())
	}
	r.Give()
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil || b.Used() != 0 || r.holder.Held() != 0 {
		t.Errorf("afterwards: %d bytes, %v, %d used, %d held", n, err, b.Used(), r.holder.Held())
	}
}
