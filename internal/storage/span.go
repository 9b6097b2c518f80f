package storage

import (
	"bytes"
	"slices"
)

// span is a range of keys, from <= key < to, that was deleted as a whole.
type span struct{ from, to []byte }

// spans are in the order of their keys and do not touch each other. A list of them is never changed.
type spans []span

// with returns the list with one more. The bounds are copied.
func (s spans) with(from, to []byte) spans {
	if bytes.Compare(from, to) >= 0 {
		return s
	}
	// Those in between touch the new one.
	lo, _ := slices.BinarySearchFunc(s, from, func(a span, from []byte) int { return bytes.Compare(a.to, from) })
	hi := lo
	n := span{bytes.Clone(from), bytes.Clone(to)}
	for ; hi < len(s) && bytes.Compare(s[hi].from, to) <= 0; hi++ {
		if bytes.Compare(s[hi].from, n.from) < 0 {
			n.from = s[hi].from
		}
		if bytes.Compare(s[hi].to, n.to) > 0 {
			n.to = s[hi].to
		}
	}
	return slices.Concat(s[:lo], spans{n}, s[hi:])
}

// covering returns the span that a key is in, or nil.
func (s spans) covering(key []byte) *span {
	if len(s) == 0 {
		return nil
	}
	// The first that ends behind the key.
	i, _ := slices.BinarySearchFunc(s, key, func(a span, key []byte) int {
		if bytes.Compare(a.to, key) <= 0 {
			return -1
		}
		return 1
	})
	if i < len(s) && bytes.Compare(s[i].from, key) <= 0 {
		return &s[i]
	}
	return nil
}
