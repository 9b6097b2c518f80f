//go:build !linux

package redis

// Gatherers need epoll; elsewhere each connection's goroutine serves it alone.

type gatherers struct{}

func (*gatherers) close() {}

type gathering struct{}

func (*gathering) end() {}

func (c *conn) gather() bool {
	c.lone = 0
	return false
}
