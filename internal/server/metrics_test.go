package server

import (
	"bufio"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/env"
)

// TestMetrics_NamesFollowPrometheus looks at what a node serves: names, kinds and help texts (https://prometheus.io/docs/practices/naming/).
func TestMetrics_NamesFollowPrometheus(t *testing.T) {
	s, err := Start(Config{Listen: Listen{Redis: "127.0.0.1:0", Kafka: "127.0.0.1:0", Etcd: "127.0.0.1:0", HTTP: "127.0.0.1:0"}}, "test", env.Real(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // a test's
	// The probe asks each port, so that what counts requests is there.
	if err := s.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := http.Get("http://" + s.Addr().HTTP + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close() //nolint:errcheck // only read
	kinds, helps := map[string]string{}, map[string]string{}
	lines := bufio.NewScanner(io.LimitReader(r.Body, 16<<20))
	for lines.Scan() {
		w := strings.SplitN(lines.Text(), " ", 4)
		if len(w) < 4 || w[0] != "#" || !strings.HasPrefix(w[2], "quorate_") {
			continue
		}
		switch w[1] {
		case "HELP":
			helps[w[2]] = w[3]
		case "TYPE":
			kinds[w[2]] = w[3]
		}
	}
	if err := lines.Err(); err != nil || len(kinds) < 20 {
		t.Fatalf("%d metrics, %v", len(kinds), err)
	}
	for name, kind := range kinds {
		words := strings.Split(name, "_")
		last := words[len(words)-1]
		if slices.Contains([]string{"count", "sum", "bucket", "info"}, last) {
			t.Errorf("%s: the suffix belongs to the series of a histogram, or to constants", name)
		}
		if (kind == "counter") != (last == "total") {
			t.Errorf("%s is a %s; counters, and nothing else, end with _total", name, kind)
		}
		if slices.Contains(words, kind) {
			t.Errorf("%s says of which kind it is", name)
		}
		for _, unit := range []string{"ms", "us", "ns", "milliseconds", "microseconds", "minutes", "hours", "kb", "mb", "kib", "mib", "kilobytes", "percent"} {
			if slices.Contains(words, unit) {
				t.Errorf("%s is in %s; base units are seconds, bytes and ratios", name, unit)
			}
		}
		if strings.ToLower(name) != name || !strings.HasSuffix(helps[name], ".") {
			t.Errorf("%s: its help is %q; it is a sentence", name, helps[name])
		}
	}
}
