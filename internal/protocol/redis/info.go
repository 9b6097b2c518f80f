package redis

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"

	"github.com/quorate/quorate/internal/datatypes"
)

// INFO [section ...] and CONFIG GET parameter ...
//
// Behaviour: the sections of Redis with the fields that clients and exporters look for, and a section "quorate".
// Versions: as in Redis 7.0.
// Not supported: fields about what Quorate has not or does not count, such as keyspace_hits; CONFIG SET, REWRITE and RESETSTAT, by name; commandstats, errorstats and latencystats are empty, as the
// same figures are metrics.

// infoSections lists the sections of INFO without arguments, in order.
var infoSections = [...]string{"server", "clients", "memory", "persistence", "stats", "replication", "cpu", "modules", "errorstats", "cluster", "keyspace", "quorate"}

func cmdInfo(c *conn, args [][]byte) {
	want := map[string]bool{}
	for _, a := range args[1:] {
		name := strings.ToLower(string(a[:min(len(a), 64)]))
		if name == "all" || name == "everything" || name == "default" {
			for _, s := range infoSections {
				want[s] = true
			}
		}
		want[name] = true
	}
	var b strings.Builder
	for _, s := range infoSections {
		if len(args) > 1 && !want[s] {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("\r\n")
		}
		fmt.Fprintf(&b, "# %s\r\n", strings.ToUpper(s[:1])+s[1:])
		if err := c.infoSection(&b, s); err != nil {
			c.error(err)
			return
		}
	}
	c.text(b.String())
}

func (c *conn) infoSection(b *strings.Builder, section string) error {
	field := func(name string, v any) { fmt.Fprintf(b, "%s:%v\r\n", name, v) }
	s := c.s
	switch section {
	case "server":
		field("redis_version", s.cfg.RedisVersion)
		field("redis_git_sha1", "00000000")
		field("redis_git_dirty", 0)
		field("redis_build_id", s.cfg.Version)
		field("redis_mode", s.mode())
		field("os", runtime.GOOS+" "+runtime.GOARCH)
		field("arch_bits", strconv.IntSize)
		field("multiplexing_api", "go")
		field("process_id", os.Getpid())
		field("run_id", s.runID)
		port := "0"
		if _, p, err := net.SplitHostPort(c.nc.LocalAddr().String()); err == nil {
			port = p
		}
		field("tcp_port", port)
		up := int64(s.client.Now().Sub(s.started).Seconds())
		field("uptime_in_seconds", up)
		field("uptime_in_days", up/86400)
	case "clients":
		field("connected_clients", s.conns.Len())
		field("maxclients", s.cfg.ConnectionsMax)
		field("blocked_clients", 0)
	case "memory":
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		field("used_memory", m.HeapAlloc)
		field("used_memory_human", fmt.Sprintf("%.2fM", float64(m.HeapAlloc)/(1<<20)))
		field("used_memory_rss", m.Sys)
		field("used_memory_peak", m.HeapSys)
		field("maxmemory", 0)
		field("maxmemory_human", "0B")
		field("maxmemory_policy", "noeviction")
		field("mem_allocator", "go")
	case "persistence":
		field("loading", 0)
		// There are no RDB and AOF files; an acknowledged write is always on disk.
		field("rdb_changes_since_last_save", 0)
		field("rdb_bgsave_in_progress", 0)
		field("aof_enabled", 0)
	case "stats":
		field("total_connections_received", s.accepted.Load())
		field("total_commands_processed", s.processed.Load())
		field("rejected_connections", s.rejected.Load())
		field("evicted_keys", 0)
		field("pubsub_channels", 0)
		field("pubsub_patterns", 0)
	case "replication":
		// Every node takes every write, so that to a client each is a master.
		field("role", "master")
		field("connected_slaves", 0)
		field("master_failover_state", "no-failover")
		field("master_replid", nodeID(c.topo.Cluster+"/replid", 0))
		field("master_repl_offset", 0)
	case "cpu":
		cpu := []metrics.Sample{{Name: "/cpu/classes/user:cpu-seconds"}}
		metrics.Read(cpu)
		if cpu[0].Value.Kind() == metrics.KindFloat64 {
			field("used_cpu_user", fmt.Sprintf("%.6f", cpu[0].Value.Float64()))
		}
	case "cluster":
		enabled := 0
		if s.cfg.ClusterMode {
			enabled = 1
		}
		field("cluster_enabled", enabled)
	case "keyspace":
		if err := c.place(); err != nil {
			return err
		}
		keys, expires, err := c.keyspace()
		if err != nil {
			return err
		}
		if keys > 0 {
			fmt.Fprintf(b, "db0:keys=%d,expires=%d,avg_ttl=0\r\n", keys, expires)
		}
	case "quorate":
		field("quorate_version", s.cfg.Version)
		field("quorate_cluster", c.topo.Cluster)
		field("quorate_node", c.topo.Self)
		field("quorate_space", s.cfg.Space)
		field("quorate_shards", len(c.space.Shards))
		field("quorate_durability", s.cfg.Durability)
	}
	return nil
}

var configSubs = subcommands{
	arity:   map[string]int{"get": -3, "help": 2},
	refused: refusals{{"settings belong to the node's own configuration file", "set rewrite resetstat"}},
}

func cmdConfig(c *conn, args [][]byte) {
	switch subcommand(args) {
	case "get":
		c.configGet(args[2:])
	case "help":
		c.helpText("CONFIG", "GET <pattern>")
	}
}

// configValues returns the parameters of Redis that have a meaning here.
func (s *Server) configValues() [][2]string {
	cluster := "no"
	if s.cfg.ClusterMode {
		cluster = "yes"
	}
	values := [][2]string{
		{"appendfsync", "always"}, {"appendonly", "yes"}, {"cluster-enabled", cluster}, {"databases", "1"},
		{"list-max-listpack-size", "-2"}, {"maxclients", strconv.Itoa(s.cfg.ConnectionsMax)}, {"maxmemory", "0"},
		{"maxmemory-policy", "noeviction"}, {"min-replicas-to-write", "0"}, {"notify-keyspace-events", ""},
		{"proto-max-bulk-len", strconv.Itoa(datatypes.CommandBytesMax)}, {"requirepass", ""}, {"save", ""},
		{"slowlog-log-slower-than", "-1"}, {"slowlog-max-len", "0"}, {"tcp-keepalive", "15"}, {"timeout", "0"},
	}
	slices.SortFunc(values, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return values
}

func (c *conn) configGet(patterns [][]byte) {
	var found [][2]string
	for _, v := range c.s.configValues() {
		for _, p := range patterns {
			if len(p) <= 256 && datatypes.Match([]byte(strings.ToLower(string(p))), []byte(v[0])) {
				found = append(found, v)
				break
			}
		}
	}
	c.mapOf(len(found))
	for _, v := range found {
		c.bulk(v[0])
		c.bulk(v[1])
	}
}
