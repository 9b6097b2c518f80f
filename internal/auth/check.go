package auth

import (
	"bytes"
	"slices"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// admit reads a guard and returns what is in it, if the caller may have that.
func (m *Module) admit(v shard.View, st *state, c caller, d *decoder) (shard.Command, error) {
	n := d.Count(3)
	more := *d
	for range n {
		d.use()
	}
	inner := shard.Command{Module: shard.ModuleID(d.Byte()), Data: d.Rest()}
	if d.Bad() || inner.Module == shard.ModuleAuth || inner.Module == shard.ModuleShard && len(inner.Data) > 0 {
		return inner, errMalformed()
	}
	if !st.enabled {
		return inner, nil
	}
	u, err := identify(v, st, c)
	if err != nil || u.has(Root) {
		return inner, err
	}
	k := check{v: v, roles: u.roles}
	for range n {
		if err := k.use(more.use()); err != nil {
			return inner, err
		}
	}
	switch {
	case inner.Module == shard.ModuleShard:
		return inner, nil
	case m.cfg.Uses == nil:
		return inner, errs.New(errs.Unsupported, "nobody knows what requests of model %d do", inner.Module)
	}
	return inner, m.cfg.Uses(inner, v.Ask, k.use)
}

// identify finds the caller's user. Authentication is enabled.
func identify(v shard.View, st *state, c caller) (user, error) {
	if c.kind == Nobody || len(c.user) == 0 {
		return user{}, ErrUserEmpty
	}
	u, ok, err := readUser(v, c.user)
	switch {
	case err != nil:
		return u, err
	case c.kind == ByToken && (!ok || c.revision < max(u.since, st.since)):
		return u, ErrInvalidToken
	case !ok:
		return u, ErrPermissionDenied
	}
	return u, nil
}

// administers says whether the caller may change users and roles.
func administers(v shard.View, st *state, c caller) error {
	if !st.enabled {
		return nil
	}
	u, err := identify(v, st, c)
	if err == nil && !u.has(Root) {
		err = ErrPermissionDenied
	}
	return err
}

// check decides what one user may do, who is not root.
type check struct {
	v     shard.View
	roles []string
	// all are the permissions of the roles, in order; they are read when the first is needed.
	all  []Permission
	read bool
}

// use returns nil or ErrPermissionDenied.
func (k *check) use(u Use) error {
	if u.Kind == Whole {
		return ErrPermissionDenied
	}
	if !k.read {
		if err := k.load(); err != nil {
			return err
		}
	}
	if !covers(k.all, u) {
		return ErrPermissionDenied
	}
	return nil
}

func (k *check) load() error {
	k.read = true
	for _, role := range k.roles {
		b, ok := k.v.Get(roleKey([]byte(role)))
		if !ok {
			continue
		}
		if k.all, ok = decodeRole(b, k.all); !ok {
			return errDamaged("a role")
		}
	}
	slices.SortFunc(k.all, compare)
	return nil
}

func (p *Permission) allows(kind UseKind) bool {
	return p.Type == PermitBoth || p.Type == PermitRead && kind == Read || p.Type == PermitWrite && kind == Write
}

// valid says whether it has a known type, a key, and an end behind that.
func (p *Permission) valid() bool {
	return p.Type <= PermitBoth && len(p.Key) > 0 && (len(p.End) == 0 || open(p.End) || bytes.Compare(p.Key, p.End) < 0)
}

// open says whether an End is none.
func open(end []byte) bool { return len(end) == 1 && end[0] == 0 }

// covers says whether permissions, in the order of their keys, together allow a use of all its keys.
func covers(ps []Permission, u Use) bool {
	if len(u.End) == 0 || !open(u.End) && bytes.Compare(u.Key, u.End) >= 0 {
		// A range of no keys is taken for its first.
		return coversOne(ps, u.Kind, u.Key)
	}
	// All before at is allowed.
	at := u.Key
	for i := range ps {
		p := &ps[i]
		if !p.allows(u.Kind) {
			continue
		}
		if bytes.Compare(p.Key, at) > 0 {
			return false
		}
		end := p.End
		switch {
		case open(end):
			return true
		case len(end) == 0:
			// The next key after p.Key.
			end = append(bytes.Clone(p.Key), 0)
		}
		if bytes.Compare(end, at) > 0 {
			at = end
		}
		if !open(u.End) && bytes.Compare(at, u.End) >= 0 {
			return true
		}
	}
	return false
}

func coversOne(ps []Permission, kind UseKind, key []byte) bool {
	for i := range ps {
		p := &ps[i]
		if bytes.Compare(p.Key, key) > 0 {
			return false
		}
		if p.allows(kind) && (bytes.Equal(p.Key, key) || open(p.End) || bytes.Compare(key, p.End) < 0) {
			return true
		}
	}
	return false
}
