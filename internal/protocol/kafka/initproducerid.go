package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/eventlog"
)

// InitProducerId (key 22)
//
// Behaviour: hands out an id that no other producer of the space gets, with epoch 0. An id that the client already has is
// not looked at: without a transactional id, Kafka too gives a new one.
//
// Versions: 0 to 5.
//
// Not supported: transactional ids; they are refused with TRANSACTIONAL_ID_AUTHORIZATION_FAILED, which stops the client.

func (s *Server) initProducerID(ctx context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.InitProducerIDRequest)
	resp := req.ResponseKind().(*kmsg.InitProducerIDResponse)
	resp.ProducerID, resp.ProducerEpoch = -1, -1
	if req.TransactionalID != nil {
		s.log.Info("transactional producer refused: transactions are not supported")
		resp.ErrorCode = codeTransactionalIDAuthFailed
		return resp, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	w, err := s.world()
	if err == nil {
		r := s.topics.submit(ctx, w.space.Shards[0], eventlog.EncodeInitProducer())
		if err = r.Err; err == nil {
			resp.ProducerID, err = eventlog.DecodeProducer(r.Data)
			resp.ProducerEpoch = 0
		}
	}
	if err != nil {
		// A lost id is no harm: the client asks for another one.
		resp.ProducerID, resp.ProducerEpoch = -1, -1
		resp.ErrorCode, resp.ThrottleMillis = codeOf(err, faceGroup), throttle(err)
		if resp.ErrorCode == codeCoordinatorNotAvailable {
			// Upon that one Java's producer looks for the coordinator of its transactional id, which it has not; upon this one it asks
			// again (TransactionManager.InitProducerIdHandler).
			resp.ErrorCode = codeCoordinatorLoadInProgress
		}
	}
	return resp, nil
}
