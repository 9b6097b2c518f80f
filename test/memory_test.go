package test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"
)

// group makes a control group in which all processes together may take so much memory, for as long as the test runs. Without the right to it the test is skipped.
func group(t *testing.T, name string, limit int) (procs string) {
	t.Helper()
	root, file := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	if _, err := os.Stat(root); err != nil {
		root, file = "/sys/fs/cgroup", "memory.max"
	}
	dir := filepath.Join(root, name+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Skipf("no control group can be made: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, file), []byte(strconv.Itoa(limit)), 0o600); err != nil {
		t.Skipf("the control group has no limit of memory: %v", err)
	}
	return filepath.Join(dir, "cgroup.procs")
}

// Clients with large values are refused when there is no room for them in the container. The node is not killed for what they write or read.
func TestMemory_SmallContainer(t *testing.T) {
	// The groups go when the nodes are gone.
	var procs []string
	for _, name := range []string{"quorate-a-", "quorate-b-", "quorate-c-"} {
		procs = append(procs, group(t, name, 512<<20))
	}
	c := start(t, 1)
	for i, n := range c.nodes {
		if err := n.stop(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		c.under = []string{"sh", "-c", `echo $$ >"$0" && exec "$@"`, procs[i]}
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
		if err := n.waitReady(); err != nil {
			t.Fatal(err)
		}
	}
	value := strings.Repeat("v", 8<<20-1<<10)
	load := func(what string, ask func(r *redis.Client, key string) error) {
		var done, refused atomic.Int64
		var all sync.WaitGroup
		for i := range 64 {
			all.Go(func() {
				r := redis.NewClient(&redis.Options{Addr: c.nodes[i%len(c.nodes)].redis, MaxRetries: -1, ReadTimeout: -1, WriteTimeout: -1})
				defer r.Close()
				for range 3 {
					var answer redis.Error
					switch err := ask(r, "k"+strconv.Itoa(i%8)); {
					case err == nil || errors.Is(err, redis.Nil):
						done.Add(1)
					case errors.As(err, &answer):
						refused.Add(1)
					default:
						t.Errorf("%s: neither done nor refused: %v", what, err)
						return
					}
				}
			})
		}
		all.Wait()
		t.Logf("%s: %d done, %d refused", what, done.Load(), refused.Load())
		if done.Load() == 0 {
			t.Errorf("%s: all refused", what)
		}
	}
	load("write", func(r *redis.Client, key string) error { return r.Set(t.Context(), key, value, 0).Err() })
	load("read", func(r *redis.Client, key string) error { return r.Get(t.Context(), key).Err() })
	load("transaction", func(r *redis.Client, key string) error {
		_, err := r.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
			p.Set(t.Context(), "small", "v", 0)
			p.Get(t.Context(), key)
			return p.Get(t.Context(), "k0").Err()
		})
		return err
	})
	for _, n := range c.nodes {
		select {
		case <-n.gone:
			t.Errorf("node %d ended: %v", n.id, n.err)
		default:
		}
	}
}
