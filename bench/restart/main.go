// Command restart measures how long nodes take to come back: it fills a cluster of processes on this machine through the Redis
// port, kills all of them with kill -9 while it still writes, starts them again, and prints for each node how long it took
// until it was ready, and until it had acknowledged a write.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/quorate/quorate/internal/drill"
)

func main() {
	b := bench{out: os.Stdout}
	nodes := flag.String("nodes", "1,3", "sizes of the clusters to measure, one after the other")
	flag.StringVar(&b.binary, "quorate", "bin/quorate", "the quorate program")
	flag.IntVar(&b.keys, "keys", 1_000_000, "how many keys to write first")
	flag.IntVar(&b.valueBytes, "value-bytes", 1024, "size of a value; values do not compress")
	flag.IntVar(&b.shards, "shards", 1, "number of shards")
	flag.IntVar(&b.clients, "clients", 64, "connections that write")
	flag.IntVar(&b.pipeline, "pipeline", 64, "requests that each of them keeps under way")
	flag.IntVar(&b.rounds, "rounds", 3, "how many times each cluster is killed")
	flag.DurationVar(&b.load, "load", 3*time.Second, "how long keys are overwritten before each kill")
	flag.DurationVar(&b.limit, "limit", 0, "fail if a node takes longer than this to be ready; 0 is no limit")
	flag.StringVar(&b.dir, "dir", "", "where to put the data; it is removed afterwards. Default: the directory for temporary files")
	flag.Parse()
	// An end from outside still ends the nodes and removes the data.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	for _, n := range strings.Split(*nodes, ",") {
		size, err := strconv.Atoi(n)
		if err == nil {
			err = b.run(ctx, size)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
	}
}

type bench struct {
	binary, dir               string
	keys, valueBytes, shards  int
	clients, pipeline, rounds int
	load, limit               time.Duration
	out                       io.Writer
}

// readyLimit is how long a node may take at all.
const readyLimit = 2 * time.Minute

func (b *bench) run(ctx context.Context, nodes int) error {
	dir, err := os.MkdirTemp(b.dir, "restart-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // what is left lies with the temporary files
	cl, err := drill.StartCluster(ctx, drill.ClusterConfig{Nodes: nodes, Shards: b.shards, Dir: dir, Binary: b.binary})
	if err != nil {
		return err
	}
	defer cl.Close()
	began := time.Now()
	if err := b.write(ctx, cl, b.keys); err != nil {
		return err
	}
	took := time.Since(began)
	fmt.Fprintf(b.out, "%d node(s), %d shard(s): %d keys of %d bytes in %.1f s\n", nodes, b.shards, b.keys, b.valueBytes, took.Seconds())
	for round := range b.rounds {
		if err := b.killUnderLoad(ctx, cl); err != nil {
			return err
		}
		if err := b.restart(ctx, cl, round+1); err != nil {
			return err
		}
	}
	return nil
}

// write sets keys once each if there is a number of them, and otherwise any keys until ctx ends.
func (b *bench) write(ctx context.Context, cl *drill.Cluster, keys int) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, b.clients)
	for i := range b.clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			errs[i] = b.client(ctx, cl.Nodes[i%len(cl.Nodes)].Addr.Redis, rng, func() (int64, bool) {
				if keys == 0 {
					return rng.Int64N(int64(b.keys)), ctx.Err() == nil
				}
				k := next.Add(1) - 1
				return k, k < int64(keys)
			})
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

// client keeps a pipeline of SETs full. What is refused because a bound is reached is written again.
func (b *bench) client(ctx context.Context, addr string, rng *rand.Rand, key func() (int64, bool)) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // nothing is left to be sent
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	rd := bufio.NewReaderSize(c, 64<<10)
	value := make([]byte, (b.valueBytes+7)/8*8)
	var buf []byte
	var again []int64
	for {
		buf = buf[:0]
		var sent []int64
		for len(sent) < b.pipeline {
			var k int64
			if len(again) > 0 {
				k, again = again[len(again)-1], again[:len(again)-1]
			} else if next, ok := key(); ok {
				k = next
			} else {
				break
			}
			for i := 0; i < len(value); i += 8 {
				binary.LittleEndian.PutUint64(value[i:], rng.Uint64())
			}
			buf = appendSet(buf, fmt.Sprintf("key:%08d", k), value[:b.valueBytes])
			sent = append(sent, k)
		}
		if len(sent) == 0 {
			return nil
		}
		if _, err := c.Write(buf); err != nil {
			return err
		}
		for _, k := range sent {
			line, err := rd.ReadString('\n')
			if err != nil {
				return err
			}
			if !strings.HasPrefix(line, "+OK") {
				again = append(again, k)
			}
		}
	}
}

func appendSet(b []byte, key string, value []byte) []byte {
	b = fmt.Appendf(b, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n", len(key), key, len(value))
	return append(append(b, value...), "\r\n"...)
}

// killUnderLoad ends all nodes at once while clients write.
func (b *bench) killUnderLoad(ctx context.Context, cl *drill.Cluster) error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// It ends with the connections.
		_ = b.write(ctx, cl, 0)
	}()
	time.Sleep(b.load)
	each(cl, func(_ int, p *drill.Process) { p.Kill() })
	cancel()
	<-done
	return nil
}

func each(cl *drill.Cluster, f func(i int, p *drill.Process)) {
	var wg sync.WaitGroup
	for i, p := range cl.Nodes {
		wg.Add(1)
		go func() {
			defer wg.Done()
			f(i, p)
		}()
	}
	wg.Wait()
}

// restart starts all nodes at once and measures each.
func (b *bench) restart(ctx context.Context, cl *drill.Cluster, round int) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	sizes := make([]string, len(cl.Nodes))
	for i, p := range cl.Nodes {
		sizes[i] = fmt.Sprintf("state %s, log %s", size(filepath.Join(p.Dir, "data", "state")), size(filepath.Join(p.Dir, "data", "log")))
	}
	ready, wrote, errs := make([]time.Duration, len(cl.Nodes)), make([]time.Duration, len(cl.Nodes)), make([]error, len(cl.Nodes))
	each(cl, func(i int, p *drill.Process) {
		began := time.Now()
		if errs[i] = p.Start(); errs[i] != nil {
			return
		}
		var wg sync.WaitGroup
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil && b.writeOne(ctx, p.Addr.Redis) != nil {
				time.Sleep(5 * time.Millisecond)
			}
			wrote[i] = time.Since(began)
		}()
		errs[i] = p.WaitReady(ctx)
		ready[i] = time.Since(began)
		wg.Wait()
	})
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for i, p := range cl.Nodes {
		fmt.Fprintf(b.out, "  round %d, node %d (%s): ready after %.2f s, first write after %.2f s\n", round, p.ID, sizes[i], ready[i].Seconds(), wrote[i].Seconds())
		if b.limit > 0 && ready[i] > b.limit {
			return fmt.Errorf("node %d took %v to be ready, which is over the limit of %v", p.ID, ready[i], b.limit)
		}
	}
	return nil
}

func (b *bench) writeOne(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // nothing is left to be sent
	if _, err := c.Write(appendSet(nil, "first", []byte("write"))); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "+OK") {
		err = errors.New(line)
	}
	return err
}

// size returns the size of all files in a directory, in MB.
func size(dir string) string {
	var n int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err == nil {
			n += st.Size()
		}
		return err
	})
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d MB", n/1e6)
}
