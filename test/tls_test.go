package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// certificates makes an authority and one certificate for everybody, in files, and what a client needs of them.
func certificates(t *testing.T) (dir string, client *tls.Config) {
	t.Helper()
	dir = t.TempDir()
	save := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	caKey, leafKey := key(), key()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "app"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for name, of := range map[string]struct {
		cert *x509.Certificate
		key  *ecdsa.PrivateKey
	}{"ca": {ca, caKey}, "leaf": {leaf, leafKey}} {
		der, err := x509.CreateCertificate(rand.Reader, of.cert, ca, &of.key.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		save(name+".pem", "CERTIFICATE", der)
	}
	der, err := x509.MarshalECPrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	save("leaf-key.pem", "EC PRIVATE KEY", der)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "leaf.pem"), filepath.Join(dir, "leaf-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	b, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil || !pool.AppendCertsFromPEM(b) {
		t.Fatalf("read the authority: %v", err)
	}
	return dir, &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
}

// Every port is secured, and the clients people have go on as before.
func TestTLS_EveryPort(t *testing.T) {
	dir, conf := certificates(t)
	port := fmt.Sprintf("{cert: %q, key: %q, client_ca: %q}", filepath.Join(dir, "leaf.pem"), filepath.Join(dir, "leaf-key.pem"), filepath.Join(dir, "ca.pem"))
	c := start(t, 1, fmt.Sprintf("tls: {peer: %s, redis: %s, kafka: %s, etcd: %s}\n", port, port, port, port))
	ctx := within(t)

	e, err := clientv3.New(clientv3.Config{Endpoints: c.etcdAddrs(), TLS: conf.Clone(), DialTimeout: 20 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := e.Put(ctx, "tls", "1"); err != nil {
		t.Fatal(err)
	}
	if m, err := e.MemberList(ctx); err != nil || len(m.Members) != 3 || !strings.HasPrefix(m.Members[0].ClientURLs[0], "https://") {
		t.Errorf("members: %v %v", m, err)
	}
	out := tool(t, "", "etcdctl", "--endpoints", "https://"+c.nodes[1].etcd, "--cacert", filepath.Join(dir, "ca.pem"),
		"--cert", filepath.Join(dir, "leaf.pem"), "--key", filepath.Join(dir, "leaf-key.pem"), "get", "tls", "--print-value-only")
	if strings.TrimSpace(out) != "1" {
		t.Errorf("etcdctl got %q", out)
	}
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: conf.Clone(), ForceAttemptHTTP2: true}}
	defer web.CloseIdleConnections()
	resp, err := web.Post("https://"+c.nodes[2].etcd+"/v3/kv/range", "application/json", strings.NewReader(`{"key":"dGxz"}`))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(b), `"value":"MQ=="`) {
		t.Errorf("gateway: %s %s %v", resp.Status, b, err)
	}

	var redisAddrs, kafkaAddrs []string
	for _, n := range c.nodes {
		redisAddrs, kafkaAddrs = append(redisAddrs, n.redis), append(kafkaAddrs, n.kafka)
	}
	r := redis.NewClusterClient(&redis.ClusterOptions{Addrs: redisAddrs, TLSConfig: conf.Clone()})
	defer r.Close()
	if err := r.Set(ctx, "tls", "2", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if v, err := r.Get(ctx, "tls").Result(); err != nil || v != "2" {
		t.Errorf("redis got %q %v", v, err)
	}
	k, err := kgo.NewClient(kgo.SeedBrokers(kafkaAddrs...), kgo.DialTLSConfig(conf.Clone()), kgo.AllowAutoTopicCreation(), kgo.ConsumeTopics("tls"))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if err := k.ProduceSync(ctx, &kgo.Record{Topic: "tls", Value: []byte("3")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	var got string
	for got == "" && ctx.Err() == nil {
		k.PollFetches(ctx).EachRecord(func(r *kgo.Record) { got = string(r.Value) })
	}
	if got != "3" {
		t.Errorf("kafka got %q", got)
	}

	bare := conf.Clone()
	bare.Certificates = nil
	for _, addr := range []string{c.nodes[0].redis, c.nodes[0].kafka, c.nodes[0].etcd, c.nodes[0].peer} {
		nc, err := tls.Dial("tcp", addr, bare)
		if err == nil {
			_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
			_, err = nc.Read(make([]byte, 1))
			_ = nc.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "certificate required") {
			t.Errorf("%s without a certificate: %v", addr, err)
		}
	}
}
