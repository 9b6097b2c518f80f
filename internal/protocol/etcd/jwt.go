package etcd

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"math"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/errs"
)

// JWT makes and reads tokens that are JSON web tokens (RFC 7519) with etcd's claims: username, revision and exp. Nodes with the same keys accept
// each other's, and those that somebody else signs. Make it with NewJWT.
type JWT struct {
	method jwt.SigningMethod
	// sign is nil if there is only a public key.
	sign, verify any
}

// hmacKeyBytesMin is RFC 7518's, section 3.2, for the shortest hash: with less, whoever sees a token can look for the key.
const hmacKeyBytesMin = 32

// errVerifyOnly is what a login gets where there is only a public key, in etcd's words.
var errVerifyOnly = status.Error(codes.Unknown, "auth: token signing attempted with verify-only key")

// NewJWT returns what makes tokens by a method of RFC 7518 or 8037, of those that etcd knows: RS, PS, ES or HS with 256, 384 or 512, or EdDSA. The keys are
// PEM, the public one or a certificate with it; for HS the private key is the secret as it is, at least 32 bytes. One of the two keys will do: with the public one
// alone tokens can be read only. It fails with errs.Invalid.
func NewJWT(method string, public, private []byte) (*JWT, error) {
	j := &JWT{method: jwt.GetSigningMethod(method)}
	var err error
	switch j.method.(type) {
	case *jwt.SigningMethodRSA, *jwt.SigningMethodRSAPSS:
		err = keysOf(j, public, private, jwt.ParseRSAPublicKeyFromPEM, jwt.ParseRSAPrivateKeyFromPEM)
	case *jwt.SigningMethodECDSA:
		err = keysOf(j, public, private, jwt.ParseECPublicKeyFromPEM, jwt.ParseECPrivateKeyFromPEM)
	case *jwt.SigningMethodEd25519:
		err = keysOf(j, public, private, jwt.ParseEdPublicKeyFromPEM, jwt.ParseEdPrivateKeyFromPEM)
	case *jwt.SigningMethodHMAC:
		if len(private) < hmacKeyBytesMin {
			err = errs.New(errs.Invalid, "the private key, which is the secret of %s, has %d bytes; it needs %d", method, len(private), hmacKeyBytesMin)
		}
		j.sign, j.verify = bytes.Clone(private), bytes.Clone(private)
	default:
		// "none" is one of those that the library knows.
		err = errs.New(errs.Invalid, "signing method %q is not one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA, HS256, HS384, HS512", method)
	}
	if err != nil {
		return nil, err
	}
	// A key of another curve or size shows when it is used: here, rather than at the first login.
	if j.sign != nil {
		if _, err := j.Sign(auth.Token{}, ""); err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "the private key cannot sign with %s", method)
		}
		return j, nil
	}
	switch k := j.verify.(type) {
	case *rsa.PublicKey:
		// What this signature is said to be is either wrong, or not looked at for what is wrong with the key.
		if err := rsa.VerifyPKCS1v15(k, crypto.SHA256, make([]byte, crypto.SHA256.Size()), make([]byte, k.Size())); !errors.Is(err, rsa.ErrVerification) {
			return nil, errs.New(errs.Invalid, "the public key of %d bits cannot be used for %s: %v", k.N.BitLen(), method, err)
		}
	case *ecdsa.PublicKey:
		if m, ok := j.method.(*jwt.SigningMethodECDSA); ok && k.Curve.Params().BitSize != m.CurveBits {
			return nil, errs.New(errs.Invalid, "the public key's curve has %d bits, and %s needs %d", k.Curve.Params().BitSize, method, m.CurveBits)
		}
	}
	return j, nil
}

// keysOf reads the keys of a JWT.
func keysOf[Public, Private any](j *JWT, public, private []byte, readPublic func([]byte) (Public, error), readPrivate func([]byte) (Private, error)) error {
	if len(public) == 0 && len(private) == 0 {
		return errs.New(errs.Invalid, "there is no key; give the public or the private key, or both")
	}
	if len(private) > 0 {
		k, err := readPrivate(private)
		if err != nil {
			return errs.Wrap(errs.Invalid, err, "the private key is not one of %s in PEM form", j.method.Alg())
		}
		s, ok := any(k).(crypto.Signer)
		if !ok {
			return errs.New(errs.Invalid, "the private key is not one of %s", j.method.Alg())
		}
		j.sign, j.verify = k, s.Public()
	}
	if len(public) == 0 {
		return nil
	}
	k, err := readPublic(public)
	if err != nil {
		return errs.Wrap(errs.Invalid, err, "the public key is not one of %s in PEM form", j.method.Alg())
	}
	if j.verify == nil {
		j.verify = k
	} else if !equalKeys(j.verify, k) {
		return errs.New(errs.Invalid, "the public key is not that of the private key")
	}
	return nil
}

func equalKeys(a, b crypto.PublicKey) bool {
	switch a := a.(type) {
	case *rsa.PublicKey:
		return a.Equal(b)
	case *ecdsa.PublicKey:
		return a.Equal(b)
	case ed25519.PublicKey:
		return a.Equal(b)
	}
	return false
}

// claims are etcd's, but for Space. Revision is a number of JSON, and must be whole. Space is the key space whose user it is, nothing for the default one: all spaces
// have the same keys, and users of one name are not the same.
type claims struct {
	jwt.RegisteredClaims
	Username string   `json:"username"`
	Revision *float64 `json:"revision"`
	Space    string   `json:"space,omitempty"`
}

// Sign writes a token for a user of a space, "" for the default one. It fails with errVerifyOnly if there is no private key.
func (j *JWT) Sign(t auth.Token, space string) (string, error) {
	if j.sign == nil {
		return "", errVerifyOnly
	}
	rev := float64(t.Revision)
	c := claims{RegisteredClaims: jwt.RegisteredClaims{ExpiresAt: jwt.NewNumericDate(t.Expires)}, Username: t.User, Revision: &rev, Space: space}
	s, err := jwt.NewWithClaims(j.method, c).SignedString(j.sign)
	return s, errs.Wrap(errs.Internal, err, "sign a token")
}

// revisionMax is the last number below which JSON's numbers are exact.
const revisionMax = 1 << 53

// Parse reads a token. It fails with auth.ErrInvalidToken unless it was signed by the one method with the key for a user of the space, and its time has not passed now. One
// that says nothing of a time has none, as in etcd.
func (j *JWT) Parse(token, space string, now time.Time) (auth.Token, error) {
	var c claims
	p := jwt.NewParser(jwt.WithValidMethods([]string{j.method.Alg()}), jwt.WithTimeFunc(func() time.Time { return now }))
	_, err := p.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return j.verify, nil })
	if err != nil || c.Username == "" || c.Revision == nil || c.Space != space {
		return auth.Token{}, auth.ErrInvalidToken
	}
	rev := *c.Revision
	if rev < 0 || rev > revisionMax || rev != math.Trunc(rev) {
		return auth.Token{}, auth.ErrInvalidToken
	}
	t := auth.Token{User: c.Username, Revision: uint64(rev)}
	if c.ExpiresAt != nil {
		t.Expires = c.ExpiresAt.Time
	}
	return t, nil
}

// claim is what tokens say of the server's space.
func (s *Server) claim() string {
	if s.main() {
		return ""
	}
	return s.cfg.Space
}

// token makes a token for who has logged in.
func (s *Server) token(t auth.Token, secret []byte) (string, error) {
	if s.cfg.JWT != nil {
		return s.cfg.JWT.Sign(t, s.claim())
	}
	return t.Sign(secret), nil
}

// claimed reads a token that came over a connection. A JSON web token ends when it says; others go on while they are used.
func (s *Server) claimed(p *connected, token string, secret []byte) (auth.Token, error) {
	if s.cfg.JWT != nil {
		return s.cfg.JWT.Parse(token, s.claim(), s.client.Now())
	}
	t, err := auth.ParseToken(secret, token)
	if err == nil && !p.fresh(token, t.Expires, s.client.Now(), s.cfg.AuthTokenTTL) {
		err = auth.ErrInvalidToken
	}
	return t, err
}
