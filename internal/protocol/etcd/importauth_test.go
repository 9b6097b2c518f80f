package etcd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/errs"
)

func (r *rig) rightsDump() auth.Dump {
	r.t.Helper()
	b, err := r.s.askAuth(r.ctx(), auth.EncodeDump())
	var d auth.Dump
	if err == nil {
		d, err = auth.DecodeDump(b)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

// loadTwice sends each part as somebody does who got no answer the first time.
func (r *rig) loadTwice(p *Part) error {
	if err := r.s.Load(r.ctx(), p.Encode()); err != nil {
		return err
	}
	return r.s.Load(r.ctx(), p.Encode())
}

func TestImport_UsersAndRoles(t *testing.T) {
	from, to := newAuthRig(t), newAuthRig(t)
	from.enable("rw a-c", "r k", "w "+string([]byte{0})+"-"+string([]byte{0}))
	from.must(from.a.UserAdd(from.root, &pb.AuthUserAddRequest{Name: "cert", Options: &authpb.UserAddOptions{NoPassword: true}}))
	// More than fits into one part.
	for i := range 3 {
		role := fmt.Sprint("big", i)
		from.must(from.a.RoleAdd(from.root, &pb.AuthRoleAddRequest{Name: role}))
		for j := range 30 {
			perm := &authpb.Permission{Key: append(fmt.Appendf(nil, "%02d", j), bytes.Repeat([]byte("x"), 10_000)...)}
			from.must(from.a.RoleGrantPermission(from.root, &pb.AuthRoleGrantPermissionRequest{Name: role, Perm: perm}))
		}
	}
	from.must(from.kv.Put(from.root, &pb.PutRequest{Key: []byte("a"), Value: []byte("1")}))
	file := from.savedAs(from.root)
	rights := 0
	found, err := ReadSnapshot(file, func(p *Part) error {
		if !p.Rights.Empty() {
			rights++
		}
		if n := len(p.Encode()); n > 2*loadBytes {
			t.Errorf("a part of %d bytes", n)
		}
		if p.Keys.Revision == 0 {
			// Nothing is enabled before all is there.
			if st, err := to.s.rights.load(to.ctx(), false); err != nil || st.Enabled {
				t.Errorf("%+v %v", st, err)
			}
		}
		return to.loadTwice(p)
	})
	if want := (Snapshot{Revision: 2, Keys: 1, Users: 3, Roles: 4, AuthEnabled: true}); err != nil || found != want || rights < 3 {
		t.Fatalf("%+v, %d parts with rights, %v; want %+v", found, rights, err, want)
	}
	if got, want := fmt.Sprint(to.rightsDump()), fmt.Sprint(from.rightsDump()); got != want {
		t.Errorf("got %.2000s, want %.2000s", got, want)
	}
	if _, err := to.kv.Range(to.ctx(), &pb.RangeRequest{Key: []byte("a")}); !same(err, rpctypes.ErrGRPCUserEmpty) {
		t.Errorf("nobody: %v", err)
	}
	if _, err := to.kv.Range(withToken(to.ctx(), "x"), &pb.RangeRequest{Key: []byte("a")}); !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("rubbish: %v", err)
	}
	// Tokens are not brought along.
	if _, err := to.kv.Range(from.ann, &pb.RangeRequest{Key: []byte("a")}); !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("a token of where it comes from: %v", err)
	}
	ann := to.login("ann", "ann's")
	if a, err := to.kv.Range(ann, &pb.RangeRequest{Key: []byte("a")}); err != nil || a.Count != 1 {
		t.Errorf("ann: %v %v", a, err)
	}
	if _, err := to.a.Authenticate(to.ctx(), &pb.AuthenticateRequest{Name: "ann", Password: "root's"}); !same(err, rpctypes.ErrGRPCAuthFailed) {
		t.Errorf("a wrong password: %v", err)
	}
	if _, err := to.kv.Compact(ann, &pb.CompactionRequest{Revision: 2}); !same(err, rpctypes.ErrGRPCPermissionDenied) {
		t.Errorf("ann compacts: %v", err)
	}
	to.must(to.a.UserAdd(to.login("root", "root's"), &pb.AuthUserAddRequest{Name: "new", Password: "x"}))
	if got, want := to.rightsDump().Revision, from.rightsDump().Revision+1; got != want {
		t.Errorf("auth revision %d, want %d", got, want)
	}
}

func TestImport_UsersWhereThereAreSome(t *testing.T) {
	from, to := newAuthRig(t), newAuthRig(t)
	from.enable()
	file := from.savedAs(from.root)
	to.must(to.a.UserAdd(to.ctx(), &pb.AuthUserAddRequest{Name: "mine", Password: "x"}))
	if _, err := ReadSnapshot(file, to.loadTwice); !errors.Is(err, auth.ErrNotNew) {
		t.Errorf("where there is a user: %v", err)
	}
	if now, err := to.s.status(to.ctx(), false); err != nil || now.Revision != 1 || len(to.rightsDump().Users) != 1 {
		t.Errorf("left behind: %+v %v %+v", now, err, to.rightsDump())
	}
	// Without users in the file those that are here stay, and are what they were.
	plain := newRig(t, Config{})
	plain.put("a", "1")
	found, err := ReadSnapshot(plain.saved(), to.loadTwice)
	if err != nil || found.Keys != 1 || len(to.rightsDump().Users) != 1 {
		t.Errorf("%+v %v", found, err)
	}
	// A space's users have names of which nobody else's begin.
	other := newRig(t, Config{})
	other.s.cfg.Users = map[string]*Server{"ann": other.s, "billing": other.s}
	u := auth.DumpUser{NewUser: auth.NewUser{Name: "billing/ann"}}
	err = other.s.Load(other.ctx(), (&Part{Rights: auth.Load{Users: []auth.DumpUser{u}}}).Encode())
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), `user "billing/ann" cannot be loaded`) {
		t.Errorf("a name of another space's: %v", err)
	}
	b := auth.AppendLoad(nil, &auth.Load{}, 99)
	if err := other.s.Load(other.ctx(), b); !errs.Is(err, errs.Invalid) {
		t.Errorf("into a model that is not there: %v", err)
	}
}

// Users while authentication is not enabled, and permissions as etcd can have them.
func TestImport_NotEnabled(t *testing.T) {
	from, to := newAuthRig(t), newAuthRig(t)
	from.must(from.a.UserAdd(from.ctx(), &pb.AuthUserAddRequest{Name: "ann", Password: "ann's"}))
	from.must(from.a.RoleAdd(from.ctx(), &pb.AuthRoleAddRequest{Name: "r"}))
	file := changed(t, from.saved(), func(tx *bbolt.Tx) error {
		p := func(typ authpb.Permission_Type, key, end string) *authpb.Permission {
			return &authpb.Permission{PermType: typ, Key: []byte(key), RangeEnd: []byte(end)}
		}
		role := &authpb.Role{Name: []byte("r"), KeyPermission: []*authpb.Permission{
			p(authpb.Permission_READ, "a", "c"), p(authpb.Permission_READ, "a", "b"), p(authpb.Permission_WRITE, "a", "c"), p(authpb.Permission_READ, "a", "b"),
		}}
		user := &authpb.User{Name: []byte("ann"), Roles: []string{"r", "q", "r"}}
		return errors.Join(tx.Bucket(bucketRoles).Put([]byte("r"), marshal(t, role)), tx.Bucket(bucketUsers).Put([]byte("ann"), marshal(t, user)))
	})
	if found, err := ReadSnapshot(file, to.loadTwice); err != nil || found.Users != 1 || found.Roles != 1 || found.AuthEnabled {
		t.Fatalf("%+v %v", found, err)
	}
	d := to.rightsDump()
	want := []auth.Permission{{Type: auth.PermitRead, Key: []byte("a"), End: []byte("b")}, {Type: auth.PermitBoth, Key: []byte("a"), End: []byte("c")}}
	if d.Enabled || d.Revision != 3 || fmt.Sprint(d.Users[0].Roles) != "[q r]" || fmt.Sprint(d.Roles[0].Permissions) != fmt.Sprint(want) {
		t.Errorf("got %+v", d)
	}
	if rev := to.put("a", "1"); rev != 2 {
		t.Errorf("put at revision %d", rev)
	}
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// changed makes another file of a snapshot, without its checksum, as a stopped member has one.
func changed(t *testing.T, file string, f func(*bbolt.Tx) error) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(name, b[:len(b)-len(b)%512], 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(name, 0o600, nil)
	if err == nil {
		err = errors.Join(db.Update(f), db.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// What cannot be read, or not be loaded, is named before anything is written.
func TestImport_BadRights(t *testing.T) {
	r := newAuthRig(t)
	r.enable("rw a-c")
	file := r.savedAs(r.root)
	user := func(name string, u *authpb.User, more ...byte) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketUsers).Put([]byte(name), append(marshal(t, u), more...))
		}
	}
	role := func(name string, p *authpb.Permission, more ...byte) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error {
			m := &authpb.Role{Name: []byte("r"), KeyPermission: []*authpb.Permission{p}}
			return tx.Bucket(bucketRoles).Put([]byte(name), append(marshal(t, m), more...))
		}
	}
	state := func(k, v string) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error { return tx.Bucket(bucketAuth).Put([]byte(k), []byte(v)) }
	}
	later := protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1)
	p := &authpb.Permission{Key: []byte("a")}
	inner := &authpb.Permission{Key: []byte("a")}
	inner.ProtoReflect().SetUnknown(later)
	for want, f := range map[string]func(*bbolt.Tx) error{
		`user "u" that cannot be read`:                 func(tx *bbolt.Tx) error { return tx.Bucket(bucketUsers).Put([]byte("u"), []byte{0xff}) },
		`role "r" that cannot be read`:                 func(tx *bbolt.Tx) error { return tx.Bucket(bucketRoles).Put([]byte("r"), []byte{0xff}) },
		`is where there is none, a bucket`:             func(tx *bbolt.Tx) error { _, err := tx.Bucket(bucketUsers).CreateBucket([]byte("v")); return err },
		`user "w" under the name "u"`:                  user("u", &authpb.User{Name: []byte("w")}),
		`role "r" under the name "q"`:                  role("q", p),
		`user "u" of a later release`:                  user("u", &authpb.User{Name: []byte("u")}, later...),
		`role "r" of a later release`:                  role("r", p, later...),
		`role "r" of a later release of`:               role("r", inner),
		`the type 7`:                                   role("r", &authpb.Permission{PermType: 7, Key: []byte("a")}),
		`role "r" has a permission of type 0`:          role("r", &authpb.Permission{Key: []byte("b"), RangeEnd: []byte("a")}),
		`role "r" has a permission of type 0 for`:      role("r", &authpb.Permission{}),
		`user "u" has a password hash of 200 bytes`:    user("u", &authpb.User{Name: []byte("u"), Password: make([]byte, 200)}),
		`the roles of user "u" take more`:              user("u", &authpb.User{Name: []byte("u"), Roles: []string{strings.Repeat("x", auth.RowBytesMax)}}),
		`a user's name "xxx`:                           user(strings.Repeat("x", 2000), &authpb.User{Name: bytes.Repeat([]byte("x"), 2000)}),
		`"authEnabled" = 0x02`:                         state("authEnabled", "\x02"),
		`"authEnabled" = 0x in`:                        state("authEnabled", ""),
		`"authRevision" = 0x01`:                        state("authRevision", "\x01"),
		`"authLater" = 0x31`:                           state("authLater", "1"),
		"at auth revision 1, where there are none":     state("authRevision", "\x00\x00\x00\x00\x00\x00\x00\x01"),
		"cannot be loaded at revision 184467440737095": state("authRevision", "\xff\xff\xff\xff\xff\xff\xff\xff"),
		"no key authRevision":                          func(tx *bbolt.Tx) error { return tx.Bucket(bucketAuth).Delete([]byte("authRevision")) },
		"no user root with the role root":              func(tx *bbolt.Tx) error { return tx.Bucket(bucketUsers).Delete([]byte("root")) },
		"no user root with the role":                   user("root", &authpb.User{Name: []byte("root"), Roles: []string{"r"}}),
	} {
		found, err := ReadSnapshot(changed(t, file, f), func(*Part) error { t.Errorf("%s: a part came", want); return nil })
		if k := errs.KindOf(err); err == nil || k == errs.Internal || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v %v, want %q", found, err, want)
		}
	}
}
