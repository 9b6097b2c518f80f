package drill

import (
	"os"
	"strings"
	"testing"
)

// The log of a node is on the disk that is full.
func TestLogs_FullDiskThatOnlyAnotherNodeCouldTellOf(t *testing.T) {
	cl := &Cluster{}
	for id, log := range []string{`{"level":"INFO"}`, "error: node stopped: write 1.seg: no space left on device\nbye\nbye\nbye\nbye"} {
		p := &Process{ID: id + 1, Dir: t.TempDir()}
		if err := os.WriteFile(logPath(p), []byte(log+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cl.Nodes = append(cl.Nodes, p)
	}
	r := &run{}
	checkUp(r, cl)
	if len(r.report.Findings) != 0 || len(r.report.Unknown) != 2 {
		t.Errorf("found %q, unknown %q, want two unknown", r.report.Findings, r.report.Unknown)
	}
}

// What the machine did to the run is no broken promise, and what was not looked at is not safe.
func TestLogs_WhatTheyShow(t *testing.T) {
	for _, c := range []struct {
		name, log      string
		finds, unknown int
	}{
		{"a full disk", `{"level":"ERROR","msg":"the node stops","error":"append: write 1.seg: no space left on device"}`, 0, 2},
		{"an error", `{"level":"ERROR","msg":"something"}`, 2, 0},
		{"a line too long to be read", `{"level":"INFO"}` + strings.Repeat("x", logLineMax+1), 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &Process{ID: 1, Dir: t.TempDir()}
			if err := os.WriteFile(logPath(p), []byte(c.log+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			r, cl := &run{}, &Cluster{Nodes: []*Process{p}}
			checkUp(r, cl)
			r.readLogs(cl)
			if f, u := len(r.report.Findings), len(r.report.Unknown); f != c.finds || u != c.unknown {
				t.Errorf("%d findings %.300q and %d unknown %.300q, want %d and %d", f, r.report.Findings, u, r.report.Unknown, c.finds, c.unknown)
			}
		})
	}
}
