package kv

import (
	"bytes"
	"testing"
	"time"
)

// Keys that go with their lease are all told as changes, also if those are more than a command may make.
func TestLease_EndIsToldWhole(t *testing.T) {
	x := newTester(t)
	x.ttl(x.submit(EncodeGrant(7, 10)))
	const n = 24
	for i := range n {
		x.must(&Put{Key: bytes.Repeat([]byte{byte('a' + i)}, 1400<<10), Lease: 7})
	}
	x.Advance(time.Minute)
	m := x.Machine(1)
	first, _ := m.Changes(0, 1)
	told := 0
	for at := first.First; ; {
		cs, err := m.Changes(at, 8<<20)
		if err != nil {
			t.Fatal(err)
		}
		if len(cs.Changes) == 0 {
			break
		}
		for _, ch := range cs.Changes {
			if ch.Op == "delete" {
				told++
			}
		}
		at += uint64(len(cs.Changes))
	}
	if left := x.must(&Range{Key: []byte("a"), End: []byte{0}, CountOnly: true}).Count; left != 0 || told != n {
		t.Errorf("%d keys are left, and %d are told to be gone, want 0 and %d", left, told, n)
	}
}
