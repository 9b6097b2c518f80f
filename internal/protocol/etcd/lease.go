package etcd

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/coord"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
)

// leaseServer serves leases.
type leaseServer struct {
	pb.UnimplementedLeaseServer
	s *Server
}

// LeaseGrant implements pb.LeaseServer.
func (l leaseServer) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	id := r.ID
	if id == 0 {
		id = coord.NewLease()
	}
	b, err := l.s.submit(ctx, kv.EncodeGrant(id, r.TTL))
	if err != nil {
		return nil, err
	}
	t, err := kv.DecodeTTL(b)
	if err != nil {
		return nil, toGRPC(ctx, err)
	}
	return &pb.LeaseGrantResponse{Header: l.s.header(t.Revision), ID: id, TTL: t.TTL}, nil
}

// LeaseRevoke implements pb.LeaseServer.
func (l leaseServer) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	b, err := l.s.submit(ctx, kv.EncodeRevoke(r.ID))
	if err != nil {
		return nil, err
	}
	rev, err := kv.DecodeRevision(b)
	if err != nil {
		return nil, toGRPC(ctx, err)
	}
	return &pb.LeaseRevokeResponse{Header: l.s.header(rev)}, nil
}

// LeaseTimeToLive implements pb.LeaseServer.
func (l leaseServer) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	b, err := l.s.query(ctx, kv.EncodeTimeToLive(r.ID, l.s.client.Now().UnixMilli(), r.Keys), false)
	if err != nil {
		return nil, err
	}
	t, err := kv.DecodeTTL(b)
	if err != nil {
		return nil, toGRPC(ctx, err)
	}
	return &pb.LeaseTimeToLiveResponse{Header: l.s.header(t.Revision), ID: r.ID, TTL: t.TTL, GrantedTTL: t.Granted, Keys: t.Keys}, nil
}

// LeaseLeases implements pb.LeaseServer.
func (l leaseServer) LeaseLeases(ctx context.Context, _ *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	b, err := l.s.query(ctx, kv.EncodeLeases(), false)
	if err != nil {
		return nil, err
	}
	rev, leases, err := kv.DecodeLeases(b)
	if err != nil {
		return nil, toGRPC(ctx, err)
	}
	resp := &pb.LeaseLeasesResponse{Header: l.s.header(rev)}
	for _, l := range leases {
		resp.Leases = append(resp.Leases, &pb.LeaseStatus{ID: l.ID})
	}
	return resp, nil
}

// renewalsMax is how many renewals of one stream may be under way.
const renewalsMax = 1024

// LeaseKeepAlive implements pb.LeaseServer. Renewals of a stream are under way together and answered in order.
func (l leaseServer) LeaseKeepAlive(stream grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) error {
	type renewal struct {
		id int64
		f  *shard.Future
	}
	ctx := stream.Context()
	who, err := callerOf(ctx)
	if err != nil {
		return toGRPC(ctx, err)
	}
	open := make(chan renewal, renewalsMax)
	ended := make(chan error, 1)
	go func() {
		defer close(open)
		for {
			r, err := stream.Recv()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					ended <- err
				}
				return
			}
			at, _, err := l.s.where()
			if err != nil {
				ended <- toGRPC(ctx, err)
				return
			}
			f := l.s.client.Submit(ctx, routeOf(at), request{raw: kv.EncodeKeepAlive(r.ID)}.guarded(who))
			select {
			case open <- renewal{r.ID, f}:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		var r renewal
		var more bool
		select {
		case r, more = <-open:
		case <-ctx.Done():
			return toGRPC(ctx, ctx.Err())
		case <-l.s.ctx.Done():
			return rpctypes.ErrGRPCStopped
		}
		if !more {
			break
		}
		res := r.f.Wait(ctx)
		if errors.Is(res.Err, auth.ErrUserEmpty) {
			// This node may not have heard yet that it must look who asks.
			res = l.s.run(ctx, request{raw: kv.EncodeKeepAlive(r.id)}.guarded)
		}
		if res.Err != nil {
			return toGRPC(ctx, res.Err)
		}
		t, err := kv.DecodeTTL(res.Data)
		if err != nil {
			return toGRPC(ctx, err)
		}
		if err := stream.Send(&pb.LeaseKeepAliveResponse{Header: l.s.header(t.Revision), ID: r.id, TTL: t.TTL}); err != nil {
			return err
		}
	}
	select {
	case err := <-ended:
		return err
	default:
		return nil
	}
}

func routeOf(at shard.ShardInfo) shard.Route { return shard.Route{Shard: at.ID} }
