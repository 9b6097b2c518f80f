package telemetry

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestLogger_AsEtcd(t *testing.T) {
	var b strings.Builder
	log, err := Logger(&b, "etcd", "debug")
	if err != nil {
		t.Fatal(err)
	}
	log.With("node", 1).Debug("said", "level", "high", "error", errors.New("broken"))
	var line struct {
		TS, Caller, Msg, Error string
		Node                   int
	}
	if err := json.Unmarshal([]byte(b.String()), &line); err != nil {
		t.Fatal(err)
	}
	if _, err := time.Parse(etcdTime, line.TS); err != nil || !strings.HasPrefix(line.Caller, "telemetry/telemetry_etcd_test.go:") || line.Msg != "said" || line.Error != "broken" || line.Node != 1 {
		t.Errorf("%v: %s", err, b.String())
	}
	if !strings.Contains(b.String(), `"level":"debug"`) || !strings.Contains(b.String(), `"level":"high"`) {
		t.Errorf("levels: %s", b.String())
	}
}
