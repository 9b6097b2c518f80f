package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
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
	// then. On the peer port both sides are checked, so that it is needed there, unless there are no other nodes.
	ClientCA string `yaml:"client_ca"`
	// DialCert and DialKey, if set, are what this node shows to the nodes that it calls, in place of Cert and Key: for certificates that are good for one side only.
	DialCert string `yaml:"dial_cert"`
	DialKey  string `yaml:"dial_key"`
	// ClientNames, if not empty, are the only names that a client's certificate may have, as its common name or a DNS name.
	ClientNames []string `yaml:"client_names"`
	// ClientCRL is a file of revocation lists (RFC 5280, section 5), PEM or DER: certificates that one of them names are refused. It needs ClientCA.
	ClientCRL string `yaml:"client_crl"`
	// MinVersion and MaxVersion bound the version of TLS: "1.2" or "1.3". Default both, 1.2 to 1.3.
	MinVersion string `yaml:"min_version"`
	MaxVersion string `yaml:"max_version"`
	// Ciphers, if not empty, are the only cipher suites for TLS 1.2, by their names in RFC 8447's registry. Those that Go counts as insecure are refused. TLS 1.3 has
	// none to choose from.
	Ciphers []string `yaml:"ciphers"`
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
	return t.Auto || t.Cert != "" || t.Key != "" || t.ClientCA != "" || t.DialCert != "" || t.DialKey != "" || len(t.ClientNames) > 0 || t.ClientCRL != "" ||
		t.MinVersion != "" || t.MaxVersion != "" || len(t.Ciphers) > 0
}

// checksClients says whether whoever connects must have a certificate.
func (t *TLS) checksClients() bool { return t.ClientCA != "" }

func (t *TLS) check(port string, alone bool) error {
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "configuration: tls."+port+": "+format, args...)
	}
	switch {
	case !t.on():
		return nil
	case t.Auto && (t.Cert != "" || t.Key != "" || t.ClientCA != "" || t.DialCert != "" || t.DialKey != "" || len(t.ClientNames) > 0 || t.ClientCRL != ""):
		return bad("auto makes a certificate that nobody can check; leave it out, or the rest")
	case t.Auto:
		_, err := t.base()
		return errs.Wrap(errs.Invalid, err, "configuration: tls.%s", port)
	case t.Cert == "" || t.Key == "":
		return bad("cert and key belong together; set both")
	case (t.DialCert == "") != (t.DialKey == ""):
		return bad("dial_cert and dial_key belong together; set both")
	case t.DialCert != "" && port != "peer":
		return bad("dial_cert is for calls to other nodes, which are those of tls.peer")
	case port == "peer" && t.ClientCA == "" && !alone:
		return bad("client_ca is missing; nodes check each other's certificates")
	case len(t.ClientNames) > 0 && t.ClientCA == "":
		return bad("client_names needs client_ca, the certificates that those of clients are signed by")
	case slices.Contains(t.ClientNames, ""):
		return bad("client_names has an empty name, which is that of every certificate without a common name; leave it out")
	case t.ClientCRL != "" && t.ClientCA == "":
		return bad("client_crl needs client_ca, the certificates that those of clients are signed by")
	}
	_, err := t.base()
	return errs.Wrap(errs.Invalid, err, "configuration: tls.%s", port)
}

// tlsVersions are those that can be asked for.
var tlsVersions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

// base returns what does not come from files.
func (t *TLS) base() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13}
	for _, v := range []struct {
		name, want string
		to         *uint16
	}{{"min_version", t.MinVersion, &c.MinVersion}, {"max_version", t.MaxVersion, &c.MaxVersion}} {
		if v.want == "" {
			continue
		}
		var ok bool
		if *v.to, ok = tlsVersions[v.want]; !ok {
			return nil, errs.New(errs.Invalid, "%s is %q; it is 1.2 or 1.3", v.name, v.want)
		}
	}
	switch {
	case c.MinVersion > c.MaxVersion:
		return nil, errs.New(errs.Invalid, "min_version is %s and max_version %s, so that there is none", t.MinVersion, t.MaxVersion)
	case len(t.Ciphers) > 0 && c.MinVersion == tls.VersionTLS13:
		return nil, errs.New(errs.Invalid, "ciphers are for TLS 1.2, which min_version excludes; leave one of them out")
	}
	for _, name := range t.Ciphers {
		id, err := cipherSuite(name)
		if err != nil {
			return nil, err
		}
		c.CipherSuites = append(c.CipherSuites, id)
	}
	return c, nil
}

func cipherSuite(name string) (uint16, error) {
	for _, s := range tls.CipherSuites() {
		// Two have a longer name today than when they were new.
		if s.Name == name || strings.HasSuffix(s.Name, "_CHACHA20_POLY1305_SHA256") && s.Name == name+"_SHA256" {
			return s.ID, nil
		}
	}
	for _, s := range tls.InsecureCipherSuites() {
		if s.Name == name {
			return 0, errs.New(errs.Invalid, "cipher suite %s is insecure, and not served", name)
		}
	}
	return 0, errs.New(errs.Invalid, "there is no cipher suite %q; names are such as TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", name)
}

// secure is the TLS of one port at work.
type secure struct {
	cfg  TLS
	alpn []string
	log  *slog.Logger
	// probe is the certificate with which this node looks at its own port: nobody else has its key.
	probe tls.Certificate

	mu sync.Mutex
	// now is what was read last; looked is when the files were last looked at, and seen what they were then. Guarded by mu.
	now    loaded
	looked time.Time
	seen   files
	// failed is why files that have changed cannot be used, as it was logged last. Guarded by mu.
	failed string
}

// loaded is what the files say.
type loaded struct {
	// in is what new connections get, out the certificates to show to others.
	in      *tls.Config
	out     []tls.Certificate
	revoked map[revocation]bool
}

// lookEvery is how often files are looked at, at most.
const lookEvery = time.Second

// newSecure reads the files of a port. hosts are the names of this node in a certificate that is made here.
func newSecure(cfg TLS, alpn, hosts []string, log *slog.Logger) (*secure, error) {
	s := &secure{cfg: cfg, alpn: alpn, log: log}
	var err error
	if s.probe, err = selfSigned("quorate-probe", nil, time.Unix(0, 0), probeEnds); err != nil {
		return nil, err
	}
	if cfg.Auto {
		now := time.Now()
		c, err := selfSigned("quorate", hosts, now.Add(-time.Hour), now.AddDate(1, 0, 0))
		if err != nil {
			return nil, err
		}
		in, err := cfg.base()
		if err != nil {
			return nil, err
		}
		in.Certificates, in.NextProtos = []tls.Certificate{c}, alpn
		s.now = loaded{in: in, out: in.Certificates}
		return s, nil
	}
	// What changes while it is read is read again.
	s.seen = s.files()
	if s.now, err = s.load(); err != nil {
		return nil, err
	}
	return s, nil
}

// files are the states of a port's files.
type files [6]os.FileInfo

func (s *secure) files() (out files) {
	for i, f := range []string{s.cfg.Cert, s.cfg.Key, s.cfg.ClientCA, s.cfg.DialCert, s.cfg.DialKey, s.cfg.ClientCRL} {
		// A file that is away is a change, too.
		out[i], _ = os.Stat(f)
	}
	return out
}

// pair reads a certificate and its key.
func pair(certFile, keyFile string) (tls.Certificate, error) {
	b, err := os.ReadFile(certFile)
	if err != nil {
		return tls.Certificate{}, errs.Wrap(errs.Invalid, err, "read a certificate")
	}
	// A file may have the key, too.
	if _, err := certificates(certFile, b, true); err != nil {
		return tls.Certificate{}, err
	}
	k, err := os.ReadFile(keyFile)
	if err != nil {
		return tls.Certificate{}, errs.Wrap(errs.Invalid, err, "read the key of a certificate")
	}
	c, err := tls.X509KeyPair(b, k)
	return c, errs.Wrap(errs.Invalid, err, "certificate %s with key %s", certFile, keyFile)
}

// certificates reads all certificates of a file's bytes. What cannot be read is refused: a certificate that is passed over is missed only by whoever needs it. So is, unless more, what is
// something else.
func certificates(file string, b []byte, more bool) ([]*x509.Certificate, error) {
	all, err := blocks(file, b)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for _, p := range all {
		if p.Type != "CERTIFICATE" {
			if more {
				continue
			}
			return nil, errs.New(errs.Invalid, "%s has a %s beside its certificates, or in place of them; leave it out", file, p.Type)
		}
		c, err := x509.ParseCertificate(p.Bytes)
		if err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "certificate %d of %s cannot be read", len(out)+1, file)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errs.New(errs.Invalid, "%s has no certificate in PEM form", file)
	}
	return out, nil
}

// blocks reads all blocks in PEM form, of which package pem passes over those that it cannot read.
func blocks(file string, b []byte) (all []*pem.Block, err error) {
	for p, rest := pem.Decode(b); p != nil; p, rest = pem.Decode(rest) {
		all = append(all, p)
	}
	if n := max(bytes.Count(b, []byte("-----BEGIN ")), bytes.Count(b, []byte("-----END "))); len(all) != n {
		return nil, errs.New(errs.Invalid, "%s has %d blocks in PEM form, of which %d can be read: it is damaged, or not all there", file, n, len(all))
	}
	return all, nil
}

// load reads the files.
func (s *secure) load() (loaded, error) {
	var l loaded
	cert, err := pair(s.cfg.Cert, s.cfg.Key)
	if err != nil {
		return l, err
	}
	l.out = []tls.Certificate{cert}
	if s.cfg.DialCert != "" {
		if l.out[0], err = pair(s.cfg.DialCert, s.cfg.DialKey); err != nil {
			return l, err
		}
	}
	if l.in, err = s.cfg.base(); err != nil {
		return l, err
	}
	l.in.Certificates, l.in.NextProtos = []tls.Certificate{cert}, s.alpn
	if s.cfg.ClientCA == "" {
		return l, nil
	}
	b, err := os.ReadFile(s.cfg.ClientCA)
	if err != nil {
		return l, errs.Wrap(errs.Invalid, err, "read client_ca")
	}
	l.in.ClientCAs = x509.NewCertPool()
	cas, err := certificates("client_ca "+s.cfg.ClientCA, b, false)
	if err != nil {
		return l, err
	}
	for _, c := range cas {
		l.in.ClientCAs.AddCert(c)
	}
	if l.revoked, err = s.revocations(); err != nil {
		return l, err
	}
	// Nodes check those that they call with the same certificates, without the probe's.
	l.in.RootCAs = l.in.ClientCAs.Clone()
	l.in.ClientCAs.AddCert(s.probe.Leaf)
	l.in.ClientAuth = tls.RequireAndVerifyClientCert
	l.in.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := l.current(cs); err != nil {
			return err
		}
		return s.named(cs)
	}
	return l, nil
}

// current refuses certificates that are revoked.
func (l *loaded) current(cs tls.ConnectionState) error {
	if c := l.revokedOf(cs.PeerCertificates); c != nil {
		return errs.New(errs.Denied, "client certificate authentication failed: the certificate of %q is revoked", c.Subject.CommonName)
	}
	// A certificate between a client's and the root may stand in client_ca, where the client need not show it.
	var c *x509.Certificate
	for _, chain := range cs.VerifiedChains {
		if c = l.revokedOf(chain); c == nil {
			return nil
		}
	}
	if c != nil {
		return errs.New(errs.Denied, "client certificate authentication failed: the certificate of %q, which signs, is revoked", c.Subject.CommonName)
	}
	return nil
}

// revokedOf returns the first certificate that is revoked.
func (l *loaded) revokedOf(all []*x509.Certificate) *x509.Certificate {
	for _, c := range all {
		if l.revoked[revocation{string(c.RawIssuer), c.SerialNumber.String()}] {
			return c
		}
	}
	return nil
}

// revocation names a certificate that is revoked: serial numbers are those of its issuer.
type revocation struct{ issuer, serial string }

// revocations reads the revocation lists. They are believed as they are: who can write the file can write client_ca too.
func (s *secure) revocations() (map[revocation]bool, error) {
	if s.cfg.ClientCRL == "" {
		return nil, nil
	}
	b, err := os.ReadFile(s.cfg.ClientCRL)
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "read client_crl")
	}
	all, err := blocks("client_crl "+s.cfg.ClientCRL, b)
	if err != nil {
		return nil, err
	}
	lists := [][]byte{b}
	if len(all) > 0 {
		lists = nil
		for _, p := range all {
			lists = append(lists, p.Bytes)
		}
	}
	out := map[revocation]bool{}
	for _, der := range lists {
		l, err := x509.ParseRevocationList(der)
		if err == nil && len(l.Raw) != len(der) {
			err = errors.New("there is more behind it; of several lists each is in PEM form")
		}
		if err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "client_crl %s has something that is no revocation list, in PEM or DER form", s.cfg.ClientCRL)
		}
		if !l.NextUpdate.IsZero() && time.Now().After(l.NextUpdate) {
			s.log.Warn("a revocation list is out of date; it is used all the same", "file", s.cfg.ClientCRL, "next_update", l.NextUpdate)
		}
		for _, r := range l.RevokedCertificateEntries {
			out[revocation{string(l.RawIssuer), r.SerialNumber.String()}] = true
		}
	}
	return out, nil
}

// named refuses a client whose certificate has none of the names that are allowed, if there are such.
func (s *secure) named(cs tls.ConnectionState) error {
	leaf := cs.PeerCertificates[0]
	if len(s.cfg.ClientNames) == 0 || leaf.Equal(s.probe.Leaf) || slices.Contains(s.cfg.ClientNames, leaf.Subject.CommonName) {
		return nil
	}
	for _, n := range leaf.DNSNames {
		if slices.Contains(s.cfg.ClientNames, n) {
			return nil
		}
	}
	return errs.New(errs.Denied, "client certificate authentication failed: the certificate of %q has none of the names in client_names", leaf.Subject.CommonName)
}

// current returns what the files say, after a look at them.
func (s *secure) current(now time.Time) loaded {
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
	l, err := s.load()
	switch {
	case err == nil:
		s.now, s.seen, s.failed = l, files, ""
		s.log.Info("certificates have changed and are in use")
	case err.Error() != s.failed:
		s.failed = err.Error()
		s.log.Warn("certificates have changed and cannot be used; those before stay in use", "error", err)
	}
	return s.now
}

func same(a, b files) bool {
	for i := range a {
		if (a[i] == nil) != (b[i] == nil) || a[i] != nil && (!a[i].ModTime().Equal(b[i].ModTime()) || a[i].Size() != b[i].Size() || !os.SameFile(a[i], b[i])) {
			return false
		}
	}
	return true
}

// server returns the configuration of a listener.
func (s *secure) server(e *env.Env) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.current(e.Now()).in, nil },
	}
}

// dial returns a function that connects to other nodes' ports.
func (s *secure) dial(e *env.Env) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		nc, err := e.Dial(ctx, addr)
		if err != nil {
			return nil, err
		}
		host, err := hostOf(addr)
		if err != nil {
			_ = nc.Close()
			return nil, errs.Wrap(errs.Invalid, err, "peer address %q", addr)
		}
		l := s.current(e.Now())
		c := l.in.Clone()
		c.Certificates = l.out
		c.ServerName, c.InsecureSkipVerify = host, s.cfg.Auto
		// The names that clients may have are no matter of those that are called.
		c.VerifyConnection = l.current
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
		addrs := append(strings.Split(p.advertise, ","), p.listen)
		for _, m := range c.ListenMore {
			if m.Port == p.name {
				addrs = append(addrs, m.Address)
			}
		}
		s, err := newSecure(p.tls, p.alpn, hostsOf(addrs...), log.With("port", p.name))
		if err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "configuration: tls.%s", p.name)
		}
		out[p.name] = s
	}
	return out, nil
}

// probeEnds is RFC 5280's time of certificates without a well-defined end (section 4.1.2.5). The probe is this process' own and must be good for as long as that runs, however its
// clock is set meanwhile.
var probeEnds = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// selfSigned makes a certificate that signs itself.
func selfSigned(name string, hosts []string, from, to time.Time) (tls.Certificate, error) {
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
	t := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(id[:]), Subject: pkix.Name{CommonName: name + "-" + hex.EncodeToString(id[:4])},
		NotBefore: from, NotAfter: to, BasicConstraintsValid: true, IsCA: true,
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
		// What is advertised may be a URL.
		if _, rest, ok := strings.Cut(a, "://"); ok {
			a = rest
		}
		if h, err := hostOf(a); err == nil && h != "" && !slices.Contains(hosts, h) {
			hosts = append(hosts, strings.Trim(h, "[]"))
		}
	}
	return hosts
}

// hostOf returns the host of an address. A socket's is in the name of its file, if that is like host:port, as etcd's are, and else this machine.
func hostOf(addr string) (string, error) {
	network, at := env.Network(addr)
	if network == "unix" {
		if at = filepath.Base(at); !strings.Contains(at, ":") {
			return "localhost", nil
		}
	}
	host, _, err := net.SplitHostPort(at)
	return host, err
}
