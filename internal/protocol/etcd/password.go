package etcd

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/crypto/bcrypt"
)

// passwords makes and compares hashes. That takes much processor time on purpose, so that only a few are computed at once, and half of the
// processors stay free for all else.
type passwords struct {
	cost int
	// nobodys is a hash that no password is known to have.
	nobodys []byte
	slots   chan struct{}
	waiting atomic.Int64
}

// waitingMax bounds the requests that wait for a hash; more are told to come back later.
const waitingMax = 256

// costGivenMax bounds the cost of a hash that a client has made: a comparison takes 2^cost steps, here 65,536, which is a few seconds.
const costGivenMax = 16

func newPasswords(cost int) *passwords {
	// Its form is all that matters: version, cost, 22 characters of salt and 31 of the rest.
	nobodys := fmt.Sprintf("$2a$%02d$%s", cost, strings.Repeat(".", 22+31))
	return &passwords{cost: cost, nobodys: []byte(nobodys), slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
}

// enter waits for a slot.
func (p *passwords) enter(ctx context.Context) error {
	if p.waiting.Add(1) > waitingMax {
		p.waiting.Add(-1)
		return rpctypes.ErrGRPCRequestTooManyRequests
	}
	defer p.waiting.Add(-1)
	select {
	case p.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hash returns the hash of a password. It fails with bcrypt.ErrPasswordTooLong for one of more than 72 bytes.
func (p *passwords) hash(ctx context.Context, password string) ([]byte, error) {
	if err := p.enter(ctx); err != nil {
		return nil, err
	}
	defer func() { <-p.slots }()
	return bcrypt.GenerateFromPassword([]byte(password), p.cost)
}

// matches says whether a password has a hash. What is no hash, such as that of a user whom there is not, has none, but to say so takes as long:
// strangers are not to learn who is a user.
func (p *passwords) matches(ctx context.Context, hash []byte, password string) (bool, error) {
	if err := p.enter(ctx); err != nil {
		return false, err
	}
	defer func() { <-p.slots }()
	_, err := bcrypt.Cost(hash)
	known := err == nil
	if !known {
		hash = p.nobodys
	}
	return bcrypt.CompareHashAndPassword(hash, []byte(password)) == nil && known, nil
}

// given checks a hash that a client has made.
func given(hash []byte) error {
	cost, err := bcrypt.Cost(hash)
	if err == nil && cost > costGivenMax {
		err = errors.New("its cost is too high")
	}
	return err
}
