package server

import (
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
)

// The largest request that may be configured fits into an entry of the raft log; one above what is configured is refused.
func TestEtcdLimits_AreWhatIsConfigured(t *testing.T) {
	s := startTLS(t, Config{
		Listen: Listen{Etcd: "127.0.0.1:0"}, EtcdRequestBytesMax: requestBytesLimit, EtcdTxnOpsMax: 2,
	}, slog.New(slog.DiscardHandler))
	post := func(path, body string) (int, string) { return postJSON(t, s, path, "", body) }
	value := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	if code, b := post("/v3/kv/put", fmt.Sprintf(`{"key":"YQ==","value":%q}`, value(requestBytesLimit-100))); code != http.StatusOK {
		t.Errorf("the largest: %d %.300s", code, b)
	}
	if code, b := post("/v3/kv/put", fmt.Sprintf(`{"key":"YQ==","value":%q}`, value(requestBytesLimit+1))); code == http.StatusOK || !strings.Contains(b, "too large") {
		t.Errorf("one that is larger: %d %.300s", code, b)
	}
	ops := func(n int) string {
		return `{"success":[` + strings.TrimSuffix(strings.Repeat(`{"requestRange":{"key":"YQ==","countOnly":true}},`, n), ",") + `]}`
	}
	if code, b := post("/v3/kv/txn", ops(2)); code != http.StatusOK {
		t.Errorf("two operations: %d %.300s", code, b)
	}
	if code, b := post("/v3/kv/txn", ops(3)); code == http.StatusOK || !strings.Contains(b, "too many operations") {
		t.Errorf("three operations: %d %.300s", code, b)
	}
}
