package etcd

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
)

// Snapshot implements pb.MaintenanceServer: the key space as of one revision, in the file format of etcd's own store, so that one
// can go back to etcd. The file is written first, since a client wants to know its size.
//
// Not in it: history before that revision, which etcd will call compacted, and members, which a restore makes anew.
func (m maintenanceServer) Snapshot(_ *pb.SnapshotRequest, out grpc.ServerStreamingServer[pb.SnapshotResponse]) error {
	ctx := out.Context()
	if err := m.s.allow(ctx, onlyRoot); err != nil {
		return err
	}
	if m.s.snapshots.Add(1) > snapshotsMax {
		m.s.snapshots.Add(-1)
		return rpctypes.ErrGRPCRequestTooManyRequests
	}
	defer m.s.snapshots.Add(-1)
	dir, err := os.MkdirTemp(m.s.cfg.TempDir, snapshotPrefix)
	if err != nil {
		return toGRPC(ctx, errs.Wrap(errs.Unavailable, err, "make a directory for the snapshot"))
	}
	defer os.RemoveAll(dir) //nolint:errcheck // what is left is in a directory for temporary files
	file := filepath.Join(dir, "db")
	for try := 1; ; try++ {
		if err = m.s.writeSnapshot(ctx, file); !errors.Is(err, kv.ErrCompacted) || try == snapshotTries {
			break
		}
	}
	if err != nil {
		return toGRPC(ctx, err)
	}
	return sendFile(out, file)
}

// snapshotPrefix begins the names of the directories in which snapshots are made.
const snapshotPrefix = "quorate-snapshot-"

// dropSnapshots removes what a crash has left.
func dropSnapshots(dir string) {
	left, _ := filepath.Glob(filepath.Join(dir, snapshotPrefix+"*"))
	for _, d := range left {
		_ = os.RemoveAll(d)
	}
}

const (
	// snapshotsMax is how many snapshots are made or sent at a time: each takes what the key space takes on disk, beside the node's own files.
	snapshotsMax = 4
	// snapshotTries is how often a snapshot is begun: a compaction may overtake it.
	snapshotTries = 3
	// snapshotKeys is how many keys are read at a time, and written in one transaction.
	snapshotKeys = 1000
	// snapshotBlob is the size of the pieces that are sent.
	snapshotBlob = 32 << 10
)

// sendFile sends a file and its checksum.
func sendFile(out grpc.ServerStreamingServer[pb.SnapshotResponse], name string) error {
	f, err := os.Open(name)
	if err != nil {
		return toGRPC(out.Context(), err)
	}
	defer f.Close() //nolint:errcheck // nothing is written
	st, err := f.Stat()
	if err != nil {
		return toGRPC(out.Context(), err)
	}
	h := sha256.New()
	for left := st.Size(); left > 0; {
		blob := make([]byte, min(left, snapshotBlob))
		if _, err := io.ReadFull(f, blob); err != nil {
			return toGRPC(out.Context(), err)
		}
		_, _ = h.Write(blob)
		left -= int64(len(blob))
		if err := out.Send(&pb.SnapshotResponse{RemainingBytes: uint64(left), Blob: blob, Version: storageVersion}); err != nil {
			return err
		}
	}
	return out.Send(&pb.SnapshotResponse{Blob: h.Sum(nil), Version: storageVersion})
}

// The buckets of etcd's store, and its keys in the bucket meta.
var (
	bucketKey   = []byte("key")
	bucketMeta  = []byte("meta")
	bucketLease = []byte("lease")
	bucketAuth  = []byte("auth")
	bucketUsers = []byte("authUsers")
	bucketRoles = []byte("authRoles")
	buckets     = [][]byte{
		bucketKey, bucketMeta, bucketLease, []byte("alarm"), []byte("cluster"), []byte("members"), []byte("members_removed"),
		bucketAuth, bucketUsers, bucketRoles,
	}
)

// writeSnapshot writes the file. It fails with kv.ErrCompacted if a compaction overtakes it.
func (s *Server) writeSnapshot(ctx context.Context, name string) (err error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// Nobody needs the file after a crash.
	db, err := bbolt.Open(name, 0o600, &bbolt.Options{NoSync: true, NoGrowSync: true})
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "make the snapshot's file")
	}
	defer func() {
		if cerr := db.Close(); err == nil {
			err = cerr
		}
	}()
	now, err := s.status(ctx, false)
	if err != nil {
		return err
	}
	rev := now.Revision
	w := snapshotWriter{db: db, rev: rev, numbers: map[int64]int64{}}
	if err := w.begin(); err != nil {
		return err
	}
	// A lease may begin or end while the keys are read: those of before and after are all that keys can hang on.
	if err := s.snapshotLeases(ctx, &w); err != nil {
		return err
	}
	part := &kv.Range{Key: []byte{0}, End: []byte{0}, Revision: rev, Limit: snapshotKeys}
	for more := true; more; {
		a, err := s.readOp(ctx, part, true)
		if err != nil {
			return err
		}
		if err := w.keys(a.KVs); err != nil {
			return err
		}
		if more = a.More; more {
			part.Key = append(append([]byte(nil), a.KVs[len(a.KVs)-1].Key...), 0)
		}
	}
	if err := s.snapshotLeases(ctx, &w); err != nil {
		return err
	}
	if err := s.snapshotEnd(ctx, &w); err != nil {
		return err
	}
	b, err := s.askAuth(ctx, auth.EncodeDump())
	if err != nil {
		return err
	}
	all, err := auth.DecodeDump(b)
	if err != nil {
		return err
	}
	return w.rights(&all)
}

func (s *Server) snapshotLeases(ctx context.Context, w *snapshotWriter) error {
	b, err := s.ask(ctx, kv.EncodeLeases(), true)
	if err != nil {
		return err
	}
	_, leases, err := kv.DecodeLeases(b)
	if err != nil {
		return err
	}
	return w.leases(leases)
}

// snapshotEnd makes etcd count on from the snapshot's revision: its store takes the revision of its last entry, which a deletion leaves
// behind as well.
func (s *Server) snapshotEnd(ctx context.Context, w *snapshotWriter) error {
	if w.rev <= 1 || w.numbers[w.rev] > 0 {
		return nil
	}
	b, err := s.ask(ctx, kv.EncodeEvents(w.rev, 1, false), true)
	if err != nil {
		return err
	}
	e, err := kv.DecodeEvents(b)
	if err != nil {
		return err
	}
	for i := range e.Events {
		if ev := &e.Events[i]; ev.KV.Mod == w.rev && ev.Deleted {
			return w.tombstone(ev.KV.Key)
		}
	}
	return errs.New(errs.Internal, "revision %d left neither a key nor a deletion", w.rev)
}

// snapshotWriter writes etcd's store.
type snapshotWriter struct {
	db  *bbolt.DB
	rev int64
	// numbers counts the keys of each revision: etcd numbers them, and only that no two are alike matters.
	numbers map[int64]int64
}

// revision is the form of a revision as a key of etcd's store.
func revision(main, sub int64) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 18), uint64(main))
	return binary.BigEndian.AppendUint64(append(b, '_'), uint64(sub))
}

func (w *snapshotWriter) begin() error {
	return w.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		one := binary.BigEndian.AppendUint64(nil, 1)
		all := [][2][]byte{
			{[]byte("consistent_index"), one}, {[]byte("term"), one},
			{[]byte("confState"), []byte(`{"voters":[1],"auto_leave":false}`)}, {[]byte("storageVersion"), []byte(storageVersion)},
		}
		if w.rev > 1 {
			all = append(all, [2][]byte{[]byte("scheduledCompactRev"), revision(w.rev, 0)}, [2][]byte{[]byte("finishedCompactRev"), revision(w.rev, 0)})
		}
		for _, kv := range all {
			if err := meta.Put(kv[0], kv[1]); err != nil {
				return err
			}
		}
		return nil
	})
}

func (w *snapshotWriter) keys(kvs []kv.KeyValue) error {
	return w.db.Update(func(tx *bbolt.Tx) error {
		to := tx.Bucket(bucketKey)
		for i := range kvs {
			k := &kvs[i]
			v, err := proto.Marshal(fromKV(k))
			if err == nil {
				err = to.Put(revision(k.Mod, w.numbers[k.Mod]), v)
			}
			if err != nil {
				return fmt.Errorf("write a key of the snapshot: %w", err)
			}
			w.numbers[k.Mod]++
		}
		return nil
	})
}

// tombstone writes the deletion of a key in the snapshot's revision.
func (w *snapshotWriter) tombstone(key []byte) error {
	v, err := proto.Marshal(&mvccpb.KeyValue{Key: key})
	if err != nil {
		return err
	}
	return w.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketKey).Put(append(revision(w.rev, 0), 't'), v) })
}

func (w *snapshotWriter) leases(all []kv.LeaseTTL) error {
	return w.db.Update(func(tx *bbolt.Tx) error {
		to := tx.Bucket(bucketLease)
		for _, l := range all {
			// Message Lease of etcd's leasepb: ID = 1, TTL = 2.
			v := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(l.ID))
			v = protowire.AppendVarint(protowire.AppendTag(v, 2, protowire.VarintType), uint64(l.TTL))
			if err := to.Put(binary.BigEndian.AppendUint64(nil, uint64(l.ID)), v); err != nil {
				return err
			}
		}
		return nil
	})
}

// rights writes users and roles: who goes back to etcd must find them, lest all be open there.
func (w *snapshotWriter) rights(all *auth.Dump) error {
	return w.db.Update(func(tx *bbolt.Tx) error {
		enabled := []byte{0}
		if all.Enabled {
			enabled[0] = 1
		}
		to := tx.Bucket(bucketAuth)
		if err := errors.Join(to.Put([]byte("authEnabled"), enabled), to.Put([]byte("authRevision"), binary.BigEndian.AppendUint64(nil, all.Revision))); err != nil {
			return err
		}
		put := func(bucket []byte, name string, m proto.Message) error {
			v, err := proto.Marshal(m)
			if err == nil {
				err = tx.Bucket(bucket).Put([]byte(name), v)
			}
			return err
		}
		for i := range all.Users {
			u := &all.Users[i]
			err := put(bucketUsers, u.Name, &authpb.User{
				Name: []byte(u.Name), Password: u.Hash, Roles: u.Roles, Options: &authpb.UserAddOptions{NoPassword: u.NoPassword},
			})
			if err != nil {
				return fmt.Errorf("write a user of the snapshot: %w", err)
			}
		}
		for _, r := range all.Roles {
			if err := put(bucketRoles, r.Name, &authpb.Role{Name: []byte(r.Name), KeyPermission: fromPermissions(r.Permissions)}); err != nil {
				return fmt.Errorf("write a role of the snapshot: %w", err)
			}
		}
		return nil
	})
}
