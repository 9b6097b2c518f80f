package main

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
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

// etcdReady is the line that scripts and tests of etcd wait for.
const etcdReady = "ready to serve client requests"

// etcdIgnored are flags of etcd's that need nothing here, with the reason.
var etcdIgnored = map[string]string{
	"logger": "the log is structured anyway", "log-outputs": "the log goes to standard error", "snapshot-count": "the log is cut by size",
	"snapshot-catchup-entries": "followers that lag get a snapshot", "max-snapshots": "none are kept", "max-wals": "the log is cut by size",
	"heartbeat-interval": "timers are fixed", "election-timeout": "timers are fixed", "quota-backend-bytes": "there is no quota",
	"auto-compaction-mode": "", "strict-reconfig-check": "members are fixed", "pre-vote": "always on", "initial-election-tick-advance": "elections need no wait",
	"enable-pprof": "the HTTP port has it", "log-rotation-config-json": "standard error is not rotated", "enable-log-rotation": "standard error is not rotated",
	"experimental-initial-corrupt-check": "checksums are always on", "corrupt-check-time": "checksums are always on",
	"compact-hash-check-enabled": "replicas always compare digests", "compact-hash-check-time": "replicas always compare digests",
	"backend-batch-interval": "commits are grouped by the log", "backend-batch-limit": "commits are grouped by the log", "backend-bbolt-freelist-type": "there is no bbolt",
	"max-concurrent-streams": "", "grpc-keepalive-min-time": "as etcd's default", "grpc-keepalive-interval": "as etcd's default", "grpc-keepalive-timeout": "as etcd's default",
	"feature-gates": "all that it could switch is always on, or not there", "compaction-batch-limit": "compactions go in small steps anyway",
	"compaction-sleep-interval":            "compactions go in small steps anyway",
	"bootstrap-defrag-threshold-megabytes": "nothing needs to be defragmented", "metrics": "all metrics are always there",
	"warning-unary-request-duration": "",
	"warning-apply-duration":         "", "socket-reuse-port": "", "socket-reuse-address": "",
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
	peerURLs, advertisePeers, cluster []string
	logLevel                          string
	insecure                          bool
	progress                          time.Duration
}

func newEtcd() *cobra.Command {
	var f etcdFlags
	c := &cobra.Command{
		Use: "etcd", Short: "Run a node with etcd's flags, for scripts and tests that start etcd", GroupID: "run", Args: cobra.NoArgs,
		Long: `Runs a node that takes etcd's flags, and says what etcd's scripts and tests wait for. A program called "etcd" (a link to this
one) does the same. Flags may come from the environment, as ETCD_NAME for --name. What etcd needs and Quorate does not is accepted and
has no effect; what would weaken a promise is refused.`,
		Example: "  quorate etcd --data-dir ./data\n  ln -s quorate etcd && ./etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd.Flags()); err != nil {
				return err
			}
			cfg, err := f.config()
			if err != nil {
				return err
			}
			logs := logFlags{format: "json", level: f.logLevel}
			log, err := logs.logger(os.Stderr)
			if err != nil {
				return err
			}
			return server.Run(cmd.Context(), cfg, version, env.Real(), log, func(s *server.Server) {
				log.Info(etcdReady, "address", s.Addr().Etcd)
			})
		},
	}
	fs := c.Flags()
	fs.StringVar(&f.name, "name", "default", "this node's name, one of those in --initial-cluster")
	fs.StringVar(&f.data, "data-dir", "", "data directory (default NAME.etcd)")
	fs.StringVar(&f.token, "initial-cluster-token", "etcd-cluster", "the cluster's name")
	fs.StringVar(&f.state, "initial-cluster-state", "new", "new; members are fixed, so that there is no other")
	fs.StringSliceVar(&f.clientURLs, "listen-client-urls", []string{"http://localhost:2379"}, "URL to listen on for clients")
	fs.StringSliceVar(&f.advertise, "advertise-client-urls", []string{"http://localhost:2379"}, "URL that clients are told")
	fs.StringSliceVar(&f.peerURLs, "listen-peer-urls", []string{"http://localhost:2380"}, "URL to listen on for other nodes")
	fs.StringSliceVar(&f.advertisePeers, "initial-advertise-peer-urls", []string{"http://localhost:2380"}, "URL that other nodes are told")
	fs.StringSliceVar(&f.cluster, "initial-cluster", nil, "NAME=URL of each member (default: this node alone)")
	fs.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.BoolVar(&f.insecure, "insecure", false, "listen on addresses other than loopback although there is no TLS yet (a flag of Quorate's)")
	for _, name := range []string{"watch-progress-notify-interval", "experimental-watch-progress-notify-interval"} {
		fs.DurationVar(&f.progress, name, 0, "how often a quiet watch that asked for it is told how far it is (default 10m)")
	}
	fs.Lookup("experimental-watch-progress-notify-interval").Hidden = true
	for name, why := range etcdIgnored {
		// A flag without effect takes any value, and none if it needs none in etcd.
		fs.Var(&ignoredFlag{}, name, "without effect: "+why)
		if slices.Contains(etcdSwitches, name) {
			fs.Lookup(name).NoOptDefVal = "true"
		}
		fs.Lookup(name).Hidden = true
	}
	return c
}

// ignoredFlag takes whatever it is given.
type ignoredFlag struct{ v string }

func (i *ignoredFlag) String() string     { return i.v }
func (i *ignoredFlag) Set(v string) error { i.v = v; return nil }
func (i *ignoredFlag) Type() string       { return "any" }

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
	cfg := server.Config{Cluster: f.token, Data: f.data, Insecure: f.insecure, EtcdProgressInterval: f.progress}
	if cfg.Data == "" {
		cfg.Data = f.name + ".etcd"
	}
	if abs, err := filepath.Abs(cfg.Data); err == nil {
		cfg.Data = abs
	}
	if f.state != "new" && f.state != "existing" {
		return cfg, errs.New(errs.Invalid, "--initial-cluster-state is %q; it is new or existing", f.state)
	}
	var err error
	if cfg.Listen.Etcd, err = oneURL("listen-client-urls", f.clientURLs); err != nil {
		return cfg, err
	}
	if cfg.Advertise.Etcd, err = oneURL("advertise-client-urls", f.advertise); err != nil {
		return cfg, err
	}
	peers := map[string]string{}
	for _, m := range f.cluster {
		name, u, ok := strings.Cut(m, "=")
		if !ok {
			return cfg, errs.New(errs.Invalid, "--initial-cluster has %q; write NAME=URL", m)
		}
		if peers[name] != "" {
			return cfg, errs.New(errs.Invalid, "--initial-cluster has two URLs for %s; one is supported", name)
		}
		if peers[name], err = oneURL("initial-cluster", []string{u}); err != nil {
			return cfg, err
		}
	}
	if len(peers) == 0 {
		if peers[f.name], err = oneURL("initial-advertise-peer-urls", f.advertisePeers); err != nil {
			return cfg, err
		}
	}
	if peers[f.name] == "" {
		return cfg, errs.New(errs.Invalid, "--initial-cluster does not have this node, %q (--name)", f.name)
	}
	if cfg.Listen.Peer, err = oneURL("listen-peer-urls", f.peerURLs); err != nil {
		return cfg, err
	}
	// Every node numbers the members alike: by name.
	var names []string
	for n := range peers {
		names = append(names, n)
	}
	slices.Sort(names)
	cfg.Peers = map[uint32]string{}
	for i, n := range names {
		cfg.Peers[uint32(i+1)] = peers[n]
		if n == f.name {
			cfg.Node = uint32(i + 1)
		}
	}
	return cfg, nil
}

// oneURL returns the host:port of a flag that must have one plain URL.
func oneURL(flag string, urls []string) (string, error) {
	if len(urls) != 1 {
		return "", errs.New(errs.Invalid, "--%s has %d URLs; one is supported", flag, len(urls))
	}
	u, err := url.Parse(urls[0])
	switch {
	case err != nil:
		return "", errs.New(errs.Invalid, "--%s is %q; write http://host:port", flag, urls[0])
	case u.Scheme == "https" || u.Scheme == "unixs":
		return "", errs.New(errs.Unsupported, "--%s is %s: there is no TLS yet", flag, urls[0])
	case u.Scheme != "http" || u.Host == "" || u.Path != "" && u.Path != "/":
		return "", errs.New(errs.Invalid, "--%s is %q; write http://host:port", flag, urls[0])
	}
	if _, _, err := net.SplitHostPort(u.Host); err != nil {
		return "", errs.New(errs.Invalid, "--%s is %q, without a port", flag, urls[0])
	}
	return u.Host, nil
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
