package transport

import (
	"net"
	"syscall"
	"time"
)

// tcpUserTimeout is TCP_USER_TIMEOUT of tcp(7), which package syscall leaves out.
const tcpUserTimeout = 0x12

// ackedWithin has the system end a connection when the other side has confirmed nothing of what was sent for so long. The system would try again for
// a quarter of an hour, each time after a longer pause, so that a network that was away for a minute is found to be back after another one.
func ackedWithin(c net.Conn, limit time.Duration) {
	sc, ok := plain(c).(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := sc.SyscallConn(); err == nil {
		// A unix socket has no such option, and no need of it.
		_ = raw.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(limit.Milliseconds()))
		})
	}
}
