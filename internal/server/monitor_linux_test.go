package server

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestCalmMonitor(t *testing.T) {
	tid, err := monitorThread()
	if err != nil {
		t.Fatal(err)
	}
	if tid == os.Getpid() {
		t.Fatalf("thread %d is the first one", tid)
	}
	slack := func(tid int) int {
		b, err := os.ReadFile(slackFile(tid))
		if err != nil {
			t.Skipf("this system does not tell a thread's slack: %v", err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := slack(tid)
	err = calmMonitor()
	if errors.Is(err, fs.ErrPermission) {
		t.Skipf("needs CAP_SYS_NICE: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.WriteFile(slackFile(tid), fmt.Appendf(nil, "%d", before), 0) }()
	if got := slack(tid); got != monitorSlack {
		t.Errorf("slack of the monitor is %d, want %d", got, monitorSlack)
	}
	// All other threads sleep as exactly as before: the runtime sleeps for microseconds before it takes over work.
	if got := slack(os.Getpid()); got == monitorSlack {
		t.Errorf("slack of the first thread is %d, too", got)
	}
}
