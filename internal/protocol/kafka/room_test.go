package kafka

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
)

// Who waits for more room than there is in time leaves what it has got to others.
func TestBudget_WhoGivesUpGivesBack(t *testing.T) {
	b := newBudget(4*budgetUnit, budgetUnit)
	give, err := b.take(t.Context(), 3*budgetUnit)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := b.take(ctx, 4*budgetUnit); !errs.Is(err, errs.Overloaded) {
		t.Fatalf("there was no room: %v", err)
	}
	give()
	if n := len(b.units); n != 0 {
		t.Errorf("%d units are taken and belong to nobody", n)
	}
}

// A request that cannot be read gives back the memory that was kept for it, and one that does not arrive.
func TestRequest_ThatIsRefusedGivesItsRoomBack(t *testing.T) {
	b := newBench(t, 1, Config{FrameBytesMax: 4 << 20, RequestBytesMax: 4 << 20})
	body := make([]byte, 3<<20)
	for range 3 {
		// An array of more elements than there are bytes.
		copy(body, be(uint16(0xffff), uint16(1), uint32(1000), uint32(math.MaxInt32)))
		w := b.dial()
		if _, err := w.nc.Write(framed(0, 3, body)); err != nil {
			t.Fatal(err)
		}
		if !w.closed() {
			t.Fatal("a malformed request was answered")
		}
		w = b.dial()
		if _, err := w.nc.Write(framed(0, 3, body)[:1<<20]); err != nil {
			t.Fatal(err)
		}
		_ = w.nc.Close()
	}
	w := b.dial()
	w.createTopic("t", 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	give, err := b.s.frames.take(ctx, 4<<20)
	if err != nil {
		t.Fatalf("their room is still taken: %v", err)
	}
	give()
}

// Answers of records that were taken make room for others, and whoever waits for records keeps none.
func TestFetch_GivesRoomBack(t *testing.T) {
	b := newBench(t, 1, Config{FetchBytesMax: 1 << 20, FetchBytesAllMax: 1 << 20, RequestTimeout: 5 * time.Second})
	w := b.dial()
	w.createTopic("t", 2)
	big := seal(kmsg.RecordBatch{Magic: 2, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, FirstTimestamp: 1, MaxTimestamp: 1, NumRecords: 1, Records: oneRecord(200 << 10)})
	if r := w.produce("t", 0, big); r.ErrorCode != 0 {
		t.Fatalf("produce: %+v", r)
	}
	for i := range 20 {
		if r := w.fetch("t", 0, 0); r.ErrorCode != 0 || len(r.RecordBatches) == 0 {
			t.Fatalf("fetch %d: code %d, %d bytes", i, r.ErrorCode, len(r.RecordBatches))
		}
	}
	waits := b.dial()
	waits.send(fetchReq("t", 1, 0, int32(fetchWaitMax/time.Millisecond), 1))
	for i := range 5 {
		if r := w.fetch("t", 0, 0); r.ErrorCode != 0 || len(r.RecordBatches) == 0 {
			t.Fatalf("fetch %d beside one that waits: code %d, %d bytes", i, r.ErrorCode, len(r.RecordBatches))
		}
	}
}

// With something to tell of one partition, a fetch does not wait for records of others.
func TestFetch_ErrorsDoNotWait(t *testing.T) {
	b := newBench(t, 2, Config{})
	w := b.dial()
	w.createTopic("t", 2)
	w.produce("t", 0, records(0, 1))
	long := int32(fetchWaitMax / time.Millisecond)
	for name, c := range map[string]struct {
		part   int32
		offset int64
		want   int16
	}{
		"beyond the end": {0, 99, codeOffsetOutOfRange}, "no partition": {7, 0, codeUnknownTopicOrPartition}, "less than no partition": {-1, 0, codeUnknownTopicOrPartition},
	} {
		req := fetchReq("t", 1, 0, long, 1)
		x := req.Topics[0].Partitions[0]
		x.Partition, x.FetchOffset = c.part, c.offset
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, x)
		p := ask[*kmsg.FetchResponse](w, req, 12).Topics[0].Partitions
		if p[0].ErrorCode != 0 || p[1].ErrorCode != c.want {
			t.Errorf("%s: %+v", name, p)
		}
	}
	// Nor does one that asks for nothing, or is to wait for nothing.
	none := fetchReq("t", 1, 0, long, 1)
	none.Topics = nil
	ask[*kmsg.FetchResponse](w, none, 12)
	ask[*kmsg.FetchResponse](w, fetchReq("t", 1, 0, long, 0), 12)
	ask[*kmsg.FetchResponse](w, fetchReq("t", 1, 0, 0, 1), 12)
}

// Answers do not wait behind a member that waits for others.
func TestAnswers_DoNotWaitForAJoinBehindThem(t *testing.T) {
	b := newBench(t, 1, Config{RebalanceDelay: time.Hour})
	w := b.dial()
	w.createTopic("t", 1)
	// The join is there when this is answered.
	short := fetchReq("t", 0, 0, 100, 1)
	join := joinReq("g", "")
	join.RebalanceTimeoutMillis = 600_000
	join.SetVersion(3)
	id := w.send(short)
	w.send(join)
	w.receive(short, id)
}

func TestLeaveGroup_OldVersionsAreToldToo(t *testing.T) {
	w := newBench(t, 1, Config{}).dial()
	member, _ := w.enter("g", 3, 2)
	for v := int16(0); v <= 2; v++ {
		lv := kmsg.NewPtrLeaveGroupRequest()
		lv.Group, lv.MemberID = "g", "nobody"
		if r := ask[*kmsg.LeaveGroupResponse](w, lv, v); r.ErrorCode != codeUnknownMemberID {
			t.Errorf("version %d: %+v", v, r)
		}
	}
	lv := kmsg.NewPtrLeaveGroupRequest()
	lv.Group, lv.MemberID = "g", member
	if r := ask[*kmsg.LeaveGroupResponse](w, lv, 2); r.ErrorCode != 0 {
		t.Errorf("a member: %+v", r)
	}
}

// Whoever is refused for overload is asked to wait, whatever it asked for.
func TestOverload_IsSaidToLast(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	b.c.Refuse(errs.New(errs.Overloaded, "full"))
	p := ask[*kmsg.ProduceResponse](w, produceReq("t", 0, -1, records(0, 1)), 9)
	if x := p.Topics[0].Partitions[0]; p.ThrottleMillis != throttleMs || x.ErrorCode != codeRequestTimedOut || x.BaseOffset != -1 || x.ErrorMessage == nil || !strings.Contains(*x.ErrorMessage, "full") {
		t.Errorf("produce: %+v", p)
	}
	if l := ask[*kmsg.ListOffsetsResponse](w, listReq("t", -1), 7); l.ThrottleMillis != throttleMs {
		t.Errorf("offsets: %+v", l)
	}
	if i := ask[*kmsg.InitProducerIDResponse](w, kmsg.NewPtrInitProducerIDRequest(), 4); i.ProducerID != -1 || i.ProducerEpoch != -1 || i.ErrorCode == 0 {
		t.Errorf("producer id: %+v", i)
	}
	if h := ask[*kmsg.HeartbeatResponse](w, heartbeatReq("g", "m", 1), 4); h.ThrottleMillis != throttleMs {
		t.Errorf("heartbeat: %+v", h)
	}
}

func TestDescribeCluster_Brokers(t *testing.T) {
	b := newBench(t, 2, Config{})
	b.three()
	r := ask[*kmsg.DescribeClusterResponse](b.dial(), kmsg.NewPtrDescribeClusterRequest(), 1)
	if len(r.Brokers) != 3 || r.Brokers[2].NodeID != 3 || r.Brokers[2].Host != "127.0.0.3" || r.Brokers[2].Port != 9093 || r.ControllerID != 1 || r.EndpointType != 1 {
		t.Errorf("got %+v", r)
	}
	other := kmsg.NewPtrDescribeClusterRequest()
	other.EndpointType = 2
	if r := ask[*kmsg.DescribeClusterResponse](b.dial(), other, 1); r.ErrorCode == 0 || r.ControllerID != -1 || r.EndpointType != 2 || len(r.Brokers) != 0 {
		t.Errorf("controllers: %+v", r)
	}
}
