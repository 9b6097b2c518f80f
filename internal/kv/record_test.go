package kv

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/shardtest"
)

func TestRecorder_TellsWhatWasApplied(t *testing.T) {
	var got []Step
	x := &tester{t, shardtest.New(t, shardtest.Options{}, Recorder{To: func(s Step) { got = append(got, s) }})}
	put := &Put{Key: []byte("k"), Value: []byte("1"), Lease: 7}
	txn := &Txn{If: []Compare{{Key: []byte("k"), Target: Version, Number: 1}}, Then: []Op{&Put{Key: []byte("a"), Value: []byte("2")}, &Range{Key: []byte("k")}}}
	del := &Delete{Key: []byte("a")}
	x.ttl(x.submit(EncodeGrant(7, 10)))
	x.ttl(x.submit(EncodeGrant(8, 10)))
	x.must(put)
	x.must(txn)
	x.must(del)
	x.must(&Range{Key: []byte("k")})
	x.ttl(x.submit(EncodeKeepAlive(7)))
	if err := x.compact(2); err != nil {
		t.Fatal(err)
	}
	if _, err := x.submit(EncodeRevoke(8)); err != nil {
		t.Fatal(err)
	}
	// What is refused did nothing.
	if _, err := x.do(&Put{Key: []byte("k"), Lease: 99}); err == nil {
		t.Error("a put with a lease that is not there")
	}
	if err := x.compact(2); err == nil {
		t.Error("compacted twice")
	}
	x.Advance(11 * time.Second)
	want := []Step{
		{Grant: 7}, {Grant: 8},
		{Put: put},
		{Txn: &TxnStep{If: txn.If, Then: []Step{{Put: txn.Then[0].(*Put)}, {Range: txn.Then[1].(*Range)}}, Else: []Step{}}},
		{Delete: del},
		{Compact: 2}, {Revoke: 8},
		// Lease 7 ran out.
		{Revoke: 7},
	}
	if g, w := asJSON(t, got), asJSON(t, want); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	// No bytes and none given are the same.
	return strings.ReplaceAll(string(b), "null", `""`)
}
