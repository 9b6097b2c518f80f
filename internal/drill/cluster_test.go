package drill

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/engine"
	"github.com/quorate/quorate/internal/errs"
)

// says makes a process whose node answers with a status.
func says(t *testing.T, id int, status func() engine.Status) *Process {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(status()); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	return &Process{ID: id, Dir: t.TempDir(), Addr: Addresses{HTTP: strings.TrimPrefix(s.URL, "http://")}}
}

func TestWaitWhole_WhatIsMissing(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*engine.Status)
		want  string
	}{
		{"nothing", func(*engine.Status) {}, ""},
		{"a shard", func(s *engine.Status) { s.Shards = s.Shards[:1] }, "node 2 tells of 1 shards"},
		{"all shards", func(s *engine.Status) { s.Shards = nil }, "node 2 tells of 0 shards"},
		{"a shard, and another is there twice", func(s *engine.Status) { s.Shards[1] = s.Shards[0] }, "1 of them different"},
		{"a leader", func(s *engine.Status) { s.Shards[1].Leader = 0 }, "node 2 shard 2"},
		{"what is being rebuilt", func(s *engine.Status) { s.Shards[0].Rebuilding = true }, "rebuilding true"},
		{"an entry", func(s *engine.Status) { s.Shards[1].Applied++ }, "shard 2 is at 8 on node 2 and at 7 on another"},
		{"the same state", func(s *engine.Status) { s.Shards[1].Digest = "y" }, "digests differ: shard 2 at index 7 is y on node 2 and x on another"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := &Cluster{cfg: ClusterConfig{Shards: 2}}
			for id := 1; id <= 3; id++ {
				cl.Nodes = append(cl.Nodes, says(t, id, func() engine.Status {
					s := engine.Status{Shards: []engine.ShardStatus{{ID: 1, Leader: 1, Applied: 5, Digest: "x"}, {ID: 2, Leader: 3, Applied: 7, Digest: "x"}}}
					if id == 2 {
						c.spoil(&s)
					}
					return s
				}))
			}
			err := cl.WaitWhole(t.Context(), 100*time.Millisecond)
			switch {
			case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			case strings.HasPrefix(c.want, "digests") != errs.Is(err, errs.Corrupt):
				t.Errorf("%v has the wrong kind", err)
			}
		})
	}
}

func TestWaitWhole_TellsWhatWasMissingAndNotThatTimeWasUp(t *testing.T) {
	var asked atomic.Int64
	over := make(chan struct{})
	p := says(t, 1, func() engine.Status {
		if asked.Add(1) > 1 {
			<-over
		}
		return engine.Status{}
	})
	cl := &Cluster{cfg: ClusterConfig{Shards: 1}, Nodes: []*Process{p}}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for asked.Load() < 2 && pause(t.Context(), time.Millisecond) {
			continue
		}
		cancel()
	}()
	err := cl.WaitWhole(ctx, time.Minute)
	close(over)
	if err == nil || !strings.Contains(err.Error(), "node 1 tells of 0 shards") {
		t.Errorf("got %v, want what was missing", err)
	}
}

func TestListenRange_KeepsOffOutgoingConnections(t *testing.T) {
	for _, c := range []struct {
		file      string
		low, high int
	}{
		{"32768\t60999\n", 10_000, 32_767},
		{"16000 65535", 10_000, 15_999},
		{"1024 60999", 61_000, 65_535},
		{"1024 65000", 0, 0},
		{"40000 50000", 10_000, 32_767},
		{"what", 10_000, 32_767},
	} {
		name := filepath.Join(t.TempDir(), "range")
		if err := os.WriteFile(name, []byte(c.file), 0o600); err != nil {
			t.Fatal(err)
		}
		if low, high := listenRange(name); low != c.low || high != c.high {
			t.Errorf("%q: %d to %d, want %d to %d", c.file, low, high, c.low, c.high)
		}
	}
	low, high := listenRange(ephemeralFile)
	ports, err := freePorts(25)
	if err != nil || len(ports) != 25 {
		t.Fatalf("got %v, %v", ports, err)
	}
	for i, p := range ports {
		if high > 0 && (p < low || p > high) || slices.Contains(ports[:i], p) {
			t.Errorf("port %d among %v, want different ones from %d to %d", p, ports, low, high)
		}
	}
}

// A node that ended by itself, and the errors in its log, count also if the run ends early because the cluster did not come back.
func TestRun_FallenNodeIsAFindingHoweverTheRunEnds(t *testing.T) {
	for _, c := range []struct {
		name, log string
		code      string
		disk      bool
		control   string
		want      Verdict
	}{
		{"ended by itself", "bye", "1", false, "", Violated},
		{"an error in the log", `{"level":"ERROR","msg":"bad"}`, "", false, "", Violated},
		{"nothing", `{"level":"INFO"}`, "", false, "", Unknown},
		{"a damaged node may end", "bye", "1", true, "", Unknown},
		{"and may not crash", "fatal error: concurrent map writes", "1", true, "", Violated},
		{"under a control", "bye", "1", false, "broken", Unknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Drill{Name: "d", Controls: []Control{{Name: "broken"}}, disk: c.disk, run: func(ctx context.Context, r *run) error {
				cl := &Cluster{}
				cl.atClose = func() { r.look(ctx, cl) }
				defer cl.Close()
				p := &Process{ID: 1, Dir: t.TempDir(), c: cl, exited: make(chan struct{})}
				if err := os.WriteFile(logPath(p), []byte(c.log+"\n"), 0o600); err != nil {
					return err
				}
				cl.Nodes = []*Process{p}
				if c.code != "" {
					p.cmd = exec.Command("sh", "-c", "exit "+c.code)
					if err := p.cmd.Run(); err == nil {
						t.Error("it did not end")
					}
					close(p.exited)
				}
				return errs.New(errs.Unavailable, "the cluster does not come back")
			}}
			r, err := d.Run(t.Context(), Options{For: time.Second, Control: c.control})
			if err != nil || r.Verdict != c.want {
				t.Errorf("got %v, verdict %q, findings %q, want %q", err, r.Verdict, r.Findings, c.want)
			}
		})
	}
}

func TestErrorLines_CrashIsSeenBehindManyErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(strings.Repeat("{\"level\":\"ERROR\"}\n", 2*errorLinesMax)+"fatal error: all goroutines are asleep\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := errorLines(path); err != nil || len(got) != errorLinesMax+1 || !strings.HasPrefix(got[errorLinesMax], "fatal error") {
		t.Errorf("%d lines, %v, want %d and the crash", len(got), err, errorLinesMax)
	}
}

func TestReport_ListsAreNeverNull(t *testing.T) {
	d := Drill{Name: "d", run: func(context.Context, *run) error { return errs.New(errs.Unavailable, "no node came up") }}
	r, err := d.Run(t.Context(), Options{For: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if b := asJSON(t, r); strings.Contains(b, "null") {
		t.Errorf("a list is null:\n%s", b)
	}
}
