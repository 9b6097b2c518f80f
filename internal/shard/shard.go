// Package shard is Quorate's narrow waist: it says what a replicated state machine may do (Tx), what a data model must
// provide (Module) and how anyone asks for it (Client). The engine and the data models both depend on it and never on
// each other.
//
// It also holds Machine, the state machine of one shard: it turns log entries into calls of modules, one after the other
// and the same on every replica, and keeps what all modules need: one revision, one clock, one timer table, one change
// log, and the table of sessions that makes a retried proposal harmless.
//
// Nothing here starts a goroutine or reads a clock; only Hub, which sits beside the machine, takes a lock.
package shard

import (
	"context"
	"iter"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/storage"
)

// ID numbers a shard: one Raft group, the unit of atomicity, order, replication and placement.
type ID = storage.ShardID

// NodeID numbers a node within its cluster, from 1.
type NodeID uint32

// Revision is the number of a shard's last applied write. It rises by one with each request that changes anything, and is
// the session token. (The etcd revision is the key space's own; see package kv.)
type Revision uint64

// ModuleID tags a module's keys and commands. It is written to disk: never reused. 0 is the shard's own.
type ModuleID uint8

// The module ids in use.
const (
	ModuleShard     ModuleID = 0
	ModuleKV        ModuleID = 1
	ModuleDatatypes ModuleID = 2
	ModuleEventlog  ModuleID = 3
	ModuleAuth      ModuleID = 4
)

// Module is one data model, running inside every shard. One value serves all shards of a node: it holds no state of its
// own besides constants. Its commands start with a version byte.
type Module interface {
	// ID returns the module's number.
	ID() ModuleID
	// Apply runs a command. It must depend on nothing but tx and cmd: no clock, no randomness, no map order. The result is
	// the answer to the client. An error discards the command's writes, and is the answer. cmd must not be kept.
	Apply(tx *Tx, cmd []byte) ([]byte, error)
	// Query answers a read. It may run at the same time as Apply and other queries; v is a consistent view.
	Query(v View, q []byte) ([]byte, error)
	// Fire is called when a timer set with Tx.SetTimer is due; the timer is gone by then. An error discards the writes.
	Fire(tx *Tx, key []byte) error
}

// Finisher is a Module that puts off work with Tx.Defer to the end of the entry: there it sees what all commands of the
// entry want, and may do it in one go.
type Finisher interface {
	Module
	// Finish gets what the module's commands put off, in their order, without those that were undone. It must do it: there
	// is nobody left to refuse.
	Finish(tx *Tx, items []any)
}

// View is a consistent read-only view of one module's keys in one shard. Its methods return no error: a disk failure is
// sticky, and discards the answer before anyone sees it.
type View interface {
	// Get returns the value of a key, and whether there is one. The caller may keep but not change the value.
	Get(key []byte) ([]byte, bool)
	// Scan yields the pairs with from <= key < to in order; a nil to means the end of the module's keys. The slices are
	// valid until the next step, and the module must not write between steps.
	Scan(from, to []byte) iter.Seq2[[]byte, []byte]
	// Ask runs another module's query on the same view: that is how a module which stands before another one answers for it.
	Ask(q Command) ([]byte, error)
	// Now is the shard's clock: stamped by the leader into each entry, never going back. What has expired at Now has
	// expired for everyone.
	Now() time.Time
	// Revision returns the revision of the last write in the view.
	Revision() Revision
	// Changes returns stored changes from a position in the shard's change log on: as many as fit into bytesMax, at least
	// one if there is any. It fails with errs.Compacted when they are no longer kept.
	Changes(from uint64, bytesMax int) (ChangeSet, error)
}

// ChangeSet is a stretch of a shard's change log.
type ChangeSet struct {
	// First and End bound what the log holds: positions First <= p < End.
	First, End uint64
	// From is the position of Changes[0].
	From    uint64
	Changes []Change
}

// Change is one committed change, as the change log stores it.
type Change struct {
	// Revision is the revision the change was made in.
	Revision Revision
	// At is the shard's clock at the change.
	At time.Time
	// Op names the operation in lower case, such as "set" or "del".
	Op string
	// Key is the key as the client named it.
	Key []byte
	// Value is the new value; nil means that the key is gone.
	Value []byte
	// Headers are further facts, such as the field of a hash.
	Headers []Header
}

// Header is a named value of a change.
type Header struct {
	Name  string
	Value []byte
}

// Command is a request to one module.
type Command struct {
	Module ModuleID
	Data   []byte
}

// Route says where a request goes. Protocol servers take it from a Topology.
type Route struct {
	Shard ID
}

// Consistency says how fresh a read must be.
type Consistency struct {
	// Stale allows any state this node has. The zero value means linearizable. A node that lost its data and is not yet
	// restored from its peers has none: it answers errs.Unavailable.
	Stale bool
	// AtLeast, with Stale, waits until this revision is applied here: a session token.
	AtLeast Revision
}

// Linearizable is the default: the read sees every write that was acknowledged before it began.
var Linearizable = Consistency{}

// Result is the answer to a command.
type Result struct {
	// Data is what the module returned.
	Data []byte
	// Revision is that of the command's writes, or the shard's at that point if it wrote nothing.
	Revision Revision
	// Err is nil, or an *errs.Error. OutcomeUnknown means that the command may have been or may yet be applied; each other
	// kind means that it was not and never will be.
	Err error
}

// Future is an answer that may not be there yet. It is completed once.
type Future struct {
	done chan struct{}
	res  Result
	then func(Result)
}

// NewFuture returns an open future.
func NewFuture() *Future { return &Future{done: make(chan struct{})} }

// NewCallback returns an open future that nobody can wait for: whoever completes it calls then.
func NewCallback(then func(Result)) *Future { return &Future{then: then} }

// Calls says whether Complete calls a function, which may take its time.
func (f *Future) Calls() bool { return f.then != nil }

// Failed returns a future that holds an error.
func Failed(err error) *Future {
	f := NewFuture()
	f.Complete(Result{Err: err})
	return f
}

// Complete stores the answer and wakes those who wait. It must be called once.
func (f *Future) Complete(r Result) {
	if f.then != nil {
		f.then(r)
		return
	}
	f.res = r
	close(f.done)
}

// Done returns a channel that is closed when the answer is there.
func (f *Future) Done() <-chan struct{} { return f.done }

// Wait returns the answer. If ctx ends first the outcome is unknown: the command may have been proposed.
func (f *Future) Wait(ctx context.Context) Result {
	select {
	case <-f.done:
		return f.res
	default:
	}
	select {
	case <-f.done:
		return f.res
	case <-ctx.Done():
		return Result{Err: errs.New(errs.OutcomeUnknown, "no answer within the time limit; the request may have been or may still be applied: look before you repeat it")}
	}
}

// Span is a range of one module's keys, for Watch. A nil To means the single key From.
type Span struct {
	Module   ModuleID
	From, To []byte
}

// Watch tells that something in its span may have changed. It carries no data: after each signal the watcher reads from
// its own position, so that nothing is lost however slow it is, and a slow watcher costs nobody anything.
type Watch struct {
	// C has room for one signal; signals that find it full are merged into it.
	C <-chan struct{}
	// Close ends the watch. It may be called more than once.
	Close func()
}

// The errors of a hand-over of leadership that a protocol tells from others.
var (
	ErrNotLeader   = errs.New(errs.Unavailable, "this node does not lead the shard")
	ErrNoVoter     = errs.New(errs.Invalid, "the node does not vote in the shard")
	ErrMoveTimeout = errs.New(errs.OutcomeUnknown, "the hand-over of leadership took too long")
)

// Client is how protocol servers and everything above ask a cluster. All methods may be called from any goroutine.
type Client interface {
	// Submit hands in a command and returns at once. The command's slices must not be changed until the future is done.
	// ctx's deadline travels with the command: past it the command is dropped if it was not proposed, and the answer is
	// OutcomeUnknown if it was. Commands submitted by one goroutine to one shard are applied in that order unless a
	// leader change comes between. When a queue is full the future fails at once with Overloaded.
	Submit(ctx context.Context, r Route, c Command) *Future
	// Query runs a read and waits for it.
	Query(ctx context.Context, r Route, at Consistency, q Command) ([]byte, error)
	// Ask is Query for those who do not wait: then is called once with what Query would have returned, from any goroutine, which may be the
	// caller's before Ask returns. It must not block, nor ask in turn. ctx's deadline travels with the read; its end otherwise is not heeded, and
	// a node whose disk has stalled may call later. So who must not be kept waiting gives up by himself.
	Ask(ctx context.Context, r Route, at Consistency, q Command, then func([]byte, error))
	// Watch registers for signals about a span of a shard, wherever this node is in applying it.
	Watch(r Route, s Span) *Watch
	// Topology returns the newest known map of the cluster. It never changes; ask again for a newer one.
	Topology() *Topology
	// Now returns the node's clock, for time-outs and for display only.
	Now() time.Time
}
