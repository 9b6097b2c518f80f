// Command quorate is the whole product: node, client commands, demo, drills and benchmark.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/quorate/quorate/internal/errs"
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
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(asEtcd(os.Args))
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		os.Exit(exitOK)
	}
	code := exitCode(ctx, err)
	var ex exitError
	if !errors.As(err, &ex) || ex.msg != "" {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		if code == exitUsage {
			fmt.Fprintf(os.Stderr, "  try: %s --help\n", cmd.CommandPath())
		}
	}
	os.Exit(code)
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
