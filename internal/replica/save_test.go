package replica

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// A node that lost the states of many shards, and gets them back, does not wait for its disk for each of them.
func TestRepair_StatesOfATurnAreMadeDurableTogether(t *testing.T) {
	const shards = 100
	r := newRig(t, 3, func(c *Config) {
		for i := 2; i <= shards; i++ {
			c.Shards = append(c.Shards, shard.ID(i))
		}
	})
	lead, _ := r.elect()
	for id := range shards {
		lead.turn(Propose{Shard: shard.ID(id + 1), Command: shard.Command{Module: 9, Data: []byte("k=v")}, Future: shard.NewFuture()})
	}
	voting := func(n *rigNode) bool {
		for i, s := range n.host.Shards() {
			if want := lead.host.Shards()[i]; s.Awaiting || s.Applied != want.Applied || s.Revision == 0 || !want.Voter(s.Replica) {
				return false
			}
		}
		return true
	}
	r.until("values", func() bool { return voting(r.nodes[0]) && voting(r.nodes[2]) })
	lost := r.nodes[0]
	if lost == lead {
		lost = r.nodes[2]
	}
	lost.stop()
	if err := lost.store.Close(); err != nil {
		t.Fatal(err)
	}
	syncs := 0
	fs := errorfs.Wrap(storage.MemFS(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData {
			syncs++
		}
		return nil
	}))
	var err error
	if lost.store, err = storage.OpenStore(fs, "state", storage.StoreConfig{Deterministic: true}); err != nil {
		t.Fatal(err)
	}
	syncs = 0
	lost.start(true)
	lost.turn()
	if syncs == 0 || syncs > shards/4 {
		t.Errorf("the states of %d shards are wiped with %d syncs of the store", shards, syncs)
	}
	r.until("repair", func() bool { return voting(lost) })
	if syncs > shards {
		t.Errorf("%d shards are repaired with %d syncs of the store", shards, syncs)
	}
	t.Logf("%d syncs", syncs)
}
