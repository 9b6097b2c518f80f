package storage

import "github.com/quorate/quorate/internal/env"

// A damaged record at the very end of the log looks like one that was being written in a crash, and is cut. Who held the entries that stood in it
// is told by the leader, who has the confirmation; but nobody tells a voter what vote it gave. So a batch that changes a term or a vote is
// followed by another that says it again, in the same write and from another block of the disk on, and what is cut leaves the terms and votes behind that
// can still be read in it. To take over a vote that was never given is always allowed: it only keeps the replica from giving another one.

// votesApart is the size of a block of the disk: what a batch says of votes and what is said again lie in different ones.
const votesApart = 4 << 10

// votes returns what is to be said again of a batch: the sub-records that change the term or the vote of their shard.
func (l *Log) votes(ws []Write) []subRecord {
	var again []subRecord
	if env.Mutant(env.MutantVoteSaidOnce) {
		return nil
	}
	for i := range ws {
		w := &ws[i]
		if w.Remove || w.State == (HardState{}) {
			continue
		}
		r := l.subRecordOf(w)
		was, replica := HardState{}, w.Replica
		if s := l.shards[w.Shard]; s != nil && r.flags&subForget == 0 {
			was, replica = s.state, s.replica
			if r.flags&subReplica != 0 {
				replica = w.Replica
			}
		}
		if w.State.Term == was.Term && w.State.Vote == was.Vote {
			continue
		}
		v := subRecord{shard: w.Shard, flags: subState, counter: r.counter + 1, state: w.State}
		if replica != 0 {
			v.flags |= subReplica
			v.replica = replica
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
	if sub.flags&subState == 0 || sub.flags&subRemove != 0 {
		return
	}
	s := l.shards[sub.shard]
	switch {
	case sub.flags&subReplica != 0 && (s == nil || s.replica != sub.replica):
		// The record in which the shard got its replica id is cut too. It has nothing under that id but the vote.
		l.applyLocked(&subRecord{shard: sub.shard, flags: subReplica | subForget, replica: sub.replica, counter: sub.counter}, nil, nil)
		delete(r.holes, sub.shard)
		s = l.shards[sub.shard]
		s.epoch = r.epoch
	case s == nil:
		return
	}
	if v := sub.state; v.Term > s.state.Term || v.Term == s.state.Term && s.state.Vote == 0 && v.Vote != 0 {
		s.state.Term, s.state.Vote = v.Term, v.Vote
		r.out.Votes++
	}
}
