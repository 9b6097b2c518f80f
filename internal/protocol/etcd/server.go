// Package etcd serves the etcd v3 API (https://etcd.io/docs/v3.7/learning/api/) over shard.Client: gRPC, and plain HTTP on the
// same port for what asks for it. The key space is that of package kv, on the first shard of a space.
//
// Messages and error texts are those of etcd's own API module: its clients compare texts.
package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"hash/fnv"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/quorate/quorate/internal/coord"
	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/protocol/conns"
	"github.com/quorate/quorate/internal/protocol/rpc"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/telemetry"
)

// Config describes a server. The zero value of each field means its default.
type Config struct {
	// Space whose keys are served; default "default".
	Space string
	// RequestBytesMax bounds one request; default 1.5 MiB, as in etcd.
	RequestBytesMax int
	// TxnOpsMax bounds the operations of a transaction; default 128, as in etcd.
	TxnOpsMax int
	// ConnectionsMax bounds the open connections; default 10,000. More are closed at once.
	ConnectionsMax int
	// Places bounds them together with those of other servers; nil is no bound.
	Places *conns.Places
	// HelloTimeout is how long a connection may take to say what it speaks, and an HTTP request to say what it wants; default 10 s.
	HelloTimeout time.Duration
	// RequestTimeout is how long a request may take to arrive, or a message of a stream; default 1 minute. The call is ended then, or the connection
	// if it is one of HTTP/1.
	RequestTimeout time.Duration
	// SendTimeout is how long a client may take to make room for the next 64 KiB of what it is sent, or for what is left of an answer; default
	// 1 minute. The call is ended then, or the connection. While less than a quarter of Answers is left, it is for a large answer as a whole.
	SendTimeout time.Duration
	// CloseTimeout is how long calls have to end when the server closes; default 2 s. Watches, renewals of leases, and who waits for a lock end
	// at once.
	CloseTimeout time.Duration
	// ProgressInterval is how often a quiet watch that asked for it is told how far it is; default 10 minutes, as in etcd.
	ProgressInterval time.Duration
	// Compaction is the history that the server lets go of by itself; default none, as in etcd.
	Compaction Compaction
	// SlowRequest is how long a request may take before the log says so, at most once a second; default never.
	SlowRequest time.Duration
	// WatchersMax bounds the open watches of this node; default 1,000,000.
	WatchersMax int
	// StreamBytesMax bounds the events that wait for one watch stream; default 256 KiB. A stream that is slower reads its events
	// from history.
	StreamBytesMax int
	// TempDir is where snapshots are made, a directory that no other node uses: what a crash left there is removed by New. Default
	// os.TempDir, where nothing is.
	TempDir string
	// TLS says that the listeners are secured, for the addresses that clients are told.
	TLS bool
	// AuthTokenTTL is how long a token counts after a login, and after it was last used on a connection; default 5 minutes, as in etcd.
	AuthTokenTTL time.Duration
	// JWT, if not nil, makes tokens and reads them, in place of the secret that the cluster has: then AuthTokenTTL counts from the login alone.
	JWT *JWT
	// BcryptCost is that of passwords, 4 to 31: it takes 2^BcryptCost steps to compare one. Default 10, as in etcd.
	BcryptCost int
	// Names are the servers of spaces beside the default one by the name, in small letters, that clients ask for in TLS, in any: on the main port they get that
	// space, on the port of another they are refused. Whoever asks for any other name gets this server.
	Names map[string]*Server
	// Users are the servers of spaces into which a user logs in on the main port, as SPACE/USER, by the name of the space. All servers are
	// given the same; no user of theirs may have such a name. Nil says that the cluster has no other space, so that no token can be one's.
	Users map[string]*Server
	// Paths are the servers of spaces that this one serves below /spaces/NAME/, by that name. Path says that this space is served there.
	Paths map[string]*Server
	Path  bool
	// Members are what clients are told of the members beside their client URLs. Default node1 and so on.
	Members map[shard.NodeID]Member
	// Answers bounds what waits to be sent of large answers, together with what kv.Module reads for others. Nil bounds nothing.
	Answers *kv.Budget
	// Requests bounds what requests that have not all come, or wait, take of memory, those of other servers that have the same among them. Nil bounds
	// nothing.
	Requests *conns.Budget
	// Metrics are the node's own, served on /metrics with etcd's names beside them. Nil means that there is no /metrics.
	Metrics prometheus.Gatherer
	// Info returns what this node knows of itself and a shard. Nil means that nobody does.
	Info func(shard.ID) Info
	// MoveLeader hands the leadership of a shard, which this node has, over to another node, and waits until that one leads. Nil means
	// that nobody can.
	MoveLeader func(context.Context, shard.ID, shard.NodeID) error
}

// Member is a member's name and the URL that other members know, "" if that is not told.
type Member struct{ Name, PeerURL string }

// Info is what operators ask of a node.
type Info struct {
	// Commit and Applied are raft indexes of the shard.
	Commit, Applied uint64
	// DiskBytes is what the node's state takes on disk.
	DiskBytes int64
}

func (c *Config) fill() {
	if c.Space == "" {
		c.Space = shard.DefaultSpace
	}
	if c.RequestBytesMax == 0 {
		c.RequestBytesMax = 3 << 19
	}
	if c.TxnOpsMax == 0 {
		c.TxnOpsMax = 128
	}
	if c.ConnectionsMax == 0 {
		c.ConnectionsMax = 10_000
	}
	if c.HelloTimeout == 0 {
		c.HelloTimeout = 10 * time.Second
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = time.Minute
	}
	if c.SendTimeout == 0 {
		c.SendTimeout = time.Minute
	}
	if c.CloseTimeout == 0 {
		c.CloseTimeout = 2 * time.Second
	}
	if c.TempDir == "" {
		c.TempDir = os.TempDir()
	}
	if c.ProgressInterval == 0 {
		c.ProgressInterval = 10 * time.Minute
	}
	if c.WatchersMax == 0 {
		c.WatchersMax = 1_000_000
	}
	if c.AuthTokenTTL == 0 {
		c.AuthTokenTTL = 5 * time.Minute
	}
	if c.BcryptCost == 0 {
		c.BcryptCost = 10
	}
	if c.StreamBytesMax == 0 {
		c.StreamBytesMax = 256 << 10
	}
}

// Timings of etcd's gRPC server, by its defaults: clients that ping more often are cut off.
const (
	keepAliveMin      = 5 * time.Second
	keepAliveInterval = 2 * time.Hour
	keepAliveTimeout  = 20 * time.Second
	// requestOverhead is what a message may have besides the request, as in etcd.
	requestOverhead = 512 << 10
)

// rpcWorkers is how many goroutines wait for requests. With more requests at a time, or streams that stay, the rest get goroutines of their
// own.
const rpcWorkers = 256

// streamsMax bounds the open calls of a connection, most of which are watches: one of them costs some kilobytes.
const streamsMax = 100_000

// Server serves the etcd API. Make it with New, give it listeners with Serve, and end it with Close.
type Server struct {
	cfg    Config
	client shard.Client
	log    *slog.Logger
	m      *metrics
	grpc   *rpc.Server
	// http serves the JSON form and pages, looks the pages alone.
	http, looks *http.Server
	// handlers are those of both.
	handlers conns.Handlers
	// impls are the implementations of the gRPC services, by the service's name. They do not change after New.
	impls map[string]any
	// self is the connection of the gateway, gate, with grpc.
	self *grpc.ClientConn
	gate http.Handler
	feed *feed
	ids  atomic.Pointer[ids]
	// leaderChanges counts the leaders that watchLeader has seen after the first; led says that there was one.
	leaderChanges atomic.Int64
	led           atomic.Bool
	// snapshots counts those that are under way.
	snapshots atomic.Int64
	// rights is what is known of authentication; passwords makes hashes.
	rights    *rights
	passwords *passwords
	// coord serves the Lock and Election services.
	coord *coord.Client
	// toHTTP and toPages take the connections that speak HTTP/1.
	toHTTP, toPages *queue

	// rejections and slow bound what is logged of connections and requests.
	rejections, slow telemetry.Seldom

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
	// conns waits for what passes connections on, wg for all others.
	conns *conns.Set[*conn]

	mu sync.Mutex
	// strict are the streams that end when there is no leader. Guarded by mu.
	strict map[*strictStream]struct{}
}

// New returns a server that asks client. Metrics are registered with reg unless it is nil.
func New(cfg Config, client shard.Client, log *slog.Logger, reg prometheus.Registerer) *Server {
	if cfg.TempDir != "" {
		dropSnapshots(cfg.TempDir)
	}
	cfg.fill()
	s := &Server{
		cfg: cfg, client: client, log: log.With("protocol", "etcd"), m: newMetrics(reg),
		toHTTP: newQueue(), toPages: newQueue(), impls: map[string]any{},
		conns: conns.New[*conn]("etcd", cfg.ConnectionsMax, cfg.Places, log), strict: map[*strictStream]struct{}{},
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.feed = newFeed(s)
	s.rights, s.passwords = &rights{s: s}, newPasswords(cfg.BcryptCost)
	s.grpc = rpc.New(rpc.Config{
		MessageBytesMax: cfg.RequestBytesMax + requestOverhead, StreamsMax: streamsMax, HelloTimeout: cfg.HelloTimeout,
		PingMin: keepAliveMin, PingEvery: keepAliveInterval, PingTimeout: keepAliveTimeout, RequestTimeout: cfg.RequestTimeout, SendTimeout: cfg.SendTimeout, Scarce: cfg.Answers.Scarce, LargeBytes: kv.LargeBytes, CloseTimeout: cfg.CloseTimeout,
		Stopped: rpctypes.ErrGRPCStopped, Workers: rpcWorkers, Requests: cfg.Requests, Attach: attach,
	})
	to := registrar{s}
	pb.RegisterKVServer(to, kvServer{s: s})
	pb.RegisterWatchServer(to, watchServer{s: s})
	pb.RegisterLeaseServer(to, leaseServer{s: s})
	pb.RegisterClusterServer(to, clusterServer{s: s})
	pb.RegisterMaintenanceServer(to, maintenanceServer{s: s})
	pb.RegisterAuthServer(to, authServer{s: s})
	s.coord = coord.New(behalf{client, s}, func() (shard.Route, error) {
		at, _, err := s.where()
		return routeOf(at), err
	})
	s.registerRecipes(to)
	grpc_health_v1.RegisterHealthServer(to, health.NewServer())
	s.http = &http.Server{Handler: s.handlers.Counted(s.mux()), ReadHeaderTimeout: cfg.HelloTimeout, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelError)}
	s.looks = &http.Server{Handler: s.handlers.Counted(s.pages()), ReadHeaderTimeout: cfg.HelloTimeout, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelError)}
	for _, f := range []func(){
		func() { _ = s.http.Serve(s.toHTTP) }, func() { _ = s.looks.Serve(s.toPages) }, s.feed.run, s.rights.run, s.watchLeader,
	} {
		s.wg.Go(f)
	}
	if cfg.Compaction.on() {
		s.wg.Go(func() { s.compact(cfg.Compaction) })
	}
	return s
}

// Serve accepts connections until the listener or the server is closed, and takes the listener over. It returns nil after
// Close.
func (s *Server) Serve(ln net.Listener) error { return s.ServeScope(ln, All) }

// ServeScope is Serve for an address that serves less than all.
func (s *Server) ServeScope(ln net.Listener, scope Scope) error {
	return s.conns.Serve(ln, func(nc net.Conn) { s.admit(nc, scope) })
}

// admit finds out what a connection speaks and passes it on, or turns it away.
func (s *Server) admit(nc net.Conn, scope Scope) {
	c := &conn{Conn: nc, s: s}
	err := s.conns.Go(c, func() {
		s.m.connections.Inc()
		isGRPC, err := c.sniff()
		if err != nil {
			s.rejected(c, err)
			_ = c.Close()
			return
		}
		to := s
		if t, ok := c.Conn.(secured); ok {
			named := s.cfg.Names[strings.ToLower(t.ConnectionState().ServerName)]
			if named != nil && named != s && !s.main() {
				s.log.Debug("connection refused: its name in TLS is that of another space", "named", named.cfg.Space)
				_ = c.Close()
				return
			}
			if named != nil {
				to = named
			}
		}
		if !to.pass(c, isGRPC, scope) {
			_ = c.Close()
		}
	})
	if err != nil {
		_ = nc.Close()
	}
}

// rejectSayEvery is how often it is logged that a connection could not be secured, so that no stranger can fill the log.
const rejectSayEvery = time.Minute

// rejected logs, now and then, why a connection with TLS ended before it said anything. One that just ends is nobody's concern.
func (s *Server) rejected(c *conn, err error) {
	if _, secure := c.Conn.(secured); !secure || env.Gone(err) {
		return
	}
	if unsaid, say := s.rejections.Say(s.client.Now(), rejectSayEvery); say {
		s.log.Warn("rejected connection on client endpoint", "remote", c.RemoteAddr().String(), "error", err, "not_logged", unsaid)
	}
}

// slowSayEvery is how often a slow request is logged: one tells when, and the metrics how many.
const slowSayEvery = time.Second

// took logs a request that took long, now and then.
func (s *Server) took(method string, t time.Duration) {
	if s.cfg.SlowRequest == 0 || t < s.cfg.SlowRequest {
		return
	}
	if unsaid, say := s.slow.Say(s.client.Now(), slowSayEvery); say {
		s.log.Warn("request stats: slower than it should be", "method", method, "took", t, "should_be", s.cfg.SlowRequest, "not_logged", unsaid)
	}
}

// Close ends all connections and listeners and waits for every goroutine. Clients are told to go elsewhere, and calls have Config.CloseTimeout
// to end; those that have not are told that the server has stopped.
func (s *Server) Close() {
	open := s.conns.Close()
	for _, c := range open {
		if !c.served.Load() {
			_ = c.Close()
		}
	}
	s.grpc.Leave()
	s.stop()
	late, cancel := context.WithTimeout(context.Background(), s.cfg.CloseTimeout)
	defer cancel()
	var ends sync.WaitGroup
	ends.Go(s.grpc.Close)
	ends.Go(func() {
		for _, h := range []*http.Server{s.http, s.looks} {
			if h.Shutdown(late) != nil {
				_ = h.Close()
			}
		}
		// What is left of the gateway's calls had an answer, or has nobody to be answered.
		_ = s.self.Close()
		s.handlers.Wait()
	})
	// Other spaces may have connections that came here.
	all := make(chan struct{})
	go func() {
		s.conns.Wait()
		close(all)
	}()
	ends.Wait()
	select {
	case <-all:
	case <-late.Done():
	}
	for _, c := range open {
		_ = c.Close()
	}
	<-all
	s.wg.Wait()
}

// secured is a connection with TLS, at least perhaps.
type secured interface{ ConnectionState() tls.ConnectionState }

// conn is a connection whose first bytes were looked at.
type conn struct {
	net.Conn
	s    *Server
	once sync.Once
	// seen are the bytes that nobody has read yet.
	seen []byte
	// served says that the connection was passed on.
	served atomic.Bool
}

// preface begins every HTTP/2 connection (RFC 9113, section 3.4), and no HTTP/1 request.
var preface = []byte("PRI ")

func (c *conn) sniff() (isGRPC bool, err error) {
	if err := c.SetReadDeadline(time.Now().Add(c.s.cfg.HelloTimeout)); err != nil {
		return false, err
	}
	b := make([]byte, len(preface))
	for n := 0; n < len(b); {
		m, err := c.Conn.Read(b[n:])
		if n += m; !bytes.HasPrefix(preface, b[:n]) {
			c.seen = b[:n]
			return false, c.SetReadDeadline(time.Time{})
		}
		if err != nil {
			return false, err
		}
	}
	c.seen = b
	return true, c.SetReadDeadline(time.Time{})
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.seen) > 0 {
		n := copy(b, c.seen)
		c.seen = c.seen[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// CloseWrite ends what is sent to the client, if the connection can do that.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Close implements net.Conn.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.s.conns.Remove(c)
		c.s.m.connections.Dec()
	})
	return err
}

// queue is a listener that others accept for.
type queue struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newQueue() *queue { return &queue{conns: make(chan net.Conn), done: make(chan struct{})} }

func (q *queue) put(c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.done:
		return false
	}
}

// Accept implements net.Listener.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr implements net.Listener.
func (q *queue) Addr() net.Addr { return &net.TCPAddr{} }

// AddrKey is the protocol under which a node advertises a space's address (shard.Node).
func AddrKey(space string) string {
	if space == shard.DefaultSpace {
		return "etcd"
	}
	return "etcd/" + space
}

// where returns the shard that has the key space, and what is known of it.
func (s *Server) where() (shard.ShardInfo, *shard.Topology, error) {
	t := s.client.Topology()
	sp, ok := t.Space(s.cfg.Space)
	if !ok || len(sp.Shards) == 0 {
		return shard.ShardInfo{}, t, errs.New(errs.Unavailable, "space %q is not known to this node yet", s.cfg.Space)
	}
	info, _ := t.Shard(sp.Shards[0])
	info.ID = sp.Shards[0]
	return info, t, nil
}

// ask runs a query of kv's for the server itself. It fails with kv's own errors.
func (s *Server) ask(ctx context.Context, q []byte, stale bool) ([]byte, error) {
	at, _, err := s.where()
	if err != nil {
		return nil, err
	}
	return s.client.Query(ctx, routeOf(at), shard.Consistency{Stale: stale}, shard.Command{Module: shard.ModuleKV, Data: q})
}

// status returns how far the key space is, for the server itself.
func (s *Server) status(ctx context.Context, stale bool) (kv.Status, error) {
	b, err := s.ask(ctx, kv.EncodeStatus(), stale)
	if err != nil {
		return kv.Status{}, err
	}
	return kv.DecodeStatus(b)
}

// header returns an answer's header.
func (s *Server) header(rev int64) *pb.ResponseHeader {
	at, t, _ := s.where()
	id := s.ids.Load()
	if id == nil || id.cluster != t.Cluster || id.self != t.Self {
		id = &ids{cluster: t.Cluster, self: t.Self, clusterID: clusterID(t, s.cfg.Space), memberID: memberID(t, t.Self)}
		s.ids.Store(id)
	}
	return &pb.ResponseHeader{ClusterId: id.clusterID, MemberId: id.memberID, Revision: rev, RaftTerm: at.Term}
}

// ids are the numbers of the cluster and of this node, which every answer has.
type ids struct {
	cluster             string
	self                shard.NodeID
	clusterID, memberID uint64
}

// clusterID returns the number by which etcd's clients know a cluster: to them each space is one.
func clusterID(t *shard.Topology, space string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(t.Cluster))
	if space != shard.DefaultSpace {
		_, _ = h.Write([]byte("/" + space))
	}
	return h.Sum64()
}

// memberID returns the number by which etcd's clients know a node.
func memberID(t *shard.Topology, id shard.NodeID) uint64 {
	if id == 0 {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(t.Cluster))
	_, _ = h.Write([]byte{0, byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)})
	return h.Sum64()
}

// hasLeader says whether this node knows who leads the key space's shard.
func (s *Server) hasLeader() bool {
	at, _, err := s.where()
	return err == nil && at.Leader != 0
}

// errNoLeader is what a client gets that asked for a leader.
var errNoLeader = rpctypes.ErrGRPCNoLeader
