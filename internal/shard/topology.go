package shard

import "slices"

// Topology is an immutable map of the cluster as one node sees it.
type Topology struct {
	// Cluster is the cluster's name, the same on every node.
	Cluster string
	// Self is the node that made this map.
	Self NodeID
	// Nodes are all members, by id.
	Nodes []Node
	// Shards are all shards, by id.
	Shards []ShardInfo
	// Spaces are all spaces; the first is "default".
	Spaces []Space
}

// Node is a member of the cluster.
type Node struct {
	ID NodeID
	// Up says whether the node was heard of within the last liveness timeout. A node sees itself as up.
	Up bool
	// Addr maps a protocol ("redis", "kafka", "http") to the advertised host:port. It is empty until the node was heard of.
	Addr map[string]string
}

// ShardInfo is what a node knows of a shard.
type ShardInfo struct {
	ID ID
	// Leader is the node that leads the shard, 0 if none is known.
	Leader NodeID
	// Term is the raft term in which it leads.
	Term uint64
	// Replicas are the nodes that hold the shard.
	Replicas []NodeID
}

// DefaultSpace is the space that every cluster has.
const DefaultSpace = "default"

// Space is a tenant's world.
type Space struct {
	Name string
	// Shards are the space's shards in routing order. The first holds what is of the space as a whole: topics and groups.
	Shards []ID
}

// SlotCount is the number of hash slots of a space (Redis cluster specification).
const SlotCount = 16384

// Space returns a space by name.
func (t *Topology) Space(name string) (Space, bool) {
	i := slices.IndexFunc(t.Spaces, func(s Space) bool { return s.Name == name })
	if i < 0 {
		return Space{}, false
	}
	return t.Spaces[i], true
}

// Shard returns what is known of a shard.
func (t *Topology) Shard(id ID) (ShardInfo, bool) {
	i, ok := slices.BinarySearchFunc(t.Shards, id, func(s ShardInfo, id ID) int { return int(s.ID) - int(id) })
	if !ok {
		return ShardInfo{}, false
	}
	return t.Shards[i], true
}

// Node returns a member by id.
func (t *Topology) Node(id NodeID) (Node, bool) {
	i := slices.IndexFunc(t.Nodes, func(n Node) bool { return n.ID == id })
	if i < 0 {
		return Node{}, false
	}
	return t.Nodes[i], true
}

// SlotShard returns the shard of a hash slot: slots are divided into contiguous ranges, one a shard.
func (s Space) SlotShard(slot uint16) ID {
	return s.Shards[int(slot)*len(s.Shards)/SlotCount]
}

// SlotRange returns the slots of the space's i-th shard, first and last included.
func (s Space) SlotRange(i int) (first, last uint16) {
	n := len(s.Shards)
	ceil := func(i int) int { return (i*SlotCount + n - 1) / n }
	return uint16(ceil(i)), uint16(ceil(i+1) - 1)
}

// PartitionShard returns the shard that holds a partition of any topic of the space.
func (s Space) PartitionShard(partition int32) ID {
	return s.Shards[int(partition)%len(s.Shards)]
}
