// Package test drives clusters of real quorate processes with clients that were written for other servers: go-redis,
// redis-cli, franz-go, kcat, which is librdkafka, and etcd's own client and etcdctl. It uses nothing of Quorate but its binary.
package test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// binary is the program under test. TestMain sets it before any test runs.
var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "quorate-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "quorate")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/quorate")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build quorate: %v\n%s", err, out)
		return 1
	}
	defer stopShared()
	return m.Run()
}

// within runs a step that must end in a generous time.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// eventually tries until ok returns true, or fails the test with what it said last.
func eventually(t *testing.T, what string, ok func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		done, said := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: still not so after a minute: %s", what, said)
		}
		<-tick.C
	}
}

// tool runs a command-line client and returns what it printed.
func tool(t *testing.T, stdin string, name string, args ...string) string {
	t.Helper()
	out, err := tryTool(t, stdin, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}
