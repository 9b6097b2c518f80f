package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorate/quorate/internal/env"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/protocol/etcd"
	"github.com/quorate/quorate/internal/server"
	"github.com/quorate/quorate/internal/shard"
)

func newServer() *cobra.Command {
	var logs logFlags
	var file, readyFile string
	c := &cobra.Command{
		Use: "server --config FILE", Short: "Run one node of a cluster", GroupID: "run", Args: cobra.NoArgs,
		Long: `Run one node as its configuration says: a YAML file, in which unknown keys are errors.

  cluster: shop                       # the same on every node
  node: 1
  data: /var/lib/quorate
  listen: {peer: 10.0.0.1:7400, redis: 10.0.0.1:6379, kafka: 10.0.0.1:9092, etcd: 10.0.0.1:2379, http: 10.0.0.1:7070}
  peers: {1: 10.0.0.1:7400, 2: 10.0.0.2:7400, 3: 10.0.0.3:7400}
  insecure: true                      # no certificates are checked; or set tls`,
		Example: "  quorate server --config node1.yaml\n  quorate server --config node1.yaml --log-level debug",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return errs.New(errs.Invalid, "which configuration? write a file as the help shows, and give its name with --config")
			}
			cfg, err := server.ReadConfig(cmd.Context(), file)
			if cmd.Context().Err() != nil {
				return exitError{code: exitOK}
			}
			if err != nil {
				return err
			}
			log, err := logs.logger(os.Stderr)
			if err != nil {
				return err
			}
			if err := dropReadyFile(readyFile); err != nil {
				return err
			}
			return runNode(cmd.Context(), cfg, log, func(s *server.Server) {
				log.Info("ready", "redis", s.Addr().Redis, "kafka", s.Addr().Kafka, "etcd", s.Addr().Etcd, "http", s.Addr().HTTP, "peer", s.Addr().Peer)
				if readyFile != "" {
					if err := writeFileAtomic(readyFile, []byte(s.Addr().HTTP+"\n")); err != nil {
						log.Error("cannot write the ready file", "error", err)
					}
				}
			})
		},
	}
	c.Flags().StringVar(&file, "config", "", "configuration file (required)")
	c.Flags().StringVar(&readyFile, "ready-file", "", "file to write the http address to once the node is ready")
	logs.add(c, "info")
	return c
}

// runNode runs a node in this process until ctx ends. All that is logged goes to log.
func runNode(ctx context.Context, cfg server.Config, log *slog.Logger, ready func(*server.Server)) error {
	etcd.LogGRPC(log)
	return server.Run(ctx, cfg, version, env.Real(), log, ready)
}

// dropReadyFile removes what an earlier node has left: whoever looks must not take that for this one's.
func dropReadyFile(name string) error {
	if name == "" {
		return nil
	}
	if st, err := os.Stat(name); err == nil && st.IsDir() {
		return errs.New(errs.Invalid, "--ready-file is %q, which is a directory", name)
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errs.Wrap(errs.Invalid, err, "--ready-file is %q, and what is there cannot be removed", name)
	}
	return nil
}

func writeFileAtomic(name string, b []byte) error {
	tmp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".tmp")
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

func newDev() *cobra.Command {
	var logs logFlags
	cfg := server.Config{Cluster: "dev", Node: 1}
	const (
		redisDefault = "127.0.0.1:6379"
		kafkaDefault = "127.0.0.1:9092"
		etcdDefault  = "127.0.0.1:2379"
		httpDefault  = "127.0.0.1:7070"
	)
	var readyFile string
	c := &cobra.Command{
		Use: "dev", Short: "Run one node on this machine, in memory unless --data is given", GroupID: "run", Args: cobra.NoArgs,
		Example: "  quorate dev\n  quorate dev --data ./quorate-data",
		RunE: func(cmd *cobra.Command, _ []string) error {
			start := time.Now()
			// What is given and empty is a variable that is not set, most likely. Nobody is to lose data for that.
			switch {
			case cfg.Data == "" && cmd.Flags().Changed("data"):
				return errs.New(errs.Invalid, "--data is empty; name a directory, or leave it out for data in memory, lost on exit")
			case cfg.Shards == 0:
				return errs.New(errs.Invalid, "--shards is 0; it must be between 1 and %d", shard.SlotCount)
			}
			log, err := logs.logger(os.Stderr)
			if err != nil {
				return err
			}
			if err := errors.Join(checkDev(&cfg.Listen), dropReadyFile(readyFile)); err != nil {
				return err
			}
			var moved []string
			for _, p := range []struct {
				flag string
				addr *string
			}{{"redis", &cfg.Listen.Redis}, {"kafka", &cfg.Listen.Kafka}, {"etcd", &cfg.Listen.Etcd}, {"http", &cfg.Listen.HTTP}} {
				if cmd.Flags().Changed(p.flag) {
					continue
				}
				free, err := freePort(*p.addr)
				if err != nil {
					return err
				}
				if free != *p.addr {
					moved = append(moved, fmt.Sprintf("%s is taken, so %s is on %s", *p.addr, p.flag, free))
					*p.addr = free
				}
			}
			err = runNode(cmd.Context(), cfg, log, func(s *server.Server) {
				devBanner(cmd.OutOrStdout(), cfg, s, moved, time.Since(start))
				if readyFile != "" {
					if err := writeFileAtomic(readyFile, []byte(s.Addr().HTTP+"\n")); err != nil {
						log.Error("cannot write the ready file", "error", err)
					}
				}
			})
			return asDevFlags(err)
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Data, "data", "", "data directory (default: memory, lost on exit)")
	f.StringVar(&cfg.Listen.Redis, "redis", redisDefault, "address of the Redis port")
	f.StringVar(&cfg.Listen.Kafka, "kafka", kafkaDefault, "address of the Kafka port")
	f.StringVar(&cfg.Listen.Etcd, "etcd", etcdDefault, "address of the etcd port")
	f.StringVar(&cfg.Listen.HTTP, "http", httpDefault, "address of the HTTP port (metrics, status)")
	f.IntVar(&cfg.Shards, "shards", 1, "number of shards")
	f.StringVar(&readyFile, "ready-file", "", "file to write the http address to once the node is ready")
	logs.add(c, "warn")
	return c
}

// checkDev checks the addresses of quorate dev, which has no configuration that would allow more.
func checkDev(l *server.Listen) error {
	for _, p := range []struct{ flag, addr string }{{"--redis", l.Redis}, {"--kafka", l.Kafka}, {"--etcd", l.Etcd}, {"--http", l.HTTP}} {
		if p.addr == "" || strings.HasPrefix(p.addr, env.SocketPrefix) {
			continue
		}
		if err := checkAddr(p.flag, p.addr); err != nil {
			return err
		}
		if host, _, _ := net.SplitHostPort(p.addr); server.Reachable(host) {
			return errs.New(errs.Invalid, "%s is %q; quorate dev is for this machine alone, such as 127.0.0.1; others can reach a node of quorate server", p.flag, p.addr)
		}
	}
	return nil
}

// asDevFlags names flags where an error names what the configuration file calls so.
func asDevFlags(err error) error {
	if err == nil {
		return nil
	}
	text := strings.NewReplacer(
		"configuration: ", "", "listen.redis", "--redis", "listen.kafka", "--kafka", "listen.etcd", "--etcd", "listen.http", "--http", "shards is", "--shards is", "set data to", "set --data to",
	).Replace(err.Error())
	return errs.New(errs.KindOf(err), "%s", text)
}

// devBanner prints where the node listens, and what to try.
func devBanner(w io.Writer, cfg server.Config, s *server.Server, moved []string, took time.Duration) {
	where := "data in memory, LOST on exit (keep it: --data DIR)"
	if cfg.Data != "" {
		where = "data in " + cfg.Data
	}
	a := s.Addr()
	redisHost, redisPort, _ := net.SplitHostPort(a.Redis)
	status := "curl http://" + a.HTTP + "/status"
	if path, ok := strings.CutPrefix(a.HTTP, env.SocketPrefix); ok {
		status = "curl --unix-socket " + path + " http://localhost/status"
	}
	fmt.Fprintf(w, "quorate %s · dev · %s\n", version, where)
	for _, p := range []struct{ name, addr, try string }{
		{"Redis", a.Redis, fmt.Sprintf("redis-cli -h %s -p %s set hello world", redisHost, redisPort)},
		{"Kafka", a.Kafka, "kcat -b " + a.Kafka + " -L"},
		{"etcd", a.Etcd, "etcdctl --endpoints " + strings.Replace(a.Etcd, env.SocketPrefix, "unix://", 1) + " put hello world"},
		{"HTTP", a.HTTP, status},
	} {
		if p.addr == "" {
			fmt.Fprintf(w, "  %-5s  not served\n", p.name)
			continue
		}
		fmt.Fprintf(w, "  %-5s  %-21s try: %s\n", p.name, p.addr, p.try)
	}
	for _, m := range moved {
		fmt.Fprintf(w, "  Note: %s\n", m)
	}
	fmt.Fprintf(w, "Ready in %d ms (checked: a request through each port). Ctrl-C stops.\n", took.Milliseconds())
}

// freePort returns addr if nobody listens there, else the same host with the next free port.
func freePort(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	n, err := net.LookupPort("tcp", port)
	if err != nil {
		return "", err
	}
	for try := n; try < n+100; try++ {
		a := net.JoinHostPort(host, fmt.Sprint(try))
		var lc net.ListenConfig
		ln, err := lc.Listen(context.Background(), "tcp", a)
		if err == nil {
			return a, ln.Close()
		}
	}
	return "", errors.New("no free port near " + addr)
}
