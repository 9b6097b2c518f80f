package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
)

func writeFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "etcd.conf.yml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestEtcdConfigFile(t *testing.T) {
	name := writeFile(t, `# As etcd's own example, in part.
name: 'm1'
data-dir:
wal-dir:
snapshot-count: 10000
listen-client-urls: https://127.0.0.1:2379,unix://sock
advertise-client-urls: https://127.0.0.1:2379
listen-peer-urls: https://127.0.0.1:2380
initial-cluster: m1=https://127.0.0.1:2380
initial-cluster-token: 'tok'
discovery-fallback: 'proxy'
proxy: 'off'
force-new-cluster: false
watch-progress-notify-interval: 5000000000
client-transport-security:
  cert-file: c.pem
  key-file: k.pem
  client-cert-auth: true
  trusted-ca-file: ca.pem
  allowed-cn: [app]
  auto-tls: false
peer-transport-security:
  cert-file: pc.pem
  key-file: pk.pem
  trusted-ca-file: pca.pem
  allowed-hostname: [a, b]
  client-cert-file: dc.pem
  client-key-file: dk.pem
cipher-suites: [
  TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
  TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
]
tls-min-version: 'TLS1.2'
log-outputs: [stderr]
`)
	var f etcdFlags
	c := newEtcdWith(&f)
	if err := c.ParseFlags([]string{"--config-file", name}); err != nil {
		t.Fatal(err)
	}
	// The environment counts as little as flags.
	t.Setenv("ETCD_NAME", "other")
	if err := f.complete(t.Context(), c.Flags()); err != nil {
		t.Fatal(err)
	}
	cfg, err := f.config()
	if err != nil {
		t.Fatal(err)
	}
	e, p := cfg.TLS.Etcd, cfg.TLS.Peer
	if cfg.Cluster != "tok" || cfg.Peers[1] != "127.0.0.1:2380" || !strings.HasSuffix(cfg.Data, "m1.etcd") || cfg.EtcdProgressInterval != 5*time.Second ||
		len(cfg.ListenMore) != 1 || cfg.ListenMore[0].Address != "unix:sock" {
		t.Errorf("%+v", cfg)
	}
	if e.Cert != "c.pem" || e.ClientCA != "ca.pem" || strings.Join(e.ClientNames, " ") != "app" || len(e.Ciphers) != 2 || e.MinVersion != "1.2" {
		t.Errorf("client: %+v", e)
	}
	if p.Cert != "pc.pem" || p.ClientCA != "pca.pem" || strings.Join(p.ClientNames, " ") != "a b" || p.DialCert != "dc.pem" || p.DialKey != "dk.pem" {
		t.Errorf("peer: %+v", p)
	}
}

func TestEtcdConfigFile_WhatIsWrongIsNamed(t *testing.T) {
	for text, want := range map[string]string{
		"name: a\nnaem: b":                      "line 2: naem is not known",
		"name: a\nname: b":                      "line 2: name stands there twice",
		"wal-dir: /x":                           "line 1: wal-dir is not served: the raft log is in the data directory",
		"force-new-cluster: true":               "force-new-cluster is not served: members are fixed",
		"client-transport-security:\n  cert: x": "line 2: client-transport-security/cert is not known",
		"transport-security:\n  cert-file: x":   "section transport-security is not one of",
		"a: {b: {c: d}}":                        "a/b is a section in a section",
		"listen-client-urls: [{a: b}]":          "is a list of what are no plain values",
		"- name":                                "there must be names and values",
		"auth-token-ttl: soon":                  "line 1: auth-token-ttl:",
		"config-file: x":                        "config-file is not known",
		"peer-transport-security: {skip-client-san-verification: true}": "addresses are not compared",
		"a: [": "line 1",
	} {
		err := fromFile(t.Context(), newEtcd().Flags(), writeFile(t, text))
		if err == nil || !strings.Contains(err.Error(), want) || errs.KindOf(err) != errs.Invalid {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if err := fromFile(t.Context(), newEtcd().Flags(), "/nowhere"); errs.KindOf(err) != errs.Invalid {
		t.Errorf("no file: %v", err)
	}
	if err := fromFile(t.Context(), newEtcd().Flags(), writeFile(t, "# nothing\n")); err != nil {
		t.Errorf("an empty file: %v", err)
	}
	var f etcdFlags
	c := newEtcdWith(&f)
	if err := c.ParseFlags([]string{"--config-file", "x", "--name", "y"}); err != nil {
		t.Fatal(err)
	}
	if err := f.complete(t.Context(), c.Flags()); err == nil || !strings.Contains(err.Error(), "leave out --name") {
		t.Errorf("with another flag: %v", err)
	}
}
