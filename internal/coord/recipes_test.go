package coord

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shardtest"
)

func session(t *testing.T, c *Client, ttl int64) *Session {
	t.Helper()
	s, err := c.NewSession(within(t), ttl)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.WithoutCancel(t.Context())) })
	return s
}

func over(s *Session) bool {
	select {
	case <-s.Over():
		return true
	default:
		return false
	}
}

func count(t *testing.T, c *Client, name string) int64 {
	t.Helper()
	from, to := prefixOf([]byte(name))
	a, err := c.Do(within(t), &kv.Range{Key: from, End: to, CountOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	return a.Count
}

func TestSession_LivesUntilItIsClosed(t *testing.T) {
	c := newClient(t)
	s := session(t, c, kv.LeaseTTLMin)
	if _, err := c.Lock(within(t), []byte("l"), s.Lease()); err != nil {
		t.Fatal(err)
	}
	// A lease of its length that nobody renews is over meanwhile.
	other := grant(t, c, kv.LeaseTTLMin)
	cl, err := c.Lock(within(t), []byte("other"), other)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitGone(within(t), cl.Key, cl.Token); err != nil {
		t.Fatal(err)
	}
	if over(s) || count(t, c, "l") != 1 {
		t.Errorf("over %v, %d keys", over(s), count(t, c, "l"))
	}
	if err := s.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	if !over(s) || count(t, c, "l") != 0 {
		t.Errorf("closed: over %v, %d keys", over(s), count(t, c, "l"))
	}
	if err := s.Close(within(t)); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

func TestSession_OverWhenTheLeaseIs(t *testing.T) {
	c := newClient(t)
	s := session(t, c, kv.LeaseTTLMin)
	if err := c.Revoke(within(t), s.Lease()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Over():
	case <-within(t).Done():
		t.Error("the session does not notice that its lease is over")
	}
}

// Who cannot renew a lease must take it for lost when its TTL is over, not earlier and not later.
func TestSession_OverWhenNobodyAnswers(t *testing.T) {
	sh := shardtest.New(t, shardtest.Options{RealTime: true}, kv.Module{})
	c := New(sh, Home(sh, "default"))
	s := session(t, c, kv.LeaseTTLMin)
	sh.Refuse(errs.New(errs.Unavailable, "told to refuse"))
	began := time.Now()
	select {
	case <-s.Over():
	case <-within(t).Done():
		t.Fatal("the session goes on without its cluster")
	}
	if d := time.Since(began); d < time.Second || d > kv.LeaseTTLMin*time.Second+time.Second {
		t.Errorf("over after %v", d)
	}
	sh.Refuse(nil)
}

func TestSemaphore_NeverMoreThanItHasPlaces(t *testing.T) {
	c := newClient(t)
	const places = 3
	var inside atomic.Int32
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Add(1)
		lease := grant(t, c, 60)
		go func() {
			defer wg.Done()
			for range 5 {
				cl, err := c.Acquire(within(t), []byte("s"), lease, places)
				if err != nil {
					t.Errorf("%d: %v", i, err)
					return
				}
				if n := inside.Add(1); n > places {
					t.Errorf("%d are inside at once, of %d places", n, places)
				}
				if again, err := c.Acquire(within(t), []byte("s"), lease, places); err != nil || again.Token != cl.Token {
					t.Errorf("%d again: %+v %v", i, again, err)
				}
				inside.Add(-1)
				if _, err := c.Resign(within(t), cl); err != nil {
					t.Errorf("%d: %v", i, err)
				}
			}
		}()
	}
	wg.Wait()
	if n := count(t, c, "s"); n != 0 {
		t.Errorf("%d keys are left", n)
	}
}

func TestSemaphore_ExpiryAndGivingUp(t *testing.T) {
	c := newClient(t)
	name := []byte("s")
	short := grant(t, c, kv.LeaseTTLMin)
	for _, lease := range []int64{short, grant(t, c, 60)} {
		if _, err := c.Acquire(within(t), name, lease, 2); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Acquire(ctx, name, grant(t, c, 60), 2); !errors.Is(err, context.DeadlineExceeded) || count(t, c, "s") != 2 {
		t.Errorf("gave up: %v, %d keys", err, count(t, c, "s"))
	}
	// The place of a lease that ends is the next one's.
	if _, err := c.Acquire(within(t), name, grant(t, c, 60), 2); err != nil || count(t, c, "s") != 2 {
		t.Errorf("after an expiry: %v, %d keys", err, count(t, c, "s"))
	}
	if _, err := c.Acquire(within(t), name, short, 2); !errors.Is(err, kv.ErrLeaseNotFound) {
		t.Errorf("a lease that is over: %v", err)
	}
	if _, err := c.Acquire(within(t), name, short, 0); !errs.Is(err, errs.Invalid) {
		t.Errorf("no places: %v", err)
	}
}

func TestBarrier(t *testing.T) {
	c := newClient(t)
	name := []byte("b")
	if err := c.Pass(within(t), name); err != nil {
		t.Errorf("nothing is up: %v", err)
	}
	if err := c.Hold(within(t), name, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Hold(within(t), name, 0); !errs.Is(err, errs.Exists) {
		t.Errorf("up twice: %v", err)
	}
	var through atomic.Int32
	done := make(chan error, 8)
	for range cap(done) {
		go func() {
			err := c.Pass(within(t), name)
			through.Add(1)
			done <- err
		}()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Pass(ctx, name); !errors.Is(err, context.DeadlineExceeded) || through.Load() != 0 {
		t.Errorf("a barrier that is up: %v, %d are through", err, through.Load())
	}
	if err := c.Release(within(t), name); err != nil {
		t.Fatal(err)
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := c.Release(within(t), name); err != nil {
		t.Errorf("down twice: %v", err)
	}
	// A barrier goes down with its lease.
	if err := c.Hold(within(t), name, grant(t, c, kv.LeaseTTLMin)); err != nil {
		t.Fatal(err)
	}
	if err := c.Pass(within(t), name); err != nil {
		t.Error(err)
	}
}

func TestLatch(t *testing.T) {
	c := newClient(t)
	name := []byte("l")
	opened := make(chan error, 1)
	go func() { opened <- c.Await(within(t), name, 5) }()
	var wg sync.WaitGroup
	for i := range 4 {
		for range 3 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				if err := c.CountDown(within(t), name, fmt.Append(nil, i), 0); err != nil {
					t.Error(err)
				}
			}()
		}
	}
	wg.Wait()
	select {
	case err := <-opened:
		t.Fatalf("open after 4 of 5, some of whom repeated themselves: %v", err)
	default:
	}
	if err := c.CountDown(within(t), name, []byte("last"), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
	if err := c.CountDown(within(t), name, nil, 0); !errs.Is(err, errs.Invalid) {
		t.Errorf("nobody: %v", err)
	}
}

func TestRegistry_MembersLiveAsTheirLeases(t *testing.T) {
	c := newClient(t)
	healthy := session(t, c, kv.LeaseTTLMin)
	seen := make(chan []Endpoint)
	ctx, cancel := context.WithCancel(within(t))
	ended := make(chan error, 1)
	go func() {
		ended <- c.WatchMembers(ctx, "svc", func(all []Endpoint) error {
			select {
			case seen <- all:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	want := func(addrs ...string) {
		t.Helper()
		for {
			var got []string
			select {
			case all := <-seen:
				for _, e := range all {
					got = append(got, e.Addr)
				}
			case <-ctx.Done():
				t.Fatalf("never saw %v", addrs)
			}
			if reflect.DeepEqual(got, addrs) {
				return
			}
			if len(got) > 2 {
				t.Fatalf("saw %v, want %v", got, addrs)
			}
		}
	}
	want()
	if err := c.Register(ctx, "svc", Endpoint{Addr: "10.0.0.1:80", Metadata: json.RawMessage(`{"zone":"a"}`)}, healthy.Lease()); err != nil {
		t.Fatal(err)
	}
	want("10.0.0.1:80")
	// One that does not renew its lease, and keys of others beside.
	if err := c.Register(ctx, "svc", Endpoint{Addr: "10.0.0.2:80"}, grant(t, c, kv.LeaseTTLMin)); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"svc/noise": "no JSON", "svc": "", "svcother/10.0.0.9:80": `{"Op":0,"Addr":"10.0.0.9:80"}`} {
		if _, err := c.Do(ctx, &kv.Put{Key: []byte(k), Value: []byte(v)}); err != nil {
			t.Fatal(err)
		}
	}
	want("10.0.0.1:80", "10.0.0.2:80")
	want("10.0.0.1:80")
	all, _, err := c.Members(ctx, "svc")
	if err != nil || len(all) != 1 || string(all[0].Metadata) != `{"zone":"a"}` {
		t.Errorf("%+v %v", all, err)
	}
	if err := c.Deregister(ctx, "svc", "10.0.0.1:80"); err != nil {
		t.Fatal(err)
	}
	want()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("watch: %v", err)
	}
	if err := c.Register(within(t), "svc", Endpoint{}, 0); !errs.Is(err, errs.Invalid) {
		t.Errorf("no address: %v", err)
	}
	if err := c.Register(within(t), "svc", Endpoint{Addr: "a", Metadata: json.RawMessage("{")}, 0); !errs.Is(err, errs.Invalid) {
		t.Errorf("metadata that is no JSON: %v", err)
	}
}

// The keys are those of etcd's own packages.
func TestRegistry_LayoutIsEtcds(t *testing.T) {
	c := newClient(t)
	for _, e := range []Endpoint{{Addr: "127.0.0.1:1"}, {Addr: "127.0.0.1:2", Metadata: json.RawMessage(`"x"`)}} {
		if err := c.Register(within(t), "svc", e, 0); err != nil {
			t.Fatal(err)
		}
	}
	a, err := c.Do(within(t), &kv.Range{Key: []byte("svc/"), End: []byte("svc0")})
	if err != nil || len(a.KVs) != 2 {
		t.Fatalf("%+v %v", a, err)
	}
	for i, want := range []string{`svc/127.0.0.1:1 {"Op":0,"Addr":"127.0.0.1:1","Metadata":null}`, `svc/127.0.0.1:2 {"Op":0,"Addr":"127.0.0.1:2","Metadata":"x"}`} {
		if got := fmt.Sprintf("%s %s", a.KVs[i].Key, a.KVs[i].Value); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
