package redis

import (
	"bytes"
	"context"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// counting is a client that counts the counts of keys, each of which takes some time.
type counting struct {
	*shardtest.Client
	counts atomic.Int64
	takes  time.Duration
	// gate holds counts up until it is closed.
	gate chan struct{}
}

func (c *counting) Query(ctx context.Context, r shard.Route, at shard.Consistency, q shard.Command) ([]byte, error) {
	if bytes.Equal(q.Data, datatypes.EncodeKeyCount()) {
		c.counts.Add(1)
		c.Advance(c.takes)
		<-c.gate
	}
	return c.Client.Query(ctx, r, at, q)
}

func countingRig(t *testing.T, takes time.Duration) (*counting, *rig) {
	t.Helper()
	c := &counting{Client: shardtest.New(t, shardtest.Options{}, datatypes.New(datatypes.Config{})), takes: takes, gate: make(chan struct{})}
	r := serveOn(t, c.Client, c, Config{})
	r.dial().want("set a 1", "+OK")
	return c, r
}

const (
	noKeys  = `"# Keyspace\r\n"`
	oneKey  = `"# Keyspace\r\ndb0:keys=1,expires=0,avg_ttl=0\r\n"`
	twoKeys = `"# Keyspace\r\ndb0:keys=2,expires=0,avg_ttl=0\r\n"`
)

// Clients send INFO when they connect: many at once after a node has died.
func TestInfo_DoesNotCountManyKeysEachTime(t *testing.T) {
	const takes = 300 * time.Millisecond
	c, r := countingRig(t, takes)
	close(c.gate)
	x := r.dial()
	for range 20 {
		x.want("info keyspace", oneKey)
	}
	x.want("set b 1", "+OK")
	x.want("info keyspace", oneKey)
	if n := c.counts.Load(); n != 1 {
		t.Errorf("%d counts, want 1", n)
	}
	c.Advance(countRest*takes + time.Second)
	eventually(t, "the number is renewed", func() bool { return x.do("info", "keyspace") == twoKeys })
	if n := c.counts.Load(); n != 2 {
		t.Errorf("%d counts, want 2", n)
	}
	x.want("dbsize", ":2")
}

func TestInfo_FewKeysAreCountedEachTime(t *testing.T) {
	c, r := countingRig(t, countShort)
	close(c.gate)
	x := r.dial()
	x.want("info keyspace", oneKey)
	x.want("set b 1", "+OK")
	x.want("info keyspace", twoKeys)
}

// Those who wait for a count to begin share the next one: each alone, one after the other, would wait for all before it.
func TestInfo_WaitersShareACount(t *testing.T) {
	c, r := countingRig(t, 0)
	var all []*client
	for range 9 {
		x := r.dial()
		x.send(string(encode("info", "keyspace")))
		all = append(all, x)
	}
	eventually(t, "all wait", func() bool {
		b := make([]byte, 1<<20)
		return strings.Count(string(b[:runtime.Stack(b, true)]), "awaitCount(") == len(all)
	})
	close(c.gate)
	for _, x := range all {
		if got := x.recv(); got != oneKey {
			t.Errorf("got %s", got)
		}
	}
	if n := c.counts.Load(); n != 2 {
		t.Errorf("%d counts for %d clients, want 2", n, len(all))
	}
}

func TestInfo_DoesNotWaitForALongCount(t *testing.T) {
	c, r := countingRig(t, time.Hour)
	x, y := r.dial(), r.dial()
	x.send(string(encode("info", "keyspace")))
	y.want("info keyspace", noKeys)
	if got := x.recv(); got != noKeys {
		t.Errorf("got %s", got)
	}
	if n := c.counts.Load(); n != 1 {
		t.Errorf("%d counts at a time", n)
	}
	close(c.gate)
	eventually(t, "it is counted", func() bool { return x.do("info", "keyspace") == oneKey })
}
