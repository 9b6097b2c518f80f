package coord

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
)

// meddler is a cluster in which something happens before each read, of which n counts, and before each watch of a key's end.
type meddler struct {
	shard.Client
	n     int
	read  func(n int)
	watch func(key string)
}

func (m *meddler) Query(ctx context.Context, r shard.Route, at shard.Consistency, q shard.Command) ([]byte, error) {
	if m.n++; m.read != nil {
		m.read(m.n)
	}
	return m.Client.Query(ctx, r, at, q)
}

func (m *meddler) Watch(r shard.Route, s shard.Span) *shard.Watch {
	if first := kv.GoneSpan(nil).From; m.watch != nil && strings.HasPrefix(string(s.From), string(first)) {
		m.watch(string(s.From[len(first):]))
	}
	return m.Client.Watch(r, s)
}

// meddled returns a client of the same key space as c that is meddled with.
func meddled(c *Client, m *meddler) *Client {
	m.Client = c.shard
	return New(m, c.route)
}

func put(t *testing.T, c *Client, key string, lease int64) {
	t.Helper()
	if _, err := c.Do(within(t), &kv.Put{Key: []byte(key), Lease: lease}); err != nil {
		t.Error(err)
	}
}

func remove(t *testing.T, c *Client, key string) {
	t.Helper()
	if _, err := c.Unlock(within(t), []byte(key)); err != nil {
		t.Error(err)
	}
}

// The contender before may give up while the holder has the lock still.
func TestLock_WaitsForAllThatCameBefore(t *testing.T) {
	c := newClient(t)
	put(t, c, "l/holder", 0)
	put(t, c, "l/waits", 0)
	var waited []string
	m := &meddler{watch: func(key string) {
		waited = append(waited, key)
		remove(t, c, key)
	}}
	cl, err := meddled(c, m).Lock(within(t), []byte("l"), grant(t, c, 60))
	if want := []string{"l/waits", "l/holder"}; err != nil || !slices.Equal(waited, want) {
		t.Errorf("waited for %q, want %q: %v", waited, want, err)
	}
	if got := count(t, c, "l"); got != 1 || cl.Lease == 0 {
		t.Errorf("%d keys, claim %+v", got, cl)
	}
}

// Whoever unlocks and locks again with its lease has the key of the same name, behind those who waited for the one before.
func TestWaitGone_KeyThatCameAgain(t *testing.T) {
	c := newClient(t)
	put(t, c, "k", 0)
	a, err := c.Do(within(t), &kv.Range{Key: []byte("k")})
	if err != nil {
		t.Fatal(err)
	}
	m := &meddler{read: func(int) {
		remove(t, c, "k")
		put(t, c, "k", 0)
	}}
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	if err := meddled(c, m).WaitGone(ctx, []byte("k"), a.KVs[0].Create); err != nil || m.n != 1 {
		t.Errorf("%v after %d looks", err, m.n)
	}
}

// A claim whose key has gone is none, be there another of that name by now or not, or room for it.
func TestClaim_LostWhileItWaits(t *testing.T) {
	for _, again := range []bool{false, true} {
		c := newClient(t)
		lease := grant(t, c, 60)
		key := fmt.Sprintf("l/%x", uint64(lease))
		// meddle lets the key go before the reading that says whether it still counts.
		meddle := func(at int) *Client {
			return meddled(c, &meddler{read: func(n int) {
				if n != at {
					return
				}
				remove(t, c, key)
				if again {
					put(t, c, key, lease)
				}
			}})
		}
		if cl, err := meddle(2).Lock(within(t), []byte("l"), lease); !errors.Is(err, ErrLeaseOver) {
			t.Errorf("Lock, the key comes again: %v: %+v %v", again, cl, err)
		}
		remove(t, c, key)
		if cl, err := meddle(1).Acquire(within(t), []byte("l"), lease, 2); !errors.Is(err, ErrLeaseOver) {
			t.Errorf("Acquire, the key comes again: %v: %+v %v", again, cl, err)
		}
	}
}

// A call that goes on with the key that its lease has, and gives up, takes the key with it, as etcd's Mutex.Lock does.
func TestLock_AgainThatGivesUpLeavesNothing(t *testing.T) {
	c := newClient(t)
	lease := grant(t, c, 60)
	put(t, c, "l/holder", 0)
	put(t, c, fmt.Sprintf("l/%x", uint64(lease)), lease)
	ctx, cancel := context.WithCancel(within(t))
	m := &meddler{read: func(int) { cancel() }}
	if cl, err := meddled(c, m).Lock(ctx, []byte("l"), lease); !errors.Is(err, context.Canceled) {
		t.Errorf("%+v %v", cl, err)
	}
	if got := count(t, c, "l"); got != 1 {
		t.Errorf("%d keys, want that of the holder", got)
	}
}

// What happens beside an election is no news of it.
func TestObserve_TellsEachValueOnce(t *testing.T) {
	c := newClient(t)
	a, err := c.Campaign(within(t), []byte("e"), grant(t, c, 60), []byte("a"))
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan int, 100)
	m := &meddler{read: func(n int) { asked <- n }}
	enough := errors.New("enough")
	var told []string
	ended := make(chan error, 1)
	go func() {
		ended <- meddled(c, m).Observe(within(t), []byte("e"), func(l kv.KeyValue, _ int64) error {
			if told = append(told, string(l.Value)); told[len(told)-1] == "end" {
				return enough
			}
			return nil
		})
	}()
	// Each look comes after what was told of the one before.
	<-asked
	for range 3 {
		put(t, c, "other", 0)
		<-asked
	}
	if _, err := c.Proclaim(within(t), a, []byte("end")); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, enough) {
		t.Fatal(err)
	}
	if want := []string{"a", "end"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}
