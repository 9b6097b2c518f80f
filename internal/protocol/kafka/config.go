package kafka

import (
	"time"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/protocol/conns"
	"github.com/quorate/quorate/internal/shard"
)

// Config says how the Kafka protocol is served. The zero value of a field means its default.
type Config struct {
	// Space is the space whose topics and groups are served. Default "default".
	Space string
	// Partitions is how many partitions a topic gets that is created without saying. Default: one for each shard of the
	// space.
	Partitions int32
	// NoAutoCreate refuses to create topics that a Metadata request names.
	NoAutoCreate bool
	// ConnectionsMax bounds the open connections; more are closed at once. Default 10,000.
	ConnectionsMax int
	// Places bounds them together with those of other servers; nil is no bound.
	Places *conns.Places
	// InFlight bounds the requests of one connection that were read and not answered. Default 32.
	InFlight int
	// FrameBytesMax is the largest request. Default 100 MiB, which is Kafka's (socket.request.max.bytes) and what clients fill
	// their requests up to; also the most.
	FrameBytesMax int
	// RequestBytesMax bounds the requests of all connections together, but for 64 KiB of each connection. Default 256 MiB.
	RequestBytesMax int
	// FetchBytesMax is the most that one Fetch answers, but for a first batch that is larger. Default 16 MiB, at most 64.
	FetchBytesMax int32
	// FetchBytesAllMax bounds the records in answers of all connections together. Default 256 MiB.
	FetchBytesAllMax int
	// FrameTimeout is how long a request may take to arrive once its first byte has, and again for every 16 MiB that have
	// come; and how long a client may take to take each MiB of an answer. Default 30 s.
	FrameTimeout time.Duration
	// IdleTimeout is how long a connection may be silent. Default 10 min.
	IdleTimeout time.Duration
	// RequestTimeout bounds what a request without a time-out of its own waits for. Default 30 s.
	RequestTimeout time.Duration
	// SessionMin and SessionMax bound a group member's session time-out. Default 1 s and 30 min.
	SessionMin, SessionMax time.Duration
	// RebalanceDelay is how long an empty group's first member waits for more. Default 200 ms.
	RebalanceDelay time.Duration
	// Rand makes ids of topics and members. Default: the operating system's generator.
	Rand func() uint64

	// answerBytesMax bounds an answer, to what librdkafka takes (receive.message.max.bytes); franz-go takes 100 MiB. Only tests
	// set it.
	answerBytesMax int
}

// frameBytesMost is the most that FrameBytesMax may be.
const frameBytesMost = 100 << 20

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (c *Config) fill() {
	def(&c.Space, shard.DefaultSpace)
	def(&c.ConnectionsMax, 10_000)
	def(&c.InFlight, 32)
	def(&c.FrameBytesMax, frameBytesMost)
	def(&c.RequestBytesMax, 256<<20)
	def(&c.FetchBytesMax, 16<<20)
	def(&c.FetchBytesAllMax, 256<<20)
	def(&c.answerBytesMax, 100_000_000)
	def(&c.FrameTimeout, 30*time.Second)
	def(&c.IdleTimeout, 10*time.Minute)
	def(&c.RequestTimeout, 30*time.Second)
	def(&c.SessionMin, time.Second)
	def(&c.SessionMax, 30*time.Minute)
	def(&c.RebalanceDelay, 200*time.Millisecond)
	if c.Rand == nil {
		c.Rand = env.Real().Rand
	}
}
