package etcd

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/crypto/bcrypt"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/errs"
)

// pems returns a pair of keys as files have them.
func pems(t *testing.T, private, public any) (priv, pub []byte) {
	t.Helper()
	a, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: a}), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b})
}

func newRSA(t *testing.T) (key *rsa.PrivateKey, priv, pub []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	priv, pub = pems(t, key, key.Public())
	return key, priv, pub
}

func mustJWT(t *testing.T, method string, pub, priv []byte) *JWT {
	t.Helper()
	j, err := NewJWT(method, pub, priv)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestJWT_EachMethod(t *testing.T) {
	_, rsaPriv, rsaPub := newRSA(t)
	curve := func(c elliptic.Curve) (priv, pub []byte) {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return pems(t, key, key.Public())
	}
	p256, p256Pub := curve(elliptic.P256())
	p384, p384Pub := curve(elliptic.P384())
	p521, p521Pub := curve(elliptic.P521())
	edKey, edPriv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, edPub := pems(t, edPriv, edKey)
	secret := []byte(strings.Repeat("s", hmacKeyBytesMin))
	now := time.Unix(1_700_000_000, 0)
	for method, keys := range map[string][2][]byte{
		"RS256": {rsaPriv, rsaPub}, "RS384": {rsaPriv, rsaPub}, "RS512": {rsaPriv, rsaPub}, "PS256": {rsaPriv, rsaPub}, "PS384": {rsaPriv, rsaPub}, "PS512": {rsaPriv, rsaPub},
		"ES256": {p256, p256Pub}, "ES384": {p384, p384Pub}, "ES512": {p521, p521Pub}, "EdDSA": {ed, edPub},
		"HS256": {secret, nil}, "HS384": {secret, nil}, "HS512": {secret, nil},
	} {
		j := mustJWT(t, method, keys[1], keys[0])
		want := auth.Token{User: "ann", Revision: 9, Expires: now.Add(time.Minute)}
		s, err := j.Sign(want, "")
		if err != nil {
			t.Fatalf("%s: %v", method, err)
		}
		readers := []*JWT{j, mustJWT(t, method, nil, keys[0])}
		if keys[1] != nil {
			readers = append(readers, mustJWT(t, method, keys[1], nil))
		}
		for i, r := range readers {
			if got, err := r.Parse(s, "", now); err != nil || got.User != want.User || got.Revision != want.Revision || !got.Expires.Equal(want.Expires) {
				t.Errorf("%s, reader %d: %+v %v", method, i, got, err)
			}
			if _, err := r.Parse(s, "", now.Add(time.Minute+time.Second)); !errors.Is(err, auth.ErrInvalidToken) {
				t.Errorf("%s, reader %d, when its time has passed: %v", method, i, err)
			}
		}
	}
	otherP256, _ := curve(elliptic.P256())
	_, otherEd, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	otherEdPriv, _ := pems(t, otherEd, otherEd.Public())
	for method, keys := range map[string][2][]byte{"ES256": {otherP256, p256Pub}, "EdDSA": {otherEdPriv, edPub}} {
		if _, err := NewJWT(method, keys[1], keys[0]); err == nil || !strings.Contains(err.Error(), "the public key is not that of the private key") {
			t.Errorf("%s, keys of two pairs: %v", method, err)
		}
	}
	_, other, otherPub := newRSA(t)
	// Go makes no key so small, and takes none for a signature.
	_, small := pems(t, edPriv, &rsa.PublicKey{N: new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 512), big.NewInt(569)), E: 65537})
	for want, keys := range map[string]struct {
		method    string
		pub, priv []byte
	}{
		`signing method "none"`:                               {"none", rsaPub, rsaPriv},
		`signing method "RS1"`:                                {"RS1", rsaPub, rsaPriv},
		`signing method "" is not`:                            {"", rsaPub, rsaPriv},
		"there is no key":                                     {"RS256", nil, nil},
		"the public key is not that of the private key":       {"RS256", otherPub, rsaPriv},
		"the private key is not one of RS256":                 {"RS256", nil, p256},
		"the public key is not one of ES256 in PEM form":      {"ES256", rsaPub, nil},
		"the private key is not one of EdDSA":                 {"EdDSA", nil, other},
		"the private key cannot sign with ES384":              {"ES384", nil, p256},
		"the public key of 512 bits cannot be used for RS256": {"RS256", small, nil},
		"the public key of 512 bits cannot be used for PS512": {"PS512", small, nil},
		"curve has 384 bits, and ES256 needs 256":             {"ES256", p384Pub, nil},
		"has 5 bytes; it needs 32":                            {"HS256", nil, []byte("short")},
	} {
		if _, err := NewJWT(keys.method, keys.pub, keys.priv); err == nil || !strings.Contains(err.Error(), want) || errs.KindOf(err) != errs.Invalid {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// signedBy makes a token of any claims.
func signedBy(t *testing.T, m jwt.SigningMethod, key any, c jwt.MapClaims) string {
	t.Helper()
	s, err := jwt.NewWithClaims(m, c).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestJWT_OnlyItsMethodItsKeyAndWholeClaims(t *testing.T) {
	key, priv, pub := newRSA(t)
	stranger, _, _ := newRSA(t)
	now := time.Unix(1_700_000_000, 0)
	j := mustJWT(t, "RS256", pub, priv)
	good := func() jwt.MapClaims {
		return jwt.MapClaims{"username": "ann", "revision": 3, "exp": now.Unix() + 60}
	}
	with := func(name string, v any) jwt.MapClaims {
		c := good()
		if c[name] = v; v == nil {
			delete(c, name)
		}
		return c
	}
	rs := jwt.SigningMethodRS256
	for what, token := range map[string]string{
		"signed with none":                     signedBy(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, good()),
		"signed with the public key as HMAC's": signedBy(t, jwt.SigningMethodHS256, pub, good()),
		"another method with the same key":     signedBy(t, jwt.SigningMethodRS512, key, good()),
		"another padding":                      signedBy(t, jwt.SigningMethodPS256, key, good()),
		"another key":                          signedBy(t, rs, stranger, good()),
		"no user":                              signedBy(t, rs, key, with("username", nil)),
		"an empty user":                        signedBy(t, rs, key, with("username", "")),
		"a user that is a number":              signedBy(t, rs, key, with("username", 7)),
		"no revision":                          signedBy(t, rs, key, with("revision", nil)),
		"a revision in letters":                signedBy(t, rs, key, with("revision", "3")),
		"a negative revision":                  signedBy(t, rs, key, with("revision", -1)),
		"half a revision":                      signedBy(t, rs, key, with("revision", 2.5)),
		"a revision past what is exact":        signedBy(t, rs, key, with("revision", 1e19)),
		"a time that has passed":               signedBy(t, rs, key, with("exp", now.Unix()-1)),
		"a time in letters":                    signedBy(t, rs, key, with("exp", "tomorrow")),
		"not yet":                              signedBy(t, rs, key, with("nbf", now.Unix()+10)),
		"nothing":                              "",
		"no token":                             "a.b.c",
		"a user of a space":                    signedBy(t, rs, key, with("space", "shop")),
	} {
		if got, err := j.Parse(token, "", now); !errors.Is(err, auth.ErrInvalidToken) {
			t.Errorf("%s: %+v %v", what, got, err)
		}
	}
	if got, err := j.Parse(signedBy(t, rs, key, with("exp", nil)), "", now); err != nil || got.User != "ann" || got.Revision != 3 {
		t.Errorf("without a time: %+v %v", got, err)
	}
	// A user of one space is nobody in another, though they have the same keys.
	for space, ok := range map[string]bool{"shop": true, "depot": false, "": false} {
		if _, err := j.Parse(signedBy(t, rs, key, with("space", "shop")), space, now); (err == nil) != ok {
			t.Errorf("in space %q: %v", space, err)
		}
	}
	if _, err := j.Parse(signedBy(t, rs, key, good()), "shop", now); !errors.Is(err, auth.ErrInvalidToken) {
		t.Errorf("a user of the default space in another: %v", err)
	}
}

func TestAuth_JSONWebTokens(t *testing.T) {
	key, priv, pub := newRSA(t)
	a := &authRig{rig: newRig(t, Config{BcryptCost: bcrypt.MinCost, JWT: mustJWT(t, "RS256", pub, priv)})}
	a.a = pb.NewAuthClient(a.conn)
	a.enable("rw a-c")
	put := func(ctx context.Context) error {
		_, err := a.kv.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("x")})
		return err
	}
	if err := put(a.ann); err != nil {
		t.Errorf("after a login: %v", err)
	}
	st, err := a.a.AuthStatus(a.root, &pb.AuthStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	foreign := func(user string, rev uint64, ttl time.Duration) context.Context {
		return withToken(a.ctx(), signedBy(t, jwt.SigningMethodRS256, key, jwt.MapClaims{"username": user, "revision": rev, "exp": time.Now().Add(ttl).Unix()}))
	}
	secret, err := a.s.rights.load(a.ctx(), false)
	if err != nil {
		t.Fatal(err)
	}
	simple := auth.Token{User: "root", Revision: st.AuthRevision, Expires: time.Now().Add(time.Hour)}
	for i, c := range []struct {
		ctx  context.Context
		want error
	}{
		{foreign("ann", st.AuthRevision, time.Minute), nil},
		{foreign("ann", 0, time.Minute), rpctypes.ErrGRPCInvalidAuthToken},
		{foreign("ben", st.AuthRevision, time.Minute), rpctypes.ErrGRPCInvalidAuthToken},
		{foreign("ann", st.AuthRevision, -time.Minute), rpctypes.ErrGRPCInvalidAuthToken},
		{withToken(a.ctx(), simple.Sign(secret.Secret)), rpctypes.ErrGRPCInvalidAuthToken},
	} {
		if err := put(c.ctx); !same(err, c.want) {
			t.Errorf("%d: %v, want %v", i, err, c.want)
		}
	}
	a.must(a.a.UserChangePassword(a.root, &pb.AuthUserChangePasswordRequest{Name: "ann", Password: "new"}))
	if err := put(a.ann); !same(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("a token from before the password was changed: %v", err)
	}
}

func TestAuth_JSONWebTokensWithoutAPrivateKey(t *testing.T) {
	key, _, pub := newRSA(t)
	a := &authRig{rig: newRig(t, Config{BcryptCost: bcrypt.MinCost, JWT: mustJWT(t, "RS256", pub, nil)})}
	a.a = pb.NewAuthClient(a.conn)
	ctx := a.ctx()
	a.must(a.a.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "root", Password: "root's"}))
	a.must(a.a.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}))
	a.must(a.a.AuthEnable(ctx, &pb.AuthEnableRequest{}))
	if _, err := a.a.Authenticate(ctx, &pb.AuthenticateRequest{Name: "root", Password: "root's"}); !same(err, errVerifyOnly) {
		t.Errorf("login: %v", err)
	}
	token := signedBy(t, jwt.SigningMethodRS256, key, jwt.MapClaims{"username": "root", "revision": 100, "exp": time.Now().Add(time.Minute).Unix()})
	if _, err := a.kv.Put(withToken(ctx, token), &pb.PutRequest{Key: []byte("a")}); err != nil {
		t.Errorf("with a token from elsewhere: %v", err)
	}
}
