// Package errs holds the one error type that crosses package seams.
//
// A Kind says what the caller can do about an error; each protocol maps Kinds to its own codes in one table. Kinds are
// written into replicated results, so their numbers never change and none is ever reused.
package errs

import (
	"errors"
	"fmt"
	"slices"
)

// Kind classifies an error by what its receiver can do about it.
type Kind uint8

// The kinds. Append only: the numbers are written to disk and to peers.
const (
	// Invalid: the request is malformed or breaks a stated limit. Repeating it unchanged fails again.
	Invalid Kind = 1
	// NotFound: what the request names does not exist.
	NotFound Kind = 2
	// Exists: what the request would create exists already.
	Exists Kind = 3
	// Conflict: a condition of the request did not hold (a watched key changed, a sequence was out of order).
	Conflict Kind = 4
	// Fenced: the caller acts under a token, epoch or generation that a newer one has replaced.
	Fenced Kind = 5
	// Compacted: the position asked for is no longer kept.
	Compacted Kind = 6
	// TooLarge: the request or its answer is over a size limit.
	TooLarge Kind = 7
	// Denied: the caller is known and may not do this.
	Denied Kind = 8
	// Unauthenticated: the caller is not known.
	Unauthenticated Kind = 9
	// Overloaded: refused before any work was done, because a bound was reached. Try again later, with back-off.
	Overloaded Kind = 10
	// Unavailable: no leader or no quorum. Nothing was proposed; trying again is safe.
	Unavailable Kind = 11
	// OutcomeUnknown: the request may or may not have been applied, or may still be. It is never a failure.
	OutcomeUnknown Kind = 12
	// Corrupt: stored or received bytes fail their checksum or their format.
	Corrupt Kind = 13
	// Unsupported: a known request that this build does not serve.
	Unsupported Kind = 14
	// Internal: a defect in Quorate.
	Internal Kind = 15
)

var kindNames = [...]string{
	Invalid: "invalid", NotFound: "not found", Exists: "exists", Conflict: "conflict", Fenced: "fenced",
	Compacted: "compacted", TooLarge: "too large", Denied: "denied", Unauthenticated: "unauthenticated",
	Overloaded: "overloaded", Unavailable: "unavailable", OutcomeUnknown: "outcome unknown", Corrupt: "corrupt",
	Unsupported: "unsupported", Internal: "internal",
}

// String names the kind in lower case; a kind of a newer release prints as its number.
func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Error is the error that crosses package seams.
type Error struct {
	Kind Kind
	// Code is an optional short reason that a protocol may show as it is, such as Redis' WRONGTYPE. It holds upper-case
	// ASCII letters and digits only.
	Code string
	// Msg says what was wrong and, where it helps, what to do. It starts in lower case and has no final stop.
	Msg string
	// Err is the cause, if any; errors.Is and errors.As see it.
	Err error
}

// Error prints code, message and cause.
func (e *Error) Error() string {
	s := e.Msg
	if e.Code != "" {
		s = e.Code + " " + s
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ParseKind is String's opposite.
func ParseKind(name string) (Kind, bool) {
	i := slices.Index(kindNames[:], name)
	return Kind(max(i, 0)), i > 0 && name != ""
}

// New returns an error of a kind with a formatted message.
func New(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Msg: fmt.Sprintf(format, args...)}
}

// Coded returns an error of a kind that carries a protocol-visible code.
func Coded(k Kind, code, format string, args ...any) *Error {
	return &Error{Kind: k, Code: code, Msg: fmt.Sprintf(format, args...)}
}

// Wrap returns an error of a kind with a cause. It returns nil if err is nil.
func Wrap(k Kind, err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: k, Msg: fmt.Sprintf(format, args...), Err: err}
}

// KindOf returns the kind of the outermost *Error in err's chain, 0 for nil, and Internal for any other error.
func KindOf(err error) Kind {
	if err == nil {
		return 0
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Is reports whether err carries kind k.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }
