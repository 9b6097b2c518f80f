package server

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// entryNormal is raft's type of entries that are commands; all others change the configuration.
const entryNormal = 0

// replayCommit is how many entries are replayed between two commits.
const replayCommit = 256

// ReplayKV runs the log of a shard in a stopped node's data directory once more, in memory, and writes what package kv applied, in order, as
// lines of JSON. It tells those who check what clients saw what was done, from what the node has promised to keep and not from what it
// answered. The log must be there from its beginning, and it ends with what this node knew to be committed.
func ReplayKV(data string, id shard.ID, w io.Writer) (err error) {
	// What is opened is made if it is not there, and this only reads.
	for _, name := range []string{"LOCK", filepath.Join("log", "LOG")} {
		if _, err := os.Stat(filepath.Join(data, name)); err != nil {
			return errs.Wrap(errs.Invalid, err, "%s is no data directory of a node", data)
		}
	}
	disk := storage.OSFS()
	lock, err := disk.Lock(filepath.Join(data, "LOCK"))
	if err != nil {
		return errs.Wrap(errs.Exists, err, "%s cannot be locked; stop the node first", data)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	// A damaged log is left as it is: its node, which may be repaired from its peers, has to see the damage.
	log, _, err := storage.OpenLog(disk, filepath.Join(data, "log"), storage.LogConfig{OnlyCopy: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	store, err := storage.OpenStore(storage.MemFS(), "replay", storage.StoreConfig{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	enc := json.NewEncoder(w)
	var failed error
	record := kv.Recorder{To: func(s kv.Step) {
		if err := enc.Encode(s); err != nil && failed == nil {
			failed = err
		}
	}}
	all := modules(nil, nil, 0)
	for i, m := range all {
		if m.ID() == record.ID() {
			all[i] = record
		}
	}
	m, err := shard.OpenMachine(store, id, shard.Modules(all...), shard.MachineConfig{})
	if err != nil {
		return err
	}
	return errors.Join(replay(log, m), failed)
}

// replay applies what is committed of a shard's log.
func replay(log *storage.Log, m *shard.Machine) error {
	first, _ := log.Bounds(m.ID())
	if first != 1 {
		return errs.New(errs.Compacted, "the log of shard %d begins at %d: what was before it has been cut", m.ID(), first)
	}
	last := log.State(m.ID()).Commit
	for next := uint64(1); next <= last; {
		some, err := log.Entries(m.ID(), next, min(last, next+replayCommit-1)+1, 1<<20)
		if err != nil {
			return err
		}
		var out shard.Applied
		for _, e := range some {
			if e.Type != entryNormal {
				m.ApplyConf(e.Index, e.Term, nil)
			} else if err := m.Apply(e.Index, e.Term, e.Data, &out); err != nil {
				return err
			}
			next = e.Index + 1
		}
		if err := m.Commit(&out); err != nil {
			return err
		}
	}
	return nil
}
