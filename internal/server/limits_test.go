package server

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The largest request that may be configured fits into an entry of the raft log; one above what is configured is refused.
func TestEtcdLimits_AreWhatIsConfigured(t *testing.T) {
	s := startTLS(t, Config{
		Listen: Listen{Etcd: "127.0.0.1:0"}, EtcdRequestBytesMax: requestBytesLimit, EtcdTxnOpsMax: 2,
	}, slog.New(slog.DiscardHandler))
	post := func(path, body string) (int, string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.Addr().Etcd+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
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
