package eventlog

import (
	"math"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// Bounds of groups.
const (
	// GroupNameMax is the longest group name. The shortest is the empty one, as in Kafka: that group has no members, but offsets.
	GroupNameMax = 512
	// GroupsMax bounds the groups of a shard.
	GroupsMax = 100_000
	// GroupMembersMax bounds the members of a group, and the member ids handed out and not used yet.
	GroupMembersMax = 1000
	// MemberBytesMax bounds what a member says about itself.
	MemberBytesMax = 512 << 10
	// GroupBytesMax bounds what all members of a group say about themselves.
	GroupBytesMax = 8 << 20
	// AssignmentBytesMax bounds all assignments of one generation together.
	AssignmentBytesMax = 8 << 20
	// GroupOffsetsMax bounds the committed offsets of a group.
	GroupOffsetsMax = 100_000
	// OffsetMetadataMax bounds the text stored with a committed offset.
	OffsetMetadataMax = 4096
	// SessionMax is the longest session or rebalance time-out.
	SessionMax = 24 * time.Hour

	protocolsMax = 32
	// idMax bounds member ids, instance ids, client ids and names of protocols.
	idMax = 1024
	// groupIdle is how long a group without members keeps its offsets after it was last used, as in Kafka.
	groupIdle = 7 * 24 * time.Hour
	// idleRows bounds the offsets that one timer deletes.
	idleRows = 512
)

// GroupState is where a group is between two assignments.
type GroupState uint8

// The states of a group; they are stored.
const (
	// GroupEmpty has no members.
	GroupEmpty GroupState = 0
	// GroupPreparing waits for its members to join the next generation.
	GroupPreparing GroupState = 1
	// GroupCompleting waits for its leader to assign partitions.
	GroupCompleting GroupState = 2
	// GroupStable has assigned partitions.
	GroupStable GroupState = 3
)

var groupStateNames = [...]string{"Empty", "PreparingRebalance", "CompletingRebalance", "Stable"}

// String names the state as Kafka does.
func (s GroupState) String() string {
	if int(s) < len(groupStateNames) {
		return groupStateNames[s]
	}
	return "Unknown"
}

// Codes of refusals that a group gives. They are in errs.Error.Code.
const (
	CodeUnknownMember     = "UNKNOWNMEMBER"
	CodeIllegalGeneration = "ILLEGALGENERATION"
	CodeFencedInstance    = "FENCEDINSTANCE"
	CodeInconsistent      = "INCONSISTENTPROTOCOL"
	CodeGroupFull         = "GROUPFULL"
	CodeRebalancing       = "REBALANCING"
	CodeInvalidGroup      = "INVALIDGROUP"
	CodeInvalidSession    = "INVALIDSESSION"
	CodeMetadataTooLarge  = "METADATATOOLARGE"
)

// group is a group's own row.
type group struct {
	name  string
	state GroupState
	// generation rises by one with each completed rebalance and when the last member goes; see next.
	generation   int32
	protocolType string
	// protocol is the chosen one; empty before the first generation.
	protocol string
	leader   string
	// members counts member rows, joining those of them that wait to join, pending the member ids handed out.
	members, joining, pending int
	// initial says that the group was empty and waits a moment for more members; initialEnd is when that ends at last.
	initial    bool
	initialEnd int64
	// supported counts the members that know each protocol, in the order of first appearance.
	supported []support
	// size is the bytes of the members' metadata, offsets the number of committed offsets.
	size    int64
	offsets int
	// used is when the group was last used while it had no members.
	used int64
	// term is the raft term in which the deadline of a rebalance was last set; see fireGroup. Rows that were written before there was
	// this field have 0.
	term uint64
}

type support struct {
	name  string
	count int
}

func (g *group) encode() []byte {
	e := &enc{b: append(make([]byte, 0, 128), version, byte(g.state))}
	e.iv(int64(g.generation))
	e.str(g.protocolType)
	e.str(g.protocol)
	e.str(g.leader)
	e.uv(uint64(g.members))
	e.uv(uint64(g.joining))
	e.uv(uint64(g.pending))
	e.bool(g.initial)
	e.iv(g.initialEnd)
	e.uv(uint64(len(g.supported)))
	for _, s := range g.supported {
		e.str(s.name)
		e.uv(uint64(s.count))
	}
	e.iv(g.size)
	e.uv(uint64(g.offsets))
	e.iv(g.used)
	e.uv(g.term)
	return e.b
}

func decodeGroup(name string, b []byte) *group {
	d := row(b)
	g := &group{name: name, state: GroupState(d.Byte()), generation: d.i32()}
	g.protocolType, g.protocol, g.leader = d.str(), d.str(), d.str()
	g.members, g.joining, g.pending = int(d.Uvarint()), int(d.Uvarint()), int(d.Uvarint())
	g.initial, g.initialEnd = d.Bool(), d.Varint()
	for n := d.Count(2); n > 0; n-- {
		g.supported = append(g.supported, support{d.str(), int(d.Uvarint())})
	}
	g.size, g.offsets, g.used = d.Varint(), int(d.Uvarint()), d.Varint()
	if d.Len() > 0 {
		g.term = d.Uvarint()
	}
	d.ok("group")
	return g
}

func readGroup(v shard.View, name string) *group {
	b, ok := v.Get(groupKey(rowGroup, name))
	if !ok {
		return nil
	}
	return decodeGroup(name, b)
}

// openGroup reads a group or makes an empty one.
func openGroup(tx *shard.Tx, name string) (*group, error) {
	if len(name) > GroupNameMax {
		return nil, errs.Coded(errs.Invalid, CodeInvalidGroup, "a group name has at most %d characters; got %d", GroupNameMax, len(name))
	}
	if g := readGroup(tx, name); g != nil {
		return g, nil
	}
	n := countGroups(tx)
	if n >= GroupsMax {
		return nil, errs.Coded(errs.Overloaded, CodeGroupFull, "the shard has %d groups, the most it may have", n)
	}
	setGroups(tx, n+1)
	g := &group{name: name}
	g.idle(tx)
	return g, nil
}

func countGroups(tx *shard.Tx) uint64 {
	b, ok := tx.Get([]byte{rowGroups})
	if !ok {
		return 0
	}
	d := row(b)
	n := d.Uvarint()
	d.ok("group counter")
	return n
}

func setGroups(tx *shard.Tx, n uint64) {
	e := &enc{b: []byte{version}}
	e.uv(n)
	tx.Set([]byte{rowGroups}, e.b)
}

// idle notes that a group without members was used just now.
func (g *group) idle(tx *shard.Tx) {
	g.used = tx.Now().UnixNano()
	tx.SetTimer(groupKey(timerIdle, g.name), tx.Now().Add(groupIdle))
}

// next returns the generation behind the present one. Behind the largest number comes 1: clients take a negative one for none.
func (g *group) next() int32 {
	if g.generation == math.MaxInt32 {
		return 1
	}
	return g.generation + 1
}

// waits says whether a member waits to join the next generation.
func (g *group) waits(m *member) bool { return m.joined == g.next() }

func (g *group) save(tx *shard.Tx) { tx.Set(groupKey(rowGroup, g.name), g.encode()) }

// wake lets those who wait for the group look again.
func (g *group) wake(tx *shard.Tx) { tx.Wake(groupKey(rowGroup, g.name)) }

// support adds delta to the counts of a member's protocols.
func (g *group) support(list []Protocol, delta int) {
	for _, p := range list {
		i := g.supportOf(p.Name)
		if i < 0 {
			g.supported = append(g.supported, support{name: p.Name})
			i = len(g.supported) - 1
		}
		if g.supported[i].count += delta; g.supported[i].count <= 0 {
			g.supported = append(g.supported[:i], g.supported[i+1:]...)
		}
	}
}

func (g *group) supportOf(name string) int {
	for i := range g.supported {
		if g.supported[i].name == name {
			return i
		}
	}
	return -1
}

// member is a member row.
type member struct {
	id, instance         string
	clientID, clientHost string
	sessionMs            int32
	rebalanceMs          int32
	protocols            []Protocol
	// joined is the generation the member asked to be in: it is waiting to join while that is the group's next one.
	joined int32
	// synced is the last generation in which the member asked for its assignment.
	synced int32
	// assignment is that of generation assigned.
	assigned   int32
	assignment []byte
	// term is the raft term in which the session began or was last renewed; see fireMember. Rows that were written before there
	// was this field have 0.
	term uint64
}

// Protocol is a way to assign partitions that a member knows, with what it says about itself in it.
type Protocol struct {
	Name     string
	Metadata []byte
}

func (e *enc) protocols(list []Protocol) {
	e.uv(uint64(len(list)))
	for _, p := range list {
		e.str(p.Name)
		e.bytes(p.Metadata)
	}
}

func (d *dec) protocols() []Protocol {
	var list []Protocol
	for n := d.Count(2); n > 0 && !d.Bad(); n-- {
		list = append(list, Protocol{Name: d.str(), Metadata: d.Bytes()})
	}
	return list
}

func (m *member) encode() []byte {
	e := &enc{b: append(make([]byte, 0, 128+m.size()+len(m.assignment)), version)}
	for _, s := range [...]string{m.id, m.instance, m.clientID, m.clientHost} {
		e.str(s)
	}
	for _, v := range [...]int32{m.sessionMs, m.rebalanceMs, m.joined, m.synced, m.assigned} {
		e.iv(int64(v))
	}
	e.protocols(m.protocols)
	e.bytes(m.assignment)
	e.uv(m.term)
	return e.b
}

func decodeMember(b []byte) *member {
	d := row(b)
	m := &member{}
	for _, s := range [...]*string{&m.id, &m.instance, &m.clientID, &m.clientHost} {
		*s = d.str()
	}
	for _, v := range [...]*int32{&m.sessionMs, &m.rebalanceMs, &m.joined, &m.synced, &m.assigned} {
		*v = d.i32()
	}
	m.protocols = d.protocols()
	m.assignment = d.Bytes()
	if d.Len() > 0 {
		m.term = d.Uvarint()
	}
	d.ok("member")
	return m
}

func (m *member) size() int {
	n := 0
	for _, p := range m.protocols {
		n += len(p.Name) + len(p.Metadata)
	}
	return n
}

func (m *member) session() time.Duration   { return time.Duration(m.sessionMs) * time.Millisecond }
func (m *member) rebalance() time.Duration { return time.Duration(m.rebalanceMs) * time.Millisecond }

func (m *member) knows(protocol string) bool {
	for _, p := range m.protocols {
		if p.Name == protocol {
			return true
		}
	}
	return false
}

// metadata returns what the member says about itself in a protocol.
func (m *member) metadata(protocol string) []byte {
	for _, p := range m.protocols {
		if p.Name == protocol {
			return p.Metadata
		}
	}
	return nil
}

func readMember(v shard.View, g, id string) *member {
	b, ok := v.Get(groupPart(rowMember, g, id))
	if !ok {
		return nil
	}
	return decodeMember(b)
}

func (g *group) saveMember(tx *shard.Tx, m *member) {
	tx.Set(groupPart(rowMember, g.name, m.id), m.encode())
}

// all returns the group's members in the order of their ids.
func (g *group) all(v shard.View) []*member {
	list := make([]*member, 0, g.members)
	prefix := groupKey(rowMember, g.name)
	for _, b := range v.Scan(prefix, after(prefix)) {
		list = append(list, decodeMember(append([]byte(nil), b...)))
	}
	return list
}

// alive starts a member's session anew. It stores m if it is the first time in a term, so m must be what is stored, or is to be.
func (g *group) alive(tx *shard.Tx, m *member) {
	if m.term != tx.Term() {
		m.term = tx.Term()
		g.saveMember(tx, m)
	}
	tx.SetTimer(groupPart(rowMember, g.name, m.id), tx.Now().Add(m.session()))
}

// known finds a member and checks that it is who it says it is (KIP-345).
func known(v shard.View, g *group, id, instance string) (*member, error) {
	if g == nil {
		return nil, errs.Coded(errs.Fenced, CodeUnknownMember, "the group has no member %q; join again", clip(id))
	}
	if instance != "" {
		holder, ok := v.Get(groupPart(rowInstance, g.name, instance))
		if !ok {
			return nil, errs.Coded(errs.Fenced, CodeUnknownMember, "the group has no static member %q; join again", clip(instance))
		}
		if string(holder) != id {
			return nil, errs.Coded(errs.Fenced, CodeFencedInstance, "static member %q is another process by now", clip(instance))
		}
	}
	m := readMember(v, g.name, id)
	if m == nil {
		return nil, errs.Coded(errs.Fenced, CodeUnknownMember, "the group has no member %q; join again", clip(id))
	}
	return m, nil
}

// current is known, and checks the generation.
func current(v shard.View, g *group, id, instance string, generation int32) (*member, error) {
	m, err := known(v, g, id, instance)
	if err != nil {
		return nil, err
	}
	if generation != g.generation {
		return nil, errs.Coded(errs.Fenced, CodeIllegalGeneration, "the group is in generation %d, not %d; join again", g.generation, generation)
	}
	return m, nil
}
