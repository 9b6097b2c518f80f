package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/protocol/etcd"
	"github.com/quorate/quorate/internal/shard"
)

// Config describes a node. The YAML names stand in the tags; unknown keys are refused.
type Config struct {
	// Cluster is the cluster's name, the same on every node, at most 1,024 bytes without control characters. Default "quorate".
	Cluster string `yaml:"cluster"`
	// Node is this node's number, 1 to 65,535. Default 1.
	Node uint32 `yaml:"node"`
	// Data is the data directory. Empty means memory only, which is for development: everything is lost on exit.
	Data string `yaml:"data"`
	// Listen holds the addresses to listen on.
	Listen Listen `yaml:"listen"`
	// ListenMore holds further addresses of the peer and the etcd port.
	ListenMore []ListenMore `yaml:"listen_more"`
	// Advertise holds the addresses that clients are told; an empty one is taken from Listen, which must then not be a
	// wildcard. Of etcd it may be several, with commas between, and each may be a URL.
	Advertise Listen `yaml:"advertise"`
	// Peers holds the peer address of every member, this node included, by its number, 1 to 65,535. Empty means a single node.
	// 1, 3 or 5 members.
	Peers map[uint32]string `yaml:"peers"`
	// Shards is the number of shards of space "default", the same on every node, and fixed when the cluster is made.
	// Default 1, which makes everything in it atomic with everything else.
	Shards int `yaml:"shards"`
	// Spaces are further worlds beside "default", by name, each with an etcd key space and etcd users of its own. They are the same on every
	// node and fixed when the cluster is made; each takes a shard. Their names are lower-case letters, digits and hyphens, at most 64.
	Spaces map[string]SpaceConfig `yaml:"spaces"`
	// LeaseReads lets leaders answer linearizable reads by themselves, trusting that clock rates differ by less than 10 %.
	// Default false.
	LeaseReads bool `yaml:"lease_reads"`
	// TLS secures the connections to ports.
	TLS Ports `yaml:"tls"`
	// EtcdAuth holds what may be chosen of etcd's authentication, which its clients enable.
	EtcdAuth EtcdAuth `yaml:"etcd_auth"`
	// EtcdProgressInterval is how often a quiet etcd watch that asked for it is told how far it is, 100 ms or more. Default 10 minutes, as in
	// etcd; Kubernetes wants 5 seconds.
	EtcdProgressInterval time.Duration `yaml:"etcd_progress_interval"`
	// EtcdRequestBytesMax bounds one request of an etcd client, up to 10 MiB; default 1.5 MiB, as in etcd.
	EtcdRequestBytesMax int `yaml:"etcd_request_bytes_max"`
	// EtcdTxnOpsMax bounds the operations of one transaction of an etcd client, up to 10,000; default 128, as in etcd.
	EtcdTxnOpsMax int `yaml:"etcd_txn_ops_max"`
	// EtcdSlowRequest is how long a request of an etcd client may take before the log says so, at most once a second. Default 0, which is never.
	EtcdSlowRequest time.Duration `yaml:"etcd_slow_request"`
	// EtcdCompaction is the history of etcd's key spaces that goes by itself.
	EtcdCompaction EtcdCompaction `yaml:"etcd_compaction"`
	// Insecure allows ports that check nobody, by certificate, on addresses that are not loopback.
	Insecure bool `yaml:"insecure"`
	// RemotePprof shows the profiles of the HTTP port to other machines, too. Default false: they cost time, and tell of what the node holds.
	RemotePprof bool `yaml:"remote_pprof"`
	// MemberNames are what etcd's clients are told that the members are called, by number, together with their peer URLs. Default node1 and
	// so on, without URLs. It is no key of the file: quorate etcd sets it.
	MemberNames map[uint32]string `yaml:"-"`
	// Sandbox holds what only drills may set.
	Sandbox Sandbox `yaml:"sandbox"`
}

// SpaceConfig says how clients reach a space: by a port of its own, or on listen.etcd by a name in TLS, by their users, or by a path. Each way
// must be opened.
type SpaceConfig struct {
	// Etcd is the address of its own etcd port, and AdvertiseEtcd what clients are told, as in Listen and Advertise.
	Etcd          string `yaml:"etcd"`
	AdvertiseEtcd string `yaml:"advertise_etcd"`
	// TLSNames are the names by which clients that connect to listen.etcd ask for the space (server name indication, RFC 6066).
	TLSNames []string `yaml:"tls_names"`
	// Users lets clients log in to listen.etcd as SPACE/USER, a user of the space, which must have enabled authentication. No user of any space
	// may then have a name that begins with SPACE/. Default false.
	Users bool `yaml:"users"`
	// Path shows the space below /spaces/NAME/ of listen.etcd, to whoever can reach that. Default false.
	Path bool `yaml:"path"`
}

// ListenMore is one more address of a port.
type ListenMore struct {
	// Port is peer or etcd.
	Port string `yaml:"port"`
	// Address is host:port, or unix:PATH.
	Address string `yaml:"address"`
	// Serve narrows what an etcd address serves; empty is all.
	Serve etcd.Scope `yaml:"serve"`
	// TLS is how far the port's settings hold here; empty is in full.
	TLS Secured `yaml:"tls"`
}

// Secured says whether an address of a secured port is.
type Secured string

// How far TLS holds.
const (
	SecuredFully Secured = ""
	// SecuredIfAsked takes connections with TLS and without.
	SecuredIfAsked Secured = "optional"
	SecuredNever   Secured = "none"
)

// Listen holds an address for each port: host:port, or, but for Redis and Kafka, unix:PATH. An empty one is not served.
type Listen struct {
	Peer  string `yaml:"peer"`
	Redis string `yaml:"redis"`
	Kafka string `yaml:"kafka"`
	Etcd  string `yaml:"etcd"`
	HTTP  string `yaml:"http"`
}

// EtcdCompaction says for how long, or how far back, history can be read. The zero value keeps all until a client compacts.
type EtcdCompaction struct {
	// Period is how long a revision can be read when it is no longer the newest, 1 s to a year.
	Period time.Duration `yaml:"period"`
	// Revisions is how many revisions before the newest can be read.
	Revisions int64 `yaml:"revisions"`
}

// Limits of what an etcd client may ask for at once: a request is one entry of the raft log, which has at most 16 MiB.
const (
	requestBytesLimit = 10 << 20
	txnOpsLimit       = 10_000
)

// EtcdProgressIntervalMin is the least Config.EtcdProgressInterval, that of etcd (minWatchProgressInterval): streams with many watches have much to say.
const EtcdProgressIntervalMin = 100 * time.Millisecond

// compactPeriodMax is a year.
const compactPeriodMax = 365 * 24 * time.Hour

// EtcdAuth chooses what logins cost and for how long they count.
type EtcdAuth struct {
	// BcryptCost is that of passwords, 4 to 31, default 10: hashing or comparing one takes 2^BcryptCost steps.
	BcryptCost int `yaml:"bcrypt_cost"`
	// TokenTTL is how long a token counts after a login, and after a connection has used it, in seconds, default 300.
	TokenTTL int `yaml:"token_ttl"`
	// JWT, if its method is set, makes tokens that others can make or read. They count for TokenTTL after the login, however they are used. It is the same on
	// every node.
	JWT EtcdJWT `yaml:"jwt"`
}

// EtcdJWT says how tokens are signed that are JSON web tokens (RFC 7519) with etcd's claims: username, revision, exp.
type EtcdJWT struct {
	// Method is one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA, HS256, HS384 and HS512. Tokens signed otherwise are refused.
	Method string `yaml:"method"`
	// PublicKey and PrivateKey are PEM files, for HS the private one is the secret itself, at least 32 bytes. They are read at the start. Without the private key nobody can log
	// in with a password: tokens come from elsewhere.
	PublicKey  string `yaml:"public_key"`
	PrivateKey string `yaml:"private_key"`
}

// open reads the keys. It returns nil if there is no method.
func (j *EtcdJWT) open() (*etcd.JWT, error) {
	if j.Method == "" {
		if j.PublicKey != "" || j.PrivateKey != "" {
			return nil, errs.New(errs.Invalid, "configuration: etcd_auth.jwt has keys and no method, which says how tokens are signed")
		}
		return nil, nil
	}
	var keys [2][]byte
	for i, file := range []string{j.PublicKey, j.PrivateKey} {
		if file == "" {
			continue
		}
		var err error
		if keys[i], err = os.ReadFile(file); err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "configuration: read a key of etcd_auth.jwt")
		}
	}
	out, err := etcd.NewJWT(j.Method, keys[0], keys[1])
	return out, errs.Wrap(errs.Invalid, err, "configuration: etcd_auth.jwt")
}

// Sandbox weakens a node on purpose, so that a drill can show that it notices. All but Enabled are refused without Enabled.
type Sandbox struct {
	// Enabled marks the node's cluster as one to be thrown away. Bytes that are not synced are then lost when the process
	// is killed, as in a power cut.
	Enabled bool `yaml:"enabled"`
	// NoFsync acknowledges without syncing.
	NoFsync bool `yaml:"no_fsync"`
	// StaleReads answers reads from whatever the node has.
	StaleReads bool `yaml:"stale_reads"`
	// NoVerify skips the checksums of the raft log.
	NoVerify bool `yaml:"no_verify"`
}

// ReadConfig reads a node's configuration from a YAML file, strictly. The file may be a pipe; ReadConfig waits for who writes it until ctx ends.
func ReadConfig(ctx context.Context, path string) (Config, error) {
	b, err := readFile(ctx, path)
	if err != nil {
		return Config{}, err
	}
	var c Config
	var doc yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, errs.New(errs.Invalid, "configuration %s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := decodeConfig(path, &doc, &c); err != nil {
		return Config{}, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, errs.New(errs.Invalid, "configuration %s: there is a second document, behind ---, which would be ignored; leave it out", path)
	}
	if err := c.fill(); err != nil {
		return Config{}, err
	}
	if l := c.Listen; l == (Listen{}) && len(c.ListenMore) == 0 && len(c.Spaces) == 0 {
		return Config{}, errs.New(errs.Invalid, "configuration %s: no port is set, so that nobody could reach the node; set listen.redis, listen.kafka, listen.etcd or listen.http", path)
	}
	return c, c.checkAdvertisedEtcd()
}

// nodeMax is the largest node number. Replica ids bear 32 bits of it, but Kafka's broker ids are signed, and nobody has that
// many nodes.
const nodeMax = 65_535

// clusterBytesMax bounds the cluster's name. Kafka's clients are told it as a string that may have 32,767 bytes, and cannot read an answer with a longer one.
const clusterBytesMax = 1024

// tokenTTLMax is a year, in seconds.
const tokenTTLMax = 365 * 24 * 3600

// alone says that no other node has what this one has.
func (c *Config) alone() bool { return len(c.Peers) < 2 }

// fill sets the defaults and checks the rest.
func (c *Config) fill() error {
	if c.Cluster == "" {
		c.Cluster = "quorate"
	}
	if c.Node == 0 {
		c.Node = 1
	}
	if c.Shards == 0 {
		c.Shards = 1
	}
	if c.EtcdAuth.BcryptCost == 0 {
		c.EtcdAuth.BcryptCost = 10
	}
	if c.EtcdAuth.TokenTTL == 0 {
		c.EtcdAuth.TokenTTL = 300
	}
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "configuration: "+format, args...)
	}
	if n := len(c.Cluster); n > clusterBytesMax {
		return bad("cluster has %d bytes; it must have at most %d", n, clusterBytesMax)
	}
	if strings.ContainsFunc(c.Cluster, unicode.IsControl) {
		return bad("cluster is %q; it must have no control characters", c.Cluster)
	}
	if c.Shards < 0 || c.Shards > shard.SlotCount {
		return bad("shards is %d; it must be between 1 and %d", c.Shards, shard.SlotCount)
	}
	if b := c.EtcdAuth.BcryptCost; b < 4 || b > 31 {
		return bad("etcd_auth.bcrypt_cost is %d; it must be between 4 and 31", b)
	}
	if ttl := c.EtcdAuth.TokenTTL; ttl < 1 || ttl > tokenTTLMax {
		return bad("etcd_auth.token_ttl is %d s; it must be between 1 and %d", ttl, tokenTTLMax)
	}
	if d := c.EtcdProgressInterval; d != 0 && d < EtcdProgressIntervalMin {
		return bad("etcd_progress_interval is %v; it must be at least %v", d, EtcdProgressIntervalMin)
	}
	if c.EtcdSlowRequest < 0 {
		return bad("etcd_slow_request is %v; it must be positive, or 0 for never", c.EtcdSlowRequest)
	}
	if n := c.EtcdRequestBytesMax; n < 0 || n > requestBytesLimit {
		return bad("etcd_request_bytes_max is %d; it must be between 1 and %d", n, requestBytesLimit)
	}
	if n := c.EtcdTxnOpsMax; n < 0 || n > txnOpsLimit {
		return bad("etcd_txn_ops_max is %d; it must be between 1 and %d", n, txnOpsLimit)
	}
	switch h := c.EtcdCompaction; {
	case h.Period < 0 || h.Period > 0 && h.Period < time.Second || h.Period > compactPeriodMax:
		return bad("etcd_compaction.period is %v; it must be between 1s and a year", h.Period)
	case h.Revisions < 0:
		return bad("etcd_compaction.revisions is %d; it must be positive", h.Revisions)
	case h.Period > 0 && h.Revisions > 0:
		return bad("etcd_compaction has period and revisions; set one of them")
	}
	if c.Node > nodeMax {
		return bad("node is %d; it must be between 1 and %d", c.Node, nodeMax)
	}
	for _, id := range slices.Sorted(maps.Keys(c.Peers)) {
		if id < 1 || id > nodeMax {
			return bad("peers lists node %d; node numbers are between 1 and %d", id, nodeMax)
		}
	}
	if len(c.Peers) > 0 {
		if n := len(c.Peers); n != 1 && n != 3 && n != 5 {
			return bad("peers has %d members; it must have 1, 3 or 5", n)
		}
		if c.Peers[c.Node] == "" {
			return bad("peers does not list this node, %d", c.Node)
		}
		if err := c.checkPeers(); err != nil {
			return err
		}
		if c.Listen.Peer == "" {
			c.Listen.Peer = c.Peers[c.Node]
		}
		if !c.alone() && c.Data == "" && !c.Sandbox.Enabled {
			return bad("a cluster of %d nodes needs data, a directory; without it a restarted node would have forgotten its votes", len(c.Peers))
		}
	}
	if s := c.Sandbox; !s.Enabled && (s.NoFsync || s.StaleReads || s.NoVerify) {
		return bad("sandbox.no_fsync, stale_reads and no_verify need sandbox.enabled: they are for drills only")
	}
	if err := c.checkSpaces(); err != nil {
		return err
	}
	for _, p := range c.ports() {
		if err := p.tls.check(p.name, c.alone()); err != nil {
			return err
		}
		if err := p.check("listen."+p.name, "advertise."+p.name, c.Insecure); err != nil {
			return err
		}
	}
	if err := c.checkMore(); err != nil {
		return err
	}
	if err := c.checkAdvertised(); err != nil {
		return err
	}
	for _, name := range c.spaceNames() {
		p := c.spacePort(name)
		if err := p.check("spaces."+name+".etcd", "spaces."+name+".advertise_etcd", c.Insecure); err != nil {
			return err
		}
	}
	return c.checkTwice()
}

// checkPeers checks the members' addresses: nodes would call one that is none for ever.
func (c *Config) checkPeers() error {
	of := map[string]uint32{}
	for _, id := range slices.Sorted(maps.Keys(c.Peers)) {
		addr := c.Peers[id]
		if other, ok := of[addr]; ok {
			return errs.New(errs.Invalid, "configuration: peers has %s for nodes %d and %d; each has an address of its own", addr, other, id)
		}
		of[addr] = id
		if path, ok := strings.CutPrefix(addr, env.SocketPrefix); ok && path != "" {
			continue
		}
		if !isPort(addr) || !c.alone() && !isTarget(addr) {
			return errs.New(errs.Invalid, "configuration: peers.%d is %q; write host:port", id, addr)
		}
	}
	return nil
}

// checkTwice finds an address that two ports shall have. The second would find it taken, by this very process.
func (c *Config) checkTwice() error {
	of := map[string]string{}
	twice := func(key, addr string) error {
		if _, port, err := net.SplitHostPort(addr); addr == "" || err == nil && port == "0" {
			return nil
		}
		if other, ok := of[addr]; ok {
			return errs.New(errs.Invalid, "configuration: %s and %s are both %s; each port has an address of its own", other, key, addr)
		}
		of[addr] = key
		return nil
	}
	for _, p := range c.ports() {
		if err := twice("listen."+p.name, p.listen); err != nil {
			return err
		}
	}
	for i, m := range c.ListenMore {
		if err := twice(fmt.Sprintf("listen_more, entry %d,", i+1), m.Address); err != nil {
			return err
		}
	}
	for _, name := range c.spaceNames() {
		if err := twice("spaces."+name+".etcd", c.Spaces[name].Etcd); err != nil {
			return err
		}
	}
	return nil
}

// port is an address to listen on.
type port struct {
	name      string
	listen    string
	advertise *string
	tls       *TLS
}

// check checks an address; key and advertiseKey are what the configuration calls it.
func (p *port) check(key, advertiseKey string, insecure bool) error {
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "configuration: "+format, args...)
	}
	if p.listen == "" {
		return nil
	}
	if path, ok := strings.CutPrefix(p.listen, env.SocketPrefix); ok {
		switch {
		case path == "":
			return bad("%s is %q; write unix:PATH", key, p.listen)
		case p.name == "redis" || p.name == "kafka":
			return bad("%s is %q; its clients are told an address to connect to, and must be able to; write host:port", key, p.listen)
		}
		// Who may open the file is a matter of its folder.
		return nil
	}
	host, _, err := net.SplitHostPort(p.listen)
	if err != nil || !isPort(p.listen) {
		return bad("%s is %q; write host:port", key, p.listen)
	}
	if wildcard(host) && p.advertise != nil && *p.advertise == "" {
		return bad("%s is %q, which clients cannot be told; set %s", key, p.listen, advertiseKey)
	}
	if !insecure && p.open() {
		return bad("%s is %q, and the port checks nobody, so only loopback is allowed; set tls.%s.client_ca, or insecure: true to open it all the same", key, p.listen, p.name)
	}
	return nil
}

// isPort says whether an address ends in a port's number or name.
func isPort(addr string) bool {
	_, ok := portOf(addr)
	return ok
}

// isTarget says whether others can connect to an address, as far as its port goes: 0 is any free one to who listens there, and none to others.
func isTarget(addr string) bool {
	n, ok := portOf(addr)
	return ok && n != 0
}

// portOf returns the port in which an address ends as its number or name. Nothing at all would count as 0, and is none.
func portOf(addr string) (n int, ok bool) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil || port == "" {
		return 0, false
	}
	n, err = net.DefaultResolver.LookupPort(context.Background(), "tcp", port)
	return n, err == nil
}

// checkAdvertised checks what clients are told: they must be able to connect to it.
func (c *Config) checkAdvertised() error {
	if c.Advertise.Peer != "" {
		return errs.New(errs.Invalid, "configuration: advertise.peer is %q; nodes know each other by peers, so leave it out", c.Advertise.Peer)
	}
	told := map[string]string{"redis": c.Advertise.Redis, "kafka": c.Advertise.Kafka, "http": c.Advertise.HTTP}
	served := map[string]string{"redis": c.Listen.Redis, "kafka": c.Listen.Kafka, "http": c.Listen.HTTP}
	for _, port := range slices.Sorted(maps.Keys(told)) {
		key, addr := "advertise."+port, told[port]
		if addr != "" && served[port] == "" {
			return unserved(key, addr, "listen."+port)
		}
		if _, ok := strings.CutPrefix(addr, env.SocketPrefix); addr == "" || ok && key == "advertise.http" {
			continue
		}
		if err := reachable(key, addr, addr); err != nil {
			return err
		}
	}
	return nil
}

// unserved is for what clients are told of a port that no key has the node listen on.
func unserved(key, told, listen string) error {
	return errs.New(errs.Invalid, "configuration: %s is %q, and nobody listens there; set %s, or leave it out", key, told, listen)
}

// reachable checks that clients can connect to addr, which is what they are told, or the host and port of that.
func reachable(key, told, addr string) error {
	host, _, err := net.SplitHostPort(addr)
	switch {
	case err != nil || !isTarget(addr):
		return errs.New(errs.Invalid, "configuration: %s is %q; write host:port", key, told)
	case wildcard(host):
		return errs.New(errs.Invalid, "configuration: %s is %q, which clients cannot connect to; write this machine's name or address", key, told)
	}
	return nil
}

// checkAdvertisedEtcd does so for etcd's clients. It is for configuration files: of --advertise-client-urls etcd takes wildcards, and many set them.
func (c *Config) checkAdvertisedEtcd() error {
	check := func(key, told, listen string, served bool) error {
		if told == "" {
			return nil
		}
		if !served {
			return unserved(key, told, listen)
		}
		for addr := range strings.SplitSeq(told, ",") {
			if !strings.Contains(addr, "://") && !strings.HasPrefix(addr, env.SocketPrefix) {
				addr = "http://" + addr
			}
			u, err := url.Parse(addr)
			if err != nil || u.Host+u.Path+u.Opaque == "" || u.Scheme != "unix" && u.Scheme != "unixs" && u.Scheme != "http" && u.Scheme != "https" {
				return errs.New(errs.Invalid, "configuration: %s is %q; write host:port or a URL, with nothing but commas between several", key, told)
			}
			if strings.HasPrefix(u.Scheme, "unix") {
				continue
			}
			if err := reachable(key, told, u.Host); err != nil {
				return err
			}
		}
		return nil
	}
	if err := check("advertise.etcd", c.Advertise.Etcd, "listen.etcd", c.servesEtcd()); err != nil {
		return err
	}
	for _, name := range c.spaceNames() {
		key := "spaces." + name
		if err := check(key+".advertise_etcd", c.Spaces[name].AdvertiseEtcd, key+".etcd", c.Spaces[name].Etcd != ""); err != nil {
			return err
		}
	}
	return nil
}

func wildcard(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// open says whether other machines can reach the port, and nobody's certificate is checked.
func (p *port) open() bool {
	host, _, err := net.SplitHostPort(p.listen)
	if err != nil || strings.HasPrefix(p.listen, env.SocketPrefix) || p.tls.checksClients() {
		return false
	}
	return Reachable(host)
}

// Reachable says whether other machines can reach a port that listens on a host: all but loopback may be.
func Reachable(host string) bool {
	ip := net.ParseIP(host)
	return wildcard(host) || ip != nil && !ip.IsLoopback() || ip == nil && host != "localhost"
}

// ports are those of listen.
func (c *Config) ports() []port {
	return []port{
		{"redis", c.Listen.Redis, &c.Advertise.Redis, &c.TLS.Redis}, {"kafka", c.Listen.Kafka, &c.Advertise.Kafka, &c.TLS.Kafka},
		{"etcd", c.Listen.Etcd, &c.Advertise.Etcd, &c.TLS.Etcd}, {"http", c.Listen.HTTP, &c.Advertise.HTTP, &TLS{}},
		{"peer", c.Listen.Peer, nil, &c.TLS.Peer},
	}
}

// spacePort is the port of a space's own.
func (c *Config) spacePort(name string) port {
	s := c.Spaces[name]
	return port{"etcd", s.Etcd, &s.AdvertiseEtcd, &c.TLS.Etcd}
}

// more returns a further address as a port.
func (c *Config) more(m ListenMore) port {
	p := port{m.Port, m.Address, nil, &c.TLS.Peer}
	if m.Port == "etcd" {
		p.tls, p.advertise = &c.TLS.Etcd, &c.Advertise.Etcd
	}
	if m.TLS != SecuredFully {
		p.tls = &TLS{}
	}
	return p
}

func (c *Config) checkMore() error {
	for i, m := range c.ListenMore {
		bad := func(format string, args ...any) error {
			return errs.New(errs.Invalid, fmt.Sprintf("configuration: listen_more, entry %d: ", i+1)+format, args...)
		}
		secured := m.Port == "etcd" && c.TLS.Etcd.on() || m.Port == "peer" && c.TLS.Peer.on()
		switch {
		case m.Port != "peer" && m.Port != "etcd":
			return bad("port is %q; it is peer or etcd", m.Port)
		case m.Address == "":
			return bad("address is missing; write host:port, or unix:PATH")
		case m.Serve != etcd.All && (m.Port != "etcd" || m.Serve != etcd.OnlyGRPC && m.Serve != etcd.OnlyHTTP && m.Serve != etcd.OnlyMetrics):
			return bad("serve is %q; it is grpc, http or metrics, and only for port etcd", m.Serve)
		case m.TLS != SecuredFully && m.TLS != SecuredIfAsked && m.TLS != SecuredNever:
			return bad("tls is %q; it is optional or none", m.TLS)
		case m.Port == "peer" && c.Listen.Peer == "":
			return bad("a single node needs no peer port; leave it out, or set listen.peer too")
		case m.TLS != SecuredFully && m.Port == "peer":
			return bad("tls is %q; nodes speak to each other with TLS or without, all of them alike", m.TLS)
		case m.TLS == SecuredIfAsked && !secured:
			return bad("tls is %q; set tls.%s, the certificate", m.TLS, m.Port)
		}
		p := c.more(m)
		if err := p.check(fmt.Sprintf("listen_more, entry %d,", i+1), "advertise."+m.Port, c.Insecure); err != nil {
			return err
		}
	}
	return nil
}

// servesEtcd says whether etcd's clients can reach the first space.
func (c *Config) servesEtcd() bool {
	return c.Listen.Etcd != "" || slices.ContainsFunc(c.ListenMore, func(m ListenMore) bool { return m.Port == "etcd" })
}

// openPorts are the addresses that other machines can reach, and that check nobody.
func (c *Config) openPorts() (out []port) {
	all := c.ports()
	for _, m := range c.ListenMore {
		all = append(all, c.more(m))
	}
	for _, name := range c.spaceNames() {
		all = append(all, c.spacePort(name))
	}
	for _, p := range all {
		if p.listen != "" && p.open() {
			out = append(out, p)
		}
	}
	return out
}

// spaceName says what a space may be called.
var spaceName = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

// checkSpaces checks the spaces beside the first, except for their addresses.
func (c *Config) checkSpaces() error {
	bad := func(name, format string, args ...any) error {
		return errs.New(errs.Invalid, "configuration: spaces."+name+": "+format, args...)
	}
	by := map[string]string{}
	for _, name := range c.spaceNames() {
		s := c.Spaces[name]
		switch {
		case name == shard.DefaultSpace || !spaceName.MatchString(name):
			return errs.New(errs.Invalid, "configuration: spaces has %q; names are lower-case letters, digits and hyphens, at most 64, and not %q", name, shard.DefaultSpace)
		case s.Etcd == "" && len(s.TLSNames) == 0 && !s.Users && !s.Path:
			return bad(name, "nobody can reach it; set etcd, an address, or tls_names, users or path")
		case (s.Users || s.Path) && !c.servesEtcd():
			return bad(name, "users and path are served on listen.etcd; set that")
		case len(s.TLSNames) > 0 && (!c.servesEtcd() || !c.TLS.Etcd.on()):
			return bad(name, "tls_names are told apart on listen.etcd with tls.etcd; set both")
		}
		for _, n := range s.TLSNames {
			switch low := strings.ToLower(n); {
			case n == "":
				return bad(name, "tls_names has an empty name, which is what clients ask for that ask for none")
			case by[low] != "":
				return bad(name, "tls name %q is that of space %s", n, by[low])
			default:
				by[low] = name
			}
		}
	}
	return nil
}

// spaceNames are the spaces beside the first, in the order of their shards.
func (c *Config) spaceNames() []string { return slices.Sorted(maps.Keys(c.Spaces)) }

// identity is what all nodes of a cluster must agree on, and a data directory is made for: which shard a space has depends on all of them.
func (c *Config) identity() string {
	if len(c.Spaces) == 0 {
		return c.Cluster
	}
	return c.Cluster + " with spaces " + strings.Join(c.spaceNames(), ", ")
}

// spaces lays out the cluster's spaces.
func (c *Config) spaces() []shard.Space {
	s := shard.Space{Name: shard.DefaultSpace}
	for i := range c.Shards {
		s.Shards = append(s.Shards, shard.ID(i+1))
	}
	all := []shard.Space{s}
	for i, name := range c.spaceNames() {
		all = append(all, shard.Space{Name: name, Shards: []shard.ID{shard.ID(c.Shards + 1 + i)}})
	}
	return all
}

// members are what etcd's clients are told of the members, nil if that is only their numbers.
func (c *Config) members() map[shard.NodeID]etcd.Member {
	if len(c.MemberNames) == 0 {
		return nil
	}
	scheme := "http://"
	if c.TLS.Peer.on() {
		scheme = "https://"
	}
	out := map[shard.NodeID]etcd.Member{}
	for id, name := range c.MemberNames {
		m := etcd.Member{Name: name}
		if path, ok := strings.CutPrefix(c.Peers[id], env.SocketPrefix); ok {
			m.PeerURL = "unix://" + path
		} else if c.Peers[id] != "" {
			m.PeerURL = scheme + c.Peers[id]
		}
		out[shard.NodeID(id)] = m
	}
	return out
}

// nodes are the numbers of all members, as a data directory is made for them.
func (c *Config) nodes() string {
	if len(c.Peers) == 0 {
		return fmt.Sprint(c.Node)
	}
	var out []string
	for _, id := range slices.Sorted(maps.Keys(c.Peers)) {
		out = append(out, fmt.Sprint(id))
	}
	return strings.Join(out, ", ")
}

func (c *Config) peers() map[shard.NodeID]string {
	out := map[shard.NodeID]string{}
	for id, addr := range c.Peers {
		if id != c.Node {
			out[shard.NodeID(id)] = addr
		}
	}
	return out
}

// String prints the configuration in one line, for the log.
func (c Config) String() string {
	var peers []string
	for id, a := range c.Peers {
		peers = append(peers, fmt.Sprintf("%d=%s", id, a))
	}
	slices.Sort(peers)
	return fmt.Sprintf("cluster=%s node=%d data=%q listen=%+v listen_more=%+v advertise=%+v peers=%v shards=%d spaces=%+v lease_reads=%v tls=%+v etcd_auth=%+v "+
		"etcd_progress_interval=%v etcd_request_bytes_max=%d etcd_txn_ops_max=%d etcd_slow_request=%v etcd_compaction=%+v insecure=%v remote_pprof=%v sandbox=%+v",
		c.Cluster, c.Node, c.Data, c.Listen, c.ListenMore, c.Advertise, peers, c.Shards, c.Spaces, c.LeaseReads, c.TLS, c.EtcdAuth,
		c.EtcdProgressInterval, c.EtcdRequestBytesMax, c.EtcdTxnOpsMax, c.EtcdSlowRequest, c.EtcdCompaction, c.Insecure, c.RemotePprof, c.Sandbox)
}
