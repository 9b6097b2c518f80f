package storage

import (
	"hash/crc32"
	"math/rand/v2"
	"reflect"
	"testing"
)

func TestSums_EqualThoseOfTheBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		b := make([]byte, rng.IntN(3000))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		s := sums{b: b}
		for range 50 {
			end := rng.IntN(len(b) + 1)
			off, seed := rng.IntN(end+1), rng.Uint32()
			if got, want := s.of(off, end, seed), crc32.Update(seed, castagnoli, b[off:end]); got != want {
				t.Fatalf("bytes %d to %d of %d from %x: got %x, want %x", off, end, len(b), seed, got, want)
			}
		}
	}
	long := make([]byte, 3<<20)
	long[5] = 1
	s := sums{b: long}
	if got, want := s.of(3, len(long)-1, 7), crc32.Update(7, castagnoli, long[3:len(long)-1]); got != want {
		t.Errorf("a long stretch: got %x, want %x", got, want)
	}
}

// scanPlainly is what scanSegment must find, checksum by checksum.
func scanPlainly(b []byte, from int, seed uint32, next uint64) (recs []record) {
	for off := from; off+recordHeaderBytes <= len(b); {
		rec, ok := recordAt(b, off, seed, true)
		if !ok || rec.number < next {
			off += 8
			continue
		}
		recs = append(recs, rec)
		next, off = rec.number+1, rec.end
	}
	return recs
}

// appendFakeHeaders appends what a client may store to slow down a restart: at each 32 bytes the header of a record with a high number,
// which claims so many bytes that it ends where the segment does.
func appendFakeHeaders(b []byte, n, segment int) []byte {
	for range n {
		b = le.AppendUint32(b, 1)
		b = le.AppendUint32(b, uint32(min(segment-len(b)-recordHeaderBytes, payloadBytesMax)))
		b = le.AppendUint64(b, 1<<61)
		b = le.AppendUint64(b, 0)
		b = le.AppendUint64(b, uint64(kindBatch))
	}
	return b
}

// The search for records behind damage, or behind the end of the log, reads a segment a few times, whatever is in it, and misses none.
func TestScanSegment_CostsLittleAndMissesNothing(t *testing.T) {
	const segment = 1 << 20
	const seed = 99
	rng := rand.New(rand.NewPCG(2, 2))
	for run := range 3 {
		b := make([]byte, segmentHeaderBytes, segment)
		var want []int
		for number := uint64(5); len(b) < segment-64<<10; number++ {
			switch rng.IntN(3) {
			case 0:
				b = appendFakeHeaders(b, 1+rng.IntN(500), segment)
			case 1:
				b = append(b, make([]byte, 8*rng.IntN(100))...) // zeros
			}
			start, n := len(b), number
			if rng.IntN(4) == 0 {
				n -= uint64(rng.IntN(3)) // one that was there before, or is older than what is looked for
			}
			b = beginRecord(b, kindBatch, n, n)
			if rng.IntN(2) == 0 {
				b = appendFakeHeaders(b, rng.IntN(500), segment)
			} else {
				b = append(b, make([]byte, rng.IntN(5000))...)
			}
			b = endRecord(b, start, seed)
			if rng.IntN(3) == 0 {
				b[start+40+rng.IntN(8)] ^= 4 // damage
			}
			want = append(want, start)
		}
		b = appendFakeHeaders(b, (segment-len(b))/32, segment)
		b = append(b, make([]byte, segment-len(b))...) // or the others would claim more than there is
		s := sums{b: b}
		got := s.scan(segmentHeaderBytes, seed, 5, true)
		if plain := scanPlainly(b, segmentHeaderBytes, seed, 5); !reflect.DeepEqual(got, plain) || len(got) == 0 {
			t.Fatalf("run %d: of %d records %d were found, %d by checksums of all", run, len(want), len(got), len(plain))
		}
		if s.read > 6*len(b) {
			t.Errorf("run %d: %d bytes were checksummed of a segment of %d", run, s.read, len(b))
		}
	}
}
