package eventlog

import (
	"strconv"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// Topics with a lock. Whoever appends to one names the lock's fencing token: a producer in a header of each record, EVENT.ADD by the fence
// of its transaction. The edge reads the headers, so that the state machine need not unpack a batch; the state machine compares.

// FenceHeader is the record header that holds the token, as a decimal number.
const FenceHeader = "quorate-fence"

// CodeStale is the reason for refusing a batch whose token is stale.
const CodeStale = "STALETOKEN"

// TokenStale stands for a token that the lock's own shard has refused. The batch goes to its shard all the same, which alone knows whether it was
// appended before.
const TokenStale = -1

// BatchToken returns the token that all records of an uncompressed body name: the bytes behind a batch header. topic and lock are for the
// error's text.
func BatchToken(h BatchHeader, body []byte, topic, lock string) (int64, error) {
	bad := func(n int32, why string) error {
		return errs.Coded(errs.Invalid, "INVALIDRECORD", "record %d of the batch %s; topic %q takes records only under the lock %q: give each record the header %s with the token of the lock's holder, a decimal number", n, why, topic, lock, FenceHeader)
	}
	token := int64(0)
	for n := int32(0); n < h.Records; n++ {
		rec, rest, ok := nextRecord(body)
		if !ok {
			return 0, errs.Coded(errs.Invalid, "INVALIDRECORD", "record %d of the batch is malformed", n)
		}
		switch {
		case rec.fences == 0:
			return 0, bad(n, "has no header "+FenceHeader)
		case rec.fences > 1:
			return 0, bad(n, "has several headers "+FenceHeader)
		}
		v := string(rec.fence[:min(len(rec.fence), 32)])
		t, err := strconv.ParseInt(v, 10, 64)
		switch {
		case err != nil || t < 1 || v[0] == '+':
			return 0, bad(n, "has "+strconv.Quote(v)+" in the header "+FenceHeader)
		case n > 0 && t != token:
			return 0, bad(n, "has another token than those before")
		}
		token, body = t, rest
	}
	if len(body) > 0 {
		return 0, errs.Coded(errs.Invalid, "INVALIDRECORD", "the batch holds more than the %d records it counts", h.Records)
	}
	return token, nil
}

// passFence fails unless the token of a batch is that of its topic's lock.
func (m Module) passFence(tx *shard.Tx, p *partition, a *Append, home bool) error {
	t, ok := readTopic(tx, a.Topic)
	switch {
	case !p.fenced || !ok:
		return errs.New(errs.Unavailable, "the topic is not known to this shard as one with a lock")
	case a.Token == 0:
		return errs.Coded(errs.Invalid, "INVALIDRECORD", "topic %q takes records only under the lock %q: give each record the header %s", t.Name, t.Fence, FenceHeader)
	case a.Token < 0:
		return errs.Coded(errs.Fenced, CodeStale, "the token of the batch does not hold the lock %q; nothing was done; acquire the lock again, and write under the token that you get", t.Fence)
	case m.EncodeFence == nil:
		return errs.New(errs.Unsupported, "this node knows no locks")
	}
	_, err := tx.Call(shard.Command{Module: shard.ModuleKV, Data: m.EncodeFence([]byte(t.Fence), a.Token, home)})
	return Stale(err)
}

// Stale gives a refused token the reason CodeStale, which is not that of a producer's old epoch. Other errors stay as they are.
func Stale(err error) error {
	if errs.Is(err, errs.Fenced) {
		return errs.Coded(errs.Fenced, CodeStale, "%s", err.Error())
	}
	return err
}
