package auth

import (
	"encoding/binary"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// Commands and queries are
//
//	version(1) request(1) caller body
//
// with uvarints for numbers, and length and bytes for strings. The caller is its kind(1) and, unless that is Nobody, user and revision.
const encodingVersion = 1

// request numbers what is asked; numbers are never reused.
type request uint8

const (
	// reqGuarded is a command or query of another model: uses beside its own (number, each kind(1) key end), model(1), its bytes. Model 0
	// asks for nothing, so that only the uses are checked.
	reqGuarded request = iota + 1
	reqEnable
	reqDisable
	reqUserAdd
	reqUserDelete
	reqUserPassword
	reqUserGrant
	reqUserRevoke
	reqRoleAdd
	reqRoleDelete
	reqRoleGrant
	reqRoleRevoke
	// What follows, up to reqRoles, is asked by queries only. The answers to the first three are for the node itself.
	reqState
	reqLogin
	reqDump
	reqUser
	reqUsers
	reqRole
	reqRoles
	// reqLoad is a command again: users (number, each name and row), roles (as users), revision, enabled(1), secret, model(1), its bytes.
	reqLoad
)

func errMalformed() error { return errs.New(errs.Corrupt, "malformed auth request") }

// AppendGuard adds to b what comes before a command or query of a model: who asks, and what the request uses beside what the
// model says of it. The request follows, and all of it is a command or query of this package's model, whose answer is the request's. It fails
// with ErrUserEmpty, ErrInvalidToken and ErrPermissionDenied. With model shard.ModuleShard nothing follows, and the answer is empty.
func AppendGuard(b []byte, c Caller, model shard.ModuleID, more ...Use) []byte {
	b = appendHead(b, reqGuarded, c)
	b = binary.AppendUvarint(b, uint64(len(more)))
	for _, u := range more {
		b = codec.AppendBytes(codec.AppendBytes(append(b, byte(u.Kind)), u.Key), u.End)
	}
	return append(b, byte(model))
}

func appendHead(b []byte, r request, c Caller) []byte {
	b = append(b, encodingVersion, byte(r), byte(c.Kind))
	if c.Kind != Nobody {
		b = binary.AppendUvarint(codec.AppendBytes(b, c.User), c.Revision)
	}
	return b
}

// decoder is a codec.Reader of requests, answers and rows.
type decoder struct{ codec.Reader }

// end returns an error if anything was missing, or is left.
func (d *decoder) end() error {
	if !d.Done() {
		return errMalformed()
	}
	return nil
}

// names reads strings that end the request.
func (d *decoder) names(to ...*[]byte) error {
	for _, p := range to {
		*p = d.Bytes()
	}
	return d.end()
}

// caller is Caller as it is encoded; user is a part of the request.
type caller struct {
	kind     CallerKind
	user     []byte
	revision uint64
}

func begin(b []byte) (decoder, request, caller, error) {
	d := decoder{codec.Read(b)}
	var c caller
	if v := d.Byte(); v != encodingVersion {
		return d, 0, c, errs.New(errs.Unsupported, "auth request of version %d; this build knows version %d", v, encodingVersion)
	}
	r := request(d.Byte())
	if c.kind = CallerKind(d.Byte()); c.kind != Nobody {
		c.user, c.revision = d.Bytes(), d.Uvarint()
	}
	if d.Bad() || c.kind > ByCertificate {
		return d, 0, c, errMalformed()
	}
	return d, r, c, nil
}

// use reads one of a guard's uses.
func (d *decoder) use() Use {
	u := Use{Kind: UseKind(d.Byte())}
	u.Key, u.End = d.Bytes(), d.Bytes()
	if u.Kind < Read || u.Kind > Whole {
		d.Fail()
	}
	return u
}

func named(r request, c Caller, names ...string) []byte {
	b := appendHead(make([]byte, 0, 64), r, c)
	for _, n := range names {
		b = codec.AppendBytes(b, n)
	}
	return b
}

// EncodeEnable returns the command that enables authentication. Tokens are signed with secret, which whoever asks draws, SecretBytes long; it
// has no effect if authentication is enabled already. It fails with ErrRootUserMissing and ErrRootRoleMissing. As all commands that follow,
// it has an empty answer, and fails, once authentication is enabled, with ErrUserEmpty, ErrInvalidToken, ErrUserNotFound or ErrPermissionDenied
// unless the caller is root.
func EncodeEnable(c Caller, secret []byte) []byte {
	return codec.AppendBytes(appendHead(make([]byte, 0, 64), reqEnable, c), secret)
}

// EncodeDisable returns the command that disables authentication.
func EncodeDisable(c Caller) []byte { return named(reqDisable, c) }

// NewUser is a user to be added.
type NewUser struct {
	Name string
	// Hash is that of the password. It is empty, and nobody can log in, if NoPassword.
	Hash       []byte
	NoPassword bool
}

// EncodeUserAdd returns the command that adds a user. It fails with ErrUserEmpty, ErrNameTooLong and ErrUserExists.
func EncodeUserAdd(c Caller, u NewUser) []byte {
	b := named(reqUserAdd, c, u.Name)
	flags := byte(0)
	if u.NoPassword {
		flags = flagNoPassword
	}
	return codec.AppendBytes(append(b, flags), u.Hash)
}

// EncodeUserDelete returns the command that removes a user. It fails with ErrUserNotFound, and with ErrInvalidChange for root while
// authentication is enabled.
func EncodeUserDelete(c Caller, user string) []byte { return named(reqUserDelete, c, user) }

// EncodeUserPassword returns the command that changes a user's password to one with the given hash. One without a password stays so. It fails
// with ErrUserNotFound.
func EncodeUserPassword(c Caller, user string, hash []byte) []byte {
	return codec.AppendBytes(named(reqUserPassword, c, user), hash)
}

// EncodeUserGrant returns the command that gives a role to a user; to give it twice is to give it once. It fails with ErrUserNotFound and
// ErrRoleNotFound, save that the role root need not be there.
func EncodeUserGrant(c Caller, user, role string) []byte { return named(reqUserGrant, c, user, role) }

// EncodeUserRevoke returns the command that takes a role from a user. It fails with ErrUserNotFound and ErrRoleNotGranted, and with
// ErrInvalidChange for root's role root while authentication is enabled.
func EncodeUserRevoke(c Caller, user, role string) []byte { return named(reqUserRevoke, c, user, role) }

// EncodeRoleAdd returns the command that adds a role. It fails with ErrRoleEmpty, ErrNameTooLong and ErrRoleExists.
func EncodeRoleAdd(c Caller, role string) []byte { return named(reqRoleAdd, c, role) }

// EncodeRoleDelete returns the command that removes a role, also from all users. It fails with ErrRoleNotFound, and with ErrInvalidChange for
// root while authentication is enabled.
func EncodeRoleDelete(c Caller, role string) []byte { return named(reqRoleDelete, c, role) }

// EncodeRoleGrant returns the command that gives a permission to a role. One of the same keys is replaced. It fails with ErrRoleNotFound and
// ErrInvalidChange.
func EncodeRoleGrant(c Caller, role string, p Permission) []byte {
	b := append(named(reqRoleGrant, c, role), byte(p.Type))
	return codec.AppendBytes(codec.AppendBytes(b, p.Key), p.End)
}

// EncodeRoleRevoke returns the command that takes the permission of exactly these keys from a role. It fails with ErrRoleNotFound and
// ErrNotGranted.
func EncodeRoleRevoke(c Caller, role string, key, end []byte) []byte {
	return codec.AppendBytes(codec.AppendBytes(named(reqRoleRevoke, c, role), key), end)
}
