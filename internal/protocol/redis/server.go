// Package redis serves the Redis protocol (RESP2 and RESP3) over a shard.Client.
//
// One goroutine serves a connection. It reads what has arrived, parses and hands in every complete request without
// waiting for answers, then awaits the answers in order and writes them at once: one read and one write for a request,
// or for a pipeline of them. Consecutive reads of one shard become one query. A request that depends on earlier ones of its
// connection, such as a read behind a write, waits for them first, so that a client sees its own writes in order.
// Connections whose clients send one short read after the other, and wait for each answer, are served together meanwhile: see gatherer.
//
// Nothing is queued without a bound: a connection has at most inFlightMax requests and inFlightBytes bytes handed in, of which at most
// valuesInFlightMax may be answered with values, and one that does not read its answers is not read from either.
//
// # Cluster behaviour
//
// Every node serves every key: it forwards what another node leads. A connection that has asked for the slot map (CLUSTER
// SLOTS, SHARDS or NODES) or has sent READONLY, READWRITE or ASKING belongs to a cluster client: it is sent to the leader by
// MOVED, its commands may name one slot only, and reads without a key concern the shards that this node leads. One that
// never asked is served as by a single Redis.
package redis

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quorate/quorate/internal/coord"
	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/protocol/conns"
	"github.com/quorate/quorate/internal/shard"
)

// Bounds of one connection.
const (
	inFlightMax   = 1024
	inFlightBytes = 16 << 20
	// valuesInFlightMax bounds the writes handed in whose answers may hold a value each, which may be long although the requests are not.
	valuesInFlightMax = 8
	// outFlushBytes is the size from which answers are written although more input is there.
	outFlushBytes = 64 << 10
	// refuseTimeout is how long the refusal of a connection may take; others wait meanwhile.
	refuseTimeout = time.Second
	// lingerTimeout and lingerBytesMax are how long, and how much of what the client goes on to send, is read over after the last answer.
	lingerTimeout  = time.Second
	lingerBytesMax = 16 << 20
)

// ConnectionsMax is how many connections may be open unless Config says otherwise.
const ConnectionsMax = 10_000

// Config sets up a Server. The zero value means the defaults.
type Config struct {
	// Space is the space that is served; default "default".
	Space string
	// ClusterMode offers the cluster protocol; see the package comment. With false, CLUSTER is refused and nobody is
	// redirected.
	ClusterMode bool
	// RedisVersion is what INFO and HELLO say, which clients choose features by; default "7.0.15".
	RedisVersion string
	// Version is Quorate's own; default "dev".
	Version string
	// Durability is the space's durability class, for INFO; default "majority-fsync".
	Durability string
	// ConnectionsMax bounds the open connections; default ConnectionsMax. The next one gets an error and is closed.
	ConnectionsMax int
	// Places bounds them together with those of other servers; nil is no bound.
	Places *conns.Places
	// RequestTimeout bounds the wait for one answer; default 10 s. Past it the outcome is unknown.
	RequestTimeout time.Duration
	// PartialTimeout is how long a request that has begun may go on without a byte; default 30 s. In all it may take ten
	// times that. The time that the server itself is busy with what came before does not count.
	PartialTimeout time.Duration
	// WriteTimeout is how long the next 64 KiB of answers may find no room in the client's socket; default 60 s. While there is little room for large
	// answers, it is also how long one may be on its way to its client.
	WriteTimeout time.Duration
	// CloseTimeout is how long Close waits for answers under way; default 5 s.
	CloseTimeout time.Duration

	// Requests bounds what all connections hold of requests that have begun, transactions being queued, and watched keys, those of other servers that
	// have the same among them. Nil bounds nothing.
	Requests *conns.Budget

	// Answers bounds what large answers to reads take until their clients have them, together with what datatypes.Module collects for them:
	// it has the same. WriteAnswers does so for large answers to writes. Nil bounds nothing.
	Answers, WriteAnswers *kv.Budget

	// loneMin is after how many lone reads in a row a connection is served by a gatherer; default 64.
	loneMin int
	// gatherMin is from how many open connections on any are gathered; default 64. With few there is nothing to gather.
	gatherMin int
	// leaveMin is after how many lone reads in a row a connection does not wait for its answers itself; default 8.
	leaveMin int
	// askingMax is how many reads, with this one, may be under way for that; default 2.
	askingMax int32
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.RequestTimeout, 10*time.Second)
	set(&c.PartialTimeout, 30*time.Second)
	set(&c.WriteTimeout, time.Minute)
	set(&c.CloseTimeout, 5*time.Second)
	for _, f := range []struct {
		s *string
		v string
	}{{&c.Space, shard.DefaultSpace}, {&c.RedisVersion, "7.0.15"}, {&c.Version, "dev"}, {&c.Durability, "majority-fsync"}} {
		if *f.s == "" {
			*f.s = f.v
		}
	}
	if c.ConnectionsMax == 0 {
		c.ConnectionsMax = ConnectionsMax
	}
	if c.loneMin == 0 {
		c.loneMin = 64
	}
	if c.gatherMin == 0 {
		c.gatherMin = 64
	}
	if c.leaveMin == 0 {
		c.leaveMin = 8
	}
	if c.askingMax == 0 {
		c.askingMax = 2
	}
	return c
}

// Topics finds the place of an event.
type Topics interface {
	// Resolve returns the id of a topic, the partition that a record goes to and the shard that holds it. It may make the
	// topic. slot is the hash slot that the client asked for by a tag, -1 if none; key is the record's key, unless
	// keyNull; explicitPartition is the partition the client named, -1 if none. It may block until ctx ends. key must
	// not be kept. Errors are *errs.Error.
	Resolve(ctx context.Context, topic string, slot int, key []byte, keyNull bool, explicitPartition int32) (id [16]byte, partition int32, at shard.ID, err error)
}

// Server serves the Redis protocol. Its methods may be called from any goroutine.
type Server struct {
	cfg    Config
	client shard.Client
	topics Topics
	log    *slog.Logger
	metric *serverMetrics
	tokens *coord.Tokens
	// commands finds a command by its name in lower case; list holds them in the order of the table.
	commands map[string]*command
	list     []*command
	started  time.Time
	runID    string

	ctx    context.Context
	cancel context.CancelFunc
	// tick counts the janitor's rounds, from 1. Moments that only time-outs look at are kept in ticks, so that a request
	// need not ask for the time.
	tick      atomic.Int64
	tickEvery time.Duration
	nextID    atomic.Int64
	processed atomic.Int64
	accepted  atomic.Int64
	rejected  atomic.Int64
	conns     *conns.Set[*conn]
	// asking is how many reads are being waited for, without what gatherers ask.
	asking    atomic.Int32
	gatherers gatherers
	keyCounts keyCounts
	// wg counts the janitor, what gatherers run, and counts of keys.
	wg sync.WaitGroup
}

// New returns a server. topics may be nil: EVENT.ADD is refused then. The server owns a goroutine until Close.
func New(cfg Config, client shard.Client, topics Topics, log *slog.Logger, reg prometheus.Registerer) *Server {
	cfg = cfg.withDefaults()
	s := &Server{
		cfg: cfg, client: client, topics: topics, log: log, commands: map[string]*command{},
		conns: conns.New[*conn]("redis", cfg.ConnectionsMax, cfg.Places, log), started: client.Now(), tokens: coord.NewTokens(coord.New(client, coord.Home(client, cfg.Space))),
	}
	s.metric = newMetrics(reg)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, spec := range datatypes.Commands() {
		s.add(&command{Spec: spec, flat: spec.Name == "hrandfield", value: spec.Name == "getset" || spec.Name == "getdel" || spec.Name == "getex"})
	}
	for _, c := range connectionCommands() {
		s.add(&c)
	}
	t := client.Topology()
	s.runID = nodeID(t.Cluster+"/run", t.Self)
	s.tickEvery = min(max(min(cfg.RequestTimeout, cfg.PartialTimeout, cfg.WriteTimeout)/8, time.Millisecond), time.Second)
	s.tick.Store(1)
	s.wg.Add(1)
	go s.janitor()
	return s
}

func (s *Server) add(c *command) {
	c.metric = s.metric.forCommand(c.Name)
	s.commands[c.Name] = c
	s.list = append(s.list, c)
}

// nodeID derives a node's id as the cluster protocol shows it: 40 hex digits, the same on every node and for ever.
func nodeID(cluster string, id shard.NodeID) string {
	sum := sha1.Sum(fmt.Appendf(nil, "quorate node %s/%d", cluster, id))
	return fmt.Sprintf("%x", sum)
}

// Serve accepts connections until the listener or the server is closed, and takes the listener over. It returns nil after
// Close.
func (s *Server) Serve(ln net.Listener) error { return s.conns.Serve(ln, s.ServeConn) }

// ServeConn serves one connection from a goroutine of its own, which Close waits for.
func (s *Server) ServeConn(nc net.Conn) {
	c := newConn(s, nc)
	err := s.conns.Go(c, func() {
		s.accepted.Add(1)
		s.metric.connections.Inc()
		c.serve()
		s.metric.connections.Dec()
		s.conns.Remove(c)
	})
	if err == nil {
		return
	}
	refuse := "-ERR the server is shutting down\r\n"
	if errors.Is(err, conns.ErrFull) {
		refuse = "-ERR max number of clients reached\r\n"
		s.rejected.Add(1)
	}
	// The new connection's send buffer is empty, so that this waits for nothing but, with TLS, the client's part of the handshake.
	_ = nc.SetDeadline(time.Now().Add(refuseTimeout))
	_, _ = nc.Write([]byte(refuse))
	_ = nc.Close()
}

// Close stops listening, lets requests under way be answered for CloseTimeout, closes all connections and waits for every
// goroutine.
func (s *Server) Close() {
	for _, c := range s.conns.Close() {
		c.wake(wakeShutdown)
	}
	ended := make(chan struct{})
	go func() {
		s.conns.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(s.cfg.CloseTimeout):
		// Reads that gatherers have asked end by this, too, and kill waits for them.
		s.cancel()
		for _, c := range s.conns.Open() {
			c.kill()
		}
	}
	s.cancel()
	<-ended
	s.gatherers.close()
	s.wg.Wait()
}

// ticks returns how many rounds of the janitor a time is, at least.
func (s *Server) ticks(d time.Duration) int64 { return int64(d/s.tickEvery) + 1 }

// janitor ends waits that took too long. It looks at the connections' own notes, so that a request pays for its time-outs
// with a store of a counter, not with a timer.
func (s *Server) janitor() {
	defer s.wg.Done()
	t := time.NewTicker(s.tickEvery)
	defer t.Stop()
	request, write := s.ticks(s.cfg.RequestTimeout), s.ticks(s.cfg.WriteTimeout)
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		now := s.tick.Add(1)
		open, scarce := s.conns.Open(), s.scarce()
		for _, c := range open {
			if len(open) < s.cfg.gatherMin {
				c.gathering.end()
			}
			if since := c.waitingSince.Load(); since != 0 && now-since > request {
				c.giveUp()
				if c.left.Load() != nil {
					c.wake(wakeLeft)
				}
			}
			if since := c.writingSince.Load(); since != 0 && now-since > write {
				s.log.Warn("closed a Redis connection that does not read its answers", "addr", c.addr, "client_id", c.id)
				c.kill()
			}
			if scarce && c.slow(now) {
				s.log.Warn("closed a Redis connection that takes long to read a large answer while others find no room for theirs", "addr", c.addr, "client_id", c.id)
				c.kill()
			}
			if c.overdue(now) {
				c.wake(wakePartial)
			}
		}
	}
}

// find returns a command by name, in any case.
func (s *Server) find(name []byte) *command {
	var buf [32]byte
	if len(name) > len(buf) {
		return nil
	}
	for i, ch := range name {
		if ch >= 'A' && ch <= 'Z' {
			ch += 'a' - 'A'
		}
		buf[i] = ch
	}
	return s.commands[string(buf[:len(name)])]
}

// command is an entry of the server's table.
type command struct {
	datatypes.Spec
	// local runs a command that the server answers itself; nil for those that run in a shard. It is called with subcommands that subs has.
	local func(c *conn, args [][]byte)
	// subs are the command's subcommands, nil if it has none.
	subs *subcommands
	// flat: see appendReply.
	flat bool
	// value says that the answer to a write may hold a value; for SET its arguments do.
	value  bool
	metric commandMetrics
}

func (c *command) arityError() string {
	return "ERR wrong number of arguments for '" + c.Name + "' command"
}

// gathers says whether a gatherer serves the command: it does with reads of a key that take little time.
func (c *command) gathers() bool {
	return c.Flags&(datatypes.ReadOnly|datatypes.Fast|datatypes.EveryShard) == datatypes.ReadOnly|datatypes.Fast && c.local == nil && c.First > 0
}

// answersValue says whether the answer to a write, whose arguments are those behind the name, may hold a value.
func (c *command) answersValue(args [][]byte) bool {
	if c.value || c.Name != "set" || len(args) < 3 {
		return c.value
	}
	return slices.ContainsFunc(args[2:], func(a []byte) bool { return equalFold(a, "get") })
}

type commandMetrics struct{ ok, failed prometheus.Counter }

// serverMetrics are the server's. Counters of commands are made once, not looked up per request.
type serverMetrics struct {
	commands       *prometheus.CounterVec
	connections    prometheus.Gauge
	readBytes      prometheus.Counter
	writtenBytes   prometheus.Counter
	protocolErrors prometheus.Counter
	fenced         prometheus.Counter
	unknown        commandMetrics
}

func newMetrics(reg prometheus.Registerer) *serverMetrics {
	m := &serverMetrics{
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "quorate_redis_commands_total",
			Help: "Redis commands answered, by command and status (ok, error). Many errors point at a client at fault or at a shard without a leader.",
		}, []string{"command", "status"}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "quorate_redis_connections", Help: "Open Redis connections. At the configured maximum new clients are refused.",
		}),
		readBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "quorate_redis_read_bytes_total", Help: "Bytes read from Redis clients.",
		}),
		writtenBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "quorate_redis_written_bytes_total", Help: "Bytes written to Redis clients.",
		}),
		protocolErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "quorate_redis_protocol_errors_total", Help: "Redis connections closed for malformed input. They should be none.",
		}),
		fenced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "quorate_redis_fenced_total", Help: "Redis writes refused because their fencing token was stale or missing. A few follow each change of a lock's holder; a steady rate is a writer that ignores that it lost the lock.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.commands, m.connections, m.readBytes, m.writtenBytes, m.protocolErrors, m.fenced)
	}
	m.unknown = m.forCommand("unknown")
	return m
}

func (m *serverMetrics) forCommand(name string) commandMetrics {
	name = strings.ToLower(name)
	return commandMetrics{m.commands.WithLabelValues(name, "ok"), m.commands.WithLabelValues(name, "error")}
}

func (m commandMetrics) count(failed bool) {
	if failed {
		m.failed.Inc()
	} else {
		m.ok.Inc()
	}
}
