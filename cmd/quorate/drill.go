package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorate/quorate/internal/drill"
	"github.com/quorate/quorate/internal/errs"
)

func newDrill() *cobra.Command {
	c := &cobra.Command{
		Use: "drill", Short: "Break a cluster on purpose, and check that what is promised holds", GroupID: "prove", Args: cobra.NoArgs,
		Long: `A drill starts real node processes on loopback, puts load on them through stock clients, breaks something, and checks a
promise. Each but the long one, kill-cycles, has a control: a protection switched off, with which it must find the fault.
docs/drills.md has more.`,
		Example: "  quorate drill ls\n  quorate drill run leader-kill\n  quorate drill run power-loss --control no-fsync\n  quorate drill run --all",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newDrillLs(), newDrillRun())
	return c
}

// drillEntry is what `drill ls --json` prints of a drill.
type drillEntry struct {
	Name     string          `json:"name"`
	Text     string          `json:"text"`
	Promise  string          `json:"promise"`
	NotShown string          `json:"not_shown"`
	Seconds  float64         `json:"seconds"`
	InAll    bool            `json:"in_all"`
	Controls []drill.Control `json:"controls"`
}

func newDrillLs() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "ls", Short: "List the drills and their controls", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			if asJSON {
				list := struct {
					APIVersion string       `json:"apiVersion"`
					Drills     []drillEntry `json:"drills"`
				}{APIVersion: "quorate/v1"}
				for _, d := range drill.Drills() {
					list.Drills = append(list.Drills, drillEntry{
						Name: d.Name, Text: d.Text, Promise: d.Promise, NotShown: d.NotShown, Seconds: d.Length.Seconds(), InAll: !d.Hidden,
						Controls: append([]drill.Control{}, d.Controls...),
					})
				}
				return printJSON(out, list)
			}
			var text bytes.Buffer
			for _, d := range drill.Drills() {
				fmt.Fprintf(&text, "%s  (%v)\n  %s\n  Checks: %s\n", d.Name, d.Length, d.Text, d.Promise)
				for _, k := range d.Controls {
					fmt.Fprintf(&text, "  --control %s: %s\n", k.Name, k.Text)
				}
				fmt.Fprintln(&text)
			}
			fmt.Fprintln(&text, "Next: quorate drill run NAME, or quorate drill run --all")
			_, err := out.Write(text.Bytes())
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// drillFlags are the flags of `drill run`.
type drillFlags struct {
	drill.Options
	all, asJSON, keep bool
}

// check refuses what is given and would be taken for not given, or cannot be.
func (f *drillFlags) check(cmd *cobra.Command) error {
	switch {
	case f.For < 0 || f.For == 0 && cmd.Flags().Changed("for"):
		return errs.New(errs.Invalid, "--for is %v; the load needs some time, such as 20s", f.For)
	case f.Nodes == 0:
		return errs.New(errs.Invalid, "--nodes is 0; a drill needs 3 or 5")
	case f.Cycles < 0:
		return errs.New(errs.Invalid, "--cycles is %d; it must not be negative", f.Cycles)
	case f.Seed == 0:
		return errs.New(errs.Invalid, "--seed is 0; it must be at least 1")
	}
	return nil
}

func newDrillRun() *cobra.Command {
	var f drillFlags
	c := &cobra.Command{
		Use: "run NAME | --all", Short: "Run a drill, or all of them with all their controls", Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: offerDrills,
		Long: `Exit codes: 0 safe, 8 violated, 5 unknown because the cluster did not come back in time or nothing was broken, 1 unknown because the history
could not be judged in time. A control is expected to be violated, and its exit code is then 8 too. With --all: 0 if each
drill is safe and each control is violated, else 8, or 5 or 1 if nothing worse than an unknown occurred.`,
		Example: "  quorate drill run outbox\n  quorate drill run leader-kill --for 1m --seed 7\n  quorate drill run bit-flip --control no-verify\n  quorate drill run kill-cycles --cycles 200",
		RunE: func(cmd *cobra.Command, args []string) error {
			talk := cmd.OutOrStdout()
			if f.asJSON {
				talk = cmd.ErrOrStderr()
			}
			s := &drillShow{out: talk, tty: isTerminal(os.Stdout) && !f.asJSON}
			if err := f.check(cmd); err != nil {
				return err
			}
			switch {
			case f.all && (len(args) > 0 || f.Control != "" || f.Cycles > 0):
				return errs.New(errs.Invalid, "--all runs the drills and their controls; leave out the name, --control and --cycles")
			case f.all:
				return runAllDrills(cmd, &f, s)
			case len(args) == 0:
				return errs.New(errs.Invalid, "which drill? quorate drill ls lists them; --all runs them all")
			}
			d, err := drill.Find(args[0])
			if err != nil {
				return err
			}
			r, err := runDrill(cmd.Context(), d, f.Options, f.keep, s)
			if err != nil && !r.Interrupted() {
				return err
			}
			if f.asJSON {
				if err := printJSON(cmd.OutOrStdout(), r); err != nil {
					return err
				}
			}
			s.report(r)
			if err != nil {
				return err
			}
			if code := drillCode(r); code != exitOK {
				return exitError{code: code}
			}
			return nil
		},
	}
	fl := c.Flags()
	fl.BoolVar(&f.all, "all", false, "run every drill but kill-cycles, which is long, and every control, each for a short time")
	fl.StringVar(&f.Control, "control", "", "switch this protection off; the drill must then find the fault")
	fl.DurationVar(&f.For, "for", 0, "how long the load runs (default: see drill ls)")
	fl.Uint64Var(&f.Seed, "seed", 1, "seed of load and faults")
	fl.IntVar(&f.Nodes, "nodes", 3, "number of nodes: 3 or 5")
	fl.IntVar(&f.Cycles, "cycles", 0, "end after so many cycles (power-loss, bit-flip, kill-cycles)")
	fl.BoolVar(&f.keep, "keep", false, "keep the directory with data, logs and pictures")
	fl.BoolVar(&f.asJSON, "json", false, "print the report as JSON on stdout, the rest on stderr")
	// These fail for flags that are not there.
	_ = c.RegisterFlagCompletionFunc("control", offerControls)
	_ = c.RegisterFlagCompletionFunc("nodes", offerNumbers("3", "5"))
	return c
}

// runDrill runs one drill in a directory of its own.
func runDrill(ctx context.Context, d drill.Drill, o drill.Options, keep bool, s *drillShow) (drill.Report, error) {
	if err := d.Check(o); err != nil {
		return drill.Report{}, err
	}
	dir, err := drill.TempDir(d.Name)
	if err != nil {
		return drill.Report{}, err
	}
	if !keep {
		defer os.RemoveAll(dir) //nolint:errcheck // best effort on a temporary directory
	}
	o.Dir, o.Event, o.Progress = dir, s.event, s.progress
	s.begin(d, o)
	r, err := d.Run(ctx, o)
	s.endLine()
	if keep {
		r.Dir = dir
		s.say("Data and logs: %s", dir)
	}
	if r.Interrupted() {
		return r, exitError{code: exitInterrupted, msg: "interrupted: not everything was checked; the nodes are stopped"}
	}
	return r, err
}

// drillCode is the exit code for a report.
func drillCode(r drill.Report) int {
	switch r.Verdict {
	case drill.Safe:
		return exitOK
	case drill.Violated:
		return exitDrill
	}
	for _, u := range r.Unknown {
		if u.Kind == "cluster" {
			return exitUnavailable
		}
	}
	return exitFailed
}

// allResult is what `drill run --all --json` prints.
type allResult struct {
	APIVersion string `json:"apiVersion"`
	// OK says that every drill was safe and every control was violated.
	OK      bool           `json:"ok"`
	Reports []drill.Report `json:"reports"`
}

// controlTries is how often a control may fail to show the fault: it is there, but it takes luck to meet it.
const controlTries = 3

func runAllDrills(cmd *cobra.Command, f *drillFlags, s *drillShow) error {
	res := allResult{APIVersion: "quorate/v1", OK: true}
	code := exitOK
	fail := func(c int) {
		res.OK = false
		if code != exitDrill {
			code = c
		}
	}
	show := func() error {
		s.table(res.Reports)
		if f.asJSON {
			return printJSON(cmd.OutOrStdout(), res)
		}
		return nil
	}
	// stopped shows what there is when a run has failed.
	stopped := func(r drill.Report, err error) error {
		if !r.Interrupted() {
			return err
		}
		res.OK, res.Reports = false, append(res.Reports, r)
		s.verdict(r)
		return cmp.Or(show(), err)
	}
	for _, d := range drill.Drills() {
		if d.Hidden {
			continue
		}
		o := f.Options
		if o.For == 0 {
			o.For = d.Short
		}
		r, err := runDrill(cmd.Context(), d, o, f.keep, s)
		if err != nil {
			return stopped(r, err)
		}
		res.Reports = append(res.Reports, r)
		s.verdict(r)
		if c := drillCode(r); c != exitOK {
			fail(c)
		}
		for _, k := range d.Controls {
			o := f.Options
			o.Control = k.Name
			var r drill.Report
			for try := range controlTries {
				o.Seed = f.Seed + uint64(try)
				if r, err = runDrill(cmd.Context(), d, o, f.keep, s); err != nil {
					return stopped(r, err)
				}
				if r.Caught() {
					break
				}
			}
			res.Reports = append(res.Reports, r)
			s.verdict(r)
			if !r.Caught() {
				fail(exitDrill)
			}
		}
	}
	if err := show(); err != nil {
		return err
	}
	if code != exitOK {
		return exitError{code: code}
	}
	return nil
}

// drillShow prints what a drill does, for people.
type drillShow struct {
	out   io.Writer
	tty   bool
	begun time.Time
	last  time.Time
	dirty bool // a progress line stands on the terminal
}

func (s *drillShow) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

func (s *drillShow) begin(d drill.Drill, o drill.Options) {
	s.begun, s.last = time.Now(), time.Now()
	title := d.Name
	if o.Control != "" {
		title += " with control " + o.Control
	}
	s.say("quorate %s · drill %s · %d nodes, seed %d", version, title, o.Nodes, o.Seed)
	s.say("  %s", d.Text)
	for _, k := range d.Controls {
		if k.Name == o.Control {
			s.say("  Switched off: %s.", k.Text)
		}
	}
}

func (s *drillShow) endLine() {
	if s.dirty {
		clearLine(s.out)
		s.dirty = false
	}
}

func (s *drillShow) event(e drill.Event) {
	s.endLine()
	s.say("  %6.1f s  %s", float64(e.AtMillis)/1000, e.Text)
	s.last = time.Now()
}

func (s *drillShow) progress(line string) {
	if s.tty {
		showLine(s.out, fmt.Sprintf("  %6.1f s  %s", time.Since(s.begun).Seconds(), line))
		s.dirty = true
		return
	}
	if time.Since(s.last) >= 5*time.Second {
		s.last = time.Now()
		s.say("  %6.1f s  %s", time.Since(s.begun).Seconds(), line)
	}
}

// report prints a report in words.
func (s *drillShow) report(r drill.Report) {
	s.say("")
	for _, c := range r.Counters {
		s.say("  %10d  %s", c.Value, c.Name)
	}
	s.say("")
	s.verdict(r)
	s.say("Checked: %s", r.Promise)
	s.say("Not shown: %s", r.NotShown)
	s.say("Again: %s", r.Replay)
}

// verdict prints the verdict with what speaks for it.
func (s *drillShow) verdict(r drill.Report) {
	for _, w := range r.Warnings {
		s.say("  Warning: %s", w)
	}
	switch r.Verdict {
	case drill.Safe:
		s.say("SAFE: everything that was checked held, in %.1f s.", r.Seconds)
	case drill.Violated:
		s.say("VIOLATED:")
		for _, f := range r.Findings {
			s.say("  %s", f)
		}
		if r.Control == "" {
			s.say("Please report this, with the directory that --keep leaves.")
		}
	default:
		s.say("UNKNOWN: nothing was found, but not everything could be checked.")
	}
	for _, u := range r.Unknown {
		s.say("  Not checked (%s): %s", u.Kind, u.Text)
	}
	if r.Control != "" {
		switch {
		case r.Caught():
			s.say("The control was caught: the drill finds the fault when %s is on.", r.Control)
		case !r.Interrupted():
			s.say("The control was NOT caught: the fault was there and the drill did not meet it. Try another seed or a longer run.")
		}
	}
}

// table sums up a run of all drills.
func (s *drillShow) table(rs []drill.Report) {
	s.say("")
	t := tabwriter.NewWriter(s.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "DRILL\tCONTROL\tVERDICT\tAS IT SHOULD\tSECONDS\tSEED\tFIRST FINDING")
	for _, r := range rs {
		control, good, first := "-", r.Verdict == drill.Safe, ""
		if r.Control != "" {
			control, good = r.Control, r.Caught()
		}
		switch {
		case len(r.Findings) > 0:
			first, _, _ = strings.Cut(r.Findings[0], "\n")
		case len(r.Unknown) > 0:
			first, _, _ = strings.Cut(r.Unknown[0].Text, "\n")
		}
		if cut := []rune(first); len(cut) > 100 {
			first = string(cut[:99]) + "…"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%.1f\t%d\t%s\n", r.Drill, control, r.Verdict, map[bool]string{true: "yes", false: "NO"}[good], r.Seconds, r.Seed, first)
	}
	_ = t.Flush() // to a terminal or a buffer
}
