package datatypes

import "slices"

// Flags say what a command does, in Redis' words (COMMAND INFO).
type Flags uint32

// The flags. Those after NoAuth are not shown by COMMAND as flags.
const (
	Write Flags = 1 << iota
	ReadOnly
	DenyOOM
	Admin
	NoScript
	Blocking
	Loading
	Stale
	Fast
	NoAuth
	// Dangerous and Keyspace add an ACL category.
	Dangerous
	Keyspace
	// EveryShard commands have no key and concern all shards of a space.
	EveryShard
	// MovableKeys commands have keys where First, Last and Step do not say.
	MovableKeys
)

// Spec describes a command: what COMMAND tells clients, and how it is run.
type Spec struct {
	// Name is in lower case.
	Name string
	// Arity counts the arguments with the name; a negative number is a minimum.
	Arity int
	Flags Flags
	// First, Last and Step say which arguments are keys, counted from the name as 0; Last -1 is the last argument.
	First, Last, Step int
	// Op is the number in the log, 0 for a command that the protocol server answers itself.
	Op Op
	// Group, Since and Summary are shown by COMMAND DOCS and in docs/compat/redis.md; Args is the syntax.
	Group, Since, Args, Summary string
	// Note names what differs from Redis 7.0.
	Note string

	run func(c *call) error
}

// Ops of the log. Append only: see TestOps.
const (
	opEventAdd Op = 3

	opSet         Op = 16
	opGet         Op = 17
	opGetSet      Op = 18
	opGetDel      Op = 19
	opGetEx       Op = 20
	opSetNX       Op = 21
	opSetEx       Op = 22
	opPSetEx      Op = 23
	opMSet        Op = 24
	opMSetNX      Op = 25
	opMGet        Op = 26
	opAppend      Op = 27
	opStrLen      Op = 28
	opGetRange    Op = 29
	opSubStr      Op = 30
	opSetRange    Op = 31
	opIncr        Op = 32
	opDecr        Op = 33
	opIncrBy      Op = 34
	opDecrBy      Op = 35
	opIncrByFloat Op = 36

	opHSet         Op = 48
	opHMSet        Op = 49
	opHSetNX       Op = 50
	opHGet         Op = 51
	opHMGet        Op = 52
	opHGetAll      Op = 53
	opHDel         Op = 54
	opHLen         Op = 55
	opHExists      Op = 56
	opHKeys        Op = 57
	opHVals        Op = 58
	opHIncrBy      Op = 59
	opHIncrByFloat Op = 60
	opHStrLen      Op = 61
	opHScan        Op = 62
	opHRandField   Op = 63

	opDel         Op = 80
	opUnlink      Op = 81
	opExists      Op = 82
	opType        Op = 83
	opExpire      Op = 84
	opPExpire     Op = 85
	opExpireAt    Op = 86
	opPExpireAt   Op = 87
	opTTL         Op = 88
	opPTTL        Op = 89
	opExpireTime  Op = 90
	opPExpireTime Op = 91
	opPersist     Op = 92
	opRename      Op = 93
	opRenameNX    Op = 94
	opCopy        Op = 95
	opTouch       Op = 96
	opRandomKey   Op = 97
	opKeys        Op = 98
	opScan        Op = 99
	opDBSize      Op = 100
	opFlushDB     Op = 101
	opFlushAll    Op = 102
)

// table lists the commands that run inside a shard. A new command is one entry here and its handler.
var table = []Spec{
	{"set", -3, Write | DenyOOM, 1, 1, 1, opSet, "string", "1.0.0", "key value [NX | XX] [GET] [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds | KEEPTTL]", "Sets the string value of a key.", "", cmdSet},
	{"get", 2, ReadOnly | Fast, 1, 1, 1, opGet, "string", "1.0.0", "key", "Returns the string value of a key.", "", cmdGet},
	{"getset", 3, Write | DenyOOM | Fast, 1, 1, 1, opGetSet, "string", "1.0.0", "key value", "Sets a key and returns its old value.", "", cmdGetSet},
	{"getdel", 2, Write | Fast, 1, 1, 1, opGetDel, "string", "6.2.0", "key", "Returns the value of a key and deletes it.", "", cmdGetDel},
	{"getex", -2, Write | Fast, 1, 1, 1, opGetEx, "string", "6.2.0", "key [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds | PERSIST]", "Returns the value of a key and sets its expiry.", "", cmdGetEx},
	{"setnx", 3, Write | DenyOOM | Fast, 1, 1, 1, opSetNX, "string", "1.0.0", "key value", "Sets a key that does not exist.", "", cmdSetNX},
	{"setex", 4, Write | DenyOOM, 1, 1, 1, opSetEx, "string", "2.0.0", "key seconds value", "Sets a key with an expiry in seconds.", "", cmdSetEx},
	{"psetex", 4, Write | DenyOOM, 1, 1, 1, opPSetEx, "string", "2.6.0", "key milliseconds value", "Sets a key with an expiry in milliseconds.", "", cmdPSetEx},
	{"mset", -3, Write | DenyOOM, 1, -1, 2, opMSet, "string", "1.0.1", "key value [key value ...]", "Sets several keys at once.", "", cmdMSet},
	{"msetnx", -3, Write | DenyOOM, 1, -1, 2, opMSetNX, "string", "1.0.1", "key value [key value ...]", "Sets several keys, if none of them exists.", "", cmdMSetNX},
	{"mget", -2, ReadOnly | Fast, 1, -1, 1, opMGet, "string", "1.0.0", "key [key ...]", "Returns the values of several keys.", "", cmdMGet},
	{"append", 3, Write | DenyOOM | Fast, 1, 1, 1, opAppend, "string", "2.0.0", "key value", "Appends to a string.", "", cmdAppend},
	{"strlen", 2, ReadOnly | Fast, 1, 1, 1, opStrLen, "string", "2.2.0", "key", "Returns the length of a string.", "", cmdStrLen},
	{"getrange", 4, ReadOnly, 1, 1, 1, opGetRange, "string", "2.4.0", "key start end", "Returns part of a string.", "", cmdGetRange},
	{"substr", 4, ReadOnly, 1, 1, 1, opSubStr, "string", "1.0.0", "key start end", "Returns part of a string.", "", cmdGetRange},
	{"setrange", 4, Write | DenyOOM, 1, 1, 1, opSetRange, "string", "2.2.0", "key offset value", "Overwrites part of a string.", "A string is bounded by 8 MiB.", cmdSetRange},
	{"incr", 2, Write | DenyOOM | Fast, 1, 1, 1, opIncr, "string", "1.0.0", "key", "Adds one to an integer.", "", cmdIncr},
	{"decr", 2, Write | DenyOOM | Fast, 1, 1, 1, opDecr, "string", "1.0.0", "key", "Takes one from an integer.", "", cmdDecr},
	{"incrby", 3, Write | DenyOOM | Fast, 1, 1, 1, opIncrBy, "string", "1.0.0", "key increment", "Adds to an integer.", "", cmdIncrBy},
	{"decrby", 3, Write | DenyOOM | Fast, 1, 1, 1, opDecrBy, "string", "1.0.0", "key decrement", "Takes from an integer.", "", cmdDecrBy},
	{"incrbyfloat", 3, Write | DenyOOM | Fast, 1, 1, 1, opIncrByFloat, "string", "2.6.0", "key increment", "Adds to a floating-point number.", "Hexadecimal numbers are refused.", cmdIncrByFloat},

	{"hset", -4, Write | DenyOOM | Fast, 1, 1, 1, opHSet, "hash", "2.0.0", "key field value [field value ...]", "Sets fields of a hash.", "A field's name is bounded by 64 KiB.", cmdHSet},
	{"hmset", -4, Write | DenyOOM | Fast, 1, 1, 1, opHMSet, "hash", "2.0.0", "key field value [field value ...]", "Sets fields of a hash.", "", cmdHMSet},
	{"hsetnx", 4, Write | DenyOOM | Fast, 1, 1, 1, opHSetNX, "hash", "2.0.0", "key field value", "Sets a field that does not exist.", "", cmdHSetNX},
	{"hget", 3, ReadOnly | Fast, 1, 1, 1, opHGet, "hash", "2.0.0", "key field", "Returns a field of a hash.", "", cmdHGet},
	{"hmget", -3, ReadOnly | Fast, 1, 1, 1, opHMGet, "hash", "2.0.0", "key field [field ...]", "Returns fields of a hash.", "", cmdHMGet},
	{"hgetall", 2, ReadOnly, 1, 1, 1, opHGetAll, "hash", "2.0.0", "key", "Returns all fields and values of a hash.", "Fields come in a fixed order, not in that of insertion.", cmdHGetAll},
	{"hdel", -3, Write | Fast, 1, 1, 1, opHDel, "hash", "2.0.0", "key field [field ...]", "Deletes fields of a hash.", "", cmdHDel},
	{"hlen", 2, ReadOnly | Fast, 1, 1, 1, opHLen, "hash", "2.0.0", "key", "Returns the number of fields of a hash.", "", cmdHLen},
	{"hexists", 3, ReadOnly | Fast, 1, 1, 1, opHExists, "hash", "2.0.0", "key field", "Says whether a field exists.", "", cmdHExists},
	{"hkeys", 2, ReadOnly, 1, 1, 1, opHKeys, "hash", "2.0.0", "key", "Returns all fields of a hash.", "", cmdHKeys},
	{"hvals", 2, ReadOnly, 1, 1, 1, opHVals, "hash", "2.0.0", "key", "Returns all values of a hash.", "", cmdHVals},
	{"hincrby", 4, Write | DenyOOM | Fast, 1, 1, 1, opHIncrBy, "hash", "2.0.0", "key field increment", "Adds to an integer in a field.", "", cmdHIncrBy},
	{"hincrbyfloat", 4, Write | DenyOOM | Fast, 1, 1, 1, opHIncrByFloat, "hash", "2.6.0", "key field increment", "Adds to a floating-point number in a field.", "Hexadecimal numbers are refused.", cmdHIncrByFloat},
	{"hstrlen", 3, ReadOnly | Fast, 1, 1, 1, opHStrLen, "hash", "3.2.0", "key field", "Returns the length of a field's value.", "", cmdHStrLen},
	{"hscan", -3, ReadOnly, 1, 1, 1, opHScan, "hash", "2.8.0", "key cursor [MATCH pattern] [COUNT count]", "Walks over the fields of a hash.", "A cursor is a number without a sign, a place in a fixed order; each field that stays is returned exactly once.", cmdHScan},
	{"hrandfield", -2, ReadOnly, 1, 1, 1, opHRandField, "hash", "6.2.0", "key [count [WITHVALUES]]", "Returns random fields of a hash.", "Even draws up to 1024 fields only; at most 1048576 repeats.", cmdHRandField},

	{"del", -2, Write | Keyspace, 1, -1, 1, opDel, "generic", "1.0.0", "key [key ...]", "Deletes keys.", "", cmdDel},
	{"unlink", -2, Write | Fast | Keyspace, 1, -1, 1, opUnlink, "generic", "4.0.0", "key [key ...]", "Deletes keys.", "The same as DEL.", cmdDel},
	{"exists", -2, ReadOnly | Fast | Keyspace, 1, -1, 1, opExists, "generic", "1.0.0", "key [key ...]", "Counts the keys that exist.", "", cmdExists},
	{"type", 2, ReadOnly | Fast | Keyspace, 1, 1, 1, opType, "generic", "1.0.0", "key", "Returns the type of a key's value.", "", cmdType},
	{"expire", -3, Write | Fast | Keyspace, 1, 1, 1, opExpire, "generic", "1.0.0", "key seconds [NX | XX | GT | LT]", "Sets the expiry of a key in seconds.", "", cmdExpire},
	{"pexpire", -3, Write | Fast | Keyspace, 1, 1, 1, opPExpire, "generic", "2.6.0", "key milliseconds [NX | XX | GT | LT]", "Sets the expiry of a key in milliseconds.", "", cmdPExpire},
	{"expireat", -3, Write | Fast | Keyspace, 1, 1, 1, opExpireAt, "generic", "1.2.0", "key unix-time-seconds [NX | XX | GT | LT]", "Sets the moment at which a key expires.", "", cmdExpireAt},
	{"pexpireat", -3, Write | Fast | Keyspace, 1, 1, 1, opPExpireAt, "generic", "2.6.0", "key unix-time-milliseconds [NX | XX | GT | LT]", "Sets the moment at which a key expires.", "", cmdPExpireAt},
	{"ttl", 2, ReadOnly | Fast | Keyspace, 1, 1, 1, opTTL, "generic", "1.0.0", "key", "Returns the time to live in seconds.", "", cmdTTL},
	{"pttl", 2, ReadOnly | Fast | Keyspace, 1, 1, 1, opPTTL, "generic", "2.6.0", "key", "Returns the time to live in milliseconds.", "", cmdPTTL},
	{"expiretime", 2, ReadOnly | Fast | Keyspace, 1, 1, 1, opExpireTime, "generic", "7.0.0", "key", "Returns the moment at which a key expires, in seconds.", "", cmdExpireTime},
	{"pexpiretime", 2, ReadOnly | Fast | Keyspace, 1, 1, 1, opPExpireTime, "generic", "7.0.0", "key", "Returns the moment at which a key expires, in milliseconds.", "", cmdPExpireTime},
	{"persist", 2, Write | Fast | Keyspace, 1, 1, 1, opPersist, "generic", "2.2.0", "key", "Removes the expiry of a key.", "", cmdPersist},
	{"rename", 3, Write | Keyspace, 1, 2, 1, opRename, "generic", "1.0.0", "key newkey", "Renames a key.", "Both names in one shard.", cmdRename},
	{"renamenx", 3, Write | Fast | Keyspace, 1, 2, 1, opRenameNX, "generic", "1.0.0", "key newkey", "Renames a key, if the new name is free.", "Both names in one shard.", cmdRenameNX},
	{"copy", -3, Write | DenyOOM | Keyspace, 1, 2, 1, opCopy, "generic", "6.2.0", "source destination [DB destination-db] [REPLACE]", "Copies a key.", "Both names in one shard; database 0 only; a hash of at most 4096 fields.", cmdCopy},
	{"touch", -2, ReadOnly | Fast | Keyspace, 1, -1, 1, opTouch, "generic", "3.2.1", "key [key ...]", "Counts the keys that exist.", "There is no access time to touch.", cmdExists},
	{"randomkey", 1, ReadOnly | Keyspace | EveryShard, 0, 0, 0, opRandomKey, "generic", "1.0.0", "", "Returns a random key.", "Keys that follow a wide gap of hash values come up more often.", cmdRandomKey},
	{"keys", 2, ReadOnly | Keyspace | Dangerous | EveryShard, 0, 0, 0, opKeys, "generic", "1.0.0", "pattern", "Returns all keys that match a pattern.", "The answer is bounded by 64 MiB.", cmdKeys},
	{"scan", -2, ReadOnly | Keyspace | EveryShard, 0, 0, 0, opScan, "generic", "2.8.0", "cursor [MATCH pattern] [COUNT count] [TYPE type]", "Walks over the keys.", "A cursor is a number without a sign, a place in a fixed order, good on every node; each key that stays is returned exactly once.", cmdScan},
	{"dbsize", 1, ReadOnly | Fast | Keyspace | EveryShard, 0, 0, 0, opDBSize, "server", "1.0.0", "", "Returns the number of keys.", "Counts by walking over the keys: its time grows with them.", cmdDBSize},
	{"flushdb", -1, Write | Keyspace | Dangerous | EveryShard, 0, 0, 0, opFlushDB, "server", "1.0.0", "[ASYNC | SYNC]", "Removes all keys.", "Atomic up to 4096 keys of one shard; more go in steps, and keys written meanwhile stay.", cmdFlush},
	{"flushall", -1, Write | Keyspace | Dangerous | EveryShard, 0, 0, 0, opFlushAll, "server", "1.0.0", "[ASYNC | SYNC]", "Removes all keys.", "As FLUSHDB.", cmdFlush},

	{"event.add", -3, Write | DenyOOM, 1, 1, 1, opEventAdd, "event", "", "topic value [KEY key] [PARTITION partition] [HEADER name value ...]", "Appends an event to a Kafka topic, in MULTI in the same commit as the other commands.", "A command of Quorate. topic{tag} names topic and sends it to the slot of the tag.", cmdEventAdd},
}

// Commands returns the commands that run inside a shard. The slice is the caller's.
func Commands() []Spec { return slices.Clone(table) }

func (s *Spec) arityOK(n int) bool { return n == s.Arity || s.Arity < 0 && n >= -s.Arity }

// ArityOK reports whether the command takes n arguments, its name included.
func (s *Spec) ArityOK(n int) bool { return s.arityOK(n) }

// Keys yields the positions of the keys among n arguments, the name being 0.
func (s *Spec) Keys(n int) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		if s.First == 0 {
			return
		}
		last := s.Last
		if last < 0 {
			last += n
		}
		for i := s.First; i <= last && i < n; i += s.Step {
			if !yield(i) {
				return
			}
		}
	}
}

// keysOf yields the keys among the arguments without the name.
func (s *Spec) keysOf(args [][]byte) func(yield func(int, []byte) bool) {
	return func(yield func(int, []byte) bool) {
		for i := range s.Keys(len(args) + 1) {
			if !yield(i, args[i-1]) {
				return
			}
		}
	}
}
