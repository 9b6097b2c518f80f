package telemetry

import (
	"io"
	"sync"
	"time"
)

const (
	// standstill is how long whoever writes waits for it to be done. Then what is written to counts as standing still.
	standstill = time.Second
	// unwrittenMax bounds the bytes that wait to be written meanwhile.
	unwrittenMax = 1 << 20
)

// outlet writes to what may stand still, such as a pipe whose reader reads nothing, without standing still itself: a node must not stop for its log. As long as all is
// well Write returns when it is written, so that nothing is lost if the process ends. The goroutine that writes ends when nothing is left to write.
type outlet struct {
	w io.Writer
	// missing makes the line that says how many were not written; nil says nothing.
	missing func(lines int) []byte

	mu sync.Mutex
	// lines wait to be written, the first is being written, and bytes is what they have together. Guarded by mu.
	lines []*line
	bytes int
	// stands says that nobody waits until lines are empty. unwritten is how many writes were refused meanwhile. Guarded by mu.
	stands    bool
	unwritten int
}

// line is what one call of Write was given. done is closed when it is written, or failed.
type line struct {
	b    []byte
	err  error
	done chan struct{}
}

// Patient returns a writer to w that gives up waiting, and then what it has no room for, if w stands still. What is written meanwhile is written when w goes on.
func Patient(w io.Writer) io.Writer { return &outlet{w: w} }

// Write implements io.Writer.
func (o *outlet) Write(b []byte) (int, error) {
	l := &line{b: append([]byte(nil), b...), done: make(chan struct{})}
	o.mu.Lock()
	if o.bytes > 0 && o.bytes+len(b) > unwrittenMax {
		o.unwritten++
		o.mu.Unlock()
		return len(b), nil
	}
	o.lines, o.bytes = append(o.lines, l), o.bytes+len(b)
	if len(o.lines) == 1 {
		go o.drain(l)
	}
	stands := o.stands
	o.mu.Unlock()
	if stands {
		return len(b), nil
	}
	late := time.NewTimer(standstill) //nolint:forbidigo // what a log goes to is real, and no result depends on it
	defer late.Stop()
	select {
	case <-l.done:
		if l.err != nil {
			return 0, l.err
		}
	case <-late.C:
		o.mu.Lock()
		o.stands = len(o.lines) > 0
		o.mu.Unlock()
	}
	return len(b), nil
}

// drain writes l, and what comes until there is nothing more.
func (o *outlet) drain(l *line) {
	for l != nil {
		_, l.err = o.w.Write(l.b)
		close(l.done)
		l = o.next()
	}
}

// next returns what is to be written after the first line, which is written.
func (o *outlet) next() *line {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bytes -= len(o.lines[0].b)
	o.lines = o.lines[1:]
	if len(o.lines) == 0 && o.unwritten > 0 && o.missing != nil {
		l := &line{b: o.missing(o.unwritten), done: make(chan struct{})}
		o.lines, o.bytes, o.unwritten = append(o.lines, l), len(l.b), 0
	}
	if len(o.lines) == 0 {
		o.stands = false
		return nil
	}
	return o.lines[0]
}
