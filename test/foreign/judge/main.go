// Command judge runs a compiled suite of Go tests that somebody else wrote, each test in a process of its own, and compares what passes with a
// list of what is known not to. It fails if a test does not pass that is not on the list, and if one on the list passes: the list only
// shrinks.
//
//	judge -list FILE [-shrink] [-tests REGEXP] [-out DIR] SUITE.test [flags of the suite]
//
// A line of the list is the name of a test or of a subtest, and why it does not pass; the name stands for all below it.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	list := flag.String("list", "", "file of tests that do not pass, with the reason")
	only := flag.String("tests", "", "regular expression of the tests to run (default: all)")
	out := flag.String("out", ".", "directory for the output of each test")
	limit := flag.Duration("timeout", 6*time.Minute, "time for one try of a test")
	tries := flag.Int("tries", 2, "how often a test that is not on the list may fail before it has failed: many want answers within a tenth of a second")
	together := flag.Bool("together", false, "run all tests in one process first: some rely on those before them, others are spoilt by what one before them left")
	shrink := flag.Bool("shrink", false, "take what passes off the list")
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "become the parent of what tests leave:", err)
		os.Exit(1)
	}
	passing, ok, err := judge(*list, *only, *out, *limit, *tries, *together, flag.Args())
	if err == nil && *shrink {
		err = takeOff(*list, passing)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// judge runs a suite. It returns what is on the list and passes, and whether all is as the list says.
func judge(list, only, out string, limit time.Duration, tries int, together bool, suite []string) (passing []string, ok bool, err error) {
	known, err := readList(list)
	if err != nil {
		return nil, false, err
	}
	wanted, err := regexp.Compile(only)
	if err != nil {
		return nil, false, err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, false, err
	}
	names, err := tests(suite)
	if err != nil {
		return nil, false, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !wanted.MatchString(n) })
	all := results{}
	if together {
		if all, err = run(suite, names, known, filepath.Join(out, "all.log"), time.Duration(len(names))*limit); err != nil {
			return nil, false, err
		}
	}
	for _, name := range names {
		began := time.Now()
		r := all.under(name)
		first := 1
		if len(r) > 0 {
			first = 2
		}
		for try := first; try == 1 || try <= tries && r.surprise(known); try++ {
			if try > 1 {
				fmt.Printf("once more: %s\n", name)
			}
			if r, err = run(suite, []string{name}, known, filepath.Join(out, name+".log"), limit); err != nil {
				return nil, false, err
			}
		}
		fmt.Printf("%-4s %s (%.1f s)\n", r[name], name, time.Since(began).Seconds())
		maps.DeleteFunc(all, func(test string, _ verdict) bool { return covers(name, test) })
		maps.Copy(all, r)
	}
	counts, wrong := all.compare(known)
	passing, missing := all.check(known, func(test string) bool { return wanted.MatchString(root(test)) })
	for _, l := range []struct {
		what  string
		tests []string
	}{{"not on the list", wrong}, {"passes, take it off the list", passing}, {"on the list, and no such test", missing}} {
		for _, t := range l.tests {
			fmt.Printf("%s: %s\n", l.what, t)
		}
	}
	fmt.Println(counts)
	return passing, len(wrong)+len(passing)+len(missing) == 0, nil
}

// verdict is what became of a test.
type verdict string

const (
	pass verdict = "PASS"
	fail verdict = "FAIL"
	skip verdict = "SKIP"
)

// results are verdicts by the name of a test or subtest.
type results map[string]verdict

// tests returns the names of a suite's tests.
func tests(suite []string) ([]string, error) {
	b, err := exec.Command(suite[0], append([]string{"-test.list", "^Test"}, suite[1:]...)...).Output() //nolint:gosec // the caller names the program
	if err != nil {
		return nil, fmt.Errorf("list the tests of %s: %w", suite[0], err)
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		if name := strings.TrimSpace(line); strings.HasPrefix(name, "Test") {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s has no tests", suite[0])
	}
	return names, nil
}

var verdictLine = regexp.MustCompile(`(?m)^ *--- (PASS|FAIL|SKIP): (\S+) \(`)

// notRun begins the reason of a subtest whose failure brings down others, so that it is left out and counts as failed.
const notRun = "not run: "

// leftOut returns which of the subtests below tests are not run, and the patterns that leave them out.
func leftOut(names []string, known map[string]string) (tests, patterns []string) {
	for test, why := range known {
		if !strings.HasPrefix(why, notRun) || !slices.Contains(names, root(test)) {
			continue
		}
		tests = append(tests, test)
		var parts []string
		for part := range strings.SplitSeq(test, "/") {
			parts = append(parts, "^"+regexp.QuoteMeta(part)+"$")
		}
		patterns = append(patterns, strings.Join(parts, "/"))
	}
	return tests, patterns
}

// run runs tests in one process and keeps its output in a file. Of those that it did not come to nothing is in the results.
func run(suite, names []string, known map[string]string, file string, limit time.Duration) (results, error) {
	// A test that hangs says where, before it is killed.
	ctx, cancel := context.WithTimeout(context.Background(), limit+time.Minute)
	defer cancel()
	args := append([]string{"-test.v", "-test.run", "^(" + strings.Join(names, "|") + ")$", "-test.timeout", limit.String()}, suite[1:]...)
	without, patterns := leftOut(names, known)
	if len(without) > 0 {
		args = append(args, "-test.skip", strings.Join(patterns, "|"))
	}
	cmd := exec.CommandContext(ctx, suite[0], args...) //nolint:gosec // the caller names the program
	cmd.WaitDelay = 5 * time.Second
	defer endChildren()
	b, err := cmd.CombinedOutput()
	if werr := os.WriteFile(file, b, 0o644); werr != nil {
		return nil, werr
	}
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		return nil, fmt.Errorf("run %s: %w", suite[0], err)
	}
	r := results{}
	for _, m := range verdictLine.FindAllSubmatch(bytes.ReplaceAll(b, []byte("\r"), nil), -1) {
		r[string(m[2])] = verdict(m[1])
	}
	// Some tests of etcd's tell a program to stop and end before it has: run by themselves they leave goroutines that wait for it.
	waits := bytes.Contains(b, []byte("Unexpected goroutines running after all test(s).")) && bytes.Contains(b, []byte("expect.(*ExpectProcess).waitProcess"))
	if name := names[0]; len(names) == 1 && (r[name] == "" || err != nil && (r[name] != pass || !waits)) {
		r[name] = fail
	}
	for _, test := range without {
		r[test] = fail
	}
	return r, nil
}

// endChildren ends the processes that a test has left, which are this process's children then. They would hold the ports of the next.
func endChildren() {
	for {
		all, _ := filepath.Glob("/proc/[0-9]*/stat")
		left := 0
		for _, f := range all {
			b, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			// The program's name may hold anything; behind it come the state and the parent.
			rest := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err != nil || len(rest) < 2 || rest[1] != strconv.Itoa(os.Getpid()) {
				continue
			}
			left++
			_ = unix.Kill(pid, unix.SIGKILL)
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
		if left == 0 {
			return
		}
	}
}

// under returns what became of a test and of all below it.
func (r results) under(name string) results {
	some := results{}
	for test, v := range r {
		if covers(name, test) {
			some[test] = v
		}
	}
	return some
}

// surprise says whether something failed that is not on the list.
func (r results) surprise(known map[string]string) bool {
	_, wrong := r.compare(known)
	return slices.ContainsFunc(wrong, func(w string) bool { return strings.HasPrefix(w, string(fail)) })
}

// root returns the test that a subtest is part of.
func root(test string) string {
	name, _, _ := strings.Cut(test, "/")
	return name
}

// covers says whether name is test, or stands for it.
func covers(name, test string) bool { return name == test || strings.HasPrefix(test, name+"/") }

// compare returns how many tests did what, and which did not pass though they are not on the list. Tests that have others below them count as
// what these do.
func (r results) compare(known map[string]string) (counts string, wrong []string) {
	n := map[verdict]int{}
	listed := 0
	for test, v := range r {
		below := false
		for other, ov := range r {
			// One that fails without any below it that does has failed by itself.
			below = below || other != test && covers(test, other) && (v != fail || ov == fail)
		}
		if below {
			continue
		}
		n[v]++
		if v == pass {
			continue
		}
		on := false
		for name := range known {
			on = on || covers(name, test)
		}
		if on {
			listed++
		} else {
			wrong = append(wrong, fmt.Sprintf("%s %s", v, test))
		}
	}
	slices.Sort(wrong)
	return fmt.Sprintf("%d passed, %d failed, %d skipped; %d of those that did not pass are on the list", n[pass], n[fail], n[skip], listed), wrong
}

// check returns what is on the list and passes, and what is on it and was not there to be run.
func (r results) check(known map[string]string, ran func(string) bool) (passing, missing []string) {
	for name := range known {
		if !ran(name) {
			continue
		}
		bad, there := false, false
		for test, v := range r {
			there = there || covers(name, test)
			bad = bad || covers(name, test) && v != pass
			// What is above it may have ended before.
			bad = bad || covers(test, name) && v == fail && !r.has(name)
		}
		switch {
		case there && !bad:
			passing = append(passing, name)
		case !there && !bad:
			missing = append(missing, name)
		}
	}
	slices.Sort(passing)
	slices.Sort(missing)
	return passing, missing
}

func (r results) has(test string) bool { _, ok := r[test]; return ok }

// readList reads a list: a name and a reason on each line that is not empty or a remark.
func readList(file string) (map[string]string, error) {
	known := map[string]string{}
	if file == "" {
		return known, nil
	}
	b, err := os.ReadFile(file) //nolint:gosec // the caller names the file
	if err != nil {
		return nil, err
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, why, _ := strings.Cut(line, " ")
		why = strings.TrimSpace(why)
		if why == "" {
			return nil, fmt.Errorf("%s:%d: %s without a reason", file, n, name)
		}
		if known[name] != "" {
			return nil, fmt.Errorf("%s:%d: %s is there twice", file, n, name)
		}
		known[name] = why
	}
	return known, nil
}

// takeOff writes a list again without some of its tests.
func takeOff(file string, tests []string) error {
	b, err := os.ReadFile(file) //nolint:gosec // the caller names the file
	if err != nil {
		return err
	}
	var left strings.Builder
	for line := range strings.Lines(string(b)) {
		if name, _, _ := strings.Cut(strings.TrimSpace(line), " "); !slices.Contains(tests, name) {
			left.WriteString(line)
		}
	}
	return os.WriteFile(file, []byte(left.String()), 0o644)
}
