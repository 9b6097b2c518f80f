package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/etcdserverpb/gw"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
)

// mux serves what etcd serves by plain HTTP on its client port, and below /spaces/NAME/ what it does of other spaces.
func (s *Server) mux() *http.ServeMux {
	m := http.NewServeMux()
	s.gate = http.MaxBytesHandler(s.inTime(s.counted(s.gateway())), 2*int64(s.cfg.RequestBytesMax))
	s.serveAll(m, "")
	if s.cfg.Path {
		s.serveAll(m, "/"+spacesPrefix+s.cfg.Space)
	}
	for name, to := range s.cfg.Paths {
		to.serveAll(m, "/"+spacesPrefix+name)
	}
	m.HandleFunc("/"+spacesPrefix, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "this address has no such page of a space of that name; set path: true for a space whose pages it shall have", http.StatusNotFound)
	})
	return m
}

// serveAll adds the JSON form and the pages, under a prefix.
func (s *Server) serveAll(m *http.ServeMux, prefix string) {
	s.servePages(m, prefix)
	m.Handle(prefix+"/v3/", http.StripPrefix(prefix, s.gate))
}

// serveHealth adds the pages of version and health.
func (s *Server) serveHealth(m *http.ServeMux, prefix string) {
	m.HandleFunc("GET "+prefix+"/version", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, version.Versions{Server: Version, Cluster: storageVersion, Storage: storageVersion})
	})
	m.HandleFunc("GET "+prefix+"/health", func(w http.ResponseWriter, r *http.Request) {
		type health struct {
			Health string `json:"health"`
			Reason string `json:"reason"`
		}
		if err := s.probe(r); err != nil {
			reply(w, http.StatusServiceUnavailable, health{"false", err.Error()})
			return
		}
		reply(w, http.StatusOK, health{Health: "true"})
	})
	local := func(ctx context.Context) error {
		_, err := s.status(ctx, true)
		return err
	}
	serveChecks(m, prefix+"/livez", []check{{"serializable_read", func(ctx context.Context) error {
		err := local(ctx)
		if errs.KindOf(err) == errs.Unavailable {
			// A replica that is being rebuilt is alive: if it were restarted for that, it would begin again.
			return nil
		}
		return err
	}}})
	// A replica that was damaged, or does not vote yet, refuses to read.
	serveChecks(m, prefix+"/readyz", []check{
		{"data_corruption", local}, {"serializable_read", local}, {"linearizable_read", s.settled}, {"non_learner", local},
	})
}

// check is one of etcd's health checks (https://etcd.io/docs/v3.7/op-guide/monitoring/#health-check).
type check struct {
	name string
	run  func(context.Context) error
}

// serveChecks serves checks together under a path, except for those that a request excludes, and each under a path of its own.
func serveChecks(m *http.ServeMux, path string, checks []check) {
	answer := func(w http.ResponseWriter, r *http.Request, run []check) {
		query := r.URL.Query()
		_, verbose := query["verbose"]
		said, failed := "", false
		for _, c := range run {
			if slices.Contains(query["exclude"], c.name) {
				continue
			}
			if err := c.run(r.Context()); err != nil {
				said += fmt.Sprintf("[-]%s failed: %v\n", c.name, err)
				failed = true
			} else {
				said += fmt.Sprintf("[+]%s ok\n", c.name)
			}
		}
		if failed {
			http.Error(w, said, http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if verbose {
			_, _ = io.WriteString(w, said)
		}
		_, _ = io.WriteString(w, "ok\n")
	}
	m.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) { answer(w, r, checks) })
	for i, c := range checks {
		m.HandleFunc("GET "+path+"/"+c.name, func(w http.ResponseWriter, r *http.Request) { answer(w, r, checks[i:i+1]) })
	}
}

// probe reads something: from this node alone if the request says serializable=true, else from the cluster.
func (s *Server) probe(r *http.Request) error {
	if r.URL.Query().Get("serializable") == "true" {
		_, err := s.status(r.Context(), true)
		return err
	}
	return s.readable(r.Context())
}

// readable reads something from the cluster.
func (s *Server) readable(ctx context.Context) error {
	if !s.hasLeader() {
		return errNoLeader
	}
	_, err := s.readOp(ctx, probeRange, false)
	return err
}

// settled is readable with the error that etcd has for a node that had a leader and lost it.
func (s *Server) settled(ctx context.Context) error {
	err := s.readable(ctx)
	if err != nil && !s.hasLeader() && s.led.Load() {
		return rpctypes.ErrLeaderChanged
	}
	return err
}

func reply(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(b)
}

// gateway serves the JSON form of the API. It is a gRPC client of this server over a pipe.
func (s *Server) gateway() http.Handler {
	c, err := grpc.NewClient("passthrough:///self",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			near, far := net.Pipe()
			go s.grpc.ServeInside(far)
			return near, nil
		}),
	)
	if err != nil {
		panic(err) // The arguments are constants.
	}
	s.self = c
	m := runtime.NewServeMux(runtime.WithForwardResponseOption(s.holdJSON), runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.HTTPBodyMarshaler{Marshaler: &runtime.JSONPb{
		MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true},
		UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: true},
	}}))
	for _, register := range []func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error{
		gw.RegisterKVHandler, gw.RegisterWatchHandler, gw.RegisterLeaseHandler, gw.RegisterClusterHandler,
		gw.RegisterMaintenanceHandler, gw.RegisterAuthHandler,
	} {
		if err := register(s.ctx, m, c); err != nil {
			panic(err)
		}
	}
	if err := s.handleRecipes(m, c); err != nil {
		panic(err)
	}
	return m
}

// counted counts the bodies of requests, which are in memory whole, among what waits of all requests.
func (s *Server) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := s.cfg.Requests.Body(r.Body)
		defer b.Give()
		r.Body = b
		next.ServeHTTP(w, r)
	})
}

// inTime lets a request's body fail that takes too long to arrive. Nothing is answered before that anyway, not even by a watch: HTTP/1 has one
// direction at a time. What follows has no bound.
func (s *Server) inTime(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		b := &timedBody{ReadCloser: r.Body, late: time.AfterFunc(s.cfg.RequestTimeout, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })}
		defer b.late.Stop()
		r.Body = b
		next.ServeHTTP(w, r)
	})
}

// timedBody stops the time at its end.
type timedBody struct {
	io.ReadCloser
	late *time.Timer
}

// Read implements io.Reader.
func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.late.Stop()
	}
	return n, err
}

// holdJSON counts a large answer until its client has fetched it, or is gone. The call behind it has counted it so far, and has ended.
func (s *Server) holdJSON(ctx context.Context, _ http.ResponseWriter, m proto.Message) error {
	switch m.(type) {
	case *pb.RangeResponse, *pb.TxnResponse:
		if n := int64(proto.Size(m)); n >= kv.LargeBytes {
			s.cfg.Answers.Keep(n)
			context.AfterFunc(ctx, func() { s.cfg.Answers.Give(n) })
		}
	}
	return nil
}
