package kafka

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	requests    *prometheus.CounterVec
	connections prometheus.Gauge
	refused     *prometheus.CounterVec
	bytesIn     prometheus.Counter
	bytesOut    prometheus.Counter
	fenced      prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "quorate_kafka_requests_total",
			Help: "Kafka requests by API and status; a rising share of status \"refused\" means clients of unsupported versions or malformed requests.",
		}, []string{"api", "status"}),
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
	if reg != nil {
		reg.MustRegister(m.requests, m.connections, m.refused, m.bytesIn, m.bytesOut, m.fenced)
	}
	return m
}
