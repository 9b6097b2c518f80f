package engine

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// TestProbe_OneShardWithoutQuorum: shard 2 lives on nodes 1 and 2 only, and needs both. It must be found although the other
// shard answers.
func TestProbe_OneShardWithoutQuorum(t *testing.T) {
	nodes := startNodes(t, 3, func(c *Config) {
		if c.Node == 3 {
			c.Spaces = []shard.Space{{Name: "default", Shards: []shard.ID{1, 3}}}
		}
	})
	write(t, nodes[0], 1, "a")
	write(t, nodes[0], 2, "b")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := nodes[0].Probe(ctx); err != nil {
		t.Fatalf("with all shards there: %v", err)
	}
	if err := nodes[1].Close(); err != nil {
		t.Fatal(err)
	}
	// Shard 1 may have to find another leader first.
	for {
		write(t, nodes[0], 1, "c")
		try, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		err := nodes[0].Probe(try)
		cancel()
		if !errs.Is(err, errs.Unavailable) {
			t.Fatalf("with shard 2 down: got %v, want Unavailable", err)
		}
		if strings.HasPrefix(err.Error(), "shard 2 of 2 ") {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("the error does not name shard 2 alone: %v", err)
		}
	}
}

func TestProbe_NamesWhatDoesNotAnswer(t *testing.T) {
	n := startNodes(t, 1, func(c *Config) {
		c.Spaces[0].Shards = nil
		for i := range probesMax + 10 {
			c.Spaces[0].Shards = append(c.Spaces[0].Shards, shard.ID(i+1))
		}
	})[0]
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for n.Probe(ctx) != nil {
		if ctx.Err() != nil {
			t.Fatal("the node does not become ready")
		}
	}
	// Nothing is answered as long as the loop is held up.
	held, release := make(chan struct{}), make(chan struct{})
	go n.inLoop(func() { close(held); <-release })
	<-held
	defer close(release)
	try, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	err := n.Probe(try)
	want := "shards 1, 2, 3, 4, 5 and 251 more of 266 not answering within the time limit, and there was no time to ask 10 others"
	if !errs.Is(err, errs.Unavailable) || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

func TestProbe_NamesShardsWithoutLeader(t *testing.T) {
	n := startNodes(t, 3)
	for _, other := range n[1:] {
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, 200*time.Millisecond)
		err := n[0].Probe(try)
		stop()
		if !errs.Is(err, errs.Unavailable) {
			t.Fatalf("got %v, want Unavailable", err)
		}
		if err.Error() == "shards 1, 2 of 2 without a leader" {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("got %v", err)
		}
	}
}

func TestNamed(t *testing.T) {
	f := func(want string, ids ...shard.ID) {
		t.Helper()
		if got := named(ids); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	f("shard 7", 7)
	f("shards 1, 2, 3, 4, 5", 1, 2, 3, 4, 5)
	f("shards 1, 2, 3, 4, 5 and 1 more", 1, 2, 3, 4, 5, 6)
}
