package main

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/errs"
)

func TestBench_NothingSucceededIsAnError(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() //nolint:errcheck // a test's
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close() //nolint:errcheck // a test's
				buf := make([]byte, 64<<10)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					if _, err := io.WriteString(c, "-CLUSTERDOWN no leader\r\n"); err != nil {
						return
					}
				}
			}()
		}
	}()
	root := newRoot()
	root.SetArgs([]string{"bench", "--redis", ln.Addr().String(), "--clients", "1", "--warm", "0s", "--for", "300ms"})
	root.SetOut(io.Discard)
	err = root.ExecuteContext(t.Context())
	if !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "CLUSTERDOWN") {
		t.Errorf("got %v, want that no request succeeded, and why", err)
	}
}
