package etcd

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Each part of a transaction is checked as if it came alone, wherever it is and whether it would be done or not.
func TestTxn_EachPartIsChecked(t *testing.T) {
	r := newRig(t, Config{})
	key := []byte("a")
	get := func(q *pb.RangeRequest) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: q}}
	}
	write := func(q *pb.PutRequest) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: q}}
	}
	deep := func(n int) *pb.RequestOp {
		op := put("deep", "")
		for range n {
			op = nested([]*pb.RequestOp{op}, nil)
		}
		return op
	}
	for name, c := range map[string]struct {
		op   *pb.RequestOp
		want error
	}{
		"a read without a key":                 {get(&pb.RangeRequest{}), rpctypes.ErrGRPCEmptyKey},
		"a read in an order that there is not": {get(&pb.RangeRequest{Key: key, SortOrder: 3}), rpctypes.ErrGRPCInvalidSortOption},
		"an order below all":                   {get(&pb.RangeRequest{Key: key, SortOrder: -1}), rpctypes.ErrGRPCInvalidSortOption},
		"a target that there is not":           {get(&pb.RangeRequest{Key: key, SortTarget: 5}), rpctypes.ErrGRPCInvalidSortOption},
		"a target below all":                   {get(&pb.RangeRequest{Key: key, SortTarget: -1}), rpctypes.ErrGRPCInvalidSortOption},
		"a put without a key":                  {write(&pb.PutRequest{}), rpctypes.ErrGRPCEmptyKey},
		"a value to be ignored":                {write(&pb.PutRequest{Key: key, Value: key, IgnoreValue: true}), rpctypes.ErrGRPCValueProvided},
		"a lease to be ignored":                {write(&pb.PutRequest{Key: key, Lease: 1, IgnoreLease: true}), rpctypes.ErrGRPCLeaseProvided},
		"a deletion without a key":             {del("", ""), rpctypes.ErrGRPCEmptyKey},
		"nothing":                              {&pb.RequestOp{}, rpctypes.ErrGRPCKeyNotFound},
		"as deep as may be":                    {deep(30), nil},
		"deeper":                               {deep(31), rpctypes.ErrGRPCTooManyOps},
	} {
		for where, q := range map[string]*pb.TxnRequest{
			"done": {Success: []*pb.RequestOp{c.op}}, "not done": {Failure: []*pb.RequestOp{c.op}},
		} {
			if _, err := r.kv.Txn(r.ctx(), q); !same(err, c.want) {
				t.Errorf("%s, %s: %v, want %v", name, where, err, c.want)
			}
		}
		if c.want == nil || name == "deeper" {
			continue
		}
		if _, err := r.kv.Txn(r.ctx(), &pb.TxnRequest{Success: []*pb.RequestOp{nested(nil, []*pb.RequestOp{c.op})}}); !same(err, c.want) {
			t.Errorf("%s, inside of another: %v, want %v", name, err, c.want)
		}
	}
}

// Every answer inside of a transaction's has a header, with the revision at that point; that of a transaction inside is empty, as in etcd.
func TestTxn_HeadersOfItsAnswers(t *testing.T) {
	r := newRig(t, Config{})
	r.put("a", "1")
	a, err := r.kv.Txn(r.ctx(), &pb.TxnRequest{Success: []*pb.RequestOp{
		{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a")}}}, put("b", ""), del("a", ""), nested(nil, nil),
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		got  *pb.ResponseHeader
		want int64
	}{
		{a.Responses[0].GetResponseRange().GetHeader(), 2}, {a.Responses[1].GetResponsePut().GetHeader(), 3},
		{a.Responses[2].GetResponseDeleteRange().GetHeader(), 3}, {a.Responses[3].GetResponseTxn().GetHeader(), 0},
	} {
		if c.got == nil || c.got.Revision != c.want {
			t.Errorf("answer %d: header %v, want revision %d", i, c.got, c.want)
		}
	}
}

// A stream of a range has so many keys a message, whether it has a limit or not.
func TestRangeStream_MessagesAreShort(t *testing.T) {
	r := newRig(t, Config{})
	const keys = 2*rangeStreamKeys + 100
	for from := 0; from < keys; from += 100 {
		q := &pb.TxnRequest{}
		for i := from; i < from+100; i++ {
			q.Success = append(q.Success, put(fmt.Sprintf("%05d", i), ""))
		}
		if _, err := r.kv.Txn(r.ctx(), q); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		limit int64
		want  []int
	}{{0, []int{1000, 1000, 100}}, {-1, []int{1000, 1000, 100}}, {1500, []int{1000, 500}}, {1000, []int{1000}}, {keys, []int{1000, 1000, 100}}} {
		st, err := r.kv.RangeStream(r.ctx(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Limit: c.limit})
		if err != nil {
			t.Fatal(err)
		}
		var got []int
		for {
			m, err := st.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, len(m.RangeResponse.Kvs))
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("limit %d: messages of %d keys, want %d", c.limit, got, c.want)
		}
	}
}

// A watch that begins at a revision to come is not told of what comes before it.
func TestWatch_BeginsWhenItIsTo(t *testing.T) {
	r := newRig(t, Config{})
	w := r.watching(r.ctx())
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 4})
	w.want("0@1 created")
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("c"), StartRevision: 4})
	w.want("1@1 created")
	// One that is up to date shows that the others could have been told.
	w.create(&pb.WatchCreateRequest{Key: []byte("a")})
	w.want("2@1 created")
	for i, v := range []string{"1", "2", "3"} {
		r.put("a", v)
		got := map[string]bool{line(w.recv()): true}
		if i == 2 {
			got[line(w.recv())], got[line(w.recv())] = true, true
			for id := range 3 {
				if want := fmt.Sprintf("%d@4 PUT a=3@4", id); !got[want] {
					t.Errorf("no %q in %v", want, got)
				}
			}
		} else if want := fmt.Sprintf("2@%d PUT a=%s@%d", i+2, v, i+2); !got[want] {
			t.Errorf("got %v, want %q", got, want)
		}
	}
}

// A watch whose id the server chooses gets one that no other has, also of those that clients chose. One without a key watches the first that
// there can be.
func TestWatch_ChosenIDsAreLeftOut(t *testing.T) {
	r := newRig(t, Config{})
	w := r.watching(r.ctx())
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: 1})
	w.want("1@1 created")
	w.create(&pb.WatchCreateRequest{Key: []byte("a")})
	w.want("0@1 created")
	w.create(&pb.WatchCreateRequest{})
	w.want("2@1 created")
	r.put("\x00", "first")
	w.want("2@2 PUT \x00=first@2")
	w.cancel(7)
	w.cancel(2)
	w.want("2@2 canceled")
}

// With physical=true a compaction is done when it is answered.
func TestCompact_PhysicalWaits(t *testing.T) {
	r := newRig(t, Config{})
	for range 30 {
		q := &pb.TxnRequest{}
		for i := range 100 {
			q.Success = append(q.Success, put(fmt.Sprint(i), ""))
		}
		if _, err := r.kv.Txn(r.ctx(), q); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.kv.Compact(r.ctx(), &pb.CompactionRequest{Revision: 31, Physical: true}); err != nil {
		t.Fatal(err)
	}
	if st, err := r.s.status(r.ctx(), true); err != nil || st.Removed != 31 {
		t.Errorf("history is gone before revision %d, want 31 (%v)", st.Removed, err)
	}
}

// ACTIVATE is refused by name: there is nothing that an alarm would stop. DEACTIVATE, which operators send to be sure, finds nothing to do.
func TestAlarm_ThereAreNone(t *testing.T) {
	r := newRig(t, Config{})
	m := pb.NewMaintenanceClient(r.conn)
	if _, err := m.Alarm(r.ctx(), &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE}); !same(err, refused("Alarm ACTIVATE", whyNoAlarms)) {
		t.Errorf("activate: %v", err)
	}
	for _, action := range []pb.AlarmRequest_AlarmAction{pb.AlarmRequest_GET, pb.AlarmRequest_DEACTIVATE} {
		if a, err := m.Alarm(r.ctx(), &pb.AlarmRequest{Action: action, Alarm: pb.AlarmType_NOSPACE}); err != nil || len(a.Alarms) != 0 {
			t.Errorf("%v: %v %v", action, a, err)
		}
	}
}

// page gets a page.
func (r *rig) page(path string) (code int, kind, body string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.ctx(), http.MethodGet, "http://"+r.addr+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), string(b)
}

// Pages say what they are, and checks list themselves for who asks.
func TestPages_KindsAndLists(t *testing.T) {
	r := newRig(t, Config{})
	const text, object = "text/plain; charset=utf-8", "application/json"
	for path, want := range map[string]struct{ kind, begins, ends string }{
		"/version": {object, `{"etcdserver":"` + Version + `"`, "}"}, "/health": {object, `{"health":"true"`, "}"},
		"/livez": {text, "ok\n", "ok\n"}, "/livez?verbose": {text, "[+]serializable_read ok\n", "\nok\n"},
		"/readyz": {text, "ok\n", "ok\n"}, "/readyz?verbose": {text, "[+]", "\nok\n"}, "/readyz/linearizable_read": {text, "ok\n", "ok\n"},
	} {
		code, kind, body := r.page(path)
		if code != http.StatusOK || kind != want.kind || !strings.HasPrefix(body, want.begins) || !strings.HasSuffix(body, want.ends) {
			t.Errorf("%s: %d %s %q, want %s, from %q to %q", path, code, kind, body, want.kind, want.begins, want.ends)
		}
	}
}

func TestUnlock_WithoutAKey(t *testing.T) {
	r := newRig(t, Config{})
	if code, m := r.post("/v3/lock/unlock", `{}`); code != http.StatusBadRequest || m["message"] != "etcdserver: key is not provided" {
		t.Errorf("%d %v", code, m)
	}
}

// A type of permission that there is not would be kept, and mean nothing.
func TestRoleGrantPermission_UnknownTypes(t *testing.T) {
	r := newRig(t, Config{})
	a := pb.NewAuthClient(r.conn)
	if _, err := a.RoleAdd(r.ctx(), &pb.AuthRoleAddRequest{Name: "r"}); err != nil {
		t.Fatal(err)
	}
	for kind := authpb.Permission_Type(-1); kind <= 3; kind++ {
		var want error
		if kind < authpb.Permission_READ || kind > authpb.Permission_READWRITE {
			want = rpctypes.ErrGRPCInvalidAuthMgmt
		}
		q := &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: &authpb.Permission{PermType: kind, Key: []byte("a")}}
		if _, err := a.RoleGrantPermission(r.ctx(), q); !same(err, want) {
			t.Errorf("type %d: %v, want %v", kind, err, want)
		}
	}
}
