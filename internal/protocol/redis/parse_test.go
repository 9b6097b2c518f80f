package redis

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// parseAll feeds data in pieces of a size, and returns what came out in a readable form.
func parseAll(data []byte, piece int) string {
	var p parser
	var b strings.Builder
	for len(data) > 0 {
		room := p.room()
		n := copy(room, data[:min(piece, len(data))])
		p.filled(n)
		data = data[n:]
		for {
			args, tooLong, err := p.next()
			if err != nil {
				fmt.Fprintf(&b, "error %v\n", err)
				return b.String()
			}
			if tooLong {
				b.WriteString("too long\n")
				continue
			}
			if args == nil {
				break
			}
			fmt.Fprintf(&b, "%q\n", args)
		}
	}
	fmt.Fprintf(&b, "partial %v", p.partial())
	return b.String()
}

func TestParser_IncrementalEqualsWhole(t *testing.T) {
	for in, want := range map[string]string{
		"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n":        "[\"GET\" \"k\"]\npartial false",
		"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING":  "[\"PING\"]\npartial true",
		"*0\r\n*-1\r\n*1\r\n$0\r\n\r\n":         "[\"\"]\npartial false",
		"PING\r\nset a \"b c\\x41\\n\"\n\r\n\n": "[\"PING\"]\n[\"set\" \"a\" \"b cA\\n\"]\npartial false",
		"get 'it\\'s' \"\"\n*1\r\n$1\r\nx\r\n":  "[\"get\" \"it's\" \"\"]\n[\"x\"]\npartial false",
		"*2\r\n$3\r\nGET\r\n$536870913\r\n":     "error Protocol error: invalid bulk length\n",
		"*1\r\n$3\r\nGETxx":                     "error Protocol error: expected CRLF after bulk data\n",
		"*2147483647\r\n":                       "error Protocol error: invalid multibulk length\n",
		"  \t \r\nPING\r\n":                     "[\"PING\"]\npartial false",
		// As in Redis, these are spaces in front of a word, and behind a quoted one.
		"get a\vb\fc \v\"d\"\v\fe\f\n": "[\"get\" \"a\\vb\\fc\" \"d\" \"e\\f\"]\npartial false",
		// As in Redis, a header ends with a carriage return and any byte.
		"\n*0\r\r":            "partial false",
		"\n*1\r\r$1\r\rx\r\n": "[\"x\"]\npartial false",
	} {
		for _, piece := range []int{1, 2, 3, 7, 1 << 20} {
			if got := parseAll([]byte(in), piece); got != want {
				t.Errorf("%q in pieces of %d: got %q, want %q", in, piece, got, want)
			}
		}
	}
}

func TestParser_TooLongIsReadOver(t *testing.T) {
	big := bytes.Repeat([]byte("x"), requestBytesMax+100)
	in := fmt.Appendf(nil, "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%s\r\n*1\r\n$4\r\nPING\r\n", len(big), big)
	if got := parseAll(in, 1<<16); got != "too long\n[\"PING\"]\npartial false" {
		t.Errorf("got %q", got)
	}
	many := []byte("*3\r\n$5000000\r\n" + strings.Repeat("a", 5000000) + "\r\n$5000000\r\n" + strings.Repeat("b", 5000000) + "\r\n$1\r\nc\r\nPING\r\n")
	if got := parseAll(many, 1<<16); got != "too long\n[\"PING\"]\npartial false" {
		t.Errorf("got %q", got)
	}
	var p parser
	p.filled(copy(p.room(), "*2\r\n$3\r\nSET\r\n$500000000\r\n"))
	for range 2000 {
		if args, _, err := p.next(); args != nil || err != nil {
			t.Fatal(args, err)
		}
		p.filled(len(p.room()))
	}
	if len(p.buf) > 1<<16 {
		t.Errorf("a request that is read over made the buffer %d bytes long", len(p.buf))
	}
}

func TestParser_BufferShrinksAgain(t *testing.T) {
	var p parser
	in := fmt.Appendf(nil, "*2\r\n$3\r\nGET\r\n$1000000\r\n%s\r\n", bytes.Repeat([]byte("x"), 1000000))
	for len(in) > 0 {
		n := copy(p.room(), in)
		p.filled(n)
		in = in[n:]
		if _, _, err := p.next(); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(p.room()); n > 16*bufferBytesMin {
		t.Errorf("the buffer keeps %d bytes", n)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", "PING\r\n", "set \"a\\x00\" 'b'\r\n", "*1\r\n$-1\r\n", "*3\r\n$9999999\r\n", "*1048576\r\n$1\r\n",
		"$5\r\nhello\r\n", "*-5\r\n*0\r\nPING\n", "\x00\xff\r\n", "*1\r\n$4\r\nPI\r\n\r\n",
	} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, data []byte, piece uint8) {
		whole := parseAll(data, 1<<20)
		if got := parseAll(data, int(piece)+1); got != whole {
			t.Errorf("pieces of %d give %q, the whole %q", int(piece)+1, got, whole)
		}
		var p parser
		for len(data) > 0 {
			n := copy(p.room(), data)
			p.filled(n)
			data = data[n:]
			for {
				args, _, err := p.next()
				if args == nil || err != nil {
					break
				}
			}
			if len(p.buf) > max(bufferBytesMin, 4*p.w) {
				t.Fatalf("%d bytes of buffer for %d of input", len(p.buf), p.w)
			}
		}
	})
}
