package etcd

import (
	"bytes"
	"encoding/binary"
	"slices"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/authpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/errs"
)

// etcd's keys in the bucket auth: one byte, and eight bytes, the most significant first.
var (
	keyAuthEnabled  = []byte("authEnabled")
	keyAuthRevision = []byte("authRevision")
)

// rights hands out users and roles, once it has seen that all of them can be loaded, and returns what ends the load of them: nothing, if etcd's
// users and roles were never touched.
func (r *snapshotReader) rights(tx *bbolt.Tx) (last auth.Load, err error) {
	if last, err = r.rightsState(tx); err != nil {
		return last, err
	}
	root := false
	err = eachRight(tx, func(l *auth.Load) error {
		for i := range l.Users {
			r.found.Users++
			root = root || l.Users[i].Name == auth.Root && slices.Contains(l.Users[i].Roles, auth.Root)
		}
		r.found.Roles += len(l.Roles)
		return l.Check()
	})
	r.found.AuthEnabled = last.Enabled
	switch {
	case err != nil:
		return last, err
	case last.Enabled && !root:
		return last, errs.New(errs.Corrupt, "the snapshot has authentication enabled and no user %s with the role %s, so that nobody could administer it", auth.Root, auth.Root)
	case last.Revision == 0 && (r.found.Users+r.found.Roles > 0 || last.Enabled):
		return last, errs.New(errs.Corrupt, "the snapshot has %d users and %d roles, and no key %s in the bucket %q", r.found.Users, r.found.Roles, keyAuthRevision, bucketAuth)
	case last.Revision <= 1 && r.found.Users+r.found.Roles == 0:
		return auth.Load{}, nil
	case last.Revision <= 1:
		return last, errs.New(errs.Corrupt, "the snapshot has %d users and %d roles at auth revision %d, where there are none", r.found.Users, r.found.Roles, last.Revision)
	}
	if err = last.Check(); err != nil {
		return last, err
	}
	err = eachRight(tx, func(l *auth.Load) error {
		if err := r.room(len(auth.AppendLoad(nil, l, 0))); err != nil {
			return err
		}
		r.next.Rights.Users = append(r.next.Rights.Users, l.Users...)
		r.next.Rights.Roles = append(r.next.Rights.Roles, l.Roles...)
		return nil
	})
	if err != nil {
		return last, err
	}
	return last, r.send()
}

// rightsState reads the bucket auth.
func (*snapshotReader) rightsState(tx *bbolt.Tx) (l auth.Load, err error) {
	b := tx.Bucket(bucketAuth)
	if b == nil {
		return l, nil
	}
	return l, b.ForEach(func(k, v []byte) error {
		switch {
		case bytes.Equal(k, keyAuthEnabled) && len(v) == 1 && v[0] <= 1:
			l.Enabled = v[0] == 1
		case bytes.Equal(k, keyAuthRevision) && len(v) == 8:
			l.Revision = binary.BigEndian.Uint64(v)
		default:
			return errs.New(errs.Corrupt, "the snapshot has %q = 0x%x in its bucket %q, which cannot be read", k, v, bucketAuth)
		}
		return nil
	})
}

// eachRight reads users and roles one by one.
func eachRight(tx *bbolt.Tx, f func(*auth.Load) error) error {
	read := func(bucket []byte, what string, m proto.Message, f func(name []byte) error) error {
		b := tx.Bucket(bucket)
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			if v == nil || proto.Unmarshal(v, m) != nil {
				return errs.New(errs.Corrupt, "the snapshot has a %s %.64q that cannot be read", what, k)
			}
			if hasUnknown(m.ProtoReflect()) {
				return errs.New(errs.Unsupported, "the snapshot has a %s %.64q of a later release of etcd, with fields that this one does not know", what, k)
			}
			return f(k)
		})
	}
	u := &authpb.User{}
	err := read(bucketUsers, "user", u, func(k []byte) error {
		if !bytes.Equal(k, u.Name) {
			return errs.New(errs.Corrupt, "the snapshot has a user %.64q under the name %.64q", u.Name, k)
		}
		out := auth.DumpUser{NewUser: auth.NewUser{Name: string(u.Name), Hash: u.Password, NoPassword: u.Options.GetNoPassword()}, Roles: u.Roles}
		if out.NoPassword {
			out.Hash = nil
		}
		slices.Sort(out.Roles)
		out.Roles = slices.Compact(out.Roles)
		return f(&auth.Load{Users: []auth.DumpUser{out}})
	})
	if err != nil {
		return err
	}
	role := &authpb.Role{}
	return read(bucketRoles, "role", role, func(k []byte) error {
		if !bytes.Equal(k, role.Name) {
			return errs.New(errs.Corrupt, "the snapshot has a role %.64q under the name %.64q", role.Name, k)
		}
		ps, err := toPermissions(role.KeyPermission)
		if err != nil {
			return errs.Wrap(errs.Corrupt, err, "role %.64q of the snapshot", k)
		}
		return f(&auth.Load{Roles: []auth.DumpRole{{Name: string(role.Name), Permissions: ps}}})
	})
}

// toPermissions puts permissions in order. etcd can have several of the same keys, which count together.
func toPermissions(all []*authpb.Permission) ([]auth.Permission, error) {
	var ps []auth.Permission
	for _, p := range all {
		if p.PermType < 0 || p.PermType > authpb.Permission_READWRITE {
			return nil, errs.New(errs.Corrupt, "a permission has the type %d, which is none", p.PermType)
		}
		ps = append(ps, auth.Permission{Type: auth.Type(p.PermType), Key: p.Key, End: p.RangeEnd})
	}
	return auth.Ordered(ps), nil
}

// hasUnknown says whether a message, or one in it, has fields that its description does not.
func hasUnknown(m protoreflect.Message) bool {
	if len(m.GetUnknown()) > 0 {
		return true
	}
	found := false
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil || f.IsMap():
		case f.IsList():
			for i := range v.List().Len() {
				found = found || hasUnknown(v.List().Get(i).Message())
			}
		default:
			found = found || hasUnknown(v.Message())
		}
		return !found
	})
	return found
}
