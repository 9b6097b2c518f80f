package main

import (
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/protocol/etcd"
	"github.com/quorate/quorate/internal/server"
	"github.com/quorate/quorate/internal/telemetry"
)

func TestEtcdFlags(t *testing.T) {
	plain := etcdFlags{
		name: "b", token: "tok", state: "new", data: "d",
		clientURLs: []string{"http://127.0.0.1:1"}, advertise: []string{"http://localhost:1"},
		peerURLs: []string{"http://127.0.0.1:2"}, advertisePeers: []string{"http://127.0.0.1:2"}, progress: 5 * time.Second,
		authToken: tokenSimple, bcryptCost: 5, tokenTTL: 60, compactMode: "periodic", compactKeep: "0", requestBytesMax: 1000, txnOpsMax: 10,
	}
	plain.client.common, plain.peer.common = &etcdTLSCommon{}, &etcdTLSCommon{}
	cfg, err := plain.config()
	if err != nil || cfg.Cluster != "tok" || cfg.Node != 1 || cfg.Peers[1] != "127.0.0.1:2" || cfg.Listen.Etcd != "127.0.0.1:1" ||
		cfg.Advertise.Etcd != "localhost:1" || cfg.EtcdProgressInterval != 5*time.Second || !filepath.IsAbs(cfg.Data) || !strings.HasSuffix(cfg.Data, "/d") {
		t.Errorf("alone: %+v %v", cfg, err)
	}
	if cfg.EtcdRequestBytesMax != 1000 || cfg.EtcdTxnOpsMax != 10 {
		t.Errorf("limits: %+v", cfg)
	}
	if cfg.EtcdAuth != (server.EtcdAuth{BcryptCost: 5, TokenTTL: 60}) {
		t.Errorf("authentication: %+v", cfg.EtcdAuth)
	}
	tokens := plain
	tokens.authToken = "jwt,pub-key=/p,priv-key=/k,sign-method=ES256,ttl=3m"
	if cfg, err = tokens.config(); err != nil || cfg.EtcdAuth != (server.EtcdAuth{BcryptCost: 5, TokenTTL: 180, JWT: server.EtcdJWT{Method: "ES256", PublicKey: "/p", PrivateKey: "/k"}}) {
		t.Errorf("JWT: %+v %v", cfg.EtcdAuth, err)
	}
	often := plain
	often.progress = time.Millisecond
	if cfg, err = often.config(); err != nil || cfg.EtcdProgressInterval != server.EtcdProgressIntervalMin {
		t.Errorf("progress every millisecond: %v %v", cfg.EtcdProgressInterval, err)
	}
	// The order of the members is not the same on every command line.
	three := plain
	three.cluster = []string{"c=http://127.0.0.1:3", "a=http://127.0.0.1:4", "b=http://127.0.0.1:2"}
	if cfg, err = three.config(); err != nil || cfg.Node != 2 || cfg.Peers[1] != "127.0.0.1:4" || cfg.Peers[3] != "127.0.0.1:3" || cfg.MemberNames[2] != "b" {
		t.Errorf("three: %+v %v", cfg, err)
	}
	secure := plain
	secure.clientURLs, secure.advertise = []string{"https://127.0.0.1:1"}, []string{"https://localhost:1"}
	secure.client = etcdTLS{
		cert: "c", key: "k", ca: "a", auth: true, cn: "app", host: "x,y", crl: "r",
		common: &etcdTLSCommon{[]string{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"}, "TLS1.2", "TLS1.3"},
	}
	secure.peerURLs, secure.peer = []string{"https://127.0.0.1:2"}, etcdTLS{auto: true, common: &etcdTLSCommon{}}
	if cfg, err = secure.config(); err != nil || cfg.TLS.Etcd.ClientCA != "a" || strings.Join(cfg.TLS.Etcd.ClientNames, " ") != "app x y" || !cfg.TLS.Peer.Auto ||
		cfg.TLS.Etcd.ClientCRL != "r" || cfg.TLS.Etcd.MinVersion != "1.2" || cfg.TLS.Etcd.MaxVersion != "1.3" || len(cfg.TLS.Etcd.Ciphers) != 1 {
		t.Errorf("secure: %+v %v", cfg.TLS, err)
	}
	for want, change := range map[string]func(*etcdFlags){
		"is https; give a certificate": func(f *etcdFlags) { f.clientURLs = []string{"https://127.0.0.1:1"} },
		"URLs with TLS and without":    func(f *etcdFlags) { f.peerURLs = append([]string{"https://127.0.0.1:3"}, f.peerURLs...) },
		"both have TLS, or none has":   func(f *etcdFlags) { f.cluster = []string{"b=https://127.0.0.1:2"} },
		"although there are":           func(f *etcdFlags) { f.client = etcdTLS{cert: "c", key: "k"} },
		"with a trusted-ca-file": func(f *etcdFlags) {
			f.peerURLs, f.peer = []string{"https://127.0.0.1:1"}, etcdTLS{cert: "c", key: "k", auth: true}
		},
		"a crl-file is about": func(f *etcdFlags) {
			f.clientURLs, f.client = []string{"https://127.0.0.1:1"}, etcdTLS{cert: "c", key: "k", crl: "r"}
		},
		`--tls-max-version is "1.3"`: func(f *etcdFlags) {
			f.clientURLs, f.client = []string{"https://127.0.0.1:1"}, etcdTLS{cert: "c", key: "k", common: &etcdTLSCommon{max: "1.3"}}
		},
		`--auto-compaction-mode is "x"`:   func(f *etcdFlags) { f.compactMode = "x" },
		`is a number of revisions`:        func(f *etcdFlags) { f.compactMode, f.compactKeep = "revision", "1h" },
		`or a number of hours`:            func(f *etcdFlags) { f.compactKeep = "day" },
		"without a file":                  func(f *etcdFlags) { f.peerURLs = []string{"unix://"} },
		"with a path":                     func(f *etcdFlags) { f.clientURLs = append(f.clientURLs, "http://127.0.0.1:9/x") },
		"is for something else already":   func(f *etcdFlags) { f.httpURLs = f.clientURLs },
		"none of http, https":             func(f *etcdFlags) { f.metricsURLs = []string{"ftp://127.0.0.1:9"} },
		"provided for metrics secure url": func(f *etcdFlags) { f.metricsURLs = []string{"https://127.0.0.1:9"} },
		"write NAME=URL":                  func(f *etcdFlags) { f.cluster = []string{"a"} },
		"does not have this node":         func(f *etcdFlags) { f.cluster = []string{"x=http://127.0.0.1:2"} },
		"has two URLs for b":              func(f *etcdFlags) { f.cluster = []string{"b=http://127.0.0.1:2", "b=http://127.0.0.1:5"} },
		"it is new or existing":           func(f *etcdFlags) { f.state = "old" },
		"without a port":                  func(f *etcdFlags) { f.peerURLs = []string{"http://127.0.0.1"} },
		"write http://host:port":          func(f *etcdFlags) { f.peerURLs = []string{"127.0.0.1:1"} },
		"jwt needs sign-method":           func(f *etcdFlags) { f.authToken = "jwt,pub-key=x" },
		"neither simple nor jwt":          func(f *etcdFlags) { f.authToken = "opaque" },
		`"pub-key" is not OPTION`:         func(f *etcdFlags) { f.authToken = "jwt,pub-key" },
		"stands there twice":              func(f *etcdFlags) { f.authToken = "jwt,ttl=1s,ttl=2s" },
		`option "key" is not one of`:      func(f *etcdFlags) { f.authToken = "jwt,key=x" },
		`ttl is "0.5s"`:                   func(f *etcdFlags) { f.authToken = "jwt,sign-method=RS256,ttl=0.5s" },
		"must be at least 1":              func(f *etcdFlags) { f.txnOpsMax = 0 },
		"must not be 0":                   func(f *etcdFlags) { f.bcryptCost = 0 },
		"has no https or unixs":           func(f *etcdFlags) { f.client.key = "/k" },
		"--listen-peer-urls has no URL":   func(f *etcdFlags) { f.peerURLs = nil },
	} {
		f := plain
		f.clientURLs = append([]string(nil), plain.clientURLs...)
		change(&f)
		if _, err := f.config(); err == nil || !strings.Contains(err.Error(), want) || errs.KindOf(err) == errs.Internal {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestEtcdCommand_FlagsAndEnvironment(t *testing.T) {
	c := newEtcd()
	// What has no effect is written as for etcd: a number behind a space, a switch without anything.
	if err := c.ParseFlags([]string{"--name=n", "--snapshot-count=10", "--heartbeat-interval", "100", "--pre-vote", "--strict-reconfig-check=true", "--watch-progress-notify-interval=5s"}); err != nil {
		t.Fatal(err)
	}
	if left := c.Flags().Args(); len(left) > 0 {
		t.Errorf("not taken for values: %v", left)
	}
	if d := c.Flag("watch-progress-notify-interval").Value.String(); d != "5s" {
		t.Errorf("progress every %s", d)
	}
	t.Setenv("ETCD_NAME", "other")
	t.Setenv("ETCD_DATA_DIR", "/somewhere")
	if err := fromEnvironment(c.Flags()); err != nil {
		t.Fatal(err)
	}
	if n, d := c.Flag("name").Value.String(), c.Flag("data-dir").Value.String(); n != "n" || d != "/somewhere" {
		t.Errorf("name %q, data %q", n, d)
	}
	if err := newEtcd().ParseFlags([]string{"--v2-deprecation=x"}); err == nil {
		t.Error("a flag that is not served was accepted")
	}
	if err := newEtcd().ParseFlags([]string{"--v3-deprecation=gone"}); err == nil {
		t.Error("a flag that etcd does not have was accepted")
	}
	if got := asEtcd([]string{"/usr/bin/etcd", "--name", "x"}); strings.Join(got, " ") != "etcd --name x" {
		t.Errorf("called as etcd: %q", got)
	}
	if got := asEtcd([]string{"quorate", "dev"}); strings.Join(got, " ") != "dev" {
		t.Errorf("called as quorate: %q", got)
	}
}

func TestEtcdFlags_WhereToListen(t *testing.T) {
	base := etcdFlags{
		name: "b", state: "new", authToken: tokenSimple, bcryptCost: 5, tokenTTL: 60, compactMode: "periodic", compactKeep: "0", requestBytesMax: 1000, txnOpsMax: 10,
		advertise: []string{"http://127.0.0.1:1"}, peerURLs: []string{"http://127.0.0.1:2"}, advertisePeers: []string{"http://127.0.0.1:2"},
	}
	cert := etcdTLS{cert: "c", key: "k", common: &etcdTLSCommon{}}
	etc := func(addr string, serve etcd.Scope, how server.Secured) server.ListenMore {
		return server.ListenMore{Port: "etcd", Address: addr, Serve: serve, TLS: how}
	}
	for i, c := range []struct {
		set       func(*etcdFlags)
		first     string
		more      []server.ListenMore
		advertise string
	}{
		{func(f *etcdFlags) { f.clientURLs = []string{"http://127.0.0.1:1", "unix://localhost:2"} },
			"127.0.0.1:1", []server.ListenMore{etc("unix:localhost:2", etcd.All, "")}, "127.0.0.1:1"},
		{func(f *etcdFlags) {
			f.client, f.clientURLs = cert, []string{"http://127.0.0.1:1", "https://127.0.0.1:1"}
			f.advertise = f.clientURLs
		}, "", []server.ListenMore{etc("127.0.0.1:1", etcd.All, server.SecuredIfAsked)}, "http://127.0.0.1:1,127.0.0.1:1"},
		{func(f *etcdFlags) {
			f.client, f.clientURLs = cert, []string{"https://127.0.0.1:1", "http://127.0.0.1:3", "unixs:/run/x"}
			f.advertise = []string{"unixs:/run/x"}
		}, "127.0.0.1:1", []server.ListenMore{etc("127.0.0.1:3", etcd.All, server.SecuredNever), etc("unix:/run/x", etcd.All, "")}, "unixs:/run/x"},
		{func(f *etcdFlags) {
			f.clientURLs, f.httpURLs, f.metricsURLs = []string{"http://127.0.0.1:1"}, []string{"unix:///run/http"}, []string{"http://0.0.0.0:3"}
		}, "", []server.ListenMore{etc("127.0.0.1:1", etcd.OnlyGRPC, ""), etc("unix:/run/http", etcd.OnlyHTTP, ""), etc("0.0.0.0:3", etcd.OnlyMetrics, "")}, "127.0.0.1:1"},
		{func(f *etcdFlags) {
			f.clientURLs, f.peerURLs = []string{"http://127.0.0.1:1"}, []string{"http://127.0.0.1:2", "unix://p"}
		}, "127.0.0.1:1", []server.ListenMore{{Port: "peer", Address: "unix:p"}}, "127.0.0.1:1"},
	} {
		f := base
		c.set(&f)
		cfg, err := f.config()
		if err != nil || cfg.Listen.Etcd != c.first || !slices.Equal(cfg.ListenMore, c.more) || cfg.Advertise.Etcd != c.advertise {
			t.Errorf("%d: %q %+v %q %v", i, cfg.Listen.Etcd, cfg.ListenMore, cfg.Advertise.Etcd, err)
		}
		if cfg.Listen.Peer != "127.0.0.1:2" || !cfg.Insecure {
			t.Errorf("%d: %q %v", i, cfg.Listen.Peer, cfg.Insecure)
		}
	}
}

func TestEtcdFlags_Compaction(t *testing.T) {
	for _, c := range []struct {
		mode, keep string
		want       server.EtcdCompaction
	}{
		{"periodic", "0", server.EtcdCompaction{}}, {"periodic", "2", server.EtcdCompaction{Period: 2 * time.Hour}},
		// So many hours are more than can be counted, and refused where the node is started, as all beyond a year.
		{"periodic", "5124096", server.EtcdCompaction{Period: math.MaxInt64 / time.Hour * time.Hour}},
		{"periodic", "30m", server.EtcdCompaction{Period: 30 * time.Minute}}, {"revision", "1000", server.EtcdCompaction{Revisions: 1000}},
	} {
		f := etcdFlags{compactMode: c.mode, compactKeep: c.keep}
		if got, err := f.compaction(); err != nil || got != c.want {
			t.Errorf("%s %s: %+v %v", c.mode, c.keep, got, err)
		}
	}
}

func TestEtcdCommand_SaysWhatHasNoEffect(t *testing.T) {
	c := newEtcd()
	if err := c.ParseFlags([]string{"--name=n", "--snapshot-catchup-entries=1000", "--max-snapshots=3", "--feature-gates", "A=true", "--v2-deprecation", "gone"}); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	logger, err := telemetry.Logger(&log, "etcd", "info")
	if err != nil {
		t.Fatal(err)
	}
	tellIgnored(c.Flags(), logger)
	for _, want := range []string{`"level":"info"`, `"snapshot-catchup-entries":1000`, `"feature-gates":"A=true"`, "--max-snapshots is deprecated", "--v2-deprecation is deprecated", `"level":"warn"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in\n%s", want, log.String())
		}
	}
	if strings.Contains(log.String(), `"name"`) {
		t.Errorf("a flag with an effect is there:\n%s", log.String())
	}
}

// Who wishes for security, in whatever way, is not to have a port without.
func TestEtcdFlags_AWishForSecurityIsNotPassedOver(t *testing.T) {
	for name, wish := range map[string]etcdTLS{
		"cert-file": {cert: "c"}, "key-file": {key: "k"}, "trusted-ca-file": {ca: "a"}, "auto-tls": {auto: true}, "client-cert-auth": {auth: true}, "crl-file": {crl: "r"},
		"allowed-cn": {cn: "app"}, "allowed-hostname": {host: "app"},
	} {
		wish.common = &etcdTLSCommon{}
		if _, err := wish.tls("listen-client-urls", false); err == nil || !strings.Contains(err.Error(), "write https") {
			t.Errorf("%s without https: %v", name, err)
		}
	}
	none := etcdTLS{common: &etcdTLSCommon{}}
	if out, err := none.tls("listen-client-urls", false); err != nil || out.Cert != "" {
		t.Errorf("no wish: %+v %v", out, err)
	}
	// A certificate that is given is used, also if one would be made.
	both := etcdTLS{cert: "c", key: "k", auto: true, common: &etcdTLSCommon{}}
	if out, err := both.tls("listen-client-urls", true); err != nil || out.Auto || out.Cert != "c" {
		t.Errorf("a certificate and auto-tls: %+v %v", out, err)
	}
}
