package server

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/quorate/quorate/internal/errs"
)

// inUse says who has the data directory that could not be locked, and what to do. Other errors stay as they are.
func inUse(path string, err error) error {
	if !errs.Is(err, errs.Exists) {
		return err
	}
	if cannot := (*fs.PathError)(nil); errors.As(err, &cannot) {
		return errs.New(errs.Invalid, "this user cannot use the data directory %s (%v); change its owner or rights, or set data to another directory", path, cannot)
	}
	return errs.Wrap(errs.Exists, err, "the data directory is in use by %s; stop that, or set data to another directory", lockOwner(filepath.Join(path, "LOCK")))
}

// lockOwner names the process that has a file locked, as far as /proc tells.
func lockOwner(file string) string {
	var st syscall.Stat_t
	if err := syscall.Stat(file, &st); err != nil {
		return anotherProcess
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return anotherProcess
	}
	for line := range strings.Lines(string(locks)) {
		// Such as "1: POSIX  ADVISORY  WRITE 123 fe:00:456 0 EOF": the process, and device and inode of the file.
		if w := strings.Fields(line); len(w) > 5 && strings.HasSuffix(w[5], fmt.Sprintf(":%d", st.Ino)) {
			return processName(w[4])
		}
	}
	return anotherProcess
}

const anotherProcess = "another process"

// processName names a process.
func processName(pid string) string {
	name, _ := os.ReadFile("/proc/" + pid + "/comm")
	return fmt.Sprintf("process %s (%s)", pid, bytes.TrimSpace(name))
}
