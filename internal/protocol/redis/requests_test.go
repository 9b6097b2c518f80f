package redis

import (
	"fmt"
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/protocol/conns"
	"github.com/quorate/quorate/internal/shardtest"
)

// A request for which there is no room is read over like one that is too long, wherever that shows, and what follows it is found.
func TestParser_NoRoomIsReadOver(t *testing.T) {
	many := "*20002\r\n$3\r\nDEL\r\n" + strings.Repeat("$1\r\nk\r\n", 20_000) + "$1\r\nz\r\n"
	long := fmt.Sprintf("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$200000\r\n%s\r\n", strings.Repeat("x", 200_000))
	for _, own := range []int{0, 60 << 10, 64 << 10} {
		for _, piece := range []int{1, 7, 4096, 1 << 20} {
			p := parser{holder: conns.NewBudget(0).Holder()}
			p.holder.Hold(own)
			var got []string
			for data := []byte(long + "*1\r\n$4\r\nPING\r\n" + many + "PING x\r\n" + long); len(data) > 0; {
				room := p.room()
				if len(room) == 0 || len(p.buf) > 256<<10 {
					t.Fatalf("room for %d bytes in %d", len(room), len(p.buf))
				}
				n := copy(room, data[:min(piece, len(data))])
				p.filled(n)
				data = data[n:]
				for {
					args, tooLong, err := p.next()
					if err != nil {
						t.Fatal(err)
					}
					if tooLong {
						got = append(got, fmt.Sprint("no room ", p.crowded))
					} else if args == nil {
						break
					} else {
						got = append(got, fmt.Sprintf("%q", args))
					}
				}
			}
			if want := `no room true, ["PING"], no room true, ["PING" "x"], no room true`; strings.Join(got, ", ") != want {
				t.Errorf("with %d held, in pieces of %d: %.200s, want %s", own, piece, strings.Join(got, ", "), want)
			}
			if p.room(); int(p.holder.Held()) != own || p.held != 0 {
				t.Errorf("%d bytes are held in the end, %d of them by others", p.holder.Held(), own)
			}
		}
	}
}

// What clients have begun and do not end takes a bounded part of a node's memory together, and others go on with small requests.
func TestRequests_UnfinishedAreBoundedTogether(t *testing.T) {
	requests := conns.NewBudget(900_000)
	r := newRig(t, shardtest.Options{}, Config{Requests: requests})
	large := strings.Repeat("x", 400_000)
	set := string(encode("set", "k", large))
	begun, queued, watching := r.dial(), r.dial(), r.dial()
	begun.send(set[:300_000])
	eventually(t, "a request that has begun counts", func() bool { return requests.Used() > 300_000 })
	queued.want("multi", "+OK")
	queued.want("set k "+strings.Repeat("x", 200_000), "+QUEUED")
	key := strings.Repeat("k", 60_000)
	watching.want("watch "+key+"1 "+key+"2 "+key+"1", "+OK")
	const busy = "-BUSY overloaded, try again later: more than 900000 bytes of requests wait on this node; nothing was done; send smaller requests, or ask another node"
	c := r.dial()
	c.want("set k "+large, busy)
	c.want("set k small", "+OK")
	c.want("multi", "+OK")
	c.want("get k", "+QUEUED")
	c.want("set k "+large, busy)
	c.want("exec", "-EXECABORT Transaction discarded because of previous errors.")
	c.want("get k", `"small"`)
	// The rest of them is as good as ever.
	begun.send(set[300_000:])
	if got := begun.recv(); got != "+OK" {
		t.Errorf("a request that had begun: %s", got)
	}
	queued.want("exec", "[+OK]")
	watching.want("multi", "+OK")
	watching.want("exec", "[]")
	for _, c := range []*client{begun, queued, watching} {
		c.want("ping", "+PONG")
	}
	eventually(t, "what is done is let go of", func() bool { return requests.Used() == 0 })
	// Nor does it matter how they end.
	queued.want("multi", "+OK")
	queued.want("set k "+strings.Repeat("x", 200_000), "+QUEUED")
	begun.send(set[:300_000])
	eventually(t, "a request that has begun counts", func() bool { return requests.Used() > 300_000 })
	_, _ = queued.nc.Close(), begun.nc.Close()
	eventually(t, "what ended with its connection is let go of", func() bool { return requests.Used() == 0 })
}

// A transaction and watched keys, which wait for as long as their client likes, are refused where there is no room.
func TestRequests_QueuedAndWatchedCount(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{Requests: conns.NewBudget(20_000)})
	c := r.dial()
	c.want("multi", "+OK")
	for range 2 {
		c.want("set k "+strings.Repeat("x", 30_000), "+QUEUED")
	}
	if got := c.do("set", "k", strings.Repeat("x", 30_000)); !strings.HasPrefix(got, "-BUSY") {
		t.Errorf("got %s", got)
	}
	c.want("discard", "+OK")
	key := strings.Repeat("k", 30_000)
	c.want("watch "+key+"1 "+key+"2", "+OK")
	if got := c.do("watch", key+"3"); !strings.HasPrefix(got, "-BUSY") {
		t.Errorf("got %s", got)
	}
	c.want("unwatch", "+OK")
	c.want("watch "+key+"3", "+OK")
}
