package kafka

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quorate/quorate/internal/coord"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
	"github.com/quorate/quorate/internal/protocol/conns"
	"github.com/quorate/quorate/internal/shard"
)

// Server serves the Kafka protocol. Make it with New, give it listeners with Serve, and end it with Close.
type Server struct {
	cfg    Config
	client shard.Client
	log    *slog.Logger
	m      *metrics
	topics *Topics
	table  []api

	frames  *budget
	fetches *budget
	unpack  *unpacker
	tokens  *coord.Tokens

	ctx   context.Context
	stop  context.CancelFunc
	conns *conns.Set[*conn]
}

// New returns a server that asks client. Metrics are registered with reg unless it is nil.
func New(cfg Config, client shard.Client, log *slog.Logger, reg prometheus.Registerer) *Server {
	cfg.fill()
	s := &Server{
		cfg: cfg, client: client, log: log.With("protocol", "kafka"), m: newMetrics(reg),
		topics: NewTopics(client, cfg.Space, cfg.Partitions),
		frames: newBudget(cfg.RequestBytesMax, budgetUnit), fetches: newBudget(cfg.FetchBytesAllMax, budgetUnit),
		unpack: newUnpacker(), tokens: coord.NewTokens(coord.New(client, coord.Home(client, cfg.Space))),
		conns: conns.New[*conn]("kafka", cfg.ConnectionsMax, cfg.Places, log),
	}
	s.topics.rand = cfg.Rand
	s.table = s.apis()
	s.m.serve(s.table)
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Topics returns the server's cache of topics, for other protocols that append events.
func (s *Server) Topics() *Topics { return s.topics }

// Serve accepts connections until the listener or the server is closed, and takes the listener over. It returns nil after
// Close.
func (s *Server) Serve(ln net.Listener) error { return s.conns.Serve(ln, s.admit) }

// admit starts to serve a connection, or turns it away.
func (s *Server) admit(nc net.Conn) {
	c := newConn(s, nc)
	err := s.conns.Go(c, func() {
		s.m.connections.Inc()
		c.run()
		s.m.connections.Dec()
		s.conns.Remove(c)
	})
	if err != nil {
		// The server's context must not go on knowing it.
		c.endWork()
		_ = nc.Close()
	}
	if errors.Is(err, conns.ErrFull) {
		s.m.refused.WithLabelValues("too_many").Inc()
	}
}

// Close ends all connections and listeners and waits for every goroutine. Requests in flight are cut off.
func (s *Server) Close() error {
	for _, c := range s.conns.Close() {
		_ = c.nc.Close()
	}
	s.stop()
	s.conns.Wait()
	return nil
}

// tooLarge is why a connection is closed in place of a larger answer: few answers have room for an error of all of it.
func (s *Server) tooLarge(bytes int) error {
	return errs.New(errs.TooLarge, "an answer of %d bytes or more; at most %d are sent: ask for less at a time", bytes, s.cfg.answerBytesMax)
}

// once returns a list without what is in it a second time by its key. The list is overwritten.
func once[T any, K comparable](list []T, key func(*T) K) []T {
	return merge(list, key, func(_, _ *T) {})
}

// merge returns a list in which what has the same key is one: the first, to which join adds the others. The list is overwritten.
func merge[T any, K comparable](list []T, key func(*T) K, join func(to, more *T)) []T {
	at := make(map[K]int, min(len(list), 1024))
	out := list[:0]
	for i := range list {
		k := key(&list[i])
		if j, again := at[k]; again {
			join(&out[j], &list[i])
			continue
		}
		at[k] = len(out)
		out = append(out, list[i])
	}
	return out
}

// joined returns what two lists ask for together, of which none asks for all.
func joined[T any](a, b []T) []T {
	if a == nil || b == nil {
		return nil
	}
	return append(a, b...)
}

// api finds what is served under a key.
func (s *Server) api(key int16) *api {
	for i := range s.table {
		if s.table[i].key == key {
			return &s.table[i]
		}
	}
	return nil
}

// world is the cluster as one request sees it.
type world struct {
	topo  *shard.Topology
	space shard.Space
}

func (s *Server) world() (world, error) {
	t := s.client.Topology()
	sp, ok := t.Space(s.cfg.Space)
	if !ok || len(sp.Shards) == 0 {
		return world{}, errs.New(errs.Unavailable, "space %q is not known to this node yet", s.cfg.Space)
	}
	return world{t, sp}, nil
}

// leader returns the node that leads a shard and its term, 0 if none is known or it has no Kafka address.
func (w *world) leader(id shard.ID) (node shard.NodeID, epoch int32) {
	info, ok := w.topo.Shard(id)
	if !ok {
		return 0, -1
	}
	if _, _, ok := w.address(info.Leader); !ok {
		return 0, int32(info.Term)
	}
	return info.Leader, int32(info.Term)
}

// leads says whether this node leads a shard.
func (w *world) leads(id shard.ID) bool {
	info, ok := w.topo.Shard(id)
	return ok && info.Leader == w.topo.Self
}

// address returns where clients reach a node.
func (w *world) address(id shard.NodeID) (host string, port int32, ok bool) {
	n, ok := w.topo.Node(id)
	if !ok || id == 0 {
		return "", 0, false
	}
	host, p, err := net.SplitHostPort(n.Addr["kafka"])
	if err != nil {
		return "", 0, false
	}
	v, err := strconv.ParseUint(p, 10, 16)
	return host, int32(v), err == nil
}

// checkEpoch compares the leader epoch that a client believes in with the shard's (KIP-320).
func (w *world) checkEpoch(id shard.ID, epoch int32) int16 {
	info, _ := w.topo.Shard(id)
	switch {
	case !w.leads(id):
		return codeNotLeaderOrFollower
	case epoch >= 0 && epoch < int32(info.Term):
		return codeFencedLeaderEpoch
	case epoch > int32(info.Term):
		return codeUnknownLeaderEpoch
	}
	return codeNone
}

// coordinator checks that this node coordinates a group.
func (s *Server) coordinator(group string) (shard.ID, int16) {
	if len(group) > eventlog.GroupNameMax {
		return 0, codeInvalidGroupID
	}
	w, err := s.world()
	if err != nil {
		return 0, codeCoordinatorNotAvailable
	}
	id := groupShard(w.space, group)
	info, _ := w.topo.Shard(id)
	switch info.Leader {
	case w.topo.Self:
		return id, codeNone
	case 0:
		return id, codeCoordinatorNotAvailable
	}
	return id, codeNotCoordinator
}

// isChanges says whether a topic shows the change log.
func (s *Server) isChanges(t *eventlog.Topic) bool {
	return t.Name == eventlog.ChangesPrefix+s.cfg.Space
}
