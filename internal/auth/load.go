package auth

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// ErrNotNew is what a Load with users or roles fails with where there were some.
var ErrNotNew = errs.New(errs.Exists, "users or roles were changed here, or authentication enabled; those from elsewhere can only be loaded where there were none: make a new cluster, or another space")

// Load is a part of the users and roles that come from elsewhere, such as etcd, with a part of what they stand before. Parts may come in any order
// and more than once, except for the last. Until that one authentication is disabled.
type Load struct {
	Users []DumpUser
	Roles []DumpRole
	// Revision, in the last part alone, is the auth revision from which this goes on, and Enabled whether authentication is.
	Revision uint64
	Enabled  bool
	// Secret is as in EncodeEnable, if Enabled.
	Secret []byte
}

// Empty says that there is nothing to load. What goes with it can do without AppendLoad, and then users and roles that are here stay.
func (l *Load) Empty() bool { return len(l.Users)+len(l.Roles) == 0 && l.Revision == 0 }

// Check returns an error that names what cannot be loaded. It does not look at the secret.
func (l *Load) Check() error {
	for i := range l.Users {
		u := &l.Users[i]
		switch {
		case u.Name == "" || len(u.Name) > NameBytesMax:
			return errs.New(errs.Invalid, "a user's name %.64q has %d bytes; it must have 1 to %d", u.Name, len(u.Name), NameBytesMax)
		case len(u.Hash) > hashBytesMax || u.NoPassword && len(u.Hash) > 0:
			return errs.New(errs.Invalid, "user %q has a password hash of %d bytes; there can be %d, and none for a user without password", u.Name, len(u.Hash), hashBytesMax)
		case !ascending(u.Roles, cmp.Compare[string]) || slices.Contains(u.Roles, ""):
			return errs.New(errs.Invalid, "the roles of user %q are not in order", u.Name)
		case len(u.row()) > RowBytesMax:
			return errs.New(errs.Invalid, "the roles of user %q take more than %d bytes", u.Name, RowBytesMax)
		}
	}
	for i := range l.Roles {
		r := &l.Roles[i]
		if r.Name == "" || len(r.Name) > NameBytesMax {
			return errs.New(errs.Invalid, "a role's name %.64q has %d bytes; it must have 1 to %d", r.Name, len(r.Name), NameBytesMax)
		}
		for _, p := range r.Permissions {
			if !p.valid() {
				return errs.New(errs.Invalid, "role %q has a permission of type %d for the keys from %q to %q, which can be none", r.Name, p.Type, p.Key, p.End)
			}
		}
		if !ascending(r.Permissions, compare) {
			return errs.New(errs.Invalid, "the permissions of role %q are not in order", r.Name)
		}
		if len(encodeRole(r.Permissions)) > RowBytesMax {
			return errs.New(errs.Invalid, "the permissions of role %q take more than %d bytes", r.Name, RowBytesMax)
		}
	}
	if l.Revision > math.MaxInt64 || l.Enabled && l.Revision == 0 {
		return errs.New(errs.Invalid, "users and roles cannot be loaded at revision %d, with authentication enabled: %v", l.Revision, l.Enabled)
	}
	return nil
}

// row is what is stored of a user who was not here before.
func (u *DumpUser) row() []byte {
	row := user{noPassword: u.NoPassword, since: 1, hash: u.Hash, roles: u.Roles}
	return row.encode()
}

// ascending says whether each is greater than the one before.
func ascending[T any](all []T, compare func(T, T) int) bool {
	for i := 1; i < len(all); i++ {
		if compare(all[i-1], all[i]) >= 0 {
			return false
		}
	}
	return true
}

// Ordered puts permissions in the order in which they are kept, and makes one of those for the same keys.
func Ordered(ps []Permission) []Permission {
	slices.SortStableFunc(ps, compare)
	out := ps[:0]
	for _, p := range ps {
		if n := len(out); n > 0 && compare(out[n-1], p) == 0 {
			if out[n-1].Type != p.Type {
				out[n-1].Type = PermitBoth
			}
			continue
		}
		out = append(out, p)
	}
	return out
}

// AppendLoad adds to b what comes before a command of a model, with which the part is loaded in one step. The answer is that command's; it fails
// with the command's errors, ErrNotNew, and if Enabled ErrRootUserMissing and ErrRootRoleMissing. It names no caller: who may hand it in is the
// matter of whoever does.
func AppendLoad(b []byte, l *Load, model shard.ModuleID) []byte {
	b = binary.AppendUvarint(appendHead(b, reqLoad, Caller{}), uint64(len(l.Users)))
	for i := range l.Users {
		u := &l.Users[i]
		b = codec.AppendBytes(codec.AppendBytes(b, u.Name), u.row())
	}
	b = binary.AppendUvarint(b, uint64(len(l.Roles)))
	for i := range l.Roles {
		b = codec.AppendBytes(codec.AppendBytes(b, l.Roles[i].Name), encodeRole(l.Roles[i].Permissions))
	}
	b = codec.AppendBytes(codec.AppendBool(binary.AppendUvarint(b, l.Revision), l.Enabled), l.Secret)
	return append(b, byte(model))
}

// DecodeLoad reads a command that AppendLoad has begun, and checks it. The slices are parts of b.
func DecodeLoad(b []byte) (*Load, shard.Command, error) {
	d, r, _, err := begin(b)
	if err == nil && r != reqLoad {
		err = errMalformed()
	}
	if err != nil {
		return nil, shard.Command{}, err
	}
	return d.load()
}

func (d *decoder) load() (*Load, shard.Command, error) {
	l := &Load{}
	for n := d.Count(2); n > 0 && !d.Bad(); n-- {
		name := string(d.Bytes())
		u, ok := decodeUser(d.Bytes())
		if !ok {
			d.Fail()
		}
		l.Users = append(l.Users, DumpUser{NewUser{name, u.hash, u.noPassword}, u.roles})
	}
	for n := d.Count(2); n > 0 && !d.Bad(); n-- {
		name := string(d.Bytes())
		ps, ok := decodeRole(d.Bytes(), nil)
		if !ok {
			d.Fail()
		}
		l.Roles = append(l.Roles, DumpRole{name, ps})
	}
	l.Revision, l.Enabled = d.Uvarint(), d.Bool()
	l.Secret = d.Bytes()
	inner := shard.Command{Module: shard.ModuleID(d.Byte()), Data: d.Rest()}
	if d.Bad() || inner.Module == shard.ModuleAuth || inner.Module == shard.ModuleShard {
		return nil, inner, errMalformed()
	}
	return l, inner, l.Check()
}

// load does one part of a Load.
func (x *change) load(d *decoder) ([]byte, error) {
	l, inner, err := d.load()
	if err != nil {
		return nil, err
	}
	// Every change of users and roles raises the revision. While authentication is enabled, nothing passes that names no caller.
	if x.st.enabled || x.st.revision != 1 {
		return nil, ErrNotNew
	}
	out, err := x.tx.Call(inner)
	if err != nil {
		return nil, err
	}
	for i := range l.Users {
		u := &l.Users[i]
		x.tx.SetFresh(userKey([]byte(u.Name)), u.row())
	}
	for i := range l.Roles {
		x.tx.SetFresh(roleKey([]byte(l.Roles[i].Name)), encodeRole(l.Roles[i].Permissions))
	}
	if l.Revision == 0 {
		return out, nil
	}
	x.st.revision = l.Revision
	if l.Enabled {
		return out, x.enableWith(l.Secret)
	}
	x.save()
	return out, nil
}
