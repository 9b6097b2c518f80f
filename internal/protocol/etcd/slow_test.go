package etcd

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shardtest"
)

func TestSlowRequests_AreLogged(t *testing.T) {
	var log strings.Builder
	s := New(Config{SlowRequest: time.Second}, shardtest.New(t, shardtest.Options{RealTime: true}, kv.Module{}), slog.New(slog.NewTextHandler(&log, nil)), nil)
	s.took("/etcdserverpb.KV/Range", 999*time.Millisecond)
	s.took("/etcdserverpb.KV/Put", time.Second)
	s.Close()
	if got := log.String(); strings.Count(got, "request stats") != 1 || !strings.Contains(got, "method=/etcdserverpb.KV/Put took=1s") {
		t.Errorf("logged: %s", got)
	}
}
