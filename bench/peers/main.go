// Command peers compares Quorate with etcd and Redis: the same load on each in turn, three nodes each on this machine, every
// write on stable storage of a majority before its answer. It prints ratios; absolute figures of one machine mean little.
//
// etcd is built from the Go module proxy; Redis comes from Debian, with appendfsync always and two replicas, and each of its
// writes is followed by WAIT 1 (which tells that a replica has it, not that the replica has synced it: Redis cannot say more).
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// system is one cluster under test.
type system struct {
	name  string
	pids  []int
	stop  func()
	addrs []string // leader first
	// client returns a function that makes one request on a connection of its own, and one that closes it.
	client func(addr string) (func(op string, key int, value []byte) error, func(), error)
}

type sample struct {
	rate, cpu float64
	p50, p99  time.Duration
}

func main() {
	quorate := flag.String("quorate", "bin/quorate", "the quorate program")
	etcd := flag.String("etcd", "bin/etcd", "the etcd program; empty leaves it out")
	redisServer := flag.String("redis", "redis-server", "the Redis program; empty leaves it out")
	secs := flag.Duration("for", 3*time.Second, "how long each measurement lasts")
	rounds := flag.Int("rounds", 4, "how many times each system is measured, in turn")
	loads := flag.String("loads", "set/1/128,set/64/128,set/256/128,get/1/128,get/64/128,get/256/128,set/64/1024,set/256/1024,set-event/64/128", "op/clients/bytes, ...")
	out := flag.String("out", "", "file to write the table to, as Markdown")
	flag.Parse()
	if err := run(*quorate, *etcd, *redisServer, *secs, *rounds, strings.Split(*loads, ","), *out); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(quorate, etcd, redis string, d time.Duration, rounds int, loads []string, out string) error {
	dir, err := os.MkdirTemp("", "peers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var all []*system
	defer func() {
		for _, s := range all {
			s.stop()
		}
	}()
	add := func(s *system, err error) error {
		if err == nil {
			all = append(all, s)
		}
		return err
	}
	if err := add(startQuorate(filepath.Join(dir, "quorate"), quorate)); err != nil {
		return fmt.Errorf("start quorate: %w", err)
	}
	if etcd != "" {
		if err := add(startEtcd(filepath.Join(dir, "etcd"), etcd)); err != nil {
			return fmt.Errorf("start etcd: %w", err)
		}
	}
	if redis != "" {
		if err := add(startRedis(filepath.Join(dir, "redis"), redis)); err != nil {
			return fmt.Errorf("start redis: %w", err)
		}
	}
	var md strings.Builder
	var below []string
	line := func(format string, args ...any) {
		s := fmt.Sprintf(format, args...)
		fmt.Println(s)
		md.WriteString(s + "\n")
	}
	line("| load | system | per second, median (min-max) | p50 | p99 | CPU-s per 100k | rate / %s | CPU / %s |", baseline(all), baseline(all))
	line("|---|---|---|---|---|---|---|---|")
	for _, l := range loads {
		f := strings.Split(l, "/")
		if len(f) != 3 {
			return fmt.Errorf("load %q is not op/clients/bytes", l)
		}
		clients, e1 := strconv.Atoi(f[1])
		size, e2 := strconv.Atoi(f[2])
		if err := errors.Join(e1, e2); err != nil {
			return err
		}
		got := make([][]sample, len(all))
		var floors []floor
		// plain are the same writes without their events, in turn with those.
		var plain []sample
		for range rounds {
			if f[0] == "set" && clients == 1 {
				floors = append(floors, measureFloor(dir))
			}
			for i, s := range all {
				if f[0] == "set-event" {
					if s.name != "quorate" {
						continue
					}
					m, err := measure(s, "set", clients, size, d)
					if err != nil {
						return fmt.Errorf("%s without events on %s: %w", l, s.name, err)
					}
					plain = append(plain, m)
				}
				m, err := measure(s, f[0], clients, size, d)
				if err != nil {
					return fmt.Errorf("%s on %s: %w", l, s.name, err)
				}
				got[i] = append(got[i], m)
			}
		}
		base := got[min(1, len(all)-1)]
		for i, s := range all {
			if len(got[i]) == 0 {
				continue
			}
			rate, ratio, cpu := "-", "-", "-"
			rs, lo, hi := spread(got[i], func(m sample) float64 { return m.rate })
			rate = fmt.Sprintf("%.0f (%.0f-%.0f)", rs, lo, hi)
			if len(base) > 0 {
				ratio = ratios(got[i], base, func(m sample) float64 { return m.rate })
				cpu = ratios(got[i], base, func(m sample) float64 { return m.cpu })
			}
			p50, _, _ := spread(got[i], func(m sample) float64 { return float64(m.p50.Microseconds()) })
			p99, _, _ := spread(got[i], func(m sample) float64 { return float64(m.p99.Microseconds()) })
			c, _, _ := spread(got[i], func(m sample) float64 { return m.cpu })
			line("| %s | %s | %s | %.0f µs | %.0f µs | %.1f | %s | %s |", l, s.name, rate, p50, p99, c, ratio, cpu)
		}
		if len(floors) > 0 {
			below = append(below, floorLine(l, all[0].name, floors, got[0]))
		}
		if len(plain) > 0 {
			below = append(below, fmt.Sprintf("A write with its event (%s), measured in turn with the same write without one, takes %s times as long and %s times the CPU.",
				l, ratios(plain, got[0], func(m sample) float64 { return m.rate }), ratios(got[0], plain, func(m sample) float64 { return m.cpu })))
		}
	}
	for _, b := range below {
		line("")
		line("%s", b)
	}
	if out != "" {
		head := "# Benchmarks\n\nMade by `make bench-peers`: three nodes each on one machine, every write on stable storage of a majority before its answer,\nmeasured in turn. Only the ratios mean anything; they are medians of ratios within a round, with the range.\n\n"
		return os.WriteFile(out, []byte(head+md.String()), 0o644)
	}
	return nil
}

func baseline(all []*system) string { return all[min(1, len(all)-1)].name }

func spread[T any](ms []T, f func(T) float64) (median, lo, hi float64) {
	var v []float64
	for _, m := range ms {
		v = append(v, f(m))
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2, v[0], v[len(v)-1]
}

func ratios(a, b []sample, f func(sample) float64) string {
	var v []float64
	for i := range min(len(a), len(b)) {
		v = append(v, f(a[i])/f(b[i]))
	}
	mid, lo, hi := spread(v, func(r float64) float64 { return r })
	return fmt.Sprintf("%.2f (%.2f-%.2f)", mid, lo, hi)
}

// measure runs a closed loop of clients against the leader.
func measure(s *system, op string, clients, size int, d time.Duration) (sample, error) {
	value := make([]byte, size)
	for i := range value {
		value[i] = byte('a' + i%26)
	}
	var mu sync.Mutex
	var lat []time.Duration
	var first error
	start := time.Now()
	from, to := start.Add(500*time.Millisecond), start.Add(500*time.Millisecond+d)
	var wg sync.WaitGroup
	cpu0 := 0.0
	wg.Add(1)
	go func() {
		defer wg.Done()
		time.Sleep(time.Until(from))
		mu.Lock()
		cpu0 = cpuSeconds(s.pids)
		mu.Unlock()
	}()
	for i := range clients {
		do, closeConn, err := s.client(s.addrs[0])
		if err != nil {
			return sample{}, err
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer closeConn()
			rng := rand.New(rand.NewPCG(uint64(i), 7))
			own := make([]time.Duration, 0, 4096)
			for {
				t := time.Now()
				if t.After(to) {
					break
				}
				if err := do(op, rng.IntN(10_000), value); err != nil {
					mu.Lock()
					first = errors.Join(first, err)
					mu.Unlock()
					break
				}
				if n := time.Now(); t.After(from) && n.Before(to) {
					own = append(own, n.Sub(t))
				}
			}
			mu.Lock()
			lat = append(lat, own...)
			mu.Unlock()
		}()
	}
	wg.Wait()
	used := cpuSeconds(s.pids) - cpu0
	if first != nil {
		return sample{}, first
	}
	if len(lat) == 0 {
		return sample{}, errors.New("no request was answered")
	}
	slices.Sort(lat)
	return sample{
		rate: float64(len(lat)) / d.Seconds(), cpu: used / float64(len(lat)) * 100_000,
		p50: lat[len(lat)/2], p99: lat[len(lat)*99/100],
	}, nil
}

// cpuSeconds adds up the user and system time of processes, from /proc.
func cpuSeconds(pids []int) float64 {
	sum := 0.0
	for _, p := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		u, _ := strconv.ParseFloat(f[11], 64)
		k, _ := strconv.ParseFloat(f[12], 64)
		sum += (u + k) / 100
	}
	return sum
}

// floor is what a replicated write takes here at least.
type floor struct{ disk, trip time.Duration }

func (f floor) sum() time.Duration { return f.disk + 2*f.trip }

func measureFloor(dir string) floor { return floor{diskFloor(dir), loopback()} }

// floorLine compares the latencies of a load with the floors measured in turn with it.
func floorLine(load, name string, floors []floor, got []sample) string {
	us := func(d time.Duration) float64 { return float64(d.Microseconds()) }
	disk, _, _ := spread(floors, func(f floor) float64 { return us(f.disk) })
	trip, _, _ := spread(floors, func(f floor) float64 { return us(f.trip) })
	sum, sumLo, sumHi := spread(floors, func(f floor) float64 { return us(f.sum()) })
	var rs []float64
	for i := range floors {
		rs = append(rs, us(got[i].p50)/us(floors[i].sum()))
	}
	over, overLo, overHi := spread(rs, func(r float64) float64 { return r })
	return fmt.Sprintf("Floor of a replicated write here, measured in turn with %s: three parallel fdatasyncs (p50 %.0f µs) and two loopback round trips (p50 %.0f µs each), together %.0f µs (%.0f-%.0f). The p50 of %s is %.2f (%.2f-%.2f) times that.",
		load, disk, trip, sum, sumLo, sumHi, name, over, overLo, overHi)
}

// diskFloor measures three parallel fdatasyncs of 4 KiB into zeroed files.
func diskFloor(dir string) time.Duration {
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	for i := range 3 {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("floor%d", i)))
		if err != nil {
			return 0
		}
		_, _ = f.Write(make([]byte, 1<<20))
		_ = f.Sync()
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer f.Close()
			for n := range 300 {
				t := time.Now()
				_, _ = f.WriteAt(make([]byte, 512), int64(n*512))
				_ = fdatasync(f)
				mu.Lock()
				all = append(all, time.Since(t))
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	slices.Sort(all)
	return all[len(all)/2]
}

// loopback measures a round trip of 128 bytes between two goroutines over TCP.
func loopback() time.Duration {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 128)
		for {
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return 0
	}
	defer c.Close()
	var all []time.Duration
	b := make([]byte, 128)
	for range 3000 {
		t := time.Now()
		if _, err := c.Write(b); err != nil {
			return 0
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return 0
		}
		all = append(all, time.Since(t))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

func ports(n int) []int {
	var out []int
	var lns []net.Listener
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		lns = append(lns, ln)
		out = append(out, ln.Addr().(*net.TCPAddr).Port)
	}
	for _, ln := range lns {
		ln.Close()
	}
	return out
}

// start runs a process with its output in a file.
func start(dir, name string, args ...string) (*exec.Cmd, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	return cmd, cmd.Start()
}

func finish(s *system, cmds []*exec.Cmd) {
	for _, c := range cmds {
		s.pids = append(s.pids, c.Process.Pid)
	}
	s.stop = func() {
		for _, c := range cmds {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}
}

func wait(what string, f func() bool) error {
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return nil
		}
	}
	return fmt.Errorf("%s did not happen in 30 s", what)
}

func startQuorate(dir, bin string) (*system, error) {
	p := ports(9)
	var cmds []*exec.Cmd
	s := &system{name: "quorate", client: respClient("")}
	for i := range 3 {
		nd := filepath.Join(dir, strconv.Itoa(i+1))
		if err := os.MkdirAll(nd, 0o755); err != nil {
			return nil, err
		}
		cfg := fmt.Sprintf("node: %d\ndata: %q\nlisten: {peer: '127.0.0.1:%d', redis: '127.0.0.1:%d', http: '127.0.0.1:%d'}\npeers: {1: '127.0.0.1:%d', 2: '127.0.0.1:%d', 3: '127.0.0.1:%d'}\n",
			i+1, filepath.Join(nd, "data"), p[i], p[3+i], p[6+i], p[0], p[1], p[2])
		file := filepath.Join(nd, "config.yaml")
		if err := os.WriteFile(file, []byte(cfg), 0o644); err != nil {
			return nil, err
		}
		c, err := start(nd, bin, "server", "--config", file)
		if err != nil {
			return nil, err
		}
		cmds = append(cmds, c)
	}
	finish(s, cmds)
	leader := 0
	err := wait("an election of quorate", func() bool {
		b, err := exec.Command(bin, "status", "--http", fmt.Sprintf("127.0.0.1:%d", p[6]), "--json").Output()
		if err != nil {
			return false
		}
		var st struct{ Shards []struct{ Leader int } }
		if json.Unmarshal(b, &st) != nil || len(st.Shards) == 0 {
			return false
		}
		leader = st.Shards[0].Leader
		return leader > 0
	})
	if err != nil {
		s.stop()
		return nil, err
	}
	s.addrs = []string{fmt.Sprintf("127.0.0.1:%d", p[3+leader-1])}
	return s, nil
}

func startEtcd(dir, bin string) (*system, error) {
	p := ports(6)
	var cmds []*exec.Cmd
	s := &system{name: "etcd"}
	var initial []string
	for i := range 3 {
		initial = append(initial, fmt.Sprintf("n%d=http://127.0.0.1:%d", i, p[i]))
	}
	var eps []string
	for i := range 3 {
		peer, cl := fmt.Sprintf("http://127.0.0.1:%d", p[i]), fmt.Sprintf("http://127.0.0.1:%d", p[3+i])
		nd := filepath.Join(dir, strconv.Itoa(i))
		c, err := start(nd, bin, "--name", fmt.Sprintf("n%d", i), "--data-dir", filepath.Join(nd, "data"), "--log-level", "error",
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--listen-client-urls", cl, "--advertise-client-urls", cl,
			"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-state", "new")
		if err != nil {
			return nil, err
		}
		cmds = append(cmds, c)
		eps = append(eps, fmt.Sprintf("127.0.0.1:%d", p[3+i]))
	}
	finish(s, cmds)
	err := wait("an election of etcd", func() bool {
		for _, ep := range eps {
			cl, err := clientv3.New(clientv3.Config{Endpoints: []string{ep}, DialTimeout: time.Second})
			if err != nil {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			st, err := cl.Status(ctx, ep)
			cancel()
			cl.Close()
			if err == nil && st.Leader != 0 && st.Leader == st.Header.MemberId {
				s.addrs = []string{ep}
				return true
			}
		}
		return false
	})
	if err != nil {
		s.stop()
		return nil, err
	}
	// Eight connections are shared by all clients, as etcd's own benchmark does with many clients.
	var shared []*clientv3.Client
	for range 8 {
		cl, err := clientv3.New(clientv3.Config{Endpoints: s.addrs, DialTimeout: 5 * time.Second})
		if err != nil {
			s.stop()
			return nil, err
		}
		shared = append(shared, cl)
	}
	n := 0
	s.client = func(string) (func(string, int, []byte) error, func(), error) {
		cl := shared[n%len(shared)]
		n++
		return func(op string, key int, value []byte) error {
			k := "key:" + strconv.Itoa(key)
			var err error
			if op == "get" {
				_, err = cl.Get(context.Background(), k)
			} else {
				_, err = cl.Put(context.Background(), k, string(value))
			}
			return err
		}, func() {}, nil
	}
	return s, nil
}

func startRedis(dir, bin string) (*system, error) {
	p := ports(3)
	var cmds []*exec.Cmd
	s := &system{name: "redis WAIT 1", client: respClient("1")}
	for i := range 3 {
		nd := filepath.Join(dir, strconv.Itoa(i))
		if err := os.MkdirAll(nd, 0o755); err != nil {
			return nil, err
		}
		args := []string{"--port", strconv.Itoa(p[i]), "--bind", "127.0.0.1", "--dir", nd, "--appendonly", "yes", "--appendfsync", "always", "--save", ""}
		if i > 0 {
			args = append(args, "--replicaof", "127.0.0.1 "+strconv.Itoa(p[0]))
		}
		c, err := start(nd, bin, args...)
		if err != nil {
			return nil, err
		}
		cmds = append(cmds, c)
	}
	finish(s, cmds)
	s.addrs = []string{fmt.Sprintf("127.0.0.1:%d", p[0])}
	err := wait("the replication of redis", func() bool {
		do, closeConn, err := respClient("2")(s.addrs[0])
		if err != nil {
			return false
		}
		defer closeConn()
		return do("set", 1, []byte("x")) == nil
	})
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// respClient makes Redis clients; wait, when not empty, is the number of replicas that each write waits for.
func respClient(waitFor string) func(string) (func(string, int, []byte) error, func(), error) {
	return func(addr string) (func(string, int, []byte) error, func(), error) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, nil, err
		}
		r := bufio.NewReader(c)
		var b []byte
		return func(op string, key int, value []byte) error {
			k := "key:" + strconv.Itoa(key)
			b = b[:0]
			n := 1
			switch op {
			case "get":
				b = command(b, "GET", k)
			case "set-event":
				b = command(b, "MULTI")
				b = command(b, "SET", k, string(value))
				b = command(b, "EVENT.ADD", "bench", string(value), "KEY", k)
				b = command(b, "EXEC")
				n = 4
			default:
				b = command(b, "SET", k, string(value))
				if waitFor != "" {
					b = command(b, "WAIT", waitFor, "5000")
					n = 2
				}
			}
			if _, err := c.Write(b); err != nil {
				return err
			}
			for i := range n {
				v, err := reply(r)
				if err != nil {
					return err
				}
				if waitFor != "" && i == 1 && v < waitFor {
					return fmt.Errorf("only %s replicas have the write", v)
				}
			}
			return nil
		}, func() { c.Close() }, nil
	}
}

func command(b []byte, args ...string) []byte {
	b = strconv.AppendInt(append(b, '*'), int64(len(args)), 10)
	for _, a := range args {
		b = strconv.AppendInt(append(b, "\r\n$"...), int64(len(a)), 10)
		b = append(append(b, "\r\n"...), a...)
	}
	return append(b, "\r\n"...)
}

// reply reads one reply and returns its text; arrays are read whole.
func reply(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	body := strings.TrimSpace(line[1:])
	switch line[0] {
	case '-':
		return "", errors.New(body)
	case '$':
		n, _ := strconv.Atoi(body)
		if n >= 0 {
			_, err = io.CopyN(io.Discard, r, int64(n)+2)
		}
	case '*':
		n, _ := strconv.Atoi(body)
		for range n {
			if _, err := reply(r); err != nil {
				return "", err
			}
		}
	}
	return body, err
}
