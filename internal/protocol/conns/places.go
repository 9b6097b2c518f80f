package conns

import "sync/atomic"

// Places bounds how many connections of several servers are open together: each takes a file descriptor, and a node needs some for itself. Its methods may be
// called from any goroutine. A nil one bounds nothing.
type Places struct {
	max   int64
	taken atomic.Int64
}

// NewPlaces returns room for so many connections.
func NewPlaces(max int) *Places { return &Places{max: int64(max)} }

// take reports false, and takes nothing, if no place is left.
func (p *Places) take() bool {
	if p == nil || p.taken.Add(1) <= p.max {
		return true
	}
	p.taken.Add(-1)
	return false
}

func (p *Places) give() {
	if p != nil {
		p.taken.Add(-1)
	}
}
