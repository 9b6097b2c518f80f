package eventlog

import (
	"encoding/binary"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
)

// version is the first byte of every command, query and row.
const version = 1

// enc appends the module's encodings.
type enc struct{ b []byte }

func newEnc(op byte, size int) *enc { return &enc{b: append(make([]byte, 0, size+2), version, op)} }

func (e *enc) u8(v byte)      { e.b = append(e.b, v) }
func (e *enc) uv(v uint64)    { e.b = binary.AppendUvarint(e.b, v) }
func (e *enc) iv(v int64)     { e.b = binary.AppendVarint(e.b, v) }
func (e *enc) u64(v uint64)   { e.b = binary.BigEndian.AppendUint64(e.b, v) }
func (e *enc) u32(v uint32)   { e.b = binary.BigEndian.AppendUint32(e.b, v) }
func (e *enc) id(v [16]byte)  { e.b = append(e.b, v[:]...) }
func (e *enc) bool(v bool)    { e.b = codec.AppendBool(e.b, v) }
func (e *enc) str(v string)   { e.b = codec.AppendBytes(e.b, v) }
func (e *enc) bytes(v []byte) { e.b = codec.AppendBytes(e.b, v) }

// dec is a codec.Reader of them.
type dec struct{ codec.Reader }

func (d *dec) i32() int32 {
	v := d.Varint()
	if int64(int32(v)) != v {
		d.Fail()
		return 0
	}
	return int32(v)
}

func (d *dec) id() (v [16]byte) {
	copy(v[:], d.Fixed(len(v)))
	return v
}

func (d *dec) str() string { return string(d.Bytes()) }

// done checks that all of a command or an answer was understood.
func (d *dec) done(what string) error {
	if !d.Done() {
		return errs.New(errs.Invalid, "malformed %s", what)
	}
	return nil
}

// row starts to decode a stored row.
func row(b []byte) dec {
	if len(b) == 0 || b[0] != version {
		var d dec
		d.Fail()
		return d
	}
	return dec{codec.Read(b[1:])}
}

// ok panics if a stored row could not be decoded: this module wrote it, and the store's checksums hold.
func (d *dec) ok(what string) {
	if d.Bad() {
		panic("eventlog: malformed " + what + " row")
	}
}
