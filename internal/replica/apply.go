package replica

import (
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/shard"
)

// What is committed is applied when nothing else is to be done first: what a turn has for the disk and for other nodes has a way
// before it, so it goes out, and the next turn, which is due at once, applies.
//
// A node that starts may have all that its log keeps to apply. It does so in many turns, between which it hears of its peers, and can be stopped.

// deferMax is how many turns in a row may leave to the next what is committed.
const deferMax = 3

// turnBytes is the size of entries from which a turn leaves what else is committed to the next. Those that raft hands out together,
// applyBytesMax at most, are not taken apart.
const turnBytes = 1 << 20

// entryOverhead is about what an entry costs besides its bytes.
const entryOverhead = 64

// answersKept bounds the memory that is kept for the answers of the next entries.
const answersKept = 4096

// applying is the host's part of this.
type applying struct {
	// committed are the replicas with entries to apply, deferred how many turns have put that off.
	committed []*replica
	deferred  int
	// ran is the size of what this turn has applied.
	ran int
	// answerBytes is what the answers that this turn has made hold.
	answerBytes int
	// answers is where the answers of a replica's commands are collected.
	answers []shard.Answer
}

// applyLater queues committed entries.
func (r *replica) applyLater(m *raftpb.Message) {
	if len(r.applies) == 0 {
		r.host.committed = append(r.host.committed, r)
	}
	r.applies = append(r.applies, m)
}

// apply runs what is committed, and answers what of it came from this node.
func (r *replica) apply() {
	h, ms := r.host, r.applies
	if len(ms) == 0 || h.err != nil {
		return
	}
	out := shard.Applied{Own: h.cfg.Session, Answers: h.answers[:0], AnswerBytes: h.answerBytes, AnswerBytesMax: h.cfg.AnswerBytesMax}
	for _, m := range ms {
		for _, e := range m.Entries {
			h.ran += len(e.Data) + entryOverhead
			if err := r.applyEntry(e, &out); err != nil {
				h.fatal(err)
				return
			}
		}
	}
	if err := r.machine.Commit(&out); err != nil {
		h.fatal(err)
		return
	}
	if r.confChanged {
		r.confChanged = false
		r.saveCommit()
	}
	r.noteRebuilding()
	h.out.Counts.Commands += out.Commands
	h.out.Counts.Duplicates += out.Duplicates
	h.answerBytes = out.AnswerBytes
	r.answerApplied(&out)
	if len(out.Wakes) > 0 && !(env.Mutant(env.MutantWakeLost) && len(out.Answers) == 0) {
		h.out.Wakes = append(h.out.Wakes, ShardWakes{Shard: r.id, Wakes: out.Wakes})
	}
	clear(out.Answers)
	if h.answers = out.Answers; cap(h.answers) > answersKept {
		h.answers = nil
	}
	r.idleTicks = 0
	for _, m := range ms {
		for _, resp := range m.Responses {
			_ = r.rn.Step(resp)
		}
	}
	clear(ms)
	r.applies = ms[:0]
	// The first entry of a leader's term may be what its reads wait for.
	r.reads.ask(r)
	h.armTimer(r)
	h.markDirty(r)
}

// deferApply says whether the next turn applies what is committed.
func (h *Host) deferApply() bool {
	if h.ran >= turnBytes {
		return true
	}
	if len(h.committed) == 0 || h.deferred == deferMax {
		return false
	}
	busy := len(h.out.Writes) > 0
	for _, id := range h.peerIDs {
		busy = busy || h.peers[id].framed()
	}
	if busy {
		h.deferred++
	}
	return busy
}

// apply runs what is committed, or as much of it as a turn does, and reports whether anything was.
func (h *Host) apply() bool {
	did, n := false, 0
	for n < len(h.committed) && h.ran < turnBytes {
		r := h.committed[n]
		did = did || len(r.applies) > 0
		r.apply()
		n++
	}
	h.committed, h.deferred = slices.Delete(h.committed, 0, n), 0
	return did && h.err == nil
}
