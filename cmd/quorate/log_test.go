package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What libraries have to say goes where all lines of the log go, and in their form.
func TestLog_EveryLineHasItsForm(t *testing.T) {
	heeded(t, os.Interrupt)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "dev", "--redis", "127.0.0.1:0", "--kafka", "127.0.0.1:0", "--etcd", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-level", "debug", "--log-format", "json")
	cmd.Env = append(os.Environ(), asProgram+"=1", "GRPC_GO_LOG_SEVERITY_LEVEL=")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	etcd := ""
	for s := bufio.NewScanner(out); s.Scan(); {
		if w := strings.Fields(s.Text()); len(w) > 1 && w[0] == "etcd" {
			etcd = w[1]
		}
		if !strings.HasPrefix(s.Text(), "Ready") {
			continue
		}
		// The gateway logs a field that is no header of gRPC's.
		if err := askPlain(etcd, "POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nGrpc-Metadata-Odd: \xff\r\nContent-Length: 14\r\n\r\n{\"key\":\"YQ==\"}"); err != nil {
			t.Error(err)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("ended with %v", err)
	}
	count := map[string]int{}
	for line := range strings.Lines(said.String()) {
		var l struct{ Level, Msg string }
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Errorf("not a line of the log: %q", line)
		}
		count[l.Level+" "+l.Msg]++
	}
	if count["DEBUG gRPC says"] == 0 {
		t.Errorf("the log has %v", count)
	}
}

// A node does not stand still for who does not read its log, nor when it ends.
func TestLog_NobodyReadsIt(t *testing.T) {
	heeded(t, os.Interrupt)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // a test's
	raw, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for full := false; !full; {
		if err := raw.Control(func(fd uintptr) {
			_, err := syscall.Write(int(fd), make([]byte, 1))
			full = errors.Is(err, syscall.EAGAIN)
		}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "dev", "--redis", "127.0.0.1:0", "--kafka", "127.0.0.1:0", "--etcd", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-level", "debug", "--log-format", "json")
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.Stderr = w
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(cmd.Start(), w.Close()); err != nil {
		t.Fatal(err)
	}
	ready := false
	for s := bufio.NewScanner(out); s.Scan(); {
		if strings.HasPrefix(s.Text(), "Ready") {
			ready = true
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil || !ready {
		t.Errorf("ready %v, ended with %v", ready, err)
	}
}

// askPlain sends a request of HTTP as it is written, and wants it to succeed.
func askPlain(addr, request string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // a test's
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := c.Write([]byte(request)); err != nil {
		return err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	_ = r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("answered with %s", r.Status)
	}
	return nil
}
