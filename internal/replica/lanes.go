package replica

// What a node has for another in a turn goes in two lanes. Bulk is what grows with the load: entries, forwarded batches, chunks of snapshots. All else is
// control, and must not wait behind that: a link on which 64 MiB wait would look dead for as long as they take, and a leader on such a link would
// be replaced by one that has the same to send.

// lane collects frames: full are those that take no more, frame is the one being built.
type lane struct {
	full  [][]byte
	frame []byte
}

// framed says that this turn has something for the peer.
func (p *peer) framed() bool { return len(p.bulk.frame)+len(p.control.frame) > 0 }

// frameFor returns the frame to which the next message for a peer goes, starting one if need be. It is for what is as large as the load makes it;
// see controlFor.
func (h *Host) frameFor(p *peer) *[]byte { return h.room(p, &p.bulk) }

// controlFor is frameFor for what must not wait behind that: messages by which nodes know that others are there, votes, reads, and confirmations.
// They are short, and raft takes them in any order.
func (h *Host) controlFor(p *peer) *[]byte { return h.room(p, &p.control) }

func (h *Host) room(p *peer, l *lane) *[]byte {
	if len(l.frame) >= frameFull {
		l.full = append(l.full, l.frame)
		l.frame = nil
	}
	if len(l.frame) == 0 {
		if l.frame == nil {
			l.frame = make([]byte, 0, min(max(256, p.size+p.size/4), frameRoomMax))
		}
		l.frame = appendFrameHeader(l.frame, frameHeader{from: h.cfg.Node, session: h.cfg.Session, logID: h.cfg.LogID, yourLog: p.logID})
	}
	return &l.frame
}

// closeFrames hands over what the turn has for a peer. Control goes along with a little of the rest, since a frame of its own would cost the peer
// another turn; but once a tick it goes by itself, so that a link on which much waits does not look dead.
func (h *Host) closeFrames(p *peer) {
	if !p.framed() {
		return
	}
	b, c := &p.bulk, &p.control
	if len(c.frame) > 0 && len(b.frame) > 0 && len(b.full)+len(c.full) == 0 && len(b.frame)+len(c.frame) <= frameJoinMax && !h.ticked {
		b.frame = append(b.frame, c.frame[frameHeaderSize:]...)
		c.frame = c.frame[:0]
	}
	if len(c.frame) > 0 {
		p.sent = h.now
	}
	p.size = (3*p.size + len(b.frame) + len(c.frame)) / 4
	h.closeLane(p, c, true)
	h.closeLane(p, b, false)
}

func (h *Host) closeLane(p *peer, l *lane, control bool) {
	for i, f := range l.full {
		h.out.Frames = append(h.out.Frames, Outgoing{To: p.id, Data: f, Control: control})
		l.full[i] = nil
	}
	l.full = l.full[:0]
	if len(l.frame) > 0 {
		h.out.Frames = append(h.out.Frames, Outgoing{To: p.id, Data: l.frame, Control: control})
		l.frame = nil
	}
}
