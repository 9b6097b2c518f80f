package rpc

import (
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A request that has begun and does not go on holds memory, and no handler looks after it. So each has Config.RequestTimeout to arrive, or what its call
// has by grpc-timeout, if that is less. Most arrive at once: only a connection that is about to wait for the rest of one begins to look at the time, once in
// a while, until there is none.

// A connection looks at its unfinished requests sweepEvery, or in a part of their time if that is less.
const (
	sweepEvery = time.Second
	sweepsMin  = 4
)

// awaitLocked notes whether a request of the stream has begun and not ended. stream.in is held.
func (st *stream) awaitLocked(awaited bool) {
	if st.awaited != awaited {
		st.awaited, st.sweeps = awaited, 0
		if awaited {
			st.c.awaited.Add(1)
		} else {
			st.c.awaited.Add(-1)
		}
	}
}

// sweep has requests that take too long to arrive ended. It is for the goroutine that reads.
func (c *conn) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.sweeping && !c.finished {
		c.sweeping = true
		c.helpers.Go(c.sweepAll)
	}
}

func (c *conn) sweepAll() {
	every := max(min(c.s.cfg.RequestTimeout/sweepsMin, sweepEvery), time.Millisecond)
	most := int(c.s.cfg.RequestTimeout / every)
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-c.ctx.Done():
			return
		}
		c.mu.Lock()
		if c.awaited.Load() == 0 {
			c.sweeping = false
			c.mu.Unlock()
			return
		}
		open := make([]*stream, 0, len(c.streams))
		for _, st := range c.streams {
			open = append(open, st)
		}
		c.mu.Unlock()
		for _, st := range open {
			st.sweep(most)
		}
	}
}

// sweep ends the call if its request has been seen to be unfinished for most times already, or its time is over.
func (st *stream) sweep(most int) {
	st.in.Lock()
	// What a server that stops cancels is no matter of time.
	late := st.awaited && st.Err() != nil && !st.c.cut.Load()
	var err error
	if late {
		err = status.FromContextError(st.Err()).Err()
	} else if st.awaited {
		if st.sweeps++; st.sweeps > most {
			late = true
			err = status.Errorf(codes.Unavailable, "the request has not arrived within %v; it was not looked at", st.c.s.cfg.RequestTimeout)
		}
	}
	begins := false
	if late {
		st.awaitLocked(false)
		if st.arrived != nil {
			st.failed = err
		} else if begins = st.begun.CompareAndSwap(false, true); begins {
			st.refusal = err
		}
	}
	st.in.Unlock()
	switch {
	case begins:
		st.c.begin(st)
	case late && st.arrived != nil:
		select {
		case st.arrived <- struct{}{}:
		default:
		}
	}
}
