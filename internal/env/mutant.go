package env

// Mutation names a planted defect. Each is one line of wrong code at the place that guards against a known class of bug;
// a test switches it on and shows that the simulation finds it. See ARCHITECTURE.md, "Mutants".
type Mutation int

// The planted defects.
const (
	MutantNone Mutation = iota
	// MutantAckBeforeSync tells raft that entries are durable before they were synced.
	MutantAckBeforeSync
	// MutantHardStateNotSaved drops term and vote from log writes.
	MutantHardStateNotSaved
	// MutantStaleReadIndex serves a read at the local commit index without asking a quorum.
	MutantStaleReadIndex
	// MutantDoubleApply ignores the session table, so that a retried proposal is applied again.
	MutantDoubleApply
	// MutantTornTailKept takes a record whose checksum fails at the end of the log for a good one.
	MutantTornTailKept
	// MutantBitFlipBelieved skips record checksums when the log is read.
	MutantBitFlipBelieved
	// MutantAppliedIndexAhead stores the applied index before the writes it covers.
	MutantAppliedIndexAhead
	// MutantLogCutEarly cuts the log at the applied index, not at what the state store has flushed.
	MutantLogCutEarly
	// MutantSnapshotNoSession leaves the session table out of snapshots.
	MutantSnapshotNoSession
	// MutantSnapshotChunkSkipped loses a chunk of a received snapshot and installs it all the same.
	MutantSnapshotChunkSkipped
	// MutantAckBeforeCommit answers a proposal once the local log has it.
	MutantAckBeforeCommit
	// MutantSuffixKept keeps conflicting entries when a new leader overwrites the log's tail.
	MutantSuffixKept
	// MutantClockInApply lets state depend on the node's own clock.
	MutantClockInApply
	// MutantUnknownIsFailed reports a proposal that timed out as certainly not applied.
	MutantUnknownIsFailed
	// MutantSyncErrorIgnored goes on after a failed sync.
	MutantSyncErrorIgnored
	// MutantRollbackForgotten keeps the writes of a command that returned an error.
	MutantRollbackForgotten
	// MutantAmnesia lets a replica vote and count in quorums after its log was found damaged.
	MutantAmnesia
	// MutantLeaseForgotten lets a node vote at once after a restart, although it may have promised a leader with a read
	// lease not to.
	MutantLeaseForgotten
	// MutantReadBeforeTerm lets a leader answer reads before an entry of its own term is committed.
	MutantReadBeforeTerm
	// MutantWakeLost wakes only the watchers on the node that a write came from.
	MutantWakeLost
	// MutantLeaseKeptOnMove lets a leader answer reads by itself after it told another node to take over.
	MutantLeaseKeptOnMove
	// MutantRebuildingRead answers reads from a replica that lost its data and is not restored yet.
	MutantRebuildingRead
	// MutantFenceUnchecked lets a write under any fencing token through. The simulation has no locks: a test of package kv finds it.
	MutantFenceUnchecked
	// MutantMoveMisjudged answers a hand-over as done whoever was elected.
	MutantMoveMisjudged
	// MutantVoteSaidOnce writes votes to the log once, so that damage to the last record takes them away.
	MutantVoteSaidOnce
	// MutantInstallNotSaved lets the log begin behind a snapshot before the state store has it for good.
	MutantInstallNotSaved
	mutationEnd
)

// Mutations lists all planted defects.
func Mutations() []Mutation {
	var all []Mutation
	for m := MutantNone + 1; m < mutationEnd; m++ {
		all = append(all, m)
	}
	return all
}
