package replica

import (
	"reflect"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// What is not set is what its field says. A lease counts on clocks that differ.
func TestConfig_Defaults(t *testing.T) {
	c := Config{Node: 1, Nodes: []shard.NodeID{1}, Shards: []shard.ID{1}, Session: 1}
	if err := c.fill(); err != nil {
		t.Fatal(err)
	}
	want := Config{
		Node: 1, Nodes: []shard.NodeID{1}, Shards: []shard.ID{1}, Session: 1,
		Tick: 100 * time.Millisecond, ElectionTicks: 10, BatchBytesMax: 1 << 20, CommandBytesMax: 16 << 20, QueueBytesMax: 32 << 20, QueueLenMax: 65536,
		InflightBytesMax: 16 << 20, AnswerBytesMax: 512 << 20, LogBytesMax: 128 << 20, ChunkBytes: 256 << 10, LeaseDrift: 0.1, CacheBytes: 32 << 20,
	}
	if c.Machine.Cache == nil {
		t.Error("there is no cache")
	}
	if c.Machine.Cache = nil; !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v, want %+v", c, want)
	}
	set := want
	set.Tick, set.ElectionTicks, set.LogBytesMax, set.LeaseDrift, set.CacheBytes = time.Second, 7, 1, 0.5, -1
	if c = set; c.fill() != nil || !reflect.DeepEqual(c, set) {
		t.Errorf("got %+v, want %+v", c, set)
	}
	for _, bad := range []Config{
		{Node: 2, Nodes: []shard.NodeID{1}, Shards: []shard.ID{1}, Session: 1},
		{Node: 1, Nodes: []shard.NodeID{1}, Shards: []shard.ID{1}},
		{Node: 1, Nodes: []shard.NodeID{1}, Session: 1},
	} {
		if err := bad.fill(); !errs.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
