package etcd

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorate/quorate/internal/protocol/conns"
)

// Clients that begin requests and do not end them have a bounded part of a node's memory together, and others go on with small requests.
func TestRequests_UnfinishedAreBoundedTogether(t *testing.T) {
	requests := conns.NewBudget(400_000)
	r := newRig(t, Config{Requests: requests})
	var open []net.Conn
	for i := range 4 {
		nc, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, nc)
		if _, err := fmt.Fprintf(nc, "POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n{\"key\": %q, \"value\": \"%s", b64("a"), strings.Repeat("eHh4", 40_000)); err != nil {
			t.Fatal(err)
		}
		await(t, "what has come of a request counts", func() bool { return requests.Used() > int64(i+1)*90_000 })
	}
	large := bytes.Repeat([]byte("x"), 300_000)
	if _, err := r.kv.Put(r.ctx(), &pb.PutRequest{Key: []byte("b"), Value: large}); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "on this node") {
		t.Errorf("a large request of gRPC: %v", err)
	}
	if code, m := r.post("/v3/kv/put", fmt.Sprintf(`{"key":%q,"value":%q}`, b64("b"), b64(string(large)))); code == http.StatusOK || !strings.Contains(fmt.Sprint(m["message"]), "on this node") {
		t.Errorf("a large request of JSON: %d %v", code, m)
	}
	r.put("b", "small")
	if code, m := r.post("/v3/kv/put", fmt.Sprintf(`{"key":%q}`, b64("b"))); code != http.StatusOK {
		t.Errorf("a small request of JSON: %d %v", code, m)
	}
	for _, nc := range open {
		_ = nc.Close()
	}
	await(t, "requests whose clients are gone are let go of", func() bool { return requests.Used() == 0 })
	if _, err := r.kv.Put(r.ctx(), &pb.PutRequest{Key: []byte("b"), Value: large}); err != nil {
		t.Error(err)
	}
	await(t, "requests that were answered are let go of", func() bool { return requests.Used() == 0 })
}
