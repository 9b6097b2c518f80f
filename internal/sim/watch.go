package sim

import (
	"encoding/binary"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// follower reads a shard's change log on one node as a watching client does: it keeps a position, and reads on when the hub
// signals. A lost wake-up shows at the end, as a follower that stopped short of the end of the log.
type follower struct {
	n     *node
	boot  uint64
	id    shard.ID
	watch *shard.Watch
	pos   uint64
	// due says that a read is on its way.
	due bool
}

// follow starts the followers of a boot. They resume near the end of what is known, wherever their node is.
func (n *node) follow() {
	w := n.w
	n.hub, n.followers = shard.NewHub(), nil
	for i := range w.o.Shards {
		id := shard.ID(i + 1)
		f := &follower{n: n, boot: n.boot, id: id, pos: uint64(len(w.check.history[id]))}
		f.pos -= min(f.pos, uint64(w.rng.IntN(400)))
		f.watch = n.hub.Watch(id, shard.Span{Module: ledgerID, From: []byte{}, To: []byte{0xff}})
		n.followers = append(n.followers, f)
		f.soon()
	}
}

// signal passes on what a turn woke.
func (n *node) signal(id shard.ID, wakes []shard.Wake, all bool) {
	if all {
		n.hub.WakeAll(id)
	} else {
		n.hub.Wake(id, wakes)
	}
	for _, f := range n.followers {
		select {
		case <-f.watch.C:
			n.w.stats.Signals++
			f.soon()
		default:
		}
	}
}

func (f *follower) soon() {
	if f.due {
		return
	}
	f.due = true
	f.n.w.after(time.Duration(f.n.w.rng.IntN(250))*time.Millisecond, f.read)
}

// read takes in what is new.
func (f *follower) read() {
	w := f.n.w
	f.due = false
	if f.n.boot != f.boot {
		return
	}
	m := f.n.host.Machine(f.id)
	for {
		cs, err := m.Changes(f.pos, 2048)
		switch {
		case errs.Is(err, errs.Compacted):
			w.stats.Compactions++
			f.pos = cs.First
			continue
		case errs.Is(err, errs.Corrupt) && w.broken[int(f.n.id)]:
			f.n.due()
			return
		case err != nil:
			w.fail("node %d shard %d: change log: %v", f.n.id, f.id, err)
			return
		case len(cs.Changes) == 0:
			if f.pos < cs.End {
				w.fail("node %d shard %d: change log has nothing at %d, its end is %d", f.n.id, f.id, f.pos, cs.End)
			}
			return
		}
		for _, ch := range cs.Changes {
			w.check.change(f.n, f.id, f.pos, ch)
			f.pos++
		}
		if f.pos == cs.End {
			return
		}
	}
}

// seenChange is what a position of a change log was seen to hold.
type seenChange struct {
	rev shard.Revision
	at  int64
	op  uint64
	key byte
}

// change checks that a position holds the same for everyone, and that revisions rise with positions.
func (c *checker) change(n *node, id shard.ID, pos uint64, ch shard.Change) {
	if len(ch.Key) != 1 || len(ch.Value) != 8 || ch.Op != "put" {
		c.w.fail("node %d shard %d: change %d is malformed: %+v", n.id, id, pos, ch)
		return
	}
	got := seenChange{ch.Revision, ch.At.UnixNano(), binary.LittleEndian.Uint64(ch.Value), ch.Key[0]}
	h := c.history[id]
	for uint64(len(h)) <= pos {
		h = append(h, seenChange{})
	}
	c.history[id] = h
	switch was := h[pos]; {
	case was == (seenChange{}):
		h[pos] = got
	case was != got:
		c.w.fail("change log: shard %d position %d is %+v on node %d, and was %+v", id, pos, got, n.id, was)
		return
	}
	if pos > 0 && h[pos-1].rev >= got.rev {
		c.w.fail("change log: shard %d goes from revision %d to %d at position %d on node %d", id, h[pos-1].rev, got.rev, pos, n.id)
	}
	if end := uint64(len(h)); pos+1 < end && h[pos+1].rev != 0 && h[pos+1].rev <= got.rev {
		c.w.fail("change log: shard %d goes from revision %d to %d at position %d on node %d", id, got.rev, h[pos+1].rev, pos+1, n.id)
	}
}
