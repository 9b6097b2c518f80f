package drill

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/quorate/quorate/internal/errs"
)

// etcdNode speaks to the etcd port of one node, with etcd's own stubs and none of its client's retries, so that a drill knows what was
// asked of whom.
type etcdNode struct {
	pb.KVClient
	pb.LeaseClient
	pb.WatchClient
	conn *grpc.ClientConn
}

// etcds speaks to all nodes. Its methods may be called from any goroutine.
type etcds struct {
	nodes []*etcdNode
	turn  atomic.Uint32
}

// dialEtcd makes connections to all nodes.
func (c *Cluster) dialEtcd() (*etcds, error) {
	e := &etcds{}
	for _, p := range c.Nodes {
		conn, err := grpc.NewClient("passthrough:///"+p.Addr.Etcd, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second, Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}}),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
		if err != nil {
			e.close()
			return nil, errs.Wrap(errs.Internal, err, "dial etcd")
		}
		e.nodes = append(e.nodes, &etcdNode{pb.NewKVClient(conn), pb.NewLeaseClient(conn), pb.NewWatchClient(conn), conn})
	}
	return e, nil
}

func (e *etcds) close() {
	for _, n := range e.nodes {
		_ = n.conn.Close()
	}
}

// any returns another node with each call.
func (e *etcds) any() *etcdNode { return e.nodes[int(e.turn.Add(1))%len(e.nodes)] }

// attempt bounds one try of a request.
const attempt = 3 * time.Second

// try asks one node after the other until one answers, f included with what it says of the request itself. f must be safe to repeat.
func (e *etcds) try(ctx context.Context, f func(ctx context.Context, n *etcdNode) error) error {
	for {
		actx, cancel := context.WithTimeout(ctx, attempt)
		err := f(actx, e.any())
		cancel()
		switch status.Code(err) {
		case codes.OK, codes.InvalidArgument, codes.NotFound, codes.OutOfRange, codes.FailedPrecondition:
			return err
		}
		if !pause(ctx, 20*time.Millisecond) {
			return errs.Wrap(errs.Unavailable, err, "etcd request")
		}
	}
}

// contender is a key that holds a lock, or waits for it.
type contender struct {
	prefix, key string
	lease       int64
	// token is the key's creation revision.
	token int64
}

// contend makes a lease with a TTL in seconds, and the contender's key on it, as etcd's package concurrency does.
func (e *etcds) contend(ctx context.Context, name string, lease, ttl int64) (contender, error) {
	c := contender{prefix: name + "/", key: fmt.Sprintf("%s/%x", name, lease), lease: lease}
	err := e.try(ctx, func(ctx context.Context, n *etcdNode) error {
		_, err := n.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: lease, TTL: ttl})
		if rpctypes.ErrorDesc(err) == rpctypes.ErrorDesc(rpctypes.ErrGRPCLeaseExist) {
			return nil // An earlier try had done it.
		}
		return err
	})
	if err != nil {
		return c, err
	}
	return c, e.enter(ctx, &c)
}

// enter makes the key, unless it is there.
func (e *etcds) enter(ctx context.Context, c *contender) error {
	return e.try(ctx, func(ctx context.Context, n *etcdNode) error {
		r, err := n.Txn(ctx, &pb.TxnRequest{
			Compare: []*pb.Compare{created(c.key, 0)},
			Success: []*pb.RequestOp{putOp(&pb.PutRequest{Key: []byte(c.key), Lease: c.lease})},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(c.key)}}}},
		})
		if err != nil {
			return err
		}
		if c.token = r.Header.Revision; !r.Succeeded {
			c.token = r.Responses[0].GetResponseRange().Kvs[0].CreateRevision
		}
		return nil
	})
}

// before returns the contender that came right before this one, "" if there is none, and the revision of which that is true.
func (e *etcds) before(ctx context.Context, c contender) (key string, rev int64, err error) {
	err = e.try(ctx, func(ctx context.Context, n *etcdNode) error {
		r, err := n.Range(ctx, &pb.RangeRequest{
			Key: []byte(c.prefix), RangeEnd: prefixEnd(c.prefix), MaxCreateRevision: c.token - 1, Limit: 1, KeysOnly: true,
			SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_DESCEND,
		})
		if err != nil {
			return err
		}
		if key, rev = "", r.Header.Revision; len(r.Kvs) > 0 {
			key = string(r.Kvs[0].Key)
		}
		return nil
	})
	return key, rev, err
}

// renew gives a lease its TTL again. It returns the TTL, 0 if the lease is over.
func (e *etcds) renew(ctx context.Context, lease int64) (ttl int64, err error) {
	err = e.try(ctx, func(ctx context.Context, n *etcdNode) error {
		ttl, err = n.renew(ctx, lease)
		return err
	})
	return ttl, err
}

func (n *etcdNode) renew(ctx context.Context, lease int64) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := n.LeaseKeepAlive(ctx)
	if err == nil {
		err = s.Send(&pb.LeaseKeepAliveRequest{ID: lease})
	}
	if err != nil {
		return 0, err
	}
	r, err := s.Recv()
	if err != nil {
		return 0, err
	}
	return r.TTL, nil
}

// created is the condition that a key has a creation revision.
func created(key string, rev int64) *pb.Compare {
	return &pb.Compare{Key: []byte(key), Target: pb.Compare_CREATE, TargetUnion: &pb.Compare_CreateRevision{CreateRevision: rev}}
}

func putOp(p *pb.PutRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: p}}
}

func deleteOp(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key)}}}
}

// prefixEnd is the end of the keys that begin with a prefix, which ends in a letter or a slash.
func prefixEnd(prefix string) []byte {
	b := []byte(prefix)
	b[len(b)-1]++
	return b
}

// follow begins a watch on a stream of its own, which ends with ctx.
func (n *etcdNode) follow(ctx context.Context, c *pb.WatchCreateRequest) (pb.Watch_WatchClient, error) {
	w, err := n.Watch(ctx)
	if err == nil {
		err = w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: c}})
	}
	return w, err
}

// history returns what a key was, in order, up to a revision.
func (e *etcds) history(ctx context.Context, key string, until int64) (values []string, err error) {
	err = e.try(ctx, func(ctx context.Context, n *etcdNode) error {
		values = nil
		w, err := n.follow(ctx, &pb.WatchCreateRequest{Key: []byte(key), StartRevision: 1})
		for err == nil {
			var r *pb.WatchResponse
			if r, err = w.Recv(); err != nil {
				return err
			}
			for _, ev := range r.Events {
				values = append(values, string(ev.Kv.Value))
				if ev.Kv.ModRevision >= until {
					return nil
				}
			}
		}
		return err
	})
	return values, err
}

// stale says that an answer refuses a write for its fencing token.
func stale(err error) bool { return err != nil && strings.HasPrefix(err.Error(), "FENCED ") }
