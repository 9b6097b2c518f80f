package redis

import (
	"context"
	"sync"
	"time"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/shard"
)

// Clients ask for INFO when they connect, to see whether the server is ready, and others every few seconds. Counting walks over the keys:
// many such clients would keep a node busy with nothing else. So a count that took long is used again, and there is one at a time.
const (
	// countShort is how long a count takes that is made anew each time.
	countShort = 10 * time.Millisecond
	// countRest is how many times as long as it took a longer one is used again.
	countRest = 50
	// countWait is how long INFO waits for the first count.
	countWait = time.Second
)

// countOf says what is counted: that depends on how the client is served.
type countOf struct{ cluster, readonly bool }

// keyCounts are a server's counts of keys. The zero value is ready.
type keyCounts struct {
	mu sync.Mutex
	of map[countOf]*keyCount
}

// keyCount is the last count, and the one under way.
type keyCount struct {
	keys, expires uint64
	// at is when the count ended, and took how long it was; at is zero if there was none.
	at   time.Time
	took time.Duration
	// done is closed when the count under way ends; nil if there is none. err says why it failed. begun and ended are how many have.
	done         chan struct{}
	err          error
	begun, ended uint64
}

// keyspace returns about how many keys there are, and how many of those expire; 0 if that is not known yet.
func (c *conn) keyspace() (keys, expires uint64, err error) {
	shards, err := c.myShards()
	if err != nil {
		return 0, 0, err
	}
	kc := &c.s.keyCounts
	kc.mu.Lock()
	defer kc.mu.Unlock()
	n := kc.get(countOf{c.cluster, c.readonly})
	// A short count that began before this request may lack what was written before it. The next one will do, whoever begins it.
	enough := n.begun + 1
	for {
		usable := !n.at.IsZero() && n.took > countShort
		if n.done == nil && (!usable || c.s.client.Now().Sub(n.at) > countRest*n.took) {
			at := make([]shard.Consistency, len(shards))
			for i, id := range shards {
				at[i] = c.consistency(id)
			}
			n.done, n.err = make(chan struct{}), nil
			n.begun++
			c.s.wg.Go(func() { c.s.count(n, shards, at) })
		}
		if usable {
			return n.keys, n.expires, nil
		}
		done := n.done
		kc.mu.Unlock()
		ended := c.awaitCount(done)
		kc.mu.Lock()
		if n.ended >= enough || !ended || n.err != nil {
			return n.keys, n.expires, n.err
		}
	}
}

// get returns what is counted of something.
func (kc *keyCounts) get(of countOf) *keyCount {
	n := kc.of[of]
	if n == nil {
		if kc.of == nil {
			kc.of = map[countOf]*keyCount{}
		}
		n = &keyCount{}
		kc.of[of] = n
	}
	return n
}

// awaitCount waits for a count, and says whether it ended in time.
func (c *conn) awaitCount(done chan struct{}) bool {
	limit := time.NewTimer(countWait)
	defer limit.Stop()
	select {
	case <-done:
		return true
	case <-limit.C:
	case <-c.context().Done():
	}
	return false
}

// count counts the keys of some shards.
func (s *Server) count(n *keyCount, shards []shard.ID, at []shard.Consistency) {
	began := s.client.Now()
	var keys, expires uint64
	var err error
	for i, id := range shards {
		var out []byte
		// It bounds the time until a walk may begin.
		ctx, cancel := context.WithTimeout(s.ctx, s.cfg.RequestTimeout)
		out, err = s.client.Query(ctx, shard.Route{Shard: id}, at[i], shard.Command{Module: shard.ModuleDatatypes, Data: datatypes.EncodeKeyCount()})
		cancel()
		var k, e uint64
		if err == nil {
			k, e, err = datatypes.DecodeKeyCount(out)
		}
		if err != nil {
			break
		}
		keys, expires = keys+k, expires+e
	}
	s.keyCounts.mu.Lock()
	defer s.keyCounts.mu.Unlock()
	if n.err = err; err == nil {
		n.keys, n.expires, n.at = keys, expires, s.client.Now()
		n.took = n.at.Sub(began)
	}
	close(n.done)
	n.done = nil
	n.ended = n.begun
}
