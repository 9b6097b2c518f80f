package kafka

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"

	"github.com/quorate/quorate/internal/errs"
)

// frameStep is how much of a frame is read at a time, so that memory follows what arrives and not what is claimed.
const frameStep = 64 << 10

// frameStretch is how much of a frame has to come within the time for a frame.
const frameStretch = 16 << 20

// answerStretch is how much of an answer has to be taken within the time for a frame.
const answerStretch = 1 << 20

// budgetUnit is what budgets of requests and answers count in.
const budgetUnit = 64 << 10

// readFrame reads one request behind its four bytes of length. take is asked for room once the length is known, and stretch is
// called for each frameStretch that has come.
func readFrame(r *bufio.Reader, bytesMax int, take func(n int) error, stretch func() error) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int32(binary.BigEndian.Uint32(head[:]))
	if hint := foreign(head); hint != "" {
		return nil, errs.New(errs.Invalid, "the client speaks %s; this is the Kafka port", hint)
	}
	if n < 10 {
		return nil, errs.New(errs.Invalid, "request of %d bytes is shorter than its header", n)
	}
	if int(n) > bytesMax {
		return nil, errs.New(errs.TooLarge, "request of %d bytes; at most %d are allowed", n, bytesMax)
	}
	if err := take(int(n)); err != nil {
		return nil, err
	}
	b := make([]byte, 0, min(int(n), frameStep))
	for len(b) < int(n) {
		at := len(b)
		if at == cap(b) {
			b = append(make([]byte, 0, min(int(n), 2*at)), b...)
		}
		b = b[:min(cap(b), at+frameStretch)]
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if at/frameStretch < len(b)/frameStretch {
			if err := stretch(); err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

// foreign recognises what people send to a Kafka port by mistake.
func foreign(head [4]byte) string {
	switch s := string(head[:]); {
	case s == "GET " || s == "POST" || s == "PUT " || s == "HEAD" || s == "DELE" || s == "OPTI" || s == "PRI ":
		return "HTTP"
	case head[0] == 0x16 && head[1] == 3:
		return "TLS (security.protocol=SSL); Kafka clients connect here in plain text"
	case s == "*1\r\n" || s == "*2\r\n" || s == "PING":
		return "the Redis protocol"
	}
	return ""
}

// header is the header of a request.
type header struct {
	key, version int16
	correlation  int32
	clientID     string
}

// readHeader splits the header off a request; flexible says whether a version of an API ends its header with tags.
func readHeader(b []byte, flexible func(key, version int16) bool) (h header, body []byte, err error) {
	if len(b) < 10 {
		return h, nil, errs.New(errs.Invalid, "request of %d bytes is shorter than its header", len(b))
	}
	h.key, h.version = int16(binary.BigEndian.Uint16(b)), int16(binary.BigEndian.Uint16(b[2:]))
	h.correlation = int32(binary.BigEndian.Uint32(b[4:]))
	n := int(int16(binary.BigEndian.Uint16(b[8:])))
	b = b[10:]
	if n < -1 || n > len(b) {
		return h, nil, errs.New(errs.Invalid, "client id of %d bytes in a request with %d left", n, len(b))
	}
	if n > 0 {
		h.clientID, b = string(b[:n]), b[n:]
	}
	if flexible(h.key, h.version) {
		w := skim{b: b, elements: 64}
		w.tags()
		if w.bad != "" {
			return h, nil, errs.New(errs.Invalid, "malformed request header: %s", w.bad)
		}
		b = w.b
	}
	return h, b, nil
}

// budget bounds the bytes that all connections hold together. Takers wait their turn, first come first served.
type budget struct {
	turn  chan struct{}
	units chan struct{}
	// unit is how many bytes it counts in.
	unit int
}

func newBudget(bytes, unit int) *budget {
	b := &budget{turn: make(chan struct{}, 1), unit: unit}
	b.units = make(chan struct{}, b.unitsOf(bytes))
	return b
}

// take waits for room and returns how to give it back. It asks for no more than there is at all.
func (b *budget) take(ctx context.Context, bytes int) (release func(), err error) {
	g, err := b.grant(ctx, bytes)
	if err != nil {
		return nil, err
	}
	return func() { g.keep(0) }, nil
}

// grant is room that was taken.
type grant struct {
	b     *budget
	units int
}

// grant waits for room like take.
func (b *budget) grant(ctx context.Context, bytes int) (*grant, error) {
	full := func(g *grant) (*grant, error) {
		g.keep(0)
		return nil, errs.New(errs.Overloaded, "no room for a request of %d bytes within the time limit; others fill the memory kept for requests", bytes)
	}
	g := &grant{b: b}
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return full(g)
	}
	for n := min(b.unitsOf(bytes), cap(b.units)); g.units < n; g.units++ {
		select {
		case b.units <- struct{}{}:
		case <-ctx.Done():
			return full(g)
		}
	}
	return g, nil
}

// keep gives back what is more than is needed for some bytes.
func (g *grant) keep(bytes int) {
	for n := g.b.unitsOf(bytes); g.units > n; g.units-- {
		<-g.b.units
	}
}

func (b *budget) unitsOf(bytes int) int { return (bytes + b.unit - 1) / b.unit }
