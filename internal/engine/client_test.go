package engine

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// asked is what Ask has called with.
type asked struct {
	data []byte
	err  error
}

// ask asks for the register without waiting. A second call for the same read is an error.
func (n *testNode) ask(ctx context.Context, t *testing.T, id shard.ID, at shard.Consistency) <-chan asked {
	c := make(chan asked, 1)
	var once sync.Mutex
	n.Ask(ctx, shard.Route{Shard: id}, at, command(""), func(b []byte, err error) {
		if !once.TryLock() {
			t.Error("called twice")
			return
		}
		c <- asked{b, err}
	})
	return c
}

func wait(t *testing.T, c <-chan asked) asked {
	t.Helper()
	select {
	case a := <-c:
		return a
	case <-time.After(60 * time.Second):
		t.Fatal("not called")
		return asked{}
	}
}

func TestAsk_ManyAtOnce(t *testing.T) {
	nodes := startNodes(t, 3)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	write(t, nodes[0], 1, "v")
	for range 20 {
		var all []<-chan asked
		for i := range 50 {
			all = append(all, nodes[i%3].ask(ctx, t, 1, shard.Linearizable))
		}
		for _, c := range all {
			if a := wait(t, c); a.err != nil || string(a.data) != "v" {
				t.Fatalf("%q, %v", a.data, a.err)
			}
		}
	}
}

func TestAsk_WithoutAMajority(t *testing.T) {
	node := startAlone(t)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if a := wait(t, node.ask(ctx, t, 1, shard.Linearizable)); !errs.Is(a.err, errs.Unavailable) {
		t.Errorf("got %q, %v", a.data, a.err)
	}
	// What is open when the node stops is answered by then, and what comes later at once.
	open := node.ask(context.Background(), t, 1, shard.Linearizable)
	if err := node.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []<-chan asked{open, node.ask(context.Background(), t, 1, shard.Linearizable)} {
		select {
		case a := <-c:
			if !errs.Is(a.err, errs.Unavailable) || !strings.Contains(a.err.Error(), "this node is stopping") {
				t.Errorf("got %q, %v", a.data, a.err)
			}
		default:
			t.Error("not answered")
		}
	}
}

// A call that takes long must not keep a peer's next frames waiting.
func TestAsk_SlowOnesGoApart(t *testing.T) {
	n := startNode(t, Config{Cluster: "t", Node: 1, Spaces: []shard.Space{{Name: "default", Shards: []shard.ID{1, 2}}}}, nil)
	mine := func() *bool {
		called := false
		n.call([]completed{{future: shard.NewCallback(func(shard.Result) { called = true })}}, true)
		return &called
	}
	if !*mine() {
		t.Fatal("one that costs little went apart")
	}
	// On a busy machine that one may have taken long.
	n.apart.Store(0)
	n.call([]completed{{future: shard.NewCallback(func(shard.Result) {
		<-time.After(2 * callSlow)
	})}}, true)
	for range callsApart {
		block, ran := make(chan struct{}), make(chan struct{})
		n.call([]completed{{future: shard.NewCallback(func(shard.Result) { <-block; close(ran) })}}, true)
		close(block)
		<-ran
	}
	if !*mine() {
		t.Error("calls go apart for ever")
	}
}
