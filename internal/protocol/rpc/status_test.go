package rpc

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Many clients take no more than 8 KiB of header fields, and would see an error of HTTP/2 in place of the status.
func TestStatus_FitsIntoWhatClientsTake(t *testing.T) {
	for name, unit := range map[string]string{"ascii": "a", "encoded": "%", "control": "\x00", "two bytes": "ä", "three bytes": "€", "four bytes": "😀", "no UTF-8": "\xff", "mixed": "a😀"} {
		for lead := range 12 {
			text := strings.Repeat("x", lead) + strings.Repeat(unit, 100_000/len(unit))
			long, err := status.New(codes.Aborted, text).WithDetails(wrapperspb.String(text))
			if err != nil {
				long = status.New(codes.Aborted, text)
			}
			x := &conn{}
			x.initSender()
			fields, err := hpack.NewDecoder(4096, nil).DecodeFull(x.fields.status(nil, long.Err()))
			if err != nil {
				t.Fatal(err)
			}
			size, got := 0, ""
			for _, f := range fields {
				size += len(f.Name) + len(f.Value) + 32
				if f.Name == "grpc-message" {
					got, err = url.PathUnescape(f.Value)
				}
			}
			want := strings.ToValidUTF8(strings.Repeat("x", lead)+strings.Repeat(unit, 4096), "")
			if unit == "\xff" {
				want = strings.Repeat("x", lead) + strings.Repeat("\ufffd", 4096)
			}
			if err != nil || size > 7<<10 || len(got) < 1000 || !utf8.ValidString(got) || !strings.HasPrefix(want, got) {
				t.Fatalf("%s: fields of %d bytes, a text of %d that ends with %q, %v", name, size, len(got), got[max(0, len(got)-12):], err)
			}
		}
	}
}

// The text and the details together have room, and what is short is sent whole.
func TestStatus_ShortOnesAreWhole(t *testing.T) {
	text := strings.Repeat("€", 300)
	st, err := status.New(codes.Aborted, text).WithDetails(wrapperspb.String("why"))
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, config(), service(map[string]unary{"Fail": func(context.Context, *blob) (*blob, error) { return nil, st.Err() }}, nil))
	_, err = call(r.ctx(), r.conn, "Fail", nil)
	if got := status.Convert(err); got.Message() != text || len(got.Details()) != 1 {
		t.Errorf("got %v with %d details", fmt.Sprintf("%.40q", got.Message()), len(got.Details()))
	}
}
