package etcd

import (
	"context"
	"encoding/json"
	"math"
	"net"
	"net/http"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"go.etcd.io/etcd/api/v3/etcdserverpb/gw"
	"go.etcd.io/etcd/api/v3/version"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/quorate/quorate/internal/errs"
)

// mux serves what etcd serves by plain HTTP on its client port.
func (s *Server) mux() *http.ServeMux {
	m := http.NewServeMux()
	m.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, version.Versions{Server: Version, Cluster: storageVersion, Storage: storageVersion})
	})
	m.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {
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
	text := func(w http.ResponseWriter, err error) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(err.Error() + "\n"))
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	}
	m.Handle("/v3/", http.MaxBytesHandler(s.gateway(), 2*int64(s.cfg.RequestBytesMax)))
	m.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { text(w, nil) })
	m.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { text(w, s.probe(r)) })
	return m
}

// probe reads something: from this node alone if the request says serializable=true, else from the cluster.
func (s *Server) probe(r *http.Request) error {
	if r.URL.Query().Get("serializable") == "true" {
		_, err := s.status(r.Context(), true)
		return err
	}
	if !s.hasLeader() {
		return errNoLeader
	}
	_, err := s.readOp(r.Context(), probeRange, false)
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
			if !s.toGRPC.put(far) {
				return nil, errs.New(errs.Unavailable, "the etcd server is closed")
			}
			return near, nil
		}),
	)
	if err != nil {
		panic(err) // The arguments are constants.
	}
	s.self = c
	m := runtime.NewServeMux(runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.HTTPBodyMarshaler{Marshaler: &runtime.JSONPb{
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
