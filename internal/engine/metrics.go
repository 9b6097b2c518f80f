package engine

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the engine's figures. Counters that the hot path touches are plain histograms of the client library, one
// observation a turn, not one a request.
type metrics struct {
	turns  prometheus.Histogram
	inputs prometheus.Histogram
	syncs  prometheus.Histogram
}

func newMetrics(g *Engine, reg prometheus.Registerer) *metrics {
	m := &metrics{
		turns: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "quorate_engine_turn_seconds", Help: "Time of one turn of the node's loop. Above 10 ms something holds the loop up, usually the state store.",
			Buckets: prometheus.ExponentialBuckets(10e-6, 4, 9),
		}),
		inputs: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "quorate_engine_turn_inputs", Help: "Requests and messages taken in by one turn. Rises with load.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 7),
		}),
		syncs: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "quorate_storage_log_sync_seconds", Help: "Time of one append and sync of the raft log. It bounds the latency of every write; above 10 ms the disk is slow or shared.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 14),
		}),
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	reg.MustRegister(
		m.turns, m.inputs, m.syncs,
		gauge("quorate_storage_log_bytes", "Raft log that is still needed. Should stay below twice its bound.", func() float64 { return float64(g.dir.Log.Bytes()) }),
		gauge("quorate_storage_state_bytes", "Size of the state store's files.", func() float64 { return float64(g.dir.Store.Stats().DiskBytes) }),
		gauge("quorate_storage_state_l0_files", "Tables not yet merged.", func() float64 { return float64(g.dir.Store.Stats().L0Files) }),
		gauge("quorate_storage_state_backlog_ratio", "How far the state store is behind with writing to disk. From 0.625 on this node refuses writes; at 1 it would stand still.", func() float64 { return g.dir.Store.Backlog() }),
		gauge("quorate_storage_scrub_completed_timestamp_seconds", "When the last check of all stored data ended without finding damage, in Unix time; 0 before the first one of this process. Older than two days means that checks do not end.", func() float64 { return float64(g.scrubbed.completed.Load()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "quorate_storage_scrub_bytes_total", Help: "Stored bytes read to check them.",
		}, func() float64 { return float64(g.scrubbed.bytes.Load()) }),
		gauge("quorate_engine_watches", "Open watches and long polls.", func() float64 { return float64(g.hub.Watches()) }),
		gauge("quorate_engine_shards_without_leader", "Shards that this node knows no leader for. Should be 0.", func() float64 {
			n := 0
			for _, s := range g.Topology().Shards {
				if s.Leader == 0 {
					n++
				}
			}
			return float64(n)
		}),
		gauge("quorate_engine_shards_led", "Shards that this node leads.", func() float64 {
			n := 0
			for _, s := range g.Topology().Shards {
				if s.Leader == g.cfg.Node {
					n++
				}
			}
			return float64(n)
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "quorate_transport_frames_dropped_total", Help: "Frames for peers that were dropped: link down or queue full.",
		}, func() float64 { return float64(g.transport.Dropped()) }),
	)
	return m
}

func (m *metrics) turn(from, to time.Time, inputs int) {
	m.turns.Observe(to.Sub(from).Seconds())
	m.inputs.Observe(float64(inputs))
}

func (m *metrics) synced(d time.Duration) { m.syncs.Observe(d.Seconds()) }
