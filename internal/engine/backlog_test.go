package engine

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// hangingFS is a disk on which writes of tables hang while the lock is held.
type hangingFS struct {
	storage.FS
	tables sync.RWMutex
}

type hangingFile struct {
	storage.File
	fs *hangingFS
}

func (h *hangingFS) Create(name string, c vfs.DiskWriteCategory) (storage.File, error) {
	f, err := h.FS.Create(name, c)
	if err != nil || !strings.HasSuffix(name, ".sst") {
		return f, err
	}
	return &hangingFile{f, h}, nil
}

func (h *hangingFile) Write(b []byte) (int, error) {
	h.fs.tables.RLock()
	defer h.fs.tables.RUnlock()
	return h.File.Write(b)
}

// TestBacklog_RefusedBeforeTheLoopWaits: when the disk does not take the tables of the state store, writes are refused while
// there is still room, and the loop goes on.
func TestBacklog_RefusedBeforeTheLoopWaits(t *testing.T) {
	fs := &hangingFS{FS: storage.VolatileFS()}
	n := startOne(t, openOne(t, fs, storage.StoreConfig{MemTableBytes: 64 << 10}), nil, register{}, prometheus.NewRegistry())
	write(t, n, 1, "it works")
	fs.tables.Lock()
	hangs := true
	release := func() {
		if hangs {
			fs.tables.Unlock()
			hangs = false
		}
	}
	defer func() {
		release()
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if err := n.dir.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	value := strings.Repeat("v", 4<<10)
	var refused error
	taken := 0
	for ; refused == nil && taken < 1000; taken++ {
		refused = n.Submit(ctx, shard.Route{Shard: 1}, command(value)).Wait(ctx).Err
	}
	if !errs.Is(refused, errs.Overloaded) || taken < 10 {
		t.Fatalf("after %d writes: %v", taken, refused)
	}
	// More of the same changes nothing, and everything else works.
	for range 100 {
		if err := n.Submit(ctx, shard.Route{Shard: 1}, command(value)).Wait(ctx).Err; !errs.Is(err, errs.Overloaded) {
			t.Fatalf("while the disk hangs: %v", err)
		}
	}
	if !n.inLoop(func() {}) {
		t.Error("the loop has ended")
	}
	if b, err := n.Query(ctx, shard.Route{Shard: 1}, shard.Linearizable, command("")); err != nil || string(b) != value {
		t.Errorf("read %d bytes, %v", len(b), err)
	}
	release()
	write(t, n, 1, "after")
}
