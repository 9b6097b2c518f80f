package etcd

import (
	"slices"
	"sort"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
)

// Dashboards and alerts that were made for etcd look for etcd's names (https://etcd.io/docs/v3.7/metrics/). What they need is served on the
// client port under these, beside the node's own; the names are etcd's, the figures are those of this node and the key space's shard.

// renamed are figures that differ from the node's own in name alone.
var renamed = map[string]struct{ name, help string }{
	"quorate_storage_log_sync_seconds": {"etcd_disk_wal_fsync_duration_seconds", "Time of one append and sync of the raft log."},
	"quorate_etcd_watchers":            {"etcd_debugging_mvcc_watcher_total", "Open watches."},
	"quorate_etcd_watchers_lagging":    {"etcd_debugging_mvcc_slow_watcher_total", "Watches that read events from history."},
	"quorate_etcd_watch_events_total":  {"etcd_debugging_mvcc_events_total", "Events handed to watches."},
}

// Gather implements prometheus.Gatherer: all of the node's metrics, and those that etcd's dashboards look for.
func (s *Server) Gather() ([]*dto.MetricFamily, error) {
	all, err := s.cfg.Metrics.Gather()
	if err != nil {
		return nil, err
	}
	for _, f := range all {
		if to, ok := renamed[f.GetName()]; ok {
			all = append(all, &dto.MetricFamily{Name: &to.name, Help: &to.help, Type: f.Type, Metric: s.own(f)})
		} else if f.GetName() == "quorate_etcd_requests_total" {
			all = append(all, handled(s.own(f)))
		}
	}
	all = append(all, s.asEtcds()...)
	sort.Slice(all, func(i, j int) bool { return all[i].GetName() < all[j].GetName() })
	return all, nil
}

// own returns the series of a family that are not those of another space, without the space.
func (s *Server) own(f *dto.MetricFamily) (out []*dto.Metric) {
	for _, m := range f.Metric {
		i := slices.IndexFunc(m.Label, func(l *dto.LabelPair) bool { return l.GetName() == "space" })
		switch {
		case i < 0:
			out = append(out, m)
		case m.Label[i].GetValue() == s.cfg.Space:
			c := proto.CloneOf(m)
			c.Label = slices.Delete(c.Label, i, i+1)
			out = append(out, c)
		}
	}
	return out
}

// asEtcds are the figures that nothing of the node's own has.
func (s *Server) asEtcds() []*dto.MetricFamily {
	figure := func(name, help string, kind dto.MetricType, v float64) *dto.MetricFamily {
		m := &dto.Metric{}
		if kind == dto.MetricType_COUNTER {
			m.Counter = &dto.Counter{Value: &v}
		} else {
			m.Gauge = &dto.Gauge{Value: &v}
		}
		return &dto.MetricFamily{Name: &name, Help: &help, Type: &kind, Metric: []*dto.Metric{m}}
	}
	yes := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	version := func(name, label, help, v string) *dto.MetricFamily {
		f := figure(name, help, dto.MetricType_GAUGE, 1)
		f.Metric[0].Label = []*dto.LabelPair{{Name: &label, Value: &v}}
		return f
	}
	const gauge, counter = dto.MetricType_GAUGE, dto.MetricType_COUNTER
	at, t, err := s.where()
	out := []*dto.MetricFamily{
		version("etcd_server_version", "server_version", "The release of etcd whose API this is.", Version),
		version("etcd_cluster_version", "cluster_version", "The minor release of etcd whose API this is.", strings.TrimSuffix(storageVersion, ".0")),
		figure("etcd_server_has_leader", "Whether this node knows who leads.", gauge, yes(err == nil && at.Leader != 0)),
		figure("etcd_server_is_leader", "Whether this node leads.", gauge, yes(err == nil && at.Leader == t.Self)),
		figure("etcd_server_leader_changes_seen_total", "Changes of leader that this node has seen, at most two a second.", counter, float64(s.leaderChanges.Load())),
	}
	if s.cfg.Info == nil || err != nil {
		return out
	}
	i := s.cfg.Info(at.ID)
	return append(out,
		figure("etcd_server_proposals_committed_total", "Entries of the raft log that this node knows to be committed.", gauge, float64(i.Commit)),
		figure("etcd_server_proposals_applied_total", "Entries of the raft log that this node has applied.", gauge, float64(i.Applied)),
		figure("etcd_mvcc_db_total_size_in_bytes", "Size of the state store's files.", gauge, float64(i.DiskBytes)),
		figure("etcd_mvcc_db_total_size_in_use_in_bytes", "Size of the state store's files.", gauge, float64(i.DiskBytes)),
	)
}

// handled gives the requests of each method the labels of grpc's own metrics.
func handled(requests []*dto.Metric) *dto.MetricFamily {
	service := map[string]string{}
	for _, c := range calls {
		service[c.method] = c.service
	}
	name, help := "grpc_server_handled_total", "Requests answered, by method and gRPC code."
	out := &dto.MetricFamily{Name: &name, Help: &help, Type: dto.MetricType_COUNTER.Enum()}
	label := func(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }
	for _, m := range requests {
		method, code := "", ""
		for _, l := range m.Label {
			switch l.GetName() {
			case "method":
				method = l.GetValue()
			case "code":
				code = l.GetValue()
			}
		}
		pkg := "etcdserverpb."
		switch service[method] {
		case "":
			continue
		case "Lock":
			pkg = "v3lockpb."
		case "Election":
			pkg = "v3electionpb."
		}
		out.Metric = append(out.Metric, &dto.Metric{Counter: m.Counter, Label: []*dto.LabelPair{
			label("grpc_code", code), label("grpc_method", method), label("grpc_service", pkg+service[method]), label("grpc_type", "unary"),
		}})
	}
	return out
}

var _ prometheus.Gatherer = (*Server)(nil)
