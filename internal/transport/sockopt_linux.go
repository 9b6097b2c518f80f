package transport

import (
	"net"
	"syscall"
	"time"
)

// Options of tcp(7) that package syscall leaves out: TCP_USER_TIMEOUT and TCP_NOTSENT_LOWAT.
const (
	tcpUserTimeout  = 0x12
	tcpNotsentLowat = 0x19
)

// ackedWithin has the system end a connection when the other side has confirmed nothing of what was sent for so long. The system would try again for
// a quarter of an hour, each time after a longer pause, so that a network that was away for a minute is found to be back after another one.
func ackedWithin(c net.Conn, limit time.Duration) {
	setTCP(c, tcpUserTimeout, int(limit.Milliseconds()))
}

// unsentAtMost has the system take no more than about so many bytes that it cannot send yet. It would take some MiB, and a connection would look free on which a
// second's worth of a slow network waits.
func unsentAtMost(c net.Conn, bytes int) { setTCP(c, tcpNotsentLowat, bytes) }

// setTCP sets an option. A unix socket has none of them, and no need of them.
func setTCP(c net.Conn, option, value int) {
	sc, ok := plain(c).(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := sc.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, option, value) })
	}
}
