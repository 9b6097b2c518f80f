package etcd

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
)

func TestHistory_OneReadingForAllWhoAreNear(t *testing.T) {
	r := newRig(t, Config{})
	for i := range 20 {
		r.put("a", fmt.Sprint(i))
	}
	h := &history{s: r.s}
	first, err := h.read(r.ctx(), 5, false)
	if err != nil || len(first.Events.Events) != 17 || first.Next != 22 {
		t.Fatalf("got %v, %v", first, err)
	}
	for _, from := range []int64{5, 6, 21} {
		if p, err := h.read(r.ctx(), from, false); p != first || err != nil {
			t.Errorf("from %d: another part, %v", from, err)
		}
	}
	if first.event(3) != first.event(3) || first.event(3).Kv.ModRevision != 8 {
		t.Errorf("event 3 is %v, or made twice", first.event(3))
	}
	// With versions before, from before it, and behind it, there is something else to read.
	prev, err := h.read(r.ctx(), 5, true)
	if err != nil || prev == first || string(prev.event(0).PrevKv.Value) != "2" {
		t.Errorf("with versions before: %v, %v", prev, err)
	}
	if p, err := h.read(r.ctx(), 4, false); err != nil || p == first || p.event(0).Kv.ModRevision != 4 {
		t.Errorf("from 4: %v, %v", p, err)
	}
	if p, err := h.read(r.ctx(), 22, false); err != nil || len(p.Events.Events) != 0 {
		t.Errorf("from 22: %v, %v", p, err)
	}
	r.put("a", "new")
	if p, err := h.read(r.ctx(), 22, false); err != nil || len(p.Events.Events) != 1 {
		t.Errorf("from 22, when it is there: %v, %v", p, err)
	}
	for from := range int64(3 * partsMax) {
		if _, err := h.read(r.ctx(), from%10+1, from%2 == 0); err != nil {
			t.Error(err)
		}
	}
	if n := len(h.parts); n == 0 || n > partsMax {
		t.Errorf("%d parts are kept", n)
	}
	h.drop()
	if len(h.parts) != 0 {
		t.Error("parts are kept after drop")
	}
}

// What is kept is not given to those who may not see it any more, and a reading that failed is tried again.
func TestHistory_CompactedAndFailed(t *testing.T) {
	r := newRig(t, Config{})
	for i := range 20 {
		r.put("a", fmt.Sprint(i))
	}
	h := &history{s: r.s}
	if _, err := h.read(r.ctx(), 2, false); err != nil {
		t.Fatal(err)
	}
	if _, err := r.kv.Compact(r.ctx(), &pb.CompactionRequest{Revision: 10}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.read(r.ctx(), 9, false); !errors.Is(err, kv.ErrCompacted) {
		t.Errorf("from 9: %v", err)
	}
	if p, err := h.read(r.ctx(), 10, false); err != nil || p.Next != 22 {
		t.Errorf("from 10: %v, %v", p, err)
	}
	r.shard.Refuse(errs.New(errs.Unavailable, "down"))
	if _, err := h.read(r.ctx(), 22, false); err == nil {
		t.Error("there was nothing to read from")
	}
	r.shard.Refuse(nil)
	if p, err := h.read(r.ctx(), 22, false); err != nil || len(p.made) != 0 {
		t.Errorf("after that: %v, %v", p, err)
	}
}

// Parts of large revisions are not kept for long.
func TestHistory_KeepsFewBytes(t *testing.T) {
	r := newRig(t, Config{})
	value := strings.Repeat("x", 1<<20)
	var revs []int64
	for range 4 {
		for i := range 10 {
			r.put(fmt.Sprint(i), value)
		}
		d, err := r.kv.DeleteRange(r.ctx(), &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
		if err != nil {
			t.Fatal(err)
		}
		revs = append(revs, d.Header.Revision)
	}
	h := &history{s: r.s}
	for _, rev := range revs {
		p, err := h.read(r.ctx(), rev, true)
		if err != nil || p.bytes < 10<<20 || len(p.event(9).PrevKv.Value) != len(value) {
			t.Fatalf("at %d: %d bytes, %v", rev, p.bytes, err)
		}
		if again, err := h.read(r.ctx(), rev, true); again != p || err != nil {
			t.Errorf("at %d: the last part is not kept: %v", rev, err)
		}
		if len(h.parts) != 1 {
			t.Errorf("%d parts of 10 MiB are kept", len(h.parts))
		}
	}
}
