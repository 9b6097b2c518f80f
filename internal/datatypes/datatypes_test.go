package datatypes

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/codec"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// fakeLog stands for the event log: it answers each append with the next offset, and fails for the value "fail".
type fakeLog struct{}

func (fakeLog) ID() shard.ModuleID { return shard.ModuleEventlog }

func (fakeLog) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	if string(cmd) == "fail" {
		return nil, errs.New(errs.Invalid, "told to fail")
	}
	n := uint64(0)
	if b, ok := tx.Get([]byte("n")); ok {
		n = binary.BigEndian.Uint64(b)
	}
	tx.Set([]byte("n"), binary.BigEndian.AppendUint64(nil, n+1))
	return binary.BigEndian.AppendUint64(nil, n), nil
}

func (fakeLog) Query(v shard.View, q []byte) ([]byte, error) {
	b, _ := v.Get([]byte("n"))
	return b, nil
}

func (fakeLog) Fire(*shard.Tx, []byte) error { return nil }

func newModule() *Module {
	return New(Config{AppendEvent: func(b []byte, e *Event, _ [][]byte) []byte {
		return append(b, e.Value...)
	}, EncodeFence: func(lock []byte, token int64, home bool) []byte {
		return fmt.Appendf(nil, "%s %d %v", lock, token, home)
	}})
}

// rig runs commands written as words.
type rig struct {
	t testing.TB
	c *shardtest.Client
}

func newRig(t testing.TB) *rig {
	return &rig{t, shardtest.New(t, shardtest.Options{}, newModule(), fakeLog{})}
}

func specOf(name string) *Spec {
	for i := range table {
		if table[i].Name == name {
			return &table[i]
		}
	}
	return nil
}

func words(line string) (*Spec, [][]byte) {
	f := strings.Fields(line)
	var args [][]byte
	for _, a := range f[1:] {
		args = append(args, []byte(strings.Trim(a, `"`)))
	}
	return specOf(f[0]), args
}

func (r *rig) submit(data []byte) string {
	res := r.c.Submit(context.Background(), shard.Route{Shard: 1}, shard.Command{Module: shard.ModuleDatatypes, Data: data}).
		Wait(context.Background())
	if res.Err != nil {
		return string(AppendError(nil, res.Err))
	}
	return string(res.Data)
}

func (r *rig) query(data []byte) string {
	out, err := r.c.Query(context.Background(), shard.Route{Shard: 1}, shard.Linearizable, shard.Command{Module: shard.ModuleDatatypes, Data: data})
	if err != nil {
		return string(AppendError(nil, err))
	}
	return string(out)
}

func (r *rig) do(line string) string {
	s, args := words(line)
	if s == nil {
		r.t.Fatalf("no command %q", line)
	}
	if s.Flags&Write == 0 {
		return strings.ReplaceAll(r.query(AppendQuery(nil, s.Op, r.c.Now().UnixMilli(), 7, args)), "\r\n", " ")
	}
	return strings.ReplaceAll(r.submit(EncodeCommand(s.Op, args)), "\r\n", " ")
}

func (r *rig) version(key string) uint64 {
	vs, err := DecodeVersions([]byte(r.query(EncodeVersions(0, [][]byte{[]byte(key)}))), 1)
	if err != nil {
		r.t.Fatal(err)
	}
	return vs[0]
}

func (r *rig) exec(watched []Watched, lines ...string) string {
	var body []byte
	for _, l := range lines {
		s, args := words(l)
		body = AppendSub(body, s.Op, args)
	}
	return strings.ReplaceAll(r.submit(EncodeExec(watched, len(lines), body)), "\r\n", " ")
}

func (r *rig) want(line, want string) {
	r.t.Helper()
	if got := r.do(line); strings.TrimSpace(got) != want {
		r.t.Errorf("%s: got %q, want %q", line, got, want)
	}
}

// peeker is a module that reads the shard's change log.
type peeker struct{ fakeLog }

func (peeker) ID() shard.ModuleID { return 200 }

func (peeker) Query(v shard.View, _ []byte) ([]byte, error) {
	cs, err := v.Changes(0, 1<<20)
	var b []byte
	for _, ch := range cs.Changes {
		b = fmt.Appendf(b, "%s %s", ch.Op, ch.Key)
		if ch.Value != nil {
			b = fmt.Appendf(b, "=%s", ch.Value)
		}
		for _, h := range ch.Headers {
			b = fmt.Appendf(b, " %s:%s", h.Name, h.Value)
		}
		b = append(b, '\n')
	}
	return b, err
}

func TestChanges_SayWhatHappened(t *testing.T) {
	r := &rig{t, shardtest.New(t, shardtest.Options{}, newModule(), fakeLog{}, peeker{})}
	for _, l := range []string{
		"set a 1", "incrby a 4", "get a", "set a 1 nx", "del a", "del a", "hset h f 1 g 2", "hdel h f nope", "pexpire h 100",
		"hdel h g", "set b 1 px 100", "hincrby h n 2", "rename b c", "persist c",
	} {
		r.do(l)
	}
	r.do("set d 1 px 5")
	r.c.Advance(10 * time.Millisecond)
	at := r.c.Now().UnixMilli() - 10
	got, err := r.c.Query(context.Background(), shard.Route{Shard: 1}, shard.Linearizable, shard.Command{Module: 200})
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`set a=1
incrby a=5
del a
hset h=1 field:f
hset h=2 field:g
hdel h field:f
expire h= expire_at_ms:%d
hdel h field:g
del h
set b=1 expire_at_ms:%d
hincrby h=2 field:n
del b
rename c=1 from:b expire_at_ms:%d
persist c=1
set d=1 expire_at_ms:%d
expired d
`, at+100, at+100, at+100, at+5)
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestExpiry_FollowsShardClock(t *testing.T) {
	r := newRig(t)
	r.want("set a 1 px 100", "+OK")
	r.want("hset h f v", ":1")
	r.want("pexpire h 50", ":1")
	r.want("pttl a", ":100")
	r.c.Advance(60 * time.Millisecond)
	r.want("exists h a", ":1")
	r.want("pttl a", ":40")
	r.c.Advance(40 * time.Millisecond)
	r.want("get a", "_")
	r.want("ttl a", ":-2")
	r.want("dbsize", ":0")
}

func TestExpiry_ReplacedTimerDoesNotFire(t *testing.T) {
	r := newRig(t)
	r.want("set a 1 px 100", "+OK")
	r.want("set a 2", "+OK")
	r.want("set b 1 px 100", "+OK")
	r.want("persist b", ":1")
	r.want("set c 1 px 100", "+OK")
	r.want("pexpire c 300", ":1")
	r.want("set d 1 px 100", "+OK")
	r.want("rename d e", "+OK")
	r.want("set f 1 px 9223370000000000000", "+OK")
	r.c.Advance(200 * time.Millisecond)
	r.want("mget a b c d e f", "*6 $1 2 $1 1 $1 1 _ _ $1 1")
}

func TestWatch_NoticesEveryChange(t *testing.T) {
	for _, tc := range []struct {
		name, before string
		between      []string
		advance      time.Duration
		changed      bool
	}{
		{"nothing", "set k 1", nil, 0, false},
		{"another key", "set k 1", []string{"set other 1", "del other"}, 0, false},
		{"same value again", "set k 1", []string{"set k 1"}, 0, true},
		{"deleted and made again", "set k 1", []string{"del k", "set k 1"}, 0, true},
		{"missing, made and deleted", "del k", []string{"set k 1", "del k"}, 0, true},
		{"missing, made and expired", "del k", []string{"set k 1 px 10"}, 20 * time.Millisecond, true},
		{"missing, stays so", "del k", []string{"set other 1"}, 0, false},
		{"expired", "set k 1 px 10", nil, 20 * time.Millisecond, true},
		{"flushed", "set k 1", []string{"flushall"}, 0, true},
		{"hash field", "hset k f v", []string{"hset k g v"}, 0, true},
		{"expiry set", "set k 1", []string{"expire k 100"}, 0, true},
		{"renamed away and back", "set k 1", []string{"rename k x", "rename x k"}, 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.do(tc.before)
			v := r.version("k")
			for _, l := range tc.between {
				r.do(l)
			}
			r.c.Advance(tc.advance)
			got := r.exec([]Watched{{[]byte("k"), v}}, "set done 1")
			if want := map[bool]string{true: "_ ", false: "*1 +OK "}[tc.changed]; got != want {
				t.Errorf("exec: got %q, want %q", got, want)
			}
		})
	}
}

func TestExec_FailingCommandLeavesOthers(t *testing.T) {
	r := newRig(t)
	got := r.exec(nil, "set a x", "incr a", "hset a f v", "append a y", "get a")
	want := "*5 +OK -ERR value is not an integer or out of range -WRONGTYPE Operation against a key holding the wrong kind of value :2 $2 xy "
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestExec_EventAndStateTogether(t *testing.T) {
	r := newRig(t)
	ev := func(value string) [][]byte {
		e := Event{Topic: [16]byte{1}, Partition: 3, Value: []byte(value), Headers: []EventHeader{{"a", []byte("b")}}}
		return e.AppendArgs(nil, nil)
	}
	body := AppendSub(nil, opSet, [][]byte{[]byte("k"), []byte("v")})
	body = AppendSub(body, opEventAdd, ev("good"))
	body = AppendSub(body, opEventAdd, ev("fail"))
	body = AppendSub(body, opEventAdd, ev("good"))
	got := r.submit(EncodeExec(nil, 4, body))
	if want := "*4\r\n+OK\r\n*2\r\n:3\r\n:0\r\n-ERR told to fail\r\n*2\r\n:3\r\n:1\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if rev := r.c.Machine(1).Revision(); rev != 1 {
		t.Errorf("the transaction took %d revisions, want 1", rev)
	}
}

func TestBigHash_RemovedInBackground(t *testing.T) {
	r := newRig(t)
	const n = 3000
	var args [][]byte
	args = append(args, []byte("h"))
	for i := range n {
		args = append(args, fmt.Appendf(nil, "f%d", i), []byte("v"))
	}
	for _, drop := range []string{"del h", "set h x", "flushall"} {
		r.do("del h")
		if got := r.submit(EncodeCommand(opHSet, args)); got != fmt.Sprintf(":%d\r\n", n) {
			t.Fatalf("hset: %q", got)
		}
		r.do(drop)
		r.want("hlen other", ":0")
		r.c.Advance(time.Millisecond)
		if left := countRows(t, r.c.Machine(1), rowField); left != 0 {
			t.Errorf("%s: %d field rows are left", drop, left)
		}
	}
}

// countRows counts the module's rows of a kind, by a snapshot.
func countRows(t *testing.T, m *shard.Machine, kind byte) int {
	t.Helper()
	snap, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close() //nolint:errcheck // a read view
	n := 0
	for {
		chunk, err := snap.Next(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		if chunk == nil {
			return n
		}
		d := codec.Read(chunk)
		for d.Len() > 0 {
			k := d.Bytes()
			d.Bytes()
			if len(k) > 1 && k[0] == byte(shard.ModuleDatatypes) && k[1] == kind {
				n++
			}
		}
	}
}

func TestFlush_InSteps(t *testing.T) {
	r := newRig(t)
	const n = 3 * FlushKeysMax
	for i := 0; i < n; i += 1000 {
		var args [][]byte
		for j := i; j < min(i+1000, n); j++ {
			args = append(args, fmt.Appendf(nil, "k%d", j), []byte("v"))
		}
		r.submit(EncodeCommand(opMSet, args))
	}
	r.want("dbsize", fmt.Sprintf(":%d", n))
	if got := r.do("flushall"); !strings.HasPrefix(got, "-ERR more than 4096 keys") {
		t.Errorf("flushall in one step: %q", got)
	}
	bound, cursor, steps := uint64(0), uint64(0), 0
	for {
		var err error
		bound, cursor, err = DecodeFlushStep([]byte(r.submit(EncodeFlushStep(bound, cursor))))
		if err != nil {
			t.Fatal(err)
		}
		r.do(fmt.Sprintf("set k%d new", steps))
		steps++
		if cursor == 0 {
			break
		}
	}
	if steps < 3 {
		t.Errorf("flushed in %d steps", steps)
	}
	r.want("dbsize", fmt.Sprintf(":%d", steps))
}

func TestScan_ReturnsEveryKeyOnce(t *testing.T) {
	r := newRig(t)
	want := map[string]bool{}
	for i := range 500 {
		k := fmt.Sprintf("k%d", i)
		want[k] = true
		r.do("set " + k + " v")
		r.do("hset h f" + k + " v")
	}
	for _, cmd := range []string{"scan %d count 7", "hscan h %d count 7"} {
		seen, cursor, calls := map[string]bool{}, uint64(0), 0
		for {
			var got string
			if strings.HasPrefix(cmd, "scan") {
				got = r.do(fmt.Sprintf(cmd, cursor))
			} else {
				got = r.do(fmt.Sprintf(cmd, cursor))
			}
			f := strings.Fields(got)
			if _, err := fmt.Sscan(f[2], &cursor); err != nil {
				t.Fatal(got)
			}
			for _, w := range f[4:] {
				k := strings.TrimPrefix(w, "f")
				if want[k] {
					if seen[k] {
						t.Errorf("%s came twice", k)
					}
					seen[k] = true
				}
			}
			calls++
			if cursor == 0 {
				break
			}
		}
		if len(seen) != len(want) || calls < 50 {
			t.Errorf("%s: saw %d of %d in %d calls", cmd, len(seen), len(want), calls)
		}
	}
}

func TestGlob(t *testing.T) {
	for _, tc := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true}, {"*", "abc", true}, {"a*c", "abc", true}, {"a*c", "abd", false}, {"?", "", false}, {"h?llo", "hello", true},
		{"h[ae]llo", "hallo", true}, {"h[^e]llo", "hello", false}, {"h[^e]llo", "hallo", true}, {"h[a-c]llo", "hbllo", true},
		{"h[c-a]llo", "hbllo", true}, {`h\*llo`, "h*llo", true}, {`h\*llo`, "hello", false}, {"a**b", "axxb", true},
		{"[^a]x", "^x", true}, {"[^^]x", "^x", false}, {"[a-c]x", "-x", false}, {"[a-c]x", "ax", true}, {"[a-c]x", "cx", true}, {"[a-c]x", "dx", false},
		{`[\]]x`, "]x", true}, {`[\a]x`, "ax", true}, {`[\a]x`, `\x`, false}, {`[a\-c]x`, "bx", false}, {`[a\-c]x`, "-x", true}, {"[ab", "b", true},
		{"[", "[", false}, {"[a", "a", true}, {`a\`, `a\`, true}, {"", "", true}, {"", "a", false}, {"*a*b*c", "xxaxxbxxc", true},
	} {
		if got := Match([]byte(tc.pattern), []byte(tc.s)); got != tc.want {
			t.Errorf("match(%q, %q) = %v", tc.pattern, tc.s, got)
		}
	}
	// A pattern of many stars must not take exponential time.
	if Match([]byte(strings.Repeat("*a", 200)+"b"), bytes.Repeat([]byte("a"), 4000)) {
		t.Error("matched")
	}
}

func TestSlot(t *testing.T) {
	for key, want := range map[string]uint16{
		"foo": 12182, "bar": 5061, "{user1000}.following": 3443, "{user1000}.followers": 3443, "foo{}{bar}": 8363,
		"foo{{bar}}zap": 4015, "foo{bar}{zap}": 5061, "": 0, "123456789": 0x31c3,
	} {
		if got := Slot([]byte(key)); got != want {
			t.Errorf("Slot(%q) = %d, want %d", key, got, want)
		}
	}
}

func TestConformance(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	lines := []string{
		"set %k %v", "set %k %v px %n", "set %k %v nx get", "get %k", "append %k %v", "incr %k", "incrbyfloat %k 1.5",
		"setrange %k 3 %v", "getex %k px %n", "getdel %k", "mset %k %v %k %v", "msetnx %k %v %k %v", "hset %k f%n %v",
		"hset %k a 1 b 2 c 3", "hdel %k a b", "hincrby %k a 3", "del %k %k", "expire %k 1", "pexpire %k %n gt", "persist %k",
		"rename %k %k", "copy %k %k replace", "flushall", "hrandfield %k", "setnx %k %v",
	}
	var steps []shardtest.Step
	for range 1500 {
		l := lines[rnd.IntN(len(lines))]
		for strings.Contains(l, "%") {
			l = strings.Replace(l, "%k", fmt.Sprintf("k%d", rnd.IntN(12)), 1)
			l = strings.Replace(l, "%v", fmt.Sprint(rnd.IntN(1000)), 1)
			l = strings.Replace(l, "%n", fmt.Sprint(rnd.IntN(300)+1), 1)
		}
		s, args := words(l)
		data := EncodeCommand(s.Op, args)
		if rnd.IntN(5) == 0 {
			var body []byte
			for range 3 {
				body = AppendSub(body, s.Op, args)
			}
			data = EncodeExec([]Watched{{[]byte("none"), 0}}, 3, body)
		}
		steps = append(steps, shardtest.Step{After: time.Duration(rnd.IntN(60)) * time.Millisecond, Cmd: data})
	}
	var args [][]byte
	args = append(args, []byte("big"))
	for i := range 1500 {
		args = append(args, fmt.Appendf(nil, "f%d", i), []byte("v"))
	}
	steps = append(steps,
		shardtest.Step{Cmd: EncodeCommand(opHSet, args)},
		shardtest.Step{Cmd: EncodeCommand(opDel, [][]byte{[]byte("big")})},
		shardtest.Step{After: time.Second, Cmd: EncodeFlushStep(0, 0)},
		shardtest.Step{Cmd: []byte{1, 200, 0}}, shardtest.Step{Cmd: []byte{}}, shardtest.Step{Cmd: []byte{9}})
	shardtest.Conformance(t, []shard.Module{newModule(), fakeLog{}}, shard.ModuleDatatypes, steps)
}

// TestOps_NeverChange pins the numbers that are written to the log.
func TestOps_NeverChange(t *testing.T) {
	var b strings.Builder
	for _, s := range Commands() {
		fmt.Fprintf(&b, "%s=%d ", s.Name, s.Op)
	}
	const want = "set=16 get=17 getset=18 getdel=19 getex=20 setnx=21 setex=22 psetex=23 mset=24 msetnx=25 mget=26 append=27 " +
		"strlen=28 getrange=29 substr=30 setrange=31 incr=32 decr=33 incrby=34 decrby=35 incrbyfloat=36 " +
		"hset=48 hmset=49 hsetnx=50 hget=51 hmget=52 hgetall=53 hdel=54 hlen=55 hexists=56 hkeys=57 hvals=58 hincrby=59 " +
		"hincrbyfloat=60 hstrlen=61 hscan=62 hrandfield=63 " +
		"del=80 unlink=81 exists=82 type=83 expire=84 pexpire=85 expireat=86 pexpireat=87 ttl=88 pttl=89 expiretime=90 " +
		"pexpiretime=91 persist=92 rename=93 renamenx=94 copy=95 touch=96 randomkey=97 keys=98 scan=99 dbsize=100 " +
		"flushdb=101 flushall=102 event.add=3 "
	if b.String() != want {
		t.Errorf("ops:\n%s\nwant\n%s", b.String(), want)
	}
}

func TestEncoding_Golden(t *testing.T) {
	args := [][]byte{[]byte("k"), []byte("vv")}
	for name, tc := range map[string]struct{ got, want string }{
		"command":  {string(EncodeCommand(opSet, args)), "\x01\x10\x02\x01k\x02vv"},
		"query":    {string(AppendQuery(nil, opGet, 1, 2, args[:1])), "\x01\x11\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\x01k"},
		"exec":     {string(EncodeExec([]Watched{{[]byte("w"), 5}}, 1, AppendSub(nil, opSet, args))), "\x01\x01\x01\x01w\x05\x00\x00\x00\x00\x00\x00\x00\x01\x10\x02\x01k\x02vv"},
		"batch":    {string(AppendBatch(nil, 1, 2, 2, AppendSub(AppendSub(nil, opGet, args[:1]), opGet, args[:1]))), "\x01\x04\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x02\x11\x01\x01k\x11\x01\x01k"},
		"flush":    {string(EncodeFlushStep(1, 2)), "\x01\x02\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00"},
		"fenced":   {string(EncodeFenced([]Fence{{Lock: []byte("l"), Token: 300, Home: true}}, EncodeCommand(opSet, args))), "\x01\x09\x01\x01\xac\x02\x01l\x10\x02\x01k\x02vv"},
		"versions": {string(EncodeVersions(1, args[:1])), "\x01\x05\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x01k"},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: got %q, want %q", name, tc.got, tc.want)
		}
	}
}

func TestLimits_AreNamed(t *testing.T) {
	r := newRig(t)
	long := bytes.Repeat([]byte("k"), KeyBytesMax+1)
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"key":      {EncodeCommand(opSet, [][]byte{long, []byte("v")}), "-ERR key of 65537 bytes"},
		"key in":   {EncodeCommand(opDel, [][]byte{[]byte("a"), long}), "-ERR key of 65537 bytes"},
		"field":    {EncodeCommand(opHSet, [][]byte{[]byte("a"), long, nil}), "-ERR key of 65537 bytes"},
		"setrange": {EncodeCommand(opSetRange, [][]byte{[]byte("a"), []byte("8388608"), []byte("x")}), "-ERR string exceeds"},
		"far":      {EncodeCommand(opSetRange, [][]byte{[]byte("a"), []byte("9223372036854775807"), []byte("x")}), "-ERR string exceeds"},
		"arity":    {EncodeCommand(opGet, nil), "-ERR wrong number of arguments for 'get' command"},
		"short":    {[]byte{1, byte(opSet), 5}, "-ERR damaged data"},
		"version":  {[]byte{2, byte(opSet)}, "-ERR datatypes command of version 2"},
		"event":    {EncodeCommand(opEventAdd, [][]byte{{1}, {2}, {3}, {4}}), "-ERR damaged data"},
	} {
		if got := r.submit(tc.data); !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s: got %q, want %q", name, got, tc.want)
		}
	}
	if got := r.query(AppendQuery(nil, opSet, 0, 0, [][]byte{{1}, {2}})); !strings.Contains(got, "sent as a query") {
		t.Errorf("write as a query: %q", got)
	}
}

func TestBatch_EndsEarlyWhenLong(t *testing.T) {
	r := newRig(t)
	r.submit(EncodeCommand(opSet, [][]byte{[]byte("a"), make([]byte, BatchAnswerBytes/2)}))
	body, n := []byte(nil), 5
	for range n {
		body = AppendSub(body, opGet, [][]byte{[]byte("a")})
	}
	rest := []byte(r.query(AppendBatch(nil, 0, 0, n, body)))
	got := 0
	for len(rest) > 0 {
		var err error
		if _, rest, err = NextAnswer(rest); err != nil {
			t.Fatal(err)
		}
		got++
	}
	if got == 0 || got >= n {
		t.Errorf("%d of %d answers in one batch", got, n)
	}
}

func FuzzApply(f *testing.F) {
	for i := range table {
		f.Add(EncodeCommand(table[i].Op, [][]byte{[]byte("k"), []byte("1"), []byte("2")}))
		f.Add(AppendQuery(nil, table[i].Op, 5, 6, [][]byte{[]byte("k"), []byte("1")}))
	}
	f.Add(EncodeExec([]Watched{{[]byte("k"), 1}}, 1, AppendSub(nil, opSet, [][]byte{{1}, {2}})))
	f.Add(AppendBatch(nil, 1, 2, 1, AppendSub(nil, opGet, [][]byte{{1}})))
	f.Add(EncodeFenced([]Fence{{Lock: []byte("l"), Token: 3}, {Lock: []byte("m"), Token: 4, Home: true}}, EncodeCommand(opSet, [][]byte{{1}, {2}})))
	r := newRig(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		r.submit(data)
		r.query(data)
		if body, err := SkipSub(data); err == nil && len(body) >= len(data) {
			t.Error("SkipSub did not move")
		}
	})
}

func BenchmarkSet(b *testing.B) {
	r := newRig(b)
	val := make([]byte, 64)
	b.ReportAllocs()
	for i := range b.N {
		r.submit(EncodeCommand(opSet, [][]byte{fmt.Appendf(nil, "key:%d", i%10000), val}))
	}
}
