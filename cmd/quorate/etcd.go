package main

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/protocol/etcd"
	"github.com/quorate/quorate/internal/server"
)

// etcdName is the name under which the program takes etcd's flags without being told to.
const etcdName = "etcd"

// tokenSimple is the kind of tokens that etcd issues unless told otherwise.
const tokenSimple = "simple"

// jwtTTL is how long a JSON web token counts unless told otherwise, in seconds, as in etcd.
const jwtTTL = 300

// etcdReady is the line that scripts and tests of etcd wait for.
const etcdReady = "ready to serve client requests"

// etcdIgnored are flags of etcd's that need nothing here, with the reason.
var etcdIgnored = map[string]string{
	"logger": "the log is structured anyway", "log-outputs": "the log goes to standard error", "snapshot-count": "the log is cut by size",
	"snapshot-catchup-entries": "followers that lag get a snapshot", "max-snapshots": "none are kept", "max-wals": "the log is cut by size",
	"heartbeat-interval": "timers are fixed", "election-timeout": "timers are fixed", "quota-backend-bytes": "there is no quota",
	"strict-reconfig-check": "members are fixed", "pre-vote": "always on", "initial-election-tick-advance": "elections need no wait",
	"enable-pprof": "profiles are on the HTTP port of quorate server, which this command does not open", "log-rotation-config-json": "standard error is not rotated", "enable-log-rotation": "standard error is not rotated",
	"experimental-initial-corrupt-check": "checksums are always on", "corrupt-check-time": "checksums are always on",
	"compact-hash-check-enabled": "replicas always compare digests", "compact-hash-check-time": "replicas always compare digests",
	"backend-batch-interval": "commits are grouped by the log", "backend-batch-limit": "commits are grouped by the log", "backend-bbolt-freelist-type": "there is no bbolt",
	"max-concurrent-streams": "", "grpc-keepalive-min-time": "as etcd's default", "grpc-keepalive-interval": "as etcd's default", "grpc-keepalive-timeout": "as etcd's default",
	"feature-gates": "all that it could switch is always on, or not there", "compaction-batch-limit": "compactions go in small steps anyway",
	"compaction-sleep-interval":            "compactions go in small steps anyway",
	"bootstrap-defrag-threshold-megabytes": "nothing needs to be defragmented", "v2-deprecation": "there is nothing of v2", "metrics": "all metrics are always there",
	"self-signed-cert-validity": "a certificate that is made is made anew at each start",
	"warning-apply-duration":    "", "socket-reuse-port": "", "socket-reuse-address": "",
}

// etcdSwitches are those of etcdIgnored that may stand without a value.
var etcdSwitches = []string{
	"strict-reconfig-check", "pre-vote", "initial-election-tick-advance", "enable-pprof", "enable-log-rotation", "experimental-initial-corrupt-check",
	"compact-hash-check-enabled", "socket-reuse-port", "socket-reuse-address",
}

// etcdFlags are what is taken from etcd's command line.
type etcdFlags struct {
	name, data, token, state          string
	clientURLs, advertise             []string
	httpURLs, metricsURLs             []string
	peerURLs, advertisePeers, cluster []string
	logLevel, authToken, file         string
	bcryptCost, tokenTTL              int
	client, peer                      etcdTLS
	progress, slow                    time.Duration
	compactMode, compactKeep          string
	logFormat                         string
	requestBytesMax, txnOpsMax        int
}

// etcdTLS are etcd's flags for the security of one of its two ports.
type etcdTLS struct {
	cert, key, ca, cn, host string
	dialCert, dialKey, crl  string
	auth, auto              bool
	common                  *etcdTLSCommon
}

// etcdTLSCommon are etcd's flags for the security of both ports.
type etcdTLSCommon struct {
	ciphers  []string
	min, max string
}

func (t *etcdTLS) flags(fs *pflag.FlagSet, prefix, certAllowed, of string) {
	fs.StringVar(&t.crl, certAllowed+"crl-file", "", "revocation list of those who connect to "+of)
	fs.StringVar(&t.cert, prefix+"cert-file", "", "certificate of "+of)
	fs.StringVar(&t.key, prefix+"key-file", "", "private key of "+of)
	fs.StringVar(&t.ca, prefix+"trusted-ca-file", "", "certificates that those who connect to "+of+" must be signed by")
	fs.BoolVar(&t.auth, prefix+"client-cert-auth", false, "refuse who connects to "+of+" without a certificate; --"+prefix+"trusted-ca-file alone does the same")
	fs.StringVar(&t.dialCert, prefix+"client-cert-file", "", "certificate to show to other nodes, in place of that of the peer port; the client port needs none")
	fs.StringVar(&t.dialKey, prefix+"client-key-file", "", "private key of --"+prefix+"client-cert-file")
	fs.BoolVar(&t.auto, prefix+"auto-tls", false, "make a certificate for "+of+" that nobody can check")
	fs.StringVar(&t.cn, certAllowed+"cert-allowed-cn", "", "the only common name of those who connect to "+of)
	fs.StringVar(&t.host, certAllowed+"cert-allowed-hostname", "", "the only DNS names, with commas between, of those who connect to "+of)
}

// tls returns the settings of a port that has TLS on some of its URLs, or not.
func (t *etcdTLS) tls(flag string, secure bool) (server.TLS, error) {
	out := server.TLS{Cert: t.cert, Key: t.key, ClientCA: t.ca, ClientCRL: t.crl, Auto: t.auto && t.cert == ""}
	for n := range strings.SplitSeq(t.cn+","+t.host, ",") {
		if n != "" {
			out.ClientNames = append(out.ClientNames, n)
		}
	}
	switch {
	case !secure:
		// etcd warns and goes on without; a wish for security must not pass unnoticed.
		if out.Cert != "" || out.Key != "" || out.ClientCA != "" || out.Auto || len(out.ClientNames) > 0 || t.auth || t.crl != "" {
			return out, errs.New(errs.Invalid, "--%s has no https or unixs although there are certificates; write https", flag)
		}
		return server.TLS{}, nil
	case out.Cert == "" && !out.Auto:
		return out, errs.New(errs.Invalid, "--%s is https; give a certificate and its key, or let one be made (auto-tls)", flag)
	case t.auth && t.ca == "":
		return out, errs.New(errs.Invalid, "--%s: certificates of clients can only be checked with a trusted-ca-file", flag)
	case t.crl != "" && t.ca == "":
		return out, errs.New(errs.Invalid, "--%s: a crl-file is about certificates of clients, which can only be checked with a trusted-ca-file", flag)
	}
	out.Ciphers = t.common.ciphers
	for _, v := range []struct {
		flag, is string
		to       *string
	}{{"tls-min-version", t.common.min, &out.MinVersion}, {"tls-max-version", t.common.max, &out.MaxVersion}} {
		if v.is == "" {
			continue
		}
		var ok bool
		if *v.to, ok = strings.CutPrefix(v.is, "TLS"); !ok {
			return out, errs.New(errs.Invalid, "--%s is %q; it is TLS1.2 or TLS1.3", v.flag, v.is)
		}
	}
	return out, nil
}

func newEtcd() *cobra.Command { return newEtcdWith(&etcdFlags{}) }

// newEtcdWith returns the command, which keeps its flags in f.
func newEtcdWith(f *etcdFlags) *cobra.Command {
	c := &cobra.Command{
		Use: "etcd", Short: "Run a node with etcd's flags, for scripts and tests that start etcd", GroupID: "run", Args: cobra.NoArgs,
		Long: `Runs a node that takes etcd's flags, and says what etcd's scripts and tests wait for. A program called "etcd" (a link to this
one) does the same. Flags may come from the environment, as ETCD_NAME for --name. What etcd needs and Quorate does not is accepted and
has no effect; what would weaken a promise is refused.`,
		Example: "  quorate etcd --data-dir ./data\n  ln -s quorate etcd && ./etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379",
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := f.complete(cmd.Context(), cmd.Flags())
			if cmd.Context().Err() != nil {
				return exitError{code: exitOK}
			}
			if err != nil {
				return err
			}
			cfg, err := f.config()
			if err != nil {
				return err
			}
			logs := logFlags{format: f.logFormat, level: f.logLevel}
			if logs.format == "json" {
				logs.format = "etcd"
			}
			log, err := logs.logger(os.Stderr)
			if err != nil {
				return err
			}
			tellIgnored(cmd.Flags(), log)
			return runNode(cmd.Context(), cfg, log, func(s *server.Server) {
				log.Info("serving client traffic", "address", s.Addr().Etcd)
				log.Info(etcdReady, "address", s.Addr().Etcd)
			})
		},
	}
	fs := c.Flags()
	fs.StringVar(&f.file, configFlag, "", "etcd's YAML file of settings, in place of all other flags and of the environment")
	fs.StringVar(&f.name, "name", "default", "this node's name, one of those in --initial-cluster")
	fs.StringVar(&f.data, "data-dir", "", "data directory (default NAME.etcd)")
	fs.StringVar(&f.token, "initial-cluster-token", "etcd-cluster", "the cluster's name")
	fs.StringVar(&f.state, "initial-cluster-state", "new", "new or existing, which is the same here: members are fixed")
	fs.StringSliceVar(&f.clientURLs, "listen-client-urls", []string{"http://localhost:2379"}, "URLs to listen on for clients: http, https, unix, unixs")
	fs.StringSliceVar(&f.httpURLs, "listen-client-http-urls", nil, "URLs to listen on for HTTP; those of --listen-client-urls are then for gRPC alone")
	fs.StringSliceVar(&f.metricsURLs, "listen-metrics-urls", nil, "URLs to listen on for /metrics, /health, /livez, /readyz, /version and /debug/vars alone")
	fs.StringSliceVar(&f.advertise, "advertise-client-urls", []string{"http://localhost:2379"}, "URLs that clients are told")
	fs.StringSliceVar(&f.peerURLs, "listen-peer-urls", []string{"http://localhost:2380"}, "URLs to listen on for other nodes")
	fs.StringSliceVar(&f.advertisePeers, "initial-advertise-peer-urls", []string{"http://localhost:2380"}, "URL that other nodes are told")
	fs.StringSliceVar(&f.cluster, "initial-cluster", nil, "NAME=URL of each member (default: this node alone)")
	fs.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&f.logFormat, "log-format", "json", "json, in etcd's form, or console")
	fs.IntVar(&f.requestBytesMax, "max-request-bytes", 3<<19, "bytes of one request of a client, at most 10 MiB")
	fs.DurationVar(&f.slow, "warning-unary-request-duration", 300*time.Millisecond, "how long a request may take before the log says so, at most once a second")
	fs.IntVar(&f.txnOpsMax, "max-txn-ops", 128, "operations of one transaction, at most 10,000")
	fs.StringVar(&f.authToken, "auth-token", tokenSimple, "kind of tokens: simple, which here are signed and good on every node, or jwt,sign-method=RS256,pub-key=FILE,priv-key=FILE,ttl=5m")
	fs.IntVar(&f.tokenTTL, "auth-token-ttl", 300, "seconds for which a simple token counts")
	fs.IntVar(&f.bcryptCost, "bcrypt-cost", 10, "cost of hashing passwords, 4 to 31")
	fs.StringVar(&f.compactMode, "auto-compaction-mode", "periodic", "periodic or revision: what --auto-compaction-retention says")
	fs.StringVar(&f.compactKeep, "auto-compaction-retention", "0", "how long history is kept, as 30m or a number of hours, or how many revisions; 0 keeps all")
	var common etcdTLSCommon
	fs.StringSliceVar(&common.ciphers, "cipher-suites", nil, "the only cipher suites for TLS 1.2, on both ports")
	fs.StringVar(&common.min, "tls-min-version", "", "lowest version of TLS, TLS1.2 or TLS1.3, on both ports")
	fs.StringVar(&common.max, "tls-max-version", "", "highest version of TLS, TLS1.2 or TLS1.3, on both ports")
	f.client.common, f.peer.common = &common, &common
	f.client.flags(fs, "", "client-", "the client port")
	f.peer.flags(fs, "peer-", "peer-", "the peer port")
	for _, name := range []string{"watch-progress-notify-interval", "experimental-watch-progress-notify-interval"} {
		fs.DurationVar(&f.progress, name, 0, "how often a quiet watch that asked for it is told how far it is (default 10m)")
	}
	fs.Lookup("experimental-watch-progress-notify-interval").Hidden = true
	for name, why := range etcdIgnored {
		// A flag without effect takes any value, and none if it needs none in etcd.
		v := &ignoredFlag{}
		if name == "v2-deprecation" {
			v.one = v2Levels
		}
		fs.Var(v, name, "without effect: "+why)
		if slices.Contains(etcdSwitches, name) {
			fs.Lookup(name).NoOptDefVal = "true"
		}
		fs.Lookup(name).Hidden = true
	}
	return c
}

// etcdDeprecated is what etcd says of flags of its own that it will not have for ever. Here they never had an effect.
var etcdDeprecated = map[string]string{
	"max-snapshots":  "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8",
	"v2-deprecation": "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring user input",
}

// tellIgnored logs which flags were set that have no effect, so that nobody counts on one.
func tellIgnored(fs *pflag.FlagSet, log *slog.Logger) {
	var set []any
	fs.Visit(func(f *pflag.Flag) {
		v, ok := f.Value.(*ignoredFlag)
		if !ok {
			return
		}
		if n, err := strconv.ParseInt(v.v, 10, 64); err == nil {
			set = append(set, slog.Int64(f.Name, n))
		} else {
			set = append(set, slog.String(f.Name, v.v))
		}
		if why := etcdDeprecated[f.Name]; why != "" {
			log.Warn(why)
		}
		if f.Name == "bootstrap-defrag-threshold-megabytes" {
			log.Info("Skipping defragmentation: nothing needs it")
		}
	})
	if len(set) > 0 {
		log.Info("these flags have no effect here", set...)
	}
}

// v2Levels are the values of --v2-deprecation that etcd takes.
var v2Levels = []string{"write-only", "write-only-drop-data", "gone"}

// ignoredFlag takes whatever it is given.
type ignoredFlag struct {
	v string
	// one, if not nil, are the values that there are.
	one []string
}

func (i *ignoredFlag) String() string { return i.v }
func (i *ignoredFlag) Type() string   { return "any" }
func (i *ignoredFlag) Set(v string) error {
	if i.one != nil && !slices.Contains(i.one, v) {
		return errs.New(errs.Invalid, "it is one of %s", strings.Join(i.one, ", "))
	}
	i.v = v
	return nil
}

// complete sets what the command line did not, from the file if there is one, and else from the environment.
func (f *etcdFlags) complete(ctx context.Context, fs *pflag.FlagSet) error {
	name := "ETCD_" + strings.ToUpper(strings.ReplaceAll(configFlag, "-", "_"))
	if f.file == "" {
		f.file = os.Getenv(name)
	}
	if f.file == "" {
		return fromEnvironment(fs)
	}
	if err := onlyFile(fs); err != nil {
		return err
	}
	return fromFile(ctx, fs, f.file)
}

// fromEnvironment sets the flags that the command line did not.
func fromEnvironment(fs *pflag.FlagSet) error {
	var err error
	fs.VisitAll(func(f *pflag.Flag) {
		name := "ETCD_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		v, ok := os.LookupEnv(name)
		if ok && !f.Changed && err == nil {
			if e := fs.Set(f.Name, v); e != nil {
				err = errs.New(errs.Invalid, "%s: %v", name, e)
			}
		}
	})
	return err
}

// config makes a configuration of etcd's flags.
func (f *etcdFlags) config() (server.Config, error) {
	// Who gives etcd's flags says where to listen, and expects that it is done: the server warns of ports that check nobody.
	cfg := server.Config{Cluster: f.token, Data: f.data, Insecure: true, EtcdProgressInterval: f.progress}
	if f.progress > 0 {
		// etcd takes less for this much, too.
		cfg.EtcdProgressInterval = max(f.progress, server.EtcdProgressIntervalMin)
	}
	if cfg.Data == "" {
		cfg.Data = f.name + ".etcd"
	}
	if abs, err := filepath.Abs(cfg.Data); err == nil {
		cfg.Data = abs
	}
	if f.bcryptCost == 0 || f.tokenTTL == 0 {
		return cfg, errs.New(errs.Invalid, "--bcrypt-cost and --auth-token-ttl must not be 0")
	}
	if f.requestBytesMax < 1 || f.txnOpsMax < 1 {
		return cfg, errs.New(errs.Invalid, "--max-request-bytes and --max-txn-ops must be at least 1")
	}
	cfg.EtcdRequestBytesMax, cfg.EtcdTxnOpsMax, cfg.EtcdSlowRequest = f.requestBytesMax, f.txnOpsMax, f.slow
	var err error
	if cfg.EtcdAuth, err = f.auth(); err != nil {
		return cfg, err
	}
	if cfg.EtcdCompaction, err = f.compaction(); err != nil {
		return cfg, err
	}
	if f.state != "new" && f.state != "existing" {
		return cfg, errs.New(errs.Invalid, "--initial-cluster-state is %q; it is new or existing", f.state)
	}
	if err := f.clientPort(&cfg); err != nil {
		return cfg, err
	}
	peerURLs, err := parseURLs("listen-peer-urls", f.peerURLs)
	if err != nil {
		return cfg, err
	}
	secure := peerURLs[0].secure
	for _, u := range peerURLs {
		if u.secure != secure {
			return cfg, errs.New(errs.Invalid, "--listen-peer-urls has URLs with TLS and without; nodes speak to each other with or without, all of them alike")
		}
	}
	cfg.Listen.Peer = peerURLs[0].addr
	for _, u := range peerURLs[1:] {
		cfg.ListenMore = append(cfg.ListenMore, server.ListenMore{Port: "peer", Address: u.addr})
	}
	if cfg.TLS.Peer, err = f.peer.tls("listen-peer-urls", secure); err != nil {
		return cfg, err
	}
	cfg.TLS.Peer.DialCert, cfg.TLS.Peer.DialKey = f.peer.dialCert, f.peer.dialKey
	peers := map[string]string{}
	for _, m := range f.cluster {
		name, u, ok := strings.Cut(m, "=")
		if !ok {
			return cfg, errs.New(errs.Invalid, "--initial-cluster has %q; write NAME=URL", m)
		}
		if peers[name] != "" {
			return cfg, errs.New(errs.Invalid, "--initial-cluster has two URLs for %s; one is supported", name)
		}
		at, err := parseURLs("initial-cluster", []string{u})
		if err != nil {
			return cfg, err
		}
		if at[0].secure != secure {
			return cfg, errs.New(errs.Invalid, "--initial-cluster has %s and --listen-peer-urls has %s; both have TLS, or none has", u, f.peerURLs[0])
		}
		peers[name] = at[0].addr
	}
	if len(peers) == 0 {
		at, err := parseURLs("initial-advertise-peer-urls", f.advertisePeers)
		if err != nil {
			return cfg, err
		}
		peers[f.name] = at[0].addr
	}
	if peers[f.name] == "" {
		return cfg, errs.New(errs.Invalid, "--initial-cluster does not have this node, %q (--name)", f.name)
	}
	// Every node numbers the members alike: by name.
	var names []string
	for n := range peers {
		names = append(names, n)
	}
	slices.Sort(names)
	cfg.Peers, cfg.MemberNames = map[uint32]string{}, map[uint32]string{}
	for i, n := range names {
		cfg.Peers[uint32(i+1)], cfg.MemberNames[uint32(i+1)] = peers[n], n
		if n == f.name {
			cfg.Node = uint32(i + 1)
		}
	}
	return cfg, nil
}

// compaction reads --auto-compaction-mode and -retention.
func (f *etcdFlags) compaction() (server.EtcdCompaction, error) {
	var out server.EtcdCompaction
	n, numErr := strconv.ParseInt(f.compactKeep, 10, 32)
	switch f.compactMode {
	case "revision":
		if numErr != nil || n < 0 {
			return out, errs.New(errs.Invalid, "--auto-compaction-retention is %q; with mode revision it is a number of revisions", f.compactKeep)
		}
		out.Revisions = n
	case "periodic":
		// More hours than there can be do not pass for few.
		out.Period = time.Duration(min(n, int64(math.MaxInt64/time.Hour))) * time.Hour
		if numErr != nil {
			var err error
			if out.Period, err = time.ParseDuration(f.compactKeep); err != nil {
				return out, errs.New(errs.Invalid, "--auto-compaction-retention is %q; with mode periodic it is a duration, such as 30m, or a number of hours", f.compactKeep)
			}
		}
	default:
		return out, errs.New(errs.Invalid, "--auto-compaction-mode is %q; it is periodic or revision", f.compactMode)
	}
	return out, nil
}

// auth reads --auth-token: simple, or jwt with its options.
func (f *etcdFlags) auth() (server.EtcdAuth, error) {
	out := server.EtcdAuth{BcryptCost: f.bcryptCost, TokenTTL: f.tokenTTL}
	bad := func(format string, args ...any) (server.EtcdAuth, error) {
		return out, errs.New(errs.Invalid, "--auth-token: "+format, args...)
	}
	kind, options, _ := strings.Cut(f.authToken, ",")
	switch {
	case f.authToken == tokenSimple:
		return out, nil
	case kind != "jwt":
		return bad("%q is neither simple nor jwt,OPTION=VALUE,…", f.authToken)
	}
	// --auth-token-ttl is that of simple tokens, as in etcd.
	out.TokenTTL = jwtTTL
	seen := map[string]bool{}
	for o := range strings.SplitSeq(options, ",") {
		name, v, ok := strings.Cut(o, "=")
		if !ok || v == "" || seen[name] {
			return bad("%q is not OPTION=VALUE, or stands there twice; write jwt,sign-method=RS256,pub-key=FILE,priv-key=FILE,ttl=5m", o)
		}
		seen[name] = true
		switch name {
		case "sign-method":
			out.JWT.Method = v
		case "pub-key":
			out.JWT.PublicKey = v
		case "priv-key":
			out.JWT.PrivateKey = v
		case "ttl":
			d, err := time.ParseDuration(v)
			if err != nil || d < time.Second || d%time.Second != 0 {
				return bad("ttl is %q; it is a number of whole seconds, such as 90s or 5m", v)
			}
			out.TokenTTL = int(d / time.Second)
		default:
			return bad("option %q is not one of sign-method, pub-key, priv-key, ttl", name)
		}
	}
	if out.JWT.Method == "" {
		return bad("jwt needs sign-method, such as RS256")
	}
	return out, nil
}

// clientPort reads where clients come in, and with what security.
func (f *etcdFlags) clientPort(cfg *server.Config) error {
	scope := etcd.All
	if len(f.httpURLs) > 0 {
		scope = etcd.OnlyGRPC
	}
	var more []server.ListenMore
	secure := false
	for _, l := range []struct {
		flag  string
		urls  []string
		scope etcd.Scope
	}{
		{"listen-client-urls", f.clientURLs, scope}, {"listen-client-http-urls", f.httpURLs, etcd.OnlyHTTP}, {"listen-metrics-urls", f.metricsURLs, etcd.OnlyMetrics},
	} {
		if len(l.urls) == 0 && l.flag != "listen-client-urls" {
			continue
		}
		urls, err := parseURLs(l.flag, l.urls)
		if err != nil {
			return err
		}
		for i, u := range urls {
			if u.secure && f.client.cert == "" && !f.client.auto && l.scope == etcd.OnlyMetrics {
				return errs.New(errs.Invalid, "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url: --%s is %s", l.flag, l.urls[i])
			}
			secure = secure || u.secure
			m := server.ListenMore{Port: "etcd", Address: u.addr, Serve: l.scope}
			if !u.secure {
				m.TLS = server.SecuredNever
			}
			at := slices.IndexFunc(more, func(o server.ListenMore) bool { return o.Address == u.addr && !strings.HasSuffix(u.addr, ":0") })
			switch {
			case at < 0:
				more = append(more, m)
				continue
			case more[at].Serve != l.scope:
				return errs.New(errs.Invalid, "--%s is %s, which is for something else already; give each kind of URL addresses of its own", l.flag, l.urls[i])
			case more[at].TLS != m.TLS:
				// http and https at one address.
				more[at].TLS = server.SecuredIfAsked
			}
		}
	}
	for i := range more {
		if !secure {
			more[i].TLS = server.SecuredFully
		}
	}
	var err error
	if cfg.TLS.Etcd, err = f.client.tls("listen-client-urls", secure); err != nil {
		return err
	}
	if more[0].Serve == etcd.All && more[0].TLS == server.SecuredFully {
		cfg.Listen.Etcd, more = more[0].Address, more[1:]
	}
	cfg.ListenMore = append(cfg.ListenMore, more...)
	advertise, err := parseURLs("advertise-client-urls", f.advertise)
	if err != nil {
		return err
	}
	var told []string
	for i, u := range advertise {
		if u.secure != secure || strings.HasPrefix(u.addr, env.SocketPrefix) {
			told = append(told, f.advertise[i])
		} else {
			told = append(told, u.addr)
		}
	}
	cfg.Advertise.Etcd = strings.Join(told, ",")
	return nil
}

// etcdURL is one of etcd's URLs: where, and whether with TLS.
type etcdURL struct {
	addr   string
	secure bool
}

// parseURLs reads the URLs of a flag: http, https, and unix or unixs with the name of a file, which may look like host:port. There is at least one.
func parseURLs(flag string, urls []string) ([]etcdURL, error) {
	const write = "write http://host:port, https://host:port, unix://file or unixs://file"
	if len(urls) == 0 {
		return nil, errs.New(errs.Invalid, "--%s has no URL; %s", flag, write)
	}
	var out []etcdURL
	for _, text := range urls {
		bad := func(why string) ([]etcdURL, error) {
			return nil, errs.New(errs.Invalid, "--%s is %q%s; %s", flag, text, why, write)
		}
		u, err := url.Parse(strings.TrimSpace(text))
		if err != nil {
			return bad("")
		}
		switch u.Scheme {
		case "unix", "unixs":
			path := u.Host + u.Path
			if u.Opaque != "" {
				path = u.Opaque
			}
			if path == "" {
				return bad(", without a file")
			}
			out = append(out, etcdURL{env.SocketPrefix + path, u.Scheme == "unixs"})
			continue
		case "http", "https":
		default:
			return bad(", which begins with none of http, https, unix and unixs")
		}
		switch {
		case u.Host == "" || u.User != nil || u.RawQuery != "":
			return bad("")
		case u.Path != "" && u.Path != "/":
			return bad(", with a path")
		}
		if _, _, err := net.SplitHostPort(u.Host); err != nil {
			return bad(", without a port")
		}
		out = append(out, etcdURL{u.Host, u.Scheme == "https"})
	}
	return out, nil
}

// asEtcd makes the arguments of a program that was called by etcd's name.
func asEtcd(args []string) []string {
	if strings.TrimSuffix(filepath.Base(args[0]), ".exe") != etcdName {
		return args[1:]
	}
	if len(args) == 2 && args[1] == "--version" {
		fmt.Printf("etcd Version: %s\nquorate Version: %s\n", etcd.Version, version)
		os.Exit(exitOK)
	}
	return append([]string{etcdName}, args[1:]...)
}
