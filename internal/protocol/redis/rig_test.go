package redis

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// fakeLog stands for the event log: offsets count from 0; the value "fail" fails.
type fakeLog struct{}

func (fakeLog) ID() shard.ModuleID { return shard.ModuleEventlog }

func (fakeLog) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	if bytes.HasSuffix(cmd, []byte("fail")) {
		return nil, errs.New(errs.Invalid, "told to fail")
	}
	n := uint64(0)
	if b, ok := tx.Get([]byte("n")); ok {
		n = binary.BigEndian.Uint64(b)
	}
	tx.Set([]byte("n"), binary.BigEndian.AppendUint64(nil, n+1))
	tx.Set(fmt.Appendf(nil, "e%d", n), cmd)
	return binary.BigEndian.AppendUint64(nil, n), nil
}

func (fakeLog) Query(v shard.View, q []byte) ([]byte, error) {
	b, _ := v.Get(q)
	return b, nil
}

func (fakeLog) Fire(*shard.Tx, []byte) error { return nil }

// fakeTopics puts every topic in the shard of its slot, else in the first.
type fakeTopics struct{ c *shardtest.Client }

func (f fakeTopics) Resolve(_ context.Context, topic string, slot int, _ []byte, _ bool, p int32) ([16]byte, int32, shard.ID, error) {
	if topic == "missing" {
		return [16]byte{}, 0, 0, errs.New(errs.NotFound, "no topic %q", topic)
	}
	sp, _ := f.c.Topology().Space("default")
	at := sp.Shards[0]
	if slot >= 0 {
		at = sp.SlotShard(uint16(slot))
	}
	return [16]byte{1}, max(p, 0), at, nil
}

type rig struct {
	t    testing.TB
	c    *shardtest.Client
	s    *Server
	addr string
}

func newRig(t testing.TB, o shardtest.Options, cfg Config) *rig {
	t.Helper()
	mod := datatypes.New(datatypes.Config{AppendEvent: func(b []byte, e *datatypes.Event, locks [][]byte) []byte {
		b = fmt.Appendf(b, "%d %d %q %v", e.Topic[0], e.Partition, e.Key, e.KeyNull)
		for _, h := range e.Headers {
			b = fmt.Appendf(b, " %s=%s", h.Name, h.Value)
		}
		for _, l := range locks {
			b = fmt.Appendf(b, " under %s", l)
		}
		return append(append(b, ' '), e.Value...)
	}, EncodeFence: kv.EncodeFence, Answers: cfg.Answers})
	client := shardtest.New(t, o, mod, fakeLog{}, kv.Module{})
	return serveOn(t, client, client, cfg)
}

// serveOn starts a server on another Client than the one that holds the data.
func serveOn(t testing.TB, c *shardtest.Client, as shard.Client, cfg Config) *rig {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if cfg.loneMin == 0 {
		// The second of two lone reads is a gatherer's, so that all tests try those, too.
		cfg.loneMin = 1
	}
	if cfg.gatherMin == 0 {
		cfg.gatherMin = 1
	}
	s := New(cfg, as, fakeTopics{c}, log, prometheus.NewRegistry())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return &rig{t, c, s, ln.Addr().String()}
}

// readersAndWriters writes through one connection and reads through another, as many such pairs at a time as there are clients.
func (r *rig) readersAndWriters(clients, rounds int) {
	var wg sync.WaitGroup
	for i := range clients {
		read, write := r.dial(), r.dial()
		wg.Go(func() {
			key := fmt.Sprintf("k%d", i)
			for n := 1; n <= rounds && !r.t.Failed(); n++ {
				// What one connection wrote, another sees.
				write.want(fmt.Sprintf("set %s %d", key, n), "+OK")
				read.want("get "+key, strconv.Quote(strconv.Itoa(n)))
				read.want("strlen "+key, fmt.Sprintf(":%d", len(strconv.Itoa(n))))
				read.want("exists "+key, ":1")
				read.want("get none", "nil")
				read.want("hget "+key+" f", "-WRONGTYPE...")
				read.want("ttl "+key, ":-1")
			}
		})
	}
	wg.Wait()
}

// client is a small RESP client.
type client struct {
	t  testing.TB
	nc net.Conn
	r  *bufio.Reader
}

func (r *rig) dial() *client {
	r.t.Helper()
	return dial(r.t, r.addr)
}

func dial(t testing.TB, addr string) *client {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	return &client{t, nc, bufio.NewReader(nc)}
}

func encode(args ...string) []byte {
	b := fmt.Appendf(nil, "*%d\r\n", len(args))
	for _, a := range args {
		b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(a), a)
	}
	return b
}

func (c *client) send(raw string) {
	c.t.Helper()
	_ = c.nc.SetWriteDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c.nc, raw); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// recv returns the next reply in a readable form: "+OK", "-ERR ...", ":1", "\"bulk\"", "nil", "[a b]", "{k: v}".
func (c *client) recv() string {
	c.t.Helper()
	s, err := c.try()
	if err != nil {
		c.t.Fatalf("read: %v", err)
	}
	return s
}

func (c *client) try() (string, error) {
	_ = c.nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	n, _ := strconv.Atoi(line[1:])
	switch line[0] {
	case '+', '-', ':':
		return line, nil
	case '_':
		return "nil", nil
	case '$', '=':
		if n < 0 {
			return "nil", nil
		}
		b := make([]byte, n+2)
		if _, err := io.ReadFull(c.r, b); err != nil {
			return "", err
		}
		return strconv.Quote(string(b[:n])), nil
	case '*', '~', '%':
		if n < 0 {
			return "nil*", nil
		}
		open, end := "[", "]"
		if line[0] == '~' {
			open, end = "<", ">"
		}
		if line[0] == '%' {
			open, end = "{", "}"
			n *= 2
		}
		parts := make([]string, n)
		for i := range parts {
			if parts[i], err = c.try(); err != nil {
				return "", err
			}
		}
		return open + strings.Join(parts, " ") + end, nil
	}
	return "", fmt.Errorf("unknown reply %q", line)
}

func (c *client) do(args ...string) string {
	c.t.Helper()
	c.send(string(encode(args...)))
	return c.recv()
}

// want runs a line of words and compares the answer; a want that ends in ... is a prefix.
func (c *client) want(line, want string) {
	c.t.Helper()
	words, ok := splitWords([]byte(line))
	if !ok {
		c.t.Fatalf("bad line %q", line)
	}
	args := make([]string, len(words))
	for i, w := range words {
		args[i] = string(w)
	}
	got := c.do(args...)
	if p, ok := strings.CutSuffix(want, "..."); ok && strings.HasPrefix(strings.TrimPrefix(got, "["), strings.TrimPrefix(p, "[")) {
		return
	}
	if got != want {
		c.t.Errorf("%s: got %s, want %s", line, got, want)
	}
}

// closed reports whether the server has closed the connection, after what it sent.
func (c *client) closed() bool {
	_ = c.nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	_, err := io.Copy(io.Discard, c.r)
	var ne net.Error
	if e, ok := err.(net.Error); ok {
		ne = e
	}
	return ne == nil || !ne.Timeout()
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for !f() {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
