// Command judge runs a compiled suite of Go tests that somebody else wrote, each test in a process of its own, and compares what passes with a
// list of what is known not to. It fails if a test does not pass that is not on the list, and if one on the list passes: the list only
// shrinks.
//
//	judge -list FILE [-tests REGEXP] [-out DIR] SUITE.test [flags of the suite]
//
// A line of the list is the name of a test or of a subtest, and why it does not pass; the name stands for all below it.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	list := flag.String("list", "", "file of tests that do not pass, with the reason")
	only := flag.String("tests", "", "regular expression of the tests to run (default: all)")
	out := flag.String("out", ".", "directory for the output of each test")
	limit := flag.Duration("timeout", 3*time.Minute, "time for one try of a test")
	tries := flag.Int("tries", 2, "how often a test that is not on the list may fail before it has failed: many want answers within a tenth of a second")
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	ok, err := judge(*list, *only, *out, *limit, *tries, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func judge(list, only, out string, limit time.Duration, tries int, suite []string) (ok bool, err error) {
	known, err := readList(list)
	if err != nil {
		return false, err
	}
	wanted, err := regexp.Compile(only)
	if err != nil {
		return false, err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return false, err
	}
	names, err := tests(suite)
	if err != nil {
		return false, err
	}
	all := results{}
	for _, name := range names {
		if !wanted.MatchString(name) {
			continue
		}
		began := time.Now()
		var r results
		for try := 1; try == 1 || try <= tries && r.surprise(known); try++ {
			if try > 1 {
				fmt.Printf("once more: %s\n", name)
			}
			if r, err = run(suite, name, filepath.Join(out, name+".log"), limit); err != nil {
				return false, err
			}
		}
		fmt.Printf("%-4s %s (%.1f s)\n", r[name], name, time.Since(began).Seconds())
		for n, v := range r {
			all[n] = v
		}
	}
	counts, wrong := all.compare(known, func(test string) bool { return wanted.MatchString(root(test)) })
	for _, w := range wrong {
		fmt.Println(w)
	}
	fmt.Println(counts)
	return len(wrong) == 0, nil
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

// run runs one test and keeps its output in a file.
func run(suite []string, name, file string, limit time.Duration) (results, error) {
	// A test that hangs says where, before it is killed.
	ctx, cancel := context.WithTimeout(context.Background(), limit+time.Minute)
	defer cancel()
	args := append([]string{"-test.v", "-test.run", "^" + name + "$", "-test.timeout", limit.String()}, suite[1:]...)
	cmd := exec.CommandContext(ctx, suite[0], args...) //nolint:gosec // the caller names the program
	mark := fmt.Sprintf("QUORATE_JUDGE=%d-%s", os.Getpid(), name)
	cmd.Env = append(os.Environ(), mark)
	cmd.WaitDelay = 5 * time.Second
	defer killMarked(mark)
	b, err := cmd.CombinedOutput()
	if werr := os.WriteFile(file, b, 0o644); werr != nil {
		return nil, werr
	}
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		return nil, fmt.Errorf("run %s: %w", name, err)
	}
	r := results{}
	for _, m := range verdictLine.FindAllSubmatch(bytes.ReplaceAll(b, []byte("\r"), nil), -1) {
		r[string(m[2])] = verdict(m[1])
	}
	if _, there := r[name]; !there || err != nil {
		r[name] = fail
	}
	return r, nil
}

// killMarked ends the processes that a test has left: those with its mark in their environment. They would hold the ports of the next.
func killMarked(mark string) {
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range all {
		b, err := os.ReadFile(f)
		if err != nil || !slices.Contains(strings.Split(string(b), "\x00"), mark) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if p, perr := os.FindProcess(pid); err == nil && perr == nil {
			_ = p.Kill()
		}
	}
}

// surprise says whether something failed that is not on the list.
func (r results) surprise(known map[string]string) bool {
	_, wrong := r.compare(known, func(string) bool { return false })
	return len(wrong) > 0
}

// root returns the test that a subtest is part of.
func root(test string) string {
	name, _, _ := strings.Cut(test, "/")
	return name
}

// covers says whether name is test, or stands for it.
func covers(name, test string) bool { return name == test || strings.HasPrefix(test, name+"/") }

// compare returns how many tests did what, and what is not as the list of known ones says. Tests that have others below them count as what
// these do.
func (r results) compare(known map[string]string, ran func(string) bool) (counts string, wrong []string) {
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
			wrong = append(wrong, fmt.Sprintf("not on the list: %s %s", v, test))
		}
	}
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
			wrong = append(wrong, "passes, take it off the list: "+name)
		case !there && !bad:
			wrong = append(wrong, "on the list, and no such test: "+name)
		}
	}
	slices.SortFunc(wrong, cmp.Compare)
	return fmt.Sprintf("%d passed, %d failed, %d skipped; %d of those that did not pass are on the list", n[pass], n[fail], n[skip], listed), wrong
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
