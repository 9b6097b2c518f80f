// Command quorate is the whole product: node, client commands, demo, drills and benchmark.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/telemetry"
)

// Exit codes; they are part of the interface.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitUnavailable = 5
	exitDrill       = 8
	exitInterrupted = 130
	// exitPipe is what shells say of a program that SIGPIPE ended.
	exitPipe = 141
)

func main() {
	stopping := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		// The terminal is closed. Under nohup it is not to matter.
		stopping = append(stopping, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), stopping...)
	// Nobody reads what is written any more: that is seen where it is written, so that nodes and directories do not stay behind.
	signal.Ignore(syscall.SIGPIPE)
	// The second signal ends the program as if it knew of none: whoever sends it does not want to wait.
	context.AfterFunc(ctx, stop)
	if isTerminal(os.Stderr) {
		context.AfterFunc(ctx, func() {
			time.AfterFunc(stoppingAfter, func() { fmt.Fprintln(os.Stderr, "stopping; once more Ctrl-C ends it at once") })
		})
	}
	// Whether somebody reads why it ends must not keep it from its end.
	os.Exit(run(ctx, asEtcd(os.Args), os.Stdout, telemetry.Patient(os.Stderr)))
}

// stoppingAfter is how long the end may take before something is said.
const stoppingAfter = time.Second

// run runs the command that args name and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := &counted{Writer: stdout, broken: cancel}
	root.SetOut(out)
	root.SetErr(stderr)
	// Made here, since it writes to what the root writes to at this moment.
	root.InitDefaultCompletionCmd()
	checkUsage(root)
	offer(root)
	cmd, err := root.ExecuteContextC(ctx)
	switch {
	case out.closed.Load():
		return exitPipe
	case err == nil && out.failed() == nil:
		return exitOK
	case err == nil:
		// Help, and whatever else writes without looking.
		err = out.failed()
	}
	code := exitCode(ctx, err)
	var ex exitError
	if !errors.As(err, &ex) || ex.msg != "" {
		fmt.Fprintf(stderr, "error: %v\n", err)
		if code == exitUsage {
			fmt.Fprintf(stderr, "  try: %s --help\n", cmd.CommandPath())
		}
	}
	// Whoever asked for JSON gets it, also of what failed.
	if out.n == 0 && wantsJSON(cmd, args) {
		_ = printJSON(out, failure{APIVersion: apiVersion, Error: failed{Message: err.Error(), ExitCode: code}})
	}
	return code
}

// wantsJSON says whether a command line asks for JSON. It does not ask the flags that were parsed: those behind one that is wrong were not, nor
// were any if there is no such command.
func wantsJSON(c *cobra.Command, args []string) bool {
	asked := false
	for i := 0; i < len(args) && args[i] != "--"; i++ {
		name, value, given := strings.Cut(args[i], "=")
		switch {
		case name == "--json" && given:
			// What is neither yes nor no is an answer to somebody who wants JSON, too.
			yes, err := strconv.ParseBool(value)
			asked = yes || err != nil
		case name == "--json":
			asked = true
		case !given && strings.HasPrefix(name, "--"):
			if f := c.Flags().Lookup(name[2:]); f != nil && f.NoOptDefVal == "" {
				// What follows is its value, whatever it looks like.
				i++
			}
		}
	}
	return asked
}

// apiVersion is that of all JSON that the program prints.
const apiVersion = "quorate/v1"

// failure is what a command with --json prints if it fails before it has printed anything.
type failure struct {
	APIVersion string `json:"apiVersion"`
	Error      failed `json:"error"`
}

type failed struct {
	Message  string `json:"message"`
	ExitCode int    `json:"exit_code"`
}

// counted counts what is written, and keeps what it first failed with. When nobody reads it any more it calls broken.
type counted struct {
	io.Writer
	n      int
	broken func()
	closed atomic.Bool
	first  atomic.Pointer[error]
}

func (c *counted) failed() error {
	if err := c.first.Load(); err != nil {
		return *err
	}
	return nil
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.n += n
	if err != nil {
		c.first.CompareAndSwap(nil, &err)
	}
	if errors.Is(err, syscall.EPIPE) {
		c.closed.Store(true)
		c.broken()
	}
	return n, err
}

// exitError ends the program with a code; an empty message prints nothing more.
type exitError struct {
	code int
	msg  string
}

func (e exitError) Error() string { return e.msg }

func exitCode(ctx context.Context, err error) int {
	var ex exitError
	switch {
	case errors.As(err, &ex):
		return ex.code
	case ctx.Err() != nil:
		return exitInterrupted
	}
	var e *errs.Error
	if !errors.As(err, &e) {
		return exitFailed
	}
	switch e.Kind {
	case errs.Invalid:
		return exitUsage
	case errs.NotFound:
		return exitNotFound
	case errs.Exists, errs.Conflict:
		return exitConflict
	case errs.Unavailable, errs.Overloaded:
		return exitUnavailable
	}
	return exitFailed
}
