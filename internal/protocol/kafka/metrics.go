package kafka

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	// apis are the series by key, which do not change, and other counts requests of APIs that are not served.
	apis        map[int16]*apiMetrics
	other       prometheus.Counter
	connections prometheus.Gauge
	refused     *prometheus.CounterVec
	bytesIn     prometheus.Counter
	bytesOut    prometheus.Counter
	fenced      prometheus.Counter
}

// apiMetrics are the series of an API.
type apiMetrics struct {
	ok, failed, refused prometheus.Counter
	seconds             prometheus.Observer
}

// serve makes the series of the APIs that are served. They are there from the start: a counter that begins with its first event hides that event
// from whoever asks how much it rose.
func (m *metrics) serve(table []api) {
	m.apis = make(map[int16]*apiMetrics, len(table))
	for i := range table {
		name := table[i].name
		m.apis[table[i].key] = &apiMetrics{
			ok: m.requests.WithLabelValues(name, "ok"), failed: m.requests.WithLabelValues(name, "error"), refused: m.requests.WithLabelValues(name, "refused"),
			seconds: m.seconds.WithLabelValues(name),
		}
	}
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "quorate_kafka_requests_total",
			Help: "Kafka requests by API and status; a rising share of status \"refused\" means clients of unsupported versions or malformed requests.",
		}, []string{"api", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "quorate_kafka_request_seconds",
			Help:    "Time from when a Kafka request has arrived to its answer, by API. Fetch counts with its wait for records, and JoinGroup and SyncGroup with that for the group; Produce above the time of a sync of the raft log waits for something else.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
		}, []string{"api"}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "quorate_kafka_connections",
			Help: "Open Kafka connections; near the configured bound, new clients are turned away.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "quorate_kafka_connections_refused_total",
			Help: "Kafka connections that the server closed, by reason; anything but zero deserves a look at the log.",
		}, []string{"reason"}),
		bytesIn: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "quorate_kafka_received_bytes_total", Help: "Bytes of Kafka requests.",
		}),
		bytesOut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "quorate_kafka_sent_bytes_total", Help: "Bytes of Kafka responses.",
		}),
		fenced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "quorate_kafka_fenced_total", Help: "Record batches refused because their fencing token was stale. A few follow each change of a lock's holder; a steady rate is a writer that ignores that it lost the lock.",
		}),
	}
	m.other = m.requests.WithLabelValues("other", "refused")
	for _, reason := range refusedReasons {
		m.refused.WithLabelValues(reason)
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.seconds, m.connections, m.refused, m.bytesIn, m.bytesOut, m.fenced)
	}
	return m
}
