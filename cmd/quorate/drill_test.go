package main

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/drill"
)

// Who interrupts a drill is told what it has.
func TestDrill_InterruptedReports(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for args, first := range map[string]string{"drill run outbox": "outbox", "drill run bit-flip --control no-verify": "bit-flip", "drill run --all": "outbox"} {
		var out, talk bytes.Buffer
		if code := run(ctx, strings.Fields(args), &out, &talk); code != exitInterrupted || !strings.Contains(talk.String(), "interrupted") {
			t.Errorf("%s: exit code %d, %s", args, code, &talk)
		}
		if s := out.String(); !strings.Contains(s, "UNKNOWN") || !strings.Contains(s, "Not checked (interrupted)") || strings.Contains(s, "NOT caught") {
			t.Errorf("%s: got\n%s", args, s)
		}
		out.Reset()
		code := run(ctx, append(strings.Fields(args), "--json"), &out, &talk)
		var one drill.Report
		var all allResult
		err := json.Unmarshal(out.Bytes(), &one)
		if strings.Contains(args, "--all") {
			if err = json.Unmarshal(out.Bytes(), &all); err == nil && len(all.Reports) == 1 {
				one = all.Reports[0]
			}
		}
		if code != exitInterrupted || err != nil || all.OK || one.Drill != first || one.Verdict != drill.Unknown || !one.Interrupted() {
			t.Errorf("%s --json: exit code %d, %v, %s", args, code, err, &out)
		}
	}
}

func TestDrill_InterruptedShowsFindings(t *testing.T) {
	var out bytes.Buffer
	s := &drillShow{out: &out}
	r := drill.Report{Verdict: drill.Violated, Findings: []string{"a write is lost"}, Unknown: []drill.Reason{{Kind: drill.Interrupted, Text: "it was interrupted"}}}
	s.report(r)
	s.table([]drill.Report{r})
	lines := strings.Split(out.String(), "\n")
	if !slices.Contains(lines, "  a write is lost") || !slices.Contains(lines, "  Not checked (interrupted): it was interrupted") {
		t.Errorf("got\n%s", &out)
	}
}
