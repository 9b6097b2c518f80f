package redis

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/shardtest"
)

// odd makes commands with forms of arguments that no client library makes.
type odd struct{ generator }

func (g odd) mixed(s string) string {
	switch g.IntN(3) {
	case 0:
		return strings.ToUpper(s)
	case 1:
		b := []byte(s)
		for i := range b {
			if g.IntN(2) == 0 {
				b[i] = strings.ToUpper(string(b[i]))[0]
			}
		}
		return string(b)
	}
	return s
}

func (g odd) key() string {
	return g.pick("k0", "k1", "k2", "k3", "k4", "", "k\x00", strings.Repeat("long", 3), "{a}b")
}

func (g odd) number() string {
	return g.pick("0", "1", "-1", "2", "5", "-5", "2147483647", "2147483648", "-2147483648", "-2147483649", "4294967295", "4294967296",
		"9223372036854775806", "9223372036854775807", "9223372036854775808", "-9223372036854775807", "-9223372036854775808", "-9223372036854775809",
		"18446744073709551615", "18446744073709551616", "99999999999999999999", "-0", "+1", " 1", "1 ", "01", "1e3", "1.0", "", "-", "nan", "a\r\nb")
}

func (g odd) float() string {
	return g.pick("0", "-0", "-0.0", "0.0", "1", "+1", "1.", ".1", ".", "-", "+", "e1", "1e", "1e+", "1e-", "1e5", "1E5", "1e+5", "1e-5", "1e-17", "1e-18", "4.9e-18", "5e-18", "1e-400", "1e400", "-1e400",
		"1e4932", "1e4933", "1.18973149535723176502e4932", "1e-4932", "1e-4950", "1e-4951", "1e-5000", "1e99999", "1e999999", "1e9999999", "1e-9999999",
		"inf", "+inf", "-inf", "INF", "Infinity", "-infinity", "infinitely", "nan", "NaN", "-nan", "nan(1)", " 1", "1 ", "1\x00", "1,5", "1_0", "0b1", "0o7",
		"3.0e3", "123456789012345678901234567890", "0.1", "0.2", "9007199254740993", "18446744073709551617", "1.7976931348623157e308", "2e308", "99999999999999999.99999",
		strings.Repeat("9", 300), "0."+strings.Repeat("0", 300)+"1", strings.Repeat("0", 300)+"1")
}

func (g odd) value() string {
	if g.IntN(2) == 0 {
		return g.generator.value()
	}
	if g.IntN(2) == 0 {
		return g.float()
	}
	return g.number()
}

func (g odd) field() string { return g.pick("a", "b", "c", "", "\x00", strings.Repeat("f", 9)) }

func (g odd) options(words ...string) (line []string) {
	for range g.IntN(5) {
		w := words[g.IntN(len(words))]
		if n, ok := strings.CutSuffix(w, "="); ok {
			line = append(line, g.mixed(n))
			if g.IntN(10) > 0 {
				line = append(line, g.when())
			}
			continue
		}
		line = append(line, g.mixed(w))
	}
	return line
}

func (g odd) when() string {
	if g.IntN(3) == 0 {
		// Nothing expires while it is compared.
		if n := g.number(); len(n) > 3 || n == "" || n[0] < '1' || n[0] > '9' {
			return n
		}
	}
	return g.pick("100000", "200000000", "9999999999", "9999999999999", "9223372036854775", "9223372036854776", "9223370000000000", "9223370000000000000", "-100")
}

func (g odd) command() []string {
	k, f := g.key(), g.field()
	name := func(s ...string) string { return g.mixed(g.pick(s...)) }
	var line []string
	switch g.IntN(34) {
	case 0, 1:
		line = append([]string{name("set"), k, g.value()}, g.options("nx", "xx", "get", "keepttl", "persist", "ex=", "px=", "exat=", "pxat=", "")...)
	case 2:
		line = append([]string{name("getex"), k}, g.options("persist", "keepttl", "nx", "get", "ex=", "px=", "exat=", "pxat=")...)
	case 3, 4:
		line = []string{name("set"), k, g.value()}
	case 5:
		line = []string{name("setex", "psetex"), k, g.when(), g.value()}
	case 6:
		line = []string{name("getrange", "substr"), k, g.number(), g.number()}
	case 7:
		line = []string{name("setrange"), k, g.pick("0", "1", "-1", "10", "x", "", "9223372036854775807", "-9223372036854775808", "8388608", "536870912"), g.pick("", "abc")}
		if line[2] == "8388608" {
			line[3] = ""
		}
	case 8:
		line = []string{name("incrby", "decrby"), k, g.number()}
	case 9, 10:
		line = []string{name("incrbyfloat"), k, g.float()}
	case 11:
		line = []string{name("hincrby"), k, f, g.number()}
	case 12, 13:
		line = []string{name("hincrbyfloat"), k, f, g.float()}
	case 14, 15:
		line = []string{name("hset", "hmset"), k}
		for range g.IntN(3) {
			line = append(line, g.field(), g.value())
		}
		if g.IntN(8) == 0 {
			line = append(line, "odd")
		}
	case 16:
		line = []string{name("hsetnx"), k, f, g.value()}
	case 17, 18:
		line = append([]string{name("expire", "pexpire", "expireat", "pexpireat"), k, g.when()}, g.options("nx", "xx", "gt", "lt", "bad", "a\r\nb", "")...)
	case 19:
		line = []string{name("ttl", "pttl", "expiretime", "pexpiretime", "persist", "type", "strlen", "get", "hlen", "getdel", "incr", "decr"), k}
	case 20:
		line = append([]string{name("copy"), k, g.key()}, g.options("replace", "bad")...)
		if g.IntN(3) == 0 {
			line = append(line, g.mixed("db"), g.pick("0", "x", "1", "-1", "9999999999", "99999999999999999999", ""))
		}
	case 21:
		line = []string{name("rename", "renamenx"), k, g.key()}
	case 22:
		line = []string{name("del", "unlink", "exists", "touch", "mget"), k, k, g.key()}
	case 23:
		line = []string{name("mset", "msetnx"), k, "1", k, "2", g.key(), "3"}[:g.IntN(7)+1]
	case 24:
		line = []string{name("keys"), g.pick("", "*", "k[", "k[0", "k[0-", "k[0-]", "k[]", "k[^]", "k[^", "k[\\0]", "k[0-9", "k[9-0]", "k\\", "\\", "?", "??", "k[\\", "[k]0", "k[a-z0-2]", "k[-0]", "k[0-\\2]", "{a}*", "*a*b", "k*[1]")}
	case 25:
		line = []string{name("hrandfield"), k, g.number(), name("withvalues", "bad", "")}[:2+g.IntN(3)]
		if len(line) > 2 && strings.HasPrefix(line[2], "-") {
			line[2] = g.pick("-1", "-5", "-9223372036854775808", "-9223372036854775809", "-9223372036854775807")
		}
		if len(line) == 3 && line[2] == "-9223372036854775807" {
			line[2] = "-2"
		}
	case 26:
		line = append([]string{name("hscan"), k, g.pick("0", "x", "18446744073709551616", " 0", "00")}, g.scanOptions()...)
	case 27:
		line = append([]string{name("scan"), g.pick("0", "x", "18446744073709551616", " 0", "00")}, g.scanOptions()...)
	case 28:
		line = []string{name("append", "getset", "setnx"), k, g.value()}
	case 29:
		line = []string{name("hget", "hexists", "hstrlen", "hdel", "hmget"), k, f}
	case 30:
		line = []string{name("hgetall", "hkeys", "hvals"), k}
	case 31:
		line = []string{name("select"), g.number()}
	case 32:
		line = append([]string{name("flushall", "flushdb")}, g.pick("", "async", "SYNC", "bad"), "x")[:1+g.IntN(3)]
		if g.IntN(3) > 0 {
			line = []string{name("dbsize")}
		}
	default:
		line = g.other()
	}
	if g.IntN(40) == 0 {
		line = line[:1+g.IntN(len(line))]
	}
	if g.IntN(60) == 0 {
		line = append(line, g.pick("", "extra"))
	}
	return line
}

func (g odd) scanOptions() (line []string) {
	for range g.IntN(3) {
		switch g.IntN(5) {
		case 0:
			line = append(line, g.mixed("count"), g.pick("1000", "0", "-1", "x", "", "9223372036854775807", "9223372036854775808", "1001"))
		case 1:
			line = append(line, g.mixed("match"), g.pick("*", "k*", "", "nothing", "?"))
		case 2:
			line = append(line, g.mixed("type"), g.pick("string", "HASH", "list", "", "bad"))
		case 3:
			line = append(line, g.pick("novalues", "bad", "", "count", "match", "type"))
		case 4:
			line = append(line, "count", "1000")
		}
	}
	return line
}

// other makes a command about connections and the server, or none at all.
func (g odd) other() []string {
	return strings.Split(g.pick(
		"ping", "ping a", "ping a b", "echo", "echo a", "echo a b", "time x", "hello x", "hello 1", "hello 4", "hello -1", "hello 3.0", "hello  setname", "hello setname a", "hello 9999999999999999999",
		"auth", "auth a", "auth a b", "auth a b c", "wait", "wait x 0", "wait 0 x", "wait 0 -1", "wait 0 1.5", "wait 9999999999999999999 0",
		"command bad", "command count x", "command getkeys", "command getkeys get", "command getkeys get a", "command getkeys get a b", "command getkeys mset a 1 b", "command getkeys mset a 1 b 2", "command getkeys ping x",
		"command getkeys nope x", "command getkeys copy a b", "command getkeys copy a b replace", "command getkeys watch a b", "command getkeys del a b c", "command getkeys multi a",
		"command list filterby", "command list filterby bad x", "command list x", "command list filterby module none", "command list filterby aclcat bad", "command list filterby aclcat @string", "command list filterby pattern hs* x",
		"command list filterby pattern getr*", "COMMAND LIST FILTERBY PATTERN SETR*", "lolwut version x", "command info nope", "command info nope nope", "command docs nope",
		"client", "client bad", "client id x", "client setname", "client setname a b", "client setname a\nb", "client setname ", "client setname \x7f", "client setname \x80", "client setname abc", "client getname", "client getname x", "client kill", "client kill x", "client kill id", "client kill id x",
		"client kill id 0", "client kill id -1", "client kill id 999999", "client kill type bad", "client kill type pubsub", "client kill type master", "client kill skipme maybe", "client kill skipme yes id 99999", "client kill addr 1.1.1.1:1 laddr 2.2.2.2:2", "client kill user nobody", "client kill user default id 99999", "client kill bad x", "client kill addr", "client kill 1.1.1.1:1",
		"client list bad", "client list type bad", "client list type", "client list type pubsub", "client list type replica", "client list id", "client list id x", "client list id 0", "client list id -5", "client list id 99999", "client list type normal x", "client info x",
		"client no-evict", "client no-evict bad", "client no-evict on", "client no-evict OFF", "client reply", "client reply bad", "client reply on", "client getredir", "client getredir x", "client help x",
		"config", "config bad", "config get", "config get nope", "config get x y", "config help x", "info nope", "info nope nope2", "reset x",
		"discard", "exec", "unwatch", "unwatch x", "watch", "multi x", "exec x", "discard x", "readonly x", "cluster", "cluster info", "cluster bad",
		"nosuch", "nosuch a b c", "nosuch "+strings.Repeat("a", 200), "nosuch a\r\nb", strings.Repeat("n", 200)+" x", "", "get", "nosu\nch x", "mset a", "hset k a", "dbsize x", "randomkey x", "keys", "scan", "hrandfield", "set a", "flushall a b", "flushdb bad"), " ")
}

func TestDifferential_OddArguments(t *testing.T) {
	redis := startRedis(t)
	r := newRig(t, shardtest.Options{RealTime: true}, Config{})
	for _, proto := range []string{"2", "3"} {
		for seed := range uint64(2) {
			ours, theirs := r.dial(), dial(t, redis)
			for _, c := range []*client{ours, theirs} {
				c.do("hello", proto)
				c.do("flushall")
			}
			g := odd{generator{rand.New(rand.NewPCG(seed, 2))}}
			bad := 0
			for range 2500 {
				args := g.command()
				got, want := ours.do(args...), theirs.do(args...)
				if sameReply(append([]string{strings.ToLower(args[0])}, args[1:]...), got, want) {
					continue
				}
				t.Errorf("proto %s seed %d: %.300q\n got %.300s\nwant %.300s", proto, seed, args, got, want)
				if bad++; bad > 10 {
					t.FailNow()
				}
			}
		}
	}
}

// pipelined makes commands whose answers are the same everywhere, and those that change how a connection answers.
func (g odd) pipelined(multi *bool) []string {
	for {
		switch g.IntN(14) {
		case 0:
			*multi = true
			return []string{"multi"}
		case 1, 2:
			if *multi {
				*multi = false
				return []string{g.pick("exec", "exec", "exec", "discard")}
			}
			if g.IntN(10) == 0 {
				return []string{g.pick("exec", "discard")}
			}
		case 3:
			return []string{"watch", g.key(), g.key()}
		case 4:
			return []string{"unwatch"}
		case 5:
			switch g.IntN(6) {
			case 0:
				*multi = false
				return []string{"reset"}
			case 1:
				return []string{"hello", g.pick("2", "3", "4"), "setname", g.pick("x", "a b")}[:g.pick("2", "4")[0]-'0']
			case 2:
				return []string{"client", "setname", g.pick("a", "b", "a b")}
			case 3:
				return []string{"client", "getname"}
			case 4:
				if !*multi {
					return []string{"client", "reply", g.pick("on", "off", "skip", "skip", "bad")}
				}
			}
		case 6:
			return []string{g.pick("echo", "ping"), g.value()}
		}
		if g.IntN(2) == 0 {
			k := g.pick("a", "b", "c", "d")
			return strings.Fields(strings.ReplaceAll(g.pick("set KEY "+g.number(), "get KEY", "incr KEY", "del KEY", "append KEY x", "mget KEY a b", "hset KEY f v", "hget KEY f",
				"exists KEY a", "getset KEY z", "set KEY v get", "getdel KEY", "type KEY", "strlen KEY", "rename KEY a", "copy KEY b replace", "flushall", "expire KEY 1000", "persist KEY",
				"hgetall KEY", "get", "nosuch", "hrandfield KEY", "hrandfield KEY 1 withvalues", "pexpire KEY 0", "scan 0 match nothing count 1000"), "KEY", k))
		}
		args := g.command()
		if slices.ContainsFunc(args, func(a string) bool { return strings.HasSuffix(strings.ToLower(a), "at") || a == "0" }) {
			// Redis changes a key that is set with an expiry in the past.
			continue
		}
		switch strings.ToLower(args[0]) {
		case "ttl", "pttl", "expiretime", "pexpiretime", "hrandfield", "randomkey", "scan", "hscan", "hgetall", "hkeys", "hvals", "keys", "dbsize", "flushall", "flushdb",
			"setrange", "select", "client", "command", "config", "info", "time", "wait", "lolwut", "cluster", "hello", "reset", "auth", "exec", "multi", "discard", "watch":
			continue
		}
		return args
	}
}

func TestDifferential_Pipelines(t *testing.T) {
	redis := startRedis(t)
	r := newRig(t, shardtest.Options{RealTime: true}, Config{})
	bad := 0
	for seed := range uint64(40) {
		g := odd{generator{rand.New(rand.NewPCG(seed, 5))}}
		ours, theirs := r.dial(), dial(t, redis)
		for round := range 20 {
			var raw []byte
			var lines []string
			multi := false
			for range 1 + g.IntN(40) {
				args := g.pipelined(&multi)
				raw = append(raw, encode(args...)...)
				lines = append(lines, strings.Join(args, " "))
			}
			for _, l := range []string{"discard", "client reply on", "client reply on", "echo end"} {
				raw = append(raw, encode(strings.Fields(l)...)...)
			}
			cut := g.IntN(len(raw))
			run := func(c *client) (out []string) {
				c.send(string(raw[:cut]))
				c.send(string(raw[cut:]))
				for {
					out = append(out, c.recv())
					if out[len(out)-1] == `"end"` {
						return out
					}
				}
			}
			got, want := run(ours), run(theirs)
			for i := range want {
				if i >= len(got) || got[i] != want[i] && canonical("hgetall", got[i]) != canonical("hgetall", want[i]) && !(strings.Contains(want[i], "unknown command") && strings.Contains(got[i], "unknown command")) && !strings.Contains(want[i], `"server"`) {
					x := "nothing"
					if i < len(got) {
						x = got[i]
					}
					t.Errorf("seed %d round %d: answer %d of %d is %.200s, want %.200s\n%.3000q", seed, round, i, len(want), x, want[i], lines)
					if bad++; bad > 8 {
						t.FailNow()
					}
					ours.do("flushall")
					theirs.do("flushall")
					break
				}
			}
		}
	}
}

// Of an option that comes again, the last counts.
func TestDifferential_ClientKillTwice(t *testing.T) {
	redis := startRedis(t)
	r := newRig(t, shardtest.Options{RealTime: true}, Config{})
	for _, line := range []string{"id A id B", "id A addr nobody:1", "type pubsub type normal id B", "type normal type pubsub id B", "addr nobody:1 addr ADDR", "skipme yes skipme no id SELF", "skipme no skipme yes id SELF"} {
		run := func(addr string) string {
			a, b, self := dial(t, addr), dial(t, addr), dial(t, addr)
			id := func(c *client) string { return strings.TrimPrefix(c.do("client", "id"), ":") }
			line := strings.NewReplacer("ADDR", b.nc.LocalAddr().String(), "SELF", id(self), "A", id(a), "B", id(b)).Replace(line)
			n := self.do(append([]string{"client", "kill"}, strings.Fields(line)...)...)
			alive := func(c *client) string {
				_, _ = c.nc.Write(encode("echo", "alive"))
				s, _ := c.try()
				return s
			}
			return n + " A: " + alive(a) + " B: " + alive(b) + " self: " + alive(self)
		}
		if got, want := run(r.addr), run(redis); got != want {
			t.Errorf("%s: got %s, want %s", line, got, want)
		}
	}
}
