package redis

import (
	"bytes"
	"fmt"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/protocol/conns"
)

// Limits of the protocol, as in Redis but for requestBytesMax.
const (
	bulkBytesMax   = 512 << 20
	multibulkMax   = 1 << 20
	lineBytesMax   = 64 << 10
	bufferBytesMin = 4 << 10
	// requestBytesMax bounds a request as it is sent. What is longer is read over, never kept, and refused.
	requestBytesMax = datatypes.CommandBytesMax + 64<<10
)

// protocolError ends the connection after it was told to the client.
type protocolError string

func (e protocolError) Error() string { return "Protocol error: " + string(e) }

// parser finds the requests in a connection's input. Arguments point into its buffer and are good until the next fill.
// It remembers how far it got in a request that is not complete, so that slow input costs no more than fast.
type parser struct {
	buf  []byte
	r, w int
	// ended counts the requests that came to their end, empty ones and those that were read over, too.
	ended uint64

	// State of the request that begins at buf[r]. at is the offset from r of what comes next.
	open bool
	at   int
	// left counts the arguments still to come; bulk is the length of the next, -1 before its header was read.
	left, bulk int
	spans      []span
	args       [][]byte
	// over says that the request is too long: it is read over. skip counts bytes to drop before the next header.
	over bool
	skip int
	// crowded says that it is not the request's own fault, but that the node has no room for it.
	crowded bool

	// holder counts what the buffer has grown by for requests, which is held bytes; nil counts nothing.
	holder *conns.Holder
	held   int
}

type span struct{ off, n uint32 }

// room returns where to read more input to. It keeps the buffer as small as the request allows.
func (p *parser) room() []byte {
	if p.r == p.w {
		p.r, p.w = 0, 0
		if len(p.buf) > 16*bufferBytesMin && !p.open {
			// The last arguments are parts of it.
			p.buf, p.args = nil, nil
			p.letGo()
		}
	}
	if p.buf == nil {
		p.buf = make([]byte, bufferBytesMin)
	}
	if p.w == len(p.buf) {
		// What each connection has does not count, nor does a line that is not complete, which has a bound of its own.
		if p.r < len(p.buf)/2 && p.open && len(p.buf) >= 16*bufferBytesMin && !p.hold(len(p.buf)) {
			p.crowded = true
			p.readOver()
		}
		if p.r >= len(p.buf)/2 || p.crowded && p.r > 0 {
			p.w = copy(p.buf, p.buf[p.r:p.w])
		} else {
			// Doubling what has arrived, never what a header announces.
			b := make([]byte, 2*len(p.buf))
			p.w = copy(b, p.buf[p.r:p.w])
			p.buf = b
		}
		p.r = 0
	}
	return p.buf[p.w:]
}

// hold counts n bytes more of buffer, if there is room for them.
func (p *parser) hold(n int) bool {
	if p.holder != nil {
		if !p.holder.Hold(n) {
			return false
		}
		p.held += n
	}
	return true
}

// letGo says that the buffer is gone.
func (p *parser) letGo() {
	if p.held > 0 {
		p.holder.Give(p.held)
		p.held = 0
	}
}

// filled says that n bytes were read into room.
func (p *parser) filled(n int) { p.w += n }

// partial reports whether a request has begun but not ended.
func (p *parser) partial() bool { return p.open || p.r < p.w }

// unread takes back the complete request that next returned last, which began where r was then.
func (p *parser) unread(r int) { p.r = r }

// next returns the next complete request; no arguments and no error if more input is needed. tooLong says that the
// request was complete but over the limit, or there was no room for it if crowded says so, and was dropped.
func (p *parser) next() (args [][]byte, tooLong bool, err error) {
	for p.r < p.w {
		if !p.open && p.buf[p.r] != '*' {
			args, complete, err := p.inline()
			if complete {
				p.ended++
			}
			if args != nil || err != nil || !complete {
				return args, false, err
			}
			continue
		}
		done, err := p.multibulk()
		if err != nil || !done {
			return nil, false, err
		}
		p.ended++
		over := p.over
		p.open, p.over = false, false
		if over {
			return nil, true, nil
		}
		if len(p.spans) == 0 {
			continue
		}
		return p.take(), false, nil
	}
	return nil, false, nil
}

// take turns the spans of a complete request into arguments.
func (p *parser) take() [][]byte {
	if cap(p.args) > 1024 && len(p.spans) < 64 {
		p.args = nil
	}
	p.args = p.args[:0]
	for _, s := range p.spans {
		b := p.buf[p.r+int(s.off):]
		p.args = append(p.args, b[:s.n:s.n])
	}
	p.r += p.at
	if cap(p.spans) > 1024 {
		p.spans = nil
	}
	return p.args
}

// line returns the line at offset at of the request, without its end, and the offset behind it; next 0 if it is not
// complete.
func (p *parser) line(tooLong protocolError) (line []byte, next int, err error) {
	b := p.buf[p.r+p.at : p.w]
	i := bytes.IndexByte(b, '\r')
	if i < 0 || i+1 >= len(b) {
		if len(b) > lineBytesMax {
			return nil, 0, tooLong
		}
		return nil, 0, nil
	}
	return b[:i], p.at + i + 2, nil
}

// multibulk reads on in a request in the normal form; it reports whether the request is complete.
func (p *parser) multibulk() (bool, error) {
	if !p.open {
		p.at = 0
		line, next, err := p.line("too big mbulk count string")
		if next == 0 {
			return false, err
		}
		n, ok := parseLen(line[1:])
		if !ok || n > multibulkMax {
			return false, protocolError("invalid multibulk length")
		}
		p.open, p.at, p.left, p.bulk, p.spans, p.crowded = true, next, max(n, 0), -1, p.spans[:0], false
		if n <= 0 {
			p.r += next
			p.at = 0
		}
	}
	for p.left > 0 {
		if p.skip > 0 {
			n := min(p.skip, p.w-p.r)
			p.r += n
			if p.skip -= n; p.skip > 0 {
				return false, nil
			}
			p.left--
			continue
		}
		if p.bulk < 0 {
			if err := p.header(); err != nil || p.bulk < 0 {
				return false, err
			}
			if p.over || p.at+p.bulk+2 > requestBytesMax {
				p.dropSoFar()
				continue
			}
		}
		end := p.at + p.bulk
		if p.r+end+2 > p.w {
			return false, nil
		}
		if p.buf[p.r+end] != '\r' || p.buf[p.r+end+1] != '\n' {
			return false, protocolError("expected CRLF after bulk data")
		}
		p.spans = append(p.spans, span{uint32(p.at), uint32(p.bulk)})
		p.at, p.bulk = end+2, -1
		p.left--
	}
	return true, nil
}

// header reads "$n".
func (p *parser) header() error {
	line, next, err := p.line("too big bulk count string")
	if next == 0 {
		return err
	}
	if len(line) == 0 || line[0] != '$' {
		ch := byte('\r')
		if len(line) > 0 {
			ch = line[0]
		}
		return protocolError(fmt.Sprintf("expected '$', got '%c'", ch))
	}
	n, ok := parseLen(line[1:])
	if !ok || n < 0 || n > bulkBytesMax {
		return protocolError("invalid bulk length")
	}
	p.at, p.bulk = next, n
	return nil
}

// dropSoFar begins to read over a request that is too long.
func (p *parser) dropSoFar() {
	p.over, p.spans = true, p.spans[:0]
	p.r += p.at
	p.skip = p.bulk + 2
	p.at, p.bulk = 0, -1
}

// readOver begins to read over a request wherever it is.
func (p *parser) readOver() {
	if p.bulk >= 0 {
		p.dropSoFar()
		return
	}
	p.over, p.spans = true, p.spans[:0]
	p.r += p.at
	p.at = 0
}

// inline reads a request that is a line of words. complete says that there was a whole line; it has no arguments if it
// is empty.
func (p *parser) inline() (args [][]byte, complete bool, err error) {
	b := p.buf[p.r:p.w]
	i := bytes.IndexByte(b, '\n')
	if i > lineBytesMax || i < 0 && len(b) > lineBytesMax {
		return nil, false, protocolError("too big inline request")
	}
	if i < 0 {
		return nil, false, nil
	}
	p.r += i + 1
	args, ok := splitWords(bytes.TrimSuffix(b[:i], []byte{'\r'}))
	if !ok {
		return nil, false, protocolError("unbalanced quotes in request")
	}
	return args, true, nil
}

// parseLen reads a length as Redis does: decimal, no plus sign, no leading zero.
func parseLen(b []byte) (int, bool) {
	neg := len(b) > 0 && b[0] == '-'
	if neg {
		b = b[1:]
	}
	if len(b) == 0 || len(b) > 10 || b[0] == '0' && (len(b) > 1 || neg) {
		return 0, false
	}
	n := 0
	for _, ch := range b {
		if ch < '0' || ch > '9' {
			return 0, false
		}
		n = n*10 + int(ch-'0')
	}
	if neg {
		n = -n
	}
	return n, true
}

// splitWords splits a line at spaces, with "quoted\x00" and 'quoted' words. As in Redis, a vertical tab and a form feed are spaces only
// in front of a word and behind a quoted one.
func splitWords(line []byte) (words [][]byte, ok bool) {
	for i := 0; ; {
		for i < len(line) && isSpace(line[i]) {
			i++
		}
		if i == len(line) {
			return words, true
		}
		word := []byte{}
		for i < len(line) && (!isSpace(line[i]) || line[i] == '\v' || line[i] == '\f') {
			if line[i] != '"' && line[i] != '\'' {
				word = append(word, line[i])
				i++
				continue
			}
			var w []byte
			if w, i, ok = quoted(line, i); !ok {
				return nil, false
			}
			word = append(word, w...)
			break
		}
		words = append(words, word)
	}
}

// quoted reads a quoted word at line[i]; it must be followed by a space or the end.
func quoted(line []byte, i int) (word []byte, next int, ok bool) {
	q := line[i]
	for i++; i < len(line); i++ {
		ch := line[i]
		switch {
		case ch == q:
			return word, i + 1, i+1 == len(line) || isSpace(line[i+1])
		case ch == '\\' && q == '"' && i+3 < len(line) && line[i+1] == 'x' && hex(line[i+2]) >= 0 && hex(line[i+3]) >= 0:
			word = append(word, byte(hex(line[i+2])<<4|hex(line[i+3])))
			i += 3
		case ch == '\\' && q == '"' && i+1 < len(line):
			i++
			word = append(word, unescape(line[i]))
		case ch == '\\' && q == '\'' && i+1 < len(line) && line[i+1] == '\'':
			i++
			word = append(word, '\'')
		default:
			word = append(word, ch)
		}
	}
	return nil, i, false
}

func unescape(ch byte) byte {
	switch ch {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	case 'b':
		return '\b'
	case 'a':
		return '\a'
	}
	return ch
}

func hex(ch byte) int {
	switch {
	case ch >= '0' && ch <= '9':
		return int(ch - '0')
	case ch >= 'a' && ch <= 'f':
		return int(ch-'a') + 10
	case ch >= 'A' && ch <= 'F':
		return int(ch-'A') + 10
	}
	return -1
}

func isSpace(ch byte) bool { return ch == ' ' || ch >= '\t' && ch <= '\r' || ch == 0 }
