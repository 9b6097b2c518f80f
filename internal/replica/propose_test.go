package replica

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// A time limit that has not passed is none: a command waits for a leader, and for its answer, for as long as its client does.
func TestPropose_WaitsForAsLongAsItsClient(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=0")
	r.isolate(lead)
	// These are under way when the leader is cut off. The others must find another one first.
	var futures []*shard.Future
	for _, n := range []*rigNode{lead, other} {
		futures = append(futures, n.propose("k=1", 20*time.Second), n.propose("k=1", 0))
	}
	r.until("another leader", func() bool {
		return !lead.host.reps[1].leads() && (r.nodes[0] != lead && r.nodes[0].host.reps[1].lead != 0 || lead == r.nodes[0] && other.host.reps[1].lead != 0)
	})
	r.run(2 * time.Second)
	for _, f := range []*shard.Future{lead.propose("k=1", 20*time.Second), lead.propose("k=1", 0)} {
		r.run(2 * time.Second)
		if lead.answered(f) {
			t.Errorf("without a leader and with time to wait: %v", lead.results[f].Err)
		}
		futures = append(futures, f)
	}
	r.heal()
	for i, f := range futures {
		n := lead
		if i/2 == 1 {
			n = other
		}
		r.until("answer", func() bool { return n.answered(f) })
		if err := n.results[f].Err; err != nil {
			t.Errorf("command %d: %v", i, err)
		}
	}
}

// What waits for one that has no time left any more is not proposed, and leaves nothing.
func TestPropose_NothingIsLeftOfWhatCameTooLate(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=0")
	r.settle()
	r.holdSync[lead.id], r.holdSync[other.id] = true, true
	r.isolate(lead)
	first := lead.propose("k=1", 0)
	// It waits for the round that is under way.
	late := lead.propose("k=2", time.Millisecond)
	last := lead.last()
	r.now = r.now.Add(2 * time.Millisecond)
	r.heal()
	r.holdSync = map[shard.NodeID]bool{}
	lead.sync()
	lead.turn()
	r.until("answers", func() bool { return lead.answered(first) && lead.answered(late) })
	if err := lead.results[late].Err; !errs.Is(err, errs.Unavailable) {
		t.Errorf("got %v", err)
	}
	if rep := lead.host.reps[1]; len(rep.order) > 0 || lead.last() != last {
		t.Errorf("batches %v, the log ends at %d", rep.order, lead.last())
	}
}

// A leader without a quorum keeps what it has proposed, and proposes none of it again; what it has no room for waits.
func TestPropose_BoundOfWhatIsUnderWay(t *testing.T) {
	const bytesMax, size = 4000, 1000
	r := newRig(t, 3, func(c *Config) { c.InflightBytesMax = bytesMax })
	lead, _ := r.elect()
	lead.do("k=0")
	r.settle()
	was := lead.last()
	r.drop = func(from, _ shard.NodeID, _ byte) bool { return from != lead.id }
	var futures []*shard.Future
	for range 10 {
		futures = append(futures, lead.propose("k="+string(bytes.Repeat([]byte("v"), size)), 0))
		r.run(2 * slowRound)
	}
	rep := lead.host.reps[1]
	if rep.inflightBytes <= bytesMax || rep.inflightBytes > bytesMax+2*size || len(rep.queue)+len(rep.order) != len(futures) {
		t.Errorf("%d bytes in %d batches are under way, %d commands wait", rep.inflightBytes, len(rep.order), len(rep.queue))
	}
	r.run(6 * lead.host.cfg.Tick)
	if got, want := lead.last()-was, uint64(len(rep.order)); !rep.leads() || got != want {
		t.Errorf("%d entries were made of %d batches; leads %v", got, want, rep.leads())
	}
	r.heal()
	for i, f := range futures {
		r.until("answer", func() bool { return lead.answered(f) })
		if err := lead.results[f].Err; err != nil {
			t.Errorf("command %d: %v", i, err)
		}
	}
	if n := lead.counts.Duplicates; n > 0 {
		t.Errorf("%d batches were proposed twice", n)
	}
	// So many batches may be open however small they are.
	for seq := range uint64(inflightBatchesMax) {
		rep.order = append(rep.order, seq)
	}
	rep.queue = append(rep.queue, waiting{})
	rep.cutAt = time.Time{}
	lead.host.open = true
	if rep.mayCut() {
		t.Error("one more than the most batches is made")
	}
	rep.order = rep.order[:len(rep.order)-1]
	if !rep.mayCut() {
		t.Error("the last one is not made")
	}
	rep.order, rep.queue = nil, nil
}

// Commands are refused only for what waits now, not for what waited once.
func TestPropose_RoomComesBack(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.QueueBytesMax = 1000; c.QueueLenMax = 4 })
	lead, other := r.elect()
	for i := range 10 {
		for _, n := range []*rigNode{lead, other} {
			if res := n.do("k=" + string(bytes.Repeat([]byte{'v'}, 400))); res.Err != nil {
				t.Fatalf("command %d: %v", i, res.Err)
			}
		}
	}
	// What is refused with a time limit gives its room back, too.
	r.isolate(other)
	r.until("loss of the leader", func() bool { return other.host.reps[1].lead == 0 })
	for range 3 {
		a, b, c := other.propose("k="+string(bytes.Repeat([]byte{'v'}, 498)), time.Second), other.propose("k="+string(bytes.Repeat([]byte{'v'}, 498)), time.Second), other.propose("k", time.Second)
		if !other.answered(c) || !errs.Is(other.results[c].Err, errs.Overloaded) || other.answered(a) || other.answered(b) {
			t.Fatalf("of 1,001 bytes: %v, %v, %v", other.results[a].Err, other.results[b].Err, other.results[c].Err)
		}
		r.run(1200 * time.Millisecond)
		if !errs.Is(other.results[a].Err, errs.Unavailable) || !errs.Is(other.results[b].Err, errs.Unavailable) {
			t.Fatalf("past their time: %v, %v", other.results[a].Err, other.results[b].Err)
		}
	}
}

// raft keeps what it was given: a batch that is sent again is another copy.
func TestPropose_WhatRaftHasDoesNotChange(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	lead.do("k=0")
	r.isolate(lead)
	lead.propose("k=1", 0)
	rep := lead.host.reps[1]
	b := rep.inflight[rep.order[0]]
	given, was := b.data, bytes.Clone(b.data)
	r.now = r.now.Add(time.Second / 2)
	lead.host.now = r.now
	// As a leader of a later term does.
	rep.order = append([]uint64{b.seq}, rep.order[1:]...)
	b.sentTerm, b.tries = 0, 7
	rep.resend(true)
	if !bytes.Equal(given, was) {
		t.Errorf("raft was given %x, now %x", was, given)
	}
	if bytes.Equal(b.data, was) || b.tries != 1 || b.sentTerm != rep.term {
		t.Errorf("sent again as %x, try %d of term %d", b.data, b.tries, b.sentTerm)
	}
}

// A forwarded batch that is none is not proposed: every replica would stop on it.
func TestForward_WhatIsNoBatchIsNotProposed(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=0")
	r.settle()
	was := lead.last()
	good := shard.AppendCommand(shard.AppendBatchHeader(nil, shard.BatchHeader{Session: 7, Seq: 1, Low: 1, Stamp: r.now}), shard.Command{Module: 9, Data: []byte("k=1")})
	send := func(data []byte, cut int) {
		t.Helper()
		h := other.host
		w := beginMessage(appendFrameHeader(nil, frameHeader{from: other.id, session: h.cfg.Session, logID: h.cfg.LogID, yourLog: lead.host.cfg.LogID}), msgForward)
		w.b = codec.AppendBytes(binary.AppendUvarint(binary.AppendUvarint(w.b, 1), 0), data)
		w.b = w.b[:len(w.b)-cut]
		lead.turn(Frame{From: other.id, Data: w.end(), At: r.now})
		r.settle()
	}
	for i, data := range [][]byte{nil, {1}, []byte("nothing of ours"), good[:5], shard.TimersEntry(r.now.Add(time.Hour))} {
		if send(data, 0); lead.last() != was {
			t.Fatalf("batch %d was proposed", i)
		}
	}
	if send(good, 1); lead.last() != was {
		t.Fatal("a part of a batch was proposed")
	}
	if send(good, 0); lead.last() != was+1 {
		t.Fatal("a batch was not proposed")
	}
	r.same("k", "1")
	// One that comes to a node that does not lead is dropped: its own node sends it again.
	w := beginMessage(appendFrameHeader(nil, frameHeader{from: lead.id, session: lead.host.cfg.Session, logID: lead.host.cfg.LogID, yourLog: other.host.cfg.LogID}), msgForward)
	w.b = codec.AppendBytes(binary.AppendUvarint(binary.AppendUvarint(w.b, 1), 0), good)
	other.turn(Frame{From: lead.id, Data: w.end(), At: r.now})
	r.settle()
	for _, n := range r.nodes {
		if n.host == nil || n.last() != was+1 {
			t.Errorf("node %d: %v, the log ends at %d, want %d", n.id, n.fatal, n.last(), was+1)
		}
	}
	r.run(time.Second)
	if res := lead.do(fmt.Sprintf("k=%d", 2)); res.Err != nil {
		t.Error(res.Err)
	}
}

// A snapshot holds what was applied before it. What was not is still to come, and gets its answer.
func TestPropose_OpenWhenASnapshotComes(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.LogEntriesMax = 5 })
	lead, other := r.elect()
	lead.do("k=0")
	r.isolate(other)
	f := other.propose("mine=1", 0)
	for i := range 40 {
		lead.do(fmt.Sprintf("k=%d", i))
		r.run(50 * time.Millisecond)
	}
	r.heal()
	r.until("answer", func() bool { return other.answered(f) })
	if !r.noted("installed a snapshot") {
		t.Fatal("no snapshot was needed")
	}
	if err := other.results[f].Err; err != nil {
		t.Errorf("got %v", err)
	}
	r.same("mine", "1")
}
