package redis

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"weak"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// held is a client whose commands wait until they are let go, in any order.
type held struct {
	*shardtest.Client
	mu      sync.Mutex
	waiting []*shard.Future
	futures []weak.Pointer[shard.Future]
}

func (h *held) Submit(context.Context, shard.Route, shard.Command) *shard.Future {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := shard.NewFuture()
	h.waiting = append(h.waiting, f)
	h.futures = append(h.futures, weak.Make(f))
	return f
}

// state returns the number of commands that were handed in, and of those that wait.
func (h *held) state() (all, waiting int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.futures), len(h.waiting)
}

// answer lets the first command that waits go.
func (h *held) answer(data string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting[0].Complete(shard.Result{Data: []byte(data)})
	h.waiting = append([]*shard.Future(nil), h.waiting[1:]...)
}

func heldRig(t *testing.T) (*held, *rig) {
	t.Helper()
	h := &held{Client: shardtest.New(t, shardtest.Options{}, datatypes.New(datatypes.Config{}))}
	return h, serveOn(t, h.Client, h, Config{})
}

func TestAnswersInFlight_FewThatMayHoldValues(t *testing.T) {
	// What fits into one read.
	const all = 64
	for _, tc := range []struct {
		line string
		most int
	}{
		{"getex k", valuesInFlightMax}, {"getset k v", valuesInFlightMax}, {"getdel k", valuesInFlightMax}, {"set k v px 10 GET", valuesInFlightMax},
		{"set k get", all}, {"set k get nx", all}, {"append k get", all},
	} {
		h, r := heldRig(t)
		c := r.dial()
		c.send(strings.Repeat(string(encode(strings.Fields(tc.line)...)), all))
		conn := func() *conn { return r.s.conns.Open()[0] }
		eventually(t, tc.line+": as many as may be are in flight, and the first is waited for", func() bool {
			n, _ := h.state()
			return n >= tc.most && r.s.conns.Len() == 1 && conn().waitingSince.Load() != 0
		})
		if n, _ := h.state(); n != tc.most {
			t.Errorf("%s: %d are in flight, want %d", tc.line, n, tc.most)
		}
		for range all {
			eventually(t, "a command waits", func() bool { _, n := h.state(); return n > 0 })
			h.answer("$1\r\nv\r\n")
		}
		for i := range all {
			if got := c.recv(); got != `"v"` {
				t.Fatalf("%s: answer %d is %s", tc.line, i, got)
			}
		}
	}
}

func TestAnswersInFlight_GoneOnceAnswered(t *testing.T) {
	h, r := heldRig(t)
	c := r.dial()
	c.send(strings.Repeat(string(encode("getex", "k")), 2))
	eventually(t, "two are in flight", func() bool { n, _ := h.state(); return n == 2 })
	long := strings.Repeat("v", 2*outFlushBytes)
	h.answer(fmt.Sprintf("$%d\r\n%s\r\n", len(long), long))
	if got := c.recv(); len(got) != len(long)+2 {
		t.Fatalf("%d bytes", len(got))
	}
	eventually(t, "the first answer is not held while the second is waited for", func() bool {
		runtime.GC()
		return h.futures[0].Value() == nil
	})
	h.answer("$-1\r\n")
	if got := c.recv(); got != "nil" {
		t.Errorf("got %s", got)
	}
}
