package kafka

import (
	"context"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// A fetch that asks for more than may be sent at a time is answered as soon as that much is there. These fetches would wait for minutes.
func TestFetch_MinBytesThatDoNotFit(t *testing.T) {
	const wait = 200_000
	b := newBench(t, 2, Config{})
	w := b.dial()
	w.createTopic("t", 3)
	one := int32(len(records(0, 1)))
	for range 10 {
		w.produce("t", 0, records(0, 1))
	}
	w.produce("t", 1, records(0, 1))
	fetch := func(name string, minBytes, bytesMax, partitionMax, want int32) {
		t.Helper()
		req := fetchReq("t", 0, 0, wait, minBytes)
		req.MaxBytes = bytesMax
		for i := range int32(3) {
			x := kmsg.NewFetchRequestTopicPartition()
			x.Partition = i
			req.Topics[0].Partitions = append(req.Topics[0].Partitions[:i], x)
			req.Topics[0].Partitions[i].PartitionMaxBytes = partitionMax
		}
		size := 0
		for _, x := range w.receive(req, w.send(req)).(*kmsg.FetchResponse).Topics[0].Partitions {
			size += len(x.RecordBatches)
		}
		if size != int(want) {
			t.Errorf("%s: %d bytes, want %d", name, size, want)
		}
	}
	fetch("less than a batch more than fits", 5*one+1, 5*one+1, math.MaxInt32, 5*one)
	fetch("more than may be sent", 1<<20, 5*one, math.MaxInt32, 5*one)
	fetch("more than partitions may have", 5*one, 1<<20, 2*one+1, 3*one)
	fetch("no bytes at all", 5*one, 0, 0, one)
	fetch("all there is", 11*one, 11*one, 10*one, 11*one)
	fetch("all there is, and more asked for", 1<<20, 11*one, 10*one, 11*one)
	// Nothing is there, and none would fit: that is waited for.
	req := fetchReq("t", 2, 0, 50, 1)
	req.MaxBytes = 0
	start := time.Now()
	w.receive(req, w.send(req))
	if d := time.Since(start); d < 40*time.Millisecond {
		t.Errorf("an empty answer came after %v, and not at the end of the wait", d)
	}
}

// counter counts queries.
type counter struct {
	*shardtest.Client
	n atomic.Int64
}

func (c *counter) Query(ctx context.Context, r shard.Route, at shard.Consistency, q shard.Command) ([]byte, error) {
	c.n.Add(1)
	return c.Client.Query(ctx, r, at, q)
}

// A fetch of many partitions watches all of their shard. It must not look at each append to others.
func TestFetch_OfManyPartitionsRestsBetweenLooks(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("quiet", watchesMax+1)
	w.createTopic("busy", 1)
	count := &counter{Client: b.c}
	s := New(Config{}, count, discard(), nil)
	defer func() { _ = s.Close() }()
	req := fetchReq("quiet", 0, 0, 400, 1)
	for i := int32(1); i <= watchesMax; i++ {
		x := kmsg.NewFetchRequestTopicPartition()
		x.Partition, x.PartitionMaxBytes = i, 1000
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, x)
	}
	c := newConn(s, stub{})
	defer c.endWork()
	done := make(chan error, 1)
	start := time.Now()
	go func() {
		_, err := s.fetch(c.work, c, header{}, req)
		done <- err
	}()
	writes := 0
	for {
		select {
		case err := <-done:
			// One query finds the topic, and two looks need no rest: the first and the last.
			if n, most := count.n.Load(), 3+int64(time.Since(start)/fetchPause); err != nil || n > most {
				t.Errorf("%d queries during %d appends to another topic, want at most %d; %v", n, writes, most, err)
			}
			return
		default:
			if x := w.produce("busy", 0, records(0, 1)); x.ErrorCode != 0 {
				t.Fatal(x.ErrorCode)
			}
			writes++
		}
	}
}

// An answer is kept until the client has taken it, which may take its time, and others wait for the room meanwhile.
func TestFetch_KeepsTheRoomOfItsAnswerOnly(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	if x := w.produce("t", 0, records(0, 1)); x.ErrorCode != 0 {
		t.Fatalf("produce: %+v", x)
	}
	req := fetchReq("t", 0, 0, 0, 1)
	req.MaxBytes, req.Topics[0].Partitions[0].PartitionMaxBytes = 50<<20, 50<<20
	for want, offset := range []int64{1, 0} {
		c := newConn(b.s, stub{})
		defer c.endWork()
		req.Topics[0].Partitions[0].FetchOffset = offset
		if _, err := b.s.fetch(t.Context(), c, header{}, req); err != nil {
			t.Fatal(err)
		}
		if n := len(b.s.fetches.units); n != want {
			t.Errorf("from offset %d: %d units are kept, want %d", offset, n, want)
		}
		c.held.keep(0)
	}
	if n := len(b.s.fetches.units); n != 0 {
		t.Errorf("%d units were not given back", n)
	}
}
