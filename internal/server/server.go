// Package server makes a running node of a Config: storage, engine, the list of modules, the list of listeners, and the
// order in which they start and stop.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/engine"
	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/protocol/conns"
	"github.com/quorate/quorate/internal/protocol/etcd"
	"github.com/quorate/quorate/internal/protocol/kafka"
	"github.com/quorate/quorate/internal/protocol/redis"
	"github.com/quorate/quorate/internal/replica"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// Server is a running node.
type Server struct {
	cfg    Config
	log    *slog.Logger
	dir    *storage.Dir
	engine *engine.Engine
	redis  *redis.Server
	kafka  *kafka.Server
	// etcd are the servers of the spaces that have one, by name.
	etcd map[string]*etcd.Server
	http *httpPort
	addr Listen
	// spaceAddr are the addresses of spaces beside the first.
	spaceAddr map[string]string
	// doors are where etcd's clients come in, by space.
	doors map[string][]door
	// answers bounds what large answers of etcd's clients take.
	answers *kv.Budget
	// redisAnswers and redisWrites bound what large answers of Redis' clients take: to reads and to writes.
	redisAnswers, redisWrites *kv.Budget
	// places are what connections of all clients take, but for those of the HTTP port.
	places *conns.Places
	// requests bounds what unfinished requests of Redis' and etcd's clients take.
	requests *conns.Budget
	// tls is what ports have that are secured, by name.
	tls    map[string]*secure
	serves chan struct{}
	memory memory
	// files is how many descriptors there are.
	files descriptors
	// closing says that listeners end since the node stops.
	closing atomic.Bool
}

// answersBytesMax is four of the largest answers. What a read takes beside them, while it is encoded, is about as much again. This and what follows are less where there
// is little memory.
const answersBytesMax = 4 * kv.AnswerBytesMax

// redisAnswersBytesMax is sixteen of the largest answers, and redisWritesBytesMax eight. Clients of Redis have theirs apart, so that slow ones of etcd take
// nothing from them.
const redisAnswersBytesMax, redisWritesBytesMax = 16 * datatypes.AnswerBytesMax, 8 * datatypes.AnswerBytesMax

// requestsBytesMax is what two of etcd's connections may hold of requests at most, or some dozens of Redis'.
const requestsBytesMax = 1 << 30

// modules lists the data models that run in every shard. A new one is one line here.
// etcdAnswers and redisAnswers bound what reads of their clients collect, queries how many of Redis clients read at a time, 0 not at all.
func modules(etcdAnswers, redisAnswers *kv.Budget, queries int) []shard.Module {
	return []shard.Module{
		datatypes.New(datatypes.Config{AppendEvent: appendEvent, EncodeFence: kv.EncodeFence, Answers: redisAnswers, QueriesMax: queries}),
		eventlog.Module{EncodeFence: kv.EncodeFence},
		kv.Module{Answers: etcdAnswers},
		auth.New(auth.Config{Uses: etcd.Uses}),
	}
}

// appendEvent connects the two models, which do not know each other.
func appendEvent(b []byte, e *datatypes.Event, locks [][]byte) []byte {
	var hs []eventlog.Header
	for _, h := range e.Headers {
		hs = append(hs, eventlog.Header{Name: h.Name, Value: h.Value})
	}
	return eventlog.AppendEvent(b, e.Topic, e.Partition, e.Key, e.KeyNull, e.Value, hs, locks)
}

// Start starts a node. It returns when every port listens; Probe says when it is ready. version is shown to clients.
func Start(cfg Config, version string, e *env.Env, log *slog.Logger) (_ *Server, err error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	log = log.With("node", cfg.Node)
	log.Info("starting", "version", version, "config", cfg.String())
	s := &Server{cfg: cfg, log: log, serves: make(chan struct{}), etcd: map[string]*etcd.Server{}, spaceAddr: map[string]string{}, doors: map[string][]door{},
		memory: ownMemory(), files: ownDescriptors()}
	if s.files > 0 && s.files < descriptorsFew {
		log.Warn("this process may have few files open: clients beyond clients_max are refused; raise the limit, as with ulimit -n", "limit", int(s.files), "clients_max", s.files.clients())
	}
	s.places = conns.NewPlaces(s.files.clients())
	s.answers = kv.NewBudget(s.memory.share(8, 32<<20, answersBytesMax))
	s.redisAnswers, s.redisWrites = kv.NewBudget(s.memory.share(16, 16<<20, redisAnswersBytesMax)), kv.NewBudget(s.memory.share(32, 16<<20, redisWritesBytesMax))
	s.requests = conns.NewBudget(s.memory.share(12, 24<<20, requestsBytesMax))
	if s.tls, err = secured(&cfg, log); err != nil {
		return nil, err
	}
	jwt, err := cfg.EtcdAuth.JWT.open()
	if err != nil {
		return nil, err
	}
	var opened []net.Listener
	defer func() {
		if err != nil {
			for _, ln := range opened {
				_ = ln.Close()
			}
			if s.engine != nil {
				_ = s.engine.Close()
			}
			if s.dir != nil {
				if errs.Is(err, errs.Corrupt) && !cfg.alone() {
					// Opening the replicas came upon damage in the state store. The next start empties it and rebuilds.
					err = errors.Join(err, s.dir.MarkDamaged())
				}
				_ = s.dir.Close()
			}
		}
	}()
	for _, p := range cfg.openPorts() {
		log.Warn("this port checks nobody's certificate, and other machines can reach it", "port", p.name, "address", p.listen)
	}
	listenAs := func(name, key, addr string, how Secured, bound *string) (net.Listener, error) {
		if addr == "" {
			return nil, nil
		}
		ln, err := e.Listen(context.Background(), addr)
		if err != nil {
			if errors.Is(err, syscall.EADDRINUSE) {
				return nil, errs.New(errs.Exists, "the %s port %s is taken by %s; stop that, or set %s", name, addr, portOwner(addr), key)
			}
			return nil, errs.Wrap(errs.Invalid, err, "the node cannot listen on %s; correct %s", addr, key)
		}
		*bound = addrOf(ln)
		if t := s.tls[name]; t != nil {
			switch how {
			case SecuredFully:
				ln = tlsListener(ln, t.server(e))
			case SecuredIfAsked:
				ln = eitherListener(ln, t.server(e))
			}
		}
		opened = append(opened, ln)
		return ln, nil
	}
	listen := func(name, key, addr string, bound *string) (net.Listener, error) {
		return listenAs(name, key, addr, SecuredFully, bound)
	}
	peerLn, err := listen("peer", "listen.peer", cfg.Listen.Peer, &s.addr.Peer)
	if err != nil {
		return nil, err
	}
	peerLns := []net.Listener{peerLn}
	redisLn, err := listen("redis", "listen.redis", cfg.Listen.Redis, &s.addr.Redis)
	if err != nil {
		return nil, err
	}
	kafkaLn, err := listen("kafka", "listen.kafka", cfg.Listen.Kafka, &s.addr.Kafka)
	if err != nil {
		return nil, err
	}
	etcdLn, err := listen("etcd", "listen.etcd", cfg.Listen.Etcd, &s.addr.Etcd)
	if err != nil {
		return nil, err
	}
	httpLn, err := listen("http", "listen.http", cfg.Listen.HTTP, &s.addr.HTTP)
	if err != nil {
		return nil, err
	}
	if etcdLn != nil {
		s.doors[shard.DefaultSpace] = []door{{Listener: etcdLn, addr: s.addr.Etcd}}
	}
	for _, m := range cfg.ListenMore {
		bound := ""
		ln, err := listenAs(m.Port, "listen_more", m.Address, m.TLS, &bound)
		if err != nil {
			return nil, err
		}
		if m.Port == "peer" {
			peerLns = append(peerLns, ln)
			continue
		}
		if s.addr.Etcd == "" {
			s.addr.Etcd = bound
		}
		s.doors[shard.DefaultSpace] = append(s.doors[shard.DefaultSpace], door{ln, bound, m.Serve, m.TLS != SecuredFully})
	}
	for _, name := range cfg.spaceNames() {
		bound := ""
		ln, err := listen("etcd", "spaces."+name+".etcd", cfg.Spaces[name].Etcd, &bound)
		if err != nil {
			return nil, err
		}
		if ln != nil {
			s.doors[name], s.spaceAddr[name] = []door{{Listener: ln, addr: bound}}, bound
		}
	}
	if len(peerLns) > 1 {
		peerLn = join(peerLns)
		opened = append(opened, peerLn)
	}
	if s.dir, err = openDir(cfg, s.memory, s.files, log); err != nil {
		return nil, inUse(cfg.Data, err)
	}
	if d := s.dir.Recovery; d.TornBytes > 0 {
		log.Info("cut an unfinished write off the raft log", "bytes", d.TornBytes)
	}
	for _, d := range s.dir.Recovery.Damaged {
		log.Warn("raft log is damaged", "file", d.File, "offset", d.Offset, "bytes", d.Length, "reason", d.Reason)
	}
	reg := prometheus.NewRegistry()
	if err := errors.Join(reg.Register(collectors.NewGoCollector()), reg.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))); err != nil {
		return nil, errs.Wrap(errs.Internal, err, "register metrics")
	}
	adv := map[string]string{}
	for _, a := range []struct{ name, advertise, bound string }{
		{"redis", cfg.Advertise.Redis, s.addr.Redis}, {"kafka", cfg.Advertise.Kafka, s.addr.Kafka}, {"http", cfg.Advertise.HTTP, s.addr.HTTP},
		{"etcd", cfg.Advertise.Etcd, s.addr.Etcd},
	} {
		if a.advertise != "" {
			adv[a.name] = a.advertise
		} else if a.bound != "" {
			adv[a.name] = a.bound
		}
	}
	for name, bound := range s.spaceAddr {
		if adv[etcd.AddrKey(name)] = cfg.Spaces[name].AdvertiseEtcd; cfg.Spaces[name].AdvertiseEtcd == "" {
			adv[etcd.AddrKey(name)] = bound
		}
	}
	links := *e
	if t := s.tls["peer"]; t != nil {
		links.Dial = t.dial(e)
	}
	s.engine, err = engine.Start(engine.Config{
		Cluster: cfg.Cluster, Identity: cfg.identity(), Node: shard.NodeID(cfg.Node), Peers: cfg.peers(), Spaces: cfg.spaces(), Addr: adv,
		Replica: replica.Config{
			LeaseReads: cfg.LeaseReads, QueueBytesMax: int(s.memory.share(32, 16<<20, 32<<20)), InflightBytesMax: int(s.memory.share(128, 4<<20, 16<<20)),
			AnswerBytesMax: int(s.memory.share(32, 16<<20, redisWritesBytesMax)),
		},
		DropUnsynced: cfg.Sandbox.NoFsync, StaleReads: cfg.Sandbox.StaleReads,
	}, s.dir, modules(s.answers, s.redisAnswers, s.memory.queries()), peerLn, &links, log, reg)
	if err != nil {
		return nil, err
	}
	s.kafka = kafka.New(kafka.Config{
		Places:        s.places,
		FrameBytesMax: int(s.memory.share(8, 16<<20, 100<<20)), RequestBytesMax: int(s.memory.share(8, 32<<20, 256<<20)),
		FetchBytesAllMax: int(s.memory.share(8, 32<<20, 256<<20)),
	}, s.engine, log, reg)
	s.redis = redis.New(redis.Config{
		ConnectionsMax: min(redis.ConnectionsMax, s.files.clients()), Places: s.places,
		ClusterMode: true, Version: version, CloseTimeout: lastAnswers, Requests: s.requests, Answers: s.redisAnswers, WriteAnswers: s.redisWrites,
	}, s.engine, s.kafka.Topics(), log, reg)
	s.startEtcd(cfg.servesEtcd(), jwt, log, reg)
	s.http = newHTTPPort(s.mux(reg), log)
	s.serve(redisLn, kafkaLn, httpLn)
	return s, nil
}

// startEtcd makes a server for each space that etcd's clients can reach. Servers follow their key spaces all the time.
func (s *Server) startEtcd(first bool, jwt *etcd.JWT, log *slog.Logger, reg *prometheus.Registry) {
	names, paths := map[string]*etcd.Server{}, map[string]*etcd.Server{}
	var users map[string]*etcd.Server
	if len(s.cfg.Spaces) > 0 {
		users = map[string]*etcd.Server{}
	}
	start := func(space string, below map[string]*etcd.Server) *etcd.Server {
		labels := prometheus.Labels{"space": space}
		srv := etcd.New(etcd.Config{
			Space: space, Names: names, Users: users, Paths: below, Path: s.cfg.Spaces[space].Path, TLS: s.cfg.TLS.Etcd.on(), Metrics: reg, Info: s.info, MoveLeader: s.engine.MoveLeader, TempDir: s.cfg.Data,
			ProgressInterval: s.cfg.EtcdProgressInterval,
			AuthTokenTTL:     time.Duration(s.cfg.EtcdAuth.TokenTTL) * time.Second, BcryptCost: s.cfg.EtcdAuth.BcryptCost, JWT: jwt,
			RequestBytesMax: s.cfg.EtcdRequestBytesMax, TxnOpsMax: s.cfg.EtcdTxnOpsMax, SlowRequest: s.cfg.EtcdSlowRequest,
			Members: s.cfg.members(), Answers: s.answers, Requests: s.requests, Places: s.places,
			Compaction: etcd.Compaction{Period: s.cfg.EtcdCompaction.Period, Revisions: s.cfg.EtcdCompaction.Revisions},
		}, s.engine, log.With("space", space), prometheus.WrapRegistererWith(labels, reg))
		s.etcd[space] = srv
		return srv
	}
	for _, name := range s.cfg.spaceNames() {
		srv := start(name, nil)
		for _, n := range s.cfg.Spaces[name].TLSNames {
			names[strings.ToLower(n)] = srv
		}
		if s.cfg.Spaces[name].Users {
			users[name] = srv
		}
		if s.cfg.Spaces[name].Path {
			paths[name] = srv
		}
	}
	if first {
		start(shard.DefaultSpace, paths)
	}
}

// info answers what etcd's operators ask.
func (s *Server) info(id shard.ID) etcd.Info {
	st, err := s.engine.Status()
	if err != nil {
		return etcd.Info{}
	}
	i := etcd.Info{DiskBytes: int64(st.StoreBytes)}
	for _, sh := range st.Shards {
		if sh.ID == id {
			i.Commit, i.Applied = sh.Commit, sh.Applied
		}
	}
	return i
}

// openDir opens the data directory, or one in memory.
func openDir(cfg Config, own memory, files descriptors, log *slog.Logger) (*storage.Dir, error) {
	at, path := storage.OSFS(), cfg.Data
	switch {
	case cfg.Data == "":
		at, path = storage.VolatileFS(), "data"
	case cfg.Sandbox.Enabled:
		at = storage.PowerFS(at)
	}
	owner := storage.Owner{Cluster: cfg.identity(), Node: cfg.Node, Shards: uint32(cfg.Shards), Members: cfg.nodes()}
	return storage.OpenDir(at, path, owner, storage.LogConfig{NoVerify: cfg.Sandbox.NoVerify}, storage.StoreConfig{
		OnlyCopy: cfg.alone(), CacheBytes: own.share(32, 8<<20, 32<<20), MemTableBytes: int(own.share(32, 8<<20, 32<<20)), OpenFilesMax: files.tables(), Seed: uint64(cfg.Node),
		Fatal: func(err error) {
			log.Error("the disk refuses what the node must write; see to its room and its mount, then start the node again", "data", path, "error", err)
			os.Exit(1)
		},
	})
}

// serve runs the listeners; serves is closed when all have ended.
func (s *Server) serve(redisLn, kafkaLn, httpLn net.Listener) {
	done := make(chan struct{})
	n := 0
	start := func(name string, ln net.Listener, f func(net.Listener) error) {
		if ln == nil {
			return
		}
		n++
		go func() {
			if err := f(ln); err != nil && !s.closing.Load() && !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
				s.log.Error("listener stopped", "port", name, "error", err)
			}
			done <- struct{}{}
		}()
	}
	start("redis", redisLn, s.redis.Serve)
	start("kafka", kafkaLn, s.kafka.Serve)
	for name, doors := range s.doors {
		for _, d := range doors {
			start("etcd", d.Listener, func(ln net.Listener) error { return s.etcd[name].ServeScope(ln, d.scope) })
		}
	}
	start("http", httpLn, func(ln net.Listener) error { return s.http.serve(ln, s.files.operators()) })
	go func() {
		for range n {
			<-done
		}
		close(s.serves)
	}()
}

// Addr returns the addresses that the node listens on.
func (s *Server) Addr() Listen { return s.addr }

// Done is closed when the node has stopped by itself; Err says why.
func (s *Server) Done() <-chan struct{} { return s.engine.Done() }

// Err returns why the node stopped by itself.
func (s *Server) Err() error { return s.engine.Err() }

// stopsWithin bounds how long a node takes to stop. Clients have lastAnswers, whatever they do and whether there is a quorum; then a flush may be under
// way, of 32 MiB. What takes longer is a defect, or a disk that hangs.
const stopsWithin = 20 * time.Second

// lastAnswers is how long what is under way on the ports may go on when the node stops.
const lastAnswers = 2 * time.Second

// errHangs is why Close gave up.
var errHangs = errs.New(errs.Internal, "the node has not stopped within %v; what it waits for is in the log", stopsWithin)

// Close stops the node: first the ports, then the engine, then the disk. If that takes longer than it may, it logs what the node waits for and
// returns, so that the process can end: what was acknowledged is on disk.
func (s *Server) Close() error { return endsInTime(s.log, s.close) }

// endsInTime runs end, and gives it up if it takes longer than it may.
func endsInTime(log *slog.Logger, end func() error) error {
	done := make(chan error, 1)
	go func() { done <- end() }()
	late := time.NewTimer(stopsWithin)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-late.C:
		log.Error("the node does not stop", "within", stopsWithin, "goroutines", goroutines())
		return errHangs
	}
}

// goroutines returns the stacks of all goroutines, as far as there is room for them.
func goroutines() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

func (s *Server) close() error {
	s.closing.Store(true)
	// Each port waits for some of what is under way there. Without a quorum that is for nothing, and none is to wait for another.
	var ports sync.WaitGroup
	ports.Go(s.redis.Close)
	var kafkaErr error
	ports.Go(func() { kafkaErr = s.kafka.Close() })
	for _, e := range s.etcd {
		ports.Go(e.Close)
	}
	ports.Go(func() { s.http.close(lastAnswers) })
	ports.Wait()
	err := errors.Join(kafkaErr, s.engine.Close(), s.dir.Close())
	<-s.serves
	return err
}

// restartsMax is how many times in a row a node with damaged data starts over before it gives up: a disk that damages
// whatever is written to it needs a person.
const restartsMax = 3

// Run starts a node, calls ready once it has answered through each of its ports, and runs it until ctx ends. If the node
// finds its data damaged it is started again, and rebuilds itself from its peers.
func Run(ctx context.Context, cfg Config, version string, e *env.Env, log *slog.Logger, ready func(*Server)) error {
	defer paceGC()()
	defer ownMemory().limitGC()()
	if err := calmMonitor(); err != nil {
		log.Debug("the runtime's monitor wakes as often as it likes; CAP_SYS_NICE would change that", "error", err)
	}
	restarts := 0
	for {
		began := e.Now()
		s, err := Start(cfg, version, e, log)
		if errs.Is(err, errs.Corrupt) && !errors.Is(err, storage.ErrOwnerDamaged) && !cfg.alone() && restarts < restartsMax {
			restarts++
			log.Error("this node's data are damaged; it starts over and is rebuilt from its peers", "error", err)
			continue
		}
		if err != nil {
			return err
		}
		if ready != nil {
			if err := s.WaitReady(ctx); err == nil {
				ready(s)
				ready = nil
			} else if ctx.Err() != nil {
				return s.Close()
			}
		}
		select {
		case <-ctx.Done():
			return s.Close()
		case <-s.Done():
		}
		why := s.Err()
		closeErr := s.Close()
		if errors.Is(closeErr, errHangs) {
			// It has the data directory still.
			return errors.Join(fmt.Errorf("node stopped: %w", why), closeErr)
		}
		if e.Now().Sub(began) > time.Hour {
			restarts = 0
		}
		restarts++
		if cfg.alone() && errs.Is(why, errs.Corrupt) {
			why = errs.Wrap(errs.Corrupt, why, "the data of this node are damaged and it has no peers to repair them from; restore a backup")
		}
		if cfg.alone() || !errs.Is(why, errs.Corrupt) || restarts > restartsMax {
			return errors.Join(fmt.Errorf("node stopped: %w", why), closeErr)
		}
		log.Error("this node's data are damaged; it starts over and is rebuilt from its peers", "error", why)
	}
}
