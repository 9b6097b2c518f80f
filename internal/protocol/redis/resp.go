package redis

import (
	"strconv"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/errs"
)

// The answers of commands that the server itself gives, in the protocol version of the connection. They are nothing but
// appends to conn.out: what is too much for it is written out at the next flush.

func (c *conn) raw(s string)       { c.out = append(c.out, s...) }
func (c *conn) ok()                { c.raw("+OK\r\n") }
func (c *conn) simple(s string)    { c.raw("+" + s + "\r\n") }
func (c *conn) int(n int64)        { c.out = datatypes.AppendInt(c.out, n) }
func (c *conn) bulk(s string)      { c.out = datatypes.AppendBulk(c.out, s) }
func (c *conn) bulkBytes(s []byte) { c.out = datatypes.AppendBulk(c.out, s) }
func (c *conn) array(n int)        { c.out = datatypes.AppendArray(c.out, n) }

// fail answers with an error of the connection's own: code and message, as Redis words them.
func (c *conn) fail(msg string) {
	c.failed = true
	c.out = append(c.out, '-')
	for i := range min(len(msg), 1024) {
		ch := msg[i]
		if ch == '\r' || ch == '\n' {
			ch = ' '
		}
		c.out = append(c.out, ch)
	}
	c.raw("\r\n")
}

func (c *conn) error(err error) {
	c.failed = true
	if errs.Is(err, errs.Fenced) {
		c.s.metric.fenced.Inc()
	}
	c.out = datatypes.AppendError(c.out, err)
}

func (c *conn) header(kind3 byte, n, n2 int) {
	if c.proto == 3 {
		c.out = append(strconv.AppendInt(append(c.out, kind3), int64(n), 10), '\r', '\n')
		return
	}
	c.array(n2)
}

// mapOf starts a map of n pairs, a flat array in RESP2.
func (c *conn) mapOf(n int) { c.header('%', n, 2*n) }

// setOf starts a set, an array in RESP2.
func (c *conn) setOf(n int) { c.header('~', n, n) }

func (c *conn) null() {
	if c.proto == 3 {
		c.raw("_\r\n")
		return
	}
	c.raw("$-1\r\n")
}

func (c *conn) nullArray() {
	if c.proto == 3 {
		c.raw("_\r\n")
		return
	}
	c.raw("*-1\r\n")
}

// text answers with a text for people: a verbatim string, a bulk string in RESP2.
func (c *conn) text(s string) {
	if c.proto == 3 {
		c.out = append(strconv.AppendInt(append(c.out, '='), int64(len(s)+4), 10), "\r\ntxt:"...)
		c.raw(s + "\r\n")
		return
	}
	c.bulk(s)
}

// appendReply adds a module's answer in a protocol version. flat says that pairs within an array become part of it in
// RESP2, as in HRANDFIELD WITHVALUES.
func appendReply(out, reply []byte, proto int, flat bool) []byte {
	if proto == 3 || len(reply) == 0 {
		return append(out, reply...)
	}
	switch reply[0] {
	case '+', '-', ':', '$':
		return append(out, reply...)
	}
	out, _ = downgrade(out, reply, flat)
	return out
}

// downgrade turns the first RESP3 value of in into RESP2.
func downgrade(out, in []byte, flat bool) (converted, rest []byte) {
	kind, n, body := splitHead(in)
	switch kind {
	case '_':
		return append(out, "$-1\r\n"...), body
	case '$':
		end := len(in) - len(body) + n + 2
		return append(out, in[:end]...), in[end:]
	case '%', '~', '*':
		if kind == '%' {
			n *= 2
		}
		pairs := flat && n > 0 && len(body) > 0 && body[0] == '*'
		if pairs {
			out = datatypes.AppendArray(out, 2*n)
		} else {
			out = datatypes.AppendArray(out, n)
		}
		for range n {
			if pairs {
				_, _, body = splitHead(body)
				out, body = downgrade(out, body, false)
			}
			out, body = downgrade(out, body, false)
		}
		return out, body
	}
	return append(out, in[:len(in)-len(body)]...), body
}

// splitHead reads the first line of a value. Answers come from our own module, over checksummed paths: a malformed one
// ends the value.
func splitHead(in []byte) (kind byte, n int, rest []byte) {
	for i := 1; i+1 < len(in); i++ {
		if in[i] == '\r' {
			return in[0], n, in[i+2:]
		}
		if in[i] >= '0' && in[i] <= '9' && n < 1<<40 {
			n = n*10 + int(in[i]-'0')
		}
	}
	return 0, 0, nil
}

// skipValue returns what follows the first RESP3 value of in.
func skipValue(in []byte) []byte {
	kind, n, rest := splitHead(in)
	switch kind {
	case '$', '=':
		if n+2 > len(rest) {
			return nil
		}
		return rest[n+2:]
	case '%':
		n *= 2
		fallthrough
	case '*', '~':
		for ; n > 0 && len(rest) > 0; n-- {
			rest = skipValue(rest)
		}
	}
	return rest
}
