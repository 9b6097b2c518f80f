package storage

import (
	"bytes"
	"hash/crc32"
	"slices"
	"testing"
)

func crcOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// FuzzLogRecord decodes arbitrary payloads of each kind. What decodes as a checkpoint encodes to the same bytes.
func FuzzLogRecord(f *testing.F) {
	fs := oneSegment(f, true)
	name := segmentFiles(f, fs)[0]
	b := fileOf(f, fs, name)
	for _, rec := range scanSegment(b, segmentHeaderBytes, len(b), seedOf(7, 1), 0, true) {
		f.Add(uint8(rec.kind), rec.payload)
	}
	f.Fuzz(func(t *testing.T, kind uint8, payload []byte) {
		seed := seedOf(1, 2)
		rec := endRecord(append(beginRecord(nil, recordKind(kind), 5, 3), payload...), 0, seed)
		if got, ok := recordAt(rec, 0, seed, true); ok {
			if !bytes.Equal(got.payload, payload) || got.number != 5 || got.synced != 3 || got.end != len(rec) {
				t.Fatalf("got %+v", got)
			}
			if _, ok := recordAt(rec, 0, seed+1, true); ok {
				t.Fatal("passes with another segment's seed")
			}
		}
		_ = decodeBatch(payload, 0, 2, func(r *subRecord, slots []slot, terms []uint64) {
			if len(slots) != len(terms) {
				t.Fatalf("%d slots, %d terms", len(slots), len(terms))
			}
			for _, e := range slots {
				if e.end() > int64(len(payload)) {
					t.Fatalf("entry ends at %d of %d", e.end(), len(payload))
				}
			}
		})
		_, _ = decodeEntry(payload, seed, true)
		_, _ = decodeIdentity(payload)
		_, _ = decodeSegmentHeader(payload, 1, 2)
		if c, err := decodeCheckpoint(payload, 5, 2); err == nil {
			again, err := decodeCheckpoint(c.encode(nil), 5, 2)
			if err != nil || !slices.Equal(again.shards, c.shards) || again.info != c.info || again.allSuspect != c.allSuspect {
				t.Fatalf("a checkpoint changes on its way: %+v, %+v, %v", c, again, err)
			}
		}
	})
}

// FuzzOpenLog opens a log whose only segment holds arbitrary bytes. With fix set, the checksums of the records are made
// right, so that the fuzzer gets behind them.
func FuzzOpenLog(f *testing.F) {
	fs := oneSegment(f, true)
	name := segmentFiles(f, fs)[0]
	b := bytes.TrimRight(fileOf(f, fs, name), "\x00")
	f.Add(b, false)
	f.Add(b, true)
	f.Add(b[:len(b)/2], true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if fix {
			b = slices.Clone(b)
			if len(b) >= segmentHeaderBytes {
				le.PutUint32(b[segmentHeaderBytes-4:], crcOf(b[:segmentHeaderBytes-4]))
			}
			for off := segmentHeaderBytes; off < len(b); {
				rec, ok := recordHeader(b, off)
				if !ok {
					break
				}
				le.PutUint32(b[off:], crc32.Update(seedOf(7, 1), castagnoli, b[off+4:rec.end]))
				off = rec.end
			}
		}
		c := copyFS(t, fs)
		setFile(t, c, name, b)
		for i := range 2 {
			l, rec, err := OpenLog(c, logDir, smallLog())
			if err != nil {
				return // only a later version's header
			}
			for _, id := range l.Shards() {
				first, last := l.Bounds(id)
				for _, at := range []uint64{first - 1, last} {
					if _, err := l.Term(id, at); err != nil {
						t.Fatalf("shard %d: term at %d of %d to %d: %v", id, at, first, last, err)
					}
				}
				_, _ = l.Entries(id, first, last+1, 1<<20)
			}
			if (rec.AllSuspect || len(rec.Suspect) > 0) && len(rec.Damaged) == 0 && i == 0 && !fix {
				t.Fatalf("suspects without damage: %+v", rec)
			}
			if err := l.Append([]Write{{Shard: 77, Replica: l.Replica(77) + 1, Entries: entries(1, 2, 1, 10)}}); err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
