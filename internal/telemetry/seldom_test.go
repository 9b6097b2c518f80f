package telemetry

import (
	"testing"
	"time"
)

func TestSeldom(t *testing.T) {
	var q Seldom
	at := time.Unix(1_700_000_000, 0)
	for i, c := range []struct {
		after  time.Duration
		unsaid int
		say    bool
	}{{0, 0, true}, {time.Second, 0, false}, {59 * time.Second, 0, false}, {60 * time.Second, 2, true}, {61 * time.Second, 0, false}, {121 * time.Second, 1, true}} {
		if unsaid, say := q.Say(at.Add(c.after), time.Minute); unsaid != c.unsaid || say != c.say {
			t.Errorf("%d: %d %v, want %d %v", i, unsaid, say, c.unsaid, c.say)
		}
	}
}

func TestSeldom_NewsIsLoggedAtOnce(t *testing.T) {
	var q Seldom
	at := time.Unix(1_700_000_000, 0)
	q.Say(at, time.Minute)
	q.Say(at, time.Minute)
	q.News()
	if unsaid, say := q.Say(at, time.Minute); unsaid != 1 || !say {
		t.Errorf("%d %v, want 1 true", unsaid, say)
	}
}
