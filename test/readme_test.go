package test

import (
	"bufio"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// block is a shell block of a document.
type block struct {
	line int
	text string
}

// shellBlocks returns the blocks that are marked sh.
func shellBlocks(t *testing.T, name string) []block {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var all []block
	in := false
	for i, line := range strings.Split(string(b), "\n") {
		switch {
		case !in && line == "```sh":
			in = true
			all = append(all, block{line: i + 2})
		case in && line == "```":
			in = false
		case in:
			all[len(all)-1].text += line + "\n"
		}
	}
	return all
}

// dev runs a node until the test ends, and returns the addresses of its banner, by the protocol's name.
func dev(t *testing.T, name string, args ...string) map[string]string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan map[string]string, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		at := map[string]string{}
		addr := regexp.MustCompile(`^ +(Redis|Kafka|etcd|HTTP) +(\S+)`)
		for s := bufio.NewScanner(out); s.Scan(); {
			if m := addr.FindStringSubmatch(s.Text()); m != nil {
				at[m[1]] = m[2]
			}
			if strings.HasPrefix(s.Text(), "Ready") {
				ready <- at
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		_ = cmd.Wait()
	})
	select {
	case at := <-ready:
		return at
	case <-ended:
		t.Fatal("quorate dev ended before it was ready")
	case <-time.After(2 * time.Minute):
		t.Fatal("quorate dev is not ready after two minutes")
	}
	return nil
}

// TestReadme_CommandsWork runs the shell blocks of README.md in order, in one session. If a usual port is taken here, the
// node is on another one, and the commands are changed to that.
func TestReadme_CommandsWork(t *testing.T) {
	bin := t.TempDir()
	if err := os.Symlink(binary, filepath.Join(bin, "quorate")); err != nil {
		t.Fatal(err)
	}
	var ports []string
	for _, b := range shellBlocks(t, "../README.md") {
		if strings.TrimSpace(b.text) == "go run ./cmd/quorate dev" {
			at := dev(t, binary, "dev")
			for from, to := range map[string]string{"6379": at["Redis"], "9092": at["Kafka"], "7070": at["HTTP"]} {
				_, port, err := net.SplitHostPort(to)
				if err != nil {
					t.Fatalf("the banner of quorate dev gives the address %q", to)
				}
				ports = append(ports, from, port)
			}
			continue
		}
		// What `go run` would build was built already.
		text := strings.ReplaceAll(b.text, "go run ./cmd/quorate", "quorate")
		text = strings.NewReplacer(ports...).Replace(text)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", text)
		cmd.Dir = ".."
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		cancel()
		if err != nil {
			t.Fatalf("README.md:%d: %v\n%s\n%s", b.line, err, text, out)
		}
		t.Logf("README.md:%d:\n%s", b.line, out)
		for command, want := range map[string]string{
			"get hello": "world\n", "EXEC": "two apples", "__changes": "hello = world", "quorate demo": "SAFE:", "quorate status": "NO", "quorate bench": "p99",
		} {
			if strings.Contains(text, command) && !strings.Contains(string(out), want) {
				t.Errorf("README.md:%d: the output holds no %q:\n%s", b.line, want, out)
			}
		}
		if strings.Contains(string(out), "ERR ") || strings.Contains(string(out), "% ERROR") {
			t.Errorf("README.md:%d:\n%s", b.line, out)
		}
	}
	if len(ports) == 0 {
		t.Error("README.md does not start quorate dev")
	}
}
