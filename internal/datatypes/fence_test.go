package datatypes

import (
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// fakeKV stands for the key space: it notes what it was asked, and refuses what begins with "stale".
type fakeKV struct{}

func (fakeKV) ID() shard.ModuleID { return shard.ModuleKV }

func (fakeKV) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	tx.Set([]byte("asked"), cmd)
	if strings.HasPrefix(string(cmd), "stale") {
		return nil, errs.New(errs.Fenced, "told to refuse")
	}
	return nil, nil
}

func (fakeKV) Query(v shard.View, _ []byte) ([]byte, error) {
	b, _ := v.Get([]byte("asked"))
	return b, nil
}

func (fakeKV) Fire(*shard.Tx, []byte) error { return nil }

func fencedRig(t *testing.T) *rig {
	return &rig{t, shardtest.New(t, shardtest.Options{}, newModule(), fakeLog{}, fakeKV{})}
}

func TestFenced_DoneOnlyIfEveryFenceHolds(t *testing.T) {
	r := fencedRig(t)
	good, stale := Fence{Lock: []byte("lock"), Token: 7, Home: true}, Fence{Lock: []byte("stale"), Token: 6}
	set := func(v string) []byte { return EncodeCommand(opSet, [][]byte{[]byte("k"), []byte(v)}) }
	exec := func(v string) []byte {
		body := AppendSub(nil, opSet, [][]byte{[]byte("k"), []byte(v)})
		return EncodeExec(nil, 2, AppendSub(body, opIncr, [][]byte{[]byte("n")}))
	}
	for _, c := range []struct {
		name   string
		fences []Fence
		cmd    []byte
		want   string
		k      string
	}{
		{"none", nil, set("0"), "+OK\r\n", "0"},
		{"one that holds", []Fence{good}, set("1"), "+OK\r\n", "1"},
		{"a stale one", []Fence{stale}, set("2"), "-FENCED told to refuse\r\n", "1"},
		{"one of each", []Fence{good, stale}, set("3"), "-FENCED told to refuse\r\n", "1"},
		{"a transaction", []Fence{good, good}, exec("4"), "*2\r\n+OK\r\n:1\r\n", "4"},
		{"a stale transaction", []Fence{stale}, exec("5"), "-FENCED told to refuse\r\n", "4"},
		{"FLUSHALL", []Fence{stale}, EncodeFlushStep(0, 0), "-FENCED told to refuse\r\n", "4"},
		{"a fence in a fence", []Fence{good}, EncodeFenced([]Fence{good}, set("6")), "-ERR damaged data: malformed datatypes request\r\n", "4"},
		{"too many", make([]Fence, FencesMax+1), set("7"), "-ERR a command under 17 fences...", "4"},
	} {
		got := r.submit(EncodeFenced(c.fences, c.cmd))
		if p, ok := strings.CutSuffix(c.want, "..."); got != c.want && (!ok || !strings.HasPrefix(got, p)) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if got := r.do("get k"); !strings.Contains(got, " "+c.k+" ") {
			t.Errorf("%s: k is %q, want %s", c.name, got, c.k)
		}
	}
	if b, err := r.c.Query(t.Context(), shard.Route{Shard: 1}, shard.Linearizable, shard.Command{Module: shard.ModuleKV}); err != nil || string(b) != "lock 7 true" {
		t.Errorf("the key space was asked %q last (%v)", b, err)
	}
}
