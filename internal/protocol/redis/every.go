package redis

import (
	"slices"
	"strconv"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// Commands without a key: DBSIZE, KEYS, RANDOMKEY, SCAN, FLUSHDB and FLUSHALL.
//
// Behaviour: they concern all shards of the space, one after the other. For a cluster client, which asks every node, those
// that read concern the shards that this node leads, after READONLY those that it holds. As long as it is not known who leads a
// shard, every node would leave it out: then they fail. FLUSHDB and FLUSHALL remove the keys of all shards on any node.
// Versions: as in Redis 7.0.
// Not supported: one consistent view over several shards. A cluster client does not see a shard whose leadership goes from a node
// that it has yet to ask to one that it has asked.

// myShards returns the shards that a read without a key concerns.
func (c *conn) myShards() ([]shard.ID, error) {
	if !c.cluster {
		return c.space.Shards, nil
	}
	var mine []shard.ID
	for _, id := range c.space.Shards {
		info, ok := c.topo.Shard(id)
		switch {
		case c.readonly && ok && holds(info, c.topo.Self), ok && !c.readonly && info.Leader == c.topo.Self:
			mine = append(mine, id)
		case !c.readonly && info.Leader == 0:
			return nil, errs.New(errs.Unavailable, "the leader of shard %d is not known; try again", id)
		}
	}
	return mine, nil
}

func (c *conn) everyShard(cmd *command, args [][]byte) {
	if err := c.place(); err != nil {
		c.error(err)
		return
	}
	var err error
	switch cmd.Name {
	case "dbsize":
		err = c.dbSize()
	case "keys":
		err = c.keys(cmd, args[1:])
	case "randomkey":
		err = c.randomKey(cmd)
	case "scan":
		err = c.scan(cmd, args[1:])
	default:
		err = c.flushAll(args[1:])
	}
	if err != nil {
		c.error(err)
	}
}

// countKeys returns the number of keys, and of those that expire.
func (c *conn) countKeys() (keys, expires uint64, err error) {
	shards, err := c.myShards()
	if err != nil {
		return 0, 0, err
	}
	for _, id := range shards {
		out, err := c.ask(id, datatypes.EncodeKeyCount())
		if err != nil {
			return 0, 0, err
		}
		k, e, err := datatypes.DecodeKeyCount(out)
		if err != nil {
			return 0, 0, err
		}
		keys, expires = keys+k, expires+e
	}
	return keys, expires, nil
}

func (c *conn) dbSize() error {
	n, _, err := c.countKeys()
	if err == nil {
		c.int(int64(n))
	}
	return err
}

func (c *conn) keys(cmd *command, args [][]byte) error {
	shards, err := c.myShards()
	if err != nil {
		return err
	}
	var all []byte
	total := 0
	for _, id := range shards {
		out, err := c.query(id, cmd.Op, args)
		if err != nil {
			return err
		}
		_, n, rest := splitHead(out)
		all, total = append(all, rest...), total+n
		if len(all) > datatypes.AnswerBytesMax {
			return errs.New(errs.TooLarge, "the answer is longer than the limit of %d bytes; use SCAN", datatypes.AnswerBytesMax)
		}
	}
	c.array(total)
	c.out = append(c.out, all...)
	return nil
}

func (c *conn) randomKey(cmd *command) error {
	shards, err := c.myShards()
	if err != nil {
		return err
	}
	c.seed++
	// The high bits of a product with an odd constant differ even where seeds follow one another.
	start := int(c.seed * 0x9e3779b97f4a7c15 >> 33)
	for i := range shards {
		out, err := c.query(shards[(start+i)%len(shards)], cmd.Op, nil)
		if err != nil {
			return err
		}
		if len(out) > 0 && out[0] == '$' {
			c.out = append(c.out, out...)
			return nil
		}
	}
	c.null()
	return nil
}

// scan asks the shard that the cursor lies in, and goes on to the next one where that ends. A cursor is a slot and a hash,
// so it means the same in every shard and on every node.
func (c *conn) scan(cmd *command, args [][]byte) error {
	cursor, err := strconv.ParseUint(string(args[0]), 10, 64)
	if err != nil {
		return &errs.Error{Kind: errs.Invalid, Code: "ERR", Msg: "invalid cursor"}
	}
	mine, err := c.myShards()
	if err != nil {
		return err
	}
	next := uint64(0)
	body := []byte("*0\r\n")
	for i, id := range c.space.Shards {
		first, last := c.space.SlotRange(i)
		if !slices.Contains(mine, id) || cursor>>32 > uint64(last) {
			continue
		}
		at := max(cursor, uint64(first)<<32)
		args[0] = strconv.AppendUint(nil, at, 10)
		out, err := c.query(id, cmd.Op, args)
		if err != nil {
			return err
		}
		_, _, rest := splitHead(out)
		body = skipValue(rest)
		_, _, num := splitHead(rest)
		if next, err = strconv.ParseUint(string(num[:len(num)-len(body)-2]), 10, 64); err != nil {
			return errs.New(errs.Corrupt, "the answer to SCAN is malformed")
		}
		if next == 0 && i+1 < len(c.space.Shards) {
			next = (uint64(last) + 1) << 32
		}
		break
	}
	c.array(2)
	c.bulkBytes(strconv.AppendUint(nil, next, 10))
	c.out = append(c.out, body...)
	return nil
}

// flushAll removes the keys of all shards, step by step.
func (c *conn) flushAll(args [][]byte) error {
	if len(args) > 1 || len(args) == 1 && !equalFold(args[0], "async") && !equalFold(args[0], "sync") {
		return errSyntax()
	}
	for _, id := range c.space.Shards {
		for bound, cursor := uint64(0), uint64(0); ; {
			data, err := c.underFences(id, c.once, datatypes.EncodeFlushStep(bound, cursor))
			if err != nil {
				return err
			}
			f := c.s.client.Submit(c.request(), shard.Route{Shard: id}, shard.Command{Module: shard.ModuleDatatypes, Data: data})
			res := c.await(c.req.Context, f)
			c.req = nil
			if res.Err != nil {
				return res.Err
			}
			c.saw(id, res.Revision)
			if bound, cursor, err = datatypes.DecodeFlushStep(res.Data); err != nil {
				return err
			}
			if cursor == 0 {
				break
			}
		}
	}
	c.ok()
	return nil
}

// equalFold compares an argument with a word in lower case.
func equalFold(b []byte, word string) bool {
	if len(b) != len(word) {
		return false
	}
	for i := range b {
		ch := b[i]
		if ch >= 'A' && ch <= 'Z' {
			ch += 'a' - 'A'
		}
		if ch != word[i] {
			return false
		}
	}
	return true
}
