// Package env is the only door to clocks, randomness, the network and injected faults.
//
// The core (shard, replica, the data models) is not even given an Env: it is handed the time as a value.
// Everything around it takes an Env, so that a test or a drill can change what the world looks like for one node.
package env

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// Env is what a node sees of the world. The zero value is not usable; call Real.
type Env struct {
	// Now returns a time that never goes back while the process lives: the wall clock at start plus the monotonic time
	// since. A jump of the wall clock therefore does not reach replicated state.
	Now func() time.Time
	// After returns a channel that receives once d has passed, as time.After.
	After func(d time.Duration) <-chan time.Time
	// Rand returns 64 unpredictable bits; it is used for identities, never for secrets.
	Rand func() uint64
	// Dial connects to a TCP address, or to a unix socket: see SocketPrefix.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Listen opens a TCP listener, or one on a unix socket, whose file it removes when it is closed. The address is never shared with another process (no SO_REUSEPORT); a socket's
	// file that a process left behind which is gone is replaced.
	Listen func(ctx context.Context, addr string) (net.Listener, error)
}

// Real returns the Env of a production process.
func Real() *Env {
	start := time.Now()
	return &Env{
		Now:   func() time.Time { return start.Add(time.Since(start)) },
		After: time.After,
		Rand: func() uint64 {
			var b [8]byte
			// crypto/rand.Read never fails on Go 1.24 and later.
			_, _ = crand.Read(b[:])
			return binary.LittleEndian.Uint64(b[:])
		},
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			d := net.Dialer{KeepAlive: 15 * time.Second}
			network, addr := Network(addr)
			return d.DialContext(ctx, network, addr)
		},
		Listen: listen,
	}
}

// SocketPrefix begins an address that is a unix socket: what follows is the path of its file.
const SocketPrefix = "unix:"

// Network returns what package net calls the network of an address, tcp or unix, and the address there.
func Network(addr string) (network, address string) {
	if path, ok := strings.CutPrefix(addr, SocketPrefix); ok {
		return "unix", path
	}
	return "tcp", addr
}

func listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	network, at := Network(addr)
	ln, err := lc.Listen(ctx, network, at)
	if network != "unix" || !errors.Is(err, syscall.EADDRINUSE) {
		return ln, err
	}
	if f, statErr := os.Lstat(at); statErr != nil || f.Mode().Type() != os.ModeSocket {
		return nil, err
	}
	var d net.Dialer
	c, dialErr := d.DialContext(ctx, network, at)
	if dialErr == nil {
		_ = c.Close()
	}
	if !errors.Is(dialErr, syscall.ECONNREFUSED) {
		return nil, err
	}
	// Nobody listens: a process was killed.
	if err := os.Remove(at); err != nil {
		return nil, err
	}
	return lc.Listen(ctx, network, at)
}

// Gone says whether a connection just ended, or was not used in time: nobody's concern, unlike one that was refused.
func Gone(err error) bool {
	var netErr net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, context.Canceled) || errors.Is(err, syscall.ECONNRESET) ||
		errors.As(err, &netErr) && netErr.Timeout()
}
