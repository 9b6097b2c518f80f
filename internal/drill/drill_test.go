package drill

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
)

// buildQuorate builds the program that the drills start.
func buildQuorate(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "quorate")
	if out, err := exec.Command("go", "build", "-o", bin, "../../cmd/quorate").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// TestDrills runs each drill for a short time, which must be safe, and each control, which must be violated: a drill that
// cannot find the fault would say nothing when it is safe.
func TestDrills(t *testing.T) {
	if testing.Short() {
		t.Skip("starts clusters of processes")
	}
	bin := buildQuorate(t)
	t.Run("cancelled", func(t *testing.T) { testCancel(t, bin) })
	// These are long enough for the load, and too short for a fault.
	for name, length := range map[string]time.Duration{
		"outbox": time.Millisecond, "leader-kill": time.Millisecond, "leader-zombie": time.Second, "herd-election": 1600 * time.Millisecond, "kill-cycles": 1,
	} {
		t.Run("too short "+name, func(t *testing.T) {
			d, err := Find(name)
			if err != nil {
				t.Fatal(err)
			}
			if r := runHere(t, d, Options{Binary: bin, For: length}); r.Verdict != Unknown || faults(r) != 0 {
				t.Errorf("verdict %s of a run in which nothing was broken, want unknown:\n%s", r.Verdict, asJSON(t, r))
			}
		})
	}
	lengths := map[string]time.Duration{"outbox": 3, "leader-kill": 4, "power-loss": 3, "bit-flip": 3, "kill-cycles": 3, "fencing": 6, "leader-zombie": 7, "herd-election": 4, "watch-compaction": 4, "lease-stall": 6}
	for _, d := range Drills() {
		length := lengths[d.Name] * time.Second
		if length == 0 {
			t.Errorf("drill %s has no length here", d.Name)
			continue
		}
		t.Run(d.Name, func(t *testing.T) {
			r := runHere(t, d, Options{Binary: bin, For: length})
			if r.Verdict != Safe {
				t.Errorf("verdict %s, want safe:\n%s", r.Verdict, asJSON(t, r))
			}
			if n := faults(r); n == 0 {
				t.Errorf("nothing was broken:\n%s", asJSON(t, r))
			}
		})
		for _, c := range d.Controls {
			t.Run(d.Name+"/"+c.Name, func(t *testing.T) {
				// The fault is there each time; that it shows takes a little luck. Drills that go on until they find it keep
				// their own length.
				length := map[string]time.Duration{"outbox": 2 * time.Second, "leader-kill": 2 * time.Second}[d.Name]
				var r Report
				for seed := uint64(1); seed <= 3; seed++ {
					if r = runHere(t, d, Options{Binary: bin, Control: c.Name, Seed: seed, For: length}); r.Caught() {
						return
					}
				}
				t.Errorf("verdict %s, want violated:\n%s", r.Verdict, asJSON(t, r))
			})
		}
	}
}

func runHere(t *testing.T, d Drill, o Options) Report {
	t.Helper()
	o.Dir = t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	r, err := d.Run(ctx, o)
	if err != nil {
		t.Fatalf("%s: %v", d.Name, err)
	}
	t.Logf("%s %s: %s in %.1f s, %v", r.Drill, r.Control, r.Verdict, r.Seconds, r.Counters)
	return r
}

// faults sums up the counters of what a drill broke.
func faults(r Report) int64 {
	n := int64(0)
	for _, c := range []string{"kills", "pauses", "power cuts", "nodes damaged", "kills of one node", "kills of all nodes"} {
		n += r.Counter(c)
	}
	return n
}

func asJSON(t *testing.T, r Report) string {
	t.Helper()
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// testCancel ends a drill in its middle, which must leave no process.
func testCancel(t *testing.T, bin string) {
	d, err := Find("leader-kill")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	started := false
	r, err := d.Run(ctx, Options{Binary: bin, Dir: dir, For: time.Minute, Event: func(e Event) {
		if strings.HasPrefix(e.Text, "kill") || strings.HasSuffix(e.Text, "ready") {
			started = true
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) || !started {
		t.Errorf("got error %v, started %v; want a cancelled run", err, started)
	}
	if r.Verdict != Unknown || !r.Interrupted() {
		t.Errorf("the report of a cancelled run:\n%s", asJSON(t, r))
	}
	// A node locks its data directory for as long as it lives, and its name is in its command line.
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), dir) {
			t.Errorf("%s still runs: %q", p, b)
		}
	}
}

// What was found before a drill was interrupted is not lost, and what is missing because of that is no finding.
func TestRun_InterruptedTellsWhatItHas(t *testing.T) {
	for _, found := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		d := Drill{Name: "d", run: func(ctx context.Context, r *run) error {
			r.says(func() string { return "3 writes acknowledged" })
			if found {
				r.find("a write is lost")
			}
			r.count("writes", 3)
			cancel()
			<-ctx.Done()
			r.find("no answer")
			return ctx.Err()
		}}
		r, err := d.Run(ctx, Options{For: time.Second})
		want, findings := Unknown, 0
		if found {
			want, findings = Violated, 1
		}
		if !errors.Is(err, context.Canceled) || r.Verdict != want || len(r.Findings) != findings || !r.Interrupted() || r.Counter("writes") != 3 {
			t.Errorf("found something %v: %v\n%s", found, err, asJSON(t, r))
		}
		if len(r.Events) != 1 || r.Events[0].Text != "interrupted: 3 writes acknowledged" {
			t.Errorf("events %v", r.Events)
		}
		// Nothing is started any more.
		d.run = func(context.Context, *run) error { t.Error("it was run"); return nil }
		if r, err := d.Run(ctx, Options{For: time.Second}); !errors.Is(err, context.Canceled) || r.Verdict != Unknown {
			t.Errorf("interrupted before its start: %v, %s", err, r.Verdict)
		}
	}
}

func TestRun_FindingsCountWhateverElseGoesWrong(t *testing.T) {
	for _, kind := range []errs.Kind{errs.Invalid, errs.Unavailable, errs.Corrupt} {
		d := Drill{Name: "d", run: func(_ context.Context, r *run) error {
			r.find("a write is lost")
			return errs.New(kind, "open node log")
		}}
		r, err := d.Run(t.Context(), Options{For: time.Second})
		if err != nil || r.Verdict != Violated {
			t.Errorf("%v: got %v, verdict %q, want violated", kind, err, r.Verdict)
		}
	}
}

func TestRun_BadOptions(t *testing.T) {
	d, err := Find("power-loss")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o    Options
		kind errs.Kind
		want string
	}{
		{Options{Nodes: 2}, errs.Invalid, "2 nodes"},
		{Options{Nodes: 1}, errs.Invalid, "3 or 5"},
		{Options{For: -time.Second}, errs.Invalid, "negative"},
		{Options{Cycles: -1}, errs.Invalid, "negative"},
		{Options{Control: "no-fsnc"}, errs.NotFound, `no control "no-fsnc"`},
		{Options{Cycles: 1, Control: "dual-write"}, errs.Invalid, "drill outbox has no cycles"},
	} {
		d := d
		if c.o.Control == "dual-write" {
			d = outboxDrill()
		}
		if _, err := d.Run(t.Context(), c.o); !errs.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want %v with %q", c.o, err, c.kind, c.want)
		}
	}
	if _, err := Find("power"); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "power-loss") {
		t.Errorf("Find: got %v, want an error that lists the drills", err)
	}
}

// TestWaitReady_TellsWhatTheNodeSaid: the directory with the log is gone when somebody reads what went wrong.
// Two drills on one machine must not mix when a port of one becomes the other's.
func TestCluster_HasANameOfItsOwn(t *testing.T) {
	names := map[string]bool{}
	for range 2 {
		c := &Cluster{cfg: ClusterConfig{Dir: t.TempDir()}}
		c.Nodes = []*Process{{ID: 1, Dir: filepath.Join(c.cfg.Dir, "node1"), c: c}}
		if err := c.Nodes[0].configure(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(c.Nodes[0].Dir, "config.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		name, _, _ := strings.Cut(string(b), "\n")
		names[name] = true
	}
	if len(names) != 2 {
		t.Errorf("two clusters have the names %v", names)
	}
}

func TestWaitReady_TellsWhatTheNodeSaid(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "log"), []byte("what the node said\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &Process{ID: 2, Dir: dir, Addr: Addresses{HTTP: "127.0.0.1:0"}, cmd: exec.Command("true"), exited: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.WaitReady(ctx); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "what the node said") || strings.Contains(err.Error(), dir) {
		t.Errorf("got %v, want the end of the node's log and not where it is", err)
	}
}

// TestDocs_ListEachDrill keeps docs/drills.md true.
func TestDocs_ListEachDrill(t *testing.T) {
	b, err := os.ReadFile("../../docs/drills.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := strings.Join(strings.Fields(string(b)), " ")
	seen := map[string]bool{}
	for _, d := range Drills() {
		if seen[d.Name] {
			t.Errorf("two drills are named %s", d.Name)
		}
		seen[d.Name] = true
		want := []string{d.Name, d.Text, d.Promise, d.NotShown}
		for _, c := range d.Controls {
			want = append(want, "`"+c.Name+"`: "+c.Text)
		}
		if len(d.Controls) == 0 && !d.Hidden {
			t.Errorf("%s has no control", d.Name)
		}
		for _, w := range want {
			if !strings.Contains(doc, w) {
				t.Errorf("docs/drills.md lacks of drill %s: %q", d.Name, w)
			}
		}
	}
}
