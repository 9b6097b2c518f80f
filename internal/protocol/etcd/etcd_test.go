package etcd

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// rig is a server over shards in memory, and a client of it.
type rig struct {
	t     *testing.T
	shard *shardtest.Client
	addr  string
	kv    pb.KVClient
	watch pb.WatchClient
	lease pb.LeaseClient
	conn  *grpc.ClientConn
	s     *Server
}

func newRig(t *testing.T, cfg Config) *rig {
	t.Helper()
	return newRigOver(t, cfg, func(c shard.Client) shard.Client { return c })
}

// newRigOver is newRig with something between the server and the shards.
func newRigOver(t *testing.T, cfg Config, over func(shard.Client) shard.Client) *rig {
	t.Helper()
	r := &rig{t: t, shard: shardtest.New(t, shardtest.Options{RealTime: true}, kv.Module{Answers: cfg.Answers}, auth.New(auth.Config{Uses: Uses}))}
	var reg prometheus.Registerer
	if own, ok := cfg.Metrics.(*prometheus.Registry); ok {
		reg = own
	}
	r.s = New(cfg, over(r.shard), slog.New(slog.DiscardHandler), reg)
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- r.s.Serve(ln) }()
	r.addr = ln.Addr().String()
	if r.conn, err = grpc.NewClient(r.addr, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.conn.Close()
		r.s.Close()
		// A test that calls nothing over the network may be over before the server serves.
		if err := <-served; err != nil && !errs.Is(err, errs.Unavailable) {
			t.Errorf("serve: %v", err)
		}
	})
	r.kv, r.watch, r.lease = pb.NewKVClient(r.conn), pb.NewWatchClient(r.conn), pb.NewLeaseClient(r.conn)
	return r
}

// ctx is that of a step which must end in a generous time.
func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	r.t.Cleanup(cancel)
	return ctx
}

func (r *rig) put(key, value string) int64 {
	r.t.Helper()
	p, err := r.kv.Put(r.ctx(), &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	if err != nil {
		r.t.Fatalf("put %s: %v", key, err)
	}
	return p.Header.Revision
}

func put(key, value string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}}
}

func del(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)}}}
}

func nested(then, els []*pb.RequestOp) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: then, Failure: els}}}
}

func TestKV_HeadersAndAnswers(t *testing.T) {
	r := newRig(t, Config{})
	a, err := r.kv.Range(r.ctx(), &pb.RangeRequest{Key: []byte("a")})
	if err != nil || a.Header.Revision != 1 || a.Header.ClusterId == 0 || a.Header.MemberId == 0 || a.Header.RaftTerm != 1 {
		t.Fatalf("empty: %v %v", a, err)
	}
	if rev := r.put("a", "1"); rev != 2 {
		t.Errorf("revision %d", rev)
	}
	p, err := r.kv.Put(r.ctx(), &pb.PutRequest{Key: []byte("a"), Value: []byte("2"), PrevKv: true})
	if err != nil || string(p.PrevKv.Value) != "1" {
		t.Errorf("put: %v %v", p, err)
	}
	tx, err := r.kv.Txn(r.ctx(), &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("a"), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte("2")}}},
		Success: []*pb.RequestOp{put("b", "3"), nested([]*pb.RequestOp{del("a", "")}, nil)},
	})
	if err != nil || !tx.Succeeded || tx.Header.Revision != 4 || tx.Responses[0].GetResponsePut().Header.Revision != 4 ||
		tx.Responses[1].GetResponseTxn().Responses[0].GetResponseDeleteRange().Deleted != 1 {
		t.Errorf("txn: %v %v", tx, err)
	}
	d, err := r.kv.DeleteRange(r.ctx(), &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, PrevKv: true})
	if err != nil || d.Deleted != 1 || string(d.PrevKvs[0].Key) != "b" {
		t.Errorf("delete: %v %v", d, err)
	}
	if a, err = r.kv.Range(r.ctx(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: 3, Serializable: true}); err != nil || a.Count != 1 {
		t.Errorf("old: %v %v", a, err)
	}
}

// Clients compare the texts of errors.
func TestErrors_AreEtcds(t *testing.T) {
	r := newRig(t, Config{})
	r.put("a", "1")
	r.put("a", "2")
	if _, err := r.kv.Compact(r.ctx(), &pb.CompactionRequest{Revision: 3, Physical: true}); err != nil {
		t.Fatal(err)
	}
	ctx := r.ctx()
	txn := func(ops ...*pb.RequestOp) error {
		_, err := r.kv.Txn(ctx, &pb.TxnRequest{Success: ops})
		return err
	}
	rng := func(q *pb.RangeRequest) error { _, err := r.kv.Range(ctx, q); return err }
	pt := func(q *pb.PutRequest) error { _, err := r.kv.Put(ctx, q); return err }
	k := []byte("a")
	var many []*pb.RequestOp
	for i := range 129 {
		many = append(many, put(fmt.Sprint(i), ""))
	}
	for i, c := range []struct{ got, want error }{
		{rng(&pb.RangeRequest{}), rpctypes.ErrGRPCEmptyKey},
		{rng(&pb.RangeRequest{Key: k, SortOrder: 7}), rpctypes.ErrGRPCInvalidSortOption},
		{rng(&pb.RangeRequest{Key: k, Revision: 2}), rpctypes.ErrGRPCCompacted},
		{rng(&pb.RangeRequest{Key: k, Revision: 9}), rpctypes.ErrGRPCFutureRev},
		{pt(&pb.PutRequest{}), rpctypes.ErrGRPCEmptyKey},
		{pt(&pb.PutRequest{Key: k, Value: k, IgnoreValue: true}), rpctypes.ErrGRPCValueProvided},
		{pt(&pb.PutRequest{Key: k, Lease: 1, IgnoreLease: true}), rpctypes.ErrGRPCLeaseProvided},
		{pt(&pb.PutRequest{Key: []byte("x"), IgnoreValue: true}), rpctypes.ErrGRPCKeyNotFound},
		{pt(&pb.PutRequest{Key: k, Lease: 1}), rpctypes.ErrGRPCLeaseNotFound},
		{pt(&pb.PutRequest{Key: k, Value: make([]byte, 3<<19)}), rpctypes.ErrGRPCRequestTooLarge},
		{txn(put("x", ""), put("x", "")), rpctypes.ErrGRPCDuplicateKey},
		{txn(put("x", ""), del("w", "z")), rpctypes.ErrGRPCDuplicateKey},
		{txn(put("x", ""), nested([]*pb.RequestOp{put("x", "")}, nil)), rpctypes.ErrGRPCDuplicateKey},
		{txn(nested([]*pb.RequestOp{del("a", "z")}, nil), put("x", "")), rpctypes.ErrGRPCDuplicateKey},
		{txn(nested([]*pb.RequestOp{put("x", "")}, []*pb.RequestOp{put("x", "")})), nil},
		{txn(many...), rpctypes.ErrGRPCTooManyOps},
		{txn(&pb.RequestOp{}), rpctypes.ErrGRPCKeyNotFound},
	} {
		if got, want := status.Convert(c.got), status.Convert(c.want); got.Code() != want.Code() || got.Message() != want.Message() {
			t.Errorf("%d: %v, want %v", i, c.got, c.want)
		}
	}
	if _, err := r.kv.Compact(ctx, &pb.CompactionRequest{Revision: 3}); status.Convert(err).Message() != status.Convert(rpctypes.ErrGRPCCompacted).Message() {
		t.Errorf("compact again: %v", err)
	}
	for kind, want := range map[errs.Kind]error{
		errs.OutcomeUnknown: rpctypes.ErrGRPCTimeout, errs.Unavailable: rpctypes.ErrGRPCNoLeader, errs.Overloaded: rpctypes.ErrGRPCRequestTooManyRequests,
	} {
		r.shard.Refuse(errs.New(kind, "no"))
		if got := pt(&pb.PutRequest{Key: k}); status.Convert(got).Message() != status.Convert(want).Message() {
			t.Errorf("%v: %v, want %v", kind, got, want)
		}
	}
	r.shard.Refuse(nil)
	if _, err := pb.NewMaintenanceClient(r.conn).Downgrade(ctx, &pb.DowngradeRequest{}); status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "Downgrade") {
		t.Errorf("not served: %v", err)
	}
}

func TestRangeStream_PartsOfOneRevision(t *testing.T) {
	r := newRig(t, Config{})
	n := 2*rangeStreamKeys + 10
	for i := 0; i < n; i += 128 {
		var ops []*pb.RequestOp
		for j := i; j < min(i+128, n); j++ {
			ops = append(ops, put(fmt.Sprintf("k%05d", j), "v"))
		}
		if _, err := r.kv.Txn(r.ctx(), &pb.TxnRequest{Success: ops}); err != nil {
			t.Fatal(err)
		}
	}
	for _, limit := range []int64{0, rangeStreamKeys, rangeStreamKeys + 5, 3} {
		st, err := r.kv.RangeStream(r.ctx(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Limit: limit})
		if err != nil {
			t.Fatal(err)
		}
		var all pb.RangeResponse
		for {
			m, err := st.Recv()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(all.Kvs) == 0 {
				// A key that comes between two parts is in neither.
				r.put("zz", "late")
			}
			proto.Merge(&all, m.RangeResponse)
		}
		want := int64(n)
		if limit > 0 {
			want = limit
		}
		if int64(len(all.Kvs)) != want || all.Count != int64(n) || all.More != (limit > 0) || all.Header.GetRevision() == 0 {
			t.Errorf("limit %d: %d keys, want %d; count %d more %v header %v", limit, len(all.Kvs), want, all.Count, all.More, all.Header)
		}
		if d, err := r.kv.DeleteRange(r.ctx(), &pb.DeleteRangeRequest{Key: []byte("zz")}); err != nil || d.Deleted != 1 {
			t.Fatal(err)
		}
	}
}

// Without an order a target counts within a part only: the parts would not fit together.
func TestRangeStream_TargetWithoutAnOrder(t *testing.T) {
	r := newRig(t, Config{})
	n := rangeStreamKeys + 10
	for i := 0; i < n; i += 100 {
		var ops []*pb.RequestOp
		for j := i; j < min(i+100, n); j++ {
			ops = append(ops, put(fmt.Sprintf("k%05d", j), fmt.Sprintf("v%05d", n-j)))
		}
		if _, err := r.kv.Txn(r.ctx(), &pb.TxnRequest{Success: ops}); err != nil {
			t.Fatal(err)
		}
	}
	st, err := r.kv.RangeStream(r.ctx(), &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), SortTarget: pb.RangeRequest_VALUE})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	for {
		m, err := st.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !slices.IsSortedFunc(m.RangeResponse.Kvs, func(x, y *mvccpb.KeyValue) int { return bytes.Compare(x.Value, y.Value) }) {
			t.Error("a part is not sorted by value")
		}
		for _, k := range m.RangeResponse.Kvs {
			if keys[string(k.Key)] {
				t.Fatalf("%s twice", k.Key)
			}
			keys[string(k.Key)] = true
		}
	}
	if len(keys) != n {
		t.Errorf("%d keys, want %d", len(keys), n)
	}
	// Values that are only sorted by are not sent.
	st, err = r.kv.RangeStream(r.ctx(), &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("k00002"), SortTarget: pb.RangeRequest_VALUE, KeysOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	m, err := st.Recv()
	if err != nil || len(m.RangeResponse.Kvs) != 2 || string(m.RangeResponse.Kvs[0].Key) != "k00001" || len(m.RangeResponse.Kvs[0].Value) != 0 {
		t.Errorf("keys by value: %v %v", m, err)
	}
}

// The header has the newest revision, also when an older one was asked for.
func TestRangeStream_HeaderOfAnOldRevision(t *testing.T) {
	r := newRig(t, Config{})
	r.put("a", "1")
	r.put("a", "2")
	st, err := r.kv.RangeStream(r.ctx(), &pb.RangeRequest{Key: []byte("a"), Revision: 2})
	if err != nil {
		t.Fatal(err)
	}
	m, err := st.Recv()
	if err != nil || m.RangeResponse.Header.Revision != 3 || string(m.RangeResponse.Kvs[0].Value) != "1" {
		t.Errorf("%v %v, want revision 3 and the old value", m, err)
	}
}

func TestLease_RPCs(t *testing.T) {
	r := newRig(t, Config{})
	g, err := r.lease.LeaseGrant(r.ctx(), &pb.LeaseGrantRequest{TTL: 100})
	if err != nil || g.ID <= 0 || g.TTL != 100 {
		t.Fatalf("grant: %v %v", g, err)
	}
	if _, err := r.lease.LeaseGrant(r.ctx(), &pb.LeaseGrantRequest{TTL: 100, ID: g.ID}); status.Convert(err).Message() != status.Convert(rpctypes.ErrGRPCLeaseExist).Message() {
		t.Errorf("again: %v", err)
	}
	if _, err := r.kv.Put(r.ctx(), &pb.PutRequest{Key: []byte("a"), Lease: g.ID}); err != nil {
		t.Fatal(err)
	}
	ka, err := r.lease.LeaseKeepAlive(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []int64{g.ID, 12345, g.ID} {
		if err := ka.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []int64{100, 0, 100} {
		if m, err := ka.Recv(); err != nil || m.TTL != want {
			t.Errorf("keep-alive: %v %v, want %d", m, err, want)
		}
	}
	ttl, err := r.lease.LeaseTimeToLive(r.ctx(), &pb.LeaseTimeToLiveRequest{ID: g.ID, Keys: true})
	if err != nil || ttl.GrantedTTL != 100 || ttl.TTL < 90 || len(ttl.Keys) != 1 {
		t.Errorf("time to live: %v %v", ttl, err)
	}
	if l, err := r.lease.LeaseLeases(r.ctx(), &pb.LeaseLeasesRequest{}); err != nil || len(l.Leases) != 1 || l.Leases[0].ID != g.ID {
		t.Errorf("leases: %v %v", l, err)
	}
	if v, err := r.lease.LeaseRevoke(r.ctx(), &pb.LeaseRevokeRequest{ID: g.ID}); err != nil || v.Header.Revision != 3 {
		t.Errorf("revoke: %v %v", v, err)
	}
	if a, err := r.kv.Range(r.ctx(), &pb.RangeRequest{Key: []byte("a")}); err != nil || a.Count != 0 {
		t.Errorf("key: %v %v", a, err)
	}
	if m, err := r.lease.LeaseTimeToLive(r.ctx(), &pb.LeaseTimeToLiveRequest{ID: g.ID}); err != nil || m.TTL != -1 {
		t.Errorf("gone: %v %v", m, err)
	}
}

func TestMaintenance_Truthful(t *testing.T) {
	r := newRig(t, Config{Info: func(shard.ID) Info { return Info{Commit: 9, Applied: 8, DiskBytes: 7} }})
	m := pb.NewMaintenanceClient(r.conn)
	if h, err := m.HashKV(r.ctx(), &pb.HashKVRequest{}); err != nil || h.Hash == 0 {
		t.Errorf("hash of no keys: %v %v", h, err)
	}
	if d, err := m.Defragment(r.ctx(), &pb.DefragmentRequest{}); err != nil || d.Header != nil {
		t.Errorf("defragment: %v %v", d, err)
	}
	r.put("a", "1")
	st, err := m.Status(r.ctx(), &pb.StatusRequest{})
	if err != nil || st.Version != Version || st.Leader != st.Header.MemberId || st.RaftIndex != 9 || st.RaftAppliedIndex != 8 || st.DbSize != 7 {
		t.Errorf("status: %v %v", st, err)
	}
	h1, err1 := m.HashKV(r.ctx(), &pb.HashKVRequest{Revision: 2})
	r.put("a", "2")
	h2, err2 := m.HashKV(r.ctx(), &pb.HashKVRequest{Revision: 2})
	if err1 != nil || err2 != nil || h1.Hash != h2.Hash || h2.HashRevision != 2 || h2.CompactRevision != -1 {
		t.Errorf("hash of a revision: %v %v, then %v %v", h1, err1, h2, err2)
	}
	if h3, err := m.HashKV(r.ctx(), &pb.HashKVRequest{}); err != nil || h3.Hash == h2.Hash {
		t.Errorf("hash of another: %v %v", h3, err)
	}
	if a, err := m.Alarm(r.ctx(), &pb.AlarmRequest{}); err != nil || len(a.Alarms) != 0 {
		t.Errorf("alarms: %v %v", a, err)
	}
	if l, err := pb.NewClusterClient(r.conn).MemberList(r.ctx(), &pb.MemberListRequest{Linearizable: true}); err != nil || len(l.Members) != 1 || l.Members[0].ID != st.Leader {
		t.Errorf("members: %v %v", l, err)
	}
	if a, err := pb.NewAuthClient(r.conn).AuthStatus(r.ctx(), &pb.AuthStatusRequest{}); err != nil || a.Enabled {
		t.Errorf("auth: %v %v", a, err)
	}
}

// What etcd 3.7 answers, but for the sums, which are of another kind.
func TestHashKV_Revisions(t *testing.T) {
	r := newRig(t, Config{})
	m := pb.NewMaintenanceClient(r.conn)
	hash := func(rev int64) (string, uint32) {
		h, err := m.HashKV(r.ctx(), &pb.HashKVRequest{Revision: rev})
		if err != nil {
			return err.Error(), 0
		}
		return fmt.Sprintf("at %d of %d, compacted %d", h.HashRevision, h.Header.Revision, h.CompactRevision), h.Hash
	}
	compacted, future := rpctypes.ErrGRPCCompacted.Error(), rpctypes.ErrGRPCFutureRev.Error()
	check := func(now string, want map[int64]string) {
		t.Helper()
		for rev, want := range want {
			if got, _ := hash(rev); got != want {
				t.Errorf("%s: at %d: got %s, want %s", now, rev, got, want)
			}
		}
	}
	check("new", map[int64]string{
		math.MinInt64: "at -9223372036854775808 of 1, compacted -1", -1: "at -1 of 1, compacted -1", 0: "at 1 of 1, compacted -1", 1: "at 1 of 1, compacted -1", 2: future, math.MaxInt64: future,
	})
	_, none := hash(0)
	for range 5 {
		r.put("a", "1")
	}
	before := map[int64]uint32{}
	for rev := int64(4); rev <= 6; rev++ {
		_, before[rev] = hash(rev)
	}
	if _, err := r.kv.Compact(r.ctx(), &pb.CompactionRequest{Revision: 4, Physical: true}); err != nil {
		t.Fatal(err)
	}
	check("compacted", map[int64]string{
		-1: "at -1 of 6, compacted 4", 0: "at 6 of 6, compacted 4", 1: compacted, 3: compacted, 4: "at 4 of 6, compacted 4", 6: "at 6 of 6, compacted 4", 7: future,
	})
	for rev, want := range before {
		if _, got := hash(rev); got != want || got == none {
			t.Errorf("the sum at %d was %d and is %d, that of no keys %d", rev, want, got, none)
		}
	}
	if _, got := hash(-1); got != none {
		t.Errorf("at -1: got %d, want the sum of no keys, %d", got, none)
	}
}

func TestLeaderRequired(t *testing.T) {
	r := newRig(t, Config{})
	ctx := metadata.AppendToOutgoingContext(r.ctx(), rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	w := r.watching(ctx)
	w.create(&pb.WatchCreateRequest{Key: []byte("a")})
	w.want("0@1 created")
	// A client that has nothing to renew at the moment must not stay with a node that could not.
	renewals, err := r.lease.LeaseKeepAlive(ctx)
	if err == nil {
		err = renewals.Send(&pb.LeaseKeepAliveRequest{ID: 1})
	}
	if err != nil {
		t.Fatal(err)
	}
	if m, err := renewals.Recv(); err != nil || m.TTL != 0 {
		t.Fatalf("renewal of no lease: %v %v", m, err)
	}
	r.shard.SetTopology(func(t *shard.Topology) {
		t.Shards = []shard.ShardInfo{t.Shards[0]}
		t.Shards[0].Leader = 0
	})
	if _, err := renewals.Recv(); status.Convert(err).Message() != status.Convert(rpctypes.ErrGRPCNoLeader).Message() {
		t.Errorf("renewals: %v", err)
	}
	if _, err := w.s.Recv(); status.Convert(err).Message() != status.Convert(rpctypes.ErrGRPCNoLeader).Message() {
		t.Errorf("stream: %v", err)
	}
	if _, err := r.kv.Put(ctx, &pb.PutRequest{Key: []byte("a")}); status.Convert(err).Message() != status.Convert(rpctypes.ErrGRPCNoLeader).Message() {
		t.Errorf("put: %v", err)
	}
}

// rebuilt is a cluster whose leader can be written to, and this node's replica not be read.
type rebuilt struct{ shard.Client }

func (c rebuilt) Query(ctx context.Context, r shard.Route, at shard.Consistency, q shard.Command) ([]byte, error) {
	if q.Module == shard.ModuleKV && at.Stale {
		return nil, errs.New(errs.Unavailable, "the replica is being rebuilt")
	}
	return c.Client.Query(ctx, r, at, q)
}

// What was done is not said to be not done because something that comes after it fails.
func TestWrites_DoneAreNotCalledFailed(t *testing.T) {
	r := newRigOver(t, Config{}, func(c shard.Client) shard.Client { return rebuilt{c} })
	r.put("a", "1")
	if _, err := pb.NewAuthClient(r.conn).RoleAdd(r.ctx(), &pb.AuthRoleAddRequest{Name: "r"}); err != nil {
		t.Errorf("role: %v", err)
	}
	_, err := r.kv.Compact(r.ctx(), &pb.CompactionRequest{Revision: 2, Physical: true})
	if status.Convert(err).Message() != status.Convert(rpctypes.ErrGRPCTimeout).Message() {
		t.Errorf("compaction: %v", err)
	}
}

func (r *rig) post(path, body string) (int, map[string]any) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.ctx(), http.MethodPost, "http://"+r.addr+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		r.t.Fatalf("%s: %s: %v", path, b, err)
	}
	return resp.StatusCode, m
}

func TestGateway(t *testing.T) {
	r := newRig(t, Config{})
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	if code, m := r.post("/v3/kv/put", fmt.Sprintf(`{"key":%q,"value":%q}`, b64("a"), b64("1"))); code != 200 || m["header"].(map[string]any)["revision"] != "2" {
		t.Errorf("put: %d %v", code, m)
	}
	code, m := r.post("/v3/kv/range", fmt.Sprintf(`{"key":%q}`, b64("a")))
	if code != 200 || m["count"] != "1" || m["kvs"].([]any)[0].(map[string]any)["mod_revision"] != "2" {
		t.Errorf("range: %d %v", code, m)
	}
	if code, m := r.post("/v3/kv/range", `{}`); code != 400 || m["message"] != "etcdserver: key is not provided" {
		t.Errorf("no key: %d %v", code, m)
	}
	if code, m := r.post("/v3/lease/grant", `{"TTL":"10"}`); code != 200 || m["TTL"] != "10" {
		t.Errorf("lease: %d %v", code, m)
	}
	code, m = r.post("/v3/lock/lock", fmt.Sprintf(`{"name":%q}`, b64("l")))
	if code != 200 || m["key"] == "" || m["header"] == nil {
		t.Errorf("lock: %d %v", code, m)
	}
	if code, m := r.post("/v3/lock/unlock", fmt.Sprintf(`{"key":%q}`, m["key"])); code != 200 {
		t.Errorf("unlock: %d %v", code, m)
	}
	if code, m := r.post("/v3/election/leader", fmt.Sprintf(`{"name":%q}`, b64("e"))); code != 500 || m["message"] != "election: no leader" {
		t.Errorf("election: %d %v", code, m)
	}
	if code, m := r.post("/v3/lock/lock", `{"name":7}`); code != 400 {
		t.Errorf("no lock: %d %v", code, m)
	}
	// A watch is a stream of lines.
	ctx, cancel := context.WithCancel(r.ctx())
	defer cancel()
	body := fmt.Sprintf(`{"create_request":{"key":%q,"start_revision":"2"}}`, b64("a"))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.addr+"/v3/watch", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // a stream that never ends
	d := json.NewDecoder(resp.Body)
	for i := range 3 {
		if i == 2 {
			// The request's body has ended long ago; the watch has not.
			r.put("a", "again")
		}
		var m struct {
			Result struct {
				Created bool
				Events  []any
			}
		}
		if err := d.Decode(&m); err != nil || m.Result.Created != (i == 0) || len(m.Result.Events) != min(i, 1) {
			t.Errorf("watch: %+v %v", m, err)
		}
	}
	get := func(path string) (int, string) {
		req, err := http.NewRequestWithContext(r.ctx(), http.MethodGet, "http://"+r.addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close() //nolint:errcheck // read to the end
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	for path, want := range map[string]string{
		"/version": `"etcdserver":"` + Version + `"`, "/health": `"health":"true"`, "/readyz": "ok", "/livez": "ok", "/health?serializable=true": `"health":"true"`,
		"/livez?verbose": "[+]serializable_read ok\nok\n", "/readyz/linearizable_read?verbose": "[+]linearizable_read ok\nok\n",
		"/readyz?verbose&exclude=data_corruption&exclude=non_learner": "[+]serializable_read ok\n[+]linearizable_read ok\nok\n",
	} {
		if code, b := get(path); code != 200 || !strings.Contains(b, want) {
			t.Errorf("%s: %d %s", path, code, b)
		}
	}
	r.shard.Refuse(errs.New(errs.Unavailable, "down"))
	defer r.shard.Refuse(nil)
	if code, b := get("/health"); code != 503 || !strings.Contains(b, `"health":"false"`) {
		t.Errorf("sick: %d %s", code, b)
	}
}

// A node that has lost its leader says so as etcd does.
func TestReadyz_LeaderLost(t *testing.T) {
	r := newRig(t, Config{})
	get := func() string {
		rec := httptest.NewRecorder()
		r.s.http.Handler.ServeHTTP(rec, httptest.NewRequestWithContext(r.ctx(), http.MethodGet, "/readyz?verbose", nil))
		return rec.Body.String()
	}
	for ctx := r.ctx(); !r.s.led.Load(); {
		if ctx.Err() != nil {
			t.Fatal("the leader was not noticed")
		}
		time.Sleep(leaderCheck / 10)
	}
	if got := get(); !strings.Contains(got, "[+]linearizable_read ok") {
		t.Errorf("with a leader: %s", got)
	}
	r.shard.SetTopology(func(t *shard.Topology) {
		t.Shards = []shard.ShardInfo{t.Shards[0]}
		t.Shards[0].Leader = 0
	})
	if got := get(); !strings.Contains(got, "[-]linearizable_read failed: etcdserver: leader changed\n") {
		t.Errorf("without: %s", got)
	}
}

// What is no etcd client gets an answer or a closed connection, and others are served meanwhile.
func TestBadInput(t *testing.T) {
	r := newRig(t, Config{HelloTimeout: 200 * time.Millisecond})
	dial := func() net.Conn {
		var d net.Dialer
		c, err := d.DialContext(r.ctx(), "tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	quiet := dial()
	for _, in := range [][]byte{
		[]byte("*1\r\n$4\r\nPING\r\n"), {0x16, 3, 1, 0, 200, 1}, []byte("GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
		[]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + strings.Repeat("\xff", 100)), bytes.Repeat([]byte("A"), 1<<20),
	} {
		c := dial()
		// The other side may close while this is written.
		_, _ = c.Write(in)
		b, err := io.ReadAll(c)
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			t.Errorf("%.20q: after a minute the connection is still open, with %.60q", in, b)
		}
	}
	// The client says hello late, too, where the machine is busy, and then tries again.
	if _, err := r.kv.Put(r.ctx(), &pb.PutRequest{Key: []byte("a")}, grpc.WaitForReady(true)); err != nil {
		t.Errorf("put: %v", err)
	}
	if b, err := io.ReadAll(quiet); err != nil || len(b) > 0 {
		t.Errorf("a connection that says nothing: %q %v", b, err)
	}
}

func TestMemberList_NamesThatWereGiven(t *testing.T) {
	r := newRig(t, Config{Members: map[shard.NodeID]Member{1: {Name: "infra1", PeerURL: "http://127.0.0.1:2380"}}})
	l, err := pb.NewClusterClient(r.conn).MemberList(r.ctx(), &pb.MemberListRequest{})
	if err != nil || len(l.Members) != 1 || l.Members[0].Name != "infra1" || len(l.Members[0].PeerURLs) != 1 || l.Members[0].PeerURLs[0] != "http://127.0.0.1:2380" {
		t.Errorf("members: %v %v", l, err)
	}
}

func TestRange_LargeAnswersAreBoundedTogether(t *testing.T) {
	answers := kv.NewBudget(8 << 20)
	r := newRig(t, Config{Answers: answers})
	for i := range 6 {
		r.put(fmt.Sprintf("large/%d", i), strings.Repeat("x", 1<<20))
	}
	all := &pb.RangeRequest{Key: []byte("large/"), RangeEnd: []byte("large0")}
	txn := &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: all}}}}
	unread := func() bool { return answers.Used() == 0 }
	// A call whose answer is not fetched has not ended.
	slow, fetched := context.WithCancel(r.ctx())
	if got, err := (kvServer{s: r.s}).Range(slow, all); err != nil || got.Count != 6 {
		t.Fatalf("range: %d keys, %v", got.GetCount(), err)
	}
	large := grpc.MaxCallRecvMsgSize(16 << 20)
	if _, err := r.kv.Range(r.ctx(), all, large); !same(err, rpctypes.ErrGRPCRequestTooManyRequests) {
		t.Errorf("a second large range: %v", err)
	}
	if _, err := r.kv.Txn(r.ctx(), txn, large); !same(err, rpctypes.ErrGRPCRequestTooManyRequests) {
		t.Errorf("a transaction that reads as much: %v", err)
	}
	s, err := r.kv.RangeStream(r.ctx(), all, large)
	if err == nil {
		_, err = s.Recv()
	}
	if !same(err, rpctypes.ErrGRPCRequestTooManyRequests) {
		t.Errorf("a stream that reads as much: %v", err)
	}
	if _, err := r.kv.Range(r.ctx(), &pb.RangeRequest{Key: []byte("large/0")}, large); err != nil {
		t.Errorf("one key: %v", err)
	}
	fetched()
	await(t, "the first answer is let go of", unread)
	for range 3 {
		if got, err := r.kv.Range(r.ctx(), all, large); err != nil || got.Count != 6 {
			t.Errorf("range: %d keys, %v", got.GetCount(), err)
		}
		await(t, "an answer that was fetched is let go of", unread)
		if _, err := r.kv.Txn(r.ctx(), txn, large); err != nil {
			t.Errorf("transaction: %v", err)
		}
		await(t, "the answer of a transaction is let go of", unread)
	}
	resp, err := http.Post("http://"+r.addr+"/v3/kv/range", "application/json", strings.NewReader(`{"key": "bGFyZ2Uv", "range_end": "bGFyZ2Uw"}`))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("over JSON: %v %v", resp, err)
	}
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n < 6<<20 {
		t.Errorf("over JSON: %d bytes, %v", n, err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
	await(t, "the answer over JSON is let go of", unread)
}

// What a client over JSON does not fetch counts as well: the call behind it has ended by then.
func TestRange_LargeAnswersOverJSONCountUntilTheyAreFetched(t *testing.T) {
	answers := kv.NewBudget(20 << 20)
	r := newRig(t, Config{Answers: answers})
	for i := range 16 {
		r.put(fmt.Sprintf("large/%d", i), strings.Repeat("x", 1<<20))
	}
	nc, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close() //nolint:errcheck // it is to break
	body := `{"key": "bGFyZ2Uv", "range_end": "bGFyZ2Uw"}`
	if _, err := fmt.Fprintf(nc, "POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
		t.Fatal(err)
	}
	// The answer has begun, and is more than connections hold.
	if _, err := io.ReadFull(nc, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		_, err := r.kv.Range(r.ctx(), &pb.RangeRequest{Key: []byte("large/"), RangeEnd: []byte("large0")}, grpc.MaxCallRecvMsgSize(32<<20))
		if !same(err, rpctypes.ErrGRPCRequestTooManyRequests) {
			t.Fatalf("a second large range: %v", err)
		}
	}
	_ = nc.Close()
	await(t, "an answer whose client is gone is let go of", func() bool { return answers.Used() == 0 })
}

// await waits until something is so.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not so after a minute: %s", what)
		}
	}
}
