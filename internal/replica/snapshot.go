package replica

import (
	"cmp"
	"encoding/binary"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// snapshots moves whole states between replicas, in numbered chunks that the receiver confirms. raft decides that a
// snapshot is needed and where it stands; the rows travel beside raft's messages, and raft learns of the snapshot on the
// receiver's side when all of it has arrived and its checksum holds.
type snapshots struct {
	// made is the reader of the snapshot that raft was last told of.
	made    *shard.SnapshotReader
	out     map[uint64]*snapshotOut
	in      *snapshotIn
	arrived *snapshotIn
}

type snapshotOut struct {
	to uint64
	// transfer tells this one from others of the same state in the same term: it is higher than that of those before.
	transfer uint64

	reader *shard.SnapshotReader
	meta   *raftpb.SnapshotMetadata
	term   uint64
	// chunks holds what is sent and not confirmed: chunk number first+i. The first under of them are under way; those behind were lost with a link, or
	// not taken, and are to be sent again.
	chunks []sentChunk
	first  uint64
	under  int
	last   bool
	sum    *xxhash.Digest
	// window is how many may be under way, and soonest the least time that one took.
	window  int
	soonest time.Duration
	// at is when the transfer last moved on, or the receiver said that it waits. again tells when the first chunk that is not confirmed was last sent, and wait for how long a
	// confirmation may take before that is done again.
	at    time.Time
	again repeats
	wait  time.Duration
	// waits says that the receiver takes nothing at present.
	waits bool
}

type sentChunk struct {
	data []byte
	// at is when it was sent, repetitions of the first that is not confirmed aside.
	at time.Time
}

type snapshotIn struct {
	from     uint64
	transfer uint64

	index uint64
	conf  []byte
	msg   uint64
	next  uint64
	sum   *xxhash.Digest
	into  *shard.Installer
	at    time.Time
	// ahead holds chunks that overtook chunk next: number n is at n % chunksAheadMax.
	ahead [chunksAheadMax]chunk
}

// chunk is a received piece of a snapshot. The last one is empty and carries the checksum of all.
type chunk struct {
	n    uint64
	data []byte
	last bool
	sum  uint64
	held bool
}

const (
	// chunksAhead is how many chunks may be under way to one replica, chunksAheadMax if it is far away: then most of the time that one takes is not for what
	// is under way before it. chunksTogether bounds those of all shards that are more than chunksAhead.
	chunksAhead    = 4
	chunksAheadMax = 32
	chunksTogether = 64
	// sendingMax is how many snapshots a node sends at once, of all shards together. A node whose disk was replaced needs one of every shard. raft asks
	// again with the next answer to a heartbeat.
	sendingMax = 32
	// snapshotRepeatTicks is after how many ticks at least an unconfirmed chunk is sent again.
	snapshotRepeatTicks = 3
	// snapshotWaitMax is for how long at most the first repetition waits.
	snapshotWaitMax = 8 * time.Second
	// snapshotGiveUp is how long a transfer may make no progress if the other node is silent, snapshotGiveUpSlow if it is not: it may take so long to send
	// what waits before the next chunk.
	snapshotGiveUp     = 10 * time.Second
	snapshotGiveUpSlow = 2 * time.Minute
)

// What a sender says of a chunk: that it is the last, and that it knows that the first has arrived.
const (
	chunkLast  = 1
	chunkBegun = 2
)

// What a receiver says of a snapshot, with the chunk that is next.
const (
	chunkWanted   = 0
	chunkUnwanted = 1
	// chunkWaits says that nothing is taken for now.
	chunkWaits = 2
)

// makeSnapshot tells raft where a snapshot taken now would stand.
func (r *replica) makeSnapshot() (*raftpb.Snapshot, error) {
	if r.made == nil && r.host.sending >= sendingMax {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	rd, err := r.machine.Snapshot()
	if err != nil {
		r.host.fatal(err)
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	r.dropMade()
	r.made = rd
	r.host.sending++
	p := rd.Position()
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: new(p.Index), Term: new(p.Term), ConfState: decodeConf(rd.Conf()),
	}}, nil
}

// startSnapshot begins to send what raft wants sent as a snapshot.
func (r *replica) startSnapshot(p *peer, m *raftpb.Message) {
	meta := m.GetSnapshot().GetMetadata()
	if r.out == nil {
		r.out = map[uint64]*snapshotOut{}
	}
	if old := r.out[m.GetTo()]; old != nil {
		r.dropSnapshotOut(old)
	}
	if r.made == nil || r.made.Position().Index != meta.GetIndex() {
		r.dropMade()
		r.rn.ReportSnapshot(m.GetTo(), raft.SnapshotFailure)
		return
	}
	r.host.transfers++
	o := &snapshotOut{
		to: m.GetTo(), transfer: r.host.transfers, reader: r.made, meta: meta, term: m.GetTerm(), sum: xxhash.New(), at: r.host.now,
		again: repeats{at: r.host.now}, wait: snapshotRepeatTicks * r.host.cfg.Tick, window: chunksAhead,
	}
	r.made = nil
	r.out[o.to] = o
	r.host.note(false, r.id, "sending a snapshot", "to", p.id, "index", meta.GetIndex())
	r.pushChunks(p, o)
}

// pushChunks sends chunks until enough are under way, but only chunksAhead at once: to read them takes time.
func (r *replica) pushChunks(p *peer, o *snapshotOut) {
	for n := 0; n < chunksAhead && o.under < o.window; n++ {
		if o.under == len(o.chunks) {
			if o.last {
				return
			}
			c, err := o.reader.Next(r.host.cfg.ChunkBytes)
			if err != nil {
				r.host.fatal(err)
				return
			}
			if c == nil {
				o.last = true
				c = []byte{}
			}
			_, _ = o.sum.Write(c)
			o.chunks = append(o.chunks, sentChunk{data: c})
		}
		o.chunks[o.under].at = r.host.now
		r.sendChunk(p, o, o.under)
		o.under++
	}
}

// sendChunk sends chunk first+i. The last one is empty and carries the checksum of all.
func (r *replica) sendChunk(p *peer, o *snapshotOut, i int) {
	f := r.host.frameFor(p)
	w := beginMessage(*f, msgChunk)
	b := binary.AppendUvarint(w.b, uint64(r.id))
	for _, v := range [...]uint64{r.rid, o.to, o.term, o.transfer, o.meta.GetIndex(), o.meta.GetTerm(), o.first + uint64(i)} {
		b = binary.AppendUvarint(b, v)
	}
	flags := byte(0)
	if o.first > 0 {
		flags |= chunkBegun
	}
	if o.last && i == len(o.chunks)-1 {
		b = append(b, flags|chunkLast)
		b = binary.LittleEndian.AppendUint64(b, o.sum.Sum64())
	} else {
		b = append(b, flags)
	}
	if o.first+uint64(i) == 0 {
		b = codec.AppendBytes(b, encodeConf(o.meta.GetConfState()))
	}
	w.b = codec.AppendBytes(b, o.chunks[i].data)
	*f = w.end()
}

// receiveChunk stores a chunk, and gives raft the snapshot when it was the last.
func (r *replica) receiveChunk(p *peer, rd *codec.Reader) {
	h := r.host
	from, to, msgTerm, transfer, index, term, n := rd.Uvarint(), rd.Uvarint(), rd.Uvarint(), rd.Uvarint(), rd.Uvarint(), rd.Uvarint(), rd.Uvarint()
	c, flags := chunk{n: n, held: true}, rd.Byte()
	if c.last = flags&chunkLast != 0; c.last {
		c.sum = rd.Uint64()
	}
	var conf []byte
	if n == 0 {
		conf = append([]byte(nil), rd.Bytes()...)
	}
	c.data = rd.Bytes()
	if rd.Bad() || r.rn == nil || to != r.rid || replicaNode(from) != p.id || msgTerm < r.term {
		return
	}
	r.wake()
	if r.arrived != nil {
		// raft takes over a complete snapshot at the end of this turn. Until then nothing may begin another one, not even this
		// one's first chunk that comes again: their rows would have the same place. The sender sends again.
		return
	}
	confirm := func(next uint64, state byte) { r.confirmChunk(p, from, transfer, next, state) }
	in := r.in
	if in != nil && in.from == from && in.msg == msgTerm && transfer < in.transfer {
		// It comes late: the sender has started over.
		return
	}
	if in == nil || in.from != from || in.transfer != transfer || in.msg != msgTerm {
		switch {
		case index <= r.machine.Applied().Index:
			confirm(0, chunkUnwanted)
			return
		case flags&chunkBegun != 0 || n >= chunksAhead:
			// Nothing of it is here, although the sender believes so: it must start over.
			confirm(0, chunkWanted)
			return
		case n != 0:
			// It has overtaken the first chunk, and will be sent again.
			return
		case h.behind:
			confirm(0, chunkWaits)
			return
		}
		r.dropSnapshotIn()
		into, err := r.machine.Install()
		if err != nil {
			h.fatal(err)
			return
		}
		in = &snapshotIn{from: from, transfer: transfer, index: index, conf: conf, msg: msgTerm, sum: xxhash.New(), into: into, at: h.now}
		r.in = in
		h.note(false, r.id, "receiving a snapshot", "from", p.id, "index", index)
	}
	if n < in.next || n >= in.next+chunksAheadMax {
		confirm(in.next, chunkWanted)
		return
	}
	if h.behind {
		// Rows come as fast as the network brings them. To store more would make the turn wait for the disk, and with it all other shards.
		in.at = h.now
		confirm(in.next, chunkWaits)
		return
	}
	in.ahead[n%chunksAheadMax] = c
	if n > in.next {
		return
	}
	in.at = h.now
	for c = in.ahead[in.next%chunksAheadMax]; c.held && c.n == in.next; c = in.ahead[in.next%chunksAheadMax] {
		in.ahead[in.next%chunksAheadMax] = chunk{}
		_, _ = in.sum.Write(c.data)
		if !(env.Mutant(env.MutantSnapshotChunkSkipped) && in.next == 1) {
			if err := in.into.Add(c.data); err != nil {
				h.note(true, r.id, "bad snapshot chunk; the transfer starts over", "error", err)
				r.dropSnapshotIn()
				return
			}
		}
		in.next++
		if c.last {
			break
		}
	}
	confirm(in.next, chunkWanted)
	if !c.last {
		return
	}
	r.in = nil
	if in.sum.Sum64() != c.sum {
		h.note(true, r.id, "snapshot fails its checksum; the transfer starts over", "index", index)
		return
	}
	r.arrived = in
	r.step(&raftpb.Message{
		Type: raftpb.MsgSnap.Enum(), To: new(r.rid), From: new(from), Term: new(msgTerm),
		Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
			Index: new(index), Term: new(term), ConfState: decodeConf(in.conf),
		}},
	})
}

// confirmChunk tells the sender which chunk is wanted next, and whether any is.
func (r *replica) confirmChunk(p *peer, to, transfer, next uint64, state byte) {
	f := r.host.controlFor(p)
	w := beginMessage(*f, msgChunkOK)
	b := binary.AppendUvarint(w.b, uint64(r.id))
	for _, v := range [...]uint64{r.rid, to, transfer, next} {
		b = binary.AppendUvarint(b, v)
	}
	w.b = append(b, state)
	*f = w.end()
}

func (r *replica) receiveChunkOK(p *peer, rd *codec.Reader) {
	from, to, transfer, next, state := rd.Uvarint(), rd.Uvarint(), rd.Uvarint(), rd.Uvarint(), rd.Byte()
	o := r.out[from]
	if rd.Bad() || r.rn == nil || to != r.rid || o == nil || o.transfer != transfer || replicaNode(from) != p.id {
		return
	}
	if state == chunkUnwanted {
		r.endSnapshot(o, raft.SnapshotFinish)
		return
	}
	if next < o.first {
		// The receiver started over.
		if next == 0 {
			r.endSnapshot(o, raft.SnapshotFailure)
		}
		return
	}
	if next > o.first+uint64(len(o.chunks)) {
		return
	}
	if state == chunkWaits {
		o.at, o.again, o.waits = r.host.now, repeats{at: r.host.now}, true
	}
	if next == o.first {
		return
	}
	if !o.waits {
		o.took(r.host, o.chunks[next-o.first-1].at)
	}
	o.at, o.again = r.host.now, repeats{at: r.host.now}
	o.under = max(0, o.under-int(next-o.first))
	o.chunks = o.chunks[next-o.first:]
	o.first = next
	if o.waits && state != chunkWaits {
		// It took none of those behind it either.
		o.waits = false
		o.lost()
	}
	if o.last && len(o.chunks) == 0 {
		r.endSnapshot(o, raft.SnapshotFinish)
		return
	}
	r.pushChunks(p, o)
}

// took learns from how long a chunk took, which was sent at some time, how long the next may take, and how many may be under way. With a repetition it may be the
// time until what was lost was sent again.
func (o *snapshotOut) took(h *Host, sent time.Time) {
	d := h.now.Sub(sent)
	if o.again.tries == 0 {
		if o.soonest == 0 || d < o.soonest {
			o.soonest = d
		}
		// What takes little longer than a chunk on its own does not wait for others, on the way or with the receiver. Those of one frame are confirmed together, and
		// count as one.
		switch most := min(max(chunksAhead, chunksTogether/max(1, h.sending)), chunksAheadMax); {
		case d <= o.soonest+o.soonest/4:
			if h.now.After(o.at) {
				o.window = min(o.window+1, most)
			}
		case d > o.soonest+o.soonest/2:
			o.window = max(o.window-1, chunksAhead)
		}
		d *= 2
	}
	o.wait = max(min(d, snapshotWaitMax), snapshotRepeatTicks*h.cfg.Tick)
}

// lost says that nothing is under way any more.
func (o *snapshotOut) lost() { o.under, o.window = 0, chunksAhead }

func (r *replica) endSnapshot(o *snapshotOut, st raft.SnapshotStatus) {
	r.dropSnapshotOut(o)
	r.rn.ReportSnapshot(o.to, st)
	r.host.markDirty(r)
}

// tickSnapshots repeats lost chunks and gives up transfers that stand still.
func (r *replica) tickSnapshots() {
	h := r.host
	for _, id := range h.peerIDs {
		for _, o := range r.outTo(id) {
			switch {
			case !r.isMember(o.to):
				r.endSnapshot(o, raft.SnapshotFailure)
			case h.standsStill(id, o.at):
				h.note(true, r.id, "snapshot transfer makes no progress; given up", "to", id)
				r.endSnapshot(o, raft.SnapshotFailure)
			case len(o.chunks) > 0 && o.again.due(h.now, o.wait, 0):
				// The receiver keeps those behind it.
				r.sendChunk(h.peers[id], o, 0)
				o.under, o.window = max(1, o.under), chunksAhead
			}
		}
	}
	if r.in != nil && h.standsStill(replicaNode(r.in.from), r.in.at) {
		r.dropSnapshotIn()
	}
}

// isMember says whether a replica is one of the shard's at present.
func (r *replica) isMember(id uint64) bool {
	conf := r.confNow().state
	return slices.Contains(conf.Voters, id) || slices.Contains(conf.Learners, id) || slices.Contains(conf.VotersOutgoing, id) ||
		slices.Contains(conf.LearnersNext, id)
}

// standsStill says whether a transfer from or to a node that moved on last at some time is given up.
func (h *Host) standsStill(n shard.NodeID, at time.Time) bool {
	idle := h.now.Sub(at)
	return idle > snapshotGiveUpSlow || idle > snapshotGiveUp && !h.Alive(n)
}

func (r *replica) outTo(n shard.NodeID) []*snapshotOut {
	var all []*snapshotOut
	for id, o := range r.out {
		if replicaNode(id) == n {
			all = append(all, o)
		}
	}
	slices.SortFunc(all, func(a, b *snapshotOut) int { return cmp.Compare(a.to, b.to) })
	return all
}

// installSnapshot switches to the received state, when raft has accepted it.
func (r *replica) installSnapshot(s *raftpb.Snapshot) bool {
	h := r.host
	// What was committed before goes first: those who wait for it get their answers.
	if r.apply(); h.err != nil {
		return false
	}
	in := r.arrived
	r.arrived = nil
	if in == nil || in.index != s.GetMetadata().GetIndex() {
		h.fatal(errInstall)
		return false
	}
	if err := in.into.Finish(); err != nil {
		h.fatal(err)
		return false
	}
	h.unsaved = true
	// It has a configuration of its own.
	h.out.Changed = true
	r.noteRebuilding()
	r.settleAfterSnapshot()
	clear(r.digests)
	h.out.Wakes = append(h.out.Wakes, ShardWakes{Shard: r.id, All: true})
	h.note(false, r.id, "installed a snapshot", "index", in.index)
	return true
}

func (r *replica) snapshotting() bool { return len(r.out) > 0 || r.in != nil || r.arrived != nil }

func (r *replica) dropSnapshotIn() { r.in = nil }

func (r *replica) dropSnapshotOut(o *snapshotOut) {
	_ = o.reader.Close()
	delete(r.out, o.to)
	r.host.sending--
}

func (r *replica) dropSnapshotsOut() {
	for _, o := range r.out {
		r.dropSnapshotOut(o)
	}
	r.dropMade()
}

func (r *replica) dropMade() {
	if r.made != nil {
		_ = r.made.Close()
		r.made = nil
		r.host.sending--
	}
}

// Close releases what the host holds of the store. The store itself stays open.
func (h *Host) Close() {
	for _, r := range h.order {
		r.dropSnapshotsOut()
	}
}

var errInstall = errs.New(errs.Internal, "raft accepted a snapshot that did not arrive")
