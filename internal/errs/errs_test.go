package errs

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestKindOf_FindsOutermostKind(t *testing.T) {
	inner := New(Corrupt, "bad checksum")
	outer := Wrap(Unavailable, inner, "read shard %d", 3)
	f := func(err error, want Kind) {
		t.Helper()
		if got := KindOf(err); got != want {
			t.Errorf("KindOf(%v) = %v, want %v", err, got, want)
		}
	}
	f(nil, 0)
	f(io.EOF, Internal)
	f(inner, Corrupt)
	f(outer, Unavailable)
	f(fmt.Errorf("open: %w", inner), Corrupt)
	if !errors.Is(outer, error(inner)) {
		t.Errorf("cause is lost")
	}
	if Wrap(Invalid, nil, "x") != nil {
		t.Errorf("Wrap(nil) is not nil")
	}
	if got, want := outer.Error(), "read shard 3: bad checksum"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := Coded(Invalid, "WRONGTYPE", "no").Error(), "WRONGTYPE no"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestParseKind_Unknown(t *testing.T) {
	for _, name := range []string{"", "no such kind"} {
		if k, ok := ParseKind(name); ok {
			t.Errorf("%q is kind %v", name, k)
		}
	}
}

// TestKind_NumbersAreFixed pins the numbers, since they are on disks and on the wire.
func TestKind_NumbersAreFixed(t *testing.T) {
	for k, want := range map[Kind]string{1: "invalid", 5: "fenced", 12: "outcome unknown", 15: "internal", 99: "kind 99"} {
		if got := k.String(); got != want {
			t.Errorf("kind %d is %q, want %q", uint8(k), got, want)
		}
		if got, ok := ParseKind(want); ok != (k < 99) || ok && got != k {
			t.Errorf("%q is kind %v %v", want, got, ok)
		}
	}
}
