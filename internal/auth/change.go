package auth

import (
	"bytes"
	"slices"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// change is one command of a caller who may give it.
type change struct {
	tx *shard.Tx
	st state
}

func (x *change) run(r request, d *decoder) error {
	switch r {
	case reqEnable:
		return x.enable(d)
	case reqDisable:
		return x.disable(d)
	case reqUserAdd:
		return x.userAdd(d)
	case reqUserDelete:
		return x.userDelete(d)
	case reqUserPassword:
		return x.userPassword(d)
	case reqUserGrant:
		return x.userGrant(d)
	case reqUserRevoke:
		return x.userRevoke(d)
	case reqRoleAdd:
		return x.roleAdd(d)
	case reqRoleDelete:
		return x.roleDelete(d)
	case reqRoleGrant:
		return x.roleGrant(d)
	case reqRoleRevoke:
		return x.roleRevoke(d)
	}
	return errs.New(errs.Unsupported, "auth command %d; this build does not know it", r)
}

// done raises the revision.
func (x *change) done() error {
	x.st.revision++
	x.save()
	return nil
}

func (x *change) save() {
	x.tx.SetFresh(stateKey, x.st.encode())
	x.tx.Wake(changed)
}

func (x *change) enable(d *decoder) error {
	var secret []byte
	if err := d.names(&secret); err != nil {
		return err
	}
	return x.enableWith(secret)
}

func (x *change) enableWith(secret []byte) error {
	if len(secret) != SecretBytes {
		return errMalformed()
	}
	if x.st.enabled {
		return nil
	}
	u, ok, err := readUser(x.tx, []byte(Root))
	switch {
	case err != nil:
		return err
	case !ok:
		return ErrRootUserMissing
	case !u.has(Root):
		return ErrRootRoleMissing
	}
	// As in etcd, this is no change of the revision.
	x.st.enabled, x.st.since, x.st.secret = true, x.st.revision, secret
	x.save()
	return nil
}

func (x *change) disable(d *decoder) error {
	if err := d.end(); err != nil || !x.st.enabled {
		return err
	}
	x.st.enabled, x.st.secret = false, nil
	return x.done()
}

// user reads the user of a request.
func (x *change) user(name []byte) (user, error) {
	u, ok, err := readUser(x.tx, name)
	if err == nil && !ok {
		err = ErrUserNotFound
	}
	return u, err
}

func (x *change) put(name []byte, u *user) error {
	b := u.encode()
	if len(b) > RowBytesMax {
		return ErrTooMany
	}
	x.tx.SetFresh(userKey(name), b)
	return x.done()
}

func (x *change) userAdd(d *decoder) error {
	name := d.Bytes()
	u := user{noPassword: d.Byte()&flagNoPassword != 0, since: x.st.revision + 1}
	if err := d.names(&u.hash); err != nil || len(u.hash) > hashBytesMax {
		return errMalformed()
	}
	switch {
	case len(name) == 0:
		return ErrUserEmpty
	case len(name) > NameBytesMax:
		return ErrNameTooLong
	}
	if _, ok, err := readUser(x.tx, name); ok || err != nil {
		if err == nil {
			err = ErrUserExists
		}
		return err
	}
	if u.noPassword {
		u.hash = nil
	}
	return x.put(name, &u)
}

func (x *change) userDelete(d *decoder) error {
	var name []byte
	if err := d.names(&name); err != nil {
		return err
	}
	if x.st.enabled && string(name) == Root {
		return ErrInvalidChange
	}
	if _, err := x.user(name); err != nil {
		return err
	}
	x.tx.Delete(userKey(name))
	return x.done()
}

func (x *change) userPassword(d *decoder) error {
	var name, hash []byte
	if err := d.names(&name, &hash); err != nil || len(hash) > hashBytesMax {
		return errMalformed()
	}
	u, err := x.user(name)
	if err != nil {
		return err
	}
	if u.since = x.st.revision + 1; !u.noPassword {
		u.hash = hash
	}
	return x.put(name, &u)
}

func (x *change) userGrant(d *decoder) error {
	var name, role []byte
	if err := d.names(&name, &role); err != nil {
		return err
	}
	u, err := x.user(name)
	if err != nil {
		return err
	}
	if string(role) != Root {
		if _, ok := x.tx.Get(roleKey(role)); !ok {
			return ErrRoleNotFound
		}
	}
	i, ok := slices.BinarySearch(u.roles, string(role))
	if ok {
		return nil
	}
	u.roles = slices.Insert(u.roles, i, string(role))
	return x.put(name, &u)
}

func (x *change) userRevoke(d *decoder) error {
	var name, role []byte
	if err := d.names(&name, &role); err != nil {
		return err
	}
	if x.st.enabled && string(name) == Root && string(role) == Root {
		return ErrInvalidChange
	}
	u, err := x.user(name)
	if err != nil {
		return err
	}
	i, ok := slices.BinarySearch(u.roles, string(role))
	if !ok {
		return ErrRoleNotGranted
	}
	u.roles = slices.Delete(u.roles, i, i+1)
	return x.put(name, &u)
}

// role reads the role of a request.
func (x *change) role(name []byte) ([]Permission, error) {
	ps, ok, err := readRole(x.tx, name)
	if err == nil && !ok {
		err = ErrRoleNotFound
	}
	return ps, err
}

func (x *change) putRole(name []byte, ps []Permission) error {
	b := encodeRole(ps)
	if len(b) > RowBytesMax {
		return ErrTooMany
	}
	x.tx.SetFresh(roleKey(name), b)
	return x.done()
}

func (x *change) roleAdd(d *decoder) error {
	var name []byte
	if err := d.names(&name); err != nil {
		return err
	}
	switch {
	case len(name) == 0:
		return ErrRoleEmpty
	case len(name) > NameBytesMax:
		return ErrNameTooLong
	}
	if _, ok := x.tx.Get(roleKey(name)); ok {
		return ErrRoleExists
	}
	return x.putRole(name, nil)
}

func (x *change) roleDelete(d *decoder) error {
	var name []byte
	if err := d.names(&name); err != nil {
		return err
	}
	if x.st.enabled && string(name) == Root {
		return ErrInvalidChange
	}
	if _, err := x.role(name); err != nil {
		return err
	}
	x.tx.Delete(roleKey(name))
	type holder struct {
		key []byte
		u   user
	}
	var had []holder
	for key, b := range x.tx.Scan([]byte{rowUser}, []byte{rowUser + 1}) {
		u, ok := decodeUser(b)
		if !ok {
			return errDamaged("a user")
		}
		if i, ok := slices.BinarySearch(u.roles, string(name)); ok {
			u.roles, u.hash = slices.Delete(u.roles, i, i+1), bytes.Clone(u.hash)
			had = append(had, holder{bytes.Clone(key), u})
		}
	}
	for i := range had {
		x.tx.SetFresh(had[i].key, had[i].u.encode())
	}
	return x.done()
}

func (x *change) roleGrant(d *decoder) error {
	name := d.Bytes()
	p := Permission{Type: Type(d.Byte())}
	if err := d.names(&p.Key, &p.End); err != nil {
		return err
	}
	if !p.valid() {
		return ErrInvalidChange
	}
	ps, err := x.role(name)
	if err != nil {
		return err
	}
	i, ok := slices.BinarySearchFunc(ps, p, compare)
	if ok {
		ps[i].Type = p.Type
	} else {
		ps = slices.Insert(ps, i, p)
	}
	return x.putRole(name, ps)
}

func (x *change) roleRevoke(d *decoder) error {
	var name []byte
	var p Permission
	if err := d.names(&name, &p.Key, &p.End); err != nil {
		return err
	}
	ps, err := x.role(name)
	if err != nil {
		return err
	}
	i, ok := slices.BinarySearchFunc(ps, p, compare)
	if !ok {
		return ErrNotGranted
	}
	return x.putRole(name, slices.Delete(ps, i, i+1))
}
