package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/drill"
)

// asProgram makes the test program be quorate.
const asProgram = "QUORATE_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	// Drills start this program by its name as nodes. A test that starts one must not run all tests once more in each of them, and so on.
	node := len(os.Args) > 1 && os.Args[1] == "server"
	if node || os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// call runs a command as the program does.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, talk bytes.Buffer
	code = run(t.Context(), args, &out, &talk)
	return code, out.String(), talk.String()
}

func TestUsage_WrongCallsSayWhatToDo(t *testing.T) {
	for args, want := range map[string]string{
		"foo":                            `quorate has no command "foo"`,
		"statu":                          "did you mean status?",
		"help foo":                       `quorate has no command "foo"`,
		"help drill foo":                 `quorate drill has no command "foo"`,
		"dev foo":                        `"foo"`,
		"version foo":                    `"foo"`,
		"import foo":                     `quorate import has no command "foo"`,
		"import etcd-snapshot":           "accepts 1 arg",
		"drill foo":                      `quorate drill has no command "foo"`,
		"drill ls foo":                   `"foo"`,
		"drill run leader-kill x":        "at most 1 arg",
		"completion bashh":               "did you mean bash?",
		"server":                         "--config",
		"dev --foo":                      "--foo",
		"dev --redis foo":                `--redis is "foo"; write host:port`,
		"dev --etcd 0.0.0.0:1":           `--etcd is "0.0.0.0:1"; quorate dev is for this machine alone`,
		"dev --kafka 10.0.0.1:1":         `--kafka is "10.0.0.1:1"; quorate dev is for this machine alone`,
		"dev --shards -1":                "--shards is -1",
		"dev --shards 0":                 "--shards is 0",
		"dev --data=":                    "--data is empty",
		"status --http http://127.0.0.1": `--http is "http://127.0.0.1"; write host:port`,
		"status --http=":                 `--http is ""`,
		"bench --redis foo":              `--redis is "foo"; write host:port`,
		"bench --clients 0":              "clients is 0; it must be at least 1",
		"bench --value -1":               "value is -1; it must be at least 0",
		"bench --for 0s":                 "the load lasts 0s",
		"bench --warm -1s":               "the time before measuring is -1s",
		"demo --for 0s":                  "--for is 0s",
		"demo --nodes 2":                 "--nodes is 2",
		"drill run":                      "which drill?",
		"drill run fencing --cycles 3":   "drill fencing has no cycles to count",
		"drill run fencing --nodes 2":    "2 nodes; a drill needs 3 or 5",
		"drill run fencing --nodes 0":    "--nodes is 0; a drill needs 3 or 5",
		"drill run fencing --for 0s":     "--for is 0s",
		"drill run fencing --for -1s":    "--for is -1s",
		"drill run bit-flip --cycles -1": "--cycles is -1",
		"drill run bit-flip --seed 0":    "--seed is 0",
		"drill run --all --for 0s":       "--for is 0s",
		"dev --redis 127.0.0.1:99999":    `--redis is "127.0.0.1:99999"; a port is 0 to 65535`,
		"status --http 127.0.0.1:http-x": `--http is "127.0.0.1:http-x"; a port is 0 to 65535`,
		"bench --redis 127.0.0.1":        "such as 127.0.0.1:6379",
	} {
		code, out, talk := call(t, strings.Fields(args)...)
		if code != exitUsage || !strings.Contains(talk, want) || !strings.Contains(talk, "try: quorate") {
			t.Errorf("quorate %s: exit code %d, want %d and %q in\n%s", args, code, exitUsage, want, talk)
		}
		if out != "" {
			t.Errorf("quorate %s printed %q on standard output", args, out)
		}
	}
}

func TestHelp_OfAllCommands(t *testing.T) {
	for _, args := range []string{"", "help", "help drill run", "drill", "import", "completion", "completion bash", "version --help"} {
		if code, out, talk := call(t, strings.Fields(args)...); code != exitOK || out == "" || talk != "" {
			t.Errorf("quorate %s: exit code %d, %q on standard error", args, code, talk)
		}
	}
}

// freeAddr returns an address at which nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	return addr
}

func TestJSON_AlsoOfFailures(t *testing.T) {
	addr := freeAddr(t)
	for args, want := range map[string]int{
		"version --json":                              exitOK,
		"drill ls --json":                             exitOK,
		"drill ls --json foo":                         exitUsage,
		"drill run --json nothing":                    exitNotFound,
		"demo --json --nodes 2":                       exitUsage,
		"status --json --http " + addr:                exitUnavailable,
		"bench --json --redis " + addr:                exitUnavailable,
		"import etcd-snapshot --json /nowhere/at/all": exitUsage,
		// Flags behind a wrong one are not parsed, and those of no command are none.
		"status --bogus --json":                 exitUsage,
		"status --json --bogus":                 exitUsage,
		"status --http=x --bogus --json":        exitUsage,
		"status --json=maybe":                   exitUsage,
		"demo --nodes x --json":                 exitUsage,
		"bench --for x --json=true":             exitUsage,
		"drill ls -x --json":                    exitUsage,
		"drill run --seed -1 --json":            exitUsage,
		"import etcd-snapshot --bogus f --json": exitUsage,
		"version --bogus --json":                exitUsage,
		"stats --json":                          exitUsage,
		"drill ruin --json":                     exitUsage,
		"help nothing --json":                   exitUsage,
		"--json":                                exitUsage,
		"drill --json":                          exitUsage,
		"dev --json":                            exitUsage,
		"server --json":                         exitUsage,
		"etcd --json":                           exitUsage,
	} {
		code, out, talk := call(t, strings.Fields(args)...)
		var v struct {
			APIVersion string
			Error      failed
		}
		if err := json.Unmarshal([]byte(out), &v); err != nil || v.APIVersion != apiVersion {
			t.Errorf("quorate %s: %v in %q", args, err, out)
		}
		if code != want || v.Error.ExitCode != want || (v.Error.Message == "") != (talk == "") {
			t.Errorf("quorate %s: exit code %d, in JSON %+v, want %d; standard error %q", args, code, v.Error, want, talk)
		}
	}
}

func TestJSON_OnlyIfAskedFor(t *testing.T) {
	for _, args := range []string{"status --bogus", "status --bogus --json=false", "status --http --json", "status -- --json", "status --json --bogus --json=0"} {
		if code, out, talk := call(t, strings.Fields(args)...); code != exitUsage || out != "" || talk == "" {
			t.Errorf("quorate %s: exit code %d, %q on standard output, %q on standard error", args, code, out, talk)
		}
	}
}

// full is a disk without room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestOutput_ThatCannotBeWrittenIsAFailure(t *testing.T) {
	for _, args := range []string{"version", "version --json", "drill ls", "drill ls --json", "", "help", "help drill run", "drill", "etcd --help", "completion fish"} {
		var talk bytes.Buffer
		if code := run(t.Context(), strings.Fields(args), full{}, &talk); code != exitFailed || !strings.Contains(talk.String(), syscall.ENOSPC.Error()) {
			t.Errorf("quorate %s: exit code %d, %q", args, code, talk.String())
		}
	}
}

// gone is a pipe that nobody reads any more.
type gone struct{}

func (gone) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestOutput_NobodyReadsItAnyMore(t *testing.T) {
	for _, args := range []string{
		"version", "drill ls",
		// These would go on.
		"dev --redis 127.0.0.1:0 --kafka 127.0.0.1:0 --etcd 127.0.0.1:0 --http 127.0.0.1:0",
		"drill run leader-kill --for 1h",
	} {
		var talk bytes.Buffer
		if code := run(t.Context(), strings.Fields(args), gone{}, &talk); code != exitPipe || talk.Len() > 0 {
			t.Errorf("quorate %s: exit code %d, %q; want %d and nothing", args, code, talk.String(), exitPipe)
		}
	}
}

func TestStatus_OverAUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "http.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"Cluster":"shop"}`) }), ReadHeaderTimeout: time.Minute} //nolint:errcheck // a test's
	go s.Serve(ln)                                                                                                                                                     //nolint:errcheck // a test's
	t.Cleanup(func() { _ = s.Close() })
	if code, out, talk := call(t, "status", "--http", "unix:"+path); code != exitOK || !strings.Contains(out, "cluster") {
		t.Errorf("exit code %d: %s%s", code, out, talk)
	}
}

func TestStatus_AsksNoProxy(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		fmt.Fprint(w, `{"Cluster":"shop"}`) //nolint:errcheck // a test's
	}))
	defer proxy.Close()
	// The environment is read once in a process. A name that there is not: loopback addresses are never a proxy's.
	cmd := exec.Command(self, "status", "--http", "node1.invalid:7070")
	cmd.Env = append(os.Environ(), asProgram+"=1", "HTTP_PROXY="+proxy.URL, "http_proxy="+proxy.URL, "NO_PROXY=", "no_proxy=")
	out, err := cmd.CombinedOutput()
	if n := asked.Load(); n != 0 || cmd.ProcessState.ExitCode() != exitUnavailable {
		t.Errorf("a proxy was asked %d times; %v: %s", n, err, out)
	}
}

func TestStatus_OfWhatIsNoNode(t *testing.T) {
	for _, answer := range []string{`{}`, `{"status":"up"}`, `[]`, `null`, ``, `ok`} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer) })) //nolint:errcheck // a test's
		code, out, talk := call(t, "status", "--http", s.Listener.Addr().String())
		if s.Close(); code != exitFailed || out != "" || !strings.Contains(talk, "does not answer like a Quorate node") {
			t.Errorf("%q: exit code %d, %q, %q", answer, code, out, talk)
		}
	}
}

func TestTerminal_WithoutANameIsNone(t *testing.T) {
	// Any device will do.
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	for term, want := range map[string]bool{"": false, "dumb": false, "xterm": true} {
		t.Setenv("TERM", term)
		if got := isTerminal(f); got != want {
			t.Errorf("TERM=%q: a terminal: %v, want %v", term, got, want)
		}
	}
}

func TestDemo_IsSafeOnlyIfItDidSomething(t *testing.T) {
	for _, c := range []struct {
		r    demoResult
		want string
	}{
		{demoResult{Nodes: 3, Kills: 1, Shop: drill.ShopResult{Acked: 5}}, "safe"},
		{demoResult{Nodes: 1, Shop: drill.ShopResult{Acked: 5}}, "safe"},
		{demoResult{Nodes: 3, Kills: 1}, "unknown"},
		{demoResult{Nodes: 3, Shop: drill.ShopResult{Acked: 5}}, "unknown"},
		{demoResult{Nodes: 3, Findings: []string{"x"}}, "violated"},
	} {
		if c.r.judge(); c.r.Verdict != c.want || (c.r.Unknown != "") != (c.want == "unknown") {
			t.Errorf("%+v, want %s", c.r, c.want)
		}
	}
}

func TestDemo_JSONHasLists(t *testing.T) {
	var out bytes.Buffer
	r := demoResult{Nodes: 3, Kills: 1, Shop: drill.ShopResult{Acked: 5}}
	r.judge()
	if err := printJSON(&out, r); err != nil || strings.Contains(out.String(), "null") || !strings.Contains(out.String(), `"acked": 5`) {
		t.Errorf("%v: %s", err, out.String())
	}
}

// heeded makes programs that the test starts begin with signals that end them. Whoever starts the test may ignore them, as nohup does, and
// hand that down.
func heeded(t *testing.T, signals ...os.Signal) {
	t.Helper()
	c := make(chan os.Signal, 1)
	signal.Notify(c, signals...)
	t.Cleanup(func() { signal.Stop(c) })
}

func TestSignal_ClosedTerminalStopsInOrder(t *testing.T) {
	heeded(t, syscall.SIGHUP)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "dev", "--redis", "127.0.0.1:0", "--kafka", "127.0.0.1:0", "--etcd", "127.0.0.1:0", "--http", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), asProgram+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(out); s.Scan(); {
		if strings.HasPrefix(s.Text(), "Ready") {
			if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("ended with %v, want that it was stopped in order", err)
	}
}

func TestSignal_TheSecondEndsAtOnce(t *testing.T) {
	heeded(t, os.Interrupt)
	// A server that does not answer: when bench is interrupted it waits some seconds for what is under way.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() //nolint:errcheck // a test's
	asked := make(chan struct{}, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close() //nolint:errcheck // a test's
		var b [1]byte
		_, _ = c.Read(b[:])
		asked <- struct{}{}
		<-t.Context().Done()
	}()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "bench", "--redis", ln.Addr().String(), "--clients", "1", "--for", "1h")
	cmd.Env = append(os.Environ(), asProgram+"=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-asked
	over := make(chan error, 1)
	go func() { over <- cmd.Wait() }()
	// Nothing tells when the first signal has been taken note of, so that there are some more than two.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for running := true; running; {
		select {
		case err = <-over:
			running = false
		case <-tick.C:
			_ = cmd.Process.Signal(os.Interrupt)
		}
	}
	var ended *exec.ExitError
	if !errors.As(err, &ended) {
		t.Fatalf("ended with %v", err)
	}
	if st, ok := ended.Sys().(syscall.WaitStatus); !ok || !st.Signaled() || st.Signal() != syscall.SIGINT {
		t.Errorf("ended with %v, want that the second signal ended it", err)
	}
}

// What an earlier node has written must not say that this one is ready.
func TestReadyFile_OfAnEarlierNodeGoes(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() //nolint:errcheck // a test's
	dir := t.TempDir()
	ready, config := filepath.Join(dir, "ready"), filepath.Join(dir, "config.yaml")
	// The port is taken, so that neither gets ready.
	if err := os.WriteFile(config, fmt.Appendf(nil, "cluster: x\nnode: 1\ndata: %s\nlisten: {http: %s}\n", filepath.Join(dir, "data"), ln.Addr()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"server", "--config", config}, {"dev", "--redis=", "--kafka=", "--etcd=", "--http", ln.Addr().String()}} {
		if err := os.WriteFile(ready, []byte("127.0.0.1:1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, talk := call(t, append(args, "--ready-file", ready)...)
		if _, err := os.Stat(ready); code != exitConflict || err == nil {
			t.Errorf("quorate %s: exit code %d, and the file is there: %v; %s", args[0], code, err == nil, talk)
		}
	}
	if code, _, talk := call(t, "dev", "--ready-file", dir); code != exitUsage || !strings.Contains(talk, "directory") {
		t.Errorf("a directory: exit code %d, %s", code, talk)
	}
}
