package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quorate/quorate/internal/env"
)

// crowd is clients of a node's ports, in the middle of whatever clients do.
type crowd struct {
	t     *testing.T
	open  []net.Conn
	plain bool
}

// dial connects to a port. A client that uses TLS has shaken hands.
func (c *crowd) dial(addr string) net.Conn {
	c.t.Helper()
	nc := c.tcp(addr)
	if !c.plain {
		s := tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
		if err := s.Handshake(); err != nil {
			c.t.Fatal(err)
		}
		nc = s
	}
	return nc
}

func (c *crowd) tcp(addr string) net.Conn {
	c.t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		c.t.Fatal(err)
	}
	// What a client does not read is soon all that the system keeps.
	if err := nc.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		c.t.Fatal(err)
	}
	c.open = append(c.open, nc)
	return nc
}

// say sends something to a port, and reads no answer. It may be more than the port takes.
func (c *crowd) say(addr string, b []byte) {
	c.t.Helper()
	nc := c.dial(addr)
	c.write(nc, b)
}

func (c *crowd) write(nc net.Conn, b []byte) {
	if err := nc.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		c.t.Fatal(err)
	}
	_, _ = nc.Write(b)
}

func (c *crowd) close() {
	for _, nc := range c.open {
		_ = nc.Close()
	}
}

// askHTTP sends a request and waits until it is answered.
func (c *crowd) askHTTP(addr string, request []byte) {
	c.t.Helper()
	nc := c.dial(addr)
	if err := nc.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := nc.Write(request); err != nil {
		c.t.Fatal(err)
	}
	if line, err := bufio.NewReader(nc).ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 200") {
		c.t.Fatalf("%.40q: %q %v", request, line, err)
	}
}

// askKafka sends a request and reads the answer behind its correlation id.
func (c *crowd) askKafka(nc net.Conn, request []byte) []byte {
	c.t.Helper()
	if err := nc.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := nc.Write(request); err != nil {
		c.t.Fatal(err)
	}
	var size [4]byte
	if _, err := io.ReadFull(nc, size[:]); err != nil {
		c.t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(nc, b); err != nil {
		c.t.Fatal(err)
	}
	return b[4:]
}

// message is what a request of Kafka's is made of: numbers by their size, strings, byte strings, and the elements of lists after their count.
func message(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(p))), p...)
		case []byte:
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(p))), p...)
		case int: // a count
			b = binary.BigEndian.AppendUint32(b, uint32(p))
		default:
			var w bytes.Buffer
			if err := binary.Write(&w, binary.BigEndian, p); err != nil {
				panic(err)
			}
			b = append(b, w.Bytes()...)
		}
	}
	return b
}

// kafkaRequest puts a length and a header before a request's body.
func kafkaRequest(key, version int16, parts ...any) []byte {
	body := append(message(key, version, int32(7), "crowd"), message(parts...)...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

// batch is a record batch with one record.
func batch(value []byte) []byte {
	rec := append([]byte{0, 0, 0, 1}, binary.AppendVarint(nil, int64(len(value)))...)
	rec = append(append(rec, value...), 0)
	rec = append(binary.AppendVarint(nil, int64(len(rec))), rec...)
	tail := message(int16(0), int32(0), time.Now().UnixMilli(), time.Now().UnixMilli(), int64(-1), int16(-1), int32(-1), int32(1))
	tail = append(tail, rec...)
	b := append(message(int64(0), int32(len(tail)+9), int32(-1), int8(2)), binary.BigEndian.AppendUint32(nil, crc32.Checksum(tail, crc32.MakeTable(crc32.Castagnoli)))...)
	return append(b, tail...)
}

func produceRequest(topic string, value []byte) []byte {
	return kafkaRequest(0, 3, int16(-1), int16(-1), int32(600_000), 1, topic, 1, int32(0), batch(value))
}

func fetchRequest(topic string, offset int64, wait, least int32) []byte {
	return kafkaRequest(1, 4, int32(-1), wait, least, int32(50<<20), int8(0), 1, topic, 1, int32(0), offset, int32(50<<20))
}

func joinRequest(group, member string) []byte {
	return kafkaRequest(11, 1, group, int32(600_000), int32(600_000), member, "consumer", 1, "range", []byte("x"))
}

func post(path, body string) []byte {
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
}

// before are what needs a quorum to come about.
func (c *crowd) before(a Listen) {
	c.t.Helper()
	// A value, and a record, that fill what the system keeps of an answer.
	large := strings.Repeat("x", 900<<10)
	redis := c.dial(a.Redis)
	c.write(redis, fmt.Appendf(nil, "*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n$%d\r\n%s\r\n", len(large), large))
	if line, err := bufio.NewReader(redis).ReadString('\n'); err != nil || line != "+OK\r\n" {
		c.t.Fatalf("SET: %q %v", line, err)
	}
	kafka := c.dial(a.Kafka)
	c.askKafka(kafka, kafkaRequest(3, 1, 1, "topic"))
	for range 8 {
		c.askKafka(kafka, produceRequest("topic", []byte(large)))
	}
	// A group whose leader never assigns: it waits in JoinGroup for the others, and they in SyncGroup for it.
	leader := c.askKafka(c.dial(a.Kafka), joinRequest("late", ""))
	generation := int32(binary.BigEndian.Uint32(leader[2:]))
	b := leader[6:]
	text := func() string {
		n := binary.BigEndian.Uint16(b)
		s := string(b[2 : 2+n])
		b = b[2+n:]
		return s
	}
	_, member := text(), ""
	_, member = text(), text()
	c.say(a.Kafka, kafkaRequest(14, 0, "late", generation, member, 1, member, []byte("all")))
	// One member of two does not come to the rebalance.
	c.askKafka(c.dial(a.Kafka), joinRequest("slow", ""))
	c.say(a.Kafka, joinRequest("slow", ""))
	key := base64.StdEncoding.EncodeToString([]byte("lock"))
	c.askHTTP(a.Etcd, post("/v3/lock/lock", `{"name":"`+key+`"}`))
	// All others wait for that one.
	c.say(a.Etcd, post("/v3/election/campaign", `{"name":"`+key+`","value":"`+key+`"}`))
	c.say(a.Etcd, post("/v3/lock/lock", `{"name":"`+key+`"}`))
	c.say(a.Etcd, post("/v3/election/campaign", `{"name":"`+key+`","value":"`+key+`"}`))
	c.say(a.Etcd, post("/v3/election/observe", `{"name":"`+key+`"}`))
	c.say(a.Etcd, post("/v3/watch", `{"create_request":{"key":"`+key+`"}}`))
}

// during is what a node is asked just before it stops.
func (c *crowd) during(a Listen) {
	c.t.Helper()
	plain := c.plain
	for _, addr := range []string{a.Redis, a.Kafka, a.Etcd, a.HTTP} {
		// The HTTP port has no TLS here.
		c.plain = plain || addr == a.HTTP
		c.tcp(addr)
		c.say(addr, nil)
		// The beginning of something in TLS, and of a request of anything else.
		if _, err := c.tcp(addr).Write([]byte{22, 3, 1, 2, 0, 1}); err != nil {
			c.t.Fatal(err)
		}
		c.say(addr, []byte("P"))
	}
	c.plain = plain
	set := []byte("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n")
	c.say(a.Redis, set)
	c.say(a.Redis, bytes.Repeat(set, 10_000))
	c.say(a.Redis, []byte("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100\r\nv"))
	c.say(a.Redis, []byte("MULTI\r\nSET a b\r\nEVENT.ADD topic k v\r\nEXEC\r\n"))
	c.say(a.Redis, []byte("EVENT.ADD nowhere k v\r\n"))
	c.say(a.Redis, []byte("INFO\r\nDBSIZE\r\nSCAN 0\r\n"))
	c.say(a.Redis, bytes.Repeat([]byte("GET large\r\n"), 100))
	c.say(a.Redis, []byte("SUBSCRIBE x\r\n"))
	c.say(a.Kafka, fetchRequest("topic", 8, 1<<30, 1))
	c.say(a.Kafka, bytes.Repeat(fetchRequest("topic", 8, 1<<30, 1), 100))
	c.say(a.Kafka, append(fetchRequest("topic", 8, 1<<30, 1), bytes.Repeat(produceRequest("topic", []byte("v")), 100)...))
	c.say(a.Kafka, bytes.Repeat(fetchRequest("topic", 0, 0, 0), 100))
	c.say(a.Kafka, produceRequest("topic", []byte("v")))
	c.say(a.Kafka, bytes.Repeat(produceRequest("topic", []byte("v")), 100))
	c.say(a.Kafka, produceRequest("topic", make([]byte, 500<<10))[:100<<10])
	c.say(a.Kafka, produceRequest("nowhere", []byte("v")))
	c.say(a.Kafka, joinRequest("new", ""))
	c.say(a.Kafka, kafkaRequest(12, 0, "late", int32(1), "nobody"))
	c.say(a.Kafka, kafkaRequest(3, 1, 1, "made now"))
	c.say(a.Kafka, kafkaRequest(2, 1, int32(-1), 1, "topic", 1, int32(0), int64(-1)))
	c.say(a.Etcd, []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	c.say(a.Etcd, post("/v3/kv/range", `{"key":"bG9jaw=="}`))
	c.say(a.Etcd, post("/v3/kv/put", `{"key":"bG9jaw==","value":"bG9jaw=="}`))
	c.say(a.Etcd, post("/v3/lease/grant", `{"TTL":60}`))
	c.say(a.Etcd, post("/v3/maintenance/snapshot", `{}`))
	c.say(a.Etcd, []byte("GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"))
	c.plain = true
	c.say(a.HTTP, []byte("GET /debug/pprof/profile?seconds=300 HTTP/1.1\r\nHost: x\r\n\r\n"))
	c.say(a.HTTP, []byte("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\nGET /status HTTP/1.1\r\nHost: x\r\n\r\n"))
	c.say(a.HTTP, bytes.Repeat([]byte("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), 200))
	c.say(a.HTTP, []byte("POST /etcd/load HTTP/1.1\r\nHost: x\r\nContent-Type: "+LoadType+"\r\nContent-Length: 1000\r\n\r\nabc"))
	c.plain = plain
}

// TestClose_EndsWhateverClientsDo stops a node in the middle of requests of all sorts: alone, as the one of three that is left, as one that has
// never seen the others, and together with them.
func TestClose_EndsWhateverClientsDo(t *testing.T) {
	for _, secure := range []bool{false, true} {
		for _, up := range []string{"alone", "left", "never", "together"} {
			t.Run(fmt.Sprintf("%s, TLS %v", up, secure), func(t *testing.T) {
				t.Parallel()
				ca := newAuthority(t, "ca")
				var ports Ports
				if secure {
					cert, key := ca.sign("node", "node")
					at := TLS{Cert: cert, Key: key}
					ports = Ports{Redis: at, Kafka: at, Etcd: at}
				}
				peers := map[uint32]string{}
				if up != "alone" {
					for i := range 3 {
						peers[uint32(i+1)] = unused(t)
					}
				}
				var nodes []*Server
				for i := range max(len(peers), 1) {
					cfg := Config{
						Cluster: "stop", Node: uint32(i + 1), Peers: peers, Insecure: true, TLS: ports, Data: t.TempDir(),
						Listen: Listen{Redis: "127.0.0.1:0", Kafka: "127.0.0.1:0", Etcd: "127.0.0.1:0", HTTP: "127.0.0.1:0", Peer: peers[uint32(i+1)]},
					}
					s, err := Start(cfg, "test", env.Real(), slog.New(slog.DiscardHandler))
					if err != nil {
						t.Fatal(err)
					}
					nodes = append(nodes, s)
					if up == "never" {
						break
					}
				}
				c := &crowd{t: t, plain: !secure}
				defer c.close()
				last := nodes[0]
				if up != "never" {
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					for _, s := range nodes {
						if err := s.WaitReady(ctx); err != nil {
							t.Fatal(err)
						}
					}
					for _, s := range nodes {
						if topo := s.engine.Topology(); topo.Shards[0].Leader == topo.Self {
							last = s
						}
					}
					c.before(last.Addr())
				}
				if up == "left" {
					for _, s := range nodes {
						if s != last {
							stop(t, s)
						}
					}
					nodes = []*Server{last}
				}
				c.during(last.Addr())
				var all sync.WaitGroup
				for _, s := range nodes {
					all.Go(func() { stop(t, s) })
				}
				all.Wait()
			})
		}
	}
}

// unused returns an address that nobody listens on.
func unused(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() //nolint:errcheck // a test's
	return ln.Addr().String()
}

// stopsInTests is what a node with little on its disk takes to stop at most, on a machine that is busy with tests.
const stopsInTests = stopsWithin / 2

// stop closes a node within that time.
func stop(t *testing.T, s *Server) {
	t.Helper()
	began := time.Now()
	done := make(chan error, 1)
	go func() { done <- s.Close() }()
	select {
	case err := <-done:
		t.Logf("stopped in %v", time.Since(began))
		if err != nil {
			t.Errorf("Close: %v", err)
		}
	case <-time.After(stopsInTests):
		b := make([]byte, 4<<20)
		t.Errorf("the node has not stopped within %v:\n%s", stopsInTests, b[:runtime.Stack(b, true)])
	}
}

func TestClose_SaysWhatItWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		hangs := make(chan struct{})
		err := endsInTime(slog.New(slog.NewTextHandler(&log, nil)), func() error {
			<-hangs
			return nil
		})
		close(hangs)
		if !errors.Is(err, errHangs) || !strings.Contains(log.String(), "TestClose_SaysWhatItWaitsFor.func") {
			t.Errorf("got %v, and in the log %s", err, log.String())
		}
		if err := endsInTime(slog.New(slog.DiscardHandler), func() error { return io.EOF }); err != io.EOF {
			t.Errorf("got %v, want what the end came to", err)
		}
	})
}

func TestClose_AtOnceIsNoError(t *testing.T) {
	var log strings.Builder
	to := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	for range 20 {
		s, err := Start(Config{Listen: Listen{Redis: "127.0.0.1:0", Kafka: "127.0.0.1:0", Etcd: "127.0.0.1:0", HTTP: "127.0.0.1:0"}}, "test", env.Real(), to)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if log.Len() > 0 {
		t.Errorf("it says\n%s", log.String())
	}
}

// oneListener accepts one connection.
type oneListener struct {
	net.Listener
	nc net.Conn
}

func (l oneListener) Accept() (net.Conn, error) { return l.nc, nil }

func TestTLS_CloseDoesNotWaitForWhoDoesNotRead(t *testing.T) {
	ca := newAuthority(t, "ca")
	cert, err := tls.LoadX509KeyPair(ca.sign("node", "node"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}}
	for _, either := range []bool{false, true} {
		near, far := net.Pipe()
		defer far.Close() //nolint:errcheck // a test's
		ln := tlsListener(oneListener{nc: near}, cfg)
		if either {
			ln = eitherListener(oneListener{nc: near}, cfg)
		}
		nc, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		asked := make(chan error, 1)
		go func() {
			c := tls.Client(far, &tls.Config{InsecureSkipVerify: true})
			_, err := c.Write([]byte("hello"))
			asked <- err
		}()
		if _, err := io.ReadFull(nc, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if err := <-asked; err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_ = nc.Close()
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("either %v: closed after %v", either, took)
		}
	}
}
