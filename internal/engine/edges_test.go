package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/replica"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// until waits for something that comes by itself.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after a minute: no %s", what)
		}
	}
}

func (n *testNode) leader(id shard.ID) shard.NodeID {
	for _, s := range n.Topology().Shards {
		if s.ID == id {
			return s.Leader
		}
	}
	return 0
}

// logDisk is a disk that counts the seals of the raft log, and fails what is done to its segments when it is told to.
type logDisk struct {
	storage.FS
	seals                 *atomic.Int64
	failWrites, failSyncs *atomic.Bool
}

type logFile struct {
	vfs.File
	d logDisk
}

var errDisk = errors.New("input/output error")

// sealBytes is the length of a seal, which no other record is as short as.
const sealBytes = 32

func (d logDisk) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil || !strings.HasSuffix(name, ".seg") {
		return f, err
	}
	return logFile{f, d}, nil
}

func (d logDisk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.Create(name, c)
	return d.wrap(name, f, err)
}

func (d logDisk) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.FS.OpenReadWrite(name, c, o...)
	return d.wrap(name, f, err)
}

func (f logFile) WriteAt(b []byte, at int64) (int, error) {
	if f.d.failWrites.Load() {
		return 0, errDisk
	}
	if len(b) == sealBytes {
		f.d.seals.Add(1)
	}
	return f.File.WriteAt(b, at)
}

func (f logFile) sync(do func() error) error {
	if f.d.failSyncs.Load() {
		return errDisk
	}
	return do()
}

func (f logFile) Sync() error     { return f.sync(f.File.Sync) }
func (f logFile) SyncData() error { return f.sync(f.File.SyncData) }
func (f logFile) SyncTo(int64) (bool, error) {
	return true, f.Sync()
}

func newLogDisk() logDisk {
	return logDisk{storage.VolatileFS(), &atomic.Int64{}, &atomic.Bool{}, &atomic.Bool{}}
}

// What the log cannot write or sync is acknowledged to nobody, and the node stops for good, with the reason.
func TestEngine_AFailedLogStopsTheNode(t *testing.T) {
	for _, what := range []string{"write", "sync"} {
		d := newLogDisk()
		n := startOne(t, openOne(t, d, storage.StoreConfig{}), nil, register{}, prometheus.NewRegistry())
		write(t, n, 1, "before")
		d.failWrites.Store(what == "write")
		d.failSyncs.Store(what == "sync")
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		r := n.Submit(ctx, shard.Route{Shard: 1}, command("lost")).Wait(ctx)
		if k := errs.KindOf(r.Err); k != errs.OutcomeUnknown && k != errs.Unavailable || ctx.Err() != nil {
			t.Errorf("%s fails: a command is answered with %v", what, r.Err)
		}
		select {
		case <-n.Done():
		case <-ctx.Done():
			t.Fatalf("%s fails: the node goes on", what)
		}
		if err := n.Err(); err == nil || !strings.Contains(err.Error(), errDisk.Error()) || errs.Is(err, errs.Corrupt) {
			t.Errorf("%s fails: the node ended with %v", what, err)
		}
		if r := n.Submit(ctx, shard.Route{Shard: 1}, command("x")).Wait(ctx); !errs.Is(r.Err, errs.Unavailable) {
			t.Errorf("%s fails: afterwards a command is answered with %v", what, r.Err)
		}
		cancel()
		if err := n.Close(); err == nil {
			t.Errorf("%s fails: the end was in order", what)
		}
		// The log says once more what was wrong with it.
		_ = n.dir.Close()
	}
}

// What comes with the turn in which the failure is noticed is answered, too.
func TestEngine_CommandsThatComeWithAFailure(t *testing.T) {
	n := startNodes(t, 1)[0]
	write(t, n, 1, "before")
	f := shard.NewFuture()
	n.turns.Lock()
	n.mu.Lock()
	n.inbox = append(n.inbox, replica.Propose{Shard: 1, Command: command("x"), Future: f})
	n.control = append(n.control, func() { n.failed = errDisk })
	n.mu.Unlock()
	again := n.turnOnce()
	n.turns.Unlock()
	if r := f.Wait(context.Background()); again || !errs.Is(r.Err, errs.Unavailable) {
		t.Errorf("it is answered with %v", r.Err)
	}
	if <-n.Done(); !errors.Is(n.Err(), errDisk) {
		t.Errorf("the node ended with %v", n.Err())
	}
}

// A log that nothing is written to is sealed soon, so that damage to its last record is no unfinished write.
func TestEngine_AQuietLogIsSealed(t *testing.T) {
	d := newLogDisk()
	n := startNodesOn(t, 1, register{}, func(int) storage.FS { return d })[0]
	write(t, n, 1, "a")
	for range 2 {
		until(t, "seal", func() bool { return d.seals.Load() > 0 })
		d.seals.Store(0)
		write(t, n, 1, "b")
	}
}

// The log is cut when the state store has made durable what it has.
func TestEngine_TheLogIsCut(t *testing.T) {
	n := startNodes(t, 1, func(c *Config) { c.Replica.LogEntriesMax = 10 })[0]
	until(t, "cut", func() bool {
		write(t, n, 1, "x")
		s, err := n.Status()
		if err != nil {
			t.Fatal(err)
		}
		return s.Shards[0].First > 100
	})
}

// Whoever asks a node that has ended, in whatever way, is told so at once.
func TestEngine_AfterItsEnd(t *testing.T) {
	n := startNodes(t, 1)[0]
	write(t, n, 1, "x")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for _, at := range []shard.Consistency{shard.Linearizable, {Stale: true}, {Stale: true, AtLeast: 1}} {
		if b, err := n.Query(ctx, shard.Route{Shard: 1}, at, command("")); !errs.Is(err, errs.Unavailable) {
			t.Errorf("a read at %+v: %q, %v", at, b, err)
		}
		if a := wait(t, n.ask(ctx, t, 1, at)); !errs.Is(a.err, errs.Unavailable) {
			t.Errorf("asked at %+v: %q, %v", at, a.data, a.err)
		}
	}
	if err := n.MoveLeader(ctx, 1, 1); !errs.Is(err, errs.Unavailable) {
		t.Errorf("a hand-over: %v", err)
	}
	if _, err := n.Status(); !errs.Is(err, errs.Unavailable) {
		t.Errorf("status: %v", err)
	}
	if err := n.Probe(ctx); !errs.Is(err, errs.Unavailable) {
		t.Errorf("probe: %v", err)
	}
	// What comes in a moment too late for anybody to look at is answered, too.
	for name, f := range map[string]*shard.Future{"command": shard.NewFuture(), "read": shard.NewFuture(), "hand-over": shard.NewFuture()} {
		switch name {
		case "command":
			n.give(replica.Propose{Shard: 1, Command: command("x"), Future: f})
		case "read":
			n.give(replica.Read{Shard: 1, Future: f})
		default:
			n.give(replica.MoveLeader{Shard: 1, To: 1, Future: f})
		}
		if r := f.Wait(ctx); !errs.Is(r.Err, errs.Unavailable) {
			t.Errorf("a late %s: %v", name, r.Err)
		}
	}
}

// A read that the host refuses is not run, and a shard that is not there is not read, however it is asked for.
func TestEngine_RefusedReadsAreNotRun(t *testing.T) {
	nodes := startNodes(t, 3, func(c *Config) { c.Timeout = 300 * time.Millisecond })
	n := nodes[0]
	write(t, n, 1, "before")
	for _, at := range []shard.Consistency{shard.Linearizable, {Stale: true}, {Stale: true, AtLeast: 1}} {
		if b, err := n.Query(context.Background(), shard.Route{Shard: 9}, at, command("")); !errs.Is(err, errs.NotFound) {
			t.Errorf("shard 9 at %+v: %q, %v", at, b, err)
		}
		if a := wait(t, n.ask(context.Background(), t, 9, at)); !errs.Is(a.err, errs.NotFound) {
			t.Errorf("shard 9, asked at %+v: %q, %v", at, a.data, a.err)
		}
	}
	for _, other := range nodes[1:] {
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// Its own limit of time ends it, and not the caller's.
	if b, err := n.Query(context.Background(), shard.Route{Shard: 1}, shard.Linearizable, command("")); !errs.Is(err, errs.Unavailable) {
		t.Errorf("without a majority: %q, %v", b, err)
	}
	if a := wait(t, n.ask(context.Background(), t, 1, shard.Linearizable)); !errs.Is(a.err, errs.Unavailable) {
		t.Errorf("asked without a majority: %q, %v", a.data, a.err)
	}
}

func TestMoveLeader_AnotherNodeLeads(t *testing.T) {
	nodes := startNodes(t, 3)
	write(t, nodes[0], 1, "x")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	until(t, "leader that is left", func() bool {
		lead := nodes[0].leader(1)
		if lead == 0 {
			return false
		}
		to := lead%3 + 1
		err := nodes[lead-1].MoveLeader(ctx, 1, to)
		return err == nil && nodes[lead-1].leader(1) == to
	})
}

// What a turn says is passed on: to whoever watches a shard of which all may have changed, and to the log at its level.
func TestEngine_WhatTurnsSayIsPassedOn(t *testing.T) {
	var log bytes.Buffer
	g := &Engine{hub: shard.NewHub(), wake: make(chan struct{}, 1), log: slog.New(slog.NewTextHandler(&log, nil)), ctx: context.Background()}
	w := g.Watch(shard.Route{Shard: 1}, shard.Span{Module: registerID, From: []byte("r")})
	defer w.Close()
	elsewhere := g.Watch(shard.Route{Shard: 2}, shard.Span{Module: registerID, From: []byte("r")})
	defer elsewhere.Close()
	g.handle(&replica.Output{
		Wakes: []replica.ShardWakes{{Shard: 1, All: true}},
		Notes: []replica.Note{{Msg: "one", Shard: 7, Attrs: []any{"a", 1}}, {Warn: true, Msg: "two"}},
	})
	if len(w.C) != 1 || len(elsewhere.C) != 0 {
		t.Errorf("signals: %d of the shard, %d of another", len(w.C), len(elsewhere.C))
	}
	for _, want := range []string{"level=INFO msg=one shard=7 a=1\n", "level=WARN msg=two\n"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %q:\n%s", want, log.String())
		}
	}
}

// What is configured is taken, and what is not has its default.
func TestStart_Defaults(t *testing.T) {
	for _, c := range []struct {
		cfg, want Config
	}{
		{Config{}, Config{Timeout: 10 * time.Second, Identity: "t"}},
		{Config{Timeout: time.Second, Identity: "i"}, Config{Timeout: time.Second, Identity: "i"}},
	} {
		n := startNodes(t, 1, func(x *Config) { x.Timeout, x.Identity = c.cfg.Timeout, c.cfg.Identity })[0]
		if n.cfg.Timeout != c.want.Timeout || n.cfg.Identity != c.want.Identity {
			t.Errorf("%+v: time-out %v, identity %q", c.cfg, n.cfg.Timeout, n.cfg.Identity)
		}
		before := n.Now()
		if d := n.deadline(context.Background()); d.Before(before.Add(c.want.Timeout)) || d.After(n.Now().Add(c.want.Timeout)) {
			t.Errorf("a request without a limit has until %v", fmt.Sprint(d.Sub(before)))
		}
		ctx, cancel := context.WithDeadline(context.Background(), time.Now().Add(time.Hour))
		if d := n.deadline(ctx); d.Before(before.Add(59 * time.Minute)) {
			t.Errorf("a request with an hour has until %v", d.Sub(before))
		}
		cancel()
	}
}
