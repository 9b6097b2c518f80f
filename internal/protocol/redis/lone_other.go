//go:build !unix

package redis

import (
	"net"
	"syscall"
)

func socket(net.Conn) syscall.RawConn { return nil }

func (c *conn) writeSome() bool { return false }
