package drill

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/errs"
)

// dataDir makes a directory that looks like a node's: a log file laid out ahead with zeros, an empty one, and a state store.
func dataDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range map[string][]byte{
		"log/1.seg":      append(bytes.Repeat([]byte("header value-one-aaaa value-two-bbbb "), 100), make([]byte, 9000)...),
		"log/2.seg":      make([]byte, 9000),
		"log/LOCK":       []byte("x"),
		"state/1.sst":    bytes.Repeat([]byte("table"), 1000),
		"state/MANIFEST": []byte("manifest"),
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// files reads all files below a directory.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, dir+"/")] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestInflict_TouchesUsedBytesOfOnePartOnly(t *testing.T) {
	for _, how := range damages() {
		for seed := range uint64(20) {
			dir := dataDir(t)
			before := files(t, dir)
			did, err := inflict(rand.New(rand.NewPCG(seed, 1)), dir, how, [][]byte{[]byte("value-two-bbbb")})
			if err != nil || did == "" {
				t.Fatalf("%s: %q, %v", how, did, err)
			}
			part := "log/"
			if how == damageStateBits || how == damageStateZero {
				part = "state/"
			}
			after := files(t, dir)
			changed := 0
			for name, was := range before {
				if after[name] == was {
					continue
				}
				changed++
				if !strings.HasPrefix(name, part) || strings.HasSuffix(name, "LOCK") || name == "log/2.seg" {
					t.Errorf("%s, seed %d: changed %s", how, seed, name)
				}
				if now := after[name]; how != damageLogCut && how != damageLogGone {
					if len(now) != len(was) {
						t.Errorf("%s, seed %d: length of %s was %d, is %d", how, seed, name, len(was), len(now))
					} else if now[3700:] != was[3700:] && part == "log/" {
						t.Errorf("%s, seed %d: changed unused bytes", how, seed)
					}
				}
			}
			// Two flips of one bit undo each other, which is rare.
			if changed == 0 && how != damageLogBits && how != damageStateBits {
				t.Errorf("%s, seed %d: nothing changed (%s)", how, seed, did)
			}
		}
	}
}

func TestInflict_FlippedValuesStayLetters(t *testing.T) {
	dir := dataDir(t)
	if _, err := inflict(rand.New(rand.NewPCG(1, 1)), dir, damageValues, [][]byte{[]byte("value-one-aaaa")}); err != nil {
		t.Fatal(err)
	}
	log := files(t, dir)["log/1.seg"]
	if !strings.Contains(log, "header value-one-") || strings.Count(log, "value-two-bbbb") != 100 {
		t.Error("more than the value was changed")
	}
	if strings.Count(log, "value-one-aaaa") == 100 {
		t.Error("no value was changed")
	}
}

func TestInflict_NothingToDamage(t *testing.T) {
	dir := dataDir(t)
	if _, err := inflict(rand.New(rand.NewPCG(1, 1)), dir, damageValues, [][]byte{[]byte("not there")}); !errs.Is(err, errs.NotFound) {
		t.Errorf("values that are not there: got %v, want NotFound", err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "state"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := inflict(rand.New(rand.NewPCG(1, 1)), dir, damageStateBits, nil); !errs.Is(err, errs.NotFound) {
		t.Errorf("an empty state store: got %v, want NotFound", err)
	}
}

func TestErrorLines_FindsErrorsAndPanics(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	lines := []string{
		`{"level":"INFO","msg":"error: none"}`, `{"level":"ERROR","msg":"bad"}`, `{"level":"WARN","msg":"w"}`,
		"panic: oh", "goroutine 1 [running]:", "error: stopped", `{"level":"ERROR","msg":"` + strings.Repeat("x", 1000) + `"}`,
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := errorLines(path)
	if err != nil || len(got) != 4 || got[1] != "panic: oh" || len(got[3]) != 400 {
		t.Errorf("got %q, %v", got, err)
	}
}
