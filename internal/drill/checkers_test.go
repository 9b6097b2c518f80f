package drill

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// reg makes a history of a register from lines such as "w a 1 2", "r a 3 4" (nil for no value), "s b a 5 6" (a swap that
// returned a), "i 1 2 3" (an increment that returned 1); a ? in place of the end makes the operation open.
func reg(t *testing.T, counter bool, lines ...string) *keyHistory {
	t.Helper()
	h := &keyHistory{key: "k", counter: counter}
	for c, l := range lines {
		f := strings.Fields(l)
		op := operation{client: c}
		val := func(i int) string {
			if f[i] == "nil" {
				return ""
			}
			return f[i]
		}
		at := 2
		switch f[0] {
		case "w":
			op.kind, op.arg = opWrite, f[1]
		case "r":
			op.kind, op.out = opRead, val(1)
		case "i":
			op.kind, op.out = opIncr, val(1)
		case "s":
			op.kind, op.arg, op.out, at = opSwap, f[1], val(2), 3
		default:
			t.Fatalf("line %q", l)
		}
		if _, err := fmt.Sscan(f[at], &op.call); err != nil {
			t.Fatalf("line %q: %v", l, err)
		}
		if f[at+1] == "?" {
			op.open, op.out = true, ""
		} else if _, err := fmt.Sscan(f[at+1], &op.ret); err != nil {
			t.Fatalf("line %q: %v", l, err)
		}
		h.ops = append(h.ops, op)
	}
	return h
}

func TestCheckHistories_ByHand(t *testing.T) {
	for _, c := range []struct {
		name    string
		counter bool
		lines   []string
		// want is part of the finding; "" means that there must be none.
		want string
	}{
		{"nothing", false, nil, ""},
		{"read before any write", false, []string{"r nil 1 2", "w a 3 4", "r a 5 6"}, ""},
		{"concurrent writes, either may win", false, []string{"w a 1 10", "w b 2 9", "r a 11 12", "r a 13 14"}, ""},
		{"a read during a write may see either", false, []string{"w a 1 2", "w b 3 10", "r a 4 5", "r b 6 7"}, ""},
		{"an open write may take effect late", false, []string{"w a 1 2", "w b 3 ?", "r a 4 5", "r a 50 60", "r b 70 80"}, ""},
		{"an open write may never take effect", false, []string{"w a 1 2", "w b 3 ?", "r a 4 5", "w c 6 7", "r c 8 9"}, ""},
		{"swaps in a row", false, []string{"s a nil 1 2", "s b a 3 4", "r b 5 6"}, ""},
		{"an open swap that a later one saw", false, []string{"w a 1 2", "s b a 3 ?", "s c b 10 11"}, ""},
		{"increments", true, []string{"r nil 1 2", "i 1 3 4", "i 2 5 9", "i 3 6 10", "r 3 11 12"}, ""},
		{"an open increment may count or not", true, []string{"i 1 1 2", "i 0 3 ?", "i 0 4 ?", "i 3 10 11", "r 3 12 13"}, ""},

		{"stale read", false, []string{"w a 1 2", "w b 3 4", "r a 5 6"}, "stale"},
		{"nothing where something was written", false, []string{"w a 1 2", "r nil 3 4"}, "stale"},
		{"a value that nobody wrote", false, []string{"w a 1 2", "r z 3 4"}, "nobody wrote"},
		{"a read goes back", false, []string{"w a 1 2", "w b 3 20", "r b 4 5", "r a 6 7"}, "no order"},
		{"an open write shows, and is gone again", false, []string{"w a 1 2", "w b 3 ?", "r b 4 5", "r a 6 7"}, "no order"},
		{"a lost write", false, []string{"w a 1 2", "s b nil 3 4"}, "stale"},
		{"two swaps took the same", false, []string{"w a 1 2", "s b a 3 10", "s c a 4 11"}, "no order"},
		{"a write applied twice", false, []string{"w a 1 2", "s b a 3 4", "r a 5 6"}, "stale"},
		{"a lost increment", true, []string{"i 1 1 2", "i 1 3 4"}, "lost"},
		{"an increment applied twice", true, []string{"i 1 1 2", "i 3 3 4"}, "applied twice"},
		{"a counter goes back", true, []string{"i 1 1 2", "i 2 3 4", "r 1 5 6"}, "stale"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := checkHistories([]*keyHistory{reg(t, c.counter, c.lines...)}, 10*time.Second, 10*time.Second)
			if len(got.undecided) > 0 {
				t.Fatalf("undecided: %v", got.undecided)
			}
			words := strings.Join(got.findings, "; ")
			if c.want == "" && words != "" || c.want != "" && !strings.Contains(words, c.want) {
				t.Errorf("got %q, want %q", words, c.want)
			}
			if (got.bad != nil) != (c.want != "") {
				t.Errorf("bad history %v, want one: %v", got.bad, c.want != "")
			}
		})
	}
}

func TestCheckHistories_NoTimeIsUndecided(t *testing.T) {
	h := reg(t, false, "w a 1 2", "r a 3 4")
	got := checkHistories([]*keyHistory{h, h}, time.Second, -time.Second)
	if len(got.undecided) != 2 || len(got.findings) != 0 {
		t.Errorf("got %v and %v, want two undecided and no findings", got.undecided, got.findings)
	}
}

func TestCheckHistories_LargestHistoryIsQuick(t *testing.T) {
	h := &keyHistory{key: "k"}
	at := int64(0)
	// Nine clients at a time, as many operations and open ones as the workload allows.
	for i := range opsPerKeyMax {
		at += 10
		op := operation{client: i % 9, call: at, ret: at + 60, kind: opWrite, arg: fmt.Sprint("v", i)}
		if i%40 == 7 {
			op.open = true
		}
		if i%40 == 8 {
			op.kind, op.arg, op.out = opSwap, fmt.Sprint("v", i), fmt.Sprint("v", i-1)
		}
		h.ops = append(h.ops, op)
	}
	start := time.Now()
	got := checkHistories([]*keyHistory{h}, 20*time.Second, 20*time.Second)
	if len(got.undecided)+len(got.findings) > 0 {
		t.Errorf("undecided %v, findings %v after %v", got.undecided, got.findings, time.Since(start))
	}
}

func TestCheckShop_ByHand(t *testing.T) {
	good := func() shopState {
		return shopState{
			acked: map[string]int{"1": 3, "2": 3}, unknown: map[string]int{"3": 4, "4": 4},
			orders: map[string]string{"1": "1 item 3", "2": "2 item 3", "3": "3 item 4"},
			sold:   map[int]int{3: 2, 4: 1}, events: map[string]int{"1": 1, "2": 1, "3": 1},
		}
	}
	for _, c := range []struct {
		name  string
		spoil func(*shopState)
		want  string
	}{
		{"all well, one unknown order took effect and one did not", func(*shopState) {}, ""},
		{"lost", func(s *shopState) { delete(s.orders, "1"); delete(s.events, "1"); s.sold[3]-- }, "acknowledged orders lost: 1"},
		{"without event", func(s *shopState) { delete(s.events, "2") }, "orders without their event: 2"},
		{"without order", func(s *shopState) { s.events["4"] = 1 }, "events without their order: 4"},
		{"doubled event", func(s *shopState) { s.events["1"] = 2 }, "events doubled: 1 (2 times)"},
		{"counted twice", func(s *shopState) { s.sold[3]++ }, "counters wrong: item 3 sold 3 times in 2 orders"},
		{"invented", func(s *shopState) { s.orders["9"], s.events["9"] = "9 item 3", 1; s.sold[3]++ }, "refused or never placed: 9"},
		{"altered", func(s *shopState) { s.orders["1"] = "1 item 5" }, "orders altered: 1 is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := good()
			c.spoil(&s)
			got := strings.Join(checkShop(s).Findings(), "; ")
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestCheckLedger_ByHand(t *testing.T) {
	l := &ledger{seed: 5, valueBytes: 50}
	told := map[int64]outcome{1: outcomeAcked, 2: outcomeUnknown, 3: outcomeUnknown, 4: outcomeRefused, 5: outcomeAcked}
	for _, c := range []struct {
		name  string
		spoil func(map[int64]string)
		want  string
	}{
		{"all well", func(map[int64]string) {}, ""},
		{"lost", func(m map[int64]string) { delete(m, 5) }, "1 of 5 writes that were acknowledged are lost: [led:5]"},
		{"altered", func(m map[int64]string) { m[1] = m[1][:len(m[1])-1] + "~" }, "another value than was written: [led:1]"},
		{"half of an unknown write", func(m map[int64]string) { m[2] = m[2][:20] }, "another value than was written: [led:2]"},
		{"refused, but done", func(m map[int64]string) { m[4] = l.value(4) }, "refused took effect: [led:4]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := map[int64]string{1: l.value(1), 2: l.value(2), 5: l.value(5)}
			c.spoil(got)
			words := strings.Join(checkLedger(told, l.value, got).findings("here"), "; ")
			if c.want == "" && words != "" || !strings.Contains(words, c.want) {
				t.Errorf("got %q, want %q", words, c.want)
			}
		})
	}
}

func TestLedgerValue_DiffersAndHasItsLength(t *testing.T) {
	l := &ledger{seed: 1, valueBytes: 60, bulk: 2, bulkBytes: 500}
	seen := map[string]bool{}
	for n := int64(1); n < 100; n++ {
		v := l.value(n)
		want := 60
		if n <= 2 {
			want = 500
		}
		if len(v) != want || seen[v] || v != l.value(n) {
			t.Fatalf("value %d is %q", n, v)
		}
		seen[v] = true
	}
}

func TestCheckTokens_ByHand(t *testing.T) {
	for _, c := range []struct {
		name  string
		got   string
		acked []int64
		want  string
	}{
		{"nothing", "", nil, ""},
		{"rising, with repeats", "3 3 7 9 9 9", []int64{3, 7, 9}, ""},
		{"a write whose answer was lost", "3 7", []int64{3}, ""},
		{"a stale holder", "3 7 3", []int64{3, 7}, "entry 2 was written under the stale token 3, after one under token 7"},
		{"stale in the middle", "3 7 3 9", []int64{3, 7, 9}, "entry 2 was written under the stale token 3"},
		{"lost", "3 9", []int64{3, 7, 9}, "under token 7 was acknowledged and is lost"},
		{"invented", "3 x", []int64{3}, "nobody wrote"},
	} {
		words := strings.Join(checkTokens("r", strings.Fields(c.got), c.acked), "; ")
		if c.want == "" && words != "" || !strings.Contains(words, c.want) {
			t.Errorf("%s: %q, want %q", c.name, words, c.want)
		}
	}
}

// keyless is a node of a cluster that has lost what it acknowledged: no condition of a transaction holds.
type keyless struct{ pb.KVClient }

func (keyless) Txn(context.Context, *pb.TxnRequest, ...grpc.CallOption) (*pb.TxnResponse, error) {
	return &pb.TxnResponse{Header: &pb.ResponseHeader{Revision: 9}}, nil
}

func TestElection_LostKeyOfALeaderIsFound(t *testing.T) {
	for _, c := range []struct {
		began time.Time
		want  int
	}{{time.Now(), 1}, {time.Now().Add(-2 * herdTTL * time.Second), 0}} {
		l := &election{e: &etcds{nodes: []*etcdNode{{KVClient: keyless{}}}}, began: c.began, ttl: herdTTL * time.Second}
		if err := l.lead(t.Context(), contender{key: "herd/1", token: 7}, 1); err != nil {
			t.Fatal(err)
		}
		if len(l.lost) != c.want {
			t.Errorf("found %q, want %d", l.lost, c.want)
		}
	}
}

func TestCheckReigns_ByHand(t *testing.T) {
	for _, c := range []struct {
		name string
		all  []reign
		want int
	}{
		{"nobody", nil, 0},
		{"one after the other", []reign{{1, 5, 6}, {2, 7, 7}, {3, 9, 12}}, 0},
		{"as they were noted", []reign{{3, 9, 12}, {1, 5, 6}, {2, 7, 7}}, 0},
		{"the same one again", []reign{{1, 5, 6}, {1, 7, 9}}, 0},
		{"two at one revision", []reign{{1, 5, 7}, {2, 7, 9}}, 1},
		{"one within another", []reign{{1, 5, 20}, {2, 7, 9}, {3, 10, 12}}, 2},
		{"at once", []reign{{1, 5, 5}, {2, 5, 5}}, 1},
	} {
		if got := checkReigns(c.all); len(got) != c.want {
			t.Errorf("%s: %q, want %d findings", c.name, got, c.want)
		}
	}
}

func TestCheckWatch_ByHand(t *testing.T) {
	acked := map[int64]string{2: "a", 3: "b", 4: "c", 5: "d"}
	good := func() watchSession {
		return watchSession{from: 3, streams: 1, events: []seen{{3, "b"}, {4, "c"}, {5, "d"}, {6, "unknown"}}}
	}
	for _, c := range []struct {
		name  string
		spoil func(*watchSession)
		want  string
	}{
		{"all well", func(*watchSession) {}, ""},
		{"from before the first write", func(s *watchSession) { s.from, s.events = 1, append([]seen{{2, "a"}}, s.events...) }, ""},
		{"nothing yet", func(s *watchSession) { s.events = nil }, ""},
		{"told of a compaction", func(s *watchSession) { s.asked, s.told = 7, 9 }, ""},
		{"an event is dropped", func(s *watchSession) { s.events = append(s.events[:1:1], s.events[2:]...) }, "after revision 3 came 5; 1 events are missing"},
		{"the first is missing", func(s *watchSession) { s.events = s.events[1:] }, "after revision 2 came 4"},
		{"repeated", func(s *watchSession) { s.events = append(s.events, s.events[2]) }, "after revision 6 came 5 again"},
		{"too early", func(s *watchSession) { s.from = 4 }, "after revision 3 came 3 again"},
		{"altered", func(s *watchSession) { s.events[1].value = "x" }, `revision 4 has the value "x"`},
		{"told for nothing", func(s *watchSession) { s.asked, s.told = 9, 9 }, "was told that revision 9 is compacted, when it asked for 9"},
		{"told of a compaction that nobody asked for", func(s *watchSession) { s.asked, s.told = 7, 10 }, "revision 10 is compacted, and nobody had let go of more than 9"},
		{"a stream falls silent", func(s *watchSession) { s.silent = true }, "showed nothing more"},
		{"a stream is silent when all has been seen", func(s *watchSession) { s.silent, s.ended = true, true }, ""},
	} {
		s := good()
		c.spoil(&s)
		words := strings.Join(checkWatch(&s, acked, 9), "; ")
		if c.want == "" && words != "" || !strings.Contains(words, c.want) {
			t.Errorf("%s: %q, want %q", c.name, words, c.want)
		}
	}
}

func TestWatching_RevisionOfTwoWritesIsFound(t *testing.T) {
	w := &watching{acked: map[int64]string{}}
	w.ack(2, "a")
	w.ack(3, "b")
	if len(w.twice) != 0 {
		t.Errorf("found %q", w.twice)
	}
	// The write of b is lost, and its revision is given again.
	w.ack(3, "c")
	if len(w.twice) != 1 || !strings.Contains(w.twice[0], "revision 3") {
		t.Errorf("found %q, want revision 3", w.twice)
	}
}

func TestCheckLease_ByHand(t *testing.T) {
	s := func(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }
	long := []stall{{s(11), s(14)}}
	for _, c := range []struct {
		name   string
		life   leaseLife
		stalls []stall
		want   string
	}{
		{"not over yet", leaseLife{ttl: s(2), asked: s(10), answered: s(10)}, nil, ""},
		{"still there, in time", leaseLife{ttl: s(2), asked: s(10), answered: s(10.1), there: s(14)}, nil, ""},
		{"never over", leaseLife{ttl: s(2), asked: s(10), answered: s(10.1), there: s(16)}, nil, "not over yet at 16000 ms, and should have been at 15100 ms"},
		{"kept alive to the end", leaseLife{ttl: s(5), kept: true, asked: s(10), answered: s(10.1), there: s(30)}, nil, ""},
		{"on time", leaseLife{ttl: s(2), asked: s(10), answered: s(10.1), ended: s(12.3)}, nil, ""},
		{"a little late", leaseLife{ttl: s(2), asked: s(10), answered: s(10.1), ended: s(14)}, nil, ""},
		{"too early", leaseLife{ttl: s(2), asked: s(10), answered: s(10.1), ended: s(11.9)}, nil, "before its time"},
		{"kept alive, and too early", leaseLife{ttl: s(5), kept: true, asked: s(10), answered: s(10.1), ended: s(14)}, long, "before its time"},
		{"too late", leaseLife{ttl: s(2), asked: s(10), answered: s(10.1), there: s(15.9), ended: s(16)}, nil, "should have been at 15100 ms"},
		{"over in time, and its client looked late", leaseLife{ttl: s(2), asked: s(10), answered: s(10.1), there: s(12), ended: s(16)}, nil, ""},
		{"late for a stall", leaseLife{ttl: s(2), asked: s(10), answered: s(10.1), there: s(17.9), ended: s(18)}, long, ""},
		{"too late for that too", leaseLife{ttl: s(2), asked: s(10), answered: s(10.1), there: s(20.9), ended: s(21)}, long, "should have been at 20100 ms"},
		{"an earlier stall", leaseLife{ttl: s(2), asked: s(10), answered: s(10.1), there: s(17.9), ended: s(18)}, []stall{{s(1), s(4)}}, "should have been"},
	} {
		words := strings.Join(checkLease(&c.life, c.stalls), "; ")
		if c.want == "" && words != "" || !strings.Contains(words, c.want) {
			t.Errorf("%s: %q, want %q", c.name, words, c.want)
		}
	}
}
