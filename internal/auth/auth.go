// Package auth is the data model of users, roles and permissions, as etcd has them, run inside the state machine of a shard
// (https://etcd.io/docs/v3.7/op-guide/authentication/rbac/).
//
// It stands before another model: a request to that one travels inside of a guard, which names the caller, and is run only if the
// caller may do what it does. The check and the request are one step on one state, so that no change of rights comes between them, and
// it makes no difference what the node knew that took the request in. What a request does is asked of the other model, through
// Config.Uses.
//
// While authentication is disabled, guards let everything pass, for the price of reading one small row. The guards are there all the same: a
// request that was sent before authentication was enabled, and arrives after, is refused.
//
// Nothing here computes passwords or looks at a clock: hashes are made and compared, and tokens issued and read, at the edge, with what
// this package's queries give away to nobody else.
//
// # Revision
//
// The auth revision begins at 1 and rises by one with each change of users, roles or permissions, and when authentication is disabled.
// A token bears the revision it was issued at: it is good until its user's password is changed, the user is removed, or authentication is
// disabled. Other changes leave it be, since rights are never read from it.
//
// # Rows
//
//	key           value
//	'm'           version(1) enabled(1), revision, since (uvarints), secret (bytes): see state
//	'u' user      version(1) flags(1), since (uvarint), password hash (bytes), number of roles (uvarint), roles (bytes each), in order
//	'r' role      version(1), number of permissions (uvarint), each: type(1), key, end (bytes), in order of key and end
//
// Bytes are a uvarint with their number, and they. since is the auth revision from which on tokens count: for a user that of the last change of
// the password, for all that at which authentication was last enabled. Nothing of this is in the change log.
package auth

import (
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// Root is the name of the user that must be there, and of the role with all rights.
const Root = "root"

// Limits.
const (
	// NameBytesMax bounds the name of a user or a role.
	NameBytesMax = 1 << 10
	// RowBytesMax bounds the permissions of a role, and the roles of a user.
	RowBytesMax = 1 << 20
	// hashBytesMax bounds a password's hash; bcrypt's has 60 bytes.
	hashBytesMax = 128
)

// The errors that a protocol tells from each other. They are etcd's.
var (
	ErrRootUserMissing  = errs.New(errs.Conflict, "authentication needs a user root; add it first")
	ErrRootRoleMissing  = errs.New(errs.Conflict, "authentication needs a user root with the role root; grant it first")
	ErrUserExists       = errs.New(errs.Exists, "the user exists already")
	ErrUserEmpty        = errs.New(errs.Unauthenticated, "authentication is enabled, and the request names no user; log in")
	ErrUserNotFound     = errs.New(errs.NotFound, "there is no such user")
	ErrRoleExists       = errs.New(errs.Exists, "the role exists already")
	ErrRoleEmpty        = errs.New(errs.Invalid, "a role needs a name")
	ErrRoleNotFound     = errs.New(errs.NotFound, "there is no such role")
	ErrRoleNotGranted   = errs.New(errs.NotFound, "the user does not have the role")
	ErrNotGranted       = errs.New(errs.NotFound, "the role does not have the permission")
	ErrPermissionDenied = errs.New(errs.Denied, "the user's roles do not allow this")
	ErrInvalidToken     = errs.New(errs.Unauthenticated, "the token is not valid, or not any more; log in again")
	ErrInvalidChange    = errs.New(errs.Invalid, "root cannot be taken away while authentication is enabled, and a permission needs a key, before its end, and a type")
	ErrNameTooLong      = errs.New(errs.TooLarge, "the name of a user or a role has at most %d bytes", NameBytesMax)
	ErrTooMany          = errs.New(errs.TooLarge, "a user's roles, or a role's permissions, take more than %d bytes", RowBytesMax)
)

// CallerKind says how it is known who asks.
type CallerKind uint8

// The kinds. They are written to the log.
const (
	// Nobody has not said who it is.
	Nobody CallerKind = iota
	// ByToken has a token, issued after a password.
	ByToken
	// ByCertificate has a certificate with the user's name, which the transport verified.
	ByCertificate
)

// Caller is who asks.
type Caller struct {
	Kind CallerKind
	User string
	// Revision is that of the token.
	Revision uint64
}

// UseKind says what a request does with keys of the model behind the guard.
type UseKind uint8

// The kinds. They are written to the log.
const (
	Read UseKind = iota + 1
	Write
	// Whole is what only root may do. It has no keys.
	Whole
)

// Use is what a request does with the keys from Key to before End, with Key alone if End is empty, with Key and all behind it if End is
// one zero byte.
type Use struct {
	Kind     UseKind
	Key, End []byte
}

// Type of a permission; the numbers are etcd's.
type Type uint8

// The types.
const (
	PermitRead Type = iota
	PermitWrite
	PermitBoth
)

// Permission lets a role use the keys that Key and End name, as in Use.
type Permission struct {
	Type     Type
	Key, End []byte
}

// Config connects the model with the one behind it.
type Config struct {
	// Uses calls f with each use that a command or a query makes of keys, until f fails, and returns f's error. A request of which it
	// cannot tell must fail. ask answers queries of other models on the state in which the request will run. It must depend on
	// nothing else. Nil knows no requests: then all that is guarded fails while authentication is enabled.
	Uses func(c shard.Command, ask func(shard.Command) ([]byte, error), f func(Use) error) error
}

// Module is the data model; see shard.Module. Make it with New.
type Module struct{ cfg Config }

var _ shard.Module = (*Module)(nil)

// New returns the data model.
func New(cfg Config) *Module { return &Module{cfg: cfg} }

// ID implements shard.Module.
func (*Module) ID() shard.ModuleID { return shard.ModuleAuth }

// Apply implements shard.Module.
func (m *Module) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	d, r, c, err := begin(cmd)
	if err != nil {
		return nil, err
	}
	st, err := readState(tx)
	if err != nil {
		return nil, err
	}
	if r == reqGuarded {
		inner, err := m.admit(tx, &st, c, &d)
		if err != nil || inner.Module == shard.ModuleShard {
			return nil, err
		}
		return tx.Call(inner)
	}
	x := change{tx: tx, st: st}
	if r == reqLoad {
		return x.load(&d)
	}
	if err := administers(tx, &st, c); err != nil {
		return nil, err
	}
	return nil, x.run(r, &d)
}

// Query implements shard.Module.
func (m *Module) Query(v shard.View, q []byte) ([]byte, error) {
	d, r, c, err := begin(q)
	if err != nil {
		return nil, err
	}
	st, err := readState(v)
	if err != nil {
		return nil, err
	}
	if r == reqGuarded {
		inner, err := m.admit(v, &st, c, &d)
		if err != nil || inner.Module == shard.ModuleShard {
			return nil, err
		}
		return v.Ask(inner)
	}
	return look(v, &st, c, r, &d)
}

// Fire implements shard.Module. There are no timers.
func (*Module) Fire(*shard.Tx, []byte) error { return nil }

// changed is what every change wakes.
var changed = []byte{}

// Span is what to watch to hear of every change.
func Span() shard.Span { return shard.Span{Module: shard.ModuleAuth, From: changed} }
