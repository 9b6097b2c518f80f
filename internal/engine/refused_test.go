package engine

import (
	"context"
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// exhausted is the disk of a process that has no descriptor for tables and blob files while on is set.
type exhausted struct {
	storage.FS
	on *atomic.Bool
}

func (f exhausted) Open(name string, o ...vfs.OpenOption) (vfs.File, error) {
	if f.on.Load() && (strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, ".blob")) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EMFILE}
	}
	return f.FS.Open(name, o...)
}

// appender is a register that commands add to, so that they read it.
type appender struct{ register }

func (appender) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	old, _ := tx.Get([]byte("r"))
	tx.Set([]byte("r"), append(append([]byte(nil), old...), cmd...))
	return nil, nil
}

// A node that has no descriptors left for a moment cannot go on, but there is nothing wrong with its state: the next start must not
// empty it.
func TestEngine_OutOfDescriptorsIsNotDamage(t *testing.T) {
	on := &atomic.Bool{}
	first := storage.VolatileFS()
	nodes := startNodesOn(t, 3, appender{}, func(i int) storage.FS {
		if i == 0 {
			return exhausted{first, on}
		}
		return storage.VolatileFS()
	}, func(c *Config) { c.Replica.CacheBytes = -1 }) // else the row is in memory
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	write(t, nodes[1], 1, strings.Repeat("v", 4096)) // large enough for a blob file, which nobody has opened yet
	for {
		if b, _ := nodes[0].Query(ctx, shard.Route{Shard: 1}, shard.Linearizable, command("")); len(b) > 0 {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("node 1 does not apply the write")
		}
	}
	nodes[0].inLoop(func() {
		if err := nodes[0].dir.Store.Flush(); err != nil {
			t.Error(err)
		}
	})
	on.Store(true)
	write(t, nodes[1], 1, "!")
	select {
	case <-nodes[0].Done():
	case <-ctx.Done():
		t.Fatal("the row was not read")
	}
	on.Store(false)
	if err := nodes[0].Err(); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "too many open files") {
		t.Errorf("node 1 stopped with %v, of kind %v", err, errs.KindOf(err))
	}
	if _, err := first.Stat("data/STATE-DAMAGED"); err == nil {
		t.Error("its state is marked as damaged, and emptied by the next start")
	}
}
