package redis

import (
	"strconv"
	"strings"
	"time"

	"github.com/quorate/quorate/internal/datatypes"
)

// Connection commands: HELLO, AUTH, PING, ECHO, QUIT, RESET, SELECT, READONLY, READWRITE, ASKING, TIME, WAIT, LOLWUT.
//
// Behaviour: as in Redis, with one user who needs no password.
// Versions: as in Redis 7.0.
// Not supported: passwords; databases other than 0.

const noPassword = "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?"

func cmdHello(c *conn, args [][]byte) {
	proto, name := c.proto, ""
	setName := false
	rest := args[1:]
	if len(rest) > 0 {
		n, ok := datatypes.ParseInt(rest[0])
		if !ok {
			c.fail("ERR Protocol version is not an integer or out of range")
			return
		}
		if n < 2 || n > 3 {
			c.fail("NOPROTO unsupported protocol version")
			return
		}
		proto, rest = int(n), rest[1:]
	}
	for len(rest) > 0 {
		switch {
		case equalFold(rest[0], "auth") && len(rest) > 2:
			c.fail(noPassword)
			return
		case equalFold(rest[0], "setname") && len(rest) > 1:
			name, setName, rest = string(rest[1]), true, rest[2:]
			if !validName(name) {
				c.fail(badName)
				return
			}
		default:
			c.fail("ERR Syntax error in HELLO option '" + string(rest[0]) + "'")
			return
		}
	}
	c.proto = proto
	c.mu.Lock()
	c.shownProto = proto
	if setName {
		c.name = name
	}
	c.mu.Unlock()
	c.mapOf(7)
	c.bulk("server")
	c.bulk("redis")
	c.bulk("version")
	c.bulk(c.s.cfg.RedisVersion)
	c.bulk("proto")
	c.int(int64(proto))
	c.bulk("id")
	c.int(c.id)
	c.bulk("mode")
	c.bulk(c.s.mode())
	c.bulk("role")
	c.bulk("master")
	c.bulk("modules")
	c.array(0)
}

func (s *Server) mode() string {
	if s.cfg.ClusterMode {
		return "cluster"
	}
	return "standalone"
}

func cmdAuth(c *conn, args [][]byte) {
	switch len(args) {
	case 2:
		c.fail(noPassword)
	case 3:
		c.fail("WRONGPASS invalid username-password pair or user is disabled.")
	default:
		c.error(errSyntax())
	}
}

func cmdPing(c *conn, args [][]byte) {
	switch len(args) {
	case 1:
		c.simple("PONG")
	case 2:
		c.bulkBytes(args[1])
	default:
		c.fail("ERR wrong number of arguments for 'ping' command")
	}
}

func cmdEcho(c *conn, args [][]byte) { c.bulkBytes(args[1]) }

func cmdQuit(c *conn, _ [][]byte) {
	c.ok()
	c.closing = true
}

func cmdReset(c *conn, _ [][]byte) {
	c.endMulti()
	c.fence = connFence{}
	c.proto, c.replies, c.cluster, c.readonly = 2, repliesOn, false, false
	c.mu.Lock()
	c.name, c.shownProto = "", 2
	c.mu.Unlock()
	c.simple("RESET")
}

func cmdSelect(c *conn, args [][]byte) {
	n, err := datatypes.ParseInt32(args[1])
	switch {
	case err != nil:
		c.error(err)
	case n != 0:
		c.fail("ERR DB index is out of range: there is database 0 only; tell tenants apart by a prefix of their keys")
	default:
		c.ok()
	}
}

func cmdReadOnly(c *conn, _ [][]byte) {
	c.cluster, c.readonly = c.s.cfg.ClusterMode, true
	c.ok()
}

func cmdReadWrite(c *conn, _ [][]byte) {
	c.cluster, c.readonly = c.s.cfg.ClusterMode, false
	c.ok()
}

func cmdAsking(c *conn, _ [][]byte) {
	c.cluster = c.s.cfg.ClusterMode
	c.ok()
}

func cmdTime(c *conn, _ [][]byte) {
	now := c.s.client.Now()
	c.array(2)
	c.bulk(strconv.FormatInt(now.Unix(), 10))
	c.bulk(strconv.FormatInt(int64(now.Nanosecond()/int(time.Microsecond)), 10))
}

func cmdWait(c *conn, args [][]byte) {
	if _, ok := datatypes.ParseInt(args[1]); !ok {
		c.fail("ERR value is not an integer or out of range")
		return
	}
	timeout, ok := datatypes.ParseInt(args[2])
	if !ok {
		c.fail("ERR timeout is not an integer or out of range")
		return
	}
	if timeout < 0 {
		c.fail("ERR timeout is negative")
		return
	}
	if err := c.place(); err != nil {
		c.error(err)
		return
	}
	// The smallest majority of the space's shards, without the leader. More replicas may have the writes by now, but they
	// are not sure to.
	sure := -1
	for _, id := range c.space.Shards {
		if info, ok := c.topo.Shard(id); ok && (sure < 0 || len(info.Replicas)/2 < sure) {
			sure = len(info.Replicas) / 2
		}
	}
	c.int(int64(max(sure, 0)))
}

func cmdLolwut(c *conn, args [][]byte) {
	if len(args) > 2 && equalFold(args[1], "version") {
		if _, ok := datatypes.ParseInt(args[2]); !ok {
			c.fail("ERR value is not an integer or out of range")
			return
		}
	}
	c.text("Quorate " + c.s.cfg.Version + ", speaking as Redis ver. " + c.s.cfg.RedisVersion + "\n")
}

const badName = "ERR Client names cannot contain spaces, newlines or special characters."

// nameBytesMax bounds what a client may call itself.
const nameBytesMax = 512

func validName(s string) bool {
	return len(s) <= nameBytesMax && strings.IndexFunc(s, func(r rune) bool { return r < '!' || r > '~' }) < 0
}
