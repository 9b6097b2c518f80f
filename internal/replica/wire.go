package replica

import (
	"encoding/binary"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// A frame is what one node sends another in one turn: a header and any number of messages. Format: docs/formats/peer.md.
const (
	frameVersion    = 1
	frameHeaderSize = 1 + 4 + 8 + 8 + 8
	// frameFull is the size from which a frame takes no more messages. What a turn has for a node may be any size; one frame
	// of it would be over what the transport takes, be dropped, and be made again just as large.
	frameFull = 1 << 20
	// frameJoinMax is how large a frame may be that holds control messages behind others.
	frameJoinMax = 64 << 10
	// frameRoomMax bounds what a new frame takes in advance: most frames are small, whatever the others are.
	frameRoomMax = 4 << 10
)

// FrameBytesMax bounds a frame: one message may follow in a frame that is not quite full. The largest messages are raft's
// append with one entry of one command, the forward of such a batch, and the chunk of a snapshot with one row, and commands
// and rows are bounded. A transport must take frames of this size.
const FrameBytesMax = 64 << 20

// Message kinds. Append only.
const (
	msgRaft    = 1
	msgForward = 2
	msgQuiesce = 3
	msgChunk   = 4
	msgChunkOK = 5
	msgReplace = 6
	msgDigest  = 7
	msgAssign  = 8
)

// frameHeader says who sends.
type frameHeader struct {
	from shard.NodeID
	// session is the sender's boot: it changes with every start.
	session uint64
	// logID names the sender's raft log: it changes when the disk was replaced.
	logID uint64
	// yourLog is the log id that the sender knows the receiver by, 0 if it never heard of it.
	yourLog uint64
}

func appendFrameHeader(b []byte, h frameHeader) []byte {
	b = append(b, frameVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.from))
	b = binary.LittleEndian.AppendUint64(b, h.session)
	b = binary.LittleEndian.AppendUint64(b, h.logID)
	return binary.LittleEndian.AppendUint64(b, h.yourLog)
}

func readFrameHeader(b []byte) (h frameHeader, rest []byte, err error) {
	if len(b) < frameHeaderSize {
		return h, nil, errs.New(errs.Corrupt, "peer frame of %d bytes is shorter than its header", len(b))
	}
	if b[0] != frameVersion {
		return h, nil, errs.New(errs.Unsupported, "peer frame of version %d; this build knows version %d", b[0], frameVersion)
	}
	h.from = shard.NodeID(binary.LittleEndian.Uint32(b[1:]))
	h.session = binary.LittleEndian.Uint64(b[5:])
	h.logID = binary.LittleEndian.Uint64(b[13:])
	h.yourLog = binary.LittleEndian.Uint64(b[21:])
	return h, b[frameHeaderSize:], nil
}

// nextMessage splits the first message off a frame's body.
func nextMessage(b []byte) (kind byte, body, rest []byte, err error) {
	r := codec.Read(b)
	kind = r.Byte()
	body = r.Bytes()
	if r.Bad() {
		return 0, nil, nil, errs.New(errs.Corrupt, "peer frame ends inside a message")
	}
	return kind, body, r.Rest(), nil
}

// message is a growing message inside a frame: its length is patched in when it ends.
type message struct {
	b     []byte
	start int
}

// lengthRoom is the space kept for a message's length: a uvarint padded to four bytes, for up to 2^28-1 bytes.
const lengthRoom = 4

func beginMessage(b []byte, kind byte) message {
	b = append(b, kind, 0, 0, 0, 0)
	return message{b: b, start: len(b)}
}

func (m message) end() []byte {
	n := uint32(len(m.b) - m.start)
	at := m.b[m.start-lengthRoom:]
	at[0] = byte(n) | 0x80
	at[1] = byte(n>>7) | 0x80
	at[2] = byte(n>>14) | 0x80
	at[3] = byte(n>>21) & 0x7f
	return m.b
}

const (
	flagReject = 1 << iota
	flagContext
	flagEntries
	flagSnapshot
	// flagKnown marks an append without entries: the sender knows that the receiver has all up to its index, so that an answer
	// would say nothing.
	flagKnown
)

// appendRaft adds a raft message to a frame; flags is flagKnown or 0.
func appendRaft(b []byte, id shard.ID, m *raftpb.Message, flags byte) []byte {
	w := beginMessage(b, msgRaft)
	if m.GetReject() {
		flags |= flagReject
	}
	if len(m.Context) > 0 {
		flags |= flagContext
	}
	if len(m.Entries) > 0 {
		flags |= flagEntries
	}
	b = binary.AppendUvarint(w.b, uint64(id))
	b = append(b, byte(m.GetType()), flags)
	for _, v := range [...]uint64{
		m.GetTo(), m.GetFrom(), m.GetTerm(), m.GetLogTerm(), m.GetIndex(), m.GetCommit(), m.GetVote(), m.GetRejectHint(),
	} {
		b = binary.AppendUvarint(b, v)
	}
	if flags&flagContext != 0 {
		b = codec.AppendBytes(b, m.Context)
	}
	if flags&flagEntries != 0 {
		b = binary.AppendUvarint(b, uint64(len(m.Entries)))
		for _, e := range m.Entries {
			b = append(b, byte(e.GetType()))
			b = binary.AppendUvarint(b, e.GetTerm())
			b = binary.AppendUvarint(b, e.GetIndex())
			b = codec.AppendBytes(b, e.Data)
		}
	}
	w.b = b
	return w.end()
}

// readRaft decodes a raft message and its flags. Entries point into body.
func readRaft(body []byte) (shard.ID, *raftpb.Message, byte, error) {
	r := codec.Read(body)
	id := shard.ID(r.Uvarint())
	typ, flags := r.Byte(), r.Byte()
	// All of it lives and dies together.
	all := new(struct {
		m   raftpb.Message
		typ raftpb.MessageType
		v   [8]uint64
	})
	m, v := &all.m, &all.v
	all.typ = raftpb.MessageType(typ)
	for i := range v {
		v[i] = r.Uvarint()
	}
	m.Type, m.To, m.From, m.Term, m.LogTerm, m.Index, m.Commit = &all.typ, &v[0], &v[1], &v[2], &v[3], &v[4], &v[5]
	m.Vote, m.RejectHint = &v[6], &v[7]
	if flags&flagReject != 0 {
		m.Reject = new(true)
	}
	if flags&flagContext != 0 {
		m.Context = r.Bytes()
	}
	if flags&flagEntries != 0 {
		if n := r.Count(4); !r.Bad() {
			type flat struct {
				e           raftpb.Entry
				term, index uint64
				typ         raftpb.EntryType
			}
			all := make([]flat, n)
			m.Entries = make([]*raftpb.Entry, n)
			for i := range all {
				f := &all[i]
				f.typ = raftpb.EntryType(r.Byte())
				f.term, f.index = r.Uvarint(), r.Uvarint()
				f.e.Type, f.e.Term, f.e.Index, f.e.Data = &f.typ, &f.term, &f.index, r.Bytes()
				m.Entries[i] = &f.e
			}
		}
	}
	if !r.Done() {
		return 0, nil, 0, errs.New(errs.Corrupt, "malformed raft message in a peer frame")
	}
	if _, known := raftpb.MessageType_name[int32(typ)]; !known {
		return 0, nil, 0, errs.New(errs.Unsupported, "raft message of unknown type %d", typ)
	}
	return id, m, flags, nil
}
