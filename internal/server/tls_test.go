package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
)

// authority signs certificates and keeps them in files.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
	n    int64
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.key, a.file = key, a.write("ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) write(name, kind string, der []byte) string {
	a.t.Helper()
	f := filepath.Join(a.dir, name)
	if err := os.WriteFile(f, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return f
}

// sign makes files of a certificate for a name on loopback, and for DNS names.
func (a *authority) sign(file, name string, dns ...string) (cert, key string) {
	a.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.n++
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1 + a.n), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: dns, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, &k.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	kb, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.write(file+".pem", "CERTIFICATE", der), a.write(file+"-key.pem", "EC PRIVATE KEY", kb)
}

// dial connects as a client that trusts the authority; cert may be empty.
func (a *authority) dial(addr, cert, key string) (*tls.Conn, error) {
	a.t.Helper()
	c := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	c.RootCAs.AddCert(a.cert)
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			a.t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	d := tls.Dialer{Config: c}
	ctx, cancel := context.WithTimeout(a.t.Context(), 20*time.Second)
	defer cancel()
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return nc.(*tls.Conn), nil
}

// ping asks a Redis port for an answer.
func ping(c net.Conn) error {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, "PING\r\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && line != "+PONG\r\n" {
		err = fmt.Errorf("answer %q", line)
	}
	return err
}

func (a *authority) ping(addr, cert, key string) error {
	c, err := a.dial(addr, cert, key)
	if err != nil {
		return err
	}
	return ping(c)
}

func startTLS(t *testing.T, cfg Config, log *slog.Logger) *Server {
	t.Helper()
	s, err := Start(cfg, "test", env.Real(), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTLS_PortsCheckClientsAndAreProbed(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	cert, key := ca.sign("server", "server")
	port := TLS{Cert: cert, Key: key, ClientCA: ca.file, ClientNames: []string{"app"}}
	s := startTLS(t, Config{
		Listen: Listen{Redis: "127.0.0.1:0", Kafka: "127.0.0.1:0", Etcd: "127.0.0.1:0", HTTP: "127.0.0.1:0"},
		TLS:    Ports{Redis: port, Kafka: port, Etcd: port},
	}, slog.New(slog.DiscardHandler))
	appCert, appKey := ca.sign("app", "app")
	if err := ca.ping(s.Addr().Redis, appCert, appKey); err != nil {
		t.Errorf("a client that is allowed: %v", err)
	}
	if err := ca.ping(s.Addr().Redis, "", ""); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("a client without a certificate: %v", err)
	}
	if err := ca.ping(s.Addr().Redis, cert, key); err == nil || !strings.Contains(err.Error(), "bad certificate") {
		t.Errorf("a client of another name: %v", err)
	}
	for dns, allowed := range map[string]bool{"app": true, "apps": false} {
		c, k := ca.sign("dns", "somebody", "first."+dns, dns)
		if err := ca.ping(s.Addr().Redis, c, k); (err == nil) != allowed {
			t.Errorf("a client whose DNS name is %s: %v, allowed %v", dns, err, allowed)
		}
	}
	foreignCert, foreignKey := other.sign("app", "app")
	if err := ca.ping(s.Addr().Redis, foreignCert, foreignKey); err == nil {
		t.Error("a client of another authority was let in")
	}
	if err := other.ping(s.Addr().Redis, appCert, appKey); err == nil {
		t.Error("a client that does not trust the server went on")
	}
	plain, err := net.Dial("tcp", s.Addr().Redis)
	if err != nil {
		t.Fatal(err)
	}
	if err := ping(plain); err == nil {
		t.Error("a client without TLS was answered")
	}
}

func TestTLS_CertificatesAreReadAgain(t *testing.T) {
	ca, next := newAuthority(t, "ca"), newAuthority(t, "next")
	cert, key := ca.sign("server", "server")
	var log lockedLog
	s := startTLS(t, Config{Listen: Listen{Redis: "127.0.0.1:0"}, TLS: Ports{Redis: TLS{Cert: cert, Key: key}}}, slog.New(slog.NewTextHandler(&log, nil)))
	if err := ca.ping(s.Addr().Redis, "", ""); err != nil {
		t.Fatal(err)
	}
	put := func(from, to string) {
		t.Helper()
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	newCert, newKey := next.sign("server", "server")
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !ok(); {
			if time.Now().After(end) {
				t.Fatalf("not in time: %s\n%s", what, log.String())
			}
		}
	}
	// Half of the files are replaced: what was there before goes on.
	put(newCert, cert)
	until("a warning", func() bool {
		if err := ca.ping(s.Addr().Redis, "", ""); err != nil {
			t.Fatalf("meanwhile: %v", err)
		}
		return strings.Contains(log.String(), "cannot be used")
	})
	put(newKey, key)
	until("the new certificate", func() bool { return next.ping(s.Addr().Redis, "", "") == nil })
}

// A file in place of another counts, though its time and its size are those of the one before, as where times are made alike.
func TestTLS_AnotherFileOfTheSameTimeIsRead(t *testing.T) {
	ca := newAuthority(t, "ca")
	cert, key := ca.sign("server", "server")
	nextCert, nextKey := ca.sign("next", "next")
	at := time.Unix(1, 0)
	alike := func(a, b string) {
		t.Helper()
		x, y := read(t, a), read(t, b)
		for len(x) < len(y) {
			x = append(x, '\n')
		}
		for len(y) < len(x) {
			y = append(y, '\n')
		}
		for f, text := range map[string][]byte{a: x, b: y} {
			if err := errors.Join(os.WriteFile(f, text, 0o600), os.Chtimes(f, at, at)); err != nil {
				t.Fatal(err)
			}
		}
	}
	alike(cert, nextCert)
	alike(key, nextKey)
	s, err := newSecure(TLS{Cert: cert, Key: key}, nil, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(nextCert, cert), os.Rename(nextKey, key)); err != nil {
		t.Fatal(err)
	}
	if got := s.current(time.Now()).in.Certificates[0].Leaf.Subject.CommonName; got != "next" {
		t.Errorf("the certificate is that of %q", got)
	}
}

// A node that runs for long, or whose clock is set, can still look at its own ports.
func TestTLS_ProbeOutlivesAYear(t *testing.T) {
	ca := newAuthority(t, "ca")
	cert, key := ca.sign("server", "server")
	s, err := newSecure(TLS{Cert: cert, Key: key, ClientCA: ca.file}, nil, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Time{time.Now().AddDate(50, 0, 0), time.Now().AddDate(-20, 0, 0)} {
		in := s.now.in.Clone()
		in.Time = func() time.Time { return at }
		a, b := net.Pipe()
		shown := make(chan struct{})
		go func() {
			// It reads on, so that who refuses it can say so.
			_, _ = io.Copy(io.Discard, tls.Client(a, s.look()))
			close(shown)
		}()
		if err := tls.Server(b, in).HandshakeContext(t.Context()); err != nil {
			t.Errorf("in the year %d: %v", at.Year(), err)
		}
		_ = errors.Join(a.Close(), b.Close())
		<-shown
	}
}

func TestTLS_NodesCheckEachOther(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	peers := map[uint32]string{}
	for i := range 3 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		peers[uint32(i+1)] = ln.Addr().String()
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var nodes []*Server
	var log lockedLog
	for i := range 3 {
		cert, key := ca.sign(fmt.Sprint("node", i), "node")
		s, err := Start(Config{
			Node: uint32(i + 1), Data: t.TempDir(), Peers: peers, Listen: Listen{Redis: "127.0.0.1:0"},
			TLS: Ports{Peer: TLS{Cert: cert, Key: key, ClientCA: ca.file, ClientNames: []string{"node"}}},
		}, "test", env.Real(), slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		nodes = append(nodes, s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, s := range nodes {
		if err := s.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	foreignCert, foreignKey := other.sign("node", "node")
	c, err := ca.dial(peers[1], foreignCert, foreignKey)
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err = c.Read(make([]byte, 1)); err == nil {
			t.Error("a stranger got an answer from the peer port")
		}
	}
	if err == nil {
		t.Error("a stranger was let in")
	}
	wrongCert, wrongKey := ca.sign("wrong", "wrong")
	// The first refusal of a stranger is logged, and then one a minute: so this node gets nothing else to say of strangers before.
	if c, err = ca.dial(peers[2], wrongCert, wrongKey); err == nil {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err = c.Read(make([]byte, 1)); err == nil {
			t.Error("a node of another name got an answer from the peer port")
		}
	}
	for end := time.Now().Add(30 * time.Second); !strings.Contains(log.String(), `client certificate authentication failed: the certificate of \"wrong\"`); {
		if time.Now().After(end) {
			t.Fatalf("the log does not say that a node was refused:\n%s", log.String())
		}
	}
}

func TestTLS_AutoAndBadFiles(t *testing.T) {
	s := startTLS(t, Config{Listen: Listen{Etcd: "127.0.0.1:0"}, TLS: Ports{Etcd: TLS{Auto: true}}}, slog.New(slog.DiscardHandler))
	c, err := tls.Dial("tcp", s.Addr().Etcd, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if p := c.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
		t.Errorf("who speaks both gets %q", p)
	}
	if err := c.ConnectionState().PeerCertificates[0].VerifyHostname("127.0.0.1"); err != nil {
		t.Error(err)
	}
	ca := newAuthority(t, "ca")
	cert, key := ca.sign("server", "server")
	// What is set and would not be used, or lets in whom nobody meant, is refused.
	for _, bad := range []TLS{
		{DialCert: cert, DialKey: key}, {Auto: true, DialCert: cert, DialKey: key},
		{Cert: cert, Key: key, ClientCA: ca.file, ClientNames: []string{"app", ""}},
	} {
		if err := bad.check("peer", false); !errs.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, bad := range []TLS{{Cert: "no", Key: key}, {Cert: cert, Key: ca.file}, {Cert: cert, Key: key, ClientCA: "no"}, {Cert: cert, Key: key, ClientCA: key}} {
		_, err := Start(Config{Listen: Listen{Redis: "127.0.0.1:0"}, TLS: Ports{Redis: bad}}, "test", env.Real(), slog.New(slog.DiscardHandler))
		if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "tls.redis") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// What cannot be read of a file is not passed over: of several certificates one would be missing.
func TestTLS_DamagedCertificatesAreRefused(t *testing.T) {
	ca := newAuthority(t, "ca")
	cert, key := ca.sign("server", "server")
	file := func(name string, parts ...[]byte) string {
		f := filepath.Join(ca.dir, name)
		if err := os.WriteFile(f, bytes.Join(parts, nil), 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	own, other, secret := read(t, cert), read(t, ca.file), read(t, key)
	begins := bytes.Replace(other, []byte("-----BEGIN CERT"), []byte("-----BEGUN CERT"), 1)
	letter := bytes.Clone(other)
	letter[len(letter)/2] = '*'
	whole, _ := pem.Decode(other)
	short := pem.EncodeToMemory(&pem.Block{Type: whole.Type, Bytes: whole.Bytes[:len(whole.Bytes)-3]})
	text := []byte("# one -- of several\n")
	good := TLS{Cert: file("chain.pem", text, own, text, other, secret), Key: file("both.pem", own, secret), ClientCA: file("cas.pem", text, other, text, own)}
	start := func(p TLS) error {
		s, err := Start(Config{Listen: Listen{Redis: "127.0.0.1:0"}, TLS: Ports{Redis: p}}, "test", env.Real(), slog.New(slog.DiscardHandler))
		if err == nil {
			s.Close()
		}
		return err
	}
	if err := start(good); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		want    string
		damaged []byte
	}{
		{"has 2 blocks in PEM form, of which 1", other[:len(other)/2]},
		{"has 2 blocks in PEM form, of which 1", letter},
		{"has 2 blocks in PEM form, of which 1", begins},
		{"certificate 2 of", short},
	} {
		bad := good
		bad.Cert = file("bad.pem", own, c.damaged)
		if err := start(bad); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("certificate: %v, want %q", err, c.want)
		}
		bad = good
		bad.ClientCA = file("bad.pem", own, c.damaged)
		if err := start(bad); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("client_ca: %v, want %q", err, c.want)
		}
	}
	bad := good
	bad.ClientCA = file("bad.pem", other, secret)
	if err := start(bad); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "EC PRIVATE KEY beside") {
		t.Errorf("client_ca with a key: %v", err)
	}
}

func TestTLS_RevokedCertificatesAreRefused(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	cert, key := ca.sign("server", "server")
	goodCert, goodKey := ca.sign("good", "good")
	badCert, badKey := ca.sign("bad", "bad")
	revoked := ca.n + 1
	list := ca.revoke("list", 99)
	port := TLS{Cert: cert, Key: key, ClientCA: ca.file, ClientCRL: list}
	s := startTLS(t, Config{Listen: Listen{Redis: "127.0.0.1:0"}, TLS: Ports{Redis: port}}, slog.New(slog.DiscardHandler))
	addr := s.Addr().Redis
	if err := ca.ping(addr, badCert, badKey); err != nil {
		t.Fatalf("before it is revoked: %v", err)
	}
	// The list is read again. What another authority says of the same number does not count.
	other.key, other.dir = ca.key, ca.dir
	other.revoke("list", revoked-1)
	ca.revoke("more", revoked)
	for end := time.Now().Add(30 * time.Second); ; {
		both := append(read(t, filepath.Join(ca.dir, "list.pem")), read(t, filepath.Join(ca.dir, "more.pem"))...)
		if err := os.WriteFile(list, both, 0o600); err != nil {
			t.Fatal(err)
		}
		err := ca.ping(addr, badCert, badKey)
		if err != nil && strings.Contains(err.Error(), "bad certificate") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("after it was revoked: %v", err)
		}
	}
	if err := ca.ping(addr, goodCert, goodKey); err != nil {
		t.Errorf("one whose number another authority revoked: %v", err)
	}
	// A list of which a part is missing, or that has something behind it, must not pass for all there is.
	both := append(read(t, filepath.Join(ca.dir, "list.pem")), read(t, filepath.Join(ca.dir, "more.pem"))...)
	cut := filepath.Join(ca.dir, "cut.pem")
	if err := os.WriteFile(cut, both[:len(both)-40], 0o600); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(read(t, filepath.Join(ca.dir, "more.pem")))
	twice := filepath.Join(ca.dir, "twice.der")
	if err := os.WriteFile(twice, append(block.Bytes, block.Bytes...), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"no", key, cut, twice} {
		port.ClientCRL = bad
		_, err := Start(Config{Listen: Listen{Redis: "127.0.0.1:0"}, TLS: Ports{Redis: port}}, "test", env.Real(), slog.New(slog.DiscardHandler))
		if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "client_crl") {
			t.Errorf("list %s: %v", bad, err)
		}
	}
}

// An authority below another may be among those of client_ca, so that clients do not show it.
func TestTLS_RevokedAuthorityIsRefused(t *testing.T) {
	ca := newAuthority(t, "ca")
	cert, key := ca.sign("server", "server")
	below := newAuthority(t, "below")
	ca.n++
	tmpl := *below.cert
	tmpl.SerialNumber, tmpl.AuthorityKeyId = big.NewInt(1+ca.n), nil
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, ca.cert, &below.key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if below.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	cas := filepath.Join(ca.dir, "cas.pem")
	if err := os.WriteFile(cas, append(read(t, ca.file), read(t, below.write("ca.pem", "CERTIFICATE", der))...), 0o600); err != nil {
		t.Fatal(err)
	}
	appCert, appKey := below.sign("app", "app")
	for _, c := range []struct {
		list string
		ok   bool
	}{{ca.revoke("other", 99), true}, {ca.revoke("below", 1+ca.n), false}} {
		s := startTLS(t, Config{
			Listen: Listen{Redis: "127.0.0.1:0"}, TLS: Ports{Redis: TLS{Cert: cert, Key: key, ClientCA: cas, ClientCRL: c.list}},
		}, slog.New(slog.DiscardHandler))
		if err := ca.ping(s.Addr().Redis, appCert, appKey); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.list, err)
		}
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// revoke makes a file with a list that has one number.
func (a *authority) revoke(file string, serial int64) string {
	a.t.Helper()
	issuer := *a.cert
	issuer.KeyUsage |= x509.KeyUsageCRLSign
	issuer.PublicKey = &a.key.PublicKey
	issuer.SubjectKeyId = []byte("key")
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(serial), RevocationTime: time.Now()}},
	}, &issuer, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.write(file+".pem", "X509 CRL", der)
}

// Who is refused for a certificate is logged, once, and who just goes away is not.
func TestTLS_RejectedClientsAreLogged(t *testing.T) {
	ca := newAuthority(t, "ca")
	cert, key := ca.sign("server", "server")
	var log lockedLog
	s, err := Start(Config{Listen: Listen{Etcd: "127.0.0.1:0"}, TLS: Ports{Etcd: TLS{Cert: cert, Key: key, ClientCA: ca.file}}}, "test", env.Real(),
		slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	goes, err := net.Dial("tcp", s.Addr().Etcd)
	if err != nil {
		t.Fatal(err)
	}
	if err := goes.Close(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c, err := ca.dial(s.Addr().Etcd, "", "")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a client without a certificate got an answer")
		}
		_ = c.Close()
	}
	const line = "rejected connection on client endpoint"
	for end := time.Now().Add(30 * time.Second); !strings.Contains(log.String(), line); {
		if time.Now().After(end) {
			t.Fatalf("nothing is said:\n%s", log.String())
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), line); n != 1 || !strings.Contains(log.String(), "client didn't provide a certificate") {
		t.Errorf("said %d times:\n%s", n, log.String())
	}
}

func TestTLS_VersionsAndCiphers(t *testing.T) {
	ca := newAuthority(t, "ca")
	cert, key := ca.sign("server", "server")
	const only = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"
	s := startTLS(t, Config{
		Listen: Listen{Redis: "127.0.0.1:0", Etcd: "127.0.0.1:0"},
		TLS: Ports{
			Redis: TLS{Cert: cert, Key: key, MaxVersion: "1.2", Ciphers: []string{only}}, Etcd: TLS{Auto: true, MinVersion: "1.3"},
		},
	}, slog.New(slog.DiscardHandler))
	dial := func(addr string, c *tls.Config) (tls.ConnectionState, error) {
		c.InsecureSkipVerify = true
		nc, err := tls.Dial("tcp", addr, c)
		if err != nil {
			return tls.ConnectionState{}, err
		}
		defer nc.Close()
		return nc.ConnectionState(), nil
	}
	if cs, err := dial(s.Addr().Redis, &tls.Config{}); err != nil || cs.Version != tls.VersionTLS12 || cs.CipherSuite != tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 {
		t.Errorf("version %x, suite %x: %v", cs.Version, cs.CipherSuite, err)
	}
	if _, err := dial(s.Addr().Redis, &tls.Config{MinVersion: tls.VersionTLS13}); err == nil {
		t.Error("TLS 1.3 is there although 1.2 is the highest")
	}
	if _, err := dial(s.Addr().Redis, &tls.Config{CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}); err == nil {
		t.Error("another cipher suite was taken")
	}
	if _, err := dial(s.Addr().Etcd, &tls.Config{MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 is there although 1.3 is the lowest")
	}
	for want, bad := range map[string]TLS{
		`min_version is "1.1"`:                  {MinVersion: "1.1"},
		"so that there is none":                 {MinVersion: "1.3", MaxVersion: "1.2"},
		"leave one of them out":                 {MinVersion: "1.3", Ciphers: []string{only}},
		"is insecure, and not served":           {Ciphers: []string{"TLS_RSA_WITH_RC4_128_SHA"}},
		`there is no cipher suite "X"`:          {Ciphers: []string{"X"}},
		"client_crl needs client_ca":            {ClientCRL: "x"},
		"tls.redis: max_version is \"TLS 1.3\"": {MaxVersion: "TLS 1.3"},
	} {
		bad.Cert, bad.Key = cert, key
		_, err := Start(Config{Listen: Listen{Redis: "127.0.0.1:0"}, TLS: Ports{Redis: bad}}, "test", env.Real(), slog.New(slog.DiscardHandler))
		if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// lockedLog is written to by a server while a test reads it.
type lockedLog struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
