package rpc

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

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

// A client that begins long messages, is allowed to go on, and takes nothing, is not read from for ever: each permission is a frame that waits.
func TestWire_PermissionsThatNobodyTakesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := wireServer(t, nil)
		never := make(chan struct{})
		w := newWire(t, s, never)
		long := string([]byte{0, 0, 0x20, 0, 0})
		go func() {
			// Each of the calls is answered with a frame of 13 bytes.
			for id := uint32(1); id < 4*outMost/13; id += 2 {
				w.open(id, "/test.Test/Echo", false)
				w.data(id, long, false)
				if w.fr.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
					return
				}
			}
		}()
		synctest.Wait()
		s.each(func(c *conn) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if n := len(c.out); n > outMost+1000 {
				t.Errorf("%d bytes wait to be written, more than %d", n, outMost)
			}
		})
		_ = w.nc.Close()
		close(never)
		s.Close()
	})
}

// The initial window may be changed again and again in a frame of the settings, and only the last one counts; with calls open that is not to be done all
// the time.
func TestWire_InitialWindowIsNotChangedAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, wireServer(t, nil), nil)
		set := func(windows ...uint32) {
			var all []http2.Setting
			for _, n := range windows {
				all = append(all, http2.Setting{ID: http2.SettingInitialWindowSize, Val: n})
			}
			w.write(func() error { return w.fr.WriteSettings(all...) })
		}
		for i := range uint32(1000) {
			set(i)
		}
		w.open(1, "/test.Test/Wait", false)
		w.data(1, message(""), true)
		var many []uint32
		for i := range uint32(2000) {
			many = append(many, i)
		}
		w.open(3, "/test.Test/Echo", false)
		set(append(many, 9)...)
		w.data(3, message("a"), true)
		for _, want := range []string{"HEADERS 3" + okHead, fmt.Sprintf("DATA 3 %q", message("a")), "HEADERS 3" + okTail} {
			if got := w.next(); got != want {
				t.Fatalf("got %s, want %s", got, want)
			}
		}
		for i := range uint32(1000) {
			time.Sleep(1100 * time.Millisecond)
			set(i, 10+i)
		}
		for i := range uint32(50) {
			set(i)
		}
		w.write(func() error { return w.fr.WritePing(false, [8]byte{}) })
		if got := w.next(); got != "PING ack=true" {
			t.Fatalf("got %s", got)
		}
		for i := range uint32(100) {
			set(i)
		}
		if got := w.next(); got != "GOAWAY ENHANCE_YOUR_CALM the initial window is changed too often" {
			t.Errorf("got %s", got)
		}
	})
}
