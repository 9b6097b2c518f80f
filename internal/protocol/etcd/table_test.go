package etcd

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

var rewrite = flag.Bool("rewrite", false, "write docs/compat/etcd.md from the table")

// The table has every RPC of the services that are served, and what it calls refused is refused by name.
func TestCalls_AreTheServices(t *testing.T) {
	r := newRig(t, Config{})
	listed := map[string]served{}
	for _, c := range calls {
		pkg := "etcdserverpb"
		if c.service == "Lock" || c.service == "Election" {
			pkg = "v3" + strings.ToLower(c.service) + "pb"
		}
		listed["/"+pkg+"."+c.service+"/"+c.method] = c.served
	}
	n := 0
	for name, info := range r.s.grpc.GetServiceInfo() {
		if strings.HasPrefix(name, "grpc.") {
			continue
		}
		for _, m := range info.Methods {
			n++
			full := "/" + name + "/" + m.Name
			how, ok := listed[full]
			if !ok {
				t.Errorf("%s is not in the table", full)
				continue
			}
			var err error
			switch {
			case m.Name == "Observe", m.Name == "Lock", m.Name == "Campaign":
				// They wait for what does not come.
			case !m.IsClientStream && !m.IsServerStream:
				// A message without fields is one of every type.
				err = r.conn.Invoke(r.ctx(), full, &emptypb.Empty{}, &emptypb.Empty{})
			case !m.IsClientStream:
				var st grpc.ClientStream
				if st, err = r.conn.NewStream(r.ctx(), &grpc.StreamDesc{ServerStreams: true}, full); err == nil {
					_ = st.SendMsg(&emptypb.Empty{})
					_ = st.CloseSend()
					err = st.RecvMsg(&emptypb.Empty{})
				}
			}
			if is := status.Code(err) == codes.Unimplemented; is != (how == refusedByName) || is && !strings.Contains(err.Error(), m.Name+" is not served: ") {
				t.Errorf("%s is %q in the table: %v", full, how, err)
			}
		}
	}
	if n != len(calls) {
		t.Errorf("%d RPCs, %d in the table", n, len(calls))
	}
}

func TestCompatDocument(t *testing.T) {
	const path = "../../../docs/compat/etcd.md"
	var b strings.Builder
	b.WriteString(`# etcd: what is served

This page is generated from the table in ` + "`internal/protocol/etcd/table.go`" + `; run the package's tests with ` + "`-rewrite`" + `.

The API is that of etcd ` + Version + `, over gRPC, and as JSON under ` + "`/v3/`" + ` on the same port, with ` + "`/version`, `/health`, `/readyz` and `/livez`" + `. One key
space a space of the cluster, on its first shard, with a revision of its own that begins at 1. ` + "`/metrics`" + ` has etcd's names beside the node's own. Errors are etcd's, to the letter; an unknown
outcome is ` + "`etcdserver: request timed out`" + `. There are no quotas, no alarms and nothing to defragment.
The JSON form is for programs: pages of other sites get no CORS headers, and the paths of etcd 3.3, ` + "`/v3beta/`" + `, are not there. Compressed
messages of gRPC (` + "`grpc-encoding: gzip`" + `) are refused by name.

The last column is what kine v0.16.4, which also speaks this API, makes of it.

| Service | RPC | Served | Notes | kine |
|---|---|---|---|---|
`)
	for _, c := range calls {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", c.service, c.method, c.served, c.notes, c.kine)
	}
	if *rewrite {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != b.String() {
		t.Errorf("%s is not what the code says; run the tests with -rewrite, and read the diff", path)
	}
}
