package eventlog

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// resum gives a changed batch a right checksum.
func resum(b []byte) []byte {
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], castagnoli))
	return b
}

// FuzzCommand feeds commands and queries to a machine: no input may panic, and none may be half applied.
func FuzzCommand(f *testing.F) {
	f.Add(EncodeCreateTopic(Topic{ID: topicA, Name: "t", Partitions: 2}))
	f.Add(EncodeAppend([]Append{{topicA, 1, batchOf(1, 2), 0}}, false))
	f.Add(EncodeAppend([]Append{{topicA, 1, from(3, 0, 0, 2), 0}}, false))
	f.Add(EncodeAppend([]Append{{topicA, 1, batchOf(1, 2), 7}}, true))
	f.Add(AppendEvent(nil, topicA, 1, []byte("k"), false, []byte("v"), []Header{{"h", nil}}, nil))
	f.Add(EncodeJoin(Join{Group: "g", NewID: "n", ProtocolType: "p", Protocols: []Protocol{{"r", []byte{1}}}, SessionMs: 1, RebalanceMs: 2}))
	f.Add(EncodeSync(Sync{Group: "g", MemberID: "n", Generation: 1}))
	f.Add(EncodeHeartbeat("g", "n", "", 1))
	f.Add(EncodeLeave("g", []Leaver{{"n", ""}}))
	f.Add(EncodeCommit(Commit{Group: "g", Generation: -1, Offsets: []CommittedOffset{{"t", 1, 2, 3, "x"}}}))
	f.Add(QueryFetch(10, true, []Fetch{{Topic: topicA}}))
	f.Add(QueryTime(topicA, 0, 5))
	f.Add(QueryCommits("g", true, nil))
	store, err := storage.OpenStore(storage.MemFS(), "state", storage.StoreConfig{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = store.Close() })
	m, err := shard.OpenMachine(store, 1, shard.Modules(Module{}), shard.MachineConfig{})
	if err != nil {
		f.Fatal(err)
	}
	now := time.UnixMilli(1_700_000_000_000)
	f.Fuzz(func(t *testing.T, b []byte) {
		cmd := shard.Command{Module: shard.ModuleEventlog, Data: b}
		_, _ = m.Query(cmd)
		out := shard.Applied{Own: 1}
		now = now.Add(time.Millisecond)
		e := shard.AppendCommand(shard.AppendBatchHeader(nil, shard.BatchHeader{Stamp: now}), cmd)
		if err := m.Apply(m.Applied().Index+1, 1, e, &out); err != nil {
			t.Fatal(err)
		}
		if err := m.Apply(m.Applied().Index+1, 1, shard.TimersEntry(now), &out); err != nil {
			t.Fatal(err)
		}
		if err := m.Commit(&out); err != nil {
			t.Fatal(err)
		}
	})
}

// plainRecord reads a record in memory, and returns its offset delta.
func plainRecord(b []byte) (delta int64, ok bool) {
	d := dec{codec.Read(b)}
	field := func() {
		if n := d.Varint(); n >= -1 {
			d.Fixed(int(max(n, 0)))
		} else {
			d.Fail()
		}
	}
	d.Byte()
	d.Varint()
	delta = d.Varint()
	field()
	field()
	for n := d.Varint(); n > 0 && !d.Bad(); n-- {
		d.Fixed(int(d.Varint()))
		field()
	}
	return delta, d.Done()
}

// FuzzCheckBatch checks that the validator never panics, that it says the same of a batch in memory and of a stream, and that what it accepts can be read
// by another reader of records.
func FuzzCheckBatch(f *testing.F) {
	f.Add(batchOf(1, 2, 3), false)
	f.Add(from(1, 0, 0, 1), false)
	f.Add(fencedBatch(-1, 0, "7", "7"), true)
	f.Add(rawBatch(raw(byte(0), 0, 0, 3, "key", -1, 2, 1, "h", -1, 13, FenceHeader, 1, "7")), true)
	f.Fuzz(func(t *testing.T, b []byte, fenced bool) {
		if len(b) >= BatchHeaderSize {
			b = resum(append([]byte(nil), b...))
		}
		topic := Topic{Name: "t"}
		if fenced {
			topic.Fence = "lock"
		}
		h, token, err := checkAll(t, b, topic)
		if err != nil {
			return
		}
		if fenced != (token > 0) {
			t.Fatalf("token %d", token)
		}
		if got, _ := ReadBatchHeader(b); got != h || resum(bytes.Clone(b))[17] != b[17] {
			t.Fatalf("the batch has %+v, the answer %+v", got, h)
		}
		n := int32(0)
		for rest := b[BatchHeaderSize:]; len(rest) > 0; n++ {
			size, w := binary.Varint(rest)
			if delta, ok := plainRecord(rest[w : w+int(size)]); !ok || delta != int64(n) {
				t.Fatalf("accepted a batch whose record %d cannot be read, or has offset delta %d", n, delta)
			}
			rest = rest[w+int(size):]
		}
		if n != h.Records {
			t.Fatalf("accepted %d records, counted %d", n, h.Records)
		}
	})
}

// FuzzAnswers feeds the decoders of answers.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = DecodeTopic(b)
		_, _ = DecodeTopics(b)
		_, _ = DecodeAppended(b)
		_, _ = DecodeFetched(b)
		_, _ = DecodeEnds(b)
		_, _, _ = DecodeChangeTime(b)
		_, _ = DecodeProducer(b)
		_, _, _ = DecodeJoined(b)
		_, _ = DecodeHeartbeat(b)
		_, _ = DecodeLeft(b)
		_, _ = DecodeCommits(b)
		_, _ = DecodeJoinState(b)
		_, _ = DecodeSyncState(b)
		_, _ = DecodeGroups(b)
		_, _ = DecodeGroup(b)
	})
}
