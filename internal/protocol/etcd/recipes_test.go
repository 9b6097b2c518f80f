package etcd

import (
	"encoding/base64"
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// There is no empty key in etcd: it cannot be read, watched or deleted by its name.
func TestElection_LeaderWithoutAKey(t *testing.T) {
	r := newRig(t, Config{})
	for _, method := range []string{"proclaim", "resign"} {
		for _, leader := range []string{`{}`, fmt.Sprintf(`{"name":%q,"lease":"5"}`, b64("e"))} {
			code, m := r.post("/v3/election/"+method, fmt.Sprintf(`{"leader":%s}`, leader))
			if want := rpctypes.ErrorDesc(rpctypes.ErrGRPCEmptyKey); code == 200 || m["message"] != want {
				t.Errorf("%s of %s: %d %v, want %q", method, leader, code, m, want)
			}
		}
	}
	st, err := r.s.status(r.ctx(), false)
	if err != nil || st.Revision != 1 {
		t.Errorf("something was written: revision %d, %v", st.Revision, err)
	}
}

// A candidate that comes again with its lease leads with the value that it has now, be it none.
func TestElection_CampaignTakesAValueBack(t *testing.T) {
	r := newRig(t, Config{})
	if _, err := pb.NewLeaseClient(r.conn).LeaseGrant(r.ctx(), &pb.LeaseGrantRequest{TTL: 60, ID: 5}); err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"", "v1", "", "v2"} {
		if code, m := r.post("/v3/election/campaign", fmt.Sprintf(`{"name":%q,"lease":"5","value":%q}`, b64("e"), b64(value))); code != 200 {
			t.Fatalf("campaign: %d %v", code, m)
		}
		code, m := r.post("/v3/election/leader", fmt.Sprintf(`{"name":%q}`, b64("e")))
		if l, ok := m["kv"].(map[string]any); !ok || code != 200 || l["value"] != b64(value) && (value != "" || l["value"] != nil) {
			t.Errorf("campaign with %q: %d %v", value, code, m)
		}
	}
}
