package kv

import (
	"errors"
	"testing"

	"github.com/quorate/quorate/internal/shardtest"
)

func TestBudget_BoundsQueriesAndNotCommands(t *testing.T) {
	x := newTester(t)
	budget := NewBudget(4 << 20)
	x.Client = shardtest.New(t, shardtest.Options{}, Module{Answers: budget})
	value := make([]byte, 1<<20)
	for _, k := range []string{"a", "b", "c", "d", "e", "f"} {
		x.must(&Put{Key: []byte(k), Value: value})
	}
	all := &Range{Key: []byte{0}, End: []byte{0}}
	if _, err := x.do(all); !errors.Is(err, ErrBusyReading) {
		t.Errorf("more than there is: %v", err)
	}
	if n := budget.Used(); n != 0 {
		t.Errorf("%d bytes are still taken", n)
	}
	x.must(&Range{Key: []byte{0}, End: []byte{0}, Limit: 3})
	x.must(&Range{Key: []byte{0}, End: []byte{0}, CountOnly: true})
	// All replicas must do the same, whatever their clients read meanwhile.
	x.must(&Txn{Then: []Op{&Put{Key: []byte("z")}, all}})
	if n := budget.Used(); n != 0 {
		t.Errorf("%d bytes are still taken", n)
	}
}

// Values may be as long as an answer. Each counts with all it has.
func TestBudget_CountsLongValues(t *testing.T) {
	x := newTester(t)
	budget := NewBudget(12 << 20)
	x.Client = shardtest.New(t, shardtest.Options{}, Module{Answers: budget})
	value := make([]byte, 5<<20)
	for _, k := range []string{"a", "b", "c"} {
		x.must(&Put{Key: []byte(k), Value: value})
	}
	if _, err := x.do(&Range{Key: []byte{0}, End: []byte{0}}); !errors.Is(err, ErrBusyReading) {
		t.Errorf("more than there is: %v", err)
	}
	x.must(&Range{Key: []byte{0}, End: []byte{0}, Limit: 2})
	if n := budget.Used(); n != 0 {
		t.Errorf("%d bytes are still taken", n)
	}
}
