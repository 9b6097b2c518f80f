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
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
)

// Snapshot is what a file of etcd's holds: `etcdctl snapshot save` makes it, and a stopped member has one as member/snap/db.
type Snapshot struct {
	Revision     int64
	Keys, Leases int
	Users, Roles int
	// AuthEnabled says whether authentication is.
	AuthEnabled bool
}

// Part is a part of a load: of the users and roles, and of the key space.
type Part struct {
	Rights auth.Load
	Keys   kv.Load
}

// Encode returns what Server.Load takes.
func (p *Part) Encode() []byte {
	return append(auth.AppendLoad(nil, &p.Rights, shard.ModuleKV), kv.EncodeLoad(&p.Keys)...)
}

// LoadBytesMax bounds a part of a load, as Part.Encode returns it.
const LoadBytesMax = 8 << 20

// lastBytesMax bounds the changes of the last revision, which are all in the last part.
const lastBytesMax = LoadBytesMax - 1<<20

// loadBytes is about how much one part of a load holds.
const loadBytes = 512 << 10

// ReadSnapshot reads users and roles, the newest versions of all keys, the leases and the changes of the last revision from a snapshot, and hands
// them out in parts of bounded size, the last one with the revisions. It stops at the first error of part. A file that is not a snapshot, or
// was damaged, is refused: one that `etcdctl snapshot save` has made ends with its checksum. What cannot be loaded is refused by name, before the
// first part.
func ReadSnapshot(name string, part func(*Part) error) (Snapshot, error) {
	id, err := checkSnapshot(name)
	if err != nil {
		return Snapshot{}, err
	}
	// All is read once to see whether it can be loaded.
	r := snapshotReader{id: id, part: checkPart}
	if err := r.view(name); err != nil {
		return r.found, err
	}
	r = snapshotReader{id: id, part: part}
	err = r.view(name)
	return r.found, err
}

// checkPart returns an error that names what a node would refuse.
func checkPart(p *Part) error {
	if err := p.Keys.Check(); err != nil {
		return errs.Wrap(errs.Invalid, err, "the snapshot cannot be loaded")
	}
	if n := len(p.Encode()); n > LoadBytesMax {
		// Parts have more than loadBytes for one key alone.
		what := "a part"
		if len(p.Keys.KVs) > 0 {
			what = fmt.Sprintf("key %.64q", p.Keys.KVs[0].Key)
		}
		return errs.New(errs.Unsupported, "%s of the snapshot has %d bytes with its value, and %d can be loaded; delete it from the old cluster and take another snapshot", what, n, LoadBytesMax)
	}
	return nil
}

// view reads the file. It may change meanwhile, as that of a member that was not stopped: bbolt goes where the damage says, which is a panic or a
// fault.
func (r *snapshotReader) view(name string) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r.handing {
			return
		}
		if why := recover(); why != nil {
			err = errs.New(errs.Corrupt, "the snapshot is damaged (%v); take another one", why)
		}
	}()
	// A read-only bbolt still takes a lock on the file, which a running etcd has.
	db, err := bbolt.Open(name, 0o400, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return errs.Wrap(errs.Invalid, err, "open %s as a snapshot of etcd; take one with `etcdctl snapshot save`", name)
	}
	defer db.Close() //nolint:errcheck // nothing was written
	return db.View(r.read)
}

// checkSnapshot returns an identity of a file, and refuses one whose checksum is wrong.
func checkSnapshot(name string) (id [16]byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return id, errs.Wrap(errs.Invalid, err, "open the snapshot")
	}
	defer f.Close() //nolint:errcheck // nothing is written
	st, err := f.Stat()
	if err != nil {
		return id, errs.Wrap(errs.Invalid, err, "open the snapshot")
	}
	// bbolt's file is a number of pages; the checksum behind it is not.
	size := st.Size()
	sum := size % 512
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, size-sum)); err != nil {
		return id, errs.Wrap(errs.Invalid, err, "read the snapshot")
	}
	got := h.Sum(nil)
	switch sum {
	case 0:
	case sha256.Size:
		want := make([]byte, sum)
		if _, err := io.ReadFull(f, want); err != nil {
			return id, errs.Wrap(errs.Invalid, err, "read the snapshot")
		}
		if !bytes.Equal(want, got) {
			return id, errs.New(errs.Corrupt, "the checksum of snapshot %s is wrong: the file is damaged; take another one", name)
		}
	default:
		return id, errs.New(errs.Invalid, "%s is no snapshot of etcd, or only a part of one: it has %d bytes; take one with `etcdctl snapshot save`", name, size)
	}
	copy(id[:], got)
	return id, checkPages(f, size-sum)
}

// snapshotReader reads etcd's store.
type snapshotReader struct {
	id    [16]byte
	part  func(*Part) error
	found Snapshot

	next Part
	size int
	// handing says that a part is being handed out: what panics then is not the file's fault.
	handing bool
}

func (r *snapshotReader) read(tx *bbolt.Tx) error {
	keys := tx.Bucket(bucketKey)
	if keys == nil {
		return errs.New(errs.Invalid, "the file has no bucket %q: it is no snapshot of etcd", bucketKey)
	}
	// The newest entry of each key; the file has them in the order of revisions.
	newest := map[string][]byte{}
	rev := int64(1)
	err := keys.ForEach(func(k, v []byte) error {
		var m mvccpb.KeyValue
		if err := proto.Unmarshal(v, &m); err != nil || !isRevision(k) {
			return errs.New(errs.Corrupt, "the snapshot has an entry %x that is no key", k)
		}
		rev = int64(binary.BigEndian.Uint64(k))
		switch {
		case isMark(v):
			return nil
		case !isDeletion(k) && m.ModRevision != rev:
			return errs.New(errs.Corrupt, "the snapshot has key %.64q of revision %d at revision %d", m.Key, m.ModRevision, rev)
		}
		newest[string(m.Key)] = k
		return nil
	})
	if err != nil {
		return err
	}
	if meta := tx.Bucket(bucketMeta); meta != nil {
		if c := meta.Get([]byte("scheduledCompactRev")); isRevision(c) {
			rev = max(rev, int64(binary.BigEndian.Uint64(c)))
		}
	}
	if err := checkLast(keys, rev); err != nil {
		return err
	}
	last, err := r.rights(tx)
	if err != nil {
		return err
	}
	var events []kv.LoadEvent
	err = keys.ForEach(func(k, v []byte) error {
		var m mvccpb.KeyValue
		if err := proto.Unmarshal(v, &m); err != nil || isMark(v) {
			return err
		}
		deleted, last := isDeletion(k), bytes.Equal(newest[string(m.Key)], k)
		// etcd takes a transaction that writes a key and deletes it by a range without end. What counts is what became of it.
		if last && int64(binary.BigEndian.Uint64(k)) == rev {
			events = append(events, kv.LoadEvent{Deleted: deleted, Key: m.Key})
		}
		if deleted || !last {
			return nil
		}
		if err := r.room(len(m.Key) + len(m.Value)); err != nil {
			return err
		}
		r.found.Keys++
		r.next.Keys.KVs = append(r.next.Keys.KVs, kv.KeyValue{
			Key: m.Key, Value: m.Value, Create: m.CreateRevision, Mod: m.ModRevision, Version: m.Version, Lease: m.Lease,
		})
		return nil
	})
	if err != nil {
		return err
	}
	if err := r.leases(tx.Bucket(bucketLease)); err != nil {
		return err
	}
	r.found.Revision = rev
	if err := r.send(); err != nil {
		return err
	}
	r.next.Rights, r.next.Keys.Revision, r.next.Keys.Events = last, rev, events
	return r.send()
}

// checkLast refuses a last revision with more changes than one part can have, before anything is handed out.
func checkLast(keys *bbolt.Bucket, rev int64) error {
	size, n := 0, 0
	c := keys.Cursor()
	for k, v := c.Seek(binary.BigEndian.AppendUint64(nil, uint64(rev))); k != nil; k, v = c.Next() {
		var m mvccpb.KeyValue
		if err := proto.Unmarshal(v, &m); err != nil {
			return err
		}
		size += len(m.Key) + 8
		n++
	}
	if size > lastBytesMax {
		return errs.New(errs.Unsupported, "the last revision of the snapshot changed %d keys at once, more than can be loaded in one step; write any key to the old cluster and take another snapshot", n)
	}
	return nil
}

// isRevision says whether a key of etcd's store has the form of a revision: main(8) '_' sub(8), and a 't' behind it if the key
// was deleted.
func isRevision(k []byte) bool {
	return (len(k) == 17 || len(k) == 18 && k[17] == 't') && k[8] == '_' && k[0] < 0x80
}

func isDeletion(k []byte) bool { return len(k) == 18 }

// isMark says whether an entry is no key, but there for its revision: `etcdutl snapshot restore --bump-revision` has put it there.
func isMark(v []byte) bool { return len(v) == 0 }

func (r *snapshotReader) leases(b *bbolt.Bucket) error {
	if b == nil {
		return nil
	}
	return b.ForEach(func(k, v []byte) error {
		l, ok := decodeLease(v)
		if !ok || len(k) != 8 {
			return errs.New(errs.Corrupt, "the snapshot has a lease %x that cannot be read", k)
		}
		if err := r.room(16); err != nil {
			return err
		}
		r.found.Leases++
		r.next.Keys.Leases = append(r.next.Keys.Leases, l)
		return nil
	})
}

// decodeLease reads message Lease of etcd's leasepb: ID = 1, TTL = 2.
func decodeLease(b []byte) (l kv.LeaseTTL, ok bool) {
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return l, false
		}
		b = b[n:]
		if kind != protowire.VarintType {
			if n = protowire.ConsumeFieldValue(num, kind, b); n < 0 {
				return l, false
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return l, false
		}
		b = b[n:]
		switch num {
		case 1:
			l.ID = int64(v)
		case 2:
			l.TTL = int64(v)
		}
	}
	return l, l.ID != 0 && l.TTL > 0
}

// room hands out what there is, unless n bytes more have room in the same part.
func (r *snapshotReader) room(n int) error {
	n += 40
	if r.size > 0 && r.size+n > loadBytes {
		if err := r.send(); err != nil {
			return err
		}
	}
	r.size += n
	return nil
}

func (r *snapshotReader) send() error {
	k := &r.next.Keys
	if k.KVs == nil && k.Leases == nil && k.Revision == 0 && r.next.Rights.Empty() {
		return nil
	}
	k.ID = r.id
	r.handing = true
	err := r.part(&r.next)
	r.handing = false
	r.next, r.size = Part{}, 0
	return err
}

// Load runs a part of a load (Part.Encode), which operators alone may hand in: it is not asked who they are. A part may be repeated if its
// outcome is unknown.
func (s *Server) Load(ctx context.Context, b []byte) error {
	rights, inner, err := auth.DecodeLoad(b)
	if err != nil {
		return err
	}
	if inner.Module != shard.ModuleKV {
		return errs.New(errs.Invalid, "a load into model %d; it must be one into the key space", inner.Module)
	}
	l, err := kv.DecodeLoad(inner.Data)
	if err != nil {
		return err
	}
	for i := range rights.Users {
		if to, _ := s.ofUser(rights.Users[i].Name); to != nil {
			return errs.New(errs.Invalid, "user %q cannot be loaded: names that begin with %q are those of the users of space %q; load without spaces.%s.users, or take a snapshot without that user",
				rights.Users[i].Name, to.cfg.Space+"/", to.cfg.Space, to.cfg.Space)
		}
	}
	at, _, err := s.where()
	if err != nil {
		return err
	}
	cmd := inner
	if !rights.Empty() {
		if rights.Secret = nil; rights.Enabled {
			rights.Secret = newSecret()
		}
		cmd = shard.Command{Module: shard.ModuleAuth, Data: append(auth.AppendLoad(nil, rights, inner.Module), inner.Data...)}
	}
	err = s.client.Submit(ctx, routeOf(at), cmd).Wait(ctx).Err
	if l.Revision > 0 && (errors.Is(err, kv.ErrNotEmpty) || errors.Is(err, auth.ErrNotNew)) && s.ended(ctx, l, rights) {
		// The last part was repeated, or somebody was quicker.
		return nil
	}
	return err
}

// ended says whether the key space, and the users and roles, are as the last part of a load leaves them.
func (s *Server) ended(ctx context.Context, l *kv.Load, rights *auth.Load) bool {
	now, err := s.status(ctx, false)
	if err != nil || now.Revision != l.Revision || l.Revision > 1 && now.Compacted != l.Revision {
		return false
	}
	st, err := s.rights.load(ctx, false)
	return err == nil && (rights.Empty() || st.Revision == rights.Revision && st.Enabled == rights.Enabled)
}
