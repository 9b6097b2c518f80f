package sim

import (
	"encoding/binary"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// ledger is the data model that the simulation writes to: registers, a count of how often each operation was applied, and
// timers. It is small enough to be obviously right, so that a difference points at the engine.
type ledger struct{}

const ledgerID shard.ModuleID = 200

// Commands of the ledger.
const (
	opPut   = 1 // key, id: store id under key and count the operation
	opFail  = 2 // key, id: write, then return an error: nothing may stay
	opTimer = 3 // id, delay: count the firing under 't'+id
	opGet   = 4 // key: query
	opAll   = 5 // query: every count
)

type command struct {
	op  byte
	key byte
	id  uint64
	arg uint64
	// pad makes the entry larger.
	pad int
}

func (c command) encode() []byte {
	b := []byte{1, c.op, c.key}
	b = binary.LittleEndian.AppendUint64(b, c.id)
	b = binary.LittleEndian.AppendUint64(b, c.arg)
	return append(b, make([]byte, c.pad)...)
}

func decodeCommand(b []byte) (command, error) {
	if len(b) < 19 || b[0] != 1 {
		return command{}, errs.New(errs.Invalid, "malformed ledger command")
	}
	return command{op: b[1], key: b[2], id: binary.LittleEndian.Uint64(b[3:]), arg: binary.LittleEndian.Uint64(b[11:])}, nil
}

func regKey(key byte) []byte { return []byte{'r', key} }

func countKey(kind byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{kind}, id)
}

func (ledger) ID() shard.ModuleID { return ledgerID }

func (ledger) Apply(tx *shard.Tx, b []byte) ([]byte, error) {
	c, err := decodeCommand(b)
	if err != nil {
		return nil, err
	}
	switch c.op {
	case opPut, opFail:
		v := binary.LittleEndian.AppendUint64(nil, c.id)
		// The stamp is stored so that a replica that used its own clock would differ.
		v = binary.LittleEndian.AppendUint64(v, uint64(tx.Now().UnixNano()))
		tx.Set(regKey(c.key), append(v, make([]byte, c.arg)...))
		// An error if it is there already would take the count back, and nobody would see it.
		bump(tx, 'o', c.id)
		tx.Emit("put", regKey(c.key), []byte{c.key}, v[:8])
		if c.op == opFail {
			return nil, errs.New(errs.Conflict, "asked to fail")
		}
		return []byte("+OK\r\n"), nil
	case opTimer:
		bump(tx, 'o', c.id)
		at := tx.Now().Add(time.Duration(c.arg))
		tx.SetTimer(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, c.id), uint64(at.UnixNano())), at)
		return nil, nil
	}
	return nil, errs.New(errs.Unsupported, "ledger operation %d", c.op)
}

func bump(tx *shard.Tx, kind byte, id uint64) uint64 {
	n := uint64(1)
	if v, ok := tx.Get(countKey(kind, id)); ok {
		n += binary.LittleEndian.Uint64(v)
	}
	tx.Set(countKey(kind, id), binary.LittleEndian.AppendUint64(nil, n))
	return n
}

func (ledger) Fire(tx *shard.Tx, key []byte) error {
	if len(key) != 16 {
		return errs.New(errs.Invalid, "malformed timer key")
	}
	n := bump(tx, 't', binary.BigEndian.Uint64(key))
	if due := int64(binary.BigEndian.Uint64(key[8:])); tx.Now().UnixNano() < due {
		n += 1000 // fired too early
		tx.Set(countKey('t', binary.BigEndian.Uint64(key)), binary.LittleEndian.AppendUint64(nil, n))
	}
	return nil
}

func (ledger) Query(v shard.View, q []byte) ([]byte, error) {
	c, err := decodeCommand(q)
	if err != nil {
		return nil, err
	}
	out := binary.LittleEndian.AppendUint64(nil, uint64(v.Revision()))
	switch c.op {
	case opGet:
		id := uint64(0)
		if val, ok := v.Get(regKey(c.key)); ok {
			id = binary.LittleEndian.Uint64(val)
		}
		return binary.LittleEndian.AppendUint64(out, id), nil
	case opAll:
		out = out[:0]
		for _, kind := range []byte{'o', 't'} {
			for k, val := range v.Scan([]byte{kind}, []byte{kind + 1}) {
				out = binary.LittleEndian.AppendUint64(append(out, kind), binary.BigEndian.Uint64(k[1:]))
				out = append(out, val[:8]...)
			}
		}
		return out, nil
	}
	return nil, errs.New(errs.Unsupported, "ledger query %d", c.op)
}
