package drill

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/quorate/quorate/internal/errs"
)

// Drill is one entry of Drills: faults and checks that test a promise on a cluster of real processes.
type Drill struct {
	// Name is what `quorate drill run` takes.
	Name string
	// Text says in one line what happens.
	Text string
	// Promise is the promise that is checked.
	Promise string
	// NotShown says what a safe verdict does not show.
	NotShown string
	// Controls are protections that can be switched off.
	Controls []Control
	// Length is how long the load runs by default; Short is enough for a quick look, and ControlLength for a control.
	Length, Short, ControlLength time.Duration
	// Hidden keeps the drill out of `--all`, because it takes long.
	Hidden bool

	// disk says that the drill damages disks, so that errors in the nodes' logs are no surprise.
	disk bool
	// cycles says that it can end after a number of them.
	cycles bool
	run    func(ctx context.Context, r *run) error
}

// Control switches a protection off, so that the drill must find the fault.
type Control struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// Drills lists the drills. A new one is one line here and one file.
func Drills() []Drill {
	return []Drill{
		outboxDrill(), leaderKillDrill(), zombieDrill(), fencingDrill(), electionDrill(), watchesDrill(), leasesDrill(),
		powerLossDrill(), bitFlipDrill(), killCyclesDrill(),
	}
}

// Find returns the drill of a name.
func Find(name string) (Drill, error) {
	var names []string
	for _, d := range Drills() {
		if d.Name == name {
			return d, nil
		}
		names = append(names, d.Name)
	}
	return Drill{}, errs.New(errs.NotFound, "no drill %q; there are %s", name, strings.Join(names, ", "))
}

// Options says how a drill is run. The zero value of a field means its default.
type Options struct {
	// Seed steers load and faults; default 1. Processes and disks have their own timing, so that a seed repeats the plan
	// of a run and not each of its instants.
	Seed uint64
	// Control names the protection that is switched off; default none.
	Control string
	// For is how long the load runs; the default is the drill's.
	For time.Duration
	// Nodes is 3 or 5; default 3.
	Nodes int
	// Cycles is the number of cycles of drills that count them; default 0, which means as many as For allows.
	Cycles int
	// Binary is the quorate program; default this one.
	Binary string
	// Dir is an existing directory to work in. It is not removed.
	Dir string
	// Progress is called about once a second with a line that says how far the drill is; Event with each thing that
	// happens. Both may be nil; they are called from one goroutine at a time.
	Progress func(line string)
	Event    func(e Event)
}

// Verdict is what a drill concludes.
type Verdict string

// The verdicts.
const (
	// Safe: everything that was checked held.
	Safe Verdict = "safe"
	// Violated: something that was promised did not hold. The findings are proof, whatever else went wrong.
	Violated Verdict = "violated"
	// Unknown: nothing was found, but not everything could be checked.
	Unknown Verdict = "unknown"
)

// Event is something that happened during a drill.
type Event struct {
	// AtMillis counts from the start of the drill.
	AtMillis int64  `json:"at_ms"`
	Text     string `json:"text"`
}

// Reason says why a verdict is unknown.
type Reason struct {
	// Kind is "cluster" if the cluster did not do in time what the drill waited for, or nothing was broken, "checker" if the history could not be
	// judged in time, Interrupted if the drill was ended from outside.
	Kind string `json:"kind"`
	Text string `json:"text"`
}

// Interrupted is the Kind of a Reason.
const Interrupted = "interrupted"

// Counter is a number that a drill reports.
type Counter struct {
	Name  string `json:"name"`
	Value int64  `json:"value"`
}

// Report is the result of a drill. Its JSON form is stable under its apiVersion.
type Report struct {
	APIVersion string  `json:"apiVersion"`
	Drill      string  `json:"drill"`
	Promise    string  `json:"promise"`
	Control    string  `json:"control"`
	Verdict    Verdict `json:"verdict"`
	// Findings are violations of the promise, in words.
	Findings []string `json:"findings"`
	// Unknown says what could not be checked.
	Unknown []Reason `json:"unknown"`
	// Warnings are worth a look but break no promise.
	Warnings []string  `json:"warnings"`
	Counters []Counter `json:"counters"`
	Events   []Event   `json:"events"`
	// EventsLeftOut counts events beyond the bound of the timeline.
	EventsLeftOut int     `json:"events_left_out"`
	Seed          uint64  `json:"seed"`
	Nodes         int     `json:"nodes"`
	Seconds       float64 `json:"seconds"`
	Replay        string  `json:"replay"`
	NotShown      string  `json:"not_shown"`
	// Dir holds the nodes' data and logs if they were kept.
	Dir string `json:"dir"`
}

// Counter returns the value of a counter, 0 if there is none of that name.
func (r *Report) Counter(name string) int64 {
	for _, c := range r.Counters {
		if c.Name == name {
			return c.Value
		}
	}
	return 0
}

// Interrupted reports whether the drill was ended from outside, so that what it reports is what it had until then.
func (r *Report) Interrupted() bool {
	return slices.ContainsFunc(r.Unknown, func(u Reason) bool { return u.Kind == Interrupted })
}

// Caught reports whether a run with a control found the fault.
func (r *Report) Caught() bool { return r.Control != "" && r.Verdict == Violated }

const (
	eventsMax   = 2000
	findingsMax = 20
	// settleLimit is how long a cluster may take to come back when nothing disturbs it any more. Machines may be slow.
	settleLimit = 60 * time.Second
)

// Check refuses options with which the drill cannot be run.
func (d Drill) Check(o Options) error {
	switch {
	case o.Nodes != 0 && o.Nodes != 3 && o.Nodes != 5:
		return errs.New(errs.Invalid, "%d nodes; a drill needs 3 or 5, so that the others go on when one fails", o.Nodes)
	case o.For < 0 || o.Cycles < 0:
		return errs.New(errs.Invalid, "length and cycles must not be negative")
	case o.Cycles > 0 && !d.cycles:
		return errs.New(errs.Invalid, "drill %s has no cycles to count; say how long it runs (--for)", d.Name)
	case o.Control != "" && !slices.ContainsFunc(d.Controls, func(c Control) bool { return c.Name == o.Control }):
		return errs.New(errs.NotFound, "drill %s has no control %q; quorate drill ls shows them", d.Name, o.Control)
	}
	return nil
}

// Run runs the drill. It fails only if the options are wrong, the cluster cannot be started, or ctx ends, and not if something was
// found before; everything else is part of the report. If ctx ends, there is a report of what was found until then beside the error. No
// process of the cluster is left when it returns.
func (d Drill) Run(ctx context.Context, o Options) (Report, error) {
	if err := d.Check(o); err != nil {
		return Report{}, err
	}
	if o.Seed == 0 {
		o.Seed = 1
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.For == 0 {
		o.For = d.Length
		if o.Control != "" {
			o.For = d.ControlLength
		}
	}
	r := &run{Options: o, drill: d, start: time.Now()}
	r.report = Report{
		APIVersion: "quorate/v1", Drill: d.Name, Promise: d.Promise, Control: o.Control, Seed: o.Seed, Nodes: o.Nodes,
		NotShown: d.NotShown, Replay: d.replay(o), Findings: []string{}, Unknown: []Reason{}, Warnings: []string{},
		Counters: []Counter{}, Events: []Event{},
	}
	err := r.guarded(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	var ended error
	switch {
	case ctx.Err() != nil:
		ended = ctx.Err()
		r.report.Unknown = append(r.report.Unknown, Reason{Interrupted, "the drill was interrupted before it had checked everything"})
	case errs.Is(err, errs.Invalid) && len(r.report.Findings) == 0:
		return r.report, err
	case errs.Is(err, errs.Corrupt):
		r.report.Findings = append(r.report.Findings, err.Error())
	case err != nil:
		r.report.Unknown = append(r.report.Unknown, Reason{"cluster", err.Error()})
	}
	r.report.Seconds = float64(time.Since(r.start).Milliseconds()) / 1000
	switch {
	case len(r.report.Findings) > 0:
		r.report.Verdict = Violated
	case len(r.report.Unknown) > 0:
		r.report.Verdict = Unknown
	default:
		r.report.Verdict = Safe
	}
	return r.report, ended
}

func (d Drill) replay(o Options) string {
	s := fmt.Sprintf("quorate drill run %s --seed %d --for %v", d.Name, o.Seed, o.For)
	if o.Nodes != 3 {
		s += fmt.Sprintf(" --nodes %d", o.Nodes)
	}
	if o.Cycles > 0 {
		s += fmt.Sprintf(" --cycles %d", o.Cycles)
	}
	if o.Control != "" {
		s += " --control " + o.Control
	}
	return s
}

// TempDir makes a directory for a drill.
func TempDir(name string) (string, error) {
	dir, err := os.MkdirTemp("", "quorate-"+name+"-")
	return dir, errs.Wrap(errs.Invalid, err, "make a directory for the drill")
}

// logPath says where a node's log is.
func logPath(p *Process) string { return filepath.Join(p.Dir, "log") }
