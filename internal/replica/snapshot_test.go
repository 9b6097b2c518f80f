package replica

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/shard"
)

// behind makes a follower fall behind the cut of the log.
func behind(t *testing.T, rows int) (r *rig, lead, other *rigNode) {
	return behindBy(t, rows, 50, nil)
}

// behindBy is behind with values of so many bytes, and a configuration that cfg, if not nil, changes.
func behindBy(t *testing.T, rows, valueBytes int, cfg func(*Config)) (r *rig, lead, other *rigNode) {
	r = newRig(t, 3, func(c *Config) {
		c.LogEntriesMax = 5
		if cfg != nil {
			cfg(c)
		}
	})
	lead, other = r.elect()
	lead.do("first=1")
	r.same("first", "1")
	r.isolate(other)
	for i := range rows {
		lead.do(fmt.Sprintf("key%d=%s", i, strings.Repeat("v", valueBytes)))
	}
	r.run(3 * time.Second)
	lead.do("last=1")
	r.run(time.Second)
	if s := lead.host.Shards()[0]; s.First <= other.host.Shards()[0].Last {
		t.Fatalf("the log is not cut: %+v", s)
	}
	return r, lead, other
}

func TestSnapshot_BringsAFollowerBack(t *testing.T) {
	r, _, other := behind(t, 30)
	f := other.propose("mine=1", 0)
	r.heal()
	r.until("value", func() bool { return other.get("last") == "1" && other.get("key29") != "" })
	if !r.noted("installed a snapshot") {
		t.Errorf("notes: %v", r.notes)
	}
	r.until("answer", func() bool { _, ok := other.results[f]; return ok })
	if res := other.do("k=2"); res.Err != nil {
		t.Errorf("got %+v", res)
	}
	r.until("rest", func() bool {
		for _, n := range r.nodes {
			if n.host.Shards()[0].Snapshotting {
				return false
			}
		}
		return true
	})
	other.restart()
	r.same("k", "2")
}

// A crash between the state of a snapshot and the log that begins behind it costs the replica nothing, its id neither: it may
// be one of the last that vote (seed 211858).
func TestSnapshot_CrashBeforeTheLogHasIt(t *testing.T) {
	for _, tail := range []int{0, 100} {
		r := newRig(t, 3, func(c *Config) { c.LogEntriesMax = 5 })
		other, _ := r.elect()
		other.do("first=1")
		r.same("first", "1")
		// Entries that nobody else has, and which do not agree with the snapshot.
		r.isolate(other)
		for i := range tail {
			other.propose(fmt.Sprintf("lost=%d", i), time.Second)
			r.run(20 * time.Millisecond)
		}
		var lead *rigNode
		r.until("another leader", func() bool {
			for _, n := range r.nodes {
				if n != other && n.host.Shards()[0].Leads {
					lead = n
				}
			}
			return lead != nil
		})
		for i := range 30 {
			if res := lead.do(fmt.Sprintf("key%d=%s", i, strings.Repeat("v", 50))); res.Err != nil {
				t.Fatal(res.Err)
			}
		}
		r.run(3 * time.Second)
		lead.do("last=1")
		id := other.host.Shards()[0].Replica
		// From when the snapshot begins to come, nothing is written to the log.
		r.sent = func(shard.NodeID, Outgoing) {
			if other.host.Shards()[0].Snapshotting {
				r.holdLog[other.id] = true
			}
		}
		r.heal()
		r.until("installed snapshot", func() bool { return r.noted("installed a snapshot") })
		r.sent = nil
		other.stop()
		if len(other.writes) == 0 {
			t.Fatal("the log was written in time")
		}
		other.writes, r.holdLog[other.id] = nil, false
		other.start(false)
		r.same("last", "1")
		if s := other.host.Shards()[0]; s.Replica != id {
			t.Errorf("tail of %d: replica %d became %d", tail, id, s.Replica)
		}
		if !r.noted("the log is made to follow a snapshot that was just installed") {
			t.Errorf("tail of %d: notes %v", tail, r.notes)
		}
		// It is written, too.
		other.restart()
		if res := other.do("then=1"); res.Err != nil {
			t.Error(res.Err)
		}
		r.same("then", "1")
	}
}

func TestSnapshot_SurvivesLostAndRepeatedChunks(t *testing.T) {
	r, _, other := behind(t, 100)
	n := 0
	r.drop = func(_, _ shard.NodeID, kind byte) bool {
		if kind != msgChunk && kind != msgChunkOK {
			return false
		}
		n++
		return n%7 == 0
	}
	took := r.until("value", func() bool { return other.get("last") == "1" })
	// A hundred chunks and more are under way; each loss may cost a few ticks, but not the rest of the transfer.
	if took > 30*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestSnapshot_StartsOverWhenTheReceiverRestarts(t *testing.T) {
	r, _, other := behind(t, 100)
	n := 0
	r.drop = func(_, _ shard.NodeID, kind byte) bool {
		if kind == msgChunk {
			n++
		}
		return kind == msgChunk && n > 30
	}
	r.run(time.Second)
	if !other.host.Shards()[0].Snapshotting {
		t.Fatalf("no transfer is under way")
	}
	other.restart()
	r.heal()
	r.until("value", func() bool { return other.get("last") == "1" })
	r.same("last", "1")
}

// A snapshot of a few chunks has none whose number tells a receiver that was restarted of those before.
func TestSnapshot_OfFewChunksStartsOverWhenTheReceiverRestarts(t *testing.T) {
	r, lead, other := behind(t, 10)
	lead.host.cfg.ChunkBytes = 800
	chunks := 0
	r.drop = func(_, _ shard.NodeID, kind byte) bool {
		if kind == msgChunk {
			chunks++
		}
		return kind == msgChunk && chunks > 1
	}
	r.until("first chunk", func() bool { return chunks > 0 && other.host.Shards()[0].Snapshotting })
	r.settle()
	if chunks < 2 || chunks > chunksAhead {
		t.Fatalf("%d chunks are under way", chunks)
	}
	other.restart()
	r.heal()
	if took := r.until("value", func() bool { return other.get("last") == "1" }); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestSnapshot_IsGivenUpWhenNothingMoves(t *testing.T) {
	for _, silent := range []bool{true, false} {
		r, lead, other := behind(t, 30)
		r.drop = func(_, _ shard.NodeID, kind byte) bool { return kind == msgChunk }
		after := snapshotGiveUpSlow
		if silent {
			r.until("transfer", func() bool { return lead.host.Shards()[0].Snapshotting })
			r.isolate(other)
			after = snapshotGiveUp
		}
		r.run(after - time.Second)
		if r.noted("snapshot transfer makes no progress") {
			t.Errorf("given up before %v, silent: %v", after, silent)
		}
		r.run(3 * time.Second)
		if !r.noted("snapshot transfer makes no progress") {
			t.Errorf("not given up after %v, silent: %v", after, silent)
		}
		r.heal()
		r.until("value", func() bool { return other.get("last") == "1" })
		r.until("rest", func() bool { return !lead.host.Shards()[0].Snapshotting })
	}
}

func TestSnapshot_HalfReceivedIsDroppedInTheEnd(t *testing.T) {
	r, _, other := behind(t, 100)
	n := 0
	r.drop = func(_, _ shard.NodeID, kind byte) bool {
		if kind == msgChunk {
			n++
		}
		return kind == msgChunk && n > 30
	}
	r.run(time.Second)
	if !other.host.Shards()[0].Snapshotting {
		t.Fatalf("no transfer is under way")
	}
	r.isolate(other)
	r.run(snapshotGiveUp + time.Second)
	if other.host.Shards()[0].Snapshotting {
		t.Errorf("half a snapshot is kept for ever")
	}
}

func TestSnapshot_DamagedTransferStartsOver(t *testing.T) {
	r, _, other := behind(t, 30)
	r.heal()
	bad := 0
	deliver := other.host
	// The last chunk carries the checksum of all.
	for range 400 {
		for _, n := range r.nodes {
			if n.host == nil {
				continue
			}
			if n == other && bad == 0 {
				for i, in := range n.inbox {
					if f, ok := in.(Frame); ok && spoil(f.Data) {
						bad++
						n.inbox[i] = f
					}
				}
			}
			if len(n.inbox) > 0 || !n.wake.After(r.now) {
				n.turn()
			}
		}
		r.now = r.now.Add(5 * time.Millisecond)
	}
	_ = deliver
	if bad != 1 || !r.noted("snapshot fails its checksum") {
		t.Errorf("%d chunks were spoilt; notes: %v", bad, r.notes)
	}
	r.until("value", func() bool { return other.get("last") == "1" })
}

// spoil changes the checksum in the last chunk of a snapshot, if the frame has it.
func spoil(frame []byte) bool {
	_, body, err := readFrameHeader(frame)
	if err != nil {
		return false
	}
	for len(body) > 0 {
		kind, msg, rest, err := nextMessage(body)
		if err != nil {
			return false
		}
		if kind == msgChunk {
			rd := codec.Read(msg)
			for range 8 {
				rd.Uvarint()
			}
			if rd.Byte()&chunkLast != 0 {
				rd.Rest()[0] ^= 1
				return true
			}
		}
		body = rest
	}
	return false
}

// A chunk that comes again in the turn in which the snapshot is complete must not touch what raft has yet to take over.
func TestSnapshot_ChunkRepeatedBehindTheLastOne(t *testing.T) {
	r, _, other := behind(t, 30)
	var first *Frame
	r.sent = func(from shard.NodeID, f Outgoing) {
		_, body, _ := readFrameHeader(f.Data)
		for first == nil && f.To == other.id && len(body) > 0 {
			kind, _, rest, err := nextMessage(body)
			if err != nil {
				t.Fatal(err)
			}
			if kind == msgChunk {
				first = &Frame{From: from, Data: f.Data, At: r.now}
			}
			body = rest
		}
	}
	r.heal()
	for i := 0; i < 1000 && other.get("last") != "1"; i++ {
		for _, n := range r.nodes {
			switch {
			case n == other && first != nil:
				n.turn(*first)
			case len(n.inbox) > 0 || !n.wake.After(r.now):
				n.turn()
			}
		}
		r.now = r.now.Add(5 * time.Millisecond)
	}
	for i := range 30 {
		if k := fmt.Sprintf("key%d", i); other.get(k) == "" {
			t.Errorf("%s is lost", k)
		}
	}
}

// An entry that cannot be applied stops the node, also in the turn in which a snapshot is complete: what was begun must not end in a panic.
func TestSnapshot_BehindAnEntryThatFails(t *testing.T) {
	r := newRig(t, 1, nil)
	n := r.nodes[0]
	r.until("leader", func() bool { return n.host.Shards()[0].Leads })
	rep := n.host.reps[1]
	good := shard.AppendCommand(shard.AppendBatchHeader(nil, shard.BatchHeader{Stamp: r.now}), shard.Command{Module: 9, Data: []byte("a=1")})
	next := rep.machine.Applied().Index + 1
	rep.applyLater(&raftpb.Message{Entries: []*raftpb.Entry{
		{Index: new(next), Term: new(rep.term), Data: good}, {Index: new(next + 1), Term: new(rep.term), Data: []byte("of a later version")},
	}})
	into, err := rep.machine.Install()
	if err != nil {
		t.Fatal(err)
	}
	rep.arrived = &snapshotIn{index: next + 10, into: into}
	if rep.installSnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(next + 10), Term: new(rep.term)}}) || n.host.err == nil {
		t.Errorf("the snapshot was installed; the host's error is %v", n.host.err)
	}
}

// A transfer that starts over, of the same state, finds at the receiver what is left of the one before.
func TestSnapshot_StartsOverWhereMuchHasArrived(t *testing.T) {
	r, lead, other := behind(t, 100)
	rep := other.host.reps[1]
	r.heal()
	r.drop = func(_, _ shard.NodeID, kind byte) bool {
		return kind == msgChunk && rep.in != nil && rep.in.next > 2*chunksAhead
	}
	r.until("chunks", func() bool { return rep.in != nil && rep.in.next > 2*chunksAhead })
	from := lead.host.reps[1]
	for _, o := range from.out {
		from.endSnapshot(o, raft.SnapshotFailure)
	}
	r.heal()
	if took := r.until("value", func() bool { return other.get("last") == "1" }); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A receiver that has nothing left of a short one says so.
func TestSnapshot_ShortOneStartsOverWhenItIsDropped(t *testing.T) {
	r, lead, other := behind(t, 10)
	lead.host.cfg.ChunkBytes = 800
	rep := other.host.reps[1]
	r.heal()
	chunks := 0
	r.drop = func(_, _ shard.NodeID, kind byte) bool {
		if kind == msgChunk {
			chunks++
		}
		return kind == msgChunk && chunks > 1
	}
	r.until("the first chunk", func() bool {
		for _, o := range lead.host.reps[1].out {
			return o.first > 0 && o.first < chunksAhead
		}
		return false
	})
	rep.dropSnapshotIn()
	r.heal()
	if took := r.until("value", func() bool { return other.get("last") == "1" }); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A snapshot that raft had no use for does not keep others out.
func TestSnapshot_OfNoUseIsForgotten(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	rep := other.host.reps[1]
	rep.arrived = &snapshotIn{from: lead.host.reps[1].rid, index: 1}
	other.host.markDirty(rep)
	other.turn()
	if rep.arrived != nil {
		t.Error("it is kept")
	}
}
