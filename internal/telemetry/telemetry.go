// Package telemetry sets up what a process tells about itself: its log.
//
// Metrics are built by each package on the registry it is given; see STYLE.md.
package telemetry

import (
	"bytes"
	"io"
	"log/slog"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/quorate/quorate/internal/errs"
)

// Logger returns a logger that writes to w. format is "json", "console", or "etcd", which is JSON with etcd's names of what each line has; level is "debug", "info", "warn" or "error".
// If w stands still, whoever logs does not: lines are written when w goes on, and those for which there is no room are counted.
func Logger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, errs.New(errs.Invalid, "log level is %q; use debug, info, warn or error", level)
	}
	o := &slog.HandlerOptions{Level: l, ReplaceAttr: asText}
	var handler func(io.Writer) slog.Handler
	switch format {
	case "json":
		handler = func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, o) }
	case "etcd":
		o.AddSource, o.ReplaceAttr = true, asEtcd
		handler = func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, o) }
	case "console":
		handler = func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, o) }
	default:
		return nil, errs.New(errs.Invalid, "log format is %q; use console or json", format)
	}
	missing := func(lines int) []byte {
		var b bytes.Buffer
		slog.New(handler(&b)).Warn("nobody read the log; lines are missing", "lines", lines)
		return b.Bytes()
	}
	return slog.New(handler(&outlet{w: w, missing: missing})), nil
}

// asText writes durations for who reads them: JSON would have nanoseconds.
func asText(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		return slog.String(a.Key, a.Value.Duration().String())
	}
	return a
}

// etcdTime is how etcd writes times.
const etcdTime = "2006-01-02T15:04:05.000000Z0700"

// asEtcd gives a line's own attributes etcd's names and forms: level in small letters, ts, and caller, the file and line that wrote it.
func asEtcd(groups []string, a slog.Attr) slog.Attr {
	a = asText(groups, a)
	if len(groups) > 0 {
		return a
	}
	switch v := a.Value.Any().(type) {
	case time.Time:
		if a.Key == slog.TimeKey {
			return slog.String("ts", v.UTC().Format(etcdTime))
		}
	case slog.Level:
		if a.Key == slog.LevelKey {
			return slog.String(slog.LevelKey, strings.ToLower(v.String()))
		}
	case *slog.Source:
		if a.Key == slog.SourceKey {
			return slog.String("caller", path.Join(path.Base(path.Dir(v.File)), path.Base(v.File))+":"+strconv.Itoa(v.Line))
		}
	}
	return a
}
