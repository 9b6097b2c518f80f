package redis

import (
	"fmt"
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// lead says who leads the shards; each of three nodes holds them.
func lead(c *shardtest.Client, by ...shard.NodeID) {
	c.SetTopology(func(t *shard.Topology) {
		t.Shards = append([]shard.ShardInfo(nil), t.Shards...)
		for i := range t.Shards {
			t.Shards[i].Leader = by[i]
		}
	})
}

func TestFlush_ClusterClientOfAnyNodeRemovesAllKeys(t *testing.T) {
	r := newRig(t, shardtest.Options{Shards: 4}, Config{ClusterMode: true})
	threeNodes(r.c, "127.0.0.1:7000")
	plain, smart := r.dial(), r.dial()
	smart.do("cluster", "slots")
	for _, cmd := range []string{"flushall", "flushdb"} {
		for _, leaders := range [][]shard.NodeID{{1, 1, 1, 1}, {2, 2, 2, 2}, {1, 2, 1, 2}, {0, 0, 0, 0}} {
			lead(r.c, leaders...)
			for i := range 20 {
				plain.want(fmt.Sprintf("set k%d v", i), "+OK")
			}
			smart.want(cmd, "+OK")
			plain.want("dbsize", ":0")
		}
	}
}

func TestReadsWithoutKey_FailWhileAShardHasNoLeader(t *testing.T) {
	r := newRig(t, shardtest.Options{Shards: 4}, Config{ClusterMode: true})
	threeNodes(r.c, "127.0.0.1:7000")
	plain, smart := r.dial(), r.dial()
	plain.want("set foo 1", "+OK")
	smart.do("cluster", "slots")
	reads := []string{"scan 0", "keys *", "dbsize", "randomkey"}
	lead(r.c, 1, 1, 0, 1)
	for _, line := range reads {
		smart.want(line, "-CLUSTERDOWN not available, nothing was done: the leader of shard 3 is not known; try again")
	}
	plain.want("dbsize", ":1")
	// Whoever leads them, a replica has its keys.
	smart.want("readonly", "+OK")
	for _, leaders := range [][]shard.NodeID{{1, 1, 0, 1}, {2, 2, 2, 2}} {
		lead(r.c, leaders...)
		smart.want("keys *", `["foo"]`)
		smart.want("dbsize", ":1")
		smart.want("randomkey", `"foo"`)
		if got := scanned(smart); got != "foo" {
			t.Errorf("SCAN saw %q", got)
		}
	}
	r.c.SetTopology(func(t *shard.Topology) {
		t.Shards = append([]shard.ShardInfo(nil), t.Shards...)
		for i := range t.Shards {
			t.Shards[i].Replicas = []shard.NodeID{2, 3}
		}
	})
	smart.want("dbsize", ":0")
	smart.want("randomkey", "nil")
}

// scanned walks over the keys, and returns them, or an error.
func scanned(c *client) string {
	var keys []string
	for cursor := "0"; ; {
		f := strings.Fields(strings.NewReplacer("[", " ", "]", " ", `"`, "").Replace(c.do("scan", cursor, "count", "9")))
		keys = append(keys, f[1:]...)
		if cursor = f[0]; cursor == "0" || strings.HasPrefix(cursor, "-") {
			return strings.TrimPrefix(cursor, "0") + strings.Join(keys, " ")
		}
	}
}

func TestScan_OverAChangeOfLeaderMissesNothingSilently(t *testing.T) {
	r := newRig(t, shardtest.Options{Shards: 4}, Config{ClusterMode: true})
	threeNodes(r.c, "127.0.0.1:7000")
	lead(r.c, 1, 1, 1, 1)
	plain, smart := r.dial(), r.dial()
	for i := range 100 {
		plain.want(fmt.Sprintf("set k%d v", i), "+OK")
	}
	smart.do("cluster", "slots")
	if got := strings.Fields(scanned(smart)); len(got) != 100 {
		t.Errorf("%d keys of 100", len(got))
	}
	smart.want("scan 0 count 9", `["...`)
	lead(r.c, 1, 1, 0, 1)
	smart.want("scan 0 count 9", "-CLUSTERDOWN...")
}

func TestRandomKey_OfAnyShard(t *testing.T) {
	r := newRig(t, shardtest.Options{Shards: 4}, Config{})
	c := r.dial()
	c.want("set foo 1", "+OK")
	for range 40 {
		c.want("randomkey", `"foo"`)
	}
	for i := range 100 {
		c.want(fmt.Sprintf("set k%d v", i), "+OK")
	}
	sp, _ := r.c.Topology().Space("default")
	seen := map[shard.ID]bool{}
	for range 200 {
		seen[sp.SlotShard(datatypes.Slot([]byte(strings.Trim(c.do("randomkey"), `"`))))] = true
	}
	if len(seen) != 4 {
		t.Errorf("keys of %d shards of 4 in 200 draws", len(seen))
	}
}
