package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCompare_WhatTheListSays(t *testing.T) {
	r := results{
		"TestA": pass,
		"TestB": fail, "TestB/x": fail, "TestB/y": pass,
		"TestC": fail, "TestC/x": pass,
		"TestD": pass, "TestD/x": skip, "TestD/y": pass,
		"TestE": fail,
	}
	known := map[string]string{"TestB/x": "w", "TestE": "w", "TestD/y": "w", "TestGone": "w", "TestE/below": "w"}
	counts, wrong := r.compare(known)
	if want := "4 passed, 3 failed, 1 skipped; 2 of those that did not pass are on the list"; counts != want {
		t.Errorf("%s, want %s", counts, want)
	}
	// TestC failed by itself, and nobody said that TestD/x skips.
	if want := []string{"FAIL TestC", "SKIP TestD/x"}; !slices.Equal(wrong, want) {
		t.Errorf("not on the list: %v, want %v", wrong, want)
	}
	passing, missing := r.check(known, func(string) bool { return true })
	if !slices.Equal(passing, []string{"TestD/y"}) || !slices.Equal(missing, []string{"TestGone"}) {
		t.Errorf("passing %v, missing %v", passing, missing)
	}
	if p, m := r.check(known, func(test string) bool { return test == "TestB/x" }); len(p)+len(m) > 0 {
		t.Errorf("of tests that did not run: %v %v", p, m)
	}
	if !r.surprise(known) || (results{"TestA": pass, "TestS": skip}).surprise(nil) {
		t.Error("only a failure is worth another try")
	}
}

func TestList_ReasonsAndShrinking(t *testing.T) {
	file := filepath.Join(t.TempDir(), "list.txt")
	if err := os.WriteFile(file, []byte("# remark\nTestA why\nTestB/x why not\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if known, err := readList(file); err != nil || len(known) != 2 || known["TestB/x"] != "why not" {
		t.Errorf("%v %v", known, err)
	}
	if err := takeOff(file, []string{"TestA"}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "# remark\nTestB/x why not\n" {
		t.Errorf("%q %v", b, err)
	}
	for _, bad := range []string{"TestA\n", "TestA x\nTestA y\n"} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readList(file); err == nil || !strings.Contains(err.Error(), "TestA") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestLeftOut_OnlyWhatIsNotRun(t *testing.T) {
	known := map[string]string{"TestA/x_(1)": "not run: ends the process", "TestA/y": "fails", "TestB/x": "not run: too"}
	tests, patterns := leftOut([]string{"TestA"}, known)
	if !slices.Equal(tests, []string{"TestA/x_(1)"}) || !slices.Equal(patterns, []string{`^TestA$/^x_\(1\)$`}) {
		t.Errorf("%v %v", tests, patterns)
	}
}
