package etcd

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// A write on condition of the creation revision of a lock's key is refused once the lock is lost, and counted.
func TestTxn_UnderAFencingToken(t *testing.T) {
	r := newRig(t, Config{})
	reg := prometheus.NewRegistry()
	reg.MustRegister(r.s.m.fenced)
	token := r.put("lock/a", "")
	r.put("lock/b", "")
	write := func(key string, token int64, value string) bool {
		t.Helper()
		resp, err := r.kv.Txn(r.ctx(), &pb.TxnRequest{
			Compare: []*pb.Compare{{Key: []byte(key), Target: pb.Compare_CREATE, TargetUnion: &pb.Compare_CreateRevision{CreateRevision: token}}},
			Success: []*pb.RequestOp{put("data", value)},
		})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Succeeded
	}
	if !write("lock/a", token, "1") {
		t.Error("the holder was refused")
	}
	if _, err := r.kv.DeleteRange(r.ctx(), &pb.DeleteRangeRequest{Key: []byte("lock/a")}); err != nil {
		t.Fatal(err)
	}
	if write("lock/a", token, "2") {
		t.Error("a stale holder has written")
	}
	r.put("lock/a", "the same key again is another holder")
	if write("lock/a", token, "3") {
		t.Error("a stale holder has written under a key that came again")
	}
	// What is no token is not counted: a key that must not exist, and a read.
	if write("lock/a", 0, "4") {
		t.Error("a key that exists passed for a new one")
	}
	if _, err := r.kv.Txn(r.ctx(), &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("lock/a"), Target: pb.Compare_CREATE, TargetUnion: &pb.Compare_CreateRevision{CreateRevision: token}}},
	}); err != nil {
		t.Fatal(err)
	}
	got, err := r.kv.Range(r.ctx(), &pb.RangeRequest{Key: []byte("data")})
	if err != nil || string(got.Kvs[0].Value) != "1" {
		t.Errorf("data %v %v", got, err)
	}
	all, err := reg.Gather()
	if err != nil || all[0].GetMetric()[0].GetCounter().GetValue() != 2 {
		t.Errorf("counted %v (%v), want 2", all, err)
	}
}
