package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
)

func TestReadConfig_NamesWhatIsWrong(t *testing.T) {
	f := func(yaml, want string) {
		t.Helper()
		name := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(name, []byte(yaml), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := ReadConfig(t.Context(), name)
		if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", yaml, err, want)
		}
	}
	f("nodde: 1", "line 1: there is no key nodde; there are cluster, node, data,")
	f("'-': {1: a}", "there is no key -;")
	f("listen: {redys: a}", "there is no key listen.redys; there are peer, redis,")
	f("spaces: {a: {pat: true}}", "there is no key spaces.a.pat")
	f("cluster: x\nnode: one", `line 2: node is "one"; it must be a whole number, not negative`)
	f("node: -1", `node is "-1"`)
	f("node: 1.5", `node is "1.5"`)
	f("node: 99999999999", `node is "99999999999"`)
	f("node: 1\nnode: 2", "line 2: node stands there twice")
	f("data: [d]", "data is a list; it must be a text")
	f("insecure: maybe", `insecure is "maybe"; it must be true or false`)
	f("etcd_progress_interval: 5", `etcd_progress_interval is "5"; it must be a time with its unit`)
	f("etcd_request_bytes_max: 1k", `etcd_request_bytes_max is "1k"`)
	f("listen: 5", `listen is "5"; it has keys: peer, redis`)
	f("peers: ['a:1']", "peers is a list")
	f("peers: {a: 'a:1'}", `a name in peers is "a"`)
	f("tls: {etcd: {client_names: x}}", `tls.etcd.client_names is "x"; it is a list`)
	f("- a", "the file is a list; it has keys: cluster")
	f("listen: &l {redis: '127.0.0.1:1', <<: *l}", "listen merges what is merged itself; write it out")
	f("listen: &l {redis: '127.0.0.1:1', <<: [*l]}", "listen merges what is merged itself; write it out")
	f("tls: {etcd: &t {certt: c}, kafka: {<<: *t}}", "there is no key tls.etcd.certt")
	f("tls: {etcd: {<<: {certt: c}}}", "there is no key tls.etcd.certt")
	f("tls: {etcd: {<<: [{certt: c}]}}", "there is no key tls.etcd.certt")
	f("tls: {etcd: {client_names: [[a]]}}", "tls.etcd.client_names is a list; it must be a text")
	f("listen: {redis: 'unix:/r'}", "listen.redis is \"unix:/r\"; its clients are told an address")
	f("listen: {kafka: 'unix:/k'}", "listen.kafka is \"unix:/k\"; its clients are told an address")
	f("listen: {redis: 'somewhere:1'}", "insecure")
	f("etcd_compaction: {revisions: 1, period: 1s}", "set one of them")
	f("etcd_compaction: {period: 999ms}", "between 1s and a year")
	f("node: [", "did not find expected node content")
	f("node: 2", "no port is set")
	f("", "no port is set")
	f("listen: {http: 'unix:x', redis: '127.0.0.1:x'}", `listen.redis is "127.0.0.1:x"; write host:port`)
	f("listen: {redis: '127.0.0.1:70000'}", `listen.redis is "127.0.0.1:70000"; write host:port`)
	f("listen: {redis: '127.0.0.1:1'}\nadvertise: {redis: foo}", `advertise.redis is "foo"; write host:port`)
	f("listen: {kafka: '0.0.0.0:1'}\ninsecure: true\nadvertise: {kafka: '0.0.0.0:1'}", "which clients cannot connect to")
	f("listen: {redis: '127.0.0.1:'}", `listen.redis is "127.0.0.1:"; write host:port`)
	f("listen: {redis: '127.0.0.1:1'}\nadvertise: {redis: 'a:0'}", `advertise.redis is "a:0"; write host:port`)
	f("listen: {redis: '127.0.0.1:1'}\nadvertise: {kafka: 'a:1'}", `advertise.kafka is "a:1", and nobody listens there; set listen.kafka`)
	f("data: d\npeers: {1: '127.0.0.1:1', 2: '127.0.0.1:0', 3: '127.0.0.1:3'}", `peers.2 is "127.0.0.1:0"; write host:port`)
	f("listen: {etcd: '127.0.0.1:1'}\ntls: {etcd: {auto: true}}\nspaces: {a: {tls_names: ['']}}", "tls_names has an empty name")
	f("listen: {etcd: '127.0.0.1:1'}\ntls: {etcd: {auto: true}}\nspaces: {a: {tls_names: [x.example]}, b: {tls_names: [X.example]}}", `tls name "X.example" is that of space a`)
	for told, want := range map[string]string{
		"0.0.0.0:1": "which clients cannot connect to", "http://[::]:1": "which clients cannot connect to", "a:1,0.0.0.0:1": "which clients cannot connect to",
		"a": "write host:port", "http://a": "write host:port", "a:0": "write host:port", "a:1,": "write host:port or a URL", "a:1, b:1": "write host:port or a URL",
		"ftp://a:1": "write host:port or a URL", "unix:": "write host:port or a URL", "unix://": "write host:port or a URL",
	} {
		f("listen: {etcd: '127.0.0.1:1'}\nadvertise: {etcd: '"+told+"'}", "advertise.etcd is \""+told+"\"")
		f("listen: {etcd: '127.0.0.1:1'}\nadvertise: {etcd: '"+told+"'}", want)
	}
	f("listen: {redis: '127.0.0.1:1'}\nadvertise: {etcd: 'a:1'}", `advertise.etcd is "a:1", and nobody listens there; set listen.etcd`)
	f("spaces: {a: {etcd: '127.0.0.1:1', advertise_etcd: '0.0.0.0:1'}}", `spaces.a.advertise_etcd is "0.0.0.0:1", which clients`)
	f("listen: {etcd: '127.0.0.1:1'}\nspaces: {a: {path: true, advertise_etcd: 'a:1'}}", "set spaces.a.etcd")
	f("listen: {kafka: '127.0.0.1:1'}\nadvertise: {peer: '10.0.0.1:1'}", "advertise.peer is")
	f("peers: {1: a:1, 2: b:1}", "must have 1, 3 or 5")
	f("node: 4\npeers: {1: a:1, 2: b:1, 3: c:1}", "does not list this node")
	f("node: 1\npeers: {1: '127.0.0.1:1', 2: '127.0.0.1:2', 3: '127.0.0.1:3'}", "needs data")
	f("node: 1\n---\nnode: 2", "second document")
	f("data: d\npeers: {1: '127.0.0.1:1', 2: '127.0.0.1', 3: '127.0.0.1:3'}", `peers.2 is "127.0.0.1"; write host:port`)
	f("data: d\npeers: {1: '127.0.0.1:1', 2: '127.0.0.1:2', 3: ''}", `peers.3 is ""; write host:port`)
	f("data: d\npeers: {1: '127.0.0.1:1', 2: '127.0.0.1:70000', 3: '127.0.0.1:3'}", `peers.2 is "127.0.0.1:70000"`)
	f("data: d\npeers: {1: '127.0.0.1:1', 2: '127.0.0.1:2', 3: '127.0.0.1:2'}", "peers has 127.0.0.1:2 for nodes 2 and 3")
	f("listen: {redis: '127.0.0.1:1', kafka: '127.0.0.1:1'}", "listen.redis and listen.kafka are both 127.0.0.1:1")
	f("cluster: "+strings.Repeat("c", 1025), "cluster has 1025 bytes; it must have at most 1024")
	f("cluster: \"a\\nb\"", `cluster is "a\nb"; it must have no control characters`)
	f("cluster: "+strings.Repeat("c", 1024), "no port is set")
	f("node: 65536", "between 1 and 65535")
	f("node: 1\ndata: d\npeers: {0: '127.0.0.1:1', 1: '127.0.0.1:2', 2: '127.0.0.1:3'}", "peers lists node 0; node numbers are between 1 and 65535")
	f("node: 1\ndata: d\npeers: {1: '127.0.0.1:1', 2: '127.0.0.1:2', 65536: '127.0.0.1:3'}", "peers lists node 65536")
	f("listen: {redis: '0.0.0.0:1'}", "advertise.redis")
	f("listen: {redis: '10.0.0.1:1'}", "insecure")
	f("listen: {redis: '127.0.0.1'}", "host:port")
	f("tls: {redis: {cert: c}}", "tls.redis: cert and key")
	f("data: d\npeers: {1: '127.0.0.1:1', 2: '127.0.0.1:2', 3: '127.0.0.1:3'}\ntls: {peer: {cert: c, key: k}}", "tls.peer: client_ca")
	f("tls: {peer: {cert: c, key: k, dial_cert: d}}", "tls.peer: dial_cert and dial_key")
	f("tls: {etcd: {cert: c, key: k, dial_cert: d, dial_key: e}}", "tls.etcd: dial_cert is for calls to other nodes")
	f("listen: {redis: 'unix:x'}", "its clients are told an address")
	f("listen: {etcd: 'unix:'}", "write unix:PATH")
	f("listen_more: [{port: redis, address: '127.0.0.1:1'}]", `listen_more, entry 1: port is "redis"`)
	f("listen_more: [{port: etcd}]", "address is missing")
	f("listen_more: [{port: etcd, address: '127.0.0.1:1', serve: all}]", `serve is "all"; it is grpc, http or metrics`)
	f("listen: {peer: '127.0.0.1:1'}\nlisten_more: [{port: peer, address: '127.0.0.1:2', serve: grpc}]", "only for port etcd")
	f("listen_more: [{port: peer, address: '127.0.0.1:2'}]", "a single node needs no peer port")
	f("listen_more: [{port: etcd, address: '127.0.0.1:1', tls: some}]", `tls is "some"; it is optional or none`)
	f("listen_more: [{port: etcd, address: '127.0.0.1:1', tls: optional}]", "set tls.etcd")
	f("listen: {peer: '127.0.0.1:1'}\nlisten_more: [{port: peer, address: '127.0.0.1:2', tls: none}]", "all of them alike")
	f("listen_more: [{port: etcd, address: '127.0.0.1'}]", "listen_more, entry 1, is")
	f("listen_more: [{port: etcd, address: '0.0.0.0:1'}]", "set advertise.etcd")
	f("tls: {etcd: {cert: c, key: k, client_ca: a}}\nlisten_more: [{port: etcd, address: '10.0.0.1:1', tls: optional}]", "checks nobody")
	f("tls: {etcd: {cert: c, key: k, client_names: [a]}}", "needs client_ca")
	f("tls: {kafka: {auto: true, client_ca: c}}", "tls.kafka: auto")
	f("listen: {etcd: '10.0.0.1:1'}\ntls: {etcd: {auto: true}}", "tls.etcd.client_ca")
	f("shards: 20000", "between 1 and")
	f("etcd_progress_interval: -1s", "etcd_progress_interval is -1s; it must be at least 100ms")
	f("etcd_progress_interval: 99ms", "etcd_progress_interval is 99ms; it must be at least 100ms")
	f("sandbox: {no_fsync: true}", "sandbox.enabled")
	f("etcd_auth: {bcrypt_cost: 3}", "between 4 and 31")
	f("etcd_auth: {token_ttl: -1}", "etcd_auth.token_ttl")
	f("etcd_slow_request: -1s", "etcd_slow_request is -1s")
	f("etcd_request_bytes_max: 20000000", "between 1 and 10485760")
	f("etcd_txn_ops_max: -1", "between 1 and 10000")
	f("etcd_compaction: {period: 10ms}", "between 1s and a year")
	f("etcd_compaction: {revisions: -1}", "etcd_compaction.revisions is -1")
	f("etcd_compaction: {revisions: 1, period: 1h}", "set one of them")
	f("etcd_auth: {jwt: {key: k}}", "there is no key etcd_auth.jwt.key; there are method,")
}

func TestStart_TokenKeysThatAreNone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("not PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, j := range map[string]EtcdJWT{
		"has keys and no method":                 {PrivateKey: file},
		"read a key of etcd_auth.jwt":            {Method: "RS256", PublicKey: file + "x"},
		"there is no key":                        {Method: "RS256"},
		"the public key is not one of RS256":     {Method: "RS256", PublicKey: file},
		`signing method "none" is not one of`:    {Method: "none", PrivateKey: file},
		"has 7 bytes; it needs 32":               {Method: "HS512", PrivateKey: file},
		"the private key is not one of ES256 in": {Method: "ES256", PrivateKey: file},
	} {
		_, err := Start(Config{EtcdAuth: EtcdAuth{JWT: j}}, "test", env.Real(), slog.New(slog.DiscardHandler))
		if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", j, err, want)
		}
	}
}

func TestReadConfig_Good(t *testing.T) {
	name := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(name, []byte("node: 2\ndata: d\nlisten: {redis: '127.0.0.1:0'}\npeers: {1: '127.0.0.1:1', 2: '127.0.0.1:2', 3: '127.0.0.1:3'}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := ReadConfig(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen.Peer != "127.0.0.1:2" || c.Shards != 1 || c.Cluster != "quorate" {
		t.Errorf("got %+v", c)
	}
}

func TestReadConfig_WhatEtcdsClientsAreTold(t *testing.T) {
	name := filepath.Join(t.TempDir(), "c.yaml")
	told := "a:1,[::1]:2379,http://b:1,https://c:1/,unix:/run/e.sock,unix:e.sock,unix:///run/e.sock,unixs://e.sock"
	if err := os.WriteFile(name, []byte("insecure: true\nlisten_more: [{port: etcd, address: '0.0.0.0:1'}]\nadvertise: {etcd: '"+told+"'}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if c, err := ReadConfig(t.Context(), name); err != nil || c.Advertise.Etcd != told {
		t.Errorf("got %+v, %v", c.Advertise, err)
	}
	// etcd takes a wildcard, and so does what stands in its place.
	c := Config{Listen: Listen{Etcd: "127.0.0.1:1"}, Advertise: Listen{Etcd: "0.0.0.0:1"}}
	if err := c.fill(); err != nil {
		t.Error(err)
	}
}

func TestReadConfig_AnchorsAndMerges(t *testing.T) {
	name := filepath.Join(t.TempDir(), "c.yaml")
	text := "tls:\n  etcd: &own {auto: true, min_version: '1.3'}\n  redis: {<<: *own, auto: true}\n  kafka: *own\nlisten: {redis: '127.0.0.1:0', http: ~}\n"
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := ReadConfig(t.Context(), name)
	if err != nil || c.TLS.Redis.MinVersion != "1.3" || !c.TLS.Kafka.Auto {
		t.Errorf("got %+v, %v", c.TLS, err)
	}
}

// Shells make pipes of <(...). One that nobody writes must not keep the process from its end.
func TestReadConfig_FromAPipe(t *testing.T) {
	written, silent := filepath.Join(t.TempDir(), "pipe"), filepath.Join(t.TempDir(), "pipe")
	if err := errors.Join(syscall.Mkfifo(written, 0o600), syscall.Mkfifo(silent, 0o600)); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() { wrote <- os.WriteFile(written, []byte("node: 7\nlisten: {redis: '127.0.0.1:0'}\n"), 0) }()
	if c, err := ReadConfig(t.Context(), written); err != nil || c.Node != 7 {
		t.Errorf("got %+v, %v", c, err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ReadConfig(ctx, silent); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := ReadSettings(ctx, silent); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// Whoever waits there yet goes on.
	if w, err := os.OpenFile(silent, os.O_RDWR, 0); err != nil || w.Close() != nil {
		t.Error(err)
	}
}

func TestReadConfig_LongFilesAreRefused(t *testing.T) {
	name := filepath.Join(t.TempDir(), "c.yaml")
	text := "node: 2\nlisten: {redis: '127.0.0.1:0'}\n#" + strings.Repeat("x", configBytesMax)
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, read := range []func() error{
		func() error { _, err := ReadConfig(t.Context(), name); return err },
		func() error { _, err := ReadSettings(t.Context(), name); return err },
	} {
		if err := read(); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "longer than 4 MiB") {
			t.Errorf("got %v", err)
		}
	}
	if err := os.Truncate(name, configBytesMax); err != nil {
		t.Fatal(err)
	}
	if c, err := ReadConfig(t.Context(), name); err != nil || c.Node != 2 {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestStart_OtherPeersAreRefused(t *testing.T) {
	start := func(cfg Config) error {
		s, err := Start(cfg, "test", env.Real(), slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		return s.Close()
	}
	alone := Config{Data: t.TempDir(), Node: 2, Listen: Listen{Redis: "127.0.0.1:0"}}
	if err := start(alone); err != nil {
		t.Fatal(err)
	}
	cfg := alone
	cfg.Listen.Peer, cfg.Peers = "127.0.0.1:0", map[uint32]string{1: "127.0.0.1:1", 2: "127.0.0.1:2", 3: "127.0.0.1:3"}
	if err := start(cfg); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "is of a cluster of the nodes 2, and the configuration says 1, 2, 3") {
		t.Errorf("got %v", err)
	}
	alone.Peers = map[uint32]string{2: "127.0.0.1:0"}
	if err := start(alone); err != nil {
		t.Error(err)
	}
	// Their addresses may change.
	cfg.Data = t.TempDir()
	if err := start(cfg); err != nil {
		t.Fatal(err)
	}
	cfg.Peers = map[uint32]string{1: "127.0.0.1:4", 2: "127.0.0.1:5", 3: "127.0.0.1:6"}
	if err := start(cfg); err != nil {
		t.Error(err)
	}
}

func TestReadConfig_LargestNodeNumber(t *testing.T) {
	c := Config{Node: 65535, Data: "d", Peers: map[uint32]string{1: "127.0.0.1:1", 2: "127.0.0.1:2", 65535: "127.0.0.1:3"}}
	if err := c.fill(); err != nil {
		t.Error(err)
	}
}

func TestRun_TakenPortNamesOwnerAndKey(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = Start(Config{Listen: Listen{Redis: ln.Addr().String()}}, "test", env.Real(), slog.New(slog.DiscardHandler))
	if !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "listen.redis") || !strings.Contains(err.Error(), "process") {
		t.Errorf("got %v", err)
	}
}

func TestRun_ReadyThenStops(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	dir := filepath.Join(t.TempDir(), "data")
	for range 2 {
		run, stop := context.WithCancel(ctx)
		was := false
		err := Run(run, Config{Data: dir, Listen: Listen{Redis: "127.0.0.1:0", Kafka: "127.0.0.1:0", HTTP: "127.0.0.1:0"}}, "test", env.Real(),
			slog.New(slog.DiscardHandler), func(s *Server) {
				was = true
				if err := s.Probe(ctx); err != nil {
					t.Errorf("probe: %v", err)
				}
				stop()
			})
		stop()
		if err != nil || !was {
			t.Fatalf("run ended with %v, ready %v", err, was)
		}
	}
}

func TestStart_RefusesDataOfAnotherNode(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	start := func(c Config) error {
		c.Data = dir
		s, err := Start(c, "test", env.Real(), slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		return s.Close()
	}
	if err := start(Config{Shards: 2}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []Config{{Shards: 3}, {}, {Shards: 2, Node: 2}, {Shards: 2, Cluster: "other"}} {
		if err := start(c); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), `node 1 of cluster "quorate" with 2 shards`) {
			t.Errorf("%+v: got %v", c, err)
		}
	}
	if err := start(Config{Shards: 2}); err != nil {
		t.Errorf("as before: %v", err)
	}
}

// TestRun_DamagedOwnerIsNotTriedAgain: what a rebuild cannot mend ends the node at once, also in a cluster.
func TestRun_DamagedOwnerIsNotTriedAgain(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "OWNER"), []byte("rubbish"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var log strings.Builder
	err := Run(ctx, Config{Data: dir, Listen: Listen{Peer: "127.0.0.1:0"}, Peers: map[uint32]string{1: "127.0.0.1:1", 2: "127.0.0.1:2", 3: "127.0.0.1:3"}},
		"test", env.Real(), slog.New(slog.NewTextHandler(&log, nil)), nil)
	if !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), "remove the file") {
		t.Errorf("got %v", err)
	}
	if n := strings.Count(log.String(), "msg=starting"); n != 1 {
		t.Errorf("the node was started %d times", n)
	}
}

func TestStart_DataDirectoryInUse(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Data: dir, Listen: Listen{HTTP: "127.0.0.1:0"}}
	s, err := Start(cfg, "test", env.Real(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // a test's
	// A process may lock again what it has locked, so that another one must try: the program of this test does.
	cmd := exec.Command(os.Args[0], "-test.run=^TestStart_DataDirectoryInUse_Other$")
	cmd.Env = append(os.Environ(), otherData+"="+dir)
	out, _ := cmd.CombinedOutput()
	for _, want := range []string{"in use by", "stop that, or set data to another directory"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the error lacks %q:\n%s", want, out)
		}
	}
	if runtime.GOOS == "linux" && !strings.Contains(string(out), "process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("the error does not name process %d:\n%s", os.Getpid(), out)
	}
}

func TestStart_DataDirectoryThatCannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "LOCK"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Start(Config{Data: dir, Listen: Listen{HTTP: "127.0.0.1:0"}}, "test", env.Real(), slog.New(slog.DiscardHandler))
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "this user cannot use the data directory "+dir) {
		t.Errorf("got %v", err)
	}
}

// otherData tells another process of this test which directory to open.
const otherData = "QUORATE_TEST_DATA"

func TestStart_DataDirectoryInUse_Other(t *testing.T) {
	dir := os.Getenv(otherData)
	if dir == "" {
		t.Skip("a part of TestStart_DataDirectoryInUse")
	}
	_, err := Start(Config{Data: dir, Listen: Listen{HTTP: "127.0.0.1:0"}}, "test", env.Real(), slog.New(slog.DiscardHandler))
	t.Error(err)
}
