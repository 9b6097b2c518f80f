//go:build !unix

package redis

func (c *conn) lends() bool { return false }

func (c *conn) writeSome() bool { return false }
