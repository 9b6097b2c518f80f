package etcd

import (
	"context"
	"fmt"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorate/quorate/internal/auth"
	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
)

// refused answers what this build does not serve, by name.
func refused(method, why string) error {
	return status.Errorf(codes.Unimplemented, "quorate: %s is not served: %s", method, why)
}

// refuse says so to root; others may not even ask.
func (s *Server) refuse(ctx context.Context, method, why string) error {
	if err := s.allow(ctx, onlyRoot); isAuth(err) {
		return err
	}
	return refused(method, why)
}

// clusterServer answers questions about members from the topology.
type clusterServer struct {
	pb.UnimplementedClusterServer
	s *Server
}

// MemberList implements pb.ClusterServer.
func (c clusterServer) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	now, err := c.s.statusFor(ctx, !r.Linearizable)
	if err != nil && (r.Linearizable || isAuth(err)) {
		return nil, err
	}
	_, t, _ := c.s.where()
	resp := &pb.MemberListResponse{Header: c.s.header(now.Revision)}
	for _, n := range t.Nodes {
		m := &pb.Member{ID: memberID(t, n.ID), Name: fmt.Sprintf("node%d", n.ID)}
		if is, ok := c.s.cfg.Members[n.ID]; ok {
			m.Name = is.Name
			if is.PeerURL != "" {
				m.PeerURLs = []string{is.PeerURL}
			}
		}
		// A space without a port has the main one's addresses, and who follows a path stays below it; gRPC's clients do not look at that.
		addrs, path := n.Addr[AddrKey(c.s.cfg.Space)], ""
		if addrs == "" {
			if addrs = n.Addr["etcd"]; c.s.cfg.Path {
				path = "/" + spacesPrefix + c.s.cfg.Space
			}
		}
		m.ClientURLs = clientURLs(addrs, path, c.s.cfg.TLS)
		resp.Members = append(resp.Members, m)
	}
	return resp, nil
}

// clientURLs returns the addresses that a node advertises, with commas between, as URLs: host:port, unix:PATH or a URL. The name of a socket's file ends the URL.
func clientURLs(addrs, path string, secure bool) (out []string) {
	s := ""
	if secure {
		s = "s"
	}
	for u := range strings.SplitSeq(addrs, ",") {
		file, socket := strings.CutPrefix(u, env.SocketPrefix)
		switch {
		case u == "":
			continue
		case strings.Contains(u, "://"):
			socket = socket || strings.HasPrefix(u, "unixs://")
		case socket:
			u = "unix" + s + "://" + file
		default:
			u = "http" + s + "://" + u
		}
		if !socket {
			u += path
		}
		out = append(out, u)
	}
	return out
}

const (
	whyMembers     = "the members of a cluster are fixed by its configuration"
	whyNoAlarms    = "there are no space quotas, and damaged replicas repair themselves"
	whyNoDowngrade = "there is no etcd to go back to; its releases are not Quorate's"
)

// MemberAdd implements pb.ClusterServer.
func (c clusterServer) MemberAdd(ctx context.Context, _ *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	return nil, c.s.refuse(ctx, "MemberAdd", whyMembers)
}

// MemberRemove implements pb.ClusterServer.
func (c clusterServer) MemberRemove(ctx context.Context, _ *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	return nil, c.s.refuse(ctx, "MemberRemove", whyMembers)
}

// MemberUpdate implements pb.ClusterServer.
func (c clusterServer) MemberUpdate(ctx context.Context, _ *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	return nil, c.s.refuse(ctx, "MemberUpdate", whyMembers)
}

// MemberPromote implements pb.ClusterServer.
func (c clusterServer) MemberPromote(ctx context.Context, _ *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	return nil, c.s.refuse(ctx, "MemberPromote", whyMembers)
}

// maintenanceServer answers what operators ask.
type maintenanceServer struct {
	pb.UnimplementedMaintenanceServer
	s *Server
}

// Version is the release of etcd whose API this is: clients choose what they may ask for by it.
const Version = "3.7.3"

// storageVersion is what etcd calls the version of its files at that release.
const storageVersion = "3.7.0"

// Status implements pb.MaintenanceServer.
func (m maintenanceServer) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	now, err := m.s.statusFor(ctx, true)
	if err != nil {
		return nil, err
	}
	at, t, err := m.s.where()
	if err != nil {
		return nil, toGRPC(ctx, err)
	}
	resp := &pb.StatusResponse{
		Header: m.s.header(now.Revision), Version: Version, StorageVersion: storageVersion, Leader: memberID(t, at.Leader), RaftTerm: at.Term,
	}
	if f := m.s.cfg.Info; f != nil {
		i := f(at.ID)
		resp.RaftIndex, resp.RaftAppliedIndex, resp.DbSize, resp.DbSizeInUse = i.Commit, i.Applied, i.DiskBytes, i.DiskBytes
	}
	if at.Leader == 0 {
		resp.Errors = append(resp.Errors, "etcdserver: no leader")
	}
	return resp, nil
}

// Alarm implements pb.MaintenanceServer. There are no alarms: a full disk stops the node, and nothing else is a quota.
func (m maintenanceServer) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if r.Action == pb.AlarmRequest_ACTIVATE {
		return nil, m.s.refuse(ctx, "Alarm ACTIVATE", whyNoAlarms)
	}
	var more []auth.Use
	if r.Action != pb.AlarmRequest_GET {
		more = append(more, onlyRoot)
	}
	now, err := m.s.statusFor(ctx, true, more...)
	if err != nil {
		return nil, err
	}
	return &pb.AlarmResponse{Header: m.s.header(now.Revision)}, nil
}

// Defragment implements pb.MaintenanceServer. Space is reclaimed by merging tables, all the time.
func (m maintenanceServer) Defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	if _, err := m.s.statusFor(ctx, true, onlyRoot); err != nil {
		return nil, err
	}
	// As in etcd without a header: its JSON form is {}.
	return &pb.DefragmentResponse{}, nil
}

func (m maintenanceServer) hashAt(ctx context.Context, rev int64) (kv.Hash, error) {
	b, err := m.s.query(ctx, kv.EncodeHash(rev), true)
	if err != nil {
		return kv.Hash{}, err
	}
	h, err := kv.DecodeHash(b)
	return h, toGRPC(ctx, err)
}

// Hash implements pb.MaintenanceServer.
func (m maintenanceServer) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	h, err := m.hashAt(ctx, 0)
	if err != nil {
		return nil, err
	}
	return &pb.HashResponse{Header: m.s.header(h.Revision), Hash: h.Sum}, nil
}

// HashKV implements pb.MaintenanceServer.
func (m maintenanceServer) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	h, err := m.hashAt(ctx, r.Revision)
	if err != nil {
		return nil, err
	}
	compacted := h.Compacted
	if compacted == 0 {
		compacted = -1
	}
	return &pb.HashKVResponse{Header: m.s.header(h.Revision), Hash: h.Sum, CompactRevision: compacted, HashRevision: h.At}, nil
}

// MoveLeader implements pb.MaintenanceServer. As in etcd, the leader must be asked.
func (m maintenanceServer) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	now, err := m.s.statusFor(ctx, true, onlyRoot)
	if err != nil {
		return nil, err
	}
	at, t, err := m.s.where()
	if err != nil {
		return nil, toGRPC(ctx, err)
	}
	if at.Leader != t.Self || m.s.cfg.MoveLeader == nil {
		return nil, rpctypes.ErrGRPCNotLeader
	}
	i := slices.IndexFunc(t.Nodes, func(n shard.Node) bool { return memberID(t, n.ID) == r.TargetID })
	if i < 0 {
		return nil, rpctypes.ErrGRPCBadLeaderTransferee
	}
	if err := m.s.cfg.MoveLeader(ctx, at.ID, t.Nodes[i].ID); err != nil {
		return nil, toGRPC(ctx, err)
	}
	return &pb.MoveLeaderResponse{Header: m.s.header(now.Revision)}, nil
}

// Downgrade implements pb.MaintenanceServer.
func (m maintenanceServer) Downgrade(ctx context.Context, _ *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	return nil, m.s.refuse(ctx, "Downgrade", whyNoDowngrade)
}

// probeRange is the read that tells whether the key space can be read.
var probeRange = &kv.Range{Key: []byte("health"), CountOnly: true}
