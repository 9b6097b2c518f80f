package etcd

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shardtest"
)

func TestSeldom(t *testing.T) {
	var q seldom
	at := time.Unix(1_700_000_000, 0)
	for i, c := range []struct {
		after  time.Duration
		unsaid int
		say    bool
	}{{0, 0, true}, {time.Second, 0, false}, {59 * time.Second, 0, false}, {60 * time.Second, 2, true}, {61 * time.Second, 0, false}, {121 * time.Second, 1, true}} {
		if unsaid, say := q.say(at.Add(c.after), time.Minute); unsaid != c.unsaid || say != c.say {
			t.Errorf("%d: %d %v, want %d %v", i, unsaid, say, c.unsaid, c.say)
		}
	}
}

// lines is a log that several goroutines write to.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func TestSlowRequests_AreLogged(t *testing.T) {
	var log lines
	s := New(Config{SlowRequest: time.Second}, shardtest.New(t, shardtest.Options{RealTime: true}, kv.Module{}), slog.New(slog.NewTextHandler(&log, nil)), nil)
	s.took("/etcdserverpb.KV/Range", 999*time.Millisecond)
	s.took("/etcdserverpb.KV/Put", time.Second)
	s.Close()
	if got := log.b.String(); strings.Count(got, "request stats") != 1 || !strings.Contains(got, "method=/etcdserverpb.KV/Put took=1s") {
		t.Errorf("logged: %s", got)
	}
}
