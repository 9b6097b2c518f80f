package kv

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/quorate/quorate/internal/errs"
)

func TestUses_NamesEveryKey(t *testing.T) {
	x := newTester(t)
	for id := range int64(3) {
		if _, err := x.submit(EncodeGrant(id+1, 60)); err != nil {
			t.Fatal(err)
		}
	}
	x.must(&Put{Key: []byte("on1"), Lease: 1})
	x.must(&Put{Key: []byte("also1"), Lease: 1})
	x.must(&Put{Key: []byte("on2"), Lease: 2})
	f := func(name string, req []byte, want ...string) {
		t.Helper()
		var got []string
		err := Uses(req, x.query, func(u Use) error {
			got = append(got, fmt.Sprintf("%c %s-%s", " rwa"[u.Kind], u.Key, u.End))
			return nil
		})
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q %v, want %q", name, got, err, want)
		}
	}
	a, b := []byte("a"), []byte("b")
	f("range", EncodeOp(&Range{Key: a, End: b}), "r a-b")
	f("put", EncodeOp(&Put{Key: a}), "w a-")
	f("put with all", EncodeOp(&Put{Key: a, Lease: 1, WantPrev: true}), "w a-", "w also1-", "w on1-", "r a-")
	f("put without such a lease", EncodeOp(&Put{Key: a, Lease: 9}), "w a-")
	f("delete", EncodeOp(&Delete{Key: a, End: b, WantPrev: true}), "w a-b", "r a-b")
	f("txn", EncodeOp(&Txn{
		If:   []Compare{{Key: a, End: b}},
		Then: []Op{&Delete{Key: a}}, Else: []Op{&Txn{If: []Compare{{Key: b}}, Then: []Op{&Put{Key: a, Lease: 2}}}},
	}), "r a-b", "w a-", "r b-", "w a-", "w on2-")
	f("compact", EncodeCompact(2), "a -")
	f("hash", EncodeHash(0), "a -")
	f("events", EncodeEvents(1, 1, false), "a -")
	f("grant", EncodeGrant(1, 2))
	f("status", EncodeStatus())
	f("revoke", EncodeRevoke(1), "w also1-", "w on1-")
	f("renewal", EncodeKeepAlive(2), "w on2-")
	f("time to live", EncodeTimeToLive(1, 0, false))
	f("time to live with keys", EncodeTimeToLive(1, 0, true), "r also1-", "r on1-")
	f("leases", EncodeLeases(), "r also1-", "r on1-", "r on2-")

	no := errs.New(errs.Denied, "no")
	n := 0
	if err := Uses(EncodeLeases(), x.query, func(Use) error { n++; return no }); !errors.Is(err, no) || n != 1 {
		t.Errorf("refused %d times: %v", n, err)
	}
	for _, bad := range [][]byte{nil, {1}, {1, 99}, {2, 1}, {1, byte(reqOp)}, {1, byte(reqRevoke)}, {1, byte(reqTimeToLive)}} {
		if err := Uses(bad, x.query, func(Use) error { return nil }); err == nil {
			t.Errorf("%x: no error", bad)
		}
	}
}
