package engine

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// logged is the size of an entry in the log.
const logged = 4 << 20

// waits is a clock whose waits of an hour and more end when the test says so, and whose shorter ones end at once.
type waits struct {
	long  chan time.Duration
	begin chan time.Time
	short time.Duration // belongs to the scrubber until it waits long
}

func (w *waits) after(d time.Duration) <-chan time.Time {
	if d >= 30*time.Minute {
		w.long <- d
		return w.begin
	}
	w.short += d
	now := make(chan time.Time, 1)
	now <- time.Time{}
	return now
}

// scrubbed starts a node whose peers are not there, or that has none. Its store holds a table that nobody reads, and its log an
// entry; damage names the one that has a flipped bit.
func scrubbed(t *testing.T, log *bytes.Buffer, alone bool, damage string) (*testNode, *waits, string) {
	t.Helper()
	data := t.TempDir()
	owner := storage.Owner{Cluster: "t", Node: 1, Shards: 1}
	dir, err := storage.OpenDir(storage.OSFS(), data, owner, storage.LogConfig{}, storage.StoreConfig{})
	if err != nil {
		t.Fatal(err)
	}
	b := dir.Store.Batch()
	for i := range 20_000 {
		// A prefix that belongs to no shard.
		b.Set([]byte{0xee, byte(i >> 8), byte(i)}, bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 50))
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := dir.Store.Flush(); err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(data, "state", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("no tables: %v", err)
	}
	if damage == "state store" {
		rot(t, tables[0])
	}
	// Of a shard that the node does not run.
	if err := dir.Log.Append([]storage.Write{{Shard: 2, Entries: []storage.Entry{{Index: 1, Term: 1, Data: make([]byte, logged)}}}}); err != nil {
		t.Fatal(err)
	}
	segments, err := filepath.Glob(filepath.Join(data, "log", "*.seg"))
	if err != nil || len(segments) != 1 {
		t.Fatalf("segments: %v %v", segments, err)
	}
	if damage == "raft log" {
		rot(t, segments[0])
	}
	w := &waits{long: make(chan time.Duration, 1), begin: make(chan time.Time)}
	e := env.Real()
	e.After = w.after
	cfg := Config{Cluster: "t", Node: 1, Spaces: []shard.Space{{Name: "default", Shards: []shard.ID{1}}}}
	var ln net.Listener
	if !alone {
		cfg.Peers = map[shard.NodeID]string{2: "127.0.0.1:1", 3: "127.0.0.1:1"}
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	g, err := Start(cfg, dir, []shard.Module{register{}}, ln, e, slog.New(slog.NewTextHandler(log, nil)), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = g.Close()
		_ = dir.Close()
	})
	return &testNode{g, dir}, w, data
}

// rot flips a bit in the middle of a file.
func rot(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], st.Size()/2); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b[:], st.Size()/2); err != nil {
		t.Fatal(err)
	}
}

func about(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if got < want-want/8 || got > want+want/8 {
		t.Errorf("%s: got %v, want about %v", what, got, want)
	}
}

func TestScrub_ReadsEverythingSlowlyAndGoesOn(t *testing.T) {
	var log bytes.Buffer
	n, w, _ := scrubbed(t, &log, true, "")
	write(t, n, 1, "x")
	about(t, "first wait", <-w.long, time.Hour)
	w.begin <- time.Time{}
	about(t, "second wait", <-w.long, 24*time.Hour)
	size := int64(n.dir.Store.Stats().DiskBytes) + logged
	if got := n.scrubbed.bytes.Load(); got < size*9/10 {
		t.Errorf("read %d bytes of %d", got, size)
	}
	about(t, "time taken", w.short, time.Duration(n.scrubbed.bytes.Load())*time.Second/(8<<20))
	if ago := time.Now().Unix() - n.scrubbed.completed.Load(); ago < 0 || ago > 60 {
		t.Errorf("completed %d s ago", ago)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "checked the stored data; no damage found") {
		t.Errorf("the log says nothing:\n%s", log.String())
	}
}

func TestScrub_DamageStopsTheNodeSoThatItIsRebuilt(t *testing.T) {
	for _, what := range []string{"state store", "raft log"} {
		var log bytes.Buffer
		n, w, data := scrubbed(t, &log, false, what)
		<-w.long
		w.begin <- time.Time{}
		<-n.Done()
		if err := n.Err(); !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: the node ended with %v", what, err)
		}
		if _, err := os.Stat(filepath.Join(data, "STATE-DAMAGED")); err != nil {
			t.Errorf("%s: the state is not marked: %v", what, err)
		}
		if n.scrubbed.completed.Load() != 0 {
			t.Errorf("%s: the check counts as complete", what)
		}
	}
}

// TestScrub_AloneKeepsWhatItHas: emptying the store of a node without peers would make of one bad block the loss of all.
func TestScrub_AloneKeepsWhatItHas(t *testing.T) {
	var log bytes.Buffer
	n, w, data := scrubbed(t, &log, true, "state store")
	<-w.long
	w.begin <- time.Time{}
	about(t, "second wait", <-w.long, 24*time.Hour)
	write(t, n, 1, "it goes on")
	n.fail(errs.New(errs.Corrupt, "a read came upon it"))
	<-n.Done()
	if _, err := os.Stat(filepath.Join(data, "STATE-DAMAGED")); err == nil {
		t.Errorf("the next start would empty the state store")
	}
	_ = n.Close()
	if !strings.Contains(log.String(), "restore a backup") {
		t.Errorf("the log says nothing:\n%s", log.String())
	}
}
