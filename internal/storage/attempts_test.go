package storage

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/quorate/quorate/internal/errs"
)

// Blob files that cannot be written again without their garbage count as merges that fail.
func TestBackground_BlobFilesCount(t *testing.T) {
	b := newBackground("state", nil, func(err error) error { return err })
	l := &pebble.EventListener{}
	b.listen(l)
	for i := range attemptsMax {
		if err := b.err(); err != nil {
			t.Fatalf("attempt %d: early: %v", i, err)
		}
		l.BlobFileRewriteEnd(pebble.BlobFileRewriteInfo{Err: wroteWith(syscall.ENOSPC)})
	}
	wantKind(t, b.err(), errs.Unavailable)
	<-b.broken
}

// After the last attempt there is none, until the store is closed.
func TestBackground_NoAttemptAfterTheLast(t *testing.T) {
	for n, want := range map[int32]time.Duration{0: 0, 1: attemptPause, 3: 4 * attemptPause, attemptsMax: time.Hour, attemptsMax + 3: time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			end := make(chan struct{})
			b := newBackground("state", end, nil)
			b.merges.Store(n)
			time.AfterFunc(time.Hour, func() { close(end) })
			began := time.Now()
			b.wait(&b.merges)
			if got := time.Since(began); got != want {
				t.Errorf("after %d failures it waits for %v, want %v", n, got, want)
			}
			<-end
		})
	}
}

// What the disk refuses ends the node with a reason; of a bug one sees where it is.
func TestPebbleLogger_Fatal(t *testing.T) {
	full := fmt.Errorf("write: %w", syscall.ENOSPC)
	for _, c := range []struct {
		name string
		args []any
		told bool
	}{
		{"a full disk", []any{full}, true},
		{"something else before", []any{"file", full}, true},
		{"a bug", []any{errors.New("a bug")}, false},
		{"no error", []any{"file"}, false},
	} {
		for _, listens := range []bool{true, false} {
			var told error
			l := pebbleLogger{}
			if listens {
				l.fatal = func(err error) { told = err }
			}
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s: it goes on", c.name)
					}
				}()
				l.Fatalf("%v", c.args...)
			}()
			if want := c.told && listens; errs.Is(told, errs.Unavailable) != want || (told != nil) != want {
				t.Errorf("%s: told of %v, want %v", c.name, told, want)
			}
		}
	}
}
