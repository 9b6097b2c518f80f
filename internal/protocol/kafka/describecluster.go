package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// DescribeCluster (key 60)
//
// Behaviour: the cluster's name, the brokers whose address is known, and the controller.
//
// Versions: 0 to 2.
//
// Not supported: authorized operations; controllers as endpoints (KIP-919) are refused.

func (s *Server) describeCluster(_ context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.DescribeClusterRequest)
	resp := req.ResponseKind().(*kmsg.DescribeClusterResponse)
	resp.ControllerID, resp.EndpointType = -1, req.EndpointType
	w, err := s.world()
	if err != nil {
		resp.ErrorCode, resp.ErrorMessage = codeOf(err, faceAdmin), text(err)
		return resp, nil
	}
	resp.ClusterID = w.topo.Cluster
	if req.Version >= 1 && req.EndpointType != 1 {
		msg := "only brokers (endpoint type 1) can be asked for"
		resp.ErrorCode, resp.ErrorMessage = codeInvalidRequest, &msg
		return resp, nil
	}
	resp.ControllerID = w.controller()
	for _, b := range w.brokers() {
		x := kmsg.NewDescribeClusterResponseBroker()
		x.NodeID, x.Host, x.Port = b.id, b.host, b.port
		resp.Brokers = append(resp.Brokers, x)
	}
	return resp, nil
}
