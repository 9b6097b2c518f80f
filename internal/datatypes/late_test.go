package datatypes

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// bare is a machine whose entries the test makes: no entry fires its timers, however late it is.
type bare struct {
	t     *testing.T
	store *storage.Store
	m     *shard.Machine
	now   time.Time
}

func newBare(t *testing.T) *bare {
	store, err := storage.OpenStore(storage.MemFS(), "state", storage.StoreConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	m, err := shard.OpenMachine(store, 1, shard.Modules(newModule(), fakeLog{}), shard.MachineConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return &bare{t, store, m, time.UnixMilli(1_700_000_000_000)}
}

func (l *bare) submit(data []byte) shard.Result {
	l.t.Helper()
	seq := l.m.Applied().Index + 1
	e := shard.AppendBatchHeader(nil, shard.BatchHeader{Session: 1, Seq: seq, Low: seq, Stamp: l.now})
	out := shard.Applied{Own: 1}
	if err := l.m.Apply(seq, 1, shard.AppendCommand(e, shard.Command{Module: shard.ModuleDatatypes, Data: data}), &out); err != nil {
		l.t.Fatal(err)
	}
	if err := l.m.Commit(&out); err != nil {
		l.t.Fatal(err)
	}
	return out.Answers[0].Result
}

func (l *bare) do(line string) string {
	l.t.Helper()
	s, args := words(line)
	var r shard.Result
	if s.Flags&Write == 0 {
		r.Data, r.Err = l.m.Query(shard.Command{Module: shard.ModuleDatatypes, Data: AppendQuery(nil, s.Op, l.now.UnixMilli(), 7, args)})
	} else {
		r = l.submit(EncodeCommand(s.Op, args))
	}
	if r.Err != nil {
		r.Data = AppendError(nil, r.Err)
	}
	return strings.TrimSpace(strings.ReplaceAll(string(r.Data), "\r\n", " "))
}

func (l *bare) watch(key string) []Watched {
	l.t.Helper()
	b, err := l.m.Query(shard.Command{Module: shard.ModuleDatatypes, Data: EncodeVersions(l.now.UnixMilli(), [][]byte{[]byte(key)})})
	if err != nil {
		l.t.Fatal(err)
	}
	vs, err := DecodeVersions(b, 1)
	if err != nil {
		l.t.Fatal(err)
	}
	return []Watched{{[]byte(key), vs[0]}}
}

func (l *bare) exec(w []Watched, lines ...string) shard.Result {
	l.t.Helper()
	var body []byte
	for _, x := range lines {
		s, args := words(x)
		body = AppendSub(body, s.Op, args)
	}
	return l.submit(EncodeExec(w, len(lines), body))
}

func TestWatch_NoticesAKeyThatExpiredAndIsStillStored(t *testing.T) {
	for _, tc := range []struct{ before, meanwhile string }{{"set other 1", "set k v px 10"}, {"set k v px 10", "set other 1"}} {
		l := newBare(t)
		l.do(tc.before)
		w := l.watch("k")
		l.do(tc.meanwhile)
		l.now = l.now.Add(20 * time.Millisecond)
		if got := l.exec(w, "set result 1"); string(got.Data) != string(replyNull) || got.Err != nil {
			t.Errorf("%s, WATCH, %s, and 20 ms later EXEC: %q, %v", tc.before, tc.meanwhile, got.Data, got.Err)
		}
	}
}

func TestExpiry_LooksAbsentBeforeItsTimer(t *testing.T) {
	for _, tc := range []struct{ line, want string }{
		{"get k", "_"}, {"exists k", ":0"}, {"type k", "+none"}, {"ttl k", ":-2"}, {"keys *", "*1 $5 other"}, {"dbsize", ":1"},
		{"scan 0", "*2 $1 0 *1 $5 other"}, {"rename k x", "-ERR no such key"}, {"renamenx other k", ":1"}, {"copy k x", ":0"},
		{"copy other k", ":1"}, {"setnx k v", ":1"}, {"msetnx k v", ":1"}, {"set k v xx", "_"}, {"set k v nx get", "_"}, {"incr k", ":1"},
		{"append k x", ":1"}, {"hset k f v", ":1"}, {"getdel k", "_"}, {"getex k persist", "_"}, {"persist k", ":0"}, {"expire k 100", ":0"},
		{"del k", ":0"}, {"randomkey", "$5 other"}, {"set k v keepttl", "+OK"}, {"strlen k", ":0"}, {"setrange k 0 x", ":1"}, {"touch k", ":0"},
		{"hset h f v", ":1"}, {"hgetall h", "%0"}, {"hincrby h f 1", ":1"}, {"hdel h f", ":0"}, {"hlen h", ":0"}, {"hsetnx h f 1", ":1"},
		{"set h 1", "+OK"}, {"get h", "_"},
	} {
		l := newBare(t)
		l.do("set k 5 px 10")
		l.do("hset h f 7")
		l.do("pexpire h 10")
		l.now = l.now.Add(20 * time.Millisecond)
		l.do("set other 1")
		if got := l.do(tc.line); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.line, got, tc.want)
		}
		if got := l.do("ttl k"); tc.line == "set k v keepttl" && got != ":-1" {
			t.Errorf("%s, and then its time to live is %s", tc.line, got)
		}
	}
}

// allocated is how many bytes f takes, of which some may be garbage again.
func allocated(f func()) uint64 {
	var a, b runtime.MemStats
	runtime.ReadMemStats(&a)
	f()
	runtime.ReadMemStats(&b)
	return b.TotalAlloc - a.TotalAlloc
}

// A command is applied on every replica, and again when a node starts: its memory must be bounded, also if it is refused in the end.
func TestTooManyChanges_RefusedWhileTheyAreMade(t *testing.T) {
	const most = 12 * shard.ChangesBytesMax
	check := func(l *bare, what string, run func() shard.Result) {
		t.Helper()
		// What was written before is made into tables meanwhile, which takes memory too.
		if err := l.store.Flush(); err != nil {
			t.Fatal(err)
		}
		var got shard.Result
		size := allocated(func() { got = run() })
		if !errs.Is(got.Err, errs.TooLarge) {
			t.Fatalf("%s: %.100q, %v", what, got.Data, got.Err)
		}
		if size > most {
			t.Errorf("%s took %d MiB, want %d at most", what, size>>20, most>>20)
		}
	}
	l := newBare(t)
	l.do("set k " + strings.Repeat("v", 1<<20))
	check(l, "EXEC", func() shard.Result { return l.exec(nil, slices.Repeat([]string{"expire k 100"}, 512)...) })

	v := bytes.Repeat([]byte("v"), 4<<20)
	for i := range 96 {
		if r := l.submit(EncodeCommand(opHSet, [][]byte{[]byte("h"), fmt.Appendf(nil, "f%d", i), v})); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	check(l, "COPY", func() shard.Result { return l.submit(EncodeCommand(opCopy, [][]byte{[]byte("h"), []byte("x")})) })
}
