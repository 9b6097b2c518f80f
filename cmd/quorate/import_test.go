package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/protocol/etcd"
)

// Who gives a wrong address hears of it before the minute is over for which it is tried.
func TestImport_SaysAtOnceThatNobodyAnswers(t *testing.T) {
	addr := freeAddr(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	told := ""
	l := loader{ctx: ctx, client: http.DefaultClient, url: "http://" + addr, tell: func(text string) {
		told += text
		cancel()
	}}
	if err := l.part(&etcd.Part{}); !errors.Is(err, errImportStopped) || !strings.Contains(told, "no node answers at http://"+addr) {
		t.Errorf("%v; told %q", err, told)
	}
}

// Whoever ends an import is told what that means, and not that the node did not answer.
func TestImport_InterruptedWhileANodeIsAsked(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Error(err)
		}
		cancel()
		<-r.Context().Done()
	}))
	defer s.Close()
	told := ""
	l := loader{ctx: ctx, client: s.Client(), url: s.URL, tell: func(text string) { told += text }}
	err := l.part(&etcd.Part{})
	if !errors.Is(err, errImportStopped) || exitCode(ctx, err) != exitInterrupted || !strings.Contains(err.Error(), "run it again") || told != "" {
		t.Errorf("%v; told %q", err, told)
	}
}
