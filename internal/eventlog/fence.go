package eventlog

import (
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// Topics with a lock. Whoever appends to one names the lock's fencing token: a producer in a header of each record, EVENT.ADD by the fence
// of its transaction. The edge reads the headers (CheckRecords), so that the state machine need not unpack a batch; the state machine compares.

// FenceHeader is the record header that holds the token, as a decimal number.
const FenceHeader = "quorate-fence"

// CodeStale is the reason for refusing a batch whose token is stale.
const CodeStale = "STALETOKEN"

// TokenStale stands for a token that the lock's own shard has refused. The batch goes to its shard all the same, which alone knows whether it was
// appended before.
const TokenStale = -1

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
