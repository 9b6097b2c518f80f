package eventlog

import (
	"time"

	"github.com/quorate/quorate/internal/shard"
)

// prepare starts a rebalance: members learn of it by their heartbeats, and have until the deadline to join again.
func (g *group) prepare(tx *shard.Tx) {
	g.state, g.initial = GroupPreparing, false
	g.deadline(tx)
	g.wake(tx)
}

// deadline gives the members as long as the most patient of them allows.
func (g *group) deadline(tx *shard.Tx) {
	longest := time.Duration(0)
	for _, m := range g.all(tx) {
		longest = max(longest, m.rebalance())
	}
	g.term = tx.Term()
	tx.SetTimer(groupKey(rowGroup, g.name), tx.Now().Add(longest))
}

// completeIfAllJoined ends the rebalance early when there is nobody left to wait for.
func (g *group) completeIfAllJoined(tx *shard.Tx) {
	if g.state == GroupPreparing && !g.initial && g.joining == g.members && g.pending == 0 && g.members > 0 {
		g.complete(tx)
	}
}

// complete makes the next generation of all members. At least one of them has joined; static members that have not are
// kept until their session ends.
func (g *group) complete(tx *shard.Tx) {
	list := g.all(tx)
	next := g.next()
	var leader string
	for _, m := range list {
		if g.waits(m) {
			g.alive(tx, m)
			if leader == "" || m.id == g.leader {
				leader = m.id
			}
		}
	}
	g.generation, g.leader, g.joining = next, leader, 0
	g.protocol = choose(g, list)
	g.state, g.initial = GroupCompleting, false
	g.deadline(tx)
	g.wake(tx)
}

// choose picks a protocol that all members know: each votes for the first on its list, and of equals the first in the
// group's order wins.
func choose(g *group, list []*member) string {
	votes := make(map[string]int, len(g.supported))
	for _, m := range list {
		for _, p := range m.protocols {
			if i := g.supportOf(p.Name); i >= 0 && g.supported[i].count == g.members {
				votes[p.Name]++
				break
			}
		}
	}
	best, most := "", 0
	for _, s := range g.supported {
		if votes[s.name] > most {
			best, most = s.name, votes[s.name]
		}
	}
	return best
}

// remove takes a member out; the caller decides what becomes of the group.
func (g *group) remove(tx *shard.Tx, m *member) {
	key := groupPart(rowMember, g.name, m.id)
	tx.Delete(key)
	tx.SetTimer(key, time.Time{})
	if m.instance != "" {
		ik := groupPart(rowInstance, g.name, m.instance)
		if holder, ok := tx.Get(ik); ok && string(holder) == m.id {
			tx.Delete(ik)
		}
	}
	g.members--
	g.size -= int64(m.size())
	g.support(m.protocols, -1)
	if g.waits(m) {
		g.joining--
	}
	if g.leader == m.id {
		g.leader = ""
	}
}

// settle moves the group on after members were removed.
func (g *group) settle(tx *shard.Tx) {
	switch {
	case g.members == 0:
		if g.state != GroupEmpty {
			g.empty(tx)
		}
	case g.state == GroupPreparing:
		g.completeIfAllJoined(tx)
	default:
		g.prepare(tx)
	}
	g.wake(tx)
}

// empty is what happens when the last member goes.
func (g *group) empty(tx *shard.Tx) {
	g.generation = g.next()
	g.state, g.initial, g.protocol, g.leader, g.joining = GroupEmpty, false, "", "", 0
	g.supported, g.size = nil, 0
	tx.SetTimer(groupKey(rowGroup, g.name), time.Time{})
	g.idle(tx)
	g.wake(tx)
}

// fireGroup ends the wait of a group: for its members to join, or for its leader to assign. One that began under an earlier leader is given
// once more, as fireMember does for a session.
func fireGroup(tx *shard.Tx, key []byte) {
	name, _ := splitGroupKey(key)
	g := readGroup(tx, name)
	if g == nil {
		return
	}
	if g.term != tx.Term() && (g.state == GroupPreparing && !g.initial || g.state == GroupCompleting) {
		g.deadline(tx)
		g.save(tx)
		return
	}
	switch g.state {
	case GroupPreparing:
		for _, m := range g.all(tx) {
			// A static member may be restarting: its session decides.
			if !g.waits(m) && m.instance == "" {
				g.remove(tx, m)
			}
		}
		switch {
		case g.members == 0:
			g.empty(tx)
		case g.joining == 0:
			g.deadline(tx)
		default:
			g.complete(tx)
		}
	case GroupCompleting:
		for _, m := range g.all(tx) {
			if m.synced != g.generation {
				g.remove(tx, m)
			}
		}
		if g.members == 0 {
			g.empty(tx)
		} else {
			g.prepare(tx)
		}
	default:
		return
	}
	g.save(tx)
}

// fireMember ends a session. One that was last renewed under an earlier leader is given once more: the member may have had nobody to send
// its heartbeat to. Kafka too gives all members of a group a whole session when a coordinator takes over.
func fireMember(tx *shard.Tx, key []byte) {
	name, id := splitGroupKey(key)
	g := readGroup(tx, name)
	if g == nil {
		return
	}
	m := readMember(tx, name, id)
	if m == nil || g.waits(m) {
		return
	}
	if m.term != tx.Term() {
		g.alive(tx, m)
		return
	}
	if g.state == GroupCompleting && m.synced == g.generation {
		// It waits for the leader and has nothing to say meanwhile; the group's own deadline bounds that.
		g.alive(tx, m)
		return
	}
	g.remove(tx, m)
	g.settle(tx)
	g.save(tx)
}

// firePending takes back a member id that was not used.
func firePending(tx *shard.Tx, key []byte) {
	name, id := splitGroupKey(key)
	g := readGroup(tx, name)
	if g == nil {
		return
	}
	g.dropPending(tx, id)
	g.completeIfAllJoined(tx)
	g.save(tx)
}

func (g *group) dropPending(tx *shard.Tx, id string) bool {
	key := groupPart(rowPending, g.name, id)
	if _, ok := tx.Get(key); !ok {
		return false
	}
	tx.Delete(key)
	tx.SetTimer(key, time.Time{})
	g.pending--
	return true
}

// fireIdle deletes a group that nobody used for long, with its offsets, a bounded number at a time.
func fireIdle(tx *shard.Tx, key []byte) {
	name, _ := splitGroupKey(key)
	g := readGroup(tx, name)
	if g == nil || g.members > 0 {
		return
	}
	if end := time.Unix(0, g.used).Add(groupIdle); end.After(tx.Now()) {
		tx.SetTimer(key, end)
		return
	}
	prefix := groupKey(rowOffset, name)
	var gone [][]byte
	for k := range tx.Scan(prefix, after(prefix)) {
		if len(gone) == idleRows {
			break
		}
		gone = append(gone, append([]byte(nil), k...))
	}
	for _, k := range gone {
		tx.Delete(k)
	}
	g.offsets -= len(gone)
	switch {
	case g.offsets > 0:
		g.save(tx)
		tx.SetTimer(key, tx.Now())
		return
	case g.pending > 0:
		g.idle(tx)
		g.save(tx)
		return
	}
	tx.Delete(groupKey(rowGroup, name))
	setGroups(tx, countGroups(tx)-1)
}
