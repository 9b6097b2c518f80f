package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// inner is a model behind guards: "r KEY END" and "w KEY END" do nothing but count as a use; "l KEY" stores a key that every "L" writes, as if
// it hung on a lease.
type inner struct{}

const innerID shard.ModuleID = 9

func (inner) ID() shard.ModuleID { return innerID }

func (inner) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	switch {
	case bytes.HasPrefix(cmd, []byte("l ")):
		tx.Set(cmd[2:], nil)
	case bytes.HasPrefix(cmd, []byte("fail")):
		tx.Set([]byte("trace"), nil)
		return nil, errs.New(errs.Conflict, "no")
	}
	return append([]byte("did "), cmd...), nil
}

func (inner) Query(v shard.View, q []byte) ([]byte, error) {
	if string(q) == "keys" {
		var all []string
		for k := range v.Scan(nil, nil) {
			all = append(all, string(k))
		}
		return []byte(strings.Join(all, " ")), nil
	}
	return append([]byte("saw "), q...), nil
}

func (inner) Fire(*shard.Tx, []byte) error { return nil }

func innerUses(c shard.Command, ask func(shard.Command) ([]byte, error), f func(Use) error) error {
	w := append(strings.Split(string(c.Data), " "), "", "", "")
	u := Use{Key: []byte(w[1]), End: []byte(w[2])}
	switch w[0] {
	case "r":
		u.Kind = Read
	case "w", "l", "fail":
		u.Kind = Write
	case "all":
		u.Kind = Whole
	case "L":
		keys, err := ask(shard.Command{Module: innerID, Data: []byte("keys")})
		for k := range strings.FieldsSeq(string(keys)) {
			if err == nil {
				err = f(Use{Kind: Write, Key: []byte(k)})
			}
		}
		return err
	case "nothing", "keys":
		return nil
	default:
		return errs.New(errs.Unsupported, "what is %q?", c.Data)
	}
	return f(u)
}

// tester asks one shard in memory.
type tester struct {
	t *testing.T
	*shardtest.Client
}

func newTester(t *testing.T) *tester {
	return &tester{t, shardtest.New(t, shardtest.Options{}, New(Config{Uses: innerUses}), inner{})}
}

func (x *tester) submit(cmd []byte) ([]byte, error) {
	r := x.Submit(context.Background(), shard.Route{Shard: 1}, shard.Command{Module: shard.ModuleAuth, Data: cmd}).Wait(context.Background())
	return r.Data, r.Err
}

func (x *tester) query(q []byte) ([]byte, error) {
	return x.Query(context.Background(), shard.Route{Shard: 1}, shard.Linearizable, shard.Command{Module: shard.ModuleAuth, Data: q})
}

// do runs commands that must succeed.
func (x *tester) do(cmds ...[]byte) {
	x.t.Helper()
	for _, c := range cmds {
		if b, err := x.submit(c); err != nil || len(b) > 0 {
			x.t.Fatalf("command %d %q: %q %v", c[1], c, b, err)
		}
	}
}

func (x *tester) state() State {
	x.t.Helper()
	b, err := x.query(EncodeState())
	var s State
	if err == nil {
		s, err = DecodeState(b)
	}
	if err != nil {
		x.t.Fatal(err)
	}
	return s
}

// ask runs an inner request in a guard, as a command and as a query, which must agree.
func (x *tester) ask(c Caller, req string, more ...Use) error {
	x.t.Helper()
	b := append(AppendGuard(nil, c, innerID, more...), req...)
	seen, err := x.query(b)
	done, err2 := x.submit(b)
	if fmt.Sprint(err) != fmt.Sprint(err2) || err == nil && (string(done) != "did "+req || string(seen) != "saw "+req) {
		x.t.Errorf("%+v %s: %q %v as a query, %q %v as a command", c, req, seen, err, done, err2)
	}
	return err
}

var (
	secret = bytes.Repeat([]byte{7}, SecretBytes)
	nobody = Caller{}
	root   = Caller{Kind: ByToken, User: Root, Revision: 1 << 40}
)

// by is a caller whose token is newer than everything.
func by(user string) Caller { return Caller{Kind: ByToken, User: user, Revision: 1 << 40} }

// enabled adds root, ann with role r, and enables authentication.
func (x *tester) enabled() {
	x.t.Helper()
	x.do(
		EncodeUserAdd(nobody, NewUser{Name: Root, Hash: []byte("hash")}), EncodeUserGrant(nobody, Root, Root), EncodeRoleAdd(nobody, "r"),
		EncodeUserAdd(nobody, NewUser{Name: "ann", Hash: []byte("hash")}), EncodeUserGrant(nobody, "ann", "r"),
		EncodeEnable(nobody, secret),
	)
}

func TestGuard_PassesWhileDisabled(t *testing.T) {
	x := newTester(t)
	for _, c := range []Caller{nobody, by("ann"), {Kind: ByCertificate, User: "ann"}} {
		if err := x.ask(c, "w a b", Use{Kind: Whole}); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	b, err := x.submit(append(AppendGuard(nil, nobody, innerID), "fail"...))
	if !errs.Is(err, errs.Conflict) {
		t.Errorf("failing: %q %v", b, err)
	}
	if keys, _ := x.query(append(AppendGuard(nil, nobody, innerID), "keys"...)); len(keys) > 0 {
		t.Errorf("a failed command left %q", keys)
	}
}

func TestGuard_RefusesBySituation(t *testing.T) {
	x := newTester(t)
	x.enabled()
	x.do(EncodeRoleGrant(root, "r", Permission{PermitRead, []byte("a"), []byte("c")}), EncodeRoleGrant(root, "r", Permission{PermitBoth, []byte("k"), nil}))
	ann, cert := by("ann"), Caller{Kind: ByCertificate, User: "ann"}
	for _, c := range []struct {
		c    Caller
		req  string
		more []Use
		want error
	}{
		{nobody, "nothing", nil, ErrUserEmpty},
		{nobody, "w a", nil, ErrUserEmpty},
		{Caller{Kind: ByToken}, "nothing", nil, ErrUserEmpty},
		{by("who"), "nothing", nil, ErrInvalidToken},
		{Caller{Kind: ByCertificate, User: "who"}, "nothing", nil, ErrPermissionDenied},
		{ann, "nothing", nil, nil}, {cert, "nothing", nil, nil},
		{ann, "r a b", nil, nil}, {cert, "r a c", nil, nil}, {ann, "r a d", nil, ErrPermissionDenied},
		{ann, "r c", nil, ErrPermissionDenied}, {ann, "w a", nil, ErrPermissionDenied}, {ann, "w k", nil, nil},
		{ann, "w k", []Use{{Kind: Read, Key: []byte("a")}}, nil},
		{ann, "w k", []Use{{Kind: Read, Key: []byte("a")}, {Kind: Write, Key: []byte("a")}}, ErrPermissionDenied},
		{ann, "all", nil, ErrPermissionDenied}, {ann, "nothing", []Use{{Kind: Whole}}, ErrPermissionDenied},
		{root, "all", []Use{{Kind: Whole}}, nil}, {root, "w z", nil, nil},
		{Caller{Kind: ByToken, User: Root, Revision: 1}, "nothing", nil, ErrInvalidToken},
	} {
		if err := x.ask(c.c, c.req, c.more...); !errors.Is(err, c.want) {
			t.Errorf("%+v %q %v: %v, want %v", c.c, c.req, c.more, err, c.want)
		}
	}
	if err := x.ask(ann, "what"); !errs.Is(err, errs.Unsupported) {
		t.Errorf("a request that nobody knows: %v", err)
	}
	// What depends on the state is asked of the state.
	if err := x.ask(ann, "L"); err != nil {
		t.Errorf("no keys: %v", err)
	}
	if _, err := x.submit(append(AppendGuard(nil, root, innerID), "l z"...)); err != nil {
		t.Fatal(err)
	}
	if err := x.ask(ann, "L"); !errors.Is(err, ErrPermissionDenied) {
		t.Errorf("a key of root's: %v", err)
	}
	// Without a request only the uses are checked.
	only := func(c Caller, u Use) error {
		b, err := x.query(AppendGuard(nil, c, shard.ModuleShard, u))
		if len(b) > 0 {
			t.Errorf("answer %q", b)
		}
		return err
	}
	if err := only(ann, Use{Kind: Read, Key: []byte("a")}); err != nil {
		t.Errorf("uses only: %v", err)
	}
	if err := only(ann, Use{Kind: Read, Key: []byte("z")}); !errors.Is(err, ErrPermissionDenied) {
		t.Errorf("uses only: %v", err)
	}
	// A guard in a guard is none.
	if _, err := x.query(append(AppendGuard(nil, root, shard.ModuleAuth), EncodeState()...)); !errs.Is(err, errs.Corrupt) {
		t.Errorf("guard in a guard: %v", err)
	}
}

func TestTokens_EndWithWhatTheyStandOn(t *testing.T) {
	x := newTester(t)
	x.enabled()
	now := func(user string) Caller { return Caller{Kind: ByToken, User: user, Revision: x.state().Revision} }
	ann, boss := now("ann"), now(Root)
	check := func(when string, want error) {
		t.Helper()
		if err := x.ask(ann, "nothing"); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", when, err, want)
		}
	}
	x.do(EncodeRoleAdd(boss, "s"), EncodeUserGrant(boss, "ann", "s"), EncodeUserRevoke(boss, "ann", "s"), EncodeUserAdd(boss, NewUser{Name: "bob"}))
	check("after other changes", nil)
	ann = now("ann")
	x.do(EncodeUserPassword(boss, "ann", []byte("new")))
	check("after a new password, though nothing else changed since the token was issued", ErrInvalidToken)
	if b, err := x.query(EncodeLogin("ann")); err != nil {
		t.Error(err)
	} else if l, err := DecodeLogin(b); err != nil || string(l.Hash) != "new" || l.NoPassword {
		t.Errorf("login after a new password: %+v %v", l, err)
	}
	ann = now("ann")
	check("with a new token", nil)
	x.do(EncodeUserDelete(boss, "ann"))
	check("without the user", ErrInvalidToken)
	x.do(EncodeUserAdd(boss, NewUser{Name: "ann", Hash: []byte("new")}))
	check("with another user of that name", ErrInvalidToken)
	ann = now("ann")
	x.do(EncodeDisable(boss))
	check("disabled", nil)
	x.do(EncodeEnable(nobody, secret))
	check("enabled again", ErrInvalidToken)
}

func TestChanges_RulesAndRevision(t *testing.T) {
	x := newTester(t)
	rev := uint64(1)
	// step runs a command and says what becomes of the revision.
	step := func(cmd []byte, want error, rises uint64) {
		t.Helper()
		_, err := x.submit(cmd)
		if !errors.Is(err, want) {
			t.Errorf("command %d %q: %v, want %v", cmd[1], cmd, err, want)
		}
		if rev += rises; x.state().Revision != rev {
			t.Errorf("command %d %q: revision %d, want %d", cmd[1], cmd, x.state().Revision, rev)
			rev = x.state().Revision
		}
	}
	perm := func(key, end string) Permission { return Permission{PermitBoth, []byte(key), []byte(end)} }
	long, longest := strings.Repeat("x", NameBytesMax+1), strings.Repeat("x", NameBytesMax)
	c := nobody
	for range 2 {
		step(EncodeEnable(c, secret), ErrRootUserMissing, 0)
		step(EncodeDisable(c), nil, 0)
		step(EncodeUserAdd(c, NewUser{}), ErrUserEmpty, 0)
		step(EncodeUserAdd(c, NewUser{Name: long}), ErrNameTooLong, 0)
		step(EncodeUserAdd(c, NewUser{Name: longest}), nil, 1)
		step(EncodeUserDelete(c, longest), nil, 1)
		step(EncodeUserAdd(c, NewUser{Name: Root, Hash: []byte("h")}), nil, 1)
		step(EncodeUserAdd(c, NewUser{Name: Root}), ErrUserExists, 0)
		step(EncodeEnable(c, secret), ErrRootRoleMissing, 0)
		step(EncodeUserGrant(c, Root, "none"), ErrRoleNotFound, 0)
		step(EncodeUserGrant(c, "none", Root), ErrUserNotFound, 0)
		step(EncodeUserGrant(c, Root, Root), nil, 1)
		step(EncodeUserGrant(c, Root, Root), nil, 0)
		step(EncodeUserAdd(c, NewUser{Name: "ann", NoPassword: true, Hash: []byte("h")}), nil, 1)
		step(EncodeUserPassword(c, "ann", []byte("h")), nil, 1)
		step(EncodeUserPassword(c, "none", []byte("h")), ErrUserNotFound, 0)
		if b, err := x.query(EncodeLogin("ann")); err != nil {
			t.Error(err)
		} else if l, err := DecodeLogin(b); err != nil || !l.NoPassword || len(l.Hash) > 0 {
			t.Errorf("login %+v %v", l, err)
		}
		step(EncodeRoleAdd(c, ""), ErrRoleEmpty, 0)
		step(EncodeRoleAdd(c, long), ErrNameTooLong, 0)
		step(EncodeRoleAdd(c, "r"), nil, 1)
		step(EncodeRoleAdd(c, Root), nil, 1)
		step(EncodeRoleAdd(c, "r"), ErrRoleExists, 0)
		step(EncodeRoleGrant(c, "none", perm("a", "")), ErrRoleNotFound, 0)
		for _, bad := range []Permission{perm("", "b"), perm("b", "a"), perm("b", "b"), {Type: 3, Key: []byte("a")}} {
			step(EncodeRoleGrant(c, "r", bad), ErrInvalidChange, 0)
		}
		for _, p := range []Permission{perm("b", ""), perm("a", "\x00"), perm("a", "c"), {PermitRead, []byte("a"), []byte("c")}} {
			step(EncodeRoleGrant(c, "r", p), nil, 1)
		}
		step(EncodeRoleRevoke(c, "r", []byte("b"), nil), nil, 1)
		step(EncodeRoleRevoke(c, "r", []byte("b"), nil), ErrNotGranted, 0)
		step(EncodeRoleRevoke(c, "none", []byte("b"), nil), ErrRoleNotFound, 0)
		step(EncodeUserGrant(c, "ann", "r"), nil, 1)
		step(EncodeUserRevoke(c, "ann", Root), ErrRoleNotGranted, 0)
		step(EncodeUserRevoke(c, "none", "r"), ErrUserNotFound, 0)
		if _, err := x.submit(EncodeEnable(c, secret[1:])); !errs.Is(err, errs.Corrupt) {
			t.Errorf("a short secret: %v", err)
		}
		step(EncodeEnable(c, secret), nil, 0)
		c = root
		step(EncodeEnable(c, make([]byte, SecretBytes)), nil, 0)
		if !bytes.Equal(x.state().Secret, secret) {
			t.Errorf("the secret changed")
		}
		step(EncodeUserDelete(c, Root), ErrInvalidChange, 0)
		step(EncodeRoleDelete(c, Root), ErrInvalidChange, 0)
		step(EncodeUserRevoke(c, Root, Root), ErrInvalidChange, 0)
		// Only root's own role is kept from going.
		step(EncodeUserGrant(c, Root, "r"), nil, 1)
		step(EncodeUserRevoke(c, Root, "r"), nil, 1)
		step(EncodeUserGrant(c, "ann", Root), nil, 1)
		step(EncodeUserRevoke(c, "ann", Root), nil, 1)
		step(EncodeRoleAdd(c, longest), nil, 1)
		step(EncodeRoleDelete(c, longest), nil, 1)
		for _, cmd := range [][]byte{EncodeRoleAdd(nobody, "s"), EncodeDisable(nobody), EncodeEnable(nobody, secret)} {
			step(cmd, ErrUserEmpty, 0)
		}
		step(EncodeRoleAdd(by("ann"), "s"), ErrPermissionDenied, 0)
		x.looks(c)
		step(EncodeDisable(c), nil, 1)
		if s := x.state(); s.Enabled || len(s.Secret) > 0 {
			t.Errorf("disabled: %+v", s)
		}
		c = nobody
		step(EncodeUserRevoke(c, Root, Root), nil, 1)
		step(EncodeEnable(c, secret), ErrRootRoleMissing, 0)
		step(EncodeRoleDelete(c, "none"), ErrRoleNotFound, 0)
		step(EncodeRoleDelete(c, "r"), nil, 1)
		if b, err := x.query(EncodeUser(c, "ann")); err != nil || b[0] != 0 {
			t.Errorf("roles after the role went: %q %v", b, err)
		}
		step(EncodeRoleDelete(c, Root), nil, 1)
		step(EncodeUserDelete(c, "none"), ErrUserNotFound, 0)
		step(EncodeUserDelete(c, Root), nil, 1)
		step(EncodeUserDelete(c, "ann"), nil, 1)
	}
}

// looks asks all that can be asked, of the users and roles of TestChanges_RulesAndRevision.
func (x *tester) looks(boss Caller) {
	t := x.t
	t.Helper()
	f := func(q []byte, want string, wantErr error, show func(b []byte) (string, error)) {
		t.Helper()
		b, err := x.query(q)
		got := ""
		if err == nil {
			got, err = show(b)
		}
		if got != want || !errors.Is(err, wantErr) {
			t.Errorf("query %d: %q %v, want %q %v", q[1], got, err, want, wantErr)
		}
	}
	list := func(b []byte) (string, error) { all, err := DecodeNames(b); return strings.Join(all, " "), err }
	perms := func(b []byte) (string, error) {
		ps, err := DecodePermissions(b)
		var out []string
		for _, p := range ps {
			out = append(out, fmt.Sprintf("%d %q %q", p.Type, p.Key, p.End))
		}
		return strings.Join(out, ", "), err
	}
	ann := by("ann")
	f(EncodeUsers(boss), "ann root", nil, list)
	f(EncodeRoles(boss), "r root", nil, list)
	f(EncodeUsers(ann), "", ErrPermissionDenied, list)
	f(EncodeRoles(nobody), "", ErrUserEmpty, list)
	f(EncodeUser(boss, "ann"), "r", nil, list)
	f(EncodeUser(boss, "none"), "", ErrUserNotFound, list)
	f(EncodeUser(ann, "ann"), "r", nil, list)
	f(EncodeUser(ann, Root), "", ErrPermissionDenied, list)
	f(EncodeUser(nobody, "ann"), "", ErrUserEmpty, list)
	f(EncodeRole(boss, "none"), "", ErrRoleNotFound, perms)
	f(EncodeRole(boss, Root), `2 "" "\x00"`, nil, perms)
	f(EncodeRole(ann, "r"), `2 "a" "\x00", 0 "a" "c"`, nil, perms)
	f(EncodeRole(ann, Root), "", ErrPermissionDenied, perms)
	f(EncodeRole(nobody, "r"), "", ErrUserEmpty, perms)
	f(EncodeDump(), "true [root ann] [r root]", nil, func(b []byte) (string, error) {
		d, err := DecodeDump(b)
		if bytes.Contains(b, secret) {
			t.Errorf("the secret is in the dump")
		}
		us, rs := []string{}, []string{}
		for i := range d.Users {
			us = append([]string{d.Users[i].Name}, us...)
		}
		for _, r := range d.Roles {
			rs = append(rs, r.Name)
		}
		return fmt.Sprint(d.Enabled, us, rs), err
	})
}

func TestBounds_RowsDoNotGrowForEver(t *testing.T) {
	x := newTester(t)
	x.do(EncodeRoleAdd(nobody, "r"))
	big := bytes.Repeat([]byte("k"), RowBytesMax/4)
	for i := range 3 {
		x.do(EncodeRoleGrant(nobody, "r", Permission{Key: append([]byte{byte(i + 1)}, big...)}))
	}
	if _, err := x.submit(EncodeRoleGrant(nobody, "r", Permission{Key: append([]byte{9}, big...)})); !errors.Is(err, ErrTooMany) {
		t.Errorf("got %v", err)
	}
}

// letters are the keys of the model: few, so that ranges meet.
const letters = "abcdef"

// TestModel compares the check of ranges with one key after the other: a range may be used if each key that there could be in it may.
func TestModel(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		// The keys that there are: letters, and letters with a zero byte.
		var keys []string
		for _, l := range letters {
			keys = append(keys, string(l), string(l)+"\x00")
		}
		keys = append(keys, "~")
		in := func(k, key, end string) bool {
			if end == "" {
				return k == key
			}
			return k >= key && (end == "\x00" || k < end)
		}
		pick := func() (key, end string) {
			key = letters[rng.IntN(len(letters)):][:1]
			switch rng.IntN(4) {
			case 0:
				return key, "\x00"
			case 1:
				return key, ""
			case 2:
				return key, key + "\x00"
			}
			return key, letters[rng.IntN(len(letters)):][:1]
		}
		x := newTester(t)
		x.enabled()
		x.do(EncodeRoleAdd(root, "s"))
		type perm struct {
			typ      Type
			key, end string
		}
		have := map[string]map[string]perm{"r": {}, "s": {}}
		holds := map[string]bool{"r": true}
		for step := range 300 {
			role := []string{"r", "s"}[rng.IntN(2)]
			switch rng.IntN(6) {
			case 0:
				key, end := pick()
				p := perm{Type(rng.IntN(3)), key, end}
				if end != "" && end != "\x00" && end <= key {
					continue
				}
				x.do(EncodeRoleGrant(root, role, Permission{p.typ, []byte(key), []byte(end)}))
				have[role][key+"|"+end] = p
			case 1:
				for id, p := range have[role] {
					x.do(EncodeRoleRevoke(root, role, []byte(p.key), []byte(p.end)))
					delete(have[role], id)
					break
				}
			case 2:
				if holds[role] {
					x.do(EncodeUserRevoke(root, "ann", role))
				} else {
					x.do(EncodeUserGrant(root, "ann", role))
				}
				holds[role] = !holds[role]
			default:
				key, end := pick()
				verb, other := "r", PermitRead
				if rng.IntN(2) == 0 {
					verb, other = "w", PermitWrite
				}
				may := func(k string) bool {
					for role, on := range holds {
						for _, p := range have[role] {
							if on && (p.typ == PermitBoth || p.typ == other) && in(k, p.key, p.end) {
								return true
							}
						}
					}
					return false
				}
				want, some := true, false
				for _, k := range keys {
					if in(k, key, end) {
						some = true
						want = want && may(k)
					}
				}
				if !some {
					want = may(key)
				}
				err := x.ask(by("ann"), verb+" "+key+" "+end)
				if got := err == nil; got != want || err != nil && !errors.Is(err, ErrPermissionDenied) {
					t.Fatalf("seed %d step %d: %s %q %q: %v, want %v with %v of %v", seed, step, verb, key, end, err, want, have, holds)
				}
			}
		}
	}
}

func TestModule_Conformance(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var steps []shardtest.Step
	add := func(cmd []byte) { steps = append(steps, shardtest.Step{After: time.Millisecond, Cmd: cmd}) }
	names := []string{Root, "ann", "bob", ""}
	add(append(AppendLoad(nil, &loaded, innerID), "fail"...))
	add(append(AppendLoad(nil, &loaded, innerID), "l k"...))
	for range 500 {
		name, role := names[rng.IntN(4)], names[rng.IntN(4)]
		c := []Caller{nobody, root, by(name), {Kind: ByCertificate, User: name}}[rng.IntN(4)]
		switch rng.IntN(13) {
		case 0:
			add(EncodeEnable(c, secret))
		case 1:
			add(EncodeDisable(c))
		case 2:
			add(EncodeUserAdd(c, NewUser{Name: name, Hash: []byte("h"), NoPassword: rng.IntN(2) == 0}))
		case 3:
			add(EncodeUserDelete(c, name))
		case 4:
			add(EncodeUserPassword(c, name, []byte("i")))
		case 5, 6:
			add(EncodeUserGrant(c, name, role))
		case 7:
			add(EncodeUserRevoke(c, name, role))
		case 8:
			add(EncodeRoleAdd(c, role))
		case 9:
			add(EncodeRoleDelete(c, role))
		case 10:
			add(EncodeRoleGrant(c, role, Permission{Type(rng.IntN(3)), []byte{'a' + byte(rng.IntN(3))}, []byte("m")}))
		case 11:
			add(EncodeRoleRevoke(c, role, []byte("a"), []byte("m")))
		default:
			add(append(AppendGuard(nil, c, innerID), []string{"l b", "r a c", "L", "fail"}[rng.IntN(4)]...))
		}
	}
	shardtest.Conformance(t, []shard.Module{New(Config{Uses: innerUses}), inner{}}, shard.ModuleAuth, steps)
}

// What is on disk and in logs must stay readable.
func TestEncodings_Golden(t *testing.T) {
	s := state{enabled: true, revision: 300, since: 2, secret: []byte("s")}
	u := user{noPassword: true, since: 2, hash: []byte("h"), roles: []string{"a", "b"}}
	p := Permission{PermitBoth, []byte("a"), []byte{0}}
	c := Caller{Kind: ByToken, User: "u", Revision: 300}
	for _, g := range []struct {
		name string
		got  []byte
		want string
	}{
		{"state", s.encode(), "0101" + "ac02" + "02" + "0173"},
		{"user key", userKey([]byte("n")), "756e"}, {"role key", roleKey([]byte("n")), "726e"},
		{"user", u.encode(), "0101" + "02" + "0168" + "02" + "0161" + "0162"},
		{"role", encodeRole([]Permission{p}), "01" + "01" + "02" + "0161" + "0100"},
		{"guard, nobody", AppendGuard(nil, nobody, 1), "010100" + "00" + "01"},
		{"guard", AppendGuard(nil, c, 1, Use{Read, []byte("a"), []byte("b")}), "010101" + "0175" + "ac02" + "01" + "01" + "0161" + "0162" + "01"},
		{"certificate", EncodeDisable(Caller{Kind: ByCertificate, User: "u"}), "010302" + "0175" + "00"},
		{"enable", EncodeEnable(nobody, []byte("s")), "010200" + "0173"},
		{"user add", EncodeUserAdd(nobody, NewUser{Name: "n", Hash: []byte("h"), NoPassword: true}), "010400" + "016e" + "01" + "0168"},
		{"user delete", EncodeUserDelete(nobody, "n"), "010500" + "016e"},
		{"password", EncodeUserPassword(nobody, "n", []byte("h")), "010600" + "016e" + "0168"},
		{"grant role", EncodeUserGrant(nobody, "n", "r"), "010700" + "016e" + "0172"},
		{"revoke role", EncodeUserRevoke(nobody, "n", "r"), "010800" + "016e" + "0172"},
		{"role add", EncodeRoleAdd(nobody, "r"), "010900" + "0172"}, {"role delete", EncodeRoleDelete(nobody, "r"), "010a00" + "0172"},
		{"grant", EncodeRoleGrant(nobody, "r", p), "010b00" + "0172" + "02" + "0161" + "0100"},
		{"revoke", EncodeRoleRevoke(nobody, "r", p.Key, p.End), "010c00" + "0172" + "0161" + "0100"},
		{"load", append(AppendLoad(nil, &Load{
			Users: []DumpUser{{NewUser{"n", []byte("h"), false}, []string{"r"}}}, Roles: []DumpRole{{"r", []Permission{p}}}, Revision: 3, Enabled: true, Secret: []byte("s"),
		}, 1), 9), "011400" + "01" + "016e" + "08" + "0100" + "01" + "0168" + "01" + "0172" + "01" + "0172" + "07" + "01" + "01" + "02" + "0161" + "0100" + "03" + "01" + "0173" + "01" + "09"},
		{"token", []byte(Token{User: "u", Revision: 300, Expires: time.Unix(1, 0)}.Sign(secret)), fmt.Sprintf("%x", "AQGsAnXKyGzuSDNc1yq0Dybqj941yK6L15cIoGPmL5R7TzeqdQ")},
	} {
		if got := fmt.Sprintf("%x", g.got); got != g.want {
			t.Errorf("%s: %s, want %s", g.name, got, g.want)
		}
	}
}

func TestToken_OnlyAsSigned(t *testing.T) {
	want := Token{User: "ann", Revision: 7, Expires: time.Unix(1_700_000_000, 0)}
	s := want.Sign(secret)
	if got, err := ParseToken(secret, s); err != nil || got != want {
		t.Errorf("got %+v %v", got, err)
	}
	other := slices.Clone(secret)
	other[0]++
	for _, c := range []struct {
		secret []byte
		s      string
	}{
		{other, s}, {nil, s}, {nil, Token{}.Sign(nil)}, {secret, ""}, {secret, "?"}, {secret, s[1:]}, {secret, s[:len(s)-2]}, {secret, s + "AAAA"}, {secret, strings.Repeat(s, 100)},
	} {
		if got, err := ParseToken(c.secret, c.s); !errors.Is(err, ErrInvalidToken) {
			t.Errorf("%q: %+v %v", c.s, got, err)
		}
	}
	for i := range s {
		b := []byte(s)
		b[i] ^= 1
		if got, err := ParseToken(secret, string(b)); err == nil && got == want && i < len(s)-1 {
			t.Errorf("bit of letter %d flipped: %+v", i, got)
		}
	}
	if long := (Token{User: strings.Repeat("x", NameBytesMax)}).Sign(secret); len(long) > tokenCharsMax {
		t.Errorf("the longest token has %d letters", len(long))
	}
}

// FuzzRequest runs what may come from anywhere, as a command and as a query. Nothing panics, and nobody is let in.
func FuzzRequest(f *testing.F) {
	p := Permission{PermitBoth, []byte("a"), []byte{0}}
	for _, b := range [][]byte{
		append(AppendGuard(nil, nobody, innerID, Use{Read, []byte("a"), nil}), "r a"...), append(AppendGuard(nil, by("ann"), innerID), "L"...),
		EncodeEnable(root, secret), EncodeDisable(root), EncodeUserAdd(root, NewUser{Name: "n"}), EncodeUserDelete(root, "ann"),
		EncodeUserPassword(root, "ann", nil), EncodeUserGrant(root, "ann", "r"), EncodeUserRevoke(root, "ann", "r"), EncodeRoleAdd(root, "s"),
		EncodeRoleDelete(root, "r"), EncodeRoleGrant(root, "r", p), EncodeRoleRevoke(root, "r", p.Key, p.End), EncodeState(), EncodeLogin("ann"), EncodeDump(),
		EncodeUser(root, "ann"), EncodeUsers(root), EncodeRole(root, "r"), EncodeRoles(root), append(AppendLoad(nil, &loaded, innerID), "l b"...),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		x := newTester(t)
		x.enabled()
		_, _ = x.query(b)
		before := x.state()
		if _, err := x.submit(b); errs.KindOf(err) == errs.Internal || err == nil && len(b) > 2 && b[2] == byte(Nobody) {
			t.Errorf("%x: %v", b, err)
		}
		if after := x.state(); after.Enabled && !bytes.Equal(before.Secret, after.Secret) {
			t.Errorf("%x changed the secret", b)
		}
	})
}

// FuzzAnswer reads answers that nobody gave, and tokens.
func FuzzAnswer(f *testing.F) {
	s := state{revision: 1}
	u := user{roles: []string{"r"}}
	f.Add(append(codec.AppendBytes(nil, s.encode()), u.encode()...))
	f.Add([]byte(Token{User: "u"}.Sign(secret)))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = DecodeState(b)
		_, _ = DecodeLogin(b)
		_, _ = DecodeNames(b)
		_, _ = DecodePermissions(b)
		_, _ = DecodeDump(b)
		_, _, _ = DecodeLoad(b)
		_, _ = ParseToken(secret, string(b))
	})
}
