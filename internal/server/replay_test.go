package server

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/quorate/quorate/internal/errs"
)

func TestReplayKV_MakesNothing(t *testing.T) {
	dir := t.TempDir()
	for _, at := range []string{dir, filepath.Join(dir, "none"), "/dev/null"} {
		if err := ReplayKV(at, 1, io.Discard); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: got %v, want that it is no data directory", at, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it made %v, %v", left, err)
	}
}
