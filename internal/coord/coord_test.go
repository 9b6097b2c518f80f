package coord

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

func newClient(t *testing.T) *Client {
	t.Helper()
	s := shardtest.New(t, shardtest.Options{RealTime: true}, kv.Module{})
	return New(s, func() (shard.Route, error) { return shard.Route{Shard: 1}, nil })
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func grant(t *testing.T, c *Client, ttl int64) int64 {
	t.Helper()
	id, err := c.Grant(within(t), ttl)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestLock_OneHolderAndRisingTokens(t *testing.T) {
	c := newClient(t)
	ctx := within(t)
	name := []byte("lock")
	var inside atomic.Int32
	var last atomic.Int64
	done := make(chan error, 8)
	for range cap(done) {
		lease := grant(t, c, 60)
		go func() {
			for range 5 {
				cl, err := c.Lock(ctx, name, lease)
				if err != nil {
					done <- err
					return
				}
				if inside.Add(1) != 1 || last.Swap(cl.Token) >= cl.Token {
					done <- errors.New("two hold the lock, or a token did not rise")
				}
				inside.Add(-1)
				if _, err := c.Unlock(ctx, cl.Key); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func TestLock_TwiceWithOneLeaseIsOnce(t *testing.T) {
	c := newClient(t)
	lease := grant(t, c, 60)
	a, err := c.Lock(within(t), []byte("l"), lease)
	put(t, c, "something else", 0)
	b, err2 := c.Lock(within(t), []byte("l"), lease)
	if err != nil || err2 != nil || string(a.Key) != string(b.Key) || a.Token != b.Token || b.Revision != a.Revision+1 {
		t.Errorf("%+v %v, then %+v %v", a, err, b, err2)
	}
	// Nor does it change the value of a key that an election has.
	if a, err = c.Campaign(within(t), []byte("e"), lease, []byte("v")); err != nil {
		t.Fatal(err)
	}
	if b, err = c.Lock(within(t), []byte("e"), lease); err != nil || b.Token != a.Token {
		t.Errorf("lock of a name that the lease leads: %+v %v, want token %d", b, err, a.Token)
	}
	if l, _, err := c.Leader(within(t), []byte("e")); err != nil || string(l.Value) != "v" {
		t.Errorf("leader after that: %+v %v", l, err)
	}
	if cl, err := c.Lock(within(t), []byte("other"), 0); err != nil || cl.Lease == 0 {
		t.Errorf("without a lease: %+v %v", cl, err)
	}
}

// unsure is a cluster that does what it is asked, and does not say so of transactions.
type unsure struct{ shard.Client }

func (u unsure) Submit(ctx context.Context, r shard.Route, c shard.Command) *shard.Future {
	f := u.Client.Submit(ctx, r, c)
	if txn := kv.EncodeOp(&kv.Txn{}); bytes.HasPrefix(c.Data, txn[:3]) {
		f.Wait(ctx)
		f = shard.NewFuture()
		f.Complete(shard.Result{Err: errs.New(errs.OutcomeUnknown, "told to say so")})
	}
	return f
}

// etcd's own client locks with the same key, whoever chose the lease's id: it would wait for itself otherwise.
func TestLock_KeyOfALeaseWithANegativeID(t *testing.T) {
	c := newClient(t)
	for id, want := range map[int64]string{-1: "l/-1", -255: "l/-ff", 255: "l/ff"} {
		if _, err := c.submit(within(t), kv.EncodeGrant(id, 60)); err != nil {
			t.Fatal(err)
		}
		cl, err := c.Lock(within(t), []byte("l"), id)
		if err != nil || string(cl.Key) != want {
			t.Errorf("lease %d: %+v %v, want key %s", id, cl, err, want)
		}
		if _, err := c.Resign(within(t), cl); err != nil {
			t.Error(err)
		}
	}
}

// Nobody knows of the key of a call without a lease that does not know how its write ended: it would keep others out until its lease ends.
func TestLock_UnknownWhetherItEnteredLeavesNothing(t *testing.T) {
	c := newClient(t)
	lost := New(unsure{c.shard}, c.route)
	for name, call := range map[string]func() (Claim, error){
		"Lock":    func() (Claim, error) { return lost.Lock(within(t), []byte("l"), 0) },
		"Acquire": func() (Claim, error) { return lost.Acquire(within(t), []byte("l"), 0, 1) },
	} {
		if cl, err := call(); !errs.Is(err, errs.OutcomeUnknown) {
			t.Fatalf("%s: %+v %v, want an unknown outcome", name, cl, err)
		}
		if n := count(t, c, "l"); n != 0 {
			t.Errorf("%s left %d keys", name, n)
		}
	}
	// One with a lease goes on with the key that it may have made, or loses it with the lease.
	lease := grant(t, c, 60)
	if _, err := lost.Lock(within(t), []byte("l"), lease); !errs.Is(err, errs.OutcomeUnknown) {
		t.Fatal(err)
	}
	if cl, err := c.Lock(within(t), []byte("l"), lease); err != nil || cl.made {
		t.Errorf("again: %+v %v", cl, err)
	}
}

func TestLock_GoesOnWhenALeaseEnds(t *testing.T) {
	c := newClient(t)
	first, err := c.Lock(within(t), []byte("l"), grant(t, c, kv.LeaseTTLMin))
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.Lock(within(t), []byte("l"), grant(t, c, 60))
	if err != nil || second.Token <= first.Token {
		t.Fatalf("%+v %v", second, err)
	}
	// What the first one writes under its token is refused now.
	if _, err := c.Proclaim(within(t), first, []byte("late")); !errors.Is(err, ErrNotLeader) {
		t.Errorf("stale holder: %v", err)
	}
}

func TestLock_LeaseEndsWhileWaiting(t *testing.T) {
	c := newClient(t)
	holder, err := c.Lock(within(t), []byte("l"), grant(t, c, 60))
	if err != nil {
		t.Fatal(err)
	}
	short := grant(t, c, kv.LeaseTTLMin)
	got := make(chan error, 1)
	go func() {
		_, err := c.Lock(within(t), []byte("l"), short)
		got <- err
	}()
	// The waiting key goes with its lease; then the holder lets go.
	from, to := prefixOf([]byte("l"))
	var waiting kv.KeyValue
	for waiting.Lease != short {
		a, err := c.Do(within(t), &kv.Range{Key: from, End: to, Target: kv.ByCreate, Order: kv.Descending})
		if err != nil {
			t.Fatal(err)
		}
		waiting = a.KVs[0]
	}
	if err := c.WaitGone(within(t), waiting.Key, waiting.Create); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Unlock(within(t), holder.Key); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, ErrLeaseOver) {
		t.Errorf("got %v", err)
	}
}

func TestCampaign_ThatGivesUpLeavesNothing(t *testing.T) {
	c := newClient(t)
	if _, err := c.Campaign(within(t), []byte("e"), grant(t, c, 60), []byte("first")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Campaign(ctx, []byte("e"), grant(t, c, 60), []byte("second")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	from, to := prefixOf([]byte("e"))
	if a, err := c.Do(within(t), &kv.Range{Key: from, End: to}); err != nil || a.Count != 1 {
		t.Errorf("%d keys left: %v", a.Count, err)
	}
}

// blind is a shard that can be written and not read, as one whose leader has just gone may seem.
type blind struct{ shard.Client }

var errBlind = errs.New(errs.Unavailable, "nobody leads the shard")

func (blind) Query(context.Context, shard.Route, shard.Consistency, shard.Command) ([]byte, error) {
	return nil, errBlind
}

// Who is told that the lock could not be waited for has no key in it, which would keep all others out when its turn comes.
func TestLock_ThatFailsLeavesNothing(t *testing.T) {
	c := newClient(t)
	ctx := within(t)
	held, err := c.Lock(ctx, []byte("l"), grant(t, c, 60))
	if err != nil {
		t.Fatal(err)
	}
	b := New(blind{c.shard}, c.route)
	if _, err := b.Lock(ctx, []byte("l"), grant(t, c, 60)); !errors.Is(err, errBlind) {
		t.Errorf("lock: %v", err)
	}
	if _, err := b.Acquire(ctx, []byte("l"), grant(t, c, 60), 1); !errors.Is(err, errBlind) {
		t.Errorf("semaphore: %v", err)
	}
	// What another call has got is not lost.
	if _, err := b.Lock(ctx, []byte("l"), held.Lease); !errors.Is(err, errBlind) {
		t.Errorf("lock again: %v", err)
	}
	a, err := c.Do(ctx, &kv.Range{Key: []byte("l/"), End: []byte("l0"), KeysOnly: true})
	if err != nil || len(a.KVs) != 1 || string(a.KVs[0].Key) != string(held.Key) {
		t.Errorf("the lock has %v %v, only the holder should be in it", a.KVs, err)
	}
}

func TestElection_ValuesAndObservers(t *testing.T) {
	c := newClient(t)
	name := []byte("e")
	if _, _, err := c.Leader(within(t), name); !errors.Is(err, ErrNoLeader) {
		t.Errorf("nobody: %v", err)
	}
	ctx, cancel := context.WithCancel(within(t))
	seen := make(chan string)
	ended := make(chan error, 1)
	go func() {
		ended <- c.Observe(ctx, name, func(l kv.KeyValue, _ int64) error {
			seen <- string(l.Value)
			return nil
		})
	}()
	a, err := c.Campaign(within(t), name, grant(t, c, 60), []byte("a"))
	if err != nil {
		t.Fatal(err)
	}
	want := func(v string) {
		t.Helper()
		if got := <-seen; got != v {
			t.Errorf("observed %q, want %q", got, v)
		}
	}
	want("a")
	if a, err = c.Proclaim(within(t), a, []byte("a2")); err != nil {
		t.Fatal(err)
	}
	want("a2")
	won := make(chan Claim, 1)
	go func() {
		b, err := c.Campaign(within(t), name, grant(t, c, 60), []byte("b"))
		if err != nil {
			t.Error(err)
		}
		won <- b
	}()
	if _, err := c.Resign(within(t), a); err != nil {
		t.Fatal(err)
	}
	b := <-won
	want("b")
	if l, _, err := c.Leader(within(t), name); err != nil || string(l.Value) != "b" || l.Create != b.Token {
		t.Errorf("leader %+v %v", l, err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("observer: %v", err)
	}
}

// The keys of an election are in the order of their leases' ids, which is not the one in which they were made.
func TestElection_LeaderIsTheOldestOfMany(t *testing.T) {
	c := newClient(t)
	from, _ := prefixOf([]byte("many"))
	for _, lease := range []string{"5", "4", "3", "2", "1"} {
		if _, err := c.Do(within(t), &kv.Put{Key: append(bytes.Clone(from), lease...), Value: []byte(lease)}); err != nil {
			t.Fatal(err)
		}
	}
	if l, _, err := c.Leader(within(t), []byte("many")); err != nil || string(l.Value) != "5" {
		t.Errorf("Leader = %q, %v; want that of the first key, 5", l.Value, err)
	}
}
