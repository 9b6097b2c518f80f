package rpc

import (
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A client that does not take what it is sent holds memory: the message, and whatever else its handler counts until the call has ended. So each
// pieceBytes of a message, and what is left of it at the end, has Config.SendTimeout to find room at the client. Three things may lack:
//
//   - the stream's window, which is a matter of the call: it is ended;
//   - the connection's window, which all calls share: the connection is ended;
//   - room in the socket: likewise, by a deadline for each piece that is written.
//
// A client that takes just that much could hold a large message for days, though. While there is little room for others (Config.Scarce), it may not wait
// for longer in all.
//
// Waiting for the turn of other calls counts for nothing, and neither do streams that have nothing to send.

// pieceBytes is how much of a message a client has to take within Config.SendTimeout.
const pieceBytes = 64 << 10

// patience is how long a message has waited for its client.
type patience struct {
	// own is how long the present piece waited for the stream's window, and left how much of it is to be sent.
	own  time.Duration
	left int
	// all is how long the message waited for the connection, since that had moved as many bytes as moved says.
	all   time.Duration
	moved int64
	// large says that the message is, and total is how long it has waited for anything.
	large bool
	total time.Duration
}

// newPatience is for a message of n bytes.
func (c *conn) newPatience(n int) patience {
	return patience{left: pieceBytes, moved: c.moved, large: n >= c.s.cfg.LargeBytes}
}

// sent notes that n bytes of the message were sent.
func (p *patience) sent(n int) {
	if p.left -= n; p.left <= 0 {
		p.own, p.left = 0, pieceBytes
	}
}

// rest is how long a stream may go on to wait for what it lacks now.
func (p *patience) rest(st *stream) time.Duration {
	if st.send <= 0 {
		return st.c.s.cfg.SendTimeout - p.own
	}
	return st.c.s.cfg.SendTimeout - p.all
}

// waited notes that a stream has waited, for its own window or for the connection, and says whether that was too long. conn.mu is held.
func (p *patience) waited(st *stream, own bool, d time.Duration) error {
	c := st.c
	if p.total += d; p.large && p.total >= c.s.cfg.SendTimeout && c.s.cfg.Scarce != nil && c.s.cfg.Scarce() {
		return status.Errorf(codes.Unavailable, "the client has not taken this answer within %v, and others want room; ask for less at a time", c.s.cfg.SendTimeout)
	}
	if own {
		if p.own += d; p.own < c.s.cfg.SendTimeout {
			return nil
		}
		return status.Errorf(codes.Unavailable, "the client took less than %d bytes of this answer in %v", pieceBytes, c.s.cfg.SendTimeout)
	}
	if p.all += d; p.all < c.s.cfg.SendTimeout {
		return nil
	}
	if c.window > 0 || c.moved-p.moved >= pieceBytes {
		p.all, p.moved = 0, c.moved
		return nil
	}
	c.hangUp(http2.ErrCodeEnhanceYourCalm, "the client takes no more data")
	return errEnded
}

// transmit writes what is to be written. Each piece has a time in which the client must take it.
func (c *conn) transmit(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), pieceBytes)
		c.mu.Lock()
		c.moved += int64(n)
		// To set a deadline costs more than to see that there is a good one.
		if now := time.Now(); !c.finished && c.until.Sub(now) < c.s.cfg.SendTimeout {
			c.until = now.Add(c.s.cfg.SendTimeout * 5 / 4)
			_ = c.nc.SetWriteDeadline(c.until)
		}
		c.mu.Unlock()
		if _, err := c.nc.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
