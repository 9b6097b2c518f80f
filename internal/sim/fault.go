package sim

import (
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"strings"
	"time"

	"github.com/quorate/quorate/internal/replica"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

func stack() string { return string(debug.Stack()) }

// scheduleFaults starts one stream of faults a kind and node.
func (w *world) scheduleFaults() {
	for _, n := range w.nodes {
		w.repeat(w.o.Crash, func() { w.atSync(n, func() { w.crash(n, w.kills()) }) })
		w.repeat(w.o.Pause, func() { w.pause(n) })
		w.repeat(w.o.DiskStall, func() { w.stall(n) })
		w.repeat(w.o.SyncError, func() { w.syncError(n) })
		w.repeat(w.o.BitFlip, func() { w.bitFlip(n) })
		w.repeat(w.o.Wipe, func() { w.wipe(n) })
		w.repeat(w.o.Forget, func() { w.forget(n) })
		w.repeat(w.o.Flush, func() { w.flush(n) })
		w.repeat(w.o.Slow, func() { w.slowDown(n) })
	}
	w.repeat(w.o.Move, w.moveLeader)
	w.repeat(w.o.Partition, w.partition)
	w.repeat(w.o.Squeeze, w.squeeze)
	w.repeat(w.o.Recant, w.recant)
	w.repeat(w.o.PowerCut, func() {
		n := w.nodes[0]
		if w.o.AtSyncs {
			n = w.nodes[w.rng.IntN(len(w.nodes))]
		}
		w.atSync(n, func() {
			w.note("power cut: all nodes")
			w.stats.PowerCuts++
			for _, n := range w.nodes {
				w.crash(n, false)
			}
		})
	})
}

// atSyncWait is for how long a crash waits for a sync.
const atSyncWait = time.Second

// atSync calls f at once, or with AtSyncs while a node's next sync is under way, or a moment after it: most promises are about what is on disk by then, and
// to come upon that by chance takes many crashes.
func (w *world) atSync(n *node, f func()) {
	if !w.o.AtSyncs || n.boot == 0 || n.atSync != nil {
		f()
		return
	}
	once := func() {
		if f != nil && w.chaos {
			f()
		}
		f, n.atSync = nil, nil
	}
	n.atSync = func(sync time.Duration) { w.after(time.Duration(w.rng.Int64N(int64(2*sync))), once) }
	w.after(atSyncWait, once)
}

// kills says whether a crash is one of the process and not of the machine.
func (w *world) kills() bool { return w.o.Kill > 0 && w.rng.Float64() < w.o.Kill }

// repeat calls f at random moments, on average rate times a second, while faults are on.
func (w *world) repeat(rate float64, f func()) {
	if rate <= 0 {
		return
	}
	w.after(time.Duration(w.rng.ExpFloat64()/rate*float64(time.Second)), func() {
		if !w.chaos {
			return
		}
		f()
		w.repeat(rate, f)
	})
}

// crash ends a node. If it is killed, the system writes what it has of the node's files, sooner or later.
func (w *world) crash(n *node, killed bool) {
	if n.boot == 0 {
		return
	}
	w.stats.Crashes++
	if killed {
		w.stats.Kills++
		n.dieOf("is killed", true)
	} else {
		n.die("crash")
	}
	w.refused(n)
	w.after(time.Duration(w.rng.Int64N(int64(w.o.RestartMax))), n.boots)
}

// refused tells the others, most of the time, that nothing listens at n any more.
func (w *world) refused(n *node) {
	for _, o := range w.nodes {
		if o != n && w.rng.IntN(4) > 0 && !w.cut[[2]int{int(o.id) - 1, int(n.id) - 1}] {
			w.after(time.Duration(w.rng.IntN(5))*time.Millisecond, func() {
				w.stats.Refusals++
				o.give(replica.Link{Node: n.id, Refused: true})
			})
		}
	}
}

// flush makes the state store durable at a moment that the host did not choose.
func (w *world) flush(n *node) {
	if n.boot == 0 {
		return
	}
	w.stats.Flushes++
	n.flush()
}

func (w *world) pause(n *node) {
	if n.boot == 0 || n.pausedTo.After(w.now) {
		return
	}
	w.stats.Pauses++
	d := time.Duration(w.rng.IntN(5000)) * time.Millisecond
	w.note("node %d pauses for %v", n.id, d)
	n.pausedTo = w.now.Add(d)
}

func (w *world) stall(n *node) {
	w.stats.Stalls++
	n.stallTo = w.now.Add(time.Duration(w.rng.IntN(3000)) * time.Millisecond)
	w.note("node %d: disk stalls until %v", n.id, n.stallTo.Sub(w.start))
}

func (w *world) syncError(n *node) {
	if n.boot == 0 {
		return
	}
	w.stats.SyncErrors++
	w.note("node %d: the next sync fails", n.id)
	n.disk.failSync = true
}

// mayBreak says whether another node's data may be damaged: only a minority at a time, and only while the rest is whole.
func (w *world) mayBreak(n *node) bool {
	for id := range w.broken {
		if w.whole(w.nodes[id-1]) {
			delete(w.broken, id)
		}
	}
	if w.broken[int(n.id)] {
		return false
	}
	return len(w.broken) < (w.o.Nodes-1)/2 && w.now.Sub(w.start) > 3*time.Second
}

// breaks notes that a node's data are about to be damaged.
func (w *world) breaks(n *node) { w.broken[int(n.id)], n.harmed = true, true }

// bitFlip damages files of a node while it is down.
func (w *world) bitFlip(n *node) {
	if !w.mayBreak(n) {
		return
	}
	// Rot takes its time. Damage to a record that was synced this moment, with no seal behind it yet, looks like an
	// unfinished write; nobody could tell them apart (docs/formats/raftlog.md), so it is not what is tried here.
	proven := n.boot != 0 && !n.disk.failSync && errors.Join(n.log.Sync(), n.log.Seal(), n.log.Sync()) == nil
	n.die("for a bit flip")
	w.stats.Flips++
	w.breaks(n)
	name := ""
	if proven && w.rng.IntN(3) > 0 {
		name = flip(n.disk.log, "log", w.rng)
	} else {
		name = flip(n.disk.state, "state", w.rng)
	}
	w.note("node %d: bits flipped in %q", n.id, name)
	w.after(time.Duration(w.rng.IntN(2000))*time.Millisecond, n.boots)
}

// wipe replaces a node's disk by an empty one.
func (w *world) wipe(n *node) {
	if !w.mayBreak(n) {
		return
	}
	n.die("for a new disk")
	w.stats.Wipes++
	w.breaks(n)
	n.disk = newDisk()
	n.logID++
	maps.Copy(n.floor, n.had)
	w.note("node %d: disk replaced", n.id)
	w.after(time.Duration(w.rng.IntN(2000))*time.Millisecond, n.boots)
}

// forget damages the last record of a node's log, as if it had never been synced. The node cannot know. What it has confirmed must be
// on a majority besides, or the copy that is lost may be one too many, which no system can help.
func (w *world) forget(n *node) {
	if !w.spared(n) || !w.mayBreak(n) || errors.Join(n.log.Sync(), n.log.Seal(), n.log.Sync()) != nil {
		return
	}
	n.die("to forget the end of its log")
	w.stats.Forgets++
	w.breaks(n)
	w.note("node %d: damage at the end of %q", n.id, forgetEnd(n.disk.log, "log", false))
	w.after(time.Duration(w.rng.IntN(w.rng.IntN(2000)+1))*time.Millisecond, n.boots)
}

// spared says that a majority has all of a node's log on other disks, up to an entry of the node's present term.
func (w *world) spared(n *node) bool {
	if !w.elsewhere(n) {
		return false
	}
	for _, s := range n.host.Shards() {
		if term, err := n.log.Term(s.ID, s.Last); err != nil || term != s.Term {
			return false
		}
	}
	return true
}

// elsewhere says that a majority has all of a node's log on other disks.
func (w *world) elsewhere(n *node) bool {
	quiet := func(n *node) bool {
		return n.boot != 0 && !n.busy && len(n.pending) == 0 && !n.disk.failSync && !n.unverified
	}
	if !quiet(n) {
		return false
	}
	for _, s := range n.host.Shards() {
		term, err := n.log.Term(s.ID, s.Last)
		if err != nil || s.Awaiting || !s.Voter(s.Replica) {
			return false
		}
		have := 0
		for _, o := range w.nodes {
			if o == n || !quiet(o) {
				continue
			}
			if t, err := o.log.Term(s.ID, s.Last); err == nil && t == term && s.Voter(o.log.Replica(s.ID)) {
				have++
			}
		}
		if have <= len(s.Voters)/2 {
			return false
		}
	}
	return true
}

// partition cuts links, one way, both ways or around a bridge, and mends them later.
func (w *world) partition() {
	w.stats.Partitions++
	n := w.o.Nodes
	links := map[[2]int]bool{}
	switch w.rng.IntN(4) {
	case 0: // one link, one way
		a := w.rng.IntN(n)
		links[[2]int{a, (a + 1 + w.rng.IntN(n-1)) % n}] = true
	case 1: // one node cut off
		a := w.rng.IntN(n)
		for b := range n {
			links[[2]int{a, b}], links[[2]int{b, a}] = true, true
		}
	case 2: // bridge: two nodes do not see each other
		a := w.rng.IntN(n)
		b := (a + 1 + w.rng.IntN(n-1)) % n
		links[[2]int{a, b}], links[[2]int{b, a}] = true, true
	case 3: // one node hears nothing, or nobody hears it
		a, deaf := w.rng.IntN(n), w.rng.IntN(2) == 0
		for b := range n {
			if deaf {
				links[[2]int{b, a}] = true
			} else {
				links[[2]int{a, b}] = true
			}
		}
	}
	text := make([]string, 0, len(links))
	for a := range n {
		for b := range n {
			if l := [2]int{a, b}; a != b && links[l] {
				w.cut[l] = true
				text = append(text, fmt.Sprintf("%d>%d", a+1, b+1))
			}
		}
	}
	w.note("links cut: %s", strings.Join(text, " "))
	w.after(time.Duration(500+w.rng.IntN(8000))*time.Millisecond, func() {
		for l := range links {
			delete(w.cut, l)
		}
	})
}

// slowDown lets a node send only so many bytes a second for a while.
func (w *world) slowDown(n *node) {
	if n.perSecond > 0 {
		return
	}
	w.stats.Slows++
	n.perSecond = 1 << (12 + w.rng.IntN(8))
	d := time.Duration(500+w.rng.IntN(8000)) * time.Millisecond
	w.note("node %d sends %d bytes a second for %v", n.id, n.perSecond, d)
	w.after(d, func() { n.perSecond = 0 })
}

// lane is a way between two nodes.
type lane struct {
	from, to shard.NodeID
	control  bool
}

// queued returns how long a frame waits for those before it; false says that it finds no room. Control frames have a queue of their own.
func (w *world) queued(from *node, f replica.Outgoing) (time.Duration, bool) {
	if from.perSecond == 0 {
		return 0, true
	}
	way := lane{from.id, f.To, f.Control}
	at := w.free[way]
	if at.Before(w.now) {
		at = w.now
	}
	if at.Sub(w.now) > 10*time.Second {
		return 0, false
	}
	w.free[way] = at.Add(time.Duration(len(f.Data)) * time.Second / time.Duration(from.perSecond))
	return w.free[way].Sub(w.now), true
}

// squeeze takes a leader's followers away in two steps. Half of them lose it first, for long enough to want another; then
// it loses the rest, and one of these is restarted at once. That one has just confirmed the leader, and is now asked for
// its vote: a promise that does not outlive the restart shows.
func (w *world) squeeze() {
	var lead *node
	for _, n := range w.nodes {
		if n.boot == 0 {
			return
		}
		for _, s := range n.host.Shards() {
			if s.Leads && (lead == nil || w.rng.IntN(2) == 0) {
				lead = n
			}
		}
	}
	if lead == nil {
		return
	}
	w.stats.Squeezes++
	others := make([]int, 0, len(w.nodes))
	for _, i := range w.rng.Perm(len(w.nodes)) {
		if w.nodes[i] != lead {
			others = append(others, i)
		}
	}
	half := len(others) / 2
	cut := func(list []int) {
		for _, i := range list {
			w.cut[[2]int{int(lead.id) - 1, i}], w.cut[[2]int{i, int(lead.id) - 1}] = true, true
		}
	}
	w.note("node %d loses %d followers, and then the others", lead.id, half)
	cut(others[:half])
	timeout := 100 * time.Millisecond * time.Duration(w.o.ElectionTicks)
	w.after(timeout+time.Duration(w.rng.Int64N(int64(2*timeout))), func() {
		if !w.chaos {
			return
		}
		cut(others[half:])
		if n := w.nodes[others[half]]; n.boot != 0 {
			n.die("squeezed")
			w.after(time.Duration(w.rng.IntN(50))*time.Millisecond, n.boots)
		}
	})
	w.after(5*timeout, func() {
		for _, i := range others {
			delete(w.cut, [2]int{int(lead.id) - 1, i})
			delete(w.cut, [2]int{i, int(lead.id) - 1})
		}
	})
}

// recant is a vote that is taken back. Somebody is cut off, so that the others elect one of them; who votes for that one dies with damage to the last
// record of its log, where the vote is. Then the one that was elected is cut off, and the first one, which knows nothing of it, asks for the same vote.
func (w *world) recant() {
	if w.recants {
		return
	}
	for _, n := range w.nodes {
		if n.boot == 0 {
			return
		}
	}
	w.recants, w.away = true, w.rng.IntN(w.o.Nodes)
	w.note("node %d is away, and whoever votes for another forgets it", w.away+1)
	w.alone(w.away, true)
	timeout := 100 * time.Millisecond * time.Duration(w.o.ElectionTicks)
	w.after(8*timeout, func() {
		w.recants = false
		for i := range w.nodes {
			w.alone(i, false)
		}
	})
}

// alone cuts a node off from all others, or ends that.
func (w *world) alone(a int, yes bool) {
	for b := range w.nodes {
		for _, l := range [...][2]int{{a, b}, {b, a}} {
			if yes {
				w.cut[l] = true
			} else {
				delete(w.cut, l)
			}
		}
	}
}

// voted is told of what a node has on disk now, a moment before it says so.
func (w *world) voted(n *node, ws []storage.Write) {
	if !w.recants || !w.chaos || int(n.id)-1 == w.away {
		return
	}
	for _, x := range ws {
		to := w.nodes[max(int(x.State.Vote>>16), 1)-1]
		if x.State.Vote == 0 || to == n || int(to.id)-1 == w.away || len(x.Entries) > 0 {
			continue
		}
		boot, far := n.boot, w.rng.IntN(2) == 0
		w.after(150*time.Microsecond, func() {
			if n.boot != boot || !w.recants || !w.elsewhere(n) || !w.mayBreak(n) || errors.Join(n.log.Seal(), n.log.Sync()) != nil {
				return
			}
			n.die("to forget a vote")
			w.stats.Recants++
			w.breaks(n)
			w.note("node %d: damage at the end of %q", n.id, forgetEnd(n.disk.log, "log", far))
			w.alone(w.away, false)
			w.alone(int(to.id)-1, true)
			w.after(time.Duration(w.rng.IntN(50))*time.Millisecond, n.boots)
		})
		return
	}
}

// heal ends all faults.
func (w *world) heal() {
	w.note("healed")
	w.chaos = false
	clear(w.cut)
	for _, n := range w.nodes {
		n.pausedTo, n.stallTo, n.perSecond = time.Time{}, time.Time{}, 0
		n.disk.failSync = false
		if n.boot == 0 {
			w.after(0, n.boots)
		} else {
			n.turnDue = false
			n.due()
		}
	}
}

// whole says that a node has a full and current replica of every shard.
func (w *world) whole(n *node) bool {
	if n.boot == 0 || n.unverified {
		return false
	}
	for _, s := range n.host.Shards() {
		if s.Awaiting || s.Leader == 0 {
			return false
		}
		lead := w.nodes[s.Leader-1]
		if lead.boot == 0 {
			return false
		}
		voter := false
		for _, l := range lead.host.Shards() {
			if l.ID == s.ID {
				voter = l.Leads && l.Applied == s.Applied && l.Last == s.Last && l.Voter(s.Replica)
			}
		}
		if !voter {
			return false
		}
	}
	return true
}

// settled says that all nodes are whole, all clients were answered, and new writes succeeded since the healing.
func (w *world) settled() bool {
	if w.chaos {
		return false
	}
	for _, c := range w.clients {
		if c.op != nil || !c.proved {
			return false
		}
	}
	for _, n := range w.nodes {
		if !w.whole(n) || len(n.moves) > 0 {
			return false
		}
		for _, f := range n.followers {
			if _, waiting := n.host.Machine(f.id).NextTimer(); f.due || waiting {
				return false
			}
		}
	}
	return true
}

func (w *world) describe() string {
	var b strings.Builder
	for _, n := range w.nodes {
		if n.boot == 0 {
			fmt.Fprintf(&b, "node %d down; ", n.id)
			continue
		}
		fmt.Fprintf(&b, "node %d: %+v, %d hand-overs not answered; ", n.id, n.host.Shards(), len(n.moves))
	}
	for _, c := range w.clients {
		fmt.Fprintf(&b, "client %d: waiting %v proved %v; ", c.id, c.op != nil, c.proved)
	}
	return b.String()
}
