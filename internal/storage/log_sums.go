package storage

import (
	"hash/crc32"

	"github.com/quorate/quorate/internal/env"
)

// sums gives the checksum of any stretch of b for about the same small price, whatever its length. The search for records needs
// that: a value that a client stored may look like the header of a long record at every few bytes, and to checksum as much as each of
// them claims would take a restart minutes for each segment.
//
// CRC is linear: the register after the bytes from off to end is that after the bytes from 0 to end, less what the one after the bytes
// from 0 to off has become by end. The latter is a multiplication by a power of x modulo the polynomial (as in crc32_combine of zlib).
type sums struct {
	b []byte
	// at[i] is the register after the first i*sumsStep bytes, begun at zero. It is made when it is first needed.
	at []uint32
	// read counts the bytes that went through the checksum; tests look at it.
	read int
}

const (
	// sumsStep is how far the registers are apart that are kept. They take a sixteenth of b.
	sumsStep = 64
	// polynomial is Castagnoli's, with the highest power in the lowest bit, as package crc32 has it.
	polynomial = crc32.Castagnoli
)

// scan finds all valid records from an offset on with rising numbers not below next. Where none stands it looks for one further on.
func (s *sums) scan(from int, seed uint32, next uint64, check bool) []record {
	var recs []record
	follows := true // whether off is where the record before ends
	for off := from; off+recordHeaderBytes <= len(s.b); {
		rec, ok := recordHeader(s.b, off)
		if ok = ok && rec.number >= next; ok && check {
			sum := s.of
			if follows && s.at == nil {
				sum = s.plain // nothing was amiss yet, and most likely is not
			}
			ok = sum(off+4, rec.end, seed) == le.Uint32(s.b[off:]) || env.Mutant(env.MutantBitFlipBelieved)
		}
		if follows = ok; !ok {
			off += 8
			continue
		}
		recs = append(recs, rec)
		next, off = rec.number+1, rec.end
	}
	return recs
}

// plain is of for a stretch that is most likely a record's: whoever takes one record after the other reads each byte once, and need not
// have anything kept.
func (s *sums) plain(off, end int, seed uint32) uint32 {
	s.read += end - off
	return crc32.Update(seed, castagnoli, s.b[off:end])
}

// of returns crc32.Update(seed, castagnoli, s.b[off:end]).
func (s *sums) of(off, end int, seed uint32) uint32 {
	return ^(s.register(end) ^ shifted(s.register(off)^^seed, end-off))
}

// register returns the register after the first n bytes.
func (s *sums) register(n int) uint32 {
	if s.at == nil {
		s.at = make([]uint32, len(s.b)/sumsStep+1)
		for i := range len(s.at) - 1 {
			s.at[i+1] = ^crc32.Update(^s.at[i], castagnoli, s.b[i*sumsStep:(i+1)*sumsStep])
		}
		s.read += len(s.b)
	}
	i := n / sumsStep
	s.read += n - i*sumsStep
	return ^crc32.Update(^s.at[i], castagnoli, s.b[i*sumsStep:n])
}

// shifted returns what the register r has become n bytes of zero later.
func shifted(r uint32, n int) uint32 {
	for i := 0; n > 0; i, n = i+1, n>>1 {
		if n&1 != 0 {
			r = multiplied(r, byteShifts[i])
		}
	}
	return r
}

// byteShifts[i] is x to the power of 8 times 2^i: the factor of 2^i bytes. A stretch is shorter than 2^31 bytes.
var byteShifts = func() (t [31]uint32) {
	t[0] = 1 << (31 - 8)
	for i := range len(t) - 1 {
		t[i+1] = multiplied(t[i], t[i])
	}
	return t
}()

// multiplied returns the product of two polynomials modulo Castagnoli's.
func multiplied(a, b uint32) uint32 {
	product := uint32(0)
	for ; a != 0; a <<= 1 {
		if a>>31 != 0 {
			product ^= b
		}
		b = b>>1 ^ polynomial&-(b&1)
	}
	return product
}
