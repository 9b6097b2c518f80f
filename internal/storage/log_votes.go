package storage

import "github.com/quorate/quorate/internal/env"

// A damaged record at the very end of the log looks like one that was being written in a crash, and is cut. Who held the entries that stood in it
// is told by the leader, who has the confirmation; but nobody tells a voter what vote it gave, or a replica that it gave itself up for what it lost before.
// So a batch that changes a term, a vote or a replica id is followed by another that says it again, in the same write and from another block of the disk
// on, and what is cut leaves behind what can still be read of that. To take over a vote that was never given is always allowed: it only keeps the
// replica from giving another one. A replica id that was not synced was not used yet, and nothing is known of the shard under it.

// votesApart is the size of a block of the disk: what a batch says of votes and what is said again lie in different ones.
const votesApart = 4 << 10

// votes returns what is to be said again of a batch: the sub-records that change the term, the vote or the replica id of their shard.
func (l *Log) votes(ws []Write) []subRecord {
	var again []subRecord
	if env.Mutant(env.MutantVoteSaidOnce) {
		return nil
	}
	for i := range ws {
		w := &ws[i]
		s := l.shards[w.Shard]
		if s == nil {
			s = &shardLog{}
		}
		was, v := s.state, subRecord{shard: w.Shard, counter: s.counter + 2, replica: s.replica}
		moves := w.Replica != 0 && w.Replica != s.replica
		if moves {
			was, v.replica = HardState{}, w.Replica
		}
		if w.State != (HardState{}) && (w.State.Term != was.Term || w.State.Vote != was.Vote) {
			v.flags, v.state = subState, w.State
		}
		if w.Remove || !moves && v.flags == 0 {
			continue
		}
		if v.replica != 0 {
			v.flags |= subReplica
		}
		again = append(again, v)
	}
	return again
}

// votesBytesMax bounds what appendVotes appends.
func votesBytesMax(again []subRecord) int64 {
	if len(again) == 0 {
		return 0
	}
	return votesApart + 2*recordHeaderBytes + align8(votesPayload(again))
}

func votesPayload(again []subRecord) int64 {
	n := int64(4)
	for i := range again {
		n += int64(subRecordBytes(again[i].flags))
	}
	return n
}

// appendVotes appends a batch that says votes again, number being that of its first record, and returns how many records that took. buf begins
// where the segment's records end. A seal with a payload of zeros fills the block before.
func (l *Log) appendVotes(buf []byte, number uint64, again []subRecord, seed uint32) ([]byte, uint64) {
	if len(again) == 0 {
		return buf, 0
	}
	n := uint64(0)
	if gap := -(l.pos + int64(len(buf))) & (votesApart - 1); gap > 0 {
		if gap < recordHeaderBytes {
			gap += votesApart
		}
		start := len(buf)
		buf = beginRecord(buf, kindSeal, number, l.synced)
		buf = endRecord(append(buf, make([]byte, gap-recordHeaderBytes)...), start, seed)
		n++
	}
	start := len(buf)
	buf = le.AppendUint32(beginRecord(buf, kindBatch, number+n, l.synced), uint32(len(again)))
	for i := range again {
		buf = again[i].encodeTail(again[i].encodeHead(buf))
	}
	return endRecord(buf, start, seed), n + 1
}

// keepVotes takes terms and votes out of records that are cut.
func (r *recovery) keepVotes(recs []record, seq uint64) {
	for i := range recs {
		if rec := &recs[i]; rec.kind == kindBatch {
			// What cannot be decoded is cut like the rest.
			_ = decodeBatch(rec.payload, rec.off+recordHeaderBytes, seq, r.keepVote)
		}
	}
}

func (r *recovery) keepVote(sub *subRecord, _ []slot, _ []uint64) {
	l := r.l
	s := l.shards[sub.shard]
	switch {
	case sub.flags&(subState|subReplica) == 0 || sub.flags&subRemove != 0:
		return
	case sub.flags&subReplica != 0 && (s == nil || s.replica != sub.replica):
		// The record in which the shard got its replica id is cut too.
		l.applyLocked(&subRecord{shard: sub.shard, flags: subReplica | subForget, replica: sub.replica, counter: sub.counter}, nil, nil)
		delete(r.holes, sub.shard)
		s = l.shards[sub.shard]
		s.epoch = r.epoch
		r.out.Votes++
	case s == nil:
		return
	}
	if v := sub.state; v.Term > s.state.Term || v.Term == s.state.Term && s.state.Vote == 0 && v.Vote != 0 {
		s.state.Term, s.state.Vote = v.Term, v.Vote
		r.out.Votes++
	}
}
