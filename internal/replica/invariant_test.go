package replica

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// wrong says which of the host's figures and lists are not what they count, or do not agree with each other; nil is none. A figure that is not taken
// back when what it counts is gone refuses or holds up everything in the end. The rig asks after each turn.
func (h *Host) wrong() error {
	sending, under, asking, late := 0, 0, 0, 0
	for _, r := range h.order {
		if err := r.wrong(); err != nil {
			return fmt.Errorf("shard %d: %w", r.id, err)
		}
		sending += len(r.out)
		for what, n := range map[*int]bool{&sending: r.made != nil, &under: r.under, &asking: r.reads.ctx != 0, &late: r.reads.late} {
			if n {
				*what++
			}
		}
		for _, l := range []struct {
			what string
			says bool
			list []*replica
		}{
			{"dirty", r.dirty, h.dirty}, {"awake", r.listed, h.awake}, {"taking", r.taking, h.taking}, {"later", r.later, h.later},
		} {
			if n := len(slices.DeleteFunc(slices.Clone(l.list), func(x *replica) bool { return x != r })); n > 1 || l.says != (n == 1) {
				return fmt.Errorf("shard %d: %s is %v, and it is listed %d times", r.id, l.what, l.says, n)
			}
		}
		if r.awake && !r.listed || r.under && !r.taking || len(r.applies) > 0 && !slices.Contains(h.committed, r) {
			return fmt.Errorf("shard %d: awake %v, listed %v, under %v, taking %v, %d to apply", r.id, r.awake, r.listed, r.under, r.taking, len(r.applies))
		}
		if !r.timerAt.IsZero() && !slices.ContainsFunc(h.timers, func(t timerItem) bool { return t.r == r && t.due.Equal(r.timerAt) }) {
			return fmt.Errorf("shard %d: nobody looks at its timer at %v", r.id, r.timerAt)
		}
		open := 0
		for _, w := range h.waits {
			if w.r == r && w.entries {
				open++
			}
		}
		if r.unsynced < 0 || r.unsynced > open {
			return fmt.Errorf("shard %d: %d writes are said to be open, of %d", r.id, r.unsynced, open)
		}
	}
	if sending != h.sending || under != h.under || asking != h.asking || late != h.late {
		return fmt.Errorf("sending %d, counted %d; under %d, counted %d; asking %d, counted %d; late %d, counted %d",
			sending, h.sending, under, h.under, asking, h.asking, late, h.late)
	}
	if len(h.asks) > 0 && h.asks[0].r.reads.ctx != h.asks[0].ctx {
		return fmt.Errorf("read-index request %d is answered, and kept with %d others", h.asks[0].ctx, len(h.asks)-1)
	}
	for i, w := range h.waits {
		if w.seq <= h.logDone || w.seq > h.logSeq || i > 0 && w.seq < h.waits[i-1].seq {
			return fmt.Errorf("wait %d is for write %d, done is %d of %d", i, w.seq, h.logDone, h.logSeq)
		}
	}
	return nil
}

func (r *replica) wrong() error {
	n := 0
	for _, w := range r.queue {
		n += len(w.cmd.Data)
	}
	if n != r.queueBytes {
		return fmt.Errorf("%d bytes wait, counted %d", n, r.queueBytes)
	}
	n = 0
	for _, seq := range r.order {
		b := r.inflight[seq]
		if b == nil {
			return fmt.Errorf("batch %d of %v is unknown", seq, r.order)
		}
		waiting := 0
		for _, f := range b.futures {
			if f.future != nil {
				waiting++
			}
		}
		if b.open == 0 || waiting > b.open {
			return fmt.Errorf("batch %d has %d open commands, %d wait", seq, b.open, waiting)
		}
		n += len(b.data)
	}
	if n != r.inflightBytes || len(r.order) != len(r.inflight) || !slices.IsSorted(r.order) {
		return fmt.Errorf("%d bytes are under way, counted %d; batches %v of %d", n, r.inflightBytes, r.order, len(r.inflight))
	}
	q := &r.reads
	n = len(q.waiting) + len(q.asked) + len(q.byRevision)
	for _, c := range q.confirmed {
		n += len(c.reads)
	}
	if n != q.count || q.ctx == 0 && len(q.asked) > 0 {
		return fmt.Errorf("%d reads wait, counted %d; %d are asked for by request %d", n, q.count, len(q.asked), q.ctx)
	}
	v := &r.view
	n = 0
	for i, e := range v.cache {
		n += len(e.Data) + 64
		if e.GetIndex() != v.cacheFrom+uint64(i) {
			return fmt.Errorf("entry %d is kept at %d", e.GetIndex(), v.cacheFrom+uint64(i))
		}
	}
	if n != v.cacheBytes || n > cacheBytesMax {
		return fmt.Errorf("entries of %d bytes are kept, counted %d", n, v.cacheBytes)
	}
	if len(v.cache) > 0 {
		if last := v.cache[len(v.cache)-1]; last.GetIndex() != v.last.Index || last.GetTerm() != v.last.Term || v.cacheFrom <= v.before.Index {
			return fmt.Errorf("entries %d to %d are kept, the log has %+v to %+v", v.cacheFrom, last.GetIndex(), v.before, v.last)
		}
	}
	if r.arrived != nil {
		return errors.New("a snapshot that has arrived was not taken, and no other one will be")
	}
	if !r.leads() && (len(r.out) > 0 || r.made != nil || !r.reads.lease.IsZero()) {
		return fmt.Errorf("it does not lead, and sends %d snapshots, has one: %v, and a lease until %v", len(r.out), r.made != nil, r.reads.lease)
	}
	if n := len(r.followers); n > len(r.host.peerIDs)+1 {
		return fmt.Errorf("%d followers are remembered: %+v", n, r.followers)
	}
	if len(r.digests) > 5 {
		return fmt.Errorf("%d digests are kept", len(r.digests))
	}
	for _, o := range r.out {
		if o.under < 0 || o.under > len(o.chunks) || o.window < chunksAhead || o.window > chunksAheadMax {
			return fmt.Errorf("%d chunks of %d are under way in a window of %d", o.under, len(o.chunks), o.window)
		}
	}
	return nil
}

// roles is what of Shards and Alive others are to be told of when it changes.
func (h *Host) roles() string {
	var b strings.Builder
	for _, s := range h.Shards() {
		fmt.Fprintf(&b, "shard %d: replica %d, awaiting %v, leader %d of term %d, %v; members %v, voters %v\n",
			s.ID, s.Replica, s.Awaiting, s.Leader, s.Term, s.Leads, s.Members, s.Voters)
	}
	for _, id := range h.peerIDs {
		fmt.Fprintf(&b, "node %d alive: %v\n", id, h.Alive(id))
	}
	return b.String()
}
