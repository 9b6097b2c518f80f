package redis

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/shardtest"
)

// startRedis runs a real redis-server on a free port until the test ends.
func startRedis(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("no redis-server on PATH to compare with")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command(path, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir(), "--databases", "1")
	if err := cmd.Start(); err != nil {
		t.Skipf("redis-server does not start: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, "redis-server listens", func() bool {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		_ = nc.Close()
		return true
	})
	return addr
}

// unordered commands answer in an order that is nobody's promise; random ones with anything.
var unordered = map[string]bool{"hkeys": true, "hvals": true, "hgetall": true, "keys": true}

// words are the parts of a reply.
var words = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|\S+`)

func canonical(cmd, reply string) string {
	if !unordered[cmd] || len(reply) < 2 || reply[0] != '[' && reply[0] != '{' {
		return reply
	}
	parts := words.FindAllString(reply[1:len(reply)-1], -1)
	if cmd == "hgetall" {
		for i := 0; i+1 < len(parts); i += 2 {
			parts[i/2] = parts[i] + "=" + parts[i+1]
		}
		parts = parts[:len(parts)/2]
	}
	slices.Sort(parts)
	return reply[:1] + strings.Join(parts, " ")
}

type generator struct{ *rand.Rand }

func (g generator) pick(s ...string) string { return s[g.IntN(len(s))] }
func (g generator) key() string             { return "k" + strconv.Itoa(g.IntN(8)) }
func (g generator) field() string           { return g.pick("a", "b", "c", "d", "", "long_field") }
func (g generator) value() string {
	return g.pick("", "x", "hello", "12", "-7", "9223372036854775807", "-9223372036854775808", "9223372036854775808", "3.25", "1e3",
		" 1", "01", "+1", "-0", "0", "1.0", "inf", "nan", "0.1", "\x00\r\n", strings.Repeat("y", 40))
}
func (g generator) number() string {
	return g.pick("0", "1", "-1", "5", "10", "-3", "100", "9223372036854775807", "-9223372036854775808", "x", "", "1.5", "007", " 4")
}
func (g generator) float() string {
	return g.pick("0.1", "0.2", "1", "-1.5", "3e2", "1e-5", "x", "", "inf", "-inf", "nan", "1e400", "123456789.123456789", "1e5000", ".5", "5.", "1e", "0.30000000000000004")
}
func (g generator) ttl() string {
	return g.pick("1000", "5000", "0", "-1", "x", "9223372036854775807", "9223372036854775", "100000")
}
func (g generator) someTTL(line []string) []string {
	return append(line, g.pick("EX", "ex", "PX", "EXAT", "PXAT"), g.pick("100000", "0", "-5", "y", "9999999999999", "9223372036854775807"))
}

// command makes a random command, mostly well formed.
func (g generator) command() []string {
	k, v, f := g.key(), g.value(), g.field()
	switch g.IntN(52) {
	case 0, 1, 2:
		return []string{"set", k, v}
	case 3, 4:
		line := []string{"set", k, v}
		for range g.IntN(3) {
			line = append(line, g.pick("nx", "XX", "GET", "keepttl", "bad", "persist"))
		}
		if g.IntN(2) == 0 {
			line = g.someTTL(line)
		}
		return line
	case 5, 6:
		return []string{"get", k}
	case 7:
		return []string{"getset", k, v}
	case 8:
		return []string{"getdel", k}
	case 9:
		line := []string{"getex", k}
		switch g.IntN(3) {
		case 0:
			line = append(line, g.pick("persist", "bad", "nx"))
		case 1:
			line = g.someTTL(line)
		}
		return line
	case 10:
		return []string{"setnx", k, v}
	case 11:
		return []string{g.pick("setex", "psetex"), k, g.ttl(), v}
	case 12:
		return []string{"mset", k, v, g.key(), g.value()}[:g.pick("5", "5", "5", "4")[0]-'0']
	case 13:
		return []string{"msetnx", k, v, g.key(), g.value()}
	case 14:
		return []string{"mget", k, g.key(), g.key()}
	case 15, 16:
		return []string{"append", k, v}
	case 17:
		return []string{"strlen", k}
	case 18:
		return []string{g.pick("getrange", "substr"), k, g.number(), g.number()}
	case 19:
		return []string{"setrange", k, g.pick("0", "3", "20", "-1", "x", "600000000", "9223372036854775807"), g.pick("", "abc")}
	case 20:
		return []string{g.pick("incr", "decr"), k}
	case 21, 22:
		return []string{g.pick("incrby", "decrby"), k, g.number()}
	case 23, 24:
		return []string{"incrbyfloat", k, g.float()}
	case 25, 26:
		return []string{g.pick("hset", "hmset"), k, f, v, g.field(), g.value()}[:g.pick("6", "6", "6", "5")[0]-'0']
	case 27:
		return []string{"hsetnx", k, f, v}
	case 28:
		return []string{"hget", k, f}
	case 29:
		return []string{"hmget", k, f, g.field()}
	case 30:
		return []string{g.pick("hgetall", "hkeys", "hvals"), k}
	case 31, 32:
		return []string{"hdel", k, f, g.field()}
	case 33:
		return []string{g.pick("hlen", "type", "persist", "exists"), k}
	case 34:
		return []string{g.pick("hexists", "hstrlen"), k, f}
	case 35:
		return []string{"hincrby", k, f, g.number()}
	case 36:
		return []string{"hincrbyfloat", k, f, g.float()}
	case 37:
		return []string{g.pick("del", "unlink", "exists", "touch"), k, g.key()}
	case 38, 39, 40:
		line := []string{g.pick("expire", "pexpire"), k, g.pick("100000000", "200000000", "-1", "0", "x", "9223372036854775807")}
		for range g.IntN(3) {
			line = append(line, g.pick("nx", "XX", "gt", "LT", "bad"))
		}
		return line
	case 41:
		return []string{g.pick("expireat", "pexpireat"), k, g.pick("99999999999", "9999999999999", "1", "-1", "x", "9223372036854775807"), g.pick("nx", "xx", "gt", "lt")}
	case 42:
		return []string{g.pick("expiretime", "pexpiretime", "ttl", "pttl"), k}
	case 43:
		return []string{g.pick("rename", "renamenx"), k, g.key()}
	case 44:
		line := []string{"copy", k, g.key()}
		for range g.IntN(2) {
			line = append(line, g.pick("replace", "bad"))
		}
		return line
	case 45:
		return []string{"keys", g.pick("*", "k*", "k[1-3]", "k?", "nope", "[^k]*", `\k1`)}
	case 46:
		return []string{"dbsize"}
	case 47:
		return []string{"hrandfield", k, g.pick("0", "x", "100", "-9223372036854775808", "9223372036854775807"), g.pick("withvalues", "bad")}[:g.pick("3", "4")[0]-'0']
	case 48:
		return []string{"hscan", k, g.pick("0", "x"), g.pick("count", "match", "type", "bad"), g.pick("100", "*", "0", "x")}
	case 49:
		return []string{"scan", g.pick("0", "x"), g.pick("count", "match", "type", "bad"), g.pick("1000", "z*", "0", "x")}
	case 50:
		return []string{g.pick("get", "set", "hset", "expire", "mget", "nosuchcommand", "incrby", "select", "flushall", "hrandfield"), g.pick("a", "99")}[:g.pick("1", "2", "2")[0]-'0']
	default:
		return []string{"ping", "echo", "x"}[:g.pick("1", "2", "3")[0]-'0']
	}
}

// comparable says whether two replies may differ by nature.
func comparable(args []string) bool {
	switch args[0] {
	case "scan", "hscan":
		// The order within a page and its size are not promised: compare what is an error.
		return false
	case "hrandfield":
		return len(args) > 2
	}
	return true
}

func sameReply(args []string, got, want string) bool {
	if got == want {
		return true
	}
	cmd := args[0]
	switch cmd {
	case "ttl", "pttl", "expiretime", "pexpiretime":
		g, err1 := strconv.ParseInt(strings.TrimPrefix(got, ":"), 10, 64)
		w, err2 := strconv.ParseInt(strings.TrimPrefix(want, ":"), 10, 64)
		return err1 == nil && err2 == nil && g > 0 && w > 0 && max(g-w, w-g) < 60_000
	case "dbsize":
		// Redis counts keys that have expired but were not removed yet.
		return got <= want
	case "setrange":
		// Ours is the tighter limit.
		return strings.Contains(got, "exceeds maximum") && strings.Contains(want, "exceeds maximum")
	case "select":
		return strings.HasPrefix(got, "-ERR DB index is out of range") && strings.HasPrefix(want, "-ERR DB index is out of range")
	}
	if !comparable(args) {
		return (got[0] == '-') == (want[0] == '-') && (got[0] != '-' || got == want) || strings.Contains(want, "[") && strings.Contains(got, "[")
	}
	if cmd == "hrandfield" && want[0] == '[' {
		return len(strings.Fields(got)) == len(strings.Fields(want))
	}
	return canonical(cmd, got) == canonical(cmd, want)
}

func TestDifferential_SameRepliesAsRedis(t *testing.T) {
	redis := startRedis(t)
	// Lone reads are a gatherer's, or left to whoever has the answer.
	rigs := []*rig{
		newRig(t, shardtest.Options{RealTime: true}, Config{}),
		newRig(t, shardtest.Options{RealTime: true}, Config{leaveMin: 1, loneMin: 1000, gatherMin: 1000}),
	}
	for _, proto := range []string{"2", "3"} {
		for seed := range uint64(4) {
			r := rigs[seed%2]
			ours, theirs := r.dial(), dial(t, redis)
			ours.do("hello", proto)
			theirs.do("hello", proto)
			ours.do("flushall")
			theirs.do("flushall")
			g := generator{rand.New(rand.NewPCG(seed, 1))}
			bad := 0
			compare := func(args []string, got, want string) {
				if strings.HasPrefix(want, "-ERR unknown command") {
					want, got = want[:20], got[:min(len(got), 20)]
				}
				if sameReply(args, got, want) {
					return
				}
				t.Errorf("proto %s seed %d: %q\n got %s\nwant %s", proto, seed, args, got, want)
				if bad++; bad > 10 {
					t.FailNow()
				}
			}
			for i := range 2500 {
				if i%50 == 49 {
					differTransaction(g, ours, theirs, compare)
					continue
				}
				args := g.command()
				compare(args, ours.do(args...), theirs.do(args...))
			}
		}
	}
}

// differTransaction compares a transaction of random commands, with WATCH and a change in between at times.
func differTransaction(g generator, ours, theirs *client, compare func(args []string, got, want string)) {
	both := func(args ...string) { compare(args, ours.do(args...), theirs.do(args...)) }
	if g.IntN(2) == 0 {
		k := g.key()
		both("watch", k, g.key())
		if g.IntN(2) == 0 {
			both("set", k, "changed")
		}
	}
	both("multi")
	var cmds [][]string
	for range g.IntN(6) {
		args := g.command()
		switch args[0] {
		case "ttl", "pttl", "expiretime", "pexpiretime", "hrandfield", "scan", "hscan", "hgetall", "hkeys", "hvals", "keys", "setrange", "select":
			continue
		}
		cmds = append(cmds, args)
		both(args...)
	}
	name := []string{"exec"}
	if g.IntN(8) == 0 {
		name[0] = "discard"
	}
	compare(append(name, fmt.Sprint(cmds)), ours.do(name...), theirs.do(name...))
}
