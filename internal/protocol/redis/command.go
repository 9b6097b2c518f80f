package redis

import (
	"fmt"
	"slices"
	"strings"

	"github.com/quorate/quorate/internal/datatypes"
)

// COMMAND | COMMAND COUNT | INFO | DOCS | LIST | GETKEYS
//
// Behaviour: made from the tables, so that cluster clients route every command right, EVENT.ADD included.
// Versions: the answers have the form of Redis 7.0.
// Not supported: GETKEYSANDFLAGS; subcommands in INFO and DOCS, arguments in DOCS; LIST FILTERBY MODULE matches nothing.

var commandSubs = subcommands{arity: map[string]int{"count": 2, "info": -2, "docs": -2, "list": -2, "getkeys": -4, "help": 2}}

func cmdCommand(c *conn, args [][]byte) {
	if len(args) == 1 {
		c.array(len(c.s.list))
		for _, cmd := range c.s.list {
			c.commandInfo(cmd)
		}
		return
	}
	sub := subcommand(args)
	if (sub == "info" || sub == "docs") && len(args)-2 > commandNamesMax {
		c.fail(fmt.Sprintf("ERR COMMAND %s of %d names; at most %d may be asked for at once", strings.ToUpper(sub), len(args)-2, commandNamesMax))
		return
	}
	switch sub {
	case "count":
		c.int(int64(len(c.s.list)))
	case "info":
		c.named(args[2:], func(cmd *command) { c.commandInfo(cmd) })
	case "docs":
		c.commandDocs(args[2:])
	case "list":
		c.commandList(args[2:])
	case "getkeys":
		c.getKeys(args[2:])
	case "help":
		c.helpText("COMMAND", "(no subcommand)", "COUNT", "INFO [<command-name> ...]", "DOCS [<command-name> ...]", "LIST [FILTERBY (ACLCAT <category> | PATTERN <pattern>)]", "GETKEYS <full-command>")
	}
}

// commandNamesMax bounds the commands that COMMAND INFO and COMMAND DOCS are asked for at once: a name costs little, and its answer much.
const commandNamesMax = 1024

// named answers with an array: f of each named command or null, or of all commands if none is named.
func (c *conn) named(names [][]byte, f func(*command)) {
	if len(names) == 0 {
		c.array(len(c.s.list))
		for _, cmd := range c.s.list {
			f(cmd)
		}
		return
	}
	c.array(len(names))
	for _, n := range names {
		if cmd := c.s.find(n); cmd != nil {
			f(cmd)
		} else {
			c.null()
		}
	}
}

func flagNames(f datatypes.Flags) []string {
	var names []string
	for _, n := range []struct {
		f    datatypes.Flags
		name string
	}{
		{datatypes.Write, "write"}, {datatypes.ReadOnly, "readonly"}, {datatypes.DenyOOM, "denyoom"}, {datatypes.Admin, "admin"},
		{datatypes.NoScript, "noscript"}, {datatypes.Blocking, "blocking"}, {datatypes.Loading, "loading"},
		{datatypes.Stale, "stale"}, {datatypes.Fast, "fast"}, {datatypes.NoAuth, "no_auth"}, {datatypes.MovableKeys, "movablekeys"},
	} {
		if f&n.f != 0 {
			names = append(names, n.name)
		}
	}
	return names
}

func categories(s *datatypes.Spec) []string {
	var cats []string
	add := func(yes bool, name string) {
		if yes {
			cats = append(cats, "@"+name)
		}
	}
	add(s.Flags&datatypes.Keyspace != 0, "keyspace")
	add(s.Flags&datatypes.Write != 0, "write")
	add(s.Flags&datatypes.ReadOnly != 0, "read")
	add(s.Group == "string", "string")
	add(s.Group == "hash", "hash")
	add(s.Group == "connection" || s.Group == "cluster" || s.Name == "command" || s.Name == "wait", "connection")
	add(s.Group == "transactions", "transaction")
	add(s.Flags&datatypes.Admin != 0, "admin")
	add(s.Flags&(datatypes.Dangerous|datatypes.Admin) != 0 || s.Name == "info", "dangerous")
	add(s.Flags&datatypes.Fast != 0, "fast")
	add(s.Flags&datatypes.Fast == 0, "slow")
	return cats
}

func (c *conn) commandInfo(cmd *command) {
	s, h := &cmd.Spec, hintsOf[cmd.Name]
	c.array(10)
	c.bulk(s.Name)
	c.int(int64(s.Arity))
	c.words(append(flagNames(s.Flags), strings.Fields(h.flags)...))
	c.int(int64(s.First))
	c.int(int64(s.Last))
	c.int(int64(s.Step))
	c.words(categories(s))
	c.tips(&h)
	c.keySpecs(s, &h)
	c.setOf(0)
}

// words answers with a set of simple strings.
func (c *conn) words(list []string) {
	c.setOf(len(list))
	for _, n := range list {
		c.simple(n)
	}
}

func (c *conn) commandDocs(names [][]byte) {
	var cmds []*command
	if len(names) == 0 {
		cmds = c.s.list
	}
	for _, n := range names {
		if cmd := c.s.find(n); cmd != nil {
			cmds = append(cmds, cmd)
		}
	}
	c.mapOf(len(cmds))
	for _, cmd := range cmds {
		c.bulk(cmd.Name)
		c.mapOf(3)
		c.bulk("summary")
		c.bulk(cmd.Summary)
		c.bulk("since")
		c.bulk(cmd.Since)
		c.bulk("group")
		c.bulk(cmd.Group)
	}
}

func (c *conn) commandList(args [][]byte) {
	keep := func(*command) bool { return true }
	switch {
	case len(args) == 0:
	case len(args) == 3 && equalFold(args[0], "filterby") && equalFold(args[1], "aclcat"):
		keep = func(cmd *command) bool {
			return slices.Contains(categories(&cmd.Spec), "@"+strings.ToLower(string(args[2])))
		}
	case len(args) == 3 && equalFold(args[0], "filterby") && equalFold(args[1], "pattern") && len(args[2]) <= 256:
		pattern := []byte(strings.ToLower(string(args[2])))
		keep = func(cmd *command) bool { return datatypes.Match(pattern, []byte(cmd.Name)) }
	case len(args) == 3 && equalFold(args[0], "filterby") && equalFold(args[1], "module"):
		keep = func(*command) bool { return false }
	default:
		c.error(errSyntax())
		return
	}
	var names []string
	for _, cmd := range c.s.list {
		if keep(cmd) {
			names = append(names, cmd.Name)
		}
	}
	c.array(len(names))
	for _, n := range names {
		c.bulk(n)
	}
}

func (c *conn) getKeys(args [][]byte) {
	cmd := c.s.find(args[0])
	if cmd != nil && cmd.Name == "fence" && len(args) > 3 {
		args = args[3:]
		cmd = c.s.find(args[0])
	}
	switch {
	case cmd == nil:
		c.fail("ERR Invalid command specified")
		return
	case cmd.First == 0 || cmd.Name == "fence":
		c.fail("ERR The command has no key arguments")
		return
	case !cmd.ArityOK(len(args)):
		c.fail("ERR Invalid number of arguments specified for command")
		return
	}
	at := slices.Collect(cmd.Keys(len(args)))
	c.array(len(at))
	for _, i := range at {
		c.bulkBytes(args[i])
	}
}
