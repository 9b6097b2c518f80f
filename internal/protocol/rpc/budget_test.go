package rpc

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/quorate/quorate/internal/protocol/conns"
)

// What all connections hold of requests is bounded, those of all servers together, and small requests go on at the bound.
func TestBudget_IsForAllConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := conns.NewBudget(300_000)
		server := func() *Server {
			s := wireServer(t, func(c *Config) { c.Requests = b })
			t.Cleanup(s.Close)
			return s
		}
		s1, s2 := server(), server()
		half := func(w *wire, id uint32) {
			w.open(id, "/test.Test/Echo", false)
			w.data(id, string([]byte{0, 0, 2, 0, 0}), false)
			for range 7 {
				w.data(id, strings.Repeat("x", 16_000), false)
			}
		}
		var all []*wire
		for i := range 4 {
			w := newWire(t, []*Server{s1, s2}[i%2], nil)
			half(w, 1)
			all = append(all, w)
			synctest.Wait()
		}
		// Each has sent 112,000 bytes.
		if used, want := b.Used(), int64(4*(112_000-(64<<10))); used < want || used > want+20_000 {
			t.Errorf("%d bytes are used, want about %d", used, want)
		}
		w := newWire(t, s1, nil)
		half(w, 1)
		half(w, 3)
		refused := " grpc-status=8 grpc-message=more than 300000 bytes of requests wait on this node; try again later"
		if got := w.next(); !strings.HasPrefix(got, "HEADERS 3"+okHead+refused) {
			t.Errorf("got %s", got)
		}
		w2 := newWire(t, s2, nil)
		w2.open(1, "/test.Test/Echo", false)
		w2.data(1, message("a"), true)
		if got := w2.next(); got != "HEADERS 1"+okHead {
			t.Errorf("a small request at the bound: got %s", got)
		}
		// Connections that end in the middle of requests give all back.
		for _, w := range append(all, w, w2) {
			_ = w.nc.Close()
		}
		synctest.Wait()
		if used := b.Used(); used != 0 {
			t.Errorf("%d bytes are used for nothing", used)
		}
	})
}
