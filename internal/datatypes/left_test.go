package datatypes

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// However a key goes, or is replaced, neither it nor fields of it nor timers are left behind.
func TestKeys_LeaveNothing(t *testing.T) {
	for _, script := range []string{
		"set a x; del a",
		"hset a f v g w; hdel a f g",
		"hset a f v; set a x; del a",
		"hset a f v; set a x ex 100; del a",
		"hset a f v; set b x; rename b a; del a",
		"hset a f v; hset b g w; rename b a; del a",
		"hset a f v; set b x; copy b a replace; del a b",
		"hset a f v; hset b g w; copy b a replace; del a b",
		"hset a f v; flushall",
		// Nobody asks for these again: their timers remove them.
		"set a x px 100",
		"hset a f v; pexpire a 100",
		"set a x px 100; rename a b",
		"set a x px 100; copy a b",
		"hset a f v; pexpire a 100; copy a b",
		"set a x px 100; set b y px 50; rename b a",
		"set a x px 100; set b y px 50; copy b a replace",
		"set a x; getex a px 100",
		"set a x px 100; append a y",
		"set a x px 100; set a y keepttl",
		"hset a f v; set a x px 100",
		"hset a f v; set b x px 100; rename b a",
	} {
		r := newRig(t)
		for line := range strings.SplitSeq(script, "; ") {
			if got := r.do(line); got[0] == '-' || got[0] == '_' {
				t.Fatalf("%s: %s: %s", script, line, got)
			}
		}
		r.c.Advance(time.Hour)
		at, timer := r.c.Machine(1).NextTimer()
		if keys, fields := countRows(t, r.c.Machine(1), rowHead), countRows(t, r.c.Machine(1), rowField); keys+fields > 0 || timer {
			t.Errorf("%s: %d keys and %d fields are left, timer at %v: %v", script, keys, fields, at, timer)
		}
	}
}

// A hash that has expired, and that its timer has not removed yet, takes its fields with it when something else comes.
func TestExpiry_LateAndReplacedLeavesNothing(t *testing.T) {
	for _, line := range []string{"set h 1 get", "setnx h 1", "hset h g w", "incr h", "set h 1 xx", "expire h 100"} {
		l := newBare(t)
		l.do("hset h f v")
		l.do("pexpire h 10")
		l.now = l.now.Add(20 * time.Millisecond)
		l.do(line)
		l.do("del h")
		if n := countRows(t, l.m, rowField); n != 0 {
			t.Errorf("%s: %d fields of the hash before are left", line, n)
		}
	}
}

// random draws 300 times and returns what came up, sorted.
func (r *rig) random(line string) []string {
	r.t.Helper()
	s, args := words(line)
	seen := map[string]bool{}
	for seed := range uint64(300) {
		seen[r.query(AppendQuery(nil, s.Op, 0, seed, args))] = true
	}
	var all []string
	for x := range seen {
		all = append(all, strings.ReplaceAll(x, "\r\n", " "))
	}
	slices.Sort(all)
	return all
}

func TestRandom_AllComeUp(t *testing.T) {
	r := newRig(t)
	r.do("hset h a 1 b 2 c 3")
	r.do("set k v")
	r.do("set l v")
	for line, want := range map[string][]string{
		"hrandfield h":               {"$1 a ", "$1 b ", "$1 c "},
		"hrandfield h 1":             {"*1 $1 a ", "*1 $1 b ", "*1 $1 c "},
		"hrandfield h -1 withvalues": {"*1 *2 $1 a $1 1 ", "*1 *2 $1 b $1 2 ", "*1 *2 $1 c $1 3 "},
		"randomkey":                  {"$1 h ", "$1 k ", "$1 l "},
	} {
		if got := r.random(line); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	if n := len(r.random("hrandfield h 3")); n != 6 {
		t.Errorf("all three fields come in %d orders, want 6", n)
	}
}

func TestRandom_LargeHash(t *testing.T) {
	r := newRig(t)
	const fields = randomExact + 300
	var line strings.Builder
	line.WriteString("hset h")
	for i := range fields {
		fmt.Fprintf(&line, " f%d %d", i, i)
	}
	r.do(line.String())
	for _, n := range []int{1, 2, randomExact, fields - 1, fields, fields + 1} {
		got := strings.Fields(r.do(fmt.Sprintf("hrandfield h %d", n)))
		different := map[string]bool{}
		for _, f := range got[1:] {
			if f[0] != '$' {
				different[f] = true
			}
		}
		if want := min(n, fields); got[0] != fmt.Sprintf("*%d", want) || len(different) != want {
			t.Errorf("%d of %d fields: %s, %d different", n, fields, got[0], len(different))
		}
	}
	if n := len(r.random("hrandfield h")); n < 100 {
		t.Errorf("only %d fields come up in 300 draws", n)
	}
}

// One watched key that has changed is enough, whichever it is.
func TestWatch_AnyOfSeveralKeys(t *testing.T) {
	for _, changed := range []string{"a", "b", "c", "none"} {
		r := newRig(t)
		var watched []Watched
		for _, key := range []string{"a", "b", "c"} {
			r.do("set " + key + " 1")
			watched = append(watched, Watched{[]byte(key), r.version(key)})
		}
		r.do("set " + changed + " 2")
		want := "_ "
		if changed == "none" {
			want = "*1 +OK "
		}
		if got := r.exec(watched, "set done 1"); got != want {
			t.Errorf("%s has changed: %q, want %q", changed, got, want)
		}
	}
}

// TestCommands_AtTheirEdges pins what Redis 7.0.15 answers where one more or less would be another answer.
func TestCommands_AtTheirEdges(t *testing.T) {
	r := newRig(t)
	for _, tc := range [][2]string{
		{"set t x pxat 9999999999999", "+OK"}, {"pexpireat t 9999999999999 gt", ":0"}, {"pexpireat t 9999999999999 lt", ":0"},
		{"pexpireat t 9999999999998 lt", ":1"}, {"pexpireat t 9999999999999 gt", ":1"}, {"pexpireat t 9999999999998 gt", ":0"},
		{"set u x", "+OK"}, {"pexpireat u 9999999999999 gt", ":0"}, {"pexpireat u 9999999999999 lt", ":1"}, {"pexpireat u 1", ":1"}, {"exists u", ":0"},
		{"expire t 1 nx xx", "-ERR NX and XX, GT or LT options at the same time are not compatible"},
		{"expire t 1 gt lt", "-ERR GT and LT options at the same time are not compatible"},
		{"getex t pxat 1", "$1 x"}, {"exists t", ":0"}, {"set t x", "+OK"}, {"getex t ex 10 persist", "-ERR syntax error"}, {"getex t persist ex 10", "-ERR syntax error"},
		{"getrange t -5 -6", "$0"}, {"getrange t -6 -5", "$1 x"}, {"getrange t 0 0", "$1 x"}, {"getrange t 1 1", "$0"},
		{"set t -0", "+OK"}, {"incrbyfloat t -0", "$1 0"}, {"incrbyfloat t 1.5e1", "$2 15"}, {"incrbyfloat t 5E-1", "$4 15.5"},
		{"scan 0 count 1", "*2 $1 0 *1 $1 t"}, {"scan 0 count 0", "-ERR syntax error"}, {"hset h f v", ":1"}, {"hscan h 0 count 1", "*2 $1 0 *2 $1 f $1 v"},
		{"hscan h 0 match g", "*2 $1 0 *0"}, {"hrandfield h 1 withvalues x", "-ERR syntax error"}, {"hrandfield h 0", "*0"},
		{"flushall x", "-ERR syntax error"}, {"flushall sync async", "-ERR syntax error"}, {"dbsize", ":2"}, {"flushall ASYNC", "+OK"}, {"dbsize", ":0"},
	} {
		r.want(tc[0], tc[1])
	}
}

// The event that another model gets is what was asked for; one that is refused for the want of a fence takes the transaction with it.
func TestExec_Events(t *testing.T) {
	var got []string
	m := New(Config{AppendEvent: func(b []byte, e *Event, _ [][]byte) []byte {
		got = append(got, fmt.Sprintf("%x %d %q null %v, %q, %q", e.Topic[:1], e.Partition, e.Key, e.KeyNull, e.Value, e.Headers))
		return append(b, e.Value...)
	}})
	r := &rig{t, shardtest.New(t, shardtest.Options{}, m, fencedLog{})}
	add := func(value string, key []byte, headers ...EventHeader) {
		t.Helper()
		e := Event{Topic: [16]byte{1}, Partition: 3, Key: key, KeyNull: key == nil, Value: []byte(value), Headers: headers}
		body := AppendSub(AppendSub(nil, opSet, [][]byte{[]byte("k"), []byte(value)}), opEventAdd, e.AppendArgs(nil, nil))
		answer, want := r.submit(EncodeExec(nil, 2, body)), "*2\r\n+OK\r\n"
		if value == "stale" {
			want = "-"
		}
		if !strings.HasPrefix(answer, want) {
			t.Errorf("%s: %q", value, answer)
		}
	}
	add("v", nil)
	add("w", []byte{})
	add("x", []byte("key"), EventHeader{"a", []byte("b")}, EventHeader{"c", nil})
	add("stale", nil)
	want := []string{
		`01 3 "" null true, "v", []`, `01 3 "" null false, "w", []`, `01 3 "key" null false, "x", [{"a" "b"} {"c" ""}]`, `01 3 "" null true, "stale", []`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	r.want("get k", "$1 x")
}

// fencedLog refuses one value as an event log does whose topic has a lock.
type fencedLog struct{ fakeLog }

func (l fencedLog) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	if string(cmd) == "stale" {
		return nil, errs.New(errs.Fenced, "told to refuse")
	}
	return l.fakeLog.Apply(tx, cmd)
}
