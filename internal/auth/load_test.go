package auth

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// loaded is a whole load in one part.
var loaded = Load{
	Users: []DumpUser{
		{NewUser{"ann", []byte("ann's"), false}, []string{"gone", "r"}}, {NewUser{"cert", nil, true}, nil}, {NewUser{Root, []byte("hash"), false}, []string{Root}},
	},
	Roles: []DumpRole{
		{"r", []Permission{{PermitBoth, []byte("a"), []byte("c")}, {PermitRead, []byte("k"), nil}}}, {Root, nil},
	},
	Revision: 40, Enabled: true, Secret: secret,
}

func (x *tester) load(l Load, req string) error {
	x.t.Helper()
	b := append(AppendLoad(nil, &l, innerID), req...)
	if got, inner, err := DecodeLoad(b); err == nil && (fmt.Sprintf("%v", *got) != fmt.Sprintf("%v", l) || inner.Module != innerID || string(inner.Data) != req) {
		x.t.Errorf("decoded %v %v, want %v", *got, inner, l)
	}
	_, err := x.submit(b)
	return err
}

func (x *tester) dump() Dump {
	x.t.Helper()
	b, err := x.query(EncodeDump())
	var d Dump
	if err == nil {
		d, err = DecodeDump(b)
	}
	if err != nil {
		x.t.Fatal(err)
	}
	return d
}

func TestLoad_GoesOnFromItsRevision(t *testing.T) {
	x := newTester(t)
	// Parts come in any order and more than once; what they come with is done, and nothing is enabled before the last.
	first, second, last := Load{Users: loaded.Users[1:]}, Load{Users: loaded.Users[:1], Roles: loaded.Roles}, Load{Revision: 40, Enabled: true, Secret: secret}
	for i, l := range []Load{second, first, second} {
		if err := x.load(l, fmt.Sprintf("l part%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.ask(nobody, "w z"); err != nil {
		t.Errorf("before the last part: %v", err)
	}
	if err := x.load(last, "l last"); err != nil {
		t.Fatal(err)
	}
	if err := x.load(last, "l again"); !errors.Is(err, ErrNotNew) {
		t.Errorf("the last part again: %v", err)
	}
	want := Dump{true, 40, loaded.Users, loaded.Roles}
	if got := x.dump(); fmt.Sprintf("%v", got) != fmt.Sprintf("%v", want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if b, err := x.query(append(AppendGuard(nil, root, innerID), "keys"...)); err != nil || string(b) != "last part0 part1 part2" {
		t.Errorf("what came with it: %q %v", b, err)
	}
	for _, c := range []struct {
		who  Caller
		req  string
		want error
	}{
		{nobody, "r a", ErrUserEmpty}, {by("ann"), "w a b", nil}, {by("ann"), "r k", nil}, {by("ann"), "w k", ErrPermissionDenied}, {by(Root), "all", nil},
		{Caller{Kind: ByCertificate, User: "cert"}, "r a", ErrPermissionDenied},
		{Caller{Kind: ByToken, User: "ann", Revision: 40}, "r a", nil}, {Caller{Kind: ByToken, User: "ann", Revision: 39}, "r a", ErrInvalidToken},
	} {
		if err := x.ask(c.who, c.req); !errors.Is(err, c.want) {
			t.Errorf("%+v %s: %v, want %v", c.who, c.req, err, c.want)
		}
	}
	x.do(EncodeRoleAdd(root, "new"))
	if s := x.state(); s.Revision != 41 {
		t.Errorf("revision %d after a change", s.Revision)
	}
}

func TestLoad_AllOrNothing(t *testing.T) {
	x := newTester(t)
	empty := fmt.Sprintf("%v", x.dump())
	noRoot := loaded
	noRoot.Users = loaded.Users[:2]
	noRole := loaded
	noRole.Users = append([]DumpUser{}, loaded.Users...)
	noRole.Users[2].Roles = nil
	short := loaded
	short.Secret = secret[1:]
	for _, c := range []struct {
		l    Load
		req  string
		want error
	}{
		{loaded, "fail", errs.New(errs.Conflict, "no")}, {noRoot, "l k", ErrRootUserMissing}, {noRole, "l k", ErrRootRoleMissing}, {short, "l k", errMalformed()},
	} {
		if err := x.load(c.l, c.req); errs.KindOf(err) != errs.KindOf(c.want) || err.Error() != c.want.Error() {
			t.Errorf("%v, want %v", err, c.want)
		}
		if got := fmt.Sprintf("%v", x.dump()); got != empty {
			t.Errorf("left behind: %s", got)
		}
		if b, err := x.query(append(AppendGuard(nil, nobody, innerID), "keys"...)); err != nil || len(b) > 0 {
			t.Errorf("left behind: %q %v", b, err)
		}
	}
	x.do(EncodeRoleAdd(nobody, "mine"))
	if err := x.load(loaded, "l k"); !errors.Is(err, ErrNotNew) {
		t.Errorf("where there was a role: %v", err)
	}
}

func TestLoad_Refused(t *testing.T) {
	user := func(u NewUser, roles ...string) Load { return Load{Users: []DumpUser{{u, roles}}} }
	role := func(name string, ps ...Permission) Load { return Load{Roles: []DumpRole{{name, ps}}} }
	long := strings.Repeat("x", NameBytesMax+1)
	for want, l := range map[string]Load{
		"user's name \"\"":          user(NewUser{}),
		"has 1025 bytes":            user(NewUser{Name: long}),
		"hash of 129 bytes":         user(NewUser{Name: "u", Hash: make([]byte, 129)}),
		"without password":          user(NewUser{Name: "u", Hash: []byte("h"), NoPassword: true}),
		"roles of user \"u\" are":   user(NewUser{Name: "u"}, "b", "a"),
		"user \"v\" are not":        user(NewUser{Name: "v"}, "a", "a"),
		"user \"w\" are not":        user(NewUser{Name: "w"}, ""),
		"user \"x\" take more":      user(NewUser{Name: "x"}, strings.Repeat("x", RowBytesMax)),
		"role's name \"\"":          role(""),
		"role \"r\" has a":          role("r", Permission{3, []byte("a"), nil}),
		"role \"s\" has a":          role("s", Permission{Key: nil}),
		"role \"t\" has a":          role("t", Permission{Key: []byte("b"), End: []byte("a")}),
		"of role \"u\" are not":     role("u", Permission{Key: []byte("b")}, Permission{Key: []byte("a")}),
		"of role \"v\" take more":   role("v", Permission{Key: make([]byte, RowBytesMax)}),
		"at revision 0":             {Enabled: true},
		"at revision 9223372036854": {Revision: 1 << 63},
	} {
		b := AppendLoad(nil, &l, innerID)
		_, _, err := DecodeLoad(b)
		if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if _, err := newTester(t).submit(b); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s as a command: %v", want, err)
		}
	}
	whole := append(AppendLoad(nil, &loaded, innerID), "l k"...)
	for n := range len(AppendLoad(nil, &loaded, innerID)) {
		if _, _, err := DecodeLoad(whole[:n]); err == nil {
			t.Errorf("%d bytes of a load", n)
		}
	}
	for _, m := range []shard.ModuleID{shard.ModuleAuth, shard.ModuleShard} {
		if _, _, err := DecodeLoad(AppendLoad(nil, &loaded, m)); err == nil {
			t.Errorf("a load before model %d", m)
		}
	}
	if _, _, err := DecodeLoad(EncodeDisable(nobody)); err == nil {
		t.Error("another command")
	}
	if !bytes.Equal(loaded.Secret, secret) {
		t.Error("the secret was changed")
	}
}
