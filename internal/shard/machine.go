package shard

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/storage"
)

// Level is the feature level of this build: replicated behaviour changes only when the shard's level is raised to it.
const Level = 1

// MachineConfig sets the bounds of a Machine. The zero value means the defaults. They must be the same on every replica.
type MachineConfig struct {
	// ChangeBytesMax bounds the change log of the shard; the oldest changes go first. Default 64 MiB.
	ChangeBytesMax uint64
	// Cache, when not nil, saves searching the store for rows that were used a moment ago. Machines that are run by one
	// goroutine may share it.
	Cache *storage.RowCache
}

// Machine is the replicated state of one shard on one node. One goroutine at a time may call its methods, but Query and
// SnapshotReader may be used from any goroutine meanwhile.
//
// Its rows are described in docs/formats/state.md. After a crash it comes back at some earlier applied index, with the
// state of exactly that index; the log does the rest.
type Machine struct {
	id      ID
	cfg     MachineConfig
	store   *storage.Store
	modules *[256]Module

	// place is where the rows are; it changes when a snapshot is installed. installs is odd while that happens, and
	// readers try again if it changed under them.
	place    atomic.Pointer[[]byte]
	gen      uint32
	installs atomic.Uint64
	// rebuilding says that queries are refused; see SetRebuilding.
	rebuilding atomic.Bool

	st       state
	sessions map[uint64]*session
	// used is where saveSessions lists some.
	used []uint64
	// nextTimer is no later than the earliest due timer; zero if there is none.
	nextTimer int64

	ov     overlay
	tx     Tx
	keyBuf []byte
	// stateBuf is where the state is encoded.
	stateBuf []byte
	changes  changeBuffer
	// wakes are given away with a commit; wakesBefore is how many there were the last time.
	wakes       []Wake
	wakesBefore int
	// deferred is what Tx.Defer was given in this entry; items is reused.
	deferred []deferred
	items    []any
	// scratch is what room gave out since the last Commit.
	scratch []byte
	// wakeKeys is where the keys of wakes are; it is given away with them.
	wakeKeys []byte
	// err is the first disk failure; it is sticky.
	err error
	// skew is used by one mutant only.
	skew func() time.Time
}

// state is the row that is rewritten with each apply.
type state struct {
	Index, Term uint64
	Revision    Revision
	// Stamp is the shard's clock, in Unix nanoseconds.
	Stamp int64
	// ChangeFirst and ChangeNext bound the change log; ChangeBytes is its size.
	ChangeFirst, ChangeNext, ChangeBytes uint64
	// Digest chains every write ever applied.
	Digest uint64
	Level  uint32
	// Conf is the raft configuration, as the replica encodes it.
	Conf []byte
}

// scratchBytesMax bounds the memory that a machine keeps for room.
const scratchBytesMax = 16 << 10

// Wake names a key whose watchers must look again.
type Wake struct {
	Module ModuleID
	Key    []byte
}

// Answer is the result of one command of a batch.
type Answer struct {
	Session, Seq uint64
	// Pos counts the batch's commands from 0. It is -1 if the whole batch had been applied before and its results are gone.
	Pos    int
	Result Result
}

// Applied collects what became of applied entries.
type Applied struct {
	// Answers holds the results of batches of the session Own.
	Own     uint64
	Answers []Answer
	// AnswerBytes counts what large ones of Answers hold. Past AnswerBytesMax, if that is not 0, further ones are left out: a small command may have an answer
	// of many megabytes, and an entry thousands of such commands. The first is kept in any case.
	AnswerBytes, AnswerBytesMax int
	// Wakes lists the keys that changed. It is valid until the next apply.
	Wakes []Wake
	// Duplicates counts the batches that were not applied because they had been before.
	Duplicates int
	// Commands counts the commands that were run.
	Commands int
}

// answerSmall is the size up to which an answer is kept whatever there is beside it: it is not much more than what is kept for its command.
const answerSmall = 4 << 10

// fit counts a result, or puts an error in its place that says that the command was done.
func (a *Applied) fit(r Result) Result {
	n := len(r.Data)
	switch {
	case n <= answerSmall || a.AnswerBytesMax == 0:
		return r
	case a.AnswerBytes > 0 && a.AnswerBytes+n > a.AnswerBytesMax:
		return Result{Revision: r.Revision, Err: &errs.Error{
			Kind: errs.OutcomeUnknown, Code: "UNKNOWN",
			Msg: "the request was done, but the node has no room for its answer beside those to others; look before you repeat it",
		}}
	}
	a.AnswerBytes += n
	return r
}

// The shard's own rows: see docs/formats/state.md.
const (
	rowState   = 'a'
	rowChange  = 'c'
	rowSession = 's'
	rowTimer   = 't'
	rowDue     = 'T'
)

const (
	placeNode  = 0x01
	placeShard = 0x02
	placeSize  = 1 + 4 + 4
)

func placeOf(id ID, gen uint32) []byte {
	b := append(make([]byte, 0, placeSize), placeShard)
	b = binary.BigEndian.AppendUint32(b, uint32(id))
	return binary.BigEndian.AppendUint32(b, gen)
}

func genKey(id ID) []byte {
	return binary.BigEndian.AppendUint32([]byte{placeNode, 'g'}, uint32(id))
}

func installedKey(id ID) []byte {
	return binary.BigEndian.AppendUint32([]byte{placeNode, 'i'}, uint32(id))
}

// Modules makes the table that machines find modules in.
func Modules(list ...Module) *[256]Module {
	var t [256]Module
	for _, m := range list {
		if m.ID() == ModuleShard || t[m.ID()] != nil {
			panic(fmt.Sprintf("module id %d is taken", m.ID()))
		}
		t[m.ID()] = m
	}
	return &t
}

// OpenMachine loads a shard's state from the store, or makes an empty one.
func OpenMachine(store *storage.Store, id ID, modules *[256]Module, cfg MachineConfig) (*Machine, error) {
	if cfg.ChangeBytesMax == 0 {
		cfg.ChangeBytesMax = 64 << 20
	}
	m := &Machine{id: id, cfg: cfg, store: store, modules: modules, gen: 1}
	g, ok, err := store.Get(genKey(id))
	if err != nil {
		return nil, err
	}
	if ok && len(g) == 4 {
		m.gen = binary.BigEndian.Uint32(g)
	}
	if err := m.dropOtherGenerations(); err != nil {
		return nil, err
	}
	return m, m.load()
}

// dropOtherGenerations removes the rows of an install that a crash cut short.
func (m *Machine) dropOtherGenerations() error {
	b := m.store.Batch()
	b.DeleteRange(placeOf(m.id, 0), placeOf(m.id, m.gen))
	b.DeleteRange(placeOf(m.id, m.gen+1), placeOf(m.id+1, 0))
	return b.Commit()
}

// load reads everything that is kept in memory from the rows of the present generation.
func (m *Machine) load() error {
	p := placeOf(m.id, m.gen)
	m.place.Store(&p)
	m.keyBuf = append(m.keyBuf[:0], p...)
	m.st = state{Level: Level}
	m.ov.reset()
	v, ok, err := m.store.Get(append(slices.Clone(p), byte(ModuleShard), rowState))
	if err != nil {
		return err
	}
	if ok {
		if err := m.st.decode(v); err != nil {
			return fmt.Errorf("shard %d: %w", m.id, err)
		}
	}
	if err := m.loadSessions(); err != nil {
		return err
	}
	// What was known is of the state before.
	m.nextTimer = 0
	m.nextTimer = m.findNextTimer()
	return m.err
}

func (s *state) encode(b []byte) []byte {
	b = append(b, 1)
	for _, v := range [...]uint64{
		s.Index, s.Term, uint64(s.Revision), uint64(s.Stamp), s.ChangeFirst, s.ChangeNext, s.ChangeBytes, s.Digest,
		uint64(s.Level),
	} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return append(b, s.Conf...)
}

func (s *state) decode(b []byte) error {
	const n = 9
	if len(b) < 1+8*n || b[0] != 1 {
		return errs.New(errs.Corrupt, "state row of %d bytes has an unknown format", len(b))
	}
	var v [n]uint64
	for i := range v {
		v[i] = binary.LittleEndian.Uint64(b[1+8*i:])
	}
	*s = state{
		Index: v[0], Term: v[1], Revision: Revision(v[2]), Stamp: int64(v[3]), ChangeFirst: v[4], ChangeNext: v[5],
		ChangeBytes: v[6], Digest: v[7], Level: uint32(v[8]), Conf: slices.Clone(b[1+8*n:]),
	}
	return nil
}

// SetRebuilding says whether the state is that of a replica which lost its data and is not yet restored from its peers: it
// is empty, or older than what this node has shown before. Queries are refused meanwhile. It must be called before the
// state is wiped, and after what restores it is committed.
func (m *Machine) SetRebuilding(yes bool) { m.rebuilding.Store(yes) }

// Readable returns nil, or the error of queries while the replica is being rebuilt.
func (m *Machine) Readable() error {
	if !m.rebuilding.Load() {
		return nil
	}
	return errs.New(errs.Unavailable, "this node's replica of shard %d is being rebuilt and cannot answer yet; ask another node", m.id)
}

// ID returns the shard's id.
func (m *Machine) ID() ID { return m.id }

// Applied returns the position of the last applied entry.
func (m *Machine) Applied() storage.Position {
	return storage.Position{Index: m.st.Index, Term: m.st.Term}
}

// Revision returns the revision of the last write.
func (m *Machine) Revision() Revision { return m.st.Revision }

// Digest returns a number that is equal on all replicas at an equal applied index.
func (m *Machine) Digest() uint64 { return m.st.Digest }

// Conf returns the raft configuration as of the applied index, nil before the first.
func (m *Machine) Conf() []byte { return m.st.Conf }

// Stamp returns the shard's clock as of the applied index.
func (m *Machine) Stamp() time.Time { return time.Unix(0, m.st.Stamp).UTC() }

// NextTimer returns a moment no later than the earliest due timer, and whether there is any timer.
func (m *Machine) NextTimer() (time.Time, bool) {
	return time.Unix(0, m.nextTimer).UTC(), m.nextTimer != 0
}

// Apply runs one committed entry. Its effects are visible to queries only after Commit. It fails if the entry cannot be
// understood; the replica must stop then, since its peers may understand it.
func (m *Machine) Apply(index, term uint64, data []byte, out *Applied) error {
	if index != m.st.Index+1 {
		panic(fmt.Sprintf("shard %d: entry %d applied after %d", m.id, index, m.st.Index))
	}
	m.st.Index, m.st.Term = index, term
	if len(data) == 0 {
		return nil
	}
	h, kind, body, err := decodeEntry(data)
	if err != nil {
		return fmt.Errorf("shard %d, index %d: %w", m.id, index, err)
	}
	m.st.Stamp = max(m.st.Stamp, h.Stamp.UnixNano())
	switch kind {
	case entryKindTimers:
		m.fireTimers(out)
	case entryKindBatch:
		if h.Session != 0 && !m.admit(h) && !env.Mutant(env.MutantDoubleApply) {
			out.Duplicates++
			if h.Session == out.Own {
				out.Answers = append(out.Answers, Answer{Session: h.Session, Seq: h.Seq, Pos: -1})
			}
			return nil
		}
		for pos := 0; len(body) > 0; pos++ {
			var c Command
			if c, body, err = nextCommand(body); err != nil {
				return fmt.Errorf("shard %d, index %d: %w", m.id, index, err)
			}
			res := m.run(c)
			if len(m.changes.buf) >= chunkBytes {
				// The changes of a batch may be far larger than the batch, and are in memory until it is committed.
				m.endChunk()
			}
			out.Commands++
			if h.Session == out.Own && h.Session != 0 {
				out.Answers = append(out.Answers, Answer{Session: h.Session, Seq: h.Seq, Pos: pos, Result: out.fit(res)})
			}
		}
	}
	m.finishEntry()
	m.endChunk()
	return nil
}

// ApplyConf stores a raft configuration as of an entry.
func (m *Machine) ApplyConf(index, term uint64, conf []byte) {
	if index != m.st.Index+1 {
		panic(fmt.Sprintf("shard %d: configuration entry %d applied after %d", m.id, index, m.st.Index))
	}
	m.st.Index, m.st.Term, m.st.Conf = index, term, slices.Clone(conf)
}

// SetConf sets the raft configuration of a shard that has none yet. It is not replicated: every replica starts with it.
func (m *Machine) SetConf(conf []byte) { m.st.Conf = slices.Clone(conf) }

// module returns a data model of this build.
func (m *Machine) module(id ModuleID) (Module, error) {
	if mod := m.modules[id]; mod != nil {
		return mod, nil
	}
	return nil, errs.New(errs.Unsupported, "no module %d in this build", id)
}

// run executes one command as a transaction.
func (m *Machine) run(c Command) Result {
	mod, err := m.module(c.Module)
	if err != nil {
		return Result{Revision: m.st.Revision, Err: err}
	}
	tx := m.begin(c.Module)
	data, err := mod.Apply(tx, c.Data)
	if err == nil {
		err = m.changes.err()
	}
	wrote := m.finish(tx, err)
	if err != nil {
		return Result{Revision: m.st.Revision, Err: err}
	}
	if wrote {
		m.st.Revision++
	}
	return Result{Data: data, Revision: m.st.Revision}
}

func (m *Machine) begin(id ModuleID) *Tx {
	m.ov.journal = m.ov.journal[:0]
	m.changes.begin()
	m.tx = Tx{m: m, module: id, begun: m.mark()}
	return &m.tx
}

// finish ends a transaction and reports whether it changed anything.
func (m *Machine) finish(tx *Tx, err error) bool {
	if err != nil && !env.Mutant(env.MutantRollbackForgotten) {
		m.rollback(tx.begun)
		return false
	}
	m.st.Digest = m.ov.digest(m.st.Digest)
	return m.wrote(tx.begun)
}

// Commit makes everything applied since the last Commit visible, in one batch with the applied index.
func (m *Machine) Commit(out *Applied) error {
	m.saveSessions()
	if m.err != nil {
		return m.err
	}
	b := m.store.Batch()
	p := *m.place.Load()
	if env.Mutant(env.MutantAppliedIndexAhead) {
		ahead := m.store.Batch()
		ahead.Set(slices.Concat(p, []byte{byte(ModuleShard), rowState}), m.st.encode(nil))
		if err := ahead.Commit(); err != nil {
			return err
		}
		if err := m.store.Flush(); err != nil {
			return err
		}
	}
	for _, g := range m.ov.gone {
		b.DeleteRange(slices.Concat(p, g.lo), slices.Concat(p, g.hi))
	}
	for i := range m.ov.rows {
		r := &m.ov.rows[i]
		m.keyBuf = append(m.keyBuf[:0], r.key...)
		if r.deleted {
			b.Delete(m.keyBuf)
		} else {
			b.Set(m.keyBuf, r.value)
		}
		m.remember(r)
	}
	m.stateBuf = m.st.encode(m.stateBuf[:0])
	b.Set(append(append(m.keyBuf[:0], p...), byte(ModuleShard), rowState), m.stateBuf)
	if err := b.Commit(); err != nil {
		// Not all that keeps a batch from being committed is damage, which would cost the whole state.
		m.err = errs.Wrap(errs.KindOf(err), err, "shard %d: commit to the state store", m.id)
		return m.err
	}
	m.ov.reset()
	if m.scratch = m.scratch[:0]; cap(m.scratch) > scratchBytesMax {
		m.scratch = nil
	}
	if m.cfg.Cache != nil {
		m.cfg.Cache.Turn()
	}
	out.Wakes, m.wakes, m.wakesBefore = m.wakes, nil, len(m.wakes)
	return nil
}

// SetSkew gives the mutant MutantClockInApply a clock to misuse.
func (m *Machine) SetSkew(now func() time.Time) { m.skew = now }
