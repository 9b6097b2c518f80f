package server

import (
	"fmt"
	"os"
	"strconv"
)

// monitorSlack is how much later than it asked the Go runtime's monitor may be woken, in nanoseconds.
const monitorSlack = 4_000_000

// calmMonitor lets the Go runtime's monitor thread sleep longer (timer slack, prctl(2), PR_SET_TIMERSLACK). In a process that is now idle
// and now busy it wakes every 20 µs to look for goroutines that hold up a processor; on a machine with few processors that alone was a
// quarter of a node's processor time with one client, and it came in between the threads that served it. What it looks for takes
// milliseconds: 10 for a goroutine that is to be preempted.
//
// Another thread's slack may be set with CAP_SYS_NICE, which root has and containers often have not. It is for processes that do
// nothing but run a node; an error says why all stays as it was.
func calmMonitor() error {
	tid, err := monitorThread()
	if err != nil {
		return err
	}
	return os.WriteFile(slackFile(tid), strconv.AppendInt(nil, monitorSlack, 10), 0)
}

// slackFile is there for each thread, though only processes are listed in /proc; see proc(5), /proc/pid/timerslack_ns.
func slackFile(tid int) string { return fmt.Sprintf("/proc/%d/timerslack_ns", tid) }

// monitorThread returns the id of the monitor's thread: the runtime makes it before all others but the first.
func monitorThread() (int, error) {
	d, err := os.Open("/proc/self/task")
	if err != nil {
		return 0, err
	}
	defer d.Close()
	// The kernel lists threads in the order in which they were made; their numbers may have wrapped around.
	names, err := d.Readdirnames(2)
	if err != nil {
		return 0, err
	}
	if len(names) < 2 {
		return 0, fmt.Errorf("/proc/self/task lists no second thread")
	}
	return strconv.Atoi(names[1])
}
