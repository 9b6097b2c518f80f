package conns

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quorate/quorate/internal/errs"
)

var quiet = slog.New(slog.DiscardHandler)

// scripted is a listener whose Accept returns what is sent to it.
type scripted struct {
	next   chan any
	closed chan struct{}
}

func newScripted() *scripted { return &scripted{make(chan any), make(chan struct{})} }

func (l *scripted) Accept() (net.Conn, error) {
	select {
	case v := <-l.next:
		if err, ok := v.(error); ok {
			return nil, err
		}
		return v.(net.Conn), nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *scripted) Close() error {
	select {
	case <-l.closed:
		return net.ErrClosed
	default:
		close(l.closed)
		return nil
	}
}

func (l *scripted) Addr() net.Addr { return &net.TCPAddr{} }

// serve runs Serve in a goroutine.
func serve(s *Set[net.Conn], ln net.Listener, admit func(net.Conn)) <-chan error {
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln, admit) }()
	return done
}

func TestSet_BoundsWhatIsOpen(t *testing.T) {
	s := New[int]("test", 2, nil, quiet)
	end := make(chan struct{})
	wait := func() { <-end }
	for i, want := range []error{nil, nil, ErrFull} {
		if err := s.Go(i, wait); err != want {
			t.Fatalf("connection %d: got %v, want %v", i, err, want)
		}
	}
	s.Remove(0)
	s.Remove(0)
	if err := s.Go(3, wait); err != nil || s.Len() != 2 {
		t.Errorf("after one left: got %v with %d open, want 2", err, s.Len())
	}
	open := s.Open()
	slices.Sort(open)
	left := s.Close()
	slices.Sort(left)
	if want := []int{1, 3}; !slices.Equal(open, want) || !slices.Equal(left, want) {
		t.Errorf("open %v, to be ended %v, want %v", open, left, want)
	}
	if err := s.Go(4, wait); err != ErrClosed {
		t.Errorf("after Close: got %v, want %v", err, ErrClosed)
	}
	close(end)
	s.Wait()
}

// Servers share places, each of which is given back once. That none is left is logged once a minute.
func TestSet_SharesPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		places := NewPlaces(2)
		one, two := New[int]("one", 10, places, quiet), New[int]("two", 10, places, slog.New(slog.NewTextHandler(&log, nil)))
		end := make(chan struct{})
		wait := func() { <-end }
		if err := errors.Join(one.Go(1, wait), two.Go(2, wait)); err != nil {
			t.Fatal(err)
		}
		full := func() {
			t.Helper()
			if err := two.Go(3, wait); err != ErrFull {
				t.Errorf("got %v, want %v", err, ErrFull)
			}
		}
		full()
		full()
		if got := strings.Count(log.String(), "connections_max=2"); got != 1 {
			t.Errorf("%d lines, want one:\n%s", got, log.String())
		}
		one.Remove(1)
		one.Remove(1)
		if err := two.Go(4, wait); err != nil {
			t.Errorf("after one left: %v", err)
		}
		time.Sleep(sayEvery)
		full()
		if !strings.Contains(log.String(), "not_logged=1") {
			t.Errorf("a minute later:\n%s", log.String())
		}
		close(end)
		one.Close()
		two.Close()
		one.Wait()
		two.Wait()
	})
}

func TestServe_EndsWithCloseAndIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New[net.Conn]("test", 10, nil, quiet)
		ln, nc := newScripted(), &net.TCPConn{}
		ran := false
		end := make(chan struct{})
		done := serve(s, ln, func(c net.Conn) {
			if err := s.Go(c, func() { <-end; time.Sleep(time.Second); ran = true }); err != nil {
				t.Error(err)
			}
		})
		ln.next <- nc
		synctest.Wait()
		if left := s.Close(); len(left) != 1 || left[0] != nc || !s.Closed() {
			t.Errorf("to be ended: %v", left)
		}
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if left := s.Close(); len(left) != 1 {
			t.Errorf("to be ended the second time: %v", left)
		}
		close(end)
		s.Wait()
		if !ran {
			t.Error("Wait did not wait for what runs")
		}
	})
}

func TestServe_AfterCloseFailsAndClosesTheListener(t *testing.T) {
	s := New[net.Conn]("test", 1, nil, quiet)
	s.Close()
	ln := newScripted()
	err := s.Serve(ln, nil)
	if !errs.Is(err, errs.Unavailable) || err.Error() != "the test server is closed" {
		t.Errorf("got %v", err)
	}
	if ln.Close() == nil {
		t.Error("the listener is open")
	}
}

func TestServe_EndsWithTheListener(t *testing.T) {
	s := New[net.Conn]("test", 1, nil, quiet)
	ln := newScripted()
	done := serve(s, ln, nil)
	ln.next <- net.ErrClosed
	if err := <-done; err != nil {
		t.Errorf("got %v", err)
	}
	if ln.Close() == nil {
		t.Error("the listener is open")
	}
	s.Close()
	s.Wait()
}

func TestServe_GoesOnAfterAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		s := New[net.Conn]("test", 1, nil, slog.New(slog.NewTextHandler(&log, nil)))
		ln := newScripted()
		admitted := 0
		done := serve(s, ln, func(net.Conn) { admitted++ })
		start := time.Now()
		ln.next <- io.ErrUnexpectedEOF
		ln.next <- &net.TCPConn{}
		if took := time.Since(start); took != acceptRetry {
			t.Errorf("went on after %v, want %v", took, acceptRetry)
		}
		// Close ends the pause.
		time.Sleep(sayEvery)
		ln.next <- io.ErrUnexpectedEOF
		synctest.Wait()
		start = time.Now()
		s.Close()
		if err := <-done; err != nil || time.Since(start) != 0 {
			t.Errorf("got %v after %v, want none at once", err, time.Since(start))
		}
		s.Wait()
		if n := strings.Count(log.String(), "protocol=test listen=:0 error=\"unexpected EOF\""); n != 2 || admitted != 1 {
			t.Errorf("%d connections, want 1; %d errors of 2 in the log:\n%s", admitted, n, log.String())
		}
	})
}
