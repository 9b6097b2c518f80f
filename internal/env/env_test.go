package env

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestListen_UnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "q") //nolint:usetesting // paths of sockets are at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "localhost:1")
	e := Real()
	// A process that was killed leaves its file behind.
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	ln, err := e.Listen(t.Context(), SocketPrefix+path)
	if err != nil {
		t.Fatalf("where a file was left: %v", err)
	}
	if _, err := e.Listen(t.Context(), SocketPrefix+path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("where somebody listens: %v", err)
	}
	c, err := e.Dial(t.Context(), SocketPrefix+path)
	if err != nil {
		t.Fatalf("dial after another tried to listen: %v", err)
	}
	_ = c.Close()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file after the end: %v", err)
	}
	if err := os.WriteFile(path, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Listen(t.Context(), SocketPrefix+path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("where another file is: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "kept" {
		t.Errorf("the other file: %q %v", b, err)
	}
}
