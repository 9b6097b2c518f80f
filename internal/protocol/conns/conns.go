// Package conns keeps the listeners and the open connections of a protocol server: it accepts, bounds how many are open, knows which, and
// ends and waits for all of them.
//
// It hides the order in which that has to be done: what is accepted while the server closes is not served, and nothing is started that
// Wait does not wait for.
package conns

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/telemetry"
)

// Why Go takes in no connection.
var (
	ErrFull   = errors.New("as many connections are open as may be")
	ErrClosed = errors.New("the server is closed")
)

// acceptRetry is the pause after a connection could not be accepted.
const acceptRetry = 100 * time.Millisecond

// sayEvery is how often it is logged that connections find no room, so that nobody can fill the log.
const sayEvery = time.Minute

// Set is the listeners and connections of one server; a C stands for a connection. Make it with New. Its methods may be called from any
// goroutine.
type Set[C comparable] struct {
	protocol string
	max      int
	places   *Places
	log      *slog.Logger
	// full and failed are for lines of the log: that there is no room, and that the system lets nobody in.
	full, failed telemetry.Seldom
	// wg counts calls of Serve and what Go runs. It is added to under mu and only while closed is false, or by what it counts already.
	wg   sync.WaitGroup
	done chan struct{}

	// mu guards what follows.
	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]struct{}
	open      map[C]struct{}
}

// New returns an empty set of at most max connections, 1 or more, which take places. The protocol's name is for errors and the log.
func New[C comparable](protocol string, max int, places *Places, log *slog.Logger) *Set[C] {
	return &Set[C]{
		protocol: protocol, max: max, places: places, log: log, done: make(chan struct{}), listeners: map[net.Listener]struct{}{}, open: map[C]struct{}{},
	}
}

// Serve accepts connections until the listener or the set is closed, takes the listener over, and calls admit for each connection. It returns
// nil then, and fails if the set is closed already. Whatever else Accept fails with is logged and tried again after a pause: it is a lack of
// file descriptors, most likely, and those who are connected go on meanwhile. The log has a line a minute at most.
func (s *Set[C]) Serve(ln net.Listener, admit func(net.Conn)) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errors.Join(errs.New(errs.Unavailable, "the %s server is closed", s.protocol), ln.Close())
	}
	s.listeners[ln] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, ln)
		s.mu.Unlock()
		_ = ln.Close()
	}()
	for {
		nc, err := ln.Accept()
		if err == nil {
			admit(nc)
			continue
		}
		if s.Closed() || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if unsaid, say := s.failed.Say(time.Now(), sayEvery); say {
			s.log.Error("cannot accept a connection", "protocol", s.protocol, "listen", ln.Addr().String(), "error", err, "not_logged", unsaid)
		}
		select {
		case <-s.done:
		case <-time.After(acceptRetry):
		}
	}
}

// Go takes in a connection, which counts until Remove, and runs f on a goroutine. If it cannot, it returns ErrFull or ErrClosed. That there is no room it logs,
// once a minute at most.
func (s *Set[C]) Go(c C, f func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrClosed
	case len(s.open) >= s.max:
		s.sayFull(s.max)
		return ErrFull
	case !s.places.take():
		s.sayFull(int(s.places.max))
		return ErrFull
	}
	s.open[c] = struct{}{}
	s.wg.Go(f)
	return nil
}

// sayFull logs that so many connections are all that may be open.
func (s *Set[C]) sayFull(most int) {
	if unsaid, say := s.full.Say(time.Now(), sayEvery); say {
		s.log.Warn("connection refused: too many are open", "protocol", s.protocol, "connections_max", most, "not_logged", unsaid)
	}
}

// Remove says that a connection has ended. It may be called more than once.
func (s *Set[C]) Remove(c C) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, open := s.open[c]; open {
		delete(s.open, c)
		s.places.give()
	}
}

// Len returns how many connections are open.
func (s *Set[C]) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// Open returns the open connections, in no order.
func (s *Set[C]) Open() []C {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openLocked()
}

func (s *Set[C]) openLocked() []C {
	list := make([]C, 0, len(s.open))
	for c := range s.open {
		list = append(list, c)
	}
	return list
}

// Closed says whether Close was called.
func (s *Set[C]) Closed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Close closes all listeners, and lets no connection in from now on. It returns those that are open, which the caller has to end before it
// waits.
func (s *Set[C]) Close() []C {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	for ln := range s.listeners {
		_ = ln.Close()
	}
	return s.openLocked()
}

// Wait waits until Serve has returned for every listener, and all that Go runs has ended. It is called after Close.
func (s *Set[C]) Wait() { s.wg.Wait() }
