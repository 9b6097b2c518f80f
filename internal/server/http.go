package server

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/protocol/conns"
	"github.com/quorate/quorate/internal/protocol/etcd"
	"github.com/quorate/quorate/internal/shard"
)

// mux serves metrics, health, status and profiles.
func (s *Server) mux(reg *prometheus.Registry) http.Handler {
	m := http.NewServeMux()
	m.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	m.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-s.engine.Done():
			http.Error(w, "stopped", http.StatusServiceUnavailable)
		default:
			fmt.Fprintln(w, "ok") //nolint:errcheck // the client may be gone
		}
	})
	m.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		if err := s.Probe(ctx); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready") //nolint:errcheck // the client may be gone
	})
	m.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		st, err := s.engine.Status()
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(st)
	})
	m.HandleFunc("POST /etcd/load", s.load)
	profiles := http.NewServeMux()
	profiles.HandleFunc("/debug/pprof/", pprof.Index)
	profiles.HandleFunc("/debug/pprof/profile", pprof.Profile)
	profiles.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	profiles.HandleFunc("/debug/pprof/trace", pprof.Trace)
	m.HandleFunc("/debug/pprof/", func(w http.ResponseWriter, r *http.Request) {
		if !s.cfg.RemotePprof && !fromHere(r) {
			http.Error(w, "profiles are for this node's own machine; ask from there, or set remote_pprof: true in the configuration", http.StatusForbidden)
			return
		}
		profiles.ServeHTTP(w, r)
	})
	return m
}

// fromHere says whether a request comes from this machine: over a unix socket, from loopback, or from the address that it came to.
func fromHere(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		// Clients of a unix socket have no address.
		return true
	}
	ip := net.ParseIP(host)
	if ip == nil {
		return false
	}
	at, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ip.IsLoopback() || ok && ip.Equal(at.IP)
}

// Bounds of the HTTP port. Nobody is to hold what a node has of descriptors by saying nothing, or little.
const (
	httpConnectionsMax = 256
	httpHeaderTimeout  = 10 * time.Second
	httpIdleTimeout    = 2 * time.Minute
	// httpRequestTimeout is for what follows the header, and for the answer. Profiles take as long as they are asked to.
	httpRequestTimeout = time.Minute
	httpHeaderBytesMax = 64 << 10
)

// httpPort serves the HTTP port.
type httpPort struct {
	*http.Server
	handlers conns.Handlers
}

// newHTTPPort serves h within the bounds.
func newHTTPPort(h http.Handler, log *slog.Logger) *httpPort {
	bounded := func(w http.ResponseWriter, r *http.Request) {
		end := time.Now().Add(httpRequestTimeout)
		if strings.HasPrefix(r.URL.Path, "/debug/pprof/") {
			end = time.Time{}
		}
		c := http.NewResponseController(w)
		if err := errors.Join(c.SetReadDeadline(end), c.SetWriteDeadline(end)); err != nil {
			// The connection is gone.
			return
		}
		if nc, ok := r.Context().Value(connKey{}).(*oneOfFew); ok && r.Body != http.NoBody {
			nc.asks(false)
			r.Body = arriving{r.Body, nc}
		}
		h.ServeHTTP(w, r)
	}
	p := &httpPort{}
	p.Server = &http.Server{
		Handler: p.handlers.Counted(http.HandlerFunc(bounded)), ReadHeaderTimeout: httpHeaderTimeout, IdleTimeout: httpIdleTimeout, MaxHeaderBytes: httpHeaderBytesMax,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError),
	}
	return p
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

// serve serves at most so many connections at a time.
func (p *httpPort) serve(ln net.Listener, most int) error {
	few := newFewListener(ln, most)
	p.ConnState = few.state
	p.ConnContext = func(ctx context.Context, nc net.Conn) context.Context { return context.WithValue(ctx, connKey{}, nc) }
	return p.Serve(few)
}

// arriving is the body of a request, which counts as one when all of it is here. Until then, who has sent nothing for the longest time makes way first.
type arriving struct {
	io.ReadCloser
	of *oneOfFew
}

// Read implements io.Reader.
func (a arriving) Read(b []byte) (int, error) {
	n, err := a.ReadCloser.Read(b)
	a.of.asks(errors.Is(err, io.EOF))
	return n, err
}

// close lets what is under way go on for some time, ends it, and waits for it: handlers look at the disk.
func (p *httpPort) close(late time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), late)
	defer cancel()
	if err := p.Shutdown(ctx); err != nil {
		_ = p.Close()
	}
	p.handlers.Wait()
}

// LoadType is the content type of a part of a load (etcd.Part). A web page cannot send it to another site unasked.
const LoadType = "application/vnd.quorate.load"

// load takes a part of a key space, with its users and roles, that comes from elsewhere. Errors are answered with the name of their kind, so that who
// sends knows whether to try again.
func (s *Server) load(w http.ResponseWriter, r *http.Request) {
	fail := func(code int, err error) {
		w.Header().Set("Quorate-Error", errs.KindOf(err).String())
		http.Error(w, err.Error(), code)
	}
	space := cmp.Or(r.URL.Query().Get("space"), shard.DefaultSpace)
	to := s.etcd[space]
	switch {
	case to == nil:
		fail(http.StatusNotFound, errs.New(errs.NotFound, "this node serves no etcd key space %q; name a space in the configuration, or set listen.etcd", space))
		return
	case r.Header.Get("Content-Type") != LoadType:
		fail(http.StatusUnsupportedMediaType, errs.New(errs.Invalid, "the content type is not %s", LoadType))
		return
	}
	body := s.requests.Body(r.Body)
	defer body.Give()
	b, err := io.ReadAll(http.MaxBytesReader(w, body, etcd.LoadBytesMax))
	switch {
	case errs.Is(err, errs.Overloaded):
		fail(http.StatusServiceUnavailable, err)
		return
	case err != nil:
		fail(http.StatusBadRequest, errs.Wrap(errs.Invalid, err, "read the request"))
		return
	}
	if err := to.Load(r.Context(), b); err != nil {
		fail(http.StatusConflict, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// WaitReady waits until Probe succeeds.
func (s *Server) WaitReady(ctx context.Context) error {
	for {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := s.Probe(try)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errs.Wrap(errs.Unavailable, err, "not ready")
		case <-s.Done():
			return errs.Wrap(errs.Unavailable, s.Err(), "node stopped")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Probe asks every shard whether it can be read, and then the node through each of its ports, as a client would: a key over
// Redis, the list of API versions over Kafka, and a key's absence over etcd's HTTP.
func (s *Server) Probe(ctx context.Context) error {
	if err := s.engine.Probe(ctx); err != nil {
		return err
	}
	var all []error
	if s.addr.Redis != "" {
		all = append(all, s.probe(ctx, "redis", s.addr.Redis, func(c net.Conn) error {
			if _, err := io.WriteString(c, "*2\r\n$6\r\nEXISTS\r\n$9\r\n__probe__\r\n"); err != nil {
				return err
			}
			line, err := bufio.NewReader(c).ReadString('\n')
			if err == nil && !strings.HasPrefix(line, ":") {
				err = errors.New(strings.TrimSpace(line))
			}
			return err
		}))
	}
	if s.addr.Kafka != "" {
		all = append(all, s.probe(ctx, "kafka", s.addr.Kafka, func(c net.Conn) error {
			// ApiVersions, version 0, correlation id 7, no client id.
			if _, err := c.Write([]byte{0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff}); err != nil {
				return err
			}
			var h [8]byte
			if _, err := io.ReadFull(c, h[:]); err != nil {
				return err
			}
			if id := binary.BigEndian.Uint32(h[4:]); id != 7 {
				return fmt.Errorf("answer to request %d, want 7", id)
			}
			return nil
		}))
	}
	for _, space := range slices.Sorted(maps.Keys(s.doors)) {
		for _, d := range s.doors[space] {
			name, ask := "etcd", askHTTP
			if d.scope == etcd.OnlyGRPC {
				ask = askGRPC
			}
			if d.plain {
				name = "etcd without TLS"
			}
			all = append(all, s.probe(ctx, name, d.addr, ask))
		}
	}
	return errors.Join(all...)
}

// askHTTP asks for etcd's own page of readiness.
func askHTTP(c net.Conn) error {
	if _, err := io.WriteString(c, "GET /readyz HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && !strings.Contains(line, " 200 ") {
		err = errors.New(strings.TrimSpace(line))
	}
	return err
}

// askGRPC begins a connection of HTTP/2 (RFC 9113, section 3.4): the preface, and settings without any. The server's own come first in its answer.
func askGRPC(c net.Conn) error {
	const settings = 4
	if _, err := io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		return err
	}
	var h [9]byte
	if _, err := io.ReadFull(c, h[:]); err != nil {
		return err
	}
	if h[3] != settings {
		return fmt.Errorf("it begins with frame %d, want %d", h[3], settings)
	}
	return nil
}

func (s *Server) probe(ctx context.Context, name, addr string, ask func(net.Conn) error) error {
	var d net.Dialer
	network, at := env.Network(addr)
	c, err := d.DialContext(ctx, network, at)
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "probe %s", name)
	}
	defer c.Close() //nolint:errcheck // nothing is written
	if t := s.tls[name]; t != nil {
		c = tls.Client(c, t.look())
	}
	if t, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(t); err != nil {
			return err
		}
	}
	return errs.Wrap(errs.Unavailable, ask(c), "probe %s", name)
}

// portOwner names the process that listens on an address, as far as /proc tells.
func portOwner(addr string) string {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return anotherProcess
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return anotherProcess
	}
	inodes := map[string]bool{}
	for _, f := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			w := strings.Fields(line)
			if len(w) > 9 && w[3] == "0A" && strings.HasSuffix(w[1], fmt.Sprintf(":%04X", n)) {
				inodes["socket:["+w[9]+"]"] = true
			}
		}
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && inodes[to] {
			pid := strings.Split(fd, "/")[2]
			return processName(pid)
		}
	}
	return anotherProcess
}
