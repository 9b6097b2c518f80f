package rpc

import (
	"io"
	"maps"
	"math"
	"slices"
	"time"

	"golang.org/x/net/http2"
)

// A connection ends in one of three ways. The client ends it. It is hung up, since the client does not keep to the protocol or takes nothing. Or
// the server closes (RFC 9113, section 6.8): it says that it will, answers what is under way when the client has heard that, says which was the
// last call, and ends the connection behind the last answer. Clients go elsewhere meanwhile, and none of their calls fails.

// The data of pings.
var (
	stillThere = [8]byte{}
	leavePing  = [8]byte{'l', 'e', 'a', 'v', 'i', 'n', 'g'}
)

// leaving is how far a connection is with its end. It is guarded by conn.mu, but for inside, which does not change.
type leaving struct {
	// greeted says that the client was sent the settings, told that the server closes, and final which was the last call that is served.
	greeted, told, final bool
	// parted says that the client was told that there is nothing more to come.
	parted bool
	// inside says that the client is this process, and ends the connection itself.
	inside bool
}

// greet begins the connection.
func (c *conn) greet() {
	c.settings()
	c.greeted = true
}

// leave tells the client that the server closes.
func (c *conn) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.inside, c.told, c.finished:
	case !c.greeted:
		// It has asked nothing yet.
		_ = c.nc.Close()
	default:
		c.told = true
		c.goAway(math.MaxInt32, http2.ErrCodeNo, "")
		// What it had sent before it heard of that is here when it has answered this.
		c.sendPing(leavePing)
	}
}

// heardPong takes in the answer to a ping.
func (c *conn) heardPong(data [8]byte) {
	if data != leavePing {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastCall()
}

// lastCall tells the client which was the last call that is served. conn.mu is held.
func (c *conn) lastCall() {
	if !c.told || c.final || c.finished {
		return
	}
	c.final = true
	c.goAway(c.last.Load(), http2.ErrCodeNo, "")
	c.depart()
}

// depart ends a connection of a server that closes when its last call has ended. conn.mu is held.
func (c *conn) depart() {
	if c.final && len(c.streams) == 0 && !c.finished {
		c.parted = true
		c.finish()
	}
}

// stop cancels all calls.
func (c *conn) stop() {
	c.cut.Store(true)
	c.mu.Lock()
	c.lastCall()
	open := slices.Collect(maps.Values(c.streams))
	c.mu.Unlock()
	c.cancel()
	for _, st := range open {
		st.stop()
	}
}

// stop answers a call that no handler answers, since its request is not complete.
func (st *stream) stop() {
	st.in.Lock()
	// One that is being opened is not awaited yet: who opens it stops it.
	begins := st.awaited && st.begun.CompareAndSwap(false, true)
	if begins {
		st.awaitLocked(false)
		st.refusal = st.c.s.cfg.Stopped
	}
	st.in.Unlock()
	if begins {
		st.c.begin(st)
	}
}

// hangUp ends a connection for a reason that the client is told. conn.mu is held.
func (c *conn) hangUp(code http2.ErrCode, why string) {
	if !c.finished {
		c.goAway(c.last.Load(), code, why)
		c.parted = true
		c.finish()
		c.cancel()
	}
}

// finish lets the goroutine that writes end when everything is written. conn.mu is held.
func (c *conn) finish() {
	c.finished = true
	c.more.Signal()
	c.less.Signal()
	_ = c.nc.SetWriteDeadline(time.Now().Add(lastWords))
}

// hush says that nothing more is written, and lets the goroutine that reads end when the client has ended the connection as well, or soon. A
// connection that is closed while it has unread bytes is reset, and a client may lose what it was told last.
func (c *conn) hush() {
	_ = c.nc.SetReadDeadline(time.Now().Add(lastWords))
	if half, ok := c.nc.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		_ = c.nc.Close()
	}
}

// linger reads what a client still says that was told of the end.
func (c *conn) linger() {
	c.mu.Lock()
	parted := c.parted
	c.mu.Unlock()
	if parted {
		_, _ = io.Copy(io.Discard, c.nc)
	}
}
