package telemetry

import (
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// tap is written to only while it is open.
type tap struct {
	open chan struct{}
	got  strings.Builder
	err  error
}

func (p *tap) Write(b []byte) (int, error) {
	<-p.open
	if p.err != nil {
		return 0, p.err
	}
	return p.got.Write(b)
}

func TestLogger_WhileNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &tap{open: make(chan struct{})}
		log, err := Logger(p, "json", "info")
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		log.Info("held up", "n", 0)
		if took := time.Since(began); took != standstill {
			t.Errorf("the first line took %v, want %v", took, standstill)
		}
		large := strings.Repeat("x", unwrittenMax/4)
		for n := 1; n <= 10; n++ {
			log.Info("held up", "n", n, "large", large)
		}
		if took := time.Since(began); took != standstill {
			t.Errorf("all lines took %v, want that only the first waits, %v", took, standstill)
		}
		close(p.open)
		synctest.Wait()
		log.Info("read again")
		var said []string
		for text := range strings.Lines(p.got.String()) {
			var l struct {
				Level, Msg string
				N, Lines   int
			}
			if err := json.Unmarshal([]byte(text), &l); err != nil {
				t.Fatalf("%v: %.100s", err, text)
			}
			if l.Msg == "held up" && l.N != len(said) {
				t.Errorf("line %d comes as number %d", l.N, len(said))
			}
			if l.Lines != 0 && (l.Lines != 7 || l.Level != "WARN") {
				t.Errorf("%s: %d lines are missing, want WARN and 7", l.Level, l.Lines)
			}
			said = append(said, l.Msg)
		}
		want := "held up,held up,held up,held up,nobody read the log; lines are missing,read again"
		if got := strings.Join(said, ","); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// slow is a reader that takes a line in a while.
type slow struct{ lines atomic.Int32 }

func (s *slow) Write(b []byte) (int, error) {
	time.Sleep(standstill / 4)
	s.lines.Add(1)
	return len(b), nil
}

func TestPatient_ReturnsWhenItIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s slow
		w := Patient(&s)
		for n := int32(1); n <= 20; n++ {
			if _, err := w.Write([]byte("line")); err != nil || s.lines.Load() != n {
				t.Fatalf("%d lines, %v; want %d", s.lines.Load(), err, n)
			}
		}
	})
}

func TestPatient_OneThatIsLargerThanTheRoom(t *testing.T) {
	p := &tap{open: make(chan struct{})}
	close(p.open)
	if n, err := Patient(p).Write(make([]byte, 2*unwrittenMax)); n != 2*unwrittenMax || err != nil || p.got.Len() != n {
		t.Errorf("%d, %v; %d arrived", n, err, p.got.Len())
	}
}

func TestPatient_FailuresAreTold(t *testing.T) {
	p := &tap{open: make(chan struct{}), err: errors.New("broken")}
	close(p.open)
	if n, err := Patient(p).Write([]byte("x")); n != 0 || !errors.Is(err, p.err) {
		t.Errorf("%d, %v", n, err)
	}
}
