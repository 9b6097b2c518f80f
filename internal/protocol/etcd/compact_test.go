package etcd

import (
	"fmt"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

func TestCompaction_WhatIsDue(t *testing.T) {
	for _, c := range []struct {
		c    Compaction
		step time.Duration
		// first is the step, from 0, at which something is due: the revision of step 0.
		first int
	}{
		{Compaction{Period: time.Second}, 100 * time.Millisecond, 10},
		{Compaction{Period: time.Hour}, 6 * time.Minute, 10},
		{Compaction{Period: 25 * time.Hour}, 6 * time.Minute, 250},
		{Compaction{Period: 65 * time.Minute}, 6 * time.Minute, 11},
	} {
		if got := c.c.step(); got != c.step {
			t.Errorf("%+v: steps of %v, want %v", c.c, got, c.step)
		}
		p := passed{c: c.c}
		for i := range 3 * c.first {
			want := int64(0)
			if i >= c.first {
				want = int64(i-c.first) + 7
			}
			if got := p.due(int64(i) + 7); got != want {
				t.Fatalf("%+v, step %d: %d is due, want %d", c.c, i, got, want)
			}
		}
		if len(p.revs) != c.first+1 {
			t.Errorf("%+v: %d revisions are kept in mind", c.c, len(p.revs))
		}
	}
	p := passed{c: Compaction{Revisions: 10}}
	var got []int64
	for _, rev := range []int64{1, 10, 11, 25, 25} {
		got = append(got, p.due(rev))
	}
	if want := []int64{0, 0, 1, 15, 15}; !slices.Equal(got, want) || p.c.step() != 5*time.Minute {
		t.Errorf("by revisions: %v, want %v", got, want)
	}
}

func TestCompaction_ByTheServer(t *testing.T) {
	r := newRig(t, Config{Compaction: Compaction{Period: 50 * time.Millisecond}})
	first := r.put("a", "0")
	last := first
	for end := time.Now().Add(time.Minute); ; {
		last = r.put("a", fmt.Sprint(last))
		_, err := r.kv.Range(r.ctx(), &pb.RangeRequest{Key: []byte("a"), Revision: first})
		if same(err, rpctypes.ErrGRPCCompacted) {
			break
		}
		if err != nil || time.Now().After(end) {
			t.Fatalf("revision %d at %d: %v", first, last, err)
		}
	}
	a, err := r.kv.Range(r.ctx(), &pb.RangeRequest{Key: []byte("a")})
	if err != nil || len(a.Kvs) != 1 || a.Kvs[0].ModRevision != last {
		t.Errorf("the newest: %v %v", a, err)
	}
}
