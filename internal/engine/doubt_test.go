package engine

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

func openOne(t *testing.T, fs storage.FS, sc storage.StoreConfig) *storage.Dir {
	t.Helper()
	d, err := storage.OpenDir(fs, "data", storage.Owner{Cluster: "t", Node: 1, Shards: 1}, storage.LogConfig{}, sc)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// startOne starts node 1, which meets none of its peers if it has some.
func startOne(t *testing.T, d *storage.Dir, peers map[shard.NodeID]string, model shard.Module, reg prometheus.Registerer) *testNode {
	t.Helper()
	cfg := Config{Cluster: "t", Node: 1, Peers: peers, Spaces: []shard.Space{{Name: "default", Shards: []shard.ID{1}}}}
	e, err := Start(cfg, d, []shard.Module{model}, nil, env.Real(), slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(errors.Join(err, d.Close()))
	}
	return &testNode{e, d}
}

// absent are two peers that are not there.
var absent = map[shard.NodeID]string{2: "127.0.0.1:1", 3: "127.0.0.1:1"}

// startInDoubt starts one node of three whose log had a replica of this shard and has lost a segment, so that all is in doubt.
func startInDoubt(t *testing.T, fs storage.FS, id shard.ID, reg prometheus.Registerer) *testNode {
	t.Helper()
	d := openOne(t, fs, storage.StoreConfig{})
	if err := errors.Join(d.Log.Append([]storage.Write{{Shard: id, Replica: 1}}), d.Close()); err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("data/log")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".seg") {
			if err := fs.Remove("data/log/" + name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if d = openOne(t, fs, storage.StoreConfig{}); !d.Recovery.AllSuspect {
		t.Fatalf("a lost segment was not noticed: %+v", d.Recovery)
	}
	return startOne(t, d, absent, register{}, reg)
}

// Shards that the log may have lost altogether stay in doubt until it says that their replicas wait for new ids, also if the
// node is stopped as soon as it was started.
func TestEngine_DoubtOutlivesAnEarlyStop(t *testing.T) {
	for range 5 {
		fs := storage.MemFS()
		n := startInDoubt(t, fs, 9, prometheus.NewRegistry())
		if err := errors.Join(n.Close(), n.dir.Close()); err != nil {
			t.Fatal(err)
		}
		d := openOne(t, fs, storage.StoreConfig{})
		if !d.Recovery.AllSuspect && d.Log.Replica(1) == 0 {
			t.Errorf("shard 1 counts as new although its log is lost")
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A start that found everything in doubt says of each shard what becomes of it, and then doubts no more. Until it is rebuilt the node says that it is not.
func TestEngine_DoubtIsOverWhenTheLogSaysWhatBecomesOfIt(t *testing.T) {
	fs, reg := storage.MemFS(), prometheus.NewRegistry()
	n := startInDoubt(t, fs, 1, reg)
	until(t, "repaired log", func() bool {
		n.writing.Lock()
		defer n.writing.Unlock()
		return n.repaired
	})
	if s, err := n.Status(); err != nil || !s.Shards[0].Rebuilding {
		t.Errorf("status %+v, %v", s, err)
	}
	gathered, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range gathered {
		if got := m.GetMetric()[0].GetGauge().GetValue(); m.GetName() == "quorate_engine_shards_without_leader" && got != 1 {
			t.Errorf("%v shards have no leader", got)
		}
	}
	crashed := fs.CrashClone(vfs.CrashCloneCfg{})
	if err := errors.Join(n.Close(), n.dir.Close()); err != nil {
		t.Fatal(err)
	}
	d := openOne(t, crashed, storage.StoreConfig{})
	if d.Recovery.AllSuspect || d.Log.Replica(1) == 0 {
		t.Errorf("after a crash all is in doubt: %v; replica %d", d.Recovery.AllSuspect, d.Log.Replica(1))
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// A state store that was given up is so for one start: when the log says what becomes of its replicas, the next does not empty it again.
func TestEngine_AStoreIsGivenUpOnce(t *testing.T) {
	fs := storage.MemFS()
	for i, lost := range []bool{false, true, false} {
		d := openOne(t, fs, storage.StoreConfig{})
		if d.StoreLost != lost {
			t.Errorf("start %d: the store was given up: %v, want %v", i, d.StoreLost, lost)
		}
		n := startOne(t, d, absent, register{}, prometheus.NewRegistry())
		if i < 2 {
			until(t, "first write", func() bool {
				n.writing.Lock()
				defer n.writing.Unlock()
				return n.repaired
			})
		}
		if i == 0 {
			if err := d.MarkDamaged(); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(n.Close(), d.Close()); err != nil {
			t.Fatal(err)
		}
	}
}
