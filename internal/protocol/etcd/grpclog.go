package etcd

import (
	"fmt"
	"log/slog"
	"os"
	"strings"

	"google.golang.org/grpc/grpclog"
)

// grpcLogged is set by those who want gRPC's own lines, on standard error.
const grpcLogged = "GRPC_GO_LOG_SEVERITY_LEVEL"

// LogGRPC has what gRPC's client and the gateway say of clients of the JSON form logged by log, at level debug: that one has gone away, or has
// sent an odd header, is no error of the node's. They have one logger for the process, which must be set before any of them is in use. It is left
// alone if the environment chooses its level.
func LogGRPC(log *slog.Logger) {
	if os.Getenv(grpcLogged) == "" {
		grpclog.SetLoggerV2(grpcLogger{log.With("protocol", "etcd")})
	}
}

// grpcLogger implements grpclog.LoggerV2.
type grpcLogger struct{ log *slog.Logger }

func (l grpcLogger) say(text string) {
	l.log.Debug("gRPC says", "text", strings.TrimSuffix(text, "\n"))
}

func (l grpcLogger) Warning(a ...any)            { l.say(fmt.Sprint(a...)) }
func (l grpcLogger) Warningln(a ...any)          { l.say(fmt.Sprintln(a...)) }
func (l grpcLogger) Warningf(f string, a ...any) { l.say(fmt.Sprintf(f, a...)) }
func (l grpcLogger) Error(a ...any)              { l.say(fmt.Sprint(a...)) }
func (l grpcLogger) Errorln(a ...any)            { l.say(fmt.Sprintln(a...)) }
func (l grpcLogger) Errorf(f string, a ...any)   { l.say(fmt.Sprintf(f, a...)) }

// What is informative is said of every connection.
func (l grpcLogger) Info(...any)          {}
func (l grpcLogger) Infoln(...any)        {}
func (l grpcLogger) Infof(string, ...any) {}
func (l grpcLogger) V(int) bool           { return false }

// Who calls these ends the process.
func (l grpcLogger) Fatal(a ...any)            { panic("gRPC: " + fmt.Sprint(a...)) }
func (l grpcLogger) Fatalln(a ...any)          { panic("gRPC: " + fmt.Sprintln(a...)) }
func (l grpcLogger) Fatalf(f string, a ...any) { panic("gRPC: " + fmt.Sprintf(f, a...)) }
