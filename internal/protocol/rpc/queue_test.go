package rpc

import (
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
)

// Calls that are given up while they wait for the connection leave nothing behind, however long that takes nothing.
func TestWire_CallsThatAreGivenUpAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t, 100_000)
		w := newWire(t, p.s, nil, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
		w.open(1, "/test.Test/Large", false)
		w.data(1, message(""), true)
		synctest.Wait()
		for id := uint32(3); id < 10_000; id += 2 {
			w.open(id, "/test.Test/Large", false)
			w.data(id, message(""), true)
			synctest.Wait()
			w.write(func() error { return w.fr.WriteRSTStream(id, http2.ErrCodeCancel) })
		}
		synctest.Wait()
		p.s.each(func(c *conn) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if n := len(c.blocked) + len(c.ending); n > 200 || cap(c.blocked) > 1000 {
				t.Errorf("%d calls wait, room for %d", n, cap(c.blocked))
			}
		})
		// The one that waits all the time has its turn.
		w.write(func() error { return w.fr.WriteWindowUpdate(0, 1<<20) })
		got := &seen{}
		if w.look(got); got.last() != "HEADERS 1"+okTail {
			t.Errorf("got %v", got.rest)
		}
	})
}
