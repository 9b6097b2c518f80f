package kafka

import (
	"encoding/binary"

	"github.com/quorate/quorate/internal/errs"
)

// The layouts of requests, so that a request can be checked before it is decoded: an array may claim as many elements as
// it has bytes left, which a decoder that believes it pays for a hundredfold. Letters: b int8 or bool, h int16, i int32,
// l int64, u uuid, s string, y bytes, [..] array of structures, (.) array of plain values; @n means from version n on,
// @n-m only up to m. From the flexible version on, strings and arrays are compact and structures end with tags (KIP-482).

// elementsMax bounds the array elements of a request, all arrays together.
const elementsMax = 200_000

// tagBytesMax bounds a tagged field; none that a client sends holds more than an id.
const tagBytesMax = 4096

type field struct {
	kind     byte
	from, to int16
	of       []field
}

type shape struct {
	flexible int16
	fields   []field
	// tagRefused is a top-level tag that is refused, because only brokers send it; 0 is none.
	tagRefused uint64
}

// parseShape reads a layout. It panics on a bad one: they are constants.
func parseShape(flexible int16, s string) shape {
	rest, fields := parseFields(s, 0)
	if rest != "" {
		panic("kafka: bad layout " + s)
	}
	return shape{flexible: flexible, fields: fields}
}

func parseFields(s string, end byte) (string, []field) {
	var out []field
	for s != "" && (end == 0 || s[0] != end) {
		c := s[0]
		s = s[1:]
		f := field{kind: c, to: 1<<15 - 1}
		switch c {
		case ' ':
			continue
		case '[':
			s, f.of = parseFields(s, ']')
			s = s[1:]
		case '(':
			s, f.of = parseFields(s, ')')
			s = s[1:]
		}
		if s != "" && s[0] == '@' {
			f.from, s = number(s[1:])
			if s != "" && s[0] == '-' {
				f.to, s = number(s[1:])
			}
		}
		out = append(out, f)
	}
	return s, out
}

func number(s string) (n int16, rest string) {
	for s != "" && s[0] >= '0' && s[0] <= '9' {
		n, s = n*10+int16(s[0]-'0'), s[1:]
	}
	return n, s
}

// skim walks over a request.
type skim struct {
	b        []byte
	version  int16
	flexible bool
	elements int
	refused  uint64
	bad      string
}

// check returns an error if the body of a request is not what its version says.
func (s *shape) check(version int16, body []byte) error {
	w := skim{b: body, version: version, flexible: version >= s.flexible, elements: elementsMax}
	w.structure(s.fields, false)
	if w.flexible && w.bad == "" {
		w.refused = s.tagRefused
		w.tags()
	}
	if w.bad != "" {
		return errs.New(errs.Invalid, "malformed request: %s at byte %d of %d", w.bad, len(body)-len(w.b), len(body))
	}
	return nil
}

func (w *skim) fail(why string) {
	if w.bad == "" {
		w.bad = why
	}
}

func (w *skim) skip(n int) {
	if n < 0 || n > len(w.b) {
		w.fail("length beyond the end")
		return
	}
	w.b = w.b[n:]
}

func (w *skim) structure(fields []field, tags bool) {
	for i := range fields {
		f := &fields[i]
		if w.version >= f.from && w.version <= f.to {
			w.field(f)
		}
		if w.bad != "" {
			return
		}
	}
	if tags && w.flexible {
		w.tags()
	}
}

// plain returns the size of a field of fixed size, 0 for others.
func plain(kind byte) int {
	switch kind {
	case 'b':
		return 1
	case 'h':
		return 2
	case 'i':
		return 4
	case 'l':
		return 8
	case 'u':
		return 16
	}
	return 0
}

func (w *skim) field(f *field) {
	if n := plain(f.kind); n > 0 {
		w.skip(n)
		return
	}
	n := w.length(f.kind)
	if w.bad != "" || n <= 0 {
		return
	}
	if f.kind == 's' || f.kind == 'y' {
		w.skip(n)
		return
	}
	if n > len(w.b)/max(w.least(f), 1) {
		w.fail("array longer than what is left")
		return
	}
	if w.elements -= n; w.elements < 0 {
		w.fail("too many array elements")
		return
	}
	for ; n > 0 && w.bad == ""; n-- {
		w.structure(f.of, f.kind == '[')
	}
}

// length reads the length of a string, bytes or array; -1 is null.
func (w *skim) length(kind byte) int {
	switch {
	case w.flexible:
		return int(w.uvarint()) - 1
	case kind == 's':
		if len(w.b) < 2 {
			w.fail("cut off")
			return 0
		}
		n := int(int16(binary.BigEndian.Uint16(w.b)))
		w.b = w.b[2:]
		return w.notBelowNull(n)
	}
	if len(w.b) < 4 {
		w.fail("cut off")
		return 0
	}
	n := int(int32(binary.BigEndian.Uint32(w.b)))
	w.b = w.b[4:]
	return w.notBelowNull(n)
}

func (w *skim) notBelowNull(n int) int {
	if n < -1 {
		w.fail("negative length")
	}
	return n
}

// least returns the fewest bytes that an element of an array takes.
func (w *skim) least(f *field) int {
	n := 0
	for i := range f.of {
		g := &f.of[i]
		if w.version < g.from || w.version > g.to {
			continue
		}
		switch p := plain(g.kind); {
		case p > 0:
			n += p
		case w.flexible:
			n++
		case g.kind == 's':
			n += 2
		default:
			n += 4
		}
	}
	if w.flexible && f.kind == '[' {
		n++
	}
	return n
}

// uvarint reads a number of at most 31 bits.
func (w *skim) uvarint() uint64 {
	v, n := binary.Uvarint(w.b)
	if n <= 0 || n > 5 || v > 1<<31-1 {
		w.fail("bad number")
		return 0
	}
	w.b = w.b[n:]
	return v
}

func (w *skim) tags() {
	n := w.uvarint()
	if n > uint64(len(w.b)/2) {
		w.fail("more tags than bytes")
		return
	}
	if w.elements -= int(n); w.elements < 0 {
		w.fail("too many tags")
		return
	}
	last := -1
	for ; n > 0 && w.bad == ""; n-- {
		tag, size := w.uvarint(), w.uvarint()
		switch {
		case w.bad != "":
		case int(tag) <= last:
			w.fail("tags out of order")
		case size > tagBytesMax:
			w.fail("tag too long")
		case w.refused != 0 && tag == w.refused:
			w.fail("tag that only brokers send")
		default:
			w.skip(int(size))
		}
		last = int(tag)
	}
}
