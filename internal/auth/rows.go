package auth

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// First bytes of rows; see the package comment.
const (
	rowState = 'm'
	rowUser  = 'u'
	rowRole  = 'r'
)

const rowVersion = 1

// flagNoPassword marks a user without a password, in rows and in requests.
const flagNoPassword = 1

func errDamaged(what string) error {
	return errs.New(errs.Corrupt, "the row of %s of auth has no known format", what)
}

// state is what is kept of authentication as a whole.
type state struct {
	enabled bool
	// revision is the auth revision. Tokens from before since do not count: authentication was enabled then.
	revision, since uint64
	// secret signs tokens; it is empty unless enabled.
	secret []byte
}

func (s *state) encode() []byte {
	b := []byte{rowVersion, 0}
	if s.enabled {
		b[1] = 1
	}
	return codec.AppendBytes(binary.AppendUvarint(binary.AppendUvarint(b, s.revision), s.since), s.secret)
}

// stateKey is the key of the row that every guard reads.
var stateKey = []byte{rowState}

func readState(v shard.View) (state, error) {
	b, ok := v.Get(stateKey)
	if !ok {
		return state{revision: 1}, nil
	}
	return decodeState(b)
}

// decodeState reads a row; the secret is a part of it.
func decodeState(b []byte) (s state, err error) {
	d := decoder{codec.Read(b)}
	version := d.Byte()
	s.enabled = d.Bool()
	s.revision, s.since = d.Uvarint(), d.Uvarint()
	s.secret = d.Bytes()
	if d.end() != nil || version != rowVersion {
		return s, errDamaged("the state")
	}
	return s, nil
}

// user is a user's row.
type user struct {
	noPassword bool
	// since is the auth revision of the last change of the password: tokens from before do not count.
	since uint64
	hash  []byte
	// roles are in order.
	roles []string
}

func userKey(name []byte) []byte { return append([]byte{rowUser}, name...) }
func roleKey(name []byte) []byte { return append([]byte{rowRole}, name...) }

func (u *user) encode() []byte {
	b := []byte{rowVersion, 0}
	if u.noPassword {
		b[1] = flagNoPassword
	}
	b = codec.AppendBytes(binary.AppendUvarint(b, u.since), u.hash)
	b = binary.AppendUvarint(b, uint64(len(u.roles)))
	for _, r := range u.roles {
		b = codec.AppendBytes(b, r)
	}
	return b
}

// decodeUser reads a row; the hash is a part of it.
func decodeUser(b []byte) (u user, ok bool) {
	d := decoder{codec.Read(b)}
	version := d.Byte()
	u.noPassword = d.Byte()&flagNoPassword != 0
	u.since, u.hash = d.Uvarint(), d.Bytes()
	if n := d.Count(1); n > 0 {
		u.roles = make([]string, n)
	}
	for i := range u.roles {
		u.roles[i] = string(d.Bytes())
	}
	return u, d.end() == nil && version == rowVersion
}

func readUser(v shard.View, name []byte) (u user, ok bool, err error) {
	b, ok := v.Get(userKey(name))
	if !ok {
		return u, false, nil
	}
	if u, ok = decodeUser(b); !ok {
		return u, false, errDamaged("a user")
	}
	return u, true, nil
}

func (u *user) has(role string) bool {
	_, ok := slices.BinarySearch(u.roles, role)
	return ok
}

func encodeRole(ps []Permission) []byte {
	return appendPermissions([]byte{rowVersion}, ps)
}

func appendPermissions(b []byte, ps []Permission) []byte {
	b = binary.AppendUvarint(b, uint64(len(ps)))
	for _, p := range ps {
		b = codec.AppendBytes(codec.AppendBytes(append(b, byte(p.Type)), p.Key), p.End)
	}
	return b
}

// decodeRole reads a row; keys are parts of it. It adds the permissions to ps.
func decodeRole(b []byte, ps []Permission) ([]Permission, bool) {
	d := decoder{codec.Read(b)}
	version := d.Byte()
	ps = d.permissions(ps)
	return ps, d.end() == nil && version == rowVersion
}

func (d *decoder) permissions(ps []Permission) []Permission {
	n := d.Count(3)
	ps = slices.Grow(ps, n)
	for range n {
		p := Permission{Type: Type(d.Byte())}
		p.Key, p.End = d.Bytes(), d.Bytes()
		ps = append(ps, p)
	}
	return ps
}

func readRole(v shard.View, name []byte) (ps []Permission, ok bool, err error) {
	b, ok := v.Get(roleKey(name))
	if !ok {
		return nil, false, nil
	}
	if ps, ok = decodeRole(b, nil); !ok {
		return nil, false, errDamaged("a role")
	}
	return ps, true, nil
}

// compare puts permissions in the order in which they are kept.
func compare(p, q Permission) int {
	if c := bytes.Compare(p.Key, q.Key); c != 0 {
		return c
	}
	return bytes.Compare(p.End, q.End)
}
