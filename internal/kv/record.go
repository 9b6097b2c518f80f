package kv

import (
	"encoding/binary"

	"github.com/quorate/quorate/internal/shard"
)

// Recorder is a Module that tells what it has applied, in order. Whoever checks what clients saw replays a shard's log with it.
type Recorder struct {
	Module
	// To gets each request that was applied and may have changed something; what was refused is not told. The slices are parts of the
	// request.
	To func(Step)
}

// Step is one applied request: one of its fields is set.
type Step struct {
	Range  *Range   `json:",omitempty"`
	Put    *Put     `json:",omitempty"`
	Delete *Delete  `json:",omitempty"`
	Txn    *TxnStep `json:",omitempty"`
	// Compact is a revision. Grant and Revoke are leases; one that runs out is revoked.
	Compact int64 `json:",omitempty"`
	Grant   int64 `json:",omitempty"`
	Revoke  int64 `json:",omitempty"`
}

// TxnStep is a Txn.
type TxnStep struct {
	If         []Compare
	Then, Else []Step
}

func stepOf(o Op) Step {
	switch o := o.(type) {
	case *Range:
		return Step{Range: o}
	case *Put:
		return Step{Put: o}
	case *Delete:
		return Step{Delete: o}
	case *Txn:
		return Step{Txn: &TxnStep{If: o.If, Then: stepsOf(o.Then), Else: stepsOf(o.Else)}}
	}
	return Step{}
}

func stepsOf(ops []Op) []Step {
	steps := make([]Step, 0, len(ops))
	for _, o := range ops {
		steps = append(steps, stepOf(o))
	}
	return steps
}

// Apply implements shard.Module.
func (r Recorder) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	out, err := r.Module.Apply(tx, cmd)
	if err != nil {
		return out, err
	}
	d, req, err := begin(cmd)
	if err != nil {
		return nil, err
	}
	switch req {
	case reqOp:
		if o := d.op(0); !ReadOnly(o) {
			r.To(stepOf(o))
		}
	case reqCompact:
		r.To(Step{Compact: d.int()})
	case reqGrant:
		r.To(Step{Grant: d.int()})
	case reqRevoke:
		r.To(Step{Revoke: d.int()})
	}
	return out, nil
}

// Fire implements shard.Module.
func (r Recorder) Fire(tx *shard.Tx, key []byte) error {
	isLease := len(key) == 9 && key[0] == timerLease
	before := false
	if isLease {
		_, before = tx.Get(key)
	}
	if err := r.Module.Fire(tx, key); err != nil || !before {
		return err
	}
	// The timer's name is that of the lease's row.
	if _, after := tx.Get(key); !after {
		r.To(Step{Revoke: int64(binary.BigEndian.Uint64(key[1:]))})
	}
	return nil
}
