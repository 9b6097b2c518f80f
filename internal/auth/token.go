package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"

	"github.com/quorate/quorate/internal/codec"
)

const (
	// SecretBytes is the length of the secret that signs tokens.
	SecretBytes  = 32
	tokenVersion = 1
	// tokenCharsMax bounds a token: the longest name, and the rest.
	tokenCharsMax = (NameBytesMax+64)*4/3 + 4
)

// Token says that a user has shown its password. Only a node that has the secret can make one; all of them accept it.
type Token struct {
	User string
	// Revision is the auth revision at which the password was compared.
	Revision uint64
	// Expires is kept in whole seconds.
	Expires time.Time
}

// Sign writes a token in letters that may stand in a header. It holds version(1), expiry in Unix seconds and revision (uvarints), user, and the
// HMAC-SHA256 of all that.
func (t Token) Sign(secret []byte) string {
	b := binary.AppendUvarint([]byte{tokenVersion}, uint64(t.Expires.Unix()))
	b = append(binary.AppendUvarint(b, t.Revision), t.User...)
	return base64.RawURLEncoding.EncodeToString(append(b, sign(secret, b)...))
}

func sign(secret, b []byte) []byte {
	h := hmac.New(sha256.New, secret)
	_, _ = h.Write(b)
	return h.Sum(nil)
}

// ParseToken reads a token. It fails with ErrInvalidToken unless it was signed with this secret. It does not look whether it has expired.
func ParseToken(secret []byte, s string) (Token, error) {
	if len(secret) != SecretBytes || len(s) > tokenCharsMax {
		return Token{}, ErrInvalidToken
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) < sha256.Size {
		return Token{}, ErrInvalidToken
	}
	b, mac := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if !hmac.Equal(mac, sign(secret, b)) {
		return Token{}, ErrInvalidToken
	}
	d := decoder{codec.Read(b)}
	version, at, rev := d.Byte(), d.Uvarint(), d.Uvarint()
	if d.Bad() || version != tokenVersion {
		return Token{}, ErrInvalidToken
	}
	return Token{User: string(d.Rest()), Revision: rev, Expires: time.Unix(int64(at), 0)}, nil
}
