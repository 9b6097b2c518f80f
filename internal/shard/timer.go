package shard

import (
	"encoding/binary"
	"math"
	"slices"
	"time"
)

// timersPerEntry bounds the work of one timer entry; the leader proposes another while more are due.
const timersPerEntry = 256

func dueKey(id ModuleID, key []byte) []byte { return append([]byte{rowDue, byte(id)}, key...) }

func timerKey(due int64, id ModuleID, key []byte) []byte {
	b := binary.BigEndian.AppendUint64([]byte{rowTimer}, uint64(due))
	return append(append(b, byte(id)), key...)
}

// timerMin and timerMax are what a timer's row can hold: after 1970, and before April 2262.
var (
	timerMin = time.Unix(0, 1)
	timerMax = time.Unix(0, math.MaxInt64)
)

func (m *Machine) setTimer(id ModuleID, key []byte, at time.Time) {
	due := int64(0)
	switch {
	case at.IsZero():
	case at.Before(timerMin):
		due = timerMin.UnixNano()
	case at.After(timerMax):
		// UnixNano would wrap to a moment long ago, and the timer fire at once.
		due = timerMax.UnixNano()
	default:
		due = at.UnixNano()
	}
	dk := dueKey(id, key)
	old, had := m.get(ModuleShard, dk)
	if had {
		was := int64(binary.BigEndian.Uint64(old))
		if was == due {
			return
		}
		m.delete(ModuleShard, timerKey(was, id, key), bulk)
	}
	if due == 0 {
		if had {
			m.delete(ModuleShard, dk, fresh)
		}
		return
	}
	m.set(ModuleShard, dk, binary.BigEndian.AppendUint64(nil, uint64(due)), fresh)
	m.set(ModuleShard, timerKey(due, id, key), nil, bulk)
	if m.nextTimer == 0 || due < m.nextTimer {
		m.nextTimer = due
	}
}

// fireTimers runs what is due at the entry's stamp.
func (m *Machine) fireTimers(out *Applied) {
	type timer struct {
		id  ModuleID
		key []byte
		due int64
	}
	var due []timer
	end := binary.BigEndian.AppendUint64([]byte{rowTimer}, uint64(m.st.Stamp)+1)
	for k := range m.scan(ModuleShard, m.firstTimer(), end) {
		due = append(due, timer{
			due: int64(binary.BigEndian.Uint64(k[1:])), id: ModuleID(k[9]), key: slices.Clone(k[10:]),
		})
		if len(due) == timersPerEntry {
			break
		}
	}
	for _, t := range due {
		tx := m.begin(t.id)
		// An earlier timer of this entry may have moved or cancelled this one.
		if _, ok := m.get(ModuleShard, timerKey(t.due, t.id, t.key)); !ok {
			continue
		}
		m.delete(ModuleShard, timerKey(t.due, t.id, t.key), bulk)
		m.delete(ModuleShard, dueKey(t.id, t.key), fresh)
		fired := m.mark()
		m.changes.whole()
		mod := m.modules[t.id]
		if mod == nil {
			m.finish(tx, nil)
			continue
		}
		_, err := tx.Try(func() ([]byte, error) { return nil, mod.Fire(tx, t.key) })
		wrote := err == nil && m.wrote(fired)
		m.finish(tx, nil)
		if wrote {
			m.st.Revision++
		}
		if len(m.changes.buf) >= chunkBytes {
			m.endChunk()
		}
		out.Commands++
	}
	m.nextTimer = m.findNextTimer()
}

// findNextTimer reads the moment of the earliest timer, 0 if there is none.
func (m *Machine) findNextTimer() int64 {
	for k := range m.scan(ModuleShard, m.firstTimer(), []byte{rowTimer + 1}) {
		return int64(binary.BigEndian.Uint64(k[1:]))
	}
	return 0
}

// firstTimer is a row before which there is no timer. Where there were some, the store holds for a while that they are deleted, and a scan from the
// first row on would look at each of those, every time.
func (m *Machine) firstTimer() []byte {
	return binary.BigEndian.AppendUint64([]byte{rowTimer}, uint64(m.nextTimer))
}
