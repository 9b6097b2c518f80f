package drill

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// run is a drill under way: what it is to do and what it found so far. Its methods may be called from any goroutine.
type run struct {
	Options
	drill Drill
	start time.Time

	// mu guards report, status and the calls of Progress and Event.
	mu     sync.Mutex
	report Report
	status func() string
	left   int // findings beyond the bound
	// interrupted says that the drill is ended from outside. What is not answered then, or not there, is no finding.
	interrupted func() bool
}

// guarded runs the drill with a goroutine beside it that reports progress.
func (r *run) guarded(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	redis.SetLogger(silent{})
	outside := ctx
	r.interrupted = func() bool { return outside.Err() != nil }
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				r.progress()
			}
		}
	}()
	defer wg.Wait()
	defer cancel()
	err := r.drill.run(ctx, r)
	if r.interrupted() {
		r.mu.Lock()
		status := r.status
		r.mu.Unlock()
		if status != nil {
			r.event("interrupted: %s", status())
		}
	}
	if r.left > 0 {
		r.mu.Lock()
		r.report.Findings = append(r.report.Findings, fmt.Sprintf("and %d more", r.left))
		r.mu.Unlock()
	}
	return err
}

func (r *run) progress() {
	r.mu.Lock()
	status := r.status
	r.mu.Unlock()
	line := "starting the nodes"
	if status != nil {
		line = status()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Progress != nil {
		r.Progress(line)
	}
}

// says sets what the progress line is made by.
func (r *run) says(f func() string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = f
}

// event adds to the timeline.
func (r *run) event(format string, args ...any) {
	e := Event{AtMillis: time.Since(r.start).Milliseconds(), Text: fmt.Sprintf(format, args...)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.report.Events) < eventsMax {
		r.report.Events = append(r.report.Events, e)
	} else {
		r.report.EventsLeftOut++
	}
	if r.Options.Event != nil {
		r.Options.Event(e)
	}
}

// find adds findings.
func (r *run) find(words ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.interrupted != nil && r.interrupted() {
		return
	}
	for _, w := range words {
		if len(r.report.Findings) >= findingsMax {
			r.left++
			continue
		}
		r.report.Findings = append(r.report.Findings, w)
	}
}

func (r *run) found() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.report.Findings) > 0
}

// unknown notes that something could not be checked.
func (r *run) unknown(kind, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Unknown = append(r.report.Unknown, Reason{kind, fmt.Sprintf(format, args...)})
}

// endsEarly notes that the load has come to the bound of what a drill remembers: to break nodes without load would show nothing.
func (r *run) endsEarly() {
	r.event("the load has come to the bound of what is remembered; it ends here")
}

// happened notes that a run shows nothing if what it is about did not happen: it was too short, or the cluster never came to it.
func (r *run) happened(n int64, what string) {
	if n == 0 && r.Control == "" {
		r.unknown("cluster", "%s; let it run longer (--for)", what)
	}
}

func (r *run) warn(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.report.Warnings) < findingsMax {
		r.report.Warnings = append(r.report.Warnings, fmt.Sprintf(format, args...))
	}
}

// count sets a counter.
func (r *run) count(name string, v int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.report.Counters {
		if r.report.Counters[i].Name == name {
			r.report.Counters[i].Value = v
			return
		}
	}
	r.report.Counters = append(r.report.Counters, Counter{name, v})
}

// rng returns a source of random numbers for one purpose.
func (r *run) rng(purpose uint64) *rand.Rand { return rand.New(rand.NewPCG(r.Seed, purpose)) }

// cluster starts the nodes. Sandboxed nodes lose on kill -9 what they have not synced.
func (r *run) cluster(ctx context.Context, sandboxed bool, sandbox ...string) (*Cluster, error) {
	return r.clusterOf(ctx, ClusterConfig{Sandboxed: sandboxed, Sandbox: sandbox})
}

// clusterOf starts nodes; how many there are, and where, is the run's to say.
func (r *run) clusterOf(ctx context.Context, cfg ClusterConfig) (*Cluster, error) {
	cfg.Nodes, cfg.Dir, cfg.Binary = r.Nodes, r.Dir, r.Binary
	cl, err := StartCluster(ctx, cfg)
	if err != nil {
		return nil, err
	}
	r.event("%d nodes are ready", len(cl.Nodes))
	cl.atClose = func() { r.look(ctx, cl) }
	return cl, nil
}

// look finds nodes that ended by themselves, and what their logs tell of. It is called before the nodes are ended, however the run went: a cluster
// that did not come back may have broken a promise.
func (r *run) look(ctx context.Context, cl *Cluster) {
	if ctx.Err() != nil {
		return
	}
	for _, p := range cl.Nodes {
		// A damaged node may end, and says so to its supervisor.
		if p.Fell() && r.Control == "" && !r.drill.disk {
			r.ended(cl, p)
		}
	}
	r.readLogs(cl)
}

// settled ends a run: all nodes are up, and all replicas agree.
func (r *run) settled(ctx context.Context, cl *Cluster) error {
	for _, p := range cl.Nodes {
		if p.Fell() {
			return nil // which is a finding, and no time heals it
		}
	}
	if err := cl.WaitWhole(ctx, settleLimit); err != nil {
		return err
	}
	r.event("all replicas agree")
	return nil
}

// endControl kills the nodes of a run with a control, so that clients need not wait for answers of a broken cluster.
func (r *run) endControl(cl *Cluster) {
	if r.Control != "" {
		killAll(cl)
	}
}

// pause waits, and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// errorLinesMax bounds the errors of a node's log that are looked at.
const errorLinesMax = 1000

// logLineMax bounds a line of a node's log that is looked at.
const logLineMax = 1 << 20

// readLogs looks for errors in the nodes' logs. A drill that damages no disk has no business with any: one is a finding
// then, since it may be the only trace of replicas that differed and were quietly rebuilt.
func (r *run) readLogs(cl *Cluster) {
	lines := int64(0)
	for _, p := range cl.Nodes {
		bad, err := errorLines(logPath(p))
		if err != nil {
			r.unknown("checker", "the log of node %d cannot be read to its end: %v", p.ID, err)
		}
		lines += int64(len(bad))
		full := false
		for i, l := range bad {
			switch {
			case r.Control != "":
			case diskFull(l):
				if !full {
					r.unknown("cluster", "the disk of node %d is full; make room, or choose another directory by TMPDIR", p.ID)
				}
				full = true
			case r.drill.disk:
				if strings.Contains(l, "panic") || strings.HasPrefix(l, "fatal error:") {
					r.find(fmt.Sprintf("node %d panicked: %s", p.ID, l))
				}
			case i < 3:
				r.find(fmt.Sprintf("node %d logged an error that no fault explains: %s", p.ID, l))
			}
		}
	}
	r.count("error lines in the nodes' logs", lines)
}

// diskFull says whether a line of a node's log tells that its disk is full: that is no fault of the drill, and a node that ends then breaks no promise.
func diskFull(line string) bool { return strings.Contains(line, syscall.ENOSPC.Error()) }

// errorLines returns the lines of a node's log that tell of an error or a panic, cut to a readable length.
func errorLines(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	var bad []string
	sc := bufio.NewScanner(f)
	sc.Buffer(make([]byte, 64<<10), logLineMax)
	for sc.Scan() {
		line := sc.Text()
		var l struct {
			Level string `json:"level"`
		}
		// However much it complained before: how it ended is seen.
		crash := strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:")
		isError := json.Unmarshal([]byte(line), &l) == nil && strings.EqualFold(l.Level, "error") || strings.HasPrefix(line, "error:")
		if crash || isError && len(bad) < errorLinesMax {
			bad = append(bad, line[:min(len(line), 400)])
		}
	}
	return bad, sc.Err()
}
