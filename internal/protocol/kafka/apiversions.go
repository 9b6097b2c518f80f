package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// ApiVersions (key 18)
//
// Behaviour: announces the table in api.go. No features are announced: none is served, and those with a lowest version of
// 0 would break Java's admin client before version 4 (KIP-584).
//
// Versions: 0 to 4. Any other is answered in version 0 with UNSUPPORTED_VERSION (KIP-511); the header of the response is
// always version 0.
//
// Not supported: nothing.

func (s *Server) apiVersions(_ context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	resp := r.ResponseKind().(*kmsg.ApiVersionsResponse)
	for i := range s.table {
		a := &s.table[i]
		resp.ApiKeys = append(resp.ApiKeys, kmsg.ApiVersionsResponseApiKey{ApiKey: a.key, MinVersion: a.shown, MaxVersion: a.max})
	}
	return resp, nil
}
