package eventlog

import (
	"encoding/binary"

	"github.com/quorate/quorate/internal/errs"
)

// version is the first byte of every command, query and row.
const version = 1

// enc appends the module's encodings.
type enc struct{ b []byte }

func newEnc(op byte, size int) *enc { return &enc{b: append(make([]byte, 0, size+2), version, op)} }

func (e *enc) u8(v byte)    { e.b = append(e.b, v) }
func (e *enc) uv(v uint64)  { e.b = binary.AppendUvarint(e.b, v) }
func (e *enc) iv(v int64)   { e.b = binary.AppendVarint(e.b, v) }
func (e *enc) u64(v uint64) { e.b = binary.BigEndian.AppendUint64(e.b, v) }
func (e *enc) u32(v uint32) { e.b = binary.BigEndian.AppendUint32(e.b, v) }
func (e *enc) id(v [16]byte) {
	e.b = append(e.b, v[:]...)
}

func (e *enc) bool(v bool) {
	if v {
		e.u8(1)
	} else {
		e.u8(0)
	}
}

func (e *enc) str(v string) {
	e.uv(uint64(len(v)))
	e.b = append(e.b, v...)
}

func (e *enc) bytes(v []byte) {
	e.uv(uint64(len(v)))
	e.b = append(e.b, v...)
}

// dec reads them. After an error it returns zeros; the slices it returns point into its input.
type dec struct {
	b   []byte
	bad bool
}

func (d *dec) fail() { d.bad, d.b = true, nil }

func (d *dec) u8() byte {
	if len(d.b) < 1 {
		d.fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *dec) bool() bool { return d.u8() != 0 }

func (d *dec) uv() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *dec) iv() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *dec) i32() int32 {
	v := d.iv()
	if int64(int32(v)) != v {
		d.fail()
		return 0
	}
	return int32(v)
}

func (d *dec) u64() uint64 {
	if len(d.b) < 8 {
		d.fail()
		return 0
	}
	v := binary.BigEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

func (d *dec) u32() uint32 {
	if len(d.b) < 4 {
		d.fail()
		return 0
	}
	v := binary.BigEndian.Uint32(d.b)
	d.b = d.b[4:]
	return v
}

func (d *dec) id() (v [16]byte) {
	if len(d.b) < 16 {
		d.fail()
		return v
	}
	copy(v[:], d.b)
	d.b = d.b[16:]
	return v
}

func (d *dec) bytes() []byte {
	n := d.uv()
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *dec) str() string { return string(d.bytes()) }

// count reads the length of a list whose elements take at least sizeMin bytes each, so that a lying count costs nothing.
func (d *dec) count(sizeMin int) int {
	n := d.uv()
	if n > uint64(len(d.b)/sizeMin) {
		d.fail()
		return 0
	}
	return int(n)
}

// done checks that all of a command or an answer was understood.
func (d *dec) done(what string) error {
	if d.bad || len(d.b) > 0 {
		return errs.New(errs.Invalid, "malformed %s", what)
	}
	return nil
}

// row starts to decode a stored row.
func row(b []byte) dec {
	if len(b) == 0 || b[0] != version {
		return dec{bad: true}
	}
	return dec{b: b[1:]}
}

// ok panics if a stored row could not be decoded: this module wrote it, and the store's checksums hold.
func (d *dec) ok(what string) {
	if d.bad {
		panic("eventlog: malformed " + what + " row")
	}
}
