// Package coord makes locks and elections of keys: whoever's key under a prefix was created first has it, each other waits for
// the one before its own. It is the algorithm of etcd's package concurrency, with the same keys, so that clients which bring their own
// and clients of these calls take part in the same elections. Beside them there are sessions, which keep a lease alive, semaphores, barriers,
// latches, and a registry of services; where etcd has a layout of keys for such a thing, it is that one.
//
// The revision in which a holder's key was created is its fencing token: it rises from holder to holder. A write that is
// conditional on the key's creation revision is refused once the lock is lost; so is one of another protocol that names the token, see
// package kv.
//
// All state is in keys that hang on leases. A holder that stops renewing its lease loses what it holds.
package coord

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
)

// The errors that a caller tells from each other.
var (
	// ErrNotLeader: the election was lost, since the key of the holder is gone.
	ErrNotLeader = errs.New(errs.Fenced, "this candidate does not lead the election any more")
	// ErrNoLeader: nobody leads.
	ErrNoLeader = errs.New(errs.NotFound, "nobody leads the election")
	// ErrLeaseOver: the lease ended while its key waited.
	ErrLeaseOver = errs.New(errs.Fenced, "the lease ended before its key came first")
)

// leaseTTL is that of a lease which is made for a caller without one, in seconds, as in etcd.
const leaseTTL = 60

// cleanUp bounds the time in which a candidate that gives up removes its key.
const cleanUp = 5 * time.Second

// Client does what the package comment says for one key space. Its methods may be called from any goroutine. They return kv's errors, and
// those of shard.Client.
type Client struct {
	shard shard.Client
	route func() (shard.Route, error)
}

// New returns a client of the key space to which route leads.
func New(c shard.Client, route func() (shard.Route, error)) *Client { return &Client{c, route} }

// Claim is a key that holds, or waits for, a lock or an election.
type Claim struct {
	// Name is that of the election.
	Name []byte
	Key  []byte
	// Token is the key's creation revision: the fencing token.
	Token int64
	Lease int64
	// Revision is the key space's when the claim was made, or last changed.
	Revision int64
	// made says that the call which returns the claim has made its key, granted that it has made the lease, too.
	made, granted bool
}

// Do runs an operation on the key space.
func (c *Client) Do(ctx context.Context, o kv.Op) (kv.Answer, error) {
	r, err := c.route()
	if err != nil {
		return kv.Answer{}, err
	}
	cmd := shard.Command{Module: shard.ModuleKV, Data: kv.EncodeOp(o)}
	var b []byte
	if kv.ReadOnly(o) {
		b, err = c.shard.Query(ctx, r, shard.Linearizable, cmd)
	} else {
		res := c.shard.Submit(ctx, r, cmd).Wait(ctx)
		b, err = res.Data, res.Err
	}
	if err != nil {
		return kv.Answer{}, err
	}
	return kv.DecodeAnswer(b)
}

// NewLease draws the id of a lease, which is positive.
func NewLease() int64 {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return int64(binary.LittleEndian.Uint64(b[:])>>1) | 1
}

// Grant makes a lease with a TTL in seconds and returns its id.
func (c *Client) Grant(ctx context.Context, ttl int64) (int64, error) {
	id, _, err := c.grant(ctx, ttl)
	return id, err
}

// grant also returns the TTL that was granted.
func (c *Client) grant(ctx context.Context, ttl int64) (id, granted int64, err error) {
	id = NewLease()
	b, err := c.submit(ctx, kv.EncodeGrant(id, ttl))
	if err != nil {
		return 0, 0, err
	}
	t, err := kv.DecodeTTL(b)
	return id, t.Granted, err
}

// prefixOf returns the bounds of an election's keys.
func prefixOf(name []byte) (from, to []byte) {
	from = append(bytes.Clone(name), '/')
	return from, append(bytes.Clone(name), '/'+1)
}

// Lock waits until a lease holds the lock of a name. To lock twice with the same lease is to lock once.
func (c *Client) Lock(ctx context.Context, name []byte, lease int64) (Claim, error) {
	return c.Campaign(ctx, name, lease, nil)
}

// Campaign waits until a lease leads the election of a name, with a value that all can read. Lease 0 makes one of 60 s. If
// ctx ends before, or it cannot be told who leads, the candidate's key is removed, and a lease that was made for it. If it cannot be told
// whether the key of a given lease was made, it may be there until the lease ends: a call with the same lease goes on with it.
func (c *Client) Campaign(ctx context.Context, name []byte, lease int64, value []byte) (Claim, error) {
	cl, err := c.enter(ctx, name, lease, value)
	if err != nil {
		return Claim{}, err
	}
	if err = c.waitFirst(ctx, cl); err != nil {
		c.leave(ctx, cl)
		return Claim{}, err
	}
	return cl, nil
}

// enter makes the key of a contender, unless the lease has one already.
func (c *Client) enter(ctx context.Context, name []byte, lease int64, value []byte) (Claim, error) {
	cl := Claim{Name: name, Lease: lease}
	if lease == 0 {
		var err error
		if cl.Lease, err = c.Grant(ctx, leaseTTL); err != nil {
			return Claim{}, err
		}
		cl.granted = true
	}
	from, _ := prefixOf(name)
	// A lease's id is a number with a sign, and etcd's clients write it so: to them it is the same key.
	cl.Key = fmt.Appendf(from, "%x", cl.Lease)
	a, err := c.Do(ctx, &kv.Txn{
		If:   []kv.Compare{{Key: cl.Key, Target: kv.CreateRevision}},
		Then: []kv.Op{&kv.Put{Key: cl.Key, Value: value, Lease: cl.Lease}}, Else: []kv.Op{&kv.Range{Key: cl.Key}},
	})
	if err != nil {
		if cl.granted {
			// Whether the key was made may be unknown. Without the lease it is not there, nor can it be made any more.
			c.leave(ctx, cl)
		}
		return Claim{}, err
	}
	cl.Token, cl.Revision, cl.made = a.Revision, a.Revision, a.Succeeded
	if !a.Succeeded {
		mine := a.Answers[0].KVs[0]
		if cl.Token = mine.Create; value != nil && !bytes.Equal(mine.Value, value) {
			return c.Proclaim(ctx, cl, value)
		}
	}
	return cl, nil
}

// leave removes the key of a contender whose caller has given up, or is told of an error and does not know that its key waits: it would come
// first sometime, with nobody to know. A key that was there before may be held by who made it. A lease that only the call knows ends.
func (c *Client) leave(ctx context.Context, cl Claim) {
	out, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUp)
	defer cancel()
	switch {
	case cl.granted:
		_ = c.Revoke(out, cl.Lease)
	case ctx.Err() != nil || cl.made:
		_, _ = c.Resign(out, cl)
	}
}

// waitFirst waits until no key of the election is older than the claim's, which must still be there then.
func (c *Client) waitFirst(ctx context.Context, cl Claim) error {
	from, to := prefixOf(cl.Name)
	for {
		a, err := c.Do(ctx, &kv.Range{Key: from, End: to, MaxCreate: cl.Token - 1, Target: kv.ByCreate, Order: kv.Descending, Limit: 1, KeysOnly: true})
		if err != nil {
			return err
		}
		if len(a.KVs) > 0 {
			if err := c.WaitGone(ctx, a.KVs[0].Key, a.KVs[0].Create); err != nil {
				return err
			}
			continue
		}
		a, err = c.Do(ctx, &kv.Range{Key: cl.Key, KeysOnly: true})
		if err != nil {
			return err
		}
		if len(a.KVs) == 0 || a.KVs[0].Create != cl.Token {
			return ErrLeaseOver
		}
		return nil
	}
}

// WaitGone waits until a key that was created in a revision is gone. It may have come again: a holder that locks once more with its lease
// has the same key, and waits for whoever waits here.
func (c *Client) WaitGone(ctx context.Context, key []byte, create int64) error {
	return c.wait(ctx, kv.GoneSpan(key), func() (bool, error) {
		a, err := c.Do(ctx, &kv.Range{Key: key, KeysOnly: true})
		return err == nil && (len(a.KVs) == 0 || a.KVs[0].Create != create), err
	})
}

// wait asks again after each signal until done says yes.
func (c *Client) wait(ctx context.Context, s shard.Span, done func() (bool, error)) error {
	r, err := c.route()
	if err != nil {
		return err
	}
	w := c.shard.Watch(r, s)
	defer w.Close()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-w.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Unlock removes a lock's key, whoever's it is. It is no error if there is none.
func (c *Client) Unlock(ctx context.Context, key []byte) (revision int64, err error) {
	a, err := c.Do(ctx, &kv.Delete{Key: key})
	return a.Revision, err
}

// held is the condition under which a claim counts.
func (cl Claim) held() []kv.Compare {
	return []kv.Compare{{Key: cl.Key, Target: kv.CreateRevision, Number: cl.Token}}
}

// Proclaim changes the value of a claim. It fails with ErrNotLeader if its key is gone.
func (c *Client) Proclaim(ctx context.Context, cl Claim, value []byte) (Claim, error) {
	a, err := c.Do(ctx, &kv.Txn{If: cl.held(), Then: []kv.Op{&kv.Put{Key: cl.Key, Value: value, Lease: cl.Lease}}})
	if err == nil && !a.Succeeded {
		err = ErrNotLeader
	}
	cl.Revision = a.Revision
	return cl, err
}

// Resign gives a claim up. It is no error if that had happened before.
func (c *Client) Resign(ctx context.Context, cl Claim) (revision int64, err error) {
	a, err := c.Do(ctx, &kv.Txn{If: cl.held(), Then: []kv.Op{&kv.Delete{Key: cl.Key}}})
	return a.Revision, err
}

// Leader returns the key and value of who leads an election, and the key space's revision. It fails with ErrNoLeader.
func (c *Client) Leader(ctx context.Context, name []byte) (kv.KeyValue, int64, error) {
	from, to := prefixOf(name)
	a, err := c.Do(ctx, &kv.Range{Key: from, End: to, Target: kv.ByCreate, Order: kv.Ascending, Limit: 1})
	if err == nil && len(a.KVs) == 0 {
		err = ErrNoLeader
	}
	if err != nil {
		return kv.KeyValue{}, a.Revision, err
	}
	return a.KVs[0], a.Revision, nil
}

// Observe calls f with each leader of an election and with each value that it proclaims, the newest where they come faster than they can
// be told, until ctx ends or f fails.
func (c *Client) Observe(ctx context.Context, name []byte, f func(leader kv.KeyValue, revision int64) error) error {
	var told int64
	return c.wait(ctx, kv.Span(), func() (bool, error) {
		l, rev, err := c.Leader(ctx, name)
		switch {
		case errors.Is(err, ErrNoLeader):
			return false, nil
		case err != nil:
			return false, err
		case l.Mod == told:
			return false, nil
		}
		told = l.Mod
		return false, f(l, rev)
	})
}
