//go:build !linux

package transport

import (
	"net"
	"time"
)

// ackedWithin is for systems that can bound how long they wait for the other side.
func ackedWithin(net.Conn, time.Duration) {}

// unsentAtMost does nothing here: the system decides how much it takes.
func unsentAtMost(net.Conn, int) {}
