package etcd

import (
	"expvar"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/quorate/quorate/internal/kv"
)

// Scope is what an address serves.
type Scope string

// The scopes; the names are those of the configuration.
const (
	// All is gRPC and HTTP on one address.
	All Scope = ""
	// OnlyGRPC refuses HTTP/1.
	OnlyGRPC Scope = "grpc"
	// OnlyHTTP serves the JSON form of the API and the pages, no gRPC.
	OnlyHTTP Scope = "http"
	// OnlyMetrics serves the pages that look at the server: metrics, health and version. None of them shows keys.
	OnlyMetrics Scope = "metrics"
)

// notHTTP is the answer to HTTP/1 where there is only gRPC.
const notHTTP = "HTTP/1.1 421 Misdirected Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n" +
	"this address serves gRPC only; the JSON form and the pages are on another one\n"

// pass passes a connection on to what speaks its protocol. It reports false if nothing here does. gRPC is served until the connection ends.
func (s *Server) pass(c *conn, isGRPC bool, scope Scope) bool {
	c.served.Store(true)
	switch {
	case isGRPC && (scope == All || scope == OnlyGRPC):
		s.grpc.Serve(c)
		return true
	case !isGRPC && (scope == All || scope == OnlyHTTP):
		return s.toHTTP.put(&patientConn{conn: c, limit: s.cfg.SendTimeout, scarce: s.cfg.Answers.Scarce})
	case !isGRPC && scope == OnlyMetrics:
		return s.toPages.put(&patientConn{conn: c, limit: s.cfg.SendTimeout, scarce: s.cfg.Answers.Scarce})
	case !isGRPC:
		_ = c.SetDeadline(time.Now().Add(s.cfg.HelloTimeout))
		_, _ = io.WriteString(c, notHTTP)
		// Bytes of the request that nobody has read would make the close a reset, which may overtake the answer.
		if c.CloseWrite() == nil {
			_, _ = io.CopyN(io.Discard, c, helloBytesMax)
		}
	}
	return false
}

// helloBytesMax bounds what is read of a request that is refused.
const helloBytesMax = 16 << 10

// pages serves what looks at the server, and nothing else.
func (s *Server) pages() *http.ServeMux {
	m := http.NewServeMux()
	s.servePages(m, "")
	return m
}

// servePages adds what looks at the server, under a prefix.
func (s *Server) servePages(m *http.ServeMux, prefix string) {
	if s.cfg.Metrics != nil {
		m.Handle("GET "+prefix+"/metrics", promhttp.HandlerFor(s, promhttp.HandlerOpts{}))
	}
	m.Handle("GET "+prefix+"/debug/vars", expvar.Handler())
	s.serveHealth(m, prefix)
}

// patientConn is a connection whose client has a time in which to take each piece of what is written. It is for HTTP; gRPC's does that itself.
type patientConn struct {
	*conn
	limit time.Duration
	// scarce says whether there is little room for other large answers. Then the time is for all of one.
	scarce func() bool
}

// patientPiece is as much as a client must take within the time.
const patientPiece = 64 << 10

// Write implements net.Conn.
func (c *patientConn) Write(b []byte) (n int, err error) {
	large, began := len(b) >= kv.LargeBytes, time.Now()
	for first := true; first || len(b) > 0; first = false {
		if large && time.Since(began) > c.limit && c.scarce() {
			return n, os.ErrDeadlineExceeded
		}
		if err := c.SetWriteDeadline(time.Now().Add(c.limit)); err != nil {
			return n, err
		}
		m, err := c.conn.Write(b[:min(len(b), patientPiece)])
		n += m
		if err != nil {
			return n, err
		}
		b = b[m:]
	}
	return n, nil
}
