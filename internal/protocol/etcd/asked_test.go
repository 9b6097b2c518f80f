package etcd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

func compare(key string, target pb.Compare_CompareTarget, result pb.Compare_CompareResult, number int64) *pb.Compare {
	c := &pb.Compare{Key: []byte(key), Target: target, Result: result}
	switch target {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: number}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: number}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: number}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: number}
	default:
	}
	return c
}

// Each number of a key that a transaction may compare is another one, and so is each relation.
func TestTxn_ComparesWhatItIsTold(t *testing.T) {
	r := newRig(t, Config{})
	g, err := r.lease.LeaseGrant(r.ctx(), &pb.LeaseGrantRequest{TTL: 100, ID: 77})
	if err != nil {
		t.Fatal(err)
	}
	r.put("x", "")
	r.put("a", "1")
	r.put("a", "2")
	if _, err := r.kv.Put(r.ctx(), &pb.PutRequest{Key: []byte("a"), Value: []byte("3"), Lease: g.ID}); err != nil {
		t.Fatal(err)
	}
	for target, is := range map[pb.Compare_CompareTarget]int64{pb.Compare_VERSION: 3, pb.Compare_CREATE: 3, pb.Compare_MOD: 5, pb.Compare_LEASE: 77} {
		for more := int64(-1); more <= 1; more++ {
			for result, want := range map[pb.Compare_CompareResult]bool{
				pb.Compare_EQUAL: more == 0, pb.Compare_NOT_EQUAL: more != 0, pb.Compare_GREATER: more < 0, pb.Compare_LESS: more > 0,
			} {
				resp, err := r.kv.Txn(r.ctx(), &pb.TxnRequest{Compare: []*pb.Compare{compare("a", target, result, is+more)}})
				if err != nil || resp.Succeeded != want {
					t.Errorf("%v %v %d: %v %v, want %v", target, result, is+more, resp.GetSucceeded(), err, want)
				}
			}
		}
	}
	read := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a")}}}
	resp, err := r.kv.Txn(r.ctx(), &pb.TxnRequest{Success: []*pb.RequestOp{read}})
	if got := resp.GetResponses(); err != nil || len(got) != 1 || got[0].GetResponseRange().Header.GetRevision() != 5 || string(got[0].GetResponseRange().Kvs[0].Value) != "3" {
		t.Errorf("a read in a transaction: %v %v", resp, err)
	}
	// A put that keeps the lease of its key.
	if _, err := r.kv.Put(r.ctx(), &pb.PutRequest{Key: []byte("a"), Value: []byte("4"), IgnoreLease: true}); err != nil {
		t.Error(err)
	}
	if a, err := r.kv.Range(r.ctx(), &pb.RangeRequest{Key: []byte("a")}); err != nil || a.Kvs[0].Lease != 77 || string(a.Kvs[0].Value) != "4" {
		t.Errorf("after a put that keeps the lease: %v %v", a, err)
	}
}

func TestKV_WhatCannotBeAsked(t *testing.T) {
	r := newRig(t, Config{TxnOpsMax: 4})
	txn := func(q *pb.TxnRequest) error { _, err := r.kv.Txn(r.ctx(), q); return err }
	then := func(ops ...*pb.RequestOp) error { return txn(&pb.TxnRequest{Success: ops}) }
	stream := func(q *pb.RangeRequest) error {
		st, err := r.kv.RangeStream(r.ctx(), q)
		if err == nil {
			_, err = st.Recv()
		}
		return err
	}
	_, deleted := r.kv.DeleteRange(r.ctx(), &pb.DeleteRangeRequest{RangeEnd: []byte("a")})
	a := []byte("a")
	for name, c := range map[string]struct{ got, want error }{
		"a deletion of no key":               {deleted, rpctypes.ErrGRPCEmptyKey},
		"a deletion of no key, inside":       {then(del("", "a")), rpctypes.ErrGRPCEmptyKey},
		"a put of no key, inside":            {then(put("", "")), rpctypes.ErrGRPCEmptyKey},
		"a put of no key, where it is not":   {txn(&pb.TxnRequest{Failure: []*pb.RequestOp{put("", "")}}), rpctypes.ErrGRPCEmptyKey},
		"a put of no key, deep inside":       {then(nested(nil, []*pb.RequestOp{put("", "")})), rpctypes.ErrGRPCEmptyKey},
		"a comparison of no key":             {txn(&pb.TxnRequest{Compare: []*pb.Compare{compare("", 0, 0, 0)}}), rpctypes.ErrGRPCEmptyKey},
		"a comparison of nothing":            {txn(&pb.TxnRequest{Compare: []*pb.Compare{compare("a", 5, 0, 0)}}), status.Error(codes.InvalidArgument, "etcdserver: unknown comparison: target 5, result 0")},
		"a comparison of less than nothing":  {txn(&pb.TxnRequest{Compare: []*pb.Compare{compare("a", -1, 0, 0)}}), status.Error(codes.InvalidArgument, "etcdserver: unknown comparison: target -1, result 0")},
		"a comparison of no kind":            {txn(&pb.TxnRequest{Compare: []*pb.Compare{compare("a", 0, 4, 0)}}), status.Error(codes.InvalidArgument, "etcdserver: unknown comparison: target 0, result 4")},
		"a comparison of less than no kind":  {txn(&pb.TxnRequest{Compare: []*pb.Compare{compare("a", 0, -1, 0)}}), status.Error(codes.InvalidArgument, "etcdserver: unknown comparison: target 0, result -1")},
		"as much as may be":                  {then(put("a", ""), put("b", ""), nested([]*pb.RequestOp{put("c", "")}, nil)), nil},
		"more than may be, deep inside":      {then(put("a", ""), put("b", ""), nested([]*pb.RequestOp{put("c", ""), put("d", "")}, nil)), rpctypes.ErrGRPCTooManyOps},
		"more comparisons than may be":       {txn(&pb.TxnRequest{Compare: slices.Repeat([]*pb.Compare{compare("a", 0, 0, 0)}, 5)}), rpctypes.ErrGRPCTooManyOps},
		"a stream in an order":               {stream(&pb.RangeRequest{Key: a, SortOrder: pb.RangeRequest_DESCEND}), status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")},
		"a stream in the order of its keys":  {stream(&pb.RangeRequest{Key: a, SortOrder: pb.RangeRequest_ASCEND}), nil},
		"a stream in an order of values":     {stream(&pb.RangeRequest{Key: a, SortOrder: pb.RangeRequest_ASCEND, SortTarget: pb.RangeRequest_VALUE}), status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")},
		"a stream of late modifications":     {stream(&pb.RangeRequest{Key: a, MinModRevision: 1}), status.Error(codes.Unimplemented, "RangeStream does not support revision filters")},
		"a stream of early modifications":    {stream(&pb.RangeRequest{Key: a, MaxModRevision: 1}), status.Error(codes.Unimplemented, "RangeStream does not support revision filters")},
		"a stream of late creations":         {stream(&pb.RangeRequest{Key: a, MinCreateRevision: 1}), status.Error(codes.Unimplemented, "RangeStream does not support revision filters")},
		"a stream of early creations":        {stream(&pb.RangeRequest{Key: a, MaxCreateRevision: 1}), status.Error(codes.Unimplemented, "RangeStream does not support revision filters")},
		"a stream of no key":                 {stream(&pb.RangeRequest{}), rpctypes.ErrGRPCEmptyKey},
		"a stream of a revision that is not": {stream(&pb.RangeRequest{Key: a, Revision: 99}), rpctypes.ErrGRPCFutureRev},
	} {
		if got, want := status.Convert(c.got), status.Convert(c.want); got.Code() != want.Code() || got.Message() != want.Message() {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
}

// spy notes how fresh what clients asked of the key space had to be.
type spy struct {
	shard.Client
	stale chan bool
}

func (c spy) Query(ctx context.Context, r shard.Route, at shard.Consistency, q shard.Command) ([]byte, error) {
	// What the server wants to know for itself is no request of a client's.
	if q.Module == shard.ModuleAuth && !bytes.Equal(q.Data, auth.EncodeState()) {
		c.stale <- at.Stale
	}
	return c.Client.Query(ctx, r, at, q)
}

// Reads are linearizable unless the client says that they need not be.
func TestReads_AreAsFreshAsAskedFor(t *testing.T) {
	c := spy{stale: make(chan bool, 100)}
	r := newRigOver(t, Config{}, func(own shard.Client) shard.Client { c.Client = own; return c })
	r.put("a", "1")
	g, err := r.lease.LeaseGrant(r.ctx(), &pb.LeaseGrantRequest{TTL: 100})
	if err != nil {
		t.Fatal(err)
	}
	read := func(stale bool) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a"), Serializable: stale}}}
	}
	txn := func(then, els []*pb.RequestOp) func() error {
		return func() error {
			_, err := r.kv.Txn(r.ctx(), &pb.TxnRequest{Success: then, Failure: els})
			return err
		}
	}
	ops := func(list ...*pb.RequestOp) []*pb.RequestOp { return list }
	stream := func(stale bool) func() error {
		return func() error {
			st, err := r.kv.RangeStream(r.ctx(), &pb.RangeRequest{Key: []byte("a"), Serializable: stale})
			if err == nil {
				_, err = st.Recv()
			}
			return err
		}
	}
	members := func(linearizable bool) func() error {
		return func() error {
			_, err := pb.NewClusterClient(r.conn).MemberList(r.ctx(), &pb.MemberListRequest{Linearizable: linearizable})
			return err
		}
	}
	for name, ask := range map[string]struct {
		call  func() error
		stale bool
	}{
		"range": {func() error { _, err := r.kv.Range(r.ctx(), &pb.RangeRequest{Key: []byte("a")}); return err }, false},
		"serializable range": {func() error {
			_, err := r.kv.Range(r.ctx(), &pb.RangeRequest{Key: []byte("a"), Serializable: true})
			return err
		}, true},
		"transaction":                                   {txn(ops(read(false)), nil), false},
		"transaction of nothing":                        {txn(nil, nil), false},
		"serializable transaction":                      {txn(ops(read(true)), ops(read(true))), true},
		"transaction of which one read is serializable": {txn(ops(read(true), read(false)), nil), false},
		"transaction that is serializable if it holds":  {txn(ops(read(true)), ops(read(false))), false},
		"transaction with another inside":               {txn(ops(read(true), nested(ops(read(true)), nil)), nil), false},
		"stream":                                        {stream(false), false},
		"serializable stream":                           {stream(true), true},
		"time of a lease": {func() error {
			_, err := r.lease.LeaseTimeToLive(r.ctx(), &pb.LeaseTimeToLiveRequest{ID: g.ID})
			return err
		}, false},
		"leases":               {func() error { _, err := r.lease.LeaseLeases(r.ctx(), &pb.LeaseLeasesRequest{}); return err }, false},
		"members":              {members(false), true},
		"linearizable members": {members(true), false},
		"users": {func() error {
			_, err := pb.NewAuthClient(r.conn).UserList(r.ctx(), &pb.AuthUserListRequest{})
			return err
		}, false},
	} {
		for len(c.stale) > 0 {
			<-c.stale
		}
		if err := ask.call(); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := <-c.stale; got != ask.stale {
			t.Errorf("%s: stale %v, want %v", name, got, ask.stale)
		}
	}
}

// A key may be put once by all of a transaction, however deep inside, but for two of which only one is done.
func TestTxn_KeysPutTwiceDeepInside(t *testing.T) {
	r := newRig(t, Config{})
	one := func(ops ...*pb.RequestOp) *pb.RequestOp { return nested(ops, nil) }
	x, y := put("x", ""), put("y", "")
	for name, c := range map[string]struct {
		ops  []*pb.RequestOp
		want error
	}{
		"in two":                      {[]*pb.RequestOp{one(x), one(x)}, rpctypes.ErrGRPCDuplicateKey},
		"in one and not the other":    {[]*pb.RequestOp{one(x), one(y)}, nil},
		"twice in one":                {[]*pb.RequestOp{one(x, x)}, rpctypes.ErrGRPCDuplicateKey},
		"twice, deeper":               {[]*pb.RequestOp{one(one(x), x)}, rpctypes.ErrGRPCDuplicateKey},
		"in what is not done with it": {[]*pb.RequestOp{nested([]*pb.RequestOp{x}, []*pb.RequestOp{x})}, nil},
		"in either, and again":        {[]*pb.RequestOp{nested([]*pb.RequestOp{y}, []*pb.RequestOp{x}), x}, rpctypes.ErrGRPCDuplicateKey},
		"and deleted by another":      {[]*pb.RequestOp{one(del("a", "z")), one(x)}, rpctypes.ErrGRPCDuplicateKey},
		"and deleted with others":     {[]*pb.RequestOp{one(x), del("a", "z")}, rpctypes.ErrGRPCDuplicateKey},
		"twice where nothing is done": {[]*pb.RequestOp{nested(nil, []*pb.RequestOp{x, x})}, rpctypes.ErrGRPCDuplicateKey},
	} {
		if _, err := r.kv.Txn(r.ctx(), &pb.TxnRequest{Success: c.ops}); !same(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestWatch_AllKeysAndFilters(t *testing.T) {
	r := newRig(t, Config{})
	w := r.watching(r.ctx())
	// No key is the first there can be, and the end 0 none: all keys.
	w.create(&pb.WatchCreateRequest{RangeEnd: []byte{0}, WatchId: 1})
	w.want("1@1 created")
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: 2, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}})
	w.want("2@1 created")
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: 3, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}})
	w.want("3@1 created")
	r.put("a", "1")
	if _, err := r.kv.DeleteRange(r.ctx(), &pb.DeleteRangeRequest{Key: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	r.put("zz", "1")
	got := map[int64][]string{}
	for len(got[1]) < 3 || len(got[2]) < 1 || len(got[3]) < 1 {
		m := w.recv()
		for _, e := range m.Events {
			got[m.WatchId] = append(got[m.WatchId], fmt.Sprint(e.Type, " ", string(e.Kv.Key)))
		}
	}
	for id, want := range map[int64][]string{1: {"PUT a", "DELETE a", "PUT zz"}, 2: {"DELETE a"}, 3: {"PUT a"}} {
		if !slices.Equal(got[id], want) {
			t.Errorf("watch %d: %q, want %q", id, got[id], want)
		}
	}
}

// The stream of leaders in its JSON form, and the other calls of an election.
func TestElection_OverTheGateway(t *testing.T) {
	r := newRig(t, Config{})
	reg := prometheus.NewRegistry()
	reg.MustRegister(r.s.m.fenced)
	if _, err := r.lease.LeaseGrant(r.ctx(), &pb.LeaseGrantRequest{TTL: 100, ID: 5}); err != nil {
		t.Fatal(err)
	}
	observe := func(body string) (code int, kind string, lines *bufio.Reader) {
		t.Helper()
		req, err := http.NewRequestWithContext(r.ctx(), http.MethodPost, "http://"+r.addr+"/v3/election/observe", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp.StatusCode, resp.Header.Get("Content-Type"), bufio.NewReader(resp.Body)
	}
	call := func(method, body string) map[string]any {
		t.Helper()
		code, m := r.post("/v3/election/"+method, body)
		if code != http.StatusOK || m["header"] == nil {
			t.Fatalf("%s: %d %v", method, code, m)
		}
		return m
	}
	campaign := call("campaign", fmt.Sprintf(`{"name":%q,"lease":"5","value":%q}`, b64("e"), b64("one")))
	leader, err := json.Marshal(campaign["leader"])
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf(`{"key":%q,"lease":"5","name":%q,"rev":"2"}`, b64("e/5"), b64("e")); string(leader) != want {
		t.Errorf("the leader is %s, want %s", leader, want)
	}
	code, kind, lines := observe(fmt.Sprintf(`{"name":%q}`, b64("e")))
	if code != http.StatusOK || kind != "application/json" {
		t.Errorf("observe: %d %s", code, kind)
	}
	next := func(value, mod string) {
		t.Helper()
		line, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		var m struct {
			Result struct {
				Header map[string]string
				KV     map[string]string
			}
		}
		if err := json.Unmarshal(line, &m); err != nil || m.Result.KV["value"] != b64(value) || m.Result.KV["key"] != b64("e/5") || m.Result.KV["mod_revision"] != mod || m.Result.Header["revision"] == "" {
			t.Errorf("observed %s (%v), want %q of revision %s", line, err, value, mod)
		}
	}
	next("one", "2")
	call("proclaim", fmt.Sprintf(`{"leader":%s,"value":%q}`, leader, b64("two")))
	next("two", "3")
	for method, want := range map[string]string{"proclaim": `"leader" field must be provided`, "resign": `"leader" field must be provided`} {
		if code, m := r.post("/v3/election/"+method, `{}`); code == http.StatusOK || m["message"] != want {
			t.Errorf("%s of nobody: %d %v", method, code, m)
		}
	}
	call("resign", fmt.Sprintf(`{"leader":%s}`, leader))
	if code, m := r.post("/v3/election/leader", fmt.Sprintf(`{"name":%q}`, b64("e"))); code == http.StatusOK || m["message"] != "election: no leader" {
		t.Errorf("after it has resigned: %d %v", code, m)
	}
	if code, m := r.post("/v3/election/proclaim", fmt.Sprintf(`{"leader":%s,"value":%q}`, leader, b64("three"))); code == http.StatusOK || m["message"] != "election: not leader" {
		t.Errorf("a proclamation of one that has resigned: %d %v", code, m)
	}
	all, err := reg.Gather()
	if err != nil || all[0].GetMetric()[0].GetCounter().GetValue() != 1 {
		t.Errorf("counted %v (%v), want 1", all, err)
	}
	if code, _, _ := observe("x"); code != http.StatusBadRequest {
		t.Errorf("what is no JSON: %d", code)
	}
	// When the server ends, so does the stream, and says why.
	r.s.Close()
	rest, err := io.ReadAll(lines)
	if want := `{"error":{"code":14,"message":"etcdserver: server stopped"}}` + "\n"; err != nil || string(rest) != want {
		t.Errorf("at the end %s (%v), want %s", rest, err, want)
	}
}

func TestHealth_WhatFailsIsUnavailable(t *testing.T) {
	r := newRig(t, Config{})
	get := func(path string) (int, string) {
		rec := httptest.NewRecorder()
		r.s.http.Handler.ServeHTTP(rec, httptest.NewRequestWithContext(r.ctx(), http.MethodGet, path, nil))
		return rec.Code, rec.Body.String()
	}
	for _, path := range []string{"/health", "/health?serializable=true", "/livez", "/readyz", "/readyz/linearizable_read", "/livez/serializable_read"} {
		if code, body := get(path); code != http.StatusOK {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	r.shard.Refuse(errs.New(errs.Internal, "broken"))
	for _, path := range []string{"/health", "/health?serializable=true", "/livez", "/readyz", "/readyz/data_corruption", "/readyz?exclude=data_corruption"} {
		if code, body := get(path); code != http.StatusServiceUnavailable || !strings.Contains(body, "broken") {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if code, body := get("/livez?exclude=serializable_read"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("what fails is excluded: %d %s", code, body)
	}
}

func TestSnapshot_OfMoreKeysThanAreReadAtATime(t *testing.T) {
	r := newRig(t, Config{TempDir: t.TempDir(), TxnOpsMax: 5000})
	const n = 2*snapshotKeys + 1
	var ops []*pb.RequestOp
	for i := range n {
		ops = append(ops, put(fmt.Sprintf("k%05d", i), "v"))
	}
	if _, err := r.kv.Txn(r.ctx(), &pb.TxnRequest{Success: ops}); err != nil {
		t.Fatal(err)
	}
	if got := count(t, r.snapshot(), "key"); got != n {
		t.Errorf("%d keys, want %d", got, n)
	}
}
