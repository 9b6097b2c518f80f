package coord

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
)

// Acquire waits until a lease is among the n first of a semaphore's name, which all who use it must call with the same n. Its keys are those of
// a lock, NAME/ and the lease: n of 1 is Lock. To acquire twice with the same lease is to acquire once. A place is given up by Unlock, Resign,
// or the end of the lease. Of its holders only the oldest passes a fence. If ctx ends before, or the keys cannot be read, the key is removed.
//
// Each place that becomes free wakes all who wait for one.
func (c *Client) Acquire(ctx context.Context, name []byte, lease int64, n int) (Claim, error) {
	if n < 1 {
		return Claim{}, errs.New(errs.Invalid, "a semaphore for %d holders; one is the least", n)
	}
	cl, err := c.enter(ctx, name, lease, nil)
	if err != nil {
		return Claim{}, err
	}
	from, to := prefixOf(name)
	gone := kv.GoneSpan(from)
	gone.To = kv.GoneSpan(to).From
	err = c.wait(ctx, gone, func() (bool, error) {
		a, err := c.Do(ctx, &kv.Range{Key: from, End: to, MaxCreate: cl.Token, KeysOnly: true})
		if err != nil {
			return false, err
		}
		mine := false
		for _, kv := range a.KVs {
			mine = mine || bytes.Equal(kv.Key, cl.Key) && kv.Create == cl.Token
		}
		if !mine {
			return false, ErrLeaseOver
		}
		return len(a.KVs) <= n, nil
	})
	if err != nil {
		c.leave(ctx, cl)
		return Claim{}, err
	}
	return cl, nil
}

// Hold puts a barrier up: who waits at it waits until it is released, or until the lease ends, if it is not 0. It fails with errs.Exists if it is
// up. The key is the barrier's name, as in etcd's recipes.
func (c *Client) Hold(ctx context.Context, name []byte, lease int64) error {
	a, err := c.Do(ctx, &kv.Txn{If: []kv.Compare{{Key: name, Target: kv.CreateRevision}}, Then: []kv.Op{&kv.Put{Key: name, Lease: lease}}})
	if err == nil && !a.Succeeded {
		err = errs.New(errs.Exists, "the barrier %q is up", name)
	}
	return err
}

// Release takes a barrier down. It is no error if it is down.
func (c *Client) Release(ctx context.Context, name []byte) error {
	_, err := c.Unlock(ctx, name)
	return err
}

// Pass waits until a barrier is down, or was, if it is up again by then.
func (c *Client) Pass(ctx context.Context, name []byte) error {
	a, err := c.Do(ctx, &kv.Range{Key: name, KeysOnly: true})
	if err != nil || len(a.KVs) == 0 {
		return err
	}
	return c.WaitGone(ctx, name, a.KVs[0].Create)
}

// CountDown notes at a latch that somebody is done. To do so twice counts once, so that it may be repeated when its outcome is unknown. With a
// lease other than 0 it counts only as long as that lives. The key is NAME/ and who.
func (c *Client) CountDown(ctx context.Context, name, who []byte, lease int64) error {
	if len(who) == 0 {
		return errs.New(errs.Invalid, "somebody without a name counts down %q", name)
	}
	from, _ := prefixOf(name)
	_, err := c.Do(ctx, &kv.Put{Key: append(from, who...), Lease: lease})
	return err
}

// Await waits until n have counted a latch down.
func (c *Client) Await(ctx context.Context, name []byte, n int64) error {
	from, to := prefixOf(name)
	return c.wait(ctx, kv.Span(), func() (bool, error) {
		a, err := c.Do(ctx, &kv.Range{Key: from, End: to, CountOnly: true})
		return err == nil && a.Count >= n, err
	})
}

// Endpoint is one member of a service.
type Endpoint struct {
	// Addr is where it is; it is the member's name too.
	Addr string
	// Metadata is any JSON, or nothing.
	Metadata json.RawMessage
}

// update is the value of a member's key, as etcd's package naming/endpoints writes it. Op is 0 for members.
type update struct {
	Op       uint8
	Addr     string
	Metadata json.RawMessage
}

// Register makes an endpoint a member of a service for as long as a lease lives, which is its health: whoever stops to renew it is no member
// any more. Key and value are those of etcd's package naming/endpoints, SERVICE/ADDR and a JSON object, so that gRPC's etcd resolver finds it.
func (c *Client) Register(ctx context.Context, service string, e Endpoint, lease int64) error {
	if e.Addr == "" {
		return errs.New(errs.Invalid, "a member of %q without an address", service)
	}
	if e.Metadata == nil {
		e.Metadata = json.RawMessage("null")
	}
	v, err := json.Marshal(update{Addr: e.Addr, Metadata: e.Metadata})
	if err != nil {
		return errs.Wrap(errs.Invalid, err, "metadata of %s", e.Addr)
	}
	_, err = c.Do(ctx, &kv.Put{Key: fmt.Appendf(nil, "%s/%s", service, e.Addr), Value: v, Lease: lease})
	return err
}

// Deregister ends a membership. It is no error if there is none.
func (c *Client) Deregister(ctx context.Context, service, addr string) error {
	_, err := c.Unlock(ctx, fmt.Appendf(nil, "%s/%s", service, addr))
	return err
}

// Members returns the members of a service in the order of their addresses, and the key space's revision. Keys that are no members' are
// left out.
func (c *Client) Members(ctx context.Context, service string) ([]Endpoint, int64, error) {
	from, to := prefixOf([]byte(service))
	a, err := c.Do(ctx, &kv.Range{Key: from, End: to})
	if err != nil {
		return nil, 0, err
	}
	var all []Endpoint
	for _, kv := range a.KVs {
		var u update
		if json.Unmarshal(kv.Value, &u) == nil && u.Addr != "" {
			if string(u.Metadata) == "null" {
				u.Metadata = nil
			}
			all = append(all, Endpoint{Addr: u.Addr, Metadata: u.Metadata})
		}
	}
	return all, a.Revision, nil
}

// WatchMembers calls f with the members of a service, and again after each change, the newest state where they come faster than they can be
// told, until ctx ends or f fails.
func (c *Client) WatchMembers(ctx context.Context, service string, f func(all []Endpoint) error) error {
	first, told := true, ""
	return c.wait(ctx, kv.Span(), func() (bool, error) {
		all, _, err := c.Members(ctx, service)
		if err != nil {
			return false, err
		}
		now := fmt.Sprintf("%q", all)
		if !first && now == told {
			return false, nil
		}
		first, told = false, now
		return false, f(all)
	})
}
