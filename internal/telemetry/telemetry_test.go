package telemetry

import (
	"strings"
	"testing"
	"time"
)

func TestLogger_DurationsCanBeRead(t *testing.T) {
	for _, format := range []string{"json", "etcd", "console"} {
		var b strings.Builder
		log, err := Logger(&b, format, "info")
		if err != nil {
			t.Fatal(err)
		}
		log.Info("peer is silent", "for", 1107*time.Millisecond)
		if !strings.Contains(b.String(), "1.107s") {
			t.Errorf("%s: %s", format, b.String())
		}
	}
}
