package storage

// Entry is one entry of a shard's raft log, as the log stores it. The log gives Type and Data no meaning.
type Entry struct {
	// Index is the entry's position, from 1, without gaps within a shard.
	Index uint64
	// Term is the raft term in which it was proposed; it never falls from one index to the next.
	Term uint64
	// Type is raft's entry type.
	Type uint8
	// Data is the payload. The log keeps no reference to it after Append returns.
	Data []byte
}

// HardState is what raft must remember across a crash besides its entries (Raft paper, figure 2, "persistent state").
type HardState struct {
	Term, Vote, Commit uint64
}

// Position is a point in a shard's log.
type Position struct {
	Index, Term uint64
}

// Write is what one shard wants on disk in one turn. The fields take effect in the order they stand here.
type Write struct {
	Shard ShardID
	// Replica, when not zero, is the replica id that this node now has in the shard. Changing it forgets everything the
	// log knows of the shard, as Remove does.
	Replica uint64
	// Reset, when not nil, forgets all entries; the log goes on after this position. Used when a snapshot is installed.
	Reset *Position
	// Entries are contiguous. The first may be at most one past the last stored entry; stored entries at and after it are
	// replaced.
	Entries []Entry
	// State replaces the hard state, when it is not zero.
	State HardState
	// Cut, when not zero, says that entries at and before it are no longer needed. The term at Cut stays known. A cut that
	// is lost in a crash does no harm and need not be synced by itself.
	Cut uint64
	// Remove forgets the shard altogether.
	Remove bool
}

// LogConfig sets the sizes of a Log. The zero value means the defaults.
type LogConfig struct {
	// SegmentBytes is the size of a segment file; default 16 MiB. A record larger than that gets a segment of its own size.
	SegmentBytes int64
	// RecycleSegments is how many cut segments are kept to be written again; default 4.
	RecycleSegments int
}

// Recovery says what OpenLog found.
type Recovery struct {
	// TornBytes is the length of an unfinished write at the end, which was cut. It was never acknowledged.
	TornBytes int64
	// Damaged lists damage that is not a torn tail. Empty means that the log is whole.
	Damaged []Damage
	// Suspect lists the shards of which a record is lost or may be lost: their hard state and entries may lag what this
	// node has promised, so their replicas must not vote, answer or count towards a quorum. Shards that are provably whole
	// are not listed. A shard may be suspect without being in Log.Shards, if all its records are lost: then AllSuspect is set.
	Suspect []ShardID
	// AllSuspect says that shards unknown to the log may have lost records too (for instance a whole segment is missing).
	AllSuspect bool
}

// Damage is one stretch of bytes that is not what was written.
type Damage struct {
	File   string
	Offset int64
	Length int64
	Reason string
}
