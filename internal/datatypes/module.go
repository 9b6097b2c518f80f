// Package datatypes is the Redis data model: strings, hashes, keys with a time to live, transactions and events, run
// inside the state machine of a shard.
//
// Every command is one log entry and one apply; every read runs on a consistent view. Answers are RESP3 (Redis
// serialization protocol 3), ready to be sent; a protocol server turns them into RESP2 where a client asks for that.
// The commands are the entries of one table, see Commands: a new one is an entry, a handler and an op number.
//
// # Rows
//
// Integers in keys are big-endian, in values little-endian. hash(x) is the 64-bit xxHash of x.
//
//	key                                      value
//	'k' slot(2) hash(key)>>32 (4) key        head: kind(1) revision(8) [expires, Unix ms (8)] body
//	'h' instance(8) hash(field)>>32 (4) field   value of a hash's field
//	'd' hash(key)&0x3fff (2)                 revision(8) of the last disappearance of any key of that bucket
//	'i'                                      last instance number given out (8)
//
// kind is 's' (string: body is the value) or 'h' (hash: body is instance(8) count(8)), with bit 7 set if the key
// expires. slot and hash in front of the key give SCAN a cursor that is a number and needs no memory, and make a slot's
// keys one range. A hash's fields hang on an instance number, not on its key: DEL, overwriting and RENAME of a hash of
// any size touch its head alone, and a timer removes the fields of the old instance a few at a time.
//
// # Timers
//
//	'x' key          the key expires
//	'g' instance(8)  fields of a dropped instance are left to remove
//
// # Watched keys
//
// A key's version (see Watched) is the revision of its last change. A missing key has none, so its version is that of its
// bucket: it changes with each disappearance of any of the keys that share the bucket. A key that came and went between
// WATCH and EXEC is therefore always noticed, at the price of one small row a deletion and of an EXEC that fails for
// nothing with a chance of 1/16384 for each key deleted meanwhile.
package datatypes

import (
	"sync"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// Limits of one request and of what it may grow a value to.
const (
	// KeyBytesMax bounds a key.
	KeyBytesMax = 64 << 10
	// CommandBytesMax bounds an encoded command: it is what one log entry carries.
	CommandBytesMax = 8 << 20
	// ValueBytesMax bounds a string, also one that APPEND or SETRANGE grows. A longer one could not be written by SET.
	ValueBytesMax = CommandBytesMax
	// AnswerBytesMax bounds an answer; HGETALL and KEYS may pass it, HSCAN and SCAN do not.
	AnswerBytesMax = 64 << 20
	// BatchAnswerBytes ends a batch of reads early; the rest is asked for again.
	BatchAnswerBytes = 4 << 20
	// LargeBytes is from where on what a query answers counts in Config.Answers.
	LargeBytes = 64 << 10
	// FlushKeysMax is how many keys one step of FLUSHALL removes.
	FlushKeysMax = 4096
)

// EventHeader is a header of an event.
type EventHeader struct {
	Name  string
	Value []byte
}

// Config makes a Module.
type Config struct {
	// AppendEvent appends to b the command of module eventlog that appends one record to a partition. The command must answer
	// with the record's offset, eight bytes big-endian. If it is nil, EVENT.ADD is refused. locks are those whose fences the
	// running command has passed.
	AppendEvent func(b []byte, e *Event, locks [][]byte) []byte
	// EncodeFence returns the command of module kv that fails with errs.Fenced unless a fence holds. If it is nil, fenced
	// commands are refused.
	EncodeFence func(lock []byte, token int64, home bool) []byte
	// Answers bounds what queries collect at a time, beside LargeBytes of each. What a command answers does not count, since replicas must not
	// differ in what they apply. Nil bounds nothing.
	Answers Budget
	// QueriesMax is how many queries read data at a time, the others wait: one that Answers will refuse has its value in memory, too. Zero is any number.
	QueriesMax int
}

// Budget is a number of bytes that those who share it may have together. Its methods may be called from any goroutine.
type Budget interface {
	// Take takes bytes, which must be given back. If there are not so many it takes none, and fails with an error of kind errs.Overloaded.
	Take(n int64) error
	Give(n int64)
}

// Module is the data model; see shard.Module.
type Module struct {
	cfg  Config
	byOp [256]*Spec
	// calls recycles the scratch space of running commands.
	calls sync.Pool
	// queries has a place for each that may run; nil is any number.
	queries chan struct{}
}

var _ shard.Module = (*Module)(nil)

// New returns the module.
func New(cfg Config) *Module {
	m := &Module{cfg: cfg}
	if cfg.QueriesMax > 0 {
		m.queries = make(chan struct{}, cfg.QueriesMax)
	}
	for i := range table {
		s := &table[i]
		if m.byOp[s.Op] != nil || s.Op < opFirst && s.Op != opEventAdd {
			panic("datatypes: op number of " + s.Name + " is taken")
		}
		m.byOp[s.Op] = s
	}
	m.calls.New = func() any { return new(call) }
	return m
}

// ID implements shard.Module.
func (m *Module) ID() shard.ModuleID { return shard.ModuleDatatypes }

// call is one running command.
type call struct {
	m *Module
	// tx is nil in a query; v is tx or the query's view.
	tx *shard.Tx
	v  shard.View
	// clock is what now returns, once somebody asked. node is the clock of the node that a query came to, 0 for commands.
	clock, node int64
	// seed feeds the commands that choose at random.
	seed uint64
	spec *Spec
	args [][]byte
	// locks are those whose fences the command has passed.
	locks [][]byte
	// event is what EVENT.ADD appends.
	event Event
	// out is the answer.
	out []byte
	// before is what a batch has answered before, and taken what a query has taken from Config.Answers.
	before, taken int
	key           []byte
	// damaged says that a row had no known format. Storage checksums should have caught that; it must not pass for a
	// missing key, so that the whole command fails.
	damaged bool
}

func (m *Module) begin() *call {
	c := m.calls.Get().(*call)
	args, key := c.args[:0], c.key[:0]
	*c = call{m: m, args: args, key: key}
	return c
}

func (m *Module) end(c *call) {
	clear(c.args[:cap(c.args)])
	if c.taken > 0 {
		m.cfg.Answers.Give(int64(c.taken))
		c.taken = 0
	}
	c.tx, c.v, c.out, c.locks, c.event = nil, nil, nil, nil, Event{}
	if cap(c.args) <= 1024 && cap(c.key) <= 1024 {
		m.calls.Put(c)
	}
}

// now returns the shard's clock in Unix milliseconds: it decides what has expired. For a query it is a row that has to be read,
// and most keys do not expire.
func (c *call) now() int64 {
	if c.clock == 0 {
		c.clock = c.v.Now().UnixMilli()
	}
	return c.clock
}

// Apply implements shard.Module.
func (m *Module) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	d := decoder{codec.Read(cmd)}
	if v := d.Byte(); v != encodingVersion {
		return nil, errs.New(errs.Unsupported, "datatypes command of version %d; this build knows version %d", v, encodingVersion)
	}
	op := Op(d.Byte())
	c := m.begin()
	defer m.end(c)
	c.tx, c.v = tx, tx
	if op == opFenced {
		if err := c.passFences(&d); err != nil {
			return nil, err
		}
		if op = Op(d.Byte()); op == opFenced {
			return nil, errMalformed()
		}
	}
	c.seed = mix(uint64(tx.Revision()))
	switch op {
	case opExec:
		return m.exec(c, d)
	case opFlushStep:
		return c.flushStep(d)
	}
	c.args = d.args(c.args)
	if !d.Done() {
		return nil, errMalformed()
	}
	if op == opSet && len(c.args) == 2 {
		return c.setPlain(c.args[0], c.args[1])
	}
	return c.run(op)
}

// passFences fails unless each fence in front of a command holds.
func (c *call) passFences(d *decoder) error {
	n := d.Uvarint()
	if n > FencesMax || c.m.cfg.EncodeFence == nil {
		return errs.New(errs.Unsupported, "a command under %d fences, in a build for at most %d", n, FencesMax)
	}
	for ; n > 0; n-- {
		home, token, lock := d.Bool(), int64(d.Uvarint()), d.Bytes()
		if d.Bad() {
			return errMalformed()
		}
		if _, err := c.tx.Call(shard.Command{Module: shard.ModuleKV, Data: c.m.cfg.EncodeFence(lock, token, home)}); err != nil {
			return err
		}
		c.locks = append(c.locks, lock)
	}
	return nil
}

// Query implements shard.Module.
func (m *Module) Query(v shard.View, q []byte) ([]byte, error) {
	d := decoder{codec.Read(q)}
	if v := d.Byte(); v != encodingVersion {
		return nil, errs.New(errs.Unsupported, "datatypes query of version %d; this build knows version %d", v, encodingVersion)
	}
	op := Op(d.Byte())
	node, seed := int64(d.Uint64()), d.Uint64()
	c := m.begin()
	defer m.end(c)
	c.v = v
	c.node = node
	c.seed = mix(seed)
	switch op {
	case opVersions:
		return c.versions(d)
	case opKeyCount:
		return c.keyCount(d)
	case opSlotCount, opSlotKeys:
		return c.slotQuery(op, d)
	}
	if m.queries != nil {
		m.queries <- struct{}{}
		defer func() { <-m.queries }()
	}
	if op == opBatch {
		return m.batch(c, d)
	}
	c.args = d.args(c.args)
	if !d.Done() {
		return nil, errMalformed()
	}
	return c.run(op)
}

// run checks and executes the command in c.args.
func (c *call) run(op Op) ([]byte, error) {
	s := c.m.byOp[op]
	if s == nil {
		return nil, errs.New(errs.Unsupported, "datatypes op %d is not known to this build", op)
	}
	c.spec = s
	if !s.arityOK(len(c.args) + 1) {
		return nil, errArity(s.Name)
	}
	if c.tx == nil && s.Flags&Write != 0 {
		return nil, errs.New(errs.Internal, "%s was sent as a query", s.Name)
	}
	for _, k := range s.keysOf(c.args) {
		if len(k) > KeyBytesMax {
			return nil, errKeyTooLong(len(k))
		}
	}
	if err := s.run(c); err != nil {
		return nil, err
	}
	if c.damaged {
		return nil, errDamaged()
	}
	if len(c.out) > AnswerBytesMax {
		return nil, errAnswerTooLarge()
	}
	if err := c.grow(len(c.out)); err != nil {
		return nil, err
	}
	return c.out, nil
}

// grow fails if there is no room for n bytes of the answer beside those of other queries. Who collects much calls it while that grows.
func (c *call) grow(n int) error {
	if more := c.before + n - c.taken; more > LargeBytes && c.tx == nil && c.m.cfg.Answers != nil {
		if err := c.m.cfg.Answers.Take(int64(more)); err != nil {
			return err
		}
		c.taken += more
	}
	return nil
}

func errDamaged() error {
	return errs.New(errs.Corrupt, "a row of the data model has an unknown format")
}

// batch runs reads one after the other on one view. Each answer is preceded by its length; errors are answers too.
func (m *Module) batch(c *call, d decoder) ([]byte, error) {
	var all []byte
	for n := d.Uvarint(); n > 0 && !d.Bad(); n-- {
		op := Op(d.Byte())
		c.args = d.args(c.args[:0])
		if d.Bad() {
			break
		}
		c.out, c.before = nil, len(all)
		out, err := c.run(op)
		if errs.Is(err, errs.Overloaded) && len(all) > 0 {
			// There may be room for it alone, or for what comes behind it.
			return all, nil
		}
		if err != nil {
			out = AppendError(nil, err)
		}
		all = codec.AppendBytes(all, out)
		if len(all) > BatchAnswerBytes {
			return all, nil
		}
	}
	if !d.Done() {
		return nil, errMalformed()
	}
	return all, nil
}

// Fire implements shard.Module.
func (m *Module) Fire(tx *shard.Tx, key []byte) error {
	if len(key) == 0 {
		return errs.New(errs.Corrupt, "timer without a name")
	}
	c := m.begin()
	defer m.end(c)
	c.tx, c.v = tx, tx
	switch key[0] {
	case timerExpire:
		c.fireExpire(key[1:])
	case timerGarbage:
		c.fireGarbage(key)
	}
	if c.damaged {
		return errDamaged()
	}
	return nil
}

// mix spreads a seed over all bits (the finaliser of SplitMix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// random returns the next number of the command's own sequence.
func (c *call) random() uint64 {
	c.seed = mix(c.seed)
	return c.seed
}
