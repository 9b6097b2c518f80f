package kv

import (
	"bytes"
	"encoding/binary"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
)

// Fencing. A lock is a prefix NAME/ under which each contender has a key; the key that was created first holds it, and its
// creation revision is the holder's token (see package coord). A write under a token is refused once a later holder is known.
// Where the keys are, that is exact. Other shards learn of tokens by the writes that come to them.

// reqFence is a command, and on the lock's own shard a query. Its number is far from those that count up.
const reqFence request = 48

const (
	// LockNameMax bounds the name of a lock under whose token other models write, in bytes.
	LockNameMax = 1024
	// FencesMax is how many locks of other shards a shard remembers the newest token of: those with the newest ones. Nobody writes
	// there any more under a token as old as what was forgotten, whatever its lock; whoever acquires a lock again has a newer one, since
	// the tokens of all locks of a space are revisions of the same key space.
	FencesMax = 16_384
)

// CheckFence checks what names a holder.
func CheckFence(lock []byte, token int64) error {
	switch {
	case len(lock) == 0:
		return errs.New(errs.Invalid, "the lock has no name")
	case len(lock) > LockNameMax:
		return errs.New(errs.Invalid, "the name of a lock has %d bytes; at most %d are allowed", len(lock), LockNameMax)
	case token <= 0:
		return errs.New(errs.Invalid, "fencing token %d; a token is the creation revision of the holder's key, a number from 1", token)
	}
	return nil
}

// EncodeFence returns the command that fails with errs.Fenced if a lock's token is stale, which another model runs in front of its own
// writes by Tx.Call. home says that the lock's keys are in this very shard: then the token must be that of the holder. Elsewhere it
// must not be lower than another that was seen there, and is remembered. With home it may also be asked as a query.
func EncodeFence(lock []byte, token int64, home bool) []byte {
	return codec.AppendBool(appendInt(codec.AppendBytes(head(reqFence), lock), token), home)
}

func errFenced(lock []byte, token int64, now string) error {
	return errs.New(errs.Fenced, "token %d does not hold the lock %q: %s; nothing was done; acquire the lock again, and write under the token that you get", token, lock, now)
}

func (c *call) fence(d *decoder) []byte {
	lock, token, home := d.Bytes(), d.int(), d.Bool()
	c.failIf(d.end())
	c.failIf(CheckFence(lock, token))
	switch {
	case c.err != nil || env.Mutant(env.MutantFenceUnchecked):
	case home:
		c.fenceHolder(lock, token)
	case c.tx == nil:
		c.fail(errMalformed())
	default:
		c.fenceSeen(lock, token)
	}
	return appendInt(nil, c.st.rev)
}

// fenceHolder wants a token to be the lowest creation revision under a lock's prefix. It goes through all contenders.
func (c *call) fenceHolder(lock []byte, token int64) {
	from := append(bytes.Clone(lock), '/')
	holder := int64(maxRevision)
	for kv := range c.heads(keyRange{from: from, to: after(from)}) {
		holder = min(holder, kv.Create)
	}
	switch {
	case c.err != nil || holder == token:
	case holder == maxRevision:
		c.fail(errFenced(lock, token, "nobody does"))
	default:
		c.fail(errFenced(lock, token, "token "+decimal(holder)+" does"))
	}
}

// fences is what a shard knows of all the locks together whose tokens it remembers.
type fences struct {
	// count is their number; floor is the highest token that was forgotten.
	count, floor int64
}

// fenceSeen refuses a token that is lower than what was seen, and remembers one that is higher.
func (c *call) fenceSeen(lock []byte, token int64) {
	var all fences
	if b, ok := c.tx.Get([]byte{rowFences}); ok && !all.decode(b) {
		c.damaged("row")
		return
	}
	b, known := c.tx.Get(fenceKey(lock))
	if known {
		d := decoder{codec.Read(b)}
		seen := d.int()
		switch {
		case d.end() != nil:
			c.damaged("fence")
			return
		case token == seen:
			return
		case token < seen:
			c.fail(errFenced(lock, token, "token "+decimal(seen)+" has written here since"))
			return
		}
		c.tx.Delete(fenceOrderKey(seen, lock))
	} else {
		if all.count == FencesMax {
			c.forgetFence(&all, token)
		}
		if token <= all.floor {
			c.fail(errFenced(lock, token, "this shard remembers "+decimal(FencesMax)+" locks with newer tokens, and none older than "+decimal(all.floor+1)))
			return
		}
		all.count++
		c.tx.SetFresh([]byte{rowFences}, all.encode())
	}
	c.tx.SetFresh(fenceKey(lock), appendInt(nil, token))
	c.tx.SetBulk(fenceOrderKey(token, lock), nil)
}

// forgetFence makes room for a token: it forgets the lowest, or raises the floor to it if that is not lower.
func (c *call) forgetFence(all *fences, token int64) {
	var lowest []byte
	for row := range c.tx.Scan([]byte{rowFenceOrder}, []byte{rowFenceOrder + 1}) {
		lowest = bytes.Clone(row)
		break
	}
	if len(lowest) < 9 {
		c.damaged("fence")
		return
	}
	all.floor = int64(binary.BigEndian.Uint64(lowest[1:]))
	if token > all.floor {
		all.count--
		c.tx.Delete(lowest)
		c.tx.Delete(fenceKey(lowest[9:]))
	}
}
