package redis

import (
	"strings"

	"github.com/quorate/quorate/internal/datatypes"
)

// hints are what COMMAND INFO tells of a command beside its Spec. Libraries for clusters go by the tips: whether a command without keys is
// to be sent to all nodes, and what becomes of the answers.
type hints struct {
	// keys are the flags of the keys, if they are not those of most commands that read, or write; behind a comma those of the second key.
	keys string
	// flags are of the command, and mean nothing here but to clients.
	flags string
	tips  string
}

const (
	everyNode = "request_policy:all_shards"
	everyKey  = "request_policy:multi_shard"
)

// hintsOf holds the hints of Redis 7.0.
var hintsOf = map[string]hints{
	"set":          {keys: "RW access update variable_flags"},
	"getset":       {keys: "RW access update"},
	"getdel":       {keys: "RW access delete"},
	"getex":        {keys: "RW access update"},
	"setnx":        {keys: "OW insert"},
	"setex":        {keys: "OW update"},
	"psetex":       {keys: "OW update"},
	"mset":         {keys: "OW update", tips: everyKey + " response_policy:all_succeeded"},
	"msetnx":       {keys: "OW insert", tips: everyKey + " response_policy:agg_min"},
	"mget":         {tips: everyKey},
	"append":       {keys: "RW insert"},
	"strlen":       {keys: "RO"},
	"incr":         {keys: "RW access update"},
	"decr":         {keys: "RW access update"},
	"incrby":       {keys: "RW access update"},
	"decrby":       {keys: "RW access update"},
	"incrbyfloat":  {keys: "RW access update"},
	"hsetnx":       {keys: "RW insert"},
	"hgetall":      {tips: "nondeterministic_output_order"},
	"hdel":         {keys: "RW delete"},
	"hlen":         {keys: "RO"},
	"hexists":      {keys: "RO"},
	"hkeys":        {tips: "nondeterministic_output_order"},
	"hvals":        {tips: "nondeterministic_output_order"},
	"hincrby":      {keys: "RW access update"},
	"hincrbyfloat": {keys: "RW access update"},
	"hstrlen":      {keys: "RO"},
	"hscan":        {tips: "nondeterministic_output"},
	"hrandfield":   {tips: "nondeterministic_output"},
	"del":          {keys: "RM delete", tips: everyKey + " response_policy:agg_sum"},
	"unlink":       {keys: "RM delete", tips: everyKey + " response_policy:agg_sum"},
	"exists":       {keys: "RO", tips: everyKey + " response_policy:agg_sum"},
	"type":         {keys: "RO"},
	"ttl":          {tips: "nondeterministic_output"},
	"pttl":         {tips: "nondeterministic_output"},
	"rename":       {keys: "RW access delete, OW update"},
	"renamenx":     {keys: "RW access delete, OW insert"},
	"copy":         {keys: "RO access, OW update"},
	"touch":        {keys: "RO", tips: everyKey + " response_policy:agg_sum"},
	"randomkey":    {tips: everyNode + " nondeterministic_output"},
	"keys":         {tips: everyNode + " nondeterministic_output_order"},
	"scan":         {tips: "nondeterministic_output request_policy:special"},
	"dbsize":       {tips: everyNode + " response_policy:agg_sum"},
	"flushdb":      {tips: everyNode + " response_policy:all_succeeded"},
	"flushall":     {tips: everyNode + " response_policy:all_succeeded"},
	"hello":        {flags: "allow_busy"},
	"auth":         {flags: "allow_busy"},
	"ping":         {tips: everyNode + " response_policy:all_succeeded"},
	"quit":         {flags: "allow_busy"},
	"reset":        {flags: "allow_busy"},
	"multi":        {flags: "allow_busy"},
	"exec":         {flags: "skip_slowlog"},
	"discard":      {flags: "allow_busy"},
	"watch":        {keys: "RO", flags: "allow_busy"},
	"unwatch":      {flags: "allow_busy"},
	"command":      {tips: "nondeterministic_output_order"},
	"info":         {tips: "nondeterministic_output " + everyNode + " response_policy:special"},
	"time":         {tips: "nondeterministic_output"},
	"wait":         {tips: everyNode + " response_policy:agg_min"},
	"fence":        {keys: "RW update incomplete"},
}

// tips answers with the tips of a command.
func (c *conn) tips(h *hints) {
	list := strings.Fields(h.tips)
	c.setOf(len(list))
	for _, t := range list {
		c.bulk(t)
	}
}

// keySpecs answers with where the keys are, and what is done with them.
func (c *conn) keySpecs(s *datatypes.Spec, h *hints) {
	if s.First == 0 {
		c.setOf(0)
		return
	}
	keys := h.keys
	switch {
	case keys != "":
	case s.Flags&datatypes.Write == 0:
		keys = "RO access"
	default:
		keys = "RW update"
	}
	one, two, both := strings.Cut(keys, ", ")
	if !both {
		c.setOf(1)
		c.keySpec(one, s.First, s.Last, s.Step)
		return
	}
	c.setOf(2)
	c.keySpec(one, s.First, s.First, s.Step)
	c.keySpec(two, s.Last, s.Last, s.Step)
}

func (c *conn) keySpec(flags string, first, last, step int) {
	c.mapOf(3)
	c.bulk("flags")
	c.words(strings.Fields(flags))
	c.bulk("begin_search")
	c.mapOf(2)
	c.bulk("type")
	c.bulk("index")
	c.bulk("spec")
	c.mapOf(1)
	c.bulk("index")
	c.int(int64(first))
	c.bulk("find_keys")
	c.mapOf(2)
	c.bulk("type")
	c.bulk("range")
	c.bulk("spec")
	c.mapOf(3)
	c.bulk("lastkey")
	if last > 0 {
		last -= first
	}
	c.int(int64(last))
	c.bulk("keystep")
	c.int(int64(step))
	c.bulk("limit")
	c.int(0)
}
