package replica

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

func appendUvarints(b []byte, vs ...uint64) []byte {
	for _, v := range vs {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func appendUint64(b []byte, v uint64) []byte { return binary.LittleEndian.AppendUint64(b, v) }

func TestWire_HeaderRoundTrip(t *testing.T) {
	h := frameHeader{from: 3, session: 1 << 60, logID: 5 | awareBit, yourLog: 6}
	got, rest, err := readFrameHeader(append(appendFrameHeader(nil, h), "rest"...))
	if err != nil || got != h || string(rest) != "rest" {
		t.Errorf("got %+v %q %v", got, rest, err)
	}
	b := appendFrameHeader(nil, h)
	if _, _, err := readFrameHeader(b[:len(b)-1]); !errs.Is(err, errs.Corrupt) {
		t.Errorf("short: %v", err)
	}
	b[0] = 9
	if _, _, err := readFrameHeader(b); !errs.Is(err, errs.Unsupported) {
		t.Errorf("later version: %v", err)
	}
}

func TestWire_MessageRoundTrip(t *testing.T) {
	for _, size := range []int{0, 1, 127, 128, 1 << 14, 1 << 21} {
		w := beginMessage([]byte("before"), msgDigest)
		w.b = append(w.b, bytes.Repeat([]byte{7}, size)...)
		kind, body, rest, err := nextMessage(append(w.end(), "after"...)[len("before"):])
		if kind != msgDigest || len(body) != size || string(rest) != "after" || err != nil {
			t.Errorf("size %d: kind %d, %d bytes, rest %q, %v", size, kind, len(body), rest, err)
		}
	}
	for _, b := range [][]byte{{1}, {1, 5, 0}, {1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}} {
		if _, _, _, err := nextMessage(b); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%x: got %v", b, err)
		}
	}
}

func raftMessage() *raftpb.Message {
	return &raftpb.Message{
		Type: raftpb.MsgApp.Enum(), To: new(uint64(1)), From: new(uint64(2)), Term: new(uint64(7)), LogTerm: new(uint64(6)),
		Index: new(uint64(10)), Commit: new(uint64(9)), Vote: new(uint64(0)), RejectHint: new(uint64(3)), Reject: new(true),
		Context: []byte("context"),
		Entries: []*raftpb.Entry{
			{Type: raftpb.EntryNormal.Enum(), Term: new(uint64(6)), Index: new(uint64(11)), Data: []byte("data")},
			{Type: raftpb.EntryConfChangeV2.Enum(), Term: new(uint64(7)), Index: new(uint64(12)), Data: []byte{}},
		},
	}
}

func TestWire_RaftRoundTrip(t *testing.T) {
	full := raftMessage()
	plain := raftMessage()
	plain.Reject, plain.Context, plain.Entries = nil, nil, nil
	for _, m := range []*raftpb.Message{full, plain} {
		b := appendRaft(nil, 300, m, 0)
		kind, body, rest, err := nextMessage(b)
		if kind != msgRaft || len(rest) != 0 || err != nil {
			t.Fatalf("kind %d, rest %d, %v", kind, len(rest), err)
		}
		id, got, _, err := readRaft(body)
		if err != nil || id != 300 {
			t.Fatalf("shard %d, %v", id, err)
		}
		if fmt.Sprint(got) != fmt.Sprint(m) {
			t.Errorf("got  %v\nwant %v", got, m)
		}
		for n := range body {
			if _, _, _, err := readRaft(body[:n]); err == nil {
				t.Errorf("the first %d of %d bytes were taken", n, len(body))
			}
		}
		if _, _, _, err := readRaft(append(bytes.Clone(body), 0)); !errs.Is(err, errs.Corrupt) {
			t.Errorf("with a byte too many: %v", err)
		}
	}
	m := raftMessage()
	m.Type = raftpb.MessageType(99).Enum()
	_, body, _, _ := nextMessage(appendRaft(nil, 1, m, 0))
	if _, _, _, err := readRaft(body); !errs.Is(err, errs.Unsupported) {
		t.Errorf("unknown type: %v", err)
	}
}

func TestWire_ClaimedCountsCostNothing(t *testing.T) {
	b := appendUvarints(nil, 1)
	b = append(b, byte(raftpb.MsgApp), flagEntries)
	b = appendUvarints(b, 1, 2, 3, 4, 5, 6, 7, 8, 1<<40)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, _, _, err := readRaft(b); !errs.Is(err, errs.Corrupt) {
		t.Errorf("got %v", err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 64<<10 {
		t.Errorf("a message of %d bytes allocated %d", len(b), got)
	}
}

func TestWire_OnlyWhatTravelsIsTaken(t *testing.T) {
	f := func(name string, ok bool, change func(*raftpb.Message)) {
		t.Helper()
		m := raftMessage()
		change(m)
		if err := travels(m); (err == nil) != ok {
			t.Errorf("%s: got %v", name, err)
		}
	}
	f("append", true, func(*raftpb.Message) {})
	f("gap", false, func(m *raftpb.Message) { m.Entries[1].Index = new(uint64(13)) })
	f("overlap", false, func(m *raftpb.Message) { m.Entries[0].Index = new(uint64(10)) })
	f("terms that fall", false, func(m *raftpb.Message) { m.Entries[1].Term = new(uint64(5)) })
	f("term of the future", false, func(m *raftpb.Message) { m.Entries[1].Term = new(uint64(8)) })
	f("snapshot", false, func(m *raftpb.Message) { m.Type = raftpb.MsgSnap.Enum() })
	f("proposal", false, func(m *raftpb.Message) { m.Type = raftpb.MsgProp.Enum() })
	f("local message", false, func(m *raftpb.Message) { m.Type = raftpb.MsgHup.Enum() })
	f("storage response", false, func(m *raftpb.Message) { m.Type = raftpb.MsgStorageAppendResp.Enum() })
	f("read without a context", false, func(m *raftpb.Message) { m.Type, m.Entries = raftpb.MsgReadIndex.Enum(), nil })
	f("heartbeat with a short context", false, func(m *raftpb.Message) { m.Type, m.Context = raftpb.MsgHeartbeatResp.Enum(), []byte{1} })
	f("heartbeat", true, func(m *raftpb.Message) { m.Type, m.Context = raftpb.MsgHeartbeat.Enum(), make([]byte, readAckBytes) })
	f("plain heartbeat", true, func(m *raftpb.Message) { m.Type, m.Context = raftpb.MsgHeartbeat.Enum(), nil })
}

func TestReceive_MalformedFramesAreNotedAndDropped(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	p := other.host.peers[lead.id]
	header := appendFrameHeader(nil, frameHeader{from: lead.id, session: p.session, logID: p.logID})
	f := func(name, note string, from shard.NodeID, data []byte) {
		t.Helper()
		r.notes = nil
		out := other.turn(Frame{From: from, Data: data})
		if note == "" && len(out.Notes) > 0 || note != "" && !r.noted(note) {
			t.Errorf("%s: notes %v, want %q", name, r.notes, note)
		}
		if out.Fatal != nil {
			t.Errorf("%s: %v", name, out.Fatal)
		}
	}
	message := func(kind byte, body ...byte) []byte {
		w := beginMessage(bytes.Clone(header), kind)
		w.b = append(w.b, body...)
		return w.end()
	}
	f("empty", "malformed frame", lead.id, nil)
	f("half a header", "malformed frame", lead.id, header[:10])
	f("half a message", "malformed frame", lead.id, append(bytes.Clone(header), msgRaft, 0xff))
	f("from a stranger", "", 77, header)
	f("under another's name", "", lead.id, appendFrameHeader(nil, frameHeader{from: other.id}))
	f("bad raft message", "malformed message", lead.id, message(msgRaft, 1, 2))
	f("raft message that does not travel", "malformed message", lead.id, message(msgRaft, appendUvarints([]byte{1, byte(raftpb.MsgHup), 0}, 1, 2, 3, 4, 5, 6, 7, 8)...))
	f("unknown shard", "", lead.id, message(msgDigest, 99))
	f("unknown kind", "", lead.id, message(200, 1))
	for _, kind := range []byte{msgForward, msgQuiesce, msgChunk, msgChunkOK, msgReplace, msgAssign, msgDigest} {
		f(fmt.Sprintf("short message of kind %d", kind), "malformed message", lead.id, message(kind, 1))
	}
	f("forward of garbage", "", lead.id, message(msgForward, 1, 0, 3, 'a', 'b', 'c'))
	if res := other.do("k=1"); res.Err != nil {
		t.Errorf("afterwards: %+v", res)
	}
}

// FuzzFrame gives arbitrary frames of a known peer to a host. It may note them; raft may stop at a message that can only
// mean lost data; nothing else may happen.
func FuzzFrame(f *testing.F) {
	f.Add(appendRaft(nil, 1, raftMessage(), 0))
	for kind := byte(1); kind <= 8; kind++ {
		w := beginMessage(nil, kind)
		w.b = appendUvarints(w.b, 1, 2<<16|1, 1<<16|1, 1, 5, 1, 0, 1)
		f.Add(w.end())
	}
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, body []byte) {
		r := newRig(t, 3, nil)
		n := r.nodes[0]
		n.turn()
		defer func() {
			if p := recover(); p != nil {
				if e, ok := p.(*errs.Error); !ok || e.Kind != errs.Internal {
					panic(p)
				}
			}
		}()
		for _, id := range []uint64{0, 7} {
			data := appendFrameHeader(nil, frameHeader{from: 2, session: 5, logID: 6, yourLog: id})
			n.turn(Frame{From: 2, Data: append(data, body...)})
			if n.host == nil {
				return
			}
		}
		r.now = r.now.Add(r.nodes[0].host.cfg.Tick)
		n.turn()
	})
}
