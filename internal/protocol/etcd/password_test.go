package etcd

import (
	"errors"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/crypto/bcrypt"
)

// That a name is no user's must not show in how long the answer takes: a password is compared all the same.
func TestAuthenticate_UnknownUsersCostWhatOthersDo(t *testing.T) {
	r := newAuthRig(t)
	r.enable()
	login := func(user string) error {
		_, err := r.a.Authenticate(r.ctx(), &pb.AuthenticateRequest{Name: user, Password: "wrong"})
		return err
	}
	for _, user := range []string{"ann", "nobody"} {
		if err := login(user); !same(err, rpctypes.ErrGRPCAuthFailed) {
			t.Errorf("%s: %v", user, err)
		}
	}
	// Who does not wait for a comparison does not notice that too many do.
	r.s.passwords.waiting.Store(waitingMax)
	for _, user := range []string{"ann", "nobody"} {
		if err := login(user); !same(err, rpctypes.ErrGRPCRequestTooManyRequests) {
			t.Errorf("%s is answered without a comparison: %v", user, err)
		}
	}
	r.s.passwords.waiting.Store(0)
	for _, cost := range []int{bcrypt.MinCost, 10} {
		p := newPasswords(cost)
		if got, err := bcrypt.Cost(p.nobodys); err != nil || got != cost {
			t.Errorf("the hash of nobody has cost %d, %v; want %d", got, err, cost)
		}
		if err := bcrypt.CompareHashAndPassword(p.nobodys, []byte("x")); !errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) {
			t.Errorf("a comparison with the hash of nobody: %v", err)
		}
	}
}
