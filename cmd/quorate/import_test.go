package main

import (
	"context"
	"errors"
	"net/http"
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
	if err := l.part(&etcd.Part{}); !errors.Is(err, context.Canceled) || !strings.Contains(told, "no node answers at http://"+addr) {
		t.Errorf("%v; told %q", err, told)
	}
}
