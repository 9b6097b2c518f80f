package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"log/slog"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
)

// TLS says how the connections to one port are secured. Files are PEM, and are read again when they have changed, so that
// certificates can be renewed while the node runs. The zero value means plain TCP.
type TLS struct {
	// Cert and Key are the files of this node's certificate, with those between it and the root, and of its private key.
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	// ClientCA is the file of the certificates that clients' certificates must be signed by. Clients that show none are refused
	// then. On the peer port both sides are checked, so that it is needed there.
	ClientCA string `yaml:"client_ca"`
	// ClientNames, if not empty, are the only names that a client's certificate may have, as its common name or a DNS name.
	ClientNames []string `yaml:"client_names"`
	// Auto makes a certificate in memory that nobody can check: it hides what is said from those who only listen, and keeps nobody out.
	Auto bool `yaml:"auto"`
}

// Ports holds the TLS settings of each port that can have any.
type Ports struct {
	Peer  TLS `yaml:"peer"`
	Redis TLS `yaml:"redis"`
	Kafka TLS `yaml:"kafka"`
	Etcd  TLS `yaml:"etcd"`
}

// on says whether a port has TLS.
func (t *TLS) on() bool {
	return t.Auto || t.Cert != "" || t.Key != "" || t.ClientCA != "" || len(t.ClientNames) > 0
}

// checksClients says whether whoever connects must have a certificate.
func (t *TLS) checksClients() bool { return t.ClientCA != "" }

func (t *TLS) check(port string) error {
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "configuration: tls."+port+": "+format, args...)
	}
	switch {
	case !t.on():
		return nil
	case t.Auto && (t.Cert != "" || t.Key != "" || t.ClientCA != "" || len(t.ClientNames) > 0):
		return bad("auto makes a certificate that nobody can check; leave it out, or the rest")
	case t.Auto:
		return nil
	case t.Cert == "" || t.Key == "":
		return bad("cert and key belong together; set both")
	case port == "peer" && t.ClientCA == "":
		return bad("client_ca is missing; nodes check each other's certificates")
	case len(t.ClientNames) > 0 && t.ClientCA == "":
		return bad("client_names needs client_ca, the certificates that those of clients are signed by")
	}
	return nil
}

// secure is the TLS of one port at work.
type secure struct {
	cfg  TLS
	alpn []string
	log  *slog.Logger
	// probe is the certificate with which this node looks at its own port: nobody else has its key.
	probe tls.Certificate

	mu sync.Mutex
	// now is what new connections get; looked is when the files were last looked at, and seen what they were then. Guarded by mu.
	now    *tls.Config
	looked time.Time
	seen   [3]os.FileInfo
	// failed is why files that have changed cannot be used, as it was logged last. Guarded by mu.
	failed string
}

// lookEvery is how often files are looked at, at most.
const lookEvery = time.Second

// newSecure reads the files of a port. hosts are the names of this node in a certificate that is made here.
func newSecure(cfg TLS, alpn, hosts []string, log *slog.Logger) (*secure, error) {
	s := &secure{cfg: cfg, alpn: alpn, log: log}
	var err error
	if s.probe, err = selfSigned("quorate-probe", nil); err != nil {
		return nil, err
	}
	if cfg.Auto {
		c, err := selfSigned("quorate", hosts)
		if err != nil {
			return nil, err
		}
		s.now = &tls.Config{Certificates: []tls.Certificate{c}, NextProtos: alpn, MinVersion: tls.VersionTLS12}
		return s, nil
	}
	if s.now, err = s.load(); err != nil {
		return nil, err
	}
	s.seen = s.files()
	return s, nil
}

func (s *secure) files() (out [3]os.FileInfo) {
	for i, f := range []string{s.cfg.Cert, s.cfg.Key, s.cfg.ClientCA} {
		// A file that is away is a change, too.
		out[i], _ = os.Stat(f)
	}
	return out
}

func (s *secure) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(s.cfg.Cert, s.cfg.Key)
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "certificate %s with key %s", s.cfg.Cert, s.cfg.Key)
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: s.alpn, MinVersion: tls.VersionTLS12}
	if s.cfg.ClientCA == "" {
		return c, nil
	}
	b, err := os.ReadFile(s.cfg.ClientCA)
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "read client_ca")
	}
	c.ClientCAs = x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(b) {
		return nil, errs.New(errs.Invalid, "client_ca %s has no certificate in PEM form", s.cfg.ClientCA)
	}
	// Nodes check those that they call with the same certificates, without the probe's.
	c.RootCAs = c.ClientCAs.Clone()
	c.ClientCAs.AddCert(s.probe.Leaf)
	c.ClientAuth = tls.RequireAndVerifyClientCert
	if len(s.cfg.ClientNames) > 0 {
		c.VerifyConnection = s.named
	}
	return c, nil
}

// named refuses a client whose certificate has none of the names that are allowed.
func (s *secure) named(cs tls.ConnectionState) error {
	leaf := cs.PeerCertificates[0]
	if leaf.Equal(s.probe.Leaf) || slices.Contains(s.cfg.ClientNames, leaf.Subject.CommonName) {
		return nil
	}
	for _, n := range leaf.DNSNames {
		if slices.Contains(s.cfg.ClientNames, n) {
			return nil
		}
	}
	return errs.New(errs.Denied, "the certificate of %q has none of the names in client_names", leaf.Subject.CommonName)
}

// current returns what new connections get, after a look at the files.
func (s *secure) current(now time.Time) *tls.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Auto || now.Sub(s.looked) < lookEvery {
		return s.now
	}
	s.looked = now
	files := s.files()
	if same(files, s.seen) {
		return s.now
	}
	// Two files are not replaced at one moment: until they fit, what was read before is used.
	c, err := s.load()
	switch {
	case err == nil:
		s.now, s.seen, s.failed = c, files, ""
		s.log.Info("certificates have changed and are in use")
	case err.Error() != s.failed:
		s.failed = err.Error()
		s.log.Warn("certificates have changed and cannot be used; those before stay in use", "error", err)
	}
	return s.now
}

func same(a, b [3]os.FileInfo) bool {
	for i := range a {
		if (a[i] == nil) != (b[i] == nil) || a[i] != nil && (!a[i].ModTime().Equal(b[i].ModTime()) || a[i].Size() != b[i].Size()) {
			return false
		}
	}
	return true
}

// server returns the configuration of a listener.
func (s *secure) server(e *env.Env) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.current(e.Now()), nil },
	}
}

// dial returns a function that connects to other nodes' ports.
func (s *secure) dial(e *env.Env) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		nc, err := e.Dial(ctx, addr)
		if err != nil {
			return nil, err
		}
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			_ = nc.Close()
			return nil, errs.Wrap(errs.Invalid, err, "peer address %q", addr)
		}
		c := s.current(e.Now()).Clone()
		c.ServerName, c.InsecureSkipVerify = host, s.cfg.Auto
		// The names that clients may have are no matter of those that are called.
		c.VerifyConnection = nil
		tc := tls.Client(nc, c)
		if err := tc.HandshakeContext(ctx); err != nil {
			_ = nc.Close()
			return nil, errs.Wrap(errs.Denied, err, "secure the link to %s", addr)
		}
		return tc, nil
	}
}

// look returns the configuration with which the node looks at its own port. Who answers there is this process, or the port is not
// its own; whether clients trust the certificate is theirs to say.
func (s *secure) look() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{s.probe}, InsecureSkipVerify: true, NextProtos: s.alpn, MinVersion: tls.VersionTLS12} //nolint:gosec // see above
}

// secured reads the TLS settings of all ports.
func secured(c *Config, log *slog.Logger) (map[string]*secure, error) {
	out := map[string]*secure{}
	for _, p := range []struct {
		name              string
		tls               TLS
		alpn              []string
		listen, advertise string
	}{
		{"peer", c.TLS.Peer, nil, c.Listen.Peer, c.Peers[c.Node]},
		{"redis", c.TLS.Redis, nil, c.Listen.Redis, c.Advertise.Redis},
		{"kafka", c.TLS.Kafka, nil, c.Listen.Kafka, c.Advertise.Kafka},
		// A client that can do both wants the gateway: gRPC's offer h2 alone.
		{"etcd", c.TLS.Etcd, []string{"http/1.1", "h2"}, c.Listen.Etcd, c.Advertise.Etcd},
	} {
		if !p.tls.on() {
			continue
		}
		s, err := newSecure(p.tls, p.alpn, hostsOf(p.listen, p.advertise), log.With("port", p.name))
		if err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "configuration: tls.%s", p.name)
		}
		out[p.name] = s
	}
	return out, nil
}

// selfSigned makes a certificate that signs itself, good for a year.
func selfSigned(name string, hosts []string) (tls.Certificate, error) {
	fail := func(err error) (tls.Certificate, error) {
		return tls.Certificate{}, errs.Wrap(errs.Internal, err, "make a certificate")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return fail(err)
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(id[:]), Subject: pkix.Name{CommonName: name + "-" + hex.EncodeToString(id[:4])},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0), BasicConstraintsValid: true, IsCA: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if h != "" {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return fail(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return fail(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// hostsOf returns the hosts of addresses, for a certificate.
func hostsOf(addrs ...string) []string {
	hosts := []string{"localhost"}
	for _, a := range addrs {
		if h, _, err := net.SplitHostPort(a); err == nil && h != "" && !slices.Contains(hosts, h) {
			hosts = append(hosts, strings.Trim(h, "[]"))
		}
	}
	return hosts
}
