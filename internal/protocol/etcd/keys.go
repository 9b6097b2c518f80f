package etcd

import (
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
)

// kvServer serves Range, Put, DeleteRange, Txn, Compact and RangeStream.
type kvServer struct {
	pb.UnimplementedKVServer
	s *Server
}

// Range implements pb.KVServer.
func (k kvServer) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	a, err := k.s.read(ctx, toRange(r), r.Serializable)
	if err == nil {
		err = k.s.hold(ctx, &a)
	}
	if err != nil {
		return nil, err
	}
	resp := fromRange(&a)
	resp.Header = k.s.header(a.Revision)
	return resp, nil
}

// Put implements pb.KVServer.
func (k kvServer) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := checkPut(r); err != nil {
		return nil, err
	}
	a, err := k.write(ctx, r, toPut(r))
	if err != nil {
		return nil, err
	}
	resp := fromPut(&a)
	resp.Header = k.s.header(a.Revision)
	return resp, nil
}

// DeleteRange implements pb.KVServer.
func (k kvServer) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if len(r.Key) == 0 {
		return nil, rpctypes.ErrGRPCEmptyKey
	}
	a, err := k.write(ctx, r, toDelete(r))
	if err != nil {
		return nil, err
	}
	resp := fromDelete(&a)
	resp.Header = k.s.header(a.Revision)
	return resp, nil
}

// Txn implements pb.KVServer.
func (k kvServer) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := checkTxn(r, k.s.cfg.TxnOpsMax, 0); err != nil {
		return nil, err
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		if _, _, err := overlaps(ops); err != nil {
			return nil, err
		}
	}
	var a kv.Answer
	var err error
	if op := toTxn(r); kv.ReadOnly(op) {
		if a, err = k.s.read(ctx, op, serializable(r)); err == nil {
			err = k.s.hold(ctx, &a)
		}
	} else if a, err = k.write(ctx, r, op); err == nil && !a.Succeeded && underToken(op) {
		k.s.m.fenced.Inc()
	}
	if err != nil {
		return nil, err
	}
	resp := fromTxn(&a)
	resp.Header = k.s.header(a.Revision)
	return resp, nil
}

// underToken says whether a transaction writes under a fencing token: on condition that a key has a creation revision.
func underToken(t *kv.Txn) bool {
	return !kv.ReadOnly(&kv.Txn{Then: t.Then}) && slices.ContainsFunc(t.If, func(c kv.Compare) bool {
		return c.Target == kv.CreateRevision && c.Relation == kv.Equal && c.Number > 0
	})
}

// serializable says whether a transaction reads, and all its reads may be stale.
func serializable(r *pb.TxnRequest) bool {
	if len(r.Success)+len(r.Failure) == 0 {
		return false
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, o := range ops {
			if q := o.GetRequestRange(); q == nil || !q.Serializable {
				return false
			}
		}
	}
	return true
}

// Compact implements pb.KVServer.
func (k kvServer) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	b, err := k.s.submit(ctx, kv.EncodeCompact(r.Revision))
	if err != nil {
		return nil, err
	}
	rev, err := kv.DecodeRevision(b)
	if err != nil {
		return nil, toGRPC(ctx, err)
	}
	if r.Physical {
		if err := k.s.removed(ctx, r.Revision); err != nil {
			// The compaction is in force, and will be done.
			return nil, toGRPC(ctx, errs.Wrap(errs.OutcomeUnknown, err, "wait for the compaction"))
		}
	}
	return &pb.CompactionResponse{Header: k.s.header(rev)}, nil
}

// removed waits until the history before a revision is gone from this node.
func (s *Server) removed(ctx context.Context, rev int64) error {
	at, _, err := s.where()
	if err != nil {
		return err
	}
	w := s.client.Watch(routeOf(at), kv.RemovedSpan())
	defer w.Close()
	for {
		st, err := s.status(ctx, true)
		if err != nil || st.Removed >= rev {
			return err
		}
		select {
		case <-w.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
}

// rangeStreamKeys is how many keys one message of a RangeStream holds.
const rangeStreamKeys = 1000

// RangeStream implements pb.KVServer: a Range in parts, all of the same revision.
func (k kvServer) RangeStream(r *pb.RangeRequest, out grpc.ServerStreamingServer[pb.RangeStreamResponse]) error {
	if err := checkRange(r); err != nil {
		return err
	}
	switch {
	case r.SortOrder != pb.RangeRequest_NONE && (r.SortTarget != pb.RangeRequest_KEY || r.SortOrder != pb.RangeRequest_ASCEND):
		return status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	case r.MinModRevision|r.MaxModRevision|r.MinCreateRevision|r.MaxCreateRevision != 0:
		return status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
	}
	ctx := out.Context()
	part := toRange(r)
	// The next part begins behind the last key, so that parts are in the order of keys whatever the target: as in etcd, it sorts within a
	// part.
	by := part.Target
	part.Target, part.KeysOnly = kv.ByKey, part.KeysOnly && by != kv.ByValue
	left, count, stale := r.Limit, int64(0), r.Serializable
	// rev is the newest revision when the stream began, whatever revision was asked for.
	rev := int64(0)
	for {
		if part.Limit = rangeStreamKeys; left > 0 {
			part.Limit = min(part.Limit, left)
		}
		a, err := k.s.read(ctx, part, stale)
		if err != nil {
			return err
		}
		if rev == 0 {
			// What follows is of the same revision, which this node has.
			rev, stale = a.Revision, true
			if part.Revision <= 0 {
				part.Revision = rev
			}
		}
		if count == 0 {
			count = a.Count
		}
		n := int64(len(a.KVs))
		if n > 0 {
			part.Key = append(append([]byte(nil), a.KVs[n-1].Key...), 0)
		}
		if by != kv.ByKey {
			kv.Sort(a.KVs, by, kv.Ascending)
		}
		if r.KeysOnly && !part.KeysOnly {
			for i := range a.KVs {
				a.KVs[i].Value = nil
			}
		}
		last := !a.More || left > 0 && left == n
		resp := &pb.RangeResponse{Kvs: fromKVs(a.KVs)}
		if last {
			resp.Header, resp.Count, resp.More = k.s.header(rev), count, a.More
		}
		give, err := k.s.take(ctx, &a)
		if err != nil {
			return err
		}
		err = out.Send(&pb.RangeStreamResponse{RangeResponse: resp})
		give()
		if err != nil || last {
			return err
		}
		left = max(left-n, 0)
	}
}

// read runs an operation that only reads.
func (s *Server) read(ctx context.Context, o kv.Op, stale bool) (kv.Answer, error) {
	b, err := s.look(ctx, shard.Consistency{Stale: stale}, request{op: o}.guarded)
	if err != nil {
		return kv.Answer{}, toGRPC(ctx, err)
	}
	a, err := kv.DecodeAnswer(b)
	return a, toGRPC(ctx, err)
}

// hold counts what was read until the call has ended: its client may take its time to fetch the answer. It refuses what is one too many.
func (s *Server) hold(ctx context.Context, a *kv.Answer) error {
	give, err := s.take(ctx, a)
	if err == nil {
		context.AfterFunc(ctx, give)
	}
	return err
}

// take counts what was read, if it is much, until give is called.
func (s *Server) take(ctx context.Context, a *kv.Answer) (give func(), err error) {
	n := sizeOf(a)
	if n < kv.LargeBytes {
		return func() {}, nil
	}
	return func() { s.cfg.Answers.Give(n) }, toGRPC(ctx, s.cfg.Answers.Take(n))
}

func sizeOf(a *kv.Answer) (n int64) {
	for i := range a.KVs {
		n += int64(len(a.KVs[i].Key) + len(a.KVs[i].Value))
	}
	for i := range a.Answers {
		n += sizeOf(&a.Answers[i])
	}
	return n
}

// readOp is read for the server itself, with kv's own errors.
func (s *Server) readOp(ctx context.Context, o kv.Op, stale bool) (kv.Answer, error) {
	b, err := s.ask(ctx, kv.EncodeOp(o), stale)
	if err != nil {
		return kv.Answer{}, err
	}
	return kv.DecodeAnswer(b)
}

// write runs an operation that came as message m.
func (k kvServer) write(ctx context.Context, m proto.Message, o kv.Op) (kv.Answer, error) {
	if proto.Size(m) > k.s.cfg.RequestBytesMax {
		return kv.Answer{}, rpctypes.ErrGRPCRequestTooLarge
	}
	res := k.s.run(ctx, request{op: o}.guarded)
	if res.Err != nil {
		return kv.Answer{}, toGRPC(ctx, res.Err)
	}
	a, err := kv.DecodeAnswer(res.Data)
	return a, toGRPC(ctx, err)
}

func checkRange(r *pb.RangeRequest) error {
	if r == nil || len(r.Key) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	if r.SortOrder < 0 || r.SortOrder > pb.RangeRequest_DESCEND || r.SortTarget < 0 || r.SortTarget > pb.RangeRequest_VALUE {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	return nil
}

func checkPut(r *pb.PutRequest) error {
	switch {
	case r == nil || len(r.Key) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.IgnoreValue && len(r.Value) != 0:
		return rpctypes.ErrGRPCValueProvided
	case r.IgnoreLease && r.Lease != 0:
		return rpctypes.ErrGRPCLeaseProvided
	}
	return nil
}

func checkTxn(r *pb.TxnRequest, opsMax, depth int) error {
	if r == nil {
		return rpctypes.ErrGRPCKeyNotFound
	}
	n := max(len(r.Compare), len(r.Success), len(r.Failure))
	if n > opsMax || depth > kv.DepthMax-2 {
		return rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.Compare {
		if len(c.Key) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
		if c.Target < 0 || c.Target > pb.Compare_LEASE || c.Result < 0 || c.Result > pb.Compare_NOT_EQUAL {
			return status.Errorf(codes.InvalidArgument, "etcdserver: unknown comparison: target %d, result %d", c.Target, c.Result)
		}
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, o := range ops {
			var err error
			switch o := o.GetRequest().(type) {
			case *pb.RequestOp_RequestRange:
				err = checkRange(o.RequestRange)
			case *pb.RequestOp_RequestPut:
				err = checkPut(o.RequestPut)
			case *pb.RequestOp_RequestDeleteRange:
				if o.RequestDeleteRange == nil || len(o.RequestDeleteRange.Key) == 0 {
					err = rpctypes.ErrGRPCEmptyKey
				}
			case *pb.RequestOp_RequestTxn:
				err = checkTxn(o.RequestTxn, opsMax-n, depth+1)
			default:
				err = rpctypes.ErrGRPCKeyNotFound
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// overlaps refuses what would change a key twice, as far as that can be seen without looking at the keys. It returns the keys that ops
// put and the ranges that they delete.
func overlaps(ops []*pb.RequestOp) (puts map[string]bool, dels []*pb.DeleteRangeRequest, err error) {
	puts = map[string]bool{}
	for _, o := range ops {
		if d := o.GetRequestDeleteRange(); d != nil {
			dels = append(dels, d)
		}
	}
	own := len(dels)
	add := func(k string) error {
		if puts[k] {
			return rpctypes.ErrGRPCDuplicateKey
		}
		for _, d := range dels[:own] {
			if kv.Contains(d.Key, d.RangeEnd, []byte(k)) {
				return rpctypes.ErrGRPCDuplicateKey
			}
		}
		puts[k] = true
		return nil
	}
	for _, o := range ops {
		t := o.GetRequestTxn()
		if t == nil {
			continue
		}
		// Only one of the two happens, so that both may put a key.
		both := map[string]bool{}
		var below []*pb.DeleteRangeRequest
		for _, ops := range [][]*pb.RequestOp{t.Success, t.Failure} {
			p, d, err := overlaps(ops)
			if err != nil {
				return nil, nil, err
			}
			for k := range p {
				both[k] = true
			}
			below = append(below, d...)
		}
		for k := range both {
			if err := add(k); err != nil {
				return nil, nil, err
			}
		}
		dels = append(dels, below...)
		own = len(dels)
	}
	for _, o := range ops {
		if p := o.GetRequestPut(); p != nil {
			if err := add(string(p.Key)); err != nil {
				return nil, nil, err
			}
		}
	}
	return puts, dels, nil
}

func toRange(r *pb.RangeRequest) *kv.Range {
	return &kv.Range{
		Key: r.Key, End: r.RangeEnd, Limit: r.Limit, Revision: r.Revision, Target: kv.SortTarget(r.SortTarget), Order: sortOrder(r.SortOrder),
		KeysOnly: r.KeysOnly, CountOnly: r.CountOnly, MinMod: r.MinModRevision, MaxMod: r.MaxModRevision,
		MinCreate: r.MinCreateRevision, MaxCreate: r.MaxCreateRevision,
	}
}

func sortOrder(o pb.RangeRequest_SortOrder) kv.SortOrder {
	switch o {
	case pb.RangeRequest_ASCEND:
		return kv.Ascending
	case pb.RangeRequest_DESCEND:
		return kv.Descending
	}
	return kv.Unsorted
}

func toPut(r *pb.PutRequest) *kv.Put {
	return &kv.Put{Key: r.Key, Value: r.Value, Lease: r.Lease, WantPrev: r.PrevKv, KeepValue: r.IgnoreValue, KeepLease: r.IgnoreLease}
}

func toDelete(r *pb.DeleteRangeRequest) *kv.Delete {
	return &kv.Delete{Key: r.Key, End: r.RangeEnd, WantPrev: r.PrevKv}
}

func toTxn(r *pb.TxnRequest) *kv.Txn {
	t := &kv.Txn{Then: toOps(r.Success), Else: toOps(r.Failure)}
	if len(r.Compare) > 0 {
		t.If = make([]kv.Compare, len(r.Compare))
	}
	for i, c := range r.Compare {
		to := &t.If[i]
		*to = kv.Compare{Key: c.Key, End: c.RangeEnd, Relation: relation(c.Result), Target: kv.CompareTarget(c.Target)}
		switch c.Target {
		case pb.Compare_VERSION:
			to.Number = c.GetVersion()
		case pb.Compare_CREATE:
			to.Number = c.GetCreateRevision()
		case pb.Compare_MOD:
			to.Number = c.GetModRevision()
		case pb.Compare_LEASE:
			to.Number = c.GetLease()
		case pb.Compare_VALUE:
			to.Value = c.GetValue()
		}
	}
	return t
}

func relation(r pb.Compare_CompareResult) kv.Relation {
	switch r {
	case pb.Compare_GREATER:
		return kv.Greater
	case pb.Compare_LESS:
		return kv.Less
	case pb.Compare_NOT_EQUAL:
		return kv.NotEqual
	}
	return kv.Equal
}

func toOps(ops []*pb.RequestOp) []kv.Op {
	var out []kv.Op
	for _, o := range ops {
		switch o := o.Request.(type) {
		case *pb.RequestOp_RequestRange:
			out = append(out, toRange(o.RequestRange))
		case *pb.RequestOp_RequestPut:
			out = append(out, toPut(o.RequestPut))
		case *pb.RequestOp_RequestDeleteRange:
			out = append(out, toDelete(o.RequestDeleteRange))
		case *pb.RequestOp_RequestTxn:
			out = append(out, toTxn(o.RequestTxn))
		}
	}
	return out
}

func fromRange(a *kv.Answer) *pb.RangeResponse {
	return &pb.RangeResponse{Kvs: fromKVs(a.KVs), More: a.More, Count: a.Count}
}

func fromPut(a *kv.Answer) *pb.PutResponse {
	resp := &pb.PutResponse{}
	if len(a.KVs) > 0 {
		resp.PrevKv = fromKV(&a.KVs[0])
	}
	return resp
}

func fromDelete(a *kv.Answer) *pb.DeleteRangeResponse {
	return &pb.DeleteRangeResponse{Deleted: a.Count, PrevKvs: fromKVs(a.KVs)}
}

func fromTxn(a *kv.Answer) *pb.TxnResponse {
	resp := &pb.TxnResponse{Succeeded: a.Succeeded}
	for i := range a.Answers {
		a := &a.Answers[i]
		o := &pb.ResponseOp{}
		h := &pb.ResponseHeader{Revision: a.Revision}
		switch a.Op {
		case kv.OpRange:
			r := fromRange(a)
			r.Header = h
			o.Response = &pb.ResponseOp_ResponseRange{ResponseRange: r}
		case kv.OpPut:
			r := fromPut(a)
			r.Header = h
			o.Response = &pb.ResponseOp_ResponsePut{ResponsePut: r}
		case kv.OpDelete:
			r := fromDelete(a)
			r.Header = h
			o.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: r}
		case kv.OpTxn:
			r := fromTxn(a)
			r.Header = &pb.ResponseHeader{}
			o.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: r}
		}
		resp.Responses = append(resp.Responses, o)
	}
	return resp
}

func fromKVs(kvs []kv.KeyValue) []*mvccpb.KeyValue {
	if len(kvs) == 0 {
		return nil
	}
	all := make([]mvccpb.KeyValue, len(kvs))
	out := make([]*mvccpb.KeyValue, len(kvs))
	for i := range kvs {
		fill(&all[i], &kvs[i])
		out[i] = &all[i]
	}
	return out
}

func fromKV(k *kv.KeyValue) *mvccpb.KeyValue {
	to := &mvccpb.KeyValue{}
	fill(to, k)
	return to
}

func fill(to *mvccpb.KeyValue, k *kv.KeyValue) {
	to.Key, to.CreateRevision, to.ModRevision, to.Version, to.Lease = k.Key, k.Create, k.Mod, k.Version, k.Lease
	if len(k.Value) > 0 {
		to.Value = k.Value
	}
}
