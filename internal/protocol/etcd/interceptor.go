package etcd

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorate/quorate/internal/protocol/rpc"
)

// wantsLeader says whether a client would rather have an error than wait for a leader.
func wantsLeader(ctx context.Context) bool {
	v, _ := rpc.Header(ctx, rpctypes.MetadataRequireLeaderKey)
	return v == rpctypes.MetadataHasLeader
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	began := time.Now()
	resp, err := any(nil), errNoLeader
	if !wantsLeader(ctx) || s.hasLeader() {
		resp, err = next(s.identified(ctx), req)
	}
	took := time.Since(began)
	s.m.answered(info.FullMethod, err, took)
	s.took(info.FullMethod, took)
	return resp, err
}

// strictStream is a stream that ends when there is no leader.
type strictStream struct {
	grpc.ServerStream
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// Context implements grpc.ServerStream.
func (s *strictStream) Context() context.Context { return s.ctx }

func (s *Server) stream(srv any, ss grpc.ServerStream, next grpc.StreamHandler) error {
	if ctx := s.identified(ss.Context()); ctx != ss.Context() {
		ss = &boundStream{ss, ctx}
	}
	if wantsLeader(ss.Context()) {
		if !s.hasLeader() {
			return errNoLeader
		}
		st := &strictStream{ServerStream: ss}
		st.ctx, st.cancel = context.WithCancelCause(ss.Context())
		defer st.cancel(nil)
		s.mu.Lock()
		s.strict[st] = struct{}{}
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			delete(s.strict, st)
			s.mu.Unlock()
		}()
		ss = st
	}
	s.m.streams.Inc()
	defer s.m.streams.Dec()
	err := next(srv, ss)
	if st, ok := ss.(*strictStream); ok && errors.Is(context.Cause(st.ctx), errNoLeader) {
		return errNoLeader
	}
	return err
}

// A leader is missed for leaderTries times leaderCheck before streams that want one are ended: three times etcd's election time-out.
const (
	leaderCheck = 500 * time.Millisecond
	leaderTries = 6
)

// watchLeader ends strict streams when there has been no leader for a while, and counts leaders.
func (s *Server) watchLeader() {
	tick := time.NewTicker(leaderCheck)
	defer tick.Stop()
	missed, term := 0, uint64(0)
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		missed++
		if at, _, err := s.where(); err == nil && at.Leader != 0 {
			missed = 0
			s.led.Store(true)
			if at.Term != term && term != 0 {
				s.leaderChanges.Add(1)
			}
			term = at.Term
		}
		if missed < leaderTries {
			continue
		}
		missed = 0
		s.mu.Lock()
		for st := range s.strict {
			st.cancel(errNoLeader)
		}
		s.mu.Unlock()
	}
}

// metrics of the server.
type metrics struct {
	connections, streams, watchers, lagging prometheus.Gauge
	requests                                *prometheus.CounterVec
	seconds                                 *prometheus.HistogramVec
	events, fenced                          prometheus.Counter
	// methods are the series of each method, by its full name: *methodMetrics.
	methods sync.Map
}

// methodMetrics are the series that nearly every request of a method counts in.
type methodMetrics struct {
	name    string
	ok      prometheus.Counter
	seconds prometheus.Observer
}

// answered counts a request. To look a series up by its labels costs more than to count.
func (m *metrics) answered(fullMethod string, err error, took time.Duration) {
	v, ok := m.methods.Load(fullMethod)
	if !ok {
		name := fullMethod[strings.LastIndexByte(fullMethod, '/')+1:]
		v, _ = m.methods.LoadOrStore(fullMethod, &methodMetrics{
			name: name, ok: m.requests.WithLabelValues(name, codes.OK.String()), seconds: m.seconds.WithLabelValues(name),
		})
	}
	mm := v.(*methodMetrics) //nolint:forcetypeassert // nothing else is stored
	if err == nil {
		mm.ok.Inc()
	} else {
		m.requests.WithLabelValues(mm.name, status.Code(err).String()).Inc()
	}
	mm.seconds.Observe(took.Seconds())
}

func newMetrics(reg prometheus.Registerer) *metrics {
	gauge := prometheus.NewGauge
	m := &metrics{
		connections: gauge(prometheus.GaugeOpts{Name: "quorate_etcd_connections", Help: "Open connections of etcd clients."}),
		streams:     gauge(prometheus.GaugeOpts{Name: "quorate_etcd_streams", Help: "Open streams of etcd clients: watches and lease renewals."}),
		watchers:    gauge(prometheus.GaugeOpts{Name: "quorate_etcd_watchers", Help: "Open watches."}),
		lagging: gauge(prometheus.GaugeOpts{
			Name: "quorate_etcd_watchers_lagging",
			Help: "Watches that read events from history, since they began in the past or their client is slow. It should be near 0.",
		}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "quorate_etcd_requests_total", Help: "Requests answered, by method and gRPC code.",
		}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "quorate_etcd_request_seconds", Help: "Time to answer a request. Writes above the time of a sync of the raft log wait for something else.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
		}, []string{"method"}),
		events: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "quorate_etcd_watch_events_total", Help: "Events handed to watches.",
		}),
		fenced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "quorate_etcd_fenced_total", Help: "Transactions that would have written on condition that a key has a creation revision, which it had no more: writes under a stale fencing token, and calls for a leader that was none. A few follow each change of a lock's holder.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.connections, m.streams, m.watchers, m.lagging, m.requests, m.seconds, m.events, m.fenced)
	}
	return m
}
