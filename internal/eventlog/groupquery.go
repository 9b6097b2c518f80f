package eventlog

import (
	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// JoinState is the answer of QueryJoin.
type JoinState struct {
	// Waiting says that the rebalance is not complete; the rest is empty then.
	Waiting                        bool
	Generation                     int32
	ProtocolType, Protocol, Leader string
	// Assigned says that the generation has its assignments already: a leader that reads this has nothing to assign.
	Assigned bool
	// Members is filled in for the leader only: every member with its metadata for Protocol.
	Members []GroupMember
}

// GroupMember is a member as others see it.
type GroupMember struct {
	ID, Instance         string
	ClientID, ClientHost string
	Metadata             []byte
	Assignment           []byte
}

func (e *enc) groupMember(m *GroupMember) {
	for _, s := range [...]string{m.ID, m.Instance, m.ClientID, m.ClientHost} {
		e.str(s)
	}
	e.bytes(m.Metadata)
	e.bytes(m.Assignment)
}

func (d *dec) groupMembers() []GroupMember {
	var list []GroupMember
	for n := d.Count(6); n > 0 && !d.Bad(); n-- {
		list = append(list, GroupMember{
			ID: d.str(), Instance: d.str(), ClientID: d.str(), ClientHost: d.str(), Metadata: d.Bytes(), Assignment: d.Bytes(),
		})
	}
	return list
}

// QueryJoin asks what became of a member's Join: DecodeJoinState. It is refused once the group does not know the member, and as
// fenced if another process is the static member instance by now.
func QueryJoin(group, memberID, instance string) []byte {
	e := newEnc(queryJoin, 64)
	e.str(group)
	e.str(memberID)
	e.str(instance)
	return e.b
}

// DecodeJoinState reads the answer of QueryJoin.
func DecodeJoinState(b []byte) (JoinState, error) {
	d := dec{codec.Read(b)}
	s := JoinState{Waiting: d.Bool()}
	s.Generation, s.ProtocolType, s.Protocol, s.Leader = d.i32(), d.str(), d.str(), d.str()
	s.Assigned = d.Bool()
	s.Members = d.groupMembers()
	return s, d.done("answer: join state")
}

func answerJoin(v shard.View, d dec) ([]byte, error) {
	name, id, instance := d.str(), d.str(), d.str()
	if err := d.done("join query"); err != nil {
		return nil, err
	}
	g := readGroup(v, name)
	m, err := known(v, g, id, instance)
	if err != nil {
		return nil, err
	}
	e := &enc{}
	e.bool(g.waits(m))
	if g.waits(m) {
		e.iv(-1)
		e.str("")
		e.str("")
		e.str("")
		e.bool(false)
		e.uv(0)
		return e.b, nil
	}
	e.iv(int64(g.generation))
	e.str(g.protocolType)
	e.str(g.protocol)
	e.str(g.leader)
	e.bool(g.state == GroupStable)
	if m.id != g.leader {
		e.uv(0)
		return e.b, nil
	}
	var list []*member
	for _, m := range g.all(v) {
		// Those who wait for the next generation are not in this one.
		if !g.waits(m) {
			list = append(list, m)
		}
	}
	e.uv(uint64(len(list)))
	for _, m := range list {
		e.groupMember(&GroupMember{ID: m.id, Instance: m.instance, Metadata: m.metadata(g.protocol)})
	}
	return e.b, nil
}

// SyncState is the answer of QuerySync.
type SyncState struct {
	// Waiting says that the leader has not assigned yet.
	Waiting                bool
	ProtocolType, Protocol string
	Assignment             []byte
}

// QuerySync asks for a member's assignment: DecodeSyncState. It is refused when the generation is over, and like QueryJoin.
func QuerySync(group, memberID, instance string, generation int32) []byte {
	e := newEnc(querySync, 64)
	e.str(group)
	e.str(memberID)
	e.str(instance)
	e.iv(int64(generation))
	return e.b
}

// DecodeSyncState reads the answer of QuerySync.
func DecodeSyncState(b []byte) (SyncState, error) {
	d := dec{codec.Read(b)}
	s := SyncState{Waiting: d.Bool(), ProtocolType: d.str(), Protocol: d.str(), Assignment: d.Bytes()}
	return s, d.done("answer: sync state")
}

func answerSync(v shard.View, d dec) ([]byte, error) {
	name, id, instance, generation := d.str(), d.str(), d.str(), d.i32()
	if err := d.done("sync query"); err != nil {
		return nil, err
	}
	g := readGroup(v, name)
	m, err := known(v, g, id, instance)
	if err != nil {
		return nil, err
	}
	if generation != g.generation || g.state != GroupCompleting && g.state != GroupStable {
		return nil, rebalancing()
	}
	e := &enc{}
	e.bool(g.state == GroupCompleting)
	e.str(g.protocolType)
	e.str(g.protocol)
	if g.state == GroupStable && m.assigned == g.generation {
		e.bytes(m.assignment)
	} else {
		e.bytes(nil)
	}
	return e.b, nil
}

// GroupInfo is a group as ListGroups and DescribeGroups show it.
type GroupInfo struct {
	Name                   string
	State                  GroupState
	ProtocolType, Protocol string
	Generation             int32
	Members                []GroupMember
}

func (e *enc) groupInfo(g *group, members []GroupMember) {
	e.str(g.name)
	e.u8(byte(g.state))
	e.str(g.protocolType)
	e.str(g.protocol)
	e.iv(int64(g.generation))
	e.uv(uint64(len(members)))
	for i := range members {
		e.groupMember(&members[i])
	}
}

func (d *dec) groupInfo() GroupInfo {
	g := GroupInfo{Name: d.str(), State: GroupState(d.Byte()), ProtocolType: d.str(), Protocol: d.str(), Generation: d.i32()}
	g.Members = d.groupMembers()
	return g
}

// QueryGroups asks a shard for all groups, without their members: DecodeGroups.
func QueryGroups() []byte { return newEnc(queryGroups, 0).b }

// DecodeGroups reads the answer of QueryGroups, by name.
func DecodeGroups(b []byte) ([]GroupInfo, error) {
	d := dec{codec.Read(b)}
	var out []GroupInfo
	for n := d.Count(6); n > 0 && !d.Bad(); n-- {
		out = append(out, d.groupInfo())
	}
	return out, d.done("answer: groups")
}

func answerGroups(v shard.View, d dec) ([]byte, error) {
	if err := d.done("groups query"); err != nil {
		return nil, err
	}
	n, body := 0, &enc{}
	for k, b := range v.Scan([]byte{rowGroup}, []byte{rowGroup + 1}) {
		name, _ := splitGroupKey(k)
		body.groupInfo(decodeGroup(name, b), nil)
		n++
	}
	out := &enc{}
	out.uv(uint64(n))
	return append(out.b, body.b...), nil
}

// QueryGroup asks for one group with its members: DecodeGroup. It fails with errs.NotFound.
func QueryGroup(group string) []byte {
	e := newEnc(queryGroup, len(group)+2)
	e.str(group)
	return e.b
}

// DecodeGroup reads the answer of QueryGroup.
func DecodeGroup(b []byte) (GroupInfo, error) {
	d := dec{codec.Read(b)}
	g := d.groupInfo()
	return g, d.done("answer: group")
}

func answerGroup(v shard.View, d dec) ([]byte, error) {
	name := d.str()
	if err := d.done("group query"); err != nil {
		return nil, err
	}
	g := readGroup(v, name)
	if g == nil {
		return nil, errs.New(errs.NotFound, "no group %q", clip(name))
	}
	var list []GroupMember
	for _, m := range g.all(v) {
		x := GroupMember{
			ID: m.id, Instance: m.instance, ClientID: m.clientID, ClientHost: m.clientHost, Metadata: m.metadata(g.protocol),
		}
		if g.state == GroupStable && m.assigned == g.generation {
			x.Assignment = m.assignment
		}
		list = append(list, x)
	}
	e := &enc{}
	e.groupInfo(g, list)
	return e.b, nil
}
