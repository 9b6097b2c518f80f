package test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Programs that speak the JSON form of etcd's API, and what they send: Patroni (patroni/dcs/etcd3.py) and APISIX (lua-resty-etcd). Neither
// closes its watches; their one request ends with the body.

// gateway is the JSON form of etcd's API on one node.
type gateway struct {
	t    *testing.T
	ctx  context.Context
	base string
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// open sends a request whose answer is read bit by bit.
func (g *gateway) open(method, path string, body any) (*http.Response, *json.Decoder) {
	g.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		g.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(g.ctx, method, g.base+path, bytes.NewReader(b))
	if err != nil {
		g.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp, json.NewDecoder(resp.Body)
}

// object is JSON as those programs look at it.
type object = map[string]any

// call sends a request and returns the status and what stands under the keys of a path in the answer.
func (g *gateway) call(path string, body any, at ...any) (int, any) {
	g.t.Helper()
	resp, d := g.open(http.MethodPost, path, body)
	var v any
	if err := d.Decode(&v); err != nil {
		g.t.Fatalf("%s: %v", path, err)
	}
	return resp.StatusCode, dig(v, at...)
}

func dig(v any, at ...any) any {
	for _, k := range at {
		switch k := k.(type) {
		case string:
			m, _ := v.(object)
			v = m[k]
		case int:
			l, _ := v.([]any)
			if k >= len(l) {
				return nil
			}
			v = l[k]
		}
	}
	return v
}

// want fails unless an answer is 200 and has a value, by its text.
func (g *gateway) want(want string, path string, body any, at ...any) string {
	g.t.Helper()
	code, v := g.call(path, body, at...)
	if got := fmt.Sprint(v); code != http.StatusOK || want != "" && got != want {
		g.t.Errorf("%s %v: %d, %v is %v, want %s", path, body, code, at, got, want)
	}
	return fmt.Sprint(v)
}

func TestGateway_Patroni(t *testing.T) {
	c := shared(t, 1)
	g := &gateway{t, within(t), "http://" + c.nodes[0].etcd}
	// It takes /v3 if the cluster is new enough, and finds the other nodes.
	_, d := g.open(http.MethodGet, "/version", nil)
	var version struct{ Etcdserver, Etcdcluster string }
	if err := d.Decode(&version); err != nil || !strings.HasPrefix(version.Etcdcluster, "3.7") || !strings.HasPrefix(version.Etcdserver, "3.7") {
		t.Errorf("version: %+v %v", version, err)
	}
	for i := range c.nodes {
		if url := g.want("", "/v3/cluster/member/list", object{}, "members", i, "clientURLs", 0); !strings.HasPrefix(url, "http://127.0.0.1:") {
			t.Errorf("member %d has %s", i, url)
		}
	}
	// The leader's key, with a lease, if nobody has it.
	const leader, config = "/service/batman/leader", "/service/batman/config"
	lease := g.want("", "/v3/lease/grant", object{"TTL": 30}, "ID")
	take := object{
		"compare": []any{object{"target": "CREATE", "create_revision": 0, "key": b64(leader)}},
		"success": []any{object{"request_put": object{"key": b64(leader), "value": b64("pg0"), "lease": lease}}},
	}
	g.want("true", "/v3/kv/txn", take, "succeeded")
	g.want("<nil>", "/v3/kv/txn", take, "succeeded")
	g.want("30", "/v3/lease/keepalive", object{"ID": lease}, "result", "TTL")
	g.want("<nil>", "/v3/lease/keepalive", object{"ID": "123456"}, "result", "TTL")
	// All of the cluster at once, as this node sees it.
	all := object{"key": b64("/service/batman/"), "range_end": b64("/service/batman0"), "serializable": true}
	eventually(t, "the node knows the leader", func() (bool, string) {
		_, v := g.call("/v3/kv/range", all, "kvs", 0, "lease")
		return v == lease, fmt.Sprint(v)
	})
	rev := g.want("", "/v3/kv/put", object{"key": b64(config), "value": b64("{}")}, "header", "revision")
	// A change that somebody overtook, and one that nobody did.
	change := func(mod string) object {
		return object{
			"compare": []any{object{"target": "MOD", "mod_revision": mod, "key": b64(config)}},
			"success": []any{object{"request_put": object{"key": b64(config), "value": b64("{1}")}}},
		}
	}
	g.want("<nil>", "/v3/kv/txn", change("1"), "succeeded")
	g.want("true", "/v3/kv/txn", change(rev), "succeeded")

	// It waits in a watch from the revision behind its last read.
	now := g.want("", "/v3/kv/range", all, "header", "revision")
	from, err := strconv.Atoi(now)
	if err != nil {
		t.Fatal(err)
	}
	_, events := g.open(http.MethodPost, "/v3/watch", object{"create_request": object{
		"key": b64("/service/batman/"), "range_end": b64("/service/batman0"), "start_revision": strconv.Itoa(from + 1), "filters": []any{},
	}})
	next := func() any {
		var v any
		if err := events.Decode(&v); err != nil {
			t.Fatalf("watch: %v", err)
		}
		return v
	}
	if v := next(); dig(v, "result", "created") != true {
		t.Errorf("watch: %v", v)
	}
	g.want("1", "/v3/kv/deleterange", object{"key": b64(leader)}, "deleted")
	if v := next(); dig(v, "result", "events", 0, "type") != "DELETE" || dig(v, "result", "events", 0, "kv", "key") != b64(leader) {
		t.Errorf("watch: %v", v)
	}
	if code, v := g.call("/v3/kv/put", object{"key": b64(leader), "value": b64("x"), "lease": "123456"}, "message"); code != 404 || v != "etcdserver: requested lease not found" {
		t.Errorf("a lease that is not there: %d %v", code, v)
	}
	g.want("", "/v3/lease/revoke", object{"ID": lease})
}

func TestGateway_APISIX(t *testing.T) {
	c := shared(t, 1)
	g := &gateway{t, within(t), "http://" + c.nodes[1].etcd}
	const route = "/apisix/routes/1"
	dir := object{"key": b64("/apisix/routes/"), "range_end": b64("/apisix/routes0")}
	g.want("", "/v3/kv/put", object{"key": b64("/apisix/routes/"), "value": b64("init_dir")})
	now := g.want("", "/v3/kv/range", dir, "header", "revision")
	from, err := strconv.Atoi(now)
	if err != nil {
		t.Fatal(err)
	}
	_, events := g.open(http.MethodPost, "/v3/watch", object{"create_request": object{
		"key": dir["key"], "range_end": dir["range_end"], "start_revision": from + 1, "prev_kv": true, "progress_notify": false, "watch_id": 7,
	}})
	var v any
	if err := events.Decode(&v); err != nil || dig(v, "result", "created") != true || dig(v, "result", "watch_id") != "7" {
		t.Fatalf("watch: %v %v", v, err)
	}
	// The admin API writes a route, and a gateway hears of it.
	put := object{"key": b64(route), "value": b64(`{"uri":"/hello"}`), "prev_kv": true}
	g.want("<nil>", "/v3/kv/put", put, "prev_kv")
	put["value"] = b64(`{"uri":"/bye"}`)
	g.want(b64(`{"uri":"/hello"}`), "/v3/kv/put", put, "prev_kv", "value")
	g.want("1", "/v3/kv/deleterange", object{"key": b64(route), "prev_kv": true}, "deleted")
	var said []string
	for len(said) < 3 {
		if err := events.Decode(&v); err != nil {
			t.Fatalf("watch: %v", err)
		}
		list, _ := dig(v, "result", "events").([]any)
		for _, e := range list {
			said = append(said, fmt.Sprint(dig(e, "type"), " ", dig(e, "prev_kv", "version")))
		}
	}
	// PUT is the zero value, which JSON leaves out.
	if got := strings.Join(said, ", "); got != "<nil> <nil>, <nil> 1, DELETE 2" {
		t.Errorf("events: %s", got)
	}
}

// Traefik reads everything below its prefix, with etcd's Go client, whenever a watch of it says that something changed.
func TestGateway_Traefik(t *testing.T) {
	c := shared(t, 1)
	ctx := within(t)
	e := etcdClient(t, c.etcdAddrs()...)
	const root = "traefik"
	watch := e.Watch(clientv3.WithRequireLeader(ctx), root, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if r := <-watch; !r.Created || r.Err() != nil {
		t.Fatalf("watch: %v %v", r, r.Err())
	}
	if _, err := e.Put(ctx, root+"/http/routers/r0/rule", "Host(`a`)"); err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-watch:
		if r.Err() != nil || len(r.Events) != 1 {
			t.Errorf("watch: %v %v", r, r.Err())
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no event")
	}
	list, err := e.Get(ctx, root, clientv3.WithPrefix())
	if err != nil || list.Count != 1 || string(list.Kvs[0].Value) != "Host(`a`)" {
		t.Errorf("list: %v %v", list, err)
	}
}
