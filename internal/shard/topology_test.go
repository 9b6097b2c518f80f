package shard

import "testing"

func TestSpace_SlotsAreDividedWithoutGaps(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 7, 16, 1000} {
		s := Space{}
		for i := range n {
			s.Shards = append(s.Shards, ID(100+i))
		}
		next := 0
		for i := range n {
			first, last := s.SlotRange(i)
			if int(first) != next || last < first {
				t.Fatalf("%d shards: shard %d has slots %d to %d, want them from %d", n, i, first, last, next)
			}
			next = int(last) + 1
			for _, slot := range []uint16{first, (first + last) / 2, last} {
				if got := s.SlotShard(slot); got != s.Shards[i] {
					t.Fatalf("%d shards: slot %d is in shard %d, want %d", n, slot, got, s.Shards[i])
				}
			}
		}
		if next != SlotCount {
			t.Fatalf("%d shards: slots end at %d", n, next)
		}
	}
}

func TestSpace_PartitionsGoRound(t *testing.T) {
	s := Space{Shards: []ID{4, 5, 6}}
	for p, want := range map[int32]ID{0: 4, 1: 5, 2: 6, 3: 4, 100: 5} {
		if got := s.PartitionShard(p); got != want {
			t.Errorf("partition %d is in shard %d, want %d", p, got, want)
		}
	}
}

func TestTopology_FindsByNameAndID(t *testing.T) {
	top := &Topology{
		Nodes: []Node{{ID: 1}, {ID: 3, Up: true}}, Shards: []ShardInfo{{ID: 2, Leader: 1}, {ID: 9, Leader: 3}},
		Spaces: []Space{{Name: "default"}, {Name: "other"}},
	}
	if s, ok := top.Space("other"); !ok || s.Name != "other" {
		t.Errorf("space: %+v %v", s, ok)
	}
	if _, ok := top.Space("none"); ok {
		t.Errorf("found a space that is not there")
	}
	if s, ok := top.Shard(9); !ok || s.Leader != 3 {
		t.Errorf("shard: %+v %v", s, ok)
	}
	if _, ok := top.Shard(3); ok {
		t.Errorf("found a shard that is not there")
	}
	if n, ok := top.Node(3); !ok || !n.Up {
		t.Errorf("node: %+v %v", n, ok)
	}
	if _, ok := top.Node(2); ok {
		t.Errorf("found a node that is not there")
	}
}
