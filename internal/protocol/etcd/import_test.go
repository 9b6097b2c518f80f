package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
)

// saved fetches a snapshot as etcdctl saves it.
func (r *rig) saved() string { return r.savedAs(r.ctx()) }

func (r *rig) savedAs(ctx context.Context) string {
	r.t.Helper()
	st, err := pb.NewMaintenanceClient(r.conn).Snapshot(ctx, &pb.SnapshotRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	var all []byte
	for {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			r.t.Fatal(err)
		}
		all = append(all, m.Blob...)
	}
	name := filepath.Join(r.t.TempDir(), "saved.db")
	if err := os.WriteFile(name, all, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return name
}

func TestImport_OwnSnapshot(t *testing.T) {
	from, to := newRig(t, Config{}), newRig(t, Config{})
	if _, err := from.lease.LeaseGrant(from.ctx(), &pb.LeaseGrantRequest{ID: 7, TTL: 600}); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 5000)
	for i := range 300 {
		if _, err := from.kv.Put(from.ctx(), &pb.PutRequest{Key: fmt.Appendf(nil, "k%03d", i), Value: []byte(big), Lease: int64(i % 2 * 7)}); err != nil {
			t.Fatal(err)
		}
	}
	from.put("k001", "again")
	if _, err := from.kv.DeleteRange(from.ctx(), &pb.DeleteRangeRequest{Key: []byte("k002")}); err != nil {
		t.Fatal(err)
	}
	parts := 0
	load := func(p *Part) error {
		parts++
		if err := to.s.Load(to.ctx(), p.Encode()); err != nil {
			return err
		}
		// Who got no answer sends a part again.
		return to.s.Load(to.ctx(), p.Encode())
	}
	// A watch that is open meanwhile goes on behind it.
	w := to.watching(to.ctx())
	w.create(&pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l")})
	w.want("0@1 created")
	found, err := ReadSnapshot(from.saved(), load)
	if err != nil || found != (Snapshot{Revision: 303, Keys: 299, Leases: 1}) || parts < 3 {
		t.Fatalf("%+v in %d parts: %v", found, parts, err)
	}
	all := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
	a, err1 := from.kv.Range(from.ctx(), all)
	b, err2 := to.kv.Range(to.ctx(), all)
	if err1 != nil || err2 != nil || a.Header.Revision != b.Header.Revision || fmt.Sprint(a.Kvs) != fmt.Sprint(b.Kvs) {
		t.Errorf("not the same: %v %v; revisions %v and %v", err1, err2, a.Header, b.Header)
	}
	if ttl, err := to.lease.LeaseTimeToLive(to.ctx(), &pb.LeaseTimeToLiveRequest{ID: 7, Keys: true}); err != nil || ttl.GrantedTTL != 600 || len(ttl.Keys) != 149 {
		t.Errorf("lease: %v %v", ttl, err)
	}
	if got := to.put("k000", "next"); got != 304 {
		t.Errorf("next revision is %d", got)
	}
	m := w.recv()
	for len(m.Events) > 0 && m.Events[len(m.Events)-1].Kv.ModRevision < 304 {
		m = w.recv()
	}
	if m.CompactRevision != 303 && (len(m.Events) == 0 || string(m.Events[len(m.Events)-1].Kv.Key) != "k000") {
		t.Errorf("the watch says %v", m)
	}
	// What was written to since takes no load.
	again, err := ReadSnapshot(from.saved(), func(p *Part) error {
		if p.Keys.Revision == 0 {
			return nil
		}
		return load(p)
	})
	if !errors.Is(err, kv.ErrNotEmpty) {
		t.Errorf("%+v again: %v", again, err)
	}
}

// All changes of the last revision are in one part, which a node must be able to take.
func TestImport_LastRevisionOfManyKeys(t *testing.T) {
	name := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(name, 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket(bucketKey)
		if err != nil {
			return err
		}
		for i := range 9000 {
			v, err := proto.Marshal(&mvccpb.KeyValue{Key: fmt.Appendf(nil, "%01000d", i)})
			if err == nil {
				err = b.Put(append(revision(9, int64(i)), 't'), v)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = ReadSnapshot(name, func(p *Part) error { t.Errorf("a part of %d bytes came", len(p.Encode())); return nil })
	if !errs.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "take another snapshot") {
		t.Errorf("got %v", err)
	}
}

// What a node would refuse is named before anything is handed to it.
func TestImport_NothingIsHandedOutOfWhatCannotBeLoaded(t *testing.T) {
	// Parts of the first keys would be handed out long before what is wrong.
	file := func(f func(tx *bbolt.Tx) error) string {
		name := filepath.Join(t.TempDir(), "db")
		if err := os.WriteFile(name, boltFile(t, 1), 0o600); err != nil {
			t.Fatal(err)
		}
		return changed(t, name, func(tx *bbolt.Tx) error {
			for i := range 10 {
				if err := putKey(tx, int64(i+2), &mvccpb.KeyValue{Key: fmt.Appendf(nil, "%d", i), Value: make([]byte, loadBytes/2)}); err != nil {
					return err
				}
			}
			return f(tx)
		})
	}
	for want, f := range map[string]func(*bbolt.Tx) error{
		`key "large" of the snapshot has 8388`: func(tx *bbolt.Tx) error {
			return putKey(tx, 20, &mvccpb.KeyValue{Key: []byte("large"), Value: make([]byte, LoadBytesMax)})
		},
		`key "" has revisions`: func(tx *bbolt.Tx) error { return putKey(tx, 20, &mvccpb.KeyValue{Value: []byte("v")}) },
		`key "old" of revision 3 at revision 20`: func(tx *bbolt.Tx) error {
			v, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte("old"), CreateRevision: 3, ModRevision: 3, Version: 1})
			return errors.Join(err, tx.Bucket(bucketKey).Put(revision(20, 0), v))
		},
		`lease 5 has a TTL`: func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketLease).Put(binary.BigEndian.AppendUint64(nil, 5), binary.AppendUvarint([]byte{8, 5, 16}, kv.LeaseTTLMax+1))
		},
		`end at revision 6`: func(tx *bbolt.Tx) error {
			return putKey(tx, 6<<60, &mvccpb.KeyValue{Key: []byte("late")})
		},
	} {
		_, err := ReadSnapshot(file(f), func(p *Part) error { t.Errorf("%s: a part of %d bytes came", want, len(p.Encode())); return nil })
		if k := errs.KindOf(err); err == nil || k == errs.Internal || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	// The largest that goes.
	r := newRig(t, Config{})
	name := file(func(tx *bbolt.Tx) error {
		return putKey(tx, 20, &mvccpb.KeyValue{Key: []byte("large"), Value: make([]byte, LoadBytesMax-200)})
	})
	if found, err := ReadSnapshot(name, r.loadTwice); err != nil || found.Keys != 11 {
		t.Errorf("%+v %v", found, err)
	}
}

// putKey adds a key of a revision, and its first version, to a file of etcd.
func putKey(tx *bbolt.Tx, rev int64, m *mvccpb.KeyValue) error {
	m.CreateRevision, m.ModRevision, m.Version = rev, rev, 1
	v, err := proto.Marshal(m)
	return errors.Join(err, tx.Bucket(bucketKey).Put(revision(rev, 0), v))
}

// etcd takes a transaction that writes a key and deletes it by a range without end, or the other way round.
func TestImport_KeyTwiceInTheLastRevision(t *testing.T) {
	name := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(name, boltFile(t, 3), 0o600); err != nil {
		t.Fatal(err)
	}
	put := func(key string) []byte {
		return marshal(t, &mvccpb.KeyValue{Key: []byte(key), CreateRevision: 20, ModRevision: 20, Version: 1})
	}
	gone := func(key string) []byte { return marshal(t, &mvccpb.KeyValue{Key: []byte(key)}) }
	file := changed(t, name, func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketKey)
		return errors.Join(b.Put(revision(20, 0), put("a")), b.Put(append(revision(20, 1), 't'), gone("a")), b.Put(append(revision(20, 2), 't'), gone("b")), b.Put(revision(20, 3), put("b")))
	})
	r := newRig(t, Config{})
	if found, err := ReadSnapshot(file, r.loadTwice); err != nil || found != (Snapshot{Revision: 20, Keys: 4}) {
		t.Fatalf("%+v %v", found, err)
	}
	w := r.watching(r.ctx())
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("c"), StartRevision: 20})
	w.want("0@20 created")
	if m := w.recv(); len(m.Events) != 2 || m.Events[0].Type != mvccpb.DELETE || string(m.Events[0].Kv.Key) != "a" || m.Events[1].Type != mvccpb.PUT || string(m.Events[1].Kv.Key) != "b" {
		t.Errorf("events %v", m)
	}
}

// `etcdutl snapshot restore --bump-revision` puts an entry without a key at a later revision, and marks that as compacted.
func TestImport_BumpedRevision(t *testing.T) {
	name := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(name, boltFile(t, 3), 0o600); err != nil {
		t.Fatal(err)
	}
	bumped := changed(t, name, func(tx *bbolt.Tx) error {
		return errors.Join(tx.Bucket(bucketKey).Put(revision(1000, 0), nil), tx.Bucket(bucketMeta).Put([]byte("scheduledCompactRev"), revision(1000, 0)))
	})
	written := changed(t, bumped, func(tx *bbolt.Tx) error {
		return putKey(tx, 1001, &mvccpb.KeyValue{Key: []byte("after")})
	})
	for file, want := range map[string]Snapshot{bumped: {Revision: 1000, Keys: 3}, written: {Revision: 1001, Keys: 4}} {
		r := newRig(t, Config{})
		if found, err := ReadSnapshot(file, r.loadTwice); err != nil || found != want {
			t.Errorf("%+v %v, want %+v", found, err, want)
		}
		if rev := r.put("a", "1"); rev != want.Revision+1 {
			t.Errorf("next revision %d", rev)
		}
	}
}

func TestImport_BadFiles(t *testing.T) {
	r := newRig(t, Config{})
	r.put("a", "1")
	good, err := os.ReadFile(r.saved())
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	// A stopped member's file has no checksum. All behind its first two pages, with where the rest is, is gone here.
	damaged := bytes.Clone(good[:len(good)-sha256.Size])
	clear(damaged[2*os.Getpagesize():])
	for want, b := range map[string][]byte{
		"is damaged":         damaged,
		"checksum":           flipped,
		"only a part of one": good[:len(good)-100],
		"as a snapshot":      bytes.Repeat([]byte("no"), 4096),
		"took no snapshot":   nil,
	} {
		name := filepath.Join(t.TempDir(), "bad.db")
		if b != nil {
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		} else {
			want = "no such file"
		}
		_, err := ReadSnapshot(name, func(*Part) error { t.Errorf("%s: a part came", want); return nil })
		if k := errs.KindOf(err); err == nil || k == errs.Internal || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if err := r.s.Load(r.ctx(), []byte("rubbish")); err == nil {
		t.Error("rubbish was loaded")
	}
}
