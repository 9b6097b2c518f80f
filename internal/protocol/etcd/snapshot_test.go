package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"
)

// snapshot fetches one, checks it and opens it.
func (r *rig) snapshot() *bbolt.DB {
	r.t.Helper()
	st, err := pb.NewMaintenanceClient(r.conn).Snapshot(r.ctx(), &pb.SnapshotRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	var all []byte
	var last *pb.SnapshotResponse
	for {
		m, err := st.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			r.t.Fatal(err)
		}
		if last != nil && last.RemainingBytes > 0 && m.RemainingBytes != last.RemainingBytes-uint64(len(m.Blob)) && m.RemainingBytes != 0 {
			r.t.Errorf("%d bytes remain after %d and a blob of %d", m.RemainingBytes, last.RemainingBytes, len(m.Blob))
		}
		all, last = append(all, m.Blob...), m
	}
	body, sum := all[:len(all)-sha256.Size], all[len(all)-sha256.Size:]
	if want := sha256.Sum256(body); !bytes.Equal(sum, want[:]) || last.RemainingBytes != 0 {
		r.t.Fatal("wrong checksum")
	}
	name := filepath.Join(r.t.TempDir(), "db")
	if err := os.WriteFile(name, body, 0o600); err != nil {
		r.t.Fatal(err)
	}
	db, err := bbolt.Open(name, 0o600, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = db.Close() })
	return db
}

func TestSnapshot_IsEtcdsStore(t *testing.T) {
	tmp := t.TempDir()
	if err := os.Mkdir(filepath.Join(tmp, snapshotPrefix+"old"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, Config{TempDir: tmp})
	if n := count(t, r.snapshot(), "key"); n != 0 {
		t.Errorf("%d keys in an empty store", n)
	}
	g, err := r.lease.LeaseGrant(r.ctx(), &pb.LeaseGrantRequest{TTL: 50})
	if err != nil {
		t.Fatal(err)
	}
	var ops []*pb.RequestOp
	for i := range 100 {
		ops = append(ops, put(fmt.Sprint("k", i), "old"))
	}
	if _, err := r.kv.Txn(r.ctx(), &pb.TxnRequest{Success: ops}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.kv.Put(r.ctx(), &pb.PutRequest{Key: []byte("k1"), Value: []byte("new"), Lease: g.ID}); err != nil {
		t.Fatal(err)
	}
	d, err := r.kv.DeleteRange(r.ctx(), &pb.DeleteRangeRequest{Key: []byte("k2")})
	if err != nil {
		t.Fatal(err)
	}
	db := r.snapshot()
	// 99 keys, and the deletion that made the last revision.
	if n := count(t, db, "key"); n != 100 || count(t, db, "lease") != 1 || d.Header.Revision != 4 {
		t.Errorf("%d keys, %d leases, revision %d", n, count(t, db, "lease"), d.Header.Revision)
	}
	err = db.View(func(tx *bbolt.Tx) error {
		k, v := tx.Bucket([]byte("key")).Cursor().Last()
		if !bytes.Equal(k, append(revision(4, 0), 't')) {
			t.Errorf("last entry %x", k)
		}
		var kv mvccpb.KeyValue
		if err := proto.Unmarshal(v, &kv); err != nil || string(kv.Key) != "k2" {
			t.Errorf("deletion %v %v", &kv, err)
		}
		v = tx.Bucket([]byte("key")).Get(revision(3, 0))
		if err := proto.Unmarshal(v, &kv); err != nil || string(kv.Value) != "new" || kv.Lease != g.ID || kv.CreateRevision != 2 || kv.Version != 2 {
			t.Errorf("key %v %v", &kv, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func count(t *testing.T, db *bbolt.DB, bucket string) int {
	t.Helper()
	n := 0
	if err := db.View(func(tx *bbolt.Tx) error {
		n = tx.Bucket([]byte(bucket)).Stats().KeyN
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSnapshot_NoRoom(t *testing.T) {
	r := newRig(t, Config{TempDir: filepath.Join(t.TempDir(), "missing")})
	st, err := pb.NewMaintenanceClient(r.conn).Snapshot(context.Background(), &pb.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err == nil {
		t.Error("a snapshot without a place to make it")
	}
}

// Each snapshot takes room on the node's disk until it is sent.
func TestSnapshot_AreFewAtATime(t *testing.T) {
	tmp := t.TempDir()
	r := newRig(t, Config{TempDir: tmp})
	for i := range 16 {
		r.put(fmt.Sprint(i), strings.Repeat("x", 1<<20))
	}
	ctx, leave := context.WithCancel(r.ctx())
	defer leave()
	m := pb.NewMaintenanceClient(r.conn)
	for range snapshotsMax {
		st, err := m.Snapshot(ctx, &pb.SnapshotRequest{})
		if err == nil {
			_, err = st.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	st, err := m.Snapshot(r.ctx(), &pb.SnapshotRequest{})
	if err == nil {
		_, err = st.Recv()
	}
	if !same(err, rpctypes.ErrGRPCRequestTooManyRequests) {
		t.Errorf("one more: %v", err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) != snapshotsMax {
		t.Errorf("files: %v %v", left, err)
	}
	leave()
	await(t, "the others are given up", func() bool { return r.s.snapshots.Load() == 0 })
	_ = r.snapshot().Close()
}
