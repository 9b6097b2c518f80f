package kafka

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
	"github.com/quorate/quorate/internal/shard"
)

// closed reports whether the server closes the connection, reading away what it answers.
func (w *wire) closed() bool {
	for {
		if _, _, err := w.frame(); err != nil {
			ne, timeout := err.(net.Error)
			return !timeout || !ne.Timeout()
		}
	}
}

func be(parts ...any) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		if err := binary.Write(&b, binary.BigEndian, p); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

// framed puts a request header and a length before a body.
func framed(key, version int16, body []byte) []byte {
	b := append(be(key, version, int32(1), int16(-1)), body...)
	return append(be(int32(len(b))), b...)
}

func TestBadInput_ClosesConnection(t *testing.T) {
	b := newBench(t, 1, Config{FrameTimeout: 300 * time.Millisecond, FrameBytesMax: 1 << 20, RequestBytesMax: 4 << 20})
	cases := map[string][]byte{
		"length max":            be(int32(1<<31 - 1)),
		"length negative":       be(int32(-1)),
		"length min":            be(int32(-1 << 31)),
		"length zero":           be(int32(0)),
		"length short":          be(int32(9), make([]byte, 9)),
		"length over limit":     be(int32(1<<20 + 1)),
		"http get":              []byte("GET / HTTP/1.1\r\n\r\n"),
		"http post":             []byte("POST / HTTP/1.1\r\n\r\n"),
		"http2":                 []byte("PRI * HTTP/2.0\r\n\r\n"),
		"tls":                   be([]byte{0x16, 3, 1, 2, 0, 1, 0}),
		"redis":                 []byte("*1\r\n$4\r\nPING\r\n"),
		"ping":                  []byte("PING\r\n"),
		"zeros":                 make([]byte, 64),
		"ones":                  bytes.Repeat([]byte{0xff}, 64),
		"slow bytes":            be(int32(100), []byte{0}),
		"only a length byte":    {0},
		"client id long":        be(int32(10), int16(18), int16(0), int32(1), int16(100)),
		"client id negative":    be(int32(10), int16(18), int16(0), int32(1), int16(-2)),
		"header tags":           be(int32(15), int16(3), int16(9), int32(1), int16(-1), []byte{0xff, 0xff, 0xff, 0xff, 0x0f}),
		"header tags many":      be(int32(11), int16(3), int16(9), int32(1), int16(-1), []byte{100}),
		"unknown key":           framed(9999, 0, nil),
		"negative key":          framed(-5, 0, nil),
		"produce too new":       framed(0, 13, nil),
		"produce too old":       framed(0, 2, nil),
		"produce negative":      framed(0, -1, nil),
		"fetch too old":         framed(1, 3, nil),
		"fetch replica tag":     framed(1, 15, append(make([]byte, 22), 1, 1, 1, 1, 1, 0)),
		"empty produce":         framed(0, 3, nil),
		"topics max":            framed(0, 3, be(int16(-1), int16(1), int32(1), int32(1<<31-1))),
		"topics as bytes left":  framed(0, 3, be(int16(-1), int16(1), int32(1), int32(100), make([]byte, 100))),
		"topics below null":     framed(0, 3, be(int16(-1), int16(1), int32(1), int32(-2))),
		"partitions max":        framed(0, 3, be(int16(-1), int16(1), int32(1), int32(1), int16(0), int32(1<<31-1))),
		"records max":           framed(0, 3, be(int16(-1), int16(1), int32(1), int32(1), int16(0), int32(1), int32(0), int32(1<<31-1))),
		"records negative":      framed(0, 3, be(int16(-1), int16(1), int32(1), int32(1), int16(0), int32(1), int32(0), int32(-7))),
		"topic name long":       framed(0, 3, be(int16(-1), int16(1), int32(1), int32(1), int16(32767))),
		"txn id negative":       framed(0, 3, be(int16(-9))),
		"metadata topics":       framed(3, 0, be(int32(1<<30))),
		"compact overflow":      framed(3, 9, []byte{0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}),
		"compact 2^32":          framed(3, 9, []byte{0, 0xff, 0xff, 0xff, 0xff, 0x1f}),
		"tags 2^31":             framed(18, 3, []byte{0, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x07}),
		"tag beyond end":        framed(18, 3, []byte{0, 1, 1, 1, 0, 100}),
		"tags out of order":     framed(18, 3, []byte{0, 1, 1, 2, 5, 0, 5, 0}),
		"tag too long":          framed(18, 3, append([]byte{0, 1, 1, 1, 0, 0x80, 0x80, 4}, make([]byte, 65536)...)),
		"find keys":             framed(10, 4, []byte{0, 0, 0xff, 0xff, 0xff, 0xff, 0x07}),
		"join protocols":        framed(11, 0, be(int16(0), int32(1), int16(0), int16(0), int32(1<<30))),
		"sync cut":              framed(14, 0, be(int16(1))),
		"leave members":         framed(13, 3, be(int16(0), int32(1<<30))),
		"commit topics":         framed(8, 2, be(int16(0), int32(0), int16(0), int64(0), int32(1<<30))),
		"offsets groups":        framed(9, 8, []byte{0, 0xff, 0xff, 0xff, 0x7f}),
		"list topics":           framed(2, 1, be(int32(-1), int32(1<<30))),
		"create topics":         framed(19, 2, be(int32(1<<30))),
		"create assignment":     framed(19, 2, be(int32(1), int16(0), int32(1), int16(1), int32(1<<30))),
		"configs names":         framed(32, 0, be(int32(1), int8(2), int16(0), int32(1<<30))),
		"epoch topics":          framed(23, 0, be(int32(1<<30))),
		"describe groups":       framed(15, 0, be(int32(1<<30))),
		"list groups filters":   framed(16, 4, []byte{0, 0xff, 0xff, 0xff, 0x7f}),
		"heartbeat cut":         framed(12, 0, be(int16(5), []byte("ab"))),
		"init cut":              framed(22, 0, be(int16(-1))),
		"cluster cut":           framed(60, 0, []byte{0}),
		"too many elements":     framed(3, 0, be(int32(300_000), make([]byte, 600_000))),
		"fetch partitions":      framed(1, 4, be(int32(-1), int32(0), int32(0), int32(0), int8(0), int32(1), int16(0), int32(1<<30))),
		"fetch forgotten":       framed(1, 7, be(int32(-1), int32(0), int32(0), int32(0), int8(0), int32(0), int32(0), int32(0), int32(1<<30))),
		"fetch negative topics": framed(1, 4, be(int32(-1), int32(0), int32(0), int32(0), int8(0), int32(-5))),
	}
	// Every API that is not served, with each version there might be.
	for key := int16(0); key <= kmsg.MaxKey; key++ {
		if b.s.api(key) == nil {
			cases["unserved "+kmsg.NameForKey(key)] = framed(key, 99, nil)
		}
	}
	for name, in := range cases {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			w := &wire{t: t}
			var err error
			if w.nc, err = net.Dial("tcp", b.addr); err != nil {
				t.Fatal(err)
			}
			defer w.nc.Close() //nolint:errcheck // the test is over
			_ = w.nc.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = w.nc.Write(in)
			if !w.closed() {
				t.Error("the connection was not closed")
			}
		})
	}
}

func TestBadInput_UnservedAPIsGetAnErrorOrAreClosed(t *testing.T) {
	b := newBench(t, 1, Config{})
	for key := int16(0); key <= kmsg.MaxKey; key++ {
		req := kmsg.RequestForKey(key)
		if req == nil || b.s.api(key) != nil || key == 7 {
			continue
		}
		w := b.dial()
		req.SetVersion(req.MaxVersion())
		id := w.send(req)
		got, body, err := w.frame()
		if err != nil {
			continue
		}
		resp := req.ResponseKind()
		if resp.IsFlexible() {
			// The header's flexibility is not known for what is not served: the answer must be readable all the same.
			body = body[1:]
		}
		if got != id || resp.ReadFrom(body) != nil || reflect.ValueOf(resp).Elem().FieldByName("ErrorCode").Int() != int64(codeUnsupportedVersion) {
			t.Errorf("API %d: answer %d, %+v", key, got, resp)
		}
		_ = w.nc.Close()
	}
}

func TestBadInput_MemoryFollowsWhatArrives(t *testing.T) {
	b := newBench(t, 1, Config{FrameTimeout: 300 * time.Millisecond})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var ws []*wire
	for range 50 {
		w := b.dial()
		_, _ = w.nc.Write(be(int32(15<<20), int16(0), int16(9)))
		ws = append(ws, w)
	}
	for _, w := range ws {
		if !w.closed() {
			t.Error("a stalled request was not closed")
		}
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
		t.Errorf("50 stalled requests of 15 MiB cost %d bytes", got)
	}
}

func TestServer_BoundsConnections(t *testing.T) {
	b := newBench(t, 1, Config{ConnectionsMax: 2})
	w1, w2 := b.dial(), b.dial()
	ask[*kmsg.ApiVersionsResponse](w1, kmsg.NewPtrApiVersionsRequest(), 0)
	ask[*kmsg.ApiVersionsResponse](w2, kmsg.NewPtrApiVersionsRequest(), 0)
	if w3 := b.dial(); !w3.closed() {
		t.Error("the third connection was served")
	}
}

func TestServer_CloseEndsWaitingRequests(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	w.send(fetchReq("t", 0, 0, 200_000, 1))
	w2 := b.dial()
	req := joinReq("g", "")
	req.SetVersion(3)
	w2.send(req)
	start := time.Now()
	if err := b.s.Close(); err != nil || time.Since(start) > 10*time.Second {
		t.Errorf("close: %v after %v", err, time.Since(start))
	}
	if err := b.s.Serve(nopListener{}); err == nil {
		t.Error("a closed server serves")
	}
}

type nopListener struct{ net.Listener }

func (nopListener) Close() error { return nil }

func TestErrors_ReachClientsAsWhatTheyAre(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	for _, c := range []struct {
		err                              error
		produce, fetch, heartbeat, admin int16
	}{
		{errs.New(errs.OutcomeUnknown, "lost"), codeRequestTimedOut, codeNotLeaderOrFollower, codeCoordinatorNotAvailable, codeRequestTimedOut},
		{errs.New(errs.Unavailable, "no leader"), codeNotLeaderOrFollower, codeNotLeaderOrFollower, codeCoordinatorNotAvailable, codeRequestTimedOut},
		{errs.New(errs.Overloaded, "full"), codeRequestTimedOut, codeNotLeaderOrFollower, codeCoordinatorLoadInProgress, codeThrottlingQuotaExceeded},
		{errs.New(errs.Internal, "bug"), codeUnknownServerError, codeUnknownServerError, codeUnknownServerError, codeUnknownServerError},
	} {
		b.c.Refuse(c.err)
		if x := w.produce("t", 0, records(0, 1)); x.ErrorCode != c.produce {
			t.Errorf("%v: produce %d", c.err, x.ErrorCode)
		}
		if x := w.fetch("t", 0, 0); x.ErrorCode != c.fetch {
			t.Errorf("%v: fetch %d", c.err, x.ErrorCode)
		}
		if x := ask[*kmsg.HeartbeatResponse](w, heartbeatReq("g", "m", 1), 4); x.ErrorCode != c.heartbeat {
			t.Errorf("%v: heartbeat %d", c.err, x.ErrorCode)
		}
		req := kmsg.NewPtrCreateTopicsRequest()
		x := kmsg.NewCreateTopicsRequestTopic()
		x.Topic, x.NumPartitions, x.ReplicationFactor = "new", 1, 1
		req.Topics = append(req.Topics, x)
		r := ask[*kmsg.CreateTopicsResponse](w, req, 7)
		if r.Topics[0].ErrorCode != c.admin || errs.Is(c.err, errs.Overloaded) && r.ThrottleMillis == 0 {
			t.Errorf("%v: create %+v", c.err, r)
		}
	}
	b.c.Refuse(nil)
	if codeOf(errs.New(errs.Kind(77), "later"), faceData) != codeUnknownServerError || codeOf(nil, faceData) != 0 {
		t.Error("unknown kind")
	}
}

func TestLeadership_IsChecked(t *testing.T) {
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 1)
	b.c.SetTopology(func(t *shard.Topology) {
		t.Nodes = append(t.Nodes, shard.Node{ID: 2, Up: true, Addr: map[string]string{"kafka": "127.0.0.2:9092"}})
		t.Shards = []shard.ShardInfo{{ID: 1, Leader: 2, Term: 7, Replicas: []shard.NodeID{1, 2}}}
	})
	if x := w.produce("t", 0, records(0, 1)); x.ErrorCode != codeNotLeaderOrFollower {
		t.Errorf("produce: %+v", x)
	}
	r := ask[*kmsg.ProduceResponse](w, produceReq("t", 0, 1, records(0, 1)), 10)
	if x := r.Topics[0].Partitions[0]; x.CurrentLeader.LeaderID != 2 || x.CurrentLeader.LeaderEpoch != 7 || len(r.Brokers) != 2 {
		t.Errorf("produce hint: %+v", r)
	}
	f := ask[*kmsg.FetchResponse](w, fetchReq("t", 0, 0, 0, 1), 12)
	if x := f.Topics[0].Partitions[0]; x.ErrorCode != codeNotLeaderOrFollower || x.CurrentLeader.LeaderID != 2 {
		t.Errorf("fetch: %+v", x)
	}
	if x := ask[*kmsg.HeartbeatResponse](w, heartbeatReq("g", "m", 1), 4); x.ErrorCode != codeNotCoordinator {
		t.Errorf("heartbeat: %+v", x)
	}
	if x := ask[*kmsg.JoinGroupResponse](w, joinReq("g", ""), 3); x.ErrorCode != codeNotCoordinator {
		t.Errorf("join: %+v", x)
	}
	if x := ask[*kmsg.SyncGroupResponse](w, syncReq("g", "m", 1), 3); x.ErrorCode != codeNotCoordinator {
		t.Errorf("sync: %+v", x)
	}
	b.c.SetTopology(func(t *shard.Topology) { t.Spaces = nil })
	if x := ask[*kmsg.MetadataResponse](w, kmsg.NewPtrMetadataRequest(), 13); x.ErrorCode == 0 {
		t.Errorf("metadata without a space: %+v", x)
	}
	if x := ask[*kmsg.FetchResponse](w, fetchReq("t", 0, 0, 0, 1), 12); x.ErrorCode != codeNotLeaderOrFollower {
		t.Errorf("fetch without a space: %+v", x)
	}
	if x := ask[*kmsg.FindCoordinatorResponse](w, kmsg.NewPtrFindCoordinatorRequest(), 2); x.ErrorCode == 0 {
		t.Errorf("coordinator without a space: %+v", x)
	}
	if x := ask[*kmsg.DescribeClusterResponse](w, kmsg.NewPtrDescribeClusterRequest(), 0); x.ErrorCode == 0 {
		t.Errorf("cluster without a space: %+v", x)
	}
	if x := ask[*kmsg.ListGroupsResponse](w, kmsg.NewPtrListGroupsRequest(), 0); x.ErrorCode == 0 {
		t.Errorf("groups without a space: %+v", x)
	}
}

// fill sets every field of a message to something.
func fill(v reflect.Value, r *rand.Rand) {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[kmsg.Tags]() {
			return
		}
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() && f.Name != "Version" && f.Name != "ReplicaState" {
				fill(v.Field(i), r)
			}
		}
	case reflect.Slice:
		n := r.IntN(4)
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fill(v.Index(i), r)
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), r)
		}
	case reflect.Pointer:
		if r.IntN(3) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), r)
		}
	case reflect.String:
		v.SetString(strings.Repeat("x", r.IntN(5)))
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(r.IntN(100)))
	case reflect.Uint8:
		v.SetUint(uint64(r.IntN(256)))
	}
}

func TestShapes_MatchTheMessageDefinitions(t *testing.T) {
	s := New(Config{}, nil, discard(), nil)
	for i := range s.table {
		a := &s.table[i]
		for v := a.min; v <= a.max; v++ {
			for seed := range uint64(200) {
				req := kmsg.RequestForKey(a.key)
				req.SetVersion(v)
				fill(reflect.ValueOf(req).Elem(), rand.New(rand.NewPCG(seed, uint64(a.key))))
				if f, ok := req.(*kmsg.FetchRequest); ok {
					f.ReplicaState = kmsg.NewFetchRequestReplicaState()
				}
				body := req.AppendTo(nil)
				if req.IsFlexible() != (v >= a.shape.flexible) {
					t.Fatalf("%s version %d: flexible %v", a.name, v, req.IsFlexible())
				}
				w := skim{b: body, version: v, flexible: v >= a.shape.flexible, elements: elementsMax}
				w.structure(a.shape.fields, true)
				if w.bad != "" || len(w.b) != 0 {
					t.Fatalf("%s version %d seed %d: %q, %d bytes left of %d", a.name, v, seed, w.bad, len(w.b), len(body))
				}
				if err := a.shape.check(v, body[:len(body)/2]); err == nil && len(body) > 1 {
					t.Fatalf("%s version %d seed %d: half of a request was accepted", a.name, v, seed)
				}
			}
		}
	}
}

func FuzzRequest(f *testing.F) {
	s := New(Config{}, nil, discard(), nil)
	for i := range s.table {
		a := &s.table[i]
		req := kmsg.RequestForKey(a.key)
		req.SetVersion(a.max)
		fill(reflect.ValueOf(req).Elem(), rand.New(rand.NewPCG(1, 2)))
		f.Add(int16(a.key), int16(a.max), req.AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, key, version int16, body []byte) {
		a := s.api(key)
		if a == nil || version < a.min || version > a.max || a.shape.check(version, body) != nil {
			return
		}
		req := kmsg.RequestForKey(key)
		req.SetVersion(version)
		if err := req.ReadFrom(body); err != nil && key != 18 {
			t.Skip(err)
		}
	})
}

func FuzzFrame(f *testing.F) {
	f.Add(framed(18, 3, []byte{0, 1, 1, 0}))
	f.Add([]byte("GET / HTTP/1.1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := readFrame(bufio.NewReader(bytes.NewReader(b)), 1<<20, func(int) error { return nil }, func() error { return nil })
		if err != nil {
			return
		}
		_, _, _ = readHeader(frame, func(int16, int16) bool { return true })
	})
}

// FuzzUnpack feeds the codecs, alone and behind the check of records, and looks that what they hold is given back.
func FuzzUnpack(f *testing.F) {
	for c := int16(1); c <= 4; c++ {
		f.Add(c, compress(c, []byte("hello")))
		f.Add(c, records(c, 1, 2)[eventlog.BatchHeaderSize:])
		f.Add(c, compress(c, repeated(100_000)))
	}
	f.Add(int16(2), xerialFramed([]byte("hello"), 2))
	u := newUnpacker()
	u.sizeMax = 4 << 20
	f.Fuzz(func(t *testing.T, codec int16, b []byte) {
		out, err := unpackAll(u, codec, b)
		if len(out) > int(u.sizeMax) {
			t.Errorf("%d bytes", len(out))
		}
		again, err2 := unpackAll(u, codec, b)
		if !bytes.Equal(again, out) || (err == nil) != (err2 == nil) {
			t.Errorf("%d bytes and %v, then %d and %v", len(out), err, len(again), err2)
		}
		if x, err := u.open(t.Context(), codec, b, 0); err == nil {
			batch := records(0, 1, 2)
			h, _ := eventlog.ReadBatchHeader(batch)
			if _, _, err := eventlog.CheckRecords(batch, h, x.out, &eventlog.Topic{}); err == nil && err2 != nil {
				t.Errorf("records that cannot be unpacked were accepted: %v", err2)
			}
			x.close()
		}
		if len(u.turns) != 0 || len(u.room.units) != 0 {
			t.Errorf("%d turns and %d units of memory were not given back", len(u.turns), len(u.room.units))
		}
	})
}

func TestBudget_WaitsAndGivesBack(t *testing.T) {
	b := newBudget(4*budgetUnit, budgetUnit)
	ctx, cancel := context.WithCancel(t.Context())
	give, err := b.take(ctx, 100*budgetUnit)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		give, err := b.take(ctx, budgetUnit)
		if err == nil {
			give()
		}
		got <- err
	}()
	give()
	if err := <-got; err != nil {
		t.Error(err)
	}
	give, _ = b.take(ctx, 4*budgetUnit)
	cancel()
	if _, err := b.take(ctx, 1); !errs.Is(err, errs.Overloaded) {
		t.Errorf("after cancel: %v", err)
	}
	give()
}
