package shard

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"

	"github.com/quorate/quorate/internal/errs"
)

// Bounds of the session table.
const (
	// sessionWindow is how far ahead of its oldest undecided batch a session may be. Hosts keep far fewer in flight.
	sessionWindow = 1 << 16
	// sessionIdle is how long, in nanoseconds of the shard's clock, an unused session is remembered. A message older than
	// that does not exist: links live for seconds.
	sessionIdle = int64(24 * 3600 * 1e9)
	// sessionsKept is how many are remembered however old they seem: the clock of a new leader may be a day ahead, and a node begins a session each time
	// it starts.
	sessionsKept = 64
)

// session remembers which batches of a proposer were applied. Everything below low is decided; bits holds those at and
// above it, lowest first.
type session struct {
	low   uint64
	bits  []uint64
	stamp int64
	dirty bool
}

// admit decides whether a batch is applied, and remembers it. It is part of the replicated state.
func (m *Machine) admit(h BatchHeader) bool {
	s := m.sessions[h.Session]
	if s == nil {
		m.forgetIdleSessions()
		s = &session{low: 1}
		m.sessions[h.Session] = s
	}
	s.dirty, s.stamp = true, m.st.Stamp
	s.raise(h.Low)
	if h.Seq < s.low || h.Seq >= s.low+sessionWindow {
		return false
	}
	word, bit := (h.Seq-s.low)/64, (h.Seq-s.low)%64
	for uint64(len(s.bits)) <= word {
		s.bits = append(s.bits, 0)
	}
	if s.bits[word]&(1<<bit) != 0 {
		return false
	}
	s.bits[word] |= 1 << bit
	s.compact()
	return true
}

// raise moves low up to at least to, forgetting what is below.
func (s *session) raise(to uint64) {
	if to <= s.low {
		return
	}
	n := to - s.low
	if n >= uint64(len(s.bits))*64 {
		s.bits = s.bits[:0]
	} else {
		s.shift(n)
	}
	s.low = to
	s.compact()
}

// compact moves low over the batches applied without a gap.
func (s *session) compact() {
	n := uint64(0)
	for n < uint64(len(s.bits))*64 && s.bits[n/64]&(1<<(n%64)) != 0 {
		n++
	}
	if n > 0 {
		s.shift(n)
		s.low += n
	}
}

func (s *session) shift(n uint64) {
	words, bits := n/64, n%64
	s.bits = slices.Delete(s.bits, 0, int(words))
	if bits > 0 {
		for i := range s.bits {
			s.bits[i] >>= bits
			if i+1 < len(s.bits) {
				s.bits[i] |= s.bits[i+1] << (64 - bits)
			}
		}
	}
	for len(s.bits) > 0 && s.bits[len(s.bits)-1] == 0 {
		s.bits = s.bits[:len(s.bits)-1]
	}
}

func (m *Machine) forgetIdleSessions() {
	if len(m.sessions) <= sessionsKept {
		return
	}
	byAge := slices.SortedFunc(maps.Keys(m.sessions), func(a, b uint64) int {
		return cmp.Or(cmp.Compare(m.sessions[a].stamp, m.sessions[b].stamp), cmp.Compare(a, b))
	})
	for _, id := range byAge[:len(byAge)-sessionsKept] {
		if m.st.Stamp-m.sessions[id].stamp > sessionIdle {
			delete(m.sessions, id)
			m.delete(ModuleShard, sessionKey(id), bulk)
		}
	}
}

func sessionKey(id uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 9), rowSession), id)
}

// saveSessions puts the rows of used sessions into the batch. They are not journalled: no command can undo them.
func (m *Machine) saveSessions() {
	m.used = m.used[:0]
	for id, s := range m.sessions {
		if s.dirty {
			m.used = append(m.used, id)
		}
	}
	slices.Sort(m.used)
	for _, id := range m.used {
		s := m.sessions[id]
		s.dirty = false
		b := binary.LittleEndian.AppendUint64(m.room(16+8*len(s.bits)), s.low)
		b = binary.LittleEndian.AppendUint64(b, uint64(s.stamp))
		for _, w := range s.bits {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
		m.set(ModuleShard, sessionKey(id), b, bulk)
	}
}

func (m *Machine) loadSessions() error {
	m.sessions = make(map[uint64]*session)
	for k, v := range m.scan(ModuleShard, []byte{rowSession}, []byte{rowSession + 1}) {
		if len(k) != 9 || len(v) < 16 || len(v)%8 != 0 {
			return errs.New(errs.Corrupt, "shard %d: malformed session row", m.id)
		}
		s := &session{low: binary.LittleEndian.Uint64(v), stamp: int64(binary.LittleEndian.Uint64(v[8:]))}
		for v = v[16:]; len(v) > 0; v = v[8:] {
			s.bits = append(s.bits, binary.LittleEndian.Uint64(v))
		}
		m.sessions[binary.BigEndian.Uint64(k[1:])] = s
	}
	return m.err
}

// SessionApplied reports whether a batch was applied.
func (m *Machine) SessionApplied(id, seq uint64) bool {
	s := m.sessions[id]
	if s == nil {
		return false
	}
	if seq < s.low {
		return true
	}
	n := seq - s.low
	return n/64 < uint64(len(s.bits)) && s.bits[n/64]&(1<<(n%64)) != 0
}
