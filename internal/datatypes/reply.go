package datatypes

import (
	"strconv"
	"strings"

	"github.com/quorate/quorate/internal/errs"
)

// Answers that are always the same. They are shared: nobody may change them.
var (
	replyOK   = []byte("+OK\r\n")
	replyNull = []byte("_\r\n")
	replyZero = []byte(":0\r\n")
	replyOne  = []byte(":1\r\n")
)

func appendLen(b []byte, kind byte, n int64) []byte {
	return append(strconv.AppendInt(append(b, kind), n, 10), '\r', '\n')
}

// AppendInt adds a RESP integer.
func AppendInt(b []byte, n int64) []byte { return appendLen(b, ':', n) }

// AppendArray adds the head of a RESP array of n elements.
func AppendArray(b []byte, n int) []byte { return appendLen(b, '*', int64(n)) }

// AppendBulk adds a RESP bulk string.
func AppendBulk[T []byte | string](b []byte, v T) []byte {
	return append(append(appendLen(b, '$', int64(len(v))), v...), '\r', '\n')
}

func bulk(v []byte) []byte {
	return AppendBulk(make([]byte, 0, len(v)+5+uvarintLen(uint64(len(v)))*3), v)
}

func (c *call) ok() error         { c.out = replyOK; return nil }
func (c *call) null() error       { c.out = replyNull; return nil }
func (c *call) int(n int64) error { c.out = intReply(n); return nil }

func (c *call) bulk(v []byte) error {
	if err := c.grow(len(v)); err != nil {
		return err
	}
	c.out = bulk(v)
	return nil
}

func (c *call) bool(v bool) error {
	if v {
		return c.int(1)
	}
	return c.int(0)
}

func intReply(n int64) []byte {
	switch n {
	case 0:
		return replyZero
	case 1:
		return replyOne
	}
	return AppendInt(nil, n)
}

// kindCode is the one table from kinds of error to the code in front of a Redis error. Clients act on some: CLUSTERDOWN
// and TRYAGAIN are tried again, which is right for what was surely not done; UNKNOWN is not known to any client, so that
// none tries by itself what may have been done.
var kindCode = [...]string{
	errs.Invalid: "ERR", errs.NotFound: "ERR", errs.Exists: "ERR", errs.Conflict: "ERR", errs.Fenced: "FENCED",
	errs.Compacted: "ERR", errs.TooLarge: "ERR", errs.Denied: "NOPERM", errs.Unauthenticated: "NOAUTH",
	errs.Overloaded: "BUSY", errs.Unavailable: "CLUSTERDOWN", errs.OutcomeUnknown: "UNKNOWN", errs.Corrupt: "ERR",
	errs.Unsupported: "ERR", errs.Internal: "ERR",
}

// kindPrefix goes before the message where the code alone would mislead.
var kindPrefix = [...]string{
	errs.OutcomeUnknown: "outcome unknown: ", errs.Overloaded: "overloaded, try again later: ",
	errs.Corrupt: "damaged data: ", errs.Internal: "internal error: ", errs.Unavailable: "not available, nothing was done: ",
}

const errorBytesMax = 1024

// AppendError adds a RESP error for err. An error with a code of its own shows that.
func AppendError(b []byte, err error) []byte {
	code, msg := "ERR", err.Error()
	kind := errs.KindOf(err)
	e, _ := err.(*errs.Error) //nolint:errorlint // only the outermost error knows its code
	if e != nil && e.Code != "" {
		code, msg = e.Code, strings.TrimPrefix(msg, e.Code+" ")
	} else {
		if int(kind) < len(kindCode) && kindCode[kind] != "" {
			code = kindCode[kind]
		}
		if int(kind) < len(kindPrefix) {
			msg = kindPrefix[kind] + strings.TrimPrefix(msg, kindPrefix[kind])
		}
	}
	b = append(append(append(b, '-'), code...), ' ')
	if len(msg) > errorBytesMax {
		msg = msg[:errorBytesMax] + "..."
	}
	for i := range len(msg) {
		// A line break in an error would let a client's own bytes pass for the next answer.
		ch := msg[i]
		if ch == '\r' || ch == '\n' {
			ch = ' '
		}
		b = append(b, ch)
	}
	return append(b, '\r', '\n')
}

// plain returns an error that shows as "ERR msg", in Redis' own words.
func plain(msg string) error { return &errs.Error{Kind: errs.Invalid, Code: "ERR", Msg: msg} }

func errWrongType() error {
	return &errs.Error{Kind: errs.Invalid, Code: "WRONGTYPE", Msg: "Operation against a key holding the wrong kind of value"}
}
func errSyntax() error     { return plain("syntax error") }
func errNotInteger() error { return plain("value is not an integer or out of range") }
func errNotFloat() error   { return plain("value is not a valid float") }
func errArity(name string) error {
	return plain("wrong number of arguments for '" + name + "' command")
}
func errExpire(name string) error {
	return plain("invalid expire time in '" + name + "' command")
}
func errStringTooLong() error {
	return &errs.Error{Kind: errs.TooLarge, Code: "ERR", Msg: "string exceeds maximum allowed size (proto-max-bulk-len)"}
}

func errKeyTooLong(n int) error {
	return errs.New(errs.TooLarge, "key of %d bytes is longer than the limit of %d", n, KeyBytesMax)
}

func errAnswerTooLarge() error {
	return errs.New(errs.TooLarge, "the answer is longer than the limit of %d bytes; ask for it in parts, for instance with SCAN or HSCAN", AnswerBytesMax)
}
