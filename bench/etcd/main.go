// Command etcd compares Quorate's etcd face with etcd, by etcd's own benchmark tool: the same load on each in turn, three nodes each
// on this machine, every write on stable storage of a majority before its answer. It prints ratios; absolute figures of one machine
// mean little.
//
// All three programs come from outside: scripts/bench-etcd.sh builds them.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"iter"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// cluster is three nodes of one kind.
type cluster struct {
	name     string
	procs    []*exec.Cmd
	stopped  []*exec.Cmd
	clients  []string
	leader   string
	requests map[string]int
}

// load is one thing to measure: arguments of the tool, for a number of requests that is found by a first run.
type load struct {
	name string
	// args are those of the tool; TOTAL stands for the number of requests.
	args []string
	// total is the number of requests of the first run.
	total int
	// on says which clusters are measured; nil is etcd and quorate.
	on []string
}

func closed(clients int) []string {
	return []string{"--clients", strconv.Itoa(clients), "--conns", strconv.Itoa(min(clients, 32))}
}

func loads() []load {
	var all []load
	for _, n := range []int{1, 64, 256} {
		all = append(all, load{
			name: fmt.Sprintf("put, %d clients", n), total: 200 + 40*n,
			args: append(closed(n), "put", "--total", "TOTAL", "--key-size", "16", "--val-size", "128", "--key-space-size", "10000"),
		})
	}
	all = append(all, load{
		name: "range of one key, linearizable, 64 clients", total: 5000, on: []string{"etcd", "quorate", "quorate, lease reads"},
		args: append(closed(64), "range", "bench-key", "--total", "TOTAL"),
	}, load{
		name: "range of one key, linearizable, 256 clients", total: 5000, on: []string{"etcd", "quorate", "quorate, lease reads"},
		args: append(closed(256), "range", "bench-key", "--total", "TOTAL"),
	}, load{
		name: "txn of 4 puts, 64 clients", total: 1500,
		args: append(closed(64), "txn-put", "--total", "TOTAL", "--txn-ops", "4", "--key-size", "16", "--val-size", "128", "--key-space-size", "10000"),
	}, load{
		name: "txn of 1 put, 256 clients", total: 4000,
		args: append(closed(256), "txn-put", "--total", "TOTAL", "--txn-ops", "1", "--key-size", "16", "--val-size", "128", "--key-space-size", "10000"),
	}, load{
		name: "10,000 watchers of one key", total: 20,
		args: append(closed(64), "watch", "--streams", "100", "--watch-per-stream", "100", "--put-total", "TOTAL"),
	})
	return all
}

type sample struct{ rate, cpu, p50, p99 float64 }

func main() {
	quorate := flag.String("quorate", "bin/quorate", "the quorate program")
	etcd := flag.String("etcd", "bin/etcd", "the etcd program")
	tool := flag.String("tool", "bin/etcd-benchmark", "etcd's benchmark tool")
	rounds := flag.Int("rounds", 5, "how many times each is measured, in turn")
	secs := flag.Float64("seconds", 3, "about how long each measurement lasts")
	only := flag.String("only", "", "measure only loads whose name has this")
	memory := flag.Int("memory", 0, "instead: load so many keys of 1 KB and compare the memory of the nodes")
	large := flag.Int("large", 0, "instead: put so many GB into a single node, and compare puts with those before; takes the disk 1.5 times as much")
	versions := flag.Int("compaction", 0, "instead: make so many versions of keys, and see what compacting them does to puts")
	leases := flag.Int("leases", 0, "instead: keep so many leases alive for two minutes, then let them end")
	out := flag.String("out", "", "file to write the table to, as Markdown")
	flag.Parse()
	b := &bench{tool: *tool, rounds: *rounds, seconds: *secs}
	var err error
	switch {
	case *large > 0:
		err = b.alone(*quorate, 1, func(c *cluster, cl *clientv3.Client, dir string) error { return b.large(c, cl, dir, *large) })
	case *versions > 0:
		err = b.alone(*quorate, 3, func(c *cluster, cl *clientv3.Client, _ string) error { return b.compaction(c, cl, *versions) })
	case *leases > 0:
		err = b.alone(*quorate, 3, func(c *cluster, cl *clientv3.Client, _ string) error { return b.leases(c, cl, *leases) })
	default:
		err = b.run(*quorate, *etcd, *only, *memory, *out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

type bench struct {
	tool    string
	rounds  int
	seconds float64
	text    strings.Builder
}

func (b *bench) line(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	fmt.Println(s)
	b.text.WriteString(s + "\n")
}

func (b *bench) run(quorate, etcd, only string, memory int, out string) error {
	dir, err := os.MkdirTemp("", "bench-etcd-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	all := map[string]*cluster{}
	defer func() {
		for _, c := range all {
			c.stop()
		}
	}()
	for name, start := range map[string]func(string) (*cluster, error){
		"etcd":                 func(d string) (*cluster, error) { return startEtcd(d, etcd) },
		"quorate":              func(d string) (*cluster, error) { return startQuorate(d, quorate, 3, false) },
		"quorate, lease reads": func(d string) (*cluster, error) { return startQuorate(d, quorate, 3, true) },
	} {
		c, err := start(filepath.Join(dir, strings.ReplaceAll(name, ", ", "-")))
		if c != nil {
			c.name = name
			all[name] = c
		}
		if err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
		if err := c.findLeader(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if memory > 0 {
		return b.memory(all, memory)
	}
	b.line("| load | system | per second, median (min-max) | p50 | p99 | CPU-s per 100k | rate / etcd | CPU / etcd |")
	b.line("|---|---|---|---|---|---|---|---|")
	for _, l := range loads() {
		if strings.Contains(l.name, only) {
			if err := b.measure(all, l); err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
		}
	}
	if out == "" {
		return nil
	}
	head := "# Benchmarks of the etcd face\n\nMade by `make bench-etcd` with etcd's own benchmark tool: three nodes each on one machine, every write on stable storage of a majority before\nits answer, measured in turn. Only the ratios mean anything; they are medians of ratios within a round, with the range.\n\n"
	return os.WriteFile(out, []byte(head+b.text.String()), 0o644)
}

func (b *bench) measure(all map[string]*cluster, l load) error {
	on := l.on
	if on == nil {
		on = []string{"etcd", "quorate"}
	}
	got := map[string][]sample{}
	for r := range b.rounds + 1 {
		for _, name := range on {
			c := all[name]
			if c.requests[l.name] == 0 {
				c.requests[l.name] = l.total
			}
			s, took, err := b.once(c, l)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if r == 0 {
				// The first run warms up, and says how many requests a measurement takes.
				c.requests[l.name] = max(l.total, int(float64(l.total)*b.seconds/max(took, 0.05)))
				continue
			}
			got[name] = append(got[name], s)
		}
	}
	for _, name := range on {
		s := got[name]
		rate, lo, hi := spread(s, func(s sample) float64 { return s.rate })
		p50, _, _ := spread(s, func(s sample) float64 { return s.p50 })
		p99, _, _ := spread(s, func(s sample) float64 { return s.p99 })
		cpu, _, _ := spread(s, func(s sample) float64 { return s.cpu })
		b.line("| %s | %s | %.0f (%.0f-%.0f) | %.2f ms | %.2f ms | %.1f | %s | %s |", l.name, name, rate, lo, hi, p50*1e3, p99*1e3, cpu,
			ratios(s, got["etcd"], func(s sample) float64 { return s.rate }), ratios(s, got["etcd"], func(s sample) float64 { return s.cpu }))
	}
	return nil
}

var (
	perSecond = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	percent   = regexp.MustCompile(`(50|99)% in ([0-9.]+) secs`)
)

// once runs the tool against the leader.
func (b *bench) once(c *cluster, l load) (sample, float64, error) {
	args := []string{"--endpoints", c.leader, "--precise"}
	for _, a := range l.args {
		if a == "TOTAL" {
			a = strconv.Itoa(c.requests[l.name])
		}
		args = append(args, a)
	}
	cpu, began := c.cpu(), time.Now()
	text, err := exec.Command(b.tool, args...).CombinedOutput()
	took := time.Since(began).Seconds()
	if err != nil {
		return sample{}, 0, fmt.Errorf("%s: %w\n%s", b.tool, err, text)
	}
	used := c.cpu() - cpu
	// The tool's report of what was asked for comes last: with watches, events.
	rates := perSecond.FindAllSubmatch(text, -1)
	if len(rates) == 0 {
		return sample{}, 0, fmt.Errorf("the tool reports no rate:\n%s", text)
	}
	if bytes.Contains(text, []byte("Error distribution")) {
		return sample{}, 0, fmt.Errorf("requests failed:\n%s", text)
	}
	var s sample
	s.rate, _ = strconv.ParseFloat(string(rates[len(rates)-1][1]), 64)
	for _, m := range percent.FindAllSubmatch(text, -1) {
		v, _ := strconv.ParseFloat(string(m[2]), 64)
		if string(m[1]) == "50" {
			s.p50 = v
		} else {
			s.p99 = v
		}
	}
	n := float64(c.requests[l.name])
	if strings.Contains(l.name, "10,000 watchers") {
		n *= 10_000
	}
	s.cpu = used / n * 100_000
	return s, took, nil
}

// memory loads keys, and compares what the nodes take.
func (b *bench) memory(all map[string]*cluster, keys int) error {
	all["quorate, lease reads"].stop()
	delete(all, "quorate, lease reads")
	b.line("| system | resident, three nodes | of that anonymous | seconds to load |")
	b.line("|---|---|---|---|")
	for _, name := range []string{"etcd", "quorate"} {
		c := all[name]
		began := time.Now()
		text, err := exec.Command(b.tool, append([]string{"--endpoints", c.leader}, append(closed(64), "put", "--total", strconv.Itoa(keys),
			"--sequential-keys", "--key-space-size", strconv.Itoa(keys), "--key-size", "16", "--val-size", "1024")...)...).CombinedOutput()
		if err != nil || bytes.Contains(text, []byte("Error distribution")) {
			return fmt.Errorf("load %s: %w\n%s", name, err, text)
		}
		took := time.Since(began)
		rss, anon := c.resident()
		b.line("| %s | %d MiB | %d MiB | %.0f |", name, rss>>20, anon>>20, took.Seconds())
	}
	return nil
}

func spread(ms []sample, f func(sample) float64) (median, lo, hi float64) {
	v := make([]float64, 0, len(ms))
	for _, m := range ms {
		v = append(v, f(m))
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2, v[0], v[len(v)-1]
}

func ratios(a, b []sample, f func(sample) float64) string {
	v := make([]float64, 0, len(a))
	for i := range min(len(a), len(b)) {
		v = append(v, f(a[i])/f(b[i]))
	}
	slices.Sort(v)
	return fmt.Sprintf("%.2f (%.2f-%.2f)", (v[(len(v)-1)/2]+v[len(v)/2])/2, v[0], v[len(v)-1])
}

// proc yields a file of /proc for each of the nodes.
func (c *cluster) proc(file string) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for _, p := range c.procs {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.Process.Pid, file))
			if err == nil && !yield(b) {
				return
			}
		}
	}
}

// sum adds up the numbers behind a name in a file of /proc, over the nodes.
func (c *cluster) sum(file, name string) (n int64) {
	for b := range c.proc(file) {
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == name {
				v, _ := strconv.ParseInt(f[1], 10, 64)
				n += v
			}
		}
	}
	return n
}

// cpu adds up the user and system time of the nodes, in seconds.
func (c *cluster) cpu() (seconds float64) {
	for b := range c.proc("stat") {
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		u, _ := strconv.ParseFloat(f[11], 64)
		k, _ := strconv.ParseFloat(f[12], 64)
		seconds += (u + k) / 100
	}
	return seconds
}

// written adds up what the nodes wrote to disk since they were started, in bytes.
func (c *cluster) written() int64 { return c.sum("io", "write_bytes:") }

// resident adds up what the nodes have in memory, in bytes: all of it, and without pages of files.
func (c *cluster) resident() (all, anonymous int64) {
	return c.sum("status", "VmRSS:") << 10, c.sum("status", "RssAnon:") << 10
}

func ports(n int) ([]int, error) {
	var out []int
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		out = append(out, ln.Addr().(*net.TCPAddr).Port)
	}
	return out, nil
}

func (c *cluster) start(dir, name string, args ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	c.procs = append(c.procs, cmd)
	return nil
}

// stop ends the nodes by kill -9.
func (c *cluster) stop() {
	for _, p := range c.procs {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
	c.stopped, c.procs = c.procs, nil
}

// again starts the nodes that stop ended.
func (c *cluster) again() error {
	for _, old := range c.stopped {
		dir := filepath.Dir(old.Args[len(old.Args)-1])
		if err := c.start(dir, old.Path, old.Args[1:]...); err != nil {
			return err
		}
	}
	c.stopped = nil
	return nil
}

func startEtcd(dir, bin string) (*cluster, error) {
	c := &cluster{requests: map[string]int{}}
	p, err := ports(6)
	if err != nil {
		return c, err
	}
	var initial []string
	for i := range 3 {
		initial = append(initial, fmt.Sprintf("n%d=http://127.0.0.1:%d", i, p[i]))
	}
	for i := range 3 {
		peer, cl := fmt.Sprintf("http://127.0.0.1:%d", p[i]), fmt.Sprintf("http://127.0.0.1:%d", p[3+i])
		nd := filepath.Join(dir, strconv.Itoa(i))
		// The keys of a long run are more than the 2 GB that etcd allows itself.
		if err := c.start(nd, bin, "--name", fmt.Sprintf("n%d", i), "--data-dir", filepath.Join(nd, "data"), "--log-level", "error",
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--listen-client-urls", cl, "--advertise-client-urls", cl,
			"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-state", "new", "--quota-backend-bytes", "8589934592"); err != nil {
			return c, err
		}
		c.clients = append(c.clients, fmt.Sprintf("127.0.0.1:%d", p[3+i]))
	}
	return c, nil
}

func startQuorate(dir, bin string, nodes int, leases bool) (*cluster, error) {
	c := &cluster{requests: map[string]int{}}
	p, err := ports(2 * nodes)
	if err != nil {
		return c, err
	}
	var peers []string
	for i := range nodes {
		peers = append(peers, fmt.Sprintf("%d: '127.0.0.1:%d'", i+1, p[i]))
	}
	for i := range nodes {
		nd := filepath.Join(dir, strconv.Itoa(i+1))
		if err := os.MkdirAll(nd, 0o755); err != nil {
			return c, err
		}
		cfg := fmt.Sprintf("node: %d\ndata: %q\nlease_reads: %v\nlisten: {peer: '127.0.0.1:%d', etcd: '127.0.0.1:%d'}\npeers: {%s}\n",
			i+1, filepath.Join(nd, "data"), leases, p[i], p[nodes+i], strings.Join(peers, ", "))
		file := filepath.Join(nd, "config.yaml")
		if err := os.WriteFile(file, []byte(cfg), 0o600); err != nil {
			return c, err
		}
		if err := c.start(nd, bin, "server", "--config", file); err != nil {
			return c, err
		}
		c.clients = append(c.clients, fmt.Sprintf("127.0.0.1:%d", p[nodes+i]))
	}
	return c, nil
}

// findLeader asks the nodes, over the gateway that both have, who leads.
func (c *cluster) findLeader() error {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for _, addr := range c.clients {
			resp, err := http.Post("http://"+addr+"/v3/maintenance/status", "application/json", strings.NewReader("{}"))
			if err != nil {
				continue
			}
			var st struct {
				Leader string
				Header struct {
					MemberID string `json:"member_id"`
				}
			}
			err = json.NewDecoder(resp.Body).Decode(&st)
			_ = resp.Body.Close()
			if err == nil && st.Leader != "" && st.Leader != "0" && st.Leader == st.Header.MemberID {
				c.leader = addr
				return nil
			}
		}
	}
	return fmt.Errorf("no leader within a minute")
}
