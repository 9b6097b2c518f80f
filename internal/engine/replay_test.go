package engine

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// counted is a data model that counts the commands that it applied, calls first at the first, and keeps nothing.
type counted struct {
	register
	n     *atomic.Int64
	first func()
}

func (c counted) Apply(tx *shard.Tx, _ []byte) ([]byte, error) {
	if c.n.Add(1) == 1 {
		c.first()
	}
	tx.Set([]byte("r"), []byte("there"))
	return nil, nil
}

// A node that has its log to apply when it starts stops when it is told to, not when it is done.
func TestClose_InTheMiddleOfAReplay(t *testing.T) {
	const commands = 200
	disk := storage.VolatileFS()
	start := func(model shard.Module) (*Engine, *storage.Dir) {
		t.Helper()
		n := startOne(t, openOne(t, disk, storage.StoreConfig{}), nil, model, prometheus.NewRegistry())
		return n.Engine, n.dir
	}
	var n atomic.Int64
	e, dir := start(counted{n: &n, first: func() {}})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var all []*shard.Future
	for range commands {
		all = append(all, e.Submit(ctx, shard.Route{Shard: 1}, shard.Command{Module: registerID, Data: bytes.Repeat([]byte("x"), 64<<10)}))
	}
	for _, f := range all {
		if r := f.Wait(ctx); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if err := errors.Join(e.Close(), dir.Close()); err != nil {
		t.Fatal(err)
	}

	n.Store(0)
	began, told := make(chan struct{}), make(chan struct{})
	e, dir = start(counted{n: &n, first: func() { close(began); <-told }})
	<-began
	e.stop() // which is what Close begins with
	close(told)
	if err := errors.Join(e.Close(), dir.Close()); err != nil {
		t.Fatal(err)
	}
	if got := n.Load(); got == 0 || got > commands/2 {
		t.Errorf("stopped at the first of %d commands, the node applied %d", commands, got)
	}

	n.Store(0)
	e, dir = start(counted{n: &n, first: func() {}})
	if _, err := e.Query(ctx, shard.Route{Shard: 1}, shard.Linearizable, command("")); err != nil {
		t.Error(err)
	}
	if err := errors.Join(e.Close(), dir.Close()); err != nil {
		t.Fatal(err)
	}
	if got := n.Load(); got != commands {
		t.Errorf("the next start applied %d commands of %d", got, commands)
	}
}
