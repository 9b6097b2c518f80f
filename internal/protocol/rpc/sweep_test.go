package rpc

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// Requests that are begun and do not arrive end, with what they hold of memory, and nothing else does.
func TestRequest_MustArriveInTime(t *testing.T) {
	half := string([]byte{0, 0, 2, 0, 0}) + "half"
	for name, c := range map[string]struct {
		path, timeout string
		// say is what of the request is sent, and more what follows every 10 s.
		say, more    string
		least, most  time.Duration
		want, status string
	}{
		"its own time":               {path: "/test.Test/Echo", timeout: "5S", say: half, least: 5 * time.Second, most: 7 * time.Second, status: "4"},
		"its own time, in pieces":    {path: "/test.Test/Echo", timeout: "25S", say: half, more: "x", least: 25 * time.Second, most: 27 * time.Second, status: "4"},
		"nothing behind its header":  {path: "/test.Test/Echo", least: time.Minute, most: 63 * time.Second, status: "14"},
		"a half":                     {path: "/test.Test/Echo", say: half, least: time.Minute, most: 63 * time.Second, status: "14"},
		"a half, more and more":      {path: "/test.Test/Echo", say: half, more: "x", least: time.Minute, most: 63 * time.Second, status: "14"},
		"a whole one without an end": {path: "/test.Test/Echo", say: message("a"), least: time.Minute, most: 63 * time.Second, status: "14"},
		"a stream's second message":  {path: "/test.Test/Echoes", say: message("a") + half, more: "x", least: time.Minute, most: 63 * time.Second, status: "14"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := wireServer(t, nil)
				w := newWire(t, s, nil)
				var more []string
				if c.timeout != "" {
					more = []string{"grpc-timeout", c.timeout}
				}
				// Of what else there is on the connection a stream without a message under way stays, as long as it may.
				w.open(1, "/test.Test/Echoes", false)
				w.data(1, message("b"), false)
				w.open(3, c.path, false, more...)
				w.data(3, c.say, false)
				began, took := time.Now(), time.Duration(0)
				for n := 1; took == 0 && n < 1000; n++ {
					time.Sleep(100 * time.Millisecond)
					if c.more != "" && n%100 == 0 {
						w.data(3, c.more, false)
					}
					for drained := false; !drained; {
						select {
						case f, ok := <-w.in:
							if !ok {
								t.Fatal("the connection has ended")
							}
							if strings.HasPrefix(f, "HEADERS 3 ") && strings.Contains(f, "grpc-status=") {
								took = time.Since(began)
								if !strings.Contains(f, "grpc-status="+c.status+" ") {
									t.Errorf("got %s", f)
								}
							}
							if strings.Contains(f, " 1 ") && strings.Contains(f, "grpc-status") {
								t.Errorf("the other call has ended: %s", f)
							}
						default:
							drained = true
						}
					}
				}
				if took < c.least || took > c.most {
					t.Errorf("ended after %v, want %v to %v", took, c.least, c.most)
				}
				w.write(func() error { return w.fr.WriteRSTStream(1, http2.ErrCodeCancel) })
				time.Sleep(3 * time.Second)
				s.each(func(c *conn) {
					c.mu.Lock()
					defer c.mu.Unlock()
					if held := c.held.Held(); held != 0 || len(c.streams) != 0 || c.awaited.Load() != 0 || c.sweeping {
						t.Errorf("%d bytes are held, %d streams are open, %d awaited, sweeping %v", held, len(c.streams), c.awaited.Load(), c.sweeping)
					}
				})
			})
		})
	}
}
