package eventlog

import (
	"bytes"
	"time"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// Join asks to be in a group's next generation (JoinGroup).
type Join struct {
	Group string
	// MemberID is empty for a member that has none yet; it gets NewID then, which the caller makes up at random.
	MemberID, NewID string
	// Instance is the name of a static member (KIP-345), or empty.
	Instance             string
	ClientID, ClientHost string
	ProtocolType         string
	Protocols            []Protocol
	SessionMs            int32
	RebalanceMs          int32
	// DelayMs is how long a group that was empty waits for more members.
	DelayMs int32
	// RequireID refuses a dynamic member without an id until it comes back with the one it was given (KIP-394).
	RequireID bool
}

// EncodeJoin makes the command of a Join: DecodeJoined. The member has joined when QueryJoin says so.
func EncodeJoin(j Join) []byte {
	e := newEnc(opJoin, 256)
	for _, s := range [...]string{j.Group, j.MemberID, j.NewID, j.Instance, j.ClientID, j.ClientHost, j.ProtocolType} {
		e.str(s)
	}
	e.protocols(j.Protocols)
	e.iv(int64(j.SessionMs))
	e.iv(int64(j.RebalanceMs))
	e.iv(int64(j.DelayMs))
	e.bool(j.RequireID)
	return e.b
}

// DecodeJoined reads the answer to EncodeJoin: the member's id, and whether it has to come back with it.
func DecodeJoined(b []byte) (id string, comeBack bool, err error) {
	d := dec{codec.Read(b)}
	comeBack, id = d.Bool(), d.str()
	return id, comeBack, d.done("answer: join")
}

func joined(id string, comeBack bool) []byte {
	e := &enc{}
	e.bool(comeBack)
	e.str(id)
	return e.b
}

func (j *Join) check() error {
	for _, s := range [...]string{j.MemberID, j.NewID, j.Instance, j.ClientID, j.ClientHost, j.ProtocolType} {
		if len(s) > idMax {
			return errs.New(errs.Invalid, "an id of %d characters; at most %d are allowed", len(s), idMax)
		}
	}
	most := int64(SessionMax / time.Millisecond)
	switch {
	case j.Group == "":
		return errs.Coded(errs.Invalid, CodeInvalidGroup, "a group without a name has no members, only offsets")
	case j.MemberID == "" && j.NewID == "":
		return errs.New(errs.Invalid, "join without a member id")
	case j.SessionMs <= 0 || int64(j.SessionMs) > most:
		return errs.Coded(errs.Invalid, CodeInvalidSession, "session time-out of %d ms; 1 to %d are allowed", j.SessionMs, most)
	case j.RebalanceMs <= 0 || int64(j.RebalanceMs) > most:
		return errs.Coded(errs.Invalid, CodeInvalidSession, "rebalance time-out of %d ms; 1 to %d are allowed", j.RebalanceMs, most)
	case j.DelayMs < 0 || int64(j.DelayMs) > most:
		return errs.New(errs.Invalid, "initial rebalance delay of %d ms", j.DelayMs)
	case j.ProtocolType == "" || len(j.Protocols) == 0:
		return errs.Coded(errs.Invalid, CodeInconsistent, "a member must name a protocol type and at least one protocol")
	case len(j.Protocols) > protocolsMax:
		return errs.Coded(errs.Invalid, CodeInconsistent, "a member names %d protocols; at most %d are allowed", len(j.Protocols), protocolsMax)
	}
	size := 0
	for i, p := range j.Protocols {
		size += len(p.Name) + len(p.Metadata)
		for _, q := range j.Protocols[:i] {
			if p.Name == q.Name {
				return errs.Coded(errs.Invalid, CodeInconsistent, "a member names protocol %q twice", clip(p.Name))
			}
		}
		if p.Name == "" || len(p.Name) > idMax {
			return errs.Coded(errs.Invalid, CodeInconsistent, "a protocol name has 1 to %d characters; got %d", idMax, len(p.Name))
		}
	}
	if size > MemberBytesMax {
		return errs.Coded(errs.TooLarge, CodeGroupFull, "a member's metadata has %d bytes; at most %d are allowed", size, MemberBytesMax)
	}
	return nil
}

func applyJoin(tx *shard.Tx, d dec) ([]byte, error) {
	var j Join
	for _, s := range [...]*string{&j.Group, &j.MemberID, &j.NewID, &j.Instance, &j.ClientID, &j.ClientHost, &j.ProtocolType} {
		*s = d.str()
	}
	j.Protocols = d.protocols()
	j.SessionMs, j.RebalanceMs, j.DelayMs = d.i32(), d.i32(), d.i32()
	j.RequireID = d.Bool()
	if err := d.done("join command"); err != nil {
		return nil, err
	}
	if err := j.check(); err != nil {
		return nil, err
	}
	if j.MemberID != "" && readGroup(tx, j.Group) == nil {
		return nil, errs.Coded(errs.Fenced, CodeUnknownMember, "the group has no member %q; join again without an id", clip(j.MemberID))
	}
	g, err := openGroup(tx, j.Group)
	if err != nil {
		return nil, err
	}
	id, comeBack, err := g.join(tx, &j)
	if err != nil {
		return nil, err
	}
	g.save(tx)
	return joined(id, comeBack), nil
}

func (g *group) join(tx *shard.Tx, j *Join) (id string, comeBack bool, err error) {
	var m *member
	switch {
	case j.Instance != "":
		if m, err = g.findStatic(tx, j); err != nil {
			return "", false, err
		}
	case j.MemberID != "":
		m = readMember(tx, g.name, j.MemberID)
	}
	if err := g.fits(j, m); err != nil {
		return "", false, err
	}
	switch {
	case m != nil:
		g.rejoin(tx, j, m)
		return m.id, false, nil
	case j.MemberID != "" && !g.dropPending(tx, j.MemberID):
		return "", false, errs.Coded(errs.Fenced, CodeUnknownMember, "the group has no member %q; join again without an id", clip(j.MemberID))
	case g.members >= GroupMembersMax || g.members+g.pending >= 2*GroupMembersMax:
		return "", false, errs.Coded(errs.Overloaded, CodeGroupFull, "the group has %d members, the most it may have", g.members)
	case j.MemberID == "" && j.Instance == "" && j.RequireID:
		key := groupPart(rowPending, g.name, j.NewID)
		if _, ok := tx.Get(key); !ok {
			g.pending++
			tx.Set(key, []byte{version})
		}
		tx.SetTimer(key, tx.Now().Add(time.Duration(j.SessionMs)*time.Millisecond))
		return j.NewID, true, nil
	}
	id = j.MemberID
	if id == "" {
		id = j.NewID
	}
	if readMember(tx, g.name, id) != nil {
		return "", false, errs.New(errs.Exists, "member id %q is taken", clip(id))
	}
	g.add(tx, j, id)
	return id, false, nil
}

// fits checks that the group with j in it, in m's place if that is not nil, still has a protocol in common.
func (g *group) fits(j *Join, m *member) error {
	others, size := g.members, g.size
	if m != nil {
		others, size = others-1, size-int64(m.size())
	}
	for _, p := range j.Protocols {
		size += int64(len(p.Name) + len(p.Metadata))
	}
	if size > GroupBytesMax {
		return errs.Coded(errs.TooLarge, CodeGroupFull, "the metadata of the group's members would be %d bytes; at most %d are allowed", size, GroupBytesMax)
	}
	if others == 0 {
		return nil
	}
	if j.ProtocolType != g.protocolType {
		return errs.Coded(errs.Invalid, CodeInconsistent, "the group is of protocol type %q, not %q", clip(g.protocolType), clip(j.ProtocolType))
	}
	for _, p := range j.Protocols {
		i := g.supportOf(p.Name)
		if i < 0 {
			continue
		}
		n := g.supported[i].count
		if m != nil && m.knows(p.Name) {
			n--
		}
		if n == others {
			return nil
		}
	}
	return errs.Coded(errs.Invalid, CodeInconsistent, "the member has no protocol in common with all other members of the group")
}

// findStatic finds the member that a static member's process is or replaces; nil if the name is new.
func (g *group) findStatic(tx *shard.Tx, j *Join) (*member, error) {
	holder, ok := tx.Get(groupPart(rowInstance, g.name, j.Instance))
	switch {
	case !ok && j.MemberID != "":
		return nil, errs.Coded(errs.Fenced, CodeUnknownMember, "the group has no static member %q; join again without a member id", clip(j.Instance))
	case !ok:
		return nil, nil
	case j.MemberID != "" && string(holder) != j.MemberID:
		return nil, errs.Coded(errs.Fenced, CodeFencedInstance, "static member %q is another process by now", clip(j.Instance))
	}
	return readMember(tx, g.name, string(holder)), nil
}

// add makes a new member, and starts or goes on with a rebalance.
func (g *group) add(tx *shard.Tx, j *Join, id string) {
	m := &member{id: id, instance: j.Instance, clientID: j.ClientID, clientHost: j.ClientHost, joined: g.next()}
	g.members++
	g.joining++
	g.update(m, j, nil)
	g.saveMember(tx, m)
	if m.instance != "" {
		tx.Set(groupPart(rowInstance, g.name, m.instance), []byte(id))
	}
	if g.leader == "" {
		g.leader = id
	}
	now, delay := tx.Now(), time.Duration(j.DelayMs)*time.Millisecond
	switch {
	case g.state == GroupEmpty:
		g.protocolType = j.ProtocolType
		g.state, g.initial = GroupPreparing, true
		g.initialEnd = now.Add(m.rebalance()).UnixNano()
		g.wait(tx, delay)
	case g.state == GroupPreparing && g.initial:
		g.wait(tx, delay)
	case g.state == GroupPreparing:
		g.completeIfAllJoined(tx)
	default:
		g.prepare(tx)
		g.completeIfAllJoined(tx)
	}
}

// wait gives an empty group's first members a moment to be joined by more.
func (g *group) wait(tx *shard.Tx, delay time.Duration) {
	end := tx.Now().Add(delay)
	if last := time.Unix(0, g.initialEnd); end.After(last) {
		end = last
	}
	tx.SetTimer(groupKey(rowGroup, g.name), end)
}

// update replaces what a member says about itself; old is what it said before.
func (g *group) update(m *member, j *Join, old []Protocol) {
	g.size -= int64(m.size())
	// The new ones are counted first so that those in both lists keep their place in the group's order.
	g.support(j.Protocols, 1)
	g.support(old, -1)
	m.protocols = j.Protocols
	m.sessionMs, m.rebalanceMs = j.SessionMs, j.RebalanceMs
	g.size += int64(m.size())
}

// rejoin is a join by a member that the group knows already.
func (g *group) rejoin(tx *shard.Tx, j *Join, m *member) {
	replaced := j.MemberID == "" && j.NewID != m.id
	if replaced {
		g.replace(tx, m, j.NewID)
	}
	same := sameProtocols(m.protocols, j.Protocols)
	asLeader := g.leader == m.id && j.MemberID != ""
	g.update(m, j, m.protocols)
	m.clientID, m.clientHost = j.ClientID, j.ClientHost
	if same && (g.state == GroupCompleting && !replaced || g.state == GroupStable && !asLeader) {
		// It missed the answer, or a static member restarted: the present generation is still right. But while assignments are
		// made they are for the id that was replaced, and nobody would get that one's.
		g.saveMember(tx, m)
		g.alive(tx, m)
		return
	}
	if !g.waits(m) {
		m.joined = g.next()
		g.joining++
	}
	g.saveMember(tx, m)
	// The session rests while the member waits to join.
	tx.SetTimer(groupPart(rowMember, g.name, m.id), time.Time{})
	if g.state != GroupPreparing {
		g.prepare(tx)
	}
	g.completeIfAllJoined(tx)
}

// replace gives a static member's place to a new process of the same name.
func (g *group) replace(tx *shard.Tx, m *member, id string) {
	key := groupPart(rowMember, g.name, m.id)
	tx.Delete(key)
	tx.SetTimer(key, time.Time{})
	if g.leader == m.id {
		g.leader = id
	}
	m.id = id
	tx.Set(groupPart(rowInstance, g.name, m.instance), []byte(id))
	g.wake(tx)
}

func sameProtocols(a, b []Protocol) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Name != b[i].Name || !bytes.Equal(a[i].Metadata, b[i].Metadata) {
			return false
		}
	}
	return true
}

// Sync asks for a member's assignment, or brings all assignments if the member leads the group (SyncGroup).
type Sync struct {
	Group, MemberID, Instance string
	Generation                int32
	// ProtocolType and Protocol, if not empty, must be those of the group.
	ProtocolType, Protocol string
	Assignments            []Assignment
}

// Assignment is what the leader assigned to a member.
type Assignment struct {
	MemberID string
	Data     []byte
}

// EncodeSync makes the command of a Sync. It has no answer: QuerySync has it.
func EncodeSync(s Sync) []byte {
	e := newEnc(opSync, 256)
	for _, v := range [...]string{s.Group, s.MemberID, s.Instance, s.ProtocolType, s.Protocol} {
		e.str(v)
	}
	e.iv(int64(s.Generation))
	e.uv(uint64(len(s.Assignments)))
	for _, a := range s.Assignments {
		e.str(a.MemberID)
		e.bytes(a.Data)
	}
	return e.b
}

func applySync(tx *shard.Tx, d dec) ([]byte, error) {
	var s Sync
	for _, v := range [...]*string{&s.Group, &s.MemberID, &s.Instance, &s.ProtocolType, &s.Protocol} {
		*v = d.str()
	}
	s.Generation = d.i32()
	size := 0
	for n := d.Count(2); n > 0 && !d.Bad(); n-- {
		a := Assignment{MemberID: d.str(), Data: d.Bytes()}
		size += len(a.Data)
		s.Assignments = append(s.Assignments, a)
	}
	if err := d.done("sync command"); err != nil {
		return nil, err
	}
	if size > AssignmentBytesMax {
		return nil, errs.New(errs.TooLarge, "assignments of %d bytes; at most %d are allowed", size, AssignmentBytesMax)
	}
	g := readGroup(tx, s.Group)
	m, err := current(tx, g, s.MemberID, s.Instance, s.Generation)
	if err != nil {
		return nil, err
	}
	if s.ProtocolType != "" && s.ProtocolType != g.protocolType || s.Protocol != "" && s.Protocol != g.protocol {
		return nil, errs.Coded(errs.Invalid, CodeInconsistent, "the group assigns by %q of type %q", clip(g.protocol), clip(g.protocolType))
	}
	switch g.state {
	case GroupPreparing:
		return nil, rebalancing()
	case GroupStable:
		g.alive(tx, m)
		return nil, nil
	}
	m.synced = g.generation
	g.saveMember(tx, m)
	g.alive(tx, m)
	if m.id != g.leader {
		return nil, nil
	}
	given := make(map[string][]byte, len(s.Assignments))
	for _, a := range s.Assignments {
		given[a.MemberID] = a.Data
	}
	for _, m := range g.all(tx) {
		m.assigned, m.assignment = g.generation, given[m.id]
		g.saveMember(tx, m)
	}
	g.state = GroupStable
	tx.SetTimer(groupKey(rowGroup, g.name), time.Time{})
	g.save(tx)
	g.wake(tx)
	return nil, nil
}

func rebalancing() error {
	return errs.Coded(errs.Conflict, CodeRebalancing, "the group is rebalancing; join again")
}

// EncodeHeartbeat makes the command that keeps a member in its group: DecodeHeartbeat.
func EncodeHeartbeat(group, memberID, instance string, generation int32) []byte {
	e := newEnc(opHeartbeat, 64)
	e.str(group)
	e.str(memberID)
	e.str(instance)
	e.iv(int64(generation))
	return e.b
}

// DecodeHeartbeat reads the answer to EncodeHeartbeat: whether the member has to join again.
func DecodeHeartbeat(b []byte) (joinAgain bool, err error) {
	d := dec{codec.Read(b)}
	joinAgain = d.Bool()
	return joinAgain, d.done("answer: heartbeat")
}

func applyHeartbeat(tx *shard.Tx, d dec) ([]byte, error) {
	name, id, instance, generation := d.str(), d.str(), d.str(), d.i32()
	if err := d.done("heartbeat command"); err != nil {
		return nil, err
	}
	g := readGroup(tx, name)
	m, err := current(tx, g, id, instance, generation)
	if err != nil {
		return nil, err
	}
	if !g.waits(m) {
		g.alive(tx, m)
	}
	e := &enc{}
	e.bool(g.state == GroupPreparing)
	return e.b, nil
}

// Leaver is a member that leaves: by its id, by its instance name, or both.
type Leaver struct{ MemberID, Instance string }

// EncodeLeave makes the command that takes members out of a group: DecodeLeft.
func EncodeLeave(group string, list []Leaver) []byte {
	e := newEnc(opLeave, 64)
	e.str(group)
	e.uv(uint64(len(list)))
	for _, l := range list {
		e.str(l.MemberID)
		e.str(l.Instance)
	}
	return e.b
}

// DecodeLeft reads the answer to EncodeLeave: nil or an error for each leaver, in order.
func DecodeLeft(b []byte) ([]error, error) {
	d := dec{codec.Read(b)}
	var out []error
	for n := d.Count(1); n > 0 && !d.Bad(); n-- {
		out = append(out, d.refusal())
	}
	return out, d.done("answer: leave")
}

func applyLeave(tx *shard.Tx, d dec) ([]byte, error) {
	name := d.str()
	var list []Leaver
	for n := d.Count(2); n > 0 && !d.Bad(); n-- {
		list = append(list, Leaver{d.str(), d.str()})
	}
	if err := d.done("leave command"); err != nil {
		return nil, err
	}
	g := readGroup(tx, name)
	out := &enc{}
	out.uv(uint64(len(list)))
	left, dropped := false, false
	for _, l := range list {
		if g != nil && l.Instance == "" && g.dropPending(tx, l.MemberID) {
			dropped = true
			out.refusal(nil)
			continue
		}
		if g != nil && l.Instance != "" && l.MemberID == "" {
			holder, _ := tx.Get(groupPart(rowInstance, name, l.Instance))
			l.MemberID = string(holder)
		}
		m, err := known(tx, g, l.MemberID, l.Instance)
		if err == nil {
			g.remove(tx, m)
			left = true
		}
		out.refusal(err)
	}
	if left {
		g.settle(tx)
	} else if dropped {
		g.completeIfAllJoined(tx)
	}
	if left || dropped {
		g.save(tx)
	}
	return out.b, nil
}
