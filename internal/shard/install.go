package shard

import (
	"encoding/binary"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/storage"
)

// Installer replaces a shard's whole state by a received snapshot. The rows go to a generation of their own, which becomes
// the shard's state in one step, so that a crash leaves either the old state or the new one.
type Installer struct {
	m     *Machine
	place []byte
	gen   uint32
}

// Install starts to receive a snapshot; the machine goes on meanwhile.
func (m *Machine) Install() (*Installer, error) {
	in := &Installer{m: m, gen: m.gen + 1, place: placeOf(m.id, m.gen+1)}
	b := m.store.Batch()
	b.DeleteRange(in.place, placeOf(m.id, in.gen+1))
	return in, b.Commit()
}

// Add stores a chunk from SnapshotReader.Next.
func (in *Installer) Add(chunk []byte) error {
	b := in.m.store.Batch()
	d := codec.Read(chunk)
	for d.Len() > 0 {
		k, v := d.Bytes(), d.Bytes()
		if d.Bad() {
			b.Discard()
			return errs.New(errs.Corrupt, "malformed snapshot chunk for shard %d", in.m.id)
		}
		if env.Mutant(env.MutantSnapshotNoSession) && len(k) > 1 && k[0] == byte(ModuleShard) && k[1] == rowSession {
			continue
		}
		b.Set(append(in.place[:placeSize:placeSize], k...), v)
	}
	return b.Commit()
}

// Finish switches the machine to the received state. That is durable after the next Flush of the store, which must come before the log begins
// behind it. Queries may see the state before, as they do what is applied: it is committed. They wait while it is switched to, which is a
// moment. Nothing may be applied but not committed.
func (in *Installer) Finish() error {
	m := in.m
	if len(m.ov.rows) > 0 {
		panic("snapshot installed in the middle of an apply")
	}
	m.installs.Add(1)
	defer m.installs.Add(1)
	row, _, err := m.store.Get(append(in.place[:placeSize:placeSize], byte(ModuleShard), rowState))
	if err != nil {
		return err
	}
	b := m.store.Batch()
	if len(row) == 0 {
		// It was wiped.
		b.Delete(installedKey(m.id))
	} else {
		var st state
		if err := st.decode(row); err != nil {
			b.Discard()
			return err
		}
		b.Set(installedKey(m.id), binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, st.Index), st.Term))
	}
	b.Set(genKey(m.id), binary.BigEndian.AppendUint32(nil, in.gen))
	b.DeleteRange(placeOf(m.id, m.gen), placeOf(m.id, m.gen+1))
	if err := b.Commit(); err != nil {
		return err
	}
	m.gen = in.gen
	return m.load()
}

// Installed returns the position of the last snapshot that was installed, zero if the state did not begin with one. The state
// is durable at that position before the log is.
func (m *Machine) Installed() (storage.Position, error) {
	v, ok, err := m.store.Get(installedKey(m.id))
	switch {
	case err != nil || !ok:
		return storage.Position{}, err
	case len(v) != 16:
		return storage.Position{}, errs.New(errs.Corrupt, "shard %d: the row of the last snapshot has %d bytes", m.id, len(v))
	}
	return storage.Position{Index: binary.LittleEndian.Uint64(v), Term: binary.LittleEndian.Uint64(v[8:])}, nil
}

// Wipe forgets the shard's state; used when the replica's log is lost and it starts over under a new id. As Finish, it is durable after a Flush, which
// must come before that id is taken.
func (m *Machine) Wipe() error {
	in, err := m.Install()
	if err != nil {
		return err
	}
	return in.Finish()
}
