package replica

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/quorate/quorate/internal/shard"
)

// TestFrames_OfOneTurnAreBounded: many shards have much to send to the same node in the same turn.
func TestFrames_OfOneTurnAreBounded(t *testing.T) {
	const shards, size = 12, 300 << 10
	r := newRig(t, 3, func(c *Config) {
		c.Shards = nil
		for i := range shards {
			c.Shards = append(c.Shards, shard.ID(i+1))
		}
	})
	lead := r.nodes[0]
	r.until("leaders", func() bool {
		for _, s := range lead.host.Shards() {
			if s.Leader == 0 {
				return false
			}
		}
		return true
	})
	var most, frames int
	r.sent = func(from shard.NodeID, f Outgoing) {
		if from == lead.id && f.To == 2 {
			most = max(most, len(f.Data))
			frames++
		}
	}
	var in []Input
	var all []*shard.Future
	for i := range shards {
		f := shard.NewFuture()
		all = append(all, f)
		in = append(in, Propose{Shard: shard.ID(i + 1), Future: f, Command: shard.Command{Module: 9, Data: append([]byte("k="), make([]byte, size)...)}})
	}
	out := lead.turn(in...)
	total := 0
	for _, f := range out.Frames {
		total += len(f.Data)
	}
	if total < 2<<20 {
		t.Fatalf("the turn sent %d bytes, which shows nothing", total)
	}
	// The next message may come when the frame is one byte short of full.
	if limit := 1<<20 + size + 1<<10; most > limit || frames < 2 {
		t.Errorf("%d frames, the largest of %d bytes; want several of at most %d", frames, most, limit)
	}
	for i, f := range all {
		r.until(fmt.Sprint("answer of shard ", i+1), func() bool { _, ok := lead.results[f]; return ok })
		if res := lead.results[f]; res.Err != nil {
			t.Errorf("shard %d: %v", i+1, res.Err)
		}
	}
}

// TestFrames_LargestMessageFits sends commands of the largest size through everything that carries them: a forward, appends
// to a follower that has to catch up on several, and a snapshot.
func TestFrames_LargestMessageFits(t *testing.T) {
	if testing.Short() {
		t.Skip("moves hundreds of MiB")
	}
	r := newRig(t, 3, func(c *Config) { c.ChunkBytes = 0; c.LogEntriesMax = 20 })
	lead, other := r.elect()
	most := 0
	r.sent = func(_ shard.NodeID, f Outgoing) { most = max(most, len(f.Data)) }
	largest := lead.host.cfg.CommandBytesMax
	do := func(n *rigNode, key string) {
		t.Helper()
		cmd := append([]byte(key+"="), bytes.Repeat([]byte{'v'}, largest-len(key)-1)...)
		f := shard.NewFuture()
		n.turn(Propose{Shard: 1, Command: shard.Command{Module: 9, Data: cmd}, Future: f})
		r.until("answer", func() bool { _, ok := n.results[f]; return ok })
		if err := n.results[f].Err; err != nil {
			t.Fatal(err)
		}
	}
	do(other, "forwarded")
	if most < largest {
		t.Errorf("the largest frame has %d bytes, less than the command in it", most)
	}
	third := r.third(lead, other)
	third.stop()
	do(lead, "a")
	do(lead, "b")
	third.start(false)
	r.until("the log to arrive", func() bool { return len(third.get("b")) > 0 })
	third.stop()
	third.newDisk()
	for i := range 30 {
		lead.do(fmt.Sprint("small", i, "=1"))
	}
	third.start(false)
	r.until("the snapshot to arrive", func() bool { return len(third.get("b")) > 0 && third.get("small29") == "1" })
	if !r.noted("receiving a snapshot") {
		t.Error("there was no snapshot")
	}
	if most > FrameBytesMax {
		t.Errorf("the largest frame has %d bytes, more than %d", most, FrameBytesMax)
	}
	// What bounds a message is checked here, so that whoever raises one of these numbers learns of the others. An append holds
	// up to appendBytesMax of entries, or one that is longer.
	// A chunk is as large as asked for, and one row more; the largest rows are those of the change log.
	chunk := lead.host.cfg.ChunkBytes + shard.ChangesBytesMax + 1<<20
	if sum := frameFull + max(appendBytesMax, largest, chunk) + 1<<10; sum > FrameBytesMax {
		t.Errorf("a frame may become %d bytes long", sum)
	}
	t.Logf("largest frame: %d bytes", most)
}

// A frame of a node that is no member, or that says it is of another one than it came from, is dropped.
func TestFrames_OfNobody(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	r.settle()
	h := other.host
	for _, c := range []struct{ from, says shard.NodeID }{{9, 9}, {9, other.id}, {other.id, 9}, {0, 0}, {lead.id, lead.id}} {
		b := appendFrameHeader(nil, frameHeader{from: c.says, session: 77, logID: h.cfg.LogID, yourLog: lead.host.cfg.LogID})
		lead.turn(Frame{From: c.from, Data: b})
		if got := lead.host.peers[other.id].session; lead.fatal != nil || got != h.cfg.Session {
			t.Errorf("a frame of node %d that says it is of %d: session %d, %v", c.from, c.says, got, lead.fatal)
		}
	}
}
