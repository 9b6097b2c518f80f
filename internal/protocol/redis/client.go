package redis

import (
	"fmt"
	"slices"
	"strings"

	"github.com/quorate/quorate/internal/datatypes"
)

// CLIENT ID | SETNAME | GETNAME | SETINFO | INFO | LIST | KILL | REPLY | NO-EVICT | NO-TOUCH | GETREDIR | HELP
//
// Behaviour: as in Redis. NO-EVICT and NO-TOUCH are accepted: there is neither eviction nor an access time.
// Versions: as in Redis 7.0; SETINFO and NO-TOUCH as in 7.2, since client libraries send them.
// Not supported: TRACKING, TRACKINGINFO, CACHING, PAUSE, UNPAUSE, UNBLOCK, by name.

var clientSubs = subcommands{
	arity: map[string]int{"id": 2, "setname": 3, "getname": 2, "setinfo": 4, "info": 2, "list": -2, "kill": -3, "reply": 3, "no-evict": 3, "no-touch": 3, "getredir": 2, "help": 2},
	refused: refusals{
		{"client-side caching is not served; follow the change log over the Kafka protocol instead", "tracking trackinginfo caching"},
		{"it is not served", "pause unpause unblock"},
	},
}

func cmdClient(c *conn, args [][]byte) {
	switch subcommand(args) {
	case "id":
		c.int(c.id)
	case "setname":
		if !validName(string(args[2])) {
			c.fail(badName)
			return
		}
		c.mu.Lock()
		c.name = string(args[2])
		c.mu.Unlock()
		c.ok()
	case "getname":
		c.mu.Lock()
		name := c.name
		c.mu.Unlock()
		if name == "" {
			c.null()
			return
		}
		c.bulk(name)
	case "setinfo":
		c.setInfo(args[2], string(args[3]))
	case "info":
		c.text(c.describe() + "\n")
	case "list":
		c.clientList(args[2:])
	case "kill":
		c.clientKill(args[2:])
	case "reply":
		c.clientReply(args[2])
	case "no-evict", "no-touch":
		if !equalFold(args[2], "on") && !equalFold(args[2], "off") {
			c.error(errSyntax())
			return
		}
		c.ok()
	case "getredir":
		c.int(-1)
	case "help":
		c.helpText("CLIENT", "ID | SETNAME <name> | GETNAME | SETINFO <option> <value> | INFO", "LIST [TYPE <type>] [ID <id> ...]", "KILL <addr> | KILL ID <id> | ADDR <addr> | LADDR <addr> | TYPE <type> | SKIPME <yes|no> ...", "REPLY ON|OFF|SKIP", "NO-EVICT ON|OFF | NO-TOUCH ON|OFF")
	}
}

func (c *conn) helpText(name string, lines ...string) {
	c.array(len(lines) + 1)
	c.simple(name + " <subcommand> [<arg> [value] [opt] ...]. Subcommands are:")
	for _, l := range lines {
		c.simple(l)
	}
}

func (c *conn) setInfo(option []byte, value string) {
	if !validName(value) {
		c.fail("ERR " + strings.ToLower(string(option[:min(len(option), 64)])) + " cannot contain spaces, newlines or special characters.")
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case equalFold(option, "lib-name"):
		c.libName = value
	case equalFold(option, "lib-ver"):
		c.libVer = value
	default:
		c.fail("ERR Unrecognized option '" + string(option) + "'")
		return
	}
	c.ok()
}

// describe returns the connection's line of CLIENT LIST. It may be called from any goroutine.
func (c *conn) describe() string {
	c.mu.Lock()
	name, lib, ver, proto := c.name, c.libName, c.libVer, c.shownProto
	c.mu.Unlock()
	cmd := "NULL"
	if l := c.last.Load(); l != nil {
		cmd = l.Name
	}
	idle := int64(c.s.tickEvery.Seconds() * float64(c.s.tick.Load()-c.lastRead.Load()))
	multi, flags := -1, "N"
	if n := c.queued.Load(); n > 0 {
		multi, flags = int(n), "x"
	}
	return fmt.Sprintf("id=%d addr=%s laddr=%s fd=0 name=%s age=%d idle=%d flags=%s db=0 sub=0 psub=0 ssub=0 multi=%d cmd=%s user=default redir=-1 resp=%d lib-name=%s lib-ver=%s",
		c.id, c.addr, c.nc.LocalAddr(), name, int64(c.s.client.Now().Sub(c.born).Seconds()), max(idle, 0), flags, multi, cmd, proto, lib, ver)
}

// all returns the open connections by age.
func (s *Server) all() []*conn {
	list := s.conns.Open()
	slices.SortFunc(list, func(a, b *conn) int { return int(a.id - b.id) })
	return list
}

func (c *conn) clientList(args [][]byte) {
	ids := map[int64]bool{}
	none := false
	switch {
	case len(args) == 0:
	case len(args) == 2 && equalFold(args[0], "type"):
		switch strings.ToLower(string(args[1][:min(len(args[1]), 16)])) {
		case "normal":
		case "master", "replica", "slave", "pubsub":
			none = true
		default:
			c.fail("ERR Unknown client type '" + string(args[1]) + "'")
			return
		}
	case len(args) > 1 && equalFold(args[0], "id"):
		for _, a := range args[1:] {
			id, ok := datatypes.ParseInt(a)
			if !ok {
				c.fail("ERR Invalid client ID")
				return
			}
			ids[id] = true
		}
	default:
		c.error(errSyntax())
		return
	}
	var b strings.Builder
	for _, o := range c.s.all() {
		if !none && (len(ids) == 0 || ids[o.id]) {
			b.WriteString(o.describe() + "\n")
		}
	}
	c.text(b.String())
}

// clientKill closes connections: CLIENT KILL addr, or with filters.
func (c *conn) clientKill(args [][]byte) {
	// Of an option that comes again the last counts, as in Redis.
	var want struct {
		id                int64
		hasAddr, hasLaddr bool
		addr, laddr       string
		nobody            bool
	}
	skipMe, old := true, len(args) == 1
	if old {
		skipMe, want.hasAddr, want.addr, args = false, true, string(args[0]), nil
	}
	for ; len(args) > 0; args = args[2:] {
		if len(args) == 1 {
			c.error(errSyntax())
			return
		}
		v := string(args[1])
		switch strings.ToLower(string(args[0][:min(len(args[0]), 16)])) {
		case "id":
			id, ok := datatypes.ParseInt(args[1])
			if !ok || id < 1 {
				c.fail("ERR client-id should be greater than 0")
				return
			}
			want.id = id
		case "addr":
			want.hasAddr, want.addr = true, v
		case "laddr":
			want.hasLaddr, want.laddr = true, v
		case "type":
			switch strings.ToLower(v) {
			case "normal":
				want.nobody = false
			case "master", "replica", "slave", "pubsub":
				want.nobody = true
			default:
				c.fail("ERR Unknown client type '" + v + "'")
				return
			}
		case "user":
			if v != "default" {
				c.fail("ERR No such user '" + v + "'")
				return
			}
		case "skipme":
			switch strings.ToLower(v) {
			case "yes":
				skipMe = true
			case "no":
				skipMe = false
			default:
				c.error(errSyntax())
				return
			}
		default:
			c.error(errSyntax())
			return
		}
	}
	match := func(o *conn) bool {
		return !want.nobody && (want.id == 0 || o.id == want.id) && (!want.hasAddr || o.addr == want.addr) &&
			(!want.hasLaddr || o.nc.LocalAddr().String() == want.laddr) && (o != c || !skipMe)
	}
	n := int64(0)
	for _, o := range c.s.all() {
		if !match(o) {
			continue
		}
		n++
		if o == c {
			c.closing = true
			continue
		}
		o.wake(wakeKilled)
	}
	switch {
	case !old:
		c.int(n)
	case n == 0:
		c.fail("ERR No such client")
	default:
		c.ok()
	}
}

func (c *conn) clientReply(mode []byte) {
	switch {
	case equalFold(mode, "on"):
		c.replies, c.mute = repliesOn, false
		c.ok()
	case equalFold(mode, "off"):
		c.replies = repliesOff
	case equalFold(mode, "skip"):
		if c.replies != repliesOff {
			c.replies = repliesSkip
		}
	default:
		c.error(errSyntax())
	}
}
