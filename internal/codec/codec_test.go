package codec

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"testing"
)

func TestReader_ReadsWhatWasWritten(t *testing.T) {
	b := []byte{7}
	b = AppendBool(AppendBool(b, true), false)
	b = append(b, 2)
	b = binary.LittleEndian.AppendUint16(b, 0x1234)
	b = binary.LittleEndian.AppendUint32(b, 0x12345678)
	b = binary.LittleEndian.AppendUint64(b, 0x123456789abcdef0)
	b = binary.BigEndian.AppendUint32(b, 0x12345678)
	b = binary.BigEndian.AppendUint64(b, 0x123456789abcdef0)
	b = binary.AppendUvarint(b, math.MaxUint64)
	b = binary.AppendVarint(b, math.MinInt64)
	b = AppendBytes(b, "text")
	b = AppendBytes(b, []byte("bytes"))
	b = AppendBytes(b, "")
	b = append(b, 2, 'x', 'y', 'z')

	r := Read(b)
	for i, f := range []struct{ got, want any }{
		{r.Byte(), byte(7)},
		{r.Bool(), true},
		{r.Bool(), false},
		{r.Bool(), true},
		{r.Uint16(), uint16(0x1234)},
		{r.Uint32(), uint32(0x12345678)},
		{r.Uint64(), uint64(0x123456789abcdef0)},
		{r.BigUint32(), uint32(0x12345678)},
		{r.BigUint64(), uint64(0x123456789abcdef0)},
		{r.Uvarint(), uint64(math.MaxUint64)},
		{r.Varint(), int64(math.MinInt64)},
		{string(r.Bytes()), "text"},
		{string(r.Bytes()), "bytes"},
		{r.Bytes() != nil, true},
		{r.Count(1), 2},
		{r.Len(), 3},
		{string(r.Rest()), "xyz"},
		{r.Done(), false},
		{string(r.Fixed(3)), "xyz"},
		{r.Done(), true},
		{r.Bad(), false},
	} {
		if f.got != f.want {
			t.Errorf("field %d: got %v (%T), want %v (%T)", i, f.got, f.got, f.want, f.want)
		}
	}
}

func TestReader_StaysBad(t *testing.T) {
	for what, spoil := range map[string]func(*Reader){
		"missing byte":            func(r *Reader) { r.Fixed(r.Len()); r.Byte() },
		"missing fixed number":    func(r *Reader) { r.Fixed(3); r.Uint64() },
		"more bytes than left":    func(r *Reader) { r.Fixed(r.Len() + 1) },
		"fewer bytes than none":   func(r *Reader) { r.Fixed(-1) },
		"string longer than left": func(r *Reader) { *r = Read([]byte{3, 1, 2}); r.Bytes() },
		"length of 2^64-1":        func(r *Reader) { *r = Read(binary.AppendUvarint(nil, math.MaxUint64)); r.Bytes() },
		"number cut off":          func(r *Reader) { *r = Read([]byte{0x80}); r.Uvarint() },
		"number over 64 bits":     func(r *Reader) { *r = Read(bytes.Repeat([]byte{0xff}, 11)); r.Uvarint() },
		"signed number cut off":   func(r *Reader) { *r = Read([]byte{0x80}); r.Varint() },
		"count of too many":       func(r *Reader) { *r = Read([]byte{2, 1, 2, 3}); r.Count(2) },
		"failed by the caller":    func(r *Reader) { r.Fail() },
	} {
		r := Read([]byte{1, 2, 3, 4, 5, 6})
		spoil(&r)
		got := fmt.Sprint(r.Bad(), r.Done(), r.Len(), r.Rest() == nil, r.Byte(), r.Bool(), r.Uint16(), r.Uint32(), r.Uint64(), r.BigUint32(),
			r.BigUint64(), r.Uvarint(), r.Varint(), r.Count(1), r.Bytes() == nil, r.Fixed(1) == nil, r.Fixed(0) == nil, r.Bad())
		if want := "true false 0 true 0 false 0 0 0 0 0 0 0 0 true true true true"; got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", what, got, want)
		}
	}
}

func TestReader_NumbersMayBeLongerThanTheyNeed(t *testing.T) {
	for want, b := range map[uint64][]byte{0: {0x80, 0}, 5: {0x85, 0x80, 0x80, 0}} {
		r := Read(b)
		if got := r.Uvarint(); got != want || !r.Done() {
			t.Errorf("% x: got %d, done %v; want %d", b, got, r.Done(), want)
		}
	}
}

func TestReader_AppendToAStringLeavesTheNextOne(t *testing.T) {
	b := AppendBytes(AppendBytes([]byte{'h', 'i'}, "one"), "two")
	r := Read(b)
	for _, v := range [][]byte{r.Fixed(2), r.Bytes()} {
		_ = append(v, 0xff)
	}
	if got := string(r.Bytes()); got != "two" || !r.Done() {
		t.Errorf("got %q, want two", got)
	}
}

func TestReader_AllocatesNothing(t *testing.T) {
	b := AppendBytes(binary.AppendUvarint(binary.LittleEndian.AppendUint64([]byte{1}, 2), 300), "value")
	if n := testing.AllocsPerRun(100, func() {
		r := Read(b)
		r.Byte()
		r.Uint64()
		r.Uvarint()
		r.Bytes()
		if !r.Done() {
			t.Error("not read to the end")
		}
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

// FuzzReader reads any bytes as any fields, and compares with what encoding/binary and slicing say.
func FuzzReader(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, AppendBytes(AppendBytes(nil, "some bytes and more"), "to be read"))
	f.Add([]byte{6, 7, 6, 8}, bytes.Repeat([]byte{0xff}, 24))
	f.Add([]byte{9, 8, 8, 6}, []byte{0x82, 0x00, 1, 'a', 0, 5})
	f.Fuzz(func(t *testing.T, fields, in []byte) {
		// What lies behind the input is not to be read.
		whole := append(bytes.Clone(in), "behind"...)
		b := whole[:len(in)]
		r := Read(b)
		bad := false
		// take splits n bytes off b, unless they are missing.
		take := func(n uint64) []byte {
			if bad = bad || n > uint64(len(b)); bad {
				b = nil
				return nil
			}
			v := b[:n]
			b = b[n:]
			return v
		}
		uvarint := func() uint64 {
			v, n := binary.Uvarint(b)
			if n <= 0 {
				bad, b = true, nil
				return 0
			}
			take(uint64(n))
			return v
		}
		padded := func(size int) []byte {
			v := make([]byte, size)
			copy(v, take(uint64(size)))
			return v
		}
		for i, field := range fields {
			var got, want any
			size := int(field/16) + 1
			switch field % 11 {
			case 0:
				got, want = r.Byte(), padded(1)[0]
			case 1:
				got, want = r.Bool(), padded(1)[0] != 0
			case 2:
				got, want = r.Uint16(), binary.LittleEndian.Uint16(padded(2))
			case 3:
				got, want = r.Uint32(), binary.LittleEndian.Uint32(padded(4))
			case 4:
				got, want = r.Uint64(), binary.LittleEndian.Uint64(padded(8))
			case 5:
				got, want = r.BigUint32(), binary.BigEndian.Uint32(padded(4))
			case 6:
				got, want = r.BigUint64(), binary.BigEndian.Uint64(padded(8))
			case 7:
				got, want = r.Uvarint(), uvarint()
			case 8:
				u := uvarint()
				v := int64(u >> 1)
				if u&1 != 0 {
					v = ^v
				}
				got, want = r.Varint(), v
			case 9:
				n := uvarint()
				if n > math.MaxInt || n > 0 && uint64(len(b))/n < uint64(size) {
					bad, b, n = true, nil, 0
				}
				got, want = r.Count(size), int(n)
			case 10:
				if field < 128 {
					got, want = string(r.Bytes()), string(take(uvarint()))
				} else {
					got, want = string(r.Fixed(size)), string(take(uint64(size)))
				}
			}
			if got != want || r.Bad() != bad || r.Done() != (!bad && len(b) == 0) || !bytes.Equal(r.Rest(), b) || r.Len() != len(b) {
				t.Fatalf("field %d of % x in % x: got %v, bad %v, % x left; want %v, bad %v, % x left",
					i, fields, in, got, r.Bad(), r.Rest(), want, bad, b)
			}
		}
		if !bytes.Equal(whole[:len(in)], in) || string(whole[len(in):]) != "behind" {
			t.Fatalf("reading % x changed it", in)
		}
	})
}
