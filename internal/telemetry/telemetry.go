// Package telemetry sets up what a process tells about itself: its log.
//
// Metrics are built by each package on the registry it is given; see STYLE.md.
package telemetry

import (
	"io"
	"log/slog"

	"github.com/quorate/quorate/internal/errs"
)

// Logger returns a logger that writes to w. format is "json" or "console"; level is "debug", "info", "warn" or "error".
func Logger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, errs.New(errs.Invalid, "log level is %q; use debug, info, warn or error", level)
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	case "console":
		return slog.New(slog.NewTextHandler(w, o)), nil
	}
	return nil, errs.New(errs.Invalid, "log format is %q; use console or json", format)
}
