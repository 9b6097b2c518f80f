package redis

import (
	"fmt"
	"strings"

	"github.com/quorate/quorate/internal/datatypes"
)

// immediate commands run inside MULTI at once, not at EXEC.
const immediate datatypes.Flags = 1 << 31

const connFlags = datatypes.NoScript | datatypes.Loading | datatypes.Stale | datatypes.Fast

// subcommands are those of a command that is nothing but a name for them.
type subcommands struct {
	// arity counts the arguments of each as Spec.Arity does, the command's name included.
	arity   map[string]int
	refused refusals
}

// wrong says what is wrong with a request of the command, as far as that follows from its subcommand and the number of its arguments.
func (c *command) wrong(args [][]byte) string {
	if !c.ArityOK(len(args)) {
		return c.arityError()
	}
	if c.subs == nil || len(args) == 1 {
		return ""
	}
	sub := subcommand(args)
	if why, ok := c.subs.refused.why(sub); ok {
		return "ERR unsupported command '" + c.Name + "|" + sub + "': " + why
	}
	switch n, ok := c.subs.arity[sub]; {
	case !ok:
		return fmt.Sprintf("ERR unknown subcommand '%.128s'. Try %s HELP.", args[1], strings.ToUpper(c.Name))
	case !(&datatypes.Spec{Arity: n}).ArityOK(len(args)):
		return "ERR wrong number of arguments for '" + c.Name + "|" + sub + "' command"
	}
	return ""
}

// subcommand returns the name of the subcommand; one that is longer than any is cut.
func subcommand(args [][]byte) string {
	return strings.ToLower(string(args[1][:min(len(args[1]), 64)]))
}

// connectionCommands lists what the server answers itself. A new command is one entry here and its handler.
func connectionCommands() []command {
	cmd := func(name string, arity int, flags datatypes.Flags, group, since, args, summary, note string, f func(*conn, [][]byte)) command {
		return command{Spec: datatypes.Spec{
			Name: name, Arity: arity, Flags: flags, Group: group, Since: since, Args: args, Summary: summary, Note: note,
		}, local: f}
	}
	list := []command{
		cmd("hello", -1, connFlags|datatypes.NoAuth, "connection", "6.0.0", "[protover [AUTH username password] [SETNAME clientname]]", "Chooses the protocol version.", "AUTH is refused: there are no passwords yet.", cmdHello),
		cmd("auth", -2, connFlags|datatypes.NoAuth, "connection", "1.0.0", "[username] password", "Authenticates the connection.", "Always refused: there are no passwords yet.", cmdAuth),
		cmd("ping", -1, datatypes.Fast, "connection", "1.0.0", "[message]", "Answers PONG.", "", cmdPing),
		cmd("echo", 2, datatypes.Fast|datatypes.Loading|datatypes.Stale, "connection", "1.0.0", "message", "Answers with the message.", "", cmdEcho),
		cmd("quit", -1, connFlags|datatypes.NoAuth|immediate, "connection", "1.0.0", "", "Closes the connection.", "", cmdQuit),
		cmd("reset", 1, connFlags|datatypes.NoAuth|immediate, "connection", "6.2.0", "", "Resets the connection.", "", cmdReset),
		cmd("select", 2, datatypes.Fast|datatypes.Loading|datatypes.Stale, "connection", "1.0.0", "index", "Chooses a database.", "Database 0 only.", cmdSelect),
		cmd("client", -2, datatypes.NoScript|datatypes.Loading|datatypes.Stale, "connection", "2.4.0", "ID | SETNAME name | GETNAME | SETINFO | INFO | LIST | KILL | REPLY | NO-EVICT | NO-TOUCH", "Handles connections.", "TRACKING, CACHING, PAUSE and UNBLOCK are refused, and REPLY within MULTI.", cmdClient),
		cmd("readonly", 1, datatypes.Fast|datatypes.Loading|datatypes.Stale, "cluster", "3.0.0", "", "Allows reads of this node's replicas.", "Reads still see the connection's own writes. Served without cluster mode, too.", cmdReadOnly),
		cmd("readwrite", 1, datatypes.Fast|datatypes.Loading|datatypes.Stale, "cluster", "3.0.0", "", "Ends READONLY.", "Served without cluster mode, too.", cmdReadWrite),
		cmd("asking", 1, datatypes.Fast, "cluster", "3.0.0", "", "Announces a redirected request.", "Without effect: slots never move while they are served.", cmdAsking),
		cmd("cluster", -2, datatypes.Stale, "cluster", "3.0.0", "SLOTS | SHARDS | NODES | INFO | MYID | KEYSLOT key | COUNTKEYSINSLOT slot | GETKEYSINSLOT slot count", "Tells about the cluster.", "Subcommands that change the cluster are refused.", cmdCluster),

		cmd("multi", 1, connFlags|immediate, "transactions", "1.2.0", "", "Begins a transaction.", "", cmdMulti),
		cmd("exec", 1, datatypes.NoScript|datatypes.Loading|datatypes.Stale|immediate, "transactions", "1.2.0", "", "Runs a transaction.", "All keys in one shard.", cmdExec),
		cmd("discard", 1, connFlags|immediate, "transactions", "2.0.0", "", "Drops a transaction.", "", cmdDiscard),
		cmd("watch", -2, connFlags|immediate, "transactions", "2.2.0", "key [key ...]", "Makes the next EXEC depend on keys.", "All keys in one shard. Seldom, EXEC fails for a missing key that did not change.", cmdWatch),
		cmd("unwatch", 1, connFlags, "transactions", "2.2.0", "", "Forgets the watched keys.", "", cmdUnwatch),

		cmd("fence", -2, datatypes.Write|datatypes.DenyOOM|datatypes.NoScript|datatypes.MovableKeys, "fencing", "", "lock token [command [argument ...]] | OFF", "Lets a command, a transaction or all later writes of the connection be done only while no later holder of a lock is known.", "A command of Quorate: [how to](../howto/fencing.md). The answer to a write under a stale token begins with FENCED.", cmdFence),

		cmd("command", -1, datatypes.Loading|datatypes.Stale, "server", "2.8.13", "[COUNT | INFO | DOCS | LIST | GETKEYS]", "Tells about commands.", "INFO tells of no subcommands, DOCS of no arguments.", cmdCommand),
		cmd("config", -2, datatypes.Admin|datatypes.NoScript|datatypes.Loading|datatypes.Stale, "server", "2.0.0", "GET parameter [parameter ...]", "Tells the configuration.", "SET, REWRITE and RESETSTAT are refused.", cmdConfig),
		cmd("info", -1, datatypes.Loading|datatypes.Stale, "server", "1.0.0", "[section [section ...]]", "Tells about the server.", "Of many keys the numbers are some time old, or missing until they have been counted.", cmdInfo),
		cmd("time", 1, datatypes.Fast|datatypes.Loading|datatypes.Stale, "server", "2.6.0", "", "Returns the time of the node.", "", cmdTime),
		cmd("wait", 3, datatypes.NoScript, "generic", "3.0.0", "numreplicas timeout", "Returns how many replicas surely have the connection's writes.", "A majority has every acknowledged write: the answer is the majority without the leader, at once.", cmdWait),
		cmd("lolwut", -1, datatypes.ReadOnly|datatypes.Fast, "server", "5.0.0", "[VERSION version]", "Shows the version.", "", cmdLolwut),
	}
	for i := range list {
		switch l := &list[i]; l.Name {
		case "watch":
			l.First, l.Last, l.Step = 1, -1, 1
		case "fence":
			// The first key of the command behind it; COMMAND GETKEYS knows all.
			l.First, l.Last, l.Step = 4, 4, 1
		case "client":
			l.subs = &clientSubs
		case "cluster":
			l.subs = &clusterSubs
		case "command":
			l.subs = &commandSubs
		case "config":
			l.subs = &configSubs
		}
	}
	return list
}

// unsupportedCommands lists the commands of Redis that are refused by name, by the reason.
var unsupportedCommands = refusals{
	{"pub/sub is not served; follow a topic or the change log over the Kafka protocol instead",
		"subscribe unsubscribe psubscribe punsubscribe publish pubsub ssubscribe sunsubscribe spublish"},
	{"scripts are not served; use MULTI, which runs in one step", "eval eval_ro evalsha evalsha_ro script function fcall fcall_ro"},
	{"lists are not served yet",
		"lpush rpush lpushx rpushx lpop rpop blpop brpop lrange llen lindex lset linsert lrem ltrim lpos lmove blmove rpoplpush brpoplpush lmpop blmpop"},
	{"sets are not served yet",
		"sadd srem smembers sismember smismember scard spop srandmember smove sinter sinterstore sintercard sunion sunionstore sdiff sdiffstore sscan"},
	{"sorted sets are not served yet",
		"zadd zrem zscore zmscore zcard zcount zincrby zrange zrangestore zrevrange zrangebyscore zrevrangebyscore zrangebylex zrevrangebylex zlexcount zrank zrevrank zremrangebyrank zremrangebyscore zremrangebylex zpopmin zpopmax bzpopmin bzpopmax zmpop bzmpop zinter zinterstore zintercard zunion zunionstore zdiff zdiffstore zscan zrandmember"},
	{"streams are not served; use EVENT.ADD, and the Kafka protocol to read",
		"xadd xlen xrange xrevrange xread xreadgroup xgroup xack xpending xclaim xautoclaim xinfo xtrim xdel xsetid"},
	{"bitmaps are not served yet", "setbit getbit bitcount bitpos bitop bitfield bitfield_ro"},
	{"HyperLogLog is not served", "pfadd pfcount pfmerge pfdebug pfselftest"},
	{"geo commands are not served", "geoadd geodist geohash geopos georadius georadius_ro georadiusbymember georadiusbymember_ro geosearch geosearchstore"},
	{"there is one database", "swapdb move"},
	{"it is not served", "sort sort_ro lcs object dump restore restore-asking memory slowlog latency monitor acl lastsave role waitaof hexpire hpexpire httl"},
	{"every acknowledged write is on the disks of a majority already; snapshots are an administrator's task of Quorate", "save bgsave bgrewriteaof"},
	{"replication is Quorate's own", "sync psync replicaof slaveof replconf failover migrate"},
	{"it is not for clients; use Quorate's own administration", "shutdown debug module sentinel"},
}

// refusals are names of Redis that are refused, by the reason.
type refusals []struct{ why, names string }

// why says why a name is refused, if it is.
func (r refusals) why(name string) (why string, ok bool) {
	for _, u := range r {
		for n := range strings.FieldsSeq(u.names) {
			if n == name {
				return u.why, true
			}
		}
	}
	return "", false
}

// CompatDocument returns docs/compat/redis.md: what is served and what is not, from the tables.
func CompatDocument() string {
	var b strings.Builder
	b.WriteString(`# Redis compatibility

This page is made from the command tables by a test (` + "`go test ./internal/protocol/redis -run TestCompatDocument -rewrite`" + `).

Quorate speaks RESP2 and RESP3 and follows Redis 7.0, tested against it command by command. Every write is on stable
storage of a majority before it is acknowledged, and every read is linearizable unless the client sends READONLY.

## Differences that concern every command

- There is one database, 0. Redis serves the space ` + "`default`" + `; [others](../operations.md#several-etcd-key-spaces) have etcd keys only.
- A key is at most 64 KiB long, a request and a string 8 MiB, an answer 64 MiB.
- Requests that have begun, transactions that are being queued and watched keys have 1 GiB together on a node, beside 64 KiB of each connection. What is more
  gets ` + "`-BUSY`" + `.
- Answers to reads of more than 64 KiB that are being made, or that clients have not taken yet, have 1 GiB together on a node; one for which there is no room is ` + "`-BUSY`" + `.
  Those to writes (EXEC, GETDEL, GETEX, GETSET, SET with GET) have 512 MiB: one for which there is no room is ` + "`-UNKNOWN the request was done`" + `. A client has a minute to
  take each 64 KiB of its answers, and while three quarters of that room are taken, a minute for a large one; then its connection is closed.
- A key expires by the clock of its shard, which the leader stamps into the log.
- ` + "`-UNKNOWN outcome unknown`" + ` says that a write may or may not have been, or may still be, applied, and
  ` + "`-UNKNOWN the request was done`" + ` that it has been. No client library tries it again by itself. ` + "`-CLUSTERDOWN`" + ` and ` + "`-BUSY`" + ` say that nothing was done.
- Keys of one request, and of one transaction, must be on one shard; a space has one unless it was made with more.
- HEADER is the last option of EVENT.ADD: all words behind it are names and values of headers, also KEY, PARTITION and HEADER.
- Every node serves every key. A client that asks for the slot map (CLUSTER SLOTS, SHARDS, NODES) gets MOVED redirections on
  that connection; one that never asks is forwarded.
- To a client that gets redirections, SCAN, KEYS, DBSIZE and RANDOMKEY of a node are about the shards that the node leads, after READONLY
  about those that it holds; they answer ` + "`-CLUSTERDOWN`" + ` while a shard has no known leader. FLUSHALL and FLUSHDB on any node remove
  all keys of the space. A shard whose leadership goes to another node while such a client scans node after node may be missed, or come
  twice: who needs every key scans without asking for the slot map, or all nodes once more.

## Commands

`)
	group := ""
	all := datatypes.Commands()
	for _, c := range connectionCommands() {
		all = append(all, c.Spec)
	}
	for _, g := range groupsOf(all) {
		if group != g {
			group = g
			fmt.Fprintf(&b, "### %s\n\n| command | arguments | what it does | differences |\n|---|---|---|---|\n", g)
		}
		for _, s := range all {
			if s.Group == g {
				args := strings.ReplaceAll(s.Args, "|", `\|`)
				if args != "" {
					args = "`" + args + "`"
				}
				fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", strings.ToUpper(s.Name), args, s.Summary, s.Note)
			}
		}
		b.WriteString("\n")
	}
	b.WriteString("## Refused by name\n\n")
	for _, u := range unsupportedCommands {
		fmt.Fprintf(&b, "- %s: %s.\n", strings.Join(strings.Fields(strings.ToUpper(u.names)), ", "), u.why)
	}
	return b.String()
}

func groupsOf(all []datatypes.Spec) []string {
	var groups []string
	seen := map[string]bool{}
	for _, s := range all {
		if !seen[s.Group] {
			seen[s.Group] = true
			groups = append(groups, s.Group)
		}
	}
	return groups
}
