// Package kv is the etcd data model: keys in one order with all their versions, transactions, leases and the history that
// watches are served from, run inside the state machine of a shard.
//
// It knows etcd's semantics (https://etcd.io/docs/v3.7/learning/api/) and nothing of gRPC or of etcd's messages: requests
// and answers are this package's types in encodings of its own. All keys of a space are on one shard, so that there is one
// order of revisions.
//
// # Revisions
//
// The key space has a revision of its own, which begins at 1 and rises by one with each request that changes a key, as
// etcd's clients and models expect; the shard's revision counts the writes of all models. Events within a revision are
// numbered from 0.
//
// # Rows
//
// Numbers in keys are big-endian. The newest version of a key is one row, in the order of keys, so that reading what is
// now never meets history. A version that is replaced moves to a row of its own, which says until when it was seen.
//
//	key                                 value
//	'm'                                 what the key space needs to know of itself, see space
//	'k' key                             newest version: mod create version lease (uvarints) value
//	'o' escaped key, ^mod (8)           older version: until create version lease (uvarints) value
//	'r' revision (8) number (4)         event: kind(1) mod of the version before, 0 for none (uvarint) key
//	'l' lease (8)                       lease: TTL in seconds, granted TTL, end in Unix ms, raft term (uvarints)
//	'a' lease (8) key                   nothing: the key hangs on the lease
//	'i'                                 id of a Load that has begun and not ended
//	'f' lock                            newest token seen of a lock whose keys are in another shard (uvarint)
//	't' token (8) lock                  nothing: the order in which those are forgotten
//	'T'                                 how many there are, and the highest token that was forgotten (uvarints)
//
// In an escaped key 0x00 is 0x00 0xff, and 0x00 0x01 ends it: it sorts as the key does, and none is the beginning of another.
// ^mod makes the newest version of a key come first.
//
// # Timers
//
//	'l' lease (8)   the lease is over
//	'c'             history is left to remove
//
// # Compaction
//
// Compact takes effect at once, for readers. What it lets go of is removed by timers, a bounded number of events at a time,
// so that it holds up nobody. Of an event before the compacted revision, and of the version that it replaced, nothing is
// kept; the events of the compacted revision itself are, since a watch may begin there.
package kv

import (
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// Limits of one request. Those on its size and its operations are the protocol's, as in etcd.
const (
	// DepthMax bounds how deep transactions may be nested.
	DepthMax = 32
	// AnswerBytesMax bounds the rows that one request collects; past it the request is refused.
	AnswerBytesMax = 256 << 20
	// LeaseTTLMax and LeaseTTLMin bound the TTL of a lease, in seconds. A shorter one is raised to LeaseTTLMin, which is what
	// etcd takes with its default timers.
	LeaseTTLMax = 9_000_000_000
	LeaseTTLMin = 2
)

// The errors that a protocol tells from each other.
var (
	ErrCompacted        = errs.New(errs.Compacted, "the revision asked for has been compacted; read at a newer one")
	ErrFutureRevision   = errs.New(errs.Invalid, "the revision asked for does not exist yet")
	ErrKeyNotFound      = errs.New(errs.NotFound, "the key does not exist, so that its value or lease cannot be kept")
	ErrDuplicateKey     = errs.New(errs.Invalid, "a transaction changes the same key twice")
	ErrLeaseNotFound    = errs.New(errs.NotFound, "the lease does not exist")
	ErrLeaseExists      = errs.New(errs.Exists, "the lease exists already")
	ErrLeaseTTLTooLarge = errs.New(errs.Invalid, "the TTL of a lease is at most %d s", LeaseTTLMax)
	ErrAnswerTooLarge   = errs.New(errs.TooLarge, "the answer has more than %d MiB; ask for less with a limit", AnswerBytesMax>>20)
)

// KeyValue is one version of a key.
type KeyValue struct {
	Key, Value []byte
	// Create is the revision of the key's creation, Mod that of this version; Version counts the changes since the creation, from 1.
	Create, Mod, Version int64
	// Lease is the lease that the key hangs on, 0 for none.
	Lease int64
}

// Op is an operation: *Range, *Put, *Delete or *Txn.
type Op interface{ op() }

// SortTarget says what an answer is sorted by; the numbers are etcd's.
type SortTarget uint8

// The sort targets.
const (
	ByKey SortTarget = iota
	ByVersion
	ByCreate
	ByMod
	ByValue
)

// SortOrder is etcd's.
type SortOrder uint8

// The orders. Unsorted is ascending for every target but ByKey, which is the order of keys anyway.
const (
	Unsorted SortOrder = iota
	Ascending
	Descending
)

// Range reads keys.
type Range struct {
	// Key and End name the keys: Key alone if End is empty, Key and all behind it if End is one zero byte, else Key <= key < End.
	Key, End []byte
	// Limit bounds the keys in the answer, 0 does not.
	Limit int64
	// Revision to read at; 0 is the newest.
	Revision             int64
	Target               SortTarget
	Order                SortOrder
	KeysOnly             bool
	CountOnly            bool
	MinMod, MaxMod       int64
	MinCreate, MaxCreate int64
}

// filtered says whether only some versions are wanted.
func (o *Range) filtered() bool { return o.MinMod|o.MaxMod|o.MinCreate|o.MaxCreate != 0 }

// Put writes a key.
type Put struct {
	Key, Value []byte
	Lease      int64
	// WantPrev asks for the version before.
	WantPrev bool
	// KeepValue and KeepLease leave as they are what the key must have then.
	KeepValue, KeepLease bool
}

// Delete removes keys, named as in Range.
type Delete struct {
	Key, End []byte
	WantPrev bool
}

// Relation of a Compare; the numbers are etcd's.
type Relation uint8

// The relations.
const (
	Equal Relation = iota
	Greater
	Less
	NotEqual
)

// CompareTarget is what a Compare looks at; the numbers are etcd's.
type CompareTarget uint8

// The targets.
const (
	Version CompareTarget = iota
	CreateRevision
	ModRevision
	Value
	Lease
)

// Compare is a condition on all keys that Key and End name; a key that is not there has zeros, and no value that equals
// any other.
type Compare struct {
	Key, End []byte
	Relation Relation
	Target   CompareTarget
	// Number is compared with, or Value for the target Value.
	Number int64
	Value  []byte
}

// Txn does Then if all comparisons hold, Else if not. Conditions of transactions inside are decided before anything is done.
type Txn struct {
	If         []Compare
	Then, Else []Op
}

func (*Range) op()  {}
func (*Put) op()    {}
func (*Delete) op() {}
func (*Txn) op()    {}

// Answer is the answer to an operation. Which fields count depends on the operation.
type Answer struct {
	// Op says to which operation.
	Op OpKind
	// Revision is the key space's: after a write, that of the write.
	Revision int64
	// KVs are the versions read by Range, or those before a Put or Delete that asked for them.
	KVs []KeyValue
	// More says that Limit cut the answer of a Range. Count is the number of keys in its range, or of those deleted.
	More  bool
	Count int64
	// Succeeded says whether a Txn's conditions held. Answers are those to the operations done.
	Succeeded bool
	Answers   []Answer
}

// OpKind numbers the operations in encodings.
type OpKind uint8

// The kinds.
const (
	OpRange OpKind = iota + 1
	OpPut
	OpDelete
	OpTxn
)

// ReadOnly says whether an operation changes nothing whatever the conditions say.
func ReadOnly(o Op) bool {
	switch o := o.(type) {
	case *Range:
		return true
	case *Txn:
		for _, ops := range [][]Op{o.Then, o.Else} {
			for _, o := range ops {
				if !ReadOnly(o) {
					return false
				}
			}
		}
		return true
	}
	return false
}

// Module is the data model; see shard.Module.
type Module struct {
	// Answers bounds what queries collect. What a command reads is bounded by its own limit alone, since replicas must not differ in what
	// they refuse.
	Answers *Budget
}

var _ shard.Module = Module{}

// ID implements shard.Module.
func (Module) ID() shard.ModuleID { return shard.ModuleKV }
