package kv

import "github.com/quorate/quorate/internal/errs"

// UseKind says what a request does with keys.
type UseKind uint8

// The kinds.
const (
	// UseRead shows keys or their values, or decides by them.
	UseRead UseKind = iota + 1
	// UseWrite changes or deletes keys, or keeps them from ending with their lease.
	UseWrite
	// UseWhole concerns the key space as a whole: its history, or a checksum of all of it.
	UseWhole
)

// Use is what a request does with the keys that Key and End name, as in Range.
type Use struct {
	Kind     UseKind
	Key, End []byte
}

// Uses calls f with each use that a command or query makes of keys, in no order, until f fails; it returns f's error. A request that
// only asks how far the key space is, or grants a lease, uses no keys.
//
// Which keys hang on a lease depends on the state: ask answers kv's queries from that in which the request will run. A key that is
// written with a lease uses, as in etcd, all that hang on the lease already: who may end them all must not get hold of one more.
func Uses(req []byte, ask func(q []byte) ([]byte, error), f func(Use) error) error {
	d, r, err := begin(req)
	if err != nil {
		return err
	}
	u := uses{ask: ask, f: f}
	switch r {
	case reqOp:
		o := d.op(0)
		if err := d.end(); err != nil {
			return err
		}
		u.op(o)
	case reqCompact, reqEvents, reqHash:
		u.use(UseWhole, nil, nil)
	case reqGrant, reqStatus:
	case reqRevoke, reqKeepAlive:
		id := d.int()
		if err := d.end(); err != nil {
			return err
		}
		u.attached(UseWrite, id)
	case reqTimeToLive:
		id, _, withKeys := d.int(), d.int(), d.Bool()
		if err := d.end(); err != nil {
			return err
		}
		if withKeys {
			u.attached(UseRead, id)
		}
	case reqLeases:
		u.leases()
	default:
		return errs.New(errs.Unsupported, "kv request %d; this build does not know it", r)
	}
	return u.err
}

// uses is one call of Uses.
type uses struct {
	ask func(q []byte) ([]byte, error)
	f   func(Use) error
	err error
}

func (u *uses) use(kind UseKind, key, end []byte) {
	if u.err == nil {
		u.err = u.f(Use{kind, key, end})
	}
}

func (u *uses) op(o Op) {
	switch o := o.(type) {
	case *Range:
		u.use(UseRead, o.Key, o.End)
	case *Put:
		u.use(UseWrite, o.Key, nil)
		if o.Lease != 0 {
			u.attached(UseWrite, o.Lease)
		}
		if o.WantPrev {
			u.use(UseRead, o.Key, nil)
		}
	case *Delete:
		u.use(UseWrite, o.Key, o.End)
		if o.WantPrev {
			u.use(UseRead, o.Key, o.End)
		}
	case *Txn:
		for i := range o.If {
			u.use(UseRead, o.If[i].Key, o.If[i].End)
		}
		// Both ways: what is refused must not depend on keys that are perhaps not to be seen.
		for _, ops := range [...][]Op{o.Then, o.Else} {
			for _, o := range ops {
				u.op(o)
			}
		}
	}
}

// attached uses the keys that hang on a lease.
func (u *uses) attached(kind UseKind, id int64) {
	if u.err != nil {
		return
	}
	b, err := u.ask(EncodeTimeToLive(id, 0, true))
	var t TTL
	if err == nil {
		t, err = DecodeTTL(b)
	}
	if u.err = err; err != nil {
		return
	}
	for _, key := range t.Keys {
		u.use(kind, key, nil)
	}
}

// leases uses the keys that hang on any lease.
func (u *uses) leases() {
	b, err := u.ask(EncodeLeases())
	var all []LeaseTTL
	if err == nil {
		_, all, err = DecodeLeases(b)
	}
	u.err = err
	for _, l := range all {
		u.attached(UseRead, l.ID)
	}
}
