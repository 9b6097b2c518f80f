package etcd

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// speak sends the beginning of a request of HTTP.
func (r *rig) speak(say string) (net.Conn, *bufio.Reader) {
	r.t.Helper()
	nc, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		r.t.Fatal(err)
	}
	if _, err := io.WriteString(nc, say); err != nil {
		r.t.Fatal(err)
	}
	return nc, bufio.NewReader(nc)
}

// A body that does not arrive ends its request. An answer may take longer.
func TestJSON_BodiesMustArriveInTime(t *testing.T) {
	r := newRig(t, Config{RequestTimeout: 300 * time.Millisecond})
	_, half := r.speak("POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{\"key\": \"YQ==\"")
	_, talk := r.speak("POST /v3/watch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
	locked, m := r.post("/v3/lock/lock", fmt.Sprintf(`{"name":%q}`, b64("l")))
	if locked != http.StatusOK {
		t.Fatal(m)
	}
	body := fmt.Sprintf(`{"name":%q}`, b64("l"))
	_, wait := r.speak(fmt.Sprintf("POST /v3/lock/lock HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	for _, rd := range []*bufio.Reader{half, talk} {
		resp, err := http.ReadResponse(rd, nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Errorf("half a request is answered with %s", resp.Status)
		}
	}
	// The other has had the same time, and as much again.
	time.Sleep(400 * time.Millisecond)
	if code, m := r.post("/v3/lock/unlock", fmt.Sprintf(`{"key":%q}`, m["key"])); code != http.StatusOK {
		t.Fatal(m)
	}
	resp, err := http.ReadResponse(wait, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("a wait for a lock is answered with %s", resp.Status)
	}
}

// A request of gRPC that does not arrive ends at the client's time-out, or the server's.
func TestGRPC_RequestsMustArriveInTime(t *testing.T) {
	r := newRig(t, Config{RequestTimeout: 300 * time.Millisecond})
	st, err := r.conn.NewStream(r.ctx(), &grpc.StreamDesc{ClientStreams: true}, pb.KV_Put_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	// Neither a message nor an end follows.
	if err := st.RecvMsg(&pb.PutResponse{}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "has not arrived") {
		t.Errorf("got %v", err)
	}
}

// slowMetrics are looked at for a while.
type slowMetrics struct {
	began chan struct{}
	ended atomic.Bool
}

// Gather implements prometheus.Gatherer.
func (m *slowMetrics) Gather() ([]*dto.MetricFamily, error) {
	close(m.began)
	time.Sleep(200 * time.Millisecond)
	m.ended.Store(true)
	return nil, nil
}

var _ prometheus.Gatherer = (*slowMetrics)(nil)

// Pages look at what is closed behind the server.
func TestClose_WaitsForPages(t *testing.T) {
	m := &slowMetrics{began: make(chan struct{})}
	r := newRig(t, Config{Metrics: m, CloseTimeout: time.Millisecond})
	r.speak("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
	<-m.began
	r.s.Close()
	if !m.ended.Load() {
		t.Error("the server is closed, and a page is being made")
	}
}
