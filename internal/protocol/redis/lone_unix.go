//go:build unix

package redis

import (
	"errors"
	"net"
	"syscall"
)

// socket returns how others than a connection's goroutine write to it, nil if they cannot: with TLS only one may.
func socket(nc net.Conn) syscall.RawConn {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// writeNow writes the answers out, and says whether there was room for all of them. What is left stays in out. The connection must not be closed
// meanwhile.
func (c *conn) writeNow(fd int) bool {
	for len(c.out) > 0 {
		n, err := syscall.Write(fd, c.out)
		switch {
		case err == nil:
			c.written(n)
		case !errors.Is(err, syscall.EINTR):
			return false
		}
	}
	return true
}

// writeSome is writeNow for a connection that may be closed, which is then as one that has no room: a write that waits will find it.
func (c *conn) writeSome() bool {
	all := false
	_ = c.sock.Write(func(fd uintptr) bool {
		all = c.writeNow(int(fd))
		return true
	})
	return all
}
