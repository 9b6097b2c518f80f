package kv

import (
	"encoding/binary"
	"math"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
)

// The errors of a Load.
var (
	ErrNotEmpty  = errs.New(errs.Exists, "the key space has been written to; what comes from elsewhere can only be loaded into one that is new")
	ErrOtherLoad = errs.New(errs.Conflict, "something else was half loaded into this key space; load that again to its end, or make a new cluster")
)

// Load is a part of a key space that comes from elsewhere, such as etcd, and keeps its revisions. Parts may come in any order and more
// than once, except for the last. Until that one readers see what is there so far, at revision 1; so it is done before clients come.
type Load struct {
	// ID tells one key space from another, by all parts alike.
	ID [16]byte
	// KVs are newest versions of keys, with their own revisions.
	KVs []KeyValue
	// Leases are leases with their TTLs, whose time begins with the last part.
	Leases []LeaseTTL
	// Revision, in the last part alone, is the revision from which the key space goes on; history before it is compacted. Events are
	// those of that revision.
	Revision int64
	Events   []LoadEvent
}

// LoadEvent is a change that was made in the revision of a Load.
type LoadEvent struct {
	Deleted bool
	Key     []byte
}

// EncodeLoad returns the command. The answer is DecodeRevision's. It fails with ErrNotEmpty and ErrOtherLoad.
func EncodeLoad(l *Load) []byte {
	b := append(head(reqLoad), l.ID[:]...)
	b = appendKVs(b, l.KVs)
	b = binary.AppendUvarint(b, uint64(len(l.Leases)))
	for _, x := range l.Leases {
		b = appendInt(appendInt(b, x.ID), x.TTL)
	}
	b = binary.AppendUvarint(appendInt(b, l.Revision), uint64(len(l.Events)))
	for _, e := range l.Events {
		b = codec.AppendBytes(codec.AppendBool(b, e.Deleted), e.Key)
	}
	return b
}

// DecodeLoad reads a command that EncodeLoad has made, and checks it. Its slices are parts of b.
func DecodeLoad(b []byte) (*Load, error) {
	d, r, err := begin(b)
	if err == nil && r != reqLoad {
		err = errMalformed()
	}
	if err != nil {
		return nil, err
	}
	return d.load()
}

func (d *decoder) load() (*Load, error) {
	l := &Load{}
	for i := range l.ID {
		l.ID[i] = d.Byte()
	}
	l.KVs = d.kvs()
	for n := d.Count(2); n > 0 && !d.Bad(); n-- {
		l.Leases = append(l.Leases, LeaseTTL{d.int(), d.int()})
	}
	l.Revision = d.int()
	for n := d.Count(2); n > 0 && !d.Bad(); n-- {
		l.Events = append(l.Events, LoadEvent{d.Bool(), d.Bytes()})
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	return l, l.Check()
}

// Check returns an error that names what cannot be loaded.
func (l *Load) Check() error {
	for i := range l.KVs {
		if k := &l.KVs[i]; len(k.Key) == 0 || k.Create < 1 || k.Mod < k.Create || k.Version < 1 {
			return errs.New(errs.Invalid, "key %.64q has revisions %d and %d and version %d, which no key can have", k.Key, k.Create, k.Mod, k.Version)
		}
	}
	for _, x := range l.Leases {
		if x.ID == 0 || x.TTL < 1 || x.TTL > LeaseTTLMax {
			return errs.New(errs.Invalid, "lease %d has a TTL of %d s; it is between 1 and %d", x.ID, x.TTL, LeaseTTLMax)
		}
	}
	if l.Revision < 0 || l.Revision > math.MaxInt64/2 || l.Revision == 0 && len(l.Events) > 0 {
		return errs.New(errs.Invalid, "a load cannot end at revision %d with %d events", l.Revision, len(l.Events))
	}
	return nil
}

// load does one part of a Load.
func (c *call) load(d *decoder) []byte {
	l, err := d.load()
	if c.failIf(err); c.err != nil {
		return nil
	}
	if c.st.rev != 1 || c.st.compact != 0 {
		c.fail(ErrNotEmpty)
		return nil
	}
	switch id, ok := c.v.Get([]byte{rowLoad}); {
	case !ok:
		c.tx.Set([]byte{rowLoad}, l.ID[:])
	case string(id) != string(l.ID[:]):
		c.fail(ErrOtherLoad)
		return nil
	}
	for i := range l.KVs {
		k := &l.KVs[i]
		c.tx.SetFresh(appendHeadKey(make([]byte, 0, 1+len(k.Key)), k.Key), encodeVersion(k.Mod, k))
		c.attach(k.Key, 0, k.Lease)
		c.tx.Emit("put", changed, k.Key, notNil(k.Value))
	}
	for _, x := range l.Leases {
		ttl := max(x.TTL, LeaseTTLMin)
		c.renew(x.ID, &lease{ttl: ttl, granted: ttl})
	}
	if l.Revision > 0 {
		c.endLoad(l)
	}
	return appendInt(nil, c.st.rev)
}

// endLoad makes the key space go on from a revision.
func (c *call) endLoad(l *Load) {
	c.tx.Delete([]byte{rowLoad})
	if l.Revision == 1 {
		return
	}
	for i, e := range l.Events {
		kind := eventPut
		if e.Deleted {
			kind = eventDelete
		} else if k, ok := c.head(e.Key); !ok || k.Mod != l.Revision {
			c.fail(errs.New(errs.Invalid, "key %q is said to be written in revision %d, and is not", e.Key, l.Revision))
			return
		}
		c.tx.SetBulk(eventKey(l.Revision, uint32(i)), encodeEvent(kind, 0, e.Key))
	}
	c.noteTerm()
	c.st.rev, c.st.compact, c.st.removed = l.Revision, l.Revision, l.Revision
	c.save()
	c.tx.Wake(removed)
	c.tx.Wake(changed)
}

// loading says that a Load has begun and not ended: leases wait.
func (c *call) loading() bool {
	_, ok := c.v.Get([]byte{rowLoad})
	return ok
}
