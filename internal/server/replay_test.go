package server

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/storage"
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

// A damaged log is not written to: opened for good, it would be cut, and its node no longer see what it had forgotten.
func TestReplayKV_LeavesADamagedLog(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	log, _, err := storage.OpenLog(storage.OSFS(), path, storage.LogConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(20) {
		w := storage.Write{Shard: 1, Entries: []storage.Entry{{Index: i + 1, Term: 1, Data: bytes.Repeat([]byte("x"), 500)}}}
		if err := errors.Join(log.Append([]storage.Write{w}), log.Sync()); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(log.Close(), os.WriteFile(filepath.Join(dir, "LOCK"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	segs, err := filepath.Glob(filepath.Join(path, "*.seg"))
	if err != nil || len(segs) == 0 {
		t.Fatalf("segments %v, %v", segs, err)
	}
	text := read(t, segs[0])
	text[bytes.Index(text, []byte("xxx"))+1200] ^= 1
	if err := os.WriteFile(segs[0], text, 0o600); err != nil {
		t.Fatal(err)
	}
	all := func() string {
		out := ""
		files, err := filepath.Glob(filepath.Join(path, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			out += fmt.Sprintf("%s %x\n", f, sha256.Sum256(read(t, f)))
		}
		return out
	}
	before := all()
	if err := ReplayKV(dir, 1, io.Discard); !errs.Is(err, errs.Corrupt) {
		t.Errorf("got %v, want that the log is damaged", err)
	}
	if after := all(); after != before {
		t.Errorf("the log was changed:\n%sfrom\n%s", after, before)
	}
}
