package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// cluster is a number of quorate processes that take etcd's flags. Its methods are called by one goroutine at a time.
type cluster struct {
	program string
	nodes   []*node
}

// node is one of the processes.
type node struct {
	name, client, peer, dir string
	cmd                     *exec.Cmd
}

func newCluster(program, dir string, n int) (*cluster, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	c := &cluster{program: program}
	var listeners []net.Listener
	defer func() {
		for _, ln := range listeners {
			_ = ln.Close()
		}
	}()
	port := func() (string, error) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		listeners = append(listeners, ln)
		return ln.Addr().String(), nil
	}
	for i := range n {
		client, err := port()
		if err != nil {
			return nil, err
		}
		peer, err := port()
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("n%d", i+1)
		c.nodes = append(c.nodes, &node{name: name, client: client, peer: peer, dir: filepath.Join(dir, name)})
	}
	for _, ln := range listeners {
		_ = ln.Close()
	}
	for _, n := range c.nodes {
		if err := c.start(n); err != nil {
			return nil, errors.Join(err, c.stop())
		}
	}
	for _, n := range c.nodes {
		if err := n.wait(); err != nil {
			return nil, errors.Join(err, c.stop())
		}
	}
	return c, nil
}

func (c *cluster) clients() (all []string) {
	for _, n := range c.nodes {
		all = append(all, n.client)
	}
	return all
}

func (c *cluster) start(n *node) error {
	logs, err := os.OpenFile(n.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logs.Close()
	var members []string
	for _, m := range c.nodes {
		members = append(members, m.name+"=http://"+m.peer)
	}
	n.cmd = exec.Command(c.program, "etcd", "--name", n.name, "--data-dir", n.dir,
		"--listen-client-urls", "http://"+n.client, "--advertise-client-urls", "http://"+n.client,
		"--listen-peer-urls", "http://"+n.peer, "--initial-advertise-peer-urls", "http://"+n.peer, "--initial-cluster", strings.Join(members, ","))
	n.cmd.Stdout, n.cmd.Stderr = logs, logs
	return n.cmd.Start()
}

// wait waits until the node answers.
func (n *node) wait() error {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{n.client}, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, time.Second)
		_, err := c.Get(try, "ready")
		stop()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("node %s does not answer: %w; its log is %s.log", n.name, err, n.dir)
		}
	}
}

// settleKey is written when the traffic is over, and by nobody else.
const settleKey = "settle"

// settle makes the logs say that all of the traffic is committed: a node notes how far it is with what it writes next.
func (c *cluster) settle() error {
	ec, err := clientv3.New(clientv3.Config{Endpoints: c.clients(), Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer ec.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for range 3 {
		if _, err := ec.Put(ctx, settleKey, ""); err != nil {
			return fmt.Errorf("write after the traffic: %w", err)
		}
	}
	return nil
}

// end sends a signal that ends the process, and waits for that.
func (n *node) end(sig syscall.Signal) error {
	if n.cmd == nil {
		return nil
	}
	cmd := n.cmd
	n.cmd = nil
	err := errors.Join(cmd.Process.Signal(sig), cmd.Wait())
	if sig == syscall.SIGKILL {
		return nil
	}
	if err != nil {
		return fmt.Errorf("node %s: %w; its log is %s.log", n.name, err, n.dir)
	}
	return nil
}

// stop ends all nodes.
func (c *cluster) stop() error {
	var all []error
	for _, n := range c.nodes {
		all = append(all, n.end(syscall.SIGTERM))
	}
	return errors.Join(all...)
}

// breakNodes breaks one node after the other until the traffic is over. All nodes are whole when it returns.
func (c *cluster) breakNodes(faults []string, every time.Duration, rnd *rand.Rand, finish <-chan struct{}) (done int, err error) {
	pause := func(d time.Duration) bool {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return true
		case <-finish:
			return false
		}
	}
	if len(faults) == 0 {
		<-finish
		return 0, nil
	}
	for pause(every) {
		n := c.nodes[rnd.IntN(len(c.nodes))]
		length := time.Second + time.Duration(rnd.Int64N(int64(3*time.Second)))
		switch fault := faults[rnd.IntN(len(faults))]; fault {
		case "kill":
			if err := n.end(syscall.SIGKILL); err != nil {
				return done, err
			}
			pause(length)
			if err := c.start(n); err != nil {
				return done, err
			}
		case "stop":
			if err := n.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				return done, err
			}
			pause(length)
			if err := n.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				return done, err
			}
		default:
			return done, fmt.Errorf("no fault %q", fault)
		}
		done++
		if err := n.wait(); err != nil {
			return done, err
		}
	}
	return done, nil
}
