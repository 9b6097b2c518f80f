// Package codec reads the bytes that Quorate itself writes: log entries, commands, answers, rows and frames.
//
// A Reader takes fields off a slice, one after the other. It knows how fields are written and nothing of what they mean: packages embed it
// in decoders of their own. The formats of other people's protocols have rules of their own and are not read with it.
//
// A decoder asks for all of its fields and looks at the end, once, whether they were there: after the first field that is not, a Reader is
// bad for good, has nothing left, and every further field is zero. So bytes from a disk or a network cannot make it panic, and
// no loop that stops with Bad, or that runs as often as Count says, runs for longer than there are bytes.
//
// Numbers of variable length are those of encoding/binary. One that is longer than it needs to be is read all the same: the frames of package
// replica leave room for a length before it is known.
package codec

import "encoding/binary"

// Reader reads fields off bytes. It neither allocates nor copies: the slices it returns are parts of what it was given, with no room
// behind them, so that an append to one does not write into the next. The zero Reader has nothing to read. It is a value: a copy
// goes on from where it was made. No two goroutines may use one Reader at a time.
type Reader struct {
	b   []byte
	bad bool
}

// Read returns a Reader of b, which must not change while the Reader or what it returned is in use.
func Read(b []byte) Reader { return Reader{b: b} }

// Fail makes the Reader bad: what it has read cannot be.
func (r *Reader) Fail() { r.b, r.bad = nil, true }

// Bad says whether a field was missing, or was failed by the caller.
func (r *Reader) Bad() bool { return r.bad }

// Done says whether everything that was asked for was there, and nothing is left.
func (r *Reader) Done() bool { return !r.bad && len(r.b) == 0 }

// Len returns how many bytes are left, 0 once the Reader is bad.
func (r *Reader) Len() int { return len(r.b) }

// Rest returns the bytes that are left, and leaves them where they are.
func (r *Reader) Rest() []byte { return r.b }

// Byte reads one byte.
func (r *Reader) Byte() byte {
	if len(r.b) == 0 {
		r.Fail()
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

// Bool reads one byte, of which every value but 0 is true.
func (r *Reader) Bool() bool { return r.Byte() != 0 }

// Uint16 reads a little-endian number of two bytes.
func (r *Reader) Uint16() uint16 {
	if v := r.Fixed(2); v != nil {
		return binary.LittleEndian.Uint16(v)
	}
	return 0
}

// Uint32 reads a little-endian number of four bytes.
func (r *Reader) Uint32() uint32 {
	if v := r.Fixed(4); v != nil {
		return binary.LittleEndian.Uint32(v)
	}
	return 0
}

// Uint64 reads a little-endian number of eight bytes.
func (r *Reader) Uint64() uint64 {
	if v := r.Fixed(8); v != nil {
		return binary.LittleEndian.Uint64(v)
	}
	return 0
}

// BigUint32 reads a big-endian number of four bytes.
func (r *Reader) BigUint32() uint32 {
	if v := r.Fixed(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

// BigUint64 reads a big-endian number of eight bytes.
func (r *Reader) BigUint64() uint64 {
	if v := r.Fixed(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// Uvarint reads a number of one to ten bytes.
func (r *Reader) Uvarint() uint64 {
	// Most take one.
	if len(r.b) > 0 && r.b[0] < 0x80 {
		v := r.b[0]
		r.b = r.b[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.Fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

// Varint reads a signed number of one to ten bytes.
func (r *Reader) Varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.Fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

// Count reads a uvarint that says how many things follow, each of which takes at least sizeMin bytes, 1 or more. What cannot be there is not
// believed, so that a caller may make room for as many.
func (r *Reader) Count(sizeMin int) int {
	n := r.Uvarint()
	if n > uint64(len(r.b)/sizeMin) {
		r.Fail()
		return 0
	}
	return int(n)
}

// Bytes reads a string: its length as a uvarint, and as many bytes. An empty string is not nil; a missing one is.
func (r *Reader) Bytes() []byte {
	// Most are short, so that their length takes one byte. The rest would do the same, more slowly.
	if b := r.b; len(b) > 0 && int(b[0]) < min(0x80, len(b)) {
		n := 1 + int(b[0])
		r.b = b[n:]
		return b[1:n:n]
	}
	n := r.Uvarint()
	if n > uint64(len(r.b)) {
		r.Fail()
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// Fixed reads n bytes, and returns nil if they are not there.
func (r *Reader) Fixed(n int) []byte {
	if uint(n) > uint(len(r.b)) {
		r.Fail()
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// AppendBytes adds a string in the form that Reader.Bytes reads.
func AppendBytes[T string | []byte](b []byte, v T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

// AppendBool adds a byte, 1 for true.
func AppendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}
