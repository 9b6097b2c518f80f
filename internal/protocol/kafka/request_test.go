package kafka

import (
	"bufio"
	"bytes"
	"io"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Clients fill their requests up to what Kafka takes. One that is too large would be sent again for ever.
func TestRequest_AsLargeAsKafkaTakes(t *testing.T) {
	b := newBench(t, 1, Config{})
	if b.s.cfg.FrameBytesMax != 100<<20 {
		t.Errorf("the largest request is %d bytes; Kafka's socket.request.max.bytes is %d", b.s.cfg.FrameBytesMax, 100<<20)
	}
	w := b.dial()
	// The topic is not there: the records are read and not looked at.
	if x := w.produce("none", 0, make([]byte, 17<<20)); x.ErrorCode != codeUnknownTopicOrPartition {
		t.Errorf("a request of 17 MiB: %+v", x)
	}
}

// zeros is a reader without an end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func TestRequest_TimeGoesOnWithWhatArrives(t *testing.T) {
	const size = 2*frameStretch + 1<<20
	for _, c := range []struct {
		arrives int64
		want    int
	}{{frameStretch - 1, 0}, {frameStretch, 1}, {2*frameStretch - 1, 1}, {size, 2}} {
		r := io.MultiReader(bytes.NewReader(be(int32(size))), io.LimitReader(zeros{}, c.arrives))
		n := 0
		b, err := readFrame(bufio.NewReader(r), size, func(int) error { return nil }, func() error { n++; return nil })
		if n != c.want || (err == nil) != (c.arrives == size) || err == nil && len(b) != size {
			t.Errorf("of %d bytes %d arrive: %d stretches, want %d; %d bytes, %v", size, c.arrives, n, c.want, len(b), err)
		}
	}
}

// Two of the largest requests fit; a third waits until one of them is through, whatever it has been given already.
func TestRequest_TheLargestTakeTurns(t *testing.T) {
	var cfg Config
	cfg.fill()
	b := newBudget(cfg.RequestBytesMax, budgetUnit)
	var give []func()
	for range 2 {
		g, err := b.take(t.Context(), cfg.FrameBytesMax)
		if err != nil {
			t.Fatal(err)
		}
		give = append(give, g)
	}
	done := make(chan error, 3)
	for range cap(done) {
		go func() {
			g, err := b.take(t.Context(), cfg.FrameBytesMax)
			if err == nil {
				g()
			}
			done <- err
		}()
	}
	give[0]()
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	give[1]()
	if n := len(b.units); n != 0 {
		t.Errorf("%d units were not given back", n)
	}
}

// What waits behind a long poll is kept, however small each request is. Little is free.
func TestRequest_ManySmallOnesCount(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	others := b.dial()
	units := func(n int) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); len(b.s.frames.units) != n; runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatalf("%d units are held, want %d", len(b.s.frames.units), n)
			}
		}
	}
	const size = 48 << 10
	poll := w.send(fetchReq("t", 0, 0, 60_000, 1))
	var sent []int32
	for i := range 24 {
		sent = append(sent, w.send(produceReq("none", 0, 1, make([]byte, size))))
		// Some is in front of the records.
		if i == 0 {
			units(0)
		}
	}
	units((24*size - frameStep + budgetUnit - 1 + 24*100) / budgetUnit)
	if x := others.produce("t", 0, records(0, 1)); x.ErrorCode != 0 {
		t.Errorf("produce: %+v", x)
	}
	for i, id := range append([]int32{poll}, sent...) {
		if got, _, err := w.frame(); got != id || err != nil {
			t.Fatalf("answer %d: %d, %v, want %d", i, got, err, id)
		}
	}
	units(0)
	// All is given back when a connection ends, too.
	w.send(fetchReq("t", 0, 1, 60_000, 1))
	for range 4 {
		w.send(produceReq("none", 0, 1, make([]byte, size)))
	}
	units(3)
	_ = w.nc.Close()
	units(0)
}

// What is not served is refused in so many words, or the connection is closed. It is never answered as if it was done.
func TestUnsupported_IsNeverAnsweredAsDone(t *testing.T) {
	s := New(Config{}, nil, discard(), nil)
	c := &conn{s: s}
	answered, closed := 0, 0
	for key := int16(0); key <= kmsg.MaxKey; key++ {
		req := kmsg.RequestForKey(key)
		if req == nil || s.api(key) != nil {
			continue
		}
		for v := int16(0); v <= req.MaxVersion(); v++ {
			r := c.unsupported(header{key: key, version: v})
			if r == nil {
				closed++
				continue
			}
			answered++
			// What the client reads.
			got := req.ResponseKind()
			got.SetVersion(v)
			if err := got.ReadFrom(r.AppendTo(nil)); err != nil {
				t.Errorf("%s version %d: %v", kmsg.NameForKey(key), v, err)
			} else if code := reflect.ValueOf(got).Elem().FieldByName("ErrorCode").Int(); code != int64(codeUnsupportedVersion) {
				t.Errorf("%s version %d is answered with code %d", kmsg.NameForKey(key), v, code)
			}
		}
	}
	if answered == 0 || closed == 0 {
		t.Errorf("%d versions are answered, %d are not", answered, closed)
	}
}

// An array of empty names takes 24 times its bytes once it is decoded. A request that waits for its turn stays what was read, and so does
// all that comes behind it.
func TestRequest_IsDecodedWhenItsTurnComes(t *testing.T) {
	const names = 10_000
	b := newBench(t, 1, Config{})
	b.dial().createTopic("t", 1)
	c := newConn(b.s, stub{})
	defer c.endWork()
	body := append(be(int32(names)), make([]byte, 2*names)...)
	frame := framed(3, 4, append(body, 0))[4:]
	it := &item{release: func() {}}
	used := testing.AllocsPerRun(100, func() {
		it = &item{release: func() {}}
		if err := c.parse(it, frame); err != nil {
			t.Error(err)
		}
		if err := c.begin(it); err != nil {
			t.Error(err)
		}
	})
	if used > 10 || it.begun != nil {
		t.Errorf("a request that waits took %v allocations", used)
	}
	if req, err := c.decode(it); err != nil || len(req.(*kmsg.MetadataRequest).Topics) != names {
		t.Errorf("decoded: %v", err)
	}
	produce := &item{release: func() {}}
	if err := c.parse(produce, append(be(int16(0), int16(9), int32(1), int16(-1), byte(0)), produceReq("t", 0, 1, records(0, 1)).AppendTo(nil)...)); err != nil {
		t.Fatal(err)
	}
	if err := c.begin(produce); err != nil || produce.begun != nil {
		t.Errorf("a produce request behind one that waits has begun: %v", err)
	}
	c.waiting.Store(0)
	if err := c.begin(produce); err != nil || produce.begun == nil {
		t.Errorf("a produce request with nothing before it has not begun: %v", err)
	} else if _, err := b.s.endProduce(c.work, produce.begun); err != nil {
		t.Error(err)
	}
}

// Clients are set up for Kafka's limit (message.max.bytes): 1 MiB, and what stands in front of a batch in the log.
func TestProduce_BatchesAsLargeAsKafkaTakes(t *testing.T) {
	const most = 1048588
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	sized := func(bytes int) []byte {
		r := kmsg.Record{Value: make([]byte, bytes-100)}
		for {
			r.Length = 0
			r.Length = int32(len(r.AppendTo(nil)) - 1)
			batch := seal(kmsg.RecordBatch{Magic: 2, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: 1, Records: r.AppendTo(nil)})
			if len(batch) == bytes {
				return batch
			}
			r.Value = append(r.Value, 0)
		}
	}
	if x := w.produce("t", 0, sized(most)); x.ErrorCode != 0 {
		t.Errorf("%d bytes: %+v", most, x)
	}
	if x := w.produce("t", 0, sized(most+1)); x.ErrorCode != codeMessageTooLarge {
		t.Errorf("%d bytes: %+v", most+1, x)
	}
}

// Answers do not wait for what is asked after them, which may be a poll of a minute.
func TestAnswers_DoNotWaitForAPollBehindThem(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	short := fetchReq("t", 0, 0, 100, 1)
	id := w.send(short)
	w.send(fetchReq("t", 0, 0, 60_000, 1))
	_ = w.nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	w.receive(short, id)
}
