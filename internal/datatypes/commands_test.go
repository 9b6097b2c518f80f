package datatypes

import (
	"encoding/binary"
	"testing"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// TestCommands_OneAfterTheOther pins the answers of each command; the differential test of package redis compares many
// more with a real server.
func TestCommands_OneAfterTheOther(t *testing.T) {
	r := newRig(t)
	for _, tc := range [][2]string{
		{"set s hello", "+OK"}, {"getset s world", "$5 hello"}, {"getset n 1", "_"}, {"getdel n", "$1 1"}, {"getdel n", "_"},
		{"setex s 10 v", "+OK"}, {"ttl s", ":10"}, {"psetex s 1500 v", "+OK"}, {"pttl s", ":1500"}, {"ttl s", ":2"},
		{"expiretime s", ":1700000002"}, {"pexpiretime s", ":1700000001500"}, {"ttl nope", ":-2"}, {"getex s persist", "$1 v"},
		{"ttl s", ":-1"}, {"getex s exat 1", "$1 v"}, {"exists s", ":0"}, {"set s v get", "_"}, {"set s w nx get", "$1 v"},
		{"set s w nx", "_"}, {"set q w xx", "_"}, {"set s w ex 5", "+OK"}, {"set s x keepttl", "+OK"}, {"ttl s", ":5"},
		{"set s x ex 7 ex 9", "+OK"}, {"ttl s", ":9"}, {"getex s px 7 px 9000", "$1 x"}, {"ttl s", ":9"}, {"set s x ex 7 exat 9", "-ERR syntax error"},
		{"set s y pxat 1", "+OK"},
		{"type s", "+none"}, {"set s abcdef", "+OK"}, {"type s", "+string"}, {"getrange s 1 3", "$3 bcd"}, {"substr s -2 -1", "$2 ef"},
		{"getrange s 4 2", "$0"}, {"getrange s -1 -3", "$0"}, {"setrange s 8 z", ":9"}, {"strlen s", ":9"}, {"append t a", ":1"},
		{"incr c", ":1"}, {"decr c", ":0"}, {"incrby c 9223372036854775807", ":9223372036854775807"},
		{"incr c", "-ERR increment or decrement would overflow"}, {"decrby c 7", ":9223372036854775800"},
		{"incrbyfloat f 0.1", "$3 0.1"}, {"incrbyfloat f 0.2", "$3 0.3"}, {"incrbyfloat f 1e4933", "-ERR value is not a valid float"},
		{"incrbyfloat f inf", "-ERR increment would produce NaN or Infinity"}, {"incrbyfloat f -0.3", "$1 0"}, {"incrbyfloat f 0x10", "-ERR value is not a valid float"},
		{"msetnx a 1 s 2", ":0"}, {"msetnx a 1 b 2", ":1"}, {"mget a b nope", "*3 $1 1 $1 2 _"}, {"setnx a 1", ":0"}, {"touch a b nope", ":2"},
		{"hset h f 1 g 2", ":2"}, {"hmset h f 3", "+OK"}, {"hsetnx h f 4", ":0"}, {"hsetnx h k 4", ":1"}, {"hsetnx a k 4", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
		{"hget h f", "$1 3"}, {"hget h nope", "_"}, {"hmget h f nope", "*2 $1 3 _"}, {"hlen h", ":3"}, {"hexists h g", ":1"}, {"hexists nope g", ":0"},
		{"hstrlen h g", ":1"}, {"hincrby h f 2", ":5"}, {"hincrbyfloat h f 0.5", "$3 5.5"}, {"hincrby h f 1", "-ERR hash value is not an integer"},
		{"hincrbyfloat h f inf", "-ERR value is NaN or Infinity"}, {"hdel h f k nope", ":2"}, {"hkeys h", "*1 $1 g"}, {"hvals h", "*1 $1 2"},
		{"hgetall h", "%1 $1 g $1 2"}, {"hrandfield h", "$1 g"}, {"hrandfield nope", "_"}, {"hrandfield nope 1", "*0"}, {"hrandfield h -2", "*2 $1 g $1 g"},
		{"hscan h 0 match g*", "*2 $1 0 *2 $1 g $1 2"}, {"hscan nope 0 bad", "*2 $1 0 *0"}, {"copy h i", ":1"}, {"copy h i", ":0"},
		{"copy h i replace", ":1"}, {"copy a j", ":1"}, {"hgetall i", "%1 $1 g $1 2"}, {"rename h i", "+OK"}, {"hget i g", "$1 2"}, {"renamenx i a", ":0"},
		{"renamenx i h", ":1"}, {"rename h h", "+OK"}, {"renamenx h h", ":0"}, {"rename h a", "+OK"}, {"type a", "+hash"}, {"hdel a g", ":1"}, {"exists a", ":0"},
		{"expire b 100 xx", ":0"}, {"expire b 100 gt", ":0"}, {"expire b 100 lt", ":1"}, {"expire b 50 gt", ":0"}, {"expire b 200 nx", ":0"},
		{"pexpireat b 1700000005000", ":1"}, {"expireat b 1700000006", ":1"}, {"persist b", ":1"}, {"persist b", ":0"}, {"expire b -1", ":1"}, {"exists b", ":0"},
		{"del s t c f j nope", ":5"}, {"randomkey", "_"}, {"set only 1", "+OK"}, {"randomkey", "$4 only"}, {"keys *", "*1 $4 only"},
		{"scan 0 type hash", "*2 $1 0 *0"}, {"scan 0 type string", "*2 $1 0 *1 $4 only"}, {"unlink only", ":1"}, {"flushdb sync", "+OK"},
	} {
		r.want(tc[0], tc[1])
	}
}

// TestExpire_HugeTimes: as Redis 7.0.15 answers. Moments past the year 2262, which a timer cannot hold, are kept all the same.
func TestExpire_HugeTimes(t *testing.T) {
	r := newRig(t)
	invalid := func(name string) string { return "-ERR invalid expire time in '" + name + "' command" }
	for _, tc := range [][3]string{
		{"expire k 9223372036854775807", invalid("expire"), ":-1"}, {"expire k 9223372036854775", invalid("expire"), ":-1"},
		{"expire k -9223372036854775808", invalid("expire"), ":-1"}, {"expire k -9223372036854775", ":1", ":-2"},
		{"pexpire k 9223372036854775807", invalid("pexpire"), ":-1"}, {"pexpire k -9223372036854775808", ":1", ":-2"},
		{"expireat k 9223372036854775807", invalid("expireat"), ":-1"}, {"expireat k 9223372036854775", ":1", ":9223372036854775000"},
		{"pexpireat k 9223372036854775807", ":1", ":9223372036854775807"}, {"pexpireat k 9223372036854", ":1", ":9223372036854"},
		{"pexpireat k 9223372036855", ":1", ":9223372036855"}, {"pexpireat k 9223372036854775808", "-ERR value is not an integer or out of range", ":-1"},
		{"set k v px 9223372036854775807", invalid("set"), ":-1"}, {"set k v pxat 9223372036854775807", "+OK", ":9223372036854775807"},
		{"setex k 9223372036854775 v", invalid("setex"), ":-1"}, {"getex k exat 9223372036854775", "$1 v", ":9223372036854775000"},
	} {
		r.want("set k v", "+OK")
		r.want(tc[0], tc[1])
		r.want("pexpiretime k", tc[2])
	}
}

func TestInternalQueries(t *testing.T) {
	r := newRig(t)
	r.do("mset foo 1 {foo}2 2 bar 3")
	r.do("expire bar 100")
	if got := r.query(EncodeSlotCount(Slot([]byte("foo")))); got != ":2\r\n" {
		t.Errorf("count of slot: %q", got)
	}
	if got := r.query(EncodeSlotKeys(Slot([]byte("bar")), 10)); got != "*1\r\n$3\r\nbar\r\n" {
		t.Errorf("keys of slot: %q", got)
	}
	keys, expires, err := DecodeKeyCount([]byte(r.query(EncodeKeyCount())))
	if keys != 3 || expires != 1 || err != nil {
		t.Errorf("count: %d %d %v", keys, expires, err)
	}
	if _, _, err := DecodeKeyCount(nil); !errs.Is(err, errs.Corrupt) {
		t.Errorf("short answer: %v", err)
	}
	if _, err := DecodeVersions([]byte{1}, 1); !errs.Is(err, errs.Corrupt) {
		t.Errorf("short answer: %v", err)
	}
}

// vandal is the same module under the data model's id, with one command more: it writes a row as it is.
type vandal struct{ *Module }

func (v vandal) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	if len(cmd) > 0 && cmd[0] == 0xff {
		tx.Set(appendHeadKey(nil, []byte("k")), cmd[1:])
		return nil, nil
	}
	return v.Module.Apply(tx, cmd)
}

func TestDamagedRow_IsNoMissingKey(t *testing.T) {
	for _, row := range []string{"", "s", "zrrrrrrrr", "\xf3rrrrrrrr", "hrrrrrrrrshort"} {
		r := &rig{t, shardtest.New(t, shardtest.Options{}, vandal{newModule()}, fakeLog{})}
		r.submit(append([]byte{0xff}, row...))
		for _, line := range []string{"get k", "set k v", "set k v nx", "del k", "incr k", "exists k", "keys *", "scan 0", "dbsize", "flushall"} {
			if row == "s" && line == "set k v" {
				// What starts like a string is overwritten without a look at the rest.
				continue
			}
			if got := r.do(line); got != "-ERR damaged data: a row of the data model has an unknown format " {
				t.Errorf("row %q: %s: %q", row, line, got)
			}
		}
		for _, line := range []string{"get k", "set k v", "mset b 1 k v"} {
			if row == "s" && line != "get k" {
				continue
			}
			if got := r.exec(nil, "set a 1", line); got != "-ERR damaged data: a row of the data model has an unknown format " {
				t.Errorf("row %q: exec of %s: %q", row, line, got)
			}
		}
		if got := r.query(EncodeVersions(0, [][]byte{[]byte("k")})); got[0] != '-' {
			t.Errorf("row %q: versions %q", row, got)
		}
		if got := r.query(EncodeKeyCount()); got[0] != '-' {
			t.Errorf("row %q: count %q", row, got)
		}
		r.want("exists a", ":0")
	}
}

func TestParseInt(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "-1": -1, "9223372036854775807": 1<<63 - 1, "-9223372036854775808": -1 << 63} {
		if got, ok := ParseInt([]byte(s)); !ok || got != want {
			t.Errorf("%q: %d %v", s, got, ok)
		}
	}
	for _, s := range []string{"", "-", "-0", "00", "+1", " 1", "1 ", "1.0", "9223372036854775808", "-9223372036854775809", "99999999999999999999", "184467440737095516160"} {
		if got, ok := ParseInt([]byte(s)); ok {
			t.Errorf("%q: read as %d", s, got)
		}
	}
}

// TestRows_Golden pins the format of rows.
func TestRows_Golden(t *testing.T) {
	for _, tc := range []struct {
		h    head
		want string
	}{
		{head{kind: kindString, rev: 5, val: []byte("v")}, "s\x05\x00\x00\x00\x00\x00\x00\x00v"},
		{head{kind: kindString, rev: 5, exp: 7, val: []byte("v")}, "\xf3\x05\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00v"},
		{head{kind: kindHash, rev: 1, instance: 2, count: 3}, "h\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00"},
	} {
		if got := string(tc.h.encode()); got != tc.want {
			t.Errorf("row %q, want %q", got, tc.want)
		}
	}
	if got, want := string(appendHeadKey(nil, []byte("foo"))), "k\x2f\x96\x33\xbf\x00\xa8foo"; got != want {
		t.Errorf("head key %q, want %q", got, want)
	}
	if got, want := string(appendFieldKey(nil, 1, []byte("foo"))), "h\x00\x00\x00\x00\x00\x00\x00\x01\x33\xbf\x00\xa8foo"; got != want {
		t.Errorf("field key %q, want %q", got, want)
	}
	if n := binary.BigEndian.Uint16(goneKey([]byte("foo"))[1:]); n > 0x3fff {
		t.Errorf("bucket %d", n)
	}
}
