package coord

import (
	"testing"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

func TestTokens_OnlyWhatOnceWasTrue(t *testing.T) {
	s := shardtest.New(t, shardtest.Options{RealTime: true}, kv.Module{})
	c := New(s, Home(s, "default"))
	lock := []byte("l")
	first, err := c.Lock(within(t), lock, grant(t, c, 60))
	if err != nil {
		t.Fatal(err)
	}
	x := NewTokens(c)
	if err := x.Check(within(t), lock, first.Token+1000); !errs.Is(err, errs.Fenced) {
		t.Errorf("a token that nobody has: %v", err)
	}
	if err := x.Check(within(t), lock, first.Token); err != nil {
		t.Error(err)
	}
	if _, err := c.Unlock(within(t), first.Key); err != nil {
		t.Fatal(err)
	}
	second, err := c.Lock(within(t), lock, grant(t, c, 60))
	if err != nil {
		t.Fatal(err)
	}
	// What was true is not asked about again; others may not know it.
	if err := x.Check(within(t), lock, first.Token); err != nil {
		t.Error(err)
	}
	if err := NewTokens(c).Check(within(t), lock, first.Token); !errs.Is(err, errs.Fenced) {
		t.Errorf("a stale token: %v", err)
	}
	s.Refuse(errs.New(errs.Unavailable, "told to refuse"))
	if err := x.Check(within(t), lock, first.Token); err != nil {
		t.Error(err)
	}
	if err := x.Check(within(t), lock, second.Token); !errs.Is(err, errs.Unavailable) {
		t.Errorf("nobody to ask: %v", err)
	}
	s.Refuse(nil)
	if err := x.Check(within(t), lock, second.Token); err != nil {
		t.Error(err)
	}
	s.Refuse(errs.New(errs.Unavailable, "told to refuse"))
	if err := x.Check(within(t), lock, first.Token); !errs.Is(err, errs.Fenced) {
		t.Errorf("one that is known to be stale: %v", err)
	}
	s.Refuse(nil)
	s.SetTopology(func(t *shard.Topology) { t.Spaces = nil })
	if err := x.Check(within(t), lock, second.Token+1); !errs.Is(err, errs.Unavailable) {
		t.Errorf("no space: %v", err)
	}
}
