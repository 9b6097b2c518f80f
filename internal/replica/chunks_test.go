package replica

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/shard"
)

// sentOne is a chunk with what its sender says of it.
type sentOne struct {
	from, to, msgTerm, transfer, index, term, n uint64
	flags                                       byte
	sum                                         uint64
	conf, data                                  []byte
}

// receiver is a follower that gets a leader's state piece by piece, as a test says.
type receiver struct {
	*rig
	lead, node *rigNode
	rep        *replica
	chunks     [][]byte
	// as are the fields of all chunks.
	as sentOne
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r, lead, other := behind(t, 60)
	x := &receiver{rig: r, lead: lead, node: other, rep: other.host.reps[1]}
	rd, err := lead.host.Machine(1).Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rd.Close() }()
	for {
		c, err := rd.Next(100)
		if err != nil {
			t.Fatal(err)
		}
		x.chunks = append(x.chunks, c)
		if c == nil {
			break
		}
	}
	if len(x.chunks) < 2*chunksAheadMax {
		t.Fatalf("%d chunks are too few", len(x.chunks))
	}
	p := rd.Position()
	from := lead.host.reps[1]
	x.as = sentOne{from: from.rid, to: x.rep.rid, msgTerm: from.term, transfer: 7, index: p.Index, term: p.Term, conf: rd.Conf()}
	return x
}

// get hands the receiver chunk n, with the fields that change changes, and returns what it says of it: which is wanted next, and whether any is.
func (x *receiver) get(n int, change func(*sentOne)) (next uint64, state byte, said bool) {
	x.Helper()
	c := x.as
	c.n, c.data = uint64(n), x.chunks[n]
	if n == len(x.chunks)-1 {
		c.flags = chunkLast
		h := xxhash.New()
		for _, d := range x.chunks {
			_, _ = h.Write(d)
		}
		c.sum = h.Sum64()
	}
	if change != nil {
		change(&c)
	}
	b := appendUvarints(nil, c.from, c.to, c.msgTerm, c.transfer, c.index, c.term, c.n)
	b = append(b, c.flags)
	if c.flags&chunkLast != 0 {
		b = binary.LittleEndian.AppendUint64(b, c.sum)
	}
	if c.n == 0 {
		b = codec.AppendBytes(b, c.conf)
	}
	h := x.node.host
	h.out.reset()
	rd := codec.Read(codec.AppendBytes(b, c.data))
	x.rep.receiveChunk(h.peers[x.lead.id], &rd)
	for _, p := range h.peers {
		h.closeFrames(p)
	}
	for _, f := range h.out.Frames {
		_, body, err := readFrameHeader(f.Data)
		for err == nil && len(body) > 0 {
			var kind byte
			var msg []byte
			if kind, msg, body, err = nextMessage(body); kind != msgChunkOK {
				continue
			}
			rd := codec.Read(msg)
			for range 4 {
				rd.Uvarint()
			}
			next, state, said = rd.Uvarint(), rd.Byte(), true
		}
	}
	return next, state, said
}

// wants checks which chunk the receiver waits for.
func (x *receiver) wants(next int, when string) {
	x.Helper()
	if x.rep.in == nil || x.rep.in.next != uint64(next) {
		x.Fatalf("%s: it is at %+v, want to be at chunk %d", when, x.rep.in, next)
	}
}

// Chunks of another transfer, for another replica, or of another time are no part of what is being received.
func TestChunk_OnlyThoseOfTheTransferAreTaken(t *testing.T) {
	x := newReceiver(t)
	for name, change := range map[string]func(*sentOne){
		"for an earlier replica of the node": func(c *sentOne) { c.to-- },
		"from a replica of another node":     func(c *sentOne) { c.from = replicaID(x.node.id, 1) },
		"of an earlier term":                 func(c *sentOne) { c.msgTerm = x.rep.term - 1 },
	} {
		if _, _, said := x.get(0, change); said || x.rep.in != nil {
			t.Errorf("the first chunk %s begins a snapshot", name)
		}
	}
	if next, state, said := x.get(0, func(c *sentOne) { c.index = x.rep.machine.Applied().Index }); next != 0 || state != chunkUnwanted || !said || x.rep.in != nil {
		t.Errorf("of a snapshot that shows nothing new chunk %d is wanted next, with state %d", next, state)
	}
	if _, _, said := x.get(1, nil); said || x.rep.in != nil {
		t.Error("a snapshot begins with its second chunk")
	}
	if next, _, said := x.get(1, func(c *sentOne) { c.flags = chunkBegun }); next != 0 || !said || x.rep.in != nil {
		t.Error("the sender is not told that nothing of it is here")
	}
	x.get(0, nil)
	x.wants(1, "after the first chunk")
	for name, change := range map[string]func(*sentOne){
		"of the transfer before":       func(c *sentOne) { c.transfer-- },
		"of the next transfer":         func(c *sentOne) { c.transfer++ },
		"of another leader's transfer": func(c *sentOne) { c.from++ },
		"of the leader's next term":    func(c *sentOne) { c.msgTerm++ },
	} {
		if x.get(1, change); x.rep.in == nil || x.rep.in.next != 1 || x.rep.in.transfer != x.as.transfer {
			t.Fatalf("a chunk %s is taken", name)
		}
	}
	x.get(1, nil)
	x.wants(2, "after the second chunk")
	// A transfer that starts over begins with its first chunk.
	x.as.transfer++
	x.get(0, nil)
	x.wants(1, "after the first chunk of the next transfer")
	x.get(0, func(c *sentOne) { c.transfer-- })
	if x.wants(1, "after a late one"); x.rep.in.transfer != x.as.transfer {
		t.Error("the first chunk of the transfer before starts it over")
	}
}

// Chunks overtake each other. What came ahead is kept until its turn comes, whatever is repeated meanwhile, or too far ahead.
func TestChunk_OvertakingIsPutRight(t *testing.T) {
	x := newReceiver(t)
	last := len(x.chunks) - 1
	const at = chunksAheadMax + 2
	for n := range at {
		x.get(n, nil)
	}
	x.wants(at, "in order")
	x.get(at+1, nil)
	for _, n := range []int{at + 1 - chunksAheadMax, at + 1 + chunksAheadMax} {
		if next, _, said := x.get(n, nil); next != at || !said {
			t.Errorf("with chunk %d the sender is told that %d is wanted, %v", n, next, said)
		}
	}
	x.get(at, nil)
	x.wants(at+2, "with the one that was overtaken")
	for n := at + 2; n < last; n++ {
		x.get(n, nil)
	}
	// The end is overtaken by nothing, and a repetition does not come after it.
	x.get(last, func(c *sentOne) { c.sum++ })
	if x.rep.in != nil || x.rep.arrived != nil {
		t.Error("a snapshot whose checksum is wrong has arrived, or goes on")
	}
	for n := range last + 1 {
		x.get(n, nil)
	}
	if x.rep.arrived == nil {
		t.Fatal("the snapshot has not arrived")
	}
	if _, _, said := x.get(0, nil); said || x.rep.in != nil {
		t.Error("another one begins before it is taken over")
	}
	x.node.turn()
	x.heal()
	x.same("last", "1")
	if n := x.node.wakesAll; n != 1 {
		t.Errorf("those that watch the shard are told %d times that all may have changed", n)
	}
}

// What raft takes over is the state that has arrived, and no other.
func TestChunk_AnotherStateThanTheOneThatArrived(t *testing.T) {
	x := newReceiver(t)
	for n := range x.chunks {
		x.get(n, nil)
	}
	if x.rep.arrived == nil {
		t.Fatal("the snapshot has not arrived")
	}
	before := x.rep.machine.Applied()
	s := &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(x.as.index + 1), Term: new(x.as.term)}}
	if x.rep.installSnapshot(s) || x.node.host.err == nil || x.rep.machine.Applied() != before {
		t.Errorf("it is installed: %+v, %v", x.rep.machine.Applied(), x.node.host.err)
	}
	x.node.host.err = nil
}

// A sender believes what is said of the transfer that it has under way, by the replica that it goes to.
func TestChunk_ConfirmedIsWhatWasSent(t *testing.T) {
	r, lead, other := behind(t, 60)
	r.heal()
	r.drop = func(_, _ shard.NodeID, kind byte) bool { return kind == msgChunkOK }
	rep := lead.host.reps[1]
	to := other.host.reps[1].rid
	r.until("transfer", func() bool { return rep.out[to] != nil && rep.out[to].under > 0 })
	o := rep.out[to]
	say := func(by *rigNode, from, to, transfer, next uint64, state byte) {
		rd := codec.Read(append(appendUvarints(nil, from, to, transfer, next), state))
		rep.receiveChunkOK(lead.host.peers[by.id], &rd)
	}
	say(other, to, rep.rid, o.transfer-1, 1, chunkWanted)
	say(other, to, rep.rid, o.transfer-1, 0, chunkUnwanted)
	say(other, to, rep.rid+1, o.transfer, 1, chunkWanted)
	say(r.third(lead, other), to, rep.rid, o.transfer, 1, chunkWanted)
	say(other, to, rep.rid, o.transfer, uint64(len(o.chunks))+1, chunkWanted)
	if rep.out[to] != o || o.first != 0 {
		t.Fatalf("the sender is at %+v", rep.out[to])
	}
	say(other, to, rep.rid, o.transfer, 1, chunkWanted)
	if o.first != 1 {
		t.Errorf("the sender is at chunk %d, want 1", o.first)
	}
	say(other, to, rep.rid, o.transfer, 0, chunkUnwanted)
	r.until("another transfer", func() bool { return rep.out[to] != nil && rep.out[to].transfer != o.transfer })
	say(other, to, rep.rid, rep.out[to].transfer, 0, chunkUnwanted)
	if rep.out[to] != nil {
		t.Error("a snapshot that is not wanted is sent on")
	}
}

// A replica that gets its first state as a snapshot, and nothing after it, is read.
func TestChunk_TheFirstStateIsRead(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.LogEntriesMax = 5 })
	other := r.nodes[2]
	r.drop = func(from, to shard.NodeID, kind byte) bool {
		return (from == other.id || to == other.id) && kind == msgRaft
	}
	r.until("leader", func() bool { return r.nodes[0].host.Shards()[0].Leads || r.nodes[1].host.Shards()[0].Leads })
	lead := r.leader2(other)
	for range 30 {
		lead.do("last=1")
	}
	r.isolate(other)
	r.run(3 * time.Second)
	lead.do("last=2")
	r.run(time.Second)
	if s := lead.host.Shards()[0]; s.First == 1 || other.last() != 0 {
		t.Fatalf("the log is not cut: %+v", s)
	}
	r.heal()
	r.same("last", "2")
}

// The state that is sent is the one that raft was told of.
func TestChunk_SentIsTheStateThatRaftMeans(t *testing.T) {
	r, lead, other := behind(t, 10)
	rep, to := lead.host.reps[1], other.host.reps[1].rid
	s, err := rep.makeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	s.Metadata.Index = new(s.Metadata.GetIndex() - 1)
	rep.startSnapshot(lead.host.peers[other.id], &raftpb.Message{Type: raftpb.MsgSnap.Enum(), To: new(to), Term: new(rep.term), Snapshot: s})
	if rep.out[to] != nil || rep.made != nil || lead.host.sending != 0 {
		t.Errorf("another state is sent: %+v, %d under way", rep.out[to], lead.host.sending)
	}
	// Nor is one sent to a replica that is none of the shard's any more.
	if s, err = rep.makeSnapshot(); err != nil {
		t.Fatal(err)
	}
	gone := replicaID(other.id, 9)
	rep.startSnapshot(lead.host.peers[other.id], &raftpb.Message{Type: raftpb.MsgSnap.Enum(), To: new(gone), Term: new(rep.term), Snapshot: s})
	if rep.out[gone] == nil {
		t.Fatal("nothing is sent")
	}
	if rep.tickSnapshots(); rep.out[gone] != nil || lead.host.sending != 0 {
		t.Errorf("a snapshot for a replica that is gone: %d under way", lead.host.sending)
	}
	// sendingMax are under way at most.
	lead.host.sending = sendingMax
	if _, err := rep.makeSnapshot(); err != raft.ErrSnapshotTemporarilyUnavailable {
		t.Errorf("one more: %v", err)
	}
	lead.host.sending = 0
	r.heal()
	r.same("last", "1")
}
