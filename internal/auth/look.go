package auth

import (
	"bytes"
	"encoding/binary"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// look answers a query.
func look(v shard.View, st *state, c caller, r request, d *decoder) ([]byte, error) {
	var name []byte
	switch r {
	case reqLogin, reqUser, reqRole:
		name = d.Bytes()
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	switch r {
	case reqState:
		return st.encode(), nil
	case reqLogin:
		b, ok := v.Get(userKey(name))
		if !ok {
			return nil, ErrUserNotFound
		}
		return append(codec.AppendBytes(nil, st.encode()), b...), nil
	case reqDump:
		return dump(v, st)
	case reqUser:
		return lookUser(v, st, c, name)
	case reqRole:
		return lookRole(v, st, c, name)
	case reqUsers, reqRoles:
		if err := administers(v, st, c); err != nil {
			return nil, err
		}
		first := byte(rowUser)
		if r == reqRoles {
			first = rowRole
		}
		return names(v, first), nil
	}
	return nil, errs.New(errs.Unsupported, "auth query %d; this build does not know it", r)
}

// lookUser answers root, and each user about itself.
func lookUser(v shard.View, st *state, c caller, name []byte) ([]byte, error) {
	if st.enabled {
		me, err := identify(v, st, c)
		if err != nil {
			return nil, err
		}
		if !me.has(Root) && !bytes.Equal(c.user, name) {
			return nil, ErrPermissionDenied
		}
	}
	u, ok, err := readUser(v, name)
	if err != nil || !ok {
		if err == nil {
			err = ErrUserNotFound
		}
		return nil, err
	}
	b := binary.AppendUvarint(nil, uint64(len(u.roles)))
	for _, r := range u.roles {
		b = codec.AppendBytes(b, r)
	}
	return b, nil
}

// lookRole answers root, and each user about its roles.
func lookRole(v shard.View, st *state, c caller, name []byte) ([]byte, error) {
	if st.enabled {
		me, err := identify(v, st, c)
		if err != nil {
			return nil, err
		}
		if !me.has(Root) && !me.has(string(name)) {
			return nil, ErrPermissionDenied
		}
	}
	ps, ok, err := readRole(v, name)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, ErrRoleNotFound
	case string(name) == Root:
		ps = []Permission{{Type: PermitBoth, Key: []byte{}, End: []byte{0}}}
	}
	return appendPermissions(nil, ps), nil
}

// names lists the names of the rows with a first byte, in order.
func names(v shard.View, first byte) []byte {
	var b []byte
	n := uint64(0)
	for key := range v.Scan([]byte{first}, []byte{first + 1}) {
		b = codec.AppendBytes(b, key[1:])
		n++
	}
	return append(binary.AppendUvarint(nil, n), b...)
}

func dump(v shard.View, st *state) ([]byte, error) {
	known := *st
	known.secret = nil
	b := codec.AppendBytes(nil, known.encode())
	for _, first := range []byte{rowUser, rowRole} {
		for key, row := range v.Scan([]byte{first}, []byte{first + 1}) {
			b = codec.AppendBytes(codec.AppendBytes(b, key), row)
		}
	}
	return b, nil
}

// State is what a node knows of authentication.
type State struct {
	Enabled  bool
	Revision uint64
	// Secret signs tokens. It is empty unless Enabled. It must not leave the node.
	Secret []byte
}

// EncodeState returns the query for DecodeState's answer. Anybody may ask, but the answer has the secret in it.
func EncodeState() []byte { return named(reqState, Caller{}) }

// DecodeState reads the answer.
func DecodeState(b []byte) (State, error) {
	s, err := decodeState(b)
	return State{s.enabled, s.revision, bytes.Clone(s.secret)}, err
}

// Login is what a password is compared with.
type Login struct {
	State
	// Hash is that of the password; NoPassword says that there is none.
	Hash       []byte
	NoPassword bool
}

// EncodeLogin returns the query for DecodeLogin's answer. It fails with ErrUserNotFound. Anybody may ask; what it answers must not leave the
// node.
func EncodeLogin(user string) []byte { return named(reqLogin, Caller{}, user) }

// DecodeLogin reads the answer.
func DecodeLogin(b []byte) (Login, error) {
	d := decoder{codec.Read(b)}
	st, err := DecodeState(d.Bytes())
	u, ok := decodeUser(d.Rest())
	if err == nil && (d.Bad() || !ok) {
		err = errDamaged("a user")
	}
	return Login{st, bytes.Clone(u.hash), u.noPassword}, err
}

// EncodeUser returns the query for a user's roles. It fails with ErrUserNotFound, and with what EncodeEnable says of callers unless it is the
// caller's own name. The answer is DecodeNames's.
func EncodeUser(c Caller, user string) []byte { return named(reqUser, c, user) }

// EncodeUsers returns the query for the names of all users, for root. The answer is DecodeNames's.
func EncodeUsers(c Caller) []byte { return named(reqUsers, c) }

// EncodeRoles returns the query for the names of all roles, for root. The answer is DecodeNames's.
func EncodeRoles(c Caller) []byte { return named(reqRoles, c) }

// DecodeNames reads names, in order.
func DecodeNames(b []byte) ([]string, error) {
	d := decoder{codec.Read(b)}
	all := make([]string, d.Count(1))
	for i := range all {
		all[i] = string(d.Bytes())
	}
	return all, d.end()
}

// EncodeRole returns the query for a role's permissions. It fails with ErrRoleNotFound, and with what EncodeEnable says of callers unless it is
// one of the caller's roles. The answer is DecodePermissions's.
func EncodeRole(c Caller, role string) []byte { return named(reqRole, c, role) }

// DecodePermissions reads permissions, in the order of their keys.
func DecodePermissions(b []byte) ([]Permission, error) {
	d := decoder{codec.Read(b)}
	ps := d.permissions(nil)
	return ps, d.end()
}

// Dump is all there is, without the secret.
type Dump struct {
	Enabled  bool
	Revision uint64
	Users    []DumpUser
	Roles    []DumpRole
}

// DumpUser is a user in a Dump.
type DumpUser struct {
	NewUser
	Roles []string
}

// DumpRole is a role in a Dump.
type DumpRole struct {
	Name        string
	Permissions []Permission
}

// EncodeDump returns the query for DecodeDump's answer. Anybody may ask; what it answers must not leave the node but for root.
func EncodeDump() []byte { return named(reqDump, Caller{}) }

// DecodeDump reads the answer.
func DecodeDump(b []byte) (Dump, error) {
	d := decoder{codec.Read(b)}
	st, err := DecodeState(d.Bytes())
	out := Dump{Enabled: st.Enabled, Revision: st.Revision}
	for err == nil && d.Len() > 0 {
		key, row := d.Bytes(), d.Bytes()
		switch {
		case d.Bad() || len(key) == 0:
			return out, errMalformed()
		case key[0] == rowUser:
			u, ok := decodeUser(row)
			if !ok {
				err = errDamaged("a user")
			}
			out.Users = append(out.Users, DumpUser{NewUser{string(key[1:]), u.hash, u.noPassword}, u.roles})
		default:
			ps, ok := decodeRole(row, nil)
			if !ok {
				err = errDamaged("a role")
			}
			out.Roles = append(out.Roles, DumpRole{string(key[1:]), ps})
		}
	}
	return out, err
}
