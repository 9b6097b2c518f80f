package etcd

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/quorate/quorate/internal/shard"
)

func TestMetrics_HaveEtcdsNames(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := newRig(t, Config{Metrics: reg, Info: func(shard.ID) Info { return Info{Commit: 9, Applied: 8, DiskBytes: 7} }})
	r.put("a", "1")
	r.put("a", "2")
	if _, err := r.kv.Put(r.ctx(), &pb.PutRequest{}); err == nil {
		t.Error("a key without a name was put")
	}
	req, err := http.NewRequestWithContext(r.ctx(), http.MethodGet, "http://"+r.addr+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %v: %s", resp.Status, err, b)
	}
	for _, want := range []string{
		`etcd_server_version{server_version="3.7.3"} 1` + "\n", `etcd_cluster_version{cluster_version="3.7"} 1` + "\n",
		"etcd_server_has_leader 1\n", "etcd_server_is_leader 1\n", "etcd_server_leader_changes_seen_total 0\n", "etcd_server_proposals_committed_total 9\n",
		"etcd_server_proposals_applied_total 8\n", "etcd_mvcc_db_total_size_in_bytes 7\n", "etcd_debugging_mvcc_watcher_total 0\n",
		`grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 2` + "\n",
		`grpc_server_handled_total{grpc_code="InvalidArgument",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1` + "\n",
		`quorate_etcd_requests_total{code="OK",method="Put"} 2` + "\n",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in\n%s", want, b)
		}
	}
	for name := range renamed {
		if strings.HasPrefix(name, "quorate_etcd_") && !strings.Contains(string(b), "\n"+name+" ") {
			t.Errorf("there is no %s to rename", name)
		}
	}
}

func TestMetrics_OfAnElection(t *testing.T) {
	r := newRig(t, Config{Info: func(shard.ID) Info { return Info{} }})
	value := func(name string) float64 {
		t.Helper()
		for _, f := range r.s.asEtcds() {
			if f.GetName() == name {
				return f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		t.Fatalf("no %s", name)
		return 0
	}
	for leader, want := range map[shard.NodeID][2]float64{0: {0, 0}, 1: {1, 1}, 2: {1, 0}} {
		r.shard.SetTopology(func(t *shard.Topology) {
			t.Shards = []shard.ShardInfo{t.Shards[0]}
			t.Shards[0].Leader = leader
		})
		if has, is := value("etcd_server_has_leader"), value("etcd_server_is_leader"); has != want[0] || is != want[1] {
			t.Errorf("the leader is %d: has_leader %v, is_leader %v", leader, has, is)
		}
		m := pb.NewMaintenanceClient(r.conn)
		if st, err := m.Status(r.ctx(), &pb.StatusRequest{}); err != nil || (len(st.Errors) > 0) != (leader == 0) || (st.Leader == 0) != (leader == 0) || (st.Leader == st.Header.MemberId) != (leader == 1) {
			t.Errorf("the leader is %d: status %v %v", leader, st, err)
		}
	}
}
