package telemetry

import (
	"sync"
	"time"
)

// Seldom bounds how often a line is logged, so that nobody can fill the log with it. The zero value has logged nothing yet. Its methods may be called
// from any goroutine.
type Seldom struct {
	mu sync.Mutex
	// at is when it was, unsaid how often it was not since. Guarded by mu.
	at     time.Time
	unsaid int
}

// Say returns whether to log the line: not if it was within every before now. unsaid is how often it was not logged since.
func (q *Seldom) Say(now time.Time, every time.Duration) (unsaid int, say bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.at.IsZero() && now.Sub(q.at) < every {
		q.unsaid++
		return 0, false
	}
	unsaid, q.at, q.unsaid = q.unsaid, now, 0
	return unsaid, true
}

// News makes the next call of Say log the line, whenever that is: it says something else.
func (q *Seldom) News() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.at = time.Time{}
}

// Unsaid returns how often the line was not logged since it was.
func (q *Seldom) Unsaid() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.unsaid
}
