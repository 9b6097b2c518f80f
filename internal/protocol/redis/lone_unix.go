//go:build unix

package redis

import (
	"errors"
	"syscall"
)

// lends says whether others may write the connection's answers.
func (c *conn) lends() bool {
	if c.sock == nil && !c.keeps {
		sc, ok := c.nc.(syscall.Conn)
		if ok {
			c.sock, _ = sc.SyscallConn()
		}
		// With TLS only its goroutine can.
		c.keeps = c.sock == nil
	}
	return !c.keeps
}

// writeSome writes the answers out, and says whether all of them went. What is left stays in out: there was no room, or the connection is
// broken, which a write that waits will find.
func (c *conn) writeSome() bool {
	n := 0
	err := c.sock.Write(func(fd uintptr) bool {
		for n < len(c.out) {
			m, err := syscall.Write(int(fd), c.out[n:])
			switch {
			case errors.Is(err, syscall.EINTR):
			case err != nil:
				return true
			default:
				n += m
			}
		}
		return true
	})
	if err == nil && n > 0 {
		c.written(n)
	}
	return len(c.out) == 0
}
